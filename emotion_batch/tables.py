"""Feature and label tables: their Arrow schemas, their parts with footers, and what `table.json` says of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import emotion_batch
from emotion_batch.errors import IncompleteError, Status, UsageError
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage import Folder, explained

SCHEMA_VERSION = 1
FEATURES = "features"
LABELS = "labels"
LEDGER = "_table"
_INFO = f"{LEDGER}/table.json"
_FOOTER_KEY = b"emotion_batch"

_COMMON = (
    pa.field("file", pa.string(), nullable=False),
    pa.field("start_s", pa.float64()),
    pa.field("end_s", pa.float64()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
)


def feature_schema(settings: FeatureSettings) -> pa.Schema:
    """Return the columns of a feature table."""
    return pa.schema(
        [
            *_COMMON,
            pa.field("duration_s", pa.float64()),
            pa.field("sample_rate_hz", pa.int32()),
            pa.field("channels", pa.int16()),
            pa.field("mfcc", pa.list_(pa.float32(), settings.n_mfcc)),
        ]
    )


def label_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the columns of a label table; `labels` in the order of the bundle's card."""
    probabilities = [pa.field(f"p_{label}", pa.float32()) for label in labels]
    return pa.schema([*_COMMON, pa.field("emotion", pa.string()), pa.field("confidence", pa.float32()), *probabilities])


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
    """

    kind: str
    source: str
    feature_settings: FeatureSettings
    segments: Segments
    model_id: str | None = None
    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as `table.json` holds it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool_version": emotion_batch.__version__,
            "kind": self.kind,
            "source": self.source,
            "feature_id": self.feature_settings.feature_id,
            "feature_settings": self.feature_settings.to_dict(),
            "segment_id": self.segments.segment_id,
            "segments": self.segments.to_dict(),
            "model_id": self.model_id,
            "labels": list(self.labels),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TableInfo:
        """Return what `to_dict` gave; raise UsageError for a schema version that this one does not know."""
        if value.get("schema_version") != SCHEMA_VERSION:
            raise UsageError(
                f"table: expected schema version {SCHEMA_VERSION}, got {value.get('schema_version')!r}; "
                "use the version of emotion-batch that wrote it"
            )
        return cls(
            kind=value["kind"],
            source=value["source"],
            feature_settings=FeatureSettings.from_dict(value["feature_settings"]),
            segments=Segments.from_dict(value["segments"]),
            model_id=value["model_id"],
            labels=tuple(value["labels"]),
        )

    @property
    def schema(self) -> pa.Schema:
        """The columns of its parts."""
        return feature_schema(self.feature_settings) if self.kind == FEATURES else label_schema(self.labels)

    def difference(self, other: TableInfo) -> str | None:
        """Return the first thing in which `other` is not this table, as ``name: this, other``; None if it is."""
        mine, theirs = ({**info.to_dict(), **info.feature_settings.to_dict()} for info in (self, other))
        for name in ("kind", "source", *self.feature_settings.to_dict()):
            if mine[name] != theirs[name]:
                return f"{name} {mine[name]}, got {theirs[name]}"
        if self.segments != other.segments:
            return f"segments {self.segments.to_dict()}, got {other.segments.to_dict()}"
        if self.model_id != other.model_id:
            return f"the labels of model {self.model_id}, got model {other.model_id}"
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
    feature_id, segment_id, model_id
        What they were made with.
    counts
        What they are.
    """

    shard: int
    digest: str
    feature_id: str
    segment_id: str
    model_id: str | None
    counts: Counts


def part_name(shard: int) -> str:
    """Return the name of a shard's part."""
    return f"part-{shard:06d}.parquet"


def read_info(table: Folder) -> TableInfo | None:
    """Return what a table is, or None if the folder holds no table."""
    data = table.read_if_there(_INFO)
    return None if data is None else TableInfo.from_dict(json.loads(data))


def check(table: Folder, info: TableInfo) -> bool:
    """Return whether `table` is one of `info` already; False if it is still to be made.

    Raises
    ------
    UsageError
        If it holds a table of something else, or files that are no table.
    """
    with explained(f"table {table.url}"):
        there = read_info(table)
        strangers = [] if there else [name for name in table.names() if not name.startswith((".", "_"))]
    if strangers:
        raise UsageError(
            f"table {table.url}: expected a new or empty folder or a table, got {strangers[0]!r} in it; "
            "name another folder"
        )
    if there and (difference := there.difference(info)):
        raise UsageError(f"table {table.url}: expected {difference}; name a new table for other settings")
    return there is not None


def create(table: Folder, info: TableInfo) -> None:
    """Make `table` one of `info` if it is none yet; raise what `check` does."""
    if not check(table, info):
        with explained(f"table {table.url}"):
            table.publish(_INFO, json.dumps(info.to_dict(), indent=2).encode())


def publish_part(table: Folder, info: TableInfo, shard: int, digest: str, rows: pa.Table) -> Counts:
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
    """
    counts = Counts.of(rows)
    about = {
        **{
            name: value
            for name, value in info.to_dict().items()
            if name not in ("source", "feature_settings", "segments")
        },
        "shard": shard,
        "digest": digest,
        "n_recordings": counts.n_recordings,
        "n_rows": counts.n_rows,
        "by_status": counts.by_status,
        "by_label": counts.by_label,
    }
    sink = io.BytesIO()
    schema = info.schema.with_metadata({_FOOTER_KEY: json.dumps(about).encode()})
    # One row group, for a query costs a request for each.
    pq.write_table(rows.cast(schema), sink, compression="zstd", row_group_size=max(1, rows.num_rows))
    with explained(f"table {table.url}"):
        table.publish(part_name(shard), sink.getvalue())
    return counts


def read_part(table: Folder, shard: int, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of a shard's part."""
    return pq.read_table(io.BytesIO(table.read(part_name(shard))), columns=columns)


def keep_gone(table: Folder, shard: int, rows: pa.Table) -> pa.Table:
    """Return a shard's rows with those of recordings that vanished as its earlier part has them, if it has.

    A shard that is done anew for one recording's sake must not lose what was known of another that is gone since.
    """
    is_gone = pc.equal(rows["status"], Status.VANISHED)
    if not pc.any(is_gone).as_py() or not read_footers(table, [shard]):
        return rows
    earlier = read_part(table, shard).replace_schema_metadata(None)
    if earlier.schema != rows.schema:
        return rows
    earlier = earlier.filter(pc.is_in(earlier["file"], value_set=rows["file"].filter(is_gone).combine_chunks()))
    fresh = rows.filter(pc.invert(pc.is_in(rows["file"], value_set=earlier["file"].combine_chunks())))
    return pa.concat_tables([fresh, earlier]).sort_by([("file", "ascending"), ("start_s", "ascending")])


def read_footers(table: Folder, shards: Iterable[int]) -> dict[int, Footer]:
    """Return the footers of those of `shards` whose part is there and readable."""
    there = set(table.names())
    wanted = [shard for shard in shards if part_name(shard) in there]
    # Threads, for this waits for storage.
    with ThreadPoolExecutor(16) as pool:
        footers = pool.map(lambda shard: _read_footer(table, shard), wanted)
        return {shard: footer for shard, footer in zip(wanted, footers, strict=True) if footer is not None}


def complete_shards(table: Folder, info: TableInfo, digests: Mapping[int, str]) -> dict[int, Footer]:
    """Return the footers of the shards that are done: made from the newest entries, with these settings."""
    identity = (info.feature_settings.feature_id, info.segments.segment_id, info.model_id)
    return {
        shard: footer
        for shard, footer in read_footers(table, digests).items()
        if footer.shard == shard
        and footer.digest == digests[shard]
        and (footer.feature_id, footer.segment_id, footer.model_id) == identity
    }


def require_complete(table: Folder, info: TableInfo, digests: Mapping[int, str]) -> None:
    """Raise IncompleteError unless every shard of a table is done."""
    n_left = len(digests) - len(complete_shards(table, info, digests))
    if n_left or not digests:
        raise IncompleteError(
            f"table {table.url}: expected all of its {len(digests)} parts, got {n_left} missing or out of date; "
            "run the extraction again, it does what is left"
        )


def _read_footer(table: Folder, shard: int) -> Footer | None:
    try:
        with table.filesystem()[0].open(table.path(part_name(shard)), "rb") as stream:
            metadata = pq.read_metadata(stream).metadata or {}
        about = json.loads(metadata[_FOOTER_KEY])
        counts = Counts(about["n_recordings"], about["n_rows"], about["by_status"], about["by_label"])
        return Footer(
            about["shard"],
            about["digest"],
            about["feature_id"],
            about["segment_id"],
            about["model_id"],
            counts,
        )
    except (pa.ArrowInvalid, KeyError, ValueError, FileNotFoundError):
        # No part of ours, or not a whole one: it is done anew.
        return None
    except OSError as error:
        # Arrow says so, without a number, of a footer that is damaged.
        if error.errno is None:
            return None
        raise


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {
        item["values"]: item["counts"]
        for item in sorted(pc.value_counts(column).to_pylist(), key=lambda item: str(item["values"]))
    }


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}
