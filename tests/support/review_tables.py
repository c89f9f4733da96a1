"""Label tables that are written without a run, and answers to their sheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from emotion_batch.analysis import review_sheet
from emotion_batch.analysis.scan import survey
from emotion_batch.analysis.statistics import Figures, gather
from emotion_batch.inference import bundle
from emotion_batch.inference.card import read_portrait
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.entries import ENTRY_SCHEMA
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import schema as schema_module
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import publish_part
from emotion_batch.tables.schema import TableInfo, label_schema
from emotion_batch.tables.status import read_throughput
from emotion_batch.tables.table import create_info, require_table

LABELS = ("angry", "happy", "sad")


INFO = TableInfo(schema_module.LABELS, "/archive", FeatureSettings(), Segments(), "m0del", LABELS)


HOSTILE = (
    '=HYPERLINK("http://127.0.0.1","x").wav',
    "+1+1.wav",
    "-2.wav",
    "@SUM(A1).wav",
    "'quoted.wav",
    '"double"".wav',
    "new\nline.wav",
    "return\r.wav",
    "\ttab.wav",
    " blanks .wav ",
    "semi;colon,comma.wav",
    "back\\n\\x41slash.wav",
    "'=both\n\\.wav",
    "1.5",
    "2026-01-02",
    "[red]markup[/red].wav",
    "grüße 電話.wav",
    "\u202eltr.wav",
    "\U0001f600 \ue000.wav",
    "\x1b[2J.wav",
    "=",
    "'",
)


def rows_of(files: Sequence[str], *, seed: int = 0, starts: Sequence[float] | None = None) -> pa.Table:
    """Return label rows of a model that is sure of some and unsure of others; every ninth failed."""
    rng = np.random.default_rng(seed)
    n = len(files)
    probabilities = rng.dirichlet(np.ones(len(LABELS)), n) ** rng.uniform(0.5, 3, (n, 1))
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    ordered = np.sort(probabilities, axis=1)
    failed = np.arange(n) % 9 == 8
    made = {
        "emotion": np.array(LABELS, object)[probabilities.argmax(axis=1)],
        "confidence": ordered[:, -1],
        "margin": ordered[:, -1] - ordered[:, -2],
        "entropy": -(probabilities * np.log(probabilities)).sum(axis=1),
        "is_confident": (ordered[:, -1] > 0.75) & (rng.random(n) < 0.9),
        "is_in_domain": rng.random(n) < 0.9,
        "domain_distance": rng.random(n).astype(np.float32),
        "is_speech": rng.random(n) < 0.97,
        **{f"p_{label}": probabilities[:, at] for at, label in enumerate(LABELS)},
    }
    start = np.full(n, 0.5) if starts is None else np.asarray(starts, float)
    columns: dict[str, object] = {
        "file": list(files),
        "channel": pa.nulls(n, pa.int16()),
        "start_s": start,
        "end_s": pa.array(start + 3, mask=failed),
        "status": np.where(failed, "empty", "ok"),
        "error": [("no bytes" if bad else None) for bad in failed],
    }
    schema = label_schema(LABELS)
    return pa.table(
        [
            pa.array(columns.get(name, made.get(name)), schema.field(name).type, mask=failed if name in made else None)
            if not isinstance(columns.get(name), pa.Array)
            else columns[name]
            for name in schema.names
        ],
        schema=schema,
    )


def write_table(
    folder: Path,
    files: Sequence[str],
    info: TableInfo = INFO,
    *,
    n_windows: int = 1,
    seed: int = 0,
    rows: pa.Table | None = None,
) -> Folder:
    """Write a table of recordings, whole, as a run leaves it: of labels, or of one shard's `rows`."""
    place = Folder.of(folder)
    place.make()
    create_info(place, info)
    names = sorted(files, key=str.encode)
    n = len(names)
    entries = pa.table([pa.array(names), pa.nulls(n, pa.string()), [1] * n, ["1"] * n], schema=ENTRY_SCHEMA)
    manifest = Manifest(place)
    manifest.grow(entries, info.segments)
    for shard, entry in manifest.shards.items():
        (batch,) = manifest.entries([shard])
        mine = [name for name in batch["file"].to_pylist() for _ in range(n_windows)]
        starts = [float(at) for _ in range(batch.num_rows) for at in range(n_windows)] if n_windows > 1 else None
        made = rows_of(mine, seed=seed + shard, starts=starts) if rows is None else rows
        publish_part(place, info, shard, entry.digest, made)
    return place


def read_cells(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def write_cells(path: Path, cells: Sequence[dict[str, str]], **style: object) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(cells[0]), **style)
    writer.writeheader()
    writer.writerows(cells)
    path.write_bytes(text.getvalue().encode())


def fill(path: Path, answer: Callable[[dict[str, str]], str], **style: object) -> None:
    """Fill a sheet in as a person would, and save it as a spreadsheet would."""
    cells = read_cells(path)
    for one in cells:
        one["correct_emotion"] = answer(one)
    write_cells(path, cells, **style)


def truth(file: str, emotion: str) -> str:
    """Return what a recording really is: what the model says, but for every fourth by its name."""
    return emotion if sum(file.encode()) % 4 else LABELS[LABELS.index(emotion) - 1]


def answer_truly(cells: dict[str, str]) -> str:
    return truth(review_sheet.unguard(cells["file"]), cells["emotion"])


def figures_of(table: Path, model: str | None = "voices-1", *, seed: int = 0) -> Figures:
    place = Folder.of(table)
    info, manifest = require_table(place), Manifest(place)
    portrait = None if model is None else read_portrait(bundle.open_bundle(bundle.find_model(model)).card)
    with survey(place, info, manifest.shards, seed=seed) as seen:
        return gather(place.url, info, manifest, seen, read_throughput(place), portrait)
