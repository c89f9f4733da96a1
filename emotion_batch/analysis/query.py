"""Run SQL over a table: its views, and the example questions of ``query --example``.

DuckDB sees only the table: no other file, network, extension or setting. It may not open any file. Arrow reads the parts that
count, and checks each page against its checksum.
https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from types import SimpleNamespace
from typing import Any, BinaryIO, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from emotion_batch.analysis.formats import CsvWriter, JsonWriter, ParquetWriter, Writer, to_text, write_all
from emotion_batch.analysis.scan import hide_progress, read_sql
from emotion_batch.errors import EmotionBatchError, IncompleteError, UsageError, counted
from emotion_batch.progress import Watcher
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.storage.prefetch import RemoteFile
from emotion_batch.storage.retry import persistently
from emotion_batch.tables import parts
from emotion_batch.tables.inventory import Inventory, take_inventory
from emotion_batch.tables.schema import FEATURES, LABELS, nullable
from emotion_batch.tables.table import find_features

T = TypeVar("T")
_SAYS_FEATURES = re.compile(rf"\b{FEATURES}\b", re.IGNORECASE)
# The most characters of a list in a table for people.
_MOST_CHARACTERS = 60
# The first read of a part takes this many bytes from its end, which is all of most parts of a label table.
_END_BYTES = 2**18
# A part on a disk is read whole if it is no larger than this.
_SMALL_BYTES = 2**20
# Number of parts of a bucket that are read at once, because each waits for its answer most of the time.
_N_AHEAD = 16
_BATCH_ROWS = 4_096
_INTERRUPT_EVERY_S = 0.05
# DuckDB's message says what is wrong, and then, from here on, where in the query.
_WHERE = re.compile(r"\n\s*(LINE \d+:|Stack Trace:|This error signals).*", re.DOTALL)
_ANGRY = "angry"
# Queries that are ready for a label table: files of `queries/`.
EXAMPLES = ("mix", "angriest", "recordings", "failed", "unsure", "folders", "minutes")
_SUMMED_UP = "recordings"
_SAYS_SUMMED_UP = re.compile(rf"\b{_SUMMED_UP}\b", re.IGNORECASE)


def query(
    table: str | os.PathLike[str],
    sql: str | None = None,
    *,
    example: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> pa.Table:
    """Answer a query about a table with DuckDB, which sees only that table and only reads.

    Parameters
    ----------
    table
        A label table, which is `labels` in the query, together with `features` if it was made from a feature table or keeps
        one; or a feature table, which is `features`. Complete and up-to-date parts count, also while a run is at work on
        the table.
    sql
        One SELECT, FROM, PIVOT, DESCRIBE or SUMMARIZE.
    example
        Name of one of `EXAMPLES`, instead of `sql`.
    storage_options
        What fsspec's filesystem takes.
    watcher
        Gets notes about parts that do not count.

    Returns
    -------
    The whole answer, in memory.

    Raises
    ------
    UsageError
        If there is no table, or DuckDB cannot answer the query.
    StorageError, IncompleteError
        If the table cannot be read, or the answer does not fit.
    """
    with asked(table, sql, example=example, storage_options=storage_options, watcher=watcher) as answer:
        return answer.read_all().replace_schema_metadata(nullable(answer.schema).metadata)


@contextlib.contextmanager
def asked(
    table: str | os.PathLike[str],
    sql: str | None = None,
    *,
    example: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Iterator[pa.RecordBatchReader]:
    """Answer a query as `query` does, but give the rows as they come; they can be read once, and only within the block."""
    if (sql is None) == (example is None):
        raise UsageError(f"SQL: give either a query or one of the examples {', '.join(EXAMPLES)}")
    if example is not None and example not in EXAMPLES:
        raise UsageError(f"example must be one of {', '.join(EXAMPLES)}: {example!r}")
    inventory = take_inventory(Folder.of(table, storage_options))
    kind = inventory.info.kind
    if example is not None and kind != LABELS:
        raise UsageError(
            f"example {example}: it is about labels, and {inventory.table.url} is a feature table; "
            "write a query in SQL instead, with the table's name `features`"
        )
    text = str(sql) if example is None else write_example(example, inventory.info.labels)
    views = {kind: inventory}
    # The feature table is read only if the query names it, because its inventory takes as long as the table's own.
    if kind == LABELS and _SAYS_FEATURES.search(text):
        features = Folder(inventory.info.features or inventory.info.source, inventory.table.options)
        views |= {} if find_features(features) is None else {FEATURES: take_inventory(features)}
    for one in views.values():
        for note in one.notes():
            (watcher or Watcher()).on_note(note)
    with _asked(views, text) as answer:
        yield answer


def describe_example(name: str) -> str:
    """Return what an example gives: the first line of its file."""
    return read_sql(name).partition("\n")[0].removeprefix("-- ")


def write_example(name: str, labels: Sequence[str] = (_ANGRY,)) -> str:
    """Return the SQL of an example for a table with these labels; raise UsageError if they lack the label that it is about.

    `{heard}` stands for the seconds of each segment, and a line with `{label}` is repeated for each label.
    """
    if name == "angriest" and _ANGRY not in labels:
        raise UsageError(
            f"example {name}: the table's labels are {', '.join(labels)}, and {_ANGRY} is not one of them; `emotion-batch query --example` "
            "prints its SQL, in which you can write another label"
        )
    sql = read_sql(name).replace("{heard}", read_sql("heard")).partition("\n")[2]
    quoted = [(one.replace("'", "''"), one.replace('"', '""')) for one in labels]

    def fill(line: re.Match[str]) -> str:
        return "".join(line[0].replace("'{label}'", f"'{text}'").replace("{label}", column) for text, column in quoted)

    return re.sub(r".*\{label\}.*\n", fill, sql)


def write(answer: pa.RecordBatchReader, file_format: str, stream: BinaryIO) -> None:
    """Write an answer as ``csv``, ``json`` or ``parquet``, as it comes."""
    # Programs of a shell read lines that end as theirs.
    writers: Mapping[str, Callable[[BinaryIO, pa.Schema], Writer]] = {
        "csv": partial(CsvWriter, eol="\n"),
        "json": JsonWriter,
        "parquet": ParquetWriter,
    }
    writer = writers[file_format](stream, answer.schema)
    write_all(writer, (pa.Table.from_batches([batch]) for batch in answer))


def first_rows(answer: pa.RecordBatchReader, n_rows: int) -> tuple[list[list[Any]], bool]:
    """Return the first rows of an answer as a person may see them, and whether there are more; of lists the beginning."""
    rows: list[list[Any]] = []
    is_nested = [pa.types.is_nested(field.type) for field in answer.schema]
    for batch in answer:
        first = batch.slice(0, n_rows - len(rows))
        texts = (to_text(pa.chunked_array([column])).to_pylist() for column in first.columns)
        for row in zip(*texts, strict=True):
            rows.append([_shortened(value) if long else value for value, long in zip(row, is_nested, strict=True)])
        if first.num_rows < batch.num_rows:
            return rows, True
    return rows, False


def _shortened(text: str | None) -> str | None:
    return text if text is None or len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


@contextlib.contextmanager
def _asked(views: Mapping[str, Inventory], sql: str) -> Iterator[pa.RecordBatchReader]:
    """Answer one query within the block, by a locked DuckDB that sees each table under its name in queries."""
    sources = {name: _Parts(one) for name, one in views.items()}
    with (
        # DuckDB uses this folder only if a query does not fit in memory.
        tempfile.TemporaryDirectory(prefix="emotion-batch-") as folder,
        # One thread works with the connection, so that the caller's thread can handle signals meanwhile.
        ThreadPoolExecutor(1, thread_name_prefix="query") as pool,
        duckdb.connect(config={"temp_directory": folder}) as connection,
    ):
        for name, source in sources.items():
            connection.register(name, source)
        if LABELS in views and _SAYS_SUMMED_UP.search(sql):
            summed_up = write_example(_SUMMED_UP, views[LABELS].info.labels)
            connection.execute(f"CREATE VIEW {_SUMMED_UP} AS {summed_up}")
        hide_progress(connection)
        connection.execute(read_sql("locks"))

        def work(function: Callable[[], T]) -> T:
            """Do something with the connection; an exception while it waits interrupts the query."""
            job = pool.submit(function)
            try:
                return job.result()
            except EmotionBatchError:
                raise
            except BaseException as error:
                while not job.done():
                    # It repeats this, because an interrupt before the query begins has no effect.
                    connection.interrupt()
                    wait([job], _INTERRUPT_EVERY_S)
                for source in sources.values():
                    if isinstance(error, Exception) and source.failure is not None:
                        raise source.failure from error
                if isinstance(error, duckdb.Error):
                    raise _explain(error, views) from error
                raise

        def batches() -> Iterator[pa.RecordBatch]:
            while (batch := work(lambda: next(reader, None))) is not None:
                yield batch

        reader = work(lambda: _begin(connection, sql))
        try:
            yield pa.RecordBatchReader.from_batches(reader.schema, batches())
        finally:
            # DuckDB does not compute the rows that were not read.
            work(reader.close)


def _begin(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.RecordBatchReader:
    """Begin a query; raise UsageError if it is not a single query that only reads."""
    statements = connection.extract_statements(sql)
    # DuckDB makes several statements of one PIVOT.
    kinds = (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)
    if len(statements) != 1 or statements[0].type not in kinds:
        given = statements[0].type.name if len(statements) == 1 else counted(len(statements), "statement")
        raise UsageError(f"SQL must be one SELECT, FROM, PIVOT, DESCRIBE or SUMMARIZE: {given}")
    return connection.sql(statements[0]).to_arrow_reader(_BATCH_ROWS)


def _explain(error: duckdb.Error, views: Iterable[str]) -> EmotionBatchError:
    """Return the error, in one sentence, for an error of DuckDB in a query of these views."""
    said = " ".join(_WHERE.sub("", str(error)).split())
    if isinstance(error, duckdb.CatalogException) and "Table with name" in said:
        # DuckDB would suggest a table of its own.
        said = f"{said.partition(' Did you mean')[0]} In a query this table is called {' and '.join(f'`{name}`' for name in views)}"
    if isinstance(error, duckdb.PermissionException):
        return UsageError(
            f"SQL: a query sees only the table, and no other file, no network and no extension; DuckDB says: {said}"
        )
    if isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
        return IncompleteError(
            f"query: it needs more memory, or more disk for temporary files, than there is; DuckDB says: {said}"
        )
    return UsageError(f"SQL: DuckDB cannot answer this query: {said}")


class _Parts(ds.FileSystemDataset):  # type: ignore[misc] # pyarrow has no types
    """The parts of a table that count, as a dataset that DuckDB can scan.

    Each part is opened, read and closed by itself, and some are read ahead. Arrow's own scan of a dataset holds Python's lock while it
    waits for files, so it waits forever for a file that needs Python.
    """

    def __init__(self, inventory: Inventory) -> None:
        options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        self._parquet = ds.ParquetFileFormat(default_fragment_scan_options=options)
        fields = [field.with_type(_to_duckdb(field.type)) for field in inventory.info.schema]
        super().__init__([], pa.schema(fields), self._parquet, fs.LocalFileSystem())
        self._inventory = inventory
        # The exception of a read, because DuckDB keeps only its text.
        self.failure: Exception | None = None

    def scanner(self, columns: list[str] | None = None, filter: ds.Expression | None = None, **_: Any) -> object:  # noqa: A002
        """Return a scanner, as DuckDB expects it, of some columns of the rows that pass a filter."""
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        reader = pa.RecordBatchReader.from_batches(wanted, self._batches(wanted, filter))
        return SimpleNamespace(to_reader=lambda: reader)

    def _batches(self, wanted: pa.Schema, rows: ds.Expression | None) -> Iterator[pa.RecordBatch]:
        n_ahead = (os.cpu_count() or 1) if self._inventory.table.is_local else _N_AHEAD
        try:
            for found in parts.read_ahead(partial(self._read, wanted, rows), self._inventory.names, n_ahead):
                yield from found.to_batches()
        except Exception as error:
            self.failure = error
            raise

    def _read(self, wanted: pa.Schema, rows: ds.Expression | None, name: str) -> pa.Table:
        """Return some columns of a part's rows that pass a filter."""
        table = self._inventory.table
        with explained(f"table {table.url}"), _open_part(table, name) as file:
            try:
                if rows is None:
                    # This takes half the time of a scan, but only a scan can filter by columns that are not wanted.
                    part = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=not table.is_local)
                    return part.read(wanted.names, use_threads=False).select(wanted.names).cast(wanted)
                part = self._parquet.make_fragment(file)
                return part.scanner(schema=self.schema, columns=wanted.names, filter=rows, use_threads=False).to_table()
            except (OSError, pa.ArrowException) as error:
                if isinstance(file, RemoteFile) and file.failure is not None:
                    raise file.failure from error
                said = " ".join(str(error).split())
                raise IncompleteError(
                    f"table {table.url}: its part {name} cannot be read ({said}); "
                    "`emotion-batch verify --deep` names what is damaged"
                ) from error


def _open_part(table: Folder, name: str) -> pa.NativeFile | RemoteFile:
    """Open a part, in a bucket with the client and the retries of `storage`."""
    store, path = table.store(name)
    if table.is_local:
        file = pa.OSFile(path)
        # One read takes less time than one for each column.
        return pa.BufferReader(file.read()) if file.size() <= _SMALL_BYTES else file
    blob = persistently(lambda: store.get_end(path, _END_BYTES))
    remote = RemoteFile(store, path, blob.size, blob.version)
    remote.keep(blob.size - len(blob.data), blob.data)
    return remote


def _to_duckdb(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column has in queries, because fixed lists are of another type to DuckDB."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_to_duckdb(kind.value_type))
    return kind
