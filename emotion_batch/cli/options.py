"""Declare the commands and their options for argparse."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from emotion_batch._version import __version__
from emotion_batch.cli.console import print_result


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the whole usage above the one sentence.
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse would pass over a help that cannot be written.
        if message and file is sys.stdout:
            print_result(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what a command line says; ends the process with one sentence where it is wrong, and where it asks for help."""
    parser = _parser()
    options, left_over = parser.parse_known_args(arguments)
    if left_over:
        _refuse(parser, options.command, left_over)
    return options


def _refuse(parser: argparse.ArgumentParser, command: str, left_over: Sequence[str]) -> NoReturn:
    """End the process with one sentence about words that a command has no use for."""
    if command in ("extract", "label", "plan") and not any(word.startswith("-") for word in left_over):
        names = "one ARCHIVE" if command == "plan" else "one SOURCE and one TABLE"
        parser.error(
            f"{command} takes {names}, and {len(left_over)} more names were given; name several recordings by their "
            "folder, a glob in quotes ('*.wav'), or a list file with a name a line"
        )
    parser.error(f"unrecognized arguments: {' '.join(left_over)}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="emotion-batch", description="Label the emotions in a whole archive of recordings.")
    parser.add_argument("--version", action="version", version=f"emotion-batch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_plan(commands)
    _add_extract(commands)

    command = _command(commands, "train", "a feature table to a bundle")
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

    command = _command(commands, "evaluate", "honest figures of a bundle on a labelled feature table")
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

    command = _command(commands, "import", "the notebook's saved network to a bundle")
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

    command = _command(commands, "status", "how far a table is, read from its storage alone")
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    _add_common_options(command)

    command = _command(commands, "verify", "exit code 0 only if a table is whole")
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    command.add_argument(
        "--deep", action="store_true", help="read every row, rather than what each part says of itself"
    )
    command.add_argument(
        "--repair",
        action="store_true",
        help="read every row and remove damaged parts, so that the command that made the table makes them anew",
    )
    _add_common_options(command)

    command = _command(commands, "report", "an HTML page about a table, which needs nothing beside it")
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

    command = _command(commands, "cancel", "stop the runs that are at work on a table, submitted or not")
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    _add_common_options(command)

    command = _command(commands, "query", "an SQL query of a table, by DuckDB, which sees and changes nothing else")
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

    command = _command(commands, "export", "a table as few large Parquet files, CSV or audformat, without a ledger")
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

    command = _command(commands, "review", "a sheet of labels for a person to check, and what it says")
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

    command = _command(commands, "demo", "all of it on an archive that it makes itself")
    command.add_argument("folder", metavar="FOLDER", nargs="?", default="demo", help="where to (demo)")
    command.add_argument("--words", type=_positive, default=40, metavar="N", help="words a voice and emotion (40)")
    command.add_argument("--workers", type=_positive, metavar="N", help="worker processes (one a core)")
    _add_talk_options(command.add_argument_group("common"))
    return parser


def _add_plan(commands: Any) -> None:
    command = _command(commands, "plan", "what a run would do and how long it would take; writes nothing")
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
    _add_choice_options(group)
    _add_common_options(command)


def _add_extract(commands: Any, *, leave: bool = False) -> None:
    command = _command(commands, "extract", "recordings to a feature table")
    command.add_argument("archive", metavar="ARCHIVE", help="folder, bucket prefix, glob, list file or recording")
    command.add_argument("table", metavar="TABLE", help="folder of the feature table: new, or to go on with")
    _add_feature_options(command)
    _add_segment_options(command, "the default is the notebook's: 0.5 s to 3.5 s")
    _add_run_options(command)
    command.set_defaults(leave=leave)


def _add_label(commands: Any, *, leave: bool = False) -> None:
    command = _command(commands, "label", "recordings, or a feature table, to a label table")
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
    command = _command(commands, "retry", "do again what failed and another try could mend")
    command.add_argument("table", metavar="TABLE", help="a feature or label table")
    command.add_argument(
        "--status",
        action="append",
        metavar="S",
        help="failures with this status; may be repeated (truncated, unreadable, vanished, crashed, timeout, memory)",
    )
    group = command.add_argument_group("run")
    _add_cluster_options(group)
    _add_common_options(command)
    command.set_defaults(leave=leave)


def _command(commands: Any, name: str, words: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=f"{words[:1].upper()}{words[1:]}."
    )
    command.set_defaults(command=name)
    return command


def _add_labels_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--labels",
        default="tess",
        metavar="SOURCE",
        help="tess, ravdess, folder, table:FILE (file,emotion[,speaker][,start_s,end_s]) or regex:PATTERN with "
        "(?P<emotion>...) (tess)",
    )
    command.add_argument(
        "--allow-numeric-labels", action="store_true", help="take labels that look like numbers or dates"
    )


def _add_feature_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("features (the defaults are the notebook's)")
    group.add_argument(
        "--recipe",
        metavar="NAME",
        help="seed: mean MFCC as in the notebook; sequence: sequences, which carry over to other speakers; or the recipe of an "
        "installed package (seed)",
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
    _add_choice_options(group)
    group.add_argument(
        "--limit",
        type=_positive,
        metavar="N",
        help="take only the first N recordings, for a trial; the same command without it goes on to all",
    )
    group.add_argument("--prune", action="store_true", help="take recordings that are gone out of the table")
    group.add_argument(
        "--force",
        action="store_true",
        help="go on though the first recordings come out alike; prune though more than a tenth is gone",
    )
    _add_common_options(command)


def _add_choice_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--suffix", action="append", metavar=".EXT", help="ending of recordings, instead of the usual ones"
    )
    for name, words in (("include", "take only recordings"), ("exclude", "leave out recordings")):
        group.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="GLOB",
            help=f"{words} whose name matches, e.g. '2024/**' or '*_test.wav'; may be repeated",
        )


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
