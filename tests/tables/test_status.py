"""Tests of `status` and `verify`, and of what the next run mends: all from storage alone."""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from support.commands import ROOT, call_command
from support.damage import find_footer, flip_bit, seal_part
from support.shell_cluster import ShellCluster

import emotion_batch
from emotion_batch.cli import app
from emotion_batch.errors import IncompleteError, UsageError
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.entries import ENTRY_SCHEMA
from emotion_batch.storage.folder import Folder, seal, unseal
from emotion_batch.tables import lease, parts, schema
from emotion_batch.tables.lease import Holder, Lease, others_at_work, run_ids
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.repair import mend
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.table import create_info, read_info


def table_of(folder: Path) -> dict[str, bytes]:
    """Return the parts of a table, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "_table"}


@pytest.fixture
def copy(features: Path, tmp_path: Path) -> Path:
    """A copy of a finished feature table."""
    shutil.copytree(features, tmp_path / "table")
    return tmp_path / "table"


Damage = Callable[[Path], None]


def delete(table: Path) -> None:
    (table / "part-000001.parquet").unlink()


def cut(table: Path) -> None:
    part = table / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-7])


def cut_in_the_middle(table: Path) -> None:
    part = table / "part-000001.parquet"
    data = part.read_bytes()
    part.write_bytes(data[:1_000] + data[1_500:])


def empty(table: Path) -> None:
    (table / "part-000001.parquet").write_bytes(b"")


def double(table: Path) -> None:
    shutil.copy(table / "part-000001.parquet", table / "part-000001 (copy).parquet")


def double_as_another(table: Path) -> None:
    shutil.copy(table / "part-000001.parquet", table / "part-000009.parquet")


def double_with_a_zero_more(table: Path) -> None:
    shutil.copy(table / "part-000001.parquet", table / "part-0000001.parquet")


def rename(table: Path) -> None:
    (table / "part-000001.parquet").rename(table / "part-000001 (1).parquet")


def put_in_place_of_another(table: Path) -> None:
    shutil.copy(table / "part-000002.parquet", table / "part-000001.parquet")


def extract_otherwise(table: Path) -> None:
    place = Folder.of(table)
    info = read_info(place)
    assert info is not None
    rows = parts.read_part(place, 1).replace_schema_metadata(None)
    other = TableInfo(info.kind, info.source, FeatureSettings(n_mels=64), info.segments)
    parts.publish_part(place, other, 1, Manifest(place).shards[1].digest, rows)


def age(table: Path) -> None:
    place = Folder.of(table)
    info = read_info(place)
    assert info is not None
    parts.publish_part(place, info, 1, "0" * 32, parts.read_part(place, 1).replace_schema_metadata(None))


def age_first_part(table: Path) -> None:
    place = Folder.of(table)
    info = read_info(place)
    assert info is not None
    parts.publish_part(place, info, 0, "0" * 32, parts.read_part(place, 0).replace_schema_metadata(None))


def lose_rows(table: Path) -> None:
    place = Folder.of(table)
    info = read_info(place)
    assert info is not None
    rows = parts.read_part(place, 1).replace_schema_metadata(None)
    parts.publish_part(place, info, 1, Manifest(place).shards[1].digest, rows.slice(1))


def flip_in_rows(table: Path) -> None:
    part = table / "part-000001.parquet"
    flip_bit(part, np.random.default_rng(0), 4, find_footer(part))


def flip_in_footer(table: Path) -> None:
    part = table / "part-000001.parquet"
    flip_bit(part, np.random.default_rng(0), find_footer(part))


def reverse_rows(table: Path) -> None:
    place = Folder.of(table)
    info = read_info(place)
    assert info is not None
    rows = parts.read_part(place, 1).replace_schema_metadata(None)
    parts.publish_part(place, info, 1, Manifest(place).shards[1].digest, rows.take([*reversed(range(rows.num_rows))]))


def reverse_rows_as_earlier_releases_wrote(table: Path) -> None:
    rows = parts.read_part(Folder.of(table), 1)
    pq.write_table(rows.take([*reversed(range(rows.num_rows))]), table / "part-000001.parquet")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (delete, "part-000001.parquet: it is missing, with the rows of"),
        (cut, "part-000001.parquet: it is damaged "),
        (cut_in_the_middle, "part-000001.parquet: it is damaged (some of its bytes in the middle are missing"),
        (empty, "part-000001.parquet: it is damaged or not a part of this table"),
        (double, "part-000001 (copy).parquet: this file is in the folder and is not a part of the table"),
        (
            double_as_another,
            "part-000009.parquet: this file is in the folder and is a part of a shard that the manifest does not",
        ),
        (double_with_a_zero_more, "part-0000001.parquet: this file is in the folder and is not a part of the table"),
        (put_in_place_of_another, "part-000001.parquet: it is the part of shard 2, not of shard 1"),
        (extract_otherwise, "part-000001.parquet: it was made with feature_id"),
        (age, "part-000001.parquet: its rows were made from earlier entries of the manifest"),
        (lose_rows, "part-000001.parquet: it has the rows of"),
        (flip_in_footer, "part-000001.parquet: it is damaged (its footer has other bytes"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damage_is_named(copy: Path, damage: Damage, sentence: str) -> None:
    """`verify` says which part is wrong, and how."""
    assert emotion_batch.verify(copy, deep=True).is_whole
    damage(copy)
    (problem,) = emotion_batch.verify(copy).problems
    assert problem.startswith(sentence)


@pytest.mark.parametrize(
    "damages",
    [
        (double_as_another, delete),
        (double, cut),
        (double_with_a_zero_more, put_in_place_of_another),
        (cut_in_the_middle,),
        (extract_otherwise,),
        (lose_rows,),
        (flip_in_footer,),
        (flip_in_rows,),
        (reverse_rows,),
        (reverse_rows_as_earlier_releases_wrote,),
    ],
    ids=lambda damages: " and ".join(damage.__name__ for damage in damages),
)
def test_damage_is_mended(
    features: Path, speech: Path, copy: Path, cluster: ShellCluster, damages: tuple[Damage, ...]
) -> None:
    """The same command makes a damaged table what it was, byte for byte, and does no other shard for it."""
    for damage in damages:
        damage(copy)
    assert len(emotion_batch.verify(copy, deep=True).problems) == len(damages)
    # From a copy, where there is one, or by doing the shard again.
    n_done = emotion_batch.extract(speech, copy, scheduler=cluster.address).n_shards_done
    assert n_done == (0 if len(damages) == 2 else 1)
    assert emotion_batch.verify(copy, deep=True).is_whole
    assert table_of(copy) == table_of(features)


def test_verify_reads_and_repair_removes(copy: Path) -> None:
    """`verify` writes nothing, whatever it finds; `--repair` reads every row and removes damaged parts, and no others."""

    def what_is_there() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (copy, *copy.rglob("*"))}

    before = what_is_there()
    whole = emotion_batch.verify(copy, repair=True)
    assert (whole.is_whole, whole.removed, whole.is_deep) == (True, (), True)
    assert what_is_there() == before
    flip_in_rows(copy)
    age_first_part(copy)
    before = what_is_there()
    assert emotion_batch.verify(copy).problems[0].startswith("part-000000.parquet: its rows were made from earlier")
    assert len(emotion_batch.verify(copy, deep=True).problems) == 2
    assert what_is_there() == before
    done = call_command("verify", copy, "--repair")
    assert done.code == 1
    assert "part-000001.parquet: it is damaged (its rows have other bytes than were written); removed" in done.out
    # Rows of earlier entries are kept as far as they are still right.
    assert [path.name for path in sorted(copy.glob("*.parquet"))] == ["part-000000.parquet", "part-000002.parquet"]
    assert emotion_batch.verify(copy, repair=True).removed == ()


def test_damage_is_mended_though_other_parts_are_missing(
    features: Path, speech: Path, copy: Path, cluster: ShellCluster
) -> None:
    """Where one part is damaged so that any look shows it, the others are read too."""
    flip_in_rows(copy)
    (copy / "part-000002.parquet").write_bytes(b"PAR1")
    assert emotion_batch.extract(speech, copy, scheduler=cluster.address).n_shards_done == 2
    assert table_of(copy) == table_of(features)


def test_labels_of_a_damaged_part_are_not_made_in_a_circle(
    speech: Path, copy: Path, labels: Path, bundle: Path, cluster: ShellCluster
) -> None:
    """The command that the error names mends the features, and then the labels are made; so are damaged labels."""
    flip_in_rows(copy)
    table, address = copy.parent / "labels", cluster.address
    with pytest.raises(
        IncompleteError, match=r"part-000001\.parquet: .*run the command that made .*table again"
    ) as raised:
        emotion_batch.label(copy, table, model=bundle, scheduler=address)
    assert "the same command" not in str(raised.value)
    assert emotion_batch.extract(speech, copy, scheduler=address).n_shards_done == 1
    assert emotion_batch.label(copy, table, model=bundle, scheduler=address).n_shards_done == 1
    for damage in (flip_in_rows, flip_in_footer):
        damage(table)
        assert not emotion_batch.verify(table, deep=True).is_whole
        assert emotion_batch.label(copy, table, model=bundle, scheduler=address).n_shards_done == 1
    assert table_of(table) == table_of(labels)


def test_whatever_reads_a_damaged_part_names_it(
    copy: Path, labels: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command that reads rows ends in one sentence about the part, or says that it is not in its answer."""
    shutil.copytree(labels, tmp_path / "labels")
    for table in (copy, tmp_path / "labels"):
        flip_in_rows(table)
    names = "part-000001.parquet: it is damaged (its rows have other bytes than were written); run the command"
    for arguments, code, said in (
        (("export", copy, tmp_path / "out"), 1, names),
        (("export", tmp_path / "labels", tmp_path / "out"), 1, names),
        (("train", copy, tmp_path / "bundle"), 1, names),
        (("evaluate", bundle, copy), 1, names),
        (("report", tmp_path / "labels", "--output", tmp_path / "page.html"), 0, "1 of 3 parts, with "),
        (
            ("review", tmp_path / "labels", tmp_path / "sheet.csv"),
            0,
            "missing, out of date or damaged: 1 part of the table",
        ),
    ):
        assert app.run_command([str(one) for one in arguments]) == code
        found = capsys.readouterr()
        assert said in found.out + found.err
        gc.collect()
        assert "Traceback" not in capsys.readouterr().err
    shutil.copyfile(labels / "part-000001.parquet", tmp_path / "labels" / "part-000001.parquet")
    for table in (copy, tmp_path / "labels"):
        flip_in_footer(table)
        assert app.run_command(["export", str(table), str(tmp_path / "out")]) == 1
        assert "1 of 3 parts missing, damaged or out of date, e.g. part-000001.parquet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.torture
@pytest.mark.parametrize("kind", ["features", "labels"])
def test_of_many_flipped_bits_none_is_overlooked(
    kind: str, request: pytest.FixtureRequest, speech: Path, bundle: Path, cluster: ShellCluster, tmp_path: Path
) -> None:
    """Of 150 bits of a table's parts each is named or changes nothing, and the same command mends any."""
    whole: Path = request.getfixturevalue(kind)
    random, names = np.random.default_rng(0), sorted(path.name for path in whole.glob("*.parquet"))
    table, source = tmp_path / "table", request.getfixturevalue("features")
    shutil.copytree(whole, table)
    rows = pyarrow.dataset.dataset(whole).to_table()
    for number in range(150):
        part = table / str(random.choice(names))
        flip_bit(part, random)
        if emotion_batch.verify(table, deep=True).is_whole:
            assert pyarrow.dataset.dataset(table).to_table() == rows
        if number % 10 < 9:
            part.write_bytes((whole / part.name).read_bytes())
        elif kind == "features":
            emotion_batch.extract(speech, table, scheduler=cluster.address)
        else:
            emotion_batch.label(source, table, model=bundle, scheduler=cluster.address)
        assert emotion_batch.verify(table, deep=True).is_whole
        assert pyarrow.dataset.dataset(table).to_table() == rows


def test_a_part_that_was_renamed_is_not_lost(features: Path, copy: Path) -> None:
    """A part under a wrong name goes back to its own, with rows of recordings that are gone since."""
    place = Folder.of(copy)
    info = read_info(place)
    assert info is not None
    rename(copy)
    notes = list(mend(place, info, Manifest(place)))
    assert notes == ["part-000001 (1).parquet was this table's part-000001.parquet, and has that name again"]
    assert table_of(copy) == table_of(features)


def test_only_reading_finds_some_damage(copy: Path) -> None:
    """A part whose rows contradict its own footer is found with --deep."""
    part = copy / "part-000001.parquet"
    rows, metadata = pq.read_table(part), pq.ParquetFile(part).metadata.metadata
    files = rows["file"].to_pylist()
    for at, name, values, words in (
        (0, "file", [files[1], *files[1:]], "its rows are not those that its footer counts"),
        (0, "file", [*reversed(files)], "its recordings, or their order, are not those"),
        (
            2,
            "start_s",
            [9.0] * len(files),
            f"{files[0]!r} must have each segment once and in order, and has one at 9.0 s",
        ),
        (5, "error", ["but why"] * len(files), "error is missing in a row that is not ok, or there in a row that is"),
    ):
        changed = rows.set_column(at, rows.schema.field(name), [values])
        pq.write_table(changed.replace_schema_metadata(metadata), part)
        seal_part(part)
        assert emotion_batch.verify(copy).is_whole
        (problem,) = emotion_batch.verify(copy, deep=True).problems
        assert problem.startswith(f"part-000001.parquet: {words}")


def test_a_part_without_a_result_is_whole(tmp_path: Path) -> None:
    """A shard of which every recording failed is as complete as any."""
    for number in range(3):
        (tmp_path / f"{number}.wav").write_text("no audio")
    emotion_batch.extract(tmp_path, tmp_path / "table", workers=1)
    assert emotion_batch.verify(tmp_path / "table", deep=True).is_whole


def test_what_is_not_ours_is_named_and_left(speech: Path, copy: Path, features: Path) -> None:
    """Files that the table did not make are problems that a person must solve; nothing but our own is removed."""
    (copy / "notes.txt").write_text("mine")
    pq.write_table(pq.read_table(features).slice(0, 1).replace_schema_metadata(None), copy / "mine.parquet")
    (copy / ".DS_Store").touch()
    leftovers = [copy / f".part-00000{number}.parquet.{'0a' * 16}.tmp" for number in range(2)]
    for path in (*leftovers, copy / ".mine.tmp"):
        path.write_bytes(b"half")
    for path in (leftovers[0], copy / ".mine.tmp"):
        os.utime(path, (0, 0))
    assert [problem.split(":")[0] for problem in emotion_batch.verify(copy).problems] == ["mine.parquet", "notes.txt"]
    done = call_command("extract", speech, copy)
    assert done.code == 0
    for name in ("mine.parquet", "notes.txt"):
        assert f"{name} is in the folder and is not a part of the table" in done.err
        assert (copy / name).exists()
    assert (copy / ".DS_Store").exists()
    # A run that is at work may be writing under such a name; others are not ours.
    assert [path.exists() for path in leftovers] == [False, True]
    assert (copy / ".mine.tmp").exists()
    done = call_command("verify", copy)
    assert done.code == 1
    assert "is not complete: 2 problems" in done.err
    assert "mine.parquet: this file is in the folder and is not a part of the table; move it away" in done.out


def test_a_whole_table_with_failures_verifies(features: Path, labels: Path) -> None:
    """Failed recordings with their rows are a complete table, of features and of labels: exit code 0, and said."""
    for table in (features, labels):
        for options in ((), ("--deep",)):
            done = call_command("verify", table, *options)
            assert done.code == 0, done.out
            assert done.out.splitlines()[-1].startswith("89 recordings, 89 rows: 84 ok, 5 failed (")
        assert call_command("verify", table, "--json").result["is_whole"] is True


def test_status_needs_nothing_but_the_table(features: Path, copy: Path) -> None:
    """What is done, left and failed, and what the last run was, is read from storage."""
    status = emotion_batch.status(features)
    assert (status.n_recordings, status.n_done, status.n_shards_done) == (89, 89, status.n_shards)
    assert status.counts.n_failed == 5
    assert status.last_run is not None
    assert status.last_run["outcome"] == "complete"
    assert status.at_work == ()
    delete(copy)
    status = emotion_batch.status(copy)
    assert 0 < status.n_done < status.n_recordings
    assert status.n_shards_done == status.n_shards - 1
    done = call_command("status", copy)
    assert done.code == 0
    assert f"{status.n_done} of 89 recordings" in done.out
    assert call_command("status", copy, "--json").result["n_left"] == 89 - status.n_done
    with pytest.raises(UsageError, match="there is no table; check the name"):
        emotion_batch.status(copy / "_table")
    assert call_command("verify", copy.parent).code == 2


def test_a_lease_says_who_is_at_work(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's lease is seen while it lives; one of a dead run is not believed, and becomes a record."""
    monkeypatch.setattr(lease, "_LOOK_S", 0.1)
    place = Folder.of(copy)
    n_runs = len(run_ids(place))
    held = Lease(place, "20260101T000000Z-0a")
    held.begin()
    held.tell(n_done_here=50, elapsed_s=2.0)
    held.renew()
    status = emotion_batch.status(copy)
    (holder,) = status.at_work
    assert (holder.host, holder.pid) == (platform.node(), os.getpid())
    assert status.rate == 25
    assert "20260101T000000Z-0a is at work" in call_command("status", copy).out
    held.end()
    assert emotion_batch.status(copy).at_work == ()

    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    now = time.time()
    for number, (host, pid, renewed_s) in enumerate(
        ((platform.node(), int(dead.stdout), now), (platform.node(), os.getpid(), now - 999), ("other", 1, now - 999))
    ):
        here = lease._namespace() if host == platform.node() else "elsewhere"
        holder = Holder(f"20260101T00000{number}Z-0b", host, pid, now - 1_000, renewed_s, namespace=here)
        place.publish(f"{lease.FOLDER}/{holder.run}.lease", seal(vars(holder)))
    assert len(emotion_batch.status(copy).lost) == 3
    assert others_at_work(place, "mine") == []
    assert emotion_batch.status(copy).lost == ()
    assert len(run_ids(place)) == n_runs + 3
    alive = Holder("20260101T000009Z-0c", "other", 1, now, now)
    place.publish(f"{lease.FOLDER}/{alive.run}.lease", seal(vars(alive)))
    assert others_at_work(place, "mine") == [alive]


# What a machine does whose clock is wrong. Its runs give a sign every second, because the test would be long otherwise.
_CLOCK = """
import json, sys, time
right = time.time
time.time = lambda: right() + float(sys.argv[1])
from emotion_batch.tables import lease, status
from emotion_batch.cli.table_commands import format_status
from emotion_batch.storage.folder import Folder
lease._RENEW_S, lease._LOOK_S, lease._LOOK_EVERY_S = 1.0, 3.0, 0.2
place = Folder.of(sys.argv[2])
"""
_WORKING = (
    _CLOCK
    + """
held = lease.Lease(place, "20260101T000000Z-0a")
held.tell(n_done_here=50, elapsed_s=2.0)
held.begin()
print("begun", flush=True)
time.sleep(100)
"""
)
_WATCHING = (
    _CLOCK
    + """
found = status.status(place.url)
runs = [[one.run for one in runs] for runs in (found.at_work, found.lost)]
print(json.dumps([runs, found.rate, str(format_status(found, "table"))]), flush=True)
sys.stdin.readline()
print(json.dumps([one.run for one in lease.others_at_work(place, "mine")]))
place.sweep()
"""
)


def test_a_clock_that_is_wrong_ends_no_run(copy: Path) -> None:
    """A run that renews its lease is at work, and one that does not is dead, whatever the clocks say."""
    place = Folder.of(copy)

    def start(program: str, ahead_s: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, str(ahead_s), os.fspath(copy)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    written = copy / f".part-000000.parquet.{'0a' * 16}.tmp"
    written.write_bytes(b"as it is written by another machine just now")
    working = start(_WORKING, 900)
    try:
        working.stdout.readline()
        # Of machines whose clocks were wrong too, and which are no more.
        for number, renewed_s in enumerate((time.time() + 2_000, time.time() - 5_000)):
            holder = Holder(f"20260101T00000{number + 1}Z-0b", "other", 1, renewed_s - 10, renewed_s)
            place.publish(f"{lease.FOLDER}/{holder.run}.lease", seal(vars(holder)))
        alive, dead = ["20260101T000000Z-0a"], ["20260101T000001Z-0b", "20260101T000002Z-0b"]
        watching = [start(_WATCHING, ahead_s) for ahead_s in (0, -900, 7_200)]
        for one in watching:
            (at_work, lost), rate, said = json.loads(one.stdout.readline())
            assert (at_work, sorted(lost), rate) == (alive, dead, 25.0)
            assert re.search(r"20260101T000000Z-0a is at work, .*, for (\d+ ms|\d(\.\d)? s)\n", said)
            assert "20260101T000001Z-0b on other stopped without a record; its last heartbeat was at 20" in said
        for one in watching:
            assert json.loads(one.communicate("\n", timeout=60)[0]) == alive
        assert emotion_batch.cancel(copy) == alive
        assert written.exists()
    finally:
        working.kill()
        working.communicate()


def test_a_run_leaves_its_record(features: Path, speech: Path) -> None:
    """Settings, versions, counts, examples and times of a run are in its record, whatever they are for."""
    # The first, for other tests may have run the command again.
    first = min(features.glob("_table/runs/*.json"))
    record = json.loads(first.read_text())
    assert (record["run"], record["outcome"]) == (first.stem, "complete")
    assert record["counts"]["n_recordings"] == 89
    assert record["settings"]["source"] == os.fspath(speech)
    assert record["versions"]["soxr"]
    assert {status for status, examples in record["examples"].items() if examples} == set(
        record["counts"]["by_status"]
    ) - {"ok"}
    stages = record["spent"]["stages_s"]
    assert set(stages) == {"list", "decode", "features", "write"}
    assert all(seconds > 0 for seconds in stages.values())
    assert record["spent"]["read_bytes"] > 1_000_000
    assert record["audio_s"] > 60


@pytest.mark.parametrize(
    ("statuses", "is_retried"),
    [
        pytest.param(("empty", "not_audio", "too_short", "not_finite"), False, id="what the recordings say"),
        pytest.param(("empty", "truncated"), True, id="truncated"),
        pytest.param(("unreadable",), True, id="unreadable"),
        pytest.param(("vanished",), True, id="vanished"),
        pytest.param(("crashed", "timeout", "memory"), True, id="what kills"),
    ],
)
def test_a_retry_is_advised_only_where_it_could_mend_something(
    tmp_path: Path, statuses: tuple[str, ...], is_retried: bool
) -> None:
    """`status` and `verify` name `retry` if some failure may pass, and never for what the recordings themselves say."""
    table = tmp_path / "table"
    write_table_of(table, ("ok", *statuses))
    for command in ("status", "verify"):
        (line,) = [line for line in call_command(command, table).out.splitlines() if line.startswith("next: ")]
        assert (line == f"next: emotion-batch retry {table}") == is_retried, line


def test_what_changed_is_for_the_command_that_lists(tmp_path: Path) -> None:
    """A recording that differs from its listing is read by the same command as before, which lists it again, and not by a retry."""
    write_table_of(tmp_path, ("ok", "changed", "vanished"))
    assert f"next: emotion-batch resume {tmp_path}" in call_command("status", tmp_path).out


def test_labels_of_a_feature_table_are_retried_there(tmp_path: Path, labels: Path, features: Path) -> None:
    """`status` of labels whose features may be mended names the table that `retry` takes."""
    assert f"next: emotion-batch retry {features}" in call_command("status", labels).out
    shutil.copytree(labels, tmp_path / "labels")
    info = tmp_path / "labels" / "_table" / "table.json"
    info.write_bytes(seal({**unseal(info.read_bytes()), "source": os.fspath(tmp_path / "gone")}))
    assert f"next: emotion-batch retry {tmp_path / 'labels'}" in call_command("status", tmp_path / "labels").out


def write_table_of(folder: Path, statuses: tuple[str, ...]) -> None:
    """Write a feature table whose recordings have these statuses."""
    place = Folder.of(folder)
    info = TableInfo(schema.FEATURES, "/archive", FeatureSettings(), Segments())
    names = [f"{number}.wav" for number in range(len(statuses))]
    create_info(place, info)
    manifest = Manifest(place)
    columns = {"file": names, "raw_file": [None] * len(names), "size": [1] * len(names), "version": ["1"] * len(names)}
    manifest.grow(pa.table(columns, ENTRY_SCHEMA), info.segments)
    rows = pa.Table.from_pylist(
        [
            {
                "file": name,
                "start_s": 0.5,
                "end_s": 1.0 if status == "ok" else None,
                "status": status,
                "error": None if status == "ok" else "why",
                "mfcc": [1.0] * 40 if status == "ok" else None,
            }
            for name, status in zip(names, statuses, strict=True)
        ],
        info.schema,
    )
    parts.publish_part(place, info, 0, manifest.shards[0].digest, rows)
