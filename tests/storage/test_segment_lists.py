"""Tests of lists of segments: every form gives the same segments, and what is wrong with a list is one sentence."""

from __future__ import annotations

import datetime
import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emotion_batch.errors import StorageError, UsageError
from emotion_batch.settings import Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.tables.shard_entries import as_batch, digest

NAMES = ("a.wav", "b/c d.wav", "b/e.mp3")
ROWS = [
    ("b/e.mp3", 3.25, 4.5, 1, "Ann"),
    ("a.wav", 0.0, 1.5, 0, None),
    ("b/e.mp3", 0.5, 3.0, 0, "Ben"),
    ("a.wav", 0.0, 1.5, 0, None),
    ("b/c d.wav", 2.0, 1.0, 1, "Ann Other"),
    ("gone.wav", 0.1, 0.3, 0, "Ben"),
]
EXPECTED = {
    "a.wav": [[0.0, 1.5, 0, None], [0.0, 1.5, 0, None]],
    "b/c d.wav": [[2.0, 1.0, 1, "Ann Other"]],
    "b/e.mp3": [[3.25, 4.5, 1, "Ann"], [0.5, 3.0, 0, "Ben"]],
    "gone.wav": [[0.1, 0.3, 0, "Ben"]],
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for name in (*NAMES, "silent.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"sound")
    return folder


def read(archive: Path, segments: Path | str, channels: object = "mix", **choice: object) -> dict[str, list]:
    """Return the segments of each recording, in the order of the listing."""
    asked = Segments.choose(segments, None, None)
    assert asked is not None
    listing = list_recordings(archive, segments=Segments(0.0, 6.0, None, channels, asked.source), **choice)
    return {row["file"]: json.loads(row["segments"]) for row in listing.entries.to_pylist()}


def as_csv(rows: list[tuple]) -> str:
    lines = [",".join("" if one is None else f"{one}" for one in row) for row in rows]
    return "\n".join(["file,start_s,end_s,channel,speaker", *lines, ""])


def write(path: Path, rows: list[tuple] = ROWS) -> Path:
    """Write a list in the form that its name says."""
    columns = dict(
        zip(("file", "start_s", "end_s", "channel", "speaker"), map(list, zip(*rows, strict=True)), strict=True)
    )
    if path.name == "audformat.parquet":
        for name in ("start", "end"):
            seconds = columns.pop(f"{name}_s")
            columns[name] = pa.array([datetime.timedelta(seconds=one) for one in seconds], pa.duration("ns"))
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path, row_group_size=2)
    elif path.name == "audformat.csv":
        text = "file,start,end,channel,speaker\n"
        for file, start_s, end_s, channel, speaker in rows:
            start, end = (f"0 days {datetime.timedelta(seconds=one)}" for one in (start_s, end_s))
            text += f"{file},{start},{end},{channel},{speaker or ''}\n"
        path.write_text(text)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(as_csv(rows).encode()))
    elif path.name == "utf16.csv":
        path.write_text(as_csv(rows), encoding="utf-16")
    else:
        path.write_text(as_csv(rows))
    return path


@pytest.mark.parametrize(
    "name", ["own.csv", "own.csv.gz", "utf16.csv", "own.parquet", "audformat.csv", "audformat.parquet"]
)
def test_every_form_gives_the_same_segments(name: str, archive: Path, tmp_path: Path) -> None:
    """They are those of the list, in its order by recording; recordings without one are left out, and missing ones listed."""
    path = write(tmp_path / name)
    assert read(archive, path) == EXPECTED
    listing = list_recordings(archive, segments=Segments.choose(path, None, None))
    assert list(listing.remark()) == [
        "left out 1 recording without a segment in the list of segments",
        f"1 of the 4 recordings in the list is missing, e.g. 'gone.wav'; names in a list are relative to the archive {archive}",
    ]
    # A list of recordings, and patterns, choose among them; what they leave out is not missing.
    (archive / "some.txt").write_text("a.wav\nb/e.mp3\n")
    assert list(read(archive, path, exclude=["gone*", "b/**"])) == ["a.wav"]
    assert list(read(archive / "some.txt", path, include=["a*", "b/e*"])) == ["a.wav", "b/e.mp3"]


def test_names_may_be_spelled_otherwise(archive: Path, tmp_path: Path) -> None:
    """All spellings of a recording are one recording, also of one that is missing."""
    path = tmp_path / "turns.csv"
    rows = [
        (name, float(n), n + 1.0, None, None)
        for n, name in enumerate(
            ["./a.wav", f"{archive}/a.wav", "b\\\\e.mp3", "b//e.mp3", "x.wav", f"{archive}/x.wav", "a.wav"]
        )
    ]
    write(path, [(name.replace("\\\\", "\\"), *rest) for name, *rest in rows])
    found = read(archive, path)
    assert {name: [one[0] for one in segments] for name, segments in found.items()} == {
        "a.wav": [0.0, 1.0, 6.0],
        "b/e.mp3": [2.0, 3.0],
        "x.wav": [4.0, 5.0],
    }
    # A name in another form of Unicode is the same recording.
    (archive / "cafe\u0301.wav").write_bytes(b"sound")
    assert list(read(archive, write(path, [("caf\u00e9.wav", 0.0, 1.0, None, None)]))) == ["cafe\u0301.wav"]


def rttm(file: str, channel: int | str, start_s: float, duration_s: float, speaker: str) -> str:
    return f"SPEAKER {file} {channel} {start_s} {duration_s} <NA> <NA> {speaker} <NA> <NA>\n"


def test_rttm(archive: Path, tmp_path: Path) -> None:
    """RTTM names recordings without suffix and blanks; its channels count from 1, and mean none if all are 1."""
    path = tmp_path / "all.rttm"
    lines = rttm("e", 1, 0.1, 0.2, "Ann") + ";; a comment\nSPKR-INFO e 1 <NA>\n" + rttm("b/c%20d", 1, 2, 1.5, "<NA>")
    path.write_text(lines + rttm("a.wav", 1, 0, 1, "Ben"))
    expected = {
        "a.wav": [[0.0, 1.0, None, "Ben"]],
        "b/c d.wav": [[2.0, 3.5, None, None]],
        "b/e.mp3": [[0.1, 0.3, None, "Ann"]],
    }
    assert read(archive, path) == expected
    path.write_text(lines + rttm("a.wav", 2, 0, 1, "Ben"))
    assert [segments[0][2] for segments in read(archive, path).values()] == [1, 0, 0]
    # One file a recording, in a folder or by a glob.
    (tmp_path / "turns" / "more").mkdir(parents=True)
    (tmp_path / "turns" / "a.rttm").write_text(rttm("a", 1, 0, 1, "Ben"))
    (tmp_path / "turns" / "more" / "e.rttm").write_text(rttm("e", 1, 0.1, 0.2, "Ann"))
    (tmp_path / "turns" / "notes.txt").write_text("by hand")
    for place in (tmp_path / "turns", tmp_path / "turns" / "**" / "*.rttm"):
        assert read(archive, place) == {name: expected[name] for name in ("a.wav", "b/e.mp3")}
    # A stem that two recordings have means none of them.
    (archive / "x").mkdir()
    (archive / "x" / "e.wav").write_bytes(b"sound")
    with pytest.raises(UsageError, match=re.escape("'e' may be several recordings")):
        read(archive, tmp_path / "turns")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "file,start_s,end_s\n", "the list has no segments"),
        ("a.csv", "file,start_s\na.wav,1\n", "it must have the columns file, start_s and end_s (or start and end, as in audformat)"),
        ("a.csv", "file,start_s,end_s\na.wav,one,2\n", "it cannot be read as a table (In CSV column #1"),
        ("a.csv", "file,start_s,end_s\na.wav,1,2\na.wav,,2\n", "start_s must be from 0 to 1,000,000 seconds: None, in row 2 of"),
        ("a.csv", "file,start_s,end_s\na.wav,-1,2\n", "start_s must be from 0 to 1,000,000 seconds: -1.0, in row 1 of"),
        ("a.csv", "file,start_s,end_s\na.wav,1,inf\n", "end_s must be at most 1,000,000 seconds: inf, in row 1 of"),
        ("a.csv", "file,start_s,end_s\n,1,2\n", "file must be the name of a recording: None, in row 1 of"),
        ("a.csv", "file,start_s,end_s,channel\na.wav,1,2,1.5\n", "channel must be a number from 0: 1.5, in row 1 of"),
        ("a.csv", "file,start_s,end_s,channel\na.wav,1,2,-1\n", "channel must be a number from 0: -1.0, in row 1 of"),
        ("a.csv", "file,start_s,end_s,channel\na.wav,1,2,0\na.wav,1,2,\n", "some of 'a.wav' name a channel and others do not"),
        ("a.csv", "file,start,end\na.wav,1.5,2.5\n", "start and end must be durations such as 0 days 00:00:01.5: '1.5'"),
        ("a.csv", "file,start_s,end_s\ns3://u:secret@b/a.wav,1,2\n", "a URL must not contain a password"),
        ("a.parquet", "file,start_s,end_s\n", "it cannot be read as a table"),
        ("a.json", "{}", "a list of segments is CSV (.csv), Parquet (.parquet) or RTTM (.rttm)"),
        ("a.rttm", "SPEAKER a 1 0\n", "line 1 must be `SPEAKER FILE CHANNEL START DURATION ...`"),
        ("a.rttm", "SPEAKER a 1 zero 1 <NA> <NA> Ann\n", "line 1 must be"),
        ("a.rttm", "no speaker\n", "the list has no segments"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_is_one_sentence(
    name: str, content: str, sentence: str, archive: Path, tmp_path: Path
) -> None:
    """The error names the list or the row, and the rule."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(sentence)) as found:
        read(archive, tmp_path / name)
    assert str(found.value).count("\n") == 0
    assert "secret" not in str(found.value)


def test_a_list_that_is_missing(archive: Path, tmp_path: Path) -> None:
    """A list that does not exist is an error about the list, and a folder without RTTM too."""
    with pytest.raises(StorageError, match=re.escape(f"segments {tmp_path}/none.csv: it does not exist")):
        read(archive, tmp_path / "none.csv")
    with pytest.raises(UsageError, match="there are no RTTM files"):
        read(archive, archive)


def test_an_open_end_and_both_channels(archive: Path, tmp_path: Path) -> None:
    """A segment without an end lasts to the end; rows with and without a channel mix where channels are heard apart."""
    (tmp_path / "a.csv").write_text("file,start_s,end_s,channel\na.wav,1,2,0\na.wav,1,,\n")
    assert read(archive, tmp_path / "a.csv", "each") == {"a.wav": [[1.0, 2.0, 0, None], [1.0, None, None, None]]}


def test_segments_are_part_of_the_digest(archive: Path, tmp_path: Path) -> None:
    """Another segment, speaker or order gives another digest of the entries."""
    seen = set()
    swapped = [ROWS[2], *ROWS[1:2], ROWS[0], *ROWS[3:]]
    for rows in (
        ROWS,
        swapped,
        ROWS[:-1],
        [*ROWS[:5], (*ROWS[5][:4], "Ann")],
        [*ROWS[:5], (*ROWS[5][:2], 0.4, 0, "Ben")],
    ):
        listing = list_recordings(archive, segments=Segments.choose(write(tmp_path / "a.csv", rows), None, None))
        seen.add(digest(as_batch(listing.entries)))
    assert len(seen) == 5
