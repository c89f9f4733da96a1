"""Tests of what a shard keeps of its earlier part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from emotion_batch.errors import Status
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.entries import ENTRY_SCHEMA
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts, schema
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import digest
from emotion_batch.worker.reuse import carry_over, merge

INFO = TableInfo(schema.FEATURES, "/archive", FeatureSettings(n_mfcc=2), Segments.windows(1))
NOTHING: frozenset[Status] = frozenset()


def entries(**versions: str | None) -> pa.RecordBatch:
    columns = [list(versions), [None] * len(versions), [1] * len(versions), list(versions.values())]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA)


def rows(*found: tuple[str, float, str]) -> pa.Table:
    n = len(found)
    ok = np.array([status == "ok" for *_, status in found], bool)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(np.arange(2 * n, dtype=np.float32)), type=INFO.schema.field("mfcc").type, mask=pa.array(~ok)
    )
    files, starts, statuses = zip(*found, strict=True) if found else ((), (), ())
    empty = [None] * n
    columns = [files, empty, starts, empty, statuses, empty, empty, empty, empty, vectors]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, INFO.schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=INFO.schema)


BEFORE = entries(a="1", b="1", c=None, d="1")
PART = rows(("a", 0, "ok"), ("a", 1, "ok"), ("b", 0, "ok"), ("c", 0, "timeout"), ("d", 0, "ok"), ("d", 1, "truncated"))


@pytest.fixture
def table(tmp_path: Path) -> Folder:
    folder = Folder.of(tmp_path)
    parts.publish_part(folder, INFO, 0, digest(BEFORE), PART)
    return folder


@pytest.mark.parametrize(
    ("now", "again", "left"),
    [
        pytest.param(BEFORE, NOTHING, "", id="nothing changed"),
        pytest.param(entries(a="1", b="2", c=None, d="1"), NOTHING, "b", id="one changed"),
        pytest.param(entries(a="1", b="1", c="1", d="1"), NOTHING, "c", id="one became known"),
        pytest.param(entries(a="1", d="1"), NOTHING, "", id="two are pruned"),
        pytest.param(entries(a="1", b="1", c=None, d="1", e="1"), NOTHING, "e", id="one is new"),
        pytest.param(BEFORE, frozenset({Status.TIMEOUT}), "c", id="one status again"),
        pytest.param(BEFORE, frozenset(Status) - {Status.OK}, "cd", id="all failures again"),
    ],
)
def test_what_did_not_change_is_kept(table: Folder, now: pa.RecordBatch, again: frozenset[Status], left: str) -> None:
    """Rows of unchanged recordings stay, all of a recording's or none, and come in the order of the entries."""
    kept, todo = carry_over(table, INFO, 0, now, {digest(BEFORE): BEFORE}, again)
    assert "".join(todo["file"].to_pylist()) == left
    assert set(kept["file"].to_pylist()) == set(now["file"].to_pylist()) - set(left)
    made = rows(*((file, start, "ok") for file in reversed(left) for start in (0, 1)))
    found = merge(now, kept, made)
    names = [(row["file"], row["start_s"]) for row in found.to_pylist()]
    assert names == sorted(names)
    assert dict.fromkeys(file for file, _ in names) == dict.fromkeys(now["file"].to_pylist())
    untouched = [row for row in PART.to_pylist() if row["file"] in set(kept["file"].to_pylist())]
    assert [row for row in found.to_pylist() if row["file"] not in left] == untouched


@pytest.mark.parametrize(
    "how", ["damaged", "cut", "of other entries", "of other settings", "of another shard", "missing", "no part at all"]
)
def test_of_a_part_that_is_not_what_it_should_be_nothing_is_kept(table: Folder, how: str, tmp_path: Path) -> None:
    """Whatever is wrong with a part, its shard is done whole."""
    path = tmp_path / "part-000000.parquet"
    data = path.read_bytes()
    if how == "damaged":
        path.write_bytes(data[:20] + b"\xff" * 60 + data[80:])
    elif how == "cut":
        path.write_bytes(data[:-5])
    elif how == "missing":
        path.unlink()
    elif how == "no part at all":
        path.write_text("rows")
    else:
        of = "0" * 32 if how == "of other entries" else digest(BEFORE)
        settings = FeatureSettings(n_mfcc=2, n_mels=64) if how == "of other settings" else INFO.feature_settings
        info = TableInfo(schema.FEATURES, "/archive", settings, INFO.segments)
        parts.publish_part(table, info, 1 if how == "of another shard" else 0, of, PART)
        if how == "of another shard":
            path.write_bytes((tmp_path / "part-000001.parquet").read_bytes())
    kept, todo = carry_over(table, INFO, 0, BEFORE, {digest(BEFORE): BEFORE}, NOTHING)
    assert kept.num_rows == 0
    assert todo.equals(BEFORE)
