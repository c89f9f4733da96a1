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
    """What was in a table's folder when it was read.

    `footers` are those of the parts that count, by shard, in the order of the table. `strangers` are the names of files in the
    folder that are not parts of the table.
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
        """Counts of their rows."""
        return sum((footer.counts for footer in self.footers.values()), Counts())

    @property
    def n_missing(self) -> int:
        """Number of parts that are missing, damaged, or made from earlier entries."""
        return len(self.shards) - len(self.footers)

    @property
    def is_complete(self) -> bool:
        """Whether the table has parts and all of them count."""
        return bool(self.shards) and not self.n_missing

    def notes(self) -> Iterator[str]:
        """Yield what does not count, one sentence each."""
        if not self.is_complete:
            yield (
                f"table {self.table.url}: {len(self.footers):,} of its {len(self.shards):,} parts count, and the others "
                "are missing, damaged or out of date; `emotion-batch verify` names them"
            )
        for name in self.strangers:
            yield f"table {self.table.url}: {name} is in its folder and is not a part of it, so it does not count"


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

    It looks at parts of shards that the manifest does not have, and at those of `shards`. If nothing else is left of a lost
    generation, only the archive's listing shows whether such a part belongs to another table.
    """
    there = part_shards(table)
    suspects = (there - {shard for shard, _ in known.history}) | (there & set(shards))
    is_listed = listed is not None or not known.generation
    if not suspects or not (is_listed or shard_entries.has_entries_after(table, known.generation)):
        return
    footers = parts.own_footers(table, info, suspects)
    if all((shard, footer.digest) in known.history for shard, footer in footers.items()):
        return
    # The manifest is read again, because another run may have frozen more since.
    newest = Manifest(table)
    for shard, footer in footers.items():
        if (shard, footer.digest) not in newest.history and (listed is None or _may_be_listed(table, shard, listed)):
            raise damaged(table, f"{shard_entries.FOLDER}/{newest.generation + 1:06d}.json", "no such file")


def _may_be_listed(table: Folder, shard: int, listed: pa.Table) -> bool:
    """Return whether a recording of a part is in a listing, or the part cannot be read, so that it is made again."""
    try:
        return has_listed(parts.read_part(table, shard, ["file"])["file"], listed)
    except PartError:
        return True


def has_listed(files: pa.ChunkedArray, listed: pa.Table) -> bool:
    """Return whether a recording of a part is in a listing."""
    return bool(pc.any(pc.is_in(files, value_set=listed["file"]), min_count=0).as_py())


def part_shards(table: Folder) -> set[int]:
    """Return the shards that have a part in a table, by the names of its files."""
    return {shard for name in table.names() if (shard := parts.part_shard(name)) is not None}


def find_strangers(names: list[str], entries: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the files in a table's folder that are not its parts, and what each is."""
    for name in names:
        # Programs that read Parquet skip hidden names.
        if name.startswith((".", "_")):
            continue
        shard = parts.part_shard(name)
        if shard is None:
            yield name, "not a part of the table"
        elif shard not in entries.shards:
            yield name, "a part of a shard that the manifest does not have"
