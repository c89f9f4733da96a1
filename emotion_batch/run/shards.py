"""Find which shards of a table a run still has to do, from the files in its storage; in which order, and how long they take."""

from __future__ import annotations

import heapq
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import DeniedError, Status, UsageError
from emotion_batch.inference.bundle import Bundle, check_features, find_model, open_copy, require_safe
from emotion_batch.inference.predict import load_predictor
from emotion_batch.progress import Watcher
from emotion_batch.run.canary import RECORDINGS
from emotion_batch.settings import AnySettings, FeatureSettings, Segments
from emotion_batch.storage.archive import find_base, list_recordings, name_suffixes
from emotion_batch.storage.entries import Entry, peek
from emotion_batch.storage.file_lists import is_list
from emotion_batch.storage.folder import Folder, explained, is_url
from emotion_batch.storage.retry import WITNESS_TRIES, WITNESSES
from emotion_batch.tables import parts, schema
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import Footer
from emotion_batch.tables.repair import mend
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.sharding import cut, estimate_costs
from emotion_batch.tables.table import check_info, find_features, read_info
from emotion_batch.worker.job import TablePlace
from emotion_batch.worker.task import Task

# A shard that costs this many times the usual is begun before the others.
_HEAVY = 4
# The start is measured once, when the caches are warm already.
_START_LOW, _START_HIGH = 0.7, 1.5


def find_done(
    manifest: Manifest,
    places: Sequence[TablePlace],
    features: Mapping[int, Footer] | None,
    on_note: Callable[[str], None],
    *,
    deep: bool = False,
) -> tuple[dict[int, Footer], Mapping[int, Footer]]:
    """Return the footers of a table's shards that are done, and those of all parts that are there.

    The manifest is read anew. `places` are the tables that the job writes, and the last of them is the table itself; `features` are
    the footers of the feature table whose rows are labelled. With `deep`, every row is read, and damaged parts are removed first.
    `on_note` hears of repairs.
    """
    manifest.reload()
    shards = manifest.shards
    with explained(f"table {places[-1][0].url}"):
        for place, info in places:
            if place.url != places[-1][0].url:
                Manifest.following(place, manifest)
            for note in mend(place, info, manifest, deep=deep):
                on_note(note)
        # A shard can keep rows from its part, even if the part was made from earlier entries.
        present = [parts.own_footers(place, info, shards) for place, info in places]
    complete = [parts.select_complete(footers, shards) for footers in present]
    done = {
        shard: footer
        for shard, footer in complete[-1].items()
        # The failures must be the same too, because features may have been retried since they were labelled.
        if all(
            shard in others and others[shard].counts.by_status == footer.counts.by_status
            for others in (*complete, *([] if features is None else [features]))
        )
    }
    return done, present[0]


def has_damage(table: Folder, missing: list[Task]) -> bool:
    """Return whether a missing shard has a part that cannot be used."""
    with explained(f"table {table.url}"):
        names = set(table.names())
    return any(task.earlier is None and parts.part_name(task.shard) in names for task in missing)


def find_relisted(table: Folder, info: TableInfo, manifest: Manifest, done: Mapping[int, Footer]) -> list[int]:
    """Return the finished shards with recordings that differed from their listing, and are listed again."""
    counts = {shard: footer.counts.by_status for shard, footer in done.items()}
    # A recording that is still gone would only become ``vanished`` again, so those are left out below.
    found = [shard for shard, by_status in counts.items() if Status.CHANGED in by_status]
    vanished = [shard for shard in counts.keys() - set(found) if Status.VANISHED in counts[shard]]
    # A list may name missing recordings, and a folder may have links that lead nowhere.
    is_looked_at = is_list(info.source) or not is_url(info.source) or info.segments.is_listed
    for shard, entries in zip(vanished, manifest.entries(vanished), strict=True):
        missing = entries["file"].filter(pc.and_(entries["size"].is_null(), is_looked_at)).to_pylist()
        gone, n_vanished = manifest.gone.get(shard, pa.array([], pa.string())), counts[shard][Status.VANISHED]
        # A recording of a list of segments has a row for each of them.
        if n_vanished > len(missing) + len(gone) and not info.segments.is_listed:
            found.append(shard)
        elif n_vanished > len(missing):
            # The rows show which of them vanished, because a recording that is gone may still have good rows.
            rows = parts.require_part(table, info, shard, ["file", "status"])
            names = rows["file"].filter(pc.equal(rows["status"], Status.VANISHED)).to_pylist()
            if set(names).difference(missing, gone.to_pylist()):
                found.append(shard)
    return found


@dataclass
class Pace:
    """How long the rest of a run takes, by what its shards cost: a long recording takes as long as many short ones.

    `cost` is that of all shards of the run, and `n_workers` the number of threads that were there when it began.
    """

    cost: int
    n_workers: int
    cost_done: int = 0
    worked_s: float = 0.0

    def estimate_left(self, cost: int, worked_s: float, elapsed_s: float) -> float:
        """Return the seconds that are left after one more shard, of this cost, on which its worker has worked so long."""
        self.cost_done += cost
        self.worked_s += worked_s
        if not self.cost_done:
            return 0.0
        # Workers may have joined since.
        n_workers = max(self.n_workers, self.worked_s / max(elapsed_s, 1e-3))
        whole_s = self.worked_s * self.cost / self.cost_done / n_workers
        # Some may have left instead, and then the work lasts longer than all of them would have taken.
        least_s = self.worked_s * (self.cost - self.cost_done) / self.cost_done / n_workers / 2
        return max(whole_s - elapsed_s, least_s)


@dataclass(frozen=True)
class Range:
    """The likely value, and an interval that holds the true one in about 95 % of cases."""

    low: float = 0.0
    likely: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Outlook:
    """Likely seconds of shards in the order of a run, the factors for both ends of the range, and the seconds besides shards."""

    shards_s: npt.NDArray[np.float64]
    low: float
    high: float
    start_s: float

    @property
    def work_s(self) -> Range:
        """Seconds that one worker needs for all shards."""
        total = float(self.shards_s.sum())
        return Range(self.low * total, total, self.high * total)

    def elapsed_s(self, n_workers: int) -> Range:
        """Return the seconds from the call to the end with `n_workers` workers.

        At the early end the work is spread evenly, as far as shards can be; at the late end each worker begins a shard too
        many, because Dask hands them out ahead.
        """
        free_s = [0.0] * min(n_workers, max(1, len(self.shards_s)))
        for seconds in self.shards_s.tolist():
            heapq.heapreplace(free_s, free_s[0] + seconds)
        tail_s = float(np.median(self.shards_s)) if len(self.shards_s) > n_workers else 0.0
        return Range(
            min(_START_LOW, self.low) * self.start_s
            + self.low * max(self.shards_s.sum() / n_workers, self.shards_s.max(initial=0.0)),
            self.start_s + max(free_s),
            max(_START_HIGH, self.high) * self.start_s + self.high * (max(free_s) + tail_s),
        )

    def count_workers(self, within_s: float, end: Callable[[Range], float]) -> int | None:
        """Return the fewest workers with which an end of the range is within `within_s`; None if no number is enough."""
        numbers = range(1, max(1, len(self.shards_s)) + 1)
        place = bisect_left(numbers, True, key=lambda n_workers: end(self.elapsed_s(n_workers)) <= within_s)
        return numbers[place] if place < len(numbers) else None


def order_shards(costs: Mapping[int, int]) -> list[int]:
    """Order shards: the most costly first, so that the run does not wait for one at the end; then the others, spread.

    They are spread so that the first few, however many, come from all over the archive.
    """
    heavy = _HEAVY * float(np.median(list(costs.values()) or [0]))
    first = sorted((shard for shard in costs if costs[shard] > heavy), key=lambda shard: -costs[shard])
    others = [shard for shard in costs if costs[shard] <= heavy]
    # Steps of the golden ratio: https://en.wikipedia.org/wiki/Low-discrepancy_sequence#Additive_recurrence
    order = np.argsort(np.modf(np.arange(len(others)) * (math.sqrt(5) - 1) / 2)[0], kind="stable")
    return first + [others[number] for number in np.argsort(order).tolist()]


def count_first(tasks: Sequence[Task], n_threads: int) -> int:
    """Return how many shards a submitted run does before it leaves: one for each thread, or fewer if they hold enough."""
    n_recordings = 0
    for n_tasks, task in enumerate(tasks[: max(1, n_threads)]):
        if n_recordings >= RECORDINGS:
            return n_tasks
        n_recordings += task.entry.n_recordings
    return min(len(tasks), max(1, n_threads))


def spread(n_things: int, n_most: int) -> list[int]:
    """Return the numbers of at most `n_most` of `n_things` things, evenly spread."""
    return [n_things * number // n_most for number in range(n_most)] if n_things > n_most else list(range(n_things))


def choose_witnesses(
    table: Folder, info: TableInfo, manifest: Manifest, archive: Folder, on_note: Callable[[str], None]
) -> tuple[Entry, ...]:
    """Return a few recordings that can be read here. If they cannot be read elsewhere or later, the archive has a problem.

    Raise StorageError if none of them may be read.
    """
    refusal: PermissionError | None = None
    shards = sorted(manifest.shards)
    chosen = [shards[number] for number in spread(len(shards), WITNESSES)]
    with explained(f"table {table.url}"):
        batches = [batch.take(spread(batch.num_rows, WITNESS_TRIES)) for batch in manifest.entries(chosen)]

    def find(batch: pa.RecordBatch) -> Iterator[Entry]:
        nonlocal refusal
        for entry in (Entry(**row) for row in batch.to_pylist()):
            try:
                peek(archive, entry)
            except PermissionError as error:
                refusal = error if isinstance(error, DeniedError) else PermissionError(0, "", entry.file)
            except Exception:  # noqa: S112 this recording shows nothing about the archive
                continue
            else:
                yield entry

    found = [entry for batch in batches for entry in islice(find(batch), 1)]
    if refusal is not None and not found and archive.is_local:
        # Other recordings may still be readable, and a local archive is quickly checked.
        found = list(islice((entry for batch in manifest.entries(shards) for entry in find(batch)), 1))
    if refusal is not None and not found:
        with explained(f"archive {archive.url}"):
            raise refusal
    if batches and not (found or archive.is_local) and is_list(info.source):
        on_note(
            f"none of the recordings that were tried from the list can be read, e.g. {batches[0]['file'][0].as_py()!r}; names "
            f"in a list are relative to the folder that the list is in, {archive.url}"
        )
    return tuple(found)


@dataclass(frozen=True)
class Left:
    """The work that a run would do.

    `shards` has the entries that are left, by the number of their shard, in the order in which to begin them; `tasks` are those of a
    feature table, and `table` is the table to continue.
    """

    info: TableInfo
    source: TablePlace | Folder
    bundle: Bundle | None
    table: Folder | None
    shards: Mapping[int, pa.Table]
    tasks: Sequence[Task]
    n_recordings: int
    n_parts: int
    notes: tuple[str, ...]


def find_left(
    place: Folder,
    table: str | os.PathLike[str] | None,
    model: str | os.PathLike[str] | None,
    settings: AnySettings | None,
    segments: Segments | None,
    choice: Mapping[str, Any],
    watcher: Watcher,
    *,
    extract: bool = False,
    channels: str | Sequence[int] | None = None,
) -> Left:
    """Return what is left to do in an archive, in a feature table, or in a table to continue.

    `choice` has the suffixes and the patterns that `archive.list_recordings` takes. An archive is to be labelled, unless `extract` is set or `table`
    is a feature table.
    """
    options, listed, base = place.options, None, None
    goes_on = None if table is None else Folder.of(table, options)
    notes: tuple[str, ...] = ()
    with explained(f"archive {place.url}"):
        there = read_info(place)
    if there is not None and (model is None or there.kind != schema.FEATURES):
        stated: dict[str, object] = {
            "table": table,
            "model": model,
            "settings": settings,
            "segments": segments,
            "channels": channels,
        }
        stated |= {"extract": extract or None}
        for name, value in stated.items():
            if value is not None:
                raise UsageError(
                    f"{name} cannot be combined with the table {place.url}, which has its own: name an archive"
                )
        info, goes_on, origin = there, place, Folder.of(there.source, options)
        bundle = None if info.kind == schema.FEATURES else open_copy(place)
        features = None if bundle is None else find_features(origin)
    else:
        origin, features = place, there
        if extract and model is not None:
            raise UsageError("model cannot be combined with extract, which needs none")
        bundle = None if extract else _find_bundle(model, goes_on, options)
        if bundle is not None and settings is not None:
            raise UsageError("settings (--recipe and the like) require extract, because a model has its own")
        default = (settings or FeatureSettings()).segments if bundle is None else bundle.card.segments
        stretches = default.replaced_by(segments, channels)
        if features is None:
            listing = list_recordings(
                place.url, options=options, segments=stretches, on_listed=watcher.on_listed, **choice
            )
            listed, base = listing.entries, listing.folder
            notes = tuple(listing.remark())
        elif segments is not None or channels is not None:
            raise UsageError(f"segments and channels require an archive, and {place.url} is a feature table")
        elif bundle is not None:
            check_features(features, place, bundle)
            stretches = features.segments
        if bundle is None:
            info = TableInfo(schema.FEATURES, place.url, settings or FeatureSettings(), stretches)
        else:
            card = bundle.card
            info = TableInfo(schema.LABELS, place.url, card.feature_settings, stretches, card.model_id, card.labels)
        info = replace(info, **{**choice, "suffixes": name_suffixes(choice["suffixes"])})
    begun = goes_on if goes_on is not None and check_info(goes_on, info) is not None else None
    manifest = read_manifest(begun, info) if begun is not None and features is None else None
    if features is not None:
        manifest = read_manifest(origin, features)
        parts.require_complete(origin, features, manifest.shards)
    known = {} if manifest is None else manifest.shards
    with explained(f"table {(begun or origin).url}"):
        done = {} if begun is None else parts.complete_shards(begun, info, known)
        updated: dict[int, pa.Table] = {}
        if listed is not None and manifest is None:
            updated = dict(enumerate(cut(listed, info.segments)))
        elif listed is not None and manifest is not None:
            updated = manifest.preview(listed, info.segments)
        wanted = [shard for shard in known if shard not in done or shard in updated]
        entries = {} if manifest is None else dict(zip(wanted, manifest.entries(wanted), strict=True))
    shards = {shard: pa.Table.from_batches([one]) for shard, one in entries.items()}
    for shard, newest in updated.items():
        # An existing part keeps the rows that did not change.
        shards[shard] = _find_changed(newest, entries[shard]) if shard in done else newest
    costs = {shard: int(estimate_costs(one, info.segments).sum()) for shard, one in shards.items() if one.num_rows}
    counts = {shard: one.n_recordings for shard, one in known.items()}
    counts |= {shard: one.num_rows for shard, one in updated.items()}
    order = order_shards(costs)
    tasks = [] if features is None else [Task(shard, known[shard]) for shard in order]
    left = {shard: shards[shard] for shard in order}
    source = (base or find_base(info.source, options)) if features is None else TablePlace(origin, features)
    return Left(info, source, bundle, goes_on, left, tasks, sum(counts.values()), len(counts), notes)


def find_witness(archive: Folder, entries: pa.Table) -> Entry | None:
    """Return the first recording that can be read here; None if a few were tried and none can."""
    for entry in (Entry(**row) for row in entries.slice(0, WITNESS_TRIES).to_pylist()):
        with suppress(Exception):
            peek(archive, entry)
            return entry
    return None


def _find_bundle(
    model: str | os.PathLike[str] | None, table: Folder | None, options: Mapping[str, Any] | None
) -> Bundle | None:
    """Return the model that was named, that of the table to continue (a feature table has none), or the default one; see that it loads."""
    begun = None
    if model is None and table is not None:
        with explained(f"table {table.url}"):
            begun = read_info(table)
    if begun is not None and begun.kind == schema.FEATURES:
        return None
    bundle = require_safe(find_model(model, options)) if table is None or begun is None else open_copy(table)
    load_predictor(bundle)
    return bundle


def _find_changed(newest: pa.Table, before: pa.RecordBatch) -> pa.Table:
    known = {tuple(row.values()) for row in before.to_pylist()}
    return newest.filter(pa.array([tuple(row.values()) not in known for row in newest.to_pylist()]))
