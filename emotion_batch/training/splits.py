"""Split rows into those to learn from and those to judge on: a stratified share, the notebook's split, or held-out speakers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import UsageError

Integers = npt.NDArray[np.integer[Any]]
Booleans = npt.NDArray[np.bool_]
Words: TypeAlias = Sequence[str] | npt.NDArray[np.object_] | pa.ChunkedArray
# Number of the fold of a row that is in none: it is neither learnt from nor judged.
NO_FOLD = -1


class Split(StrEnum):
    """The rows that figures were measured on, as a closed list."""

    TRAINING = "training"
    SEED = "seed"
    STRATIFIED = "stratified"
    SPEAKER_HELD_OUT = "speaker_held_out"
    CORPUS_HELD_OUT = "corpus_held_out"


class Fold(NamedTuple):
    """Numbers of the rows that one model learns from, of those that it is judged on, and the name of their speakers."""

    learnt: npt.NDArray[np.int64]
    judged: npt.NDArray[np.int64]
    name: str


@dataclass(frozen=True)
class SpeakerFolds:
    """Folds in which no judged speaker was heard; iterating gives a `Fold` each.

    `fold_of_row` is the number of the fold that judges each row, or `NO_FOLD`. A fold is named after its speaker, or
    after its number and how many speakers it has. `n_speakers` counts the known speakers of all rows, and
    `n_without_speaker` the rows that are in no fold because their speaker is unknown. If there are no folds, `reason`
    says why in one sentence.
    """

    fold_of_row: Integers
    names: tuple[str, ...]
    n_speakers: int
    n_without_speaker: int
    reason: str = ""

    def __iter__(self) -> Iterator[Fold]:
        is_in_some = self.fold_of_row != NO_FOLD
        for number, name in enumerate(self.names):
            is_judged = self.fold_of_row == number
            yield Fold(np.flatnonzero(is_in_some & ~is_judged), np.flatnonzero(is_judged), name)


def number_words(words: Words) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the number of each word among the sorted distinct words, and these words. It hashes, because rows are many."""
    plain = words.combine_chunks() if isinstance(words, pa.ChunkedArray) else pa.array(words, pa.string())
    encoded = plain.dictionary_encode()
    ranks = pc.rank(encoded.dictionary).to_numpy().astype(np.int64) - 1
    return ranks[encoded.indices.to_numpy()], sorted(encoded.dictionary.to_pylist())


def split_stratified(targets: Integers, files: Words, held_out: float, seed: int) -> Booleans:
    """Return which rows are held out: a share of each label's recordings, all segments of a recording together.

    It raises UsageError if the share leaves a label without a recording.
    """
    if not held_out:
        return np.zeros(len(files), bool)
    from sklearn.model_selection import train_test_split

    recordings, names = number_words(files)
    labels = targets[np.unique(recordings, return_index=True)[1]]
    # A label that is first in fewer than two recordings cannot be divided, so it counts as the most frequent label here.
    counts = np.bincount(labels)
    labels = np.where(counts[labels] < 2, counts.argmax(), labels)
    try:
        _, judged = train_test_split(np.arange(len(names)), test_size=held_out, stratify=labels, random_state=seed)
    except ValueError as error:
        raise UsageError(
            f"held_out: a share of {held_out} leaves a label without a recording; choose another"
        ) from error
    return np.isin(recordings, judged)


def split_seed(files: Words, held_out: float = 0.2) -> Booleans:
    """Return which rows the notebook's ``validation_split`` holds out: the last recordings by name.

    Keras learns from the first ``floor(n * (1 - validation_split))`` rows as they come and judges the rest
    (https://keras.io/api/models/model_training_apis/). They came to the notebook in whatever order the folder was
    listed; here they are sorted by name, and segments of one recording stay together. It raises UsageError if nothing
    remains to learn from or to judge.
    """
    recordings, names = number_words(files)
    n_learnt = int(len(names) * (1 - held_out))
    if not 0 < n_learnt < len(names):
        raise UsageError(
            f"held_out: a share of {held_out} of {len(names)} recordings leaves none to learn from or to judge; choose another"
        )
    return recordings >= n_learnt


def speaker_folds(
    targets: Integers, speakers: npt.NDArray[np.object_], *, max_folds: int = 10, seed: int = 0
) -> SpeakerFolds:
    """Return folds by speaker ("" if unknown): each is left out once, or in groups if there are more than `max_folds`.

    `seed` decides the groups, which are stratified by label as far as whole speakers allow. It raises UsageError if a
    fold would learn from, or judge, fewer than two labels.
    """
    numbers, words = number_words(speakers)
    known = [number for number, word in enumerate(words) if word]
    has_speaker = np.isin(numbers, known)
    n_without = int(np.sum(~has_speaker))
    fold_of_row = np.full(len(targets), NO_FOLD, np.int64)
    if len(known) < 2:
        reason = (
            f"speaker-held-out figures: at least two speakers are needed, known speakers: {len(known)}; it is unknown how the model does "
            "on other voices"
        )
        return SpeakerFolds(fold_of_row, (), len(known), n_without, reason)
    if len(known) <= max_folds:
        fold_of_row[has_speaker] = np.searchsorted(known, numbers[has_speaker])
        names = [words[number] for number in known]
    else:
        fold_of_row[has_speaker] = _group(targets[has_speaker], numbers[has_speaker], max_folds, seed)
        sizes = [len(np.unique(numbers[fold_of_row == fold])) for fold in range(max_folds)]
        names = [f"fold {fold} ({size} speakers)" for fold, size in enumerate(sizes, start=1)]
    folds = SpeakerFolds(fold_of_row, tuple(names), len(known), n_without)
    _require_two_labels(folds, targets)
    return folds


def corpus_folds(
    corpora: npt.NDArray[np.object_], speakers: npt.NDArray[np.object_], targets: Integers
) -> SpeakerFolds:
    """Return folds that leave each corpus out once. It raises UsageError as `speaker_folds` does."""
    numbers, names = number_words(corpora)
    folds = SpeakerFolds(numbers, tuple(names), len(set(speakers.tolist()) - {""}), 0)
    _require_two_labels(folds, targets)
    return folds


def _group(targets: Integers, speakers: Integers, n_folds: int, seed: int) -> Integers:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    fold_of_row = np.zeros(len(targets), np.int64)
    try:
        for fold, (_, judged) in enumerate(splitter.split(targets, targets, speakers)):
            fold_of_row[judged] = fold
    except ValueError as error:
        raise UsageError(f"speaker folds: a label has fewer than {n_folds} rows; use more rows") from error
    return fold_of_row


def _require_two_labels(folds: SpeakerFolds, targets: Integers) -> None:
    """Raise UsageError if a fold has fewer than two labels to learn or to tell apart: its figures would mean nothing."""
    for fold in folds:
        for words, rows in (("judges", fold.judged), ("learns from", fold.learnt)):
            if (n_labels := len(np.unique(targets[rows]))) < 2:
                raise UsageError(
                    f"speaker folds: what fold {fold.name!r} {words} has {n_labels} label, and at least two are needed; leave such "
                    "speakers out, or give them recordings of other emotions"
                )
