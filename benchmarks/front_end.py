"""Whether the features of ``voices`` are the same at every rate, beside silence and in windows, and how right the fundamental is.

``python -m benchmarks.front_end TESS VOICES`` takes two archives of speech, unpacked. Praat is the referee of the fundamental, with the
same range and frames. The recordings are drawn at random, with seed 0.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import parselmouth
import soundfile

from benchmarks.measuring import Figure, children, describe, in_turn, ratio, render
from emotion_batch.features import logmel_pitch
from emotion_batch.features.audio import resample
from emotion_batch.features.logmel_pitch import Heard, compute_sequence, find_centres, hear, make_inputs
from emotion_batch.settings import VoicesSettings

SETTINGS = VoicesSettings()
RATES_HZ = (44_100, 24_414, 22_050, 16_000, 8_000)
_VOICED = 0.4
_SILENCE_S = 2.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.front_end", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", nargs="+", help="folders of recordings")
    parser.add_argument("--recordings", type=int, default=200, help="recordings of each (200)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of what is timed (15)")
    options = parser.parse_args()
    figures: list[Figure] = []
    for archive in options.archives:
        sounds = list(read(archive, options.recordings))
        name = Path(archive).name
        figures += judge_rates(name, sounds)
        figures += judge_silence(name, sounds)
        figures += judge_fundamental(name, sounds)
    figures += time_windows(sounds, options.rounds)
    print(
        render({"archive": ", ".join(options.archives), "about": describe(), "figures": [vars(one) for one in figures]})
    )


Sound = tuple[np.ndarray, int]


def read(archive: str, n_recordings: int) -> Iterator[Sound]:
    """Yield the first four seconds of some recordings, and their rates."""
    paths = sorted(path for suffix in ("wav", "flac") for path in Path(archive).rglob(f"*.{suffix}"))
    for number in np.random.default_rng(0).choice(len(paths), min(n_recordings, len(paths)), replace=False):
        samples, rate = soundfile.read(paths[number], dtype="float32", always_2d=True)
        yield samples.mean(axis=1)[: 4 * rate], rate


def judge_rates(name: str, sounds: Sequence[Sound]) -> list[Figure]:
    """Return how alike features at other rates are to those at 48 kHz, over active frames."""
    figures = []
    for rate in RATES_HZ:
        cosines, right = [], []
        for samples, own in sounds:
            # What the recording does not hold cannot be alike: bands end where its own rate does.
            highest_hz = 3_800 if rate == 8_000 else min(0.95 * own / 2, SETTINGS.fmax_hz)
            is_there = find_centres(SETTINGS) < highest_hz
            original = resample(samples, own, 48_000)
            one, other = (
                compute_sequence(resample(original, 48_000, hertz), hertz, SETTINGS) for hertz in (48_000, rate)
            )
            n_frames = min(len(one.f0_hz), len(other.f0_hz))
            first, second = (normalise(hear_all(sequence), is_there)[:n_frames] for sequence in (one, other))
            is_active = first[:, -1].astype(bool) & second[:, -1].astype(bool)
            first, second = first[is_active, :-1], second[is_active, :-1]
            lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
            cosines.append((first * second).sum(axis=1) / lengths)
            is_voiced = (one.voicing[:n_frames] > _VOICED) & (other.voicing[:n_frames] > _VOICED) & is_active
            right.append(np.abs(other.f0_hz[:n_frames] / one.f0_hz[:n_frames] - 1)[is_voiced] < 0.05)
        limit = ">= 0.99" if rate == 8_000 else ">= 0.995"
        what = f"{name}: bands at {rate:,} Hz" + (", below 3.8 kHz" if rate == 8_000 else "")
        figures.append(Figure(what, "at 48 kHz, cosine by frame", float(np.median(np.concatenate(cosines))), limit))
        share = float(np.concatenate(right).mean())
        figures.append(Figure(f"{name}: F0 at {rate:,} Hz", "at 48 kHz, within 5 %", share, ">= 0.98"))
    return figures


def hear_all(sequence: logmel_pitch.Sequence) -> Heard:
    """Return what is heard of a segment, with its frames of silence."""
    heard = hear(sequence)
    bands = sequence.logmel / np.float32(256)
    energy = np.log(np.exp(bands).sum(axis=1))
    return heard._replace(bands=bands, energy=energy)


def normalise(heard: Heard, is_there: np.ndarray) -> np.ndarray:
    """Return some bands as a network sees them, without their mean over active frames, and last which frames are active."""
    is_active = heard.energy > heard.loudest - 5
    bands = np.maximum(heard.bands[:, is_there], heard.loudest - 14)
    return np.column_stack([bands - bands[is_active].mean(axis=0), is_active])


def judge_silence(name: str, sounds: Sequence[Sound]) -> list[Figure]:
    """Return how many frames a network sees more with silence on either side, and how much those differ that it saw before."""
    more, differences = [], []
    for samples, rate in sounds:
        silence = np.zeros(round(_SILENCE_S * rate), np.float32)
        # On the recording's own frames, which are a whole number of samples apart in a second.
        plain = make_inputs(hear(compute_sequence(samples, rate, SETTINGS)))
        laid = make_inputs(hear(compute_sequence(np.concatenate([silence, samples, silence]), rate, SETTINGS)))
        more.append(len(laid) - len(plain))
        shift = min(range(30), key=lambda one: distance(plain, laid, one))
        differences.append(distance(plain, laid, shift))
    return [
        Figure(f"{name}: frames seen with 2 s of silence", "without", statistics.median(more), unit="more"),
        Figure(f"{name}: inputs with 2 s of silence", "without, mean difference", float(np.quantile(differences, 0.9))),
    ]


def distance(plain: np.ndarray, laid: np.ndarray, shift: int) -> float:
    """Return the mean difference of inner frames, of which the second has `shift` more before."""
    n_frames = min(len(plain), len(laid) - shift)
    return float(np.abs(laid[shift : shift + n_frames] - plain[:n_frames])[12:-12].mean()) if n_frames > 24 else 9.0


def judge_fundamental(name: str, sounds: Sequence[Sound]) -> list[Figure]:
    """Return how the fundamental compares with Praat's autocorrelation method."""
    near, false = [], []
    for samples, rate in sounds:
        found = compute_sequence(samples, rate, SETTINGS)
        heard = hear_all(found)
        sound = parselmouth.Sound(samples.astype(np.float64), rate)
        pitch = sound.to_pitch_ac(
            time_step=SETTINGS.hop_s, pitch_floor=SETTINGS.f0_min_hz, pitch_ceiling=SETTINGS.f0_max_hz
        )
        times = np.arange(len(found.f0_hz)) * SETTINGS.hop_s + SETTINGS.window_s / 2
        theirs = np.array([pitch.get_value_at_time(time_s) for time_s in times])
        is_voiced = (found.voicing > _VOICED) & (heard.energy > heard.loudest - 6)
        is_both = is_voiced & np.isfinite(theirs)
        near.append(np.abs(found.f0_hz[is_both] / theirs[is_both] - 1) < 0.05)
        false.append(~np.isfinite(theirs[is_voiced]))
    share, extra = (float(np.concatenate(values).mean()) for values in (near, false))
    return [
        Figure(f"{name}: F0 where both are voiced", "Praat, within 5 %", share, ">= 0.96"),
        Figure(f"{name}: voiced frames that are not", "Praat", extra, "<= 0.17"),
    ]


def time_windows(sounds: Sequence[Sound], n_rounds: int) -> list[Figure]:
    """Return what windows of 4 s every 2 s cost, against windows end to end, of recordings of half a minute."""
    rate = sounds[0][1]
    talk = np.concatenate([samples for samples, own in sounds if own == rate])
    with tempfile.TemporaryDirectory() as folder:
        n_samples = 30 * rate
        names = [f"{number}.wav" for number in range(min(8, len(talk) // n_samples))]
        for number, name in enumerate(names):
            part = talk[number * n_samples : (number + 1) * n_samples]
            soundfile.write(Path(folder, name), np.clip(part, -1, 1), rate, "PCM_16")
        with children(("windows", folder, "4", "2"), ("windows", folder, "4", "4")) as processes:
            in_turn(processes, [names[:1]])
            overlapping, plain = ([cpu * 1e3 for cpu, _ in one] for one in in_turn(processes, [names] * n_rounds))
    what = f"extraction with `--window 4 --hop 2`, {rate:,} Hz"
    return [ratio(what, "`--window 4`", overlapping, plain, "<= 1.3", "ms CPU")]


if __name__ == "__main__":
    main()
