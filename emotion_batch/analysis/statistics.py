"""Put together the statistics of a table, from its rows, its manifest, its runs and the card of its model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from scipy.special import ndtri, stdtrit

from emotion_batch.analysis.scan import N_BINS, Cell, Drawn, FolderCluster, Survey
from emotion_batch.errors import Status
from emotion_batch.inference.card import Portrait
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.status import Throughput

# Of fewer folders, how much they differ cannot be told.
_LEAST_FOLDERS = 10
_CONFIDENCE = 0.95
# What a page can show of them: as rows of a table, and as columns of a picture.
N_FOLDERS, _N_COLUMNS = 24, 400
_N_MOMENTS = 48


@dataclass(frozen=True)
class Coverage:
    """What became of the recordings that were listed.

    Attributes
    ----------
    n_listed
        Recordings of the manifest.
    n_surveyed, n_labelled
        Those of complete parts; of these, those with a row that is ``ok``.
    n_rows, n_ok
        Rows of complete parts, and those that are ``ok``.
    n_shards, n_complete
        Shards of the manifest, and those whose part is complete.
    """

    n_listed: int
    n_surveyed: int
    n_labelled: int
    n_rows: int
    n_ok: int
    n_shards: int
    n_complete: int

    @property
    def n_failed(self) -> int:
        """Recordings of complete parts without any row that is ``ok``."""
        return self.n_surveyed - self.n_labelled

    @property
    def is_complete(self) -> bool:
        """Whether all parts are there."""
        return 0 < self.n_shards == self.n_complete


@dataclass(frozen=True)
class FailureFigures:
    """Rows of one status but ``ok``, and a few of them drawn by lot."""

    status: str
    n_rows: int
    examples: tuple[Drawn, ...]


@dataclass(frozen=True)
class LabelFigures:
    """What got one label.

    Attributes
    ----------
    label, n_rows, share
        The label, its rows, and their share of all that have a label.
    low, high
        95 % interval of the share.
    confidence
        Mean; None without rows.
    n_confident, n_outside, n_silent
        Rows that are confident, not in domain, and not speech.
    """

    label: str
    n_rows: int
    share: float
    low: float
    high: float
    confidence: float | None
    n_confident: int
    n_outside: int
    n_silent: int


@dataclass(frozen=True)
class FolderFigures:
    """One folder: its rows, those without a label, those not in domain, and those of each label in order.

    `distance` is the chi-square of its labels and failures against those of the whole.
    """

    name: str
    n_rows: int
    n_failed: int
    n_outside: int
    by_label: tuple[int, ...]
    distance: float


@dataclass(frozen=True)
class Moment:
    """Rows of each label in order whose window starts from `start_s` to before `stop_s`."""

    start_s: float
    stop_s: float
    by_label: tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """All that the page shows.

    Attributes
    ----------
    table, info
        The table's URL, and what it is.
    coverage, failures
        What became of the recordings; by status, the most frequent first.
    labels
        In the card's order; empty for features.
    n_clusters
        Folders that the intervals are computed over; None if over recordings.
    n_confident, n_outside, n_silent
        Of rows with a label; None where no row can tell.
    confident_bins, other_bins
        Rows by confidence, those that are confident and the others, in bins from 0 to 1.
    folders, columns, n_folders
        Folders as rows, by name if all fit or else those that differ most; all of them by name, if a picture has room;
        how many there are.
    moments
        Labels over time within recordings; empty without windows.
    drawn
        Rows to listen to, by label and stratum.
    throughput
        From the records of the runs.
    portrait
        The model's card; None where there is none to be read.
    n_at_work, n_lost
        Runs that work on the table, and that died at it.
    """

    table: str
    info: TableInfo
    coverage: Coverage
    failures: tuple[FailureFigures, ...]
    labels: tuple[LabelFigures, ...]
    n_clusters: int | None
    n_confident: int
    n_outside: int | None
    n_silent: int | None
    confident_bins: tuple[int, ...]
    other_bins: tuple[int, ...]
    folders: tuple[FolderFigures, ...]
    columns: tuple[FolderFigures, ...]
    n_folders: int
    moments: tuple[Moment, ...]
    drawn: tuple[Drawn, ...]
    throughput: Throughput
    portrait: Portrait | None
    n_at_work: int = 0
    n_lost: int = 0


def gather(
    table: str,
    info: TableInfo,
    manifest: Manifest,
    survey: Survey,
    throughput: Throughput,
    portrait: Portrait | None,
    *,
    n_at_work: int = 0,
    n_lost: int = 0,
) -> Figures:
    """Return the figures of a table from what was read of it."""
    by_status: Counter[str] = Counter()
    for cell in survey.cells:
        by_status[cell.status] += cell.n
    usable = [cell for cell in survey.cells if cell.emotion is not None]
    n_ok = by_status[Status.OK]
    clusters = next(iter(survey.clusters.values()), None)
    is_clustered = clusters is not None and clusters.n_folders >= _LEAST_FOLDERS
    folders = _folders(survey, info.labels)
    shown = folders if len(folders) <= N_FOLDERS else sorted(folders, key=lambda one: -one.distance)[:N_FOLDERS]
    bins = [[0] * N_BINS for _ in range(2)]
    for cell in usable:
        if cell.bin_number is not None:
            bins[bool(cell.is_confident)][cell.bin_number] += cell.n
    return Figures(
        table=table,
        info=info,
        coverage=Coverage(
            n_listed=manifest.n_recordings,
            n_surveyed=survey.n_recordings,
            n_labelled=survey.n_labelled,
            n_rows=sum(by_status.values()),
            n_ok=n_ok,
            n_shards=len(manifest.shards),
            n_complete=len(survey.complete),
        ),
        failures=tuple(
            FailureFigures(status, n, tuple(one for one in survey.failed if one.stratum == status))
            for status, n in sorted(by_status.items(), key=lambda one: (-one[1], one[0]))
            if status != Status.OK
        ),
        labels=tuple(
            _label(label, [cell for cell in usable if cell.emotion == label], n_ok, survey, is_clustered=is_clustered)
            for label in info.labels
        ),
        n_clusters=clusters.n_folders if is_clustered and clusters is not None else None,
        n_confident=sum(cell.n for cell in usable if cell.is_confident),
        n_outside=_count(usable, "is_in_domain"),
        n_silent=_count(usable, "is_speech"),
        confident_bins=tuple(bins[True]),
        other_bins=tuple(bins[False]),
        folders=tuple(sorted(shown, key=lambda one: one.name) if len(folders) <= N_FOLDERS else shown),
        columns=tuple(folders) if len(folders) <= _N_COLUMNS else (),
        n_folders=survey.n_folders,
        moments=_moments(survey.times, info),
        drawn=survey.drawn,
        throughput=throughput,
        portrait=portrait,
        n_at_work=n_at_work,
        n_lost=n_lost,
    )


def wilson_interval(share: float, n: float, n_clusters: int | None = None) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's formula.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927; for clusters with the effective
    number and Student's quantile, as in Dean and Pagano, "Evaluating confidence interval methods for binomial proportions
    in clustered surveys", 2015.

    Parameters
    ----------
    share
        The share, from 0 to 1.
    n
        How many independent rows it is known from; with 0 the interval is everything.
    n_clusters
        Clusters that `n` was estimated over; None if it was not.
    """
    if n <= 0:
        return 0.0, 1.0
    tail = (1 + _CONFIDENCE) / 2
    z = float(ndtri(tail) if n_clusters is None else stdtrit(n_clusters - 1, tail))
    weight = z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_size(n_yes: int, n_rows: int, cluster: FolderCluster) -> float:
    """Return how many independent rows clustered ones are worth for a share: at most as many as there are.

    By the variance of a ratio over clusters (Cochran, "Sampling Techniques", 1977, section 9A and equation 6.13).
    """
    share = n_yes / n_rows if n_rows else 0.0
    if not 0 < share < 1 or cluster.n_folders < 2:
        return float(n_rows)
    squares = cluster.of_label - 2 * share * cluster.of_both + share * share * cluster.of_all
    variance = cluster.n_folders / (cluster.n_folders - 1) * squares / n_rows**2
    return min(float(n_rows), share * (1 - share) / variance) if variance > 0 else float(n_rows)


def _label(label: str, cells: list[Cell], n_ok: int, survey: Survey, *, is_clustered: bool) -> LabelFigures:
    n_rows = sum(cell.n for cell in cells)
    # Windows of a recording are no independent witnesses.
    n_effective, n_clusters = float(min(n_ok, survey.n_labelled)), None
    if is_clustered and label in survey.clusters:
        cluster = survey.clusters[label]
        n_effective, n_clusters = effective_size(n_rows, n_ok, cluster), cluster.n_folders
    low, high = wilson_interval(n_rows / n_ok if n_ok else 0.0, n_effective if n_ok else 0.0, n_clusters)
    return LabelFigures(
        label=label,
        n_rows=n_rows,
        share=n_rows / n_ok if n_ok else 0.0,
        low=low,
        high=high,
        confidence=sum(cell.total or 0.0 for cell in cells) / n_rows if n_rows else None,
        n_confident=sum(cell.n for cell in cells if cell.is_confident),
        n_outside=sum(cell.n for cell in cells if cell.is_in_domain is False),
        n_silent=sum(cell.n for cell in cells if cell.is_speech is False),
    )


def _count(cells: Iterable[Cell], name: str) -> int | None:
    """Return of how many rows something is not so; None if it cannot be told of any."""
    known = [cell for cell in cells if getattr(cell, name) is not None]
    return sum(cell.n for cell in known if not getattr(cell, name)) if known else None


def _folders(survey: Survey, labels: tuple[str, ...]) -> list[FolderFigures]:
    """Return the folders by name, each with how far its labels and failures are from those of all."""
    counts: dict[str, Counter[str | None]] = defaultdict(Counter)
    outside: Counter[str] = Counter()
    for one in survey.folders:
        # Without labels, what is ok counts as one thing.
        counts[one.name][(one.emotion or "") if one.is_ok else None] += one.n
        outside[one.name] += one.n_outside
    kinds = [*(labels or ("",)), None]
    whole = {kind: sum(folder[kind] for folder in counts.values()) for kind in kinds}
    n_whole = sum(whole.values())
    found = []
    for name, folder in sorted(counts.items()):
        n_rows = folder.total()
        expected: Mapping[str | None, float] = {kind: n_rows * n / n_whole for kind, n in whole.items() if n}
        distance = sum((folder[kind] - n) ** 2 / n for kind, n in expected.items())
        by_label = tuple(folder[label] for label in labels)
        found.append(FolderFigures(name, n_rows, folder[None], outside[name], by_label, distance))
    return found


def _moments(times: tuple[tuple[int, str | None, int], ...], info: TableInfo) -> tuple[Moment, ...]:
    """Return windows by label, so many together that a picture has room for all."""
    hop_s = info.segments.hop_s
    if not times or hop_s is None:
        return ()
    n_windows = 1 + max(number for number, _, _ in times)
    step = math.ceil(n_windows / _N_MOMENTS)
    counts: dict[int, Counter[str | None]] = defaultdict(Counter)
    for number, label, n in times:
        counts[number // step][label] += n
    edges = range(0, step * math.ceil(n_windows / step) + 1, step)
    return tuple(
        Moment(start * hop_s, stop * hop_s, tuple(counts[start // step][label] for label in info.labels))
        for start, stop in pairwise(edges)
    )


def show_count(value: float) -> str:
    """Return a number of things."""
    return f"{value:,.0f}"


def show_share(part: float, whole: float = 1.0) -> str:
    """Return a share in percent: what is not all does not read as all, nor what is not nothing as nothing."""
    if not whole:
        return "–"
    value = part / whole
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:.0%}" if value in (0, 1) else f"{value:.1%}"


def show_roughly(part: float, whole: float = 1.0) -> str:
    """Return a share in percent as a sentence has it: whole percents from 10 on."""
    value = part / whole if whole else 0.0
    return f"{value:.0%}" if 0.1 <= value < 0.995 else show_share(part, whole).replace(".0%", "%")


def show_duration(seconds: float) -> str:
    """Return a time in words for a person."""
    if seconds < 1:
        return f"{seconds * 1000:,.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"
