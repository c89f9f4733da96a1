"""Pictures as PNG: training curves, confusion matrices and reliability diagrams."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emotion_batch.libraries import load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def _plain_matplotlib() -> Iterator[None]:
    """Let matplotlib draw as it is installed: a ``matplotlibrc`` in the current directory or at home changes no picture."""
    matplotlib = load_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@_plain_matplotlib()
def draw_training(history: Mapping[str, Sequence[float]]) -> bytes:
    """Draw loss and accuracy by epoch, for training and held-out rows.

    Parameters
    ----------
    history
        What Keras's ``history.history`` holds.
    """
    figure = _figure(9.0, 3.6)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for series, words in ((name, "training"), (f"val_{name}", "held out")):
            if series in history:
                axes.plot(range(1, len(history[series]) + 1), history[series], label=words)
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


@_plain_matplotlib()
def draw_confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> bytes:
    """Draw a confusion matrix with its counts.

    Parameters
    ----------
    matrix
        Number of rows by true label (down) and predicted label (across), shape (n_labels, n_labels).
    labels
        Their words.
    title
        What was judged.
    """
    side = 2.4 + 0.55 * len(labels)
    figure = _figure(side + 0.6, side)
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
    return _png(figure)


@_plain_matplotlib()
def draw_reliability(raw: Mapping[str, Sequence[Any]], calibrated: Mapping[str, Sequence[Any]]) -> bytes:
    """Draw accuracy by confidence, as the network is and calibrated, over the number of rows in each bin.

    Parameters
    ----------
    raw, calibrated
        What `evaluation.reliability` gave, of equally many bins.
    """
    figure = _figure(5.0, 5.6)
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
    return _png(figure)


def _figure(width_inches: float, height_inches: float) -> Figure:
    # Not pyplot, which keeps every figure and picks a window system.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120, metadata={"Software": None})
    return sink.getvalue()
