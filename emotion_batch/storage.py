"""Places: a folder on disk or a prefix in a bucket, read and written through fsspec by name.

A file that is published appears whole or not at all. What fails in passing (a connection reset, a store that answers
503) is tried again with backoff, and counted. Options may hold credentials, so nothing here shows them: not the
representation of a `Folder`, not the text of an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from emotion_batch import meter
from emotion_batch.errors import StorageError, UsageError

T = TypeVar("T")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z0-9+.-]+)*://")
_CREDENTIALS = re.compile(r"://[^/@]*:[^/@]*@")
# How long to wait before asking again; with what the scheduler does after that it is minutes.
_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# Of a network, a mount or a machine, not of a file.
_TRANSIENT_ERRNOS = {
    getattr(errno, name)
    for name in (
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "EPIPE", "ETIMEDOUT", "ESTALE", "EAGAIN", "EBUSY"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET", "ENETUNREACH", "EMFILE", "ENFILE", "ENOMEM"),
    )
}
# Request timeout, too many requests, and what a server says when it is the one to blame.
_TRANSIENT_CODES = {408, 429, 500, 502, 503, 504}
# What clients raise of a connection that broke, and which is no OSError in each of them.
_TRANSIENT_NAMES = {
    *("ServerDisconnectedError", "ClientPayloadError", "IncompleteReadError", "ResponseStreamingError"),
    *("HTTPClientError", "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"),
    *("ProxyConnectionError", "ServiceRequestError", "ServiceResponseError", "ChunkedEncodingError"),
}
# What requests and urllib3 call theirs is a name of Python's too, but not the same class.
_TRANSIENT_MODULES = {"requests.exceptions": {"ConnectionError", "Timeout"}}
# What is full must be emptied: no fault of the call.
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The hidden names that `publish` writes under.
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}" + re.escape(".tmp"))
_LEFTOVER_AGE_S = 3_600
_local = threading.local()


def is_url(location: str) -> bool:
    """Return whether `location` names its protocol, as ``s3://bucket/key`` does."""
    return bool(_SCHEME.match(location))


def refuse_password(location: str) -> None:
    """Raise UsageError, which does not repeat it, if `location` is a URL with a password."""
    if _CREDENTIALS.search(location):
        raise UsageError(
            f"{_CREDENTIALS.sub('://***@', location)}: expected a URL without a password; "
            "pass it with --storage-options or through the environment"
        )


@dataclass(frozen=True)
class Folder:
    """A folder or a bucket prefix, as a value that travels between processes.

    Attributes
    ----------
    url
        An absolute path, or a URL that fsspec knows; no ``/`` at its end.
    options
        What fsspec's filesystem takes, credentials among it; never shown.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @classmethod
    def of(cls, location: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Folder:
        """Return the folder that a person named, with local paths made absolute.

        Raises
        ------
        UsageError
            If the location is empty or carries a password.
        """
        text = os.fspath(location)
        if not text:
            raise UsageError("location: expected a path or URL, got nothing")
        refuse_password(text)
        text = text.removeprefix("file://")
        if not is_url(text):
            text = os.path.abspath(os.path.expanduser(text))
        return cls(text.rstrip("/") or "/", options or {})

    def filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return fsspec's filesystem and this folder's path in it."""
        if not is_url(self.url):
            return LocalFileSystem(), self.url
        try:
            filesystem, path = fsspec.core.url_to_fs(self.url, **self.options)
        except ImportError as error:
            protocol = self.url.split(":", 1)[0]
            raise StorageError(
                f"{self.url}: expected the client for {protocol}:// to be installed ({error})"
            ) from error
        except (ValueError, TypeError) as error:
            raise StorageError(f"{self.url}: expected a URL and options that fsspec knows, got {error}") from error
        return filesystem, path

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's own filesystem."""
        return not is_url(self.url)

    def folder(self, name: str) -> Folder:
        """Return the folder called `name` within this one."""
        return Folder(f"{self.url.rstrip('/')}/{name}", self.options)

    def path(self, name: str) -> str:
        """Return the path of `name` as this folder's filesystem takes it."""
        return f"{self.filesystem()[1].rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """Return the bytes of `name`; raise FileNotFoundError if there is no such file."""
        data = persistently(lambda: self.filesystem()[0].cat_file(self.path(name)))
        return data if isinstance(data, bytes) else bytes(data)

    def read_if_there(self, name: str) -> bytes | None:
        """Return the bytes of `name`, or None if there is no such file."""
        try:
            return self.read(name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder called `name`; a place that refuses raises."""
        try:
            persistently(lambda: self.filesystem()[0].info(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self) -> list[str]:
        """Return the sorted names of what lies directly in the folder; none if it does not exist."""
        filesystem, path = self.filesystem()
        filesystem.invalidate_cache(path)
        try:
            entries = persistently(lambda: filesystem.ls(path, detail=False))
        except FileNotFoundError:
            return []
        return sorted(name for entry in entries if (name := os.path.basename(entry.rstrip("/"))))

    def make(self) -> None:
        """Make the folder, and those above it, where folders are things."""
        if self.is_local:
            os.makedirs(self.url, exist_ok=True)

    def publish(self, name: str, data: bytes, *, is_durable: bool = True) -> None:
        """Write `data` as `name` so that it appears whole or not at all, also after a power cut.

        Locally: a hidden temporary name beside it, fsync, rename, fsync of the folder. Elsewhere: one put. The folder
        must be there: a place that was taken away while a run writes to it must not come back half empty.

        Parameters
        ----------
        name
            Where to.
        data
            What to write.
        is_durable
            Whether it must outlast a power cut.
        """
        filesystem, _ = self.filesystem()
        path = self.path(name)
        if not self.is_local:
            persistently(lambda: filesystem.pipe_file(path, data))
            return
        with _temporary(path, data, is_durable) as temporary:
            os.replace(temporary, path)
        if is_durable:
            _fsync_folder(os.path.dirname(path))

    def publish_first(self, name: str, data: bytes) -> bool:
        """Publish `data` as `name` unless that is there; return whether it was not.

        Of several processes that try at the same time one succeeds: by a link on disk, by If-None-Match and its like in
        a bucket. Where a filesystem has neither, two in the same instant may both.
        """
        filesystem, _ = self.filesystem()
        path = self.path(name)
        if not self.is_local:
            try:
                persistently(lambda: filesystem.pipe_file(path, data, mode="create"))
            except FileExistsError:
                return False
            except Exception as error:
                if _status_code(error) in (409, 412):
                    return False
                raise
            return True
        with _temporary(path, data, is_durable=True) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:
                # exFAT, some shares: no links.
                if os.path.exists(path):
                    return False
                os.replace(temporary, path)
        _fsync_folder(os.path.dirname(path))
        return True

    def sweep(self) -> None:
        """Delete what processes that were killed while they published have left here, an hour ago or longer."""
        if not self.is_local:
            return
        for name in self.names():
            if _LEFTOVER.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - os.stat(self.path(name)).st_mtime > _LEFTOVER_AGE_S:
                        os.unlink(self.path(name))

    def delete(self, name: str) -> None:
        """Delete the file `name` if it is there."""
        with contextlib.suppress(FileNotFoundError):
            persistently(lambda: self.filesystem()[0].rm_file(self.path(name)))


def persistently(function: Callable[[], T]) -> T:
    """Call `function`, and again with backoff while what it raises is transient; five times at most, half a minute."""
    for delay_s in () if getattr(_local, "is_hasty", False) else _BACKOFF_S:
        try:
            return function()
        except Exception as error:
            if not is_transient(error):
                raise
        meter.current().n_retries += 1
        # Not all workers at the same time: https://en.wikipedia.org/wiki/Exponential_backoff
        time.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 no secret
    return function()


@contextlib.contextmanager
def hastily() -> Iterator[None]:
    """Ask this thread's storage once only within the block: somebody waits for the process to end."""
    _local.is_hasty = True
    try:
        yield
    finally:
        _local.is_hasty = False


def is_transient(error: BaseException) -> bool:
    """Return whether `error` says that a network, a store or a machine failed, and not what was asked of it."""
    if isinstance(error, StorageError):
        return error.is_transient
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return _status_code(error) in _TRANSIENT_CODES or any(
        kind.__name__ in _TRANSIENT_NAMES or kind.__name__ in _TRANSIENT_MODULES.get(kind.__module__, ())
        for kind in type(error).__mro__
    )


def _status_code(error: BaseException) -> int | None:
    """Return the HTTP status that an error of a client carries, or the one that it was made of."""
    # aiohttp's and gcsfs's; requests's and google-auth's hold the answer; botocore's holds it as a mapping.
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    for holder, name in ((error, "status"), (response, "status_code"), (error, "code")):
        if isinstance(code := getattr(holder, name, None), int):
            return code
    if isinstance(code := metadata.get("HTTPStatusCode"), int):
        return code
    return _status_code(error.__cause__) if error.__cause__ is not None else None


@contextlib.contextmanager
def _temporary(path: str, data: bytes, is_durable: bool) -> Iterator[str]:
    """Write `data` under a hidden name beside `path`, which is gone after the block."""
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            if is_durable:
                os.fsync(stream.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def explained(thing: str) -> Iterator[None]:
    """Turn what a filesystem raises within the block into one sentence about `thing`.

    Raises
    ------
    StorageError
        In place of an `OSError`, or of a client's transient failure, which is its cause.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{thing}: expected it to exist, got nothing there; check the name") from error
    except PermissionError as error:
        where = f" for {error.filename}" if error.filename else ""
        raise StorageError(f"{thing}: expected the right to use it, got permission denied{where}") from error
    except Exception as error:
        is_passing = not isinstance(error, StorageError) and is_transient(error)
        if not (is_passing or isinstance(error, OSError)):
            raise
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number is not None else str(error)
        raised = StorageError(
            f"{thing}: expected a place that works, got {reason or type(error).__name__}", is_transient=is_passing
        )
        if number in _FULL_ERRNOS:
            raised.exit_code = 1
        raise raised from error


def _fsync_folder(path: str) -> None:
    """Make a rename within `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
