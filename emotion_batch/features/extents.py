"""Read from the headers of a container how much audio they promise, and how much of it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from emotion_batch.features import containers
from emotion_batch.features.containers import MOST_CHUNKS, MP3, Order, ReadAt, find_mpeg, read_mpeg_frame, skip_tags

_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
# Sizes from here on mean that the writer could not know: FFmpeg writes 0xFFFFFFFF, SoX a little less than 2**31.
_STREAMED_BYTES = 0x7FFF_0000
# Only a file up to this size is searched for several streams, so that a larger one is not fetched whole from a store.
_MOST_WALKED_BYTES = 2**18
# Longest page of Ogg: https://www.rfc-editor.org/rfc/rfc3533#section-6
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255


class Extent(NamedTuple):
    """How many bytes of audio the headers of a file promise, and how many are there.

    More are promised than there are if the file is cut.
    """

    promised: int
    there: int


def measure_extent(container: str, read_at: ReadAt, n_bytes: int) -> Extent | None:
    """Return how much audio a file promises and has; None if it does not say, or says it frame by frame."""
    start = skip_tags(read_at)
    if container == MP3:
        return _measure_mp3(read_at, start, n_bytes)
    measurers: dict[str, Callable[[ReadAt, int], Extent | None]] = {
        containers.AIFF: _measure_aiff,
        containers.ASF: _measure_asf,
        containers.AU: _measure_au,
        containers.CAF: _measure_caf,
        containers.MATROSKA: _measure_matroska,
        containers.OGG: _measure_ogg,
        containers.W64: _measure_w64,
        containers.WAV: _measure_wav,
    }
    return measurers[container](read_at, n_bytes) if container in measurers and not start else None


def believe(stated: int, at: int, n_bytes: int, riff_bytes: int) -> int:
    """Return how many bytes of audio a RIFF file promises, even if its writer stated a wrong size.

    The audio begins `at`; `riff_bytes` is the length that the file states of itself, with the first eight bytes.
    """
    there = max(0, n_bytes - at)
    if n_bytes > 2**32 and stated < 2**32 and riff_bytes < 2**32 + 8:
        # The true size has more than 32 bits, and the upper bits are lost.
        return stated + (there - stated) // 2**32 * 2**32
    if stated >= _STREAMED_BYTES and stated > there:
        return there
    if stated > there:
        # Either the file's own length says that it is whole, or the writer counted each byte twice.
        is_whole = at <= riff_bytes <= n_bytes + 1
        return there if there and (is_whole or stated == 2 * there) else stated
    return stated


def has_index(read_at: ReadAt, n_bytes: int) -> bool:
    """Return whether an MP4 or QuickTime file has the whole of the atom that says where its samples lie."""
    at = 0
    for _ in range(MOST_CHUNKS):
        head = read_at(at, 16)
        if len(head) < 8:
            return False
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        end = n_bytes if size == 0 else at + size
        if head[4:8] == b"moov":
            return end <= n_bytes
        if end < at + 8:
            return False
        at = end
    return False


def read_wave_format(read_at: ReadAt, n_bytes: int) -> tuple[int, int] | None:
    """Return the number by which a RIFF/WAVE file names its codec, and its rate in Hz; None if it does not say."""
    order: Order = "big" if read_at(0, 4) == b"RIFX" else "little"
    for name, _, at in _chunks(read_at, 12, n_bytes, order):
        if name == b"fmt " and len(data := read_at(at, 8)) == 8:
            return int.from_bytes(data[:2], order), int.from_bytes(data[4:], order)
    return None


def unbound(read_at: ReadAt, n_bytes: int) -> ReadAt:
    """Return a function that reads a WAV file so that its audio goes to the file's end if its header states a wrong length.

    Lengths of 32 bits have wrapped at 4 GB, and those of 64 bits may never have been filled in; FFmpeg takes a 0 for unknown.
    """
    magic = read_at(0, 4)
    order: Order = "big" if magic == b"RIFX" else "little"
    chunks = {name: (size, at) for name, size, at in _chunks(read_at, 12, n_bytes, order)}
    if b"data" not in chunks:
        return read_at
    size, at = chunks[b"data"]
    if magic in (b"RF64", b"BW64"):
        wide = int.from_bytes(read_at(chunks[b"ds64"][1] + 8, 8), "little") if b"ds64" in chunks else 0
        extent = _measure_wav(read_at, n_bytes)
        if extent is None or extent.promised == (wide if size == 0xFFFF_FFFF else size):
            return read_at
    elif n_bytes <= 2**32:
        return read_at
    patches = ((0, b"RIFX" if order == "big" else b"RIFF"), (at - 4, bytes(4)))

    def read(offset: int, size: int) -> bytes:
        data = bytearray(read_at(offset, size))
        for place, value in patches:
            for number, byte in enumerate(value, place - offset):
                if 0 <= number < len(data):
                    data[number] = byte
        return bytes(data)

    return read


def is_chunks(read_at: ReadAt, at: int, n_bytes: int) -> bool:
    """Return whether chunks of RIFF, and nothing else, follow from a place to the end of the file."""
    for name, size, content_at in _chunks(read_at, at, n_bytes, "little"):
        if not all(32 <= byte < 127 for byte in name):
            return False
        at = content_at + size + size % 2
    # The last byte of padding is often left out.
    return n_bytes <= at <= n_bytes + 1


def _measure_mp3(read_at: ReadAt, start: int, n_bytes: int) -> Extent | None:
    """Read the header that a variable-rate encoder leaves in the first frame; None if it lacks one of the two numbers."""
    found = find_mpeg(read_at, start, n_bytes)
    if found is None or found[0] != MP3:
        return None
    data = read_at(found[1], 256)
    frame = read_mpeg_frame(data)
    if frame is None:
        return None
    xing = data[frame.xing_at : frame.xing_at + 16]
    vbri = data[36:54]
    if xing[:4] in (b"Xing", b"Info") and xing[7] & 3 == 3:
        promised = int.from_bytes(xing[12:16], "big")
    elif vbri[:4] == b"VBRI":
        promised = int.from_bytes(vbri[10:14], "big")
    else:
        return None
    return Extent(promised, n_bytes - found[1]) if promised else None


def _measure_wav(read_at: ReadAt, n_bytes: int) -> Extent | None:
    head = read_at(0, 12)
    order: Order = "big" if head[:4] == b"RIFX" else "little"
    wide = None
    for name, size, at in _chunks(read_at, 12, n_bytes, order):
        if name == b"ds64":
            # RF64 and BW64 keep their sizes here: EBU Tech 3306, ITU-R BS.2088.
            wide = int.from_bytes(read_at(at + 8, 8), "little")
        elif name == b"data":
            there = max(0, n_bytes - at)
            if wide is not None:
                riff_bytes = int.from_bytes(read_at(20, 8), "little") + 8
                stated = wide if size == 0xFFFF_FFFF else size
                is_known = 0 < stated < 2**63 and not (stated > there and at <= riff_bytes <= n_bytes + 1)
                return Extent(stated if is_known and stated != 2 * there else there, there)
            if not size and not is_chunks(read_at, at, n_bytes):
                return Extent(there, there)
            return Extent(believe(size, at, n_bytes, int.from_bytes(head[4:8], order) + 8), there)
    return _measure_header(head, order, n_bytes)


def _measure_header(head: bytes, order: Order, n_bytes: int) -> Extent | None:
    """Return the extent of an IFF file that is cut before its audio; None if it is not cut."""
    promised = int.from_bytes(head[4:8], order) + 8
    return Extent(promised - n_bytes, 0) if n_bytes < promised < _STREAMED_BYTES else None


def _measure_aiff(read_at: ReadAt, n_bytes: int) -> Extent | None:
    for name, size, at in _chunks(read_at, 12, n_bytes, "big"):
        if name == b"SSND":
            there = max(0, n_bytes - at)
            riff_bytes = int.from_bytes(read_at(4, 4), "big") + 8
            # The first eight bytes are no audio.
            return Extent(max(0, believe(size, at, n_bytes, riff_bytes) - 8), max(0, there - 8))
    return _measure_header(read_at(0, 12), "big", n_bytes)


def _measure_w64(read_at: ReadAt, n_bytes: int) -> Extent | None:
    at = 40
    for _ in range(MOST_CHUNKS):
        head = read_at(at, 24)
        if len(head) < 24:
            return None
        size = int.from_bytes(head[16:], "little")
        if head[:4] == b"data":
            return Extent(size - 24, max(0, n_bytes - at - 24)) if size >= 24 else None
        at += max(24, (size + 7) // 8 * 8)
    return None


def _measure_au(read_at: ReadAt, n_bytes: int) -> Extent | None:
    head = read_at(0, 12)
    at, size = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:], "big")
    there = max(0, n_bytes - at)
    return Extent(there if size in (0, 2 * there) or size >= _STREAMED_BYTES else size, there)


def _measure_caf(read_at: ReadAt, n_bytes: int) -> Extent | None:
    """Read Apple's chunks: https://developer.apple.com/library/archive/documentation/MusicAudio/Reference/CAFSpec/."""
    at = 8
    audio: Extent | None = None
    for _ in range(MOST_CHUNKS):
        head = read_at(at, 12)
        if len(head) < 12:
            break
        size = int.from_bytes(head[4:], "big", signed=True)
        at += 12 + max(0, size)
        if head[:4] == b"data":
            # It begins with a number of edits. A size of -1 means that the writer did not know it.
            audio = None if size < 4 else Extent(size - 4, max(0, n_bytes - at + size - 4))
        if at > n_bytes:
            # The missing bytes may hold the table that the decoder needs.
            return audio and Extent(max(audio.promised, audio.there + at - n_bytes), audio.there)
    return audio


def _measure_ogg(read_at: ReadAt, n_bytes: int) -> Extent | None:
    """Check whether the last page is whole, because a stream does not say how many pages it has."""
    offset = max(0, n_bytes - _OGG_PAGE_BYTES)
    tail = read_at(offset, n_bytes - offset)
    at = tail.rfind(b"OggS\0")
    page = tail[at:]
    if at < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        return None
    end = offset + at + 27 + page[26] + sum(page[27 : 27 + page[26]])
    # A page that is cut is not decoded at all.
    return Extent(end, offset + at if end > n_bytes else end)


def find_links(read_at: ReadAt, n_bytes: int) -> list[int]:
    """Return where the chained streams of an Ogg file begin: https://www.rfc-editor.org/rfc/rfc3533#section-4.

    If a large file begins and ends with the same stream, only one stream is assumed.
    """
    offset = max(0, n_bytes - _OGG_PAGE_BYTES)
    tail = read_at(offset, n_bytes - offset)
    last = tail.rfind(b"OggS\0")
    is_one = last >= 0 and tail[last + 14 : last + 18] == read_at(14, 4)
    if is_one and n_bytes > _MOST_WALKED_BYTES:
        return [0]
    links, at, is_head = [0], 0, True
    while len(head := read_at(at, 27)) == 27:
        if head[:4] != b"OggS":
            found = read_at(at, _OGG_PAGE_BYTES).find(b"OggS\0", 1)
            if found < 0:
                break
            at += found
            continue
        is_first = bool(head[5] & 2)
        if is_first and not is_head:
            links.append(at)
        is_head = is_first
        at += 27 + head[26] + sum(read_at(at + 27, head[26]))
    return links


def read_setup(read_at: ReadAt, start: int) -> bytes:
    """Return the setup of an Ogg stream's decoder, or its beginning: the first page, and Vorbis's codebooks."""
    head = read_at(start, 2**16)
    n_segments = head[26] if len(head) > 26 else 0
    first = head[27 + n_segments :][: sum(head[27 : 27 + n_segments])]
    books = head.find(b"\x05vorbis")
    return first + (head[books : books + 1_000] if books >= 0 else b"")


def _measure_matroska(read_at: ReadAt, n_bytes: int) -> Extent | None:
    """Read the size of the segment: https://www.rfc-editor.org/rfc/rfc8794#section-6."""
    at = 4
    size, length = _vint(read_at(at, 8))
    at += length + size
    if read_at(at, 4) != b"\x18\x53\x80\x67":
        return None
    size, length = _vint(read_at(at + 4, 8))
    at += 4 + length
    # A size of all ones means that the writer did not know it.
    return None if not length or size == 2 ** (7 * length) - 1 else Extent(size, max(0, n_bytes - at))


def _vint(data: bytes) -> tuple[int, int]:
    """Return a number of variable length and its length in bytes; both are 0 if there is none."""
    length = 9 - data[0].bit_length() if data else 9
    if length > min(8, len(data)):
        return 0, 0
    return int.from_bytes(data[:length], "big") & (2 ** (7 * length) - 1), length


def _measure_asf(read_at: ReadAt, n_bytes: int) -> Extent | None:
    at = read_at(0, 4_096).find(_ASF_FILE_PROPERTIES)
    if at < 0:
        return None
    head = read_at(at, 96)
    size, flags = int.from_bytes(head[40:48], "little"), int.from_bytes(head[88:92], "little")
    # The first flag says that the numbers were never filled in.
    return None if flags & 1 or not size else Extent(size, n_bytes)


def _chunks(read_at: ReadAt, at: int, n_bytes: int, order: Order) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of an IFF file: name, stated size, and where the content begins."""
    for _ in range(MOST_CHUNKS):
        head = read_at(at, 8)
        if len(head) < 8 or at >= n_bytes:
            return
        size = int.from_bytes(head[4:], order)
        yield head[:4], size, at + 8
        at += 8 + size + size % 2
