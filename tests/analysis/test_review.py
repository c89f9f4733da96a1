"""Tests of the review sheet: what is drawn, what spreadsheets do to it, what it says when it comes back."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import servers
from support.commands import call_command
from support.review_tables import (
    HOSTILE,
    INFO,
    LABELS,
    answer_truly,
    fill,
    read_cells,
    rows_of,
    truth,
    write_cells,
    write_table,
)

import emotion_batch
from emotion_batch.analysis import review_sample, review_sheet
from emotion_batch.analysis.review_sample import COLUMNS, INFORMATIVE, RANDOM, STRATA, allocate, draw
from emotion_batch.cli import app
from emotion_batch.cli.report_commands import format_review
from emotion_batch.errors import IncompleteError, UsageError
from emotion_batch.settings import Segments
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import publish_part, read_part
from emotion_batch.tables.table import read_info
from emotion_batch.training.labels import read_labels


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_table(tmp_path / "labels", [*HOSTILE, *(f"calls/{at:04d}.wav" for at in range(2_000))])
    return tmp_path / "labels"


@pytest.mark.parametrize("text", [*HOSTILE, "", "plain.wav", "\\", "'\\x41", "a\u2028b", "\x00\x7f\x85"])
def test_no_cell_is_a_formula_and_each_name_comes_back(text: str) -> None:
    """A guarded name is on one line, begins like no formula or number, and is the same name again."""
    cell = review_sheet.guard(text)
    assert review_sheet.unguard(cell) == text
    assert cell.isprintable()
    assert not cell.startswith(("=", "+", "-", "@", "\t", '"'))
    assert cell == cell.strip()
    with pytest.raises(ValueError, match="could not convert"):
        float(cell or "nothing")


def test_a_sheet_is_written_and_taken_back(table: Path, tmp_path: Path) -> None:
    """The sheet has both parts; filled in, it gives labels that `train` reads, and precision by confidence."""
    sheet = tmp_path / "sheet.csv"
    written = emotion_batch.review(table, sheet, size=200, seed=3)
    assert (written.n_rows, written.n_random, written.n_parts_missing) == (200, 100, 0)
    assert sheet.read_bytes().startswith(
        b"\xef\xbb\xbffile,channel,start_s,end_s,emotion,confidence,correct_emotion,speaker"
    )
    cells = read_cells(sheet)
    assert Counter(one["part"] for one in cells) == {INFORMATIVE: 100, RANDOM: 100}
    assert len({one["file"] for one in cells}) == 200
    fill(sheet, answer_truly)
    taken = emotion_batch.take_review(table, sheet)
    assert (taken.n_answered, taken.n_unanswered, taken.n_missing, taken.n_labelled) == (200, 0, 0, 200)
    assert taken.labels == os.fspath(tmp_path / "sheet.labels.csv")
    labeller = read_labels(f"table:{taken.labels}")
    for one in cells:
        file = review_sheet.unguard(one["file"])
        found = labeller(file)
        assert found is not None
        assert found.emotion == truth(file, one["emotion"])
    assert taken.n_corrected == sum(answer_truly(one) != one["emotion"] for one in cells)
    # The estimate is the one that the sheet's own numbers give.
    drawn = [one for one in cells if one["part"] == RANDOM]
    weights = [int(one["stratum_rows"]) / int(one["stratum_drawn"]) for one in drawn]
    right = sum(weight for weight, one in zip(weights, drawn, strict=True) if answer_truly(one) == one["emotion"])
    overall = taken.precision[0]
    assert overall.of == "all"
    assert sum(weights) == pytest.approx(written.n_table) == overall.n_rows
    assert overall.share == pytest.approx(right / sum(weights))
    assert overall.low < overall.share < overall.high
    assert [one.of for one in taken.precision[2:]] == ["0 to 0.5", "0.5 to 0.7", "0.7 to 0.9", "0.9 to 1"]
    assert sum(one.n_checked for one in taken.precision[2:]) == overall.n_checked == 100
    rows = [row for row in pq.read_table(table).to_pylist() if row["status"] == "ok"]
    shares = {one.label: one for one in taken.shares}
    assert set(LABELS) <= shares.keys()
    for label, one in shares.items():
        assert one.given == pytest.approx(sum(row["emotion"] == label for row in rows) / len(rows))
        heard = sum(weight for weight, cell in zip(weights, drawn, strict=True) if answer_truly(cell) == label)
        assert one.share == pytest.approx(heard / sum(weights))
        assert one.low <= one.share <= one.high
    assert sum(one.share for one in shares.values()) == pytest.approx(1)


def test_hostile_names_come_back(tmp_path: Path) -> None:
    """A spreadsheet may save the sheet, as CSV or Parquet: recordings of any name are still the same recordings."""
    place = write_table(tmp_path / "labels", HOSTILE)
    sheet, labels = tmp_path / "sheet.csv", tmp_path / "mine.parquet"
    emotion_batch.review(place.url, sheet, size=40, random=0)
    expected = {
        file
        for file, status, speech in zip(
            *(pq.read_table(place.url).to_pydict()[name] for name in ("file", "status", "is_speech")), strict=True
        )
        if status == "ok" and speech
    }
    assert len(expected) > 15
    fill(sheet, answer_truly, delimiter=";", lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    assert emotion_batch.take_review(place.url, sheet, labels=labels).n_labelled == len(expected)
    assert set(pq.read_table(labels)["file"].to_pylist()) == expected
    emotion_batch.take_review(place.url, sheet, labels=tmp_path / "mine.csv")
    labeller = read_labels(f"table:{tmp_path / 'mine.csv'}")
    assert all(labeller(file) is not None for file in expected)


def reordered(cells: list[dict[str, str]]) -> list[dict[str, str]]:
    names = sorted(cells[0], reverse=True)
    return [{name: one[name] for name in names} for one in sorted(cells, key=lambda one: one["confidence"])]


def rewritten(cells: list[dict[str, str]]) -> list[dict[str, str]]:
    """As spreadsheets and programs change what they take for numbers, text marks and capitals."""
    return [
        {
            **one,
            "file": one["file"].removeprefix("'"),
            "confidence": one["confidence"].replace(".", ","),
            "start_s": "01. Mai",
            "stratum_rows": one["stratum_rows"] and f"{one['stratum_rows']}.0",
            "correct_emotion": f" {one['correct_emotion'].capitalize()} ",
            "my notes": "loud; \n unclear",
        }
        for one in cells
    ]


@pytest.mark.parametrize(
    ("change", "encode"),
    [
        pytest.param(lambda cells: cells, lambda text: text.encode("utf-8-sig"), id="as it was"),
        pytest.param(reordered, lambda text: text.encode(), id="rows and columns in another order, no mark"),
        pytest.param(rewritten, lambda text: text.encode(), id="numbers, apostrophes and capitals"),
        pytest.param(lambda cells: cells, lambda text: text.encode("utf-16"), id="utf-16"),
        pytest.param(lambda cells: cells, lambda text: b"sep=;\r\n" + text.encode(), id="with its separator named"),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_do_changes_nothing(
    table: Path,
    tmp_path: Path,
    change: Callable[[list[dict[str, str]]], list[dict[str, str]]],
    encode: Callable[[str], bytes],
    delimiter: str,
) -> None:
    """Other separators, quotes, line ends, orders, encodings and spellings of numbers give the same review."""
    sheet = tmp_path / "sheet.csv"
    emotion_batch.review(table, sheet, size=60)
    fill(sheet, answer_truly)
    plain = emotion_batch.take_review(table, sheet)
    before = (tmp_path / "sheet.labels.csv").read_bytes()
    cells = change(read_cells(sheet))
    text = io.StringIO(newline="")
    style = {"quoting": csv.QUOTE_ALL, "lineterminator": "\r\n"} if delimiter == ";" else {"lineterminator": "\n"}
    writer = csv.DictWriter(text, list(cells[0]), delimiter=delimiter, **style)
    writer.writeheader()
    writer.writerows([*cells, dict.fromkeys(cells[0], "")])
    sheet.write_bytes(encode(text.getvalue()))
    assert emotion_batch.take_review(table, sheet, force=True) == plain
    assert (tmp_path / "sheet.labels.csv").read_bytes() == before


def edit(cells: list[dict[str, str]], at: int, **values: str) -> list[dict[str, str]]:
    return [{**one, **values} if number == at else one for number, one in enumerate(cells)]


WRONG: dict[str, tuple[Callable[[list[dict[str, str]]], list[dict[str, str]]], str]] = {
    "an unknown label": (
        lambda cells: edit(cells, 3, correct_emotion="furious"),
        (
            "row 5: correct_emotion must be one of angry, happy, sad, none if there is no emotion to hear, or ? "
            "if you cannot tell: 'furious'; --new-label allows another word; nothing of the sheet was taken"
        ),
    ),
    "another file": (
        lambda cells: edit(cells, 0, file="calls/other.wav"),
        "row 2: file, emotion, part, stratum, stratum_rows or stratum_drawn is not as it was written",
    ),
    "another emotion": (
        lambda cells: edit(cells, 0, emotion=next(word for word in LABELS if word != cells[0]["emotion"])),
        "row 2: file, emotion, part, stratum",
    ),
    "another weight": (
        lambda cells: [{**one, "stratum_rows": "7"} if one["part"] == RANDOM else one for one in cells],
        "29 more such rows",
    ),
    "another part": (
        lambda cells: edit(
            cells, [one["part"] for one in cells].index(INFORMATIVE), part=RANDOM, stratum=str(STRATA[0])
        ),
        "file, emotion, part, stratum, stratum_rows or stratum_drawn is not as it was written",
    ),
    "one column sorted by itself": (
        lambda cells: [
            {**one, "file": name} for one, name in zip(cells, sorted(one["file"] for one in cells), strict=True)
        ],
        "more such rows); nothing of the sheet was taken",
    ),
    "a key that is cut": (
        lambda cells: edit(cells, 1, key="r2of60"),
        "row 3: its key is not as it was written: 'r2of60'",
    ),
    "a row without a key": (
        lambda cells: [*cells, {**dict.fromkeys(cells[0], ""), "file": "mine.wav", "correct_emotion": "sad"}],
        "row 62: its key is not as it was written: ''",
    ),
    "another model": (
        lambda cells: [{**one, "model_id": "0ther"} for one in cells],
        "row 2: its label is from model '0ther', and the labels of the table are from model m0del (59 more such rows)",
    ),
    "a row twice with other answers": (
        lambda cells: [*cells, {**cells[4], "correct_emotion": "none"}],
        "row 62: it repeats row 6 with another answer",
    ),
    "nothing filled in": (
        lambda cells: [{**one, "correct_emotion": ""} for one in cells],
        "correct_emotion is empty in every row",
    ),
    "no rows": (lambda cells: [dict.fromkeys(cells[0], "")], "it has no rows below the names of its columns"),
    "a column less": (
        lambda cells: [{name: cell for name, cell in one.items() if name != "key"} for one in cells],
        "its first row lacks 'key'",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_sheet_that_is_wrong_is_refused_whole(table: Path, tmp_path: Path, kind: str) -> None:
    """A mistake is one sentence with the row where a person finds it, and nothing is written."""
    change, sentence = WRONG[kind]
    sheet = tmp_path / "sheet.csv"
    emotion_batch.review(table, sheet, size=60)
    fill(sheet, answer_truly)
    write_cells(sheet, change(read_cells(sheet)))
    with pytest.raises(UsageError) as caught:
        emotion_batch.take_review(table, sheet)
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"labels", "sheet.csv"}


def test_other_bytes_are_no_sheet(table: Path, tmp_path: Path) -> None:
    """What is no CSV of ours, or in no encoding that can be told, is one sentence."""
    for data, sentence in (
        (b"file;emotion\ngr\xfc\xdfe.wav;sad\n", "it is not CSV in UTF-8"),
        (b"", "name a sheet that `emotion-batch review` wrote"),
        (b"PK\x03\x04\x00\x00", "name a sheet that `emotion-batch review` wrote"),
        (b'"' + b"x" * 200_000, "it is not CSV (field larger than field limit (131072))"),
    ):
        (tmp_path / "sheet.csv").write_bytes(data)
        with pytest.raises(UsageError, match=r"^sheet ") as caught:
            emotion_batch.take_review(table, tmp_path / "sheet.csv")
        assert sentence in str(caught.value)


def test_rows_that_are_lost_or_there_twice_are_counted(table: Path, tmp_path: Path) -> None:
    """A sheet that was half filled in, and lost and doubled rows, is taken for what it says."""
    sheet = tmp_path / "sheet.csv"
    emotion_batch.review(table, sheet, size=100)
    cells = [{**one, "correct_emotion": answer_truly(one)} for one in read_cells(sheet)]
    for one in cells[50:]:
        one["correct_emotion"] = ""
    cells[0]["correct_emotion"], cells[1]["correct_emotion"] = "?", "none"
    # One row is there twice, answered in one of them.
    write_cells(sheet, [*cells[:90], {**cells[5], "correct_emotion": ""}, cells[6]])
    taken = emotion_batch.take_review(table, sheet)
    assert (taken.n_answered, taken.n_unanswered, taken.n_missing, taken.n_repeated) == (50, 40, 10, 2)
    assert (taken.n_unsure, taken.n_none, taken.n_labelled) == (1, 1, 48)
    # Both parts take turns, so that half of a sheet has half of each; "?" is no answer, "none" a wrong label.
    n_random = sum(one["part"] == RANDOM for one in cells[1:50])
    assert n_random in (24, 25)
    assert taken.precision[0].n_checked == n_random


def test_a_table_that_has_changed_since(tmp_path: Path) -> None:
    """Answers about rows that the table has no more, or with another label, are left out and counted."""
    files = [f"calls/{at:03d}.wav" for at in range(300)]
    place = write_table(tmp_path / "labels", files)
    sheet = tmp_path / "sheet.csv"
    emotion_batch.review(place.url, sheet, size=60)
    fill(sheet, answer_truly)
    whole = emotion_batch.take_review(place.url, sheet)
    manifest = Manifest(place)
    labels = {one["file"]: one for one in read_cells(sheet)}
    gone, other = list(labels)[:2]
    for shard, entry in manifest.shards.items():
        rows = read_part(place, shard)
        found = rows["file"].to_pylist()
        emotions = [
            LABELS[LABELS.index(word) - 1] if file == other else word
            for file, word in zip(found, rows["emotion"].to_pylist(), strict=True)
        ]
        at = rows.column_names.index("emotion")
        rows = rows.set_column(at, INFO.schema.field("emotion"), [emotions])
        publish_part(place, INFO, shard, entry.digest, rows.filter([file != gone for file in found]))
    taken = emotion_batch.take_review(place.url, sheet, force=True)
    assert (taken.n_gone, taken.n_changed, taken.n_labelled) == (1, 1, whole.n_labelled - 2)
    # Another table of the same model: no recording of the sheet is in it.
    elsewhere = write_table(tmp_path / "elsewhere", [f"mails/{at:03d}.wav" for at in range(300)])
    with pytest.raises(
        UsageError, match="has labels for none of its rows; name the table that the sheet was written for"
    ):
        emotion_batch.take_review(elsewhere.url, sheet, force=True)
    # And one of another model.
    relabelled = write_table(tmp_path / "relabelled", files, replace(INFO, model_id="n3w"))
    with pytest.raises(
        UsageError, match=r"row 2: its label is from model .*, and the labels of the table are from model n3w"
    ):
        emotion_batch.take_review(relabelled.url, sheet, force=True)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_answers_about_windows_label_these_windows(tmp_path: Path, suffix: str) -> None:
    """Each answer is a label of its segment, with its own speaker, whatever else is said of the call."""
    info = replace(INFO, segments=Segments.windows(3, 1))
    files = [f"call{at:02d}.wav" for at in range(40)]
    place = write_table(tmp_path / "labels", files, info, n_windows=2)
    rows = [row for row in pq.read_table(place.url).to_pylist() if row["status"] == "ok"]
    sheet = tmp_path / "sheet.csv"
    written = emotion_batch.review(place.url, sheet, size=80, random=80)
    assert written.n_rows == len(rows)

    def answer(file: str, start_s: float) -> str:
        return "sad" if file < "call20.wav" or start_s == 0 else "angry"

    cells = read_cells(sheet)
    for one in cells:
        one["correct_emotion"] = answer(one["file"], float(one["start_s"]))
        one["speaker"] = "agent" if one["start_s"] == "0" else ""
        # As a spreadsheet writes numbers.
        one["start_s"], one["end_s"] = "01. Mai", one["end_s"].replace(".", ",")
    cells[0]["correct_emotion"] = "none"
    write_cells(sheet, cells)
    taken = emotion_batch.take_review(place.url, sheet, labels=tmp_path / f"mine.{suffix}")
    assert (taken.has_segments, taken.n_labelled, taken.n_none) == (True, len(rows) - 1, 1)
    labeller = read_labels(f"table:{tmp_path}/mine.{suffix}")
    found = {(row["file"], row["start_s"]): labeller(row["file"], row["start_s"], row["end_s"]) for row in rows}
    assert sum(one is None for one in found.values()) == 1
    for (file, start_s), one in found.items():
        assert one is None or one == (answer(file, start_s), None if start_s else "agent")
    assert labeller("call00.wav") is None
    assert f"{len(rows) - 1:,} labelled segments, {taken.n_corrected:,} of them corrected" in str(format_review(taken))
    # All rows were drawn and answered: nothing is left to chance.
    overall = taken.precision[0]
    assert overall.share == overall.low == overall.high
    n_wrong = sum(answer(row["file"], row["start_s"]) != row["emotion"] for row in rows)
    assert n_wrong - 1 <= taken.n_corrected <= n_wrong


def test_eighty_answers_about_windows_are_eighty_rows_to_learn_from(
    speech: Path, features: Path, bundle: Path, tmp_path: Path
) -> None:
    """Of recordings in windows each answer is a row of the training that the command names, and of an evaluation."""
    table, kept, sheet = tmp_path / "labels", tmp_path / "kept", tmp_path / "sheet.csv"
    done = call_command("label", speech, table, "--model", bundle, "--window", "0.7", "--keep-features", kept)
    assert done.code == 0, done.err
    emotion_batch.review(table, sheet, size=80, random=80)
    fill(sheet, lambda cells: Path(review_sheet.unguard(cells["file"])).stem.split("_")[-1])
    done = call_command("review", table, sheet, "--take")
    assert done.code == 0, done.err
    assert "80 labelled segments" in done.out
    source = f"table:{tmp_path}/sheet.labels.csv"
    assert done.out.splitlines()[-1] == f"next: emotion-batch train {kept} BUNDLE --labels {source}"
    with (tmp_path / "sheet.labels.csv").open(newline="") as stream:
        assert next(csv.reader(stream)) == ["file", "start_s", "end_s", "emotion"]
    options = ("--labels", source, "--epochs", "1", "--max-folds", "0", "--json")
    done = call_command("train", kept, tmp_path / "bundle", *options)
    assert done.code == 0, done.err
    assert done.result["training"]["n_rows"] == 80
    assert "have no label" in done.err
    assert emotion_batch.evaluate(bundle, kept, labels=source, robustness=0).figures["n_rows"] == 80
    # Of other segments of the same recordings nothing was said.
    with pytest.raises(UsageError, match="80 of its 80 rows found no segment"):
        emotion_batch.evaluate(bundle, features, labels=source, robustness=0)


def test_speakers_and_new_words(table: Path, tmp_path: Path) -> None:
    """Who speaks goes into the labels where it was filled in; a word that the model does not know must be allowed."""
    sheet = tmp_path / "sheet.csv"
    emotion_batch.review(table, sheet, size=60)
    cells = [{**one, "correct_emotion": "Bored", "speaker": f"S{at % 2}"} for at, one in enumerate(read_cells(sheet))]
    cells[0]["speaker"] = ""
    write_cells(sheet, cells)
    with pytest.raises(UsageError, match="if you cannot tell: 'Bored'"):
        emotion_batch.take_review(table, sheet)
    taken = emotion_batch.take_review(table, sheet, new_labels=["bored"])
    assert taken.n_corrected == 60
    assert taken.precision[0].share == 0
    labeller = read_labels(f"table:{taken.labels}")
    found = [labeller(review_sheet.unguard(one["file"])) for one in cells]
    assert {one.emotion for one in found if one} == {"bored"}
    assert [(one.speaker or "") for one in found if one] == [one["speaker"] for one in cells]


def test_the_same_seed_draws_the_same(table: Path, tmp_path: Path) -> None:
    """A drawing follows from the table and the seed; another seed draws other rows at random and chooses alike."""
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        emotion_batch.review(table, tmp_path / name, size=60, seed=seed)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()
    parts = [
        {
            part: {cells["file"] for cells in read_cells(tmp_path / name) if cells["part"] == part}
            for part in (RANDOM, INFORMATIVE)
        }
        for name in ("one", "other")
    ]
    assert len(parts[0][RANDOM] & parts[1][RANDOM]) < 15
    assert len(parts[0][INFORMATIVE] & parts[1][INFORMATIVE]) > 20


def test_what_teaches_the_most_is_chosen(table: Path, tmp_path: Path) -> None:
    """The chosen rows are those with the smallest margin of each label, in domain and not, and speech."""
    sheet = tmp_path / "sheet.csv"
    emotion_batch.review(table, sheet, size=60, random=0)
    cells = read_cells(sheet)
    rows = [row for row in pq.read_table(table).to_pylist() if row["status"] == "ok" and row["is_speech"]]
    for emotion in LABELS:
        for domain, word in ((True, "yes"), (False, "no")):
            group = sorted(
                (row["margin"], row["file"])
                for row in rows
                if row["emotion"] == emotion and row["is_in_domain"] == domain
            )
            mine = [
                review_sheet.unguard(one["file"])
                for one in cells
                if (one["emotion"], one["is_in_domain"]) == (emotion, word)
            ]
            assert mine == [file for _, file in group[:10]]
    assert [one["margin"] for one in cells[:6]] == [
        min(
            one["margin"]
            for one in cells
            if (one["emotion"], one["is_in_domain"]) == (first["emotion"], first["is_in_domain"])
        )
        for first in cells[:6]
    ]


@pytest.mark.parametrize(
    ("sizes", "n_rows"),
    [
        ([0, 0, 5, 1, 0, 9_999_000, 300, 2], 50),
        ([1] * 8, 20),
        ([10**7] * 8, 20),
        ([3, 0, 0, 0, 0, 0, 0, 10**6], 100),
        ([0] * 8, 20),
    ],
)
def test_each_stratum_gets_its_share(sizes: list[int], n_rows: int) -> None:
    """Exactly as many rows are drawn as were asked for, or as there are; of each stratum two, or all it has."""
    drawn = allocate(sizes, n_rows)
    assert sum(drawn) == min(n_rows, sum(sizes))
    assert all(min(size, 2) <= n <= size for size, n in zip(sizes, drawn, strict=True))


@pytest.mark.parametrize("n_drawings", [120, pytest.param(300, marks=pytest.mark.torture)])
def test_the_estimate_has_no_bias_and_its_interval_holds(n_drawings: int) -> None:
    """Over many drawings from a known truth the mean estimate is the truth, and 95 % intervals hold it in about 95 %.

    What was chosen for being unsure, taken as a sample, misses the truth by far: the test would see a bias.
    """
    n_rows, n_whole = 2_000, 20
    parts = [
        rows_of([f"{shard}/{at}" for at in range(n_rows // 4)], seed=shard).select(list(COLUMNS)) for shard in range(4)
    ]
    numbered = [part.append_column("shard", [[shard] * part.num_rows]) for shard, part in enumerate(parts)]
    chunks, one_chunk = [pa.concat_tables(numbered[:2]), *numbered[2:]], [pa.concat_tables(numbered)]
    rng = np.random.default_rng(5)
    right: dict[str, bool] = {}
    of_stratum: dict[tuple[str, bool], list[bool]] = {}
    for part in parts:
        for row in part.filter(pa.compute.equal(part["status"], "ok")).to_pylist():
            # Surer labels are oftener right; more often still where the table says so.
            right[row["file"]] = bool(rng.random() < row["confidence"] ** 2 + 0.1 * row["is_confident"])
            of_stratum.setdefault(("is_confident", row["is_confident"]), []).append(right[row["file"]])
    truths = {"all": np.mean(list(right.values())), "is_confident": np.mean(of_stratum["is_confident", True])}
    estimates: dict[str, list[float]] = {name: [] for name in (*truths, "naive")}
    held: Counter[str] = Counter()
    for seed in range(n_drawings):
        # Of most the random part is enough, which does not depend on the other.
        is_whole = seed < n_whole
        drawn, _, n_parts = draw(chunks if is_whole else one_chunk, 120 if is_whole else 60, 60, seed)
        assert n_parts == len(parts)
        answers = [(one.stratum, right[one.row.file]) for one in drawn if one.stratum is not None]
        sizes = {one.stratum: one.n_stratum for one in drawn if one.stratum is not None}
        found = {one.of: one for one in review_sample.measure_precision(answers, sizes)}
        if seed < n_whole:
            estimates["naive"].append(float(np.mean([right[one.row.file] for one in drawn])))
        for name, value in truths.items():
            one = found[name]
            assert one.n_unknown == 0
            estimates[name].append(one.share)
            held[name] += one.low <= value <= one.high
    for name, value in truths.items():
        error = np.std(estimates[name]) / np.sqrt(n_drawings)
        assert abs(np.mean(estimates[name]) - value) < 3 * error, name
        assert 0.92 <= held[name] / n_drawings <= 1, name
    assert abs(np.mean(estimates["naive"]) - truths["all"]) > 10 * np.std(estimates["naive"]) / np.sqrt(n_whole)


def test_the_share_of_a_label_by_ear_has_no_bias_and_its_interval_holds() -> None:
    """A label that is given far too often has its true share by ear, however confident the model is, and 95 % intervals hold it."""
    rng = np.random.default_rng(8)
    sizes = dict(zip(STRATA, (3_000, 40, 900, 600, 0, 1_500, 0, 200), strict=True))
    # How often a row of each stratum is angry, and how often the model says so.
    true, said = rng.uniform(0.02, 0.5, len(STRATA)), rng.uniform(0.5, 0.9, len(STRATA))
    angry = {one: rng.random(size) < share for (one, size), share in zip(sizes.items(), true, strict=True)}
    truth = sum(one.sum() for one in angry.values()) / sum(sizes.values())
    given = float(np.dot(said, list(sizes.values())) / sum(sizes.values()))
    estimates, n_held, n_drawings = [], 0, 400
    for _ in range(n_drawings):
        answers = []
        for stratum, n_drawn in zip(STRATA, allocate(list(sizes.values()), 60), strict=True):
            heard = rng.choice(angry[stratum], n_drawn, replace=False) if n_drawn else []
            answers += [(stratum, "angry" if one else "none") for one in heard]
        shares = review_sample.measure_shares(answers, sizes, {"angry": given, "sad": 1 - given})
        assert [one.label for one in shares] == ["angry", "sad", "none"]
        assert shares[1].share == shares[1].low == 0 < shares[1].high
        assert shares[0].share + shares[2].share == pytest.approx(1)
        estimates.append(shares[0].share)
        n_held += shares[0].low <= truth <= shares[0].high
    assert abs(np.mean(estimates) - truth) < 3 * np.std(estimates) / np.sqrt(n_drawings)
    assert n_held / n_drawings >= 0.93
    assert given - truth > 5 * np.std(estimates)
    assert review_sample.measure_shares([], sizes, {"angry": given}) == []


@pytest.mark.parametrize(("n", "right"), [(10, 10), (10, 0), (1, 1), (25, 24)])
def test_an_interval_of_one_stratum_is_wilsons(n: int, right: int) -> None:
    """Of a small part of one large stratum it is the textbook's, with a width also where all is right."""
    share, low, high = review_sample.estimate_share([(10**9, n, right)])
    z = 1.959964
    middle = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(right * (n - right) / n + z**2 / 4)
    assert (share, low, high) == pytest.approx((right / n, middle - half, middle + half), abs=1e-6)
    assert high - low > 0.1


def test_the_command_says_what_to_do_next(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`review` writes, refuses to replace, takes back, prints text and JSON, each with what comes next."""
    sheet = tmp_path / "my sheet.csv"
    call = ["review", os.fspath(table), os.fspath(sheet)]
    assert app.run_command([*call, "--size", "60"]) == 0
    out = capsys.readouterr().out
    assert "60 of" in out
    assert "angry, happy, sad" in out
    assert out.splitlines()[-1] == f"next: emotion-batch review {table} '{sheet}' --take"
    assert app.run_command(call) == 2
    assert "it exists already; name another, or use --force to replace it" in capsys.readouterr().err
    fill(sheet, answer_truly)
    assert app.run_command([*call, "--take"]) == 0
    out = capsys.readouterr().out
    assert "is_confident" in out
    assert "Wilson" in out
    assert out.splitlines()[-1].startswith("next: emotion-batch train FEATURES BUNDLE --labels 'table:")
    assert app.run_command([*call, "--take", "--json", "--force"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_labelled"] == 60
    assert result["precision"][0]["of"] == "all"
    for options, sentence in (
        (("--take", "--size", "30"), "--size cannot be combined with --take"),
        (("--labels", "x.csv"), "--labels requires --take"),
        (("--force", "--size", "10"), "size must be from 20 to 10,000 rows: 10"),
        (("--force", "--random", "5"), "random must be 0, or from 20 to 100 rows"),
    ):
        assert app.run_command([*call, *options]) == 2
        said = capsys.readouterr()
        assert (said.out, sentence in said.err) == ("", True), said.err


def test_tables_that_cannot_be_reviewed(features: Path, tmp_path: Path) -> None:
    """A feature table, no table, and one without a label are each one sentence; a part that is missing is counted."""
    with pytest.raises(UsageError, match="it holds features, not labels; label it first"):
        emotion_batch.review(features, tmp_path / "sheet.csv")
    with pytest.raises(UsageError, match="there is no table; check the name"):
        emotion_batch.review(tmp_path / "nothing", tmp_path / "sheet.csv")
    place = write_table(tmp_path / "labels", [f"{at:03d}.wav" for at in range(400)])
    parts = sorted((tmp_path / "labels").glob("*.parquet"))
    parts[0].unlink()
    assert emotion_batch.review(place.url, tmp_path / "sheet.csv", size=40).n_parts_missing == 1
    for part in parts[1:]:
        part.unlink()
    with pytest.raises(IncompleteError, match="none of its rows has a label yet"):
        emotion_batch.review(place.url, tmp_path / "other.csv")


def test_real_labels_are_reviewed_and_learnt_from(labels: Path, features: Path, tmp_path: Path) -> None:
    """A table that a model made is reviewed, and a training takes the answers, with speakers, as its labels."""
    sheet = tmp_path / "sheet.csv"
    done = call_command("review", labels, sheet, "--json")
    assert done.code == 0, done.err
    assert done.result["n_rows"] == 84
    cells = read_cells(sheet)
    for one in cells:
        one["speaker"], _, one["correct_emotion"] = Path(one["file"]).stem.split("_")
    write_cells(sheet, cells)
    done = call_command("review", labels, sheet, "--take")
    assert done.code == 0, done.err
    last = done.out.splitlines()[-1]
    assert last == f"next: emotion-batch train {features} BUNDLE --labels table:{tmp_path}/sheet.labels.csv"
    from emotion_batch.training.data import read_dataset

    place = Folder.of(features)
    info = read_info(place)
    assert info is not None
    found = read_dataset(place, info, sorted(Manifest(place).shards), f"table:{tmp_path}/sheet.labels.csv", None)
    assert len(found.targets) == 84
    assert found.n_speakers == 2


def test_a_table_in_a_bucket(s3: servers.Bucket, tmp_path: Path) -> None:
    """Table, sheet and labels may lie in a bucket."""
    place = write_table(tmp_path / "labels", [f"{at:03d}.wav" for at in range(300)])
    s3.upload(tmp_path / "labels", "review/labels")
    there, bucket = f"{s3.url}/review/labels", Folder.of(f"{s3.url}/review", s3.options)
    emotion_batch.review(there, f"{bucket.url}/sheet.csv", size=40, storage_options=s3.options)
    emotion_batch.review(place.url, tmp_path / "sheet.csv", size=40)
    assert bucket.read("sheet.csv") == (tmp_path / "sheet.csv").read_bytes()
    fill(tmp_path / "sheet.csv", answer_truly)
    bucket.publish("sheet.csv", (tmp_path / "sheet.csv").read_bytes())
    taken = emotion_batch.take_review(there, f"{bucket.url}/sheet.csv", storage_options=s3.options)
    assert taken.labels == f"{bucket.url}/sheet.labels.csv"
    here = emotion_batch.take_review(place.url, tmp_path / "sheet.csv")
    assert bucket.read("sheet.labels.csv") == (tmp_path / "sheet.labels.csv").read_bytes()
    assert taken.precision == here.precision
