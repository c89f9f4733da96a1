"""From a feature table to a bundle: labels, the split, fitting and the figures."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import binding, model, pictures, reference, splits, tables
from emotion_batch.bundle import Card
from emotion_batch.errors import Status, UsageError
from emotion_batch.storage import Folder, explained
from emotion_batch.tables import TableInfo

# Fewer recordings of a label than this are more often a misread name than a class.
_MIN_RECORDINGS = 5


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults are the notebook's, with a stratified fifth held out.

    Attributes
    ----------
    labels
        Where the reference labels are from: see `reference.read_labels`.
    held_out
        Share of each label's recordings that is judged and not learnt from; 0 learns from all and judges nothing.
    epochs, batch_size
        Passes over the rows, and rows a step.
    seed
        Decides the split, the weights and the order.

    Raises
    ------
    UsageError
        If a value is outside its range.
    """

    labels: str = "tess"
    held_out: float = 0.2
    epochs: int = 100
    batch_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise UsageError(f"held_out: expected a share from 0 to below 1, got {self.held_out!r}")
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            # The upper bound is that of NumPy's seeds.
            if not minimum <= getattr(self, name) < 2**32:
                raise UsageError(
                    f"{name}: expected a whole number from {minimum} to 2**32 - 1, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class LabelledRows:
    """Rows of a feature table that can be learnt from.

    Attributes
    ----------
    features
        Shape (n_rows, n_mfcc).
    files
        Name of each row's recording.
    targets
        Number of each row's label.
    labels
        The labels, sorted, as scikit-learn's LabelEncoder does.
    speakers
        Speaker of each row, "" where unknown.
    n_failed
        Rows of the table that hold no features.
    n_unlabelled
        Rows with features and no label.
    """

    features: npt.NDArray[np.float32]
    files: npt.NDArray[np.object_]
    targets: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    speakers: npt.NDArray[np.object_]
    n_failed: int
    n_unlabelled: int


def train_bundle(
    table: Folder,
    info: TableInfo,
    shards: Sequence[int],
    bundle: Folder,
    settings: TrainingSettings,
    *,
    on_epoch: Callable[[int, Mapping[str, float]], None] = lambda epoch, figures: None,
    h5: Folder | None = None,
    h5_name: str = "",
) -> Card:
    """Train the seed's network on a feature table and write its bundle, card last.

    Parameters
    ----------
    table, info, shards
        The feature table, what it is, and the numbers of its parts.
    bundle
        Folder to write to.
    settings
        How to train.
    on_epoch
        Called after each epoch with its number, from 1, and its figures.
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
    rows = read_rows(table, info, shards, settings.labels)
    is_held_out = splits.split_stratified(rows.targets, rows.files, settings.held_out, settings.seed)
    learn, judge = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    network, history = model.fit(
        rows.features[learn],
        rows.targets[learn],
        n_labels=len(rows.labels),
        validation=(rows.features[judge], rows.targets[judge]) if len(judge) else None,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        on_epoch=on_epoch,
    )
    metrics = {"training": measure(network, rows, learn)}
    if len(judge):
        metrics["stratified"] = measure(network, rows, judge)
    shown = "stratified" if len(judge) else "training"
    card = binding.write_bundle(
        bundle,
        network,
        labels=rows.labels,
        feature_settings=info.feature_settings,
        segments=info.segments,
        training={
            **asdict(settings),
            "n_rows": len(rows.targets),
            "n_learnt": len(learn),
            "n_held_out": len(judge),
            "n_failed": rows.n_failed,
            "n_unlabelled": rows.n_unlabelled,
            "n_by_label": {label: int(np.sum(rows.targets == number)) for number, label in enumerate(rows.labels)},
            "n_speakers": len(set(rows.speakers) - {""}),
        },
        metrics=metrics,
        features=rows.features,
        extras={
            "history.csv": _history_csv(history),
            "training.png": pictures.draw_training(history),
            "confusion.png": pictures.draw_confusion(
                metrics[shown]["confusion"], rows.labels, "held-out recordings" if len(judge) else "training recordings"
            ),
        },
    )
    if h5 is not None:
        with explained(f"{h5.url}/{h5_name}"):
            h5.make()
            h5.publish(h5_name, model.save_bytes(network, ".h5"))
    return card


def read_rows(table: Folder, info: TableInfo, shards: Sequence[int], labels: str) -> LabelledRows:
    """Read the rows of a feature table that hold features and have a label, sorted by recording.

    Raises
    ------
    UsageError
        If fewer than two labels remain, or one of them has too few recordings to learn from.
    """
    labeller = reference.read_labels(labels)
    columns = ["file", "start_s", "status", "mfcc"]
    with explained(f"table {table.url}"):
        everything = pa.concat_tables([tables.read_part(table, shard, columns) for shard in shards])
    usable = everything.filter(pc.equal(everything["status"], Status.OK)).sort_by(
        [("file", "ascending"), ("start_s", "ascending")]
    )
    found = [labeller(file) for file in usable["file"].to_pylist()]
    has_label = np.array([one is not None for one in found], bool)
    references = [one for one in found if one is not None]
    words = sorted({one.emotion for one in references})
    usable = usable.filter(pa.array(has_label))
    files = usable["file"].to_numpy(zero_copy_only=False)
    _, first = np.unique(files.astype(str), return_index=True)
    _check_labels(table, labels, [references[row].emotion for row in first], files[first])
    numbers = {word: number for number, word in enumerate(words)}
    flat = usable["mfcc"].combine_chunks().flatten()
    return LabelledRows(
        features=flat.to_numpy(zero_copy_only=False).reshape(-1, info.feature_settings.n_mfcc),
        files=files,
        targets=np.array([numbers[one.emotion] for one in references], np.int64),
        labels=tuple(words),
        speakers=np.array([one.speaker or "" for one in references], object),
        n_failed=everything.num_rows - len(found),
        n_unlabelled=len(found) - len(references),
    )


def measure(network: Any, rows: LabelledRows, which: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return a network's figures on some rows.

    Returns
    -------
    ``n_rows``, ``n_speakers``, ``accuracy``, ``uar`` (unweighted average recall), ``recall`` and ``precision`` by
    label, and ``confusion``, shape (n_labels, n_labels), true labels down.
    """
    from sklearn import metrics

    features, targets = rows.features[which], rows.targets[which]
    predicted = np.argmax(network.predict(features[..., np.newaxis], batch_size=1_024, verbose=0), axis=1)
    numbers = list(range(len(rows.labels)))
    averages = {"labels": numbers, "average": None, "zero_division": 0.0}
    recall = metrics.recall_score(targets, predicted, **averages)
    precision = metrics.precision_score(targets, predicted, **averages)
    return {
        "n_rows": len(which),
        "n_speakers": len(set(rows.speakers[which]) - {""}),
        "accuracy": float(metrics.accuracy_score(targets, predicted)),
        "uar": float(np.mean(recall)),
        "recall": dict(zip(rows.labels, map(float, recall), strict=True)),
        "precision": dict(zip(rows.labels, map(float, precision), strict=True)),
        "confusion": metrics.confusion_matrix(targets, predicted, labels=numbers).tolist(),
    }


def _check_labels(table: Folder, source: str, emotions: Sequence[str], files: Sequence[str]) -> None:
    """See that the labels are classes one can learn, and not what a misread name gives."""
    counts = Counter(emotions)
    if len(counts) < 2:
        got = f"only {next(iter(counts))!r}" if counts else "none"
        raise UsageError(
            f"labels of {table.url}: expected at least two from {source!r}, got {got}; say with --labels where they stand"
        )
    if rare := {word: count for word, count in counts.items() if count < _MIN_RECORDINGS}:
        word = min(rare)
        example = files[list(emotions).index(word)]
        raise UsageError(
            f"labels of {table.url}: expected at least {_MIN_RECORDINGS} recordings of each from {source!r}, got {rare[word]} of "
            f"{word!r} ({example!r}) and {len(rare) - 1} more such labels; say with --labels where they stand"
        )


def _history_csv(history: Mapping[str, Sequence[float]]) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["epoch", *history])
    writer.writerows([epoch, *values] for epoch, values in enumerate(zip(*history.values(), strict=True), start=1))
    return sink.getvalue().encode()
