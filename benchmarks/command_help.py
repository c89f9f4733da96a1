"""What `emotion-batch --help` costs, from the start of its process to its end, beside the help of typer's empty program."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from benchmarks.measuring import Figure, ratio

_EMPTY = """
import typer
app = typer.Typer()
@app.command()
def main() -> None:
    pass
app()
"""
_PROGRAMS = {"ours": ("-m", "emotion_batch"), "empty": ("-c", _EMPTY)}


def measure(n_rounds: int) -> list[Figure]:
    """Return the CPU time of the help against that of the empty program, if typer is installed."""
    if importlib.util.find_spec("typer") is None:
        return []
    costs: dict[str, list[float]] = {name: [] for name in _PROGRAMS}
    # The first round is to warm up.
    for number in range(-1, n_rounds):
        for name in costs if number % 2 else reversed(costs):
            cost = measure_help(name)
            if number >= 0:
                costs[name].append(cost * 1e3)
    return [
        ratio("`emotion-batch --help`", "the help of typer's empty program", *costs.values(), "<= 2.5", "ms CPU"),
    ]


def measure_help(name: str) -> float:
    """Return the seconds of CPU time that a program's help takes in a process of its own."""
    process = subprocess.Popen([sys.executable, "-P", *_PROGRAMS[name], "--help"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    help_text = process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or b"--help" not in help_text:
        raise RuntimeError(f"the help of {name} failed with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime
