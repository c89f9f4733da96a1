"""Tests of the page: names that would break out of it, its policy, its colours, and what it lacks when figures do."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from support.commands import ROOT
from support.review_tables import figures_of

from benchmarks.generated import write_label_table
from emotion_batch.analysis.calls import CallFigures, Span
from emotion_batch.analysis.report import locate_beside, open_templates, render
from emotion_batch.analysis.scan import Drawn
from emotion_batch.analysis.statistics import Figures, show_roughly, show_share
from emotion_batch.errors import format_duration
from emotion_batch.inference.bundle import find_model, open_bundle, read_reliability
from emotion_batch.tables.status import RunFigures

MADE_AT = datetime(2026, 11, 24, 7, tzinfo=UTC)
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'&amp;\n\u202egpj.\u2028\x1b[31m\x00.wav"
SHOWN = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'&amp;\\n\\u202egpj.\\u2028\\x1b[31m\\x00.wav"
CSS = (ROOT / "emotion_batch" / "analysis" / "templates" / "page.css").read_text()


class Elements(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    folder = tmp_path_factory.mktemp("generated") / "table"
    write_label_table(folder, 600, n_windows=3)
    return figures_of(folder)


def test_text_is_no_markup() -> None:
    """Whatever is no markup already is shown as it is written, in content and in attributes."""
    template = open_templates().from_string(
        '<p title="{{ text }}">{{ text }}</p>{{ text }}<b>{{ "<i>x</i>"|safe }}</b>'
    )
    made = Elements(template.render(text=HOSTILE))
    assert [name for name, _ in made.tags] == ["p", "b", "i"]
    assert made.tags[0][1] == {"title": SHOWN}
    assert made.words[:2] == [SHOWN, SHOWN]


def test_shares_do_not_round_to_all_or_nothing() -> None:
    """Only all reads as all, and only nothing as nothing."""
    assert [show_share(n, 100_000) for n in (0, 1, 99_999, 100_000, 12_345)] == [
        "0%",
        "<0.1%",
        ">99.9%",
        "100%",
        "12.3%",
    ]
    assert [show_roughly(n, 1_000) for n in (0, 40, 123, 999, 1_000)] == ["0%", "4%", "12%", "99.9%", "100%"]
    assert [format_duration(s) for s in (0.01, 3, 61, 7_325)] == ["10 ms", "3 s", "1 min 1 s", "2 h 2 min"]
    assert show_share(1, 0) == "–"


def test_hostile_words_stay_words(found: Figures) -> None:
    """Names, reasons, labels, speakers and errors that are markup add no element, and stand on the page as they are."""
    assert found.portrait is not None
    evil = Drawn(0, HOSTILE, "confident", HOSTILE, 0.0, 3.0, 0.9, HOSTILE)
    run = RunFigures(HOSTILE, "", HOSTILE, HOSTILE, 1.0, 2, 3.0, 1, 0, 0, 0.0)
    hostile = replace(
        found,
        table=HOSTILE,
        info=replace(found.info, source=HOSTILE, labels=(HOSTILE,) * 7),
        labels=tuple(replace(one, label=HOSTILE) for one in found.labels),
        folders=tuple(replace(one, name=HOSTILE) for one in found.folders),
        columns=(),
        failures=tuple(replace(one, status=HOSTILE, examples=(evil,)) for one in found.failures),
        drawn=(evil,),
        about=HOSTILE,
        calls=(CallFigures(evil, 0.5, 3.0, ((None, (Span(0.0, 3.0, 0, True),)),)),),
        portrait=replace(
            found.portrait,
            licence=HOSTILE,
            recall={HOSTILE: 0.5},
            versions={HOSTILE: HOSTILE},
            calibration=tuple(replace(one, name=HOSTILE) for one in found.portrait.calibration),
        ),
        throughput=replace(found.throughput, runs=(run,), slowest=((1.0, HOSTILE),)),
    )
    page = render(hostile, MADE_AT, lambda drawn: HOSTILE).decode()
    made = Elements(page)
    names = {name for name, _ in made.tags}
    assert names & {"script", "img", "iframe", "object", "form", "base"} == set()
    assert {key for _, attributes in made.tags for key in attributes if key.startswith("on")} == set()
    assert made.words.count(SHOWN) > 20
    assert not any(unseen in page for unseen in "\u202e\u2028\x1b\0")


def test_a_page_may_load_nothing(found: Figures) -> None:
    """No script, no style in an attribute, no address but those within the page; its policy forbids all the rest."""
    page = render(found, MADE_AT).decode()
    made = Elements(page)
    assert not any("style" in attributes for _, attributes in made.tags)
    assert {name for name, _ in made.tags} & {"script", "link", "img", "audio"} == set()
    addresses = [attributes["href"] for _, attributes in made.tags if "href" in attributes]
    assert addresses
    assert all(address is not None and address.startswith("#") for address in addresses)
    targets = {attributes.get("id") for _, attributes in made.tags}
    assert {address[1:] for address in addresses if address} <= targets
    [policy] = [a["content"] for name, a in made.tags if name == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    # Without players not even recordings.
    assert "media-src" not in policy


def test_the_models_picture_is_in_the_page(found: Figures) -> None:
    """What was drawn of the calibration when the model was trained is in the page itself, and its policy allows that alone."""
    bundle = open_bundle(find_model("voices-1"))
    picture = read_reliability(bundle)
    assert picture is not None and found.portrait is not None
    page = render(replace(found, portrait=replace(found.portrait, reliability=picture)), MADE_AT).decode()
    made = Elements(page)
    [image] = [attributes for name, attributes in made.tags if name == "img"]
    assert image["src"] == f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    assert image["alt"]
    [policy] = [a["content"] for name, a in made.tags if name == "meta" and "http-equiv" in a]
    assert policy is not None and "img-src data:; " in policy


def test_pictures_have_words(found: Figures) -> None:
    """Each picture says what it shows, or stands beside its numbers and is passed over; tables have captions."""
    made = Elements(render(found, MADE_AT).decode())
    pictures = [attributes for name, attributes in made.tags if name == "svg"]
    assert len(pictures) > 30
    for attributes in pictures:
        is_said = attributes.get("role") == "img" and bool(attributes.get("aria-label"))
        assert is_said != (attributes.get("aria-hidden") == "true")
    names = [name for name, _ in made.tags]
    assert names.count("caption") == names.count("table")
    assert names.count("h1") == 1
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_what_the_figures_lack_is_no_section(found: Figures) -> None:
    """A page of features, of a table without a card or of one without any row is whole too."""
    assert found.portrait is not None
    bare = replace(found, portrait=None, moments=(), drawn=(), failures=(), folders=(), columns=())
    page = render(bare, MADE_AT).decode()
    assert "Its card is not in the table" in page
    assert "It is unknown whether confidence is calibrated" in page
    uncalibrated = replace(bare, portrait=replace(found.portrait, calibration=(), promise=None, judged=(), recall={}))
    assert "Confidence is uncalibrated" in render(uncalibrated, MADE_AT).decode()
    assert 'id="time"' not in page
    assert 'id="listen"' not in page
    features = replace(bare, info=replace(found.info, labels=()), labels=())
    assert "turned into features" in render(features, MADE_AT).decode()
    nothing = replace(
        bare, coverage=replace(found.coverage, n_ok=0, n_rows=0, n_surveyed=0, n_labelled=0, n_complete=0)
    )
    assert "Missing, out of date or damaged: " in render(nothing, MADE_AT).decode()


def test_an_address_is_that_of_the_recording(tmp_path: Path) -> None:
    """Names that mean something in an address are quoted; what is not there, or elsewhere, has none."""
    archive = tmp_path / "calls"
    (archive / "a b").mkdir(parents=True)
    for name in ("a b/#1?x=2&y.wav", "c:d.wav", "grüße.wav", '"q".wav'):
        (archive / name).touch()
    locate = locate_beside(os.fspath(tmp_path / "pages"), os.fspath(archive))

    def address(file: str, start_s: float | None = None, end_s: float | None = None) -> str | None:
        return locate(Drawn(0, "sad", "unsure", file, start_s, end_s, 0.5, None))

    assert address("a b/#1?x=2&y.wav", 3.0, 6.0) == "./../calls/a%20b/%231%3Fx%3D2%26y.wav#t=3,6"
    assert address("grüße.wav") == "./../calls/gr%C3%BC%C3%9Fe.wav"
    assert address('"q".wav') == "./../calls/%22q%22.wav"
    assert address(os.fspath(archive / "c:d.wav")) == "./../calls/c%3Ad.wav"
    assert address("gone.wav") is address("a b") is address("s3://b/x.wav") is address("x\0.wav") is None


def test_colours_can_be_told_from_their_ground() -> None:
    """Text has at least 4.5 of contrast and marks at least 2, by light and by dark (WCAG 2.2, 1.4.3; labels are also said)."""

    def luminance(colour: str) -> float:
        values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((luminance(one), luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    def schemes() -> Iterator[dict[str, str]]:
        for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL):
            yield dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))

    found = list(schemes())
    assert len(found) == 2
    for scheme in found:
        for ground in ("paper", "card"):
            for ink in ("ink", "soft", "accent", "bad", "warn", "good"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)
            for mark in ("other", *(f"l{number}" for number in range(10))):
                assert contrast(scheme[mark], scheme[ground]) >= 2, (mark, ground)
