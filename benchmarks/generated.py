"""Label tables of any size, made and not labelled: real parts with real footers, and their manifest.

``python -m benchmarks.generated FOLDER --rows 10000000`` writes one. What is in it follows from the number of rows
alone; names, statuses and reasons look as those of an archive of calls do, some of them hostile.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.settings import Segments, VoicesSettings
from emotion_batch.storage.entries import ENTRY_SCHEMA
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts, table
from emotion_batch.tables import schema as schema_module
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.schema import TableInfo, label_schema

LABELS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
HOSTILE = ("<img src=x onerror=alert(1)>.wav", "quo\"te's, and a comma.wav", "two\nlines\x1b[31m.wav", "=1+1.wav")
_REASONS = {
    "not_audio": "no audio format that libsndfile knows",
    "truncated": "the file ends at 1.25 s of the 3 s that its header promises",
    "too_short": "the recording ends at 0.31 s, before its segment begins",
    "timeout": "decoding it gave nothing for 120 s",
}
_FOLDERS = 200


def write_label_table(folder: Path, n_rows: int, *, n_windows: int = 1) -> TableInfo:
    """Write a label table.

    Parameters
    ----------
    folder
        Where to: a new folder.
    n_rows
        Its rows, or with windows a few less: a recording that fails has one.
    n_windows
        Rows of each recording, a window of 3 s each; 1 is a table without windows.

    Returns
    -------
    What the table is.
    """
    settings = VoicesSettings()
    segments = Segments.windows(3.0) if n_windows > 1 else settings.segments
    info = TableInfo(schema_module.LABELS, "/archive", settings, segments, "0123456789abcdef", LABELS)
    place = Folder.of(folder)
    table.create_info(place, info)
    manifest = Manifest(place)
    manifest.grow(_list(n_rows // n_windows), segments)
    generator = np.random.default_rng(0)
    for shard, entries in zip(manifest.shards, manifest.entries(list(manifest.shards)), strict=True):
        rows = _label(entries["file"], n_windows, generator)
        parts.publish_part(place, info, shard, manifest.shards[shard].digest, rows)
    return info


def _list(n_recordings: int) -> pa.Table:
    """Return the entries of so many recordings, in the folders of days."""
    numbers = np.arange(n_recordings)
    days = np.char.add("2026-", np.char.zfill((numbers * _FOLDERS // n_recordings).astype(str), 3))
    names = np.char.add(np.char.add(days, "/call_"), np.char.add(np.char.zfill(numbers.astype(str), 8), ".wav"))
    files = np.concatenate([names[len(HOSTILE) :], HOSTILE]) if n_recordings > len(HOSTILE) else names
    # By their bytes, as a listing is.
    files = pa.array(np.sort(np.char.encode(files, "utf-8"))).cast(pa.string())
    return pa.table(
        [
            files,
            pa.nulls(n_recordings, pa.binary()),
            pa.array(np.full(n_recordings, 200_000)),
            pa.array(np.full(n_recordings, "1790000000")),
        ],
        schema=ENTRY_SCHEMA,
    )


def _label(files: pa.Array, n_windows: int, generator: np.random.Generator) -> pa.Table:
    """Return the rows of a shard's recordings, some three of a hundred recordings without a label."""
    n_files, n_rows = len(files), len(files) * n_windows
    kinds = np.array(["ok", *_REASONS], object)
    of_file = np.where(generator.random(n_files) < 0.03, generator.integers(1, len(kinds), n_files), 0)
    # A recording that fails has one row.
    n_of_file = np.where(of_file == 0, n_windows, 1)
    file_of = np.repeat(np.arange(n_files), n_of_file)
    kind = of_file[file_of]
    n_rows = len(file_of)
    is_ok = kind == 0
    window = np.arange(n_rows) - np.repeat(np.cumsum(n_of_file) - n_of_file, n_of_file)
    raw = generator.gamma(0.35, size=(n_rows, len(LABELS))).astype(np.float32) + np.float32(1e-6)
    p = raw / raw.sum(axis=1, keepdims=True)
    ranked = np.sort(p, axis=1)
    distance = generator.gamma(2.0, size=n_rows).astype(np.float32)
    is_speech = generator.random(n_rows) < 0.9
    values = {
        "emotion": np.array(LABELS, object)[p.argmax(axis=1)],
        "confidence": ranked[:, -1],
        "margin": ranked[:, -1] - ranked[:, -2],
        "entropy": -(p * np.log(p)).sum(axis=1),
        "is_confident": (ranked[:, -1] > 0.8) & (distance < 5) & is_speech,
        "is_in_domain": distance < 5,
        "domain_distance": distance,
        "is_speech": is_speech,
        **{f"p_{label}": p[:, number] for number, label in enumerate(LABELS)},
    }
    schema = label_schema(LABELS)
    start = 3.0 * window
    columns = {
        "file": files.take(pa.array(file_of)),
        "channel": pa.nulls(n_rows, pa.int16()),
        "start_s": pa.array(start),
        "end_s": pa.array(start + 3.0, mask=~is_ok),
        "status": pa.array(kinds[kind]),
        "error": pa.array(np.array([None, *_REASONS.values()], object)[kind]),
    }
    for name, value in values.items():
        columns[name] = pc.if_else(pa.array(is_ok), pa.array(value, schema.field(name).type), None)
    return pa.table(columns, schema=schema)


def main() -> None:
    """Write one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to: a new folder")
    parser.add_argument("--rows", type=int, default=1_000_000, help="its rows (1,000,000)")
    parser.add_argument("--windows", type=int, default=1, help="rows of each recording, a window of 3 s each (1)")
    options = parser.parse_args()
    write_label_table(options.folder, options.rows, n_windows=options.windows)


if __name__ == "__main__":
    main()
