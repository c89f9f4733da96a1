"""Tests of what FFmpeg decodes: telephones', browsers' and cameras' recordings, whole, cut, damaged and hostile."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from support.commands import MUST_HAVE_DATA, ROOT, call_command, run_command
from support.encoding import AWKWARD, encode
from support.recordings import tone
from support.servers import Bucket

from emotion_batch import usage
from emotion_batch.errors import RecordingError, Status, UsageError
from emotion_batch.features import audio, ffmpeg
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.worker import recordings

RATE = 16_000
# Of each awkward file what FFmpeg hears of it, in seconds, and its status.
HEARD = {
    "c_g722.wav": (3.2, "ok"),
    "c_mp3_in_wav.wav": (3.28, "ok"),
    "ffmpeg_pipe.mp3": (3.28, "ok"),
    "ffmpeg_pipe_vbr.mp3": (3.28, "ok"),
    "m_damaged_middle.mp3": (3.2, "ok"),
    "m_id3_art.mp3": (3.28, "ok"),
    "m_leading_zeros_100.mp3": (3.28, "ok"),
    "o_chained_vorbis.ogg": (3.25, "ok"),
    "o_flac_in_ogg.ogg": (3.2, "ok"),
    "p_amr_named.wav": (3.2, "ok"),
    "p_caf_alac.caf": (3.2, "ok"),
    "p_m4a_named.wav": (3.2, "ok"),
    "p_webm_named.wav": (3.2, "ok"),
    "ref.wav": (3.2, "ok"),
    "v_id3_200.mp3": (3.28, "ok"),
    "v_long_noxing.mp3": (30.1, "ok"),
    "v_silence_first_noxing.mp3": (3.28, "ok"),
    "w_bw64.wav": (3.2, "ok"),
    "w_data44_too_long.wav": (3.2, "ok"),
    "w_rate_2e9.wav": (0.0, "unreadable"),
    "x_utf16.wav": (0.0, "not_audio"),
}
# Of each kind the container and codec by FFmpeg's names, the rate, the channels, and whether a file that is cut tells.
KINDS = {
    "m4a": ("ipod", "aac", 44_100, 2, True),
    "alac in m4a": ("ipod", "alac", 16_000, 1, True),
    "mov": ("mov", "pcm_s16le", 16_000, 1, True),
    "opus in mp4": ("mp4", "libopus", 48_000, 1, True),
    "3gp": ("3gp", "libopencore_amrnb", 8_000, 1, True),
    "amr": ("amr", "libopencore_amrnb", 8_000, 1, False),
    "wma": ("asf", "wmav2", 44_100, 1, True),
    "webm": ("webm", "libopus", 48_000, 1, True),
    "vorbis in mka": ("matroska", "vorbis", 44_100, 2, True),
    "vorbis in webm": ("webm", "vorbis", 48_000, 2, True),
    "flac in mka": ("matroska", "flac", 16_000, 1, True),
    "opus": ("ogg", "libopus", 8_000, 1, True),
    "vorbis": ("ogg", "vorbis", 44_100, 2, True),
    "flac in ogg": ("ogg", "flac", 16_000, 1, True),
    "flac": ("flac", "flac", 16_000, 1, True),
    "mp3": ("mp3", "libmp3lame", 44_100, 1, True),
    "mp2": ("mp2", "mp2", 44_100, 1, False),
    "aac": ("adts", "aac", 16_000, 1, False),
    "g722": ("wav", "g722", 16_000, 1, True),
    "g726": ("wav", "g726", 8_000, 1, True),
    "mp3 in wav": ("wav", "libmp3lame", 16_000, 1, True),
    "adpcm of a recorder": ("wav", "adpcm_yamaha", 16_000, 1, True),
    "alac in caf": ("caf", "alac", 16_000, 1, True),
}


def sweep(duration_s: float, rate: int, n_channels: int = 1) -> np.ndarray:
    """Return a tone that rises, so that each stretch of it sounds like no other, shape (n_samples, n_channels)."""
    seconds = np.arange(round(duration_s * rate)) / rate
    found = 0.3 * np.sin(2 * np.pi * (200 + 30 * seconds) * seconds)
    return np.stack([found * (1 - 0.3 * channel) for channel in range(n_channels)], axis=1).astype(np.float32)


def make(kind: str, duration_s: float) -> bytes:
    container, codec, rate, n_channels, _ = KINDS[kind]
    options = {"strict": "-2"} if codec in ("vorbis", "libopus", "flac") else {}
    bit_rate = 64_000 if codec == "wmav2" else None
    return encode(sweep(duration_s, rate, n_channels), rate, container, codec, options=options, bit_rate=bit_rate)


def index_first(data: bytes) -> bytes:
    """Return an MP4 with the index that stands at its end before its samples, as programs write it for the web."""
    at = data.index(b"mdat") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    index = bytearray(data[at + size :])
    for name, width in ((b"stco", 4), (b"co64", 8)):
        place = index.find(name)
        if place >= 0:
            for number in range(int.from_bytes(index[place + 8 : place + 12], "big")):
                entry = place + 12 + number * width
                offset = int.from_bytes(index[entry : entry + width], "big") + len(index)
                index[entry : entry + width] = offset.to_bytes(width, "big")
    return data[:at] + bytes(index) + data[at : at + size]


def read(data: bytes, start_s: float = 0.0, duration_s: float = 100.0) -> audio.Stretch:
    with audio.opened(data, len(data)) as recording:
        return recording.read(start_s, duration_s, sample_rate=RATE)


def windows(data: bytes, window_s: float) -> tuple[list[float], RecordingError]:
    """Return where each window of a recording ends, and what there was instead of one more."""
    ends: list[float] = []
    with audio.opened(data, len(data)) as recording:
        while True:
            try:
                ends.append(recording.read(len(ends) * window_s, window_s, sample_rate=RATE).end_s)
            except RecordingError as error:
                return ends, error


def status_of(data: bytes, start_s: float = 0.0, duration_s: float = 100.0) -> tuple[Status, str]:
    try:
        read(data, start_s, duration_s)
    except RecordingError as error:
        return error.status, error.reason
    return Status.OK, ""


@pytest.fixture(scope="module")
def awkward() -> Path:
    """Awkward recordings; skips where they are absent."""
    if not AWKWARD.exists():
        if MUST_HAVE_DATA:
            pytest.fail(f"{AWKWARD.name} is missing: put the awkward recordings beside the checkout")
        pytest.skip("the awkward recordings are not beside this checkout")
    return AWKWARD


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_awkward_recordings_are_heard_as_ffmpeg_hears_them(
    awkward: Path, request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    """Each file has its status, and in windows of 3 s is heard to its end, from a disk and from a bucket."""
    archive, options = os.fspath(awkward), ()
    if place == "bucket":
        s3: Bucket = request.getfixturevalue("s3")
        s3.upload(awkward, "awkward")
        archive, options = f"{s3.url}/awkward", ("--storage-options", json.dumps(s3.options))
    # The other files of the folder are none.
    done = call_command("extract", archive, tmp_path / "table", "--window", "3", *options)
    assert done.code == 0, done.err
    found = pq.read_table(tmp_path / "table", columns=["file", "start_s", "end_s", "status", "error"]).to_pylist()
    assert {row["file"] for row in found} == set(HEARD)
    for name, (heard_s, status) in HEARD.items():
        mine = [row for row in found if row["file"] == name]
        assert {row["status"] for row in mine} == {status}, mine
        if status == "ok":
            assert [row["start_s"] for row in mine] == [3.0 * number for number in range(len(mine))]
            assert mine[-1]["end_s"] == pytest.approx(heard_s, abs=0.05 if "damaged" in name else 0.01)
    assert "2000000000" in next(row["error"] for row in found if row["file"] == "w_rate_2e9.wav")
    # Neither libsndfile nor FFmpeg says anything of its own.
    assert all(
        line.startswith(("dashboard at", "left out 1 ")) or " of 21 recordings" in line
        for line in done.err.splitlines()
    ), done.err


@pytest.mark.parametrize("name", HEARD)
def test_an_awkward_recording_has_its_one_segment(awkward: Path, name: str) -> None:
    """The notebook's segment of each is there to its end, and cut nowhere."""
    data = (awkward / name).read_bytes()
    heard_s, status = HEARD[name]
    assert status_of(data, 0.5, 3.0)[0] == status
    if status == "ok":
        assert read(data, 0.5, 3.0).end_s == pytest.approx(min(heard_s, 3.5), abs=0.05 if "damaged" in name else 0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_encoded_is_heard(kind: str) -> None:
    """A recording of every kind sounds as it did before it was encoded, and its windows go to its end."""
    data = make(kind, 4.0)
    found = read(data)
    assert found.end_s == pytest.approx(4.0, abs=0.13)
    for second in (1, 3):
        heard = found.samples[second * RATE :][: RATE // 4]
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), 16 * len(heard)))
        # In its middle; encoders put up to a tenth of a second before it, of which not all containers tell.
        assert np.argmax(spectrum) / 4 == pytest.approx(200 + 60 * (second + 0.125), abs=7)
        assert np.sqrt(2 * np.mean(heard**2)) == pytest.approx(0.3 if KINDS[kind][3] == 1 else 0.255, rel=0.2)
    ends, stop = windows(data, 1.5)
    assert stop.status == Status.TOO_SHORT
    assert ends == [1.5, 3.0, pytest.approx(found.end_s)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_far_inside_is_that_of_the_whole(kind: str) -> None:
    """What is sought has the samples that reading on would have given, to the sample."""
    data = make(kind, 40.0)
    whole = read(data).samples
    for start_s in (13.25, 30.25):
        found = read(data, start_s, 3.0)
        assert found.end_s == start_s + 3.0
        expected = whole[int(start_s * RATE) :][: len(found.samples)]
        # The resampler's filter begins again at the stretch.
        np.testing.assert_allclose(found.samples[200:-200], expected[200:-200], atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_says_so(kind: str) -> None:
    """Half a file is `truncated` where its container tells, and else what is there; before the cut all is well."""
    data = make(kind, 10.0)
    half = data[: len(data) // 2]
    if KINDS[kind][0] in ("ipod", "mov", "mp4", "3gp"):
        # Phones write the index at the end.
        status, reason = status_of(half)
        assert status == Status.TRUNCATED and "still being written" in reason
        data = index_first(data)
        half = data[: len(data) // 2]
    if KINDS[kind][4]:
        assert status_of(half)[0] == Status.TRUNCATED
    else:
        assert read(half).end_s == pytest.approx(5.0, abs=0.2)
    # Apple's table of packets stands at the end.
    assert kind == "alac in caf" or read(half, 0.5, 1.0).end_s == 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_the_middle_is_no_cut(kind: str) -> None:
    """A recording of which some bytes are overwritten is heard up to its end, without what they held."""
    data = bytearray(make(kind, 10.0))
    at = len(data) // 2
    data[at : at + 200] = bytes(200)
    status, reason = status_of(bytes(data))
    assert status == Status.OK, reason
    assert read(bytes(data), 0.5, 1.0).end_s == 1.5


def test_stereo_telephone_calls_in_m4a_are_mixed() -> None:
    """Two channels of a call are heard as their mean, as in the notebook."""
    left, right = tone(3.0, RATE, hertz=200.0), tone(3.0, RATE, hertz=330.0)
    data = encode(np.stack([left, right], axis=1), RATE, "ipod", "aac", bit_rate=128_000)
    with audio.opened(data, len(data)) as recording:
        assert recording.header.channels == 2
        found = recording.read(0.5, 2.0, sample_rate=RATE).samples
    expected = ((left + right) / 2)[RATE // 2 :][: 2 * RATE]
    assert np.corrcoef(found, expected)[0, 1] > 0.99


def test_silence_of_a_mobile_call_lasts() -> None:
    """AMR with frames of silence is as long as the call, pauses included."""
    pause = np.zeros(4 * 8_000, np.float32)
    samples = np.concatenate([tone(1.0, 8_000), pause, tone(1.0, 8_000)])
    data = encode(samples, 8_000, "amr", "libopencore_amrnb", options={"dtx": "1"})
    at, types = 6, []
    while at < len(data):
        types.append(data[at] >> 3 & 15)
        at += (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)[types[-1]]
    # Frames of comfort noise, and such as are not sent at all.
    assert {8, 15} <= set(types)
    found = read(data)
    assert found.end_s == pytest.approx(6.0, abs=0.05)
    level = [np.sqrt(np.mean(found.samples[int(s * RATE) :][:RATE] ** 2)) for s in (0.0, 2.5, 4.95)]
    assert level[1] < 0.1 * min(level[0], level[2])


def test_the_sound_of_a_video_counts() -> None:
    """A film whose first stream is a picture is heard; one without sound has none."""
    samples = tone(3.0, 44_100)
    for container in ("mp4", "mov", "matroska"):
        data = encode(samples, 44_100, container, "aac", n_pictures=50)
        found = read(data)
        assert found.end_s == pytest.approx(3.0, abs=0.05)
        lag = 1_024 * RATE // 44_100 if container == "matroska" else 0
        assert np.abs(found.samples[lag : lag + RATE]).max() > 0.1
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as file:
        pictures = file.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 320, 240, "yuv420p"
        file.mux(pictures.encode(av.VideoFrame(320, 240, "yuv420p")))
        file.mux(pictures.encode(None))
    assert status_of(sink.getvalue()) == (Status.NOT_AUDIO, "the file has no audio stream")


def test_bytes_of_a_recording_that_does_not_say_its_length_are_counted_once(tmp_path: Path) -> None:
    """AMR in windows was read once, however many windows there are."""
    (tmp_path / "call.amr").write_bytes(make("amr", 10.0))
    listing = list_recordings(tmp_path)
    with usage.metered() as spent:
        found = recordings.extract_rows(
            listing.entries.to_batches()[0], listing.folder, FeatureSettings(), Segments.windows(1.0)
        )
    assert found.num_rows == 11
    assert spent.read_bytes == (tmp_path / "call.amr").stat().st_size


@pytest.mark.parametrize("kind", ["webm", "vorbis", "aac", "amr", "mp3"])
def test_a_file_that_is_still_being_written_is_read_as_far_as_it_is(kind: str) -> None:
    """What a recorder has written so far is heard; a live stream promises nothing."""
    container, codec, rate, n_channels, _ = KINDS[kind]
    options = {"webm": {"live": "1"}, "mp3": {"write_xing": "0"}}.get(kind, {})
    data = encode(
        sweep(8.0, rate, n_channels),
        rate,
        container,
        codec,
        options={"strict": "-2"} if codec == "vorbis" else {},
        container_options=options,
    )
    so_far = data[: len(data) // 2]
    if container == "ogg":
        # Pages are written one by one.
        so_far = so_far[: so_far.rindex(b"OggS")]
    found = read(so_far)
    assert 2.0 < found.end_s < 5.5


def test_streams_that_are_chained_need_not_be_alike() -> None:
    """Of two MP3 in one file, of other rates and channels, both are heard at the rate of the first."""
    first = encode(sweep(2.0, 16_000), 16_000, "mp3", "libmp3lame", container_options={"write_xing": "0"})
    second = encode(sweep(3.0, 44_100, 2), 44_100, "mp3", "libmp3lame", container_options={"write_xing": "0"})
    found = read(first + second)
    assert found.end_s == pytest.approx(5.0, abs=0.2)
    level = np.sqrt(np.mean(found.samples[int(2.5 * RATE) : int(4.5 * RATE)] ** 2))
    assert level == pytest.approx(0.3 * 0.85 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize(
    "junk", [bytes(70_000), b"ID3\x04\x00\x00\x00\x00\x00\x0a0123456789", bytes(range(1, 200)) * 3]
)
def test_junk_before_the_first_frame_is_passed_over(junk: bytes) -> None:
    """An MP3 behind zeros, a tag or what is left of another file is heard, and so is a WAV behind zeros or a tag."""
    data = encode(sweep(3.0, RATE), RATE, "mp3", "libmp3lame", container_options={"write_xing": "0"})
    assert read(junk + data).end_s == pytest.approx(3.1, abs=0.1)
    sink = io.BytesIO()
    soundfile.write(sink, sweep(3.0, RATE), RATE, format="WAV")
    if junk[0] in b"\0I":
        assert read(junk + sink.getvalue()).end_s == 3.0


def test_a_codec_that_cannot_be_decoded_is_named() -> None:
    """What no decoder on the list is for is `unreadable`, with the name of the codec."""
    data = encode(tone(2.0, 44_100), 44_100, "matroska", "tta")
    assert status_of(data) == (Status.UNREADABLE, "its codec cannot be decoded: tta")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{name}\n#EXT-X-ENDLIST\n", id="playlist"),
        pytest.param(b"ffconcat version 1.0\nfile '{name}'\n", id="concat"),
        pytest.param(
            b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=audio 5004 RTP/AVP 0\r\n", id="sdp"
        ),
        pytest.param(b'<?xml version="1.0"?><MPD><BaseURL>{name}</BaseURL></MPD>', id="dash"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(2_000), id="picture"),
        pytest.param(b"GIF89a" + bytes(2_000), id="gif"),
        pytest.param(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(2_000), id="jpeg"),
        pytest.param(b"%PDF-1.7\n" + bytes(range(256)) * 40, id="pdf"),
        pytest.param(b"PK\x03\x04" + bytes(range(255, -1, -1)) * 400, id="zip"),
        pytest.param("Guten Tag, hier spricht der Anrufbeantworter.\n".encode("utf-16") * 20, id="utf-16"),
        pytest.param("電話の録音です。\n".encode("utf-16-be").join([b"\xfe\xff", b""]) * 30, id="utf-16 big"),
        pytest.param("no mark\n".encode("utf-16-le") * 100, id="utf-16 without mark"),
        pytest.param(b"\xff\xfb" + b"call me back " * 50, id="lone sync"),
        pytest.param(b"\xff\xfb\x90\x64" + bytes(3_000), id="one frame of nothing"),
        pytest.param(b"\xff\xf1" + bytes(500), id="lone sync of AAC"),
        pytest.param(b"\xff" * 5_000, id="ones"),
        pytest.param(b"ID3\x04\x00\x00\x00\x00\x00\x0a" + b"0123456789" + b"no music" * 50, id="a tag alone"),
        pytest.param(b"I am free" * 100, id="the word free"),
        pytest.param(np.random.default_rng(5).bytes(300_000), id="noise"),
        pytest.param(Path(sys.executable).read_bytes()[:200_000], id="program"),
        pytest.param((tone(3.0, 16_000) * 30_000).astype("<i2").tobytes(), id="samples without a header"),
    ],
)
def test_what_is_no_audio_is_told_and_opens_nothing(content: bytes, tmp_path: Path) -> None:
    """Playlists, pictures and texts are `not_audio`, and no file that they name is opened."""
    named = tmp_path / "other.wav"
    soundfile.write(named, tone(2.0, RATE), RATE)
    data = content.replace(b"{name}", os.fsencode(named))
    past = named.stat().st_atime_ns
    assert status_of(data)[0] == Status.NOT_AUDIO
    assert named.stat().st_atime_ns == past


@pytest.mark.parametrize("name", ["m4a", "mp3", "opus", "vorbis", "webm", "amr", "wma"])
@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(40), id="some"),
        pytest.param(range(2_000), id="all", marks=pytest.mark.torture),
    ],
)
def test_mutated_files_give_a_row_each(name: str, seeds: range, tmp_path: Path) -> None:
    """However bytes of a phone's recording are changed, it has its rows, its worker lives, and memory stays level."""
    archive = tmp_path / "archive"
    archive.mkdir()
    whole = make(name, 3.0)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 12))):
            data[int(rng.integers(0, 300 if seed % 2 else len(data)))] = int(rng.integers(0, 256))
        if seed % 4 == 0:
            at = int(rng.integers(0, len(data)))
            data[at : at + int(rng.integers(1, 2_000))] = rng.bytes(int(rng.integers(0, 2_000)))
        if seed % 4 == 1:
            del data[int(rng.integers(1, len(data))) :]
        (archive / f"{seed}.{name}").write_bytes(data)
    script = (
        "import sys; from emotion_batch.worker import recordings as rows; from emotion_batch.storage.archive import list_recordings\n"
        "from emotion_batch.settings import FeatureSettings, Segments\n"
        "listing = list_recordings(sys.argv[1], suffixes=[sys.argv[2]])\n"
        "peaks = []\n"
        "def on_row():\n"
        "    peaks.append(int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]))\n"
        "found = rows.extract_rows(listing.entries.combine_chunks().to_batches()[0], listing.folder, FeatureSettings(),"
        " Segments.windows(1.0), on_row)\n"
        "print(len(set(found['file'].to_pylist())), peaks[len(peaks) // 2], peaks[-1])\n"
    )
    command = [sys.executable, "-c", script, os.fspath(archive), name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    n_files, half_way, peak = map(int, done.stdout.split())
    assert n_files == len(seeds)
    assert peak < 1.1 * half_way + 20_000


def test_three_hours_of_m4a_take_little_memory(tmp_path: Path) -> None:
    """A phone's recording of three hours is read in windows to its end, in less than 400 MB."""
    minute = encode(sweep(60.0, 8_000), 8_000, "ipod", "aac", bit_rate=24_000)
    path = tmp_path / "long.m4a"
    with av.open(io.BytesIO(minute)) as source, av.open(os.fspath(path), "w", format="ipod") as sink:
        stream = sink.add_stream_from_template(source.streams.audio[0])
        packets = [packet for packet in source.demux(source.streams.audio[0]) if packet.size]
        step = packets[0].duration
        for number in range(180 * len(packets)):
            origin = packets[number % len(packets)]
            packet = av.Packet(bytes(origin))
            packet.stream, packet.time_base = stream, origin.time_base
            packet.pts = packet.dts = number * step
            packet.duration = step
            sink.mux(packet)
    script = (
        "import os, sys; from emotion_batch.features import audio\n"
        "file = os.open(sys.argv[1], os.O_RDONLY); n = 0\n"
        "with audio.opened(file, os.fstat(file).st_size) as recording:\n"
        "    while True:\n"
        "        try: end = recording.read(n * 60.0, 60.0, sample_rate=22050).end_s\n"
        "        except Exception as error: print(end, error.status); break\n"
        "        n += 1\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, cwd=ROOT, check=True)
    (end, stop), (peak,) = (line.split() for line in done.stdout.splitlines())
    assert stop == "too_short"
    assert float(end) == pytest.approx(180 * len(packets) * 1_024 / 8_000, abs=0.2)
    assert int(peak) < 400_000


def test_of_a_large_file_in_a_bucket_only_its_segment_is_read(s3: Bucket, tmp_path: Path) -> None:
    """Of a film of several megabytes its index and the segment are fetched, and not its pictures."""
    data = encode(tone(12.0, 44_100), 44_100, "mp4", "aac", n_pictures=300)
    assert len(data) > 4e6
    s3.write({f"films/{name}.mp4": data for name in "abc"})
    segment = ("--offset", "0.5", "--duration", "1")
    options = ("--storage-options", json.dumps(s3.options), "--json")
    done = call_command("extract", f"{s3.url}/films", tmp_path / "table", *segment, *options)
    assert done.code == 0, done.err
    assert done.result["counts"]["by_status"] == {"ok": 3}
    assert done.result["spent"]["read_bytes"] < 3 * len(data) / 3


def test_what_ffmpeg_does_to_a_process_ends_as_with_libsndfile(tmp_path: Path) -> None:
    """A crash and a hang within FFmpeg cost their own rows."""
    folder, archive = tmp_path / "site", tmp_path / "archive"
    folder.mkdir()
    archive.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "import av\n"
        "real = av.open\n"
        "def opened(file, *arguments, **options):\n"
        "    tag = file._read_at(0, file._n_bytes)[-4:]\n"
        "    if tag == b'ABRT': os.abort()\n"
        "    while tag == b'LOOP': pass\n"
        "    return real(file, *arguments, **options)\n"
        "av.open = opened\n"
    )
    data = encode(sweep(2.0, 16_000), 16_000, "ogg", "flac")
    for name, tail in (("a.ogg", b""), ("b.ogg", b"ABRT"), ("c.ogg", b"LOOP"), ("d.ogg", b"")):
        (archive / name).write_bytes(data + tail)
    done = run_command(
        *("extract", archive, tmp_path / "table", "--workers", "1", "--deadline", "3", "--json"),
        environment={"PYTHONPATH": os.fspath(folder)},
    )
    assert done.code == 0, done.err
    found = pq.read_table(tmp_path / "table", columns=["file", "status"]).to_pylist()
    assert {row["file"]: row["status"] for row in found} == {
        "a.ogg": "ok",
        "b.ogg": "crashed",
        "c.ogg": "timeout",
        "d.ogg": "ok",
    }


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32"])
def test_what_libsndfile_decodes_otherwise_ffmpeg_decodes(subtype: str) -> None:
    """Of telephone codecs that both know FFmpeg's word holds."""
    sink = io.BytesIO()
    soundfile.write(sink, tone(4.0, 8_000), 8_000, format="WAV", subtype=subtype)
    data = sink.getvalue()
    with av.open(io.BytesIO(data)) as file:
        whole = np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)]) / np.float32(2**15)
    expected = audio.resample(whole[4_000:][:24_000].astype(np.float32), 8_000, RATE)
    np.testing.assert_allclose(read(data, 0.5, 3.0).samples, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")),
        *(("WAV", subtype) for subtype in ("IMA_ADPCM", "MS_ADPCM")),
        *((form, "PCM_16") for form in ("WAV", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC")),
        ("FLAC", "PCM_24"),
    ],
)
def test_what_libsndfile_decodes_ffmpeg_hears_alike(form: str, subtype: str) -> None:
    """Where libsndfile is asked first, its samples are FFmpeg's: of PCM and FLAC the same, of others nearly."""
    sink = io.BytesIO()
    soundfile.write(sink, np.stack([tone(2.0, RATE), tone(2.0, RATE, hertz=330)], axis=1), RATE, subtype, format=form)
    found = read(sink.getvalue())
    with av.open(io.BytesIO(sink.getvalue())) as file:
        resampler = av.AudioResampler(format="fltp")
        frames = [one for frame in file.decode(audio=0) for one in resampler.resample(frame)]
    expected = np.concatenate([frame.to_ndarray() for frame in frames], axis=1).mean(axis=0)
    assert abs(len(found.samples) - len(expected)) < 0.01 * RATE
    n_both = min(len(found.samples), len(expected))
    difference = np.abs(found.samples[:n_both] - expected[:n_both])
    assert np.median(difference) < 0.01
    if "ADPCM" not in subtype:
        assert len(found.samples) == len(expected) and difference.max() < 1e-6


def test_neither_decoder_speaks_to_the_terminal(tmp_path: Path) -> None:
    """A damaged recording that is labelled here and now leaves its one line, and no warning of a library."""
    data = bytearray(make("mp3", 4.0))
    data[5_000:6_000] = b"\xff\xfb" * 500
    path = tmp_path / "damaged.mp3"
    path.write_bytes(data)
    text = tmp_path / "text.mp3"
    text.write_bytes("Hallo\n".encode("utf-16") * 200)
    done = call_command("label", path)
    assert (done.code, done.err) == (0, "")
    done = call_command("label", text)
    assert (done.code, done.err) == (1, "")
    assert "not_audio" in done.out


def test_what_is_encoded_is_heard_again() -> None:
    """A tone in MP3 comes back; an encoder that FFmpeg lacks is a sentence."""
    samples = tone(1.0, 16_000, hertz=440)
    data = ffmpeg.encode(samples, 16_000, codec="libmp3lame", container="mp3", bits_per_s=32_000)
    assert len(data) == pytest.approx(32_000 / 8, rel=0.2)
    with audio.opened(data, len(data)) as recording:
        heard = recording.read(0.0, 1.0, sample_rate=16_000).samples
    assert np.corrcoef(samples[2_000:14_000], heard[2_000:14_000])[0, 1] > 0.99
    with pytest.raises(UsageError, match="this build has no encoder nonsense"):
        ffmpeg.encode(samples, 16_000, codec="nonsense", container="mp3", bits_per_s=32_000)
