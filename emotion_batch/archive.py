"""Which files are recordings: a folder, a bucket prefix, a glob, a list file or one recording, as one Arrow table."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from emotion_batch.errors import UsageError
from emotion_batch.storage import Folder, explained, is_url, persistently, refuse_password

SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".w64", ".rf64", ".au", ".caf")
LIST_SUFFIXES = (".txt", ".csv", ".parquet")

ENTRY_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        # The true name where it is not UTF-8, and so not `file`.
        pa.field("raw_file", pa.binary()),
        # Unknown for what a list names and cannot be looked at: such an entry is never `changed`.
        pa.field("size", pa.int64()),
        pa.field("version", pa.string()),
    ]
)
_BATCH = 65_536


class Entry(NamedTuple):
    """One recording of an archive.

    Attributes
    ----------
    file
        Its name: the path relative to the archive with ``/``, or as a list file has it.
    raw_file
        The name's bytes where they are not UTF-8; `file` is then their percent-escaped form.
    size
        Its length in bytes, if known.
    version
        What changes when its content does: the modification time in ns, or the ETag.
    """

    file: str
    raw_file: bytes | None
    size: int | None
    version: str | None


@dataclass(frozen=True)
class Listing:
    """What was found in an archive.

    Attributes
    ----------
    folder
        What the names are relative to.
    entries
        Table of `ENTRY_SCHEMA`, sorted by the bytes of ``file``, no name twice.
    left_out
        Number of files that are no recordings by their suffix, by suffix.
    n_duplicates
        Number of times that a list file named a recording again.
    """

    folder: Folder
    entries: pa.Table
    left_out: Mapping[str, int] = field(default_factory=dict)
    n_duplicates: int = 0


def list_recordings(
    archive: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    suffixes: Iterable[str] = SUFFIXES,
    may_be_empty: bool = False,
) -> Listing:
    """List the recordings of `archive`.

    Parameters
    ----------
    archive
        A folder or bucket prefix, a glob, a list file (text, CSV or Parquet with a column ``file``), or one
        recording. A name that exists is never taken for a glob.
    options
        What fsspec's filesystem takes.
    suffixes
        Endings, in any case, by which files of a folder or glob are recordings. Lists are taken as written.
    may_be_empty
        Whether to take it for an answer that nothing there is a recording.

    Raises
    ------
    UsageError
        If nothing there is a recording.
    StorageError
        If the archive is missing or cannot be read.
    """
    place = Folder.of(archive, options)
    endings = tuple(suffix.lower() if suffix.startswith(".") else f".{suffix.lower()}" for suffix in suffixes)
    kind, base = _kind(place)
    with explained(f"archive {place.url}"):
        if kind == "folder":
            listing = _of_names(base, _walk(base), endings)
        elif kind == "glob":
            listing = _of_glob(place, base, endings)
        else:
            name = place.url.rsplit("/", 1)[1]
            filesystem, path = place.filesystem()
            is_list = kind == "list"
            listing = (
                _of_list(base, name) if is_list else _of_names(base, [_entry(base, name, filesystem.info(path))], ("",))
            )
    if not (listing.entries.num_rows or may_be_empty):
        others = f", only {sum(listing.left_out.values())} other files" if listing.left_out else ""
        raise UsageError(
            f"archive {place.url}: expected recordings ({' '.join(endings)}), got none{others}; "
            "check the name, or name other endings with --suffix"
        )
    return listing


def find_base(archive: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Folder:
    """Return what the names of an archive's recordings are relative to; raise what `list_recordings` does."""
    return _kind(Folder.of(archive, options))[1]


def _kind(place: Folder) -> tuple[Literal["folder", "list", "recording", "glob"], Folder]:
    """Return what an archive is, and what the names of its recordings are relative to."""
    filesystem, path = place.filesystem()
    parent = Folder(place.url.rsplit("/", 1)[0] or "/", place.options)
    with explained(f"archive {place.url}"):
        # In this order: a name that exists is never taken for a glob.
        if persistently(lambda: filesystem.isdir(path)):
            return "folder", place
        if filesystem.isfile(path):
            return ("list" if place.url.lower().endswith(LIST_SUFFIXES) else "recording"), parent
        if any(character in path for character in "*?["):
            fixed = re.split(r"[*?\[]", place.url, maxsplit=1)[0].rpartition("/")[0]
            return "glob", Folder(fixed or "/", place.options)
        raise FileNotFoundError(path)


def locate(folder: Folder, entry: Entry) -> bytes | tuple[Folder, str]:
    """Return where a recording is: a local path as bytes, or the folder and name to read it by."""
    name = entry.file
    if is_url(name):
        head, _, tail = name.rpartition("/")
        return Folder(head, folder.options), tail
    if not folder.is_local:
        return folder, name
    # A list may have absolute names, which `join` takes as they are.
    return os.path.join(os.fsencode(folder.url), entry.raw_file or os.fsencode(name))


def peek(archive: Folder, recording: Entry) -> None:
    """Read the first byte of a recording; raise OSError if that cannot be done."""
    place = locate(archive, recording)
    if isinstance(place, bytes):
        # O_NONBLOCK: nobody may ever write to a named pipe.
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.read(descriptor, 1)
        finally:
            os.close(descriptor)
    else:
        folder, name = place
        persistently(lambda: folder.filesystem()[0].cat_file(folder.path(name), start=0, end=1))


def _of_names(folder: Folder, entries: Iterable[Entry], endings: tuple[str, ...]) -> Listing:
    """Keep the entries that end like recordings, count the others."""
    left_out: Counter[str] = Counter()

    def recordings() -> Iterator[Entry]:
        for entry in entries:
            if entry.file.lower().endswith(endings):
                yield entry
            else:
                left_out[os.path.splitext(entry.file)[1].lower() or "no suffix"] += 1

    table, n_duplicates = _table(recordings())
    return Listing(folder, table, dict(left_out), n_duplicates)


def _walk(folder: Folder) -> Iterator[Entry]:
    """Yield every file below `folder` that is not hidden."""
    if folder.is_local:
        yield from _walk_local(folder.url, "", ())
        return
    filesystem, root = folder.filesystem()
    filesystem.invalidate_cache(root)
    for path, info in persistently(lambda: filesystem.find(root, detail=True)).items():
        name = path[len(root.rstrip("/")) + 1 :] if path.startswith(root) else path
        if name and not any(part.startswith(".") for part in name.split("/")):
            yield _entry(folder, name, info)


def _walk_local(root: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """Walk a local folder, links to folders included, but never round a ring of them."""
    path = os.path.join(root, below) if below else root
    try:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(path) as found:
            children = sorted(found, key=lambda child: child.name)
    except FileNotFoundError:
        # Gone while the folders above it were listed.
        if below:
            return
        raise
    for child in children:
        if child.name.startswith("."):
            continue
        name = f"{below}/{child.name}" if below else child.name
        if _is_folder(child):
            yield from _walk_local(root, name, (*above, identity))
        else:
            yield _entry_local(name, child.path)


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:
        # A link to itself: no folder, and its row will say so.
        return False


def _entry_local(name: str, path: str) -> Entry:
    try:
        status = os.stat(path)
    except OSError:
        # A dangling link, or gone since: listed all the same, so that it gets a row with its reason.
        return _named(name, None, None)
    return _named(name, status.st_size, str(status.st_mtime_ns))


def _entry(folder: Folder, name: str, info: Mapping[str, Any]) -> Entry:
    """Return the entry for what an fsspec filesystem says of a file."""
    if folder.is_local:
        return _entry_local(name, info["name"])
    version = next(
        (info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created") if info.get(key)),
        None,
    )
    return _named(name, info.get("size"), None if version is None else str(version).strip('"'))


def _named(name: str, size: int | None, version: str | None) -> Entry:
    """Return an entry whose `file` is text whatever the bytes of its name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(name)
        text = re.sub(r"[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", name)
        return Entry(text, raw, size, version)
    return Entry(name, None, size, version)


def _of_glob(place: Folder, base: Folder, endings: tuple[str, ...]) -> Listing:
    """List what matches a glob, named relative to `base`, its longest part without glob characters."""
    filesystem, pattern = place.filesystem()
    if base.is_local:
        # Our own walk, for fsspec's passes over what it may not read and over linked folders.
        matches_pattern = re.compile(glob_translate(pattern)).match
        found = _walk_local(base.url, "", ())
        return _of_names(base, (entry for entry in found if matches_pattern(_local_path(base, entry))), endings)
    root = base.filesystem()[1].rstrip("/")
    matches = persistently(lambda: filesystem.glob(pattern, detail=True))
    files = ((path[len(root) + 1 :], info) for path, info in matches.items() if info["type"] != "directory")
    return _of_names(
        base,
        (_entry(base, name, info) for name, info in files if not any(part.startswith(".") for part in name.split("/"))),
        endings,
    )


def _local_path(base: Folder, entry: Entry) -> str:
    return os.fsdecode(os.path.join(os.fsencode(base.url), entry.raw_file or os.fsencode(entry.file)))


def _of_list(parent: Folder, name: str) -> Listing:
    """List what a list file names; relative names are relative to the list's own folder."""
    data = parent.read(name)
    if name.lower().endswith(".txt"):
        if b"\0" in data:
            raise UsageError(f"list {name}: expected UTF-8 text with a name a line, got NUL bytes; is it UTF-16?")
        names = [line for line in os.fsdecode(data).lstrip("\ufeff").replace("\r\n", "\n").split("\n") if line]
    else:
        names = _column_of_list(name, data)

    def entries() -> Iterator[Entry]:
        for file in names:
            file = file.removeprefix("file://")
            refuse_password(file)
            entry = _named(file, None, None)
            at = locate(parent, entry)
            yield _entry_local(file, os.fsdecode(at)) if isinstance(at, bytes) else entry

    table, n_duplicates = _table(entries())
    return Listing(parent, table, {}, n_duplicates)


def _column_of_list(name: str, data: bytes) -> list[str]:
    try:
        if name.lower().endswith(".csv"):
            convert = pyarrow.csv.ConvertOptions(column_types={"file": pa.string()}, strings_can_be_null=False)
            table = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=convert)
        else:
            table = pq.read_table(io.BytesIO(data))
        if "file" not in table.column_names:
            raise UsageError(f"list {name}: expected a column called 'file', got {', '.join(table.column_names)}")
        return [file for file in table["file"].cast(pa.string()).to_pylist() if file]
    except (pa.ArrowException, KeyError) as error:
        raise UsageError(f"list {name}: expected a readable table, got {str(error).splitlines()[0]}") from error


def _table(entries: Iterable[Entry]) -> tuple[pa.Table, int]:
    """Return the entries sorted and without repetition, and how many were repeated."""
    batches: list[pa.RecordBatch] = []
    chunk: list[Entry] = []

    def flush() -> None:
        columns = list(zip(*chunk, strict=True)) or [(), (), (), ()]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA))
        chunk.clear()

    for entry in entries:
        chunk.append(entry)
        if len(chunk) == _BATCH:
            flush()
    flush()
    table = pa.Table.from_batches(batches, ENTRY_SCHEMA)
    table = table.take(pc.sort_indices(table, sort_keys=[("file", "ascending"), ("raw_file", "ascending")]))
    table = _distinct_escapes(table).combine_chunks()
    if table.num_rows < 2:
        return table, 0
    repeated = pc.equal(table["file"].slice(1), table["file"].slice(0, table.num_rows - 1))
    keep = pa.concat_arrays([pa.array([True]), pc.invert(repeated).combine_chunks()])
    return table.filter(keep), table.num_rows - pc.sum(keep).as_py()


def _distinct_escapes(table: pa.Table) -> pa.Table:
    """Escape every byte of a name that is not UTF-8 where its shorter escape is another recording's name."""
    escaped = pc.is_valid(table["raw_file"])
    if not pc.any(escaped).as_py():
        return table
    counts = Counter(table["file"].to_pylist())
    names = [
        "".join(f"%{byte:02X}" for byte in raw) if raw is not None and counts[file] > 1 else file
        for file, raw in zip(table["file"].to_pylist(), table["raw_file"].to_pylist(), strict=True)
    ]
    table = table.set_column(0, ENTRY_SCHEMA.field("file"), pa.array(names, pa.string()))
    return table.take(pc.sort_indices(table, sort_keys=[("file", "ascending")]))
