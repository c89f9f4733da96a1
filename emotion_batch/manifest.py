"""The manifest: a table's recordings, frozen and cut into shards, growing by generations.

A generation is two files in ``_table/manifest/``: ``000001.arrow`` with one record batch a shard, and
``000001.json``, written after it, that says which shards these are. A shard's newest entries are those of
the last generation that has it.
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
from emotion_batch.storage import Folder

FOLDER = "_table/manifest"
MAX_SHARDS = 20_000
# A task costs Dask some 10 ms, a lost one its shard: shards and their number grow together with the archive, as the
# square root of its recordings, until a shard holds so many that its part is worth a query's request.
_SHARDS_PER_ROOT = 0.28
_MOST_RECORDINGS, _MOST_BYTES = 1_024, 2**30
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
    generation
        The manifest's generation that holds them.
    batch
        Number of their record batch in it.
    n_recordings
        How many entries there are.
    digest
        Fingerprint of the entries, which the shard's part repeats in its footer.
    cost
        What `estimate_costs` gives for them in all.
    """

    generation: int
    batch: int
    n_recordings: int
    digest: str
    cost: int


@dataclass(frozen=True)
class Growth:
    """What a new listing changes in a manifest: numbers of recordings."""

    n_new: int = 0
    n_changed: int = 0
    n_gone: int = 0


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
        self.generation = 0
        for name in self._folder.names():
            stem, _, suffix = name.partition(".")
            if suffix == "json" and stem.isdigit():
                self._add(int(stem), json.loads(self._folder.read(name)))

    @property
    def n_recordings(self) -> int:
        """Number of recordings in all shards."""
        return sum(shard.n_recordings for shard in self.shards.values())

    def digests(self) -> dict[int, str]:
        """Return the digest of each shard's newest entries."""
        return {number: shard.digest for number, shard in self.shards.items()}

    def entries(self, shards: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield the newest entries of `shards`, one record batch each."""
        readers: dict[int, pa.ipc.RecordBatchFileReader] = {}
        for shard in shards:
            where = self.shards[shard]
            if where.generation not in readers:
                readers[where.generation] = _open(self._folder, where.generation)
            yield readers[where.generation].get_batch(where.batch)

    def grow(self, entries: pa.Table, segments: Segments) -> Growth:
        """Take over a listing: freeze it, or add to what is frozen in a further generation.

        New recordings make new shards; a shard with changed recordings gets their new entries under its own
        number; gone recordings stay.

        Parameters
        ----------
        entries
            Table of `ENTRY_SCHEMA`, sorted by ``file``, no name twice.
        segments
            Which stretches of them will be read.
        """
        if not self.shards:
            self._write(dict(enumerate(cut(entries, segments))), segments)
            return Growth(n_new=entries.num_rows)
        numbers = list(self.shards)
        batches = dict(zip(numbers, self.entries(numbers), strict=True))
        known = pa.Table.from_batches(batches.values(), ENTRY_SCHEMA)
        place = pc.index_in(known["file"], value_set=entries["file"].combine_chunks())
        is_new = pc.invert(pc.is_in(entries["file"], value_set=known["file"].combine_chunks()))
        listed = entries.take(place)
        is_changed = pc.or_(_differs(known, listed, "size"), _differs(known, listed, "version")).combine_chunks()
        updated: dict[int, pa.RecordBatch] = {}
        start = 0
        for number, batch in batches.items():
            if pc.any(is_changed.slice(start, batch.num_rows)).as_py():
                mask = is_changed.slice(start, batch.num_rows)
                columns = [
                    pc.if_else(mask, listed[name].slice(start, batch.num_rows).combine_chunks(), batch[name])
                    for name in ENTRY_SCHEMA.names
                ]
                updated[number] = pa.RecordBatch.from_arrays(columns, schema=ENTRY_SCHEMA)
            start += batch.num_rows
        new = entries.filter(is_new)
        if new.num_rows:
            updated.update(enumerate(cut(new, segments), start=max(self.shards) + 1))
        if updated:
            self._write(updated, segments)
        return Growth(new.num_rows, pc.sum(is_changed).as_py() or 0, place.null_count)

    def follow(self, source: Manifest) -> None:
        """Take over the generations of another table's manifest that this one lacks, file by file.

        Raises
        ------
        UsageError
            If this manifest did not begin as the other's.
        """
        for generation in range(1, max(self.generation, source.generation) + 1):
            ours, theirs = (
                folder.read_if_there(_name(generation, "json")) for folder in (self._folder, source._folder)
            )
            if theirs is None or (ours is not None and ours != theirs):
                raise UsageError(
                    f"table {self._table.url}: expected the recordings of {source._table.url}, "
                    "got a manifest that did not come from it; name a new table"
                )
            if ours is None:
                entries = source._folder.read(_name(generation, "arrow"))
                self._folder.publish(_name(generation, "arrow"), entries)
                self._folder.publish(_name(generation, "json"), theirs)
                self._add(generation, json.loads(theirs))

    def _write(self, shards: dict[int, pa.RecordBatch], segments: Segments) -> None:
        generation = self.generation + 1
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, ENTRY_SCHEMA, options=options) as writer:
            for batch in shards.values():
                writer.write_batch(batch)
        self._folder.publish(_name(generation, "arrow"), sink.getvalue().to_pybytes())
        index = {
            "shards": list(shards),
            "n_recordings": [batch.num_rows for batch in shards.values()],
            "digests": [digest(batch) for batch in shards.values()],
            "costs": [int(estimate_costs(batch, segments).sum()) for batch in shards.values()],
        }
        self._folder.publish(_name(generation, "json"), json.dumps(index).encode())
        self._add(generation, index)

    def _add(self, generation: int, index: Mapping[str, Any]) -> None:
        # Early tables say no costs: recordings then weigh alike.
        costs = index.get("costs", index["n_recordings"])
        columns = zip(index["shards"], index["n_recordings"], index["digests"], costs, strict=True)
        for batch, (shard, n_recordings, entries_digest, cost) in enumerate(columns):
            self.shards[int(shard)] = ShardEntry(generation, batch, int(n_recordings), str(entries_digest), int(cost))
        self.generation = max(self.generation, generation)


def read_entries(table: Folder, shard: ShardEntry) -> pa.RecordBatch:
    """Return one shard's entries, as a worker reads them: that record batch alone.

    Raises
    ------
    IncompleteError
        If they are not those that the digest is of: another run froze its own at the same time.
    """
    entries = _open(table.folder(FOLDER), shard.generation).get_batch(shard.batch)
    if digest(entries) != shard.digest:
        raise IncompleteError(
            f"table {table.url}: expected the manifest of this run, got another's that was written at the same time; "
            "run the same command again, once"
        )
    return entries


def cut(entries: pa.Table, segments: Segments) -> list[pa.RecordBatch]:
    """Cut a listing into shards of neighbours that read about equally much.

    Parameters
    ----------
    entries
        Table of `ENTRY_SCHEMA`, at least one row.
    segments
        Which stretches of them will be read.

    Returns
    -------
    The shards, at most `MAX_SHARDS`; none is empty. They follow from the listing and the segments alone.
    """
    cost = np.cumsum(estimate_costs(entries, segments))
    n_shards = count_shards(entries.num_rows, int(cost[-1]))
    ends = np.searchsorted(cost, cost[-1] * np.arange(1, n_shards) / n_shards, side="left") + 1
    bounds = np.unique(np.concatenate([[0], ends, [entries.num_rows]]))
    contiguous = entries.combine_chunks()
    return [
        contiguous.slice(start, end - start).to_batches()[0]
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
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


def _differs(known: pa.Table, listed: pa.Table, name: str) -> pa.ChunkedArray:
    """Return where the listing knows `name` and it is not what was known."""
    differs = pc.fill_null(pc.not_equal(known[name], listed[name]), True)
    return pc.and_(differs, pc.is_valid(listed[name]))


def _open(folder: Folder, generation: int) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(folder.filesystem()[0].open(folder.path(_name(generation, "arrow")), "rb"))


def _name(generation: int, suffix: str) -> str:
    return f"{generation:06d}.{suffix}"
