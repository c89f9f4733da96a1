"""Turn recordings into feature rows. Each recording gives its rows, or one row with its status and reason."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

import pyarrow as pa

from emotion_batch import usage
from emotion_batch.errors import RecordingError, Status, StorageError
from emotion_batch.features import audio, recipes
from emotion_batch.settings import EACH, MIX, AnySettings, Segments
from emotion_batch.storage.entries import Entry, count_rows, locate_local
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.prefetch import Fetched, RemoteFile, reading
from emotion_batch.storage.retry import persistently
from emotion_batch.tables.schema import feature_schema
from emotion_batch.usage import stage
from emotion_batch.worker.hearing import FeatureRow, Hearing, check_store, judge, make_row, numbers_of, store_errors


def extract_rows(
    entries: pa.RecordBatch,
    archive: Folder,
    settings: AnySettings,
    segments: Segments,
    on_row: Callable[[], None] = lambda: None,
    on_failure: Callable[[StorageError], None] | None = None,
    longest_s: float = math.inf,
) -> pa.Table:
    """Return feature rows for each segment of each recording, in the order of `entries` (of `ENTRY_SCHEMA`).

    A recording that fails has a row with its status. `on_row` is called after each row. `on_failure` gets the error of a recording's
    place, and raises it if the recording is not to blame; by default it always raises. After `longest_s` a recording ends with the rows
    that it has, and the next one begins. Raise StorageError if the place of the recordings fails.
    """

    def rows() -> Iterator[FeatureRow]:
        with reading(archive, segments) as reader:
            for entry, fetched in reader.ahead(Entry(**columns) for columns in entries.to_pylist()):
                began = time.perf_counter()
                # A recording is tried twice if its place failed and then answered for others.
                for take in (fetched, None if fetched is None else partial(reader.fetch, entry)):
                    # Rows are collected first, because a recording that fails midway is done again from its start.
                    found = []
                    try:
                        for row in extract_recording(entry, archive, take, settings, segments):
                            found.append(row)
                            on_row()
                            if time.perf_counter() - began > longest_s:
                                break
                        break
                    except StorageError as error:
                        if on_failure is None:
                            raise
                        on_failure(error)
                        found = rest_rows(entry, segments, [], Status.UNREADABLE, str(error))
                usage.current().time(entry.file, time.perf_counter() - began)
                yield from found

    return rows_to_table(rows(), settings, segments)


def rows_to_table(found: Iterable[FeatureRow], settings: AnySettings, segments: Segments) -> pa.Table:
    """Return rows as a table of the feature table's schema."""
    rows: list[tuple[object, ...]] = []
    values = recipes.Columns(settings)
    for row in found:
        rows.append(row[:-1])
        values.add(row.features)
    schema = feature_schema(settings, is_listed=segments.is_listed)
    columns = zip(*rows, strict=True) if rows else ((),) * (len(FeatureRow._fields) - 1)
    named = dict(zip(FeatureRow._fields, columns, strict=False))
    arrays = [pa.array(named[field.name], field.type) for field in schema if field.name in named]
    return pa.Table.from_arrays([*arrays, *values.to_arrays()], schema=schema)


def extract_recording(
    entry: Entry, archive: Folder, fetched: Callable[[], Fetched] | None, settings: AnySettings, segments: Segments
) -> Iterator[FeatureRow]:
    """Yield the rows of one recording: one a segment and channel, and one for the rest if it fails.

    `fetched` returns a recording of a store; it is None for a file. Raise StorageError if the place fails and not the recording.
    """
    header: audio.Header | None = None
    listed = entry.read_segments()
    numbers = sorted({one.channel for one in listed if one.channel is not None} | {*numbers_of(segments)})
    made: list[FeatureRow] = []
    lacking: list[FeatureRow] = []
    try:
        asked = segments.channels if segments.channels == EACH else numbers or MIX
        with _source(entry, archive, fetched) as (source, n_bytes), audio.opened(source, n_bytes, asked) as recording:
            header = recording.header
            hearing = Hearing(entry, archive, source, n_bytes, recording, settings, segments)
            if not segments.is_listed:
                start_s = next(segments.starts())
                lacking = [hearing.lack(start_s, number) for number in numbers if number not in recording.channels]
                if not recording.channels:
                    yield from lacking
                    return
            hear = hearing.hear_speech if segments.is_speech else hearing.hear
            for row in hearing.hear_listed(listed) if segments.is_listed else hear(lacking):
                made.append(row._replace(features=None))
                yield row
            usage.current().n_mixed += recording.has_other_channels
        return
    except Exception as error:
        # An unknown error of one recording must only cost that recording's row.
        status, reason = judge(error)
    yield from lacking
    yield from rest_rows(entry, segments, made, status, reason, header)


def rest_rows(
    entry: Entry,
    segments: Segments,
    made: Sequence[FeatureRow],
    status: Status,
    reason: str,
    header: audio.Header | None = None,
) -> list[FeatureRow]:
    """Return the row for the rest of a recording after those that were made; if a list names its segments, one for each of the rest."""
    if segments.is_listed:
        listed = entry.read_segments()
        n_made = len(count_rows(listed, [(row.start_s, row.channel) for row in made]))
        places = [(one.start_s, one.channel, one.speaker) for one in listed[n_made:]]
    elif segments.is_speech:
        places = [(max((row.end_s or 0.0 for row in made), default=0.0), None, None)]
    else:
        n_made = len({row.start_s for row in made})
        places = [(start_s, None, None) for start_s in islice(segments.starts(), n_made, n_made + 1)]
    return [
        make_row(entry, header, start_s, channel=channel, speaker=speaker, failure=(status, reason))
        for start_s, channel, speaker in places
    ]


@contextlib.contextmanager
def opened_recording(
    entry: Entry, archive: Folder, fetched: Callable[[], Fetched] | None, channels: str | Sequence[int] = MIX
) -> Iterator[audio.Recording]:
    """Open one recording of an archive, or channels of it, to read stretches within the block.

    Raise RecordingError, also within the block, if it is not what was listed or cannot be decoded, and StorageError if the place of
    the recording fails.
    """
    with _source(entry, archive, fetched) as (source, n_bytes), audio.opened(source, n_bytes, channels) as recording:
        yield recording
        check_store(source, archive)


@contextlib.contextmanager
def _source(
    entry: Entry, archive: Folder, fetched: Callable[[], Fetched] | None
) -> Iterator[tuple[int | bytes | RemoteFile, int]]:
    """Open a recording as `audio.opened` takes it; raise RecordingError if it is not what was listed."""
    if fetched is not None:
        with store_errors(archive), stage("read"):
            source, size, version = fetched()
        _check_unchanged(entry, size, version, "ETag")
        try:
            yield source, size
        except RecordingError:
            check_store(source, archive)
            raise
        return
    place = locate_local(archive, entry)
    with store_errors(archive):
        # O_NONBLOCK, because a named pipe called .wav must not block the shard.
        descriptor = persistently(lambda: os.open(place, os.O_RDONLY | os.O_NONBLOCK))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise RecordingError(Status.NOT_AUDIO, "this is a folder")
        _check_unchanged(entry, status.st_size, str(status.st_mtime_ns), "modification time")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _check_unchanged(entry: Entry, size: int, version: str | None, word: str) -> None:
    for name, listed, found in (("size", entry.size, size), (word, entry.version, version)):
        if None not in (listed, found) and listed != found:
            reason = f"the file's {name} is not what was listed; run the same command again"
            raise RecordingError(Status.CHANGED, reason)
