"""The texts of a bundle that are made from its card: the README with its head for model hubs, and the LICENSE of models that ship."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from support.commands import ROOT

from emotion_batch.inference.bundle import CARD, open_bundle, sha256
from emotion_batch.inference.card import Card
from emotion_batch.storage.folder import Folder
from emotion_batch.training import labels, write_bundle
from models import train

MODELS = ("tess-seed", "voices-1")


def open_card(model: str) -> Card:
    return open_bundle(Folder.of(ROOT / "models" / model)).card


def read_head(readme: str) -> dict[str, Any]:
    """Return what stands between the two lines of dashes at the top."""
    nothing, head, _ = readme.split("---\n", 2)
    assert nothing == ""
    return yaml.safe_load(head)


@pytest.mark.parametrize("model", MODELS)
def test_the_texts_of_models_that_ship_are_those_of_their_cards(model: str) -> None:
    """README, LICENSE and card are as `models/train.py --describe` writes them, and the card has the digest of every file."""
    folder = ROOT / "models" / model
    for name, data in train.make_texts(model).items():
        assert (folder / name).read_bytes() == data, f"run: python models/train.py --describe ({name})"
    files = {path.name: sha256(path.read_bytes()) for path in folder.iterdir() if path.name != CARD}
    assert files == open_card(model).files


@pytest.mark.parametrize("model", MODELS)
def test_a_licence_names_each_corpus_with_its_terms(model: str) -> None:
    """The LICENSE says that the MIT License is not that of the weights, and has the terms on the card."""
    text = (ROOT / "models" / model / write_bundle.LICENSE).read_text()
    sources = open_card(model).training["labels"]
    for source in [sources] if isinstance(sources, str) else sources:
        _, terms, address = train.CORPORA[source]
        assert f"{terms} ({address})" in text
        assert address in train.LICENCES[source]
        assert terms.split(";")[0] in train.LICENCES[source]
    assert "does not cover the files of this folder" in " ".join(text.split())
    assert max(map(len, text.splitlines())) < 140


def test_the_head_of_a_readme_has_honest_figures() -> None:
    """Model hubs read licence, languages, corpora, and UAR and accuracy on each kind of held-out rows, never on learnt rows."""
    card = open_card("voices-1")
    head = read_head(write_bundle.describe(card))
    assert (head["license"], head["license_link"]) == ("other", "LICENSE")
    assert (head["language"], head["datasets"]) == (["en", "de", "pl"], ["tess", "ravdess", "emodb", "nemo"])
    assert (head["pipeline_tag"], head["library_name"]) == ("audio-classification", "emotion-batch")
    (entry,) = head["model-index"]
    assert entry["name"] == card.model_id
    found = {one["dataset"]["split"]: [metric["value"] for metric in one["metrics"]] for one in entry["results"]}
    kinds = ("speaker_held_out", "corpus_held_out")
    assert found == {
        kind: pytest.approx([card.metrics[kind]["uar"], card.metrics[kind]["accuracy"]], abs=5e-4) for kind in kinds
    }
    assert all("not by these weights" in metric["name"] for one in entry["results"] for metric in one["metrics"])


def test_the_head_says_no_more_than_the_card_knows() -> None:
    """Labels of a folder name no language and no data set; without held-out rows or a licence there is none in the head."""
    card = open_card("tess-seed")
    metrics = {"training": card.metrics["training"]}
    training = {**card.training, "labels": 'regex:"(?P<emotion>a)": {', "data_licence": ""}
    head = read_head(write_bundle.describe(replace(card, training=training, metrics=metrics)))
    assert head["license"] == "unknown"
    assert not {"language", "datasets", "metrics", "model-index", "license_link", "license_name"} & set(head)
    # The text of a pattern cannot break the head.
    judged = {**metrics, "stratified": card.metrics["speaker_held_out"]}
    head = read_head(write_bundle.describe(replace(card, training=training, metrics=judged)))
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == training["labels"]


def test_every_language_of_a_corpus_has_its_code() -> None:
    """The head has a code of ISO 639-1 for each corpus whose language is known, and no corpus lacks one."""
    card = open_card("voices-1")
    for source in labels._BY_NAME:
        head = read_head(write_bundle.describe(replace(card, training={**card.training, "labels": source})))
        has_language = labels.describe_voice(source, "")[0] != ""
        assert head.get("datasets", []) == [source] * has_language
        assert [len(code) for code in head.get("language", [])] == [2] * has_language


def test_an_imported_model_has_a_head() -> None:
    """A model whose training is unknown has a head without data, languages and figures."""
    card = open_card("tess-seed")
    training = {"imported": True, "file": "a.h5", "sha256": "0" * 64, "keras_version": None, "has_config": False}
    text = write_bundle.describe(replace(card, training=training, metrics={}, files={}))
    assert set(read_head(text)) == {"license", "library_name", "pipeline_tag", "tags"}
    assert "so there are no figures" in text
