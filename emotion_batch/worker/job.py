"""A worker's job for each shard of a run: what it reads, and which parts it makes. It knows nothing of Dask."""

from __future__ import annotations

import math
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import usage
from emotion_batch.errors import Status, StorageError
from emotion_batch.inference.bundle import Bundle
from emotion_batch.inference.predict import label_rows, load_predictor
from emotion_batch.storage.entries import Entry, peek
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import attempts, parts
from emotion_batch.tables.attempts import Attempt
from emotion_batch.tables.schema import TableInfo
from emotion_batch.worker import isolation, process, recordings
from emotion_batch.worker.isolation import KILLING, Limits
from emotion_batch.worker.reuse import carry_over, merge
from emotion_batch.worker.task import Publish, Receipt, Task
from emotion_batch.worker.watchdog import watched

# Recordings of an archive that went away get these. They are not an Arrow array, because that would import pandas at once.
_LOST = (Status.VANISHED, Status.UNREADABLE, Status.TIMEOUT)


class TablePlace(NamedTuple):
    """A table's folder and description."""

    table: Folder
    info: TableInfo


@dataclass(frozen=True)
class Job:
    """The input of each shard, and the tables that get a part.

    Attributes
    ----------
    features, labels
        The feature table and the label table that get a part; one of them or both.
    archive
        The folder of the recordings; None if rows of `source` are labelled.
    source
        The finished feature table whose rows are labelled; None if recordings are decoded.
    bundle
        The label table's own copy of the model.
    limits
        Limits of one recording.
    again
        Recordings with these statuses are done again even if they did not change.
    is_retry
        Whether only finished shards with such recordings are done.
    witnesses
        Some recordings that could be read when the run began. If none can be read now, the archive is gone.
    longest_s
        Seconds after which a recording ends with the rows that it has; used for a sample.
    """

    features: TablePlace | None = None
    labels: TablePlace | None = None
    archive: Folder | None = None
    source: TablePlace | None = None
    bundle: Bundle | None = None
    limits: Limits = field(default_factory=Limits)
    again: frozenset[Status] = frozenset()
    is_retry: bool = False
    witnesses: tuple[Entry, ...] = ()
    longest_s: float = math.inf

    @property
    def outputs(self) -> tuple[TablePlace, ...]:
        """The tables that get a part. Rows of the first are reused, and the shards are those of the last."""
        return tuple(place for place in (self.features, self.labels) if place is not None)

    @property
    def table(self) -> Folder:
        """The table whose shards these are."""
        return self.outputs[-1].table

    @property
    def info(self) -> TableInfo:
        """That table's description."""
        return self.outputs[-1].info

    @property
    def optional(self) -> tuple[bool, bool]:
        """Whether what predicts decides its rows, and whether Silero's detector of speech does."""
        return self.bundle is not None, self.archive is not None and self.info.segments.is_by_silero

    def do_shard(self, task: Task, run_id: str, publish: Publish = parts.publish_part) -> Receipt:
        """Do one shard: read its entries, reuse rows, make the others, predict, and publish a part for each output."""
        started = time.perf_counter()
        with usage.metered() as spent, ExitStack() as stack:
            process.settle()
            if self.source is not None:
                with usage.stage("read"):
                    heard = parts.require_part(*self.source, task.shard, newest=task.entry)
                made = found = self._predict(heard)
            else:
                read = stack.enter_context(task.entries_ahead(self.table))
                attempt = stack.enter_context(attempts.noted(self.table, task.shard, run_id))
                entries, known = read()
                kept, left = carry_over(*self.outputs[0], task.shard, entries, known, self.again)
                made = heard = self.extract(left, attempt)
                if self.features is None:
                    made = self._predict(made)
                found = merge(entries, kept, made)
                if self.features is not None and self.labels is not None:
                    publish(*self.features, task.shard, task.entry.digest, found)
                    made, found = self._predict(made), self._predict(found)
            counts = publish(*self.outputs[-1], task.shard, task.entry.digest, found)
            return Receipt.of(counts, made, heard, started, spent)

    def extract(self, entries: pa.RecordBatch, attempt: Attempt) -> pa.Table:
        """Return the feature rows of `entries`: in this process, or in a child if they may have killed one.

        Raises
        ------
        StorageError
            If the archive failed, and not the recordings.
        """
        archive = self.archive
        assert archive is not None  # noqa: S101 a job that decodes has one
        usage.current().lost_s += attempt.lost_s
        settings, segments = self.info.feature_settings, self.info.segments
        if attempt.is_repeated or self.again & KILLING:
            made = isolation.extract_isolated(entries, archive, settings, segments, self.limits, self._check_archive)
        else:
            with watched(self.limits.deadline_s) as beat:
                made = recordings.extract_rows(
                    entries, archive, settings, segments, beat, self._check_archive, self.longest_s
                )
        if pc.any(pc.is_in(made["status"], pa.array(_LOST))).as_py():
            self._check_archive(None)
        return made

    def _predict(self, features: pa.Table) -> pa.Table:
        assert self.bundle is not None  # noqa: S101 a job that labels has one
        with usage.stage("predict"):
            return label_rows(features, load_predictor(self.bundle))

    def _check_archive(self, failure: StorageError | None) -> None:
        """Raise StorageError if no witness can be read, because a run with only failed rows would be useless."""
        if not self.witnesses:
            if failure is not None:
                raise failure
            return
        archive = self.archive
        assert archive is not None  # noqa: S101 as above
        errors: list[StorageError] = []
        is_there = threading.Event()

        def look() -> None:
            for witness in self.witnesses:
                try:
                    with explained(f"archive {archive.url} ({witness.file!r}, which was there before)"):
                        peek(archive, witness)
                except StorageError as error:
                    errors.append(error)
                else:
                    is_there.set()
                    return

        # A thread is used and may be left behind, because a place may also hang.
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(self.limits.deadline_s / 2)
        if is_there.is_set():
            return
        if thread.is_alive() or not errors:
            raise StorageError(f"archive {archive.url}: it does not answer", is_transient=True)
        raise errors[-1]
