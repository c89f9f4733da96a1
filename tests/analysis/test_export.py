"""Tests of `export`: what is written, and that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import audformat
import dask.dataframe
import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import run_command, running
from support.servers import Bucket
from support.tables import local_rows, read

import emotion_batch
from benchmarks.generated import write_label_table
from emotion_batch.analysis import export, formats
from emotion_batch.cli import app
from emotion_batch.errors import IncompleteError, UsageError
from emotion_batch.storage.folder import Folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label table of some 60,000 rows in windows, hostile names among them."""
    table = tmp_path_factory.mktemp("made") / "table"
    write_label_table(table, 60_000, n_windows=25)
    return table


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "table")
    return tmp_path / "table"


def test_parquet_is_few_large_files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows in the table's order, in files and row groups of the sizes promised; any tool reads the folder as it is."""
    rows = local_rows(made)
    found = emotion_batch.export(made, tmp_path / "one")
    assert (found.n_rows, found.n_files) == (rows.num_rows, 1)
    assert local_rows(tmp_path / "one").equals(rows)
    assert pq.read_metadata(tmp_path / "one" / "labels-00001.parquet").num_row_groups == 1
    # As it is of millions.
    monkeypatch.setattr(export, "_FILE_ROWS", 25_000)
    monkeypatch.setattr(formats, "GROUP_ROWS", 6_000)
    found = emotion_batch.export(made, tmp_path / "more")
    files = sorted((tmp_path / "more").iterdir())
    assert [file.name for file in files] == [f"labels-{number:05d}.parquet" for number in (1, 2, 3)]
    assert found.n_bytes == sum(file.stat().st_size for file in files)
    for file in files:
        metadata = pq.read_metadata(file)
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        assert len(sizes) > 1 and min(sizes) >= 6_000
        assert metadata.row_group(0).column(0).compression == "ZSTD"
        about = json.loads(metadata.metadata[b"emotion_batch_export"])
        assert (about["model_id"], about["n_rows"]) == ("0123456789abcdef", rows.num_rows)
    assert local_rows(tmp_path / "more").equals(rows)
    with duckdb.connect() as connection:
        assert connection.sql(f"SELECT count(*) FROM '{tmp_path}/more/*.parquet'").fetchall() == [(rows.num_rows,)]
    assert polars.read_parquet(tmp_path / "more").height == rows.num_rows
    assert len(dask.dataframe.read_parquet(tmp_path / "more")) == rows.num_rows
    assert pq.read_table(tmp_path / "more").num_rows == rows.num_rows


def test_large_rows_make_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are large are not kept until they are a hundred thousand."""
    monkeypatch.setattr(formats, "GROUP_BYTES", 100_000)
    sink = pa.BufferOutputStream()
    rows = pa.table({"row": [[float(number)] * 1_000 for number in range(100)]})
    writer = formats.ParquetWriter(sink, rows.schema)
    for number in range(100):
        writer.write(rows.slice(number, 1))
    writer.close()
    file = pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert len(sizes) > 4 and min(sizes) >= 100_000 // 8_008
    assert file.read().equals(rows)


def test_csv_holds_labels_and_features(labels: Path, features: Path, made: Path, tmp_path: Path) -> None:
    """One file with a header, CRLF at the ends of lines, hostile names whole, features as JSON lists."""
    for table, name in ((labels, "labels"), (features, "features"), (made, "labels")):
        folder = tmp_path / table.name / "csv"
        emotion_batch.export(table, folder, file_format="csv")
        assert [file.name for file in folder.iterdir()] == [f"{name}.csv"]
        assert (folder / f"{name}.csv").read_bytes().count(b"\r\n") == local_rows(table).num_rows + 1
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
            found = list(csv.DictReader(stream))
        expected = local_rows(table).to_pylist()
        assert [row["file"] for row in found] == [row["file"] for row in expected]
        if name == "features":
            told = [json.loads(row["mfcc"]) if row["mfcc"] else None for row in found]
            assert told == [row["mfcc"] and pytest.approx(row["mfcc"], rel=1e-6) for row in expected]
        else:
            told, there = (np.array([float(row["confidence"] or np.nan) for row in rows]) for rows in (found, expected))
            np.testing.assert_allclose(told, there, rtol=1e-6, atol=0)


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_a_file_is_a_single_file(file_format: str, made: Path, tmp_path: Path, s3: Bucket) -> None:
    """A name that ends as its format is a file with what the folder would hold; it is replaced only by --force, also in a bucket."""
    target, folder = tmp_path / f"all.{file_format}", tmp_path / "folder"
    # The suffix says the format by itself.
    found = emotion_batch.export(made, target)
    assert (found.folder, found.file_format, found.n_files) == (str(target), file_format, 1)
    assert found.n_bytes == target.stat().st_size
    emotion_batch.export(made, folder, file_format=file_format)
    if file_format == "csv":
        assert target.read_bytes() == (folder / "labels.csv").read_bytes()
    else:
        assert pq.read_table(target).equals(pq.read_table(folder))
        assert pq.read_schema(target).metadata == pq.read_schema(folder / "labels-00001.parquet").metadata
    for place, options in ((target, None), (f"{s3.url}/single-{file_format}/all.{file_format}", s3.options)):
        emotion_batch.export(made, place, file_format=file_format, force=True, storage_options=options)
        with pytest.raises(UsageError, match=r"it exists already; name another, or use --force to replace it"):
            emotion_batch.export(made, place, file_format=file_format, storage_options=options)
    assert list(s3.read(f"single-{file_format}").values()) == [target.read_bytes()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([target.name, "folder"])
    # What is a folder already stays one.
    place = tmp_path / f"folder.{file_format}"
    place.mkdir()
    assert emotion_batch.export(made, place, file_format=file_format).n_files == len(list(place.iterdir())) == 1
    assert place.is_dir()


def test_audformat_reads_its_database(labels: Path, features: Path, made: Path, tmp_path: Path) -> None:
    """Audformat's own package has each segment with its emotion, of the schemes' types, and saves it again as it is."""
    for table in (labels, made):
        folder = tmp_path / table.name / "database"
        assert emotion_batch.export(table, folder, file_format="audformat").n_files == 2
        database = audformat.Database.load(folder)
        expected = local_rows(table)
        assert database.schemes["emotion"].labels == [
            name[2:] for name in expected.column_names if name.startswith("p_")
        ]
        frame = database["emotion"].get()
        assert audformat.is_segmented_index(frame)
        assert frame.index.get_level_values("file").tolist() == expected["file"].to_pylist()
        for level, name in (("start", "start_s"), ("end", "end_s")):
            # What is missing is not a number on both sides.
            seconds = frame.index.get_level_values(level).total_seconds().to_numpy()
            np.testing.assert_allclose(seconds, expected[name].to_numpy(), rtol=0, atol=1e-9)
        assert (
            frame["emotion"].astype(object).where(frame["emotion"].notna(), None).tolist()
            == expected["emotion"].to_pylist()
        )
        assert str(frame["is_confident"].dtype) == "boolean"
        assert frame["confidence"].between(0, 1).sum() == expected["confidence"].drop_null().length()
        database.save(tmp_path / table.name / "again")
        assert audformat.Database.load(tmp_path / table.name / "again") == database
    with pytest.raises(UsageError, match="it takes a label table, and this is a feature table"):
        emotion_batch.export(features, tmp_path / "features", file_format="audformat")
    assert not (tmp_path / "features").exists()


def test_a_missing_package_names_its_extra(made: Path, tmp_path: Path) -> None:
    """Without audformat the command says what to install, before it reads a row."""
    program = "import sys; sys.modules['audformat'] = None; from emotion_batch.cli.app import run_command; sys.exit(run_command(sys.argv[1:]))"
    done = run_command("export", made, tmp_path / "out", "--format", "audformat", program=("-c", program))
    assert done.code == 2
    assert "pip install 'emotion-batch[audformat]'" in done.err
    assert os.listdir(tmp_path) == []


def test_only_its_own_is_replaced(made: Path, tmp_path: Path) -> None:
    """A folder with something in it is refused; an earlier export is replaced with --force, anything else never."""
    folder = tmp_path / "out"
    folder.mkdir()
    emotion_batch.export(made, folder, file_format="csv")
    with pytest.raises(UsageError, match="it holds an export already; name another, or use --force to replace it"):
        emotion_batch.export(made, folder)
    emotion_batch.export(made, folder, force=True)
    assert os.listdir(folder) == ["labels-00001.parquet"]
    (folder / "thesis.docx").write_text("mine")
    with pytest.raises(UsageError, match=r"it holds other files than an export, e\.g\. 'thesis\.docx'"):
        emotion_batch.export(made, folder, force=True)
    assert (folder / "thesis.docx").read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(UsageError, match="it is a file; name a new or empty folder"):
        emotion_batch.export(made, folder / "thesis.docx", force=True)
    for within in (made, made / "export", made.parent):
        with pytest.raises(UsageError, match=r"it lies in the table .*, or holds it"):
            emotion_batch.export(made, within, force=True)


def test_a_table_that_is_not_complete_is_said(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts that are missing are an error; with --partial the others are exported, and nothing foreign is."""
    parts = sorted(copy.glob("*.parquet"))
    shutil.copyfile(parts[1], copy / "mine.parquet")
    parts[0].unlink()
    n_rows = sum(pq.read_metadata(part).num_rows for part in parts[1:])
    assert app.run_command(["export", str(copy), str(tmp_path / "out")]) == 1
    assert f"it is not complete: 1 of {len(parts)} parts missing, damaged or out of date" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert app.run_command(["export", str(copy), str(tmp_path / "out"), "--partial", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["n_rows"] == n_rows == local_rows(tmp_path / "out").num_rows
    assert f"{len(parts) - 1} of its {len(parts)} parts count" in said.err
    assert "mine.parquet is in its folder and is not a part of it" in said.err


def test_damage_within_a_part_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    """Rows that cannot be read end the export in one sentence, and nothing is there, under any name."""
    part = sorted(copy.glob("*.parquet"))[-1]
    data = bytearray(part.read_bytes())
    data[4:2_000] = bytes(1_996)
    part.write_bytes(data)
    with pytest.raises(IncompleteError, match=rf"{part.name}: it is damaged \(.*verify --deep"):
        emotion_batch.export(copy, tmp_path / "out", file_format="csv")
    assert os.listdir(tmp_path) == ["table"]


def _has_begun(above: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(file.stat().st_size for file in above.glob(".out.*.tmp/labels.csv"))
    return False


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_an_export_that_is_stopped_is_not_there(made: Path, tmp_path: Path, stop: signal.Signals) -> None:
    """Killed midway, nothing is under the final name, and the next export removes what was left; Ctrl-C leaves nothing."""
    folder = tmp_path / "out"
    hidden = re.compile(r"\.out\.[0-9a-f]{32}\.tmp")
    # An export may end between two looks at it.
    for _ in range(20):
        with running("export", made, folder, "--format", "csv") as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and not _has_begun(tmp_path):
                assert time.monotonic() < deadline
            process.send_signal(stop)
            process.wait(30)
        if process.returncode:
            break
        shutil.rmtree(folder)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[stop]
    left = os.listdir(tmp_path)
    assert len(left) == (1 if stop == signal.SIGKILL else 0)
    assert all(hidden.fullmatch(name) for name in left)
    # What another export is at work on is left alone; of two the one that ends last finds that it is too late.
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(export.replacing(Folder.of(folder), re.compile(r"labels\.csv")))
        emotion_batch.export(made, folder, file_format="csv")
        assert os.path.isdir(other.url)
        assert len(os.listdir(tmp_path)) == 2
        with pytest.raises(UsageError, match="it holds an export already"):
            stack.close()
    assert os.listdir(tmp_path) == ["out"]
    assert local_rows(made).num_rows + 1 == (folder / "labels.csv").read_bytes().count(b"\r\n")


def test_in_a_bucket_the_marker_comes_last(made: Path, s3: Bucket) -> None:
    """Parquet goes into a bucket, and what lies there without its marker is replaced; other formats are refused."""
    s3.upload(made, "export/table")
    url = f"{s3.url}/export/out"
    s3.write({"export/out/labels-00007.parquet": b"of one that was killed"})
    found = emotion_batch.export(f"{s3.url}/export/table", url, storage_options=s3.options)
    there = s3.read("export/out")
    assert sorted(there) == ["_SUCCESS", "labels-00001.parquet"]
    assert found.n_bytes == len(there["labels-00001.parquet"])
    assert read(there).equals(local_rows(made))
    with pytest.raises(UsageError, match="it holds an export already"):
        emotion_batch.export(made, url, storage_options=s3.options)
    emotion_batch.export(made, url, storage_options=s3.options, force=True)
    with pytest.raises(UsageError, match="csv can be written only on this machine, not to a URL"):
        emotion_batch.export(made, url, file_format="csv", storage_options=s3.options)
