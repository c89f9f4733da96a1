"""End a process whose decoder never returns, even if the decoder holds the interpreter's lock or blocks signals."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# By number, for sys.stderr may be something without one.
_STDERR = 2
_LOCK = threading.Lock()
# Of each thread that is watched: when it last gave a sign of life, and how long it may be silent.
_beats: dict[int, tuple[float, float]] = {}
_end = 0.0


@contextmanager
def watched(deadline_s: float) -> Iterator[Callable[[], None]]:
    """Watch the block: the process ends if its thread does not call what is yielded for `deadline_s` seconds.

    The timer is one for the whole process and costs more to set than a small recording should. So it is set anew only when it is
    nearer than a deadline: the end comes between one and two deadlines after a thread's last sign of life.
    """
    thread = threading.get_ident()

    def beat() -> None:
        now = time.monotonic()
        _beats[thread] = now, deadline_s
        if _end - now < deadline_s:
            with _LOCK:
                _arm()

    with _LOCK:
        _beats[thread] = time.monotonic(), deadline_s
        _arm()
    try:
        yield beat
    finally:
        with _LOCK:
            del _beats[thread]
            if _beats:
                _arm()
            else:
                faulthandler.cancel_dump_traceback_later()


def _arm() -> None:
    """Set the timer for the thread whose time is up first."""
    global _end
    _end = min(beat_s + 2 * deadline_s for beat_s, deadline_s in list(_beats.values()))
    # Its own thread of C, which no lock of the interpreter holds up; the traceback says where it hung.
    faulthandler.dump_traceback_later(max(_end - time.monotonic(), 0.001), exit=True, file=_STDERR)
