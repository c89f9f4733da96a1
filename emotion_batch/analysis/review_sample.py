"""Choose the rows that a person checks, and estimate from the answers how often labels are right.

Some rows are drawn at random, by stratum, and only they enter the estimate. The others are those that teach the most.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.analysis.statistics import wilson_interval
from emotion_batch.errors import Status, UsageError

# Of a normal deviate, 95 %.
METHOD = "stratified sample; Wilson's interval, 95 %, of the sample's effective size"
COLUMNS = (
    *("file", "start_s", "end_s", "status", "emotion", "confidence", "margin"),
    *("is_confident", "is_in_domain", "is_speech"),
)
RANDOM, INFORMATIVE = "random", "informative"
# Between these lie the bins of confidence.
EDGES = (0.0, 0.5, 0.7, 0.9, 1.0)
# Two rows of each stratum, of which there are at most eight, and some to spare.
LEAST_RANDOM = 20
MOST_ROWS = 10_000
# One row says nothing of how rows of its stratum differ.
_LEAST_OF_STRATUM = 2


@dataclass(frozen=True)
class Precision:
    """The share of right labels among rows of a table.

    Attributes
    ----------
    of
        Which rows: ``all``, ``is_confident``, or a range of confidence as ``0.5 to 0.7``.
    n_rows
        Rows of the table that it is about: those of strata in which one row or more was checked.
    n_unknown
        Further rows of that kind, of whose strata none was checked.
    n_checked, n_right
        Rows drawn at random that were checked, and those of them with the right label; unweighted.
    share
        Estimated share of right labels among `n_rows`; None where nothing was checked.
    low, high
        Its interval.
    """

    of: str
    n_rows: int
    n_unknown: int
    n_checked: int
    n_right: int
    share: float | None
    low: float | None
    high: float | None


def measure_precision(answers: Iterable[tuple[Stratum, bool]], sizes: Mapping[Stratum, int]) -> list[Precision]:
    """Return what a sample says of all rows, of confident ones, and of each range of confidence.

    `answers` has the stratum of each row that was drawn at random and checked, and whether its label is right. `sizes` are the rows
    of each stratum in the table.
    """
    checked: dict[Stratum, list[bool]] = {}
    for stratum, is_right in answers:
        checked.setdefault(stratum, []).append(is_right)
    kinds = {"all": list(STRATA), "is_confident": [stratum for stratum in STRATA if stratum.is_confident]}
    for stratum in STRATA:
        kinds.setdefault(f"{stratum.low:g} to {stratum.high:g}", []).append(stratum)
    found = []
    for name, kind in kinds.items():
        there = {stratum: sizes[stratum] for stratum in kind if sizes.get(stratum)}
        counts = [(size, len(checked[one]), sum(checked[one])) for one, size in there.items() if one in checked]
        n_rows, n_checked, n_right = map(sum, zip(*counts, strict=True)) if counts else (0, 0, 0)
        estimate = estimate_share(counts) if counts else (None, None, None)
        found.append(Precision(name, n_rows, sum(there.values()) - n_rows, n_checked, n_right, *estimate))
    return found


def estimate_share(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float, float]:
    """Return the estimated share of right rows in several strata, and its 95 % interval.

    The share is the mean of the strata's shares, weighted by their sizes: without bias, as each row of a stratum was as
    likely to be drawn as any other. The interval is Wilson's (1927) for as many rows as a plain random sample would need
    to be as sure; where strata are drawn whole nothing is left to chance. An interval from the sample's own variance
    alone would have no width where all that was checked is right.

    `counts` has for each stratum its rows and how many were checked, both at least one, and how many were right.
    """
    total = sum(size for size, _, _ in counts)
    share = sum(size / total * right / n for size, n, right in counts)
    # What each stratum adds to the variance, in shares of p (1 - p) there: by its weight, less what was drawn of it.
    parts = [((size / total) ** 2 * (1 - n / size) / n, (right + 1) / (n + 2)) for size, n, right in counts]
    if not sum(part for part, _ in parts):
        return share, share, share
    alike = 1 / sum(part for part, _ in parts)
    # Shares with a right and a wrong row added, so that no stratum counts as certain for what little was seen of it.
    mean = sum(size / total * (right + 1) / (n + 2) for size, n, right in counts)
    differing = mean * (1 - mean) / sum(part * smoothed * (1 - smoothed) for part, smoothed in parts)
    low, high = wilson_interval(share, min(alike, differing))
    # Of what was checked one knows: rounding at 0 and 1 must not leave the share outside.
    return share, min(low, share), max(high, share)


class Stratum(NamedTuple):
    """Rows with a confidence from `low` to below `high`, or to `high` if that is 1; all ``is_confident``, or none of them."""

    low: float
    high: float
    is_confident: bool

    def __str__(self) -> str:
        """Return it as a sheet has it."""
        return f"{self.low:g} to {self.high:g} {'confident' if self.is_confident else 'not confident'}"


STRATA = tuple(Stratum(low, high, sure) for low, high in itertools.pairwise(EDGES) for sure in (False, True))


class Row(NamedTuple):
    """A row of a label table, as far as a sheet needs it."""

    shard: int
    file: str
    start_s: float
    end_s: float
    emotion: str
    confidence: float
    margin: float
    is_in_domain: bool | None


@dataclass(frozen=True)
class DrawnRow:
    """A row that is to be checked, drawn as one of `n_drawn` from the `n_stratum` rows of a stratum; or chosen, without one."""

    row: Row
    stratum: Stratum | None = None
    n_stratum: int = 0
    n_drawn: int = 0

    @property
    def part(self) -> str:
        """Which part of the sheet it belongs to."""
        return INFORMATIVE if self.stratum is None else RANDOM


class _Smallest:
    """The few smallest of many, by a key; of what is larger than they are, nothing need be looked at."""

    def __init__(self, n_most: int) -> None:
        self._n_most = n_most
        self._heap: list[tuple[tuple[float, float], int, Row]] = []
        self._count = itertools.count()
        self.limit = np.inf if n_most else -np.inf

    def add(self, key: tuple[float, float], row: Row) -> None:
        """Take a row in, if it is one of them so far."""
        item = ((-key[0], -key[1]), next(self._count), row)
        if len(self._heap) < self._n_most:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)
        if len(self._heap) == self._n_most:
            self.limit = -self._heap[0][0][0]

    def rows(self) -> list[Row]:
        """Return them, the smallest first."""
        return [row for _, _, row in sorted(self._heap, reverse=True)]


class Drawing:
    """Rows that are read once, and the `n_rows` of them that are drawn, `n_random` of these at random.

    The same rows and seed give the same drawing. A number outside its range raises UsageError.
    """

    def __init__(self, n_rows: int, n_random: int, seed: int) -> None:
        if not LEAST_RANDOM <= n_rows <= MOST_ROWS:
            raise UsageError(f"size: expected from {LEAST_RANDOM} to {MOST_ROWS:,} rows, got {n_rows:,}")
        if n_random != 0 and not LEAST_RANDOM <= n_random <= n_rows:
            raise UsageError(
                f"random: expected 0, or from {LEAST_RANDOM} to {n_rows:,} rows, which is the sheet's size, got {n_random:,}"
            )
        if seed < 0:
            raise UsageError(f"seed: expected a whole number >= 0, got {seed}")
        self._n_rows, self._n_random, self._seed = n_rows, n_random, seed
        self._sizes = np.zeros(len(STRATA), np.int64)
        self._random = [_Smallest(n_random) for _ in STRATA]
        # By label, in domain and not; each may have to fill up what the others lack.
        self._informative: dict[tuple[str, bool], _Smallest] = {}

    @property
    def n_seen(self) -> int:
        """Rows with a label that were passed over."""
        return int(self._sizes.sum())

    def add(self, shard: int, rows: pa.Table) -> None:
        """Pass over the rows of one part, which hold `COLUMNS`; all rows of a recording are in the same one."""
        chance = np.random.default_rng([self._seed, shard]).random(rows.num_rows)
        is_ok = pc.equal(rows["status"], Status.OK)
        chance = chance[is_ok.to_numpy()]
        rows = rows.filter(is_ok).combine_chunks()
        if not rows.num_rows:
            return
        self._add_random(shard, rows, chance)
        if self._n_rows > self._n_random:
            self._add_informative(shard, rows, chance)

    def _add_random(self, shard: int, rows: pa.Table, chance: npt.NDArray[np.float64]) -> None:
        bins = np.searchsorted(EDGES[1:-1], rows["confidence"].to_numpy(), side="right")
        strata = 2 * bins + rows["is_confident"].fill_null(False).to_numpy()
        self._sizes += np.bincount(strata, minlength=len(STRATA))
        limits = np.array([one.limit for one in self._random])
        passing = np.flatnonzero(chance < limits[strata])
        for at, row in zip(passing.tolist(), _rows(shard, rows, passing), strict=True):
            self._random[int(strata[at])].add((float(chance[at]), 0.0), row)

    def _add_informative(self, shard: int, rows: pa.Table, chance: npt.NDArray[np.float64]) -> None:
        """Keep the rows whose label leads the next by the least, by label, in domain and not; of a recording one."""
        margin = np.nan_to_num(rows["margin"].to_numpy().astype(np.float64), nan=1.0)
        # What is not speech has no emotion to be learnt.
        is_speech = rows["is_speech"].fill_null(True).to_numpy()
        encoded = rows["emotion"].combine_chunks().dictionary_encode()
        numbers, is_far = encoded.indices.to_numpy(), ~rows["is_in_domain"].fill_null(True).to_numpy()
        for number, emotion in enumerate(encoded.dictionary.to_pylist()):
            for far in (False, True):
                kept = self._informative.setdefault((emotion, far), _Smallest(self._n_rows))
                passing = np.flatnonzero((numbers == number) & (is_far == far) & is_speech & (margin <= kept.limit))
                passing = passing[np.lexsort((chance[passing], margin[passing]))]
                files: set[str] = set()
                for at, row in zip(passing.tolist(), _rows(shard, rows, passing), strict=True):
                    if row.file not in files:
                        files.add(row.file)
                        kept.add((float(margin[at]), float(chance[at])), row)

    def finish(self) -> list[DrawnRow]:
        """Return what was drawn, in the order of the sheet.

        The two parts take turns, and the random one is shuffled: whoever stops halfway has checked the rows that teach
        the most, and a sample that is still random within each stratum.
        """
        drawn = []
        for stratum, size, n_drawn, smallest in zip(
            STRATA, self._sizes.tolist(), allocate(self._sizes.tolist(), self._n_random), self._random, strict=True
        ):
            drawn += [DrawnRow(row, stratum, size, n_drawn) for row in smallest.rows()[:n_drawn]]
        order = np.random.default_rng([self._seed, 0, 1]).permutation(len(drawn))
        return _take_turns(self._choose({one.row for one in drawn}), [drawn[at] for at in order.tolist()])

    def _choose(self, taken: set[Row]) -> list[DrawnRow]:
        """Return the rows that teach the most, of each label and domain in turn."""
        queues = [iter(self._informative[group].rows()) for group in sorted(self._informative)]
        # Those that are drawn by chance are checked anyway, and so are the other segments of such recordings.
        files = {row.file for row in taken}
        chosen: list[DrawnRow] = []
        n_wanted = self._n_rows - self._n_random
        while queues and len(chosen) < n_wanted:
            for queue in list(queues):
                row = next((one for one in queue if one.file not in files), None)
                if row is None:
                    queues.remove(queue)
                elif len(chosen) < n_wanted:
                    files.add(row.file)
                    chosen.append(DrawnRow(row))
        return chosen


def allocate(sizes: Sequence[int], n_rows: int) -> list[int]:
    """Return how many of `n_rows` rows to draw from each stratum, or fewer if there are fewer in all.

    Half of them go evenly to all strata, because each has a figure of its own, and half by their sizes, because of the figure of
    all rows. None gets fewer than two, or than it has.
    """
    total, n_strata = sum(sizes), sum(size > 0 for size in sizes)
    if not total or not n_rows:
        return [0] * len(sizes)
    wanted = [n_rows / 2 * (1 / n_strata + size / total) if size else 0.0 for size in sizes]
    least = [min(size, _LEAST_OF_STRATUM) for size in sizes]
    drawn = [min(size, max(few, int(share))) for size, few, share in zip(sizes, least, wanted, strict=True)]
    while (left := min(n_rows, total) - sum(drawn)) != 0:
        step = 1 if left > 0 else -1
        open_to = [at for at, n in enumerate(drawn) if (n < sizes[at] if step > 0 else n > least[at])]
        at = max(open_to, key=lambda at: step * (wanted[at] - drawn[at]))
        drawn[at] += step
    return drawn


def _take_turns(one: Sequence[DrawnRow], other: Sequence[DrawnRow]) -> list[DrawnRow]:
    """Return both, each in its order, evenly mixed."""
    placed = [
        ((at + 0.5) / len(rows), which, row) for which, rows in enumerate((one, other)) for at, row in enumerate(rows)
    ]
    return [row for _, _, row in sorted(placed, key=lambda item: item[:2])]


def _rows(shard: int, rows: pa.Table, at: npt.NDArray[np.int64]) -> list[Row]:
    if not len(at):
        return []
    found: Mapping[str, list[Any]] = rows.select(list(Row._fields[1:])).take(pa.array(at)).to_pydict()
    return [Row(shard, *values) for values in zip(*found.values(), strict=True)]
