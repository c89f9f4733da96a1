"""The task of a shard, which a driver sends to a worker, and the receipt that it gets back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import usage
from emotion_batch.errors import DamagedError, Status
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.parts import Counts
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry, read_entries
from emotion_batch.usage import Spent

# Writes a part, as `parts.publish_part` does.
Publish = Callable[[Folder, TableInfo, int, str, pa.Table], Counts]


class Entries(NamedTuple):
    """A shard's recordings: the newest entries, and those that its part may have been made from."""

    newest: pa.RecordBatch
    known: Mapping[str, pa.RecordBatch]


class Task(NamedTuple):
    """One task of a run: only numbers, no names of recordings.

    `entry` says where the shard's newest entries are, and `earlier` where the entries of its present part are; None if it has no
    part, or another's.
    """

    shard: int
    entry: ShardEntry
    earlier: ShardEntry | None = None

    def read_entries(self, table: Folder) -> Entries:
        """Return the shard's newest entries, and those that its part may have been made from, by digest."""
        entries = read_entries(table, self.entry)
        if self.earlier is None:
            return Entries(entries, {})
        known = {self.entry.digest: entries}
        if self.earlier.digest not in known:
            # If they are damaged, no rows can be kept.
            with suppress(DamagedError):
                known[self.earlier.digest] = read_entries(table, self.earlier)
        return Entries(entries, known)

    @contextmanager
    def entries_ahead(self, table: Folder) -> Iterator[Callable[[], Entries]]:
        """Read the entries while the block does something else, because a table may be far. The yielded function may raise."""
        with ThreadPoolExecutor(1) as pool:
            yield usage.submit_metered(pool, partial(self.read_entries, table))


@dataclass(frozen=True)
class Receipt:
    """The result of a task; it is small for every shard.

    Attributes
    ----------
    counts
        Counts of the part's rows.
    made
        Counts of the rows that were made now. The others are from the earlier part.
    audio_s
        Seconds of audio in the ``ok`` rows that were made now.
    recorded_s
        Seconds that the recordings of these rows last.
    elapsed_s
        Wall-clock seconds that the shard took.
    examples
        The first recording and its reason, for each status but ``ok`` that was made now.
    spent
        How the time was spent.
    """

    counts: Counts
    made: Counts = field(default_factory=Counts)
    audio_s: float = 0.0
    recorded_s: float = 0.0
    elapsed_s: float = 0.0
    examples: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)

    @classmethod
    def of(cls, counts: Counts, made: pa.Table, features: pa.Table, started: float, spent: Spent) -> Receipt:
        """Return the receipt for the rows `made` now, of `features`, begun at `started` of `time.perf_counter`."""
        failed = made.filter(pc.not_equal(made["status"], Status.OK))
        columns = (failed[name].to_pylist() for name in ("status", "file", "error"))
        examples: dict[str, tuple[str, str]] = {}
        for status, file, error in zip(*columns, strict=True):
            examples.setdefault(status, (file, error))
        starts, ends = (made[name].to_numpy() for name in ("start_s", "end_s"))
        audio_s = float(np.nansum(ends - starts))
        # All segments of a recording, or of one of its channels, say how long it is.
        is_ok = pc.equal(features["status"], Status.OK)
        durations = features.filter(is_ok).group_by(["file", "channel"]).aggregate([("duration_s", "max")])
        recorded_s = pc.sum(durations["duration_s_max"]).as_py() or 0.0
        return cls(counts, Counts.of(made), audio_s, recorded_s, time.perf_counter() - started, examples, spent)
