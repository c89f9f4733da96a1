"""Draw labels for a person to check, and read the answers of that person."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.analysis import review_sample, review_sheet
from emotion_batch.analysis.listening.review_page import write_page
from emotion_batch.analysis.review_sample import METHOD, HeardShare, Precision
from emotion_batch.analysis.review_sheet import SheetRow
from emotion_batch.analysis.scan import read_chunks
from emotion_batch.errors import IncompleteError, Status, UsageError
from emotion_batch.settings import MIX
from emotion_batch.storage import names
from emotion_batch.storage.folder import Folder, explained, split_file
from emotion_batch.tables import parts, schema
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.parts import PartError
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.table import find_kept_features, require_table

# Two further answers: there is no emotion to hear, and the person cannot tell.
NONE, UNSURE = "none", "?"
# Number of parts that are read ahead.
_N_AHEAD = 8


@dataclass(frozen=True)
class Sheet:
    """The sheet that `review` wrote.

    Attributes
    ----------
    table, sheet
        Where the labels are, and where the sheet is.
    source
        The archive or feature table that the labels were made from.
    labels
        The labels that a person may fill in.
    n_rows, n_random
        Number of rows of the sheet, and of those drawn at random.
    n_table
        Number of rows with a label in the table.
    n_parts_missing
        Number of parts that the table still lacks; the sheet has none of their rows.
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
    """The answers of a sheet that was taken back.

    Attributes
    ----------
    table, sheet
        The table, and the sheet.
    labels
        The file with labels for `train`; None if no row has one.
    features
        The feature table that these labels are for; None if it is unknown.
    has_segments
        Whether the labels are for segments, as in a table of windows, or else for whole recordings.
    n_labelled, n_corrected
        Number of rows of that file, and of those whose label was changed.
    n_answered, n_unanswered
        Number of rows of the sheet with an answer, and without one.
    n_none, n_unsure
        Number of answers ``none``, which count as a wrong label, and ``?``, which count as no answer.
    n_missing, n_repeated
        Number of rows that the sheet lost, and of rows that are in it twice with the same answer.
    n_gone, n_changed
        Number of answers about rows that the table no longer has, or has with another label; they are left out.
    precision
        How often labels are right: all labels, confident ones, and by range of confidence.
    shares
        How common each label is in the table by ear, beside the share of rows that it was given to.
    method
        How the intervals of `precision` and `shares` were made.
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
    shares: tuple[HeardShare, ...] = ()
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
    """Write a sheet with rows of a label table for a person to check; `take_review` takes it back.

    One part has the rows that teach the model the most: those with the smallest margin, from each label in turn, in domain
    and not, and at most one from a recording. The other part is drawn at random within ranges of confidence, and measures
    how often labels are right.

    Parameters
    ----------
    table
        The label table.
    sheet
        Path or URL of the CSV to write; or, if it ends with ``.html``, of a page with players that saves the CSV.
    size
        Number of its rows, from 20 to 10,000.
    random
        How many of them are drawn at random; by default half, and 20 or more.
    seed
        Random seed.
    storage_options
        What fsspec's filesystem takes.
    force
        Replace a file that has the name `sheet`.
    on_rows
        Gets the number of parts read, and of all parts.

    Raises
    ------
    UsageError
        If there is no label table, the sheet exists already, or a number is outside its range.
    IncompleteError
        If the table has no label yet.
    """
    place = Folder.of(table, storage_options)
    folder, name = split_file(Folder.of(sheet, storage_options))
    info = _require_labels(place)
    _require_new(folder, name, force)
    shards = read_manifest(place, info).shards
    n_random = max(review_sample.LEAST_RANDOM, size // 2) if random is None else random
    chunks = read_chunks(place, info, shards, review_sample.COLUMNS, on_rows)
    drawn, n_table, n_parts = review_sample.draw(chunks, size, n_random, seed)
    if not n_table:
        raise IncompleteError(f"table {place.url}: none of its rows has a label yet; run the labelling again")
    data = review_sheet.write_sheet(drawn, str(info.model_id), n_table)
    with explained(f"sheet {folder.url}/{name}"):
        if name.lower().endswith((".html", ".htm")):
            write_page(place, (folder, name), drawn, data, info.labels, (NONE, UNSURE))
        else:
            folder.publish(name, data)
    return Sheet(
        table=place.url,
        sheet=os.fspath(sheet),
        source=info.source,
        labels=info.labels,
        n_rows=len(drawn),
        n_random=sum(one.part == review_sample.RANDOM for one in drawn),
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
    """Take back a sheet that a person filled in, either all of it or nothing.

    If the table has one segment for each recording, the answer is the label of the recording. In a table of windows it is the
    label of the window alone, because a call is not angry if only three seconds of it are.

    Parameters
    ----------
    table
        The label table that it was written for.
    sheet
        The sheet.
    labels
        CSV or Parquet (by its suffix) to write, for ``train --labels table:FILE``; by default beside the sheet.
    new_labels
        Further words that may be filled in, which the model does not know.
    storage_options
        What fsspec's filesystem takes.
    force
        Replace a file that has the name `labels`.

    Raises
    ------
    UsageError
        If it is not a sheet of this table and its model, a row is not as it was written, an answer is unknown, or there is
        no answer.
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
        raise UsageError(f"{thing}: correct_emotion is empty in every row; fill it in and take the sheet again")
    with explained(f"table {place.url}"):
        found = _look_up(place, info, rows)
    if not any(emotion for emotion, *_ in found.values()):
        raise UsageError(
            f"{thing}: the table {place.url} has labels for none of its rows; name the table that the sheet was written for"
        )
    answered = [row for row in rows if row.number in answers and row.number in found]
    valid = [row for row in answered if found[row.number][0] == row.emotion]
    # If the model has a label of that name, the answer is that label.
    apart = {NONE, UNSURE} - {*info.labels, *new_labels}
    labelled = [row for row in valid if answers[row.number] not in apart]
    labelled.sort(key=lambda row: (row.file, found[row.number][1:]))
    has_channels = info.segments.channels != MIX
    has_segments = not info.segments.is_one_stretch or has_channels
    if labelled:
        columns: dict[str, list[Any]] = {"file": [row.file for row in labelled]}
        for name, is_used in (("start_s", has_segments), ("end_s", has_segments), ("channel", has_channels)):
            if is_used:
                columns[name] = [getattr(found[row.number], name) for row in labelled]
        columns["emotion"] = [answers[row.number] for row in labelled]
        if any(row.speaker for row in labelled):
            columns["speaker"] = [row.speaker for row in labelled]
        with explained(f"labels {to_folder.url}/{to_name}"):
            to_folder.publish(to_name, review_sheet.encode_labels(to_name, columns))
    told = [row for row in valid if answers[row.number] not in apart - {NONE}]
    sizes = {row.stratum: row.n_stratum for row in rows if row.stratum is not None}
    random = [(row.stratum, row.emotion, answers[row.number]) for row in told if row.stratum is not None]
    judged = [(one, heard == given) for one, given, heard in random]
    shares = review_sample.measure_shares([(one, heard) for one, _, heard in random], sizes, _find_shares(place, info))
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
        precision=tuple(review_sample.measure_precision(judged, sizes)),
        shares=tuple(shares),
    )


class _Found(NamedTuple):
    """A row of a sheet as the table has it; the label is "" if there is none."""

    emotion: str
    start_s: float
    end_s: float | None
    channel: int | None


def _require_labels(place: Folder) -> TableInfo:
    info = require_table(place)
    if info.kind != schema.LABELS:
        raise UsageError(f"table {place.url}: it holds {info.kind}, not labels; label it first")
    return info


def _find_shares(place: Folder, info: TableInfo) -> dict[str, float]:
    """Return the share of each label in the rows of complete parts, as their footers count them."""
    with explained(f"table {place.url}"):
        footers = parts.complete_shards(place, info, read_manifest(place, info).shards)
    counts = sum((footer.counts for footer in footers.values()), parts.Counts())
    return {label: counts.by_label.get(label, 0) / max(1, counts.n_ok) for label in info.labels}


def _require_new(folder: Folder, name: str, force: bool) -> None:
    with explained(f"file {folder.url}/{name}"):
        if not force and folder.exists(name):
            raise UsageError(f"file {folder.url}/{name}: it exists already; name another, or use --force to replace it")


def _without_repetitions(rows: Sequence[SheetRow], thing: str) -> tuple[list[SheetRow], int]:
    """Return a sheet's rows without repetitions, and the number of repetitions; raise UsageError if they contradict."""
    known: dict[int, SheetRow] = {}
    problems = []
    for row in rows:
        first = known.setdefault(row.n_of, row)
        if (first.identity, first.n_rows, first.n_table) != (row.identity, row.n_rows, row.n_table):
            problems.append(f"row {row.number}: it is from another sheet than row {first.number}")
        elif not first.answer and not first.speaker:
            known[row.n_of] = row
        elif (row.answer or row.speaker) and (first.answer, first.speaker) != (row.answer, row.speaker):
            problems.append(f"row {row.number}: it repeats row {first.number} with another answer")
    review_sheet.refuse(thing, problems)
    return list(known.values()), len(rows) - len(known)


def _read_answers(rows: Sequence[SheetRow], thing: str, labels: Sequence[str]) -> dict[int, str]:
    """Return the answers by the number of their row, in the spelling of the labels."""
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


def _look_up(place: Folder, info: TableInfo, rows: Sequence[SheetRow]) -> dict[int, _Found]:
    """Return a sheet's rows as the table has them, by their number.

    Only the parts of these rows are read. A spreadsheet may have written its own numbers for the start and the end.
    """
    by_shard: dict[int, list[SheetRow]] = {}
    for row in rows:
        by_shard.setdefault(row.shard, []).append(row)
    columns = ["file", "channel", "start_s", "end_s", "status", "emotion"]

    def read(shard: int) -> pa.Table | None:
        try:
            return parts.read_own(place, info, shard, columns)[1]
        except PartError:
            return None

    found: dict[int, _Found] = {}
    for wanted, part in zip(by_shard.values(), parts.read_ahead(read, by_shard, _N_AHEAD), strict=True):
        if part is None:
            continue
        files = pa.array(sorted({row.file for row in wanted}), pa.string())
        mine = part.filter(pc.is_in(part["file"], value_set=files)).to_pydict()
        there = {
            review_sheet.identify_row(info.model_id, file, channel, start_s): _Found(
                emotion if status == Status.OK else "", start_s, end_s, channel
            )
            for file, channel, start_s, end_s, status, emotion in zip(*mine.values(), strict=True)
        }
        found |= {row.number: there[row.identity] for row in wanted if row.identity in there}
    return found
