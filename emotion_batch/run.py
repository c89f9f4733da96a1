"""One run over a table: the shards that are not done, handed to a cluster, and what came of them."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

import emotion_batch
from emotion_batch import preflight, tables
from emotion_batch.archive import Entry, Listing
from emotion_batch.bundle import CARD, Bundle, Card
from emotion_batch.errors import CanaryError, IncompleteError, StorageError
from emotion_batch.extraction import Extraction, Receipt
from emotion_batch.labelling import Labelling
from emotion_batch.manifest import Manifest, ShardEntry
from emotion_batch.storage import Folder, explained
from emotion_batch.tables import Counts, TableInfo

_PACKAGE = "emotion-batch"
MODEL = f"{tables.LEDGER}/model"
# So many recordings alike, from all over the archive, are no accident; a night of them helps nobody.
_CANARY_RECORDINGS = 200
# Of long recordings in windows a tenth of them will do, with so many windows.
_CANARY_WINDOWS = 2_000
_CANARY_SHARE = 0.98
# A shard of so many times the usual cost is begun before the others.
_HEAVY = 4


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    n_recordings, n_done, n_failed
        Recordings of the table; those with rows, from earlier runs too; those of them without a result.
    n_done_here
        Recordings that this run did.
    elapsed_s
        Seconds since its first shard was handed out.
    """

    n_recordings: int
    n_done: int
    n_failed: int
    n_done_here: int
    elapsed_s: float


@dataclass(frozen=True)
class Watcher:
    """What a caller wants to hear while a run goes on; each function may be called many times.

    Attributes
    ----------
    on_note
        Takes a sentence that a person should read.
    on_progress
        Takes how far the run is, after each shard.
    """

    on_note: Callable[[str], None] = lambda text: None
    on_progress: Callable[[Progress], None] = lambda progress: None


@dataclass(frozen=True)
class Summary:
    """What a run left behind.

    Attributes
    ----------
    table
        URL of the table.
    counts
        Of all its rows, those of earlier runs included.
    n_shards, n_shards_done
        Shards of the table, and those that this run did.
    examples
        For each status but ``ok`` that this run met, one recording and its reason.
    n_new, n_changed, n_gone
        What the archive has new, changed and no more, compared with the table before.
    left_out
        Files of the archive that are no recordings by their suffix, by suffix.
    audio_s
        Seconds of audio that this run's rows cover.
    elapsed_s
        Wall-clock seconds from the call to the end.
    """

    table: str
    counts: Counts
    n_shards: int
    n_shards_done: int
    examples: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    n_new: int = 0
    n_changed: int = 0
    n_gone: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    audio_s: float = 0.0
    elapsed_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {**asdict(self), "n_ok": self.counts.n_ok, "n_failed": self.counts.n_failed}


@dataclass(frozen=True)
class Needs:
    """What the workers must be able to read."""

    archive: Folder | None = None
    features: tuple[Folder, str] | None = None
    bundle: Bundle | None = None


class Run:
    """One run over a table: what to do, handed to a cluster, and what came of it."""

    def __init__(self, table: Folder, info: TableInfo, watcher: Watcher, started: float) -> None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.id = f"{now}-{secrets.token_hex(4)}"
        self.table = table
        self.info = info
        self.watcher = watcher
        self.started = started
        self.manifest = Manifest(table)
        self.summary = Summary(table.url, Counts(), 0, 0)

    def freeze(self, listing: Listing) -> None:
        """Take a listing over into the table's manifest, and say what is remarkable about it."""
        note = self.watcher.on_note
        if listing.left_out:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(listing.left_out.items()))
            note(f"left out {sum(listing.left_out.values())} files that are no recordings by their suffix ({kinds})")
        if listing.n_duplicates:
            note(f"left out {listing.n_duplicates} repetitions of recordings that the list names already")
        is_new = not self.manifest.shards
        tables.create(self.table, self.info)
        with explained(f"table {self.table.url}"):
            growth = self.manifest.grow(listing.entries, self.info.segments)
        if not is_new and any((growth.n_new, growth.n_changed, growth.n_gone)):
            note(
                f"since the last run the archive has {growth.n_new} recordings more, {growth.n_changed} changed "
                f"and {growth.n_gone} gone; the rows of those that are gone stay"
            )
        self.summary = replace(self.summary, left_out=listing.left_out, **asdict(growth))

    def follow(self, manifest: Manifest) -> None:
        """Take the manifest of a feature table over."""
        tables.create(self.table, self.info)
        with explained(f"table {self.table.url}"):
            self.manifest.follow(manifest)

    def needs_model(self, card: Card) -> bool:
        """Return whether the table has no copy of the bundle yet."""
        data = self.table.read_if_there(f"{MODEL}/{CARD}")
        try:
            return data is None or Card.from_json(data).model_id != card.model_id
        except (ValueError, KeyError, TypeError):
            # Of another release: it is copied anew.
            return True

    def finish(
        self,
        job: Extraction | Labelling,
        needs: Needs,
        *,
        scheduler: str | None,
        workers: int | None,
        force: bool,
        kept: Extraction | None = None,
    ) -> Summary:
        """Do every shard that is not done, and return what the table then is."""
        digests = self.manifest.digests()
        with explained(f"table {self.table.url}"):
            done = tables.complete_shards(self.table, self.info, digests)
        if kept is not None:
            with explained(f"table {kept.table.url}"):
                has_features = tables.complete_shards(kept.table, kept.info, digests)
            done = {shard: footer for shard, footer in done.items() if shard in has_features}
        counts = sum((footer.counts for footer in done.values()), Counts())
        todo = _order({shard: entry.cost for shard, entry in self.manifest.shards.items() if shard not in done})
        self.summary = replace(self.summary, counts=counts, n_shards=len(digests))
        if todo:
            self._do(job, todo, needs, scheduler, workers, force)
        self.summary = replace(self.summary, elapsed_s=time.perf_counter() - self.started)
        self._record(scheduler, workers)
        return self.summary

    def _do(
        self,
        job: Extraction | Labelling,
        todo: list[int],
        needs: Needs,
        scheduler: str | None,
        workers: int | None,
        force: bool,
    ) -> None:
        # Here, for a single recording and `--help` start no Dask.
        from emotion_batch import cluster

        shards = self.manifest.shards
        n_workers = min(workers or cluster.count_cores(), len(todo))
        with cluster.connect(scheduler, n_workers) as connected:
            if connected.dashboard:
                self.watcher.on_note(f"dashboard at {connected.dashboard}")
            if not connected.is_local:
                self._preflight(connected, needs)
            begun = time.perf_counter()
            n_done_here = 0
            failures: list[str] = []
            canary = None if force else _Canary(self.info.source)
            tasks = [(shard, shards[shard]) for shard in todo]
            for (shard, entry), outcome in connected.run(partial(_do_shard, job, self.id), tasks):
                if isinstance(outcome, StorageError):
                    # A full disk is full for every shard: the rest of the night would be decoded for nothing.
                    raise IncompleteError(
                        f"{outcome}; what is finished stays, and the same command goes on"
                    ) from outcome
                if isinstance(outcome, BaseException):
                    failures.append(f"shard {shard}: {type(outcome).__name__}: {outcome}")
                    continue
                n_done_here += entry.n_recordings
                self._add(outcome)
                counts = self.summary.counts
                self.watcher.on_progress(
                    Progress(
                        self.manifest.n_recordings,
                        counts.n_recordings,
                        counts.n_failed,
                        n_done_here,
                        time.perf_counter() - begun,
                    )
                )
                if canary is not None and self.summary.n_shards_done + len(failures) < len(todo):
                    canary.watch(outcome)
            if failures:
                raise IncompleteError(
                    f"table {self.table.url}: expected all of its {len(shards)} shards, got {len(failures)} not done "
                    f"({failures[0]}); run the same command again, it does what is left"
                )

    def _add(self, receipt: Receipt) -> None:
        summary = self.summary
        self.summary = replace(
            summary,
            counts=summary.counts + receipt.counts,
            n_shards_done=summary.n_shards_done + 1,
            examples={**receipt.examples, **summary.examples},
            audio_s=summary.audio_s + receipt.audio_s,
        )

    def _preflight(self, connected: Any, needs: Needs) -> None:
        """Let every worker try what it will need, and say what would be better."""
        nonce_name, nonce = f"{tables.LEDGER}/preflight-{self.id}", secrets.token_bytes(16)
        recording = None if needs.archive is None else self._readable(needs.archive)
        probe = preflight.Probe(
            table=self.table,
            nonce_name=nonce_name,
            nonce=nonce,
            archive=needs.archive,
            recording=recording,
            features=needs.features,
            bundle=needs.bundle,
            versions=preflight.read_versions(needs.bundle is not None),
        )
        with explained(f"table {self.table.url}"):
            self.table.publish(nonce_name, nonce)
            try:
                connected.preflight(_PACKAGE, probe)
            finally:
                self.table.delete(nonce_name)
        many = [worker for worker, n_threads in connected.threads().items() if n_threads > 1]
        if many:
            self.watcher.on_note(
                f"{len(many)} workers run several threads in one process; the same cores do more as processes: "
                "`dask worker ADDRESS --nworkers auto --nthreads 1`"
            )

    def _readable(self, archive: Folder) -> Entry | None:
        """Return a recording that can be read here, for the workers to try; None if the first few cannot."""
        first = next(self.manifest.entries([min(self.manifest.shards)]))
        for row in islice(first.to_pylist(), 20):
            try:
                preflight.peek(archive, Entry(**row))
            except OSError:
                continue
            return Entry(**row)
        return None

    def _record(self, scheduler: str | None, workers: int | None) -> None:
        record = {
            "run": self.id,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "tool_version": emotion_batch.__version__,
            "versions": preflight.read_versions(self.info.kind == tables.LABELS),
            "is_local": scheduler is None,
            "workers": workers,
            **self.summary.to_dict(),
        }
        with explained(f"table {self.table.url}"):
            self.table.publish(f"{tables.LEDGER}/runs/{self.id}.json", json.dumps(record, indent=2).encode())


class _Canary:
    """Stops a run whose first few hundred recordings, from all over the archive, came out alike."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._counts = Counts()
        self._examples: dict[str, tuple[str, str]] = {}
        self._is_over = False

    def watch(self, receipt: Receipt) -> None:
        """Take one more receipt in; raise CanaryError if the rows so far are enough and alike."""
        if self._is_over:
            return
        self._counts += receipt.counts
        self._examples.update(receipt.examples)
        counts = self._counts
        if not _is_enough(counts.n_recordings, counts.n_rows):
            return
        self._is_over = True
        if len(counts.by_status) == 1 and not counts.n_ok:
            (status,) = counts.by_status
            file, reason = self._examples[status]
            raise CanaryError(
                f"{self._source}: expected usable recordings, got {counts.n_rows} of {counts.n_rows} that are {status} "
                f"({file!r}: {reason}); look at some of them, or go on with --force"
            )
        if counts.by_label and _is_enough(counts.n_recordings - counts.n_failed, counts.n_ok):
            emotion, n_alike = max(counts.by_label.items(), key=lambda item: item[1])
            if n_alike >= _CANARY_SHARE * counts.n_ok:
                raise CanaryError(
                    f"{self._source}: expected labels that differ, got {emotion!r} for {n_alike:,} of the first "
                    f"{counts.n_ok:,} segments; listen to some of them, or go on with --force"
                )


def _is_enough(n_recordings: int, n_rows: int) -> bool:
    """Return whether so much that is alike is no accident."""
    return n_recordings >= _CANARY_RECORDINGS or (
        n_recordings >= _CANARY_RECORDINGS // 10 and n_rows >= _CANARY_WINDOWS
    )


def _do_shard(job: Extraction | Labelling, _run_id: str, task: tuple[int, ShardEntry]) -> Receipt:
    """Do one shard on a worker. The run's id keeps Dask from taking one run's call for another's."""
    return job.do_shard(*task)


def _order(costs: Mapping[int, int]) -> list[int]:
    """Order shards: such as cost far more than most first, that none is waited for at the end; the others spread.

    Spread, so that any first few are from all over the archive.
    """
    heavy = _HEAVY * float(np.median(list(costs.values()) or [0]))
    first = sorted((shard for shard in costs if costs[shard] > heavy), key=lambda shard: -costs[shard])
    others = [shard for shard in costs if costs[shard] <= heavy]
    # Steps of the golden ratio: https://en.wikipedia.org/wiki/Low-discrepancy_sequence#Additive_recurrence
    order = np.argsort(np.modf(np.arange(len(others)) * (math.sqrt(5) - 1) / 2)[0], kind="stable")
    return first + [others[number] for number in np.argsort(order).tolist()]
