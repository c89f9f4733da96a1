"""Runs that are handed to a cluster and left: they end without their driver, and are stopped and watched from anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset
import pytest
from distributed import Client
from support.commands import call_command, run_command, running
from support.servers import write_authority
from support.shell_cluster import ShellCluster, shell_cluster

import emotion_batch
from emotion_batch.errors import IncompleteError, UsageError
from emotion_batch.run import dask_client
from emotion_batch.run.dask_client import open_client
from emotion_batch.run.scheduler import Scheduler
from emotion_batch.storage.folder import Folder, seal
from emotion_batch.tables import lease
from emotion_batch.tables.lease import others_at_work

# Windows that overlap so much that a shard takes a second or two.
SLOWLY = ("--window", "1", "--hop", "0.01")


def table(folder: Path) -> pa.Table:
    found = pyarrow.dataset.dataset(folder).to_table().replace_schema_metadata(None)
    return found.sort_by([("file", "ascending"), ("start_s", "ascending")])


def wait_until(is_so: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_bytes()) for path in sorted((folder / "_table" / "runs").glob("*.json"))]


def kill(process: object) -> None:
    """Kill a worker and the nanny that would start it again."""
    nanny = psutil.Process(process.pid)
    for one in [nanny, *nanny.children(recursive=True)]:
        one.kill()
    process.wait()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Scheduler:
    """Certificates that all processes of the cluster show; the address is not known yet."""
    return Scheduler("tls://", *write_authority(tmp_path_factory.mktemp("certificates")))


@pytest.fixture(scope="module")
def secured(tls: Scheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShellCluster]:
    """A cluster of one worker that speaks TLS."""
    with shell_cluster(tmp_path_factory.mktemp("secured"), 1, "--nthreads", "1", tls=tls) as started:
        yield started


def at(cluster: ShellCluster, tls: Scheduler) -> tuple[str, ...]:
    return (
        *("--scheduler", cluster.address, "--tls-ca", tls.tls_ca),
        *("--tls-cert", tls.tls_cert, "--tls-key", tls.tls_key),
    )


@pytest.fixture(scope="module")
def alone(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run on this machine makes."""
    folder = tmp_path_factory.mktemp("alone") / "table"
    done = call_command("extract", speech, folder, *SLOWLY)
    assert done.code == 0, done.err
    return folder


def test_it_ends_without_its_driver_while_workers_come_go_and_die(
    secured: ShellCluster, tls: Scheduler, speech: Path, alone: Path, tmp_path: Path
) -> None:
    """Submitted over TLS, its driver killed, workers from 1 to 3 and back with kill -9: the table of an undisturbed run."""
    folder = tmp_path / "table"
    with running("submit", "extract", speech, folder, *SLOWLY, *at(secured, tls), "--quiet") as process:
        said = [line.decode() for line in process.stdout]
        process.wait()
    assert process.returncode == 0
    run = said[-1].removeprefix("run ").strip()
    n_parts = len(list(folder.glob("*.parquet")))
    n_shards = len(json.loads(next((folder / "_table" / "manifest").glob("*.json")).read_bytes())["shards"])
    assert n_parts < n_shards
    others = [secured.add_worker("--nthreads", "1") for _ in range(2)]
    n_parts = len(list(folder.glob("*.parquet")))
    assert n_parts < n_shards
    status = call_command("status", folder, "--json").result
    assert [holder["run"] for holder in status["at_work"]] == [run]
    assert status["at_work"][0]["scheduler"] == secured.address
    kill(others[0])
    wait_until(lambda: len(list(folder.glob("*.parquet"))) > n_parts)
    others[1].terminate()
    wait_until(lambda: bool(records(folder)))
    (record,) = records(folder)
    assert (record["run"], record["outcome"], record["is_submitted"]) == (run, "complete", True)
    assert record["counts"] == call_command("status", folder, "--json").result["counts"]
    assert table(folder).equals(table(alone))
    assert call_command("verify", folder, "--deep").code == 0
    status = call_command("status", folder, "--json").result
    assert (status["at_work"], status["n_left"]) == ([], 0)


def test_who_shows_no_certificate_of_the_authority_is_refused(
    secured: ShellCluster, tls: Scheduler, speech: Path, tmp_path: Path
) -> None:
    """Another authority's certificate, or none, is one sentence and exit code 2; files that lack are named."""
    other = Scheduler("tls://", *write_authority(tmp_path / "other"))
    for options, words in (
        (at(secured, other), "CERTIFICATE_VERIFY_FAILED"),
        (("--scheduler", secured.address), "TLS requires certificates; name them with --tls-ca"),
        (("--scheduler", secured.address.replace("tls:", "tcp:")), ": no Dask scheduler answers there ("),
        (
            (*at(secured, tls)[:4], "--tls-cert", tls.tls_cert),
            "--tls-ca, --tls-cert, --tls-key require each other: --tls-key is missing",
        ),
        ((*at(secured, tls)[:6], "--tls-key", tmp_path / "nothing"), "--tls-key must be a PEM file that can be read: "),
        (at(secured, tls)[2:], "--tls-ca, --tls-cert and --tls-key require --scheduler"),
        (
            ("--scheduler", "tcp://127.0.0.1:1", *at(secured, tls)[2:]),
            "require an address tls://HOST:PORT: tcp://127.0.0.1:1",
        ),
    ):
        done = run_command("extract", speech, tmp_path / "table", *options)
        assert done.code == 2, done.err
        assert words in done.err
        assert "Traceback" not in done.err
    assert not list((tmp_path / "table").glob("*.parquet"))


def test_cancelled_it_stops_and_the_same_command_goes_on(
    secured: ShellCluster, tls: Scheduler, speech: Path, alone: Path, tmp_path: Path
) -> None:
    """`cancel` stops a submitted run at its next shards; what is done stays, and the command itself does the rest."""
    folder = tmp_path / "table"
    scheduler = Scheduler(secured.address, tls.tls_ca, tls.tls_cert, tls.tls_key)
    windows = emotion_batch.Segments.windows(1, 0.01)
    summary = emotion_batch.submit("extract", speech, folder, segments=windows, scheduler=scheduler)
    assert summary.n_shards_left
    done = call_command("cancel", folder)
    assert done.code == 0, done.err
    assert summary.run in done.out
    wait_until(lambda: bool(records(folder)))
    assert [record["outcome"] for record in records(folder)] == ["cancelled"]
    n_done = len(list(folder.glob("*.parquet")))
    assert n_done < summary.n_shards
    done = call_command("cancel", folder)
    assert done.code == 1
    assert "no run is at work on it, so there is nothing to cancel" in done.err
    went_on = emotion_batch.extract(speech, folder, segments=windows, scheduler=scheduler)
    assert went_on.n_shards_done == summary.n_shards - n_done
    assert table(folder).equals(table(alone))
    assert {path.suffix for path in (folder / "_table" / "runs").iterdir()} == {".json"}


def test_its_list_of_segments_may_go(secured: ShellCluster, tls: Scheduler, speech: Path, tmp_path: Path) -> None:
    """What a list names is in the manifest when `submit` ends: without the list, the run makes the rows of a run here."""
    folder, listed = tmp_path / "table", tmp_path / "list.csv"
    names = [os.path.relpath(path, speech) for path in sorted(speech.glob("V*/*.wav"))]
    rows = [f"{name},{start_s},{start_s + 0.5},Ann\n" for name in names for start_s in (0.1, 0.4)]
    listed.write_text("".join(["file,start_s,end_s,speaker\n", *rows]))
    assert emotion_batch.extract(speech, tmp_path / "alone", segments=listed).counts.n_rows == 2 * len(names)
    scheduler = Scheduler(secured.address, tls.tls_ca, tls.tls_cert, tls.tls_key)
    assert emotion_batch.submit("extract", speech, folder, segments=listed, scheduler=scheduler).n_shards_left
    listed.unlink()
    wait_until(lambda: bool(records(folder)))
    assert [record["outcome"] for record in records(folder)] == ["complete"]
    assert table(folder).equals(table(tmp_path / "alone"))


def test_a_run_with_a_driver_can_be_cancelled_too(speech: Path, tmp_path: Path) -> None:
    """Its driver ends with one sentence and exit code 1."""
    folder = tmp_path / "table"
    with running("extract", speech, folder, *SLOWLY, "--workers", "1") as process:
        wait_until(lambda: bool(list(folder.glob("*.parquet"))))
        assert call_command("cancel", folder).code == 0
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was cancelled from" in said.decode()
    assert [record["outcome"] for record in records(folder)] == ["cancelled"]
    assert not list((folder / "_table" / "runs").glob("*.cancel"))


def test_a_shard_that_hangs_at_the_end_is_begun_by_another(speech: Path, tmp_path: Path) -> None:
    """A worker that stands still with the last shard does not keep the run; one that joins with other versions gets none."""
    folder = tmp_path / "table"
    # Metadata of another version, found before the installed one.
    other = tmp_path / "other" / "soxr-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: soxr\nVersion: 0.0.1\n")
    with shell_cluster(tmp_path / "cluster", 0) as cluster:
        stopped, held = (cluster.add_worker("--nthreads", "1", "--no-nanny") for _ in range(2))
        options = ("--window", "1", "--hop", "0.05", "--scheduler", cluster.address, "--json")
        with running("extract", speech, folder, *options) as process:
            wait_until(lambda: bool(list(folder.glob("*.parquet"))))
            stopped.send_signal(signal.SIGSTOP)
            # Until the third is there, however slow the machine.
            held.send_signal(signal.SIGSTOP)
            try:
                cluster.add_worker("--nthreads", "1", "--no-nanny", environment={"PYTHONPATH": os.fspath(other.parent)})
                with Client(cluster.address, set_as_default=False) as client:
                    client.wait_for_workers(3, timeout=60)
                held.send_signal(signal.SIGCONT)
                out, said = process.communicate(timeout=120)
            finally:
                held.send_signal(signal.SIGCONT)
                stopped.send_signal(signal.SIGCONT)
    assert process.returncode == 0, said
    assert json.loads(out)["n_resubmitted"] >= 1
    assert b": soxr is 0.0.1 here, and " in said
    assert b"install the same version, and start the worker again; others do its share" in said
    assert call_command("verify", folder, "--deep").code == 0


@pytest.mark.torture
def test_a_worker_that_hangs_keeps_no_submitted_run(speech: Path, tmp_path: Path) -> None:
    """Its shard is begun by another, at the latest when the scheduler gives the worker up, and the run ends."""
    folder = tmp_path / "table"
    with shell_cluster(tmp_path / "cluster", 0) as cluster:
        workers = [cluster.add_worker("--nthreads", "1", "--no-nanny") for _ in range(2)]
        options = ("--window", "1", "--hop", "0.05", "--scheduler", cluster.address)
        assert call_command("submit", "extract", speech, folder, *options).code == 0
        workers[0].send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: bool(records(folder)), timeout_s=480)
        finally:
            workers[0].send_signal(signal.SIGCONT)
    assert call_command("verify", folder, "--deep").code == 0
    assert records(folder)[0]["outcome"] == "complete"


@pytest.mark.torture
def test_a_submitted_run_goes_on_after_the_scheduler_was_lost(speech: Path, alone: Path, tmp_path: Path) -> None:
    """Submitted again to another cluster, the same command does what is left; the lost run becomes a record."""
    folder = tmp_path / "table"
    command = ("submit", "extract", speech, folder, *SLOWLY)
    with shell_cluster(tmp_path / "first", 1, "--nthreads", "1") as first:
        assert call_command(*command, "--scheduler", first.address).code == 0
        first.scheduler.kill()
        first.scheduler.wait()
    n_done = len(list(folder.glob("*.parquet")))
    with shell_cluster(tmp_path / "second", 2, "--nthreads", "1") as second:
        done = call_command(*command, "--scheduler", second.address)
        assert done.code == 0, done.err
        assert "is at work on this table too" in done.err
        wait_until(lambda: bool(records(folder)))
    assert n_done < len(list(folder.glob("*.parquet")))
    assert table(folder).equals(table(alone))


@pytest.mark.torture
@pytest.mark.parametrize("ahead_s", [900, -900])
def test_clocks_that_differ_harm_no_submitted_run(speech: Path, tmp_path: Path, ahead_s: int) -> None:
    """One worker's clock and that of another machine are wrong: the run is still seen and cancelled there."""
    folder, wrong = tmp_path / "table", {"PYTHONPATH": os.fspath(tmp_path)}
    # It has to last longer than the look at it.
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in range(8):
        (archive / str(number)).symlink_to(speech)
    (tmp_path / "sitecustomize.py").write_text(
        f"import time\nright = time.time\ntime.time = lambda: right() + {ahead_s}\n"
    )
    with shell_cluster(tmp_path / "cluster", 1) as cluster:
        cluster.add_worker("--nthreads", "1", environment=wrong)
        command = ("extract", archive, folder, *SLOWLY, "--scheduler", cluster.address)
        run = call_command("submit", *command).out.split()[-1]
        # Until the watches have told of it.
        time.sleep(15)
        status = run_command("status", folder, "--json", environment=wrong).result
        assert [holder["run"] for holder in status["at_work"]] == [run]
        assert 0 < status["rate"] < 100
        assert run_command("cancel", folder, environment=wrong).code == 0
        wait_until(lambda: bool(records(folder)))
        assert run_command(*command, environment=wrong).code == 0
    first, second = records(folder)
    assert (first["run"], first["outcome"], second["outcome"]) == (run, "cancelled", "complete")
    assert 15 < first["elapsed_s"] < 300
    assert call_command("extract", archive, tmp_path / "alone", *SLOWLY).code == 0
    assert table(folder).equals(table(tmp_path / "alone"))


def find_driver(client: Client) -> tuple[str, int]:
    """Return the key of the task that drives a submitted run, and the process of its worker."""
    found: list[tuple[str, int]] = []

    def is_there() -> bool:
        keys = [(str(key), worker) for worker, keys in client.processing().items() for key in keys]
        for key, worker in keys:
            if key.startswith(dask_client.DRIVER_KEY):
                pids = client.run(os.getpid, workers=[worker], on_error="ignore")
                found.extend((key, pid) for pid in pids.values())
        return bool(found)

    wait_until(is_there)
    return found[0]


def driver_of(folder: Path) -> int:
    """Return the number of the task that the lease of a table's run names, 0 if there is none."""
    holders = lease.read_holders(Folder.of(folder))
    return holders[0].driver if holders else 0


def test_the_worker_of_the_driver_is_killed_five_times(
    secured: ShellCluster, tls: Scheduler, speech: Path, alone: Path, tmp_path: Path
) -> None:
    """Dask gives a task up after four such deaths, and the run still ends with an undisturbed table and one record."""
    folder = tmp_path / "table"
    scheduler = Scheduler(secured.address, tls.tls_ca, tls.tls_cert, tls.tls_key)
    summary = emotion_batch.submit(
        "extract", speech, folder, segments=emotion_batch.Segments.windows(1, 0.01), scheduler=scheduler
    )
    keys = []
    with contextlib.closing(open_client(scheduler)) as client:
        for _ in range(5):
            wait_until(lambda: driver_of(folder) > len(keys))
            key, pid = find_driver(client)
            keys.append(key)
            os.kill(pid, signal.SIGKILL)
        assert not records(folder)
        wait_until(lambda: bool(records(folder)))
        wait_until(lambda: not any(client.processing().values()))
    assert len(set(keys)) == 5
    (record,) = records(folder)
    assert (record["outcome"], record["is_submitted"], record["error"]) == ("complete", True, None)
    assert record["n_shards_done"] == summary.n_shards
    assert record["counts"] == call_command("status", folder, "--json").result["counts"]
    assert table(folder).equals(table(alone))
    assert {path.suffix for path in (folder / "_table" / "runs").iterdir()} == {".json"}


def test_a_driver_that_stands_still_is_replaced(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the scheduler gives its worker up, another drives the run; the first one finds that when it goes on, and says nothing."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "5 seconds")
    folder = tmp_path / "table"
    with shell_cluster(tmp_path / "cluster", 2, "--nthreads", "1", "--no-nanny") as cluster:
        options = (*SLOWLY, "--scheduler", cluster.address)
        assert call_command("submit", "extract", speech, folder, *options).code == 0
        with Client(cluster.address, set_as_default=False) as client:
            _, pid = find_driver(client)
        wait_until(lambda: driver_of(folder) == 1)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert not records(folder)
            wait_until(lambda: bool(records(folder)))
        finally:
            os.kill(pid, signal.SIGCONT)
        # Longer than the first one renews its lease.
        time.sleep(12)
    (record,) = records(folder)
    assert record["outcome"] == "complete"
    assert call_command("verify", folder, "--deep").code == 0
    assert {path.suffix for path in (folder / "_table" / "runs").iterdir()} == {".json"}


def test_cancelled_while_its_driver_moves_it_ends(
    secured: ShellCluster, tls: Scheduler, speech: Path, tmp_path: Path
) -> None:
    """The next task that drives it finds the word, and leaves the record and nothing else."""
    folder = tmp_path / "table"
    scheduler = Scheduler(secured.address, tls.tls_ca, tls.tls_cert, tls.tls_key)
    windows = emotion_batch.Segments.windows(1, 0.01)
    emotion_batch.submit("extract", speech, folder, segments=windows, scheduler=scheduler)
    with contextlib.closing(open_client(scheduler)) as client:
        _, pid = find_driver(client)
        os.kill(pid, signal.SIGKILL)
        assert emotion_batch.cancel(folder)
        wait_until(lambda: bool(records(folder)))
        wait_until(lambda: not any(client.processing().values()))
    assert [record["outcome"] for record in records(folder)] == ["cancelled"]
    assert {path.suffix for path in (folder / "_table" / "runs").iterdir()} == {".json"}


@pytest.mark.parametrize("moment", ["_table/attempts/*.json", "*.parquet", "scheduler"])
def test_ctrl_c_while_it_is_submitted_leaves_nothing_behind(
    secured: ShellCluster, tls: Scheduler, speech: Path, tmp_path: Path, moment: str
) -> None:
    """Before the first shards, among them and at the hand-over: no lease, no task, and a record that says so."""
    folder = tmp_path / "table"

    def is_due() -> bool:
        if moment != "scheduler":
            return bool(list(folder.glob(moment)))
        return any(holder.scheduler for holder in lease.read_holders(Folder.of(folder)))

    with running("submit", "extract", speech, folder, *SLOWLY, *at(secured, tls)) as process:
        wait_until(lambda: (folder / "_table" / "runs").exists())
        while not is_due():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    if process.returncode == 0:
        # It was over before the signal came, and so the run goes on.
        assert moment == "scheduler"
        assert call_command("cancel", folder).code == 0
    wait_until(lambda: bool(records(folder)))
    scheduler = Scheduler(secured.address, tls.tls_ca, tls.tls_cert, tls.tls_key)
    with contextlib.closing(open_client(scheduler)) as client:
        wait_until(lambda: not any(client.processing().values()))
    assert [record["outcome"] for record in records(folder)] == ["cancelled" if process.returncode == 0 else "stopped"]
    assert {path.suffix for path in (folder / "_table" / "runs").iterdir()} == {".json"}


def test_a_submitted_retry_does_failed_recordings_again(speech: Path, tmp_path: Path) -> None:
    """What was mended since gets its rows, although the worker of the task that drives it dies."""
    folder, archive = tmp_path / "table", tmp_path / "archive"
    shutil.copytree(speech, archive)
    mended = sorted(archive.rglob("*.wav"))[::8]
    for path in mended:
        path.rename(path.with_suffix(".away"))
        path.write_bytes(b"no sound")
    with shell_cluster(tmp_path / "cluster", 1, "--nthreads", "1") as cluster:
        options = ("--scheduler", cluster.address)
        assert call_command("extract", archive, folder, *SLOWLY, *options).code == 0
        for path in mended:
            path.with_suffix(".away").rename(path)
        with Client(cluster.address, set_as_default=False) as client:
            (pid,) = client.run(os.getpid).values()
        assert call_command("submit", "retry", folder, "--status", "not_audio", *options).code == 0
        wait_until(lambda: driver_of(folder) > 0 or len(records(folder)) == 2)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(records(folder)) == 2)
    first, second = records(folder)
    assert (second["outcome"], second["is_submitted"]) == ("complete", True)
    assert first["counts"]["by_status"]["not_audio"] > second["counts"]["by_status"]["not_audio"] == 1
    assert second["n_shards_done"] > 1
    assert second["counts"] == call_command("status", folder, "--json").result["counts"]


def test_an_archive_that_is_gone_stops_a_submitted_run(
    secured: ShellCluster, tls: Scheduler, speech: Path, tmp_path: Path
) -> None:
    """The shard that finds it ends the run, rather than all night in vain, and the record says why."""
    folder, archive = tmp_path / "table", tmp_path / "archive"
    shutil.copytree(speech, archive)
    assert call_command("submit", "extract", archive, folder, *SLOWLY, *at(secured, tls)).code == 0
    archive.rename(tmp_path / "elsewhere")
    # The lease goes a moment after the record has come.
    wait_until(lambda: {path.suffix for path in (folder / "_table" / "runs").iterdir()} == {".json"})
    (record,) = records(folder)
    assert record["outcome"] == "failed"
    assert "it does not exist" in record["error"]
    assert "vanished" not in record["counts"]["by_status"]


def test_a_run_that_was_taken_for_dead_is_seen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a machine has taken a run for dead, the next sign of the task that drives it gives the lease back, until it has ended."""
    monkeypatch.setattr(lease, "_LOOK_S", 0.1)
    place = Folder.of(tmp_path)
    (tmp_path / "_table" / "runs").mkdir(parents=True)
    run = "20300101T000000Z-00000000"
    began = lease.Lease(place, run)
    began.begin()
    left = began.leave("tls://there:8786", ())
    driven = lease.Lease(place, run, dataclasses.replace(left, driver=1))
    place.publish(lease.lease_name(run), seal(dataclasses.asdict(dataclasses.replace(left, renewed_s=0.0))))
    assert others_at_work(place, "another") == []
    assert lease.read_holders(place) == []
    assert [record["outcome"] for record in records(tmp_path)] == ["lost"]
    driven.renew()
    assert [holder.run for holder in lease.read_holders(place)] == [run]
    # A task of a lower number finds that it is not the one any more.
    earlier = lease.Lease(place, run, left)
    assert earlier.find_loss()
    assert not driven.find_loss()
    place.publish(lease.record_name(run), seal({"run": run, "outcome": "stopped"}))
    place.delete(lease.lease_name(run))
    driven.renew()
    assert driven.is_lost
    assert lease.read_holders(place) == []


def test_a_run_can_be_left_to_no_cluster_of_its_own(speech: Path, tmp_path: Path) -> None:
    """Without a scheduler, or for a command that is none, `submit` says so before any work."""
    done = call_command("submit", "extract", speech, tmp_path / "table")
    assert done.code == 2
    assert "`submit` requires --scheduler with the address of a running Dask scheduler" in done.err
    with pytest.raises(UsageError, match="submit takes extract, label, resume, retry: 'train'"):
        emotion_batch.submit("train", speech, tmp_path / "bundle")
    emotion_batch.extract(speech, tmp_path / "table")
    with pytest.raises(IncompleteError, match="no run is at work on it, so there is nothing to cancel"):
        emotion_batch.cancel(tmp_path / "table")


@pytest.mark.parametrize(
    ("address", "is_risk"),
    [
        ("tcp://127.0.0.1:8786", False),
        ("tcp://localhost:8786", False),
        ("tcp://[::1]:8786", False),
        ("tls://10.0.0.5:8786", False),
        ("tcp://10.0.0.5:8786", True),
        ("scheduler.example:8786", True),
    ],
)
def test_an_open_scheduler_beyond_loopback_is_a_risk(address: str, is_risk: bool) -> None:
    """Plain TCP to another machine gives a warning, because anyone who reaches the scheduler can run code there."""
    risk = Scheduler(address).find_risk()
    assert (risk is not None) == is_risk
