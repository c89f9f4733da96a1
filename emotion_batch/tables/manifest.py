"""The manifest: the recordings of a table, frozen, cut into shards, and growing by generations.

A generation is a few files in ``_table/manifest/``: ``000001-<digest>.arrow``, one or several, with one record batch for each shard; and
``000001.json``, which says which shards these are. It is written last, and only if there is none. The newest entries of a shard are
those of the last generation that has it. If that generation has none, the shard is gone. If two runs freeze at the same time, one has
its generation, and the other takes it over and adds what it lacks. A rebuilt generation replaces all generations before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import UsageError, counted
from emotion_batch.settings import Segments
from emotion_batch.storage.entries import Entry
from emotion_batch.storage.folder import Folder, explained, seal, unseal
from emotion_batch.tables import shard_entries
from emotion_batch.tables.shard_entries import FOLDER, ShardEntry, damaged_manifest, places, reading_entries
from emotion_batch.tables.sharding import cut

# A share of a table's recordings. If more are gone at once, the archive is probably not mounted.
_MOST_PRUNED = 0.1
_INDEX = re.compile(r"[0-9]{6,}\.json")
_FILE_DIGEST = re.compile(r"[0-9]+-([0-9a-f]{16})\.arrow")
_IS_REBUILT = "is_rebuilt"


@dataclass(frozen=True)
class Growth:
    """How many recordings a new listing adds, changes, lacks (their rows stay) and prunes in a manifest."""

    n_new: int = 0
    n_changed: int = 0
    n_gone: int = 0
    n_pruned: int = 0


class Manifest:
    """The shards of one table, from its generations after number `after`; raise DamagedError if one is damaged.

    Attributes
    ----------
    shards
        Place of the newest entries of each shard, by the number of the shard.
    history
        Place of all entries that a shard has had, by its number and their digest; pruned shards are included.
    gone
        Names of a shard's recordings that the last compared listing lacks; only for shards that have such recordings.
    n_recordings
        Number of recordings in all shards.
    is_rebuilt, first, generation
        Whether it was rebuilt; the numbers of its first and of its newest generation, 0 without any.
    """

    def __init__(self, table: Folder, after: int = 0) -> None:
        self._table = table
        self._folder = table.folder(FOLDER)
        self.shards: dict[int, ShardEntry] = {}
        self.history: dict[tuple[int, str], ShardEntry] = {}
        self.gone: dict[int, pa.Array] = {}
        self.n_recordings = 0
        self.is_rebuilt, self.first, self.generation = False, after + 1, after
        self.reload()

    def reload(self) -> None:
        """Take in new generations, which other runs wrote; raise DamagedError if one is damaged."""
        with explained(f"table {self._table.url}"):
            new: list[tuple[int, dict[str, Any]]] = []
            for generation in _generations(self._folder)[::-1]:
                # Generations before a rebuilt one may be damaged, and do not count any more.
                if generation <= self.generation or (new and new[-1][1].get(_IS_REBUILT)):
                    break
                new.append((generation, _read_index(self._table, generation)))
            for generation, index in reversed(new):
                if not index.get(_IS_REBUILT) and generation != self.generation + 1:
                    raise damaged_manifest(self._table, _name(self.generation + 1), "no such file")
                self._add(generation, index)

    def find_damage(self, *, deep: bool = False) -> list[str]:
        """Return what is wrong with the files of entries, one sentence each; `deep` reads all of their bytes."""
        problems = []
        for file in sorted({entry.file for entry in self.shards.values()}):
            entries = [entry for entry in self.shards.values() if entry.file == file]
            is_whole = False
            with contextlib.suppress(FileNotFoundError):
                end, size = self._folder.read_end(file, len(shard_entries.MAGIC))
                is_whole = end == shard_entries.MAGIC and size >= max(entry.stop for entry in entries)
                is_whole = is_whole and not (deep and _is_other(file, self._folder.read(file)))
            if not is_whole:
                n_shards = counted(1 + max(entry.batch for entry in entries), "shard")
                problems.append(f"{FOLDER}/{file}: it is damaged or missing, with the entries of {n_shards} or more")
        return problems

    def entries(self, shards: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield the newest entries of `shards`, one record batch each."""
        wanted = [self.shards[shard] for shard in shards]
        # One request reads the neighbours in a file, because no file is large.
        for file, group in groupby(wanted, attrgetter("file")):
            neighbours = list(group)
            start, stop = min(one.start for one in neighbours), max(one.stop for one in neighbours)
            with reading_entries(self._table, file):
                data = memoryview(self._folder.read_range(file, start, stop))
            for where in neighbours:
                yield shard_entries.decode_entries(self._table, where, data[where.start - start : where.stop - start])

    def find(self, files: Sequence[str], shards: Sequence[int] | None = None) -> list[Entry]:
        """Return the entries of recordings, in the order in which these are given; `shards` are those that they are in."""
        wanted = pa.array(sorted({*files}), pa.string())
        found: dict[str, Entry] = {}
        for batch in self.entries(sorted(self.shards) if shards is None else shards):
            for columns in batch.filter(pc.is_in(batch["file"], value_set=wanted)).to_pylist():
                found[columns["file"]] = Entry(**columns)
        return [found[file] for file in files]

    def grow(
        self,
        entries: pa.Table,
        segments: Segments,
        *,
        prune: bool = False,
        force: bool = False,
        since: int | None = None,
        limit: int | None = None,
        check: Callable[[Collection[int]], None] = lambda shards: None,
    ) -> Growth | None:
        """Take over a listing: freeze it, or add to what is frozen in a further generation.

        New recordings make new shards; a shard with changed recordings gets their new entries under its own number; gone recordings
        stay, unless `prune` is set. Return None if this would undo a listing that another run has frozen since the newest generation
        was `since`. Raise UsageError if more than a tenth of the recordings would be pruned, unless `force` is set.

        `entries` have `ENTRY_SCHEMA`, are sorted by ``file``, and have no name twice; `segments` says which stretches will be read. With
        `limit`, new recordings are taken only from the first `limit` of the listing. Before a generation is written, `check` is called
        with the shards that the listing does not equal; if it raises, no generation is written.
        """
        while True:
            growth, updated, others = self._compare(entries, segments, prune=prune, limit=limit)
            if since is not None and since < self.generation and (growth.n_changed or growth.n_pruned):
                return None
            n_known = self.n_recordings
            if growth.n_pruned > _MOST_PRUNED * n_known and not force:
                raise UsageError(
                    f"--prune would remove {growth.n_pruned:,} of {counted(n_known, 'recording')}, more than a tenth; check that the "
                    "whole archive is there, and use --force if it is"
                )
            check(others)
            if not updated or self._commit(updated, segments):
                return growth
            # Another run has written this generation: what that lacks of this listing makes a further one.
            self.reload()

    def preview(self, entries: pa.Table, segments: Segments) -> dict[int, pa.Table]:
        """Return the entries of each shard that `grow` would write, and write nothing."""
        return self._compare(entries, segments, prune=False)[1]

    def _compare(
        self, entries: pa.Table, segments: Segments, *, prune: bool, limit: int | None = None
    ) -> tuple[Growth, dict[int, pa.Table], list[int]]:
        """Return what a listing changes, the entries of each shard that it changes, and the shards that it does not equal."""
        if not self.shards and not entries.num_rows:
            return Growth(), {}, []
        if not self.shards:
            first = max((shard for shard, _ in self.history), default=-1) + 1
            entries = entries if limit is None else entries.slice(0, limit)
            # The memory is shared everywhere, so a listing of a hundred million names is in memory once.
            return Growth(n_new=entries.num_rows), dict(enumerate(cut(entries, segments), first)), []
        # One shard after the other, so that few of the known entries are in memory at once.
        numbers = list(self.shards)
        is_new = np.ones(entries.num_rows, bool)
        updated: dict[int, pa.Table] = {}
        others = []
        n_changed = 0
        self.gone = {}
        for number, batch in zip(numbers, self.entries(numbers), strict=True):
            start, stop = shard_entries.find_span(entries, batch)
            listed = entries.slice(start, stop - start)
            # Most often none of them has changed, and none was added between them.
            if pa.Table.from_batches([batch]).equals(listed):
                is_new[start:stop] = False
                continue
            others.append(number)
            change = shard_entries.compare_shard(batch, listed, prune=prune)
            is_new[start:stop] &= change.is_new
            n_changed += change.n_changed
            if len(change.gone):
                self.gone[number] = change.gone
            if change.entries is not None:
                updated[number] = change.entries
        if limit is not None:
            is_new[limit:] = False
        n_new = int(is_new.sum())
        if n_new:
            new = entries.filter(pa.array(is_new))
            updated.update(enumerate(cut(new, segments), start=max(shard for shard, _ in self.history) + 1))
        n_gone = sum(map(len, self.gone.values()))
        return Growth(n_new, n_changed, 0 if prune else n_gone, n_gone if prune else 0), updated, others

    @classmethod
    def following(cls, table: Folder, source: Manifest) -> Manifest:
        """Return the manifest of a table that has the recordings of another; missing or damaged files are copied.

        Raise UsageError if it began with other recordings, and DamagedError if the files of `source` are damaged.
        """
        folder = table.folder(FOLDER)
        in_use = {entry.file for entry in source.shards.values()}
        for generation in range(source.first, source.generation + 1):
            index, name = _read_index(source._table, generation), _name(generation)
            mine, theirs = folder.read_if_there(name), source._folder.read(name)
            if mine is not None and not source.is_rebuilt and _is_of_others(mine, generation, source):
                raise _other_recordings(table, source)
            folder.make()
            for file in dict.fromkeys(file for file, _ in places(index)):
                known = folder.read_if_there(file)
                if known is None or _is_other(file, known):
                    data = source._folder.read_if_there(file)
                    if data is not None and not _is_other(file, data):
                        folder.publish(file, data)
                    elif file in in_use:
                        raise damaged_manifest(source._table, file)
            if mine is not None and mine != theirs:
                folder.publish(name, theirs)
            elif mine is None and not folder.publish_first(name, theirs):
                # Another run of the same source has probably written it, so everything is compared once more.
                return cls.following(table, source)
        for generation in _generations(folder)[::-1]:
            if generation > source.generation:
                if not source.is_rebuilt and _is_of_others(folder.read(_name(generation)), generation, source):
                    raise _other_recordings(table, source)
                folder.delete(_name(generation))
        return cls(table)

    @classmethod
    def rebuild(cls, table: Folder, shards: Mapping[int, tuple[pa.Table, str]], segments: Segments) -> Manifest:
        """Make a table's manifest of these shards alone, whatever is damaged in it, and return it.

        `shards` has the entries of each shard, and the digest by which its part names them.
        """
        # It replaces all generations that have left any file.
        numbers = (re.match("[0-9]+", name) for name in table.folder(FOLDER).names())
        manifest = cls(table, max((int(number[0]) for number in numbers if number), default=0))
        entries = {shard: its for shard, (its, _) in shards.items()}
        manifest._commit(entries, segments, [digest for _, digest in shards.values()])
        return cls(table)

    def _commit(self, shards: Mapping[int, pa.Table], segments: Segments, digests: list[str] | None = None) -> bool:
        """Write a further generation, a rebuilt one with `digests`; return False if another run has written it."""
        generation = self.generation + 1
        index: dict[str, Any] = {"generation": generation, "shards": list(shards)}
        index["n_recordings"] = [entries.num_rows for entries in shards.values()]
        index |= {"digests": [], "costs": [], "spans": [], "files": [], "n_batches": []}
        self._folder.make()
        left = iter(shards.values())
        while data := shard_entries.write_entries(left, segments, index):
            # The name follows from the content, so that no other file has it.
            name = f"{generation:06d}-{hashlib.sha256(data).hexdigest()[:16]}.arrow"
            self._folder.publish(name, data)
            index["files"].append(name)
        if digests is not None:
            index |= {"digests": digests, _IS_REBUILT: True}
        if not self._folder.publish_first(_name(generation), seal(index)):
            return False
        self._add(generation, index)
        return True

    def _add(self, generation: int, index: Mapping[str, Any]) -> None:
        if index.get(_IS_REBUILT):
            self.shards, self.history = {}, {}
            self.is_rebuilt, self.first = True, generation
        for shard, entry in _parse(index):
            self.history[shard, entry.digest] = entry
            if entry.n_recordings:
                self.shards[shard] = entry
            else:
                self.shards.pop(shard, None)
        # This is counted here, because a run asks for it after each shard.
        self.n_recordings = sum(entry.n_recordings for entry in self.shards.values())
        self.generation = max(self.generation, generation)


def has_generation(table: Folder, number: int) -> bool:
    """Return whether a table has a generation, by one small request."""
    with explained(f"table {table.url}"):
        return table.folder(FOLDER).find_mark(_name(number)) is not None


def find_generation(table: Folder) -> int:
    """Return the number of a table's newest generation, 0 without any."""
    with explained(f"table {table.url}"):
        return max(_generations(table.folder(FOLDER)), default=0)


def _is_other(file: str, data: bytes) -> bool:
    """Return whether bytes are not those that the name of a file of entries stands for."""
    named = _FILE_DIGEST.fullmatch(file)
    return named is None or hashlib.sha256(data).hexdigest()[:16] != named[1]


def _generations(folder: Folder) -> list[int]:
    """Return the numbers of the generations in a manifest's folder, in order."""
    return sorted(int(name[:-5]) for name in folder.names() if _INDEX.fullmatch(name))


def _read_index(table: Folder, generation: int) -> dict[str, Any]:
    try:
        index = unseal(table.folder(FOLDER).read(_name(generation)))
    except ValueError as error:
        raise damaged_manifest(table, _name(generation)) from error
    if index["generation"] != generation:
        raise damaged_manifest(table, _name(generation), "another generation")
    return index


def _parse(index: Mapping[str, Any]) -> list[tuple[int, ShardEntry]]:
    columns = (*(index[name] for name in ("shards", "n_recordings", "digests", "costs", "spans")), places(index))
    return [
        (shard, ShardEntry(file, batch, n_recordings, digest_of, cost, start, stop))
        for shard, n_recordings, digest_of, cost, (start, stop), (file, batch) in zip(*columns, strict=True)
    ]


def _is_of_others(data: bytes, generation: int, source: Manifest) -> bool:
    """Return whether a generation's JSON file is undamaged, and has recordings that the table of `source` never had."""
    try:
        index = unseal(data)
    except ValueError:
        return False
    known = {word for entry in source.history.values() for word in (entry.digest, entry.file)}
    is_known = any(entry.digest in known or entry.file in known for _, entry in _parse(index))
    return index["generation"] == generation and not is_known


def _other_recordings(table: Folder, source: Manifest) -> UsageError:
    return UsageError(
        f"table {table.url}: its manifest did not come from {source._table.url}; run the command that made that table again and "
        "then this one, or name a new table; if files of another table were copied into "
        f"{FOLDER}/, delete that folder and run this command again"
    )


def _name(generation: int) -> str:
    return f"{generation:06d}.json"
