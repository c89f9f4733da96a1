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
SCHEMA_VERSIONS = {FEATURES: 2, LABELS: 3}
LEDGER = "_table"
INFO = f"{LEDGER}/table.json"
_COMMON = (
    pa.field("file", pa.string(), nullable=False),
    pa.field("channel", pa.int16()),
    pa.field("start_s", pa.float64()),
    pa.field("end_s", pa.float64()),
    # Only where a list names the segments.
    pa.field("speaker", pa.string()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
)


def nullable(schema: pa.Schema) -> pa.Schema:
    """Return a schema whose booleans pandas reads as nullable ones.

    Otherwise pandas reads a column with a null as objects, and ``frame[frame.is_confident]`` is an error; a nullable one selects
    the true rows. Only pandas uses this, and the values stay the same.
    """
    columns = [
        {"name": field.name, "field_name": field.name, "pandas_type": "bool", "numpy_type": "boolean", "metadata": None}
        for field in schema
        if pa.types.is_boolean(field.type)
    ]
    if not columns:
        return schema
    # https://arrow.apache.org/docs/python/pandas.html; other columns are read as usual.
    about = {"index_columns": [], "column_indexes": [], "columns": columns, "creator": {"library": "emotion-batch"}}
    return schema.with_metadata({**(schema.metadata or {}), b"pandas": json.dumps(about).encode()})


def _common(*, is_listed: bool) -> list[pa.Field]:
    return [field for field in _COMMON if is_listed or field.name != "speaker"]


def feature_schema(settings: AnySettings, *, is_listed: bool = False) -> pa.Schema:
    """Return the columns of a feature table; `is_listed` says whether a list names its segments."""
    kinds = (("duration_s", pa.float64()), ("sample_rate_hz", pa.int32()), ("channels", pa.int16()))
    about = (pa.field(name, kind) for name, kind in kinds)
    return pa.schema([*_common(is_listed=is_listed), *about, *recipes.fields(settings)])


def label_schema(labels: Sequence[str], *, is_listed: bool = False) -> pa.Schema:
    """Return the columns of a label table; `labels` in the order of the bundle's card, `is_listed` as in `feature_schema`."""
    kinds = {"emotion": pa.string(), **dict.fromkeys(("confidence", "margin", "entropy"), pa.float32())}
    kinds |= {"is_confident": pa.bool_(), "is_in_domain": pa.bool_(), "domain_distance": pa.float32()}
    kinds |= {"is_speech": pa.bool_(), **{f"p_{label}": pa.float32() for label in labels}}
    return pa.schema([*_common(is_listed=is_listed), *(pa.field(name, kind) for name, kind in kinds.items())])


@dataclass(frozen=True)
class TableInfo:
    """What a table is, as `table.json` says and each part's footer repeats.

    Attributes
    ----------
    kind
        ``features`` or ``labels``.
    source
        URL of the archive, or of the feature table that was labelled.
    feature_settings, segments
        How its rows came from recordings.
    model_id
        Id of the model that gave the labels; None for features.
    labels
        The bundle's labels in order; empty for features.
    features
        URL of the feature table that keeps the features while an archive is labelled; None without one. Runs of the same
        table may differ in it.
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
            **{name: list(getattr(self, name)) for name in ("include", "exclude", "suffixes")},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TableInfo:
        """Return what `to_dict` gave; raise UsageError for an unknown schema version."""
        expected = SCHEMA_VERSIONS[value["kind"]]
        if value.get("schema_version") != expected:
            raise UsageError(
                f"table: it has schema version {value.get('schema_version')!r}, and this version of emotion-batch reads {expected}; "
                "use the version that wrote it"
            )
        settings, segments = recipes.read_settings(value["feature_settings"]), Segments.from_dict(value["segments"])
        if (value["feature_id"], value["segment_id"]) != (settings.feature_id, segments.segment_id):
            raise ValueError("settings that are not those of their fingerprints")
        known: dict[str, Any] = {name: value[name] for name in ("kind", "source", "model_id", "features")}
        known |= {name: tuple(value[name]) for name in ("labels", "include", "exclude")}
        return cls(feature_settings=settings, segments=segments, suffixes=tuple(value.get("suffixes", ())), **known)

    @property
    def schema(self) -> pa.Schema:
        """The columns of its parts."""
        is_listed = self.segments.is_listed
        if self.kind == FEATURES:
            return feature_schema(self.feature_settings, is_listed=is_listed)
        return label_schema(self.labels, is_listed=is_listed)

    def difference(self, other: TableInfo) -> str | None:
        """Return how `other`, a table that a call asks for, first differs from this one, as the rest of a sentence; None if it does not.

        The sentence uses the words of the command line, because people can only change what they have typed.
        """
        if self.kind != other.kind:
            return f"is a table of {self.kind}, and this call makes one of {other.kind}"
        if self.source != other.source:
            name = "SOURCE" if self.kind == LABELS else "ARCHIVE"
            return f"was made from {name} {self.source}, and this call has {other.source}"
        if self.model_id != other.model_id:
            return _differs(f"the model {self.model_id} (a copy is in {LEDGER}/model)", f"the model {other.model_id}")
        mine, theirs = (info.feature_settings.to_dict() for info in (self, other))
        if mine["recipe"] != theirs["recipe"]:
            this, that = (recipes.recipe_of(info.feature_settings).option for info in (self, other))
            return _differs(f"--recipe {this}", f"--recipe {that}")
        for name, value in mine.items():
            if value != theirs[name]:
                option = f"--{name.replace('_', '-')}"
                return _differs(f"{option} {value}", f"{option} {theirs[name]}")
        if self.segments != other.segments:
            return _differs(self.segments.to_options(), other.segments.to_options())
        for option, name in (("--include", "include"), ("--exclude", "exclude"), ("--suffix", "suffixes")):
            here, there = (" ".join(f"{option} {word}" for word in getattr(info, name)) for info in (self, other))
            if here != there:
                return _differs(here or f"no {option}", there or f"no {option}")
        return None

    def kept_features(self) -> TableInfo:
        """Return what the feature table that keeps the features of this label table is."""
        return replace(self, kind=FEATURES, model_id=None, labels=(), features=None)


def _differs(mine: str, theirs: str) -> str:
    return f"was made with {mine}, and this call has {theirs}"
