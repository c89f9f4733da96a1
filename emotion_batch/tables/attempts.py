"""Note which shards were begun. A note without an end shows that the process died during that shard.

A process dies because of a recording, or for another reason. Only the next attempt shows which, and it decodes in a child process
(`worker.isolation`).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from emotion_batch.storage.folder import Folder, explained, seal, unseal

FOLDER = "_table/attempts"


@dataclass(frozen=True)
class Attempt:
    """Whether an earlier attempt at a shard did not end, and the seconds since it began; 0 if another run made it."""

    is_repeated: bool
    lost_s: float


@contextmanager
def noted(table: Folder, shard: int, run_id: str) -> Iterator[Attempt]:
    """Note that a run began a shard, until the block ends; yield what is known of earlier attempts. If the process dies, the note stays."""
    name = _name(shard)
    with explained(f"table {table.url}"):
        earlier = table.read_if_there(name)
        is_repeated = earlier is not None
        note = {"run": run_id, "began": time.time(), "host": platform.node(), "pid": os.getpid()}
        # It need not survive a power cut: after one, the shard is decoded as if for the first time.
        table.publish(name, seal({**note, "is_repeated": is_repeated}), is_durable=False)
    try:
        about = _parse(earlier, run_id)
        # The clocks of machines differ, so the seconds may be negative.
        yield Attempt(is_repeated, 0.0 if about is None else max(0.0, time.time() - about["began"]))
    except BaseException:
        # If the shard was under suspicion before, the note stays, so that the next attempt does not look like the first.
        if not is_repeated:
            forget(table, shard)
        raise
    forget(table, shard)


def find_noted(table: Folder) -> list[int]:
    """Return the shards that have a note."""
    with explained(f"table {table.url}"):
        stems = (name.partition(".")[0] for name in table.folder(FOLDER).names())
        return [int(stem) for stem in stems if stem.isdigit()]


def forget(table: Folder, shard: int) -> None:
    """Delete the note of a shard."""
    with explained(f"table {table.url}"):
        table.delete(_name(shard))


def find_lost(table: Folder, run_id: str) -> frozenset[int]:
    """Return the shards of a run during which a process of this machine died."""
    return frozenset(shard for shard, about in _notes(table, run_id) if not is_alive(about["pid"]))


def take_back(table: Folder, run_id: str, lost: Container[int]) -> None:
    """Delete a run's notes of shards in progress when it ended its own workers, because no recording caused that.

    The notes of `lost` shards stay, and so do those of shards that were under suspicion before.
    """
    for shard, about in _notes(table, run_id):
        if shard not in lost and not about["is_repeated"]:
            forget(table, shard)


def _notes(table: Folder, run_id: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with explained(f"table {table.url}"):
        for shard in find_noted(table):
            if (about := _parse(table.read_if_there(_name(shard)), run_id)) is not None:
                yield shard, about


def _parse(note: bytes | None, run_id: str) -> dict[str, Any] | None:
    """Return what a run has noted; None if it is gone, damaged or another run's."""
    with suppress(ValueError):
        if note is not None and (about := unseal(note))["run"] == run_id:
            return about
    return None


def is_alive(pid: int) -> bool:
    """Return whether this machine, or this container, has a process, even of another user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _name(shard: int) -> str:
    return f"{FOLDER}/{shard:06d}.json"
