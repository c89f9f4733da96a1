"""The commands report and review, and what they print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emotion_batch.cli.console import Said, print_result
from emotion_batch.cli.option_values import read_storage_options
from emotion_batch.cli.results import Grid, Line, Result, Role, next_step
from emotion_batch.errors import UsageError, format_command

if TYPE_CHECKING:
    from emotion_batch.analysis.report import Report
    from emotion_batch.analysis.review import Review, Sheet
    from emotion_batch.analysis.review_sample import Precision


def run_report(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    """Run `emotion-batch report` and return its exit code."""
    from emotion_batch.analysis.report import report

    made = report(
        options.table, output=options.output, seed=options.seed, storage_options=read_storage_options(options)
    )
    print_result(json.dumps(made.to_dict(), default=vars) if options.json else format_report(made, options.table))
    return 0


def run_review(options: argparse.Namespace, said: Said) -> int:
    """Run `emotion-batch review` and return its exit code."""
    from emotion_batch.analysis.review import review, take_review

    places = {"storage_options": read_storage_options(options), "force": options.force}
    if options.take:
        for name in ("size", "random", "seed"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name}: expected only where a sheet is written, got it with --take")
        taken = take_review(
            options.table, options.sheet, labels=options.labels, new_labels=options.new_label or (), **places
        )
        print_result(json.dumps(taken.to_dict()) if options.json else format_review(taken))
        return 0
    for name in ("labels", "new_label"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: expected --take with it, got none")
    written = review(
        options.table,
        options.sheet,
        size=100 if options.size is None else options.size,
        random=options.random,
        seed=options.seed or 0,
        on_rows=said.read,
        **places,
    )
    said.end_line()
    print_result(json.dumps(written.to_dict()) if options.json else format_sheet(written, options.table))
    return 0


def format_report(made: Report, table: str) -> Result:
    """Return where a report is, its headline, and what is remarkable."""
    from emotion_batch.analysis.findings import headline, remark
    from emotion_batch.tables.schema import LABELS

    is_labels = made.figures.info.kind == LABELS
    remarks = [Line(f"  {one.text}", Role.NOTE) for one in remark(made.figures) if one.kind != "fine"]
    return Result(
        Line(headline(made.figures), Role.TITLE),
        *remarks,
        next_step(format_command("review", table, "sheet.csv") if is_labels else format_command("status", table)),
        f"report: {made.output}",
    )


def format_sheet(written: Sheet, table: str) -> Result:
    """Return what is to be filled in."""
    lines: list[Line | Grid | str] = [
        Line(
            f"{written.sheet}: {written.n_rows:,} of {written.n_table:,} labels of {written.table}, "
            f"{written.n_random:,} of them drawn at random",
            Role.TITLE,
        ),
        f"  the recordings lie below {written.source}",
        (
            f"  fill in correct_emotion: {', '.join(written.labels)}, none where there is no emotion to hear, or ? where "
            "you cannot tell; and speaker, if you know it"
        ),
        "  rows may stay empty; whoever stops halfway has checked a sample all the same",
    ]
    if written.n_parts_missing:
        n_parts = written.n_parts_missing
        are = "part of the table is" if n_parts == 1 else "parts of the table are"
        lines.append(
            Line(f"  {n_parts:,} {are} missing, out of date or damaged: run the command that made it again", Role.NOTE)
        )
    return Result(*lines, next_step(format_command("review", table, written.sheet, options=("--take",))))


def format_review(found: Review) -> Result:
    """Return what a sheet said."""
    left_out = [
        f"  {n:,} {words}"
        for n, words in (
            (found.n_unanswered, "rows are not filled in"),
            (found.n_unsure, "rows are answered ?, which count as not filled in"),
            (found.n_none, "rows are answered none, which count as wrong, and are no labels"),
            (found.n_gone, "rows are about recordings that the table has no more"),
            (found.n_changed, "rows are about labels that the table has otherwise by now"),
            (found.n_missing, "rows are missing in the sheet"),
            (found.n_repeated, "rows are in it twice"),
        )
        if n
    ]
    things = "segments" if found.has_segments else "recordings"
    labels = f"{found.labels}: {found.n_labelled:,} labelled {things}, {found.n_corrected:,} of them corrected"
    labels_option = ("--labels", f"table:{found.labels}")
    train = format_command("train", found.features or "FEATURES", "BUNDLE", options=labels_option)
    return Result(
        Line(labels if found.labels else f"{found.sheet}: no row gives a label", Role.TITLE),
        *left_out,
        "",
        *_format_precision(found.precision),
        f"  ({found.method}; of the rows drawn at random alone)",
        next_step(train if found.labels else "fill in more of the sheet"),
    )


def _format_precision(found: Sequence[Precision]) -> list[Line | Grid]:
    rows = []
    for one in found:
        if not one.n_rows + one.n_unknown:
            continue
        share, bounds = "unknown", ""
        if one.share is not None:
            share, bounds = f"{one.share:.3f}", f"{one.low:.3f} to {one.high:.3f}"
        unseen = f"without {one.n_unknown:,} rows like none that was checked" if one.n_unknown and one.n_rows else ""
        rows.append((one.of, f"{one.n_rows + one.n_unknown:,}", f"{one.n_checked:,}", share, bounds, unseen))
    return [
        Grid("  {:<14} {:>12} {:>9} {:>9}  {:<14}  {}", rows, ("confidence", "labels", "checked", "right", "95 %", ""))
    ]
