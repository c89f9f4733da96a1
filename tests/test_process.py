"""Tests of what a process that computes is set to."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from emotion_batch import process


def n_blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blas_has_one_thread_as_long_as_any_task_computes() -> None:
    """Of tasks in several threads the first limits BLAS and the last one lifts it."""
    before = n_blas_threads()
    inside, leave = threading.Event(), threading.Event()

    def task() -> None:
        with process.one_thread():
            inside.set()
            leave.wait(30)

    other = threading.Thread(target=task)
    other.start()
    assert inside.wait(30)
    with process.one_thread():
        assert n_blas_threads() == {1}
    assert n_blas_threads() == {1}
    leave.set()
    other.join()
    assert n_blas_threads() == before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_a_kept_heap_takes_no_fresh_pages() -> None:
    """Under the nanny's setting, arrays that come and go fault in once and not each time."""
    program = """
import resource, sys
import numpy as np
from emotion_batch import process
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
