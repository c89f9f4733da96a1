"""Places: a folder on disk or a prefix in a bucket, read and written through fsspec by name.

A file that is published appears whole or not at all. Options may hold credentials, so nothing here
shows them: not the representation of a `Folder`, not the text of an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from emotion_batch.errors import StorageError, UsageError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z0-9+.-]+)*://")
_CREDENTIALS = re.compile(r"://[^/@]*:[^/@]*@")


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
        data = self.filesystem()[0].cat_file(self.path(name))
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
            self.filesystem()[0].info(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self) -> list[str]:
        """Return the sorted names of what lies directly in the folder; none if it does not exist."""
        filesystem, path = self.filesystem()
        filesystem.invalidate_cache(path)
        try:
            entries = filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for entry in entries if (name := os.path.basename(entry.rstrip("/"))))

    def publish(self, name: str, data: bytes) -> None:
        """Write `data` as `name` so that it appears whole or not at all, also after a power cut.

        Locally: a hidden temporary name beside it, fsync, rename, fsync of the folder. Elsewhere: one put.
        """
        filesystem, _ = self.filesystem()
        path = self.path(name)
        if not self.is_local:
            filesystem.pipe_file(path, data)
            return
        parent = os.path.dirname(path)
        os.makedirs(parent, exist_ok=True)
        temporary = os.path.join(parent, f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _fsync_folder(parent)

    def delete(self, name: str) -> None:
        """Delete the file `name` if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem()[0].rm_file(self.path(name))


@contextlib.contextmanager
def explained(thing: str) -> Iterator[None]:
    """Turn what a filesystem raises within the block into one sentence about `thing`.

    Raises
    ------
    StorageError
        In place of an `OSError`, which is its cause.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{thing}: expected it to exist, got nothing there; check the name") from error
    except PermissionError as error:
        where = f" for {error.filename}" if error.filename else ""
        raise StorageError(f"{thing}: expected the right to use it, got permission denied{where}") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None else str(error)
        raise StorageError(f"{thing}: expected a place that works, got {reason or type(error).__name__}") from error


def _fsync_folder(path: str) -> None:
    """Make a rename within `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
