"""Read and write places by fsspec. `storage.bucket` has the same methods for buckets.

Paths are the client's own, without a protocol. Every method may be called from any thread. All errors of a client become an `OSError`
with our own text, because options may hold credentials, and clients write their requests into their errors.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from emotion_batch.errors import ChangedError, DeniedError, StorageError, StoreError
from emotion_batch.storage.retry import CLIENTS, find_status_code, is_transient, persistently

T = TypeVar("T")
DENIED_CODES = {401, 403}
# A conflict, or a precondition that does not hold, because another process was quicker.
EXISTS_CODES = {409, 412}
# Query parameters that sign a URL, in the three large clouds and elsewhere.
_SIGNATURE = re.compile(
    r"(?i)([?&](?:sig|signature|x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|"
    r"awsaccesskeyid|googleaccessid|token|access_token|api_?key|password)=)[^&\s'\"]+"
)
_USER = re.compile(r"://[^/@\s]*@")
_SECRET_VARIABLE = re.compile(r"SECRET|PASSWORD|TOKEN|_KEY$|CONNECTION_STRING")
_LEAST_SECRET = 6
EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
}
_BATCH = 4_096
_S3FS_CHUNK_BYTES = 50 * 2**20
# A proxy or a login page may answer instead of the store, even with 200. Then the request is repeated.
STRANGE = "the answer is not from a store, but e.g. from a proxy or a login page; check the network, and run the same command again"
_ETAGS = ("md5Hash", "ETag", "etag")
_TIMES = ("mtime", "LastModified", "last_modified", "created")
LISTED_SCHEMA = pa.schema([("name", pa.string()), ("size", pa.int64()), ("version", pa.string())])


class Blob(NamedTuple):
    """Some or all bytes of an object, the size of the whole, and a version that changes with its content."""

    data: bytes
    size: int
    version: str | None


# It tells an object, or a file, from earlier and later ones with its name. Each store fills it in its own way.
Mark = Mapping[str, str]


def _read_local(path: str, start: int, stop: int | None) -> Blob:
    """Return bytes of a file; from the end if `start` is below 0. Fsspec would take three times as long."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if start:
            stream.seek(start if start > 0 else max(0, size + start))
        # The size limits the read, because Python reserves as much memory as it is asked for.
        data = stream.read() if stop is None else stream.read(max(0, min(stop, size) - start))
    return Blob(data, size, None)


class FsspecStore:
    """A filesystem of fsspec's; `options` are what it was made with; errors must not show their secrets.

    All calls raise FileNotFoundError, `DeniedError`, `NoBucketError`, `StoreError` or another OSError.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem, options: Mapping[str, Any]) -> None:
        self._filesystem = filesystem
        self._options = options
        self._is_local = isinstance(filesystem, LocalFileSystem)
        protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else {*filesystem.protocol}
        self._is_s3 = "s3" in protocols
        self._has_versions = bool(protocols & EXTRAS.keys())

    def get(self, path: str, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Blob:
        """Return an object's bytes from `start` to `stop`, as far as it has them; `ChangedError` if not of `version`.

        A store that cannot read parts returns all from `start` on. It takes two requests if the object is not read whole, because
        the size is needed.
        """
        if self._is_local:
            return _read_local(path, start, stop)
        size, found = (None, None) if start == 0 and stop is None else self._info(path)
        if size is None:
            data = bytes(self._call(lambda: self._filesystem.cat_file(path)))
            return Blob(data[start:], len(data), None)
        if version is not None and found not in (None, version):
            raise ChangedError(f"the version must be {version}: {found}")
        stop = size if stop is None else min(stop, size)
        # Many servers answer a range past the end with an error.
        data = b""
        if start < stop:
            data = bytes(self._call(lambda: self._filesystem.cat_file(path, start=start, end=stop)))
        # Web servers that know no ranges send all of it.
        if len(data) not in (max(0, stop - start), size):
            raise StoreError(STRANGE, is_transient=True)
        return Blob(data if len(data) <= stop - start else data[start:stop], size, found)

    def get_end(self, path: str, n_bytes: int) -> Blob:
        """Return an object's last bytes."""
        if self._is_local:
            return _read_local(path, -n_bytes, None)
        size, _ = self._info(path)
        return self.get(path) if size is None else self.get(path, max(0, size - n_bytes), size)

    def put(self, path: str, data: bytes, **how: str) -> None:
        """Write an object, whole or not at all, in one request; `how` is what the filesystem's own put of bytes takes."""
        # s3fs splits objects that are larger than two chunks, and leaves the pieces in the bucket if it is killed.
        whole = {"chunksize": len(data)} if len(data) > _S3FS_CHUNK_BYTES and self._is_s3 else {}
        self._call(lambda: self._filesystem.pipe_file(path, data, **whole, **how))

    def find_mark(self, path: str) -> Mark | None:
        """Return a mark that changes when other bytes are written under a name; None if there is no object."""
        try:
            info = self._call(lambda: self._look(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return {name: str(info[name]) for name in (*_ETAGS, *_TIMES, "size", "ino") if name in info}

    def put_first(self, path: str, data: bytes, over: Mark | None = None) -> bool:
        """Write an object unless there is one with another mark than `over`; return whether it was written.

        If the filesystem has no such condition, two processes may both write in the same instant.
        """
        if over is not None:
            if self.find_mark(path) != over:
                return False
            self.put(path, data)
            return True
        try:
            self.put(path, data, mode="create")
        except (FileExistsError, StoreError) as error:
            if isinstance(error, StoreError) and error.code not in EXISTS_CODES:
                raise
            return False
        return True

    def delete(self, path: str) -> None:
        """Delete an object if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._call(lambda: self._filesystem.rm_file(path))

    def find_kind(self, path: str) -> Literal["file", "folder"] | None:
        """Return whether a name is a file, a folder, or nothing."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return "folder" if self._call(lambda: self._look(path))["type"] == "directory" else "file"
        return None

    def children(self, path: str) -> tuple[pa.Table, list[str]]:
        """Return the files directly in a folder, of `LISTED_SCHEMA`, and the names of the folders in it."""
        self._forget()
        entries = self._call(lambda: self._filesystem.ls(path, detail=True))
        folders = [_base(entry["name"]) for entry in entries if entry["type"] == "directory"]
        # S3's marker of a folder is listed in it, under its own name.
        files = [(_base(entry["name"]), entry) for entry in entries if entry["type"] != "directory"]
        return _listed((name, info) for name, info in files if name), [name for name in folders if name]

    def walk(self, path: str) -> Iterator[pa.Table]:
        """Yield all files below a folder, of `LISTED_SCHEMA`, names relative to it; fsspec holds all their names at once."""
        self._forget()
        found = persistently(lambda: self._call(lambda: self._filesystem.find(path, detail=True)))
        root = f"{path.rstrip('/')}/"
        files = iter(found.items())
        while some := list(islice(files, _BATCH)):
            yield _listed((name.removeprefix(root), info) for name, info in some if not name.endswith("/"))

    def has_any(self, path: str, prefix: str) -> bool:
        """Return whether any name in a bucket begins with `prefix`."""
        return bool(self._call(lambda: self._filesystem.find(path, prefix=prefix)))

    def _look(self, path: str) -> dict[str, Any]:
        """Return what is there now, not what an earlier listing saw."""
        self._forget()
        info: dict[str, Any] = self._filesystem.info(path)
        return info

    def _forget(self) -> None:
        """Make the client look again. `invalidate_cache` does nothing in adlfs, and forgets one folder in others."""
        if (kept := getattr(self._filesystem, "dircache", None)) is not None:
            kept.clear()

    def _info(self, path: str) -> tuple[int | None, str | None]:
        """Return an object's size and version, as far as they can be known."""
        try:
            info = self._call(lambda: self._look(path))
        except FileNotFoundError:
            # fsspec's HTTP client raises this for any failure. Reading the object will show the true one.
            return None, None
        # Times are left out, because listings and heads differ in them.
        version = find_version({name: info[name] for name in _ETAGS if name in info})
        is_strange = version is None and self._has_versions and info.get("type") != "directory"
        if is_strange or str(info.get("mimetype")).startswith("text/html"):
            raise StoreError(STRANGE, is_transient=True)
        return info.get("size"), version

    def _call(self, function: Callable[[], T]) -> T:
        """Call the client; what it raises becomes an OSError without secrets."""
        if self._is_local:
            return function()
        try:
            return function()
        except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            # fsspec's HTTP client raises this for any failure, and gives the reason in the cause.
            cause = error.__cause__
            if isinstance(cause, Exception) and (is_transient(cause) or find_status_code(cause) in DENIED_CODES):
                raise self._translated(cause) from None
            raise
        except Exception as error:
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> OSError:
        code = find_status_code(error)
        said = scrub(f"{type(error).__name__}: {error}".strip().splitlines()[0], self._options)
        if isinstance(error, PermissionError) or code in DENIED_CODES:
            looked_in = "--storage-options, and what fsspec's client reads"
            return DeniedError(errno.EACCES, f"{said} (looked for credentials in: {looked_in})")
        if type(error).__name__ in CLIENTS["errors"]["strange"]:
            return StoreError(STRANGE, is_transient=True)
        return StoreError(said, is_transient=is_transient(error), code=code)


def open_fsspec(url: str, options: Mapping[str, Any]) -> tuple[FsspecStore, str]:
    """Return fsspec's store for a URL, and the URL's path in it.

    Raise StorageError if the client is not installed, or does not know the options.
    """
    protocol = url.split(":", 1)[0]
    if EXTRAS.get(protocol) == "gcs":
        # gcsfs would ask the real service for a bucket's kind, even with another endpoint. It reads this when it is imported.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"; run `pip install 'emotion-batch[{extra}]'`" if extra else ""
        raise StorageError(f"{url}: the client for {protocol}:// is not installed ({error}){remedy}") from error
    except (ValueError, TypeError) as error:
        said = scrub(str(error), options)
        raise StorageError(f"{url}: fsspec cannot use this URL with these options ({said})") from None
    return FsspecStore(filesystem, options), path


def find_version(info: Mapping[str, Any]) -> str | None:
    """Return the part of fsspec's information about a file that changes with its content."""
    if info.get("md5Hash"):
        # The client of buckets sees Google's own ETag, which is this in hexadecimal digits.
        return base64.b64decode(info["md5Hash"]).hex()
    version = next((info[name] for name in (*_ETAGS, *_TIMES) if info.get(name)), None)
    return None if version is None else str(version).strip('"')


def scrub(text: str, options: Mapping[str, Any]) -> str:
    """Return `text` without secrets: values of `options` and of this process's environment, signatures of URLs."""
    variables = (value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name))
    for secret in sorted({*_secrets(options), *variables}, key=len, reverse=True):
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, "***")
    return _USER.sub("://***@", _SIGNATURE.sub(r"\1***", text))


def is_signed(url: str) -> bool:
    """Return whether a URL carries a signature or a token."""
    return bool(_SIGNATURE.search(url))


def _secrets(options: Any) -> Iterator[str]:
    """Yield the texts in options that are not known to be harmless."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            if name not in CLIENTS["options"]["plain"]:
                yield from _secrets(value)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _secrets(value)
    elif isinstance(options, str):
        yield options


def _listed(found: Iterable[tuple[str, Mapping[str, Any]]]) -> pa.Table:
    """Return what fsspec says of files as a table of `LISTED_SCHEMA`."""
    rows = [
        # A name that is not text is escaped, so that it is listed and not lost.
        {
            "name": name.encode("utf-8", "backslashreplace").decode(),
            "size": info.get("size"),
            "version": find_version(info),
        }
        for name, info in found
    ]
    return pa.Table.from_pylist(rows, LISTED_SCHEMA)


def _base(path: str) -> str:
    return os.path.basename(path.rstrip("/"))
