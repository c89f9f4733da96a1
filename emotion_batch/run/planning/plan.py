"""Plan a run without writing anything: what it would do, and how long it would take."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from emotion_batch.errors import UsageError
from emotion_batch.progress import Watcher
from emotion_batch.run.driver import PACKAGE, import_cluster
from emotion_batch.run.planning.estimates import Estimates, draw_conclusions
from emotion_batch.run.planning.forecast import Outlook, Range
from emotion_batch.run.planning.remainder import Remainder, find_remainder
from emotion_batch.run.planning.sampling import Population, Sample, take_sample
from emotion_batch.run.scheduler import Scheduler
from emotion_batch.run.shards import WITNESS_TRIES, order_shards
from emotion_batch.settings import AnySettings, Segments
from emotion_batch.storage.archive import SUFFIXES
from emotion_batch.storage.entries import Entry, peek
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import schema, shard_entries
from emotion_batch.worker import preflight
from emotion_batch.worker.job import TablePlace
from emotion_batch.worker.trial import Fitness, Removal, Trial

if TYPE_CHECKING:
    from emotion_batch.run.dask_cluster import Cluster

# Beside the workers that are there.
_USUAL_WORKERS = (10, 100)
_NOTHING = Range(0.0, 0.0, 0.0)
_HOUR = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
# Of which the digests are timed that freezing a listing makes.
_DIGESTED = 2_000
_JOIN_TIMEOUT_S = 30


@dataclass(frozen=True)
class Times:
    """How long a run takes on some workers.

    Attributes
    ----------
    workers
        One-thread worker processes, each with a core as those of the sample had.
    is_here
        Whether these are those that are there.
    low_s, likely_s, high_s
        Seconds from the call to the end.
    """

    workers: int
    is_here: bool
    low_s: float
    likely_s: float
    high_s: float


@dataclass(frozen=True)
class Due:
    """Whether a run that begins now is done by an hour.

    Attributes
    ----------
    at
        The hour, of this machine's zone.
    within_s
        Seconds until then.
    workers
        Those that are looked at: that are there, or the most that were named.
    is_done
        ``yes`` if even the late end of the range is before the hour, ``no`` if even the early one is after it, else
        ``perhaps``.
    workers_likely, workers_sure
        The fewest workers whose likely end, and whose late end, is before the hour; None if no number's is.
    """

    at: str
    within_s: float
    workers: int
    is_done: str
    workers_likely: int | None
    workers_sure: int | None


@dataclass(frozen=True)
class Plan:
    """What a run would do, and how long it would take. What is left is meant, where there is something already.

    Attributes
    ----------
    source, table, work
        What it reads, the table it goes on with, if there is one, and ``extract`` or ``label``.
    n_recordings, n_done
        Of all, and those that a table has already.
    n_bytes, n_unsized
        Of the recordings that are left, and how many of them do not say.
    audio_s, is_audio_exact
        How long they are, and whether each of them was asked.
    n_shards, n_parts
        Shards that are left, and the parts that there will be in all.
    n_rows, part_bytes
        What these shards' parts will hold, about, and take.
    memory_bytes
        The most that a worker process takes, about.
    n_failed
        Recordings that will have no result, or not all, about.
    n_sampled, n_cut, statuses
        Recordings of the sample, those of which only some windows were done, and what became of them.
    sample_s, sample_workers, n_lost
        How long it took, on how many workers, and stretches of it that came to nothing.
    crowd
        Share of the sample's time in which other work had the cores; the range allows that it ends, or doubles.
    start_s
        Seconds besides the shards: listing, freezing, starting workers, ending them.
    work_s
        Seconds of one worker for all shards.
    times
        On the workers that are there, and on others.
    due
        Whether that is by an hour; None if none was named.
    notes
        What a person should know.
    """

    source: str
    table: str | None
    work: str
    n_recordings: int
    n_done: int
    n_bytes: int = 0
    n_unsized: int = 0
    audio_s: Range = _NOTHING
    is_audio_exact: bool = True
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
    work_s: Range = _NOTHING
    times: tuple[Times, ...] = ()
    due: Due | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_left(self) -> int:
        """Recordings that are left to do."""
        return self.n_recordings - self.n_done

    @property
    def is_late(self) -> bool:
        """Whether even the hopeful end is after the hour that was named."""
        return self.due is not None and self.due.is_done == "no"

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {**asdict(self), "n_left": self.n_left}


def plan(
    archive: str | os.PathLike[str],
    *,
    table: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    settings: AnySettings | None = None,
    segments: Segments | None = None,
    suffixes: Iterable[str] = SUFFIXES,
    scheduler: str | Scheduler | None = None,
    workers: Iterable[int] = (),
    by: str | None = None,
    sample_s: float = 10.0,
    storage_options: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Plan:
    """Return what a run would do and how long it would take, from a sample that is timed; nothing is written.

    Parameters
    ----------
    archive
        What `extract` or `label` would be given, a feature table with `model` among it; or a table that is to go on.
    table
        The table that they would be given, if it is there: only what is left counts.
    model
        Of a labelling; without it, it is an extraction, or what the table is.
    settings, segments, suffixes
        As in `extract`; those of a labelling are the model's.
    scheduler
        A running Dask scheduler, or its address, on whose workers the sample is timed; by default on this machine's cores.
    workers
        Numbers of workers to tell the time on, besides those that are there; by default 10 and 100.
    by
        An hour, as ``07:00``, of which it is told whether that is done by then.
    sample_s
        About how long the timing may take, in seconds.
    storage_options, watcher
        As in `extract`.

    Raises
    ------
    UsageError, StorageError, ClusterError
        If the call is wrong, or the run could not begin.
    IncompleteError
        If nothing of the sample came to an end.
    """
    started = time.monotonic()
    watcher = watcher or Watcher()
    asked = sorted({*workers})
    if asked and asked[0] < 1:
        raise UsageError(f"workers: expected numbers >= 1, got {asked[0]}")
    if not 0.5 <= sample_s <= 3_600:
        raise UsageError(f"sample: expected seconds from 0.5 to 3,600, got {sample_s:g}")
    # Of the call, though the hour may come while it is planned.
    hour = None if by is None else _find_hour(by)
    left = find_remainder(Folder.of(archive, storage_options), table, model, settings, segments, suffixes, watcher)
    told = Plan(
        source=left.source.table.url if isinstance(left.source, TablePlace) else left.info.source,
        table=None if left.table is None else left.table.url,
        work="extract" if left.info.kind == schema.FEATURES else "label",
        n_recordings=left.n_recordings,
        n_done=left.n_recordings - sum(entries.num_rows for entries in left.shards.values()),
        n_parts=left.n_parts,
        notes=left.notes,
    )
    if not left.shards:
        due = None if hour is None else _judge(hour, Outlook(np.zeros(0), 1.0, 1.0, 0.0), 0)
        return replace(told, due=due)
    population = _order(left)
    sample, start_s, n_here = _time(left, population, Scheduler.of(scheduler), asked, sample_s, started)
    found = draw_conclusions(population, sample, start_s)
    return _tell(told, left, population, sample, found, n_here, asked, hour)


def _tell(
    told: Plan,
    left: Remainder,
    population: Population,
    sample: Sample,
    found: Estimates,
    n_here: int,
    asked: list[int],
    hour: datetime | None,
) -> Plan:
    """Return the plan, with what was found."""
    outlook = found.outlook
    sizes = population.entries["size"]
    times = []
    for number in sorted({n_here, *(asked or _USUAL_WORKERS)}):
        on_them = outlook.elapsed_s(number)
        times.append(Times(number, number == n_here, on_them.low, on_them.likely, on_them.high))
    return replace(
        told,
        n_bytes=pc.sum(sizes).as_py() or 0,
        n_unsized=sizes.null_count,
        audio_s=found.audio_s,
        is_audio_exact=found.is_exact,
        n_shards=len(left.shards),
        n_rows=round(found.n_rows),
        part_bytes=round(found.part_bytes),
        memory_bytes=round(found.memory_bytes),
        n_failed=round(found.n_failed),
        n_sampled=len(sample.taken),
        n_cut=sum(one.share < 1 for one in sample.taken.values()),
        statuses=found.statuses,
        sample_s=sample.elapsed_s,
        sample_workers=n_here,
        n_lost=sample.n_lost,
        crowd=found.crowd,
        start_s=outlook.start_s,
        work_s=outlook.work_s,
        times=tuple(times),
        due=None if hour is None else _judge(hour, outlook, max(asked, default=n_here)),
    )


def _time(
    left: Remainder,
    population: Population,
    scheduler: Scheduler | None,
    asked: list[int],
    sample_s: float,
    started: float,
) -> tuple[Sample, float, int]:
    """Return a sample that was timed, the seconds of a run besides its shards, and the workers that are there."""
    cluster = import_cluster()

    trial = Trial.of(secrets.token_hex(8), left.info, left.source, left.bundle)
    n_local = min(cluster.N_CORES, *([max(asked)] if asked else []), max(2, len(population.costs)))
    try:
        with cluster.connect(scheduler, n_local) as connected:
            if not connected.is_local:
                versions = preflight.read_versions(left.bundle is not None)
                connected.preflight(PACKAGE, Fitness(trial, versions, _find_witness(left, population)))
            n_threads = _wait_for_threads(connected, n_local if connected.is_local else 1)
            sample = take_sample(connected, trial, population, sample_s=sample_s, n_threads=n_threads, started=started)
            if not connected.is_local:
                connected.preflight(PACKAGE, Removal(trial))
            ending = time.monotonic()
        end_s = time.monotonic() - ending
    finally:
        trial.remove()
    return sample, sample.ready_s + end_s + _time_freezing(left), n_threads


def _wait_for_threads(connected: Cluster, n_workers: int) -> int:
    """Wait for the workers of a local cluster, which a run does not; return the threads that are there."""
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    while len(connected.threads()) < n_workers and time.monotonic() < deadline:
        time.sleep(0.05)
    return sum(connected.threads().values())


def _time_freezing(left: Remainder) -> float:
    """Return about how long it takes to freeze a listing: most of that are digests."""
    if not left.n_unfrozen:
        return 0.0
    batch = next(iter(left.shards.values())).slice(0, _DIGESTED).combine_chunks().to_batches()[0]
    began = time.perf_counter()
    shard_entries.digest(batch)
    return (time.perf_counter() - began) / int(batch.num_rows) * left.n_unfrozen


def _find_witness(left: Remainder, population: Population) -> Entry | None:
    """Return a recording that can be read here."""
    if not isinstance(left.source, Folder):
        return None
    for entry in population.take(list(range(min(WITNESS_TRIES, len(population.costs))))):
        try:
            peek(left.source, entry)
        except Exception:  # noqa: S112 whatever it is, this one tells nothing
            continue
        return entry
    return None


def _order(left: Remainder) -> Population:
    """Return the recordings of the shards that are left, in the order in which a run begins them."""
    segments = left.info.segments
    if left.features:
        order = order_shards({shard: left.features[shard].cost for shard in left.shards})
        return Population.of(
            [left.shards[shard] for shard in order], segments, tuple((shard, left.features[shard]) for shard in order)
        )
    unordered = Population.of(list(left.shards.values()), segments)
    by_shard = dict(zip(left.shards, unordered.sum_by_shard(unordered.costs).astype(int).tolist(), strict=True))
    return Population.of([left.shards[shard] for shard in order_shards(by_shard)], segments)


def _find_hour(text: str) -> datetime:
    """Return when it is next that hour."""
    match = _HOUR.fullmatch(text)
    if match is None:
        raise UsageError(f"by: expected an hour as 07:00, got {text!r}")
    now = datetime.now().astimezone()
    at = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    if at <= now:
        at += timedelta(days=1)
    # Named as clocks show it, also in a night that is an hour longer.
    return at.replace(tzinfo=None).astimezone()


def _judge(due: datetime, outlook: Outlook, n_workers: int) -> Due:
    """Return whether what begins now is done by an hour, and how many workers that takes."""
    within_s = due.timestamp() - datetime.now().astimezone().timestamp()
    end = outlook.elapsed_s(n_workers) if n_workers else _NOTHING
    is_done = "yes" if end.high <= within_s else "no" if end.low > within_s else "perhaps"
    likely, sure = (outlook.count_workers(within_s, which) for which in (lambda one: one.likely, lambda one: one.high))
    return Due(due.isoformat(timespec="minutes"), within_s, n_workers, is_done, likely, sure)
