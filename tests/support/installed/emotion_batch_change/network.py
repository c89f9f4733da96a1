"""The recipe's network: one hidden layer."""

from __future__ import annotations

from typing import Any

from emotion_batch.training.networks import Network, load_keras, read_vectors_alone


def build_dense(settings: Any, n_labels: int) -> Any:
    """Return the network, not compiled."""
    _, keras = load_keras()
    return keras.Sequential(
        [
            keras.Input((settings.n_changes, 1)),
            keras.layers.Reshape((settings.n_changes,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(n_labels, activation="softmax"),
        ]
    )


NETWORK = Network(build_dense, read_vectors_alone)
