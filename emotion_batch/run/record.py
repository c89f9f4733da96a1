"""The record of a run: how it went, kept in the table, however it ended."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from emotion_batch._version import __version__
from emotion_batch.run.summary import Summary
from emotion_batch.storage.folder import Folder, seal
from emotion_batch.tables import lease, parts
from emotion_batch.tables.parts import TableInfo
from emotion_batch.worker import preflight


@dataclass(frozen=True)
class Recorder:
    """What a record says of a run from its beginning on; no options, for they may hold credentials.

    Attributes
    ----------
    run_id
        The run.
    began
        When, as ISO 8601.
    info
        What its table is.
    is_local
        Whether it has a cluster of its own on this machine.
    workers
        Worker processes that were asked for; None for one a core.
    """

    run_id: str
    began: str
    info: TableInfo
    is_local: bool
    workers: int | None

    def write(
        self, table: Folder, summary: Summary, outcome: str, error: str | None, more: Mapping[str, Any] | None = None
    ) -> None:
        """Publish the record in its table.

        Parameters
        ----------
        table
            The table.
        summary
            What the run left behind.
        outcome
            ``complete``, ``failed``, ``stopped``, ``cancelled`` or ``lost``.
        error
            What it failed of.
        more
            What else is to be said.
        """
        record = {
            "run": self.run_id,
            "outcome": outcome,
            "error": error,
            "began": self.began,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": platform.node(),
            "tool_version": __version__,
            "versions": preflight.read_versions(self.info.kind == parts.LABELS),
            "is_local": self.is_local,
            "workers": self.workers,
            "settings": self.info.to_dict(),
            **summary.to_dict(),
            **(more or {}),
        }
        table.publish(lease.record_name(self.run_id), seal(record, indent=2))
