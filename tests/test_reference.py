"""Tests of reference labels."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emotion_batch.errors import StorageError, UsageError
from emotion_batch.reference import Reference, map_labels, read_label_map, read_labels


@pytest.mark.parametrize(
    ("source", "file", "expected"),
    [
        ("tess", "OAF_angry/OAF_back_angry.wav", Reference("angry", "OAF")),
        ("tess", "YAF_pleasant_surprised/YAF_back_ps.wav", Reference("ps", "YAF")),
        ("tess", "OAF_Fear/OAF_home_Fear.WAV", Reference("fear", "OAF")),
        ("tess", "OAF_neutral/OA_bite_neutral.wav", Reference("neutral", "OAF")),
        ("tess", "call.wav", None),
        ("tess", "call_.wav", None),
        ("ravdess", "Actor_12/03-01-05-01-02-01-12.wav", Reference("angry", "12")),
        ("ravdess", "03-01-09-01-02-01-12.wav", None),
        ("ravdess", "03-01-05.wav", None),
        ("folder", "calls/Angry/1.wav", Reference("angry", None)),
        ("folder", "1.wav", None),
        (r"regex:^(?P<speaker>\d+)[A-Z](?P<emotion>[a-z]+)", "03Wut.wav", Reference("ut", "03")),
        (r"regex:(?P<emotion>W|L)\d", "a/W1.wav", Reference("W", None)),
        (r"regex:(?P<emotion>W|L)\d", "a/X1.wav", None),
    ],
)
def test_labels_from_names(source: str, file: str, expected: Reference | None) -> None:
    """Each naming gives the emotion and speaker that it documents, and nothing where it does not apply."""
    assert read_labels(source)(file) == expected


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_from_a_table(tmp_path: Path, kind: str) -> None:
    """A table gives the labels of the recordings that it names, with their speakers where it has them."""
    path = tmp_path / f"labels.{kind}"
    table = pa.table(
        {"file": ["a.wav", "b, c.wav", "d.wav"], "emotion": ["1", "sad", None], "speaker": ["x", None, "y"]}
    )
    if kind == "csv":
        path.write_text('file,emotion,speaker\na.wav,1,x\n"b, c.wav",sad,\nd.wav,,y\n')
    else:
        pq.write_table(table, path)
    labels = read_labels(f"table:{path}")
    assert labels("a.wav") == Reference("1", "x")
    assert labels("b, c.wav") is not None
    assert labels("b, c.wav").emotion == "sad"
    assert labels("d.wav") is None
    assert labels("e.wav") is None


def test_labels_that_cannot_be_used(tmp_path: Path) -> None:
    """Each wrong source is one sentence that names what was expected."""
    (tmp_path / "columns.csv").write_text("path,label\na.wav,sad\n")
    (tmp_path / "twice.csv").write_text("file,emotion\na.wav,sad\na.wav,happy\n")
    for source, error, sentence in (
        ("names", UsageError, "expected tess, ravdess, folder, table:FILE or regex:PATTERN, got 'names'"),
        ("regex:(", UsageError, "expected a regular expression"),
        ("regex:(.*)", UsageError, "expected a pattern with the group"),
        (f"table:{tmp_path}/none.csv", StorageError, "expected it to exist"),
        (f"table:{tmp_path}/columns.csv", UsageError, "got no 'file' among path, label"),
        (f"table:{tmp_path}/twice.csv", UsageError, "got two for 'a.wav'"),
    ):
        with pytest.raises(error) as caught:
            read_labels(source)
        assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("map.json", '{"fearful": "fear", "surprised": "ps", "calm": ""}'),
        ("map.csv", "\ufefffrom,to\nfearful,fear\nsurprised,ps\ncalm,\n"),
        ("MAP.CSV", "note,to,from\nx,fear,fearful\n,ps,surprised\n,,calm\n"),
        ("map.txt", "fearful = fear\n\nsurprised=ps\n  calm =\n"),
    ],
)
def test_label_maps(tmp_path: Path, name: str, content: str) -> None:
    """All three formats say the same; an empty label is one to be left out."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_label_map(str(tmp_path / name)) == {"fearful": "fear", "surprised": "ps", "calm": ""}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("map.json", "[1, 2]", "got another JSON value"),
        ("map.json", '"fear"', "got another JSON value"),
        ("map.json", '{"calm": null}', "got None as a word"),
        ("map.json", '{"calm": {"a": "b"}}', "as a word"),
        ("map.json", "{", "expected a JSON object of words"),
        ("map.json", '{"a": "b", "a": "c"}', "got two for 'a'"),
        ("map.csv", "from,label\na,b\n", "got 'to'"),
        ("map.csv", "from,to\na,b\na,c\n", "got two for 'a'"),
        ("map.txt", "a = b\ncalm\n", "got the line 'calm'"),
        ("map.txt", "\udcff = b", "in UTF-8"),
    ],
)
def test_label_maps_that_cannot_be_used(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    """Each is one sentence that names the file and what is wrong in it."""
    (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=r"^label map .*map\.") as caught:
        read_label_map(str(tmp_path / name))
    assert sentence in str(caught.value)


def test_a_label_map_that_is_not_there(tmp_path: Path) -> None:
    """A wrong path is one sentence."""
    with pytest.raises(StorageError, match="expected it to exist"):
        read_label_map(str(tmp_path / "none.json"))


def test_labels_without_a_counterpart_are_left_out_and_counted() -> None:
    """On purpose, by a label that the model lacks, or by no entry at all; words that need no map stay."""
    targets, left_out = map_labels(
        ["fearful", "sad", "calm", "bored", "calm", "surprised"],
        {"fearful": "fear", "calm": "", "surprised": "surprise"},
        ("fear", "ps", "sad"),
    )
    assert targets.tolist() == [0, 2, -1, -1, -1, -1]
    assert left_out == {"bored": 1, "calm": 2, "surprised": 1}
