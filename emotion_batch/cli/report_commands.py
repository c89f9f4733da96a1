"""The commands report and review, and what they print."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from emotion_batch.cli.console import Grid, Line, Result, Said, next_step, title, warn
from emotion_batch.cli.options import call, command
from emotion_batch.errors import UsageError, counted, format_command

if TYPE_CHECKING:
    from emotion_batch.analysis.report import Report
    from emotion_batch.analysis.review import Review, Sheet
    from emotion_batch.analysis.review_sample import Precision

_PRECISION = ("confidence", "labels", "checked", "right", "95 %", "")


@command("report")
def _run_report(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.analysis.report import report

    made = call(report, options)
    said.answer(made.to_dict(), _format_report(made, options.table))


@command("review")
def _run_review(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.analysis.review import review, take_review

    for name in ("size", "random", "seed") if options.take else ("labels", "new_label"):
        if getattr(options, name) is not None:
            wrong = "cannot be combined with" if options.take else "requires"
            raise UsageError(f"--{name.replace('_', '-')} {wrong} --take")
    if options.take:
        taken = call(take_review, options, new_labels=options.new_label or ())
        said.answer(taken, format_review(taken))
        return
    written = call(review, options, on_rows=said.read)
    said.answer(written, format_sheet(written, options.table))


def _format_report(made: Report, table: str) -> Result:
    from emotion_batch.analysis import findings
    from emotion_batch.tables.schema import LABELS

    is_labels = made.figures.info.kind == LABELS
    remarks = [warn(f"  {one.text}") for one in findings.remark(made.figures) if one.kind != "fine"]
    return Result(
        title(findings.headline(made.figures)),
        *remarks,
        next_step(format_command("review", table, "sheet.csv") if is_labels else format_command("status", table)),
        f"report: {made.output}",
    )


def format_sheet(written: Sheet, table: str) -> Result:
    """Return what is to be filled in."""
    is_page = written.sheet.lower().endswith((".html", ".htm"))
    sheet = f"{written.sheet.rpartition('.')[0]}.csv" if is_page else written.sheet
    how = (
        f"open the page in a browser, press the key of what you hear, and save the sheet as {sheet}"
        if is_page
        else f"fill in correct_emotion: {', '.join(written.labels)}, none where there is no emotion to hear, or ? where "
        "you cannot tell; and speaker, if you know it"
    )
    lines: list[Line | Grid | str] = [
        title(
            f"{written.sheet}: {written.n_rows:,} of {counted(written.n_table, 'label')} of {written.table}, "
            f"{written.n_random:,} of them drawn at random"
        ),
        f"  the recordings lie below {written.source}",
        f"  {how}",
        "  rows may stay empty; if you stop halfway, you have still checked a random sample",
    ]
    if written.n_parts_missing:
        missing = counted(written.n_parts_missing, "part")
        lines.append(warn(f"  missing, out of date or damaged: {missing} of the table; `resume` makes them again"))
    return Result(*lines, next_step(format_command("review", table, sheet, options=("--take",))))


def format_review(found: Review) -> Result:
    """Return what a sheet said."""
    left_out = [
        f"  {n:,} {words}"
        for n, words in (
            (found.n_unanswered, "rows are not filled in"),
            (found.n_unsure, "rows are answered ?, and count as not filled in"),
            (found.n_none, "rows are answered none, and count as wrong, without a label"),
            (found.n_gone, "rows are about recordings that the table no longer has"),
            (found.n_changed, "rows are about labels that have changed in the table"),
            (found.n_missing, "rows are missing from the sheet"),
            (found.n_repeated, "rows are in the sheet twice"),
        )
        if n
    ]
    things = counted(found.n_labelled, "labelled segment" if found.has_segments else "labelled recording")
    labels = f"{found.labels}: {things}, {found.n_corrected:,} of them corrected"
    labels_option = ("--labels", f"table:{found.labels}")
    train = format_command("train", found.features or "FEATURES", "BUNDLE", options=labels_option)
    rows = [
        (one.label, f"{one.given:.3f}", f"{one.share:.3f}", f"{one.low:.3f} to {one.high:.3f}") for one in found.shares
    ]
    return Result(
        title(labels if found.labels else f"{found.sheet}: no row gives a label"),
        *left_out,
        "",
        Grid("<>>><<", [_precision_row(one) for one in found.precision if one.n_rows + one.n_unknown], _PRECISION),
        *(("", Grid("<>><", rows, ("share of labels", "given", "by ear", "95 %"))) if rows else ()),
        f"  ({found.method}; of the rows drawn at random alone)",
        next_step(train if found.labels else "fill in more of the sheet"),
    )


def _precision_row(one: Precision) -> tuple[str, ...]:
    share, bounds = "unknown", ""
    if one.share is not None:
        share, bounds = f"{one.share:.3f}", f"{one.low:.3f} to {one.high:.3f}"
    unseen = f"without {one.n_unknown:,} rows like none that was checked" if one.n_unknown and one.n_rows else ""
    return one.of, f"{one.n_rows + one.n_unknown:,}", f"{one.n_checked:,}", share, bounds, unseen
