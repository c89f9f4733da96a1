"""Tests of what a terminal shows, on a real one, and of what a pipe gets."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from support.commands import ROOT, run_command
from support.review_tables import HOSTILE, LABELS, answer_truly, fill, write_table
from support.terminal import SEQUENCE, UNSET, VARIABLES, Looking, Screen

import emotion_batch
from emotion_batch.cli import app, console
from emotion_batch.cli.console import Grid, Line, Result, print_result
from emotion_batch.cli.report_commands import format_review, format_sheet


def look(
    do: Callable[[], object],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str] | None = None,
    streams: Sequence[str] = ("stdout", "stderr"),
) -> bytes:
    """Do something in this process whose streams are a terminal; return what came there."""
    looking = Looking(width)
    variables = {**VARIABLES, **(environment or {})}
    with monkeypatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        with open(looking.theirs, "w", encoding=variables["PYTHONIOENCODING"]) as stream:
            for name in streams:
                patch.setattr(sys, name, stream)
            do()
    return looking.end()


def call(
    *arguments: object,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    code: int = 0,
    streams: Sequence[str] = ("stdout", "stderr"),
) -> bytes:
    """Give a command on a terminal; return what came there."""
    codes = []
    data = look(
        lambda: codes.append(app.run_command([os.fspath(one) for one in arguments])),
        width,
        monkeypatch,
        streams=streams,
    )
    assert codes == [code], data
    return data


def tell() -> None:
    """Say what a run says, by the same object as in a run, some of it slowly enough to be shown."""
    import time

    from emotion_batch.cli.console import Grid, Result, Said, next_step, print_result, title
    from emotion_batch.progress import Progress

    said = Said(is_quiet=False, is_debug=False, resumed_by="emotion-batch resume labels")
    said.note("a note about [bold]calls[/bold] \x1b[2J")
    for n_files in (10_000, 20_000):
        said.listed(n_files)
        time.sleep(0.06)
    for n_done in range(0, 1_000_001, 100_000):
        said.progress(Progress(1_000_000, n_done, n_done // 1_000, n_done, n_done / 1_234))
        time.sleep(0.06)
    said.end_line()
    said.epoch("fold 1 of 2", 3, 4, {"loss": 0.5, "accuracy": 0.25})
    said.error("calls: there are no recordings; [link=http://127.0.0.1]look[/link]")
    rows = [("angry", "1,000", "33.3%", "[blink]calls\n.wav"), ("sad", "2", "0.1%", "x" * 30)]
    grid = Grid("<>><", rows, ("emotion", "labels", "share", "an example of it"))
    print_result(Result(title("[red]labels[/red]: 3 parts"), grid, next_step("emotion-batch verify labels")))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_bar_moves_in_place(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is one line that is never wrapped, notes and errors stand above and below it, markup is text."""
    data = look(tell, width, monkeypatch)
    screen = Screen(data, width)
    assert {"m", "K"} == screen.kinds
    bars = [line for line in screen.lines if line.rstrip().endswith(" left")]
    (bar,) = bars
    assert bar.startswith("━━━━━━━━")
    assert len(bar) < width
    # Each of the steps was shown in that line, and the bar grew.
    frames = [SEQUENCE.sub("", frame) for frame in data.decode().split("\r\x1b[K")]
    steps = [frame for frame in frames if " left" in frame]
    assert len(steps) == 11
    assert all(len(frame.split("\r\n")[0]) < width for frame in steps)
    # What is done is in another colour than what is left.
    lengths = [
        sum(len(piece) for colour, piece in re.findall(r"\x1b\[([0-9;]+)m([━╸╺]+)", raw) if colour != "38;5;237")
        for raw in data.decode().split("\r\x1b[K")
        if " left" in raw
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[5] < lengths[-1]
    text = " ".join(" ".join(screen.written).split())
    assert r"a note about [bold]calls[/bold] \x1b[2J" in text
    assert "emotion-batch: calls: there are no recordings; [link=http://127.0.0.1]look[/link]" in text
    assert "[red]labels[/red]: 3 parts" in text
    assert r"[blink]calls\n.wav" in text
    assert "files listed" not in text
    assert "]8;" not in data.decode()
    assert screen.lines[-2].rstrip() == "next: emotion-batch verify labels"


@pytest.mark.parametrize("width", [40, 80])
def test_a_table_fits_its_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `review` shows has no line of its table wrapped, each number whole, and what a log says, word for word."""
    table, sheet = tmp_path / "t", tmp_path / "s.csv"
    write_table(table, [f"{at:04d}.wav" for at in range(500)])
    screen = Screen(call("review", table, sheet, "--size", "60", width=width, monkeypatch=monkeypatch), width)
    assert "m" in screen.kinds
    assert f"next: emotion-batch review {table} {sheet} --take" in screen.text.replace("\n", "")
    fill(sheet, answer_truly)
    shown = Screen(call("review", table, sheet, "--take", width=width, monkeypatch=monkeypatch), width)
    plain = str(format_review(emotion_batch.take_review(table, sheet, force=True)))
    grid = [line for line in plain.splitlines() if " to " in line and line.startswith("  ")]
    # The precision by confidence, and the share of each label.
    assert len(grid) == 6 + len(LABELS)
    for number_of, line in enumerate(grid):
        of, *cells = re.split(r"\s{2,}", line.strip())
        # The table of the shares is narrow enough for each of these terminals.
        if width >= 80 or number_of >= 6:
            (row,) = [one for one in shown.lines if one.strip().startswith(of + " ")]
            assert re.split(r"\s{2,}", row.strip()) == [of, *cells]
        else:
            at = next(number for number, one in enumerate(shown.lines) if one.strip() == f"confidence {of}")
            for cell in cells:
                assert any(one.rstrip().endswith(f" {cell}") for one in shown.lines[at + 1 : at + 5]), (
                    cell,
                    shown.text,
                )


def test_each_kind_of_figure_is_readable_where_it_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any width no cell is broken: what is too wide for a table is shown row by row."""
    rows = [(f"label{at}", *(f"{at * 1_000 + of:,}" for of in range(7))) for at in range(3)]
    grid = Grid("<" + ">" * 7, rows, ("true", *(f"surprise{at}" for at in range(7))))
    for width in (20, 40, 60, 80, 120):
        data = look(lambda: print_result(Result(grid)), width, monkeypatch)
        screen = Screen(data, width)
        assert screen.n_wrapped == 0
        words = re.findall(r"[0-9,]+", re.sub(r"(surprise|label)\d|surp|rise\d?", "", screen.text))
        for row in rows:
            for cell in row[1:]:
                assert cell in words, (width, cell, screen.text)


def test_a_log_gets_columns_as_wide_as_their_cells() -> None:
    """Without a terminal a table has each cell on its side, a rule below its heads, and no blank at a line's end."""
    rows = [("sad", "2", ""), ("angry", "1,000", "two\nlines")]
    assert Grid("<><", rows, ("emotion", "n", "why")).lines() == [
        "  emotion      n  why",
        "  -------  -----  ----------",
        "  sad          2",
        r"  angry    1,000  two\nlines",
    ]
    assert Grid("<><", rows).lines() == ["  sad        2", r"  angry  1,000  two\nlines"]
    assert Grid("<><", []).lines() == []


@pytest.mark.parametrize(
    ("environment", "kinds"),
    [
        pytest.param({"NO_COLOR": "1"}, {"K"}, id="no colour"),
        pytest.param({"TERM": "dumb"}, set(), id="dumb"),
        pytest.param({"PYTHONIOENCODING": "ascii"}, {"K", "m"}, id="ascii"),
    ],
)
def test_a_terminal_gets_what_it_can(
    environment: dict[str, str], kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR leaves movement alone, a dumb terminal gets the lines of a log, one of ASCII no other signs."""
    data = look(tell, 80, monkeypatch, environment)
    screen = Screen(data, 80)
    assert screen.kinds == kinds
    assert "1,000,000 of 1,000,000" in screen.text
    if "PYTHONIOENCODING" in environment:
        assert data.isascii()
        assert "-----" in screen.text
    if "TERM" in environment:
        assert "10,000 files listed" in screen.text
        assert b"\r\x1b" not in data


def test_a_pipe_gets_no_escape_sequence() -> None:
    """Through a pipe neither stream has any, whatever the environment asks for; rich is not imported."""
    script = f"{inspect.getsource(tell)}\ntell()\nimport sys; assert 'rich' not in sys.modules"
    done = run_command(program=("-c", script), environment={"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert "\r" not in done.out + done.err
    assert done.err.splitlines()[:3] == [
        r"a note about [bold]calls[/bold] \x1b[2J",
        "10,000 files listed",
        "1,000,000 of 1,000,000 recordings, 1,000 failed, 1,234 a second, 0 s left",
    ]
    assert done.out.splitlines()[-1] == "next: emotion-batch verify labels"


def test_only_the_stream_that_is_looked_at_is_coloured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With stdout in a pipe and stderr on a terminal, the result is plain; `--json` is plain everywhere."""
    table = tmp_path / "t"
    write_table(table, [f"{at:04d}.wav" for at in range(100)])
    data = call("review", table, tmp_path / "s", width=80, monkeypatch=monkeypatch, streams=["stderr"])
    assert b"\x1b[K" in data
    piped = capsys.readouterr().out
    assert "\x1b" not in piped
    assert "next: " in piped
    assert b"\x1b" not in call("review", table, tmp_path / "j", "--json", "--quiet", width=80, monkeypatch=monkeypatch)
    data = call("review", tmp_path / "none", tmp_path / "s", width=40, monkeypatch=monkeypatch, code=2)
    assert b"\x1b[1;31memotion-batch:\x1b[0m" in data


def test_a_process_on_a_terminal(tmp_path: Path) -> None:
    """The command itself, started on a terminal, shows its progress, its result and an error there."""
    write_table(tmp_path / "t", [f"{at:04d}.wav" for at in range(100)])
    looking = Looking(80)
    variables = {name: value for name, value in os.environ.items() if name not in UNSET}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "emotion_batch", "review", tmp_path / "t", tmp_path / "s"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), looking.theirs),
        cwd=ROOT,
        env={**variables, **VARIABLES},
    )
    os.close(looking.theirs)
    assert process.wait(60) == 0
    screen = Screen(looking.end(), 80)
    assert screen.kinds == {"m", "K"}
    assert re.search(r"^━━━━━━━━━━ \d+ of \d+ parts read$", screen.text, re.MULTILINE)
    assert "next: emotion-batch review" in screen.text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text_on_a_terminal(name: str) -> None:
    """No name moves the cursor, breaks a line, or is taken for markup, in lines, cells, notes and bars."""
    blocks = (
        Line(f"{name}: 3"),
        Grid("<>", [(name, "1")], ("a", name)),
        console.next_step(name),
        Line(name, "bold", "a:"),
    )
    text = console._render(sys.__stdout__, *blocks) + console._render_progress(sys.__stdout__, 0.5, [name])
    for part in text.split("\n"):
        assert SEQUENCE.sub("", part).isprintable()
    assert set(re.findall(r"\x1b\[[0-9;]*(.)", text)) <= {"m"}
    assert text.count(console.shown(name)) >= 3


def test_each_command_says_what_is_next(features: Path, labels: Path, bundle: Path) -> None:
    """`status`, `verify` and `evaluate` end with what to type, for a whole table and for one that is not."""
    for arguments, words in (
        (("status", features), f"next: emotion-batch retry {features}"),
        (("verify", features), f"next: emotion-batch retry {features}"),
        (("verify", labels), f"next: emotion-batch review {labels} SHEET.csv"),
        (
            ("evaluate", bundle, features, "--robustness", "0"),
            f"next: emotion-batch label RECORDINGS TABLE --model {bundle}",
        ),
    ):
        done = run_command(*arguments)
        assert done.code == 0, done.err
        assert words in done.out.splitlines()[-2:], done.out


def test_what_a_shell_would_split_is_quoted(tmp_path: Path) -> None:
    """The command that comes next can be pasted, whatever the table is called."""
    written = emotion_batch.review(
        write_table(tmp_path / "my labels", [f"{at:04d}.wav" for at in range(100)]).url, tmp_path / "a $sheet.csv"
    )
    (last,) = format_sheet(written, f"{tmp_path}/my labels").blocks[-1].lines()
    assert last == f"next: emotion-batch review '{tmp_path}/my labels' '{tmp_path}/a $sheet.csv' --take"
