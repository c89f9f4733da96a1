"""Count what a task uses: seconds by stage, bytes read, and retries.

Each thread counts for itself, because a task runs in one thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar, cast

T = TypeVar("T")
STAGES = ("list", "read", "decode", "features", "predict", "write", "isolated")
# Number of slow recordings that a shard, or a run, names.
N_SLOWEST = 5
_local = threading.local()


@dataclass
class Spent:
    """What was spent, in numbers that can be added."""

    # Wall-clock seconds by stage, of `STAGES`. Reading a local file is part of "decode"; "isolated" is the time in a child process.
    stages_s: dict[str, float] = field(default_factory=dict)
    # Bytes of recordings; of local recordings, only the stretches that were decoded are counted.
    read_bytes: int = 0
    # Number of requests to storage that were repeated because it failed for a moment.
    n_retries: int = 0
    # Shards that were decoded in a child process, because an earlier attempt did not end, or to retry a recording that crashed.
    n_isolated: int = 0
    # Seconds that workers lost: from an attempt that did not end to the next one, and in children that did not end well.
    lost_s: float = 0.0
    # Recordings whose channels differ, and were heard as their mean.
    n_mixed: int = 0
    # Wall-clock seconds and names of the recordings that took longest, the slowest first. Waiting for a store is part of it.
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def time(self, file: str, elapsed_s: float) -> None:
        """Note how long a recording took, if few took longer."""
        if len(self.slowest) < N_SLOWEST or elapsed_s > self.slowest[-1][0]:
            self.slowest = sorted([*self.slowest, (elapsed_s, file)], key=lambda one: -one[0])[:N_SLOWEST]

    def add(self, other: Spent) -> None:
        """Add what was spent elsewhere."""
        for name, seconds in other.stages_s.items():
            self.stages_s[name] = self.stages_s.get(name, 0.0) + seconds
        for name in ("read_bytes", "n_retries", "n_isolated", "lost_s", "n_mixed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for elapsed_s, file in other.slowest:
            self.time(file, elapsed_s)


@contextmanager
def metered(spent: Spent | None = None) -> Iterator[Spent]:
    """Give this thread counters of its own for the block: new ones by default."""
    before = current()
    _local.spent = spent = Spent() if spent is None else spent
    try:
        yield spent
    finally:
        _local.spent = before


def current() -> Spent:
    """Return this thread's counters, or a throw-away set if none is active."""
    if getattr(_local, "spent", None) is None:
        _local.spent = Spent()
    return cast("Spent", _local.spent)


def submit_metered(pool: ThreadPoolExecutor, function: Callable[[], T]) -> Callable[[], T]:
    """Let a pool call a function; return a function that gives the result, and adds what it spent to the thread that asks."""
    spent = Spent()

    def call() -> T:
        with metered(spent):
            return function()

    future = pool.submit(call)

    def take() -> T:
        try:
            return future.result()
        finally:
            current().add(spent)

    return take


class stage:  # noqa: N801 a block's name, as contextlib's are
    """Count the seconds of a block under a stage of `STAGES`. A class, because it is fast and each recording needs several."""

    __slots__ = ("_name", "_started")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        stages_s = current().stages_s
        stages_s[self._name] = stages_s.get(self._name, 0.0) + time.perf_counter() - self._started
