"""Read and write files by name in a place: a folder on disk or a prefix in a bucket.

A file that is published appears whole or not at all. Options may hold credentials, so nothing here shows them: not the representation
of a `Folder`, and not the text of an error.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, BinaryIO, Literal, TypeVar

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from emotion_batch.errors import DamagedError, DeniedError, NoBucketError, StorageError, UsageError
from emotion_batch.storage.bucket import Store, open_bucket
from emotion_batch.storage.fsspec_store import FsspecStore, Mark, is_signed, open_fsspec
from emotion_batch.storage.retry import is_transient, persistently

T = TypeVar("T")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z0-9+.-]+)*://")
_CREDENTIALS = re.compile(r"://[^/@]*:[^/@]*@")
# The place is full, so the call itself is right.
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REASONS = dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file is where a folder must be")
# The hidden names that `publish` writes under.
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}" + re.escape(".tmp"))
LEFTOVER_AGE_S = 3_600
_LOCAL = FsspecStore(LocalFileSystem(), {})
# The key under which a sealed JSON file holds the digest of everything else in it.
SEAL = "sha256"


def is_url(location: str) -> bool:
    """Return whether `location` names its protocol, as ``s3://bucket/key`` does."""
    return bool(_SCHEME.match(location))


def seal(value: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Return an object as JSON with a digest of its content, because a flipped digit is still valid JSON."""
    return json.dumps({**value, SEAL: _digest(value)}, indent=indent).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Return the object that `seal` gave; raise ValueError if it was changed, or is not a JSON object."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"the JSON must be an object: {type(value).__name__}")
    if value.pop(SEAL, None) != _digest(value):
        raise ValueError("the content does not match its digest")
    return value


def damaged(table: Folder, file: str, found: str = "a damaged file") -> DamagedError:
    """Return the error for a file of a table's ledger that is not as it was written."""
    return DamagedError(f"table {table.url}: {file} is not as it was written ({found})")


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def refuse_secrets(location: str) -> None:
    """Raise UsageError if `location` is a URL with a password or a signature; the error does not repeat it.

    Locations are written into tables and shown, and the readers of a table must not get access through it.
    """
    if _CREDENTIALS.search(location):
        raise UsageError(
            f"{_CREDENTIALS.sub('://***@', location)}: a URL must not contain a password; "
            "pass it with --storage-options or in the environment"
        )
    if is_url(location) and is_signed(location):
        raise UsageError(
            f"{location.partition('?')[0]}?***: a URL must not contain a signature or a token; "
            "pass credentials with --storage-options or in the environment"
        )


@dataclass(frozen=True)
class Folder:
    """A folder or a bucket prefix, as a value that travels between processes.

    `url` is an absolute path, or a URL that fsspec knows, with no ``/`` at its end. `options` are those of fsspec's
    filesystem, with credentials among them, so they are never shown.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @classmethod
    def of(cls, location: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Folder:
        """Return the folder that a person named, with local paths made absolute.

        Raise UsageError if the location is empty, carries a password or a signature, or is relative to a deleted folder.
        """
        text = os.fspath(location)
        if not text:
            raise UsageError("location: it is empty; name a path or a URL")
        refuse_secrets(text)
        text = text.removeprefix("file://")
        if not is_url(text):
            try:
                text = os.path.abspath(os.path.expanduser(text))
            except FileNotFoundError as error:
                remedy = "go to another one, or name an absolute path"
                raise UsageError(f"{text}: the current folder was deleted; {remedy}") from error
        return cls(text.rstrip("/") or "/", options or {})

    def store(self, name: str = "") -> tuple[Store, str]:
        """Return the client of this place, and the path that it knows `name` by, or the folder itself.

        Raise StorageError if there is no client for the URL with these options.
        """
        if self.is_local:
            return _LOCAL, os.path.join(self.url, name) if name else self.url
        url = f"{self.url}/{name}" if name else self.url
        bucket = open_bucket(url, self.options)
        return open_fsspec(url, self.options) if bucket is None else bucket

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's own filesystem."""
        return not is_url(self.url)

    def folder(self, name: str) -> Folder:
        """Return the folder called `name` within this one."""
        return Folder(f"{self.url.rstrip('/')}/{name}", self.options)

    def _ask(self, name: str, question: Callable[[Store, str], T]) -> T:
        """Ask the place about `name`, and ask again after a transient failure."""
        store, path = self.store(name)
        return persistently(lambda: question(store, path))

    def read(self, name: str) -> bytes:
        """Return the bytes of `name`; raise FileNotFoundError if there is no such file."""
        return self.read_range(name, 0, None)

    def read_range(self, name: str, start: int, stop: int | None) -> bytes:
        """Return bytes of `name`, as far as it has them."""
        return self._ask(name, lambda store, path: store.get(path, start, stop)).data

    def read_end(self, name: str, n_bytes: int) -> tuple[bytes, int]:
        """Return the last bytes of `name`, and its size."""
        blob = self._ask(name, lambda store, path: store.get_end(path, n_bytes))
        return blob.data, blob.size

    def read_if_there(self, name: str, stop: int | None = None) -> bytes | None:
        """Return the bytes of `name`, all or those before `stop`; None if there is no such file."""
        try:
            return self.read_range(name, 0, stop)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def find_kind(self, name: str = "") -> Literal["file", "folder"] | None:
        """Return what is called `name`, or what this is itself; a place that refuses raises."""
        return self._ask(name, lambda store, path: store.find_kind(path))

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder called `name`; a place that refuses raises."""
        return self.find_kind(name) is not None

    def children(self) -> tuple[pa.Table, list[str]]:
        """Return the files directly in the folder, of `fsspec_store.LISTED_SCHEMA`, and the names of the folders in it."""
        return self._ask("", lambda store, path: store.children(path))

    def names(self) -> list[str]:
        """Return the sorted names of what lies directly in the folder; none if it does not exist."""
        if self.is_local:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return sorted(os.listdir(self.url))
            return []
        try:
            files, folders = self.children()
        except FileNotFoundError:
            return []
        return sorted({*files["name"].to_pylist(), *folders})

    def walk(self) -> Iterator[pa.Table]:
        """Yield all files below the folder, of `fsspec_store.LISTED_SCHEMA`, their names relative to it."""
        store, path = self.store()
        return store.walk(path)

    def make(self) -> None:
        """Make the folder and those above it; buckets need none."""
        if self.is_local:
            os.makedirs(self.url, exist_ok=True)

    def publish(self, name: str, data: bytes, *, is_durable: bool = True) -> None:
        """Write `data` as `name` so that it appears whole or not at all, also after a power cut.

        Locally: a hidden temporary name beside it, fsync, rename, fsync of the folder. Elsewhere: one put. The folder
        must exist, because a folder that was removed during a run must not come back half empty. `is_durable` says whether
        the file must survive a power cut.
        """
        if not self.is_local:
            self._ask(name, lambda store, path: store.put(path, data))
            return
        path = os.path.join(self.url, name)
        with _temporary(path, data, is_durable) as temporary:
            os.replace(temporary, path)
        if is_durable:
            fsync_folder(os.path.dirname(path))

    def find_mark(self, name: str) -> Mark | None:
        """Return a mark that tells the file `name` from earlier and later ones with that name; None if there is none."""
        return self._ask(name, lambda store, path: store.find_mark(path))

    def publish_first(
        self, name: str, data: bytes, over: Mark | None = None, is_due: Callable[[], bool] = lambda: True
    ) -> bool:
        """Publish `data` as `name` unless that is there, or is there as `over`; return whether it was published.

        If several processes try at the same time, one succeeds: by a link on disk, by If-None-Match, If-Match or similar in
        a bucket. If a filesystem has neither, or a file is replaced, two may both succeed in the same instant. `over` is the
        mark of a file to replace. `is_due` is called directly before, and if it returns False, nothing is published.
        """
        store, path = self.store(name)
        if not self.is_local:
            return is_due() and self._put_first(store, path, data, over)
        with _temporary(path, data, is_durable=True) as temporary:
            if not is_due() or store.find_mark(path) != over:
                return False
            try:
                if over is None:
                    os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:
                # exFAT and some shares have no links.
                if os.path.exists(path):
                    return False
                over = {}
            if over is not None:
                os.replace(temporary, path)
        fsync_folder(os.path.dirname(path))
        return True

    def try_to_write(self, name: str) -> None:
        """Write and delete `name` in a store, and raise the store's error; a local folder is not tried."""
        if not self.is_local:
            self.publish(name, b"")
            self.delete(name)

    def _put_first(self, store: Store, path: str, data: bytes, over: Mark | None) -> bool:
        """Put an object unless it is there. After a lost answer, the object may be our own."""
        tries = count(1)

        def put() -> bool:
            is_again = next(tries) > 1
            return store.put_first(path, data, over) or (is_again and store.get(path).data == data)

        return persistently(put)

    def sweep(self) -> None:
        """Delete temporary files that killed processes left here an hour ago or longer."""
        leftovers = [name for name in self.names() if _LEFTOVER.fullmatch(name)] if self.is_local else []
        if not leftovers:
            return
        # The place's own clock gives the ages, because a machine with a fast clock would delete files that others are writing.
        with tempfile.TemporaryFile(dir=self.url, prefix=".") as new:
            now_s = os.fstat(new.fileno()).st_mtime
        for name in leftovers:
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(self.url, name)
                if now_s - os.stat(path).st_mtime > LEFTOVER_AGE_S:
                    os.unlink(path)

    def delete(self, name: str) -> None:
        """Delete the file `name` if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda store, path: store.delete(path))


@contextlib.contextmanager
def writing(location: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Iterator[BinaryIO]:
    """Give a stream whose content becomes the file at `location` if the block ends without an error."""
    place = Folder.of(location, options)
    if not place.is_local:
        above, name = split_file(place)
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            above.publish(name, spool.read())
        return
    with _temporary(place.url, b"", is_durable=False) as temporary:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, place.url)
    fsync_folder(os.path.dirname(place.url))


def temporary_name(path: str) -> str:
    """Return a hidden name beside `path`, another one each time."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")


@contextlib.contextmanager
def _temporary(path: str, data: bytes, is_durable: bool) -> Iterator[str]:
    """Write `data` under a hidden name beside `path`, which is gone after the block."""
    temporary = temporary_name(path)
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
    """Turn an OSError, or a client's transient failure, within the block into a StorageError: one sentence about `thing`."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{thing}: it does not exist; check the name") from error
    except DeniedError as error:
        raise StorageError(f"{thing}: access was refused: {error.strerror}") from error
    except NoBucketError as error:
        raise StorageError(f"{thing}: {error}") from error
    except PermissionError as error:
        where = f" for {error.filename}" if error.filename else ""
        raise StorageError(f"{thing}: permission denied{where}; check the permissions") from error
    except Exception as error:
        is_passing = not isinstance(error, StorageError) and is_transient(error)
        if not (is_passing or isinstance(error, OSError)):
            raise
        number = error.errno if isinstance(error, OSError) else None
        reason = _REASONS.get(number) or os.strerror(number) if number is not None else str(error)
        if isinstance(error, OSError) and isinstance(error.filename, str) and number not in _FULL_ERRNOS:
            reason = f"{reason} ({error.filename})"
        raised = StorageError(f"{thing}: it cannot be used: {reason or type(error).__name__}", is_transient=is_passing)
        if number in _FULL_ERRNOS:
            raised.exit_code = 1
        raise raised from error


def fsync_folder(path: str) -> None:
    """Make a rename within `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def split_file(file: Folder) -> tuple[Folder, str]:
    """Return the folder of a file, and its name there."""
    parent, _, name = file.url.rpartition("/")
    return Folder(parent or "/", file.options), name
