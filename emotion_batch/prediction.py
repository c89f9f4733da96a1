"""Prediction: a bundle's network on feature vectors, by ONNX Runtime. Imports no tensorflow."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from emotion_batch.bundle import EXECUTABLE, Bundle, open_bundle, read_checked
from emotion_batch.errors import EmotionBatchError, UsageError
from emotion_batch.storage import Folder

# Rows at a time: their states stay in a core's cache.
_ROWS = 128
_LOCK = threading.Lock()


class Predictor:
    """A bundle's network, loaded.

    Parameters
    ----------
    bundle
        Whose network to load: a graph of ONNX's own operators, which can name no code.

    Raises
    ------
    UsageError
        If it is not the one that the card names, or does not fit the card.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.card = bundle.card
        try:
            self._session = _load_session(read_checked(bundle, EXECUTABLE))
            found = [side[0].shape[1:] for side in (self._session.get_inputs(), self._session.get_outputs())]
        except EmotionBatchError:
            raise
        except Exception as error:
            # ONNX Runtime's exceptions share no base class.
            raise UsageError(
                f"model {bundle.folder.url}: expected a network in {EXECUTABLE}, got none that loads "
                f"({type(error).__name__}); fetch the bundle again"
            ) from error
        n_features, n_labels = self.card.feature_settings.n_mfcc, len(self.card.labels)
        if found != [[n_features], [n_labels]]:
            raise UsageError(
                f"model {bundle.folder.url}: expected a network from {n_features} features to {n_labels} labels, "
                f"got one from {found[0]} to {found[1]}; train it again"
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
        return _run(self._session, features)


def execute(graph: bytes, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what an exported network gives for features, shape (n_rows, n_features)."""
    return _run(_load_session(graph), features)


def _load_session(graph: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The workers are the parallelism; errors are raised and need not be logged as well.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(session: Any, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    name, n_labels = session.get_inputs()[0].name, session.get_outputs()[0].shape[1]
    probabilities = np.empty((len(features), n_labels), np.float32)
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        (probabilities[rows],) = session.run(None, {name: features[rows]})
    return probabilities


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
