"""Read and write a model's card, which describes the model. The types of all values are checked when a bundle is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from emotion_batch.features.recipes import read_settings, recipe_of
from emotion_batch.inference import safety
from emotion_batch.settings import AnySettings, Segments
from emotion_batch.storage.folder import SEAL, unseal

CARD_VERSION = 3
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Promise:
    """The precision that `is_confident` promises, and its precision on speakers that were not used to choose it."""

    threshold: float | None
    promised: float
    got: float | None
    coverage: float
    n_speakers: int | None
    is_guaranteed: bool


# These kinds of split tell about new voices. The last one also tells about new rooms and languages.
_BELIEVED = ("speaker_held_out", "corpus_held_out")


class _Errors(TypedDict):
    ece: float


class _Fold(TypedDict):
    n_rows: int
    raw: _Errors
    calibrated: _Errors


class _Calibration(_Fold):
    temperature: Annotated[float, msgspec.Meta(gt=0)]
    names: list[str]
    folds: list[_Fold]


class _Intervals(TypedDict):
    accuracy: tuple[float, float]


class _Metrics(TypedDict):
    n_rows: int
    n_speakers: int | None
    accuracy: float
    uar: float
    recall: dict[str, float | None]
    intervals: NotRequired[_Intervals]


class _Training(TypedDict, total=False):
    data_licence: str | None
    n_rows: int
    n_speakers: int | None


class _Domain(TypedDict):
    flagged: dict[str, float]


class _Saved(TypedDict):
    """The values of a card's JSON that readers need; there may be others."""

    labels: list[str]
    feature_settings: dict[str, Any]
    segments: dict[str, Any]
    architecture: str
    model_id: str
    training: _Training
    metrics: dict[str, _Metrics]
    calibration: _Calibration | None
    confidence: Promise | None
    domain: _Domain | None
    versions: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True)
class Card:
    """The description of a bundle.

    `labels` are in the order of the network's outputs, and only stand here. The model was trained on `feature_settings` and
    `segments`, and can label these. `model_id` is the fingerprint of weights, labels and feature settings: the same training
    gives the same. `metrics` has figures by kind of split. `calibration` has the ``temperature`` by which logits are divided,
    and how it was found; `confidence` the ``threshold`` of ``is_confident`` (None if there is none), and its promised and
    measured precision; `domain` the values for `domain.Domain`. These three are empty if the training could not find them.
    `versions` are of Python and packages; `files` has the SHA-256 of each other file, in hexadecimal digits.
    """

    labels: tuple[str, ...]
    feature_settings: AnySettings
    segments: Segments
    architecture: str
    model_id: str
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]
    calibration: Mapping[str, Any]
    confidence: Mapping[str, Any]
    domain: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, str]

    def to_json(self) -> bytes:
        """Return the card as `card.json` holds it."""
        value = {
            "card_version": CARD_VERSION,
            **vars(self),
            "feature_settings": self.feature_settings.to_dict(),
            "segments": self.segments.to_dict(),
            "feature_id": self.feature_settings.feature_id,
            "segment_id": self.segments.segment_id,
        }
        return json.dumps(value, indent=2, ensure_ascii=False).encode()

    @property
    def temperature(self) -> float:
        """Logits are divided by it; 1 leaves them as they are."""
        return float(self.calibration.get("temperature", 1.0))

    @classmethod
    def from_json(cls, data: bytes) -> Card:
        """Return the card that `to_json` gave; raise ValueError, KeyError, TypeError or UsageError if it did not."""
        value = safety.parse_json(data)
        if SEAL in value:
            # A table's copy is sealed.
            unseal(data)
        if value["card_version"] != CARD_VERSION:
            raise ValueError(f"card version must be {CARD_VERSION}: {value['card_version']!r}")
        # These are empty if the training could not find them.
        found = {name: value[name] or None for name in ("calibration", "confidence", "domain")}
        msgspec.convert({**value, **found}, _Saved)
        settings = read_settings(value["feature_settings"])
        if value["architecture"] != recipe_of(settings).network:
            raise ValueError(f"architecture must be {recipe_of(settings).network!r}: {value['architecture']!r}")
        if len(set(value["labels"])) != len(value["labels"]) or not value["labels"]:
            raise ValueError("labels must be distinct words")
        for name, digest in value["files"].items():
            if not PLAIN_NAME.fullmatch(name) or not _SHA256.fullmatch(digest):
                raise ValueError(f"files must be plain names with their SHA-256: {name!r}")
        known: dict[str, Any] = {name: value[name] for name in _Saved.__annotations__}
        known |= {name: one or {} for name, one in found.items()}
        known |= {"feature_settings": settings, "segments": Segments.from_dict(value["segments"])}
        return cls(**{**known, "labels": tuple(value["labels"])})


@dataclass(frozen=True)
class Judged:
    """Accuracy on a kind of split, with its 95 % interval if the card has one."""

    kind: str
    n_rows: int
    n_speakers: int | None
    accuracy: float
    uar: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, from 0 to 1, on new speakers: of the network alone (`raw`), and with its temperature.

    `name` is the speaker or the fold; "all" for all of them.
    """

    name: str
    n_rows: int
    raw: float
    after: float


@dataclass(frozen=True)
class Portrait:
    """The facts of a card that a reader of labels needs; those that it lacks are empty or None.

    `licence` is that of the training's recordings. The last of `judged` is the most reliable, and `recall` is that split's, by
    label. `calibration` is first that of all held-out rows, and then of each fold. `flagged` is the share of rows out of domain:
    ``held_out`` of known voices, ``new_voices`` of others. `reliability` is a picture, a PNG, of confidence and the share that
    was right.
    """

    model_id: str
    architecture: str
    licence: str
    n_rows: int | None
    n_speakers: int | None
    judged: tuple[Judged, ...]
    recall: Mapping[str, float]
    temperature: float
    calibration: tuple[Calibration, ...]
    promise: Promise | None
    flagged: Mapping[str, float]
    versions: Mapping[str, str]
    reliability: bytes | None = None


def read_portrait(card: Card, reliability: bytes | None = None) -> Portrait:
    """Return the facts of a card for readers of labels, with the picture."""
    training, calibration = card.training, card.calibration
    judged = [
        msgspec.convert({**one, "kind": kind, "interval": one.get("intervals", {}).get("accuracy")}, Judged)
        for kind, one in card.metrics.items()
    ]
    folds = (
        [("all", calibration), *zip(calibration["names"], calibration["folds"], strict=False)] if calibration else []
    )
    recalls: list[Mapping[str, float | None]] = [
        card.metrics[one]["recall"] for one in _BELIEVED if one in card.metrics
    ]
    return Portrait(
        model_id=card.model_id,
        architecture=card.architecture,
        licence=training.get("data_licence") or "",
        n_rows=training.get("n_rows"),
        n_speakers=training.get("n_speakers"),
        judged=tuple(sorted(judged, key=lambda one: _BELIEVED.index(one.kind) if one.kind in _BELIEVED else -1)),
        recall={label: share for label, share in (recalls[-1] if recalls else {}).items() if share is not None},
        temperature=card.temperature,
        calibration=tuple(
            Calibration(name, one["n_rows"], one["raw"]["ece"], one["calibrated"]["ece"]) for name, one in folds
        ),
        promise=msgspec.convert(card.confidence, Promise) if card.confidence else None,
        flagged=card.domain["flagged"] if card.domain else {},
        versions=card.versions,
        reliability=reliability,
    )
