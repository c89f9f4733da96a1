"""Tests of the Keras network: its layers, its training, the files and the graph that are written of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.recordings import tone

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.features import recipes
from emotion_batch.inference import predict, safety
from emotion_batch.inference.bundle import open_bundle, weight_shapes
from emotion_batch.settings import AnySettings, FeatureSettings, VoicesSettings
from emotion_batch.storage.folder import Folder
from emotion_batch.training import fit, networks
from emotion_batch.training.data import Spool
from emotion_batch.training.fit import Checkpoint, Fitting


def test_the_network_is_the_notebooks() -> None:
    """The seed's network has its layers and its 71,747 parameters."""
    network = networks.build_seed(40, 7)
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

    expected = predict.Predictor(open_bundle(Folder.of(bundle))).predict(vectors)
    for path in (bundle / "model.keras", bundle.with_suffix(".h5")):
        network = keras.saving.load_model(path)
        assert network.count_params() == 71_747
        np.testing.assert_allclose(network.predict(vectors[..., np.newaxis], verbose=0), expected, atol=1e-5)


def spool_of(settings: AnySettings, n_rows: int) -> Spool:
    """Return features of some sounds: tones for sequences, numbers for vectors."""
    spool = Spool(settings)
    rng = np.random.default_rng(0)
    for number in range(n_rows):
        if isinstance(settings, FeatureSettings):
            values: recipes.Values = (rng.normal(number % 7, 3, settings.n_mfcc).astype(np.float32),)
        else:
            samples = tone(rng.uniform(0.3, 1.0), 16_000, hertz=100 + 50 * (number % 7), seed=number)
            values = recipes.compute(samples, 16_000, settings)
        spool.add(recipes.to_table([values], settings))
    return spool


RECIPES = [pytest.param(FeatureSettings(), id="seed"), pytest.param(VoicesSettings(), id="voices")]


@pytest.mark.parametrize(
    "settings", [RECIPES[0], pytest.param(VoicesSettings(), id="voices", marks=pytest.mark.torture)]
)
def test_a_training_is_repeatable_also_when_it_was_stopped(settings: AnySettings, tmp_path: Path) -> None:
    """The same seed gives the same weights, whole or gone on from any epoch; another seed is another training."""
    rows, targets = np.arange(28), np.arange(28) % 7
    spent: list[Any] = []

    def train(seed: int, name: str = "", stops: tuple[int, ...] = (), spare: Any = None) -> str:
        class StopError(Exception):
            pass

        def stop(epoch: int, figures: object) -> None:  # noqa: ARG001 as it is called
            if epoch in stops[:1]:
                raise StopError

        checkpoint = Checkpoint(Folder.of(tmp_path), name, f"seed {seed}") if name else None
        try:
            network, history = fit.fit_network(
                spool,
                settings,
                rows,
                targets,
                n_labels=7,
                fitting=Fitting(3, 16, seed),
                on_epoch=stop,
                checkpoint=checkpoint,
                spare=spare,
            )
        except StopError:
            return train(seed, name, stops[1:])
        spent.append(network)
        assert [len(values) for values in history.values()] == [3, 3]
        return networks.fingerprint_network(network, ["a"] * 7, settings)

    with spool_of(settings, 28) as spool:
        whole = train(3)
        assert train(3, "stopped", stops=(1, 2)) == whole != train(4)
        # A network that has learnt something else, and is used again, forgets it.
        assert train(3, spare=spent[-1]) == whole
        # Of another training nothing is gone on from.
        assert Checkpoint(Folder.of(tmp_path), "stopped", "seed 4").read() is None


def test_a_training_ends_when_it_gets_no_better() -> None:
    """With patience it ends early, with the weights of its best epoch."""
    settings = FeatureSettings()
    rows, targets = np.arange(28), np.arange(28) % 7
    with spool_of(settings, 28) as spool:
        network, history = fit.fit_network(
            spool, settings, rows[:20], targets, n_labels=7, fitting=Fitting(60, 4, 0, patience=2), validate=rows[20:]
        )
        losses = history["val_loss"]
        assert len(losses) < 60
        assert np.argmin(losses) == len(losses) - 3
        probabilities = fit.predict_network(network, spool, settings, rows[20:])
    found = -np.mean(np.log(probabilities[np.arange(8), targets[20:]]))
    assert found == pytest.approx(min(losses), abs=1e-5)


def test_the_voices_network_reads_rows_of_any_length(tmp_path: Path) -> None:
    """It has 238,504 parameters; what workers execute gives its probabilities, alone and beside longer rows; its file is safe."""
    import keras

    keras.utils.set_random_seed(1)
    network = networks.build_voices(7)
    assert network.count_params() == 238_504
    rng = np.random.default_rng(0)
    network.set_weights(
        [
            np.abs(rng.normal(1, 0.3, weights.shape)) if weights.ndim == 1 else rng.normal(0, 0.15, weights.shape)
            for weights in network.get_weights()
        ]
    )
    rows = [rng.normal(0, 1, (n_frames, 67)).astype(np.float32) for n_frames in (1, 4, 7, 50, 121, 300)]
    graph = networks.export_onnx(network, VoicesSettings())
    found = predict.execute(graph, rows)
    np.testing.assert_allclose(found, networks.predict(network, rows), atol=2e-5)
    np.testing.assert_array_equal(found, np.concatenate([predict.execute(graph, [row]) for row in rows]))
    assert found.std(axis=0).max() > 1e-2
    shapes = weight_shapes(VoicesSettings(), 7)
    safety.inspect_keras(networks.save_bytes(network, ".keras"), "network", shapes)
    safety.inspect_onnx(graph, "network")
    # And plain Keras loads it.
    (tmp_path / "a.keras").write_bytes(networks.save_bytes(network, ".keras"))
    again = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(networks.predict(again, rows), networks.predict(network, rows))


@pytest.mark.parametrize(("n_features", "n_labels"), [(40, 7), (13, 2), (128, 20)])
def test_the_exported_graph_is_the_network(n_features: int, n_labels: int) -> None:
    """What workers execute gives Keras's probabilities within 1e-5, for any number of features and labels."""
    import keras

    keras.utils.set_random_seed(n_features)
    network = networks.build_seed(n_features, n_labels)
    rng = np.random.default_rng(0)
    # Of unit gain each, biases too: far from uniform, not yet chaotic.
    network.set_weights([rng.normal(0, len(weights) ** -0.5, weights.shape) for weights in network.get_weights()])
    features = rng.normal(0, 2, (300, n_features)).astype(np.float32)
    found = predict.execute(networks.export_onnx(network, FeatureSettings()), features)
    np.testing.assert_allclose(found, network.predict(features[..., np.newaxis], verbose=0), atol=1e-5)
    assert found.std(axis=0).max() > 1e-3


@pytest.mark.parametrize("lacking", ["keras", "tensorflow", "tf2onnx", "matplotlib"])
def test_training_names_what_it_lacks(lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra that brings its packages, a training says so in one sentence, before it reads anything."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else find(name))
    sentence = f"{lacking} is not installed, and training needs it: `pip install 'emotion-batch\\[train\\]'`"
    for call in (
        lambda: emotion_batch.train(tmp_path / "none", tmp_path / "bundle"),
        lambda: emotion_batch.import_h5(tmp_path / "none.h5", tmp_path / "bundle", labels=["a", "b"]),
        lambda: emotion_batch.demo(tmp_path / "demo"),
    ):
        with pytest.raises(UsageError, match=sentence):
            call()
    assert not list(tmp_path.iterdir())
