"""Read the training rows of a feature table with their labels: numbers in memory, features in a file on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import starmap
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import Status, UsageError
from emotion_batch.features import recipes
from emotion_batch.features.recipes import Values
from emotion_batch.settings import AnySettings, FeatureSettings
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.names import clean
from emotion_batch.tables import parts
from emotion_batch.tables.schema import TableInfo
from emotion_batch.training.labels import LabelTable, Reference, is_numeric, map_labels, read_labels

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
    notes
        Sentences about labels without a recording and recordings without a label.
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
    notes: tuple[str, ...] = ()

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
    allow_numeric_labels: bool = False,
    on_rows: Callable[[pa.Table], None] = lambda rows: None,
) -> Dataset:
    """Read the rows of a feature table that hold features and have a label, part by part.

    Parameters
    ----------
    table, info, shards
        The table, what it is, and the numbers of its parts.
    labels
        Where reference labels are from: see `labels.read_labels`.
    spool
        Takes the features; None where `on_rows` is enough.
    known_labels
        A model's labels, to which reference labels are brought; None to take them as they are.
    label_map
        Which reference label is which of these; those without a counterpart are left out, and counted.
    allow_numeric_labels
        Take labels that look like numbers or dates. Those of the model, and of the label map, are taken anyway.
    on_rows
        Takes the rows with their features, part by part, in the order of the dataset's numbers.

    Raises
    ------
    UsageError
        If fewer than two labels remain, one looks like a number or a date, or, where they are learnt, one of them has too
        few recordings.
    """
    labeller = read_labels(labels)
    if isinstance(labeller, LabelTable):
        labeller.settle(_read_files(table, info, shards), info.source)
    columns = ["file", "start_s", "end_s", "status", "duration_s", *recipes.names(info.feature_settings)]
    expected = {clean(word) for word in (*(known_labels or ()), *(label_map or {}))}
    words: dict[str, int] = {}
    left_out: dict[str, int] = {}
    n_failed = n_ok = n_recordings = n_unlabelled = 0
    unlabelled = ""
    files, starts, durations, levels = [], [], [], []
    targets: list[npt.NDArray[np.int64]] = []
    speakers: list[str] = []
    for shard in shards:
        rows = parts.require_part(table, info, shard, columns)
        is_ok = pc.equal(rows["status"], Status.OK)
        n_failed += rows.num_rows - pc.sum(is_ok).as_py()
        # Failed rows, too: that a recording gave no features is no fault of the label table.
        segments = zip(*(rows[name].to_pylist() for name in ("file", "start_s", "end_s")), strict=True)
        found = [one for one, ok in zip(starmap(labeller, segments), is_ok.to_pylist(), strict=True) if ok]
        rows = rows.filter(is_ok)
        names_here = rows["file"].to_pylist()
        if not allow_numeric_labels:
            _check_numeric(table, labels, names_here, found, expected)
        labelled = {file for file, one in zip(names_here, found, strict=True) if one is not None}
        n_ok += len(names_here)
        n_recordings += len(set(names_here))
        n_unlabelled += len(set(names_here) - labelled)
        unlabelled = unlabelled or next((file for file in names_here if file not in labelled), "")
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
        levels.append(recipes.level(rows, info.feature_settings))
        targets.append(numbers[is_used])
        speakers += [one.speaker or "" for one, used in zip(found, is_used, strict=True) if one is not None and used]
    names = pa.chunked_array(files, pa.string())
    by_name = pa.table({"file": names, "start_s": pa.chunked_array(starts, pa.float64())})
    order = pc.sort_indices(by_name, sort_keys=[("file", "ascending"), ("start_s", "ascending")])
    numbers = np.concatenate([np.zeros(0, np.int64), *targets])
    notes = []
    if isinstance(labeller, LabelTable) and (unfound := labeller.describe_unfound()):
        notes.append(unfound)
    # Of windows some have labels and others none.
    n_without, n_all, things, example = n_unlabelled, n_recordings, "recordings", f", e.g. {unlabelled!r}"
    if not n_unlabelled:
        n_without, n_all, things, example = left_out.get("", 0), n_ok, "segments", ""
    if n_without:
        verb = "has" if n_without == 1 else "have"
        notes.append(f"{n_without:,} of {n_all:,} {things} with features {verb} no label{example}")
    if known_labels is None:
        _check_labels(table, labels, list(words), numbers, names, notes)
        # Sorted, as scikit-learn's LabelEncoder does.
        known_labels = sorted(words)
        rank = {word: number for number, word in enumerate(known_labels)}
        numbers = np.array([rank[word] for word in words], np.int64)[numbers]
    elif len(set(numbers.tolist())) < 2:
        raise UsageError(
            f"labels of {table.url}: expected two or more of the model's ({', '.join(known_labels)}) from {labels!r}, got "
            f"{len(set(numbers.tolist()))}; say with --labels where they stand, and with --label-map which are which"
            f"{_in_brackets(notes)}"
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
        notes=tuple(notes),
    )


def _read_files(table: Folder, info: TableInfo, shards: Sequence[int]) -> Iterator[str]:
    """Yield the names of a table's recordings, failed ones too."""
    for shard in shards:
        yield from pc.unique(parts.require_part(table, info, shard, ["file"])["file"]).to_pylist()


def _check_numeric(
    table: Folder, source: str, files: Sequence[str], found: Sequence[Reference | None], expected: Set[str]
) -> None:
    """See that no label looks like a number or a date, but for those that a model or a label map has."""
    words = {one.emotion: file for file, one in zip(files, found, strict=True) if one is not None}
    if wrong := sorted(word for word in words.keys() - expected if is_numeric(word)):
        raise UsageError(
            f"labels of {table.url}: {wrong[0]!r} from {source!r}, of {words[wrong[0]]!r}, looks like a number or a date and "
            "not like an emotion; say with --labels where the emotions stand, or use --allow-numeric-labels if it is one"
        )


def _in_brackets(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


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
        numbers, counted = map_labels(["" if word is None else word for word in emotions], label_map, known_labels)
    for word, n_rows in counted.items():
        if n_rows:
            left_out[word] = left_out.get(word, 0) + n_rows
    return np.asarray(numbers, np.int64)


def _check_labels(
    table: Folder,
    source: str,
    words: Sequence[str],
    targets: npt.NDArray[np.int64],
    files: pa.ChunkedArray,
    notes: Sequence[str],
) -> None:
    """See that the labels are classes one can learn, and not what a misread name gives."""
    if len(words) < 2:
        got = f"only {words[0]!r}" if words else "none"
        raise UsageError(
            f"labels of {table.url}: expected at least two from {source!r}, got {got}; say with --labels where they stand"
            f"{_in_brackets(notes)}"
        )
    pairs = pa.table({"target": targets, "file": files}).group_by("target").aggregate([("file", "count_distinct")])
    counts = dict(zip(pairs["target"].to_pylist(), pairs["file_count_distinct"].to_pylist(), strict=True))
    if rare := {word: counts[number] for number, word in enumerate(words) if counts[number] < _MIN_RECORDINGS}:
        word = min(rare)
        example = files[int(np.argmax(targets == words.index(word)))].as_py()
        raise UsageError(
            f"labels of {table.url}: expected at least {_MIN_RECORDINGS} recordings of each from {source!r}, got {rare[word]} of "
            f"{word!r} ({example!r}) and {len(rare) - 1} more such labels; say with --labels where they stand"
            f"{_in_brackets(notes)}"
        )


class Spool:
    """Features of rows, in the order in which they were added; gone with the block.

    Parameters
    ----------
    settings
        Whose features they are.
    """

    def __init__(self, settings: AnySettings) -> None:
        self._settings = settings
        # Without a name from the beginning: whatever ends the process, nothing is left of it.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed by the block
        self._n_bytes = 0
        self._starts: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._bounds: npt.NDArray[np.int64] | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, rows: pa.Table) -> None:
        """Add rows of a feature table that all have features."""
        if isinstance(self._settings, FeatureSettings):
            data = recipes.read_vectors(rows, self._settings)
            self._file.write(data.tobytes())
            ends = np.arange(1, len(data) + 1, dtype=np.int64) * (4 * self._settings.n_mfcc)
        else:
            encoded = [recipes.encode(one) for one in recipes.read_sequences(rows)]
            self._file.writelines(encoded)
            ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        if len(ends):
            self._starts.append(ends + self._n_bytes)
            self._n_bytes = int(self._starts[-1][-1])
        self._bounds = None

    def read(self, rows: npt.NDArray[np.int64]) -> list[Values]:
        """Return the features of rows by their numbers, in the order in which these are given."""
        if self._bounds is None:
            self._file.flush()
            self._bounds = np.concatenate(self._starts)
            self._starts = [self._bounds]
        found = []
        for start, end in zip(self._bounds[rows].tolist(), self._bounds[rows + 1].tolist(), strict=True):
            values = recipes.decode(os.pread(self._file.fileno(), end - start, start), self._settings)
            # Of a disk that has lost what was written to it there is nothing to go on with.
            assert values is not None  # noqa: S101
            found.append(values)
        return found
