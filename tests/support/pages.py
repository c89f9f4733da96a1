"""The pages of the documentation as tests read them: their blocks, what a block printed, and a shell that runs one."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from emotion_batch.cli.options import read_arguments
from emotion_batch.errors import EmotionBatchError
from support.commands import ROOT, Finished, call_command

DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
RUN = ("sh", "python", "sql")
_FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*) *(?P<mark>[^\n]*)\n(?P<text>.*?)^(?P=fence) *$", re.MULTILINE | re.DOTALL
)
_NUMBER = re.compile(r"\d+\.\d+")
# What a probability may differ by on a processor of another kind, and by its rounding.
_TOLERANCE = 0.011
# Starts no Python of its own with a library in it: a block has some five commands, and each would import for a second.
_PROGRAM = """#!{python} -ISs
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    asked.sendall(json.dumps([os.getcwd(), *sys.argv[1:]]).encode())
    asked.shutdown(socket.SHUT_WR)
    with asked.makefile("rb") as answer:
        code, out, err = json.loads(answer.read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page and line, its language, what stands behind the language, and its text."""

    page: str
    line: int
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        """The block's page and line."""
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether a test runs the block."""
        return self.language in RUN and not self.mark


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    return [
        Block(name, text.count("\n", 0, one.start()) + 1, one["language"], one["mark"], one["text"])
        for one in _FENCE.finditer(text)
    ]


def is_as_shown(shown: str, printed: str) -> bool:
    """Return whether a command printed what a page shows.

    Blanks may be wider, decimal fractions may differ by a hundredth, ``...`` stands for the rest of a line, and for any lines if it
    is a line by itself.
    """
    pattern, numbers = "", []
    for line in shown.strip().splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
            continue
        numbers += [float(one) for one in _NUMBER.findall(line)]
        words = [re.escape(word) for word in _NUMBER.sub("\0", line).split()]
        pattern += r"[ \t]*" + r"[ \t]+".join(words).replace(re.escape("\0"), r"(\d+\.\d+)").replace(r"\.\.\.", ".*")
        pattern += r"[ \t]*\n"
    found = re.fullmatch(pattern, printed.strip() + "\n")
    return found is not None and all(
        abs(float(one) - number) <= _TOLERANCE for one, number in zip(found.groups(), numbers, strict=True)
    )


@dataclass
class PageShell:
    """A shell in a folder, whose ``emotion-batch`` is a command of this process.

    A run uses the cluster that is there already, a training learns for one epoch, and an evaluation changes five recordings, because
    the test asks whether the lines run. All else is as it is printed.

    Attributes
    ----------
    printed
        What each command has printed last, by the command's name.
    """

    folder: Path
    scheduler: str
    printed: dict[str, str] = field(default_factory=dict)

    def run(self, text: str) -> Finished:
        """Run lines by ``bash -e``, which ends at the first that fails."""
        with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listening:
            address = f"{place}/asked"
            listening.bind(address)
            listening.listen()
            program = Path(place, "emotion-batch")
            program.write_text(_PROGRAM.format(python=os.path.realpath(sys.executable), address=address))
            program.chmod(0o755)
            with Path(place, "out").open("w+b") as out, Path(place, "err").open("w+b") as err:
                path = f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}"
                process = subprocess.Popen(
                    ["bash", "-e", "-c", text],
                    cwd=self.folder,
                    env={**os.environ, "PATH": path, "PYTHONPATH": os.fspath(ROOT)},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                )
                while process.poll() is None:
                    if select.select([listening], [], [], 0.02)[0]:
                        self._answer(listening)
                said = []
                for stream in (out, err):
                    stream.seek(0)
                    said.append(stream.read().decode())
        return Finished(process.returncode, *said)

    def _answer(self, listening: socket.socket) -> None:
        asked, _ = listening.accept()
        with asked, asked.makefile("rb") as question:
            folder, *words = json.loads(question.read())
            os.chdir(folder)
            done = call_command(*words, *self._shorten(words))
            self.printed[words[0]] = done.out
            asked.sendall(json.dumps([done.code, done.out, done.err]).encode())

    def _shorten(self, words: list[str]) -> list[str]:
        """Return the options that make a command of a page cheap enough for a test."""
        try:
            options = read_arguments(words)
        except (SystemExit, EmotionBatchError):
            # A call for help, or one that is wrong, which then says so.
            return []
        if options.command == "train":
            return ["--epochs", "1", "--max-folds", "0"]
        if options.command == "evaluate":
            return ["--robustness", "5"]
        is_run = getattr(options, "scheduler", "absent") is None
        is_printed = options.command == "label" and options.table is None
        return ["--scheduler", self.scheduler] if is_run and not is_printed else []
