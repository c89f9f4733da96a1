"""Compute and draw the metrics of predictions against reference labels."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emotion_batch.errors import UsageError
from emotion_batch.inference.confidence import SMALLEST, Floats
from emotion_batch.libraries import load_matplotlib
from emotion_batch.storage import names
from emotion_batch.training.splits import Fold, Integers, number_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With this many speakers or more, the bootstrap resamples whole speakers.
_LEAST_RESAMPLED = 10


def compute_metrics(
    targets: Integers,
    probabilities: Floats,
    labels: Sequence[str],
    *,
    speakers: npt.NDArray[np.object_],
    predicted: Integers | None = None,
) -> dict[str, Any]:
    """Return the figures of some rows.

    `targets` and `predicted` are the numbers of each row's reference label and of the label that it was given (by default
    the most probable one), shape (n_rows,). `probabilities` has the shape (n_rows, n_labels). `speakers` has "" if the
    speaker is unknown. It raises UsageError if there are no rows.

    Returns
    -------
    ``n_rows``, ``n_speakers`` (known ones), ``accuracy``, ``uar`` (unweighted average recall over the labels that the
    reference has; any other label is wrong), ``recall`` and ``precision`` by label (None if the reference lacks it, and
    precision also if no row was given it), ``confusion``, shape (n_labels, n_labels), true labels down,
    ``nll`` in nats, and ``ece``.
    """
    from sklearn import metrics

    if not len(targets):
        raise UsageError("figures: there are no rows to judge; check which rows have labels")
    if predicted is None:
        predicted = np.argmax(probabilities, axis=1)
    numbers = list(range(len(labels)))
    found = metrics.precision_recall_fscore_support(targets, predicted, labels=numbers, zero_division=np.nan)
    precision, recall, _, n_rows = found
    is_present = n_rows > 0
    return {
        "n_rows": len(targets),
        "n_speakers": len(set(number_words(speakers)[1]) - {""}),
        "accuracy": float(metrics.accuracy_score(targets, predicted)),
        "uar": float(np.mean(recall[is_present])),
        "recall": _by_label(labels, recall),
        "precision": _by_label(labels, np.where(is_present, precision, np.nan)),
        "confusion": metrics.confusion_matrix(targets, predicted, labels=numbers).tolist(),
        **measure_confidence(targets, probabilities),
    }


def pick(figures: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return some of the figures, by name."""
    return {name: figures[name] for name in names}


def measure_confidence(targets: Integers, probabilities: Floats) -> dict[str, float]:
    """Return ``nll``, in nats, and ``ece``."""
    return {
        "nll": negative_log_likelihood(targets, probabilities),
        "ece": expected_calibration_error(targets, probabilities),
    }


def negative_log_likelihood(targets: Integers, probabilities: Floats) -> float:
    """Return the mean of minus the logarithm of the reference label's probability, in nats; see `confidence.SMALLEST`."""
    of_target = np.take_along_axis(probabilities, targets[:, np.newaxis], axis=1).astype(np.float64)
    return float(-np.log(np.maximum(of_target, SMALLEST)).mean())


def expected_calibration_error(targets: Integers, probabilities: Floats, n_bins: int = 15) -> float:
    """Return the mean distance between confidence and accuracy, over bins of confidence, weighted by their rows.

    Equation 3 of Guo et al., "On Calibration of Modern Neural Networks", 2017 (https://arxiv.org/abs/1706.04599), with
    their 15 bins of equal width, and the label's probability as its confidence.
    """
    n_rows, confidence, n_right = _bin(targets, probabilities, n_bins)
    return float(np.abs(confidence - n_right).sum() / n_rows.sum())


def reliability(targets: Integers, probabilities: Floats, n_bins: int = 15) -> dict[str, list[Any]]:
    """Return the values of a reliability diagram, by bin of confidence: the bins of `expected_calibration_error`.

    They are ``n_rows``, ``confidence`` and ``accuracy``, a list of n_bins each; a mean is None if its bin has no rows.
    """
    n_rows, confidence, n_right = _bin(targets, probabilities, n_bins)
    return {
        "n_rows": n_rows.tolist(),
        "confidence": [float(total / n) if n else None for total, n in zip(confidence, n_rows, strict=True)],
        "accuracy": [float(total / n) if n else None for total, n in zip(n_right, n_rows, strict=True)],
    }


def intervals(
    targets: Integers,
    predicted: Integers,
    speakers: npt.NDArray[np.object_],
    *,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return 95 % intervals of accuracy and UAR, by the percentile bootstrap over speakers (Efron, 1979).

    Rows of one speaker are alike, so whole speakers are drawn if there are ten or more. With fewer, the bootstrap draws
    the rows of one speaker and one emotion. That says nothing of how unlike the next speaker will be, so the interval
    is too narrow for new speakers. All rows whose speaker is unknown count as one more speaker's.

    Returns
    -------
    ``level``, ``unit`` (``speaker`` or ``speaker by emotion``), ``n_units``, ``n_resamples``, ``accuracy`` and ``uar``
    as [lower, upper], None if there is only one unit; and ``recording_wise`` with both as if each row were independent of
    all others, which it is not, to compare with the figures of others.
    """
    n_labels = int(max(targets.max(), predicted.max())) + 1
    numbers, words = number_words(speakers)
    is_by_speaker = len(set(words) - {""}) >= _LEAST_RESAMPLED
    unit_of_row = numbers if is_by_speaker else numbers * n_labels + targets
    units, unit_of_row = np.unique(unit_of_row, return_inverse=True)
    # Both figures need the number of wrong and of right rows of a unit by label. Shape (n_units, 2, n_labels).
    cells = (unit_of_row * 2 + (predicted == targets)) * n_labels + targets
    counts = np.bincount(cells, minlength=len(units) * 2 * n_labels).reshape(len(units), 2, n_labels)
    # A draw of single rows draws from these counts, because the right, or wrong, rows of a label are interchangeable.
    kinds = counts.sum(axis=0).ravel()
    each = np.diag(np.ones(len(kinds), np.int64)).reshape(len(kinds), 2, n_labels)
    random = np.random.default_rng(seed)
    shares = np.full(len(units), 1 / len(units))
    by_unit = [_resample(random, len(units), shares, counts) for _ in range(n_resamples)]
    by_row = [_resample(random, len(targets), kinds / len(targets), each) for _ in range(n_resamples)]
    return {
        "level": 0.95,
        "unit": "speaker" if is_by_speaker else "speaker by emotion",
        "n_units": len(units),
        "n_resamples": n_resamples,
        **_percentiles(by_unit, len(units)),
        "recording_wise": _percentiles(by_row, len(targets)),
    }


def precision_at_priors(
    confusion: Sequence[Sequence[int]], labels: Sequence[str], priors: Mapping[str, float]
) -> dict[str, float | None]:
    """Return the precision by label that an archive with other shares of the emotions would see, by Bayes's rule.

    `confusion` has the rows by true label (down) and given label (across). `priors` says how common each label is, in any
    unit; a label that is not named does not occur. The precision is None if the label does not occur or would be given to
    no row. It raises UsageError if a label is unknown, a prior is negative or not finite, none is above 0, or a label that
    occurs has no rows.
    """
    if unknown := sorted(set(priors) - set(labels)):
        raise UsageError(f"priors: {unknown[0]!r} is not a label of the model; its labels are {', '.join(labels)}")
    for label, prior in priors.items():
        if not 0 <= prior < math.inf:
            raise UsageError(f"priors must be finite, and 0 or more: {prior!r} for {label!r}")
    shares = np.array([priors.get(label, 0.0) for label in labels])
    if not shares.any():
        raise UsageError("priors: all are 0; say how common each label is")
    counts = np.asarray(confusion, float)
    n_rows = counts.sum(axis=1)
    if len(lacking := np.flatnonzero((shares > 0) & (n_rows == 0))):
        raise UsageError(
            f"priors: no row has the reference label {labels[lacking[0]]!r}; leave it out, or judge on rows that have it"
        )
    joint = counts * (shares / shares.sum() / np.maximum(n_rows, 1))[:, np.newaxis]
    given = joint.sum(axis=0)
    is_defined = (shares > 0) & (given > 0)
    return _by_label(labels, np.where(is_defined, np.diag(joint) / np.where(is_defined, given, 1), np.nan))


def read_priors(text: str) -> dict[str, float]:
    """Return the class priors of ``angry=0.1,neutral=0.7``, or of ``@FILE`` with a JSON object.

    It raises UsageError if the text is neither, or a label comes twice.
    """
    try:
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as stream:
                pairs = json.load(stream, object_pairs_hook=list)
        else:
            pairs = [pair.rsplit("=", 1) for pair in text.split(",")]
        numbers = [(names.clean(label), float(number)) for label, number in pairs]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"priors must be LABEL=NUMBER,... or @FILE with a JSON object of numbers: {text!r}") from error
    priors = dict(numbers)
    if len(priors) < len(numbers):
        raise UsageError(f"priors: a label stands twice in {text!r}")
    return priors


def judge_shortcut(
    values: Floats, targets: Integers, labels: Sequence[str], speakers: npt.NDArray[np.object_], folds: Iterable[Fold]
) -> dict[str, Any]:
    """Return how well a plain value, e.g. duration alone, gives the labels: an artefact of the corpus, not emotion.

    It fits a logistic regression to standardised values, shape (n_rows,) or (n_rows, n_values), on each of the model's
    own folds, and returns the figures of `compute_metrics` over the judged rows of all folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = values.reshape(len(targets), -1).astype(np.float64)
    probabilities, judged = np.zeros((len(targets), len(labels))), [np.zeros(0, np.int64)]
    for fold in folds:
        regression = make_pipeline(StandardScaler(), LogisticRegression())
        regression.fit(columns[fold.learnt], targets[fold.learnt])
        probabilities[np.ix_(fold.judged, regression.classes_)] = regression.predict_proba(columns[fold.judged])
        judged.append(fold.judged)
    rows = np.concatenate(judged)
    if not len(rows):
        raise UsageError("shortcut: there is no fold to judge it on")
    return compute_metrics(targets[rows], probabilities[rows], labels, speakers=speakers[rows])


def _by_label(labels: Sequence[str], values: Floats) -> dict[str, float | None]:
    return {label: None if np.isnan(value) else float(value) for label, value in zip(labels, values, strict=True)}


def _bin(targets: Integers, probabilities: Floats, n_bins: int) -> tuple[Integers, Floats, Floats]:
    """Return rows, summed confidence and right rows of each bin of confidence, open below and closed above."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    bins = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    is_right = np.argmax(probabilities, axis=1) == targets
    sums = [np.asarray(np.bincount(bins, one, n_bins), np.float64) for one in (confidence, is_right)]
    return np.bincount(bins, minlength=n_bins), sums[0], sums[1]


def _resample(random: np.random.Generator, n_drawn: int, shares: Floats, counts: Integers) -> tuple[float, float]:
    """Return accuracy and UAR of one draw of units, as the weights of their counts, shape (n_units, 2, n_labels)."""
    wrong, right = np.tensordot(random.multinomial(n_drawn, shares), counts, axes=1)
    n_rows = wrong + right
    is_present = n_rows > 0
    return right.sum() / n_rows.sum(), np.mean(right[is_present] / n_rows[is_present])


def _percentiles(draws: Sequence[tuple[float, float]], n_units: int) -> dict[str, list[float] | None]:
    if n_units < 2:
        return {"accuracy": None, "uar": None}
    accuracy, uar = np.percentile(draws, (2.5, 97.5), axis=0).T.tolist()
    return {"accuracy": accuracy, "uar": uar}


@contextlib.contextmanager
def _drawing(width_inches: float, height_inches: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """Give a figure, and a stream that has it as a PNG after the block.

    matplotlib draws with its defaults, so that a ``matplotlibrc`` in the current directory or at home changes no picture.
    """
    matplotlib = load_matplotlib()
    # pyplot is not used, because it keeps every figure and picks a window system.
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure, sink = Figure(figsize=(width_inches, height_inches), layout="constrained"), io.BytesIO()
        yield figure, sink
        figure.savefig(sink, format="png", dpi=120, metadata={"Software": None})


def draw_training(history: Mapping[str, Sequence[float]]) -> bytes:
    """Draw loss and accuracy by epoch, for training and held-out rows, from Keras's ``history.history``."""
    with _drawing(9.0, 3.6) as (figure, sink):
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for series, words in ((name, "training"), (f"val_{name}", "held out")):
                if series in history:
                    axes.plot(range(1, len(history[series]) + 1), history[series], label=words)
            axes.set(xlabel="epoch", ylabel=name)
            axes.grid(alpha=0.3)
            axes.legend()
    return sink.getvalue()


def draw_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> bytes:
    """Draw a confusion matrix with its counts, true labels down."""
    side = 2.4 + 0.55 * len(labels)
    with _drawing(side + 0.6, side) as (figure, sink):
        axes = figure.subplots()
        totals = [max(1, sum(row)) for row in matrix]
        shares = [[count / total for count in row] for row, total in zip(matrix, totals, strict=True)]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, counts in enumerate(matrix):
            for column, count in enumerate(counts):
                colour = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="predicted", ylabel="true", title=title)
    return sink.getvalue()


def draw_reliability(raw: Mapping[str, Sequence[Any]], calibrated: Mapping[str, Sequence[Any]]) -> bytes:
    """Draw accuracy by confidence, before and after calibration, over the number of rows in each bin of `reliability`."""
    with _drawing(5.0, 5.6) as (figure, sink):
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="as sure as right")
        for number, (series, words) in enumerate(((raw, "raw"), (calibrated, "calibrated"))):
            points = [pair for pair in zip(series["confidence"], series["accuracy"], strict=True) if None not in pair]
            above.plot(*zip(*points, strict=True), marker="o", markersize=4, label=words)
            n_bins = len(series["n_rows"])
            places = [(bin_number + 0.25 + 0.5 * number) / n_bins for bin_number in range(n_bins)]
            below.bar(places, series["n_rows"], width=0.45 / n_bins)
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        below.set(xlabel="confidence", ylabel="rows")
        above.grid(alpha=0.3)
        below.grid(alpha=0.3)
        above.legend()
    return sink.getvalue()
