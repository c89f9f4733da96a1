"""With what a run works, and what its workers must be able to read."""

from __future__ import annotations

from dataclasses import dataclass

from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import Bundle
from emotion_batch.run.scheduler import Scheduler
from emotion_batch.storage.entries import Entry
from emotion_batch.storage.folder import Folder


@dataclass(frozen=True)
class Means:
    """With what a run works.

    Attributes
    ----------
    scheduler
        A running Dask scheduler; None for a local cluster.
    workers
        One-thread worker processes of a local cluster; None for one a core.
    force
        Go on though the first recordings come out alike.
    leave
        Hand the run to the scheduler and come back, rather than wait for its end.

    Raises
    ------
    UsageError
        If a run is to be left to a cluster that would end with the call.
    """

    scheduler: Scheduler | None = None
    workers: int | None = None
    force: bool = False
    leave: bool = False

    def __post_init__(self) -> None:
        if self.leave and self.scheduler is None:
            raise UsageError(
                "--scheduler: expected the address of a running Dask scheduler to leave the run to, got none; start one with "
                "`dask scheduler`, or run the command here without `submit`"
            )


@dataclass(frozen=True)
class Needs:
    """What the workers must be able to read."""

    archive: Folder | None = None
    recordings: tuple[Entry, ...] = ()
    features: tuple[Folder, str] | None = None
    bundle: Bundle | None = None
