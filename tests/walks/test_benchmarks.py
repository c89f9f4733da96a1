"""The benchmarks run, and what they compare agrees; no test asserts a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.commands import run_command

from benchmarks import against, command_help, scale
from benchmarks.__main__ import MARKS, PAGE, RESULTS
from benchmarks.measuring import render
from emotion_batch.storage.archive import list_recordings


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


def test_what_help_costs_is_the_time_of_a_process() -> None:
    """The help of the command is printed by a process that ends well, and it costs CPU time."""
    assert 0 < command_help.measure_help("ours") < 60


def test_the_page_of_costs_has_the_figures_of_the_last_run() -> None:
    """The table in docs/explanation/costs.md is the one that the benchmarks made, not one that was typed."""
    table = PAGE.read_text().split(MARKS[0])[1].split(MARKS[1])[0].strip()
    assert table == render(json.loads(RESULTS.read_text()))


@pytest.mark.torture
def test_an_archive_costs_memory_by_its_names_and_a_run_by_its_shards(tmp_path: Path) -> None:
    """Twenty times the recordings: the driver holds Arrow's bytes of each and no object, a shard costs a task."""
    few, many = 20_000, 400_000
    small = scale.measure(few, tmp_path, is_deep=True, is_again=True)
    large = scale.measure(many, tmp_path, is_again=True)
    print(scale.render({few: small, many: large}))
    more, shards = many - few, large["n_shards"] - small["n_shards"]
    # Some 70 bytes for a name, a size and a version; a tuple of Python's with the three takes 260 more.
    assert (large["driver_mb"] - small["driver_mb"]) * 1e6 / more < 200
    assert (large["again_mb"] - small["again_mb"]) * 1e6 / more < 200
    # Some 5 KB a task; the names of a shard's recordings would be 30 more, and ten thousand shards a third of a gigabyte.
    assert (large["scheduler_mb"] - small["scheduler_mb"]) * 1e6 / shards < 25_000
    for command in ("status", "verify"):
        assert (large[f"{command}_mb"] - small[f"{command}_mb"]) * 1e6 / more < 100
    # What a start costs is shared: the machinery's time does not grow with the recordings.
    assert large["overhead_us"] < small["overhead_us"] / 4


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
def test_generated_lists_name_the_generated_recordings(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the listing is measured with are lists out of order, as `list_recordings` takes them."""
    monkeypatch.setattr(scale, "_CHUNK", 300)
    scale.write_list(tmp_path / f"list{suffix}", 1_000, "https://calls.example/")
    entries = list_recordings(tmp_path / f"list{suffix}").entries
    names = scale.entries_of(1_000)["file"].to_pylist()
    assert entries["file"].to_pylist() == [f"https://calls.example/{name}" for name in names]
    assert names == sorted(set(names))


def test_an_interval_of_a_median_is_that_of_its_ranks() -> None:
    """Of 15 ratios the 4th and the 12th enclose the true median in 95 of 100 cases, of 41 the 14th and the 28th."""
    assert against.interval([float(number) for number in range(1, 16)]) == (4, 12)
    assert against.interval([float(number) for number in range(41, 0, -1)]) == (14, 28)
