"""Which container a file is, by its first bytes, and how much audio its headers promise.

The name of a file says nothing. A container that is not recognised here never reaches FFmpeg, which would take a playlist
or a picture as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

ReadAt = Callable[[int, int], bytes]
Order = Literal["little", "big"]

WAV, W64, AIFF, AU, CAF, SPHERE, FLAC = "wav", "w64", "aiff", "au", "caf", "nistsphere", "flac"
OGG, MATROSKA, MOV, ASF, AMR, MP3, ADTS = "ogg", "matroska", "mov", "asf", "amr", "mp3", "aac"

# https://learn.microsoft.com/windows/win32/medfound/asf-file-structure
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
# Sony's 64-bit RIFF names its chunks by GUIDs, of which the first four bytes say the chunk.
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_BY_MAGIC = (
    (b"OggS", OGG),
    (b"fLaC", FLAC),
    (b"\x1a\x45\xdf\xa3", MATROSKA),
    (b"#!AMR", AMR),
    (_ASF_HEADER, ASF),
    (b"caff", CAF),
    (b".snd", AU),
    (b"NIST_1A", SPHERE),
    (_W64_RIFF, W64),
)
_RIFFS = (b"RIFF", b"RIFX", b"RF64", b"BW64")
# Atoms that an MP4 or QuickTime file begins with: ISO/IEC 14496-12 and the QuickTime File Format.
_MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp")
# Sizes from here on mean that the writer could not know: FFmpeg writes 0xFFFFFFFF, SoX a little less than 2**31.
_STREAMED_BYTES = 0x7FFF_0000
# Junk before the first MPEG frame that is passed over, as FFmpeg does, and frames in a row that are no coincidence there.
_MOST_JUNK_BYTES, _FRAMES_IN_A_ROW = 2**16, 24
_MOST_TAGS, _MOST_CHUNKS = 8, 10_000
_MOST_ZEROS = 2**20
# A file up to this size is walked through for streams that follow one another. Of a store a larger one is not fetched whole.
_MOST_WALKED_BYTES = 2**18
# Longest page of Ogg: https://www.rfc-editor.org/rfc/rfc3533#section-6
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
# Bit rates in kbit/s by layer, of MPEG-1 and of MPEG-2: ISO/IEC 11172-3 and 13818-3.
_BIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLE_RATES = (44_100, 48_000, 32_000)


class Extent(NamedTuple):
    """How much audio a file has.

    Attributes
    ----------
    promised
        Bytes of audio that the headers promise; more than `there` if the file is cut.
    there
        Bytes of audio that the file has.
    """

    promised: int
    there: int


def identify(read_at: ReadAt, n_bytes: int) -> str | None:
    """Return which container a file is, by FFmpeg's name of its demuxer; None if it is none of these.

    Parameters
    ----------
    read_at
        Returns bytes of the file from an offset on, fewer at its end.
    n_bytes
        Length of the file.
    """
    start = _skip_tags(read_at)
    head = read_at(start, 16)
    for magic, name in _BY_MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] in _RIFFS and head[8:12] == b"WAVE":
        return WAV
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return AIFF
    # Text may hold the word; then what stands before it is no size.
    if head[4:8] in _MOV_ATOMS and (int.from_bytes(head[:4], "big") in (0, 1) or 8 <= _size(head) <= n_bytes - start):
        return MOV
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") and _is_utf16(read_at(start, 256)):
        return None
    found = find_mpeg(read_at, start, n_bytes)
    return None if found is None else found[0]


def find_start(read_at: ReadAt) -> int:
    """Return where a file begins behind what does not belong to its container: zeros, and tags unless MPEG frames follow.

    FFmpeg passes over tags before MPEG frames itself, and knows by them what follows.
    """
    zeros = 0
    # An MP4 begins with some, which are of its first size.
    while zeros < _MOST_ZEROS and len(data := read_at(zeros, 16)) == 16 and not any(data):
        zeros += 16
    if zeros:
        zeros += len(data) - len(data.lstrip(b"\0"))
    start = zeros + _skip_tags(lambda offset, size: read_at(zeros + offset, size))
    return zeros if read_at(start, 2)[:1] == b"\xff" else start


def find_mpeg(read_at: ReadAt, start: int, n_bytes: int) -> tuple[str, int] | None:
    """Return the kind of a stream of MPEG frames, `MP3` or `ADTS`, and where its first frame begins; None if there is none.

    Parameters
    ----------
    read_at, n_bytes
        As for `identify`.
    start
        Where tags end.
    """
    data = read_at(start, max(0, min(n_bytes - start, 2 * _MOST_JUNK_BYTES)))
    at = data.find(b"\xff")
    while 0 <= at < _MOST_JUNK_BYTES:
        for kind, measure in ((MP3, _mpeg_frame), (ADTS, _adts_frame)):
            frame = measure(data[at : at + 8])
            n_frames, end = 0, at
            while frame is not None and n_frames < _FRAMES_IN_A_ROW:
                n_frames, end = n_frames + 1, end + frame.n_bytes
                if end >= n_bytes - start:
                    break
                following = measure(data[end : end + 8])
                frame = following if following is not None and following.kind == frame.kind else None
            # At the beginning two are enough, or one that is all there is; a frame that is cut off is none. Programs have
            # tables that look like frames of layer I, which hardly anything else has.
            is_all = n_frames > 0 and end == n_bytes - start
            is_odd = kind == MP3 and n_frames > 0 and data[at + 1] & 6 == 6
            if at == 0 and (is_all or n_frames >= 2):
                return kind, start
            if not is_odd and (n_frames >= _FRAMES_IN_A_ROW or (n_frames > 2 and end >= n_bytes - start)):
                return kind, start + at
        at = data.find(b"\xff", at + 1)
    return None


def measure(container: str, read_at: ReadAt, n_bytes: int) -> Extent | None:
    """Return how much audio a file of a container promises and has; None if it does not say, or says it frame by frame.

    Parameters
    ----------
    container
        As `identify` names it.
    read_at, n_bytes
        As for `identify`.
    """
    start = _skip_tags(read_at)
    if container == MP3:
        return _measure_mp3(read_at, start, n_bytes)
    measurers: dict[str, Callable[[ReadAt, int], Extent | None]] = {
        AIFF: _measure_aiff,
        ASF: _measure_asf,
        AU: _measure_au,
        CAF: _measure_caf,
        MATROSKA: _measure_matroska,
        OGG: _measure_ogg,
        W64: _measure_w64,
        WAV: _measure_wav,
    }
    return measurers[container](read_at, n_bytes) if container in measurers and not start else None


def believe(stated: int, at: int, n_bytes: int, riff_bytes: int) -> int:
    """Return how many bytes of audio a RIFF file promises, whatever its writer made of the size that it states.

    Parameters
    ----------
    stated
        Size that the ``data`` chunk states.
    at
        Where its audio begins.
    n_bytes
        Length of the file.
    riff_bytes
        Length that the file states of itself, with the first eight bytes.
    """
    there = max(0, n_bytes - at)
    if n_bytes > 2**32 and stated < 2**32 and riff_bytes < 2**32 + 8:
        # The true size has more than 32 bits, of which the upper ones are lost.
        return stated + (there - stated) // 2**32 * 2**32
    if stated >= _STREAMED_BYTES and stated > there:
        return there
    if stated > there:
        # Either the file says of itself that it is whole, or the writer counted each byte twice.
        is_whole = at <= riff_bytes <= n_bytes + 1
        return there if there and (is_whole or stated == 2 * there) else stated
    return stated


def has_index(read_at: ReadAt, n_bytes: int) -> bool:
    """Return whether an MP4 or QuickTime file has the whole of the atom that says where its samples lie."""
    at = 0
    for _ in range(_MOST_CHUNKS):
        head = read_at(at, 16)
        if len(head) < 8:
            return False
        size = _size(head)
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
    """Return what reads a WAV file so that its audio goes to the file's end, if its header states a length that is wrong.

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
    for _ in range(_MOST_CHUNKS):
        if at >= n_bytes:
            return True
        head = read_at(at, 8)
        if len(head) < 8 or not all(32 <= byte < 127 for byte in head[:4]):
            return False
        size = int.from_bytes(head[4:], "little")
        at += 8 + size + size % 2
        # The last byte of padding is often left out.
        if at > n_bytes + 1:
            return False
    return False


class _Frame(NamedTuple):
    """A frame of MPEG audio: its length in bytes, what it has in common with the next, and where a Xing header would stand."""

    n_bytes: int
    kind: tuple[int, int, int]
    xing_at: int


def _mpeg_frame(head: bytes) -> _Frame | None:
    """Read the header of a frame of MPEG-1, 2 or 2.5, layers I to III."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = (head[1] >> 3) & 3, 4 - ((head[1] >> 1) & 3)
    bit_rate, rate = head[2] >> 4, (head[2] >> 2) & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    bits = _BIT_RATES[1 if is_first else 2, layer][bit_rate - 1] * 1_000
    sample_rate = _SAMPLE_RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    padding = (head[2] >> 1) & 1
    if layer == 1:
        n_bytes = (12 * bits // sample_rate + padding) * 4
    else:
        n_bytes = (72 if layer == 3 and not is_first else 144) * bits // sample_rate + padding
    is_mono = head[3] >> 6 == 3
    side = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return _Frame(n_bytes, (version, layer, rate), 4 + side)


def _adts_frame(head: bytes) -> _Frame | None:
    """Read the header of a frame of AAC: https://wiki.multimedia.cx/index.php/ADTS."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    rate, n_bytes = (head[2] >> 2) & 15, (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return _Frame(n_bytes, (head[1] >> 3 & 1, 0, rate), 0) if rate < 13 and n_bytes > 7 else None


def _measure_mp3(read_at: ReadAt, start: int, n_bytes: int) -> Extent | None:
    """Read the header that a variable-rate encoder leaves in the first frame; None if it lacks one of both numbers."""
    found = find_mpeg(read_at, start, n_bytes)
    if found is None or found[0] != MP3:
        return None
    data = read_at(found[1], 256)
    frame = _mpeg_frame(data)
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
    """Return that nothing is there of an IFF file that is cut before its audio; None if it is not cut."""
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
    for _ in range(_MOST_CHUNKS):
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
    for _ in range(_MOST_CHUNKS):
        head = read_at(at, 12)
        if len(head) < 12:
            break
        size = int.from_bytes(head[4:], "big", signed=True)
        at += 12 + max(0, size)
        if head[:4] == b"data":
            # It begins with a number of edits; a size of -1 is one that the writer did not know.
            audio = None if size < 4 else Extent(size - 4, max(0, n_bytes - at + size - 4))
        if at > n_bytes:
            # What follows may be the table without which the audio cannot be decoded.
            return audio and Extent(max(audio.promised, audio.there + at - n_bytes), audio.there)
    return audio


def _measure_ogg(read_at: ReadAt, n_bytes: int) -> Extent | None:
    """Look whether the last page is whole: a stream does not say how many there are."""
    offset = max(0, n_bytes - _OGG_PAGE_BYTES)
    tail = read_at(offset, n_bytes - offset)
    at = tail.rfind(b"OggS\0")
    page = tail[at:]
    if at < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        return None
    end = offset + at + 27 + page[26] + sum(page[27 : 27 + page[26]])
    # Of a page that is cut nothing is decoded.
    return Extent(end, offset + at if end > n_bytes else end)


def find_links(read_at: ReadAt, n_bytes: int) -> list[int]:
    """Return where the streams of an Ogg file begin that follow one another: https://www.rfc-editor.org/rfc/rfc3533#section-4.

    Of a large file that ends with the stream that it begins with, one is assumed.
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
    """Return what sets a decoder of an Ogg stream up, or the beginning of that: its first page, and Vorbis's codebooks."""
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
    # All ones is a size that the writer did not know.
    return None if not length or size == 2 ** (7 * length) - 1 else Extent(size, max(0, n_bytes - at))


def _vint(data: bytes) -> tuple[int, int]:
    """Return a number of variable length and its length in bytes; 0 of none."""
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
    for _ in range(_MOST_CHUNKS):
        head = read_at(at, 8)
        if len(head) < 8 or at >= n_bytes:
            return
        size = int.from_bytes(head[4:], order)
        yield head[:4], size, at + 8
        at += 8 + size + size % 2


def _skip_tags(read_at: ReadAt) -> int:
    """Return where ID3 tags at the beginning end: https://id3.org/id3v2.4.0-structure."""
    at = 0
    for _ in range(_MOST_TAGS):
        head = read_at(at, 10)
        if len(head) < 10 or head[:3] != b"ID3" or head[3] == 0xFF or max(head[6:10]) > 127:
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        at += 10 + size + (10 if head[5] & 0x10 else 0)
    return at


def _size(head: bytes) -> int:
    return int.from_bytes(head[:4], "big")


def _is_utf16(head: bytes) -> bool:
    """Return whether bytes that begin with a mark of UTF-16 go on as text."""
    text = head[: len(head) // 2 * 2].decode("utf-16", errors="replace").strip()
    return all(character.isprintable() or character.isspace() for character in text)
