"""Whether extraction costs more CPU than in another checkout, for ratios near 1: two processes, block by block in turn.

    python -m benchmarks.against OTHER_CHECKOUT FOLDER [--pairs N] [--recipe seed|voices]

It prints the median of the ratios of CPU time, this checkout to the other, and an interval that holds the true median with a
probability of 95 %, by the order of the ratios alone. A limit inside the interval is met.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import ONE_THREAD

# Recordings of a block, about half a second of work.
_BLOCK = 400
_CHILD = """
import json, sys, time
import pyarrow as pa
from emotion_batch.worker import process, recordings as rows
from emotion_batch.storage.archive import list_recordings
from emotion_batch.settings import FeatureSettings, VoicesSettings
process.settle()
settings = {"seed": FeatureSettings, "voices": VoicesSettings}[sys.argv[2]]()
listing = list_recordings(sys.argv[1])
entries = listing.entries.combine_chunks().to_batches()[0]
for line in sys.stdin:
    start, length = json.loads(line)
    block = entries.take(pa.array([(start + k) % len(entries) for k in range(length)]))
    began = time.process_time()
    found = rows.extract_rows(block, listing.folder, settings, settings.segments)
    cost = time.process_time() - began
    print(json.dumps([cost, found.num_rows]), flush=True)
"""


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return two of the ratios between which the true median lies with a probability of 95 % or more.

    How many ratios lie below the median is binomial: https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval.
    """
    n, ordered = len(ratios), sorted(ratios)
    below, k = 0.0, 0
    while (below := below + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    first = max(0, k - 1)
    return ordered[first], ordered[n - 1 - first]


def measure(checkouts: Sequence[Path], archive: str, recipe: str, n_pairs: int) -> list[float]:
    """Return the ratios of CPU time of the first checkout to the second, block by block."""
    children = []
    for checkout in checkouts:
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.fspath(checkout)}
        command = [sys.executable, "-P", "-c", _CHILD, archive, recipe]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True))
    ratios = []
    try:
        # The first pair is to warm up.
        for number in range(-1, n_pairs):
            costs = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                child = children[which]
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(f"{json.dumps([(number + 1) * _BLOCK, _BLOCK])}\n")
                child.stdin.flush()
                costs[which] = json.loads(child.stdout.readline())[0]
            if number >= 0:
                ratios.append(costs[0] / costs[1])
    finally:
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
            child.wait()
    return ratios


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    parser.add_argument("archive", metavar="FOLDER")
    parser.add_argument("--pairs", type=int, default=41)
    parser.add_argument("--recipe", choices=("seed", "voices"), default="seed")
    options = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    ratios = measure((here, options.other.resolve()), options.archive, options.recipe, options.pairs)
    low, high = interval(ratios)
    print(f"{options.recipe}: {statistics.median(ratios):.4f} ({low:.4f} to {high:.4f}, {len(ratios)} pairs)")


if __name__ == "__main__":
    main()
