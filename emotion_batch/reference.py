"""Reference labels: the emotion and speaker of a recording, from its name or a table, and in a model's own words."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from emotion_batch.errors import UsageError
from emotion_batch.storage import Folder, explained

# Third number of a RAVDESS name; https://zenodo.org/records/1188976
_RAVDESS_EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}


class Reference(NamedTuple):
    """The reference label of a recording and who speaks in it, if known."""

    emotion: str
    speaker: str | None


Labeller = Callable[[str], Reference | None]


def read_labels(source: str) -> Labeller:
    """Return a function from a recording's name to its reference label, or to None where there is none.

    Parameters
    ----------
    source
        ``tess``, ``ravdess``, ``folder``, ``table:FILE`` (CSV or Parquet with the columns ``file``, ``emotion``
        and perhaps ``speaker``) or ``regex:PATTERN`` (with the group ``emotion`` and perhaps ``speaker``).

    Raises
    ------
    UsageError
        If `source` is none of these, or its table or pattern cannot be used.
    """
    kind, _, argument = source.partition(":")
    if kind in _BY_NAME and not argument:
        return _BY_NAME[kind]
    if kind == "table" and argument:
        return _read_table(argument).get
    if kind == "regex" and argument:
        try:
            pattern = re.compile(argument)
        except re.error as error:
            raise UsageError(f"labels: expected a regular expression, got {argument!r} ({error})") from error
        if "emotion" not in pattern.groupindex:
            raise UsageError(f"labels: expected a pattern with the group (?P<emotion>...), got {argument!r}")
        return partial(_by_pattern, pattern)
    raise UsageError(f"labels: expected tess, ravdess, folder, table:FILE or regex:PATTERN, got {source!r}")


def read_label_map(location: str) -> dict[str, str]:
    """Return what a file says that reference labels are called by the model; "" for those to be left out.

    Parameters
    ----------
    location
        Path or URL of ``.json`` (an object), ``.csv`` (the columns ``from`` and ``to``), or else of text with
        ``from = to`` lines.

    Raises
    ------
    UsageError
        If it is none of these, or gives a label two names.
    """
    place = Folder.of(location)
    folder, _, name = place.url.rpartition("/")
    with explained(f"label map {place.url}"):
        data = Folder(folder or "/").read(name)
    try:
        pairs = _read_pairs(name, data.decode("utf-8-sig"))
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"label map {place.url}: expected a JSON object of words, CSV with the columns from and to, or lines "
            f"'from = to', in UTF-8, got {error}"
        ) from error
    label_map: dict[str, str] = {}
    for word, label in pairs:
        if label_map.setdefault(word, label) != label:
            raise UsageError(f"label map {place.url}: expected one label a word, got two for {word!r}")
    return label_map


def map_labels(
    emotions: Iterable[str], label_map: Mapping[str, str], known_labels: Sequence[str]
) -> tuple[npt.NDArray[np.int64], dict[str, int]]:
    """Return reference labels as numbers of a model's labels, and what had to be left out.

    Parameters
    ----------
    emotions
        Reference label of each row.
    label_map
        As `read_label_map` gave it; a word that it lacks stays as it is.
    known_labels
        The model's labels.

    Returns
    -------
    Number of each row's label, shape (n_rows,), -1 where the model has none for it; and the rows of these by word.
    """
    numbers = {label: number for number, label in enumerate(known_labels)}
    words = list(emotions)
    targets = np.array([numbers.get(label_map.get(word, word), -1) for word in words], np.int64)
    left_out = Counter(word for word, target in zip(words, targets, strict=True) if target < 0)
    return targets, dict(sorted(left_out.items()))


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
        rows = csv.DictReader(io.StringIO(text))
        return [(row["from"].strip(), (row["to"] or "").strip()) for row in rows]
    pairs = []
    for line in filter(str.strip, text.splitlines()):
        word, equals, label = line.partition("=")
        if not equals:
            raise ValueError(f"the line {line!r}")
        pairs.append((word.strip(), label.strip()))
    return pairs


def _by_tess_name(file: str) -> Reference | None:
    """``OAF_back_angry.wav`` is OAF, angry: the last word of the stem, in lower case, and the first."""
    stem = file.rsplit("/", 1)[-1].split(".")[0]
    words = stem.split("_")
    if len(words) < 2 or not words[-1]:
        return None
    # One recording of the corpus, OA_bite_neutral, lacks a letter of its speaker.
    return Reference(words[-1].lower(), {"OA": "OAF"}.get(words[0], words[0]))


def _by_ravdess_name(file: str) -> Reference | None:
    """``03-01-05-01-02-01-12.wav`` is angry, actor 12: the third number of seven, and the last."""
    numbers = file.rsplit("/", 1)[-1].split(".")[0].split("-")
    if len(numbers) != 7 or numbers[2] not in _RAVDESS_EMOTIONS:
        return None
    return Reference(_RAVDESS_EMOTIONS[numbers[2]], numbers[6])


def _by_folder(file: str) -> Reference | None:
    """``calls/Angry/1.wav`` is angry: the folder that the recording is in, in lower case."""
    folders = file.split("/")[:-1]
    return Reference(folders[-1].lower(), None) if folders else None


def _by_pattern(pattern: re.Pattern[str], file: str) -> Reference | None:
    match = pattern.search(file)
    if match is None or not match["emotion"]:
        return None
    return Reference(match["emotion"], match["speaker"] if "speaker" in pattern.groupindex else None)


def _read_table(location: str) -> dict[str, Reference]:
    place = Folder.of(location)
    folder, _, name = place.url.rpartition("/")
    with explained(f"labels {place.url}"):
        data = Folder(folder or "/").read(name)
    is_parquet = name.lower().endswith(".parquet")
    # As written: a code such as 01 is no number.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(("file", "emotion", "speaker"), pa.string()))
    try:
        table = (
            pq.read_table(io.BytesIO(data))
            if is_parquet
            else pyarrow.csv.read_csv(io.BytesIO(data), convert_options=convert)
        )
        if missing := [column for column in ("file", "emotion") if column not in table.column_names]:
            raise UsageError(
                f"labels {place.url}: expected the columns file, emotion[, speaker], got no {missing[0]!r} "
                f"among {', '.join(table.column_names)}"
            )
        columns = [table[column].cast(pa.string()).to_pylist() for column in ("file", "emotion")]
        has_speaker = "speaker" in table.column_names
        speakers = table["speaker"].cast(pa.string()).to_pylist() if has_speaker else [None] * table.num_rows
    except (pa.ArrowException, KeyError) as error:
        raise UsageError(
            f"labels {place.url}: expected CSV in UTF-8 or Parquet, got {str(error).splitlines()[0]}"
        ) from error
    references: dict[str, Reference] = {}
    for file, emotion, speaker in zip(*columns, speakers, strict=True):
        if file and emotion:
            reference = Reference(emotion, speaker)
            if references.setdefault(file, reference) != reference:
                raise UsageError(f"labels {place.url}: expected one label a recording, got two for {file!r}")
    return references


_BY_NAME: dict[str, Labeller] = {"tess": _by_tess_name, "ravdess": _by_ravdess_name, "folder": _by_folder}
