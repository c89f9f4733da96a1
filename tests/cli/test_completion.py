"""Tests of ``completion``: what it prints lets a real shell complete commands and options."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.commands import call_command


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (("emotion-batch", "lab"), ["label"]),
        (("emotion-batch", "re"), ["resume", "report", "retry", "review"]),
        (("emotion-batch", "label", "--keep"), ["--keep-features"]),
        (("emotion-batch", "submit", "ret"), ["retry"]),
        (("emotion-batch", "export", "--format", "au"), ["audacity", "audformat"]),
    ],
)
def test_bash_completes(typed: tuple[str, ...], found: list[str], tmp_path: Path) -> None:
    """The words that bash offers are those that begin as what was typed."""
    done = call_command("completion", "bash")
    assert done.code == 0, done.err
    script = tmp_path / "completion.bash"
    script.write_text(done.out)
    ask = f'source "$0"; COMP_WORDS=({" ".join(typed)}); COMP_CWORD={len(typed) - 1}; _shtab_emotion_batch; echo "${{COMPREPLY[@]}}"'
    said = subprocess.run(["bash", "-c", ask, script], capture_output=True, text=True, check=True).stdout
    assert sorted(said.split()) == sorted(found)


def test_other_shells() -> None:
    """Zsh and tcsh get scripts of their own, and another shell is a wrong call."""
    for shell in ("zsh", "tcsh"):
        assert "emotion-batch" in call_command("completion", shell).out
    done = call_command("completion", "fish")
    assert done.code == 2 and "SHELL must be bash or zsh or tcsh: 'fish'" in done.err
