"""Write the sheet that a person fills in, and read it back after a spreadsheet has changed it.

A spreadsheet takes a cell that begins with ``=`` for a formula, reads numbers and dates in its own way, and writes other separators,
quotes and line ends than it read. So the column ``key`` holds a check of the cells that must not change, and no result depends on
a number that a spreadsheet may have rounded.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from emotion_batch.analysis.formats import CsvWriter, ParquetWriter, write_all
from emotion_batch.analysis.review_sample import INFORMATIVE, RANDOM, STRATA, DrawnRow, Stratum
from emotion_batch.errors import UsageError, counted
from emotion_batch.storage import names

HEADS = (
    *("file", "channel", "start_s", "end_s", "emotion", "confidence"),
    *("correct_emotion", "speaker", "margin", "is_in_domain"),
    *("part", "stratum", "stratum_rows", "stratum_drawn", "model_id", "key"),
)
# The other columns may be missing, because they are not read again.
_NEEDED = frozenset({"file", "emotion", "correct_emotion", "part", "stratum", "stratum_rows", "stratum_drawn", "key"})
_DELIMITERS = ",;\t|"
_KEY = re.compile(r"r(\d+)of(\d+)-s(\d+)-n(\d+)-([0-9a-f]{12})-([0-9a-f]{8})")
# A spreadsheet may take a cell with such a start for a formula, or remove the start; an apostrophe prevents that.
_GUARDED_STARTS = ("=", "+", "-", "@", "'", '"', "\t", "\r", "\n")
_ESCAPE = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_BY_NAME = {str(stratum): stratum for stratum in STRATA}


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet that came back as it was written."""

    # The number in a spreadsheet: the first row below the names is 2.
    number: int
    # Its number when the sheet was written, from 1, and the number of rows then.
    n_of: int
    n_rows: int
    shard: int
    # The fingerprint of its recording and segment.
    identity: str
    # The number of rows with a label that the table had then.
    n_table: int
    file: str
    emotion: str
    # These are None and 0 for a row that was chosen.
    stratum: Stratum | None
    n_stratum: int
    # The words of a person, or "".
    answer: str
    speaker: str


def identify_row(model_id: str | None, file: str, channel: int | None, start_s: float) -> str:
    """Return the fingerprint of a segment as a model labelled it."""
    return _digest(model_id, file, float(start_s), *([] if channel is None else [channel]))[:12]


def guard(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula or a number, and from which `unguard` gives `text` back."""
    is_plain = (
        text.isprintable()
        and text == text.strip()
        and not text.startswith(_GUARDED_STARTS)
        # A spreadsheet takes digits and points alone for a number or a date.
        and (not text or any(character.isalpha() for character in text))
    )
    if is_plain:
        return text
    edges = {0, len(text) - 1} if text != text.strip() else set()
    return "'" + "".join(
        _escaped(one) if not one.isprintable() or one == "\\" or (at in edges and one.isspace()) else one
        for at, one in enumerate(text)
    )


def unguard(cell: str) -> str:
    """Return the text that `guard` made a cell of."""
    if not cell.startswith("'"):
        return cell
    return _ESCAPE.sub(lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)), cell[1:])


def write_sheet(drawn: Sequence[DrawnRow], model_id: str, n_table: int) -> bytes:
    """Return a sheet in UTF-8 with a byte order mark for spreadsheets; `n_table` rows of the table have a label."""
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(HEADS)
    for n_of, one in enumerate(drawn, 1):
        row = one.row
        numbers = ("", "") if one.stratum is None else (one.n_stratum, one.n_drawn)
        stratum = "" if one.stratum is None else str(one.stratum)
        checked = _digest(
            model_id, n_of, len(drawn), row.shard, n_table, row.file, row.emotion, one.part, stratum, *numbers
        )
        identity = identify_row(model_id, row.file, row.channel, row.start_s)
        domain = "" if row.is_in_domain is None else ("yes" if row.is_in_domain else "no")
        writer.writerow(
            [
                *(guard(row.file), "" if row.channel is None else row.channel),
                *(f"{row.start_s:.10g}", f"{row.end_s:.10g}", guard(row.emotion)),
                *(f"{row.confidence:.4f}", "", "", f"{row.margin:.4f}", domain, one.part, stratum, *numbers),
                *(model_id, f"r{n_of}of{len(drawn)}-s{row.shard}-n{n_table}-{identity}-{checked[:8]}"),
            ]
        )
    return sink.getvalue().encode("utf-8-sig")


def read_sheet(data: bytes, thing: str, model_id: str) -> list[SheetRow]:
    """Return the rows of a sheet that a spreadsheet may have written anew.

    It is CSV in UTF-8 or UTF-16, with any usual separator, quotes and line ends; columns may be in any order, and there may be more.
    It raises UsageError, which calls the sheet `thing`, if it is no sheet of the model, or a row is not as it was written.
    """
    heads, records = _read_records(data, thing)
    rows, problems = [], []
    for number, record in records:
        cells = {name: cell.strip() for name, cell in zip(heads, record, strict=False)}
        try:
            rows.append(_parse(number, cells, model_id))
        except ValueError as error:
            problems.append(f"row {number}: {error}")
    if not rows and not problems:
        raise UsageError(f"{thing}: it has no rows below the names of its columns; name the sheet that was filled in")
    refuse(thing, problems)
    return rows


def refuse(thing: str, problems: Sequence[str]) -> None:
    """Raise UsageError with the first of some rows' problems, if there are any."""
    if problems:
        more = f" ({counted(len(problems) - 1, 'more such row')})" if len(problems) > 1 else ""
        raise UsageError(f"{thing}: {problems[0]}{more}; nothing of the sheet was taken")


def _read_records(data: bytes, thing: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the names of a sheet's columns, and its records with their row numbers in a spreadsheet."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(f"{thing}: it is not CSV in UTF-8; save it as 'CSV UTF-8'") from error
    for delimiter in _DELIMITERS:
        try:
            records = list(enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1))
        except csv.Error as error:
            raise UsageError(f"{thing}: it is not CSV ({error}); save it as 'CSV UTF-8'") from error
        if records and len(records[0][1]) <= 2 and records[0][1][0].lower().startswith("sep="):
            # Some spreadsheets write this line to name the separator.
            records = records[1:]
        if records and set(heads := [head.strip() for head in records[0][1]]) >= _NEEDED:
            return heads, [(number, record) for number, record in records[1:] if any(map(str.strip, record))]
    first = text.lstrip().partition("\n")[0].strip()
    lacking = sorted(name for name in _NEEDED if name not in first)
    raise UsageError(
        f"{thing}: {f'its first row lacks {lacking[0]!r}' if lacking else 'its columns are others'}; name a sheet that "
        f"`emotion-batch review` wrote, with the columns {', '.join(HEADS)}"
    )


def _parse(number: int, cells: dict[str, str], model_id: str) -> SheetRow:
    """Return one row; raise ValueError with a sentence about "it" if the row is not as it was written."""
    match = _KEY.fullmatch(cells.get("key", ""))
    if match is None:
        raise ValueError(f"its key is not as it was written: {cells.get('key', '')!r}")
    found = cells.get("model_id", "")
    if found != model_id:
        raise ValueError(f"its label is from model {found!r}, and the labels of the table are from model {model_id}")
    n_of, n_rows, shard, n_table = (int(match[group]) for group in range(1, 5))
    part, stratum = cells["part"], cells["stratum"]
    numbers = _whole(cells["stratum_rows"]), _whole(cells["stratum_drawn"])
    emotion = unguard(cells["emotion"])
    # Some programs take the guarding apostrophe for a mark of text, and remove it.
    for file in (unguard(cells["file"]), unguard(f"'{cells['file']}")):
        known = (model_id, n_of, n_rows, shard, n_table, file, emotion, part, stratum, *numbers)
        if _digest(*known)[:8] == match[6] and part in (RANDOM, INFORMATIVE):
            return SheetRow(
                *(number, n_of, n_rows, shard, match[5], n_table, file, emotion),
                *(_BY_NAME[stratum] if part == RANDOM else None, int(numbers[0] or 0)),
                *(names.clean(cells["correct_emotion"]), names.clean(cells.get("speaker", ""))),
            )
    raise ValueError(
        f"file, emotion, part, stratum, stratum_rows or stratum_drawn is not as it was written, for {cells['file']!r}; "
        "undo the change"
    )


def _whole(cell: str) -> int | str:
    """Return a whole number, even if a program has written it as a decimal, e.g. 7.0; or else the cell."""
    try:
        number = float(cell.replace(",", "."))
    except ValueError:
        return cell
    return int(number) if number.is_integer() else cell


def _escaped(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return r"\\"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _digest(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=16).hexdigest()


def encode_labels(name: str, columns: Mapping[str, list[Any]]) -> bytes:
    """Return the labels as `labels.read_labels` reads them, by the suffix of their name."""
    sink, rows = io.BytesIO(), pa.table(dict(columns))
    is_parquet = name.lower().endswith(".parquet")
    write_all(ParquetWriter(sink, rows.schema) if is_parquet else CsvWriter(sink, rows.schema, eol="\n"), [rows])
    return sink.getvalue()
