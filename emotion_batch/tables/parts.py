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
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emotion_batch import usage
from emotion_batch.errors import MENDABLE, IncompleteError, Status, counted
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables.schema import TableInfo, nullable
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.usage import stage

T = TypeVar("T")
R = TypeVar("R")
_PART = re.compile(r"part-([0-9]{6,})\.parquet")
_FOOTER_KEY = b"emotion_batch"
# What a footer says about the table.
_TOLD = ("schema_version", "tool_version", "kind", "feature_id", "segment_id", "model_id", "labels")
# The key of a part's digests: 64 hexadecimal digits for all bytes before the footer, and 64 for the footer with zeros there.
_SEAL_KEY = "emotion_batch_sha256"
# How the key is written in a footer, before its value: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
_SEAL = _SEAL_KEY.encode() + b"\x18\x80\x01"
# The metadata of a part with one row group fits into this many bytes at its end.
_END_BYTES = 2**16
# For parts on a disk, parsing takes longer than reading. For parts in a bucket, waiting takes longest.
_REMOTE_READERS, _LOCAL_READERS = 32, 4
_TRUST = ("is_speech", "is_in_domain", "is_confident")


@dataclass(frozen=True)
class Counts:
    """Counts of recordings, of rows (one for each segment), of rows by status, and of ``ok`` rows by emotion.

    `trust` is the number of labels for which ``is_speech``, ``is_in_domain`` and ``is_confident`` are true, if the model can tell.
    `speech_by_label` are those of `by_label` that are speech. Parts of earlier releases lack it.
    """

    n_recordings: int = 0
    n_rows: int = 0
    by_status: Mapping[str, int] = field(default_factory=dict)
    by_label: Mapping[str, int] = field(default_factory=dict)
    trust: Mapping[str, int] = field(default_factory=dict)
    speech_by_label: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: pa.Table) -> Counts:
        """Count the rows of one part."""
        is_labelled = "emotion" in rows.column_names
        by_label = _value_counts(rows["emotion"].drop_null()) if is_labelled else {}
        speech = _value_counts(rows["emotion"].filter(rows["is_speech"])) if is_labelled else {}
        trust = {name: pc.sum(rows[name]).as_py() for name in _TRUST if name in rows.column_names}
        known = {name: n_rows for name, n_rows in trust.items() if n_rows is not None}
        n_recordings = pc.count_distinct(rows["file"]).as_py()
        return cls(n_recordings, rows.num_rows, _value_counts(rows["status"]), by_label, known, speech)

    @property
    def n_ok(self) -> int:
        """Rows that hold features or labels."""
        return self.by_status.get(Status.OK, 0)

    @property
    def n_failed(self) -> int:
        """Rows that hold a reason for the failure."""
        return self.n_rows - self.n_ok

    @property
    def shares(self) -> dict[str, float]:
        """Share of each label in speech; in all labels if the model cannot tell speech, or some parts do not count it."""
        found = self.speech_by_label if self.is_of_speech else self.by_label
        return {label: found.get(label, 0) / sum(found.values()) for label in self.by_label}

    @property
    def is_of_speech(self) -> bool:
        """Whether the parts count what is speech for each label, and there is some."""
        return 0 < sum(self.speech_by_label.values()) == self.trust.get("is_speech")

    @property
    def n_mendable(self) -> int:
        """Failed rows that may succeed when they are tried again."""
        return sum(self.by_status.get(status, 0) for status in MENDABLE)

    def __add__(self, other: Counts) -> Counts:
        names = ("by_status", "by_label", "trust", "speech_by_label")
        pairs = ((getattr(self, name), getattr(other, name)) for name in names)
        sums = ({key: one.get(key, 0) + two.get(key, 0) for key in sorted({*one, *two})} for one, two in pairs)
        return Counts(self.n_recordings + other.n_recordings, self.n_rows + other.n_rows, *sums)


@dataclass(frozen=True)
class Footer:
    """What a part's footer says; `digest` is that of the manifest entries that its rows were made from."""

    shard: int
    digest: str
    counts: Counts

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None, info: TableInfo) -> Footer:
        """Return what a part's metadata says; raise PartError if it is not a part of a table of `info`."""
        try:
            about = json.loads((metadata or {})[_FOOTER_KEY])
            sums = (about["by_status"], about["by_label"], about.get("trust", {}), about.get("speech_by_label", {}))
            counts = Counts(about["n_recordings"], about["n_rows"], *sums)
            footer = cls(about["shard"], about["digest"], counts)
            found = [about[name] for name in ("feature_id", "segment_id", "model_id")]
        except (KeyError, ValueError, TypeError) as error:
            raise OtherPartError("it is another Parquet file, not a part of this table") from error
        expected = _expected(info)[0]
        for name, mine, theirs in zip(("feature_id", "segment_id", "model_id"), expected, found, strict=True):
            if mine != theirs:
                raise OtherPartError(f"it was made with {name} {theirs}, and this table has {mine}")
        unknown = set(counts.by_status) - set(Status)
        if unknown:
            raise PartError(f"it has statuses that this version does not know: {', '.join(sorted(unknown))}")
        is_other = info.segments.is_one_row and counts.n_rows != counts.n_recordings
        if is_other or sum(counts.by_status.values()) != counts.n_rows:
            rows = f"{counted(counts.n_rows, 'row')} for {counted(counts.n_recordings, 'recording')}"
            raise PartError(f"its footer counts {rows}, and each segment must have one row")
        return footer

    def require_rows(self, schema: pa.Schema, n_rows: int, expected: pa.Schema) -> None:
        """Raise PartError unless a part has as many rows as this footer counts, and the expected columns."""
        if schema != expected:
            raise PartError("its columns are not those of this table")
        if n_rows != self.counts.n_rows:
            raise PartError(f"it has {counted(n_rows, 'row')}, and its footer counts {self.counts.n_rows:,}")

    def require(self, shard: int, frozen: ShardEntry) -> None:
        """Raise OtherPartError unless this is the part of a shard's newest entries."""
        if self.shard != shard:
            raise OtherPartError(f"it is the part of shard {self.shard}, not of shard {shard}")
        if self.digest != frozen.digest:
            raise OtherPartError("its rows were made from earlier entries of the manifest, not from the newest")
        if self.counts.n_recordings != frozen.n_recordings:
            n_own = counted(self.counts.n_recordings, "recording")
            raise OtherPartError(f"it has the rows of {n_own}, and the manifest has {frozen.n_recordings:,}")


class PartError(Exception):
    """A file is not the part that it should be; the text is the rest of a sentence about the file."""


class OtherPartError(PartError):
    """A file is not damaged, but belongs to other settings, another shard or other entries."""


@lru_cache(maxsize=16)
def _expected(info: TableInfo) -> tuple[tuple[str, str, str | None], pa.Schema]:
    """Return the ids and the columns of a table's parts; cached, because a table has thousands of parts."""
    return (info.feature_settings.feature_id, info.segments.segment_id, info.model_id), info.schema


def part_name(shard: int) -> str:
    """Return the name of a shard's part."""
    return f"part-{shard:06d}.parquet"


def part_shard(name: str) -> int | None:
    """Return the number of the shard whose part has this name; None if it is not the name of a part."""
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
    """Write a shard's rows, which have the schema of `info`, as its part, whole or not at all; return their counts.

    `digest` is that of the manifest entries that they were made from. `publish` takes a name of the table and its bytes; it is
    `Folder.publish` by default.
    """
    counts = Counts.of(rows)
    told = info.to_dict()
    about = {name: told[name] for name in _TOLD} | {"shard": shard, "digest": digest, **asdict(counts)}
    sink = io.BytesIO()
    schema = nullable(info.schema.with_metadata({_FOOTER_KEY: json.dumps(about).encode()}))
    # One row group, because a query needs a request for each.
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
        # One thread for each part, because several parts are read at the same time.
        rows = part.read(columns, use_threads=False)
        if columns is not None:
            rows = rows.select(columns)
    return rows


def require_part(
    table: Folder, info: TableInfo, shard: int, columns: list[str] | None = None, newest: ShardEntry | None = None
) -> pa.Table:
    """Return the rows of a shard's part, without its footer; raise IncompleteError, which names the part, if they cannot be used."""
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
    """Yield each shard with the rows of its part, or with None unless the newest entries made it; some are read ahead."""
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
    """Yield what `read` gives for each thing, in order. Threads read a few ahead; all of them would fill the memory."""
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
    """Return a part's footer and its rows without it; raise PartError if it is damaged, missing or not a part of such a table."""
    rows = read_part(table, shard, columns)
    footer = Footer.of(rows.schema.metadata, info)
    expected = _expected(info)[1]
    wanted = expected if columns is None else pa.schema(map(expected.field, columns))
    footer.require_rows(rows.schema, rows.num_rows, wanted)
    return footer, rows.replace_schema_metadata()


def own_footers(table: Folder, info: TableInfo, shards: Iterable[int]) -> dict[int, Footer]:
    """Return the footers of the shards whose part is whole and made as `info` says, from any entries."""
    there = set(table.names())
    wanted = [shard for shard in shards if part_name(shard) in there]

    def read(shard: int) -> Footer | None:
        with contextlib.suppress(PartError):
            return read_footer(table, info, part_name(shard))
        return None

    found = zip(wanted, read_ahead(read, wanted, _LOCAL_READERS if table.is_local else _REMOTE_READERS), strict=True)
    return {shard: footer for shard, footer in found if footer is not None and footer.shard == shard}


def complete_shards(table: Folder, info: TableInfo, shards: Mapping[int, ShardEntry]) -> dict[int, Footer]:
    """Return the footers of the shards that are done: made from the newest entries, with these settings."""
    return select_complete(own_footers(table, info, shards), shards)


def select_complete(footers: Mapping[int, Footer], shards: Mapping[int, ShardEntry]) -> dict[int, Footer]:
    """Return the footers of parts that were made from the newest entries."""
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
        lack = "it has no recordings yet"
        if left:
            n_parts = counted(len(shards), "part")
            lack = f"{len(left):,} of its {n_parts} cannot be used (missing, damaged or out of date), e.g. {left[0]}"
        raise IncompleteError(f"table {table.url}: {lack}; run the extraction again to do what is left")
    return footers


def read_footer(table: Folder, info: TableInfo, name: str) -> Footer:
    """Return the footer of the file `name`; raise PartError if it is missing, or not a whole part of a table of `info`."""
    with _fetching():
        end, size = table.read_end(name, _END_BYTES)
        n_footer = len(end) - _find_footer(end)
        if len(end) < n_footer <= size:
            end, size = table.read_end(name, n_footer)
    _check_seal(end)
    with _parsing():
        # This has no rows, because Parquet finds its metadata from the end of a file.
        part = pq.ParquetFile(pa.BufferReader(end))
        # `metadata.schema` is not used: the two refer to each other, so 20 KB a part would stay until the collector runs.
        metadata, schema = part.metadata, part.schema_arrow
    if metadata.num_row_groups:
        # Columns follow each other; the file ends with the metadata, its length and four letters.
        last = metadata.row_group(metadata.num_row_groups - 1).column(metadata.num_columns - 1)
        start = last.data_page_offset if last.dictionary_page_offset is None else last.dictionary_page_offset
        if start + last.total_compressed_size > size - metadata.serialized_size - 8:
            raise PartError(f"it is damaged (some of its bytes in the middle are missing, and {size:,} are there)")
    footer = Footer.of(metadata.metadata, info)
    footer.require_rows(schema, metadata.num_rows, _expected(info)[1])
    return footer


@contextlib.contextmanager
def _fetching() -> Iterator[None]:
    """Turn the absence of a part within the block into PartError; other errors of its place stay."""
    try:
        yield
    except FileNotFoundError as error:
        raise PartError("it is missing") from error
    except IsADirectoryError as error:
        raise PartError("it is damaged (a folder, not a file)") from error


@contextlib.contextmanager
def _parsing() -> Iterator[None]:
    """Turn the errors that Arrow raises for damaged bytes into PartError; there are many kinds, e.g. UnicodeDecodeError."""
    try:
        yield
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PartError(f"it is damaged ({said})") from error


def _find_footer(data: bytes | memoryview) -> int:
    """Return where the footer begins in `data`, the end of a Parquet file; below 0 if it begins before `data`."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _check_seal(data: bytes, *, is_whole: bool = False) -> None:
    """Raise PartError unless the end of a part, or the whole part, agrees with its digests."""
    at = data.rfind(_SEAL) + len(_SEAL)
    if at < len(_SEAL):
        raise PartError("it is damaged or not a part of this table (it has no digests)")
    start = max(0, _find_footer(data))
    zeroed = b"".join((data[start : at + 64], bytes(b"0" * 64), data[at + 128 :]))
    if data[at + 64 : at + 128] != _digest(zeroed):
        raise PartError("it is damaged (its footer has other bytes than were written)")
    if is_whole and data[at : at + 64] != _digest(memoryview(data)[:start]):
        raise PartError("it is damaged (its rows have other bytes than were written)")


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    counts = {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
    return dict(sorted(counts.items()))
