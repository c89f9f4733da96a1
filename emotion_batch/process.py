"""What the process that computes is set to: one BLAS thread a task, and a heap that is kept."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache

from threadpoolctl import threadpool_limits

# malloc.h of glibc; 32 MiB is the most that M_MMAP_THRESHOLD takes on all of its versions.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**25
_LOCK = threading.Lock()
_n_limited = 0
_limits: threadpool_limits | None = None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep BLAS to one thread: the workers are the parallelism, and a row must not depend on a thread count.

    The limit is the process's, so that of several threads the first sets it and the last lifts it.
    """
    global _n_limited, _limits
    with _LOCK:
        if not _n_limited:
            _limits = threadpool_limits(1)
        _n_limited += 1
    try:
        yield
    finally:
        with _LOCK:
            _n_limited -= 1
            if not _n_limited and _limits is not None:
                _limits.restore_original_limits()


@lru_cache(maxsize=1)
def keep_heap() -> bool:
    """Let malloc keep what was freed, for the rest of the process; return whether it will.

    Dask's nanny starts workers with ``MALLOC_TRIM_THRESHOLD_=65536`` (its ``pre-spawn-environ``): every array of a
    recording then goes back to the system and faults in again, page by page, for a third of the time of all.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Other C libraries have none, or one that does nothing and says so.
    return mallopt is not None and bool(
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES) and mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    )
