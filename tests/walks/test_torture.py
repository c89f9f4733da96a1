"""Runs that are killed, crowded, starved and fed what kills decoders: the same command again, and the table is whole.

A seeded handful runs with the other tests, the rest by `make torture`.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.dataset
import pytest
import soundfile
from support.commands import ROOT, call_command, run_command, running, wait_for_parts
from support.damage import victims
from support.recordings import KILLERS, tone, write_killers

import emotion_batch

VICTIMS = ("worker", "all workers", "scheduler", "driver")
N_MOMENTS = 20
# The driver's is that of the tests in a bucket; the others are many minutes.
IN_CI = {("worker", 0), ("scheduler", 0)}
MOMENTS = [
    pytest.param(victim, number, marks=() if (victim, number) in IN_CI else pytest.mark.torture)
    for victim in VICTIMS
    for number in range(N_MOMENTS)
]


def parts(table: Path) -> dict[str, bytes]:
    """Return what lies in a table beside its ledger, and beside what a killed process was writing: that goes after an hour."""
    found = {path.name: path.read_bytes() for path in table.iterdir() if path.name != "_table"}
    return {
        name: data for name, data in found.items() if not re.fullmatch(r"\.part-\d+\.parquet\.[0-9a-f]{32}\.tmp", name)
    }


def statuses(table: Path) -> dict[str, list[str]]:
    """Return the names of a table's recordings by status, a name for each row."""
    rows = pyarrow.dataset.dataset(table).to_table(columns=["file", "status"]).to_pylist()
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["status"], []).append(row["file"])
    return found


@pytest.fixture(scope="module")
def speaker(tess: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the recordings of one of the two speakers: a run of some seconds."""
    folder = tmp_path_factory.mktemp("speaker") / "archive"
    for recording in sorted(tess.glob("OAF*/*.wav"))[::2]:
        to = folder / recording.parent.name / recording.name
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(recording)
    return folder


@pytest.fixture(scope="module")
def undisturbed(speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature table of a run that nothing happened to."""
    table = tmp_path_factory.mktemp("undisturbed") / "table"
    assert run_command("extract", speaker, table).code == 0
    return table


@pytest.fixture(scope="module")
def whole_speaker(tess: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recordings of one of the two speakers."""
    folder = tmp_path_factory.mktemp("speaker") / "archive"
    folder.mkdir()
    for one in tess.glob("OAF*"):
        (folder / one.name).symlink_to(one)
    return folder


@pytest.fixture(scope="module")
def whole_undisturbed(whole_speaker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their feature table, of a run that nothing happened to."""
    table = tmp_path_factory.mktemp("undisturbed") / "table"
    assert run_command("extract", whole_speaker, table).code == 0
    return table


def wait_for_write(table: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a part is being written under its hidden name."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if any(name.startswith(".part-") for name in os.listdir(table)):
                return


@pytest.mark.parametrize(("victim", "number"), MOMENTS)
def test_what_is_killed_goes_on(request: pytest.FixtureRequest, tmp_path: Path, victim: str, number: int) -> None:
    """After kill -9 of any process at any moment the same command ends with the table of an undisturbed run."""
    chance = random.Random(f"{victim} {number}")  # noqa: S311 a seed, no secret
    # A run has to be as long as the latest of the moments, and not for the two that are early.
    names = ("speaker", "undisturbed") if (victim, number) in IN_CI else ("whole_speaker", "whole_undisturbed")
    speaker, undisturbed = (request.getfixturevalue(name) for name in names)
    table = tmp_path / "table"
    # Most of what the work took, without the start of the program.
    lasts_s = 0.8 * emotion_batch.status(undisturbed).last_run["elapsed_s"]
    with running("extract", speaker, table) as process:
        driver = psutil.Process(process.pid)
        processes: list[psutil.Process] = []
        if number % 2:
            time.sleep(chance.uniform(0, lasts_s / 2))
            wait_for_write(table, process)
        elif victim == "driver":
            time.sleep(chance.uniform(0, lasts_s))
        else:
            wait_for_parts(table, 1 + number % 3, process)
            time.sleep(chance.uniform(0, lasts_s / 10))
        processes = driver.children(recursive=True)
        killed = victims(driver, victim)
        assert killed
        for one in killed:
            one.kill()
        _, err = process.communicate(timeout=120)
    # What a killed driver's cluster has begun must not go on beside the next command, not even for a moment.
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(processes, timeout=10)
    assert process.returncode == {"driver": -signal.SIGKILL, "scheduler": 1}.get(victim, 0)
    if victim == "scheduler":
        (sentence,) = [line for line in err.decode().splitlines() if line.startswith("emotion-batch: ")]
        assert "run the same command again" in sentence
    done = run_command("extract", speaker, table, "--json")
    assert done.code == 0, done.err
    assert parts(table) == parts(undisturbed)
    done = call_command("verify", table, "--deep")
    assert done.code == 0, done.out


@pytest.mark.parametrize("n_good", [200, pytest.param(2_000, marks=pytest.mark.torture)])
def test_recordings_that_kill_cost_only_themselves(tess: Path, killers: Path, tmp_path: Path, n_good: int) -> None:
    """A crash, an endless loop and a flood among many recordings: all others are ok, three have their status, and exit code 0."""
    archive, table = tmp_path / "archive", tmp_path / "table"
    archive.mkdir()
    for recording in sorted(tess.rglob("*.wav"))[:n_good]:
        (archive / f"{recording.parent.name} {recording.name}").symlink_to(recording)
    write_killers(archive)
    environment = {"PYTHONPATH": os.fspath(killers)}
    # Enough for a flood of gigabytes on a slow machine.
    deadline_s = 8
    started = time.monotonic()
    done = run_command("extract", archive, table, "--deadline", str(deadline_s), environment=environment)
    assert done.code == 0, done.err
    assert time.monotonic() - started < 120
    found = statuses(table)
    assert len(found.pop("ok")) == n_good
    assert {names[0]: status for status, names in found.items()} == KILLERS
    assert all(len(names) == 1 for names in found.values())
    assert (
        done.out.splitlines()[-1]
        == f"{n_good + 3:,} recordings, {n_good + 3:,} rows: {n_good:,} ok, 3 failed (crashed 1, memory 1, timeout 1)"
    )
    assert "s of work were lost with workers and child processes" in done.out
    assert call_command("verify", table, "--deep").code == 0
    # What killed may be tried again, and kills no worker then.
    done = run_command("retry", table, "--deadline", "3", "--status", "crashed", "--json", environment=environment)
    assert done.code == 0, done.err
    assert (done.result["n_decoded"], done.result["n_shards_done"]) == (1, 1)
    assert done.result["spent"]["lost_s"] < 10
    for name in KILLERS:
        soundfile.write(archive / name, tone(2.0), 24_414)
    done = run_command("extract", archive, table, "--json")
    assert (done.result["n_changed"], done.result["n_decoded"], done.result["n_ok"]) == (3, 3, n_good + 3)


def test_killers_with_every_worker_at_once(killers: Path, tmp_path: Path) -> None:
    """More crashes than Dask forgives a worker's neighbours: each recording has its row, none the status of another."""
    archive, table = tmp_path / "archive", tmp_path / "table"
    archive.mkdir()
    soundfile.write(archive / "good 000.wav", tone(1.0, 8_000), 8_000)
    for number in range(1, 600):
        shutil.copy(archive / "good 000.wav", archive / f"good {number:03d}.wav")
    for number in range(0, 600, 100):
        (archive / f"good {number:03d} not.wav").write_bytes(b"ABORT!" * 100)
    environment = {"PYTHONPATH": os.fspath(killers)}
    done = run_command("extract", archive, table, environment=environment)
    assert done.code == 0, done.err
    found = statuses(table)
    assert len(found["ok"]) == 600
    assert sorted(found["crashed"]) == [f"good {number:03d} not.wav" for number in range(0, 600, 100)]


def test_two_at_once_harm_nothing(speaker: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Two commands started in the same second on one table both end well, and leave the table of one."""
    table = tmp_path / "table"
    with running("extract", speaker, table) as one, running("extract", speaker, table) as other:
        for process in (one, other):
            _, err = process.communicate(timeout=200)
            assert process.returncode == 0, err.decode()
    assert parts(table) == parts(undisturbed)
    assert call_command("verify", table, "--deep").code == 0
    assert emotion_batch.status(table).at_work == ()
    assert len(list((table / "_table" / "manifest").glob("*.json"))) == 1


def run_on_small_disk(table: Path, kilobytes: int, *command: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command with a tmpfs of so many kilobytes at `table`; a copy of it is kept as ``kept`` beside it."""
    table.mkdir()
    script = (
        f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0" || exit 99; table="$0"; "$@"; code=$?; '
        'cp -a "$table" "$table/../kept"; exit $code'
    )
    arguments = [sys.executable, "-P", "-m", "emotion_batch", *(os.fspath(one) for one in command)]
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, os.fspath(table), *arguments],
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )


def test_a_full_disk_is_one_sentence_and_resumable(speaker: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A disk that fills in the middle of a run stops it, with whole parts alone; elsewhere the same command goes on."""
    table = tmp_path / "table"
    size = sum(len(data) for data in parts(undisturbed).values())
    done = run_on_small_disk(table, size // 2 // 1024, "extract", speaker, table)
    if done.returncode == 99 or b"unshare" in done.stderr:
        pytest.skip(f"this machine does not allow a small disk to be mounted: {done.stderr.decode().strip()}")
    assert done.returncode == 1, done.stderr
    sentences = [line for line in done.stderr.decode().splitlines() if line.startswith("emotion-batch: ")]
    assert len(sentences) == 1
    assert "No space left on device; finished work is kept, and the same command again resumes" in sentences[0]
    left = parts(tmp_path / "kept")
    assert 0 < len(left) < len(parts(undisturbed))
    assert left.items() <= parts(undisturbed).items()
    table.rmdir()
    (tmp_path / "kept").rename(table)
    assert run_command("extract", speaker, table).code == 0
    assert parts(table) == parts(undisturbed)


@pytest.mark.parametrize("what", ["table", "archive"])
def test_what_is_taken_away_stops_the_run(speaker: Path, undisturbed: Path, tmp_path: Path, what: str) -> None:
    """A table or an archive that goes away in mid-run is one sentence, and no table of rows that say so."""
    archive, table, away = tmp_path / "archive", tmp_path / "table", tmp_path / "away"
    archive.symlink_to(speaker)
    moved = {"table": table, "archive": archive}[what]
    with running("extract", archive, table) as process:
        wait_for_parts(table, 2, process)
        moved.rename(away)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err.decode()
    (sentence,) = [line for line in err.decode().splitlines() if line.startswith("emotion-batch: ")]
    assert f"emotion-batch: {what} {moved}" in sentence
    assert "it does not exist; check the name" in sentence
    assert not moved.exists()
    away.rename(moved)
    assert set(statuses(table)) == {"ok"}
    done = run_command("extract", archive, table, "--json")
    assert done.code == 0, done.err
    assert 0 < done.result["n_shards_done"] < done.result["n_shards"]
    assert parts(table) == parts(undisturbed)


def test_a_target_that_cannot_be_written_is_one_sentence(speech: Path) -> None:
    """A read-only place is refused before any work, also for root."""
    done = run_command("extract", speech, "/proc/table")
    assert done.code == 2
    assert done.err.startswith("emotion-batch: table /proc/table: it ")
    assert done.err.count("\n") == 1
