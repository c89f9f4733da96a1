"""Tests of the one pass over a table's rows, against pandas."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.damage import seal_part
from support.review_tables import figures_of

from benchmarks.generated import HOSTILE, write_label_table
from emotion_batch.analysis import statistics
from emotion_batch.analysis.scan import N_BINS, Survey, survey
from emotion_batch.analysis.statistics import Figures
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.table import require_table


@pytest.fixture(scope="module", params=[1, 6], ids=["one segment", "windows"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated label table of 3,000 rows in 200 folders, some of whose names are hostile."""
    folder = tmp_path_factory.mktemp("generated") / "table"
    write_label_table(folder, 3_000, n_windows=request.param)
    return folder


@contextmanager
def look(table: Path) -> Iterator[Survey]:
    place = Folder.of(table)
    with survey(place, require_table(place), Manifest(place).shards) as seen:
        yield seen


def count(seen: Survey, sql: str) -> int:
    ((n,),) = seen.ask(sql)
    return int(n or 0)


def rows_of(table: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part) for part in sorted(table.glob("*.parquet"))])


def test_cells_are_what_pandas_counts(table: Path) -> None:
    """Rows by status, label and bin of confidence, and the sums of their confidence, are those of pandas."""
    rows = rows_of(table)
    confidence = rows["confidence"].dropna().to_numpy()
    is_confident = rows["is_confident"].fillna(False).astype(bool)
    with look(table) as found:
        assert found.n_recordings == rows["file"].nunique()
        assert found.n_labelled == rows[rows["status"] == "ok"]["file"].nunique()
        for name in ("status", "emotion"):
            counts = dict(found.ask(f"SELECT {name}, sum(n) FROM cells WHERE {name} IS NOT NULL GROUP BY {name}"))
            assert counts == rows[name].value_counts().to_dict()
        bins = dict(found.ask("SELECT bin, sum(n) FROM cells WHERE emotion IS NOT NULL GROUP BY bin"))
        # Open below and closed above; of float32, whose steps are finer than a bin's edge is from a value.
        expected = np.histogram(-confidence, -np.linspace(0, 1, N_BINS + 1)[::-1])[0][::-1].tolist()
        assert [bins.get(number, 0) for number in range(N_BINS)] == expected
        assert count(found, "SELECT sum(n) FROM cells WHERE is_confident") == is_confident.sum()
        ((total,),) = found.ask("SELECT sum(total) FROM cells WHERE is_confident")
        assert total == pytest.approx(rows[is_confident]["confidence"].sum(), rel=1e-5)
        outside = count(found, "SELECT sum(n) FROM cells WHERE NOT is_in_domain")
        assert outside == (~rows["is_in_domain"].dropna().astype(bool)).sum()


def test_figures_are_what_pandas_counts(table: Path) -> None:
    """What the report shows of labels, confidence, failures and time is what pandas counts of the rows."""
    rows, found = rows_of(table), figures_of(table)
    ok = rows[rows["status"] == "ok"]
    for one in found.labels:
        mine = ok[ok["emotion"] == one.label]
        assert (one.n_rows, one.share) == (len(mine), len(mine) / len(ok))
        assert one.confidence == pytest.approx(mine["confidence"].mean(), rel=1e-5)
        sums = (
            mine["is_confident"].sum(),
            (~mine["is_in_domain"].astype(bool)).sum(),
            (~mine["is_speech"].astype(bool)).sum(),
        )
        assert (one.n_confident, one.n_outside, one.n_silent) == sums
    confident = ok["is_confident"].astype(bool)
    assert (found.n_confident, sum(found.confident_bins)) == (confident.sum(), confident.sum())
    for bins, some in ((found.confident_bins, ok[confident]), (found.other_bins, ok[~confident])):
        edges = -np.linspace(0, 1, N_BINS + 1)[::-1]
        assert list(bins) == np.histogram(-some["confidence"].to_numpy(), edges)[0][::-1].tolist()
    failed = rows[rows["status"] != "ok"]["status"].value_counts().to_dict()
    assert {one.status: one.n_rows for one in found.failures} == failed
    assert [one.n_rows for one in found.failures] == sorted(failed.values(), reverse=True)
    if rows["start_s"].nunique() == 1:
        assert found.moments == ()
    for one in found.moments:
        mine = ok[(ok["start_s"] >= one.start_s) & (ok["start_s"] < one.stop_s)]["emotion"].value_counts()
        assert one.by_label == tuple(mine.get(label, 0) for label in found.info.labels)


def test_folders_are_what_pandas_counts(table: Path) -> None:
    """Each folder's rows, failures and labels are counted, their distance from the whole, and how much a label varies over them."""
    rows, found = rows_of(table), figures_of(table)
    rows["folder"] = rows["file"].str.rpartition("/")[0]
    rows["kind"] = rows["emotion"].fillna("failed")
    expected = rows.groupby(["folder", "kind"]).size().unstack(fill_value=0)
    shares = expected.sum() / len(rows)
    assert found.n_folders == rows["folder"].nunique() == len(found.columns)
    assert [one.name for one in found.columns] == sorted(expected.index)
    for one in found.columns:
        mine = expected.loc[one.name]
        assert (one.n_rows, one.n_failed) == (mine.sum(), mine["failed"])
        assert one.by_label == tuple(mine[label] for label in found.info.labels)
        assert one.distance == pytest.approx(((mine - mine.sum() * shares) ** 2 / (mine.sum() * shares)).sum())
        outside = rows[rows["folder"] == one.name]["is_in_domain"].dropna().astype(bool)
        assert one.n_outside == (~outside).sum()
    with look(table) as seen:
        clusters = {emotion: spread for emotion, *spread in seen.ask(statistics._SQL["clusters"])}
    ok = rows[rows["status"] == "ok"]
    of_all = ok.groupby("folder").size()
    for label in ("angry", "sad"):
        of_label = ok[ok["emotion"] == label].groupby("folder").size().reindex(of_all.index, fill_value=0)
        squares = [(of_label**2).sum(), (of_label * of_all).sum(), (of_all**2).sum()]
        assert clusters[label] == [len(of_all), *squares]


def test_windows_are_counted_over_time(table: Path) -> None:
    """The rows of each window number and label are counted, of a table with windows and of no other."""
    rows = rows_of(table)
    with look(table) as found:
        names = [name for (name,) in found.ask("SELECT table_name FROM duckdb_tables()")]
        if rows["start_s"].nunique() == 1:
            assert "times" not in names
            return
        times = found.ask("SELECT window_number, emotion, sum(n) FROM times GROUP BY ALL")
    ok = rows[rows["status"] == "ok"]
    expected = ok.groupby([(ok["start_s"] / 3).astype(int), "emotion"]).size().to_dict()
    assert {(number, label): n for number, label, n in times} == expected


def test_lots_follow_from_the_seed(table: Path) -> None:
    """The same seed draws the same rows, another others; of each label and stratum as many, each of it."""
    first, again, other = (figures_of(table, seed=seed) for seed in (0, 0, 1))
    assert first.drawn == again.drawn != other.drawn
    assert first.failures == again.failures
    counts = Counter((one.emotion, one.stratum) for one in first.drawn)
    assert set(counts.values()) == {4}
    assert len(counts) == 7 * 3
    rows = rows_of(table).set_index(["file", "start_s"])
    for one in first.drawn:
        row = rows.loc[(one.file, one.start_s)]
        assert (row["emotion"], row["end_s"]) == (one.emotion, one.end_s)
        stratum = "outside" if not row["is_in_domain"] else "confident" if row["is_confident"] else "unsure"
        assert stratum == one.stratum
    for failure in first.failures:
        assert len(failure.examples) == min(5, failure.n_rows)
        for one in failure.examples:
            assert rows.loc[(one.file, one.start_s)]["status"] == one.stratum == failure.status != "ok"


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
    with look(tmp_path / "table") as found:
        assert found.complete == set(range(4, len(parts)))
        assert count(found, "SELECT sum(n) FROM cells") == len(left)


@pytest.mark.parametrize("n_windows", [1, 6])
def test_a_table_without_parts_has_nothing(tmp_path: Path, n_windows: int) -> None:
    """A table whose first part is not there yet is surveyed too, and has no rows."""
    write_label_table(tmp_path / "table", 20 * n_windows, n_windows=n_windows)
    for part in (tmp_path / "table").glob("*.parquet"):
        part.unlink()
    found: Figures = figures_of(tmp_path / "table")
    assert (found.coverage.n_complete, found.coverage.n_surveyed, found.coverage.n_rows) == (0, 0, 0)
    assert (found.failures, found.drawn, found.moments, found.folders, found.columns) == ((), (), (), (), ())
    assert [(one.n_rows, one.low, one.high, one.confidence) for one in found.labels] == 7 * [(0, 0.0, 1.0, None)]
    assert (found.n_confident, found.n_outside, found.n_silent, found.n_folders, found.n_clusters) == (
        0,
        None,
        None,
        0,
        None,
    )
    assert found.confident_bins == found.other_bins == (0,) * N_BINS


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["a.wav", "b.wav"], {""}, id="no folders"),
        pytest.param(["x/a.wav", "y/b.wav", "c.wav"], {"", "x", "y"}, id="one level"),
        pytest.param([f"2026/11/{day:02d}/a.wav" for day in range(1, 31)], None, id="a month"),
        pytest.param(
            [f"2026/{month}/{day}/a.wav" for month in "ab" for day in range(20)], {"2026/a", "2026/b"}, id="two"
        ),
        pytest.param(
            [f"calls/2026-{month:02d}-{day:02d}/a.wav" for month in (1, 2) for day in range(1, 29)],
            {"calls/2026/01", "calls/2026/02"},
            id="dates",
        ),
    ],
)
def test_the_level_is_one_that_can_be_shown(names: list[str], expected: set[str] | None) -> None:
    """Folders are told apart as deep as they can all be shown, or else at the first level that has several."""
    from emotion_batch.analysis.scan import read_queries
    from emotion_batch.analysis.statistics import _SQL, _choose_level

    with duckdb.connect() as connection:
        rows = pd.DataFrame({"file": names, "status": "ok", "emotion": "sad", "is_in_domain": True})
        connection.register("chunk", rows)
        connection.execute(f"CREATE TABLE folders AS {read_queries('survey')['folders']}")
        levels = connection.execute(_SQL["levels"], {"deepest": 8}).fetchall()
        level, n = _choose_level(levels)
        at_level = _SQL["at_level"].format(by_label="[]")
        found = {row[0] for row in connection.execute(at_level, {"level": level, "most": 100}).fetchall()}
    assert len(found) == n
    assert found == (expected or {name.rpartition("/")[0] for name in names})


def test_hostile_names_are_counted(table: Path) -> None:
    """Names with markup, quotes and newlines are recordings as all others; DuckDB prints no progress meanwhile."""
    names = set(rows_of(table)["file"])
    assert set(HOSTILE) <= names
    with look(table) as found:
        assert found.ask("SELECT current_setting('enable_progress_bar')") == [(False,)]
        assert found.n_recordings == len(names)
