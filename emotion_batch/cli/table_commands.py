"""The commands about a table: status, verify, query and export, and what they print."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from emotion_batch import errors
from emotion_batch.cli import console
from emotion_batch.cli.console import Grid, Line, Result, Said, format_counts, format_size, next_step, title, warn
from emotion_batch.cli.options import call, command
from emotion_batch.errors import Status, UsageError, counted, format_command, format_duration, format_time

if TYPE_CHECKING:
    from emotion_batch.analysis.export import Exported
    from emotion_batch.tables.status import TableStatus
    from emotion_batch.tables.verify import Verification

# What a person reads of an answer.
_MOST_ROWS = 1_000
_MOST_PROBLEMS = 20


@command("status")
def _run_status(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.tables.status import status

    found = call(status, options)
    said.answer(found.to_dict(), format_status(found, options.table))


@command("verify")
def _run_verify(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import api

    found = call(api.verify, options)
    said.answer(found.to_dict(), _format_verification(found, options.table))
    if not found.is_whole:
        said.error(f"table {found.table} is not complete: {counted(len(found.problems), 'problem')}")
    return int(not found.is_whole)


@command("query")
def _run_query(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.analysis import query
    from emotion_batch.storage.folder import explained, writing

    if options.example == "":
        examples = [
            (name, query.describe_example(name), textwrap.indent(query.write_example(name), "    "))
            for name in query.EXAMPLES
        ]
        console.print_result("\n\n".join(f"  {name:<10} {words}\n\n{sql}" for name, words, sql in examples))
        return
    if options.table is None:
        raise UsageError("TABLE is missing; --example alone lists the examples")
    file_format, places = _format(options), options.storage_options
    with call(query.asked, options, watcher=said.watcher()) as answer:
        if options.output is not None:
            with explained(f"output {options.output}"), writing(options.output, places) as stream:
                query.write(answer, file_format, stream)
        elif file_format == "table":
            rows, is_cut = query.first_rows(answer, _MOST_ROWS)
            console.print_result(_format_rows(answer.schema.names, rows, is_cut=is_cut))
        else:
            console.print_stream(lambda stream: query.write(answer, file_format, stream))


def _format(options: argparse.Namespace) -> str:
    """Return in which format the answer of a query is given."""
    stated = options.format or ("json" if options.json else None)
    if options.output is None:
        if stated == "parquet":
            raise UsageError("--format parquet requires --output FILE")
        return stated or "table"
    found = stated or options.output.rpartition(".")[2].lower()
    if found not in ("csv", "json", "parquet"):
        raise UsageError(
            f"--output must end in .csv, .json or .parquet, or --format must say the format: {options.output!r}"
        )
    return str(found)


def _format_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], *, is_cut: bool) -> Result:
    """Return the rows of an answer, a line each; `is_cut` if there are more."""
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    is_number = [{type(value) for value in column} <= {type(None), int, float} for column in columns]
    sides = "".join(">" if right else "<" for right in is_number)
    blocks: list[Line | Grid] = [Grid(sides, [[_cell(value) for value in row] for row in rows], names)]
    if is_cut:
        words = f"these are the first {counted(len(rows), 'row')}; --format csv prints all of them, --output writes them to a file"
        blocks.append(warn(words))
    return Result(*blocks)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@command("export")
def _run_export(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.analysis.export import export

    found = call(export, options, file_format=options.format, watcher=said.watcher())
    said.answer(found, _format_export(found))


def _format_export(found: Exported) -> Result:
    # The folder as an argument, which neither Python nor a glob of DuckDB's reads as anything else.
    folder = shlex.quote(errors.quote_argument(found.folder))
    next_command = {
        "parquet": f"python -c 'import sys, pandas; print(pandas.read_parquet(sys.argv[1]))' {folder}",
        "audformat": f"python -c 'import sys, audformat; print(audformat.Database.load(sys.argv[1]))' {folder}",
        "csv": f"head {folder if found.folder.endswith('.csv') else f'{folder}/*.csv'}",
    }.get(found.file_format, f"ls -R {folder}")
    return Result(
        next_step(next_command),
        title(
            f"{found.folder}: {counted(found.n_recordings, 'recording')}, {counted(found.n_rows, 'row')} "
            f"as {found.file_format}, {counted(found.n_files, 'file')}, {format_size(found.n_bytes)}"
        ),
    )


def format_status(found: TableStatus, table: str) -> Result:
    """Return how far a table is, and who is at work on it."""
    n_left = found.n_recordings - found.n_done
    blocks: list[Line | Grid | str] = [
        title(f"{found.table}: {found.kind} of {found.source}"),
        (
            f"  done  {found.n_done:>12,} of {counted(found.n_recordings, 'recording')}, "
            f"{found.n_shards_done:,} of {counted(found.n_shards, 'part')}"
        ),
        f"  left  {n_left:>12,}",
    ]
    if found.counts.by_status:
        rows = [(status, f"{n:,}", "row" if n == 1 else "rows") for status, n in found.counts.by_status.items()]
        blocks.append(Grid("<><", rows))
    for holder in found.at_work:
        where = f"on {holder.host}, process {holder.pid}"
        if holder.scheduler is not None:
            where = f"at {holder.scheduler}, submitted on {holder.host}"
        is_cancelled = holder.run in found.cancelled
        doing = "was cancelled, and finishes the shards that it has begun" if is_cancelled else "is at work"
        blocks.append(f"run {holder.run} {doing}, {where}, for {format_duration(holder.lasted_s)}")
    if found.rate:
        blocks.append(f"  {found.rate:,.0f} recordings a second, {format_duration(n_left / found.rate)} left")
    for holder in found.lost:
        heard = format_time(datetime.fromtimestamp(holder.renewed_s, UTC))
        blocks.append(
            warn(f"run {holder.run} on {holder.host} stopped without a record; its last heartbeat was at {heard}")
        )
    last = found.last_run
    if last is not None:
        rate = f", {last['n_decoded'] / last['elapsed_s']:,.0f} recordings a second" if last.get("n_decoded") else ""
        reason = f": {last['error']}" if last.get("error") else ""
        ended = format_time(datetime.fromisoformat(last["ended"])) if "ended" in last else "unknown"
        blocks.append(f"last run {last['run']}: {last['outcome']}, ended {ended}{rate}{reason}")
    if found.at_work:
        blocks.append(f"to stop it: {format_command('cancel', table)}")
        words = format_command("status", table)
    elif n_left or not found.n_shards:
        words = format_command("resume", table)
    elif found.counts.by_status.get(Status.CHANGED):
        # Labels of a feature table are made anew after that table is.
        words = format_command("resume", found.features or table)
    elif found.counts.n_mendable:
        words = format_command("retry", found.features or table)
    else:
        words = format_command("verify", table)
    return Result(*blocks, next_step(words))


def _format_verification(found: Verification, table: str) -> Result:
    """Return whether a table is whole, with what is wrong, the first of it."""
    lines = [warn(f"  {problem}") for problem in found.problems[:_MOST_PROBLEMS]]
    if len(found.problems) > _MOST_PROBLEMS:
        lines.append(Line(f"  and {len(found.problems) - _MOST_PROBLEMS:,} more; all of them with --json"))
    word = "complete" if found.is_whole else "not complete"
    how = "every row was read" if found.is_deep else "according to the footers of its parts"
    if not found.is_whole:
        is_strange = len(found.problems) == len(found.strangers)
        words = (
            f"move {', '.join(found.strangers[:_MOST_PROBLEMS])} away"
            if is_strange
            else format_command("resume", table)
        )
    elif found.counts.by_label:
        words = format_command("review", table, "SHEET.csv")
    elif found.counts.n_mendable:
        words = format_command("retry", found.features or table)
    else:
        words = format_command("train", table, "BUNDLE")
    return Result(
        *lines,
        title(
            f"{found.table}: {word}, {how}; {counted(found.n_recordings, 'recording')} in {counted(found.n_shards, 'part')}"
        ),
        next_step(words),
        format_counts(found.counts),
    )
