"""How far a table is and whether it is whole: read from its storage alone, at a cost that grows with its parts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import DamagedError, IncompleteError, Status, UsageError
from emotion_batch.features import recipes
from emotion_batch.inference import bundle
from emotion_batch.settings import Segments
from emotion_batch.storage.archive import ENTRY_SCHEMA
from emotion_batch.storage.folder import Folder, damaged, explained, seal, unseal
from emotion_batch.storage.retry import hastily
from emotion_batch.tables import attempts, lease, manifest, parts
from emotion_batch.tables.lease import Holder, Lease
from emotion_batch.tables.manifest import Manifest, ShardEntry, digest_like, read_entries
from emotion_batch.tables.parts import Counts, Footer, OtherPartError, PartError, TableInfo

RUNS = lease.FOLDER
# What a lease says of a run that is about to replace a table's settings.
_IS_REPLACING = "is_replacing"
_NOTE = re.compile(r"[0-9]{6,}\.json")
_RUN = re.compile(r"[0-9TZ]+-[0-9a-f]+")


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


@dataclass(frozen=True)
class Verification:
    """Whether a table is whole.

    Attributes
    ----------
    table
        Its URL.
    n_recordings, n_shards
        What its manifest has.
    counts
        Of the rows of its parts that are right.
    is_deep
        Whether every row was read.
    problems
        What is wrong, a sentence each; none if the table is whole.
    features
        As of `TableStatus`.
    removed
        Names of damaged parts that were removed.
    strangers
        Names of files that are no parts of it.
    """

    table: str
    n_recordings: int
    n_shards: int
    counts: Counts
    is_deep: bool
    problems: tuple[str, ...] = field(default_factory=tuple)
    features: str | None = None
    removed: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether each recording of the manifest has its rows exactly once, and nothing else is there."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {**asdict(self), "is_whole": self.is_whole}


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
        features_url = _find_features(table, info)
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


def verify_table(table: Folder, *, deep: bool = False, repair: bool = False) -> Verification:
    """Look whether a table is whole.

    Parameters
    ----------
    table
        The table.
    deep
        Read every row, rather than what each part says of itself.
    repair
        Read every row, and remove the parts that are damaged, so that the command that made the table makes them anew.

    Raises
    ------
    UsageError
        If there is no table.
    """
    deep = deep or repair
    try:
        info = require_table(table)
        with explained(f"table {table.url}"):
            entries = Manifest(table)
            require_generations(table, info, entries, ())
    except DamagedError as error:
        problem = str(error).removeprefix(f"table {table.url}: ")
        return Verification(table.url, 0, 0, Counts(), deep, (problem,))
    with explained(f"table {table.url}"):
        names = table.names()
        strangers = list(find_strangers(names, entries))
        problems = [f"{name}: expected only the parts of this table, got {what}" for name, what in strangers]
        problems += entries.find_damage(deep=deep)
        if info.kind == parts.LABELS and (found_in := bundle.find_damage(table.folder(bundle.COPY))) is not None:
            problems.append(f"{bundle.COPY}/{found_in}")
        if not entries.shards and not entries.history:
            problems.append("manifest: expected recordings, got none; a run ended before it had frozen its listing")
        found = _look_at_parts(table, info, entries, deep=deep)
        removed = _remove_damaged(table, found) if repair else {}
    problems += [
        f"{one.name}: {one.problem}{'; removed' if one.name in removed else ''}"
        for one in found
        if one.problem is not None
    ]
    counts = sum((one.footer.counts for one in found if one.footer is not None), Counts())
    return Verification(
        table.url,
        entries.n_recordings,
        len(entries.shards),
        counts,
        deep,
        tuple(problems),
        _find_features(table, info),
        tuple(removed),
        tuple(name for name, _ in strangers),
    )


class _Looked(NamedTuple):
    """What a look at the part of a shard found: its footer, or a problem with it, and whether that is damage."""

    name: str
    footer: Footer | None = None
    problem: str | None = None
    is_damaged: bool = False


def _look_at_parts(
    table: Folder, info: TableInfo, entries: Manifest, *, deep: bool, values: bool = True
) -> list[_Looked]:
    """Look at the part of each shard; without `values` features are not unpacked whose bytes are as they were written."""
    there = set(table.names())

    def look(item: tuple[int, ShardEntry]) -> _Looked:
        shard, entry = item
        name = parts.part_name(shard)
        if name not in there:
            return _Looked(name, problem=f"expected the rows of {entry.n_recordings:,} recordings, got no such part")
        try:
            return _Looked(name, _read(table, info, shard, entries, deep=deep, values=values))
        except (PartError, IncompleteError) as error:
            is_damaged = isinstance(error, PartError) and not isinstance(error, OtherPartError)
            return _Looked(name, None, str(error).removeprefix(f"table {table.url}: "), is_damaged)

    # Threads, for this waits for storage.
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(look, entries.shards.items()))


def _remove_damaged(table: Folder, found: list[_Looked]) -> dict[str, str]:
    """Remove the parts that were found to be damaged; return what is wrong with them by their names."""
    damaged = {one.name: one.problem or "" for one in found if one.is_damaged}
    for name in damaged:
        table.delete(name)
    return damaged


def _find_features(table: Folder, info: TableInfo) -> str | None:
    """Return the URL of the feature table that a table holds the labels of; None if it is of recordings."""
    if info.kind != parts.LABELS:
        return None
    # The source may be gone or refuse by now, which says nothing about this table.
    with contextlib.suppress(Exception), hastily():
        if parts.read_info(Folder(info.source, table.options)) is not None:
            return info.source
    return None


def require_table(table: Folder) -> TableInfo:
    """Return what a table is; raise UsageError if there is none."""
    with explained(f"table {table.url}"):
        info = parts.read_info(table)
    if info is None:
        raise UsageError(f"table {table.url}: expected a table, got none there; check the name")
    return info


def run_ids(table: Folder) -> set[str]:
    """Return the ids of the runs that a table knows, those at work included."""
    return {name.partition(".")[0] for name in table.folder(RUNS).names() if _RUN.match(name)}


def others_at_work(table: Folder, run_id: str) -> list[Holder]:
    """Return the other runs that work on a table, and bury those that died: their leases become records."""
    living, dead = lease.find_runs(table)
    for holder in dead:
        record = {"run": holder.run, "outcome": lease.LOST, "host": holder.host, **holder.progress}
        table.publish_first(lease.record_name(holder.run), seal(record))
        # The word that it is cancelled stays: if it lives all the same, it must stop.
        lease.forget(table, holder)
    return [holder for holder in living if holder.run != run_id]


class Company(NamedTuple):
    """Which runs a table knew when a run began, which of them are at work on it, and whether it had lost its `table.json`."""

    known: frozenset[str]
    at_work: tuple[Holder, ...]
    is_mended: bool


def check_table(table: Folder, info: TableInfo) -> None:
    """Raise UsageError if a table cannot be one of `info`, or not while another run works on it with other settings."""
    if parts.check(table, info) is None and (there := parts.find(table)) is not None:
        with explained(f"table {table.url}"):
            at_work, _ = lease.find_runs(table)
        _refuse_to_replace(table, there, info, at_work)


def begin(table: Folder, info: TableInfo, held: Lease) -> Company:
    """Begin a run's lease on a table and make it one of `info`, in place of one that was begun and has no part.

    Of two runs that begin at the same time each says first what it is about to do and looks for the other after that. So
    at least one of them sees the other, and no run that is at work has its settings replaced.

    Raises
    ------
    UsageError
        If the table is of something else, or another run works on it with other settings.
    """
    with explained(f"table {table.url}"):
        table.folder(RUNS).make()
    replaced = None if parts.check(table, info) is not None else parts.find(table)
    held.tell(**({_IS_REPLACING: True} if replaced is not None else {}))
    with explained(f"table {table.url}"):
        held.begin()
    try:
        with explained(f"table {table.url}"):
            # After the lease, and before the look at the others: who is in neither came later.
            known = run_ids(table)
            others = others_at_work(table, held.run)
        if replaced is not None:
            _refuse_to_replace(table, replaced, info, others)
            parts.replace(table, info)
            held.tell()
            with explained(f"table {table.url}"):
                held.renew()
        elif busy := next((other for other in others if other.progress.get(_IS_REPLACING)), None):
            raise UsageError(
                f"table {table.url}: run {busy.run} on {busy.host} is giving it other settings just now; run the same command again"
            )
        is_mended = parts.create(table, info)
    except BaseException:
        held.end()
        raise
    return Company(frozenset(known), tuple(others), is_mended)


def _refuse_to_replace(table: Folder, there: TableInfo, info: TableInfo, at_work: Sequence[Holder]) -> None:
    """Raise UsageError if another run is at work on a table of other settings."""
    difference = there.difference(info)
    if difference and at_work:
        raise UsageError(
            f"table {table.url}: expected {difference}; run {at_work[0].run} is at work on it with these settings, on "
            f"{at_work[0].host}; name a new table for others"
        )


def read_manifest(table: Folder, info: TableInfo) -> Manifest:
    """Return a table's manifest for a command that reads it; raise DamagedError if a generation of it is damaged or lost."""
    with explained(f"table {table.url}"):
        known = Manifest(table)
        require_generations(table, info, known, ())
    return known


def require_generations(
    table: Folder, info: TableInfo, known: Manifest, shards: Collection[int], listed: pa.Table | None = None
) -> None:
    """Raise DamagedError if a part was made from entries that a table's manifest lacks: a generation of it is lost.

    Looked at are parts of shards that the manifest does not have, and those of `shards`. Where nothing else is left of a lost
    generation, only the archive's listing tells whether such a part is another table's.
    """
    there = _part_shards(table)
    suspects = (there - {shard for shard, _ in known.history}) | (there & set(shards))
    is_listed = listed is not None or not known.generation
    if not suspects or not (is_listed or manifest.has_entries_after(table, known.generation)):
        return
    footers = parts.own_footers(table, info, suspects)
    if all((shard, footer.digest) in known.history for shard, footer in footers.items()):
        return
    # Read anew, because another run may have frozen more since.
    newest = Manifest(table)
    for shard, footer in footers.items():
        if (shard, footer.digest) not in newest.history and (listed is None or _may_be_listed(table, shard, listed)):
            raise damaged(table, f"{manifest.FOLDER}/{newest.generation + 1:06d}.json", "no such file")


def _may_be_listed(table: Folder, shard: int, listed: pa.Table) -> bool:
    """Return whether a recording of a part is in a listing, or the part cannot be read, and so is made again."""
    try:
        return _has_listed(parts.read_part(table, shard, ["file"])["file"], listed)
    except PartError:
        return True


def _has_listed(files: pa.ChunkedArray, listed: pa.Table) -> bool:
    """Return whether a recording of a part is in a listing."""
    return bool(pc.any(pc.is_in(files, value_set=listed["file"]), min_count=0).as_py())


def _part_shards(table: Folder) -> set[int]:
    """Return the shards of which a part lies in a table, by the names there."""
    return {shard for name in table.names() if (shard := parts.part_shard(name)) is not None}


def rebuild(table: Folder, info: TableInfo, listed: pa.Table) -> Manifest:
    """Freeze anew what a damaged manifest said, from its files that can be read, the listing and the parts.

    A part stands if the entries that its footer names are found. Of another the rows of recordings that are gone stay, and
    those of the others are made again.
    """
    places = [(table, info)]
    if info.features is not None:
        # The table that keeps the features has the same shards, and a copy of the manifest.
        kept = TableInfo(parts.FEATURES, info.source, info.feature_settings, info.segments)
        places.append((Folder(info.features, table.options), kept))
    footers: dict[int, Footer] = {}
    # What is made again gets a number of its own, so each part must lie under its own first. The table's own parts count above
    # those of its features.
    for place, what in reversed(places):
        _restore_names(place, what)
        footers |= parts.own_footers(place, what, _part_shards(place))
    wanted = {footer.digest for footer in footers.values()}
    known = {name: entries for place, _ in places for name, entries in manifest.salvage(place, wanted).items()}
    shards = {shard: (known[one.digest], one.digest) for shard, one in footers.items() if one.digest in known}
    files: dict[int, pa.Array] = {}
    for place, what in places:
        for shard in _part_shards(place) - shards.keys() - files.keys():
            try:
                rows = parts.read_part(place, shard)
                Footer.of(rows.schema.metadata, what)
            except OtherPartError:
                continue
            except PartError:
                # What it held is made again, perhaps under another number.
                place.delete(parts.part_name(shard))
                continue
            # If none is listed, it may be a part of another table, which is only named.
            if shard in footers and _has_listed(rows["file"], listed):
                files[shard] = pc.unique(rows["file"])
    # Looked for all at once, because a listing is long.
    found = pc.index_in(pa.chunked_array(list(files.values()), pa.string()), value_set=listed["file"]).combine_chunks()
    for shard, its in files.items():
        at, found = found[: len(its)], found[len(its) :]
        gone, digest = its.filter(at.is_null()), footers[shard].digest
        entries = listed.take(at.drop_null())
        if len(gone):
            entries = pa.table([gone, *(pa.nulls(len(gone), kind) for kind in ENTRY_SCHEMA.types[1:])], ENTRY_SCHEMA)
        shards[shard] = entries, digest_like(digest, manifest.as_batch(entries))
        for place, what in reversed(places) if len(gone) else ():
            with contextlib.suppress(PartError):
                if parts.read_footer(place, what, parts.part_name(shard)).digest == digest:
                    rows = parts.read_part(place, shard).replace_schema_metadata(None)
                    rows = rows.filter(pc.is_in(rows["file"], value_set=gone))
                    parts.publish_part(place, what, shard, shards[shard][1], rows)
    # A recording that was pruned and came back is in two parts, if a run ended early; the later one has it.
    seen: set[str] = set()
    for shard in sorted(shards, reverse=True):
        its = shards[shard][0]["file"].to_pylist()
        if not seen.isdisjoint(its):
            entries = shards[shard][0].filter(pa.array([file not in seen for file in its]))
            shards[shard] = entries, manifest.digest(manifest.as_batch(entries))
            for place, _ in places if not entries.num_rows else ():
                place.delete(parts.part_name(shard))
        seen.update(its)
    return Manifest.rebuild(table, dict(sorted(shards.items())), info.segments)


def _restore_names(table: Folder, info: TableInfo) -> None:
    """Give parts of a table that lie under the names of others of its shards their own names back."""
    found: dict[str, tuple[str, bytes]] = {}
    for shard in _part_shards(table):
        name = parts.part_name(shard)
        with contextlib.suppress(PartError):
            footer = parts.read_footer(table, info, name)
            if footer.shard != shard:
                # All before any is written: two may have been swapped.
                found[name] = parts.part_name(footer.shard), table.read(name)
    for name, data in found.values():
        if name in found or not table.exists(name):
            table.publish(name, data)
    for name in found.keys() - {name for name, _ in found.values()}:
        table.delete(name)


def mend(table: Folder, info: TableInfo, entries: Manifest, *, deep: bool = False) -> Iterator[str]:
    """Put right what is certainly the table's own; yield a sentence for each thing of note.

    With `deep` every row is read, and parts that only this finds damaged are removed, so that they are made anew.

    Parts under other names go back to where they are missing, copies and parts of pruned shards are removed, and so is what
    processes that were killed have left. What is not provably the table's own is only named.
    """
    if deep:
        # First, so that a copy under another name takes its place.
        for name, problem in _remove_damaged(
            table, _look_at_parts(table, info, entries, deep=True, values=False)
        ).items():
            yield f"{table.url}/{name} was damaged and is made anew ({problem})"
    for name, what in find_strangers(table.names(), entries):
        said = f"{name} lies in the table and is {what}; whatever reads the folder may read it too, so move it away"
        if name.endswith(".parquet"):
            with contextlib.suppress(PartError):
                footer = parts.read_footer(table, info, name)
                if (footer.shard, footer.digest) in entries.history:
                    said = _put_right(table, info, entries, name, footer) or said
        yield said
    attempts.forget_finished(table, parts.complete_shards(table, info, _noted(table, entries)))
    for folder in (table, *(table.folder(name) for name in (attempts.FOLDER, manifest.FOLDER, RUNS))):
        folder.sweep()


def _noted(table: Folder, entries: Manifest) -> dict[int, ShardEntry]:
    """Return the shards of which there is a note that they were begun."""
    noted = {int(name[:-5]) for name in table.folder(attempts.FOLDER).names() if _NOTE.fullmatch(name)}
    return {shard: entries.shards[shard] for shard in noted & set(entries.shards)}


def _put_right(table: Folder, info: TableInfo, entries: Manifest, name: str, footer: Footer) -> str | None:
    """Remove a part that lies under a wrong name, unless it is the only one of its rows; return what was done."""
    proper = parts.part_name(footer.shard)
    newest = entries.shards.get(footer.shard)
    if newest is None:
        table.delete(name)
        return f"removed {name}, of recordings that were pruned"
    there = parts.own_footers(table, info, [footer.shard]).get(footer.shard)
    if there is None or (footer.digest == newest.digest != there.digest):
        table.publish(proper, table.read(name))
        table.delete(name)
        return f"{name} was this table's {proper}, and is so again"
    if there.digest in (newest.digest, footer.digest):
        table.delete(name)
        return f"removed {name}, a copy of this table's {proper}"
    return None


def find_strangers(names: list[str], entries: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what lies in a table's folder and is none of its parts, and what it is."""
    for name in names:
        # Readers of Parquet pass over hidden names.
        if name.startswith((".", "_")):
            continue
        shard = parts.part_shard(name)
        if shard is None:
            yield name, "no part of it"
        elif shard not in entries.shards:
            yield name, "a part of no shard of its manifest"


def _read(table: Folder, info: TableInfo, shard: int, entries: Manifest, *, deep: bool, values: bool = True) -> Footer:
    """Return a part's footer; raise PartError if the part is not what it should be."""
    footer = parts.read_footer(table, info, parts.part_name(shard))
    # Of earlier entries too, for their rows may be kept.
    if deep and (made_from := entries.history.get((shard, footer.digest))) is not None:
        left_out = set(recipes.names(info.feature_settings)) if footer.is_sealed and not values else set()
        columns = [name for name in info.schema.names if name not in left_out]
        rows = parts.read_part(table, shard, columns)
        if (problem := _wrong_rows(info, read_entries(table, made_from), footer, rows)) is not None:
            raise PartError(problem)
    footer.require(shard, entries.shards[shard])
    return footer


def _wrong_rows(info: TableInfo, entries: pa.RecordBatch, footer: Footer, rows: pa.Table) -> str | None:
    """Return what is wrong with a part's rows."""
    if Counts.of(rows) != footer.counts:
        return "expected rows that its footer counts, got others"
    unequal = pc.unique(rows["file"]).to_pylist() != entries["file"].to_pylist()
    if unequal:
        return "expected the recordings of its manifest entries, in their order, got others"
    is_ok = pc.equal(rows["status"], Status.OK)
    made = set(recipes.names(info.feature_settings)) if info.kind == parts.FEATURES else {"emotion", "confidence"}
    for name in rows.column_names:
        if name in made or name.startswith("p_"):
            if not pc.all(pc.equal(pc.is_valid(rows[name]), is_ok)).as_py():
                return f"expected {name} in rows that are ok and in no others, got it otherwise"
            numbers = recipes.flatten(rows[name].drop_null())
            if name != "emotion" and not pc.all(pc.is_finite(numbers), min_count=0).as_py():
                return f"expected finite numbers in {name}, got others"
    if not pc.all(pc.equal(pc.is_null(rows["error"]), is_ok)).as_py():
        return "expected a reason in rows that are not ok and in no others, got it otherwise"
    return _wrong_starts(info.segments, rows)


def _wrong_starts(segments: Segments, rows: pa.Table) -> str | None:
    """Return which recording lacks a segment or has one twice."""
    starts: Iterator[float] = iter(())
    last = None
    for file, start_s in zip(rows["file"].to_pylist(), rows["start_s"].to_pylist(), strict=True):
        if file != last:
            last, starts = file, segments.starts()
        expected = next(starts, None)
        if start_s != expected:
            return f"expected {file!r} to have its segments once and in order, got one at {start_s} s"
    return None


def _last_run(table: Folder, living: Container[str]) -> Mapping[str, Any] | None:
    """Return the record of the run that ended last; its name begins with the time. A run that lives has not ended."""
    names = [name for name in table.folder(RUNS).names() if name.endswith(".json") and _RUN.match(name)]
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
