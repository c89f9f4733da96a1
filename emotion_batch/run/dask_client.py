"""Speak to a Dask cluster: connect to its scheduler, put errors of Dask into one sentence, and watch its workers.

It watches for shards that take much longer than usual, and for workers that Dask paused or ended because of their memory.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import dask
import dask.bag
from distributed import Client, Future, Security
from distributed.client import FutureCancelledError
from distributed.comm.addressing import parse_address
from distributed.comm.registry import get_backend

from emotion_batch.errors import ClusterError, EmotionBatchError, IncompleteError, find_shortage
from emotion_batch.run.scheduler import Scheduler, SchedulerLostError
from emotion_batch.storage.retry import STRAGGLER_FACTOR, STRAGGLER_S, WORKER_ENDS, WORKER_STARTS
from emotion_batch.worker import process

_CONNECT_TIMEOUT_S = 10
# Keys of the tasks that drive submitted runs begin with this. Such a task holds no thread of its worker.
DRIVER_KEY = "emotion-batch-driver-"
POLL_S = 0.05
_LOOK_S = 2.0
# A worker that was silent for this long hangs, or Dask will give it up.
_SILENT_S = 60.0
# A worker that Dask has paused for `_PAUSED_S`, while nothing runs on it, does not resume by itself. If all workers are so for
# `_PAUSED_FOR_GOOD_S` and none can be started again, the run ends.
_PAUSED_S, _PAUSED_FOR_GOOD_S = 10.0, 60.0
_WAY_OUT = "start workers with more memory or fewer threads"


@contextlib.contextmanager
def losing(client: Client) -> Iterator[None]:
    """Raise SchedulerLostError instead of any error that Dask raises in the block because the scheduler was lost."""
    try:
        yield
    except EmotionBatchError:
        raise
    except Exception as error:
        is_lost = client.status != "running" or isinstance(error, OSError | FutureCancelledError)
        if is_lost and find_shortage(error) is None:
            raise SchedulerLostError from error
        raise


def local_configuration() -> dict[str, Any]:
    """Return Dask's default settings for a local cluster; of the user's, only those of a worker's memory count."""
    defaults: dict[str, Any] = dask.config.merge(*dask.config.defaults)
    memory = dask.config.get("distributed.worker.memory")
    return dict(dask.config.merge(defaults, {"distributed": {"worker": {"memory": memory}}}))


def close(client: Client) -> None:
    """Close a client, even if its scheduler is lost; shards that are not begun are forgotten."""
    with contextlib.suppress(OSError, TimeoutError, RuntimeError):
        client.close(timeout=5)


def open_client(scheduler: Scheduler) -> Client:
    """Return a client of a scheduler; raise ClusterError if there is none, or if the client cannot talk to it."""
    security = Security()
    # Without certificates, Dask's own configuration counts.
    if scheduler.tls_ca is not None:
        security = Security(
            tls_ca_file=scheduler.tls_ca,
            tls_client_cert=scheduler.tls_cert,
            tls_client_key=scheduler.tls_key,
            require_encryption=True,
        )
    elif scheduler.address.startswith("tls:") and security.get_connection_args("client").get("ssl_context") is None:
        raise ClusterError(
            f"scheduler {scheduler.address}: TLS requires certificates; name them with --tls-ca, --tls-cert and --tls-key, or in "
            "Dask's configuration"
        )
    try:
        # This comes first, because a client with an unknown scheme cannot even be closed.
        get_backend(parse_address(scheduler.address)[0])
        return _answered(
            partial(Client, scheduler.address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False, security=security)
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ClusterError(
            f"scheduler {scheduler.address}: no Dask scheduler answers there ({shorten(_first_cause(error))}); "
            "start one with `dask scheduler`, or leave out --scheduler to use this machine"
        ) from error


def _answered(start: Callable[[], Client]) -> Client:
    """Return a client; raise TimeoutError if a scheduler accepts the connection and then does not answer.

    It starts in a thread that may stay behind, because Dask's own timeout does not cover that case.
    """
    found: concurrent.futures.Future[Client] = concurrent.futures.Future()

    def look() -> None:
        try:
            found.set_result(start())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=look, daemon=True).start()
    if not concurrent.futures.wait([found], 2 * _CONNECT_TIMEOUT_S).done:
        raise TimeoutError(f"no answer within {2 * _CONNECT_TIMEOUT_S} s")
    return found.result()


def _first_cause(error: BaseException) -> BaseException:
    """Return the first cause of a failure to connect, which Dask wraps in a timeout."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return error


def shorten(error: BaseException) -> str:
    """Return an error's class and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


class Stragglers:
    """Finds shards that take long while workers are idle."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._usual: list[float] = []
        self._since: dict[Any, float] = {}
        self._looked = 0.0

    def hear(self, elapsed_s: float) -> None:
        """Note how long a shard took."""
        self._usual.append(elapsed_s)

    def find(self, left: Mapping[Any, tuple[Any, Future[Any]]], unfit: Container[str]) -> list[tuple[Any, list[str]]]:
        """Return the keys of shards that straggle, each once, with the workers that are idle and not unfit.

        An unfit worker gives a shard back, and Dask may choose it again each time, because it looks as idle as the others. A shard
        also straggles if its worker has done it but hangs before it sends the result.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return []
        self._looked = now
        try:
            processing = self._client.processing()
        except (OSError, TimeoutError):
            # Another check handles a scheduler that does not answer.
            return []
        idle = [
            worker
            for worker, keys in processing.items()
            if worker not in unfit and all(str(key).startswith(DRIVER_KEY) for key in keys)
        ]
        begun = {key for keys in processing.values() for key in keys}
        # Until all shards are begun, an idle worker gets one of the others.
        if not idle or any(future.status == "pending" for key, (_, future) in left.items() if key not in begun):
            return []
        limit = max(STRAGGLER_S, STRAGGLER_FACTOR * statistics.median(self._usual or [0.0]))
        late = [key for key in left if now - self._since.setdefault(key, now) > limit]
        for key in late:
            self._since[key] = float("inf")
        idle = heard_of(self._client, idle) if late else []
        return [(key, idle) for key in late]


class MemoryMonitor:
    """Helps workers that are short of memory: Dask ends them, or pauses them, and paused ones may not resume by themselves."""

    def __init__(self, client: Client, on_note: Callable[[str], None]) -> None:
        self._client = client
        self._on_note = on_note
        # The time since which each worker has been paused and has run nothing.
        self._since: dict[str, float] = {}
        self._told: set[str] = set()
        self._looked = 0.0
        # By the scheduler's clock; None before the first look, because events of earlier runs do not count.
        self._heard_s: float | None = None
        self._ended = ""
        self._n_threads = 1
        # Counts since the last shard ended: paused workers that were started again, and workers that their nannies ended.
        self.n_starts = 0
        self.n_ended = 0

    def _hear_of_ended(self) -> None:
        """Note which workers their nannies have ended since the last look."""
        events = self._client.get_events("worker-restart-memory")
        for at_s, about in events:
            if self._heard_s is not None and at_s > self._heard_s:
                self.n_ended += 1
                self._ended = f"{about['worker']} at {about['rss'] / 1e6:,.0f} MB"
                self._tell(
                    "ended",
                    f"worker {self._ended}: its nanny has ended it, because it was near its memory limit; {_WAY_OUT}",
                )
        self._heard_s = max((at_s for at_s, _ in events), default=0.0)

    def look(self) -> str | None:
        """Start paused workers again if they have a nanny; return why the work cannot continue if nothing else helps."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return None
        self._looked = now
        self._hear_of_ended()
        workers = self._client.scheduler_info()["workers"]
        # Some workers are missing, because they are just being started again.
        self._n_threads = max(self._n_threads, sum(about["nthreads"] for about in workers.values()))
        if self.n_ended > WORKER_ENDS * self._n_threads:
            return (
                "cluster: no shard gets done, because workers are ended one after the other near their memory limit, e.g. "
                f"{self._ended}; {_WAY_OUT}, then run the same command again to resume"
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
            if about["nanny"] and self.n_starts < WORKER_STARTS * len(workers):
                self._client.run(_start_again, workers=[address], wait=False, on_error="ignore")
                self.n_starts += 1
                self._since[address] = now
                self._tell(
                    "again", f"worker {address}: Dask has paused it at {memory}, so it is started again; {_WAY_OUT}"
                )
            elif len(paused) < len(workers):
                self._tell(
                    address, f"worker {address}: Dask has paused it at {memory}; others do its share; {_WAY_OUT}"
                )
            elif now - min(self._since.values()) > _PAUSED_FOR_GOOD_S:
                return (
                    f"cluster: Dask has paused all of its workers, e.g. {address} at {memory}; {_WAY_OUT}, then run the same "
                    "command again to resume"
                )
        return None

    def _tell(self, what: str, text: str) -> None:
        """Say what has happened, but only once for each `what`, because it may happen often in a long run."""
        if what not in self._told:
            self._told.add(what)
            self._on_note(text)


def wake(client: Client, on_note: Callable[[str], None]) -> None:
    """Wait until a worker runs, if there are workers and Dask has paused all of them; raise IncompleteError if none will."""
    memory = MemoryMonitor(client, on_note)
    while (workers := client.scheduler_info()["workers"]) and all(
        one["status"] == "paused" for one in workers.values()
    ):
        if (reason := memory.look()) is not None:
            raise IncompleteError(reason)
        time.sleep(POLL_S)


async def _start_again(dask_worker: Any) -> None:
    """Let a worker give its results to others and end; its nanny starts it again."""
    await dask_worker.close_gracefully(restart=True, reason="emotion-batch-paused")


def heard_of(client: Client, workers: Sequence[str]) -> list[str]:
    """Return the workers that run and that the scheduler has heard of recently; one that is paused or hangs only looks idle."""
    found = client.scheduler_info()["workers"]
    seen = {worker: about["last_seen"] for worker, about in found.items()}
    running = {worker for worker, about in found.items() if about["status"] == "running"}
    latest = max(seen.values(), default=0.0)
    return [worker for worker in workers if worker in running and seen[worker] > latest - _SILENT_S]
