"""Tests of training: the rows, the split, the figures and the bundle."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_command, running

from emotion_batch import splits, tables
from emotion_batch.dataset import Dataset, read_dataset
from emotion_batch.errors import UsageError
from emotion_batch.manifest import Manifest
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.spool import Spool
from emotion_batch.storage import Folder
from emotion_batch.tables import TableInfo

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")


def read(features: Path, labels: str) -> Dataset:
    folder = Folder.of(features)
    info = tables.read_info(folder)
    assert info is not None
    with Spool(info.feature_settings) as spool:
        data = read_dataset(folder, info, sorted(Manifest(folder).shards), labels, spool)
        # What went to the disk comes back by the same numbers.
        rows = pq.read_table(features, columns=["file", "mfcc"])
        vectors = dict(zip(rows["file"].to_pylist(), rows["mfcc"].to_pylist(), strict=True))
        for number in data.order[::20].tolist():
            assert spool.read(np.array([number]))[0][0].tolist() == vectors[data.files[number].as_py()]
    return data


def test_rows_with_features_and_a_label_are_learnt_from(features: Path) -> None:
    """Labels are the sorted emotions, failed rows are left out and counted, the order is that of the names."""
    data = read(features, "tess")
    assert data.labels == EMOTIONS
    assert (data.n_failed, data.left_out) == (5, {})
    files = [data.files[number].as_py() for number in data.order.tolist()]
    assert len(files) == 84
    assert files == sorted(files)
    assert [data.labels[number] for number in data.targets[data.order]] == [
        file.rsplit("_", 1)[1][:-4] for file in files
    ]
    assert set(data.speakers) == {"V1", "V2"}


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("ravdess", "expected at least two from 'ravdess', got none"),
        (r"regex:(?P<emotion>V)\d", "got only 'V'"),
        (r"regex:(?P<emotion>angry/V\d_\w+)_", "expected at least 5 recordings of each"),
    ],
)
def test_labels_that_are_no_classes_are_refused(features: Path, labels: str, sentence: str) -> None:
    """A naming that does not apply stops the training instead of teaching it file names."""
    with pytest.raises(UsageError) as caught:
        read(features, labels)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("n_recordings", "is_enough"), [(1, False), (5, True)])
def test_windows_of_one_recording_are_one_recording(tmp_path: Path, n_recordings: int, is_enough: bool) -> None:
    """A label needs recordings, not rows, and all windows of a recording are held out together."""
    table = Folder.of(tmp_path)
    info = TableInfo(tables.FEATURES, "archive", FeatureSettings(), Segments.windows(3))
    names = [f"V{number}_a_{emotion}.wav" for emotion in ("happy", "sad") for number in range(n_recordings)]
    columns = {
        "file": [name for name in names for _ in range(20)],
        "start_s": [3.0 * number for _ in names for number in range(20)],
        "end_s": [3.0 * number + 3 for _ in names for number in range(20)],
        "status": ["ok"] * 20 * len(names),
        "mfcc": [[0.0] * 40] * 20 * len(names),
    }
    schema = tables.feature_schema(FeatureSettings())
    arrays = [pa.array(columns.get(field.name, [None] * 20 * len(names)), field.type) for field in schema]
    tables.publish_part(table, info, 0, "digest", pa.table(arrays, schema=schema))
    if not is_enough:
        with (
            Spool(info.feature_settings) as spool,
            pytest.raises(UsageError, match="at least 5 recordings of each from 'tess', got 1 of 'happy'"),
        ):
            read_dataset(table, info, [0], "tess", spool)
        return
    with Spool(info.feature_settings) as spool:
        data = read_dataset(table, info, [0], "tess", spool)
    held_out = splits.split_stratified(data.targets, data.files, 0.2, 0)
    assert held_out.sum() == 2 * 20
    files = data.files.to_numpy()
    assert not set(files[held_out]) & set(files[~held_out])


def test_the_bundle_says_what_it_is(bundle: Path) -> None:
    """Every file of the design is there with its digest, and the card has what a reader must know."""
    card = json.loads((bundle / "card.json").read_text())
    assert {path.name for path in bundle.iterdir()} == {*card["files"], "card.json"}
    assert set(card["files"]) == {
        "model.keras",
        "model.onnx",
        "history.csv",
        "training.png",
        "confusion.png",
        "reliability.png",
        "README.md",
    }
    for name, digest in card["files"].items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    assert card["labels"] == list(EMOTIONS)
    counts = card["training"]
    assert (counts["n_rows"], counts["n_learnt"], counts["n_held_out"], counts["n_failed"]) == (84, 67, 17, 5)
    assert counts["n_speakers"] == 2
    for kind, n_rows in (("training", 67), ("stratified", 17), ("speaker_held_out", 84)):
        figures = card["metrics"][kind]
        confusion = np.array(figures["confusion"])
        assert confusion.sum() == figures["n_rows"] == n_rows
        assert figures["accuracy"] == pytest.approx(np.trace(confusion) / n_rows)
        recall = np.diag(confusion) / confusion.sum(axis=1)
        assert figures["uar"] == pytest.approx(recall.mean())
        assert list(figures["recall"].values()) == pytest.approx(recall)
    with (bundle / "history.csv").open() as stream:
        history = list(csv.DictReader(stream))
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4", "5"]
    assert float(history[-1]["val_accuracy"]) == pytest.approx(card["metrics"]["stratified"]["accuracy"])
    for name in ("training.png", "confusion.png"):
        assert (bundle / name).read_bytes().startswith(b"\x89PNG")
    assert [fold["name"] for fold in card["metrics"]["speaker_held_out"]["folds"]] == ["V1", "V2"]
    assert set(card["metrics"]["speaker_held_out"]["shortcuts"]) == {"duration", "level"}
    assert card["metrics"]["speaker_held_out"]["intervals"]["n_units"] == 14
    assert len(card["calibration"]["folds"]) == len(card["confidence"]["folds"]) == 2
    assert (card["confidence"]["promised"], card["confidence"]["is_guaranteed"]) == (0.9, False)
    text = (bundle / "README.md").read_text()
    for word in (card["model_id"], "the recipe's, not these weights'", "nothing is guaranteed", "Intended use"):
        assert word in text


def test_training_again_gives_the_same_model(features: Path, bundle: Path, tmp_path: Path) -> None:
    """The same command in another process gives the same weights; with nothing held out it judges nothing."""
    again = run_command("train", features, tmp_path / "again", "--epochs", "5", "--batch-size", "16", "--json")
    assert again.code == 0, again.err
    assert again.result["model_id"] == json.loads((bundle / "card.json").read_text())["model_id"]
    everything = run_command(
        "train", features, tmp_path / "all", "--epochs", "1", "--held-out", "0", "--labels", "folder"
    )
    # A folder says nothing of who speaks.
    assert "expected rows of two speakers or more" in everything.err
    # The broken recordings have a folder of their own, and no features.
    assert everything.code == 0, everything.err
    card = json.loads((tmp_path / "all" / "card.json").read_text())
    assert list(card["metrics"]) == ["training"]
    assert card["labels"][0] == "v1_angry"


@pytest.mark.torture
def test_a_training_that_is_killed_ends_as_one_that_was_not(features: Path, tmp_path: Path) -> None:
    """Killed with -9 in the midst of it, twice, the same command goes on, to the model of an undisturbed training."""
    options = ("--epochs", "40", "--batch-size", "16", "--json")
    whole = run_command("train", features, tmp_path / "whole", *options)
    assert whole.code == 0, whole.err
    bundle = tmp_path / "killed"
    for _ in range(2):
        kept = {path: path.stat().st_mtime_ns for path in bundle.glob(".*.checkpoint")}
        with running("train", features, bundle, *options) as process:
            deadline = time.monotonic() + 120
            # Some epochs further than where it was before.
            while {path: path.stat().st_mtime_ns for path in bundle.glob(".*.checkpoint")} == kept:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
            process.wait()
    assert list(bundle.glob(".*.checkpoint"))
    again = run_command("train", features, bundle, *options)
    assert again.code == 0, again.err
    assert again.result["model_id"] == whole.result["model_id"]
    assert not list(bundle.glob(".*"))


def test_a_bundle_is_replaced_only_on_demand(features: Path, bundle: Path, tmp_path: Path) -> None:
    """A model that is there is somebody's; so is a folder with other things."""
    there = tmp_path / "there"
    shutil.copytree(bundle, there)
    refused = run_command("train", features, there, "--epochs", "1")
    assert refused.code == 2
    assert "got one with a bundle" in refused.err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    refused = run_command("train", features, tmp_path / "photos", "--epochs", "1")
    assert refused.code == 2
    assert "got 'a.jpg' in it" in refused.err
    assert run_command("train", features, there, "--epochs", "1", "--max-folds", "0", "--force").code == 0
    assert json.loads((there / "card.json").read_text())["training"]["epochs"] == 1
