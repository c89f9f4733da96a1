"""Tests of one shard's extraction, without Dask."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from support.recordings import tone, write_odd_archive

from emotion_batch.errors import StorageError
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage import retry
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.entries import ENTRY_SCHEMA, Entry, locate_local
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.attempts import Attempt
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import complete_shards, read_part
from emotion_batch.tables.schema import FEATURES, TableInfo, feature_schema
from emotion_batch.tables.table import create_info
from emotion_batch.worker.isolation import Limits
from emotion_batch.worker.job import Job, TablePlace
from emotion_batch.worker.recordings import extract_recording, extract_rows
from emotion_batch.worker.task import Task

SETTINGS, SEGMENTS = FeatureSettings(), Segments()


def rows_of(archive: Path, segments: Segments = SEGMENTS) -> pa.Table:
    listing = list_recordings(archive)
    return extract_rows(listing.entries.to_batches()[0], listing.folder, SETTINGS, segments)


@pytest.mark.filterwarnings("ignore:n_fft=.* is too large:UserWarning")
def test_every_odd_recording_has_its_row(tmp_path: Path) -> None:
    """Each recording gets one row with the status of the design; those that are `ok` have librosa's features."""
    expected = write_odd_archive(tmp_path)
    listing = list_recordings(tmp_path)
    rows = rows_of(tmp_path)
    assert rows.schema == feature_schema(SETTINGS)
    found = rows.to_pylist()
    assert {row["file"]: row["status"] for row in found} == expected
    places = {entry["file"]: locate_local(listing.folder, Entry(**entry)) for entry in listing.entries.to_pylist()}
    for row in found:
        assert (row["mfcc"] is None) == (row["status"] != "ok") == (row["error"] is not None) == (row["end_s"] is None)
        if row["status"] == "ok":
            with open(places[row["file"]], "rb") as stream:
                samples, rate = librosa.load(stream, offset=0.5, duration=3)
            mfcc = np.mean(librosa.feature.mfcc(y=samples, sr=rate, n_mfcc=40).T, axis=0)
            np.testing.assert_allclose(row["mfcc"], mfcc, atol=1e-3, err_msg=row["file"])
            assert row["end_s"] == pytest.approx(min(3.5, row["duration_s"]))


def test_what_changed_or_went_since_it_was_listed(tmp_path: Path) -> None:
    """A recording that is not what was listed has no features, so that no row claims what it did not see."""
    for name in ("same.wav", "longer.wav", "later.wav", "gone.wav"):
        (tmp_path / name).write_bytes(b"no audio")
    listing = list_recordings(tmp_path)
    (tmp_path / "longer.wav").write_bytes(b"no audio at all")
    os.utime(tmp_path / "later.wav", (1, 1))
    (tmp_path / "gone.wav").unlink()
    rows = extract_rows(listing.entries.to_batches()[0], listing.folder, SETTINGS, SEGMENTS)
    assert dict(zip(rows["file"].to_pylist(), rows["status"].to_pylist(), strict=True)) == {
        "gone.wav": "vanished",
        "later.wav": "changed",
        "longer.wav": "changed",
        "same.wav": "not_audio",
    }


def test_a_folder_or_pipe_called_like_a_recording_holds_nothing_up(tmp_path: Path) -> None:
    """What cannot be read as a file has a status at once."""
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    statuses = [
        [
            row.status
            for row in extract_recording(Entry(name, None, None, None), Folder.of(tmp_path), None, SETTINGS, SEGMENTS)
        ]
        for name in ("folder.wav", "pipe.wav")
    ]
    assert statuses == [["not_audio"], ["empty"]]


def test_a_fault_that_nobody_thought_of_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception from the libraries, memory included, is one recording's status and not the shard's end."""
    outcomes: Iterator[Exception | None] = iter([ValueError("odd\nmore"), MemoryError(), None])

    def resample(samples: np.ndarray, *_: object) -> np.ndarray:
        if (error := next(outcomes)) is not None:
            raise error
        return samples

    monkeypatch.setattr("emotion_batch.features.audio.resample", resample)
    for name in "abc":
        _write_wav(tmp_path / f"{name}.wav")
    rows = rows_of(tmp_path)
    assert rows["status"].to_pylist() == ["unreadable", "memory", "ok"]
    assert rows["error"].to_pylist() == ["ValueError: odd", "the segment does not fit into memory", None]


def test_a_shard_publishes_its_part(tmp_path: Path) -> None:
    """A shard's task reads its entries from the manifest, writes one part and hands back a small receipt."""
    expected = write_odd_archive(tmp_path / "archive")
    table = Folder.of(tmp_path / "table")
    listing = list_recordings(tmp_path / "archive")
    info = TableInfo(FEATURES, listing.folder.url, SETTINGS, SEGMENTS)
    create_info(table, info)
    manifest = Manifest(table)
    manifest.grow(listing.entries, SEGMENTS)
    job = Job(features=TablePlace(table, info), archive=listing.folder)
    receipts = {shard: job.do_shard(Task(shard, entry), "run") for shard, entry in manifest.shards.items()}
    assert sum(receipt.counts.n_recordings for receipt in receipts.values()) == len(expected)
    failed = {status for status in expected.values() if status != "ok"}
    assert set().union(*(receipt.examples for receipt in receipts.values())) == failed
    done = complete_shards(table, info, manifest.shards)
    assert {shard: footer.counts for shard, footer in done.items()} == {s: r.counts for s, r in receipts.items()}
    parts = pa.concat_tables([read_part(table, shard) for shard in sorted(done)])
    # How much of the recordings was heard, and how long they are, a recording once.
    ok = [row for row in parts.to_pylist() if row["status"] == "ok"]
    assert sum(receipt.audio_s for receipt in receipts.values()) == pytest.approx(
        sum(row["end_s"] - row["start_s"] for row in ok)
    )
    lengths = {row["file"]: row["duration_s"] for row in ok}
    assert sum(receipt.recorded_s for receipt in receipts.values()) == pytest.approx(sum(lengths.values()))
    assert parts.replace_schema_metadata(None).equals(rows_of(tmp_path / "archive"))


@pytest.mark.filterwarnings("ignore:n_fft=.* is too large:UserWarning")
@pytest.mark.parametrize("hop_s", [3.0, 1.0, 4.5], ids=["end to end", "overlapping", "with gaps"])
@pytest.mark.parametrize(
    ("name", "rate", "subtype"),
    [("a.wav", 24_414, "PCM_16"), ("a.wav", 48_000, "FLOAT"), ("a.flac", 16_000, "PCM_16"), ("a.mp3", 44_100, None)],
)
def test_windows_are_librosas(tmp_path: Path, name: str, rate: int, subtype: str | None, hop_s: float) -> None:
    """Each window, the short last one too, has the features and the stretch of `librosa.load(offset, duration)`."""
    path = tmp_path / name
    soundfile.write(path, np.stack([tone(10.4, rate), tone(10.4, rate, hertz=300)], axis=1), rate, subtype=subtype)
    rows = rows_of(tmp_path, Segments.windows(3, hop_s)).to_pylist()
    duration_s = rows[0]["duration_s"]
    assert [row["start_s"] for row in rows] == [hop_s * k for k in range(20) if hop_s * k < duration_s]
    for row in rows:
        assert row["status"] == "ok"
        assert row["end_s"] == pytest.approx(min(row["start_s"] + 3, duration_s))
        samples, sr = librosa.load(path, offset=row["start_s"], duration=3)
        mfcc = np.mean(librosa.feature.mfcc(y=samples, sr=sr, n_mfcc=40).T, axis=0)
        np.testing.assert_allclose(row["mfcc"], mfcc, atol=1e-3, err_msg=str(row["start_s"]))


@pytest.mark.parametrize("hop_s", [3.0, 1.0, 4.5], ids=["end to end", "overlapping", "with gaps"])
@pytest.mark.parametrize(
    ("name", "rate"), [("a.mp3", 44_100), ("a.mp3", 16_000), ("a.ogg", 44_100), ("a.flac", 44_100)]
)
def test_windows_of_clean_sounds_are_librosas(tmp_path: Path, name: str, rate: int, hop_s: float) -> None:
    """A sweep without noise, in which every damaged sample shows, gives librosa's windows of the whole from encoded files."""
    seconds = np.arange(12 * rate) / rate
    soundfile.write(tmp_path / name, 0.3 * np.sin(2 * np.pi * (200 + 15 * seconds) * seconds), rate)
    rows = rows_of(tmp_path, Segments.windows(3, hop_s)).to_pylist()
    whole, _ = soundfile.read(tmp_path / name, dtype="float32")
    for row in rows:
        if name.endswith((".ogg", ".mp3")):
            # libsndfile, and librosa with it, seeks to some other sample in the last page of Vorbis, and leaves out frames of
            # MP3 that lean on those before: FFmpeg's word holds, which is that of the whole.
            stretch = whole[int(row["start_s"] * rate) :][: 3 * rate]
            samples, sr = librosa.resample(stretch, orig_sr=rate, target_sr=22_050), 22_050
        else:
            samples, sr = librosa.load(tmp_path / name, offset=row["start_s"], duration=3)
        expected = np.mean(librosa.feature.mfcc(y=samples, sr=sr, n_mfcc=40).T, axis=0)
        np.testing.assert_allclose(row["mfcc"], expected, atol=1e-3, err_msg=str(row["start_s"]))


def test_windows_end_where_the_recording_does(tmp_path: Path) -> None:
    """A length that is a multiple of the hop has no window more, though 3 * 0.7 is less than 2.1."""
    soundfile.write(tmp_path / "a.wav", tone(2.1, 24_000), 24_000)
    assert [row["start_s"] for row in rows_of(tmp_path, Segments.windows(0.7)).to_pylist()] == [0, 0.7, 1.4]


def test_a_sample_between_frames_is_not_overlooked(tmp_path: Path) -> None:
    """With a hop longer than a frame, NaN that no frame holds is still found."""
    samples = tone(2.0)
    samples[30_000] = np.nan
    _write_wav(tmp_path / "a.wav", samples, "FLOAT")
    settings = FeatureSettings(sample_rate=24_414, n_fft=512, hop_length=20_000, n_mels=40)
    listing = list_recordings(tmp_path)
    rows = extract_rows(listing.entries.to_batches()[0], listing.folder, settings, SEGMENTS)
    assert rows["status"].to_pylist() == ["not_finite"]


def test_a_recording_that_fails_midway_keeps_its_good_windows(tmp_path: Path) -> None:
    """Windows before the cut have features, the rest is one row with its reason; one bad window costs itself alone."""
    samples = tone(10.0)
    _write_wav(tmp_path / "cut.wav", samples)
    data = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: int(len(data) * 0.65)])
    samples[int(4.5 * 24_414)] = np.nan
    _write_wav(tmp_path / "nan.wav", samples, "FLOAT")
    _write_wav(tmp_path / "none.wav", samples[:0])
    found = [(row["file"], row["start_s"], row["status"]) for row in rows_of(tmp_path, Segments.windows(2)).to_pylist()]
    assert found == [
        ("cut.wav", 0, "ok"),
        ("cut.wav", 2, "ok"),
        ("cut.wav", 4, "ok"),
        ("cut.wav", 6, "truncated"),
        ("nan.wav", 0, "ok"),
        ("nan.wav", 2, "ok"),
        ("nan.wav", 4, "not_finite"),
        ("nan.wav", 6, "ok"),
        ("nan.wav", 8, "ok"),
        ("none.wav", 0, "empty"),
    ]


def test_a_length_that_is_not_said_ends_windows_where_the_samples_end(tmp_path: Path) -> None:
    """A stream whose header has no length gives the windows that are in it."""
    _write_wav(tmp_path / "whole.wav", tone(5.0))
    data = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "stream.wav").write_bytes(data[:40] + b"\xff\xff\xff\xff" + data[44:])
    rows = rows_of(tmp_path, Segments.windows(2)).to_pylist()
    stream, whole = ([row for row in rows if row["file"] == name] for name in ("stream.wav", "whole.wav"))
    assert [row["end_s"] for row in stream] == [2, 4, 5] == [row["end_s"] for row in whole]
    assert [row["mfcc"] for row in stream] == [row["mfcc"] for row in whole]


def _write_wav(path: Path, samples: np.ndarray | None = None, subtype: str = "PCM_16") -> None:
    soundfile.write(path, tone(1.0) if samples is None else samples, 24_414, subtype=subtype)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """An extraction of three recordings, which are also its witnesses."""
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", tone(1.0, 8_000), 8_000)
    entries = [Entry(f"{name}.wav", None, None, None) for name in "abc"]
    info = TableInfo(FEATURES, os.fspath(tmp_path), SETTINGS, SEGMENTS)
    archive = Folder.of(tmp_path)
    place = TablePlace(archive.folder("table"), info)
    return Job(features=place, archive=archive, limits=Limits(2.0), witnesses=tuple(entries))


def entries_of(*names: str) -> pa.RecordBatch:
    columns = [list(names), *([None] * len(names) for _ in range(3))]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA)


def test_a_place_that_fails_for_one_recording_is_its_own_fault(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that its store refuses for good has a row that says so, as long as others can be read."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,))
    # No process listens at the discard port, and no client has the other name.
    names = ("a.wav", "http://127.0.0.1:9/x.wav", "odd://host/x.wav", "c.wav")
    found = job.extract(entries_of(*names), Attempt(False, 0.0))
    assert found["status"].to_pylist() == ["ok", "unreadable", "unreadable", "ok"]
    assert "odd" in found["error"].to_pylist()[2]


def test_an_archive_that_is_gone_raises(job: Job, tmp_path: Path) -> None:
    """Recordings that vanish are rows as long as one witness is there; with none, the archive is what is missing."""
    (tmp_path / "a.wav").unlink()
    gone = entries_of("a.wav", "never.wav")
    assert job.extract(gone, Attempt(False, 0.0))["status"].to_pylist() == ["vanished", "vanished"]
    for name in "bc":
        (tmp_path / f"{name}.wav").unlink()
    with pytest.raises(StorageError, match=r"which was there before.*it does not exist"):
        job.extract(gone, Attempt(False, 0.0))
    assert replace(job, witnesses=()).extract(gone, Attempt(False, 0.0)).num_rows == 2


def test_an_archive_that_hangs_raises(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that never answers is no recording's fault, and the worker does not wait for it forever."""
    monkeypatch.setattr("emotion_batch.worker.job.peek", lambda *_: time.sleep(3))
    with pytest.raises(StorageError, match="it does not answer") as caught:
        job._check_archive(None)
    assert caught.value.is_transient
