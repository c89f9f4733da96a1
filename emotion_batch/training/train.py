"""Train a network from feature tables and write its bundle: splits, fitting, calibration, metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from emotion_batch.errors import UsageError, counted
from emotion_batch.features import recipes
from emotion_batch.inference import domain
from emotion_batch.inference.bundle import RELIABILITY, Bundle, check_features, find_model, require_safe, sha256
from emotion_batch.inference.card import Card
from emotion_batch.inference.confidence import Floats, apply_temperature
from emotion_batch.libraries import require_training
from emotion_batch.progress import Watcher
from emotion_batch.settings import fingerprint
from emotion_batch.storage.folder import Folder, explained, split_file
from emotion_batch.storage.names import clean
from emotion_batch.tables import inventory, parts
from emotion_batch.tables.table import require_features
from emotion_batch.training import calibrate, fit, networks, splits, write_bundle
from emotion_batch.training.data import Dataset, Source, Spool, join_corpora, read_dataset
from emotion_batch.training.fit import Checkpoint, Fitting, Start, TrainingSettings
from emotion_batch.training.labels import CORPORA
from emotion_batch.training.metrics import draw_confusion, draw_reliability, draw_training, intervals, pick, reliability
from emotion_batch.training.splits import NO_FOLD, Booleans, Integers, SpeakerFolds, Split
from emotion_batch.training.write_bundle import require_new_bundle

# Number of rows on which ONNX Runtime is compared with Keras, and of rows that the domain is made from.
_N_COMPARED, _N_DOMAIN = 4_096, 20_000
# The suffix of checkpoints, from which a stopped training continues; they are deleted when the training has ended.
_KEPT = ".checkpoint"
# Gets the name of what is trained, the epoch's number (from 1), the number of epochs, and the epoch's figures.
_OnEpoch = Callable[[str, int, int, Mapping[str, float]], None]


def train(
    table: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    bundle: str | os.PathLike[str],
    *,
    settings: TrainingSettings | None = None,
    from_bundle: str | os.PathLike[str] | None = None,
    h5: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    force: bool = False,
    on_epoch: Callable[[str, int, int, Mapping[str, float]], None] = lambda phase, epoch, epochs, figures: None,
    watcher: Watcher | None = None,
) -> Card:
    """Train the network of the recipe of one feature table, or of several, and write the bundle.

    Parameters
    ----------
    table
        The feature table, or those of several corpora, with features of the same settings. Speakers are told apart by corpus.
    bundle
        Folder to write; a new one, unless `force`.
    settings
        How to train; by default as the notebook does, with a stratified fifth held out.
    from_bundle
        Bundle whose weights the training starts from, or the name of one that ships; its feature settings must be those of the
        tables. The learning rate is lower then, and labels that the bundle lacks get new outputs.
    h5
        File to which the network is also saved, in the notebook's format.
    storage_options
        What fsspec's filesystem takes.
    force
        Replace the bundle that is there.
    on_epoch
        Gets the name of what is trained, the epoch's number (from 1), the number of epochs, and the epoch's figures.
    watcher
        Gets notes.

    Raises
    ------
    UsageError
        If a table holds no features or has other settings than the first or `from_bundle`, the rows cannot be learnt from,
        the bundle exists already, or `from_bundle` is no bundle or not safe.
    IncompleteError
        If a table has parts missing.
    """
    require_training()
    tables = [table] if isinstance(table, str | os.PathLike) else list(table)
    if not tables:
        raise UsageError("tables: name one feature table or more to learn from")
    to = Folder.of(bundle, storage_options)
    sources = [_open_source(Folder.of(one, storage_options)) for one in tables]
    for source in sources[1:]:
        first = sources[0]
        if (source.info.feature_settings, source.info.segments) != (first.info.feature_settings, first.info.segments):
            raise UsageError(
                f"table {source.table.url}: its features or segments have other settings than those of {first.table.url}; extract "
                "both in the same way"
            )
    start = None if from_bundle is None else require_safe(find_model(from_bundle, storage_options))
    if start is not None:
        check_features(sources[0].info, sources[0].table, start)
    require_new_bundle(to, force)
    return train_bundle(
        sources,
        to,
        settings or TrainingSettings(),
        start=start,
        on_epoch=on_epoch,
        on_note=(watcher or Watcher()).on_note,
        h5=None if h5 is None else split_file(Folder.of(h5, storage_options)),
    )


def _open_source(table: Folder) -> Source:
    info = require_features(table)
    manifest = inventory.read_manifest(table, info)
    parts.require_complete(table, info, manifest.shards)
    return Source(table, info, sorted(manifest.shards))


def _read(sources: Sequence[Source], settings: TrainingSettings, spool: Spool, familiar: Sequence[str]) -> Dataset:
    """Read all tables, each with its labels; the `familiar` labels are added, even if no row has them."""
    labels = [settings.labels] * len(sources) if isinstance(settings.labels, str) else list(settings.labels)
    if len(labels) != len(sources):
        raise UsageError(
            f"labels: {len(labels)} sources were named for {len(sources)} tables; name one for all, or one for each"
        )
    found: dict[str, Dataset] = {}
    for (table, info, shards), words in zip(sources, labels, strict=True):
        name = words if words in CORPORA else table.url.rstrip("/").rpartition("/")[2]
        while name in found:
            name += "-"
        found[name] = read_dataset(
            *(table, info, shards, words, spool),
            familiar_labels=familiar,
            label_map={clean(word): clean(label) for word, label in settings.label_map.items()},
            allow_numeric_labels=settings.allow_numeric_labels,
            whole=settings.whole,
        )
    return (join_corpora(found) if len(found) > 1 else next(iter(found.values()))).add_labels(familiar)


@dataclass(frozen=True)
class _Trainer:
    """Trains a network on the rows to be learnt from, and one for each fold, with checkpoints in `folder`.

    `is_balanced` says whether corpora, speakers and labels are drawn equally often. `start` is the model that it starts from.
    """

    data: Dataset
    spool: Spool
    fitting: Fitting
    folder: Folder
    is_balanced: bool
    settings: TrainingSettings
    start: Start | None
    on_epoch: _OnEpoch
    on_note: Callable[[str], None]

    def fit(
        self, learn: Booleans, validate: Integers | None, phase: str, name: str, spare: Any = None
    ) -> tuple[Any, dict[str, list[float]]]:
        order, epochs = self.data.order, self.fitting.epochs
        rows = order[learn[order]]
        return fit.fit_network(
            self.spool,
            self.data.settings,
            rows,
            self.data.targets,
            n_labels=len(self.data.labels),
            fitting=self.fitting,
            weights=self.data.weigh(rows) if self.is_balanced else None,
            validate=validate,
            on_epoch=lambda epoch, figures: self.on_epoch(phase, epoch, epochs, figures),
            checkpoint=self.keep(name),
            spare=spare,
        )

    def keep(self, name: str) -> Checkpoint:
        return Checkpoint(self.folder, f".{name}{_KEPT}", self.identity)

    @cached_property
    def identity(self) -> str:
        """Fingerprint of everything that decides a training: rows, labels, settings and the model that it starts from."""
        data, names = self.data, self.data.files.combine_chunks()
        return fingerprint(
            {
                "settings": asdict(self.settings),
                "from": self.start and self.start.card.model_id,
                "labels": list(data.labels),
                "feature_id": data.settings.feature_id,
                "rows": sha256(b"".join([data.targets.tobytes(), *(bytes(part) for part in names.buffers() if part)])),
                "voices": sha256("\n".join([*data.speakers, *data.corpora]).encode()),
                "versions": networks.read_training_versions(),
            }
        )

    def predict(self, network: Any, rows: Integers) -> npt.NDArray[np.float32]:
        return fit.predict_network(network, self.spool, self.data.settings, rows)

    def predict_held_out(self, folds: SpeakerFolds, kind: Split) -> npt.NDArray[np.float32]:
        """Return probabilities for each row from a network that has not heard its fold, shape (n_rows, n_labels); 0 in no fold."""
        held = np.zeros((len(self.data.targets), len(self.data.labels)), np.float32)
        network = None
        for number, fold in enumerate(folds):
            kept = self.keep(f"{kind}-{number}")
            found = kept.read()
            if found is None:
                learn = np.zeros(len(held), bool)
                learn[fold.learnt] = True
                network, _ = self.fit(learn, None, f"without {fold.name}", f"{kind}-without-{number}", network)
                found = {"probabilities": self.predict(network, fold.judged)}
                kept.write(found)
            held[fold.judged] = found["probabilities"]
        return held


def train_bundle(
    sources: Sequence[Source],
    bundle: Folder,
    settings: TrainingSettings,
    *,
    start: Bundle | None = None,
    on_epoch: _OnEpoch = lambda phase, epoch, epochs, figures: None,
    on_note: Callable[[str], None] = lambda text: None,
    h5: tuple[Folder, str] | None = None,
) -> Card:
    """Train the network of the tables' recipe, write its bundle, card last, and return the card; see `train`.

    A stopped training continues when it is started again, with the same result as one that was not stopped. `h5` is a folder and
    a name. It raises UsageError if the rows cannot be learnt from: no labels, one label, or labels with too few recordings.
    """
    info = sources[0].info
    recipe = recipes.recipe_of(info.feature_settings)
    epochs, batch_size = settings.epochs or recipe.epochs, settings.batch_size or recipe.batch_size
    settings = replace(settings, epochs=epochs, batch_size=batch_size)
    with Spool(info.feature_settings) as spool:
        data = _read(sources, settings, spool, () if start is None else start.card.labels)
        begun = None if start is None else fit.open_start(start, data, spool, settings.seed)
        for note in (*data.notes, *(begun.compare_labels(data) if begun else ())):
            on_note(note)
        how = Fitting(epochs, batch_size, settings.seed, settings.patience, begun.weights if begun else None)
        is_balanced = len(sources) > 1 if settings.balance is None else settings.balance
        trainer = _Trainer(data, spool, how, bundle, is_balanced, settings, begun, on_epoch, on_note)
        if settings.held_out and settings.validation == Split.SEED:
            is_held_out = splits.split_seed(data.files, settings.held_out)
        else:
            is_held_out = splits.split_stratified(data.targets, data.files, settings.held_out, settings.seed)
        learnt, judged = np.flatnonzero(~is_held_out), data.order[is_held_out[data.order]]
        network, history = trainer.fit(~is_held_out, judged if len(judged) else None, "network", "network")
        shown = Split.TRAINING.value
        metrics = {shown: _measure(data, learnt, trainer.predict(network, learnt), begun)}
        if len(judged):
            shown = settings.validation
            metrics[shown] = _measure(data, judged, trainer.predict(network, judged), begun)
        folds = _find_folds(data, settings, on_note)
        extras: dict[str, bytes] = {}
        calibrated: dict[str, Any] = {}
        confidence: dict[str, Any] = {}
        every_folds = {} if folds is None else {Split.SPEAKER_HELD_OUT: folds}
        if len(sources) > 1 and settings.max_folds:
            every_folds[Split.CORPUS_HELD_OUT] = splits.corpus_folds(data.corpora, data.speakers, data.targets)
        judgements = []
        for kind, each in every_folds.items():
            judgements.append((each, trainer.predict_held_out(each, kind)))
            metrics[kind.value] = _judge_folds(data, *judgements[-1], begun)
        if judgements:
            shown = next(iter(every_folds)).value
            calibrated, confidence, extras[RELIABILITY] = _calibrate(data, judgements, settings.precision)
            if confidence["threshold"] is None:
                on_note(
                    f"no threshold with 20 held-out rows or more reaches a precision of {settings.precision:g}, so is_confident will be "
                    "false everywhere; try a lower --precision"
                )
        elif begun and not set(data.labels) - set(begun.card.labels):
            calibrated, confidence = calibrate.take_over(begun.card)
            on_note(f"no speakers were held out: temperature and is_confident are those of model {begun.card.model_id}")
        card = write_bundle.write_bundle(
            bundle,
            network,
            labels=data.labels,
            feature_settings=info.feature_settings,
            segments=info.segments.without_list(),
            training={
                **asdict(settings),
                **(begun.describe(settings.data_licence) if begun else {}),
                "n_rows": len(data.targets),
                "n_learnt": len(learnt),
                "n_held_out": len(judged),
                "n_failed": data.n_failed,
                "n_unlabelled": sum(data.left_out.values()),
                "n_by_label": {word: int(np.sum(data.targets == number)) for number, word in enumerate(data.labels)},
                "n_speakers": data.n_speakers,
                "corpora": data.describe_corpora(),
            },
            metrics=metrics,
            calibration=calibrated,
            confidence=confidence,
            domain=_fit_domain(trainer, list(every_folds.values()), is_held_out),
            inputs=fit.prepare_batches(spool.read(data.order[:_N_COMPARED]), info.feature_settings),
            extras={
                "history.csv": write_bundle.format_history(history),
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


def _find_folds(data: Dataset, settings: TrainingSettings, on_note: Callable[[str], None]) -> SpeakerFolds | None:
    if not settings.max_folds:
        return None
    try:
        folds = splits.speaker_folds(data.targets, data.speakers, max_folds=settings.max_folds, seed=settings.seed)
    except UsageError as error:
        # The model may still be useful, so a note says that its figures are missing.
        on_note(str(error))
        return None
    if not folds.names:
        on_note(folds.reason)
        return None
    if folds.n_without_speaker:
        on_note(f"in no fold, because the speaker is unknown: {counted(folds.n_without_speaker, 'segment')}")
    return folds


def _measure(data: Dataset, rows: Integers, probabilities: Floats, start: Start | None) -> dict[str, Any]:
    """Return the figures of some rows, with intervals, and under ``before`` those of the model that the training started from."""
    of_rows = intervals(data.targets[rows], probabilities.argmax(axis=1), data.speakers[rows])
    figures = {**data.judge(rows, probabilities), "intervals": of_rows}
    if start is not None:
        figures["before"] = pick(_measure(data, rows, start.before[rows], None), "accuracy", "uar", "intervals")
    return figures


def _judge_folds(data: Dataset, folds: SpeakerFolds, held: Floats, start: Start | None) -> dict[str, Any]:
    """Return the figures of held-out voices, in all, by fold and by corpus, and those of shortcuts."""
    rows = np.flatnonzero(folds.fold_of_row != NO_FOLD)
    by_fold = [(fold.name, data.judge(fold.judged, held[fold.judged])) for fold in folds]
    corpora = {}
    for name in sorted(set(data.corpora.tolist()) - {""}):
        own = rows[data.corpora[rows] == name]
        found = pick(data.judge(own, held[own]), "n_rows", "n_speakers", "uar")
        corpora[name] = {**found, "uar_common": data.judge_common(own, held[own])}
    shortcuts = data.judge_shortcuts(folds)
    return {
        **_measure(data, rows, held[rows], start),
        "folds": [{"name": name, **pick(found, "n_rows", "accuracy", "uar")} for name, found in by_fold],
        "corpora": corpora,
        "voices": data.judge_voices(rows, held[rows]),
        "shortcuts": {name: pick(found, "accuracy", "uar") for name, found in shortcuts.items()},
    }


def _calibrate(
    data: Dataset, judgements: Sequence[tuple[SpeakerFolds, npt.NDArray[np.float32]]], precision: float
) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return the temperature and the threshold of confidence, each with its effect on held-out voices, and a picture.

    The temperature is fitted on all held-out rows: speakers, and corpora if there are several. The threshold is chosen on the
    last of these, because its precision is meant for recordings from elsewhere.
    """
    held = np.concatenate([one for _, one in judgements])
    targets = np.tile(data.targets, len(judgements))
    numbers, n_folds = [], 0
    for folds, _ in judgements:
        numbers.append(np.where(folds.fold_of_row == NO_FOLD, NO_FOLD, folds.fold_of_row + n_folds))
        n_folds += len(folds.names)
    source = Split.CORPUS_HELD_OUT if data.corpora.any() else Split.SPEAKER_HELD_OUT
    found = calibrate.calibrate_across_folds(held, targets, np.concatenate(numbers), source=source)
    folds, of_last = judgements[-1]
    judged = calibrate.judge_threshold_across_folds(
        of_last, data.targets, folds.fold_of_row, source=source, n_speakers=folds.n_speakers, precision=precision
    )
    rows = folds.fold_of_row != NO_FOLD
    right, raw = data.targets[rows], of_last[rows]
    sure = apply_temperature(raw, found["temperature"])
    threshold = calibrate.choose_threshold(sure.max(axis=1), raw.argmax(axis=1) == right, precision=precision)
    picture = draw_reliability(reliability(right, raw), reliability(right, sure))
    names = [name for one, _ in judgements for name in one.names]
    if data.corpora.any():
        # A few corpora cannot show how much corpora differ, even with many speakers.
        judged["is_guaranteed"] = len(folds.names) >= calibrate.MIN_SPEAKERS
    promise = {"threshold": threshold.value, **judged, "names": list(folds.names)}
    return {**found, "names": names}, promise, picture


def _fit_domain(trainer: _Trainer, every_folds: Sequence[SpeakerFolds], is_held_out: Booleans) -> dict[str, Any]:
    """Return the domain for the card; that of the start, or an empty one, if no recordings could be held out.

    Held-out recordings of one corpus are from the same room, so new voices are flagged more often than one in a hundred. With
    several corpora, the voices and the corpora that are left out in turn show how far away a new one lies.
    """
    data, start, seed = trainer.data, trainer.start, trainer.settings.seed
    chosen, held = data.order, is_held_out
    if len(chosen) > _N_DOMAIN:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, _N_DOMAIN, replace=False))
    try:
        if not held.any():
            # If the model learns from all rows, a fifth of them stand for held-out rows here.
            held = splits.split_stratified(data.targets, data.files, 0.2, seed)
        summaries = domain.summarise_rows(recipes.to_table(trainer.spool.read(chosen), data.settings), data.settings)
        held = held[chosen]
        numbers = [folds.fold_of_row[chosen] for folds in every_folds]
        if numbers and data.corpora.any():
            new = np.concatenate([calibrate.measure_new_voices(summaries, one) for one in numbers])
            return calibrate.fit_domain(summaries, summaries[held], distances=new).to_dict()
        shares = {}
        if numbers:
            shares["new_voices"] = calibrate.flag_new_voices(summaries, numbers[0], held)["share"]
        return calibrate.fit_domain(summaries[~held], summaries[held], flagged=shares).to_dict()
    except UsageError as error:
        trainer.on_note(f"{error}; it stays as model {start.card.model_id} has it" if start else str(error))
        return dict(start.card.domain) if start else {}
