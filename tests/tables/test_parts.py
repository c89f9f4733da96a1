"""Tests of parts, footers and what a table is."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import dask.dataframe
import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.damage import find_footer, flip_bit

from emotion_batch.analysis.formats import ParquetWriter
from emotion_batch.errors import IncompleteError, StorageError, UsageError
from emotion_batch.settings import FeatureSettings, Segments, VoicesSettings
from emotion_batch.storage.folder import Folder, seal, unseal
from emotion_batch.tables import parts, schema
from emotion_batch.tables.parts import Counts, PartError
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.tables.table import check_info, create_info, read_info

INFO = TableInfo(schema.LABELS, "/archive", FeatureSettings(), Segments(), "m0del", ("happy", "sad"))


def label_rows(*statuses: str) -> pa.Table:
    n = len(statuses)
    ok = [status == "ok" for status in statuses]
    columns = {
        "file": [f"{number}.wav" for number in range(n)],
        "channel": [None] * n,
        "start_s": [0.5] * n,
        "end_s": [1.0 if good else None for good in ok],
        "status": statuses,
        "error": [None if good else "why" for good in ok],
        "emotion": ["sad" if good else None for good in ok],
        "confidence": [0.75 if good else None for good in ok],
        "margin": [0.5 if good else None for good in ok],
        "entropy": [0.56 if good else None for good in ok],
        "is_confident": [False if good else None for good in ok],
        "is_in_domain": [True if good else None for good in ok],
        "domain_distance": [1.0 if good else None for good in ok],
        "is_speech": [None] * n,
        "p_happy": [0.25 if good else None for good in ok],
        "p_sad": [0.75 if good else None for good in ok],
    }
    return pa.table(columns, schema=INFO.schema)


def test_a_part_says_what_it_is(tmp_path: Path) -> None:
    """The footer names schema, settings, model, labels, tool, shard, digest and counts; the rows are one row group."""
    counts = parts.publish_part(Folder.of(tmp_path), INFO, 7, "d1gest", label_rows("ok", "empty", "ok"))
    trust = {"is_confident": 0, "is_in_domain": 2}
    assert counts == Counts(3, 3, {"empty": 1, "ok": 2}, {"sad": 2}, trust)
    metadata = pq.read_metadata(tmp_path / "part-000007.parquet")
    assert metadata.num_row_groups == 1
    footer = json.loads(metadata.metadata[b"emotion_batch"])
    assert footer.pop("tool_version")
    assert footer == {
        "schema_version": 3,
        "kind": "labels",
        "feature_id": FeatureSettings().feature_id,
        "segment_id": Segments().segment_id,
        "model_id": "m0del",
        "labels": ["happy", "sad"],
        "shard": 7,
        "digest": "d1gest",
        "n_recordings": 3,
        "n_rows": 3,
        "by_status": {"empty": 1, "ok": 2},
        "by_label": {"sad": 2},
        "trust": trust,
        "speech_by_label": {},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["part-000007.parquet"]


def test_labels_of_speech_are_counted(tmp_path: Path) -> None:
    """Shares are of speech alone; if one part does not say what is speech, they are of all labels."""
    rows = label_rows("ok", "ok", "ok", "empty", "ok")
    rows = rows.set_column(rows.column_names.index("emotion"), "emotion", [["sad", "sad", "happy", None, "happy"]])
    rows = rows.set_column(rows.column_names.index("is_speech"), "is_speech", [[True, True, False, None, True]])
    new = parts.publish_part(Folder.of(tmp_path), INFO, 7, "d1gest", rows.cast(INFO.schema))
    assert (new.by_label, new.speech_by_label) == ({"happy": 2, "sad": 2}, {"happy": 1, "sad": 2})
    assert parts.read_footer(Folder.of(tmp_path), INFO, "part-000007.parquet").counts == new
    assert new.shares == pytest.approx({"happy": 1 / 3, "sad": 2 / 3})
    early = replace(new, speech_by_label={})
    assert (new + early).shares == early.shares == {"happy": 0.5, "sad": 0.5}
    assert parts.Counts(1, 1, {"empty": 1}).shares == {}


def test_booleans_without_a_value_select_in_pandas(tmp_path: Path) -> None:
    """A column with nulls is a condition to pandas and Dask, also where only some parts say so to pandas."""
    table = Folder.of(tmp_path)
    rows = label_rows("ok", "empty", "ok")
    parts.publish_part(table, INFO, 0, "d", rows)
    # A part that another program has rewritten, without the words for pandas.
    metadata = pq.read_schema(tmp_path / parts.part_name(0)).metadata
    early = {name: value for name, value in metadata.items() if name != b"pandas"}
    pq.write_table(rows.replace_schema_metadata(early), tmp_path / parts.part_name(1))
    assert set(parts.own_footers(table, INFO, range(2))) == {0}
    frame = pandas.read_parquet(tmp_path)
    assert (len(frame[frame.is_in_domain]), len(frame[frame.is_confident]), len(frame[frame.is_speech])) == (4, 0, 0)
    assert (frame.is_confident.isna() == (frame.status != "ok")).all()
    assert str(frame.file.dtype) == "str"
    assert frame.index.equals(pandas.RangeIndex(6))
    assert polars.read_parquet(tmp_path / "*.parquet").filter(polars.col("is_in_domain")).height == 4
    asked = f"SELECT count(*) FROM '{tmp_path}/*.parquet' WHERE is_in_domain IS NULL"
    assert duckdb.sql(asked).fetchall() == [(2,)]
    (tmp_path / parts.part_name(1)).unlink()
    frame = dask.dataframe.read_parquet(tmp_path)
    assert len(frame[frame.is_in_domain].compute()) == 2


def test_a_part_is_complete_only_with_the_newest_digest_and_its_own_settings(tmp_path: Path) -> None:
    """A part from older entries, another model, another shard, or a damaged one, is to be done again."""
    table = Folder.of(tmp_path)
    for shard, digest, info in ((0, "new", INFO), (1, "old", INFO), (2, "new", replace(INFO, model_id="other"))):
        parts.publish_part(table, info, shard, digest, label_rows("ok"))
    (tmp_path / "part-000003.parquet").write_bytes((tmp_path / "part-000000.parquet").read_bytes())
    (tmp_path / "part-000004.parquet").write_bytes((tmp_path / "part-000000.parquet").read_bytes()[:-9])
    pq.write_table(pa.table({"a": [1]}), tmp_path / "part-000005.parquet")
    shards = dict.fromkeys(range(7), ShardEntry("", 0, 1, "new", 0, 0, 0))
    assert set(parts.complete_shards(table, INFO, shards)) == {0}
    found = list(parts.read_complete(table, INFO, shards, ["status", "file"]))
    assert [shard for shard, _ in found] == list(shards)
    assert [(shard, rows.column_names) for shard, rows in found if rows is not None] == [(0, ["status", "file"])]
    with pytest.raises(
        IncompleteError,
        match=r"6 of its 7 parts cannot be used \(missing, damaged or out of date\), e\.g\. part-000001\.parquet; run the extraction",
    ):
        parts.require_complete(table, INFO, shards)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part appears whole or not at all; a full disk is one sentence."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="it cannot be used: No space left on device"):
        parts.publish_part(Folder.of(tmp_path), INFO, 0, "d", label_rows("ok"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (replace(INFO, kind="features"), "is a table of labels, and this call makes one of features"),
        (replace(INFO, source="/elsewhere"), "was made from SOURCE /archive, and this call has /elsewhere"),
        (
            replace(INFO, feature_settings=FeatureSettings(n_mfcc=20)),
            "was made with --n-mfcc 40, and this call has --n-mfcc 20",
        ),
        (
            replace(INFO, feature_settings=VoicesSettings()),
            "was made with --recipe seed, and this call has --recipe voices",
        ),
        (
            replace(INFO, segments=Segments(1.0)),
            "with --offset 0.5 --duration 3, and this call has --offset 1 --duration 3",
        ),
        (
            replace(INFO, segments=Segments.windows(2)),
            "with --offset 0.5 --duration 3, and this call has --window 2 --hop 2",
        ),
        (
            replace(INFO, model_id="new"),
            r"was made with the model m0del \(a copy is in _table/model\), and this call has the model new",
        ),
    ],
    ids=["kind", "source", "features", "recipe", "segments", "windows", "model"],
)
def test_a_table_takes_no_other_settings(tmp_path: Path, other: TableInfo, sentence: str) -> None:
    """What differs from what the table holds is named before any work, by the option that says it."""
    table = Folder.of(tmp_path)
    create_info(table, INFO)
    create_info(table, INFO)
    assert read_info(table) == INFO
    with pytest.raises(UsageError, match=sentence):
        create_info(table, other)
    parts.publish_part(table, INFO, 0, "d", label_rows("ok"))
    with pytest.raises(UsageError, match=sentence):
        check_info(table, other)


def test_a_folder_with_other_things_is_no_table(tmp_path: Path) -> None:
    """Parts are never put among files that are not a table's."""
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match=r"holds 'holiday.jpg', which is not a part of a table"):
        create_info(Folder.of(tmp_path), INFO)


def test_a_table_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    """A release that does not know a table does not touch it."""
    table = Folder.of(tmp_path)
    create_info(table, INFO)
    path = tmp_path / "_table" / "table.json"
    path.write_bytes(seal({**unseal(path.read_bytes()), "schema_version": 99}))
    with pytest.raises(UsageError, match="it has schema version 99, and this version of emotion-batch reads 3"):
        create_info(table, INFO)


def test_a_flipped_bit_changes_nothing_or_is_named(tmp_path: Path) -> None:
    """A part in which any single bit has changed is refused, whatever is read from it, with an error that says so."""
    table, name = Folder.of(tmp_path), parts.part_name(0)
    rows = label_rows("ok", "empty", "ok")
    parts.publish_part(table, INFO, 0, "d", rows)
    part = tmp_path / name
    footer, whole = parts.read_footer(table, INFO, name), part.read_bytes()
    begin, random = find_footer(part), np.random.default_rng(0)
    n_passed = 0
    for start, stop in ((0, begin), (begin, len(whole))):
        for _ in range(150):
            at = flip_bit(part, random, start, stop)
            with contextlib.suppress(PartError):
                assert parts.read_part(table, 0, ["file"])["file"] == rows["file"]
                assert parts.read_part(table, 0).replace_schema_metadata() == rows
                n_passed += 1
            with contextlib.suppress(PartError):
                assert parts.read_footer(table, INFO, name) == footer, at
            part.write_bytes(whole)
    assert n_passed == 0


def test_page_checksums_are_for_other_readers(tmp_path: Path) -> None:
    """Tables and exports have them: all readers read them as before, and those that look notice a flipped bit."""
    rows = label_rows("ok", "empty", "ok", "ok")
    parts.publish_part(Folder.of(tmp_path), INFO, 0, "d", rows)
    part = tmp_path / parts.part_name(0)
    with open(tmp_path / "export.parquet", "wb") as stream:
        writer = ParquetWriter(stream, INFO.schema)
        writer.write(rows)
        writer.close()
    for path in (part, tmp_path / "export.parquet"):
        assert pq.read_table(path, page_checksum_verification=True).replace_schema_metadata() == rows
        frame = pandas.read_parquet(path)
        assert polars.read_parquet(path)["file"].to_list() == frame.file.to_list() == rows["file"].to_pylist()
        asked = f"SELECT p_sad FROM '{path}'"
        assert [row[0] for row in duckdb.sql(asked).fetchall()] == rows["p_sad"].to_pylist()
        column = pq.read_metadata(path).row_group(0).column(INFO.schema.get_field_index("p_sad"))
        end = column.data_page_offset + column.total_compressed_size
        if column.has_dictionary_page:
            end = column.dictionary_page_offset + column.total_compressed_size
        data = bytearray(path.read_bytes())
        data[end - 1] ^= 1
        path.write_bytes(data)
        with pytest.raises(OSError, match="CRC checksum verification failed"):
            pq.read_table(path, page_checksum_verification=True)
        with pytest.raises(OSError, match="CRC checksum verification failed"):
            pandas.read_parquet(path, page_checksum_verification=True)
