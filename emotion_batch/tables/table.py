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
    """Return what a table is, or None if the folder holds no table; raise DamagedError if its `table.json` is damaged or lost."""
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
    """Return what a folder that a run will write as a table holds; None if the table, or its `table.json`, is still to be made.

    Raise UsageError if it is a file, or holds files that are not a table, e.g. recordings because SOURCE and TABLE were confused.
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
        # This holds also if it does not exist, because it may be a misspelt second recording. No folder has such a name.
        raise UsageError(
            f"table {table.url} has the name of a recording: name several recordings by their folder, a glob in quotes or a "
            "list file, and after that a folder for the table"
        )
    if kind == "file":
        raise UsageError(f"table {table.url} is a file, not a folder: name a folder for the table")
    if strangers:
        held = f"recordings ({recordings[0]!r})" if recordings else f"{strangers[0]!r}, which is not a part of a table"
        raise UsageError(
            f"table {table.url} holds {held}: name a new or empty folder, or a table; the order is SOURCE TABLE, because what is read "
            "comes before what is written"
        )
    return None


def check_info(table: Folder, info: TableInfo) -> TableInfo | None:
    """Return what `table` is, which is `info` except for its feature table; None if it is still to be made.

    A table of other settings that has no part counts as still to be made, because nothing would be lost. If `table.json` is lost,
    the parts say what the table is. Raise UsageError if it holds a table of something else, or if `find_info` does.
    """
    there = find_info(table)
    difference = None if there is None else there.difference(info)
    if there is not None and not difference:
        return there
    with explained(f"table {table.url}"):
        parts = [name for name in table.names() if name.endswith(".parquet") and not name.startswith((".", "_"))]
        if not parts:
            return None
        # A part says nothing about these.
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
        f"table {table.url}: {INFO} is damaged or missing, and none of its parts was made with these settings ({said}); give the "
        "settings that they were made with, or name a new table"
    )


def create_info(table: Folder, info: TableInfo) -> bool:
    """Make `table` one of `info` if it is not a table yet; raise what `check_info` does, also if it has no part.

    Return whether its `table.json` was damaged or lost and is written anew. A caller has seen that `check_info` allows it.
    """
    data = seal(info.to_dict(), indent=2)
    there = find_info(table)
    with explained(f"table {table.url}"):
        for name in ("attempts", "manifest", "runs"):
            table.folder(f"{LEDGER}/{name}").make()
        is_lost = there is None and any(part_shard(name) is not None for name in table.names())
        if there is None and not table.publish_first(INFO, data):
            # Another run was quicker, and its table may hold something else; or the file is damaged.
            there = find_info(table)
            is_lost = there is None
        if there is not None and (difference := there.difference(info)):
            # The parts may say that it is `table.json` that is damaged.
            is_lost = check_info(table, info) is info
            if not is_lost:
                raise _refusal(table, difference)
        if is_lost or (there is not None and info.features not in (None, there.features)):
            table.publish(INFO, data)
    return is_lost


def replace_info(table: Folder, info: TableInfo) -> None:
    """Make a table without a part one of `info`, for a run that works on it alone.

    The manifest of the earlier settings is deleted first, and the settings are replaced last. So if this ends early, the table has
    the earlier settings, and its recordings are still to be listed.
    """
    with explained(f"table {table.url}"):
        for name in ("manifest", "attempts", "model"):
            folder = table.folder(f"{LEDGER}/{name}")
            # The newest generation of a manifest goes first, and its JSON file before the files that it names.
            names = sorted(folder.names(), key=lambda name: (name.endswith(".json"), name), reverse=True)
            for one in names:
                folder.delete(one)
        table.publish(INFO, seal(info.to_dict(), indent=2))


def _refusal(table: Folder, difference: str) -> UsageError:
    return UsageError(f"table {table.url} {difference}; name a new table for other settings")


def find_kept_features(table: Folder, info: TableInfo) -> str | None:
    """Return the URL of the feature table that a table was labelled from; None if it was made from recordings."""
    if info.kind != schema.LABELS:
        return None
    # The source may be gone or refuse access by now, which says nothing about this table.
    with contextlib.suppress(Exception), hastily():
        if read_info(Folder(info.source, table.options)) is not None:
            return info.source
    return None


def require_table(table: Folder) -> TableInfo:
    """Return what a table is; raise UsageError if there is none."""
    with explained(f"table {table.url}"):
        info = read_info(table)
    if info is None:
        raise UsageError(f"table {table.url}: there is no table; check the name")
    return info


def find_features(place: Folder) -> TableInfo | None:
    """Return what the feature table at `place` is, or None if there is no table; raise UsageError for a label table."""
    with explained(f"source {place.url}"):
        info = read_info(place)
    if info is not None and info.kind != schema.FEATURES:
        raise UsageError(f"table {place.url} is a table of {info.kind}: name a feature table")
    return info


def require_features(place: Folder) -> TableInfo:
    """Return what the feature table at `place` is; raise UsageError if there is none."""
    info = find_features(place)
    if info is None:
        raise UsageError(f"table {place.url}: there is no feature table; make one with `emotion-batch extract`")
    return info
