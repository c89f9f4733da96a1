"""Places, and what lies in them: folders on disk, prefixes in buckets, archives of recordings.

`folder.Folder` reads and writes files by name, `archive.list_recordings` lists an archive, and `prefetch.reading` fetches recordings ahead. Retries,
credentials and clients stay in here. This room knows nothing of audio, tables or Dask, and imports no other room.
"""
