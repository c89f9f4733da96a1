"""The part of a submitted run that travels to the cluster: gather receipts, watch for lost shards, write the record. It knows nothing of Dask."""

from __future__ import annotations

import contextlib
import copy
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from emotion_batch.errors import CancelledError, IncompleteError, StorageError, UnfitWorkerError
from emotion_batch.run.record import Recorder, Summary
from emotion_batch.storage.folder import Folder, explained, seal
from emotion_batch.storage.retry import hastily, is_transient
from emotion_batch.tables import lease, parts
from emotion_batch.tables.manifest import Manifest
from emotion_batch.worker.shard import Work, make_tasks
from emotion_batch.worker.task import Receipt, Task

# Of shards that failed, in a record.
_MOST_FAILURES = 20
# How long nothing may come while workers are idle, before what is missing is handed out again: at least, and in times
# that a shard usually takes.
_PATIENCE_S, _PATIENCE = 30.0, 3.0
# After so long without a shard under way, a run whose end wrote no record gets it from the watch.
_QUIET_S = 60.0
# How much later than its watches say a run may have ended: they begin and look when a worker has time for them.
_LATE_S = 120.0


@dataclass(frozen=True)
class ShardFailure:
    """A shard that was not done.

    Attributes
    ----------
    text
        What it failed of.
    is_cancelled
        Whether only because the run was cancelled.
    """

    text: str
    is_cancelled: bool = False


@dataclass(frozen=True)
class Total:
    """What some shards of a submission gave together."""

    summary: Summary
    failures: tuple[ShardFailure, ...] = ()
    n_failures: int = 0


@dataclass(frozen=True)
class Submission:
    """What a cluster is handed; travels to workers.

    Attributes
    ----------
    work
        What is done with a shard.
    recorder
        Writes the run's record.
    before
        What the run had done when it was handed over; its counts are those of all finished shards.
    waits_s
        Pauses before a shard is tried again that failed of what passes.
    left
        What the run's lease was when it was handed over.
    """

    work: Work
    recorder: Recorder
    before: Summary
    waits_s: tuple[float, ...]
    left: lease.Holder

    def do(self, task: Task) -> Receipt | ShardFailure:
        """Do a shard, with patience for what passes; nobody is there who would hand it out again."""
        with lease.attended(self.work.table, self.left):
            for wait_s in (*self.waits_s, None):
                try:
                    return self.work(task)
                except UnfitWorkerError:
                    raise
                except Exception as error:
                    if wait_s is None or not is_transient(error):
                        if isinstance(error, StorageError):
                            self._stop_others()
                        text = f"shard {task.shard}: {type(error).__name__}: {error}"
                        return ShardFailure(text, isinstance(error, CancelledError))
                    time.sleep(wait_s)
        raise AssertionError("the last try returns")

    def _stop_others(self) -> None:
        """Have no further shard begun: a full disk, or an archive that is gone, is so for every one of them."""
        with contextlib.suppress(Exception), hastily():
            _publish_cancellation(self.work.table, self.work.run_id)

    def gather(self, outcomes: Iterable[Receipt | ShardFailure]) -> Total:
        """Add up what shards gave."""
        summary = Summary(self.work.table.url)
        failures = []
        for outcome in outcomes:
            if isinstance(outcome, ShardFailure):
                failures.append(outcome)
            else:
                summary.add(outcome)
        return Total(summary, tuple(failures), len(failures))

    def merge(self, totals: Iterable[Total]) -> Total:
        """Add up what was added up."""
        summary = Summary(self.work.table.url)
        failures: list[ShardFailure] = []
        n_failures = 0
        for total in totals:
            summary.merge(total.summary)
            failures += total.failures
            n_failures += total.n_failures
        # What failed by itself says more than what was not begun for it.
        failures.sort(key=lambda failure: failure.is_cancelled)
        return Total(summary, tuple(failures[:_MOST_FAILURES]), n_failures)

    def close(self, total: Total) -> None:
        """Leave the record of the whole run, and take its lease back."""
        # A copy, for where a worker is lost this may come again.
        summary = copy.deepcopy(self.before)
        summary.merge(total.summary)
        outcome, error = "complete", None
        if total.failures and total.failures[0].is_cancelled:
            outcome = "cancelled"
        elif total.failures:
            outcome = "failed"
            error = f"{total.n_failures} shards were not done ({total.failures[0].text}); the command that made the table goes on"
        self.end(summary, outcome, error)

    def end(self, summary: Summary, outcome: str, error: str | None) -> None:
        """Write the record, and remove what said that the run was at work."""
        table, run_id = self.work.table, self.work.run_id
        with explained(f"table {table.url}"):
            summary.elapsed_s = self._lasted_s()
            self.recorder.write(table, summary, outcome, error, {"is_submitted": True})
            table.delete(lease.cancellation_name(run_id))
        with contextlib.suppress(Exception), hastily():
            table.delete(lease.lease_name(run_id))

    def _lasted_s(self) -> float:
        """Return for how long the run has been at work, by the clocks, as far as these agree with its watches."""
        told = next((one for one in lease.read_holders(self.work.table) if one.run == self.work.run_id), self.left)
        told_s = self.before.elapsed_s + float(told.progress.get("elapsed_s", 0.0))
        return min(max(lease.seconds_since(self.recorder.began), told_s), told_s + _LATE_S)


@dataclass
class SubmissionWatch:
    """Looks after a submission, from storage alone; travels from worker to worker.

    Attributes
    ----------
    submission
        What it looks after.
    n_threads
        Threads of the cluster when the run was handed over.
    is_told_by_parts
        Whether the work is done when all parts are there: not where some of them are made again.
    n_missing, since_s
        How many shards were not done when it last looked, and since when, by the scheduler's clock.
    n_rounds, handed_s
        How often it has handed out what was missing, and when it last did, by the scheduler's clock.
    began_s, n_before
        When it first looked, by the scheduler's clock, and how many recordings were done then.
    """

    submission: Submission
    n_threads: int
    is_told_by_parts: bool = True
    n_missing: int | None = None
    since_s: float = 0.0
    n_rounds: int = 0
    handed_s: float = 0.0
    began_s: float | None = None
    n_before: int = 0
    _done: set[int] = field(default_factory=set)
    _manifest: Manifest | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Read anew where it arrives: a large archive's is some megabytes.
        return {**self.__dict__, "_done": set(), "_manifest": None}

    def look(
        self, now_s: float, has_idle_workers: bool, is_quiet: bool, reason: str | None = None
    ) -> Sequence[Task] | None:
        """Return the shards to hand out once more; None if the run is over.

        Parameters
        ----------
        now_s
            The time, by the scheduler's clock: those of workers may differ.
        has_idle_workers
            Whether some worker has nothing to do.
        is_quiet
            Whether all have.
        reason
            Why no worker goes on, if that is so.
        """
        work = self.submission.work
        if lease.has_ended(work.table, work.run_id):
            work.table.delete(lease.lease_name(work.run_id))
            return None
        present = self._take_in()
        assert self._manifest is not None  # noqa: S101 it was just read
        n_done = sum(self._manifest.shards[shard].n_recordings for shard in self._done)
        if self.began_s is None:
            self.began_s, self.n_before = now_s, n_done
        lasted_s = now_s - self.began_s
        lease.attend(work.table, self.submission.left, n_done_here=n_done - self.n_before, elapsed_s=lasted_s)
        missing = [shard for shard in self._manifest.shards if shard not in self._done]
        if len(missing) != self.n_missing:
            self.n_missing, self.since_s = len(missing), now_s
        quiet_s = now_s - self.since_s
        try:
            work.refuse_if_cancelled()
            is_cancelled = False
        except CancelledError:
            is_cancelled = True
        # What hangs with a shard that is done by another, or was to be the last to add up, keeps nobody.
        is_done = not missing and (is_quiet or self.is_told_by_parts)
        if quiet_s > _QUIET_S and (is_done or (is_cancelled and is_quiet)):
            self._end("cancelled" if missing else "complete")
            return None
        if missing and reason is not None:
            self._end("failed", reason)
            return None
        waited_s = now_s - max(self.since_s, self.handed_s)
        if is_cancelled or not missing or not has_idle_workers or waited_s <= self._patience_s(lasted_s - quiet_s):
            return []
        self.handed_s = now_s
        self.n_rounds += 1
        return make_tasks(self._manifest, missing, present)

    def _take_in(self) -> dict[int, parts.Footer]:
        """Take in which shards are done; return the footers of the others' parts."""
        work = self.submission.work
        if self._manifest is None:
            self._manifest = Manifest(work.table)
        names = [set(place.names()) for place, _ in work.job.outputs]
        new = [
            shard
            for shard in self._manifest.shards
            if shard not in self._done and all(parts.part_name(shard) in there for there in names)
        ]
        found = [parts.own_footers(place, info, new) for place, info in work.job.outputs]
        complete = [parts.select_complete(footers, self._manifest.shards) for footers in found]
        self._done.update(shard for shard in new if all(shard in one for one in complete))
        return found[0]

    def _patience_s(self, busy_s: float) -> float:
        """Return how long nothing may come before what is missing is handed out again, longer every time.

        Of the time in which shards came: the longer nothing comes, the less that says of how long they take.
        """
        busy_s = max(0.0, self.submission.before.elapsed_s + busy_s)
        usual_s = busy_s * self.n_threads / max(1, len(self._done))
        return float(max(_PATIENCE_S, _PATIENCE * usual_s) * 2**self.n_rounds)

    def _end(self, outcome: str, error: str | None = None) -> None:
        """End a run whose last task was lost: what its record says is what the parts say."""
        work = self.submission.work
        assert self._manifest is not None  # noqa: S101 it was just read
        table, info = work.job.outputs[-1]
        footers = parts.complete_shards(table, info, self._manifest.shards)
        counts = sum((footer.counts for footer in footers.values()), parts.Counts())
        self.submission.end(replace(self.submission.before, counts=counts), outcome, error)


def _publish_cancellation(table: Folder, run_id: str) -> None:
    note = seal({"host": platform.node(), "at": time.time()})
    table.publish(lease.cancellation_name(run_id), note)


def cancel_runs(table: Folder) -> list[str]:
    """Ask every run that is at work on a table to stop; return their ids.

    Workers see it before each shard: what is under way is finished, the rest is not begun.

    Raises
    ------
    IncompleteError
        If no run is at work.
    """
    with explained(f"table {table.url}"):
        # Also those of which nothing was heard for long: a cluster may be without workers, and clocks may be wrong.
        runs = [holder.run for holder in lease.read_holders(table) if not holder.is_gone]
        for run_id in runs:
            _publish_cancellation(table, run_id)
    if not runs:
        raise IncompleteError(f"table {table.url}: expected a run at work to cancel, got none")
    return runs
