"""Split rows into those to learn from and those to judge on: a stratified share, the notebook's split, or held-out speakers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import UsageError

# In no fold: neither learnt from nor judged.
NO_FOLD = -1


class Split(StrEnum):
    """What figures were measured on, the whole list."""

    TRAINING = "training"
    SEED = "seed"
    STRATIFIED = "stratified"
    SPEAKER_HELD_OUT = "speaker_held_out"


class Fold(NamedTuple):
    """Numbers of the rows that one model learns from, of those that it is judged on, and who speaks in these."""

    learnt: npt.NDArray[np.int64]
    judged: npt.NDArray[np.int64]
    name: str


@dataclass(frozen=True)
class SpeakerFolds:
    """Folds in which no judged speaker was heard; iterating gives a `Fold` each, none where there is one speaker.

    Attributes
    ----------
    fold_of_row
        Number of the fold that judges each row, shape (n_rows,); `NO_FOLD` for rows in none.
    names
        Name of each fold: its speaker, or its number and how many speakers it has.
    n_speakers
        Known speakers of all rows.
    n_without_speaker
        Rows whose speaker is unknown, which these folds leave out.
    reason
        One sentence, why there are no folds; "" where there are.
    """

    fold_of_row: npt.NDArray[np.int64]
    names: tuple[str, ...]
    n_speakers: int
    n_without_speaker: int
    reason: str = ""

    def __iter__(self) -> Iterator[Fold]:
        is_in_some = self.fold_of_row != NO_FOLD
        for number, name in enumerate(self.names):
            is_judged = self.fold_of_row == number
            yield Fold(np.flatnonzero(is_in_some & ~is_judged), np.flatnonzero(is_judged), name)


def number_words(
    words: Sequence[str] | npt.NDArray[np.object_] | pa.ChunkedArray,
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the number of each word among the distinct ones, sorted, and these; by hashing, for rows are many."""
    plain = words.combine_chunks() if isinstance(words, pa.ChunkedArray) else pa.array(words, pa.string())
    encoded = plain.dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order))
    return numbers[encoded.indices.to_numpy()], encoded.dictionary.take(pa.array(order)).to_pylist()


def split_stratified(
    targets: npt.NDArray[np.int64], files: npt.NDArray[np.object_] | pa.ChunkedArray, held_out: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Return which rows are held out: that share of each label's recordings, all segments of one together.

    Parameters
    ----------
    targets
        Number of each row's label, shape (n_rows,).
    files
        Name of each row's recording, shape (n_rows,).
    held_out
        Share of the recordings; 0 holds out none.
    seed
        Decides which.

    Raises
    ------
    UsageError
        If the share leaves a label without a recording.
    """
    if not held_out:
        return np.zeros(len(files), bool)
    from sklearn.model_selection import train_test_split

    recordings, names = number_words(files)
    _, first = np.unique(recordings, return_index=True)
    labels = targets[first]
    if (labels[recordings] != targets).any():
        # Segments with labels of their own: a label that comes first in one recording alone cannot be shared out.
        counts = np.bincount(labels)
        labels = np.where(counts[labels] < 2, counts.argmax(), labels)
    try:
        _, judged = train_test_split(np.arange(len(names)), test_size=held_out, stratify=labels, random_state=seed)
    except ValueError as error:
        raise UsageError(f"held_out: expected a share that gives each label a recording, got {held_out}") from error
    is_judged = np.zeros(len(names), bool)
    is_judged[judged] = True
    return is_judged[recordings]


def split_seed(files: npt.NDArray[np.object_] | pa.ChunkedArray, held_out: float = 0.2) -> npt.NDArray[np.bool_]:
    """Return which rows the notebook's ``validation_split`` holds out: the last recordings by name.

    Keras learns from the first ``floor(n * (1 - validation_split))`` rows as they come and judges the rest
    (https://keras.io/api/models/model_training_apis/). They came to the notebook in whatever order the folder was
    listed; here they are sorted by name, and segments of one recording stay together.

    Parameters
    ----------
    files
        Name of each row's recording, shape (n_rows,), in any order.
    held_out
        Share of the recordings.

    Raises
    ------
    UsageError
        If it leaves nothing to learn from or nothing to judge.
    """
    recordings, names = number_words(files)
    n_learnt = int(len(names) * (1 - held_out))
    if not 0 < n_learnt < len(names):
        raise UsageError(
            f"held_out: expected a share that leaves recordings on both sides, got {held_out} of {len(names)}"
        )
    return recordings >= n_learnt


def speaker_folds(
    targets: npt.NDArray[np.int64],
    speakers: npt.NDArray[np.object_],
    *,
    max_folds: int = 10,
    seed: int = 0,
) -> SpeakerFolds:
    """Return folds by speaker: each left out once, or in groups where there are more than `max_folds`.

    Parameters
    ----------
    targets
        Number of each row's label, shape (n_rows,).
    speakers
        Speaker of each row, shape (n_rows,), "" where unknown.
    max_folds
        Most folds, at least 2.
    seed
        Decides the groups, which are stratified by label as far as whole speakers allow.

    Raises
    ------
    UsageError
        If a fold would learn from, or judge, fewer than two labels.
    """
    numbers, words = number_words(speakers)
    known = [number for number, word in enumerate(words) if word]
    has_speaker = np.isin(numbers, known)
    n_without = int(len(speakers) - has_speaker.sum())
    if len(known) < 2:
        reason = (
            f"speaker-held-out figures: expected rows of two speakers or more, got {len(known)}; "
            "how the model does on voices that it has not heard is unknown"
        )
        return SpeakerFolds(np.full(len(speakers), NO_FOLD, np.int64), (), len(known), n_without, reason)
    if len(known) <= max_folds:
        fold_of_speaker = np.full(len(words), NO_FOLD, np.int64)
        fold_of_speaker[known] = np.arange(len(known))
        fold_of_row = fold_of_speaker[numbers]
        names = tuple(words[number] for number in known)
    else:
        fold_of_row = _group(targets, numbers, has_speaker, max_folds, seed)
        sizes = [len(np.unique(numbers[fold_of_row == fold])) for fold in range(max_folds)]
        names = tuple(f"fold {fold} ({size} speakers)" for fold, size in enumerate(sizes, start=1))
    folds = SpeakerFolds(fold_of_row, names, len(known), n_without)
    _check(folds, targets)
    return folds


def _group(
    targets: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    has_speaker: npt.NDArray[np.bool_],
    n_folds: int,
    seed: int,
) -> npt.NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold

    rows = np.flatnonzero(has_speaker)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold_of_row = np.full(len(targets), NO_FOLD, np.int64)
    try:
        for fold, (_, judged) in enumerate(splitter.split(rows, targets[rows], numbers[rows])):
            fold_of_row[rows[judged]] = fold
    except ValueError as error:
        raise UsageError(
            f"speaker folds: expected labels with {n_folds} rows or more, got fewer; use more rows"
        ) from error
    return fold_of_row


def _check(folds: SpeakerFolds, targets: npt.NDArray[np.int64]) -> None:
    """See that each fold has two labels to learn and two to tell apart: else its figures mean nothing."""
    n_labels = int(targets.max()) + 1
    counts = np.zeros((len(folds.names), n_labels), np.int64)
    is_in_some = folds.fold_of_row != NO_FOLD
    np.add.at(counts, (folds.fold_of_row[is_in_some], targets[is_in_some]), 1)
    for name, judged, learnt in zip(folds.names, counts, counts.sum(axis=0) - counts, strict=True):
        for words, found in (("judges", judged), ("learns from", learnt)):
            if np.count_nonzero(found) < 2:
                raise UsageError(
                    f"speaker folds: expected two labels or more in what fold {name!r} {words}, "
                    f"got {np.count_nonzero(found)}; leave such speakers out, or give them recordings of other emotions"
                )
