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
from typing import TypeVar

T = TypeVar("T")
STAGES = ("list", "read", "decode", "features", "predict", "write", "isolated")
# Recordings that are named for the time they took; of a run, of a shard alike.
N_SLOWEST = 5
_local = threading.local()


@dataclass
class Spent:
    """What was spent, in numbers that add up.

    Attributes
    ----------
    stages_s
        Wall-clock seconds by stage, of `STAGES`. Reading a local file is part of ``decode``; ``isolated`` is all that was done
        in a child process.
    read_bytes
        Bytes of recordings read; of local ones, those of the stretches that were decoded.
    n_retries
        Times that storage was asked again because it failed in passing.
    n_isolated
        Shards that were decoded in a child process, because an attempt before had not come to its end, or to try again what
        had killed.
    lost_s
        Seconds of workers that recordings took with them: from the beginning of an attempt that did not end to the next, and
        of children that crashed, hung or ran out of memory.
    slowest
        The recordings that took longest until they had their rows, the slowest first: wall-clock seconds and name, at most
        `N_SLOWEST`. Waiting for a store is part of it.
    """

    stages_s: dict[str, float] = field(default_factory=dict)
    read_bytes: int = 0
    n_retries: int = 0
    n_isolated: int = 0
    lost_s: float = 0.0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def time(self, file: str, elapsed_s: float) -> None:
        """Take down how long a recording took, if few took longer."""
        if len(self.slowest) < N_SLOWEST or elapsed_s > self.slowest[-1][0]:
            self.slowest = sorted([*self.slowest, (elapsed_s, file)], key=lambda one: -one[0])[:N_SLOWEST]

    def add(self, other: Spent) -> None:
        """Add what was spent elsewhere."""
        for name, seconds in other.stages_s.items():
            self.stages_s[name] = self.stages_s.get(name, 0.0) + seconds
        self.read_bytes += other.read_bytes
        self.n_retries += other.n_retries
        self.n_isolated += other.n_isolated
        self.lost_s += other.lost_s
        for elapsed_s, file in other.slowest:
            self.time(file, elapsed_s)


@contextmanager
def metered(spent: Spent | None = None) -> Iterator[Spent]:
    """Give this thread an account of its own for the block: a new one by default."""
    before = current()
    _local.spent = spent = spent or Spent()
    try:
        yield spent
    finally:
        _local.spent = before


def current() -> Spent:
    """Return this thread's account; one that nobody will read where none was asked for."""
    spent = getattr(_local, "spent", None)
    if spent is None:
        spent = _local.spent = Spent()
    return spent


def submit_metered(pool: ThreadPoolExecutor, function: Callable[[], T]) -> Callable[[], T]:
    """Let a pool call a function, and return what gives its result; what it spent is the account's that asks for it."""
    spent = Spent()

    def call() -> T:
        before = current()
        _local.spent = spent
        try:
            return function()
        finally:
            _local.spent = before

    future = pool.submit(call)

    def take() -> T:
        try:
            return future.result()
        finally:
            current().add(spent)

    return take


class stage:  # noqa: N801 a block's name, as contextlib's are
    """Count the seconds of a block under a stage of `STAGES`. A class, for it costs a recording several of these."""

    __slots__ = ("_name", "_started")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        stages_s = current().stages_s
        stages_s[self._name] = stages_s.get(self._name, 0.0) + time.perf_counter() - self._started
