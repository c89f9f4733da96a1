"""Read plain 16-bit WAV files without the cost of opening libsndfile.

RIFF/WAVE: Multimedia Programming Interface and Data Specifications 1.0 (1991); RF64: EBU Tech 3306.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emotion_batch.features.containers import ReadAt
from emotion_batch.features.extents import believe, is_chunks

# RIFF/WAVE, Multimedia Programming Interface 1.0 (1991): tag 1 is integer PCM, full scale is 2**15.
_WAVE_PCM = 1
_CHUNKS_BESIDE_DATA = (b"LIST", b"JUNK", b"junk", b"fact", b"bext", b"PAD ", b"FLLR", b"iXML", b"cue ", b"id3 ")
_PCM_SCALE = np.float32(1 / 32_768)
_MAX_CHANNELS = 1_024


@dataclass(slots=True)
class Wave:
    """A recording of 16-bit PCM in RIFF/WAVE, whose samples begin `at`.

    Its header promises `frames` samples a channel, and `there` of them exist.
    """

    samplerate: int
    channels: int
    frames: int
    there: int
    at: int
    read_at: ReadAt

    def decode(self, start: int, n_frames: int) -> npt.NDArray[np.float32]:
        """Return at most `n_frames` from `start`, shape (n_frames, channels); fewer if the recording ends."""
        n_bytes = 2 * self.channels
        n_frames = max(0, min(n_frames, self.there - start))
        data = self.read_at(self.at + start * n_bytes, n_frames * n_bytes)
        values = np.frombuffer(data, "<i2", len(data) // n_bytes * self.channels)
        samples: npt.NDArray[np.float32] = np.multiply(values, _PCM_SCALE, dtype=np.float32)
        return samples.reshape(-1, self.channels)


def open_plain(read_at: ReadAt, n_bytes: int) -> Wave | None:
    """Return a decoder if this is 16-bit PCM in a RIFF/WAVE file of the usual layout; else None."""
    start = read_at(0, min(36, n_bytes))
    if len(start) < 36 or start[:4] != b"RIFF" or start[8:20] != b"WAVEfmt \x10\x00\x00\x00":
        return None
    tag, channels, rate = (int.from_bytes(start[at : at + size], "little") for at, size in ((20, 2), (22, 2), (24, 4)))
    frame_bytes, bits = (int.from_bytes(start[at : at + 2], "little") for at in (32, 34))
    is_plain = tag == _WAVE_PCM and bits == 16 and frame_bytes == 2 * channels
    if not (is_plain and 1 <= channels <= _MAX_CHANNELS and 1 <= rate < 2**31):
        return None
    offset = 36
    while len(chunk := read_at(offset, min(8, n_bytes - offset))) == 8:
        size = int.from_bytes(chunk[4:], "little")
        offset += 8
        if chunk[:4] == b"data":
            there = max(0, n_bytes - offset)
            if not 0 < size <= there or n_bytes > 2**32:
                riff_bytes = int.from_bytes(start[4:8], "little") + 8
                is_unfilled = not size and not is_chunks(read_at, offset, n_bytes)
                size = there if is_unfilled else believe(size, offset, n_bytes, riff_bytes)
            return Wave(rate, channels, size // frame_bytes, min(size, there) // frame_bytes, offset, read_at)
        if chunk[:4] not in _CHUNKS_BESIDE_DATA:
            return None
        offset += size + size % 2
        if offset > n_bytes:
            return None
    return None
