"""Drive one run over a table: find the shards that are not done, hand them to a cluster, and record the outcome."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property, partial
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from emotion_batch.errors import (
    CancelledError,
    ClusterError,
    DamagedError,
    EmotionBatchError,
    IncompleteError,
    StorageError,
    UsageError,
    counted,
    find_shortage,
)
from emotion_batch.inference.bundle import COPY, Bundle, copy_bundle
from emotion_batch.progress import Progress, Watcher
from emotion_batch.run.canary import Canary
from emotion_batch.run.record import Recorder, Summary, name_outcome, recall_reasons
from emotion_batch.run.run_options import RunOptions
from emotion_batch.run.shards import Pace, choose_witnesses, find_done, find_relisted, has_damage, order_shards
from emotion_batch.storage.archive import Listing
from emotion_batch.storage.entries import Entry
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.storage.retry import PASSES, hastily
from emotion_batch.tables import attempts, schema
from emotion_batch.tables.inventory import read_manifest, require_generations
from emotion_batch.tables.lease import Holder, Lease, begin, cancellation_name, run_ids
from emotion_batch.tables.manifest import Growth, Manifest
from emotion_batch.tables.parts import Counts, Footer, part_name
from emotion_batch.tables.repair import rebuild
from emotion_batch.tables.schema import TableInfo
from emotion_batch.usage import Spent
from emotion_batch.worker import preflight
from emotion_batch.worker.job import Job
from emotion_batch.worker.shard import Work, make_tasks
from emotion_batch.worker.task import Task

if TYPE_CHECKING:
    from emotion_batch.run.dask_cluster import Cluster

PACKAGE = "emotion-batch"


class Run:
    """One run over a table, as a block: in the block the table exists and has a lease of the run, after it there is a record.

    `started` is the time when the call began, by `time.perf_counter`.
    """

    def __init__(self, table: Folder, info: TableInfo, options: RunOptions, started: float) -> None:
        began = datetime.now(UTC)
        self.id = f"{began.strftime('%Y%m%dT%H%M%SZ')}-{secrets.token_hex(4)}"
        self.table = table
        self.info = info
        self.watcher = options.watcher or Watcher()
        self.options = options
        self.scheduler = options.find_scheduler()
        self.summary = Summary(table.url, run=self.id, is_selective=info.segments.source is not None)
        self._recorder = Recorder(
            self.id, began.isoformat(timespec="seconds"), info, self.scheduler is None, options.workers
        )
        self._started = started
        self._lease = Lease(table, self.id)
        self._known_runs: frozenset[str] = frozenset()
        self._others: tuple[Holder, ...] = ()

    def __enter__(self) -> Self:
        self._known_runs, self._others = begin(self.table, self.info, self._lease, self.watcher.on_note)
        for other in self._others:
            self.watcher.on_note(
                f"run {other.run} is at work on this table too, on {other.host}; this does no harm, because each run skips the "
                "shards that the other has done"
            )
        return self

    @cached_property
    def manifest(self) -> Manifest:
        """The table's manifest."""
        return read_manifest(self.table, self.info)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.summary.elapsed_s = time.perf_counter() - self._started
        try:
            # After an error, the user waits for the end of the run, and storage may be the reason for it.
            with explained(f"table {self.table.url}"), hastily() if error is not None else nullcontext():
                # A call that was refused before any work is not a failed run, so it gets no record.
                if not isinstance(error, UsageError):
                    self._recorder.write(self.table, self.summary, *name_outcome(error))
                self.table.delete(cancellation_name(self.id))
        except StorageError as lost:
            self.watcher.on_note(f"the record of this run could not be written: {lost}")
        finally:
            self._lease.end()

    def freeze(
        self, listing: Listing, spent: Spent, since: int | None = None, *, prune: bool, limit: int | None = None
    ) -> bool:
        """Take a listing over into the table's manifest, and note what is remarkable about it.

        Return False, and take nothing over, if it would undo what another run has frozen after the generation `since`.
        """
        note = self.watcher.on_note
        self.summary.spent.add(spent)
        try:
            is_new = not self.manifest.shards
            growth = self._grow(listing.entries, since, prune=prune, limit=limit)
        except DamagedError as error:
            if self._others:
                other = self._others[0]
                raise IncompleteError(
                    f"{error.args[0]}, and run {other.run} is at work on it, on {other.host}; run the same command again when "
                    "that run has ended"
                ) from error
            note(f"{error.args[0]}; it was written anew from the parts that are there and the listing")
            with explained(f"table {self.table.url}"):
                self.manifest = rebuild(self.table, self.info, listing.entries)
            is_new = False
            growth = self._grow(listing.entries, None, prune=prune, limit=limit)
        if growth is None:
            return False
        for remark in listing.remark():
            note(remark)
        if not is_new and any(asdict(growth).values()):
            new, gone = counted(growth.n_new, "new recording"), growth.n_pruned or growth.n_gone
            rows = "; their rows are removed" if growth.n_pruned else "; their rows stay, unless you give --prune"
            changes = f"{new}, {growth.n_changed:,} changed and {gone:,} gone"
            note(f"since the last run the archive has {changes}{rows if gone else ''}")
        self.summary.left_out = listing.left_out
        for name, value in asdict(growth).items():
            setattr(self.summary, name, value)
        return True

    def _grow(self, entries: pa.Table, since: int | None, *, prune: bool, limit: int | None) -> Growth | None:
        """Take a listing over as `Manifest.grow` does; raise DamagedError if the manifest lacks something or has damaged files."""
        check = partial(require_generations, self.table, self.info, self.manifest, listed=entries)
        with explained(f"table {self.table.url}"):
            if problems := self.manifest.find_damage(deep=True):
                raise DamagedError(f"table {self.table.url}: {problems[0]}")
            check([])
            return self.manifest.grow(
                entries,
                self.info.segments,
                prune=prune,
                force=self.options.force,
                since=since,
                limit=limit,
                check=check,
            )

    def keep_features(self, table: Folder, info: TableInfo) -> None:
        """Make the feature table that keeps the features of this run."""
        held = Lease(table, self.id)
        begin(table, info, held, self.watcher.on_note)
        held.end()

    def follow(self, manifest: Manifest) -> None:
        """Take the manifest of a feature table over."""
        with explained(f"table {self.table.url}"):
            self.manifest = Manifest.following(self.table, manifest)

    def keep_model(self, bundle: Bundle) -> Bundle:
        """Return the table's own copy of a bundle; missing files of the copy are made."""
        licence = bundle.card.training.get("data_licence")
        self.summary.model = (
            f"model {bundle.card.model_id}{f'; licence of its training data: {licence}' if licence else ''}"
        )
        return copy_bundle(bundle, self.table.folder(COPY))

    def find_witnesses(self, archive: Folder) -> tuple[Entry, ...]:
        """Return a few recordings that can be read here: see `shards.choose_witnesses`."""
        return choose_witnesses(self.table, self.info, self.manifest, archive, self.watcher.on_note)

    def finish(self, job: Job, features: Mapping[int, Footer] | None = None) -> Summary:
        """Do every shard that is not done, and return the summary of the run.

        `features` are the footers of the feature table whose rows are labelled. Raise CanaryError, IncompleteError or ClusterError if
        the run was stopped, or shards are left.
        """
        # Arrow would keep the memory of the listing, and Dask needs it now.
        pa.default_memory_pool().release_unused()
        for number in range(1 if job.is_retry else PASSES):
            done, todo = self._look(job, features) if number else self._choose(job, features)
            self._do(job, done, todo)
            recall_reasons(self.summary, self.table, self.info, done)
            with explained(f"table {self.table.url}"):
                came = run_ids(self.table) - self._known_runs - {self.id}
            # Another run may have frozen more since, or replaced some of these parts by parts of an older listing.
            if self.summary.n_shards_left or not (job.is_retry or self._others or came):
                return self.summary
        _, missing = self._look(job, features)
        if missing:
            raise IncompleteError(
                f"table {self.table.url}: {len(missing):,} of its {counted(len(self.manifest.shards), 'part')} cannot be used "
                "(missing or out of date); run the command that made it again"
            )
        return self.summary

    def _choose(self, job: Job, features: Mapping[int, Footer] | None) -> tuple[dict[int, Footer], list[Task]]:
        """Return the footers of this table's shards that are done, and the tasks of those that this run is to do."""
        done, missing = self._look(job, features)
        if job.is_retry:
            return done, self._tasks([shard for shard in done if job.again & set(done[shard].counts.by_status)], done)
        if done and (not missing or has_damage(self.table, missing)):
            # Some damage is found only by reading. This costs little compared with making a table, and much compared with a
            # few new recordings.
            self.watcher.on_note("reading the rows of finished parts, because some damage shows only there")
            done, missing = self._look(job, features, deep=True)
        listed = find_relisted(self.table, self.info, self.manifest, done) if features is None else []
        return done, missing + self._tasks(listed, done)

    def _look(
        self, job: Job, features: Mapping[int, Footer] | None, *, deep: bool = False
    ) -> tuple[dict[int, Footer], list[Task]]:
        """Return the footers of this table's shards that are done, and the tasks of those that are not."""
        done, present = find_done(self.manifest, job.outputs, features, self.watcher.on_note, deep=deep)
        return done, self._tasks([shard for shard in self.manifest.shards if shard not in done], present)

    def _tasks(self, numbers: Iterable[int], present: Mapping[int, Footer]) -> list[Task]:
        """Return tasks for shards in the order in which to begin them, given the parts that are there."""
        entries = self.manifest.shards
        order = order_shards({shard: entries[shard].cost for shard in numbers})
        if any(other.run < self.id for other in self._others):
            # The other run begins at the other end of the order.
            order.reverse()
        return make_tasks(self.manifest, order, present)

    def _do(self, job: Job, done: Mapping[int, Footer], todo: list[Task]) -> None:
        shards = {task.shard for task in todo}
        self.summary.counts = sum((done[shard].counts for shard in done if shard not in shards), Counts())
        self.summary.n_shards = len(self.manifest.shards)
        if not todo:
            return
        with self._connected(len(todo)) as cluster:
            if cluster.dashboard:
                self.watcher.on_note(f"dashboard at {cluster.dashboard}")
            if self.scheduler is not None:
                self._preflight(cluster, job)
            versions = tuple(preflight.read_versions(*job.optional).items())
            self._hand_out(cluster, Work(job, self.id, versions, self.manifest.generation), todo)

    def _hand_out(self, cluster: Cluster, work: Work, todo: list[Task]) -> None:
        self._work_off(cluster, work, todo, len(todo))

    @contextmanager
    def _connected(self, n_shards: int) -> Iterator[Cluster]:
        """Give a cluster; a run that ends early deletes the notes of shards in progress on its own workers, which end with it."""
        cluster = import_cluster()
        n_workers = min(self.options.workers or cluster.N_CORES, n_shards)
        lost: frozenset[int] | None = None
        try:
            with cluster.connect(self.scheduler, n_workers, self.watcher.on_note) as connected:
                try:
                    yield connected
                except BaseException:
                    if self.scheduler is None:
                        with suppress(Exception), hastily():
                            # The workers still live here; one that died before may have died because of a recording.
                            lost = attempts.find_lost(self.table, self.id)
                    raise
        finally:
            if lost is not None:
                with suppress(Exception), hastily():
                    attempts.take_back(self.table, self.id, lost)

    def _work_off(self, cluster: Cluster, work: Work, todo: list[Task], n_in_all: int) -> None:
        """Have shards done and wait for them; `n_in_all` is the number of all shards of the run."""
        canary = None if self.options.force else Canary(self.info.source)
        begun = time.perf_counter()
        n_done_here = 0
        pace = Pace(sum(task.entry.cost for task in todo), sum(cluster.threads().values()))
        cancelled: CancelledError | None = None
        failures: list[tuple[int, BaseException]] = []
        n_resubmitted = self.summary.n_resubmitted
        for task, outcome in cluster.run(work, todo, self._check):
            self.summary.n_resubmitted = n_resubmitted + cluster.n_resubmitted
            if isinstance(outcome, DamagedError):
                raise outcome
            if isinstance(outcome, CancelledError):
                cancelled = outcome
                continue
            if isinstance(outcome, StorageError):
                # A full disk is full for every shard, so the rest would be decoded for nothing.
                raise IncompleteError(
                    f"{outcome}; finished work is kept, and the same command again resumes"
                ) from outcome
            if isinstance(outcome, BaseException):
                failures.append((task.shard, outcome))
                continue
            n_done_here += task.entry.n_recordings
            self._lease.done(task.shard)
            self.summary.add(outcome)
            elapsed_s = time.perf_counter() - begun
            self._tell(n_done_here, elapsed_s, pace.estimate_left(task.entry.cost, outcome.elapsed_s, elapsed_s))
            if canary is not None and self.summary.n_shards_done + len(failures) < n_in_all:
                canary.watch(outcome)
        if cancelled is not None:
            raise cancelled
        if failures:
            shard, first = failures[0]
            said = f": {first}"
            # An error of this package says itself what to do.
            if not isinstance(first, EmotionBatchError):
                shortage = find_shortage(first)
                reason = (
                    f"its worker did not have enough {shortage}" if shortage else f"{type(first).__name__}: {first}"
                )
                said = f" (shard {shard}: {reason}); run the same command again to do what is left"
            n_shards = counted(len(self.manifest.shards), "shard")
            raise IncompleteError(
                f"table {self.table.url}: {len(failures):,} of its {n_shards} could not be done{said}"
            )

    def _check(self) -> None:
        """Raise an error if the run is to stop while it waits for shards."""

    def _tell(self, n_done_here: int, elapsed_s: float, left_s: float) -> None:
        counts, n_recordings = self.summary.counts, self.manifest.n_recordings
        self._lease.tell(n_done_here=n_done_here, elapsed_s=elapsed_s)
        here = (n_done_here, elapsed_s, self.summary.audio_s, left_s)
        self.watcher.on_progress(Progress(n_recordings, counts.n_recordings, counts.n_failed, *here))

    def _preflight(self, connected: Cluster, job: Job) -> None:
        """Let every worker try what it will need, and note how the cluster could be faster."""
        nonce_name, nonce = f"{schema.LEDGER}/preflight-{self.id}", secrets.token_bytes(16)
        probe = preflight.Probe(
            table=self.table,
            nonce_name=nonce_name,
            nonce=nonce,
            archive=job.archive,
            recording=job.witnesses[0] if job.witnesses else None,
            features=None if job.source is None else (job.source.table, part_name(min(self.manifest.shards))),
            bundle=job.bundle,
            versions=preflight.read_versions(*job.optional),
        )
        with explained(f"table {self.table.url}"):
            self.table.publish(nonce_name, nonce)
            try:
                connected.preflight(PACKAGE, probe)
            finally:
                self.table.delete(nonce_name)
        many = [worker for worker, n_threads in connected.threads().items() if n_threads > 1]
        if many:
            self.watcher.on_note(
                f"{counted(len(many), 'worker')} with several threads in one process: the same cores do more with one process "
                "each, e.g. `dask worker ADDRESS --nworkers=-1 --nthreads 1`"
            )


def import_cluster() -> ModuleType:
    """Import and return the module that knows Dask. It is imported late, because a single recording and `--help` need no Dask.

    Raise ClusterError if Dask does not even start with the settings that the user has made for it.
    """
    try:
        from emotion_batch.run import dask_cluster
    except ImportError:
        raise
    except Exception as error:
        raise ClusterError(
            f"Dask does not start with its settings on this machine ({error}); check its YAML files, e.g. in ~/.config/dask, and "
            "the environment variables that begin with DASK_"
        ) from error
    return dask_cluster
