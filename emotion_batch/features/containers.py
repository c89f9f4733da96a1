"""Recognise which container a file is by its first bytes.

The name of a file says nothing. A container that is not recognised here never reaches FFmpeg, because FFmpeg would open a playlist or
a picture as well.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib import resources
from typing import Literal, NamedTuple

from emotion_batch.errors import RecordingError, Status

ReadAt = Callable[[int, int], bytes]
Order = Literal["little", "big"]
WAV, W64, AIFF, AU, CAF, SPHERE, FLAC = "wav", "w64", "aiff", "au", "caf", "nistsphere", "flac"
OGG, MATROSKA, MOV, ASF, AMR, MP3, ADTS = "ogg", "matroska", "mov", "asf", "amr", "mp3", "aac"
_FORMATS = tomllib.loads(resources.files(__package__).joinpath("formats.toml").read_text(encoding="utf-8"))
# `SEEKABLE` has, by container, the codecs for which FFmpeg does not find a sample exactly.
CODECS, SEEKABLE, LIBSNDFILE = (_FORMATS[name] for name in ("codecs", "seekable", "libsndfile"))
_BY_MAGIC: list[tuple[bytes, str]] = [(bytes.fromhex(magic), name) for magic, name in _FORMATS["magic"].items()]
_RIFFS = (b"RIFF", b"RIFX", b"RF64", b"BW64")
# Atoms that an MP4 or QuickTime file begins with: ISO/IEC 14496-12 and the QuickTime File Format.
_MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp")
# This much junk before the first MPEG frame is skipped, as in FFmpeg. This many frames in a row are not a coincidence there.
_MOST_JUNK_BYTES, _FRAMES_IN_A_ROW = 2**16, 24
_MOST_TAGS, MOST_CHUNKS = 8, 10_000
_MOST_ZEROS = 2**20
_SAMPLE_RATES = (44_100, 48_000, 32_000)


def identify_container(read_at: ReadAt, n_bytes: int) -> str | None:
    """Return which container a file is, by FFmpeg's name of its demuxer; None if it is none of these."""
    start = skip_tags(read_at)
    head = read_at(start, 16)
    for magic, name in _BY_MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] in _RIFFS and head[8:12] == b"WAVE":
        return WAV
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return AIFF
    # Text may hold the word too, but then the bytes before it are not a size.
    size = int.from_bytes(head[:4], "big")
    if head[4:8] in _MOV_ATOMS and (size in (0, 1) or 8 <= size <= n_bytes - start):
        return MOV
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        # The mark of UTF-16 also begins some MPEG frames, but no text follows these.
        text = read_at(start, 256)
        words = text[: len(text) // 2 * 2].decode("utf-16", errors="replace").strip()
        if all(character.isprintable() or character.isspace() for character in words):
            return None
    found = find_mpeg(read_at, start, n_bytes)
    return None if found is None else found[0]


def shifted(read_at: ReadAt, start: int) -> ReadAt:
    """Return a function that reads a file as if it began at `start`."""
    return lambda offset, size: read_at(start + offset, size)


def find_start(read_at: ReadAt) -> int:
    """Return where a file's container begins, after zeros, and after tags unless MPEG frames follow them.

    FFmpeg itself skips tags before MPEG frames, and recognises the frames by them.
    """
    zeros = 0
    # An MP4 begins with a few zeros, which belong to its first size.
    while zeros < _MOST_ZEROS and len(data := read_at(zeros, 16)) == 16 and not any(data):
        zeros += 16
    if zeros:
        zeros += len(data) - len(data.lstrip(b"\0"))
    start = zeros + skip_tags(shifted(read_at, zeros))
    return zeros if read_at(start, 2)[:1] == b"\xff" else start


def find_mpeg(read_at: ReadAt, start: int, n_bytes: int) -> tuple[str, int] | None:
    """Return `MP3` or `ADTS`, and where the first frame of such a stream begins behind the tags; None if there is none."""
    data = read_at(start, max(0, min(n_bytes - start, 2 * _MOST_JUNK_BYTES)))
    at = data.find(b"\xff")
    while 0 <= at < _MOST_JUNK_BYTES:
        for kind, measure in ((MP3, read_mpeg_frame), (ADTS, _read_adts_frame)):
            frame = measure(data[at : at + 8])
            n_frames, end = 0, at
            while frame is not None and n_frames < _FRAMES_IN_A_ROW:
                n_frames, end = n_frames + 1, end + frame.n_bytes
                if end >= n_bytes - start:
                    break
                following = measure(data[end : end + 8])
                frame = following if following is not None and following.kind == frame.kind else None
            # At the beginning two frames are enough, or one that is the whole file. A frame that is cut does not count.
            # Layer I is refused after junk, because tables in programs look like it, and it is rare.
            is_all = n_frames > 0 and end == n_bytes - start
            is_odd = kind == MP3 and n_frames > 0 and data[at + 1] & 6 == 6
            if at == 0 and (is_all or n_frames >= 2):
                return kind, start
            if not is_odd and (n_frames >= _FRAMES_IN_A_ROW or (n_frames > 2 and end >= n_bytes - start)):
                return kind, start + at
        at = data.find(b"\xff", at + 1)
    return None


class _Frame(NamedTuple):
    """A frame of MPEG audio: its length in bytes, what it has in common with the next, and where a Xing header would stand."""

    n_bytes: int
    kind: tuple[int, int, int]
    xing_at: int


def read_mpeg_frame(head: bytes) -> _Frame | None:
    """Read the header of a frame of MPEG-1, 2 or 2.5, layers I to III."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = (head[1] >> 3) & 3, 4 - ((head[1] >> 1) & 3)
    bit_rate, rate = head[2] >> 4, (head[2] >> 2) & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    bits = _FORMATS["bit_rates"][0 if is_first else 1][layer - 1][bit_rate - 1] * 1_000
    sample_rate = _SAMPLE_RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    padding = (head[2] >> 1) & 1
    if layer == 1:
        n_bytes = (12 * bits // sample_rate + padding) * 4
    else:
        n_bytes = (72 if layer == 3 and not is_first else 144) * bits // sample_rate + padding
    is_mono = head[3] >> 6 == 3
    side = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return _Frame(n_bytes, (version, layer, rate), 4 + side)


def _read_adts_frame(head: bytes) -> _Frame | None:
    """Read the header of a frame of AAC: https://wiki.multimedia.cx/index.php/ADTS."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    rate, n_bytes = (head[2] >> 2) & 15, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return _Frame(n_bytes, (head[1] >> 3 & 1, 0, rate), 0) if rate < 13 and n_bytes > 7 else None


def skip_tags(read_at: ReadAt) -> int:
    """Return where ID3 tags at the beginning end: https://id3.org/id3v2.4.0-structure."""
    at = 0
    for _ in range(_MOST_TAGS):
        head = read_at(at, 10)
        if len(head) < 10 or head[:3] != b"ID3" or head[3] == 0xFF or max(head[6:10]) > 127:
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        at += 10 + size + (10 if head[5] & 0x10 else 0)
    return at


def not_audio() -> RecordingError:
    """Return the error for a file that is in no known container."""
    return RecordingError(Status.NOT_AUDIO, "the content is no audio format that emotion-batch reads")
