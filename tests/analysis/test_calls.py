"""Tests of what the report shows of channels, and of the recordings with the most of one label."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.commands import call_command
from support.review_tables import INFO, LABELS, write_table

import emotion_batch
from emotion_batch.analysis import scan
from emotion_batch.errors import UsageError
from emotion_batch.settings import Segments

ABOUT = "angry"


def windows() -> Iterator[dict[str, object]]:
    """Yield windows of 3 s, one every 2 s, of thirty calls on two channels; some failed, and some are not speech."""
    rng = np.random.default_rng(3)
    for call in range(30):
        for channel in (0, 1):
            for number in range(int(rng.integers(2, 12))):
                shares = rng.dirichlet(np.ones(len(LABELS)))
                label = LABELS[int(shares.argmax())]
                begin = {
                    "file": f"2026-01-{call + 1:02d}/a.wav",
                    "channel": channel,
                    "start_s": 2.0 * number,
                    "end_s": None,
                }
                if rng.random() < 0.1:
                    yield {**begin, "status": "not_finite", "error": "why"}
                    continue
                is_speech = bool(rng.random() < 0.8)
                sure = {"confidence": shares.max(), "is_confident": bool(shares.max() > 0.6 and is_speech)}
                each = {f"p_{label}": share for label, share in zip(LABELS, shares, strict=True)}
                end = {"end_s": 2.0 * number + 3, "status": "ok", "emotion": label, "is_speech": is_speech}
                yield {**begin, **end, **sure, **each}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    info = replace(INFO, segments=Segments.windows(3, 2).of_channels("each"))
    rows = list(windows())
    arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in info.schema]
    files = sorted({str(row["file"]) for row in rows})
    return write_table(
        tmp_path_factory.mktemp("calls") / "labels", files, info, rows=pa.table(arrays, schema=info.schema)
    ).url


@pytest.mark.parametrize("chunk_rows", [2**18, 5], ids=["at once", "in pieces"])
def test_the_calls_are_those_of_the_queries(
    table: str, chunk_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks, shares, peaks and hours are those of `angriest` and of `recordings`, however the table is read."""
    monkeypatch.setattr(scan, "_CHUNK_ROWS", chunk_rows)
    made = emotion_batch.report(table, output=tmp_path / "report.html", about=ABOUT)
    found = made.figures
    best: dict[str, dict] = {}
    for row in emotion_batch.query(table, example="angriest").to_pylist():
        best.setdefault(row["file"], row)
    assert len(found.calls) == scan.N_CALLS
    assert [one.peak.file for one in found.calls] == list(best)[: scan.N_CALLS]
    for one in found.calls:
        assert one.share == pytest.approx(best[one.peak.file]["share"], abs=6e-4)
    recordings = emotion_batch.query(table, example="recordings").to_pylist()
    for one in found.calls:
        own = [row for row in recordings if row["file"] == one.peak.file and row["speech_s"]]
        peaks = {(round(row[f"peak_{ABOUT}"], 3), row[f"peak_s_{ABOUT}"]) for row in own}
        assert (round(one.peak.confidence, 3), one.peak.start_s) in peaks
        assert [channel for channel, _ in one.lanes] == sorted({channel for channel, _ in one.lanes})
        for channel, spans in one.lanes:
            (row,) = [row for row in recordings if (row["file"], row["channel"]) == (one.peak.file, channel)]
            assert sum(span.stop_s - span.start_s for span in spans) == pytest.approx(row["speech_s"], abs=2e-3)
            seconds = sum(span.stop_s - span.start_s for span in spans if span.number == LABELS.index(ABOUT))
            assert seconds == pytest.approx((row[f"share_{ABOUT}"] or 0) * row["speech_s"], abs=0.02)
            assert all(before.stop_s <= after.start_s for before, after in itertools.pairwise(spans))
            # Neighbours that are alike are one.
            pairs = itertools.pairwise(spans)
            assert not any(
                one.stop_s == two.start_s and (one.number, one.is_confident) == (two.number, two.is_confident)
                for one, two in pairs
            )
    assert [one.channel for one in found.channels] == [0, 1]
    for one in found.channels:
        own = [row for row in recordings if row["channel"] == one.channel]
        assert one.heard_s == pytest.approx(sum(row["heard_s"] for row in own))
        assert one.speech_s == pytest.approx(sum(row["speech_s"] for row in own))
        assert sum(one.by_label) == pytest.approx(one.speech_s)


def test_the_command_shows_them(table: str, tmp_path: Path) -> None:
    """`--about` puts names, times and a lane for each channel on the page, and a word that is no label is refused."""
    done = call_command("report", table, "--output", tmp_path / "r.html", "--about", ABOUT, "--json")
    assert done.code == 0, done.err
    calls = done.result["figures"]["calls"]
    page = (tmp_path / "r.html").read_text()
    assert "The most angry recordings" in page and "Hours heard" in page
    for one in calls:
        assert page.count(f">{one['peak']['file']}<") >= 1
        assert f"{one['peak']['start_s']:,.1f} to {one['peak']['end_s']:,.1f} s" in page
    assert page.count('<div class="lane">') == sum(len(one["lanes"]) for one in calls)
    plain = emotion_batch.report(table, output=tmp_path / "plain.html")
    assert plain.figures.calls == () and "The most angry" not in (tmp_path / "plain.html").read_text()
    with pytest.raises(UsageError, match="about must be one of the table's labels, angry, happy, sad: 'bored'"):
        emotion_batch.report(table, output=tmp_path / "r.html", about="bored")
