"""Tests of exports for listening: read back by the packages of each format, they hold the labels of the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import praatio.textgrid
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import soundfile
import webvtt
from pyannote.database.util import load_rttm
from support.commands import call_command
from support.recordings import tone
from support.review_tables import INFO, write_table

import emotion_batch
from emotion_batch.errors import EmotionBatchError, UsageError
from emotion_batch.settings import Segments
from emotion_batch.tables.schema import FEATURES

CALL, LOUD, LONG = "2024/a call.wav", 'odd/%2E: "x" <b> 50 %.mp3', f"{'ä' * 120}.wav"
# (file, channel, start_s, end_s, status, label, confidence, is_speech); windows of 4 s every 2 s.
ROWS = [
    (CALL, 0, 0.0, 4.0, "ok", "angry", 0.9, True),
    (CALL, 1, 0.0, 4.0, "ok", "sad", 0.6, True),
    (CALL, 0, 2.0, 6.0, "ok", "angry", 0.7, None),
    (CALL, 1, 2.0, 6.0, "not_finite", None, None, None),
    (CALL, 0, 4.0, 8.0, "ok", "happy", 0.8, True),
    (CALL, 1, 4.0, 8.0, "ok", "sad", 0.5, True),
    (CALL, 0, 6.0, 7.5, "ok", "happy", 0.9, False),
    (CALL, 1, 6.0, 7.5, "ok", "sad", 0.8, True),
    (LOUD, None, 0.0, 1.25, "ok", "happy", 0.4, True),
    (LOUD, None, 3_601.5, 3_604.0, "ok", "angry", 0.4, True),
    (LONG, None, 0.0, 4.0, "ok", "sad", 0.4, True),
    ("silent.wav", None, 0.0, None, "empty", None, None, None),
]
# What a person should see of the call, and of it where confidence is at least 0.65.
ANGRY, HAPPY = (0.0, 4.0, "angry"), (4.0, 6.0, "happy")
ALL = {0: [ANGRY, HAPPY], 1: [(0.0, 2.0, "sad"), (4.0, 7.5, "sad")]}
SURE = {0: [ANGRY, HAPPY], 1: [(6.0, 7.5, "sad")]}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label table of two channels in overlapping windows, and of names that a format or a file system reads otherwise."""
    info = replace(INFO, segments=Segments.windows(4, 2).of_channels("each"))
    schema = info.schema
    columns = dict(
        zip(
            ("file", "channel", "start_s", "end_s", "status", "emotion", "confidence", "is_speech"),
            zip(*ROWS, strict=True),
            strict=True,
        )
    )
    columns["error"] = tuple(None if status == "ok" else "why" for status in columns["status"])
    n = len(ROWS)
    rows = pa.table([pa.array(columns.get(name, [None] * n), schema.field(name).type) for name in schema.names], schema)
    folder = tmp_path_factory.mktemp("labels") / "table"
    files = list(dict.fromkeys(columns["file"]))
    order = sorted(range(n), key=lambda at: (columns["file"][at].encode(), at))
    write_table(folder, files, info, rows=rows.take(order))
    return folder


def of_call(folder: Path, suffix: str) -> Path:
    return folder / "recordings" / "2024" / f"a call.wav{suffix}"


def read_audacity(folder: Path) -> dict[int | None, list[tuple[float, float, str]]]:
    found = {}
    for channel in (0, 1):
        lines = of_call(folder, f".channel-{channel}.txt").read_text().splitlines()
        found[channel] = [
            (float(start), float(end), label) for start, end, label in (line.split("\t") for line in lines)
        ]
    return found


def read_textgrid(folder: Path) -> dict[int | None, list[tuple[float, float, str]]]:
    grid = praatio.textgrid.openTextgrid(str(of_call(folder, ".TextGrid")), includeEmptyIntervals=False)
    assert (grid.minTimestamp, grid.maxTimestamp) == (0, 7.5)
    assert grid.tierNames == ("channel 0", "channel 1")
    return {at: [tuple(one) for one in grid.getTier(name).entries] for at, name in enumerate(grid.tierNames)}


def read_vtt(folder: Path) -> dict[int | None, list[tuple[float, float, str]]]:
    found: dict[int | None, list[tuple[float, float, str]]] = {0: [], 1: []}
    captions = webvtt.read(of_call(folder, ".vtt"))
    assert [one.start_in_seconds for one in captions] == sorted(one.start_in_seconds for one in captions)
    for one in captions:
        start, end = (
            sum(float(t) * 60**p for p, t in enumerate(reversed(clock.split(":")))) for clock in (one.start, one.end)
        )
        found[int(one.voice.removeprefix("channel "))].append((start, end, one.text))
    return found


def read_rttm(folder: Path) -> dict[int | None, list[tuple[float, float, str]]]:
    path = of_call(folder, ".rttm")
    ((uri, annotation),) = load_rttm(path).items()
    assert uri == "2024/a%20call.wav"
    found: dict[int | None, list[tuple[float, float, str]]] = {0: [], 1: []}
    for line in path.read_text().splitlines():
        _, _, channel, start, duration, _, _, label, *_ = line.split(" ")
        found[int(channel) - 1].append((float(start), float(start) + float(duration), label))
    tracks = sorted(
        (segment.start, segment.end, label) for segment, _, label in annotation.itertracks(yield_label=True)
    )
    assert tracks == sorted(one for many in found.values() for one in many)
    return found


READERS = {"audacity": read_audacity, "textgrid": read_textgrid, "vtt": read_vtt, "rttm": read_rttm}


@pytest.mark.parametrize("file_format", READERS)
def test_labels_are_read_back(file_format: str, table: Path, tmp_path: Path) -> None:
    """Channels are tracks apart, neighbours of one label are one stretch, and no stretch covers the next."""
    for least, expected in ((0.0, ALL), (0.65, SURE)):
        found = emotion_batch.export(table, tmp_path / f"{least}", file_format=file_format, min_confidence=least)
        assert READERS[file_format](tmp_path / f"{least}") == expected
        files = [path for path in (tmp_path / f"{least}").rglob("*") if path.is_file()]
        assert found.n_files == len(files) and found.n_bytes == sum(path.stat().st_size for path in files)
    assert not list((tmp_path / "0.0").rglob("silent*"))


def test_names_stay_below_the_folder_and_apart(table: Path, tmp_path: Path) -> None:
    """A name with marks of a format or a file system is escaped, and a long one cut; each recording keeps a file of its own."""
    emotion_batch.export(table, tmp_path / "out", file_format="vtt")
    names = sorted(path.relative_to(tmp_path / "out" / "recordings").as_posix() for path in tmp_path.rglob("*.vtt"))
    assert names[:2] == ["2024/a call.wav.vtt", "odd/%252E%3A %22x%22 %3Cb%3E 50 %25.mp3.vtt"]
    assert len(names) == 3 and len(names[2].encode()) < 255
    captions = webvtt.read(tmp_path / "out" / "recordings" / names[1])
    assert [(one.start, one.text) for one in captions] == [("00:00:00.000", "happy"), ("01:00:01.500", "angry")]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a call on two channels, of a recording in a folder and of one that was lost since; beside it, their labels."""
    folder = tmp_path_factory.mktemp("calls") / "archive"
    (folder / "2024").mkdir(parents=True)
    voices = [tone(7.3, 8_000, hertz=110 + 60 * channel, seed=channel) for channel in (0, 1)]
    soundfile.write(folder / "2024" / 'a "call".wav', np.stack(voices, axis=1), 8_000)
    soundfile.write(folder / "one.flac", tone(5.0, 22_050, hertz=150), 22_050)
    soundfile.write(folder / "lost.wav", tone(3.0, 16_000, hertz=130), 16_000)
    segments = Segments.windows(2).of_channels("each")
    emotion_batch.label(folder, folder.parent / "labels", model="tess-seed", segments=segments, workers=1)
    (folder / "lost.wav").unlink()
    return folder


@pytest.mark.parametrize("pad_s", [None, 0.25])
def test_a_clip_is_what_the_recording_has_there(pad_s: float | None, calls: Path, tmp_path: Path) -> None:
    """Its samples are the recording's, one by one, and the index says of each row what it is, and why one cannot be heard."""
    made = emotion_batch.export(calls.parent / "labels", tmp_path / "out", file_format="clips", pad_s=pad_s)
    index = pyarrow.csv.read_csv(tmp_path / "out" / "clips.csv").to_pylist()
    rows = pq.read_table(calls.parent / "labels").to_pylist()
    assert (made.n_recordings, made.n_rows, made.n_files) == (3, len(rows), len(rows) - 1)
    assert sorted((one["file"], one["channel"], one["start_s"]) for one in index) == sorted(
        (row["file"], row["channel"], row["start_s"]) for row in rows
    )
    assert [one["confidence"] for one in index] == sorted((one["confidence"] for one in index), reverse=True)
    for rank, one in enumerate(index, 1):
        if one["file"] == "lost.wav":
            assert not one["clip"] and "is not there" in one["error"]
            continue
        samples, rate_hz = soundfile.read(tmp_path / "out" / one["clip"], dtype="float32")
        whole, of_recording_hz = soundfile.read(calls / one["file"], dtype="float32", always_2d=True)
        start_s = max(0.0, one["start_s"] - (pad_s or 0))
        # As in a window, a sample of which a part lies before the start is the first one.
        start = int(start_s * rate_hz)
        end = start + round((one["end_s"] + (pad_s or 0) - start_s) * rate_hz - 1e-3)
        assert (rate_hz, one["clip_start_s"]) == (of_recording_hz, start_s)
        assert np.array_equal(samples, whole[start:end, one["channel"]])
        about = f"{rank:04d}-{one['emotion']}-{one['file'].replace('/', '_')}"
        name = f"clips/{about}-channel-{one['channel']}-{one['start_s']:.3f}s.wav"
        assert one["clip"] == name.replace('"', "%22")
    there = {f"clips/{path.name}" for path in (tmp_path / "out" / "clips").iterdir()}
    assert there == {one["clip"] for one in index if one["clip"]}


def test_clips_are_chosen(calls: Path, tmp_path: Path) -> None:
    """A condition and a number choose rows, the surest first; what holds for none, or is no condition, is one sentence."""
    labels = calls.parent / "labels"
    options = ("--where", "channel = 1 -- the caller", "--most", "2", "--json")
    made = call_command("export", labels, tmp_path / "out", "--format", "clips", *options)
    assert made.code == 0, made.err
    rows = [row for row in pq.read_table(labels).to_pylist() if row["channel"] == 1]
    rows.sort(key=lambda row: -row["confidence"])
    index = pyarrow.csv.read_csv(tmp_path / "out" / "clips.csv").to_pylist()
    assert [one["start_s"] for one in index] == [row["start_s"] for row in rows[:2]]
    assert (made.result["n_recordings"], made.result["n_rows"], made.result["n_files"]) == (1, 2, 3)
    for where, said in (
        ("emotion = 'bored'", "there is no label in the table .* for which this holds: emotion = 'bored'"),
        ("feeling = 'sad'", "DuckDB cannot answer this query"),
        ("file = 'lost.wav'", "none of the recordings can be heard, e.g. 'lost.wav'"),
    ):
        with pytest.raises(EmotionBatchError, match=said):
            emotion_batch.export(labels, tmp_path / "none", file_format="clips", where=where)
        assert not (tmp_path / "none").exists()
    for wrong in ({"file_format": "vtt", "where": "true"}, {"file_format": "csv", "most": 3}, {"pad_s": 1.0}):
        with pytest.raises(UsageError, match="where, most and pad require the format clips"):
            emotion_batch.export(labels, tmp_path / "none", **wrong)
    for wrong in ({"most": 0}, {"pad_s": -1.0}, {"pad_s": float("nan")}):
        with pytest.raises(UsageError, match="most must be at least 1, and pad from 0 to 600 seconds"):
            emotion_batch.export(labels, tmp_path / "none", file_format="clips", **wrong)


def test_calls_that_are_wrong(table: Path, tmp_path: Path) -> None:
    """Only label tables have something to hear, and a least confidence is for these formats."""
    write_table(tmp_path / "features", [], replace(INFO, kind=FEATURES, labels=(), model_id=None))
    with pytest.raises(UsageError, match="format vtt: it takes a label table, and this is a feature table"):
        emotion_batch.export(tmp_path / "features", tmp_path / "out", file_format="vtt", partial=True)
    with pytest.raises(UsageError, match="min_confidence requires one of the formats audacity, textgrid, vtt, rttm"):
        emotion_batch.export(table, tmp_path / "out", min_confidence=0.5)
    emotion_batch.export(table, tmp_path / "out", file_format="vtt")
    with pytest.raises(UsageError, match="it holds an export already"):
        emotion_batch.export(table, tmp_path / "out", file_format="rttm")
    emotion_batch.export(table, tmp_path / "out", file_format="rttm", force=True)
    assert not list((tmp_path / "out").rglob("*.vtt"))
