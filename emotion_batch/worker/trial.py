"""Time a sample on a worker, for `run.planning`: real shards of a few recordings, in a private table. It knows nothing of Dask.

A long recording in windows is left after some of them. The private table is deleted at the end of the block that made it.
"""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

import pyarrow as pa

from emotion_batch.errors import Status
from emotion_batch.inference.bundle import CARD, EXECUTABLE, Bundle, read_checked
from emotion_batch.settings import Segments
from emotion_batch.storage.entries import ENTRY_SCHEMA, Entry, peek
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts
from emotion_batch.tables.attempts import Attempt
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.tables.table import create_info
from emotion_batch.worker import preflight, recordings
from emotion_batch.worker.job import Job, TablePlace
from emotion_batch.worker.task import Task
from emotion_batch.worker.watchdog import watched

_MODEL = "model"


class Taken(NamedTuple):
    """What one recording took.

    Attributes
    ----------
    seconds
        Of what was done of it.
    n_rows
        Rows that were made of it.
    share
        How much of it that was: 1 for the whole.
    duration_s
        Of the whole recording; None where it does not say, or cannot be read.
    status
        Of the first of its rows that is not ``ok``.
    """

    seconds: float
    n_rows: int
    share: float
    duration_s: float | None
    status: str


@dataclass(frozen=True)
class Block:
    """A stretch of the sample: some recordings, or a shard of a feature table.

    Attributes
    ----------
    number
        No other block of the sample has it.
    entries
        The recordings; none if it is a shard.
    most_rows
        Of a recording.
    shard
        Number and entry of the shard; None for recordings.
    """

    number: int
    entries: tuple[Entry, ...] = ()
    most_rows: int = 0
    shard: tuple[int, ShardEntry] | None = None


@dataclass(frozen=True)
class Timed:
    """What a block took.

    Attributes
    ----------
    worker
        Machine, process and thread that did it.
    began, ended
        When, of that machine's `time.monotonic`: between two blocks of a thread lies what handing them out costs.
    waited_s
        Seconds in which other processes had the cores.
    elapsed_s
        Seconds of its shard, of which those of recordings are a part.
    part_bytes
        Of its part.
    row_bytes
        Of its rows in memory.
    memory_bytes
        The most that the process has had so far.
    taken
        What each recording took, in the order of the block.
    """

    worker: str
    began: float
    ended: float
    waited_s: float
    elapsed_s: float
    part_bytes: int
    row_bytes: int
    memory_bytes: int
    taken: tuple[Taken, ...]


@dataclass(frozen=True)
class Trial:
    """Does blocks of the sample; travels to workers.

    Attributes
    ----------
    root
        Folder that the sample is worked in, on each machine; `remove` takes it away.
    info
        What the table is that would be made.
    source
        The feature table that is labelled, or the archive.
    card
        Of the model, with its folder here; None for an extraction.
    files
        What it executes, for a worker that does not see that folder.
    """

    root: str
    info: TableInfo
    source: TablePlace | Folder
    card: Bundle | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, name: str, info: TableInfo, source: TablePlace | Folder, bundle: Bundle | None) -> Trial:
        """Return the trial of a run, called `name` as no other one is."""
        root = os.path.join(tempfile.gettempdir(), f"emotion-batch-plan-{name}")
        files = {} if bundle is None else {EXECUTABLE: read_checked(bundle, EXECUTABLE)}
        return cls(root, info, source, bundle, files)

    def __call__(self, block: Block) -> Timed:
        """Do a block and return what it took."""
        began = time.monotonic()
        # Nobody else's: parts hold the names of recordings.
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        # By its number, so that a recording that killed its process is known to have done so at the next attempt.
        table = Folder.of(os.path.join(self.root, f"{block.number:06d}"))
        create_info(table, self.info)
        try:
            bundle = None if self.card is None else self._keep_model(self.card)
            waited_s = _waited_s()
            if block.shard is not None:
                done = self._label_shard(table, bundle, block.shard)
            else:
                done = self._do_recordings(table, bundle, block)
            waited_s = _waited_s() - waited_s
        finally:
            shutil.rmtree(table.url, ignore_errors=True)
        return Timed(_name_thread(), began, time.monotonic(), waited_s, *done)

    def _do_recordings(
        self, table: Folder, bundle: Bundle | None, block: Block
    ) -> tuple[float, int, int, int, tuple[Taken, ...]]:
        assert isinstance(self.source, Folder)  # noqa: S101 a block of recordings is an archive's
        manifest = Manifest(table)
        columns = list(zip(*block.entries, strict=True))
        arrays = [pa.array(column, one.type) for column, one in zip(columns, ENTRY_SCHEMA, strict=True)]
        # One shard, as large as the sample allows.
        manifest.freeze({0: pa.Table.from_arrays(arrays, schema=ENTRY_SCHEMA)}, self.info.segments)
        here = TablePlace(table, self.info)
        job = _Partly(
            features=here if bundle is None else None,
            labels=None if bundle is None else here,
            archive=self.source,
            bundle=bundle,
            most_rows=block.most_rows,
        )
        receipt = job.do_shard(Task(0, manifest.shards[0]), "plan")
        predict_s = receipt.spent.stages_s.get("predict", 0.0)
        made, ticks = job.noted[-1]
        n_rows = max(1, made.num_rows)
        taken = tuple(
            one._replace(seconds=one.seconds + predict_s * one.n_rows / n_rows)
            for one in _by_recording(made, ticks, self.info.segments)
        )
        return receipt.elapsed_s, *_sizes(table, 0), taken

    def _label_shard(
        self, table: Folder, bundle: Bundle | None, shard: tuple[int, ShardEntry]
    ) -> tuple[float, int, int, int, tuple[Taken, ...]]:
        assert isinstance(self.source, TablePlace)  # noqa: S101 only it has shards
        assert bundle is not None  # noqa: S101 and features are only labelled
        number, entry = shard
        receipt = Job(labels=TablePlace(table, self.info), source=self.source, bundle=bundle).do_shard(
            Task(number, entry), "plan"
        )
        # As long as it is of many rows, it is theirs.
        seconds = sum(receipt.spent.stages_s.get(stage, 0.0) for stage in ("read", "predict"))
        made = parts.require_part(self.source.table, self.source.info, number, ["file", "status", "duration_s"])
        found = list(_by_recording(made, [], self.info.segments))
        n_rows = max(1, made.num_rows)
        taken = tuple(one._replace(seconds=seconds * one.n_rows / n_rows) for one in found)
        return receipt.elapsed_s, *_sizes(table, number), taken

    def _keep_model(self, bundle: Bundle) -> Bundle:
        """Return this machine's copy of the model, as a run's workers load the table's."""
        folder = Folder.of(os.path.join(self.root, _MODEL))
        if not folder.exists(CARD):
            folder.make()
            for name, data in self.files.items():
                folder.publish(name, data, is_durable=False)
            folder.publish(CARD, bundle.card.to_json(), is_durable=False)
        return Bundle(folder, bundle.card)

    def remove(self) -> None:
        """Take away what the sample has left on this machine."""
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass(frozen=True)
class Fitness:
    """Tries on a worker what the sample will need; as a run's preflight, but with nothing written for it."""

    trial: Trial
    versions: Mapping[str, str]
    witness: Entry | None

    def __call__(self) -> str | None:
        """Return what is lacking here, or None."""
        lack = preflight.find_other_version(self.versions)
        if lack is not None:
            return lack
        if self.witness is not None and isinstance(self.trial.source, Folder):
            try:
                peek(self.trial.source, self.witness)
            except OSError as error:
                return (
                    f"expected to read the recording {self.witness.file!r} of the archive {self.trial.source.url}, got "
                    f"{error.strerror or type(error).__name__}; the archive must be at the same place on every machine"
                )
        return None


@dataclass(frozen=True)
class Removal:
    """Takes away on a worker's machine what a trial has left there."""

    trial: Trial

    def __call__(self) -> None:
        """Do it."""
        self.trial.remove()


@dataclass(frozen=True)
class _Partly(Job):
    """An extraction that leaves a recording after some rows, and notes when each row was there."""

    most_rows: int = 0
    noted: list[tuple[pa.Table, list[float]]] = field(default_factory=list, compare=False)

    def extract(self, entries: pa.RecordBatch, attempt: Attempt) -> pa.Table:
        assert self.archive is not None  # noqa: S101 a sample of recordings has one
        ticks = [time.perf_counter()]
        if attempt.is_repeated:
            made = super().extract(entries, attempt)
        else:
            with watched(self.limits.deadline_s) as beat:

                def on_row() -> None:
                    beat()
                    ticks.append(time.perf_counter())

                made = recordings.extract_rows(
                    entries,
                    self.archive,
                    self.info.feature_settings,
                    self.info.segments,
                    on_row,
                    # What fails of a sample is counted, and ends no plan.
                    lambda error: None,
                    self.most_rows,
                )
        ticks.append(time.perf_counter())
        self.noted.append((made, ticks))
        return made


def _by_recording(made: pa.Table, ticks: list[float], segments: Segments) -> Iterator[Taken]:
    """Yield what each recording of some rows took.

    Parameters
    ----------
    made
        The rows, with ``file``, ``status`` and ``duration_s``.
    ticks
        When the first was begun, when each was there, and when all were; without those in the middle, rows share alike.
    segments
        Of which stretches the rows are.
    """
    if len(ticks) == made.num_rows + 2:
        seconds = [later - earlier for earlier, later in pairwise(ticks[:-1])]
    else:
        seconds = [(ticks[-1] - ticks[0]) / made.num_rows if ticks else 0.0] * made.num_rows
    columns = zip(*(made[name].to_pylist() for name in ("file", "status", "duration_s")), seconds, strict=True)
    for _, group in groupby(columns, key=lambda row: str(row[0])):
        found = list(group)
        statuses = [status for _, status, _, _ in found if status != Status.OK]
        duration_s = found[0][2]
        share = 1.0
        if segments.hop_s is not None and duration_s is not None and not statuses:
            # Those that start inside the recording.
            share = len(found) / max(len(found), math.ceil(round(duration_s / segments.hop_s, 9)))
        yield Taken(sum(row[3] for row in found), len(found), share, duration_s, statuses[0] if statuses else Status.OK)


def _sizes(table: Folder, shard: int) -> tuple[int, int, int]:
    """Return the bytes of a part, of its rows in memory, and the most that this process has had."""
    part_bytes = os.path.getsize(os.path.join(table.url, parts.part_name(shard)))
    return part_bytes, parts.read_part(table, shard).nbytes, _peak_bytes()


def _peak_bytes() -> int:
    """Return the most memory that this process has had, without what its parent had before it was born."""
    try:
        with open("/proc/self/status") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _waited_s() -> float:
    """Return how long this thread has been ready to run and not run; 0 on a system that does not say.

    The second of https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat, in ns.
    """
    try:
        with open("/proc/thread-self/schedstat") as stream:
            return int(stream.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _name_thread() -> str:
    return f"{platform.node()}:{os.getpid()}:{threading.get_ident()}"
