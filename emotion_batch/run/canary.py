"""Stop a run early if the first recordings, from all over the archive, all fail in the same way or nearly all get one label."""

from __future__ import annotations

from emotion_batch.errors import CanaryError, counted
from emotion_batch.tables.parts import Counts
from emotion_batch.worker.task import Receipt

# If this many recordings from all over the archive give the same result, it is no accident.
RECORDINGS = 200
# With windows, a tenth of the recordings is enough if they have this many windows.
_WINDOWS = 2_000
_SHARE = 0.98


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
