"""What runs, tables, labels and reviews look like to a person, each with what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from emotion_batch.cli.results import Grid, Line, Result, Role, command, duration, next_step
from emotion_batch.errors import Status

if TYPE_CHECKING:
    from emotion_batch.analysis.precision import Precision
    from emotion_batch.analysis.report import Report
    from emotion_batch.analysis.review import Review, Sheet
    from emotion_batch.run.summary import Summary
    from emotion_batch.tables.parts import Counts
    from emotion_batch.tables.status import TableStatus, Verification
    from emotion_batch.worker.single_recording import SegmentLabel

_MOST_PROBLEMS = 20
_AGAIN = "the command that made the table, again; it does what is left"


def format_summary(summary: Summary, next_words: str) -> Result:
    """Return what a run left behind, with the command that comes next."""
    counts = summary.counts
    blocks: list[Line | Grid | str] = [
        Line(
            f"{summary.table}: {summary.n_shards} parts, {summary.n_shards_done} of them made now "
            f"in {summary.elapsed_s:.1f} s",
            Role.TITLE,
        )
    ]
    blocks += _format_reasons(summary)
    if counts.by_label:
        shares = [(emotion, f"{n:,}", f"{n / counts.n_ok:.1%}") for emotion, n in counts.by_label.items()]
        blocks.append(Grid("  {:<12} {:>10}  {:>6}", shares))
    spent = summary.spent
    if spent.n_isolated:
        blocks.append(
            f"{spent.n_isolated} shards were done in a child process, which a recording may kill; "
            f"{spent.lost_s:.0f} s of work were lost with workers and children"
        )
    if summary.n_resubmitted or spent.n_retries:
        blocks.append(
            f"{spent.n_retries} requests to storage were repeated, {summary.n_resubmitted} shards handed out again"
        )
    return Result(*blocks, next_step(next_words), _format_counts(counts))


def _format_reasons(summary: Summary) -> list[Line]:
    """Return a recording and its reason for each way to fail that a run met."""
    return [
        Line(f"  {status}, as {file}: {reason}", Role.NOTE)
        for status, ((file, reason), *_) in sorted(summary.examples.items())
    ]


def format_submission(summary: Summary, table: str, scheduler: str) -> Result:
    """Return what became of a run that was to be left to a cluster."""
    if not summary.n_shards_left:
        done = format_summary(summary, command("status", table))
        return Result(f"run {summary.run}: nothing was left to hand over", *done.blocks)
    return Result(
        Line(
            f"{summary.table}: {summary.n_shards - summary.n_shards_left:,} of {summary.n_shards:,} parts are done, "
            f"{summary.n_shards_left:,} were handed to {scheduler}, which needs this machine no longer",
            Role.TITLE,
        ),
        *_format_reasons(summary),
        f"to stop it: {command('cancel', table)}",
        next_step(command("status", table)),
        f"run {summary.run}",
    )


def format_cancellation(runs: Sequence[str], table: str) -> Result:
    """Return which runs were cancelled."""
    lines = [f"run {run} begins no shard any more; what is under way is finished, and stays" for run in runs]
    return Result(*lines, next_step(command("status", table)))


def _format_counts(counts: Counts) -> Line:
    reasons = ", ".join(f"{status} {n:,}" for status, n in counts.by_status.items() if status != "ok")
    failed = f"{counts.n_failed:,} failed" + (f" ({reasons})" if reasons else "")
    return Line(
        f"{counts.n_recordings:,} recordings, {counts.n_rows:,} rows: {counts.n_ok:,} ok, {failed}", Role.COUNTS
    )


def format_report(made: Report, table: str) -> Result:
    """Return where a report is, its headline, and what is remarkable."""
    from emotion_batch.analysis.findings import headline, remark
    from emotion_batch.tables.parts import LABELS

    is_labels = made.figures.info.kind == LABELS
    remarks = [Line(f"  {one.text}", Role.NOTE) for one in remark(made.figures) if one.kind != "fine"]
    return Result(
        Line(headline(made.figures), Role.TITLE),
        *remarks,
        next_step(command("review", table, "sheet.csv") if is_labels else command("status", table)),
        f"report: {made.output}",
    )


def format_status(found: TableStatus, table: str) -> Result:
    """Return how far a table is, and who is at work on it."""
    n_left = found.n_recordings - found.n_done
    blocks: list[Line | Grid | str] = [
        Line(f"{found.table}: {found.kind} of {found.source}", Role.TITLE),
        (
            f"  done  {found.n_done:>12,} of {found.n_recordings:,} recordings, "
            f"{found.n_shards_done:,} of {found.n_shards:,} parts"
        ),
        f"  left  {n_left:>12,}",
    ]
    if found.counts.by_status:
        rows = [(status, f"{n:,}", "rows") for status, n in found.counts.by_status.items()]
        blocks.append(Grid("  {:<12} {:>10} {}", rows))
    for holder in found.at_work:
        where = f"on {holder.host}, process {holder.pid}"
        if holder.scheduler is not None:
            where = f"at {holder.scheduler}, submitted on {holder.host}"
        is_cancelled = holder.run in found.cancelled
        doing = "is cancelled and ends what it has begun" if is_cancelled else "is at work"
        blocks.append(f"run {holder.run} {doing}, {where}, for {duration(holder.lasted_s)}")
    if found.rate:
        blocks.append(f"  {found.rate:,.0f} recordings a second, {duration(n_left / found.rate)} left")
    for holder in found.lost:
        heard = datetime.fromtimestamp(holder.renewed_s, UTC).isoformat(timespec="seconds")
        said = f"run {holder.run} died, on {holder.host}; last heard of at {heard} by its own clock"
        blocks.append(Line(said, Role.NOTE))
    last = found.last_run
    if last is not None:
        rate = f", {last['n_decoded'] / last['elapsed_s']:,.0f} recordings a second" if last.get("n_decoded") else ""
        reason = f": {last['error']}" if last.get("error") else ""
        blocks.append(f"last run {last['run']}: {last['outcome']}, ended {last.get('ended', 'unknown')}{rate}{reason}")
    if found.at_work:
        blocks.append(f"to stop it: {command('cancel', table)}")
        words = command("status", table)
    elif n_left or not found.n_shards:
        words = _AGAIN
    elif found.counts.by_status.get(Status.CHANGED):
        words = (
            _AGAIN if found.features is None else f"the command that made {found.features}, again, and then this one's"
        )
    elif found.counts.n_mendable:
        words = command("retry", found.features or table)
    else:
        words = command("verify", table)
    return Result(*blocks, next_step(words))


def format_verification(found: Verification, table: str) -> Result:
    """Return whether a table is whole, with what is wrong, the first of it."""
    lines = [Line(f"  {problem}", Role.NOTE) for problem in found.problems[:_MOST_PROBLEMS]]
    if len(found.problems) > _MOST_PROBLEMS:
        lines.append(Line(f"  and {len(found.problems) - _MOST_PROBLEMS:,} more; all of them with --json"))
    word = "whole" if found.is_whole else "not whole"
    how = "every row was read" if found.is_deep else "by what its parts say of themselves"
    if not found.is_whole:
        is_strange = len(found.problems) == len(found.strangers)
        words = f"move {', '.join(found.strangers[:_MOST_PROBLEMS])} away" if is_strange else _AGAIN
    elif found.counts.by_label:
        words = command("review", table, "SHEET.csv")
    elif found.counts.n_mendable:
        words = command("retry", found.features or table)
    else:
        words = command("train", table, "BUNDLE")
    return Result(
        *lines,
        Line(
            f"{found.table}: {word}, {how}; {found.n_recordings:,} recordings in {found.n_shards:,} parts", Role.TITLE
        ),
        next_step(words),
        _format_counts(found.counts),
    )


def format_labels(found: Sequence[SegmentLabel]) -> Result:
    """Return one label with all its probabilities, or a line for each of several."""
    name = found[0].file
    if len(found) > 1:
        rows = [(f"{one.start_s:.3f}", *_format_segment(one)) for one in found]
        return Result(Line(name, Role.TITLE), Grid("  {:>10} {:>10}  {:<12} {}  {}", rows))
    (one,) = found
    if one.status != "ok":
        return Result(f"{name}  {one.status}: {one.error}")
    width = max(len(word) for word in one.probabilities)
    ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])
    return Result(
        Line(f"{name}  {one.emotion}  {one.confidence:.3f}  {_doubts(one)}".rstrip(), Role.TITLE),
        "",
        Grid(f"  {{:<{width}}}  {{:>}}", [(word, f"{value:.6f}") for word, value in ranked]),
    )


def _format_segment(one: SegmentLabel) -> tuple[str, str, str, str]:
    if one.status != "ok":
        return "", f"{one.status}: {one.error}", "", ""
    return f"{one.end_s:.3f}", str(one.emotion), f"{one.confidence:.3f}", _doubts(one)


def _doubts(one: SegmentLabel) -> str:
    """Return why a label is not to be believed, as far as the model knows."""
    words = ["no speech"] if one.is_speech is False else []
    if one.is_in_domain is False:
        words.append("unlike what the model was trained on")
    if not words and not one.is_confident:
        words.append("not confident")
    return ", ".join(words)


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
    return Result(*lines, next_step(command("review", table, written.sheet, options=("--take",))))


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
    train = command("train", found.features or "FEATURES", "BUNDLE", options=labels_option)
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
