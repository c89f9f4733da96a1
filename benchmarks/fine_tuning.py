"""Measure what fine-tuning gains on other speakers: ``python -m benchmarks.fine_tuning TESS VOICES``; half an hour on one core.

One corpus is held out, and a model is trained on the other three. Each repetition draws recordings of half of the held-out
corpus's speakers, trains the model further on them by `train --from`, and judges it before and after on the other half.
TESS and VOICES are what `models/train.py` takes.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

import emotion_batch
from emotion_batch.settings import VoicesSettings
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.table import require_features
from emotion_batch.training.data import Dataset, read_dataset
from emotion_batch.training.splits import Integers
from models.train import LICENCES, WORDS


def main() -> None:
    """Print the unweighted average recall of each repetition before and after, and the mean gain with its interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tess", type=Path, help="TESS, unpacked")
    parser.add_argument("voices", type=Path, help="folder with the folders ravdess, emodb and nemo")
    parser.add_argument("--held-out", choices=tuple(LICENCES), default="emodb", help="corpus to adapt to (emodb)")
    parser.add_argument(
        "--from", dest="bundle", help="bundle that has not heard this corpus; by default one is trained"
    )
    parser.add_argument("--epochs", type=int, help="epochs of that training (the recipe's)")
    parser.add_argument("--repetitions", type=int, default=20, help="how often recordings are drawn (20)")
    parser.add_argument("--recordings", type=int, default=100, help="recordings to learn from each time (100)")
    parser.add_argument("--folder", type=Path, help="keeps feature tables and the model for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        archives = {name: options.tess if name == "tess" else options.voices / name for name in LICENCES}
        bundle = options.bundle or train_others(archives, options.held_out, folder, options.epochs)
        table = extract(archives, options.held_out, folder)
        data = read_labels(table, options.held_out)
        found = []
        for number in range(options.repetitions):
            learnt, judged = draw(data, options.recordings, number)
            before, after = repeat(bundle, table, data, learnt, judged, Path(scratch))
            found.append((before, after))
            sizes = f"{len(learnt)} recordings learnt from, {len(judged)} of other speakers judged"
            print(f"{options.held_out}, repetition {number}: UAR {before:.3f} to {after:.3f} ({sizes})", flush=True)
    say(options.held_out, np.array(found))


def extract(archives: dict[str, Path], name: str, folder: Path) -> Path:
    """Return the feature table of a corpus."""
    emotion_batch.extract(archives[name], folder / name, settings=VoicesSettings())
    return folder / name


def train_others(archives: dict[str, Path], held_out: str, folder: Path, epochs: int | None) -> Path:
    """Return the bundle of a model that has heard all corpora but one."""
    bundle = folder / f"without-{held_out}"
    names = [name for name in archives if name != held_out]
    tables = [extract(archives, name, folder) for name in names]
    if not (bundle / "card.json").exists():
        settings = emotion_batch.TrainingSettings(labels=names, label_map=WORDS, held_out=0, max_folds=0, epochs=epochs)
        emotion_batch.train(tables, bundle, settings=settings)
    return bundle


def read_labels(table: Path, corpus: str) -> Dataset:
    """Return the labels of a corpus, without its features."""
    place = Folder.of(table)
    info = require_features(place)
    return read_dataset(place, info, sorted(Manifest(place).shards), corpus, None, label_map=WORDS)


def draw(data: Dataset, n_recordings: int, seed: int) -> tuple[Integers, Integers]:
    """Return rows of half of the speakers, drawn, and all rows of the others."""
    random = np.random.default_rng(seed)
    speakers = random.permutation(sorted(set(data.speakers.tolist())))
    is_heard = np.isin(data.speakers, speakers[: len(speakers) // 2])
    heard = np.flatnonzero(is_heard)
    return random.choice(heard, min(n_recordings, len(heard)), replace=False), np.flatnonzero(~is_heard)


def repeat(
    bundle: str | Path, table: Path, data: Dataset, learnt: Integers, judged: Integers, scratch: Path
) -> tuple[float, float]:
    """Return the unweighted average recall on some rows before and after a training on others."""
    sources = []
    for name, rows in (("learnt", learnt), ("judged", judged)):
        sources.append(f"table:{scratch / name}.csv")
        with open(scratch / f"{name}.csv", "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "emotion", "speaker"])
            writer.writerows(
                [data.files[row].as_py(), data.labels[data.targets[row]], data.speakers[row]] for row in rows.tolist()
            )
    settings = emotion_batch.TrainingSettings(labels=sources[0], held_out=0, max_folds=0)
    emotion_batch.train(table, scratch / "further", settings=settings, from_bundle=bundle, force=True)
    before, after = (
        emotion_batch.evaluate(one, table, labels=sources[1], robustness=0).figures["uar"]
        for one in (bundle, scratch / "further")
    )
    return before, after


def say(corpus: str, found: np.ndarray) -> None:
    """Print the means, and the gain with a 95 % interval of Student's t over the repetitions."""
    gains = found[:, 1] - found[:, 0]
    before, after = found.mean(axis=0)
    print(f"{corpus}, mean of {len(found)}: UAR {before:.3f} to {after:.3f}, gain {gains.mean():+.3f}", end="")
    if len(gains) > 1:
        low, high = stats.t.interval(0.95, len(gains) - 1, gains.mean(), stats.sem(gains))
        print(f", 95 % {low:+.3f} to {high:+.3f}; better in {np.sum(gains > 0)} of {len(gains)}", end="")
    print()


if __name__ == "__main__":
    main()
