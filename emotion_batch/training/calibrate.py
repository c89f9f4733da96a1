"""Calibrate: fit the temperature, the threshold of `is_confident`, and the domain of the training rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from emotion_batch.errors import UsageError
from emotion_batch.inference.card import Card
from emotion_batch.inference.confidence import Floats, apply_temperature, logarithm
from emotion_batch.inference.domain import CLIP, Domain
from emotion_batch.training.metrics import measure_confidence
from emotion_batch.training.splits import NO_FOLD, Booleans, Integers, Split

# Fewer held-out rows have no useful 99th percentile: with 20 it is already the farthest row.
LEAST_HELD_OUT = 20
_QUANTILE = 0.99
# The standard deviation of a normal distribution, in median absolute deviations.
_MADS = 1.4826
# Training rows lie round several centres, because emotions and voices form clusters: one centre for this many rows, up to a maximum.
# With 8 centres, a third of pink noise passed for mean MFCC of TESS.
_ROWS_A_CENTRE, _MOST_CENTRES = 100, 20
_TEMPERATURES = (0.05, 20.0)
# Fewer speakers than this cannot show how much speakers differ.
MIN_SPEAKERS = 5


def fit_domain(
    learnt: Floats, held_out: Floats, *, flagged: Mapping[str, float] | None = None, distances: Floats | None = None
) -> Domain:
    """Return the domain of training rows: their centres and scatter, and the distance within which similar rows lie.

    Centres and scales are medians, so that a few odd rows move neither. The scatter, of rows clipped to four standard
    deviations, is shrunk by Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    2004, so that it can be inverted even with few rows. One scatter round several centres is used as in Lee et al., "A simple
    unified framework for detecting out-of-distribution samples", 2018, but k-means on whitened rows finds the centres.

    `learnt` are summaries of training rows, shape (n_rows, n_dims), two or more. `held_out` are those of `LEAST_HELD_OUT` or more
    similar rows that were not learnt from. The threshold flags one in a hundred of these, because training rows lie nearer to
    their own centres. If there are `distances`, as `measure_new_voices` gives them, it flags one in a hundred of those instead.
    `flagged` has further shares for the card, as `flag_new_voices` gives them. It raises UsageError if there are too few rows, or
    summaries have no dimensions.
    """
    if len(held_out) < LEAST_HELD_OUT:
        raise UsageError(
            f"domain: {len(held_out)} rows were held out, and at least {LEAST_HELD_OUT} are needed; hold more out, or leave "
            "is_in_domain unknown"
        )
    if len(learnt) < 2:
        raise UsageError(f"domain: it needs at least two rows to learn from, and there is {len(learnt)}")
    if not learnt.shape[1]:
        raise UsageError("domain: the level is the only feature; use at least two coefficients")
    from sklearn.cluster import KMeans

    values = learnt.astype(np.float64)
    middle = np.median(values, axis=0)
    whitening = _whiten(values - middle)
    n_centres = min(_MOST_CENTRES, max(1, len(values) // _ROWS_A_CENTRE))
    cluster = KMeans(n_centres, n_init=3, random_state=0).fit((values - middle) @ whitening).labels_
    centres = np.array([np.median(values[cluster == number], axis=0) for number in np.unique(cluster)])
    whitening = _whiten(values - centres[np.searchsorted(np.unique(cluster), cluster)])
    draft = Domain(centres.astype(np.float32), whitening.astype(np.float32), 1.0, len(learnt), len(held_out), {})
    name = "held_out" if distances is None else "new_voices"
    if distances is None:
        distances = draft.distances(held_out)
    # The threshold is one of the distances, and above 0 even if all are 0.
    threshold = max(float(np.quantile(distances, _QUANTILE, method="higher")), 1e-6)
    share = float(np.mean(distances > np.float32(threshold)))
    shares = {name: share, **(flagged or {})}
    return msgspec.structs.replace(draft, threshold=threshold, n_held_out=len(distances), flagged=shares)


def _whiten(deviations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a matrix that makes deviations equally large in all directions, shape (n_dims, n_dims)."""
    from sklearn.covariance import ledoit_wolf

    scales = _MADS * np.median(np.abs(deviations), axis=0)
    # A value that is the same in most rows has a median deviation of 0, so the standard deviation, or a thousandth, is used.
    scales = np.where(scales > 0, scales, np.maximum(deviations.std(axis=0), 1e-3))
    covariance, _ = ledoit_wolf(np.clip(deviations / scales, -CLIP, CLIP), assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    # If all rows are the same, the variances are 0.
    return np.asarray(axes / np.sqrt(np.maximum(variances, 1e-6)) / scales[:, np.newaxis], np.float64)


def measure_new_voices(summaries: Floats, fold_of_row: Integers) -> npt.NDArray[np.float32]:
    """Return the distances of rows of new voices, fold by fold, each from a domain of the other folds' rows.

    It raises UsageError as `flag_new_voices` does.
    """
    found = []
    for _, others, own in _each_fold(fold_of_row, "domain", "give it more speakers"):
        found.append(fit_domain(summaries[others], summaries[others][:LEAST_HELD_OUT]).distances(summaries[own]))
    return np.concatenate(found)


def flag_new_voices(summaries: Floats, fold_of_row: Integers, is_held_out: Booleans) -> dict[str, Any]:
    """Return how many rows of new voices are flagged, each by a domain of the other folds' rows.

    `summaries` has the shape (n_rows, n_dims). `is_held_out` says which rows of the other folds fit the
    threshold. It returns ``n_rows``, ``n_flagged``, ``share``, and ``folds``, a list with ``fold``, ``n_rows`` and
    ``n_flagged``. It raises UsageError if there are fewer than two folds, or too few rows in the others of one.
    """
    folds = []
    for number, others, own in _each_fold(fold_of_row, "domain", "give it more speakers"):
        domain = fit_domain(summaries[others & ~is_held_out], summaries[others & is_held_out])
        n_flagged = int(np.sum(~domain.contains(summaries[own])))
        folds.append({"fold": number, "n_rows": int(own.sum()), "n_flagged": n_flagged})
    n_rows, n_flagged = (sum(fold[name] for fold in folds) for name in ("n_rows", "n_flagged"))
    return {"n_rows": n_rows, "n_flagged": n_flagged, "share": n_flagged / n_rows, "folds": folds}


@dataclass(frozen=True)
class Temperature:
    """The divisor of logits, and the mean negative log-likelihood in nats of the fitted rows without and with it.

    A temperature above 1 makes the model less sure.
    """

    value: float
    nll_raw: float
    nll: float
    n_rows: int


@dataclass(frozen=True)
class Threshold:
    """The lowest confidence at which labels reach the target precision; None if none do.

    In the rows that it was chosen on, the share `coverage` of all rows reaches it, and the share `got` of these is right (None
    without a threshold). `promised` is the target precision.
    """

    value: float | None
    promised: float
    got: float | None
    coverage: float
    n_rows: int


def fit_temperature(probabilities: Floats, targets: Integers, *, source: Split) -> Temperature:
    """Return the temperature that makes held-out labels most likely (Guo et al., 2017, section 4.2).

    `source` is the split of the probabilities, shape (n_rows, n_labels). If random rows or words of known speakers are held
    out, the network is nearly always right: they gave temperatures of 0.05, and high confidence in nonsense. It raises UsageError if `source` is not speakers or corpora held out, or there are no rows.
    """
    if source not in (Split.SPEAKER_HELD_OUT, Split.CORPUS_HELD_OUT):
        raise UsageError(
            f"temperature: the split {source!s} has speakers that the model has heard, and predictions for other speakers are "
            "needed; leave the model uncalibrated, or train with at least two speakers"
        )
    if not len(targets):
        raise UsageError("temperature: there are no rows to fit it on")
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits = logarithm(probabilities)

    def loss(log_temperature: float) -> float:
        likely = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(np.take_along_axis(likely, targets[:, np.newaxis], axis=1).mean())

    # The loss is convex in 1 / T, so it has one minimum in log T.
    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded")
    raw = loss(0.0)
    if found.fun < raw:
        return Temperature(math.exp(found.x), raw, float(found.fun), len(targets))
    return Temperature(1.0, raw, raw, len(targets))


def calibrate_across_folds(
    probabilities: Floats, targets: Integers, fold_of_row: Integers, *, source: Split
) -> dict[str, Any]:
    """Return the effect of temperatures on speakers that they were not fitted on, and the temperature fitted on all.

    `probabilities`, shape (n_rows, n_labels), are those of the model of the row's fold, and `fold_of_row` has
    `splits.NO_FOLD` for rows to be left out. It raises UsageError if there are fewer than two folds, and as
    `fit_temperature` does.

    Returns
    -------
    ``temperature``, of all rows, but 1 if the other folds' temperatures did not improve the likelihood; ``n_rows``; ``raw``
    and ``calibrated`` with ``nll`` (nats) and ``ece`` over all folds; and ``folds``, a list with ``fold`` (its number),
    ``n_rows``, ``temperature`` (of the other folds' rows), ``raw`` and ``calibrated`` of each.
    """
    calibrated = np.zeros(probabilities.shape, np.float32)
    folds = []
    for fold, others, own in _each_fold(fold_of_row, "calibration", "leave it uncalibrated"):
        temperature = fit_temperature(probabilities[others], targets[others], source=source).value
        calibrated[own] = apply_temperature(probabilities[own], temperature)
        folds.append(
            {
                "fold": fold,
                "n_rows": int(own.sum()),
                "temperature": temperature,
                "raw": measure_confidence(targets[own], probabilities[own]),
                "calibrated": measure_confidence(targets[own], calibrated[own]),
            }
        )
    rows = fold_of_row != NO_FOLD
    raw, after = (measure_confidence(targets[rows], each[rows]) for each in (probabilities, calibrated))
    is_better = after["nll"] < raw["nll"]
    return {
        "temperature": fit_temperature(probabilities[rows], targets[rows], source=source).value if is_better else 1.0,
        "n_rows": int(rows.sum()),
        "raw": raw,
        "calibrated": after,
        "folds": folds,
    }


def take_over(card: Card) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return calibration and confidence of the model that a training started from; they name it, and guarantee nothing."""
    whose = {"taken_from": card.model_id, "names": [], "folds": []}
    calibration = {**card.calibration, **whose} if card.calibration else {}
    return calibration, {**card.confidence, **whose, "is_guaranteed": False} if card.confidence else {}


def choose_threshold(
    confidence: Floats, is_right: Booleans, *, precision: float = 0.9, min_rows: int = 20
) -> Threshold:
    """Return the lowest confidence at or above which the target share of labels is right.

    `min_rows` rows must reach it, because the share of fewer rows is chance. It raises UsageError if `precision` is not above 0 and
    at most 1.
    """
    if not 0 < precision <= 1:
        raise UsageError(f"precision must be above 0 and at most 1: {precision!r}")
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    n_rows = np.arange(1, len(falling) + 1)
    got = np.cumsum(is_right[order]) / n_rows
    # Rows of equal confidence reach a threshold together.
    is_last = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
    enough = np.flatnonzero(is_last & (n_rows >= min_rows) & (got >= precision))
    n_all = len(falling)
    if not len(enough):
        return Threshold(None, precision, None, 0.0, n_all)
    lowest = enough[-1]
    return Threshold(float(falling[lowest]), precision, float(got[lowest]), float(n_rows[lowest] / n_all), n_all)


def judge_threshold(threshold: Threshold, confidence: Floats, is_right: Booleans) -> dict[str, Any]:
    """Return the effect of a threshold on rows that it was not chosen on.

    That is ``n_rows``, ``n_confident`` (rows that reach it), ``n_right`` of these, ``got``, their share (None if no row
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
) -> dict[str, Any]:
    """Return the effect of thresholds on speakers that neither they nor their temperatures were fitted on.

    The arguments are those of `calibrate_across_folds` and `choose_threshold`, and it raises UsageError as they do.
    `n_speakers` is the number of speakers in these folds.

    Returns
    -------
    ``promised``, the result of `judge_threshold` over all folds, ``n_speakers``, ``is_guaranteed`` (False below five
    speakers), and ``folds``, a list with ``fold`` (its number), ``threshold`` (the other folds', or None) and the result of
    `judge_threshold` for each.
    """
    is_right = np.argmax(probabilities, axis=1) == targets
    folds = []
    for fold, others, own in _each_fold(fold_of_row, "calibration", "leave it uncalibrated"):
        temperature = fit_temperature(probabilities[others], targets[others], source=source).value
        confidence = apply_temperature(probabilities, temperature).max(axis=1)
        threshold = choose_threshold(confidence[others], is_right[others], precision=precision)
        judged = judge_threshold(threshold, confidence[own], is_right[own])
        folds.append({"fold": fold, "threshold": threshold.value, **judged})
    return {
        "promised": precision,
        **_coverage(*(sum(fold[name] for fold in folds) for name in ("n_rows", "n_confident", "n_right"))),
        "n_speakers": n_speakers,
        "is_guaranteed": n_speakers >= MIN_SPEAKERS,
        "folds": folds,
    }


def _coverage(n_rows: int, n_confident: int, n_right: int) -> dict[str, Any]:
    return {
        "n_rows": n_rows,
        "n_confident": n_confident,
        "n_right": n_right,
        "got": n_right / n_confident if n_confident else None,
        "coverage": n_confident / n_rows if n_rows else 0.0,
    }


def _each_fold(fold_of_row: Integers, thing: str, remedy: str) -> Iterator[tuple[int, Booleans, Booleans]]:
    """Yield each fold's number, the rows of the other folds, and its own rows."""
    is_in_some = fold_of_row != NO_FOLD
    folds = np.unique(fold_of_row[is_in_some]).tolist()
    if len(folds) < 2:
        raise UsageError(f"{thing}: it needs at least two folds of speakers; {remedy}")
    for fold in folds:
        own = fold_of_row == fold
        yield fold, is_in_some & ~own, own
