"""Turn recordings into feature rows. Each recording gives its rows, or one row with its status and reason."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from emotion_batch import usage
from emotion_batch.errors import ChangedError, DeniedError, NoBucketError, RecordingError, Status, StorageError, counted
from emotion_batch.features import audio, recipes
from emotion_batch.settings import MIX, AnySettings, Segments
from emotion_batch.storage.entries import Entry, locate_local
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.storage.prefetch import Fetched, RemoteFile, reading
from emotion_batch.storage.retry import is_transient, persistently
from emotion_batch.tables.schema import feature_schema
from emotion_batch.usage import stage


class FeatureRow(NamedTuple):
    """One row of a feature table, in its columns' order; the last are as many columns as the recipe has."""

    file: str
    channel: int | None
    start_s: float
    end_s: float | None
    status: Status
    error: str | None
    duration_s: float | None
    sample_rate_hz: int | None
    channels: int | None
    features: recipes.Values | None


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
                        found = [
                            _row(entry, next(segments.starts()), None, status=Status.UNREADABLE, reason=str(error))
                        ]
                usage.current().time(entry.file, time.perf_counter() - began)
                yield from found

    return rows_to_table(rows(), settings)


def rows_to_table(found: Iterable[FeatureRow], settings: AnySettings) -> pa.Table:
    """Return rows as a table of the feature table's schema."""
    rows: list[tuple[object, ...]] = []
    values = recipes.Columns(settings)
    for row in found:
        rows.append(row[:-1])
        values.add(row.features)
    schema = feature_schema(settings)
    columns = zip(*rows, strict=True) if rows else ((),) * (len(FeatureRow._fields) - 1)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
    return pa.Table.from_arrays([*arrays, *values.to_arrays()], schema=schema)


def extract_recording(
    entry: Entry,
    archive: Folder,
    fetched: Callable[[], Fetched] | None,
    settings: AnySettings,
    segments: Segments,
) -> Iterator[FeatureRow]:
    """Yield the rows of one recording: one a segment and channel, and one for the rest if it fails.

    `fetched` returns a recording of a store; it is None for a file. Raise StorageError if the place fails and not the recording.
    """
    header: audio.Header | None = None
    start_s = next(segments.starts())
    read_to_s = 0.0
    lacking: list[FeatureRow] = []
    try:
        with (
            _source(entry, archive, fetched) as (source, n_bytes),
            audio.opened(source, n_bytes, segments.channels) as recording,
        ):
            header = recording.header
            lack = f"the recording has {counted(header.channels, 'channel')}, numbered from 0"
            lacking = [
                _row(entry, start_s, header, channel=number, status=Status.UNREADABLE, reason=lack)
                for number in _numbers(segments)
                if number not in recording.channels
            ]
            if not recording.channels:
                yield from lacking
                return
            channels: list[int | None] = [None] if recording.is_mix else [*recording.channels]
            windows = [recipes.Windows(settings) for _ in channels]
            for number, start_s in enumerate(segments.starts()):
                try:
                    with stage("decode"):
                        stretch = recording.read(start_s, segments.duration_s, sample_rate=settings.sample_rate)
                except RecordingError as error:
                    _check_store(source, archive)
                    if number and error.status == Status.TOO_SHORT:
                        break
                    raise
                _check_store(source, archive)
                _count_bytes(source, n_bytes, stretch.end_s - max(start_s, read_to_s), header, is_first=not number)
                read_to_s = stretch.end_s
                # The rows of all channels are made before the first is given, so that a start has all of them or none.
                rows, lacking = lacking, []
                for channel, samples, window in zip(channels, stretch.channels, windows, strict=True):
                    with stage("features"):
                        values = window.compute(samples, stretch.sample_rate_hz, stretch.start)
                    row = _row(entry, start_s, header, stretch.end_s, values, channel=channel)
                    if (infinite := _find_infinite(samples, values, settings)) is not None:
                        row = _row(entry, start_s, header, channel=channel, status=Status.NOT_FINITE, reason=infinite)
                    rows.append(row)
                yield from sorted(rows, key=lambda row: row.channel or 0)
            usage.current().n_mixed += recording.has_other_channels
        return
    except RecordingError as error:
        status, reason = error.status, error.reason
    except StorageError as error:
        if error.is_transient or isinstance(error.__cause__, DeniedError | NoBucketError):
            raise
        # A list may name URLs that no client here can read.
        status, reason = Status.UNREADABLE, str(error)
    except MemoryError:
        status, reason = Status.MEMORY, "the segment does not fit into memory"
    except Exception as error:
        # An unknown error of one recording must only cost that recording's row.
        said = str(error).splitlines() or ["no reason given"]
        status, reason = Status.UNREADABLE, f"{type(error).__name__}: {said[0]}"
    yield from lacking
    yield _row(entry, start_s, header, status=status, reason=reason)


def _numbers(segments: Segments) -> Sequence[int]:
    return () if isinstance(segments.channels, str) else segments.channels


def _find_infinite(samples: npt.NDArray[np.float32], values: recipes.Values, settings: AnySettings) -> str | None:
    """Return why a segment has no finite features; None if they are finite."""
    is_seen = recipes.recipe_of(settings).sees_every_sample(settings)
    if (is_seen or np.isfinite(samples).all()) and all(np.isfinite(value).all() for value in values):
        return None
    if np.isfinite(samples).all():
        return "the samples are too large for finite features"
    return "the segment has samples that are NaN or infinite"


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
        _check_store(source, archive)


def _row(
    entry: Entry,
    start_s: float,
    header: audio.Header | None,
    end_s: float | None = None,
    values: recipes.Values | None = None,
    status: Status = Status.OK,
    reason: str | None = None,
    channel: int | None = None,
) -> FeatureRow:
    about: tuple[float | None, int | None, int | None] = (None, None, None)
    if header is not None:
        duration_s = header.duration_s if math.isfinite(header.duration_s) else None
        about = (duration_s, header.sample_rate_hz, header.channels)
    return FeatureRow(entry.file, channel, start_s, end_s, status, reason, *about, values)


def _count_bytes(
    source: int | bytes | RemoteFile, n_bytes: int, duration_s: float, header: audio.Header, *, is_first: bool
) -> None:
    """Count the bytes read of a local recording: the stretch's share of its duration, if that is known."""
    if not isinstance(source, int):
        return
    if math.isfinite(header.duration_s) and header.duration_s > 0:
        usage.current().read_bytes += round(n_bytes * min(1.0, duration_s / header.duration_s))
    elif is_first:
        usage.current().read_bytes += n_bytes


@contextlib.contextmanager
def _source(
    entry: Entry, archive: Folder, fetched: Callable[[], Fetched] | None
) -> Iterator[tuple[int | bytes | RemoteFile, int]]:
    """Open a recording as `audio.opened` takes it; raise RecordingError if it is not what was listed."""
    if fetched is not None:
        with _store_errors(archive), stage("read"):
            source, size, version = fetched()
        _check_unchanged(entry, size, version, "ETag")
        try:
            yield source, size
        except RecordingError:
            _check_store(source, archive)
            raise
        return
    place = locate_local(archive, entry)
    with _store_errors(archive):
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


def _check_store(source: int | bytes | RemoteFile, archive: Folder) -> None:
    """Raise the error of reading a recording, which its decoder took for the end of the file."""
    if isinstance(source, RemoteFile) and source.failure is not None:
        with _store_errors(archive):
            raise source.failure


@contextlib.contextmanager
def _store_errors(archive: Folder) -> Iterator[None]:
    """Turn errors of a recording's place into RecordingError, or into StorageError if the place itself failed."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordingError(Status.VANISHED, "the file was listed and is not there") from error
    except ChangedError as error:
        raise RecordingError(
            Status.CHANGED, "the file was replaced while it was read; run the same command again"
        ) from error
    except Exception as error:
        if is_transient(error) or isinstance(error, DeniedError | NoBucketError):
            with explained(f"archive {archive.url}"):
                raise
        if not isinstance(error, OSError):
            raise
        raise RecordingError(Status.UNREADABLE, error.strerror or str(error)) from error


def _check_unchanged(entry: Entry, size: int, version: str | None, word: str) -> None:
    for name, listed, found in (("size", entry.size, size), (word, entry.version, version)):
        if None not in (listed, found) and listed != found:
            raise RecordingError(
                Status.CHANGED, f"the file's {name} is not what was listed; run the same command again"
            )
