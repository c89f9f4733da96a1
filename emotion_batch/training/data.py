"""Read the training rows of a feature table with their labels: numbers in memory, features in a file on disk."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import Status, UsageError, counted
from emotion_batch.features import recipes
from emotion_batch.features.recipes import Values
from emotion_batch.inference.confidence import Floats
from emotion_batch.settings import AnySettings
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.names import clean
from emotion_batch.tables import parts
from emotion_batch.tables.schema import TableInfo
from emotion_batch.training.labels import (
    Labeller,
    LabelTable,
    Reference,
    describe_voice,
    is_numeric,
    map_labels,
    read_labels,
)
from emotion_batch.training.metrics import compute_metrics, judge_shortcut, pick
from emotion_batch.training.splits import Integers, SpeakerFolds, number_words

# Columns of which all rows stay in memory.
_USED = ["file", "channel", "start_s", "duration_s"]
# A label with fewer recordings than this is more likely a misread name than a class.
_MIN_RECORDINGS = 5


@dataclass(frozen=True)
class Dataset:
    """Rows of feature tables that hold features and have a reference label.

    Attributes
    ----------
    settings
        Settings of the features; the spool holds the features under the same row numbers.
    files, targets, speakers
        Name of each row's recording, number of its label, and its speaker, "" if unknown, shape (n_rows,).
    labels
        The words of the labels.
    corpora
        Name of the corpus of each row, "" if there is only one, shape (n_rows,).
    voices
        Language and sex of each row's speaker, "" if unknown: see `labels.describe_voice`; shape (n_rows, 2).
    duration_s, level
        Length of each row's recording in seconds, and its level, of no particular unit, shape (n_rows,).
    order
        Numbers of the rows, sorted by recording and segment, so that the order does not depend on the parts.
    n_failed
        Number of rows of the table without features.
    left_out
        Number of rows with features that are left out, by label, with "" for rows without a label.
    notes
        Sentences about labels without a recording and recordings without a label.
    """

    settings: AnySettings
    files: pa.ChunkedArray
    targets: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    speakers: npt.NDArray[np.object_]
    corpora: npt.NDArray[np.object_]
    voices: npt.NDArray[np.object_]
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

    @property
    def common(self) -> Integers:
        """Numbers of the labels that every corpus has."""
        found = [set(self.targets[self.corpora == one].tolist()) for one in set(self.corpora.tolist())]
        return np.array(sorted(set.intersection(*found)), np.int64)

    def add_labels(self, labels: Sequence[str]) -> Dataset:
        """Return the dataset with further labels, which may have no rows; all labels are sorted."""
        words = tuple(sorted({*self.labels, *labels}))
        numbers = np.array([words.index(word) for word in self.labels])
        return replace(self, labels=words, targets=numbers[self.targets])

    def weigh(self, rows: Integers) -> npt.NDArray[np.float64]:
        """Return how often to learn from each of some rows, as a share, shape (n_rows,).

        A corpus counts by the root of the number of its speakers, because a network must not learn voices by heart; its speakers
        count equally, and so do the labels of a speaker.
        """
        words = (number_words(self.corpora[rows])[0], number_words(self.speakers[rows])[0])
        keys = np.column_stack([*words, self.targets[rows], np.arange(len(rows))])
        n_speakers, n_labels, n_rows = (_count_parts(keys, depth) for depth in (1, 2, 3))
        weights = 1 / (np.sqrt(n_speakers) * n_labels * n_rows)
        return np.asarray(weights / weights.sum(), np.float64)

    def judge(self, rows: Integers, probabilities: Floats, predicted: Integers | None = None) -> dict[str, Any]:
        """Return the figures of some rows; the other arguments are for these rows only. See `metrics.compute_metrics`."""
        targets, speakers = self.targets[rows], self.speakers[rows]
        return compute_metrics(targets, probabilities, self.labels, speakers=speakers, predicted=predicted)

    def judge_common(self, rows: Integers, probabilities: Floats) -> float | None:
        """Return the unweighted average recall of some rows over the labels that every corpus has, without all other labels."""
        common, targets = self.common, self.targets[rows]
        is_one = np.isin(targets, common)
        if not is_one.any() or len(common) < 2:
            return None
        is_right = common[probabilities[is_one][:, common].argmax(axis=1)] == targets[is_one]
        return float(np.mean([is_right[targets[is_one] == word].mean() for word in np.unique(targets[is_one])]))

    def judge_voices(self, rows: Integers, probabilities: Floats, predicted: Integers | None = None) -> dict[str, Any]:
        """Return the figures of some rows by language, and by sex, of the speaker, if known."""
        found = {}
        for names in self.voices[rows].T:
            for name in sorted(set(names.tolist()) - {""}):
                own = np.flatnonzero(names == name)
                judged = self.judge(rows[own], probabilities[own], None if predicted is None else predicted[own])
                found[name] = pick(judged, "n_rows", "n_speakers", "accuracy", "uar")
        return found

    def describe_corpora(self) -> dict[str, Any]:
        """Return the numbers of segments and speakers of each corpus; empty if there is only one corpus."""
        found = {}
        for name in sorted(set(self.corpora.tolist()) - {""}):
            own = self.corpora == name
            found[name] = {"n_rows": int(own.sum()), "n_speakers": len(set(self.speakers[own].tolist()) - {""})}
        return found

    def judge_shortcuts(self, folds: SpeakerFolds) -> dict[str, dict[str, Any]]:
        """Return the figures of duration alone, and of level alone; see `metrics.judge_shortcut`."""
        return {
            name: judge_shortcut(values, self.targets, self.labels, self.speakers, folds)
            for name, values in (("duration", self.duration_s), ("level", self.level))
        }


class Source(NamedTuple):
    """A feature table to learn from, and the numbers of its parts."""

    table: Folder
    info: TableInfo
    shards: Sequence[int]


def _count_parts(keys: Integers, depth: int) -> Integers:
    """Return, for each row, the number of values of the next key among the rows with the same first `depth` keys."""
    parts = np.unique(keys[:, : depth + 1], axis=0)
    _, counts = np.unique(parts[:, :depth], axis=0, return_counts=True)
    _, of_row = np.unique(keys[:, :depth], axis=0, return_inverse=True)
    return np.asarray(counts[of_row], np.int64)


def read_dataset(
    table: Folder,
    info: TableInfo,
    shards: Sequence[int],
    labels: str,
    spool: Spool | None,
    *,
    known_labels: Sequence[str] | None = None,
    familiar_labels: Sequence[str] = (),
    label_map: Mapping[str, str] | None = None,
    allow_numeric_labels: bool = False,
    whole: bool = True,
    on_rows: Callable[[pa.Table], None] = lambda rows: None,
) -> Dataset:
    """Read the rows of a feature table that hold features and have a label, part by part.

    `labels` says where reference labels are from: see `labels.read_labels`. `label_map` renames some of them, and "" leaves one out.
    With `known_labels`, those of a model, labels without a counterpart are left out, and counted. Labels that look like numbers or
    dates must be allowed, unless the model or the map has them; so must, with `whole`, the label of a recording for several of its
    segments. `familiar_labels` are those of the model that a training starts
    from: few recordings of them are enough. `spool`, if there is one, takes the features; `on_rows` takes the rows with their
    features, part by part, in the order of the dataset's numbers.

    Raises
    ------
    UsageError
        If fewer than two labels remain, one looks like a number or a date or is that of several segments, or, if they are learnt, one
        of them has too few recordings.
    """
    labeller = read_labels(labels)
    if isinstance(labeller, LabelTable):
        names = (parts.require_part(table, info, shard, ["file"])["file"] for shard in shards)
        labeller.settle((file for one in names for file in pc.unique(one).to_pylist()), info.source)
    columns = ["file", "channel", "start_s", "end_s", "status", "duration_s", *recipes.names(info.feature_settings)]
    expected = {clean(word) for word in (*(known_labels or familiar_labels), *(label_map or {}))}
    words: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    n_failed = n_ok = n_recordings = n_unlabelled = 0
    unlabelled = ""
    # Without a row, these have the columns or the type of none.
    used = [info.schema.empty_table().select(_USED)]
    levels, targets = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    speakers: list[str] = []
    for shard in shards:
        rows = parts.require_part(table, info, shard, columns)
        is_ok = pc.equal(rows["status"], Status.OK)
        n_failed += rows.num_rows - pc.sum(is_ok).as_py()
        # Failed rows count as found, because the label table did not cause the failure.
        segments = zip(*(rows[name].to_pylist() for name in ("file", "start_s", "end_s", "channel")), strict=True)
        found = [one for one, ok in zip(starmap(labeller, segments), is_ok.to_pylist(), strict=True) if ok]
        rows = rows.filter(is_ok)
        names_here = rows["file"].to_pylist()
        if not allow_numeric_labels:
            _check_numeric(table, labels, names_here, found, expected)
        if not whole:
            has_label = pa.array([one is not None for one in found], pa.bool_())
            _check_whole(table, labels, labeller, rows.select(["file", "channel"]).filter(has_label))
        labelled = {file for file, one in zip(names_here, found, strict=True) if one is not None}
        without = [file for file in dict.fromkeys(names_here) if file not in labelled]
        n_ok += len(names_here)
        n_recordings += len(labelled) + len(without)
        n_unlabelled += len(without)
        unlabelled = unlabelled or next(iter(without), "")
        emotions = ["" if one is None else one.emotion for one in found]
        if known_labels is not None:
            numbers, n_by_word = map_labels(emotions, label_map or {}, known_labels)
            left_out.update(n_by_word)
        else:
            called = [(label_map or {}).get(word, word) for word in emotions]
            left_out.update(word for word, label in zip(emotions, called, strict=True) if not label)
            numbers = np.array([words.setdefault(word, len(words)) if word else -1 for word in called], np.int64)
        is_used = numbers >= 0
        rows = rows.filter(pa.array(is_used))
        if not rows.num_rows:
            continue
        if spool is not None:
            spool.add(rows)
        on_rows(rows)
        used.append(rows.select(_USED))
        levels.append(recipes.level(rows, info.feature_settings))
        targets.append(numbers[is_used])
        speakers += [one.speaker or "" for one, used in zip(found, is_used, strict=True) if one is not None and used]
    rows = pa.concat_tables(used)
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in ("file", "start_s", "channel")])
    numbers, notes = np.concatenate(targets), []
    if isinstance(labeller, LabelTable) and (unfound := labeller.describe_unfound()):
        notes.append(unfound)
    # If each recording has labels, some of its windows may have none.
    n_without, n_all, each, example = n_unlabelled, n_recordings, "recording", f", e.g. {unlabelled!r}"
    if not n_unlabelled:
        n_without, n_all, each, example = left_out.get("", 0), n_ok, "segment", ""
    if n_without:
        verb = "has" if n_without == 1 else "have"
        notes.append(f"{n_without:,} of {counted(n_all, each)} with features {verb} no label{example}")
    thing, remarks = f"labels of {table.url}: {labels!r}", f" ({'; '.join(notes)})" if notes else ""
    if known_labels is None:
        _check_labels(thing, list(words), numbers, rows["file"], remarks, familiar_labels)
        # Labels are sorted, as scikit-learn's LabelEncoder does.
        ranks, known_labels = number_words(list(words))
        numbers = ranks[numbers]
    elif len(set(numbers.tolist())) < 2:
        raise UsageError(
            f"{thing} gives {len(set(numbers.tolist()))} of the model's labels ({', '.join(known_labels)}), and at least two are "
            f"needed; name their source with --labels, and map them with --label-map{remarks}"
        )
    return Dataset(
        settings=info.feature_settings,
        files=rows["file"],
        targets=numbers,
        labels=tuple(known_labels),
        speakers=np.array(speakers, object),
        corpora=np.full(len(speakers), "", object),
        voices=np.array([describe_voice(labels, one) for one in speakers], object).reshape(-1, 2),
        duration_s=np.nan_to_num(rows["duration_s"].to_numpy().astype(np.float32)),
        level=np.concatenate(levels),
        order=order.to_numpy().astype(np.int64),
        n_failed=n_failed,
        left_out=dict(sorted(left_out.items())),
        notes=tuple(notes),
    )


def join_corpora(datasets: Mapping[str, Dataset]) -> Dataset:
    """Return the rows of several named corpora as one dataset; equal speakers or recordings of two corpora stay two.

    Rows are numbered as in a spool into which the corpora were read one after the other.
    """
    labels = sorted({word for one in datasets.values() for word in one.labels})
    parts, n_rows = [], 0
    for name, one in datasets.items():
        parts.append(
            replace(
                one.add_labels(labels),
                files=pc.binary_join_element_wise(name, one.files, "/"),
                speakers=np.array([f"{name}/{speaker}" if speaker else "" for speaker in one.speakers], object),
                corpora=np.full(len(one.files), name, object),
                order=one.order + n_rows,
                notes=tuple(f"{name}: {note}" for note in one.notes),
            )
        )
        n_rows += len(one.files)
    notes = [note for one in parts for note in one.notes]
    owners = {word: [name for name, one in datasets.items() if word in one.labels] for word in labels}
    if alone := [f"{word} ({names[0]})" for word, names in owners.items() if len(names) == 1]:
        notes.append(f"labels of one corpus alone: {', '.join(alone)}; if others use another word, use --label-map")
    left_out = sum((Counter(one.left_out) for one in parts), Counter[str]())
    by_row = ("targets", "speakers", "corpora", "voices", "duration_s", "level", "order")
    columns: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in by_row}
    return replace(
        parts[0],
        files=pa.chunked_array([chunk for one in parts for chunk in one.files.chunks], pa.string()),
        n_failed=sum(one.n_failed for one in parts),
        left_out=dict(sorted(left_out.items())),
        notes=tuple(notes),
        **columns,
    )


def _check_numeric(
    table: Folder, source: str, files: Sequence[str], found: Sequence[Reference | None], expected: Set[str]
) -> None:
    """Raise UsageError if a label looks like a number or a date, and is not in the model or the label map."""
    words = {one.emotion: file for file, one in zip(files, found, strict=True) if one is not None}
    if wrong := sorted(word for word in words.keys() - expected if is_numeric(word)):
        raise UsageError(
            f"labels of {table.url}: {wrong[0]!r} from {source!r}, of {words[wrong[0]]!r}, looks like a number or a date and "
            "not like an emotion; name the source of the emotions with --labels, or use --allow-numeric-labels if it is one"
        )


def _check_whole(table: Folder, source: str, labeller: Labeller, labelled: pa.Table) -> None:
    """Raise UsageError if several segments of a recording, or of one of its channels, get the label of the whole recording."""
    segments = Counter(zip(*(column.to_pylist() for column in labelled.columns), strict=True))
    # A name is about the whole recording; a table may also name segments.
    n_spread = labeller.n_spread if isinstance(labeller, LabelTable) else segments
    if wide := next((one for one in segments if n_spread[one] > 1), None):
        raise UsageError(
            f"labels of {table.url}: {source!r} labels {wide[0]!r} as a whole, and {n_spread[wide]:,} of its segments would get that "
            "label; name the segments in a table with start_s and end_s, or use --whole if the label holds for each of them"
        )


def _check_labels(
    thing: str, words: Sequence[str], targets: Integers, files: pa.ChunkedArray, remarks: str, familiar: Sequence[str]
) -> None:
    """Raise UsageError if there are too few labels, or recordings of one, e.g. because names were misread."""
    if len(words) < 2:
        got = f"only {words[0]!r}" if words else "no label"
        raise UsageError(f"{thing} gives {got}, and at least two are needed; name their source with --labels{remarks}")
    pairs = pa.table({"target": targets, "file": files}).group_by("target").aggregate([("file", "count_distinct")])
    counts = pairs.sort_by("target")["file_count_distinct"].to_pylist()
    if rare := {word: n for word, n in zip(words, counts, strict=True) if n < _MIN_RECORDINGS and word not in familiar}:
        word = min(rare)
        example = files[int(np.argmax(targets == words.index(word)))].as_py()
        raise UsageError(
            f"{thing} gives {counted(rare[word], 'recording')} of {word!r} ({example!r}), and at least {_MIN_RECORDINGS} of each "
            f"label are needed ({counted(len(rare), 'label')} with fewer); name another source with --labels, or map them with "
            f"--label-map{remarks}"
        )


class Spool:
    """Features of rows, in the order in which they were added, in a file that is deleted after the block."""

    def __init__(self, settings: AnySettings) -> None:
        self._settings = settings
        # The file has no name, so nothing is left of it, however the process ends.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed by the block
        # The offsets in bytes at which rows begin and end in the file.
        self._bounds = array("q", [0])

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, rows: pa.Table) -> None:
        """Add rows of a feature table that all have features."""
        encoded = [recipes.encode(one) for one in recipes.iterate_values(rows, self._settings)]
        self._file.writelines(encoded)
        ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        self._bounds.frombytes((ends + self._bounds[-1]).tobytes())

    def read(self, rows: Integers) -> list[Values]:
        """Return the features of rows by their numbers, in the order in which these are given."""
        self._file.flush()
        bounds = np.frombuffer(self._bounds, np.int64)
        found = []
        for start, end in zip(bounds[rows].tolist(), bounds[rows + 1].tolist(), strict=True):
            values = recipes.decode(os.pread(self._file.fileno(), end - start, start), self._settings)
            # This fails only if the disk has lost data, and then the training cannot continue.
            assert values is not None  # noqa: S101
            found.append(values)
        return found
