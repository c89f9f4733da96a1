"""Tests of the manifest: shards, digests and generations."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from emotion_batch.errors import UsageError
from emotion_batch.settings import Segments
from emotion_batch.storage.entries import ENTRY_SCHEMA, SEGMENTED_SCHEMA
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import shard_entries
from emotion_batch.tables.manifest import Growth, Manifest
from emotion_batch.tables.shard_entries import digest, read_entries
from emotion_batch.tables.sharding import MAX_SHARDS, count_shards, cut, estimate_costs

ONE, WINDOWS = Segments(), Segments.windows(3)


def listing(files: Sequence[str], sizes: Sequence[int | None] | None = None, version: str = "1") -> pa.Table:
    n = len(files)
    columns = [list(files), [None] * n, list(sizes or [80_000] * n), [version] * n]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, ENTRY_SCHEMA, strict=True)], schema=ENTRY_SCHEMA)


def names(n: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number:07d}.wav" for number in range(n)]


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 1_000, 2_798, 100_000])
def test_shards_hold_each_recording_once_in_order(n: int) -> None:
    """Cutting loses and repeats nothing, and makes no empty shard."""
    shards = cut(listing(names(n)), ONE)
    assert [name for shard in shards for name in shard["file"].to_pylist()] == names(n)
    assert all(shard.num_rows for shard in shards)


def test_the_number_of_shards_suits_small_machines_and_schedulers() -> None:
    """A hundred recordings keep two workers busy, ten million do not drown the scheduler."""
    usual = 100_000

    def count(n_recordings: int, size: int = usual) -> int:
        return count_shards(n_recordings, n_recordings * size)

    assert [count(n) for n in (1, 10, 100, 1_000, 2_798, 60_000)] == [1, 1, 3, 9, 15, 69]
    assert count(10_000_000) == 9_766
    assert count(10**8) == MAX_SHARDS
    assert [count(10**k) for k in range(9)] == sorted(count(10**k) for k in range(9))
    assert count(10, 10**9) == 10
    assert count(1_000, 10**9) == 932


@pytest.mark.parametrize("segments", [ONE, WINDOWS, Segments.windows(3, 1)], ids=["one segment", "windows", "overlap"])
def test_shards_are_even_in_what_they_read(segments: Segments) -> None:
    """No shard costs more than an even share and one recording: large ones weigh more, one segment of it no more."""
    sizes = [30_000] * 500 + [1_000_000] * 500 + [10**10] * 10 + [None] * 10
    shards = cut(listing(names(len(sizes)), sizes), segments)
    costs = [estimate_costs(shard, segments) for shard in shards]
    total = sum(float(cost.sum()) for cost in costs)
    for cost in costs:
        assert cost.sum() <= total / len(costs) * 2 + cost.max()
    heaviest = max(float(cost.max()) for cost in costs)
    assert heaviest == (
        1_168_384 if segments is ONE else pytest.approx(10**10 * (3 if segments.hop_s == 1 else 1), rel=0.01)
    )


def test_one_long_recording_does_not_take_a_thousand_with_it() -> None:
    """Windows of three hours are a shard of their own, those of short recordings are shared out among the others."""
    sizes = [100_000] * 3_000 + [2_000_000_000] + [100_000] * 3_000
    shards = cut(listing(names(len(sizes)), sizes), WINDOWS)
    costs = [float(estimate_costs(shard, WINDOWS).sum()) for shard in shards]
    assert max(costs) < 2_000_000_000 * 1.03
    assert sorted(costs)[-2] < sum(costs) / 40
    assert len(shards) >= 10


def test_a_compressed_byte_weighs_more() -> None:
    """An hour of MP3 is an hour, whatever its size."""
    costs = estimate_costs(listing(["a.wav", "b.MP3", "c.flac"]), WINDOWS)
    assert (costs - 16_384).tolist() == [80_000, 800_000, 160_000]


def test_a_digest_follows_from_the_entries_alone() -> None:
    """A digest changes with name, size and version, and not with how the entries are held."""
    (batch,) = cut(listing(names(3)), ONE)[0].to_batches()
    assert digest(batch) == digest(listing(["x", *names(3)]).slice(1).to_batches()[0])
    others = (listing(names(3, "b")), listing(names(3), [1, 80_000, 80_000]), listing(names(3), version="2"))
    assert len({digest(one.to_batches()[0]) for one in others} | {digest(batch)}) == 4


ODD = [
    {"file": "a", "raw_file": None, "size": 1, "version": "12"},
    {"file": "b%FF", "raw_file": b"b\xff", "size": None, "version": None},
    {"file": "é", "raw_file": None, "size": 0, "version": ""},
]


@pytest.mark.parametrize("name", ENTRY_SCHEMA.names)
@pytest.mark.parametrize("number", range(3))
def test_a_digest_depends_on_every_value(name: str, number: int) -> None:
    """One value other, unknown or known, is another digest; where the entries lie in memory is of no matter."""

    def batch_of(rows: list[dict[str, object]]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist(rows, schema=ENTRY_SCHEMA)

    found = digest(batch_of(ODD))
    around = batch_of([ODD[1], *ODD, ODD[0]]).slice(1, 3)
    assert digest(around) == found == digest(pa.ipc.read_record_batch(around.serialize(), ENTRY_SCHEMA))
    value = ODD[number][name]
    kind = ENTRY_SCHEMA.field(name).type
    nothing: object = 0 if pa.types.is_integer(kind) else b"" if pa.types.is_binary(kind) else ""
    for other in (None, nothing, 7 if pa.types.is_integer(kind) else b"7" if pa.types.is_binary(kind) else "7"):
        if other != value and not (name == "file" and other is None):
            rows = [{**row, name: other} if at == number else row for at, row in enumerate(ODD)]
            assert digest(batch_of(rows)) != found
    # Nor do values change places between rows or columns.
    assert digest(batch_of([{**ODD[0], "version": "1"}, *ODD[1:]])) != found
    assert digest(batch_of([{**ODD[0], "file": "a1", "version": "2"}, *ODD[1:]])) != found


def test_listed_segments_are_frozen(tmp_path: Path) -> None:
    """Segments come back as they were listed, another list changes their recordings alone, and damaged manifests are salvaged."""

    def with_segments(texts: list[str]) -> pa.Table:
        return listing(names(len(texts))).append_column("segments", pa.array(texts)).cast(SEGMENTED_SCHEMA)

    listed = Segments(0.0, 6.0, source="/turns.csv")
    texts = [f"[[{number}.0,{number}.5,null,null]]" for number in range(2_000)]
    entries = with_segments(texts)
    manifest = Manifest(Folder.of(tmp_path))
    assert manifest.grow(entries, listed) == Growth(n_new=2_000)
    again = Manifest(Folder.of(tmp_path))
    assert pa.Table.from_batches(again.entries(sorted(again.shards))).equals(entries)
    assert all(one.digest.startswith("3:") for one in again.shards.values())
    assert again.grow(entries, listed) == Growth()
    changed = with_segments(["[]" if number == 700 else text for number, text in enumerate(texts)])
    assert again.grow(changed, listed) == Growth(n_changed=1)
    assert pa.Table.from_batches(again.entries(sorted(again.shards))).equals(changed)
    wanted = {one.digest for one in again.shards.values()}
    found = shard_entries.salvage(Folder.of(tmp_path), wanted)
    assert found.keys() == wanted
    # A recording with more segments costs more, and shards are even in that.
    many = with_segments([text * (500 if number < 20 else 1) for number, text in enumerate(texts)])
    assert estimate_costs(many, listed)[0] > 10 * estimate_costs(many, listed)[-1]
    shards = cut(many, listed)
    assert max(shard.num_rows for shard in shards) > 2 * min(shard.num_rows for shard in shards)


@pytest.mark.parametrize("file", [1, 5_000, 2**24])
def test_entries_lie_in_files_and_are_read_in_stretches(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written or read at once, in whatever order and of however many generations, each shard has its own entries."""
    monkeypatch.setattr(shard_entries, "_FILE_BYTES", file)
    manifest = Manifest(Folder.of(tmp_path))
    manifest.grow(listing(names(3_000)), ONE)
    manifest.grow(listing(names(3_000, "x"), [5, *[80_000] * 2_999]), ONE)
    manifest.grow(listing(names(3_000), [5, *[80_000] * 2_998, 5]), ONE)
    shards = list(manifest.shards)
    for order in (shards, shards[::-1], shards[::3], shards[-1:]):
        found = list(manifest.entries(order))
        assert [digest(batch) for batch in found] == [manifest.shards[shard].digest for shard in order]
    follower = Manifest.following(Folder.of(tmp_path / "labels"), manifest)
    assert follower.shards == manifest.shards
    assert [digest(batch) for batch in follower.entries(shards)] == [manifest.shards[shard].digest for shard in shards]
    assert not follower.find_damage()
    (tmp_path / "labels" / "_table" / "manifest" / manifest.shards[shards[-1]].file).unlink()
    assert len(follower.find_damage()) == 1


@pytest.mark.parametrize(
    "segments", [ONE, WINDOWS, Segments.windows(3, 0.7)], ids=["one segment", "windows", "overlap"]
)
def test_shards_follow_from_the_listing_and_not_from_its_chunks(segments: Segments) -> None:
    """However a listing is held in memory, the shards are the same."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(0, 3_000_000, 5_000).tolist()
    suffixes = generator.choice([".wav", ".flac", ".mp3", ".opus"], 5_000).tolist()
    entries = listing([f"{number:07d}{suffix}" for number, suffix in enumerate(suffixes)], sizes)
    whole = [shard.num_rows for shard in cut(entries, segments)]
    for chunk in (1, 613, 4_999):
        pieces = pa.Table.from_batches(entries.to_batches(max_chunksize=chunk), ENTRY_SCHEMA)
        assert [shard.num_rows for shard in cut(pieces, segments)] == whole


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("chunk", [7, 10_000])
def test_a_listing_is_compared_recording_by_recording(chunk: int, prune: bool, tmp_path: Path) -> None:
    """However often it changes all over, the manifest has what a look at each recording by itself says."""
    generator = np.random.default_rng(0)
    manifest = Manifest(Folder.of(tmp_path))
    known: dict[str, tuple[int | None, str | None]] = {}
    for _ in range(6):
        numbers = np.flatnonzero(generator.random(1_500) < 0.95).tolist()
        listed = {f"{number:05d}.wav": known.get(f"{number:05d}.wav", (80_000, "1")) for number in numbers}
        for name in generator.choice(list(listed), 20).tolist():
            listed[name] = [(5, "1"), (80_000, "2"), (None, "3"), (None, None)][generator.integers(4)]
        columns = [list(listed), [None] * len(listed), *map(list, zip(*listed.values(), strict=True))]
        entries = pa.table(
            [pa.array(c, f.type) for c, f in zip(columns, ENTRY_SCHEMA, strict=True)], schema=ENTRY_SCHEMA
        )
        batches = entries.to_batches(max_chunksize=chunk)
        growth = manifest.grow(pa.Table.from_batches(batches, ENTRY_SCHEMA), ONE, prune=prune, force=True)
        gone, new = set(known) - set(listed), set(listed) - set(known)
        changed = {
            name
            for name in set(known) & set(listed)
            if any(now is not None and now != then for now, then in zip(listed[name], known[name], strict=True))
        }
        n_gone = (0, len(gone)) if prune else (len(gone), 0)
        assert growth == Growth(len(new), len(changed), *n_gone)
        for name in new | changed:
            known[name] = listed[name]
        for name in gone if prune else ():
            del known[name]
        found = [
            row for batch in Manifest(Folder.of(tmp_path)).entries(list(manifest.shards)) for row in batch.to_pylist()
        ]
        assert len(found) == len(known)
        assert {row["file"]: (row["size"], row["version"]) for row in found} == known


def test_a_manifest_grows_by_generations(tmp_path: Path) -> None:
    """New recordings make new shards, changed ones only their own again, gone ones stay and are counted."""
    table = Folder.of(tmp_path)
    manifest = Manifest(table)
    assert manifest.grow(listing(names(100)), ONE) == Growth(n_new=100)
    before = dict(manifest.shards)
    again = Manifest(table)
    assert again.shards == before
    assert again.grow(listing(names(100)), ONE) == Growth()
    assert again.generation == 1

    files = [*names(99)[1:], *names(5, "new")]
    sizes: list[int | None] = [80_000] * len(files)
    sizes[0] = 5
    assert again.grow(listing(files, sizes), ONE) == Growth(n_new=5, n_changed=1, n_gone=2)
    read = Manifest(table)
    assert read.generation == 2
    assert read.n_recordings == 105
    changed = {number for number in before if read.shards[number] != before[number]}
    assert changed == {0}
    assert set(read.shards) - set(before) == {len(before)}
    rows = read_entries(table, read.shards[0]).to_pylist()
    assert [row["size"] for row in rows[:3]] == [80_000, 5, 80_000]


def test_what_is_gone_leaves_only_when_it_is_pruned(tmp_path: Path) -> None:
    """Pruned recordings leave their shards, which keep their numbers; an emptied shard is one no more, for good."""
    table = Folder.of(tmp_path)
    manifest = Manifest(table)
    manifest.grow(listing(names(1_000)), ONE)
    before = dict(manifest.shards)
    last = manifest.n_recordings - before[max(before)].n_recordings
    left = names(1_000)[5:last]
    assert manifest.grow(listing(left), ONE) == Growth(n_gone=1_000 - len(left))
    assert manifest.n_recordings == 1_000
    with pytest.raises(UsageError, match=r"--prune would remove \d+ of 1,000 recordings, more than a tenth; check"):
        manifest.grow(listing(left), ONE, prune=True)
    assert manifest.grow(listing(left), ONE, prune=True, force=True) == Growth(n_pruned=1_000 - len(left))
    again = Manifest(table)
    assert again.shards == manifest.shards
    assert again.n_recordings == len(left)
    assert set(again.shards) == set(before) - {max(before)}
    assert {shard for shard in again.shards if again.shards[shard] != before[shard]} == {0}
    assert {(shard, entry.digest) for shard, entry in before.items()} <= set(again.history)
    assert read_entries(table, again.shards[0])["file"].to_pylist()[0] == names(6)[5]
    # A number that was used is never used again: its old part may still lie there.
    again.grow(listing(names(1_000)), ONE)
    assert min(set(again.shards) - set(before)) == max(before) + 1


def test_a_table_may_lose_all_its_recordings(tmp_path: Path) -> None:
    """An archive that was emptied leaves an empty manifest, and may be filled again."""
    manifest = Manifest(Folder.of(tmp_path))
    manifest.grow(listing(names(10)), ONE)
    with pytest.raises(UsageError, match="would remove 10 of 10 recordings"):
        manifest.grow(listing([]), ONE, prune=True)
    assert manifest.grow(listing([]), ONE, prune=True, force=True) == Growth(n_pruned=10)
    assert Manifest(Folder.of(tmp_path)).shards == {}
    assert manifest.grow(listing(names(3)), ONE) == Growth(n_new=3)
    assert list(manifest.shards) == [1]


def test_a_tenth_may_go(tmp_path: Path) -> None:
    """Up to a tenth is pruned without a question."""
    manifest = Manifest(Folder.of(tmp_path))
    manifest.grow(listing(names(100)), ONE)
    assert manifest.grow(listing(names(90)), ONE, prune=True) == Growth(n_pruned=10)


def test_two_runs_that_freeze_at_once_have_one_manifest(tmp_path: Path) -> None:
    """One freezes, the other takes that over and adds what it lacks; both then have the same shards."""
    table = Folder.of(tmp_path)
    # Both have looked before either has written.
    one, other = Manifest(table), Manifest(table)
    assert one.grow(listing(names(100)), ONE) == Growth(n_new=100)
    assert other.grow(listing(names(100)), ONE) == Growth()
    assert other.shards == one.shards
    assert one.grow(listing(names(103)), ONE) == Growth(n_new=3)
    assert other.grow(listing(names(105)), ONE) == Growth(n_new=2)
    assert Manifest(table).shards == other.shards
    assert Manifest(table).n_recordings == 105
    files = [name for batch in other.entries(list(other.shards)) for name in batch["file"].to_pylist()]
    assert sorted(files) == names(105)


def test_many_runs_that_freeze_at_once_have_one_manifest(tmp_path: Path) -> None:
    """However many processes there are and whatever each has listed, every recording is in one shard, once."""
    tables_of = [Manifest(Folder.of(tmp_path)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: tables_of[number].grow(listing(names(50 + number)), ONE), range(8)))
    read = Manifest(Folder.of(tmp_path))
    files = [name for batch in read.entries(list(read.shards)) for name in batch["file"].to_pylist()]
    assert sorted(files) == names(57)


def test_a_generation_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    """Entries without their index are from a run that died while it froze them."""
    manifest = Manifest(Folder.of(tmp_path))
    manifest.grow(listing(names(10)), ONE)
    (tmp_path / "_table" / "manifest" / "000001.json").unlink()
    assert not Manifest(Folder.of(tmp_path)).shards


def test_a_manifest_follows_its_source_and_no_other(tmp_path: Path) -> None:
    """A label table has the shards of its feature table, and refuses those of another."""
    source, other = (Manifest(Folder.of(tmp_path / name)) for name in ("source", "other"))
    label = Folder.of(tmp_path / "label")
    source.grow(listing(names(50)), ONE)
    other.grow(listing(names(51)), ONE)
    assert Manifest.following(label, source).shards == source.shards
    source.grow(listing(names(60)), ONE)
    assert Manifest.following(label, source).shards == source.shards
    with pytest.raises(
        UsageError, match=r"its manifest did not come from .*; run the command that made that table again"
    ):
        Manifest.following(label, other)
