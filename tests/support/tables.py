"""The rows of tables, wherever they are."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read(data: Mapping[str, bytes]) -> pa.Table:
    """Return the rows of a table's parts, in the order of their names."""
    parts = [pq.read_table(io.BytesIO(content)) for name, content in sorted(data.items()) if name.endswith(".parquet")]
    return pa.concat_tables([part.replace_schema_metadata(None) for part in parts])


def local_rows(table: Path) -> pa.Table:
    return read({path.name: path.read_bytes() for path in table.iterdir() if path.is_file()})
