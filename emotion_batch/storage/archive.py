"""List the recordings of an archive: a folder, a bucket prefix, a glob, a list file or one recording."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.utils import glob_translate

from emotion_batch.errors import UsageError, counted
from emotion_batch.settings import Segments
from emotion_batch.storage.entries import BATCH, ENTRY_SCHEMA, Entry, compact, distinct, locate_local
from emotion_batch.storage.file_lists import ReadyList, is_list, read_list
from emotion_batch.storage.folder import Folder, explained, is_url, refuse_secrets, split_file
from emotion_batch.storage.names import DiskNames
from emotion_batch.storage.retry import persistently
from emotion_batch.storage.segment_lists import RTTM, join_segments

# Common suffixes of files that libsndfile and FFmpeg decode. How a recording is read depends on its content.
SUFFIXES = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".w64", ".rf64", ".bw64"),
    *(".au", ".caf", ".sph", ".m4a", ".aac", ".mp4", ".3gp", ".amr", ".wma", ".webm", ".mka", ".mkv", ".mov"),
)


def name_suffixes(suffixes: Iterable[str]) -> tuple[str, ...]:
    """Return suffixes that differ from the usual ones; none if they do not."""
    named = tuple(suffixes)
    return () if named == SUFFIXES else named


# A listing reports its progress after this many names.
_PAGE = 10_000
_HIDDEN = r"(^|/)\."
_HERE = r"^(\./+)+"
_PLACE = r"^\s*[A-Za-z][A-Za-z0-9+.:-]*://"
_Kind = Literal["folder", "list", "recording", "glob"]


@dataclass(frozen=True)
class Listing:
    """What was found in an archive.

    The names in `entries` (`ENTRY_SCHEMA`, sorted by the bytes of ``file``, no name twice) are relative to `folder`.
    `left_out` counts, by suffix, the files without a recording's suffix; `n_duplicates` how often a list named a recording
    again, in any spelling; `n_missing` the recordings that a list on this machine names and that are missing, and `missing`
    is the first of them; `n_unchosen` the recordings that the patterns left out, and `n_unlisted` those without a listed segment.
    `root` says for a person what names in the list are relative to.
    """

    folder: Folder
    entries: pa.Table
    left_out: Mapping[str, int] = field(default_factory=dict)
    n_duplicates: int = 0
    n_missing: int = 0
    missing: str = ""
    n_unchosen: int = 0
    n_unlisted: int = 0
    root: str = "the list's folder"

    def remark(self) -> Iterator[str]:
        """Yield what a person should know about the listing, a sentence each."""
        if self.left_out:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.left_out.items()))
            yield f"left out {counted(sum(self.left_out.values()), 'file')} without a recording's suffix ({kinds})"
        if self.n_unchosen:
            yield f"left out {counted(self.n_unchosen, 'recording')} by --include and --exclude"
        if self.n_unlisted:
            yield f"left out {counted(self.n_unlisted, 'recording')} without a segment in the list of segments"
        if self.n_duplicates:
            yield f"left out {counted(self.n_duplicates, 'line')} for recordings that the list already names"
        if self.n_missing:
            verb = "is" if self.n_missing == 1 else "are"
            yield (
                f"{self.n_missing:,} of the {counted(self.entries.num_rows, 'recording')} in the list {verb} missing, e.g. "
                f"{self.missing!r}; names in a list are relative to {self.root} {self.folder.url}"
            )


def list_recordings(
    archive: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    suffixes: Iterable[str] = SUFFIXES,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    segments: Segments | None = None,
    may_be_empty: bool = False,
    on_listed: Callable[[int], None] = lambda n_files: None,
) -> Listing:
    """List the recordings of `archive`; raise UsageError if it has none, and StorageError if it cannot be read.

    Parameters
    ----------
    archive
        A folder or bucket prefix, a glob, a list file (text, CSV or Parquet with a column ``file``, or an S3
        Inventory), or one recording. A name that exists is never taken for a glob.
    suffixes
        Endings, in any case, by which files of a folder, a glob or an inventory are recordings. A list's names may end
        as they like.
    include, exclude
        Patterns. A recording is listed if its name matches one of `include`, when there are any, and none of `exclude`. A
        pattern with ``/`` is about the whole name, relative to the archive: ``*`` and ``?`` stay within a folder, ``**`` does not.
        One without is about the last part of the name.
    segments
        If a list names them, only recordings with a listed segment are listed, also such as are missing, with `SEGMENTED_SCHEMA`.
    may_be_empty
        Whether an archive without recordings is allowed.
    on_listed
        Called now and then with the number of files seen.
    """
    place = Folder.of(archive, options)
    endings = tuple(suffix.lower() if suffix.startswith(".") else f".{suffix.lower()}" for suffix in suffixes)
    kind, base = _kind(place)
    with explained(f"archive {place.url}"):
        if kind == "list":
            listing = _of_list(read_list(base, place.url.rsplit("/", 1)[1]), endings, on_listed)
        elif kind == "recording":
            listing = Listing(base, _table([_find_one(place)])[0])
        elif base.is_local:
            listing = _of_pages(base, _batches(_find_local(place, base, kind), _PAGE), endings, on_listed)
        else:
            patterns = place.url[len(base.url) :].lstrip("/").split("/")
            pages = base.walk() if kind == "folder" else _match(base, patterns)
            listing = _of_pages(base, map(_entries, pages), endings, on_listed)
    if segments is not None and segments.is_listed:
        listing = _with_segments(listing, Folder.of(str(segments.source), options), segments)
    if include or exclude:
        listing = _choose(listing, include, exclude)
    if not (listing.entries.num_rows or may_be_empty):
        others = f", only {counted(sum(listing.left_out.values()), 'other file')}" if listing.left_out else ""
        raise UsageError(
            f"archive {place.url}: there are no recordings ({' '.join(endings)}){others}; "
            "check the name, or name other endings with --suffix"
            + (", and check the patterns of --include and --exclude" if include or exclude else "")
        )
    return listing


def _with_segments(listing: Listing, place: Folder, segments: Segments) -> Listing:
    """Return the recordings whose segments a list names: one file, or a folder or a glob of RTTM files."""
    kind, _ = _kind(place, "segments")
    files = [split_file(place)]
    if kind in ("folder", "glob"):
        found = list_recordings(place.url, options=place.options, suffixes=(RTTM,), may_be_empty=True)
        files = [(found.folder, name) for name in found.entries["file"].to_pylist()]
    if not files:
        lack = f"there are no RTTM files ({RTTM})"
        raise UsageError(f"segments {place.url}: {lack}; name a list of segments, or a folder of RTTM files")
    with explained(f"segments {place.url}"):
        entries, missing, n_unlisted = join_segments(files, listing.entries, listing.folder, segments.channels)
    listing = replace(listing, entries=entries, n_unlisted=n_unlisted, root="the archive")
    return replace(listing, n_missing=len(missing), missing=missing[0]) if missing else listing


def _choose(listing: Listing, include: Sequence[str], exclude: Sequence[str]) -> Listing:
    def matches(patterns: Sequence[str]) -> Callable[[str], bool]:
        whole = [re.compile(glob_translate(pattern)).match for pattern in patterns if "/" in pattern]
        last = [re.compile(glob_translate(pattern)).match for pattern in patterns if "/" not in pattern]
        return lambda name: any(match(name) for match in whole) or any(match(name.rpartition("/")[2]) for match in last)

    is_included, is_excluded = matches(include), matches(exclude)
    chosen = [
        pa.array((not include or is_included(name)) and not is_excluded(name) for name in names.to_pylist())
        for names in listing.entries["file"].chunks
    ]
    entries = listing.entries.filter(pa.chunked_array(chosen, pa.bool_()))
    return replace(listing, entries=entries, n_unchosen=listing.entries.num_rows - entries.num_rows)


def find_base(archive: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Folder:
    """Return what the names of an archive's recordings are relative to; raise what `list_recordings` does."""
    place = Folder.of(archive, options)
    kind, base = _kind(place)
    if kind != "list":
        return base
    with explained(f"archive {place.url}"):
        return read_list(base, place.url.rsplit("/", 1)[1]).base


def is_recording(source: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> bool:
    """Return whether `source` is one recording, and not a folder, a glob or a list; raise what `list_recordings` does."""
    return _kind(Folder.of(source, options))[0] == "recording"


def _kind(place: Folder, thing: str = "archive") -> tuple[_Kind, Folder]:
    """Return an archive's kind, and the folder that its names are relative to; for a list, the list's folder."""
    parent, _ = split_file(place)
    with explained(f"{thing} {place.url}"):
        # The glob comes last, because a name that exists is never taken for a glob.
        kind = place.find_kind()
        if kind == "folder":
            return "folder", place
        if kind == "file":
            return ("list" if is_list(place.url) else "recording"), parent
        if any(character in place.url for character in "*?["):
            fixed = re.split(r"[*?\[]", place.url, maxsplit=1)[0].rpartition("/")[0]
            return "glob", Folder(fixed or "/", place.options)
        raise FileNotFoundError(place.url)


def _of_pages(
    folder: Folder,
    pages: Iterable[pa.Table | pa.RecordBatch],
    endings: tuple[str, ...],
    on_listed: Callable[[int], None],
) -> Listing:
    """Keep the entries of a listing's pages that end like recordings and are not hidden, count the others."""
    left_out: Counter[str] = Counter()
    kept: list[pa.RecordBatch] = []
    n_listed = 0
    # One pattern looks for all endings. The empty ending matches every name.
    ending = f"(?i)({'|'.join(re.escape(ending) for ending in endings)})$"
    for page in pages:
        n_listed += page.num_rows
        shown = page.filter(pc.invert(pc.match_substring_regex(page["file"], _HIDDEN)))
        is_recording = pc.match_substring_regex(shown["file"], ending)
        others = shown.filter(pc.invert(is_recording))["file"].to_pylist()
        left_out.update(os.path.splitext(name)[1].lower() or "no suffix" for name in others)
        recordings = shown.filter(is_recording)
        kept += recordings.to_batches() if isinstance(recordings, pa.Table) else [compact(recordings)]
        on_listed(n_listed)
    table, n_duplicates = distinct(pa.Table.from_batches(filter(len, kept), ENTRY_SCHEMA))
    return Listing(folder, table, dict(left_out), n_duplicates)


def _entries(listed: pa.Table) -> pa.Table:
    """Return names of a store, or of a list that lies in one, as `ENTRY_SCHEMA`."""
    nothing = pa.nulls(listed.num_rows, pa.binary())
    return pa.table([listed["name"], nothing, listed["size"], listed["version"]], ENTRY_SCHEMA)


def _match(folder: Folder, patterns: list[str]) -> Iterator[pa.Table]:
    """Yield the files below a folder whose names match the patterns, one for each level; ``**`` is any number of levels."""
    is_deep = "**" in patterns[0]
    is_match = re.compile(glob_translate("/".join(patterns) if is_deep else patterns[0])).match
    files, folders = (None, []) if is_deep else folder.children()
    if is_deep or len(patterns) == 1:
        for page in folder.walk() if files is None else [files]:
            yield page.filter(pa.array([bool(is_match(name)) for name in page["name"].to_pylist()], pa.bool_()))
        return
    for name in folders:
        if is_match(name) and not name.startswith("."):
            for page in _match(folder.folder(name), patterns[1:]):
                yield page.set_column(0, "name", pc.binary_join_element_wise(f"{name}/", page["name"], ""))


def _find_one(place: Folder) -> Entry:
    name = place.url.rsplit("/", 1)[1]
    if place.is_local:
        return _entry_local(name, place.url)
    store, path = place.store()
    blob = persistently(lambda: store.get(path, 0, 1))
    return Entry(name, None, blob.size, blob.version)


def _find_local(place: Folder, base: Folder, kind: _Kind) -> Iterator[Entry]:
    """Return the files of a local archive that are not hidden, names relative to `base`."""
    # fsspec's walk skips linked folders and folders that it may not read, so it is not used here.
    found = _walk_local(base.url, "", ())
    if kind == "folder":
        return found
    matches = re.compile(glob_translate(place.url)).match
    return (entry for entry in found if matches(os.fsdecode(locate_local(base, entry))))


def _walk_local(root: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """Walk a local folder, with links to folders, but never in a circle."""
    path = os.path.join(root, below) if below else root
    try:
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(path) as found:
            # They are sorted by their later names, so that these need not be sorted again.
            children = sorted(found, key=lambda child: f"{child.name}/" if _is_folder(child) else child.name)
    except FileNotFoundError:
        # The folder was deleted while those above it were listed.
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
        # A link to itself is not a folder, and its row will say so.
        return False


def _entry_local(name: str, path: str) -> Entry:
    # A dangling link, or a file that was deleted since, is still listed, so that it gets a row with its reason.
    with contextlib.suppress(OSError):
        return _known(name, os.stat(path))
    return _known(name, None)


def _known(name: str, status: os.stat_result | None) -> Entry:
    """Return an entry with what a disk says of it, if it is there."""
    return _named(name, None, None) if status is None else _named(name, status.st_size, str(status.st_mtime_ns))


def _named(name: str, size: int | None, version: str | None) -> Entry:
    """Return an entry whose `file` is text whatever the bytes of its name."""
    text = re.sub(r"[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", name)
    return Entry(text, None if text == name else os.fsencode(name), size, version)


def _of_list(found: ReadyList, endings: tuple[str, ...], on_listed: Callable[[int], None]) -> Listing:
    base, names = found.base, found.names
    if found.is_inventory:
        return _of_pages(base, [_entries(names)], endings, on_listed)
    if pa.types.is_string(names["name"].type):
        is_place = pc.match_substring_regex(names["name"], _PLACE)
        is_place = pc.and_not(is_place, pc.match_substring_regex(names["name"], r"^\s*file://"))
        if not base.is_local or pc.all(is_place, min_count=0).as_py():
            on_listed(names.num_rows)
            names = _trimmed(names)
            # Only names that may hold secrets become Python objects, because there may be millions.
            for name in names["name"].filter(pc.match_substring_regex(names["name"], "://.*[@?]")).to_pylist():
                refuse_secrets(name)
            table, n_duplicates = distinct(_entries(names))
            table, n_again = _without_aliases(table, base)
            return Listing(base, table, {}, n_duplicates + n_again)
    on_disk = DiskNames(base.url)

    def entries() -> Iterator[Entry]:
        n_listed = 0
        for batch in names.to_batches(max_chunksize=_PAGE):
            for name, size, version in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                text = os.fsdecode(name)
                plain = text.strip()
                if not plain:
                    continue
                refuse_secrets(plain)
                if plain.startswith("file://"):
                    text = plain = plain.removeprefix("file://")
                if is_url(plain) or not base.is_local:
                    yield _named(re.sub(_HERE, "", plain), size, version)
                    continue
                file, status = on_disk.find(text)
                yield _known(file, status)
            n_listed += batch.num_rows
            on_listed(n_listed)

    table, n_duplicates = _table(entries())
    table, n_again = _without_aliases(table, base)
    listing = Listing(base, table, {}, n_duplicates + n_again)
    is_missing = pc.and_not(pc.is_null(table["size"]), pc.match_substring_regex(table["file"], _PLACE))
    missing = table["file"].filter(is_missing) if base.is_local else table["file"].slice(0, 0)
    return replace(listing, n_missing=len(missing), missing=missing[0].as_py()) if len(missing) else listing


def _trimmed(names: pa.Table) -> pa.Table:
    """Return names of a store as keys: without blanks at the ends and a leading ``./``. All else is literal."""
    is_odd = pc.match_substring_regex(names["name"], r"^(\s|\./)|\s$")
    if not pc.any(is_odd, min_count=0).as_py():
        return names
    plain = pc.replace_substring_regex(pc.utf8_trim_whitespace(names["name"]), _HERE, "")
    names = names.set_column(0, "name", pc.if_else(is_odd, plain, names["name"]))
    return names.filter(pc.not_equal(names["name"], ""))


def _without_aliases(table: pa.Table, base: Folder) -> tuple[pa.Table, int]:
    """Return a list's entries without those that it also names relative to its folder, and how many these are.

    The name of a recording must not depend on the other lines of the list. So a URL stays a URL, and a name that leaves
    the folder with ``..`` stays as it is.
    """
    names = table["file"]
    if base.is_local:
        climbing = names.filter(pc.starts_with(names, "../")).to_pylist()
        aliases = [os.path.normpath(os.path.join(base.url, name)) for name in climbing]
        is_again = pc.is_in(names, value_set=pa.array(aliases, pa.string())) if aliases else None
    else:
        prefix = f"{base.url}/"
        is_below = pc.starts_with(names, prefix)
        relative = names.filter(is_below)
        relative = pc.utf8_slice_codeunits(relative, len(prefix))
        known = names.filter(pc.is_in(names, value_set=relative)) if len(relative) else relative
        again = pc.binary_join_element_wise(prefix, known, "")
        is_again = pc.is_in(names, value_set=again) if len(known) else None
    if is_again is None:
        return table, 0
    return table.filter(pc.invert(is_again)), pc.sum(is_again).as_py() or 0


def _table(entries: Iterable[Entry]) -> tuple[pa.Table, int]:
    """Return the entries sorted and without repetition, and how many were repeated."""
    return distinct(pa.Table.from_batches(_batches(entries, BATCH), ENTRY_SCHEMA))


def _batches(entries: Iterable[Entry], n_rows: int) -> Iterator[pa.RecordBatch]:
    left = iter(entries)
    while chunk := list(islice(left, n_rows)):
        columns = zip(*chunk, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=False)]
        yield compact(pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA))
