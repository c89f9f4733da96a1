"""Tests of what a process takes from its surroundings: it runs no file of the current directory, writes none at home, asks for no name."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from support import servers
from support.commands import ROOT
from support.listening import Network, deaf_network
from support.recordings import tone
from support.shell_cluster import shell_cluster
from support.strangers import write_strangers

# By which a user says where libraries may write.
_PLACES = ("KERAS_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")

# The other commands, as functions, because each process would take seconds to start.
_CALLS = """
import sys
from pathlib import Path

import emotion_batch as eb

folder, speech, features, bundle, labels = map(Path, sys.argv[1:])
names = ["angry", "disgust", "fear", "happy", "neutral", "ps", "sad"]
eb.import_h5(folder / "network.h5", folder / "imported", labels=names)
eb.label_recording(next(speech.glob("*_sad/*.wav")), model=bundle)
eb.evaluate(bundle, features)
eb.query(labels, example="failed")
eb.report(labels, output=folder / "page.html")
for name in ("parquet", "csv", "audformat"):
    eb.export(labels, folder / name, file_format=name)
eb.review(labels, folder / "sheet.csv")
eb.status(labels)
eb.verify(labels, deep=True)
"""


@pytest.fixture
def console_script(tmp_path: Path) -> Path:
    """The console script as an installer writes it, of the entry point that the project names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["emotion-batch"].partition(":")
    script = tmp_path / "bin" / "emotion-batch"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("start", "path"),
    [
        pytest.param("console script", None, id="console script"),
        pytest.param("console script", ":/x", id="console script, empty entry"),
        pytest.param("module", ":/x", id="module, empty entry"),
        pytest.param("job", ".", id="job, relative entry"),
        pytest.param("copied job", None, id="job that lies there"),
    ],
)
def test_no_file_of_the_current_directory_runs(
    start: str, path: str | None, console_script: Path, tmp_path: Path
) -> None:
    """Modules beside recordings run in no process: not in the one that is started, not in the cluster's, not in a child."""
    archive, marks, table = tmp_path / "archive", tmp_path / "marks", tmp_path / "out"
    archive.mkdir()
    # A note that an attempt was begun: a child decodes the shard.
    (table / "_table" / "attempts").mkdir(parents=True)
    (table / "_table" / "attempts" / "000000.json").write_text("{}")
    for number in range(3):
        soundfile.write(archive / f"{number}.wav", tone(1.5), 24_414)
    write_strangers(archive, marks)
    job = ROOT / "jobs" / "label_archive.py"
    if start == "copied job":
        (archive / job.name).write_bytes(job.read_bytes())
        job = Path(job.name)
    if start == "module" and path is not None:
        # Python itself imports it for -m from PYTHONPATH before it begins with our code.
        (archive / "types.py").unlink()
    command = {
        "console script": [console_script, "label"],
        "module": [sys.executable, "-P", "-m", "emotion_batch", "label"],
    }.get(start, [sys.executable, job])
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path is not None:
        environment["PYTHONPATH"] = path
    done = subprocess.run(
        [*command, ".", "../out", "--workers", "1", "--json"],
        cwd=archive,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert list(marks.iterdir()) == []
    assert done.returncode == 0, done.stderr
    assert pq.read_table(table, columns=["status"])["status"].to_pylist() == ["ok"] * 3
    assert json.loads(done.stdout)["spent"]["n_isolated"] == 1


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        pytest.param(":/x", [""], ["/x"], id="empty"),
        pytest.param(".:lib:/x", ["."], ["/x"], id="relative"),
        pytest.param("HERE:/x", [], ["HERE", "/x"], id="named by its user"),
        pytest.param("/x", ["HERE"], ["/x"], id="folder of a script"),
        pytest.param("/x", ["/added"], ["/added", "/x"], id="added at run time"),
        pytest.param("/x", ["/a:b"], ["/x"], id="two entries for the next process"),
        # The entry leads to nothing any more.
        pytest.param("/x", ["", "lib", "HERE"], ["HERE", "/x"], id="deleted"),
    ],
)
def test_the_safe_path_is_all_but_the_current_directory(
    path: str, before: list[str], after: list[str], tmp_path: Path
) -> None:
    """Only what Python, or an empty or relative entry, has brought of the current directory goes, be it there or deleted."""
    here = tmp_path / "here"
    here.mkdir()
    is_deleted = "lib" in before
    program = (
        "import json, os, sys\n"
        f"if {is_deleted}: os.rmdir(os.getcwd())\n"
        f"sys.path[:0] = {[entry.replace('HERE', os.fspath(here)) for entry in before]}\n"
        "from emotion_batch.environment import safe_environment, safe_path\n"
        "assert safe_environment()['PYTHONPATH'].split(':') == safe_path()\n"
        "print(json.dumps(safe_path()))\n"
    )
    given = {"PYTHONPATH": path.replace("HERE", os.fspath(here))}
    found, plain = (
        json.loads(
            subprocess.run(
                [sys.executable, "-P", "-c", code], cwd=place, env=variables, capture_output=True, check=True
            ).stdout
        )
        for code, variables, place in (
            (program, given, here),
            ("import json, sys; print(json.dumps(sys.path))", {}, tmp_path),
        )
    )
    assert [entry for entry in found if entry not in plain] == [
        entry.replace("HERE", os.fspath(here)) for entry in after
    ]
    assert [entry for entry in found if entry in plain] == plain


def test_a_package_in_the_current_directory_stays_its_own() -> None:
    """A checkout that is not installed works from its own folder, whose entry is the one by which it was found."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "from emotion_batch.environment import safe_path; print(safe_path()[0])"],
        cwd=ROOT,
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{ROOT}\n"


@dataclass(frozen=True)
class Overheard:
    """What commands have left behind: files at home and among temporary ones, names that were looked up."""

    files: set[str]
    names: set[str] | None


@pytest.fixture(scope="module")
def overheard(
    speech: Path, features: Path, bundle: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Overheard]:
    """What the commands leave behind, with an empty home, in a network in which names are written down if one may be made."""
    folder = tmp_path_factory.mktemp("overheard")
    for name in ("home", "temporary", "network", "cluster"):
        (folder / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in _PLACES}
    environment |= {"HOME": os.fspath(folder / "home"), "TMPDIR": os.fspath(folder / "temporary")}
    with contextlib.ExitStack() as stack:
        network: Network | None = None
        with contextlib.suppress(PermissionError):
            network = stack.enter_context(deaf_network(folder / "network"))
        inside = network.inside if network else ()
        cluster = stack.enter_context(shell_cluster(folder / "cluster", 0, inside=inside))
        # A cluster's own scratch space is its user's.
        cluster.add_worker("--nthreads", "1", environment={**environment, "TMPDIR": os.fspath(folder / "cluster")})
        started = ("-P", "-m", "emotion_batch")
        h5 = folder / "network.h5"
        for command in (
            (
                *started,
                "submit",
                "label",
                speech,
                folder / "submitted",
                "--model",
                bundle,
                "--scheduler",
                cluster.address,
            ),
            (*started, "label", speech, folder / "labels", "--model", bundle, "--workers", "1"),
            (*started, "train", features, folder / "bundle", "--epochs", "1", "--max-folds", "0", "--h5", h5),
            ("-P", "-c", _CALLS, folder, speech, features, bundle, labels),
        ):
            done = subprocess.run(
                [*inside, sys.executable, *map(os.fspath, command)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, (command, done.stderr)
        # What telemetry there is asks after some seconds, which this worker has had since it labelled.
        assert len(list((folder / "submitted").glob("*.parquet"))) > 0
        left = {
            path.relative_to(folder).as_posix() for name in ("home", "temporary") for path in (folder / name).rglob("*")
        }
        names = None
        if network:
            names = network.names()
            # The test can fail: a process that asks is heard.
            ask = "import socket; socket.gethostbyname('control.example')"
            subprocess.run([*inside, sys.executable, "-c", ask], capture_output=True, check=False)
            assert network.names() - names == {"control.example"}
        yield Overheard(left, names)


def test_no_command_leaves_a_file_at_home(overheard: Overheard) -> None:
    """Whatever a library would like to keep, an empty home stays empty, and so does the folder of temporary files."""
    assert overheard.files == set()


def test_no_command_looks_up_a_name(overheard: Overheard) -> None:
    """Only the named storage and scheduler are spoken to, by the commands and by a cluster's worker that labelled."""
    if overheard.names is None:
        servers.missing("the right to make a network, which is root's")
    assert overheard.names == set()


def test_who_has_imported_onnxruntime_first_is_told(tmp_path: Path) -> None:
    """Its telemetry has begun then, which nothing can undo; with the variable, or with us first, there is nothing to say."""
    for code, is_told in (
        ("import onnxruntime, emotion_batch", True),
        ("import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'; import onnxruntime, emotion_batch", False),
        ("import emotion_batch, onnxruntime", False),
    ):
        environment = {
            **os.environ,
            "HOME": os.fspath(tmp_path),
            "TMPDIR": os.fspath(tmp_path),
            "ORT_DISABLE_TELEMETRY": "0",
        }
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert ("UserWarning: onnxruntime was imported before emotion_batch" in done.stderr) == is_told


def test_the_places_that_a_user_has_named_are_kept_to(tmp_path: Path) -> None:
    """Libraries write where their variables say."""
    code = "from emotion_batch.training import networks as model; model.load_keras()"
    named = {"MPLCONFIGDIR": os.fspath(tmp_path / "mpl"), "KERAS_HOME": os.fspath(tmp_path / "keras")}
    environment = {name: value for name, value in os.environ.items() if name not in _PLACES}
    subprocess.run(
        [sys.executable, "-P", "-c", code], env={**environment, **named, "HOME": os.fspath(tmp_path)}, check=True
    )
    assert {path.name for path in tmp_path.iterdir()} == {"mpl", "keras"}
    assert list((tmp_path / "mpl").glob("fontlist-*.json"))
    assert (tmp_path / "keras" / "keras.json").exists()
