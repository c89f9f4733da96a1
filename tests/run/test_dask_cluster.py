"""The three jobs on a scheduler and workers started from the shell, and workers that cannot do the work."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pytest
from distributed import Future
from support.commands import ROOT, Finished, call_command, run_command, running, wait_for_parts
from support.damage import worker_processes
from support.shell_cluster import ShellCluster, shell_cluster

from emotion_batch.errors import ClusterError, IncompleteError, StorageError
from emotion_batch.run import dask_client, dask_cluster
from emotion_batch.run.scheduler import Scheduler
from emotion_batch.worker import process


def table(folder: Path) -> pa.Table:
    return (
        pyarrow.dataset.dataset(folder)
        .to_table()
        .sort_by([("file", "ascending"), ("start_s", "ascending")])
        .replace_schema_metadata(None)
    )


def job(name: str, *arguments: object) -> Finished:
    return run_command(*arguments, program=(os.fspath(ROOT / "jobs" / f"{name}.py"),))


def test_the_jobs_give_equal_tables_there(
    cluster: ShellCluster, speech: Path, features: Path, labels: Path, tmp_path: Path
) -> None:
    """Extraction, training and both labellings, as submitted, give what they give on this machine alone."""
    at = ("--scheduler", cluster.address)
    done = job("extract_features", speech, tmp_path / "features", *at, "--json")
    assert done.code == 0, done.err
    assert done.result["counts"]["n_recordings"] == 89
    assert table(tmp_path / "features").equals(table(features))
    done = job("train_lstm", tmp_path / "features", tmp_path / "bundle", "--epochs", "5", "--batch-size", "16")
    assert done.code == 0, done.err
    done = job("label_archive", speech, tmp_path / "labels", "--model", tmp_path / "bundle", *at)
    assert done.code == 0, done.err
    done = job("label_archive", tmp_path / "features", tmp_path / "relabels", "--model", tmp_path / "bundle", *at)
    assert done.code == 0, done.err
    assert table(tmp_path / "labels").equals(table(labels))
    assert table(tmp_path / "relabels").equals(table(labels))
    assert not list((tmp_path / "labels" / "_table").glob("preflight*"))


def test_workers_with_many_threads_are_right_and_told(
    speech: Path, features: Path, bundle: Path, labels: Path, tmp_path: Path
) -> None:
    """One process with several threads gives the same rows, and a line says what is better."""
    with shell_cluster(tmp_path / "cluster", 1, "--nthreads", "4") as threads:
        done = call_command("extract", speech, tmp_path / "features", "--scheduler", threads.address)
        assert done.code == 0, done.err
        assert "1 worker with several threads in one process: " in done.err
        # With `--nworkers auto`, Dask would choose the number of threads too.
        assert "`dask worker ADDRESS --nworkers=-1 --nthreads 1`" in done.err
        done = call_command("label", speech, tmp_path / "labels", "--model", bundle, "--scheduler", threads.address)
        assert done.code == 0, done.err
    assert table(tmp_path / "features").equals(table(features))
    assert table(tmp_path / "labels").equals(table(labels))


def test_workers_never_import_tensorflow(speech: Path, bundle: Path, tmp_path: Path) -> None:
    """What trains costs workers nothing, nor does librosa: neither one that extracts nor one that labels has them."""
    with shell_cluster(tmp_path / "cluster", 1) as fresh:
        for command in (
            ("extract", speech, tmp_path / "features"),
            ("label", speech, tmp_path / "labels", "--model", bundle),
        ):
            assert call_command(*command, "--scheduler", fresh.address).code == 0
        script = (
            "import sys, distributed\n"
            "def heavy(): import sys; return sorted({'tensorflow', 'keras', 'librosa'} & set(sys.modules))\n"
            "print(distributed.Client(sys.argv[1]).run(heavy).values())\n"
        )
        (tmp_path / "ask.py").write_text(script)
        done = run_command(fresh.address, program=(os.fspath(tmp_path / "ask.py"),))
    assert done.out == "dict_values([[]])\n", done.err


def refused(cluster: ShellCluster, *arguments: object) -> str:
    """Run a command that must end before any work, and return its one sentence."""
    started = time.monotonic()
    done = run_command(*arguments, "--scheduler", cluster.address)
    assert done.code == 2, (done.code, done.err)
    assert "Traceback" not in done.err
    assert time.monotonic() - started < 40
    (sentence,) = [line for line in done.err.splitlines() if line.startswith("emotion-batch: worker tcp://127.0.0.1:")]
    return sentence


def test_a_worker_that_cannot_see_the_archive_is_named(speech: Path, tmp_path: Path) -> None:
    """The preflight says which worker cannot read the archive, or the table, instead of a table full of errors."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (home / "archive").symlink_to(speech)
    # A path that leads where the process stands: here to the archive, in the workers' folder to nothing.
    here = Path("/proc/self/cwd")
    with shell_cluster(away, 1) as cluster:
        command = [sys.executable, "-P", "-m", "emotion_batch", "extract"]
        for archive, place, words in (
            (here / "archive", tmp_path / "table", "cannot read the recording"),
            (speech, here / "table", "cannot read the table"),
        ):
            done = subprocess.run(
                [*command, archive, place, "--scheduler", cluster.address],
                capture_output=True,
                text=True,
                cwd=home,
                timeout=60,
                check=False,
            )
            assert done.returncode == 2, done.stderr
            assert words in done.stderr
            assert done.stderr.splitlines()[-1].startswith("emotion-batch: worker tcp://127.0.0.1:")
    assert not list((tmp_path / "table").glob("*.parquet"))


def test_a_worker_without_the_package_is_named(speech: Path, tmp_path: Path) -> None:
    """A worker in an environment that lacks emotion-batch is said to lack it, before any work."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in (Path(entry) for entry in sys.path if Path(entry).name == "site-packages"):
        for child in path.iterdir():
            if not child.name.startswith(("emotion_batch", "_emotion_batch")) and child.suffix != ".pth":
                (packages / child.name).symlink_to(child)
    with shell_cluster(tmp_path / "cluster", 0) as cluster:
        log = (tmp_path / "worker.log").open("wb")
        # -S: no site-packages but the links above, and so not the package's own installation.
        worker = subprocess.Popen(
            [
                sys.executable,
                "-S",
                "-m",
                "dask",
                "worker",
                cluster.address,
                "--host",
                "127.0.0.1",
                "--no-nanny",
                "--no-dashboard",
            ],
            env={**os.environ, "PYTHONPATH": os.fspath(packages)},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
        try:
            sentence = refused(cluster, "extract", speech, tmp_path / "table")
        finally:
            worker.terminate()
            worker.wait(20)
    assert ": emotion-batch " in sentence
    assert "is not installed there (PackageNotFoundError" in sentence


def copy_package(folder: Path, *changed: str) -> dict[str, str]:
    """Copy the package with other dynamic ranges of its features, and return what makes a process import the copy."""
    shutil.copytree(ROOT / "emotion_batch", folder / "emotion_batch", ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "emotion_batch" / "features" / "mfcc.py"
    for text in changed:
        code = module.read_text()
        assert text in code
        module.write_text(code.replace(text, text.replace("8", "4")))
    return {"PYTHONPATH": os.fspath(folder)}


def test_a_worker_with_other_code_of_the_same_version_does_no_row(speech: Path, features: Path, tmp_path: Path) -> None:
    """Whether it is there at the start or joins later, a worker whose package differs in one constant is named and does nothing."""
    folder = tmp_path / "table"
    environment = copy_package(tmp_path / "other", "_RANGE_DB = 80.0")
    with shell_cluster(tmp_path / "cluster", 0) as cluster:
        good = cluster.add_worker("--nthreads", "1", "--no-nanny")
        with running("extract", speech, folder, "--scheduler", cluster.address) as command:
            # While shards are left that no worker has been given.
            while not list(folder.glob("_table/attempts/*.json")):
                assert command.poll() is None, command.communicate()
                time.sleep(0.02)
            # Until the other one is there, however slow the machine.
            good.send_signal(signal.SIGSTOP)
            try:
                cluster.add_worker("--nthreads", "1", "--no-nanny", environment=environment)
            finally:
                good.send_signal(signal.SIGCONT)
            _, said = command.communicate(timeout=120)
        assert command.returncode == 0, said
        assert b"(source " in said
        assert b"others do its share" in said
        sentence = refused(cluster, "extract", speech, tmp_path / "another")
    assert "(source " in sentence
    assert table(folder).equals(table(features))


def test_a_copy_of_the_package_has_the_same_source_wherever_it_is(tmp_path: Path) -> None:
    """Installed, in a checkout or zipped the digest is the same; compiled files and models do not count, every constant does."""
    copy_package(tmp_path / "same")
    copy_package(tmp_path / "other", "_RANGE_DB = 80.0")
    copy_package(tmp_path / "data")
    with (tmp_path / "data" / "emotion_batch" / "features" / "formats.toml").open("a") as file:
        file.write("# another format\n")
    shutil.make_archive(os.fspath(tmp_path / "zipped"), "zip", tmp_path / "same")
    (tmp_path / "same" / "emotion_batch" / "__pycache__").mkdir()
    (tmp_path / "same" / "emotion_batch" / "__pycache__" / "mfcc.cpython-311.pyc").write_bytes(b"compiled")
    model = tmp_path / "same" / "emotion_batch" / "models" / "voices-1"
    model.mkdir(parents=True)
    (model / "card.json").write_bytes(b"{}")
    found = []
    for place in ("same", "zipped.zip", "other", "data"):
        done = run_command(
            program=("-P", "-c", "from emotion_batch.worker import process; print(process.__file__, process.SOURCE)"),
            environment={"PYTHONPATH": os.fspath(tmp_path / place)},
        )
        path, digest = done.out.split()
        assert path.startswith(os.fspath(tmp_path / place))
        found.append(digest)
    assert found[:2] == [process.SOURCE] * 2
    assert len({*found}) == 3


@pytest.mark.torture
def test_a_package_that_is_upgraded_under_a_local_run_mixes_no_rows(speech: Path, tmp_path: Path) -> None:
    """A worker that is started again finds other code and does nothing with it; the run says so and ends."""
    environment = copy_package(tmp_path / "package")
    with running(
        "extract",
        speech,
        tmp_path / "table",
        "--window",
        "1",
        "--hop",
        "0.05",
        "--workers",
        "1",
        environment=environment,
    ) as command:
        wait_for_parts(tmp_path / "table", 1, command)
        module = tmp_path / "package" / "emotion_batch" / "features" / "mfcc.py"
        module.write_text(module.read_text().replace("_RANGE_DB = 80.0", "_RANGE_DB = 40.0"))
        (worker,) = worker_processes(psutil.Process(command.pid))
        worker.kill()
        _, said = command.communicate(timeout=120)
    assert command.returncode == 1
    assert b"(source " in said.splitlines()[-1]
    found = table(tmp_path / "table")
    assert call_command("extract", speech, tmp_path / "alone", "--window", "1", "--hop", "0.05").code == 0
    assert found.equals(table(tmp_path / "alone").filter(pc.is_in(pc.field("file"), found["file"])))


def test_what_the_cluster_loses_is_handed_out_again(tmp_path: Path) -> None:
    """A shard that takes five workers with it, and one whose store stumbles twice, end well; what fails itself does not."""

    def do(task: str) -> str:
        import os
        import signal
        from pathlib import Path

        from emotion_batch.errors import StorageError

        tries = len(list(Path(folder).glob(f"{task} *")))
        Path(folder, f"{task} {tries}").touch()
        if task == "kills" and tries < 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "stumbles" and tries < 2:
            raise StorageError("store: busy", is_transient=True)
        if task == "full":
            raise StorageError("store: full")
        return f"{task} done"

    folder = os.fspath(tmp_path)
    with dask_cluster.connect(None, 2) as connected:
        found = dict(connected.run(do, ["kills", "stumbles", "full", "good"]))
        # At the fourth death Dask gives a task up; a task beside it may have died with it before it stumbled.
        assert connected.n_resubmitted >= 1
    assert (found["kills"], found["stumbles"], found["good"]) == ("kills done", "stumbles done", "good done")
    assert isinstance(found["full"], StorageError)


def test_a_shard_whose_worker_hangs_before_its_result_is_sent_is_begun_by_another(tmp_path: Path) -> None:
    """The scheduler calls such a shard done, and its result never comes."""

    class Receipt:
        def __reduce__(self) -> tuple[object, ...]:
            import os
            import signal
            from pathlib import Path

            with contextlib.suppress(FileExistsError):
                with Path(flag).open("x") as file:
                    file.write(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            return str, ("done",)

    flag = os.fspath(tmp_path / "stopped")
    with dask_cluster.connect(None, 2) as connected:
        try:
            assert dict(connected.run(lambda _: Receipt(), ["first", "second"])) == {"first": "done", "second": "done"}
            assert connected.n_resubmitted >= 1
        finally:
            os.kill(int(Path(flag).read_text()), signal.SIGCONT)


@pytest.mark.parametrize(
    "has_nanny", [pytest.param(True, id="nanny"), pytest.param(False, id="no nanny", marks=pytest.mark.torture)]
)
def test_a_paused_worker_is_started_again_or_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_nanny: bool
) -> None:
    """A worker that Dask has paused for its memory does not hold a run up: its nanny starts it again, or a sentence says why not."""

    def do(task: int) -> int:
        import builtins
        import time
        from pathlib import Path

        import psutil

        # As each shard does: else the worker would import it when it is asked to give memory back, and take more.
        import emotion_batch.worker.process  # noqa: F401

        if not Path(flag).exists():
            Path(flag).touch()
            # Kept by the process, as a heap is: it cannot be given back, and is less than what nannies end workers for.
            builtins.kept = b"x" * int(0.87 * 4e8 - psutil.Process().memory_info().rss)
        time.sleep(0.3)
        return -task

    monkeypatch.setattr(dask_client, "_PAUSED_S", 1.0)
    monkeypatch.setattr(dask_client, "_PAUSED_FOR_GOOD_S", 2.0)
    flag = os.fspath(tmp_path / "full")
    options = ("--nthreads", "1", "--memory-limit", "400MB", *(() if has_nanny else ("--no-nanny",)))
    notes: list[str] = []
    with (
        shell_cluster(tmp_path / "cluster", 1, *options) as shell,
        dask_cluster.connect(Scheduler(shell.address), 1, notes.append) as connected,
    ):
        if has_nanny:
            assert dict(connected.run(do, list(range(8)))) == {task: -task for task in range(8)}
            (note,) = notes
            assert "Dask has paused it at 3" in note and "so it is started again" in note
        else:
            with pytest.raises(
                IncompleteError, match=r"Dask has paused all of its workers, e\.g\. tcp://.* of its 400 MB"
            ):
                list(connected.run(do, list(range(8))))


@pytest.mark.torture
@pytest.mark.tess
@pytest.mark.parametrize("command", [("extract",), ("submit", "extract", "--force")], ids=["driver", "submitted"])
def test_eight_threads_with_little_memory_make_the_whole_table(
    tess: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Real recordings, a worker that Dask pauses again and again: the run ends with the rows of an undisturbed one."""
    folder = tmp_path / "table"
    with shell_cluster(tmp_path / "cluster", 1, "--nthreads", "8", "--memory-limit", "300MB") as shell:
        done = call_command(*command, tess, folder, "--scheduler", shell.address)
        assert done.code == 0, done.err
        deadline = time.monotonic() + 240
        while not list((folder / "_table" / "runs").glob("*.json")):
            assert time.monotonic() < deadline
            time.sleep(1)
    assert call_command("extract", tess, tmp_path / "alone").code == 0
    assert table(folder).equals(table(tmp_path / "alone"))


@pytest.mark.torture
def test_a_worker_that_ends_while_it_is_tried_is_no_traceback(tmp_path: Path) -> None:
    """If others are there they do its share; the last one's end is a sentence, and so is the scheduler's."""
    flag = os.fspath(tmp_path / "killed")

    def end_one() -> None:
        import contextlib
        import os
        import signal

        with contextlib.suppress(FileExistsError):
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)

    notes: list[str] = []
    with (
        shell_cluster(tmp_path / "cluster", 2, "--nthreads", "1", "--no-nanny") as shell,
        dask_cluster.connect(Scheduler(shell.address), 1, notes.append) as connected,
    ):
        connected.preflight("emotion-batch", end_one)
        assert len(notes) == 1 and "others do its share" in notes[0]
        Path(flag).unlink()
        with pytest.raises(ClusterError, match="ended before it answered; see its log"):
            connected.preflight("emotion-batch", end_one)
        shell.scheduler.kill()
        with pytest.raises(IncompleteError, match="run the same command again"):
            connected.preflight("emotion-batch", end_one)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("_table/preflight-*", id="preflight", marks=pytest.mark.torture),
        pytest.param("_table/attempts/*.json", id="first shards"),
        pytest.param("*.parquet", id="first part", marks=pytest.mark.torture),
    ],
)
def test_a_scheduler_that_is_killed_is_said_in_a_sentence(
    speech: Path, features: Path, tmp_path: Path, moment: str
) -> None:
    """Whatever the driver waits for, it names the scheduler and what to do; the same command ends with an undisturbed table."""
    folder = tmp_path / "table"
    with (
        shell_cluster(tmp_path / "cluster", 1, "--nthreads", "1", "--no-nanny") as shell,
        running("extract", speech, folder, "--scheduler", shell.address) as command,
    ):
        while not list(folder.glob(moment)):
            assert command.poll() is None
            time.sleep(0.002)
        shell.scheduler.kill()
        _, said = command.communicate(timeout=60)
    assert command.returncode == 1
    (sentence,) = [line for line in said.decode().splitlines() if line.startswith("emotion-batch: ")]
    assert sentence.startswith(
        "emotion-batch: lost the connection to the scheduler; run the same command again to resume"
    )
    assert call_command("extract", speech, folder).code == 0
    assert table(folder).equals(table(features))


def test_a_local_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason out of the cluster's log is named, and no command of Dask's is advised."""
    monkeypatch.setattr(dask_cluster, "_WORKERS_TIMEOUT_S", 6)
    with (
        dask.config.set({"distributed.worker.memory.max-spill": "nonsense"}),
        pytest.raises(
            ClusterError, match=r"no worker has started .ValueError: Could not interpret 'nonsense' as a byte unit"
        ) as said,
        dask_cluster.connect(None, 1),
    ):
        pass
    assert "dask worker" not in str(said.value)


def test_a_machine_without_memory_is_said_in_a_sentence(speech: Path, tmp_path: Path) -> None:
    """What the machine does not give is no unexpected error of ours."""
    program = (
        "import resource, sys\n"
        "from emotion_batch.cli.app import run_command; from emotion_batch.run import driver; from emotion_batch import api\n"
        "free = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (free, free))\n"
        "sys.exit(run_command(['extract', *sys.argv[1:]]))\n"
    )
    done = run_command(speech, tmp_path / "table", program=("-P", "-c", program))
    assert done.code == 1
    assert "emotion-batch: this machine does not have enough" in done.err.splitlines()[-1]


def test_a_shard_is_one_task() -> None:
    """The scheduler knows a task for each shard, and no more."""

    def do(task: int) -> int:
        time.sleep(0.05)
        return -task

    with dask_cluster.connect(None, 1) as connected:
        results = connected.run(do, list(range(30)))
        first = next(results)
        n_tasks = connected._client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        assert 15 < n_tasks <= 30
        assert dict([first, *results]) == {task: -task for task in range(30)}


def test_a_shard_that_is_late_goes_to_no_unfit_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that gives shards back looks idle again each time; what straggles is begun by another, or waits for one."""
    monkeypatch.setattr(dask_client, "_LOOK_S", -1.0)
    monkeypatch.setattr(dask_client, "STRAGGLER_S", -1.0)

    class Known:
        def processing(self) -> dict[str, tuple[str, ...]]:
            return {"hangs": ("late",), "unfit": (), "fit": ()}

        def scheduler_info(self) -> dict[str, dict[str, dict[str, object]]]:
            return {"workers": {name: {"last_seen": 1e9, "status": "running"} for name in self.processing()}}

    for unfit, found in (({"unfit"}, [("late", ["fit"])]), ({"unfit", "fit"}, [])):
        stragglers = dask_client.Stragglers(Known())
        # Only now it knows since when the shard is under way.
        late = {"late": ("shard", Future("late"))}
        assert stragglers.find(late, unfit) == []
        time.sleep(0.01)
        assert stragglers.find(late, unfit) == found


def test_a_worker_of_which_nothing_is_heard_is_not_idle() -> None:
    """One that hangs with nothing but a watch looks idle; what a watch hands out goes to others."""

    class Heard:
        def scheduler_info(self) -> dict[str, dict[str, dict[str, object]]]:
            ages_s = {"a": 0.0, "b": dask_client._SILENT_S / 2, "hangs": 2 * dask_client._SILENT_S, "paused": 0.0}
            status = {"paused": "paused"}
            return {
                "workers": {
                    name: {"last_seen": 1e9 - age_s, "status": status.get(name, "running")}
                    for name, age_s in ages_s.items()
                }
            }

    assert dask_client.heard_of(Heard(), ["a", "b", "hangs", "paused", "gone"]) == ["a", "b"]


def test_the_dashboard_is_there_when_it_is_asked_for() -> None:
    """The pages of a local cluster come with the first request, and go on to come."""
    with dask_cluster.connect(None, 1) as cluster:
        for page, code in (("status", 200), ("workers", 200), ("status", 200), ("nothing", 404)):
            asked = http.client.HTTPConnection(cluster.dashboard.removeprefix("http://").removesuffix("/status"))
            asked.request("GET", f"/{page}")
            answer = asked.getresponse()
            assert answer.status == code
            assert (b"bokeh" in answer.read()) == (code == 200)
            asked.close()
