"""Fits the speech detector, in a quarter of an hour on one core: ``python models/speech.py TESS VOICES``.

TESS and VOICES are the folders of `train.py`. The detector is written into the package (`emotion_batch/inference/speech.json`). A table
compares it with the rules that it replaces: how much of each kind of sound is called speech, and how much speech of each corpus is kept.
Each kind or corpus is left out of the fit and of the threshold that it is judged with. But the size of the network, its shrinkage and
`KEPT` were chosen among four by a table like this one.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import sounds
from msgspec.structs import asdict, replace
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

import emotion_batch
from emotion_batch.features import logmel_pitch
from emotion_batch.inference import domain, speech
from emotion_batch.settings import VoicesSettings

SETTINGS = VoicesSettings()
CORPORA = ("tess", "ravdess", "emodb", "nemo")
N_RECORDINGS, N_SOUNDS = 300, 250
# The share of speech in left-out corpora that the threshold keeps, over all conditions together.
KEPT = 0.97
# Number of networks, and hidden units of each. The detector is their mean, which has fewer errors than one larger network.
N_NETWORKS, N_HIDDEN, SHRINKAGE, N_STEPS = 2, 16, 10.0, 120

Sounds = Iterator[tuple[str, tuple[npt.NDArray[np.floating], int]]]


class Rows(NamedTuple):
    """Summaries of segments, each with its corpus or kind, and its condition (``sound`` if it is not speech)."""

    summaries: npt.NDArray[np.float32]
    group: npt.NDArray[np.str_]
    condition: npt.NDArray[np.str_]

    @property
    def is_speech(self) -> npt.NDArray[np.bool_]:
        """Which rows are speech."""
        return self.condition != "sound"

    def choose(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        """Return some of the rows."""
        return Rows(*(one[chosen] for one in self))


def main() -> None:
    """Gather rows, judge each corpus and kind while it is left out, fit on all rows, and write the detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tess", type=Path)
    parser.add_argument("voices", type=Path)
    parser.add_argument("--no-table", action="store_true", help="Write the detector without judging it")
    options = parser.parse_args()
    rows = gather({name: options.tess if name == "tess" else options.voices / name for name in CORPORA})
    print(f"{rows.is_speech.sum()} rows of speech, {(~rows.is_speech).sum()} of other sounds")
    if not options.no_table:
        judge(rows)
    detector = replace(fit(rows), threshold=find_threshold(rows))
    write(detector)
    print(
        f"detector written: it keeps {detector.is_speech(rows.summaries)[rows.is_speech].mean():.3f} of the speech that it learnt from"
    )


def gather(archives: dict[str, Path]) -> Rows:
    """Return rows of speech in several conditions, of synthetic sounds, and of spoilt speech."""
    summaries, group, condition = [], [], []

    def add(name: str, what: str, samples: npt.NDArray[np.floating], rate: int) -> None:
        segment = samples[: round(SETTINGS.segments.duration_s * rate)].astype(np.float32)
        heard = logmel_pitch.hear(logmel_pitch.compute_sequence(segment, rate, SETTINGS))
        summaries.append(domain.summarise([heard], SETTINGS)[0])
        group.append(name)
        condition.append(what)

    for corpus, folder in archives.items():
        paths = sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac"))
        step = -(-len(paths) // N_RECORDINGS)
        for number, path in enumerate(paths[::step]):
            rng = np.random.default_rng([number, *corpus.encode()])
            samples, rate = soundfile.read(path)
            samples = samples if samples.ndim == 1 else samples.mean(axis=1)
            for what, recording in vary(samples, rate, rng):
                add(corpus, what, *recording)
            kinds = list(sounds.SPOILT)
            # Each recording is spoilt in two ways.
            for kind in (kinds[number % len(kinds)], kinds[(number + 2) % len(kinds)]):
                add(kind, "sound", *sounds.record(sounds.SPOILT[kind](samples, rate, rng), rate, rng))
    for kind in sounds.KINDS:
        for seed in range(N_SOUNDS):
            add(kind, "sound", *sounds.make(kind, seed))
    return Rows(np.array(summaries), np.array(group), np.array(condition))


def vary(samples: npt.NDArray[np.float64], rate: int, rng: np.random.Generator) -> Sounds:
    """Yield a recording of speech in all conditions in which the detector should find speech."""
    yield "clean", (samples, rate)
    yield "telephone", sounds.telephone(samples, rate, rng)
    yield "noise 10 dB", (sounds.add_noise(samples, rate, rng, 10), rate)
    yield "noise 5 dB", (sounds.add_noise(samples, rate, rng, 5), rate)
    yield "room", (sounds.add_room(samples, rate, rng), rate)
    yield "window", (sounds.cut_loud(samples, rate, rng, rng.uniform(0.8, 2.5)), rate)
    yield "recorded", sounds.record(sounds.cut_loud(samples, rate, rng, rng.uniform(1, 4)), rate, rng)
    # This sounds almost like another speaker: slower and lower, or faster and higher.
    other = sounds.play(samples, rng.uniform(0.85, 1.2))
    yield "other voice", sounds.record(other, rate, rng)
    word = sounds.cut_loud(sounds.play(samples, rng.uniform(0.85, 1.2)), rate, rng, rng.uniform(0.6, 1.2))
    yield "word", sounds.record(sounds.fade(word, rate), rate, rng)


def weigh(rows: Rows) -> npt.NDArray[np.float64]:
    """Return weights with which speech and other sounds count equally, and so do all corpora, and all kinds."""
    weights = np.zeros(len(rows.group))
    for side in (rows.is_speech, ~rows.is_speech):
        names, number, counts = np.unique(rows.group[side], return_inverse=True, return_counts=True)
        weights[side] = 1 / counts[number] / len(names)
    return weights / weights.mean()


def fit(rows: Rows) -> speech.Detector:
    """Return the mean of some networks as one detector, with the threshold 0, at which speech is as likely as not."""
    weights = weigh(rows)
    centre = np.average(rows.summaries.astype(np.float64), axis=0, weights=weights)
    scale = np.sqrt(np.average((rows.summaries - centre) ** 2, axis=0, weights=weights))
    inputs = np.clip((rows.summaries - centre) / scale, -speech.FARTHEST, speech.FARTHEST)
    networks = []
    for seed in range(N_NETWORKS):
        network = MLPClassifier(
            (N_HIDDEN,), activation="tanh", solver="lbfgs", alpha=SHRINKAGE, max_iter=N_STEPS, random_state=seed
        )
        with warnings.catch_warnings():
            # It is stopped early on purpose, because the last steps learn single rows.
            warnings.simplefilter("ignore", ConvergenceWarning)
            networks.append(network.fit(inputs, rows.is_speech, sample_weight=weights))
    return speech.Detector(
        centre=centre,
        scale=scale,
        hidden=np.hstack([one.coefs_[0] for one in networks]),
        hidden_bias=np.concatenate([one.intercepts_[0] for one in networks]),
        output=np.concatenate([one.coefs_[1][:, 0] for one in networks]) / N_NETWORKS,
        threshold=-float(np.mean([one.intercepts_[1][0] for one in networks])),
    )


def find_threshold(rows: Rows, corpora: tuple[str, ...] = CORPORA) -> float:
    """Return the threshold that keeps the share `KEPT` of the speech of a left-out corpus, on average over the corpora."""
    limits = []
    for corpus in corpora:
        is_left_out = rows.group == corpus
        left_out, fitted = rows.choose(is_left_out), fit(rows.choose(~is_left_out))
        limits.append(np.quantile(fitted.score(left_out.summaries), 1 - KEPT))
    return float(np.mean(limits))


def judge(rows: Rows) -> None:
    """Print the share called speech of each left-out kind, and the share kept of each left-out corpus."""
    print(f"{'kind left out':16}{'rules':>8}{'now':>8}   (called speech)")
    shares = []
    for kind in np.unique(rows.group[~rows.is_speech]):
        shares.append([found.mean() for found in judge_group(rows, kind, CORPORA)])
        print(f"{kind:16}{shares[-1][0]:8.3f}{shares[-1][1]:8.3f}", flush=True)
    print("{:16}{:8.3f}{:8.3f}".format("all", *np.mean(shares, axis=0)))
    print(f"{'corpus left out':16}{'condition':16}{'rules':>8}{'now':>8}   (kept)")
    for corpus in CORPORA:
        by_rules, now = judge_group(rows, corpus, tuple(name for name in CORPORA if name != corpus))
        condition = rows.condition[rows.group == corpus]
        for one in dict.fromkeys(condition):
            chosen = condition == one
            print(f"{corpus:16}{one:16}{by_rules[chosen].mean():8.3f}{now[chosen].mean():8.3f}", flush=True)


def judge_group(
    rows: Rows, group: str, corpora: tuple[str, ...]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which rows of a group are speech by the rules, and by a detector that never saw the group."""
    is_left_out = rows.group == group
    others, left_out = rows.choose(~is_left_out), rows.summaries[is_left_out]
    detector = replace(fit(others), threshold=find_threshold(others, corpora))
    return judge_by_rules(left_out), detector.is_speech(left_out)


def judge_by_rules(summaries: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which rows are speech by the five limits that the detector replaces: voicing, pitch, modulation and bandwidth."""
    # These measures are voiced and held share, deviation of depth, bands, and spectral deviation, in this order.
    voiced, held, depth, bands, deviation = summaries[:, [29, 32, 34, 36, 37]].T
    return (voiced >= 0.3) & (held <= 0.6) & (depth >= 1.0) & (deviation >= 2.5) & (bands >= math.log(4.0))


def write(detector: speech.Detector) -> None:
    """Write the detector into the package, in six digits."""
    kept = {
        name: np.vectorize(lambda one: float(f"{one:.6g}"))(value).tolist() for name, value in asdict(detector).items()
    }
    path = Path(emotion_batch.__file__).with_name("inference") / speech.FILE
    path.write_text(json.dumps(kept, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
