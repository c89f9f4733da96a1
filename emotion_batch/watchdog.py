"""Ends a process whose decoder never returns, whatever it holds: the lock of the interpreter, a signal mask."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# By number, for sys.stderr may be something without one.
_STDERR = 2
_LOCK = threading.Lock()
# When each thread that is watched last gave a sign of life.
_beats: dict[int, float] = {}
_armed_at = 0.0


@contextmanager
def watched(deadline_s: float) -> Iterator[Callable[[], None]]:
    """Watch the block: the process ends if its sign of life does not come for so long.

    The timer is one for the whole process and costs more to set than a small recording should, so that it is set anew
    only once in a deadline: the end comes between one and two deadlines after the last sign.

    Parameters
    ----------
    deadline_s
        Longest time between signs of life, in seconds; the same for all threads.

    Yields
    ------
    What gives the sign of life, from the block's own thread.
    """
    thread = threading.get_ident()

    def beat() -> None:
        _beats[thread] = now = time.monotonic()
        if now - _armed_at > deadline_s:
            with _LOCK:
                _arm(deadline_s)

    with _LOCK:
        _beats[thread] = time.monotonic()
        _arm(deadline_s)
    try:
        yield beat
    finally:
        with _LOCK:
            del _beats[thread]
            if _beats:
                _arm(deadline_s)
            else:
                faulthandler.cancel_dump_traceback_later()


def _arm(deadline_s: float) -> None:
    """Set the timer for the thread that has been silent for the longest."""
    global _armed_at
    _armed_at = time.monotonic()
    end = min(_beats.values()) + 2 * deadline_s
    # Its own thread of C, which no lock of the interpreter holds up; the traceback says where it hung.
    faulthandler.dump_traceback_later(max(end - _armed_at, 0.001), exit=True, file=_STDERR)
