"""Tests of the look at an archive before a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.commands import call_command
from support.recordings import tone

from emotion_batch.errors import format_duration
from emotion_batch.inference.bundle import find_model, require_safe
from emotion_batch.run import canary
from emotion_batch.run.canary import find_unheard
from emotion_batch.settings import Segments
from emotion_batch.storage.archive import list_recordings

RATE = 8_000


def write_calls(folder: Path, durations_s: list[float]) -> Path:
    """Write an archive of recordings of these durations, and of a file that is none."""
    folder.mkdir()
    for number, duration_s in enumerate(durations_s):
        soundfile.write(folder / f"{number}.wav", tone(duration_s, RATE, seed=number).astype(np.float32), RATE)
    (folder / "note.wav").write_text("This is a note.")
    return folder


@pytest.mark.parametrize("is_long", [True, False])
def test_what_is_not_heard_is_told_before(is_long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If most recordings are longer than their segment, a sentence says by how much and how long all of it would take."""
    long_s, short_s = [40.0, 50.0, 60.0, 30.0, 45.0], [1.0, 2.0, 3.0]
    durations_s = long_s + short_s if is_long else long_s[:2] + short_s
    listing = list_recordings(str(write_calls(tmp_path / "calls", durations_s)))
    bundle = require_safe(find_model("tess-seed"))
    assert find_unheard(listing, bundle, Segments()) is None
    monkeypatch.setattr(canary, "_LEAST_BYTES", 0)
    assert find_unheard(listing, bundle, Segments.windows(3)) is None
    said = find_unheard(listing, bundle, Segments())
    if not is_long:
        assert said is None
        return
    assert said is not None
    audio = format_duration(sum(durations_s))
    assert f"longer than the 3 s that are heard of each: about 22 s of {audio} of audio" in said
    assert "use --window 3 with a new table, which takes about" in said


def test_label_says_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`label` says it before its first shard, and not again when the run is continued, or where windows hear all of it."""
    monkeypatch.setattr(canary, "_LEAST_BYTES", 0)
    archive = write_calls(tmp_path / "calls", [20.0] * 6)
    call = ("label", archive, tmp_path / "labels", "--model", "tess-seed", "--workers", "1")
    first, again, windows = (
        call_command(*call),
        call_command(*call),
        call_command(*call[:2], tmp_path / "windows", *call[3:], "--window", "3"),
    )
    assert [one.code for one in (first, again, windows)] == [0, 0, 0], first.err
    assert ["most recordings are longer than the 3 s" in one.err for one in (first, again, windows)] == [
        True,
        False,
        False,
    ]
    assert first.err.index("most recordings are longer") < first.err.index("dashboard at")
