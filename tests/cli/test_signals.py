"""Runs that a signal or a closed terminal stops: nothing is left of them but whole parts and a record."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pyarrow.dataset
import pytest
from support.commands import ROOT, run_command, running, wait_for_parts

import emotion_batch

# Windows that overlap so much that a shard takes a second or two.
_SLOWLY = ("--window", "1", "--hop", "0.01")


def _processes(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    driver = psutil.Process(process.pid)
    return [driver, *driver.children(recursive=True)]


def _require_stopped(table: Path, processes: Sequence[psutil.Process]) -> None:
    """Require that a run's processes are gone within seconds, and that it left a record and no suspicion."""
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive
    status = emotion_batch.status(table)
    assert status.at_work == status.lost == ()
    assert status.last_run is not None
    assert (status.last_run["outcome"], status.last_run["error"]) == ("stopped", None)
    assert not list((table / "_table" / "attempts").iterdir())


def _rows(table: Path) -> list[dict[str, object]]:
    found = pyarrow.dataset.dataset(table).to_table()
    return found.sort_by([("file", "ascending"), ("start_s", "ascending")]).to_pylist()


@pytest.fixture(scope="module")
def outlasted(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a run that was started by nohup and got SIGHUP, which did not stop it."""
    table = tmp_path_factory.mktemp("outlasted") / "table"
    command = ["nohup", sys.executable, "-P", "-m", "emotion_batch", "extract", speech, table, *_SLOWLY]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_parts(table, 1, process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return table


def test_a_closed_terminal_ends_a_run(speech: Path, outlasted: Path, tmp_path: Path) -> None:
    """A terminal is closed: its run ends with a record and no process, and the same command makes the whole table."""
    table = tmp_path / "table"
    arguments = ("extract", speech, table, *_SLOWLY, "--debug")
    command = shlex.join([sys.executable, "-P", "-m", "emotion_batch", *map(os.fspath, arguments)])
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        # SIGHUP comes twice, from the shell and from the system, when the shell has ended.
        ["bash", "-c", f"trap 'kill -HUP $!; exit' HUP; {command} & wait"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    wait_for_parts(table, 1, shell)
    processes = _processes(shell)
    assert len(processes) > 5
    os.close(ours)
    shell.wait(30)
    _require_stopped(table, processes)
    assert run_command(*arguments).code == 0
    assert _rows(table) == _rows(outlasted)


@pytest.mark.torture
@pytest.mark.parametrize(
    "signals",
    [
        pytest.param((signal.SIGHUP, signal.SIGHUP), id="twice"),
        pytest.param((signal.SIGHUP, signal.SIGTERM, signal.SIGINT), id="others"),
        pytest.param((signal.SIGINT, signal.SIGINT, signal.SIGHUP), id="Ctrl-C"),
        pytest.param((signal.SIGTERM, signal.SIGTERM, signal.SIGINT), id="TERM"),
    ],
)
def test_further_signals_do_not_disturb_the_end(
    speech: Path, tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    """Signals that come while a run ends are taken for the first one: it leaves its record and no process."""
    table = tmp_path / "table"
    with running("extract", speech, table, *_SLOWLY, "--workers", "1") as process:
        # When the second part is there, there has been news of the first.
        wait_for_parts(table, 2, process)
        processes = _processes(process)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signals[0], err
    assert err.decode().endswith(f"to resume: emotion-batch resume {table}\n")
    assert "Traceback" not in err.decode()
    _require_stopped(table, processes)


@pytest.mark.torture
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL])
def test_a_run_that_is_killed_takes_its_cluster_along(
    speech: Path, outlasted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """After a signal that leaves no time for a record, no process is left either, and the same command goes on."""
    table = tmp_path / "table"
    arguments = ("extract", speech, table, *_SLOWLY, "--workers", "1")
    with running(*arguments) as process:
        wait_for_parts(table, 1, process)
        processes = _processes(process)
        process.send_signal(number)
        assert process.wait(30) == -number
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive
    assert len(emotion_batch.status(table).lost) == 1
    assert run_command(*arguments).code == 0
    assert _rows(table) == _rows(outlasted)
