"""Tests of reference labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emotion_batch.errors import StorageError, UsageError
from emotion_batch.training import labels
from emotion_batch.training.labels import LabelTable, Reference, is_numeric, map_labels, read_label_map, read_labels


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
        ("emodb", "wav/16a02Fb.wav", Reference("happiness", "16")),
        ("emodb", "03a01Wa.flac", Reference("anger", "03")),
        ("emodb", "03a01Xa.wav", None),
        ("emodb", "call.wav", None),
        ("savee", "DC/sa05.wav", Reference("sadness", "DC")),
        ("savee", "AudioData/JK_su11.wav", Reference("surprise", "JK")),
        ("savee", "DC/x05.wav", None),
        ("crema-d", "1001_DFA_ANG_XX.wav", Reference("anger", "1001")),
        ("crema-d", "AudioWAV/1091_WSI_HAP_HI.wav", Reference("happy", "1091")),
        ("crema-d", "1001_DFA_XXX_XX.wav", None),
        ("nemo", "EB0_anger_14.flac", Reference("anger", "EB0")),
        ("nemo", "EB0_surprised_19.flac", Reference("surprised", "EB0")),
        ("nemo", "EB0_other_14.flac", None),
        ("folder", "calls/Angry/1.wav", Reference("angry", None)),
        ("folder", "1.wav", None),
        (r"regex:^(?P<speaker>\d+)[A-Z](?P<emotion>[a-z]+)", "03Wut.wav", Reference("ut", "03")),
        (r"regex:(?P<emotion>W|L)\d", "a/W1.wav", Reference("W", None)),
        (r"regex:(?P<emotion>W|L)\d", "a/X1.wav", None),
        (
            r"regex:(?P<speaker>[^/]+)/(?P<emotion>[^_]*)_",
            "re\u0301mi / mu\u0308de _1.wav",
            Reference("m\u00fcde", "r\u00e9mi"),
        ),
        (r"regex:(?P<emotion> *)_", "  _1.wav", None),
        ("folder", "calls/ Mu\u0308DE /1.wav", Reference("m\u00fcde", None)),
        ("tess", "a/Zoe\u0308_back_mu\u0308de .wav", Reference("m\u00fcde", "Zo\u00eb")),
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


NFC, NFD = "m\u00fcde", "mu\u0308de"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_label_table_is_read_whatever_program_wrote_it(tmp_path: Path, encoding: str, end: str) -> None:
    """Labels and speakers lose blanks and quotes around them and are composed; empty lines and encodings do not matter."""
    rows = [' "file" ,emotion, "speaker" ', f'a.wav, {NFD} , "re\u0301mi"', "", f'b.wav,"{NFC}",', "  ", "c.wav,  ,x"]
    path = tmp_path / "labels.csv"
    path.write_bytes(end.join(rows).encode(encoding))
    labels = read_labels(f"table:{path}")
    assert labels("a.wav") == Reference(NFC, "r\u00e9mi")
    assert labels("b.wav") == Reference(NFC, None)
    assert labels("c.wav") is None


def settled(path: Path, files: Sequence[str], archive: str = "/calls") -> LabelTable:
    labels = read_labels(f"table:{path}")
    assert isinstance(labels, LabelTable)
    labels.settle(files, archive)
    return labels


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("file", "spellings"),
    [
        (
            "a/b.wav",
            [
                "./a/b.wav",
                "a//b.wav",
                "x/../a/b.wav",
                "a\\b.wav",
                " a/b.wav ",
                "/calls/a/b.wav",
                "file:///calls/a/b.wav",
            ],
        ),
        ("re\u0301.wav", ["r\u00e9.wav", "./r\u00e9.wav", "/calls/r\u00e9.wav"]),
        ("r\u00e9.wav", ["re\u0301.wav", "'re\u0301.wav'"]),
        (" a\\b[1]*.wav", ["a/b[1]*.wav", "./a/b[1]*.wav "]),
        ("../far/a.wav", ["/far/a.wav", ".././far/a.wav"]),
        ("/far/a.wav", ["../far/a.wav", "//far/a.wav"]),
    ],
)
def test_a_label_table_names_recordings_in_any_spelling(
    tmp_path: Path, kind: str, file: str, spellings: list[str]
) -> None:
    """Each spelling is the recording's; all of them are one row, and what contradicts it is refused."""
    path = tmp_path / f"labels.{kind}"

    def write(rows: list[tuple[str, str]]) -> None:
        names, emotions = (list(column) for column in zip(*rows, strict=True))
        if kind == "csv":
            path.write_text("file,emotion\n" + "".join(f'"{name}",{word}\n' for name, word in rows))
        else:
            pq.write_table(pa.table({"file": names, "emotion": emotions}), path)

    for name in spellings:
        write([(name, "sad")])
        labels = settled(path, [file, "other.wav"])
        assert labels(file) == Reference("sad", None), name
        assert labels("other.wav") is None
        assert labels.describe_unfound() == ""
    write([(name, "sad") for name in (*spellings, file, "gone.wav")])
    labels = settled(path, [file, "other.wav"])
    assert labels(file) == Reference("sad", None)
    said = f"labels {path}: 1 of its 2 rows found no recording, e.g. 'gone.wav'; {len(spellings):,} more repeat another row"
    assert labels.describe_unfound() == said
    write([(file, "sad"), (spellings[0], "happy")])
    with pytest.raises(UsageError, match="two different labels for the recording"):
        settled(path, [file])


def test_a_recording_that_is_called_as_the_table_writes_it_wins(tmp_path: Path) -> None:
    """Where names differ in their form alone and both are there, each row is about the one that it spells."""
    path = tmp_path / "labels.csv"
    path.write_text('file,emotion\na/b.wav,sad\n" c.wav",happy\n')
    labels = settled(path, ["a/b.wav", "a\\b.wav", " c.wav", "c.wav"])
    assert [labels(file) is not None for file in ("a/b.wav", "a\\b.wav", " c.wav", "c.wav")] == [
        True,
        False,
        True,
        False,
    ]
    path.write_text("file,emotion\nr\u00e9.wav,sad\nre\u0301.wav,happy\n")
    labels = settled(path, ["r\u00e9.wav", "re\u0301.wav"])
    assert (labels("r\u00e9.wav"), labels("re\u0301.wav")) == (Reference("sad", None), Reference("happy", None))


def test_urls_in_a_label_table_stay_urls(tmp_path: Path) -> None:
    """A URL below the archive is its recording's; dots in a key are literal where a recording has them."""
    path = tmp_path / "labels.csv"
    path.write_text("file,emotion\ns3://b/calls/a.wav,sad\nx/../c.wav,happy\nhttps://h/d.wav,sad\n")
    labels = settled(path, ["a.wav", "x/../c.wav", "c.wav", "https://h/d.wav"], "s3://b/calls")
    found = [labels(file) for file in ("a.wav", "x/../c.wav", "c.wav", "https://h/d.wav")]
    assert found == [Reference("sad", None), Reference("happy", None), None, Reference("sad", None)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_of_segments(tmp_path: Path, kind: str) -> None:
    """A row with a start labels the segment that starts there, and ends there; one without a start labels the others."""
    path = tmp_path / f"labels.{kind}"
    starts, ends = [0.7, 1.4, 1.4, None, 3.0], [1.4, 2.1, 4.4, None, None]
    words = ["sad", "happy", "angry", "neutral", "fear"]
    if kind == "csv":
        cells = zip(starts, ends, words, strict=True)
        rows = [f"{'' if start is None else start},{end or ''},a.wav,{word}" for start, end, word in cells]
        path.write_text("\n".join(["start_s,end_s,file,emotion", *rows]))
    else:
        pq.write_table(pa.table({"file": ["a.wav"] * 5, "start_s": starts, "end_s": ends, "emotion": words}), path)
    labels = settled(path, ["a.wav"])
    for start, end, word in (
        (0.7000004, 1.4, "sad"),
        (1.4, 2.11, "happy"),
        (1.4, 4.4, "angry"),
        (1.4, 3.0, "neutral"),
        (3.0, 9.9, "fear"),
        (0.71, 1.4, "neutral"),
    ):
        found = labels("a.wav", start, end)
        assert found is not None
        assert found.emotion == word
    assert labels("b.wav", 0.7, 1.4) is None
    path.with_suffix(".csv").write_text("file,emotion,start_s\na.wav,sad,0\na.wav,happy,0\n")
    with pytest.raises(UsageError, match=r"two different labels for the segment 'a.wav' at 0 s"):
        read_labels(f"table:{path.with_suffix('.csv')}")
    path.with_suffix(".csv").write_text("file,emotion,start_s\na.wav,sad,soon\n")
    with pytest.raises(UsageError, match=r"start_s, end_s and channel must be numbers: 'soon' for 'a.wav'"):
        read_labels(f"table:{path.with_suffix('.csv')}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            (
                *(
                    "01",
                    "8",
                    "1.0",
                    "-1",
                    "1,5",
                    "1e3",
                    "20240501",
                    "2024-05-01",
                    "01.05.2024",
                    "5/1",
                    "2024_05",
                    "12:30",
                ),
                *(
                    "2024-05-01T10:00:00Z",
                    "2024-05-01 10:00",
                    "May 2024",
                    "1st may",
                    "01-Jan",
                    "Jan-01",
                    "nan",
                    "\u0663",
                    "#1",
                ),
            ),
            True,
        ),
        (
            (
                "sad",
                "ps",
                "v1_angry",
                "may",
                "march",
                "?",
                "\u60b2\u3057\u3044",
                "\U0001f600",
                "3rd place",
                "angry2",
                "a1",
            ),
            False,
        ),
    ],
)
def test_labels_that_look_like_numbers(words: Sequence[str], expected: bool) -> None:
    """Numbers and dates are known in the forms in which folders and spreadsheets have them; words are words."""
    assert [word for word in words if is_numeric(word) != expected] == []


def test_labels_that_cannot_be_used(tmp_path: Path) -> None:
    """Each wrong source is one sentence that names what was expected."""
    (tmp_path / "columns.csv").write_text("path,label\na.wav,sad\n")
    (tmp_path / "ragged.csv").write_text("file,emotion\na.wav,sad\nb.wav,sad,1\n")
    (tmp_path / "open.csv").write_text('file,emotion\na.wav,sad\n"b.wav,sad\n')
    (tmp_path / "latin.csv").write_bytes(b"file,emotion\ncaf\xe9.wav,sad\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "twice.csv").write_text("file,emotion\na.wav,sad\na.wav,happy\n")
    for source, error, sentence in (
        (
            "names",
            UsageError,
            "labels must be tess, ravdess, emodb, savee, crema-d, nemo, folder, table:FILE or regex:PATTERN: 'names'",
        ),
        ("regex:(", UsageError, "is not a regular expression"),
        ("regex:(.*)", UsageError, "needs a group"),
        (f"table:{tmp_path}/none.csv", StorageError, "it does not exist; check the name"),
        (f"table:{tmp_path}/columns.csv", UsageError, "the column 'file' is missing; its columns are path, label"),
        (f"table:{tmp_path}/ragged.csv", UsageError, "row 3 has 3 cells, and the first row has 2"),
        (f"table:{tmp_path}/open.csv", UsageError, "it must be CSV in UTF-8 or Parquet"),
        (f"table:{tmp_path}/latin.csv", UsageError, "it must be CSV in UTF-8 or Parquet"),
        (f"table:{tmp_path}/empty.csv", UsageError, "the column 'file' is missing"),
        (f"table:{tmp_path}/twice.csv", UsageError, "two different labels for the recording 'a.wav'"),
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
        ("map.json", '{" fearful ": "fear", "surprised": " ps", "calm": " "}'),
    ],
)
def test_label_maps(tmp_path: Path, name: str, content: str) -> None:
    """All three formats say the same; an empty label is one to be left out."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_label_map(str(tmp_path / name)) == {"fearful": "fear", "surprised": "ps", "calm": ""}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("map.json", "[1, 2]", "(another JSON value)"),
        ("map.json", '"fear"', "(another JSON value)"),
        ("map.json", '{"calm": null}', "(None as a word)"),
        ("map.json", '{"calm": {"a": "b"}}', "as a word"),
        ("map.json", "{", "it must be a JSON object of words"),
        ("map.json", '{"a": "b", "a": "c"}', "two different labels for 'a'"),
        ("map.csv", "from,label\na,b\n", "('to')"),
        ("map.csv", "from,to\na,b\na,c\n", "two different labels for 'a'"),
        ("map.txt", "a = b\ncalm\n", "(the line 'calm')"),
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
    with pytest.raises(StorageError, match="it does not exist; check the name"):
        read_label_map(str(tmp_path / "none.json"))


def test_labels_are_mapped_in_either_form_of_unicode(tmp_path: Path) -> None:
    """A map, a model and a reference that were written on different systems mean the same words."""
    (tmp_path / "map.txt").write_bytes(f"fa\u0302che\u0301 = {NFD}\n".encode("utf-16"))
    label_map = read_label_map(str(tmp_path / "map.txt"))
    targets, left_out = map_labels(["f\u00e2ch\u00e9", NFC], label_map, (NFD, "sad"))
    assert (targets.tolist(), left_out) == ([0, 0], {})


def test_labels_without_a_counterpart_are_left_out_and_counted() -> None:
    """On purpose, by a label that the model lacks, or by no entry at all; words that need no map stay."""
    targets, left_out = map_labels(
        ["fearful", "sad", "calm", "bored", "calm", "surprised"],
        {"fearful": "fear", "calm": "", "surprised": "surprise"},
        ("fear", "ps", "sad"),
    )
    assert targets.tolist() == [0, 2, -1, -1, -1, -1]
    assert left_out == {"bored": 1, "calm": 2, "surprised": 1}


def test_names_of_corpora_say_language_and_sex() -> None:
    """As far as the corpora document them; a source that is none of these says nothing."""
    assert labels.describe_voice("ravdess", "02") == ("English", "female")
    assert labels.describe_voice("ravdess", "15") == ("English", "male")
    assert labels.describe_voice("emodb", "03") == ("German", "male")
    assert labels.describe_voice("emodb", "08") == ("German", "female")
    assert labels.describe_voice("tess", "OAF") == ("English", "female")
    assert labels.describe_voice("savee", "DC") == ("English", "male")
    assert labels.describe_voice("nemo", "EB0") == ("Polish", "")
    assert labels.describe_voice("table:labels.csv", "7") == ("", "")
    assert labels.describe_voice("emodb", "") == ("German", "")
