"""Read from a model's card what a reader of its labels must know: how it was evaluated, and what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emotion_batch.inference.bundle import Card


@dataclass(frozen=True)
class Judged:
    """Accuracy on a kind of split, with its 95 % interval where the card has one."""

    kind: str
    n_rows: int
    n_speakers: int | None
    accuracy: float
    uar: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error on speakers not heard, as the network is and after its temperature.

    Attributes
    ----------
    name
        The speaker or the fold; "all" for all of them.
    n_rows
        Rows judged.
    raw, after
        The error, from 0 to 1.
    """

    name: str
    n_rows: int
    raw: float
    after: float


@dataclass(frozen=True)
class Promise:
    """What `is_confident` promises, and what it was seen to give on speakers that it was not chosen on."""

    threshold: float | None
    promised: float
    got: float | None
    coverage: float
    n_speakers: int | None
    is_guaranteed: bool


@dataclass(frozen=True)
class Portrait:
    """A card, as far as it could be read; what it lacks is empty or None.

    Attributes
    ----------
    model_id, architecture
        Which model it is.
    licence
        Of the recordings that it was trained on.
    n_rows, n_speakers
        Of its training.
    judged
        By kind of split, the one to believe last.
    recall
        By label, on speakers held out.
    temperature
        By which logits are divided.
    calibration
        Of all held-out speakers first, and then of each.
    promise
        Of `is_confident`.
    flagged
        Share of rows that was not in domain: ``held_out`` of learnt voices, ``new_voices`` of others.
    versions
        Of what trained it.
    reliability
        Picture of confidence beside the share that was right, a PNG.
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
    """Return what a card says, with the picture beside it; what is not as this release writes it is left out, for a page must not fail of it."""
    metrics, calibration, training = card.metrics, card.calibration, card.training
    judged = [one for kind, figures in metrics.items() if (one := _judged(str(kind), figures)) is not None]
    held_out = _mapping(metrics.get("speaker_held_out"))
    return Portrait(
        model_id=card.model_id,
        architecture=card.architecture,
        licence=str(training.get("data_licence") or ""),
        n_rows=_whole(training.get("n_rows")),
        n_speakers=_whole(training.get("n_speakers")),
        judged=tuple(sorted(judged, key=lambda one: one.kind == "speaker_held_out")),
        recall=_numbers(held_out.get("recall")),
        temperature=card.temperature,
        calibration=_calibration(calibration),
        promise=_promise(card.confidence),
        flagged=_numbers(card.domain.get("flagged")),
        versions={str(name): str(version) for name, version in card.versions.items()},
        reliability=reliability,
    )


def _judged(kind: str, figures: Any) -> Judged | None:
    found = _mapping(figures)
    accuracy, uar, n_rows = _number(found.get("accuracy")), _number(found.get("uar")), _whole(found.get("n_rows"))
    if accuracy is None or uar is None or n_rows is None:
        return None
    bounds = _mapping(found.get("intervals")).get("accuracy")
    interval = None
    if isinstance(bounds, list) and len(bounds) == 2:
        low, high = map(_number, bounds)
        interval = None if low is None or high is None else (low, high)
    return Judged(kind, n_rows, _whole(found.get("n_speakers")), accuracy, uar, interval)


def _calibration(found: Mapping[str, Any]) -> tuple[Calibration, ...]:
    names, folds = found.get("names"), found.get("folds")
    if not isinstance(folds, list):
        folds = []
    if not isinstance(names, list) or len(names) != len(folds):
        names = [f"fold {number}" for number in range(len(folds))]
    made = [_errors(name, fold) for name, fold in zip(["all", *map(str, names)], [found, *folds], strict=True)]
    return tuple(one for one in made if one is not None)


def _errors(name: str, figures: Any) -> Calibration | None:
    found = _mapping(figures)
    raw, after = (_number(_mapping(found.get(which)).get("ece")) for which in ("raw", "calibrated"))
    n_rows = _whole(found.get("n_rows"))
    return None if raw is None or after is None or n_rows is None else Calibration(name, n_rows, raw, after)


def _promise(found: Mapping[str, Any]) -> Promise | None:
    promised, coverage = _number(found.get("promised")), _number(found.get("coverage"))
    if promised is None or coverage is None:
        return None
    return Promise(
        threshold=_number(found.get("threshold")),
        promised=promised,
        got=_number(found.get("got")),
        coverage=coverage,
        n_speakers=_whole(found.get("n_speakers")),
        is_guaranteed=found.get("is_guaranteed") is True,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 else None
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _numbers(value: Any) -> dict[str, float]:
    return {str(name): number for name, one in _mapping(value).items() if (number := _number(one)) is not None}
