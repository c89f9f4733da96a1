"""Estimate from a sample what all the remaining work takes: seconds, rows, bytes, hours of audio, failures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emotion_batch.errors import Status
from emotion_batch.run.planning import forecast
from emotion_batch.run.planning.forecast import Floats, Outlook, Range
from emotion_batch.run.planning.sampling import Population, Sample
from emotion_batch.worker.trial import Timed

# Of rows in a process: as columns, as a table, as a part.
_COPIES = 3
_MOST_CROWD = 0.9


@dataclass(frozen=True)
class Estimates:
    """What a sample says of all that is left.

    Attributes
    ----------
    outlook
        How long it takes.
    crowd
        Share of the sample's time in which other work had the cores.
    n_rows
        Rows that there will be, about.
    n_failed
        Recordings that will have no result, or not all, about.
    statuses
        Of the recordings of the sample.
    audio_s
        Seconds of all recordings.
    is_exact
        Whether each recording said how long it is.
    part_bytes
        Of all parts, about.
    memory_bytes
        The most that a worker process takes, about.
    """

    outlook: Outlook
    crowd: float
    n_rows: float
    n_failed: float
    statuses: Mapping[str, int]
    audio_s: Range
    is_exact: bool
    part_bytes: float
    memory_bytes: float


def draw_conclusions(population: Population, sample: Sample, start_s: float) -> Estimates:
    """Return what a sample says of all.

    Parameters
    ----------
    population, sample
        What it is of, and what was timed.
    start_s
        Seconds that a run takes besides its shards.
    """
    shard_s, row_s = _overheads(sample)
    numbers = np.fromiter(sample.taken, np.int64)
    taken = list(sample.taken.values())
    shares = np.array([one.share for one in taken])
    n_rows = np.array([one.n_rows for one in taken]) / shares
    seconds = np.array([one.seconds for one in taken]) / shares + row_s * n_rows
    failed = np.array([one.status != Status.OK for one in taken], float)
    durations = np.array([math.nan if one.duration_s is None else one.duration_s for one in taken])
    costs, sizes, ones = population.costs, population.sizes + 1.0, np.ones(len(population.costs))
    seconds_each, error = _spread_out(population, numbers, seconds, costs)
    # A segment is a row each, windows are as many as there is of a recording.
    rows_each, _ = _spread_out(population, numbers, n_rows, costs if (n_rows > 1).any() else ones)
    failed_each, _ = _spread_out(population, numbers, failed, ones)
    audio_each, audio_error = _spread_out(population, numbers, np.nan_to_num(durations), sizes)
    actual_s = [timed.elapsed_s for timed, _ in sample.blocks]
    likely_s = [
        shard_s + sum(seconds_each[one] * sample.taken[one].share for one in members)
        for timed, members in sample.blocks
    ]
    crowd = min(_MOST_CROWD, sum(one.waited_s for one in sample.all()) / sum(one.elapsed_s for one in sample.all()))
    low, high = forecast.margins(error, actual_s, likely_s, crowd)
    gap_s = float(np.median(sample.gaps_s)) if sample.gaps_s else 0.0
    shards_s = population.sum_by_shard(seconds_each) + shard_s + gap_s
    audio_s = float(audio_each.sum())
    margin = 2 * audio_error * audio_s
    rows_by_shard = population.sum_by_shard(rows_each)
    part_bytes, memory_bytes = _bytes(sample, rows_by_shard)
    statuses = [str(one.status) for one in taken]
    return Estimates(
        outlook=Outlook(shards_s, low, high, start_s),
        crowd=crowd,
        n_rows=float(rows_each.sum()),
        n_failed=float(failed_each.sum()),
        statuses={status: statuses.count(status) for status in sorted(set(statuses))},
        audio_s=Range(max(0.0, audio_s - margin), audio_s, audio_s + margin),
        is_exact=len(taken) == len(costs) and not np.isnan(durations[failed == 0]).any(),
        part_bytes=part_bytes,
        memory_bytes=memory_bytes,
    )


def _overheads(sample: Sample) -> tuple[float, float]:
    """Return the seconds that a shard takes besides its recordings: of itself, and of each of its rows."""

    def rest_s(timed: Timed) -> float:
        return max(0.0, timed.elapsed_s - sum(one.seconds for one in timed.taken))

    many = [timed for timed, _ in sample.blocks]
    if not sample.singles:
        return sum(map(rest_s, many)) / max(1, len(many)), 0.0
    shard_s = float(np.mean([rest_s(one) for one in sample.singles]))
    n_rows = sum(taken.n_rows for one in many for taken in one.taken)
    left_s = sum(map(rest_s, many)) - shard_s * len(many)
    return shard_s, max(0.0, left_s / n_rows) if n_rows else 0.0


def _spread_out(
    population: Population, numbers: npt.NDArray[np.int64], values: Floats, measures: Floats
) -> tuple[Floats, float]:
    """Return what each recording has, by the ratio to `measures` in its stratum, and the relative error of the sum."""
    strata = population.strata[numbers]
    overall = forecast.Ratio(float(values.sum() / measures[numbers].sum()), 0.5)
    ratios = []
    for stratum in range(population.n_strata):
        here = strata == stratum
        n_all = int((population.strata == stratum).sum())
        ratios.append(forecast.estimate(values[here], measures[numbers[here]], n_all) if here.any() else overall)
    by_stratum = np.array([one.value for one in ratios])
    each: Floats = measures * by_stratum[population.strata]
    totals: Floats = np.bincount(population.strata, each, minlength=population.n_strata).astype(np.float64)
    return each, forecast.spread(totals, np.array([one.error for one in ratios]))


def _bytes(sample: Sample, rows_by_shard: Floats) -> tuple[float, float]:
    """Return the bytes of all parts, and those of the process with the largest shard."""
    done = sample.all()
    n_rows = [sum(one.n_rows for one in timed.taken) for timed in done]
    single = float(np.mean([one.part_bytes for one in sample.singles])) if sample.singles else 0.0
    extra_rows = sum(n_rows) - (len(done) if single else 0)
    extra_bytes = sum(one.part_bytes for one in done) - single * len(done)
    by_row = max(0.0, extra_bytes / extra_rows) if extra_rows > 0 else 0.0
    n_shards = len(rows_by_shard)
    part_bytes = n_shards * single + max(0.0, float(rows_by_shard.sum()) - (n_shards if single else 0)) * by_row
    in_memory = sum(one.row_bytes for one in done) / max(1, sum(n_rows))
    further = max(0.0, float(rows_by_shard.max()) - max(n_rows, default=0))
    return part_bytes, max(one.memory_bytes for one in done) + _COPIES * in_memory * further
