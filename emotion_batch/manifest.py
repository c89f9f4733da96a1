"""The manifest: a table's recordings, frozen and cut into shards, growing by generations.

A generation is two files in ``_table/manifest/``: ``000001-<digest>.arrow`` with one record batch a shard, and
``000001.json``, written after it and only if there is none, that says which shards these are. A shard's newest entries
are those of the last generation that has it; with none, it is a shard no more. Of two runs that freeze at the same time
one has its generation, and the other takes that over and adds what it lacks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.archive import ENTRY_SCHEMA
from emotion_batch.errors import IncompleteError, UsageError
from emotion_batch.settings import Segments
from emotion_batch.storage import Folder, explained

FOLDER = "_table/manifest"
MAX_SHARDS = 20_000
# Of the recordings of a table; more gone at once look like a share that is not mounted.
_MOST_PRUNED = 0.1
# A task costs Dask some 10 ms, a lost one its shard: shards and their number grow together with the archive, as the
# square root of its recordings, until a shard holds so many that its part is worth a query's request.
_SHARDS_PER_ROOT = 0.28
_MOST_RECORDINGS, _MOST_BYTES = 1_024, 2**30
# So few are read each by itself, of more the whole file.
_FEW_SHARDS = 8
# With which a file of Arrow begins and ends: https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format
_MAGIC_START, _MAGIC = b"ARROW1\0\0", b"ARROW1"
# Costs in bytes of PCM: of opening a recording, of one that is as usual, and of a second of audio at most
# (48 kHz, stereo, 32 bit).
_OPENING_BYTES, _USUAL_BYTES, _SECOND_BYTES = 16_384, 100_000, 384_000
# Encoders make of a second of PCM about so much less.
_COMPRESSION = {".mp3": 10, ".ogg": 10, ".opus": 12, ".flac": 2}


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
    """

    def __init__(self, table: Folder) -> None:
        self._table = table
        self._folder = table.folder(FOLDER)
        self.shards: dict[int, ShardEntry] = {}
        # Where the entries of any digest stand that a shard has had, pruned shards among them.
        self.history: dict[tuple[int, str], ShardEntry] = {}
        self.generation = 0
        self.reload()

    def reload(self) -> None:
        """Take in the generations that are there and not known yet: those of other runs.

        Raises
        ------
        StorageError, IncompleteError
            If they cannot be read, or are damaged.
        """
        with explained(f"table {self._table.url}"):
            for name in self._folder.names():
                stem, _, suffix = name.partition(".")
                if suffix == "json" and stem.isdigit() and int(stem) > self.generation:
                    try:
                        self._add(int(stem), json.loads(self._folder.read(name)))
                    except (ValueError, KeyError, TypeError) as error:
                        raise _damaged(self._table, name) from error

    def find_damage(self) -> list[str]:
        """Return what is wrong with the files of entries, a sentence each; the entries themselves are not read."""
        problems = []
        for file in sorted({entry.file for entry in self.shards.values()}):
            entries = [entry for entry in self.shards.values() if entry.file == file]
            n_batches = 1 + max(entry.batch for entry in entries)
            try:
                end, size = self._folder.read_end(file, len(_MAGIC))
                is_whole = end == _MAGIC and size >= max(entry.stop for entry in entries)
            except FileNotFoundError:
                is_whole = False
            if not is_whole:
                problems.append(
                    f"{FOLDER}/{file}: expected the entries of {n_batches} shards or more, got a damaged file or none"
                )
        return problems

    @property
    def n_recordings(self) -> int:
        """Number of recordings in all shards."""
        return sum(shard.n_recordings for shard in self.shards.values())

    def entries(self, shards: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield the newest entries of `shards`, one record batch each."""
        if len(shards) <= _FEW_SHARDS:
            yield from (read_entries(self._table, self.shards[shard]) for shard in shards)
            return
        readers: dict[str, pa.ipc.RecordBatchFileReader] = {}
        for shard in shards:
            where = self.shards[shard]
            if where.file not in readers:
                readers[where.file] = _open(self._table, where.file)
            yield readers[where.file].get_batch(where.batch)

    def grow(self, entries: pa.Table, segments: Segments, *, prune: bool = False, force: bool = False) -> Growth:
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

        Raises
        ------
        UsageError
            If too many to be pruned are gone.
        """
        while True:
            growth, updated = self._compare(entries, segments, prune=prune)
            n_known = self.n_recordings
            if growth.n_pruned > _MOST_PRUNED * n_known and not force:
                raise UsageError(
                    f"--prune: expected at most a tenth of the {n_known:,} recordings to be gone, got {growth.n_pruned:,}; "
                    "see that the archive is all there, and use --force if it is"
                )
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

    def _compare(self, entries: pa.Table, segments: Segments, *, prune: bool) -> tuple[Growth, dict[int, pa.Table]]:
        """Return what a listing changes, and the entries of each shard that it changes."""
        if not self.shards and not entries.num_rows:
            return Growth(), {}
        if not self.shards:
            first = max((shard for shard, _ in self.history), default=-1) + 1
            # Shared memory all the way: a listing of a hundred million names is there once.
            return Growth(n_new=entries.num_rows), dict(enumerate(cut(entries, segments), first))
        numbers = list(self.shards)
        batches = dict(zip(numbers, self.entries(numbers), strict=True))
        known = pa.Table.from_batches(batches.values(), ENTRY_SCHEMA)
        if known.equals(entries):
            return Growth(), {}
        place = pc.index_in(known["file"], value_set=entries["file"].combine_chunks())
        is_new = pc.invert(pc.is_in(entries["file"], value_set=known["file"].combine_chunks()))
        listed = entries.take(place)
        is_gone = pc.is_null(place).combine_chunks()
        is_changed = pc.or_(_differs(known, listed, "size"), _differs(known, listed, "version")).combine_chunks()
        updated: dict[int, pa.Table] = {}
        start = 0
        for number, batch in batches.items():
            changed, gone = (mask.slice(start, batch.num_rows) for mask in (is_changed, is_gone))
            if pc.any(changed).as_py() or (prune and pc.any(gone).as_py()):
                columns = [
                    pc.if_else(changed, listed[name].slice(start, batch.num_rows).combine_chunks(), batch[name])
                    for name in ENTRY_SCHEMA.names
                ]
                batch = pa.Table.from_arrays(columns, schema=ENTRY_SCHEMA)
                updated[number] = batch.filter(pc.invert(gone)) if prune else batch
            start += batch.num_rows
        new = entries.filter(is_new)
        if new.num_rows:
            updated.update(enumerate(cut(new, segments), start=max(shard for shard, _ in self.history) + 1))
        n_gone = place.null_count
        growth = Growth(new.num_rows, pc.sum(is_changed).as_py() or 0, 0 if prune else n_gone, n_gone if prune else 0)
        return growth, updated

    def follow(self, source: Manifest) -> None:
        """Take over the generations of another table's manifest that this one lacks, file by file.

        Raises
        ------
        UsageError
            If this manifest did not begin as the other's.
        """
        for generation in range(1, max(self.generation, source.generation) + 1):
            ours, theirs = (folder.read_if_there(_name(generation)) for folder in (self._folder, source._folder))
            if theirs is None or (ours is not None and ours != theirs):
                raise UsageError(
                    f"table {self._table.url}: expected the recordings of {source._table.url}, "
                    "got a manifest that did not come from it; name a new table"
                )
            if ours is None:
                index = json.loads(theirs)
                entries = _entries_file(generation, index)
                self._folder.make()
                self._folder.publish(entries, source._folder.read(entries))
                if not self._folder.publish_first(_name(generation), theirs):
                    # Another run of the same source, most likely: looked at once more.
                    self.follow(source)
                    return
                self._add(generation, index)

    def _commit(self, shards: dict[int, pa.Table], segments: Segments) -> bool:
        """Write a further generation; return whether it is this one, and not another run's."""
        generation = self.generation + 1
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        spans = []
        # What a file begins with is written with its first batch.
        start = len(_MAGIC_START) + ENTRY_SCHEMA.serialize().size
        with pa.ipc.new_file(sink, ENTRY_SCHEMA, options=options) as writer:
            digests, costs = [], []
            for entries in shards.values():
                batch = _as_batch(entries)
                writer.write_batch(batch)
                spans.append([start, sink.tell()])
                start = sink.tell()
                digests.append(digest(batch))
                costs.append(int(estimate_costs(batch, segments).sum()))
        data = sink.getvalue().to_pybytes()
        index: dict[str, Any] = {
            # By its content, so that it is never another's.
            "entries": f"{generation:06d}-{hashlib.sha256(data).hexdigest()[:16]}.arrow",
            "shards": list(shards),
            "n_recordings": [batch.num_rows for batch in shards.values()],
            "digests": digests,
            "costs": costs,
            # So that a worker reads its shard by one request.
            "spans": spans,
        }
        self._folder.make()
        self._folder.publish(index["entries"], data)
        if not self._folder.publish_first(_name(generation), json.dumps(index).encode()):
            return False
        self._add(generation, index)
        return True

    def _add(self, generation: int, index: Mapping[str, Any]) -> None:
        # Early tables say no costs: recordings then weigh alike.
        costs = index.get("costs", index["n_recordings"])
        spans = index.get("spans", [(0, 0)] * len(costs))
        file = _entries_file(generation, index)
        columns = zip(index["shards"], index["n_recordings"], index["digests"], costs, spans, strict=True)
        for batch, (shard, n_recordings, entries_digest, cost, (start, stop)) in enumerate(columns):
            entry = ShardEntry(file, batch, int(n_recordings), str(entries_digest), int(cost), int(start), int(stop))
            self.history[int(shard), entry.digest] = entry
            if entry.n_recordings:
                self.shards[int(shard)] = entry
            else:
                self.shards.pop(int(shard), None)
        self.generation = max(self.generation, generation)


def read_entries(table: Folder, shard: ShardEntry) -> pa.RecordBatch:
    """Return one shard's entries, as a worker reads them: that record batch alone.

    Raises
    ------
    IncompleteError
        If they are not those that the digest is of: the manifest is damaged.
    """
    with explained(f"table {table.url}"):
        if not shard.stop:
            entries = _open(table, shard.file).get_batch(shard.batch)
        else:
            data = table.folder(FOLDER).read_range(shard.file, shard.start, shard.stop)
            try:
                entries = pa.ipc.read_record_batch(pa.py_buffer(data), ENTRY_SCHEMA)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(table, shard.file) from error
    if digest(entries) != shard.digest:
        raise _damaged(table, shard.file)
    return entries


def cut(entries: pa.Table, segments: Segments) -> list[pa.Table]:
    """Cut a listing into shards of neighbours that read about equally much.

    Parameters
    ----------
    entries
        Table of `ENTRY_SCHEMA`, at least one row.
    segments
        Which stretches of them will be read.

    Returns
    -------
    The shards, at most `MAX_SHARDS`; none is empty. They follow from the listing and the segments alone, and share its
    memory.
    """
    cost = np.cumsum(estimate_costs(entries, segments))
    n_shards = count_shards(entries.num_rows, int(cost[-1]))
    ends = np.searchsorted(cost, cost[-1] * np.arange(1, n_shards) / n_shards, side="left") + 1
    bounds = np.unique(np.concatenate([[0], ends, [entries.num_rows]]))
    return [
        entries.slice(start, end - start) for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def estimate_costs(entries: pa.Table | pa.RecordBatch, segments: Segments) -> npt.NDArray[np.float64]:
    """Return what each recording will cost, in bytes of PCM that are read and computed on, shape (n_recordings,).

    One segment costs what lies in it; windows the whole recording, again and again where they overlap.
    """
    sizes: npt.NDArray[np.float64] = entries["size"].fill_null(_USUAL_BYTES).to_numpy().astype(np.float64)
    if segments.hop_s is None:
        return _OPENING_BYTES + np.minimum(sizes, segments.duration_s * _SECOND_BYTES)
    for suffix, factor in _COMPRESSION.items():
        sizes[pc.ends_with(entries["file"], suffix, ignore_case=True).to_numpy(zero_copy_only=False)] *= factor
    return _OPENING_BYTES + sizes * max(1.0, segments.duration_s / segments.hop_s)


def count_shards(n_recordings: int, cost: int) -> int:
    """Return how many shards so many recordings of that cost in all make, at most `MAX_SHARDS`."""
    n_usual = max(n_recordings, cost / (_OPENING_BYTES + _USUAL_BYTES))
    small = math.ceil(_SHARDS_PER_ROOT * math.sqrt(n_usual))
    large = max(math.ceil(n_recordings / _MOST_RECORDINGS), math.ceil(cost / _MOST_BYTES))
    return min(max(small, large), n_recordings, MAX_SHARDS)


def digest(entries: pa.RecordBatch) -> str:
    """Return 32 hexadecimal digits that change when a name, size or version of the entries does."""
    sha = hashlib.sha256()
    for row in zip(*(column.to_pylist() for column in entries.columns), strict=True):
        sha.update(repr(row).encode())
    return sha.hexdigest()[:32]


def _as_batch(entries: pa.Table) -> pa.RecordBatch:
    """Return entries as the one record batch of a shard, which may be none."""
    batches = entries.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=ENTRY_SCHEMA)


def _differs(known: pa.Table, listed: pa.Table, name: str) -> pa.ChunkedArray:
    """Return where the listing knows `name` and it is not what was known."""
    differs = pc.fill_null(pc.not_equal(known[name], listed[name]), True)
    return pc.and_(differs, pc.is_valid(listed[name]))


def _open(table: Folder, file: str) -> pa.ipc.RecordBatchFileReader:
    data = table.folder(FOLDER).read(file)
    try:
        return pa.ipc.open_file(pa.py_buffer(data))
    except pa.ArrowException as error:
        raise _damaged(table, file) from error


def _damaged(table: Folder, file: str) -> IncompleteError:
    return IncompleteError(
        f"table {table.url}: expected {FOLDER}/{file} as it was written, got a damaged file; name a new table"
    )


def _entries_file(generation: int, index: Mapping[str, Any]) -> str:
    # Early tables do not say it.
    return str(index.get("entries", f"{generation:06d}.arrow"))


def _name(generation: int) -> str:
    return f"{generation:06d}.json"
