"""Read the reference labels and speakers of recordings, from their names or a table, and map them to the labels of a model."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from emotion_batch.errors import UsageError
from emotion_batch.storage import names
from emotion_batch.storage.file_lists import is_list
from emotion_batch.storage.folder import Folder, explained, split_file

_COLUMNS = ("file", "emotion", "speaker", "start_s", "end_s", "channel")
# Starts of segments are equal within a millisecond, and ends within the difference between decoders.
_STARTS_PER_S, _END_S = 1_000, 0.05
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_BETWEEN = r"[\s.,/_-]*"
# Dates with letters in them: ISO 8601 with a time, and dates with a month's name, as spreadsheets write them.
_DATE = re.compile(
    rf"\d{{4}}-?\d\d-?\d\d[t ][\d:.]*(z|[+-][\d:]+)?|\d{{1,4}}(st|nd|rd|th)?{_BETWEEN}{_MONTH}({_BETWEEN}\d{{1,4}})?"
    rf"|{_MONTH}{_BETWEEN}\d{{1,4}}({_BETWEEN}\d{{1,4}})?"
)


class Corpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the names of a corpus's files say emotion and speaker: see `corpora.toml`."""

    pattern: str
    words: dict[str, str] | None = None
    speakers: dict[str, str] = {}
    language: str = ""
    men: str | None = None


_BY_NAME = msgspec.toml.decode(
    resources.files(__package__).joinpath("corpora.toml").read_bytes(), type=dict[str, Corpus]
)
# The corpora whose names say emotion and speaker.
CORPORA = frozenset(_BY_NAME) - {"folder"}


class Reference(NamedTuple):
    """The reference label of a recording or a segment, and who speaks in it, if known."""

    emotion: str
    speaker: str | None


# Returns the reference label of a segment, given the name of its recording and perhaps start, end and channel; None if there is none.
Labeller = Callable[..., Reference | None]


def read_labels(source: str) -> Labeller:
    """Return a function that gives the reference label of a recording or segment, or None if there is none.

    `source` is a corpus whose file names state labels (``tess``, ``ravdess``, ``emodb``, ``savee``, ``crema-d``, ``nemo``; the words
    are the corpus's own), ``folder``, ``table:FILE`` (a `LabelTable`: CSV or Parquet with the columns
    ``file``, ``emotion`` and perhaps ``speaker``, ``start_s``, ``end_s`` and ``channel``) or ``regex:PATTERN`` (with the group
    ``emotion`` and perhaps ``speaker``). It raises UsageError if it is none of these, or its table or pattern cannot be
    used.
    """
    kind, _, argument = source.partition(":")
    if kind in _BY_NAME and not argument:
        return partial(_by_corpus, _BY_NAME[kind])
    if kind == "table" and argument:
        return _read_table(argument)
    if kind == "regex" and argument:
        try:
            pattern = re.compile(argument)
        except re.error as error:
            raise UsageError(f"labels: {argument!r} is not a regular expression ({error})") from error
        if "emotion" not in pattern.groupindex:
            raise UsageError(f"labels: the pattern {argument!r} needs a group (?P<emotion>...)")
        return partial(_by_pattern, pattern)
    raise UsageError(f"labels must be {', '.join(_BY_NAME)}, table:FILE or regex:PATTERN: {source!r}")


def describe_voice(source: str, speaker: str) -> tuple[str, str]:
    """Return the language of a corpus, and whether its speaker is "female" or "male"; "" if its names do not say."""
    corpus = _BY_NAME.get(source, Corpus(""))
    if corpus.men is None or not speaker:
        return corpus.language, ""
    return corpus.language, "male" if re.fullmatch(corpus.men, speaker) else "female"


@dataclass
class _TableRow:
    """A row of a label table: the label of a recording, or of a segment if it has a start."""

    file: str
    start_s: float | None
    end_s: float | None
    channel: int | None
    reference: Reference
    is_found: bool = False

    def __str__(self) -> str:
        channel = "" if self.channel is None else f", channel {self.channel}"
        return repr(self.file) + ("" if self.start_s is None else f" at {self.start_s:g} s") + channel


# The rows about one recording, by where they start in milliseconds and their channel; None for the whole of it, and all channels.
_Rows = dict[tuple[int | None, int | None], list[_TableRow]]


class LabelTable:
    """Reference labels that a table gives to recordings, or to segments of them.

    A segment is found by its start and, if the table has one, by its end, because a label of another stretch is no label. A
    row without a start labels all segments of its recording that have no row of their own, and one without a channel all channels
    that have none. `n_spread` counts the segments of a recording, or of a channel of it, that got the label of the whole. `thing` is
    what an error calls the table. It raises UsageError if the table gives one recording or one segment two labels.
    """

    def __init__(self, thing: str, rows: Iterable[_TableRow]) -> None:
        self._thing = thing
        self._as_written: dict[str, _Rows] = {}
        # Rows about recordings whose names the table writes in another form.
        self._by_key: dict[str, _Rows] = {}
        self._base = ""
        self._n_repeated = 0
        self.n_spread: Counter[tuple[str, int | None]] = Counter()
        self._rows = [row for row in rows if self._add(self._as_written.setdefault(row.file, {}), row)]

    def settle(self, files: Iterable[str], archive: str) -> None:
        """Use the names of the recordings: a row whose name is exactly that of a recording is for that recording alone.

        `archive` is the path or URL that absolute names begin with. It raises UsageError if two rows are about one
        recording, or one segment, in different spellings, and differ.
        """
        self._base = archive.rpartition("/")[0] if is_list(archive) else archive
        if not os.path.lexists(self._base):
            # A glob's names are relative to the folder before its first pattern.
            self._base = re.split(r"/[^/]*[*?\[]", self._base, maxsplit=1)[0]
        exact = self._as_written.keys() & set(files)
        if len(exact) == len(self._as_written):
            return
        known = {names.find_key(file, self._base): self._as_written[file] for file in sorted(exact, reverse=True)}
        kept, self._rows = self._rows, []
        for row in kept:
            if row.file not in exact:
                key = names.find_key(row.file, self._base)
                if not self._add(known[key] if key in known else self._by_key.setdefault(key, {}), row):
                    continue
            self._rows.append(row)

    def __call__(
        self, file: str, start_s: float | None = None, end_s: float | None = None, channel: int | None = None
    ) -> Reference | None:
        """Return the label of a segment of a recording, or of one of its channels; None if there is none."""
        rows = self._as_written.get(file)
        if rows is None and self._by_key:
            rows = self._by_key.get(names.find_key(file, self._base))
        if rows is None:
            return None
        for stretch in ((start_s, end_s), (None, None)):
            for one in dict.fromkeys((channel, None)):
                if (found := _find_row(rows, *stretch, one)) is not None:
                    found.is_found = True
                    self.n_spread[file, channel] += found.start_s is None
                    return found.reference
        return None

    def describe_unfound(self) -> str:
        """Return a sentence about rows that found no recording or segment, or repeat another row; "" if there are none."""
        unfound = [row for row in self._rows if not row.is_found]
        said = []
        if unfound:
            thing = "recording" if all(row.start_s is None for row in unfound) else "segment"
            said.append(f"{len(unfound):,} of its {len(self._rows):,} rows found no {thing}, e.g. {unfound[0]}")
        if self._n_repeated:
            said.append(f"{self._n_repeated:,} more repeat another row")
        return f"{self._thing}: {'; '.join(said)}" if said else ""

    def _add(self, rows: _Rows, row: _TableRow) -> bool:
        """Add a row to those about its recording, unless it is there; return whether it was not."""
        at = None if row.start_s is None else round(row.start_s * _STARTS_PER_S)
        same = _find_row(rows, row.start_s, row.end_s, row.channel)
        if same is None:
            rows.setdefault((at, row.channel), []).append(row)
            return True
        if same.reference != row.reference:
            thing = f"{'recording' if at is None else 'segment'} {row}"
            raise UsageError(f"{self._thing}: two different labels for the {thing}; keep one of them")
        self._n_repeated += 1
        return False


def _find_row(rows: _Rows, start_s: float | None, end_s: float | None, channel: int | None) -> _TableRow | None:
    """Return the row about a segment, or about the whole recording; one without an end is about any that starts there."""
    if start_s is None:
        return next(iter(rows.get((None, channel), ())), None)
    at = round(start_s * _STARTS_PER_S)
    for near in (at, at - 1, at + 1):
        for row in rows.get((near, channel), ()):
            if row.end_s is None or end_s is None or abs(row.end_s - end_s) <= _END_S:
                return row
    return None


def is_numeric(word: str) -> bool:
    """Return whether a label looks like a number or a date, as if a folder or column held something else than emotions."""
    try:
        float(word.replace(",", "."))
    except ValueError:
        has_letters = any(character.isalpha() for character in word)
        has_digits = any(character.isnumeric() for character in word)
        return has_digits and (not has_letters or _DATE.fullmatch(word.casefold()) is not None)
    return True


def read_label_map(location: str) -> dict[str, str]:
    """Return the model's names for reference labels, as a file gives them; "" leaves a label out.

    The file is ``.json`` (an object), ``.csv`` (the columns ``from`` and ``to``), or else text with ``from = to`` lines.
    It raises UsageError if it is none of these, or gives a label two names.
    """
    place = Folder.of(location)
    folder, name = split_file(place)
    with explained(f"label map {place.url}"):
        data = folder.read(name)
    try:
        pairs = _read_pairs(name, names.as_utf8(data).decode("utf-8-sig"))
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"label map {place.url}: it must be a JSON object of words, CSV with the columns from and to, or lines "
            f"'from = to', in UTF-8 ({error})"
        ) from error
    label_map: dict[str, str] = {}
    for word, label in ((names.clean(word), names.clean(label)) for word, label in pairs):
        if label_map.setdefault(word, label) != label:
            raise UsageError(f"label map {place.url}: two different labels for {word!r}; keep one of them")
    return label_map


def map_labels(
    emotions: Iterable[str], label_map: Mapping[str, str], known_labels: Sequence[str]
) -> tuple[npt.NDArray[np.int64], dict[str, int]]:
    """Return reference labels as numbers of a model's labels, and the words that had to be left out.

    A word that `label_map` lacks stays as it is. The numbers have the shape (n_rows,), with -1 if the model has no such
    label; the other value counts these rows by word.
    """
    numbers = {names.clean(label): number for number, label in enumerate(known_labels)}
    words = list(emotions)
    targets = [numbers.get(label_map.get(word, word), -1) for word in words]
    left_out = Counter(word for word, target in zip(words, targets, strict=True) if target < 0)
    return np.array(targets, np.int64), dict(sorted(left_out.items()))


def _read_pairs(name: str, text: str) -> list[tuple[str, str]]:
    """Return the words and labels of a label map in the format that its name has; raise ValueError or KeyError."""
    if name.lower().endswith(".json"):
        value = json.loads(text, object_pairs_hook=list)
        if not isinstance(value, list) or not all(isinstance(pair, tuple) for pair in value):
            raise ValueError("another JSON value")
        if wrong := [label for _, label in value if not isinstance(label, str)]:
            raise ValueError(f"{wrong[0]!r} as a word")
        return value
    if name.lower().endswith(".csv"):
        return [(row["from"], row["to"] or "") for row in csv.DictReader(io.StringIO(text))]
    pairs = []
    for line in filter(str.strip, text.splitlines()):
        word, equals, label = line.partition("=")
        if not equals:
            raise ValueError(f"the line {line!r}")
        pairs.append((word, label))
    return pairs


def _by_corpus(corpus: Corpus, file: str, *_segment: object) -> Reference | None:
    """Return what a recording's name says, which is the same for all of its segments."""
    above, slash, name = file.rpartition("/")
    found = re.search(rf"(?:^|/)(?:{corpus.pattern})\Z", above + slash + name.split(".")[0])
    if found is None:
        return None
    emotion, speaker = found["emotion"], found.groupdict().get("speaker")
    word = emotion.lower() if corpus.words is None else corpus.words.get(emotion)
    return _clean(word, corpus.speakers.get(speaker or "", speaker))


def _by_pattern(pattern: re.Pattern[str], file: str, *_segment: object) -> Reference | None:
    found = pattern.search(file)
    return None if found is None else _clean(found["emotion"], found.groupdict().get("speaker"))


def _clean(emotion: str | None, speaker: str | None) -> Reference | None:
    """Return a label in its one spelling; None if nothing is left of it."""
    word = names.clean(emotion or "")
    return Reference(word, names.clean(speaker or "") or None) if word else None


def _read_table(location: str) -> LabelTable:
    place = Folder.of(location)
    folder, name = split_file(place)
    thing = f"labels {place.url}"
    with explained(thing):
        data = folder.read(name)
    try:
        if name.lower().endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            columns = {one: table[one].cast(pa.string()).to_pylist() for one in _take(thing, table.column_names)}
        else:
            columns = _read_columns(thing, names.as_utf8(data).decode("utf-8-sig"))
    except (pa.ArrowException, KeyError, OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{thing}: it must be CSV in UTF-8 or Parquet ({str(error).splitlines()[0]})") from error
    nothing = [None] * len(columns["file"])
    cells = zip(*(columns.get(column, nothing) for column in _COLUMNS), strict=True)
    return LabelTable(thing, _table_rows(thing, cells))


def _take(thing: str, heads: Sequence[str]) -> list[str]:
    """Return the columns that are read; raise UsageError if one that must be there is not."""
    if missing := [column for column in ("file", "emotion") if column not in heads]:
        raise UsageError(
            f"{thing}: the column {missing[0]!r} is missing; its columns are {', '.join(heads)}, and it may have {', '.join(_COLUMNS)}"
        )
    return [column for column in _COLUMNS if column in heads]


def _read_columns(thing: str, text: str) -> dict[str, list[str]]:
    """Return the columns of a CSV, whose names may hold ends of lines; raise csv.Error if it is none."""
    records = [one for one in csv.reader(io.StringIO(text, newline=""), strict=True) if any(map(str.strip, one))]
    heads = [names.bare(head) for head in records[0]] if records else []
    taken = _take(thing, heads)
    for number, record in enumerate(records[1:], 2):
        if len(record) != len(heads):
            raise UsageError(f"{thing}: row {number} has {len(record)} cells, and the first row has {len(heads)}")
    return {column: [record[heads.index(column)] for record in records[1:]] for column in taken}


def _table_rows(thing: str, cells: Iterable[Sequence[str | None]]) -> Iterator[_TableRow]:
    """Yield the rows that have a name and a label."""
    for file, emotion, speaker, start, end, channel in cells:
        found = _clean(names.bare(emotion or ""), names.bare(speaker or ""))
        if file and file.strip() and found is not None:
            number = _read_number(thing, file, channel)
            if number is not None and number != int(number):
                raise UsageError(f"{thing}: channel must be a whole number: {channel!r} for {file!r}")
            start_s, end_s = _read_number(thing, file, start), _read_number(thing, file, end)
            yield _TableRow(file, start_s, end_s, None if number is None else int(number), found)


def _read_number(thing: str, file: str, cell: str | None) -> float | None:
    if not (cell or "").strip():
        return None
    try:
        seconds = float(str(cell).replace(",", "."))
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UsageError(f"{thing}: start_s, end_s and channel must be numbers: {cell!r} for {file!r}")
    return seconds
