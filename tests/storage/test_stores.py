"""Tests of stores: every client of every server keeps the same promises, and says nothing that is secret."""

from __future__ import annotations

import functools
import http.server
import os
import pickle
import threading
import traceback
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.servers import (
    ACCESS_KEY,
    ODD_NAMES,
    READER_KEY,
    READER_SECRET,
    SECRET_KEY,
    Bucket,
    Portal,
    Proxy,
    write_certificate,
)

from emotion_batch import usage
from emotion_batch.errors import ChangedError, DeniedError, NoBucketError, StorageError, StoreError
from emotion_batch.storage import bucket as bucket_module
from emotion_batch.storage import fsspec_store, retry
from emotion_batch.storage.bucket import BucketStore, Store, open_bucket
from emotion_batch.storage.bucket_options import Config
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.storage.fsspec_store import FsspecStore, open_fsspec


@pytest.fixture(
    params=[
        "s3 by obstore",
        "s3 by fsspec",
        "gs by fsspec",
        pytest.param("az by obstore", marks=pytest.mark.azure),
        pytest.param("az by fsspec", marks=pytest.mark.azure),
        "memory by fsspec",
    ]
)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Store, str]]:
    """A store, and a path in it that only this test writes to."""
    protocol, _, client = request.param.partition(" by ")
    name = request.node.name.translate(str.maketrans("[] ", "---"))
    if protocol == "memory":
        yield open_fsspec(f"memory://{name}", {})
        return
    bucket: Bucket = request.getfixturevalue({"s3": "s3", "gs": "gcs", "az": "azure"}[protocol])
    url = f"{bucket.url}/{name}"
    found = open_fsspec(url, bucket.options) if client == "fsspec" else open_bucket(url, bucket.options)
    assert found is not None
    assert isinstance(found[0], FsspecStore if client == "fsspec" else BucketStore)
    yield found


def test_a_store_keeps_its_promises(place: tuple[Store, str]) -> None:
    """Bytes come as they were put, whole or in part; who is first is decided; what is not there is not there."""
    store, root = place
    data = bytes(range(256)) * 40
    store.put(f"{root}/a.bin", data)
    assert store.get(f"{root}/a.bin").data == data
    blob = store.get(f"{root}/a.bin", 100, 300)
    assert (blob.data, blob.size) == (data[100:300], len(data))
    assert store.get(f"{root}/a.bin", 100, 10**9).data == data[100:]
    assert store.get(f"{root}/a.bin", 10**6, 10**6 + 5).data == b""
    assert store.get(f"{root}/a.bin", 0, 10**9).data == data
    assert store.get_end(f"{root}/a.bin", 8).data == data[-8:]
    assert store.get_end(f"{root}/a.bin", 10**6)[:2] == (data, len(data))
    store.put(f"{root}/empty", b"")
    assert store.get(f"{root}/empty", 0, 100)[:2] == (b"", 0)
    assert store.get_end(f"{root}/empty", 100)[:2] == (b"", 0)
    assert store.put_first(f"{root}/first", b"1")
    assert not store.put_first(f"{root}/first", b"2")
    assert store.get(f"{root}/first").data == b"1"
    mark = store.find_mark(f"{root}/first")
    assert store.put_first(f"{root}/first", b"over", mark)
    assert not store.put_first(f"{root}/first", b"again", mark)
    assert store.get(f"{root}/first").data == b"over"
    assert [store.find_kind(f"{root}{name}") for name in ("/a.bin", "", "/nothing")] == ["file", "folder", None]
    store.delete(f"{root}/first")
    store.delete(f"{root}/first")
    assert store.find_mark(f"{root}/first") is None
    assert not store.put_first(f"{root}/first", b"again", mark)
    for read in (store.get, lambda path: store.get(path, 0, 5), lambda path: store.get_end(path, 5)):
        with pytest.raises(FileNotFoundError):
            read(f"{root}/first")


def test_every_name_is_listed_once(place: tuple[Store, str], request: pytest.FixtureRequest) -> None:
    """Children and everything below are listed with sizes, whatever their names are, and can be read by these names."""
    store, root = place
    # adlfs takes what follows a question mark for a version.
    names = [name for name in ODD_NAMES if "?" not in name or "az by fsspec" not in request.node.name]
    files = {
        **{f"odd/{name}": name.encode() for name in names},
        "a.wav": b"a",
        "a/b.wav": b"ab",
        "a-b/c.wav": b"abc",
    }
    for name, data in files.items():
        store.put(f"{root}/{name}", data)
    listed = {row["name"]: row for page in store.walk(root) for row in page.to_pylist()}
    assert {name: row["size"] for name, row in listed.items()} == {name: len(data) for name, data in files.items()}
    for name, data in files.items():
        blob = store.get(f"{root}/{name}", 0, 100)
        assert blob.data == data
        # What changes with the content is the same, however it is learnt.
        assert blob.version in (None, listed[name]["version"])
    children, folders = store.children(root)
    assert children["name"].to_pylist() == ["a.wav"]
    assert sorted(folders) == ["a", "a-b", "odd"]
    store.put(f"{root}/a.wav", b"another")
    again = {row["name"]: row["version"] for page in store.walk(root) for row in page.to_pylist()}
    assert again["a.wav"] != listed["a.wav"]["version"] or listed["a.wav"]["version"] is None


def test_another_version_is_not_read(place: tuple[Store, str]) -> None:
    """Reading on in an object that was replaced is an error that says so."""
    store, root = place
    store.put(f"{root}/a", b"first" * 10)
    version = store.get(f"{root}/a", 0, 5).version
    store.put(f"{root}/a", b"other" * 10)
    if version is None:
        pytest.skip("this client knows no versions")
    with pytest.raises(ChangedError):
        store.get(f"{root}/a", 5, 10, version=version)


def test_what_others_write_is_seen(place: tuple[Store, str], request: pytest.FixtureRequest) -> None:
    """Whatever a client remembers of a listing, what it is asked for is what is there now."""
    store, root = place
    store.put(f"{root}/a", b"1" * 100)
    store.children(root)
    assert sum(page.num_rows for page in store.walk(root)) == 1
    name, written = root.rpartition("/")[2], {"a": b"2" * 200, "b": b"3"}
    protocol = request.node.callspec.params["place"].partition(" ")[0]
    if protocol == "memory":
        fsspec.filesystem("memory").pipe({f"{root}/{key}": data for key, data in written.items()})
    else:
        bucket: Bucket = request.getfixturevalue({"s3": "s3", "gs": "gcs", "az": "azure"}[protocol])
        bucket.write({f"{name}/{key}": data for key, data in written.items()})
    assert store.find_kind(f"{root}/b") == "file"
    blob = store.get(f"{root}/a", 0, 1_000)
    assert (blob.data, blob.size) == (b"2" * 200, 200)
    assert store.get_end(f"{root}/a", 8)[:2] == (b"2" * 8, 200)
    assert store.children(root)[0].num_rows == 2


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_a_large_part_is_one_request(s3: Bucket, client: str) -> None:
    """However large a part is, no upload in pieces is begun that a kill would leave pending."""
    with Proxy(s3.endpoint) as proxy:
        options = s3.through(proxy)
        found = (open_fsspec if client == "fsspec" else open_bucket)(f"{s3.url}/large-{client}", options)
        assert found is not None
        store, path = found
        store.put(f"{path}/small", b"1")
        before = proxy.n_requests
        # s3fs cuts from 100 MiB on, obstore from 5 MB.
        store.put(f"{path}/large", bytes(101 * 2**20))
        assert proxy.n_requests == before + 1
    store.delete(f"{path}/large")


def test_another_endpoint_in_the_environment_is_not_asked(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """What options say goes before what variables say, also such as only obstore knows."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    # Options of its own, for a bucket that was opened is kept.
    folder = Folder.of(f"{s3.url}/environment", {**s3.options, "requester_pays": True})
    folder.publish("a", b"1")
    assert folder.read("a") == b"1"
    assert not folder.publish_first("a", b"2")


def test_keys_that_begin_with_a_slash_are_recordings_of_their_own(gcs: Bucket) -> None:
    """Where a whole bucket has such keys, which obstore lists under others' names, all are listed and read as they are."""
    import obstore.store

    def post(path: str, data: bytes) -> None:
        request = urllib.request.Request(f"{gcs.endpoint}{path}", data, {"Content-Type": "application/json"})  # noqa: S310 loopback
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 loopback

    post("/storage/v1/b?project=x", b'{"name": "slashes"}')
    for name, data in (("%2Fa.wav", b"1"), ("a.wav", b"22"), ("b%2Fc.wav", b"333")):
        post(f"/upload/storage/v1/b/slashes/o?uploadType=media&name={name}", data)
    config = Config({"base_url": gcs.endpoint, "skip_signature": True}, {"allow_http": True}, None, "nowhere")
    store = BucketStore(obstore.store.GCSStore, "gs://slashes", config, gcs.options)
    listed = {row["name"]: row["size"] for page in store.walk("") for row in page.to_pylist()}
    assert listed == {"/a.wav": 1, "a.wav": 2, "b/c.wav": 3}
    assert [len(store.get(name).data) for name in listed] == list(listed.values())


def test_a_server_without_ranges_is_read_right(tmp_path: Path) -> None:
    """A web server that sends all of a file still gives the bytes that were asked for."""
    (tmp_path / "a.bin").write_bytes(bytes(range(200)))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=os.fspath(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = Folder.of(f"http://127.0.0.1:{server.server_port}")
        assert folder.read_range("a.bin", 100, 104) == bytes(range(100, 104))
        assert folder.read_end("a.bin", 4)[0] == bytes(range(196, 200))
        server.shutdown()


def test_of_many_at_once_one_is_first(s3: Bucket) -> None:
    """A conditional write is decided by the server."""
    folder = Folder.of(f"{s3.url}/race", s3.options)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: folder.publish_first("lock", b"%d" % number), range(16)))
    assert sum(won) == 1
    assert folder.read("lock") == b"%d" % won.index(True)


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"secret": "not-the-secret"}, DeniedError, "SignatureDoesNotMatch|signature|Forbidden"),
        ({"key": "NOBODY"}, DeniedError, "InvalidAccessKeyId|Access Key|exist|Forbidden"),
        ({"key": READER_KEY, "secret": READER_SECRET}, DeniedError, "AccessDenied|Access Denied|Forbidden"),
        ({"endpoint_url": "http://127.0.0.1:9"}, StoreError, "127.0.0.1:9"),
    ],
    ids=["secret", "key", "rights", "endpoint"],
)
def test_a_refusal_is_told_apart(
    s3: Bucket, client: str, changed: dict[str, str], error: type[OSError], said: str
) -> None:
    """Wrong keys, missing rights and servers that are not there are errors of their own, without the secret."""
    options = {**s3.options, **changed}
    store, path = (open_fsspec if client == "fsspec" else open_bucket)(f"{s3.url}/refused", options)  # type: ignore[misc]
    with pytest.raises(error, match=said) as caught:
        store.put(path, b"1")
    if error is DeniedError and client == "obstore":
        with pytest.raises(error, match=said):
            store.delete(path)
    shown = "".join(traceback.format_exception(caught.value)) + repr(store)
    assert options["secret"] not in shown
    assert retry.is_transient(caught.value) == (error is StoreError)


def test_a_missing_bucket_is_no_missing_object(s3: Bucket) -> None:
    """That a bucket is not there is said, where nothing there would mean a new table."""
    folder = Folder.of("s3://no-such-bucket/table", s3.options)
    for use in (lambda: folder.read_if_there("a"), folder.names, folder.find_kind, lambda: folder.publish("a", b"1")):
        with pytest.raises(NoBucketError, match="s3://no-such-bucket"):
            use()
    with (
        pytest.raises(StorageError, match=r"^table x: there is no bucket .*; check its name") as caught,
        explained("table x"),
    ):
        folder.read("a")
    assert caught.value.exit_code == 2


def test_credentials_that_are_nowhere_are_said(s3: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With no keys at all the sentence names where they were looked for; a profile gives them as it does to s3fs."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    folder = Folder.of(f"{s3.url}/profile", {"endpoint_url": s3.endpoint})
    with (
        pytest.raises(
            StorageError, match=r"looked for credentials in: --storage-options, AWS_ACCESS_KEY_ID.*'default'"
        ),
        explained("x"),
    ):
        folder.read("a")
    (tmp_path / "AWS_SHARED_CREDENTIALS_FILE").write_text(
        f"[night]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    (tmp_path / "AWS_CONFIG_FILE").write_text(f"[profile night]\nendpoint_url = {s3.endpoint}\nregion = eu-central-1\n")
    by_profile = Folder.of(f"{s3.url}/profile", {"profile": "night"})
    by_profile.publish("a", b"1")
    assert by_profile.read("a") == b"1"


@pytest.mark.parametrize("way", ["verify", "AWS_CA_BUNDLE"])
def test_a_private_authority_is_trusted_when_told(
    s3: Bucket, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS by a certificate of one's own works where it is named as s3fs's users do, and is refused where it is not."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    certificate, context = write_certificate(tmp_path)
    with Proxy(s3.endpoint, tls=context) as proxy:
        options = s3.through(proxy)
        with pytest.raises(StoreError, match=r"no answer from https://.*its certificate is not trusted") as caught:
            Folder.of(f"{s3.url}/tls", options).publish("a", b"1")
        # Waiting does not make it any better.
        assert not caught.value.is_transient
        if way == "verify":
            options = {**options, "client_kwargs": {"verify": str(certificate)}}
        else:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
            options = {**options, "use_ssl": True}
        folder = Folder.of(f"{s3.url}/tls", options)
        assert isinstance(folder.store()[0], BucketStore)
        folder.publish("a", b"1")
        assert folder.read("a") == b"1"


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_what_fails_in_passing_is_asked_again(s3: Bucket, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a server that fails a third of the requests all is read, listed and written, and the retries are counted."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,) * 12)
    if client == "fsspec":
        monkeypatch.setattr("emotion_batch.storage.folder.open_bucket", lambda *_: None)
    with Proxy(s3.endpoint, fail_share=0.3, seed=1) as proxy, usage.metered() as spent:
        folder = Folder.of(f"{s3.url}/stumbling-{client}", s3.through(proxy))
        for number in range(12):
            folder.publish(f"{number:02d}", bytes([number]) * 1_000)
        assert [folder.read(f"{number:02d}") for number in range(12)] == [
            bytes([number]) * 1_000 for number in range(12)
        ]
        assert folder.names() == [f"{number:02d}" for number in range(12)]
        firsts = [folder.publish_first(f"first{number}", b"%d" % number) for number in range(12)]
        # An answer that was lost on its way is no other's object.
        assert all(firsts)
    assert proxy.n_failed > 5
    # s3fs retries by itself, and its retries are not counted.
    assert spent.n_retries > 0 or client == "fsspec"


def test_a_listing_goes_on_where_it_broke(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that fail are asked for again; nothing is listed twice or not at all, folder by folder or straight on."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,) * 12)
    monkeypatch.setattr(bucket_module, "PAGE", 20)
    monkeypatch.setattr(bucket_module, "_LEAST_FOLDER", 5)
    names = [
        f"{kind}/{day:02d}/{number:03d}.wav" for kind in ("a", "a-b", "b") for day in range(3) for number in range(25)
    ]
    s3.write({f"pages/{name}": b"1" for name in [*names, "top.wav"]})
    with Proxy(s3.endpoint, fail_share=0.3, seed=2) as proxy, usage.metered() as spent:
        folder = Folder.of(f"{s3.url}/pages", s3.through(proxy))
        listed = [name for page in folder.walk() for name in page["name"].to_pylist()]
        flat = Folder.of(f"{s3.url}/pages/a/01", s3.through(proxy))
        straight = [name for page in flat.walk() for name in page["name"].to_pylist()]
    assert sorted(listed) == sorted([*names, "top.wav"])
    assert straight == [f"{number:03d}.wav" for number in range(25)]
    assert spent.n_retries > 0
    # Folder by folder, and in the order of their names.
    assert [name for name in listed if "/" in name] == sorted(names, key=str.encode)


@pytest.mark.parametrize(
    ("where", "spoilt"), [("s3", "cut"), ("s3", "page"), ("s3", "strict page"), ("gcs", "cut"), ("gcs", "page")]
)
def test_half_a_listing_is_none(
    where: str, spoilt: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is cut in half under 200, or a page to log in that comes in its place, is asked for again."""
    bucket: Bucket = request.getfixturevalue(where)
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,) * 12)
    monkeypatch.setattr(bucket_module, "PAGE", 20)
    names = [f"{number:03d}.wav" for number in range(50)]
    bucket.write({f"halves/{name}": b"1" for name in names})
    portal = Portal(0.4, is_strict=spoilt == "strict page")

    def cut(_: bytes, answer: bytes, content: bytes) -> tuple[bytes, bytes] | None:
        if portal(b"GET ", answer, content) is None:
            return None
        whole = b"".join(content.split(b"\r\n")[1::2]) if b"chunked" in answer.lower() else content
        lines = [line for line in answer.split(b"\r\n") if not line.lower().startswith((b"content-l", b"transfer-e"))]
        half = whole[: len(whole) // 2]
        return b"\r\n".join([*lines[:-2], b"Content-Length: %d" % len(half), b"", b""]), half

    for _ in range(5):
        with Proxy(bucket.endpoint) as proxy:
            proxy.instead = cut if spoilt == "cut" else portal
            folder = Folder.of(f"{bucket.url}/halves", bucket.through(proxy))
            assert [name for page in folder.walk() for name in page["name"].to_pylist()] == names
            if spoilt != "strict page":
                assert folder.names() == names
    assert portal.n_answered > 1


def test_what_was_not_written_is_written_again(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page to log in that answers a put does not pass for its success."""
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,) * 12)
    with Proxy(s3.endpoint) as proxy:
        proxy.instead = portal = Portal(0.5, (b"PUT",))
        folder = Folder.of(f"{s3.url}/written", s3.through(proxy))
        for number in range(6):
            folder.publish(f"{number}", b"1")
            assert folder.publish_first(f"first {number}", b"1")
    assert len(s3.read("written")) == 12
    assert portal.n_answered > 1


def test_names_that_obstore_refuses_are_fsspecs(s3: Bucket) -> None:
    """A key with a line's end in it is listed and read like any other."""
    s3.write({"refused/new\nline.wav": b"1", "refused/a.wav": b"2"})
    folder = Folder.of(f"{s3.url}/refused", s3.options)
    listed = sorted(name for page in folder.walk() for name in page["name"].to_pylist())
    assert listed == ["a.wav", "new\nline.wav"]
    assert folder.read("new\nline.wav") == b"1"
    assert folder.read_range("new\nline.wav", 0, 10) == b"1"
    folder.publish("again\n.wav", b"3")
    assert folder.read("again\n.wav") == b"3"
    folder.delete("again\n.wav")


def test_googles_bucket_is_read_by_obstore(gcs: Bucket) -> None:
    """The client of Google's real endpoint reads and lists; the emulator here does not take what it writes by."""
    import obstore.store

    gcs.write({"by-obstore/a/x.wav": b"12345", "by-obstore/y.wav": b"1"})
    config = Config({"base_url": gcs.endpoint, "skip_signature": True}, {"allow_http": True}, None, "nowhere")
    store = BucketStore(obstore.store.GCSStore, gcs.url, config, gcs.options)
    rows = {row["name"]: row for page in store.walk("by-obstore") for row in page.to_pylist()}
    assert {name: row["size"] for name, row in rows.items()} == {"a/x.wav": 5, "y.wav": 1}
    blob = store.get("by-obstore/a/x.wav", 1, 3)
    assert (blob.data, blob.size) == (b"23", 5)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "GET https://a.blob.core.windows.net/c/x?sv=1&sig=abc%2Bdef%3D failed",
            "GET https://a.blob.core.windows.net/c/x?sv=1&sig=*** failed",
        ),
        ("?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=00ff", "?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("no answer from http://user:hunter3@host:9 now", "no answer from http://***@host:9 now"),
        ("key hunter22 was refused at http://host", "key *** was refused at http://host"),
        ("nothing to hide", "nothing to hide"),
    ],
    ids=["sas", "presigned", "user", "option", "plain"],
)
def test_secrets_are_taken_out_of_texts(text: str, shown: str) -> None:
    """Values of options and signatures in URLs are not repeated."""
    options: dict[str, Any] = {"client_kwargs": {"aws_secret_access_key": "hunter22"}, "endpoint_url": "http://host"}
    assert fsspec_store.scrub(text, options) == shown


def test_a_folder_travels_without_showing_its_options(s3: Bucket) -> None:
    """What goes to a worker has the options in it and does not show them."""
    folder = Folder.of(f"{s3.url}/x", s3.options)
    assert pickle.loads(pickle.dumps(folder)).options == s3.options  # noqa: S301 our own
    assert SECRET_KEY not in repr(folder) + str([folder])
    assert SECRET_KEY not in repr(folder.store())
