"""The notebook's loop over an archive as a whole process: ``python -m benchmarks.peers loop|joblib|datasets ARCHIVE``."""

from __future__ import annotations

import sys
from pathlib import Path

import librosa
import numpy as np


def extract_mfcc(path: str) -> np.ndarray:
    """Return a recording's features as the notebook's cell does."""
    samples, rate = librosa.load(path, duration=3, offset=0.5)
    return np.mean(librosa.feature.mfcc(y=samples, sr=rate, n_mfcc=40).T, axis=0)


def main() -> None:
    """Extract an archive's features in one of three ways."""
    way, archive = sys.argv[1:]
    paths = sorted(str(path) for path in Path(archive).rglob("*.wav") if path.parent.name != "broken")
    if way == "loop":
        vectors = [extract_mfcc(path) for path in paths]
    elif way == "joblib":
        import joblib

        vectors = joblib.Parallel(n_jobs=2)(joblib.delayed(extract_mfcc)(path) for path in paths)
    else:
        import datasets

        datasets.disable_progress_bars()
        table = datasets.Dataset.from_dict({"path": paths})
        vectors = table.map(lambda row: {"mfcc": extract_mfcc(row["path"])}, num_proc=2)["mfcc"]
    print(np.stack(vectors).shape)


if __name__ == "__main__":
    main()
