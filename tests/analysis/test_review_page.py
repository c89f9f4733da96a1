"""Tests of the page of a review: opened in a browser, answered by keys alone, saved, taken back and learnt from."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.recordings import tone
from support.review_tables import read_cells

import emotion_batch
from benchmarks.browser import Tab
from emotion_batch.analysis.listening import clips
from emotion_batch.analysis.listening.clips import Excerpt
from emotion_batch.errors import StorageError
from emotion_batch.settings import Segments
from emotion_batch.storage.folder import Folder

RATE = 16_000
HOSTILE = "</script><script>window.bad = 1<script><!-- \u202e'\"&.wav"


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve calls of two voices on two channels; one has a hostile name."""
    folder = tmp_path_factory.mktemp("calls") / "archive"
    folder.mkdir()
    for number in range(12):
        voices = [tone(7.0, RATE, hertz=110 + 10 * number + 60 * channel, seed=number) for channel in (0, 1)]
        name = f"{number:02d} call.wav" if number else HOSTILE.replace("/", "\u2215")
        soundfile.write(folder / name, np.stack(voices, axis=1), RATE)
    return folder


@pytest.fixture(scope="module")
def table(calls: Path) -> Path:
    """Their labels, by channel, in windows of two seconds."""
    folder = calls.parent / "labels"
    emotion_batch.label(calls, folder, model="tess-seed", segments=Segments.windows(2).of_channels("each"), workers=1)
    return folder


def wait_for(tab: Tab, expression: str) -> None:
    for _ in range(100):
        if tab.evaluate(expression):
            return
        tab.settle(0.1)
    raise AssertionError(f"the page never had {expression}")


def test_a_review_by_keys(table: Path, calls: Path, tab: Tab, tmp_path: Path) -> None:
    """Keys alone play, answer, go back and save; answers outlive a reload, and the saved sheet is taken back."""
    written = emotion_batch.review(table, tmp_path / "page.html", size=24, seed=1)
    n_rows = written.n_rows
    assert n_rows > written.n_random == 20
    tab.requested.clear()
    tab.open(f"file://{tmp_path}/page.html")
    labels = written.labels
    shown = tab.evaluate("document.body.innerText")
    assert f"1 of {n_rows}" in shown and "channel " in shown and "the model says" in shown
    for width in (1280, 400):
        tab.resize(width)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("document.getElementById('shape').getAttribute('d').length > 1000")
    tab.press(" ")
    wait_for(tab, "document.getElementById('sound').currentTime > 0.2")
    lasts = tab.evaluate("rows[0].cells[at.end_s] - rows[0].cells[at.start_s]")
    assert abs(tab.evaluate("document.getElementById('sound').duration") - lasts) < 0.1
    # The first is none, the second unsure, and the others get two labels in turn.
    said = tab.evaluate("rows.map(row => row.cells[at.emotion])")
    keys = ["n", "u", *("12"[number % 2] for number in range(2, n_rows))]
    for key in keys[:3]:
        tab.press(key)
    assert tab.evaluate("document.getElementById('place').textContent") == f"4 of {n_rows}"
    tab.open(f"file://{tmp_path}/page.html")
    assert f"3 of {n_rows} answered" in tab.evaluate("document.body.innerText")
    for key in ("9", "ArrowLeft", "Backspace", *keys[2:]):
        tab.press(key)
    assert f"{n_rows} of {n_rows} answered" in tab.evaluate("document.body.innerText")
    tab.save_into(tmp_path / "saved")
    tab.press("s")
    sheet = tmp_path / "saved" / "page.csv"
    for _ in range(100):
        if sheet.exists():
            break
        tab.settle(0.1)
    cells = read_cells(sheet)
    assert [row["correct_emotion"] for row in cells[:3]] == ["none", "?", labels[0]]
    taken = emotion_batch.take_review(table, sheet, labels=tmp_path / "labels.csv")
    assert (taken.n_answered, taken.n_labelled, taken.n_none, taken.n_unsure) == (n_rows, n_rows - 2, 1, 1)
    assert taken.n_corrected == sum(word != labels[int(key) - 1] for word, key in zip(said[2:], keys[2:], strict=True))
    # Nothing was loaded but the page, its clips and the sheet, and nothing was wrong with it.
    assert all(url.startswith(("file://", "data:", "blob:")) for url in tab.requested)
    assert not tab.said
    assert tab.evaluate("window.bad") is None
    # The labels are those of channels and windows: a training finds each of them.
    features = tmp_path / "features"
    emotion_batch.extract(calls, features, segments=Segments.windows(2).of_channels("each"), workers=1)
    settings = emotion_batch.TrainingSettings(labels=f"table:{tmp_path}/labels.csv", held_out=0, max_folds=0, epochs=1)
    card = emotion_batch.train(features, tmp_path / "bundle", settings=settings)
    assert card.training["n_rows"] == n_rows - 2


def test_clips_beside_a_large_page(table: Path, tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many clips they lie beside the page, and are played from there."""
    monkeypatch.setattr("emotion_batch.analysis.listening.review_page._MOST_INSIDE", 20)
    written = emotion_batch.review(table, tmp_path / "page.html", size=30, seed=2)
    files = sorted((tmp_path / "page-clips").iterdir())
    assert len(files) == written.n_rows > 20
    assert b"data:audio" not in (tmp_path / "page.html").read_bytes()
    tab.open(f"file://{tmp_path}/page.html")
    tab.press("ArrowRight")
    wait_for(tab, "document.getElementById('sound').currentTime > 0.2")


def test_a_clip_is_the_recording_there(table: Path, calls: Path, tmp_path: Path) -> None:
    """A clip has exactly the samples of its channel and stretch; what cannot be heard says why, and the others go on."""
    name = "03 call.wav"
    whole, _ = soundfile.read(calls / name, dtype="int16", always_2d=True)
    one, two = clips.cut_clips(Folder.of(table), None, [Excerpt(name, 1, 2.0, 4.0), Excerpt(name, None, 1.5, 2.0)])
    assert (one.rate_hz, two.rate_hz) == (RATE, RATE)
    np.testing.assert_array_equal(one.samples * 2**15, whole[2 * RATE : 4 * RATE, 1])
    np.testing.assert_allclose(two.samples, whole[RATE * 3 // 2 : 2 * RATE].mean(axis=1) / 2**15, atol=1e-6)
    moved = calls / name
    kept = moved.read_bytes()
    moved.unlink()
    try:
        emotion_batch.review(table, tmp_path / "page.html", size=60, seed=3)
    finally:
        moved.write_bytes(kept)
    page = (tmp_path / "page.html").read_text()
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    gone = [row for row in data["rows"] if row["reason"]]
    assert gone and all(row["cells"][0] == name and "audio" not in row for row in gone)
    assert gone[0]["reason"] == "the file was listed and is not there"
    sound, rate = soundfile.read(
        io.BytesIO(base64.b64decode(next(row["audio"] for row in data["rows"] if not row["reason"]).partition(",")[2]))
    )
    assert rate == RATE and abs(len(sound) - 2 * RATE) < RATE // 10
    kept = [(path, path.read_bytes()) for path in calls.iterdir()]
    for path, _ in kept:
        path.unlink()
    try:
        with pytest.raises(
            StorageError, match=r"none of the recordings can be heard, e\.g\. '.*': the file was listed and is not"
        ):
            emotion_batch.review(table, tmp_path / "none.html", size=20)
    finally:
        for path, data in kept:
            path.write_bytes(data)
    assert not (tmp_path / "none.html").exists()
