"""``python -m benchmarks.screenshots``: the documentation's pictures of a report and of a review, of an archive that it synthesises."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image

import emotion_batch
from benchmarks.browser import opened_tab
from emotion_batch.example import synthesis

DOCS = Path(__file__).parent.parent / "docs"
_N_WORDS, _N_DAYS = 60, 20
# How much of the page is shown: the rest is tables.
_HEIGHTS = {"report": {1280: 1_760, 400: 2_300}, "review": {1280: 1_000, 400: 1_400}}
_COLOURS = 96


def make(folder: Path) -> dict[str, Path]:
    """Synthesise voices, label them in the folders of days by the model that ships, and return the report and the page of a review."""
    synthesis.write_archive(folder / "voices", n_words=_N_WORDS)
    for number, path in enumerate(sorted((folder / "voices").rglob("*.wav"))):
        # Of some days more than of others, and the broken ones in one of them.
        day = _N_DAYS - 2 if path.parent.name == "broken" else int(_N_DAYS * (number * 0.618 % 1) ** 1.2)
        to = folder / "calls" / f"2026-11-{day + 1:02d}" / f"call-{number:04d}.wav"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    emotion_batch.label(folder / "calls", folder / "labels")
    report = Path(emotion_batch.report(folder / "labels", output=folder / "labels-report.html").output)
    review = folder / "labels-review.html"
    emotion_batch.review(folder / "labels", review)
    for page in (report, review):
        # What stands for a folder of this machine's is the only thing that is put in.
        page.write_text(page.read_text().replace(str(folder), "/data"))
    return {"report": report, "review": review}


def photograph(name: str, page: Path, folder: Path, to: Path) -> None:
    """Take a picture of a page at each width, in as few colours as will do."""
    to.mkdir(exist_ok=True)
    with opened_tab(folder) as tab:
        for width, height in _HEIGHTS[name].items():
            tab.resize(width)
            tab.open(page.as_uri())
            file = to / f"{name}-{width}.png"
            tab.photograph(file, height)
            with Image.open(file) as picture:
                picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
            print(f"{file.name}: {os.path.getsize(file):,} bytes")


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DOCS, metavar="FOLDER", help="where to (docs)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="night-") as folder:
        for name, page in make(Path(folder)).items():
            with tempfile.TemporaryDirectory() as profile:
                photograph(name, page, Path(profile), options.output)


if __name__ == "__main__":
    main()
