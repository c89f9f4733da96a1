"""Compute the statistics of a table from its rows, its manifest, its runs and the card of its model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy

from emotion_batch.analysis.calls import CallFigures, ChannelFigures, add_up_channels, find_calls
from emotion_batch.analysis.scan import N_BINS, N_LOTS, Drawn, Survey, read_queries
from emotion_batch.errors import Status
from emotion_batch.inference.card import Portrait
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.status import Throughput

# With fewer folders, their variance cannot be estimated.
_LEAST_FOLDERS = 10
_CONFIDENCE = 0.95
# The most folders that a page shows as rows of a table, and as columns of a picture.
N_FOLDERS, _N_COLUMNS = 24, 400
_N_MOMENTS = 48
# Number of rows to listen to for each label and stratum.
_N_DRAWN = 4
# Deeper folders are counted with their parents at this level.
_DEEPEST = 8
# If one level has more folders than this, only the largest are counted.
_MOST_FOLDERS = 20_000
_SQL = read_queries("report")


@dataclass(frozen=True)
class FolderCluster:
    """How a label is spread over the folders that have rows with a label, for the variance of its share.

    With l rows of the label and n rows of any label in a folder, the sums over all folders are of l * l (`of_label`), of l * n
    (`of_both`) and of n * n (`of_all`).
    """

    n_folders: int
    of_label: float
    of_both: float
    of_all: float


@dataclass(frozen=True)
class Coverage:
    """What became of the recordings that were listed.

    The manifest has `n_listed` recordings and `n_shards` shards, of which `n_complete` have a complete part. These parts have
    `n_surveyed` recordings, of which `n_labelled` have a row that is ``ok``, and `n_rows` rows, of which `n_ok` are.
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
    """Rows of one status other than ``ok``, and a few of them drawn at random."""

    status: str
    n_rows: int
    examples: tuple[Drawn, ...]


@dataclass(frozen=True)
class LabelFigures:
    """The rows that got one label, with their share of all rows with a label and its 95 % interval from `low` to `high`.

    `confidence` is their mean, None without rows. `n_confident`, `n_outside` and `n_silent` are confident, not in domain, and not speech.
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
    """One folder: the number of its rows, of failed rows, of rows out of domain, and of rows by label, in order.

    `distance` is the chi-square of its labels and failures against those of the whole table.
    """

    name: str
    n_rows: int
    n_failed: int
    n_outside: int
    by_label: tuple[int, ...]
    distance: float


@dataclass(frozen=True)
class Moment:
    """Number of rows of each label, in order, whose window starts from `start_s` to before `stop_s`."""

    start_s: float
    stop_s: float
    by_label: tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """All figures that the page shows.

    Attributes
    ----------
    table, info
        The table's URL, and what it is.
    coverage, failures
        What became of the recordings; by status, the most frequent first.
    labels
        In the card's order; empty for features.
    n_clusters
        Number of folders, if the intervals are computed over folders; None if over recordings.
    n_confident, n_outside, n_silent
        Number of such rows with a label; None if the model cannot tell.
    confident_bins, other_bins
        Rows by confidence, those that are confident and the others, in bins from 0 to 1.
    folders, columns, n_folders
        Folders for the table, by name if all fit, or else those that differ most; all folders by name for the picture, if
        they fit; and their number.
    moments
        Labels over time within recordings; empty without windows.
    channels
        Seconds heard, by channel.
    about, calls
        The label that the report is about, if one was named, and the recordings with the most of it.
    drawn
        Rows to listen to, by label and stratum.
    throughput
        From the records of the runs.
    portrait
        The model's card; None if it cannot be read.
    n_at_work, n_lost
        Number of runs that work on the table now, and of runs that died.
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
    channels: tuple[ChannelFigures, ...]
    drawn: tuple[Drawn, ...]
    throughput: Throughput
    portrait: Portrait | None
    n_at_work: int = 0
    n_lost: int = 0
    about: str | None = None
    calls: tuple[CallFigures, ...] = ()


def gather(
    table: str,
    info: TableInfo,
    manifest: Manifest,
    survey: Survey,
    throughput: Throughput,
    portrait: Portrait | None,
    about: str | None = None,
) -> Figures:
    """Return the figures of a table from what was read of it."""
    by_status = dict(survey.ask(_SQL["statuses"]))
    n_ok = by_status.pop(Status.OK, 0)
    confident, others = zip(*survey.ask(_SQL["bins"], n_bins=N_BINS), strict=True)
    lots = [Drawn(*row) for row in survey.ask(_SQL["lots"], n_lots=N_LOTS, n_drawn=_N_DRAWN)]
    clusters = {emotion: FolderCluster(*spread) for emotion, *spread in survey.ask(_SQL["clusters"])}
    n_clusters = next((one.n_folders for one in clusters.values() if one.n_folders >= _LEAST_FOLDERS), None)
    level, n_folders = _choose_level(survey.ask(_SQL["levels"], deepest=_DEEPEST))
    folders = _folders(survey, info.labels, level)
    shown = folders if len(folders) <= N_FOLDERS else sorted(folders, key=lambda one: -one.distance)[:N_FOLDERS]
    by_label = {emotion: sums for emotion, *sums in survey.ask(_SQL["labels"])}
    _, _, n_confident, n_outside, n_silent = by_label.pop(None)
    # Windows of one recording are not independent.
    n_effective = float(min(n_ok, survey.n_labelled))
    labels = []
    for label in info.labels:
        n_rows, *sums = by_label.get(label, (0, None, 0, 0, 0))
        share = n_rows / n_ok if n_ok else 0.0
        if n_clusters is not None and label in clusters:
            interval = wilson_interval(share, effective_size(n_rows, n_ok, clusters[label]), n_clusters)
        else:
            interval = wilson_interval(share, n_effective)
        labels.append(LabelFigures(label, n_rows, share, *interval, sums[0], *(n or 0 for n in sums[1:])))
    return Figures(
        table=table,
        info=info,
        coverage=Coverage(
            n_listed=manifest.n_recordings,
            n_surveyed=survey.n_recordings,
            n_labelled=survey.n_labelled,
            n_rows=n_ok + sum(by_status.values()),
            n_ok=n_ok,
            n_shards=len(manifest.shards),
            n_complete=len(survey.complete),
        ),
        failures=tuple(
            FailureFigures(status, n, tuple(one for one in lots if one.stratum == status))
            for status, n in by_status.items()
        ),
        labels=tuple(labels),
        n_clusters=n_clusters,
        n_confident=n_confident or 0,
        n_outside=n_outside,
        n_silent=n_silent,
        confident_bins=confident,
        other_bins=others,
        folders=tuple(shown),
        columns=tuple(folders) if len(folders) <= _N_COLUMNS else (),
        n_folders=n_folders,
        moments=_moments(survey, info),
        channels=add_up_channels(survey, info.labels),
        drawn=tuple(one for one in lots if one.emotion is not None),
        throughput=throughput,
        portrait=portrait,
        about=about,
        calls=() if about is None else find_calls(survey, info.labels, about),
    )


def wilson_interval(share: float, n: float, n_clusters: int | None = None) -> tuple[float, float]:
    """Return the 95 % interval of a share of `n` independent rows by Wilson's formula, which is 0 to 1 without rows.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927. If `n` was estimated over clusters, it uses
    Student's quantile, as do Dean and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered
    surveys", 2015.
    """
    if n <= 0:
        return 0.0, 1.0
    tail = (1 + _CONFIDENCE) / 2
    z = float(scipy.special.ndtri(tail) if n_clusters is None else scipy.special.stdtrit(n_clusters - 1, tail))
    weight = z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_size(n_yes: int, n_rows: int, cluster: FolderCluster) -> float:
    """Return the effective sample size of clustered rows for a share: at most the number of rows.

    It uses the variance of a ratio over clusters (Cochran, "Sampling Techniques", 1977, section 9A and equation 6.13).
    """
    share = n_yes / n_rows if n_rows else 0.0
    if not 0 < share < 1 or cluster.n_folders < 2:
        return float(n_rows)
    squares = cluster.of_label - 2 * share * cluster.of_both + share * share * cluster.of_all
    variance = cluster.n_folders / (cluster.n_folders - 1) * squares / n_rows**2
    return min(float(n_rows), share * (1 - share) / variance) if variance > 0 else float(n_rows)


def _choose_level(levels: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the deepest level whose folders all fit, or else the first with several folders; and the number of its folders."""
    fitting = [(level, n) for level, n in levels if n <= N_FOLDERS]
    if not fitting:
        return levels[0] if levels else (1, 0)
    # If all share a single folder, a level with several folders says more.
    deeper = next(((level, n) for level, n in levels if n > 1), fitting[-1])
    if fitting[-1][1] == 1:
        return deeper
    # The first of several levels with the same number is enough, because deeper names add nothing.
    return next(one for one in levels if one[1] == fitting[-1][1])


def _folders(survey: Survey, labels: tuple[str, ...], level: int) -> list[FolderFigures]:
    """Return the folders of a level by name, each with the distance of its labels and failures from those of all."""
    by_label, values = _count_labels(labels)
    found = survey.ask(_SQL["at_level"].format(by_label=by_label), level=level, most=_MOST_FOLDERS, **values)
    if not found:
        return []
    # Without labels, all ok rows count as one label.
    counts = np.array(
        [(*n_of, n_failed) if labels else (n_rows - n_failed, n_failed) for _, n_rows, n_failed, _, n_of in found]
    )
    n_rows, whole = counts.sum(axis=1), counts.sum(axis=0)
    expected = np.outer(n_rows, whole[whole > 0]) / n_rows.sum()
    distances = ((counts[:, whole > 0] - expected) ** 2 / expected).sum(axis=1).tolist()
    return [
        FolderFigures(name, n, n_failed, n_outside, tuple(n_of), distance)
        for (name, n, n_failed, n_outside, n_of), distance in zip(found, distances, strict=True)
    ]


def _moments(survey: Survey, info: TableInfo) -> tuple[Moment, ...]:
    """Return the number of windows by label over time, with so many windows in a column that a picture has room for all."""
    hop_s = info.segments.hop_s
    if hop_s is None or not info.labels:
        return ()
    ((n_windows,),) = survey.ask("SELECT coalesce(max(window_number) + 1, 0) FROM times")
    step = max(1, math.ceil(n_windows / _N_MOMENTS))
    by_label, values = _count_labels(info.labels)
    found = survey.ask(
        _SQL["moments"].format(by_label=by_label), step=step, n_moments=math.ceil(n_windows / step), **values
    )
    return tuple(Moment(at * step * hop_s, (at + 1) * step * hop_s, tuple(n_of)) for at, n_of in found)


def _count_labels(labels: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return SQL for a list with the number of rows of each label, and the values of its parameters."""
    values = {f"label_{number}": label for number, label in enumerate(labels)}
    return f"[{', '.join(f'sum(if(emotion = ${name}, n, 0))::BIGINT' for name in values)}]", values


def show_label(label: str) -> str:
    """Return a label, with its meaning if its name does not say it."""
    return "ps (pleasant surprise)" if label == "ps" else label


def show_share(part: float, whole: float = 1.0) -> str:
    """Return a share in percent; only all rows give 100%, and only no rows give 0%."""
    if not whole:
        return "–"
    value = part / whole
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:.0%}" if value in (0, 1) else f"{value:.1%}"


def show_roughly(part: float, whole: float = 1.0) -> str:
    """Return a share in percent for a sentence: whole percents from 10 on."""
    value = part / whole if whole else 0.0
    return f"{value:.0%}" if 0.1 <= value < 0.995 else show_share(part, whole).replace(".0%", "%")
