"""What one submits, by linters: the shell scripts of `deploy/` and the Dockerfile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import servers
from support.commands import ROOT

# Of tests/jobs.txt.
JUDGES = Path(sys.prefix) / "jobs" / "bin"
SCRIPTS = [
    ".ci/run",
    "deploy/slurm/label.sbatch",
    "deploy/drop_encoders.sh",
    "deploy/ssh/label.sh",
    "deploy/ssh/worker.sh",
]
DOCKERFILE = ROOT / "Dockerfile"


def judge(program: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    if not (JUDGES / program).exists():
        servers.missing(f"{program} (of tests/jobs.txt)")
    return subprocess.run(
        [JUDGES / program, *arguments], input=text, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    """A script is clean, and would not be with a variable out of quotes."""
    found = judge("shellcheck", script)
    assert (found.returncode, found.stdout) == (0, "")
    assert judge("shellcheck", "-", text=(ROOT / script).read_text() + "\nrm $1\n").returncode == 1


def test_every_script_is_judged() -> None:
    """No script of `deploy/` is left out."""
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*.s*")}
    assert found == {script for script in SCRIPTS if script.startswith("deploy/")}


def test_hadolint_has_nothing_to_say() -> None:
    """The Dockerfile is clean, and would not be with an image of no version."""
    found = judge("hadolint", "--no-color", str(DOCKERFILE))
    assert (found.returncode, found.stdout) == (0, "")
    wrong = judge("hadolint", "--no-color", "-", text=DOCKERFILE.read_text().replace("python:3.11-slim", "python"))
    assert wrong.returncode == 1
    assert "DL3006" in wrong.stdout
