"""The benchmarks run, and what they compare agrees; no test asserts a time."""

from __future__ import annotations

import os

from conftest import ROOT, run_command


def test_the_extraction_benchmark_runs() -> None:
    """A small run prints its ratio, of features that agree."""
    program = (os.fspath(ROOT / "benchmarks" / "extraction.py"),)
    done = run_command("--blocks", "1", "--json", program=program)
    assert done.code == 0, done.err
    assert done.result["largest_difference"] < 1e-3
    assert done.result["ratio"] > 0
