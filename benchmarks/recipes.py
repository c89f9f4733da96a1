"""How right the recipes are, judged as the notebook judged itself and as it should be: ``make evaluate``.

Every configuration that is compared across speakers is printed; none is chosen by what it gives there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emotion_batch import api
from emotion_batch.features.recipes import recipe_of
from emotion_batch.settings import AnySettings, FeatureSettings, VoicesSettings
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.table import read_info
from emotion_batch.training import calibrate, fit, metrics, splits
from emotion_batch.training.data import Dataset, Spool, read_dataset
from emotion_batch.training.fit import Fitting
from emotion_batch.training.splits import Split

RECIPES: dict[str, AnySettings] = {"seed": FeatureSettings(), "voices": VoicesSettings()}


class Judge:
    """One recipe on one archive.

    Parameters
    ----------
    name
        Of the recipe.
    archive
        Recordings named as TESS's.
    folder
        Where the feature table goes.
    """

    def __init__(self, name: str, archive: str, folder: Path, spool: Spool) -> None:
        self._settings = RECIPES[name]
        self._spool = spool
        table = folder / name
        api.extract(archive, table, settings=self._settings)
        place = Folder.of(table)
        info = read_info(place)
        assert info is not None
        self.data: Dataset = read_dataset(place, info, sorted(Manifest(place).shards), "tess", spool)

    def predict(
        self, learn: npt.NDArray[np.bool_], judged: npt.NDArray[np.int64], seed: int
    ) -> npt.NDArray[np.float32]:
        """Return what a network that learnt from some rows gives for others."""
        data, recipe = self.data, recipe_of(self._settings)
        network, _ = fit.fit_network(
            self._spool,
            self._settings,
            data.order[learn[data.order]],
            data.targets,
            n_labels=len(data.labels),
            fitting=Fitting(recipe.epochs, recipe.batch_size, seed),
        )
        return fit.predict_network(network, self._spool, self._settings, judged)

    def accuracy(self, learn: npt.NDArray[np.bool_], judged: npt.NDArray[np.int64], seed: int) -> float:
        """Return the share that such a network has right."""
        return float(np.mean(self.predict(learn, judged, seed).argmax(axis=1) == self.data.targets[judged]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", help="TESS, unpacked")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--recipes", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    parser.add_argument("--precision", type=float, default=0.9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.recipes:
            with Spool(RECIPES[name]) as spool:
                judge = Judge(name, options.archive, Path(folder), spool)
                if name == "seed":
                    judge_as_the_notebook(judge)
                judge_speakers(name, judge, options.seeds, options.precision)


def judge_as_the_notebook(judge: Judge) -> None:
    """Print what it says of itself, on what it learnt from and on recordings of voices that it knows."""
    data = judge.data
    everything = np.ones(len(data.targets), bool)
    say("seed: on what it was trained on", [judge.accuracy(everything, data.order, 0)])
    held = splits.split_seed(data.files)
    say("seed: its validation_split=0.2, the last fifth by name", [judge.accuracy(~held, np.flatnonzero(held), 0)])
    held = splits.split_stratified(data.targets, data.files, 0.2, 0)
    say("seed: a stratified random fifth", [judge.accuracy(~held, np.flatnonzero(held), 0)])


def judge_speakers(name: str, judge: Judge, seeds: Sequence[int], precision: float) -> None:
    """Print how right a recipe is on speakers that it has not heard, and how well it knows it."""
    data = judge.data
    folds = splits.speaker_folds(data.targets, data.speakers)
    by_fold: dict[str, list[float]] = {fold.name: [] for fold in folds}
    uars: list[float] = []
    for seed in seeds:
        held = np.zeros((len(data.targets), len(data.labels)), np.float32)
        for fold in folds:
            began = time.perf_counter()
            learn = np.zeros(len(data.targets), bool)
            learn[fold.learnt] = True
            held[fold.judged] = judge.predict(learn, fold.judged, seed)
            right = float(np.mean(held[fold.judged].argmax(axis=1) == data.targets[fold.judged]))
            by_fold[fold.name].append(right)
            print(
                f"  {name}, seed {seed}, judged on {fold.name}: {right:.3f} ({time.perf_counter() - began:.0f} s)",
                flush=True,
            )
        uars.append(metrics.compute_metrics(data.targets, held, data.labels, speakers=data.speakers)["uar"])
        tell_how_sure(name, seed, data, folds, held, precision)
    for fold_name, rights in by_fold.items():
        say(f"{name}: judged on {fold_name}, which it has not heard", rights)
    say(f"{name}: mean over seeds and speakers held out", [float(np.mean(list(by_fold.values())))])
    say(f"{name}: UAR of the same", uars)
    for kind, values in (("duration", data.duration_s), ("level", data.level)):
        found = metrics.judge_shortcut(values, data.targets, data.labels, data.speakers, folds)
        say(f"{kind} alone, linear, on the same folds", [found["accuracy"]])


def tell_how_sure(
    name: str,
    seed: int,
    data: Dataset,
    folds: splits.SpeakerFolds,
    held: npt.NDArray[np.float32],
    precision: float,
) -> None:
    """Print calibration, and what `is_confident` promised and got, each on the speaker that it was not fitted on."""
    source = Split.SPEAKER_HELD_OUT
    found = calibrate.calibrate_across_folds(held, data.targets, folds.fold_of_row, source=source)
    sure = calibrate.judge_threshold_across_folds(
        held, data.targets, folds.fold_of_row, source=source, n_speakers=folds.n_speakers, precision=precision
    )
    for one, other, fold_name in zip(found["folds"], sure["folds"], folds.names, strict=True):
        got = "none" if other["got"] is None else f"{other['got']:.3f}"
        print(
            f"  {name}, seed {seed}, on {fold_name}: temperature {one['temperature']:.2f}, "
            f"NLL {one['raw']['nll']:.2f} to {one['calibrated']['nll']:.2f}, "
            f"ECE {one['raw']['ece']:.3f} to {one['calibrated']['ece']:.3f}; "
            f"is_confident promised {precision:g}, got {got} at coverage {other['coverage']:.3f}",
            flush=True,
        )


def say(what: str, values: Sequence[float]) -> None:
    """Print a line of the table."""
    spread = f" ({min(values):.3f} to {max(values):.3f}, {len(values)} seeds)" if len(values) > 1 else ""
    print(f"{what:<60} {np.mean(values):.3f}{spread}", flush=True)


if __name__ == "__main__":
    main()
