"""Draw labels for a person to check, and read back what the person says about them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.analysis import review_sheet
from emotion_batch.analysis.review_sample import (
    COLUMNS,
    LEAST_RANDOM,
    METHOD,
    RANDOM,
    Precision,
    draw,
    measure_precision,
)
from emotion_batch.analysis.review_sheet import SheetRow
from emotion_batch.analysis.scan import read_chunks
from emotion_batch.errors import IncompleteError, Status, UsageError
from emotion_batch.storage import names
from emotion_batch.storage.folder import Folder, explained, split_file
from emotion_batch.tables import parts, schema
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.parts import PartError
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.table import find_kept_features, require_table

# What a person may answer beside a label: there is no emotion to hear, and one cannot tell.
NONE, UNSURE = "none", "?"
# Parts that are read ahead.
_N_AHEAD = 8


@dataclass(frozen=True)
class Sheet:
    """What `review` wrote.

    Attributes
    ----------
    table, sheet
        Where the labels are, and where the sheet is.
    source
        What the labels are of: below it lie the recordings.
    labels
        What may be filled in.
    n_rows, n_random
        Rows of the sheet, and those of them that were drawn at random.
    n_table
        Rows with a label in the table.
    n_parts_missing
        Parts of the table that are still to come, of whose rows none is in the sheet.
    """

    table: str
    sheet: str
    source: str
    labels: tuple[str, ...]
    n_rows: int
    n_random: int
    n_table: int
    n_parts_missing: int


@dataclass(frozen=True)
class Review:
    """What a sheet said when it was taken back.

    Attributes
    ----------
    table, sheet
        The table, and the sheet.
    labels
        The file with labels for `train`; None where no row has one.
    features
        The feature table that these labels are for, where the table knows it.
    has_segments
        Whether its rows are about segments, as those of a table of windows are; else they are about whole recordings.
    n_labelled, n_corrected
        Rows of that file; those of them whose label was another.
    n_answered, n_unanswered
        Rows of the sheet with an answer, and without one.
    n_none, n_unsure
        Answers ``none``, which count as a label that is wrong, and ``?``, which count as no answer.
    n_missing, n_repeated
        Rows that the sheet lost, and those that are in it twice with the same answer.
    n_gone, n_changed
        Answers about rows that the table has no more, or with another label than was checked; they are left out.
    precision
        How often labels are right: in all, of confident ones, by confidence.
    method
        How its intervals were made.
    """

    table: str
    sheet: str
    labels: str | None
    features: str | None
    has_segments: bool
    n_labelled: int
    n_corrected: int
    n_answered: int
    n_unanswered: int
    n_none: int
    n_unsure: int
    n_missing: int
    n_repeated: int
    n_gone: int
    n_changed: int
    precision: tuple[Precision, ...] = ()
    method: str = METHOD


def review(
    table: str | os.PathLike[str],
    sheet: str | os.PathLike[str],
    *,
    size: int = 100,
    random: int | None = None,
    seed: int = 0,
    storage_options: Mapping[str, Any] | None = None,
    force: bool = False,
    on_rows: Callable[[int, int], None] = lambda n_done, n_parts: None,
) -> Sheet:
    """Write a sheet of a label table's rows for a person to check; `take_review` takes it back.

    One part is what teaches the most: rows whose label leads the next by the least, of each label in turn, in domain and
    not, of a recording one. The other is drawn at random within ranges of confidence, and measures how often labels are
    right.

    Parameters
    ----------
    table
        The label table.
    sheet
        Path or URL of the CSV to write.
    size
        Its rows, from 20 to 10,000.
    random
        How many of them are drawn at random; by default half, and 20 or more.
    seed
        What chance follows from.
    storage_options
        What fsspec's filesystem takes.
    force
        Replace what is called `sheet`.
    on_rows
        Hears how many of how many parts were read.

    Raises
    ------
    UsageError
        If there is no label table, the sheet is there, or a number is outside its range.
    IncompleteError
        If the table has no label yet.
    """
    place = Folder.of(table, storage_options)
    folder, name = split_file(Folder.of(sheet, storage_options))
    info = _require_labels(place)
    _require_new(folder, name, force)
    shards = read_manifest(place, info).shards
    n_random = max(LEAST_RANDOM, size // 2) if random is None else random
    drawn, n_table, n_parts = draw(read_chunks(place, info, shards, COLUMNS, on_rows), size, n_random, seed)
    if not n_table:
        raise IncompleteError(f"table {place.url}: none of its rows has a label yet; run the labelling again")
    data = review_sheet.write_sheet(drawn, str(info.model_id), n_table)
    with explained(f"sheet {folder.url}/{name}"):
        folder.publish(name, data)
    return Sheet(
        table=place.url,
        sheet=os.fspath(sheet),
        source=info.source,
        labels=info.labels,
        n_rows=len(drawn),
        n_random=sum(one.part == RANDOM for one in drawn),
        n_table=n_table,
        n_parts_missing=len(shards) - n_parts,
    )


def take_review(
    table: str | os.PathLike[str],
    sheet: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    new_labels: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Review:
    """Take a sheet back that a person filled in, all of it or nothing.

    Of a table with one segment a recording, the answer is the recording's label. Of windows it is that segment's alone: a
    call is not angry because three seconds of it are.

    Parameters
    ----------
    table
        The label table that it was written for.
    sheet
        The sheet.
    labels
        CSV or Parquet (by its suffix) to write, for ``train --labels table:FILE``; by default beside the sheet.
    new_labels
        Words that may be filled in though the model does not know them.
    storage_options
        What fsspec's filesystem takes.
    force
        Replace what is called `labels`.

    Raises
    ------
    UsageError
        If it is no sheet of this table and its model, a row is not as it was written, an answer is unknown, or there is
        none.
    """
    place = Folder.of(table, storage_options)
    from_folder, name = split_file(Folder.of(sheet, storage_options))
    stem = os.fspath(sheet).removesuffix(".csv")
    to = f"{stem}.labels.csv" if labels is None else os.fspath(labels)
    to_folder, to_name = split_file(Folder.of(to, storage_options))
    info = _require_labels(place)
    thing = f"sheet {from_folder.url}/{name}"
    with explained(thing):
        data = from_folder.read(name)
    _require_new(to_folder, to_name, force)
    rows = review_sheet.read_sheet(data, thing, str(info.model_id))
    rows, n_repeated = _without_repetitions(rows, thing)
    new_labels = [names.clean(label) for label in new_labels]
    answers = _read_answers(rows, thing, (*info.labels, *new_labels))
    if not answers:
        raise UsageError(
            f"{thing}: correct_emotion is empty in every row; fill it in and take the sheet again"
        )
    with explained(f"table {place.url}"):
        found = _look_up(place, info, rows)
    if not any(emotion for emotion, *_ in found.values()):
        raise UsageError(
            f"{thing}: the table {place.url} has labels for none of its rows; name the table that the sheet was written for"
        )
    answered = [row for row in rows if row.number in answers and row.number in found]
    valid = [row for row in answered if found[row.number][0] == row.emotion]
    # A model may have a label of that name.
    apart = {NONE, UNSURE} - {*info.labels, *new_labels}
    labelled = [row for row in valid if answers[row.number] not in apart]
    labelled.sort(key=lambda row: (row.file, found[row.number][1:]))
    has_segments = info.segments.hop_s is not None
    if labelled:
        columns: dict[str, list[Any]] = {"file": [row.file for row in labelled]}
        if has_segments:
            columns |= {"start_s": [found[row.number][1] for row in labelled]}
            columns |= {"end_s": [found[row.number][2] for row in labelled]}
        columns["emotion"] = [answers[row.number] for row in labelled]
        if any(row.speaker for row in labelled):
            columns["speaker"] = [row.speaker for row in labelled]
        with explained(f"labels {to_folder.url}/{to_name}"):
            to_folder.publish(to_name, review_sheet.encode_labels(to_name, columns))
    told = [row for row in valid if answers[row.number] not in apart - {NONE}]
    sizes = {row.stratum: row.n_stratum for row in rows if row.stratum is not None}
    judged = [(row.stratum, answers[row.number] == row.emotion) for row in told if row.stratum is not None]
    counts = Counter(answers[row.number] for row in valid)
    return Review(
        table=place.url,
        sheet=os.fspath(sheet),
        labels=to if labelled else None,
        features=info.features or find_kept_features(place, info),
        has_segments=has_segments,
        n_labelled=len(labelled),
        n_corrected=sum(answers[row.number] != row.emotion for row in labelled),
        n_answered=len(answers),
        n_unanswered=len(rows) - len(answers),
        n_none=counts[NONE] if NONE in apart else 0,
        n_unsure=counts[UNSURE] if UNSURE in apart else 0,
        n_missing=rows[0].n_rows - len(rows),
        n_repeated=n_repeated,
        n_gone=len(answers) - len(answered),
        n_changed=len(answered) - len(valid),
        precision=tuple(measure_precision(judged, sizes)),
    )


def _require_labels(place: Folder) -> TableInfo:
    info = require_table(place)
    if info.kind != schema.LABELS:
        raise UsageError(f"table {place.url}: it holds {info.kind}, not labels; label it first")
    return info


def _require_new(folder: Folder, name: str, force: bool) -> None:
    with explained(f"file {folder.url}/{name}"):
        if not force and folder.exists(name):
            raise UsageError(
                f"file {folder.url}/{name}: it exists already; name another, or use --force to replace it"
            )


def _without_repetitions(rows: Sequence[SheetRow], thing: str) -> tuple[list[SheetRow], int]:
    """Return a sheet's rows once each, and how many were there again; raise UsageError where they contradict."""
    known: dict[int, SheetRow] = {}
    problems = []
    for row in rows:
        first = known.setdefault(row.n_of, row)
        if (first.identity, first.n_rows, first.n_table) != (row.identity, row.n_rows, row.n_table):
            problems.append(f"row {row.number}: it is from another sheet than row {first.number}")
        elif not first.answer and not first.speaker:
            known[row.n_of] = row
        elif (row.answer or row.speaker) and (first.answer, first.speaker) != (row.answer, row.speaker):
            problems.append(
                f"row {row.number}: it repeats row {first.number} with another answer"
            )
    review_sheet.refuse(thing, problems)
    return list(known.values()), len(rows) - len(known)


def _read_answers(rows: Sequence[SheetRow], thing: str, labels: Sequence[str]) -> dict[int, str]:
    """Return the answers by the number of their row, as labels spell them."""
    spelt = {names.clean(word).casefold(): word for word in (NONE, UNSURE, *labels)}
    answers, problems = {}, []
    for row in rows:
        if not row.answer:
            continue
        word = row.answer if row.answer in labels else spelt.get(row.answer.casefold())
        if word is None:
            problems.append(
                f"row {row.number}: correct_emotion must be one of {', '.join(dict.fromkeys(labels))}, {NONE} if "
                f"there is no emotion to hear, or {UNSURE} if you cannot tell: {row.answer!r}; "
                "--new-label allows another word"
            )
        else:
            answers[row.number] = word
    review_sheet.refuse(thing, problems)
    return answers


def _look_up(place: Folder, info: TableInfo, rows: Sequence[SheetRow]) -> dict[int, tuple[str, float, float | None]]:
    """Return what the table has of a sheet's rows, by their number: the label, or "" if there is none, the start and the end.

    Only their own parts are read. A spreadsheet may have written its own numbers for the start and the end.
    """
    by_shard: dict[int, list[SheetRow]] = {}
    for row in rows:
        by_shard.setdefault(row.shard, []).append(row)
    columns = ["file", "start_s", "end_s", "status", "emotion"]

    def read(shard: int) -> pa.Table | None:
        try:
            return parts.read_own(place, info, shard, columns)[1]
        except PartError:
            return None

    found: dict[int, tuple[str, float, float | None]] = {}
    for wanted, part in zip(by_shard.values(), parts.read_ahead(read, by_shard, _N_AHEAD), strict=True):
        if part is None:
            continue
        files = pa.array(sorted({row.file for row in wanted}), pa.string())
        mine = part.filter(pc.is_in(part["file"], value_set=files)).to_pydict()
        there = {
            review_sheet.identify_row(info.model_id, file, start_s): (
                emotion if status == Status.OK else "",
                start_s,
                end_s,
            )
            for file, start_s, end_s, status, emotion in zip(*mine.values(), strict=True)
        }
        found |= {row.number: there[row.identity] for row in wanted if row.identity in there}
    return found
