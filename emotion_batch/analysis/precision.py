"""How often labels are right on an archive, from a stratified random sample that a person checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from emotion_batch.analysis.review_sample import STRATA, Stratum

# Of a normal deviate, 95 %.
_Z = 1.959963984540054
METHOD = "stratified sample; Wilson's interval, 95 %, of the sample's effective size"


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


def measure(answers: Iterable[tuple[Stratum, bool]], sizes: Mapping[Stratum, int]) -> list[Precision]:
    """Return what a sample says of all rows, of confident ones, and of each range of confidence.

    Parameters
    ----------
    answers
        Of each row that was drawn at random and checked, its stratum, and whether its label is right.
    sizes
        Rows of each stratum in the table.
    """
    checked: dict[Stratum, list[bool]] = {}
    for stratum, is_right in answers:
        checked.setdefault(stratum, []).append(is_right)
    kinds: dict[str, list[Stratum]] = {
        "all": list(STRATA),
        "is_confident": [stratum for stratum in STRATA if stratum.is_confident],
    }
    for stratum in STRATA:
        kinds.setdefault(f"{stratum.low:g} to {stratum.high:g}", []).append(stratum)
    return [
        _measure(name, [stratum for stratum in kind if sizes.get(stratum)], checked, sizes)
        for name, kind in kinds.items()
    ]


def _measure(
    name: str, kind: Sequence[Stratum], checked: Mapping[Stratum, Sequence[bool]], sizes: Mapping[Stratum, int]
) -> Precision:
    known = [stratum for stratum in kind if stratum in checked]
    n_rows = sum(sizes[stratum] for stratum in known)
    n_unknown = sum(sizes[stratum] for stratum in kind) - n_rows
    counts = [(sizes[stratum], len(checked[stratum]), sum(checked[stratum])) for stratum in known]
    n_checked, n_right = sum(n for _, n, _ in counts), sum(k for _, _, k in counts)
    if not counts:
        return Precision(name, 0, n_unknown, 0, 0, None, None, None)
    share, low, high = estimate_share(counts)
    return Precision(name, n_rows, n_unknown, n_checked, n_right, share, low, high)


def estimate_share(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float, float]:
    """Return the estimated share of right rows in several strata, and its 95 % interval.

    The share is the mean of the strata's shares, weighted by their sizes: without bias, as each row of a stratum was as
    likely to be drawn as any other. The interval is Wilson's (1927) for as many rows as a plain random sample would need
    to be as sure; where strata are drawn whole nothing is left to chance. An interval from the sample's own variance
    alone would have no width where all that was checked is right.

    Parameters
    ----------
    counts
        Of each stratum: its rows, at least one; those that were checked, at least one; those that were right.
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
    low, high = _wilson(share, min(alike, differing))
    # Of what was checked one knows: rounding at 0 and 1 must not leave the share outside.
    return share, min(low, share), max(high, share)


def _wilson(share: float, n: float) -> tuple[float, float]:
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)
