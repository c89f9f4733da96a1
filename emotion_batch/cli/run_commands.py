"""The commands that run over an archive: extract, label, retry, cancel and demo, and what they print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emotion_batch.cli.console import Said, format_counts, print_result
from emotion_batch.cli.option_values import read_feature_settings, read_scheduler, read_segments, read_storage_options
from emotion_batch.cli.results import Grid, Line, Result, Role, next_step
from emotion_batch.errors import UsageError, format_command

if TYPE_CHECKING:
    from emotion_batch.run.record import Summary
    from emotion_batch.run.run_options import RunOptions
    from emotion_batch.worker.single_recording import SegmentLabel


def run_extract(options: argparse.Namespace, said: Said) -> int:
    """Run `emotion-batch extract` and return its exit code."""
    from emotion_batch import api
    from emotion_batch.settings import FeatureSettings

    settings = read_feature_settings(options) or FeatureSettings()
    summary = api.extract(
        options.archive,
        options.table,
        settings=settings,
        segments=read_segments(options),
        **_listing_options(options),
        options=_run_options(options, said),
    )
    return finish(summary, options, said, format_command("train", options.table, "BUNDLE"))


def run_retry(options: argparse.Namespace, said: Said) -> int:
    """Run `emotion-batch retry` and return its exit code."""
    from emotion_batch import api

    summary = api.retry(options.table, status=options.status or (), options=_run_options(options, said))
    return finish(summary, options, said, format_command("status", options.table))


def run_cancel(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    """Run `emotion-batch cancel` and return its exit code."""
    from emotion_batch import api

    cancelled = api.cancel(options.table, storage_options=read_storage_options(options))
    result = json.dumps({"table": options.table, "cancelled": cancelled})
    print_result(result if options.json else format_cancellation(cancelled, options.table))
    return 0


def run_label(options: argparse.Namespace, said: Said) -> int:
    """Run `emotion-batch label` and return its exit code."""
    from emotion_batch import api
    from emotion_batch.storage import archive
    from emotion_batch.worker import single_recording

    if options.window is None and (options.offset is None) != (options.duration is None):
        raise UsageError("--offset, --duration: expected both to replace the model's segments, got one")
    if options.table is None:
        if options.leave:
            raise UsageError("TABLE: expected a folder to write, got none; a single recording is labelled here")
        if not archive.is_recording(options.source, read_storage_options(options)):
            raise UsageError(
                f"TABLE: expected a folder to write, got none; only a single recording is printed, and {options.source} is none"
            )
        found = single_recording.label_recording(
            options.source,
            model=options.model,
            segments=read_segments(options),
            storage_options=read_storage_options(options),
        )
        print_result(json.dumps([vars(one) for one in found]) if options.json else format_labels(found))
        return 0 if all(one.status == "ok" for one in found) else 1
    summary = api.label(
        options.source,
        options.table,
        model=options.model,
        segments=read_segments(options),
        keep_features=options.keep_features,
        **_listing_options(options),
        options=_run_options(options, said),
    )
    return finish(summary, options, said, format_command("query", options.table, options=("--example", "mix")))


def run_demo(options: argparse.Namespace, said: Said) -> int:
    """Run `emotion-batch demo` and return its exit code."""
    from emotion_batch.example.demo import demo

    demo(options.folder, n_words=options.words, workers=options.workers, watcher=said.watcher(), say=print_result)
    return 0


def finish(summary: Summary, options: argparse.Namespace, said: Said, next_command: str) -> int:
    """Print what a run left behind, and return the exit code."""
    said.end_line()
    if summary.is_all_failed:
        next_command = format_command("status", options.table)
    if options.json:
        print_result(json.dumps(summary.to_dict()))
    elif options.leave:
        print_result(format_submission(summary, options.table, options.scheduler))
    else:
        print_result(format_summary(summary, next_command))
    counts = summary.counts
    if summary.is_all_failed:
        reasons = "; ".join(
            f"{status}, as {file}: {reason}" for status, ((file, reason), *_) in summary.examples.items()
        )
        # What is listed as before is not looked at again by the same command, such as files whose rights were wrong.
        retried = (
            f", or `{format_command('retry', options.table)}` if its files are the same" if counts.n_mendable else ""
        )
        said.error(
            f"table {summary.table}: every recording failed ({reasons}); check the archive, then run the same command{retried}"
        )
        return 1
    if _exceeds(options.max_failed, summary):
        said.error(f"failed rows: expected at most {options.max_failed}, got {counts.n_failed} of {counts.n_rows}")
        return 1
    return 0


def _listing_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return which recordings of an archive are taken, as `api.extract` and `api.label` take it."""
    from emotion_batch.storage.archive import SUFFIXES

    names = ("include", "exclude", "limit", "prune")
    return {
        "suffixes": tuple(options.suffix) if options.suffix else SUFFIXES,
        **{name: getattr(options, name) for name in names},
    }


def _run_options(options: argparse.Namespace, said: Said) -> RunOptions:
    from emotion_batch.run.run_options import RunOptions

    return RunOptions(
        scheduler=read_scheduler(options),
        workers=options.workers,
        deadline_s=options.deadline,
        storage_options=read_storage_options(options),
        force=getattr(options, "force", False),
        leave=options.leave,
        watcher=said.watcher(),
    )


def _exceeds(limit: str | None, summary: Summary) -> bool:
    if limit is None:
        return False
    counts = summary.counts
    if limit.endswith("%"):
        return counts.n_failed > float(limit[:-1]) / 100 * counts.n_rows
    return counts.n_failed > int(limit)


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
    return Result(*blocks, next_step(next_words), format_counts(counts))


def _format_reasons(summary: Summary) -> list[Line]:
    """Return a recording and its reason for each way to fail that a run met."""
    return [
        Line(f"  {status}, as {file}: {reason}", Role.NOTE)
        for status, ((file, reason), *_) in sorted(summary.examples.items())
    ]


def format_submission(summary: Summary, table: str, scheduler: str) -> Result:
    """Return what became of a run that was to be left to a cluster."""
    if not summary.n_shards_left:
        done = format_summary(summary, format_command("status", table))
        return Result(f"run {summary.run}: nothing was left to hand over", *done.blocks)
    return Result(
        Line(
            f"{summary.table}: {summary.n_shards - summary.n_shards_left:,} of {summary.n_shards:,} parts are done, "
            f"{summary.n_shards_left:,} were handed to {scheduler}, which needs this machine no longer",
            Role.TITLE,
        ),
        *_format_reasons(summary),
        f"to stop it: {format_command('cancel', table)}",
        next_step(format_command("status", table)),
        f"run {summary.run}",
    )


def format_cancellation(runs: Sequence[str], table: str) -> Result:
    """Return which runs were cancelled."""
    lines = [f"run {run} begins no shard any more; what is under way is finished, and stays" for run in runs]
    return Result(*lines, next_step(format_command("status", table)))


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
