"""Plan a run without writing anything: what it would do, and how long it would take.

Each thread does real shards of all kinds and sizes for some seconds (`worker.trial`). The total time follows from their costs by kind
and size (the separate ratio estimate of Cochran, Sampling Techniques, 1977, 6.10), and the range from how much these shards differ.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy

from emotion_batch.errors import IncompleteError, Status, UsageError, counted
from emotion_batch.inference.bundle import EXECUTABLE, read_checked
from emotion_batch.progress import Watcher
from emotion_batch.run.driver import PACKAGE, import_cluster
from emotion_batch.run.scheduler import Scheduler
from emotion_batch.run.shards import Left, Outlook, Range, find_left, find_witness
from emotion_batch.settings import AnySettings, Segments
from emotion_batch.storage.archive import SUFFIXES
from emotion_batch.storage.entries import Entry
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts, schema
from emotion_batch.tables.sharding import estimate_costs
from emotion_batch.worker.job import TablePlace
from emotion_batch.worker.preflight import Probe, read_versions
from emotion_batch.worker.task import Task
from emotion_batch.worker.trial import Share, Timed, Trial

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
_USUAL_WORKERS, _JOIN_TIMEOUT_S = (10, 100), 30
_MOST_STRATA, _MOST_SAMPLED = 8, 32_768
# The speed of a machine changes from minute to minute and from day to day, which a sample of seconds does not show.
_LEAST_DRIFT, _UNKNOWN, _MOST_CROWD = 0.04, 0.5, 0.9
# Dask and the table's storage take this long for a shard. A process holds its rows as columns, as a table and as a part.
_BESIDE_S, _COPIES = 0.05, 3


@dataclass(frozen=True)
class Times:
    """Seconds from the call to the end of a run on `workers` one-thread workers, each with a core like those of the sample."""

    workers: int
    is_here: bool
    low_s: float
    likely_s: float
    high_s: float


@dataclass(frozen=True)
class Due:
    """Whether a run that begins now is done by an hour: ``yes`` and ``no`` hold for the whole range, else ``perhaps``.

    The answer is for `workers` workers; `workers_likely` and `workers_sure` are the fewest whose likely or late end is in time,
    None if no number is enough.
    """

    at: str
    within_s: float
    workers: int
    is_done: str
    workers_likely: int | None
    workers_sure: int | None


@dataclass(frozen=True)
class Plan:
    """What a run would do, and how long it would take.

    Except `n_recordings` and `n_parts`, all is about the work that is left: segments cover `heard_s` of the audio (chosen as speech or by a
    list if `is_selective`), `n_unsized` recordings have an unknown size, parts will hold `n_rows` and `part_bytes`, a worker process takes
    at most `memory_bytes`, and `n_failed` recordings have no whole result.
    About the sample: `statuses`, `n_cut` recordings that ended after some windows, `n_lost` shares, and `crowd`, the share of its
    time in which other work had the cores; the range allows that this ends, or doubles. `start_s` are the seconds of a run besides
    its shards, and `work_s` those that one worker needs for all shards.
    """

    source: str
    table: str | None
    work: str
    n_recordings: int
    n_done: int
    n_bytes: int = 0
    n_unsized: int = 0
    audio_s: Range = field(default_factory=Range)
    is_audio_exact: bool = True
    heard_s: float = 0.0
    is_selective: bool = False
    n_shards: int = 0
    n_parts: int = 0
    n_rows: int = 0
    part_bytes: int = 0
    memory_bytes: int = 0
    n_failed: int = 0
    n_sampled: int = 0
    n_cut: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    sample_s: float = 0.0
    sample_workers: int = 0
    n_lost: int = 0
    crowd: float = 0.0
    start_s: float = 0.0
    work_s: Range = field(default_factory=Range)
    times: tuple[Times, ...] = ()
    due: Due | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_left(self) -> int:
        """Recordings that are left to do."""
        return self.n_recordings - self.n_done

    @property
    def is_late(self) -> bool:
        """Whether even the earliest end is after the hour that was named."""
        return self.due is not None and self.due.is_done == "no"

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {**asdict(self), "n_left": self.n_left}


def plan(
    archive: str | os.PathLike[str],
    *,
    table: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    extract: bool = False,
    settings: AnySettings | None = None,
    segments: Segments | str | os.PathLike[str] | None = None,
    window: float | None = None,
    hop: float | None = None,
    channels: str | Sequence[int] | None = None,
    suffixes: Iterable[str] = SUFFIXES,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    scheduler: str | Scheduler | None = None,
    workers: Iterable[int] = (),
    by: str | None = None,
    sample_s: float = 10.0,
    storage_options: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Plan:
    """Return what a run would do and how long it would take, from a timed sample; nothing is written.

    Parameters
    ----------
    archive, table, model
        The arguments of `label`; or, as `archive`, a table to continue, of which only the rest counts.
    extract
        Plan what `extract` does with the archive; a `table` that is a feature table says the same.
    settings
        How samples become features, for `extract`; `label` uses the settings of its model.
    segments
        Which stretches of each recording, as in `extract`; by default that of the settings or of the model.
    window, hop
        Instead of `segments`: windows of so many seconds, one every `hop` seconds; without `hop`, each starts where the last one ends.
    channels
        ``"mix"`` for the mean of a recording's channels, ``"each"`` for rows of each channel, or the numbers of channels from 0; by
        default as in `segments`.
    suffixes
        Endings by which files of a folder are recordings.
    include, exclude
        Take only recordings whose names match one of these patterns, and none that matches one of those.
    scheduler
        A running Dask scheduler, or its address; the sample is timed on its workers, by default on this machine's cores.
    workers
        Numbers of workers to estimate the time for, besides the present number; by default 10 and 100.
    by
        A time such as ``07:00``: say whether the run is done by then.
    sample_s
        About how long the timing may take, in seconds.
    storage_options
        What fsspec's filesystem takes.
    watcher
        Hears notes, and how many files are listed.

    Raises
    ------
    UsageError, StorageError, ClusterError, IncompleteError
        If the call is wrong, the run could not begin, or nothing of the sample was done.
    """
    started = time.monotonic()
    asked, stretches = sorted({*workers}), Segments.choose(segments, window, hop)
    if asked and asked[0] < 1:
        raise UsageError(f"workers must be whole numbers of at least 1: {asked[0]}")
    if not 0.5 <= sample_s <= 3_600:
        raise UsageError(f"sample must be from 0.5 to 3,600 seconds: {sample_s:g}")
    # This is computed now, because the hour may pass while the sample is taken.
    hour = None if by is None else _find_hour(by)
    place, watcher = Folder.of(archive, storage_options), watcher or Watcher()
    choice = {"suffixes": tuple(suffixes), "include": tuple(include), "exclude": tuple(exclude)}
    left = find_left(place, table, model, settings, stretches, choice, watcher, extract=extract, channels=channels)
    found: dict[str, Any] = {}
    outlook, n_here = Outlook(np.zeros(0), 1.0, 1.0, 0.0), 0
    if left.shards:
        found, outlook = _measure(left, Scheduler.of(scheduler), asked, sample_s, started)
        n_here = found["sample_workers"]
        ends = {n: outlook.elapsed_s(n) for n in sorted({n_here, *(asked or _USUAL_WORKERS)})}
        found["times"] = tuple(Times(n, n == n_here, one.low, one.likely, one.high) for n, one in ends.items())
    return Plan(
        source=left.source.table.url if isinstance(left.source, TablePlace) else left.info.source,
        table=None if left.table is None else left.table.url,
        work="extract" if left.info.kind == schema.FEATURES else "label",
        n_recordings=left.n_recordings,
        n_done=left.n_recordings - sum(entries.num_rows for entries in left.shards.values()),
        is_selective=left.info.segments.source is not None,
        n_shards=len(left.shards),
        n_parts=left.n_parts,
        start_s=outlook.start_s,
        work_s=outlook.work_s,
        due=None if hour is None else _judge(hour, outlook, max(asked, default=n_here)),
        notes=left.notes,
        **found,
    )


def _measure(
    left: Left, scheduler: Scheduler | None, asked: list[int], sample_s: float, started: float
) -> tuple[dict[str, Any], Outlook]:
    """Time a sample on the cluster; return its figures for a plan, and how long shards take."""
    cluster, work = import_cluster(), _Work.of(left)
    root = os.path.join(tempfile.gettempdir(), f"emotion-batch-plan-{secrets.token_hex(8)}")
    archive = witness = features = None
    if isinstance(left.source, TablePlace):
        features = (left.source.table, parts.part_name(left.tasks[0].shard))
    else:
        archive, witness = left.source, find_witness(left.source, work.entries)
    versions = read_versions(left.bundle is not None, archive is not None and left.info.segments.is_by_silero)
    probe = Probe(None, "", b"", archive, witness, features, None, versions)
    files = {} if left.bundle is None else {EXECUTABLE: read_checked(left.bundle, EXECUTABLE)}
    n_most = 1 if left.tasks else int(np.diff(work.bounds).max())
    trial = Trial(root, left.info, left.source, witness, left.bundle, files, sample_s, n_most)
    n_local = min(cluster.N_CORES, max(asked, default=cluster.N_CORES), max(2, len(work.costs)))
    cold_s, numbers, shards, failures = 0.0, [], [], []
    try:
        with cluster.connect(scheduler, n_local) as connected:
            if not connected.is_local:
                connected.preflight(PACKAGE, probe)
            deadline = time.monotonic() + _JOIN_TIMEOUT_S
            while connected.is_local and len(connected.threads()) < n_local and time.monotonic() < deadline:
                time.sleep(0.05)
            shares = work.share_out(n_threads := sum(connected.threads().values()))
            began = time.monotonic()
            for share, outcome in connected.run(trial, list(shares)):
                if isinstance(outcome, BaseException):
                    failures.append(outcome)
                    continue
                cold_s = max(cold_s, outcome[0])
                shards += outcome[1]
                numbers.append(shares[share][: sum(len(one.taken) for one in outcome[1])])
            ended = time.monotonic()
            if not connected.is_local:
                connected.preflight(PACKAGE, trial.remove)
            ending = time.monotonic()
    finally:
        trial.remove()
    start_s = began - started + cold_s + time.monotonic() - ending
    if not shards:
        if isinstance(failures[0], IncompleteError):
            raise failures[0]
        raise IncompleteError(
            f"sample: nothing of {counted(len(work.costs), 'recording')} could be done ({type(failures[0]).__name__}: "
            f"{failures[0]}); run the same command again, or see the log of a worker"
        )
    found, outlook = _extrapolate(work, np.concatenate(numbers), shards, start_s)
    return {**found, "sample_s": ended - began, "sample_workers": n_threads, "n_lost": len(failures)}, outlook


@dataclass(frozen=True)
class _Work:
    """The recordings that are left, in the order of a run, with the bounds of shards, and each recording's cost and stratum."""

    entries: pa.Table
    tasks: Sequence[Task]
    bounds: Numbers
    costs: Floats
    strata: Numbers
    segments: Segments

    @classmethod
    def of(cls, left: Left) -> _Work:
        entries, segments = pa.concat_tables(left.shards.values()), left.info.segments
        # All rows of a feature table cost the same.
        is_even = left.tasks and segments.is_one_stretch
        costs = np.ones(entries.num_rows) if is_even else estimate_costs(entries, segments)
        ends = pc.utf8_lower(pc.utf8_slice_codeunits(entries["file"], -4, None))
        kinds = ends.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        levels = np.log2(np.maximum(entries["size"].fill_null(0).to_numpy(), 1)).astype(np.int64) // 2
        # A stratum has recordings of one suffix, of sizes within a factor of four.
        _, strata = np.unique(kinds * 64 + levels, return_inverse=True)
        # Strata with a small total cost are put together as the last one.
        ranks = np.argsort(np.argsort(-np.bincount(strata, costs), kind="stable"))
        bounds = np.cumsum([0, *(shard.num_rows for shard in left.shards.values())])
        return cls(entries, left.tasks, bounds, costs, np.minimum(ranks, _MOST_STRATA - 1)[strata], segments)

    def share_out(self, n_threads: int) -> dict[Share, Numbers]:
        """Return each thread's share, with the numbers of its recordings; wherever it stops, all strata are equally sampled."""
        # Equal calls choose equal recordings.
        generator = np.random.default_rng(0)
        things: Sequence[Any]
        members: Sequence[Any]
        if self.tasks:
            order, n_first = generator.permutation(len(self.tasks)), 1
            things = [self.tasks[place] for place in order]
            members = [np.arange(*self.bounds[place : place + 2]) for place in order]
        else:
            mixed, ranks = generator.permutation(len(self.costs)), self.costs.copy()
            n_first = int(self.strata.max()) + 1
            for stratum in range(n_first):
                mine = mixed[self.strata[mixed] == stratum]
                # First each thread gets two of a stratum; then the order is by the share of its cost that is done after each.
                nth, done = np.arange(len(mine)) // n_threads, np.cumsum(self.costs[mine]) / self.costs[mine].sum()
                ranks[mine] = np.where(nth < 2, nth - 2, done)
            order = np.lexsort((self.strata, ranks))[:_MOST_SAMPLED]
            things = [Entry(**row) for row in self.entries.take(pa.array(order)).to_pylist()]
            members = list(order[:, np.newaxis])
        return {
            Share(number, tuple(things[number::n_threads]), n_first): np.concatenate(members[number::n_threads])
            for number in range(min(n_threads, len(things)))
        }


def _extrapolate(work: _Work, numbers: Numbers, shards: list[Timed], start_s: float) -> tuple[dict[str, Any], Outlook]:
    """Return what the shards of a sample, with the numbers of their recordings, say about all recordings."""
    taken = [one for shard in shards for one in shard.taken]
    seconds, n_rows, done, durations, statuses, heard = (np.array(column) for column in zip(*taken, strict=True))
    where = np.repeat(np.arange(len(shards)), [len(one.taken) for one in shards])
    elapsed_s, waited_s, part_bytes, row_bytes, memory_bytes = (np.array([one[n] for one in shards]) for n in range(5))
    shard_rows = np.bincount(where, n_rows)
    strata, n_strata = work.strata[numbers], work.strata.max() + 1

    def fit(values: Floats) -> tuple[float, float]:
        """Return what a shard has by itself, and what for each of its rows; neither is negative."""
        off = shard_rows - shard_rows.mean()
        by_row = max(0.0, off @ values / (off @ off)) if off.any() else 0.0
        base = values.mean() - by_row * shard_rows.mean()
        return (base, by_row) if base > 0 else (0.0, values.sum() / shard_rows.sum())

    def spread(values: Floats, measures: Floats) -> Floats:
        """Return what each recording of all has, by the ratio to its measure in its stratum."""
        sums, bases = (np.bincount(strata, one, n_strata) for one in (values, measures[numbers]))
        ratios = np.where(bases > 0, sums / np.maximum(bases, 1e-9), sums.sum() / bases.sum())
        return measures * ratios[work.strata]

    shard_s, row_s = fit(np.maximum(0.0, elapsed_s - np.bincount(where, seconds)))
    seconds_each = spread((seconds + row_s * n_rows) / done, work.costs)
    shards_s = np.add.reduceat(seconds_each, work.bounds[:-1]) + shard_s + _BESIDE_S
    # What the sample's shards were to take, and by how much they differ from it; the longest count most.
    likely_s = shard_s + np.bincount(where, seconds_each[numbers] * done)
    weights = likely_s / likely_s.sum()
    n_alike = 1 / (weights**2).sum()
    off = weights @ (elapsed_s / likely_s - 1) ** 2
    drift = math.sqrt(off * n_alike / (n_alike - 1)) if len(shards) > 1 else _UNKNOWN
    # A stratum that was looked at once tells nothing of its spread.
    n_looks, n_all = np.bincount(strata, minlength=n_strata), np.bincount(work.strata)
    by_stratum = np.bincount(work.strata, seconds_each)
    unknown = _UNKNOWN * by_stratum[(n_looks < 2) & (n_looks < n_all)].sum() / shards_s.sum()
    drift = max(_LEAST_DRIFT, drift) * math.sqrt(1 + 1 / n_alike)
    half = scipy.special.stdtrit(max(1.0, n_alike - 1), 0.975) * math.hypot(drift, unknown)
    crowd = min(_MOST_CROWD, waited_s.sum() / elapsed_s.sum())
    rows_each = spread(n_rows / done, work.costs if (n_rows / done > 1).any() else np.ones(len(work.costs)))
    rows_by_shard = np.add.reduceat(rows_each, work.bounds[:-1])
    part_base, part_by_row = fit(part_bytes)
    further_rows = max(0.0, rows_by_shard.max() - shard_rows.max())
    sizes, durations_s = work.entries["size"].fill_null(0).to_numpy() + 1.0, np.nan_to_num(durations)
    audio_each, is_all = spread(durations_s, sizes), len(numbers) == len(work.costs)
    error = (
        0.0 if is_all else math.sqrt(((audio_each[numbers] - durations_s) ** 2).sum()) / max(1e-9, durations_s.sum())
    )
    audio_s, margin = audio_each.sum(), 2 * error * audio_each.sum()
    failed = statuses != Status.OK
    heard = heard / done if work.segments.source is not None else _hear(work.segments, durations_s)
    heard_s = spread(heard, np.ones(len(work.costs))).sum()
    return {
        "audio_s": Range(max(0.0, audio_s - margin), audio_s, audio_s + margin),
        "heard_s": min(float(heard_s), float(audio_s)),
        "is_audio_exact": is_all and not np.isnan(durations[~failed]).any(),
        "n_rows": round(rows_each.sum()),
        "part_bytes": round(len(shards_s) * part_base + rows_by_shard.sum() * part_by_row),
        "memory_bytes": round(memory_bytes.max() + _COPIES * row_bytes.sum() / shard_rows.sum() * further_rows),
        "n_failed": round(spread(failed.astype(float), np.ones(len(work.costs))).sum()),
        "n_sampled": len(taken),
        "n_cut": int((done < 1).sum()),
        "statuses": dict(sorted(Counter(statuses.tolist()).items())),
        "crowd": float(crowd),
        "n_bytes": pc.sum(work.entries["size"]).as_py() or 0,
        "n_unsized": work.entries["size"].null_count,
    }, Outlook(shards_s, float((1 - crowd) / (1 + half)), float((1 + crowd) * (1 + half)), start_s)


def _hear(segments: Segments, durations_s: Floats) -> Floats:
    """Return how many seconds of recordings of these durations their segments at fixed times cover."""
    if segments.hop_s is None:
        return np.clip(durations_s - segments.offset_s, 0, segments.duration_s)
    n_hops, rest_s = np.divmod(durations_s, segments.hop_s)
    return n_hops * min(segments.duration_s, segments.hop_s) + np.minimum(rest_s, segments.duration_s)


def _find_hour(text: str) -> datetime:
    """Return the next time at which clocks show that hour."""
    now = datetime.now().astimezone()
    try:
        named = datetime.strptime(text, "%H:%M")
    except ValueError as error:
        raise UsageError(f"by must be a time such as 07:00: {text!r}") from error
    at = now.replace(hour=named.hour, minute=named.minute, second=0, microsecond=0)
    # This is the time that clocks show, also in a night that is an hour longer.
    return (at + timedelta(days=at <= now)).replace(tzinfo=None).astimezone()


def _judge(due: datetime, outlook: Outlook, n_workers: int) -> Due:
    """Return whether a run that begins now is done by an hour, and with how many workers; 0 workers mean nothing is left."""
    within_s = due.timestamp() - datetime.now().astimezone().timestamp()
    end = outlook.elapsed_s(n_workers) if n_workers else Range()
    is_done = "yes" if end.high <= within_s else "no" if end.low > within_s else "perhaps"
    likely, sure = (outlook.count_workers(within_s, which) for which in (lambda one: one.likely, lambda one: one.high))
    return Due(due.isoformat(timespec="minutes"), within_s, n_workers, is_done, likely, sure)
