"""End a process whose decoder never returns, even if the decoder holds the interpreter's lock or blocks signals."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The number is used, because sys.stderr may be an object without one.
_STDERR = 2
_LOCK = threading.Lock()
# For each watched thread: when it last gave a sign of life, and how long it may be silent.
_beats: dict[int, tuple[float, float]] = {}
_end = 0.0


@contextmanager
def watched(deadline_s: float) -> Iterator[Callable[[], None]]:
    """Watch the block: the process ends if its thread does not call the yielded function for `deadline_s` seconds.

    There is one timer for the whole process, and setting it is slow compared with a small recording. So it is only set again if it
    would end within a deadline. The process ends between one and two deadlines after a thread's last sign of life.
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
    # This uses a C thread, which needs no lock of the interpreter. The traceback says where it hung.
    faulthandler.dump_traceback_later(max(_end - time.monotonic(), 0.001), exit=True, file=_STDERR)
