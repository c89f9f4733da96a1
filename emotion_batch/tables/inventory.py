"""Find which parts of a table count: those that are whole and match the newest manifest. Also check that no generation is lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.storage.folder import Folder, damaged, explained
from emotion_batch.tables import parts, shard_entries
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import Counts, Footer, PartError
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.tables.table import require_table


@dataclass(frozen=True)
class Inventory:
    """What is in a table's folder, as it was when it was looked at.

    `footers` are those of the parts that count, by shard, in the order of the table. `strangers` are the names of files in the
    folder that are no part of the table.
    """

    table: Folder
    info: TableInfo
    shards: Mapping[int, ShardEntry]
    footers: Mapping[int, Footer]
    strangers: Sequence[str]

    @property
    def names(self) -> list[str]:
        """Names of the parts that count."""
        return [parts.part_name(shard) for shard in self.footers]

    @property
    def counts(self) -> Counts:
        """Of their rows."""
        return sum((footer.counts for footer in self.footers.values()), Counts())

    @property
    def n_missing(self) -> int:
        """Parts that are not there, damaged, or of earlier entries."""
        return len(self.shards) - len(self.footers)

    @property
    def is_complete(self) -> bool:
        """Whether all parts count, of which there are some."""
        return bool(self.shards) and not self.n_missing

    def notes(self) -> Iterator[str]:
        """Yield what does not count, a sentence each."""
        if not self.is_complete:
            yield (
                f"table {self.table.url}: {len(self.footers):,} of its {len(self.shards):,} parts count, the others are "
                "missing, damaged or out of date; `emotion-batch verify` names them"
            )
        for name in self.strangers:
            yield f"table {self.table.url}: {name} lies in it and is no part of it; it does not count"


def take_inventory(table: Folder) -> Inventory:
    """Look at each part of a table; raise UsageError if there is none."""
    info = require_table(table)
    with explained(f"table {table.url}"):
        manifest = read_manifest(table, info)
        strangers = [name for name, _ in find_strangers(table.names(), manifest)]
        footers = parts.complete_shards(table, info, manifest.shards)
    return Inventory(table, info, manifest.shards, dict(sorted(footers.items())), strangers)


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
    there = part_shards(table)
    suspects = (there - {shard for shard, _ in known.history}) | (there & set(shards))
    is_listed = listed is not None or not known.generation
    if not suspects or not (is_listed or shard_entries.has_entries_after(table, known.generation)):
        return
    footers = parts.own_footers(table, info, suspects)
    if all((shard, footer.digest) in known.history for shard, footer in footers.items()):
        return
    # Read anew, because another run may have frozen more since.
    newest = Manifest(table)
    for shard, footer in footers.items():
        if (shard, footer.digest) not in newest.history and (listed is None or _may_be_listed(table, shard, listed)):
            raise damaged(table, f"{shard_entries.FOLDER}/{newest.generation + 1:06d}.json", "no such file")


def _may_be_listed(table: Folder, shard: int, listed: pa.Table) -> bool:
    """Return whether a recording of a part is in a listing, or the part cannot be read, and so is made again."""
    try:
        return has_listed(parts.read_part(table, shard, ["file"])["file"], listed)
    except PartError:
        return True


def has_listed(files: pa.ChunkedArray, listed: pa.Table) -> bool:
    """Return whether a recording of a part is in a listing."""
    return bool(pc.any(pc.is_in(files, value_set=listed["file"]), min_count=0).as_py())


def part_shards(table: Folder) -> set[int]:
    """Return the shards of which a part lies in a table, by the names there."""
    return {shard for name in table.names() if (shard := parts.part_shard(name)) is not None}


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
