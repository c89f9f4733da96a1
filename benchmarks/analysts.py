"""What queries, exports and reviews of a large label table take: ``python -m benchmarks.analysts --rows 10000000``; some minutes.

Each is the command, in a process of its own; its time is that of the whole command, its memory the most that it held.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import duckdb

from benchmarks.generated import write_label_table
from emotion_batch.analysis.query import EXAMPLES

_COUNT = "SELECT status, count(*) FROM '{}/*.parquet' GROUP BY status"


def run(*arguments: object) -> tuple[float, float]:
    """Run a command and return its wall-clock seconds and its peak memory in MB."""
    command = [sys.executable, "-P", "-m", "emotion_batch", *map(str, arguments), "--quiet"]
    started = time.perf_counter()
    process = os.posix_spawn(
        sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(process, 0)
    assert status == 0, command
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def say(what: str, seconds: float, memory_mb: float, more: str = "") -> None:
    """Print what one command took."""
    print(f"  {what:<28} {seconds:8.1f} s {memory_mb:8,.0f} MB  {more}", flush=True)


def measure_reviews(table: Path, scratch: Path) -> None:
    """Print what a sheet takes, small and large, and to take it back with each row filled in."""
    for size in (100, 10_000):
        sheet = scratch / f"{size}.csv"
        say(f"review --size {size}", *run("review", table, sheet, "--size", size))
        with sheet.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
        with sheet.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "correct_emotion": row["emotion"]} for row in rows)
        say(f"review --take, of {size}", *run("review", table, sheet, "--take"))


def measure(table: Path, scratch: Path) -> None:
    """Print what each query and each export takes."""
    for name in EXAMPLES:
        say(f"query --example {name}", *run("query", table, "--example", name, "--json"))
    for kind in ("parquet", "csv", "audformat"):
        folder = scratch / kind
        seconds, memory_mb = run("export", table, folder, "--format", kind)
        n_bytes = sum(file.stat().st_size for file in folder.iterdir())
        say(
            f"export --format {kind}", seconds, memory_mb, f"{n_bytes / 1e6:,.0f} MB in {len(os.listdir(folder))} files"
        )
    with duckdb.connect() as connection:
        seconds = []
        for where in (table, scratch / "parquet"):
            rounds = []
            for _ in range(3):
                started = time.perf_counter()
                connection.sql(_COUNT.format(where)).fetchall()
                rounds.append(time.perf_counter() - started)
            seconds.append(min(rounds))
    print(f"  the same query of the parts, and of their export: {seconds[0]:.2f} s, {seconds[1]:.2f} s")


def main() -> None:
    """Measure on a table that is there, or on one that is made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table that is made (1,000,000)")
    parser.add_argument("--table", type=Path, help="instead, one that is there")
    parser.add_argument("--only-reviews", action="store_true", help="neither queries nor exports")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = options.table or Path(folder, "table")
        if options.table is None:
            # In a process of its own: what this one had in memory would count as the peak of those that it starts.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                pool.submit(write_label_table, table, options.rows).result()
        n_parts = len(list(table.glob("*.parquet")))
        print(
            f"{n_parts:,} parts, {len(os.sched_getaffinity(0))} cores, {shutil.disk_usage(folder).free / 1e9:,.0f} GB free"
        )
        measure_reviews(table, Path(folder))
        if not options.only_reviews:
            measure(table, Path(folder))


if __name__ == "__main__":
    main()
