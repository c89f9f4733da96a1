"""Render the sections about labels: their shares, how sure they are, by folder, and over time."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from emotion_batch.analysis.page import charts
from emotion_batch.analysis.page.markup import Html, join, name, table, tag
from emotion_batch.analysis.statistics import (
    Figures,
    FolderFigures,
    show_count,
    show_duration,
    show_roughly,
    show_share,
)


def _unit(figures: Figures) -> str:
    return "recordings" if figures.info.segments.hop_s is None else "windows"


def show_labels(figures: Figures) -> Html:
    """Return each label with its share, interval and trust."""
    n_ok = figures.coverage.n_ok
    rows = [
        (
            one.label,
            charts.draw_share(one.share, one.low, one.high),
            show_share(one.share),
            f"{show_share(one.low)} to {show_share(one.high)}",
            show_count(one.n_rows),
            "–" if one.confidence is None else f"{one.confidence:.2f}",
            show_share(one.n_confident, one.n_rows),
            "–" if figures.n_outside is None else show_share(one.n_outside, one.n_rows),
            "–" if figures.n_silent is None else show_share(one.n_silent, one.n_rows),
        )
        for one in sorted(figures.labels, key=lambda one: -one.n_rows)
    ]
    head = (
        *("label", "", "share", "95% interval", _unit(figures), "mean confidence"),
        *("confident", "out of domain", "not speech"),
    )
    if figures.n_clusters is not None:
        basis = (
            f"The intervals are Wilson's, of as many independent {_unit(figures)} as these are worth: recordings of one folder "
            f"are not independent of each other, so their number was estimated over the {show_count(figures.n_clusters)} folders."
        )
    else:
        window = "" if figures.info.segments.hop_s is None else " Windows of one recording count as one there."
        basis = (
            "The intervals are Wilson's over recordings, as if these were independent of each other. Those in one folder, of one "
            f"speaker or one day, are not, and there are too few folders to estimate how much: the true intervals are wider.{window}"
        )
    caption = f"Labels of {show_count(n_ok)} {_unit(figures)}, the most frequent first"
    return join(
        [
            table(caption, head, rows, numbers=(2, 3, 4, 5, 6, 7, 8), wide=1),
            tag(
                "p",
                f"{basis} They say how the shares would differ in other recordings of the same kind; that the model errs is not in them.",
                class_="note",
            ),
        ]
    )


def show_confidence(figures: Figures) -> Html:
    """Return the histogram of confidence, what the card promises of it, and its calibration."""
    n_ok, promise = figures.coverage.n_ok, None if figures.portrait is None else figures.portrait.promise
    threshold = None if promise is None else promise.threshold
    description = (
        f"{show_count(figures.n_confident)} of {show_count(n_ok)} {_unit(figures)} are confident. Number of {_unit(figures)} by confidence, "
        + ("no threshold." if threshold is None else f"threshold at {threshold:.2f}.")
    )
    picture = charts.draw_histogram(
        figures.other_bins,
        figures.confident_bins,
        threshold,
        f"{_unit(figures).capitalize()} by confidence",
        description,
    )
    ticks = tag("div", *(tag("span", tick) for tick in ("0", "0.25", "0.5", "0.75", "1")), class_="ticks")
    classes = ("bar", "other")
    highest = max(map(sum, zip(figures.confident_bins, figures.other_bins, strict=True)))
    drawn = tag(
        "figure",
        charts.legend(("confident", "not confident, out of domain or not speech"), classes),
        tag("p", f"{show_count(highest)} {_unit(figures)}", class_="top"),
        picture,
        ticks,
        tag(
            "figcaption",
            f"{_unit(figures).capitalize()} by confidence, the probability of their label. ",
            *_threshold(threshold),
        ),
    )
    n_bins = len(figures.other_bins)
    numbers = [
        (f"{number / n_bins:.2f} to {(number + 1) / n_bins:.2f}", show_count(above), show_count(below))
        for number, (above, below) in enumerate(zip(figures.confident_bins, figures.other_bins, strict=True))
    ]
    head = ("confidence", "confident", "others")
    return join(
        [
            drawn,
            tag("details", tag("summary", "The same as numbers"), table("Confidence", head, numbers, numbers=(1, 2))),
            *_promise(figures),
            *_calibration(figures),
        ]
    )


def _threshold(threshold: float | None) -> list[str]:
    if threshold is None:
        return []
    return [f"The line at {threshold:.2f} is where the model's card begins to call a label confident."]


def _promise(figures: Figures) -> Iterator[Html]:
    promise = None if figures.portrait is None else figures.portrait.promise
    if promise is None:
        return
    got = (
        "no label reached it"
        if promise.got is None
        else f"{show_roughly(promise.got)} of those it let through were right"
    )
    speakers = "an unknown number of" if promise.n_speakers is None else show_count(promise.n_speakers)
    ending = "" if promise.is_guaranteed else " So few speakers guarantee nothing for others."
    yield tag(
        "p",
        tag("strong", f"Confident promises that {show_roughly(promise.promised)} of the labels are right. "),
        f"On {speakers} speakers that the threshold was not chosen on, {got}, which was {show_roughly(promise.coverage)} of all. "
        f"Here it lets through {show_roughly(figures.n_confident, figures.coverage.n_ok)}.{ending}",
    )


def _calibration(figures: Figures) -> Iterator[Html]:
    portrait = figures.portrait
    if portrait is None:
        yield tag("p", "Whether it is calibrated cannot be told: the model's card is not in the table.", class_="note")
        return
    if not portrait.calibration:
        yield tag(
            "p",
            "Confidence is not calibrated: the model's card knows of no speakers held out. Read it as an order, not as a share "
            "that is right.",
            class_="note",
        )
        return
    highest = max(max(one.raw, one.after) for one in portrait.calibration) or 1.0
    rows = [
        (
            name(one.name),
            charts.draw_share(one.raw / highest, class_="other"),
            f"{one.raw:.3f}",
            charts.draw_share(one.after / highest),
            f"{one.after:.3f}",
            show_count(one.n_rows),
        )
        for one in portrait.calibration[:12]
    ]
    caption = "Calibration error (ECE) on speakers held out, from the model's card"
    yield table(caption, ("speakers", "", "as the network is", "", "calibrated", "segments"), rows, numbers=(2, 4, 5))
    if portrait.reliability is not None:
        yield tag(
            "figure",
            tag(
                "img",
                class_="plate",
                src=f"data:image/png;base64,{base64.b64encode(portrait.reliability).decode()}",
                alt="Share of right labels by confidence, before and after calibration, on speakers held out.",
            ),
            tag("figcaption", "Confidence and the share of labels that were right, drawn when the model was trained."),
        )
    yield tag(
        "p",
        "The expected calibration error is how far confidence and the share of right labels lie apart on average; each speaker "
        f"was calibrated on the others. The temperature is {portrait.temperature:.2f}. This is of the model's own recordings: "
        "on this archive nobody knows what is right until somebody listens.",
        class_="note",
    )


def show_folders(figures: Figures) -> Html:
    """Return the folders with their labels, failures and rows out of domain."""
    is_labelled = bool(figures.labels)
    parts: list[Html | None] = []
    if is_labelled:
        parts.append(charts.legend(figures.info.labels))
    if is_labelled and len(figures.columns) > len(figures.folders):
        parts.append(
            tag(
                "figure",
                charts.draw_columns(
                    [one.by_label for one in figures.columns],
                    "Label mix by folder",
                    f"{show_count(len(figures.columns))} folders by name, each a column divided as its labels are.",
                ),
                tag("div", _folder_name(figures.columns[0]), _folder_name(figures.columns[-1]), class_="ticks"),
                tag("figcaption", f"All {show_count(len(figures.columns))} folders by name, each a column."),
            )
        )
    caption = f"{show_count(len(figures.folders))} folders"
    if figures.n_folders > len(figures.folders):
        caption = f"The {show_count(len(figures.folders))} of {show_count(figures.n_folders)} folders that differ most from the whole"
    head = ["folder", *(["labels"] if is_labelled else []), "rows", "failed"]
    head += ["out of domain"] if is_labelled and figures.n_outside is not None else []
    rows = [_folder(one, figures) for one in figures.folders]
    last = len(head)
    parts.append(
        table(caption, head, rows, numbers=range(2 if is_labelled else 1, last), wide=1 if is_labelled else None)
    )
    if is_labelled:
        numbers = [
            (_folder_name(one), *(show_share(n, sum(one.by_label)) for n in one.by_label)) for one in figures.folders
        ]
        inner = table(
            "Label mix by folder", ("folder", *figures.info.labels), numbers, numbers=range(1, 1 + len(figures.labels))
        )
        parts.append(tag("details", tag("summary", "The same as numbers"), inner))
    if figures.n_folders > len(figures.folders):
        parts.append(
            tag(
                "p",
                "By the chi-square of their labels and failures: large folders that differ a little come before small ones that "
                "differ much.",
                class_="note",
            )
        )
    return join(parts)


def _folder_name(one: FolderFigures) -> Html:
    return name(one.name or "(top)")


def _folder(one: FolderFigures, figures: Figures) -> list[str]:
    cells: list[str] = [_folder_name(one)]
    if figures.labels:
        cells.append(charts.draw_parts(one.by_label, figures.info.labels))
    cells += [show_count(one.n_rows), show_share(one.n_failed, one.n_rows)]
    if figures.labels and figures.n_outside is not None:
        cells.append(show_share(one.n_outside, one.n_rows - one.n_failed))
    return cells


def show_moments(figures: Figures) -> Html:
    """Return the labels over time within recordings."""
    moments = figures.moments
    last = show_duration(moments[-1].stop_s)
    sizes = [sum(one.by_label) for one in moments]
    mix = charts.draw_columns(
        [one.by_label for one in moments],
        "Label mix over time",
        f"Labels of the windows from the start of the recordings to {last}, each column divided as its labels are.",
    )
    heights = charts.draw_heights(
        sizes, "Windows over time", f"From {show_count(sizes[0])} at the start to {show_count(sizes[-1])} at the end."
    )
    numbers = [
        (
            f"{show_duration(one.start_s)} to {show_duration(one.stop_s)}",
            *map(show_count, one.by_label),
            show_count(sum(one.by_label)),
        )
        for one in moments
    ]
    head = ("from the start", *figures.info.labels, "all")
    return join(
        [
            charts.legend(figures.info.labels),
            tag(
                "figure",
                mix,
                heights,
                tag("div", tag("span", "start"), tag("span", last), class_="ticks"),
                tag(
                    "figcaption",
                    "Above, the labels by the time at which their window starts; below, how many windows these are. Later columns "
                    "are of the longer recordings alone.",
                ),
            ),
            tag(
                "details",
                tag("summary", "The same as numbers"),
                table("Labels over time", head, numbers, numbers=range(1, len(head))),
            ),
        ]
    )
