"""The errors of the package and the closed list of statuses.

If a recording fails, the table gets a row with its status and reason. If a run fails, it raises an error: one plain sentence that
says what is wrong and what to do, and the exit code of the command.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

_SHORTAGES = {errno.ENOMEM: "memory", errno.EAGAIN: "processes and threads"}
_SHORTAGES |= dict.fromkeys((errno.EMFILE, errno.ENFILE), "open files")


def format_command(name: str, *places: str, options: Sequence[str] = ()) -> str:
    """Return a command of this program as a shell takes it, whatever its places are called and wherever the program is."""
    program = "emotion-batch"
    # Installed in an environment that is not active, it was called by its path.
    if os.path.basename(sys.argv[0]) == program and shutil.which(program) is None:
        program = sys.argv[0]
    return shlex.join([program, name, *map(quote_argument, places), *options])


def quote_argument(place: str) -> str:
    """Return a place as an argument that cannot be mistaken for an option."""
    return f"./{place}" if place.startswith("-") else place


class Status(StrEnum):
    """What became of a recording or segment: the whole list; only ``ok`` rows hold features and labels."""

    OK = "ok"
    EMPTY = "empty"
    NOT_AUDIO = "not_audio"
    TRUNCATED = "truncated"
    TOO_SHORT = "too_short"
    NOT_FINITE = "not_finite"
    UNREADABLE = "unreadable"
    VANISHED = "vanished"
    CHANGED = "changed"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    MEMORY = "memory"


# These recordings differed from their listing; they may agree once the archive is listed again.
UNLISTED = frozenset({Status.CHANGED, Status.VANISHED})
# The reason for these may go away, e.g. a missing right or share, an unfinished upload, too little memory. The others come from
# the recording itself, so a second look finds the same, or, as ``changed``, from an old listing, which a retry does not renew.
MENDABLE = frozenset(
    {Status.TRUNCATED, Status.UNREADABLE, Status.VANISHED, Status.CRASHED, Status.TIMEOUT, Status.MEMORY}
)


class RecordingError(Exception):
    """One recording gives no features; extraction turns this into its row and continues.

    `status` is never ``ok``, and `reason` is one sentence for the row's ``error`` column.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class EmotionBatchError(Exception):
    """Root of everything that this package raises on purpose; its text is one sentence for a person."""

    exit_code = 1


class UsageError(EmotionBatchError):
    """The call is wrong, or something that it names is refused, before any work was done."""

    exit_code = 2


class StorageError(EmotionBatchError):
    """A place cannot be read or written: missing, not permitted, full, or its client is not installed.

    `is_transient` says that the reason may go away, e.g. a connection that was reset or a store that answers 503.
    """

    exit_code = 2

    def __init__(self, text: str, *, is_transient: bool = False) -> None:
        super().__init__(text)
        self.is_transient = is_transient


class ClusterError(EmotionBatchError):
    """The scheduler or its workers cannot do this work: they cannot be reached, are too few, or lack something."""

    exit_code = 2


class UnfitWorkerError(ClusterError):
    """One worker cannot do this work; others may."""


class OutputError(EmotionBatchError):
    """The result of a command could not be written, e.g. to a full disk; its work is done."""


class CanaryError(EmotionBatchError):
    """The first results of a run are all the same, so the rest would be wasted."""


class IncompleteError(EmotionBatchError):
    """Work is left: a shard failed, or a table that should be read lacks parts."""


class DamagedError(IncompleteError):
    """A file of a table's ledger is not as it was written; the first argument says which, and `str` adds what to do."""

    def __str__(self) -> str:
        """Return the sentence."""
        return f"{self.args[0]}; run the command that made the table again to write it anew"


class CancelledError(IncompleteError):
    """The run was cancelled; finished work is kept."""


class StoreError(OSError):
    """A store failed, or refused in its own way; `folder.explained` makes a sentence of it.

    The text holds no secret. `is_transient` says that the reason may go away, and `code` is the HTTP status of the answer, if any.
    """

    def __init__(self, text: str, *, is_transient: bool = False, code: int | None = None) -> None:
        super().__init__(text)
        self.is_transient = is_transient
        self.code = code


class NoBucketError(StoreError):
    """The bucket itself does not exist, which is not the same as a missing object."""


class ChangedError(StoreError):
    """An object is not of the requested version."""


class DeniedError(PermissionError):
    """A store refused access; the text says why, and where credentials were looked for."""


def counted(n_things: int, thing: str) -> str:
    """Return how many things there are, e.g. "1 file" or "2,000 files"."""
    return f"{n_things:,} {thing}{'' if n_things == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Return a duration as people say it, e.g. "40 ms", "3.2 s", "5 min 12 s" or "2 h 5 min"."""
    if 0 < seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{round(seconds, 1):g} s"
    minutes, seconds = divmod(round(min(seconds, 3.6e8)), 60)
    hours, minutes = divmod(round(minutes + seconds / 60) if minutes >= 60 else minutes, 60)
    first, then = ((hours, "h"), (minutes, "min")) if hours else ((minutes, "min"), (seconds, "s"))
    return " ".join(f"{n:,} {unit}" for n, unit in (first, then) if n)


def format_time(time: datetime) -> str:
    """Return a time as a clock here shows it, with its zone."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def find_shortage(error: BaseException) -> str | None:
    """Return the resource that this machine, or a limit on it, is short of, if an error says so."""
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        return "memory"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "processes and threads"
    return _SHORTAGES.get(error.errno or 0) if isinstance(error, OSError) else None
