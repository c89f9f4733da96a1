"""What the channels of a call cost, beside two mono files with the same samples: ``python -m benchmarks.channels``.

The calls are synthesised, in each of some formats, and heard in windows. CPU time of one thread, in alternating pairs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.measuring import ONE_THREAD, Figure, describe, ratio, render

_RATE_HZ, _CALL_S, _N_CALLS = 8_000, 60.0, 4
FORMATS = {
    "mu-law WAV": ("wav", "ULAW"),
    "16-bit WAV": ("wav", "PCM_16"),
    "FLAC": ("flac", "PCM_16"),
    "MP3": ("mp3", "MPEG_LAYER_III"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.channels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=15, help="pairs (15)")
    options = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, subtype) in FORMATS.items():
            calls, voices = Path(folder, suffix + subtype, "calls"), Path(folder, suffix + subtype, "voices")
            write_calls(calls, voices, suffix, subtype)
            apart, alone = zip(
                *((cost(calls, "each"), cost(voices, "mix")) for _ in range(options.rounds)), strict=True
            )
            figures.append(
                ratio(
                    f"{_N_CALLS} calls with --channels each, {name}",
                    "a mono file for each voice",
                    apart,
                    alone,
                    "<= 1.15",
                    "s",
                )
            )
    about = f"{_N_CALLS} calls of {_CALL_S:g} s at {_RATE_HZ} Hz, windows of 6 s"
    print(render({"archive": about, "about": describe(), "figures": [vars(one) for one in figures]}))


def write_calls(calls: Path, voices: Path, suffix: str, subtype: str) -> None:
    """Write calls of two voices on two channels, and each voice alone."""
    for folder in (calls, voices):
        folder.mkdir(parents=True)
    for number in range(_N_CALLS):
        generator = np.random.default_rng(number)
        seconds = np.arange(int(_CALL_S * _RATE_HZ)) / _RATE_HZ
        both = []
        for hertz in generator.uniform(90, 240, 2):
            voiced = sum(np.sin(2 * np.pi * hertz * k * seconds) / k for k in range(1, 9))
            turns = np.sin(2 * np.pi * seconds / generator.uniform(3, 9)) > 0
            both.append(0.1 * voiced * turns + 0.003 * generator.standard_normal(len(seconds)))
        soundfile.write(calls / f"{number}.{suffix}", np.stack(both, axis=1), _RATE_HZ, subtype=subtype)
        for channel, samples in enumerate(both):
            soundfile.write(voices / f"{number}-{channel}.{suffix}", samples, _RATE_HZ, subtype=subtype)


def cost(archive: Path, channels: str) -> float:
    """Return the CPU seconds of the features of an archive."""
    from emotion_batch.settings import Segments, VoicesSettings
    from emotion_batch.storage.archive import list_recordings
    from emotion_batch.worker.recordings import extract_rows

    listing = list_recordings(archive)
    (entries,) = listing.entries.to_batches()
    began = time.process_time()
    rows = extract_rows(entries, listing.folder, VoicesSettings(), Segments.windows(6.0).of_channels(channels))
    spent = time.process_time() - began
    assert rows.num_rows == 2 * _N_CALLS * _CALL_S / 6
    return spent


if __name__ == "__main__":
    os.environ |= ONE_THREAD
    main()
