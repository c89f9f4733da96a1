"""What several tests share: recordings good and odd, TESS, a cluster started from the shell, the command."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Several processes of these tests share the cores, and a training of a second gains nothing from threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import servers
from support.commands import MUST_HAVE_DATA, TESS_UNPACKER, Finished, run_command
from support.recordings import KILLER_CODE
from support.shell_cluster import ShellCluster, shell_cluster

from benchmarks.browser import Tab, find_chromium, opened_tab
from emotion_batch.example import synthesis

# Files that take minutes each: begun first, so that the other processes do not wait for them at the end.
LONGEST = ("test_walk", "test_submit", "test_torture", "test_next_steps", "test_app", "test_dask_cluster", "test_train")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for `--dist loadfile`, which hands them out as they come."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first process to need it makes, and that all processes of these tests only read."""
    base = factory.getbasetemp()
    # Processes of pytest-xdist have folders of their own in a common one.
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    place.mkdir(exist_ok=True)
    folder, made = place / name, place / f"{name}.made"
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            # One that could not be made is made again, so that each process says why.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def succeed(done: Finished) -> None:
    assert done.code == 0, done.err


@pytest.fixture(scope="session")
def tess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TESS, unpacked; skips where it is absent."""
    if not TESS_UNPACKER.exists():
        if MUST_HAVE_DATA:
            pytest.fail(f"{TESS_UNPACKER.name} is missing: put TESS beside the checkout")
        pytest.skip("the TESS recordings are not beside this checkout")

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, TESS_UNPACKER, folder], check=True, capture_output=True)

    return make_once(tmp_path_factory, "tess", make)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A page of a browser; skips without Chromium."""
    if find_chromium() is None:
        servers.missing("Chromium")
    with opened_tab(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthesised archive: 84 recordings and five broken ones."""
    return make_once(tmp_path_factory, "speech", lambda folder: synthesis.write_archive(folder, n_words=6))


@pytest.fixture(scope="session")
def features(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature table of `speech`."""

    def make(folder: Path) -> None:
        succeed(run_command("extract", speech, folder / "features"))

    return make_once(tmp_path_factory, "features", make) / "features"


@pytest.fixture(scope="session")
def bundle(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on `features`, just long enough to have weights of its own."""

    def make(folder: Path) -> None:
        options = ("--epochs", "5", "--batch-size", "16", "--h5", folder / "bundle.h5")
        succeed(run_command("train", features, folder / "bundle", *options))

    return make_once(tmp_path_factory, "bundle", make) / "bundle"


@pytest.fixture(scope="session")
def vectors(features: Path) -> np.ndarray:
    """The feature vectors of `features`, shape (n_rows, 40)."""
    rows = pq.read_table(features, columns=["mfcc", "status"], filters=[("status", "==", "ok")])
    return np.stack(rows["mfcc"].to_numpy()).astype(np.float32)


@pytest.fixture(scope="session")
def labels(features: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The label table of `features` by `bundle`."""

    def make(folder: Path) -> None:
        succeed(run_command("label", features, folder / "labels", "--model", bundle))

    return make_once(tmp_path_factory, "labels", make) / "labels"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Bucket]:
    """A bucket on a SeaweedFS."""
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Bucket]:
    """A bucket on a fake of Google's service."""
    with servers.fake_gcs(tmp_path_factory.mktemp("gcs")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Bucket]:
    """A container on Microsoft's emulator."""
    with servers.azurite(tmp_path_factory.mktemp("azurite")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def killers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from, in whose presence some recordings kill their decoder."""
    folder = tmp_path_factory.mktemp("killers")
    (folder / "sitecustomize.py").write_text(KILLER_CODE)
    return folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShellCluster]:
    """A cluster of two workers that many tests use, and none harms: to start one takes longer than what most of them do."""
    with shell_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started
