"""Export a label table for programs in which people listen: a file a recording, with a track for each channel.

Neighbours with the same label are one stretch. What is not speech is left out.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa

from emotion_batch.errors import Status

# Everything is written below this folder, at the recording's own path.
FOLDER = "recordings"
_COLUMNS = ("file", "channel", "start_s", "end_s", "status", "emotion", "confidence", "is_speech")
# Starts and ends that are closer than this are the same.
_SAME_S = 1e-6
# A file system takes names of up to 255 bytes, and a suffix follows.
_MOST_BYTES = 200
# Windows reserves these, and the first begins an escape.
_RESERVED = '%\\:*?"<>|'


class LabelSpan(NamedTuple):
    """A stretch of a recording with one label, in seconds."""

    start_s: float
    end_s: float
    label: str


# The stretches of each channel, in order; the key is None for a mix.
Tracks = Mapping[int | None, Sequence[LabelSpan]]


def write(folder: str, rows: Iterator[pa.Table], file_format: str, min_confidence: float) -> None:
    """Write the files of all recordings that have a label; all rows of a recording are in one of the tables."""
    encode = _ENCODERS[file_format]
    for some in rows:
        columns = (some[name].to_pylist() for name in _COLUMNS)
        for file, own in groupby(zip(*columns, strict=True), key=itemgetter(0)):
            name = escape(file)
            for suffix, text in encode(name, _find_tracks([row[1:] for row in own], min_confidence)):
                path = os.path.join(folder, FOLDER, f"{name}{suffix}")
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8", newline="\n") as stream:
                    stream.write(text)


def _find_tracks(rows: Sequence[Sequence[Any]], min_confidence: float) -> dict[int | None, list[LabelSpan]]:
    """Return the stretches of a recording by channel; where windows overlap, a stretch ends with the next start."""
    tracks: dict[int | None, list[LabelSpan]] = {}
    ordered = sorted(rows, key=lambda row: (-1 if row[0] is None else row[0], row[1]))
    for channel, own in groupby(ordered, key=itemgetter(0)):
        found: list[LabelSpan] = []
        rows_of = list(own)
        nexts = [row[1] for row in rows_of[1:]] + [float("inf")]
        for (_, start_s, end_s, status, emotion, confidence, is_speech), next_s in zip(rows_of, nexts, strict=True):
            if status != Status.OK or is_speech is False or confidence < min_confidence:
                continue
            stretch = LabelSpan(start_s, min(end_s, next_s), emotion)
            if found and found[-1].label == emotion and start_s - found[-1].end_s < _SAME_S:
                found[-1] = found[-1]._replace(end_s=stretch.end_s)
            elif stretch.end_s - start_s > _SAME_S:
                found.append(stretch)
        if found:
            tracks[channel] = found
    return tracks


def escape(file: str) -> str:
    """Return a recording's name as a path below a folder; what a file system reads otherwise is percent-escaped."""
    words = []
    for word in filter(None, file.split("/")):
        safe = "".join(one if one.isprintable() and one not in _RESERVED else quote(one, safe="") for one in word)
        if set(word) == {"."}:
            safe = word.replace(".", "%2E")
        if len(safe.encode()) > _MOST_BYTES:
            digest = hashlib.blake2b(word.encode(), digest_size=16).hexdigest()
            safe = f"{safe.encode()[: _MOST_BYTES - 33].decode(errors='ignore')}~{digest}"
        words.append(safe)
    return "/".join(words)


def _name(channel: int | None) -> str:
    return "emotion" if channel is None else f"channel {channel}"


def _encode_audacity(file: str, tracks: Tracks) -> Iterator[tuple[str, str]]:  # noqa: ARG001 as all encoders
    """https://manual.audacityteam.org/man/importing_and_exporting_labels.html: a file is one track."""
    for channel, stretches in tracks.items():
        lines = (f"{one.start_s:.6f}\t{one.end_s:.6f}\t{' '.join(one.label.split())}\n" for one in stretches)
        yield ("" if channel is None else f".channel-{channel}") + ".txt", "".join(lines)


def _encode_textgrid(file: str, tracks: Tracks) -> Iterator[tuple[str, str]]:  # noqa: ARG001
    """https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html: intervals without a label fill each tier."""
    if not tracks:
        return
    last_s = max(one[-1].end_s for one in tracks.values())
    text = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n{last_s:.6f}\n<exists>\n{len(tracks)}\n'
    for channel, stretches in tracks.items():
        filled, at_s = [], 0.0
        for one in (*stretches, LabelSpan(last_s, last_s, "")):
            if one.start_s - at_s > _SAME_S:
                filled.append(LabelSpan(at_s, one.start_s, ""))
            filled += [one] if one.label else []
            at_s = one.end_s
        text += f'"IntervalTier"\n"{_name(channel)}"\n0\n{last_s:.6f}\n{len(filled)}\n'
        for one in filled:
            label = one.label.replace('"', '""')
            text += f'{one.start_s:.6f}\n{one.end_s:.6f}\n"{label}"\n'
    yield ".TextGrid", text


def _encode_vtt(file: str, tracks: Tracks) -> Iterator[tuple[str, str]]:  # noqa: ARG001
    """https://www.w3.org/TR/webvtt1/: a cue a stretch, whose voice is the channel."""
    cues = [(one, channel) for channel, stretches in tracks.items() for one in stretches]
    text = "WEBVTT\n"
    for one, channel in sorted(cues, key=lambda cue: cue[0].start_s):
        label = one.label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        voice = "" if channel is None else f"<v {_name(channel)}>"
        text += f"\n{_clock(one.start_s)} --> {_clock(one.end_s)}\n{voice}{label}\n"
    if cues:
        yield ".vtt", text


def _clock(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1_000), 1_000)
    return f"{whole // 3_600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{milliseconds:03d}"


def _encode_rttm(file: str, tracks: Tracks) -> Iterator[tuple[str, str]]:
    """https://www.nist.gov/itl/iad/mig/rich-transcription-evaluation: channels count from 1, and the label stands for the speaker."""
    uri = re.sub(r"\s", lambda blank: quote(blank[0]), file)
    lines = [
        f"SPEAKER {uri} {1 if channel is None else channel + 1} {one.start_s:.6f} {one.end_s - one.start_s:.6f} <NA> <NA> "
        f"{'_'.join(one.label.split())} <NA> <NA>\n"
        for channel, stretches in tracks.items()
        for one in stretches
    ]
    if lines:
        yield ".rttm", "".join(lines)


_ENCODERS: dict[str, Callable[[str, Tracks], Iterator[tuple[str, str]]]] = {
    "audacity": _encode_audacity,
    "textgrid": _encode_textgrid,
    "vtt": _encode_vtt,
    "rttm": _encode_rttm,
}
FORMATS = tuple(_ENCODERS)
