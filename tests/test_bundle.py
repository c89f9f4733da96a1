"""Tests of the bundle's files: what is refused, what travels."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest

from emotion_batch.bundle import open_bundle, sha256
from emotion_batch.errors import UsageError
from emotion_batch.prediction import Predictor
from emotion_batch.storage import Folder


def test_a_bundle_travels_to_another_process(bundle: Path) -> None:
    """What a task carries of the model is its place and card."""
    opened = open_bundle(Folder.of(bundle))
    assert pickle.loads(pickle.dumps(opened)) == opened  # noqa: S301
    assert len(pickle.dumps(opened)) < 20_000


def replace_graph(folder: Path, card: dict[str, object], graph: bytes) -> None:
    """Put another graph in, and its digest on the card."""
    (folder / "model.onnx").write_bytes(graph)
    files = {**card["files"], "model.onnx": sha256(graph)}
    (folder / "card.json").write_text(json.dumps({**card, "files": files}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(lambda folder, _: shutil.rmtree(folder), "expected a bundle, got no card.json", id="missing"),
        pytest.param(
            lambda folder, _: (folder / "card.json").write_text("{"), "expected a card of this release", id="no JSON"
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "architecture": "lambda"})),
            "architecture 'lambda' where its features need 'seed-lstm'",
            id="architecture",
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "labels": ["a", "a"]})),
            "labels that are not distinct",
            id="labels",
        ),
        pytest.param(
            lambda folder, _: (folder / "model.onnx").write_bytes(b"other"),
            "with the SHA-256 that its card names",
            id="weights",
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "labels": card["labels"][:-1]})),
            "expected a network from [40] features to 6 labels, got one from [40] to [7]",
            id="shape",
        ),
        pytest.param(lambda folder, card: replace_graph(folder, card, b""), "got none that loads", id="no graph"),
    ],
)
def test_a_bundle_that_is_not_right_is_refused(bundle: Path, tmp_path: Path, change, sentence: str) -> None:
    """A missing, damaged or changed bundle is one sentence, and its weights are not used."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    change(folder, json.loads((bundle / "card.json").read_text()))
    with pytest.raises(UsageError, match=re.escape(sentence)):
        Predictor(open_bundle(Folder.of(folder)))
