"""Trains the models that ship, on all of TESS: ``python models/train_tess.py TESS``; some ten minutes on two cores."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import emotion_batch
from emotion_batch.settings import FeatureSettings, SequenceSettings

HERE = Path(__file__).parent
LICENCE = (
    "CC BY-NC-ND 4.0 (Toronto Emotional Speech Set, https://doi.org/10.5683/SP2/E8H2MF): research and evaluation only"
)
RECIPES = {"tess-seed": FeatureSettings(), "tess-sequence": SequenceSettings()}


def main() -> None:
    """Extract, train without holding recordings out, and write the bundles beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", help="TESS, unpacked")
    parser.add_argument("--only", choices=tuple(RECIPES))
    options = parser.parse_args()
    for name, settings in RECIPES.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                emotion_batch.extract(options.archive, folder, settings=settings)
                how = emotion_batch.TrainingSettings(held_out=0, data_licence=LICENCE)
                card = emotion_batch.train(folder, HERE / name, settings=how, force=True)
            print(name, card.model_id)


if __name__ == "__main__":
    main()
