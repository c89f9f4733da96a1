"""Build, save, load and export the networks. Only this module imports Keras and TensorFlow, and only when it is called."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
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
from emotion_batch.features.recipes import Inputs, Values, recipe_of
from emotion_batch.inference.bundle import WEIGHTS, Bundle, read_checked
from emotion_batch.inference.predict import fit_frames, group_by_length
from emotion_batch.libraries import find_plugin, keras_out_of_home, load_matplotlib
from emotion_batch.settings import AnySettings, fingerprint
from emotion_batch.training.augmentation import augment

# The first version that loads no code: it has the fixes of CVE-2025-1550 (3.8), CVE-2025-9906 (3.11) and CVE-2026-1462 (3.13.2),
# and members of an archive cannot leave their folder (GHSA-hqp4-2352-xf5r).
_SAFE_KERAS = (3, 14)
Weights = list[npt.NDArray[np.float32]]
# Filters and taps of each convolution; each halves the number of frames.
_CONVOLUTIONS = ((96, 7), (96, 5), (128, 3))
_N_UNITS, _N_SCORES, _DROPOUT = 64, 64, 0.2
# This is added to the variance of a feature before its root.
_LEAST_VARIANCE = 1e-5
# The default of Keras for batch normalisation.
_BATCH_EPSILON = 1e-3
_ROWS = 512
# The oldest version of ONNX that has the operators, so that old runtimes can read the graph.
_OPSET = 14


def save_bytes(network: Any, suffix: str) -> bytes:
    """Return a network as Keras saves it: ``.keras``, or the notebook's ``.h5``."""
    # Keras warns that `.h5` is an old format.
    logging.getLogger("absl").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
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
            "architecture": recipe_of(settings).network,
            "weights": sha.hexdigest(),
            "labels": list(labels),
            "feature_id": settings.feature_id,
        }
    )


def read_training_versions() -> dict[str, str]:
    """Return the versions that decide the result of a training."""
    packages = ("keras", "librosa", "numpy", "onnx", "onnxruntime", "scikit-learn", "soxr", "tensorflow", "tf2onnx")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"emotion-batch": __version__, "python": platform.python_version(), **versions}


@lru_cache(maxsize=1)
def load_keras() -> tuple[ModuleType, ModuleType]:
    """Import tensorflow and keras quietly, without a GPU, and with the threads that the process may use."""
    _check_keras(importlib.metadata.version("keras"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    # Keras imports it too.
    load_matplotlib()
    with _quiet_stderr(), keras_out_of_home():
        import keras
        import tensorflow
    # A training makes many networks, and tensorflow would warn that it traces the functions of each.
    tensorflow.get_logger().setLevel("ERROR")
    if (name := keras.backend.backend()) != "tensorflow":
        raise UsageError(f"keras: its backend is {name}, and tensorflow is needed; set KERAS_BACKEND=tensorflow")
    # A process that has already used tensorflow keeps its settings.
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
            f"keras: version {version} lacks the fixes of CVE-2025-1550, CVE-2025-9906 and CVE-2026-1462, which "
            f"{'.'.join(map(str, _SAFE_KERAS))} has; `pip install --upgrade keras`"
        )


@contextlib.contextmanager
def _quiet_stderr() -> Any:
    """Keep the messages of tensorflow's C++ during its import from stderr, because no log level silences them."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Network(NamedTuple):
    """A recipe's network.

    Attributes
    ----------
    build
        Returns the network, not compiled, for settings and a number of labels; its last layer has the outputs.
    to_export
        Returns the network that workers execute, which reads the output of `recipes.prepare`; frames in batches of one length.
    augment
        Returns random frames from a row's features, for a network to learn from; None for no augmentation.
    is_cycled
        Whether it learns by one cycle of the learning rate, with smoothed labels, rather than as the notebook's does.
    """

    build: Callable[[Any, int], Any]
    to_export: Callable[[Any], Any]
    augment: Callable[[Values, np.random.Generator], npt.NDArray[np.float32]] | None = None
    is_cycled: bool = False


def find_network(settings: AnySettings) -> Network:
    """Return the network of a recipe."""
    name = recipe_of(settings).network
    found = _NETWORKS.get(name) or find_plugin("emotion_batch.networks", name, Network)
    if found is None:
        raise UsageError(f"network {name!r} of the recipe {settings.recipe!r}: no installed package registers it")
    return found


def build(settings: AnySettings, n_labels: int) -> Any:
    """Return the network of a recipe, not compiled."""
    return find_network(settings).build(settings, n_labels)


def load_network(bundle: Bundle, labels: Many[str], seed: int) -> tuple[Any, Weights]:
    """Return the network of a bundle that `require_safe` has checked, and its weights with outputs for `labels`.

    `labels` include the bundle's own, which keep their weights; `seed` decides the weights of new ones. The network is built here, and
    only weights are read from the file. It raises UsageError if they are not those of the model that the card names.
    """
    card, data = bundle.card, read_checked(bundle, WEIGHTS)
    load_keras()[1].utils.set_random_seed(seed)
    network, wider = (build(card.feature_settings, len(words)) for words in (card.labels, labels))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, WEIGHTS)
        path.write_bytes(data)
        # If Keras raises an error for weights of other shapes, it loads nothing, and the fingerprint below shows that.
        with contextlib.suppress(ValueError, KeyError, OSError):
            network.load_weights(path)
    if fingerprint_network(network, card.labels, card.feature_settings) != card.model_id:
        raise UsageError(
            f"model {bundle.folder.url}: its weights are not those of model {card.model_id}; fetch it again"
        )
    weights, places = network.get_weights(), [list(labels).index(word) for word in card.labels]
    # The last layer has the outputs, and its weights come last.
    n_last = len(network.layers[-1].get_weights())
    for number, new in enumerate(wider.get_weights()[-n_last:], start=-n_last):
        new[..., places] = weights[number]
        weights[number] = new
    return network, weights


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


def build_voices(n_labels: int) -> Any:
    """Return the network of the recipe ``voices``, not compiled: convolutions, BiLSTM, attentive statistics.

    It reads frames, shape (n_frames, `logmel_pitch.N_INPUTS`), in batches of one length, because padding would change the result.
    The statistics are the mean and the deviation of the steps, weighted by attention: K. Okabe et al., "Attentive Statistics Pooling",
    Interspeech 2018.
    """
    _, keras = load_keras()
    layers = keras.layers
    frames = steps = keras.Input((None, N_INPUTS), name="frames")
    for n_filters, n_taps in _CONVOLUTIONS:
        steps = layers.Conv1D(n_filters, n_taps, strides=2, padding="same")(steps)
        steps = layers.BatchNormalization(epsilon=_BATCH_EPSILON)(steps)
        steps = layers.Activation("relu")(steps)
    steps = layers.Dropout(_DROPOUT)(steps)
    states = layers.Bidirectional(layers.LSTM(_N_UNITS, return_sequences=True))(steps)
    attention = layers.Softmax(axis=1)(layers.Dense(1)(layers.Dense(_N_SCORES, activation="tanh")(states)))
    mean = layers.Dot(axes=1)([attention, states])
    of_squares = layers.Dot(axes=1)([attention, layers.Multiply()([states, states])])
    variance = layers.Activation("relu")(layers.Subtract()([of_squares, layers.Multiply()([mean, mean])]))
    deviation = keras.ops.sqrt(layers.Rescaling(1.0, _LEAST_VARIANCE)(variance))
    statistics = layers.Reshape((4 * _N_UNITS,))(layers.Concatenate()([mean, deviation]))
    return keras.Model(frames, layers.Dense(n_labels, activation="softmax")(layers.Dropout(_DROPOUT)(statistics)))


def read_vectors_alone(network: Any) -> Any:
    """Return a network on vectors, shape (n_features,), from one that reads them as steps of one value."""
    _, keras = load_keras()
    features = keras.Input(network.input_shape[1:2], name="features")
    return keras.Model(features, network(keras.ops.expand_dims(features, -1)))


# The networks by the name that a recipe gives them.
_NETWORKS = {
    "seed-lstm": Network(lambda settings, n_labels: build_seed(settings.n_mfcc, n_labels), read_vectors_alone),
    "voices-lstm": Network(
        lambda settings, n_labels: build_voices(n_labels),
        lambda network: network,
        lambda values, generator: augment(Sequence(*values), generator),
        is_cycled=True,
    ),
}


def predict(network: Any, inputs: Inputs) -> npt.NDArray[np.float32]:
    """Return Keras's probabilities for the inputs of a network, shape (n_rows, n_labels)."""
    if not isinstance(inputs, list):
        return np.asarray(network.predict(inputs[..., np.newaxis], batch_size=2 * _ROWS, verbose=0), np.float32)
    found = np.empty((len(inputs), network.output_shape[1]), np.float32)
    for numbers in group_by_length(inputs, _ROWS):
        found[numbers] = network.predict_on_batch(np.stack([fit_frames(inputs[number]) for number in numbers]))
    return found


def export_onnx(network: Any, settings: AnySettings) -> bytes:
    """Return the ONNX graph of a network, for inputs as `recipes.prepare` makes them."""
    _, keras = load_keras()
    executed = find_network(settings).to_export(network)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Keras uses a name that NumPy no longer has.
        warnings.simplefilter("ignore", FutureWarning)
        path = Path(folder, "model.onnx")
        read = keras.InputSpec(shape=executed.input_shape, dtype="float32", name=executed.inputs[0].name)
        executed.export(path, format="onnx", verbose=False, input_signature=[read], opset_version=_OPSET)
        return path.read_bytes()
