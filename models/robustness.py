"""Measures the effect of telephones, noise and rooms on the recipe ``voices``: ``python -m models.robustness TESS VOICES``.

A model learns from three quarters of the speakers of each corpus, as in `train.py`, and is judged on recordings of the other speakers,
unchanged and changed. It takes some minutes, prints a table in Markdown, and with ``--card`` writes it on the card of `voices-1`.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset

import emotion_batch
from emotion_batch.inference.bundle import CARD, open_bundle
from emotion_batch.settings import VoicesSettings
from emotion_batch.storage.folder import Folder
from emotion_batch.training.evaluate import CONDITIONS
from emotion_batch.training.labels import read_labels
from models.train import HERE, WORDS, write_texts

# One in this many speakers of a corpus is judged, on this many recordings of the corpus.
_EVERY, _N_RECORDINGS = 4, 150


def main() -> None:
    """Extract, train on some speakers, judge on the others, and print the effect of each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tess", type=Path)
    parser.add_argument("voices", type=Path)
    parser.add_argument("--epochs", type=int, help="Epochs of the training (default: the recipe's)")
    parser.add_argument(
        "--card", action="store_true", help="Write the figures on the card and into the README of voices-1"
    )
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
    each = {name: one.robustness or {} for name, one in found.items()}
    table = {condition: summarise({name: one[condition] for name, one in each.items()}) for condition in CONDITIONS}
    print(f"| | {' | '.join(found)} | labels kept |")
    print(f"| --- |{' --- |' * (len(found) + 1)}")
    for condition, one in table.items():
        print(f"| {condition} | {' | '.join(format(uar, '.2f') for uar in one['uar'].values())} | {one['kept']:.2f} |")
    if options.card:
        write_robustness("voices-1", table)


def summarise(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the UAR of each corpus under one condition, and the share of labels that stayed in all."""
    kept = np.average([one["kept"] for one in found.values()], weights=[one["n_rows"] for one in found.values()])
    return {"uar": {name: one["uar"] for name, one in found.items()}, "kept": float(kept)}


def write_robustness(model: str, table: Mapping[str, Any]) -> None:
    """Write the figures on the card of a model that ships, and its texts anew."""
    bundle = open_bundle(Folder.of(HERE / model))
    card = replace(bundle.card, training={**bundle.card.training, "robustness": dict(table)})
    (HERE / model / CARD).write_bytes(card.to_json())
    write_texts(model)


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
