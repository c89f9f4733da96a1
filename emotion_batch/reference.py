"""Reference labels: the emotion and speaker of a recording, from its name or from a table."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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
