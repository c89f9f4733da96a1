"""Print for a terminal: colours, tables as wide as the terminal, and a bar that moves in place. Only this module imports rich.

Everything is made into text first and written elsewhere. No name is ever read as rich's markup.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from emotion_batch.cli.results import Grid, Line, Result, Role, shown

_USUAL_WIDTH, _LEAST_WIDTH = 80, 20
# A bar has an eighth of the terminal, and this at the least: one as long as the text leaves it would shrink on its way.
_LEAST_BAR = 8
# Before a row, and between columns.
_INDENT, _GAP = 2, 2
# A head may be broken into pieces of this length, a cell never.
_LEAST_HEAD = 4
_FIELD = re.compile(r"\{:?([<>]?)[^}]*\}")
_STYLES = {Role.TITLE: "bold", Role.NOTE: "yellow", Role.TEXT: "", Role.COUNTS: "bold"}
# A line's first word that has a colour of its own.
_HEADS = {Role.NEXT: ("next:", "bold cyan"), Role.ERROR: ("emotion-batch:", "bold red")}


class Terminal:
    """A terminal, as it is when something is shown: its width may change, and its encoding says what it can show.

    Parameters
    ----------
    stream
        What leads to it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def render(self, result: Result) -> str:
        """Return what shows a command's result, with a line's end at its end."""
        console = self._console()
        for block in result.blocks:
            if isinstance(block, Line):
                # Not broken by us, so that a path or command can be copied.
                console.print(_styled(block), soft_wrap=True)
            else:
                _print_grid(console, block)
        return _taken(console)

    def render_progress(self, share: float | None, texts: Sequence[str]) -> str:
        """Return one line that shows how far something is, with no line's end.

        Parameters
        ----------
        share
            How far, from 0 to 1, for a bar; None where the end is unknown.
        texts
            What it says, the longest first; the first is taken that leaves room for a bar.
        """
        console = self._console()
        # The last column stays free: a terminal moves on to the next line behind it.
        width = console.width - 1
        n_bar = 0 if share is None else max(_LEAST_BAR, console.width // 8)
        room = width - n_bar - 1 if n_bar else width
        lines = [shown(text) for text in texts]
        text = next((line for line in lines if cell_len(line) <= room), lines[-1])
        table = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        cells: list[ProgressBar | Text] = []
        if share is not None:
            table.add_column(width=n_bar)
            cells.append(ProgressBar(total=1.0, completed=share, width=n_bar))
        table.add_column(no_wrap=True, max_width=room, overflow="ellipsis")
        table.add_row(*cells, Text(text))
        console.print(table)
        return _taken(console).rstrip("\n")

    def _console(self) -> Console:
        try:
            # Of a width that nobody has set it is 0.
            width = max(_LEAST_WIDTH, os.get_terminal_size(self._stream.fileno()).columns or _USUAL_WIDTH)
        except (OSError, ValueError):
            width = _USUAL_WIDTH
        # Where there is to be no colour, there is no bold either: https://no-color.org
        colours = None if os.environ.get("NO_COLOR") else "auto"
        return Console(
            file=_Sink(self._stream.encoding),
            width=width,
            force_terminal=True,
            color_system=colours,  # type: ignore[arg-type]
            markup=False,
            emoji=False,
            highlight=False,
        )


class _Sink(io.StringIO):
    """Text in memory that will go where it can be encoded so."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What it will be encoded in, by which rich tells whether there are lines to draw with."""
        return self._encoding


def _taken(console: Console) -> str:
    sink = console.file
    assert isinstance(sink, io.StringIO)  # noqa: S101 as `_console` made it
    return sink.getvalue()


def _styled(line: Line) -> Text:
    text = shown(line.text)
    if line.role in _HEADS:
        word, style = _HEADS[line.role]
        if text.startswith(word):
            return Text.assemble((word, style), text[len(word) :])
    return Text(text, _STYLES.get(line.role, ""))


def _print_grid(console: Console, grid: Grid) -> None:
    """Show a grid as a table, or, where it is too narrow for that, row by row."""
    heads = [shown(head).strip() for head in grid.heads]
    rows = [[shown(cell) for cell in row] for row in grid.rows]
    aligned = [match[1] for match in _FIELD.finditer(grid.layout)]
    # A column without cells and without a name has nothing to say.
    columns = [at for at in range(len(aligned)) if (heads and heads[at]) or any(row[at] for row in rows)]
    widths = [max((cell_len(row[at]) for row in rows), default=0) for at in columns]
    wanted = [max(width, cell_len(heads[at]) if heads else 0) for at, width in zip(columns, widths, strict=True)]
    least = [max(width, min(_LEAST_HEAD, head)) for width, head in zip(widths, wanted, strict=True)]
    # Some versions of rich leave a gap behind the last column too.
    room = console.width - _INDENT - _GAP * len(columns)
    if sum(least) > room:
        _print_rows(console, heads, rows, columns)
        return
    # By hand, for rich would break cells to leave heads whole.
    while (left := room - sum(least)) and (short := [at for at, width in enumerate(least) if width < wanted[at]]):
        for at in short[:left]:
            least[at] += 1
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=bool(heads), header_style="bold")
    for at, width in zip(columns, least, strict=True):
        head = Text(heads[at] if heads else "", overflow="fold")
        table.add_column(head, justify="right" if aligned[at] == ">" else "left", width=width)
    for row in rows:
        table.add_row(*(Text(row[at]) for at in columns))
    console.print(Padding(table, (0, 0, 0, _INDENT), expand=False))


def _print_rows(console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> None:
    for row in rows:
        first, *others = columns
        console.print(Text(f"  {row[first]}", "bold"), soft_wrap=True)
        for at in others:
            if row[at]:
                name = f"{heads[at]} " if heads and heads[at] else ""
                console.print(Text(f"    {name}{row[at]}"), soft_wrap=True)
