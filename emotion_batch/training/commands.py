"""What each command about models does: train, evaluate, import. A part of the public Python API."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import CARD, Bundle, Card, require_safe
from emotion_batch.inference.safety import MAX_NETWORK_BYTES
from emotion_batch.run.summary import Watcher
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import parts, status
from emotion_batch.tables.parts import TableInfo
from emotion_batch.training import write_bundle
from emotion_batch.training.evaluate import Evaluation, judge_bundle
from emotion_batch.training.import_h5 import import_bundle
from emotion_batch.training.labels import read_label_map
from emotion_batch.training.train import TrainingSettings, train_bundle


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
    info = _require_features(place)
    _require_new(to, force)
    manifest = status.read_manifest(place, info)
    parts.require_complete(place, info, manifest.shards)
    exported, name = (None, "") if h5 is None else _split(Folder.of(h5, storage_options))
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


def evaluate(
    bundle: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    labels: str = "tess",
    label_map: str | os.PathLike[str] | None = None,
    allow_numeric_labels: bool = False,
    priors: Mapping[str, float] | None = None,
    robustness: int = 200,
    storage_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Judge a bundle on a labelled feature table; honest where it has not learnt from these recordings.

    Parameters
    ----------
    bundle
        What is judged.
    table
        A feature table with the bundle's features.
    labels
        Where the reference labels are from: see `reference.read_labels`.
    label_map
        File that says which of them is which of the model's: see `reference.read_label_map`. What has no counterpart is
        left out, and counted.
    allow_numeric_labels
        Take labels that look like numbers or dates, which are an error otherwise unless the model or the map has them.
    priors
        How common each label is elsewhere, for the precision that would be seen there.
    robustness
        Recordings that are decoded again, louder, quieter and padded with silence; 0 for none.
    storage_options
        What fsspec's filesystem takes.

    Raises
    ------
    UsageError
        If the bundle is none or not safe, the table's features are others, or its labels are not the model's.
    IncompleteError
        If the table has parts missing.
    """
    if robustness < 0:
        raise UsageError(f"robustness: expected a number of recordings, or 0, got {robustness}")
    place = Folder.of(table, storage_options)
    judged = require_safe(Folder.of(bundle, storage_options))
    info = _require_features(place)
    check_features(info, place, judged)
    words = None if label_map is None else read_label_map(os.fspath(label_map))
    manifest = status.read_manifest(place, info)
    parts.require_complete(place, info, manifest.shards)
    return judge_bundle(
        judged,
        place,
        info,
        manifest,
        labels=labels,
        label_map=words,
        allow_numeric_labels=allow_numeric_labels,
        priors=priors,
        n_robustness=robustness,
    )


def import_h5(
    h5: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    labels: Sequence[str],
    storage_options: Mapping[str, Any] | None = None,
    force: bool = False,
    watcher: Watcher | None = None,
) -> Card:
    """Make a bundle of a network that the notebook saved; the command is ``import``, which Python keeps for itself.

    Parameters
    ----------
    h5
        The notebook's file, of any Keras 2 or 3; its weights are taken, and nothing in it is run.
    bundle
        Folder to write; a new one, unless `force`.
    labels
        Emotions in the order of the network's outputs: the notebook's LabelEncoder sorts them.
    storage_options
        What fsspec's filesystem takes.
    force
        Replace the bundle that is there.
    watcher
        Hears a note if the notebook's LabelEncoder would not have given these labels in this order.

    Raises
    ------
    UsageError
        If the file does not hold the notebook's network, the labels are not as many, or the bundle is there.
    StorageError
        If a place cannot be read or written.
    """
    file, to = Folder.of(h5, storage_options), Folder.of(bundle, storage_options)
    _require_new(to, force)
    folder, name = _split(file)
    with explained(f"file {file.url}"):
        data = folder.read_range(name, 0, MAX_NETWORK_BYTES + 1)
    return import_bundle(data, name, labels, to, on_note=(watcher or Watcher()).on_note)


def _require_new(bundle: Folder, force: bool) -> None:
    """Raise UsageError if a bundle, or something else, is where one is to be written."""
    with explained(f"bundle {bundle.url}"):
        if bundle.exists(CARD) and not force:
            raise UsageError(
                f"bundle {bundle.url}: expected a new folder, got one with a bundle; name another, or use --force"
            )
        # What was stopped while it wrote may be written again.
        strangers = [name for name in bundle.names() if name not in write_bundle.FILES and not name.startswith(".")]
        if not bundle.exists(CARD) and strangers:
            raise UsageError(
                f"bundle {bundle.url}: expected a new or empty folder, got {strangers[0]!r} in it; name another"
            )


def _split(file: Folder) -> tuple[Folder, str]:
    """Return the folder of a file, and its name there."""
    parent, _, name = file.url.rpartition("/")
    return Folder(parent or "/", file.options), name


def find_features(place: Folder) -> TableInfo | None:
    """Return what the feature table at `place` is, None if there is no table, and refuse a label table."""
    with explained(f"source {place.url}"):
        info = parts.read_info(place)
    if info is not None and info.kind != parts.FEATURES:
        raise UsageError(f"table {place.url}: expected a feature table, got one of {info.kind}")
    return info


def _require_features(place: Folder) -> TableInfo:
    """Return what the feature table at `place` is; raise UsageError if there is none."""
    info = find_features(place)
    if info is None:
        raise UsageError(
            f"table {place.url}: expected a feature table, got none there; make one with `emotion-batch extract`"
        )
    return info


def check_features(features: TableInfo, place: Folder, bundle: Bundle) -> None:
    """Raise UsageError unless a feature table's features are those of a bundle."""
    card = bundle.card
    if features.feature_settings.feature_id != card.feature_settings.feature_id:
        differing = [
            f"{name} {value}, got {features.feature_settings.to_dict().get(name)}"
            for name, value in card.feature_settings.to_dict().items()
            if features.feature_settings.to_dict().get(name) != value
        ]
        raise UsageError(
            f"feature table {place.url}: expected the features of model {bundle.folder.url}, {'; '.join(differing)}; "
            "extract again with the model's settings, or take a model for these features"
        )
