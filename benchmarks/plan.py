"""``python -m benchmarks.plan TESS``: whether a run is over when `emotion-batch plan --by` says that it is.

Two archives, of TESS's own recordings: all of it twenty times over, and all of it among recordings of three hours, in
windows of three seconds. Prints what was said, what the run then took, and whether that was within the range; ends with
1 if it once was not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

_RATE_HZ = 22_050
_TILE_S = 60


@dataclass(frozen=True)
class Compared:
    """What was said of a run, and what it took, from the command to its end.

    Attributes
    ----------
    low_s, likely_s, high_s
        The range.
    measured_s
        What the run took.
    is_done
        What `--by` said of half an hour later.
    """

    low_s: float
    likely_s: float
    high_s: float
    measured_s: float
    is_done: str

    @property
    def is_inside(self) -> bool:
        """Whether the range holds it."""
        return self.low_s <= self.measured_s <= self.high_s


def write_copies(tess: Path, archive: Path, n_copies: int) -> None:
    """Write an archive that has all recordings so many times, as hard links."""
    for copy in range(n_copies):
        for path in sorted(tess.rglob("*.wav")):
            to = archive / f"{copy:02d}" / path.relative_to(tess)
            to.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, to)


def write_mix(tess: Path, archive: Path, n_long: int, hours: float) -> None:
    """Write an archive of all recordings and some long ones among them, which are one, as hard links."""
    write_copies(tess, archive, 1)
    first = archive / "long-00.wav"
    write_long(first, hours)
    for number in range(1, n_long):
        os.link(first, archive / f"long-{number:02d}.wav")


def write_long(path: Path, hours: float) -> None:
    """Write a WAV of so many hours: a minute of a tone in noise, again and again."""
    seconds = np.arange(_TILE_S * _RATE_HZ) / _RATE_HZ
    noise = np.random.default_rng(0).standard_normal(len(seconds))
    swell = 1 + np.sin(2 * np.pi * seconds / 3)
    tile = (3_000 * swell * np.sin(2 * np.pi * 220 * seconds) + 300 * noise).astype("<i2").tobytes()
    n_tiles = round(hours * 3_600 / _TILE_S)
    n_bytes = n_tiles * len(tile)
    with path.open("wb") as stream:
        stream.write(b"RIFF" + (36 + n_bytes).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little"))
        for value, size in ((1, 2), (1, 2), (_RATE_HZ, 4), (2 * _RATE_HZ, 4), (2, 2), (16, 2)):
            stream.write(value.to_bytes(size, "little"))
        stream.write(b"data" + n_bytes.to_bytes(4, "little"))
        for _ in range(n_tiles):
            stream.write(tile)


def compare(archive: Path, table: Path, *options: str, n_workers: int = 2, sample_s: float = 10.0) -> Compared:
    """Plan an extraction, do it, and return what was said and what it took."""
    command = [sys.executable, "-P", "-m", "emotion_batch"]
    by = (datetime.now() + timedelta(minutes=30)).strftime("%H:%M")
    words = [
        "plan",
        archive,
        "--extract",
        *options,
        "--workers",
        str(n_workers),
        "--sample",
        f"{sample_s:g}",
        "--by",
        by,
        "--json",
    ]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    (times,) = (one for one in said["times"] if one["workers"] == n_workers)
    words = ["extract", archive, table, *options, "--workers", str(n_workers), "--quiet"]
    started = time.perf_counter()
    subprocess.run([*command, *map(str, words)], capture_output=True, check=True)
    measured_s = time.perf_counter() - started
    shutil.rmtree(table)
    return Compared(times["low_s"], times["likely_s"], times["high_s"], measured_s, said["due"]["is_done"])


def main() -> int:
    """Compare, print, and return whether a run was outside its range."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tess", type=Path, help="folder with the recordings of TESS")
    parser.add_argument("--folder", type=Path, help="where to work, of the same filesystem (beside TESS)")
    parser.add_argument("--rounds", type=int, default=3, help="plans and runs of each archive (3)")
    parser.add_argument("--copies", type=int, default=20, help="times that the first has all of TESS (20)")
    parser.add_argument("--long", type=int, default=12, help="recordings of three hours in the second (12)")
    options = parser.parse_args()
    n_outside = 0
    print("| archive | likely | range | measured | of likely | inside |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=options.folder or options.tess.parent) as folder:
        copies, mix = Path(folder, "copies"), Path(folder, "mix")
        write_copies(options.tess, copies, options.copies)
        write_mix(options.tess, mix, options.long, hours=3.0)
        for name, archive, words in (
            (f"TESS times {options.copies}", copies, ()),
            (f"TESS and {options.long} recordings of 3 h, windows of 3 s", mix, ("--window", "3")),
        ):
            for _ in range(options.rounds):
                one = compare(archive, Path(folder, "table"), *words)
                n_outside += not one.is_inside
                print(
                    f"| {name} | {one.likely_s:.1f} s | {one.low_s:.1f} to {one.high_s:.1f} s | {one.measured_s:.1f} s "
                    f"| {one.measured_s / one.likely_s:.2f} | {'yes' if one.is_inside else '**no**'} |",
                    flush=True,
                )
    return int(n_outside > 0)


if __name__ == "__main__":
    sys.exit(main())
