"""Tests of what fails in passing: it is asked for again, later and later, counted; what does not pass is raised."""

from __future__ import annotations

import errno
import http.server
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import fsspec
import pytest

from emotion_batch import usage
from emotion_batch.errors import StorageError
from emotion_batch.storage import retry
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.storage.retry import hastily, is_transient, persistently


class RefusalError(Exception):
    """As clients raise it: with the status of the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}")
        self.status = status


class BotoRefusalError(Exception):
    """As botocore raises it."""

    response: ClassVar = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("timed out"), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (OSError(errno.ENOTCONN, "the mount is gone"), True),
        (OSError(errno.EMFILE, "too many open files"), True),
        (RefusalError(503), True),
        (RefusalError(429), True),
        (BotoRefusalError(), True),
        (caused(OSError("see the cause"), BotoRefusalError()), True),
        (RefusalError(404), False),
        (RefusalError(403), False),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (OSError(errno.EIO, "a bad sector"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("odd"), False),
    ],
    ids=repr,
)
def test_what_passes_is_tried_again_and_nothing_else(
    error: Exception, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's or a store's failure is repeated with longer and longer waits, counted; a file's own is not."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    calls = Counter[str]()

    def fails_twice() -> str:
        calls["n"] += 1
        if calls["n"] <= 2:
            raise error
        return "done"

    assert is_transient(error) == passes
    with usage.metered() as spent:
        if passes:
            assert persistently(fails_twice) == "done"
            assert waits[0] < waits[1]
        else:
            with pytest.raises(type(error)):
                persistently(fails_twice)
    assert spent.n_retries == (2 if passes else 0)
    if passes or isinstance(error, OSError):
        with pytest.raises(StorageError) as caught, explained("place"):
            raise error
        assert caught.value.is_transient == passes
        # As it comes back from a worker.
        assert pickle.loads(pickle.dumps(caught.value)).is_transient == passes  # noqa: S301 our own


def test_what_does_not_pass_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that stays away is one sentence after half a minute at most."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)

    def fails() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    with pytest.raises(StorageError, match="it cannot be used: Connection refused"), explained("place"):
        persistently(fails)
    assert len(waits) == len(retry.REQUEST_WAITS_S)
    assert sum(waits) < 30


def test_who_waits_for_the_end_does_not_wait_for_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C a place that does not answer is asked once, and by this thread alone so hastily."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)

    def fails() -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    with hastily(), pytest.raises(ConnectionRefusedError):
        persistently(fails)
    assert waits == []
    with pytest.raises(ConnectionRefusedError):
        persistently(fails)
    assert waits


@contextmanager
def flaky_server(files: dict[str, bytes], n_failures: int) -> Iterator[tuple[str, Counter[str]]]:
    """Serve files on loopback, each only after it was refused or cut off so many times."""
    asked: Counter[str] = Counter()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, *, is_whole: bool) -> None:
            name = self.path.rsplit("/", 1)[-1]
            asked[name] += 1
            if asked[name] % 2 and asked[name] <= n_failures:
                self.send_error(503)
            elif asked[name] <= n_failures:
                self.connection.close()
            elif name not in files:
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(files[name])))
                self.end_headers()
                if is_whole:
                    self.wfile.write(files[name])

        def do_GET(self) -> None:
            self.answer(is_whole=True)

        def do_HEAD(self) -> None:
            self.answer(is_whole=False)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_real_server_that_stumbles_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of 503 and connections that break, by fsspec's own client over the wire, cost time and nothing else."""
    fsspec.filesystem("http").clear_instance_cache()
    monkeypatch.setattr(retry, "REQUEST_WAITS_S", (0.01,) * 5)
    with flaky_server({"a.wav": b"bytes"}, n_failures=4) as (url, asked), usage.metered() as spent:
        folder = Folder.of(url)
        assert folder.read("a.wav") == b"bytes"
        assert asked["a.wav"] == 5
        # The client itself asks once more where a connection broke.
        assert 2 <= spent.n_retries <= 4
        with pytest.raises(FileNotFoundError):
            folder.read("b.wav")
    assert asked["b.wav"] == 5
