"""Cut out of the recordings what rows of a label table are about, and write it as files with an index."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile

from emotion_batch.analysis.formats import CsvWriter, write_all
from emotion_batch.analysis.listening.label_files import escape
from emotion_batch.analysis.query import asked
from emotion_batch.errors import RecordingError, StorageError, UsageError
from emotion_batch.settings import MIX, Segments
from emotion_batch.storage.archive import find_base
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.prefetch import reading
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.schema import FEATURES
from emotion_batch.tables.table import read_info
from emotion_batch.worker.recordings import opened_recording

# The clips of an export are in this folder, and their list is in this file beside it.
FOLDER, INDEX = "clips", "clips.csv"
_CHOSEN = """
SELECT file, channel, start_s, end_s, emotion, confidence FROM labels WHERE status = 'ok' AND ({where}
) ORDER BY confidence DESC, file, channel, start_s LIMIT {most}"""
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
                    # The difference may be a little less than the segment had, which would cost its last sample.
                    found = recording.read(one.start_s, one.end_s - one.start_s + 1e-6, sample_rate=rate_hz)
                    yield Clip(found.samples, found.sample_rate_hz)
            except (RecordingError, StorageError) as error:
                if isinstance(error, StorageError) and error.is_transient:
                    raise
                yield Clip(np.zeros(0, np.float32), 1, getattr(error, "reason", str(error)))


def write_clips(table: Folder, folder: str, where: str, most: int, pad_s: float) -> tuple[int, int]:
    """Write the most confident rows that a condition in SQL holds for as WAV at the recordings' own rate, and an index of them.

    There are at most `most` clips, each with `pad_s` seconds before and after. Their samples are float32, so that they are those of the
    recording whatever it is. Return the number of recordings and of rows. It raises UsageError if DuckDB cannot read the condition or it
    holds for no row, and StorageError if none of the rows can be heard.
    """
    with asked(table.url, _CHOSEN.format(where=where, most=most), storage_options=table.options) as answer:
        rows = answer.read_all()
    chosen = rows.to_pylist()
    if not chosen:
        raise UsageError(f"where: there is no label in the table {table.url} for which this holds: {where}")
    excerpts = [
        Excerpt(one["file"], one["channel"], max(0.0, one["start_s"] - pad_s), one["end_s"] + pad_s) for one in chosen
    ]
    os.makedirs(os.path.join(folder, FOLDER))
    names: list[str | None] = []
    reasons = []
    for rank, (row, clip) in enumerate(zip(chosen, cut_clips(table, None, excerpts), strict=True), 1):
        reasons.append(clip.reason)
        channel = "" if row["channel"] is None else f"-channel-{row['channel']}"
        about = escape(f"{row['emotion']}-{row['file']}".replace("/", "_"))
        names.append(None if clip.reason else f"{FOLDER}/{rank:04d}-{about}{channel}-{row['start_s']:.3f}s.wav")
        if names[-1] is not None:
            soundfile.write(os.path.join(folder, names[-1]), clip.samples, clip.rate_hz, format="WAV", subtype="FLOAT")
    if not any(names):
        raise StorageError(f"none of the recordings can be heard, e.g. {chosen[0]['file']!r}: {reasons[0]}")
    index = pa.table({"clip": pa.array(names, pa.string()), **dict(zip(rows.column_names, rows.columns, strict=True))})
    index = index.append_column("clip_start_s", pa.array([one.start_s for one in excerpts]))
    index = index.append_column("error", pa.array(reasons, pa.string()))
    with open(os.path.join(folder, INDEX), "wb") as stream:
        write_all(CsvWriter(stream, index.schema), [index])
    return len({one.file for one in excerpts}), len(chosen)


def to_opus(clip: Clip) -> bytes:
    """Return a clip as Ogg Opus, which browsers play; its rate is one that Opus has, such as 16 kHz."""
    sink = io.BytesIO()
    soundfile.write(sink, np.clip(clip.samples, -1, 1), clip.rate_hz, format="OGG", subtype="OPUS")
    return sink.getvalue()
