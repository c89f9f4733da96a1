"""Print what a person reads: notes, progress and errors on stderr, results on stdout.

A terminal gets colours, tables and a bar by `cli.terminal`, which is imported only then. Everything else gets plain lines.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, TextIO

from emotion_batch.cli.results import Line, Result, Role, format_duration, shown
from emotion_batch.errors import OutputError

if TYPE_CHECKING:
    from emotion_batch.cli.terminal import Terminal
    from emotion_batch.progress import Progress, Watcher
    from emotion_batch.tables.parts import Counts

_MANY_FILES = 10_000
_PROGRESS_EVERY_S = 10.0
# Of a bar that moves; more often than that nobody sees.
_MOVES_EVERY_S = 0.05


def open_streams() -> None:
    """Let the three standard streams lead nowhere where the caller has closed them.

    Otherwise a file that is opened next gets the number of a closed stream, and what a library prints goes into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free, which is this one.
            os.open(os.devnull, os.O_RDWR)
    # Python has no stream where it found none.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 it stays open
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 it stays open


def flush_stderr() -> None:
    """Write what is left for stderr; if that fails, nothing is left, for Python would exit with 120 over it."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _give_up(sys.stderr)


class Said:
    """What goes to stderr: notes, progress, one sentence for an error.

    Parameters
    ----------
    is_quiet
        Whether notes and progress are kept back.
    is_debug
        Whether an error's traceback is shown.
    goes_on
        Whether the same command goes on where it was stopped.
    """

    def __init__(self, *, is_quiet: bool, is_debug: bool, goes_on: bool) -> None:
        self._is_quiet = is_quiet
        self._is_debug = is_debug
        self._goes_on = goes_on
        self._is_terminal = _is_terminal(sys.stderr)
        self._last: Progress | None = None
        self._said_at = -_PROGRESS_EVERY_S
        self._is_in_line = False

    def watcher(self) -> Watcher:
        """Return what a run tells its notes and progress to."""
        from emotion_batch.progress import Watcher

        return Watcher(on_note=self.note, on_progress=self.progress, on_listed=self.listed)

    def note(self, text: str) -> None:
        """Say a sentence that a person should read."""
        if not self._is_quiet:
            self.end_line()
            self._say(Line(text))

    def error(self, text: str) -> None:
        """Say what went wrong, in one sentence."""
        self.end_line()
        if self._is_debug:
            self._write(traceback.format_exc())
        self._say(Line(f"emotion-batch: {text}", Role.ERROR))

    def progress(self, progress: Progress) -> None:
        """Say how far a run is."""
        self._last = progress
        rate = progress.n_done_here / max(progress.elapsed_s, 1e-9)
        left = format_duration((progress.n_recordings - progress.n_done) / max(rate, 1e-9))
        n_done, n_recordings, failed = (f"{n:,}" for n in (progress.n_done, progress.n_recordings, progress.n_failed))
        share = progress.n_done / max(1, progress.n_recordings)
        self._line(
            f"{n_done} of {n_recordings} recordings, {failed} failed, {rate:,.0f} a second, {left} left",
            f"{n_done} of {n_recordings}, {failed} failed, {left} left",
            f"{n_done}/{n_recordings}, {left} left",
            f"{share:.0%}, {left} left",
            share=share,
            is_last=progress.n_done == progress.n_recordings,
        )

    def listed(self, n_files: int) -> None:
        """Say how far the listing of an archive is, if it is no short one."""
        if n_files >= _MANY_FILES:
            self._line(f"{n_files:,} files listed")

    def read(self, n_done: int, n_parts: int) -> None:
        """Say how far the reading of a table is."""
        self._line(f"{n_done:,} of {n_parts:,} parts read", share=n_done / max(1, n_parts), is_last=n_done == n_parts)

    def epoch(self, phase: str, epoch: int, n_epochs: int, figures: Mapping[str, float]) -> None:
        """Show how far a training is: the network, or one of its folds."""
        found = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self._line(
            f"{phase}: epoch {epoch} of {n_epochs}: {found}",
            f"{phase}: epoch {epoch} of {n_epochs}",
            f"epoch {epoch} of {n_epochs}",
            share=epoch / n_epochs,
            is_last=epoch == n_epochs,
        )

    def how_far(self) -> str:
        """Return what to say when a signal stopped the command."""
        if not self._goes_on:
            return "stopped"
        at = f" at {self._last.n_done:,} of {self._last.n_recordings:,} recordings" if self._last else ""
        return f"stopped{at}; run the same command again, it goes on from there"

    def end_line(self) -> None:
        """End the line that progress is shown in, if it is open."""
        if self._is_in_line:
            self._write("\n")
            self._is_in_line = False

    def _say(self, line: Line) -> None:
        self._write(_terminal(sys.stderr).render(Result(line)) if self._is_terminal else f"{shown(line.text)}\n")

    def _write(self, text: str) -> None:
        # Nobody may be reading: the work goes on all the same.
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            # Also on a full disk: there is no other place to say it.
            _give_up(sys.stderr)

    def _line(self, *texts: str, share: float | None = None, is_last: bool = False) -> None:
        """Show progress: in place for a person, a line now and then for a log, which gets the longest text."""
        if self._is_quiet:
            return
        now = time.monotonic()
        every_s = _MOVES_EVERY_S if self._is_terminal else _PROGRESS_EVERY_S
        if not is_last and now - self._said_at < every_s:
            return
        self._said_at = now
        if self._is_terminal:
            self._write(f"\r\x1b[K{_terminal(sys.stderr).render_progress(share, texts)}")
            self._is_in_line = True
        else:
            self._write(f"{texts[0]}\n")


def print_result(result: Result | str) -> None:
    """Print a result; whoever reads no further changes neither what was done nor its exit code.

    Parameters
    ----------
    result
        What a person reads; as a string, it is printed as it is, for a program.

    Raises
    ------
    OutputError
        If it cannot be written, and not because its reader has gone.
    """
    text = f"{result}\n"
    if isinstance(result, Result) and _is_terminal(sys.stdout):
        text = _terminal(sys.stdout).render(result)
    with _writing_out():
        sys.stdout.write(text)
        sys.stdout.flush()


def print_stream(write: Callable[[BinaryIO], None]) -> None:
    """Let a result be written to stdout as it comes; a reader that goes away ends it. Raises what `print_result` does."""
    with _writing_out():
        sys.stdout.flush()
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _writing_out() -> Iterator[None]:
    """Give stdout up if it cannot be written within the block; raise OutputError unless only its reader has gone."""
    try:
        yield
    except BrokenPipeError:
        _give_up(sys.stdout)
    except OSError as error:
        _give_up(sys.stdout)
        raise OutputError(
            f"stdout: the result could not be written ({error.strerror or error}); what the command did is done"
        ) from error


def _is_terminal(stream: TextIO) -> bool:
    """Return whether a person looks at a stream, on a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _terminal(stream: TextIO) -> Terminal:
    # rich takes a tenth of a second, which a log need not wait for.
    from emotion_batch.cli.terminal import Terminal

    return Terminal(stream)


def _give_up(stream: TextIO) -> None:
    """Let a stream that nobody reads lead nowhere; Python would try once more at its end, and exit with 120."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        # What is left in its buffers goes there too.
        stream.flush()


def format_counts(counts: Counts) -> Line:
    """Return how many recordings and rows there are, and what became of them."""
    reasons = ", ".join(f"{status} {n:,}" for status, n in counts.by_status.items() if status != "ok")
    failed = f"{counts.n_failed:,} failed" + (f" ({reasons})" if reasons else "")
    return Line(
        f"{counts.n_recordings:,} recordings, {counts.n_rows:,} rows: {counts.n_ok:,} ok, {failed}", Role.COUNTS
    )
