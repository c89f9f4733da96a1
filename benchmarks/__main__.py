"""``python -m benchmarks [ARCHIVE]``: measure, print the table, and keep it as JSON.

Without an archive one is synthesised. Each figure is the median of rounds in which both sides work in turn, so that
both meet the same moods of the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import buckets, cold_start, command_help, kernel, labelling, ledger, rates, worker
from benchmarks.measuring import describe, render
from emotion_batch.example import synthesis
from emotion_batch.storage.archive import list_recordings

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "explanation" / "costs.md"
RESULTS = ROOT / "benchmarks" / "results.json"
MARKS = ("<!-- figures: python -m benchmarks TESS --page -->", "<!-- end of figures -->")
PARTS = ("kernel", "rates", "worker", "ledger", "labelling", "buckets", "cold-start", "help")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "archive", nargs="?", help="folder of recordings in the manner of TESS's; by default synthesised"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="measure just this; may be repeated")
    parser.add_argument("--rounds", type=int, default=15, help="rounds a figure (15; whole commands get a quarter)")
    parser.add_argument("--words", type=int, default=60, help="words a voice and emotion of what is synthesised (60)")
    parser.add_argument("--name", default="", help="what to call the archive in the table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument(
        "--page",
        action="store_true",
        help="keep the figures, and put the table into docs/explanation/costs.md; with --only, the others stay as they were",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = options.archive
        if archive is None:
            archive = str(Path(folder, "archive"))
            synthesis.write_archive(archive, n_words=options.words)
        report = measure(archive, options.only or PARTS, options.rounds, folder)
    report["archive"] = f"{options.name or 'recordings'}, {report['archive']}"
    print(render(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.page:
        if options.only:
            report["figures"] = merge(json.loads(RESULTS.read_text())["figures"], report["figures"])
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
        before, rest = PAGE.read_text().split(MARKS[0])
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{render(report)}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def merge(before: list[dict[str, object]], now: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return figures with those that were measured again in their old places, and those that are new behind them."""
    found = {(one["what"], one["against"]): one for one in before}
    return list((found | {(one["what"], one["against"]): one for one in now}).values())


def measure(archive: str, parts: list[str] | tuple[str, ...], n_rounds: int, folder: str) -> dict[str, object]:
    """Return the report on an archive."""
    figures = []
    if "kernel" in parts:
        figures += kernel.measure(archive, n_rounds)
    if "rates" in parts:
        figures += rates.measure(archive, n_rounds)
    if "worker" in parts:
        figures += worker.measure(archive, n_rounds)
    if "ledger" in parts:
        figures += ledger.measure(archive, n_rounds)
    if "labelling" in parts:
        table, bundle = str(Path(folder, "features")), str(Path(folder, "bundle"))
        for command in (("extract", archive, table), ("train", table, bundle, "--epochs", "2")):
            subprocess.run(
                [sys.executable, "-P", "-m", "emotion_batch", *command, "--quiet"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        figures += labelling.measure(archive, bundle, n_rounds)
    if "buckets" in parts:
        figures += buckets.measure(archive, n_rounds)
    if "cold-start" in parts:
        figures += cold_start.measure(archive, max(1, n_rounds // 4))
    if "help" in parts:
        figures += command_help.measure(n_rounds)
    listing = list_recordings(archive)
    return {
        "archive": f"{listing.entries.num_rows:,} recordings",
        "n_rounds": n_rounds,
        "about": describe(),
        "figures": [vars(figure) for figure in figures],
    }


if __name__ == "__main__":
    main()
