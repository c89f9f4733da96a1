"""Tests of the network, the bundle and prediction, on a bundle that the command trained."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from emotion_batch import model
from emotion_batch.errors import UsageError
from emotion_batch.settings import FeatureSettings
from emotion_batch.storage import Folder


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> model.Predictor:
    return model.load_predictor(model.open_bundle(Folder.of(bundle)))


@pytest.fixture(scope="module")
def vectors(features: Path) -> np.ndarray:
    rows = pq.read_table(features, columns=["mfcc", "status"], filters=[("status", "==", "ok")])
    return np.stack(rows["mfcc"].to_numpy()).astype(np.float32)


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


def test_plain_keras_loads_both_files(bundle: Path, predictor: model.Predictor, vectors: np.ndarray) -> None:
    """`model.keras` and the exported `.h5` load without this package and predict what it predicts."""
    import keras

    expected = predictor.predict(vectors)
    for path in (bundle / "model.keras", bundle.with_suffix(".h5")):
        network = keras.saving.load_model(path)
        assert network.count_params() == 71_747
        np.testing.assert_allclose(network.predict(vectors[..., np.newaxis], verbose=0), expected, atol=1e-6)


def test_probabilities_do_not_depend_on_the_batch(predictor: model.Predictor, vectors: np.ndarray) -> None:
    """Rows sum to 1, one by one they are as in a batch, and no row is lost where batches end."""
    many = np.tile(vectors, (13, 1))[:1_030]
    batched = predictor.predict(many)
    assert batched.shape == (1_030, 7)
    np.testing.assert_allclose(batched.sum(axis=1), 1, atol=1e-5)
    alone = np.concatenate([predictor.predict(row[np.newaxis]) for row in many[:20]])
    np.testing.assert_allclose(batched[:20], alone, atol=1e-6)
    np.testing.assert_allclose(batched[-2:], predictor.predict(many[-2:]), atol=1e-6)
    assert predictor.predict(vectors[:0]).shape == (0, 7)


def test_a_process_loads_a_model_once(bundle: Path) -> None:
    """Threads that ask at the same time get one predictor."""
    opened = model.open_bundle(Folder.of(bundle))
    found: list[model.Predictor] = []
    threads = [threading.Thread(target=lambda: found.append(model.load_predictor(opened))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1


def test_a_bundle_travels_to_another_process(bundle: Path) -> None:
    """What a task carries of the model is its place and card."""
    opened = model.open_bundle(Folder.of(bundle))
    assert pickle.loads(pickle.dumps(opened)) == opened  # noqa: S301
    assert len(pickle.dumps(opened)) < 20_000


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(lambda folder, _: shutil.rmtree(folder), "expected a bundle, got no card.json", id="missing"),
        pytest.param(
            lambda folder, _: (folder / "card.json").write_text("{"), "expected a card of this release", id="no JSON"
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "architecture": "lambda"})),
            "architecture 'lambda' where this release knows 'seed-lstm'",
            id="architecture",
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "labels": ["a", "a"]})),
            "labels that are not distinct",
            id="labels",
        ),
        pytest.param(
            lambda folder, _: (folder / "model.keras").write_bytes(b"other"),
            "with the SHA-256 that its card names",
            id="weights",
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "labels": card["labels"][:-1]})),
            "expected weights of the network",
            id="shape",
        ),
    ],
)
def test_a_bundle_that_is_not_right_is_refused(bundle: Path, tmp_path: Path, change, sentence: str) -> None:
    """A missing, damaged or changed bundle is one sentence, and its weights are not used."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    change(folder, json.loads((bundle / "card.json").read_text()))
    with pytest.raises(UsageError, match=sentence.replace("(", r"\(")):
        model.Predictor(model.open_bundle(Folder.of(folder)))
