"""Fit what makes confidence honest: the temperature, the threshold of `is_confident`, and the domain of the training rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emotion_batch.errors import UsageError
from emotion_batch.inference.confidence import Floats, apply_temperature, logarithm, scale
from emotion_batch.inference.domain import CLIP, Domain
from emotion_batch.training.metrics import Integers, expected_calibration_error, negative_log_likelihood
from emotion_batch.training.splits import NO_FOLD, Split

# Fewer held-out rows have no 99th percentile to speak of: of 20, it is the farthest.
LEAST_HELD_OUT = 20
_QUANTILE = 0.99
# A normal deviate's standard deviation, in median absolute deviations.
_MADS = 1.4826
# Learnt rows lie round several centres, for emotions and voices are clusters, and a plane between them is not like any:
# one for so many rows, up to so many. With 8, a third of pink noise passed for mean MFCC of TESS.
_ROWS_A_CENTRE, _MOST_CENTRES = 100, 20
Booleans = npt.NDArray[np.bool_]
_TEMPERATURES = (0.05, 20.0)
# Fewer speakers than this cannot show how much speakers differ.
MIN_SPEAKERS = 5


def fit_domain(learnt: Floats, held_out: Floats, *, flagged: Mapping[str, float] | None = None) -> Domain:
    """Return where learnt rows lie, and how far out rows like them do that were not learnt.

    Centres and scales are medians, so that some odd rows move neither; the scatter, of rows brought in to four standard
    deviations, is shrunk by Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    2004, so that it can be inverted however few rows there are. That it is one scatter round several centres is as in
    Lee et al., "A simple unified framework for detecting out-of-distribution samples", 2018; but the centres are
    found (k-means, of whitened rows), not given.

    Parameters
    ----------
    learnt
        Summaries of rows that were learnt from, shape (n_rows, n_dims), two or more.
    held_out
        Summaries of rows of the same kind that were not, of which one in a hundred will be flagged: learnt rows lie
        nearer the centre that was made of them, and would flag more.
    flagged
        Further shares for the card, as `flag_new_voices` gives them.

    Raises
    ------
    UsageError
        If fewer than `LEAST_HELD_OUT` rows were held out, fewer than two learnt, or summaries have no dimensions.
    """
    if len(held_out) < LEAST_HELD_OUT:
        raise UsageError(
            f"domain: expected {LEAST_HELD_OUT} rows or more that were not learnt from, got {len(held_out)}; "
            "hold more out, or leave is_in_domain unknown"
        )
    if len(learnt) < 2:
        raise UsageError(f"domain: expected two rows or more to learn from, got {len(learnt)}; give it more")
    if not learnt.shape[1]:
        raise UsageError("domain: expected features beside the level, got none; use two coefficients or more")
    from sklearn.cluster import KMeans

    values = learnt.astype(np.float64)
    middle = np.median(values, axis=0)
    whitening = _whiten(values - middle)
    n_centres = min(_MOST_CENTRES, max(1, len(values) // _ROWS_A_CENTRE))
    cluster = KMeans(n_centres, n_init=3, random_state=0).fit((values - middle) @ whitening).labels_
    centres = np.array([np.median(values[cluster == number], axis=0) for number in np.unique(cluster)])
    whitening = _whiten(values - centres[np.searchsorted(np.unique(cluster), cluster)])
    draft = Domain(centres.astype(np.float32), whitening.astype(np.float32), 1.0, len(learnt), len(held_out), {})
    distances = draft.distances(held_out)
    # One of the distances themselves, and above 0 where all are alike.
    threshold = max(float(np.quantile(distances, _QUANTILE, method="higher")), 1e-6)
    share = float(np.mean(distances > np.float32(threshold)))
    return Domain(
        draft.centres, draft.whitening, threshold, len(learnt), len(held_out), {"held_out": share, **(flagged or {})}
    )


def _whiten(deviations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what makes deviations alike in all directions, shape (n_dims, n_dims)."""
    from sklearn.covariance import ledoit_wolf

    scales = _MADS * np.median(np.abs(deviations), axis=0)
    # What is the same in most rows has no median deviation, and in all rows none: there a thousandth counts.
    scales = np.where(scales > 0, scales, np.maximum(deviations.std(axis=0), 1e-3))
    covariance, _ = ledoit_wolf(np.clip(deviations / scales, -CLIP, CLIP), assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    # Of rows that are all alike, nothing is left to shrink towards.
    return np.asarray(axes / np.sqrt(np.maximum(variances, 1e-6)) / scales[:, np.newaxis], np.float64)


def flag_new_voices(summaries: Floats, fold_of_row: npt.NDArray[np.integer], is_held_out: Booleans) -> dict[str, Any]:
    """Return how many rows of voices that were not learnt are flagged, each by a domain of the other folds' rows.

    Parameters
    ----------
    summaries
        Shape (n_rows, n_dims).
    fold_of_row
        Number of the fold that each row's speaker is in, shape (n_rows,); `splits.NO_FOLD` for rows to be left out.
    is_held_out
        Which rows thresholds are of, where their speaker is learnt, shape (n_rows,).

    Returns
    -------
    ``n_rows``, ``n_flagged``, ``share``, and ``folds``, a list with ``fold``, ``n_rows`` and ``n_flagged``.

    Raises
    ------
    UsageError
        If there are fewer than two folds, or too few rows in the others of one.
    """
    is_in_some = fold_of_row != NO_FOLD
    numbers = np.unique(fold_of_row[is_in_some]).tolist()
    if len(numbers) < 2:
        raise UsageError(f"domain: expected two folds of speakers or more, got {len(numbers)}; give it more speakers")
    folds = []
    for number in numbers:
        own = fold_of_row == number
        others = is_in_some & ~own
        domain = fit_domain(summaries[others & ~is_held_out], summaries[others & is_held_out])
        n_flagged = int(np.sum(~domain.contains(summaries[own])))
        folds.append({"fold": number, "n_rows": int(own.sum()), "n_flagged": n_flagged})
    n_rows, n_flagged = (sum(fold[name] for fold in folds) for name in ("n_rows", "n_flagged"))
    return {"n_rows": n_rows, "n_flagged": n_flagged, "share": n_flagged / n_rows, "folds": folds}


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

    logits = logarithm(probabilities)
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
        "is_guaranteed": n_speakers >= MIN_SPEAKERS,
        "folds": folds,
    }


def _loss(logits: npt.NDArray[np.float64], of_target: npt.NDArray[np.float64], temperature: float) -> float:
    """Return the mean negative log-likelihood, in nats, of targets whose logits are `of_target`."""
    total = np.log(np.exp(scale(logits, temperature)).sum(axis=1))
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
