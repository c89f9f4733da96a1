"""A whole extraction, from the command to the table, against the notebook's loop run three ways."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import ONE_THREAD, Figure, ratio

_PEERS = {
    "loop": "the notebook's loop as a script",
    "joblib": "the same under joblib, 2 processes",
    "datasets": "the same under `datasets.map`, 2 processes",
}


def measure(archive: str, n_rounds: int) -> list[Figure]:
    """Return the wall time of `emotion-batch extract` against each peer that is installed."""
    peers = [way for way in _PEERS if way == "loop" or importlib.util.find_spec(way)]
    seconds: dict[str, list[float]] = {way: [] for way in ("ours", *peers)}
    for number in range(n_rounds):
        for way in seconds if number % 2 else reversed(seconds):
            with tempfile.TemporaryDirectory() as folder:
                command = (
                    ["emotion_batch", "extract", archive, str(Path(folder, "table")), "--workers", "2", "--quiet"]
                    if way == "ours"
                    else ["benchmarks.peers", way, archive]
                )
                # What datasets has cached would be no work.
                environment = {**os.environ, **ONE_THREAD, "HF_HOME": folder}
                started = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-P", "-m", *command], check=True, env=environment, stdout=subprocess.DEVNULL
                )
                seconds[way].append(time.perf_counter() - started)
    return [
        ratio("`emotion-batch extract`, whole", _PEERS[way], seconds["ours"], seconds[way], "<= 1", "s")
        for way in peers
    ]
