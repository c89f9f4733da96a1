"""Tests of ``resume``: the run that made a table goes on from what the table itself says."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.commands import call_command

import emotion_batch
from emotion_batch.cli.console import Said, format_size
from emotion_batch.cli.run_commands import _format_summary
from emotion_batch.cli.table_commands import format_status
from emotion_batch.errors import UsageError, format_command, format_duration, format_time
from emotion_batch.progress import Progress
from emotion_batch.run.record import Summary
from emotion_batch.tables.lease import Holder
from emotion_batch.tables.parts import Counts
from emotion_batch.tables.status import TableStatus


def rows(table: Path) -> list[dict[str, object]]:
    """Return the rows of a table, by recording."""
    return sorted(pq.read_table(table).to_pylist(), key=lambda row: (row["file"], row["start_s"] or 0.0))


def test_a_table_resumes_with_its_own_settings(speech: Path, bundle: Path, tmp_path: Path) -> None:
    """Suffixes, patterns, segments, model and the table of features come from the table, and only what is left is done."""
    archive, table, kept = tmp_path / "calls", tmp_path / "labels", tmp_path / "kept"
    shutil.copytree(speech / "V1_sad", archive)
    for number, path in enumerate(sorted(archive.glob("*.wav"))[:3]):
        path.rename(path.with_suffix(".call" if number else ".skipped"))
    first = ("label", archive, table, "--model", bundle, "--keep-features", kept, "--window", "1", "--hop", "0.5")
    choice = ("--suffix", ".call", "--suffix", ".wav", "--exclude", "*_calm_*")
    assert call_command(*first, *choice, "--limit", "2").code == 0
    assert len({row["file"] for row in rows(table)}) == 2
    done = call_command("resume", table)
    assert done.code == 0, done.err
    whole = tmp_path / "whole"
    assert call_command(*first[:2], whole, *first[3:5], *first[7:], *choice).code == 0
    assert rows(table) == rows(whole)
    assert len(rows(kept)) == len(rows(table))
    assert f"next: emotion-batch query {table} --example mix" in done.out
    # What it was made with is in the table, and another suffix is another archive.
    other = call_command(*first, "--exclude", "*_calm_*")
    assert other.code == 2 and "--suffix .call --suffix .wav" in other.err


def test_features_and_labels_of_features_resume(speech: Path, bundle: Path, tmp_path: Path) -> None:
    """A feature table that has lost a part, and then the labels made from it, are whole again."""
    features, labels = tmp_path / "features", tmp_path / "labels"
    emotion_batch.extract(speech, features, segments=emotion_batch.Segments(0.0, 1.0))
    before = rows(features)
    emotion_batch.label(features, labels, model=bundle)
    for table in (features, labels):
        next(iter(sorted(table.glob("*.parquet")))).unlink()
    assert emotion_batch.resume(features, workers=1).n_shards_done == 1
    assert rows(features) == before
    summary = emotion_batch.resume(labels)
    assert summary.n_shards_done == 1 and summary.counts.n_recordings == 89
    status = call_command("status", labels)
    assert status.code == 0 and "next: emotion-batch resume" not in status.out


def test_a_table_without_its_model_does_not_resume(labels: Path, tmp_path: Path) -> None:
    """One sentence says what is missing; what is no table at all is one as well."""
    table = tmp_path / "labels"
    shutil.copytree(labels, table)
    (table / "_table" / "model" / "card.json").unlink()
    with pytest.raises(UsageError, match="its copy of the model is damaged or missing"):
        emotion_batch.resume(table)
    done = call_command("resume", tmp_path / "nothing")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1


def test_a_table_says_which_suffixes_it_has(speech: Path, tmp_path: Path) -> None:
    """`table.json` names them if they are not the usual ones, and nothing otherwise."""
    for name, suffixes, said in (("usual", None, []), ("named", [".wav"], [".wav"])):
        keywords = {} if suffixes is None else {"suffixes": suffixes}
        emotion_batch.extract(speech / "V1_sad", tmp_path / name, workers=1, **keywords)
        info = json.loads((tmp_path / name / "_table" / "table.json").read_text())
        assert info["suffixes"] == said


@pytest.mark.parametrize(
    ("typed", "is_found", "said"),
    [
        ("/opt/a b/emotion-batch", False, "'/opt/a b/emotion-batch' resume ./-t"),
        ("/opt/emotion-batch", True, "emotion-batch resume ./-t"),
        ("/opt/job.py", False, "emotion-batch resume ./-t"),
    ],
)
def test_what_is_printed_runs_as_it_is(typed: str, is_found: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is not on PATH is named by the path by which it was called."""
    monkeypatch.setattr("sys.argv", [typed])
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if is_found else None)
    assert format_command("resume", "-t") == said


def test_a_run_says_what_it_heard_and_what_to_believe() -> None:
    """Seconds heard of those recorded, shares of labels in doubt, and nothing where nothing can be told."""
    counts = Counts(10, 10, {"ok": 8, "empty": 2}, {"ps": 8}, {"is_speech": 6, "is_in_domain": 8, "is_confident": 1})
    said = str(_format_summary(Summary("labels", counts, audio_s=60, recorded_s=6_000, model="model m"), "go"))
    assert "  ps (pleasant surprise)  8  100.0%\n" in said
    assert "  heard: 1 min of 1 h 40 min of audio (1%); to hear all of it, name a new table and use --window\n" in said
    assert "  labels: 12.5% confident, 25.0% not speech\n  model m\n" in said
    chosen = str(_format_summary(Summary("labels", counts, audio_s=60, recorded_s=6_000, is_selective=True), "go"))
    assert "  heard: 1 min of 1 h 40 min of audio (1%)\n" in chosen
    assert "10 recordings, 10 rows: 8 ok, 2 failed (empty 2)" in said
    heard = replace(counts, by_label={"ps": 5, "sad": 3}, speech_by_label={"ps": 5, "sad": 1})
    said = str(_format_summary(Summary("labels", heard), "go"))
    assert "  ps (pleasant surprise)  5  83.3%\n  sad                     1  16.7%\n" in said
    assert "  labels: 12.5% confident, 25.0% not speech, which the shares leave out\n" in said
    whole = str(_format_summary(Summary("labels", Counts(1, 1, {"ok": 1}), audio_s=3.0, recorded_s=3.0), "go"))
    assert "  heard: all of 3 s of audio\n" in whole and "  labels:" not in whole
    assert "1 recording, 1 row: 1 ok, 0 failed" in whole
    assert "heard" not in str(_format_summary(Summary("labels", Counts(1, 1, {"empty": 1})), "go"))


def test_sizes_durations_and_times_are_what_people_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two units at most, no zeros, and a time of day as clocks here show it, with its zone."""
    durations = (0, 0.04, 3.21, 9.96, 59.6, 312, 3_599.6, 5_751, 7_199.9, 90_000, 3.6e7)
    assert [format_duration(seconds) for seconds in durations] == [
        *("0 s", "40 ms", "3.2 s", "10 s", "1 min", "5 min 12 s"),
        *("1 h", "1 h 36 min", "2 h", "25 h", "10,000 h"),
    ]
    sizes = (0, 12, 999.6, 1_234_567, 999_700_000, 5e12)
    assert [format_size(one) for one in sizes] == ["0 bytes", "12 bytes", "1 kB", "1.23 MB", "1 GB", "5.0 TB"]
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        said = format_time(datetime(2026, 7, 1, 22, 30, tzinfo=UTC))
        counts = {"counts": Counts(), "at_work": (), "cancelled": ()}
        lost = Holder("r", "other", 1, 0.0, 1_790_000_000.0)
        last = {"run": "r", "outcome": "complete", "ended": "2026-01-01T08:00:00+00:00"}
        shown = str(
            format_status(TableStatus("t", "labels", "a", 1, 1, 1, 1, lost=(lost,), last_run=last, **counts), "t")
        )
    finally:
        monkeypatch.undo()
        time.tzset()
    assert said == "2026-07-02 00:30:00 CEST"
    assert "its last heartbeat was at 2026-09-21 16:13:20 CEST" in shown
    assert "last run r: complete, ended 2026-01-01 09:00:00 CET" in shown


def test_an_epoch_says_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pace is that of the epochs that were seen of this network; another network begins anew."""
    said, now = Said(), 1_000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for phase, epoch in (("fold 1", 3), ("fold 1", 4), ("fold 1", 6), ("fold 2", 7), ("fold 2", 1), ("fold 2", 2)):
        now += 20.0
        said.epoch(phase, epoch, 9, {"loss": 0.5})
    assert capsys.readouterr().err.splitlines() == [
        "fold 1: epoch 3 of 9: loss 0.500",
        "fold 1: epoch 4 of 9, 1 min 40 s left: loss 0.500",
        "fold 1: epoch 6 of 9, 40 s left: loss 0.500",
        "fold 2: epoch 7 of 9: loss 0.500",
        "fold 2: epoch 1 of 9: loss 0.500",
        "fold 2: epoch 2 of 9, 2 min 20 s left: loss 0.500",
    ]


def test_a_summary_shows_itself() -> None:
    """It is one line in a console, and a small table in a notebook, where a name is never read as HTML."""
    counts = Counts(3, 3, {"empty": 1, "ok": 2}, {"sad": 2}, {"is_speech": 2}, {"sad": 2})
    summary = Summary("<b>labels</b>", counts, n_shards=2, n_shards_done=1, elapsed_s=1.25)
    assert repr(summary) == "<Summary of <b>labels</b>: 3 recordings, 2 of 3 rows ok; 1 of 2 parts made in 1.2 s>"
    shown = summary._repr_html_()
    assert shown.startswith("<table><tr><th>table</th><td>&lt;b&gt;labels&lt;/b&gt;</td></tr>")
    for row in ("<th>recordings</th><td>3</td>", "<th>empty</th><td>1 row</td>", "<th>sad</th><td>100.0%</td>"):
        assert row in shown


def test_progress_counts_audio(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that hears audio says how fast, and how long the rest takes by its cost; another counts recordings."""
    said = Said()
    said.progress(Progress(1_000, 990, 1, 990, 10.0, audio_s=4_000.0, left_s=600.0))
    assert capsys.readouterr().err == "990 of 1,000 recordings, 1 failed, 400 x real time, 10 min left\n"
    said = Said()
    said.progress(Progress(1_000, 500, 0, 500, 10.0))
    assert capsys.readouterr().err == "500 of 1,000 recordings, 0 failed, 50 a second, 10 s left\n"
