"""Tests of the watchdog: it ends a process that hangs, and no other."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

START = """
import ctypes, threading, time
from emotion_batch.worker.watchdog import watched
"""


@pytest.mark.parametrize(
    ("script", "is_ended"),
    [
        pytest.param(
            """
            with watched(0.2):
                # In C, and with the interpreter's lock held.
                ctypes.PyDLL(None).sleep(20)
            """,
            True,
            id="hangs with the lock",
        ),
        pytest.param(
            """
            with watched(0.3) as beat:
                for _ in range(12):
                    time.sleep(0.1)
                    beat()
            time.sleep(0.8)
            """,
            False,
            id="lives, and is let go",
        ),
        pytest.param(
            """
            def work():
                with watched(0.3) as beat:
                    while True:
                        time.sleep(0.05)
                        beat()
            threading.Thread(target=work, daemon=True).start()
            with watched(0.3):
                time.sleep(20)
            """,
            True,
            id="one thread of two hangs",
        ),
        pytest.param(
            """
            with watched(0.5) as beat:
                time.sleep(0.48)
                beat()
                # Silent for less than the deadline, but longer than what was left of the timer.
                for _ in range(4):
                    time.sleep(0.45)
                    beat()
            """,
            False,
            id="slow and regular",
        ),
        pytest.param(
            """
            def work():
                with watched(0.1) as beat:
                    beat()
            with watched(2) as beat:
                thread = threading.Thread(target=work)
                thread.start()
                thread.join()
                time.sleep(1)
            """,
            False,
            id="a shorter deadline was another thread's",
        ),
    ],
)
def test_a_process_that_hangs_ends(script: str, is_ended: bool) -> None:
    """Silence for two deadlines ends the process with its stack on stderr, whatever other threads do."""
    command = [sys.executable, "-c", START + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, timeout=15, check=False)
    assert (done.returncode != 0) == is_ended
    assert (b"Timeout" in done.stderr) == is_ended
