"""Read and write buckets by obstore, at a tenth of the processor time of fsspec's clients.

Only this module and `bucket_options` import obstore, and only when a bucket is opened. Fsspec's own client is
used for options that obstore does not have, and for names that obstore refuses.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import usage
from emotion_batch.errors import ChangedError, DeniedError, NoBucketError, StorageError, StoreError
from emotion_batch.storage import fsspec_store
from emotion_batch.storage.bucket_options import Config, configure
from emotion_batch.storage.fsspec_store import EXTRAS, LISTED_SCHEMA, STRANGE, Blob, FsspecStore, Mark, scrub
from emotion_batch.storage.retry import CLIENT_RETRIES, TRANSIENT_CODES, is_transient, persistently

T = TypeVar("T")
P = ParamSpec("P")
_URL = re.compile(r"([A-Za-z0-9]+)://([^/]+)/?(.*)", re.DOTALL)
# A stalled answer ends long before a deadline. Writing has no read timeout, because a large part takes long to send.
_READING = {"connect_timeout": "5s", "read_timeout": "20s", "timeout": "1800s"}
_WRITING = {"connect_timeout": "5s", "timeout": "600s"}
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist", re.IGNORECASE)
_CODE = re.compile(r"status code: (\d{3})")
_REASON = re.compile(r"<Code>(\w{1,60})</Code>|\(code: (\w{1,60})\)")
_STRANGE = re.compile(r"invalid \w+ response|non-partial response|[Hh]eader missing|parse range|Content-Range")
_CERTIFICATE = re.compile(r"InvalidCertificate|UnknownIssuer|certificate verify|CertificateError", re.IGNORECASE)
# These failures are transient, although the answer is a 400.
_TRANSIENT_REASONS = {"RequestTimeout", "SlowDown", "InternalError", "ServerBusy", "OperationTimedOut"}
_DENIED_REASONS = {"AccessDenied", "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
# An error in obstore's core is a BaseException and not an Exception.
_PANIC = "PanicException"
# A page of a listing has this many names, and this many prefixes are listed at once.
PAGE = 1_000
_N_LISTINGS = 16
# A folder gets its own listing if a page has this many of its names. Such folders are looked for down to this level.
_LEAST_FOLDER = 250
_MOST_LEVELS = 4
# A page of a listing, or a folder with its own listing: its name with a slash, and a function that returns its pages.
_Found: TypeAlias = pa.Table | tuple[str, Callable[[], list[Any]]]
_stores: dict[tuple[int, str, str, str], BucketStore | None] = {}
_LOCK = threading.Lock()


def open_bucket(url: str, options: Mapping[str, Any]) -> tuple[BucketStore, str] | None:
    """Return a bucket's store, one for each process, and the key that a URL such as ``s3://bucket/key`` names in it.

    `options` are those of fsspec's filesystem. None if obstore does not serve the URL with these options; raise StorageError if
    they cannot be used, or the credentials that they name cannot be read.
    """
    match = _URL.fullmatch(url)
    if match is None or match[1] not in EXTRAS or match[1] == "adl":
        return None
    protocol, bucket, key = match.groups()
    # The process is part of the key, because a store loses its threads in a fork.
    name = (os.getpid(), protocol, bucket, json.dumps(options, sort_keys=True, default=id))
    with _LOCK:
        if name not in _stores:
            _stores[name] = _open(protocol, bucket, options)
        store = _stores[name]
    return None if store is None else (store, key.rstrip("/"))


def _open(protocol: str, bucket: str, options: Mapping[str, Any]) -> BucketStore | None:
    try:
        import arro3.core  # noqa: F401 obstore's listings need it
        import obstore.store
    except ImportError:
        return None
    try:
        config = configure(protocol, bucket, options)
    except Exception as error:
        # The clouds' own packages raise many errors, e.g. for a profile or a key file that does not exist.
        said = scrub(str(error).splitlines()[0] if str(error) else type(error).__name__, options)
        raise StorageError(f"{protocol}://{bucket}: the credentials cannot be read ({said})") from None
    if config is None:
        return None
    kinds = {"s3": obstore.store.S3Store, "gcs": obstore.store.GCSStore, "azure": obstore.store.AzureStore}
    return BucketStore(kinds[EXTRAS[protocol]], f"{protocol}://{bucket}", config, options)


def _or_fsspec(method: Callable[Concatenate[BucketStore, str, P], T]) -> Callable[Concatenate[BucketStore, str, P], T]:
    """Let fsspec's client do what a method does if obstore does not take the name."""

    @wraps(method)
    def call(self: BucketStore, path: str, /, *args: P.args, **named: P.kwargs) -> T:
        def otherwise(other: FsspecStore, root: str) -> T:
            found: T = getattr(other, method.__name__)(root + path, *args, **named)
            return found

        return self._call(path, lambda: method(self, path, *args, **named), otherwise)

    return call


class BucketStore:
    """One bucket: `kind` is obstore's class for it, and `options` are those of fsspec's client, for what obstore cannot do."""

    def __init__(self, kind: Any, url: str, config: Config, options: Mapping[str, Any]) -> None:
        import obstore

        self._obstore = obstore
        self._url = url
        self._options = options
        self._config = config
        self._kind = EXTRAS[url.split(":")[0]]
        self._endpoint = config.config.get("aws_endpoint_url_s3") or config.config.get("endpoint", url)
        self._lock, self._is_lack_passing = threading.Lock(), False
        self._lack: str | None = None

        def opened(client: Mapping[str, Any]) -> Any:
            return kind(
                url.split("://")[1].partition("@")[0],
                config=dict(config.config),
                client_options={**client, **config.client},
                retry_config={"max_retries": CLIENT_RETRIES},
                credential_provider=None if config.credentials is None else self._find_keys,
            )

        try:
            self._store, self._writer = opened(_READING), opened(_WRITING)
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
                raise
            said = scrub(str(error).splitlines()[0], options)
            raise StorageError(f"{url}: these options cannot be used with it ({said})") from None

    @_or_fsspec
    def get(self, path: str, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Blob:
        """Return an object's bytes from `start` to `stop`, as far as it has them."""
        options: dict[str, Any] = {}
        if stop is not None and stop <= start:
            # Stores refuse a range of no bytes.
            options["head"] = True
        elif stop is not None or start:
            options["range"] = {"offset": start} if stop is None else (start, stop)
        if version is not None:
            options["if_match"] = f'"{version}"'
        return self._get(path, options)

    @_or_fsspec
    def get_end(self, path: str, n_bytes: int) -> Blob:
        """Return an object's last bytes, in one request if the store can."""
        if n_bytes and self._kind != "azure":
            return self._get(path, {"range": {"suffix": n_bytes}})
        size = self._get(path, {"head": True}).size
        return self.get(path, max(0, size - n_bytes), size)

    def _get(self, path: str, options: Any) -> Blob:
        try:
            result = self._obstore.get(self._store, path, options=options or None)
        except self._obstore.exceptions.BaseError as error:
            if "status code: 416" not in str(error):
                raise
            # The object is empty, or ends before the range begins.
            return self._get(path, {"head": True})
        meta = result.meta
        if meta["e_tag"] is None:
            raise StoreError(STRANGE, is_transient=True)
        data = b"" if "head" in options else result.bytes().to_bytes()
        return Blob(data, meta["size"], meta["e_tag"].strip('"'))

    @_or_fsspec
    def put(self, path: str, data: bytes) -> None:
        """Write an object in one request, because the parts of an unfinished upload stay and cost money."""
        self._put(path, data, "overwrite")

    def _put(self, path: str, data: bytes, mode: Any) -> None:
        if self._obstore.put(self._writer, path, data, use_multipart=False, mode=mode)["e_tag"] is None:
            raise StoreError(STRANGE, is_transient=True)

    @_or_fsspec
    def find_mark(self, path: str) -> Mark | None:
        """Return an object's ETag, and its generation if the store has one."""
        try:
            meta = self._obstore.head(self._store, path)
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                raise
            return None
        return {name: value for name in ("e_tag", "version") if (value := meta[name])}

    @_or_fsspec
    def put_first(self, path: str, data: bytes, over: Mark | None = None) -> bool:
        """Write an object unless there is another one (If-None-Match, If-Match), and return whether it was written."""
        kinds = self._obstore.exceptions
        try:
            self._put(path, data, over or "create")
        except (kinds.AlreadyExistsError, kinds.PreconditionError):
            return False
        except kinds.BaseError as error:
            # Some stores cannot replace an object on a condition.
            if over is None or "status code: 501" not in str(error):
                raise
            self._put(path, data, "overwrite")
        except FileNotFoundError as error:
            # Some stores say so if the object that must be replaced is gone.
            if over is None or _NO_BUCKET.search(str(error)):
                raise
            return False
        return True

    @_or_fsspec
    def delete(self, path: str) -> None:
        """Delete an object if it is there."""
        try:
            self._obstore.delete(self._store, path)
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                raise

    @_or_fsspec
    def find_kind(self, path: str) -> Literal["file", "folder"] | None:
        """Return what there is under a name: an object, or objects below it."""
        is_empty = False
        if path:
            # A head request gives no reason if it is refused, so a byte is read.
            with contextlib.suppress(FileNotFoundError):
                if self.get(path, 0, 1).size:
                    return "file"
                is_empty = True
        # An empty object under a folder's name marks it.
        if any(True for _ in self._obstore.list(self._store, path or None, chunk_size=1)) or not path:
            return "folder"
        return "file" if is_empty else None

    def children(self, path: str) -> tuple[pa.Table, list[str]]:
        """Return the files directly below a prefix, and the names of the folders there."""
        return self._call(path, lambda: self._list_children(path), lambda other, root: other.children(root + path))

    def _list_children(self, path: str) -> tuple[pa.Table, list[str]]:
        found = self._obstore.list_with_delimiter(self._store, path or None, return_arrow=True)
        names = [prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in found["common_prefixes"]]
        return _listed(pa.table(found["objects"]), path), names

    def walk(self, path: str) -> Iterator[pa.Table]:
        """Yield all files below a prefix, sorted by name but for files beside folders.

        Folders are listed in parallel if the first page shows that they are large. A listing that breaks continues from
        its last name. Pages that were yielded are not kept.
        """
        if not path and self._kind != "azure":
            # obstore lists a key that begins with `/` without it, as if it were another.
            other, root = fsspec_store.open_fsspec(self._url, self._options)
            if persistently(lambda: other.has_any(root, "/")):
                yield from other.walk(root)
                return
        pool = ThreadPoolExecutor(_N_LISTINGS)
        is_over = threading.Event()

        def found(prefix: str, level: int) -> Iterator[_Found]:
            pages = self._pages(prefix, is_over)
            first = next(pages, LISTED_SCHEMA.empty_table())
            # A full page may lack one name, because the marker of the prefix itself is left out.
            if level and first.num_rows >= PAGE - 1 and _has_large_folders(first["name"]):
                # It is None if obstore does not take all names in it. Then its pages are used.
                listed = persistently(lambda: self._call(prefix, lambda: self._list_children(prefix), lambda *_: None))
                # If there are no folders any more, the first page is used.
                if listed is not None and listed[1]:
                    names = sorted(f"{name}/" for name in listed[1])
                    places = [f"{prefix}/{name}".lstrip("/")[:-1] for name in names]
                    jobs = [usage.submit_metered(pool, partial(list[Any], found(place, level - 1))) for place in places]
                    yield listed[0]
                    yield from zip(names, jobs, strict=True)
                    return
            yield first
            yield from pages

        try:
            yield from _in_order("", found(path, _MOST_LEVELS))
        finally:
            # A caller that stops does not wait for running requests.
            is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _pages(self, prefix: str, is_over: threading.Event) -> Iterator[pa.Table]:
        """Yield the files below a prefix, names relative to it, until `is_over` is set."""
        stream: Iterator[Any] | None = None
        last: str | None = None
        ended_at: str | None = ""

        def next_page() -> tuple[pa.Table | None, bool]:
            nonlocal stream
            if stream is None:
                some = self._obstore.list(self._store, prefix or None, offset=last, chunk_size=PAGE, return_arrow=True)
                stream = iter(some)
            # A stream that raised is not used again.
            current, stream = stream, None
            page = next(current, None)
            stream = current
            return None if page is None else pa.table(page), False

        def all_pages(other: FsspecStore, root: str) -> tuple[pa.Table, bool]:
            return pa.concat_tables([LISTED_SCHEMA.empty_table(), *other.walk(root + prefix)]), True

        while not is_over.is_set():
            page, is_last = persistently(lambda: self._call(prefix, next_page, all_pages))
            if page is None:
                # A login page may look like the end, so the end is only believed if nothing follows the last name.
                if ended_at == last:
                    return
                ended_at, stream = last, None
                continue
            if is_last:
                # Obstore does not take some names, so fsspec listed all, and those that came before are left out.
                after = pc.greater(page["name"], last.removeprefix(f"{prefix}/")) if last is not None else None
                yield page if after is None else page.filter(after)
                return
            if page.num_rows:
                last = page["path"][-1].as_py()
                yield _listed(page, prefix)

    def _find_keys(self) -> Any:
        """Return the current keys; if there are none, note why."""
        try:
            # botocore's session is not thread-safe.
            with self._lock:
                keys = self._config.credentials() if self._config.credentials else None
        except Exception as error:
            self._lack = scrub(str(error) or type(error).__name__, self._options)
            self._is_lack_passing = is_transient(error)
            raise
        self._lack = None
        return keys

    def _call(self, path: str, function: Callable[[], T], otherwise: Callable[[FsspecStore, str], T]) -> T:
        """Call obstore, or otherwise fsspec's client if obstore does not take `path`; errors become OSErrors."""
        try:
            # obstore would silently drop the leading slash.
            if not path.startswith("/"):
                return function()
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                raise self._no_bucket() from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        except (ValueError, TypeError, self._obstore.exceptions.InvalidPathError):
            pass
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise self._translated(error) from None
        except BaseException as error:
            if type(error).__name__ != _PANIC:
                raise
            raise StoreError(f"obstore failed: {scrub(str(error).splitlines()[0], self._options)}") from None
        other, root = fsspec_store.open_fsspec(self._url, self._options)
        return otherwise(other, f"{root.rstrip('/')}/")

    def _translated(self, error: BaseException) -> OSError:
        """Return what obstore raised as an OSError; its own text holds whole requests, which may be signed."""
        if isinstance(error, StoreError | DeniedError):
            return error
        text = str(error)
        match, reason = _CODE.search(text), _REASON.search(text)
        code = int(match[1]) if match else None
        # The text is "Generic S3 error: Error performing GET URL in 1 ms - the reason", and then details for debugging.
        first = text.partition("\n\nDebug source")[0].split(" - ")[-1].strip().splitlines() or [type(error).__name__]
        said = scrub(first[0], self._options)
        word = (reason[1] or reason[2]) if reason else None
        if code is not None:
            said = f"{code} {word}" if word else said.rpartition("status code: ")[2].rstrip(": ")
        elif word:
            said = word
        elif "HTTP error" in text:
            why = "its certificate is not trusted" if _CERTIFICATE.search(text) else said
            said = scrub(f"no answer from {self._endpoint} ({why})", self._options)
        kinds = self._obstore.exceptions
        if isinstance(error, kinds.PreconditionError | kinds.AlreadyExistsError):
            return ChangedError(said, code=code)
        if code is None and _STRANGE.search(text):
            return StoreError(STRANGE, is_transient=True)
        if self._lack is not None and self._is_lack_passing:
            return StoreError(f"no credentials now: {self._lack}", is_transient=True)
        is_denied = code in fsspec_store.DENIED_CODES or word in _DENIED_REASONS
        is_denied = is_denied or isinstance(error, kinds.UnauthenticatedError | kinds.PermissionDeniedError)
        if self._lack is not None or is_denied:
            said = f"{self._lack or said} (looked for credentials in: {self._config.looked_in})"
            return DeniedError(errno.EACCES, said)
        if _NO_BUCKET.search(text):
            return self._no_bucket()
        is_network = "HTTP error" in text and code is None and not _CERTIFICATE.search(text)
        is_passing = is_network or code in TRANSIENT_CODES or word in _TRANSIENT_REASONS
        return StoreError(said, is_transient=is_passing, code=code)

    def _no_bucket(self) -> NoBucketError:
        return NoBucketError(f"there is no bucket {self._url}; check its name, endpoint and region")


# A client of storage: both have the same methods.
Store: TypeAlias = FsspecStore | BucketStore


def _in_order(above: str, found: Iterator[_Found]) -> Iterator[pa.Table]:
    """Yield pages when they are known, names relative to where the listing began."""
    for one in found:
        if isinstance(one, tuple):
            some = one[1]()
            # Each page is taken out of the list, so that pages that were yielded are not kept.
            yield from _in_order(f"{above}{one[0]}", (some.pop(0) for _ in range(len(some))))
        elif one.num_rows:
            yield one.set_column(0, "name", pc.binary_join_element_wise(above, one["name"], "")) if above else one


def _has_large_folders(names: pa.ChunkedArray) -> bool:
    """Return whether a page's names are in few folders with many names each; listing many small ones costs more."""
    folders = pc.struct_field(pc.extract_regex(names, "(?s)^(?P<folder>[^/]*)/"), "folder").drop_null()
    return 0 < len(folders.unique()) <= PAGE // _LEAST_FOLDER


def _listed(objects: pa.Table, prefix: str) -> pa.Table:
    """Return what obstore lists as `LISTED_SCHEMA`, without the marker of the prefix itself."""
    names = pc.utf8_slice_codeunits(objects["path"].cast(pa.string()), len(prefix) + 1 if prefix else 0)
    versions = pc.utf8_trim(objects["e_tag"].cast(pa.string()), '"')
    table = pa.table([names, objects["size"].cast(pa.int64()), versions], LISTED_SCHEMA)
    return table.filter(pc.not_equal(table["name"], ""))
