"""Time a sample of a run's work on a worker, for `run.plan`: real recordings, in shards, and nothing is kept."""

from __future__ import annotations

import math
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa

from emotion_batch import usage
from emotion_batch.errors import Status
from emotion_batch.inference.bundle import CARD, Bundle
from emotion_batch.inference.predict import label_rows, load_predictor
from emotion_batch.storage.entries import SEGMENTED_SCHEMA, Entry
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import attempts, parts
from emotion_batch.tables.schema import TableInfo
from emotion_batch.worker import process
from emotion_batch.worker.isolation import KILLING
from emotion_batch.worker.job import Job, TablePlace
from emotion_batch.worker.task import Task

# The largest shares of the sample's time for one of its shards, and for a recording, which then ends.
_SHARD, _RECORDING = 1 / 4, 1 / 8


class Share(NamedTuple):
    """The part of the sample for one thread, which may not finish it: recordings, or shards of a feature table.

    The first `n_first` are done twice, because imports, loading and compiling at the start are not part of any recording.
    """

    number: int
    things: tuple[Entry, ...] | tuple[Task, ...]
    n_first: int


class Taken(NamedTuple):
    """The time of one recording: `share` of it was done. `duration_s` is that of the whole, or NaN if unknown.

    The segments of one channel cover `heard_s` of what was done.
    """

    seconds: float
    n_rows: int
    share: float
    duration_s: float
    status: str
    heard_s: float


class Timed(NamedTuple):
    """The costs of a shard of the sample. For `waited_s` other processes had the cores. `memory_bytes` is the process's peak."""

    elapsed_s: float
    waited_s: float
    part_bytes: int
    row_bytes: int
    memory_bytes: int
    taken: tuple[Taken, ...]


@dataclass(frozen=True)
class Trial:
    """Does shares of a sample. It is pickled for the workers."""

    # Folder on each machine for the model, parts and notes of attempts. `remove` deletes it.
    root: str
    # The table that the run would make, of a feature table or of an archive.
    info: TableInfo
    source: TablePlace | Folder
    # While this recording can be read, others that cannot are counted as failed.
    witness: Entry | None
    # The model for labels, and the files of it that a worker needs.
    card: Bundle | None
    files: Mapping[str, bytes] = field(repr=False)
    # The seconds that a share takes, about, and the most things in a shard.
    sample_s: float
    n_most: int

    def __call__(self, share: Share) -> tuple[float, tuple[Timed, ...]]:
        """Return the seconds of a thread's start, and its shards, each at most twice as large as the one before."""
        process.settle()
        notes = Folder.of(os.path.join(self.root, str(share.number)))
        # Only its owner may read it, because parts hold the names of recordings.
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        notes.folder(attempts.FOLDER).make()
        start, n_next = 0, share.n_first
        cold = first = self._do(notes, share, 0, n_next)
        has_killed = isinstance(self.source, Folder) and any(one.status in KILLING for one in cold.taken)
        if not has_killed:
            first = self._do(notes, share, 0, n_next)
        done = [first]
        while (start := start + n_next) < len(share.things):
            each_s, n_left = sum(one.elapsed_s for one in done) / start, len(share.things) - start
            left_s = min(_SHARD * self.sample_s, self.sample_s - each_s * start)
            # If little is left, all of it is done, so that the plan has exact numbers.
            n_in_time = n_left if n_left * each_s <= self.sample_s else int(left_s / each_s)
            n_next = min(2 * n_next, self.n_most, n_in_time)
            if n_next < 1:
                break
            done.append(self._do(notes, share, start, n_next))
        return max(0.0, cold.elapsed_s - first.elapsed_s), tuple(done)

    def _do(self, notes: Folder, share: Share, start: int, n_things: int) -> Timed:
        bundle = None if self.card is None else self._keep_model(self.card)
        clock = _Clock()
        waited_s, began = _waited_s(), time.perf_counter()
        # If a recording kills the process, the next attempt at these finds the note, and decodes in a child process.
        with usage.metered(clock), attempts.noted(notes, start, "plan") as attempt:
            things = share.things[start : start + n_things]
            if isinstance(self.source, TablePlace):
                (task,) = (Task(*one) for one in things)
                made = parts.require_part(self.source.table, self.source.info, task.shard, newest=task.entry)
            else:
                witnesses = () if self.witness is None else (self.witness,)
                longest_s = _RECORDING * self.sample_s
                place = TablePlace(notes, self.info)
                job = Job(features=place, archive=self.source, witnesses=witnesses, longest_s=longest_s)
                rows = [entry._asdict() for entry in things if isinstance(entry, Entry)]
                made = job.extract(pa.RecordBatch.from_pylist(rows, SEGMENTED_SCHEMA), attempt)
            found = made if bundle is None else label_rows(made, load_predictor(bundle))
            parts.publish_part(notes, self.info, start, "", found)
        elapsed_s, waited_s = time.perf_counter() - began, _waited_s() - waited_s
        part = os.path.join(notes.url, parts.part_name(start))
        part_bytes = os.path.getsize(part)
        os.remove(part)
        taken = tuple(self._by_recording(made, clock))
        return Timed(elapsed_s, waited_s, part_bytes, found.nbytes, _peak_bytes(), taken)

    def _keep_model(self, bundle: Bundle) -> Bundle:
        """Return this machine's copy of the model, because a worker may not see the driver's."""
        folder = Folder.of(os.path.join(self.root, "model"))
        if not folder.exists(CARD):
            folder.make()
            # The card is written last, because it shows that the others are there.
            for name, data in {**self.files, CARD: bundle.card.to_json()}.items():
                folder.publish(name, data, is_durable=False)
        return Bundle(folder, bundle.card)

    def _by_recording(self, rows: pa.Table, clock: _Clock) -> Iterator[Taken]:
        """Yield the time of each recording; its status is that of its first row that is not ``ok``."""
        segments, hop_s = self.info.segments, self.info.segments.hop_s
        names = ("file", "status", "duration_s", "channel", "start_s", "end_s")
        columns = zip(*(rows[name].to_pylist() for name in names), strict=True)
        for file, group in groupby(columns, key=lambda row: str(row[0])):
            _, statuses, (duration_s, *_), channels, starts, ends = zip(*group, strict=True)
            heard_s = sum(end_s - start_s for start_s, end_s in zip(starts, ends, strict=True) if end_s is not None)
            n_rows, status = len(statuses), next((one for one in statuses if one != Status.OK), str(Status.OK))
            n_whole = n_rows
            if hop_s is not None and duration_s is not None and status == Status.OK:
                # There is a window for each start inside the recording, and for each of its channels.
                n_whole = max(n_rows, len({*channels}) * math.ceil(round(duration_s / hop_s, 9)))
            seconds, share = clock.each_s.get(file, 0.0), n_rows / n_whole
            if segments.source is not None and duration_s and seconds > _RECORDING * self.sample_s:
                # It ended early, and its last row says where.
                share = min(1.0, max(1e-3, (ends[-1] or 0.0) / duration_s))
            duration_s = math.nan if duration_s is None else duration_s
            yield Taken(seconds, n_rows, share, duration_s, status, heard_s / len({*channels}))

    def remove(self) -> None:
        """Delete the files of the sample on this machine."""
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass
class _Clock(usage.Spent):
    """A `Spent` that also keeps the seconds of each recording."""

    each_s: dict[str, float] = field(default_factory=dict)

    def time(self, file: str, elapsed_s: float) -> None:
        self.each_s[file] = elapsed_s


def _peak_bytes() -> int:
    """Return the most memory that this process has had, without what its parent had before it was born."""
    try:
        with open("/proc/self/status") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _waited_s() -> float:
    """Return how long this thread has been ready to run and has not run; 0 on a system that does not say.

    The second number of https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat, in ns.
    """
    try:
        with open("/proc/thread-self/schedstat") as stream:
            return int(stream.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
