"""Peak memory of a training by the size of its table: ``python -m benchmarks.size``; some minutes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.measuring import ONE_THREAD
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts
from emotion_batch.tables.schema import FEATURES, TableInfo, feature_schema

_PART = 10_000
_EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
_INFO = TableInfo(FEATURES, "archive", FeatureSettings(), Segments())
_TRAIN = """
import resource, sys
from benchmarks.size import _INFO
from emotion_batch.storage.folder import Folder
from emotion_batch.training.fit import TrainingSettings; from emotion_batch.training.data import Source; from emotion_batch.training.train import train_bundle

table, bundle, n_parts = sys.argv[1:]
settings = TrainingSettings(epochs=1, max_folds=0)
train_bundle([Source(Folder.of(table), _INFO, range(int(n_parts)))], Folder.of(bundle), settings)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_table(folder: Path, n_parts: int) -> None:
    """Write synthetic feature rows, each a recording of its own."""
    generator = np.random.default_rng(0)
    schema = feature_schema(_INFO.feature_settings)
    folder.mkdir()
    for part in range(n_parts):
        numbers = range(part * _PART, (part + 1) * _PART)
        values = {
            "file": [f"S{number % 50}/S{number % 50}_{number:08d}_{_EMOTIONS[number % 7]}.wav" for number in numbers],
            "start_s": [0.5] * _PART,
            "end_s": [3.5] * _PART,
            "status": ["ok"] * _PART,
            "error": [None] * _PART,
            "duration_s": [4.0] * _PART,
            "sample_rate_hz": [16_000] * _PART,
            "channels": [1] * _PART,
        }
        vectors = generator.normal(0, 30, _PART * 40).astype(np.float32)
        mfcc = pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=schema.field("mfcc").type)
        arrays = [pa.array(column, schema.field(name).type) for name, column in values.items()]
        parts.publish_part(
            Folder.of(folder), _INFO, part, "digest", pa.Table.from_arrays([*arrays, mfcc], schema=schema)
        )


def main() -> None:
    """Print the peak memory for each size, in MB, and the ratio of the largest to the smallest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder, "table"), max(options.rows) // _PART)
        for n_rows in options.rows:
            command = [
                sys.executable,
                "-c",
                _TRAIN,
                f"{folder}/table",
                f"{folder}/bundle{n_rows}",
                str(n_rows // _PART),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **ONE_THREAD})
            found.append(float(done.stdout))
            print(f"{n_rows:>12,} rows: {found[-1]:,.0f} MB at most", flush=True)
    print(f"ratio {found[-1] / found[0]:.2f}")


if __name__ == "__main__":
    main()
