"""Train a network from a feature table and write its bundle: splits, fitting, calibration, metrics."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from emotion_batch.errors import UsageError
from emotion_batch.features import recipes
from emotion_batch.inference import domain
from emotion_batch.inference.bundle import RELIABILITY, sha256
from emotion_batch.inference.card import Card
from emotion_batch.inference.confidence import apply_temperature
from emotion_batch.progress import Watcher
from emotion_batch.settings import fingerprint
from emotion_batch.storage.folder import Folder, explained, split_file
from emotion_batch.tables import inventory, parts
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.table import require_features
from emotion_batch.training import calibrate, networks, splits, write_bundle
from emotion_batch.training.data import Dataset, Spool, read_dataset
from emotion_batch.training.fit import (
    Checkpoint,
    Fitting,
    TrainingSettings,
    fit_network,
    predict_network,
    prepare_batches,
)
from emotion_batch.training.metrics import draw_confusion, draw_reliability, draw_training, intervals, pick, reliability
from emotion_batch.training.splits import NO_FOLD, Booleans, Integers, SpeakerFolds, Split
from emotion_batch.training.write_bundle import require_new_bundle

# Rows on which what workers execute is compared with Keras, and rows that the domain is made of.
_N_COMPARED, _N_DOMAIN = 4_096, 20_000
# Files from which a stopped training goes on end in this; they are deleted when the training has ended.
_KEPT = ".checkpoint"
# Hears what is trained, the epoch's number, from 1, of how many, and its figures.
_OnEpoch = Callable[[str, int, int, Mapping[str, float]], None]


def train(
    table: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    settings: TrainingSettings | None = None,
    h5: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    force: bool = False,
    on_epoch: Callable[[str, int, int, Mapping[str, float]], None] = lambda phase, epoch, epochs, figures: None,
    watcher: Watcher | None = None,
) -> Card:
    """Train the network of a feature table's recipe and write the bundle.

    Parameters
    ----------
    table
        The feature table.
    bundle
        Folder to write; a new one, unless `force`.
    settings
        How to train; by default as the notebook does, with a stratified fifth held out.
    h5
        File to which the network also goes as the notebook saved it.
    storage_options
        What fsspec's filesystem takes.
    force
        Replace the bundle that is there.
    on_epoch
        Hears what is trained, the epoch's number, from 1, of how many, and its figures.
    watcher
        Hears notes.

    Raises
    ------
    UsageError
        If the table is none of features, cannot be learnt from, or the bundle is there.
    IncompleteError
        If the table has parts missing.
    """
    place, to = Folder.of(table, storage_options), Folder.of(bundle, storage_options)
    info = require_features(place)
    require_new_bundle(to, force)
    manifest = inventory.read_manifest(place, info)
    parts.require_complete(place, info, manifest.shards)
    return train_bundle(
        place,
        info,
        sorted(manifest.shards),
        to,
        settings or TrainingSettings(),
        on_epoch=on_epoch,
        on_note=(watcher or Watcher()).on_note,
        h5=None if h5 is None else split_file(Folder.of(h5, storage_options)),
    )


@dataclass(frozen=True)
class _Trainer:
    """Trains a network on the rows to be learnt from, and one for each fold of speakers, with checkpoints in `folder`.

    `identity` is a fingerprint of all that decides the training.
    """

    data: Dataset
    spool: Spool
    fitting: Fitting
    folder: Folder
    identity: str
    on_epoch: _OnEpoch

    def fit(
        self, learn: Booleans, validate: Integers | None, phase: str, name: str
    ) -> tuple[Any, dict[str, list[float]]]:
        order, epochs = self.data.order, self.fitting.epochs
        return fit_network(
            self.spool,
            self.data.settings,
            order[learn[order]],
            self.data.targets,
            n_labels=len(self.data.labels),
            fitting=self.fitting,
            validate=validate,
            on_epoch=lambda epoch, figures: self.on_epoch(phase, epoch, epochs, figures),
            checkpoint=self.keep(name),
        )

    def keep(self, name: str) -> Checkpoint:
        return Checkpoint(self.folder, f".{name}{_KEPT}", self.identity)

    def predict(self, network: Any, rows: Integers) -> npt.NDArray[np.float32]:
        return predict_network(network, self.spool, self.data.settings, rows)

    def predict_held_out(self, folds: SpeakerFolds) -> npt.NDArray[np.float32]:
        """Return what networks that have not heard a row's speaker give for it, shape (n_rows, n_labels); 0 in no fold."""
        held = np.zeros((len(self.data.targets), len(self.data.labels)), np.float32)
        for number, fold in enumerate(folds):
            kept = self.keep(f"fold-{number}")
            found = kept.read()
            if found is None:
                learn = np.zeros(len(held), bool)
                learn[fold.learnt] = True
                network, _ = self.fit(learn, None, f"without {fold.name}", f"without-{number}")
                found = {"probabilities": self.predict(network, fold.judged)}
                kept.write(found)
            held[fold.judged] = found["probabilities"]
        return held


def train_bundle(
    table: Folder,
    info: TableInfo,
    shards: Sequence[int],
    bundle: Folder,
    settings: TrainingSettings,
    *,
    on_epoch: _OnEpoch = lambda phase, epoch, epochs, figures: None,
    on_note: Callable[[str], None] = lambda text: None,
    h5: tuple[Folder, str] | None = None,
) -> Card:
    """Train the network of a feature table's recipe, write its bundle, card last, and return the card; see `train`.

    A training that is stopped goes on where it was when it is begun again, and ends as one that was not. `shards` are
    the numbers of the table's parts. `h5` is a folder and a name. It raises UsageError if the rows cannot be learnt
    from: no labels, one label, or labels with too few recordings.
    """
    recipe = recipes.recipe_of(info.feature_settings)
    epochs, batch_size = settings.epochs or recipe.epochs, settings.batch_size or recipe.batch_size
    settings = replace(settings, epochs=epochs, batch_size=batch_size)
    how = Fitting(epochs, batch_size, settings.seed, settings.patience)
    with Spool(info.feature_settings) as spool:
        data = read_dataset(
            table, info, shards, settings.labels, spool, allow_numeric_labels=settings.allow_numeric_labels
        )
        for note in data.notes:
            on_note(note)
        trainer = _Trainer(data, spool, how, bundle, _identify(data, settings), on_epoch)
        is_held_out = _hold_out(data, settings)
        learnt, judged = np.flatnonzero(~is_held_out), data.order[is_held_out[data.order]]
        network, history = trainer.fit(~is_held_out, judged if len(judged) else None, "network", "network")
        shown = Split.TRAINING.value
        metrics = {shown: _measure(data, learnt, trainer.predict(network, learnt))}
        if len(judged):
            shown = settings.validation
            metrics[shown] = _measure(data, judged, trainer.predict(network, judged))
        folds = _find_folds(data, settings, on_note)
        extras: dict[str, bytes] = {}
        calibrated: dict[str, Any] = {}
        confidence: dict[str, Any] = {}
        if folds is not None:
            shown = Split.SPEAKER_HELD_OUT.value
            held = trainer.predict_held_out(folds)
            metrics[shown] = _judge_folds(data, folds, held)
            calibrated, confidence, extras[RELIABILITY] = _calibrate(data, folds, held, settings.precision)
            if confidence["threshold"] is None:
                on_note(
                    f"no confidence with 20 rows or more of speakers held out reaches a precision of {settings.precision:g}: "
                    "is_confident will be false everywhere; a lower --precision may be reached"
                )
        card = write_bundle.write_bundle(
            bundle,
            network,
            labels=data.labels,
            feature_settings=info.feature_settings,
            segments=info.segments,
            training={
                **asdict(settings),
                "n_rows": len(data.targets),
                "n_learnt": len(learnt),
                "n_held_out": len(judged),
                "n_failed": data.n_failed,
                "n_unlabelled": sum(data.left_out.values()),
                "n_by_label": {word: int(np.sum(data.targets == number)) for number, word in enumerate(data.labels)},
                "n_speakers": data.n_speakers,
            },
            metrics=metrics,
            calibration=calibrated,
            confidence=confidence,
            domain=_fit_domain(data, spool, folds, is_held_out, settings, on_note),
            inputs=prepare_batches(spool.read(data.order[:_N_COMPARED]), info.feature_settings),
            extras={
                "history.csv": _history_csv(history),
                "training.png": draw_training(history),
                "confusion.png": draw_confusion(metrics[shown]["confusion"], data.labels, shown.replace("_", " ")),
                **extras,
            },
        )
    if h5 is not None:
        folder, name = h5
        with explained(f"{folder.url}/{name}"):
            folder.make()
            folder.publish(name, networks.save_bytes(network, ".h5"))
    with explained(f"bundle {bundle.url}"):
        for name in bundle.names():
            if name.endswith(_KEPT):
                bundle.delete(name)
    return card


def _identify(data: Dataset, settings: TrainingSettings) -> str:
    """Return a fingerprint of what a training gives: rows, labels and settings."""
    names, numbers = data.files.combine_chunks(), data.targets.tobytes()
    return fingerprint(
        {
            "settings": asdict(settings),
            "labels": list(data.labels),
            "feature_id": data.settings.feature_id,
            "rows": sha256(b"".join([numbers, *(bytes(part) for part in names.buffers() if part)])),
            "versions": networks.read_training_versions(),
        }
    )


def _hold_out(data: Dataset, settings: TrainingSettings) -> Booleans:
    if settings.held_out and settings.validation == Split.SEED:
        return splits.split_seed(data.files, settings.held_out)
    return splits.split_stratified(data.targets, data.files, settings.held_out, settings.seed)


def _find_folds(data: Dataset, settings: TrainingSettings, on_note: Callable[[str], None]) -> SpeakerFolds | None:
    if not settings.max_folds:
        return None
    try:
        folds = splits.speaker_folds(data.targets, data.speakers, max_folds=settings.max_folds, seed=settings.seed)
    except UsageError as error:
        # The model may be of use all the same, so a note says that its figures are missing.
        on_note(str(error))
        return None
    if not folds.names:
        on_note(folds.reason)
        return None
    if folds.n_without_speaker:
        on_note(f"{folds.n_without_speaker:,} segments whose speaker is unknown are in no fold of speakers")
    return folds


def _measure(data: Dataset, rows: Integers, probabilities: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of some rows, with intervals."""
    of_rows = intervals(data.targets[rows], probabilities.argmax(axis=1), data.speakers[rows])
    return {**data.judge(rows, probabilities), "intervals": of_rows}


def _judge_folds(data: Dataset, folds: SpeakerFolds, held: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of speakers that were not heard, each fold's too, and those of what needs no model."""
    rows = np.flatnonzero(folds.fold_of_row != NO_FOLD)
    by_fold = [(fold.name, data.judge(fold.judged, held[fold.judged])) for fold in folds]
    shortcuts = data.judge_shortcuts(folds)
    return {
        **_measure(data, rows, held[rows]),
        "folds": [{"name": name, **pick(found, "n_rows", "accuracy", "uar")} for name, found in by_fold],
        "shortcuts": {name: pick(found, "accuracy", "uar") for name, found in shortcuts.items()},
    }


def _calibrate(
    data: Dataset, folds: SpeakerFolds, held: npt.NDArray[np.float32], precision: float
) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return the temperature, the threshold of confidence, with what each does to other speakers, and a picture."""
    source, fold_of_row = Split.SPEAKER_HELD_OUT, folds.fold_of_row
    found = calibrate.calibrate_across_folds(held, data.targets, fold_of_row, source=source)
    judged = calibrate.judge_threshold_across_folds(
        held, data.targets, fold_of_row, source=source, n_speakers=folds.n_speakers, precision=precision
    )
    rows = fold_of_row != NO_FOLD
    targets, raw = data.targets[rows], held[rows]
    sure = apply_temperature(raw, found["temperature"])
    threshold = calibrate.choose_threshold(sure.max(axis=1), raw.argmax(axis=1) == targets, precision=precision)
    picture = draw_reliability(reliability(targets, raw), reliability(targets, sure))
    return {**found, "names": list(folds.names)}, {"threshold": threshold.value, **judged}, picture


def _fit_domain(
    data: Dataset,
    spool: Spool,
    folds: SpeakerFolds | None,
    is_held_out: Booleans,
    settings: TrainingSettings,
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Return what tells segments unlike those that were learnt from; nothing if no recordings could be held out."""
    chosen = data.order
    if len(chosen) > _N_DOMAIN:
        chosen = np.sort(np.random.default_rng(settings.seed).choice(chosen, _N_DOMAIN, replace=False))
    held = is_held_out
    try:
        if not held.any():
            # If the model learns from all, a fifth stands for the others here.
            held = splits.split_stratified(data.targets, data.files, 0.2, settings.seed)
        summaries = domain.summarise_rows(recipes.to_table(spool.read(chosen), data.settings), data.settings)
        held = held[chosen]
        shares = {}
        if folds is not None:
            shares["new_voices"] = calibrate.flag_new_voices(summaries, folds.fold_of_row[chosen], held)["share"]
        return calibrate.fit_domain(summaries[~held], summaries[held], flagged=shares).to_dict()
    except UsageError as error:
        on_note(str(error))
        return {}


def _history_csv(history: Mapping[str, Sequence[float]]) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["epoch", *history])
    writer.writerows([epoch, *values] for epoch, values in enumerate(zip(*history.values(), strict=True), start=1))
    return sink.getvalue().encode()
