"""The lines and tables of a command's result, before it is known whether a terminal or a log shows them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple


class Role(Enum):
    """What a line is, for a terminal that tells them apart."""

    TEXT = auto()
    TITLE = auto()
    NOTE = auto()
    ERROR = auto()
    COUNTS = auto()
    NEXT = auto()


class Line(NamedTuple):
    """One line; what breaks lines in it is shown as text.

    Attributes
    ----------
    text
        What it says.
    role
        What it is.
    """

    text: str
    role: Role = Role.TEXT

    def lines(self) -> list[str]:
        """Return it as a log has it."""
        return [shown(self.text)]


class Grid(NamedTuple):
    """Rows of cells.

    Attributes
    ----------
    layout
        How a log has a row: a format with a field a cell, as ``"  {:<12} {:>10}"``.
    rows
        The cells.
    heads
        Names of the columns; none where they speak for themselves.
    rule
        What a log has between names and cells; "" for no line there.
    """

    layout: str
    rows: Sequence[Sequence[str]]
    heads: Sequence[str] = ()
    rule: str = ""

    def lines(self) -> list[str]:
        """Return it as a log has it."""
        rows = [self.heads, *self.rows] if self.heads else self.rows
        lines = [shown(self.layout.format(*row).rstrip()) for row in rows]
        return [*lines[:1], self.rule, *lines[1:]] if self.rule else lines


class Result:
    """What a command says at its end; as a string, it is plain lines.

    Parameters
    ----------
    *blocks
        Its lines and grids, in order; a string is a line of text.
    """

    def __init__(self, *blocks: Line | Grid | str) -> None:
        self.blocks = [Line(block) if isinstance(block, str) else block for block in blocks]

    def __str__(self) -> str:
        """Return it as a log has it."""
        return "\n".join(line for block in self.blocks for line in block.lines())


def next_step(words: str) -> Line:
    """Return the line that says what to do next."""
    return Line(f"next: {words}", Role.NEXT)


def format_duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, seconds = divmod(round(min(seconds, 3.6e8)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def shown(text: str) -> str:
    """Return a name as a terminal may show it: on one line, without control characters."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
