"""Tests of reading one stretch of a recording."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import soxr
from support.encoding import chunk, fmt, riff
from support.recordings import tone

from emotion_batch.errors import RecordingError, Status
from emotion_batch.features import audio, wav


def encode(samples: np.ndarray, rate: int, *, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=form, subtype=subtype)
    return sink.getvalue()


def read(data: bytes, start_s: float = 0.5, duration_s: float = 3.0) -> np.ndarray:
    with audio.opened(data, len(data)) as recording:
        return recording.read(start_s, duration_s, sample_rate=22_050).samples


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
        with audio.opened(descriptor, len(data)) as recording:
            assert recording.header == audio.Header(2.0, 24_414, 1)
            found = recording.read(0.5, 3.0, sample_rate=22_050)
            assert found.end_s == 2.0
        os.fstat(descriptor)
    finally:
        os.close(descriptor)
    np.testing.assert_array_equal(found.samples, read(data))


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
    """Whatever bytes of a WAV are changed, the outcome is samples or a status."""
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
        assert len(samples)
    assert outcome in Status


def test_resampled_lengths_follow_librosas_rule() -> None:
    """The length after resampling is librosa's ceiling, on either side of each whole number."""
    for n_samples in range(1, 400, 7):
        samples = tone(0.1)[:n_samples]
        expected = librosa.resample(samples, orig_sr=24_414, target_sr=22_050)
        np.testing.assert_allclose(audio.resample(samples, 24_414, 22_050), expected, atol=1e-6)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(24_414, 22_050), (8_000, 22_050), (44_100, 22_050), (192_000, 16_000)])
@pytest.mark.parametrize("n_samples", [1, 2, 100, 1_023, 50_000])
def test_a_kept_stream_resamples_as_a_new_one(from_hz: int, to_hz: int, n_samples: int) -> None:
    """Whatever went through it before, samples come out as of `soxr.resample`, bit for bit."""
    audio.resample(tone(0.5, seed=7), from_hz, to_hz)
    samples = tone(3.0)[:n_samples]
    plain = soxr.resample(samples, from_hz, to_hz, quality="soxr_hq")
    found = audio.resample(samples, from_hz, to_hz)
    n_same = min(len(plain), len(found))
    np.testing.assert_array_equal(found[:n_same], plain[:n_same])
    assert len(found) == int(np.ceil(n_samples * to_hz / from_hz))
    assert not found[n_same:].any()


PCM = (tone(2.0) * 20_000).astype("<i2").tobytes()


@pytest.mark.parametrize(
    ("data", "is_plain"),
    [
        pytest.param(riff(fmt(), chunk(b"data", PCM)), True, id="plain"),
        pytest.param(riff(fmt(), chunk(b"LIST", b"INFOodd"), chunk(b"data", PCM)), True, id="list before"),
        pytest.param(riff(fmt(), chunk(b"JUNK", bytes(5_000)), chunk(b"data", PCM)), True, id="junk before"),
        pytest.param(riff(fmt(), chunk(b"data", PCM), chunk(b"LIST", b"INFO")), True, id="list after"),
        pytest.param(riff(fmt(), chunk(b"data", PCM)) + b"trailing bytes", True, id="trailing"),
        pytest.param(riff(fmt(channels=2, frame_bytes=4), chunk(b"data", PCM)), True, id="stereo"),
        pytest.param(riff(fmt(channels=7, frame_bytes=14), chunk(b"data", PCM)), True, id="seven channels"),
        pytest.param(riff(fmt(), chunk(b"data", PCM[:-1])), True, id="half a sample"),
        pytest.param(riff(chunk(b"LIST", b"INFO"), fmt(), chunk(b"data", PCM)), False, id="list first"),
        pytest.param(riff(fmt(), chunk(b"odd1", b"12345"), chunk(b"data", PCM)), False, id="unknown before"),
        pytest.param(riff(fmt(), chunk(b"data", b""), chunk(b"LIST", b"INFO")), True, id="nothing in it"),
        pytest.param(riff(fmt(), chunk(b"data", PCM, 0xFFFF_FFFF)), True, id="streamed"),
        pytest.param(riff(fmt(bits=8, frame_bytes=1), chunk(b"data", PCM)), False, id="8 bits"),
        pytest.param(riff(fmt(tag=3, bits=32, frame_bytes=4), chunk(b"data", PCM)), False, id="float"),
    ],
)
def test_plain_waves_are_read_as_libsndfile_reads_them(data: bytes, is_plain: bool, tmp_path: Path) -> None:
    """What is decoded without libsndfile gives its samples; all else goes to it."""
    plain = wav.open_plain(lambda offset, size: data[offset : offset + size], len(data))
    assert (plain is not None) == is_plain
    expected, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    path = tmp_path / "one"
    path.write_bytes(data)
    with path.open("rb") as stream:
        for source in (data, stream.fileno()):
            with audio.opened(source, len(data)) as recording:
                assert recording.header == audio.Header(len(expected) / rate, rate, expected.shape[1])
                if not len(expected):
                    with pytest.raises(RecordingError, match="empty"):
                        recording.read(0.25, 0.2, sample_rate=rate)
                    continue
                found = recording.read(0.25, 0.2, sample_rate=rate).samples
            start, wanted = int(0.25 * rate), int(0.2 * rate)
            np.testing.assert_allclose(found, expected[start : start + wanted].mean(axis=1), atol=1e-7)


def test_a_recorder_that_was_cut_off_is_read_to_the_end() -> None:
    """A WAV whose sizes were never filled in gives what was recorded."""
    whole = riff(fmt(), chunk(b"data", PCM))
    for size in (0, 36):
        cut_off = b"RIFF" + size.to_bytes(4, "little") + riff(fmt(), chunk(b"data", PCM, 0))[8:]
        np.testing.assert_array_equal(read(cut_off), read(whole))


@pytest.mark.parametrize("name", [b"LIST", b"smpl", b"ID3 ", b"acid", b"PEAK", b"_PMX"])
def test_what_follows_an_empty_recording_is_no_sound(name: bytes) -> None:
    """A WAV that holds no samples stays empty, or is refused, whatever chunk comes after."""
    with pytest.raises(RecordingError) as caught:
        read(riff(fmt(), chunk(b"data", b""), chunk(name, PCM)))
    assert caught.value.status in (Status.EMPTY, Status.UNREADABLE)


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "ULAW", "ALAW", "PCM_U8", "PCM_24", "DOUBLE"])
def test_every_kind_of_wave_gives_its_segment(subtype: str) -> None:
    """Each codec of WAV that libsndfile decodes gives the samples that it decodes."""
    data = encode(tone(4.0, 8_000), 8_000, subtype=subtype)
    whole, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    expected = audio.resample(whole[4_000:][:24_000], rate, 22_050)
    np.testing.assert_allclose(read(data), expected, atol=1e-6)


def test_a_flac_from_a_pipe_is_read_to_its_end() -> None:
    """A FLAC whose header leaves the length open gives its samples, in one stretch and in several."""
    whole = encode(tone(2.0, 16_000), 16_000, form="FLAC")
    # The last 36 bits of the 8 bytes from byte 18 on: https://www.rfc-editor.org/rfc/rfc9639#section-8.2
    stream = whole[:21] + bytes([whole[21] & 0xF0, 0, 0, 0, 0]) + whole[26:]
    np.testing.assert_array_equal(read(stream), read(whole))
    with audio.opened(stream, len(stream)) as recording:
        assert np.isnan(recording.header.duration_s)
        ends = [recording.read(start_s, 1.0, sample_rate=16_000).end_s for start_s in (0.0, 0.75, 1.5)]
        assert ends == [1.0, 1.75, 2.0]
    for starts_s in ((0.0, 2.25), (0.0, 1.0, 2.0), (5.0,)):
        with audio.opened(stream, len(stream)) as recording:
            for start_s in starts_s[:-1]:
                recording.read(start_s, 1.0, sample_rate=16_000)
            with pytest.raises(RecordingError, match="too_short"):
                recording.read(starts_s[-1], 1.0, sample_rate=16_000)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
def test_stretches_that_follow_or_overlap_are_those_of_the_whole(form: str, subtype: str) -> None:
    """Reading on, over, or past the last stretch gives the samples that are there."""
    data = encode(
        np.stack([tone(6.0, 44_100), tone(6.0, 44_100, hertz=300)], axis=1), 44_100, form=form, subtype=subtype
    )
    whole, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    with audio.opened(data, len(data)) as recording:
        for start_s in (0.0, 0.5, 1.0, 1.0, 2.5, 4.25, 5.5, 5.999):
            found = recording.read(start_s, 1.5, sample_rate=22_050)
            stretch = whole[int(start_s * rate) :][: int(1.5 * rate)]
            np.testing.assert_allclose(found.samples, audio.resample(stretch.mean(axis=1), rate, 22_050), atol=1e-6)
            assert found.end_s == pytest.approx(start_s + len(stretch) / rate, abs=1e-4)


def test_a_minute_of_mp3_is_one_stretch() -> None:
    """A segment longer than what is decoded at a time has the samples of the whole, in MP3 too."""
    seconds = np.arange(60 * 44_100) / 44_100
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 5 * seconds) * seconds)
    data = encode(np.stack([sweep, sweep], axis=1), 44_100, form="MP3", subtype="MPEG_LAYER_III")
    # Not by librosa's offset: after a seek libsndfile leaves out frames that lean on those before.
    whole, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    expected = audio.resample(whole[rate // 2 :][: 55 * rate].mean(axis=1), rate, 22_050)
    np.testing.assert_allclose(read(data, 0.5, 55.0), expected, atol=1e-5)


def test_hundreds_of_channels_are_mixed_in_little_memory() -> None:
    """A recording is mixed as it is decoded: 3 s of 1,024 channels at 8 kHz would be 98 MB of samples."""
    samples = np.random.default_rng(0).standard_normal((28_000, 1_024)).astype(np.float32) / 10
    data = encode(samples, 8_000)
    tracemalloc.start()
    found = read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
    expected, _ = librosa.load(io.BytesIO(data), offset=0.5, duration=3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


# Three seconds, so that half of its bytes are half of its samples, and what its header may say of their length.
LYING = (tone(3.0, 16_000) * 20_000).astype("<i2")


def lying(stated: int, *, form: str = "plain", riff_bytes: int | None = None, tail: bytes = b"") -> bytes:
    """Return a WAV whose data chunk states a length, of 16-bit PCM or of floats."""
    data = LYING.tobytes() if form == "plain" else (LYING / np.float32(32_768)).astype("<f4").tobytes()
    head = fmt(rate=16_000) if form == "plain" else fmt(3, rate=16_000, frame_bytes=4, bits=32)
    return riff(head, chunk(b"data", data, stated) + tail, size=riff_bytes)


@pytest.mark.parametrize("form", ["plain", "float"])
@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda size: (2 * size, None), id="each byte counted twice"),
        pytest.param(lambda size: (2 * size, 2 * size + 36), id="each byte counted twice, throughout"),
        pytest.param(lambda size: (size + 44, size + 80), id="with the header"),
        pytest.param(lambda size: (size + 36, size + 36), id="with the rest of the header"),
        pytest.param(lambda size: (3 * size, None), id="three times, though the file says that it is whole"),
        pytest.param(lambda size: (0, 0), id="never filled in"),
        pytest.param(lambda size: (0, 36), id="filled in at the start"),
        pytest.param(lambda size: (0, None), id="only the file's own is right"),
        pytest.param(lambda size: (0xFFFF_FFFF, 0xFFFF_FFFF), id="streamed"),
        pytest.param(lambda size: (0x7FFF_FFFF, 0x7FFF_FFFF), id="streamed by another"),
    ],
)
def test_a_length_that_lies_is_not_believed(form: str, lie: Callable[[int], tuple[int, int | None]]) -> None:
    """Whatever a writer has made of the length in the header, what is there is read, and nothing is cut."""
    size = len(LYING) * (2 if form == "plain" else 4)
    stated, riff_bytes = lie(size)
    data = lying(stated, form=form, riff_bytes=riff_bytes)
    with audio.opened(data, len(data)) as recording:
        found = recording.read(0.5, 10.0, sample_rate=16_000)
    assert found.end_s == 3.0
    np.testing.assert_allclose(found.samples, LYING[8_000:] / np.float32(32_768), atol=1e-6)


@pytest.mark.parametrize("form", ["AU", "RF64", "BW64"])
@pytest.mark.parametrize("lie", ["double", "zero", "unknown"])
def test_a_length_that_lies_elsewhere_is_not_believed(form: str, lie: str) -> None:
    """The same holds for other containers that state a length."""
    data = bytearray(encode(tone(3.0, 16_000), 16_000, form="AU" if form == "AU" else "RF64"))
    if form == "BW64":
        data[:4] = b"BW64"
    at, order = (8, "big") if form == "AU" else (data.index(b"ds64") + 16, "little")
    n_bytes = 4 if form == "AU" else 8
    stated = {"double": 2 * 96_000, "zero": 0, "unknown": 2 ** (8 * n_bytes) - 1}[lie]
    data[at : at + n_bytes] = stated.to_bytes(n_bytes, order)
    if form != "AU":
        # What the whole file states, which would tell otherwise.
        data[at - 8 : at] = (stated + 72).to_bytes(9, "little")[:8]
    with audio.opened(bytes(data), len(data)) as recording:
        assert recording.read(0.5, 10.0, sample_rate=16_000).end_s == 3.0


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64"])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize(("missing_s", "is_cut"), [(0.001, False), (0.049, False), (0.055, True), (1.2, True)])
def test_what_is_missing_is_a_cut_from_50_ms_on(form: str, subtype: str, missing_s: float, is_cut: bool) -> None:
    """Up to 50 ms less than the header promises is `ok`, with the true end, and no window more; more is `truncated`."""
    data = encode(tone(3.0, 16_000), 16_000, form=form, subtype=subtype)
    if form == "WAV":
        # libsndfile writes another chunk behind the samples of floats.
        data = data[: data.index(b"data") + 8 + 48_000 * (2 if subtype == "PCM_16" else 4)]
    data = data[: len(data) - round(missing_s * 16_000) * (2 if subtype == "PCM_16" else 4)]
    ends = []
    status = None
    with audio.opened(data, len(data)) as recording:
        for number in range(4):
            try:
                ends.append(recording.read(number * 1.0, 1.0, sample_rate=16_000).end_s)
            except RecordingError as error:
                status = error.status
                break
    if is_cut:
        assert status == Status.TRUNCATED
        assert ends == [1.0, 2.0] if missing_s < 1 else ends == [1.0]
    else:
        assert status == Status.TOO_SHORT
        assert ends == [1.0, 2.0, pytest.approx(3.0 - missing_s, abs=0.002)]


def test_a_window_that_would_begin_in_missing_milliseconds_is_none() -> None:
    """Of a file whose last 40 ms are missing windows of 20 ms end where it does."""
    data = encode(tone(1.0, 16_000), 16_000)[: -round(0.04 * 16_000) * 2]
    with audio.opened(data, len(data)) as recording:
        for number in range(48):
            recording.read(number * 0.02, 0.02, sample_rate=16_000)
        with pytest.raises(RecordingError, match="too_short"):
            recording.read(48 * 0.02, 0.02, sample_rate=16_000)


def test_only_the_segments_own_stretch_counts() -> None:
    """Of a file that is cut, a segment of which 40 ms are missing is `ok`, and ends where the file does."""
    data = encode(tone(3.0, 16_000), 16_000)[: 44 + 2 * 32_000]
    with audio.opened(data, len(data)) as recording:
        assert recording.read(0.5, 1.54, sample_rate=16_000).end_s == 2.0
        with pytest.raises(RecordingError, match="truncated"):
            recording.read(0.5, 1.56, sample_rate=16_000)


@pytest.mark.parametrize("form", ["plain", "float"])
def test_a_length_that_wrapped_at_4_gb_is_unwrapped(form: str, tmp_path: Path) -> None:
    """A WAV of more than 4 GB, whose length has lost its upper bits, is read from anywhere."""
    frame_bytes, rate = (2, 48_000) if form == "plain" else (4, 192_000)
    head = fmt(rate=rate) if form == "plain" else fmt(3, rate=rate, frame_bytes=4, bits=32)
    size = 2**32 + 100 * rate * frame_bytes
    path = tmp_path / "long.wav"
    with path.open("wb") as stream:
        stream.write(b"RIFF" + ((size + 36) % 2**32).to_bytes(4, "little") + b"WAVE" + head)
        stream.write(b"data" + (size % 2**32).to_bytes(4, "little"))
        stream.truncate(44 + size)
        at_s = size / (rate * frame_bytes) - 10
        stream.seek(44 + size - 10 * rate * frame_bytes)
        samples = tone(10.0, rate)
        stream.write((samples * 32_768).astype("<i2").tobytes() if form == "plain" else samples.tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with audio.opened(descriptor, 44 + size) as recording:
            assert recording.header.duration_s == pytest.approx(size / (rate * frame_bytes))
            found = recording.read(at_s + 1.0, 3.0, sample_rate=rate).samples
            with pytest.raises(RecordingError, match="too_short"):
                recording.read(at_s + 10.5, 3.0, sample_rate=rate)
    finally:
        os.close(descriptor)
    np.testing.assert_allclose(found, samples[rate : 4 * rate], atol=1e-4)


@pytest.mark.parametrize("rate", [0, 99, 768_001, 2_000_000_000, 2**32 - 1])
def test_a_rate_that_no_recording_has_is_named(rate: int) -> None:
    """A header with an impossible rate is `unreadable`, with the rate, and not called damaged."""
    with pytest.raises(RecordingError, match=f"unreadable: .*{rate}") as caught:
        read(riff(fmt(rate=rate), chunk(b"data", PCM)))
    assert "damaged" not in caught.value.reason
    assert len(read(riff(fmt(rate=768_000), chunk(b"data", bytes(4 * 768_000)))))


def test_samples_before_the_header_are_found() -> None:
    """A WAV whose samples stand before what says what they are is read."""
    np.testing.assert_array_equal(read(riff(chunk(b"data", PCM), fmt())), read(riff(fmt(), chunk(b"data", PCM))))


def test_a_damaged_flac_is_heard_without_what_is_damaged() -> None:
    """Of a FLAC that libsndfile stops in, FFmpeg decodes what is whole; the rest of it is no cut."""
    data = bytearray(encode(tone(10.0, 16_000), 16_000, form="FLAC"))
    at = len(data) // 2
    data[at : at + 300] = bytes(300)
    with audio.opened(bytes(data), len(data)) as recording:
        assert recording.read(0.0, 1.0, sample_rate=16_000).end_s == 1.0
        found = recording.read(1.0, 20.0, sample_rate=16_000)
    assert 9.0 < found.end_s < 10.0
