"""Prediction against Keras, labelling against extraction, and the memory of a worker that labels."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks.measuring import Figure, children, in_turn, ratio

_ROWS = 4_096
_BATCH_SIZES = (32, 512, 1_024)


def measure(archive: str, bundle: str, n_rounds: int) -> list[Figure]:
    """Return the figures of labelling with a bundle."""
    with children(("executable", bundle), *(("keras", bundle, size) for size in _BATCH_SIZES)) as processes:
        in_turn(processes, [_ROWS])
        ours, *theirs = in_turn(processes, [_ROWS] * n_rounds)
    rates = [[_ROWS / cpu for cpu, _ in answers] for answers in (ours, *theirs)]
    # Of its batch sizes, the one at which Keras is quickest.
    quickest, size = max(zip(rates[1:], _BATCH_SIZES, strict=True), key=lambda side: sorted(side[0])[len(side[0]) // 2])
    with children(("shards", archive, bundle)) as (process,):
        pairs = [[process.do((job, [0])) for job in ("extract", "label")] for _ in range(n_rounds + 1)][1:]
    extraction, labelling = ([pair[which][0] for pair in pairs] for which in range(2))
    return [
        ratio(
            "rows labelled, a second and core",
            f"`model.predict`, batches of {size}",
            rates[0],
            quickest,
            ">= 2",
            "rows/s",
        ),
        ratio(
            "a shard labelled from recordings", "the same shard extracted", labelling, extraction, "<= 1.15", "s CPU"
        ),
        Figure("peak memory (PSS) of a label worker", "from recordings", peak_mb(archive, bundle), "<= 300", unit="MB"),
    ]


def peak_mb(archive: str, bundle: str) -> float:
    """Label an archive with one worker; return the most memory that its worker and what that is forked from had, in MB."""
    peak_kb = 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "emotion_batch", "label", archive, str(Path(folder, "labels"))]
        driver = subprocess.Popen([*command, "--model", bundle, "--workers", "1", "--quiet"], stdout=subprocess.DEVNULL)
        while driver.poll() is None:
            with contextlib.suppress(psutil.Error, OSError):
                there = psutil.Process(driver.pid).children(recursive=True)
                # A worker shares memory with the process that it is forked from, so they count together.
                peak_kb = max(peak_kb, sum(pss_kb(one.pid) for one in there if "forkserver" in str(one.cmdline())))
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(0.02)
    if driver.returncode or not peak_kb:
        raise RuntimeError(f"label: expected a worker that labels, got exit code {driver.returncode}")
    return peak_kb / 1e3


def pss_kb(pid: int) -> int:
    """Return a process's share of the memory in use, in kB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
