"""The content of a table's folder: parts, manifest, ``table.json``, leases and notes of runs.

`parts` publishes and reads rows, `manifest` says which recordings belong to which shard, and `status`, `verify` and `repair` look at the whole. This
room needs storage only: it knows nothing of audio, models, workers or Dask.
"""
