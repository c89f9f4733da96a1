"""How things are measured: children that work in turn, medians of ratios, figures that say where they are from."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    "dask",
    "datasets",
    "joblib",
    "librosa",
    "numpy",
    "onnxruntime",
    "scipy",
    "soundfile",
    "soxr",
    "tensorflow",
    "typer",
)
# One thread for each that computes: CPU time is then one core's.
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMBA")}


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes
    ----------
    what, against
        What was measured, and what with.
    value
        Median, a ratio unless `unit` says otherwise.
    target
        What it is to be, as ``<= 0.2``; empty if there is no target.
    spread
        The quartiles of what the median is of.
    unit
        Of the value; empty for a ratio.
    detail
        The two sides, in their own unit.
    """

    what: str
    against: str
    value: float
    target: str = ""
    spread: tuple[float, float] | None = None
    unit: str = ""
    detail: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if not self.target:
            return None
        sign, limit = self.target.split()
        return self.value <= float(limit) if sign == "<=" else self.value >= float(limit)


def ratio(
    what: str, against: str, ours: Sequence[float], theirs: Sequence[float], target: str = "", unit: str = ""
) -> Figure:
    """Return the median of the rounds' ratios, with both sides' medians in `unit` as detail."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    detail = f"{statistics.median(ours):.3g} to {statistics.median(theirs):.3g} {unit}"
    return Figure(what, against, statistics.median(ratios), target, quartiles(ratios), detail=detail)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and third quartile; of fewer than four values, the extremes."""
    if len(values) < 4:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4)
    return first, third


class Child:
    """A process that does blocks of work when it is told, and says what each cost."""

    def __init__(self, kind: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.blocks", kind, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
            text=True,
        )

    def ask(self, block: object) -> None:
        """Hand over a block of work."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(block)}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return what the block that was handed over gave."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended without an answer")
        return json.loads(line)

    def do(self, block: object) -> Any:
        """Hand a block over and return what it gave."""
        self.ask(block)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def children(*kinds: tuple[object, ...]) -> Iterator[list[Child]]:
    """Start one child a kind, each with its arguments; end them with the block."""
    started = [Child(str(kind), *arguments) for kind, *arguments in kinds]
    try:
        yield started
    finally:
        for child in started:
            child.close()


def in_turn(workers: Sequence[Child], blocks: Sequence[object]) -> list[list[Any]]:
    """Do each block by each child, one at a time, forth and back; return a list of answers for each child."""
    answers: list[list[Any]] = [[] for _ in workers]
    for number, block in enumerate(blocks):
        order = range(len(workers))
        for which in order if number % 2 else reversed(order):
            answers[which].append(workers[which].do(block))
    return answers


def describe() -> dict[str, Any]:
    """Return the machine and the versions that figures are from."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    model = next((line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), "unknown")
    cores = len(os.sched_getaffinity(0))
    return {
        "machine": f"{cores} cores of {model}, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def render(report: Mapping[str, Any]) -> str:
    """Return a report as a Markdown table."""
    lines = ["| what | against | median | quartiles | target |", "| --- | --- | --- | --- | --- |"]
    for item in report["figures"]:
        figure = Figure(**{**item, "spread": tuple(item["spread"]) if item["spread"] else None})
        unit = f" {figure.unit}" if figure.unit else ""
        spread = "" if figure.spread is None else f"{figure.spread[0]:.3g} to {figure.spread[1]:.3g}"
        met = {None: "", True: f"{figure.target}{unit}: met", False: f"{figure.target}{unit}: **not met**"}[
            figure.is_met
        ]
        detail = f" ({figure.detail})" if figure.detail else ""
        lines.append(f"| {figure.what} | {figure.against}{detail} | {figure.value:.3g}{unit} | {spread} | {met} |")
    about = report["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines += ["", f"{report['archive']}; {about['machine']}; Python {about['python']}, {versions}."]
    return "\n".join(lines)
