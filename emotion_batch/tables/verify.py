"""Verify that a table is whole: each recording of the manifest has its rows exactly once, and no other row is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import DamagedError, IncompleteError, Status, counted
from emotion_batch.features import recipes
from emotion_batch.settings import MIX, Segments
from emotion_batch.storage.entries import Entry, count_rows
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import parts, schema
from emotion_batch.tables.inventory import find_strangers, require_generations
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import Counts, Footer, OtherPartError, PartError
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry, read_entries
from emotion_batch.tables.table import find_kept_features, require_table

_N_AHEAD = 16


@dataclass(frozen=True)
class Verification:
    """Whether a table is whole.

    Attributes
    ----------
    table
        Its URL.
    n_recordings, n_shards
        Numbers of its manifest.
    counts
        Counts of the rows of its correct parts.
    is_deep
        Whether every row was read.
    problems
        What is wrong, one sentence each; empty if the table is whole.
    features
        See `TableStatus`.
    removed
        Names of damaged parts that were removed.
    strangers
        Names of files that are not parts of it.
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


def verify_table(
    table: Folder, *, deep: bool, repair: bool, find_copy_damage: Callable[[Folder], str | None]
) -> Verification:
    """Check whether a table is whole; see `api.verify`.

    `find_copy_damage` returns what is wrong with a label table's copy of its model, or None. It is a parameter because this room
    knows nothing about models.
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
        problems = [f"{name}: this file is in the folder and is {what}; move it away" for name, what in strangers]
        problems += entries.find_damage(deep=deep)
        if info.kind == schema.LABELS and (damaged := find_copy_damage(table)) is not None:
            problems.append(damaged)
        if not entries.shards and not entries.history:
            problems.append("manifest: it has no recordings, because a run ended before it had frozen its listing")
        found = look_at_parts(table, info, entries, deep=deep)
        removed = remove_damaged(table, found) if repair else {}
    wrong = [one for one in found if one.problem is not None]
    problems += [f"{one.name}: {one.problem}{'; removed' if one.name in removed else ''}" for one in wrong]
    counts = sum((one.footer.counts for one in found if one.footer is not None), Counts())
    others = tuple(name for name, _ in strangers)
    features, n_shards = find_kept_features(table, info), len(entries.shards)
    about = (counts, deep, tuple(problems), features, tuple(removed), others)
    return Verification(table.url, entries.n_recordings, n_shards, *about)


class _Looked(NamedTuple):
    """Result of a look at the part of a shard: its footer, or a problem with it, and whether the problem is damage."""

    name: str
    footer: Footer | None = None
    problem: str | None = None
    is_damaged: bool = False


def look_at_parts(
    table: Folder, info: TableInfo, entries: Manifest, *, deep: bool, values: bool = True
) -> list[_Looked]:
    """Look at the part of each shard; without `values`, features are not unpacked, because their bytes are checked anyway."""
    there = set(table.names())
    left_out = set() if values else set(recipes.names(info.feature_settings))
    columns = [name for name in info.schema.names if name not in left_out]

    def look(item: tuple[int, ShardEntry]) -> _Looked:
        shard, entry = item
        name = parts.part_name(shard)
        if name not in there:
            return _Looked(name, problem=f"it is missing, with the rows of {counted(entry.n_recordings, 'recording')}")
        try:
            footer = parts.read_footer(table, info, name)
            # Rows of earlier entries are checked too, because they may be kept.
            if deep and (made_from := entries.history.get((shard, footer.digest))) is not None:
                rows = parts.read_part(table, shard, columns)
                if (problem := _wrong_rows(info, read_entries(table, made_from), footer, rows)) is not None:
                    raise PartError(problem)
            footer.require(shard, entry)
            return _Looked(name, footer)
        except (PartError, IncompleteError) as error:
            is_damaged = isinstance(error, PartError) and not isinstance(error, OtherPartError)
            return _Looked(name, None, str(error).removeprefix(f"table {table.url}: "), is_damaged)

    return list(parts.read_ahead(look, entries.shards.items(), _N_AHEAD))


def remove_damaged(table: Folder, found: list[_Looked]) -> dict[str, str]:
    """Remove the damaged parts; return, by name, what is wrong with each."""
    damaged = {one.name: one.problem or "" for one in found if one.is_damaged}
    for name in damaged:
        table.delete(name)
    return damaged


def _wrong_rows(info: TableInfo, entries: pa.RecordBatch, footer: Footer, rows: pa.Table) -> str | None:
    if Counts.of(rows) != footer.counts:
        return "its rows are not those that its footer counts"
    if pc.unique(rows["file"]).to_pylist() != entries["file"].to_pylist():
        return "its recordings, or their order, are not those of its manifest entries"
    is_ok = pc.equal(rows["status"], Status.OK)
    made = set(recipes.names(info.feature_settings)) if info.kind == schema.FEATURES else {"emotion", "confidence"}
    for name in rows.column_names:
        if name in made or name.startswith("p_"):
            if not pc.all(pc.equal(pc.is_valid(rows[name]), is_ok)).as_py():
                return f"{name} is missing in a row that is ok, or there in a row that is not"
            numbers = recipes.flatten(rows[name].drop_null())
            if name != "emotion" and not pc.all(pc.is_finite(numbers), min_count=0).as_py():
                return f"{name} has numbers that are not finite"
    if not pc.all(pc.equal(pc.is_null(rows["error"]), is_ok)).as_py():
        return "error is missing in a row that is not ok, or there in a row that is ok"
    if info.segments.is_listed:
        return _wrong_listed(entries, rows)
    return _wrong_speech(info.segments, rows) if info.segments.is_speech else _wrong_starts(info.segments, rows)


def _by_recording(rows: pa.Table, *names: str) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield each recording with these columns of its rows."""
    columns = (rows[name].to_pylist() for name in ("file", *names))
    for file, own in groupby(zip(*columns, strict=True), key=itemgetter(0)):
        yield file, [row[1:] for row in own]


def _wrong_listed(entries: pa.RecordBatch, rows: pa.Table) -> str | None:
    """Return which recording has other rows than its list of segments says."""
    groups = _by_recording(rows, "start_s", "channel", "speaker")
    for entry, (file, own) in zip(entries.to_pylist(), groups, strict=True):
        # A recording that was gone when the manifest was written anew has lost its list.
        if entry["segments"]:
            listed = Entry(**entry).read_segments()
            counts = count_rows(listed, [(start_s, channel) for start_s, channel, _ in own])
            speakers = [one.speaker for one, n_rows in zip(listed, counts, strict=False) for _ in range(n_rows)]
            # Where each channel has its rows, each segment has all of them, unless the recording failed midway.
            widths = {n_rows for one, n_rows in zip(listed, counts, strict=False) if one.channel is None}
            is_uneven = len(widths) > 1 and None not in {channel for _, channel, _ in own}
            if len(counts) < len(listed) or speakers != [row[2] for row in own] or is_uneven:
                return f"{file!r} must have the rows of its {counted(len(listed), 'listed segment')}, in their order"
    return None


def _wrong_speech(segments: Segments, rows: pa.Table) -> str | None:
    """Return which recording has stretches of speech that overlap, are too long or not in order."""
    for file, own in _by_recording(rows, "start_s", "channel", "end_s"):
        last_s, ends = 0.0, dict[int | None, float]()
        for start_s, channel, end_s in own:
            is_long = end_s is not None and end_s - start_s > segments.duration_s + 1e-6
            if is_long or start_s < max(last_s, ends.get(channel, 0.0) - 1e-6):
                return f"{file!r} must have stretches of speech in their order, and has one at {start_s} s"
            last_s, ends[channel] = start_s, end_s or start_s
    return None


def _wrong_starts(segments: Segments, rows: pa.Table) -> str | None:
    """Return which recording lacks a segment, or a channel of one, or has one twice."""
    for file, own in _by_recording(rows, "start_s", "channel", "status"):
        first: list[int | None] | None = None
        is_ended = False
        starts = segments.starts()
        for start_s, here in groupby(own, key=itemgetter(0)):
            found = [(channel, status) for _, channel, status in here]
            # A recording has a row for each channel that was asked for and that it lacks, at its first start.
            channels = [one for one, status in found if first is not None or one is None or status != Status.UNREADABLE]
            if first is None:
                # All that were asked for are there, or all from 0 on, or the row for the rest.
                asked = range(len(found)) if isinstance(segments.channels, str) else segments.channels
                is_ended = None not in channels and [one for one, _ in found] != [*asked]
                first = channels
            # A row without a channel is that of a mix, or the last one, for the rest of a recording that failed.
            is_rest = segments.channels != MIX and channels == [None]
            is_whole = len(dict(found)) == len(found) and (is_rest or channels == first)
            if is_ended or start_s != next(starts, None) or not is_whole:
                return f"{file!r} must have each segment once and in order, and has one at {start_s} s"
            is_ended = is_rest
    return None
