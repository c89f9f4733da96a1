"""Walks through workers that are late: they stand still in the middle of a shard, and others go further meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import soundfile
from distributed import Client
from support.commands import running
from support.recordings import tone
from support.servers import Bucket
from support.shell_cluster import ShellCluster, shell_cluster

import emotion_batch
from emotion_batch.errors import Status
from emotion_batch.inference import bundle
from emotion_batch.settings import Segments
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import attempts
from emotion_batch.tables.attempts import Attempt
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import own_footers, part_name, publish_part, read_part
from emotion_batch.tables.schema import FEATURES, TableInfo
from emotion_batch.tables.table import find_info
from emotion_batch.worker.job import Job, TablePlace
from emotion_batch.worker.shard import Work, make_tasks
from emotion_batch.worker.task import Task

WINDOWS = Segments(0.0, 1.0, 0.05)


def write(folder: Path, names: str, *, seed: int = 0, duration_s: float = 1.0) -> None:
    """Write a recording for each letter."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        samples = tone(duration_s, 8_000, hertz=100 + 10 * number, seed=seed)
        soundfile.write(folder / f"{name}.wav", samples, 8_000)


def rows(table: Folder) -> list[dict[str, Any]]:
    """Return a table's rows, whatever parts they are in."""
    found = [read_part(table, int(name[5:11])) for name in table.names() if name.endswith(".parquet")]
    return pa.concat_tables(found).sort_by([("file", "ascending"), ("start_s", "ascending")]).to_pylist()


def stop_in_a_shard(worker: subprocess.Popen[bytes], table: Folder) -> int:
    """Stop a worker while it is in the middle of a shard, and return which."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        begun = table.folder(attempts.FOLDER).names()
        worker.send_signal(signal.SIGSTOP)
        # A request that is under way comes to its end.
        time.sleep(0.2)
        if begun and begun == table.folder(attempts.FOLDER).names():
            shard = int(begun[0].partition(".")[0])
            if not table.exists(part_name(shard)):
                return shard
        worker.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("the worker was in no shard")


@contextmanager
def standing_still(cluster: ShellCluster, source: Path, table: Folder, *options: str) -> Iterator[int]:
    """Kill a run's driver while its worker stands still in a shard; after the block the worker goes on to the shard's end."""
    worker = cluster.add_worker("--nthreads", "1", "--no-nanny")
    try:
        windows = ("--window", str(WINDOWS.duration_s), "--hop", str(WINDOWS.hop_s))
        at = ("--scheduler", cluster.address)
        with running("extract", source, table.url, *windows, *options, *at) as process:
            shard = stop_in_a_shard(worker, table)
            process.kill()
        yield shard
    finally:
        worker.send_signal(signal.SIGCONT)
    with Client(cluster.address, set_as_default=False) as client:
        # One thread does one after the other.
        assert client.submit(os.getpid, pure=False).result(60) == worker.pid


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("changed", "disk"),
        ("gone", "bucket"),
        pytest.param("gone", "disk", marks=pytest.mark.torture),
        pytest.param("changed", "bucket", marks=pytest.mark.torture),
    ],
)
def test_a_worker_that_wakes_late_undoes_nothing(
    tmp_path: Path, cluster: ShellCluster, how: str, where: str, request: pytest.FixtureRequest
) -> None:
    """Its shard has other recordings by now, or none any more: what the later run made of it stays."""
    archive, table, options = tmp_path / "archive", Folder.of(tmp_path / "table"), ()
    if where == "bucket":
        bucket: Bucket = request.getfixturevalue("s3")
        table = Folder(f"{bucket.url}/late-{how}", bucket.options)
        settings = tmp_path / "options.json"
        settings.write_text(str(bucket.options).replace("'", '"'))
        options = ("--storage-options", f"@{settings}")
    write(archive, "abcde", duration_s=10)
    with shell_cluster(tmp_path / "cluster", 0) as late, standing_still(late, archive, table, *options) as shard:
        if how == "gone":
            for path in archive.iterdir():
                path.unlink()
        write(archive, "abcde" if how == "changed" else "xyz", seed=1, duration_s=2)
        at = {"segments": WINDOWS, "scheduler": cluster.address}
        emotion_batch.extract(archive, table.url, **at, prune=True, force=True, storage_options=table.options)
        assert table.exists(part_name(shard)) == (how == "changed")
        whole = rows(table)
    assert rows(table) == whole
    assert emotion_batch.verify(table.url, deep=True, storage_options=table.options).problems == ()
    emotion_batch.extract(archive, tmp_path / "fresh", **at)
    assert whole == rows(Folder.of(tmp_path / "fresh"))


MEANWHILE: list[Callable[[], object]] = []


@dataclass(frozen=True)
class LateJob(Job):
    """One in which something happens after the recordings were read."""

    def extract(self, entries: pa.RecordBatch, attempt: Attempt) -> pa.Table:
        """Return the rows, late."""
        made = super().extract(entries, attempt)
        while MEANWHILE:
            MEANWHILE.pop()()
        return made


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("features", "disk"),
        ("labels and features", "bucket"),
        pytest.param("labels", "disk", marks=pytest.mark.torture),
        pytest.param("features", "bucket", marks=pytest.mark.torture),
        pytest.param("labels", "bucket", marks=pytest.mark.torture),
    ],
)
def test_what_others_made_of_the_same_recordings_stays(
    tmp_path: Path, cluster: ShellCluster, kind: str, where: str, request: pytest.FixtureRequest
) -> None:
    """A shard that was read while a recording was away does not undo what was made of it since, nor does its twin."""
    archive, table, kept = tmp_path / "archive", Folder.of(tmp_path / "table"), Folder.of(tmp_path / "kept")
    if where == "bucket":
        bucket: Bucket = request.getfixturevalue("s3")
        table, kept = (Folder(f"{bucket.url}/twin-{kind}/{name}", bucket.options) for name in ("table", "kept"))
    write(archive, "ab")
    at = {"scheduler": cluster.address, "storage_options": table.options}
    if kind == "features":
        emotion_batch.extract(archive, table.url, **at)
    else:
        keep = {"keep_features": kept.url} if kind == "labels and features" else {}
        emotion_batch.label(archive, table.url, model="voices-1", **keep, **at)
    info = find_info(table)
    assert info is not None
    places = [(table, info)]
    if info.features is not None:
        places.insert(0, (kept, TableInfo(FEATURES, info.source, info.feature_settings, info.segments)))
    whole = [rows(place) for place, _ in places]
    manifest = Manifest(table)
    (shard,) = manifest.shards
    # Read while a recording was away, as one of a run that tries again what failed.
    footers = own_footers(*places[0], [shard])
    job = LateJob(
        features=TablePlace(*places[0]) if kind != "labels" else None,
        labels=None if kind == "features" else TablePlace(table, info),
        archive=Folder.of(archive),
        bundle=None if kind == "features" else bundle.require_safe(table.folder("_table/model")),
        again=frozenset(Status),
    )
    parts = [place.read(part_name(shard)) for place, _ in places]

    def come_back() -> None:
        for (place, _), part in zip(places, parts, strict=True):
            place.publish(part_name(shard), part)

    for tasks in (make_tasks(manifest, [shard], footers), [Task(shard, manifest.shards[shard])]):
        for place, _ in places:
            # What was there is another part, or none.
            if tasks[0].earlier is None:
                place.delete(part_name(shard))
            else:
                worse = read_part(place, shard).replace_schema_metadata(None)
                worse = worse.set_column(0, worse.schema.field(0), pa.array(["a.wav", "c.wav"]))
                publish_part(place, dict(places)[place], shard, manifest.shards[shard].digest, worse)
        MEANWHILE.append(come_back)
        (archive / "b.wav").rename(archive / "away")
        receipt = Work(job, "run", None, manifest.generation)(tasks[0])
        (archive / "away").rename(archive / "b.wav")
        assert receipt.counts.by_status == {"ok": 2}
        assert [rows(place) for place, _ in places] == whole
    # No other run has made it: then it is published, in place of what was there.
    receipt = Work(job, "run", None, manifest.generation)(make_tasks(manifest, [shard], footers)[0])
    assert receipt.made.by_status == {"ok": 2}
    assert [rows(place) for place, _ in places] == whole
