"""Build, save, load and export the networks. Only this module imports Keras and TensorFlow, and only when it is called."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from collections.abc import Sequence as Many
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emotion_batch._version import __version__
from emotion_batch.errors import UsageError
from emotion_batch.features.logmel_pitch import N_INPUTS, Sequence
from emotion_batch.features.recipes import Inputs, Values
from emotion_batch.inference.card import architecture_of
from emotion_batch.inference.predict import fit_frames
from emotion_batch.libraries import find_plugin, keras_out_of_home, load_matplotlib
from emotion_batch.settings import AnySettings, fingerprint
from emotion_batch.training.augmentation import augment

# The first that loads no code: of the fixes of CVE-2025-1550 (3.8), CVE-2025-9906 (3.11) and CVE-2026-1462 (3.13.2) it has
# all, and no archive's members leave their folder (GHSA-hqp4-2352-xf5r).
_SAFE_KERAS = (3, 14)
_N_FILTERS, _N_TAPS, _N_UNITS, _DROPOUT = 64, 5, 48, 0.3
# Below a variance of this the deviation of a feature is the same.
_LEAST_VARIANCE = 1e-6
# Keras's, of batch normalisation.
_BATCH_EPSILON = 1e-3
# Added to the score of a step that is only padding: its share of attention is 0 in float32.
_PENALTY = 1e4
_ROWS = 512
# Of ONNX: the oldest version that has the operators, for runtimes of years ago.
_OPSET = 14
# Lengths of padded rows, in steps of so many frames, for each length is compiled.
_LENGTHS = 32


def save_bytes(network: Any, suffix: str) -> bytes:
    """Return a network as Keras saves it: ``.keras``, or the notebook's ``.h5``."""
    with tempfile.TemporaryDirectory() as folder, _quiet_keras():
        path = Path(folder, f"model{suffix}")
        network.save(path)
        return path.read_bytes()


def fingerprint_network(network: Any, labels: Many[str], settings: AnySettings) -> str:
    """Return the model's id: the fingerprint of its weights, labels and feature settings."""
    sha = hashlib.sha256()
    for weights in network.get_weights():
        sha.update(np.ascontiguousarray(weights, dtype="<f4").tobytes())
    return fingerprint(
        {
            "architecture": architecture_of(settings),
            "weights": sha.hexdigest(),
            "labels": list(labels),
            "feature_id": settings.feature_id,
        }
    )


def read_training_versions() -> dict[str, str]:
    """Return the versions that decide what a training gives."""
    packages = ("keras", "librosa", "numpy", "onnx", "onnxruntime", "scikit-learn", "soxr", "tensorflow", "tf2onnx")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"emotion-batch": __version__, "python": platform.python_version(), **versions}


@lru_cache(maxsize=1)
def load_keras() -> tuple[ModuleType, ModuleType]:
    """Import tensorflow and keras: quietly, without a GPU, on as many threads as the process was given."""
    _check_keras(importlib.metadata.version("keras"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    # Keras imports it too.
    load_matplotlib()
    with _quiet_stderr(), keras_out_of_home():
        import keras
        import tensorflow
    # A training makes many networks, each with functions of its own: that they are traced anew is no news.
    tensorflow.get_logger().setLevel("ERROR")
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"keras: expected the backend tensorflow, got {keras.backend.backend()}; set KERAS_BACKEND=tensorflow"
        )
    # A process that has used tensorflow already keeps what it has.
    with contextlib.suppress(RuntimeError):
        # The network is so small that a GPU slows it, and its sums would differ from a CPU's.
        tensorflow.config.set_visible_devices([], "GPU")
        if os.environ.get("OMP_NUM_THREADS") == "1":
            tensorflow.config.threading.set_intra_op_parallelism_threads(1)
            tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    return tensorflow, keras


def _check_keras(version: str) -> None:
    """Raise UsageError if the Keras of that version would run code that a file names."""
    if tuple(int(number) for number in version.split(".")[:2]) < _SAFE_KERAS:
        raise UsageError(
            f"keras: expected version {'.'.join(map(str, _SAFE_KERAS))} or later, with the fixes of CVE-2025-1550, "
            f"CVE-2025-9906 and CVE-2026-1462, got {version}; `pip install --upgrade keras`"
        )


@contextlib.contextmanager
def _quiet_stderr() -> Any:
    """Keep from stderr what tensorflow's C++ prints while it is imported, which no level silences."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _quiet_keras() -> Any:
    """Keep Keras from warning that ``.h5`` is old: it is what was asked for."""
    import logging

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Network(NamedTuple):
    """A recipe's network.

    Attributes
    ----------
    build
        Returns it, not compiled, for some settings and a number of labels.
    to_export
        Returns the network that workers execute, which reads what `recipes.prepare` gives.
    augment
        Returns what a network on frames reads of a row's features while it learns, at random; None for no augmentation.
    is_cycled
        Whether it learns by one cycle of the learning rate, with smoothed labels, rather than as the notebook's does.
    """

    build: Callable[[Any, int], Any]
    to_export: Callable[[Any], Any]
    augment: Callable[[Values, np.random.Generator], npt.NDArray[np.float32]] | None = None
    is_cycled: bool = False


def find_network(settings: AnySettings) -> Network:
    """Return the network of a recipe."""
    name = architecture_of(settings)
    found = _NETWORKS.get(name) or find_plugin("emotion_batch.networks", name, Network)
    if found is None:
        raise UsageError(f"network {name!r} of the recipe {settings.recipe!r}: no installed package registers it")
    return found


def build(settings: AnySettings, n_labels: int) -> Any:
    """Return the network of a recipe, not compiled."""
    return find_network(settings).build(settings, n_labels)


def build_seed(n_features: int, n_labels: int) -> Any:
    """Return the notebook's network, not compiled: LSTM 123, Dense 64, 0.2, Dense 32, 0.2, Dense `n_labels`.

    Parameters
    ----------
    n_features
        Length of a feature vector, which the LSTM reads as that many steps of one value.
    n_labels
        Number of outputs; with 40 features and 7 labels it has 71,747 parameters.
    """
    _, keras = load_keras()
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((n_features, 1)),
            layers.LSTM(123),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(n_labels, activation="softmax"),
        ]
    )


def build_sequence(n_labels: int, *, is_padded: bool = True) -> Any:
    """Return the network on sequences, not compiled: two Conv1D(64, 5) with pooling, BiLSTM 48, attentive statistics.

    What it reads are frames, shape (n_frames, `logmel_pitch.N_INPUTS`), and which of them there are, shape (n_frames, 1), 1 or
    0; `n_frames` is a multiple of four. Frames that are padding change nothing. The statistics are the mean and the
    deviation of the steps by attention: K. Okabe et al., "Attentive Statistics Pooling", Interspeech 2018.

    Parameters
    ----------
    n_labels
        Number of outputs.
    is_padded
        If False, the same network, with the same weights, reads frames alone, of rows of one length: with `Masking` its LSTM
        would become a loop in ONNX, which is 7 times slower.
    """
    _, keras = load_keras()
    layers = keras.layers
    frames = keras.Input((None, N_INPUTS), name="frames")
    is_there = keras.Input((None, 1), name="is_there") if is_padded else keras.ops.ones_like(frames[..., :1])
    steps, mask = frames, is_there
    for _ in range(2):
        steps = layers.Conv1D(_N_FILTERS, _N_TAPS, padding="same")(steps)
        steps = layers.BatchNormalization(epsilon=_BATCH_EPSILON)(steps)
        steps = layers.Activation("relu")(steps)
        steps = layers.Multiply()([steps, mask])
        steps = layers.MaxPooling1D(2)(steps)
        mask = layers.MaxPooling1D(2)(mask)
        steps = layers.Dropout(_DROPOUT)(steps)
    # With the mask beside them, steps that are there are never all zero, and so are not taken for padding.
    steps = layers.Concatenate()([steps, mask])
    steps = layers.Masking()(steps) if is_padded else steps
    states = layers.Bidirectional(layers.LSTM(_N_UNITS, return_sequences=True))(steps)
    score = layers.Add()([layers.Dense(1)(states), layers.Rescaling(_PENALTY, -_PENALTY)(mask)])
    attention = layers.Softmax(axis=1)(score)
    mean = layers.Dot(axes=1)([attention, states])
    of_squares = layers.Dot(axes=1)([attention, layers.Multiply()([states, states])])
    variance = layers.Activation("relu")(layers.Subtract()([of_squares, layers.Multiply()([mean, mean])]))
    deviation = keras.ops.sqrt(layers.Rescaling(1.0, _LEAST_VARIANCE)(variance))
    statistics = layers.Reshape((4 * _N_UNITS,))(layers.Concatenate()([mean, deviation]))
    outputs = layers.Dense(n_labels, activation="softmax")(layers.Dropout(_DROPOUT)(statistics))
    return keras.Model([frames, is_there] if is_padded else frames, outputs)


def read_vectors_alone(network: Any) -> Any:
    """Return a network on vectors, shape (n_features,), of one that reads them as steps of one value."""
    _, keras = load_keras()
    features = keras.Input(network.input_shape[1:2], name="features")
    return keras.Model(features, network(keras.ops.expand_dims(features, -1)))


def _read_frames_alone(network: Any) -> Any:
    executed = build_sequence(network.output_shape[1], is_padded=False)
    executed.set_weights(network.get_weights())
    return executed


# By the name that a recipe has for it.
_NETWORKS = {
    "seed-lstm": Network(lambda settings, n_labels: build_seed(settings.n_mfcc, n_labels), read_vectors_alone),
    "sequence-bilstm": Network(
        lambda settings, n_labels: build_sequence(n_labels),
        _read_frames_alone,
        lambda values, generator: augment(Sequence(*values), generator),
        is_cycled=True,
    ),
}


def pad(rows: Many[npt.NDArray[np.float32]], n_frames: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return rows of frames padded to one length, shape (n_rows, n_frames, n_inputs), and which are there."""
    frames = np.zeros((len(rows), n_frames, rows[0].shape[1]), np.float32)
    is_there = np.zeros((len(rows), n_frames, 1), np.float32)
    for number, row in enumerate(rows):
        frames[number, : len(row)] = row
        is_there[number, : len(row)] = 1
    return frames, is_there


def predict(network: Any, inputs: Inputs) -> npt.NDArray[np.float32]:
    """Return what Keras gives for what a network reads: probabilities, shape (n_rows, n_labels)."""
    if not isinstance(inputs, list):
        return np.asarray(network.predict(inputs[..., np.newaxis], batch_size=2 * _ROWS, verbose=0), np.float32)
    found = np.empty((len(inputs), network.output_shape[1]), np.float32)
    rows = [fit_frames(row) for row in inputs]
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        found[start : start + _ROWS] = network.predict_on_batch(
            list(pad(some, -(-max(map(len, some)) // _LENGTHS) * _LENGTHS))
        )
    return found


def export_onnx(network: Any, settings: AnySettings) -> bytes:
    """Return the graph, in ONNX, of what a network computes of its inputs as `recipes.prepare` gives them."""
    _, keras = load_keras()
    executed = find_network(settings).to_export(network)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Keras asks NumPy for a name that it has no more.
        warnings.simplefilter("ignore", FutureWarning)
        path = Path(folder, "model.onnx")
        read = keras.InputSpec(shape=executed.input_shape, dtype="float32", name=executed.inputs[0].name)
        executed.export(path, format="onnx", verbose=False, input_signature=[read], opset_version=_OPSET)
        return path.read_bytes()
