"""The page of a review with 1,000 clips: its size, how long it takes to write, and to open in Chromium.

``python -m benchmarks.review_page [ARCHIVE]``; without an archive one is synthesised.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import emotion_batch
from benchmarks.browser import opened_tab
from benchmarks.measuring import Figure, describe, render
from emotion_batch.example import synthesis


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.review_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("archive", nargs="?", help="folder of recordings; by default synthesised")
    parser.add_argument("--clips", type=int, default=1_000, help="clips of the page (1,000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive, table, page = options.archive, Path(folder, "labels"), Path(folder, "page.html")
        if archive is None:
            archive = str(Path(folder, "archive"))
            synthesis.write_archive(archive, n_words=64)
        emotion_batch.label(archive, table, window=1, force=True)
        began = time.perf_counter()
        written = emotion_batch.review(table, page, size=options.clips)
        written_s = time.perf_counter() - began
        with opened_tab(Path(folder)) as tab:
            began = time.perf_counter()
            tab.open(page.as_uri())
            opened_s = time.perf_counter() - began
            assert f"1 of {written.n_rows}" in tab.evaluate("document.body.innerText")
            tab.press("ArrowRight")
            tab.settle(0.5)
            assert tab.evaluate("document.getElementById('sound').duration > 0.2")
        what = f"page of a review with {written.n_rows:,} clips"
        figures = [
            Figure(what, "", page.stat().st_size / 1e6, unit="MB"),
            Figure(what, "to write it", written_s, unit="s"),
            Figure(what, "to open it", opened_s, unit="s"),
        ]
    print(
        render(
            {
                "archive": options.archive or "synthesised",
                "about": describe(),
                "figures": [vars(one) for one in figures],
            }
        )
    )


if __name__ == "__main__":
    main()
