"""Tests of `query`: what it sees, what it does not, how it answers."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import running
from support.review_tables import write_table
from support.servers import SECRET_KEY, Bucket

import emotion_batch
from benchmarks.generated import HOSTILE, write_label_table
from emotion_batch.analysis.query import EXAMPLES
from emotion_batch.cli import app
from emotion_batch.errors import IncompleteError, StorageError, UsageError
from emotion_batch.progress import Watcher
from emotion_batch.settings import Segments, VoicesSettings
from emotion_batch.tables.schema import FEATURES, TableInfo


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label table of some 20,000 rows in windows, hostile names among them."""
    table = tmp_path_factory.mktemp("made") / "table"
    write_label_table(table, 20_000, n_windows=25)
    return table


def test_a_query_is_answered_as_duckdb_answers_it(labels: Path) -> None:
    """The examples, of the view, are what DuckDB gives of the folder's files; the first of them adds up."""
    for name, (_, sql) in EXAMPLES.items():
        with duckdb.connect() as connection:
            connection.execute(f"CREATE VIEW labels AS FROM '{labels}/*.parquet'")
            assert (
                emotion_batch.query(labels, example=name).to_pylist()
                == connection.sql(sql).to_arrow_table().to_pylist()
            )
    assert sum(row["n"] for row in emotion_batch.query(labels, example="mix").to_pylist()) == 84
    assert sum(row["n"] for row in emotion_batch.query(labels, example="failed").to_pylist()) == 5
    # PIVOT is several statements by itself.
    assert emotion_batch.query(labels, "PIVOT (SELECT status FROM labels) ON status USING count(*)").num_rows == 1


def test_a_query_prints_nothing_by_itself(labels: Path) -> None:
    """DuckDB's own progress bar, which it prints to stdout in queries of some seconds, is off."""
    sql = "SELECT current_setting('enable_progress_bar') AS is_shown"
    assert emotion_batch.query(labels, sql).to_pylist() == [{"is_shown": False}]


def test_labels_are_joined_with_their_features(labels: Path, features: Path) -> None:
    """A feature table is `features`, and is beside the labels that were made from it."""
    assert emotion_batch.query(features, "SELECT count(*) AS n FROM features").to_pylist() == [{"n": 89}]
    joined = emotion_batch.query(
        labels,
        "SELECT len(mfcc) AS n, emotion FROM labels JOIN features USING (file, start_s) WHERE emotion IS NOT NULL",
    )
    assert (joined.num_rows, set(joined["n"].to_pylist())) == (84, {40})
    with pytest.raises(UsageError, match=r"example mix: it is about labels, and .* is a feature table"):
        emotion_batch.query(features, example="mix")


def test_features_by_frame_are_lists(tmp_path: Path) -> None:
    """Bands of fixed size in lists of frames are lists of lists in a query."""
    info = TableInfo(FEATURES, "/archive", VoicesSettings(), Segments())
    n_bands = info.schema.field("logmel").type.value_type.list_size
    frames = {"logmel": [[-128] * n_bands] * 3, "f0_hz": [100.0] * 3, "voicing": [1.0, 0.25, 0.0]}
    rows = [
        {"start_s": 0.0, "end_s": 3.0, "status": "ok", **frames},
        {"start_s": 0.0, "status": "empty", "error": "no bytes"},
    ]
    columns = {name: [row.get(name) for row in rows] for name in info.schema.names}
    table = pa.table({**columns, "file": ["a.wav", "b.wav"]}, schema=info.schema)
    write_table(tmp_path / "table", ["a.wav", "b.wav"], info, rows=table)
    sql = "SELECT file, list_sum(logmel[1]) AS sum, voicing FROM features WHERE logmel IS NOT NULL"
    assert emotion_batch.query(tmp_path / "table", sql).to_pylist() == [
        {"file": "a.wav", "sum": -128 * n_bands, "voicing": [1.0, 0.25, 0.0]}
    ]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "FROM read_text('/etc/hostname')",
            "a query sees only the table, and no other file, no network and no extension",
        ),
        ("FROM glob('/*')", "a query sees only the table, and no other file"),
        ("FROM '{table}/_table/table.json'", "a query sees only the table, and no other file"),
        ("FROM '{table}/mine.parquet'", "a query sees only the table, and no other file"),
        ("FROM 'https://localhost:1/x.parquet'", "a query sees only the table, and no other file"),
        ("FROM query('FROM read_csv(''/etc/passwd'')')", "a query sees only the table, and no other file"),
        ("COPY labels TO '{table}/x.csv'", "SQL must be one SELECT, FROM, PIVOT, DESCRIBE or SUMMARIZE: COPY"),
        ("EXPLAIN ANALYZE COPY labels TO '{table}/x.csv'", "SUMMARIZE: EXPLAIN"),
        ("ATTACH '{table}/x.db'", "SUMMARIZE: ATTACH"),
        ("INSTALL httpfs", "SUMMARIZE: LOAD"),
        ("LOAD httpfs", "SUMMARIZE: LOAD"),
        ("SET enable_external_access = true", "SUMMARIZE: SET"),
        ("DROP VIEW labels", "SUMMARIZE: DROP"),
        ("FROM labels; FROM labels", "SUMMARIZE: 2 statements"),
        ("-- nothing", "SUMMARIZE: 0 statements"),
        ("SELECT emotio FROM labels", 'Referenced column "emotio" not found'),
        ("SELEC 1", "syntax error at or near"),
        ("FROM features", "Table with name features does not exist"),
        ("FROM secret", "Table with name secret does not exist"),
    ],
)
def test_a_query_only_reads_and_only_the_table(made: Path, tmp_path: Path, sql: str, said: str) -> None:
    """What reaches for anything else, or is no query, is refused in one sentence, and nothing is written."""
    table = tmp_path / "table"
    shutil.copytree(made, table)
    shutil.copyfile(table / "part-000000.parquet", table / "mine.parquet")
    before = sorted(os.listdir(table))
    secret = pq.read_table(made / "part-000000.parquet")
    with pytest.raises(UsageError) as caught:
        emotion_batch.query(table, sql.format(table=table))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(table)) == before
    assert secret.num_rows


def test_only_parts_that_verify_count(made: Path, tmp_path: Path) -> None:
    """A half-written part, a foreign one and one that is missing are no rows of the table, and are said."""
    table = tmp_path / "a [1]*?"
    shutil.copytree(made, table)
    n_rows = emotion_batch.query(table, "SELECT count(*) AS n FROM labels")["n"][0].as_py()
    parts = sorted(table.glob("*.parquet"))
    lost = sum(pq.read_metadata(part).num_rows for part in parts[:2])
    shutil.copyfile(parts[2], table / "mine.parquet")
    parts[0].write_bytes(parts[0].read_bytes()[:-100])
    parts[1].unlink()
    notes: list[str] = []
    found = emotion_batch.query(table, "SELECT count(*) AS n FROM labels", watcher=Watcher(on_note=notes.append))
    assert found["n"][0].as_py() == n_rows - lost
    assert [note.split(": ", 1)[1].split(";")[0] for note in notes] == [
        f"{len(parts) - 2} of its {len(parts)} parts count, and the others are missing, damaged or out of date",
        "mine.parquet is in its folder and is not a part of it, so it does not count",
    ]
    for part in table.glob("*.parquet"):
        part.unlink()
    assert emotion_batch.query(table, "FROM labels").num_rows == 0
    with pytest.raises(UsageError, match="there is no table; check the name"):
        emotion_batch.query(tmp_path, "FROM labels")


def test_damage_within_a_part_is_said(made: Path, tmp_path: Path) -> None:
    """A part whose footer is right and whose rows are not is one sentence, and no answer."""
    shutil.copytree(made, tmp_path / "table")
    part = tmp_path / "table" / "part-000001.parquet"
    data = bytearray(part.read_bytes())
    data[4:2_000] = bytes(1_996)
    part.write_bytes(data)
    with pytest.raises(IncompleteError, match=r"its part part-000001.parquet cannot be read .* names what is damaged"):
        emotion_batch.query(tmp_path / "table", "SELECT max(file) FROM labels")
    # A single bit, which nothing but the page's checksum tells of.
    part.write_bytes(flipped(made / part.name, "file"))
    for rows in ("labels", "labels WHERE status = 'ok'"):
        with pytest.raises(
            IncompleteError, match=r"part-000001.parquet cannot be read .*checksum.* names what is damaged"
        ):
            emotion_batch.query(tmp_path / "table", f"SELECT max(file) FROM {rows}")


def flipped(part: Path, column: str) -> bytes:
    """Return a part in which one bit of a column's values is the other one."""
    group = pq.read_metadata(part).row_group(0)
    [chunk] = [one for one in map(group.column, range(group.num_columns)) if one.path_in_schema == column]
    data = bytearray(part.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    return bytes(data)


def test_formats(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same rows as a table, CSV, JSON and Parquet, on stdout or in a file; a hostile name is text in each."""
    sql = "SELECT file, start_s, emotion, confidence, [1, 2] AS list FROM labels WHERE file NOT LIKE '2026%' AND start_s = 0"
    answer = emotion_batch.query(made, sql).to_pylist()
    assert sorted(row["file"] for row in answer) == sorted(HOSTILE)

    def ask(*arguments: object, code: int = 0) -> str:
        # In this process, for a start is most of what a query takes.
        assert app.run_command(["query", *map(str, arguments)]) == code
        return capfd.readouterr().out

    shown = ask(made, sql)
    assert len(shown.splitlines()) == 2 + len(HOSTILE)
    assert r"two\nlines\x1b[31m.wav" in shown
    assert "\x1b" not in shown
    told = json.loads(ask(made, sql, "--json"))
    assert told == json.loads(ask(made, sql, "--format", "json"))
    assert [(row["file"], row["list"]) for row in told] == [(row["file"], [1, 2]) for row in answer]
    assert told[0]["confidence"] == pytest.approx(answer[0]["confidence"], rel=1e-6)
    rows = list(csv.DictReader(io.StringIO(ask(made, sql, "--format", "csv"))))
    assert [(row["file"], json.loads(row["list"])) for row in rows] == [(row["file"], [1, 2]) for row in answer]
    file = tmp_path / "answer.parquet"
    ask(made, sql, "--output", file)
    assert pq.read_table(file).to_pylist() == answer
    # It fails after some rows.
    ask(made, "SELECT if(start_s < 70, file, error('no')) FROM labels", "--output", file, code=2)
    assert pq.read_table(file).to_pylist() == answer
    assert os.listdir(tmp_path) == ["answer.parquet"]
    ask(made, sql, "--format", "parquet", code=2)
    listed = ask("--example")
    assert all(f"  {name} " in listed for name in EXAMPLES)


def test_a_reader_that_leaves_ends_the_query(made: Path) -> None:
    """`| head` gets its lines, and nothing is said."""
    with running("query", made, "FROM labels", "--format", "csv") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b'"file",')
        process.stdout.close()
        process.stdout = None
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.torture)]
)
def test_a_long_query_is_stopped(made: Path, stop: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end a query that would take hours, in one sentence."""
    endless = "SELECT count(*) FROM range(100000000) a, range(1000) b WHERE hash(a.range) % 7 = b.range % 5"
    with running("query", made, endless) as process:
        time.sleep(4)
        assert process.poll() is None
        process.send_signal(stop)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 128 + stop
    assert (out, err) == (b"", b"emotion-batch: stopped\n")


def test_a_table_in_a_bucket(made: Path, s3: Bucket) -> None:
    """A bucket's table is read as one on a disk; what its store refuses is a sentence without a key."""
    s3.upload(made, "query/table")
    url = f"{s3.url}/query/table"
    sql = "SELECT emotion, count(*) AS n, max(p_sad) AS p FROM labels GROUP BY emotion ORDER BY emotion"
    assert emotion_batch.query(url, sql, storage_options=s3.options).equals(emotion_batch.query(made, sql))
    wrong = {**s3.options, "secret": "not-the-secret"}
    with pytest.raises(StorageError) as caught:
        emotion_batch.query(url, sql, storage_options=wrong)
    assert "not-the-secret" not in str(caught.value)
    assert SECRET_KEY not in str(caught.value)
