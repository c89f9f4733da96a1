"""The command, in a process of its own or in this one, and where the checkout and the data are."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from unittest import mock

from emotion_batch.cli import app

ROOT = Path(__file__).parents[2]


TESS_UNPACKER = ROOT.parent / "shared" / "data" / "unpack_tess"


# .ci/run sets it: there, what a test needs must be there.
MUST_HAVE_DATA = os.environ.get("EMOTION_BATCH_REQUIRE_DATA") == "1"


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, object]:
        """What ``--json`` printed."""
        return json.loads(self.out)


def run_command(
    *arguments: object,
    timeout_s: float = 300,
    program: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run ``emotion-batch`` (or another Python program) in a process of its own."""
    command = [sys.executable, *(program or ("-P", "-m", "emotion_batch")), *(os.fspath(one) for one in arguments)]
    # Below 64 columns argparse wraps its sentences.
    variables = {**os.environ, "COLUMNS": "200", **(environment or {})}
    done = subprocess.run(command, capture_output=True, timeout=timeout_s, env=variables, cwd=ROOT, check=False)
    # Replacing, for what is not UTF-8 in an output must fail a test and not the reading of it.
    return Finished(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


@contextlib.contextmanager
def _logging_to(stream: io.TextIOWrapper) -> Iterator[None]:
    """Let what libraries log to stderr go to a stream within the block, as it goes to that of a process of its own."""

    def handlers() -> Iterator[logging.StreamHandler[TextIO]]:
        for logger in (logging.getLogger(), *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                if type(handler) is logging.StreamHandler:
                    yield handler

    before = sys.stderr
    found = {handler: handler.setStream(stream) for handler in handlers()}
    try:
        yield
    finally:
        # A library that was imported within the block has found the stream there.
        for handler in handlers():
            if handler.stream is stream:
                handler.setStream(found.get(handler) or before)


def call_command(*arguments: object) -> Finished:
    """Run ``emotion-batch`` in this process, for tests of what it does: a process takes seconds to import all that it needs."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        _logging_to(err),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = app.run_command([os.fsdecode(one) for one in arguments])
    for stream in (out, err):
        stream.flush()
    return Finished(code, *(stream.buffer.getvalue().decode(errors="replace") for stream in (out, err)))


@contextlib.contextmanager
def running(
    *arguments: object, own_session: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``emotion-batch`` and go on beside it; what still runs at the end of the block is killed."""
    command = [sys.executable, "-P", "-m", "emotion_batch", *(os.fspath(one) for one in arguments)]
    pipe = subprocess.PIPE

    def listen_to_ctrl_c() -> None:
        # A shell starts what it puts into the background deaf to it, and that is inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        start_new_session=own_session,
        preexec_fn=listen_to_ctrl_c,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_parts(table: Path, n_parts: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a run has published so many parts."""
    deadline = time.monotonic() + 60
    while len(list(table.glob("*.parquet"))) < n_parts:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
