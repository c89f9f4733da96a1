"""Which parts of a table count for whoever reads it: those that are whole and of the manifest's newest entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import parts, status
from emotion_batch.tables.manifest import ShardEntry
from emotion_batch.tables.parts import Counts, Footer, TableInfo


@dataclass(frozen=True)
class Inventory:
    """What is in a table's folder, as it was when it was looked at.

    Attributes
    ----------
    table, info
        The table and what it is.
    shards
        Those of its manifest.
    footers
        Of the parts that count, by shard, in the order of the table.
    strangers
        Names of what lies in the folder and is no part of the table.
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
    info = status.require_table(table)
    with explained(f"table {table.url}"):
        manifest = status.read_manifest(table, info)
        strangers = [name for name, _ in status.find_strangers(table.names(), manifest)]
        footers = parts.complete_shards(table, info, manifest.shards)
    return Inventory(table, info, manifest.shards, dict(sorted(footers.items())), strangers)
