"""The second recipe from recordings to labels: sequences on a cluster, in windows, and a bundle that says what it is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from support.commands import call_command
from support.shell_cluster import ShellCluster

import emotion_batch
from emotion_batch.settings import VoicesSettings

SETTINGS = VoicesSettings()


@pytest.fixture(scope="module")
def made(speech: Path, cluster: ShellCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, a bundle of two epochs, and labels both ways."""
    folder = tmp_path_factory.mktemp("sequences")
    at = ("--scheduler", cluster.address)
    for command in (
        ("extract", speech, folder / "features", "--recipe", "voices", *at),
        ("verify", folder / "features", "--deep"),
        ("train", folder / "features", folder / "bundle", "--epochs", "2", "--data-licence", "none"),
        ("label", folder / "features", folder / "labels", "--model", folder / "bundle", *at),
        ("label", speech, folder / "straight", "--model", folder / "bundle", *at),
        ("verify", folder / "labels", "--deep"),
    ):
        done = call_command(*command)
        assert done.code == 0, (command[0], done.err)
    return folder


def read(folder: Path) -> pyarrow.Table:
    return pyarrow.dataset.dataset(folder).to_table().sort_by("file").replace_schema_metadata(None)


def test_sequences_come_out_as_labels(made: Path, speech: Path) -> None:
    """Features hold frames of each segment; labels of them and of the recordings are the same rows, also of one alone."""
    features = read(made / "features").to_pylist()
    # One more than of the notebook's segment, which begins where a short recording has ended.
    assert sum(row["status"] == "ok" for row in features) == 85
    for row in features:
        if row["status"] != "ok":
            assert row["logmel"] is None
            continue
        n_frames = 1 + max(0, -(-(round((row["end_s"] - row["start_s"]) * 16_000) - 400) // 160))
        assert abs(len(row["logmel"]) - n_frames) <= 1
        assert len(row["logmel"]) == len(row["f0_hz"]) == len(row["voicing"])
        assert len(row["logmel"][0]) == 64
    labels = read(made / "labels")
    assert labels.equals(read(made / "straight"))
    one = next(row for row in labels.to_pylist() if row["status"] == "ok")
    [alone] = emotion_batch.label_recording(speech / one["file"], model=made / "bundle")
    assert (alone.emotion, alone.confidence) == (one["emotion"], one["confidence"])


def test_the_card_says_what_the_model_is_worth(made: Path) -> None:
    """Speakers held out, calibration both ways, a promise and what it gave, and what is in domain."""
    card = json.loads((made / "bundle" / "card.json").read_text())
    assert card["architecture"] == "voices-lstm"
    assert set(card["metrics"]) == {"training", "stratified", "speaker_held_out"}
    assert [fold["name"] for fold in card["metrics"]["speaker_held_out"]["folds"]] == ["V1", "V2"]
    assert len(card["calibration"]["folds"]) == 2
    assert card["training"]["batch_size"] == 32
    assert card["training"]["data_licence"] == "none"
    rows = read(made / "labels").to_pandas().query("status == 'ok'")
    assert rows["is_speech"].notna().all()
    # Of 17 held-out words no threshold can be told.
    assert card["domain"] == {}
    assert rows["is_in_domain"].isna().all()
    assert not rows["is_confident"].any()


def test_windows_are_sequences_too(made: Path, speech: Path, cluster: ShellCluster, tmp_path: Path) -> None:
    """Windows of a recording have a row each, as long as they start inside it."""
    done = call_command(
        *("label", speech / "V1_angry", tmp_path / "windows", "--model", made / "bundle"),
        *("--window", "0.5", "--hop", "0.25", "--scheduler", cluster.address),
    )
    assert done.code == 0, done.err
    rows = pq.read_table(tmp_path / "windows").to_pandas()
    assert (rows["status"] == "ok").all()
    assert rows.groupby("file").size().min() > 2


def test_features_of_another_recipe_are_refused(made: Path, features: Path) -> None:
    """A network is not given what it cannot read, and the sentence says what to do."""
    done = call_command("label", features, made / "other", "--model", made / "bundle")
    assert done.code == 2
    assert "recipe is mfcc-mean instead of voices" in done.err
    refused = call_command("extract", made, made / "odd", "--recipe", "voices", "--n-mfcc", "13")
    assert refused.code == 2
    assert "--n-mfcc requires the recipe seed, and the recipe is voices" in refused.err
