"""Declare commands for argparse, and each option that several of them share once, to be used by its name.

`command` declares a command above the function that runs it. `read_arguments` reads a command line; `read_values` turns
what it says into the values that the API takes.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from emotion_batch._version import __version__
from emotion_batch.cli.console import Said, print_result
from emotion_batch.errors import UsageError

if TYPE_CHECKING:
    from emotion_batch.run.scheduler import Scheduler
    from emotion_batch.settings import AnySettings, Segments

T = TypeVar("T")
# It returns its exit code, or None for 0.
Run = Callable[[argparse.Namespace, Said], int | None]
# It adds an option, or a group of them, to a parser.
Add = Callable[[Any], object]


Parsers = dict[str, argparse.ArgumentParser]


class Command(NamedTuple):
    """A command: what it does in a few words, what it takes, and the function that runs it."""

    words: str
    options: Sequence[Add]
    run: Run


COMMANDS: dict[str, Command] = {}
# How help lists them; others follow.
_ORDER = (
    *("plan", "extract", "train", "evaluate", "import", "label", "resume", "status", "verify", "report", "retry"),
    *("submit", "cancel", "query", "export", "review", "demo", "completion"),
)
_SUBMITTED = ("extract", "label", "resume", "retry")
_SUBMIT = "Leave a run to a running Dask cluster, so that this machine is no longer needed"


def command(name: str, words: str, *options: Add) -> Callable[[Run], Run]:
    """Declare that a function runs a command."""

    def declare(run: Run) -> Run:
        COMMANDS[name] = Command(words, options, run)
        return run

    return declare


def option(name: str, metavar: str | None, words: str, read: Callable[[str], Any] = str, **settings: Any) -> Add:
    """Return an argument, or an option if its name begins with dashes, whose value `read` reads."""
    return lambda parser: parser.add_argument(name, metavar=metavar, help=words, type=read, **settings)


def switch(name: str, words: str, *short: str) -> Add:
    """Return an option without a value, and perhaps a short name."""
    return lambda parser: parser.add_argument(*short, name, action="store_true", help=words)


def group(title: str, *options: Add) -> Add:
    """Return options that help shows below a title."""

    def add(parser: argparse.ArgumentParser) -> None:
        place = parser.add_argument_group(title)
        for one in options:
            one(place)

    return add


def whole(text: str, least: int = 0) -> int:
    """Return a whole number from `least` on."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}: {text!r}")
    return value


positive = partial(whole, least=1)


def number(text: str) -> float:
    """Return a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number: {text!r}") from None


def _channels(text: str) -> str | list[int]:
    if text in ("mix", "each"):
        return text
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"must be mix, each or numbers from 0, e.g. 0,1: {text!r}")
    return [int(number) for number in text.split(",")]


def _limit(text: str) -> str:
    try:
        is_right = float(text[:-1]) >= 0 if text.endswith("%") else int(text) >= 0
    except ValueError:
        is_right = False
    if not is_right:
        raise argparse.ArgumentTypeError(f"must be a number such as 10, or a share such as 5%: {text!r}")
    return text


TABLE = option("table", "TABLE", "The feature or label table")
LABEL_SOURCES = (
    "Where the reference labels are: a corpus whose file names say them (tess, ravdess, emodb, savee, crema-d, nemo), folder, "
    "table:FILE (file,emotion[,speaker][,start_s,end_s][,channel]) or regex:PATTERN with (?P<emotion>...) (default tess)"
)
ALLOW_NUMERIC_LABELS = switch("--allow-numeric-labels", "Accept labels that look like numbers or dates")
LABELS = (option("--labels", "SOURCE", LABEL_SOURCES), ALLOW_NUMERIC_LABELS)
FEATURES = group(
    "features (the defaults are the notebook's)",
    option(
        "--recipe",
        "NAME",
        "How recordings become features: seed (mean MFCC as in the notebook), voices (bands and pitch by frame, which work better on "
        "other speakers), or the recipe of an installed package (default seed)",
    ),
    option("--sample-rate", "N", "Sample rate in Hz (default 22050)", positive),
    option("--n-mfcc", "N", "Number of coefficients (default 40)", positive),
    option("--n-fft", "N", "Samples in a frame (default 2048)", positive),
    option("--hop-length", "N", "Samples from one frame to the next (default 512)", positive),
    option("--n-mels", "N", "Number of mel bands (default 128)", positive),
)
_SUFFIX = "Suffix of the recordings, instead of the usual ones; can be repeated"
_NAMES = "recordings whose name matches, e.g. '2024/**' or '*_test.wav'; can be repeated"
CHOICE = (
    option("--suffix", ".EXT", _SUFFIX, action="append", dest="suffixes"),
    option("--include", "GLOB", f"Take only {_NAMES}", action="append"),
    option("--exclude", "GLOB", f"Leave out {_NAMES}", action="append"),
)
_PEM = "in PEM (default: Dask's configuration)"
SCHEDULER = (
    option("--scheduler", "ADDRESS", "Address of a running Dask scheduler (default: start a local cluster)"),
    option("--tls-ca", "FILE", f"Certificate of the authority that signed the cluster's certificates, {_PEM}"),
    option("--tls-cert", "FILE", f"Certificate to show to the scheduler, {_PEM}"),
    option("--tls-key", "FILE", f"Key of that certificate, {_PEM}"),
)
_DEADLINE = "Seconds after which a recording, or one of its windows, gets the status timeout (default 120)"
CLUSTER = (
    *SCHEDULER,
    option("--workers", "N", "Worker processes of the local cluster (default: one for each core)", positive),
    option("--deadline", "S", _DEADLINE, number, dest="deadline_s"),
    option("--max-failed", "N|P%", "Exit with code 1 if more rows than this have failed, e.g. 10 or 5%%", _limit),
)
_LIMIT = "Take only the first N recordings, for a trial; the same command without it continues with the rest"
# What a table does not keep, because it is about one run.
SCOPE = (
    option("--limit", "N", _LIMIT, positive),
    switch("--prune", "Remove recordings from the table that the archive no longer has"),
    switch(
        "--force",
        "Continue even if the first results are all the same; with --prune, even if more than a tenth is gone",
    ),
)
RUN = group("run", *CLUSTER, *CHOICE, *SCOPE)
TALK = (switch("--quiet", "Print no notes and no progress", "-q"), switch("--debug", "Print the traceback of an error"))
COMMON = group(
    "common",
    option("--storage-options", "JSON|@FILE", "Options of the storage, as fsspec's filesystem takes them"),
    switch("--json", "Print the result as JSON"),
    *TALK,
)


def segments(words: str) -> Add:
    """Return the options of segments, with what their defaults are."""
    return group(
        f"segments ({words})",
        option("--offset", "S", "Where the segment of each recording starts, in seconds (default 0.5)", number),
        option("--duration", "S", "How long the segment is at most, in seconds (default 3)", number),
        option("--window", "S", "Cut each recording into windows of this many seconds instead", number),
        option(
            "--hop", "S", "Seconds from the start of one window to the next (default: the length of --window)", number
        ),
        option(
            "--segments",
            "WHICH",
            "speech: stretches of speech; or a list of segments: CSV or Parquet with file,start_s,end_s[,channel][,speaker], RTTM (a file "
            "or a folder), or a table of audformat",
        ),
        option(
            "--channels",
            "WHICH",
            "mix: the mean of a recording's channels; each: rows for each channel; or numbers from 0, e.g. 0,1 (default mix)",
            _channels,
        ),
    )


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        # An abbreviation that is clear today may mean two options tomorrow.
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        # argparse would print the whole usage above the one sentence, and words it as for its own developers.
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            message = f"{missing} {'are' if ',' in missing else 'is'} missing"
        message = re.sub(r": invalid choice: (.*) \(choose from (.*)\)", _name_choices, message)
        message = message.removeprefix("argument ").replace(": must be ", " must be ", 1)
        Said().error(f"{message}; see `{self.prog} --help`", self.prog)
        self.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse would pass over a help that cannot be written.
        if message and file is sys.stdout:
            print_result(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)


def _name_choices(found: re.Match[str]) -> str:
    choices = re.sub(r"'(.*?)'", r"\1", found[2]).replace(", ", " or ")
    return f" must be {choices}: {found[1]}"


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what a command line says; ends the process with one sentence where it is wrong, and where it asks for help."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        # As in `git help COMMAND`. Without a command it is the program's own help.
        words = [*words[1:], "--help"]
    parser, parsers, submitted = make_parsers()
    _require_command(parser, words[:1], parsers)
    if words[:1] == ["submit"]:
        _require_command(parsers["submit"], words[1:2], submitted)
    options, left_over = parser.parse_known_args(words)
    if left_over:
        _refuse((submitted if options.leave else parsers)[options.command], options.command, left_over)
    return options


def make_parsers() -> tuple[argparse.ArgumentParser, Parsers, Parsers]:
    """Return the parser of the program, those of its commands, and those of the commands that can be submitted."""
    parser = _Parser(prog="emotion-batch", description="Label the emotions in a whole archive of recordings.")
    parser.add_argument("-V", "--version", action="version", version=f"emotion-batch {__version__}")
    parsers = _add_commands(parser, (*_ORDER, *(name for name in COMMANDS if name not in _ORDER)), leave=False)
    return parser, parsers, _add_commands(parsers["submit"], _SUBMITTED, leave=True)


def _add_commands(parser: argparse.ArgumentParser, names: Sequence[str], *, leave: bool) -> Parsers:
    """Add commands, which hand a run over if they are to `leave` it; return their parsers by name."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers: Parsers = {}
    for name in names:
        words = _SUBMIT if name == "submit" else COMMANDS[name].words
        one = parsers[name] = commands.add_parser(name, help=words, description=f"{words[:1].upper()}{words[1:]}.")
        if name != "submit":
            one.set_defaults(command=name, leave=leave)
            for add in COMMANDS[name].options:
                add(one)
    return parsers


def _require_command(parser: argparse.ArgumentParser, words: Sequence[str], known: Iterable[str]) -> None:
    """End the process if the word that stands for a command is none; options may stand there as well."""
    for word in words:
        if not word.startswith("-") and word not in known:
            parser.error(f"there is no command {word}{_suggest(word, known)}")


def _refuse(parser: argparse.ArgumentParser, command: str, left_over: Sequence[str]) -> NoReturn:
    """End the process, because a command line has words that its command does not take."""
    if unknown := [word.partition("=")[0] for word in left_over if word.startswith("-")]:
        # argparse has no public list of a parser's options.
        parser.error(f"there is no option {unknown[0]}{_suggest(unknown[0], parser._option_string_actions)}")
    if command in ("extract", "label", "plan"):
        names = "one ARCHIVE" if command == "plan" else "one SOURCE and one TABLE"
        parser.error(
            f"{command} takes {names}; name several recordings by their folder, a glob in quotes ('*.wav'), or a list file with a "
            "name a line"
        )
    parser.error(f"{left_over[0]!r} is one argument too many")


def _suggest(word: str, known: Iterable[str]) -> str:
    """Return a question about what was meant by a word, or nothing if no known word is like it."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def call(function: Callable[..., T], options: argparse.Namespace, /, **others: Any) -> T:
    """Call a function of the API with each option that was given and has the name of a parameter, and with `others`."""
    import inspect

    names = inspect.signature(function).parameters.keys() & vars(options).keys()
    return function(**{name: value for name in names if (value := getattr(options, name)) is not None} | others)


def read_values(options: argparse.Namespace) -> None:
    """Replace what options say as text, or several of them together, by the values that the API takes."""
    if "storage_options" in options:
        options.storage_options = _read_storage_options(options.storage_options)
    if "recipe" in options:
        options.settings = _read_settings(options)
    if "window" in options:
        options.segments = _read_segments(options)
    if "scheduler" in options:
        options.scheduler = _read_scheduler(options)


def _read_scheduler(options: argparse.Namespace) -> Scheduler | None:
    from emotion_batch.run.scheduler import Scheduler

    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if options.scheduler is not None:
        return Scheduler(options.scheduler, *files)
    if any(files):
        raise UsageError("--tls-ca, --tls-cert and --tls-key require --scheduler")
    return None


def _read_settings(options: argparse.Namespace) -> AnySettings | None:
    """Return the feature settings that were asked for; None if nothing was said of them."""
    names = ("sample_rate", "n_mfcc", "n_fft", "hop_length", "n_mels")
    stated = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.recipe is None and not stated:
        return None
    if options.recipe not in (None, "seed") and stated:
        name = next(iter(stated)).replace("_", "-")
        raise UsageError(f"--{name} requires the recipe seed, and the recipe is {options.recipe}")
    from emotion_batch.features.recipes import find_option

    settings: AnySettings = find_option(options.recipe or "seed").settings(**stated)
    return settings


def _read_segments(options: argparse.Namespace) -> Segments | str | None:
    """Return the segments that were asked for; None for windows, which the API makes, and if nothing was said of them."""
    from emotion_batch.settings import Segments

    stretch = {"offset_s": options.offset, "duration_s": options.duration}
    said = {name: value for name, value in stretch.items() if value is not None}
    others = ("offset", "duration", "window", "hop")
    if options.segments is not None and (
        named := [f"--{name}" for name in others if getattr(options, name) is not None]
    ):
        raise UsageError(f"--segments cannot be combined with {named[0]}, because it says which stretches are taken")
    if options.segments is not None:
        return str(options.segments)
    if options.window is None and options.hop is not None:
        raise UsageError("--hop requires --window")
    if said and options.window is not None:
        raise UsageError("--window cannot be combined with --offset or --duration, because windows start at 0")
    is_of_model = options.command == "label" or (options.command == "plan" and not options.extract)
    if len(said) == 1 and is_of_model:
        raise UsageError(
            "--offset and --duration require each other, because together they replace the model's segment"
        )
    return Segments(**said) if said else None


def _read_storage_options(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as stream:
                text = stream.read()
        value = json.loads(text)
    except (OSError, ValueError):
        # Not the text itself: it may hold a key. Nor the cause, whose traceback would.
        raise UsageError("--storage-options must be a JSON object, or @FILE with one") from None
    if not isinstance(value, dict):
        raise UsageError("--storage-options must be a JSON object, and is another JSON value")
    return value
