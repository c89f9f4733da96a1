"""How right is the time left that a run shows? ``python -m benchmarks.progress``; some minutes.

Ten recordings of half an hour, in windows, lie among three hundred of three seconds, so that neither recordings nor shards say how far
a run is. From a third of the run on, each time left that was shown is compared with the time that the rest then took.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import soundfile

import emotion_batch

_RATE_HZ = 16_000
# A shorter rest is the end of the last shard, of which nothing is known before it is done.
_LEAST_S = 2.0


def main() -> None:
    """Make the archive, extract it once in windows, and print how far off the times left were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the long recordings (30)")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    seen: list[emotion_batch.Progress] = []
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "calls")
        write_archive(archive, options.minutes)
        summary = emotion_batch.extract(
            archive,
            Path(folder, "table"),
            segments=emotion_batch.Segments.windows(3, 1.5),
            workers=options.workers,
            watcher=emotion_batch.Watcher(on_progress=seen.append),
        )
    whole_s = seen[-1].elapsed_s
    late = [one for one in seen if one.elapsed_s >= whole_s / 3 and whole_s - one.elapsed_s >= _LEAST_S]
    ratios = [(one.left_s or 0.0) / (whole_s - one.elapsed_s) for one in late]
    is_right = [2 / 3 <= ratio <= 4 / 3 for ratio in ratios]
    low, high = np.quantile(ratios, (0.05, 0.95))
    print(f"{summary.counts.n_rows:,} windows, {summary.n_shards} shards in {whole_s:.0f} s, {len(late)} times left")
    print(f"shown / true: median {statistics.median(ratios):.2f}, 5 to 95 % {low:.2f} to {high:.2f}")
    print(f"within a third of the truth: {sum(is_right)} of {len(is_right)}")


def write_archive(folder: Path, minutes: float) -> None:
    """Write long and short recordings of noise that comes and goes."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(310):
        seconds = 60 * minutes if number % 31 == 0 else 3.0
        samples = generator.normal(0, 0.1, int(seconds * _RATE_HZ)).astype(np.float32)
        samples *= np.abs(np.sin(np.arange(len(samples)) / _RATE_HZ)).astype(np.float32)
        soundfile.write(folder / f"{number:03}.wav", samples, _RATE_HZ, subtype="PCM_16")


if __name__ == "__main__":
    main()
