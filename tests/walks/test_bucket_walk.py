"""The whole way in a bucket: jobs on a real cluster, kills and faults, keys that are refused; equal to the way on a disk."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import soundfile
from support.commands import Finished, call_command, running
from support.damage import victims
from support.servers import ACCESS_KEY, READER_KEY, READER_SECRET, SECRET_KEY, Bucket, Proxy
from support.shell_cluster import ShellCluster, shell_cluster
from support.tables import local_rows, read

import emotion_batch
from emotion_batch.errors import IncompleteError, StorageError
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.entries import Entry, peek
from emotion_batch.storage.folder import Folder
from emotion_batch.training.fit import TrainingSettings

# Each recording of TESS so far from the next: some in CI, all of them in the torture, and in a minute by hand.
STRIDES = [pytest.param(24, id="some"), pytest.param(1, id="all", marks=pytest.mark.torture)]


def rows_of(bucket: Bucket, name: str) -> pa.Table:
    return read(bucket.read(name))


def write_options(folder: Path, options: Mapping[str, Any]) -> str:
    """Return what `--storage-options` takes for options in a file."""
    file = folder / "options.json"
    file.write_text(json.dumps(options))
    return f"@{file}"


@pytest.fixture(scope="module")
def some_tess(tess: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of TESS, with recordings of both speakers and all emotions, and one that is none."""
    folder = tmp_path_factory.mktemp("some") / "tess"
    link(tess, folder, 24)
    return folder


def link(tess: Path, folder: Path, stride: int) -> None:
    for recording in sorted(tess.rglob("*.wav"))[::stride]:
        to = folder / recording.parent.name / recording.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(recording)
    (folder / "OAF_sad" / "broken.wav").write_bytes(b"")


@pytest.mark.tess
@pytest.mark.parametrize("stride", STRIDES)
def test_the_walk_in_a_bucket_is_that_on_a_disk(
    tess: Path, s3: Bucket, cluster: ShellCluster, tmp_path: Path, stride: int
) -> None:
    """Extract, train, label, status, verify and retry by the command line, all on s3://, give the tables of a disk."""
    archive = tmp_path / "tess"
    link(tess, archive, stride)
    s3.upload(archive, f"walk{stride}/tess")
    at = f"{s3.url}/walk{stride}"
    said: list[Finished] = []

    def run(*arguments: object) -> Finished:
        said.append(call_command(*arguments, "--storage-options", write_options(tmp_path, s3.options)))
        assert said[-1].code == 0, said[-1].err
        return said[-1]

    scheduler = ("--scheduler", cluster.address)
    run("extract", f"{at}/tess", f"{at}/features", *scheduler)
    run("train", f"{at}/features", f"{at}/bundle", "--epochs", "3", "--max-folds", "0", "--h5", f"{at}/model.h5")
    run("label", f"{at}/features", f"{at}/labels", "--model", f"{at}/bundle", *scheduler)
    run("label", f"{at}/tess", f"{at}/straight", "--model", f"{at}/bundle", *scheduler)
    n_recordings = len(list(archive.rglob("*.wav")))
    one = next(path for path in archive.rglob("*.wav") if path.stat().st_size).relative_to(archive)
    assert json.loads(run("label", f"{at}/tess/{one}", "--model", f"{at}/bundle", "--json").out)[0]["status"] == "ok"
    status = run("status", f"{at}/labels", "--json").result
    assert (status["n_recordings"], status["n_done"]) == (n_recordings, n_recordings)
    for name in ("features", "labels", "straight"):
        run("verify", f"{at}/{name}", "--deep")
    # What failed is mended, and done again alone.
    whole = next(archive.rglob("*.wav")).read_bytes()
    (archive / "OAF_sad" / "broken.wav").write_bytes(whole)
    s3.write({f"walk{stride}/tess/OAF_sad/broken.wav": whole})
    done = run("retry", f"{at}/features", "--status", "empty", *scheduler, "--json").result
    assert done["counts"]["by_status"] in ({"ok": n_recordings}, {"ok": n_recordings - 1, "changed": 1})
    run("extract", f"{at}/tess", f"{at}/features", *scheduler)
    run("label", f"{at}/tess", f"{at}/straight", "--model", f"{at}/bundle", *scheduler)

    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name, data in s3.read(f"walk{stride}/bundle").items():
        (bundle / name).write_bytes(data)
    emotion_batch.extract(archive, tmp_path / "features", scheduler=cluster.address)
    emotion_batch.label(archive, tmp_path / "labels", model=bundle, scheduler=cluster.address)
    assert rows_of(s3, f"walk{stride}/features").equals(local_rows(tmp_path / "features"))
    assert rows_of(s3, f"walk{stride}/straight").equals(local_rows(tmp_path / "labels"))
    assert len(s3.read(f"walk{stride}/model.h5".rpartition("/")[0])["model.h5"]) > 1000

    # The secret is nowhere: not in what was said, not in a log, not in what was written.
    written = [data for name, data in s3.read(f"walk{stride}").items() if not name.startswith("tess/")]
    logs = [path.read_bytes() for path in cluster.folder.glob("*.log")]
    assert len(logs) >= 3
    for text in (*written, *logs, *(f"{one.out}{one.err}".encode() for one in said)):
        assert SECRET_KEY.encode() not in text
        assert ACCESS_KEY.encode() not in text


@pytest.mark.parametrize("server", ["gcs", pytest.param("azure", marks=pytest.mark.azure)])
def test_the_walk_in_other_stores(
    request: pytest.FixtureRequest, server: str, speech: Path, cluster: ShellCluster, tmp_path: Path
) -> None:
    """The same on the other stores: jobs, resuming and ledger on gs:// and az://."""
    bucket: Bucket = request.getfixturevalue(server)
    bucket.upload(speech, "speech")
    common = {"storage_options": bucket.options}
    run = {**common, "scheduler": cluster.address}
    summary = emotion_batch.extract(f"{bucket.url}/speech", f"{bucket.url}/features", **run)
    settings = TrainingSettings(epochs=2, max_folds=0)
    emotion_batch.train(f"{bucket.url}/features", f"{bucket.url}/bundle", settings=settings, **common)
    emotion_batch.label(f"{bucket.url}/features", f"{bucket.url}/labels", model=f"{bucket.url}/bundle", **run)
    again = emotion_batch.extract(f"{bucket.url}/speech", f"{bucket.url}/features", **run)
    assert again.n_shards_done == 0
    emotion_batch.extract(speech, tmp_path / "features", scheduler=cluster.address)
    assert rows_of(bucket, "features").equals(local_rows(tmp_path / "features"))
    assert summary.counts.by_status == emotion_batch.status(f"{bucket.url}/labels", **common).counts.by_status
    for name in ("features", "labels"):
        assert emotion_batch.verify(f"{bucket.url}/{name}", deep=True, **common).is_whole
    emotion_batch.retry(f"{bucket.url}/features", **run)


@pytest.mark.tess
def test_faults_cost_time_and_nothing_else(some_tess: Path, s3: Bucket, cluster: ShellCluster, tmp_path: Path) -> None:
    """Through a proxy that fails 5 % of the requests (503, reset, cut-off body) the table is equal, the retries counted."""
    s3.upload(some_tess, "faults/tess")
    with Proxy(s3.endpoint, fail_share=0.05, seed=3) as proxy:
        options = {"storage_options": s3.through(proxy)}
        summary = emotion_batch.extract(
            f"{s3.url}/faults/tess", f"{s3.url}/faults/table", scheduler=cluster.address, **options
        )
        assert emotion_batch.verify(f"{s3.url}/faults/table", deep=True, **options).is_whole
    emotion_batch.extract(some_tess, tmp_path / "table", scheduler=cluster.address)
    assert rows_of(s3, "faults/table").equals(local_rows(tmp_path / "table"))
    assert proxy.n_failed > 3
    assert summary.spent.n_retries > 0
    records = [data for name, data in s3.read("faults/table/_table/runs").items() if name.endswith(".json")]
    assert [json.loads(data)["spent"]["n_retries"] for data in records] == [summary.spent.n_retries]


@pytest.mark.tess
@pytest.mark.parametrize(
    ("victim", "number"),
    [
        pytest.param(victim, number, marks=() if (victim, number) == ("driver", 0) else pytest.mark.torture)
        for victim in ("worker", "driver", "scheduler")
        for number in range(6)
    ],
)
def test_what_is_killed_leaves_nothing_half_in_a_bucket(
    some_tess: Path, s3: Bucket, tmp_path: Path, victim: str, number: int
) -> None:
    """After kill -9 the same command ends with an equal table; no object is cut off, no upload pending."""
    chance = random.Random(f"{victim} {number}")  # noqa: S311 a seed, no secret
    name = f"kill-{victim}-{number}"
    s3.upload(some_tess, f"{name}/tess")
    options = write_options(tmp_path, s3.options)
    arguments = ("extract", f"{s3.url}/{name}/tess", f"{s3.url}/{name}/table", "--storage-options", options)
    table = Folder.of(f"{s3.url}/{name}/table", s3.options)
    with running(*arguments) as process:
        driver = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while not any(part.endswith(".parquet") for part in table.names()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        processes = driver.children(recursive=True)
        for one in victims(driver, victim):
            one.kill()
        process.communicate(timeout=120)
    for one in processes:
        if one.is_running():
            one.kill()
    psutil.wait_procs(processes, timeout=10)
    done = call_command(*arguments)
    assert done.code == 0, done.err
    done = call_command("verify", f"{s3.url}/{name}/table", "--deep", "--storage-options", options)
    assert done.code == 0, done.out
    emotion_batch.extract(some_tess, tmp_path / "table", workers=2)
    assert rows_of(s3, f"{name}/table").equals(local_rows(tmp_path / "table"))
    client = s3.filesystem()
    assert client.call_s3("list_multipart_uploads", Bucket=s3.url.split("://")[1]).get("Uploads", []) == []


@pytest.mark.parametrize(
    ("changed", "archive", "table", "said"),
    [
        ({"secret": f"{SECRET_KEY}x"}, "calls/refusals", "disk", "SignatureDoesNotMatch"),
        ({"key": "NOBODY"}, "calls/refusals", "disk", "InvalidAccessKeyId"),
        ({"key": READER_KEY, "secret": READER_SECRET}, "calls/refusals", "calls/no-rights", "AccessDenied"),
        ({}, "no-such-bucket/refusals", "disk", "no bucket s3://no-such-bucket"),
        ({}, "calls/refusals", "no-such-bucket/table", "no bucket s3://no-such-bucket"),
    ],
    ids=["secret", "key", "rights", "archive", "table"],
)
def test_a_refusal_is_one_sentence_at_once(
    s3: Bucket, tmp_path: Path, changed: dict[str, str], archive: str, table: str, said: str
) -> None:
    """Exit code 2 within ten seconds, with what was refused and which credentials were looked for, and no secret."""
    s3.write({"refusals/a.wav": b"RIFF"})
    options = {**s3.options, **changed}
    to = tmp_path / "table" if table == "disk" else f"s3://{table}"
    began = time.monotonic()
    done = call_command(
        "extract", f"s3://{archive}", to, "--debug", "--storage-options", write_options(tmp_path, options)
    )
    assert time.monotonic() - began < 10
    assert done.code == 2
    [sentence] = [line for line in done.err.splitlines() if line.startswith("emotion-batch: ")]
    assert said in sentence
    assert "looked for credentials in: " in sentence or "no-such-bucket" in sentence
    for secret in (options["secret"], options["key"], SECRET_KEY):
        assert secret not in done.out + done.err


def test_whoever_may_list_and_not_read_is_told_so(s3: Bucket, cluster: ShellCluster, tmp_path: Path) -> None:
    """Recordings that are all refused stop the run: they are no rows."""
    s3.write({f"listed/{number}.wav": b"RIFF" for number in range(5)})
    with Proxy(s3.endpoint) as proxy:
        proxy.refused = (b"/listed/",)
        with pytest.raises(StorageError, match=r"listed: access was refused: 403"):
            emotion_batch.extract(
                f"{s3.url}/listed", tmp_path / "table", storage_options=s3.through(proxy), scheduler=cluster.address
            )


def test_rights_that_end_in_midrun_stop_it(s3: Bucket, cluster: ShellCluster, tmp_path: Path, speech: Path) -> None:
    """Keys that expire make no rows: the run stops with one sentence, and the same call with better ones goes on."""
    s3.upload(speech, "expiring")
    archive, table = f"{s3.url}/expiring", tmp_path / "table"

    with Proxy(s3.endpoint) as proxy:
        proxy.refused, proxy.n_granted = (b"/expiring/",), 40
        with pytest.raises(IncompleteError, match="403") as caught:
            emotion_batch.extract(archive, table, storage_options=s3.through(proxy), scheduler=cluster.address)
        assert "looked for credentials in: " in str(caught.value)
    summary = emotion_batch.extract(archive, table, storage_options=s3.options, scheduler=cluster.address)
    assert summary.counts.n_recordings == 89
    assert "unreadable" not in summary.counts.by_status


def test_archives_of_every_kind_in_a_bucket(s3: Bucket) -> None:
    """A prefix, a glob, a list and one recording are listed with sizes and ETags, and progress is told."""
    names = ["2026/a/1.wav", "2026/a/2.WAV", "2026/b/3.flac", "2026/b/.x/4.wav", "2026/notes.txt", "2025/a/5.wav"]
    s3.write({f"kinds/{name}": name.encode() for name in names})
    s3.write({"kinds/list.txt": f"2026/b/3.flac\n{s3.url}/kinds/2025/a/5.wav\ngone.wav\n".encode()})
    s3.write({"kinds/list.csv": b"id,file\n1,2026/a/1.wav\n"})

    def listed(archive: str) -> list[str]:
        told: list[int] = []
        found = list_recordings(f"{s3.url}/{archive}", options=s3.options, on_listed=told.append)
        sizes = [row["size"] for row in found.entries.to_pylist()]
        assert "list" in archive or (all(sizes) and (told or archive.endswith("1.wav")))
        for row in found.entries.to_pylist():
            if row["size"]:
                peek(found.folder, Entry(**row))
                assert len(row["version"]) == 32
        return found.entries["file"].to_pylist()

    assert listed("kinds") == ["2025/a/5.wav", "2026/a/1.wav", "2026/a/2.WAV", "2026/b/3.flac"]
    assert listed("kinds/2026/") == ["a/1.wav", "a/2.WAV", "b/3.flac"]
    assert listed("kinds/20*/a/*.wav") == ["2025/a/5.wav", "2026/a/1.wav"]
    assert listed("kinds/**/[35].*") == ["2025/a/5.wav", "2026/b/3.flac"]
    assert listed("kinds/2026/a/1.wav") == ["1.wav"]
    assert listed("kinds/list.txt") == ["2026/b/3.flac", "gone.wav", f"{s3.url}/kinds/2025/a/5.wav"]
    assert listed("kinds/list.csv") == ["2026/a/1.wav"]


def test_workers_use_their_own_keys(s3: Bucket, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options each machine takes keys of its environment, and an archive of a bucket meets a table on a disk."""
    s3.upload(speech, "environment")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    with shell_cluster(tmp_path / "cluster", 1) as started:
        summary = emotion_batch.extract(
            f"{s3.url}/environment/V1_*/*.wav", tmp_path / "table", scheduler=started.address
        )
    assert summary.counts.by_status == {"ok": 42}


def test_of_a_long_recording_some_kilobytes_are_read(s3: Bucket, cluster: ShellCluster, tmp_path: Path) -> None:
    """One segment of a recording of 250 MB costs less than 4 MB over the wire."""
    size = 2**28
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, [0.1] * 44_100 * 20, 44_100)
    header = bytearray(whole.read_bytes())
    header[4:8], header[40:44] = (size - 8).to_bytes(4, "little"), (size - 44).to_bytes(4, "little")
    large = tmp_path / "large.wav"
    with large.open("wb") as stream:
        stream.write(header)
        stream.truncate(size)
    s3.filesystem().put_file(os.fspath(large), f"{s3.url.split('://')[1]}/large/large.wav")
    large.unlink()
    with Proxy(s3.endpoint) as proxy:
        summary = emotion_batch.extract(
            f"{s3.url}/large", tmp_path / "table", storage_options=s3.through(proxy), scheduler=cluster.address
        )
    assert summary.counts.by_status == {"ok": 1}
    assert proxy.n_bytes < 4 * 2**20
    assert summary.spent.read_bytes < 2**20
    s3.filesystem().rm_file(f"{s3.url.split('://')[1]}/large/large.wav")
