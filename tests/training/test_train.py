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
from support.commands import call_command, run_command, running

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import require_safe
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.schema import FEATURES, TableInfo, feature_schema
from emotion_batch.tables.table import read_info
from emotion_batch.training import networks, splits
from emotion_batch.training.data import Dataset, Spool, read_dataset

QUICK = ("--epochs", "1", "--max-folds", "0")
EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")


def read(features: Path, labels: str) -> Dataset:
    folder = Folder.of(features)
    info = read_info(folder)
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
        ("ravdess", "'ravdess' gives no label, and at least two are needed"),
        (r"regex:(?P<emotion>V)\d", "gives only 'V', and at least two are needed"),
        (r"regex:(?P<emotion>angry/V\d_\w+)_", "at least 5 of each label are needed"),
    ],
)
def test_labels_that_are_no_classes_are_refused(features: Path, labels: str, sentence: str) -> None:
    """A naming that does not apply stops the training instead of teaching it file names."""
    with pytest.raises(UsageError) as caught:
        read(features, labels)
    assert sentence in str(caught.value)


def test_labels_without_recordings_and_recordings_without_labels_are_told(
    features: Path, bundle: Path, tmp_path: Path
) -> None:
    """Both sides are counted, each with an example, by the command and in an error that comes of it."""
    rows = pq.read_table(features, columns=["file", "status"])
    good = sorted(rows.filter(pa.compute.equal(rows["status"], "ok"))["file"].to_pylist())
    failed = rows.filter(pa.compute.not_equal(rows["status"], "ok"))["file"].to_pylist()
    words = [file.rsplit("_", 1)[1][:-4] for file in good]
    lines = [f"./{file}, {word} " for file, word in zip(good[4:], words[4:], strict=True)]
    # A failed recording is one all the same.
    lines += [f"gone.wav,{words[0]}", "lost.wav,sad", f"{failed[0]},sad", f"{good[4]},{words[4]}"]
    table = tmp_path / "labels.csv"
    table.write_text("file,emotion\n" + "\n".join(lines))
    done = call_command("train", features, tmp_path / "bundle", "--labels", f"table:{table}", *QUICK, "--json")
    assert done.code == 0, done.err
    counts = done.result["training"]
    assert (counts["n_rows"], counts["n_unlabelled"], counts["n_failed"]) == (80, 4, 5)
    assert (
        f"labels {table}: 2 of its 83 rows found no recording, e.g. 'gone.wav'; 1 more repeat another row" in done.err
    )
    said = f"4 of 84 recordings with features have no label, e.g. '{good[0]}'"
    assert said in done.err
    judged = emotion_batch.evaluate(bundle, features, labels=f"table:{table}", robustness=0)
    assert said in judged.warnings
    assert judged.figures["n_rows"] == 80
    table.write_text("file,emotion\nV1 angry/V1_a_angry.wav,angry\n")
    with pytest.raises(
        UsageError, match=r"gives no label, .*1 of its 1 rows found no recording, e.g. 'V1 angry/.*84 of 84"
    ):
        read(features, f"table:{table}")


NUMERIC = {
    "folder": "folder",
    "table": "table:{folder}/labels.csv",
    "regex": r"regex:(?P<emotion>\d\d)/",
}


@pytest.mark.parametrize("kind", NUMERIC)
def test_labels_that_look_like_numbers_must_be_allowed(tmp_path: Path, kind: str) -> None:
    """Folders 01 to 02 are no emotions unless the caller says so, wherever the labels are from; nor for `evaluate`."""
    names = [f"{number:02}/{take}.wav" for number in (1, 2) for take in range(5)]
    table = write_features(tmp_path, names)
    (tmp_path / "labels.csv").write_text("file,emotion\n" + "".join(f"{name},{name[:2]}\n" for name in names))
    source = NUMERIC[kind].format(folder=tmp_path) if kind == "table" else NUMERIC[kind]
    with pytest.raises(UsageError) as caught:
        read_dataset(*table, [0], source, None)
    assert f"'01' from {source!r}, of '01/4.wav', looks like a number or a date" in str(caught.value)
    assert "--allow-numeric-labels" in str(caught.value)
    assert read_dataset(*table, [0], source, None, allow_numeric_labels=True).labels == ("01", "02")
    # A model or a map that has them says so.
    assert len(read_dataset(*table, [0], source, None, known_labels=("01", "02")).targets) == 10
    label_map = {"01": "sad", "02": "happy"}
    assert (
        len(read_dataset(*table, [0], source, None, known_labels=("sad", "happy"), label_map=label_map).targets) == 10
    )
    with pytest.raises(UsageError, match=r"'02' from .* looks like a number"):
        read_dataset(*table, [0], source, None, known_labels=("sad", "happy"), label_map={"01": "sad"})
    with pytest.raises(UsageError, match=r"of the model's labels .* at least two are needed"):
        read_dataset(
            *table, [0], source, None, known_labels=("sad", "happy"), label_map={"01": "sad"}, allow_numeric_labels=True
        )


def test_the_commands_allow_numeric_labels(features: Path, bundle: Path, tmp_path: Path) -> None:
    """`train` and `evaluate` have the option, and say in one sentence that it lacks."""
    source = r"regex:V(?P<emotion>\d)_"
    for command in (
        ("train", features, tmp_path / "bundle", *QUICK),
        ("evaluate", bundle, features, "--robustness", "0"),
    ):
        done = call_command(*command, "--labels", source)
        assert done.code == 2
        assert "'1' from" in done.err
        assert "use --allow-numeric-labels" in done.err
        assert len(done.err.strip().splitlines()) == 1
    done = call_command(
        "train", features, tmp_path / "bundle", *QUICK, "--labels", source, "--allow-numeric-labels", "--json"
    )
    assert done.code == 0, done.err
    assert done.result["labels"] == ["1", "2"]


def write_features(folder: Path, names: list[str], starts: tuple[float, ...] = (0.5,)) -> tuple[Folder, TableInfo]:
    """Write a feature table of recordings, with segments of 3 s."""
    table = Folder.of(folder)
    segments = Segments() if len(starts) == 1 else Segments.windows(3, starts[1] - starts[0])
    info = TableInfo(FEATURES, "/archive", FeatureSettings(), segments)
    columns = {
        "file": [name for name in names for _ in starts],
        "start_s": [start for _ in names for start in starts],
        "end_s": [start + 3 for _ in names for start in starts],
        "status": ["ok"] * len(starts) * len(names),
        "mfcc": [[0.0] * 40] * len(starts) * len(names),
    }
    schema = feature_schema(FeatureSettings())
    arrays = [pa.array(columns.get(field.name, [None] * len(starts) * len(names)), field.type) for field in schema]
    parts.publish_part(table, info, 0, "digest", pa.table(arrays, schema=schema))
    return table, info


def test_segments_have_labels_of_their_own(tmp_path: Path) -> None:
    """Rows are learnt one by one; those of other segments are counted, and a table of none of them is one sentence."""
    names = [f"{number}.wav" for number in range(10)]
    table = write_features(tmp_path, names, (0.0, 1.5, 3.0))
    segments = [(name, start) for name in names for start in (0.0, 3.0)]
    words = ["sad" if number % 4 in (0, 3) else "happy" for number in range(20)]

    def write(shift_s: float, length_s: float) -> None:
        rows = [
            f"{name},{start + shift_s},{start + shift_s + length_s},{word}"
            for (name, start), word in zip(segments, words, strict=True)
        ]
        (tmp_path / "labels.csv").write_text("\n".join(["file,start_s,end_s,emotion", *rows]))

    write(0, 3)
    source = f"table:{tmp_path}/labels.csv"
    data = read_dataset(*table, [0], source, None)
    assert [data.labels[target] for target in data.targets] == words
    assert data.left_out == {"": 10}
    assert data.notes == ("10 of 30 segments with features have no label",)
    # Most recordings begin alike, one does not: it still can be held out or not.
    words[0:2] = ["fear", "happy"]
    assert splits.split_stratified(np.array([0, 1, *[1, 0] * 9]), np.repeat(names, 2), 0.2, 0).sum() == 4
    for shift_s, length_s in ((0.75, 3), (0, 2)):
        write(shift_s, length_s)
        with pytest.raises(UsageError, match=rf"20 of its 20 rows found no segment, e.g. '0.wav' at {shift_s:g} s"):
            read_dataset(*table, [0], source, None)


def test_a_label_of_a_whole_recording_goes_to_windows_only_with_whole(tmp_path: Path) -> None:
    """One window of a recording may have its label; several need `whole`, unless rows of their own say it of all but one."""
    names = [f"V{number}_a_{emotion}.wav" for emotion in ("happy", "sad") for number in range(5)]
    for name in ("1", "3"):
        (tmp_path / name).mkdir()
    one, many = (write_features(tmp_path / str(n), names, tuple(3.0 * at for at in range(n))) for n in (1, 3))
    for table in (one, many):
        rows = [f"{name},{name[5:-4]},," for name in names]
        rows += [f"{name},{name[5:-4]},{at},{at + 3}" for name in names[1:] for at in (0, 3) if table is many]
        path = tmp_path / "labels.csv"
        for source, lines in (("tess", []), (f"table:{path}", rows[: len(names)]), (f"table:{path}", rows)):
            path.write_text("\n".join(["file,emotion,start_s,end_s", *lines]))
            if table is one:
                assert len(read_dataset(*table, [0], source, None, whole=False).targets) == 10
                continue
            assert len(read_dataset(*table, [0], source, None).targets) == 30
            with pytest.raises(
                UsageError, match=r"labels 'V0_a_happy.wav' as a whole, and 3 of its segments .*--whole"
            ):
                read_dataset(*table, [0], source, None, whole=False)
    # With rows of its own, the first recording too spreads its label over one window alone.
    lines = [*rows, *(f"{names[0]},happy,{at},{at + 3}" for at in (0, 3))]
    path.write_text("\n".join(["file,emotion,start_s,end_s", *lines]))
    assert len(read_dataset(*many, [0], f"table:{path}", None, whole=False).targets) == 30


@pytest.mark.parametrize(("n_recordings", "is_enough"), [(1, False), (5, True)])
def test_windows_of_one_recording_are_one_recording(tmp_path: Path, n_recordings: int, is_enough: bool) -> None:
    """A label needs recordings, not rows, and all windows of a recording are held out together."""
    names = [f"V{number}_a_{emotion}.wav" for emotion in ("happy", "sad") for number in range(n_recordings)]
    table, info = write_features(tmp_path, names, tuple(3.0 * number for number in range(20)))
    if not is_enough:
        with (
            Spool(info.feature_settings) as spool,
            pytest.raises(
                UsageError, match=r"'tess' gives 1 recording of 'happy' .* at least 5 of each label are needed"
            ),
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
    for word in (card["model_id"], "the recipe, not these weights:", "nothing is guaranteed", "Intended use"):
        assert word in text


def test_training_again_gives_the_same_model(features: Path, bundle: Path, tmp_path: Path) -> None:
    """The same command in another process gives the same weights; with nothing held out it judges nothing."""
    again = call_command("train", features, tmp_path / "again", "--epochs", "5", "--batch-size", "16", "--json")
    assert again.code == 0, again.err
    assert again.result["model_id"] == json.loads((bundle / "card.json").read_text())["model_id"]
    everything = call_command(
        "train", features, tmp_path / "all", "--epochs", "1", "--held-out", "0", "--labels", "folder"
    )
    # A folder says nothing of who speaks.
    assert "speaker-held-out figures: " in everything.err
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
    again = call_command("train", features, bundle, *options)
    assert again.code == 0, again.err
    assert again.result["model_id"] == whole.result["model_id"]
    assert not list(bundle.glob(".*"))


def test_a_bundle_is_replaced_only_on_demand(features: Path, bundle: Path, tmp_path: Path) -> None:
    """A model that is there is not replaced, nor is a folder with other things."""
    there = tmp_path / "there"
    shutil.copytree(bundle, there)
    refused = call_command("train", features, there, "--epochs", "1")
    assert refused.code == 2
    assert "there is a bundle already; name another folder, or use --force" in refused.err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    refused = call_command("train", features, tmp_path / "photos", "--epochs", "1")
    assert refused.code == 2
    assert "the folder holds other files, e.g. 'a.jpg'" in refused.err
    assert call_command("train", features, there, "--epochs", "1", "--max-folds", "0", "--force").code == 0
    assert json.loads((there / "card.json").read_text())["training"]["epochs"] == 1


def write_labels(path: Path, features: Path, words: dict[str, str], *, has_speakers: bool = True) -> str:
    """Write a label table of the recordings with some emotions, under other words, and return it as a source of labels."""
    rows = pq.read_table(features, columns=["file", "status"])
    good = sorted(rows.filter(pa.compute.equal(rows["status"], "ok"))["file"].to_pylist())
    emotions = {file: file.rsplit("_", 1)[1][:-4] for file in good}
    # One recording of fear is enough of a label that a bundle knows.
    fearful = next(file for file in good if emotions[file] == "fear")
    kept = [file for file in good if emotions[file] in words and (emotions[file] != "fear" or file == fearful)]
    lines = [f"{file},{words[emotions[file]]}" + f",{Path(file).name[:2]}" * has_speakers for file in kept]
    path.write_text("\n".join(["file,emotion" + ",speaker" * has_speakers, *lines]))
    return f"table:{path}"


def test_outputs_keep_their_weights_and_new_labels_get_new_ones(bundle: Path) -> None:
    """By their words, wherever they stand; a seed decides the new weights alone, and labels of the bundle keep their odds."""
    opened = require_safe(Folder.of(bundle))
    wanted = ("bored", *reversed(EMOTIONS))
    network, weights = networks.load_network(opened, wanted, 0)
    own = network.get_weights()
    assert networks.fingerprint_network(network, EMOTIONS, opened.card.feature_settings) == opened.card.model_id
    for old, new in zip(own[:-2], weights[:-2], strict=True):
        assert np.array_equal(old, new)
    for old, new in zip(own[-2:], weights[-2:], strict=True):
        assert new.shape[-1] == 8
        assert np.array_equal(new[..., :0:-1], old)
    again, other = (networks.load_network(opened, wanted, seed)[1] for seed in (0, 1))
    assert all(np.array_equal(one, two) for one, two in zip(weights, again, strict=True))
    assert not np.array_equal(other[-2][:, 0], weights[-2][:, 0])
    assert np.array_equal(other[-2][:, 1:], weights[-2][:, 1:])


def test_a_training_from_a_bundle_says_where_it_started(features: Path, bundle: Path, tmp_path: Path) -> None:
    """The card has both models, both licences, labels that either side lacks, and the bundle's figures on the same rows."""
    source = write_labels(
        tmp_path / "labels.csv", features, {"angry": "angry", "happy": "happy", "fear": "fear", "neutral": "bored"}
    )
    options = ("--labels", source, "--from", bundle, "--epochs", "2", "--data-licence", "mine")
    done = call_command("train", features, tmp_path / "further", *options)
    assert done.code == 0, done.err
    start, card = (json.loads((folder / "card.json").read_text()) for folder in (bundle, tmp_path / "further"))
    assert card["labels"] == sorted([*EMOTIONS, "bored"])
    assert card["training"]["from_model"] == start["model_id"] != card["model_id"]
    assert card["training"]["data_licence"] == "mine; of the model that it started from: not stated"
    assert card["training"]["n_by_label"] == {**dict.fromkeys(EMOTIONS, 0), "angry": 12, "happy": 12, "fear": 1} | {
        "bored": 12
    }
    assert (card["training"]["epochs"], card["training"]["batch_size"]) == (2, 512)
    assert set(card["metrics"]) == {"training", "stratified", "speaker_held_out"}
    assert all(0 <= one["before"]["uar"] <= 1 for one in card["metrics"].values())
    # A label that the bundle lacks is never right before, and one that no recording has counts in no mean.
    assert card["metrics"]["speaker_held_out"]["recall"]["ps"] is None
    assert f"labels that model {start['model_id']} lacks, with new outputs: bored" in done.err
    assert (
        f"labels of model {start['model_id']} that no recording here has: disgust, neutral, ps, sad; they stay"
        in done.err
    )
    said = f"UAR of model {start['model_id']}, from which it started, on the same segments: training 0."
    assert said in done.out
    readme = (tmp_path / "further" / "README.md").read_text()
    assert f"started from the weights of model {start['model_id']}" in readme
    assert "On the same segments that model has a UAR of 0." in readme


def test_without_speakers_a_further_training_keeps_the_calibration(
    features: Path, bundle: Path, tmp_path: Path
) -> None:
    """Temperature, threshold and domain are the bundle's, say so and guarantee nothing, if others cannot be fitted; the seed decides all."""
    labels = write_labels(tmp_path / "labels.csv", features, {"sad": "sad", "happy": "happy"}, has_speakers=False)
    settings = emotion_batch.TrainingSettings(labels=labels, epochs=2)
    notes: list[str] = []
    watcher = emotion_batch.Watcher(on_note=notes.append)
    start = require_safe(Folder.of(bundle)).card
    cards = [
        emotion_batch.train(features, tmp_path / name, settings=settings, from_bundle=bundle, watcher=watcher)
        for name in ("one", "two")
    ]
    assert cards[0].model_id == cards[1].model_id != start.model_id
    assert cards[0].temperature == start.temperature
    assert cards[0].calibration["taken_from"] == cards[0].confidence["taken_from"] == start.model_id
    assert cards[0].confidence["threshold"] == start.confidence["threshold"]
    assert cards[0].confidence["is_guaranteed"] is False
    assert cards[0].domain == start.domain
    assert any(f"temperature and is_confident are those of model {start.model_id}" in note for note in notes)
    assert any(
        f"domain: 5 rows were held out, and at least 20 are needed; hold more out, or leave is_in_domain unknown; it stays as model {start.model_id} has it"
        in note
        for note in notes
    )
    assert f"as model {start.model_id} has them" in (tmp_path / "one" / "README.md").read_text()
    assert emotion_batch.evaluate(tmp_path / "one", features, robustness=0).model_id == cards[0].model_id


def test_what_a_training_cannot_start_from_is_refused(features: Path, bundle: Path, tmp_path: Path) -> None:
    """Other feature settings, a damaged file, and weights of another model under a card are one sentence each."""
    refused = call_command("train", features, tmp_path / "new", "--from", "voices-1")
    assert refused.code == 2
    assert (
        "its features are not those of model" in refused.err and "recipe is mfcc-mean instead of voices" in refused.err
    )
    assert len(refused.err.strip().splitlines()) == 1
    shutil.copytree(bundle, tmp_path / "bad")
    weights = tmp_path / "bad" / "model.keras"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"model\.keras does not have the SHA-256 that its card names"):
        emotion_batch.train(features, tmp_path / "new", from_bundle=tmp_path / "bad")
    data = networks.save_bytes(networks.build_seed(40, 7), ".keras")
    weights.write_bytes(data)
    card = json.loads((bundle / "card.json").read_text())
    card["files"]["model.keras"] = hashlib.sha256(data).hexdigest()
    (tmp_path / "bad" / "card.json").write_text(json.dumps(card))
    with pytest.raises(UsageError, match=f"its weights are not those of model {card['model_id']}"):
        emotion_batch.train(features, tmp_path / "new", from_bundle=tmp_path / "bad")
    assert not (tmp_path / "new").exists()


def test_a_further_training_is_better_on_recordings_held_out(features: Path, tmp_path: Path) -> None:
    """A model of one voice that learns from recordings of another one is more often right on others of it, by its own card."""
    files = pq.read_table(features, columns=["file"])["file"].to_pylist()
    sources = []
    for voice in ("V1", "V2"):
        own = sorted({file for file in files if Path(file).name.startswith(f"{voice}_")})
        lines = [f"{file},{file.rsplit('_', 1)[1][:-4]},{voice}" for file in own]
        (tmp_path / f"{voice}.csv").write_text("\n".join(["file,emotion,speaker", *lines]))
        sources.append(f"table:{tmp_path / voice}.csv")
    settings = emotion_batch.TrainingSettings(labels=sources[0], epochs=20, batch_size=8, held_out=0, max_folds=0)
    emotion_batch.train(features, tmp_path / "start", settings=settings)
    settings = emotion_batch.TrainingSettings(labels=sources[1], epochs=40, batch_size=8, held_out=0.5, max_folds=0)
    card = emotion_batch.train(features, tmp_path / "further", settings=settings, from_bundle=tmp_path / "start")
    figures = card.metrics["stratified"]
    assert figures["n_rows"] == 21
    assert figures["uar"] > figures["before"]["uar"] + 0.1, (figures["uar"], figures["before"]["uar"])
