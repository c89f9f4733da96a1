"""Keras and TensorFlow: loaded quietly, and networks saved and identified. Alone imports them, and only when called."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from emotion_batch._version import __version__
from emotion_batch.errors import UsageError
from emotion_batch.inference import bundle
from emotion_batch.libraries import keras_out_of_home, load_matplotlib
from emotion_batch.settings import AnySettings, fingerprint

# The first that loads no code: of the fixes of CVE-2025-1550 (3.8), CVE-2025-9906 (3.11) and CVE-2026-1462 (3.13.2) it has
# all, and no archive's members leave their folder (GHSA-hqp4-2352-xf5r).
_SAFE_KERAS = (3, 14)


def save_bytes(network: Any, suffix: str) -> bytes:
    """Return a network as Keras saves it: ``.keras``, or the notebook's ``.h5``."""
    with tempfile.TemporaryDirectory() as folder, _quiet_keras():
        path = Path(folder, f"model{suffix}")
        network.save(path)
        return path.read_bytes()


def identify(network: Any, labels: Sequence[str], settings: AnySettings) -> str:
    """Return the model's id: the fingerprint of its weights, labels and feature settings."""
    sha = hashlib.sha256()
    for weights in network.get_weights():
        sha.update(np.ascontiguousarray(weights, dtype="<f4").tobytes())
    return fingerprint(
        {
            "architecture": bundle.architecture_of(settings),
            "weights": sha.hexdigest(),
            "labels": list(labels),
            "feature_id": settings.feature_id,
        }
    )


def read_versions() -> dict[str, str]:
    """Return the versions that decide what a training gives."""
    packages = ("keras", "librosa", "numpy", "onnx", "onnxruntime", "scikit-learn", "soxr", "tensorflow")
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
