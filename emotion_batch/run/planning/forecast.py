"""Forecast the seconds of a run from the seconds of a sample. It works on numbers alone.

The estimate is Cochran's separate ratio estimate of a stratified sample (Sampling Techniques, 1977, 6.10): seconds by cost in each
stratum, times the stratum's cost. Its error includes how much a machine differs from itself from one stretch of work to the next,
because no number of recordings averages that out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# The strata that are looked at by themselves; a sample gives each a few recordings at least.
_MOST_STRATA = 8
# Of a stratum whose spread one recording cannot tell.
_UNKNOWN_SPREAD = 0.5
# Into which a sample is cut in time, to see what a machine is in one and in the next.
_STRETCHES = 8
# What a machine is from minute to minute and from day to day, that a sample of seconds does not see.
_LEAST_DRIFT = 0.04
# Two-sided 95 %.
_Z = 1.96
# Start-up is measured once, right before: the caches that it finds are warm.
_START_LOW, _START_HIGH = 0.7, 1.5


@dataclass(frozen=True)
class Range:
    """What is likely, and between what it is with some 95 %."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """Something by cost in one stratum, with the standard error relative to it."""

    value: float
    error: float


@dataclass(frozen=True)
class Outlook:
    """How long shards take.

    Attributes
    ----------
    shards_s
        Likely seconds of each shard, in the order in which they are begun.
    low, high
        By what all of them may be multiplied.
    start_s
        Likely seconds before the first and after the last.
    """

    shards_s: Floats
    low: float
    high: float
    start_s: float

    @property
    def work_s(self) -> Range:
        """Seconds of one worker for all."""
        total = float(self.shards_s.sum())
        return Range(self.low * total, total, self.high * total)

    def elapsed_s(self, n_workers: int) -> Range:
        """Return the seconds from the call to the end with so many workers.

        The hopeful end has the work spread evenly, as far as shards can be; the other one has each worker begin a shard
        too many, for Dask hands them out ahead.
        """
        longest = float(self.shards_s.max(initial=0.0))
        likely = end_of(self.shards_s, n_workers)
        low = max(float(self.shards_s.sum()) / n_workers, longest)
        tail = float(np.median(self.shards_s)) if len(self.shards_s) > n_workers else 0.0
        return Range(
            min(_START_LOW, self.low) * self.start_s + self.low * low,
            self.start_s + likely,
            max(_START_HIGH, self.high) * self.start_s + self.high * (likely + tail),
        )

    def count_workers(self, within_s: float, end: Callable[[Range], float]) -> int | None:
        """Return the fewest workers with which an end of the range is within so many seconds; None if no number is."""
        most = max(1, len(self.shards_s))
        if end(self.elapsed_s(most)) > within_s:
            return None
        least = 0
        while most - least > 1:
            middle = (least + most) // 2
            if end(self.elapsed_s(middle)) <= within_s:
                most = middle
            else:
                least = middle
        return most


def end_of(shards_s: Floats, n_workers: int) -> float:
    """Return when the last of shards is done, each begun in turn by the first worker that is free."""
    if n_workers >= len(shards_s):
        return float(shards_s.max(initial=0.0))
    free_s = [0.0] * n_workers
    for seconds in shards_s.tolist():
        heapq.heapreplace(free_s, free_s[0] + seconds)
    return max(free_s)


def divide(kinds: npt.NDArray[np.int64], sizes: Floats, costs: Floats) -> npt.NDArray[np.int64]:
    """Return the number of each recording's stratum: of one kind and of sizes within a factor of four.

    Parameters
    ----------
    kinds
        Number of each recording's ending, shape (n_recordings,).
    sizes, costs
        Bytes of each, and what it will cost. Strata that cost little in all are put together as the last one.
    """
    levels = np.floor(np.log2(np.maximum(sizes, 1.0)) / 2).astype(np.int64)
    keys, strata = np.unique(kinds * 64 + levels, return_inverse=True)
    if len(keys) > _MOST_STRATA:
        numbers = np.full(len(keys), _MOST_STRATA - 1)
        heaviest = np.argsort(-np.bincount(strata, costs), kind="stable")
        numbers[heaviest[: _MOST_STRATA - 1]] = np.arange(_MOST_STRATA - 1)
        strata = numbers[strata]
    found: npt.NDArray[np.int64] = strata.astype(np.int64)
    return found


def estimate(values: Floats, costs: Floats, n_all: int) -> Ratio:
    """Return what a stratum has by cost, from a sample of it.

    Parameters
    ----------
    values, costs
        Of the recordings of the sample, shape (n_sampled,), at least one.
    n_all
        Recordings of the stratum. Of one that was sampled whole nothing is left to chance.
    """
    ratio = float(values.sum() / costs.sum())
    n_sampled = len(values)
    if n_sampled >= n_all or not ratio:
        return Ratio(ratio, 0.0)
    if n_sampled == 1:
        return Ratio(ratio, _UNKNOWN_SPREAD)
    squares = float(((values - ratio * costs) ** 2).sum()) / (n_sampled - 1)
    error = math.sqrt((1 - n_sampled / n_all) * squares / n_sampled) / float(costs.mean())
    return Ratio(ratio, error / ratio)


def spread(totals: Floats, errors: Floats) -> float:
    """Return the standard error of a sum relative to it; of strata's totals and their own relative errors."""
    total = float(totals.sum())
    return float(np.sqrt(((totals * errors) ** 2).sum())) / total if total else 0.0


def margins(
    sampling_error: float, actual_s: Sequence[float], likely_s: Sequence[float], crowd: float = 0.0
) -> tuple[float, float]:
    """Return by what a likely time may be multiplied at its low and its high end.

    Parameters
    ----------
    sampling_error
        Relative standard error of what recordings were chosen.
    actual_s, likely_s
        Seconds of each block of the sample in the order in which they ended, and what the estimate gives for it. A
        run is one more stretch as a few blocks together are: what is shorter than these averages out over a run, and
        what a machine is for longer does not.
    crowd
        Share of the sample's time in which other work had the cores. It may be gone when the run begins, or take as
        much again.
    """
    n_stretches = min(len(actual_s), _STRETCHES)
    paces = (
        [
            sum(actual) / sum(likely)
            for actual, likely in zip(
                np.array_split(actual_s, n_stretches), np.array_split(likely_s, n_stretches), strict=True
            )
        ]
        if n_stretches
        else []
    )
    drift = float(np.std(paces, ddof=1)) if len(paces) > 1 else _UNKNOWN_SPREAD
    degrees = max(1, len(paces) - 1)
    # Student's t, to the second term of its expansion: Abramowitz and Stegun, 26.7.5.
    quantile = _Z + (_Z**3 + _Z) / (4 * degrees) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)
    half = quantile * math.hypot(sampling_error, max(_LEAST_DRIFT, drift))
    return (1 - crowd) / (1 + half), (1 + crowd) * (1 + half)
