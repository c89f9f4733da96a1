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
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import running
from support.review_tables import rows_of, write_table
from support.servers import SECRET_KEY, Bucket

import emotion_batch
from benchmarks.generated import HOSTILE, write_label_table
from emotion_batch.analysis.query import EXAMPLES, write_example
from emotion_batch.cli import app
from emotion_batch.errors import IncompleteError, StorageError, UsageError
from emotion_batch.progress import Watcher
from emotion_batch.settings import FeatureSettings, Segments, VoicesSettings
from emotion_batch.tables.schema import FEATURES, LABELS, TableInfo


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label table of some 20,000 rows in windows, hostile names among them."""
    table = tmp_path_factory.mktemp("made") / "table"
    write_label_table(table, 20_000, n_windows=25)
    return table


def test_a_query_is_answered_as_duckdb_answers_it(labels: Path) -> None:
    """The examples, of the view, are what DuckDB gives of the folder's files; the first of them adds up."""
    for name in EXAMPLES:
        sql = write_example(name, ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad"))
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


def summarise(rows: pd.DataFrame, labels: tuple[str, ...]) -> dict[str, object]:
    """Return what `--example recordings` says of one recording, computed row by row."""
    heard = rows[rows.status == "ok"].astype({"is_confident": bool})
    starts, ends = heard.start_s.tolist(), heard.end_s.tolist()
    seconds = [min(end, after) - start for start, end, after in zip(starts, ends, [*starts, 1e9][1:], strict=True)]
    heard = heard.assign(seconds=seconds)
    speech, sure = heard[heard.is_speech.fillna(True).astype(bool)], heard[heard.is_confident]
    runs: list[list[object]] = []
    before = None
    for one in heard.itertuples():
        if one.Index in speech.index:
            if before != one.emotion:
                runs.append([0.0, one.start_s, one.emotion])
            runs[-1][0] += one.seconds
        before = one.emotion if one.Index in speech.index else None
    longest = max(runs, key=lambda run: (run[0], -run[1]), default=[None, None, None])

    def share(some: pd.DataFrame, label: str) -> float | None:
        return some[some.emotion == label].seconds.sum() / some.seconds.sum() if len(some) else None

    found = {
        "file": rows.file.iloc[0],
        "angry_s": sure[sure.emotion == "angry"].seconds.sum(),
        "heard_s": heard.seconds.sum(),
        "speech_s": speech.seconds.sum(),
        "n_confident": len(sure),
        "first_confident_s": sure.start_s.min() if len(sure) else None,
        "last_confident_s": sure.start_s.max() if len(sure) else None,
        "longest_run": longest[2],
        "longest_run_s": longest[0],
        "longest_run_start_s": longest[1],
    }
    for label in labels:
        peaks = speech[f"p_{label}"]
        found |= {
            f"share_{label}": share(speech, label),
            f"confident_share_{label}": share(sure, label),
            f"peak_{label}": float(peaks.max()) if len(speech) else None,
            f"peak_s_{label}": speech.start_s[peaks.idxmax()] if len(speech) else None,
        }
    return found


@pytest.mark.parametrize("window_s", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("can_tell_speech", [True, False])
def test_recordings_are_summed_up(tmp_path: Path, window_s: float, can_tell_speech: bool) -> None:
    """Shares, peaks and runs are those of a plain computation: with windows that overlap or leave gaps, and labels with quotes."""
    odd = 'it\'s "sad"'
    labels, files = ("angry", "happy", odd), [f"calls/{number:02}.wav" for number in range(40)]
    # The first half have two channels, with ten windows each, and the others are mixed.
    n_of = [2 if number < 20 else 1 for number in range(40)]
    starts = [float(at // n) for n in n_of for at in range(20)]
    frame = rows_of([name for name in files for _ in range(20)], starts=starts).to_pandas()
    frame["channel"] = pd.array([at % n if n > 1 else None for n in n_of for at in range(20)], "Int16")
    is_bad = (frame.status != "ok") | (frame.file == files[7])
    frame["status"] = np.where(is_bad, "empty", "ok")
    frame["emotion"] = frame.emotion.replace("sad", odd)
    frame["is_confident"] &= frame.is_speech
    frame["is_speech"] = frame.is_speech if can_tell_speech else None
    frame["end_s"] = frame.start_s + window_s
    made_of = [name for name in frame if name not in ("file", "channel", "start_s", "status", "error")]
    frame[made_of] = frame[made_of].astype(object).where(~is_bad, None)
    frame = frame.rename(columns={"p_sad": f"p_{odd}"})
    info = TableInfo(LABELS, "/archive", FeatureSettings(), Segments.windows(window_s, 1.0), "m0del", labels)
    rows = pa.Table.from_pandas(frame, schema=info.schema, preserve_index=False).replace_schema_metadata()
    write_table(tmp_path / "table", files, info, rows=rows)
    frame = rows.to_pandas()
    groups = frame.groupby(["file", frame.channel.fillna(-1)])
    ends = [{"channel": None if channel < 0 else int(channel)} for (_, channel), _ in groups]
    expected = [{**summarise(some, labels), **one} for one, (_, some) in zip(ends, groups, strict=True)]
    angry_s_of = [one.pop("angry_s") for one in expected]

    def near(one: dict[str, object]) -> dict[str, object]:
        return {
            name: pytest.approx(value, abs=6e-4) if isinstance(value, float) else value for name, value in one.items()
        }

    found = emotion_batch.query(tmp_path / "table", example="recordings").to_pylist()
    for one, wanted in zip(found, expected, strict=True):
        assert one == near(wanted)
    angry = [
        {
            "file": one["file"],
            "channel": one["channel"],
            "share": angry_s / one["speech_s"],
            "peak": one["peak_angry"],
            "peak_s": one["peak_s_angry"],
            "speech_s": one["speech_s"],
        }
        for one, angry_s in zip(expected, angry_s_of, strict=True)
        if one["speech_s"]
    ]
    angry.sort(key=lambda one: (-round(one["share"], 3), -one["peak"], one["file"], one["channel"] or 0))
    seen = emotion_batch.query(tmp_path / "table", "SELECT file, channel, heard_s FROM recordings ORDER BY ALL")
    assert seen.num_rows == len(expected) == 60
    assert seen.to_pylist() == [{name: one[name] for name in ("file", "channel", "heard_s")} for one in found]
    assert emotion_batch.query(tmp_path / "table", example="angriest").to_pylist() == [near(one) for one in angry[:20]]


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        (["a/1.wav", "b/2.wav", "top.wav"], ["", "a", "b"]),
        (["all/2026/a/1.wav", "all/2026/a/sub/2.wav", "all/2026/b/3.wav"], ["all/2026/a", "all/2026/b"]),
        (["all/a/1.wav", "all/a-b/2.wav", "all/3.wav"], ["all", "all/a", "all/a-b"]),
        (["all/2026/1.wav", "all/2026/2.wav"], ["all/2026"]),
        (["1.wav", "2.wav"], [""]),
    ],
)
def test_folders_are_told_apart_below_what_all_share(tmp_path: Path, files: list[str], folders: list[str]) -> None:
    """The folders are those of the first depth at which there is more than one; each file counts once."""
    write_table(tmp_path / "table", files)
    found = emotion_batch.query(tmp_path / "table", example="folders").to_pylist()
    assert [row["folder"] for row in found] == folders
    assert sum(row["n"] for row in found) == len(files)


def test_an_example_needs_its_label(tmp_path: Path) -> None:
    """Without angry among its labels, a table has no angriest recordings, and is told what it has."""
    info = TableInfo(LABELS, "/archive", FeatureSettings(), Segments(), "m0del", ("calm", "happy"))
    write_table(tmp_path / "table", [], info, rows=info.schema.empty_table())
    with pytest.raises(UsageError, match="the table's labels are calm, happy, and angry is not one of them"):
        emotion_batch.query(tmp_path / "table", example="angriest")


def test_a_table_is_called_by_its_name(tmp_path: Path, features: Path) -> None:
    """A query that calls a table wrongly is told what it is called."""
    write_table(tmp_path / "table", ["a.wav"])
    for table, wrong, right in ((tmp_path / "table", "features", "labels"), (features, "labels", "features")):
        with pytest.raises(UsageError) as caught:
            emotion_batch.query(table, f"FROM {wrong}")
        assert f"Table with name {wrong} does not exist! In a query this table is called `{right}`" in str(caught.value)


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


def test_notes_are_logged_unless_a_watcher_hears_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A call without a watcher leaves its notes in the caller's log, as they are; with one they are there and not in the log."""
    write_table(tmp_path / "table", ["a.wav"])
    (tmp_path / "table" / "100 %s.parquet").touch()
    said = "100 %s.parquet is in its folder and is not a part of it, so it does not count"
    notes: list[str] = []
    with caplog.at_level("INFO", "emotion_batch"):
        emotion_batch.query(tmp_path / "table", "FROM labels", watcher=Watcher(on_note=notes.append))
        assert not caplog.records
        emotion_batch.query(tmp_path / "table", "FROM labels")
    [record] = caplog.records
    assert (record.name, record.levelname) == ("emotion_batch", "INFO")
    assert record.getMessage() == notes[0]
    assert said in notes[0]


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
