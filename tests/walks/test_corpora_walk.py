"""Several corpora become one model: each with its own names, words and speakers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.commands import call_command

from emotion_batch.storage.folder import Folder
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.table import read_info
from emotion_batch.training.data import Dataset, Spool, join_corpora, read_dataset

# What the second corpus calls the emotions of the first, and lacks disgust.
WORDS = {
    "angry": "anger",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "ps": "surprise",
    "sad": "sadness",
}
MAP = {theirs: ours for ours, theirs in WORDS.items() if ours != theirs}


@pytest.fixture(scope="module")
def nemo(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of recordings that are named as nEMO's."""
    folder = tmp_path_factory.mktemp("nemo")
    for number, path in enumerate(sorted((speech).glob("V*/*.wav"))):
        speaker, _, emotion = path.stem.partition("_")[0], *path.stem.rpartition("_")[1:]
        if emotion in WORDS:
            (folder / "recordings").mkdir(exist_ok=True)
            shutil.copy(path, folder / "recordings" / f"{speaker}_{WORDS[emotion]}_{number}.wav")
    done = call_command("extract", folder / "recordings", folder / "features")
    assert done.code == 0, done.err
    return folder / "features"


def read(table: Path, labels: str, spool: Spool | None = None) -> Dataset:
    place = Folder.of(table)
    info = read_info(place)
    assert info is not None
    return read_dataset(place, info, sorted(Manifest(place).shards), labels, spool, label_map=MAP)


def test_two_corpora_are_one_dataset(features: Path, nemo: Path) -> None:
    """Labels are one list, speakers and recordings of two corpora are two, and rows keep the order of their spool."""
    one, two = read(features, "tess"), read(nemo, "nemo")
    with Spool(one.settings) as spool:
        both = join_corpora({"tess": read(features, "tess", spool), "nemo": read(nemo, "nemo", spool)})
        assert len(spool.read(np.array([len(both.targets) - 1]))[0][0]) == 40
    assert both.labels == ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
    assert both.n_speakers == one.n_speakers + two.n_speakers == 4
    assert sorted(both.order.tolist()) == list(range(len(one.targets) + len(two.targets)))
    words = [both.labels[number] for number in both.targets]
    assert words == [data.labels[number] for data in (one, two) for number in data.targets]
    assert [both.labels[number] for number in both.common] == ["angry", "fear", "happy", "neutral", "ps", "sad"]
    assert both.files[0].as_py() == f"tess/{one.files[0].as_py()}"


def test_corpora_speakers_and_labels_count_alike(features: Path, nemo: Path) -> None:
    """However many recordings they have, speakers of a corpus are drawn as often, and so are a speaker's labels."""
    both = join_corpora({"tess": read(features, "tess"), "nemo": read(nemo, "nemo")})
    # All that one speaker says, and a few recordings of the others.
    rows = np.flatnonzero((both.speakers == "tess/V1") | (np.arange(len(both.targets)) % 3 == 0))
    weights = both.weigh(rows)
    assert weights.sum() == pytest.approx(1)
    of_speaker = {name: weights[both.speakers[rows] == name].sum() for name in set(both.speakers[rows].tolist())}
    assert list(of_speaker.values()) == pytest.approx([0.25] * 4)
    own = both.speakers[rows] == "tess/V1"
    by_label = [weights[own & (both.targets[rows] == number)].sum() for number in range(7)]
    assert by_label == pytest.approx([0.25 / 7] * 7)


def test_a_model_of_several_corpora_says_what_it_is_worth_elsewhere(features: Path, nemo: Path, tmp_path: Path) -> None:
    """The card has corpora held out beside speakers held out, also over the labels that all have, and the trust is of these."""
    (tmp_path / "map.txt").write_text("".join(f"{theirs} = {ours}\n" for theirs, ours in MAP.items()))
    done = call_command(
        *("train", features, nemo, tmp_path / "bundle", "--labels", "tess", "--labels", "nemo"),
        *("--label-map", tmp_path / "map.txt", "--epochs", "1", "--max-folds", "2"),
    )
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    assert set(card["metrics"]) == {"training", "stratified", "speaker_held_out", "corpus_held_out"}
    folds = card["metrics"]["corpus_held_out"]["folds"]
    assert [fold["name"] for fold in folds] == ["nemo", "tess"]
    for kind in ("speaker_held_out", "corpus_held_out"):
        by_corpus = card["metrics"][kind]["corpora"]
        assert {name: one["n_speakers"] for name, one in by_corpus.items()} == {"nemo": 2, "tess": 2}
        voices = card["metrics"][kind]["voices"]
        assert {name: one["n_speakers"] for name, one in voices.items()} == {"English": 2, "Polish": 2, "female": 2}
        assert all(0 <= one[name] <= 1 for one in by_corpus.values() for name in ("uar", "uar_common"))
    assert card["confidence"]["names"] == ["nemo", "tess"]
    assert len(card["calibration"]["folds"]) == 4
    assert {name: one["n_speakers"] for name, one in card["training"]["corpora"].items()} == {"nemo": 2, "tess": 2}
    assert card["training"]["labels"] == ["tess", "nemo"]
    # Two corpora cannot show how corpora differ.
    assert card["confidence"]["is_guaranteed"] is False
    assert "labels of one corpus alone: disgust (tess)" in done.err
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "corpus_held_out" in readme and "nemo" in readme
    assert "- UAR on `corpus_held_out` by language and sex: English 0." in readme


def test_two_tables_of_one_name_are_two_corpora(features: Path, tmp_path: Path) -> None:
    """Tables whose names, or labels, are the same keep their rows apart; without known speakers corpora are still held out."""
    for name in ("a", "b"):
        shutil.copytree(features, tmp_path / name / "features")
    done = call_command(
        *("train", tmp_path / "a" / "features", tmp_path / "b" / "features", tmp_path / "bundle"),
        *("--labels", r"regex:_(?P<emotion>[a-z]+)\.wav$", "--epochs", "1", "--max-folds", "2"),
    )
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    assert {name: one["n_rows"] for name, one in card["training"]["corpora"].items()} == {
        "features": 84,
        "features-": 84,
    }
    assert "speaker_held_out" not in card["metrics"]
    assert [fold["name"] for fold in card["metrics"]["corpus_held_out"]["folds"]] == ["features", "features-"]


def test_tables_that_do_not_fit_each_other_are_named(features: Path, nemo: Path, tmp_path: Path) -> None:
    """Features of other settings, and labels for another number of tables, are one sentence each."""
    done = call_command("extract", nemo.parent / "recordings", tmp_path / "other", "--n-mfcc", "13")
    assert done.code == 0, done.err
    refused = call_command("train", features, tmp_path / "other", tmp_path / "bundle")
    assert refused.code == 2
    assert "its features or segments have other settings than those of" in refused.err
    refused = call_command("train", features, nemo, tmp_path / "bundle", *("--labels", "tess") * 3)
    assert refused.code == 2
    assert "labels: 3 sources were named for 2 tables" in refused.err
