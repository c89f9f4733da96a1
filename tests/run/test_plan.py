"""Tests of what is told before a run: what is left, how long it takes, by when; and that nothing is written for it."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.commands import call_command, run_command
from support.recordings import tone, write_killers, write_odd_archive
from support.shell_cluster import ShellCluster

import emotion_batch
from benchmarks.plan import compare, write_copies, write_long, write_mix
from emotion_batch.cli.plan_commands import _format_plan
from emotion_batch.errors import UsageError
from emotion_batch.run import plan as plan_module
from emotion_batch.run.plan import Plan, Times, _extrapolate, _find_hour, _hear, _judge, _Work
from emotion_batch.run.shards import Left, Outlook, Range, find_witness
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.entries import ENTRY_SCHEMA
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts, schema
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.sharding import cut
from emotion_batch.worker.preflight import Probe, read_versions
from emotion_batch.worker.trial import Taken, Timed


def tree(*folders: Path) -> dict[str, tuple[int, int]]:
    """Return what lies in folders, with sizes and times of writing."""
    paths = [path for folder in folders for path in [folder, *folder.rglob("*")]]
    return {os.fspath(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """No plan leaves what its sample was worked in."""
    yield
    assert not list(Path(tempfile.gettempdir()).glob("emotion-batch-plan-*"))


def check(plan: Plan) -> None:
    """See that a plan with something left agrees with itself."""
    assert plan.n_left == plan.n_recordings - plan.n_done > 0
    assert 0 < plan.n_shards <= min(plan.n_parts, plan.n_left)
    assert sum(plan.statuses.values()) == plan.n_sampled <= plan.n_left
    assert plan.n_lost == 0 and 0 <= plan.crowd < 1
    work = plan.work_s
    assert 0 < work.low < work.likely < work.high
    workers = [one.workers for one in plan.times]
    assert workers == sorted(workers) and [one.workers for one in plan.times if one.is_here] == [plan.sample_workers]
    for one in plan.times:
        assert one.low_s < one.likely_s < one.high_s
        # What is divided among workers, and what is not.
        assert one.likely_s >= plan.start_s + work.likely / max(one.workers, plan.n_shards) - 1e-9
        assert one.likely_s <= plan.start_s + work.likely + 1e-9
    assert all(later.likely_s <= earlier.likely_s + 1e-9 for earlier, later in itertools.pairwise(plan.times))
    assert plan.memory_bytes > 10**7 and plan.part_bytes > 0


def test_an_odd_archive_is_planned_and_nothing_written(cluster: ShellCluster, tmp_path: Path) -> None:
    """What cannot be read is counted as such; where all were looked at, hours and rows are exact."""
    archive = tmp_path / "archive"
    archive.mkdir()
    expected = write_odd_archive(archive)
    before = tree(tmp_path)
    plan = emotion_batch.plan(archive, extract=True, scheduler=cluster.address, sample_s=1, workers=[1, 4], by="07:00")
    check(plan)
    assert tree(tmp_path) == before
    assert plan.n_recordings == plan.n_sampled == plan.n_rows == len(expected)
    assert plan.n_failed == sum(status != "ok" for status in expected.values())
    assert plan.statuses == {status: list(expected.values()).count(status) for status in sorted(set(expected.values()))}
    assert plan.sample_workers == 2 and [one.workers for one in plan.times] == [1, 2, 4]
    assert plan.notes == ("left out 1 file without a recording's suffix (1 .txt)",)
    assert plan.due is not None and plan.due.workers == 4
    assert plan.n_shards == plan.n_parts == len(cut(list_recordings(archive).entries, Segments()))


def test_only_what_is_left_of_a_table_counts(cluster: ShellCluster, speech: Path, tmp_path: Path) -> None:
    """A table, or an archive with one: missing parts, changed and new recordings are left, and nothing else."""
    archive, table = tmp_path / "archive", tmp_path / "table"
    shutil.copytree(speech, archive)
    assert call_command("extract", archive, table, "--quiet", "--scheduler", cluster.address).code == 0
    whole = emotion_batch.plan(table, by="07:00")
    assert whole.n_left == whole.n_shards == 0 and whole.times == () and whole.due is not None
    assert whole.due.is_done == "yes"
    next(iter(sorted(table.glob("*.parquet")))).unlink()
    known = emotion_batch.plan(table, scheduler=cluster.address, sample_s=0.5)
    check(known)
    assert known.n_shards == 1 and known.n_parts == whole.n_parts
    last = sorted(archive.rglob("*.wav"))[-1]
    os.utime(last, ns=(1, 1))
    shutil.copy(last, archive / "zzz-new.wav")
    before = tree(tmp_path)
    plan = emotion_batch.plan(archive, table=table, scheduler=cluster.address, sample_s=0.5)
    check(plan)
    assert tree(tmp_path) == before
    assert plan.n_recordings == whole.n_recordings + 1
    assert plan.n_left == known.n_left + 2
    assert plan.n_shards == 3 and plan.n_parts == whole.n_parts + 1
    for name, value in (("table", table), ("extract", True)):
        with pytest.raises(UsageError, match=rf"{name} cannot be combined with the table .*: name an archive"):
            emotion_batch.plan(table, **{name: value})


def test_a_labelling_is_planned(cluster: ShellCluster, speech: Path, features: Path, bundle: Path) -> None:
    """Of an archive with a model, and of a feature table, whose recordings are not decoded again."""
    before = tree(speech, features, bundle)
    of_archive = emotion_batch.plan(speech, model=bundle, scheduler=cluster.address, sample_s=0.5)
    of_features = emotion_batch.plan(features, model=bundle, scheduler=cluster.address, sample_s=0.5)
    assert tree(speech, features, bundle) == before
    for plan in (of_archive, of_features):
        check(plan)
        assert plan.work == "label"
    assert of_features.n_rows == of_archive.n_rows
    assert of_features.work_s.likely < of_archive.work_s.likely
    assert of_features.audio_s.likely == pytest.approx(of_archive.audio_s.likely, rel=0.2)


def test_a_plan_of_an_archive_is_of_its_labels(cluster: ShellCluster, tmp_path: Path) -> None:
    """Without a model it is what `label` does without one: the same shards, and the share of the audio that is heard."""
    archive = tmp_path / "archive"
    archive.mkdir()
    for number, seconds in enumerate([2, 8, 10, 12] * 10):
        (archive / f"{number}.wav").write_bytes(_wav(number, seconds))
    done = call_command("plan", archive, "--sample", "1", "--scheduler", cluster.address, "--json", "--quiet")
    assert done.code == 0, done.err
    summary = emotion_batch.label(archive, tmp_path / "labels", scheduler=cluster.address)
    assert done.result["work"] == "label"
    assert done.result["n_parts"] == done.result["n_shards"] == summary.n_shards
    assert done.result["audio_s"]["likely"] == pytest.approx(summary.recorded_s) == 320
    assert done.result["heard_s"] == pytest.approx(summary.audio_s) == 200
    plan = Plan(**_read_plan(done.result))
    assert "\n  hears   62% of it; use --window to hear all of it\n" in str(_format_plan(plan))
    assert "\n  hears   62% of it\n" in str(_format_plan(replace(plan, is_selective=True)))


def _read_plan(said: dict[str, object]) -> dict[str, object]:
    fields = {name: value for name, value in said.items() if name != "n_left"}
    ranges = {name: Range(**fields[name]) for name in ("audio_s", "work_s")}
    return {**fields, **ranges, "times": [Times(**one) for one in fields["times"]]}


@pytest.mark.parametrize(
    ("segments", "heard_s"),
    [
        (Segments(1.0, 4.0), [0.0, 0.5, 4.0]),
        (Segments.windows(4.0), [0.5, 1.5, 9.0]),
        (Segments.windows(4.0, 2.0), [0.5, 1.5, 9.0]),
        (Segments.windows(1.0, 4.0), [0.5, 1.0, 3.0]),
    ],
)
def test_what_segments_cover_is_heard(segments: Segments, heard_s: list[float]) -> None:
    """A segment hears from its offset on, windows all but the gaps between them."""
    assert _hear(segments, np.array([0.5, 1.5, 9.0])).tolist() == heard_s


def test_extraction_and_labelling_exclude_each_other(speech: Path, bundle: Path) -> None:
    """A model is of no use to an extraction, and settings are of none to a model."""
    with pytest.raises(UsageError, match="model cannot be combined with extract"):
        emotion_batch.plan(speech, model=bundle, extract=True)
    with pytest.raises(UsageError, match=r"settings \(--recipe and the like\) require extract"):
        emotion_batch.plan(speech, model=bundle, settings=FeatureSettings())


def test_a_worker_tries_what_it_will_read(speech: Path, features: Path) -> None:
    """Where nothing may be written, a worker reads a recording and a part, and says which of them it lacks."""
    archive, versions = Folder.of(speech), read_versions(is_predicting=False)
    recording = find_witness(archive, list_recordings(speech).entries)
    assert recording is not None
    before = tree(speech, features)
    probe = Probe(None, "", b"", archive, recording, (Folder.of(features), parts.part_name(0)), None, versions)
    assert probe() is None
    assert tree(speech, features) == before
    gone = recording._replace(file="gone.wav")
    assert "cannot read the recording 'gone.wav'" in str(replace(probe, recording=gone)())
    assert "cannot read the feature table" in str(replace(probe, features=(archive, "gone.parquet"))())


def test_the_command_says_when_it_is_too_late(tmp_path: Path) -> None:
    """Of long recordings only some windows are done; an hour that even hope does not meet is exit code 1."""
    archive = tmp_path / "archive"
    archive.mkdir()
    # A minute that is followed by three hours of nothing, which no disk holds.
    write_long(archive / "long.wav", 1 / 60)
    n_bytes = 3 * 3_600 * 2 * 22_050
    with (archive / "long.wav").open("r+b") as stream:
        for at, value in ((4, 36 + n_bytes), (40, n_bytes)):
            stream.seek(at)
            stream.write(value.to_bytes(4, "little"))
        stream.truncate(44 + n_bytes)
    for number in range(240):
        os.link(archive / "long.wav", archive / f"again-{number:03d}.wav")
    before = tree(tmp_path)
    by = (datetime.now() + timedelta(minutes=2)).strftime("%H:%M")
    done = call_command(
        "plan", archive, "--extract", "--window", "3", "--sample", "2", "--workers", "1", "--by", by, "--quiet"
    )
    assert tree(tmp_path) == before
    assert done.code == 1, done.err
    last = done.out.splitlines()[-1]
    assert last.startswith(f"by {by}") and "on 1 worker: not done, even at the early end" in last
    assert "of them in part" in done.out
    assert "about 867,600 rows" in done.out
    assert "723 h of audio" in done.out
    assert "\n  hears   all of it\n" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "{speech}", "--by", "25:00"), "by must be a time such as 07:00: '25:00'"),
        (("plan", "{speech}", "--workers", "0"), "--workers must be a whole number of at least 1"),
        (("plan", "{speech}", "--sample", "0"), "sample must be from 0.5 to 3,600 seconds: 0"),
        (("plan", "/nowhere"), "it does not exist"),
        (("plan", "{speech}", "--model", "/nowhere"), "it is not a bundle"),
        (("plan", "{speech}", "--recipe", "voices"), "settings (--recipe and the like) require extract"),
        (("plan", "{speech}", "--offset", "1"), "--offset and --duration require each other"),
        (
            ("plan", "{speech}", "--table", "{speech}"),
            "is not a part of a table: name a new or empty folder, or a table; ",
        ),
    ],
)
def test_a_wrong_call_is_exit_code_2(
    arguments: tuple[str, ...], said: str, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence says what is wrong, before any work."""
    from emotion_batch.cli import app

    words = [word.format(speech=speech) for word in arguments]
    try:
        code = app.run_command(words)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err


def test_shards_end_as_on_workers_that_take_the_next_one() -> None:
    """A simulation of workers by the event gives the same end; beyond as many as shards none helps."""
    shards_s = np.random.default_rng(0).lognormal(size=40)
    for n_workers in (1, 2, 7, 39, 40, 1_000):
        free_s = [0.0] * min(n_workers, 40)
        for seconds in shards_s:
            first = free_s.index(min(free_s))
            free_s[first] += seconds
        assert Outlook(shards_s, 0.9, 1.1, 3.0).elapsed_s(n_workers).likely == pytest.approx(3.0 + max(free_s))
    assert Outlook(np.zeros(0), 0.9, 1.1, 0.0).elapsed_s(3).likely == 0


def test_workers_are_counted_for_each_end_of_the_range() -> None:
    """The fewest that meet an hour do, one fewer does not; of an impossible hour there are none."""
    outlook = Outlook(np.full(100, 60.0), 0.8, 1.25, 10.0)
    for end in (lambda one: one.likely, lambda one: one.high):
        n_workers = outlook.count_workers(1_000, end)
        assert n_workers is not None
        assert end(outlook.elapsed_s(n_workers)) <= 1_000 < end(outlook.elapsed_s(n_workers - 1))
    assert outlook.count_workers(60, lambda one: one.likely) is None
    assert outlook.count_workers(1e6, lambda one: one.high) == 1


def test_an_hour_is_the_next_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's if it is still to come, else tomorrow's, also in a night in which clocks go back."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()

    class Clock(datetime):
        @classmethod
        def now(cls) -> datetime:
            return datetime(2026, 10, 24, 22, 0)

    try:
        monkeypatch.setattr(plan_module, "datetime", Clock)
        outlook = Outlook(np.full(10, 3_600.0), 0.9, 1.1, 0.0)
        tonight, tomorrow = (_judge(_find_hour(by), outlook, 1) for by in ("23:30", "07:00"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert tonight.within_s == 5_400 and tonight.is_done == "no"
    assert tomorrow.within_s == 10 * 3_600 and tomorrow.is_done == "perhaps"
    assert tomorrow.at == "2026-10-25T07:00+01:00"


def list_entries(sizes: np.ndarray, suffixes: Sequence[str]) -> pa.Table:
    """Return entries of such sizes and endings, with windows' costs in mind."""
    files = [f"{number:06d}{suffix}" for number, suffix in enumerate(suffixes)]
    columns = [files, [None] * len(files), sizes.astype(np.int64), ["1"] * len(files)]
    return pa.table([pa.array(one, field.type) for one, field in zip(columns, ENTRY_SCHEMA, strict=True)], ENTRY_SCHEMA)


def gather(entries: pa.Table) -> _Work:
    """Return the work of one shard that is left, whose recordings are read in windows."""
    info = TableInfo(schema.FEATURES, "archive", FeatureSettings(), Segments.windows(3.0))
    left = Left(info, Folder("archive", {}), None, None, {0: entries}, [], entries.num_rows, 1, ())
    return _Work.of(left)


def time_sample(work: _Work, seconds: np.ndarray, n_each: int, drift: np.ndarray) -> tuple[np.ndarray, list[Timed]]:
    """Return the numbers of a sample's recordings, and what its shards took on cores that are slower or faster by `drift`."""
    numbers, shards = [], []
    for share, mine in work.share_out(2).items():
        for start in range(0, 4 * n_each, n_each):
            chosen = mine[start : start + n_each]
            pace = drift[share.number, start // n_each]
            # Long recordings are left after half a second.
            done = np.minimum(1.0, 0.5 / seconds[chosen])
            taken = tuple(
                Taken(seconds[one] * part * pace, 1, part, 3.0, "ok", 3.0)
                for one, part in zip(chosen, done, strict=True)
            )
            elapsed_s = sum(one.seconds for one in taken) + 0.01
            shards.append(Timed(elapsed_s, 0.0, 10_000, 10_000, 10**8, taken))
            numbers.append(chosen)
    return np.concatenate(numbers), shards


def test_the_range_of_a_sample_holds_the_sum() -> None:
    """Of a heavy-tailed mix, on cores whose pace changes, the range holds what all of it takes about as often as it says."""
    generator = np.random.default_rng(0)
    sizes = np.concatenate([generator.uniform(80e3, 120e3, 5_000), generator.uniform(2e8, 6e8, 40)])
    entries = list_entries(sizes, [".wav"] * len(sizes))
    n_held, widths = 0, []
    for _ in range(100):
        order = generator.permutation(len(sizes))
        seconds = sizes * 2e-8 * generator.lognormal(0, 0.3, len(sizes)) + 0.001
        work = gather(entries.take(pa.array(order)))
        drift = generator.normal(1.0, 0.05, (2, 4))
        _, outlook = _extrapolate(work, *time_sample(work, seconds[order], 100, drift), 1.0)
        n_held += outlook.work_s.low <= seconds.sum() <= outlook.work_s.high
        widths.append(outlook.high / outlook.low)
    assert n_held >= 90
    assert np.median(widths) < 2


def test_each_share_begins_with_all_strata() -> None:
    """Each thread begins with one of each stratum, no recording is in two shares, and none is missing of a small archive."""
    sizes = 4.0 ** np.random.default_rng(0).integers(5, 18, 200)
    work = gather(list_entries(sizes, [".wav", ".mp3"] * 100))
    for n_threads in (1, 2, 7, 500):
        shares = work.share_out(n_threads)
        assert sorted(np.concatenate(list(shares.values()))) == list(range(200))
        for share, numbers in shares.items():
            assert [one.file for one in share.things] == work.entries["file"].take(pa.array(numbers)).to_pylist()
            assert n_threads > 2 or sorted(work.strata[numbers[: share.n_first]]) == list(range(8))


def test_few_strata_have_all_recordings() -> None:
    """However many sizes and endings there are, strata are few, and those of most cost stand alone."""
    generator = np.random.default_rng(0)
    sizes = 4.0 ** generator.integers(5, 18, 2_000)
    suffixes = generator.choice([".wav", ".WAV", ".mp3", ".flac", ".ogg"], 2_000).tolist()
    work = gather(list_entries(sizes, suffixes))
    assert set(work.strata) == set(range(8))
    alone = {(suffixes[one].lower(), sizes[one]) for one in np.flatnonzero(work.strata == 0)}
    assert len(alone) == 1


def test_the_range_follows_what_a_sample_shows() -> None:
    """An even sample leaves little, an uneven one more, a single shard the most; other work on the cores is allowed to end."""
    entries = list_entries(np.full(1_000, 1e5), [".wav"] * 1_000)
    work = gather(entries)
    seconds = np.full(1_000, 0.01)

    def width(drift: np.ndarray, n_shards: int = 8, waited_s: float = 0.0) -> tuple[float, float]:
        numbers, shards = time_sample(work, seconds, 25, drift)
        shards = [one._replace(waited_s=waited_s * one.elapsed_s) for one in shards[:n_shards]]
        _, outlook = _extrapolate(work, numbers[: 25 * n_shards], shards, 1.0)
        return outlook.low, outlook.high

    even, uneven = np.ones((2, 4)), np.array([[1.0, 1.5, 0.7, 1.0], [1.4, 0.6, 1.2, 1.0]])
    assert width(uneven)[0] < width(even)[0] < 1 < width(even)[1] < width(uneven)[1] < width(even, n_shards=1)[1]
    assert width(even, waited_s=0.5)[0] < width(even)[0] / 2 + 0.1 and width(even, waited_s=0.5)[1] > 1.5


@pytest.mark.torture
def test_a_recording_that_kills_is_counted(killers: Path, tmp_path: Path) -> None:
    """A sample's worker that a recording takes with it is told of in the counts, and the plan goes on."""
    archive = tmp_path / "archive"
    archive.mkdir()
    write_killers(archive)
    for name in ("fill.wav", "loop.wav"):
        (archive / name).unlink()
    for number in range(40):
        (archive / f"good-{number}.wav").write_bytes(_wav(number))
    environment = {"PYTHONPATH": os.pathsep.join([os.fspath(killers), os.environ.get("PYTHONPATH", "")])}
    done = run_command("plan", archive, "--extract", "--sample", "2", "--json", "--quiet", environment=environment)
    assert done.code == 0, done.err
    found = done.result
    assert isinstance(found["statuses"], dict)
    assert found["statuses"].keys() == {"crashed", "ok"}
    assert found["statuses"]["crashed"] == found["n_failed"] == 1 and found["n_lost"] == 0
    # It has not taken the sample's time from the others.
    assert found["statuses"]["ok"] > 10


def _wav(number: int, seconds: float = 2.0) -> bytes:
    import io

    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, tone(seconds, seed=number), 24_414, format="WAV")
    return stream.getvalue()


@pytest.mark.torture
@pytest.mark.tess
@pytest.mark.parametrize("kind", ["copies", "mix"])
def test_the_range_holds_what_the_run_takes(kind: str, tess: Path, tmp_path: Path) -> None:
    """All of TESS four times, and among recordings of an hour in windows: the run ends when it was said to."""
    archive = tmp_path / "archive"
    if kind == "copies":
        write_copies(tess, archive, 4)
        found = compare(archive, tmp_path / "table")
    else:
        write_mix(tess, archive, 6, hours=1.0)
        found = compare(archive, tmp_path / "table", "--window", "3")
    print(found)
    assert found.is_inside
