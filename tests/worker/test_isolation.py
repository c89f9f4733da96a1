"""Tests of decoding in a child: rows as in this process, and a status for whatever kills the child."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import soundfile
from support.recordings import KILLERS, tone, write_killers, write_odd_archive

from emotion_batch import usage
from emotion_batch.errors import IncompleteError, StorageError, UnfitWorkerError, UsageError
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.folder import Folder, seal
from emotion_batch.tables import attempts
from emotion_batch.worker import isolation, recordings
from emotion_batch.worker.isolation import Limits

SETTINGS, ONE = FeatureSettings(), Segments()
# A child must be able to start and decode within it, on a machine that does other things too.
LIMITS = Limits(deadline_s=5, memory_bytes=2**29)


def reraise(error: StorageError) -> None:
    raise error


def isolated(archive: Path, segments: Segments = ONE, on_failure: Callable[[StorageError], None] = reraise) -> pa.Table:
    listing = list_recordings(archive)
    return isolation.extract_isolated(
        listing.entries.to_batches()[0], listing.folder, SETTINGS, segments, LIMITS, on_failure
    )


def test_a_child_gives_the_same_rows(tmp_path: Path) -> None:
    """Recordings of every kind have the rows that they have without a child, to the bit, in segments and in windows."""
    write_odd_archive(tmp_path)
    listing = list_recordings(tmp_path)
    entries = listing.entries.to_batches()[0]
    for segments in (ONE, Segments.windows(1, 0.5)):
        with usage.metered() as spent:
            found = isolated(tmp_path, segments)
        assert found.equals(recordings.extract_rows(entries, listing.folder, SETTINGS, segments))
        assert spent.n_isolated == 1
        assert spent.read_bytes > 0
        assert spent.lost_s == 0


def test_what_kills_the_child_has_its_status(killers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, a loop and a flood cost their own rows, those after them are as ever, and the time is accounted for."""
    monkeypatch.syspath_prepend(os.fspath(killers))
    write_killers(tmp_path)
    for name in ("a.wav", "between.flac", "z.wav"):
        soundfile.write(tmp_path / name, tone(2.0), 24_414)
    # Servers of other tests among them.
    children = set(psutil.Process().children())
    started = time.perf_counter()
    with usage.metered() as spent:
        found = {row["file"]: row for row in isolated(tmp_path).to_pylist()}
    assert {name: row["status"] for name, row in found.items()} == {
        **KILLERS,
        **dict.fromkeys(("a.wav", "between.flac", "z.wav"), "ok"),
    }
    assert found["abort.wav"]["error"] == "decoding it ended the process (SIGABRT)"
    assert found["loop.wav"]["error"] == "decoding it gave nothing for 5 s"
    assert "memory" in found["fill.wav"]["error"]
    assert LIMITS.deadline_s < spent.lost_s < time.perf_counter() - started
    assert set(psutil.Process().children()) <= children


def test_one_death_may_be_an_accident(killers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is killed once from outside is started again at the same recording, which is not blamed."""
    monkeypatch.syspath_prepend(os.fspath(killers))
    monkeypatch.setenv("KILLED_ONCE", os.fspath(tmp_path / "flag"))
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "once.wav").write_bytes(b"ONCE!!" * 100)
    soundfile.write(archive / "other.wav", tone(2.0), 24_414)
    assert isolated(archive)["status"].to_pylist() == ["not_audio", "ok"]
    assert (tmp_path / "flag").exists()


def test_good_windows_of_a_killer_are_kept(killers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording whose third window kills keeps its first two, once, and has a row for the rest."""
    monkeypatch.syspath_prepend(os.fspath(killers))
    samples = np.stack([tone(5.0, 16_000)] * 3, axis=1)
    soundfile.write(tmp_path / "killer.flac", samples, 16_000)
    soundfile.write(tmp_path / "other.flac", samples[:16_000], 16_000)
    found = isolated(tmp_path, Segments.windows(1)).to_pylist()
    assert [(row["file"], row["start_s"], row["status"]) for row in found] == [
        ("killer.flac", 0.0, "ok"),
        ("killer.flac", 1.0, "ok"),
        ("killer.flac", 2.0, "crashed"),
        ("other.flac", 0.0, "ok"),
    ]


@pytest.mark.parametrize("segments", [ONE, Segments.windows(1)], ids=["one segment", "windows"])
def test_a_recording_that_kills_when_it_is_closed_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: Segments
) -> None:
    """What has given all its rows has them, and no row for a rest that is not there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, soundfile\n"
        "close = soundfile.SoundFile.close\n"
        "def closed(self): os.abort() if self.channels == 3 else close(self)\n"
        "soundfile.SoundFile.close = closed\n"
    )
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    soundfile.write(tmp_path / "killer.flac", np.stack([tone(2.0, 16_000)] * 3, axis=1), 16_000)
    soundfile.write(tmp_path / "other.flac", tone(2.0, 16_000), 16_000)
    found = isolated(tmp_path, segments)
    assert found["status"].to_pylist() == ["ok"] * (4 if segments.hop_s else 2)


def test_a_large_parent_is_not_a_large_child(killers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker once took itself is not held against the recordings of its child."""
    monkeypatch.syspath_prepend(os.fspath(killers))
    (tmp_path / "abort.wav").write_bytes(b"ABORT!")
    soundfile.write(tmp_path / "b.wav", tone(2.0), 24_414)
    taken = np.ones(LIMITS.memory_bytes // 8)
    assert isolated(tmp_path)["status"].to_pylist() == ["crashed", "ok"]
    assert taken.nbytes >= LIMITS.memory_bytes


def test_an_archive_that_fails_is_no_recordings_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to the place in the child is raised in the parent, and not put into rows."""
    (tmp_path / "sitecustomize.py").write_text(
        "import emotion_batch.worker.recordings\n"
        "from emotion_batch.errors import StorageError\n"
        "def fail(*_): raise StorageError('archive: gone', is_transient=True)\n"
        "emotion_batch.worker.recordings.extract_recording = fail\n"
    )
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    (tmp_path / "a.wav").touch()
    with pytest.raises(StorageError, match="archive: gone") as caught:
        isolated(tmp_path)
    assert caught.value.is_transient
    # Unless the caller knows that the archive is there.
    heard: list[StorageError] = []
    (tmp_path / "b.wav").touch()
    assert isolated(tmp_path, on_failure=heard.append)["status"].to_pylist() == ["unreadable"] * 2
    assert len(heard) == 2


def test_a_child_that_cannot_start_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No recording gets a status for a child that never was."""
    (tmp_path / "a.wav").touch()
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(IncompleteError, match="the one for recordings that may kill it did not start"):
        isolated(tmp_path)


def test_a_child_with_other_code_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child imports what is on the disk now; if that is not what its worker has imported, the worker passes the shard on."""
    (tmp_path / "a.wav").touch()
    monkeypatch.setattr("emotion_batch.worker.process.SOURCE", "of before")
    with pytest.raises(UnfitWorkerError, match="and the worker's is of before, because"):
        isolated(tmp_path)


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), 1e9])
def test_a_deadline_is_a_time(deadline_s: float) -> None:
    """What is no time is refused before any work."""
    with pytest.raises(UsageError, match="deadline must be from 1 to"):
        replace(LIMITS, deadline_s=deadline_s)


def test_a_run_takes_back_what_it_ended_itself(tmp_path: Path) -> None:
    """Of a stopped run's shards those are suspected over which a process had died before, and no others."""
    place = Folder.of(tmp_path)
    place.folder(attempts.FOLDER).make()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass

    def note(shard: int, run_id: str = "mine", *, pid: int = os.getpid(), is_repeated: bool = False) -> None:
        about = {"run": run_id, "began": 0.0, "host": "here", "pid": pid, "is_repeated": is_repeated}
        place.publish(f"{attempts.FOLDER}/{shard:06d}.json", seal(about))

    note(0)
    note(1, pid=dead.pid)
    note(2, is_repeated=True)
    note(3, "another")
    place.publish(f"{attempts.FOLDER}/000004.json", b"torn")
    lost = attempts.find_lost(place, "mine")
    note(5)
    attempts.take_back(place, "mine", lost)
    assert [int(name[:-5]) for name in place.folder(attempts.FOLDER).names()] == [1, 2, 3, 4]
