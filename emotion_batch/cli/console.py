"""Print what a person reads: notes, progress and errors on stderr, results on stdout.

A terminal gets colours, tables as wide as it is, and a bar that moves in place, by rich. Only this module imports rich, and only
then, because that takes a tenth of a second. Everything else gets plain lines. No name is ever read as rich's markup.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

from emotion_batch.errors import OutputError, counted, format_duration

if TYPE_CHECKING:
    from rich.console import Console

    from emotion_batch.progress import Progress, Watcher
    from emotion_batch.tables.parts import Counts

_NEXT = "next:"
_MANY_FILES = 10_000
_PROGRESS_EVERY_S = 10.0
# A bar moves no more often, because a person would not see it.
_MOVES_EVERY_S = 0.05
_USUAL_WIDTH, _LEAST_WIDTH = 80, 20
# A bar has an eighth of the terminal, and this at the least: one as long as the text leaves it would shrink on its way.
_LEAST_BAR = 8
# Columns before a row, and between columns.
_INDENT, _GAP = 2, 2
# A long line is broken only between these: commands, what stands in backquotes, words. So each of them can be copied.
_UNBROKEN = re.compile(r" *(?:(?<=: )\S*emotion-batch .*|`[^`]*`\S*|\S+)")
# A head may be broken into pieces of this length, a cell never.
_LEAST_HEAD = 4


class Line(NamedTuple):
    """One line; a terminal shows its head in a style of rich's, or all of the line if it has no head."""

    text: str
    style: str = ""
    head: str = ""

    def lines(self) -> list[str]:
        """Return the line as a log has it."""
        return [shown(self.head + self.text)]


class Grid(NamedTuple):
    """Rows of cells, which side each column's cells stand on (``<`` or ``>``), and the columns' names if they need any."""

    sides: str
    rows: Sequence[Sequence[str]]
    heads: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return the grid as a log has it."""
        rows = [[shown(cell) for cell in row] for row in ([self.heads] if self.heads else []) + [*self.rows]]
        widths = [max((len(row[at]) for row in rows), default=0) for at in range(len(self.sides))]
        if self.heads:
            rows.insert(1, ["-" * width for width in widths])
        layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(self.sides, widths, strict=True))
        return [f"  {layout.format(*row)}".rstrip() for row in rows]


class Result:
    """What a command says at its end, as lines and grids; a string is a line of text. `str` gives it as a log has it."""

    def __init__(self, *blocks: Line | Grid | str) -> None:
        self.blocks = [Line(block) if isinstance(block, str) else block for block in blocks]

    def __str__(self) -> str:
        return "\n".join(line for block in self.blocks for line in block.lines())


# A line that sums a result up, and one that says what is remarkable or wrong.
title, warn = partial(Line, style="bold"), partial(Line, style="yellow")


def next_step(words: str) -> Line:
    """Return the line that says what to do next."""
    return Line(f" {words}", "bold cyan", _NEXT)


def format_counts(counts: Counts) -> Line:
    """Return how many recordings and rows there are, and what became of them."""
    reasons = ", ".join(f"{status} {n:,}" for status, n in counts.by_status.items() if status != "ok")
    failed = f"{counts.n_failed:,} failed" + (f" ({reasons})" if reasons else "")
    found = f"{counted(counts.n_recordings, 'recording')}, {counted(counts.n_rows, 'row')}"
    return title(f"{found}: {counts.n_ok:,} ok, {failed}")


def format_size(n_bytes: float) -> str:
    """Return a size as people say it, e.g. "12.3 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def shown(text: str) -> str:
    """Return a name as a terminal may show it: on one line, without control characters."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


@dataclass
class Said:
    """What goes to stderr: notes, progress, one sentence for an error; and the answer, which goes to stdout.

    `is_quiet` keeps notes and progress back, `is_debug` shows the traceback of an error, and `is_json` prints the answer as JSON.
    `resumed_by` is the command that continues this one once it has begun its table; "" if the command cannot be continued.
    """

    is_quiet: bool = False
    is_debug: bool = False
    is_json: bool = False
    resumed_by: str = ""

    def __post_init__(self) -> None:
        self._is_terminal = _is_terminal(sys.stderr)
        self._last: Progress | None = None
        self._said_at = -_PROGRESS_EVERY_S
        self._is_in_line = False
        self._phase = ("", 0, 0.0)

    def watcher(self) -> Watcher:
        """Return what a run tells its notes and progress to."""
        from emotion_batch.progress import Watcher

        return Watcher(on_note=self.note, on_progress=self.progress, on_listed=self.listed)

    def note(self, text: str) -> None:
        """Say a sentence that a person should read."""
        if not self.is_quiet:
            self.end_line()
            self._say(Line(text))

    def error(self, text: str, program: str = "emotion-batch") -> None:
        """Say what went wrong, in one sentence."""
        self.end_line()
        if self.is_debug:
            write_stderr(traceback.format_exc)
        self._say(Line(f" {text}", "bold red", f"{program}:"))

    def progress(self, progress: Progress) -> None:
        """Say how far a run is."""
        self._last = progress
        rate = progress.n_done_here / max(progress.elapsed_s, 1e-9)
        left_s = progress.left_s
        if left_s is None:
            left_s = (progress.n_recordings - progress.n_done) / max(rate, 1e-9)
        left = format_duration(round(left_s))
        speed = f"{rate:,.0f} a second"
        if progress.audio_s:
            speed = f"{progress.audio_s / max(progress.elapsed_s, 1e-9):,.0f} x real time"
        n_done, n_recordings, failed = (f"{n:,}" for n in (progress.n_done, progress.n_recordings, progress.n_failed))
        share = progress.n_done / max(1, progress.n_recordings)
        if progress.left_s is not None:
            share = progress.elapsed_s / max(progress.elapsed_s + left_s, 1e-9)
        self._line(
            f"{n_done} of {n_recordings} recordings, {failed} failed, {speed}, {left} left",
            f"{n_done} of {n_recordings}, {failed} failed, {left} left",
            f"{n_done}/{n_recordings}, {left} left",
            f"{share:.0%}, {left} left",
            share=share,
        )

    def listed(self, n_files: int) -> None:
        """Say how far the listing of an archive is, if it is no short one."""
        if n_files >= _MANY_FILES:
            self._line(f"{n_files:,} files listed")

    def read(self, n_done: int, n_parts: int) -> None:
        """Say how far the reading of a table is."""
        self._line(f"{n_done:,} of {n_parts:,} parts read", share=n_done / max(1, n_parts))

    def epoch(self, phase: str, epoch: int, n_epochs: int, figures: Mapping[str, float]) -> None:
        """Show how far a training is: the network, or one of its folds."""
        found = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        now = time.monotonic()
        if self._phase[0] != phase or epoch <= self._phase[1]:
            self._phase = (phase, epoch, now)
        _, first, since_s = self._phase
        left_s = (now - since_s) / max(1, epoch - first) * (n_epochs - epoch)
        left = f", {format_duration(left_s)} left" if epoch > first else ""
        at = f"epoch {epoch} of {n_epochs}{left}"
        self._line(f"{phase}: {at}: {found}", f"{phase}: {at}", at, share=epoch / n_epochs)

    def how_far(self) -> str:
        """Return what to say when a signal stopped the command."""
        if not self.resumed_by:
            return "stopped"
        if self._last is None:
            return "stopped; run the same command again"
        at = f"{self._last.n_done:,} of {counted(self._last.n_recordings, 'recording')}"
        return f"stopped at {at}; to resume: {self.resumed_by}"

    def end_line(self) -> None:
        """End the line that progress is shown in, if it is open."""
        if self._is_in_line:
            write_stderr(lambda: "\n")
            self._is_in_line = False

    def answer(self, found: Any, result: Result) -> None:
        """Print a result, or with ``--json`` what was found: what JSON takes, a dataclass, or a string that is JSON."""
        self.end_line()
        if self.is_json:
            print_result(found if isinstance(found, str) else json.dumps(found, default=vars))
        else:
            print_result(result)

    def _say(self, line: Line) -> None:
        write_stderr(lambda: _render(sys.stderr, line) if self._is_terminal else f"{line.lines()[0]}\n")

    def _line(self, *texts: str, share: float | None = None) -> None:
        """Show progress, the longest text first: in place for a person, a line now and then for a log, and the last one.

        `share` says how far it is, from 0 to 1, for a bar; it is None if the end is unknown.
        """
        now = time.monotonic()
        every_s = _MOVES_EVERY_S if self._is_terminal else _PROGRESS_EVERY_S
        if self.is_quiet or (share != 1 and now - self._said_at < every_s):
            return
        self._said_at = now
        self._is_in_line = self._is_terminal
        write_stderr(
            lambda: f"\r\x1b[K{_render_progress(sys.stderr, share, texts)}" if self._is_terminal else f"{texts[0]}\n"
        )


def print_result(result: Result | str) -> None:
    """Print a result, or a string as it is, for a program; a reader that goes away changes no exit code.

    Raise OutputError if it cannot be written, and not because its reader has gone.
    """
    is_shown = isinstance(result, Result) and _is_terminal(sys.stdout)
    text = _render(sys.stdout, *result.blocks) if isinstance(result, Result) and is_shown else f"{result}\n"
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
    except BrokenPipeError as error:
        # Its frames would live until the process ends, from Python 3.13 on. DuckDB then prints which of its objects they hold.
        error.__traceback__ = None
        _give_up(sys.stdout)
    except OSError as error:
        _give_up(sys.stdout)
        raise OutputError(
            f"stdout: the result could not be written ({error.strerror or error}); what the command did is done"
        ) from error


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


def write_stderr(render: Callable[[], str] = str) -> None:
    """Write to stderr what a function gives, and what is left; if that fails, nothing is left, or Python would exit with 120 over it.

    If its reader is gone, or the disk is full, the work goes on all the same, and there is no other place to say so.
    """
    try:
        # To ask a terminal that was closed what it shows fails as well.
        sys.stderr.write(render())
        sys.stderr.flush()
    except (OSError, ValueError):
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Let a stream without a reader lead nowhere; Python would try once more at its end, and exit with 120."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        # What is left in its buffers goes there too.
        stream.flush()


def _is_terminal(stream: TextIO) -> bool:
    """Return whether a person looks at a stream, on a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _console(stream: TextIO) -> Console:
    """Return rich's view of a terminal as it is now: its width may change, and its encoding says what it can show."""
    from rich.console import Console

    try:
        # A terminal whose width is not set says 0.
        width = max(_LEAST_WIDTH, os.get_terminal_size(stream.fileno()).columns or _USUAL_WIDTH)
    except (OSError, ValueError):
        width = _USUAL_WIDTH
    return Console(
        file=stream,
        width=width,
        force_terminal=True,
        # Without colours there are no bold letters either: https://no-color.org
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        emoji=False,
        highlight=False,
    )


def _render(stream: TextIO, *blocks: Line | Grid) -> str:
    """Return what shows lines and grids on a terminal; rich would end the process if the reader of a stream has gone."""
    from rich.text import Text

    console = _console(stream)
    with console.capture() as captured:
        for block in blocks:
            if isinstance(block, Grid):
                _print_grid(console, block)
            else:
                head = (shown(block.head), block.style)
                text = (_fill(block, console.width), "" if block.head else block.style)
                console.print(Text.assemble(head, text), soft_wrap=True)
    return captured.get()


def _fill(line: Line, width: int) -> str:
    """Return a line's text, broken between words for a terminal's width; the next step stays whole."""
    from rich.cells import cell_len

    text, column = shown(line.text), cell_len(shown(line.head))
    if line.head == _NEXT or column + cell_len(text) <= width:
        return text
    indent = "" if line.head else " " * (len(text) - len(text.lstrip()))
    filled = ""
    for piece in _UNBROKEN.findall(text):
        if filled and column + cell_len(piece) > width:
            piece, column = indent + piece.lstrip(), 0
            filled += "\n"
        filled += piece
        column += cell_len(piece)
    return filled


def _render_progress(stream: TextIO, share: float | None, texts: Sequence[str]) -> str:
    """Return one line, with no line's end, of a bar and the first of `texts` that leaves room for it."""
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    console = _console(stream)
    bars = [] if share is None else [ProgressBar(1.0, share, max(_LEAST_BAR, console.width // 8))]
    # The last column stays free: a terminal moves on to the next line behind it.
    room = console.width - 1 - sum((bar.width or 0) + 1 for bar in bars)
    lines = [Text(shown(text)) for text in texts]
    text = next((line for line in lines if line.cell_len <= room), lines[-1])
    text.truncate(room, overflow="ellipsis")
    with console.capture() as captured:
        console.print(*bars, Text(" ").join([Text()] * len(bars) + [text]), end="")
    return captured.get()


def _print_grid(console: Console, grid: Grid) -> None:
    """Show a grid as a table, or, if the terminal is too narrow for that, row by row."""
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    heads = [shown(head).strip() for head in grid.heads] or [""] * len(grid.sides)
    rows = [[shown(cell) for cell in row] for row in grid.rows]
    # A column without cells and without a name has nothing to say.
    columns = [at for at, head in enumerate(heads) if head or any(row[at] for row in rows)]
    widths = [max((cell_len(row[at]) for row in rows), default=0) for at in columns]
    wanted = [max(width, cell_len(heads[at])) for at, width in zip(columns, widths, strict=True)]
    least = [max(width, min(_LEAST_HEAD, head)) for width, head in zip(widths, wanted, strict=True)]
    # Some versions of rich leave a gap behind the last column too.
    room = console.width - _INDENT - _GAP * len(columns)
    if sum(least) > room:
        for row in rows:
            for number, at in enumerate(columns):
                if row[at] or not number:
                    words = " ".join(filter(None, (heads[at], row[at])))
                    text = _fill(Line(f"{'    ' if number else '  '}{words}"), console.width)
                    console.print(Text(text, "" if number else "bold"), soft_wrap=True)
        return
    # By hand, because rich would break cells to leave heads whole.
    while (left := room - sum(least)) and (short := [at for at, width in enumerate(least) if width < wanted[at]]):
        for at in short[:left]:
            least[at] += 1
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=any(heads), header_style="bold")
    for at, width in zip(columns, least, strict=True):
        justify = "right" if grid.sides[at] == ">" else "left"
        table.add_column(Text(heads[at], overflow="fold"), justify=justify, width=width)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(row[at]) for at in columns))
    console.print(Padding(table, (0, 0, 0, _INDENT), expand=False))
