"""List millions of objects: large folders side by side, in order, and without keeping what was handed on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import usage
from emotion_batch.storage.fsspec_store import LISTED_SCHEMA

# Listings come by so many; so many are under way at once, each of a prefix.
PAGE = 1_000
_N_LISTINGS = 16
# A folder is worth a listing of its own if it has so many of a page's names.
_LEAST_FOLDER = 250
# Levels of folders that are looked into for prefixes to list side by side.
_MOST_LEVELS = 4


class _Listed(NamedTuple):
    """What is below a prefix: its pages, or its own files, and folders that are listed for themselves."""

    pages: list[pa.Table]
    folders: list[tuple[str, Callable[[], _Listed]]]


def side_by_side(
    path: str,
    list_pages: Callable[[str, threading.Event], Iterator[pa.Table]],
    list_children: Callable[[str], tuple[pa.Table, list[str]] | None],
) -> Iterator[pa.Table]:
    """Yield all files below a prefix, of `LISTED_SCHEMA`, sorted by name but for files beside folders.

    Parameters
    ----------
    path
        The prefix, without a slash at its end.
    list_pages
        Yields what is below a prefix, `PAGE` names at a time and relative to it, until the event says that it is over.
    list_children
        Gives the files directly below a prefix and the names of its folders; None if that cannot be told.
    """
    pool = ThreadPoolExecutor(_N_LISTINGS)
    is_over = threading.Event()

    def divided(prefix: str, level: int, first: pa.Table) -> _Listed | None:
        """Return the folders of a prefix, each begun to be listed, if that is worth it."""
        # One less may be there, for the marker of the prefix itself is left out.
        if not level or first.num_rows < PAGE - 1 or not _has_large_folders(first["name"]):
            return None
        listed = list_children(prefix)
        # Without a folder it is not what the first page was of.
        if listed is None or not listed[1]:
            return None
        files, folders = listed
        below = [
            (name, usage.submit_metered(pool, partial(list_prefix, f"{prefix}/{name}".lstrip("/"), level - 1)))
            for name in sorted(folders, key=_as_prefix)
        ]
        return _Listed([files], below)

    def list_prefix(prefix: str, level: int) -> _Listed:
        pages = list_pages(prefix, is_over)
        first = next(pages, LISTED_SCHEMA.empty_table())
        return divided(prefix, level, first) or _Listed([first, *pages], [])

    try:
        # The first one here, for most archives are no more than that, and what is listed is handed on at once.
        pages = list_pages(path, is_over)
        first = next(pages, LISTED_SCHEMA.empty_table())
        found = divided(path, _MOST_LEVELS, first)
        if found is None:
            yield first
            yield from pages
        else:
            yield from _in_order("", found)
    finally:
        # Whoever gives up does not wait for what is under way.
        is_over.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(above: str, found: _Listed) -> Iterator[pa.Table]:
    """Yield pages as they come to be known, names relative to where the listing began."""
    # Taken out, so that nobody holds what was handed on.
    while found.pages:
        page = found.pages.pop(0)
        if page.num_rows:
            yield page.set_column(0, "name", pc.binary_join_element_wise(above, page["name"], "")) if above else page
    while found.folders:
        name, below = found.folders.pop(0)
        yield from _in_order(f"{above}{name}/", below())


def _has_large_folders(names: pa.ChunkedArray) -> bool:
    """Return whether a page's names are in so few folders that each has many; listing many small ones costs more."""
    folders = pc.struct_field(pc.extract_regex(names, "(?s)^(?P<folder>[^/]*)/"), "folder").drop_null()
    return 0 < len(folders.unique()) <= PAGE // _LEAST_FOLDER


def _as_prefix(name: str) -> str:
    """Return the name of a folder as it counts in the order of the names in it."""
    return f"{name}/"
