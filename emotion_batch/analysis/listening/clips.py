"""Cut out of the recordings what rows of a label table are about."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from emotion_batch.errors import RecordingError, StorageError
from emotion_batch.settings import MIX, Segments
from emotion_batch.storage.archive import find_base
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.prefetch import reading
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.schema import FEATURES
from emotion_batch.tables.table import read_info
from emotion_batch.worker.recordings import opened_recording

# Recordings are opened one after the other and read where a clip lies, as windows are.
_ANYWHERE = Segments.windows(6.0)


class Excerpt(NamedTuple):
    """A stretch of a recording, or of one of its channels, in seconds."""

    file: str
    channel: int | None
    start_s: float
    end_s: float


class Clip(NamedTuple):
    """The samples of an excerpt, shape (n_samples,), and their rate in Hz; or the reason why it cannot be heard."""

    samples: npt.NDArray[np.float32]
    rate_hz: int
    reason: str | None = None


def cut_clips(
    table: Folder, shards: Sequence[int] | None, excerpts: Sequence[Excerpt], rate_hz: int | None = None
) -> Iterator[Clip]:
    """Yield the clip of each excerpt, in order, at a rate or at the recording's own.

    `shards` are those that the recordings are in; None for all. It raises StorageError or UsageError if the archive cannot be read.
    """
    info = read_info(table)
    assert info is not None  # noqa: S101 the caller has read its rows
    entries = read_manifest(table, info).find([one.file for one in excerpts], shards)
    origin = read_info(Folder.of(info.source, table.options))
    archive = info.source if origin is None or origin.kind != FEATURES else origin.source
    base = find_base(archive, table.options)
    with reading(base, _ANYWHERE) as reader:
        for one, (entry, fetched) in zip(excerpts, reader.ahead(entries), strict=True):
            try:
                with opened_recording(entry, base, fetched, MIX if one.channel is None else [one.channel]) as recording:
                    found = recording.read(one.start_s, one.end_s - one.start_s, sample_rate=rate_hz)
                    yield Clip(found.samples, found.sample_rate_hz)
            except (RecordingError, StorageError) as error:
                if isinstance(error, StorageError) and error.is_transient:
                    raise
                yield Clip(np.zeros(0, np.float32), 1, getattr(error, "reason", str(error)))


def to_opus(clip: Clip) -> bytes:
    """Return a clip as Ogg Opus, which browsers play; its rate is one that Opus has, such as 16 kHz."""
    sink = io.BytesIO()
    soundfile.write(sink, np.clip(clip.samples, -1, 1), clip.rate_hz, format="OGG", subtype="OPUS")
    return sink.getvalue()
