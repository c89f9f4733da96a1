"""Measures the effect of telephones, noise and rooms on the recipe ``voices``: ``python -m models.robustness TESS VOICES``.

A model learns from three quarters of the speakers of each corpus, as in `train.py`, and is judged on recordings of the other speakers,
unchanged and changed. It takes some minutes, and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset

import emotion_batch
from emotion_batch.settings import VoicesSettings
from emotion_batch.training.evaluate import CONDITIONS
from emotion_batch.training.labels import read_labels
from models.train import WORDS

# One in this many speakers of a corpus is judged, on this many recordings of the corpus.
_EVERY, _N_RECORDINGS = 4, 150


def main() -> None:
    """Extract, train on some speakers, judge on the others, and print the effect of each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tess", type=Path)
    parser.add_argument("voices", type=Path)
    parser.add_argument("--epochs", type=int, help="Epochs of the training (default: the recipe's)")
    options = parser.parse_args()
    archives = {"tess": options.tess, **{name: options.voices / name for name in ("ravdess", "emodb", "nemo")}}
    with tempfile.TemporaryDirectory() as folder:
        tables = {name: Path(folder, name) for name in archives}
        for name, table in tables.items():
            emotion_batch.extract(archives[name], table, settings=VoicesSettings())
        labels = {name: write_labels(name, table, Path(folder)) for name, table in tables.items()}
        settings = emotion_batch.TrainingSettings(
            labels=[f"table:{learnt}" for learnt, _ in labels.values()], held_out=0, max_folds=0, epochs=options.epochs
        )
        bundle = Path(folder, "bundle")
        emotion_batch.train(list(tables.values()), bundle, settings=settings)
        found = {
            name: emotion_batch.evaluate(bundle, table, labels=f"table:{labels[name][1]}", robustness=_N_RECORDINGS)
            for name, table in tables.items()
        }
    print(f"| | {' | '.join(found)} | labels kept |")
    print(f"| --- |{' --- |' * (len(found) + 1)}")
    for condition in CONDITIONS:
        each = [(one.robustness or {})[condition] for one in found.values()]
        kept = np.average([one["kept"] for one in each], weights=[one["n_rows"] for one in each])
        print(f"| {condition} | {' | '.join(format(one['uar'], '.2f') for one in each)} | {kept:.2f} |")


def write_labels(name: str, table: Path, folder: Path) -> tuple[Path, Path]:
    """Write label tables of the speakers to learn from and of those to be judged; return both."""
    files = pyarrow.dataset.dataset(table, exclude_invalid_files=True).to_table(columns=["file"])["file"].to_pylist()
    labeller = read_labels(name)
    named = [(file, one) for file in sorted(set(files)) if (one := labeller(file)) is not None]
    speakers = sorted({one.speaker or "" for _, one in named})
    paths = folder / f"{name}-learnt.csv", folder / f"{name}-judged.csv"
    for path, is_judged in zip(paths, (False, True), strict=True):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "emotion", "speaker"])
            for recording, one in named:
                word = WORDS.get(one.emotion, one.emotion)
                if word and (speakers.index(one.speaker or "") % _EVERY == 0) == is_judged:
                    writer.writerow([recording, word, one.speaker])
    return paths


if __name__ == "__main__":
    main()
