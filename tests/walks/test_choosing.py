"""Walks through a part of an archive: the first recordings of it, or those that patterns choose."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest
from support.commands import call_command
from support.shell_cluster import ShellCluster

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.settings import Segments
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.table import require_table


def rows(table: Path) -> pa.Table:
    """Return the rows of a table, whatever parts they are in."""
    found = pyarrow.dataset.dataset(table).to_table().sort_by([("file", "ascending"), ("start_s", "ascending")])
    return found.replace_schema_metadata(None)


@pytest.fixture(scope="module")
def whole(speech: Path, cluster: ShellCluster, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of all recordings, extracted at once."""
    table = tmp_path_factory.mktemp("whole") / "table"
    emotion_batch.extract(speech, table, scheduler=cluster.address)
    return rows(table)


def test_a_trial_goes_on_to_all(speech: Path, whole: pa.Table, cluster: ShellCluster, tmp_path: Path) -> None:
    """The first ten recordings alone, and then, by the same command without --limit, all of them as if at once."""
    words = ("extract", speech, tmp_path / "table", "--scheduler", cluster.address)
    done = call_command(*words, "--limit", "10")
    assert done.code == 0, done.err
    assert rows(tmp_path / "table").equals(whole.slice(0, 10))
    assert emotion_batch.verify(tmp_path / "table", deep=True).is_whole
    # A smaller limit, and --prune, take nothing away.
    again = emotion_batch.extract(speech, tmp_path / "table", limit=3, prune=True)
    assert (again.n_new, again.n_gone, again.n_pruned, again.n_shards_done) == (0, 0, 0, 0)
    assert call_command(*words).code == 0
    assert rows(tmp_path / "table").equals(whole)
    for limit in (0, -1):
        with pytest.raises(UsageError, match="limit must be a number of recordings of at least 1"):
            emotion_batch.extract(speech, tmp_path / "other", limit=limit)


def test_patterns_choose_recordings_for_good(
    speech: Path, whole: pa.Table, cluster: ShellCluster, tmp_path: Path
) -> None:
    """What patterns leave out is not gone, the table keeps the patterns, and other ones are refused once there is a part."""
    archive, table = tmp_path / "archive", tmp_path / "table"
    shutil.copytree(speech, archive)
    choice = {"include": ["V1_*/**", "*_sad.wav"], "exclude": ["V1_angry/**"]}
    at = {"scheduler": cluster.address}
    notes: list[str] = []
    watcher = emotion_batch.Watcher(on_note=notes.append)
    summary = emotion_batch.extract(archive, table, **choice, watcher=watcher, **at)
    names = [name for name in whole["file"].to_pylist() if name.startswith("V1_") or name.endswith("_sad.wav")]
    names = [name for name in names if not name.startswith("V1_angry/")]
    assert 0 < len(names) < whole.num_rows
    assert rows(table)["file"].to_pylist() == names
    assert f"left out {whole.num_rows - len(names)} recordings by --include and --exclude" in notes
    before = rows(table)
    again = emotion_batch.extract(archive, table, **choice, prune=True)
    assert (again.n_new, again.n_gone, again.n_pruned, again.n_shards_done) == (0, 0, 0, 0)
    assert rows(table).equals(before)
    assert summary.counts == again.counts
    for other, words in (
        ({}, r"was made with --include V1_\*/\*\* --include \*_sad.wav, and this call has no --include"),
        ({**choice, "exclude": []}, r"was made with --exclude V1_angry/\*\*, and this call has no --exclude"),
        ({**choice, "exclude": ["x"]}, r"and this call has --exclude x"),
    ):
        with pytest.raises(UsageError, match=words):
            emotion_batch.extract(archive, table, **other)
    # What leaves the archive is gone, and what is left out stays unseen.
    (archive / names[0]).unlink()
    assert emotion_batch.extract(archive, table, **choice, prune=True, **at).n_pruned == 1
    assert rows(table)["file"].to_pylist() == names[1:]


def test_labels_and_kept_features_are_of_the_chosen(speech: Path, cluster: ShellCluster, tmp_path: Path) -> None:
    """A label table and the features that it keeps have the same recordings; a feature table is labelled as it is."""
    labels, features = tmp_path / "labels", tmp_path / "features"
    at = ("--scheduler", cluster.address)
    words = ("label", speech, labels, "--model", "tess-seed", "--keep-features", features, "--exclude", "V2_*/**", *at)
    assert call_command(*words, "--limit", "5").code == 0
    assert rows(labels)["file"].equals(rows(features)["file"])
    assert len(rows(labels)) == 5
    done = call_command(*words, "--json")
    assert done.code == 0, done.err
    assert rows(labels)["file"].equals(rows(features)["file"])
    assert 5 < len(rows(labels)) < 89
    assert emotion_batch.verify(labels, deep=True).is_whole
    refused = call_command("label", features, tmp_path / "more", "--model", "tess-seed", "--limit", "5")
    assert refused.code == 2
    assert "limit cannot be combined with the feature table" in refused.err


def test_patterns_that_leave_nothing_are_named(speech: Path, tmp_path: Path) -> None:
    """Patterns without a match are an error before any work, which says where to look."""
    done = call_command("extract", speech, tmp_path / "table", "--include", "*.flac")
    assert done.code == 2
    assert "check the patterns of --include and --exclude" in done.err
    assert not (tmp_path / "table").exists()


def test_a_plan_is_of_the_chosen(speech: Path, cluster: ShellCluster, tmp_path: Path) -> None:
    """`plan` counts the recordings that patterns choose, and of a table that has them only what is left."""
    at = ("--scheduler", cluster.address)
    choice = ("--include", "V1_*/**", "--sample", "1", "--json", *at)
    done = call_command("plan", speech, *choice)
    assert done.code == 0, done.err
    assert 0 < done.result["n_recordings"] < 89
    assert call_command("extract", speech, tmp_path / "table", "--include", "V1_*/**", *at).code == 0
    left = call_command("plan", speech, "--table", tmp_path / "table", *choice)
    assert left.code == 0, left.err
    assert left.result["n_left"] == 0


def test_windows_are_chosen_by_their_seconds(speech: Path, cluster: ShellCluster, tmp_path: Path) -> None:
    """`window=1, hop=0.5` is what `Segments.windows(1, 0.5)` is, for a table and for one recording."""
    calls = speech / "V1_sad"
    emotion_batch.extract(calls, tmp_path / "table", window=1, hop=0.5, scheduler=cluster.address)
    assert require_table(Folder.of(tmp_path / "table")).segments == Segments.windows(1, 0.5)
    recording = sorted(calls.iterdir())[0]
    starts = emotion_batch.query(
        tmp_path / "table", f"SELECT start_s FROM features WHERE file = '{recording.name}' ORDER BY 1"
    )
    found = emotion_batch.label_recording(recording, window=1, hop=0.5)
    assert [one.start_s for one in found] == starts["start_s"].to_pylist()
    assert len(found) > 1
