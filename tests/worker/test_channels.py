"""Tests of channels: each has the rows that a recording of it alone has, whatever the container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile
from support.encoding import encode
from support.recordings import tone

import emotion_batch
from emotion_batch import usage
from emotion_batch.errors import UsageError
from emotion_batch.settings import AnySettings, FeatureSettings, Segments, VoicesSettings
from emotion_batch.storage.archive import list_recordings
from emotion_batch.tables.verify import _wrong_starts
from emotion_batch.worker import isolation, recordings
from emotion_batch.worker.isolation import Limits
from emotion_batch.worker.reuse import merge

RATE = 16_000
AGENT, CUSTOMER = tone(5.3, RATE, hertz=120, seed=1), tone(5.3, RATE, hertz=210, seed=2)
SPREAD = np.stack([AGENT, CUSTOMER], axis=1)


def extract(archive: Path, segments: Segments, settings: AnySettings | None = None) -> tuple[list[dict], int]:
    """Return the rows of an archive, and how many recordings' channels differ though they were mixed."""
    listing = list_recordings(archive)
    (entries,) = listing.entries.to_batches()
    with usage.metered() as spent:
        rows = recordings.extract_rows(entries, listing.folder, settings or FeatureSettings(), segments)
    return rows.to_pylist(), spent.n_mixed


@pytest.mark.parametrize("settings", [FeatureSettings(), VoicesSettings()], ids=["seed", "voices"])
@pytest.mark.parametrize("segments", [Segments(0.5, 3), Segments.windows(2, 1)], ids=["segment", "windows"])
def test_a_channel_is_a_recording_of_it_alone(settings: AnySettings, segments: Segments, tmp_path: Path) -> None:
    """Rows of a channel are those of a mono file with the same samples, to the bit, and in the order of their starts."""
    call, alone = tmp_path / "call", tmp_path / "alone"
    for folder in (call, alone):
        folder.mkdir()
    soundfile.write(call / "call.wav", SPREAD, RATE)
    for number in range(2):
        soundfile.write(alone / f"{number}.wav", SPREAD[:, number], RATE)
    apart = Segments(segments.offset_s, segments.duration_s, segments.hop_s, channels="each")
    found, _ = extract(call, apart, settings)
    assert [row["start_s"] for row in found] == sorted(row["start_s"] for row in found)
    expected, _ = extract(alone, segments, settings)
    assert {row["channel"] for row in expected} == {None}
    ids = ("file", "channel", "channels")
    for number in range(2):
        mine = [row for row in found if row["channel"] == number]
        others = [row for row in expected if row["file"] == f"{number}.wav"]
        assert [{k: v for k, v in row.items() if k not in ids} for row in mine] == [
            {k: v for k, v in row.items() if k not in ids} for row in others
        ]
        assert mine and all(row["channels"] == 2 for row in mine)


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("call.mp3", "mp3", "libmp3lame"),
        ("call.m4a", "mp4", "aac"),
        ("call.ogg", "ogg", "libopus"),
        ("call.flac", "flac", "flac"),
        ("call.wav", "wav", "pcm_mulaw"),
    ],
)
def test_channels_of_each_container(name: str, container: str, codec: str, tmp_path: Path) -> None:
    """A channel is heard apart in every kind of file: its pitch is its own."""
    rate = 48_000 if codec == "libopus" else RATE
    samples = np.stack([tone(4.0, rate, hertz=120), tone(4.0, rate, hertz=210)], axis=1)
    (tmp_path / name).write_bytes(encode(samples, rate, container, codec))
    rows, _ = extract(tmp_path, Segments(0.5, 3, channels="each"), VoicesSettings())
    assert [row["channel"] for row in rows] == [0, 1]
    for row, hertz in zip(rows, (120, 210), strict=True):
        assert row["status"] == "ok"
        assert abs(np.median(row["f0_hz"]) / hertz - 1) < 0.02


def test_numbers_of_channels(tmp_path: Path) -> None:
    """Only the channels that were named have rows; one that a recording lacks has a row that says so."""
    wide = np.stack([tone(2.0, RATE, hertz=100 + 20 * number) for number in range(12)], axis=1)
    soundfile.write(tmp_path / "meeting.wav", wide, RATE)
    soundfile.write(tmp_path / "mono.wav", AGENT, RATE)
    (tmp_path / "text.wav").write_text("no audio")
    rows, _ = extract(tmp_path, Segments.windows(1).of_channels((11, 0)))
    assert [(row["file"], row["channel"], row["start_s"], row["status"]) for row in rows[:5]] == [
        ("meeting.wav", 0, 0.0, "ok"),
        ("meeting.wav", 11, 0.0, "ok"),
        ("meeting.wav", 0, 1.0, "ok"),
        ("meeting.wav", 11, 1.0, "ok"),
        ("mono.wav", 0, 0.0, "ok"),
    ]
    assert (rows[5]["channel"], rows[5]["status"]) == (11, "unreadable")
    assert rows[5]["error"] == "the recording has 1 channel, numbered from 0"
    assert [(row["channel"], row["status"]) for row in rows[6:11]] == [(0, "ok")] * 5
    assert [(row["channel"], row["status"]) for row in rows[11:]] == [(None, "not_audio")]
    rows, _ = extract(tmp_path, Segments(0.5, 3, channels=[1]))
    assert [row["status"] for row in rows] == ["ok", "unreadable", "not_audio"]


@pytest.mark.parametrize(
    ("samples", "n_mixed"),
    [
        pytest.param(SPREAD, 1, id="two voices"),
        pytest.param(np.stack([AGENT, AGENT], axis=1), 0, id="the same twice"),
        pytest.param(np.stack([AGENT, 0.3 * AGENT + 0.2], axis=1), 0, id="quieter, with an offset"),
        pytest.param(np.stack([AGENT, -AGENT], axis=1), 1, id="inverted, which cancels"),
        pytest.param(np.stack([AGENT, 0 * AGENT], axis=1), 1, id="one silent"),
        pytest.param(np.zeros((RATE, 2), np.float32), 0, id="both silent"),
        pytest.param(AGENT, 0, id="mono"),
        pytest.param(np.stack([AGENT] * 11 + [CUSTOMER], axis=1)[:, ::-1], 1, id="one of twelve"),
    ],
)
def test_a_mix_of_channels_that_differ_is_counted(samples: np.ndarray, n_mixed: int, tmp_path: Path) -> None:
    """A mix hides who speaks, so it is counted; channels that are heard apart are not."""
    soundfile.write(tmp_path / "call.wav", samples, RATE, subtype="FLOAT")
    for settings in (FeatureSettings(), VoicesSettings()):
        assert extract(tmp_path, Segments(0, 3), settings)[1] == n_mixed
        assert extract(tmp_path, Segments.windows(1), settings)[1] == n_mixed
        assert extract(tmp_path, Segments(0, 3, channels="each"), settings)[1] == 0


def test_a_child_gives_the_same_rows_of_channels(tmp_path: Path) -> None:
    """Decoding in a child process changes neither rows nor counts, also where a recording is cut."""
    data = encode(SPREAD, RATE, "wav", "pcm_s16le")
    (tmp_path / "whole.wav").write_bytes(data)
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    for segments in (Segments.windows(1), Segments.windows(1).of_channels("each")):
        listing = list_recordings(tmp_path)
        (entries,) = listing.entries.to_batches()
        found = []
        for do in (recordings.extract_rows, isolation.extract_isolated):
            more = (Limits(), pytest.fail) if do is isolation.extract_isolated else ()
            with usage.metered() as spent:
                rows: pa.Table = do(entries, listing.folder, FeatureSettings(), segments, *more)
            found.append((rows, spent.n_mixed))
        assert found[0][0].equals(found[1][0])
        assert found[0][1] == found[1][1] == (segments.channels == "mix")


def test_channels_at_scale(tmp_path: Path) -> None:
    """A table of channels is whole to verify, equal on one worker and two, and labels go to the channels."""
    archive = tmp_path / "calls"
    archive.mkdir()
    for number in range(8):
        soundfile.write(archive / f"{number}.wav", np.roll(SPREAD, 500 * number, axis=0), RATE)
    soundfile.write(archive / "mono.wav", CUSTOMER, RATE)
    (archive / "text.wav").write_text("no audio")
    for window, n_ok in ((2, 8 * 6 + 3), (None, 8 * 2 + 1)):
        tables = []
        for workers in (1, 2) if window else (2,):
            table = tmp_path / f"labels-{workers}-{window}"
            summary = emotion_batch.label(archive, table, window=window, channels="each", workers=workers)
            assert summary.counts.by_status == {"ok": n_ok, "not_audio": 1}
            assert emotion_batch.verify(table, deep=True).is_whole
            tables.append(emotion_batch.query(table, "SELECT * FROM labels ORDER BY file, start_s, channel"))
        assert all(one.equals(tables[0]) for one in tables)
        report = emotion_batch.report(table, output=tmp_path / "report.html")
        assert report.figures.coverage.n_labelled == 9
    mixed = emotion_batch.label(archive, tmp_path / "mixed", workers=1)
    assert mixed.spent.n_mixed == 8
    one = emotion_batch.label(archive, tmp_path / "one", channels=[1], workers=1)
    assert one.counts.by_status == {"ok": 8, "not_audio": 1, "unreadable": 1}
    planned = emotion_batch.plan(archive, channels="each", sample_s=1)
    assert planned.n_recordings == 10


def test_a_model_is_judged_on_channels(tmp_path: Path) -> None:
    """Labels of channels are learnt and judged by channel, and what is changed for robustness is the channel itself."""
    archive, lines = tmp_path / "calls", ["file,channel,emotion,speaker"]
    archive.mkdir()
    for number in range(12):
        angry, calm = tone(3.0, RATE, hertz=220 + number), 0.2 * tone(3.0, RATE, hertz=110 + number)
        sides = [angry, calm] if number % 2 else [calm, angry]
        soundfile.write(archive / f"{number}.wav", np.stack(sides, axis=1), RATE)
        lines += [
            f"{number}.wav,{channel},{'angry' if side is angry else 'calm'},{number % 3}"
            for channel, side in enumerate(sides)
        ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    emotion_batch.extract(archive, tmp_path / "features", channels="each", workers=1)
    settings = emotion_batch.TrainingSettings(labels=f"table:{tmp_path}/labels.csv", held_out=0, max_folds=0, epochs=60)
    card = emotion_batch.train(tmp_path / "features", tmp_path / "bundle", settings=settings)
    assert card.training["n_by_label"] == {"angry": 12, "calm": 12}
    assert card.metrics["training"]["uar"] > 0.9
    found = emotion_batch.evaluate(
        tmp_path / "bundle", tmp_path / "features", labels=f"table:{tmp_path}/labels.csv", robustness=12
    )
    assert found.robustness is not None
    assert found.robustness["as_is"]["uar"] > 0.9


def test_rows_that_are_kept_have_their_places(tmp_path: Path) -> None:
    """Rows of channels that are kept and rows that are made give the order of rows that are all made, those of lacking channels too."""
    soundfile.write(tmp_path / "call.wav", SPREAD, RATE)
    soundfile.write(tmp_path / "mono.wav", AGENT, RATE)
    data = encode(SPREAD, RATE, "wav", "pcm_s16le")
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    listing = list_recordings(tmp_path)
    (entries,) = listing.entries.to_batches()
    for channels in ("each", (0, 1), (1, 5)):
        rows = recordings.extract_rows(
            entries, listing.folder, FeatureSettings(), Segments.windows(2).of_channels(channels)
        )
        is_kept = pc.equal(rows["file"], "call.wav")
        assert merge(entries, rows.filter(is_kept), rows.filter(pc.invert(is_kept))).equals(rows.combine_chunks())


@pytest.mark.parametrize("channels", ["each", (0, 1)])
@pytest.mark.parametrize(
    "is_lost",
    [
        lambda row: row["channel"] == 1,
        lambda row: row["channel"] == 0,
        lambda row: (row["channel"], row["start_s"]) == (1, 2.0),
        lambda row: row["start_s"] == 2.0,
    ],
    ids=["a channel", "the first channel", "one window of a channel", "a window"],
)
def test_a_row_that_is_lost_is_found(channels: object, is_lost: Callable[[dict], bool], tmp_path: Path) -> None:
    """Of a table whose channels are known, each row that a part lacks is found; of all channels, only the last may be lost whole."""
    soundfile.write(tmp_path / "call.wav", SPREAD, RATE)
    listing = list_recordings(tmp_path)
    (entries,) = listing.entries.to_batches()
    segments = Segments.windows(2).of_channels(channels)
    rows = recordings.extract_rows(entries, listing.folder, FeatureSettings(), segments)
    assert _wrong_starts(segments, rows) is None
    left = rows.filter(pa.array([not is_lost(row) for row in rows.to_pylist()]))
    is_whole_channel = channels == "each" and 1 not in left["channel"].to_pylist()
    assert (_wrong_starts(segments, left) is None) == is_whole_channel


def test_settings_of_channels() -> None:
    """Channels are part of what identifies segments; a mix has the identity that it always had."""
    assert Segments().to_dict() == {"offset_s": 0.5, "duration_s": 3.0}
    for channels in ("each", (0, 3)):
        segments = Segments.windows(4, 2).of_channels(channels)
        assert Segments.from_dict(segments.to_dict()) == segments
        assert segments.segment_id != Segments.windows(4, 2).segment_id
    assert Segments(channels=[1, 0, 1]).channels == (0, 1)
    assert Segments(channels=[1, 0]).to_options().endswith(" --channels 0,1")
    for wrong in ("both", [], [-1], [1.5], [True], ["0"]):
        with pytest.raises(UsageError, match="channels must be mix, each or numbers of channels from 0"):
            Segments(channels=wrong)
