"""A folder that appears whole or not at all: what an export is written into.

On a disk it is written under a hidden name beside the final one, and renamed at the end. In a bucket nothing can be renamed:
there an object ``_SUCCESS`` is put last, as Spark does, and what lies there without it is no export.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator

from emotion_batch.errors import UsageError
from emotion_batch.storage.folder import Folder, explained, fsync_folder, temporary_name

MARKER = "_SUCCESS"
# Where a filesystem knows no locks: nothing writes for so long without touching its folder.
_LEFTOVER_AGE_S = 3_600


@contextlib.contextmanager
def replacing(place: Folder, own: re.Pattern[str], *, force: bool = False) -> Iterator[Folder]:
    """Give a folder to write into; it is the one at `place` once the block ends well, and nothing is there otherwise.

    What an earlier process that was killed has left is removed first.

    Parameters
    ----------
    place
        Where to: nothing, or an empty folder.
    own
        The names that are written. With `force` a folder with no others in it is replaced.
    force
        Whether to replace.

    Raises
    ------
    UsageError
        If something is there that is not to be replaced.
    """
    with explained(f"folder {place.url}"):
        _require_free(place, own, force)
    if place.is_local:
        with _renamed(os.path.realpath(place.url)) as (folder, put_in_place):
            yield folder
            with explained(f"folder {place.url}"):
                # Once more, for this may have taken an hour.
                _require_free(place, own, force)
                put_in_place()
        return
    with explained(f"folder {place.url}"):
        # The marker first: what is left is then none's.
        for name in sorted(place.names(), key=lambda name: name != MARKER):
            place.delete(name)
    yield place
    with explained(f"folder {place.url}"):
        place.publish(MARKER, b"")


def _require_free(place: Folder, own: re.Pattern[str], force: bool) -> None:
    if place.is_local and place.find_kind() == "file":
        raise UsageError(f"folder {place.url}: expected a new or empty folder, got a file; name another")
    names = place.names()
    strange = next((name for name in names if name != MARKER and not own.fullmatch(name)), None)
    if strange is not None:
        raise UsageError(
            f"folder {place.url}: expected a new or empty folder, or an earlier export, got {strange!r} in it; name another"
        )
    if names and not force and (place.is_local or MARKER in names):
        raise UsageError(
            f"folder {place.url}: expected a new or empty folder, got an export; name another, or replace it with --force"
        )


@contextlib.contextmanager
def _renamed(path: str) -> Iterator[tuple[Folder, Callable[[], None]]]:
    """Give a hidden folder beside `path`, which is gone after the block, and what renames it to that."""
    with explained(f"folder {path}"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _sweep(path)
        hidden = temporary_name(path)
        os.mkdir(hidden)
        lock = os.open(hidden, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            # The system lets go of it when this process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Folder(hidden), lambda: _put_in_place(hidden, path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)


def _put_in_place(hidden: str, path: str) -> None:
    """Rename a folder; what it replaces is away for a moment, rather than half of it there."""
    for entry in os.scandir(hidden):
        with open(entry.path, "rb") as stream:
            os.fsync(stream.fileno())
    fsync_folder(hidden)
    earlier = temporary_name(path)
    if os.path.isdir(path) and os.listdir(path):
        os.rename(path, earlier)
    os.rename(hidden, path)
    fsync_folder(os.path.dirname(path))
    shutil.rmtree(earlier, ignore_errors=True)


def _sweep(path: str) -> None:
    """Remove what processes that were killed have left beside `path`, and not what others are writing."""
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
                is_left = time.time() - os.fstat(lock).st_mtime > _LEFTOVER_AGE_S
            finally:
                os.close(lock)
            if is_left:
                shutil.rmtree(folder, ignore_errors=True)
