"""Tests of many requests in one thread: they bring what the ordinary client brings, or say that it is to be asked."""

from __future__ import annotations

import contextlib
import http.server
import os
import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.recordings import tone
from support.servers import ODD_NAMES, Bucket, Portal, Proxy, free_ports, write_certificate

from emotion_batch import usage
from emotion_batch.errors import StoreError
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage import retry, transfers
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.bucket import BucketStore, open_bucket
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.fsspec_store import Ahead, Blob
from emotion_batch.worker.recordings import extract_rows

SIZES = (1, 44, 4_096, 100_000, 700_000)


def opened(url: str, options: dict[str, object]) -> tuple[BucketStore, str]:
    found = open_bucket(url, options)
    assert found is not None and isinstance(found[0], BucketStore)
    return found[0], found[1]


def fetch(ahead: Ahead, wanted: dict[str, int]) -> dict[str, Blob | StoreError]:
    """Return what came of the first bytes of objects."""
    found: dict[str, Blob | StoreError] = {}
    for path, n_bytes in wanted.items():
        assert ahead.begin(path, n_bytes, lambda one, path=path: found.setdefault(path, one)), path
    while len(found) < len(wanted):
        ahead.step(is_waiting=True)
    return found


def test_what_comes_is_what_the_client_gets(s3: Bucket) -> None:
    """Bytes, size and version are those of one request after the other, whatever the name and however much is asked for."""
    store, root = opened(f"{s3.url}/side-by-side", s3.options)
    rng = np.random.default_rng(0)
    names = [f"{root}/{number}.bin" for number in range(40)] + [f"{root}/{name}" for name in ODD_NAMES]
    for number, name in enumerate(names):
        store.put(name, rng.bytes(SIZES[number % len(SIZES)]))
    for most in (10, 50_000, 10**6):
        with store.ahead() as ahead:
            assert ahead is not None
            found = fetch(ahead, dict.fromkeys(names, most))
        assert found == {name: store.get(name, 0, most) for name in names}


def test_what_does_not_come_is_left_to_the_client(s3: Bucket) -> None:
    """What is not there, is empty, or may not be named is an answer, and none that is asked for again."""
    store, root = opened(f"{s3.url}/absent", s3.options)
    store.put(f"{root}/empty", b"")
    with store.ahead() as ahead:
        assert ahead is not None
        found = fetch(ahead, {f"{root}/gone": 10, f"{root}/empty": 10})
        for name in ("/first", f"{root}//twice", f"{root}/../up"):
            assert not ahead.begin(name, 10, pytest.fail)
    assert {path: (one.code, one.is_transient) for path, one in found.items() if isinstance(one, StoreError)} == {
        f"{root}/gone": (404, False),
        f"{root}/empty": (416, False),
    }


def test_faults_are_faults(s3: Bucket) -> None:
    """A refusal for now, a reset and a body that is cut off are transient; never are they taken for the object."""
    store, root = opened(f"{s3.url}/faults", s3.options)
    data = np.random.default_rng(0).bytes(60_000)
    names = [f"{root}/{number}" for number in range(100)]
    for name in names:
        store.put(name, data)
    with Proxy(s3.endpoint, fail_share=0.4, seed=1) as proxy:
        worse, _ = opened(s3.url, s3.through(proxy))
        with worse.ahead() as ahead:
            assert ahead is not None
            found = fetch(ahead, dict.fromkeys(names, len(data)))
    good = [one for one in found.values() if isinstance(one, Blob)]
    bad = [one for one in found.values() if isinstance(one, StoreError)]
    assert all(one.data == data for one in good) and all(one.is_transient for one in bad)
    assert {one.code for one in bad} == {None, 503}
    # A reset of a connection that served before is libcurl's own to mend.
    assert 10 < len(bad) <= proxy.n_failed


def test_connections_are_kept_and_what_is_abandoned_is_not_called(s3: Bucket) -> None:
    """The next shard goes on with the connections of the last one; of what nobody waits for nothing is heard."""
    store, root = opened(f"{s3.url}/kept", s3.options)
    names = [f"{root}/{number}" for number in range(20)]
    for name in names:
        store.put(name, b"12345")
    with Proxy(s3.endpoint) as proxy:
        far, _ = opened(s3.url, s3.through(proxy))
        for _ in range(3):
            with far.ahead() as ahead:
                assert ahead is not None
                fetch(ahead, dict.fromkeys(names, 5))
        assert proxy.n_connections <= len(names)
        assert proxy.n_requests == 3 * len(names)
        with far.ahead() as ahead:
            assert ahead is not None
            for name in names:
                ahead.begin(name, 5, pytest.fail)
            ahead.step()
        with far.ahead() as again:
            assert again is ahead
            assert len(fetch(again, dict.fromkeys(names, 5))) == len(names)


class WithoutRanges(http.server.BaseHTTPRequestHandler):
    """Sends all of an object, whatever is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        n_bytes = int(self.path.partition("?")[0].rpartition("/")[2])
        self.send_response(200)
        self.send_header("Content-Length", str(n_bytes))
        self.send_header("ETag", '"x"')
        self.end_headers()
        self.wfile.write(bytes(n_bytes))

    def log_message(self, *_: object) -> None:
        pass


def test_a_store_without_ranges_does_not_fill_the_memory(s3: Bucket) -> None:
    """An answer that brings all of a small object will do; one that would bring all of a large one is not taken."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithoutRanges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {**s3.options, "endpoint_url": f"http://127.0.0.1:{server.server_port}"}
        store, _ = opened(s3.url, options)
        with store.ahead() as ahead:
            assert ahead is not None
            found = fetch(ahead, {"5000": 10, "500000": 10})
        server.shutdown()
    assert found["5000"] == Blob(bytes(5_000), 5_000, "x")
    assert isinstance(found["500000"], StoreError)


@pytest.mark.parametrize(
    ("code", "headers", "is_taken"),
    [
        (206, b"Content-Range: bytes 0-4/9\r\n", True),
        (206, b"content-range:bytes 0-4/9 \r\n", True),
        (206, b"Content-Range: bytes 4-8/9\r\n", False),
        (206, b"Content-Range: bytes 0-8/9\r\n", False),
        (206, b"Content-Range: bytes 0-4/*\r\n", False),
        (206, b"X-Content-Range: bytes 0-4/9\r\n", False),
        (206, b"", False),
        (200, b"content-length: 5\r\n", True),
        (200, b"HTTP/1.1 200 OK\r\nServer: one\r\ncontent-length: 5\r\nDate: now\r\n\r\n", True),
        (200, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", False),
        (200, b"Content-Length: 5, 5\r\n", False),
        (200, b"", False),
    ],
)
def test_an_answer_that_may_be_another_part_or_cut_off_is_not_taken(code: int, headers: bytes, is_taken: bool) -> None:
    """Bytes are those of the object's beginning by what the answer itself says, or the ordinary client is asked."""
    found = transfers._understood(code, headers + b'ETag: "x"\r\n', b"12345")
    assert isinstance(found, Blob) == is_taken
    if is_taken:
        # Without an ETag it comes from something else than a store, for now.
        found = transfers._understood(code, headers, b"12345")
        assert isinstance(found, StoreError) and found.is_transient


def test_waiting_is_not_spinning_though_descriptors_are_many(s3: Bucket) -> None:
    """Those from 1,024 on are beyond what select() knows, which says at once that there is nothing to wait for."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    store, root = opened(f"{s3.url}/many", s3.options)
    store.put(f"{root}/one", b"12345")
    with Proxy(s3.endpoint, latency_s=0.5) as proxy, contextlib.ExitStack() as files:
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(2_048, limits[0]), limits[1]))
        for _ in range(1_100):
            files.enter_context(Path(os.devnull).open())
        far, _ = opened(s3.url, s3.through(proxy))
        with far.ahead() as ahead:
            assert ahead is not None
            cpu_s, began = time.process_time(), time.perf_counter()
            assert fetch(ahead, {f"{root}/one": 5})[f"{root}/one"] == store.get(f"{root}/one", 0, 5)
            assert time.process_time() - cpu_s < (time.perf_counter() - began) / 2


def test_each_thread_has_its_own(s3: Bucket) -> None:
    """Two that read at the same time do not share what is for one thread."""
    store, _ = opened(s3.url, s3.options)
    seen: list[Ahead | None] = []

    def look() -> None:
        with store.ahead() as other:
            seen.append(other)

    with store.ahead() as ahead:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert ahead is not None and seen[0] is not None and seen[0] is not ahead


def test_who_never_comes_through_is_not_asked_for_ever(s3: Bucket) -> None:
    """Where libcurl gets to nothing at all, the ordinary client is left to do it, or to say why not."""
    options = {**s3.options, "endpoint_url": f"http://127.0.0.1:{free_ports(1)}"}
    store, _ = opened(s3.url, options)
    with store.ahead() as ahead:
        assert ahead is not None
        found = fetch(ahead, dict.fromkeys((str(number) for number in range(transfers._MOST_FAILED)), 10))
        assert all(isinstance(one, StoreError) and one.is_transient for one in found.values())
        assert not ahead.begin("another", 10, pytest.fail)


def test_of_others_it_is_not_asked(s3: Bucket, gcs: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads do it where nothing is signed with keys at hand, and where pycurl is not installed."""
    for url, options in ((s3.url, {**s3.options, "anon": True}), (gcs.url, gcs.options), ("memory://x", {})):
        with Folder.of(url, options).store()[0].ahead() as ahead:
            assert ahead is None
    monkeypatch.setitem(sys.modules, "pycurl", None)
    options = {**s3.options, "default_block_size": 5}
    with Folder.of(s3.url, options).store()[0].ahead() as ahead:
        assert ahead is None


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


def extract(url: str, options: dict[str, object], segments: Segments) -> tuple[list[dict[str, object]], usage.Spent]:
    entries = list_recordings(url, options=options).entries.combine_chunks().to_batches()[0]
    with usage.metered() as spent:
        return extract_rows(entries, Folder.of(url, options), FeatureSettings(), segments).to_pylist(), spent


@pytest.mark.parametrize(
    "segments", [Segments(), Segments(20.0, 3.0), Segments.windows(3.0)], ids=["seed", "late", "windows"]
)
def test_rows_are_those_of_the_disk(s3: Bucket, archive: Path, segments: Segments) -> None:
    """Recordings that come in one request, in two or in many give the rows of their files."""
    expected, _ = extract(str(archive), {}, segments)
    found, spent = extract(f"{s3.url}/recordings", s3.options, segments)
    assert found == expected
    assert (spent.n_retries, spent.read_bytes > 0) == (0, True)


def test_of_a_far_store_more_is_on_its_way(s3: Bucket, archive: Path) -> None:
    """Where waiting takes much of the time more is asked for ahead, up to a limit, and the next shard begins with that."""
    with Proxy(s3.endpoint, latency_s=0.1) as proxy:
        options = s3.through(proxy)
        assert extract(f"{s3.url}/recordings", options, Segments())[0] == extract(str(archive), {}, Segments())[0]
        with opened(s3.url, options)[0].ahead() as ahead:
            assert ahead is not None
            assert transfers._FIRST_AHEAD < ahead.n_ahead <= transfers._MOST_AHEAD


def test_what_the_first_answer_takes_makes_no_store_far(s3: Bucket, archive: Path) -> None:
    """A shard begins with waiting wherever its store is; only what is waited later says that too few are under way."""
    assert archive.is_dir()
    with Proxy(s3.endpoint, latency_s=0.3) as proxy:
        url, options = f"{s3.url}/recordings", s3.through(proxy)
        entries = list_recordings(url, options=options).entries.combine_chunks().to_batches()[0]
        few = entries.slice(0, transfers._FIRST_AHEAD // 2 + 4)
        extract_rows(few, Folder.of(url, options), FeatureSettings(), Segments())
        with opened(s3.url, options)[0].ahead() as ahead:
            assert ahead is not None
            assert ahead.n_ahead == transfers._FIRST_AHEAD


def test_what_fails_in_passing_is_counted(s3: Bucket, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults cost a retry each, and no row."""
    monkeypatch.setattr(retry, "_BACKOFF_S", (0.02,) * 8)
    with Proxy(s3.endpoint, fail_share=0.2, seed=2) as proxy:
        found, spent = extract(f"{s3.url}/recordings", s3.through(proxy), Segments())
    assert found == extract(str(archive), {}, Segments())[0]
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
    monkeypatch.setattr(retry, "_BACKOFF_S", (0.02,) * 12)
    if client == "fsspec":
        monkeypatch.setattr("emotion_batch.storage.folder.open_bucket", lambda *_: None)
    entries = list_recordings(f"{s3.url}/recordings", options=s3.options).entries.combine_chunks().to_batches()[0]
    for segments in (Segments(), Segments.windows(3.0)):
        with Proxy(s3.endpoint) as proxy, usage.metered() as spent:
            proxy.instead = Portal(0.3, headers=headers)
            place = Folder.of(f"{s3.url}/recordings", s3.through(proxy))
            found = extract_rows(entries, place, FeatureSettings(), segments).to_pylist()
        assert found == extract(str(archive), {}, segments)[0]
        assert spent.n_retries > 5


def test_a_private_authority_is_trusted_when_told(s3: Bucket, archive: Path, tmp_path: Path) -> None:
    """Behind a certificate of one's own the same requests go where it is named, and where it is not, none does."""
    certificate, context = write_certificate(tmp_path)
    with Proxy(s3.endpoint, tls=context) as proxy:
        for client, kind in (({"verify": str(certificate)}, Blob), ({"verify": False}, Blob), ({}, StoreError)):
            store, _ = opened(s3.url, {**s3.through(proxy), "client_kwargs": client})
            with store.ahead() as ahead:
                assert ahead is not None
                [found] = fetch(ahead, {"recordings/00.wav": 10**6}).values()
            assert isinstance(found, kind), client
            assert kind is StoreError or found[0] == (archive / "00.wav").read_bytes()
