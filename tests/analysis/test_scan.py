"""Tests of the one pass over a table's rows, against pandas."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.damage import seal_part

from benchmarks.generated import HOSTILE, write_label_table
from emotion_batch.analysis.scan import N_BINS, Survey, survey
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.table import require_table


@pytest.fixture(scope="module", params=[1, 6], ids=["one segment", "windows"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated label table of 3,000 rows in 200 folders, some of whose names are hostile."""
    folder = tmp_path_factory.mktemp("generated") / "table"
    write_label_table(folder, 3_000, n_windows=request.param)
    return folder


def look(table: Path, **options: int) -> Survey:
    place = Folder.of(table)
    return survey(place, require_table(place), Manifest(place).shards, **options)


def rows_of(table: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part) for part in sorted(table.glob("*.parquet"))])


def test_cells_are_what_pandas_counts(table: Path) -> None:
    """Rows by status, label and bin of confidence, and the sums of their confidence, are those of pandas."""
    rows, found = rows_of(table), look(table)
    assert found.n_recordings == rows["file"].nunique()
    assert found.n_labelled == rows[rows["status"] == "ok"]["file"].nunique()
    statuses: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    bins = np.zeros(N_BINS, int)
    for cell in found.cells:
        statuses[cell.status] += cell.n
        if cell.emotion is not None:
            labels[cell.emotion] += cell.n
            bins[cell.bin_number] += cell.n
    assert statuses == rows["status"].value_counts().to_dict()
    assert labels == rows["emotion"].value_counts().to_dict()
    confidence = rows["confidence"].dropna().to_numpy()
    # Open below and closed above; of float32, whose steps are finer than a bin's edge is from a value.
    assert bins.tolist() == np.histogram(-confidence, -np.linspace(0, 1, N_BINS + 1)[::-1])[0][::-1].tolist()
    confident = [cell for cell in found.cells if cell.is_confident]
    is_confident = rows["is_confident"].fillna(False).astype(bool)
    assert sum(cell.n for cell in confident) == is_confident.sum()
    assert sum(cell.total for cell in confident) == pytest.approx(rows[is_confident]["confidence"].sum(), rel=1e-5)
    outside = sum(cell.n for cell in found.cells if cell.is_in_domain is False)
    assert outside == (~rows["is_in_domain"].dropna().astype(bool)).sum()


def test_folders_are_what_pandas_counts(table: Path) -> None:
    """Each folder's rows, failures and labels are counted, and how much a label varies over them."""
    rows, found = rows_of(table), look(table)
    rows["folder"] = rows["file"].str.rpartition("/")[0]
    expected = rows.groupby(["folder", "status", "emotion"], dropna=False).size()
    assert sum(one.n for one in found.folders) == len(rows)
    assert found.n_folders == rows["folder"].nunique()
    for label in ("angry", "sad"):
        ok = rows[rows["status"] == "ok"]
        of_all = ok.groupby("folder").size()
        of_label = ok[ok["emotion"] == label].groupby("folder").size().reindex(of_all.index, fill_value=0)
        cluster = found.clusters[label]
        assert cluster.n_folders == len(of_all)
        assert (cluster.of_label, cluster.of_both, cluster.of_all) == (
            (of_label**2).sum(),
            (of_label * of_all).sum(),
            (of_all**2).sum(),
        )
    for one in found.folders[:40]:
        if one.is_ok:
            assert one.n == expected[one.name, "ok", one.emotion]


def test_windows_are_counted_over_time(table: Path) -> None:
    """The rows of each window number and label are counted, of a table with windows and of no other."""
    rows, found = rows_of(table), look(table)
    if rows["start_s"].nunique() == 1:
        assert found.times == ()
        return
    ok = rows[rows["status"] == "ok"]
    expected = ok.groupby([(ok["start_s"] / 3).astype(int), "emotion"]).size().to_dict()
    assert {(number, label): n for number, label, n in found.times} == expected


def test_lots_follow_from_the_seed(table: Path) -> None:
    """The same seed draws the same rows, another others; of each label and stratum as many, each of it."""
    first, again, other = (look(table, seed=seed) for seed in (0, 0, 1))
    assert first.drawn == again.drawn != other.drawn
    assert first.failed == again.failed
    counts = Counter((one.emotion, one.stratum) for one in first.drawn)
    assert set(counts.values()) == {4}
    assert len(counts) == 7 * 3
    rows = rows_of(table).set_index(["file", "start_s"])
    for one in first.drawn:
        row = rows.loc[(one.file, one.start_s)]
        assert (row["emotion"], row["end_s"]) == (one.emotion, one.end_s)
        stratum = "outside" if not row["is_in_domain"] else "confident" if row["is_confident"] else "unsure"
        assert stratum == one.stratum
    for one in first.failed:
        assert rows.loc[(one.file, one.start_s)]["status"] == one.stratum != "ok"


def test_only_complete_parts_count(table: Path, tmp_path: Path) -> None:
    """A part that is gone, cut, of other entries or under another's name adds nothing, and the rest counts."""
    shutil.copytree(table, tmp_path / "table")
    parts = sorted((tmp_path / "table").glob("*.parquet"))
    gone, cut, strange, doubled = parts[:4]
    left = pd.concat([pd.read_parquet(part) for part in parts[4:]])
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-50])
    rows = pq.read_table(strange)
    about = dict(pq.ParquetFile(strange).metadata.metadata)
    about[b"emotion_batch"] = about[b"emotion_batch"].replace(b'"digest": "', b'"digest": "0')
    pq.write_table(rows.replace_schema_metadata(about), strange)
    seal_part(strange)
    doubled.write_bytes(parts[5].read_bytes())
    (tmp_path / "table" / "copy.parquet").write_bytes(parts[5].read_bytes())
    found = look(tmp_path / "table")
    assert found.complete == set(range(4, len(parts)))
    assert sum(cell.n for cell in found.cells) == len(left)


def test_a_table_without_parts_has_nothing(tmp_path: Path) -> None:
    """A table whose first part is not there yet is surveyed too, and has no rows."""
    write_label_table(tmp_path / "table", 20)
    for part in (tmp_path / "table").glob("*.parquet"):
        part.unlink()
    found = look(tmp_path / "table")
    assert (found.complete, found.n_recordings, found.cells, found.drawn, found.times) == (frozenset(), 0, (), (), ())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["a.wav", "b.wav"], {""}, id="no folders"),
        pytest.param(["x/a.wav", "y/b.wav", "c.wav"], {"", "x", "y"}, id="one level"),
        pytest.param([f"2026/11/{day:02d}/a.wav" for day in range(1, 31)], None, id="a month"),
        pytest.param(
            [f"2026/{month}/{day}/a.wav" for month in "ab" for day in range(20)], {"2026/a", "2026/b"}, id="two"
        ),
    ],
)
def test_the_level_is_one_that_can_be_shown(names: list[str], expected: set[str] | None) -> None:
    """Folders are told apart as deep as they can all be shown, or else at the first level that has several."""
    from emotion_batch.analysis.scan import _AT_LEVEL, _FOLDERS, _LEVELS, _choose_level

    with duckdb.connect() as connection:
        rows = pd.DataFrame({"file": names, "status": "ok", "emotion": "sad", "is_in_domain": True})
        connection.register("chunk", rows)
        connection.execute(f"CREATE TABLE folders AS {_FOLDERS}")
        levels = connection.execute(_LEVELS, {"deepest": 8}).fetchall()
        level, n = _choose_level(levels, 24)
        found = {row[0] for row in connection.execute(_AT_LEVEL, {"level": level, "most": 100}).fetchall()}
    assert len(found) == n
    assert found == (expected or {name.rpartition("/")[0] for name in names})


def test_hostile_names_are_counted(table: Path) -> None:
    """Names with markup, quotes and newlines are recordings as all others."""
    names = set(rows_of(table)["file"])
    assert set(HOSTILE) <= names
    assert look(table).n_recordings == len(names)
