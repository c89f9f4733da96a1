"""Tests of what a process that computes is set to."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


def test_whichever_thread_settles_a_process_blas_has_one_thread_in_all() -> None:
    """Once a shard was begun, by any thread, BLAS has one thread for every task that follows."""
    program = """
import threading
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from emotion_batch.worker import process
def n_threads():
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
def in_thread():
    process.settle()
    found.append(n_threads())
threadpool_limits(4)
found = [n_threads()]
in_thread()
for _ in range(3):
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
print(found)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout == "[{4}, {1}, {1}, {1}, {1}]\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_a_kept_heap_takes_no_fresh_pages() -> None:
    """Under the nanny's setting, arrays that come and go fault in once and not each time."""
    program = """
import resource, sys
import numpy as np
from emotion_batch.worker import process
assert len(sys.argv) == 1 or process.keep_heap()
def faults():
    for _ in range(200):
        np.ones(200_000, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = faults()
print(faults() - first)
"""
    environment = {"MALLOC_TRIM_THRESHOLD_": "65536"}
    plain, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", program, *more], env=environment, capture_output=True, check=True, text=True
            ).stdout
        )
        for more in ((), ("keep",))
    )
    assert kept < 200 < 10_000 < plain
