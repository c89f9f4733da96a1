"""Submit a run: do its first shards, and leave the others to the cluster, where a task drives the run.

That task does the work of the process that submitted the run. The table shows what is done, so if the task dies with its worker, it
runs again on another and continues.
"""

from __future__ import annotations

import copy
import logging
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from emotion_batch.errors import EmotionBatchError, IncompleteError
from emotion_batch.progress import Watcher
from emotion_batch.run.driver import Run, import_cluster
from emotion_batch.run.record import Recorder, Summary
from emotion_batch.run.run_options import RunOptions
from emotion_batch.run.scheduler import SchedulerLostError
from emotion_batch.run.shards import count_first
from emotion_batch.storage.folder import Folder, explained, seal
from emotion_batch.tables import lease, parts
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.parts import Footer
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.table import require_table
from emotion_batch.worker.job import Job
from emotion_batch.worker.shard import Work
from emotion_batch.worker.task import Task

if TYPE_CHECKING:
    from emotion_batch.run.dask_cluster import Cluster


@dataclass(frozen=True)
class Handover:
    """A submitted run; it travels to the task that drives it, and to the next one.

    `number` is the number of the task, from 1 on. `summary`, `left` (its lease), `n_shards` and `n_recordings` (what was left to do)
    are as they were when the run was submitted.
    """

    number: int
    work: Work
    recorder: Recorder
    summary: Summary
    left: lease.Holder
    n_shards: int
    n_recordings: int

    def submit(self, cluster: Cluster) -> None:
        """Let a worker drive the run."""
        cluster.hand_over(drive, self, f"{cluster.DRIVER_KEY}{self.work.run_id}-{self.number}")


def open_run(table: Folder, info: TableInfo, options: RunOptions, started: float) -> Run:
    """Return a run as a block, one that is submitted if the options say so; see `Run`."""
    return (_SubmittedRun if options.leave else Run)(table, info, options, started)


class _SubmittedRun(Run):
    """A run whose first shards are done here; the cluster does the others without this process."""

    def _hand_out(self, cluster: Cluster, work: Work, todo: list[Task]) -> None:
        # These are done before the caller disconnects, so that a run whose results are all the same stops here.
        n_first = count_first(todo, sum(cluster.threads().values()))
        self._work_off(cluster, work, todo[:n_first], len(todo))
        left = todo[n_first:]
        if not left:
            return
        assert self.scheduler is not None  # noqa: S101 the options were checked
        self.summary.elapsed_s = time.perf_counter() - self._started
        again = [task.shard for task in left if task.earlier is not None and task.earlier.digest == task.entry.digest]
        # So much besides the worker's own memory: ``python -m benchmarks.scale --submitted``.
        memory_mb = 20 + len(left) // 100
        self.watcher.on_note(
            f"from now on a task on one of the workers drives the run; it needs up to {memory_mb:,} MB there"
        )
        holder = self._lease.leave(self.scheduler.address, again)
        summary = copy.deepcopy(self.summary)
        Handover(1, work, self._recorder, summary, holder, len(left), _count_recordings(left)).submit(cluster)
        self.summary.n_shards_left = len(left)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The task that drives the run writes the record, at its end.
        if error is not None or not self.summary.n_shards_left:
            super().__exit__(kind, error, at)


class _SupersededError(EmotionBatchError):
    """Another task drives this submitted run, or it has ended."""


class _DrivenRun(Run):
    """A submitted run, in the task that drives it."""

    def __init__(self, handover: Handover, cluster: Cluster, watcher: Watcher) -> None:
        work, self._handover, self._cluster = handover.work, handover, cluster
        # The first shards are done, and their results were not all the same.
        options = RunOptions(watcher=watcher, force=True)
        super().__init__(work.table, work.job.info, options, time.perf_counter())
        self.id = work.run_id
        self.summary = copy.deepcopy(handover.summary)
        self._recorder = replace(handover.recorder, is_submitted=True)
        self._lease = lease.Lease(self.table, self.id, replace(handover.left, driver=handover.number))
        # The progress of the run by the last sign of the task that drove it before.
        self._before = handover.left.progress
        self._started -= self.summary.elapsed_s + self._before.get("elapsed_s", 0.0)

    def __enter__(self) -> Self:
        with explained(f"table {self.table.url}"):
            self._known_runs = frozenset(lease.run_ids(self.table))
            self._lease.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # If the scheduler was lost, perhaps Dask has only given up this worker, and runs the task again elsewhere.
        is_lost = isinstance(error, SchedulerLostError)
        with suppress(Exception):
            is_lost = is_lost or self._lease.find_loss()
        if is_lost:
            self._lease.stop()
        else:
            super().__exit__(kind, error, at)

    def go_on(self) -> None:
        """Do what is left, and check that the table is whole."""
        job = self._handover.work.job
        self._handover.work.refuse_if_cancelled()
        features = None
        if job.source is not None:
            manifest = read_manifest(*job.source)
            features = parts.require_complete(*job.source, manifest.shards)
            self.follow(manifest)
        self.finish(job, features)

    def _choose(self, job: Job, features: Mapping[int, Footer] | None) -> tuple[dict[int, Footer], list[Task]]:
        done, missing = self._look(job, features)
        again = self._tasks([shard for shard in self._handover.left.again if shard in done], done)
        todo = again if job.is_retry else missing + again
        # The tasks that drove the run before have done the others.
        self.summary.n_shards_done += max(0, self._handover.n_shards - len(todo))
        self.summary.n_decoded += max(0, self._handover.n_recordings - _count_recordings(todo))
        return done, todo

    @contextmanager
    def _connected(self, n_shards: int) -> Iterator[Cluster]:  # noqa: ARG002 the workers are there
        with self._cluster.losing():
            yield self._cluster

    def _hand_out(self, cluster: Cluster, work: Work, todo: list[Task]) -> None:
        # The work keeps the versions with which the run was submitted.
        super()._hand_out(cluster, replace(self._handover.work, generation=work.generation), todo)

    def _check(self) -> None:
        if self._lease.is_lost:
            raise _SupersededError

    def _tell(self, n_done_here: int, elapsed_s: float, left_s: float) -> None:  # noqa: ARG002 status computes it
        n_before, before_s = (self._before.get(name, 0) for name in ("n_done_here", "elapsed_s"))
        self._lease.tell(
            left_s=self._before["left_s"], n_done_here=int(n_before) + n_done_here, elapsed_s=before_s + elapsed_s
        )


def drive(handover: Handover) -> None:
    """Drive a submitted run to its end: a task on a worker, which Dask runs again on another if that worker dies.

    Dask gives a task up after the fourth worker has died during it. So a task that runs again submits the next one and ends. Raise
    UnfitWorkerError if this worker has other versions than those with which the run was submitted.
    """
    table, run_id = handover.work.table, handover.work.run_id
    handover.work.refuse_if_unfit()
    watcher = Watcher(on_note=logging.getLogger(__name__).warning)
    cluster = import_cluster().Cluster.of_worker(watcher.on_note)
    with explained(f"table {table.url}"):
        holder = lease.find_holder(table, run_id)
        if holder is None and lease.has_ended(table, run_id):
            return
    holder = holder or handover.left
    if holder.driver == handover.number:
        replace(handover, number=handover.number + 1).submit(cluster)
    elif holder.driver < handover.number:
        # The record of the run has the error.
        with suppress(EmotionBatchError), _DrivenRun(replace(handover, left=holder), cluster, watcher) as run:
            run.go_on()


def cancel(table: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Stop the runs that are at work on a table, submitted or not, from anywhere; return their ids.

    Shards in progress are finished, and no other is begun. The command that made the table resumes.

    Raises
    ------
    IncompleteError
        If no run is at work.
    """
    place = Folder.of(table, storage_options)
    require_table(place)
    with explained(f"table {place.url}"):
        # This includes runs that have been silent for long: a cluster may have no workers, and clocks may be wrong.
        runs = [holder.run for holder in lease.read_holders(place) if not holder.is_gone]
        for run_id in runs:
            # Workers check for this file before each shard.
            note = seal({"host": platform.node(), "at": time.time()})
            place.publish(lease.cancellation_name(run_id), note)
    if not runs:
        raise IncompleteError(f"table {place.url}: no run is at work on it, so there is nothing to cancel")
    return runs


def _count_recordings(tasks: Iterable[Task]) -> int:
    return sum(task.entry.n_recordings for task in tasks)
