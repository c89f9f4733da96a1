"""What a run reports while it works: notes, how many files are listed, and how many recordings are done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    n_recordings, n_done, n_failed
        Recordings of the table; recordings with rows, also from earlier runs; recordings that failed.
    n_done_here
        Recordings that this run has done.
    elapsed_s
        Seconds since its first shard was handed out.
    audio_s
        Seconds of audio that this run has heard; 0 if it hears none.
    left_s
        Seconds that the rest will take, by what its recordings are expected to cost; None if that is unknown.
    """

    n_recordings: int
    n_done: int
    n_failed: int
    n_done_here: int
    elapsed_s: float
    audio_s: float = 0.0
    left_s: float | None = None


@dataclass(frozen=True)
class Watcher:
    """Functions that hear from a run while it works; each may be called many times.

    Attributes
    ----------
    on_note
        Takes a sentence that a person should read. By default it goes to the logger ``emotion_batch``, at level INFO.
    on_progress
        Takes the progress of the run, after each shard.
    on_listed
        Takes the number of files that were seen so far, while the archive is listed.
    """

    on_note: Callable[[str], None] = logging.getLogger("emotion_batch").info
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_listed: Callable[[int], None] = lambda n_files: None
