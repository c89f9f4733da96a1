"""Export a table for other programs as a few large Parquet files, as CSV, or as an audformat database.

An export appears whole or not at all. On a disk it is written under a hidden name beside the final one, and renamed at the end. A
bucket cannot rename: there an object ``_SUCCESS`` is put last, as Spark does, and a folder without it is no export.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.analysis import export_audformat
from emotion_batch.analysis.formats import CsvWriter, ParquetWriter, write_all
from emotion_batch.analysis.listening import clips, label_files
from emotion_batch.errors import IncompleteError, UsageError, counted
from emotion_batch.progress import Progress, Watcher
from emotion_batch.storage.folder import LEFTOVER_AGE_S, Folder, explained, fsync_folder, temporary_name, writing
from emotion_batch.tables import parts
from emotion_batch.tables.inventory import Inventory, take_inventory
from emotion_batch.tables.schema import LABELS

MARKER = "_SUCCESS"
FORMATS = ("parquet", "csv", "audformat", *label_files.FORMATS, "clips")
# Every name that an export writes.
_OWN = re.compile(
    r"(features|labels)-[0-9]{5}\.parquet|(features|labels)\.csv|db\.yaml|db\.emotion\.parquet|recordings|clips|clips\.csv"
)
# A Parquet file ends at the first of these limits.
_FILE_ROWS, _FILE_BYTES = 2**20, 2**29
_MOST_PAD_S = 600.0
# Number of parts that are read while earlier ones are written.
_N_AHEAD = 4


@contextlib.contextmanager
def replacing(place: Folder, own: re.Pattern[str], *, force: bool = False) -> Iterator[Folder]:
    """Give a folder to write into; it becomes the folder at `place` when the block ends without an error, and is removed otherwise.

    It first removes the leftovers of processes that were killed. It raises UsageError if the folder holds anything, unless `force`
    is set and `own` matches all names in it.
    """
    with explained(f"folder {place.url}"):
        _require_free(place, own, force)
    if place.is_local:
        path = os.path.realpath(place.url)
        with _hidden_folder(path) as hidden:
            yield Folder(hidden)
            with explained(f"folder {place.url}"):
                # Check again, because the block may have taken an hour.
                _require_free(place, own, force)
                _put_in_place(hidden, path)
        return
    with explained(f"folder {place.url}"):
        # Delete the marker first: without it, the rest is no export.
        for name in sorted(place.names(), key=lambda name: name != MARKER):
            place.delete(name)
    yield place
    with explained(f"folder {place.url}"):
        place.publish(MARKER, b"")


def _require_free(place: Folder, own: re.Pattern[str], force: bool) -> None:
    if place.is_local and place.find_kind() == "file":
        raise UsageError(f"folder {place.url}: it is a file; name a new or empty folder")
    names = place.names()
    strange = next((name for name in names if name != MARKER and not own.fullmatch(name)), None)
    if strange is not None:
        raise UsageError(
            f"folder {place.url}: it holds other files than an export, e.g. {strange!r}; name a new or empty folder"
        )
    if names and not force and (place.is_local or MARKER in names):
        raise UsageError(f"folder {place.url}: it holds an export already; name another, or use --force to replace it")


@contextlib.contextmanager
def _hidden_folder(path: str) -> Iterator[str]:
    """Give a new hidden folder beside `path`, and remove it after the block."""
    with explained(f"folder {path}"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _sweep(path)
        hidden = temporary_name(path)
        os.mkdir(hidden)
        lock = os.open(hidden, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            # The system releases the lock when this process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)


def _put_in_place(hidden: str, path: str) -> None:
    """Rename a folder; the folder that it replaces is missing for a moment, but never half replaced."""
    for above, _, names in os.walk(hidden):
        for name in names:
            with open(os.path.join(above, name), "rb") as stream:
                os.fsync(stream.fileno())
        fsync_folder(above)
    earlier = temporary_name(path)
    if os.path.isdir(path) and os.listdir(path):
        os.rename(path, earlier)
    os.rename(hidden, path)
    fsync_folder(os.path.dirname(path))
    shutil.rmtree(earlier, ignore_errors=True)


def _sweep(path: str) -> None:
    """Remove the leftovers of killed processes beside `path`, but not the folders that others are writing."""
    above, name = os.path.split(path)
    leftover = re.compile(re.escape(f".{name}.") + r"[0-9a-f]{32}\.tmp")
    for found in os.listdir(above):
        if not leftover.fullmatch(found):
            continue
        folder = os.path.join(above, found)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_left = True
            except BlockingIOError:
                is_left = False
            except OSError:
                is_left = time.time() - os.fstat(lock).st_mtime > LEFTOVER_AGE_S
            finally:
                os.close(lock)
            if is_left:
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes
    ----------
    folder, file_format
        Its folder, or its file, and its format.
    n_recordings, n_rows
        Counts of the table, or of the clips.
    n_files, n_bytes
        Number and size of its files.
    notes
        One sentence for each thing in the table that the export leaves out.
    """

    folder: str
    file_format: str
    n_recordings: int
    n_rows: int
    n_files: int
    n_bytes: int
    notes: tuple[str, ...]


def export(
    table: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    file_format: str | None = None,
    min_confidence: float = 0.0,
    where: str | None = None,
    most: int | None = None,
    pad_s: float | None = None,
    partial: bool = False,
    force: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Exported:
    """Write a table's rows, in its order, into a folder that appears whole or not at all.

    Parameters
    ----------
    table
        A feature or label table.
    folder
        A new or empty folder; or a name that ends in ``.csv`` or ``.parquet``, as the format is, for a single file. A bucket takes
        only Parquet or a single file; in a folder there the object ``_SUCCESS`` comes last.
    file_format
        By default CSV for a name that ends in ``.csv``, else Parquet. ``"parquet"``: files of up to a million rows, in row groups
        of at least 131,072 rows, or fewer if rows are large, as with sequences. ``"csv"``: one file after RFC 4180, features as JSON lists. ``"audformat"``: a label table as a database
        (``db.yaml``) with one table of segments, ``emotion``. ``"audacity"``, ``"textgrid"``, ``"vtt"`` and ``"rttm"``: a file for
        each recording of a label table, where its channels are tracks and neighbours with the same label are one stretch. ``"clips"``:
        WAV of single rows of a label table, cut out of the recordings, with an index ``clips.csv``.
    min_confidence
        For the files of recordings: leave labels out whose confidence is lower. What is not speech is always left out.
    where, most, pad_s
        For clips: a condition in SQL on the columns of `labels` (by default all rows with a label), the largest number of clips (100), of
        which those with the highest confidence are taken, and how many seconds to add before and after each (0).
    partial
        Export the complete parts of a table that has parts missing.
    force
        Replace an earlier export in the folder, or the file.
    storage_options
        What fsspec's filesystem takes, for both.
    watcher
        Gets notes and progress.

    Raises
    ------
    UsageError
        If the call is wrong, the folder holds something else, or the file exists.
    StorageError
        If a place cannot be read or written.
    IncompleteError
        If the table is not complete, or changed meanwhile.
    """
    watcher = watcher or Watcher()
    file_format = file_format or ("csv" if os.fspath(folder).endswith(".csv") else "parquet")
    if file_format not in FORMATS:
        raise UsageError(f"format must be one of {', '.join(FORMATS)}: {file_format!r}")
    place, source = Folder.of(folder, storage_options), Folder.of(table, storage_options)
    _require_apart(place, source)
    with explained(f"folder {place.url}"):
        kind = place.find_kind()
    is_file = file_format in ("csv", "parquet") and place.url.endswith(f".{file_format}") and kind != "folder"
    if is_file and kind == "file" and not force:
        raise UsageError(f"file {place.url}: it exists already; name another, or use --force to replace it")
    if not (place.is_local or is_file) and file_format != "parquet":
        raise UsageError(
            f"folder {place.url}: {file_format} can be written only on this machine, not to a URL; write it here and copy it there"
        )
    inventory = take_inventory(source)
    if not inventory.is_complete and not partial:
        left = next((shard for shard in inventory.shards if shard not in inventory.footers), None)
        example = "" if left is None else f", e.g. {parts.part_name(left)}"
        raise IncompleteError(
            f"table {source.url}: it is not complete: {inventory.n_missing:,} of {counted(len(inventory.shards), 'part')} missing, damaged "
            f"or out of date{example}; run the command that made it again, or use --partial to export the others"
        )
    is_listening = file_format in label_files.FORMATS
    if min_confidence and not is_listening:
        raise UsageError(f"min_confidence requires one of the formats {', '.join(label_files.FORMATS)}")
    if file_format != "clips" and (where, most, pad_s) != (None, None, None):
        raise UsageError("where, most and pad require the format clips")
    if (most is not None and most < 1) or not 0 <= (pad_s or 0.0) <= _MOST_PAD_S:
        raise UsageError(f"most must be at least 1, and pad from 0 to {_MOST_PAD_S:g} seconds: {most} and {pad_s}")
    if inventory.info.kind != LABELS and file_format not in ("parquet", "csv"):
        raise UsageError(
            f"format {file_format}: it takes a label table, and this is a feature table; use --format parquet"
        )
    if file_format == "audformat":
        export_audformat.load_package()
    notes = tuple(inventory.notes())
    for note in notes:
        watcher.on_note(note)
    n_recordings, n_rows = inventory.counts.n_recordings, inventory.counts.n_rows
    about = {name: value for name, value in inventory.info.to_dict().items() if name not in ("source", "features")}
    about = {"emotion_batch_export": json.dumps({**about, "n_rows": n_rows})}
    columns = inventory.info.schema.with_metadata(about)
    with contextlib.closing(_rows(inventory, watcher)) as rows:
        if is_file:
            sizes = [_write_file(place, file_format, columns, rows)]
        else:
            with replacing(place, _OWN, force=force) as to:
                if file_format == "parquet":
                    _write_parquet(to, inventory, columns, rows)
                elif file_format == "csv":
                    _write_file(to.folder(f"{inventory.info.kind}.csv"), file_format, columns, rows)
                elif file_format == "clips":
                    n_recordings, n_rows = clips.write_clips(source, to.url, where or "true", most or 100, pad_s or 0.0)
                elif is_listening:
                    label_files.write(to.url, rows, file_format, min_confidence)
                else:
                    columns = export_audformat.find_schema(inventory)
                    converted = map(export_audformat.convert, rows)
                    _write_file(to.folder(export_audformat.TABLE_FILE), file_format, columns, converted)
                    export_audformat.write_header(to.url, inventory)
            sizes = _measure_files(place)
    return Exported(place.url, file_format, n_recordings, n_rows, len(sizes), sum(sizes), notes)


def _measure_files(place: Folder) -> list[int]:
    if place.is_local:
        return [os.path.getsize(os.path.join(above, name)) for above, _, names in os.walk(place.url) for name in names]
    with explained(f"folder {place.url}"):
        files, _ = place.children()
    sizes: list[int] = files.filter(pc.not_equal(files["name"], MARKER))["size"].to_pylist()
    return sizes


def _require_apart(place: Folder, source: Folder) -> None:
    """Raise UsageError if the export would lie in the table, or hold it."""
    to, table = (os.path.realpath(one.url) if one.is_local else one.url for one in (place, source))
    if to == table or to.startswith(f"{table}/") or table.startswith(f"{to}/"):
        raise UsageError(f"folder {place.url}: it lies in the table {source.url}, or holds it; name another")


def _rows(inventory: Inventory, watcher: Watcher) -> Generator[pa.Table, None, None]:
    """Yield the rows of the parts that count, one part after the other, and read some parts ahead."""
    counts, started = inventory.counts, time.perf_counter()
    n_done = n_failed = 0

    def read(shard: int) -> pa.Table:
        # The part must still be the one that the inventory found.
        return parts.require_part(inventory.table, inventory.info, shard, newest=inventory.shards[shard])

    for footer, rows in zip(
        inventory.footers.values(), parts.read_ahead(read, inventory.footers, _N_AHEAD), strict=True
    ):
        yield rows
        n_done, n_failed = n_done + footer.counts.n_recordings, n_failed + footer.counts.n_failed
        elapsed_s = time.perf_counter() - started
        watcher.on_progress(Progress(counts.n_recordings, n_done, n_failed, n_done, elapsed_s))


def _write_parquet(to: Folder, inventory: Inventory, schema: pa.Schema, rows: Iterator[pa.Table]) -> None:
    """Write Parquet files with about the same number of rows each."""
    info, total = inventory.info, inventory.counts.n_rows
    most_rows = max(1, math.ceil(total / max(1, math.ceil(total / _FILE_ROWS))))
    part, n_files = next(rows, info.schema.empty_table()), 0
    while part is not None:
        n_files += 1
        file = to.folder(f"{info.kind}-{n_files:05d}.parquet")
        with explained(f"file {file.url}"), writing(file.url, file.options) as stream:
            writer, n_rows = ParquetWriter(stream, schema), 0
            while part is not None and n_rows < most_rows and stream.tell() < _FILE_BYTES:
                some = part.slice(0, most_rows - n_rows)
                writer.write(some)
                n_rows += some.num_rows
                part = part.slice(some.num_rows) if some.num_rows < part.num_rows else next(rows, None)
            writer.close()


def _write_file(file: Folder, file_format: str, schema: pa.Schema, rows: Iterator[pa.Table]) -> int:
    """Write one file, and return its size in bytes."""
    with explained(f"file {file.url}"), writing(file.url, file.options) as stream:
        write_all((CsvWriter if file_format == "csv" else ParquetWriter)(stream, schema), rows)
        return stream.tell()
