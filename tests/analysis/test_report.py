"""Tests of the report: made of real tables, and opened in a browser."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import servers
from support.commands import call_command
from support.recordings import write_odd_archive

import emotion_batch
from benchmarks.browser import Tab
from benchmarks.generated import write_label_table
from emotion_batch.analysis.report import MARK, Report
from emotion_batch.errors import StorageError, UsageError

HOSTILE = ("<img src=x onerror=alert(1)>", "new\nline \"quoted\" 'x'", "evil\u202egnp", "#hash?query=1&a")
# What a page does to be told how it lies: whatever sticks out at the right, unless it scrolls within itself.
_OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !one.closest('.scroll');
}).map(one => one.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def night(tess: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Some of TESS beside broken recordings and hostile names, labelled in windows by the model that ships; its report."""
    folder = tmp_path_factory.mktemp("night")
    archive = folder / "calls"
    for path in sorted(tess.rglob("*.wav"))[::40]:
        to = archive / path.parent.name / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    write_odd_archive(archive / "odd")
    for name in HOSTILE:
        # As folders, each of which the page names.
        (archive / name).mkdir()
        shutil.copyfile(path, archive / name / f"{name}.wav")
    emotion_batch.label(archive, folder / "labels", segments=emotion_batch.Segments.windows(1.0), workers=2)
    return folder, emotion_batch.report(folder / "labels", output=folder / "pages.html")


@pytest.mark.tess
def test_the_page_in_a_browser(night: tuple[Path, Report], tab: Tab) -> None:
    """No error, no request but the page, each picture seen, nothing sticks out at 1280 and 400 pixels; names are text."""
    folder, made = night
    url = (folder / "pages.html").as_uri()
    tab.resize(1280)
    tab.open(url)
    for width in (1280, 400):
        tab.resize(width)
        for is_open in (False, True):
            tab.evaluate(f"document.querySelectorAll('details').forEach(one => one.open = {str(is_open).lower()})")
            tab.settle(0.1)
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert tab.evaluate(_OVERFLOWING) == []
    boxes = tab.evaluate(
        "[...document.querySelectorAll('svg')].map(one => one.getBoundingClientRect()).map(one => [one.width, one.height])"
    )
    assert len(boxes) > 40
    assert min(min(box) for box in boxes) > 4
    # Each mark has a colour of the page's style, and each picture of several colours has several.
    fills = "[...document.querySelectorAll('svg :is(rect, path)')].map(one => getComputedStyle(one).fill)"
    assert len(set(tab.evaluate(fills))) >= 10
    assert "rgb(0, 0, 0)" not in tab.evaluate(fills)
    assert tab.evaluate("document.scripts.length") == 0
    # The one that the model brought.
    assert tab.evaluate("[...document.images].map(one => [one.complete, one.naturalWidth])") == [[True, 600]]
    words = tab.evaluate("document.body.innerText")
    for name in HOSTILE:
        assert name.replace("\n", "\\n").replace("\u202e", "\\u202e") in words
    assert f"{made.figures.coverage.n_labelled} of {made.figures.coverage.n_listed} recordings labelled" in words
    tab.resize(1280, is_dark=True)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(251, 250, 247)"
    # The browser's own buttons of a player are data and no request.
    assert [one for one in tab.requested if not one.startswith("data:")] == [url]
    assert tab.said == []


@pytest.mark.tess
def test_a_recording_plays_from_the_page(night: tuple[Path, Report], tab: Tab) -> None:
    """Players reach the recordings beside the page, hostile names too, from a disk as from a server, and only when asked."""
    folder, made = night
    assert made.figures.drawn

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=os.fspath(folder))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for url in ((folder / "pages.html").as_uri(), f"http://127.0.0.1:{server.server_port}/pages.html"):
            tab.said.clear()
            tab.open(url)
            tab.requested.clear()
            n_players = tab.evaluate("document.querySelectorAll('audio').length")
            assert n_players >= 20
            durations = tab.evaluate(
                "Promise.all([...document.querySelectorAll('audio')].map(one => new Promise((resolve, reject) => {"
                "one.onloadedmetadata = () => resolve(one.duration); one.onerror = () => reject(one.src);"
                "one.preload = 'metadata'; one.load(); })))"
            )
            assert len(durations) == n_players
            assert min(durations) > 0.3
            asked = {one.partition("#")[0] for one in tab.requested if not one.startswith("data:")}
            assert asked
            assert all(one.startswith(url.replace("pages.html", "calls/")) for one in asked)
            # A server is asked for the tab's picture, which the policy forbids without a word.
            assert [one for one in tab.said if "favicon" not in one] == []
        server.shutdown()


@pytest.mark.tess
def test_the_figures_are_those_of_the_night(night: tuple[Path, Report]) -> None:
    """What the run recorded and what `status` counts is what the page has; slow recordings have names."""
    folder, made = night
    counts = emotion_batch.status(folder / "labels").counts
    found = made.figures
    assert {one.status: one.n_rows for one in found.failures} == {
        status: n for status, n in counts.by_status.items() if status != "ok"
    }
    assert {one.label: one.n_rows for one in found.labels if one.n_rows} == counts.by_label
    assert {"decode", "features", "predict", "write"} <= set(found.throughput.stages_s)
    assert found.throughput.n_decoded == found.coverage.n_listed
    assert len(found.throughput.slowest) == 5
    names = set(pq.read_table(folder / "labels", columns=["file"])["file"].to_pylist())
    assert {file for _, file in found.throughput.slowest} <= names
    assert found.moments[0].start_s == 0
    assert found.portrait is not None


def test_the_command(labels: Path, features: Path, tmp_path: Path) -> None:
    """`report` writes a page and says where, or all figures as JSON; it replaces an earlier report and nothing else."""
    page = tmp_path / "page.html"
    done = call_command("report", labels, "--output", page)
    assert done.code == 0, done.err
    assert "84 of 89 recordings labelled" in done.out
    assert done.out.splitlines()[-1] == f"report: {page}"
    first = page.read_text()
    assert first.count("</section>") >= 7
    again = call_command("report", labels, "--output", page, "--json")
    assert again.result["figures"]["coverage"]["n_labelled"] == 84
    # The minute may be another.
    assert abs(len(page.read_text()) - len(first)) < 100
    (tmp_path / "thesis.html").write_text("<p>mine</p>")
    for output, error, said in (
        (tmp_path / "thesis.html", UsageError, "is not an earlier report; name a new file"),
        (labels / "page.html", UsageError, "lies in the table .*; name a place outside it"),
        (tmp_path, UsageError, "is a folder, not a file"),
        (tmp_path / "none" / "page.html", StorageError, "it does not exist"),
    ):
        with pytest.raises(error, match=said):
            emotion_batch.report(labels, output=output)
    assert (tmp_path / "thesis.html").read_text() == "<p>mine</p>"
    made = emotion_batch.report(features, output=tmp_path / "features.html")
    assert made.figures.coverage.n_labelled == 84
    assert "84 of 89 recordings turned into features" in (tmp_path / "features.html").read_text()
    with pytest.raises(UsageError, match="there is no table; check the name"):
        emotion_batch.report(tmp_path, output=page)


def test_what_is_not_finished_is_said(tmp_path: Path) -> None:
    """A table with a part missing has a page that says so at its top, and how much."""
    write_label_table(tmp_path / "table", 500)
    next((tmp_path / "table").glob("*.parquet")).unlink()
    made = emotion_batch.report(tmp_path / "table", output=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    n_left = made.figures.coverage.n_listed - made.figures.coverage.n_surveyed
    assert n_left > 0
    assert page.index("So far, ") < page.index(f"parts, with {n_left} recordings.") < page.index('id="labels"')


def test_a_table_in_a_bucket(s3: servers.Bucket, tmp_path: Path) -> None:
    """A table of a bucket is reported to a file or into the bucket, with its options, which stand nowhere."""
    write_label_table(tmp_path / "table", 300)
    s3.upload(tmp_path / "table", "reported/table")
    expected = emotion_batch.report(tmp_path / "table", output=tmp_path / "local.html").figures
    made = emotion_batch.report(f"{s3.url}/reported/table", output=tmp_path / "page.html", storage_options=s3.options)
    assert made.figures.coverage == expected.coverage
    assert made.figures.labels == expected.labels
    assert made.figures.drawn == expected.drawn
    options = tmp_path / "options.json"
    options.write_text(json.dumps(s3.options))
    to = f"{s3.url}/reported/page.html"
    done = call_command(
        "report", f"{s3.url}/reported/table", "--output", to, "--storage-options", f"@{options}", "--json"
    )
    assert done.code == 0, done.err
    page = s3.read("reported")["page.html"].decode()
    assert MARK in page
    for secret in (servers.SECRET_KEY, servers.ACCESS_KEY):
        assert secret not in page + (tmp_path / "page.html").read_text() + done.out + done.err
