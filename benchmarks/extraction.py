"""What a recording costs: this package's kernel against the notebook's loop, side by side in one process.

``python benchmarks/extraction.py [ARCHIVE] [--json]``; without an archive it synthesises one. CPU time of one thread, in
alternating blocks, so that both meet the same moods of the machine; the ratio is the median of the blocks' ratios.
"""

from __future__ import annotations

import os

for name in ("OPENBLAS", "OMP", "MKL", "NUMBA"):
    os.environ[f"{name}_NUM_THREADS"] = "1"

import argparse
import importlib.metadata
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np

from emotion_batch import synthesis
from emotion_batch.archive import Entry, list_recordings
from emotion_batch.extraction import extract_recording
from emotion_batch.settings import FeatureSettings, Segments

BLOCK = 50


def notebook(path: Path) -> np.ndarray:
    """Return a recording's features as the notebook's cell does."""
    samples, rate = librosa.load(path, duration=3, offset=0.5)
    return np.mean(librosa.feature.mfcc(y=samples, sr=rate, n_mfcc=40).T, axis=0)


def cpu_ms(function: Callable[[], object]) -> float:
    """Return the CPU milliseconds of one call."""
    start = time.process_time()
    function()
    return (time.process_time() - start) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", type=Path)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.archive is None:
            synthesis.write_archive(folder, n_words=10)
        report = measure(options.archive or Path(folder), options.blocks)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(f"{report['n_recordings']} recordings, {report['machine']}, {report['versions']}")
        print(f"notebook's loop   {report['notebook_ms']:.2f} ms of CPU a recording")
        print(f"this package      {report['package_ms']:.2f} ms of CPU a recording")
        print(f"ratio             {report['ratio']:.2f} (median of {report['n_blocks']} blocks)")
        print(f"features differ by at most {report['largest_difference']:.1e}")


def measure(archive: Path, n_blocks: int) -> dict[str, object]:
    """Return the figures of an archive whose recordings are read as local files."""
    settings, segments = FeatureSettings(), Segments()
    listing = list_recordings(archive)
    entries = [Entry(**row) for row in listing.entries.to_pylist()]
    rows = {entry: extract_recording(entry, listing.folder, settings, segments) for entry in entries[:BLOCK]}
    usable = [entry for entry, row in rows.items() if row.mfcc is not None]
    difference = max(float(np.abs(rows[one].mfcc - notebook(archive / one.file)).max()) for one in usable)
    rng = np.random.default_rng(0)
    healthy = [entry for entry in entries if not entry.file.startswith("broken/")]
    ours, theirs = [], []
    for _ in range(n_blocks):
        block = [healthy[number] for number in rng.choice(len(healthy), min(BLOCK, len(healthy)), replace=False)]
        theirs.append(cpu_ms(lambda some=block: [notebook(archive / one.file) for one in some]) / len(block))
        ours.append(
            cpu_ms(lambda some=block: [extract_recording(one, listing.folder, settings, segments) for one in some])
            / len(block)
        )
    return {
        "n_recordings": len(entries),
        "n_blocks": n_blocks,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in ("librosa", "numpy", "scipy", "soxr")},
        "notebook_ms": statistics.median(theirs),
        "package_ms": statistics.median(ours),
        "ratio": statistics.median(one / other for one, other in zip(ours, theirs, strict=True)),
        "largest_difference": difference,
    }


if __name__ == "__main__":
    main()
