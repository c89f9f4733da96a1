"""Put together the statistics of a table, from its rows, its manifest, its runs and the card of its model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from emotion_batch import usage
from emotion_batch.storage.folder import Folder, explained, unseal
from emotion_batch.tables import lease, parts
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.lease import RUN_NAME, Holder
from emotion_batch.tables.parts import Counts
from emotion_batch.tables.table import find_kept_features, require_table

# The table keeps older ones too.
_MOST_RUNS = 50


@dataclass(frozen=True)
class RunFigures:
    """One run; a figure that its record lacks is 0 or empty.

    It decoded `n_decoded` recordings, whose rows cover `audio_s` seconds of audio, in `elapsed_s` seconds of the clock. `n_retries`
    requests were repeated, `n_resubmitted` shards were handed out again, and `lost_s` seconds of work were lost.
    """

    run: str
    began: str = ""
    outcome: str = ""
    error: str = ""
    elapsed_s: float = 0.0
    n_decoded: int = 0
    audio_s: float = 0.0
    n_shards: int = 0
    n_retries: int = 0
    n_resubmitted: int = 0
    lost_s: float = 0.0

    @property
    def rate(self) -> float | None:
        """Recordings a second; None if it did none."""
        return self.n_decoded / self.elapsed_s if self.n_decoded and self.elapsed_s > 0 else None


@dataclass(frozen=True)
class Throughput:
    """All runs together.

    Attributes
    ----------
    runs
        The newest, the last first.
    n_runs
        Number of all runs.
    n_decoded, audio_s, elapsed_s
        Sums over those of `runs` that decoded something.
    stages_s
        Seconds of workers by stage, over the same runs, in the order in which a recording passes them.
    slowest
        Recordings that took longest: seconds and name; empty if the records do not say.
    """

    runs: tuple[RunFigures, ...]
    n_runs: int
    n_decoded: int
    audio_s: float
    elapsed_s: float
    stages_s: Mapping[str, float]
    slowest: tuple[tuple[float, str], ...]

    @property
    def rate(self) -> float | None:
        """Recordings a second; None if nothing was done."""
        return self.n_decoded / self.elapsed_s if self.n_decoded and self.elapsed_s > 0 else None

    @property
    def audio_hours_per_hour(self) -> float | None:
        """Hours of audio for each hour of the clock; None if nothing was done."""
        return self.audio_s / self.elapsed_s if self.audio_s > 0 and self.elapsed_s > 0 else None


def read_throughput(table: Folder) -> Throughput:
    """Return what the run records of a table say; damaged records are skipped."""
    names = _record_names(table)
    spent = usage.Spent()
    runs: list[RunFigures] = []
    slowest: dict[str, float] = {}
    for record in _read_records(table, names[:_MOST_RUNS]):
        # A record may be one of another release.
        with contextlib.suppress(ValueError):
            its = msgspec.convert(record.get("spent") or {}, usage.Spent)
            told = {"n_retries": its.n_retries, "lost_s": its.lost_s, "n_shards": record.get("n_shards_done", 0)}
            runs.append(msgspec.convert({**record, **told, "error": record.get("error") or ""}, RunFigures))
            spent.add(its)
            for elapsed_s, file in its.slowest:
                slowest[file] = max(elapsed_s, slowest.get(file, 0.0))
    active = [run for run in runs if run.n_decoded]
    order = {stage: number for number, stage in enumerate(usage.STAGES)}
    return Throughput(
        runs=tuple(runs),
        n_runs=len(names),
        n_decoded=sum(run.n_decoded for run in active),
        audio_s=sum(run.audio_s for run in active),
        elapsed_s=sum(run.elapsed_s for run in active),
        stages_s=dict(sorted(spent.stages_s.items(), key=lambda one: order.get(one[0], len(order)))),
        slowest=tuple(sorted(((s, file) for file, s in slowest.items()), key=lambda one: (-one[0], one[1]))[:10]),
    )


@dataclass(frozen=True)
class TableStatus:
    """How far a table is.

    Attributes
    ----------
    table, kind, source
        Its URL, what it holds, and what it is made from.
    n_recordings, n_done
        Number of recordings in its manifest, and in finished shards.
    n_shards, n_shards_done
        Number of its shards, and of those that are finished.
    counts
        Counts of the rows of finished shards.
    at_work
        Runs that work on it now.
    cancelled
        Ids of the runs at work that were asked to stop.
    lost
        Runs that died without a record since the last one that ended.
    last_run
        Record of the last run that ended; None if none has.
    features
        URL of the feature table that was labelled, in which recordings are retried; None for other tables.
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
        """Recordings a second, of all runs at work together; None if no run has reported it yet."""
        told = [holder.progress for holder in self.at_work if holder.progress.get("elapsed_s")]
        return sum(one.get("n_done_here", 0) / max(1.0, one["elapsed_s"]) for one in told) if told else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {**asdict(self), "n_left": self.n_recordings - self.n_done, "rate": self.rate}


def status(table: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> TableStatus:
    """Return how far a table is, from its storage alone; raise UsageError if there is none."""
    place = Folder.of(table, storage_options)
    info = require_table(place)
    with explained(f"table {place.url}"):
        # This comes first, because it may take a while.
        living, dead = lease.find_runs(place)
        entries = read_manifest(place, info)
        done = parts.complete_shards(place, info, entries.shards)
        cancelled = [holder.run for holder in living if place.exists(lease.cancellation_name(holder.run))]
        own = {holder.run for holder in living}
        last = next((record for record in _read_records(place, _record_names(place)) if record["run"] not in own), None)
        features_url = find_kept_features(place, info)
    shards = entries.shards
    return TableStatus(
        table=place.url,
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


def _read_records(table: Folder, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of runs; damaged ones are skipped."""
    for name in names:
        with contextlib.suppress(ValueError):
            yield unseal(table.read(f"{lease.FOLDER}/{name}"))


def _record_names(table: Folder) -> list[str]:
    """Return the names of the records of runs, which begin with the time, the newest first."""
    names = table.folder(lease.FOLDER).names()
    return [name for name in reversed(names) if name.endswith(".json") and RUN_NAME.match(name)]
