"""Each file of a table's `_table/`, damaged in each way: it is named, and the same command makes the table whole again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
import soundfile
from support.commands import call_command
from support.recordings import tone
from support.shell_cluster import ShellCluster

import emotion_batch
from emotion_batch.errors import CancelledError, EmotionBatchError, IncompleteError, UsageError
from emotion_batch.progress import Watcher
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.folder import Folder, seal
from emotion_batch.tables import lease
from emotion_batch.tables.lease import Holder, Lease
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.table import read_info
from emotion_batch.worker.job import Job, TablePlace
from emotion_batch.worker.shard import Work

RUN = "20260101T000000Z-0a"
# What says nothing about rows: it may be passed over.
ASIDE = ("runs", "attempts")


class Night:
    """An archive, the two tables of it, and the commands that made them."""

    def __init__(self, folder: Path, address: str) -> None:
        self.archive, self.features, self.labels = (folder / name for name in ("archive", "features", "labels"))
        self._at = {"scheduler": address, "force": True}
        self.notes: list[str] = []

    def extract(self, table: Path, archive: Path | None = None, **options: Any) -> emotion_batch.Summary:
        self.notes = []
        watcher = Watcher(on_note=self.notes.append)
        return emotion_batch.extract(archive or self.archive, table, **self._at, **options, watcher=watcher)

    def label(self, table: Path, features: Path | None = None) -> emotion_batch.Summary:
        self.notes = []
        watcher = Watcher(on_note=self.notes.append)
        return emotion_batch.label(features or self.features, table, model="tess-seed", **self._at, watcher=watcher)

    def again(self, kind: str, table: Path) -> emotion_batch.Summary:
        return self.extract(table) if kind == "features" else self.label(table)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, cluster: ShellCluster) -> Night:
    """Tables of two generations, with all that may lie in a ledger."""
    made = Night(tmp_path_factory.mktemp("night"), cluster.address)
    made.archive.mkdir()
    for number in range(40):
        write(made.archive / f"{number:02d}.wav", number)
    made.extract(made.features)
    made.label(made.labels)
    write(made.archive / "00.wav", 50)
    for number in range(40, 45):
        write(made.archive / f"{number:02d}.wav", number)
    made.extract(made.features)
    made.label(made.labels)
    for table in (made.features, made.labels):
        place = Folder.of(table)
        assert Manifest(place).generation == 2
        # Of a process of this machine that is gone: for one of another machine each command would wait.
        holder = Holder(RUN, "here", 2**30, 0.0, 0.0, namespace=lease._namespace())
        place.publish(lease.lease_name(RUN), seal(asdict(holder)))
        place.publish(lease.cancellation_name(RUN), seal({"host": "elsewhere", "at": 0.0}))
        note = {"run": RUN, "began": 0.0, "host": "elsewhere", "pid": 1, "is_repeated": False}
        place.publish("_table/attempts/000000.json", seal(note))
    return made


def write(path: Path, number: int) -> None:
    soundfile.write(path, tone(0.6, 8_000, hertz=100 + 7 * number), 8_000)


def rows(table: Path) -> list[dict[str, object]]:
    found = pyarrow.dataset.dataset(table).to_table()
    return found.sort_by([("file", "ascending"), ("start_s", "ascending")]).to_pylist()


def flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(8 * len(data))
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def says_the_same(one: bytes, other: bytes) -> bool:
    """Return whether two JSON files differ in no more than what their digest is called, which comes last."""
    first, second = (list(json.loads(data).items()) for data in (one, other))
    return first[:-1] == second[:-1]


def oddly(value: Any) -> Any:
    """Return a JSON value with others of wrong types in it, without the digest that would tell."""
    if isinstance(value, dict):
        return {name: oddly(one) for name, one in value.items() if name != "sha256"}
    return {str: 7, list: None, type(None): [1]}.get(type(value), str(value))


def digits(data: bytes) -> bytes:
    """Return a JSON file without its digest, of whose last digits one is another."""
    text = json.dumps({name: value for name, value in json.loads(data).items() if name != "sha256"})
    at = max(text.rfind(digit) for digit in "0123456789")
    return (text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]).encode()


Damage = Callable[[bytes, random.Random], bytes | None]
WAYS: dict[str, Damage] = {
    "flipped": flip,
    "truncated": lambda data, _: data[: len(data) // 2],
    "empty": lambda *_: b"",
    "missing": lambda *_: None,
    "garbage": lambda data, chance: chance.randbytes(len(data)),
}
ODD: dict[str, Damage] = {
    "null": lambda *_: b"null",
    "list": lambda *_: b'["table", 1]',
    "nothing": lambda *_: b"{}",
    "deep": lambda *_: b"[" * 100_000,
    "odd types": lambda data, _: json.dumps(oddly(json.loads(data))).encode(),
    "another digit": lambda data, _: digits(data),
}
FILES = [
    "table.json",
    *(f"manifest/00000{number}{rest}" for number in (1, 2) for rest in (".json", "-*.arrow")),
    *(f"runs/{one}" for one in ("2*-????????.json", f"{RUN}.lease", f"{RUN}.cancel")),
    "attempts/000000.json",
    *(f"model/{one}" for one in ("card.json", "model.keras", "model.onnx", "reliability.png")),
]
# A lease that seems to be of another machine is looked at for a while, each time.
IN_CI = {
    "features": [one for one in FILES if not one.endswith(".lease")],
    "labels": ("manifest/000002-*.arrow", "model/card.json", "model/model.onnx"),
}


def damaged(table: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Yield each way of damage of the last file of a name, done."""
    *_, path = sorted((table / "_table").glob(pattern))
    whole, chance = path.read_bytes(), random.Random(pattern)  # noqa: S311 a seed, no secret
    ledger_files = {one: one.read_bytes() for one in (table / "_table").rglob("*") if one.is_file()}
    parts = {one: one.read_bytes() for one in table.glob("*.parquet")}
    for name, damage in {**WAYS, **(ODD if path.suffix in (".json", ".lease", ".cancel") else {})}.items():
        data = damage(whole, chance)
        path.unlink() if data is None else path.write_bytes(data)
        yield name, path
        for one in [*(table / "_table").rglob("*"), *table.glob("*.parquet")]:
            if one.is_file() and one not in ledger_files and one not in parts:
                one.unlink()
        for one, content in {**ledger_files, **parts}.items():
            one.write_bytes(content)


def names_or_passes_over(command: Callable[[], object], path: Path) -> None:
    """See that a command ends well, or with one sentence that says which file is damaged and what to do."""
    try:
        command()
    except EmotionBatchError as error:
        said = str(error)
        # That the newest generation is missing, or a digit without a digest another, shows only in the parts.
        assert path.name in said or path.parent.name in said or " cannot be used " in said, said
        assert "the command that made" in said, said


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        pytest.param(kind, one, marks=() if one in IN_CI[kind] else pytest.mark.torture)
        for kind, aside in (("features", "model"), ("labels", ASIDE))
        for one in FILES
        if not one.startswith(aside)
    ],
)
def test_damage_is_named_and_mended(night: Night, tmp_path: Path, kind: str, pattern: str) -> None:
    """`verify --deep` names the file, what needs it says the way out, and the same command makes the table what it was."""
    table = tmp_path / "table"
    shutil.copytree(getattr(night, kind), table)
    undisturbed = rows(table)
    for way, path in damaged(table, pattern):
        is_aside = path.parent.name in ASIDE or (path.name == "reliability.png" and way == "missing")
        names_or_passes_over(lambda: emotion_batch.status(table), path)
        names_or_passes_over(lambda: emotion_batch.export(table, tmp_path / "out", force=True), path)
        if kind == "features":
            names_or_passes_over(lambda: emotion_batch.retry(table), path)
        problems = emotion_batch.verify(table, deep=True).problems
        assert is_aside or problems, way
        is_named = any(path.name in one for one in problems)
        assert is_named or is_aside or way in ("missing", "another digit"), (way, problems)
        night.again(kind, table)
        assert rows(table) == undisturbed, way
        assert emotion_batch.verify(table, deep=True).problems == (), way
        assert emotion_batch.status(table).n_done == 45, way


FLIPS = [pytest.param(6, 0), pytest.param(300, 1, marks=pytest.mark.torture)]


@pytest.mark.parametrize(("n_flips", "seed"), FLIPS)
@pytest.mark.parametrize("kind", ["features", "labels"])
def test_single_bits_are_named_or_change_nothing(
    night: Night, tmp_path: Path, kind: str, n_flips: int, seed: int
) -> None:
    """A flipped bit in any file of a ledger is named or changed nothing, and after the same command the table is whole."""
    chance = random.Random(f"{kind} {seed}")  # noqa: S311 a seed, no secret
    original = getattr(night, kind)
    undisturbed = rows(original)
    files = sorted(path for path in (original / "_table").rglob("*") if path.is_file())
    for number in range(n_flips):
        table = tmp_path / str(number)
        shutil.copytree(original, table)
        path = table / chance.choice(files).relative_to(original)
        whole = path.read_bytes()
        path.write_bytes(flip(whole, chance))
        names_or_passes_over(lambda table=table: emotion_batch.status(table), path)
        problems = emotion_batch.verify(table, deep=True).problems
        is_named = any(path.name in one for one in problems)
        assert is_named or path.parent.name in ASIDE or says_the_same(whole, path.read_bytes()), (path, problems)
        night.again(kind, table)
        assert rows(table) == undisturbed, path
        assert emotion_batch.verify(table, deep=True).problems == (), path
        shutil.rmtree(table)


def lose_all(table: Path) -> None:
    shutil.rmtree(table / "_table" / "manifest")


def lose_the_ledger(table: Path) -> None:
    shutil.rmtree(table / "_table")


def lose_the_newest(table: Path) -> None:
    for path in (table / "_table" / "manifest").glob("000002*"):
        path.unlink()


def lose_entries(table: Path) -> None:
    for path in (table / "_table" / "manifest").glob("*.arrow"):
        path.unlink()


def lose_entries_and_settings(table: Path) -> None:
    lose_entries(table)
    (table / "_table" / "table.json").write_text("{")


def exchange(table: Path) -> None:
    one, two = (table / "_table" / "manifest" / f"00000{number}.json" for number in (1, 2))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def repeat(table: Path) -> None:
    """Put a whole generation, which is of earlier entries, where a newer one was."""
    shutil.copy(table / "_table" / "manifest" / "000001.json", table / "_table" / "manifest" / "000002.json")


def break_the_middle(table: Path) -> None:
    (table / "_table" / "manifest" / "000001.json").unlink()


def break_a_part_too(table: Path) -> None:
    lose_entries(table)
    part = table / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:1_000])


def lose_the_newest_and_break_its_rows(table: Path) -> None:
    """Leave of the lost generation nothing but a part whose rows cannot be read."""
    lose_the_newest(table)
    part = max(table.glob("part-*.parquet"))
    data = bytearray(part.read_bytes())
    data[200] ^= 1
    part.write_bytes(data)


def swap_parts_too(table: Path) -> None:
    (table / "_table" / "manifest" / "000002.json").write_text("{")
    one, two = (table / f"part-00000{number}.parquet" for number in (0, 1))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def exchange_as_of_before(table: Path) -> None:
    """Exchange generations that do not say which they are."""
    exchange(table)
    for path in (table / "_table" / "manifest").glob("*.json"):
        index = json.loads(path.read_bytes())
        del index["sha256"], index["generation"]
        path.write_text(json.dumps(index))


SCENES = (
    *(lose_the_newest, lose_the_newest_and_break_its_rows, break_a_part_too, swap_parts_too),
    *(
        pytest.param(scene, marks=pytest.mark.torture)
        for scene in (
            *(lose_all, lose_the_ledger, lose_entries, lose_entries_and_settings, exchange, exchange_as_of_before),
            *(repeat, break_the_middle),
        )
    ),
)


@pytest.mark.parametrize("damage", SCENES)
def test_the_archive_changed_since(night: Night, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """With recordings new, changed and gone since, the same command makes of a damaged table what it makes of a whole one."""
    archive, table, whole = (tmp_path / name for name in ("archive", "table", "whole"))
    shutil.copytree(night.archive, archive)
    # As the archive's own name: it is what the tables are of.
    aside = night.archive.with_name("aside")
    for copied in (table, whole):
        shutil.copytree(night.features, copied)
    damage(table)
    night.archive.rename(aside)
    archive.rename(night.archive)
    try:
        for number in (1, 42):
            (night.archive / f"{number:02d}.wav").unlink()
        write(night.archive / "02.wav", 60)
        write(night.archive / "99.wav", 61)
        night.extract(whole)
        night.extract(table)
        expected = rows(whole)
        assert {row["file"]: row["status"] for row in expected}["01.wav"] == "ok"
        if damage in (break_a_part_too, lose_the_newest_and_break_its_rows):
            # Its rows cannot be read any more, and one of its recordings is gone.
            gone = {row["file"] for row in expected} - {row["file"] for row in rows(table)}
            assert gone <= {"01.wav", "42.wav"}
            expected = [row for row in expected if row["file"] not in gone]
        assert rows(table) == expected
        assert emotion_batch.verify(table, deep=True).problems == ()
        assert night.extract(table).n_shards_done == 0
        # As if the run had ended before the last file of what it wrote again was there.
        max((table / "_table" / "manifest").glob("*.json")).unlink()
        night.extract(table)
        assert rows(table) == expected
        assert emotion_batch.verify(table, deep=True).problems == ()
    finally:
        shutil.rmtree(night.archive)
        aside.rename(night.archive)


def test_a_lost_generation_is_named_by_what_reads(night: Night, tmp_path: Path) -> None:
    """Where new recordings are those of a lost generation, no command takes the others for all of them."""
    table = tmp_path / "table"
    shutil.copytree(night.features, table)
    (table / "_table" / "manifest" / "000002.json").unlink()
    for read in (
        lambda: emotion_batch.status(table),
        lambda: emotion_batch.retry(table, scheduler=None),
        lambda: emotion_batch.export(table, tmp_path / "export", file_format="csv"),
        lambda: emotion_batch.report(table, output=tmp_path / "report.html"),
        lambda: emotion_batch.query(table, "SELECT count(*) FROM features"),
        lambda: emotion_batch.plan(table),
        lambda: night.label(tmp_path / "labels", table),
    ):
        with pytest.raises(IncompleteError, match=r"_table/manifest/000002\.json"):
            read()
    (problem,) = emotion_batch.verify(table).problems
    assert "_table/manifest/000002.json" in problem


@pytest.mark.parametrize("damage", [exchange, repeat])
def test_labels_take_their_manifest_from_the_features(
    night: Night, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Generations that lie under the names of others are copied again from the feature table."""
    labels = tmp_path / "labels"
    shutil.copytree(night.labels, labels)
    damage(labels)
    night.label(labels)
    assert rows(labels) == rows(night.labels)
    assert emotion_batch.verify(labels, deep=True).problems == ()


@pytest.mark.parametrize(
    "damage",
    [
        lose_entries,
        *(pytest.param(scene, marks=pytest.mark.torture) for scene in (lose_all, lose_the_newest, exchange)),
    ],
)
def test_labels_of_a_damaged_feature_table(night: Night, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A labelling says which table's file is damaged; after the command of that table the same labelling is whole."""
    home, features, labels = tmp_path / "home", night.features, tmp_path / "labels"
    shutil.copytree(features, home)
    shutil.copytree(night.labels, labels)
    undisturbed = rows(labels)
    try:
        damage(features)
        said = None
        try:
            night.label(labels)
        except EmotionBatchError as error:
            said = str(error)
        assert said is None or (str(features) in said and "run the " in said)
        night.extract(features)
        night.label(labels)
        assert rows(labels) == undisturbed
        for table in (features, labels):
            assert emotion_batch.verify(table, deep=True).problems == ()
        assert night.label(labels).n_shards_done == 0
    finally:
        shutil.rmtree(features)
        home.rename(features)


@pytest.mark.torture
@pytest.mark.parametrize(
    "which", [("labels",), ("features",), ("labels", "features"), ("settings", "part")], ids=" and ".join
)
def test_kept_features_stay_with_their_labels(
    night: Night, tmp_path: Path, cluster: ShellCluster, which: tuple[str, ...]
) -> None:
    """Entries that are lost in a label table, the table that keeps its features or both cost no row of what is gone."""
    archive = tmp_path / "archive"
    shutil.copytree(night.archive, archive)

    def label() -> emotion_batch.Summary:
        kept = tmp_path / "features"
        at = {"scheduler": cluster.address, "force": True}
        return emotion_batch.label(archive, tmp_path / "labels", model="tess-seed", keep_features=kept, **at)

    label()
    undisturbed = [rows(tmp_path / name) for name in ("labels", "features")]
    (archive / "01.wav").unlink()
    for name in which:
        if name == "settings":
            (tmp_path / "labels" / "_table" / "manifest" / "000001.json").write_text("{")
        elif name == "part":
            (tmp_path / "labels" / "part-000000.parquet").unlink()
        else:
            lose_entries(tmp_path / name)
    label()
    assert [rows(tmp_path / name) for name in ("labels", "features")] == undisturbed
    for name in ("labels", "features"):
        assert emotion_batch.verify(tmp_path / name, deep=True).problems == ()
    assert label().n_shards_done == 0


def test_the_only_run_mends(night: Night, tmp_path: Path) -> None:
    """While another run is at work on a table, its manifest is not written again: one sentence says what to wait for."""
    table = tmp_path / "table"
    shutil.copytree(night.features, table)
    path = table / "_table" / "manifest" / "000001.json"
    path.write_bytes(b"{")
    other = Lease(Folder.of(table), "20260102T000000Z-0b")
    other.begin()
    with pytest.raises(
        IncompleteError, match=r"and run 20260102T000000Z-0b is at work on it, on .* when that run has ended"
    ):
        night.extract(table)
    other.end()
    night.extract(table)
    assert any("manifest/000001.json is not as it was written" in note for note in night.notes)
    assert rows(table) == rows(night.features)


def test_settings_are_written_anew_only_where_parts_are_of_them(night: Night, tmp_path: Path) -> None:
    """Without `table.json` a table is what its parts say; other settings, or another kind, are refused in a sentence."""
    table = tmp_path / "table"
    shutil.copytree(night.features, table)
    (table / "_table" / "table.json").unlink()
    for command in (
        lambda: night.extract(table, settings=FeatureSettings(n_mfcc=13)),
        lambda: night.extract(table, segments=Segments(0.0, 1.0)),
        lambda: night.label(table),
    ):
        with pytest.raises(
            UsageError, match=r"table\.json is damaged or missing, and none of its parts was made with these"
        ):
            command()
    assert night.extract(table).n_shards_done == 0
    assert any("table.json was damaged or missing, and was written anew" in note for note in night.notes)
    assert emotion_batch.verify(table, deep=True).is_whole


def test_a_damaged_cancellation_is_one(night: Night, tmp_path: Path) -> None:
    """A run that was cancelled begins no further shard, whatever is in the file."""
    place = Folder.of(tmp_path)
    (tmp_path / "_table" / "runs").mkdir(parents=True)
    info = read_info(Folder.of(night.features))
    assert info is not None
    work = Work(Job(features=TablePlace(place, info), archive=Folder.of(night.archive)), RUN)
    whole = seal({"host": "elsewhere", "at": 0.0})
    for damage in (*WAYS.values(), *ODD.values()):
        data = damage(whole, random.Random(0))  # noqa: S311 a seed, no secret
        if data is None:
            place.delete(lease.cancellation_name(RUN))
            work.refuse_if_cancelled()
            continue
        place.publish(lease.cancellation_name(RUN), data)
        with pytest.raises(CancelledError, match=r"was cancelled( from \w+)?; what is finished"):
            work.refuse_if_cancelled()


def test_a_damaged_lease_of_a_live_run_is_written_anew(tmp_path: Path) -> None:
    """The process or the task that drives it does so; until then it is passed over."""
    place = Folder.of(tmp_path)
    (tmp_path / "_table" / "runs").mkdir(parents=True)
    path = tmp_path / lease.lease_name(RUN)
    held = Lease(place, RUN)
    held.begin()
    left = held.leave("tcp://elsewhere:1", (3,))
    driven = Lease(place, RUN, replace(left, driver=1))
    whole = path.read_bytes()
    for name, damage in {**WAYS, **ODD}.items():
        data = damage(whole, random.Random(name))  # noqa: S311 a seed, no secret
        if data is None or name == "another digit":
            continue
        path.write_bytes(data)
        assert lease.read_holders(place) == [], name
        driven.renew()
        (holder,) = lease.read_holders(place)
        assert (holder.is_fresh, holder.driver) == (True, 1), name
        path.write_bytes(data)
        held.renew()
        (holder,) = lease.read_holders(place)
        assert holder.again == (3,), name


def test_what_a_person_sees(night: Night, tmp_path: Path) -> None:
    """Commands that list no archive say which file is damaged and end with 1; the command of the table mends it and says so."""
    table = tmp_path / "table"
    shutil.copytree(night.features, table)
    undisturbed = rows(table)
    path = table / "_table" / "manifest" / "000002.json"
    path.write_bytes(flip(path.read_bytes(), random.Random(0)))  # noqa: S311 a seed, no secret
    sentence = "_table/manifest/000002.json is not as it was written (a damaged file)"
    done = call_command("status", table)
    assert done.code == 1, done.err
    assert done.err.count("\n") == 1, done.err
    assert f"{sentence}; run the command that made the table again" in done.err
    done = call_command("verify", table, "--deep")
    assert (done.code, sentence in done.out) == (1, True), done.out
    done = call_command("extract", night.archive, table)
    assert done.code == 0, done.err
    assert f"{sentence}; it was written anew" in done.err
    assert rows(table) == undisturbed
