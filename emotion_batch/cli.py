"""The command line: arguments to the functions of `runs`, errors to exit codes."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import emotion_batch
from emotion_batch.answers import format_export, format_plan, format_rows
from emotion_batch.console import Said, print_result, print_stream
from emotion_batch.endings import (
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
from emotion_batch.errors import EmotionBatchError, UsageError
from emotion_batch.judgements import format_card, format_evaluation
from emotion_batch.results import command as shell

if TYPE_CHECKING:
    from emotion_batch.connection import Scheduler
    from emotion_batch.settings import AnySettings, Segments
    from emotion_batch.summary import Summary


class _Stopped(BaseException):
    """SIGTERM, raised where the program stands, so that everything it opened is closed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments
        The command line without the program's name; by default this process's own.

    Returns
    -------
    0 if every recording has its row, 1 if not or a check does not hold, 2 if the call is wrong or refused,
    130 and 143 after SIGINT and SIGTERM.
    """
    options = _parser().parse_args(arguments)
    # A training, an import and the demo begin anew.
    goes_on = options.command in (_extract, _label, _retry)
    said = Said(is_quiet=options.quiet, is_debug=options.debug, goes_on=goes_on)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a name must not end a finished run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    previous = signal.signal(signal.SIGTERM, _on_terminate)
    try:
        return int(options.command(options, said))
    except EmotionBatchError as error:
        said.error(str(error))
        return error.exit_code
    except (KeyboardInterrupt, _Stopped) as stop:
        said.error(said.how_far())
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    except Exception as error:
        said.error(f"unexpected {type(error).__name__}: {error}; with --debug there is a traceback to report")
        return 1
    finally:
        said.end_line()
        signal.signal(signal.SIGTERM, previous)


def _extract(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import runs
    from emotion_batch.settings import FeatureSettings

    settings = _settings(options) or FeatureSettings()
    summary = runs.extract(
        options.archive,
        options.table,
        settings=settings,
        segments=_segments(options),
        **_common(options, said),
    )
    return _finish(summary, options, said, shell("train", options.table, "BUNDLE"))


def _plan(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import planning
    from emotion_batch.archive import SUFFIXES

    found = planning.plan(
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
    from emotion_batch import runs

    summary = runs.retry(
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
    from emotion_batch import runs

    cancelled = runs.cancel(options.table, storage_options=_storage_options(options))
    result = json.dumps({"table": options.table, "cancelled": cancelled})
    print_result(result if options.json else format_cancellation(cancelled, options.table))
    return 0


def _status(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    from emotion_batch import runs

    found = runs.status(options.table, storage_options=_storage_options(options))
    print_result(json.dumps(found.to_dict()) if options.json else format_status(found, options.table))
    return 0


def _verify(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import runs

    found = runs.verify(options.table, deep=options.deep, storage_options=_storage_options(options))
    print_result(json.dumps(found.to_dict()) if options.json else format_verification(found, options.table))
    if not found.is_whole:
        said.error(f"table {found.table}: expected it to be whole, got {len(found.problems):,} problems")
    return 0 if found.is_whole else 1


def _report(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    from dataclasses import asdict

    from emotion_batch import reporting

    made = reporting.report(
        options.table, output=options.output, seed=options.seed, storage_options=_storage_options(options)
    )
    print_result(json.dumps(asdict(made), default=vars) if options.json else format_report(made, options.table))
    return 0


def _label(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import archive, recording, runs

    if options.window is None and (options.offset is None) != (options.duration is None):
        raise UsageError("--offset, --duration: expected both to replace the model's segments, got one")
    if options.table is None:
        if options.leave:
            raise UsageError("TABLE: expected a folder to write, got none; a single recording is labelled here")
        if not archive.is_recording(options.source, _storage_options(options)):
            raise UsageError(
                f"TABLE: expected a folder to write, got none; only a single recording is printed, and {options.source} is none"
            )
        found = recording.label_recording(
            options.source,
            model=options.model,
            segments=_segments(options),
            storage_options=_storage_options(options),
        )
        print_result(json.dumps([vars(one) for one in found]) if options.json else format_labels(found))
        return 0 if all(one.status == "ok" for one in found) else 1
    summary = runs.label(
        options.source,
        options.table,
        model=options.model,
        segments=_segments(options),
        keep_features=options.keep_features,
        **_common(options, said),
    )
    name = options.table.replace("'", "''")
    query = f"FROM '{name}/*.parquet' SELECT emotion, count(*) GROUP BY emotion"
    # Double quotes read best, where the shell finds nothing of its own within them.
    quoted = shlex.quote(query) if set('"$`\\!') & set(query) else f'"{query}"'
    return _finish(summary, options, said, f"duckdb -c {quoted}")


def _train(options: argparse.Namespace, said: Said) -> int:
    from dataclasses import fields

    from emotion_batch import modelling
    from emotion_batch.training import TrainingSettings

    settings = TrainingSettings(**{field.name: getattr(options, field.name) for field in fields(TrainingSettings)})
    card = modelling.train(
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
    from emotion_batch import evaluation, modelling

    found = modelling.evaluate(
        options.bundle,
        options.table,
        labels=options.labels,
        label_map=options.label_map,
        priors=None if options.priors is None else evaluation.read_priors(options.priors),
        robustness=options.robustness,
        storage_options=_storage_options(options),
    )
    print_result(json.dumps(found.to_dict()) if options.json else format_evaluation(found, options.bundle))
    return 0


def _import(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    from emotion_batch import modelling

    card = modelling.import_h5(
        options.h5,
        options.bundle,
        labels=[label.strip() for label in options.labels.split(",")],
        storage_options=_storage_options(options),
        force=options.force,
    )
    print_result(card.to_json().decode() if options.json else format_card(card, options.bundle))
    return 0


def _query(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import querying, storage

    if options.example == "":
        lines = [f"  {name:<10} {words}\n\n{_indented(sql)}\n" for name, (words, sql) in querying.EXAMPLES.items()]
        print_result("\n".join(lines).rstrip())
        return 0
    if options.table is None:
        raise UsageError("TABLE: expected a table, got none; --example alone lists the examples")
    file_format = _format(options)
    asked = querying.asked(
        options.table,
        options.sql,
        example=options.example,
        storage_options=_storage_options(options),
        watcher=said.watcher(),
    )
    with asked as answer:
        if options.output is not None:
            with (
                storage.explained(f"output {options.output}"),
                storage.writing(options.output, _storage_options(options)) as stream,
            ):
                querying.write(answer, file_format, stream)
        elif file_format == "table":
            rows, is_cut = querying.first_rows(answer, _MOST_ROWS)
            print_result(format_rows(answer.schema.names, rows, is_cut=is_cut))
        else:
            print_stream(lambda stream: querying.write(answer, file_format, stream))
    return 0


def _export(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch import exporting

    found = exporting.export(
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
    from emotion_batch import reviewing

    places = {"storage_options": _storage_options(options), "force": options.force}
    if options.take:
        for name in ("size", "random", "seed"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name}: expected only where a sheet is written, got it with --take")
        taken = reviewing.take_review(
            options.table, options.sheet, labels=options.labels, new_labels=options.new_label or (), **places
        )
        print_result(json.dumps(taken.to_dict()) if options.json else format_review(taken))
        return 0
    for name in ("labels", "new_label"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: expected --take with it, got none")
    written = reviewing.review(
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
    from emotion_batch.demonstration import demo

    demo(options.folder, n_words=options.words, workers=options.workers, watcher=said.watcher(), say=print_result)
    return 0


def _finish(summary: Summary, options: argparse.Namespace, said: Said, next_command: str) -> int:
    said.end_line()
    is_too_many = _exceeds(options.max_failed, summary)
    if options.leave and not options.json:
        print_result(format_submission(summary, options.table, options.scheduler))
        return 0
    print_result(json.dumps(summary.to_dict()) if options.json else format_summary(summary, next_command))
    if is_too_many:
        said.error(
            f"failed rows: expected at most {options.max_failed}, got {summary.counts.n_failed} of {summary.counts.n_rows}"
        )
    return 1 if is_too_many else 0


def _common(options: argparse.Namespace, said: Said) -> dict[str, Any]:
    from emotion_batch.archive import SUFFIXES

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
    from emotion_batch.connection import Scheduler

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


def _limit(text: str) -> str:
    number = text.removesuffix("%")
    try:
        is_right = float(number) >= 0 if text.endswith("%") else int(number) >= 0
    except ValueError:
        is_right = False
    if not is_right:
        raise argparse.ArgumentTypeError(f"expected a number as 10, or a share as 5%, got {text!r}")
    return text


def _positive(text: str) -> int:
    return _at_least(1, text)


def _whole(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
    return number


# What a person reads of an answer.
_MOST_ROWS = 1_000
_SEED_OPTIONS = ("sample_rate", "n_mfcc", "n_fft", "hop_length", "n_mels")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the whole usage above the one sentence.
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="emotion-batch", description="Label the emotions in a whole archive of recordings.")
    parser.add_argument("--version", action="version", version=f"emotion-batch {emotion_batch.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_plan(commands)
    _add_extract(commands)

    command = _command(commands, "train", _train, "a feature table to a bundle")
    command.add_argument("table", metavar="TABLE", help="the feature table")
    command.add_argument("bundle", metavar="BUNDLE", help="folder to write: a new one")
    _add_labels_option(command)
    command.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="judged, not learnt from (0.2)")
    command.add_argument(
        "--validation",
        choices=("stratified", "seed"),
        default="stratified",
        help="which are held out: a share of each label's, or the last by name, as in the notebook (stratified)",
    )
    command.add_argument("--epochs", type=_positive, metavar="N", help="passes over the rows (the recipe's: 100 or 20)")
    command.add_argument("--batch-size", type=_positive, metavar="N", help="rows a step (the recipe's: 512 or 32)")
    command.add_argument(
        "--patience", type=int, default=0, metavar="N", help="end after so many epochs no better on what is held out"
    )
    command.add_argument(
        "--max-folds",
        type=int,
        default=10,
        metavar="N",
        help="most folds of speakers, a training each; 0 leaves confidence uncalibrated (10)",
    )
    command.add_argument(
        "--precision", type=float, default=0.9, metavar="SHARE", help="of right labels that is_confident promises (0.9)"
    )
    command.add_argument("--data-licence", default="", metavar="TEXT", help="licence of the recordings, for the card")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of split, weights and order (0)")
    command.add_argument("--h5", metavar="FILE", help="also save the network as the notebook did")
    command.add_argument("--force", action="store_true", help="replace the bundle that is there")
    _add_common_options(command)

    command = _command(commands, "evaluate", _evaluate, "honest figures of a bundle on a labelled feature table")
    command.add_argument("bundle", metavar="BUNDLE", help="the bundle to judge")
    command.add_argument("table", metavar="TABLE", help="a feature table of recordings that it has not learnt from")
    _add_labels_option(command)
    command.add_argument(
        "--label-map",
        metavar="FILE",
        help="which of these is which of the model's: JSON, CSV (from,to) or lines 'from = to'; others are left out",
    )
    command.add_argument(
        "--priors", metavar="L=N,...|@FILE", help="how common each label is elsewhere, for the precision there"
    )
    command.add_argument(
        "--robustness",
        type=int,
        default=200,
        metavar="N",
        help="recordings to decode again, louder, quieter and padded with silence; 0 for none (200)",
    )
    _add_common_options(command)

    command = _command(commands, "import", _import, "the notebook's saved network to a bundle")
    command.add_argument("h5", metavar="MODEL.h5", help="what the notebook's model.save wrote")
    command.add_argument("bundle", metavar="BUNDLE", help="folder to write: a new one")
    command.add_argument(
        "--labels",
        required=True,
        metavar="A,B,...",
        help="emotions in the order of its outputs; the notebook's is sorted",
    )
    command.add_argument("--force", action="store_true", help="replace the bundle that is there")
    _add_common_options(command)

    _add_label(commands)

    command = _command(commands, "status", _status, "how far a table is, read from its storage alone")
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    _add_common_options(command)

    command = _command(commands, "verify", _verify, "exit code 0 only if a table is whole")
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    command.add_argument(
        "--deep", action="store_true", help="read every row, rather than what each part says of itself"
    )
    _add_common_options(command)

    command = _command(commands, "report", _report, "an HTML page about a table, which needs nothing beside it")
    command.add_argument("table", metavar="TABLE", help="a label or feature table")
    command.add_argument(
        "--output", metavar="FILE", help="where to, or a URL (TABLE-report.html in the current folder)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the recordings to listen to (0)")
    _add_common_options(command)

    _add_retry(commands)

    words = "hand a run to a running Dask cluster, which goes on without this machine"
    submit = commands.add_parser("submit", help=words, description=f"{words[:1].upper()}{words[1:]}.")
    submitted = submit.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_extract, _add_label, _add_retry):
        add(submitted, leave=True)

    command = _command(commands, "cancel", _cancel, "stop the runs that are at work on a table, submitted or not")
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    _add_common_options(command)

    command = _command(
        commands, "query", _query, "an SQL query of a table, by DuckDB, which sees and changes nothing else"
    )
    command.add_argument("table", metavar="TABLE", nargs="?", help="a feature or label table")
    command.add_argument("sql", metavar="SQL", nargs="?", help="a SELECT FROM labels, or features, which are the table")
    command.add_argument(
        "--example",
        metavar="NAME",
        nargs="?",
        const="",
        help="one that is ready instead; without NAME, which there are",
    )
    command.add_argument(
        "--format",
        choices=("table", "csv", "json", "parquet"),
        help="how it is printed (table), or written (what FILE ends with)",
    )
    command.add_argument("--output", metavar="FILE", help="write it there, whole or not at all")
    _add_common_options(command)

    command = _command(
        commands, "export", _export, "a table as few large Parquet files, CSV or audformat, without a ledger"
    )
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    command.add_argument(
        "folder", metavar="FOLDER", help="where to: a new or empty folder; it appears whole or not at all"
    )
    command.add_argument(
        "--format",
        choices=("parquet", "csv", "audformat"),
        default="parquet",
        help="files of up to a million rows; one CSV file; or a database of labelled segments (parquet)",
    )
    command.add_argument("--partial", action="store_true", help="as far as it is, of a table that has parts missing")
    command.add_argument("--force", action="store_true", help="replace the export that is there")
    _add_common_options(command)

    command = _command(commands, "review", _review, "a sheet of labels for a person to check, and what it says")
    command.add_argument("table", metavar="TABLE", help="a label table")
    command.add_argument(
        "sheet", metavar="SHEET.csv", help="the sheet: a new one, or with --take one that is filled in"
    )
    command.add_argument("--size", type=_positive, metavar="N", help="rows of the sheet (100)")
    command.add_argument("--random", type=_whole, metavar="N", help="how many of them at random (half, 20 or more)")
    command.add_argument("--seed", type=_whole, metavar="N", help="what chance follows from (0)")
    command.add_argument("--take", action="store_true", help="take a sheet that is filled in: labels, and precision")
    command.add_argument("--labels", metavar="FILE", help="CSV or Parquet to write with --take (SHEET.labels.csv)")
    command.add_argument(
        "--new-label", action="append", metavar="WORD", help="an emotion that the model does not know; may be repeated"
    )
    command.add_argument("--force", action="store_true", help="replace the file that is to be written")
    _add_common_options(command)

    command = _command(commands, "demo", _demo, "all of it on an archive that it makes itself")
    command.add_argument("folder", metavar="FOLDER", nargs="?", default="demo", help="where to (demo)")
    command.add_argument("--words", type=_positive, default=40, metavar="N", help="words a voice and emotion (40)")
    command.add_argument("--workers", type=_positive, metavar="N", help="worker processes (one a core)")
    _add_talk_options(command.add_argument_group("common"))
    return parser


def _add_plan(commands: Any) -> None:
    command = _command(commands, "plan", _plan, "what a run would do and how long it would take; writes nothing")
    command.add_argument(
        "archive", metavar="ARCHIVE", help="what extract or label would be given; or a table, which is to go on"
    )
    command.add_argument(
        "--table", metavar="TABLE", help="the table that they would be given: only what is left counts"
    )
    command.add_argument("--model", metavar="BUNDLE", help="of a labelling, as label takes it (it is an extraction)")
    command.add_argument("--by", metavar="HH:MM", help="whether it is done by then, and on how many workers")
    command.add_argument(
        "--workers",
        type=_positive,
        action="append",
        metavar="N",
        help="how long it takes on so many; may be repeated (10 and 100, beside those that are there)",
    )
    command.add_argument("--sample", type=float, default=10.0, metavar="S", help="seconds that the timing takes (10)")
    _add_feature_options(command)
    _add_segment_options(command, "the default is the notebook's, of a labelling what the model was trained on")
    group = command.add_argument_group("run")
    _add_scheduler_options(group)
    group.add_argument(
        "--suffix", action="append", metavar=".EXT", help="ending of recordings, instead of the usual ones"
    )
    _add_common_options(command)


def _add_extract(commands: Any, *, leave: bool = False) -> None:
    command = _command(commands, "extract", _extract, "recordings to a feature table")
    command.add_argument("archive", metavar="ARCHIVE", help="folder, bucket prefix, glob, list file or recording")
    command.add_argument("table", metavar="TABLE", help="folder of the feature table: new, or to go on with")
    _add_feature_options(command)
    _add_segment_options(command, "the default is the notebook's: 0.5 s to 3.5 s")
    _add_run_options(command)
    command.set_defaults(leave=leave)


def _add_label(commands: Any, *, leave: bool = False) -> None:
    command = _command(commands, "label", _label, "recordings, or a feature table, to a label table")
    command.add_argument("source", metavar="SOURCE", help="an archive or a feature table; or one recording, to print")
    command.add_argument("table", metavar="TABLE", nargs="?", help="folder of the label table: new, or to go on with")
    command.add_argument(
        "--model", metavar="BUNDLE", help="a bundle, or tess-sequence or tess-seed, which ship (tess-sequence)"
    )
    command.add_argument("--keep-features", metavar="TABLE", help="put an archive's features into this table as well")
    _add_segment_options(command, "of an archive; the default is what the model was trained on")
    _add_run_options(command)
    command.set_defaults(leave=leave)


def _add_retry(commands: Any, *, leave: bool = False) -> None:
    command = _command(commands, "retry", _retry, "do again what failed, and nothing else")
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    command.add_argument("--status", action="append", metavar="S", help="only such failures; may be repeated (all)")
    group = command.add_argument_group("run")
    _add_cluster_options(group)
    _add_common_options(command)
    command.set_defaults(leave=leave)


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace, Said], int], words: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=f"{words[:1].upper()}{words[1:]}."
    )
    command.set_defaults(command=function)
    return command


def _add_labels_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--labels",
        default="tess",
        metavar="SOURCE",
        help="tess, ravdess, folder, table:FILE (file,emotion[,speaker]) or regex:PATTERN with (?P<emotion>...) (tess)",
    )


def _add_feature_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("features (the defaults are the notebook's)")
    group.add_argument(
        "--recipe",
        choices=("seed", "sequence"),
        help="mean MFCC as in the notebook, or sequences, which carry over to other speakers (seed)",
    )
    for name, default, words in (
        ("sample-rate", 22_050, "Hz to resample to"),
        ("n-mfcc", 40, "coefficients"),
        ("n-fft", 2_048, "samples a frame"),
        ("hop-length", 512, "samples from frame to frame"),
        ("n-mels", 128, "mel bands"),
    ):
        group.add_argument(f"--{name}", type=_positive, metavar="N", help=f"{words} ({default})")


def _add_segment_options(command: argparse.ArgumentParser, words: str) -> None:
    group = command.add_argument_group(f"segments ({words})")
    group.add_argument("--offset", type=float, metavar="S", help="start of a recording's one segment in seconds (0.5)")
    group.add_argument("--duration", type=float, metavar="S", help="its longest duration (3)")
    group.add_argument("--window", type=float, metavar="S", help="instead, windows of this many seconds, from 0 on")
    group.add_argument("--hop", type=float, metavar="S", help="seconds from window to window (those of --window)")


def _add_run_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("run")
    _add_cluster_options(group)
    group.add_argument(
        "--suffix", action="append", metavar=".EXT", help="ending of recordings, instead of the usual ones"
    )
    group.add_argument("--prune", action="store_true", help="take recordings that are gone out of the table")
    group.add_argument(
        "--force",
        action="store_true",
        help="go on though the first recordings come out alike; prune though more than a tenth is gone",
    )
    _add_common_options(command)


def _add_scheduler_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler; without it a local cluster")
    for name, words in (
        ("ca", "certificate of the authority that the cluster's are signed by"),
        ("cert", "certificate to show it"),
        ("key", "key of that certificate"),
    ):
        group.add_argument(f"--tls-{name}", metavar="FILE", help=f"{words}, PEM (Dask's own configuration)")


def _add_cluster_options(group: argparse._ArgumentGroup) -> None:
    _add_scheduler_options(group)
    group.add_argument("--workers", type=_positive, metavar="N", help="processes of the local cluster (one a core)")
    group.add_argument(
        "--deadline",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds for a recording, or for each of its windows, until it is `timeout` (120)",
    )
    group.add_argument("--max-failed", type=_limit, metavar="N|P%", help="more failed rows than this are exit code 1")


def _add_common_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("common")
    group.add_argument("--storage-options", metavar="JSON|@FILE", help="what fsspec's filesystem takes")
    group.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    _add_talk_options(group)


def _add_talk_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    group.add_argument("--debug", action="store_true", help="a traceback where there is one")


def _on_terminate(*_: object) -> NoReturn:
    raise _Stopped


if __name__ == "__main__":
    sys.exit(main())
