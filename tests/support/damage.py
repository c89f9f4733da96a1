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


def victims(driver: psutil.Process, which: str) -> list[psutil.Process]:
    """Return the processes to kill: of a local cluster, a worker is a child of what the driver started."""
    if which == "driver":
        return [driver]
    started = sorted(driver.children(), key=lambda process: process.pid)
    if which == "scheduler":
        return started[:1]
    workers = [
        child for nanny in started[1:] for child in nanny.children() if "resource_tracker" not in str(child.cmdline())
    ]
    return workers if which == "all workers" else workers[:1]
