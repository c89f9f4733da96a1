"""Compute what the report shows of channels, and of the recordings with the most of one label."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

from emotion_batch.analysis.scan import N_CALLS, Drawn, Survey, read_queries

_SQL = read_queries("report")


@dataclass(frozen=True)
class ChannelFigures:
    """The seconds heard of a channel (None for a mix), those of speech, and those of speech by label, in order."""

    channel: int | None
    heard_s: float
    speech_s: float
    by_label: tuple[float, ...]


@dataclass(frozen=True)
class Span:
    """A stretch of speech with one label, by its number, that is confident throughout or not at all."""

    start_s: float
    stop_s: float
    number: int
    is_confident: bool


@dataclass(frozen=True)
class CallFigures:
    """A recording with much of the label that the report is about.

    `peak` is its segment in which the label has its highest probability, which is given as the confidence, in the channel that has most
    of it, and `share` that of this channel's speech that is confident and has the label. `lasts_s` is the end of its last segment, and
    `lanes` are its channels (None for a mix) with their stretches of speech.
    """

    peak: Drawn
    share: float
    lasts_s: float
    lanes: tuple[tuple[int | None, tuple[Span, ...]], ...]


def add_up_channels(survey: Survey, labels: tuple[str, ...]) -> tuple[ChannelFigures, ...]:
    """Return the seconds heard of each channel."""
    found = []
    for channel, rows in groupby(survey.ask(_SQL["hours"]), key=itemgetter(0)):
        own = {emotion: (heard_s, speech_s) for _, emotion, heard_s, speech_s in rows}
        heard_s, speech_s = (sum(one[number] for one in own.values()) for number in (0, 1))
        found.append(ChannelFigures(channel, heard_s, speech_s, tuple(own.get(one, (0.0, 0.0))[1] for one in labels)))
    return tuple(found)


def find_calls(survey: Survey, labels: tuple[str, ...], about: str) -> tuple[CallFigures, ...]:
    """Return the recordings with the most of a label, the first of them with the most."""
    found = []
    for (file, share, peak), rows in groupby(survey.ask(_SQL["calls"], n_calls=N_CALLS), key=itemgetter(0, 1, 2)):
        lanes: dict[int | None, list[Span]] = {}
        own = [row[3:] for row in rows]
        # The segment with the peak is the first of several.
        at = min((row[1], row[2]) for row in own if row[5] and row[6] == peak)
        for channel, start_s, stop_s, emotion, is_confident, is_voice, _ in own:
            lane, span = lanes.setdefault(channel, []), Span(start_s, stop_s, labels.index(emotion), is_confident)
            # Neighbours that are alike are one stretch.
            before = replace(lane[-1], stop_s=stop_s) if lane and math.isclose(lane[-1].stop_s, start_s) else None
            if is_voice and before is not None and before == replace(span, start_s=before.start_s):
                lane[-1] = before
            elif is_voice:
                lane.append(span)
        drawn = Drawn(0, about, "confident", file, *at, peak, None)
        spans = tuple((channel, tuple(lane)) for channel, lane in lanes.items())
        found.append(CallFigures(drawn, share, max(row[2] for row in own), spans))
    return tuple(found)
