"""Trains the models that ship, in an hour on two cores: ``python models/train.py TESS VOICES``.

``python models/train.py --describe`` trains nothing. It writes the README.md of both, the LICENSE and the digests on the card again.

TESS is the unpacked corpus of that name. VOICES has a folder each for RAVDESS (``ravdess``), EmoDB (``emodb``) and nEMO (``nemo``), in which
the recordings keep the names of these corpora.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import emotion_batch
from emotion_batch.inference.bundle import CARD, open_bundle, sha256
from emotion_batch.settings import FeatureSettings, VoicesSettings
from emotion_batch.storage.folder import Folder
from emotion_batch.training.write_bundle import LICENSE, describe

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
# Name, terms and source of each corpus, for the LICENSE of a model.
CORPORA = {
    "tess": ("Toronto Emotional Speech Set (TESS)", "CC BY-NC-ND 4.0", "https://doi.org/10.5683/SP2/E8H2MF"),
    "ravdess": ("RAVDESS", "CC BY-NC-SA 4.0", "https://zenodo.org/records/1188976"),
    "emodb": ("EmoDB", "free to use; cite Burkhardt et al. (2005)", "http://emodb.bilderbar.info"),
    "nemo": ("nEMO", "CC BY-NC-SA 4.0", "https://github.com/amu-cai/nEMO"),
}
TERMS = """\
Terms of the model {model}

This folder holds the weights of a neural network, its card and its figures. The MIT License of emotion-batch covers the source code. It
does not cover the files of this folder.

The network learnt from recordings of these corpora:

{corpora}

No recording is part of this folder. Terms with the letters NC do not permit commercial use. Therefore you may use, copy and pass on
the files of this folder for research and for evaluation only, and not for a commercial purpose. If you pass them on, pass on this text
with them, and name the corpora.

Do not use the model for decisions about people. A voice does not show what a person feels.

THE FILES ARE PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED. IN NO EVENT SHALL THE AUTHORS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY THAT ARISES FROM THE FILES OR FROM THEIR USE.

Is your use commercial, or is one of these terms a problem for you? Train a model of your own with `emotion-batch train`, on recordings
whose terms you choose. The MIT License covers all that you need for it.
"""
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
    parser.add_argument("tess", type=Path, nargs="?")
    parser.add_argument("voices", type=Path, nargs="?")
    parser.add_argument("--only", choices=("tess-seed", "voices-1"))
    parser.add_argument("--describe", action="store_true")
    options = parser.parse_args()
    if options.describe:
        for model in ("tess-seed", "voices-1"):
            write_texts(model)
        return
    if options.voices is None:
        parser.error("TESS and VOICES are required, unless --describe is given")
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
    write_texts(model)
    print(model, card.model_id)


def make_texts(model: str) -> dict[str, bytes]:
    """Return the contents of a model's LICENSE, README.md and card; they follow from its card."""
    card = open_bundle(Folder.of(HERE / model)).card
    sources = card.training["labels"]
    lines = ("- {}: {} ({})".format(*CORPORA[name]) for name in ([sources] if isinstance(sources, str) else sources))
    texts = {LICENSE: TERMS.format(model=model, corpora="\n".join(lines)).encode()}
    card = replace(card, files={**card.files, LICENSE: sha256(texts[LICENSE])})
    texts["README.md"] = describe(card).encode()
    card = replace(card, files={**card.files, "README.md": sha256(texts["README.md"])})
    return {**texts, CARD: card.to_json()}


def write_texts(model: str) -> None:
    """Write the LICENSE, README.md and card of a model that is there."""
    for name, data in make_texts(model).items():
        (HERE / model / name).write_bytes(data)


if __name__ == "__main__":
    main()
