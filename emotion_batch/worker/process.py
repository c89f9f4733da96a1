"""Set up a worker process for shards, and name the source code that it runs."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.resources
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.resources.abc import Traversable

import pyarrow as pa
from threadpoolctl import threadpool_limits

# malloc.h of glibc; 32 MiB is the most that M_MMAP_THRESHOLD takes on all of its versions.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**25
# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_LOCK = threading.Lock()
_is_settled = False


def _read_source(folder: Traversable) -> Iterator[bytes]:
    """Yield names and content of the package's files that decide rows; a checkout, a wheel and a zip file have the same."""
    for child in sorted(folder.iterdir(), key=lambda child: child.name):
        if child.is_dir():
            # Only a wheel has the models that ship in here, and a run names its model by another digest.
            yield from () if child.name == "models" else _read_source(child)
        elif child.name.endswith((".json", ".npz", ".py", ".toml")):
            yield f"{child.name} ".encode() + hashlib.sha256(child.read_bytes()).digest()


# The digest is taken at the import, because a process that was started before an upgrade still runs the old code, and must
# name the old digest.
SOURCE = hashlib.sha256(b"".join(_read_source(importlib.resources.files("emotion_batch")))).hexdigest()[:12]


def settle() -> None:
    """Set the process up for shards, once, in the first thread that comes.

    One thread is enough, because the workers run in parallel, and a row must not depend on the number of threads. The limit
    stays, because threadpoolctl lets only the first of several threads change OpenBLAS.
    """
    global _is_settled
    with _LOCK:
        if not _is_settled:
            threadpool_limits(1)
            keep_heap()
            _is_settled = True


def keep_heap() -> bool:
    """Let malloc keep freed memory for the rest of the process; return whether it will.

    Dask's nanny starts workers with ``MALLOC_TRIM_THRESHOLD_=65536`` (its ``pre-spawn-environ``): then all
    arrays go back to the system and are mapped again page by page, which takes a third of the whole time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Other C libraries have no mallopt, or one that does nothing and returns 0.
    names = (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD)
    return mallopt is not None and all(mallopt(name, _KEPT_BYTES) for name in names)


def give_back_memory() -> None:
    """Give freed memory that this process kept back to the system."""
    pa.default_memory_pool().release_unused()
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def die_with_parent() -> None:
    """Let the system kill this process when its parent dies, if it can."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
