"""What a report costs: ``python -m benchmarks.report --rows 10000000``; time, memory and size of the page, of generated rows."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.generated import write_label_table
from benchmarks.measuring import describe

_REPORT = """
import resource, sys
import emotion_batch
emotion_batch.report(sys.argv[1], output=sys.argv[2])
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss, which begins with what the process had that started this one.
with open("/proc/self/status") as status:
    peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(used.ru_utime + used.ru_stime, peak_kb / 1024)
"""


def main() -> None:
    """Print the figures of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table (1,000,000)")
    parser.add_argument("--windows", type=int, default=1, help="rows of each recording, a window of 3 s each (1)")
    parser.add_argument("--table", type=Path, help="a table that is there, rather than one that is made")
    parser.add_argument("--rounds", type=int, default=3, help="how often (3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = options.table or Path(folder, "table")
        if options.table is None:
            write_label_table(table, options.rows, n_windows=options.windows)
        page = Path(folder, "page.html")
        n_parts = len(list(table.glob("*.parquet")))
        print(f"{n_parts:,} parts, {sum(part.stat().st_size for part in table.glob('*.parquet')) / 1e6:,.0f} MB")
        for _ in range(options.rounds):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _REPORT, os.fspath(table), os.fspath(page)],
                capture_output=True,
                text=True,
                check=True,
            )
            elapsed_s = time.perf_counter() - began
            cpu_s, peak_mb = map(float, done.stdout.split())
            print(
                f"{elapsed_s:.1f} s of the clock, {cpu_s:.1f} s of CPU, {peak_mb:,.0f} MB at most, "
                f"a page of {page.stat().st_size / 1e3:,.0f} kB",
                flush=True,
            )
    print(describe())


if __name__ == "__main__":
    main()
