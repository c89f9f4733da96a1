"""Decode recordings with FFmpeg (PyAV) if libsndfile cannot, or stops early, and encode some. Only this module imports av.

A recording sounds like its frames that FFmpeg decodes, one after the other. FFmpeg gets bytes and a demuxer's name, never the name
of a file, so that nothing in a recording makes it open anything else.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soxr

from emotion_batch.errors import RecordingError, Status, UsageError
from emotion_batch.features import containers, extents
from emotion_batch.features.containers import CODECS, SEEKABLE, ReadAt
from emotion_batch.features.extents import Extent

if TYPE_CHECKING:
    import av

# FFmpeg's own decoders of AMR do not know the frames of silence that telephones send.
_BETTER = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}
# A stream of unknown length has so many samples.
UNKNOWN_FRAMES = 2**62
# No frame of a real codec has more samples, no recording more streams.
_MOST_FRAME_SAMPLES, _MOST_STREAMS = 2**20, 64
# How far FFmpeg may read to learn what the streams are. Its default is some megabytes, because of pictures.
_PROBE_BYTES = 2**17
# Samples farther ahead are sought. Decoding begins a little earlier, because decoders need the frames before.
_FAR_S, _PREROLL_S = 10.0, 1.0
# The length in these containers is that of the whole file, so a shorter stream was cut.
_SAYS_LENGTH = (containers.MOV, containers.FLAC)
# Containers that say when their only stream ends, by the clock that its packets have.
_SAYS_END = (containers.MOV, containers.FLAC, containers.MATROSKA)
# FFmpeg guesses the length of these from their bit rate.
_GUESSED_LENGTH = (containers.ADTS, containers.AMR)
# This is more than the padding at the end that encoders add and decoders remove.
_MOST_PADDING_S = 0.5
# Tags after an MP3 have at most this many bytes, or a twentieth of the file's.
_MOST_TAIL_BYTES = 2**14
_SCALES = {"u1": 2.0**-7, "i2": 2.0**-15, "i4": 2.0**-31}


class FFmpegDecoder:
    """The first audio stream of a recording, decoded by FFmpeg; RecordingError if it has no audio that can be decoded.

    `container` is the name that `containers.identify_container` gives. `samplerate` and `channels` are those of the first
    frame that could be decoded. `frames` are the samples a channel that the recording has, or would have if it were not cut;
    `UNKNOWN_FRAMES` until its end was seen. `duration_s` is NaN if the recording does not say its length.
    """

    def __init__(self, read_at: ReadAt, n_bytes: int, container: str) -> None:
        self._read_at = extents.unbound(read_at, n_bytes) if container == containers.WAV else read_at
        self._n_bytes = n_bytes
        self._name = container
        self._extent: Extent | None = extents.measure_extent(container, read_at, n_bytes)
        starts = extents.find_links(self._read_at, n_bytes) if container == containers.OGG else [0]
        self._is_chained = len(starts) > 1
        if len({extents.read_setup(self._read_at, start) for start in starts}) == 1:
            # FFmpeg continues with the decoder of the first stream, which is right if all streams have the same setup.
            starts = [0]
        self._links = list(pairwise([*starts, n_bytes]))
        self._container: Any = None
        self.samplerate = self.channels = 0
        self.frames = UNKNOWN_FRAMES
        # The end of what was demuxed and of what was decoded, in seconds of the stream's own clock.
        self._demuxed_s = self._decoded_s = -math.inf
        self._blocks = self._decoded_links()
        first = next(self._blocks, None)
        if first is None:
            raise self._nothing()
        if not self.samplerate:
            raise RecordingError(Status.UNREADABLE, "the header says a rate of 0 samples a second")
        self._at, self._pending = 0, first[1]
        self._n_first = len(self._pending)
        # The second frame tells the time of the first sample, because the first frame's time may include samples that are
        # cut off.
        pts, second = next(self._blocks, (None, self._pending[:0]))
        self._pending = np.concatenate([self._pending, second])
        self._origin_s = None if pts is None else self._seconds(pts) - self._n_first / self.samplerate
        self.duration_s = self._read_duration()

    def close(self) -> None:
        """Free FFmpeg's memory."""
        if self._container is not None:
            self._container.close()

    def decode(self, start: int, n_frames: int) -> npt.NDArray[np.float32]:
        """Return at most `n_frames` from `start`, shape (n_frames, channels); fewer if the recording ends.

        Raises RecordingError, ``unreadable``, if the rest is damaged.
        """
        if start < self._at or start > self._at + len(self._pending) + _FAR_S * self.samplerate:
            self._go_to(start)
        parts = [np.empty((0, self.channels), np.float32)]
        while n_frames > 0:
            if start >= self._at + len(self._pending):
                self._at += len(self._pending)
                _, self._pending = next(self._blocks, (None, self._pending[:0]))
                if not len(self._pending):
                    self._end()
                    break
                continue
            part = self._pending[start - self._at :][:n_frames]
            parts.append(part)
            start += len(part)
            n_frames -= len(part)
        return np.concatenate(parts)

    def _decoded_links(self) -> Iterator[tuple[int | None, npt.NDArray[np.float32]]]:
        """Yield as `_decoded` does, for all chained streams from the beginning."""
        for start, stop in self._links:
            self._open_link(start, stop)
            yield from self._decoded()

    def _open_link(self, start: int, stop: int) -> None:
        """Open a stretch of the file by itself."""
        import av

        self.close()
        try:
            self._container = av.open(
                NamelessFile(containers.shifted(self._read_at, start), stop - start),
                format=self._name,
                # Tags in any encoding must not keep a recording from being heard.
                metadata_errors="replace",
                container_options={
                    "format_whitelist": self._name,
                    "codec_whitelist": ",".join(sorted(CODECS)),
                    # We pass the bytes, so nothing that a recording names may be opened.
                    "protocol_whitelist": "none",
                    "max_streams": str(_MOST_STREAMS),
                    "probesize": str(_PROBE_BYTES),
                },
            )
        except av.FFmpegError as error:
            raise self._not_opened(error) from error
        streams = self._container.streams
        if not streams.audio:
            raise RecordingError(Status.NOT_AUDIO, "the file has no audio stream")
        self._stream = streams.audio[0]
        for stream in streams:
            # Other streams are not even read if the container allows it.
            if stream.index != self._stream.index:
                stream.discard = av.stream.Discard.all
        codec = self._stream.codec_context
        if codec is None or codec.name not in CODECS:
            name = "unknown to FFmpeg" if codec is None else codec.name
            raise RecordingError(Status.UNREADABLE, f"its codec cannot be decoded: {name}")
        self._codec_name = codec.name
        self._resampler: _Resampler | None = None

    def _decoder(self) -> Any:
        import av

        codec = self._stream.codec_context
        if codec.name in _BETTER:
            codec = av.CodecContext.create(_BETTER[codec.name], "r")
        if not codec.is_open:
            codec.thread_count = 1
            codec.options = {**codec.options, "max_samples": str(_MOST_FRAME_SAMPLES)}
        return codec

    def _decoded(self) -> Iterator[tuple[int | None, npt.NDArray[np.float32]]]:
        """Yield the following frames: time stamp, and samples of shape (n_frames, channels)."""
        import av

        codec = self._decoder()
        self._n_packets = 0
        self._failure = ""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.EOFError:
                packet = None
            except av.FFmpegError as error:
                if self._is_cut():
                    break
                at = f"{max(0.0, self._decoded_s):.3f} s"
                raise RecordingError(Status.UNREADABLE, f"decoding stopped at {at}: {_ffmpeg_reason(error)}") from error
            if packet is None:
                break
            if packet.size:
                self._n_packets += 1
                if packet.pts is not None:
                    self._demuxed_s = max(self._demuxed_s, self._seconds(packet.pts + (packet.duration or 0)))
            try:
                frames = codec.decode(packet)
            except (av.FFmpegError, EOFError, MemoryError) as error:
                # FFmpeg itself also skips a packet that fails, and continues with the next.
                self._failure = _ffmpeg_reason(error)
                continue
            for frame in frames:
                if frame.pts is not None and frame.sample_rate:
                    self._decoded_s = max(self._decoded_s, self._seconds(frame.pts) + frame.samples / frame.sample_rate)
                samples = self._convert(frame)
                if len(samples):
                    yield frame.pts, samples
        if self._resampler is not None and len(rest := self._resampler.flush()):
            yield None, rest

    def _seconds(self, pts: int) -> float:
        return float(pts * (self._stream.time_base or 0))

    def _convert(self, frame: av.AudioFrame) -> npt.NDArray[np.float32]:
        """Return a frame's samples at the rate and with the channels of the first frame, shape (n_frames, channels)."""
        values = frame.to_ndarray()
        n_channels = frame.layout.nb_channels
        values = values.T if frame.format.is_planar else values.reshape(-1, n_channels)
        scale = _SCALES.get(values.dtype.str[1:], 1.0)
        if values.dtype == np.uint8:
            values = values.astype(np.int16) - 128
        samples: npt.NDArray[np.float32] = np.multiply(values, scale, dtype=np.float32, casting="unsafe")
        if not self.samplerate:
            self.samplerate, self.channels = frame.sample_rate, n_channels
        if n_channels != self.channels:
            # Chained streams may differ in their channels.
            mono = samples.mean(axis=1, keepdims=True, dtype=np.float32)
            samples = np.repeat(mono, self.channels, axis=1)
        if self._resampler is not None and self._resampler.rate != frame.sample_rate:
            samples = np.concatenate([self._resampler.flush(), samples])
            self._resampler = None
        if frame.sample_rate != self.samplerate:
            if self._resampler is None:
                self._resampler = _Resampler(frame.sample_rate, self.samplerate, self.channels)
            samples = self._resampler.resample(samples)
        return samples

    def _go_to(self, start: int) -> None:
        """Go to a sample, or to an earlier one that can be reached."""
        import av

        rate = self.samplerate
        if start > _FAR_S * rate and self._is_seekable() and self._origin_s is not None:
            target = int((self._origin_s + start / rate - _PREROLL_S) / self._stream.time_base)
            with contextlib.suppress(av.FFmpegError):
                self._container.seek(target, stream=self._stream, backward=True)
                self._resampler = None
                self._blocks = self._decoded()
                # The first frame and its time may be wrong.
                next(self._blocks, None)
                pts, self._pending = next(self._blocks, (None, self._pending[:0]))
                if pts is not None and len(self._pending):
                    at = self._snap((self._seconds(pts) - self._origin_s) * rate)
                    if 0 <= at <= start:
                        self._at = at
                        return
        self._blocks = self._decoded_links()
        _, self._pending = next(self._blocks, (None, self._pending[:0]))
        self._at = 0

    def _is_seekable(self) -> bool:
        if self._name == containers.WAV:
            return str(self._codec_name).startswith("pcm_")
        return not self._is_chained and self._name in SEEKABLE and self._codec_name not in SEEKABLE[self._name]

    def _snap(self, at: float) -> int:
        """Return the number of a frame's first sample by its time, which some containers round to milliseconds."""
        if self._stream.time_base * self.samplerate <= 1:
            return round(at)
        n_frame = len(self._pending)
        n_before = round((at - self._n_first) / n_frame)
        exact = self._n_first + n_before * n_frame
        return exact if abs(exact - at) < 0.002 * self.samplerate else round(at)

    def _end(self) -> None:
        """Note where the recording ends, and how much is missing there."""
        missing_s = self._missing_s(self._at / self.samplerate)
        self.frames = self._at + round(missing_s * self.samplerate)
        end_s = self._demuxed_s
        if not missing_s and self._name in _SAYS_END and len(self._container.streams) == 1:
            end_s = max(end_s, self.duration_s if math.isfinite(self.duration_s) else end_s)
        lost_s = end_s - self._decoded_s
        # Each chained stream starts its own clock.
        if math.isfinite(lost_s) and lost_s > _MOST_PADDING_S and not self._is_chained:
            raise RecordingError(
                Status.UNREADABLE,
                f"its last {lost_s:.3f} s are damaged, from {self._at / self.samplerate:.3f} s on "
                f"({self._codec_name}{', ' if self._failure else ''}{self._failure})",
            )

    def _missing_s(self, heard_s: float) -> float:
        """Return how many seconds the file lacks at its end, by what its headers promise."""
        missing = []
        if self._extent is not None:
            promised, there = self._extent
            missing.append((promised - there) / max(1, there) * heard_s)
        is_counted = self._name in _SAYS_LENGTH or (self._name == containers.MP3 and self._extent is not None)
        if is_counted and self._stream.duration is not None and math.isfinite(self._demuxed_s):
            missing.append(float(self._stream.duration * self._stream.time_base) - self._demuxed_s)
        return max(0.0, min(missing, default=0.0))

    def _read_duration(self) -> float:
        is_guessed = self._name in _GUESSED_LENGTH or self._is_chained
        if self._name in (containers.MP3, containers.ASF):
            # If the number of bytes is not known, the length is guessed.
            promised, there = self._extent or (0, 0)
            is_guessed |= there > promised + max(_MOST_TAIL_BYTES, promised // 20) or not promised
        # A film may be longer than its sound.
        is_guessed |= self._name == containers.MATROSKA and len(self._container.streams) > 1
        if is_guessed:
            return math.nan
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        return math.nan if self._container.duration is None else self._container.duration / 1e6

    def _not_opened(self, error: Exception) -> RecordingError:
        if self._name in (containers.MP3, containers.ADTS):
            return containers.not_audio()
        if self._name == containers.MOV and not extents.has_index(self._read_at, self._n_bytes):
            reason = "the file is cut, or still being written: the index of its samples is not there"
            return RecordingError(Status.TRUNCATED, reason)
        if isinstance(error, EOFError) or self._is_cut():
            return self._cut()
        return RecordingError(Status.UNREADABLE, f"the {self._name} container cannot be read: {_ffmpeg_reason(error)}")

    def _nothing(self) -> RecordingError:
        """Return the reason if there is no sample at all."""
        self.close()
        if self._is_cut():
            return self._cut()
        if self._n_packets:
            if self._name in (containers.MP3, containers.ADTS):
                return containers.not_audio()
            reason = self._failure or "it gave no samples"
            return RecordingError(Status.UNREADABLE, f"none of it can be decoded: {reason} ({self._codec_name})")
        if self._name in _SAYS_LENGTH and self._stream.duration:
            return self._cut()
        return RecordingError(Status.EMPTY, "the recording has no samples")

    def _is_cut(self) -> bool:
        return self._extent is not None and self._extent.promised > self._extent.there

    def _cut(self) -> RecordingError:
        return RecordingError(Status.TRUNCATED, "the file is cut where its samples would begin")


class _Resampler:
    """Resamples frames to the rate of the first frames."""

    def __init__(self, rate: int, to_rate: int, n_channels: int) -> None:
        self.rate = rate
        self._n_channels = n_channels
        self._stream = soxr.ResampleStream(rate, to_rate, n_channels, dtype="float32", quality="soxr_hq")

    def resample(self, samples: npt.NDArray[np.float32], *, is_last: bool = False) -> npt.NDArray[np.float32]:
        """Return the output for more samples, shape (n_frames, channels)."""
        return np.asarray(self._stream.resample_chunk(samples, last=is_last)).reshape(-1, self._n_channels)

    def flush(self) -> npt.NDArray[np.float32]:
        """Return the samples that are left in the filter."""
        return self.resample(np.empty((0, self._n_channels), np.float32), is_last=True)


def encode(samples: npt.NDArray[np.float32], rate_hz: int, *, codec: str, container: str, bits_per_s: int) -> bytes:
    """Return a mono recording in a codec and a container, by FFmpeg's names; raise UsageError if FFmpeg lacks the encoder."""
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format=container) as out:
        try:
            stream: Any = out.add_stream(codec, rate=rate_hz, layout="mono")
        except ValueError as error:
            raise UsageError(f"FFmpeg: this build has no encoder {codec}; install the wheel of av") from error
        stream.bit_rate = bits_per_s
        pcm = np.rint(np.clip(samples, -1, 1) * (2**15 - 1)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = rate_hz
        converter = av.AudioResampler(stream.codec_context.format, "mono", rate_hz)
        for one in (*converter.resample(frame), *converter.resample(None), None):
            out.mux(stream.encode(one))
    return sink.getvalue()


class NamelessFile:
    """A file for PyAV and libsndfile whose bytes `read_at` returns."""

    def __init__(self, read_at: ReadAt, n_bytes: int) -> None:
        self._read_at = read_at
        self._n_bytes = n_bytes
        self._position = 0

    def read(self, n_bytes: int) -> bytes:
        """Return the next bytes."""
        data = self._read_at(self._position, max(0, min(n_bytes, self._n_bytes - self._position)))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


def _ffmpeg_reason(error: BaseException) -> str:
    """Return FFmpeg's reason, without the number and the file name that PyAV adds."""
    return (getattr(error, "strerror", None) or type(error).__name__).rstrip(".").lower()
