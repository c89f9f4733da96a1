"""Decode recordings in a child process, so that a recording that kills its decoder costs its own row alone.

``multiprocessing`` cannot do this: Dask's nannies start workers as daemons, and daemons may have no such children.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from emotion_batch.environment import safe_environment
from emotion_batch.errors import IncompleteError, Status, StorageError, UnfitWorkerError, UsageError
from emotion_batch.features import recipes
from emotion_batch.settings import AnySettings, Segments
from emotion_batch.storage.entries import Entry
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.prefetch import reading
from emotion_batch.storage.retry import RECORDING_RETRIES
from emotion_batch.usage import Spent, current, metered, stage
from emotion_batch.worker import process
from emotion_batch.worker.hearing import FeatureRow
from emotion_batch.worker.recordings import extract_recording, rest_rows, rows_to_table
from emotion_batch.worker.watchdog import watched

# Only this module gives these statuses, to recordings that ended their process.
KILLING = frozenset({Status.CRASHED, Status.TIMEOUT, Status.MEMORY})
_START_TIMEOUT_S, _END_TIMEOUT_S = 120.0, 10.0
# The first byte of a message is its kind. JSON follows, and for a row, after a line's end, its features.
_ROW, _END, _FAILED = b"R", b"E", b"F"
# If a child that died or was late had taken this share of its limit, memory was the reason.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Limits:
    """Limits of one recording.

    Attributes
    ----------
    deadline_s
        Longest time until a recording gives its row, or its next row with windows, in seconds.
    memory_bytes
        Memory of the child process that decodes it after a recording has ended a worker.

    Raises
    ------
    UsageError
        If the deadline is out of range.
    """

    deadline_s: float = 120.0
    memory_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        if not 1 <= self.deadline_s <= 1e6:
            raise UsageError(f"deadline must be from 1 to 1e+06 seconds: {self.deadline_s!r}")


@dataclass(frozen=True)
class _Job:
    """The work of a child, which its parent sends at the start."""

    entries: tuple[Entry, ...]
    archive: Folder
    settings: AnySettings
    segments: Segments
    limits: Limits


def extract_isolated(
    entries: pa.RecordBatch,
    archive: Folder,
    settings: AnySettings,
    segments: Segments,
    limits: Limits,
    on_failure: Callable[[StorageError], None],
) -> pa.Table:
    """Return the same as `recordings.extract_rows`, even if a recording kills the process that decodes it.

    Recordings that killed the child are ``crashed``, ``timeout`` or ``memory``. Raise StorageError if the place of the recordings fails,
    IncompleteError if no child can be started, and UnfitWorkerError if the child runs other code than this process.
    """
    current().n_isolated += 1
    with stage("isolated"):
        job = _Job(tuple(Entry(**row) for row in entries.to_pylist()), archive, settings, segments, limits)
        return rows_to_table(_extract(job, on_failure), settings, segments)


def _extract(job: _Job, on_failure: Callable[[StorageError], None]) -> Iterator[FeatureRow]:
    """Yield the rows of all recordings, from as many children as needed."""
    left = job.entries
    # The number of children that the first of these has killed.
    n_killed = 0
    while left:
        is_full = False
        failure: StorageError | None = None
        began = time.perf_counter()
        with _Child(replace(job, entries=left)) as child:
            asked = time.perf_counter()
            while left and not is_full:
                rows: list[FeatureRow] = []
                try:
                    while (message := child.receive(job.limits.deadline_s)) is not None and message[:1] == _ROW:
                        rows.append(_decode(message[1:], job.settings))
                except StorageError as error:
                    failure, message = error, None
                if message is None:
                    break
                about = json.loads(message[1:])
                is_full = about.pop("is_full")
                current().add(Spent(**about))
                current().time(left[0].file, time.perf_counter() - asked)
                yield from rows
                left, n_killed = left[1:], 0
                began = asked = time.perf_counter()
            else:
                continue
        if failure is not None:
            on_failure(failure)
            rest = _rest(left[0], job.segments, rows, Status.UNREADABLE, str(failure))
        else:
            current().lost_s += time.perf_counter() - began
            if not child.is_late and n_killed < RECORDING_RETRIES:
                n_killed += 1
                continue
            current().time(left[0].file, time.perf_counter() - asked)
            rest = _rest(left[0], job.segments, rows, *child.cause(job.limits))
        yield from (*rows, *rest)
        left, n_killed = left[1:], 0


def _rest(entry: Entry, segments: Segments, rows: list[FeatureRow], status: Status, reason: str) -> list[FeatureRow]:
    """Return the rows for the rest of a recording after `rows`; none if it killed the child after all its rows."""
    rest = rest_rows(entry, segments, rows, status, reason)
    duration_s = rows[-1].duration_s if rows else None
    is_over = duration_s is not None and not segments.is_listed and any(row.start_s >= duration_s for row in rest)
    return [] if is_over else rest


class _Child:
    """A child process that decodes recordings, one after the other, and ends with the block."""

    def __init__(self, job: _Job) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 our own words
                [sys.executable, "-P", "-m", "emotion_batch.worker.isolation", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # One thread, because each thread of OpenBLAS takes memory of the limit.
                env={**safe_environment(), "OPENBLAS_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        self.is_late = False
        self._peak_bytes = 0
        # A process has memory before it begins, e.g. its parent's on Linux. That is not a recording's.
        self._first_bytes = 0
        ready = self.receive(_START_TIMEOUT_S)
        if ready is None:
            self.__exit__()
            raise IncompleteError(
                f"child process: the one for recordings that may kill it did not start (exit code {self._process.returncode}); see "
                "the worker's log, and run the same command again"
            )
        about = json.loads(ready[1:])
        self._first_bytes = about["peak_bytes"]
        if about["source"] != process.SOURCE:
            self.__exit__()
            raise UnfitWorkerError(
                f"child process: its emotion-batch source is {about['source']}, and the worker's is {process.SOURCE}, because files "
                "of the package have changed since the worker was started; start the worker again"
            )
        # The child may have died since. Then it sends nothing more.
        with contextlib.suppress(OSError):
            self._connection.send(job)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        if self._process.returncode is not None:
            return
        # Popen's kill is not used, because it would lose the dead child's resource usage.
        os.kill(self._process.pid, signal.SIGKILL)
        until = time.monotonic() + _END_TIMEOUT_S
        while time.monotonic() < until:
            pid, end, usage = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(end)
                self._peak_bytes = _bytes(usage)
                return
            time.sleep(0.002)
        # A read that does not end keeps the child in the system. It ends when the read does.

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the next message, or None if there will be none: the child is dead, or late.

        Raises
        ------
        StorageError
            If the child raised it.
        """
        try:
            if not self._connection.poll(timeout_s):
                self.is_late = True
                return None
            message = self._connection.recv_bytes()
        except (EOFError, OSError):
            return None
        if message[:1] == _FAILED:
            about = json.loads(message[1:])
            raise StorageError(about["text"], is_transient=about["is_transient"])
        return message

    def cause(self, limits: Limits) -> tuple[Status, str]:
        """Return status and reason for a recording that killed the child."""
        code = self._process.returncode
        is_full = self._peak_bytes > max(_MEMORY_SHARE * limits.memory_bytes, self._first_bytes)
        # The system kills with this signal if memory is short, and kills a child before its parent.
        if is_full or (code == -signal.SIGKILL and not self.is_late):
            return Status.MEMORY, f"decoding it took more memory than there is, or than {limits.memory_bytes:,} bytes"
        if self.is_late:
            return Status.TIMEOUT, f"decoding it gave nothing for {limits.deadline_s:g} s"
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return Status.CRASHED, f"decoding it ended the process ({name})"


def _encode(row: FeatureRow) -> bytes:
    """Return a row as a message's bytes. It is no pickle, because a hostile recording may control the child."""
    return json.dumps(row[:-1]).encode() + b"\n" + recipes.encode(row.features)


def _decode(data: bytes, settings: AnySettings) -> FeatureRow:
    head, _, values_bytes = data.partition(b"\n")
    values: list[Any] = json.loads(head)
    at = FeatureRow._fields.index("status")
    values[at] = Status(values[at])
    return FeatureRow._make([*values, recipes.decode(values_bytes, settings)])


def serve_parent(descriptor: int) -> None:
    """Decode the recordings that the parent sends over a socket, and send it each row."""
    connection = Connection(descriptor)
    try:
        process.die_with_parent()
        process.settle()
        first_bytes = _bytes(resource.getrusage(resource.RUSAGE_SELF))
        connection.send_bytes(_END + json.dumps({"peak_bytes": first_bytes, "source": process.SOURCE}).encode())
        job: _Job = connection.recv()
        _limit(job.limits.memory_bytes)
        with reading(job.archive, job.segments) as reader:
            for entry, fetched in reader.ahead(job.entries):
                with watched(job.limits.deadline_s) as beat, metered() as spent:
                    for row in extract_recording(entry, job.archive, fetched, job.settings, job.segments):
                        connection.send_bytes(_ROW + _encode(row))
                        beat()
                    peak_bytes = _bytes(resource.getrusage(resource.RUSAGE_SELF))
                    # The child ends if it is full, because the next recording would be blamed for this memory.
                    is_full = peak_bytes > max(_MEMORY_SHARE * job.limits.memory_bytes, first_bytes)
                    counts = {name: getattr(spent, name) for name in ("read_bytes", "n_retries", "n_mixed")}
                    connection.send_bytes(_END + json.dumps({**counts, "is_full": is_full}).encode())
    except StorageError as error:
        connection.send_bytes(_FAILED + json.dumps({"text": str(error), "is_transient": error.is_transient}).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent is gone, so the rows are not needed.
        return


def _bytes(usage: resource.struct_rusage) -> int:
    """Return the most memory that a process has had, in bytes: Linux counts in units of 1,024."""
    return usage.ru_maxrss * 1024


def _limit(memory_bytes: int) -> None:
    """Let this process fail if it takes too much memory, and be killed first if the machine has no more."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
        stream.write("1000")


if __name__ == "__main__":
    # Otherwise the first recording's time would be that of this import too.
    import scipy.fft  # noqa: F401

    serve_parent(int(sys.argv[1]))
