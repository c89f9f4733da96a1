"""Run one command: call its function, turn errors and signals into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
from collections.abc import Iterator, Sequence

# These declare the commands.
from emotion_batch.cli import model_commands, plan_commands, report_commands, run_commands, table_commands  # noqa: F401
from emotion_batch.cli.console import Said, open_streams, write_stderr
from emotion_batch.cli.options import COMMANDS, read_arguments, read_values
from emotion_batch.errors import EmotionBatchError, OutputError, find_shortage, format_command

# A further signal within this time of the first is taken for the same one.
_ENDING_S = 10.0


class _Stopped(BaseException):
    """SIGTERM or SIGHUP, raised where the program stands, so that everything it opened is closed."""


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default this process's own, given without the program's name; return its exit code.

    It is 0 if every recording has its row, 1 if not or a check does not hold, 2 if the call is wrong or refused, 130, 143 and 129
    after SIGINT, SIGTERM and SIGHUP.
    """
    open_streams()
    try:
        options = read_arguments(arguments)
    except SystemExit as stop:
        write_stderr()
        return int(stop.code or 0)
    except OutputError as error:
        # The call was for help.
        Said().error(str(error))
        return error.exit_code
    # A training, an import and the demo begin anew, and so does a label without a table.
    continued = {"extract": "resume", "label": "resume", "resume": "resume", "retry": "retry"}.get(options.command)
    said = Said(
        is_quiet=options.quiet,
        is_debug=options.debug,
        is_json=getattr(options, "json", False),
        resumed_by=format_command(continued, options.table) if continued and options.table else "",
    )
    # A terminal that cannot show a name must not end a finished run.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with stoppable():
        try:
            read_values(options)
            return COMMANDS[options.command](options, said) or 0
        except BaseException as error:
            return explain(error, said)
        finally:
            said.end_line()
            write_stderr()


def explain(error: BaseException, said: Said) -> int:
    """Say in a sentence why a command ended, and return its exit code."""
    if isinstance(error, EmotionBatchError):
        said.error(str(error))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | _Stopped):
        said.error(said.how_far())
        return 128 + (signal.SIGINT if isinstance(error, KeyboardInterrupt) else error.args[0])
    if not isinstance(error, Exception):
        raise error
    shortage = find_shortage(error)
    said.error(
        f"unexpected {type(error).__name__}: {error}; with --debug there is a traceback to report"
        if shortage is None
        else f"this machine does not have enough {shortage} ({str(error) or type(error).__name__}); end other programs, or "
        "raise the limit (`ulimit -a` shows it), then run the same command again"
    )
    return 1


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
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


if __name__ == "__main__":
    sys.exit(run_command())
