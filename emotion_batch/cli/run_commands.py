"""The command line: what each command calls and prints, errors to exit codes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from emotion_batch.cli.answers import format_export, format_plan, format_rows
from emotion_batch.cli.console import Said, flush_stderr, open_streams, print_result, print_stream
from emotion_batch.cli.endings import (
    format_cancellation,
    format_labels,
    format_report,
    format_review,
    format_sheet,
    format_status,
    format_submission,
    format_summary,
    format_verification,
)
from emotion_batch.cli.judgements import format_card, format_evaluation
from emotion_batch.cli.options import read_arguments
from emotion_batch.cli.results import command as shell
from emotion_batch.errors import EmotionBatchError, OutputError, UsageError, find_shortage

if TYPE_CHECKING:
    from emotion_batch.run.scheduler import Scheduler
    from emotion_batch.run.summary import Summary
    from emotion_batch.settings import AnySettings, Segments


# What a person reads of an answer.
_MOST_ROWS = 1_000
_SEED_OPTIONS = ("sample_rate", "n_mfcc", "n_fft", "hop_length", "n_mels")
# A further signal within this time of the first is taken for the same one.
_ENDING_S = 10.0


class _Stopped(BaseException):
    """SIGTERM or SIGHUP, raised where the program stands, so that everything it opened is closed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments
        The command line without the program's name; by default this process's own.

    Returns
    -------
    0 if every recording has its row, 1 if not or a check does not hold, 2 if the call is wrong or refused,
    130, 143 and 129 after SIGINT, SIGTERM and SIGHUP.
    """
    open_streams()
    try:
        options = read_arguments(arguments)
    except SystemExit as stop:
        flush_stderr()
        return int(stop.code or 0)
    except OutputError as error:
        # Of a call for help.
        Said(is_quiet=False, is_debug=False, goes_on=False).error(str(error))
        return error.exit_code
    # A training, an import and the demo begin anew.
    goes_on = options.command in ("extract", "label", "retry")
    said = Said(is_quiet=options.quiet, is_debug=options.debug, goes_on=goes_on)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a name must not end a finished run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _stoppable():
        try:
            return _COMMANDS[options.command](options, said)
        except EmotionBatchError as error:
            said.error(str(error))
            return error.exit_code
        except (KeyboardInterrupt, _Stopped) as stop:
            said.error(said.how_far())
            return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.args[0])
        except Exception as error:
            shortage = find_shortage(error)
            said.error(
                f"unexpected {type(error).__name__}: {error}; with --debug there is a traceback to report"
                if shortage is None
                else f"this machine: expected enough {shortage}, got {str(error) or type(error).__name__}; end other programs, or "
                "raise the limit (`ulimit -a` shows it), then run the same command again"
            )
            return 1
        finally:
            said.end_line()
            flush_stderr()


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP, unless the caller ignores it, end the block.

    SIGHUP often comes twice, from the shell of a terminal that was closed and from the system, and Ctrl-C is pressed
    twice. What is being ended after the first signal must not be left half ended by the second.
    """
    stopped_s: float | None = None

    def stop(number: int, _: object) -> None:
        nonlocal stopped_s
        if stopped_s is None or time.monotonic() - stopped_s >= _ENDING_S:
            stopped_s = time.monotonic()
            raise KeyboardInterrupt if number == signal.SIGINT else _Stopped(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ignored = {number for number in numbers if signal.getsignal(number) == signal.SIG_IGN} - {signal.SIGTERM}
    previous = {number: signal.signal(number, stop) for number in numbers if number not in ignored}
    try:
        yield
    finally:
        for number, handler in previous.items():
            # After a signal Python ends, which must not be disturbed either.
            signal.signal(number, handler if stopped_s is None else signal.SIG_IGN)


def _extract(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import api
    from emotion_batch.settings import FeatureSettings

    settings = _settings(options) or FeatureSettings()
    summary = api.extract(
        options.archive,
        options.table,
        settings=settings,
        segments=_segments(options),
        **_common(options, said),
    )
    return _finish(summary, options, said, shell("train", options.table, "BUNDLE"))


def _plan(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch.run.planning import plan
    from emotion_batch.storage.archive import SUFFIXES

    found = plan.plan(
        options.archive,
        table=options.table,
        model=options.model,
        settings=_settings(options),
        segments=_segments(options),
        suffixes=tuple(options.suffix) if options.suffix else SUFFIXES,
        scheduler=_scheduler(options),
        workers=options.workers or (),
        by=options.by,
        sample_s=options.sample,
        storage_options=_storage_options(options),
        watcher=said.watcher(),
    )
    said.end_line()
    print_result(json.dumps(found.to_dict()) if options.json else format_plan(found))
    return 1 if found.is_late else 0


def _retry(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import api

    summary = api.retry(
        options.table,
        status=options.status or (),
        deadline_s=options.deadline,
        scheduler=_scheduler(options),
        workers=options.workers,
        storage_options=_storage_options(options),
        leave=options.leave,
        watcher=said.watcher(),
    )
    return _finish(summary, options, said, shell("status", options.table))


def _cancel(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    from emotion_batch import api

    cancelled = api.cancel(options.table, storage_options=_storage_options(options))
    result = json.dumps({"table": options.table, "cancelled": cancelled})
    print_result(result if options.json else format_cancellation(cancelled, options.table))
    return 0


def _status(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    from emotion_batch import api

    found = api.status(options.table, storage_options=_storage_options(options))
    print_result(json.dumps(found.to_dict()) if options.json else format_status(found, options.table))
    return 0


def _verify(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import api

    found = api.verify(
        options.table, deep=options.deep, repair=options.repair, storage_options=_storage_options(options)
    )
    print_result(json.dumps(found.to_dict()) if options.json else format_verification(found, options.table))
    if not found.is_whole:
        said.error(f"table {found.table}: expected it to be whole, got {len(found.problems):,} problems")
    return 0 if found.is_whole else 1


def _report(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands

    from emotion_batch.analysis import report

    made = report.report(
        options.table, output=options.output, seed=options.seed, storage_options=_storage_options(options)
    )
    print_result(json.dumps(made.to_dict(), default=vars) if options.json else format_report(made, options.table))
    return 0


def _label(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import api
    from emotion_batch.storage import archive
    from emotion_batch.worker import single_recording

    if options.window is None and (options.offset is None) != (options.duration is None):
        raise UsageError("--offset, --duration: expected both to replace the model's segments, got one")
    if options.table is None:
        if options.leave:
            raise UsageError("TABLE: expected a folder to write, got none; a single recording is labelled here")
        if not archive.is_recording(options.source, _storage_options(options)):
            raise UsageError(
                f"TABLE: expected a folder to write, got none; only a single recording is printed, and {options.source} is none"
            )
        found = single_recording.label_recording(
            options.source,
            model=options.model,
            segments=_segments(options),
            storage_options=_storage_options(options),
        )
        print_result(json.dumps([vars(one) for one in found]) if options.json else format_labels(found))
        return 0 if all(one.status == "ok" for one in found) else 1
    summary = api.label(
        options.source,
        options.table,
        model=options.model,
        segments=_segments(options),
        keep_features=options.keep_features,
        **_common(options, said),
    )
    return _finish(summary, options, said, shell("query", options.table, options=("--example", "mix")))


def _train(options: argparse.Namespace, said: Said) -> int:
    from dataclasses import fields

    from emotion_batch.training import commands
    from emotion_batch.training.train import TrainingSettings

    settings = TrainingSettings(**{field.name: getattr(options, field.name) for field in fields(TrainingSettings)})
    card = commands.train(
        options.table,
        options.bundle,
        settings=settings,
        h5=options.h5,
        storage_options=_storage_options(options),
        force=options.force,
        on_epoch=said.epoch,
        watcher=said.watcher(),
    )
    said.end_line()
    print_result(card.to_json().decode() if options.json else format_card(card, options.bundle))
    return 0


def _evaluate(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    from emotion_batch.training import commands, metrics

    found = commands.evaluate(
        options.bundle,
        options.table,
        labels=options.labels,
        label_map=options.label_map,
        allow_numeric_labels=options.allow_numeric_labels,
        priors=None if options.priors is None else metrics.read_priors(options.priors),
        robustness=options.robustness,
        storage_options=_storage_options(options),
    )
    print_result(json.dumps(found.to_dict()) if options.json else format_evaluation(found, options.bundle))
    return 0


def _import(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch.training import commands

    card = commands.import_h5(
        options.h5,
        options.bundle,
        labels=[label.strip() for label in options.labels.split(",")],
        storage_options=_storage_options(options),
        force=options.force,
        watcher=said.watcher(),
    )
    print_result(card.to_json().decode() if options.json else format_card(card, options.bundle))
    return 0


def _query(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch.analysis import query
    from emotion_batch.storage import folder

    if options.example == "":
        lines = [f"  {name:<10} {words}\n\n{_indented(sql)}\n" for name, (words, sql) in query.EXAMPLES.items()]
        print_result("\n".join(lines).rstrip())
        return 0
    if options.table is None:
        raise UsageError("TABLE: expected a table, got none; --example alone lists the examples")
    file_format = _format(options)
    asked = query.asked(
        options.table,
        options.sql,
        example=options.example,
        storage_options=_storage_options(options),
        watcher=said.watcher(),
    )
    with asked as answer:
        if options.output is not None:
            with (
                folder.explained(f"output {options.output}"),
                folder.writing(options.output, _storage_options(options)) as stream,
            ):
                query.write(answer, file_format, stream)
        elif file_format == "table":
            rows, is_cut = query.first_rows(answer, _MOST_ROWS)
            print_result(format_rows(answer.schema.names, rows, is_cut=is_cut))
        else:
            print_stream(lambda stream: query.write(answer, file_format, stream))
    return 0


def _export(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch.analysis import export

    found = export.export(
        options.table,
        options.folder,
        file_format=options.format,
        partial=options.partial,
        force=options.force,
        storage_options=_storage_options(options),
        watcher=said.watcher(),
    )
    said.end_line()
    print_result(json.dumps(found.to_dict()) if options.json else format_export(found))
    return 0


def _format(options: argparse.Namespace) -> str:
    """Return in which format an answer is given."""
    stated = options.format or ("json" if options.json else None)
    if options.output is None:
        if stated == "parquet":
            raise UsageError("--format parquet: expected --output FILE with it, got none")
        return stated or "table"
    found = stated or options.output.rpartition(".")[2].lower()
    if found not in ("csv", "json", "parquet"):
        raise UsageError(
            f"--output: expected a FILE.csv, .json or .parquet, or --format with it, got {options.output!r}"
        )
    return str(found)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _review(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch.analysis import review

    places = {"storage_options": _storage_options(options), "force": options.force}
    if options.take:
        for name in ("size", "random", "seed"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name}: expected only where a sheet is written, got it with --take")
        taken = review.take_review(
            options.table, options.sheet, labels=options.labels, new_labels=options.new_label or (), **places
        )
        print_result(json.dumps(taken.to_dict()) if options.json else format_review(taken))
        return 0
    for name in ("labels", "new_label"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: expected --take with it, got none")
    written = review.review(
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


def _demo(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch.example.demo import demo

    demo(options.folder, n_words=options.words, workers=options.workers, watcher=said.watcher(), say=print_result)
    return 0


def _finish(summary: Summary, options: argparse.Namespace, said: Said, next_command: str) -> int:
    said.end_line()
    if summary.is_all_failed:
        next_command = shell("status", options.table)
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
        retried = f", or `{shell('retry', options.table)}` if its files are the same" if counts.n_mendable else ""
        said.error(
            f"table {summary.table}: every recording failed ({reasons}); check the archive, then run the same command{retried}"
        )
        return 1
    if _exceeds(options.max_failed, summary):
        said.error(f"failed rows: expected at most {options.max_failed}, got {counts.n_failed} of {counts.n_rows}")
        return 1
    return 0


def _common(options: argparse.Namespace, said: Said) -> dict[str, Any]:
    from emotion_batch.storage.archive import SUFFIXES

    return {
        "suffixes": tuple(options.suffix) if options.suffix else SUFFIXES,
        "prune": options.prune,
        "deadline_s": options.deadline,
        "scheduler": _scheduler(options),
        "workers": options.workers,
        "storage_options": _storage_options(options),
        "force": options.force,
        "leave": options.leave,
        "watcher": said.watcher(),
    }


def _scheduler(options: argparse.Namespace) -> Scheduler | None:
    from emotion_batch.run.scheduler import Scheduler

    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if options.scheduler is not None:
        return Scheduler(options.scheduler, *files)
    if any(files):
        raise UsageError("--tls-ca, --tls-cert, --tls-key: expected --scheduler with them, got none")
    return None


def _settings(options: argparse.Namespace) -> AnySettings | None:
    """Return the feature settings that were asked for; None where nothing was said of them."""
    from emotion_batch.settings import FeatureSettings, SequenceSettings

    stated = {name: value for name in _SEED_OPTIONS if (value := getattr(options, name)) is not None}
    if options.recipe == "sequence" and stated:
        raise UsageError(f"--{next(iter(stated)).replace('_', '-')}: expected the recipe seed with it, got sequence")
    if options.recipe == "sequence":
        return SequenceSettings()
    return FeatureSettings(**stated) if stated or options.recipe == "seed" else None


def _segments(options: argparse.Namespace) -> Segments | None:
    """Return the segments that were asked for; None where nothing was said of them."""
    from emotion_batch.settings import Segments

    stretch = {"offset_s": options.offset, "duration_s": options.duration}
    said = {name: value for name, value in stretch.items() if value is not None}
    if options.window is None:
        if options.hop is not None:
            raise UsageError("--hop: expected --window with it, got none")
        return Segments(**said) if said else None
    if said:
        raise UsageError("--window: expected neither --offset nor --duration beside it, got one; windows start at 0")
    return Segments.windows(options.window, options.hop)


def _storage_options(options: argparse.Namespace) -> dict[str, Any]:
    text = options.storage_options
    if not text:
        return {}
    try:
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as stream:
                text = stream.read()
        value = json.loads(text)
    except (OSError, ValueError):
        # Not the text itself: it may hold a key. Nor the cause, whose traceback would.
        raise UsageError("--storage-options: expected a JSON object or @FILE with one, got something else") from None
    if not isinstance(value, dict):
        raise UsageError("--storage-options: expected a JSON object, got another JSON value")
    return value


def _exceeds(limit: str | None, summary: Summary) -> bool:
    if limit is None:
        return False
    counts = summary.counts
    if limit.endswith("%"):
        return counts.n_failed > float(limit[:-1]) / 100 * counts.n_rows
    return counts.n_failed > int(limit)


_COMMANDS: dict[str, Callable[[argparse.Namespace, Said], int]] = {
    "cancel": _cancel,
    "demo": _demo,
    "evaluate": _evaluate,
    "export": _export,
    "extract": _extract,
    "import": _import,
    "label": _label,
    "plan": _plan,
    "query": _query,
    "report": _report,
    "retry": _retry,
    "review": _review,
    "status": _status,
    "train": _train,
    "verify": _verify,
}


if __name__ == "__main__":
    sys.exit(main())
