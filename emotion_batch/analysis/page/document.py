"""Render the report as one HTML file that has no scripts and loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from urllib.parse import quote

from emotion_batch._version import __version__
from emotion_batch.analysis.findings import headline, remark, summarise_table
from emotion_batch.analysis.page import label_sections, run_sections
from emotion_batch.analysis.page.markup import Html, join, name, tag
from emotion_batch.analysis.page.run_sections import Locate
from emotion_batch.analysis.scan import Drawn
from emotion_batch.analysis.statistics import Figures, show_count, show_share
from emotion_batch.storage.folder import is_url

# By which a page is known that may be replaced.
MARK = '<meta name="generator" content="emotion-batch report">'


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; `key` is what links to it name."""

    key: str
    heading: str
    body: Html


def render(figures: Figures, made_at: datetime, locate: Locate = lambda drawn: None) -> bytes:
    """Return the page.

    Parameters
    ----------
    figures
        What to show.
    made_at
        When it was made.
    locate
        Gives where a recording is from the page.
    """
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    found = list(_sections(figures, locate))
    body = join(
        [
            tag("a", "To the figures", href="#figures", class_="skip"),
            _header(figures, made_at),
            tag(
                "main",
                _tiles(figures),
                _remarks(figures),
                tag("nav", *(tag("a", one.heading, href=f"#{one.key}") for one in found), aria_label="Sections"),
                *(
                    tag(
                        "section",
                        tag("h2", one.heading, id=f"{one.key}-heading"),
                        one.body,
                        id=one.key,
                        aria_labelledby=f"{one.key}-heading",
                    )
                    for one in found
                ),
                id="figures",
            ),
            _footer(),
        ]
    )
    # Of the style its digest and no other; nothing else may be loaded but recordings, and no script runs.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    media = "media-src 'self' file:; " if "<audio " in body else ""
    # A picture is in the page itself.
    images = "img-src data:; " if "<img " in body else ""
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; {images}{media}base-uri 'none'; form-action 'none'"
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            Html(MARK),
            tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name_="color-scheme", content="light dark"),
            tag("meta", name_="referrer", content="no-referrer"),
            tag("title", f"{os.path.basename(figures.table)}: {headline(figures)}"),
            Html(f"<style>{style}</style>"),
        ],
        "\n",
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'.encode()


def locate_beside(folder: str, archive: str) -> Locate:
    """Return what gives the address of a recording on this disk, relative to a page in `folder`.

    Parameters
    ----------
    folder
        Absolute path of the page's folder.
    archive
        Absolute path that the recordings' names are relative to.
    """

    def locate(drawn: Drawn) -> str | None:
        path = os.path.join(archive, drawn.file)
        # Of names that are not UTF-8 the table has another form: these are not found, and no other is taken for them.
        if is_url(drawn.file) or "\0" in drawn.file or not os.path.isfile(path):
            return None
        # A colon in the first step would make a protocol of it.
        address = "./" + quote(os.fsencode(os.path.relpath(path, folder)))
        is_stretch = drawn.start_s is not None and drawn.end_s is not None
        return f"{address}#t={drawn.start_s:g},{drawn.end_s:g}" if is_stretch else address

    return locate


def _sections(figures: Figures, locate: Locate) -> Iterator[Section]:
    """Yield the sections in their order; what the figures do not have is none."""
    if figures.labels and figures.coverage.n_ok:
        yield Section("labels", "What was labelled", label_sections.show_labels(figures))
        yield Section("confidence", "How sure, and how far to believe it", label_sections.show_confidence(figures))
    if figures.folders:
        yield Section("folders", "Folder by folder", label_sections.show_folders(figures))
    if figures.moments:
        yield Section("time", "Within the recordings", label_sections.show_moments(figures))
    if figures.failures:
        yield Section("failed", "What failed", run_sections.show_failed(figures))
    if figures.drawn:
        yield Section("listen", "Listen to some", run_sections.show_listen(figures, locate))
    if figures.throughput.runs:
        yield Section("speed", "How fast it was", run_sections.show_speed(figures))
    if figures.info.labels:
        yield Section("model", "The model", run_sections.show_model(figures))


def _header(figures: Figures, made_at: datetime) -> Html:
    kind = "label table" if figures.info.labels else "feature table"
    facts = [
        ("Table", name(figures.table)),
        ("Made from", name(figures.info.source)),
        ("Segments", _segments(figures)),
        ("This page", f"{made_at:%Y-%m-%d %H:%M} UTC"),
    ]
    return tag(
        "header",
        tag("p", f"emotion-batch · {kind}", class_="kicker"),
        tag("h1", f"{headline(figures)}."),
        tag("p", summarise_table(figures), class_="lede"),
        tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in facts), class_="facts"),
    )


def _segments(figures: Figures) -> str:
    segments = figures.info.segments
    if segments.hop_s is not None:
        return f"windows of {segments.duration_s:g} s, every {segments.hop_s:g} s"
    return f"one a recording, {segments.offset_s:g} to {segments.offset_s + segments.duration_s:g} s"


def _remarks(figures: Figures) -> Html:
    items = [tag("li", tag("b", one.topic), tag("span", *_words(one.text)), class_=one.kind) for one in remark(figures)]
    return tag(
        "section",
        tag("h2", "What stands out", id="remarks-heading"),
        tag("ul", *items, class_="remarks"),
        id="remarks",
        aria_labelledby="remarks-heading",
    )


def _words(sentence: str) -> Iterator[Html | str]:
    """Yield a sentence, and what stands in it between backticks as code."""
    for number, words in enumerate(sentence.split("`")):
        yield tag("code", words) if number % 2 else words


def _tiles(figures: Figures) -> Html:
    coverage = figures.coverage
    made = "labelled" if figures.info.labels else "with features"
    tiles = [
        (
            show_count(coverage.n_listed),
            "listed",
            f"{show_count(coverage.n_rows)} rows in {show_count(coverage.n_complete)} parts",
        ),
        (show_share(coverage.n_labelled, coverage.n_listed), made, f"{show_count(coverage.n_labelled)} recordings"),
        (show_share(coverage.n_failed, coverage.n_listed), "failed", f"{show_count(coverage.n_failed)} recordings"),
    ]
    if figures.info.labels:
        n_ok = coverage.n_ok
        tiles.append((show_share(figures.n_confident, n_ok), "confident", _of_labels(figures.n_confident)))
        if figures.n_outside is None:
            tiles.append(("–", "out of domain", "the model cannot tell"))
        else:
            tiles.append((show_share(figures.n_outside, n_ok), "out of domain", _of_labels(figures.n_outside)))
    rate = figures.throughput.rate
    if rate is not None:
        tiles.append((f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}", "a second", "while at work"))
    items = [
        tag("li", tag("span", value, class_="value"), tag("span", words, class_="words"), tag("small", small))
        for value, words, small in tiles
    ]
    return tag("ul", *items, class_="tiles", aria_label="In numbers")


def _of_labels(n: int) -> str:
    return f"{show_count(n)} label{'' if n == 1 else 's'}"


def _footer() -> Html:
    return tag(
        "footer",
        tag(
            "p",
            f"emotion-batch {__version__}. Only parts that are whole and made from the newest listing are counted. "
            "The page holds all that it shows; of recordings only the addresses.",
        ),
    )
