"""Tests of what a run decides: the order of its shards, and when it is of no use to go on."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from emotion_batch.errors import CanaryError
from emotion_batch.progress import Watcher
from emotion_batch.run.canary import Canary
from emotion_batch.run.driver import Run
from emotion_batch.run.record import name_outcome
from emotion_batch.run.run_options import RunOptions
from emotion_batch.run.shards import Pace, order_shards
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import schema
from emotion_batch.tables.parts import Counts
from emotion_batch.tables.schema import TableInfo
from emotion_batch.usage import Spent
from emotion_batch.worker.task import Receipt


def test_heavy_shards_come_first_and_the_others_spread() -> None:
    """A shard that takes long is begun first, the heaviest before all; the first few others are from all over."""
    costs = dict.fromkeys(range(100), 10) | {70: 1_000, 30: 500}
    order = order_shards(costs)
    assert sorted(order) == list(range(100))
    assert order[:2] == [70, 30]
    assert max(order[2:10]) - min(order[2:10]) > 60
    assert order_shards({}) == []


def receipt(n_recordings: int, n_ok: int, n_failed: int, *, n_alike: int = 0) -> Receipt:
    by_status = {name: n for name, n in (("ok", n_ok), ("unreadable", n_failed)) if n}
    by_label = {"neutral": n_alike, "sad": n_ok - n_alike} if n_alike else {}
    examples = {"unreadable": ("a.wav", "damaged")} if n_failed else {}
    counts = Counts(n_recordings, n_ok + n_failed, by_status, by_label)
    return Receipt(counts, counts, examples=examples)


@pytest.mark.parametrize(
    ("heard", "is_stopped"),
    [
        pytest.param(receipt(200, 0, 200), True, id="all fail"),
        pytest.param(receipt(199, 0, 199), False, id="too few to say"),
        pytest.param(receipt(200, 1, 199), False, id="one is good"),
        pytest.param(receipt(200, 200, 0, n_alike=197), True, id="one label"),
        pytest.param(receipt(200, 200, 0, n_alike=190), False, id="labels differ"),
        pytest.param(receipt(20, 72_000, 0, n_alike=72_000), True, id="one label in long recordings"),
        pytest.param(receipt(1, 72_000, 0, n_alike=72_000), False, id="one label in one recording"),
        pytest.param(receipt(200, 400, 190, n_alike=400), False, id="ten good recordings alike"),
    ],
)
def test_a_run_of_no_use_stops(heard: Receipt, is_stopped: bool) -> None:
    """Enough recordings that fail alike, or nearly all get one label, stop a run; a few, or one long one, do not."""
    canary = Canary("archive")
    if is_stopped:
        with pytest.raises(CanaryError):
            canary.watch(heard)
    else:
        canary.watch(heard)


def test_rows_that_were_there_before_are_no_news() -> None:
    """A shard whose failures were kept, or that another run did, says nothing about the archive."""
    canary = Canary("archive")
    canary.watch(Receipt(Counts(1_000, 1_000, {"unreadable": 1_000})))


def test_a_list_in_a_store_whose_names_lead_nowhere_is_told(tmp_path: Path) -> None:
    """No disk says beforehand what is there; if none of what is tried can be read, the reason may be the list's folder."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/calls/lists/list.txt": b"calls/1.wav\ncalls/2.wav\n", "/calls/2.wav": b"x"})
    archive = "memory://calls/lists/list.txt"
    try:
        for names, n_notes in ((b"calls/1.wav\ncalls/2.wav\n", 1), (b"1.wav\nmemory://calls/2.wav\n", 0)):
            memory.pipe({"/calls/lists/list.txt": names})
            notes: list[str] = []
            place = Folder.of(tmp_path / str(n_notes))
            info = TableInfo(schema.FEATURES, archive, FeatureSettings(), Segments())
            place.make()
            with Run(place, info, RunOptions(watcher=Watcher(on_note=notes.append)), 0.0) as run:
                listing = list_recordings(archive)
                run.freeze(listing, Spent(), prune=False)
                assert len(run.find_witnesses(listing.folder)) == 1 - n_notes
            assert len(notes) == n_notes
            assert all("relative to the folder that the list is in, memory://calls/lists" in note for note in notes)
    finally:
        memory.rm("/calls", recursive=True)


def test_options_show_no_credentials() -> None:
    """Whatever prints the options of a run, such as a log or a notebook, prints none of the storage's."""
    options = RunOptions(workers=2, storage_options={"key": "AKIA", "secret": "hush"})
    assert "workers=2" in repr(options)
    assert "hush" not in f"{options} {options!r}"
    assert options.storage_options == {"key": "AKIA", "secret": "hush"}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        pytest.param(OSError(5, "Input/output error"), "failed", id="an error"),
        pytest.param(KeyboardInterrupt(), "stopped", id="a signal"),
        pytest.param(None, "complete", id="nothing"),
    ],
)
def test_a_run_is_called_what_it_was(raised: BaseException | None, expected: str) -> None:
    """A run that a signal ended is stopped, also if a library turned the signal into an error of its own."""
    assert name_outcome(raised)[0] == expected
    if raised is not None:
        of_library = RuntimeError("a library's")
        of_library.__cause__ = raised
        assert name_outcome(of_library)[0] == expected


def test_what_a_generator_was_closed_for_is_no_stop() -> None:
    """An error on the way out of a generator is an error."""
    error = RuntimeError("cannot close")
    error.__context__ = GeneratorExit()
    assert name_outcome(error)[0] == "failed"
    assert name_outcome(GeneratorExit())[0] == "stopped"


def test_a_ring_of_causes_ends() -> None:
    """Errors that are each other's causes are a failure."""
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert name_outcome(one) == ("failed", "RuntimeError: one")


@pytest.mark.parametrize("n_workers", [1, 2, 8, 32])
def test_the_time_left_is_that_of_what_is_left(n_workers: int) -> None:
    """Shards of long recordings come first; from a third of a run on, the time left is within a third of the truth."""
    costs = [100.0] * 16 + [5.0] * 300
    pace = Pace(int(sum(costs)), n_workers)
    free, shown = [1.0] * n_workers, []
    finished = []
    for cost in costs:
        at = min(range(n_workers), key=free.__getitem__)
        free[at] += 0.1 * cost
        finished.append((free[at], cost))
    for end_s, cost in sorted(finished):
        shown.append((end_s, pace.estimate_left(int(cost), 0.1 * cost, end_s)))
    whole_s = max(free)
    late = [(left_s, whole_s - end_s) for end_s, left_s in shown if end_s > whole_s / 3 and whole_s - end_s > 5]
    assert len(late) > 10
    assert all(abs(left_s - truth_s) < truth_s / 3 for left_s, truth_s in late)
    assert shown[-1][1] == 0
