"""Feature and label tables: their Arrow schemas, their parts with footers, and what `table.json` says of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emotion_batch import usage
from emotion_batch._version import __version__
from emotion_batch.analysis.formats import nullable
from emotion_batch.errors import MENDABLE, DamagedError, IncompleteError, Status, UsageError
from emotion_batch.features import recipes
from emotion_batch.settings import AnySettings, FeatureSettings, Segments, SequenceSettings, read_settings
from emotion_batch.storage.archive import SUFFIXES
from emotion_batch.storage.folder import Folder, damaged, explained, is_sealed, seal, unseal
from emotion_batch.usage import stage

FEATURES = "features"
LABELS = "labels"
# Of each kind's columns; an earlier release's label table has fewer.
SCHEMA_VERSIONS = {FEATURES: 1, LABELS: 2}
LEDGER = "_table"
# As the command line calls them.
_RECIPES = {FeatureSettings.recipe: "seed", SequenceSettings.recipe: "sequence"}
INFO = f"{LEDGER}/table.json"
_PART = re.compile(r"part-([0-9]{6,})\.parquet")
_FOOTER_KEY = b"emotion_batch"
# The key of a part's digests: 64 hexadecimal digits of all before the footer, and 64 of the footer with zeros in their place.
_SEAL_KEY = "emotion_batch_sha256"
# As it stands in a footer, before its value: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
_SEAL = _SEAL_KEY.encode() + b"\x18\x80\x01"
# In which the metadata of a part of one row group lies.
_END_BYTES = 2**16
_N_READERS = 32

_COMMON = (
    pa.field("file", pa.string(), nullable=False),
    pa.field("start_s", pa.float64()),
    pa.field("end_s", pa.float64()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
)


def feature_schema(settings: AnySettings) -> pa.Schema:
    """Return the columns of a feature table."""
    return pa.schema(
        [
            *_COMMON,
            pa.field("duration_s", pa.float64()),
            pa.field("sample_rate_hz", pa.int32()),
            pa.field("channels", pa.int16()),
            *recipes.fields(settings),
        ]
    )


def label_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the columns of a label table; `labels` in the order of the bundle's card."""
    probabilities = [pa.field(f"p_{label}", pa.float32()) for label in labels]
    return pa.schema(
        [
            *_COMMON,
            pa.field("emotion", pa.string()),
            pa.field("confidence", pa.float32()),
            pa.field("margin", pa.float32()),
            pa.field("entropy", pa.float32()),
            pa.field("is_confident", pa.bool_()),
            pa.field("is_in_domain", pa.bool_()),
            pa.field("domain_distance", pa.float32()),
            pa.field("is_speech", pa.bool_()),
            *probabilities,
        ]
    )


@dataclass(frozen=True)
class TableInfo:
    """What a table is: `table.json`, and what each part's footer repeats of it.

    Attributes
    ----------
    kind
        ``features`` or ``labels``.
    source
        URL of the archive, or of the feature table that labels are made from.
    feature_settings, segments
        How its rows came from recordings.
    model_id
        Of the bundle that labels are from; None for features.
    labels
        The bundle's labels in order; empty for features.
    features
        URL of the feature table that keeps the features of an archive on their way to labels; None without one. Runs
        of the same table may differ in it.
    """

    kind: str
    source: str
    feature_settings: AnySettings
    segments: Segments
    model_id: str | None = None
    labels: tuple[str, ...] = ()
    features: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as `table.json` holds it."""
        return {
            "schema_version": SCHEMA_VERSIONS[self.kind],
            "tool_version": __version__,
            "kind": self.kind,
            "source": self.source,
            "feature_id": self.feature_settings.feature_id,
            "feature_settings": self.feature_settings.to_dict(),
            "segment_id": self.segments.segment_id,
            "segments": self.segments.to_dict(),
            "model_id": self.model_id,
            "labels": list(self.labels),
            "features": self.features,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TableInfo:
        """Return what `to_dict` gave; raise UsageError for a schema version that this one does not know."""
        expected = SCHEMA_VERSIONS[value["kind"]]
        if value.get("schema_version") != expected:
            raise UsageError(
                f"table: expected schema version {expected}, got {value.get('schema_version')!r}; "
                "use the version of emotion-batch that wrote it"
            )
        # Early tables do not say where features are kept.
        texts = [value["source"], value["model_id"] or "", value.get("features") or "", *value["labels"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("something else where a text must be")
        settings, segments = read_settings(value["feature_settings"]), Segments.from_dict(value["segments"])
        if (value["feature_id"], value["segment_id"]) != (settings.feature_id, segments.segment_id):
            raise ValueError("settings that are not those of their fingerprints")
        return cls(
            kind=value["kind"],
            source=value["source"],
            feature_settings=settings,
            segments=segments,
            model_id=value["model_id"],
            labels=tuple(value["labels"]),
            features=value.get("features"),
        )

    @property
    def schema(self) -> pa.Schema:
        """The columns of its parts."""
        return feature_schema(self.feature_settings) if self.kind == FEATURES else label_schema(self.labels)

    def difference(self, other: TableInfo) -> str | None:
        """Return the first thing in which `other` is not this table, as ``this, got other``; None if it is.

        In the words of the command line: a person can only change what they have typed.
        """
        if self.kind != other.kind:
            return f"a table of {other.kind}, got one of {self.kind}"
        if self.source != other.source:
            return f"{'SOURCE' if self.kind == LABELS else 'ARCHIVE'} {self.source}, got {other.source}"
        if self.model_id != other.model_id:
            return f"--model with the model {self.model_id}, of which a copy is in {LEDGER}/model, got {other.model_id}"
        mine, theirs = (info.feature_settings.to_dict() for info in (self, other))
        if mine["recipe"] != theirs["recipe"]:
            return f"--recipe {_RECIPES[mine['recipe']]}, got --recipe {_RECIPES[theirs['recipe']]}"
        for name, value in mine.items():
            if value != theirs[name]:
                option = f"--{name.replace('_', '-')}"
                return f"{option} {value}, got {option} {theirs[name]}"
        if self.segments != other.segments:
            return f"{self.segments.to_options()}, got {other.segments.to_options()}"
        return None


@dataclass(frozen=True)
class Counts:
    """What came out, counted: numbers that add up over shards.

    Attributes
    ----------
    n_recordings
        Recordings of the manifest.
    n_rows
        Rows, one a segment.
    by_status
        Rows by status.
    by_label
        ``ok`` rows by emotion; empty for features.
    """

    n_recordings: int = 0
    n_rows: int = 0
    by_status: Mapping[str, int] = field(default_factory=dict)
    by_label: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: pa.Table) -> Counts:
        """Count the rows of one part."""
        by_label = _value_counts(rows["emotion"].drop_null()) if "emotion" in rows.column_names else {}
        return cls(pc.count_distinct(rows["file"]).as_py(), rows.num_rows, _value_counts(rows["status"]), by_label)

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
        )


@dataclass(frozen=True)
class Footer:
    """What a part says of itself.

    Attributes
    ----------
    shard
        Number of the shard whose rows these are.
    digest
        Of the manifest entries that they were made from.
    counts
        What they are.
    is_sealed
        Whether the part has digests of its own bytes, as those of earlier releases have not.
    """

    shard: int
    digest: str
    counts: Counts
    is_sealed: bool = False

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None, info: TableInfo) -> Footer:
        """Return what a part's metadata says; raise PartError if it is no part of a table of `info`."""
        try:
            about = json.loads((metadata or {})[_FOOTER_KEY])
            counts = Counts(about["n_recordings"], about["n_rows"], about["by_status"], about["by_label"])
            footer = cls(about["shard"], about["digest"], counts, _SEAL_KEY.encode() in (metadata or {}))
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

    def require(self, shard: int, frozen: Frozen) -> None:
        """Raise OtherPartError unless this is the part of a shard's newest entries."""
        if self.shard != shard:
            raise OtherPartError(f"expected shard {shard}, got {self.shard}")
        if self.digest != frozen.digest:
            raise OtherPartError("expected rows of the manifest's newest entries, got those of earlier ones")
        if self.counts.n_recordings != frozen.n_recordings:
            raise OtherPartError(
                f"expected rows of {frozen.n_recordings:,} recordings, got those of {self.counts.n_recordings:,}"
            )


class Frozen(Protocol):
    """What is looked at of a shard's entries in the manifest."""

    @property
    def digest(self) -> str:
        """Their fingerprint."""

    @property
    def n_recordings(self) -> int:
        """How many there are."""


class PartError(Exception):
    """A file is not the part that it should be; the text is the end of a sentence about it."""


class OtherPartError(PartError):
    """A file is undamaged, but of other settings, another shard or other entries."""


@lru_cache(maxsize=16)
def _expected(info: TableInfo) -> tuple[tuple[str, str, str | None], pa.Schema]:
    """Return the ids and the columns of a table's parts; once, for a table has thousands."""
    return (info.feature_settings.feature_id, info.segments.segment_id, info.model_id), info.schema


def part_name(shard: int) -> str:
    """Return the name of a shard's part."""
    return f"part-{shard:06d}.parquet"


def part_shard(name: str) -> int | None:
    """Return the number of the shard whose part has this name; None if no part has it."""
    match = _PART.fullmatch(name)
    return int(match[1]) if match is not None and part_name(int(match[1])) == name else None


def read_info(table: Folder) -> TableInfo | None:
    """Return what a table is, or None if the folder holds no table; raise DamagedError if what says so is damaged or lost."""
    data = table.read_if_there(INFO)
    if data is None:
        if any(name.endswith(".json") for name in table.folder(f"{LEDGER}/manifest").names()):
            raise damaged(table, INFO, "no such file")
        return None
    try:
        return TableInfo.from_dict(unseal(data))
    except (UsageError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UsageError) and is_sealed(data):
            # As a later release wrote it.
            raise
        raise damaged(table, INFO) from error


def find(table: Folder) -> TableInfo | None:
    """Return what a folder that is to be written as a table holds; None if it is still to be made, or its `table.json` is.

    Raises
    ------
    UsageError
        If it is a file, or holds files that are no table: recordings above all, where SOURCE and TABLE were confused.
    """
    with explained(f"table {table.url}"):
        with contextlib.suppress(DamagedError):
            there = read_info(table)
            if there is not None:
                return there
        kind = table.find_kind()
        names = table.names() if kind == "folder" else []
    strangers = [name for name in names if not name.startswith((".", "_")) and part_shard(name) is None]
    recordings = [name for name in strangers if name.lower().endswith(SUFFIXES)]
    if kind != "folder" and table.url.lower().endswith(SUFFIXES):
        # Also if it is not there, because it may be a second recording, misspelt; no folder has such a name.
        raise UsageError(
            f"table {table.url} is named as a recording is: name several recordings by their folder, a glob in quotes or a "
            "list file, and after that a folder for the table"
        )
    if kind == "file":
        raise UsageError(f"table {table.url} is a file, not a folder: name a folder for the table")
    if recordings:
        raise UsageError(
            f"table {table.url} holds recordings ({recordings[0]!r}): expected a new or empty folder or a table; the order is "
            "SOURCE TABLE, what is read before what is written"
        )
    if strangers:
        raise UsageError(
            f"table {table.url}: expected a new or empty folder or a table, got {strangers[0]!r} in it; name another "
            "folder; the order is SOURCE TABLE, what is read before what is written"
        )
    return None


def check(table: Folder, info: TableInfo) -> TableInfo | None:
    """Return what `table` is, which is `info` but for its feature table; None if it is still to be made.

    It also is where one of other settings was begun and has no part: nothing of it would be lost. What has lost its `table.json`
    is what its parts say.

    Raises
    ------
    UsageError
        If it holds a table of something else, or what `find` refuses.
    """
    there = find(table)
    difference = None if there is None else there.difference(info)
    if there is not None and not difference:
        return there
    with explained(f"table {table.url}"):
        parts = [name for name in table.names() if name.endswith(".parquet") and not name.startswith((".", "_"))]
        if not parts:
            return None
        if there is not None and difference and there.source != info.source:
            raise _refusal(table, difference)
        said = None
        for name in parts:
            try:
                read_footer(table, info, name)
            except PartError as error:
                said = said or f"{name}: {error}"
                continue
            # What an earlier release wrote has no digest that tells of damage.
            return info
    if difference:
        raise _refusal(table, difference)
    raise UsageError(
        f"table {table.url}: {INFO} is damaged or missing, and none of the parts there is of these settings ({said}); give the "
        "settings that they were made with, or name a new table"
    )


def create(table: Folder, info: TableInfo) -> bool:
    """Make `table` one of `info` if it is none yet; raise what `check` does, and also for one that has no part.

    Return whether its `table.json` was damaged or lost and is written anew; for what a caller has seen that `check` lets pass.
    """
    data = seal(info.to_dict(), indent=2)
    there = find(table)
    with explained(f"table {table.url}"):
        # Also those of a table that an earlier release made.
        for name in ("attempts", "manifest", "runs"):
            table.folder(f"{LEDGER}/{name}").make()
        is_lost = there is None and any(part_shard(name) is not None for name in table.names())
        if there is None and not table.publish_first(INFO, data):
            # Another run was quicker: its table may be one of something else. Or it is damaged.
            there = find(table)
            is_lost = there is None
        if there is not None and (difference := there.difference(info)):
            # Unless parts say that it is damaged.
            is_lost = check(table, info) is info
            if not is_lost:
                raise _refusal(table, difference)
        if is_lost or (there is not None and info.features not in (None, there.features)):
            table.publish(INFO, data)
    return is_lost


def replace(table: Folder, info: TableInfo) -> None:
    """Make a table without a part one of `info`: for a run that is alone with it.

    What was frozen for the earlier settings goes first, and the settings last: whenever this ends early, the table is one of the
    earlier settings whose recordings are still to be listed.
    """
    with explained(f"table {table.url}"):
        for name in ("manifest", "attempts", "model"):
            folder = table.folder(f"{LEDGER}/{name}")
            # The newest generation of a manifest first, and what says that there is one before what it names.
            names = sorted(folder.names(), key=lambda name: (name.endswith(".json"), name), reverse=True)
            for one in names:
                folder.delete(one)
        table.publish(INFO, seal(info.to_dict(), indent=2))


def _refusal(table: Folder, difference: str) -> UsageError:
    return UsageError(f"table {table.url}: expected {difference}; name a new table for other settings")


def publish_part(
    table: Folder,
    info: TableInfo,
    shard: int,
    digest: str,
    rows: pa.Table,
    publish: Callable[[str, bytes], object] | None = None,
) -> Counts:
    """Write a shard's rows as its part, whole or not at all, and return their counts.

    Parameters
    ----------
    table
        Folder of the table.
    info
        What the table is.
    shard
        Number of the shard.
    digest
        Of the manifest entries that `rows` were made from.
    rows
        Of the schema of `info`.
    publish
        Publishes what it is given as a name of the table; by default `Folder.publish`.
    """
    counts = Counts.of(rows)
    about = {
        **{
            name: value
            for name, value in info.to_dict().items()
            if name not in ("source", "feature_settings", "segments", "features")
        },
        "shard": shard,
        "digest": digest,
        "n_recordings": counts.n_recordings,
        "n_rows": counts.n_rows,
        "by_status": counts.by_status,
        "by_label": counts.by_label,
    }
    sink = io.BytesIO()
    schema = nullable(info.schema.with_metadata({_FOOTER_KEY: json.dumps(about).encode()}))
    # One row group, for a query costs a request for each.
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
    is_sealed = _check_seal(data, is_whole=True)
    with _parsing():
        part = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        # One thread each, for parts are read side by side.
        rows = part.read(columns, use_threads=False)
        if columns is not None:
            rows = rows.select(columns)
        if not is_sealed:
            # With a damaged offset Arrow would read anywhere.
            rows.validate(full=True)
    return rows


def require_part(
    table: Folder, info: TableInfo, shard: int, columns: list[str] | None = None, newest: Frozen | None = None
) -> pa.Table:
    """Return the rows of a shard's part, without its footer; raise IncompleteError, which names it, if they cannot be used."""
    try:
        with explained(f"table {table.url}"):
            rows = read_part(table, shard, columns)
        footer = Footer.of(rows.schema.metadata, info)
        if newest is not None:
            footer.require(shard, newest)
    except PartError as error:
        raise IncompleteError(
            f"table {table.url}: {part_name(shard)}: {error}; run the command that made {table.url} again, which makes the part "
            "anew (`emotion-batch verify --deep` names all such parts)"
        ) from error
    return rows.replace_schema_metadata()


def own_footers(table: Folder, info: TableInfo, shards: Iterable[int]) -> dict[int, Footer]:
    """Return the footers of those of `shards` whose part is there, whole, and made as `info` says, from any entries."""
    there = set(table.names())
    wanted = [shard for shard in shards if part_name(shard) in there]

    def read(shard: int) -> Footer | None:
        try:
            return read_footer(table, info, part_name(shard))
        except PartError:
            return None

    # Threads, for this waits for storage.
    with ThreadPoolExecutor(_N_READERS) as pool:
        jobs = [(shard, usage.submit(pool, partial(read, shard))) for shard in wanted]
        found = ((shard, take()) for shard, take in jobs)
        return {shard: footer for shard, footer in found if footer is not None and footer.shard == shard}


def complete_shards(table: Folder, info: TableInfo, shards: Mapping[int, Frozen]) -> dict[int, Footer]:
    """Return the footers of the shards that are done: made from the newest entries, with these settings."""
    return select_complete(own_footers(table, info, shards), shards)


def select_complete(footers: Mapping[int, Footer], shards: Mapping[int, Frozen]) -> dict[int, Footer]:
    """Return those of `footers` that are of parts made from the newest entries."""
    done = {}
    for shard, footer in footers.items():
        with contextlib.suppress(PartError):
            footer.require(shard, shards[shard])
            done[shard] = footer
    return done


def require_complete(table: Folder, info: TableInfo, shards: Mapping[int, Frozen]) -> dict[int, Footer]:
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
        # Without the rows before it, for Parquet finds its metadata from the end.
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
    if schema.remove_metadata() != _expected(info)[1]:
        raise PartError("expected the columns of this table, got others")
    if metadata.num_rows != footer.counts.n_rows:
        raise PartError(f"expected {footer.counts.n_rows:,} rows as its footer says, got {metadata.num_rows:,}")
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


def _check_seal(data: bytes, *, is_whole: bool = False) -> bool:
    """Return whether the end of a part, or all of it, has digests, which those of earlier releases lack.

    Raises
    ------
    PartError
        If they are not its own.
    """
    at = data.rfind(_SEAL) + len(_SEAL)
    if at < len(_SEAL):
        return False
    start = max(0, _find_footer(data))
    zeroed = b"".join((data[start : at + 64], bytes(b"0" * 64), data[at + 128 :]))
    if data[at + 64 : at + 128] != _digest(zeroed):
        raise PartError("expected a whole Parquet file, got a footer with other bytes than were written")
    if is_whole and data[at : at + 64] != _digest(memoryview(data)[:start]):
        raise PartError("expected a whole Parquet file, got rows with other bytes than were written")
    return True


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {
        item["values"]: item["counts"]
        for item in sorted(pc.value_counts(column).to_pylist(), key=lambda item: str(item["values"]))
    }


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}
