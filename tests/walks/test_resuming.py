"""Walks through going on: what is new, changed, gone, failed or of another model, and what is decoded for it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
import soundfile
from support.commands import call_command, run_command, running, wait_for_parts
from support.recordings import tone
from support.shell_cluster import ShellCluster

import emotion_batch
from emotion_batch.errors import ClusterError, IncompleteError, UsageError
from emotion_batch.inference.bundle import require_safe
from emotion_batch.progress import Progress, Watcher
from emotion_batch.run.record import Summary
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import schema
from emotion_batch.tables.lease import Lease, begin
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import Counts
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.table import find_info, read_info
from emotion_batch.worker.job import Job, TablePlace
from emotion_batch.worker.shard import Work, make_tasks

N_RECORDINGS = 240


def rows(table: Path) -> list[dict[str, object]]:
    return (
        pyarrow.dataset.dataset(table).to_table().sort_by([("file", "ascending"), ("start_s", "ascending")]).to_pylist()
    )


def spoil(path: Path) -> None:
    """Make a recording one that must not be decoded again, though nothing of it shows a change."""
    before = path.stat()
    path.write_bytes(b"\0" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Recordings of four seconds, short of the limits of time and memory of a test."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(N_RECORDINGS):
        soundfile.write(folder / f"{number:03d}.wav", tone(1.0, 8_000, hertz=100 + number), 8_000)
    return folder


@pytest.fixture
def at(cluster: ShellCluster) -> dict[str, Any]:
    """What runs of these tests have in common: a cluster that is there, and no surprise at recordings so alike."""
    return {"scheduler": cluster.address, "force": True}


@pytest.mark.parametrize("how", ["extract", "label", "label and keep"])
def test_only_what_changed_is_decoded(
    archive: Path, bundle: Path, tmp_path: Path, cluster: ShellCluster, how: str
) -> None:
    """Ten recordings more, ten changed and ten gone: 20 decoded, and with --prune the table is one made from scratch."""
    at = {"scheduler": cluster.address}

    def run(to: str, *, prune: bool = False) -> Summary:
        if how == "extract":
            return emotion_batch.extract(archive, tmp_path / to, prune=prune, **at)
        kept = tmp_path / f"{to} features" if how == "label and keep" else None
        return emotion_batch.label(
            archive, tmp_path / to, model=bundle, keep_features=kept, prune=prune, force=True, **at
        )

    assert run("table").n_decoded == N_RECORDINGS
    for number in range(0, N_RECORDINGS, N_RECORDINGS // 10):
        soundfile.write(archive / f"{number:03d}.wav", tone(1.2, 8_000, hertz=50 + number), 8_000)
        soundfile.write(archive / f"{number:03d} new.wav", tone(1.4, 8_000, hertz=50 + number), 8_000)
        (archive / f"{number + 1:03d}.wav").unlink()
    fresh = run("fresh")
    # As if they had never been decoded: decoding them again finds nothing in them.
    for path in archive.iterdir():
        if int(path.stem[:3]) % (N_RECORDINGS // 10):
            spoil(path)
    summary = run("table")
    assert (summary.n_new, summary.n_changed, summary.n_gone, summary.n_pruned) == (10, 10, 10, 0)
    assert summary.n_decoded == 20
    there = {row["file"] for row in rows(tmp_path / "fresh")}
    gone = [row["status"] for row in rows(tmp_path / "table") if row["file"] not in there]
    assert gone == ["ok"] * 10
    summary = run("table", prune=True)
    assert (summary.n_gone, summary.n_pruned, summary.n_decoded) == (0, 10, 0)
    assert summary.counts == fresh.counts
    for name in ("table", "table features") if how == "label and keep" else ("table",):
        assert rows(tmp_path / name) == rows(tmp_path / name.replace("table", "fresh"))
        assert emotion_batch.verify(tmp_path / name, deep=True).is_whole
    assert run("table").n_shards_done == 0


@pytest.mark.parametrize("prune", [False, True])
def test_a_second_run_with_more_to_do_is_not_undone(
    archive: Path, tmp_path: Path, cluster: ShellCluster, *, prune: bool
) -> None:
    """A run that began before the archive changed writes nothing over what a later one made of it, and says no less."""
    at = {"scheduler": cluster.address, "prune": prune}
    table = tmp_path / "table"
    later: list[Summary] = []

    def change_and_run(_: Progress) -> None:
        if not later:
            later.append(Summary(""))
            for number in (0, 100, 200, N_RECORDINGS - 1):
                soundfile.write(archive / f"{number:03d}.wav", tone(1.2, 8_000, hertz=50 + number), 8_000)
            soundfile.write(archive / "new.wav", tone(1.2, 8_000), 8_000)
            (archive / "101.wav").unlink()
            later[0] = emotion_batch.extract(archive, table, **at)

    first = emotion_batch.extract(archive, table, watcher=Watcher(on_progress=change_and_run), **at)
    assert emotion_batch.verify(table, deep=True).is_whole
    fresh = emotion_batch.extract(archive, tmp_path / "fresh", scheduler=cluster.address)
    assert first.counts.n_recordings == later[0].counts.n_recordings == fresh.counts.n_recordings + (not prune)
    found = [row for row in rows(table) if prune or row["file"] != "101.wav"]
    assert found == rows(tmp_path / "fresh")


def test_a_listing_that_is_older_than_the_manifest_is_made_again(
    archive: Path, tmp_path: Path, at: dict[str, Any]
) -> None:
    """A driver that stood still while it listed freezes nothing older than what another run has frozen meanwhile."""
    table = tmp_path / "table"
    emotion_batch.extract(archive, table, **at)
    later: list[Summary] = []

    def change_and_run(_: int) -> None:
        # The first recording was looked at by now.
        if not later:
            later.append(Summary(""))
            soundfile.write(archive / "000.wav", tone(1.2, 8_000, hertz=50), 8_000)
            soundfile.write(archive / "000 new.wav", tone(1.2, 8_000, hertz=60), 8_000)
            later[0] = emotion_batch.extract(archive, table, **at)

    late = emotion_batch.extract(archive, table, prune=True, watcher=Watcher(on_listed=change_and_run), **at)
    assert later[0].counts == late.counts
    assert (late.n_pruned, late.counts.by_status) == (0, {"ok": N_RECORDINGS + 1})
    assert emotion_batch.verify(table, deep=True).is_whole


@pytest.mark.parametrize("how", ["extract", "label and keep"])
def test_what_is_again_as_it_was_listed_is_done_again(
    archive: Path, bundle: Path, tmp_path: Path, at: dict[str, Any], how: str
) -> None:
    """What was touched or away when it was to be read, and is there again as it was, is done by the same command."""
    table, kept = Folder.of(tmp_path / "table"), tmp_path / "kept"

    def run(**options: Any) -> Summary:
        if how == "extract":
            return emotion_batch.extract(archive, table.url, **{**at, **options})
        return emotion_batch.label(archive, table.url, model=bundle, keep_features=kept, **{**at, **options})

    link, touched, away, gone, touched_and_gone = (
        archive / f"{name}.wav" for name in ("link", "003", "100", "101", "200")
    )
    link.symlink_to("nowhere")
    with pytest.raises(ClusterError):
        run(scheduler="tcp://127.0.0.1:9")
    # What its workers would have made of it a moment later.
    times = touched.stat()
    touched.touch()
    touched_and_gone.touch()
    away.rename(tmp_path / "away.wav")
    gone.unlink()
    info = find_info(table)
    assert info is not None
    manifest = Manifest(table)
    here = TablePlace(table, info)
    job = Job(features=here, archive=Folder.of(archive))
    if how != "extract":
        about = TableInfo(schema.FEATURES, info.source, info.feature_settings, info.segments)
        job = Job(
            features=TablePlace(Folder.of(kept), about),
            labels=here,
            archive=Folder.of(archive),
            bundle=require_safe(table.folder("_table/model")),
        )
    work = Work(job, "run", None, manifest.generation)
    made = sum((work(task).counts for task in make_tasks(manifest, manifest.shards, {})), Counts())
    assert made.by_status == {"changed": 2, "ok": N_RECORDINGS - 4, "vanished": 3}
    for path in archive.glob("???.wav"):
        if path not in (touched, touched_and_gone):
            spoil(path)
    os.utime(touched, ns=(times.st_atime_ns, times.st_mtime_ns))
    touched_and_gone.unlink()
    (tmp_path / "away.wav").rename(away)
    summary = run()
    assert (summary.n_changed, summary.n_gone) == (0, 2)
    assert summary.counts.by_status == {"ok": N_RECORDINGS - 2, "vanished": 3}
    assert 3 <= summary.n_decoded <= 5
    # What is gone stays, and a link that leads nowhere is not tried every night.
    assert run().n_shards_done == 0
    if how != "extract":
        assert emotion_batch.status(kept).counts.by_status == summary.counts.by_status
    assert emotion_batch.verify(table.url, deep=True).is_whole


def test_kept_features_and_labels_are_tried_again_together(tmp_path: Path, bundle: Path, cluster: ShellCluster) -> None:
    """Retrying either of the two tables of a labelling leaves both alike after the same command, and what is good stays."""
    archive, features, labels = tmp_path / "archive", tmp_path / "features", tmp_path / "labels"
    archive.mkdir()
    at = {"scheduler": cluster.address}
    for number in range(6):
        soundfile.write(archive / f"{number}.wav", tone(1.0, 8_000, hertz=100 + 50 * number), 8_000)
    good = {name: (archive / name).read_bytes() for name in ("3.wav", "4.wav")}
    for name in good:
        spoil(archive / name)

    def label() -> Summary:
        return emotion_batch.label(archive, labels, model=bundle, keep_features=features, **at)

    def put_right(name: str) -> None:
        times = (archive / name).stat()
        (archive / name).write_bytes(good[name])
        os.utime(archive / name, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert label().counts.by_status == {"not_audio": 2, "ok": 4}
    put_right("3.wav")
    again = {"status": ["not_audio"], **at}
    assert emotion_batch.retry(labels, **again).counts.by_status == {"not_audio": 1, "ok": 5}
    assert emotion_batch.status(features).counts.by_status == {"not_audio": 1, "ok": 5}
    put_right("4.wav")
    assert emotion_batch.retry(features, **again).counts.by_status == {"ok": 6}
    assert label().counts.by_status == {"ok": 6}
    soundfile.write(archive / "5.wav", tone(1.5, 8_000), 8_000)
    summary = label()
    assert (summary.n_decoded, summary.counts.by_status) == (1, {"ok": 6})
    for table in (features, labels):
        assert emotion_batch.verify(table, deep=True).is_whole
    spoil(archive / "0.wav")
    (labels / "part-000000.parquet").unlink()
    shutil.rmtree(features)
    assert label().counts.by_status == {"not_audio": 1, "ok": 5}
    shutil.rmtree(features)
    assert emotion_batch.retry(labels, **again).n_decoded == 1


def test_prune_does_not_believe_an_empty_share(archive: Path, tmp_path: Path, cluster: ShellCluster) -> None:
    """An empty listing, or more than a tenth gone, is refused with --prune, and the table stays; --force prunes."""
    table, away = tmp_path / "table", tmp_path / "away"
    at = {"scheduler": cluster.address}
    emotion_batch.extract(archive, table, **at)
    away.mkdir()
    for path in sorted(archive.iterdir())[: N_RECORDINGS // 2]:
        path.rename(away / path.name)
    before = rows(table)
    done = call_command("extract", archive, table, "--prune")
    assert done.code == 2
    assert "--prune would remove 120 of 240 recordings, more than a tenth; " in done.err
    # Nothing was done, so the table's last run is the one that made it.
    assert [json.loads(path.read_text())["outcome"] for path in table.glob("_table/runs/*")] == ["complete"]
    for path in archive.iterdir():
        path.rename(away / path.name)
    with pytest.raises(UsageError, match="there are no recordings"):
        emotion_batch.extract(archive, table, prune=True, **at)
    assert rows(table) == before
    assert emotion_batch.verify(table).is_whole
    done = call_command("extract", archive, table, "--prune", "--force", "--json")
    assert done.code == 0, done.err
    assert (done.result["n_pruned"], done.result["counts"]["n_recordings"]) == (N_RECORDINGS, 0)
    assert not list(table.glob("*.parquet"))
    assert emotion_batch.verify(table).is_whole
    for path in list(away.iterdir())[:10]:
        path.rename(archive / path.name)
    assert emotion_batch.extract(archive, table, **at).counts.n_ok == 10
    assert emotion_batch.verify(table, deep=True).is_whole


def test_retry_does_what_failed_and_nothing_else(bundle: Path, tmp_path: Path, cluster: ShellCluster) -> None:
    """What failed for a reason that has passed is done again, by status; the others are not looked at."""
    archive, features, labels = tmp_path / "archive", tmp_path / "features", tmp_path / "labels"
    at = {"scheduler": cluster.address}
    archive.mkdir()
    names = [f"{number:02d}.wav" for number in range(30)]
    for number, name in enumerate(names):
        soundfile.write(archive / name, tone(1.0, 8_000, hertz=100 + 5 * number), 8_000)
    whole = (archive / "07.wav").read_bytes()
    # A list, for what it names is listed though it is not there.
    (archive / "list.csv").write_text("\n".join(["file", *names]))
    (archive / "07.wav").unlink()
    (archive / "08.wav").write_bytes(b"no audio")
    summary = emotion_batch.extract(archive / "list.csv", features, **at)
    assert summary.counts.by_status == {"not_audio": 1, "ok": 28, "vanished": 1}
    assert emotion_batch.label(features, labels, model=bundle, **at).counts.n_ok == 28
    (archive / "07.wav").write_bytes(whole)
    (archive / "08.wav").write_bytes(whole[:2_000] + bytes(100))
    for name in names[10:]:
        spoil(archive / name)
    assert emotion_batch.retry(features, status=["truncated", "empty"], **at).n_shards_done == 0
    summary = emotion_batch.retry(features, status=["vanished"], **at)
    assert summary.n_decoded == 1
    assert summary.counts.by_status == {"not_audio": 1, "ok": 29}
    # Without a status only what another try could mend is done again, and none of this is.
    assert emotion_batch.retry(features, **at).n_decoded == 0
    done = call_command("retry", features, "--status", "not_audio", "--json", "--scheduler", cluster.address)
    assert done.code == 0, done.err
    # What changed since it was listed is for the command that lists.
    assert done.result["counts"]["by_status"] == {"changed": 1, "ok": 29}
    assert emotion_batch.retry(features, **at).n_decoded == 0
    # The labels are of features that were tried again since.
    summary = emotion_batch.label(features, labels, model=bundle, **at)
    assert (summary.n_shards_done, summary.counts.n_ok) == (1, 29)
    for table in (features, labels):
        assert emotion_batch.verify(table, deep=True).is_whole
    with pytest.raises(UsageError, match="has the labels of the feature table"):
        emotion_batch.retry(labels, **at)
    for options, sentence in (
        ({"status": ["sad"]}, "status must be changed or crashed or empty"),
        ({"status": ["ok"]}, "or vanished: 'ok'"),
        ({"deadline_s": 0}, "deadline must be from 1 to 1e"),
    ):
        with pytest.raises(UsageError, match=sentence):
            emotion_batch.retry(features, **options, **at)
    next(features.glob("*.parquet")).unlink()
    with pytest.raises(
        IncompleteError,
        match=r"1 of its \d+ parts cannot be used \(missing or out of date\); run the command that made it again",
    ):
        emotion_batch.retry(features, **at)


def test_a_new_model_over_an_old_feature_table_decodes_nothing(
    archive: Path, bundle: Path, tmp_path: Path, at: dict[str, Any]
) -> None:
    """Labels by another model go into another table, from features alone, with the recordings away."""
    features, other = tmp_path / "features", tmp_path / "other"
    emotion_batch.extract(archive, features, **at)
    emotion_batch.label(features, tmp_path / "labels", model=bundle, **at)
    shutil.copytree(bundle, other)
    card = json.loads((other / "card.json").read_text())
    (other / "card.json").write_text(json.dumps({**card, "model_id": "another"}))
    archive.rename(tmp_path / "away")
    sentence = f"the model {card['model_id']} (a copy is in _table/model), and this call has the model another; name"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        emotion_batch.label(features, tmp_path / "labels", model=other, **at)
    assert emotion_batch.label(features, tmp_path / "more", model=other, **at).counts.n_ok == N_RECORDINGS


def test_a_table_without_a_part_takes_other_settings(
    speech: Path, bundle: Path, tmp_path: Path, cluster: ShellCluster
) -> None:
    """What a run without a result had begun pins nothing: archive, recipe, segments and model are those of the next call."""
    table, kept, archive = tmp_path / "table", tmp_path / "kept", speech / "V1_sad"
    nowhere = {"scheduler": "tcp://127.0.0.1:9", "keep_features": kept}
    with pytest.raises(ClusterError):
        emotion_batch.label(speech, table, model=bundle, **nowhere)
    assert (table / "_table" / "model" / "card.json").exists()
    # As of a process that died over a shard of the other settings.
    (table / "_table" / "attempts" / "000000.json").write_text("{}")
    other = emotion_batch.label(
        archive, table, model="voices-1", keep_features=kept, force=True, scheduler=cluster.address
    )
    assert other.counts.by_status == {"ok": 6}
    assert other.spent.n_isolated == 0
    fresh = emotion_batch.label(archive, tmp_path / "fresh", model="voices-1", force=True, scheduler=cluster.address)
    assert other.counts == fresh.counts
    assert rows(table) == rows(tmp_path / "fresh")
    for one in (table, kept):
        assert emotion_batch.verify(one, deep=True).is_whole
    with pytest.raises(UsageError, match="was made with the model "):
        emotion_batch.label(archive, table, model=bundle, scheduler=cluster.address)


def test_a_table_that_another_run_works_on_keeps_its_settings(archive: Path, tmp_path: Path) -> None:
    """No run replaces the settings of a run that has no part yet, and of two that begin at once at least one gives way."""
    place, mine = Folder.of(tmp_path / "table"), FeatureSettings()
    info, other = (
        TableInfo(schema.FEATURES, str(archive), settings, Segments())
        for settings in (mine, FeatureSettings(n_mfcc=13))
    )
    first, second, third = (Lease(place, f"20260101T00000{number}Z-0a") for number in range(3))
    begin(place, info, first, print)
    sentence = "with --n-mfcc 40, and this call has --n-mfcc 13; run 20260101T000000Z-0a is at work on it on .*, so its settings"
    with pytest.raises(UsageError, match=sentence):
        emotion_batch.extract(archive, place.url, settings=FeatureSettings(n_mfcc=13))
    with pytest.raises(UsageError, match=sentence):
        begin(place, other, second, print)
    first.end()
    # A run that is about to replace them says so before it looks for others.
    second = Lease(place, second.run)
    second.tell(is_replacing=True)
    second.begin()
    with pytest.raises(UsageError, match="is changing its settings just now"):
        begin(place, info, third, print)
    second.end()
    assert read_info(place) == info


def test_labels_of_a_feature_table_follow_it(archive: Path, bundle: Path, tmp_path: Path, at: dict[str, Any]) -> None:
    """What is added to, changed in and pruned from a feature table is so in its labels at their next run."""
    features, labels = tmp_path / "features", tmp_path / "labels"
    emotion_batch.extract(archive, features, **at)
    emotion_batch.label(features, labels, model=bundle, **at)
    soundfile.write(archive / "000.wav", tone(1.2, 8_000), 8_000)
    soundfile.write(archive / "new.wav", tone(1.2, 8_000), 8_000)
    last = sorted(archive.iterdir())[-20:-1]
    for path in last:
        path.unlink()
    emotion_batch.extract(archive, features, prune=True, **at)
    emotion_batch.label(features, labels, model=bundle, **at)
    assert [row["file"] for row in rows(labels)] == [row["file"] for row in rows(features)]
    assert len(rows(labels)) == N_RECORDINGS + 1 - len(last)
    assert emotion_batch.verify(labels, deep=True).is_whole


def test_status_and_record_while_a_run_works_and_after_it_was_stopped(
    tess: Path, tmp_path: Path, cluster: ShellCluster
) -> None:
    """`status` says who is at work and how fast, without the scheduler; a run that was stopped leaves its record."""
    table = tmp_path / "table"
    with running("extract", tess, table, "--scheduler", cluster.address) as process:
        wait_for_parts(table, 2, process)
        status = emotion_batch.status(table)
        assert [holder.pid for holder in status.at_work] == [process.pid]
        assert 0 < status.n_done < status.n_recordings == 2_798
        assert f"is at work, on {status.at_work[0].host}, process {process.pid}" in run_command("status", table).out
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    status = emotion_batch.status(table)
    assert status.at_work == status.lost == ()
    assert status.last_run is not None
    assert status.last_run["outcome"] == "stopped"
    assert status.last_run["n_shards_done"] > 0
    assert "stopped" in call_command("status", table).out
