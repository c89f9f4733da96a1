"""The functions that run on Dask workers: do a shard, and monitor a submitted run.

Two monitor tasks move between workers and resubmit lost or late shards.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import dask
import dask.bag
from distributed import (
    Client,
    Reschedule,
    fire_and_forget,
    get_client,
    get_worker,
    secede,
)

from emotion_batch.errors import UnfitWorkerError
from emotion_batch.run.dask_client import MemoryMonitor, heard_of
from emotion_batch.storage.retry import UNFIT_PAUSE_S

Receipt = TypeVar("Receipt")
Task = TypeVar("Task")
LateTask = TypeVar("LateTask", covariant=True)
UNFIT_TOPIC = "emotion-batch-unfit"
# How often a watch looks, and how long it lasts before another takes over: Dask condemns a task whose worker died under
# it four times, and in one night that is not many.
_WATCH_EVERY_S = 10.0
_WATCH_S = 300.0
_WATCH_KEY = "emotion-batch-watch-"


class Watch(Protocol[LateTask]):
    """Looks after work that was handed over; travels to a worker, and on to others."""

    def look(
        self, now_s: float, has_idle_workers: bool, is_quiet: bool, reason: str | None
    ) -> Sequence[LateTask] | None:
        """Return the shards to hand out once more; None if there is nothing to look after any more, or a reason to give up.

        It is given the time by the scheduler's clock, the one that is the same wherever it looks from.
        """


def _do(function: Callable[[Task], Receipt], task: Task) -> tuple[float, Receipt]:
    """Do a shard on a worker, and say how long it took; a worker that cannot passes it on."""
    started = time.monotonic()
    try:
        receipt = function(task)
    except UnfitWorkerError as error:
        _pass_on(error)
    return time.monotonic() - started, receipt


def make_bag(do: Callable[[Task], list[Any]], tasks: Sequence[Task]) -> dask.bag.Bag:
    """Return a bag of what shards give, one partition and one of Dask's tasks for each.

    Not `from_sequence` and `map`, whose two tasks a shard Dask hands out one after the other.
    """
    name = f"shards-{secrets.token_hex(8)}"
    graph: dict[Any, Any] = {(name, number): (partial(do, task),) for number, task in enumerate(tasks)}
    return dask.bag.Bag(graph, name, len(tasks))


def do_partition(function: Callable[[Task], Receipt], task: Task) -> list[tuple[float, Receipt]]:
    """Do what a bag does with a partition of one shard."""
    return [_do(function, task)]


def settle_partition(function: Callable[[Task], Receipt], task: Task) -> list[Receipt]:
    """Do a shard that nobody waits for."""
    return [_do(function, task)[1]]


def _pass_on(error: UnfitWorkerError) -> NoReturn:
    """Give a shard back, for another worker; others may use this one for what it can do, so it is left alone."""
    worker = get_worker()
    worker.log_event(UNFIT_TOPIC, {"worker": worker.address, "said": str(error)})
    logging.getLogger(__name__).warning("%s", error)
    time.sleep(UNFIT_PAUSE_S)
    raise Reschedule from error


def _watch(watch: Watch[Task], do: Callable[[Task], object], place: tuple[int, int]) -> None:
    """Look after work that was handed over, from a worker, for a while; then hand the watch on."""
    secede()
    client = get_client()
    until = time.monotonic() + _WATCH_S
    memory = MemoryMonitor(client, logging.getLogger(__name__).warning)
    while time.monotonic() < until:
        reason = memory.look()
        processing = client.processing()
        others = {
            worker: [key for key in keys if not str(key).startswith(_WATCH_KEY)] for worker, keys in processing.items()
        }
        now_s, idle = heard_of(client, [worker for worker, keys in others.items() if not keys])
        tasks = watch.look(now_s, bool(idle), not any(others.values()), reason)
        if tasks is None:
            return
        unfit = {event[1]["worker"] for event in client.get_events(UNFIT_TOPIC)} if tasks else set()
        # One that was unfit for another run may be fit for this one.
        fit = [worker for worker in idle if worker not in unfit] or idle
        for task in tasks:
            key = f"again-{secrets.token_hex(8)}"
            # Dask would choose by itself, and it may choose the worker that hangs.
            fire_and_forget(client.submit(settle_partition, do, task, key=key, workers=fit, allow_other_workers=True))
        time.sleep(_WATCH_EVERY_S)
    set_watch(client, watch, do, place)


def set_watch(client: Client, watch: Watch[Task], do: Callable[[Task], object], place: tuple[int, int]) -> None:
    """Set a watch, the first number of as many as the second, on one of its share of the workers if it has one."""
    number, n_watches = place
    share = sorted(client.processing())[number::n_watches]
    key = f"{_WATCH_KEY}{secrets.token_hex(8)}"
    fire_and_forget(
        client.submit(
            _watch, watch, do, place, key=key, workers=share or None, allow_other_workers=bool(share), priority=1
        )
    )
