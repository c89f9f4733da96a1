"""Tests of splits: what is held out, and that no judged speaker was heard."""

from __future__ import annotations

import numpy as np
import pytest

from emotion_batch.errors import UsageError
from emotion_batch.training.splits import NO_FOLD, speaker_folds, split_seed, split_stratified


def words(*many: str) -> np.ndarray:
    return np.array(many, object)


def test_a_stratified_split_is_even_and_repeatable() -> None:
    """The held-out share has each label alike; the same seed holds out the same recordings, another one others."""
    targets = np.repeat(np.arange(7), 12)
    files = words(*(f"{number:03}.wav" for number in range(84)))
    held_out = split_stratified(targets, files, 0.25, 1)
    assert np.bincount(targets[held_out]).tolist() == [3] * 7
    assert np.array_equal(held_out, split_stratified(targets, files, 0.25, 1))
    assert not np.array_equal(held_out, split_stratified(targets, files, 0.25, 2))
    assert not split_stratified(targets, files, 0, 1).any()


def test_a_stratified_split_does_not_depend_on_the_order_of_rows() -> None:
    """Rows in another order are held out alike, with all segments of their recording."""
    targets = np.repeat([0, 1], 30)
    files = words(*(f"{number // 3}.wav" for number in range(60)))
    order = np.random.default_rng(0).permutation(60)
    held_out = split_stratified(targets, files, 0.2, 0)
    assert np.array_equal(split_stratified(targets[order], files[order], 0.2, 0), held_out[order])
    assert not set(files[held_out]) & set(files[~held_out])
    assert held_out.sum() == 4 * 3


def test_a_share_that_leaves_a_label_out_is_refused() -> None:
    """A split that cannot hold out one recording of each label is one sentence."""
    with pytest.raises(
        UsageError, match=r"^held_out: a share of 0\.1 leaves a label without a recording; choose another$"
    ):
        split_stratified(np.array([0, 0, 0, 1, 1, 1]), words(*"abcdef"), 0.1, 0)


def test_the_seed_split_is_the_end_of_the_listing() -> None:
    """As Keras's validation_split, the last fifth by name, whatever order the rows have; segments stay together."""
    files = words(*(f"{number:02}.wav" for number in range(11)))
    # floor(11 * 0.8) = 8 are learnt.
    assert split_seed(files).tolist() == [False] * 8 + [True] * 3
    assert split_seed(files[::-1]).tolist() == [True] * 3 + [False] * 8
    assert split_seed(words("a", "a", "b", "b", "b"), 0.5).tolist() == [False, False, True, True, True]
    with pytest.raises(
        UsageError, match=r"^held_out: a share of 0\.2 of 1 recordings leaves none to learn from or to judge"
    ):
        split_seed(words("a", "a"))


def test_few_speakers_are_left_out_one_by_one() -> None:
    """Each speaker is judged once by a model of all others; rows without a speaker are in no fold, and counted."""
    targets = np.array([0, 1, 0, 1, 0, 1, 0])
    speakers = words("b", "b", "a", "a", "", "", "b")
    folds = speaker_folds(targets, speakers)
    assert (folds.names, folds.n_speakers, folds.n_without_speaker, folds.reason) == (("a", "b"), 2, 2, "")
    assert folds.fold_of_row.tolist() == [1, 1, 0, 0, NO_FOLD, NO_FOLD, 1]
    found = [(learnt.tolist(), judged.tolist(), name) for learnt, judged, name in folds]
    assert found == [([0, 1, 6], [2, 3], "a"), ([2, 3], [0, 1, 6], "b")]


@pytest.mark.parametrize("n_speakers", [10, 11, 40])
def test_folds_never_share_a_speaker(n_speakers: int) -> None:
    """Every row with a speaker is judged once, in ten folds at most, by a model that heard none of its speakers."""
    random = np.random.default_rng(0)
    speakers = words(*(f"s{number}" for number in random.integers(0, n_speakers, 2_000)))
    speakers[:50] = ""
    folds = speaker_folds(random.integers(0, 4, 2_000), speakers, seed=3)
    judged = np.zeros(2_000, int)
    for fold in folds:
        assert not set(speakers[fold.learnt]) & set(speakers[fold.judged])
        assert len(fold.learnt) + len(fold.judged) == 1_950
        judged[fold.judged] += 1
    assert judged.tolist() == [0] * 50 + [1] * 1_950
    assert len(folds.names) == 10
    assert folds.names[0].startswith("s0" if n_speakers == 10 else "fold 1 (")


@pytest.mark.parametrize(("speakers", "n_speakers"), [("aaaa", 1), ("    ", 0), ("aa  ", 1)])
def test_one_speaker_gives_no_folds(speakers: str, n_speakers: int) -> None:
    """Without a second speaker there is nothing to judge, and one sentence why; training goes on."""
    folds = speaker_folds(np.array([0, 1, 0, 1]), words(*(one.strip() for one in speakers)))
    assert list(folds) == []
    assert folds.n_speakers == n_speakers
    assert f"known speakers: {n_speakers};" in folds.reason


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ([0, 0, 0, 1], "what fold 'a' judges has 1 label,"),
        ([0, 1, 1, 1], "what fold 'a' learns from has 1 label,"),
    ],
)
def test_a_fold_of_one_label_is_refused(targets: list[int], sentence: str) -> None:
    """A speaker with one emotion, or who leaves one to learn, gives no figures but an error."""
    with pytest.raises(UsageError, match=sentence):
        speaker_folds(np.array(targets), words("a", "a", "b", "b"))
