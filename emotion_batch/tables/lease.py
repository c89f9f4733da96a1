"""Show which runs work on a table: each run renews a file while it lives. The file is advisory and locks nothing.

A run begins here, too: it makes the table, or checks that the table has the settings of the run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from emotion_batch.errors import UsageError
from emotion_batch.storage.folder import Folder, explained, seal, unseal
from emotion_batch.storage.retry import hastily
from emotion_batch.tables.attempts import is_alive
from emotion_batch.tables.schema import INFO, TableInfo
from emotion_batch.tables.table import check_info, create_info, find_info, replace_info

FOLDER = "_table/runs"
# The outcome that another run records for a run that died.
LOST = "lost"
_SUFFIX = ".lease"
_RENEW_S = 10.0
# A run that was silent for this long may be dead. If it is on this machine, its process is checked.
_DEAD_S = 60.0
# A cluster that scales itself may be without workers for a while.
_DEAD_SUBMITTED_S = 600.0
# How long the lease of a run that may be dead is watched, and how often. If it is renewed, the run lives, even if the clocks
# disagree.
_LOOK_S, _LOOK_EVERY_S = 2 * _RENEW_S, 1.0
# How long the end of a run waits for a renewal in progress.
_PATIENCE_S = 2.0
# A lease has this key if its run is about to replace the settings of the table.
_IS_REPLACING = "is_replacing"
RUN_NAME = re.compile(r"[0-9TZ]+-[0-9a-f]+")


@dataclass(frozen=True)
class Holder:
    """A run that is at work or has died.

    Attributes
    ----------
    run
        Its id.
    host, pid
        Machine and process of its driver.
    began_s, renewed_s
        When it began and when it last gave a sign, in seconds since 1970 of its own clock.
    progress
        How far it was then: ``n_done_here`` and ``elapsed_s``, once they are known.
    namespace
        Tells in which container or machine `pid` is, because several may have the same name.
    scheduler
        Address of the scheduler that the run was submitted to; None if the process that began it drives it.
    driver
        Number of the task that drives a submitted run, from 1 on; 0 if none has yet.
    again
        Finished shards that a submitted run still has to do again, which no part shows.
    """

    run: str
    host: str
    pid: int
    began_s: float
    renewed_s: float
    progress: dict[str, bool | int | float] = field(default_factory=dict)
    namespace: str | None = None
    scheduler: str | None = None
    driver: int = 0
    again: tuple[int, ...] = ()

    @property
    def lasted_s(self) -> float:
        """Seconds that it had been at work when it last gave a sign; two clocks are never compared."""
        if "left_s" not in self.progress:
            return self.renewed_s - self.began_s
        # The tasks that drive it count the seconds since ``left_s``.
        return float(self.progress["left_s"] - self.began_s + self.progress.get("elapsed_s", 0.0))

    @property
    def is_gone(self) -> bool:
        """Whether it is certainly dead, because it was a process of this machine that has ended."""
        return self.namespace is not None and self.namespace == _namespace() and not is_alive(self.pid)

    @property
    def is_fresh(self) -> bool:
        """Whether its last sign is recent by this machine's clock. A sign from the future does not count."""
        dead_s = _DEAD_S if self.scheduler is None else _DEAD_SUBMITTED_S
        return -_RENEW_S < time.time() - self.renewed_s < dead_s


class Lease:
    """Says that a run is at work on a table.

    `holder` is what the lease said when the run was submitted, if this process continues it.
    """

    def __init__(self, table: Folder, run_id: str, holder: Holder | None = None) -> None:
        self._table = table
        self._name = lease_name(run_id)
        now = time.time()
        self.holder = holder or Holder(run_id, platform.node(), os.getpid(), now, now, namespace=_namespace())
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        # Whether the run has ended, or another task drives it.
        self.is_lost = False

    @property
    def run(self) -> str:
        """The run's id."""
        return self.holder.run

    def begin(self) -> None:
        """Publish the lease, and renew it from now on, until the end or until the process dies."""
        self.renew()
        self._thread.start()

    def stop(self) -> None:
        """Renew the lease no more, and leave it as it is."""
        self._is_over.set()
        self._thread.join(_PATIENCE_S)

    def end(self) -> None:
        """Delete the lease, or let it expire if storage does not answer."""
        self.stop()
        with contextlib.suppress(Exception), hastily():
            self._table.delete(self._name)

    def leave(self, scheduler: str, again: Sequence[int]) -> Holder:
        """Say that the run continues on a cluster without this process; return the lease, for the task that drives the run."""
        self.stop()
        left = replace(self.holder, scheduler=scheduler, pid=0, namespace=None, again=tuple(again))
        self.holder = replace(left, progress={"left_s": time.time()})
        self.renew()
        return self.holder

    def tell(self, **progress: Any) -> None:
        """Say how far the run is, at the next renewal."""
        self.holder = replace(self.holder, progress=progress)

    def done(self, shard: int) -> None:
        """Say at the next renewal that a shard was done again."""
        if shard in self.holder.again:
            self.holder = replace(self.holder, again=tuple(one for one in self.holder.again if one != shard))

    def renew(self) -> None:
        """Publish the lease now, unless another task drives the run or the run has ended."""
        if self.holder.driver and self.find_loss():
            return
        holder = replace(self.holder, renewed_s=time.time())
        self._table.publish(self._name, seal(asdict(holder)), is_durable=False)
        if self.holder.driver and has_ended(self._table, self.run):
            # The run ended just now, and its lease was deleted before this one was written.
            self.is_lost = True
            self._table.delete(self._name)

    def find_loss(self) -> bool:
        """Return whether this task no longer drives the run, because it has ended or a later task drives it."""
        there = find_holder(self._table, self.run)
        # If the lease is missing, another machine may have taken the run for dead. A damaged one is written anew.
        self.is_lost = has_ended(self._table, self.run) if there is None else there.driver > self.holder.driver
        return self.is_lost

    def _renew(self) -> None:
        while not self._is_over.wait(_RENEW_S):
            # If the place stays broken, the run itself reports it.
            with contextlib.suppress(Exception):
                self.renew()


def find_holder(table: Folder, run_id: str) -> Holder | None:
    """Return what the lease of a run says; None if there is none, or it is damaged."""
    data = table.read_if_there(lease_name(run_id))
    with contextlib.suppress(ValueError):
        holder = None if data is None else msgspec.convert(unseal(data), Holder)
        if holder is not None and holder.run == run_id:
            return holder
    return None


def lease_name(run_id: str) -> str:
    """Return the name of a run's lease in its table."""
    return f"{FOLDER}/{run_id}{_SUFFIX}"


def record_name(run_id: str) -> str:
    """Return the name of a run's record in its table."""
    return f"{FOLDER}/{run_id}.json"


def cancellation_name(run_id: str) -> str:
    """Return the name of the file in a table that tells a run to stop."""
    return f"{FOLDER}/{run_id}.cancel"


def has_ended(table: Folder, run_id: str) -> bool:
    """Return whether a run has left its record; a record by a machine that took it for dead does not count."""
    data = table.read_if_there(record_name(run_id))
    with contextlib.suppress(ValueError):
        return data is not None and unseal(data).get("outcome") != LOST
    return True


def _namespace() -> str | None:
    """Return an id that only processes of this machine, or of this container, share; None if there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return f"{stream.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def read_holders(table: Folder) -> list[Holder]:
    """Return the runs that have a lease in a table, alive or not, the earliest first."""
    names = [name for name in table.folder(FOLDER).names() if name.endswith(_SUFFIX) and not name.startswith(".")]
    found = (find_holder(table, name.removesuffix(_SUFFIX)) for name in names)
    return sorted((holder for holder in found if holder is not None), key=lambda holder: holder.began_s)


def find_runs(table: Folder) -> tuple[list[Holder], list[Holder]]:
    """Return the runs that are at work on a table, and those that died, the earliest first, as far as can be known.

    A run lives if its last sign is recent by this machine's clock. If it is not, the clock of one of the machines may be wrong,
    so the lease is watched for a while.
    """
    living, dead, doubtful = list[Holder](), list[Holder](), list[Holder]()
    for holder in read_holders(table):
        (dead if holder.is_gone else living if holder.is_fresh else doubtful).append(holder)
    until = time.monotonic() + _LOOK_S
    while doubtful and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
        for holder in doubtful.copy():
            found = find_holder(table, holder.run)
            if found != holder:
                doubtful.remove(holder)
                # A run whose lease is gone has ended.
                living += [found] if found is not None else []
    return sorted(living, key=lambda holder: holder.began_s), sorted(dead + doubtful, key=lambda holder: holder.began_s)


def run_ids(table: Folder) -> set[str]:
    """Return the ids of the runs that a table knows, those at work included."""
    return {name.partition(".")[0] for name in table.folder(FOLDER).names() if RUN_NAME.match(name)}


def others_at_work(table: Folder, run_id: str) -> list[Holder]:
    """Return the other runs that work on a table; the leases of runs that died become records."""
    living, dead = find_runs(table)
    for holder in dead:
        record = {"run": holder.run, "outcome": LOST, "host": holder.host, **holder.progress}
        table.publish_first(record_name(holder.run), seal(record))
        # The request to cancel it stays, because it must stop if it lives after all.
        table.delete(lease_name(holder.run))
    return [holder for holder in living if holder.run != run_id]


def check_table(table: Folder, info: TableInfo) -> None:
    """Raise UsageError if a table cannot become one of `info`, e.g. while another run works on it with other settings."""
    if check_info(table, info) is None and (there := find_info(table)) is not None:
        with explained(f"table {table.url}"):
            at_work, _ = find_runs(table)
        _refuse_to_replace(table, there, info, at_work)


def begin(
    table: Folder, info: TableInfo, held: Lease, on_note: Callable[[str], None]
) -> tuple[frozenset[str], tuple[Holder, ...]]:
    """Begin a run's lease on a table and make the table one of `info`; a table without a part may be replaced.

    Return the ids of the runs that the table knew, and those runs that are at work on it. If two runs begin at the same time, each
    first writes what it is about to do and then looks for the other. So at least one of them sees the other, and the settings of a run
    at work are never replaced. Raise UsageError if the table holds something else, or another run works on it with other settings.
    """
    with explained(f"table {table.url}"):
        table.folder(FOLDER).make()
        replaced = None if check_info(table, info) is not None else find_info(table)
        held.tell(**({_IS_REPLACING: True} if replaced is not None else {}))
        held.begin()
        try:
            # This comes after the lease and before the look at the other runs, so a run that is in neither came later.
            known = run_ids(table)
            others = others_at_work(table, held.run)
            if replaced is not None:
                _refuse_to_replace(table, replaced, info, others)
                replace_info(table, info)
                held.tell()
                held.renew()
            elif busy := next((other for other in others if other.progress.get(_IS_REPLACING)), None):
                raise UsageError(
                    f"table {table.url}: run {busy.run} on {busy.host} is changing its settings just now; run the same command again"
                )
            if create_info(table, info):
                on_note(f"table {table.url}: {INFO} was damaged or missing, and was written anew")
        except BaseException:
            held.end()
            raise
    return frozenset(known), tuple(others)


def _refuse_to_replace(table: Folder, there: TableInfo, info: TableInfo, at_work: Sequence[Holder]) -> None:
    """Raise UsageError if another run is at work on a table of other settings."""
    difference = there.difference(info)
    if difference and at_work:
        raise UsageError(
            f"table {table.url} {difference}; run {at_work[0].run} is at work on it on {at_work[0].host}, so its settings cannot "
            "change now; name a new table for other settings"
        )
