"""The commands that run over an archive: extract, label, resume, retry, cancel and demo, and what they print."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emotion_batch.cli.console import Grid, Line, Result, Said, format_counts, next_step, print_result, title, warn
from emotion_batch.cli.options import call, command, make_parsers
from emotion_batch.errors import UsageError, counted, format_command, format_duration

if TYPE_CHECKING:
    from emotion_batch.run.record import Summary
    from emotion_batch.tables.parts import Counts
    from emotion_batch.worker.single_recording import SegmentLabel


def _run(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import api
    from emotion_batch.run.run_options import RunOptions

    run = call(RunOptions, options, watcher=said.watcher())
    return finish(call(getattr(api, options.command), options, options=run), options, said)


command("extract")(_run)


@command("label")
def _run_label(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch.storage import archive
    from emotion_batch.worker import single_recording

    if options.table is not None:
        return _run(options, said)
    if options.leave:
        raise UsageError(
            "TABLE is missing; only here, and not on a cluster, is a single recording labelled without a table"
        )
    if not archive.is_recording(options.source, options.storage_options):
        raise UsageError(
            f"TABLE is missing: name a folder for the label table; only a single recording needs none, and {options.source} is not one"
        )
    found = call(single_recording.label_recording, options, recording=options.source)
    said.answer(found, _format_labels(found))
    return int(any(one.status != "ok" for one in found))


command("resume")(_run)
command("retry")(_run)


@command("cancel")
def _run_cancel(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.run.submit import cancel

    cancelled = call(cancel, options)
    lines = [f"run {run} starts no more shards; those that it works on are finished and kept" for run in cancelled]
    result = Result(*lines, next_step(format_command("status", options.table)))
    said.answer({"table": options.table, "cancelled": cancelled}, result)


@command("demo")
def _run_demo(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.example.demo import demo

    call(demo, options, watcher=said.watcher(), say=print_result)


@command("completion")
def _run_completion(options: argparse.Namespace, said: Said) -> None:  # noqa: ARG001 as all commands
    import shtab

    print_result(shtab.complete(make_parsers()[0], options.shell))


def finish(summary: Summary, options: argparse.Namespace, said: Said) -> int:
    """Print what a run left behind, and return the exit code."""
    counts = summary.counts
    if options.leave:
        said.answer(summary.to_dict(), _format_submission(summary, options.table, options.scheduler.address))
    else:
        said.answer(summary.to_dict(), _format_summary(summary, _find_next(summary, options)))
    if summary.is_all_failed:
        reasons = "; ".join(_reasons(summary))
        # The same command does not look again at what is listed as before, such as files whose rights were wrong.
        again = (
            f", or `{format_command('retry', options.table)}` if its files are the same" if counts.n_mendable else ""
        )
        said.error(
            f"table {summary.table}: every recording failed ({reasons}); check the archive, then run the same command{again}"
        )
        return 1
    limit = options.max_failed or "100%"
    if counts.n_failed > (float(limit[:-1]) / 100 * counts.n_rows if limit.endswith("%") else int(limit)):
        said.error(
            f"{counts.n_failed:,} of {counts.n_rows:,} rows failed, and --max-failed allows {options.max_failed}"
        )
        return 1
    return 0


def _find_next(summary: Summary, options: argparse.Namespace) -> str:
    if summary.is_all_failed or options.command == "retry":
        return format_command("status", options.table)
    if summary.counts.by_label or options.command == "label":
        return format_command("query", options.table, options=("--example", "mix"))
    step = ("train", options.table, "BUNDLE") if options.command == "extract" else ("verify", options.table)
    return format_command(*step)


def _reasons(summary: Summary) -> list[str]:
    """Return a recording and its reason for each way to fail that a run met."""
    return [f"{status}, as {file}: {reason}" for status, ((file, reason), *_) in sorted(summary.examples.items())]


def _format_summary(summary: Summary, next_words: str) -> Result:
    counts, spent = summary.counts, summary.spent
    made = f"{counted(summary.n_shards, 'part')}, {summary.n_shards_done:,} of them made now in {format_duration(summary.elapsed_s)}"
    blocks: list[Line | Grid | str] = [title(f"{summary.table}: {made}")]
    blocks += [warn(f"  {reason}") for reason in _reasons(summary)]
    if counts.by_label:
        words = {"ps": "ps (pleasant surprise)"}
        n_of = counts.speech_by_label if counts.is_of_speech else counts.by_label
        rows = [(words.get(name, name), f"{n_of.get(name, 0):,}", f"{n:.1%}") for name, n in counts.shares.items()]
        blocks.append(Grid("<>>", rows))
    blocks += [f"  {line}" for line in (*_format_heard(summary), *_format_trust(counts))]
    if spent.n_mixed:
        whose = f"{counted(spent.n_mixed, 'recording')} with channels that differ"
        blocks.append(warn(f"  {whose} were heard as a mix; --channels each labels each channel, in another table"))
    if summary.model:
        blocks.append(f"  {summary.model}")
    if spent.n_isolated:
        blocks.append(
            f"{counted(spent.n_isolated, 'shard')} ran in a child process, because a recording had ended a worker; "
            f"{spent.lost_s:.0f} s of work were lost with workers and child processes"
        )
    if summary.n_resubmitted or spent.n_retries:
        blocks.append(
            f"repeated: {counted(spent.n_retries, 'request')} to the storage, {counted(summary.n_resubmitted, 'shard')}"
        )
    return Result(*blocks, next_step(next_words), format_counts(counts))


def _format_heard(summary: Summary) -> list[str]:
    heard, recorded = summary.audio_s, summary.recorded_s
    if not recorded:
        return []
    if heard > 0.99 * recorded:
        return [f"heard: all of {format_duration(recorded)} of audio"]
    advice = "" if summary.is_selective else "; to hear all of it, name a new table and use --window"
    return [f"heard: {format_duration(heard)} of {format_duration(recorded)} of audio ({heard / recorded:.0%}){advice}"]


def _format_trust(counts: Counts) -> list[str]:
    """Return how many of the labels should be believed, as far as the model can tell."""
    trust, n_rows = counts.trust, counts.n_ok
    if not n_rows:
        return []
    said = [f"{trust['is_confident'] / n_rows:.1%} confident"] if "is_confident" in trust else []
    for name, words in (("is_in_domain", "out of domain"), ("is_speech", "not speech")):
        if n_doubtful := n_rows - trust.get(name, n_rows):
            share = n_doubtful / n_rows
            said.append(f"{n_doubtful:,} {words}" if share < 0.01 else f"{share:.1%} {words}")
    if counts.is_of_speech and trust["is_speech"] < n_rows:
        said[-1] += ", which the shares leave out"
    return [f"labels: {', '.join(said)}"] if said else []


def _format_submission(summary: Summary, table: str, scheduler: str) -> Result:
    status = format_command("status", table)
    if not summary.n_shards_left:
        return Result(f"run {summary.run}: nothing was left to do", *_format_summary(summary, status).blocks)
    n_done = summary.n_shards - summary.n_shards_left
    return Result(
        title(
            f"{summary.table}: {n_done:,} of {counted(summary.n_shards, 'part')} done, {summary.n_shards_left:,} left to "
            f"{scheduler}, which no longer needs this machine"
        ),
        *(warn(f"  {reason}") for reason in _reasons(summary)),
        f"to stop it: {format_command('cancel', table)}",
        next_step(status),
        f"run {summary.run}",
    )


def _format_labels(found: Sequence[SegmentLabel]) -> Result:
    """Return one label with all its probabilities, or a line for each of several."""
    name = found[0].file
    if len(found) > 1:
        marks = [[] if one.channel is None else [f"channel {one.channel}"] for one in found]
        n_marks = max(map(len, marks))
        rows = [
            (*(mark or [""] * n_marks), f"{one.start_s:.3f}", *_format_segment(one))
            for mark, one in zip(marks, found, strict=True)
        ]
        return Result(title(name), Grid("<" * n_marks + ">><<<", rows))
    (one,) = found
    if one.status != "ok":
        return Result(f"{name}  {one.status}: {one.error}")
    ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])
    return Result(
        title(f"{name}  {one.emotion}  {one.confidence:.3f}  {_doubts(one)}".rstrip()),
        "",
        Grid("<>", [(word, f"{value:.6f}") for word, value in ranked]),
    )


def _format_segment(one: SegmentLabel) -> tuple[str, str, str, str]:
    if one.status != "ok":
        return "", "", "", f"{one.status}: {one.error}"
    return f"{one.end_s:.3f}", str(one.emotion), f"{one.confidence:.3f}", _doubts(one)


def _doubts(one: SegmentLabel) -> str:
    """Return why a label should not be believed, as far as the model can tell."""
    words = ["no speech"] if one.is_speech is False else []
    if one.is_in_domain is False:
        words.append("unlike what the model was trained on")
    if not words and not one.is_confident:
        words.append("not confident")
    return ", ".join(words)
