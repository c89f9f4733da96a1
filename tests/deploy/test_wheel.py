"""The wheel and the source distribution: what they hold, and what their metadata say."""

from __future__ import annotations

import contextlib
import email
import email.message
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.commands import ROOT

import emotion_batch

MODELS = ("tess-seed", "voices-1")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both in a folder, by the build backend itself, which needs no network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


@pytest.fixture
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def read_metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_the_wheel_holds_the_models_with_their_terms(wheel: zipfile.ZipFile) -> None:
    """Each bundle is in the wheel as it lies in `models/`, with its LICENSE; no test and no script of `models/` is."""
    names = set(wheel.namelist())
    for model in MODELS:
        for path in (ROOT / "models" / model).iterdir():
            assert wheel.read(f"emotion_batch/models/{model}/{path.name}") == path.read_bytes()
    assert {f"emotion_batch/models/{model}/LICENSE" for model in MODELS} <= names
    assert {name.split("/")[0] for name in names} == {
        "emotion_batch",
        f"emotion_batch-{emotion_batch.__version__}.dist-info",
    }
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "emotion_batch").rglob("*.*") if path.is_file()}
    assert {name for name in package if "__pycache__" not in name} <= names


def test_the_metadata_name_both_licences(wheel: zipfile.ZipFile) -> None:
    """The expression has the code's licence and the weights' terms, and the text of each is among the licence files."""
    metadata = read_metadata(wheel)
    assert metadata["License-Expression"] == "MIT AND LicenseRef-emotion-batch-models"
    files = metadata.get_all("License-File")
    assert sorted(files) == ["LICENSE", *(f"models/{model}/LICENSE" for model in MODELS)]
    for file in files:
        assert (
            wheel.read(f"emotion_batch-{emotion_batch.__version__}.dist-info/licenses/{file}")
            == (ROOT / file).read_bytes()
        )


def test_the_metadata_name_the_pythons_that_the_workflow_tests(wheel: zipfile.ZipFile) -> None:
    """Classifiers and the matrix of the workflow have the same versions, from the oldest that the package takes."""
    metadata = read_metadata(wheel)
    named = [one.rsplit(" ", 1)[1] for one in metadata.get_all("Classifier") if re.search(r"Python :: \d\.\d", one)]
    workflow = (ROOT / ".github" / "workflows" / "checks.yml").read_text()
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert named == re.findall(r'"([\d.]+)"', matrix)
    assert metadata["Requires-Python"] == f">={named[0]}"


def test_each_requirement_is_pinned(wheel: zipfile.ZipFile) -> None:
    """The constraints have one version of each package that the metadata name, and of all that those bring here."""

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = [normal(line.split("==")[0]) for line in lines]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert len(pinned) == len(set(pinned))
    wanted = {"emotion-batch"}
    left = set(wanted)
    while left:
        metadata = importlib.metadata.metadata(left.pop())
        is_ours = normal(metadata["Name"]) == "emotion-batch"
        for line in metadata.get_all("Requires-Dist") or []:
            name = normal(re.match(r"[\w.-]+", line)[0])
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                # What other packages offer as extras is not installed, unless something asks for it.
                if name not in wanted and (is_ours or "extra ==" not in line):
                    importlib.metadata.version(name)
                    wanted.add(name)
                    left.add(name)
    # `pip freeze` leaves out what an environment may begin with.
    assert wanted - {"emotion-batch", "setuptools", "wheel"} <= set(pinned)
    named = {normal(re.match(r"[\w.-]+", line)[0]) for line in read_metadata(wheel).get_all("Requires-Dist")}
    assert named <= set(pinned)


def test_the_source_distribution_holds_what_a_packager_needs(built: Path) -> None:
    """It has licences, tests, models, the Dockerfile and the texts at the top."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    tops = {
        "CHANGELOG.md",
        "CITATION.cff",
        "Dockerfile",
        "LICENSE",
        "README.md",
        "THIRD_PARTY.md",
        "Makefile",
        "constraints.txt",
    }
    assert tops | {f"models/{model}/LICENSE" for model in MODELS} <= names
    assert {"tests/conftest.py", "deploy/drop_encoders.sh", "models/train.py"} <= names
    assert not any("__pycache__" in name for name in names)
