"""Run a script of ``jobs/``: the settings in the script, or the words of the command line if there are any."""

from __future__ import annotations

import argparse
import contextlib
import sys
from types import TracebackType
from typing import TYPE_CHECKING

from emotion_batch.cli.app import explain, run_command, stoppable
from emotion_batch.cli.console import Said, open_streams, write_stderr
from emotion_batch.cli.model_commands import format_card
from emotion_batch.cli.run_commands import finish

if TYPE_CHECKING:
    from emotion_batch.inference.card import Card
    from emotion_batch.progress import Watcher
    from emotion_batch.run.record import Summary


class Script:
    """A block that ends the process as the command would: with a sentence for an error, and an exit code.

    If the script was given words, these are run as the command instead, and the block is not.
    Its `watcher` takes notes and progress, and shows them on stderr.
    """

    watcher: Watcher

    def __init__(self, command: str) -> None:
        self._command = command
        self._code = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Script:
        if sys.argv[1:]:
            sys.exit(run_command([self._command, *sys.argv[1:]]))
        open_streams()
        # A training begins anew.
        self._said = Said(resumed_by="" if self._command == "train" else "run this job again")
        self.watcher = self._said.watcher()
        self._stack.enter_context(stoppable())
        return self

    def show(self, found: Summary | Card, bundle: str = "") -> None:
        """Print what the job left behind: the summary of a run, or the card of the bundle that was trained."""
        from emotion_batch.run.record import Summary

        if isinstance(found, Summary):
            options = argparse.Namespace(command=self._command, table=found.table, leave=False, max_failed=None)
            self._code = finish(found, options, self._said)
        else:
            self._said.answer({}, format_card(found, bundle))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        code = self._code if error is None else explain(error, self._said)
        self._stack.close()
        self._said.end_line()
        write_stderr()
        sys.exit(code)
