"""The table of an archive's recordings: its schema, one entry, and its order by name, also for millions of entries."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, reduce
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.storage.bucket import Store
from emotion_batch.storage.folder import Folder, is_url
from emotion_batch.storage.retry import persistently

ENTRY_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        # The true name if it is not UTF-8. Then `file` is another one.
        pa.field("raw_file", pa.binary()),
        # Unknown if a list names it and it cannot be looked at. Such an entry is never `changed`.
        pa.field("size", pa.int64()),
        pa.field("version", pa.string()),
    ]
)
# Where segments are listed, an entry also has those of its recording, as JSON: a list of `ListedSegment`.
SEGMENTED_SCHEMA = ENTRY_SCHEMA.append(pa.field("segments", pa.string()))
BATCH = 65_536
# A listing is sorted in at most this many stretches, and a sample of this many names says where they begin.
_STRETCHES, _SAMPLE = 16, 4_096


class ListedSegment(NamedTuple):
    """A segment as a list names it; without `end_s` it lasts to the end of the recording."""

    start_s: float
    end_s: float | None
    channel: int | None
    speaker: str | None


class Entry(NamedTuple):
    """One recording of an archive.

    `file` is its path relative to the archive, with ``/``; if a list names it so and it lies elsewhere, an absolute path or a
    URL. `raw_file` is the name's bytes if they are not UTF-8; `file` is then their percent-escaped form. `size` is in bytes,
    and `version` changes when the content does: the modification time in ns, or the ETag. Both are None if not known.
    """

    file: str
    raw_file: bytes | None
    size: int | None
    version: str | None
    segments: str | None = None

    def read_segments(self) -> list[ListedSegment]:
        """Return the recording's segments in the order of their list; none if no list names them."""
        return [ListedSegment(*one) for one in msgspec.json.decode(self.segments or "[]")]


def count_rows(listed: Sequence[ListedSegment], rows: Sequence[tuple[float, int | None]]) -> list[int]:
    """Return how many of a recording's rows, (start_s, channel) in order, each listed segment has; it ends before one without a row.

    A segment without a channel may have a row for each channel of its recording.
    """
    counts: list[int] = []
    at = 0
    for one in listed:
        first = at
        while at < len(rows) and rows[at][0] == one.start_s:
            channel, before = rows[at][1], rows[at - 1][1]
            if at > first and (one.channel is not None or channel is None or before is None or channel <= before):
                break
            if one.channel not in (None, channel):
                break
            at += 1
        if at == first:
            break
        counts.append(at - first)
    return counts


def is_local(folder: Folder, entry: Entry) -> bool:
    """Return whether a recording lies on this machine's own filesystem; a list there may name URLs."""
    return folder.is_local and not is_url(entry.file)


def locate_local(folder: Folder, entry: Entry) -> bytes:
    """Return the path of a recording of which `is_local` holds."""
    # A list may have absolute names, which `join` takes as they are.
    return os.path.join(os.fsencode(folder.url), entry.raw_file or os.fsencode(entry.file))


def locate_remote(folder: Folder, entry: Entry) -> tuple[Store, str]:
    """Return the store and path of a recording of which `is_local` does not hold."""
    return Folder(entry.file, folder.options).store() if is_url(entry.file) else folder.store(entry.file)


def peek(archive: Folder, recording: Entry) -> None:
    """Read the first byte of a recording; raise OSError if that cannot be done."""
    if is_local(archive, recording):
        # O_NONBLOCK, because a named pipe may have no writer.
        descriptor = os.open(locate_local(archive, recording), os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.read(descriptor, 1)
        finally:
            os.close(descriptor)
    else:
        store, path = locate_remote(archive, recording)
        persistently(lambda: store.get(path, 0, 1))


@cache
def _nothing() -> dict[str, pa.Array]:
    """Return columns of null. Made on first use, because Arrow's first array reserves a GiB of addresses."""
    return {field.name: pa.nulls(BATCH, field.type) for field in ENTRY_SCHEMA}


def compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return some entries as one piece of memory, without what is null throughout.

    One piece for each array would waste a third of the memory, and ten million nulls are as large as numbers.
    """
    n_rows = len(batch)
    known = batch.select([name for name in ENTRY_SCHEMA.names if batch[name].null_count < n_rows or n_rows > BATCH])
    whole = pa.ipc.read_record_batch(known.serialize(), known.schema)
    there = known.schema.names
    columns = [whole[name] if name in there else _nothing()[name].slice(0, n_rows) for name in ENTRY_SCHEMA.names]
    return pa.RecordBatch.from_arrays(columns, schema=ENTRY_SCHEMA)


def distinct(table: pa.Table) -> tuple[pa.Table, int]:
    """Return entries sorted and without repetition, and how many were repeated; entries that are right already are not copied."""
    is_sorted = pc.all(_compared(pc.less_equal, table), min_count=0).as_py()
    if not is_sorted or table["raw_file"].null_count < table.num_rows:
        table = _distinct_escapes(pa.Table.from_batches(_sorted(table), ENTRY_SCHEMA))
    repeated = _compared(pc.equal, table)
    n_repeated = pc.sum(repeated).as_py() or 0
    if n_repeated:
        table = table.filter(pa.chunked_array([pa.array([True]), *pc.invert(repeated).chunks]))
    return table, n_repeated


def _sorted(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Yield entries by their names, one stretch of the alphabet after the other.

    If all were sorted at once, Arrow would copy all of them first.
    """
    names = table["file"]
    step = -(-table.num_rows // _SAMPLE) or 1
    some = (chunk.take(pa.array(range(0, len(chunk), step), pa.int64())) for chunk in names.chunks)
    sample = sorted(name for chunk in some for name in chunk.to_pylist())
    cuts = sorted({sample[number] for number in range(0, len(sample), -(-len(sample) // _STRETCHES))})
    for start, stop in zip(cuts, [*cuts[1:], None], strict=True):
        # Names below the first of the sample belong to the first stretch.
        within = [pc.greater_equal(names, start)] if start != cuts[0] else []
        within += [pc.less(names, stop)] if stop is not None else []
        piece = (table.filter(reduce(pc.and_, within)) if within else table).combine_chunks()
        piece = piece.take(pc.sort_indices(piece, sort_keys=[("file", "ascending"), ("raw_file", "ascending")]))
        yield from (compact(batch) for batch in piece.to_batches(max_chunksize=BATCH))


def _compared(compare: Callable[..., pa.ChunkedArray], table: pa.Table) -> pa.ChunkedArray:
    n_pairs = max(0, table.num_rows - 1)
    return compare(table["file"].slice(0, n_pairs), table["file"].slice(1, n_pairs))


def _distinct_escapes(table: pa.Table) -> pa.Table:
    """Escape every byte of a name that is not UTF-8 if its shorter escape is another recording's name."""
    escaped = pc.is_valid(table["raw_file"])
    if not pc.any(escaped).as_py():
        return table
    counts = Counter(table["file"].to_pylist())
    names = [
        "".join(f"%{byte:02X}" for byte in raw) if raw is not None and counts[file] > 1 else file
        for file, raw in zip(table["file"].to_pylist(), table["raw_file"].to_pylist(), strict=True)
    ]
    table = table.set_column(0, ENTRY_SCHEMA.field("file"), pa.array(names, pa.string()))
    return table.take(pc.sort_indices(table, sort_keys=[("file", "ascending")]))
