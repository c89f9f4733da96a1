"""The columns of feature and label tables, and what ``table.json`` says about a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.csv

from emotion_batch._version import __version__
from emotion_batch.errors import UsageError
from emotion_batch.features import recipes
from emotion_batch.settings import AnySettings, Segments

FEATURES = "features"
LABELS = "labels"
# The version of each kind's columns.
SCHEMA_VERSIONS = {FEATURES: 1, LABELS: 2}
LEDGER = "_table"
INFO = f"{LEDGER}/table.json"
_COMMON = (
    pa.field("file", pa.string(), nullable=False),
    pa.field("start_s", pa.float64()),
    pa.field("end_s", pa.float64()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
)


def nullable(schema: pa.Schema) -> pa.Schema:
    """Return a schema of which pandas reads booleans as its nullable ones.

    Without it, a column with a null is one of objects to pandas, and ``frame[frame.is_confident]`` an error; a nullable one
    selects where it is true. Nothing but pandas looks at this, and the values are as before.
    """
    columns = [
        {"name": field.name, "field_name": field.name, "pandas_type": "bool", "numpy_type": "boolean", "metadata": None}
        for field in schema
        if pa.types.is_boolean(field.type)
    ]
    if not columns:
        return schema
    # https://arrow.apache.org/docs/python/pandas.html; what is not named is read as it always is.
    about = {"index_columns": [], "column_indexes": [], "columns": columns, "creator": {"library": "emotion-batch"}}
    return schema.with_metadata({**(schema.metadata or {}), b"pandas": json.dumps(about).encode()})


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
    include, exclude
        Patterns of the names that the listing keeps and leaves out: see `archive.list_recordings`.
    suffixes
        Suffixes of recordings that were named instead of the usual ones; none if these are meant.
    """

    kind: str
    source: str
    feature_settings: AnySettings
    segments: Segments
    model_id: str | None = None
    labels: tuple[str, ...] = ()
    features: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

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
            "include": list(self.include),
            "exclude": list(self.exclude),
            "suffixes": list(self.suffixes),
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
        settings, segments = recipes.read_settings(value["feature_settings"]), Segments.from_dict(value["segments"])
        if (value["feature_id"], value["segment_id"]) != (settings.feature_id, segments.segment_id):
            raise ValueError("settings that are not those of their fingerprints")
        return cls(
            kind=value["kind"],
            source=value["source"],
            feature_settings=settings,
            segments=segments,
            model_id=value["model_id"],
            labels=tuple(value["labels"]),
            features=value["features"],
            include=tuple(value["include"]),
            exclude=tuple(value["exclude"]),
            suffixes=tuple(value.get("suffixes", ())),
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
            this, that = (recipes.recipe_of(info.feature_settings).option for info in (self, other))
            return f"--recipe {this}, got --recipe {that}"
        for name, value in mine.items():
            if value != theirs[name]:
                option = f"--{name.replace('_', '-')}"
                return f"{option} {value}, got {option} {theirs[name]}"
        if self.segments != other.segments:
            return f"{self.segments.to_options()}, got {other.segments.to_options()}"
        for option, name in (("--include", "include"), ("--exclude", "exclude"), ("--suffix", "suffixes")):
            here, there = (" ".join(f"{option} {word}" for word in getattr(info, name)) for info in (self, other))
            if here != there:
                return f"{here or f'no {option}'}, got {there or f'no {option}'}"
        return None

    def kept_features(self) -> TableInfo:
        """Return what the feature table is that keeps the features of this label table."""
        return replace(self, kind=FEATURES, model_id=None, labels=(), features=None)
