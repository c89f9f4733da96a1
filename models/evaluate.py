"""Repeats the figures of `voices-1`: ``python -m models.evaluate TESS VOICES``, which takes an hour a seed on one core.

Each row is judged by a network that has heard neither its speaker, or neither its corpus. All figures are of the recipe; the weights
that ship have heard all of these recordings.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

import emotion_batch
from emotion_batch.features.recipes import recipe_of
from emotion_batch.settings import VoicesSettings
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.names import clean
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.table import require_features
from emotion_batch.training import calibrate, fit, metrics, splits
from emotion_batch.training.data import Dataset, Spool, join_corpora, read_dataset
from emotion_batch.training.fit import Fitting
from emotion_batch.training.splits import NO_FOLD, SpeakerFolds, Split
from models.train import LICENCES, MAX_FOLDS, PRECISION, WORDS

# The labels that nearly all corpora have.
FOUR = ("angry", "happy", "neutral", "sad")


def main() -> None:
    """Extract, judge each seed, and print a line for each corpus and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tess", type=Path)
    parser.add_argument("voices", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="Folder for the probabilities of each seed and fold")
    options = parser.parse_args()
    archives = {name: options.tess if name == "tess" else options.voices / name for name in LICENCES}
    settings = VoicesSettings()
    with tempfile.TemporaryDirectory() as folder, Spool(settings) as spool:
        data = read(archives, settings, Path(folder), spool)
        for seed in options.seeds:
            speakers = splits.speaker_folds(data.targets, data.speakers, max_folds=MAX_FOLDS, seed=seed)
            corpora = splits.corpus_folds(data.corpora, data.speakers, data.targets)
            held = [predict(data, spool, folds, seed) for folds in (speakers, corpora)]
            if options.keep:
                np.savez(options.keep / f"seed-{seed}.npz", *held, targets=data.targets, corpora=data.corpora)
            tell(data, seed, [speakers, corpora], held)


def read(archives: dict[str, Path], settings: VoicesSettings, folder: Path, spool: Spool) -> Dataset:
    """Return the rows of all corpora with their labels, in TESS's words."""
    found = {}
    for name, archive in archives.items():
        emotion_batch.extract(archive, folder / name, settings=settings)
        table = Folder.of(folder / name)
        info = require_features(table)
        words = {clean(word): clean(label) for word, label in WORDS.items()}
        found[name] = read_dataset(table, info, sorted(Manifest(table).shards), name, spool, label_map=words)
    return join_corpora(found)


def predict(data: Dataset, spool: Spool, folds: SpeakerFolds, seed: int) -> npt.NDArray[np.float32]:
    """Return probabilities for each row from a network that has not heard its fold, shape (n_rows, n_labels)."""
    recipe = recipe_of(data.settings)
    held = np.zeros((len(data.targets), len(data.labels)), np.float32)
    network = None
    for fold in folds:
        learn = np.zeros(len(held), bool)
        learn[fold.learnt] = True
        rows = data.order[learn[data.order]]
        network, _ = fit.fit_network(
            *(spool, data.settings, rows, data.targets),
            n_labels=len(data.labels),
            fitting=Fitting(recipe.epochs, recipe.batch_size, seed),
            weights=data.weigh(rows),
            spare=network,
        )
        held[fold.judged] = fit.predict_network(network, spool, data.settings, fold.judged)
        print(f"seed {seed}, {fold.name}: UAR {data.judge(fold.judged, held[fold.judged])['uar']:.3f}", flush=True)
    return held


def tell(data: Dataset, seed: int, each: list[SpeakerFolds], held: list[npt.NDArray[np.float32]]) -> None:
    """Print the figures of a seed: recall by corpus, calibration, and what `is_confident` promised and gave."""
    four = np.array([data.labels.index(word) for word in FOUR])
    for name in sorted(set(data.corpora.tolist())):
        own = np.flatnonzero(data.corpora == name)
        some = own[np.isin(data.targets[own], four)]
        found = [
            (
                data.judge(own, one[own])["uar"],
                data.judge(some, one[some], four[one[some][:, four].argmax(axis=1)])["uar"],
            )
            for one in held
        ]
        print(
            f"seed {seed}, {name}: speakers held out {found[0][0]:.3f}, of the four labels {found[0][1]:.3f}; "
            f"corpus held out {found[1][0]:.3f}, of the four labels {found[1][1]:.3f}"
        )
    speakers, corpora = each
    numbers = [
        speakers.fold_of_row,
        np.where(corpora.fold_of_row == NO_FOLD, NO_FOLD, corpora.fold_of_row + len(speakers.names)),
    ]
    trust = calibrate.calibrate_across_folds(
        np.concatenate(held), np.tile(data.targets, 2), np.concatenate(numbers), source=Split.CORPUS_HELD_OUT
    )
    alone = metrics.expected_calibration_error(data.targets, held[0])
    sure = calibrate.judge_threshold_across_folds(
        *(held[1], data.targets, corpora.fold_of_row),
        source=Split.CORPUS_HELD_OUT,
        n_speakers=corpora.n_speakers,
        precision=PRECISION,
    )
    right = "none" if sure["got"] is None else f"{sure['got']:.3f}"
    print(
        f"seed {seed}: temperature {trust['temperature']:.2f}, ECE {trust['calibrated']['ece']:.3f} over speakers and corpora, "
        f"{alone:.3f} over speakers without it; is_confident promises {PRECISION:g}, right in {right} of {sure['coverage']:.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
