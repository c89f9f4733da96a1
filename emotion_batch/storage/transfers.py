"""Fetch many small objects at once in the computing thread, by libcurl's multi interface.

A thread for each request would cost more than the request: its switches, locks and copies are half of what a small recording takes.
Only this module imports pycurl, and only when it serves the bucket.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

from emotion_batch.errors import StoreError
from emotion_batch.storage.fsspec_store import STRANGE, Blob, plain_version
from emotion_batch.storage.retry import TRANSIENT_CODES

# As the client of buckets has them: a stalled answer is given up long before a deadline.
_CONNECT_TIMEOUT_S, _STALLED_S = 5, 20
# An answer is taken from its socket in pieces of at most so much.
_BUFFER_BYTES = 2**18
# Of a store that knows no ranges nothing longer is taken; why something is refused is not longer.
_LEAST_BYTES = 2**16
_MOST_WAIT_S, _LEAST_WAIT_S = 0.1, 1e-3
# Under way at once: enough for a store nearby, and at most. So many connections are kept from shard to shard.
_FIRST_AHEAD, _MOST_AHEAD = 32, 128
# If so many failed before one came through, it is libcurl that cannot (another proxy, other authorities), not the store.
_MOST_FAILED = 16
_HEADERS = re.compile(rb"(?im)^(content-length|content-range|etag):[ \t]*(.*?)[ \t]*\r?$")
_FIRST_PART = re.compile(rb"bytes 0-(\d+)/(\d+)")


class Transfers:
    """Objects of a bucket that are on their way; for one thread at a time.

    Parameters
    ----------
    sign
        Gives the URL by which anybody may get the object of a key; None for a key that has none.
    client
        How to connect, in obstore's words: ``allow_http``, ``allow_invalid_certificates``, ``root_certificate``.

    Attributes
    ----------
    n_ahead
        How many to have under way, as whoever reads found out; for the next who does.

    Raises
    ------
    ImportError
        If pycurl is not installed, or cannot be loaded: after TensorFlow, whose own libcurl it would get.
    """

    def __init__(self, sign: Callable[[str], str | None], client: Mapping[str, Any]) -> None:
        import pycurl

        self._curl = pycurl
        self._sign = sign
        self._options = {
            "NOSIGNAL": 1,
            "BUFFERSIZE": _BUFFER_BYTES,
            "CONNECTTIMEOUT": _CONNECT_TIMEOUT_S,
            "LOW_SPEED_LIMIT": 1,
            "LOW_SPEED_TIME": _STALLED_S,
            "PROTOCOLS": pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            "HTTP_VERSION": pycurl.CURL_HTTP_VERSION_1_1,
            "TCP_KEEPALIVE": 1,
            **_trust(client),
        }
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, _MOST_AHEAD)
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[list[bytes], list[bytes], Callable[[Blob | StoreError], None]]] = {}
        self._n_come = self._n_failed = 0
        self.n_ahead = _FIRST_AHEAD

    def begin(self, path: str, n_bytes: int, on_end: Callable[[Blob | StoreError], None]) -> bool:
        """Ask for the first bytes of an object, once.

        Parameters
        ----------
        path
            Its key.
        n_bytes
            How many to ask for, at least 1.
        on_end
            Called from within a later `step`, with what came, or with why nothing did: transient, or for the ordinary client
            to find out.

        Returns
        -------
        Whether it was asked for; if not, `on_end` is not called.
        """
        if not self._n_come and self._n_failed >= _MOST_FAILED:
            return False
        url = self._sign(path)
        if url is None:
            return False
        curl = self._curl
        handle = self._idle.pop() if self._idle else self._handle()
        body: list[bytes] = []
        headers: list[bytes] = []
        handle.setopt(curl.URL, url)
        handle.setopt(curl.RANGE, f"0-{n_bytes - 1}")
        handle.setopt(curl.MAXFILESIZE_LARGE, max(n_bytes, _LEAST_BYTES))
        # A list's own, for a function of Python's costs each piece its call.
        handle.setopt(curl.WRITEFUNCTION, body.append)
        handle.setopt(curl.HEADERFUNCTION, headers.append)
        self._running[handle] = body, headers, on_end
        self._multi.add_handle(handle)
        return True

    def widen(self) -> None:
        """Have twice as many under way from now on, up to a limit."""
        self.n_ahead = min(2 * self.n_ahead, _MOST_AHEAD)

    def step(self, *, is_waiting: bool = False) -> None:
        """Go on with whatever is ready; if `is_waiting`, wait until something is, for a moment at most."""
        if is_waiting:
            self._wait()
        self._multi.perform()
        n_left = 1
        while n_left:
            n_left, done, failed = self._multi.info_read()
            for handle in done:
                self._end(handle, handle.getinfo(self._curl.RESPONSE_CODE))
            for handle, _, _ in failed:
                self._end(handle, 0)

    def abandon(self) -> None:
        """Give up whatever is under way; nothing more is called of it."""
        for handle in list(self._running):
            self._multi.remove_handle(handle)
            self._idle.append(handle)
        self._running.clear()

    def _handle(self) -> Any:
        handle = self._curl.Curl()
        for name, value in self._options.items():
            handle.setopt(getattr(self._curl, name), value)
        return handle

    def _wait(self) -> None:
        """Wait until something is ready, or libcurl has something to do, for a moment at most."""
        left_ms = self._multi.timeout()
        wait_s = _MOST_WAIT_S if left_ms < 0 else min(_MOST_WAIT_S, left_ms / 1e3)
        if wait_s and not self._multi.select(wait_s):
            # At once, if all descriptors are beyond those that select() knows; of some it hears nothing then.
            time.sleep(_LEAST_WAIT_S)

    def _end(self, handle: Any, code: int) -> None:
        """Hand on what has come to its end: with its status, or 0 if there was no answer, or not all of one."""
        body, headers, on_end = self._running.pop(handle)
        self._multi.remove_handle(handle)
        self._idle.append(handle)
        found = _understood(code, b"".join(headers), b"".join(body))
        if isinstance(found, Blob):
            self._n_come += 1
        else:
            self._n_failed += 1
        on_end(found)


def _trust(client: Mapping[str, Any]) -> dict[str, Any]:
    """Return whom to trust, in libcurl's words; its own wheel knows no place where a system keeps its authorities."""
    if client.get("allow_invalid_certificates"):
        return {"SSL_VERIFYPEER": 0, "SSL_VERIFYHOST": 0}
    if "root_certificate" in client:
        return {"CAINFO_BLOB": client["root_certificate"]}
    paths = ssl.get_default_verify_paths()
    return {name: path for name, path in (("CAINFO", paths.cafile), ("CAPATH", paths.capath)) if path is not None}


def _understood(code: int, headers: bytes, data: bytes) -> Blob | StoreError:
    """Return what an answer brings, or why it brings nothing.

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-content-range
    """
    if code not in (200, 206):
        return StoreError(f"{code or 'no answer'}", is_transient=not code or code in TRANSIENT_CODES, code=code or None)
    # Of several answers (a proxy's comes before) the last one counts.
    last = headers.rpartition(b"\nHTTP/")[2]
    values = {name.lower(): value for name, value in _HEADERS.findall(last)}
    # What ends with its connection may have been cut off, and another part than was asked for is not what it is taken for.
    if code == 206:
        part = _FIRST_PART.fullmatch(values.get(b"content-range", b""))
        size = int(part[2]) if part is not None and int(part[1]) + 1 == len(data) else None
    else:
        size = len(data) if values.get(b"content-length") == b"%d" % len(data) else None
    if size is None:
        return StoreError("an answer that does not say which part of how much it is", code=code)
    if not (version := values.get(b"etag")):
        return StoreError(STRANGE, is_transient=True, code=code)
    return Blob(data, size, plain_version(version.decode("latin-1")))
