"""Each command that a command prints as what to do next is run by a shell as printed, from a folder with a blank and a quote."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import ROOT, Finished, call_command, wait_for_parts
from support.review_tables import fill
from support.shell_cluster import ShellCluster

from emotion_batch.cli import app
from emotion_batch.cli.model_commands import format_card
from emotion_batch.example import synthesis
from emotion_batch.inference.bundle import open_bundle
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.lease import Lease

_STEP = re.compile(r"(?:^next|to stop it|to resume): (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Desk:
    """The folder in which a person works, and a shell there that finds the program on its PATH."""

    folder: Path
    environment: dict[str, str]

    def start(self, line: str) -> subprocess.Popen[bytes]:
        """Start what a line says. The shell becomes the program, so that a signal reaches it."""
        pipe = subprocess.PIPE

        def listen_to_ctrl_c() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

        return subprocess.Popen(
            ["sh", "-c", f"exec {line}"],
            cwd=self.folder,
            env=self.environment,
            stdout=pipe,
            stderr=pipe,
            preexec_fn=listen_to_ctrl_c,
        )

    def run(self, line: str) -> Finished:
        """Run a line as it is."""
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, check=False
        )
        return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())

    def follow(self, done: Finished, *commands: str) -> Finished:
        """Run the next steps one after another as they are printed, which must be these commands."""
        for command in commands:
            (line,) = _STEP.findall(done.out)
            assert shlex.split(line)[1] == command, (line, done)
            done = self.run(line)
            assert done.code == 0, (line, done.err)
        return done

    def begin_training(self, done: Finished) -> None:
        """Run the next step, which must be a training, until it has learnt for an epoch; a whole one takes a minute."""
        (line,) = _STEP.findall(done.out)
        assert shlex.split(line)[1] == "train", line
        process = self.start(line)
        assert process.stderr is not None
        said = []
        for one in process.stderr:
            said.append(one.decode())
            if "epoch 1 of " in said[-1]:
                process.send_signal(signal.SIGINT)
        process.wait(60)
        assert process.returncode == 130, said


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A folder whose name has a blank and a quote; this process works there as well."""
    program = tmp_path / "bin" / "emotion-batch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m emotion_batch.cli.app "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    folder = tmp_path / "Ann's calls"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Desk(folder, {**os.environ, "PATH": path, "PYTHONPATH": os.fspath(ROOT)})


def lose_a_part(table: Path) -> None:
    next(iter(sorted(table.glob("*.parquet")))).unlink()


@pytest.mark.parametrize(
    "name",
    ["""it's [1] *? "two" $HOME/year=2024/emotion=sad/""", "-lead"],
    ids=["odd characters and a slash at the end", "a leading dash"],
)
def test_what_is_printed_as_the_next_step_runs_as_printed(
    name: str,
    features: Path,
    labels: Path,
    bundle: Path,
    cluster: ShellCluster,
    desk: Desk,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A shell runs every next step for tables of any name, and the table is what it names."""
    Path(name).mkdir(parents=True)
    shutil.copytree(labels, Path(f"{name}labels"))
    end = "/" if name.endswith("/") else ""
    table, made = f"{name}labels{end}", f"{name}made{end}"
    dash = ("--",)
    n_run = 0
    for command in (
        ("label", "--model", bundle, "--scheduler", cluster.address, *dash, features, made),
        ("status", *dash, made),
        ("verify", *dash, made),
        ("report", "--output", "page.html", *dash, table),
        ("review", *dash, table, f"{name}sheet.csv"),
        ("export", *dash, table, f"{name}exported"),
    ):
        assert app.run_command([os.fspath(one) for one in command]) == 0, capsys.readouterr()
        out = capsys.readouterr().out
        (line,) = [line.removeprefix("next: ") for line in out.splitlines() if line.startswith("next: ")]
        # The features are shared with other tests, which read their status.
        if "retry" in line:
            assert shlex.split(line) == ["emotion-batch", "retry", os.fspath(features)]
            continue
        done = desk.run(line)
        # In a sheet a person has to fill in something first.
        assert done.code == 0 or "fill it in and take the sheet again" in done.err, (line, done.err)
        if command[0] in ("label", "export"):
            assert "angry" in done.out
        n_run += 1
    assert n_run == 5


def test_a_table_that_has_lost_a_part(features: Path, desk: Desk) -> None:
    """`status` and `verify` name the command that makes the part again; then `retry` is next, and `status` after it."""
    table = desk.folder / "Ann's features"
    shutil.copytree(features, table)
    lose_a_part(table)
    done = call_command("status", table.name)
    assert _STEP.findall(call_command("verify", table.name).out) == _STEP.findall(done.out)
    done = desk.follow(done, "resume", "verify", "retry", "status")
    assert "3 of 3 parts" in done.out


def test_labels_of_a_feature_table(features: Path, bundle: Path, desk: Desk, cluster: ShellCluster) -> None:
    """An unfinished label table is resumed; its failures are retried where the features are, and then it is resumed."""
    table, labels = desk.folder / "Ann's features", "Ann's labels"
    shutil.copytree(features, table)
    assert call_command("label", table.name, labels, "--model", bundle, "--scheduler", cluster.address).code == 0
    lose_a_part(desk.folder / labels)
    done = desk.follow(call_command("status", labels), "resume", "query")
    assert "disgust" in done.out
    done = call_command("retry", labels)
    assert done.code == 2
    lines = re.findall("`(.*?)`", done.err)
    assert [shlex.split(line)[1:] for line in lines] == [
        ["retry", os.fspath(table)],
        ["resume", f"{desk.folder}/{labels}"],
    ]
    for line in lines:
        assert desk.run(line).code == 0


def test_a_run_whose_recordings_all_fail(speech: Path, desk: Desk) -> None:
    """`status` is next, and the error names the retry; both run as printed."""
    Path("Ann's archive").mkdir()
    shutil.copy(speech / "broken" / "V1_truncated_angry.wav", "Ann's archive")
    done = call_command("extract", "Ann's archive", "Ann's table", "--workers", "1", "--force")
    assert done.code == 1, done
    desk.follow(done, "status")
    (line,) = re.findall("`(.*?)`", done.err)
    again = desk.run(line)
    assert again.code == 1
    assert "every recording failed" in again.err


def test_from_recordings_to_a_query(features: Path, bundle: Path, speech: Path, desk: Desk) -> None:
    """`extract` names a training, which begins; a training and an evaluation name a call of `label`, which names a query."""
    shutil.copytree(features, "Ann's features")
    shutil.copytree(bundle, "Ann's bundle")
    done = call_command("extract", speech, "Ann's features")
    assert done.code == 0, done.err
    desk.begin_training(done)
    done = call_command("evaluate", "Ann's bundle", "Ann's features", "--robustness", "0")
    assert done.code == 0, done.err
    # A training prints its card, and takes ten seconds more.
    card = str(format_card(open_bundle(Folder.of("Ann's bundle")).card, "Ann's bundle"))
    assert _STEP.findall(card) == _STEP.findall(done.out)
    synthesis.write_archive(desk.folder / "RECORDINGS", n_words=1)
    done = desk.follow(done, "label", "query")
    assert "emotion" in done.out


def test_a_sheet_that_is_filled_in(labels: Path, desk: Desk) -> None:
    """`review --take` names a training with the reviewed labels, and it begins."""
    shutil.copytree(labels, "Ann's labels")
    assert call_command("review", "Ann's labels", "Ann's sheet.csv").code == 0
    fill(Path("Ann's sheet.csv"), lambda cells: Path(cells["file"]).stem.split("_")[-1])
    done = call_command("review", "Ann's labels", "Ann's sheet.csv", "--take")
    assert done.code == 0, done.err
    desk.begin_training(done)


def test_a_run_at_work_is_watched_and_cancelled(features: Path, desk: Desk) -> None:
    """`status` names how to watch a run and how to stop it; `cancel` names `status`."""
    shutil.copytree(features, "Ann's features")
    held = Lease(Folder.of("Ann's features"), "20260101T000000Z-0a")
    held.begin()
    try:
        stop, watch = _STEP.findall(call_command("status", "Ann's features").out)
        assert "is at work" in desk.run(watch).out
        done = desk.run(stop)
        assert done.code == 0, done.err
        assert _STEP.findall(done.out) == [watch]
        assert "was cancelled" in desk.follow(done, "status").out
    finally:
        held.end()


def test_a_run_that_is_stopped_names_how_to_go_on(speech: Path, desk: Desk) -> None:
    """After Ctrl-C the printed command makes the rest of the table."""
    archive = shlex.quote(os.fspath(speech / "V1_sad"))
    process = desk.start(f'emotion-batch extract {archive} "Ann\'s table" --workers 1 --window 1 --hop 0.01')
    wait_for_parts(desk.folder / "Ann's table", 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (line,) = _STEP.findall(err.decode()) or ['emotion-batch resume "Ann\'s table"']
    done = desk.run(line)
    assert done.code == 0, done.err
    assert call_command("verify", "Ann's table").code == 0


def test_a_submitted_run_is_watched_and_cancelled(speech: Path, desk: Desk, cluster: ShellCluster) -> None:
    """`submit` names how to watch the run and how to stop it."""
    windows = ("--window", "1", "--hop", "0.01")
    done = call_command("submit", "extract", speech, "Ann's table", *windows, "--scheduler", cluster.address)
    assert done.code == 0, done.err
    stop, watch = _STEP.findall(done.out)
    assert desk.run(watch).code == 0
    stopped = desk.run(stop)
    # It may have ended by itself.
    assert stopped.code == 0 or "no run is at work on it" in stopped.err


def test_what_the_demo_prints(desk: Desk) -> None:
    """Its own steps, its queries and the last line run as printed; its training says that the bundle is there."""
    done = desk.run('emotion-batch demo "Ann\'s demo" --words 3 --workers 1')
    assert done.code == 0, done.err
    lines = re.findall(r"^(?:\d\. |  |next: |)(emotion-batch .*)$", done.out, re.MULTILINE)
    ours = [line for line in lines if "demo" in line]
    assert [shlex.split(line)[1] for line in ours] == ["extract", "train", "label", *["query"] * 3, "label"]
    for line in ours:
        again = desk.run(line)
        assert again.code == 0 or (" train " in line and "there is a bundle already" in again.err), (line, again.err)
    synthesis.write_archive(desk.folder / "YOUR-RECORDINGS", n_words=1)
    desk.follow(done, "label", "query")
