"""Write the report about a table: read its statistics, and render the page from the templates in `templates`.

The page is one HTML file that has no scripts and loads nothing from elsewhere. Jinja escapes every text of it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2

from emotion_batch._version import __version__
from emotion_batch.analysis.findings import headline, remark, summarise_table
from emotion_batch.analysis.scan import Drawn, survey
from emotion_batch.analysis.statistics import Figures, gather, show_label, show_roughly, show_share
from emotion_batch.errors import EmotionBatchError, UsageError, counted, format_duration, format_time
from emotion_batch.inference.bundle import COPY, open_bundle, read_reliability
from emotion_batch.inference.card import Portrait, read_portrait
from emotion_batch.storage.archive import find_base
from emotion_batch.storage.folder import Folder, explained, is_url, split_file
from emotion_batch.tables import inventory, lease
from emotion_batch.tables.status import read_throughput
from emotion_batch.tables.table import read_info, require_table

# A page has this mark in its first bytes: only such a file may be replaced.
MARK = '<meta name="generator" content="emotion-batch report">'
_HEAD_BYTES = 4_096
# The style sheet has this many colours for labels; with more labels, some share a colour.
_N_COLOURS = 10
# Gives the address of a recording from the page, or None if it cannot be reached from there.
Locate = Callable[[Drawn], str | None]


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
        """Return it as ``--json`` prints it: without the picture of the page."""
        value = asdict(self)
        if (portrait := value["figures"]["portrait"]) is not None:
            del portrait["reliability"]
        return value


def report(
    table: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    about: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Write one HTML page about a table, which needs no other file, and return its figures.

    Parameters
    ----------
    table
        A label or feature table; if it is not complete, the page covers the parts that are.
    output
        File to write, or URL; by default ``<table>-report.html`` in the current folder. An earlier report is replaced.
    seed
        Random seed for the choice of recordings to listen to.
    about
        A label of the table: the page also shows the recordings with the most of it, with times and players.
    storage_options
        What fsspec's filesystem takes.

    Raises
    ------
    UsageError
        If there is no table or it lacks the label, or `output` lies in it or is a file other than a report.
    StorageError
        If the table cannot be read, or the page not be written.
    """
    place = Folder.of(table, storage_options)
    info = require_table(place)
    if about is not None and about not in info.labels:
        raise UsageError(
            f"about must be one of the table's labels, {', '.join(info.labels) or 'and it has none'}: {about!r}"
        )
    page = Folder.of(
        output if output is not None else f"{place.url.rsplit('/', 1)[1] or 'table'}-report.html", storage_options
    )
    _check_output(page, place)
    with explained(f"table {place.url}"):
        manifest = inventory.read_manifest(place, info)
        at_work, lost = lease.find_runs(place)
        throughput = read_throughput(place)
    portrait = _read_card(place, info.model_id)
    with survey(place, info, manifest.shards, seed=seed, about=about) as seen:
        figures = gather(place.url, info, manifest, seen, throughput, portrait, about)
    figures = replace(figures, n_at_work=len(at_work), n_lost=len(lost))
    data = render(figures, datetime.now(UTC), _locate(page, info.source, storage_options))
    folder, name = split_file(page)
    with explained(f"report {page.url}"):
        folder.publish(name, data)
    return Report(page.url, figures)


def render(figures: Figures, made_at: datetime, locate: Locate = lambda drawn: None) -> bytes:
    """Return the page."""
    style = read_template("page.css")
    template = open_templates().get_template("report.html.j2")
    page = template.render(
        figures=figures,
        is_windows=not figures.info.segments.is_one_stretch,
        headline=headline(figures),
        summary=summarise_table(figures),
        remarks=remark(figures),
        made_at=format_time(made_at),
        format_time=lambda text: format_time(datetime.fromisoformat(text)),
        locate=locate,
        version=__version__,
        mark=MARK,
        style=style,
        digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )
    return page.encode()


def open_templates() -> jinja2.Environment:
    """Return the environment of the templates: it escapes every text, and has filters for counts, shares and times."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_template),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "colour": lambda number: f"l{number % _N_COLOURS}",
        "count_of": "{:,.0f}".format,
        "counted": counted,
        "duration": format_duration,
        "label": show_label,
        "percent": lambda value: f"{100 * min(1.0, max(0.0, value)):.2f}%",
        "roughly": show_roughly,
        "share": show_share,
    }
    return environment


def read_template(name: str) -> str:
    """Return the text of a template."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _finalize(value: object) -> object:
    """Return a value as the page shows it: invisible characters, e.g. controls and changes of direction, are written as escapes."""
    if hasattr(value, "__html__"):
        return value
    text = "" if value is None else str(value)
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def locate_beside(folder: str, archive: str) -> Locate:
    """Return a function that gives the address of a recording of `archive` from a page in `folder`; both are absolute local paths."""

    def locate(drawn: Drawn) -> str | None:
        path = os.path.join(archive, drawn.file)
        # The table has names that are not UTF-8 in another form, so these files are not found, and no other file is taken for them.
        if is_url(drawn.file) or "\0" in drawn.file or not os.path.isfile(path):
            return None
        # Without "./", a browser takes a name with a colon for a protocol.
        address = "./" + quote(os.fsencode(os.path.relpath(path, folder)))
        is_stretch = drawn.start_s is not None and drawn.end_s is not None
        return f"{address}#t={drawn.start_s:g},{drawn.end_s:g}" if is_stretch else address

    return locate


def _check_output(page: Folder, table: Folder) -> None:
    """Raise UsageError if no page may be written there."""
    if page.url == table.url or page.url.startswith(f"{table.url}/"):
        raise UsageError(
            f"--output: {page.url} lies in the table {table.url}, whose readers would read the page too; name a place outside it"
        )
    folder, name = split_file(page)
    with explained(f"report {page.url}"):
        kind = page.find_kind()
        if kind == "folder":
            raise UsageError(f"--output: {page.url} is a folder, not a file; name a file in it")
        if kind is None:
            return
        head = folder.read_range(name, 0, _HEAD_BYTES)
    if MARK.encode() not in head:
        raise UsageError(f"--output: the file {page.url} is not an earlier report; name a new file")


def _read_card(table: Folder, model_id: str | None) -> Portrait | None:
    """Return the card in the table's own copy of its model; None for features, or if it is missing or from another release."""
    if model_id is None:
        return None
    with contextlib.suppress(UsageError):
        bundle = open_bundle(table.folder(COPY))
        return read_portrait(bundle.card, read_reliability(bundle)) if bundle.card.model_id == model_id else None
    return None


def _locate(page: Folder, source: str, options: Mapping[str, Any] | None) -> Locate:
    """Return a function that gives a recording's address from the page, which is None unless both are on this disk."""
    origin = Folder.of(source, options)
    # A report does not need the archive, which may be gone by now.
    with contextlib.suppress(EmotionBatchError):
        if page.is_local and origin.is_local:
            features = read_info(origin)
            base = find_base(origin.url if features is None else features.source, options)
            if base.is_local:
                return locate_beside(os.path.dirname(page.url), base.url)
    return lambda drawn: None
