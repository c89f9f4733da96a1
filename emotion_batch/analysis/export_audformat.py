"""Export a label table as an audformat database (https://audeering.github.io/audformat/data-format.html).

The package audformat makes the header. The table is written here, part by part, in the columns and types of that package, because
the package would hold all rows in memory, as Python objects.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import Status, StorageError
from emotion_batch.tables.inventory import Inventory
from emotion_batch.tables.schema import TableInfo

if TYPE_CHECKING:
    from types import ModuleType

TABLE = "emotion"
HEADER_FILE, TABLE_FILE = "db.yaml", f"db.{TABLE}.parquet"
_INDEX = ("file", "start_s", "end_s")


def find_schema(inventory: Inventory) -> pa.Schema:
    """Return the columns of the table's file, with the metadata that the package needs."""
    # audb compares this hash to see whether a table changed. The rows do not exist yet, so it is made from their sources.
    about = [inventory.info.to_dict(), [(one.digest, one.counts.by_status) for one in inventory.footers.values()]]
    metadata = {
        "hash": hashlib.md5(json.dumps(about, default=str).encode(), usedforsecurity=False).hexdigest(),
        "audformat-version": load_package().__version__,
    }
    return convert(inventory.info.schema.empty_table()).schema.with_metadata(metadata)


def convert(rows: pa.Table) -> pa.Table:
    """Return rows of a label table in audformat's columns; a segment without an end lasts to the end of the recording."""
    columns = {"file": rows["file"], "start": _as_duration(rows["start_s"]), "end": _as_duration(rows["end_s"])}
    for name in rows.column_names:
        if name not in _INDEX:
            column = rows[name]
            wide = {pa.float32(): pa.float64(), pa.int16(): pa.int64()}
            columns[name] = column.cast(wide.get(column.type, column.type))
    return pa.table(columns)


def write_header(folder: str, inventory: Inventory) -> None:
    """Write the header, which describes the columns and their values."""
    audformat = load_package()
    info = inventory.info
    database = audformat.Database(
        inventory.table.url.rpartition("/")[2] or "labels",
        source=info.source,
        usage=audformat.define.Usage.OTHER,
        description="Emotions that a model gave segments of recordings; no person has listened to them.",
        meta={"model_id": info.model_id, "feature_id": info.feature_settings.feature_id, **info.segments.to_dict()},
    )
    table = database[TABLE] = audformat.Table(audformat.segmented_index())
    for column in convert(info.schema.empty_table()).schema:
        if column.name not in ("file", "start", "end"):
            database.schemes[column.name] = _scheme(audformat, column, info)
            table[column.name] = audformat.Column(scheme_id=column.name)
    database.save(folder, header_only=True)


def _scheme(audformat: ModuleType, column: pa.Field, info: TableInfo) -> Any:
    """Return the scheme of a column: its type and the values that it may have."""
    kind = audformat.define.DataType
    if column.name == "emotion":
        return audformat.Scheme(kind.STRING, labels=list(info.labels), description="the most probable label")
    if column.name == "status":
        return audformat.Scheme(
            kind.STRING, labels=[str(one) for one in Status], description="what became of the segment"
        )
    if pa.types.is_boolean(column.type):
        return audformat.Scheme(kind.BOOL)
    if pa.types.is_integer(column.type):
        return audformat.Scheme(kind.INTEGER, minimum=0)
    if not pa.types.is_floating(column.type):
        return audformat.Scheme(kind.STRING)
    if column.name == "confidence" or column.name.startswith("p_"):
        return audformat.Scheme(kind.FLOAT, minimum=0.0, maximum=1.0)
    return audformat.Scheme(kind.FLOAT)


def _as_duration(seconds: pa.ChunkedArray) -> pa.ChunkedArray:
    nanoseconds = pc.round(pc.multiply(seconds, 1e9))
    return nanoseconds.cast(pa.int64()).cast(pa.duration("ns"))


def load_package() -> ModuleType:
    """Import and return the package; raise StorageError if it is not installed."""
    try:
        import audformat
    except ImportError as error:
        raise StorageError(
            f"format audformat: its package is not installed ({error}); run `pip install 'emotion-batch[audformat]'`"
        ) from error
    package: ModuleType = audformat
    return package
