"""Fit a network in seeded order, epoch by epoch, with a checkpoint after each."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emotion_batch.errors import UsageError
from emotion_batch.features import recipes
from emotion_batch.features.recipes import Values
from emotion_batch.inference.bundle import Bundle
from emotion_batch.inference.card import Card
from emotion_batch.inference.predict import FRAMES_A_STEP
from emotion_batch.settings import AnySettings
from emotion_batch.storage.folder import Folder
from emotion_batch.training import networks
from emotion_batch.training.data import Dataset, Spool
from emotion_batch.training.networks import Weights, load_keras
from emotion_batch.training.splits import Integers, Split

# The learning rate makes one cycle: it rises over a share of the steps, and falls to a share of the peak (L. Smith and N. Topin,
# "Super-Convergence", 2018).
_PEAK_RATE, _RISE, _LEAST_RATE, _WEIGHT_DECAY, _MOST_NORM, _SMOOTHING = 3e-3, 0.25, 0.15, 1e-2, 1.0, 0.1
# The final weights are the mean over the epochs from this share on: P. Izmailov et al., "Averaging weights leads to wider optima and
# better generalization", UAI 2018.
_AVERAGED = 0.6
# Share of the learning rate if a training starts from a bundle.
_FURTHER_RATE = 0.3
# The default of Adam in Keras, as in the notebook.
_ADAM_RATE = 1e-3
# The least and the most frames of each segment in a batch, and the number of batches whose segments are sorted by length at a time.
_LEAST_FRAMES, _MOST_FRAMES, _SORTED_BATCHES = 32, 384, 10
_ROWS = 2_048
Epoch = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Fitting:
    """How to fit.

    `seed` decides weights and order: on one machine, with the same versions and threads, it gives the same result. With
    validation rows, the fitting ends after `patience` epochs without a better loss on them, with the best weights; 0 for
    none. If there are weights `start`, the fitting begins with them, at a lower learning rate.
    """

    epochs: int
    batch_size: int
    seed: int
    patience: int = 0
    start: Weights | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A file from which a stopped fitting continues.

    `fingerprint` is one of everything that decides the fitting: a checkpoint with another fingerprint is not read.
    """

    folder: Folder
    name: str
    fingerprint: str

    def read(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the arrays of the checkpoint, or None if there is none, or it is from another fitting."""
        data = self.folder.read_if_there(self.name)
        if data is None:
            return None
        try:
            # It reads only numbers, and no pickle.
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                found = dict(kept)
        except (ValueError, OSError, EOFError, KeyError):
            return None
        return found if str(found.get("fingerprint")) == self.fingerprint else None

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write arrays as the checkpoint."""
        sink = io.BytesIO()
        np.savez(sink, allow_pickle=False, fingerprint=np.array(self.fingerprint), **arrays)
        self.folder.make()
        self.folder.publish(self.name, sink.getvalue())


def fit_network(
    spool: Spool,
    settings: AnySettings,
    learn: Integers,
    targets: Integers,
    *,
    n_labels: int,
    fitting: Fitting,
    weights: npt.NDArray[np.float64] | None = None,
    validate: Integers | None = None,
    on_epoch: Epoch = lambda epoch, figures: None,
    checkpoint: Checkpoint | None = None,
    spare: Any = None,
) -> tuple[Any, dict[str, list[float]]]:
    """Fit a recipe's network: the notebook's as the notebook does, and that of sequences with augmentation.

    `learn` are the numbers of the rows to learn from, and `targets` has the number of the label of each row of the spool.
    With `weights`, shares of those rows, an epoch draws as many rows by these shares; without, it has each row once.
    Rows of `validate` are judged after each epoch, and nothing is learnt from them. `on_epoch` gets the number of an
    epoch, from 1, and its figures. The fitting continues from `checkpoint`, and saves each epoch there. `spare` is a network that was
    fitted in the same way and is no longer needed: it is reset and used again, because TensorFlow takes seconds to trace a new one.

    Returns
    -------
    The network, and loss and accuracy by epoch, those of validation rows as ``val_...``.
    """
    _, keras = load_keras()
    keras.utils.set_random_seed(fitting.seed)
    network = fresh = networks.build(settings, n_labels)
    if spare is not None:
        network = spare
        for variable, first in zip(network.variables, fresh.variables, strict=True):
            variable.assign(first)
    is_cycled = networks.find_network(settings).is_cycled
    if fitting.start is not None:
        network.set_weights(fitting.start)
        # The mean and scale of a few rows are worse than those of the start, so these layers stay as they are.
        for layer in network.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    if spare is None:
        _compile(network, fitting, is_cycled=is_cycled)
        network.optimizer.build(network.trainable_variables)
    else:
        rate = float(network.optimizer.learning_rate) if not is_cycled else 0.0
        for variable in network.optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        network.optimizer.learning_rate = rate
    variables = (*network.variables, *network.optimizer.variables)
    patience = 0 if validate is None else fitting.patience
    history: dict[str, list[float]] = {}
    # The weights for the end: those of the best epoch, or the mean of the last ones.
    final: list[npt.NDArray[Any]] = []
    kind = "best" if patience else "mean"
    first_averaged = int(_AVERAGED * fitting.epochs)
    kept = None if checkpoint is None else checkpoint.read()
    if kept is not None:
        history = {name.removeprefix("history_"): kept[name].tolist() for name in kept if name.startswith("history_")}
        for number, variable in enumerate(variables):
            variable.assign(kept[f"variable_{number}"])
        final = [kept[name] for n in range(len(network.get_weights())) if (name := f"{kind}_{n}") in kept]
    n_steps = math.ceil(len(learn) / fitting.batch_size)
    done = len(next(iter(history.values()), []))
    for epoch in range(done, fitting.epochs):
        losses = history.get("val_loss", [0.0])
        if patience and len(losses) - 1 - int(np.argmin(losses)) >= patience:
            break
        data = _dataset(spool, settings, learn, targets, n_labels, fitting, epoch, weights)
        callbacks = [_cycle(network, epoch, n_steps, fitting)] if is_cycled else []
        # One call for each epoch, because a fitting that goes on must begin it as one that was never stopped.
        logs = network.fit(data, shuffle=False, verbose=0, callbacks=callbacks).history
        figures = {name: float(values[-1]) for name, values in logs.items()}
        if validate is not None:
            probabilities = predict_network(network, spool, settings, validate)
            figures |= _judge(probabilities, targets[validate])
        for name, value in figures.items():
            history.setdefault(name, []).append(value)
        if patience and min(history["val_loss"]) == figures["val_loss"]:
            final = network.get_weights()
        elif is_cycled and epoch >= first_averaged and not patience:
            share, newest = np.float32(1 / (epoch - first_averaged + 1)), network.get_weights()
            final = [one + share * (new - one) for one, new in zip(final or newest, newest, strict=True)]
        if checkpoint is not None:
            checkpoint.write(
                {
                    **{f"history_{name}": np.array(values) for name, values in history.items()},
                    **{f"variable_{number}": value for number, value in enumerate(map(np.asarray, variables))},
                    **{f"{kind}_{number}": value for number, value in enumerate(final)},
                }
            )
        on_epoch(epoch + 1, figures)
    if final:
        network.set_weights(final)
    network.trainable = True
    return network, history


class Start(NamedTuple):
    """The model that a training starts from: its card, its weights with an output for each label, and its probabilities by row."""

    card: Card
    weights: Weights
    before: npt.NDArray[np.float32]

    def describe(self, data_licence: str) -> dict[str, str]:
        """Return what the new card says about the start, with the licences of the data of both."""
        own, theirs = (one or "not stated" for one in (data_licence, self.card.training.get("data_licence")))
        return {"from_model": self.card.model_id, "data_licence": f"{own}; of the model that it started from: {theirs}"}

    def compare_labels(self, data: Dataset) -> Iterator[str]:
        """Yield sentences about labels that either side lacks."""
        own, there = set(self.card.labels), {data.labels[number] for number in np.unique(data.targets)}
        if new := sorted(there - own):
            yield f"labels that model {self.card.model_id} lacks, with new outputs: {', '.join(new)}"
        if absent := sorted(own - there):
            lost = "they stay, but become rarer, and no figure says how often they are right"
            yield f"labels of model {self.card.model_id} that no recording here has: {', '.join(absent)}; {lost}"


def open_start(bundle: Bundle, data: Dataset, spool: Spool, seed: int) -> Start:
    """Return a bundle that `require_safe` has checked as the start of a training; the labels of `data` include its labels."""
    card = bundle.card
    network, weights = networks.load_network(bundle, data.labels, seed)
    before = np.zeros((len(data.targets), len(data.labels)), np.float32)
    places = [data.labels.index(word) for word in card.labels]
    before[:, places] = predict_network(network, spool, data.settings, np.arange(len(before)))
    return Start(card, weights, before)


def predict_network(network: Any, spool: Spool, settings: AnySettings, rows: Integers) -> npt.NDArray[np.float32]:
    """Return Keras's probabilities for rows of a spool, shape (n_rows, n_labels)."""
    found = np.empty((len(rows), network.output_shape[1]), np.float32)
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        found[start : start + _ROWS] = networks.predict(network, prepare_batches(spool.read(some), settings))
    return found


def prepare_batches(values: Sequence[Values], settings: AnySettings) -> Any:
    """Return the inputs of a network for features, as `recipes.prepare` makes them from a table."""
    return recipes.prepare(recipes.to_table(values, settings), settings)


def _compile(network: Any, fitting: Fitting, *, is_cycled: bool) -> None:
    _, keras = load_keras()
    if not is_cycled:
        adam = keras.optimizers.Adam(_ADAM_RATE * (1 if fitting.start is None else _FURTHER_RATE))
        network.compile(loss="categorical_crossentropy", optimizer=adam, metrics=["accuracy"])
        return
    network.compile(
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=_SMOOTHING),
        optimizer=keras.optimizers.AdamW(_PEAK_RATE, weight_decay=_WEIGHT_DECAY, clipnorm=_MOST_NORM),
        metrics=["accuracy"],
    )


def _cycle(network: Any, epoch: int, n_steps: int, fitting: Fitting) -> Any:
    """Return a callback that sets the learning rate before each step of an epoch."""
    _, keras = load_keras()
    peak = _PEAK_RATE * (1 if fitting.start is None else _FURTHER_RATE)

    def set_rate(step: int, logs: Any = None) -> None:  # noqa: ARG001 Keras's words
        share = (epoch * n_steps + step) / (fitting.epochs * n_steps)
        rising = 0.5 * (1 - math.cos(math.pi * share / _RISE))
        falling = 0.5 * (1 + math.cos(math.pi * (share - _RISE) / (1 - _RISE)))
        network.optimizer.learning_rate = peak * (max(rising, 1e-3) if share < _RISE else max(falling, _LEAST_RATE))

    return keras.callbacks.LambdaCallback(on_train_batch_begin=set_rate)


def _dataset(
    spool: Spool,
    settings: AnySettings,
    learn: Integers,
    targets: Integers,
    n_labels: int,
    fitting: Fitting,
    epoch: int,
    weights: npt.NDArray[np.float64] | None,
) -> Any:
    """Return an epoch's batches, read and made while the network learns."""
    tensorflow, _ = load_keras()
    # The order depends only on seed and epoch, so that a fitting that continues gives the same as one that was never stopped.
    generator = np.random.default_rng([fitting.seed, epoch])
    order = generator.permutation(learn) if weights is None else generator.choice(learn, len(learn), p=weights)
    # The shape of a vector, or of frames with this many inputs each.
    shape = recipes.recipe_of(settings).input_shape(settings)
    n_inputs = shape[1] if len(shape) > 1 else 0

    wanted = np.eye(n_labels, dtype=np.float32)[targets]

    def batches() -> Iterator[tuple[Any, npt.NDArray[np.float32]]]:
        n_rows = fitting.batch_size * (_SORTED_BATCHES if n_inputs else 1)
        for start in range(0, len(order), n_rows):
            rows = order[start : start + n_rows]
            values = spool.read(rows)
            if n_inputs:
                for some, frames in _cut(values, settings, fitting.batch_size, generator):
                    yield frames, wanted[rows[some]]
            else:
                yield prepare_batches(values, settings)[..., np.newaxis], wanted[rows]

    floats = tensorflow.float32
    inputs = tensorflow.TensorSpec((None, *shape, *([] if n_inputs else [1])), floats)
    signature = (inputs, tensorflow.TensorSpec((None, n_labels), floats))
    data = tensorflow.data.Dataset.from_generator(batches, output_signature=signature)
    return data.apply(tensorflow.data.experimental.assert_cardinality(-(-len(order) // fitting.batch_size))).prefetch(2)


def _cut(
    values: Sequence[Values], settings: AnySettings, batch_size: int, generator: np.random.Generator
) -> Iterator[tuple[Integers, npt.NDArray[np.float32]]]:
    """Yield batches of frames in random order, augmented and cut to the length of the shortest, and the numbers of their rows.

    Rows of about the same length are in one batch, because the network hears padding. A stretch of a row is a valid row.
    """
    augment = networks.find_network(settings).augment
    rows = list(prepare_batches(values, settings)) if augment is None else [augment(one, generator) for one in values]
    order = np.argsort([len(row) for row in rows], kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for number in generator.permutation(len(batches)):
        some = batches[number]
        # Lengths are whole steps of the network.
        shortest = min(max(min(len(rows[one]) for one in some), _LEAST_FRAMES), _MOST_FRAMES)
        n_frames = shortest - shortest % FRAMES_A_STEP
        frames = np.zeros((len(some), n_frames, rows[0].shape[1]), np.float32)
        for place, one in enumerate(some):
            start = int(generator.integers(0, max(1, len(rows[one]) - n_frames + 1)))
            stretch = rows[one][start : start + n_frames]
            frames[place, : len(stretch)] = stretch
        yield some, frames


def _judge(probabilities: npt.NDArray[np.float32], targets: Integers) -> dict[str, float]:
    of_target = probabilities[np.arange(len(targets)), targets]
    return {
        "val_accuracy": float(np.mean(probabilities.argmax(axis=1) == targets)),
        # Keras has the same lower bound.
        "val_loss": float(-np.mean(np.log(np.maximum(of_target, 1e-7), dtype=np.float64))),
    }


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults are the recipe's, with a stratified fifth held out and speakers held out in turn.

    Attributes
    ----------
    labels
        Where the reference labels are from: see `labels.read_labels`. One for all tables, or as many as there are tables.
    label_map
        The names of some of these labels in the bundle; "" leaves the recordings of a label out.
    balance
        Whether each epoch draws corpora, speakers and labels equally, see `data.Dataset.weigh`; None: if there are several tables.
    held_out
        Share of the recordings that is held out from training to judge on; 0 learns from all.
    validation
        Which recordings these are: ``stratified``, a share of each label's, or ``seed``, the last by name, as the
        notebook's ``validation_split``.
    epochs, batch_size
        Passes over the rows, and rows a step; None for the recipe's.
    seed
        Decides the split, the weights and the order.
    patience
        End after this many epochs without a better loss on the held-out recordings; 0 for never.
    max_folds
        The most folds of speakers; each needs a training. 0 for none, which leaves confidence uncalibrated.
    precision
        Target precision of ``is_confident``.
    data_licence
        Licence of the recordings, for the card.
    allow_numeric_labels
        Take labels that look like numbers or dates, which are an error otherwise.
    whole
        Give the label of a whole recording to each of its windows, which is an error otherwise.

    Raises
    ------
    UsageError
        If a value is outside its range.
    """

    labels: str | Sequence[str] = "tess"
    label_map: Mapping[str, str] = field(default_factory=dict)
    balance: bool | None = None
    held_out: float = 0.2
    validation: str = "stratified"
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    patience: int = 0
    max_folds: int = 10
    precision: float = 0.9
    data_licence: str = ""
    allow_numeric_labels: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise UsageError(f"held_out must be from 0 to below 1: {self.held_out!r}")
        if self.validation not in (Split.STRATIFIED, Split.SEED):
            raise UsageError(f"validation must be stratified or seed: {self.validation!r}")
        if not 0 < self.precision <= 1:
            raise UsageError(f"precision must be above 0 and at most 1: {self.precision!r}")
        if self.patience and not self.held_out:
            raise UsageError(
                "patience requires held-out recordings, because it judges each epoch by them; raise held_out above 0"
            )
        if self.max_folds == 1 or self.max_folds < 0:
            raise UsageError(f"max_folds must be 0, or at least 2: {self.max_folds!r}")
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("patience", 0)):
            value = getattr(self, name)
            # The upper bound is that of NumPy's seeds.
            if value is not None and not minimum <= value < 2**32:
                raise UsageError(f"{name} must be a whole number from {minimum} to 2**32 - 1: {value!r}")
