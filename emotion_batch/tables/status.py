"""Read from storage alone how far a table is. The cost grows with the number of its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emotion_batch.storage.folder import Folder, explained, unseal
from emotion_batch.tables import lease, parts
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.lease import RUN_NAME, RUNS, Holder
from emotion_batch.tables.parts import Counts
from emotion_batch.tables.table import find_kept_features, require_table


@dataclass(frozen=True)
class TableStatus:
    """How far a table is.

    Attributes
    ----------
    table, kind, source
        Its URL, what it holds, and what it is made from.
    n_recordings, n_done
        Recordings of its manifest; those of finished shards.
    n_shards, n_shards_done
        Its shards, and those that are finished.
    counts
        Of the rows of finished shards.
    at_work
        Runs that work on it now.
    cancelled
        Ids of those of them that were asked to stop.
    lost
        Runs that died without a word since the last one that ended.
    last_run
        Record of the last run that ended; None if none has.
    features
        URL of the feature table that these are the labels of, where recordings are tried again; None for other tables.
    """

    table: str
    kind: str
    source: str
    n_recordings: int
    n_done: int
    n_shards: int
    n_shards_done: int
    counts: Counts
    at_work: tuple[Holder, ...]
    cancelled: tuple[str, ...]
    lost: tuple[Holder, ...]
    last_run: Mapping[str, Any] | None
    features: str | None = None

    @property
    def rate(self) -> float | None:
        """Recordings a second, of all runs that are at work; None if none is, or none has said so yet."""
        told = [holder.progress for holder in self.at_work if holder.progress.get("elapsed_s")]
        return sum(one.get("n_done_here", 0) / max(1.0, one["elapsed_s"]) for one in told) if told else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {**asdict(self), "n_left": self.n_recordings - self.n_done, "rate": self.rate}


def read_status(table: Folder) -> TableStatus:
    """Return how far a table is; raise UsageError if there is none."""
    info = require_table(table)
    with explained(f"table {table.url}"):
        # First, because it may take a while.
        living, dead = lease.find_runs(table)
        entries = read_manifest(table, info)
        done = parts.complete_shards(table, info, entries.shards)
        cancelled = [holder.run for holder in living if table.exists(lease.cancellation_name(holder.run))]
        last = _last_run(table, {holder.run for holder in living})
        features_url = find_kept_features(table, info)
    shards = entries.shards
    return TableStatus(
        table=table.url,
        kind=info.kind,
        source=info.source,
        n_recordings=entries.n_recordings,
        n_done=sum(shards[shard].n_recordings for shard in done),
        n_shards=len(shards),
        n_shards_done=len(done),
        counts=sum((footer.counts for footer in done.values()), Counts()),
        at_work=tuple(living),
        cancelled=tuple(cancelled),
        lost=tuple(dead),
        last_run=last,
        features=features_url,
    )


def _last_run(table: Folder, living: Container[str]) -> Mapping[str, Any] | None:
    """Return the record of the run that ended last; its name begins with the time. A run that lives has not ended."""
    names = [name for name in table.folder(RUNS).names() if name.endswith(".json") and RUN_NAME.match(name)]
    for name in reversed(names):
        # What is damaged, or of odd types in an earlier release's, is passed over.
        with contextlib.suppress(ValueError, KeyError, TypeError, ZeroDivisionError):
            record = unseal(table.read(f"{RUNS}/{name}"))
            is_sound = isinstance(record["run"], str) and isinstance(record["outcome"], str)
            if (
                is_sound
                and record["run"] not in living
                and (not record.get("n_decoded") or record["n_decoded"] / record["elapsed_s"] >= 0)
            ):
                return record
    return None
