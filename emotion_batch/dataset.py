"""Rows of a feature table with their reference labels: numbers in memory, features on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import features, reference, tables
from emotion_batch.errors import Status, UsageError
from emotion_batch.reference import Reference
from emotion_batch.settings import AnySettings
from emotion_batch.spool import Spool
from emotion_batch.storage import Folder, explained
from emotion_batch.tables import TableInfo

# Fewer recordings of a label than this are more often a misread name than a class.
_MIN_RECORDINGS = 5


@dataclass(frozen=True)
class Dataset:
    """Rows of a feature table that hold features and have a reference label.

    Attributes
    ----------
    settings
        What the features are; a spool that was read into has them, by the same numbers.
    files
        Name of each row's recording, shape (n_rows,).
    targets
        Number of each row's label, shape (n_rows,).
    labels
        Their words.
    speakers
        Speaker of each row, "" where unknown, shape (n_rows,).
    duration_s, level
        Length of each row's recording in seconds, and its level, of no particular unit, shape (n_rows,).
    order
        Numbers of the rows, sorted by recording and segment: the same whatever parts the table has.
    n_failed
        Rows of the table that hold no features.
    left_out
        Rows with features that are left out: how many by their label, those without one under "".
    """

    settings: AnySettings
    files: pa.ChunkedArray
    targets: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    speakers: npt.NDArray[np.object_]
    duration_s: npt.NDArray[np.float32]
    level: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64]
    n_failed: int
    left_out: Mapping[str, int]

    @property
    def n_speakers(self) -> int:
        """Number of known speakers."""
        return len(set(self.speakers.tolist()) - {""})


def read_dataset(
    table: Folder,
    info: TableInfo,
    shards: Sequence[int],
    labels: str,
    spool: Spool | None,
    *,
    known_labels: Sequence[str] | None = None,
    label_map: Mapping[str, str] | None = None,
    on_rows: Callable[[pa.Table], None] = lambda rows: None,
) -> Dataset:
    """Read the rows of a feature table that hold features and have a label, part by part.

    Parameters
    ----------
    table, info, shards
        The table, what it is, and the numbers of its parts.
    labels
        Where reference labels are from: see `reference.read_labels`.
    spool
        Takes the features; None where `on_rows` is enough.
    known_labels
        A model's labels, to which reference labels are brought; None to take them as they are.
    label_map
        Which reference label is which of these; those without a counterpart are left out, and counted.
    on_rows
        Takes the rows with their features, part by part, in the order of the dataset's numbers.

    Raises
    ------
    UsageError
        If fewer than two labels remain, or, where they are learnt, one of them has too few recordings.
    """
    labeller = reference.read_labels(labels)
    columns = ["file", "start_s", "status", "duration_s", *features.names(info.feature_settings)]
    words: dict[str, int] = {}
    left_out: dict[str, int] = {}
    n_failed = 0
    files, starts, durations, levels = [], [], [], []
    targets: list[npt.NDArray[np.int64]] = []
    speakers: list[str] = []
    for shard in shards:
        with explained(f"table {table.url}"):
            rows = tables.read_part(table, shard, columns)
        is_ok = pc.equal(rows["status"], Status.OK)
        n_failed += rows.num_rows - pc.sum(is_ok).as_py()
        rows = rows.filter(is_ok)
        found = [labeller(file) for file in rows["file"].to_pylist()]
        numbers = _number(found, words, known_labels, label_map or {}, left_out)
        is_used = numbers >= 0
        rows = rows.filter(pa.array(is_used))
        if not rows.num_rows:
            continue
        if spool is not None:
            spool.add(rows)
        on_rows(rows)
        files += rows["file"].chunks
        starts += rows["start_s"].chunks
        durations.append(rows["duration_s"].to_numpy().astype(np.float32))
        levels.append(features.level(rows, info.feature_settings))
        targets.append(numbers[is_used])
        speakers += [one.speaker or "" for one, used in zip(found, is_used, strict=True) if one is not None and used]
    names = pa.chunked_array(files, pa.string())
    by_name = pa.table({"file": names, "start_s": pa.chunked_array(starts, pa.float64())})
    order = pc.sort_indices(by_name, sort_keys=[("file", "ascending"), ("start_s", "ascending")])
    numbers = np.concatenate([np.zeros(0, np.int64), *targets])
    if known_labels is None:
        _check_labels(table, labels, list(words), numbers, names)
        # Sorted, as scikit-learn's LabelEncoder does.
        known_labels = sorted(words)
        rank = {word: number for number, word in enumerate(known_labels)}
        numbers = np.array([rank[word] for word in words], np.int64)[numbers]
    elif len(set(numbers.tolist())) < 2:
        raise UsageError(
            f"labels of {table.url}: expected two or more of the model's ({', '.join(known_labels)}) from {labels!r}, got "
            f"{len(set(numbers.tolist()))}; say with --labels where they stand, and with --label-map which are which"
        )
    return Dataset(
        settings=info.feature_settings,
        files=names,
        targets=numbers,
        labels=tuple(known_labels),
        speakers=np.array(speakers, object),
        duration_s=np.nan_to_num(np.concatenate([np.zeros(0, np.float32), *durations])),
        level=np.concatenate([np.zeros(0, np.float32), *levels]),
        order=order.to_numpy().astype(np.int64),
        n_failed=n_failed,
        left_out=dict(sorted(left_out.items())),
    )


def _number(
    found: Sequence[Reference | None],
    words: dict[str, int],
    known_labels: Sequence[str] | None,
    label_map: Mapping[str, str],
    left_out: dict[str, int],
) -> npt.NDArray[np.int64]:
    """Return the number of each row's label, -1 where it is left out; take new words and what is left out in."""
    emotions = [None if one is None else one.emotion for one in found]
    if known_labels is None:
        numbers = np.array([-1 if word is None else words.setdefault(word, len(words)) for word in emotions], np.int64)
        counted = {"": emotions.count(None)}
    else:
        numbers, counted = reference.map_labels(
            ["" if word is None else word for word in emotions], label_map, known_labels
        )
    for word, n_rows in counted.items():
        if n_rows:
            left_out[word] = left_out.get(word, 0) + n_rows
    return np.asarray(numbers, np.int64)


def _check_labels(
    table: Folder, source: str, words: Sequence[str], targets: npt.NDArray[np.int64], files: pa.ChunkedArray
) -> None:
    """See that the labels are classes one can learn, and not what a misread name gives."""
    if len(words) < 2:
        got = f"only {words[0]!r}" if words else "none"
        raise UsageError(
            f"labels of {table.url}: expected at least two from {source!r}, got {got}; say with --labels where they stand"
        )
    pairs = pa.table({"target": targets, "file": files}).group_by("target").aggregate([("file", "count_distinct")])
    counts = dict(zip(pairs["target"].to_pylist(), pairs["file_count_distinct"].to_pylist(), strict=True))
    if rare := {word: counts[number] for number, word in enumerate(words) if counts[number] < _MIN_RECORDINGS}:
        word = min(rare)
        example = files[int(np.argmax(targets == words.index(word)))].as_py()
        raise UsageError(
            f"labels of {table.url}: expected at least {_MIN_RECORDINGS} recordings of each from {source!r}, got {rare[word]} of "
            f"{word!r} ({example!r}) and {len(rare) - 1} more such labels; say with --labels where they stand"
        )
