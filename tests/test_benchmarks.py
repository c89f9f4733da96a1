"""The benchmarks run, and what they compare agrees; no test asserts a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

from conftest import run_command

from benchmarks.__main__ import MARKS, README, RESULTS
from benchmarks.measuring import render


def test_the_benchmarks_run(tmp_path: Path) -> None:
    """A small run prints a table and writes the figures, of features that agree."""
    figures = tmp_path / "figures.json"
    program = ("-m", "benchmarks", "--words", "4", "--rounds", "1", "--json", os.fspath(figures))
    done = run_command("--only", "kernel", program=program)
    assert done.code == 0, done.err
    print(done.out)
    report = json.loads(figures.read_text())
    assert {"machine", "python", "versions"} <= set(report["about"])
    by_name = {(one["what"], one["against"]): one["value"] for one in report["figures"]}
    assert by_name["largest difference of a feature", "the notebook's loop"] < 1e-3
    assert all(value > 0 for value in by_name.values())


def test_the_readme_has_the_figures_of_the_last_run() -> None:
    """The table in the README is the one that the benchmarks made, not one that was typed."""
    table = README.read_text().split(MARKS[0])[1].split(MARKS[1])[0].strip()
    assert table == render(json.loads(RESULTS.read_text()))
