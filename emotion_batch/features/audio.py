"""Open a recording by its content, and read stretches of it, or of its channels, as float32 samples at a given rate.

The samples are those of ``librosa.load(f, sr=..., offset=..., duration=...)``: the mean over channels makes it mono, and soxr ("HQ")
resamples. A channel is one of ``librosa.load(f, mono=False, ...)``. A recording sounds like what FFmpeg decodes. If libsndfile
decodes the same, it is asked first, because it costs less.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from emotion_batch.errors import RecordingError, Status
from emotion_batch.features import containers, extents, wav
from emotion_batch.features.containers import LIBSNDFILE, ReadAt
from emotion_batch.features.ffmpeg import UNKNOWN_FRAMES, FFmpegDecoder, NamelessFile
from emotion_batch.settings import MIX

# Files that begin like MPEG audio are kept from libsndfile, because its MPEG decoder writes to the terminal.
_LIKE_MPEG = (b"\xff", b"\xfe\xff", b"ID3")
# This much of a segment may be missing, because some headers count padding and their own bytes.
_MOST_MISSING_S = 0.05
# At most this many values are decoded at a time, so that hundreds of channels do not fill a worker's memory.
_BLOCK_VALUES = 2**21
# A file up to the first size is read by one call. Of a larger one only the second many bytes are read at first.
_WHOLE_BYTES, _HEADER_BYTES = 2**18, 2**12
# No recording has a rate outside these. At a lower rate a few minutes would become years, and millions of windows.
_MIN_RATE_HZ, _MAX_RATE_HZ = 100, 768_000
# Channels of a mix differ if the correlation of two of the first few is lower.
_LEAST_CORRELATION, _MOST_COMPARED = 0.9, 8
# Each thread keeps the filters of this many rates. An archive rarely has more.
_MAX_STREAMS = 8
_local = threading.local()


@dataclass(frozen=True)
class Header:
    """What a recording says of itself: its length in seconds (NaN if it does not say), its rate in Hz, its channels."""

    duration_s: float
    sample_rate_hz: int
    channels: int


class Stretch(NamedTuple):
    """The samples of each channel that was asked for, shape (n_samples,), at least one, not necessarily finite, and their rate.

    A mix is one channel. `start` is the recording's frame at which they begin, and `end_s` where they end in it, in seconds.
    """

    channels: Sequence[npt.NDArray[np.float32]]
    sample_rate_hz: int
    start: int
    end_s: float

    @property
    def samples(self) -> npt.NDArray[np.float32]:
        """The samples of the mix, or of the first channel."""
        return self.channels[0]


class _Decoder(Protocol):
    """A decoder: the frames that it gives do not depend on what was read before."""

    samplerate: int
    channels: int
    # The headers promise these. If they do not, it is `UNKNOWN_FRAMES` until the end was seen.
    frames: int

    def decode(self, start: int, n_frames: int) -> npt.NDArray[np.float32]:
        """Return at most `n_frames` from `start`, shape (n_frames, channels); fewer if the recording ends."""


class _StoppedError(Exception):
    """A decoder stopped before the end that it had promised."""


class Recording:
    """An open recording, which `opened` makes; `header` is what it says of itself, and `channels` which ones it has of those asked for.

    `there` is the number of frames that exist. If only a few of the promised ones are missing, the file does not count as cut.
    The default duration is that of the promised frames. `instead` opens the decoder that continues if the first one stops. A
    rate that no recording has raises RecordingError, ``unreadable``.
    """

    def __init__(
        self,
        decoder: _Decoder,
        there: int | None = None,
        duration_s: float | None = None,
        instead: Callable[[], _Decoder] | None = None,
        channels: str | Sequence[int] = MIX,
    ) -> None:
        rate = decoder.samplerate
        _check_rate(rate)
        if there is not None and decoder.frames - there <= _MOST_MISSING_S * rate:
            decoder.frames = there
        self._decoder = decoder
        self._instead = instead
        self.is_mix = channels == MIX
        there_are = range(decoder.channels)
        self.channels = list(there_are) if isinstance(channels, str) else [one for one in channels if one in there_are]
        n_kept = 1 if self.is_mix else len(self.channels)
        self._kept = np.empty((n_kept, 0), np.float32)
        self._kept_start = 0
        # Sums over the frames of a mix: see `has_other_channels`.
        self._products = np.zeros((1 + min(decoder.channels, _MOST_COMPARED),) * 2)
        self.header = Header(decoder.frames / rate if duration_s is None else duration_s, rate, decoder.channels)

    def read(self, start_s: float, duration_s: float, *, sample_rate: int | None) -> Stretch:
        """Read a stretch at a rate in Hz, or the recording's own; it ends early if the recording does.

        Stretches are read in the order of their starts. Audio that overlaps is decoded once, and memory depends on the
        length of a stretch, not of the recording. Raises RecordingError: ``empty``, ``too_short``, ``truncated`` or
        ``unreadable``.
        """
        rate = self._decoder.samplerate
        # int() and not round(), because librosa.load does so.
        start, wanted = int(start_s * rate), int(duration_s * rate)
        samples = self._read_frames(start, start + wanted)
        n_there = samples.shape[1]
        # Some recordings do not say their length, so the end is known only now.
        n_frames = self._decoder.frames
        if not n_frames:
            raise RecordingError(Status.EMPTY, "the recording has no samples")
        if n_frames <= start:
            reason = f"the recording ends at {n_frames / rate:.3f} s, its segment starts at {start_s:g} s"
            raise RecordingError(Status.TOO_SHORT, reason)
        end = min(start + wanted, n_frames)
        n_missing = end - start - n_there
        if n_missing > _MOST_MISSING_S * rate or not n_there:
            reason = f"the segment goes to {end / rate:.3f} s, the file is cut at {(end - n_missing) / rate:.3f} s"
            raise RecordingError(Status.TRUNCATED, reason)
        end_s = start_s + duration_s if n_there == wanted else (start + n_there) / rate
        read_hz = rate if sample_rate is None else sample_rate
        return Stretch([resample(one, rate, read_hz) for one in samples], read_hz, start, end_s)

    @property
    def has_other_channels(self) -> bool:
        """Whether what was read is a mix of channels that differ: the correlation of the first with another is below 0.9."""
        n_frames, sums = self._products[0, 0], self._products[0, 1:]
        spread = self._products[1:, 1:] - np.outer(sums, sums) / max(n_frames, 1)
        power = np.maximum(np.diagonal(spread), 0)
        least = _LEAST_CORRELATION * np.sqrt(power[:1] * power)
        # If one of the channels is silent, they differ; if both are, they do not.
        is_other = (spread[0] < least) | ((power > 0) != (power[:1] > 0))
        return bool(is_other[1:].any())

    def _read_frames(self, start: int, end: int) -> npt.NDArray[np.float32]:
        """Return frames from `start` to `end`, shape (n_channels, n_frames); those that the last call decoded are reused."""
        skipped = start - self._kept_start
        kept = self._kept[:, skipped:] if 0 <= skipped < self._kept.shape[1] else self._kept[:, :0]
        parts = [kept]
        at = start + kept.shape[1]
        n_block = max(1, _BLOCK_VALUES // self._decoder.channels)
        while at < (stop := min(end, self._decoder.frames)):
            n_frames = min(n_block, stop - at)
            try:
                block = self._decoder.decode(at, n_frames)
            except _StoppedError as error:
                if self._instead is None:
                    reason = f"the decoder stopped within the segment: {error}"
                    raise RecordingError(Status.UNREADABLE, reason) from error
                # The other decoder reads the whole stretch.
                self._decoder, self._instead = self._instead(), None
                self._kept = self._kept[:, :0]
                return self._read_frames(start, end)
            parts.append(self._pick(block))
            at += len(block)
            if len(block) < n_frames:
                break
        is_one = len(parts) == 2 and not kept.shape[1]
        frames = parts[1] if is_one else np.concatenate(parts, axis=1)[:, : end - start]
        self._kept, self._kept_start = frames, start
        return frames

    def _pick(self, block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the wanted channels of decoded frames, shape (n_channels, n_frames)."""
        if not self.is_mix:
            return np.ascontiguousarray(block[:, self.channels].T)
        if block.shape[1] > 1:
            some = block[:, :_MOST_COMPARED]
            sums = np.ones(len(some), np.float32) @ some
            self._products[0, 0] += len(some)
            self._products[0, 1:] += sums
            self._products[1:, 1:] += some.T @ some
        return _mix(block)[np.newaxis]


class _Libsndfile:
    """A recording that libsndfile decodes."""

    def __init__(self, sound: soundfile.SoundFile, extent: extents.Extent | None) -> None:
        self._sound = sound
        self._there: int = sound.frames
        self._position = 0
        self.samplerate: int = sound.samplerate
        self.channels: int = sound.channels
        self.frames = self._there
        if extent is not None and extent.promised > extent.there:
            if not extent.there:
                raise RecordingError(Status.TRUNCATED, "the file is cut where its samples would begin")
            # libsndfile counts the frames that exist, not those that the header promises.
            self.frames = self._there * extent.promised // extent.there

    def decode(self, start: int, n_frames: int) -> npt.NDArray[np.float32]:
        n_frames = max(0, min(n_frames, self._there - start))
        try:
            if start != self._position and n_frames:
                self._sound.seek(start)
            samples = np.asarray(self._sound.read(n_frames, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError as error:
            reason = error.error_string.strip().rstrip(".") or f"libsndfile error {error.code}"
            raise _StoppedError(reason) from error
        if len(samples) < n_frames:
            raise _StoppedError("it gave fewer samples than the header says")
        self._position = start + len(samples)
        return samples


@contextlib.contextmanager
def opened(source: int | bytes | ReadAt, n_bytes: int, channels: str | Sequence[int] = MIX) -> Iterator[Recording]:
    """Open a recording by its content, whatever its name; `n_bytes` is the length of the file, `channels` as in `Segments`.

    The source is a file descriptor that is open for reading and stays open, the whole file's bytes, or a function of an offset
    and a size that returns bytes of a file elsewhere, fewer at its end.
    Raises RecordingError, also from within the block: ``empty``, ``not_audio``, ``truncated`` or ``unreadable``.
    """
    if not n_bytes:
        raise RecordingError(Status.EMPTY, "the file has no bytes")
    with contextlib.ExitStack() as stack:
        yield _open(stack, source, n_bytes, channels)


def _reading(source: int | bytes | ReadAt, n_bytes: int) -> ReadAt:
    if callable(source):
        return source
    if isinstance(source, bytes):
        return lambda offset, size: source[offset : offset + size]
    head = os.pread(source, n_bytes if n_bytes <= _WHOLE_BYTES else _HEADER_BYTES, 0)

    def read_at(offset: int, size: int) -> bytes:
        if offset + size <= len(head):
            return head[offset : offset + size]
        return os.pread(source, size, offset)

    return read_at


def _open(
    stack: contextlib.ExitStack, source: int | bytes | ReadAt, n_bytes: int, channels: str | Sequence[int]
) -> Recording:
    """Open a recording; `stack` closes it."""
    start, read_at = 0, _reading(source, n_bytes)
    wave = wav.open_plain(read_at, n_bytes)
    if wave is None and (start := containers.find_start(read_at)):
        # From here on all reads are shifted, because the file begins later.
        read_at, n_bytes = containers.shifted(read_at, start), max(0, n_bytes - start)
        wave = wav.open_plain(read_at, n_bytes)
    if wave is not None:
        return Recording(wave, wave.there, channels=channels)
    container = containers.identify_container(read_at, n_bytes)

    def by_ffmpeg() -> FFmpegDecoder:
        assert container is not None  # noqa: S101 as each caller has looked
        decoder = FFmpegDecoder(read_at, n_bytes, container)
        stack.callback(decoder.close)
        return decoder

    if container is None and read_at(0, 3).startswith(_LIKE_MPEG):
        raise containers.not_audio()
    if not start and (container is None or container in LIBSNDFILE["containers"]):
        sound = _open_libsndfile(stack, source, read_at, n_bytes, container)
        extent = None if container is None else extents.measure_extent(container, read_at, n_bytes)
        # libsndfile takes a length of 0 that was never filled in for an empty file.
        if sound is not None and (sound.frames or extent is None or not extent.promised):
            instead = None if container is None else by_ffmpeg
            return Recording(_Libsndfile(sound, extent), sound.frames, instead=instead, channels=channels)
    if container is None:
        raise containers.not_audio()
    found = by_ffmpeg()
    return Recording(found, duration_s=found.duration_s, channels=channels)


def _open_libsndfile(
    stack: contextlib.ExitStack, source: int | bytes | ReadAt, read_at: ReadAt, n_bytes: int, container: str | None
) -> soundfile.SoundFile | None:
    """Return a recording as libsndfile opens it; None if FFmpeg must decode it."""
    if container == containers.WAV:
        found = extents.read_wave_format(read_at, n_bytes)
        if found is not None:
            _check_rate(found[1])
        # In a file of more than 4 GB the length may have wrapped.
        if n_bytes > 2**32 or found is None or found[0] not in LIBSNDFILE["wave_tags"]:
            return None
    file = source if isinstance(source, int) else NamelessFile(read_at, n_bytes)
    try:
        sound = soundfile.SoundFile(file, closefd=False)
    except soundfile.LibsndfileError:
        return None
    stack.enter_context(sound)
    # If FFmpeg does not know the container, only libsndfile can decode it.
    is_same = container is None or sound.subtype in LIBSNDFILE["subtypes"]
    return sound if is_same and sound.frames < UNKNOWN_FRAMES else None


def _check_rate(rate: int) -> None:
    if not _MIN_RATE_HZ <= rate <= _MAX_RATE_HZ:
        raise RecordingError(
            Status.UNREADABLE,
            f"the header says a rate of {rate} samples a second, and no recording has one outside {_MIN_RATE_HZ} to {_MAX_RATE_HZ}",
        )


def resample(samples: npt.NDArray[np.float32], from_hz: int, to_hz: int) -> npt.NDArray[np.float32]:
    """Resample as librosa does: soxr "HQ", cut or zero-padded to ``ceil(n_samples * to_hz / from_hz)`` samples."""
    if from_hz == to_hz:
        return samples
    # The order of these operations decides the last sample, and with it the number of frames.
    n_resampled = int(np.ceil(len(samples) * (float(to_hz) / from_hz)))
    stream = _stream(from_hz, to_hz)
    resampled = np.asarray(stream.resample_chunk(samples, last=True))
    n_missing = n_resampled - len(resampled)
    return np.pad(resampled, (0, n_missing)) if n_missing > 0 else resampled[:n_resampled]


def _stream(from_hz: int, to_hz: int) -> soxr.ResampleStream:
    """Return this thread's stream for two rates, reset. It is kept, because its filters cost much to make."""
    if not hasattr(_local, "streams"):
        _local.streams = lru_cache(_MAX_STREAMS)(
            lambda *rates: soxr.ResampleStream(*rates, 1, dtype="float32", quality="soxr_hq")
        )
    stream: soxr.ResampleStream = _local.streams(from_hz, to_hz)
    stream.clear()
    return stream


def _mix(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the mean over channels, shape (n_frames,)."""
    n_channels = samples.shape[1]
    if n_channels == 1:
        return samples[:, 0]
    # Adding columns is ten times as fast as a mean over so short an axis.
    mono: npt.NDArray[np.float32] = samples[:, 0] + samples[:, 1]
    for channel in range(2, n_channels):
        mono += samples[:, channel]
    mono *= np.float32(1 / n_channels)
    return mono
