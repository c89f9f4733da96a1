"""Tests of what a task's spending keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile
from support.recordings import tone

from emotion_batch import usage
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.usage import N_SLOWEST, Spent
from emotion_batch.worker import isolation, recordings
from emotion_batch.worker.isolation import Limits


def test_the_slowest_of_shards_are_the_slowest_of_the_run() -> None:
    """However many shards are added up, the recordings that took longest are named, the slowest first, and no more."""
    whole = Spent()
    for shard in range(7):
        one = Spent()
        for number in range(20):
            one.time(f"{shard}/{number}.wav", ((shard * 20 + number) * 37) % 140)
        assert len(one.slowest) == N_SLOWEST
        whole.add(one)
    assert [elapsed_s for elapsed_s, _ in whole.slowest] == [139, 138, 137, 136, 135]


@pytest.mark.parametrize("is_isolated", [False, True], ids=["in this process", "in a child"])
def test_a_long_recording_is_named_as_the_slowest(tmp_path: Path, is_isolated: bool) -> None:
    """What took longest is named by its name in the archive, wherever it was decoded."""
    for name, duration_s in (("a.wav", 1), ("long.wav", 200), ("z.wav", 1)):
        soundfile.write(tmp_path / name, tone(duration_s, 16_000), 16_000)
    listing = list_recordings(tmp_path)
    arguments = (listing.entries.to_batches()[0], listing.folder, FeatureSettings(), Segments.windows(1))
    with usage.metered() as spent:
        if is_isolated:
            isolation.extract_isolated(*arguments, Limits(), lambda error: None)
        else:
            recordings.extract_rows(*arguments)
    assert spent.slowest[0][1] == "long.wav"
    assert {os.path.basename(file) for _, file in spent.slowest} == {"a.wav", "long.wav", "z.wav"}
