"""Bytes to samples: opens a recording by its content, reads one stretch of it as mono float32 at a rate.

The samples are those of ``librosa.load(f, sr=..., offset=..., duration=...)``: libsndfile decodes, the mean
over channels makes it mono, soxr ("HQ") resamples.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from emotion_batch.errors import RecordingError, Status

# sf_error codes: http://libsndfile.github.io/libsndfile/api.html#error, and the first internal one, "malformed file".
_UNRECOGNISED_FORMAT = 1
# libsndfile gives 2**63 - 1 frames to a stream whose header does not say its length.
_UNKNOWN_FRAMES = 2**62
# A writer to a pipe cannot know the length: ffmpeg leaves 0xFFFFFFFF, SoX values just below 0x80000000.
_STREAMED_BYTES = 0x7FFF_0000


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


class Recording:
    """An open recording; `opened` makes it.

    Attributes
    ----------
    header
        What it says of itself.
    """

    def __init__(self, sound: soundfile.SoundFile, promised_frames: int, at_end: Callable[[], bool]) -> None:
        self._sound = sound
        self._frames = sound.frames
        self._promised_frames = promised_frames
        self._at_end = at_end
        is_known = promised_frames < _UNKNOWN_FRAMES
        duration_s = promised_frames / sound.samplerate if is_known else math.nan
        self.header = Header(duration_s, sound.samplerate, sound.channels)

    def read(self, start_s: float, duration_s: float, *, sample_rate: int) -> npt.NDArray[np.float32]:
        """Read a stretch as mono samples.

        Parameters
        ----------
        start_s, duration_s
            The stretch, in seconds; it ends early where the recording does.
        sample_rate
            Rate of the samples that are returned, in Hz.

        Returns
        -------
        Samples, shape (n_samples,), at least one, all finite.

        Raises
        ------
        RecordingError
            ``empty``, ``too_short``, ``truncated``, ``not_finite`` or ``unreadable``.
        """
        rate = self._sound.samplerate
        # int() rather than rounding, for these are librosa.load's frames.
        start, wanted = int(start_s * rate), int(duration_s * rate)
        end = min(start + wanted, self._promised_frames)
        if not self._promised_frames:
            raise RecordingError(Status.EMPTY, "the recording has no samples")
        if self._promised_frames <= start:
            raise RecordingError(
                Status.TOO_SHORT,
                f"the recording ends at {self.header.duration_s:.3f} s, its segment starts at {start_s:g} s",
            )
        if self._frames < end:
            raise self._truncated(self._frames, end)
        samples = self._decode(start, end - start)
        if len(samples) < end - start and self._promised_frames < _UNKNOWN_FRAMES:
            raise self._truncated(start + len(samples), end)
        if not len(samples):
            raise RecordingError(
                Status.TOO_SHORT, f"the recording ends before its segment, which starts at {start_s:g} s"
            )
        mono = samples[:, 0] if samples.shape[1] == 1 else np.mean(samples, axis=1)
        if not np.isfinite(mono).all():
            raise RecordingError(Status.NOT_FINITE, "the segment has samples that are NaN or infinite")
        return resample(mono, rate, sample_rate)

    def _decode(self, start: int, n_frames: int) -> npt.NDArray[np.float32]:
        try:
            self._sound.seek(start)
            return np.asarray(self._sound.read(n_frames, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError as error:
            if self._at_end():
                raise RecordingError(Status.TRUNCATED, "the file ends within the segment") from error
            raise RecordingError(
                Status.UNREADABLE, f"the decoder stopped within the segment: {_said(error)}"
            ) from error

    def _truncated(self, frames: int, end: int) -> RecordingError:
        rate = self._sound.samplerate
        return RecordingError(
            Status.TRUNCATED,
            f"the segment goes to {end / rate:.3f} s, the file is cut at {frames / rate:.3f} s",
        )


@contextlib.contextmanager
def opened(source: int | bytes) -> Iterator[Recording]:
    """Open a recording by its content, whatever its name.

    Parameters
    ----------
    source
        A file descriptor open for reading, which stays open, or the whole file's bytes.

    Yields
    ------
    The open recording.

    Raises
    ------
    RecordingError
        ``empty``, ``not_audio``, ``truncated`` or ``unreadable``, also from within the block.
    """
    if isinstance(source, int):
        descriptor = source
        n_bytes = os.fstat(descriptor).st_size

        def read_at(offset: int, size: int) -> bytes:
            return os.pread(descriptor, size, offset)

        def at_end() -> bool:
            return os.lseek(descriptor, 0, os.SEEK_CUR) >= n_bytes

        handle: int | io.BytesIO = descriptor
    else:
        data, stream = source, io.BytesIO(source)
        n_bytes = len(data)

        def read_at(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        def at_end() -> bool:
            return stream.tell() >= n_bytes

        handle = stream
    if not n_bytes:
        raise RecordingError(Status.EMPTY, "the file has no bytes")
    start = read_at(0, 12)
    try:
        sound = soundfile.SoundFile(handle, closefd=False)
    except soundfile.LibsndfileError as error:
        raise _not_opened(error, start, n_bytes) from error
    with sound:
        yield Recording(sound, _promised_frames(sound.frames, start, read_at, n_bytes), at_end)


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
    resampled = np.asarray(soxr.resample(samples, from_hz, to_hz, quality="soxr_hq"))
    if len(resampled) >= n_resampled:
        return resampled[:n_resampled]
    return np.pad(resampled, (0, n_resampled - len(resampled)))


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
