"""One shard of an extraction: recordings to feature rows. Knows nothing of Dask."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from emotion_batch import audio, mfcc, tables
from emotion_batch.archive import Entry, locate
from emotion_batch.errors import RecordingError, Status
from emotion_batch.manifest import ShardEntry, read_entries
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage import Folder
from emotion_batch.tables import Counts, TableInfo

_LOCK = threading.Lock()
_n_limited = 0
_limits: threadpool_limits | None = None


@dataclass(frozen=True)
class Receipt:
    """What a task hands back: small, whatever the shard.

    Attributes
    ----------
    counts
        What came out.
    audio_s
        Seconds of audio that the ``ok`` rows cover.
    elapsed_s
        Wall-clock seconds that the shard took.
    examples
        For each status but ``ok``, one recording and its reason.
    """

    counts: Counts
    audio_s: float
    elapsed_s: float
    examples: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, counts: Counts, rows: pa.Table, started: float) -> Receipt:
        """Return the receipt for `rows`, begun at `started` of `time.perf_counter`."""
        failed = rows.filter(pc.not_equal(rows["status"], Status.OK))
        columns = (failed[name].to_pylist() for name in ("status", "file", "error"))
        examples = {status: (file, error) for status, file, error in zip(*columns, strict=True)}
        starts, ends = (rows[name].to_numpy() for name in ("start_s", "end_s"))
        return cls(counts, float(np.nansum(ends - starts)), time.perf_counter() - started, examples)


@dataclass(frozen=True)
class Extraction:
    """What every task of an extraction knows.

    Attributes
    ----------
    table
        The feature table's folder.
    info
        What the table is.
    archive
        What the recordings' names are relative to.
    """

    table: Folder
    info: TableInfo
    archive: Folder

    def do_shard(self, shard: int, entry: ShardEntry) -> Receipt:
        """Extract one shard's recordings and publish its part."""
        started = time.perf_counter()
        rows = extract_rows(
            read_entries(self.table, entry), self.archive, self.info.feature_settings, self.info.segments
        )
        rows = tables.keep_gone(self.table, shard, rows)
        counts = tables.publish_part(self.table, self.info, shard, entry.digest, rows)
        return Receipt.of(counts, rows, started)


class _Row(NamedTuple):
    """One row of a feature table, in its columns' order."""

    file: str
    start_s: float
    end_s: float | None
    status: Status
    error: str | None
    duration_s: float | None
    sample_rate_hz: int | None
    channels: int | None
    mfcc: npt.NDArray[np.float32] | None


def extract_rows(entries: pa.RecordBatch, archive: Folder, settings: FeatureSettings, segments: Segments) -> pa.Table:
    """Return a row for each recording, in the order of `entries`.

    Parameters
    ----------
    entries
        Recordings, of `archive.ENTRY_SCHEMA`.
    archive
        What their names are relative to.
    settings, segments
        How samples become a vector, and which stretch.

    Returns
    -------
    Rows of the feature table's schema. A recording that fails has a row with its status; nothing is raised for it.
    """
    with _one_thread():
        rows = [extract_recording(Entry(**entry), archive, settings, segments) for entry in entries.to_pylist()]
    columns = list(zip(*rows, strict=True))
    schema = tables.feature_schema(settings)
    arrays = [pa.array(column, field.type) for column, field in zip(columns[:-1], schema, strict=False)]
    values = np.zeros((len(rows), settings.n_mfcc), np.float32)
    is_missing = np.ones(len(rows), bool)
    for number, vector in enumerate(columns[-1]):
        if vector is not None:
            values[number], is_missing[number] = vector, False
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(values.ravel()), type=schema.field("mfcc").type, mask=pa.array(is_missing)
    )
    return pa.Table.from_arrays([*arrays, vectors], schema=schema)


def extract_recording(entry: Entry, archive: Folder, settings: FeatureSettings, segments: Segments) -> _Row:
    """Return the row of one recording, whatever becomes of it."""
    header: audio.Header | None = None
    vector: npt.NDArray[np.float32] | None = None
    end_s: float | None = None
    status, reason = Status.OK, None
    try:
        with _source(entry, archive) as source, audio.opened(source) as recording:
            header = recording.header
            samples = recording.read(segments.offset_s, segments.duration_s, sample_rate=settings.sample_rate)
            vector = mfcc.mean_mfcc(samples, settings)
            if not np.isfinite(vector).all():
                raise RecordingError(Status.NOT_FINITE, "the samples are too large for finite features")
            end_s = float(np.fmin(segments.offset_s + segments.duration_s, header.duration_s))
    except RecordingError as error:
        status, reason, vector = error.status, error.reason, None
    except MemoryError:
        status, reason, vector = Status.MEMORY, "the segment does not fit into memory", None
    except Exception as error:
        # One recording in a million finds what nobody thought of: it must cost its own row and no other.
        status, reason, vector, end_s = Status.UNREADABLE, _said(error), None, None
    return _Row(
        file=entry.file,
        start_s=segments.offset_s,
        end_s=end_s,
        status=status,
        error=reason,
        duration_s=header.duration_s if header and np.isfinite(header.duration_s) else None,
        sample_rate_hz=header.sample_rate_hz if header else None,
        channels=header.channels if header else None,
        mfcc=vector,
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep BLAS to one thread: the workers are the parallelism, and a row must not depend on a thread count.

    The limit is the process's, so that of several threads the first sets it and the last lifts it.
    """
    global _n_limited, _limits
    with _LOCK:
        if not _n_limited:
            _limits = threadpool_limits(1)
        _n_limited += 1
    try:
        yield
    finally:
        with _LOCK:
            _n_limited -= 1
            if not _n_limited and _limits is not None:
                _limits.restore_original_limits()


@contextlib.contextmanager
def _source(entry: Entry, archive: Folder) -> Iterator[int | bytes]:
    """Open a recording as `audio.opened` takes it; raise RecordingError if it is not what was listed."""
    place = locate(archive, entry)
    try:
        if isinstance(place, bytes):
            # O_NONBLOCK: a named pipe called .wav must not hold up the shard.
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
        else:
            folder, name = place
            data = folder.read(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordingError(Status.VANISHED, "the file was listed and is not there") from error
    except OSError as error:
        raise RecordingError(Status.UNREADABLE, error.strerror or _said(error)) from error
    if not isinstance(place, bytes):
        _check_unchanged(entry, len(data), None)
        yield data
        return
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise RecordingError(Status.NOT_AUDIO, "this is a folder")
        _check_unchanged(entry, status.st_size, str(status.st_mtime_ns))
        yield descriptor
    finally:
        os.close(descriptor)


def _check_unchanged(entry: Entry, size: int, version: str | None) -> None:
    for name, listed, found in (("size", entry.size, size), ("modification time", entry.version, version)):
        if None not in (listed, found) and listed != found:
            raise RecordingError(
                Status.CHANGED, f"the file's {name} is not what was listed; run the same command again"
            )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
