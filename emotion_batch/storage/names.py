"""Compare the spellings of names and labels: one recording has one name, and one label one spelling.

On a disk the name that exists as written wins: blanks, backslashes and quotes may be part of it. Names in a bucket are keys, in which
``..`` and ``//`` are literal, so only blanks at the ends and a leading ``./`` are removed.
"""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# Only names with these are normalised. Most names have none of them.
_ODD = re.compile(r"^/|//|(?:^|/)\.{1,2}(?:/|$)|/$")
_WIDE_MARKS = {
    # UTF-32 comes first, because its mark begins with the mark of UTF-16.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The names in this many folders are kept at once, because one folder may hold millions.
_N_FOLDERS = 4


def as_utf8(data: bytes) -> bytes:
    """Return a text in UTF-8 if its mark says that it is UTF-16 or UTF-32, and as it is otherwise.

    Raise UnicodeDecodeError if it is not what its mark says.
    """
    for mark, encoding in _WIDE_MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding).encode()
    return data


def clean(word: str) -> str:
    """Return a label or a speaker without blanks at its ends, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", word).strip()


def bare(text: str) -> str:
    """Return a cell or a name without blanks at its ends and without the quotes around it."""
    text = text.strip()
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if is_quoted else text


def find_key(name: str, base: str) -> str:
    """Return a key that is equal for all spellings of a recording's name.

    `name` is a path, a path relative to `base`, or a URL; `base` is an absolute path or a URL.
    """
    name = unicodedata.normalize("NFC", bare(name)).replace("\\", "/")
    base = unicodedata.normalize("NFC", base)
    full = name if "://" in name or name.startswith("/") else f"{base}/{name}"
    protocol, mark, path = full.removeprefix("file://").rpartition("://")
    return f"{protocol}{mark}{_normalise(path)}"


class DiskNames:
    """Finds the recordings that a list on this machine names, relative to the list's folder `root`, an absolute path."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._roots = [f"{one.rstrip('/')}/" for one in dict.fromkeys((root, os.path.realpath(root)))]
        self._names_in = lru_cache(_N_FOLDERS)(_read_folder)

    def find(self, name: str) -> tuple[str, os.stat_result | None]:
        """Return the name by which a recording is found, and its status on disk.

        The name is relative to the root if the recording lies below it, or if it was written so, and absolute otherwise.
        If the recording is not there, the name is as it was written, but for blanks, and the status is None.
        """
        status = self._look(name)
        if status is not None:
            return self._shorten(name, status), status
        for spelling in _spellings(name):
            found = self._find_composed(self._relate(spelling))
            status = None if found is None or found == name else self._look(found)
            if found is not None and status is not None:
                return found, status
        return self._relate(name.strip()), None

    def _look(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(os.path.join(self._root, name))
        except (OSError, ValueError):
            # A name with a NUL byte is a ValueError.
            return None

    def _shorten(self, name: str, status: os.stat_result) -> str:
        """Return the shortest name of a file that is there."""
        if not _ODD.search(name):
            return name
        short = self._relate(name)
        # Through a link to a folder, `..` leads elsewhere than it reads.
        other = self._look(short) if ".." in name else status
        return short if other is not None and os.path.samestat(status, other) else name

    def _relate(self, name: str) -> str:
        """Return a name without detours, relative to the root if it is below it or was relative before."""
        if not _ODD.search(name):
            return name
        full = _normalise(os.path.join(self._root, name))
        for root in self._roots:
            if full.startswith(root):
                return full[len(root) :]
        return full if name.startswith("/") else os.path.relpath(full, self._root)

    def _find_composed(self, name: str) -> str | None:
        """Find a name in Unicode's composed or decomposed form, folder by folder; None if there is none."""
        if name.isascii() or self._look(name) is not None:
            return name
        found = "/" if name.startswith("/") else ""
        for part in name.strip("/").split("/"):
            here = os.path.join(found, part)
            if self._look(here) is None:
                known = self._names_in(os.path.join(self._root, found)).get(unicodedata.normalize("NFC", part))
                if known is None:
                    return None
                here = os.path.join(found, known)
            found = here
        return found


def _spellings(name: str) -> Iterator[str]:
    """Yield other spellings of a name that is not there as it is written."""
    for spelling in dict.fromkeys((name, name.strip(), bare(name))):
        yield spelling
        if "\\" in spelling:
            yield spelling.replace("\\", "/")


def _normalise(path: str) -> str:
    # `normpath` keeps two slashes at the beginning, because POSIX lets them mean something else.
    return os.path.normpath(re.sub("//+", "/", path))


def _read_folder(path: str) -> dict[str, str]:
    try:
        return {unicodedata.normalize("NFC", name): name for name in os.listdir(path)}
    except OSError:
        return {}
