"""Extract one shard: recordings to the rows of a feature table. It knows nothing of Dask."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import usage
from emotion_batch.errors import Status, StorageError
from emotion_batch.storage.entries import Entry, peek
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import attempts, parts
from emotion_batch.tables.attempts import Attempt
from emotion_batch.tables.schema import TableInfo
from emotion_batch.worker import isolation, process, recordings
from emotion_batch.worker.isolation import KILLING, Limits
from emotion_batch.worker.reuse import carry_over, merge
from emotion_batch.worker.task import Entries, Publish, Receipt, Task
from emotion_batch.worker.watchdog import watched

# What an archive that went away makes of its recordings. No Arrow array here, which would import pandas at once.
_LOST = (Status.VANISHED, Status.UNREADABLE, Status.TIMEOUT)


@dataclass(frozen=True)
class Extraction:
    """What every task of an extraction knows.

    Attributes
    ----------
    table
        The table whose shards these are; its own part gives the rows that can be kept.
    info
        What the table is.
    archive
        What the recordings' names are relative to.
    limits
        What a recording may take.
    again
        Statuses whose recordings are done again though they did not change.
    witnesses
        Some recordings that could be read when the run began: if none can any more, the archive is gone.
    longest_s
        Seconds after which a recording is left with the rows that it has; for a sample.
    """

    table: Folder
    info: TableInfo
    archive: Folder
    limits: Limits = field(default_factory=Limits)
    again: frozenset[Status] = frozenset()
    witnesses: tuple[Entry, ...] = ()
    longest_s: float = math.inf

    def do_shard(self, task: Task, run_id: str, publish: Publish = parts.publish_part) -> Receipt:
        """Extract one shard's recordings and publish its part."""
        started = time.perf_counter()
        with (
            usage.metered() as spent,
            task.entries_ahead(self.table) as read,
            attempts.noted(self.table, task.shard, run_id) as attempt,
        ):
            process.settle()
            made, found = self.extract_shard(task, read(), attempt)
            counts = publish(self.table, self.info, task.shard, task.entry.digest, found)
            return Receipt.of(counts, made, started, spent)

    def extract_shard(self, task: Task, read: Entries, attempt: Attempt) -> tuple[pa.Table, pa.Table]:
        """Return the feature rows of a shard that are made now, and all of them with those of its present part."""
        entries, known = read
        kept, left = carry_over(self.table, self.info, task.shard, entries, known, self.again)
        made = self.extract(left, attempt)
        return made, merge(entries, kept, made)

    def extract(self, entries: pa.RecordBatch, attempt: Attempt) -> pa.Table:
        """Return the feature rows of `entries`: in this process, or in a child if they may have killed one.

        Raises
        ------
        StorageError
            If not the recordings failed, but the archive.
        """
        usage.current().lost_s += attempt.lost_s
        settings, segments = self.info.feature_settings, self.info.segments
        if attempt.is_repeated or self.again & KILLING:
            made = isolation.extract_isolated(
                entries, self.archive, settings, segments, self.limits, self._check_archive
            )
        else:
            with watched(self.limits.deadline_s) as beat:
                made = recordings.extract_rows(
                    entries, self.archive, settings, segments, beat, self._check_archive, self.longest_s
                )
        if pc.any(pc.is_in(made["status"], pa.array(_LOST))).as_py():
            self._check_archive(None)
        return made

    def _check_archive(self, failure: StorageError | None) -> None:
        """Raise StorageError if no witness can be read: a night of rows that say so would be of no use."""
        if not self.witnesses:
            if failure is not None:
                raise failure
            return
        found: list[StorageError | None] = []

        def look() -> None:
            for witness in self.witnesses:
                try:
                    with explained(f"archive {self.archive.url} ({witness.file!r}, which was there before)"):
                        peek(self.archive, witness)
                except StorageError as error:
                    found.append(error)
                else:
                    found.append(None)
                    return

        # In a thread that may be left behind, for a place that hangs is as lost as one that refuses.
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(self.limits.deadline_s / 2)
        errors = [error for error in found if error is not None]
        if len(errors) < len(found):
            return
        if thread.is_alive() or not errors:
            raise StorageError(f"archive {self.archive.url}: expected an answer, got none", is_transient=True)
        raise errors[-1]
