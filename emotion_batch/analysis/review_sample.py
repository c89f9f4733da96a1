"""Choose the rows that a person checks, and estimate from the answers how often labels are right.

Some rows are drawn at random, by stratum, and only they count for the estimate. The others are those that teach the most.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from emotion_batch.analysis.scan import add_up, read_queries
from emotion_batch.analysis.statistics import wilson_interval
from emotion_batch.errors import UsageError

# How the intervals are made, for a person.
METHOD = "stratified sample; 95 % Wilson intervals for its effective size"
COLUMNS = (
    *("file", "channel", "start_s", "end_s", "status", "emotion", "confidence", "margin"),
    *("is_confident", "is_in_domain", "is_speech"),
)
RANDOM, INFORMATIVE = "random", "informative"
# The edges of the bins of confidence.
EDGES = (0.0, 0.5, 0.7, 0.9, 1.0)
# This is enough for two rows of each stratum (there are at most eight) and a few more.
LEAST_RANDOM = 20
MOST_ROWS = 10_000
# A single row cannot show how rows of its stratum differ.
_LEAST_OF_STRATUM = 2


@dataclass(frozen=True)
class Precision:
    """The share of right labels among rows of a table.

    Attributes
    ----------
    of
        Which rows: ``all``, ``is_confident``, or a range of confidence, e.g. ``0.5 to 0.7``.
    n_rows
        Number of such rows in the table, in strata in which one row or more was checked.
    n_unknown
        Number of further such rows, in strata in which no row was checked.
    n_checked, n_right
        Number of random rows that were checked, and of those with the right label; unweighted.
    share
        Estimated share of right labels among `n_rows`; None if nothing was checked.
    low, high
        95 % interval of the share.
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
    """Return the precision of all labels, of confident ones, and of each range of confidence, estimated from a sample.

    `answers` has the stratum of each row that was drawn at random and checked, and whether its label is right. `sizes` are the
    numbers of rows of each stratum in the table.
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


@dataclass(frozen=True)
class HeardShare:
    """How common a label is: `given` to rows of the table, and by ear, `share` with its 95 % interval."""

    label: str
    given: float
    share: float
    low: float
    high: float


def measure_shares(
    answers: Sequence[tuple[Stratum, str]], sizes: Mapping[Stratum, int], given: Mapping[str, float]
) -> list[HeardShare]:
    """Return how common each label of `given`, and each other answer, is by ear, in strata in which one row or more was checked.

    It is the stratified estimate (Cochran, "Sampling Techniques", 1977, section 5.3), which has no bias however wrong the labels are.
    `answers` has the stratum and the answer of each row that was drawn at random, and `sizes` the rows of each stratum in the table.
    """
    checked: dict[Stratum, Counter[str]] = {}
    for stratum, answer in answers:
        checked.setdefault(stratum, Counter())[answer] += 1
    found = []
    for label in dict.fromkeys([*given, *sorted({answer for _, answer in answers})] if answers else []):
        counts = [(sizes[stratum], own.total(), own[label]) for stratum, own in checked.items()]
        found.append(HeardShare(label, given.get(label, 0.0), *estimate_share(counts)))
    return found


def estimate_share(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float, float]:
    """Return the estimated share of right rows in several strata, and its 95 % interval.

    The share is the mean of the strata's shares, weighted by their sizes. It has no bias, because all rows of a stratum were
    equally likely to be drawn. The interval is Wilson's (1927) for the effective sample size, the number of rows that a plain
    random sample would need for the same variance; a stratum that is drawn whole adds no variance. An interval from the
    sample's own variance alone would have no width if all checked rows are right.

    `counts` has for each stratum its rows and how many were checked, both at least one, and how many were right.
    """
    total = sum(size for size, _, _ in counts)
    share = sum(size / total * right / n for size, n, right in counts)
    # Each stratum's part of the variance, as a multiple of its p (1 - p), and its smoothed p.
    parts = [((size / total) ** 2 * (1 - n / size) / n, (right + 1) / (n + 2)) for size, n, right in counts]
    if not sum(part for part, _ in parts):
        return share, share, share
    alike = 1 / sum(part for part, _ in parts)
    # Each share has one right and one wrong row added, so that no stratum counts as certain after few rows.
    mean = sum(size / total * (right + 1) / (n + 2) for size, n, right in counts)
    differing = mean * (1 - mean) / sum(part * smoothed * (1 - smoothed) for part, smoothed in parts)
    low, high = wilson_interval(share, min(alike, differing))
    # Rounding at 0 and 1 must not leave the share outside the interval.
    return share, min(low, share), max(high, share)


class Stratum(NamedTuple):
    """Rows with a confidence from `low` to below `high` (up to 1 if `high` is 1) that all are, or all are not, ``is_confident``."""

    low: float
    high: float
    is_confident: bool

    def __str__(self) -> str:
        """Return it as a sheet shows it."""
        return f"{self.low:g} to {self.high:g} {'confident' if self.is_confident else 'not confident'}"


STRATA = tuple(Stratum(low, high, sure) for low, high in itertools.pairwise(EDGES) for sure in (False, True))


class Row(NamedTuple):
    """The columns of a row of a label table that a sheet needs."""

    shard: int
    file: str
    channel: int | None
    start_s: float
    end_s: float
    emotion: str
    confidence: float
    margin: float
    is_in_domain: bool | None


_ROW = ", ".join(Row._fields)
_OF_STRATUM = f"SELECT {_ROW} FROM random WHERE stratum = $stratum ORDER BY lot, file, start_s LIMIT $n_drawn"  # noqa: S608
_CANDIDATES = f"SELECT {_ROW} FROM informative ORDER BY emotion, is_far, margin, lot, file"  # noqa: S608


@dataclass(frozen=True)
class DrawnRow:
    """A row to check: one of `n_drawn` random rows from the `n_stratum` rows of a stratum, or a chosen row without a stratum."""

    row: Row
    stratum: Stratum | None = None
    n_stratum: int = 0
    n_drawn: int = 0

    @property
    def part(self) -> str:
        """The part of the sheet that it belongs to."""
        return INFORMATIVE if self.stratum is None else RANDOM


def draw(chunks: Iterable[pa.Table], n_rows: int, n_random: int, seed: int) -> tuple[list[DrawnRow], int, int]:
    """Return `n_rows` rows to check in the order of the sheet, `n_random` of them random, and the number of labelled rows and of parts.

    `chunks` hold `COLUMNS` and the shard of each row; all rows of a recording are in the same one. The same rows and seed give the same
    result. The two parts take turns, and the random one is shuffled: a person who stops halfway has checked the rows that teach the
    most, and a sample that is still random within each stratum. A number outside its range raises UsageError.
    """
    if not LEAST_RANDOM <= n_rows <= MOST_ROWS:
        raise UsageError(f"size must be from {LEAST_RANDOM} to {MOST_ROWS:,} rows: {n_rows:,}")
    if n_random != 0 and not LEAST_RANDOM <= n_random <= n_rows:
        raise UsageError(
            f"random must be 0, or from {LEAST_RANDOM} to {n_rows:,} rows, which is the sheet's size: {n_random:,}"
        )
    if seed < 0:
        raise UsageError(f"seed must be a whole number of 0 or more: {seed}")
    queries = read_queries("sample")
    labelled = queries.pop("labelled")
    queries = {name: sql.replace("{labelled}", labelled) for name, sql in queries.items()}
    with add_up(chunks, queries, edges=EDGES[1:-1], seed=seed, n_rows=n_rows, n_random=n_random) as connection:
        counts = dict(connection.sql("SELECT stratum, sum(n)::BIGINT FROM sizes GROUP BY stratum").fetchall())
        sizes = [counts.get(number, 0) for number in range(len(STRATA))]
        drawn = []
        for number, n_drawn in enumerate(allocate(sizes, n_random)):
            found = connection.execute(_OF_STRATUM, {"stratum": number, "n_drawn": n_drawn}).fetchall()
            drawn += [DrawnRow(Row(*row), STRATA[number], sizes[number], n_drawn) for row in found]
        candidates = connection.sql(_CANDIDATES).fetchall()
        ((n_parts,),) = connection.sql("SELECT sum(n)::BIGINT FROM parts").fetchall()
    # The recordings of random rows are left out here, because a person listens to them anyway.
    chosen = _choose([Row(*row) for row in candidates], {one.row.file for one in drawn}, n_rows - n_random)
    order = np.random.default_rng(seed).permutation(len(drawn)).tolist()
    return _take_turns(chosen, [drawn[at] for at in order]), sum(sizes), n_parts


def _choose(candidates: Iterable[Row], files: set[str], n_rows: int) -> list[DrawnRow]:
    """Return rows of each label in turn, in domain and not, at most one from a recording and none from `files`."""
    groups = itertools.groupby(candidates, lambda row: (row.emotion, row.is_in_domain is not False))
    queues = [iter(list(group)) for _, group in groups]
    chosen: list[DrawnRow] = []
    while queues and len(chosen) < n_rows:
        for queue in list(queues):
            row = next((one for one in queue if one.file not in files), None)
            if row is None:
                queues.remove(queue)
            elif len(chosen) < n_rows:
                files.add(row.file)
                chosen.append(DrawnRow(row))
    return chosen


def allocate(sizes: Sequence[int], n_rows: int) -> list[int]:
    """Return how many of `n_rows` rows to draw from each stratum, or fewer if there are fewer in all.

    Half of them go evenly to all strata, because each has a figure of its own, and half by their sizes, for the figure of all
    rows. Each stratum gets at least two, or all that it has.
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
    """Return both lists evenly mixed, each in its own order."""
    placed = [
        ((at + 0.5) / len(rows), which, row) for which, rows in enumerate((one, other)) for at, row in enumerate(rows)
    ]
    return [row for _, _, row in sorted(placed, key=lambda item: item[:2])]
