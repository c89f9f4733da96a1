"""Tests of the manifest: shards, digests and generations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from emotion_batch.archive import ENTRY_SCHEMA
from emotion_batch.errors import UsageError
from emotion_batch.manifest import MAX_SHARDS, Growth, Manifest, count_shards, cut, digest, read_entries
from emotion_batch.storage import Folder


def listing(files: Sequence[str], sizes: Sequence[int | None] | None = None, version: str = "1") -> pa.Table:
    n = len(files)
    columns = [list(files), [None] * n, list(sizes or [80_000] * n), [version] * n]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, ENTRY_SCHEMA, strict=True)], schema=ENTRY_SCHEMA)


def names(n: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number:07d}.wav" for number in range(n)]


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 1_000, 2_798, 100_000])
def test_shards_hold_each_recording_once_in_order(n: int) -> None:
    """Cutting loses and repeats nothing, and makes no empty shard."""
    shards = cut(listing(names(n)))
    assert [name for shard in shards for name in shard["file"].to_pylist()] == names(n)
    assert all(shard.num_rows for shard in shards)


def test_the_number_of_shards_suits_small_machines_and_schedulers() -> None:
    """A thousand recordings keep two workers busy, ten million do not drown the scheduler."""
    assert 16 <= len(cut(listing(names(1_000)))) <= 64
    assert count_shards(1) == 1
    assert count_shards(10_000_000) == 9_766
    assert count_shards(10**8) == MAX_SHARDS
    assert [count_shards(10**k) for k in range(9)] == sorted(count_shards(10**k) for k in range(9))


def test_shards_are_even_in_what_they_read() -> None:
    """Large recordings weigh more, though no more than their segment; the unknown weigh as little as can be."""
    sizes = [30_000] * 500 + [1_000_000] * 500 + [10**12] * 10 + [None] * 10
    shards = cut(listing(names(len(sizes)), sizes))
    costs = [sum(16_384 + min(size or 0, 1_400_000) for size in shard["size"].to_pylist()) for shard in shards]
    assert max(costs) <= sum(costs) / len(costs) + 1_400_000 + 16_384


def test_a_digest_follows_from_the_entries_alone() -> None:
    """A digest changes with name, size and version, and not with how the entries are held."""
    (batch,) = cut(listing(names(3)))
    assert digest(batch) == digest(listing(["x", *names(3)]).slice(1).to_batches()[0])
    others = (listing(names(3, "b")), listing(names(3), [1, 80_000, 80_000]), listing(names(3), version="2"))
    assert len({digest(one.to_batches()[0]) for one in others} | {digest(batch)}) == 4


def test_a_manifest_grows_by_generations(tmp_path: Path) -> None:
    """New recordings make new shards, changed ones only their own anew, gone ones stay and are counted."""
    table = Folder.of(tmp_path)
    manifest = Manifest(table)
    assert manifest.grow(listing(names(100))) == Growth(n_new=100)
    before = dict(manifest.shards)
    again = Manifest(table)
    assert again.shards == before
    assert again.grow(listing(names(100))) == Growth()
    assert again.generation == 1

    files = [*names(99)[1:], *names(5, "new")]
    sizes: list[int | None] = [80_000] * len(files)
    sizes[0] = 5
    assert again.grow(listing(files, sizes)) == Growth(n_new=5, n_changed=1, n_gone=2)
    read = Manifest(table)
    assert read.generation == 2
    assert read.n_recordings == 105
    changed = {number for number in before if read.shards[number] != before[number]}
    assert changed == {0}
    assert set(read.shards) - set(before) == {len(before)}
    rows = read_entries(table, read.shards[0]).to_pylist()
    assert [row["size"] for row in rows[:3]] == [80_000, 5, 80_000]


def test_a_generation_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    """Entries without their index are from a run that died while it froze them."""
    manifest = Manifest(Folder.of(tmp_path))
    manifest.grow(listing(names(10)))
    (tmp_path / "_table" / "manifest" / "000001.json").unlink()
    assert not Manifest(Folder.of(tmp_path)).shards


def test_a_manifest_follows_its_source_and_no_other(tmp_path: Path) -> None:
    """A label table has the shards of its feature table, and refuses those of another."""
    source, other, label = (Manifest(Folder.of(tmp_path / name)) for name in ("source", "other", "label"))
    source.grow(listing(names(50)))
    other.grow(listing(names(51)))
    label.follow(source)
    assert Manifest(Folder.of(tmp_path / "label")).shards == source.shards
    source.grow(listing(names(60)))
    label.follow(source)
    assert Manifest(Folder.of(tmp_path / "label")).shards == source.shards
    with pytest.raises(UsageError, match="did not come from it"):
        label.follow(other)
