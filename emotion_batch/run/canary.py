"""Stop a run early if the first recordings, from all over the archive, all fail alike or nearly all get one label."""

from __future__ import annotations

from emotion_batch.errors import CanaryError
from emotion_batch.tables.parts import Counts
from emotion_batch.worker.task import Receipt

# So many recordings alike, from all over the archive, are no accident; a night of them helps nobody.
RECORDINGS = 200
# Of long recordings in windows a tenth of them will do, with so many windows.
_WINDOWS = 2_000
_SHARE = 0.98


class Canary:
    """Stops a run whose first few hundred recordings, from all over the archive, came out alike."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._counts = Counts()
        self._examples: dict[str, tuple[str, str]] = {}
        self._is_over = False

    def watch(self, receipt: Receipt) -> None:
        """Take one more receipt in; raise CanaryError if the rows so far are enough and alike."""
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
                f"{self._source}: expected usable recordings, got {counts.n_rows} of {counts.n_rows} that are {status} "
                f"({file!r}: {reason}); look at some of them, or go on with --force"
            )
        if counts.by_label and _is_enough(counts.n_recordings - counts.n_failed, counts.n_ok):
            emotion, n_alike = max(counts.by_label.items(), key=lambda item: item[1])
            if n_alike >= _SHARE * counts.n_ok:
                raise CanaryError(
                    f"{self._source}: expected labels that differ, got {emotion!r} for {n_alike:,} of the first "
                    f"{counts.n_ok:,} segments; listen to some of them, or go on with --force"
                )


def _is_enough(n_recordings: int, n_rows: int) -> bool:
    """Return whether so much that is alike is no accident."""
    return n_recordings >= RECORDINGS or (n_recordings >= RECORDINGS // 10 and n_rows >= _WINDOWS)
