"""Tests of the house: which module may import which, and what a start costs."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from support.commands import ROOT

PACKAGE = ROOT / "emotion_batch"
# From the roof down: a module imports only from floors below its own.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"arguments"},
    {"console", "demonstration", "endings", "judgements", "answers"},
    {"runs", "planning"},
    {"remainder", "estimates"},
    {"modelling", "sampling", "querying", "exporting", "reviewing"},
    {"run", "recording", "judging", "trials", "reporting"},
    {"submission", "sandbox", "audformats", "page"},
    {"accounts", "remarks", "sections"},
    {"charts", "figures"},
    {"record", "work", "inventory"},
    {"preflight", "labelling", "training", "importing", "cluster", "ledger", "canary", "summary", "throughput"},
    {"sheets", "precision"},
    {"binding", "fitting"},
    {"networks", "calibration"},
    {"extraction", "model", "pictures", "prediction", "synthesis", "lease"},
    {"attempts", "carryover", "evaluation", "isolation", "domain", "dataset", "drawing", "portrait", "survey"},
    {"rows", "splits", "spool", "reference", "augmentation"},
    {"reading"},
    {"audio", "bundle", "manifest", "tables"},
    {"archive", "cutting", "features", "ffmpeg"},
    {"lists", "sequence", "destination"},
    {"storage", "mfcc"},
    {"buckets"},
    {"listing", "transfers"},
    {"stores"},
    {"retries", "credentials", "settings"},
    {"meter", "inspection", "connection", "local", "formats", "terminal"},
    {"errors", "forecast", "libraries", "markup", "naming", "process", "watchdog", "waves", "results"},
    {"containers", "surroundings"},
)
LEVEL = {name: level for level, names in enumerate(reversed(FLOORS)) for name in names}
HEAVY = (
    "tensorflow",
    "keras",
    "librosa",
    "dask",
    "distributed",
    "numpy",
    "pandas",
    "pyarrow",
    "sklearn",
    "matplotlib",
    "rich",
)


def imports(module: str) -> tuple[set[str], set[str]]:
    """Return the package's own modules and the outer packages that a module imports at its top or within."""
    own, outer = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "emotion_batch":
            names = [f"emotion_batch.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "emotion_batch" and len(parts) > 1:
                own.add(parts[1])
            else:
                outer.add(parts[0])
    return own, outer


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def test_every_module_has_its_floor() -> None:
    """A new module is given its place in the house."""
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module: str) -> None:
    """No module imports from its own floor or from above it."""
    own, outer = imports(module)
    assert {name for name in own if LEVEL[name] >= LEVEL[module]} == set()
    assert not outer & {"dask", "distributed"} or module == "cluster"
    assert not outer & {"tensorflow", "keras"} or module == "model"
    assert not outer & {"onnxruntime"} or module == "prediction"
    assert not outer & {"onnx"} or module == "networks"
    assert not outer & {"h5py"} or module in ("importing", "inspection")
    assert not outer & {"obstore"} or module == "buckets"
    assert not outer & {"av"} or module == "ffmpeg"
    assert not outer & {"pycurl"} or module == "transfers"
    assert not outer & {"duckdb"} or module in ("sandbox", "survey", "demonstration")
    assert not outer & {"audformat"} or module == "audformats"
    assert not outer & {"rich"} or module == "terminal"
    assert not outer & {"botocore", "google", "azure"} or module == "credentials"


@pytest.mark.parametrize(
    ("start", "absent"),
    [
        pytest.param("emotion_batch --help", HEAVY, id="help"),
        pytest.param(
            "emotion_batch.worker.labelling",
            (
                "tensorflow",
                "keras",
                "h5py",
                "onnx",
                "librosa",
                "numba",
                "av",
                "dask",
                "sklearn",
                "matplotlib",
                "obstore",
                "pycurl",
                "botocore",
                "pandas",
                "rich",
            ),
            id="worker",
        ),
    ],
)
def test_a_start_imports_only_what_it_uses(start: str, absent: tuple[str, ...]) -> None:
    """`--help` pays for no library, what a worker runs for neither tensorflow, librosa nor Dask."""
    command = [sys.executable, "-X", "importtime", "-m", *start.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "emotion_batch" in imported
    assert imported & set(absent) == set()


def test_the_package_offers_what_it_names() -> None:
    """Each name of `__all__` is there, a function stays one after its module was imported."""
    import emotion_batch
    import emotion_batch.api

    for name in emotion_batch.__all__:
        assert callable(getattr(emotion_batch, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = emotion_batch.nothing
