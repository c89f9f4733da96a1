"""Trains the models that ship, in an hour on two cores: ``python models/train.py TESS VOICES``.

TESS is the unpacked corpus of that name. VOICES has a folder each for RAVDESS (``ravdess``), EmoDB (``emodb``) and nEMO (``nemo``), in which
the recordings keep the names of these corpora.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import emotion_batch
from emotion_batch.settings import FeatureSettings, VoicesSettings

HERE = Path(__file__).parent
TESS = (
    "CC BY-NC-ND 4.0 (Toronto Emotional Speech Set, https://doi.org/10.5683/SP2/E8H2MF): research and evaluation only"
)
LICENCES = {
    "tess": TESS,
    "ravdess": "CC BY-NC-SA 4.0 (RAVDESS, https://zenodo.org/records/1188976)",
    "emodb": "free to use, cite Burkhardt et al. 2005 (EmoDB, http://emodb.bilderbar.info)",
    "nemo": "CC BY-NC-SA 4.0 (nEMO, https://github.com/amu-cai/nEMO)",
}
# The folds of speakers, and the precision that `is_confident` promises.
MAX_FOLDS, PRECISION = 4, 0.75
# The words of other corpora in those of TESS, which has no word for boredom.
WORDS = {
    "anger": "angry",
    "fearful": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprise": "ps",
    "surprised": "ps",
    "calm": "neutral",
    "boredom": "",
}


def main() -> None:
    """Extract, train without holding recordings out, and write the bundles beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tess", type=Path)
    parser.add_argument("voices", type=Path)
    parser.add_argument("--only", choices=("tess-seed", "voices-1"))
    options = parser.parse_args()
    if options.only != "voices-1":
        train("tess-seed", {"tess": options.tess}, FeatureSettings())
    if options.only != "tess-seed":
        others = {name: options.voices / name for name in LICENCES if name != "tess"}
        train("voices-1", {"tess": options.tess, **others}, VoicesSettings())


def train(model: str, archives: dict[str, Path], features: FeatureSettings | VoicesSettings) -> None:
    """Train one model on some corpora."""
    settings = emotion_batch.TrainingSettings(
        labels=list(archives) if len(archives) > 1 else next(iter(archives)),
        label_map=WORDS,
        held_out=0,
        max_folds=MAX_FOLDS,
        precision=PRECISION,
        data_licence="; ".join(LICENCES[name] for name in archives),
    )
    with tempfile.TemporaryDirectory() as folder:
        tables = [Path(folder, name) for name in archives]
        for archive, table in zip(archives.values(), tables, strict=True):
            emotion_batch.extract(archive, table, settings=features)
        card = emotion_batch.train(tables, HERE / model, settings=settings, force=True)
    print(model, card.model_id)


if __name__ == "__main__":
    main()
