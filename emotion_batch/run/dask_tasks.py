"""The functions that run on Dask workers: do a shard, and let another worker do it if this one cannot."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import dask
import dask.bag
from distributed import Reschedule, get_worker

from emotion_batch.errors import UnfitWorkerError
from emotion_batch.storage.retry import UNFIT_PAUSE_S

Receipt = TypeVar("Receipt")
Task = TypeVar("Task")


def make_bag(do: Callable[[Task], list[Any]], tasks: Sequence[Task]) -> dask.bag.Bag:
    """Return a bag of what shards give, one partition and one of Dask's tasks for each.

    `from_sequence` and `map` would make two tasks for each shard, which Dask hands out one after the other.
    """
    name = f"shards-{secrets.token_hex(8)}"
    graph: dict[Any, Any] = {(name, number): (partial(do, task),) for number, task in enumerate(tasks)}
    return dask.bag.Bag(graph, name, len(tasks))


def do_partition(
    function: Callable[[Task], Receipt], task: Task, topic: str = "emotion-batch-unfit"
) -> list[tuple[float, Receipt]]:
    """Do a bag's partition of one shard; return the seconds that it took and its receipt.

    A worker that cannot do it reports this under the topic, and gives the shard back.
    """
    started = time.monotonic()
    try:
        receipt = function(task)
    except UnfitWorkerError as error:
        worker = get_worker()
        worker.log_event(topic, {"worker": worker.address, "said": str(error)})
        logging.getLogger(__name__).warning("%s", error)
        time.sleep(UNFIT_PAUSE_S)
        # This worker stays, because other work may need it.
        raise Reschedule from error
    return [(time.monotonic() - started, receipt)]
