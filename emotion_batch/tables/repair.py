"""Repair a table: write a damaged manifest anew, and remove or mark parts that are damaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.storage.folder import Folder
from emotion_batch.tables import attempts, lease, parts, shard_entries
from emotion_batch.tables.inventory import find_strangers, has_listed, part_shards
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import Footer, OtherPartError, PartError
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.verify import look_at_parts, remove_damaged


def rebuild(table: Folder, info: TableInfo, listed: pa.Table) -> Manifest:
    """Write a damaged manifest anew, from those of its files that can be read, the listing and the parts.

    A part stays if the entries that its footer names are found. In any other part, the rows of recordings that are gone stay,
    and the other rows are made again.
    """
    places = [(table, info)]
    if info.features is not None:
        # The table that keeps the features has the same shards, and a copy of the manifest.
        kept = info.kept_features()
        places.append((Folder(info.features, table.options), kept))
    footers: dict[int, Footer] = {}
    # Recordings that are made again get a new shard number, so each part must have its own name first. The parts of the table
    # itself have priority over those of its features.
    for place, what in reversed(places):
        _restore_names(place, what)
        footers |= parts.own_footers(place, what, part_shards(place))
    wanted = {footer.digest for footer in footers.values()}
    known = {name: entries for place, _ in places for name, entries in shard_entries.salvage(place, wanted).items()}
    shards = {shard: (known[one.digest], one.digest) for shard, one in footers.items() if one.digest in known}
    files: dict[int, pa.Array] = {}
    for place, what in places:
        for shard in part_shards(place) - shards.keys() - files.keys():
            try:
                rows = parts.read_part(place, shard)
                Footer.of(rows.schema.metadata, what)
            except OtherPartError:
                continue
            except PartError:
                # Its rows are made again, perhaps under another shard number.
                place.delete(parts.part_name(shard))
                continue
            # If no recording is listed, it may be a part of another table, which is only reported.
            if shard in footers and has_listed(rows["file"], listed):
                files[shard] = pc.unique(rows["file"])
    # All are looked up at once, because a listing is long.
    found = pc.index_in(pa.chunked_array(list(files.values()), pa.string()), value_set=listed["file"]).combine_chunks()
    for shard, its in files.items():
        at, found = found[: len(its)], found[len(its) :]
        gone, digest = its.filter(at.is_null()), footers[shard].digest
        entries = listed.take(at.drop_null())
        if len(gone):
            entries = pa.table([gone, *(pa.nulls(len(gone), kind) for kind in listed.schema.types[1:])], listed.schema)
        shards[shard] = entries, shard_entries.digest(shard_entries.as_batch(entries))
        for place, what in reversed(places) if len(gone) else ():
            with contextlib.suppress(PartError):
                if parts.read_footer(place, what, parts.part_name(shard)).digest == digest:
                    rows = parts.read_part(place, shard).replace_schema_metadata(None)
                    rows = rows.filter(pc.is_in(rows["file"], value_set=gone))
                    parts.publish_part(place, what, shard, shards[shard][1], rows)
    # After a run that ended early, a recording that was pruned and came back is in two parts; the later one keeps it.
    seen: set[str] = set()
    for shard in sorted(shards, reverse=True):
        its = shards[shard][0]["file"].to_pylist()
        if not seen.isdisjoint(its):
            entries = shards[shard][0].filter(pa.array([file not in seen for file in its]))
            shards[shard] = entries, shard_entries.digest(shard_entries.as_batch(entries))
            for place, _ in places if not entries.num_rows else ():
                place.delete(parts.part_name(shard))
        seen.update(its)
    return Manifest.rebuild(table, dict(sorted(shards.items())), info.segments)


def _restore_names(table: Folder, info: TableInfo) -> None:
    """Give each part its own name back if it has the name of another shard."""
    found: dict[str, tuple[str, bytes]] = {}
    for shard in part_shards(table):
        name = parts.part_name(shard)
        with contextlib.suppress(PartError):
            footer = parts.read_footer(table, info, name)
            if footer.shard != shard:
                # All are read before any is written, because two may have been swapped.
                found[name] = parts.part_name(footer.shard), table.read(name)
    for name, data in found.values():
        if name in found or not table.exists(name):
            table.publish(name, data)
    for name in found.keys() - {name for name, _ in found.values()}:
        table.delete(name)


def mend(table: Folder, info: TableInfo, entries: Manifest, *, deep: bool = False) -> Iterator[str]:
    """Repair the files that certainly belong to the table; yield a sentence for each remarkable change.

    With `deep`, every row is read, and parts that only this finds damaged are removed, so that they are made again.

    Parts with wrong names get their own names back if those are missing. Copies, parts of pruned shards and the files that killed
    processes left are removed. A file that may belong to something else is only reported.
    """
    if deep:
        # This comes first, so that a copy under another name can replace it.
        looked = look_at_parts(table, info, entries, deep=True, values=False)
        for name, problem in remove_damaged(table, looked).items():
            yield f"{table.url}/{name}: {problem}; it was removed and is made again"
    for name, what in find_strangers(table.names(), entries):
        remedy = "a program that reads the folder may read it too, so move it away"
        said = f"{name} is in the folder and is {what}; {remedy}"
        if name.endswith(".parquet"):
            with contextlib.suppress(PartError):
                footer = parts.read_footer(table, info, name)
                if (footer.shard, footer.digest) in entries.history:
                    said = _put_right(table, info, entries, name, footer) or said
        yield said
    # A process that died after the part and before it removed the note has left the note.
    noted = {shard: entries.shards[shard] for shard in attempts.find_noted(table) if shard in entries.shards}
    for shard in parts.complete_shards(table, info, noted):
        attempts.forget(table, shard)
    for folder in (table, *(table.folder(name) for name in (attempts.FOLDER, shard_entries.FOLDER, lease.FOLDER))):
        folder.sweep()


def _put_right(table: Folder, info: TableInfo, entries: Manifest, name: str, footer: Footer) -> str | None:
    """Remove a part with a wrong name, or rename it if it is the only one with its rows; return what was done."""
    proper = parts.part_name(footer.shard)
    newest = entries.shards.get(footer.shard)
    if newest is None:
        table.delete(name)
        return f"removed {name}, a part whose recordings were pruned"
    there = parts.own_footers(table, info, [footer.shard]).get(footer.shard)
    if there is None or (footer.digest == newest.digest != there.digest):
        table.publish(proper, table.read(name))
        table.delete(name)
        return f"{name} was this table's {proper}, and has that name again"
    if there.digest in (newest.digest, footer.digest):
        table.delete(name)
        return f"removed {name}, a copy of this table's {proper}"
    return None
