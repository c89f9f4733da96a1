"""Write the report about a table: read its statistics, and render the page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from emotion_batch.analysis.page.document import MARK, locate_beside, render
from emotion_batch.analysis.page.run_sections import Locate
from emotion_batch.analysis.scan import survey
from emotion_batch.analysis.statistics import N_FOLDERS, Figures, gather
from emotion_batch.errors import EmotionBatchError, UsageError
from emotion_batch.inference.bundle import COPY, open_bundle, read_reliability
from emotion_batch.inference.card import Portrait, read_portrait
from emotion_batch.storage.archive import find_base
from emotion_batch.storage.folder import Folder, explained, split_file
from emotion_batch.tables import inventory, lease
from emotion_batch.tables.status import read_throughput
from emotion_batch.tables.table import read_info, require_table

# In which the mark of a page stands.
_HEAD_BYTES = 4_096


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Attributes
    ----------
    output
        Its path or URL.
    figures
        What it shows.
    """

    output: str
    figures: Figures

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it: without the picture that the page has."""
        value = asdict(self)
        if (portrait := value["figures"]["portrait"]) is not None:
            del portrait["reliability"]
        return value


def report(
    table: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Write one HTML page about a table, which needs nothing beside it, and return what it shows.

    Parameters
    ----------
    table
        A label or feature table; one that is not finished is told as far as it is.
    output
        File to write, or URL; by default ``<table>-report.html`` in the current folder. An earlier report is replaced.
    seed
        Of the lots that draw the recordings to listen to.
    storage_options
        What fsspec's filesystem takes.

    Raises
    ------
    UsageError
        If there is no table, or `output` lies in it or is a file of something else.
    StorageError
        If the table cannot be read, or the page not be written.
    """
    place = Folder.of(table, storage_options)
    info = require_table(place)
    page = Folder.of(
        output if output is not None else f"{place.url.rsplit('/', 1)[1] or 'table'}-report.html", storage_options
    )
    _check_output(page, place)
    with explained(f"table {place.url}"):
        manifest = inventory.read_manifest(place, info)
        at_work, lost = lease.find_runs(place)
        throughput = read_throughput(place)
    figures = gather(
        place.url,
        info,
        manifest,
        survey(place, info, manifest.shards, seed=seed, n_shown=N_FOLDERS),
        throughput,
        _read_card(place, info.model_id),
        n_at_work=len(at_work),
        n_lost=len(lost),
    )
    data = render(figures, datetime.now(UTC), _locate(page, info.source, storage_options))
    folder, name = split_file(page)
    with explained(f"report {page.url}"):
        folder.publish(name, data)
    return Report(page.url, figures)


def _check_output(page: Folder, table: Folder) -> None:
    """Raise UsageError if a page may not be written there."""
    if page.url == table.url or page.url.startswith(f"{table.url}/"):
        raise UsageError(
            f"--output: expected a place outside the table {table.url}, got {page.url}; whatever reads it may read that"
        )
    folder, name = split_file(page)
    with explained(f"report {page.url}"):
        kind = page.find_kind()
        if kind == "folder":
            raise UsageError(f"--output: expected a file, got the folder {page.url}; name a file in it")
        if kind is None:
            return
        head = folder.read_range(name, 0, _HEAD_BYTES)
    if MARK.encode() not in head:
        raise UsageError(f"--output: expected a new file or an earlier report, got the file {page.url}; name another")


def _read_card(table: Folder, model_id: str | None) -> Portrait | None:
    """Return what the table's own copy of its model says; None for features, or if it is gone or of another release."""
    if model_id is None:
        return None
    with contextlib.suppress(UsageError):
        bundle = open_bundle(table.folder(COPY))
        return read_portrait(bundle.card, read_reliability(bundle)) if bundle.card.model_id == model_id else None
    return None


def _locate(page: Folder, source: str, options: Mapping[str, Any] | None) -> Locate:
    """Return what gives the address of a recording from the page: none, unless both are on this disk."""
    origin = Folder.of(source, options)
    if not (page.is_local and origin.is_local):
        return lambda drawn: None
    # An archive may be gone by now, and is no condition of a report.
    with contextlib.suppress(EmotionBatchError):
        if (features := read_info(origin)) is not None:
            origin = Folder.of(features.source, options)
        base = find_base(origin.url, options)
        if base.is_local:
            return locate_beside(os.path.dirname(page.url), base.url)
    return lambda drawn: None
