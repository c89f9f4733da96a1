"""A terminal of a given width, and what a person sees on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
import threading

# A sequence of escape: colours, erasures, movements.
SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Screen:
    """What a terminal of a width shows of what was written to it, as far as we write to one.

    Attributes
    ----------
    lines
        What each of its lines shows.
    kinds
        The final letters of the sequences that came.
    n_wrapped
        Lines that went on in the next because they were too long.
    """

    def __init__(self, data: bytes, width: int) -> None:
        self.lines, self.kinds, self.n_wrapped = [""], set[str](), 0
        self._width, self._row, self._column = width, 0, 0
        self._continued = set[int]()
        text = data.decode()
        at = 0
        while at < len(text):
            if text[at] == "\x1b":
                match = SEQUENCE.match(text, at)
                assert match is not None, text[at : at + 20]
                self.kinds.add(match[2])
                if match[2] == "K":
                    assert match[1] in ("", "0")
                    self.lines[self._row] = self.lines[self._row][: self._column]
                else:
                    # Neither does anything move up, nor is the cursor hidden, which a kill would leave so.
                    assert match[2] == "m", match[0]
                at = match.end()
                continue
            self._put(text[at])
            at += 1

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._next_line()
        else:
            assert character.isprintable(), repr(character)
            if self._column == self._width:
                self.n_wrapped += 1
                self._next_line()
                self._continued.add(self._row)
                self._column = 0
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    def _next_line(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")

    @property
    def written(self) -> list[str]:
        """The lines as they were written, without blanks at their ends."""
        lines = list[str]()
        for row, line in enumerate(self.lines):
            if row in self._continued:
                lines[-1] += line
            else:
                lines.append(line)
        return [line.rstrip() for line in lines]

    @property
    def text(self) -> str:
        """All lines, without blanks at their ends."""
        return "\n".join(line.rstrip() for line in self.lines)


class Looking:
    """A person at a terminal. A thread reads what comes, because a terminal holds only little unread text."""

    def __init__(self, width: int) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
        self._data = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        # At its end reading fails.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._ours, 65_536):
                self._data += chunk

    def end(self) -> bytes:
        """Return all that came, once no process writes any more."""
        self._reader.join(60)
        os.close(self._ours)
        return self._data


# What a terminal's environment lacks and has, whatever the environment of the tests is.
UNSET = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM")
VARIABLES = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
