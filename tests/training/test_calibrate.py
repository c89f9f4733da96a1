"""Tests of temperatures, thresholds, and what both do on speakers that they were not chosen on."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from emotion_batch.errors import UsageError
from emotion_batch.inference import confidence as confidence_module
from emotion_batch.inference.confidence import apply_temperature, margin
from emotion_batch.training import calibrate
from emotion_batch.training.calibrate import choose_threshold, fit_temperature, judge_threshold
from emotion_batch.training.splits import NO_FOLD, Split

HELD_OUT = Split.SPEAKER_HELD_OUT


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def predict(temperature: float, n_rows: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that are right at `temperature`, and targets drawn from what they then are."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n_rows, 7))
    targets = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
    return softmax(logits * temperature), targets


@pytest.mark.parametrize("temperature", [0.5, 1.7, 4.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    """Logits that were multiplied are divided by as much, and the labels become more likely."""
    probabilities, targets = predict(temperature)
    found = fit_temperature(probabilities, targets, source=HELD_OUT)
    assert found.value == pytest.approx(temperature, rel=0.05)
    assert found.nll < found.nll_raw
    assert found.n_rows == 20_000
    calibrated = apply_temperature(probabilities, found.value)
    np.testing.assert_allclose(calibrated, softmax(np.log(probabilities) / found.value), atol=1e-6)


def test_a_temperature_stays_in_its_bounds() -> None:
    """Rows that are all right, or all wrong, give no infinite temperature."""
    probabilities = np.tile(np.array([[0.55, 0.45]], np.float32), (50, 1))
    right, wrong = (fit_temperature(probabilities, np.full(50, target), source=HELD_OUT).value for target in (0, 1))
    assert right == pytest.approx(0.05, rel=0.01)
    assert wrong == pytest.approx(20, rel=0.01)


def test_a_temperature_that_does_not_help_is_one() -> None:
    """Where all labels are equally probable no temperature changes anything, and it stays 1 exactly."""
    assert fit_temperature(np.full((30, 4), 0.25), np.zeros(30, int), source=HELD_OUT).value == 1


@pytest.mark.parametrize("source", [one for one in Split if one not in (HELD_OUT, Split.CORPUS_HELD_OUT)] + ["words"])
def test_other_sources_are_refused(source: Split) -> None:
    """Predictions for speakers that were heard calibrate nothing, whichever split they are from."""
    probabilities, targets = predict(2, 100)
    folds = np.arange(100) % 2
    for act in (
        lambda: fit_temperature(probabilities, targets, source=source),
        lambda: calibrate.calibrate_across_folds(probabilities, targets, folds, source=source),
        lambda: calibrate.judge_threshold_across_folds(probabilities, targets, folds, source=source, n_speakers=2),
    ):
        with pytest.raises(UsageError, match=f"the split {source} has speakers that the model has heard"):
            act()


def test_no_rows_have_no_temperature() -> None:
    """Nothing to fit on is one sentence."""
    with pytest.raises(UsageError, match="temperature: there are no rows"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, int), source=HELD_OUT)


def test_applying_a_temperature_keeps_the_order() -> None:
    """Rows sum to 1 in float32, their labels stay in order, and 1 gives equal values in memory of their own."""
    probabilities, _ = predict(3, 500)
    for temperature in (0.05, 0.7, 3.0, 20.0):
        found = apply_temperature(probabilities, temperature)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
        assert np.array_equal(found.argmax(axis=1), probabilities.argmax(axis=1))
    same = apply_temperature(probabilities, 1)
    assert np.array_equal(same, probabilities)
    assert not np.shares_memory(same, probabilities)
    assert apply_temperature(probabilities[:0], 2).shape == (0, 7)


def test_applying_a_temperature_is_safe_at_the_edges() -> None:
    """What underflowed to 0 neither warns nor gives NaN, and 0.8 to 0.2 at 2 is the ratio of their roots, 2 to 1."""
    edge = np.array([[1, 0, 0], [0.5, 0.5, 0]], np.float32)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        for temperature in (0.5, 2.0):
            np.testing.assert_allclose(apply_temperature(edge, temperature), edge, atol=1e-6)
        assert np.isfinite(apply_temperature(edge, 20)).all()
    np.testing.assert_allclose(apply_temperature(np.array([[0.8, 0.2]]), 2), [[2 / 3, 1 / 3]], rtol=1e-6)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="temperature must be a number above 0"):
            apply_temperature(edge, wrong)


def test_two_speakers_are_calibrated_both_ways() -> None:
    """Each is reported with the temperature of the other, rows of no fold have no part, the last is of all rows."""
    sure, unsure = predict(4, seed=1), predict(2, seed=2)
    probabilities, targets = (np.concatenate(pair) for pair in zip(sure, unsure, strict=True))
    folds = np.repeat([0, 1], 20_000)
    folds[:100] = NO_FOLD
    found = calibrate.calibrate_across_folds(probabilities, targets, folds, source=HELD_OUT)
    first, second = found["folds"]
    assert (first["fold"], first["n_rows"], second["n_rows"], found["n_rows"]) == (0, 19_900, 20_000, 39_900)
    assert first["temperature"] == pytest.approx(2, rel=0.05)
    assert second["temperature"] == pytest.approx(4, rel=0.05)
    assert first["temperature"] < found["temperature"] < second["temperature"]
    for kind in ("raw", "calibrated"):
        pooled = (19_900 * first[kind]["nll"] + 20_000 * second[kind]["nll"]) / 39_900
        assert found[kind]["nll"] == pytest.approx(pooled)
    assert first["calibrated"]["nll"] < first["raw"]["nll"]
    assert first["calibrated"]["ece"] < first["raw"]["ece"]
    assert json.loads(json.dumps(found)) == found


def test_a_temperature_that_helps_no_other_speaker_is_one() -> None:
    """Speakers who need opposite temperatures get none."""
    pairs = predict(5, 2_000, seed=1), predict(0.2, 2_000, seed=2)
    probabilities, targets = (np.concatenate(pair) for pair in zip(*pairs, strict=True))
    found = calibrate.calibrate_across_folds(probabilities, targets, np.repeat([0, 1], 2_000), source=HELD_OUT)
    assert found["calibrated"]["nll"] > found["raw"]["nll"]
    assert found["temperature"] == 1


def test_one_fold_cannot_be_calibrated() -> None:
    """A temperature is reported on others than it was fitted on, or not at all."""
    probabilities, targets = predict(2, 100)
    for folds in (np.zeros(100, int), np.full(100, NO_FOLD)):
        with pytest.raises(UsageError, match="calibration: it needs at least two folds"):
            calibrate.calibrate_across_folds(probabilities, targets, folds, source=HELD_OUT)


def test_the_lowest_threshold_that_keeps_the_promise_is_chosen() -> None:
    """Of 100 rows the 40 surest are right and of the rest every second: 0.9 holds down to the 50th, 5 of them wrong."""
    confidence = np.linspace(1, 0.01, 100)
    is_right = np.concatenate([np.ones(40, bool), np.arange(60) % 2 == 1])
    found = choose_threshold(confidence, is_right, precision=0.9)
    # At the 52nd, the next that is right, 6 of 52 are wrong: too many.
    assert found == calibrate.Threshold(confidence[49], 0.9, 45 / 50, 0.5, 100)
    order = np.random.default_rng(0).permutation(100)
    assert choose_threshold(confidence[order], is_right[order], precision=0.9) == found


def test_rows_of_equal_confidence_stand_or_fall_together() -> None:
    """A threshold that would take the right half of its ties is none."""
    confidence = np.repeat(np.array([0.9, 0.6], np.float32), 40)
    is_right = np.concatenate([np.ones(40, bool), np.ones(20, bool), np.zeros(20, bool)])
    found = choose_threshold(confidence, is_right, precision=0.9)
    assert (found.value, found.coverage) == (np.float32(0.9), 0.5)
    assert judge_threshold(found, confidence, is_right)["n_confident"] == 40
    assert choose_threshold(confidence, is_right, precision=0.75).coverage == 1


@pytest.mark.parametrize(
    ("n_right", "n_wrong", "is_found"), [(19, 0, False), (20, 0, True), (17, 3, False), (18, 2, True), (0, 0, False)]
)
def test_a_threshold_needs_rows(n_right: int, n_wrong: int, is_found: bool) -> None:
    """Of fewer than 20 rows, or a smaller share than promised, none is chosen and no row is confident."""
    is_right = np.concatenate([np.ones(n_right, bool), np.zeros(n_wrong, bool)])
    found = choose_threshold(np.full(len(is_right), 0.8), is_right, precision=0.9)
    assert (found.value is not None) == is_found
    judged = judge_threshold(found, np.full(10, 0.99), np.ones(10, bool))
    assert (judged["n_confident"], judged["got"]) == ((10, 1.0) if is_found else (0, None))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["value"] == found.value


@pytest.mark.parametrize("precision", [0, -0.1, 1.1, float("nan")])
def test_a_precision_is_a_share(precision: float) -> None:
    """What cannot be promised is refused."""
    with pytest.raises(UsageError, match="precision must be above 0 and at most 1"):
        choose_threshold(np.ones(30), np.ones(30, bool), precision=precision)


@pytest.mark.parametrize(("n_speakers", "is_guaranteed"), [(4, False), (5, True)])
def test_a_promise_is_judged_on_other_speakers(n_speakers: int, is_guaranteed: bool) -> None:
    """Speakers who are alike get what was promised; of fewer than five it is no guarantee."""
    probabilities, targets = predict(2.5)
    folds = np.arange(20_000) % n_speakers
    found = calibrate.judge_threshold_across_folds(
        probabilities, targets, folds, source=HELD_OUT, n_speakers=n_speakers
    )
    assert found["promised"] == 0.9
    assert found["got"] == pytest.approx(0.9, abs=0.02)
    assert (found["n_speakers"], found["is_guaranteed"], found["n_rows"]) == (n_speakers, is_guaranteed, 20_000)
    assert found["n_confident"] == sum(fold["n_confident"] for fold in found["folds"])
    assert found["coverage"] == found["n_confident"] / 20_000
    assert json.loads(json.dumps(found)) == found


def test_a_promise_can_fail_on_another_speaker() -> None:
    """A threshold of a speaker who is understood says nothing of one who is not, and that is what is reported."""
    probabilities, targets = predict(1, 4_000)
    targets[2_000:] = (np.argmax(probabilities[2_000:], axis=1) + 1) % 7
    found = calibrate.judge_threshold_across_folds(
        probabilities, targets, np.repeat([0, 1], 2_000), source=HELD_OUT, n_speakers=2
    )
    understood, other = found["folds"]
    assert (understood["threshold"], understood["n_confident"]) == (None, 0)
    assert other["threshold"] is not None
    assert found["got"] == other["got"] == 0


def test_margin_and_entropy() -> None:
    """Both are by hand: 0.7 - 0.2, and between 0 for certainty and the logarithm of the number of labels."""
    probabilities = np.array([[0.1, 0.7, 0.2], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], np.float32)
    np.testing.assert_allclose(margin(probabilities), [0.5, 1, 0], atol=1e-6)
    expected = -(0.1 * np.log(0.1) + 0.7 * np.log(0.7) + 0.2 * np.log(0.2))
    entropy = confidence_module.entropy(probabilities)
    np.testing.assert_allclose(entropy, [expected, 0, np.log(3)], atol=1e-6)
    assert not np.signbit(entropy).any()
    assert margin(probabilities).dtype == entropy.dtype == np.float32
