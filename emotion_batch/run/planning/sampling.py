"""Time a sample of the remaining recordings on the cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import IncompleteError
from emotion_batch.run.planning import forecast
from emotion_batch.run.planning.forecast import Floats
from emotion_batch.settings import Segments
from emotion_batch.storage.archive import SUFFIXES
from emotion_batch.storage.entries import Entry
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.tables.sharding import estimate_costs
from emotion_batch.worker.isolation import KILLING
from emotion_batch.worker.trial import Block, Taken, Timed, Trial

if TYPE_CHECKING:
    from emotion_batch.run.dask_cluster import Cluster

# Recordings of a stratum that are looked at first, each a shard by itself, and the windows of a long one.
_FEW, _FEW_ROWS = 2, 24
# Blocks that the sample is cut into, and how long one is at least, for a machine's moods are longer than milliseconds.
_MOST_BLOCKS, _BLOCK_S = 40, 0.5
# Windows are many only where there are few long recordings to have them of.
_ENOUGH_RECORDINGS, _MOST_SAMPLED = 24, 4_000
# What takes so many times what it was to take is left where it is.
_PATIENCE = 4
# Of a recording of which nothing is known but that others like it kill.
_USUAL_S = 0.01
# Of a recording whose size nobody has said.
_USUAL_BYTES = 100_000.0


@dataclass(frozen=True)
class Population:
    """What is left to do.

    Attributes
    ----------
    entries
        The recordings, of `entries.ENTRY_SCHEMA`, shard by shard.
    starts
        Where each shard begins in it, shape (n_shards,), none empty; in the order in which they are begun.
    sizes, costs
        Bytes of each recording, and what it is estimated to cost, shape (n_recordings,).
    strata
        Number of each recording's stratum.
    shards
        Number and manifest entry of each shard of a feature table; empty for an archive's.
    """

    entries: pa.Table
    starts: npt.NDArray[np.int64]
    sizes: Floats
    costs: Floats
    strata: npt.NDArray[np.int64]
    shards: tuple[tuple[int, ShardEntry], ...] = ()

    @classmethod
    def of(
        cls, shards: Sequence[pa.Table], segments: Segments, features: tuple[tuple[int, ShardEntry], ...] = ()
    ) -> Population:
        """Return the recordings of shards that are not empty; of a feature table's all rows cost alike."""
        entries = pa.concat_tables(shards)
        starts = np.concatenate([[0], np.cumsum([shard.num_rows for shard in shards])[:-1]]).astype(np.int64)
        sizes: Floats = entries["size"].fill_null(int(_USUAL_BYTES)).to_numpy().astype(np.float64)
        if features:
            return cls(entries, starts, sizes, np.ones(len(sizes)), np.zeros(len(sizes), np.int64), features)
        costs = estimate_costs(entries, segments)
        kinds = np.zeros(len(sizes), np.int64)
        for number, suffix in enumerate(SUFFIXES, 1):
            kinds[pc.ends_with(entries["file"], suffix, ignore_case=True).to_numpy(zero_copy_only=False)] = number
        return cls(entries, starts, sizes, costs, forecast.divide(kinds, sizes, costs))

    @property
    def n_strata(self) -> int:
        """Number of strata; none is empty."""
        return int(self.strata.max()) + 1

    def sum_by_shard(self, values: Floats) -> Floats:
        """Return the sums of what recordings have, by shard."""
        sums: Floats = np.add.reduceat(values, self.starts)
        return sums

    def take(self, numbers: Sequence[int]) -> tuple[Entry, ...]:
        """Return recordings by their numbers."""
        return tuple(Entry(**row) for row in self.entries.take(pa.array(numbers)).to_pylist())


@dataclass
class Sample:
    """What was timed.

    Attributes
    ----------
    taken
        What each recording took, by its number; the last time, where it was twice.
    singles, blocks
        What shards of one recording took, and blocks of many with the numbers of their recordings.
    gaps_s
        Between the end of a block and the beginning of the next by the same thread.
    ready_s
        Seconds of the call until each thread was at work.
    n_lost
        Blocks that came to nothing.
    elapsed_s
        Seconds that the timing took.
    """

    taken: dict[int, Taken] = field(default_factory=dict)
    singles: list[Timed] = field(default_factory=list)
    blocks: list[tuple[Timed, Sequence[int]]] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    ready_s: float = 0.0
    n_lost: int = 0
    elapsed_s: float = 0.0

    def all(self) -> list[Timed]:
        """Return all that was timed."""
        return [*self.singles, *(timed for timed, _ in self.blocks)]


def take_sample(
    connected: Cluster, trial: Trial, population: Population, *, sample_s: float, n_threads: int, started: float
) -> Sample:
    """Time a sample of recordings on a cluster, all its threads at once.

    Parameters
    ----------
    connected
        The cluster.
    trial
        What to do with a block.
    population
        What the sample is of.
    sample_s
        About how long it may take, in seconds.
    n_threads
        Of the cluster.
    started
        When the call began, of `time.monotonic`.

    Raises
    ------
    IncompleteError
        If nothing of it came to an end.
    """
    sampler = _Sampler(connected, trial, population, sample_s, n_threads)
    began = time.monotonic()
    for phase in (sampler.first_blocks, sampler.further_blocks):
        sampler.do(phase(), started)
    sampler.fall_back()
    sampler.sample.elapsed_s = time.monotonic() - began
    if not sampler.sample.taken:
        if isinstance(sampler.failure, IncompleteError):
            # It says itself what is to be done.
            raise sampler.failure
        raise IncompleteError(
            f"sample: expected some of {len(population.costs):,} recordings to be done, got none ({sampler.said}); "
            "run the same command again, or see what a worker's log says"
        )
    return sampler.sample


class _Sampler:
    def __init__(
        self, connected: Cluster, trial: Trial, population: Population, sample_s: float, n_threads: int
    ) -> None:
        self.sample = Sample()
        self.said = "no worker was in time"
        self.failure: BaseException | None = None
        self._connected = connected
        self._trial = trial
        self._population = population
        self._budget_s = sample_s * n_threads
        self._limit_s = _PATIENCE * sample_s
        self._n_threads = n_threads
        self._n_blocks = 0
        # Equal calls choose equal recordings.
        generator = np.random.default_rng(0)
        if population.shards:
            self._orders = [generator.permutation(len(population.shards))]
        else:
            members = (np.flatnonzero(population.strata == number) for number in range(population.n_strata))
            self._orders = [generator.permutation(stratum)[:_MOST_SAMPLED] for stratum in members]
        self._sizes = np.bincount(population.strata, minlength=population.n_strata)
        # Threads that have had a block, with when it ended.
        self._ends: dict[str, float] = {}
        self._cold: dict[int, Taken] = {}
        self._is_warm = False
        # Whether there is more to time than a block or two a thread.
        self._is_large = (len(population.shards) or len(population.costs)) > 2 * n_threads

    def do(self, blocks: list[tuple[Block, Sequence[int]]], started: float) -> None:
        """Do some blocks, as far as there is time for them."""
        numbers = dict(blocks)
        if not numbers:
            return
        deadline = time.monotonic() + self._limit_s
        found: list[Timed] = []
        for block, outcome in self._connected.run(self._trial, list(numbers)):
            if isinstance(outcome, BaseException):
                self.sample.n_lost += 1
                self.failure, self.said = outcome, f"{type(outcome).__name__}: {outcome}"
            else:
                found.append(outcome)
                self._take(block, outcome, numbers[block], started)
            if time.monotonic() > deadline and self.sample.taken:
                break
        # What is handed out within one bag follows at once.
        ends: dict[str, float] = {}
        for timed in sorted(found, key=lambda one: one.began):
            if timed.worker in ends:
                self.sample.gaps_s.append(max(0.0, timed.began - ends[timed.worker]))
            ends[timed.worker] = timed.ended

    def _take(self, block: Block, timed: Timed, numbers: Sequence[int], started: float) -> None:
        is_first = timed.worker not in self._ends
        self._ends[timed.worker] = timed.ended
        taken = dict(zip(numbers, timed.taken, strict=True))
        if is_first and not self._is_warm:
            self.sample.ready_s = max(self.sample.ready_s, time.monotonic() - started)
        if is_first and self._is_large:
            # What a thread imports, loads and builds comes once, and is no recording's.
            self._cold.update(taken)
            return
        self.sample.taken.update(taken)
        if len(numbers) == 1 and block.shard is None:
            self.sample.singles.append(timed)
        else:
            self.sample.blocks.append((timed, numbers))

    def fall_back(self) -> None:
        """Take what was done by threads that were still cold, where a stratum has nothing else."""
        strata = self._population.strata
        known = {strata[number] for number in self.sample.taken}
        self.sample.taken.update({number: one for number, one in self._cold.items() if strata[number] not in known})

    def _block(self, **values: Any) -> Block:
        self._n_blocks += 1
        return Block(self._n_blocks, **values)

    def first_blocks(self) -> list[tuple[Block, Sequence[int]]]:
        """Return some recordings of each stratum, each a shard by itself; of a feature table some shards."""
        if self._population.shards:
            return self._shards(0, 2 * self._n_threads + 1)
        n_each = max(_FEW, math.ceil(4 * self._n_threads / len(self._orders)))
        chosen = [order[:n_each] for order in self._orders]
        # In turn, for the first of each thread tell little.
        in_turn = sorted((place, number) for order in chosen for place, number in enumerate(order.tolist()))
        return [
            (self._block(entries=self._population.take([number]), most_rows=_FEW_ROWS), [number])
            for _, number in in_turn
        ]

    def further_blocks(self) -> list[tuple[Block, Sequence[int]]]:
        """Return blocks that are a small archive each: as much of each stratum as it has of the cost of all."""
        self._is_warm = True
        if self._population.shards:
            done = [timed.elapsed_s for timed, _ in self.sample.blocks] or [self._budget_s]
            n_first = 2 * self._n_threads + 1
            n_more = int(self._budget_s / float(np.mean(done))) - n_first
            return self._shards(n_first, n_first + max(0, n_more))
        wholes, rows_s = self._first_seconds()
        totals = wholes * self._sizes
        wanted_s = totals / totals.sum() * self._budget_s
        # Of few long recordings, more windows of each.
        rows = np.max(wanted_s / np.minimum(self._sizes, _ENOUGH_RECORDINGS) / rows_s)
        most_rows = int(np.clip(rows, _FEW_ROWS, max(_FEW_ROWS, self._budget_s / 8 / float(rows_s.mean()))))
        pieces_s = np.minimum(wholes, most_rows * rows_s)
        known = self._cold | self.sample.taken
        killing = {number for number, one in known.items() if one.status in KILLING}
        chosen: list[tuple[float, int, float]] = []
        for order, seconds, piece_s, n_all in zip(self._orders, wanted_s, pieces_s, self._sizes, strict=True):
            # What has killed a worker is known by now, and would again.
            members = order[[number not in killing for number in order.tolist()]]
            if not len(members):
                continue
            n_wanted = min(max(_FEW, math.ceil(seconds / piece_s)), len(members))
            # Those that were looked at already lie in the system's memory: they come last.
            fresh = np.roll(members, -sum(number in known for number in members.tolist()))
            is_all = n_wanted >= n_all
            chosen += [
                ((place + 0.5) / n_wanted, number, piece_s)
                for place, number in enumerate((members if is_all else fresh)[:n_wanted].tolist())
            ]
        if not chosen:
            return []
        # Each stratum evenly over the blocks, so that they are alike.
        chosen.sort()
        ends_s = np.cumsum([piece_s for _, _, piece_s in chosen])
        n_blocks = int(np.clip(ends_s[-1] / _BLOCK_S, 2 * self._n_threads, _MOST_BLOCKS))
        numbers = np.minimum((ends_s / ends_s[-1] * n_blocks - 1e-9).astype(int), n_blocks - 1)
        blocks: list[tuple[Block, Sequence[int]]] = []
        for one in np.unique(numbers).tolist():
            chosen_here = [
                number for (_, number, _), where in zip(chosen, numbers.tolist(), strict=True) if where == one
            ]
            entries = self._population.take(chosen_here)
            # As a shard has them, by name: also what is taken comes in this order.
            by_name = sorted(range(len(entries)), key=lambda place: entries[place].file)
            in_order = [chosen_here[place] for place in by_name]
            blocks.append(
                (self._block(entries=tuple(entries[place] for place in by_name), most_rows=most_rows), in_order)
            )
        return blocks

    def _first_seconds(self) -> tuple[Floats, Floats]:
        """Return the seconds of a whole recording and of a row, by stratum, as far as a few recordings tell."""
        taken, strata = self.sample.taken or self._cold, self._population.strata
        wholes, rows_s = np.full(len(self._orders), np.nan), np.full(len(self._orders), np.nan)
        for stratum in range(len(self._orders)):
            found = [
                one
                for number, one in taken.items()
                if strata[number] == stratum and not (one.status in KILLING and len(taken) > 1)
            ]
            if found:
                wholes[stratum] = np.mean([one.seconds / one.share for one in found])
                rows_s[stratum] = sum(one.seconds for one in found) / sum(one.n_rows for one in found)
        if np.isnan(wholes).all():
            wholes[:] = rows_s[:] = _USUAL_S
        wholes[np.isnan(wholes)] = np.nanmean(wholes)
        rows_s[np.isnan(rows_s)] = np.nanmean(rows_s)
        return np.maximum(wholes, 1e-5), np.maximum(rows_s, 1e-5)

    def _shards(self, start: int, stop: int) -> list[tuple[Block, Sequence[int]]]:
        blocks: list[tuple[Block, Sequence[int]]] = []
        bounds = [*self._population.starts.tolist(), len(self._population.costs)]
        for place in self._orders[0][start:stop].tolist():
            members = range(bounds[place], bounds[place + 1])
            blocks.append((self._block(shard=self._population.shards[place]), members))
        return blocks
