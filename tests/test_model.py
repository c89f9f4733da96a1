"""Tests of the Keras network: its layers, its training, the files and the graph that are written of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emotion_batch import model, prediction
from emotion_batch.bundle import open_bundle
from emotion_batch.settings import FeatureSettings
from emotion_batch.storage import Folder


def test_the_network_is_the_notebooks() -> None:
    """The seed's network has its layers and its 71,747 parameters."""
    network = model.build_network(40, 7)
    assert network.count_params() == 71_747
    assert [type(layer).__name__ for layer in network.layers] == [
        "LSTM",
        "Dense",
        "Dropout",
        "Dense",
        "Dropout",
        "Dense",
    ]


def test_plain_keras_loads_both_files(bundle: Path, vectors: np.ndarray) -> None:
    """`model.keras` and the exported `.h5` load without this package and predict what it predicts."""
    import keras

    expected = prediction.Predictor(open_bundle(Folder.of(bundle))).predict(vectors)
    for path in (bundle / "model.keras", bundle.with_suffix(".h5")):
        network = keras.saving.load_model(path)
        assert network.count_params() == 71_747
        np.testing.assert_allclose(network.predict(vectors[..., np.newaxis], verbose=0), expected, atol=1e-5)


def test_the_same_seed_gives_the_same_weights(vectors: np.ndarray) -> None:
    """Training is repeatable, and another seed is another training."""
    targets = np.arange(len(vectors)) % 7

    def train(seed: int) -> str:
        network, history = model.fit(
            vectors, targets, n_labels=7, validation=None, epochs=2, batch_size=16, seed=seed, on_epoch=lambda *_: None
        )
        assert list(history) == ["accuracy", "loss"]
        return model.identify(network, ["a"] * 7, FeatureSettings())

    assert train(3) == train(3) != train(4)


@pytest.mark.parametrize(("n_features", "n_labels"), [(40, 7), (13, 2), (128, 20)])
def test_the_exported_graph_is_the_network(n_features: int, n_labels: int) -> None:
    """What workers execute gives Keras's probabilities within 1e-5, for any number of features and labels."""
    import keras

    keras.utils.set_random_seed(n_features)
    network = model.build_network(n_features, n_labels)
    rng = np.random.default_rng(0)
    # Of unit gain each, biases too: far from uniform, not yet chaotic.
    network.set_weights([rng.normal(0, len(weights) ** -0.5, weights.shape) for weights in network.get_weights()])
    features = rng.normal(0, 2, (300, n_features)).astype(np.float32)
    found = prediction.execute(model.export(network), features)
    np.testing.assert_allclose(found, network.predict(features[..., np.newaxis], verbose=0), atol=1e-5)
    assert found.std(axis=0).max() > 1e-3
