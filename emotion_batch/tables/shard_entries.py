"""Write, read and compare the entries of shards: the record batches of a manifest's files."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, reduce
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import DamagedError
from emotion_batch.settings import Segments
from emotion_batch.storage.entries import ENTRY_SCHEMA, SEGMENTED_SCHEMA
from emotion_batch.storage.folder import Folder, damaged, explained
from emotion_batch.tables.sharding import estimate_costs

FOLDER = "_table/manifest"
# A file of entries is closed when it has this many bytes, so that none is large in memory.
_FILE_BYTES = 2**24
# An Arrow file begins and ends with these: https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format
_MAGIC_START, MAGIC = b"ARROW1\0\0", b"ARROW1"
# The version of the digest, written before it: of entries without and with segments. It says which columns there are.
_DIGEST, _SEGMENTED = "2:", "3:"


@dataclass(frozen=True)
class ShardEntry:
    """Place of the newest entries of a shard: record batch `batch` of a generation's `file`, at bytes `start` to `stop`.

    The shard's part repeats their `digest` in its footer. `cost` is the sum of `estimate_costs` for them.
    """

    file: str
    batch: int
    n_recordings: int
    digest: str
    cost: int
    start: int
    stop: int


@cache
def _stream_start(schema: pa.Schema) -> bytes:
    return bytes(schema.serialize())


def read_entries(table: Folder, shard: ShardEntry) -> pa.RecordBatch:
    """Return one shard's entries, and read only their record batch; raise DamagedError if they are damaged."""
    with reading_entries(table, shard.file):
        return decode_entries(table, shard, table.folder(FOLDER).read_range(shard.file, shard.start, shard.stop))


def decode_entries(table: Folder, shard: ShardEntry, data: bytes | memoryview) -> pa.RecordBatch:
    """Return a shard's entries from the bytes of its record batch."""
    try:
        # A stream of one batch, because only a stream can be read without threads: half the time, or a tenth on busy cores.
        schema = SEGMENTED_SCHEMA if shard.digest.startswith(_SEGMENTED) else ENTRY_SCHEMA
        stream = pa.py_buffer(_stream_start(schema) + data)
        batch = pa.ipc.open_stream(stream, options=pa.ipc.IpcReadOptions(use_threads=False)).read_next_batch()
        # This comes first, because with damaged offsets Arrow would read outside the buffer.
        batch.validate(full=True)
        if (digest(batch), batch.num_rows) == (shard.digest, shard.n_recordings):
            return batch
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise damaged_manifest(table, shard.file) from error
    raise damaged_manifest(table, shard.file)


def has_entries_after(table: Folder, generation: int) -> bool:
    """Return whether a table has entries of a later generation, whose JSON file is lost or not written yet."""
    numbers = (re.match("[0-9]+", name) for name in table.folder(FOLDER).names() if name.endswith(".arrow"))
    return any(int(number[0]) > generation for number in numbers if number)


def salvage(table: Folder, wanted: Collection[str]) -> dict[str, pa.Table]:
    """Return the entries with the wanted digests, if a manifest's files still have them in readable form."""
    folder = table.folder(FOLDER)
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
                    if entries.schema in (ENTRY_SCHEMA, SEGMENTED_SCHEMA) and (name_of := digest(entries)) in wanted:
                        found[name_of] = pa.Table.from_batches([entries])
    return found


def digest(entries: pa.RecordBatch) -> str:
    """Return a version and 32 hexadecimal digits, which change if a name, size, version or segment of the entries changes."""
    sha = hashlib.sha256()
    for column in entries.columns:
        there = column.drop_null()
        # The lengths are hashed too, so that other columns never make the same bytes.
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
        # Only this stretch is hashed, because an array may be a stretch of another array's memory.
        sha.update(memoryview(data)[first:last] if data is not None else b"")
    return f"{_SEGMENTED if 'segments' in entries.schema.names else _DIGEST}{sha.hexdigest()[:32]}"


class Change(NamedTuple):
    """What a listing changes in one shard: its new entries, how many changed, names that are gone, and the entries after that."""

    is_new: npt.NDArray[np.bool_]
    n_changed: int
    gone: pa.Array
    entries: pa.Table | None


def find_span(entries: pa.Table, batch: pa.RecordBatch) -> tuple[int, int]:
    """Return the start and stop between which a listing may have the entries of a shard."""
    names, own = entries["file"], batch["file"]
    start, stop = pc.search_sorted(names, own[0], side="left"), pc.search_sorted(names, own[-1], side="right")
    return start.as_py(), stop.as_py()


def compare_shard(batch: pa.RecordBatch, listed: pa.Table, *, prune: bool) -> Change:
    """Return what a stretch of a listing changes in the entries of a shard."""
    at = pc.index_in(listed["file"], value_set=batch["file"])
    is_new = at.is_null().to_numpy()
    place = np.full(batch.num_rows, -1)
    place[at.drop_null().to_numpy()] = np.flatnonzero(~is_new)
    is_gone = pa.array(place < 0)
    gone = batch["file"].filter(is_gone)
    now = listed.take(pa.array(place, mask=place < 0))
    schema = batch.schema
    # The listing has a value that differs from the known one.
    pairs = [(batch[name], now[name].combine_chunks()) for name in schema.names]
    different = (pc.and_(pc.fill_null(pc.not_equal(one, new), True), pc.is_valid(new)) for one, new in pairs[2:])
    is_changed = reduce(pc.or_, different)
    n_changed = pc.sum(is_changed).as_py() or 0
    if not (n_changed or (prune and len(gone))):
        return Change(is_new, n_changed, gone, None)
    if not (len(gone) or is_new.any() or listed["size"].null_count or listed["version"].null_count):
        # This shares the listing's memory, because in a copied archive all recordings are changed.
        return Change(is_new, n_changed, gone, listed)
    columns = [pc.if_else(is_changed, new, one).cast(one.type) for one, new in pairs]
    changed = pa.Table.from_arrays(columns, schema=schema)
    return Change(is_new, n_changed, gone, changed.filter(pc.invert(is_gone)) if prune else changed)


def as_batch(entries: pa.Table) -> pa.RecordBatch:
    """Return entries, also if there are none, as the one record batch of a shard."""
    batches = entries.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=entries.schema)


def damaged_manifest(table: Folder, file: str, found: str = "a damaged file") -> DamagedError:
    """Return the error that says which file of the manifest is damaged."""
    return damaged(table, f"{FOLDER}/{file}", found)


@contextmanager
def reading_entries(table: Folder, file: str) -> Iterator[None]:
    """Explain errors while a file of entries is read; a missing file counts as damage."""
    with explained(f"table {table.url}"):
        try:
            yield
        except FileNotFoundError as error:
            raise damaged_manifest(table, file, "no such file") from error


def write_entries(left: Iterator[pa.Table], segments: Segments, index: dict[str, Any]) -> bytes:
    """Return a file of entries with as many of the shards as fit into one file; no bytes if no shard is left."""
    first = next(left, None)
    if first is None:
        return b""
    sink = io.BytesIO()
    # Arrow writes the beginning of a file with its first batch.
    start = len(_MAGIC_START) + len(_stream_start(first.schema))
    n_batches = 0
    with pa.ipc.new_file(sink, first.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for entries in chain([first], left):
            batch = as_batch(entries)
            writer.write_batch(batch)
            # With these bounds, a worker reads its shard by one request.
            index["spans"].append([start, sink.tell()])
            index["digests"].append(digest(batch))
            index["costs"].append(int(estimate_costs(batch, segments).sum()))
            start = sink.tell()
            n_batches += 1
            if start > _FILE_BYTES:
                break
    index["n_batches"].append(n_batches)
    return sink.getvalue()


def places(index: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return, for each shard of a generation, its file and its batch in that file."""
    counts = zip(index["files"], index["n_batches"], strict=True)
    return [(str(file), batch) for file, n_batches in counts for batch in range(n_batches)]
