"""Draw the charts of the report as SVG. They hold no text and take the width that there is; their words stand in the page."""

from __future__ import annotations

from collections.abc import Sequence

from emotion_batch.analysis.page.markup import Html, join, tag
from emotion_batch.analysis.statistics import show_share

# Colours of labels, as the style sheet has them; of more labels some look alike.
N_COLOURS = 10


def colour(number: int) -> str:
    """Return the class of a label's colour."""
    return f"l{number % N_COLOURS}"


def legend(labels: Sequence[str], classes: Sequence[str] | None = None) -> Html:
    """Return what says which colour is which."""
    items = []
    for number, label in enumerate(labels):
        swatch = tag("rect", width="100%", height="100%", rx=2, class_=classes[number] if classes else colour(number))
        items.append(tag("li", tag("svg", swatch, class_="swatch", aria_hidden="true"), label))
    return tag("ul", *items, class_="legend")


def draw_share(value: float, low: float | None = None, high: float | None = None, class_: str = "bar") -> Html:
    """Return a bar for a share of 0 to 1 with its interval, beside which the numbers stand."""
    marks = [tag("rect", width="100%", height="100%", rx=2, class_="track")]
    marks.append(tag("rect", width=_percent(value), height="100%", rx=2, class_=class_))
    if low is not None and high is not None:
        for kind in ("halo", "whisker"):
            marks.append(tag("line", x1=_percent(low), x2=_percent(high), y1="50%", y2="50%", class_=kind))
    return tag("svg", *marks, class_="line", aria_hidden="true")


def draw_parts(counts: Sequence[int], labels: Sequence[str], classes: Sequence[str] | None = None) -> Html:
    """Return one bar of several parts; what they are stands in its text alternative."""
    total = sum(counts)
    marks, at = [], 0.0
    for number, n in enumerate(counts):
        width = n / total if total else 0.0
        if width:
            class_ = classes[number] if classes else colour(number)
            marks.append(tag("rect", x=_percent(at), width=_percent(width), height="100%", class_=class_))
        at += width
    words = ", ".join(f"{label} {show_share(n, total)}" for label, n in zip(labels, counts, strict=True) if n)
    return tag("svg", *marks, class_="line", role="img", aria_label=words or "nothing")


def draw_columns(columns: Sequence[Sequence[int]], title: str, description: str) -> Html:
    """Return columns of equal height, each divided as its counts are, side by side without a gap."""
    paths: dict[int, list[str]] = {}
    for at, counts in enumerate(columns):
        total, top = sum(counts), 100.0
        for number, n in enumerate(counts):
            height = 100 * n / total if total else 0.0
            if height:
                paths.setdefault(number, []).append(f"M{at} {top:.2f}h1v{-height:.2f}h-1z")
                top -= height
    marks = [tag("path", d="".join(path), class_=colour(number)) for number, path in sorted(paths.items())]
    return _picture(title, description, marks, max(1, len(columns)))


def draw_heights(values: Sequence[float], title: str, description: str) -> Html:
    """Return one column a value, the largest as high as the picture."""
    highest = max(values, default=0) or 1
    path = "".join(f"M{at} 100h1v{-100 * value / highest:.2f}h-1z" for at, value in enumerate(values) if value)
    return _picture(title, description, [tag("path", d=path, class_="bar")], max(1, len(values)), "low")


def draw_histogram(below: Sequence[int], above: Sequence[int], at: float | None, title: str, description: str) -> Html:
    """Return a histogram of two kinds of rows, one upon the other, with a line at a value of 0 to 1."""
    n_bins = len(below)
    highest = max((low + high for low, high in zip(below, above, strict=True)), default=0) or 1
    marks = []
    for number in range(1, 4):
        marks.append(tag("line", x1=0, x2=n_bins, y1=25 * number, y2=25 * number, class_="grid"))
    for heights, floors, class_ in ((below, [0] * n_bins, "other"), (above, below, "bar")):
        path = "".join(
            f"M{number + 0.06:.2f} {100 - 100 * floor / highest:.2f}h0.88v{-100 * n / highest:.2f}h-0.88z"
            for number, (n, floor) in enumerate(zip(heights, floors, strict=True))
            if n
        )
        marks.append(tag("path", d=path, class_=class_))
    if at is not None:
        marks.append(tag("line", x1=round(at * n_bins, 2), x2=round(at * n_bins, 2), y1=0, y2=100, class_="mark"))
    return _picture(title, description, marks, n_bins)


def _picture(title: str, description: str, marks: Sequence[Html], width: int, class_: str = "") -> Html:
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        join(marks),
        viewBox=f"0 0 {width} 100",
        preserveAspectRatio="none",
        class_=f"chart {class_}".strip(),
        role="img",
        aria_label=f"{title}. {description}",
    )


def _percent(value: float) -> str:
    return f"{100 * min(1.0, max(0.0, value)):.2f}%"
