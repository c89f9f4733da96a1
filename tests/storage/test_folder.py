"""Tests of places: what is published is whole, who is first is decided once."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emotion_batch.storage.folder import Folder, seal, unseal


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder.of(tmp_path) if request.param == "disk" else Folder.of(f"memory://{tmp_path.name}")


def test_the_first_of_many_wins(folder: Folder) -> None:
    """Of many who publish a name first, one does, and its bytes stay; others publish it over and over."""
    # Distinct for each, and large enough that a mixture would show.
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda data: folder.publish_first("first", data), contents))
    if folder.is_local:
        assert sum(won) == 1
        assert folder.read("first") == contents[won.index(True)]
    assert not folder.publish_first("first", b"late")
    assert folder.read("first") in contents
    folder.publish("first", b"over")
    assert folder.read("first") == b"over"
    assert folder.names() == ["first"]


def test_without_links_the_first_still_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a filesystem that has no links, a name that is there stays as it is."""

    def no_link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_link)
    folder = Folder.of(tmp_path)
    assert folder.publish_first("a", b"1")
    assert not folder.publish_first("a", b"2")
    assert folder.read("a") == b"1"
    assert folder.names() == ["a"]


def test_a_folder_that_was_taken_away_does_not_come_back(tmp_path: Path) -> None:
    """Publishing into a folder that is not there is an error, and leaves it so."""
    folder = Folder.of(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        folder.publish("part", b"rows")
    assert not (tmp_path / "gone").exists()
    folder.make()
    folder.publish("part", b"rows")
    assert folder.read("part") == b"rows"


def test_json_that_was_sealed_is_known_again() -> None:
    """Any other bit of it is noticed or changes nothing, and so is a digest that is missing."""
    value = {"kind": "é", "n": 12, "seconds": [0.1, 1e-9, 1e300], "none": None, "some": {"b": True, "a": [1, {}]}}
    sealed = seal(value, indent=2)
    assert unseal(sealed) == value
    for at in range(8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[at // 8] ^= 1 << at % 8
        try:
            assert unseal(bytes(flipped)) == value
        except ValueError:
            continue
    for odd in (json.dumps(value).encode(), b"", b"null", b"[]", b'"sha256"', b"[" * 100_000):
        with pytest.raises(ValueError):  # noqa: PT011 what it says is for no person
            unseal(odd)
