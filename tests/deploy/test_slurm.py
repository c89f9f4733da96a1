"""`deploy/slurm/label.sbatch` on a real Slurm."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest
from support.commands import call_command
from support.slurm import Slurm, slurm
from support.strangers import write_strangers

pytestmark = pytest.mark.tess
# Two of fourteen.
FOLDERS = ("OAF_angry", "YAF_sad")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of two nodes."""
    with slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def read(folder: Path) -> pa.Table:
    return pyarrow.dataset.dataset(folder).to_table().sort_by("file").replace_schema_metadata(None)


def wait_for_parts(cluster: Slurm, job: int, table: Path, n_parts: int) -> None:
    deadline = time.monotonic() + 90
    while len(list(table.glob("*.parquet"))) < n_parts:
        assert cluster.state(job)["JobState"] in ("PENDING", "CONFIGURING", "RUNNING")
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_nothing_is_left(cluster: Slurm, folder: Path) -> None:
    """No process of a job, and no certificate, once Slurm has cleaned up."""
    deadline = time.monotonic() + 20
    while cluster.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.processes() == {}
    assert list(folder.glob(".emotion-batch-*")) == []


def test_a_job_whose_time_is_over_goes_on_in_the_next(cluster: Slurm, tess: Path, tmp_path: Path) -> None:
    """Told on two nodes that its time is over, a job stops, is queued again and ends the table: equal to a local run's."""
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in FOLDERS:
        (archive / name).symlink_to(tess / name)
    table = tmp_path / "table"
    write_strangers(tmp_path, tmp_path / "marks")
    job = cluster.submit(tmp_path, "--nodes=2", "--time=10", "--", archive, table, "--model", "tess-seed")
    wait_for_parts(cluster, job, table, 1)
    (folder,) = tmp_path.glob(".emotion-batch-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    # What the controller does 120 s before the end.
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    cluster.wait_until(job, "PENDING")
    log = tmp_path / f"{job}.log"
    assert "emotion-batch: stopped" in log.read_text()
    assert "it is in the queue again" in log.read_text()
    # The same in the meantime on this machine.
    done = call_command("label", archive, tmp_path / "local", "--model", "tess-seed")
    assert done.code == 0, done.err
    found = cluster.wait_until(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("COMPLETED", "0:0", "1"), log.read_text()
    assert_nothing_is_left(cluster, tmp_path)
    assert list((tmp_path / "marks").iterdir()) == []
    assert call_command("verify", table, "--deep").code == 0
    assert read(table).num_rows == len(list(archive.glob("*/*.wav"))) > 300
    assert read(table).equals(read(tmp_path / "local"))
    outcomes = [json.loads(path.read_bytes()) for path in sorted((table / "_table" / "runs").glob("*.json"))]
    assert [outcome["outcome"] for outcome in outcomes] == ["stopped", "complete"]
    # The second has done what was left.
    assert 0 < outcomes[1]["n_shards_done"] < outcomes[1]["n_shards"]
    assert not any(outcome["is_local"] for outcome in outcomes)


@pytest.mark.torture
@pytest.mark.parametrize("signal", ["USR1", "CONT"], ids=["told", "retired"])
def test_tess_twelve_times_in_jobs_of_a_minute(cluster: Slurm, tess: Path, tmp_path: Path, signal: str) -> None:
    """With a minute's walltime on one core, all of TESS twelve times over takes several jobs, and has the rows of a local run.

    Also where the controller does not tell that the time is over, and workers only retire.
    """
    write_strangers(tmp_path, tmp_path / "marks")
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in range(12):
        (archive / str(number)).symlink_to(tess)
    table = tmp_path / "table"
    # Slurm looks every 30 s whether the time of a job is over.
    options = ("--nodes=1", "--nodelist=two", "--time=1", f"--signal=B:{signal}@10")
    job = cluster.submit(tmp_path, *options, "--", archive, table, "--model", "voices-1")
    found = cluster.wait_until(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=1_200)
    log = (tmp_path / f"{job}.log").read_text()
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert int(found["Restarts"]) >= 1, log
    assert_nothing_is_left(cluster, tmp_path)
    assert list((tmp_path / "marks").iterdir()) == []
    assert call_command("verify", table, "--deep").code == 0
    assert call_command("label", tess, tmp_path / "local", "--model", "voices-1").code == 0
    expected, rows = read(tmp_path / "local"), read(table)
    assert rows.num_rows == 12 * expected.num_rows == 12 * 2_798
    # In the order of names, 10 comes after 1.
    for place, folder in enumerate(sorted(map(str, range(12)))):
        part = rows.slice(place * 2_798, 2_798)
        names = [f"{folder}/{name}" for name in expected["file"].to_pylist()]
        assert part["file"].to_pylist() == names
        assert part.drop_columns("file").equals(expected.drop_columns("file"))


@pytest.mark.torture
def test_what_is_cancelled_stays_so_and_what_is_wrong_says_so(cluster: Slurm, tess: Path, tmp_path: Path) -> None:
    """A cancelled job leaves nothing and does not come back; the same sbatch goes on; a wrong call ends with 2."""
    write_strangers(tmp_path, tmp_path / "marks")
    table = tmp_path / "table"
    words = ("--nodes=2", "--time=10", "--no-requeue", "--", tess, table, "--model", "tess-seed")
    job = cluster.submit(tmp_path, *words)
    wait_for_parts(cluster, job, table, 3)
    cluster.run("scancel", str(job))
    assert cluster.wait_until(job, "CANCELLED")["Restarts"] == "0"
    assert_nothing_is_left(cluster, tmp_path)
    # Its time is over, and it may not be queued again.
    job = cluster.submit(tmp_path, *words)
    wait_for_parts(cluster, job, table, len(list(table.glob("*.parquet"))) + 3)
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    assert cluster.wait_until(job, "FAILED")["ExitCode"] == "143:0"
    assert_nothing_is_left(cluster, tmp_path)
    job = cluster.submit(tmp_path, *words)
    assert cluster.wait_until(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0"
    assert list((tmp_path / "marks").iterdir()) == []
    assert call_command("verify", table, "--deep").code == 0
    # Workers that cannot begin end the job, which does not come back.
    without = "--export=ALL,DASK_DISTRIBUTED__WORKER__PRELOAD=nothing.such"
    job = cluster.submit(tmp_path, without, "--time=10", "--", tess, tmp_path / "other")
    assert cluster.wait_until(job, "FAILED")["ExitCode"] == "1:0"
    job = cluster.submit(tmp_path, "--", "extract", tmp_path / "nowhere", tmp_path / "third")
    assert cluster.wait_until(job, "FAILED")["ExitCode"] == "2:0"
    assert "it does not exist; check the name" in (tmp_path / f"{job}.log").read_text()
    assert_nothing_is_left(cluster, tmp_path)
