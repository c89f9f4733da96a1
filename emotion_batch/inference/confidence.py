"""How sure a model may say it is: temperatures, and the confidence from which on a label is to be believed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emotion_batch.errors import UsageError
from emotion_batch.training.metrics import (
    SMALLEST,
    Floats,
    Integers,
    expected_calibration_error,
    negative_log_likelihood,
)
from emotion_batch.training.splits import NO_FOLD, Split

Booleans = npt.NDArray[np.bool_]

_TEMPERATURES = (0.05, 20.0)
# Fewer speakers than this cannot show how much speakers differ.
_MIN_SPEAKERS = 5


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by.

    Attributes
    ----------
    value
        The temperature; above 1 makes the model less sure, 1 leaves it as it is.
    nll_raw, nll
        Mean negative log-likelihood in nats of the rows it was fitted on, without it and with it.
    n_rows
        How many these were.
    """

    value: float
    nll_raw: float
    nll: float
    n_rows: int


@dataclass(frozen=True)
class Threshold:
    """The confidence from which on a label is to be believed.

    Attributes
    ----------
    value
        The lowest confidence that is enough; None where none is.
    promised
        The precision that was asked for.
    got
        Share of right labels among the rows that reach `value`, of those that it was chosen on; None without one.
    coverage
        Share of all of these rows that reach it.
    n_rows
        How many rows it was chosen on.
    """

    value: float | None
    promised: float
    got: float | None
    coverage: float
    n_rows: int


def fit_temperature(probabilities: Floats, targets: Integers, *, source: Split) -> Temperature:
    """Return the temperature that makes held-out labels most likely (Guo et al., 2017, section 4.2).

    Parameters
    ----------
    probabilities
        Probability of each label, shape (n_rows, n_labels).
    targets
        Number of each row's reference label, shape (n_rows,).
    source
        What the probabilities were predicted for. Of speakers that were heard, words or random rows held out, the
        network is nearly always right: they gave temperatures of 0.05, and confidence in nonsense.

    Raises
    ------
    UsageError
        If `source` is not speakers held out, or there are no rows.
    """
    if source != Split.SPEAKER_HELD_OUT:
        raise UsageError(
            f"temperature: expected predictions for speakers that the model has not heard, got the split {source!s}; "
            "leave it uncalibrated, or train with two speakers or more"
        )
    if not len(targets):
        raise UsageError("temperature: expected one row or more to fit it on, got none")
    from scipy.optimize import minimize_scalar

    logits = _logarithm(probabilities)
    of_target = np.take_along_axis(logits, targets[:, np.newaxis], axis=1)[:, 0]

    def loss(log_temperature: float) -> float:
        return _loss(logits, of_target, math.exp(log_temperature))

    # Convex in 1 / T, so with one minimum in log T.
    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded")
    raw = loss(0.0)
    is_better = found.fun < raw
    return Temperature(
        math.exp(found.x) if is_better else 1.0, raw, float(found.fun) if is_better else raw, len(targets)
    )


def apply_temperature(probabilities: Floats, temperature: float) -> npt.NDArray[np.float32]:
    """Return the probabilities that logits divided by a temperature give: ``p ** (1 / T)``, to sum 1 again.

    The order of the labels stays; two that differ in the last digit may become equal, so that the label itself is to
    be taken from the probabilities as the network gave them.

    Parameters
    ----------
    probabilities
        Probability of each label, shape (n_rows, n_labels); 0 counts as float32's smallest normal number.
    temperature
        What to divide by; 1 gives equal values.

    Raises
    ------
    UsageError
        If `temperature` is not above 0.
    """
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature: expected a number above 0, got {temperature!r}")
    if temperature == 1:
        return np.array(probabilities, np.float32)
    powers = np.exp(_scale(_logarithm(probabilities), temperature))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def calibrate_across_folds(
    probabilities: Floats, targets: Integers, fold_of_row: Integers, *, source: Split
) -> dict[str, Any]:
    """Return what temperatures do to speakers that they were not fitted on, and the one fitted on all.

    Parameters
    ----------
    probabilities
        Probability of each label by the model of the row's fold, shape (n_rows, n_labels).
    targets
        Number of each row's reference label, shape (n_rows,).
    fold_of_row
        Number of the fold that judges each row, shape (n_rows,); `splits.NO_FOLD` for rows to be left out.
    source
        As for `fit_temperature`.

    Returns
    -------
    ``temperature``, of all rows, but 1 where those of the other folds made no likelihood better; ``n_rows``; ``raw``
    and ``calibrated`` with ``nll`` (nats) and ``ece`` over all folds; and ``folds``, a list with ``fold`` (its number),
    ``n_rows``, ``temperature`` (of the other folds' rows), ``raw`` and ``calibrated`` of each.

    Raises
    ------
    UsageError
        If there are fewer than two folds, or `source` is not speakers held out.
    """
    calibrated = np.zeros(probabilities.shape, np.float32)
    folds = []
    for fold, others, own in _each_fold(fold_of_row):
        temperature = fit_temperature(probabilities[others], targets[others], source=source).value
        calibrated[own] = apply_temperature(probabilities[own], temperature)
        folds.append(
            {
                "fold": fold,
                "n_rows": int(own.sum()),
                "temperature": temperature,
                "raw": _figures(probabilities[own], targets[own]),
                "calibrated": _figures(calibrated[own], targets[own]),
            }
        )
    rows = fold_of_row != NO_FOLD
    raw, after = _figures(probabilities[rows], targets[rows]), _figures(calibrated[rows], targets[rows])
    is_better = after["nll"] < raw["nll"]
    return {
        "temperature": fit_temperature(probabilities[rows], targets[rows], source=source).value if is_better else 1.0,
        "n_rows": int(rows.sum()),
        "raw": raw,
        "calibrated": after,
        "folds": folds,
    }


def choose_threshold(
    confidence: Floats, is_right: Booleans, *, precision: float = 0.9, min_rows: int = 20
) -> Threshold:
    """Return the lowest confidence at or above which the wanted share of labels is right.

    Parameters
    ----------
    confidence
        Probability of the label that each row was given, shape (n_rows,).
    is_right
        Whether it is the reference label, shape (n_rows,).
    precision
        The wanted share, above 0 and at most 1.
    min_rows
        Rows that must reach the threshold: of fewer, the share is chance.

    Raises
    ------
    UsageError
        If `precision` is outside its range.
    """
    if not 0 < precision <= 1:
        raise UsageError(f"precision: expected a share above 0 and at most 1, got {precision!r}")
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    n_rows = np.arange(1, len(falling) + 1)
    got = np.cumsum(is_right[order]) / n_rows
    # Rows of equal confidence reach a threshold together.
    is_last = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
    enough = np.flatnonzero(is_last & (n_rows >= min_rows) & (got >= precision))
    if not len(enough):
        return Threshold(None, precision, None, 0.0, len(falling))
    lowest = enough[-1]
    return Threshold(
        float(falling[lowest]), precision, float(got[lowest]), float(n_rows[lowest] / len(falling)), len(falling)
    )


def judge_threshold(threshold: Threshold, confidence: Floats, is_right: Booleans) -> dict[str, Any]:
    """Return what a threshold does on rows that it was not chosen on.

    Parameters
    ----------
    threshold
        As `choose_threshold` gave it.
    confidence, is_right
        As there, of other rows.

    Returns
    -------
    ``n_rows``, ``n_confident`` (rows that reach it), ``n_right`` of these, ``got``, their share (None where no row
    reaches it), and ``coverage``, the share of all rows that reach it.
    """
    is_confident = np.zeros(len(confidence), bool) if threshold.value is None else confidence >= threshold.value
    return _coverage(len(confidence), int(is_confident.sum()), int((is_confident & is_right).sum()))


def judge_threshold_across_folds(
    probabilities: Floats,
    targets: Integers,
    fold_of_row: Integers,
    *,
    source: Split,
    n_speakers: int,
    precision: float = 0.9,
    min_rows: int = 20,
) -> dict[str, Any]:
    """Return what thresholds do on speakers that neither they nor the temperature before them were chosen on.

    Parameters
    ----------
    probabilities, targets, fold_of_row, source
        As for `calibrate_across_folds`, as the network gave them.
    n_speakers
        Speakers in these folds.
    precision, min_rows
        As for `choose_threshold`.

    Returns
    -------
    ``promised``, what `judge_threshold` gives over all folds, ``n_speakers``, ``is_guaranteed`` (False below five
    speakers), and ``folds``, a list with ``fold`` (its number), ``threshold`` (the other folds', or None) and what
    `judge_threshold` gives of each.

    Raises
    ------
    UsageError
        If there are fewer than two folds, `source` is not speakers held out, or `precision` is outside its range.
    """
    is_right = np.argmax(probabilities, axis=1) == targets
    folds = []
    for fold, others, own in _each_fold(fold_of_row):
        temperature = fit_temperature(probabilities[others], targets[others], source=source).value
        confidence = apply_temperature(probabilities, temperature).max(axis=1)
        threshold = choose_threshold(confidence[others], is_right[others], precision=precision, min_rows=min_rows)
        judged = judge_threshold(threshold, confidence[own], is_right[own])
        folds.append({"fold": fold, "threshold": threshold.value, **judged})
    return {
        "promised": precision,
        **_coverage(*(sum(fold[name] for fold in folds) for name in ("n_rows", "n_confident", "n_right"))),
        "n_speakers": n_speakers,
        "is_guaranteed": n_speakers >= _MIN_SPEAKERS,
        "folds": folds,
    }


def margin(probabilities: Floats) -> npt.NDArray[np.float32]:
    """Return by how much the most probable label leads the second, shape (n_rows,), from 0 to 1.

    Parameters
    ----------
    probabilities
        Probability of each label, shape (n_rows, n_labels), with two labels or more.
    """
    ordered = np.partition(probabilities, -2, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2], np.float32)


def entropy(probabilities: Floats) -> npt.NDArray[np.float32]:
    """Return the entropy in nats, shape (n_rows,): 0 where one label has it all, ``log(n_labels)`` where all are alike.

    Parameters
    ----------
    probabilities
        Probability of each label, shape (n_rows, n_labels).
    """
    nats = -(probabilities * _logarithm(probabilities)).sum(axis=1)
    # Of one label that has it all, rounding gives -0, or less.
    return np.asarray(np.maximum(nats, 0), np.float32)


def _logarithm(probabilities: Floats) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))


def _scale(logits: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """Return logits at a temperature, less the largest of their row, for the exponential of many overflows."""
    scaled = logits / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return scaled


def _loss(logits: npt.NDArray[np.float64], of_target: npt.NDArray[np.float64], temperature: float) -> float:
    """Return the mean negative log-likelihood, in nats, of targets whose logits are `of_target`."""
    total = np.log(np.exp(_scale(logits, temperature)).sum(axis=1))
    return float(np.mean(total - (of_target - logits.max(axis=1)) / temperature))


def _figures(probabilities: Floats, targets: Integers) -> dict[str, float]:
    return {
        "nll": negative_log_likelihood(targets, probabilities),
        "ece": expected_calibration_error(targets, probabilities),
    }


def _coverage(n_rows: int, n_confident: int, n_right: int) -> dict[str, Any]:
    return {
        "n_rows": n_rows,
        "n_confident": n_confident,
        "n_right": n_right,
        "got": n_right / n_confident if n_confident else None,
        "coverage": n_confident / n_rows if n_rows else 0.0,
    }


def _each_fold(fold_of_row: Integers) -> Iterator[tuple[int, Booleans, Booleans]]:
    """Yield each fold's number, which rows are the others', and which its own."""
    is_in_some = fold_of_row != NO_FOLD
    folds = np.unique(fold_of_row[is_in_some]).tolist()
    if len(folds) < 2:
        raise UsageError(
            f"calibration: expected two folds of speakers or more, got {len(folds)}; leave it uncalibrated"
        )
    for fold in folds:
        own = fold_of_row == fold
        yield fold, is_in_some & ~own, own
