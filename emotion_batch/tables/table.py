"""Create, find and check a table by its ``table.json``."""

from __future__ import annotations

import contextlib

from emotion_batch.errors import DamagedError, UsageError
from emotion_batch.storage.archive import SUFFIXES
from emotion_batch.storage.folder import Folder, damaged, explained, seal, unseal
from emotion_batch.storage.retry import hastily
from emotion_batch.tables import schema
from emotion_batch.tables.parts import PartError, part_shard, read_footer
from emotion_batch.tables.schema import INFO, LEDGER, TableInfo


def read_info(table: Folder) -> TableInfo | None:
    """Return what a table is, or None if the folder holds no table; raise DamagedError if what says so is damaged or lost."""
    data = table.read_if_there(INFO)
    if data is None:
        if any(name.endswith(".json") for name in table.folder(f"{LEDGER}/manifest").names()):
            raise damaged(table, INFO, "no such file")
        return None
    try:
        return TableInfo.from_dict(unseal(data))
    except ValueError as error:
        raise damaged(table, INFO) from error


def find_info(table: Folder) -> TableInfo | None:
    """Return what a folder that is to be written as a table holds; None if it is still to be made, or its `table.json` is.

    Raise UsageError if it is a file, or holds files that are no table: recordings above all, where SOURCE and TABLE were confused.
    """
    with explained(f"table {table.url}"):
        with contextlib.suppress(DamagedError):
            there = read_info(table)
            if there is not None:
                return there
        kind = table.find_kind()
        names = table.names() if kind == "folder" else []
    strangers = [name for name in names if not name.startswith((".", "_")) and part_shard(name) is None]
    recordings = [name for name in strangers if name.lower().endswith(SUFFIXES)]
    if kind != "folder" and table.url.lower().endswith(SUFFIXES):
        # Also if it is not there, because it may be a second recording, misspelt; no folder has such a name.
        raise UsageError(
            f"table {table.url} is named as a recording is: name several recordings by their folder, a glob in quotes or a "
            "list file, and after that a folder for the table"
        )
    if kind == "file":
        raise UsageError(f"table {table.url} is a file, not a folder: name a folder for the table")
    if recordings:
        raise UsageError(
            f"table {table.url} holds recordings ({recordings[0]!r}): expected a new or empty folder or a table; the order is "
            "SOURCE TABLE, what is read before what is written"
        )
    if strangers:
        raise UsageError(
            f"table {table.url}: expected a new or empty folder or a table, got {strangers[0]!r} in it; name another "
            "folder; the order is SOURCE TABLE, what is read before what is written"
        )
    return None


def check_info(table: Folder, info: TableInfo) -> TableInfo | None:
    """Return what `table` is, which is `info` but for its feature table; None if it is still to be made.

    It also is where one of other settings was begun and has no part: nothing of it would be lost. What has lost its `table.json`
    is what its parts say. Raise UsageError if it holds a table of something else, or what `find_info` refuses.
    """
    there = find_info(table)
    difference = None if there is None else there.difference(info)
    if there is not None and not difference:
        return there
    with explained(f"table {table.url}"):
        parts = [name for name in table.names() if name.endswith(".parquet") and not name.startswith((".", "_"))]
        if not parts:
            return None
        # Of these a part says nothing.
        named, expected = ((one.source, one.include, one.exclude, one.suffixes) for one in (there or info, info))
        if there is not None and difference and named != expected:
            raise _refusal(table, difference)
        said = None
        for name in parts:
            try:
                read_footer(table, info, name)
            except PartError as error:
                said = said or f"{name}: {error}"
                continue
            return info
    if difference:
        raise _refusal(table, difference)
    raise UsageError(
        f"table {table.url}: {INFO} is damaged or missing, and none of the parts there is of these settings ({said}); give the "
        "settings that they were made with, or name a new table"
    )


def create_info(table: Folder, info: TableInfo) -> bool:
    """Make `table` one of `info` if it is none yet; raise what `check` does, and also for one that has no part.

    Return whether its `table.json` was damaged or lost and is written anew; for what a caller has seen that `check` lets pass.
    """
    data = seal(info.to_dict(), indent=2)
    there = find_info(table)
    with explained(f"table {table.url}"):
        for name in ("attempts", "manifest", "runs"):
            table.folder(f"{LEDGER}/{name}").make()
        is_lost = there is None and any(part_shard(name) is not None for name in table.names())
        if there is None and not table.publish_first(INFO, data):
            # Another run was quicker: its table may be one of something else. Or it is damaged.
            there = find_info(table)
            is_lost = there is None
        if there is not None and (difference := there.difference(info)):
            # Unless parts say that it is damaged.
            is_lost = check_info(table, info) is info
            if not is_lost:
                raise _refusal(table, difference)
        if is_lost or (there is not None and info.features not in (None, there.features)):
            table.publish(INFO, data)
    return is_lost


def replace_info(table: Folder, info: TableInfo) -> None:
    """Make a table without a part one of `info`: for a run that is alone with it.

    What was frozen for the earlier settings goes first, and the settings last: whenever this ends early, the table is one of the
    earlier settings whose recordings are still to be listed.
    """
    with explained(f"table {table.url}"):
        for name in ("manifest", "attempts", "model"):
            folder = table.folder(f"{LEDGER}/{name}")
            # The newest generation of a manifest first, and what says that there is one before what it names.
            names = sorted(folder.names(), key=lambda name: (name.endswith(".json"), name), reverse=True)
            for one in names:
                folder.delete(one)
        table.publish(INFO, seal(info.to_dict(), indent=2))


def _refusal(table: Folder, difference: str) -> UsageError:
    return UsageError(f"table {table.url}: expected {difference}; name a new table for other settings")


def find_kept_features(table: Folder, info: TableInfo) -> str | None:
    """Return the URL of the feature table that a table holds the labels of; None if it is of recordings."""
    if info.kind != schema.LABELS:
        return None
    # The source may be gone or refuse by now, which says nothing about this table.
    with contextlib.suppress(Exception), hastily():
        if read_info(Folder(info.source, table.options)) is not None:
            return info.source
    return None


def require_table(table: Folder) -> TableInfo:
    """Return what a table is; raise UsageError if there is none."""
    with explained(f"table {table.url}"):
        info = read_info(table)
    if info is None:
        raise UsageError(f"table {table.url}: expected a table, got none there; check the name")
    return info


def find_features(place: Folder) -> TableInfo | None:
    """Return what the feature table at `place` is, None if there is no table, and refuse a label table."""
    with explained(f"source {place.url}"):
        info = read_info(place)
    if info is not None and info.kind != schema.FEATURES:
        raise UsageError(f"table {place.url}: expected a feature table, got one of {info.kind}")
    return info


def require_features(place: Folder) -> TableInfo:
    """Return what the feature table at `place` is; raise UsageError if there is none."""
    info = find_features(place)
    if info is None:
        raise UsageError(
            f"table {place.url}: expected a feature table, got none there; make one with `emotion-batch extract`"
        )
    return info
