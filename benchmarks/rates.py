"""What a recording costs at the rates that archives have, against the notebook's loop on the same recordings."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.measuring import Figure, children, in_turn, ratio
from emotion_batch.features.audio import resample
from emotion_batch.storage.archive import list_recordings

# None is that of the archive itself.
RATES_HZ = (None, 8_000, 16_000, 22_050, 44_100, 48_000)
_BLOCK = 160
# What extraction and a label from a recording may cost of the notebook's loop, where that was decided.
_EXTRACTION, _LABEL = {None: "<= 0.33"}, {None: "<= 0.45", 8_000: "<= 0.45", 16_000: "<= 0.45"}


def measure(archive: str, n_rounds: int) -> list[Figure]:
    """Return the figures of each rate: features by both recipes, and labels by the model that ships."""
    names = [name for name in list_recordings(archive).entries["file"].to_pylist() if not name.startswith("broken/")]
    generator = np.random.default_rng(0)
    chosen = [names[number] for number in generator.choice(len(names), min(2 * _BLOCK, len(names)), replace=False)]
    figures = []
    for rate in RATES_HZ:
        with tempfile.TemporaryDirectory() as folder:
            seconds = write(archive, chosen, rate, folder)
            figures += measure_rate(folder, "its own rate" if rate is None else f"{rate:,} Hz", rate, seconds, n_rounds)
    return figures


def write(archive: str, names: list[str], rate: int | None, folder: str) -> dict[str, float]:
    """Write recordings at a rate; return their durations in seconds by name."""
    seconds = {}
    for number, name in enumerate(names):
        samples, own = soundfile.read(Path(archive, name), dtype="float32", always_2d=True)
        mono, wanted = samples.mean(axis=1), own if rate is None else rate
        soundfile.write(Path(folder, f"{number}.wav"), np.clip(resample(mono, own, wanted), -1, 1), wanted, "PCM_16")
        seconds[f"{number}.wav"] = len(mono) / own
    return seconds


def measure_rate(folder: str, where: str, rate: int | None, seconds: dict[str, float], n_rounds: int) -> list[Figure]:
    """Return the figures of recordings that have one rate."""
    names = sorted(seconds)
    blocks = [np.roll(names, -37 * number)[:_BLOCK].tolist() for number in range(n_rounds)]
    kinds = (("notebook", folder), ("package", folder, "seed"), ("package", folder, "voices"), ("labels", folder))
    with children(*kinds) as processes:
        in_turn(processes, [names[:5]])
        theirs, seed, features, labels = (
            [cpu / len(block) * 1e3 for (cpu, _), block in zip(answers, blocks, strict=True)]
            for answers in in_turn(processes, blocks)
        )
    heard = [sum(min(seconds[name], 4.0) for name in block) / len(block) for block in blocks]
    speed = [one / (cpu / 1e3) for one, cpu in zip(heard, labels, strict=True)]
    loop = "the notebook's loop"
    return [
        ratio(f"features of `seed`, {where}", loop, seed, theirs, unit="ms CPU"),
        ratio(f"features of `voices`, {where}", loop, features, theirs, _EXTRACTION.get(rate, ""), unit="ms CPU"),
        ratio(f"a label from a recording, {where}", loop, labels, theirs, _LABEL.get(rate, ""), unit="ms CPU"),
        Figure(f"labels, {where}", "real time, a core", statistics.median(speed), unit="x"),
    ]
