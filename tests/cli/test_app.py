"""Walks through the command: archives good and odd, the errors a person meets, and stops."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow.dataset
import pytest
import soundfile
from support.commands import ROOT, Finished, call_command, run_command, running, wait_for_parts
from support.recordings import tone, write_odd_archive
from support.shell_cluster import ShellCluster

import emotion_batch
from emotion_batch.cli import app
from emotion_batch.cli.options import COMMANDS, read_arguments, read_values
from emotion_batch.example import synthesis
from emotion_batch.progress import Watcher


def rows(table: Path) -> list[dict[str, object]]:
    """Return a table's rows as any tool reads them, by recording."""
    return (
        pyarrow.dataset.dataset(table).to_table().sort_by([("file", "ascending"), ("start_s", "ascending")]).to_pylist()
    )


def one_sentence(err: str) -> str:
    """Return the error, which is one line at the end, without a traceback."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("emotion-batch:")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("odd") / "archive"
    folder.mkdir()
    return folder, write_odd_archive(folder)


def test_an_odd_archive_is_labelled_whole(odd: tuple[Path, dict[str, str]], bundle: Path, tmp_path: Path) -> None:
    """Each odd recording has a row with its status, failures are counted in the last line, nothing is raised."""
    archive, expected = odd
    done = run_command("label", archive, tmp_path / "labels", "--model", bundle)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    found = {row["file"]: row["status"] for row in rows(tmp_path / "labels")}
    assert found == expected
    n_ok = sum(status == "ok" for status in expected.values())
    counts = Counter(status for status in expected.values() if status != "ok")
    reasons = ", ".join(f"{status} {n}" for status, n in sorted(counts.items()))
    last = done.out.splitlines()[-1]
    assert (
        last
        == f"{len(expected)} recordings, {len(expected)} rows: {n_ok} ok, {len(expected) - n_ok} failed ({reasons})"
    )
    assert "left out 1 file without a recording's suffix (1 .txt)" in done.err
    for row in rows(tmp_path / "labels"):
        has_label = row["emotion"] is not None and row["confidence"] is not None and row["p_sad"] is not None
        assert has_label == (row["status"] == "ok") == (row["error"] is None)
        if has_label:
            probabilities = {name: row[f"p_{name}"] for name in synthesis.EMOTIONS}
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
            assert row["emotion"] == max(probabilities, key=probabilities.__getitem__)
            assert row["confidence"] == max(probabilities.values())


def test_too_many_failures_are_exit_code_1(
    odd: tuple[Path, dict[str, str]], tmp_path: Path, cluster: ShellCluster
) -> None:
    """`--max-failed` turns failures into an exit code, in numbers and in shares; the table is still there."""
    archive, expected = odd
    n_failed = sum(status != "ok" for status in expected.values())
    table = tmp_path / "features"
    for limit, code in (("0", 1), (str(n_failed - 1), 1), (str(n_failed), 0), ("1%", 1), ("99%", 0)):
        options = ("--max-failed", limit, "--json", "--scheduler", cluster.address)
        done = call_command("extract", archive, table, *options)
        assert done.code == code
        assert done.result["n_failed"] == n_failed
        assert (f"{n_failed} of {len(expected)} rows failed, and --max-failed allows" in done.err) == bool(code)
    assert len(rows(table)) == len(expected)


def test_features_and_archive_give_the_same_labels(
    speech: Path, features: Path, bundle: Path, labels: Path, tmp_path: Path, cluster: ShellCluster
) -> None:
    """Labels from the feature table and straight from the archive are the same rows; kept features are a table too."""
    kept = tmp_path / "kept"
    options = ("--model", bundle, "--json", "--keep-features", kept, "--scheduler", cluster.address)
    done = call_command("label", speech, tmp_path / "labels", *options)
    assert done.code == 0, done.err
    assert done.result["n_ok"] == 84
    assert rows(tmp_path / "labels") == rows(labels)
    assert rows(kept) == rows(features)
    assert call_command("extract", speech, kept, "--json").result["n_shards_done"] == 0


def test_what_is_gone_keeps_its_row_and_what_arrives_gets_one(tmp_path: Path, cluster: ShellCluster) -> None:
    """A neighbour that changed does not cost a gone recording its features; a late one is looked at again."""
    archive, table = tmp_path / "archive", tmp_path / "table"
    synthesis.write_archive(tmp_path / "made", n_words=1)
    archive.mkdir()
    for name in ("stays", "goes", "changes"):
        shutil.copy(tmp_path / "made" / "V1_sad" / "V1_back_sad.wav", archive / f"{name}.wav")
    (archive / "list.txt").write_text("stays.wav\ngoes.wav\nchanges.wav\nlate.wav\n")
    notes: list[str] = []
    watcher = Watcher(on_note=notes.append)
    first = emotion_batch.extract(archive / "list.txt", table, scheduler=cluster.address, watcher=watcher)
    said = "1 of the 4 recordings in the list is missing, e.g. 'late.wav'; names in a list are relative to the list's folder"
    assert [note for note in notes if note.startswith(said) and str(archive) in note]
    assert first.counts.by_status == {"ok": 3, "vanished": 1}
    before = {row["file"]: row for row in rows(table)}
    (archive / "goes.wav").unlink()
    shutil.copy(tmp_path / "made" / "V1_angry" / "V1_back_angry.wav", archive / "changes.wav")
    shutil.copy(tmp_path / "made" / "V1_angry" / "V1_back_angry.wav", archive / "late.wav")
    second = emotion_batch.extract(archive / "list.txt", table, scheduler=cluster.address)
    assert second.counts.by_status == {"ok": 4}
    after = {row["file"]: row for row in rows(table)}
    assert after["goes.wav"] == before["goes.wav"]
    assert after["stays.wav"] == before["stays.wav"]
    assert after["changes.wav"]["mfcc"] == after["late.wav"]["mfcc"] != before["changes.wav"]["mfcc"]


def test_a_reader_that_has_enough_changes_no_exit_code(speech: Path, features: Path, tmp_path: Path) -> None:
    """With stdout or stderr closed the work is still done, and the exit code says how it went."""
    table = shutil.copytree(features, tmp_path / "table")
    command = [sys.executable, "-P", "-m", "emotion_batch", "extract", speech, table, "--max-failed", "0"]
    for streams in ({"stdout": "closed", "stderr": None}, {"stdout": None, "stderr": "closed"}):
        reading, writing = os.pipe()
        os.close(reading)
        given = {name: writing if how == "closed" else subprocess.DEVNULL for name, how in streams.items()}
        assert subprocess.run(command, check=False, **given).returncode == 1
        os.close(writing)


@pytest.mark.parametrize(
    ("command", "streams", "code", "said"),
    [
        pytest.param("extract", ">&-", 0, "dashboard at", id="extract, no stdout"),
        pytest.param("extract", "<&- >&- 2>&-", 0, "", id="extract, no streams"),
        pytest.param("extract", "2>/dev/full", 0, "", id="extract, full stderr"),
        pytest.param("extract", ">/dev/full", 1, "the result could not be written (No space left", id="full stdout"),
        pytest.param("status", ">/dev/full 2>/dev/full", 1, "", id="status, both full"),
        pytest.param("query", ">/dev/full", 1, "the result could not be written", id="query, full stdout"),
        pytest.param("query", ">&-", 0, "", id="query, no stdout"),
        pytest.param("--help", ">/dev/full", 1, "the result could not be written", id="help, full stdout"),
        pytest.param("--help", ">&-", 0, "", id="help, no stdout"),
        pytest.param("nothing", "2>/dev/full", 2, "", id="wrong call, full stderr"),
        pytest.param("nothing", "2>&-", 2, "", id="wrong call, no stderr"),
    ],
)
def test_streams_that_take_nothing_change_no_work(
    speech: Path, features: Path, tmp_path: Path, command: str, streams: str, code: int, said: str
) -> None:
    """The work is done, what a closed stream would have shown is lost, and only a result that should be there is an error."""
    arguments = {
        "extract": [speech / "V1_sad", tmp_path / "table", "--workers", "1"],
        "status": [features],
        "query": [features, "FROM features SELECT file", "--format", "csv"],
    }
    words = [sys.executable, "-m", "emotion_batch.cli.app", command, *map(os.fspath, arguments.get(command, []))]
    script = f"{shlex.join(words)} {streams}"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    if command == "extract":
        assert emotion_batch.verify(tmp_path / "table", deep=True).is_whole


def test_a_deleted_current_folder_is_no_matter_of_absolute_paths(speech: Path, tmp_path: Path) -> None:
    """From a folder that is gone a run with absolute paths does its work, and a relative one is refused in a sentence."""

    def run(table: str) -> tuple[int, str]:
        gone = tmp_path / "gone"
        gone.mkdir()
        words = [sys.executable, "-m", "emotion_batch.cli.app", "extract", f"{speech}/V1_sad", table, "--workers", "1"]
        script = f"rmdir {shlex.quote(os.fspath(gone))}; {shlex.join(words)}"
        variables = {**os.environ, "PYTHONPATH": os.fspath(ROOT)}
        done = subprocess.run(
            ["sh", "-c", script], cwd=gone, env=variables, capture_output=True, text=True, check=False, timeout=120
        )
        return done.returncode, done.stderr

    code, err = run(f"{tmp_path}/table")
    assert code == 0, err
    assert emotion_batch.verify(tmp_path / "table", deep=True).is_whole
    code, err = run("table")
    assert code == 2
    assert "table: the current folder was deleted; go to another one, or name an absolute path" in one_sentence(err)


# What people set for clusters of their own: https://docs.dask.org/en/stable/configuration.html
_FOREIGN = """
scheduler-address: tls://scheduler.example:8786
default-scheme: ws
distributed:
  comm:
    require-encryption: true
    default-scheme: tls
    tls: {ca-file: /nowhere/ca.pem, scheduler: {cert: /nowhere/s.pem}, worker: {cert: /nowhere/w.pem}, client: {cert: /nowhere/c.pem}}
  scheduler: {preload: [no.such.module], contact-address: "tcp://203.0.113.1:1", allowed-imports: [], port: 1, dashboard: {tls: {cert: /nowhere/d.pem}, bokeh-application: {prefix: /d}}}
  worker: {preload: [no.such.module], lifetime: {duration: 1 second}, multiprocessing-method: nothing}
  nanny: {preload: [no.such.module], port: 1}
  client: {preload: [no.such.module], security-loader: no.such.loader}
"""


@pytest.mark.parametrize("how", ["file", "variables"])
def test_a_dask_configuration_for_other_clusters_is_no_matter_of_the_local_one(
    speech: Path, tmp_path: Path, how: str
) -> None:
    """Encryption, ports, schemes, certificates and preloads that Dask's settings ask for do not reach a local cluster."""
    folder = tmp_path / "home" / ".config" / "dask"
    folder.mkdir(parents=True)
    (folder / "dask.yaml").write_text(_FOREIGN)
    environment = {"HOME": os.fspath(tmp_path / "home"), "DASK_ROOT_CONFIG": os.fspath(folder)}
    if how == "variables":
        environment = {
            "DASK_DEFAULT_SCHEME": "ws",
            "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": "/nowhere/ca.pem",
            "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": '["no.such.module"]',
            "DASK_DISTRIBUTED__CLIENT__PRELOAD": '["no.such.module"]',
            "DASK_SCHEDULER_ADDRESS": "tls://scheduler.example:8786",
        }
    arguments = ("extract", speech / "V1_sad", tmp_path / "table", "--workers", "1")
    listening: set[tuple[int, str]] = set()
    others = set(psutil.Process().children(recursive=True))
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_command, *arguments, environment=environment)
        while not run.done():
            for child in set(psutil.Process().children(recursive=True)) - others:
                with contextlib.suppress(psutil.Error):
                    connections = child.net_connections()
                    listening |= {(one.laddr.port, one.laddr.ip) for one in connections if one.status == "LISTEN"}
            time.sleep(0.1)
    assert run.result().code == 0, run.result().err
    assert emotion_batch.verify(tmp_path / "table", deep=True).is_whole
    # Of the scheduler, the nanny and the worker, and two servers of pages.
    assert len(listening) == 5
    assert {address for _, address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("kind", [pytest.param("Scheduler", marks=pytest.mark.torture), "Nanny"])
def test_a_local_cluster_that_is_not_on_loopback_does_no_work(speech: Path, tmp_path: Path, kind: str) -> None:
    """If Dask listens on all addresses nevertheless, as it does for a websocket, the run is refused in one sentence."""
    (tmp_path / "sitecustomize.py").write_text(f"""
import sys

# Only the process of the scheduler and the nannies, because the driver starts no cluster by itself.
if any("dask_local.serve" in argument for argument in sys.orig_argv):
    import distributed

    begin = distributed.{kind}.__init__
    distributed.{kind}.__init__ = lambda *given, **options: begin(*given, **(options | {{"protocol": "ws"}}))
""")
    environment = {"PYTHONPATH": os.fspath(tmp_path)}
    done = run_command("extract", speech / "V1_sad", tmp_path / "table", "--workers", "1", environment=environment)
    assert done.code == 2
    assert "its processes must listen on tcp://127.0.0.1 only: ws://" in one_sentence(done.err)
    assert not list((tmp_path / "table").glob("*.parquet"))


def test_a_dask_configuration_that_is_none_is_one_sentence(speech: Path, tmp_path: Path) -> None:
    """A file of settings that Dask cannot read ends the run before its work, and says where to look."""
    (tmp_path / "dask.yaml").write_text("distributed: [")
    environment = {"DASK_CONFIG": os.fspath(tmp_path)}
    done = run_command("extract", speech / "V1_sad", tmp_path / "table", environment=environment)
    assert done.code == 2
    assert "Dask does not start with its settings on this machine" in one_sentence(done.err)


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(speech: Path, features: Path, tmp_path: Path) -> None:
    """When parts can no longer be written the run stops with one sentence, nothing half-written, and resumes."""
    table = tmp_path / "table"
    shutil.copytree(features, table)
    parts = sorted(table.glob("*.parquet"))
    for part in parts[1:]:
        part.unlink()

    def no_room() -> None:
        # No file may grow to the size of a part: what a disk without room gives, in every process of the run.
        size = parts[0].stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = [sys.executable, "-P", "-m", "emotion_batch", "extract", speech, table]
    done = subprocess.run(command, preexec_fn=no_room, capture_output=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "File too large; finished work is kept, and the same command again resumes" in one_sentence(
        done.stderr.decode()
    )
    assert [path.name for path in table.iterdir() if path.name != "_table"] == [parts[0].name]
    assert run_command("extract", speech, table).code == 0
    assert rows(table) == rows(features)


def test_one_recording_is_printed(speech: Path, bundle: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single recording and no table gives its label and probabilities, or its reason and exit code 1."""
    recording = "V1_sad/V1_back_sad.wav"

    def printed(name: str, *options: str) -> tuple[int, str]:
        code = app.run_command(["label", os.fspath(speech / name), "--model", os.fspath(bundle), *options])
        return code, capsys.readouterr().out

    code, out = printed(recording)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[0] == "V1_back_sad.wav"
    shown = {line.split()[0]: float(line.split()[1]) for line in lines[2:]}
    assert set(shown) == set(synthesis.EMOTIONS)
    assert sum(shown.values()) == pytest.approx(1, abs=1e-5)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert lines[0].split()[1] == next(iter(shown))

    row = next(row for row in rows(labels) if row["file"] == recording)
    (found,) = json.loads(printed(recording, "--json")[1])
    assert (found["start_s"], found["end_s"]) == (row["start_s"], row["end_s"])
    assert found["emotion"] == row["emotion"]
    assert found["probabilities"] == pytest.approx({name: row[f"p_{name}"] for name in synthesis.EMOTIONS}, abs=1e-6)
    assert printed("broken/V1_empty_sad.wav") == (1, "V1_empty_sad.wav  empty: the file has no bytes\n")


def test_windows_of_one_recording_are_printed(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --window each window of a recording has its line, and what is wrong with a call is said."""
    recording = tmp_path / "call.wav"
    soundfile.write(recording, tone(5.0), 24_414)
    call = ["label", os.fspath(recording), "--model", os.fspath(bundle)]
    assert app.run_command([*call, "--window", "2", "--hop", "1.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "call.wav"
    stretches = [tuple(map(float, line.split()[:2])) for line in lines[1:]]
    assert stretches == [(0, 2), (1.5, 3.5), (3, 5), (4.5, 5)]
    for options, words in (
        (("--hop", "1"), "--hop requires --window"),
        (("--window", "2", "--offset", "1"), "--window cannot be combined with --offset or --duration"),
        (("--window", "0"), "window must be from 0.01 to 1,000,000 seconds: 0"),
        (("--window", "2", "--hop", "0"), "hop must be from 0.01 to 1,000,000 seconds: 0"),
        (("--window", "1e308"), "window must be from 0.01 to 1,000,000 seconds: 1e+308"),
        (("--offset", "1"), "--offset and --duration require each other"),
        (("--window", "nan"), "window must be from 0.01 to 1,000,000 seconds: nan"),
    ):
        assert app.run_command([*call, *options]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "options", "stretch"),
    [
        pytest.param("seed", ("--offset", "1"), (1.0, 3.0), id="the duration of seed"),
        pytest.param("voices", ("--offset", "1"), (1.0, 6.0), id="the duration of voices"),
        pytest.param("voices", ("--duration", "2"), (0.0, 2.0), id="the offset of voices"),
    ],
)
def test_what_is_not_said_of_a_segment_is_the_recipes(
    recipe: str, options: tuple[str, ...], stretch: tuple[float, float]
) -> None:
    """With --offset alone, `extract` takes the duration of its recipe, and with --duration alone its offset."""
    read_values(read := read_arguments(["extract", "archive", "table", "--recipe", recipe, *options]))
    assert (read.segments.offset_s, read.segments.duration_s) == stretch


def test_windows_are_extracted_and_labelled(bundle: Path, tmp_path: Path, cluster: ShellCluster) -> None:
    """Long and short recordings give a row a window in both tables, and going on with other windows is refused."""
    archive, table = tmp_path / "archive", tmp_path / "features"
    archive.mkdir()
    for name, duration_s in (("long.wav", 40.0), ("short.wav", 0.2), ("usual.wav", 5.0)):
        soundfile.write(archive / name, tone(duration_s), 24_414)
    (archive / "empty.wav").touch()
    windows = ("--window", "2.5", "--hop", "2")
    at = ("--scheduler", cluster.address)
    done = call_command("extract", archive, table, *windows, *at, "--json")
    assert done.code == 0, done.err
    assert done.result["counts"]["n_recordings"] == 4
    assert done.result["counts"]["by_status"] == {"empty": 1, "ok": 24}
    done = call_command("extract", archive, table)
    assert done.code == 2
    assert "was made with --window 2.5 --hop 2, and this call has --offset 0.5 --duration 3" in one_sentence(done.err)
    done = call_command("label", table, tmp_path / "labels", "--model", bundle, *at)
    assert done.code == 0, done.err
    assert "segments last 2.5 s, and those that the model was trained on last 3 s" in done.err
    done = call_command("label", archive, tmp_path / "straight", "--model", bundle, *windows, *at)
    assert done.code == 0, done.err
    assert rows(tmp_path / "labels") == rows(tmp_path / "straight")
    assert [row["start_s"] for row in rows(tmp_path / "labels") if row["file"] == "usual.wav"] == [0, 2, 4]
    done = call_command("label", table, tmp_path / "other", "--model", bundle, *windows)
    assert done.code == 2
    assert "segments or windows cannot be combined with the feature table" in one_sentence(done.err)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 300 text files named .wav."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(300):
        (folder / f"{number:03d}.wav").write_text("no audio")
    return folder


def test_the_canary_stops_a_useless_run(texts: Path, cluster: ShellCluster, tmp_path: Path) -> None:
    """Recordings that all fail alike stop the run with one sentence; --force goes on and gives each its row."""
    at = ("--scheduler", cluster.address)
    stopped = call_command("extract", texts, tmp_path / "table", *at)
    assert stopped.code == 1
    assert "rows are all not_audio" in one_sentence(stopped.err)
    forced = call_command("extract", texts, tmp_path / "table", "--force", "--json", *at)
    assert forced.code == 1
    assert "every recording failed (not_audio, as " in forced.err
    assert forced.result["counts"]["by_status"] == {"not_audio": 300}
    assert len(rows(tmp_path / "table")) == 300


@pytest.mark.parametrize("how", ["one", "list"])
def test_every_recording_failed_is_exit_code_1(tmp_path: Path, cluster: ShellCluster, how: str) -> None:
    """Whatever their number, by every command that does recordings, and again when nothing is left to do; with the reasons."""
    archive, table = tmp_path, tmp_path / "table"
    if how == "one":
        archive, reason = tmp_path / "calls", "not_audio, as a.wav"
        archive.mkdir()
        (archive / "a.wav").write_text("no audio")
    else:
        archive, reason = tmp_path / "list.txt", "vanished, as gone/a.wav"
        archive.write_text("gone/a.wav\ngone/b.wav\n")
    at = ("--scheduler", cluster.address)
    commands = [("extract", archive, table)]
    if how == "one":
        commands += [("extract", archive, table), ("submit", "label", archive, tmp_path / "labels"), ("retry", table)]
    for command in commands:
        done = call_command(*command, *at)
        assert done.code == 1, (command, done)
        assert "every recording failed" in one_sentence(done.err)
        assert reason in done.out, command
        assert reason in done.err, command


def test_recordings_that_may_not_be_read_are_a_refusal(tmp_path: Path) -> None:
    """An archive none of whose recordings may be read is exit code 2 and no table of rows; if one may be, each has its row."""
    archive, table = tmp_path / "archive", tmp_path / "table"
    archive.mkdir()
    for number in range(70):
        soundfile.write(archive / f"{number:02d}.wav", tone(1.0, 8_000), 8_000)
        (archive / f"{number:02d}.wav").chmod(0)
    # Root may read everything, unless this is taken from it.
    rights = ("-dac_override", "-dac_read_search")
    as_others = ["setpriv", f"--bounding-set={','.join(rights)}"] if os.geteuid() == 0 else []
    command = [*as_others, sys.executable, "-P", "-m", "emotion_batch", "extract", archive, table, "--workers", "1"]

    def run() -> tuple[int, str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
        return done.returncode, done.stderr

    code, said = run()
    assert code == 2, said
    assert "archive: permission denied for " in one_sentence(said)
    assert not list(table.glob("*.parquet"))
    (archive / "68.wav").chmod(0o400)
    code, said = run()
    assert code == 0, said
    assert emotion_batch.status(table).counts.by_status == {"ok": 1, "unreadable": 69}


def test_the_canary_hears_labels_that_are_all_alike(bundle: Path, cluster: ShellCluster, tmp_path: Path) -> None:
    """An archive in which every recording gets one label stops, for a model or its input is likely wrong."""
    archive = tmp_path / "archive"
    archive.mkdir()
    soundfile.write(archive / "000.wav", tone(1.0, 8_000), 8_000)
    for number in range(1, 400):
        shutil.copy(archive / "000.wav", archive / f"{number:03d}.wav")
    done = call_command("label", archive, tmp_path / "table", "--model", bundle, "--scheduler", cluster.address)
    assert done.code == 1
    assert "the first labels are nearly all the same, " in one_sentence(done.err)


def test_calls_that_are_wrong_are_one_sentence(
    speech: Path, features: Path, bundle: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each wrong call ends with exit code 2 and a sentence that names the thing, before any work."""
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    assert call_command("extract", speech / "V1_sad", other, "--n-mfcc", "13", "--workers", "1").code == 0
    new = tmp_path / "new"
    wav = speech / "V1_angry" / "V1_back_angry.wav"
    sealed = tmp_path / "sealed"
    sealed.write_text("a file where a folder should be")
    for call, sentence in (
        (("extract", empty, new), "there are no recordings ("),
        (("extract", tmp_path / "missing", new), "missing: it does not exist"),
        (("extract", speech, features, "--n-mfcc", "13"), "was made with --n-mfcc 40, and this call has --n-mfcc 13"),
        (
            ("extract", speech, features, "--offset", "0"),
            "was made with --offset 0.5 --duration 3, and this call has --offset 0 --duration 3",
        ),
        (("extract", speech, speech), "is not a part of a table: name a new or empty folder, or a table; "),
        (("extract", speech, labels), "is a table of labels, and this call makes one of features"),
        (("extract", speech, sealed), "sealed is a file, not a folder"),
        (("label", wav, wav), "has the name of a recording: name several recordings by their folder, a glob in quotes"),
        (("extract", wav, tmp_path / "missing.wav"), "has the name of a recording: "),
        (
            ("label", wav, wav, wav, new),
            "label takes one SOURCE and one TABLE; name several",
        ),
        (("extract", wav, new, "--nothing"), "there is no option --nothing; see `emotion-batch extract --help`"),
        (("label", new, wav.parent), "holds recordings ('V1_back_angry.wav'): name"),
        (("label", labels, wav.parent), "the order is SOURCE TABLE"),
        (("extract", features, speech), "the order is SOURCE TABLE"),
        (("extract", speech, new, "--n-mfcc", "0"), "--n-mfcc must be a whole number of at least 1: '0'"),
        (("extract", speech, new, "--offset", "-1"), "offset must be from 0 to 1,000,000 seconds: -1"),
        (
            ("extract", speech, new, "--max-failed", "few"),
            "--max-failed must be a number such as 10, or a share such as 5%: 'few'",
        ),
        (("extract", speech, new, "--storage-options", "{key"), "--storage-options must be a JSON object"),
        (("extract", "nosuch://bucket/calls", new), "nosuch://bucket/calls: fsspec cannot use this URL"),
        (("extract", speech), "TABLE is missing; see `emotion-batch extract --help`"),
        (("label", other, new, "--model", bundle), "n_mfcc is 13 instead of 40"),
        (("label", labels, new, "--model", bundle), "is a table of labels: name a feature table"),
        (("label", speech, new, "--model", empty), "it is not a bundle, because it has no card.json"),
        (("label", speech, "--model", bundle), "TABLE is missing: name a folder for the label table"),
        (("label", tmp_path / "missing.wav", "--model", bundle), "missing.wav: it does not exist"),
        (
            ("label", features, new, "--model", bundle, "--keep-features", new),
            "keep_features cannot be combined with the feature table",
        ),
        (("train", speech, new), "there is no feature table; make one with `emotion-batch extract`"),
        (("train", labels, new), "is a table of labels: name a feature table"),
        (("train", features, new, "--labels", "mood"), "labels must be tess, "),
        (("train", features, new, "--held-out", "1"), "held_out must be from 0 to below 1: 1.0"),
        (("demo", speech), "is a file or not empty: name a new or empty folder"),
        (("demo", speech, "--words", "2"), "words must be at least 3, "),
    ):
        try:
            code = app.run_command([os.fspath(one) for one in call])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        assert (code, said.out) == (2, ""), (call, said)
        assert sentence in said.err, (call, said.err)
        assert len(said.err.strip().splitlines()) == 1, (call, said.err)
        assert not new.exists(), call


def test_an_unreachable_scheduler_is_one_sentence(speech: Path, tmp_path: Path) -> None:
    """No scheduler, and something else at its address, end within seconds."""
    addresses = ("tcp://127.0.0.1:9", "nonsense://x", "127.0.0.1:9")

    def call(number: int) -> Finished:
        return run_command("extract", speech, tmp_path / str(number), "--scheduler", addresses[number])

    started = time.monotonic()
    with ThreadPoolExecutor(len(addresses)) as pool:
        for address, done in zip(addresses, pool.map(call, range(len(addresses))), strict=True):
            assert done.code == 2
            assert f"scheduler {address}: no Dask scheduler answers there (" in one_sentence(done.err)
    assert time.monotonic() - started < 40


def test_an_unfinished_feature_table_is_not_labelled(features: Path, bundle: Path, tmp_path: Path) -> None:
    """Labels of half a table would look like all of them."""
    table = tmp_path / "features"
    shutil.copytree(features, table)
    next(table.glob("*.parquet")).unlink()
    for arguments in (("label", table, tmp_path / "labels", "--model", bundle), ("train", table, tmp_path / "bundle")):
        done = call_command(*arguments)
        assert done.code == 1
        n_parts = len(list(table.glob("*.parquet"))) + 1
        assert f"1 of its {n_parts} parts cannot be used (missing, damaged or out of date)" in one_sentence(done.err)


def test_an_unguarded_script_may_call_it(speech: Path, tmp_path: Path) -> None:
    """The Python API works from a script without `if __name__ == "__main__"`, and its workers end with it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, emotion_batch\n"
        "summary = emotion_batch.extract(sys.argv[1], sys.argv[2], workers=2)\n"
        "print(summary.counts.n_ok, summary.counts.n_failed)\n"
    )
    done = run_command(speech, tmp_path / "table", program=(os.fspath(script),))
    assert (done.code, done.out) == (0, "84 5\n"), done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(tess: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A signal ends the run and its workers within seconds, with whole parts and a record, and says how to go on."""
    # A session of its own, so that the signal goes to all of its processes, as Ctrl-C in a terminal does.
    # Windows, for the work must outlast a look at its processes.
    command = ("extract", tess, tmp_path / "table", "--window", "1", "--hop", "0.5")
    with running(*command, own_session=True) as process:
        driver = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        listening: list[str] = []
        # Before the work is under way, for this look takes a while.
        while not listening and time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = [one for child in driver.children(recursive=True) for one in child.net_connections()]
                listening = [one.laddr.ip for one in connections if one.status == "LISTEN"]
        assert listening
        assert set(listening) <= {"127.0.0.1", "::1"}
        wait_for_parts(tmp_path / "table", 2, process)
        children = driver.children(recursive=True)
        started = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert time.monotonic() - started < 20
    # The first parts may have come before the first news of them.
    ways = "run the same command again", f"to resume: emotion-batch resume {tmp_path / 'table'}"
    assert one_sentence(err.decode()).endswith(ways)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert len(gone) == len(children)
    status = emotion_batch.status(tmp_path / "table")
    assert 0 < status.n_shards_done < status.n_shards
    assert status.last_run is not None
    assert status.last_run["outcome"] == "stopped"
    # The run ended its workers itself: no recording is suspected of it.
    assert not list((tmp_path / "table" / "_table" / "attempts").iterdir())
    assert {path.name for path in (tmp_path / "table").iterdir()} == {
        "_table",
        *(path.name for path in (tmp_path / "table").glob("*.parquet")),
    }


def test_each_command_is_declared_and_runs() -> None:
    """`commands.json` has each command that a function runs and no other, and each of its shared options is used."""
    declared = json.loads((ROOT / "emotion_batch/cli/commands.json").read_text(encoding="utf-8"))

    def named(options: list[object]) -> set[object]:
        inside = [named(one["options"]) for one in options if isinstance(one, dict) and "group" in one]
        return {one for one in options if isinstance(one, str)}.union(*inside)

    lists = [*(one.get("options", []) for one in declared["commands"].values()), *declared["shared"].values()]
    assert declared["commands"].keys() - {"submit"} == COMMANDS.keys()
    assert set().union(*map(named, lists)) == declared["shared"].keys()


def test_hostile_names_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """What a file is called cannot move a terminal's cursor or start a line of its own."""
    code = app.run_command(["label", "no\x1b[2Jsuch\nfile.wav", "--model", "x"])
    assert code == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert r"no\x1b[2Jsuch\nfile.wav" in err
    assert err.count("\n") == 1


def test_json_is_all_of_stdout(features: Path, speech: Path, tmp_path: Path) -> None:
    """A program may read stdout whole, whatever is said on stderr."""
    table = shutil.copytree(features, tmp_path / "table")
    done = run_command("extract", speech, table, "--json")
    assert json.loads(done.out)["n_failed"] == 5
    assert run_command("extract", speech, table, "--quiet").err == ""
