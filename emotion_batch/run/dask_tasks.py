"""Shards on a Dask cluster. Alone imports dask; knows shards and a function, nothing of audio."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import secrets
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NoReturn, Protocol, TypeVar

import dask
import dask.bag
from distributed import (
    Client,
    Future,
    KilledWorker,
    Reschedule,
    Security,
    as_completed,
    fire_and_forget,
    futures_of,
    get_client,
    get_worker,
    secede,
)
from distributed.client import FutureCancelledError
from distributed.comm.addressing import parse_address
from distributed.comm.core import CommClosedError
from distributed.comm.registry import get_backend

from emotion_batch.errors import ClusterError, EmotionBatchError, IncompleteError, UnfitWorkerError, find_shortage
from emotion_batch.run.local_cluster import local_cluster, require_loopback
from emotion_batch.run.scheduler import Scheduler
from emotion_batch.storage.retry import is_transient
from emotion_batch.worker import process

Receipt = TypeVar("Receipt")
Task = TypeVar("Task")
Total = TypeVar("Total")
GivenTask = TypeVar("GivenTask", contravariant=True)
LateTask = TypeVar("LateTask", covariant=True)

_POLL_S = 0.05
_CONNECT_TIMEOUT_S = 10
_WORKERS_TIMEOUT_S = 30
# A cluster that scales itself may be without workers for a while.
_NO_WORKERS_S = 600
# How long a shard waits before it is handed out once more, because a worker or a store failed: some three minutes in
# all, on top of what a worker itself waits for a store.
RESUBMIT_S = (1.0, 5.0, 15.0, 30.0, 60.0, 60.0)
# A shard that takes so many times what is usual, and so long, while workers have nothing to do, is begun by one of
# these too: that it is written twice harms nothing.
_STRAGGLES = 3.0
_STRAGGLES_S = 10.0
_LOOK_S = 2.0
# How long a worker that cannot do a shard keeps it from coming straight back.
_UNFIT_PAUSE_S = 5.0
_UNFIT_TOPIC = "emotion-batch-unfit"
# Receipts that one task adds up.
_SPLIT_EVERY = 64
# How often a watch looks, and how long it lasts before another takes over: Dask condemns a task whose worker died under
# it four times, and in one night that is not many.
_WATCH_EVERY_S = 10.0
_WATCH_S = 300.0
_WATCH_KEY = "emotion-batch-watch-"
# A worker of which nothing was heard for so long hangs, or will be given up.
_SILENT_S = 60.0
_LOST = (
    "scheduler: expected it to stay until the work is done, got no answer any more; run the same command again, it goes on from "
    "there"
)
# A worker that Dask has paused for so long while nothing runs on it does not resume by itself; after so long without
# another way out, a run of such workers alone ends.
_PAUSED_S, _PAUSED_FOR_GOOD_S = 10.0, 60.0
# So often each worker is started again while no shard ends: one that is too small even then stays so.
_MOST_STARTS = 3
# So often for each thread workers are ended for their memory while no shard ends: what ends one is decoded in a child after.
_MOST_ENDS = 4
_WAY_OUT = "start workers with more memory or fewer threads"


class Work(Protocol[GivenTask, Total]):
    """What is handed to a cluster that nobody waits for; travels to workers."""

    def do(self, task: GivenTask) -> Any:
        """Do a shard and return its receipt, or what it failed of; raise nothing but `UnfitWorkerError`."""

    def gather(self, outcomes: Iterable[Any]) -> Total:
        """Add up what shards gave."""

    def merge(self, totals: Iterable[Total]) -> Total:
        """Add up what was added up."""

    def close(self, total: Total) -> None:
        """Leave the record of the whole."""


class Watch(Protocol[LateTask]):
    """Looks after work that was handed over; travels to a worker, and on to others."""

    def look(
        self, now_s: float, has_idle_workers: bool, is_quiet: bool, reason: str | None
    ) -> Sequence[LateTask] | None:
        """Return the shards to hand out once more; None if there is nothing to look after any more, or a reason to give up.

        It is given the time by the scheduler's clock, the one that is the same wherever it looks from.
        """


class Cluster:
    """A connected cluster.

    Attributes
    ----------
    dashboard
        Address of its dashboard, or None where it has none.
    is_local
        Whether it was started for this run, on this machine.
    n_resubmitted
        Shards handed out once more so far.
    """

    def __init__(self, client: Client, is_local: bool, on_note: Callable[[str], None]) -> None:
        self._client = client
        self._on_note = on_note
        # Workers that have not what the work takes, with what they lack.
        self._unfit: dict[str, str] = {}
        self.n_resubmitted = 0
        self.dashboard: str | None = None
        # What the user has set for it may be no format.
        with contextlib.suppress(Exception):
            self.dashboard = client.dashboard_link or None
        self.is_local = is_local

    def threads(self) -> dict[str, int]:
        """Return the number of threads of each worker process, by address."""
        return dict(self._client.nthreads())

    def processes(self) -> list[int]:
        """Return the process ids of the workers, each on its own machine."""
        return list(self._ask(os.getpid).values())

    def preflight(self, package: str, probe: Callable[[], str | None]) -> None:
        """See that every worker can do the work, before it is handed any.

        Parameters
        ----------
        package
            Distribution that each worker must have, in this version.
        probe
            Called on each worker; returns what the worker lacks, as the end of a sentence, or None.

        Raises
        ------
        ClusterError
            With one worker's address and what it lacks.
        """
        version = importlib.metadata.version(package)
        # A function of the standard library first: one of the package does not even arrive where that is missing.
        for worker, found in self._ask(importlib.metadata.version, package).items():
            if isinstance(found, BaseException):
                raise ClusterError(
                    f"worker {worker}: expected {package} {version}, got none ({_said(found)}); install it there"
                )
            if found != version:
                raise ClusterError(
                    f"worker {worker}: expected {package} {version}, got {found}; install the same, and start the worker again"
                )
        for worker, lack in self._ask(probe).items():
            if lack is not None:
                raise ClusterError(f"worker {worker}: {_said(lack) if isinstance(lack, BaseException) else lack}")

    def run(
        self, function: Callable[[Task], Receipt], tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, Receipt | BaseException]]:
        """Run a function over shards as a bag of one partition each, and yield what each gave, as they end.

        A shard that ends with a worker or a store that failed is handed out again, some times and later and later; one
        that is long in coming when workers are idle is begun by another too, and whichever ends first counts.

        Parameters
        ----------
        function
            From a shard's numbers to its small receipt. Must differ from run to run, for Dask takes equal calls for one;
            where it raises `UnfitWorkerError`, another worker gets the shard.
        tasks
            The shards' numbers, in the order in which to begin them.

        Yields
        ------
        A shard's numbers, with its receipt or what it raised.
        """
        self._client.subscribe_topic(_UNFIT_TOPIC, self._hear_of_unfit)
        bag = _bag(partial(_do_partition, function), tasks)
        futures = futures_of(self._client.persist(bag))
        del bag
        left = {future.key: (task, future) for task, future in zip(tasks, futures, strict=True)}
        del futures
        done = as_completed(
            [future for _, future in left.values()], loop=self._client.loop, with_results=True, raise_errors=False
        )
        stragglers = _Stragglers(self._client)
        memory = _Memory(self._client, self._on_note)
        self._client.subscribe_topic("worker-restart-memory", memory.hear)
        twins: dict[Task, set[Any]] = {}
        waiting: list[tuple[float, Task]] = []
        n_tries: Counter[Task] = Counter()
        heard = time.monotonic()

        def hand_out(task: Task, **options: Any) -> None:
            # A key of its own, for the scheduler remembers the other one.
            key = f"again-{secrets.token_hex(8)}"
            left[key] = (task, self._client.submit(_do_partition, function, task, key=key, **options))
            twins.setdefault(task, set()).add(key)
            done.add(left[key][1])
            self.n_resubmitted += 1

        while left or waiting:
            for due, task in waiting.copy():
                if due <= time.monotonic():
                    waiting.remove((due, task))
                    hand_out(task)
            batch = done.next_batch(block=False)
            if not batch:
                # Asked for and not waited for: what a lost scheduler had would never come.
                self._check_scheduler([future for _, future in islice(left.values(), 1)])
                if time.monotonic() - heard > (_WORKERS_TIMEOUT_S if self.is_local else _NO_WORKERS_S):
                    self._check_workers()
                    heard = time.monotonic()
                if (reason := memory.look()) is not None:
                    raise IncompleteError(reason)
                for key, idle in stragglers.find(left):
                    task = left[key][0]
                    twins.setdefault(task, set()).add(key)
                    hand_out(task, workers=idle, allow_other_workers=True)
                time.sleep(_POLL_S)
            else:
                heard = time.monotonic()
                if any(future.status == "finished" for future, _ in batch):
                    memory.n_starts = memory.n_ended = 0
            for future, result in batch:
                if future.key not in left:
                    # Its twin came first.
                    continue
                task, _ = left.pop(future.key)
                others = twins.get(task, set()) & left.keys()
                if future.status == "finished":
                    ((elapsed_s, outcome),) = result
                    stragglers.hear(elapsed_s)
                else:
                    outcome = _failure(result)
                # The scheduler forgets what is released, which keeps its memory level.
                future.release()
                if isinstance(outcome, BaseException) and others:
                    continue
                if n_tries[task] < len(RESUBMIT_S) and _is_passing(outcome):
                    waiting.append((time.monotonic() + RESUBMIT_S[n_tries[task]], task))
                    n_tries[task] += 1
                    continue
                for key in others:
                    left.pop(key)[1].release()
                yield task, outcome

    def hand_over(self, work: Work[Task, Total], watches: Sequence[Watch[Task]], tasks: Sequence[Task]) -> None:
        """Leave shards, as a bag of one partition each, to the cluster, which goes on to the end by itself.

        What the scheduler then holds is everything: workers may come and go, and no client need be there. Receipts are
        added up on the workers. Beside the shards watches go round that hold no worker's thread and hand out again
        what was lost or is late: more than one, each on workers of its own, for the one that a watch is on may hang.

        Parameters
        ----------
        work, watches
            What is done with a shard and at the end; who looks after it. Both must differ from run to run.
        tasks
            The shards' numbers, in the order in which to begin them.
        """
        _wake(self._client, self._on_note)
        # The watches first, because a worker that Dask pauses over its first shards begins nothing more.
        for number, watch in enumerate(watches):
            _set_watch(self._client, watch, work.do, (number, len(watches)))
        total = _bag(partial(_settle, work.do), tasks).reduction(work.gather, work.merge, split_every=_SPLIT_EVERY)
        # The scheduler keeps what was fired and forgotten until it is done, whoever leaves.
        fire_and_forget(self._client.compute(total.apply(work.close)))

    def _hear_of_unfit(self, event: tuple[float, Mapping[str, str]]) -> None:
        """Take in that a worker cannot do the work, from the client's own thread."""
        worker, said = event[1]["worker"], event[1]["said"]
        if worker not in self._unfit:
            self._unfit[worker] = said
            self._on_note(f"worker {worker}: {said}; others do its share")

    def _check_scheduler(self, futures: Sequence[Future[Any]]) -> None:
        if self._client.status != "running" or any(future.status == "lost" for future in futures):
            raise IncompleteError(_LOST)

    def _check_workers(self) -> None:
        there = self.threads()
        if there and there.keys() <= self._unfit.keys():
            worker = next(iter(there))
            raise IncompleteError(
                f"cluster: expected workers that can do the work, got only others: {worker}: {self._unfit[worker]}; then run the same "
                "command again, it goes on from there"
            )
        if not there:
            raise IncompleteError(
                "cluster: expected workers until the work is done, got none any more; "
                + (
                    "see what ends them on this machine, such as a limit (`ulimit -a`),"
                    if self.is_local
                    else "start some"
                )
                + " and run the same command again, it goes on from there"
            )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Mapping[str, Any]:
        """Ask all workers, and return what those say that are still there."""
        with _losing(self._client):
            answers = dict(self._client.run(function, *arguments, on_error="return"))
        gone = [worker for worker, found in answers.items() if isinstance(found, OSError) and not find_shortage(found)]
        if gone and len(gone) == len(answers):
            raise ClusterError(
                f"worker {gone[0]}: it has ended before it answered; look into its log (its limit of memory may "
                "be too low), then run the same command again"
            )
        for worker in gone:
            self._on_note(f"worker {worker} has ended, before it had any work; others do its share")
            del answers[worker]
        return answers


class _Stragglers:
    """Finds shards that are long in coming while workers are idle."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._usual: list[float] = []
        self._since: dict[Any, float] = {}
        self._looked = 0.0

    def hear(self, elapsed_s: float) -> None:
        """Take in how long a shard took."""
        self._usual.append(elapsed_s)

    def find(self, left: Mapping[Any, Any]) -> list[tuple[Any, list[str]]]:
        """Return the keys of shards that straggle, each once, with the workers that are idle."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return []
        self._looked = now
        try:
            processing = self._client.processing()
        except (OSError, TimeoutError):
            # A scheduler that does not answer is no matter of stragglers.
            return []
        idle = [worker for worker, keys in processing.items() if not keys]
        # Before all are begun, whoever is idle will have others.
        if not idle or left.keys() - {key for keys in processing.values() for key in keys}:
            return []
        limit = max(_STRAGGLES_S, _STRAGGLES * statistics.median(self._usual or [0.0]))
        late = [key for key in left if now - self._since.setdefault(key, now) > limit]
        for key in late:
            self._since[key] = float("inf")
        idle = _heard_of(self._client, idle)[1] if late else []
        return [(key, idle) for key in late]


class _Memory:
    """Looks after workers that are short of memory: Dask pauses them, and those do not resume by themselves, or ends them."""

    def __init__(self, client: Client, on_note: Callable[[str], None]) -> None:
        self._client = client
        self._on_note = on_note
        # Since when each is paused and runs nothing.
        self._since: dict[str, float] = {}
        self._told: set[str] = set()
        self._looked = 0.0
        self._ended = ""
        self._n_threads = 1
        # Since a shard ended: paused workers that were started again, and workers that their nannies have ended.
        self.n_starts = 0
        self.n_ended = 0

    def hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Take in that a nanny has ended its worker, from the client's own thread."""
        self.n_ended += 1
        self._ended = f"{event[1]['worker']} at {event[1]['rss'] / 1e6:,.0f} MB"
        self._tell(
            "ended", f"worker {self._ended}: its nanny has ended it, because its limit of memory is near; {_WAY_OUT}"
        )

    def look(self) -> str | None:
        """Start paused workers again if they have a nanny; return why the work does not go on if there is no way out."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return None
        self._looked = now
        workers = self._client.scheduler_info()["workers"]
        # Some are missing because they are just being started again.
        self._n_threads = max(self._n_threads, sum(about["nthreads"] for about in workers.values()))
        if self.n_ended > _MOST_ENDS * self._n_threads:
            return (
                f"cluster: expected shards to be done, got workers that are ended one after the other because their limit of memory is "
                f"near, as {self._ended}; {_WAY_OUT}, then run the same command again, it goes on from there"
            )
        paused = {
            address: about
            for address, about in workers.items()
            if about["status"] == "paused" and "executing" not in about["metrics"].get("task_counts", {})
        }
        new = [address for address in paused if address not in self._since]
        if new:
            self._client.run(process.give_back_memory, workers=new, on_error="ignore")
        self._since = {address: self._since.get(address, now) for address in paused}
        for address, about in paused.items():
            if now - self._since[address] < _PAUSED_S:
                continue
            memory = f"{about['metrics']['memory'] / 1e6:,.0f} of its {about['memory_limit'] / 1e6:,.0f} MB of memory"
            if about["nanny"] and self.n_starts < _MOST_STARTS * len(workers):
                self._client.run(_start_again, workers=[address], wait=False, on_error="ignore")
                self.n_starts += 1
                self._since[address] = now
                self._tell(
                    "again",
                    f"worker {address}: Dask has paused it at {memory}, so it is started again; {_WAY_OUT}",
                )
            elif len(paused) < len(workers):
                self._tell(
                    address, f"worker {address}: Dask has paused it at {memory}; others do its share; {_WAY_OUT}"
                )
            elif now - min(self._since.values()) > _PAUSED_FOR_GOOD_S:
                return (
                    f"cluster: expected workers that go on, got only such as Dask has paused, as {address} at {memory}; {_WAY_OUT}, "
                    "then run the same command again, it goes on from there"
                )
        return None

    def _tell(self, what: str, text: str) -> None:
        """Say what has happened, but each only once: in a long night it may come often."""
        if what not in self._told:
            self._told.add(what)
            self._on_note(text)


def _wake(client: Client, on_note: Callable[[str], None]) -> None:
    """Wait until a worker runs, if there are workers and Dask has paused all of them; raise IncompleteError if none will."""
    memory = _Memory(client, on_note)
    while (workers := client.scheduler_info()["workers"]) and all(
        one["status"] == "paused" for one in workers.values()
    ):
        if (reason := memory.look()) is not None:
            raise IncompleteError(reason)
        time.sleep(_POLL_S)


async def _start_again(dask_worker: Any) -> None:
    """Let a worker hand what it holds to others and end; its nanny starts it again."""
    await dask_worker.close_gracefully(restart=True, reason="emotion-batch-paused")


@contextlib.contextmanager
def connect(
    scheduler: Scheduler | None, n_workers: int, on_note: Callable[[str], None] = lambda text: None
) -> Iterator[Cluster]:
    """Connect to a running scheduler, or start a cluster on this machine that ends with the block.

    Parameters
    ----------
    scheduler
        A running one; None starts a local cluster.
    n_workers
        One-thread worker processes of a local cluster.
    on_note
        Takes a sentence that a person should read.

    Raises
    ------
    ClusterError
        If there is no scheduler at that address, or no worker joins it.
    """
    # Dask tells of what is said here in a sentence once more, in tracebacks.
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        is_local = scheduler is None
        # One that waits for a store keeps its cluster.
        if scheduler is None:
            configuration = _local_configuration()
            given = dask.config.serialize(configuration)
            try:
                scheduler = Scheduler(stack.enter_context(local_cluster(n_workers, 3 * max(RESUBMIT_S), given)))
            except OSError as error:
                raise ClusterError(
                    f"local cluster: expected to start its processes, got {error}; mend that, then run the same command again"
                ) from error
            with dask.config.set(configuration):
                client = _client(scheduler)
        else:
            if (risk := scheduler.find_risk()) is not None:
                on_note(risk)
            client = _client(scheduler)
        stack.callback(_close, client)
        try:
            _wake(client, on_note)
            client.wait_for_workers(1, timeout=_WORKERS_TIMEOUT_S)
        except OSError as error:
            if not isinstance(error, TimeoutError):
                raise IncompleteError(_LOST) from error
            if is_local:
                # It has the log that says why.
                raise
            raise ClusterError(
                f"scheduler {scheduler.address}: expected a worker within {_WORKERS_TIMEOUT_S} s, got none; "
                f"start `dask worker {scheduler.address}`"
            ) from error
        if is_local:
            # All are started alike, so those that are there tell of those that are not.
            require_loopback(client.nthreads())
        with _losing(client):
            yield Cluster(client, is_local, on_note)


@contextlib.contextmanager
def _losing(client: Client) -> Iterator[None]:
    """Say in a sentence that the scheduler was lost, whatever Dask raises within the block because of that."""
    try:
        yield
    except EmotionBatchError:
        raise
    except Exception as error:
        is_lost = client.status != "running" or isinstance(error, OSError | FutureCancelledError)
        if is_lost and find_shortage(error) is None:
            raise IncompleteError(_LOST) from error
        raise


def _local_configuration() -> dict[str, Any]:
    """Return Dask's own settings for a cluster of this machine, with what the user has set of a worker's memory alone."""
    defaults: dict[str, Any] = dask.config.merge(*dask.config.defaults)
    memory = dask.config.get("distributed.worker.memory")
    return dict(dask.config.merge(defaults, {"distributed": {"worker": {"memory": memory}}}))


def _close(client: Client) -> None:
    """Close a client, whatever became of its scheduler: shards that are not begun are forgotten."""
    with contextlib.suppress(OSError, TimeoutError, RuntimeError):
        client.close(timeout=5)


def _client(scheduler: Scheduler) -> Client:
    security = Security()
    if scheduler.has_tls_files:
        security = Security(
            tls_ca_file=scheduler.tls_ca,
            tls_client_cert=scheduler.tls_cert,
            tls_client_key=scheduler.tls_key,
            require_encryption=True,
        )
    elif scheduler.address.startswith("tls:") and security.get_connection_args("client").get("ssl_context") is None:
        raise ClusterError(
            f"scheduler {scheduler.address}: expected certificates for TLS, got none; name them with --tls-ca, --tls-cert and "
            "--tls-key, or in Dask's configuration"
        )
    try:
        # First, for a client that was given an unknown scheme cannot even be closed.
        get_backend(parse_address(scheduler.address)[0])
        return _answered(
            partial(Client, scheduler.address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False, security=security)
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ClusterError(
            f"scheduler {scheduler.address}: expected a Dask scheduler there, got {_said(_first_cause(error))}; "
            "start one with `dask scheduler`, or leave out --scheduler to use this machine"
        ) from error


def _answered(start: Callable[[], Client]) -> Client:
    """Return a client, or raise TimeoutError where a scheduler takes the connection and then stands still.

    In a thread that may be left behind, because Dask's own limit of time ends before that.
    """
    found: list[Client | BaseException] = []

    def look() -> None:
        try:
            found.append(start())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(2 * _CONNECT_TIMEOUT_S)
    if not found:
        raise TimeoutError(f"no answer within {2 * _CONNECT_TIMEOUT_S} s")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _first_cause(error: BaseException) -> BaseException:
    """Return what a failure to connect came of: Dask wraps it in a timeout."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return error


def _do(function: Callable[[Task], Receipt], task: Task) -> tuple[float, Receipt]:
    """Do a shard on a worker, and say how long it took; a worker that cannot passes it on."""
    started = time.monotonic()
    try:
        receipt = function(task)
    except UnfitWorkerError as error:
        _pass_on(error)
    return time.monotonic() - started, receipt


def _bag(do: Callable[[Task], list[Any]], tasks: Sequence[Task]) -> dask.bag.Bag:
    """Return a bag of what shards give, one partition and one of Dask's tasks for each.

    Not `from_sequence` and `map`, whose two tasks a shard Dask hands out one after the other.
    """
    name = f"shards-{secrets.token_hex(8)}"
    graph: dict[Any, Any] = {(name, number): (partial(do, task),) for number, task in enumerate(tasks)}
    return dask.bag.Bag(graph, name, len(tasks))


def _do_partition(function: Callable[[Task], Receipt], task: Task) -> list[tuple[float, Receipt]]:
    """Do what a bag does with a partition of one shard."""
    return [_do(function, task)]


def _settle(function: Callable[[Task], Receipt], task: Task) -> list[Receipt]:
    """Do a shard that nobody waits for."""
    return [_do(function, task)[1]]


def _pass_on(error: UnfitWorkerError) -> NoReturn:
    """Give a shard back, for another worker; others may use this one for what it can do, so it is left alone."""
    worker = get_worker()
    worker.log_event(_UNFIT_TOPIC, {"worker": worker.address, "said": str(error)})
    logging.getLogger(__name__).warning("%s", error)
    time.sleep(_UNFIT_PAUSE_S)
    raise Reschedule from error


def _watch(watch: Watch[Task], do: Callable[[Task], object], place: tuple[int, int]) -> None:
    """Look after work that was handed over, from a worker, for a while; then hand the watch on."""
    secede()
    client = get_client()
    until = time.monotonic() + _WATCH_S
    memory = _Memory(client, logging.getLogger(__name__).warning)
    while time.monotonic() < until:
        reason = memory.look()
        processing = client.processing()
        others = {
            worker: [key for key in keys if not str(key).startswith(_WATCH_KEY)] for worker, keys in processing.items()
        }
        now_s, idle = _heard_of(client, [worker for worker, keys in others.items() if not keys])
        tasks = watch.look(now_s, bool(idle), not any(others.values()), reason)
        if tasks is None:
            return
        for task in tasks:
            key = f"again-{secrets.token_hex(8)}"
            # Not where Dask thinks, which may be the worker that hangs.
            fire_and_forget(client.submit(_settle, do, task, key=key, workers=idle, allow_other_workers=True))
        time.sleep(_WATCH_EVERY_S)
    _set_watch(client, watch, do, place)


def _heard_of(client: Client, workers: Sequence[str]) -> tuple[float, list[str]]:
    """Return when the scheduler has last heard of a worker, and those workers that it has heard of of late and that work.

    One that is paused, or that hangs with a watch alone, only looks idle.
    """
    found = client.scheduler_info()["workers"]
    seen = {worker: about["last_seen"] for worker, about in found.items()}
    running = {worker for worker, about in found.items() if about["status"] == "running"}
    latest = max(seen.values(), default=0.0)
    return latest, [worker for worker in workers if worker in running and seen[worker] > latest - _SILENT_S]


def _set_watch(client: Client, watch: Watch[Task], do: Callable[[Task], object], place: tuple[int, int]) -> None:
    """Set a watch, the first number of as many as the second, on one of its share of the workers if it has one."""
    number, n_watches = place
    share = sorted(client.processing())[number::n_watches]
    key = f"{_WATCH_KEY}{secrets.token_hex(8)}"
    fire_and_forget(
        client.submit(
            _watch, watch, do, place, key=key, workers=share or None, allow_other_workers=bool(share), priority=1
        )
    )


class _LostError(Exception):
    """A shard that the cluster forgot."""


def _failure(result: Any) -> BaseException:
    """Return the exception of a future that failed, was cancelled or lost its scheduler."""
    if isinstance(result, FutureCancelledError):
        return _LostError("the cluster lost this shard")
    if isinstance(result, tuple) and len(result) == 3 and isinstance(result[1], BaseException):
        return result[1]
    if isinstance(result, BaseException):
        return result
    return _LostError("the cluster lost this shard")


def _is_passing(outcome: object) -> bool:
    """Return whether a shard ended with what is no fault of its own."""
    return isinstance(outcome, KilledWorker | CommClosedError | _LostError) or (
        isinstance(outcome, BaseException) and (is_transient(outcome) or find_shortage(outcome) is not None)
    )


def _said(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
