"""The options that all runs share: the cluster of a run, and how it reads and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack

from emotion_batch.errors import UsageError
from emotion_batch.progress import Watcher
from emotion_batch.run.scheduler import Scheduler
from emotion_batch.storage.folder import Folder
from emotion_batch.worker.isolation import Limits


class RunKeywords(TypedDict, total=False):
    """The attributes of `RunOptions`, as keywords."""

    scheduler: str | Scheduler | None
    workers: int | None
    deadline_s: float
    storage_options: Mapping[str, Any] | None
    force: bool
    leave: bool
    watcher: Watcher | None


@dataclass(frozen=True)
class RunOptions:
    """The options that `extract`, `label`, `retry` and `submit` share.

    Attributes
    ----------
    scheduler
        A running Dask scheduler, or its address; None starts a local cluster, which ends with the run.
    workers
        One-thread worker processes of the local cluster; None starts one for each core.
    deadline_s
        Seconds that a recording may take to give its row (or, with windows, its next row) before its status is ``timeout``.
    storage_options
        Options of fsspec's filesystem.
    force
        Continue even if the first results are all the same, and prune even if more than a tenth is gone.
    leave
        Return as soon as the scheduler has the work, as `submit` does.
    watcher
        Hears notes and progress; without one, notes go to the logger ``emotion_batch``.

    Raises
    ------
    UsageError
        If `leave` is set without a scheduler, because a local cluster ends with the call.
    """

    scheduler: str | Scheduler | None = None
    workers: int | None = None
    deadline_s: float = Limits.deadline_s
    # These may hold credentials, so the representation does not show them.
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    force: bool = False
    leave: bool = False
    watcher: Watcher | None = None

    def __post_init__(self) -> None:
        # Both are checked here, before anything is read.
        scheduler, _ = self.find_scheduler(), self.limits
        if self.leave and scheduler is None:
            raise UsageError(
                "`submit` requires --scheduler with the address of a running Dask scheduler; start one with `dask scheduler`, or run "
                "the command here without `submit`"
            )

    @classmethod
    def of(cls, options: RunOptions | None, **keywords: Unpack[RunKeywords]) -> RunOptions:
        """Return options with other values for those that are given as keywords."""
        return replace(options or cls(), **keywords)

    def find_scheduler(self) -> Scheduler | None:
        """Return the scheduler with its address and certificates, or None."""
        return Scheduler.of(self.scheduler)

    @property
    def limits(self) -> Limits:
        """The limits for one recording."""
        return Limits(self.deadline_s)

    def folder(self, location: Any) -> Folder:
        """Return a place that is read or written with the storage options."""
        return Folder.of(location, self.storage_options)
