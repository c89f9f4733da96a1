"""Reuse rows of a shard's earlier part if their recordings did not change."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import Status
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts
from emotion_batch.tables.parts import PartError
from emotion_batch.tables.schema import TableInfo


def carry_over(
    table: Folder,
    info: TableInfo,
    shard: int,
    entries: pa.RecordBatch,
    known: Mapping[str, pa.RecordBatch],
    again: frozenset[Status],
) -> tuple[pa.Table, pa.RecordBatch]:
    """Return the rows of a shard's present part that stay, and the entries that are still to be done.

    `known` has the entries that the part may have been made from, by digest. Recordings with a status in `again` are done again.
    """
    nothing = info.schema.empty_table(), entries
    if not known:
        return nothing
    try:
        footer, rows = parts.read_own(table, info, shard)
    except PartError:
        return nothing
    if footer.shard != shard or footer.digest not in known:
        return nothing
    before = known[footer.digest]
    at = pc.index_in(entries["file"], value_set=before["file"])
    is_same = pc.is_valid(at)
    for name in entries.schema.names[2:]:
        now, then = entries[name], before[name].take(at)
        both_unknown = pc.and_(pc.is_null(now), pc.is_null(then))
        is_same = pc.and_(is_same, pc.or_(both_unknown, pc.fill_null(pc.equal(now, then), False)))
    failed = rows.filter(pc.is_in(rows["status"], pa.array(sorted(again), pa.string())))["file"]
    is_known = pc.is_in(rows["file"], entries["file"].filter(is_same))
    kept = rows.filter(pc.and_not(is_known, pc.is_in(rows["file"], pc.unique(failed))))
    return kept, entries.filter(pc.invert(pc.is_in(entries["file"], pc.unique(kept["file"]))))


def merge(entries: pa.RecordBatch, kept: pa.Table, made: pa.Table) -> pa.Table:
    """Return the rows of a shard, kept and made, in the order of its entries; the rows of each recording keep their order."""
    if not kept.num_rows:
        return made
    rows = pa.concat_tables([kept, made])
    # The sort is stable, and the rows of a recording are all kept or all made.
    return rows.take(pc.sort_indices(pc.index_in(rows["file"], value_set=entries["file"])))
