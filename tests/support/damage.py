"""What tests do to tables and runs: flipped bits, killed processes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import psutil


def flip_bit(path: Path, random: np.random.Generator, start: int = 0, stop: int | None = None) -> int:
    """Flip one bit of a file, in bytes from `start` to before `stop`; return where."""
    data = bytearray(path.read_bytes())
    at = int(random.integers(start, len(data) if stop is None else stop))
    data[at] ^= 1 << int(random.integers(8))
    path.write_bytes(data)
    return at


def find_footer(part: Path) -> int:
    """Return where the footer of a Parquet file begins."""
    data = part.read_bytes()
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def seal_part(part: Path) -> None:
    """Give a part that was written again, with the metadata of the one before, the digests of its own bytes."""
    data, key = bytearray(part.read_bytes()), b"emotion_batch_sha256\x18\x80\x01"
    footer, at = find_footer(part), data.rindex(key) + len(key)
    data[at : at + 128] = b"0" * 128
    data[at : at + 64] = hashlib.sha256(data[:footer]).hexdigest().encode()
    data[at + 64 : at + 128] = hashlib.sha256(data[footer:]).hexdigest().encode()
    part.write_bytes(data)


def worker_processes(driver: psutil.Process) -> list[psutil.Process]:
    """Return the workers of a local cluster: the one child of its process that forks has forked them."""
    return [
        worker
        for cluster in driver.children()
        for child in cluster.children()
        if "forkserver" in str(child.cmdline())
        for worker in child.children()
    ]


def victims(driver: psutil.Process, which: str) -> list[psutil.Process]:
    """Return the processes to kill."""
    if which == "driver":
        return [driver]
    if which == "scheduler":
        # The nannies are in the same process, and the workers end with it.
        return driver.children()[:1]
    workers = sorted(worker_processes(driver), key=lambda process: process.pid)
    return workers if which == "all workers" else workers[:1]
