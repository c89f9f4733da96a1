"""Label one recording at once, without Dask and without a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from emotion_batch.errors import Status, UsageError
from emotion_batch.inference.bundle import find_model, require_safe
from emotion_batch.inference.predict import label_rows, load_predictor
from emotion_batch.libraries import require_silero
from emotion_batch.settings import Segments
from emotion_batch.storage.archive import is_recording, list_recordings
from emotion_batch.storage.folder import Folder
from emotion_batch.worker.recordings import extract_rows


@dataclass(frozen=True)
class SegmentLabel:
    """The label of one segment of a recording.

    Attributes
    ----------
    file
        Name of the recording.
    channel
        Its channel, from 0; None for the mean of all.
    start_s, end_s
        The segment in seconds; there is no end without a label.
    status, error
        Its status, and the reason if it has no label.
    emotion, confidence
        The most probable emotion and its probability; None without a label.
    is_confident
        Whether the label can be trusted; None without a label.
    is_in_domain, is_speech
        Whether the segment is like the training data, and is speech; None if unknown.
    probabilities
        Probability of each emotion, in the bundle's order; empty without a label.
    """

    file: str
    channel: int | None
    start_s: float
    end_s: float | None
    status: str
    error: str | None
    emotion: str | None
    confidence: float | None
    is_confident: bool | None
    is_in_domain: bool | None
    is_speech: bool | None
    probabilities: Mapping[str, float]


def label_recording(
    recording: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    segments: Segments | str | os.PathLike[str] | None = None,
    window: float | None = None,
    hop: float | None = None,
    channels: str | Sequence[int] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[SegmentLabel]:
    """Label one recording here and now, without Dask and without a table.

    Parameters
    ----------
    recording
        Path or URL of the file.
    model
        The bundle, or the name of a shipped one; by default the one that is meant for new voices.
    segments
        Which segments to label, as in `extract`; by default as in the model's training.
    window, hop
        Instead of `segments`: windows of so many seconds, one every `hop` seconds; without `hop`, each starts where the last one ends.
    channels
        ``"mix"`` for the mean of a recording's channels, ``"each"`` for rows of each channel, or the numbers of channels from 0; by
        default as in `segments`.
    storage_options
        Options of fsspec's filesystem.

    Returns
    -------
    A label for each segment, or a reason; at least one.
    """
    asked = Segments.choose(segments, window, hop)
    bundle = require_safe(find_model(model, storage_options))
    place = Folder.of(recording, storage_options)
    if not is_recording(recording, storage_options):
        raise UsageError(f"recording {place.url}: it is not one file; name a TABLE to label an archive")
    stretches = bundle.card.segments.replaced_by(asked, channels)
    if stretches.is_by_silero:
        require_silero()
    listing = list_recordings(place.url, options=storage_options, segments=stretches)
    # A list of segments may name other recordings too.
    entries = listing.entries.filter(pc.equal(listing.entries["file"], place.url.rpartition("/")[2]))
    if not entries.num_rows:
        lack = f"{stretches.source} lists no segment of it; check the names in the list"
        raise UsageError(f"recording {place.url}: {lack}")
    # One thread as on a worker, and only in this block, because the process is the caller's.
    with threadpool_limits(1):
        [batch] = entries.combine_chunks().to_batches()
        features = extract_rows(batch, listing.folder, bundle.card.feature_settings, stretches)
    labels = bundle.card.labels
    return [
        SegmentLabel(
            **{field.name: row[field.name] for field in fields(SegmentLabel) if field.name != "probabilities"},
            probabilities={name: row[f"p_{name}"] for name in labels} if row["status"] == Status.OK else {},
        )
        for row in label_rows(features, load_predictor(bundle)).to_pylist()
    ]
