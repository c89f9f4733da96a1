"""Summarise a run, and keep the summary in the table, however the run ended."""

from __future__ import annotations

import asyncio
import html
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc

from emotion_batch._version import __version__
from emotion_batch.errors import CancelledError, counted
from emotion_batch.storage.folder import Folder, seal
from emotion_batch.tables import lease, parts, schema
from emotion_batch.tables.parts import Counts, Footer
from emotion_batch.tables.schema import TableInfo
from emotion_batch.usage import Spent
from emotion_batch.worker import preflight
from emotion_batch.worker.task import Receipt

# The most examples of a status in a run's record.
_MOST_EXAMPLES = 5


@dataclass(frozen=True)
class Recorder:
    """The facts about a run that are known when it begins (as ISO 8601); no options, because they may hold credentials.

    `workers` is the requested number, None for one for each core. `is_submitted` says that a task of the cluster drives the run.
    """

    run_id: str
    began: str
    info: TableInfo
    is_local: bool
    workers: int | None
    is_submitted: bool = False

    def write(self, table: Folder, summary: Summary, outcome: str, error: str | None) -> None:
        """Publish the record: the summary, the outcome (``complete``, ``failed``, ``stopped`` or ``cancelled``), and the error."""
        record = {
            "run": self.run_id,
            "outcome": outcome,
            "error": error,
            "began": self.began,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": platform.node(),
            "tool_version": __version__,
            "versions": preflight.read_versions(self.info.kind == schema.LABELS),
            "is_local": self.is_local,
            "workers": self.workers,
            "settings": self.info.to_dict(),
            **summary.to_dict(),
            **({"is_submitted": True} if self.is_submitted else {}),
        }
        table.publish(lease.record_name(self.run_id), seal(record, indent=2))


@dataclass(repr=False)
class Summary:
    """The results of a run.

    Attributes
    ----------
    table
        URL of the table.
    counts
        Counts of all its rows, those of earlier runs included.
    n_shards, n_shards_done
        Shards of the table, and shards that this run did.
    n_decoded
        Recordings that this run decoded, or labelled from features; the other rows existed before.
    examples
        For each status except ``ok`` that this run met, a few recordings and their reasons.
    n_new, n_changed, n_gone, n_pruned
        Recordings of the archive that are new, changed, gone with their rows kept, and gone with their rows removed, compared
        with the table before.
    left_out
        Number of files of the archive that are not recordings, by suffix.
    audio_s, recorded_s, is_selective
        Seconds of audio that the rows of this run cover, seconds that their recordings last, and whether speech or a list says what is heard.
    n_resubmitted
        Shards that were handed out again because a worker or a store failed.
    spent
        Of all workers: seconds by stage, bytes read, and the cost of failures.
    elapsed_s
        Wall-clock seconds from the call to the end.
    run
        The run's id.
    model
        What labelled, with the licence of the recordings that it learnt from; nothing for features.
    n_shards_left
        Shards that were left to a cluster, which does them by itself.
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
    recorded_s: float = 0.0
    is_selective: bool = False
    n_resubmitted: int = 0
    spent: Spent = field(default_factory=Spent)
    elapsed_s: float = 0.0
    run: str = ""
    model: str = ""
    n_shards_left: int = 0

    @property
    def is_all_failed(self) -> bool:
        """Whether the run is over, there are recordings, and not one row of the table has a result."""
        return not self.n_shards_left and self.counts.n_rows > 0 and not self.counts.n_ok

    def add(self, receipt: Receipt) -> None:
        """Add the receipt of one task."""
        self.counts += receipt.counts
        self.n_shards_done += 1
        self.n_decoded += receipt.made.n_recordings
        self.audio_s += receipt.audio_s
        self.recorded_s += receipt.recorded_s
        self.spent.add(receipt.spent)
        self.show({status: [example] for status, example in receipt.examples.items()})

    def show(self, examples: Mapping[str, list[tuple[str, str]]]) -> None:
        """Add examples of recordings that failed."""
        for status, more in examples.items():
            known = self.examples.setdefault(status, [])
            known += more[: _MOST_EXAMPLES - len(known)]

    def __repr__(self) -> str:
        counts = self.counts
        rows = f"{counted(counts.n_recordings, 'recording')}, {counts.n_ok:,} of {counted(counts.n_rows, 'row')} ok"
        return f"<Summary of {self.table}: {rows}; {self.n_shards_done:,} of {counted(self.n_shards, 'part')} made in {self.elapsed_s:.1f} s>"

    def _repr_html_(self) -> str:
        """Return it as a small table, which notebooks show."""
        statuses = [(status, counted(n, "row")) for status, n in self.counts.by_status.items()]
        shares = [(label, f"{share:.1%}") for label, share in self.counts.shares.items()]
        rows = [("table", self.table), ("recordings", f"{self.counts.n_recordings:,}"), *statuses, *shares]
        cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
        return f"<table>{''.join(cells)}</table>"

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return {**asdict(self), "n_ok": self.counts.n_ok, "n_failed": self.counts.n_failed}


def recall_reasons(summary: Summary, table: Folder, info: TableInfo, done: Mapping[int, Footer]) -> None:
    """If every recording failed, add examples from the parts that earlier runs left."""
    if not summary.is_all_failed:
        return
    for status in summary.counts.by_status.keys() - summary.examples.keys():
        shard = next((shard for shard, footer in done.items() if status in footer.counts.by_status), None)
        if shard is None:
            continue
        rows = parts.require_part(table, info, shard, ["file", "status", "error"])
        failed = rows.filter(pc.equal(rows["status"], status))
        # There may be none, if the shard was done again since with another result.
        for example in zip(failed["file"].to_pylist(), failed["error"].to_pylist(), strict=True):
            summary.show({status: [example]})


def name_outcome(error: BaseException | None) -> tuple[str, str | None]:
    """Return the outcome of a run in one word, and its error.

    A signal may come while a library is at work, and the library may raise its own error for it; that is a stop too.
    """
    if error is None:
        return "complete", None
    if isinstance(error, CancelledError):
        return "cancelled", None
    causes = [error]
    # The list grows while it is read, and takes each cause once, because a library may have made a ring of causes.
    for cause in causes:
        if not isinstance(cause, Exception | GeneratorExit | asyncio.CancelledError) or not isinstance(
            error, Exception
        ):
            return "stopped", None
        for further in (cause.__cause__, cause.__context__):
            if further is not None and all(further is not one for one in causes):
                causes.append(further)
    return "failed", f"{type(error).__name__}: {error}"
