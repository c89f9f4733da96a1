"""Tests of the scripts in `jobs/`: with the settings that stand in them, and with words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow.dataset
from support.commands import ROOT, run_command
from support.strangers import write_strangers


def edit(folder: Path, name: str, settings: Mapping[str, str]) -> tuple[str, ...]:
    """Write a script of `jobs/` with other settings; return how Python runs it."""
    script = (ROOT / "jobs" / f"{name}.py").read_text()
    for before, now in settings.items():
        assert script.count(before) == 1
        script = script.replace(before, now)
    (folder / f"{name}.py").write_text(script)
    return ("-P", os.fspath(folder / f"{name}.py"))


def test_the_scripts_do_what_stands_in_them(speech: Path, tmp_path: Path) -> None:
    """Edited and run without a word, the three scripts make tables and a bundle, and say what is next."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    features, bundle, labels = (tmp_path / name for name in ("features", "bundle", "labels"))
    scripts = (
        edit(folder, "extract_features", {'"recordings"': f'"{speech}"', '"features"': f'"{features}"'}),
        edit(
            folder, "train_lstm", {'"features"': f'"{features}"', '"bundle"': f'"{bundle}"', "epochs=None": "epochs=2"}
        ),
        edit(
            folder,
            "label_archive",
            {'"recordings"': f'"{speech}"', '"labels"': f'"{labels}"', "model=None": f'model="{bundle}"'},
        ),
    )
    for program in scripts:
        done = run_command(program=program, environment={"PYTHONPATH": os.fspath(ROOT)})
        assert done.code == 0, done.err
    assert "next: emotion-batch query" in done.out
    assert "89 recordings, 89 rows: 84 ok, 5 failed" in done.out
    assert pyarrow.dataset.dataset(labels).count_rows() == 89


def test_an_error_is_a_sentence() -> None:
    """A script that was not edited says what is wrong and ends with the command's code."""
    done = run_command(program=(os.fspath(ROOT / "jobs" / "extract_features.py"),))
    assert done.code == 2
    assert done.err.startswith("emotion-batch: ")
    assert "Traceback" not in done.err
    assert run_command("--help", program=(os.fspath(ROOT / "jobs" / "train_lstm.py"),)).out.startswith("usage: ")


def test_a_script_imports_nothing_from_the_current_directory(tmp_path: Path) -> None:
    """An empty entry of PYTHONPATH, which is the current directory, gives the script no module."""
    write_strangers(tmp_path, tmp_path / "marks")
    script = os.fspath(ROOT / "jobs" / "label_archive.py")
    program = (
        "-c",
        f"import os, runpy; os.chdir({os.fspath(tmp_path)!r}); runpy.run_path({script!r}, run_name='__main__')",
    )
    done = run_command(program=program, environment={"PYTHONPATH": f":{ROOT}"})
    assert (done.code, list((tmp_path / "marks").iterdir())) == (2, [])
