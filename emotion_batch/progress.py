"""What a run tells: how far it is, and what it left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from emotion_batch.tables.parts import Counts
from emotion_batch.usage import Spent
from emotion_batch.worker.extraction import Receipt

# Of each status, in a run's record.
_MOST_EXAMPLES = 5


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
    on_listed
        Takes how many files of the archive were seen, while it is listed.
    """

    on_note: Callable[[str], None] = lambda text: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_listed: Callable[[int], None] = lambda n_files: None


@dataclass
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
    n_decoded
        Recordings that this run decoded, or labelled from features; the others' rows were there.
    examples
        For each status but ``ok`` that this run met, a few recordings and their reasons.
    n_new, n_changed, n_gone, n_pruned
        What the archive has new, changed and no more, compared with the table before; of the last, how many stay in the
        table and how many left it.
    left_out
        Files of the archive that are no recordings by their suffix, by suffix.
    audio_s
        Seconds of audio that the rows cover which this run made.
    n_resubmitted
        Shards that were handed out again because a worker or a store failed.
    spent
        Over all workers: seconds by stage, bytes read, and what failures cost.
    elapsed_s
        Wall-clock seconds from the call to the end.
    run
        The run's id.
    n_shards_left
        Shards that were handed to a cluster, which goes on with them by itself.
    """

    table: str
    counts: Counts = field(default_factory=Counts)
    n_shards: int = 0
    n_shards_done: int = 0
    n_decoded: int = 0
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    n_new: int = 0
    n_changed: int = 0
    n_gone: int = 0
    n_pruned: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    audio_s: float = 0.0
    n_resubmitted: int = 0
    spent: Spent = field(default_factory=Spent)
    elapsed_s: float = 0.0
    run: str = ""
    n_shards_left: int = 0

    @property
    def is_all_failed(self) -> bool:
        """Whether the run is over, there are recordings, and not one row of the table has a result."""
        return not self.n_shards_left and self.counts.n_rows > 0 and not self.counts.n_ok

    def add(self, receipt: Receipt) -> None:
        """Take in what one task hands back."""
        self.counts += receipt.counts
        self.n_shards_done += 1
        self.n_decoded += receipt.made.n_recordings
        self.audio_s += receipt.audio_s
        self.spent.add(receipt.spent)
        self.show({status: [example] for status, example in receipt.examples.items()})

    def merge(self, other: Summary) -> None:
        """Take in what other shards of the same run gave."""
        self.counts += other.counts
        self.n_shards_done += other.n_shards_done
        self.n_decoded += other.n_decoded
        self.audio_s += other.audio_s
        self.spent.add(other.spent)
        self.show(other.examples)

    def show(self, examples: Mapping[str, list[tuple[str, str]]]) -> None:
        """Take in examples of what failed."""
        for status, more in examples.items():
            known = self.examples.setdefault(status, [])
            known += more[: _MOST_EXAMPLES - len(known)]

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {**asdict(self), "n_ok": self.counts.n_ok, "n_failed": self.counts.n_failed}
