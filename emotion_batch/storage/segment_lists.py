"""Read lists of segments (CSV or Parquet, segmented tables of audformat, RTTM), and join them to a listing of recordings."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from urllib.parse import unquote

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from emotion_batch.errors import UsageError
from emotion_batch.settings import MAX_S, MIX, MOST_CHANNELS
from emotion_batch.storage.entries import ENTRY_SCHEMA, SEGMENTED_SCHEMA, distinct
from emotion_batch.storage.folder import Folder, refuse_secrets
from emotion_batch.storage.names import as_utf8, bare, find_key

RTTM = ".rttm"
# So many rows are Python objects at a time.
_BATCH = 65_536
# An array of text, which is at most 2 GiB, is of so many recordings.
_TEXTS = 1_024
# Ten million names are far fewer words.
_WORDS = pa.dictionary(pa.int32(), pa.string())
_NUMBERS = [(name, pa.float64()) for name in ("start_s", "end_s", "channel")]
_COLUMNS = pa.schema([("file", _WORDS), *_NUMBERS, ("speaker", _WORDS)])
# Names with these may have another spelling as their key.
_ODD = r"[^\x00-\x7f]|^[./'\"\s]|[/'\"\s]$|/[./]|\\|://"
# As pandas writes a duration in a CSV, e.g. `0 days 00:00:01.500000`.
_DURATION = r"^(?:(?P<d>\d+) days?,? ?)?(?P<h>\d+):(?P<m>\d+):(?P<s>\d+(?:\.\d+)?)$"


def join_segments(
    files: Iterable[tuple[Folder, str]], listed: pa.Table, base: Folder, channels: object
) -> tuple[pa.Table, list[str], int]:
    """Return the recordings whose segments some files list, which of them a listing lacks, and how many of it these do not name.

    The recordings have `SEGMENTED_SCHEMA`, and their segments are in the order of the files. `listed` has `ENTRY_SCHEMA`, its names
    are relative to `base`, and `channels` is that of `Segments`. Raise UsageError if the files are not a list of segments.
    """
    rows, is_rttm = _read_files(files)
    _check(rows)
    names, of_name = _split_words(rows["file"])
    words, of_speaker = _split_words(rows["speaker"])
    speakers = words.to_pylist()
    start_s, end_s, channel = (rows[name].to_numpy() for name in ("start_s", "end_s", "channel"))
    del rows
    files_of_names, missing = _find_files(names, listed["file"], base.url, is_rttm)
    is_named = pc.is_in(listed["file"], value_set=files_of_names)
    known = listed if pc.all(is_named).as_py() else listed.filter(is_named)
    lacking = pa.Table.from_pylist([{"file": name} for name in missing], ENTRY_SCHEMA)
    found, _ = distinct(pa.concat_tables([known, lacking]))
    place = pc.index_in(files_of_names, value_set=found["file"]).to_numpy()[of_name]
    # The sort is stable, so that the segments of a recording keep their order.
    order = np.argsort(place, kind="stable")
    n_segments = np.bincount(place, minlength=found.num_rows)
    n_named = np.bincount(place[~np.isnan(channel)], minlength=found.num_rows)
    if channels == MIX and (is_both := (n_named > 0) & (n_named < n_segments)).any():
        name = found["file"][int(is_both.argmax())].as_py()
        raise UsageError(
            f"segments: some of {name!r} name a channel and others do not; name a channel in each row of a recording, or say with "
            "--channels which channels the others are of"
        )

    def segments() -> Iterator[tuple[float, float | None, int | None, str | None]]:
        for some in np.split(order, range(_BATCH, len(order), _BATCH)):
            ends = [None if one != one else one for one in end_s[some].tolist()]
            numbers = [None if one != one else int(one) for one in channel[some].tolist()]
            words = [speakers[one] or None if one >= 0 else None for one in of_speaker[some].tolist()]
            yield from zip(start_s[some].tolist(), ends, numbers, words, strict=True)

    left, texts = segments(), list[pa.Array]()
    for counts in np.split(n_segments, range(_TEXTS, found.num_rows, _TEXTS)):
        some = [msgspec.json.encode(list(islice(left, n_rows))) for n_rows in counts.tolist()]
        texts.append(pa.array(some, pa.binary()).cast(pa.string()))
    entries = found.append_column(SEGMENTED_SCHEMA.field("segments"), pa.chunked_array(texts, pa.string()))
    return entries, list(missing), listed.num_rows - known.num_rows


def _split_words(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """Return the words of a column, and the number of each row's word, -1 without one.

    A word of several chunks is there several times, because one dictionary of ten million names takes a gigabyte to make.
    """
    words = [chunk.dictionary for chunk in column.chunks]
    firsts = np.cumsum([0, *map(len, words)])
    codes = [
        pc.fill_null(pc.add(chunk.indices, first), -1) for chunk, first in zip(column.chunks, firsts, strict=False)
    ]
    return pa.chunked_array(words), pa.chunked_array(codes).to_numpy()


def _find_files(
    written: pa.ChunkedArray, listed: pa.ChunkedArray, base: str, is_rttm: bool
) -> tuple[pa.ChunkedArray, dict[str, None]]:
    """Return the recording that each name of a list means, and those that are not listed.

    A name is taken as it is written, else in another spelling; in RTTM, which has no blanks and often no suffixes, also by its stem.
    """
    # Whole names are cut at once, because there may be millions.
    written = pc.if_else(pc.starts_with(written, f"{base}/"), pc.utf8_slice_codeunits(written, len(base) + 1), written)
    is_other = pc.invert(pc.is_in(written, value_set=listed)).combine_chunks()
    others = written.filter(is_other).to_pylist()
    if not others:
        return written, {}
    for name in others:
        refuse_secrets(name)
    plain = [unquote(name) if is_rttm else name for name in others]
    # All spellings of a missing recording are one.
    keys = [find_key(name, base).removeprefix(f"{base}/") for name in plain]
    is_there = pc.is_in(pa.array(keys, pa.string()), value_set=listed).to_pylist()
    # Other names are their own keys, and there may be millions.
    odd = listed.filter(pc.match_substring_regex(listed, _ODD)).to_pylist()
    spelled = {find_key(name, base).removeprefix(f"{base}/"): name for name in odd}
    stems: list[dict[str, str | None]] = [{}, {}]
    for name in listed.to_pylist() if is_rttm else ():
        stem = os.path.splitext(name)[0]
        for found, word in zip(stems, (stem, os.path.basename(stem)), strict=True):
            # A stem that two recordings have means none of them.
            found[word] = None if word in found else name
    missing: dict[str, None] = {}
    for number, (name, key) in enumerate(zip(others, keys, strict=True)):
        stem_of = next((found[key] for found in stems if key in found), key)
        if stem_of is None and not is_there[number]:
            raise UsageError(f"segments: {name!r} may be several recordings of {base}; write their whole names")
        others[number] = key if is_there[number] else spelled.get(key) or stem_of
        if not is_there[number] and key not in spelled and stem_of == key:
            missing[key] = None
    return pc.replace_with_mask(written, is_other, pa.array(others, pa.string())), missing


def _check(rows: pa.Table) -> None:
    """Raise UsageError for the first row that has no name, no stretch of a recording or no channel."""
    if not rows.num_rows:
        raise UsageError("segments: the list has no segments")
    start_s, end_s, channel = (rows[name].to_numpy() for name in ("start_s", "end_s", "channel"))
    is_channel = (channel >= 0) & (channel < MOST_CHANNELS) & (np.floor(channel) == channel)
    checks = {
        "file": (rows["file"].is_valid().to_numpy(), "the name of a recording"),
        "start_s": ((start_s >= 0) & (start_s <= MAX_S), f"from 0 to {MAX_S:,.0f} seconds"),
        # Without an end, a segment lasts to the end of its recording.
        "end_s": (rows["end_s"].is_null().to_numpy() | (np.abs(end_s) <= MAX_S), f"at most {MAX_S:,.0f} seconds"),
        "channel": (rows["channel"].is_null().to_numpy() | is_channel, "a number from 0"),
    }
    for name, (is_right, rule) in checks.items():
        if not is_right.all():
            at = int(is_right.argmin())
            value = rows[name][at].as_py()
            raise UsageError(f"segments: {name} must be {rule}: {value!r}, in row {at + 1:,} of the list")


def _read_files(files: Iterable[tuple[Folder, str]]) -> tuple[pa.Table, bool]:
    """Return the rows of lists, with `_COLUMNS`, and whether they are RTTM."""
    tables, is_rttm = [], False
    for folder, name in files:
        data, is_rttm = folder.read(name), name.lower().endswith(RTTM)
        try:
            tables.append(_read_rttm(name, data) if is_rttm else _normalise(name, _read_table(name, data)))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"segments {name}: it cannot be read as a table ({str(error).splitlines()[0]})") from error
    rows = pa.concat_tables(tables)
    if is_rttm and (pc.max(rows["channel"]).as_py() or 0) == 0:
        # RTTM counts channels from 1, and of a mix it says 1 as well.
        rows = rows.set_column(3, "channel", pa.nulls(rows.num_rows, pa.float64()))
    return rows, is_rttm


def _read_table(name: str, data: bytes) -> pa.Table:
    """Return a CSV or Parquet with the names of its columns bare."""
    if name.lower().endswith(".parquet"):
        return pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    if not name.lower().endswith((".csv", ".csv.gz")):
        raise UsageError(f"segments {name}: a list of segments is CSV (.csv), Parquet (.parquet) or RTTM (.rttm)")
    if name.lower().endswith(".gz"):
        data = pa.CompressedInputStream(pa.BufferReader(data), "gzip").read()
    data = as_utf8(data)
    kinds = {**dict(zip(_COLUMNS.names, _COLUMNS.types, strict=True)), "start": pa.string(), "end": pa.string()}
    names = pyarrow.csv.open_csv(io.BytesIO(data)).schema.names
    options = pyarrow.csv.ConvertOptions(
        column_types={one: kinds[bare(one)] for one in names if bare(one) in kinds},
        include_columns=[one for one in names if bare(one) in kinds],
        strings_can_be_null=True,
        null_values=["", "NaN", "nan", "NaT", "null", "None", "<NA>"],
    )
    # It is read block by block, because the text is several times larger than its numbers.
    table = pyarrow.csv.open_csv(io.BytesIO(data), convert_options=options).read_all()
    return table.rename_columns([bare(one) for one in table.column_names])


def _normalise(name: str, table: pa.Table) -> pa.Table:
    """Return a list's rows with `_COLUMNS`."""
    there = set(table.column_names)
    if not ({"file", "start_s", "end_s"} <= there or {"file", "start", "end"} <= there):
        raise UsageError(
            f"segments {name}: it must have the columns file, start_s and end_s (or start and end, as in audformat), and it has "
            f"{', '.join(table.column_names)}"
        )
    columns = []
    for column, kind in zip(_COLUMNS.names, _COLUMNS.types, strict=True):
        if column in there:
            values = table[column]
        elif column in ("start_s", "end_s"):
            values = _to_seconds(name, table[column[:-2]])
        else:
            values = pa.chunked_array([pa.nulls(table.num_rows, kind)])
        if kind == _WORDS and values.type != _WORDS:
            # All chunks at once would each get the words of all, and ten million names in a hundred chunks are too many words.
            values = pa.chunked_array([one.dictionary_encode() for one in values.cast(pa.string()).chunks], kind)
        columns.append(values.cast(kind))
    return pa.table(columns, _COLUMNS)


def _to_seconds(name: str, durations: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_duration(durations.type):
        return pc.divide(durations.cast(pa.duration("ns")).cast(pa.int64()).cast(pa.float64()), 1e9)
    words = durations.cast(pa.string())
    found = pc.extract_regex(words, _DURATION)
    if found.null_count > words.null_count:
        at = pc.index(pc.and_(pc.is_valid(words), pc.is_null(found)), True).as_py()
        raise UsageError(
            f"segments {name}: start and end must be durations such as 0 days 00:00:01.5: {words[at].as_py()!r}; columns of seconds are "
            "called start_s and end_s"
        )
    seconds = 0.0
    for unit, length_s in {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}.items():
        text = pc.struct_field(found, unit)
        number = pc.if_else(pc.equal(text, ""), "0", text).cast(pa.float64())
        seconds = pc.add(seconds, pc.multiply(number, length_s))
    return seconds


def _read_rttm(name: str, data: bytes) -> pa.Table:
    """Return the rows of https://www.nist.gov/itl/iad/mig/rich-transcription-evaluation: SPEAKER FILE CHANNEL START DURATION ..."""

    def rows() -> Iterator[tuple[str, float, float, float | None, str | None]]:
        for number, line in enumerate(io.BytesIO(data), 1):
            words = line.split()
            if words[:1] != [b"SPEAKER"]:
                continue
            try:
                start_s, duration_s = float(words[3]), float(words[4])
                channel = None if words[2] == b"<NA>" else float(words[2]) - 1
            except (IndexError, ValueError) as error:
                rule = f"line {number} must be `SPEAKER FILE CHANNEL START DURATION ...`"
                raise UsageError(f"segments {name}: {rule}") from error
            speaker = words[7].decode() if len(words) > 7 and words[7] != b"<NA>" else None
            yield words[1].decode(), start_s, round(start_s + duration_s, 9), channel, speaker

    left, batches = rows(), list[pa.RecordBatch]()
    while some := list(islice(left, _BATCH)):
        columns = zip(zip(*some, strict=True), _COLUMNS.types, strict=True)
        batches.append(pa.record_batch([pa.array(one, kind, from_pandas=True) for one, kind in columns], _COLUMNS))
    return pa.Table.from_batches(batches, _COLUMNS)
