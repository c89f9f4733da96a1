"""Open DuckDB so that it sees one table and nothing else: no other file, network, extension or setting.

DuckDB's own reader of Parquet reads the parts that count, by their names. Parts on a disk it reads as files, because that takes half
the time. Parts in a bucket it reads through a filesystem that knows these parts alone, with the client and the retries of `storage`.
https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from emotion_batch.errors import EmotionBatchError, IncompleteError, UsageError
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.storage.prefetch import RemoteFile
from emotion_batch.storage.retry import persistently
from emotion_batch.tables.inventory import Inventory

T = TypeVar("T")
# What a part's end is read with: of most label tables all of it.
_END_BYTES = 2**18
# Of a bucket each waits for its answer, most of the time.
_REMOTE_THREADS = 16
_NOTHING = "nothing.parquet"
# In a folder's name DuckDB would take them for a pattern.
_GLOB = set("*?[]{}\\")
_SETTINGS = {
    "allow_community_extensions": "false",
    "allow_extension_repositories": "'forbidden'",
    "allow_persistent_secrets": "false",
    "python_enable_replacements": "false",
    # The order of rows without ORDER BY is that of the table.
    "preserve_insertion_order": "true",
    "enable_external_access": "false",
    # Last, for it holds for what follows.
    "lock_configuration": "true",
}
_INTERRUPT_EVERY_S = 0.05
# With which DuckDB begins to say where, after it has said what.
_WHERE = re.compile(r"\n\s*(LINE \d+:|Stack Trace:|This error signals).*", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What a query gives.

    Attributes
    ----------
    schema
        Its columns.
    batches
        Its rows, as they come; to be read once, and within the block that it is of.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


class Sandbox:
    """A DuckDB with views of tables; `opened` makes it.

    Parameters
    ----------
    connection
        The connection, locked.
    parts
        What it reads them through.
    pool
        One thread, in which it works: the caller's own thread hears signals meanwhile.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, parts: _Parts, pool: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._parts = parts
        self._pool = pool

    @contextlib.contextmanager
    def ask(self, sql: str, batch_rows: int = 4_096) -> Iterator[Answer]:
        """Answer one query within the block.

        Parameters
        ----------
        sql
            One statement that only reads.
        batch_rows
            Most rows of a batch.

        Raises
        ------
        UsageError
            If it is none, or DuckDB cannot answer it.
        StorageError, IncompleteError
            If the table cannot be read, or what is asked takes more memory and space than there is.
        """
        reader = self._work(lambda: self._begin(sql, batch_rows))

        def batches() -> Iterator[pa.RecordBatch]:
            while (batch := self._work(lambda: next(reader, None))) is not None:
                yield batch

        try:
            yield Answer(reader.schema, batches())
        finally:
            # What was not read of it is not computed.
            self._work(reader.close)

    def make_view(self, name: str, paths: Sequence[str]) -> None:
        """Make a view of some parts, all of the columns of the first."""
        view = f"CREATE VIEW {name} AS FROM read_parquet({_list(paths)}, hive_partitioning = false)"
        self._work(lambda: self._connection.execute(view))

    def _begin(self, sql: str, batch_rows: int) -> pa.RecordBatchReader:
        statements = self._connection.extract_statements(sql)
        # PIVOT is several by itself.
        kinds = (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)
        if len(statements) != 1 or statements[0].type not in kinds:
            got = statements[0].type.name if len(statements) == 1 else f"{len(statements)} statements"
            raise UsageError(f"SQL: expected one SELECT, FROM, PIVOT, DESCRIBE or SUMMARIZE, got {got}")
        return self._connection.sql(statements[0]).to_arrow_reader(batch_rows)

    def _work(self, function: Callable[[], T]) -> T:
        """Do something with the connection; whatever ends the waiting for it ends it."""
        job = self._pool.submit(function)
        try:
            return job.result()
        except EmotionBatchError:
            raise
        except BaseException as error:
            while not job.done():
                # Again, for one that comes before the query begins is not heard.
                self._connection.interrupt()
                wait([job], _INTERRUPT_EVERY_S)
            if not isinstance(error, Exception):
                raise
            self._explain(error)
            raise

    def _explain(self, error: Exception) -> None:
        """Raise the sentence about what DuckDB raised, if it is of a kind that is known."""
        if self._parts.failure is not None:
            url, failure = self._parts.failure
            with explained(f"table {url}"):
                raise failure
        if not isinstance(error, duckdb.Error):
            return
        said = " ".join(_WHERE.sub("", str(error)).split())
        if isinstance(error, duckdb.OutOfMemoryException):
            raise IncompleteError(
                f"query: expected to fit in memory and in the disk's space for temporary files, got {said}"
            ) from error
        # What its reader of Parquet stumbles over has no class of its own, or begins so.
        is_damage = type(error) is duckdb.Error or "Failed to read file" in said
        if is_damage or isinstance(error, duckdb.IOException):
            raise IncompleteError(
                f"table: expected its parts as they were written, got {said}; `emotion-batch verify --deep` names what is damaged"
            ) from error
        if isinstance(error, duckdb.PermissionException):
            raise UsageError(
                f"SQL: expected nothing but the table, got {said}; a query sees no other file, no network and no extension"
            ) from error
        raise UsageError(f"SQL: expected a query that DuckDB can answer, got {said}") from error


@contextlib.contextmanager
def open_sandbox(views: Mapping[str, Inventory]) -> Iterator[Sandbox]:
    """Open a DuckDB within the block.

    Parameters
    ----------
    views
        Tables by the name that queries have for them.
    """
    parts = _Parts(views)
    with (
        # Only where it does not fit in memory; of this DuckDB alone, for a query could read what it finds there.
        tempfile.TemporaryDirectory(prefix="emotion-batch-") as folder,
        ThreadPoolExecutor(1, thread_name_prefix="query") as pool,
        duckdb.connect(
            config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        ) as connection,
    ):
        connection.register_filesystem(parts)
        paths = {name: parts.paths(name) for name in views}
        connection.execute(f"SET allowed_paths = {_list([path for some in paths.values() for path in some])}")
        connection.execute(f"SET temp_directory = {_quoted(folder)}")
        if any(not one.table.is_local for one in views.values()):
            connection.execute(f"SET threads = {_REMOTE_THREADS}")
        sandbox = Sandbox(connection, parts, pool)
        for name, some in paths.items():
            sandbox.make_view(name, some)
        for name, value in _SETTINGS.items():
            connection.execute(f"SET {name} = {value}")
        yield sandbox


class _Parts(fsspec.AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """The parts of some tables as files, and no others.

    Parameters
    ----------
    views
        Tables by name.
    """

    protocol = "table"
    cachable = False
    # DuckDB keeps what it read of a file, as long as this stays.
    _MODIFIED = datetime(2000, 1, 1, tzinfo=UTC)

    def __init__(self, views: Mapping[str, Inventory]) -> None:
        super().__init__()
        self._views = views
        self._known = {f"{view}/{name}": (one.table, name) for view, one in views.items() for name in one.names}
        self._empty = {f"{view}/{_NOTHING}": _empty(one) for view, one in views.items() if not one.names}
        self._sizes = {name: len(data) for name, data in self._empty.items()}
        # What a store raised, and of which table.
        self.failure: tuple[str, Exception] | None = None

    def paths(self, view: str) -> list[str]:
        """Return what DuckDB is to call a table's parts."""
        one = self._views[view]
        if one.names and one.table.is_local and not _GLOB & set(one.table.url):
            return [os.path.join(one.table.url, name) for name in one.names]
        return [f"{self.protocol}://{view}/{name}" for name in one.names or [_NOTHING]]

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the name itself, for it is no pattern."""
        return [self._strip_protocol(path)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return that it is a file."""
        return {"name": path, "type": "file"}

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether it is one of these."""
        name = self._strip_protocol(path)
        return name in self._known or name in self._empty

    def size(self, path: str) -> int:
        """Return the size of a part that was opened."""
        return self._sizes[self._strip_protocol(path)]

    def modified(self, path: str) -> datetime:  # noqa: ARG002 as fsspec has it
        """Return when it was written, as far as matters: once."""
        return self._MODIFIED

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.IOBase:  # noqa: ARG002 as fsspec has it
        """Open a part."""
        name = self._strip_protocol(path)
        if name in self._empty:
            return io.BytesIO(self._empty[name])
        table, part = self._known[name]

        def fail(error: Exception) -> None:
            # DuckDB makes a text of it.
            self.failure = table.url, error

        try:
            file = _LocalPart(table, part) if table.is_local else _RemotePart(table, part, fail)
        except Exception as error:
            fail(error)
            raise
        self._sizes[name] = file.size
        return file


class _Part(io.RawIOBase):
    """A part that several of DuckDB's threads read at once: each goes to a place and reads there, in two calls."""

    size: int

    def __init__(self) -> None:
        super().__init__()
        self._here = threading.local()

    @abstractmethod
    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes from `offset` on, fewer at the part's end."""

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def seekable(self) -> bool:
        """Return that it is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, as all files do; other threads stay where they are."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size}[whence]
        self._here.position = max(0, origin + offset)
        return self.tell()

    def tell(self) -> int:
        """Return this thread's position."""
        position: int = getattr(self._here, "position", 0)
        return position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # as DuckDB's reader calls it
        """Read into a buffer."""
        data = self.read_at(self.tell(), len(buffer))
        buffer[: len(data)] = data
        self._here.position = self.tell() + len(data)
        return len(data)


class _LocalPart(_Part):
    """A part on a disk."""

    def __init__(self, table: Folder, name: str) -> None:
        super().__init__()
        _, path = table.store(name)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 closed with this
        self.size = os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes from `offset` on, fewer at the part's end."""
        return os.pread(self._file.fileno(), n_bytes, offset)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class _RemotePart(_Part):
    """A part in a bucket; what its store raises is handed on, and ends the query."""

    def __init__(self, table: Folder, name: str, on_failure: Callable[[Exception], None]) -> None:
        super().__init__()
        store, path = table.store(name)
        blob = persistently(lambda: store.get_end(path, _END_BYTES))
        self.size = blob.size
        self._file = RemoteFile(store, path, blob.size, blob.version)
        self._file.keep(blob.size - len(blob.data), blob.data)
        self._on_failure = on_failure
        self._lock = threading.Lock()

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes from `offset` on, fewer at the part's end."""
        with self._lock:
            data = self._file.read_at(offset, n_bytes)
        if self._file.failure is not None:
            self._on_failure(self._file.failure)
            raise self._file.failure
        return data


def _empty(inventory: Inventory) -> bytes:
    """Return a part without rows."""
    sink = io.BytesIO()
    pq.write_table(inventory.info.schema.empty_table(), sink)
    return sink.getvalue()


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
