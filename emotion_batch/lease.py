"""Who is at work on a table: a file that a run renews while it lives. Advisory: it keeps nobody out."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from emotion_batch.retries import hastily
from emotion_batch.storage import Folder

FOLDER = "_table/runs"
_SUFFIX = ".lease"
_RENEW_S = 10.0
# After so long without a sign a run is taken for dead, on another machine; on this one the process is looked at.
_DEAD_S = 60.0
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
    """

    run: str
    host: str
    pid: int
    began_s: float
    renewed_s: float
    progress: dict[str, Any] = field(default_factory=dict)
    namespace: str | None = None

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
        return time.time() - self.renewed_s < _DEAD_S


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
        self._name = f"{FOLDER}/{run_id}{_SUFFIX}"
        now = time.time()
        self._holder = Holder(run_id, platform.node(), os.getpid(), now, now, namespace=_namespace())
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def begin(self) -> None:
        """Publish the lease, and renew it from now on, until the end or until the process dies."""
        self._publish()
        self._thread.start()

    def end(self) -> None:
        """Take the lease back, or leave it to grow old if storage does not answer."""
        self._is_over.set()
        self._thread.join(_PATIENCE_S)
        with contextlib.suppress(Exception), hastily():
            self._table.delete(self._name)

    def tell(self, **progress: Any) -> None:
        """Say how far the run is, at the next renewal."""
        self._holder = replace(self._holder, progress=progress)

    def _publish(self) -> None:
        holder = replace(self._holder, renewed_s=time.time())
        self._table.publish(self._name, json.dumps(asdict(holder)).encode(), is_durable=False)

    def _renew(self) -> None:
        while not self._is_over.wait(_RENEW_S):
            # The run itself will say what is wrong with the place, if it lasts.
            with contextlib.suppress(Exception):
                self._publish()


def _namespace() -> str | None:
    """Return what tells the processes of this machine, or of this container of it, from all others; None if nothing does."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return f"{stream.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def read_holders(table: Folder) -> list[Holder]:
    """Return the runs whose lease lies in a table, alive or not, the earliest first."""
    holders = []
    for name in table.folder(FOLDER).names():
        if name.endswith(_SUFFIX) and not name.startswith("."):
            data = table.read_if_there(f"{FOLDER}/{name}")
            # Gone since, or of another release: no reason to stop.
            with contextlib.suppress(ValueError, TypeError):
                if data is not None:
                    holders.append(Holder(**json.loads(data)))
    return sorted(holders, key=lambda holder: holder.began_s)


def forget(table: Folder, holder: Holder) -> None:
    """Delete the lease of a run that died."""
    table.delete(f"{FOLDER}/{holder.run}{_SUFFIX}")
