"""Tests of reading one stretch of a recording."""

from __future__ import annotations

import io
import os
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from conftest import tone

from emotion_batch import audio
from emotion_batch.errors import RecordingError, Status


def encode(samples: np.ndarray, rate: int, *, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=form, subtype=subtype)
    return sink.getvalue()


def read(data: bytes, start_s: float = 0.5, duration_s: float = 3.0) -> np.ndarray:
    with audio.opened(data) as recording:
        return recording.read(start_s, duration_s, sample_rate=22_050)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_414, 32_000, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("n_channels", [1, 2, 6])
def test_samples_are_librosas(rate: int, n_channels: int) -> None:
    """Whatever its rate and channels, a recording gives librosa.load's samples, to the last one."""
    for duration_s in (0.9, 1.2345, 3.6):
        channels = [tone(duration_s, rate, hertz=100.0 * (number + 1)) for number in range(n_channels)]
        data = encode(np.stack(channels, axis=1), rate)
        expected, _ = librosa.load(io.BytesIO(data), offset=0.5, duration=3)
        samples = read(data)
        assert samples.shape == expected.shape
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples, expected, atol=1e-6)


def test_a_descriptor_and_the_bytes_give_the_same(tmp_path: Path) -> None:
    """A local file is read through its descriptor, which stays open, as if all of it had been fetched."""
    data = encode(tone(2.0), 24_414)
    path = tmp_path / "one.wav"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with audio.opened(descriptor) as recording:
            assert recording.header == audio.Header(2.0, 24_414, 1)
            samples = recording.read(0.5, 3.0, sample_rate=22_050)
        os.fstat(descriptor)
    finally:
        os.close(descriptor)
    np.testing.assert_array_equal(samples, read(data))


WHOLE = encode(tone(3.0, 16_000), 16_000)


def test_a_cut_outside_the_segment_does_not_matter() -> None:
    """A file that is cut after its segment gives the segment of the whole file."""
    np.testing.assert_array_equal(read(WHOLE[:-20_000], 0.5, 1.0), read(WHOLE, 0.5, 1.0))


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "IMA_ADPCM"),
        ("AIFF", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_cut_within_the_segment_is_truncated(form: str, subtype: str) -> None:
    """Half a file, whose header promises all of it, is `truncated` and not a shorter recording."""
    data = encode(tone(3.0, 16_000), 16_000, form=form, subtype=subtype)
    with pytest.raises(RecordingError) as caught:
        read(data[: len(data) // 2])
    assert caught.value.status == Status.TRUNCATED


def test_a_streamed_header_promises_nothing() -> None:
    """A WAV written to a pipe, with the largest possible length in its header, ends where its bytes do."""
    at = WHOLE.index(b"data") + 4
    streamed = WHOLE[:at] + b"\xff\xff\xff\xff" + WHOLE[at + 4 :]
    np.testing.assert_array_equal(read(streamed), read(WHOLE))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"", Status.EMPTY, id="no bytes"),
        pytest.param(encode(np.zeros(0, np.float32), 8_000), Status.EMPTY, id="no samples"),
        pytest.param(b"Dear diary\n" * 100, Status.NOT_AUDIO, id="text"),
        pytest.param(bytes(5_000), Status.NOT_AUDIO, id="zeros"),
        pytest.param(WHOLE[:30], Status.TRUNCATED, id="within the header"),
        pytest.param(WHOLE[:44], Status.TRUNCATED, id="after the header"),
        pytest.param(encode(tone(0.3), 24_414), Status.TOO_SHORT, id="ends before the offset"),
        pytest.param(encode(tone(0.5, 8_000), 8_000), Status.TOO_SHORT, id="ends at the offset"),
        pytest.param(encode(np.full(48_000, np.nan), 24_000, subtype="FLOAT"), Status.NOT_FINITE, id="NaN"),
        pytest.param(WHOLE[:16] + b"\xff" * 20 + WHOLE[36:], Status.UNREADABLE, id="damaged header"),
    ],
)
def test_what_gives_no_samples_has_its_status(data: bytes, status: Status) -> None:
    """Input that is no usable recording is told apart by status, with a reason."""
    with pytest.raises(RecordingError) as caught:
        read(data)
    assert caught.value.status == status
    assert caught.value.reason


@pytest.mark.parametrize("seed", range(40))
def test_mutated_bytes_give_samples_or_a_status(seed: int) -> None:
    """Whatever bytes of a WAV are changed, the outcome is finite samples or a status."""
    rng = np.random.default_rng(seed)
    data = bytearray(WHOLE)
    for _ in range(int(rng.integers(1, 8))):
        data[int(rng.integers(0, 60 if seed % 2 else len(data)))] = int(rng.integers(0, 256))
    try:
        samples = read(bytes(data))
    except RecordingError as error:
        outcome = error.status
    else:
        outcome = Status.OK
        assert np.isfinite(samples).all()
        assert len(samples)
    assert outcome in Status


def test_resampled_lengths_follow_librosas_rule() -> None:
    """The length after resampling is librosa's ceiling, on either side of each whole number."""
    for n_samples in range(1, 400, 7):
        samples = tone(0.1)[:n_samples]
        expected = librosa.resample(samples, orig_sr=24_414, target_sr=22_050)
        np.testing.assert_allclose(audio.resample(samples, 24_414, 22_050), expected, atol=1e-6)
