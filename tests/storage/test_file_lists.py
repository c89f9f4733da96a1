"""Tests of ready-made lists: names as written, and S3's inventories of a bucket."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emotion_batch.errors import UsageError
from emotion_batch.storage.archive import find_base, is_recording, list_recordings

ETAG = "d41d8cd98f00b204e9800998ecf8427e"
# As S3 writes a CSV: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
ROWS = [
    ["calls", "2026/a.wav", "100", ETAG],
    ["calls", "2026/two%20words%2B.wav", "200", f"{ETAG}-2"],
    ["calls", "2026/notes.txt", "3", ETAG],
    ["calls", "2026/.hidden/c.wav", "4", ETAG],
    ["calls", "2026/b+c.WAV", "5", ETAG],
]
EXPECTED = [("2026/a.wav", 100, ETAG), ("2026/b c.WAV", 5, ETAG), ("2026/two words+.wav", 200, f"{ETAG}-2")]


def as_csv(rows: list[list[str]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()


def write_inventory(folder: Path, kind: str) -> Path:
    """Write an inventory as S3 lays it out, in two files, and return what to name."""
    manifest = folder / "calls" / "nightly" / "2026-11-22T01-00Z" / "manifest.json"
    data = manifest.parent.parent / "data"
    data.mkdir(parents=True)
    manifest.parent.mkdir()
    if kind == "CSV":
        files = {"1.csv.gz": gzip.compress(as_csv(ROWS[:2])), "2.csv.gz": gzip.compress(as_csv(ROWS[2:]))}
    else:
        files = {}
        for number, rows in enumerate((EXPECTED[:1], [*EXPECTED[1:], ("2026/notes.txt", 3, ETAG)])):
            names, sizes, tags = (list(column) for column in zip(*rows, strict=True))
            table = pa.table(
                {"bucket": ["calls"] * len(names), "key": names, "size": pa.array(sizes, pa.int64()), "e_tag": tags}
            )
            sink = io.BytesIO()
            pq.write_table(table, sink)
            files[f"{number}.parquet"] = sink.getvalue()
    for name, content in files.items():
        (data / name).write_bytes(content)
    about = {
        "sourceBucket": "calls",
        "destinationBucket": "arn:aws:s3:::inventories",
        "version": "2016-11-30",
        "fileFormat": kind,
        "fileSchema": "Bucket, Key, Size, ETag",
        "files": [{"key": f"calls/nightly/data/{name}", "size": len(content)} for name, content in files.items()],
    }
    manifest.write_text(json.dumps(about))
    return manifest


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_inventory_is_taken_instead_of_a_listing(tmp_path: Path, kind: str) -> None:
    """Its manifest gives recordings with size and ETag, relative to the bucket; other files are left out and counted."""
    manifest = write_inventory(tmp_path, kind)
    listing = list_recordings(manifest)
    found = [(row["file"], row["size"], row["version"]) for row in listing.entries.to_pylist()]
    assert found == EXPECTED
    assert listing.left_out == {".txt": 1}
    assert listing.folder.url == find_base(manifest).url == "s3://calls"


@pytest.mark.parametrize("name", ["one.csv", "one.csv.gz"])
def test_one_file_of_an_inventory_is_a_list(tmp_path: Path, name: str) -> None:
    """A CSV without a line of names is known by its bucket in every line, and its columns by what is in them."""
    data = as_csv(ROWS)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = [(row["file"], row["size"], row["version"]) for row in list_recordings(tmp_path / name).entries.to_pylist()]
    assert found == EXPECTED
    (tmp_path / name).write_bytes(gzip.compress(as_csv(ROWS[:1])) if name.endswith(".gz") else as_csv(ROWS[:1]))
    assert list_recordings(tmp_path / name).entries["file"].to_pylist() == ["2026/a.wav"]


def test_flags_of_other_columns_hide_nothing(tmp_path: Path) -> None:
    """An inventory of current versions has columns that say true or false of something else: each line is an object."""
    flags = ["true", "false", "false", "false", "true"]
    rows = [
        [*row[:3], "2026-11-22T01:00:00.000Z", row[3], "STANDARD", flag] for row, flag in zip(ROWS, flags, strict=True)
    ]
    (tmp_path / "one.csv").write_bytes(as_csv(rows))
    found = [
        (row["file"], row["size"], row["version"]) for row in list_recordings(tmp_path / "one.csv").entries.to_pylist()
    ]
    assert found == EXPECTED


def test_older_versions_and_deletions_are_no_recordings(tmp_path: Path) -> None:
    """Of a bucket with versions the latest count, and what was deleted is gone."""
    rows = [
        ["calls", "a.wav", "v2", "true", "false", "100", ETAG],
        ["calls", "a.wav", "v1", "false", "false", "90", ETAG],
        ["calls", "b.wav", "v9", "true", "true", "", ""],
    ]
    (tmp_path / "data.csv").write_bytes(as_csv(rows))
    found = [(row["file"], row["size"]) for row in list_recordings(tmp_path / "data.csv").entries.to_pylist()]
    assert found == [("a.wav", 100)]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"name": "my web app"}, "manifest.json: it is not the manifest of an S3 Inventory"),
        ({"fileFormat": "ORC", "fileSchema": "struct<>", "files": []}, "must be CSV or Parquet: ORC"),
        ({"fileFormat": "CSV", "fileSchema": "Bucket, Key", "files": []}, "the inventory names no objects"),
    ],
    ids=["another", "ORC", "empty"],
)
def test_what_is_no_inventory_is_one_sentence(tmp_path: Path, about: dict[str, object], said: str) -> None:
    """A manifest of something else, or of a kind that is not read, says so."""
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=said):
        list_recordings(tmp_path / "manifest.json")


def test_a_table_of_something_else_is_no_inventory(tmp_path: Path) -> None:
    """A CSV without a column of names is refused, whatever its first line looks like."""
    (tmp_path / "a.csv").write_text("path,size,id\na.wav,1,2\n")
    with pytest.raises(UsageError, match="the column 'file' is missing; its columns are path, size, id"):
        list_recordings(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a.wav?X-Amz-Signature=0a1b2c3d4e",
        "https://account.blob.core.windows.net/c/a.wav?sv=1&sig=0a1b2c3d4e",
        "https://user:0a1b2c3d4e@host/a.wav",
    ],
)
@pytest.mark.parametrize("other", [b"b.wav", b"caf\xe9.wav", b"https://host/b.wav"], ids=["local", "not UTF-8", "urls"])
def test_a_list_does_not_carry_secrets_into_a_table(tmp_path: Path, url: str, other: bytes) -> None:
    """A signed URL, or one with a password, is refused without being repeated."""
    (tmp_path / "list.txt").write_bytes(url.encode() + b"\n" + other + b"\n")
    with pytest.raises(UsageError, match=r"storage-options") as caught:
        list_recordings(tmp_path / "list.txt")
    assert "0a1b2c3d4e" not in str(caught.value)
    with pytest.raises(UsageError) as caught:
        is_recording(url)
    assert "0a1b2c3d4e" not in str(caught.value)
