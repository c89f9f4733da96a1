"""Write rows to files as they come: CSV, JSON, and Parquet in large row groups."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from emotion_batch.errors import UsageError
from emotion_batch.tables.schema import nullable

# A row group of this many rows, or of this many bytes if rows are large, is worth one request of a query.
GROUP_ROWS, GROUP_BYTES = 131_072, 256 * 2**20
_OBJECTS_BYTES = 2**20


class CsvWriter:
    """CSV after RFC 4180, with a header; lists and structs are JSON, bytes are hexadecimal digits, null is empty."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, *, eol: str = "\r\n") -> None:
        self._schema = _plain(schema.empty_table()).schema
        options = pyarrow.csv.WriteOptions(eol=eol, quoting_header="needed")
        self._writer = pyarrow.csv.CSVWriter(stream, self._schema, write_options=options)

    def write(self, rows: pa.Table) -> None:
        """Write some more rows."""
        self._writer.write(_plain(rows).cast(self._schema))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class JsonWriter:
    """A JSON array with one object for each row; types that JSON lacks become text, and NaN and infinity become null."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._stream = stream
        self._names = schema.names
        self._begin = "["

    def write(self, rows: pa.Table) -> None:
        """Write some more rows."""
        # Features as Python's numbers take ten times the memory.
        n_rows = max(1, _OBJECTS_BYTES * rows.num_rows // max(1, rows.nbytes))
        for start in range(0, rows.num_rows, n_rows):
            columns = [_as_json(column) for column in rows.slice(start, n_rows).columns]
            for values in zip(*columns, strict=True):
                self._stream.write(f"{self._begin}{json.dumps(dict(zip(self._names, values, strict=True)))}".encode())
                self._begin = ",\n"

    def close(self) -> None:
        """End the array."""
        self._stream.write(b"[]\n" if self._begin == "[" else b"]\n")


class ParquetWriter(pq.ParquetWriter):  # type: ignore[misc]
    """Parquet with large row groups: each has at least `GROUP_ROWS` or `GROUP_BYTES`, except the only group of a small file."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        try:
            super().__init__(stream, nullable(schema), compression="zstd", write_page_checksum=True)
        except pa.ArrowNotImplementedError as error:
            raise UsageError(
                f"--format parquet: Parquet cannot hold a column ({error}); cast it in the query"
            ) from error
        self._waiting: list[pa.Table] = []
        self._n_rows = self._n_bytes = 0

    def __del__(self) -> None:
        # It writes nothing when it is dropped after an error, because its stream is closed by then.
        self.is_open = False

    def write(self, rows: pa.Table) -> None:
        """Write some more rows, or keep them until they make a group."""
        table = rows.cast(self.schema)
        self._waiting.append(table)
        self._n_rows += table.num_rows
        self._n_bytes += table.nbytes
        # It waits for two groups before it writes the first, so that the rest is never less than one group.
        while self._n_rows >= 2 * GROUP_ROWS:
            self._flush(GROUP_ROWS)
        if self._n_bytes >= 2 * GROUP_BYTES:
            self._flush(math.ceil(self._n_rows / 2))

    def _flush(self, n_rows: int) -> None:
        waiting = pa.concat_tables(self._waiting)
        self.write_table(waiting.slice(0, n_rows), row_group_size=max(1, n_rows))
        rest = waiting.slice(n_rows)
        self._waiting, self._n_rows, self._n_bytes = [rest], rest.num_rows, rest.nbytes

    def close(self) -> None:
        """Write what is left."""
        if self._n_rows:
            self._flush(self._n_rows)
        super().close()


Writer = CsvWriter | JsonWriter | ParquetWriter


def write_all(writer: Writer, tables: Iterable[pa.Table]) -> None:
    """Write all rows, and close the writer."""
    for rows in tables:
        writer.write(rows)
    writer.close()


def to_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column that CSV can hold: the column itself, or its values as text."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.chunked_array([_json_lists(chunk) for chunk in column.chunks], pa.string())
    is_made_of_several = pa.types.is_nested(kind) or pa.types.is_interval(kind)
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    if is_made_of_several or is_bytes or isinstance(kind, pa.BaseExtensionType):
        return pa.chunked_array([pa.array(map(_text, column.to_pylist()), pa.string())])
    return column


def _json_lists(lists: pa.Array) -> pa.Array:
    """Return lists as JSON; lists of numbers do not become Python objects, because there are many features."""
    kind = lists.type.value_type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        # A null within stays one in the outer list.
        return _join(lists, pc.fill_null(_json_lists(lists.flatten()), "null"))
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        values = lists.flatten()
        if pa.types.is_floating(kind):
            values = pc.if_else(pc.is_finite(values), values, None)
        return _join(lists, pc.fill_null(values.cast(pa.string()), "null"))
    return pa.array(map(_text, lists.to_pylist()), pa.string())


def _join(lists: pa.Array, texts: pa.Array) -> pa.Array:
    """Return the texts of each list between brackets; null if there is no list."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    ends = pc.cumulative_sum(lengths.cast(pa.int32()))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends.cast(pa.int32())])
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ",")
    between = pc.binary_join_element_wise("[", joined, "]", "")
    return pc.if_else(pc.is_valid(lists), between, pa.scalar(None, pa.string()))


def _plain(rows: pa.Table) -> pa.Table:
    return pa.table([to_text(column) for column in rows.columns], names=rows.column_names)


def _as_json(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_float32(column.type):
        # This gives 0.1, and not the digits of the double next to it.
        column = column.cast(pa.string()).cast(pa.float64())
    return [_json_value(value) for value in column.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(name): _json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_json_value(one) for one in value]
    return str(value)


def _text(value: Any) -> str | None:
    plain = _json_value(value)
    return plain if plain is None or isinstance(plain, str) else json.dumps(plain)
