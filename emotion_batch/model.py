"""The Keras network: built, trained, saved, and exported. Alone imports tensorflow, and only when called."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

import emotion_batch
from emotion_batch.bundle import SEED
from emotion_batch.errors import UsageError
from emotion_batch.settings import FeatureSettings, fingerprint

# The first that loads no code: of the fixes of CVE-2025-1550 (3.8), CVE-2025-9906 (3.11) and CVE-2026-1462 (3.13.2) it has
# all, and no archive's members leave their folder (GHSA-hqp4-2352-xf5r).
_SAFE_KERAS = (3, 14)


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


def export(network: Any) -> bytes:
    """Return the graph, in ONNX, of what the notebook's network computes from (n_rows, n_features) to probabilities.

    Layers and their order are those of `build_network`; gates are reordered from Keras's input, forget, cell, output to
    ONNX's input, output, forget, cell (https://onnx.ai/onnx/operators/onnx__LSTM.html).
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    kernel, recurrent, bias, *dense = (np.asarray(weights, np.float32) for weights in network.get_weights())
    n_units = len(recurrent)
    # Units of no weight, up to a multiple of four: their state stays 0, and ONNX Runtime is quicker by a twentieth.
    n_idle = -n_units % 4

    def gates(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return weights of shape (..., 4 * n_units) as (1, 4 * (n_units + n_idle), ...)."""
        by_gate = np.stack(np.split(weights, 4, axis=-1))[[0, 3, 1, 2]]
        padded = np.pad(by_gate, [(0, 0)] * weights.ndim + [(0, n_idle)])
        return np.concatenate(padded, axis=-1).T[np.newaxis]

    dense[0] = np.pad(dense[0], [(0, n_idle), (0, 0)])
    constants = {
        "kernel": gates(kernel),
        "recurrent": gates(np.pad(recurrent, [(0, n_idle), (0, 0)])),
        "bias": np.concatenate([gates(bias), np.zeros_like(gates(bias))], axis=1),
        "first_axis": np.array([0], np.int64),
        "last_axis": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["features"], ["steps"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["steps", "last_axis"], ["values"]),
        helper.make_node(
            "LSTM", ["values", "kernel", "recurrent", "bias"], ["", "state"], hidden_size=n_units + n_idle
        ),
        helper.make_node("Squeeze", ["state", "first_axis"], ["dense_0"]),
    ]
    n_layers = len(dense) // 2
    for layer in range(n_layers):
        constants[f"weights_{layer}"], constants[f"bias_{layer}"] = dense[2 * layer : 2 * layer + 2]
        inputs = [f"{name}_{layer}" for name in ("dense", "weights", "bias")]
        is_last = layer == n_layers - 1
        nodes.append(helper.make_node("Gemm", inputs, [f"sum_{layer}"]))
        nodes.append(
            helper.make_node("Softmax", [f"sum_{layer}"], ["probabilities"], axis=1)
            if is_last
            else helper.make_node("Relu", [f"sum_{layer}"], [f"dense_{layer + 1}"])
        )
    graph = helper.make_graph(
        nodes,
        SEED,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n_rows", network.input_shape[1]])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n_rows", network.output_shape[1]])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    # The oldest that has these operators: what is written today loads in runtimes of years ago.
    written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    checker.check_model(written, full_check=True)
    return bytes(written.SerializeToString())


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
    packages = ("keras", "librosa", "numpy", "onnx", "onnxruntime", "scikit-learn", "soxr", "tensorflow")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"emotion-batch": emotion_batch.__version__, "python": platform.python_version(), **versions}


@lru_cache(maxsize=1)
def _tensorflow() -> tuple[ModuleType, ModuleType]:
    """Import tensorflow and keras: quietly, without a GPU, on as many threads as the process was given."""
    _check_keras(importlib.metadata.version("keras"))
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
