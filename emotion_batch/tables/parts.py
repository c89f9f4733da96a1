"""Publish and read the parts of a table: Parquet files with a footer that says what they hold.

A footer has the digest of the shard's entries, the counts of the rows, and digests of the whole file, so that damage is found before
anything parses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emotion_batch import usage
from emotion_batch.errors import MENDABLE, IncompleteError, Status
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables.schema import TableInfo, nullable
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.usage import stage

T = TypeVar("T")
R = TypeVar("R")
_PART = re.compile(r"part-([0-9]{6,})\.parquet")
_FOOTER_KEY = b"emotion_batch"
# The key of a part's digests: 64 hexadecimal digits of all before the footer, and 64 of the footer with zeros in their place.
_SEAL_KEY = "emotion_batch_sha256"
# As it stands in a footer, before its value: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
_SEAL = _SEAL_KEY.encode() + b"\x18\x80\x01"
# The metadata of a part of one row group lies in so many bytes at its end.
_END_BYTES = 2**16
# Parts on a disk, and their footers, are parsed more than waited for; those of a bucket are waited for.
_REMOTE_READERS, _LOCAL_READERS = 32, 4
_TRUST = ("is_speech", "is_in_domain", "is_confident")


@dataclass(frozen=True)
class Counts:
    """What came out, counted: recordings of the manifest, rows (one a segment), rows by status, and ``ok`` rows by emotion.

    `trust` is of how many labels ``is_speech``, ``is_in_domain`` and ``is_confident`` are true, as far as the model can tell.
    """

    n_recordings: int = 0
    n_rows: int = 0
    by_status: Mapping[str, int] = field(default_factory=dict)
    by_label: Mapping[str, int] = field(default_factory=dict)
    trust: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: pa.Table) -> Counts:
        """Count the rows of one part."""
        by_label = _value_counts(rows["emotion"].drop_null()) if "emotion" in rows.column_names else {}
        trust = {name: pc.sum(rows[name]).as_py() for name in _TRUST if name in rows.column_names}
        known = {name: n_rows for name, n_rows in trust.items() if n_rows is not None}
        return cls(
            pc.count_distinct(rows["file"]).as_py(), rows.num_rows, _value_counts(rows["status"]), by_label, known
        )

    @property
    def n_ok(self) -> int:
        """Rows that hold features or labels."""
        return self.by_status.get(Status.OK, 0)

    @property
    def n_failed(self) -> int:
        """Rows that hold a reason instead."""
        return self.n_rows - self.n_ok

    @property
    def n_mendable(self) -> int:
        """Failed rows that another try could mend."""
        return sum(self.by_status.get(status, 0) for status in MENDABLE)

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(
            self.n_recordings + other.n_recordings,
            self.n_rows + other.n_rows,
            _added(self.by_status, other.by_status),
            _added(self.by_label, other.by_label),
            _added(self.trust, other.trust),
        )


@dataclass(frozen=True)
class Footer:
    """What a part says of itself: `digest` is that of the manifest entries that its rows were made from."""

    shard: int
    digest: str
    counts: Counts

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None, info: TableInfo) -> Footer:
        """Return what a part's metadata says; raise PartError if it is no part of a table of `info`."""
        try:
            about = json.loads((metadata or {})[_FOOTER_KEY])
            counts = Counts(
                about["n_recordings"], about["n_rows"], about["by_status"], about["by_label"], about.get("trust", {})
            )
            footer = cls(about["shard"], about["digest"], counts)
            found = [about[name] for name in ("feature_id", "segment_id", "model_id")]
        except (KeyError, ValueError, TypeError) as error:
            raise OtherPartError("expected a part of this table, got a Parquet file of something else") from error
        expected = _expected(info)[0]
        for name, mine, theirs in zip(("feature_id", "segment_id", "model_id"), expected, found, strict=True):
            if mine != theirs:
                raise OtherPartError(f"expected {name} {mine}, got {theirs}")
        unknown = set(counts.by_status) - set(Status)
        if unknown:
            raise PartError(f"expected known statuses, got {', '.join(sorted(unknown))}")
        is_one_each = info.segments.hop_s is None
        if (is_one_each and counts.n_rows != counts.n_recordings) or sum(counts.by_status.values()) != counts.n_rows:
            raise PartError(f"expected a row a segment, got {counts.n_rows:,} of {counts.n_recordings:,} recordings")
        return footer

    def require_rows(self, schema: pa.Schema, n_rows: int, expected: pa.Schema) -> None:
        """Raise PartError unless a part has the rows that this says, in the columns that are expected."""
        if schema != expected:
            raise PartError("expected the columns of this table, got others")
        if n_rows != self.counts.n_rows:
            raise PartError(f"expected {self.counts.n_rows:,} rows as its footer says, got {n_rows:,}")

    def require(self, shard: int, frozen: ShardEntry) -> None:
        """Raise OtherPartError unless this is the part of a shard's newest entries."""
        if self.shard != shard:
            raise OtherPartError(f"expected shard {shard}, got {self.shard}")
        if self.digest != frozen.digest:
            raise OtherPartError("expected rows of the manifest's newest entries, got those of earlier ones")
        if self.counts.n_recordings != frozen.n_recordings:
            raise OtherPartError(
                f"expected rows of {frozen.n_recordings:,} recordings, got those of {self.counts.n_recordings:,}"
            )


class PartError(Exception):
    """A file is not the part that it should be; the text is the end of a sentence about it."""


class OtherPartError(PartError):
    """A file is undamaged, but of other settings, another shard or other entries."""


@lru_cache(maxsize=16)
def _expected(info: TableInfo) -> tuple[tuple[str, str, str | None], pa.Schema]:
    """Return the ids and the columns of a table's parts; once, because a table has thousands."""
    return (info.feature_settings.feature_id, info.segments.segment_id, info.model_id), info.schema


def part_name(shard: int) -> str:
    """Return the name of a shard's part."""
    return f"part-{shard:06d}.parquet"


def part_shard(name: str) -> int | None:
    """Return the number of the shard whose part has this name; None if no part has it."""
    match = _PART.fullmatch(name)
    return int(match[1]) if match is not None and part_name(int(match[1])) == name else None


def publish_part(
    table: Folder,
    info: TableInfo,
    shard: int,
    digest: str,
    rows: pa.Table,
    publish: Callable[[str, bytes], object] | None = None,
) -> Counts:
    """Write a shard's rows, of the schema of `info`, as its part, whole or not at all, and return their counts.

    `digest` is that of the manifest entries that they were made from. `publish` takes a name of the table and its bytes; it is
    `Folder.publish` by default.
    """
    counts = Counts.of(rows)
    about = {
        **{
            name: value
            for name, value in info.to_dict().items()
            if name not in ("source", "feature_settings", "segments", "features", "include", "exclude", "suffixes")
        },
        "shard": shard,
        "digest": digest,
        "n_recordings": counts.n_recordings,
        "n_rows": counts.n_rows,
        "by_status": counts.by_status,
        "by_label": counts.by_label,
        "trust": counts.trust,
    }
    sink = io.BytesIO()
    schema = nullable(info.schema.with_metadata({_FOOTER_KEY: json.dumps(about).encode()}))
    # One row group, because each costs a query a request.
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(rows.cast(schema), row_group_size=max(1, rows.num_rows))
        writer.add_key_value_metadata({_SEAL_KEY: "0" * 128})
    with sink.getbuffer() as data:
        start = _find_footer(data)
        at = start + bytes(data[start:]).rindex(_SEAL) + len(_SEAL)
        data[at : at + 64] = _digest(data[:start])
        data[at + 64 : at + 128] = _digest(data[start:])
    with explained(f"table {table.url}"), stage("write"):
        (publish or table.publish)(part_name(shard), sink.getvalue())
    return counts


def read_part(table: Folder, shard: int, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of a shard's part; raise PartError if it is damaged or not there."""
    with _fetching():
        data = table.read(part_name(shard))
    _check_seal(data, is_whole=True)
    with _parsing():
        part = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        # One thread each, because parts are read side by side.
        rows = part.read(columns, use_threads=False)
        if columns is not None:
            rows = rows.select(columns)
    return rows


def require_part(
    table: Folder, info: TableInfo, shard: int, columns: list[str] | None = None, newest: ShardEntry | None = None
) -> pa.Table:
    """Return the rows of a shard's part, without its footer; raise IncompleteError, which names it, if they cannot be used."""
    try:
        with explained(f"table {table.url}"):
            footer, rows = read_own(table, info, shard, columns)
        if newest is not None:
            footer.require(shard, newest)
    except PartError as error:
        raise IncompleteError(
            f"table {table.url}: {part_name(shard)}: {error}; run the command that made {table.url} again, which makes the part "
            "anew (`emotion-batch verify --deep` names all such parts)"
        ) from error
    return rows


def read_complete(
    table: Folder, info: TableInfo, shards: Mapping[int, ShardEntry], columns: list[str] | None = None
) -> Iterator[tuple[int, pa.Table | None]]:
    """Yield each shard with the rows of its part, or None unless that was made from the newest entries; some are read ahead."""
    there = set(table.names())

    def read(shard: int) -> tuple[int, pa.Table | None]:
        with contextlib.suppress(PartError):
            if part_name(shard) in there:
                footer, rows = read_own(table, info, shard, columns)
                footer.require(shard, shards[shard])
                return shard, rows
        return shard, None

    return read_ahead(read, shards, _LOCAL_READERS if table.is_local else _REMOTE_READERS)


def read_ahead(read: Callable[[T], R], things: Iterable[T], n_ahead: int) -> Iterator[R]:
    """Yield what `read` gives of each thing, in order: threads read a few ahead, not all, which would fill the memory."""
    pool = ThreadPoolExecutor(n_ahead, thread_name_prefix="read")
    waiting: deque[Callable[[], R]] = deque()
    try:
        for thing in things:
            waiting.append(usage.submit_metered(pool, partial(read, thing)))
            if len(waiting) > n_ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_own(table: Folder, info: TableInfo, shard: int, columns: list[str] | None = None) -> tuple[Footer, pa.Table]:
    """Return a part's footer and its rows without it; raise PartError if it is damaged, not there or no part of such a table."""
    rows = read_part(table, shard, columns)
    footer = Footer.of(rows.schema.metadata, info)
    expected = _expected(info)[1]
    footer.require_rows(
        rows.schema, rows.num_rows, expected if columns is None else pa.schema(map(expected.field, columns))
    )
    return footer, rows.replace_schema_metadata()


def own_footers(table: Folder, info: TableInfo, shards: Iterable[int]) -> dict[int, Footer]:
    """Return the footers of those of `shards` whose part is there, whole, and made as `info` says, from any entries."""
    there = set(table.names())
    wanted = [shard for shard in shards if part_name(shard) in there]

    def read(shard: int) -> Footer | None:
        try:
            return read_footer(table, info, part_name(shard))
        except PartError:
            return None

    found = zip(wanted, read_ahead(read, wanted, _LOCAL_READERS if table.is_local else _REMOTE_READERS), strict=True)
    return {shard: footer for shard, footer in found if footer is not None and footer.shard == shard}


def complete_shards(table: Folder, info: TableInfo, shards: Mapping[int, ShardEntry]) -> dict[int, Footer]:
    """Return the footers of the shards that are done: made from the newest entries, with these settings."""
    return select_complete(own_footers(table, info, shards), shards)


def select_complete(footers: Mapping[int, Footer], shards: Mapping[int, ShardEntry]) -> dict[int, Footer]:
    """Return those of `footers` that are of parts made from the newest entries."""
    done = {}
    for shard, footer in footers.items():
        with contextlib.suppress(PartError):
            footer.require(shard, shards[shard])
            done[shard] = footer
    return done


def require_complete(table: Folder, info: TableInfo, shards: Mapping[int, ShardEntry]) -> dict[int, Footer]:
    """Return the footers of a table's parts; raise IncompleteError unless every shard is done."""
    with explained(f"table {table.url}"):
        footers = complete_shards(table, info, shards)
    left = [part_name(shard) for shard in shards if shard not in footers]
    if left or not shards:
        example = f", e.g. {left[0]}" if left else ""
        raise IncompleteError(
            f"table {table.url}: expected all of its {len(shards)} parts, got {len(left)} missing, damaged or out of date"
            f"{example}; run the extraction again, it does what is left"
        )
    return footers


def read_footer(table: Folder, info: TableInfo, name: str) -> Footer:
    """Return the footer of the file `name`; raise PartError if it is no whole part of a table of `info`, or not there."""
    with _fetching():
        end, size = table.read_end(name, _END_BYTES)
        n_footer = len(end) - _find_footer(end)
        if len(end) < n_footer <= size:
            end, size = table.read_end(name, n_footer)
    _check_seal(end)
    with _parsing():
        # Without the rows before it, because Parquet finds its metadata from the end.
        part = pq.ParquetFile(pa.BufferReader(end))
        # Not by `metadata.schema`: the two would keep each other, 20 KB a part, until the collector comes by.
        metadata, schema = part.metadata, part.schema_arrow
    if metadata.num_row_groups:
        # Columns lie one after the other; at the file's end the metadata, its length and four letters.
        last = metadata.row_group(metadata.num_row_groups - 1).column(metadata.num_columns - 1)
        start = last.data_page_offset if last.dictionary_page_offset is None else last.dictionary_page_offset
        if start + last.total_compressed_size > size - metadata.serialized_size - 8:
            raise PartError(f"expected a whole Parquet file, got one of {size:,} bytes that lacks some in the middle")
    footer = Footer.of(metadata.metadata, info)
    footer.require_rows(schema, metadata.num_rows, _expected(info)[1])
    return footer


@contextlib.contextmanager
def _fetching() -> Iterator[None]:
    """Turn a part's absence within the block into PartError; what its place raises otherwise stays."""
    try:
        yield
    except FileNotFoundError as error:
        raise PartError("expected a part, got nothing there") from error
    except IsADirectoryError as error:
        raise PartError("expected a whole Parquet file, got a folder") from error


@contextlib.contextmanager
def _parsing() -> Iterator[None]:
    """Turn what Arrow raises of damaged bytes within the block into PartError: of many kinds, UnicodeDecodeError among them."""
    try:
        yield
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PartError(f"expected a whole Parquet file, got {said}") from error


def _find_footer(data: bytes | memoryview) -> int:
    """Return where a Parquet file's footer begins in the end of the file `data`; below 0, if before it."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _check_seal(data: bytes, *, is_whole: bool = False) -> None:
    """Raise PartError unless the end of a part, or all of it, has its own digests."""
    at = data.rfind(_SEAL) + len(_SEAL)
    if at < len(_SEAL):
        raise PartError("expected a whole Parquet file of this table, got one without its digests")
    start = max(0, _find_footer(data))
    zeroed = b"".join((data[start : at + 64], bytes(b"0" * 64), data[at + 128 :]))
    if data[at + 64 : at + 128] != _digest(zeroed):
        raise PartError("expected a whole Parquet file, got a footer with other bytes than were written")
    if is_whole and data[at : at + 64] != _digest(memoryview(data)[:start]):
        raise PartError("expected a whole Parquet file, got rows with other bytes than were written")


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    counts = {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
    return dict(sorted(counts.items()))


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}
