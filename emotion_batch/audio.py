"""Bytes to samples: opens a recording by its content, reads stretches of it as mono float32 at a rate.

The samples are those of ``librosa.load(f, sr=..., offset=..., duration=...)``: libsndfile decodes, the mean
over channels makes it mono, soxr ("HQ") resamples.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from emotion_batch import waves
from emotion_batch.errors import RecordingError, Status

# sf_error codes: http://libsndfile.github.io/libsndfile/api.html#error, and the first internal one, "malformed file".
_UNRECOGNISED_FORMAT = 1
# libsndfile gives 2**63 - 1 frames to a stream whose header does not say its length.
_UNKNOWN_FRAMES = 2**62
# A writer to a pipe cannot know the length: ffmpeg leaves 0xFFFFFFFF, SoX values just below 0x80000000.
_STREAMED_BYTES = 0x7FFF_0000
# Values decoded at a time, over all channels: a recording of hundreds of channels must not fill a worker's memory.
_BLOCK_VALUES = 2**21
# A file up to this size is read by one call, of a larger one this many bytes to look for its header.
_WHOLE_BYTES, _HEADER_BYTES = 2**18, 2**12
# No recording has so low a rate; a header that says one would make years, and millions of windows, of a few minutes.
_MIN_RATE_HZ = 100
# Filters of so many rates are kept by each thread; an archive rarely has more.
_MAX_STREAMS = 8
_local = threading.local()


@dataclass(frozen=True)
class Header:
    """What a recording says of itself.

    Attributes
    ----------
    duration_s
        Its length in seconds, NaN if it does not say.
    sample_rate_hz
        Its own sample rate.
    channels
        Number of channels.
    """

    duration_s: float
    sample_rate_hz: int
    channels: int


class Stretch(NamedTuple):
    """A stretch of a recording.

    Attributes
    ----------
    samples
        Mono, shape (n_samples,), at least one; not necessarily finite.
    end_s
        Where it ends in the recording, in seconds.
    """

    samples: npt.NDArray[np.float32]
    end_s: float


class _Decoder(Protocol):
    """What decodes: frames of a recording, from anywhere in it."""

    samplerate: int
    channels: int
    frames: int
    # Whether frames come out the same however the reading got to them.
    is_exact: bool

    def decode(self, start: int, n_frames: int) -> npt.NDArray[np.float32]:
        """Return at most `n_frames` from `start`, shape (n_frames, channels); fewer where the recording ends."""


class Recording:
    """An open recording; `opened` makes it.

    Attributes
    ----------
    header
        What it says of itself.
    """

    def __init__(self, decoder: _Decoder, promised_frames: int) -> None:
        if decoder.samplerate < _MIN_RATE_HZ:
            raise RecordingError(
                Status.UNREADABLE, f"the header is damaged: it says a rate of {decoder.samplerate} samples a second"
            )
        self._decoder = decoder
        self._promised_frames = promised_frames
        self._kept = np.empty(0, np.float32)
        self._kept_start = 0
        is_known = promised_frames < _UNKNOWN_FRAMES
        duration_s = promised_frames / decoder.samplerate if is_known else math.nan
        self.header = Header(duration_s, decoder.samplerate, decoder.channels)

    def read(self, start_s: float, duration_s: float, *, sample_rate: int) -> Stretch:
        """Read a stretch as mono samples.

        Stretches are asked for in the order of their starts. What overlaps is decoded once; memory is of the order of
        one stretch, however long the recording.

        Parameters
        ----------
        start_s, duration_s
            The stretch, in seconds; it ends early where the recording does.
        sample_rate
            Rate of the samples that are returned, in Hz.

        Returns
        -------
        The stretch's samples and its end.

        Raises
        ------
        RecordingError
            ``empty``, ``too_short``, ``truncated`` or ``unreadable``.
        """
        rate = self._decoder.samplerate
        # int() rather than rounding, for these are librosa.load's frames.
        start, wanted = int(start_s * rate), int(duration_s * rate)
        end = min(start + wanted, self._promised_frames)
        if not self._promised_frames:
            raise RecordingError(Status.EMPTY, "the recording has no samples")
        if self._promised_frames <= start:
            raise RecordingError(
                Status.TOO_SHORT,
                f"the recording ends at {self._promised_frames / rate:.3f} s, its segment starts at {start_s:g} s",
            )
        if self._decoder.frames < end:
            raise self._truncated(self._decoder.frames, end)
        mono = self._read_mono(start, end)
        if len(mono) < min(end, self._promised_frames) - start:
            raise self._truncated(start + len(mono), end)
        if not len(mono):
            raise RecordingError(
                Status.TOO_SHORT, f"the recording ends before its segment, which starts at {start_s:g} s"
            )
        end_s = start_s + duration_s if len(mono) == wanted else (start + len(mono)) / rate
        return Stretch(resample(mono, rate, sample_rate), end_s)

    def _read_mono(self, start: int, end: int) -> npt.NDArray[np.float32]:
        """Return frames from `start` to `end`, mixed; what the last call decoded of them is taken from it."""
        skipped = start - self._kept_start
        is_kept = self._decoder.is_exact and 0 <= skipped < len(self._kept)
        kept = self._kept[skipped:] if is_kept else self._kept[:0]
        parts = [kept]
        at = start + len(kept)
        # What is not exact is read at once, and never has many channels.
        n_block = max(1, _BLOCK_VALUES // self._decoder.channels) if self._decoder.is_exact else max(1, end - start)
        while at < end:
            n_frames = min(n_block, end - at)
            block = self._decoder.decode(at, n_frames)
            parts.append(_mix(block))
            at += len(block)
            if len(block) < n_frames:
                if self._promised_frames >= _UNKNOWN_FRAMES:
                    # A stream that did not say its length has ended.
                    self._promised_frames = at
                break
        mono = parts[1] if len(parts) == 2 and not len(kept) else np.concatenate(parts)[: end - start]
        self._kept, self._kept_start = mono, start
        return mono

    def _truncated(self, frames: int, end: int) -> RecordingError:
        rate = self._decoder.samplerate
        return RecordingError(
            Status.TRUNCATED,
            f"the segment goes to {end / rate:.3f} s, the file is cut at {frames / rate:.3f} s",
        )


class _Libsndfile:
    """Whatever libsndfile decodes."""

    def __init__(self, sound: soundfile.SoundFile, at_end: Callable[[], bool]) -> None:
        self._sound = sound
        self._at_end = at_end
        self._position = 0
        self.samplerate: int = sound.samplerate
        self.channels: int = sound.channels
        self.frames: int = sound.frames
        # MP3 frames lean on those before, which a seek leaves out and soundfile seeks after each read: librosa's
        # samples are those of a seek to the stretch's own start.
        self.is_exact = sound.format not in ("MP3", "MPEG")

    def decode(self, start: int, n_frames: int) -> npt.NDArray[np.float32]:
        try:
            if start != self._position:
                self._go_to(start)
            if self.frames >= _UNKNOWN_FRAMES:
                samples = self._read_to_end(n_frames)
            else:
                samples = np.asarray(self._sound.read(n_frames, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError as error:
            if self._at_end():
                if self.frames >= _UNKNOWN_FRAMES:
                    return np.empty((0, self.channels), np.float32)
                raise RecordingError(Status.TRUNCATED, "the file ends within the segment") from error
            raise RecordingError(
                Status.UNREADABLE, f"the decoder stopped within the segment: {_said(error)}"
            ) from error
        self._position = start + len(samples)
        return samples

    def _read_to_end(self, n_frames: int) -> npt.NDArray[np.float32]:
        """Read of a stream of unknown length, which libsndfile ends with an error where it ends with a file."""
        samples = np.full((n_frames, self.channels), np.nan, np.float32)
        try:
            return np.asarray(self._sound.read(out=samples))
        except soundfile.LibsndfileError:
            n_read = int(np.argmax(np.isnan(samples[:, 0]))) if np.isnan(samples[:, 0]).any() else n_frames
            if not (n_read and self._at_end()):
                raise
            return samples[:n_read]

    def _go_to(self, start: int) -> None:
        if not self._sound.seekable() or (self._position and self._sound.format == "OGG"):
            # GSM 6.10 and its like cannot be sought in; and a short way on from where Vorbis was read, libsndfile
            # 1.2.2 seeks to some other sample.
            while self._position < start:
                n_skipped = min(start - self._position, _BLOCK_VALUES // self.channels)
                if len(self._sound.read(n_skipped, dtype="float32")) < n_skipped:
                    return
                self._position += n_skipped
        else:
            self._sound.seek(start)


class RandomFile(Protocol):
    """A file that is elsewhere, as libsndfile's callbacks and the reader of plain WAV want it."""

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes from `offset` on, fewer at the end."""

    def tell(self) -> int:
        """Return the position."""


@contextlib.contextmanager
def opened(source: int | bytes | RandomFile, n_bytes: int) -> Iterator[Recording]:
    """Open a recording by its content, whatever its name.

    Parameters
    ----------
    source
        A file descriptor open for reading, which stays open, the whole file's bytes, or a file that is elsewhere.
    n_bytes
        Length of the file.

    Yields
    ------
    The open recording.

    Raises
    ------
    RecordingError
        ``empty``, ``not_audio``, ``truncated`` or ``unreadable``, also from within the block.
    """
    if not n_bytes:
        raise RecordingError(Status.EMPTY, "the file has no bytes")
    if isinstance(source, int):
        descriptor = source
        head = os.pread(descriptor, n_bytes if n_bytes <= _WHOLE_BYTES else _HEADER_BYTES, 0)

        def read_at(offset: int, size: int) -> bytes:
            if offset + size <= len(head):
                return head[offset : offset + size]
            return os.pread(descriptor, size, offset)

        def at_end() -> bool:
            return os.lseek(descriptor, 0, os.SEEK_CUR) >= n_bytes

        handle: Any = descriptor
    elif not isinstance(source, bytes):
        remote = source

        def read_at(offset: int, size: int) -> bytes:
            return remote.read_at(offset, size)

        def at_end() -> bool:
            return remote.tell() >= n_bytes

        handle = remote
    else:
        data, stream = source, io.BytesIO(source)

        def read_at(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        def at_end() -> bool:
            return stream.tell() >= n_bytes

        handle = stream
    wave = waves.open_plain(read_at, n_bytes)
    if wave is not None:
        yield Recording(wave, wave.frames)
        return
    start = read_at(0, 12)
    try:
        sound = soundfile.SoundFile(handle, closefd=False)
    except soundfile.LibsndfileError as error:
        raise _not_opened(error, start, n_bytes) from error
    with sound:
        yield Recording(_Libsndfile(sound, at_end), _promised_frames(sound.frames, start, read_at, n_bytes))


def resample(samples: npt.NDArray[np.float32], from_hz: int, to_hz: int) -> npt.NDArray[np.float32]:
    """Resample as librosa does: soxr "HQ", cut or zero-padded to ``ceil(n_samples * to_hz / from_hz)``.

    Parameters
    ----------
    samples
        Shape (n_samples,).
    from_hz, to_hz
        The rates.

    Returns
    -------
    Samples, shape (n_resampled,).
    """
    if from_hz == to_hz:
        return samples
    # The order of these operations decides the last sample, and with it the number of frames.
    n_resampled = int(np.ceil(len(samples) * (float(to_hz) / from_hz)))
    stream = _stream(from_hz, to_hz)
    resampled = np.asarray(stream.resample_chunk(samples, last=True))
    if len(resampled) >= n_resampled:
        return resampled[:n_resampled]
    padded = np.zeros(n_resampled, np.float32)
    padded[: len(resampled)] = resampled
    return padded


def _stream(from_hz: int, to_hz: int) -> soxr.ResampleStream:
    """Return this thread's stream for two rates, as new: its filters are most of what one costs to make."""
    streams: OrderedDict[tuple[int, int], soxr.ResampleStream] = _local.__dict__.setdefault("streams", OrderedDict())
    stream = streams.pop((from_hz, to_hz), None)
    if stream is None:
        stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="soxr_hq")
    else:
        stream.clear()
    streams[from_hz, to_hz] = stream
    if len(streams) > _MAX_STREAMS:
        streams.popitem(last=False)
    return stream


def _mix(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the mean over channels, shape (n_frames,)."""
    n_channels = samples.shape[1]
    if n_channels == 1:
        return samples[:, 0]
    # Column by column, ten times as fast as a mean over so short an axis.
    mono: npt.NDArray[np.float32] = samples[:, 0] + samples[:, 1]
    for channel in range(2, n_channels):
        mono += samples[:, channel]
    mono *= np.float32(1 / n_channels)
    return mono


def _not_opened(error: soundfile.LibsndfileError, start: bytes, n_bytes: int) -> RecordingError:
    if error.code == _UNRECOGNISED_FORMAT:
        return RecordingError(Status.NOT_AUDIO, "the content is no audio format that libsndfile knows")
    if start[:4] in (b"RIFF", b"FORM") and len(start) >= 8:
        size = int.from_bytes(start[4:8], "little" if start[:4] == b"RIFF" else "big")
        if n_bytes < size + 8 < _STREAMED_BYTES:
            return RecordingError(
                Status.TRUNCATED, f"the file is cut at {n_bytes} of {size + 8} bytes, within its header"
            )
    return RecordingError(Status.UNREADABLE, f"the header is damaged: {_said(error)}")


def _promised_frames(n_frames: int, start: bytes, read_at: Callable[[int, int], bytes], n_bytes: int) -> int:
    """Return how many frames the header promises; libsndfile says how many there are, for WAV and AIFF."""
    order: Literal["little", "big"]
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        order, name = "little", b"data"
    elif start[:4] == b"FORM" and start[8:] in (b"AIFF", b"AIFC"):
        order, name = "big", b"SSND"
    else:
        return n_frames
    offset = 12
    while len(chunk := read_at(offset, 8)) == 8:
        size = int.from_bytes(chunk[4:], order)
        offset += 8
        if chunk[:4] == name:
            there = n_bytes - offset
            if not there < size < _STREAMED_BYTES:
                return n_frames
            if there <= 0:
                raise RecordingError(Status.TRUNCATED, "the file is cut where its samples would begin")
            return max(n_frames, n_frames * size // there)
        offset += size + size % 2
    return n_frames


def _said(error: soundfile.LibsndfileError) -> str:
    return error.error_string.strip().rstrip(".") or f"libsndfile error {error.code}"
