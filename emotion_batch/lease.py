"""Who is at work on a table: a file that a run renews while it lives. Advisory: it keeps nobody out."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from emotion_batch.retries import hastily
from emotion_batch.storage import Folder, seal, unseal

FOLDER = "_table/runs"
_SUFFIX = ".lease"
_RENEW_S = 10.0
# After so long without a sign a run is taken for dead, on another machine; on this one the process is looked at.
_DEAD_S = 60.0
# A cluster that scales itself may be without workers for a while.
_DEAD_SUBMITTED_S = 600.0
# How long the end of a run waits for a renewal that is under way.
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Holder:
    """A run that is at work, or that died at it.

    Attributes
    ----------
    run
        Its id.
    host, pid
        Machine and process of its driver.
    began_s, renewed_s
        When it began and when it last gave a sign, in seconds since 1970 of its own clock.
    progress
        How far it was then: ``n_done_here`` and ``elapsed_s``, once there is something to say.
    namespace
        In which `pid` is one process: a container has its own, of a machine that may be called the same.
    scheduler
        Address of the scheduler that the run was handed to; None for one with a driver.
    """

    run: str
    host: str
    pid: int
    began_s: float
    renewed_s: float
    progress: dict[str, Any] = field(default_factory=dict)
    namespace: str | None = None
    scheduler: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it still works, as far as can be known from here."""
        if self.namespace is not None and self.namespace == _namespace():
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                pass
        # The number may be another process's by now.
        return time.time() - self.renewed_s < (_DEAD_S if self.scheduler is None else _DEAD_SUBMITTED_S)


class Lease:
    """Says that a run is at work on a table.

    Parameters
    ----------
    table
        The table.
    run_id
        The run.
    """

    def __init__(self, table: Folder, run_id: str) -> None:
        self._table = table
        self._name = lease_name(run_id)
        now = time.time()
        self._holder = Holder(run_id, platform.node(), os.getpid(), now, now, namespace=_namespace())
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    @property
    def run(self) -> str:
        """The run's id."""
        return self._holder.run

    def begin(self) -> None:
        """Publish the lease, and renew it from now on, until the end or until the process dies."""
        self.renew()
        self._thread.start()

    def end(self) -> None:
        """Take the lease back, or leave it to grow old if storage does not answer."""
        self._is_over.set()
        self._thread.join(_PATIENCE_S)
        with contextlib.suppress(Exception), hastily():
            self._table.delete(self._name)

    def leave(self, scheduler: str, **progress: Any) -> None:
        """Say that the run goes on at a scheduler without this process; its workers renew the lease from now on."""
        self._is_over.set()
        self._thread.join(_PATIENCE_S)
        self._holder = replace(self._holder, scheduler=scheduler, pid=0, namespace=None, progress=progress)
        self.renew()

    def tell(self, **progress: Any) -> None:
        """Say how far the run is, at the next renewal."""
        self._holder = replace(self._holder, progress=progress)

    def renew(self) -> None:
        """Publish the lease now."""
        holder = replace(self._holder, renewed_s=time.time())
        self._table.publish(self._name, seal(asdict(holder)), is_durable=False)

    def _renew(self) -> None:
        while not self._is_over.wait(_RENEW_S):
            # The run itself will say what is wrong with the place, if it lasts.
            with contextlib.suppress(Exception):
                self.renew()


def lease_name(run_id: str) -> str:
    """Return the name of a run's lease in its table."""
    return f"{FOLDER}/{run_id}{_SUFFIX}"


def cancellation_name(run_id: str) -> str:
    """Return the name of what says in a table that a run is to stop."""
    return f"{FOLDER}/{run_id}.cancel"


def seconds_since(began: str) -> float:
    """Return the seconds since a time in ISO 8601, by this machine's clock."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(began)).total_seconds())


@contextlib.contextmanager
def attended(table: Folder, run_id: str) -> Iterator[None]:
    """Renew the lease of a run that was handed to a cluster, while this worker does some of it."""
    is_over = threading.Event()

    def renew() -> None:
        while not is_over.wait(_RENEW_S):
            attend(table, run_id)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()


def attend(table: Folder, run_id: str) -> None:
    """Renew the lease of a run that was handed to a cluster, if no other worker just has and it was not taken back."""
    # The work itself will say what is wrong with the place, if it lasts.
    with contextlib.suppress(Exception), hastily():
        holder = _read(table, lease_name(run_id))
        if holder is None and table.exists(lease_name(run_id)):
            # Damaged: nobody else would write it anew, and the run could not be seen or cancelled any more.
            holder = Holder(run_id, "an unknown machine", 0, time.time(), 0.0, scheduler="an unknown scheduler")
        if holder is not None and time.time() - holder.renewed_s >= _RENEW_S:
            renewed = replace(holder, renewed_s=time.time())
            table.publish(lease_name(run_id), seal(asdict(renewed)), is_durable=False)


def _namespace() -> str | None:
    """Return what tells the processes of this machine, or of this container of it, from all others; None if nothing does."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return f"{stream.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def read_holders(table: Folder) -> list[Holder]:
    """Return the runs whose lease lies in a table, alive or not, the earliest first."""
    names = [name for name in table.folder(FOLDER).names() if name.endswith(_SUFFIX) and not name.startswith(".")]
    found = (_read(table, f"{FOLDER}/{name}") for name in names)
    return sorted((holder for holder in found if holder is not None), key=lambda holder: holder.began_s)


def _read(table: Folder, name: str) -> Holder | None:
    """Return what a lease says; None if it is gone since, damaged, or of another release."""
    data = table.read_if_there(name)
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        holder = None if data is None else Holder(**unseal(data))
        if holder is not None and _is_sound(holder) and lease_name(holder.run) == name:
            return holder
    return None


def _is_sound(holder: Holder) -> bool:
    """Return whether all that a lease says is of the types that its readers rely on."""
    numbers = [holder.pid, holder.began_s, holder.renewed_s, *holder.progress.values()]
    texts = [holder.run, holder.host, holder.namespace or "", holder.scheduler or ""]
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        and isinstance(holder.pid, int)
    )


def forget(table: Folder, holder: Holder) -> None:
    """Delete the lease of a run that died."""
    table.delete(lease_name(holder.run))
