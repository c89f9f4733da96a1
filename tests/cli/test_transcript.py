"""What a person reads after some forty calls, right and wrong, as one file to be read as a whole: `transcript.txt`.

``WRITE_TRANSCRIPT=1 .venv/bin/python -m pytest tests/cli/test_transcript.py`` writes it anew; read what has changed before it is kept.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from support.review_tables import write_table
from support.terminal import UNSET, Looking, Screen

from emotion_batch.cli import app

GOLDEN = Path(__file__).with_name("transcript.txt")
# In a folder with an archive `calls`, its feature table `features`, a `bundle`, and a label table `labels`.
CALLS = """
--version
help
label --help
help query
label calls/V1_angry/V1_back_angry.wav --model bundle
label calls new --model bundle --limit 6 --workers 1
label calls new --model bundle --limit 6 --workers 1
status new
status labels
verify labels
verify features --deep
query labels --example mix
query labels "SELECT emotion, count(*) AS n FROM labels WHERE status = 'ok' GROUP BY emotion ORDER BY emotion LIMIT 3"
export labels exported --format csv
export labels labels.csv
export labels labels.csv
plan --recipe voices calls
review labels sheet.csv --size 20
report labels --output report.html
cancel labels
labl calls new
label calls new --modle bundle
label nowhere other
label calls/V1_angry/V1_back_angry.wav calls/V1_sad/V1_back_sad.wav
label calls new other
label calls new --hop 1
label calls new --window 3 --offset 1
label calls new --model nowhere
label calls --model bundle
label calls calls --model bundle
label labels other --model bundle
label features other --model bundle --limit 5
extract calls features --n-mfcc 13
extract calls other --workers 0
extract calls other --max-failed few
extract calls other --storage-options {key
extract calls far --scheduler tcp://127.0.0.1:9
submit label calls other --model bundle
submit lable calls other
train calls other
train labels other
train features other --held-out 2
train features other --labels mood
train features bundle
evaluate bundle labels
evaluate nowhere features
import calls/V1_angry/V1_back_angry.wav other --labels angry,sad
query labels "SELECT file FROM calls"
query labels "DROP TABLE labels"
query labels
query labels "SELECT 1" --format parquet
export labels exported --format xml
export labels exported
review labels sheet.csv
review labels sheet.csv --labels words.csv
review labels sheet.csv --take
status nowhere
verify --dep labels
report calls
retry features --status tired
demo calls
"""
# The calls that a terminal is tried with: help, lines, tables, notes, progress and errors. `grüße` is a table of hostile names.
SHOWN = """
--help
label --help
status labels
verify features
query labels --example mix
query labels --example failed
query grüße "SELECT file, emotion FROM labels ORDER BY file"
review labels sheet.csv --size 20 --force
export labels exported --format csv --force
label calls new other
labl grüße
label labels other --model bundle
status grüße/nowhere
"""
# It gives each call in one process, because to start thirteen takes as many seconds. No glob and no blank is in the names.
_GIVE = """
import sys
from emotion_batch.__main__ import main
for line in sys.argv[1].strip().splitlines():
    print(f"$ {line}", flush=True)
    main(__import__("shlex").split(line))
    sys.stderr.flush()
"""
# What cannot be broken: one word, a command, or what stands in backquotes.
_UNBROKEN = re.compile(r"\s*\S+|next: .*|emotion-batch [a-z]+ .*|\s*`[^`]*`\S*")
_PROGRESS = re.compile(r".*( left| parts read)")
# What differs from run to run or from machine to machine.
_VOLATILE = (
    (r"\d{8}T\d{6}Z-[0-9a-f]{8}", "RUN"),
    # On a busy machine nothing is refused before the time is over.
    (r"answers there \((ConnectionRefusedError|OSError): [^)]*\)", "answers there (REASON)"),
    (r"model [0-9a-f]{16}", "model ID"),
    (r"made now in [\d.]+ m?s\b", "made now in N s"),
    (r"\d+,?\d* recordings a second", "N recordings a second"),
    (r"for [\d.]+ m?s\b", "for TIME"),
    (r"127\.0\.0\.1:\d{4,}", "127.0.0.1:PORT"),
    (r"[\d,]+ a second", "N a second"),
    (r"[\d,]+ x real time", "N x real time"),
    (r"^.*N (a second|x real time), \d.* left\n", ""),
    (r"\d[\d.]* [kM]B\b", "N MB"),
    (r"(\d\.\d\d)\d+", r"\1.."),
    (r"\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d [A-Z+-]?\w+", "TIME"),
)


@pytest.fixture
def desk(
    speech: Path, features: Path, bundle: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder in which a person works."""
    for name, there in (("calls", speech), ("features", features), ("bundle", bundle), ("labels", labels)):
        shutil.copytree(there, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def test_what_a_person_reads(desk: Path, features: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each call prints what `transcript.txt` has, and ends with its exit code; no call gives a traceback."""
    said = []
    for line in CALLS.strip().splitlines():
        try:
            code = app.run_command(shlex.split(line))
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        text = f"{captured.out}{captured.err}".rstrip()
        for place, name in ((desk, "~"), (features.parent, "~"), (speech, "~/calls")):
            text = text.replace(os.fspath(place), name)
        for pattern, words in _VOLATILE:
            text = re.sub(pattern, words, text, flags=re.MULTILINE)
        said.append(f"$ emotion-batch {line}\n{text}\n[exit code {code}]\n")
    found = "\n".join(said)
    assert "Traceback" not in found
    if os.environ.get("WRITE_TRANSCRIPT"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")


@pytest.fixture
def hostile(desk: Path) -> Path:
    """The same folder with a label table of names that are not plain ASCII."""
    write_table(desk / "grüße", ["Müller/größer.wav", "naïve – 2.wav", "[red]x[/red].wav", "a\tb.wav"])
    return desk


def give(folder: Path, width: int | None, environment: Mapping[str, str]) -> tuple[list[str], bytes]:
    """Give the calls of `SHOWN` on a terminal of a width, or into a pipe; return the lines that were written, and all bytes."""
    variables = {name: value for name, value in os.environ.items() if name not in UNSET} | dict(environment)
    command = [sys.executable, "-P", "-c", _GIVE, SHOWN]
    if width is None:
        done = subprocess.run(
            command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
        )
        return done.stdout.decode().splitlines(), done.stdout
    looking = Looking(width)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), looking.theirs)
    process = subprocess.Popen(command, cwd=folder, env={**variables, "TERM": "xterm-256color"}, **streams)
    os.close(looking.theirs)
    assert process.wait(60) == 0
    data = looking.end()
    return Screen(data, width).written, data


def count_words(lines: Sequence[str]) -> Counter[str]:
    """Return each word of lines and how often it stands there, without progress and the rules below heads."""
    kept = "\n".join(line for line in lines if not _PROGRESS.fullmatch(line) and set(line) - set(" -"))
    for pattern, words in _VOLATILE:
        # A narrow terminal may break a line at any blank.
        kept = re.sub(pattern.replace(" ", r"\s+"), words, kept, flags=re.MULTILINE)
    return Counter(kept.split())


def test_a_terminal_shows_what_a_pipe_gets(hostile: Path) -> None:
    """On 80 and on 200 columns no word is missing, and no line is too long unless it is a path or a command."""
    piped, data = give(hostile, None, {"COLUMNS": "80"})
    assert b"\x1b" not in data
    assert "  Müller/größer.wav  " in "\n".join(piped)
    for width in (80, 200):
        shown, _ = give(hostile, width, {})
        assert [line for line in shown if len(line) > width and not _UNBROKEN.fullmatch(line)] == []
        assert count_words(piped) - count_words(shown) == Counter()


def test_the_locale_c_and_no_colour_take_nothing_away(hostile: Path) -> None:
    """`LC_ALL=C` changes no byte of what is printed, and with `NO_COLOR` a terminal gets the same words without colours."""
    lines, _ = give(hostile, None, {"COLUMNS": "78"})
    plain, _ = give(hostile, None, {"COLUMNS": "78", "LC_ALL": "C", "LANG": "C"})
    assert count_words(lines) == count_words(plain)
    shown, data = give(hostile, 80, {"LC_ALL": "C", "LANG": "C", "NO_COLOR": "1"})
    assert set(re.findall(rb"\x1b\[[0-9;]*([A-Za-z])", data)) == {b"K"}
    assert count_words(plain) - count_words(shown) == Counter()
