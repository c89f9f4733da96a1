"""Read command lines as `commands.json` declares them: every command, and each option that several of them share once.

`command` stands above the function that runs a command. `read_arguments` reads a command line; `read_values` turns what it says
into the values that the API takes.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from emotion_batch._version import __version__
from emotion_batch.cli.console import Said, print_result
from emotion_batch.errors import UsageError

if TYPE_CHECKING:
    from emotion_batch.run.scheduler import Scheduler
    from emotion_batch.settings import AnySettings, Segments

T = TypeVar("T")
# It returns its exit code, or None for 0.
Run = Callable[[argparse.Namespace, Said], int | None]
Parsers = dict[str, argparse.ArgumentParser]

# The functions that run the commands, by name; `commands.json` has their words and options.
COMMANDS: dict[str, Run] = {}
_CHANNELS = re.compile("mix|each|[0-9]+(,[0-9]+)*")
_SUBMITTED = ("extract", "label", "resume", "retry")


def command(name: str) -> Callable[[Run], Run]:
    """Declare that a function runs a command of `commands.json`."""
    return lambda run: COMMANDS.setdefault(name, run)


def _read(convert: Callable[[str], Any], is_right: Callable[[str], Any], words: str, text: str) -> Any:
    """Return the value of an option; `words` say in an error what it must be."""
    with contextlib.suppress(ValueError):
        if is_right(text):
            return convert(text)
    raise argparse.ArgumentTypeError(f"must be {words}: {text!r}")


def _channels(text: str) -> str | list[int]:
    return text if text in ("mix", "each") else [int(number) for number in text.split(",")]


def _is_limit(text: str) -> bool:
    return (float(text[:-1]) if text.endswith("%") else int(text)) >= 0


# The functions that read the value of an option, by their names in `commands.json`.
_READERS: Mapping[str, Callable[[str], Any]] = {
    "text": str,
    "int": int,
    "number": partial(_read, float, lambda text: True, "a number"),
    "whole": partial(_read, int, lambda text: int(text) >= 0, "a whole number of at least 0"),
    "positive": partial(_read, int, lambda text: int(text) >= 1, "a whole number of at least 1"),
    "channels": partial(_read, _channels, _CHANNELS.fullmatch, "mix, each or numbers from 0, e.g. 0,1"),
    "limit": partial(_read, str, _is_limit, "a number such as 10, or a share such as 5%"),
}


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
    declared = json.loads(resources.files(__package__).joinpath("commands.json").read_bytes())
    parser = _Parser(prog="emotion-batch", description="Label the emotions in a whole archive of recordings.")
    parser.add_argument("-V", "--version", action="version", version=f"emotion-batch {__version__}")
    parsers = _add_commands(parser, declared, declared["commands"], leave=False)
    return parser, parsers, _add_commands(parsers["submit"], declared, _SUBMITTED, leave=True)


def _add_commands(parser: argparse.ArgumentParser, declared: Any, names: Iterable[str], *, leave: bool) -> Parsers:
    """Add commands, which hand a run over if they are to `leave` it; return their parsers by name."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers: Parsers = {}
    for name in names:
        words = declared["commands"][name]["words"]
        one = parsers[name] = commands.add_parser(name, help=words, description=f"{words[:1].upper()}{words[1:]}.")
        if name != "submit":
            one.set_defaults(command=name, leave=leave)
            _add_options(one, declared["commands"][name]["options"], declared["shared"])
    return parsers


def _add_options(place: Any, options: Sequence[Any], shared: Mapping[str, Any]) -> None:
    """Add options to a parser or a group: each is a name of shared ones, a group with a title, or what argparse takes."""
    for one in options:
        if isinstance(one, str):
            _add_options(place, shared[one], shared)
        elif "group" in one:
            _add_options(place.add_argument_group(one["group"]), one["options"], shared)
        else:
            settings = {key: value for key, value in one.items() if key not in ("name", "short", "read")}
            if "action" not in one or "metavar" in one:
                settings["type"] = _READERS[one.get("read", "text")]
            place.add_argument(*filter(None, (one.get("short"), one["name"])), **settings)


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
    from emotion_batch.settings import BY_SILERO, SPEECH, FeatureSettings

    stretch = {"offset_s": options.offset, "duration_s": options.duration}
    said = {name: value for name, value in stretch.items() if value is not None}
    named = [f"--{name}" for name in ("offset", "duration", "window", "hop") if getattr(options, name) is not None]
    if options.segments is not None and named:
        raise UsageError(f"--segments cannot be combined with {named[0]}, because it says which stretches are taken")
    if options.vad == "silero":
        if options.segments != SPEECH:
            raise UsageError(f"--vad requires --segments {SPEECH}")
        return BY_SILERO
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
    of_recipe = (getattr(options, "settings", None) or FeatureSettings()).segments
    return replace(of_recipe, **said) if said else None


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
