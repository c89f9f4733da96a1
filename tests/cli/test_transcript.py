"""What a person reads after some forty calls, right and wrong, as one file to be read as a whole: `transcript.txt`.

``WRITE_TRANSCRIPT=1 .venv/bin/python -m pytest tests/cli/test_transcript.py`` writes it anew; read what has changed before it is kept.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

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
# What differs from run to run or from machine to machine.
_VOLATILE = (
    (r"\d{8}T\d{6}Z-[0-9a-f]{8}", "RUN"),
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
