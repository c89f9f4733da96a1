"""Shards on a Dask cluster. Alone imports dask; knows shards and a function, nothing of audio."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import dask
import dask.bag
from distributed import Client, Future, KilledWorker, as_completed, futures_of
from distributed.comm.addressing import parse_address
from distributed.comm.core import CommClosedError
from distributed.comm.registry import get_backend

from emotion_batch.errors import ClusterError, IncompleteError
from emotion_batch.retries import is_transient

Receipt = TypeVar("Receipt")
Task = TypeVar("Task")

_START_TIMEOUT_S = 60
_POLL_S = 0.05
_CONNECT_TIMEOUT_S = 10
_WORKERS_TIMEOUT_S = 30
# What Dask's processes do beside the work takes a tenth of the cores at its defaults: every 10 ms a look at the stack
# for the dashboard's profile, every 20 at the event loop, every 100 and 500 at the machine.
_SETTINGS = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "500ms",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "500ms",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "2s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__DISK": "False",
}
# A cluster that scales itself may be without workers for a while.
_NO_WORKERS_S = 600
# How long a shard waits before it is handed out once more, because a worker or a store failed: some three minutes in
# all, on top of what a worker itself waits for a store.
_RESUBMIT_S = (1.0, 5.0, 15.0, 30.0, 60.0, 60.0)


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

    def __init__(self, client: Client, is_local: bool) -> None:
        self._client = client
        self.n_resubmitted = 0
        self.dashboard: str | None = client.dashboard_link or None
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
                raise ClusterError(f"worker {worker}: expected {package} {version}, got {found}; install the same")
        for worker, lack in self._ask(probe).items():
            if lack is not None:
                raise ClusterError(f"worker {worker}: {_said(lack) if isinstance(lack, BaseException) else lack}")

    def run(
        self, function: Callable[[Task], Receipt], tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, Receipt | BaseException]]:
        """Run a function over shards as a bag of one partition each, and yield what each gave, as they end.

        A shard that ends with a worker or a store that failed is handed out again, some times and later and later.

        Parameters
        ----------
        function
            From a shard's numbers to its small receipt. Must differ from run to run, for Dask takes equal calls for one.
        tasks
            The shards' numbers, in the order in which to begin them.

        Yields
        ------
        A shard's numbers, with its receipt or what it raised.
        """
        bag = _bag(function, tasks)
        futures = futures_of(self._client.persist(bag))
        del bag
        left = {future.key: (task, future) for task, future in zip(tasks, futures, strict=True)}
        del futures
        done = as_completed(
            [future for _, future in left.values()], loop=self._client.loop, with_results=True, raise_errors=False
        )
        waiting: list[tuple[float, Task]] = []
        n_tries: Counter[Task] = Counter()
        heard = time.monotonic()
        while left or waiting:
            for due, task in waiting.copy():
                if due <= time.monotonic():
                    waiting.remove((due, task))
                    # A key of its own, for the scheduler remembers the other one as failed.
                    future = self._client.submit(_do_partition, function, task, key=f"again-{secrets.token_hex(8)}")
                    left[future.key] = (task, future)
                    done.add(future)
            batch = done.next_batch(block=False)
            if not batch:
                # Asked for and not waited for: what a lost scheduler had would never come.
                self._check_scheduler([future for _, future in islice(left.values(), 1)])
                if time.monotonic() - heard > (_WORKERS_TIMEOUT_S if self.is_local else _NO_WORKERS_S):
                    self._check_workers()
                    heard = time.monotonic()
                time.sleep(_POLL_S)
            else:
                heard = time.monotonic()
            for future, result in batch:
                task, _ = left.pop(future.key)
                outcome = result[0] if future.status == "finished" else _failure(result)
                # The scheduler forgets what is released, which keeps its memory level.
                future.release()
                if n_tries[task] < len(_RESUBMIT_S) and _is_passing(outcome):
                    waiting.append((time.monotonic() + _RESUBMIT_S[n_tries[task]], task))
                    n_tries[task] += 1
                    self.n_resubmitted += 1
                else:
                    yield task, outcome

    def _check_scheduler(self, futures: Sequence[Future[Any]]) -> None:
        if self._client.status != "running" or any(future.status == "lost" for future in futures):
            raise IncompleteError(
                "scheduler: expected it to stay until the work is done, got no answer any more; "
                "run the same command again, it goes on from there"
            )

    def _check_workers(self) -> None:
        if not self.threads():
            raise IncompleteError(
                "cluster: expected workers until the work is done, got none any more; "
                "start some and run the same command again, it goes on from there"
            )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Mapping[str, Any]:
        try:
            answers = self._client.run(function, *arguments, on_error="return")
        except (OSError, TimeoutError) as error:
            raise ClusterError(f"scheduler: expected answers of its workers, got {_said(error)}") from error
        return dict(answers)


@contextlib.contextmanager
def connect(scheduler: str | None, n_workers: int) -> Iterator[Cluster]:
    """Connect to a running scheduler, or start a cluster on this machine that ends with the block.

    Parameters
    ----------
    scheduler
        Address as ``tcp://host:8786``; None starts a local cluster.
    n_workers
        One-thread worker processes of a local cluster.

    Raises
    ------
    ClusterError
        If there is no scheduler at that address, or no worker joins it.
    """
    # Dask tells of what is said here in a sentence once more, in tracebacks.
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        address = scheduler or stack.enter_context(_local_cluster(n_workers))
        client = _client(address)
        stack.callback(_close, client)
        try:
            client.wait_for_workers(1, timeout=_WORKERS_TIMEOUT_S)
        except TimeoutError as error:
            raise ClusterError(
                f"scheduler {address}: expected a worker within {_WORKERS_TIMEOUT_S} s, got none; "
                f"start `dask worker {address}`"
            ) from error
        yield Cluster(client, is_local=scheduler is None)


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _local_cluster(n_workers: int) -> Iterator[str]:
    """Start a scheduler and one-thread workers on loopback, each a process; yield the address, end them after.

    Not Dask's LocalCluster, whose workers import the caller's script again and so run it; and in sessions of
    their own, for Ctrl-C in a terminal goes to a whole session and would take the workers from under the run.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="emotion-batch-") as folder:
        log, address_file = Path(folder, "log"), Path(folder, "scheduler.json")

        def start(kind: str, options: Mapping[str, Any], *arguments: str) -> None:
            spec = json.dumps({"cls": kind, "opts": {"host": "127.0.0.1", **options}})
            command = [sys.executable, "-m", "dask", "spec", *arguments, "--spec", spec]
            with log.open("ab") as stream:
                process = subprocess.Popen(  # noqa: S603 our own words
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    # What somebody has set in Dask's variables stands.
                    env={**_SETTINGS, **os.environ},
                    start_new_session=True,
                )
            processes.append(process)

        try:
            scheduler = {
                "port": 0,
                "dashboard_address": "127.0.0.1:0",
                "scheduler_file": os.fspath(address_file),
                # A driver that was killed leaves no cluster behind, one that waits for a store keeps its own.
                "idle_timeout": f"{3 * max(_RESUBMIT_S):.0f} seconds",
            }
            start("distributed.Scheduler", scheduler)
            address = _read_address(address_file, processes[0], log)
            worker = {"nthreads": 1, "dashboard_address": "127.0.0.1:0", "death_timeout": "60"}
            for _ in range(n_workers):
                start("distributed.Nanny", worker, address)
            yield address
        finally:
            for process in processes:
                # The session, for a nanny's worker is a process of its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _read_address(path: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the scheduler's file and return the address in it."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        # It may be there and not yet written.
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(path.read_bytes())["address"])
        time.sleep(0.02)
    said = log.read_text(errors="replace").strip().splitlines()
    raise ClusterError(f"local cluster: expected a scheduler, got {said[-1] if said else 'none in time'}")


def _close(client: Client) -> None:
    """Close a client, whatever became of its scheduler: shards that are not begun are forgotten."""
    with contextlib.suppress(OSError, TimeoutError, RuntimeError):
        client.close(timeout=5)


def _client(address: str) -> Client:
    try:
        # First, for a client that was given an unknown scheme cannot even be closed.
        get_backend(parse_address(address)[0])
        return Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"scheduler {address}: expected a Dask scheduler there, got {_said(error)}; "
            "start one with `dask scheduler`, or leave out --scheduler to use this machine"
        ) from error


def _bag(function: Callable[[Task], Receipt], tasks: Sequence[Task]) -> dask.bag.Bag:
    """Return a bag of what a function gives of shards, one partition and one of Dask's tasks for each.

    Not `from_sequence` and `map`, whose two tasks a shard Dask hands out one after the other.
    """
    name = f"shards-{secrets.token_hex(8)}"
    graph: dict[Any, Any] = {
        (name, number): (partial(_do_partition, function, task),) for number, task in enumerate(tasks)
    }
    return dask.bag.Bag(graph, name, len(tasks))


def _do_partition(function: Callable[[Task], Receipt], task: Task) -> list[Receipt]:
    """Do what a bag does with a partition of one shard."""
    return [function(task)]


class _LostError(Exception):
    """A shard that the cluster forgot."""


def _failure(result: Any) -> BaseException:
    """Return the exception of a future that failed, was cancelled or lost its scheduler."""
    if isinstance(result, tuple) and len(result) == 3 and isinstance(result[1], BaseException):
        return result[1]
    if isinstance(result, BaseException):
        return result
    return _LostError("the cluster lost this shard")


def _is_passing(outcome: object) -> bool:
    """Return whether a shard ended with what is no fault of its own."""
    return isinstance(outcome, KilledWorker | CommClosedError | _LostError) or (
        isinstance(outcome, BaseException) and is_transient(outcome)
    )


def _said(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
