"""Tests of the bundle's files: what is refused, what travels."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import (
    RELIABILITY,
    Bundle,
    copy_bundle,
    find_model,
    open_bundle,
    read_reliability,
    sha256,
)
from emotion_batch.inference.predict import Predictor
from emotion_batch.storage.folder import Folder


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
    ("part", "value"),
    [
        ("model_id", 7),
        ("labels", "angry"),
        ("training", {"n_rows": "many"}),
        ("training", {"data_licence": ["mine"]}),
        ("metrics", {"training": {"accuracy": "<b>1</b>"}}),
        ("metrics", {"x": None}),
        ("metrics", {"speaker_held_out": {"recall": [1]}}),
        ("calibration", {"temperature": 0}),
        ("calibration", {"folds": {"a": 1}, "names": 3, "raw": {"ece": True}}),
        ("confidence", {"promised": "all"}),
        ("domain", {"flagged": {"held_out": None, "new_voices": 0.5}}),
        ("versions", {"keras": 3}),
        ("files", {"model.onnx": None}),
        ("confidence", None),
    ],
)
def test_a_card_with_other_things_in_it_is_refused(tmp_path: Path, part: str, value: object) -> None:
    """What has not the type that its readers rely on is one sentence when the bundle is opened; what is empty may be."""
    shipped = find_model("voices-1")
    card = json.loads(shipped.read("card.json"))
    (tmp_path / "card.json").write_text(json.dumps({**card, part: value}))
    folder = Folder.of(tmp_path)
    if value is None:
        assert open_bundle(folder).card.confidence == {}
        return
    with pytest.raises(UsageError, match=r"this release cannot read its card \(.*\); train it again") as caught:
        open_bundle(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(
            lambda folder, _: shutil.rmtree(folder), "it is not a bundle, because it has no card.json", id="missing"
        ),
        pytest.param(
            lambda folder, _: (folder / "card.json").write_text("{"), "this release cannot read its card", id="no JSON"
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "architecture": "lambda"})),
            "architecture must be 'seed-lstm': 'lambda'",
            id="architecture",
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "labels": ["a", "a"]})),
            "labels must be distinct words",
            id="labels",
        ),
        pytest.param(
            lambda folder, _: (folder / "model.onnx").write_bytes(b"other"),
            "does not have the SHA-256 that its card names",
            id="weights",
        ),
        pytest.param(
            lambda folder, card: (folder / "card.json").write_text(json.dumps({**card, "labels": card["labels"][:-1]})),
            "needs a network from [40] features to [6] labels, and its network is from [40] to [7]",
            id="shape",
        ),
        pytest.param(
            lambda folder, card: replace_graph(folder, card, b""),
            "the network in model.onnx cannot be loaded",
            id="no graph",
        ),
    ],
)
def test_a_bundle_that_is_not_right_is_refused(bundle: Path, tmp_path: Path, change, sentence: str) -> None:
    """A missing, damaged or changed bundle is one sentence, and its weights are not used."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    change(folder, json.loads((bundle / "card.json").read_text()))
    with pytest.raises(UsageError, match=re.escape(sentence)):
        Predictor(open_bundle(Folder.of(folder)))


def test_the_picture_of_a_bundle_is_the_one_that_its_card_names(tmp_path: Path) -> None:
    """It is copied with the network; another file of its name, one that is no picture or none at all is no picture."""
    bundle = open_bundle(find_model("tess-seed"))
    picture = read_reliability(bundle)
    assert picture is not None and picture.startswith(b"\x89PNG")
    copied = copy_bundle(bundle, Folder.of(tmp_path / "copy"))
    assert read_reliability(copied) == picture
    file = tmp_path / "copy" / RELIABILITY
    for data in (picture + b"x", b"<svg onload=alert(1)>"):
        file.write_bytes(data)
        assert read_reliability(copied) is None
    card = replace(copied.card, files={**copied.card.files, RELIABILITY: sha256(data)})
    assert read_reliability(Bundle(copied.folder, card)) is None
    file.unlink()
    assert read_reliability(copied) is None
