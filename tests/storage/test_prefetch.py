"""Tests of reading ahead: what a segment needs of a recording and no more, many at once, and faults as they are."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from support.recordings import tone
from support.servers import Bucket, Portal, Proxy, write_certificate

from emotion_batch import usage
from emotion_batch.errors import DeniedError, StorageError, StoreError
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage import prefetch, retry
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.bucket import Store, open_bucket
from emotion_batch.storage.entries import ENTRY_SCHEMA, Entry
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.fsspec_store import Blob
from emotion_batch.storage.prefetch import RemoteFile
from emotion_batch.worker.recordings import extract_rows

SETTINGS, SEGMENTS = FeatureSettings(), Segments()


class CountingStore:
    """A store in memory that counts what is asked of it, and may be slow, or refuse."""

    def __init__(self, objects: dict[str, bytes], latency_s: float = 0.0) -> None:
        self.objects = objects
        self.versions = Counter[str]()
        self.asked = Counter[str]()
        self.n_bytes = Counter[str]()
        self.failures: dict[str, tuple[int, Exception]] = {}
        self.most_at_once = 0
        self._latency_s = latency_s
        self._n_now = 0
        self._lock = threading.Lock()

    def get(self, path: str, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Blob:
        with self._lock:
            self.asked[path] += 1
            self._n_now += 1
            self.most_at_once = max(self.most_at_once, self._n_now)
            number = self.asked[path]
        time.sleep(self._latency_s)
        with self._lock:
            self._n_now -= 1
        first, failure = self.failures.get(path, (10**9, OSError()))
        if number >= first:
            raise failure
        if path not in self.objects:
            raise FileNotFoundError(path)
        data = self.objects[path][start:stop]
        self.n_bytes[path] += len(data)
        return Blob(data, len(self.objects[path]), f"v{self.versions[path]}")


class Place(Folder):
    """A folder of such a store."""

    def store(self, name: str = "") -> tuple[CountingStore, str]:  # type: ignore[override]
        return self.options["store"], name


def extract(
    store: CountingStore, names: list[str], segments: Segments = SEGMENTS, size: bool = True
) -> list[dict[str, object]]:
    entries = [
        Entry(name, None, len(store.objects[name]) if size and name in store.objects else None, None) for name in names
    ]
    columns = zip(*(one[: len(ENTRY_SCHEMA)] for one in entries), strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA)
    return extract_rows(batch, Place("s3://bucket", {"store": store}), SETTINGS, segments).to_pylist()


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, 1, subtype=subtype, format=kind) as sound:
        # libsndfile 1.2's Vorbis dies of a minute at a time.
        for start in range(0, len(samples), rate):
            sound.write(samples[start : start + rate])
    return stream.getvalue()


FORMATS = {
    "small.wav": ("WAV", "PCM_16", 2.0),
    "large.wav": ("WAV", "PCM_16", 120.0),
    "large24.wav": ("WAV", "PCM_24", 120.0),
    "large.rf64": ("RF64", "PCM_16", 120.0),
    "large.flac": ("FLAC", "PCM_16", 120.0),
    "large.ogg": ("OGG", "VORBIS", 120.0),
    "large.mp3": ("MP3", "MPEG_LAYER_III", 120.0),
    "large.aiff": ("AIFF", "PCM_16", 120.0),
}


@pytest.fixture(scope="module")
def recordings() -> dict[str, bytes]:
    """Recordings of every kind, small and large."""
    return {name: encoded(tone(seconds, 22_050), 22_050, *kind) for name, (*kind, seconds) in FORMATS.items()}


@pytest.mark.parametrize(
    "segments", [SEGMENTS, Segments(20.0, 3.0), Segments.windows(30.0)], ids=["seed", "late", "windows"]
)
def test_what_is_fetched_gives_the_rows_of_a_file(
    recordings: dict[str, bytes], tmp_path: Path, segments: Segments
) -> None:
    """Read over the wire or from disk, whole or in parts, a recording gives the same rows."""
    store = CountingStore(recordings)
    for name, data in recordings.items():
        (tmp_path / name).write_bytes(data)
    entries = [Entry(name, None, None, None) for name in recordings]
    columns = zip(*(one[: len(ENTRY_SCHEMA)] for one in entries), strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA)
    expected = extract_rows(batch, Folder.of(tmp_path), SETTINGS, segments).to_pylist()
    assert {row["status"] for row in expected} <= {"ok", "too_short"}
    assert extract(store, list(recordings), segments) == expected
    assert extract(store, list(recordings), segments, size=False) == expected


def test_of_a_large_recording_only_the_stretch_is_read(recordings: dict[str, bytes]) -> None:
    """One segment costs the header and what it covers, in a request or a few; what one needed the next is asked for."""
    store = CountingStore(recordings)
    extract(store, list(recordings))
    for name, data in recordings.items():
        if len(data) > 2**20:
            assert store.n_bytes[name] < 2**20, name
            assert store.asked[name] <= 8, name
    same = CountingStore({f"{number}.wav": recordings["large.wav"] for number in range(80)})
    extract(same, list(same.objects))
    assert same.asked["79.wav"] == 1
    assert same.n_bytes["79.wav"] < 200_000


def test_a_gigabyte_costs_no_more(recordings: dict[str, bytes]) -> None:
    """However long the recording, and however late its header says so: its segment is read, and not 4 MB."""
    header = bytearray(recordings["large.wav"][:44])
    size = 2**30
    header[4:8], header[40:44] = (size - 8).to_bytes(4, "little"), (size - 44).to_bytes(4, "little")

    class Sparse(CountingStore):
        def get(self, path: str, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Blob:
            data = bytes(header)[start:stop] + bytes(max(0, min(stop or size, size) - max(start, 44)))
            self.n_bytes[path] += len(data)
            return Blob(data, size, None)

    store = Sparse({})
    [row] = extract(store, ["a.wav"], Segments(5_000.0, 3.0))
    assert row["status"] == "ok"
    assert row["duration_s"] == pytest.approx((size - 44) / 44_100, abs=1)
    assert store.n_bytes["a.wav"] < 2**19


def test_windows_are_read_through_once(recordings: dict[str, bytes]) -> None:
    """A recording that is read from end to end costs its bytes and not much more, in large requests."""
    store = CountingStore(recordings)
    with usage.metered() as spent:
        extract(store, ["large.wav"], Segments.windows(3.0, 1.5))
    size = len(recordings["large.wav"])
    assert size <= store.n_bytes["large.wav"] < 1.5 * size
    assert store.asked["large.wav"] <= 2 + size / 2**20
    assert spent.read_bytes == store.n_bytes["large.wav"]


def test_many_are_fetched_at_once_and_not_all(recordings: dict[str, bytes]) -> None:
    """While one is computed others come, so many that latency does not show; what waits is bounded."""
    store = CountingStore({f"{number:03d}.wav": recordings["small.wav"] for number in range(200)}, latency_s=0.02)
    archive = Place("s3://bucket", {"store": store})
    entries = [Entry(name, None, len(data), None) for name, data in store.objects.items()]
    with prefetch.reading(archive, SEGMENTS) as reader:
        ahead = reader.ahead(entries)
        next(ahead)[1]()
        time.sleep(0.5)
        assert sum(store.asked.values()) <= prefetch._MOST_AHEAD + 1
        began = time.perf_counter()
        assert [entry.file for entry, take in ahead if take()] == list(store.objects)[1:]
        elapsed_s = time.perf_counter() - began
    assert 8 <= store.most_at_once <= prefetch._N_CONNECTIONS
    assert elapsed_s < 0.02 * 200 / 4


def test_faults_are_told_apart(recordings: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gone, was replaced or is refused alone has its status; a store that fails in passing costs a retry."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,) * 3)
    store = CountingStore(dict(recordings))
    assert [row["status"] for row in extract(store, ["gone.wav", "small.wav"])] == ["vanished", "ok"]
    entries = [Entry("small.wav", None, 5, None), Entry("small.wav", None, len(recordings["small.wav"]), "listed")]
    for entry in entries:
        batch = pa.RecordBatch.from_pylist([entry._asdict()], schema=ENTRY_SCHEMA)
        [row] = extract_rows(batch, Place("s3://bucket", {"store": store}), SETTINGS, SEGMENTS).to_pylist()
        assert row["status"] == "changed"
    store.failures["small.wav"] = (1, StoreError("is in an archive of ice", code=403))
    [row] = extract(store, ["small.wav"])
    assert (row["status"], row["error"]) == ("unreadable", "is in an archive of ice")


class PassingStore(CountingStore):
    """Fails each second request in passing."""

    def get(self, path: str, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Blob:
        blob = super().get(path, start, stop, version=version)
        if self.asked[path] % 2:
            raise StoreError("SlowDown", is_transient=True)
        return blob


def test_what_passes_is_counted(recordings: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries of the threads that fetch are in the account of the shard, and change no row."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,) * 3)
    store = PassingStore(recordings)
    with usage.metered() as spent:
        rows = extract(store, list(recordings))
    assert rows == extract(CountingStore(recordings), list(recordings))
    assert spent.n_retries == sum(store.asked.values()) // 2 > 0


@pytest.mark.parametrize("name", ["large.wav", "large.ogg", "large.flac", "large24.wav"])
@pytest.mark.parametrize(
    "failure",
    [DeniedError(13, "403 ExpiredToken"), StoreError("503", is_transient=True)],
    ids=["denied", "passing"],
)
def test_a_store_that_fails_midway_is_no_row(
    recordings: dict[str, bytes], name: str, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording whose store stops answering while a decoder reads it is not `truncated`: the store is what failed."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,))
    store = CountingStore(recordings)
    extract(store, [name], Segments(60.0, 3.0))
    n_requests = store.asked[name]
    assert n_requests > 1
    for number in range(1, n_requests + 1):
        broken = CountingStore(recordings)
        broken.failures[name] = (number, failure)
        with pytest.raises(StorageError):
            extract(broken, [name], Segments(60.0, 3.0))


def test_a_remote_file_is_a_file(recordings: dict[str, bytes]) -> None:
    """Read here and there it gives the bytes of the object, whatever the blocks, and nothing past its end."""
    data = recordings["large.flac"]
    store = CountingStore({"a": data})
    file = RemoteFile(store, "a", len(data), None, block_bytes=1_000)  # type: ignore[arg-type]
    file.keep(0, data[:1_500])
    rng = np.random.default_rng(0)
    for start, length in zip(rng.integers(0, len(data), 200), rng.integers(0, 5_000, 200), strict=True):
        assert file(int(start), int(length)) == data[start : start + length]
    file.seek(-10, io.SEEK_END)
    assert file.read() == data[-10:]
    assert (file.tell(), file.read(5)) == (len(data), b"")
    assert file.failure is None


def opened(url: str, options: dict[str, object]) -> tuple[Store, str]:
    found = open_bucket(url, options)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def archive(s3: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some recordings, small and large, on a disk and in the bucket."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(60):
        soundfile.write(folder / f"{number:02}.wav", tone(40.0 if number % 20 == 3 else 4.0, 22_050), 22_050)
    (folder / "empty.wav").touch()
    (folder / "noise.wav").write_bytes(b"no sound at all")
    s3.upload(folder, "recordings")
    return folder


def extract_archive(
    url: str, options: dict[str, object], segments: Segments
) -> tuple[list[dict[str, object]], usage.Spent]:
    entries = list_recordings(url, options=options).entries.combine_chunks().to_batches()[0]
    with usage.metered() as spent:
        return extract_rows(entries, Folder.of(url, options), SETTINGS, segments).to_pylist(), spent


@pytest.mark.parametrize(
    "segments", [SEGMENTS, Segments(20.0, 3.0), Segments.windows(3.0)], ids=["seed", "late", "windows"]
)
def test_rows_are_those_of_the_disk(s3: Bucket, archive: Path, segments: Segments) -> None:
    """Recordings that come in one request, in two or in many give the rows of their files."""
    expected, _ = extract_archive(str(archive), {}, segments)
    found, spent = extract_archive(f"{s3.url}/recordings", s3.options, segments)
    assert found == expected
    assert (spent.n_retries, spent.read_bytes > 0) == (0, True)


def test_faults_are_faults(s3: Bucket) -> None:
    """A refusal for now, a reset and a body that is cut off are transient; never are they taken for the object."""
    store, root = opened(f"{s3.url}/faults", s3.options)
    data = np.random.default_rng(0).bytes(60_000)
    bad: list[StoreError] = []
    with Proxy(s3.endpoint, fail_share=0.4, seed=1) as proxy:
        worse, _ = opened(s3.url, s3.through(proxy))
        for number in range(100):
            store.put(f"{root}/{number}", data)
            try:
                assert worse.get(f"{root}/{number}", 0, len(data)).data == data
            except StoreError as error:
                bad.append(error)
    assert all(one.is_transient for one in bad)
    assert {one.code for one in bad} == {None, 503}
    assert 10 < len(bad) <= proxy.n_failed


def test_connections_are_kept(s3: Bucket, archive: Path) -> None:
    """The next shard goes on with the connections of the last one."""
    assert archive.is_dir()
    with Proxy(s3.endpoint) as proxy:
        for _ in range(3):
            extract_archive(f"{s3.url}/recordings", s3.through(proxy), SEGMENTS)
        assert proxy.n_requests > 3 * 60
        assert proxy.n_connections <= prefetch._N_CONNECTIONS


def test_of_a_far_store_many_are_on_their_way(s3: Bucket, archive: Path) -> None:
    """Where each request takes its time, recordings do not wait for each other."""
    with Proxy(s3.endpoint, latency_s=0.2) as proxy:
        began = time.perf_counter()
        found, _ = extract_archive(f"{s3.url}/recordings", s3.through(proxy), SEGMENTS)
        assert time.perf_counter() - began < 0.2 * proxy.n_requests / 4
    assert found == extract_archive(str(archive), {}, SEGMENTS)[0]


class WithoutRanges(http.server.BaseHTTPRequestHandler):
    """Sends the whole object, whatever part is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "500000")
        self.send_header("ETag", '"x"')
        self.end_headers()
        self.wfile.write(bytes(500_000))

    def log_message(self, *_: object) -> None:
        pass


def test_a_store_without_ranges_does_not_fill_the_memory(s3: Bucket) -> None:
    """An answer that would bring all of a large object is not taken."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithoutRanges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {**s3.options, "endpoint_url": f"http://127.0.0.1:{server.server_port}"}
        with pytest.raises(StoreError):
            opened(s3.url, options)[0].get("large", 0, 10)
        server.shutdown()


def test_what_fails_in_passing_is_counted(s3: Bucket, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults cost a retry each, and no row."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.02,) * 8)
    with Proxy(s3.endpoint, fail_share=0.2, seed=2) as proxy:
        found, spent = extract_archive(f"{s3.url}/recordings", s3.through(proxy), SEGMENTS)
    assert found == extract_archive(str(archive), {}, SEGMENTS)[0]
    assert 0 < spent.n_retries <= proxy.n_failed


@pytest.mark.parametrize(
    ("client", "headers"),
    [("obstore", b""), ("obstore", b'ETag: "5f"\r\n'), ("fsspec", b"")],
    ids=["page", "page with an ETag", "page by fsspec"],
)
def test_a_page_to_log_in_is_no_recording(
    s3: Bucket, archive: Path, monkeypatch: pytest.MonkeyPatch, client: str, headers: bytes
) -> None:
    """What comes under 200 in place of recordings is asked for again, whether they are read in one request or in many."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.02,) * 12)
    if client == "fsspec":
        monkeypatch.setattr("emotion_batch.storage.folder.open_bucket", lambda *_: None)
    entries = list_recordings(f"{s3.url}/recordings", options=s3.options).entries.combine_chunks().to_batches()[0]
    for segments in (SEGMENTS, Segments.windows(3.0)):
        with Proxy(s3.endpoint) as proxy, usage.metered() as spent:
            proxy.instead = Portal(0.3, headers=headers)
            place = Folder.of(f"{s3.url}/recordings", s3.through(proxy))
            found = extract_rows(entries, place, SETTINGS, segments).to_pylist()
        assert found == extract_archive(str(archive), {}, segments)[0]
        assert spent.n_retries > 5


def test_a_private_authority_is_trusted_when_told(s3: Bucket, archive: Path, tmp_path: Path) -> None:
    """A store behind a certificate of one's own is read if that is named, or if none is to be checked."""
    certificate, context = write_certificate(tmp_path)
    with Proxy(s3.endpoint, tls=context) as proxy:
        for verify in (str(certificate), False):
            store, _ = opened(s3.url, {**s3.through(proxy), "client_kwargs": {"verify": verify}})
            assert store.get("recordings/00.wav").data == (archive / "00.wav").read_bytes()
        with pytest.raises(StoreError, match="certificate is not trusted"):
            opened(s3.url, s3.through(proxy))[0].get("recordings/00.wav")
