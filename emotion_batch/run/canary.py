"""Look at some recordings from all over the archive before a run, and at its first results.

A run whose first recordings all fail in the same way, or nearly all get one label, is stopped.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import pyarrow.compute as pc

from emotion_batch import usage
from emotion_batch.errors import CanaryError, EmotionBatchError, StorageError, counted, format_duration
from emotion_batch.inference.bundle import Bundle
from emotion_batch.inference.predict import label_rows, load_predictor
from emotion_batch.settings import Segments
from emotion_batch.storage.archive import Listing
from emotion_batch.tables.parts import Counts
from emotion_batch.worker.isolation import Limits, extract_isolated
from emotion_batch.worker.task import Receipt

# If this many recordings from all over the archive give the same result, it is no accident.
RECORDINGS = 200
# With windows, a tenth of the recordings is enough if they have this many windows.
_WINDOWS = 2_000
_SHARE = 0.98
# So many recordings show how long those of an archive are. A smaller archive is labelled in seconds, and its summary tells the same.
_N_LOOKED, _LEAST_BYTES = 16, 2**25
# A recording that gives nothing for so long is not looked at.
_LOOK = Limits(deadline_s=10.0)


@dataclass
class _Clock(usage.Spent):
    """A `Spent` that keeps the seconds of each recording."""

    each_s: list[float] = field(default_factory=list)

    def time(self, file: str, elapsed_s: float) -> None:  # noqa: ARG002 as its class
        self.each_s.append(elapsed_s)


def find_unheard(listing: Listing, bundle: Bundle, segments: Segments) -> str | None:
    """Return a sentence about what it takes to hear all of an archive; None if most of its recordings are heard whole.

    Some recordings are labelled here, in a child process, because one of them may kill its decoder.
    """
    entries, card = listing.entries, bundle.card
    n_bytes = pc.sum(entries["size"]).as_py() or 0
    if not segments.is_one_stretch or n_bytes < _LEAST_BYTES:
        return None
    n_looked = min(_N_LOOKED, entries.num_rows)
    numbers = [entries.num_rows * number // n_looked for number in range(n_looked)]
    (chosen,) = entries.take(numbers).combine_chunks().to_batches()

    def fail(error: StorageError) -> None:
        raise error

    try:
        with usage.metered(clock := _Clock()):
            rows = extract_isolated(chosen, listing.folder, card.feature_settings, segments, _LOOK, fail)
    except EmotionBatchError:
        # The run will say what is wrong.
        return None
    began = time.perf_counter()
    label_rows(rows, load_predictor(bundle))
    label_s = (time.perf_counter() - began) / rows.num_rows
    durations = {row["file"]: row["duration_s"] for row in rows.to_pylist() if row["duration_s"] is not None}
    if not durations or statistics.median(durations.values()) <= segments.offset_s + segments.duration_s:
        return None
    sizes = dict(zip(chosen["file"].to_pylist(), chosen["size"].to_pylist(), strict=True))
    audio_s = sum(durations.values()) * n_bytes / max(1, sum(sizes[file] or 0 for file in durations))
    heard = [min(segments.duration_s, max(0.0, one - segments.offset_s)) for one in durations.values()]
    heard_s = min(audio_s, statistics.mean(heard) * entries.num_rows)
    # The median, because the first recording pays for the start.
    now_s = entries.num_rows * (statistics.median(clock.each_s) + label_s)
    return (
        f"most recordings are longer than the {segments.duration_s:g} s that are heard of each: about {format_duration(heard_s)} of "
        f"{format_duration(audio_s)} of audio, in about {format_duration(now_s)} of one core's time; to hear all of it, stop this run "
        f"and use --window {segments.duration_s:g} with a new table, which takes about {format_duration(now_s * audio_s / heard_s)}"
    )


class Canary:
    """Stops a run if its first few hundred recordings, from all over the archive, give the same result."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._counts = Counts()
        self._examples: dict[str, tuple[str, str]] = {}
        self._is_over = False

    def watch(self, receipt: Receipt) -> None:
        """Add one more receipt; raise CanaryError if there are enough rows and they are all the same."""
        if self._is_over:
            return
        self._counts += receipt.made
        self._examples.update(receipt.examples)
        counts = self._counts
        if not _is_enough(counts.n_recordings, counts.n_rows):
            return
        self._is_over = True
        if len(counts.by_status) == 1 and not counts.n_ok:
            (status,) = counts.by_status
            file, reason = self._examples[status]
            raise CanaryError(
                f"{self._source}: the first {counted(counts.n_rows, 'row')} are all {status} ({file!r}: {reason}); look at some of "
                "these recordings, or continue with --force"
            )
        if counts.by_label and _is_enough(counts.n_recordings - counts.n_failed, counts.n_ok):
            emotion, n_alike = max(counts.by_label.items(), key=lambda item: item[1])
            if n_alike >= _SHARE * counts.n_ok:
                raise CanaryError(
                    f"{self._source}: the first labels are nearly all the same, {emotion!r} for {n_alike:,} of "
                    f"{counted(counts.n_ok, 'segment')}; listen to some of them, or continue with --force"
                )


def _is_enough(n_recordings: int, n_rows: int) -> bool:
    """Return whether there are so many results that it is no accident if they are all the same."""
    return n_recordings >= RECORDINGS or (n_recordings >= RECORDINGS // 10 and n_rows >= _WINDOWS)
