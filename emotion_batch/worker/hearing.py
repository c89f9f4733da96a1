"""Make the rows of a recording that is open: of stretches at fixed times, of speech, or of a list."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from emotion_batch import usage
from emotion_batch.errors import ChangedError, DeniedError, NoBucketError, RecordingError, Status, StorageError, counted
from emotion_batch.features import audio, recipes
from emotion_batch.features.stretches import HOP_S, StretchFinder
from emotion_batch.settings import MAX_S, AnySettings, Segments
from emotion_batch.storage.entries import Entry, ListedSegment
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.storage.prefetch import RemoteFile
from emotion_batch.storage.retry import is_transient
from emotion_batch.usage import stage

# Speech is looked for in so many seconds at a time.
_BLOCK_S = 10


class FeatureRow(NamedTuple):
    """One row of a feature table, in its columns' order; the last are as many columns as the recipe has.

    Only tables of listed segments have a column `speaker`.
    """

    file: str
    channel: int | None
    start_s: float
    end_s: float | None
    speaker: str | None
    status: Status
    error: str | None
    duration_s: float | None
    sample_rate_hz: int | None
    channels: int | None
    features: recipes.Values | None


def judge(error: Exception) -> tuple[Status, str]:
    """Return the status of a recording and why it has no features; raise the error if the recording is not to blame."""
    if isinstance(error, RecordingError):
        return error.status, error.reason
    if isinstance(error, MemoryError):
        return Status.MEMORY, "the segment does not fit into memory"
    if isinstance(error, StorageError):
        if error.is_transient or isinstance(error.__cause__, DeniedError | NoBucketError):
            raise error
        # A list may name URLs that no client here can read.
        return Status.UNREADABLE, str(error)
    said = str(error).splitlines() or ["no reason given"]
    return Status.UNREADABLE, f"{type(error).__name__}: {said[0]}"


class Hearing:
    """Makes the rows of a recording that is open."""

    def __init__(
        self,
        entry: Entry,
        archive: Folder,
        source: int | bytes | RemoteFile,
        n_bytes: int,
        recording: audio.Recording,
        settings: AnySettings,
        segments: Segments,
    ) -> None:
        self._archive, self._source, self._n_bytes = archive, source, n_bytes
        self._row = partial(make_row, entry, recording.header)
        self._recording, self._header = recording, recording.header
        self._settings, self._segments = settings, segments
        self._channels: list[int | None] = [None] if recording.is_mix else [*recording.channels]
        self._windows = [recipes.Windows(settings) for _ in self._channels]
        self._read_to_s: float | None = None

    def lack(self, start_s: float, number: int, speaker: str | None = None) -> FeatureRow:
        """Return the row of a channel that the recording lacks."""
        reason = f"the recording has {counted(self._header.channels, 'channel')}, numbered from 0"
        return self._row(start_s, channel=number, speaker=speaker, failure=(Status.UNREADABLE, reason))

    def hear(self, lacking: list[FeatureRow]) -> Iterator[FeatureRow]:
        """Yield the rows of segments at fixed times; those of lacking channels, which are taken, come with the first."""
        for number, start_s in enumerate(self._segments.starts()):
            try:
                stretch = self._read(start_s, self._segments.duration_s, self._settings.sample_rate)
            except RecordingError as error:
                if number and error.status == Status.TOO_SHORT:
                    break
                raise
            # The rows of all channels are made before the first is given, so that a start has all of them or none.
            rows = [self._compute(start_s, stretch, place, one) for place, one in enumerate(stretch.channels)]
            rows = sorted([*lacking, *rows], key=_place)
            lacking.clear()
            yield from rows

    def hear_speech(self, lacking: list[FeatureRow]) -> Iterator[FeatureRow]:
        """Yield the rows of stretches of speech, in the order of their starts; memory does not grow with the recording.

        Raise RecordingError, ``empty``, if there is no speech.
        """
        rate = self._header.sample_rate_hz
        by_silero = self._segments.is_by_silero
        finders = [StretchFinder(self._segments.duration_s, by_silero=by_silero) for _ in self._channels]
        context = finders[0].context
        kept = [np.zeros(0, np.float32) for _ in finders]
        # The sample at which those that are kept begin, and the first frame that no finder has.
        kept_from = tracked = n_found = 0
        waiting, failure = [*lacking], None
        lacking.clear()
        for number in count():
            try:
                block = self._read(number * _BLOCK_S, _BLOCK_S, None)
                kept = [np.concatenate(pair) for pair in zip(kept, block.channels, strict=True)]
                is_last = len(block.samples) < int(_BLOCK_S * rate)
            except RecordingError as error:
                is_last = True
                if not number or error.status != Status.TOO_SHORT:
                    failure = error
            begin = max(0, tracked - context)
            for place, (finder, samples) in enumerate(zip(finders, kept, strict=True)):
                with stage("features"):
                    tracks = finder.track(samples[round(begin * HOP_S * rate) - kept_from :], rate)
                # Frames that depend on where the samples end are tracked again with the next block.
                new = slice(tracked - begin, None if is_last else -context)
                for first, last in finder.find(tracks[0][new], tracks[1][new], is_last=is_last):
                    start_s, end_s = round(first * HOP_S, 9), round(last * HOP_S, 9)
                    start = int(start_s * rate)
                    piece = samples[start - kept_from :][: int(round(end_s - start_s, 9) * rate)]
                    end_s = min(end_s, (kept_from + len(samples)) / rate)
                    read_hz = self._settings.sample_rate or rate
                    stretch = audio.Stretch([audio.resample(piece, rate, read_hz)], read_hz, start, end_s)
                    waiting.append(self._compute(start_s, stretch, place, stretch.samples))
                    n_found += 1
            # No other stretch begins before this.
            earliest_s = math.inf if is_last else HOP_S * min(finder.first for finder in finders)
            yield from sorted((row for row in waiting if row.start_s < earliest_s), key=_place)
            waiting = [row for row in waiting if row.start_s >= earliest_s]
            if is_last:
                break
            tracked = begin + len(tracks[0]) - context
            # A frame more is kept, because starts are rounded.
            n_old = max(0, int(min(earliest_s - HOP_S, (tracked - context - 1) * HOP_S) * rate) - kept_from)
            kept, kept_from = [samples[n_old:] for samples in kept], kept_from + n_old
        if failure is not None:
            raise failure
        if not n_found:
            raise RecordingError(Status.EMPTY, "there is no speech in the recording")

    def hear_listed(self, listed: Sequence[ListedSegment]) -> Iterator[FeatureRow]:
        """Yield the rows of listed segments, in the order of the list; each has its own status."""
        waiting: dict[int, list[FeatureRow]] = {}
        n_given = 0
        # They are read in the order of their starts, so that nothing is decoded twice.
        for number in sorted(range(len(listed)), key=lambda number: listed[number].start_s):
            waiting[number] = self._hear_one(listed[number])
            while n_given in waiting:
                yield from waiting.pop(n_given)
                n_given += 1

    def _hear_one(self, one: ListedSegment) -> list[FeatureRow]:
        asked = [one.channel] if one.channel is not None else [*numbers_of(self._segments)] or self._channels
        try:
            duration_s = MAX_S if one.end_s is None else round(one.end_s - one.start_s, 9)
            if duration_s * self._header.sample_rate_hz < 1:
                reason = f"the segment starts at {one.start_s:g} s and ends at {one.end_s:g} s"
                raise RecordingError(Status.TOO_SHORT, reason)
            stretch = self._read(one.start_s, duration_s, self._settings.sample_rate) if self._channels else None
        except Exception as error:
            failure = judge(error)
            return [self._row(one.start_s, channel=channel, speaker=one.speaker, failure=failure) for channel in asked]
        rows = []
        for channel in asked:
            if stretch is None or channel not in self._channels:
                rows.append(self.lack(one.start_s, channel or 0, one.speaker))
                continue
            place = self._channels.index(channel)
            row = self._compute(one.start_s, stretch, place, stretch.channels[place])
            is_whole = one.end_s is not None and row.end_s is not None and abs(row.end_s - one.end_s) < 1e-6
            rows.append(row._replace(speaker=one.speaker, end_s=one.end_s if is_whole else row.end_s))
        return rows

    def _read(self, start_s: float, duration_s: float, sample_rate: int | None) -> audio.Stretch:
        """Read a stretch, and count the bytes that it took."""
        try:
            with stage("decode"):
                stretch = self._recording.read(start_s, duration_s, sample_rate=sample_rate)
        finally:
            check_store(self._source, self._archive)
        if isinstance(self._source, int):
            # Of a local recording, these are the stretch's share of its duration, if that is known.
            share = 1.0 if self._read_to_s is None else 0.0
            if math.isfinite(self._header.duration_s) and self._header.duration_s > 0:
                read_s = max(0.0, stretch.end_s - max(start_s, self._read_to_s or 0.0))
                share = min(1.0, read_s / self._header.duration_s)
            usage.current().read_bytes += round(self._n_bytes * share)
        self._read_to_s = max(self._read_to_s or 0.0, stretch.end_s)
        return stretch

    def _compute(
        self, start_s: float, stretch: audio.Stretch, place: int, samples: npt.NDArray[np.float32]
    ) -> FeatureRow:
        """Return the row of a stretch of one of the channels, which has these samples."""
        channel = self._channels[place]
        with stage("features"):
            values = self._windows[place].compute(samples, stretch.sample_rate_hz, stretch.start)
        is_seen = recipes.recipe_of(self._settings).sees_every_sample(self._settings)
        is_finite = all(np.isfinite(value).all() for value in values)
        if is_finite and (is_seen or np.isfinite(samples).all()):
            return self._row(start_s, stretch.end_s, channel=channel, values=values)
        reason = "the segment has samples that are NaN or infinite"
        if np.isfinite(samples).all():
            reason = "the samples are too large for finite features"
        return self._row(start_s, channel=channel, failure=(Status.NOT_FINITE, reason))


def _place(row: FeatureRow) -> tuple[float, int]:
    return row.start_s, row.channel or 0


def numbers_of(segments: Segments) -> Sequence[int]:
    """Return the numbers of the channels that segments name; none for the mix and for each."""
    return () if isinstance(segments.channels, str) else segments.channels


def make_row(
    entry: Entry,
    header: audio.Header | None,
    start_s: float,
    end_s: float | None = None,
    *,
    channel: int | None = None,
    speaker: str | None = None,
    values: recipes.Values | None = None,
    failure: tuple[Status, str | None] = (Status.OK, None),
) -> FeatureRow:
    """Return a row of a recording, which `header` is about if it could be opened."""
    row = FeatureRow(entry.file, channel, start_s, end_s, speaker, *failure, None, None, None, values)
    if header is None:
        return row
    duration_s = header.duration_s if math.isfinite(header.duration_s) else None
    return row._replace(duration_s=duration_s, sample_rate_hz=header.sample_rate_hz, channels=header.channels)


def check_store(source: int | bytes | RemoteFile, archive: Folder) -> None:
    """Raise the error of reading a recording, which its decoder took for the end of the file."""
    if isinstance(source, RemoteFile) and source.failure is not None:
        with store_errors(archive):
            raise source.failure


@contextlib.contextmanager
def store_errors(archive: Folder) -> Iterator[None]:
    """Turn errors of a recording's place into RecordingError, or into StorageError if the place itself failed."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordingError(Status.VANISHED, "the file was listed and is not there") from error
    except ChangedError as error:
        reason = "the file was replaced while it was read; run the same command again"
        raise RecordingError(Status.CHANGED, reason) from error
    except Exception as error:
        if is_transient(error) or isinstance(error, DeniedError | NoBucketError):
            with explained(f"archive {archive.url}"):
                raise
        if not isinstance(error, OSError):
            raise
        raise RecordingError(Status.UNREADABLE, error.strerror or str(error)) from error
