"""Tests of the house: which room imports from which, how large rooms and modules are, and what a start costs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from support.commands import ROOT

PACKAGE = ROOT / "emotion_batch"
GROUND = {
    "__init__",
    "__main__",
    "_version",
    "api",
    "environment",
    "errors",
    "libraries",
    "progress",
    "settings",
    "usage",
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
HEAVY = (
    "tensorflow",
    "duckdb",
    "onnxruntime",
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


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of `pyproject.toml` on the package in a folder."""
    linter = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([linter, "--no-cache", "--no-logo"], cwd=folder, capture_output=True, text=True, check=False)


def test_imports_keep_the_contracts() -> None:
    """Rooms import from rooms below them, modules import without circles, and each library has its modules."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        pytest.param("worker/shard.py", "from emotion_batch.run import driver", id="a higher room"),
        pytest.param("analysis/query.py", "from emotion_batch.training import splits", id="a room beside it"),
        pytest.param("storage/names.py", "from emotion_batch.storage import archive", id="a circle"),
        pytest.param("tables/parts.py", "import dask", id="a library of another module"),
    ],
)
def test_an_import_against_the_contracts_is_named(module: str, line: str, tmp_path: Path) -> None:
    """The linter fails on a copy of the package that has one import too many, and says which."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "emotion_batch", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "emotion_batch" / module).open("a") as stream:
        stream.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    importer = "emotion_batch." + module.removesuffix(".py").replace("/", ".")
    imported = line.split()[1]
    assert done.returncode == 1
    assert re.search(rf"{importer} -> {imported}|\.{importer.split('.')[-1]} -> \.?\w+", done.stdout), done.stdout


def test_every_module_has_a_room() -> None:
    """Outside the rooms stand the ground's modules and the API alone, and no room has more than twelve modules."""
    rooms: dict[Path, int] = defaultdict(int)
    for path in MODULES:
        rooms[path.parent] += path.name != "__init__.py"
    assert {path.stem for path in MODULES if path.parent == Path()} == GROUND
    assert {room: n for room, n in rooms.items() if n > 12 and room != Path()} == {}
    assert all((PACKAGE / room / "__init__.py").exists() for room in rooms)


def test_no_module_is_long() -> None:
    """A module has at most 450 lines."""
    lengths = {str(path): len((PACKAGE / path).read_text().splitlines()) for path in MODULES}
    assert {path for path, n in lengths.items() if n > 450} == set()


def test_names_are_used_once() -> None:
    """No two modules have one name, and no two public functions or classes in different rooms."""
    modules: dict[str, list[str]] = defaultdict(list)
    names: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        modules[path.stem].append(str(path))
        for node in ast.parse((PACKAGE / path).read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                names[node.name].add(path.parts[0])
    del modules["__init__"]
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}
    assert {name: rooms for name, rooms in names.items() if len(rooms) > 1} == {}


def test_the_map_of_the_house_is_true() -> None:
    """CONTRIBUTING.md names every module where it lies, and in the ten steps and the twelve changes only files that exist."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    house = text[text.index("    emotion_batch/\n") : text.index("### The way of a recording")]
    found, room = set(), Path()
    for line in house[: house.index("    jobs/")].splitlines()[1:]:
        if heading := re.match(r"( {6,8})(\w+)/ ", line):
            room = Path(heading[2]) if len(heading[1]) == 6 else Path(room.parts[0]) / heading[2]
        found |= {room / name for name in re.findall(r"\w+\.py\b(?!i)", line)}
    inits = {path for path in MODULES if path.name == "__init__.py" and path != Path("__init__.py")}
    assert found == set(MODULES) - inits
    way = text[text.index("### The way of a recording") : text.index("## Rules")]
    steps = re.findall(r"^\d+\. ", way, re.MULTILINE)
    named = re.findall(r"`(emotion_batch/[\w/.]+)`", way)
    assert len(steps) == 10
    assert len(re.findall(r"^\| (?!change \||---)", way, re.MULTILINE)) == 12
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("start", "absent"),
    [
        pytest.param("emotion_batch --help", HEAVY, id="help"),
        pytest.param(
            "emotion_batch.worker.shard",
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


def test_no_help_imports_a_library() -> None:
    """The help of the program, of each command and of each command that can be submitted imports none of them."""
    code = (
        "import sys\n"
        "from emotion_batch.__main__ import main\n"
        "from emotion_batch.cli import app, options\n"
        "_, parsers, submitted = options.make_parsers()\n"
        "calls = [[], *([name] for name in parsers), *(['submit', name] for name in submitted)]\n"
        "assert [main([*call, '--help']) for call in calls] == [0] * len(calls)\n"
        "print(len(calls), sorted(set(sys.argv[1:]) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.count("usage: emotion-batch") == 23
    assert done.stdout.splitlines()[-1] == "23 []"


def test_the_package_offers_what_it_names() -> None:
    """Each public name is there, `dir` shows these and no other, and a function stays one after its module was imported."""
    code = (
        "import emotion_batch, emotion_batch.api, emotion_batch.analysis.report\n"
        "assert dir(emotion_batch) == sorted(emotion_batch.__all__)\n"
        "assert all(callable(getattr(emotion_batch, name)) for name in emotion_batch.__all__)\n"
        "assert not any(name.startswith('_') for name in dir(emotion_batch))\n"
        "from emotion_batch import *\n"
        "extract, VoicesSettings\n"
        "try:\n    emotion_batch.nothing\nexcept AttributeError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("refused", "")


def test_sentences_are_plain() -> None:
    """No message, docstring or help text is made by the moulds that read badly; "1 file(s)" is one of them."""
    moulds = re.compile(r"\bgot\s+none\b|\bexpected\s+it\b|: expected |\b(who|some|no)(ever|body)\b|\w\(s\)")
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and moulds.search(node.value):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {moulds.search(node.value)[0]}")
    assert not found


def test_other_texts_are_plain_too() -> None:
    """README, CONTRIBUTING, CHANGELOG, the pages of docs, tests, benchmarks, jobs and deploy name who acts."""
    moulds = re.compile(r"\b(Who|who|Some|some|No|no)(ever|body)\b|\bgot\s+none\b|\bexpected\s+it\b")
    folders = [path for name in ("docs", "tests", "benchmarks", "jobs", "deploy") for path in (ROOT / name).rglob("*")]
    found = []
    for path in sorted([*ROOT.glob("*.md"), *folders]):
        if path.suffix in (".py", ".md", ".sh", ".sbatch", ".yaml"):
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            found += [f"{path.relative_to(ROOT)}:{number}" for number, line in lines if moulds.search(line)]
    assert not found
