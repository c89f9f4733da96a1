"""Read lists of recordings: text, CSV or Parquet with a column ``file``, and the inventories that S3 writes of a bucket."""

from __future__ import annotations

import io
import json
import os
import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from emotion_batch.errors import UsageError
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.fsspec_store import LISTED_SCHEMA
from emotion_batch.storage.names import as_utf8, bare

# Some editors begin UTF-8 with this.
_MARK = b"\xef\xbb\xbf"
# A file that gzip made begins with this.
_GZIP = b"\x1f\x8b"
# This much of a text is split at once.
_PIECE_BYTES = 2**24
SUFFIXES = (".txt", ".csv", ".csv.gz", ".parquet")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
_MANIFEST = "manifest.json"
# CSV and Parquet spell them so: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html
_COLUMNS = _BUCKET, _KEY, _SIZE, _ETAG, _LATEST, _DELETED = (
    "bucket",
    "key",
    "size",
    "etag",
    "islatest",
    "isdeletemarker",
)
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HEX_ETAG = re.compile(r"[0-9a-f]{32}(-\d+)?")


@dataclass(frozen=True)
class ReadyList:
    """What a list names: `names` (`LISTED_SCHEMA`) are relative to `base`. An inventory also names other files."""

    base: Folder
    names: pa.Table
    is_inventory: bool = False


def is_list(location: str) -> bool:
    """Return whether a file is a list by its name."""
    return location.lower().endswith(SUFFIXES) or location.rsplit("/", 1)[-1] == _MANIFEST


def read_list(folder: Folder, name: str) -> ReadyList:
    """Read a list; raise UsageError if it is not a list.

    Relative names in it are relative to `folder`; those of an inventory to its bucket.
    """
    data = folder.read(name)
    if name == _MANIFEST:
        return _read_inventory(folder, data)
    try:
        if name.lower().endswith(".parquet"):
            return _find_names(folder, name, _read_parquet(data))
        if name.lower().endswith(".gz"):
            data = pa.CompressedInputStream(pa.BufferReader(data), "gzip").read()
        data = _read_text(name, data)
        if name.lower().endswith(".txt"):
            return ReadyList(folder, _names(_lines(data)))
        table = _read_csv(data)
        return _find_names(folder, name, table.rename_columns(list(map(bare, table.column_names))), data)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UsageError(f"list {name}: it cannot be read as a table ({str(error).splitlines()[0]})") from error


def _read_text(name: str, data: bytes) -> bytes:
    """Return a list's text in UTF-8, or in the encoding of the names on the disk."""
    try:
        data = as_utf8(data)
    except UnicodeDecodeError as error:
        raise UsageError(f"list {name}: its UTF-16 or UTF-32 text is damaged; save it again in UTF-8") from error
    if b"\0" in data:
        raise UsageError(f"list {name}: it has NUL bytes, so it is not text in UTF-8; save it in UTF-8")
    return data


def _lines(data: bytes) -> pa.ChunkedArray:
    if data.find(b"\n") in (-1, len(data) - 1):
        # If there is only one line, each CR ends a line.
        data = data.replace(b"\r", b"\n")
    start = len(_MARK) if data.startswith(_MARK) else 0
    pieces = [pa.array([], pa.binary())]
    while start < len(data):
        stop = data.find(b"\n", start + _PIECE_BYTES) + 1 or len(data)
        # Arrow splits the text, because ten million names would be too many Python objects.
        text = pa.array([data[start:stop].replace(b"\r\n", b"\n")], pa.large_binary())
        lines = pc.split_pattern(text, b"\n").flatten()
        pieces.append(lines.filter(pc.greater(pc.binary_length(lines), 0)).cast(pa.binary()))
        start = stop
    return pa.chunked_array(pieces)


def _names(names: pa.Array | pa.ChunkedArray, table: pa.Table | None = None) -> pa.Table:
    """Return names, and what an inventory says of them, as `LISTED_SCHEMA`; binary if they are not UTF-8."""
    try:
        names = names.cast(pa.string())
    except pa.ArrowInvalid:
        names = names.cast(pa.binary())
    # Only an inventory is passed as `table`, because in other lists these columns may mean something else.
    nothing = pa.nulls(len(names))
    size = nothing if table is None or _SIZE not in table.column_names else table[_SIZE]
    version = nothing if table is None or _ETAG not in table.column_names else table[_ETAG]
    versions = pc.utf8_trim(version.cast(pa.string()), '"')
    listed = pa.table({"name": names, "size": size.cast(pa.int64()), "version": versions})
    is_named = pc.fill_null(pc.greater(pc.binary_length(listed["name"]), 0), fill_value=False)
    # A filter copies the table, so it is only used if a name is missing.
    return listed if pc.all(is_named, min_count=0).as_py() else listed.filter(is_named)


def _read_parquet(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data), page_checksum_verification=True)


def _find_names(folder: Folder, name: str, table: pa.Table, csv: bytes = b"") -> ReadyList:
    """Return what a list names that is Parquet, or the table of a CSV; it may be a part of an inventory."""
    columns = table.column_names
    if "file" in columns:
        return ReadyList(folder, _names(table["file"].cast(pa.string())))
    if not csv and {_BUCKET, _KEY} <= set(columns):
        return _inventory(folder, [table])
    guessed = _guess_inventory(columns) if csv else None
    # The first line of such a CSV is no line of names, so each line has the same bucket.
    if guessed and pc.all(pc.equal(table.column(0).cast(pa.string()), columns[0]), min_count=0).as_py():
        return _inventory(folder, [_decoded(_read_csv(csv, guessed))])
    raise UsageError(f"list {name}: the column 'file' is missing; its columns are {', '.join(columns)}")


def _read_csv(data: bytes, columns: list[str] | None = None) -> pa.Table:
    source: Any = io.BytesIO(data)
    if data.startswith(_GZIP):
        source = pa.CompressedInputStream(source, "gzip")
    # Names are read as text, because 007 is not a number here.
    named = columns or [name for name in pyarrow.csv.open_csv(io.BytesIO(data)).schema.names if bare(name) == "file"]
    wanted = [column for column in columns or () if column in _COLUMNS]
    return pyarrow.csv.read_csv(
        source,
        read_options=pyarrow.csv.ReadOptions(column_names=columns),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(named, pa.string()), strings_can_be_null=False, include_columns=wanted
        ),
    )


def _guess_inventory(first: list[str]) -> list[str] | None:
    """Return the columns of an inventory's CSV, which has no line of names, by its first line; None if it is none.

    Bucket and key always come first. The others are the user's choice; size and ETag are recognised by their values.
    """
    if len(first) < 3 or not _BUCKET_NAME.fullmatch(first[0]) or {"bucket", "key"} & set(first):
        return None
    columns = [_BUCKET, _KEY]
    # If it lists all versions, these two follow the version. Other flags do not matter.
    has_versions = all(value in ("true", "false") for value in (*first, "", "")[3:5])
    for number, value in enumerate(first[2:]):
        if value.isdigit() and _SIZE not in columns:
            columns.append(_SIZE)
        elif _HEX_ETAG.fullmatch(value) and _ETAG not in columns:
            columns.append(_ETAG)
        elif has_versions and number in (1, 2):
            columns.append(_LATEST if number == 1 else _DELETED)
        else:
            columns.append(f"other{number}")
    return columns


def _read_inventory(folder: Folder, data: bytes) -> ReadyList:
    try:
        about = json.loads(data)
        files = [str(file["key"]) for file in about["files"]]
        columns = [column.strip().lower() for column in str(about["fileSchema"]).split(",")]
        kind = about["fileFormat"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"list {folder.url}/{_MANIFEST}: it is not the manifest of an S3 Inventory") from error
    if kind not in ("CSV", "Parquet"):
        name = f"{folder.url}/{_MANIFEST}"
        raise UsageError(f"list {name}: the inventory must be CSV or Parquet: {kind}; ask S3 for one of those")

    def read(data: bytes) -> pa.Table:
        return _decoded(_read_csv(data, columns)) if kind == "CSV" else _read_parquet(data)

    return _inventory(folder, (read(_read_beside(folder, file)) for file in files), about.get("sourceBucket"))


def _read_beside(folder: Folder, file: str) -> bytes:
    """Return a file of an inventory, from the manifest's bucket, or from the same folders on a disk."""
    if not folder.is_local:
        protocol, _, rest = folder.url.partition("://")
        return Folder(f"{protocol}://{rest.partition('/')[0]}", folder.options).read(file)
    beside, name = folder.read_if_there(os.path.basename(file)), os.path.basename(file)
    return beside if beside is not None else Folder(os.path.dirname(folder.url)).folder("data").read(name)


def _decoded(table: pa.Table) -> pa.Table:
    """Return an inventory's CSV with its keys decoded, because they are written as in a URL."""

    def decoded(keys: pa.Array) -> pa.Array:
        is_quoted = pc.match_substring_regex(keys, "[%+]")
        plain = [urllib.parse.unquote_plus(key) for key in keys.filter(is_quoted).to_pylist()]
        return pc.replace_with_mask(keys, is_quoted, pa.array(plain, pa.string()))

    keys = pa.chunked_array([decoded(chunk) for chunk in table[_KEY].chunks], pa.string())
    return table.set_column(table.column_names.index(_KEY), _KEY, keys)


def _inventory(folder: Folder, tables: Iterable[pa.Table], bucket: str | None = None) -> ReadyList:
    """Return the objects that exist by an inventory's tables: the latest versions, without the markers of deletions."""
    names: list[pa.Table] = []
    for table in tables:
        # Parquet spells the ETag e_tag.
        table = table.rename_columns([column.lower().replace("_", "") for column in table.column_names])
        for column, wanted in ((_LATEST, "true"), (_DELETED, "false")):
            if column in table.column_names:
                table = table.filter(pc.equal(table[column].cast(pa.string()), wanted))
        buckets = pc.unique(table[_BUCKET]).to_pylist()
        bucket = bucket or (buckets[0] if buckets else None)
        if set(buckets) - {bucket}:
            raise UsageError(f"list {folder.url}: the inventory must be of one bucket: {', '.join(map(str, buckets))}")
        if table.num_rows and _SIZE in table.column_names and pa.types.is_string(table[_SIZE].type):
            sizes = pc.if_else(pc.equal(table[_SIZE], ""), None, table[_SIZE])
            table = table.set_column(table.column_names.index(_SIZE), _SIZE, sizes)
        names.append(_names(table[_KEY], table))
    if bucket is None:
        raise UsageError(f"list {folder.url}: the inventory names no objects")
    listed = pa.concat_tables([LISTED_SCHEMA.empty_table(), *names])
    return ReadyList(Folder(f"s3://{bucket}", folder.options), listed, is_inventory=True)
