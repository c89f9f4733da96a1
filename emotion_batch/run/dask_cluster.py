"""Run shards on a Dask cluster: hand them out, hand them out again if a worker fails, and yield their receipts.

Only the modules ``dask_*`` import Dask. They know shards and a function, and nothing about audio.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import Any

import dask
import dask.bag
import dask.system
from distributed import Client, Future, KilledWorker, as_completed, fire_and_forget, futures_of, get_client, secede
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError

from emotion_batch.errors import CancelledError, ClusterError, IncompleteError, find_shortage
from emotion_batch.run import dask_client
from emotion_batch.run.dask_client import losing, shorten, wake
from emotion_batch.run.dask_local import local_cluster, require_loopback
from emotion_batch.run.dask_tasks import Receipt, Task, do_partition, make_bag
from emotion_batch.run.scheduler import Scheduler, SchedulerLostError
from emotion_batch.storage.retry import SHARD_WAITS_S, is_transient

_WORKERS_TIMEOUT_S = 30
# A cluster that scales itself may have no workers for a while.
_NO_WORKERS_S = 600

# The number of cores that this process may use, by its affinity and the limits of its container.
N_CORES: int = dask.system.CPU_COUNT


class Cluster:
    """A connected cluster.

    `dashboard` is the address of its dashboard, or None; `n_resubmitted` counts the shards that were handed out once more.
    """

    # Keys of the tasks that drive submitted runs begin with this.
    DRIVER_KEY = dask_client.DRIVER_KEY

    def __init__(self, client: Client, is_local: bool, on_note: Callable[[str], None]) -> None:
        self._client = client
        self._on_note = on_note
        # Workers that cannot do the work, with the reason.
        self._unfit: dict[str, str] = {}
        self.n_resubmitted = 0
        self.dashboard: str | None = None
        # The user may have set a format for the address that is not valid.
        with contextlib.suppress(Exception):
            self.dashboard = client.dashboard_link or None
        self.is_local = is_local

    @classmethod
    def of_worker(cls, on_note: Callable[[str], None]) -> Cluster:
        """Return the cluster of the worker that this task runs on, and free the thread that the task holds there."""
        secede()
        cluster = cls(get_client(), False, on_note)
        cluster.dashboard = None
        return cluster

    def threads(self) -> dict[str, int]:
        """Return the number of threads of each worker process, by address."""
        return dict(self._client.nthreads())

    def losing(self) -> AbstractContextManager[None]:
        """Return a block that turns Dask's errors about a lost scheduler into a `SchedulerLostError`."""
        return losing(self._client)

    def preflight(self, package: str, probe: Callable[[], str | None]) -> None:
        """Check that every worker can do the work, before it gets any.

        Each must have this version of the distribution `package`. `probe` is called there and returns what the worker lacks, as the rest
        of a sentence, or None. Raise ClusterError with one worker's address and what it lacks.
        """
        version = importlib.metadata.version(package)
        # A function of the standard library comes first, because a function of a missing package could not even be sent.
        for worker, found in self._ask(importlib.metadata.version, package).items():
            if isinstance(found, BaseException):
                raise ClusterError(
                    f"worker {worker}: {package} {version} is not installed there ({shorten(found)}); install it"
                )
            if found != version:
                raise ClusterError(
                    f"worker {worker} must have {package} {version}: {found}; install the same version, and start the worker again"
                )
        for worker, lack in self._ask(probe).items():
            if lack is not None:
                raise ClusterError(f"worker {worker}: {shorten(lack) if isinstance(lack, BaseException) else lack}")

    def run(
        self, function: Callable[[Task], Receipt], tasks: Sequence[Task], check: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Task, Receipt | BaseException]]:
        """Run a function over shards as a bag of one partition each; yield each task with its receipt or error, as they end.

        If a shard fails because of a worker or a store, it is handed out again a few times, after longer and longer pauses. If a shard
        takes long while workers are idle, another worker begins it too, and the first result counts. If `function` raises
        `UnfitWorkerError`, another worker gets the shard. `function` must differ from run to run, because Dask takes equal calls for
        one. `tasks` are in the order in which to begin them. `check` is called again and again, and an error that it raises ends the run.
        """
        # Each run has its own topic, because several runs may share the client of a worker.
        do = partial(do_partition, function, topic=f"emotion-batch-unfit-{secrets.token_hex(8)}")
        self._client.subscribe_topic(do.keywords["topic"], self._hear_of_unfit)
        bag = make_bag(do, tasks)
        futures = futures_of(self._client.persist(bag))
        del bag
        left = {future.key: (task, future) for task, future in zip(tasks, futures, strict=True)}
        del futures
        done = as_completed(
            [future for _, future in left.values()], loop=self._client.loop, with_results=True, raise_errors=False
        )
        stragglers = dask_client.Stragglers(self._client)
        memory = dask_client.MemoryMonitor(self._client, self._on_note)
        twins: dict[Task, set[Any]] = {}
        waiting: list[tuple[float, Task]] = []
        n_tries: Counter[Task] = Counter()
        heard = time.monotonic()

        def hand_out(task: Task, **options: Any) -> None:
            # It gets a new key, because the scheduler remembers the other one.
            key = f"again-{secrets.token_hex(8)}"
            left[key] = (task, self._client.submit(do, task, key=key, **options))
            twins.setdefault(task, set()).add(key)
            done.add(left[key][1])
            self.n_resubmitted += 1

        try:
            while left or waiting:
                for due, task in waiting.copy():
                    if due <= time.monotonic():
                        waiting.remove((due, task))
                        hand_out(task)
                check()
                batch = done.next_batch(block=False)
                if not batch:
                    # Results are polled, because those of a lost scheduler would never come.
                    self._check_scheduler([future for _, future in islice(left.values(), 1)])
                    if time.monotonic() - heard > (_WORKERS_TIMEOUT_S if self.is_local else _NO_WORKERS_S):
                        self._check_workers()
                        heard = time.monotonic()
                    if (reason := memory.look()) is not None:
                        raise IncompleteError(reason)
                    for key, idle in stragglers.find(left, self._unfit):
                        task = left[key][0]
                        twins.setdefault(task, set()).add(key)
                        hand_out(task, workers=idle, allow_other_workers=True)
                    time.sleep(dask_client.POLL_S)
                else:
                    heard = time.monotonic()
                    if any(future.status == "finished" for future, _ in batch):
                        memory.n_starts = memory.n_ended = 0
                for future, result in batch:
                    if future.key not in left:
                        # Another attempt at the same shard came first.
                        continue
                    task, _ = left.pop(future.key)
                    others = twins.get(task, set()) & left.keys()
                    if future.status == "finished":
                        ((elapsed_s, outcome),) = result
                        stragglers.hear(elapsed_s)
                    else:
                        outcome = _failure(result)
                    # The scheduler forgets a released future, so its memory does not grow.
                    future.release()
                    if isinstance(outcome, BaseException) and others:
                        continue
                    if n_tries[task] < len(SHARD_WAITS_S) and _is_passing(outcome):
                        waiting.append((time.monotonic() + SHARD_WAITS_S[n_tries[task]], task))
                        n_tries[task] += 1
                        continue
                    for key in others:
                        left.pop(key)[1].release()
                    if isinstance(outcome, CancelledError):
                        # Shards that workers have begun must end, because nothing may run after the end of the run.
                        begun = {key for keys in self._client.processing().values() for key in keys}
                        waiting.clear()
                        for key in left.keys() - begun:
                            left.pop(key)[1].release()
                    yield task, outcome
        finally:
            # The client of a worker stays open, so the scheduler would continue with these.
            with contextlib.suppress(Exception):
                for _, future in left.values():
                    future.release()
                self._client.unsubscribe_topic(do.keywords["topic"])

    def hand_over(self, function: Callable[[Task], Any], task: Task, key: str) -> None:
        """Leave one call to the cluster, which finishes it without this process.

        Dask runs it again elsewhere if its worker dies, and gives its key up after the fourth worker has died during it. A second call
        with the same key is the same call.
        """
        wake(self._client, self._on_note)
        submitted = self._client.submit(
            do_partition,
            function,
            task,
            key=key,
            priority=1,
            # Retries help with passing errors. No workers are named, because Dask never repeats a call whose named workers are gone.
            retries=3,
        )
        # The scheduler keeps the call until it is done, even if this client leaves.
        fire_and_forget(submitted)

    def _hear_of_unfit(self, event: tuple[float, Mapping[str, str]]) -> None:
        """Note, in the thread of the client, that a worker cannot do the work."""
        worker, said = event[1]["worker"], event[1]["said"]
        if worker not in self._unfit:
            self._unfit[worker] = said
            self._on_note(f"worker {worker}: {said}; others do its share")

    def _check_scheduler(self, futures: Sequence[Future[Any]]) -> None:
        if self._client.status != "running" or any(future.status == "lost" for future in futures):
            raise SchedulerLostError

    def _check_workers(self) -> None:
        there = self.threads()
        if there and there.keys() <= self._unfit.keys():
            worker = next(iter(there))
            raise IncompleteError(
                f"cluster: none of its workers can do the work, e.g. {worker}: {self._unfit[worker]}; then run the same command "
                "again to resume"
            )
        if not there:
            raise IncompleteError(
                "cluster: all of its workers have ended; "
                + ("find the reason on this machine, e.g. a limit (`ulimit -a`)," if self.is_local else "start some")
                + " and run the same command again to resume"
            )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Mapping[str, Any]:
        """Ask all workers, and return the answers of those that have not ended."""
        with losing(self._client):
            answers = dict(self._client.run(function, *arguments, on_error="return"))
        gone = [worker for worker, found in answers.items() if isinstance(found, OSError) and not find_shortage(found)]
        if gone and len(gone) == len(answers):
            raise ClusterError(
                f"worker {gone[0]} ended before it answered; see its log (its memory limit may be too low), then run the same "
                "command again"
            )
        for worker in gone:
            self._on_note(f"worker {worker} ended before it had any work; others do its share")
            del answers[worker]
        return answers


@contextlib.contextmanager
def connect(
    scheduler: Scheduler | None, n_workers: int, on_note: Callable[[str], None] = lambda text: None
) -> Iterator[Cluster]:
    """Connect to a running scheduler, or start a cluster of one-thread workers on this machine that ends with the block.

    `on_note` takes a sentence that a person should read. Raise ClusterError if there is no scheduler, or no worker joins it.
    """
    # Dask would repeat the errors that become a sentence here, as tracebacks.
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        is_local = scheduler is None
        # A run that waits for a store keeps its cluster, because of this idle time.
        if scheduler is None:
            configuration = dask_client.local_configuration()
            given = dask.config.serialize(configuration)
            try:
                scheduler = Scheduler(stack.enter_context(local_cluster(n_workers, 3 * max(SHARD_WAITS_S), given)))
            except OSError as error:
                raise ClusterError(
                    f"local cluster: its processes do not start ({error}); repair that, then run the same command again"
                ) from error
            with dask.config.set(configuration):
                client = dask_client.open_client(scheduler)
        else:
            if (risk := scheduler.find_risk()) is not None:
                on_note(risk)
            client = dask_client.open_client(scheduler)
        stack.callback(dask_client.close, client)
        try:
            wake(client, on_note)
            client.wait_for_workers(1, timeout=_WORKERS_TIMEOUT_S)
        except OSError as error:
            if not isinstance(error, TimeoutError):
                raise SchedulerLostError from error
            if is_local:
                # `local_cluster` has the log with the reason.
                raise
            raise ClusterError(
                f"scheduler {scheduler.address}: no worker has joined it within {_WORKERS_TIMEOUT_S} s; start one with "
                f"`dask worker {scheduler.address}`"
            ) from error
        if is_local:
            # All workers are started in the same way, so these show how the later ones will listen.
            require_loopback(client.nthreads())
        with losing(client):
            yield Cluster(client, is_local, on_note)


class _LostError(Exception):
    """A shard that the cluster forgot."""


def _failure(result: Any) -> BaseException:
    """Return the exception of a future that failed, was cancelled or lost its scheduler."""
    error = result[1] if isinstance(result, tuple) else result
    if isinstance(error, BaseException) and not isinstance(error, FutureCancelledError):
        return error
    return _LostError("the cluster lost this shard")


def _is_passing(outcome: object) -> bool:
    """Return whether a shard failed for a reason that may go away."""
    return isinstance(outcome, KilledWorker | CommClosedError | _LostError) or (
        isinstance(outcome, BaseException) and (is_transient(outcome) or find_shortage(outcome) is not None)
    )
