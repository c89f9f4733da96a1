"""Tests of which files are recordings."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import run_command

from emotion_batch.errors import StorageError, UsageError
from emotion_batch.storage import entries, file_lists
from emotion_batch.storage.archive import _walk_local, list_recordings
from emotion_batch.storage.entries import ENTRY_SCHEMA, Entry, distinct, locate_local, locate_remote, peek
from emotion_batch.storage.folder import Folder


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))


def files(archive: object, **options: object) -> list[str]:
    return list_recordings(archive, **options).entries["file"].to_pylist()


def test_a_folder_is_listed_by_suffix_in_any_case(tmp_path: Path) -> None:
    """Recordings of all depths are listed in the order of their names; others are counted, hidden ones skipped."""
    touch(tmp_path, "b.WAV", "a/c.flac", "a.mp3", "notes.txt", "cover.jpg", "README", ".hidden.wav", ".git/d.wav")
    listing = list_recordings(tmp_path)
    assert listing.entries["file"].to_pylist() == ["a.mp3", "a/c.flac", "b.WAV"]
    assert listing.left_out == {".txt": 1, ".jpg": 1, "no suffix": 1}
    assert listing.entries["size"].to_pylist() == [5, 8, 5]
    assert listing.entries["version"][0].as_py() == str((tmp_path / "a.mp3").stat().st_mtime_ns)


def test_suffixes_can_be_named(tmp_path: Path) -> None:
    """Other endings replace the usual ones, with and without their dot."""
    touch(tmp_path, "a.wav", "b.pcm", "c.G722")
    assert files(tmp_path, suffixes=["pcm", ".g722"]) == ["b.pcm", "c.G722"]


def test_a_glob_is_named_relative_to_its_fixed_part(tmp_path: Path) -> None:
    """A pattern lists what it matches, at any depth with two stars."""
    touch(tmp_path, "x/1/a.wav", "x/2/b.wav", "x/2/c.txt", "y/1/d.wav")
    assert files(f"{tmp_path}/x/*/*.wav") == ["1/a.wav", "2/b.wav"]
    assert files(f"{tmp_path}/**/*.wav") == ["x/1/a.wav", "x/2/b.wav", "y/1/d.wav"]


def test_glob_characters_in_a_name_that_exists_are_that_name(tmp_path: Path) -> None:
    """A folder or recording called like a pattern is itself and nothing that the pattern would match."""
    touch(tmp_path, "a[1]/b.wav", "a1/c.wav", "d[2].wav", "d2.wav")
    assert files(tmp_path / "a[1]") == ["b.wav"]
    assert files(tmp_path / "d[2].wav") == ["d[2].wav"]


def test_one_recording_is_an_archive(tmp_path: Path) -> None:
    """A single file is taken whatever its suffix."""
    touch(tmp_path, "a.wav", "b.bin")
    assert files(tmp_path / "b.bin") == ["b.bin"]


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_a_list_is_taken_as_written(tmp_path: Path, kind: str) -> None:
    """Names of a list keep their form, and those below its folder are relative; a repeated one counts once."""
    touch(tmp_path, "lists/a.wav", "lists/sub/b.pcm", "other/c.wav")
    folder = tmp_path / "lists"
    names = ["sub/b.pcm", str(folder / "a.wav"), "gone, alas.wav", "sub/b.pcm", str(tmp_path / "other" / "c.wav")]
    write_list(folder / f"list.{kind}", names)
    listing = list_recordings(folder / f"list.{kind}")
    sizes = dict(zip(listing.entries["file"].to_pylist(), listing.entries["size"].to_pylist(), strict=True))
    assert sizes == {"sub/b.pcm": 15, "a.wav": 11, "gone, alas.wav": None, names[4]: 11}
    assert (listing.n_duplicates, listing.n_missing, listing.missing) == (1, 1, "gone, alas.wav")


def write_list(path: Path, names: list[str]) -> None:
    if path.suffix == ".txt":
        path.write_text("\r\n".join(names) + "\r\n", newline="")
    elif path.suffix == ".csv":
        quoted = [name.replace('"', '""') for name in names]
        path.write_text("id,file\n" + "\n".join(f'007,"{name}"' for name in quoted) + "\n")
    else:
        pq.write_table(pa.table({"file": names}), path)


NFC, NFD = "r\u00e9sum\u00e9.wav", "re\u0301sume\u0301.wav"


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
@pytest.mark.parametrize(
    ("file", "spellings"),
    [
        ("a.wav", ["a.wav", "./a.wav", "././a.wav", "sub/../a.wav", "nowhere/../a.wav", ".//a.wav", "a.wav/"]),
        (
            "a.wav",
            ["{root}/a.wav", "/{root}//a.wav", "{root}/sub/../a.wav", "../{folder}/a.wav", "file://{root}/a.wav"],
        ),
        ("a.wav", [" a.wav", "a.wav\t ", "\xa0a.wav", '"a.wav"', "'a.wav'", ' "./a.wav" ']),
        ("sub/b.wav", ["sub\\b.wav", ".\\sub\\b.wav", "sub\\..\\sub\\b.wav", "sub//b.wav", " sub\\b.wav "]),
        (
            f"m\u00fcll/{NFD}",
            [f"m\u00fcll/{NFC}", f"mu\u0308ll/{NFD}", f"./mu\u0308ll\\{NFC} ", "{root}/" + f"mu\u0308ll/{NFC}"],
        ),
        ("[1]*?.wav", ["[1]*?.wav", "./[1]*?.wav", "{root}/[1]*?.wav"]),
    ],
    ids=["dots", "absolute", "blanks and quotes", "backslashes", "composed and decomposed", "glob characters"],
)
def test_a_recording_has_one_name_in_whatever_spelling(
    tmp_path: Path, kind: str, file: str, spellings: list[str]
) -> None:
    """Each spelling alone names the recording as it is on disk; all together are one row, and the others are counted."""
    folder = tmp_path / "calls"
    touch(folder, "a.wav", "sub/b.wav", f"m\u00fcll/{NFD}", "[1]*?.wav", "1.wav")
    names = [name.replace("{root}", str(folder)).replace("{folder}", folder.name) for name in spellings]
    for name in names:
        write_list(folder / f"list.{kind}", [name])
        listing = list_recordings(folder / f"list.{kind}")
        assert listing.entries["file"].to_pylist() == [file], name
        assert listing.n_missing == 0
    write_list(folder / f"list.{kind}", names)
    listing = list_recordings(folder / f"list.{kind}")
    assert listing.entries["file"].to_pylist() == [file]
    assert listing.n_duplicates == len(names) - 1


@pytest.mark.parametrize(
    ("there", "others"),
    [
        (" a.wav", "a.wav"),
        ("a.wav ", "a.wav"),
        ("sub\\b.wav", "sub/b.wav"),
        ('"a.wav"', "a.wav"),
        (NFC, NFD),
        (NFD, NFC),
    ],
)
def test_a_name_that_exists_as_written_wins(tmp_path: Path, there: str, others: str) -> None:
    """Blanks, backslashes, quotes and either form of Unicode may be part of a name."""
    touch(tmp_path, there, others)
    for kind in ("txt", "parquet"):
        write_list(tmp_path / f"list.{kind}", [there, others, there])
        listing = list_recordings(tmp_path / f"list.{kind}")
        assert listing.entries["file"].to_pylist() == sorted([there, others], key=str.encode)
        assert listing.n_duplicates == 1


def test_two_dots_through_a_link_lead_where_the_disk_leads(tmp_path: Path) -> None:
    """A name is not shortened if that would make it another recording's; a name out of the folder stays relative."""
    touch(tmp_path, "far/below/x.wav", "far/a.wav", "lists/a.wav")
    (tmp_path / "lists" / "linked").symlink_to(tmp_path / "far" / "below")
    names = ["linked/../a.wav", "a.wav", "../far/a.wav", ".././far//a.wav", str(tmp_path / "far" / "a.wav")]
    write_list(tmp_path / "lists" / "list.txt", names)
    listing = list_recordings(tmp_path / "lists" / "list.txt")
    assert listing.entries["file"].to_pylist() == ["../far/a.wav", "a.wav", "linked/../a.wav"]
    assert listing.n_duplicates == 2
    # An absolute name by the folder's other name is below it, too.
    (tmp_path / "other").symlink_to(tmp_path / "lists")
    (tmp_path / "lists" / "list.txt").write_text(f"{tmp_path}/lists/a.wav\n")
    assert files(tmp_path / "other" / "list.txt") == ["a.wav"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_is_read_whatever_program_wrote_it(tmp_path: Path, encoding: str, end: str) -> None:
    """Encodings with a mark, all ends of lines, empty lines, and blanks and quotes around the names of columns."""
    touch(tmp_path, "007", "two words.wav", "\u96fb\u8a71.wav")
    names = ["007", "two words.wav", "", "  ", "\u96fb\u8a71.wav"]
    for last in ("", end):
        (tmp_path / "list.txt").write_bytes((end.join(names) + last).encode(encoding))
        listing = list_recordings(tmp_path / "list.txt")
        assert listing.entries["file"].to_pylist() == sorted(filter(str.strip, names))
        assert listing.n_missing == 0
    for head in ("file,id", '"file","id"', ' "file" , id'):
        rows = [head, *(f"{name},1" for name in names)]
        (tmp_path / "list.csv").write_bytes(end.join(rows).encode(encoding))
        assert files(tmp_path / "list.csv") == sorted(filter(str.strip, names))


def test_names_of_a_bucket_are_keys(tmp_path: Path) -> None:
    """Where no disk says what exists, blanks at the ends and a leading ./ go; dots, strokes and backslashes are literal."""
    memory = fsspec.filesystem("memory")
    names = [
        "./a.wav",
        " a.wav ",
        "b/../a.wav",
        "b//c.wav",
        "b\\c.wav",
        NFC,
        NFD,
        "memory://calls/a.wav",
        "memory://x/a.wav",
    ]
    kept = ["a.wav", "b/../a.wav", "b//c.wav", "b\\c.wav", NFC, NFD, "memory://x/a.wav"]
    data = {"text": "\n".join([*names, "  "]).encode()}
    data["odd"] = data["text"] + b"\ncaf\xe9.wav"
    try:
        for kind, content in data.items():
            memory.pipe({f"/calls/{kind}.txt": content})
            listing = list_recordings(f"memory://calls/{kind}.txt")
            found = [*kept, "caf%E9.wav"] if kind == "odd" else kept
            assert listing.entries["file"].to_pylist() == sorted(found, key=str.encode)
            assert (listing.n_duplicates, listing.n_missing) == (2, 0)
    finally:
        memory.rm("/calls", recursive=True)
    # On a disk too, a URL is as it is written.
    urls = ["s3://b/x/../y//z.wav", " https://host/a.wav "]
    (tmp_path / "list.txt").write_text("\n".join([*urls, "a.wav"]))
    assert files(tmp_path / "list.txt") == ["a.wav", "https://host/a.wav", urls[0]]


def test_a_list_without_the_column_is_refused(tmp_path: Path) -> None:
    """The sentence names the column that is missing and those that are there."""
    (tmp_path / "list.csv").write_text("path,id\na.wav,1\n")
    with pytest.raises(UsageError, match="the column 'file' is missing; its columns are path, id"):
        list_recordings(tmp_path / "list.csv")


def test_names_that_are_not_utf8_are_escaped_and_found(tmp_path: Path) -> None:
    """Such a name is percent-escaped, differs from every other recording's, and still opens."""
    root = os.fsencode(tmp_path)
    for name in (b"caf\xe9.wav", b"na\xefve.wav", "café.wav".encode(), b"caf%E9.wav"):
        with open(root + b"/" + name, "wb") as stream:
            stream.write(name)
    listing = list_recordings(tmp_path)
    names = listing.entries["file"].to_pylist()
    assert names == sorted(names, key=str.encode)
    assert set(names) == {"%63%61%66%E9%2E%77%61%76", "na%EFve.wav", "café.wav", "caf%E9.wav"}
    for row in listing.entries.to_pylist():
        place = locate_local(listing.folder, Entry(**row))
        assert isinstance(place, bytes)
        with open(place, "rb") as stream:
            assert stream.read() == os.path.basename(place)


def test_links_are_followed_and_rings_are_not(tmp_path: Path) -> None:
    """A linked folder's recordings are listed, a link back to a folder above is no endless way."""
    touch(tmp_path, "real/a.wav", "archive/b.wav")
    (tmp_path / "archive" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "archive" / "ring").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "dangling.wav").symlink_to(tmp_path / "nowhere.wav")
    assert files(tmp_path / "archive") == ["b.wav", "dangling.wav", "linked/a.wav"]


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    """A missing archive, and one without recordings, are one sentence each."""
    with pytest.raises(StorageError, match="nowhere: it does not exist"):
        list_recordings(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"there are no recordings \(\.wav .*\.mov\); check the name"):
        list_recordings(tmp_path)
    touch(tmp_path, "a.txt")
    with pytest.raises(UsageError, match="only 1 other file; check the name"):
        list_recordings(tmp_path)


def test_a_url_is_listed_through_fsspec() -> None:
    """Any filesystem of fsspec serves as an archive, with sizes and what version it knows."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/calls/a/1.wav": b"123", "/calls/2.wav": b"4", "/calls/x.txt": b"", "/calls/.h/3.wav": b""})
    try:
        listing = list_recordings("memory://calls")
        assert listing.entries["file"].to_pylist() == ["2.wav", "a/1.wav"]
        assert listing.entries["size"].to_pylist() == [1, 3]
        store, path = locate_remote(listing.folder, Entry(**listing.entries.to_pylist()[1]))
        assert store.get(path).data == b"123"
    finally:
        memory.rm("/calls", recursive=True)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    """A URL with credentials would end up in tables and logs."""
    with pytest.raises(UsageError) as caught:
        Folder.of("s3://key:hunter2@bucket/calls")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Folder("s3://bucket", {"secret": "hunter2"}))


def test_a_link_to_itself_and_a_sealed_folder_are_told(tmp_path: Path) -> None:
    """A link that leads nowhere is listed for its row; a folder without permission is named, not passed over."""
    touch(tmp_path, "a.wav", "sealed/b.wav")
    (tmp_path / "ring.wav").symlink_to(tmp_path / "ring.wav")
    assert files(tmp_path) == ["a.wav", "ring.wav", "sealed/b.wav"]
    if os.geteuid() == 0:
        # Root may read everything.
        return
    (tmp_path / "sealed").chmod(0)
    for archive in (tmp_path, f"{tmp_path}/**/*.wav"):
        with pytest.raises(StorageError, match=r"permission denied for .*sealed"):
            list_recordings(archive)


def test_a_glob_follows_links_as_a_folder_does(tmp_path: Path) -> None:
    """The same recordings are found by a pattern and by the folder."""
    touch(tmp_path, "real/a.wav", "archive/b.wav")
    (tmp_path / "archive" / "linked").symlink_to(tmp_path / "real")
    assert files(f"{tmp_path}/archive/**/*.wav") == files(tmp_path / "archive") == ["b.wav", "linked/a.wav"]


@pytest.mark.parametrize("name", [b"fe80::1-call.wav", b"a:b.wav", b"caf\xe9.wav"])
def test_what_looks_like_a_url_or_is_not_utf8_is_found_by_list_and_folder(tmp_path: Path, name: bytes) -> None:
    """A local name stays one, relative and absolute, whatever is in it."""
    root = os.fsencode(tmp_path / "archive")
    (tmp_path / "archive").mkdir()
    with open(root + b"/" + name, "wb") as stream:
        stream.write(b"here")
    (tmp_path / "archive" / "list.txt").write_bytes(name + b"\n" + root + b"/" + name)
    for archive in (tmp_path / "archive", tmp_path / "archive" / "list.txt"):
        listing = list_recordings(archive)
        assert listing.entries["size"].to_pylist() == [4]
        for row in listing.entries.to_pylist():
            place = locate_local(listing.folder, Entry(**row))
            assert isinstance(place, bytes)
            assert os.path.exists(place)


def test_lists_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    """Text of an encoding that cannot be told, or that is cut, and a column of something else, are refused."""
    (tmp_path / "wide.txt").write_bytes("a.wav\n".encode("utf-16-le"))
    (tmp_path / "wide.csv").write_bytes("file\na.wav\n".encode("utf-16-be"))
    (tmp_path / "cut.txt").write_bytes("a.wav\n".encode("utf-16")[:-1])
    pq.write_table(pa.table({"file": [["a"], ["b"]]}), tmp_path / "lists.parquet")
    (tmp_path / "secret.txt").write_text("s3://key:hunter2@bucket/a.wav\n")
    for name, words in (
        ("wide.txt", "NUL bytes, so it is not text in UTF-8"),
        ("wide.csv", "NUL bytes, so it is not text in UTF-8"),
        ("cut.txt", "its UTF-16 or UTF-32 text is damaged"),
        ("lists.parquet", "it cannot be read as a table"),
        ("secret.txt", "must not contain a password"),
    ):
        with pytest.raises(UsageError, match=words):
            list_recordings(tmp_path / name)


def test_a_look_at_a_recording_waits_for_nobody(tmp_path: Path) -> None:
    """The first byte of what can be read is read; a named pipe holds up no run, and a missing recording is named."""
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "folder.wav").mkdir()
    folder = Folder.of(tmp_path)
    for name in ("pipe.wav", "a.wav"):
        peek(folder, Entry(name, None, None, None))
    for name in ("none.wav", "folder.wav"):
        with pytest.raises(OSError, match=name if name == "none.wav" else "directory"):
            peek(folder, Entry(name, None, None, None))


_LISTED = """
import pyarrow as pa
from emotion_batch.storage.archive import _entries, _of_pages
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.fsspec_store import LISTED_SCHEMA

N = 200_000
def pages():
    for start in range(0, N, 1_000):
        numbers = range(start, start + 1_000)
        names = [f"2026/11/{number // 50_000:04d}/call-{number:010d}.wav" for number in numbers]
        yield pa.table([names, list(numbers), [f"{number:032x}" for number in numbers]], LISTED_SCHEMA)

listing = _of_pages(Folder("s3://x"), map(_entries, pages()), (".wav",), lambda n_files: None)
assert listing.entries.num_rows == N
print(pa.default_memory_pool().max_memory() / N)
"""


def test_a_folder_is_walked_in_the_order_of_its_names(tmp_path: Path) -> None:
    """Ten million recordings need not be sorted, whatever characters stand around a folder's slash."""
    names = sorted(
        f"{one}{two}{three}.wav" for one in ("a", "a-b", "é") for two in "/-. 0" for three in ("b", "b/c", "b-c")
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    walked = [entry.file for entry in _walk_local(str(tmp_path), "", ())]
    assert walked == names == list_recordings(tmp_path).entries["file"].to_pylist()


def test_a_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a text is divided, its names are the same."""
    names = [f"https://a.example/{number}{'é' * (number % 5)}.wav" for number in range(50)]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*names[:25], "", *names[25:]]).encode())
    for n_bytes in (1, 30, 31, 32, 10_000):
        monkeypatch.setattr(file_lists, "_PIECE_BYTES", n_bytes)
        assert list_recordings(tmp_path / "list.txt").entries["file"].to_pylist() == sorted(names)


@pytest.mark.parametrize("n_stretches", [1, 2, 16])
@pytest.mark.parametrize("chunk", [1, 7, 1_000])
def test_a_listing_is_sorted_by_stretches(chunk: int, n_stretches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a listing lies in memory and is divided, it comes out in order, each name once, odd ones included."""
    monkeypatch.setattr(entries, "_STRETCHES", n_stretches)
    monkeypatch.setattr(entries, "_SAMPLE", 20)
    monkeypatch.setattr(entries, "BATCH", 50)
    numbers = [number * 7_919 % 500 for number in range(700)]
    names = [f"{number:03d}é.wav" if number % 5 else f"{number:03d}.wav" for number in numbers]
    rows = [{"file": name, "raw_file": None, "size": len(name), "version": None} for name in names]
    rows += [{"file": "250%E9.wav", "raw_file": b"250\xe9.wav", "size": 1, "version": "1"}]
    table = pa.Table.from_batches(pa.Table.from_pylist(rows, ENTRY_SCHEMA).to_batches(max_chunksize=chunk))
    found, n_repeated = distinct(table)
    assert n_repeated == 200
    expected = {row["file"]: row for row in rows}
    assert found.to_pylist() == [expected[name] for name in sorted(expected)]


def test_a_listing_is_in_memory_once() -> None:
    """Of a bucket's objects the driver holds names, sizes and ETags: less than 150 bytes each at its most."""
    done = run_command(program=("-c", _LISTED))
    assert done.code == 0, done.err
    assert float(done.out) < 150
