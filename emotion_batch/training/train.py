"""Train a network from a feature table and write its bundle: splits, fitting, calibration, metrics."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
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
    BATCH_SIZES,
    EPOCHS,
    Checkpoint,
    Epoch,
    Fitting,
    TrainingSettings,
    fit_network,
    predict_network,
    prepare_batches,
)
from emotion_batch.training.metrics import (
    compute_metrics,
    draw_confusion,
    draw_reliability,
    draw_training,
    intervals,
    judge_shortcut,
    reliability,
)
from emotion_batch.training.splits import NO_FOLD, SpeakerFolds, Split
from emotion_batch.training.write_bundle import require_new_bundle

FILES = write_bundle.FILES
# Rows on which what workers execute is compared with Keras, and of which segments unlike the others are told.
_N_COMPARED, _N_DOMAIN = 4_096, 20_000
# How files are called that a training which is stopped goes on from; they are gone when it has ended.
_KEPT = ".checkpoint"


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
    exported, name = (None, "") if h5 is None else split_file(Folder.of(h5, storage_options))
    return train_bundle(
        place,
        info,
        sorted(manifest.shards),
        to,
        settings or TrainingSettings(),
        on_epoch=on_epoch,
        on_note=(watcher or Watcher()).on_note,
        h5=exported,
        h5_name=name,
    )


class _Trainer:
    """One training: a network on the rows to be learnt from, and one for each fold of speakers.

    Parameters
    ----------
    data, spool
        Rows with labels, and their features.
    fitting
        How to fit.
    patience
        Of the network that is kept; in folds there is nobody to judge an epoch.
    folder, identity
        Of the bundle, where checkpoints go, and a fingerprint of all that decides this training.
    """

    def __init__(
        self, data: Dataset, spool: Spool, fitting: Fitting, patience: int, folder: Folder, identity: str
    ) -> None:
        self._data = data
        self._spool = spool
        self._fitting = fitting
        self._patience = patience
        self._folder = folder
        self._identity = identity

    def fit(
        self, learn: npt.NDArray[np.bool_], validate: npt.NDArray[np.int64] | None, on_epoch: Epoch, name: str
    ) -> tuple[Any, dict[str, list[float]]]:
        data, order = self._data, self._data.order
        return fit_network(
            self._spool,
            data.settings,
            order[learn[order]],
            data.targets,
            n_labels=len(data.labels),
            fitting=Fitting(**{**asdict(self._fitting), "patience": 0 if validate is None else self._patience}),
            validate=validate,
            on_epoch=on_epoch,
            checkpoint=Checkpoint(self._folder, f".{name}{_KEPT}", self._identity),
        )

    def predict(self, network: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return predict_network(network, self._spool, self._data.settings, rows)

    def predict_fold(self, fold: splits.Fold, number: int, on_epoch: Epoch) -> npt.NDArray[np.float32]:
        """Return what a network gives for a fold's speakers that has not heard them; what was computed once is kept."""
        kept = Checkpoint(self._folder, f".fold-{number}{_KEPT}", self._identity)
        found = kept.read()
        if found is not None:
            return np.asarray(found["probabilities"], np.float32)
        learn = np.zeros(len(self._data.targets), bool)
        learn[fold.learnt] = True
        network, _ = self.fit(learn, None, on_epoch, f"without-{number}")
        probabilities = self.predict(network, fold.judged)
        kept.write({"probabilities": probabilities})
        return probabilities


def train_bundle(
    table: Folder,
    info: TableInfo,
    shards: Sequence[int],
    bundle: Folder,
    settings: TrainingSettings,
    *,
    on_epoch: Callable[[str, int, int, Mapping[str, float]], None] = lambda phase, epoch, epochs, figures: None,
    on_note: Callable[[str], None] = lambda text: None,
    h5: Folder | None = None,
    h5_name: str = "",
) -> Card:
    """Train the network of a feature table's recipe and write its bundle, card last.

    A training that is stopped goes on where it was when it is begun again, and ends as one that was not.

    Parameters
    ----------
    table, info, shards
        The feature table, what it is, and the numbers of its parts.
    bundle
        Folder to write to.
    settings
        How to train.
    on_epoch
        Called after each epoch with what is trained, its number, from 1, of how many, and its figures.
    on_note
        Takes what is remarkable.
    h5, h5_name
        Folder and name for the network as the notebook saved it; None for none.

    Returns
    -------
    The bundle's card.

    Raises
    ------
    UsageError
        If the rows cannot be learnt from: no labels, one label, or labels with too few recordings.
    """
    recipe = info.feature_settings.recipe
    epochs, batch_size = settings.epochs or EPOCHS[recipe], settings.batch_size or BATCH_SIZES[recipe]
    how = Fitting(epochs, batch_size, settings.seed, settings.patience)
    with Spool(info.feature_settings) as spool:
        data = read_dataset(
            table, info, shards, settings.labels, spool, allow_numeric_labels=settings.allow_numeric_labels
        )
        for note in data.notes:
            on_note(note)
        identity = _identify(data, settings, how)
        trainer = _Trainer(data, spool, how, settings.patience, bundle, identity)
        is_held_out = _hold_out(data, settings)
        judged = data.order[is_held_out[data.order]]
        network, history = trainer.fit(
            ~is_held_out,
            judged if len(judged) else None,
            lambda *one: on_epoch("network", one[0], how.epochs, one[1]),
            "network",
        )
        learnt = np.flatnonzero(~is_held_out)
        metrics = {Split.TRAINING.value: _measure(data, learnt, trainer.predict(network, learnt))}
        if len(judged):
            metrics[settings.validation] = _measure(data, judged, trainer.predict(network, judged))
        folds = _find_folds(data, settings, on_note)
        extras: dict[str, bytes] = {}
        calibrated: dict[str, Any] = {}
        confidence: dict[str, Any] = {}
        if folds.names:
            held = _predict_held_out(trainer, folds, data, how, on_epoch)
            metrics[Split.SPEAKER_HELD_OUT.value] = _judge_folds(data, folds, held)
            calibrated, confidence = _calibrate(data, folds, held, settings)
            if confidence["threshold"] is None:
                on_note(
                    f"no confidence with 20 rows or more of speakers held out reaches a precision of {settings.precision:g}: "
                    "is_confident will be false everywhere; a lower --precision may be reached"
                )
            extras[RELIABILITY] = _draw_reliability(data, folds, held, calibrated["temperature"])
        shown = (
            Split.SPEAKER_HELD_OUT.value
            if folds.names
            else settings.validation
            if len(judged)
            else Split.TRAINING.value
        )
        card = write_bundle.write_bundle(
            bundle,
            network,
            labels=data.labels,
            feature_settings=info.feature_settings,
            segments=info.segments,
            training={
                **asdict(settings),
                **asdict(how),
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
        with explained(f"{h5.url}/{h5_name}"):
            h5.make()
            h5.publish(h5_name, networks.save_bytes(network, ".h5"))
    with explained(f"bundle {bundle.url}"):
        for name in bundle.names():
            if name.endswith(_KEPT):
                bundle.delete(name)
    return card


def _identify(data: Dataset, settings: TrainingSettings, how: Fitting) -> str:
    """Return a fingerprint of what a training gives: rows, labels and settings."""
    names, numbers = data.files.combine_chunks(), data.targets.tobytes()
    return fingerprint(
        {
            "settings": {**asdict(settings), **asdict(how)},
            "labels": list(data.labels),
            "feature_id": data.settings.feature_id,
            "rows": sha256(b"".join([numbers, *(bytes(part) for part in names.buffers() if part)])),
            "versions": networks.read_training_versions(),
        }
    )


def _hold_out(data: Dataset, settings: TrainingSettings) -> npt.NDArray[np.bool_]:
    if settings.held_out and settings.validation == Split.SEED:
        return splits.split_seed(data.files, settings.held_out)
    return splits.split_stratified(data.targets, data.files, settings.held_out, settings.seed)


def _find_folds(data: Dataset, settings: TrainingSettings, on_note: Callable[[str], None]) -> SpeakerFolds:
    nothing = SpeakerFolds(np.full(len(data.targets), NO_FOLD, np.int64), (), data.n_speakers, 0)
    if not settings.max_folds:
        return nothing
    try:
        folds = splits.speaker_folds(data.targets, data.speakers, max_folds=settings.max_folds, seed=settings.seed)
    except UsageError as error:
        # There may be a use for the model all the same; that its figures lack is said.
        on_note(str(error))
        return nothing
    if folds.reason:
        on_note(folds.reason)
    if folds.names and folds.n_without_speaker:
        on_note(f"{folds.n_without_speaker:,} segments whose speaker is unknown are in no fold of speakers")
    return folds


def _predict_held_out(
    trainer: _Trainer,
    folds: SpeakerFolds,
    data: Dataset,
    how: Fitting,
    on_epoch: Callable[[str, int, int, Mapping[str, float]], None],
) -> npt.NDArray[np.float32]:
    """Return what networks that have not heard a row's speaker give for it, shape (n_rows, n_labels); 0 in no fold."""
    held = np.zeros((len(data.targets), len(data.labels)), np.float32)
    for number, fold in enumerate(folds):

        def tell(epoch: int, figures: Mapping[str, float], name: str = fold.name) -> None:
            on_epoch(f"without {name}", epoch, how.epochs, figures)

        held[fold.judged] = trainer.predict_fold(fold, number, tell)
    return held


def _measure(data: Dataset, rows: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of some rows, with intervals."""
    targets, speakers = data.targets[rows], data.speakers[rows]
    return {
        **compute_metrics(targets, probabilities, data.labels, speakers=speakers),
        "intervals": intervals(targets, probabilities.argmax(axis=1), speakers),
    }


def _judge_folds(data: Dataset, folds: SpeakerFolds, held: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of speakers that were not heard, each fold's too, and those of what needs no model."""
    rows = np.flatnonzero(folds.fold_of_row != NO_FOLD)
    by_fold = [
        {
            "name": fold.name,
            **compute_metrics(
                data.targets[fold.judged], held[fold.judged], data.labels, speakers=data.speakers[fold.judged]
            ),
        }
        for fold in folds
    ]
    shortcuts = {
        name: judge_shortcut(values, data.targets, data.labels, data.speakers, folds)
        for name, values in (("duration", data.duration_s), ("level", data.level))
    }
    kept = ("name", "n_rows", "accuracy", "uar")
    return {
        **_measure(data, rows, held[rows]),
        "folds": [{name: fold[name] for name in kept} for fold in by_fold],
        "shortcuts": {name: {one: found[one] for one in ("accuracy", "uar")} for name, found in shortcuts.items()},
    }


def _calibrate(
    data: Dataset, folds: SpeakerFolds, held: npt.NDArray[np.float32], settings: TrainingSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the temperature and the threshold of confidence, and what they do to speakers that they were not found on."""
    source = Split.SPEAKER_HELD_OUT
    found = calibrate.calibrate_across_folds(held, data.targets, folds.fold_of_row, source=source)
    rows = np.flatnonzero(folds.fold_of_row != NO_FOLD)
    sure = apply_temperature(held[rows], found["temperature"]).max(axis=1)
    is_right = held[rows].argmax(axis=1) == data.targets[rows]
    threshold = calibrate.choose_threshold(sure, is_right, precision=settings.precision)
    judged = calibrate.judge_threshold_across_folds(
        held, data.targets, folds.fold_of_row, source=source, n_speakers=folds.n_speakers, precision=settings.precision
    )
    return {**found, "names": list(folds.names)}, {"threshold": threshold.value, **judged}


def _draw_reliability(data: Dataset, folds: SpeakerFolds, held: npt.NDArray[np.float32], temperature: float) -> bytes:
    rows = folds.fold_of_row != NO_FOLD
    raw = reliability(data.targets[rows], held[rows])
    after = reliability(data.targets[rows], apply_temperature(held[rows], temperature))
    return draw_reliability(raw, after)


def _fit_domain(
    data: Dataset,
    spool: Spool,
    folds: SpeakerFolds,
    is_held_out: npt.NDArray[np.bool_],
    settings: TrainingSettings,
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Return what tells segments unlike those that were learnt from; nothing where no recordings could be held out."""
    chosen = data.order
    if len(chosen) > _N_DOMAIN:
        chosen = np.sort(np.random.default_rng(settings.seed).choice(chosen, _N_DOMAIN, replace=False))
    held = is_held_out
    try:
        if not held.any():
            # Of a model that learns from all, a fifth stands for the others here.
            held = splits.split_stratified(data.targets, data.files, 0.2, settings.seed)
        summaries = domain.summarise_rows(recipes.to_table(spool.read(chosen), data.settings), data.settings)
        shares = {}
        if folds.names:
            shares["new_voices"] = calibrate.flag_new_voices(summaries, folds.fold_of_row[chosen], held[chosen])[
                "share"
            ]
        return calibrate.fit_domain(summaries[~held[chosen]], summaries[held[chosen]], flagged=shares).to_dict()
    except UsageError as error:
        on_note(str(error))
        return {}


def _history_csv(history: Mapping[str, Sequence[float]]) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["epoch", *history])
    writer.writerows([epoch, *values] for epoch, values in enumerate(zip(*history.values(), strict=True), start=1))
    return sink.getvalue().encode()
