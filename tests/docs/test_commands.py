"""Tests that each command of README and of the pages in docs/ runs as it is printed, and prints what is shown below it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
import soundfile
from conftest import make_once, succeed
from support.commands import ROOT, call_command
from support.pages import DOCS, PAGES, RUN, PageShell, is_as_shown, read_blocks
from support.review_tables import fill
from support.shell_cluster import ShellCluster

from emotion_batch.example import synthesis

# Pages that begin with a finished table; on the others the commands make what they need.
HAVE_LABELS = {"faq.md", "how-to/analysts.md", "how-to/failures.md", "how-to/review.md"}
SHOWN = ("text", "toml")


def write_calls(folder: Path, corpus: Path) -> None:
    """Write calls of two people, each with a channel."""
    for number, year in enumerate(("2025", "2026", "2026", "2026")):
        voices = []
        for voice, emotions in (("V1", ("neutral", "angry", "sad")), ("V2", ("happy", "fear", "neutral"))):
            words = [sorted((corpus / f"{voice}_{emotion}").glob("*.wav"))[number % 3] for emotion in emotions]
            voices.append(np.concatenate([soundfile.read(word)[0] for word in words]))
        length = max(map(len, voices))
        samples = np.stack([np.pad(one, (0, length - len(one))) for one in voices], axis=1)
        path = folder / year / f"call-{number + 1:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, synthesis.SAMPLE_RATE_HZ, subtype="PCM_16")


@pytest.fixture(scope="session")
def desk(cluster: ShellCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: recordings under the names that the commands give them, and labels of some."""

    def make(folder: Path) -> None:
        synthesis.write_archive(folder / "recordings", n_words=1)
        synthesis.write_archive(folder / "corpus", n_words=3)
        write_calls(folder / "calls", folder / "corpus")
        shutil.copy(folder / "calls" / "2026" / "call-02.wav", folder / "call.wav")
        (folder / "map.txt").write_text("ps = happy\n")
        answers = ("neutral", "angry", "happy")
        heard = [
            (path.relative_to(folder / "calls"), one) for path in sorted(folder.glob("calls/*/*")) for one in (0, 1)
        ]
        reviewed = [f"{name},0.0,{one},{answers[number % 3]}" for number, (name, one) in enumerate(heard)]
        (folder / "reviewed.csv").write_text("\n".join(("file,start_s,channel,emotion", *reviewed)) + "\n")
        table = folder / "made" / "labels"
        succeed(call_command("label", folder / "recordings", table, "--scheduler", cluster.address))

    return make_once(tmp_path_factory, "desk", make)


@pytest.mark.parametrize(
    "page",
    [
        # It trains three times; other tests, of every run, train as well.
        pytest.param(page, marks=pytest.mark.torture if page.name == "labels.md" else ())
        for page in PAGES
        if any(block.is_run for block in read_blocks(page))
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_commands_of_a_page_run(
    page: Path,
    desk: Path,
    cluster: ShellCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """All blocks of a page run one after another in one folder, and what a page shows of an output was printed."""
    blocks = read_blocks(page)
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, ignore=shutil.ignore_patterns("made"))
    if page.is_relative_to(DOCS) and str(page.relative_to(DOCS)) in HAVE_LABELS:
        shutil.copytree(desk / "made" / "labels", folder / "labels")
    if any("emotion_audio_model.h5" in block.text for block in blocks):
        bundle: Path = request.getfixturevalue("bundle")
        shutil.copy(bundle.with_suffix(".h5"), folder / "emotion_audio_model.h5")
    monkeypatch.chdir(folder)
    shell = PageShell(folder, cluster.address)
    for block in blocks:
        os.chdir(folder)
        if block.mark.startswith("output: "):
            printed = shell.printed[block.mark.removeprefix("output: ")]
            assert is_as_shown(block.text, printed), f"{block.where}: it printed\n{printed}"
        elif not block.is_run:
            continue
        elif block.language == "sh":
            if "--take" in block.text:
                # A person does this, between two blocks. The page of the same rows saves the same sheet, among the downloads.
                fill(folder / "sheet.csv", lambda cells: Path(cells["file"]).stem.split("_")[-1])
                shutil.copy(folder / "sheet.csv", folder / "page.csv")
            done = shell.run(block.text)
            assert done.code == 0, f"{block.where}: {done.out}{done.err}"
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, block.where, "exec"), {"__name__": "page"})  # noqa: S102  (it is our own page)
            assert out.getvalue(), block.where
        else:
            with duckdb.connect() as connection:
                statements = connection.extract_statements(block.text)
                assert statements, block.where
                for statement in statements:
                    connection.execute(statement)


def test_a_block_that_does_not_run_says_why() -> None:
    """Every block has a language; the only marks are a reason, and the name of the command whose output it shows."""
    blocks = [block for page in PAGES for block in read_blocks(page)]
    assert [block.where for block in blocks if block.language not in (*RUN, *SHOWN)] == []
    marks = re.compile(r"no-run: \w+(?: [^ ]+){3,}|output: \w+")
    assert [block.where for block in blocks if block.mark and not marks.fullmatch(block.mark)] == []
    assert [block.where for block in blocks if block.mark.startswith("output") and block.language != "text"] == []
    n_run = sum(block.is_run for block in blocks)
    n_left = sum(block.mark.startswith("no-run") for block in blocks)
    assert n_run > 2 * n_left


def test_no_fence_is_passed_over() -> None:
    """The reader of pages finds as many blocks as there are fences."""
    for page in PAGES:
        n_fences = sum(line.startswith("```") for line in page.read_text().splitlines())
        assert n_fences == 2 * len(read_blocks(page)), page


@pytest.mark.parametrize(
    ("shown", "is_right"),
    [
        pytest.param("angry  3  0.51\nsad 1 0.2", True, id="the same within a hundredth"),
        pytest.param("angry  3  0.53\nsad 1 0.2", False, id="another probability"),
        pytest.param("angry  4  0.51\nsad 1 0.2", False, id="another count"),
        pytest.param("angry  3  0.51", False, id="a line less"),
        pytest.param("angry  3  0.51\n...", True, id="a line left out"),
        pytest.param("angry ...\nsad 1 0.2", True, id="the rest of a line left out"),
        pytest.param("happy ...\n...", False, id="another label"),
    ],
)
def test_an_output_is_compared(shown: str, is_right: bool) -> None:
    """What is shown is what was printed, but for blanks, the last digit and what is left out."""
    assert is_as_shown(shown, "  angry  3  0.505\n  sad    1  0.201\n") is is_right


def test_a_line_that_fails_fails_its_block(
    tmp_path: Path, cluster: ShellCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command with an exit code of its own ends the block there with that code."""
    monkeypatch.chdir(tmp_path)
    done = PageShell(tmp_path, cluster.address).run("emotion-batch status nothing/\ntouch later\n")
    assert (done.code, (tmp_path / "later").exists()) == (2, False)
    assert "nothing" in done.err
