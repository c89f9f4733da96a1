"""The network, the bundle that holds it, and prediction. Alone imports tensorflow, and only when called."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.settings import FeatureSettings, Segments, fingerprint
from emotion_batch.storage import Folder, explained

CARD = "card.json"
WEIGHTS = "model.keras"
CARD_VERSION = 1
# The notebook's network, the one architecture that a card may name.
SEED = "seed-lstm"
_PREDICT_ROWS = 1_024
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Card:
    """What a bundle says of itself.

    Attributes
    ----------
    labels
        Emotions in the order of the network's outputs; the only place where they stand.
    feature_settings, segments
        What it was trained on, and so what it can label.
    architecture
        Name of the network.
    model_id
        Fingerprint of weights, labels and feature settings: the same training gives the same.
    training
        Table, counts and settings of the training.
    metrics
        Figures by kind of split.
    versions
        Of Python and the packages that trained it.
    files
        SHA-256 of each other file of the bundle, in hexadecimal digits.
    """

    labels: tuple[str, ...]
    feature_settings: FeatureSettings
    segments: Segments
    architecture: str
    model_id: str
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, str]

    def to_json(self) -> bytes:
        """Return the card as `card.json` holds it."""
        value = {
            "card_version": CARD_VERSION,
            "labels": list(self.labels),
            "feature_id": self.feature_settings.feature_id,
            "feature_settings": self.feature_settings.to_dict(),
            "segment_id": self.segments.segment_id,
            "segments": self.segments.to_dict(),
            "architecture": self.architecture,
            "model_id": self.model_id,
            "training": dict(self.training),
            "metrics": dict(self.metrics),
            "versions": dict(self.versions),
            "files": dict(self.files),
        }
        return json.dumps(value, indent=2, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Card:
        """Return the card that `to_json` gave; raise ValueError or KeyError if it did not."""
        value = json.loads(data)
        if value["card_version"] != CARD_VERSION:
            raise ValueError(f"card version {value['card_version']!r} where this release reads {CARD_VERSION}")
        if value["architecture"] != SEED:
            raise ValueError(f"architecture {value['architecture']!r} where this release knows {SEED!r}")
        labels = tuple(value["labels"])
        if len(set(labels)) != len(labels) or not labels or not all(isinstance(label, str) for label in labels):
            raise ValueError("labels that are not distinct words")
        return cls(
            labels=labels,
            feature_settings=FeatureSettings.from_dict(value["feature_settings"]),
            segments=Segments.from_dict(value["segments"]),
            architecture=value["architecture"],
            model_id=value["model_id"],
            training=value["training"],
            metrics=value["metrics"],
            versions=value["versions"],
            files=value["files"],
        )


@dataclass(frozen=True)
class Bundle:
    """A trained model in its folder, not yet loaded; travels between processes."""

    folder: Folder
    card: Card


def open_bundle(folder: Folder) -> Bundle:
    """Read a bundle's card; the weights stay where they are.

    Raises
    ------
    UsageError
        If the folder holds no bundle that this release reads.
    """
    with explained(f"model {folder.url}"):
        data = folder.read_if_there(CARD)
    if data is None:
        raise UsageError(
            f"model {folder.url}: expected a bundle, got no {CARD} there; make one with `emotion-batch train TABLE BUNDLE`"
        )
    try:
        return Bundle(folder, Card.from_json(data))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"model {folder.url}: expected a card of this release, got {error}; train it again") from error


def copy_bundle(bundle: Bundle, to: Folder) -> Bundle:
    """Copy a bundle's weights and card into another folder, card last, after checking the weights."""
    with explained(f"model copy {to.url}"):
        to.publish(WEIGHTS, _checked_weights(bundle))
        to.publish(CARD, bundle.card.to_json())
    return Bundle(to, bundle.card)


class Predictor:
    """A bundle's network, loaded.

    Parameters
    ----------
    bundle
        Whose weights to load. Its code, if it has any, is not looked at: the network is built here.

    Raises
    ------
    UsageError
        If the weights are not those that the card names, or do not fit the network.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.card = bundle.card
        tensorflow, _ = _tensorflow()
        network = build_network(self.card.feature_settings.n_mfcc, len(self.card.labels))
        load_weights(network, bundle)
        shape = (None, self.card.feature_settings.n_mfcc, 1)
        # A fixed signature: one trace, whatever the number of rows. `predict` in a loop leaks (keras#13118).
        self._run = tensorflow.function(
            lambda features: network(features, training=False),
            input_signature=[tensorflow.TensorSpec(shape, tensorflow.float32)],
        )

    def predict(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the probability of each label.

        Parameters
        ----------
        features
            Shape (n_rows, n_mfcc).

        Returns
        -------
        Probabilities in the card's order, shape (n_rows, n_labels); each row sums to 1.
        """
        parts = [
            np.asarray(self._run(features[start : start + _PREDICT_ROWS, :, np.newaxis]))
            for start in range(0, len(features), _PREDICT_ROWS)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.card.labels)), np.float32)


def load_predictor(bundle: Bundle) -> Predictor:
    """Return the bundle's predictor, loaded once in a process however many threads ask."""
    with _LOCK:
        return _load(bundle.folder, bundle.card.model_id)


@lru_cache(maxsize=2)
def _load(folder: Folder, model_id: str) -> Predictor:
    bundle = open_bundle(folder)
    if bundle.card.model_id != model_id:
        raise UsageError(f"model {folder.url}: expected model {model_id}, got {bundle.card.model_id}")
    return Predictor(bundle)


def build_network(n_features: int, n_labels: int) -> Any:
    """Return the notebook's network, not compiled: LSTM 123, Dense 64, 0.2, Dense 32, 0.2, Dense `n_labels`.

    Parameters
    ----------
    n_features
        Length of a feature vector, which the LSTM reads as that many steps of one value.
    n_labels
        Number of outputs; with 40 features and 7 labels it has 71,747 parameters.
    """
    _, keras = _tensorflow()
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


def load_weights(network: Any, bundle: Bundle) -> None:
    """Put a bundle's weights into a network; raise UsageError if they are other than the card's or do not fit."""
    data = _checked_weights(bundle)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, WEIGHTS)
        path.write_bytes(data)
        try:
            network.load_weights(path)
        except (ValueError, OSError, KeyError) as error:
            raise UsageError(
                f"model {bundle.folder.url}: expected weights of the network {bundle.card.architecture}, "
                f"got others ({str(error).splitlines()[0]})"
            ) from error


def fit(
    features: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    *,
    n_labels: int,
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[int, Mapping[str, float]], None],
) -> tuple[Any, dict[str, list[float]]]:
    """Train the notebook's network as the notebook does: Adam, categorical cross-entropy, shuffled.

    Parameters
    ----------
    features
        Shape (n_rows, n_features).
    targets
        Numbers of the labels, shape (n_rows,).
    n_labels
        How many labels there are.
    validation
        Features and targets judged after each epoch, of which nothing is learnt; None for none.
    epochs, batch_size
        The notebook has 100 and 512.
    seed
        Decides weights and order; with one machine, one set of versions and one thread count, the same gives the same.
    on_epoch
        Called after each epoch with its number, from 1, and its figures.

    Returns
    -------
    The network, and what Keras's ``history.history`` holds.
    """
    _, keras = _tensorflow()
    keras.utils.set_random_seed(seed)
    network = build_network(features.shape[1], n_labels)
    network.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    history = network.fit(
        features[..., np.newaxis],
        keras.utils.to_categorical(targets, n_labels),
        validation_data=None
        if validation is None
        else (validation[0][..., np.newaxis], keras.utils.to_categorical(validation[1], n_labels)),
        epochs=epochs,
        batch_size=batch_size,
        shuffle=True,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1, logs))],
    )
    return network, {name: [float(value) for value in values] for name, values in history.history.items()}


def save_bytes(network: Any, suffix: str) -> bytes:
    """Return a network as Keras saves it: ``.keras``, or the notebook's ``.h5``."""
    with tempfile.TemporaryDirectory() as folder, _quiet_keras():
        path = Path(folder, f"model{suffix}")
        network.save(path)
        return path.read_bytes()


def identify(network: Any, labels: Sequence[str], settings: FeatureSettings) -> str:
    """Return the model's id: the fingerprint of its weights, labels and feature settings."""
    sha = hashlib.sha256()
    for weights in network.get_weights():
        sha.update(np.ascontiguousarray(weights, dtype="<f4").tobytes())
    return fingerprint(
        {"architecture": SEED, "weights": sha.hexdigest(), "labels": list(labels), "feature_id": settings.feature_id}
    )


def read_versions() -> dict[str, str]:
    """Return the versions that decide what a training gives."""
    packages = ("keras", "librosa", "numpy", "scikit-learn", "soxr", "tensorflow")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"emotion-batch": emotion_batch.__version__, "python": platform.python_version(), **versions}


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _checked_weights(bundle: Bundle) -> bytes:
    with explained(f"model {bundle.folder.url}/{WEIGHTS}"):
        data = bundle.folder.read(WEIGHTS)
    if sha256(data) != bundle.card.files.get(WEIGHTS):
        raise UsageError(
            f"model {bundle.folder.url}: expected {WEIGHTS} with the SHA-256 that its card names, got another; "
            "fetch the bundle again"
        )
    return data


@lru_cache(maxsize=1)
def _tensorflow() -> tuple[ModuleType, ModuleType]:
    """Import tensorflow and keras: quietly, without a GPU, on as many threads as the process was given."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    with _quiet_stderr():
        import keras
        import tensorflow
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
