"""What the extraction engine must stand: every rate and length, damaged files by the thousand, hours in one file."""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import librosa
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset
import pytest
import soundfile
from support.commands import running
from support.damage import worker_processes
from support.recordings import tone, write_odd_archive

from emotion_batch.errors import RecordingError
from emotion_batch.features import audio
from emotion_batch.features.mfcc import mean_mfcc
from emotion_batch.inference.bundle import open_bundle
from emotion_batch.inference.predict import Predictor, label_rows
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.folder import Folder
from emotion_batch.worker.recordings import extract_rows

SETTINGS = FeatureSettings()


def encode(samples: np.ndarray, rate: int, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=form, subtype=subtype)
    return sink.getvalue()


def notebook(source: Path | io.BytesIO, offset_s: float = 0.5) -> np.ndarray:
    """Return the features as the notebook computes them."""
    samples, rate = librosa.load(source, offset=offset_s, duration=3)
    return np.mean(librosa.feature.mfcc(y=samples, sr=rate, n_mfcc=40).T, axis=0)


def lengths(rate: int) -> Iterator[int]:
    """Yield numbers of frames on either side of the offset, of the limit, and of frame boundaries between them."""
    offset, limit = rate // 2, int(3.5 * rate)
    edges = [offset, limit, *(offset + round(512 * n_frames * rate / 22_050) for n_frames in (1, 2, 3, 4, 129))]
    for edge in edges:
        yield from (edge - 1, edge, edge + 1)


@pytest.mark.filterwarnings("ignore:n_fft=.* is too large:UserWarning")
@pytest.mark.parametrize("n_channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_features_are_the_notebooks_at_every_rate_and_length(rate: int, n_channels: int) -> None:
    """On either side of every boundary the features are within 1e-3, or the recording is too short for both."""
    whole = np.stack([tone(3.6, rate, hertz=100.0 * (n + 1), seed=n) for n in range(n_channels)], axis=1)
    for n_frames in lengths(rate):
        data = encode(whole[:n_frames], rate)
        with audio.opened(data, len(data)) as recording:
            if n_frames <= rate // 2:
                with pytest.raises(RecordingError, match=r"empty|too_short"):
                    recording.read(0.5, 3.0, sample_rate=22_050)
                continue
            samples = recording.read(0.5, 3.0, sample_rate=22_050).samples
        found, expected = mean_mfcc(samples, SETTINGS), notebook(io.BytesIO(data))
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=str(n_frames))


def mutate(originals: list[bytes], seed: int) -> bytes:
    """Return one of the recordings with bytes changed, sizes overwritten, pieces put in, or cut."""
    rng = np.random.default_rng(seed)
    data = bytearray(originals[seed % len(originals)])
    kind = seed // len(originals) % 4
    if kind == 3:
        del data[int(rng.integers(1, len(data))) :]
    for _ in range(int(rng.integers(1, 9))):
        place = int(rng.integers(0, min(100, len(data)) if kind < 2 else len(data)))
        if kind == 1:
            data[place : place + 4] = int(rng.choice([0, 1, 3, 255, 2**16, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
        else:
            data[place] = int(rng.integers(0, 256))
    if kind == 2:
        place = int(rng.integers(0, len(data)))
        data[place:place] = rng.bytes(int(rng.integers(1, 200)))
    return bytes(data)


@contextlib.contextmanager
def watched(*arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], dict[int, list[float]]]]:
    """Run a command to its end; yield it, and the memory of each worker over time, in MB."""
    memory: dict[int, list[float]] = {}
    with running(*arguments) as process:
        driver = psutil.Process(process.pid)
        deadline = time.monotonic() + 300
        while process.poll() is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(psutil.Error):
                for worker in worker_processes(driver):
                    memory.setdefault(worker.pid, []).append(worker.memory_info().rss / 1e6)
            time.sleep(0.05)
        yield process, memory


@pytest.mark.parametrize("options", [(), ("--window", "0.5")], ids=["one segment", "windows"])
def test_thousands_of_damaged_files_each_have_their_row(tmp_path: Path, options: tuple[str, ...]) -> None:
    """5,000 mutated WAV files: a row each, no worker lost, memory level."""
    kinds = (
        *((8_000, 1, "WAV", kind) for kind in ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")),
        *((8_000, 1, "WAV", kind) for kind in ("MS_ADPCM", "GSM610")),
        (16_000, 2, "WAV", "PCM_16"),
        (16_000, 2, "WAVEX", "PCM_16"),
        (16_000, 1, "RF64", "PCM_16"),
    )
    originals = [encode(np.stack([tone(1.2, rate)] * n, axis=1), rate, form, sub) for rate, n, form, sub in kinds]
    archive, table = tmp_path / "archive", tmp_path / "table"
    archive.mkdir()
    # So many that most of the run is beyond the worker's start.
    n_files = 3_000 if options else 5_000
    for seed in range(n_files):
        (archive / f"{seed:05d}.wav").write_bytes(mutate(originals, seed))
    with watched("extract", archive, table, "--workers", "2", "--quiet", *options) as (process, memory):
        assert process.returncode == 0, process.communicate()
    rows = pyarrow.dataset.dataset(table).to_table(columns=["file", "status", "error"])
    assert len(set(rows["file"].to_pylist())) == n_files
    if not options:
        assert rows.num_rows == n_files
    statuses = Counter(rows["status"].to_pylist())
    assert set(statuses) <= {"ok", "empty", "not_audio", "truncated", "too_short", "not_finite", "unreadable"}
    assert statuses["ok"] > n_files / 10
    assert all(row["error"] for row in rows.to_pylist() if row["status"] != "ok")
    assert len(memory) == 2
    for samples in memory.values():
        assert max(samples) < 400
        # The first half is the worker's start.
        assert samples[-1] - samples[len(samples) * 3 // 4] < 20


@pytest.mark.parametrize("n_hours", [1, pytest.param(3, marks=pytest.mark.torture)])
def test_hours_in_one_file(tmp_path: Path, n_hours: int) -> None:
    """Hours of 48 kHz stereo WAV: windows in under 400 MB, equal to librosa's; one segment reads but its own stretch."""
    archive, table = tmp_path / "archive", tmp_path / "table"
    archive.mkdir()
    path = archive / "long.wav"
    minute = np.stack([tone(60.0, 48_000), tone(60.0, 48_000, hertz=330)], axis=1)
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as sound:
        for number in range(60 * n_hours):
            sound.write(np.roll(minute, 1_000 * number, axis=0) * np.float32(0.2 + 0.004 * number))
    try:
        with watched("extract", archive, table, "--workers", "1", "--window", "3", "--quiet") as (process, memory):
            assert process.returncode == 0, process.communicate()
        rows = pyarrow.dataset.dataset(table).to_table().sort_by("start_s").to_pylist()
        assert [row["start_s"] for row in rows] == [3.0 * number for number in range(1_200 * n_hours)]
        assert {row["status"] for row in rows} == {"ok"}
        assert max(max(samples) for samples in memory.values()) < 400
        for number in (0, 1, 617, 1_199, 1_200 * n_hours - 1):
            np.testing.assert_allclose(rows[number]["mfcc"], notebook(path, 3.0 * number), atol=1e-3)

        listing = list_recordings(archive)
        before = bytes_read()
        segments = Segments(offset_s=3_000 * n_hours)
        (row,) = extract_rows(listing.entries.to_batches()[0], listing.folder, SETTINGS, segments).to_pylist()
        assert bytes_read() - before < 2 * 3 * 48_000 * 4
        np.testing.assert_allclose(row["mfcc"], notebook(path, 3_000 * n_hours), atol=1e-3)
    finally:
        path.unlink()


def bytes_read() -> int:
    """Return the bytes that this process has read, from wherever."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


@pytest.mark.parametrize("n_times", [4, pytest.param(12, marks=pytest.mark.torture)])
@pytest.mark.parametrize("segments", [Segments(), Segments.windows(1.0, 0.7)], ids=["one segment", "windows"])
def test_no_cut_of_an_archive_changes_a_row(tmp_path: Path, bundle: Path, segments: Segments, n_times: int) -> None:
    """However recordings are cut into shards, ordered and batched, each has the same rows, bit for bit."""
    write_odd_archive(tmp_path)
    listing = list_recordings(tmp_path)
    entries = listing.entries.combine_chunks().to_batches()[0]
    predictor = Predictor(open_bundle(Folder.of(bundle)))

    def rows_of(some: pa.RecordBatch) -> list[dict[str, object]]:
        features = extract_rows(some, listing.folder, SETTINGS, segments)
        labels = label_rows(features, predictor).to_pylist()
        return [{**one, **other} for one, other in zip(features.to_pylist(), labels, strict=True)]

    def key(row: dict[str, object]) -> tuple[object, object]:
        return row["file"], row["start_s"]

    expected = sorted(rows_of(entries), key=key)
    rng = np.random.default_rng(0)
    for _ in range(n_times):
        shuffled = entries.take(pa.array(rng.permutation(len(entries))))
        cuts = sorted({0, len(entries), *rng.integers(0, len(entries), int(rng.integers(0, 20))).tolist()})
        found = [row for start, end in itertools.pairwise(cuts) for row in rows_of(shuffled.slice(start, end - start))]
        assert sorted(found, key=key) == expected
