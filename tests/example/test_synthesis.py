"""Synthesised archives: the same everywhere, laid out as TESS, and broken only where they say so."""

from __future__ import annotations

import wave
from pathlib import Path

import librosa
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from emotion_batch.example import synthesis
from emotion_batch.example.synthesis import EMOTIONS, VOICES, WORDS, synthesize, write_archive

N_WORDS = 2
N_BROKEN = 5


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of two words, whose number of files was checked."""
    folder = tmp_path_factory.mktemp("archive")
    assert write_archive(folder, n_words=N_WORDS) == len(VOICES) * len(EMOTIONS) * N_WORDS + N_BROKEN
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _recordings(emotion: str, voice: str) -> list[npt.NDArray[np.float32]]:
    return [synthesize(voice, emotion, word) for word in WORDS[:4]]


def _f0_hz(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    rate = synthesis.SAMPLE_RATE_HZ
    f0, is_voiced, _ = librosa.pyin(samples, sr=rate, fmin=50, fmax=800, frame_length=2048, hop_length=1024)
    return np.asarray(f0[is_voiced])


def _level_db(samples: npt.NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(samples.astype(float) ** 2)))


def _centroid_hz(samples: npt.NDArray[np.float32]) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float(np.sum(power * np.fft.rfftfreq(len(samples), 1 / synthesis.SAMPLE_RATE_HZ)) / np.sum(power))


def test_same_seed_gives_same_bytes(archive: Path, tmp_path: Path) -> None:
    """Two archives of one seed hold the same names and bytes, the broken ones among them."""
    write_archive(tmp_path, n_words=N_WORDS)
    assert _contents(tmp_path) == _contents(archive)


def test_recording_does_not_depend_on_the_others(archive: Path) -> None:
    """A recording made alone has the samples that it has in an archive."""
    samples, _ = soundfile.read(archive / "V2_ps" / "V2_bean_ps.wav", dtype="int16")
    np.testing.assert_array_equal(samples, np.round(synthesize("V2", "ps", "bean") * 32767).astype(np.int16))


def test_every_draw_differs() -> None:
    """Another seed, voice, emotion or word gives another recording."""
    recordings = [
        synthesize("V1", "sad", "back"),
        synthesize("V1", "sad", "back", seed=1),
        synthesize("V2", "sad", "back"),
        synthesize("V1", "fear", "back"),
        synthesize("V1", "sad", "bean"),
    ]
    assert len({samples.tobytes() for samples in recordings}) == len(recordings)


def test_layout_is_that_of_tess(archive: Path) -> None:
    """Each voice and emotion has a folder of recordings named voice, word, emotion; broken/ has the rest."""
    healthy = {f"{v}_{e}/{v}_{w}_{e}.wav" for v in VOICES for e in EMOTIONS for w in WORDS[:N_WORDS]}
    names = ("empty_sad", "text_happy", "truncated_angry", "short_neutral", "nan_fear")
    assert set(_contents(archive)) == healthy | {f"broken/V1_{name}.wav" for name in names}
    assert WORDS[0] == "back" and len(set(WORDS)) >= 60


def test_existing_files_are_overwritten(tmp_path: Path) -> None:
    """A folder that is there is used, its recordings replaced and what else it holds left alone."""
    write_archive(tmp_path, n_words=1)
    expected = _contents(tmp_path)
    (tmp_path / "V1_sad" / "V1_back_sad.wav").write_bytes(b"old")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    write_archive(tmp_path, n_words=1)
    assert _contents(tmp_path) == {**expected, "notes.txt": b"mine"}


def test_healthy_recordings_have_the_format_of_tess(archive: Path) -> None:
    """Every healthy recording is 24,414 Hz, 16 bit, mono, 1.4 to 2.6 s, and neither silent nor clipped."""
    for path in sorted(archive.glob("V*/*.wav")):
        with wave.open(str(path)) as reader:
            assert (reader.getframerate(), reader.getsampwidth(), reader.getnchannels()) == (24_414, 2, 1)
        samples, rate = soundfile.read(path)
        assert 1.4 <= len(samples) / rate <= 2.6
        assert 0.01 < np.max(np.abs(samples)) < 0.99


def test_samples_are_float32_within_full_scale() -> None:
    """Samples come as one dimension of finite float32 within [-1, 1]."""
    for emotion in EMOTIONS:
        samples = synthesize("V1", emotion, "cheese")
        assert samples.dtype == np.float32 and samples.ndim == 1
        assert np.all(np.abs(samples) <= 1)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_can_be_said(word: str) -> None:
    """Every word of the list is made of known phonemes and gives a recording of the promised duration."""
    for emotion in ("fear", "sad"):  # the fastest and the slowest
        assert 1.4 <= len(synthesize("V2", emotion, word)) / synthesis.SAMPLE_RATE_HZ <= 2.6


def test_broken_empty(archive: Path) -> None:
    """The empty recording has no bytes."""
    assert (archive / "broken" / "V1_empty_sad.wav").stat().st_size == 0


def test_broken_text(archive: Path) -> None:
    """The text is readable as text and not as audio."""
    path = archive / "broken" / "V1_text_happy.wav"
    assert path.read_text(encoding="ascii").endswith("not a recording.\n")
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(path)


def test_broken_truncated(archive: Path) -> None:
    """The truncated recording's header promises 2 s of data, and about 0.8 s are there."""
    content = (archive / "broken" / "V1_truncated_angry.wav").read_bytes()
    assert content[:4] == b"RIFF" and content[8:16] == b"WAVEfmt " and content[36:40] == b"data"
    promised = int.from_bytes(content[40:44], "little")
    assert promised == 2 * 24_414 * 2 and int.from_bytes(content[4:8], "little") == promised + 36
    assert (len(content) - 44) / 2 / 24_414 == pytest.approx(0.8, abs=0.001)


def test_broken_short(archive: Path) -> None:
    """The short recording is sound but for its 0.3 s."""
    samples, rate = soundfile.read(archive / "broken" / "V1_short_neutral.wav")
    assert rate == 24_414 and len(samples) / rate == pytest.approx(0.3, abs=0.001)
    assert np.max(np.abs(samples)) > 0.01


def test_broken_nan(archive: Path) -> None:
    """The recording with NaN is 32-bit float, finite up to 1 s and NaN from there on."""
    path = archive / "broken" / "V1_nan_fear.wav"
    assert soundfile.info(path).subtype == "FLOAT"
    samples, rate = soundfile.read(path)
    assert np.all(np.isfinite(samples[:rate]))
    assert len(samples) > rate and np.all(np.isnan(samples[rate:]))


@pytest.mark.parametrize("voice", VOICES)
def test_emotions_differ_as_described(voice: str) -> None:
    """Level, brightness and pace order the emotions as the literature does."""
    of = {emotion: _recordings(emotion, voice) for emotion in EMOTIONS}
    level = {emotion: np.mean([_level_db(x) for x in recordings]) for emotion, recordings in of.items()}
    centroid = {emotion: np.mean([_centroid_hz(x) for x in recordings]) for emotion, recordings in of.items()}
    duration = {emotion: np.mean([len(x) for x in recordings]) for emotion, recordings in of.items()}
    assert level["angry"] > level["happy"] > level["neutral"] > level["sad"]
    assert level["neutral"] > level["fear"]
    assert centroid["angry"] > centroid["neutral"] > centroid["sad"]
    assert max(duration["angry"], duration["fear"]) < duration["neutral"]
    assert duration["neutral"] < min(duration["sad"], duration["disgust"])


def test_pitch_differs_as_described() -> None:
    """Measured F0 is highest and rising in surprise, high in fear and wide in happiness, low in sadness."""
    f0 = {emotion: _f0_hz(synthesize("V2", emotion, "moon")) for emotion in ("ps", "fear", "happy", "neutral", "sad")}
    mean = {emotion: np.mean(values) for emotion, values in f0.items()}
    spread = {emotion: np.std(np.log2(values)) for emotion, values in f0.items()}
    assert min(mean["ps"], mean["fear"], mean["happy"]) > 1.2 * mean["neutral"]
    assert mean["sad"] < mean["neutral"] * 1.05
    assert spread["happy"] > 1.5 * max(spread["neutral"], spread["sad"])
    quarter = len(f0["ps"]) // 4
    assert np.mean(f0["ps"][-quarter:]) > 1.3 * np.mean(f0["ps"][:quarter])


def test_second_voice_is_higher() -> None:
    """The second voice speaks clearly higher than the first."""
    assert np.median(_f0_hz(synthesize("V2", "neutral", "moon"))) > 1.4 * np.median(
        _f0_hz(synthesize("V1", "neutral", "moon"))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("V3", "sad", "back", 0), "voice must be one of V1, V2: 'V3'"),
        (("V1", "bored", "back", 0), "emotion must be one of angry, .*: 'bored'"),
        (("V1", "sad", "xylophone", 0), "word must be one of back, .*: 'xylophone'"),
        (("V1", "sad", "back", -1), "seed must be a whole number of at least 0: -1"),
    ],
)
def test_synthesize_refuses_what_it_does_not_know(arguments: tuple[str, str, str, int], message: str) -> None:
    """A voice, emotion, word or seed that is none raises with what was expected and what it got."""
    voice, emotion, word, seed = arguments
    with pytest.raises(ValueError, match=f"^{message}$"):
        synthesize(voice, emotion, word, seed=seed)


@pytest.mark.parametrize(("n_words", "seed"), [(0, 0), (-1, 0), (len(WORDS) + 1, 0), (1, -1)])
def test_write_archive_refuses_before_writing(tmp_path: Path, n_words: int, seed: int) -> None:
    """A number of words or a seed out of range raises, and nothing is written."""
    with pytest.raises(ValueError, match=r"^(n_words|seed) must be a whole number .*: -?\d+$"):
        write_archive(tmp_path / "archive", n_words=n_words, seed=seed)
    assert not (tmp_path / "archive").exists()
