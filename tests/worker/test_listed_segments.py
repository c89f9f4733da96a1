"""Tests of listed segments: a recording has exactly the rows of its list, each with its own status."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from support.encoding import encode
from support.recordings import tone
from support.tables import local_rows

import emotion_batch
from emotion_batch.errors import Status, UsageError
from emotion_batch.settings import AnySettings, FeatureSettings, Segments, VoicesSettings
from emotion_batch.storage.archive import list_recordings
from emotion_batch.tables.verify import _wrong_listed
from emotion_batch.worker import isolation, recordings
from emotion_batch.worker.isolation import Limits

RATE = 16_000
CALL = np.stack([tone(6.0, RATE, hertz=120, seed=1), tone(6.0, RATE, hertz=210, seed=2)], axis=1)


def write_archive(folder: Path) -> Path:
    folder.mkdir()
    soundfile.write(folder / "call.wav", CALL, RATE)
    soundfile.write(folder / "mono.wav", CALL[:, 0], RATE)
    data = encode(CALL, RATE, "wav", "pcm_s16le")
    (folder / "cut.wav").write_bytes(data[: len(data) // 2])
    (folder / "text.wav").write_text("no audio")
    return folder


def extract(
    archive: Path,
    listed: Path,
    channels: object = "mix",
    settings: AnySettings | None = None,
    *,
    isolated: bool = False,
) -> tuple[pa.RecordBatch, pa.Table]:
    segments = Segments(0.0, 6.0, None, channels, str(listed))
    listing = list_recordings(archive, segments=segments)
    (entries,) = listing.entries.combine_chunks().to_batches()
    do = isolation.extract_isolated if isolated else recordings.extract_rows
    more = (Limits(), pytest.fail) if isolated else ()
    return entries, do(entries, listing.folder, settings or FeatureSettings(), segments, *more)


LIST = """file,start_s,end_s,channel,speaker
call.wav,4.0,5.5,1,Ann
call.wav,0.7,2.1,0,Ben
call.wav,1.0,3.0,1,Ann
call.wav,0.7,2.1,0,Ben
call.wav,3.0,3.0,0,Ben
call.wav,3.0,2.0,0,Ben
call.wav,5.0,9.0,0,
call.wav,6.5,7.0,0,Ben
call.wav,1.0,2.0,2,Cat
cut.wav,0.5,1.0,0,Ben
cut.wav,2.5,3.5,0,Ben
cut.wav,4.0,5.0,1,Ann
cut.wav,1.0,2.0,1,Ann
gone.wav,0,1,0,Ben
gone.wav,1,2,1,Ann
text.wav,0,1,0,Ben
mono.wav,5.5,,0,
"""
EXPECTED = [
    ("call.wav", 1, 4.0, 5.5, "Ann", "ok"),
    ("call.wav", 0, 0.7, 2.1, "Ben", "ok"),
    ("call.wav", 1, 1.0, 3.0, "Ann", "ok"),
    ("call.wav", 0, 0.7, 2.1, "Ben", "ok"),
    ("call.wav", 0, 3.0, None, "Ben", "too_short"),
    ("call.wav", 0, 3.0, None, "Ben", "too_short"),
    ("call.wav", 0, 5.0, 6.0, None, "ok"),
    ("call.wav", 0, 6.5, None, "Ben", "too_short"),
    ("call.wav", 2, 1.0, None, "Cat", "unreadable"),
    ("cut.wav", 0, 0.5, 1.0, "Ben", "ok"),
    ("cut.wav", 0, 2.5, None, "Ben", "truncated"),
    ("cut.wav", 1, 4.0, None, "Ann", "truncated"),
    ("cut.wav", 1, 1.0, 2.0, "Ann", "ok"),
    ("gone.wav", 0, 0.0, None, "Ben", "vanished"),
    ("gone.wav", 1, 1.0, None, "Ann", "vanished"),
    ("mono.wav", 0, 5.5, 6.0, None, "ok"),
    ("text.wav", 0, 0.0, None, "Ben", "not_audio"),
]
COLUMNS = ("file", "channel", "start_s", "end_s", "speaker", "status")


@pytest.mark.parametrize("isolated", [False, True], ids=["here", "in a child"])
def test_a_recording_has_the_rows_of_its_list(isolated: bool, tmp_path: Path) -> None:
    """They come in the order of the list, twice if they stand there twice, and each has its own status and reason."""
    archive = write_archive(tmp_path / "calls")
    (tmp_path / "turns.csv").write_text(LIST)
    entries, rows = extract(archive, tmp_path / "turns.csv", isolated=isolated)
    found = rows.to_pylist()
    assert [tuple(row[name] for name in COLUMNS) for row in found] == EXPECTED
    assert found[4]["error"] == "the segment starts at 3 s and ends at 3 s"
    assert found[8]["error"] == "the recording has 2 channels, numbered from 0"
    assert found[7]["error"] == "the recording ends at 6.000 s, its segment starts at 6.5 s"
    assert _wrong_listed(entries, rows) is None


@pytest.mark.parametrize("settings", [FeatureSettings(), VoicesSettings()], ids=["seed", "voices"])
def test_a_listed_segment_is_that_of_a_stretch(settings: AnySettings, tmp_path: Path) -> None:
    """Its features are those of the same stretch of a recording of the channel alone, in any order and overlap, to the bit."""
    archive = write_archive(tmp_path / "calls")
    stretches = [(4.0, 1.5, 1), (0.7, 1.4, 0), (1.0, 2.0, 1), (1.5, 2.0, 1), (0.7, 1.4, 0), (2.0, 2.0, 1)]
    lines = [f"call.wav,{start},{round(start + duration, 9)},{channel}" for start, duration, channel in stretches]
    (tmp_path / "turns.csv").write_text("\n".join(["file,start_s,end_s,channel", *lines]))
    _, rows = extract(archive, tmp_path / "turns.csv", settings=settings)
    for row, (start, duration, channel) in zip(rows.to_pylist(), stretches, strict=True):
        (tmp_path / "alone").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "alone" / "call.wav", CALL[:, channel], RATE)
        listing = list_recordings(tmp_path / "alone")
        (entries,) = listing.entries.to_batches()
        (alone,) = recordings.extract_rows(entries, listing.folder, settings, Segments(start, duration)).to_pylist()
        ids = ("channel", "channels", "speaker", "end_s")
        assert {k: v for k, v in row.items() if k not in ids} == {k: v for k, v in alone.items() if k not in ids}
        assert row["end_s"] == pytest.approx(alone["end_s"])


def test_channels_of_segments_without_one(tmp_path: Path) -> None:
    """Segments that name no channel are those of the mix, or of each channel, or of those that were asked for."""
    archive = write_archive(tmp_path / "calls")
    (tmp_path / "turns.csv").write_text("file,start_s,end_s\ncall.wav,1,2\ncall.wav,1,2\nmono.wav,0,1\ntext.wav,0,1\n")
    expected = {
        "mix": [None, None, None, None],
        "each": [0, 1, 0, 1, 0, None],
        (1,): [1, 1, 1, None],
    }
    for channels, numbers in expected.items():
        entries, rows = extract(archive, tmp_path / "turns.csv", channels)
        assert rows["channel"].to_pylist() == numbers
        assert _wrong_listed(entries, rows) is None
        for lost in range(rows.num_rows):
            kept = rows.filter(pa.array([number != lost for number in range(rows.num_rows)]))
            if kept["file"].unique().equals(rows["file"].unique()):
                assert _wrong_listed(entries, kept) is not None
    assert rows["status"].to_pylist() == ["ok", "ok", "unreadable", "not_audio"]


def test_a_row_that_is_lost_or_moved_is_found(tmp_path: Path) -> None:
    """A part that lacks a row of the list, or has one in another place or of another speaker, is not whole."""
    archive = write_archive(tmp_path / "calls")
    (tmp_path / "turns.csv").write_text(LIST)
    entries, rows = extract(archive, tmp_path / "turns.csv")
    for lost in range(14):
        assert _wrong_listed(entries, rows.filter(pa.array([one != lost for one in range(rows.num_rows)]))) is not None
    swapped = [1, 0, *range(2, rows.num_rows)]
    assert _wrong_listed(entries, rows.take(pa.array(swapped))) is not None
    speakers = [*rows["speaker"].to_pylist()[:-1], "Dan"]
    assert _wrong_listed(entries, rows.set_column(4, "speaker", pa.array(speakers))) is not None


def test_a_table_of_listed_segments(tmp_path: Path) -> None:
    """One worker, two, and a list that changes give the rows of the list; speakers come through to labels; others keep their rows."""
    archive, turns = write_archive(tmp_path / "calls"), tmp_path / "turns.csv"
    turns.write_text(LIST)
    kept = tmp_path / "features"
    for workers in (1, 2):
        table = tmp_path / f"labels-{workers}"
        summary = emotion_batch.label(archive, table, segments=turns, workers=workers, keep_features=kept)
        assert summary.counts.by_status["ok"] == 8
        assert emotion_batch.verify(table, deep=True).is_whole
        rows = local_rows(table).to_pylist()
        assert [tuple(row[name] for name in COLUMNS) for row in rows] == EXPECTED
        assert all((row["emotion"] is not None) == (row["status"] == Status.OK) for row in rows)
    assert [row["speaker"] for row in local_rows(kept).to_pylist()] == [row[4] for row in EXPECTED]
    # The list names another segment of one recording: only that is done again, in the same table.
    turns.write_text(LIST.replace("mono.wav,5.5,,0,", "mono.wav,5.0,5.9,0,Eve"))
    summary = emotion_batch.resume(table, workers=1)
    assert (summary.n_changed, summary.n_new) == (1, 0)
    changed = [row if row[0] != "mono.wav" else ("mono.wav", 0, 5.0, 5.9, "Eve", "ok") for row in EXPECTED]
    assert [tuple(row[name] for name in COLUMNS) for row in local_rows(table).to_pylist()] == changed
    assert emotion_batch.verify(table, deep=True).is_whole
    # Nothing is left, although recordings of the list are missing.
    assert emotion_batch.resume(table, workers=1).n_shards_done == 0
    # Another list is another table.
    (tmp_path / "other.csv").write_text(LIST)
    with pytest.raises(
        UsageError, match=r"was made with --segments .*turns.csv, and this call has --segments .*other.csv"
    ):
        emotion_batch.label(archive, table, segments=tmp_path / "other.csv")
    found = emotion_batch.label_recording(archive / "call.wav", segments=turns)
    assert [(one.channel, one.start_s, one.status) for one in found] == [
        (row[1], row[2], row[5]) for row in EXPECTED[:9]
    ]
    (tmp_path / "other.csv").write_text("file,start_s,end_s\nmono.wav,0,1\n")
    with pytest.raises(UsageError, match="lists no segment of it"):
        emotion_batch.label_recording(archive / "call.wav", segments=tmp_path / "other.csv")
    planned = emotion_batch.plan(archive, segments=turns, sample_s=1)
    assert (planned.n_recordings, planned.n_rows) == (5, len(EXPECTED))
