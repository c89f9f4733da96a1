"""The manifest: a table's recordings, frozen and cut into shards, growing by generations.

A generation is files in ``_table/manifest/``: ``000001-<digest>.arrow``, one or several, with one record batch a shard,
and ``000001.json``, written after them and only if there is none, that says which shards these are. A shard's newest entries
are those of the last generation that has it; with none, it is a shard no more. Of two runs that freeze at the same time
one has its generation, and the other takes that over and adds what it lacks. A generation that was rebuilt, because files
of those before were damaged, takes the place of all of them.
"""

from __future__ import annotations

import hashlib
import io
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import DamagedError, UsageError
from emotion_batch.settings import Segments
from emotion_batch.storage.archive import ENTRY_SCHEMA
from emotion_batch.storage.folder import Folder, damaged, explained, seal, unseal
from emotion_batch.tables.sharding import cut, estimate_costs

FOLDER = "_table/manifest"
# Of the recordings of a table; more gone at once look like a share that is not mounted.
_MOST_PRUNED = 0.1
# A file of entries is closed when it has so many bytes, so that none is ever large in memory.
_FILE_BYTES = 2**24
# Entries of several shards are read in stretches of so many bytes: few requests, and little memory.
_STRETCH_BYTES = 2**24
# With which a file of Arrow begins and ends: https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format
_MAGIC_START, _MAGIC = b"ARROW1\0\0", b"ARROW1"
# Before a digest of Arrow's own bytes; early tables have one of Python's words for each row, and nothing before it.
_DIGEST = "2:"
_INDEX = re.compile(r"[0-9]{6,}\.json")
_FILE_DIGEST = re.compile(r"[0-9]+-([0-9a-f]{16})\.arrow")
_IS_REBUILT = "is_rebuilt"
# What reading a JSON file may raise that is damaged, or of odd types.
_ODD = (ValueError, KeyError, TypeError, OverflowError)


@dataclass(frozen=True)
class ShardEntry:
    """Where the newest entries of a shard stand.

    Attributes
    ----------
    file
        Name of the generation's file that holds them.
    batch
        Number of their record batch in it.
    n_recordings
        How many entries there are.
    digest
        Fingerprint of the entries, which the shard's part repeats in its footer.
    cost
        What `estimate_costs` gives for them in all.
    start, stop
        Where that record batch lies in the file, in bytes; 0 both where an early table does not say.
    """

    file: str
    batch: int
    n_recordings: int
    digest: str
    cost: int
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Growth:
    """What a new listing changes in a manifest: numbers of recordings; those that are gone and stay, or are pruned."""

    n_new: int = 0
    n_changed: int = 0
    n_gone: int = 0
    n_pruned: int = 0


class Manifest:
    """The shards of one table.

    Parameters
    ----------
    table
        The table's folder.
    after
        Number of a generation; only those after it are taken in.

    Attributes
    ----------
    shards
        Where the newest entries of each shard stand, by its number.
    history
        Where the entries of any digest stand that a shard has had, pruned shards among them.
    gone
        Names of a shard's recordings that the listing lacks which was last compared with it; none for most shards.
    n_recordings
        Number of recordings in all shards.
    is_rebuilt, first, generation
        Whether it was rebuilt; numbers of the generation that it begins with, and of the newest one: 0 without any.

    Raises
    ------
    StorageError, DamagedError
        If it cannot be read, or is damaged.
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
        """Take in the generations that are there and not known yet: those of other runs.

        Raises
        ------
        StorageError, DamagedError
            If they cannot be read, or are damaged.
        """
        with explained(f"table {self._table.url}"):
            new: list[tuple[int, dict[str, Any]]] = []
            for generation in _generations(self._folder)[::-1]:
                # What is before one that was rebuilt may be damaged, and says nothing any more.
                if generation <= self.generation or (new and new[-1][1].get(_IS_REBUILT)):
                    break
                new.append((generation, _read_index(self._table, generation)))
            for generation, index in reversed(new):
                if not index.get(_IS_REBUILT) and generation != self.generation + 1:
                    raise _damaged(self._table, _name(self.generation + 1), "no such file")
                try:
                    self._add(generation, index)
                except _ODD as error:
                    raise _damaged(self._table, _name(generation)) from error

    def find_damage(self, *, deep: bool = False) -> list[str]:
        """Return what is wrong with the files of entries, a sentence each; only with `deep` all of their bytes are read."""
        problems = []
        for file in sorted({entry.file for entry in self.shards.values()}):
            entries = [entry for entry in self.shards.values() if entry.file == file]
            n_batches = 1 + max(entry.batch for entry in entries)
            try:
                end, size = self._folder.read_end(file, len(_MAGIC))
                is_whole = end == _MAGIC and size >= max(entry.stop for entry in entries)
                is_whole = is_whole and not (deep and _is_other(file, self._folder.read(file)))
            except FileNotFoundError:
                is_whole = False
            if not is_whole:
                problems.append(
                    f"{FOLDER}/{file}: expected the entries of {n_batches} shards or more, got a damaged file or none"
                )
        return problems

    def entries(self, shards: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield the newest entries of `shards`, one record batch each."""
        wanted = [self.shards[shard] for shard in shards]
        for start, stop in _stretches(wanted):
            stretch = wanted[start:stop]
            if not stretch[0].stop:
                yield from (read_entries(self._table, where) for where in stretch)
                continue
            with _reading(self._table, stretch[0].file):
                data = memoryview(self._folder.read_range(stretch[0].file, stretch[0].start, stretch[-1].stop))
            for where in stretch:
                begin = where.start - stretch[0].start
                yield _decode(self._table, where, data[begin : begin + where.stop - where.start])

    def grow(
        self,
        entries: pa.Table,
        segments: Segments,
        *,
        prune: bool = False,
        force: bool = False,
        since: int | None = None,
        check: Callable[[Collection[int]], None] = lambda shards: None,
    ) -> Growth | None:
        """Take over a listing: freeze it, or add to what is frozen in a further generation.

        New recordings make new shards; a shard with changed recordings gets their new entries under its own
        number; gone recordings stay, unless they are pruned.

        Parameters
        ----------
        entries
            Table of `ENTRY_SCHEMA`, sorted by ``file``, no name twice.
        segments
            Which stretches of them will be read.
        prune
            Whether recordings that are gone leave the manifest.
        force
            Prune though more than a tenth is gone.
        since
            The newest generation when the listing was begun.
        check
            Called before a generation is written with the shards in whose stretch of the listing something is other than it
            was; may raise, and then none is.

        Returns
        -------
        What was added; None if it would undo what a listing says that another run has frozen since.

        Raises
        ------
        UsageError
            If too many to be pruned are gone.
        DamagedError
            If known entries cannot be read.
        """
        while True:
            growth, updated, others = self._compare(entries, segments, prune=prune)
            if since is not None and since < self.generation and (growth.n_changed or growth.n_pruned):
                return None
            n_known = self.n_recordings
            if growth.n_pruned > _MOST_PRUNED * n_known and not force:
                raise UsageError(
                    f"--prune: expected at most a tenth of the {n_known:,} recordings to be gone, got {growth.n_pruned:,}; "
                    "see that the archive is all there, and use --force if it is"
                )
            check(others)
            if not updated or self._commit(updated, segments):
                return growth
            # Another run has its generation there: what it lacks of this listing makes a further one.
            self.reload()

    def preview(self, entries: pa.Table, segments: Segments) -> dict[int, pa.Table]:
        """Return the entries of each shard that `grow` would write, and write nothing."""
        return self._compare(entries, segments, prune=False)[1]

    def freeze(self, shards: dict[int, pa.Table], segments: Segments) -> None:
        """Freeze shards as they are, unless there are any: for whoever has cut them, and is alone with the table."""
        if not self.shards:
            self._commit(shards, segments)

    def _compare(
        self, entries: pa.Table, segments: Segments, *, prune: bool
    ) -> tuple[Growth, dict[int, pa.Table], list[int]]:
        """Return what a listing changes, the entries of each shard that it changes, and the shards that it is not equal to."""
        if not self.shards and not entries.num_rows:
            return Growth(), {}, []
        if not self.shards:
            first = max((shard for shard, _ in self.history), default=-1) + 1
            # Shared memory all the way: a listing of a hundred million names is there once.
            return Growth(n_new=entries.num_rows), dict(enumerate(cut(entries, segments), first)), []
        # Shard by shard, so that of what is known little more is there than of what is new.
        numbers = list(self.shards)
        is_new = np.ones(entries.num_rows, bool)
        updated: dict[int, pa.Table] = {}
        others = []
        n_changed = stop = 0
        self.gone = {}
        for number, batch in zip(numbers, self.entries(numbers), strict=True):
            start, stop = _find_span(entries, batch, stop)
            listed = entries.slice(start, stop - start)
            # Most often nothing happened to any of them, nor between them.
            if pa.Table.from_batches([batch]).equals(listed):
                is_new[start:stop] = False
                continue
            others.append(number)
            change = _compare_shard(batch, listed, prune=prune)
            is_new[start:stop] &= change.is_new
            n_changed += change.n_changed
            if len(change.gone):
                self.gone[number] = change.gone
            if change.entries is not None:
                updated[number] = change.entries
        n_new = int(is_new.sum())
        if n_new:
            new = entries.filter(pa.array(is_new))
            updated.update(enumerate(cut(new, segments), start=max(shard for shard, _ in self.history) + 1))
        n_gone = sum(map(len, self.gone.values()))
        return Growth(n_new, n_changed, 0 if prune else n_gone, n_gone if prune else 0), updated, others

    @classmethod
    def following(cls, table: Folder, source: Manifest) -> Manifest:
        """Return the manifest of a table that has the recordings of another: what it lacks or has damaged is copied.

        Raises
        ------
        UsageError
            If it began with other recordings.
        DamagedError
            If the other's files are damaged.
        """
        folder = table.folder(FOLDER)
        in_use = {entry.file for entry in source.shards.values()}
        for generation in range(source.first, source.generation + 1):
            index, name = _read_index(source._table, generation), _name(generation)
            mine, theirs = folder.read_if_there(name), source._folder.read(name)
            if mine is not None and not source.is_rebuilt and _is_of_others(mine, generation, source):
                raise _other_recordings(table, source)
            folder.make()
            for file in dict.fromkeys(file for file, _ in _places(generation, index)):
                known = folder.read_if_there(file)
                if known is None or _is_other(file, known):
                    data = source._folder.read_if_there(file)
                    if data is not None and not _is_other(file, data):
                        folder.publish(file, data)
                    elif file in in_use:
                        raise _damaged(source._table, file)
            if mine is not None and mine != theirs:
                folder.publish(name, theirs)
            elif mine is None and not folder.publish_first(name, theirs):
                # Another run of the same source, most likely: looked at once more.
                return cls.following(table, source)
        for generation in _generations(folder)[::-1]:
            if generation > source.generation:
                if not source.is_rebuilt and _is_of_others(folder.read(_name(generation)), generation, source):
                    raise _other_recordings(table, source)
                folder.delete(_name(generation))
        return cls(table)

    @classmethod
    def rebuild(cls, table: Folder, shards: Mapping[int, tuple[pa.Table, str]], segments: Segments) -> Manifest:
        """Return a table's manifest once it is made of these shards alone, whatever is damaged in it.

        Parameters
        ----------
        table
            The table.
        shards
            Entries of each shard, and the digest that its part names them by.
        segments
            Which stretches of them are read.
        """
        # In place of all generations of which there is any trace.
        numbers = (re.match("[0-9]+", name) for name in table.folder(FOLDER).names())
        manifest = cls.__new__(cls)
        manifest._table, manifest._folder = table, table.folder(FOLDER)
        manifest.shards, manifest.history = {}, {}
        manifest.generation = max((int(number[0]) for number in numbers if number), default=0)
        manifest._commit(
            {shard: entries for shard, (entries, _) in shards.items()}, segments, [one for _, one in shards.values()]
        )
        return cls(table)

    def _commit(self, shards: Mapping[int, pa.Table], segments: Segments, digests: list[str] | None = None) -> bool:
        """Write a further generation, rebuilt with `digests`; return whether it is this one, and not another run's."""
        generation = self.generation + 1
        index: dict[str, Any] = {
            "generation": generation,
            "shards": list(shards),
            "n_recordings": [entries.num_rows for entries in shards.values()],
        }
        index |= {"digests": [], "costs": [], "spans": [], "files": [], "n_batches": []}
        self._folder.make()
        left = iter(shards.values())
        while data := _write_file(left, segments, index):
            # By its content, so that it is never another's.
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
        for shard, entry in _parse(generation, index):
            self.history[shard, entry.digest] = entry
            if entry.n_recordings:
                self.shards[shard] = entry
            else:
                self.shards.pop(shard, None)
        # Counted here, for a run asks with every shard that it has done.
        self.n_recordings = sum(entry.n_recordings for entry in self.shards.values())
        self.generation = max(self.generation, generation)


@cache
def _stream_start() -> bytes:
    """Return what a stream of entries begins with."""
    return bytes(ENTRY_SCHEMA.serialize())


def has_generation(table: Folder, number: int) -> bool:
    """Return whether a table has the generation of a number, by one small request."""
    with explained(f"table {table.url}"):
        return table.folder(FOLDER).find_mark(_name(number)) is not None


def find_generation(table: Folder) -> int:
    """Return the number of a table's newest generation, 0 without any."""
    with explained(f"table {table.url}"):
        names = table.folder(FOLDER).names()
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()), default=0)


def read_entries(table: Folder, shard: ShardEntry) -> pa.RecordBatch:
    """Return one shard's entries, as a worker reads them: that record batch alone.

    Raises
    ------
    DamagedError
        If they are not those that the digest is of: the manifest is damaged.
    """
    with _reading(table, shard.file):
        if shard.stop:
            return _decode(table, shard, table.folder(FOLDER).read_range(shard.file, shard.start, shard.stop))
        data = table.folder(FOLDER).read(shard.file)
    try:
        return _checked(table, shard, pa.ipc.open_file(pa.py_buffer(data)).get_batch(shard.batch))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(table, shard.file) from error


def _decode(table: Folder, shard: ShardEntry, data: bytes | memoryview) -> pa.RecordBatch:
    """Return a shard's entries from the bytes of its record batch."""
    try:
        # As a stream of one batch, which alone can be told to start no threads: half the time, or a tenth on busy cores.
        stream = pa.py_buffer(_stream_start() + data)
        batch = pa.ipc.open_stream(stream, options=pa.ipc.IpcReadOptions(use_threads=False)).read_next_batch()
        return _checked(table, shard, batch)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise _damaged(table, shard.file) from error


def _checked(table: Folder, shard: ShardEntry, entries: pa.RecordBatch) -> pa.RecordBatch:
    # First of all, for with damaged offsets Arrow would read anywhere.
    entries.validate(full=True)
    if digest_like(shard.digest, entries) != shard.digest or entries.num_rows != shard.n_recordings:
        raise _damaged(table, shard.file)
    return entries


def has_entries_after(table: Folder, generation: int) -> bool:
    """Return whether entries lie in a table of a generation after that one, whose JSON file is lost or still to come."""
    numbers = (re.match("[0-9]+", name) for name in table.folder(FOLDER).names() if name.endswith(".arrow"))
    return any(int(number[0]) > generation for number in numbers if number)


def salvage(table: Folder, wanted: Collection[str]) -> dict[str, pa.Table]:
    """Return the entries with digests that are wanted, as far as they can still be read in a manifest's files."""
    folder = table.folder(FOLDER)
    kinds = {name.startswith(_DIGEST): name for name in wanted}.values()
    found: dict[str, pa.Table] = {}
    for name in folder.names():
        if not name.endswith(".arrow"):
            continue
        with suppress(pa.ArrowException, OSError):
            file = pa.ipc.open_file(pa.py_buffer(folder.read(name)))
            for number in range(file.num_record_batches):
                with suppress(pa.ArrowException, OSError):
                    entries = file.get_batch(number)
                    entries.validate(full=True)
                    if entries.schema == ENTRY_SCHEMA:
                        found |= {digest_like(kind, entries): pa.Table.from_batches([entries]) for kind in kinds}
    return {name: entries for name, entries in found.items() if name in wanted}


def _stretches(shards: Sequence[ShardEntry]) -> Iterator[tuple[int, int]]:
    """Yield from which to which of `shards` one request is to read: neighbours of one file."""
    start = 0
    for number in range(1, len(shards) + 1):
        first, before = shards[start], shards[number - 1]
        where = shards[number] if number < len(shards) else None
        is_near = (
            where is not None
            and where.file == first.file
            and before.stop <= where.start < where.stop <= first.start + _STRETCH_BYTES
        )
        if not is_near:
            yield start, number
            start = number


def digest(entries: pa.RecordBatch) -> str:
    """Return a version and 32 hexadecimal digits that change when a name, size or version of the entries does."""
    sha = hashlib.sha256()
    for column in entries.columns:
        there = column.drop_null()
        # With how much follows, so that other columns never make the same bytes.
        sha.update(f"{len(column)} {len(there)} ".encode())
        if there.null_count < column.null_count:
            sha.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        if not len(there):
            continue
        if pa.types.is_integer(there.type):
            sha.update(there.to_numpy().astype("<i8", copy=False).tobytes())
            continue
        _, offsets, data = there.buffers()
        first, last = np.frombuffer(offsets, np.int32)[[there.offset, there.offset + len(there)]].tolist()
        sha.update(pc.binary_length(there).to_numpy().astype("<i4", copy=False).tobytes())
        # Not all of it: an array may be a stretch of another's memory.
        sha.update(memoryview(data)[first:last] if data is not None else b"")
    return f"{_DIGEST}{sha.hexdigest()[:32]}"


def digest_like(known: str, entries: pa.RecordBatch) -> str:
    """Return the digest of entries, of the same kind as one that is known: early ones are others."""
    return digest(entries) if known.startswith(_DIGEST) else _early_digest(entries)


def _early_digest(entries: pa.RecordBatch) -> str:
    sha = hashlib.sha256()
    for row in zip(*(column.to_pylist() for column in entries.columns), strict=True):
        sha.update(repr(row).encode())
    return sha.hexdigest()[:32]


class _Change(NamedTuple):
    """What a listing changes in one shard: which of the listed entries it lacks, how many and which of its own, and to what."""

    is_new: npt.NDArray[np.bool_]
    n_changed: int
    gone: pa.Array
    entries: pa.Table | None


def _find_span(entries: pa.Table, batch: pa.RecordBatch, guess: int) -> tuple[int, int]:
    """Return from where to where a listing may have the entries of a shard; `guess` is where they may well begin."""
    names, own = entries["file"], batch["file"]
    first, last = own[0].as_py(), own[-1].as_py()

    def name(number: int) -> str:
        return str(names[number].as_py())

    end = guess + len(own)
    if end <= len(names) and name(guess) == first and name(end - 1) == last:
        return guess, end
    # Python's order of text is that of its UTF-8.
    start = bisect_left(range(len(names)), first, key=name)
    stop = bisect_left(range(len(names)), last, lo=start, key=name)
    return start, stop + (stop < len(names) and name(stop) == last)


def _compare_shard(batch: pa.RecordBatch, listed: pa.Table, *, prune: bool) -> _Change:
    """Return what a stretch of a listing changes in the entries of a shard."""
    at = pc.index_in(listed["file"], value_set=batch["file"])
    is_new = at.is_null().to_numpy()
    place = np.full(batch.num_rows, -1)
    place[at.drop_null().to_numpy()] = np.flatnonzero(~is_new)
    is_gone = pa.array(place < 0)
    gone = batch["file"].filter(is_gone)
    now = listed.take(pa.array(place, mask=place < 0))
    is_changed = pc.or_(_differs(batch, now, "size"), _differs(batch, now, "version"))
    n_changed = pc.sum(is_changed).as_py() or 0
    if not (n_changed or (prune and len(gone))):
        return _Change(is_new, n_changed, gone, None)
    if not (len(gone) or is_new.any() or listed["size"].null_count or listed["version"].null_count):
        # The listing's own memory: of an archive that was copied all recordings are changed.
        return _Change(is_new, n_changed, gone, listed)
    columns = [
        pc.if_else(is_changed, now[name].combine_chunks(), batch[name]).cast(ENTRY_SCHEMA.field(name).type)
        for name in ENTRY_SCHEMA.names
    ]
    changed = pa.Table.from_arrays(columns, schema=ENTRY_SCHEMA)
    return _Change(is_new, n_changed, gone, changed.filter(pc.invert(is_gone)) if prune else changed)


def as_batch(entries: pa.Table) -> pa.RecordBatch:
    """Return entries as the one record batch of a shard, which may be none."""
    batches = entries.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=ENTRY_SCHEMA)


def _differs(known: pa.RecordBatch, listed: pa.Table, name: str) -> pa.Array:
    """Return where the listing knows `name` and it is not what was known."""
    now = listed[name].combine_chunks()
    return pc.and_(pc.fill_null(pc.not_equal(known[name], now), True), pc.is_valid(now))


def _damaged(table: Folder, file: str, found: str = "a damaged file") -> DamagedError:
    return damaged(table, f"{FOLDER}/{file}", found)


@contextmanager
def _reading(table: Folder, file: str) -> Iterator[None]:
    """Explain what goes wrong with reading a file of entries; that it is not there is damage."""
    with explained(f"table {table.url}"):
        try:
            yield
        except FileNotFoundError as error:
            raise _damaged(table, file, "no such file") from error


def _is_other(file: str, data: bytes) -> bool:
    """Return whether bytes are not those that a file of entries is named by; early names do not tell."""
    named = _FILE_DIGEST.fullmatch(file)
    return named is not None and hashlib.sha256(data).hexdigest()[:16] != named[1]


def _generations(folder: Folder) -> list[int]:
    """Return the numbers of the generations that lie in a manifest's folder, in their order."""
    return sorted(int(name[:-5]) for name in folder.names() if _INDEX.fullmatch(name))


def _read_index(table: Folder, generation: int) -> dict[str, Any]:
    """Return what the JSON file of a generation says."""
    try:
        index = unseal(table.folder(FOLDER).read(_name(generation)))
        # Early ones do not say which they are, but by the names of their files.
        names = [
            _name(index.get("generation", generation)),
            *index.get("files", [index.get("entries", _name(generation))]),
        ]
        is_another = any(not str(name).startswith(_name(generation)[:-5]) for name in names)
    except _ODD as error:
        raise _damaged(table, _name(generation)) from error
    if is_another:
        raise _damaged(table, _name(generation), "another generation")
    return index


def _parse(generation: int, index: Mapping[str, Any]) -> list[tuple[int, ShardEntry]]:
    """Return the shards of a generation; raise one of `_ODD` if what was read is none."""
    # Early tables say no costs: recordings then weigh alike.
    costs = index.get("costs", index["n_recordings"])
    spans = index.get("spans", [(0, 0)] * len(costs))
    columns = (index["shards"], index["n_recordings"], index["digests"], costs, spans, _places(generation, index))
    return [
        (int(shard), ShardEntry(file, batch, int(n), str(digest_of), int(cost), int(start), int(stop)))
        for shard, n, digest_of, cost, (start, stop), (file, batch) in zip(*columns, strict=True)
    ]


def _is_of_others(data: bytes, generation: int, source: Manifest) -> bool:
    """Return whether the JSON file of a generation is a whole one, and of recordings that another table never had."""
    try:
        index = unseal(data)
        known = {word for _, entry in _parse(generation, index) for word in (entry.digest, entry.file)}
    except _ODD:
        return False
    is_itself = index.get("generation", generation) == generation
    return is_itself and not known & {word for entry in source.history.values() for word in (entry.digest, entry.file)}


def _other_recordings(table: Folder, source: Manifest) -> UsageError:
    return UsageError(
        f"table {table.url}: expected the recordings of {source._table.url}, got a manifest that did not come from it; run the "
        "command that made that table again and then this, or name a new table; if files of another table were copied into "
        f"{FOLDER}/, delete that folder and run this again"
    )


def _write_file(left: Iterator[pa.Table], segments: Segments, index: dict[str, Any]) -> bytes:
    """Return a file of entries with as many of the shards that are left as one takes; no bytes if none are."""
    sink = io.BytesIO()
    # What a file begins with is written with its first batch.
    start = len(_MAGIC_START) + len(_stream_start())
    n_batches = 0
    with pa.ipc.new_file(sink, ENTRY_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for entries in left:
            batch = as_batch(entries)
            writer.write_batch(batch)
            # So that a worker reads its shard by one request.
            index["spans"].append([start, sink.tell()])
            index["digests"].append(digest(batch))
            index["costs"].append(int(estimate_costs(batch, segments).sum()))
            start = sink.tell()
            n_batches += 1
            if start > _FILE_BYTES:
                break
    if not n_batches:
        return b""
    index["n_batches"].append(n_batches)
    return sink.getvalue()


def _places(generation: int, index: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the file and the batch in it of each shard of a generation."""
    if "files" in index:
        counts = zip(index["files"], index["n_batches"], strict=True)
        return [(str(file), batch) for file, n_batches in counts for batch in range(n_batches)]
    # Earlier tables have one file, early ones do not say which.
    file = str(index.get("entries", f"{generation:06d}.arrow"))
    return [(file, batch) for batch in range(len(index["shards"]))]


def _name(generation: int) -> str:
    return f"{generation:06d}.json"
