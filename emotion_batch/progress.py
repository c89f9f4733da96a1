"""What a run reports while it works: notes, how many files are listed, and how many recordings are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    n_recordings, n_done, n_failed
        Recordings of the table; those with rows, from earlier runs too; those of them without a result.
    n_done_here
        Recordings that this run did.
    elapsed_s
        Seconds since its first shard was handed out.
    """

    n_recordings: int
    n_done: int
    n_failed: int
    n_done_here: int
    elapsed_s: float


@dataclass(frozen=True)
class Watcher:
    """What a caller wants to hear while a run goes on; each function may be called many times.

    Attributes
    ----------
    on_note
        Takes a sentence that a person should read.
    on_progress
        Takes how far the run is, after each shard.
    on_listed
        Takes how many files of the archive were seen, while it is listed.
    """

    on_note: Callable[[str], None] = lambda text: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_listed: Callable[[int], None] = lambda n_files: None
