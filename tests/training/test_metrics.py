"""Tests of figures, most of them against numbers computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from emotion_batch.errors import UsageError
from emotion_batch.training import metrics
from emotion_batch.training.splits import speaker_folds

LABELS = ("angry", "neutral", "sad")


def certain(predicted: np.ndarray, n_labels: int = 3) -> np.ndarray:
    """Return probabilities that put 0.8 on each row's label."""
    probabilities = np.full((len(predicted), n_labels), 0.2 / (n_labels - 1))
    probabilities[np.arange(len(predicted)), predicted] = 0.8
    return probabilities


def unknown_speakers(n_rows: int) -> np.ndarray:
    return np.array([""] * n_rows, object)


def test_figures_are_those_computed_by_hand() -> None:
    """Of eight rows, recalls are 3/4, 1/2 and 1/2, so that UAR is 7/12 where accuracy is 5/8."""
    targets = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 0, 0, 1, 1, 2, 2, 0])
    speakers = np.array(["a", "a", "b", "b", "", "", "", ""], object)
    figures = metrics.compute_metrics(targets, certain(predicted), LABELS, speakers=speakers)
    assert (figures["n_rows"], figures["n_speakers"]) == (8, 2)
    assert figures["confusion"] == [[3, 1, 0], [0, 1, 1], [1, 0, 1]]
    assert figures["accuracy"] == 5 / 8
    assert figures["uar"] == pytest.approx(7 / 12)
    assert figures["recall"] == {"angry": 0.75, "neutral": 0.5, "sad": 0.5}
    assert figures["precision"] == {"angry": 0.75, "neutral": 0.5, "sad": 0.5}
    assert figures["nll"] == pytest.approx(-(5 * np.log(0.8) + 3 * np.log(0.1)) / 8)
    assert figures["ece"] == pytest.approx(0.8 - 5 / 8)
    assert json.loads(json.dumps(figures)) == figures


def test_uar_is_over_the_labels_that_are_there() -> None:
    """A label without reference rows has no recall and no part in UAR; giving it is wrong."""
    targets, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    figures = metrics.compute_metrics(targets, certain(predicted), LABELS, speakers=unknown_speakers(4))
    assert figures["uar"] == 0.75
    assert figures["recall"] == {"angry": 0.5, "neutral": 1.0, "sad": None}
    assert figures["precision"] == {"angry": 1.0, "neutral": 1.0, "sad": None}
    assert figures["confusion"][2] == [0, 0, 0]


def test_a_label_that_is_never_given_has_no_precision() -> None:
    """Its recall is 0; its precision is unknown, not 0."""
    figures = metrics.compute_metrics(np.array([0, 1]), certain(np.array([0, 0])), LABELS, speakers=unknown_speakers(2))
    assert figures["recall"]["neutral"] == 0
    assert figures["precision"] == {"angry": 0.5, "neutral": None, "sad": None}


def test_labels_that_were_given_are_judged_instead_of_the_most_probable() -> None:
    """What a row was given counts, where it is said."""
    targets = np.array([0, 1])
    figures = metrics.compute_metrics(
        targets, certain(1 - targets), LABELS, speakers=unknown_speakers(2), predicted=targets
    )
    assert figures["accuracy"] == 1


def test_no_rows_have_no_figures() -> None:
    """Nothing to judge is one sentence, not a division by zero."""
    with pytest.raises(UsageError, match="figures: there are no rows to judge"):
        metrics.compute_metrics(np.array([], int), np.zeros((0, 3)), LABELS, speakers=unknown_speakers(0))


def test_calibration_error_is_that_computed_by_hand() -> None:
    """Two rows at 0.6, one right, and three at 0.9, all right: (2 * 0.1 + 3 * 0.1) / 5."""
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    targets = np.array([0, 1, 0, 0, 0])
    assert metrics.expected_calibration_error(targets, probabilities) == pytest.approx(0.1)
    # In one bin the mean confidence, 0.78, is nearly the accuracy, 0.8.
    assert metrics.expected_calibration_error(targets, probabilities, 1) == pytest.approx(0.02)
    bins = metrics.reliability(targets, probabilities, 5)
    # A bin is closed above: 0.6 is in the third of five.
    assert bins["n_rows"] == [0, 0, 2, 0, 3]
    assert bins["confidence"] == pytest.approx([None, None, 0.6, None, 0.9])
    assert bins["accuracy"] == [None, None, 0.5, None, 1.0]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_certainty_is_finite(kind: type) -> None:
    """Probabilities of 0 and 1 fall into the last bin, and being certainly wrong costs much, but no infinity."""
    probabilities = np.array([[1, 0], [1, 0]], kind)
    assert metrics.reliability(np.array([0, 1]), probabilities)["n_rows"][-1] == 2
    assert metrics.negative_log_likelihood(np.array([0, 1]), probabilities) == pytest.approx(87.34 / 2, abs=0.01)


def simulate(random: np.random.Generator, n_speakers: int, n_rows: int) -> tuple[np.ndarray, ...]:
    """Return rows of speakers of whom some are understood and some are not: 0.6 right on average."""
    speakers = np.repeat(np.arange(n_speakers), n_rows)
    targets = np.tile(np.arange(n_rows) % 3, n_speakers)
    share = random.uniform(0.3, 0.9, n_speakers)[speakers]
    predicted = np.where(random.random(len(targets)) < share, targets, (targets + 1) % 3)
    return targets, predicted, np.array([f"s{number}" for number in speakers], object)


def test_intervals_over_speakers_cover_the_truth() -> None:
    """Of 60 simulated corpora of 30 speakers, nearly 95 % have the true accuracy and UAR in their interval."""
    random = np.random.default_rng(0)
    n_covered = {"accuracy": 0, "uar": 0, "recording_wise": 0}
    for _ in range(60):
        found = metrics.intervals(*simulate(random, 30, 60), n_resamples=300)
        assert (found["unit"], found["n_units"]) == ("speaker", 30)
        for name in ("accuracy", "uar"):
            n_covered[name] += found[name][0] <= 0.6 <= found[name][1]
        lower, upper = found["recording_wise"]["accuracy"]
        n_covered["recording_wise"] += lower <= 0.6 <= upper
    assert min(n_covered["accuracy"], n_covered["uar"]) >= 52
    # What takes rows for independent is wrong far more often than it says.
    assert n_covered["recording_wise"] <= 45


def test_intervals_of_few_speakers_are_over_cells() -> None:
    """Two speakers whose emotions go right or wrong as a whole: cells say how little is known, recordings do not."""
    targets = np.tile(np.repeat(np.arange(7), 100), 2)
    speakers = np.repeat(np.array(["a", "b"], object), 700)
    is_right = np.repeat(np.random.default_rng(1).random(14) < 0.6, 100)
    predicted = np.where(is_right, targets, (targets + 1) % 7)
    found = metrics.intervals(targets, predicted, speakers)
    assert (found["unit"], found["n_units"], found["level"]) == ("speaker by emotion", 14, 0.95)
    for name in ("accuracy", "uar"):
        width, width_by_row = (np.diff(one[name])[0] for one in (found, found["recording_wise"]))
        assert width > 5 * width_by_row
        assert found[name][0] < is_right.mean() < found[name][1]
    assert found == metrics.intervals(targets, predicted, speakers)
    assert found != metrics.intervals(targets, predicted, speakers, seed=1)
    assert json.loads(json.dumps(found)) == found


def test_recording_wise_intervals_are_the_binomial_ones() -> None:
    """Of 1,000 rows, 600 right, the interval is 0.6 +- 1.96 * sqrt(0.6 * 0.4 / 1,000)."""
    targets = np.zeros(1_000, int)
    predicted = (np.arange(1_000) >= 600).astype(int)
    found = metrics.intervals(targets, predicted, unknown_speakers(1_000))
    assert found["recording_wise"]["accuracy"] == pytest.approx([0.5696, 0.6304], abs=0.005)
    # One speaker and one emotion are one unit, which says nothing of others.
    assert (found["n_units"], found["accuracy"], found["uar"]) == (1, None, None)


def test_precision_at_priors_is_bayes_rule() -> None:
    """Right on 9 of 10 of both labels, and one in ten angry: 0.09 / (0.09 + 0.09) of what is called angry is."""
    confusion = [[9, 1, 0], [10, 90, 0], [0, 0, 0]]
    found = metrics.precision_at_priors(confusion, LABELS, {"angry": 1, "neutral": 9})
    assert found == {"angry": pytest.approx(0.5), "neutral": pytest.approx(0.81 / 0.82), "sad": None}
    flat = metrics.precision_at_priors(confusion, LABELS, {"angry": 0.5, "neutral": 0.5})
    assert flat["angry"] == pytest.approx(0.9)
    never = metrics.precision_at_priors([[1, 0], [1, 0]], LABELS[:2], {"angry": 1, "neutral": 1})
    assert never == {"angry": 0.5, "neutral": None}


@pytest.mark.parametrize(
    ("priors", "sentence"),
    [
        ({"bored": 1}, "'bored' is not a label of the model; its labels are angry, neutral, sad"),
        ({"angry": -0.1}, "priors must be finite, and 0 or more: -0.1 for 'angry'"),
        ({"angry": float("nan")}, "priors must be finite, and 0 or more: nan for 'angry'"),
        ({"angry": float("inf")}, "priors must be finite, and 0 or more: inf for 'angry'"),
        ({"angry": 0}, "priors: all are 0"),
        ({}, "priors: all are 0"),
        ({"angry": 1, "sad": 1}, "no row has the reference label 'sad'"),
    ],
)
def test_priors_that_cannot_be(priors: dict[str, float], sentence: str) -> None:
    """Each is one sentence that names the label."""
    with pytest.raises(UsageError) as caught:
        metrics.precision_at_priors([[1, 0, 0], [0, 1, 0], [0, 0, 0]], LABELS, priors)
    assert sentence in str(caught.value)


def test_priors_are_read_from_a_word_or_a_file(tmp_path: Path) -> None:
    """Both forms say the same."""
    path = tmp_path / "priors.json"
    path.write_text('{"angry": 0.1, "neutral": 7}')
    for text in ("angry=0.1,neutral=7", " angry = 0.1, neutral =7", f"@{path}"):
        assert metrics.read_priors(text) == {"angry": 0.1, "neutral": 7.0}


@pytest.mark.parametrize(
    "text",
    ["", "angry", "angry=much", "angry=1,angry=2", "@nowhere.json", "@list", "@text", "@nested", "@number", "@twice"],
)
def test_priors_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Neither a wrong number nor a wrong file is more than one sentence."""
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("list", "[1, 2]"),
        ("text", "angry=1"),
        ("nested", '{"angry": [1]}'),
        ("number", "3"),
        ("twice", '{"angry": 1, "angry": 2}'),
    ):
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=r"^priors(: a label stands twice| must be LABEL=NUMBER)"):
        metrics.read_priors(text)


def test_a_shortcut_is_judged_on_the_same_folds() -> None:
    """Where duration gives the emotion away it is found to, on speakers not heard; where it does not, it is chance."""
    random = np.random.default_rng(0)
    targets = np.tile(np.arange(3), 200)
    speakers = np.repeat(np.array(["a", "b", "c", ""], object), 150)
    folds = speaker_folds(targets, speakers)
    told = metrics.judge_shortcut(targets + random.normal(0, 0.1, 600), targets, LABELS, speakers, folds)
    assert told["uar"] > 0.95
    assert (told["n_rows"], told["n_speakers"]) == (450, 3)
    blind = metrics.judge_shortcut(random.normal(size=(600, 2)), targets, LABELS, speakers, folds)
    assert blind["uar"] == pytest.approx(1 / 3, abs=0.08)
    # A label without a row keeps its place.
    assert len(metrics.judge_shortcut(targets, targets, (*LABELS, "ps"), speakers, folds)["confusion"]) == 4
    with pytest.raises(UsageError, match="shortcut: there is no fold"):
        metrics.judge_shortcut(targets, targets, LABELS, speakers, [])


def test_reliability_is_drawn() -> None:
    """A picture comes of bins of which some are empty."""
    targets = np.array([0, 1, 0])
    bins = metrics.reliability(targets, certain(targets, 2))
    assert metrics.draw_reliability(bins, bins).startswith(b"\x89PNG")
