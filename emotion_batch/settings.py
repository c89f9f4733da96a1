"""The settings that decide which rows a recording gives: feature settings and segments.

They are immutable, written into tables and bundles, and identified by a fingerprint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from emotion_batch.errors import UsageError

T = TypeVar("T")
# The shortest and the longest segment and hop: a few samples of a recording, and eleven days.
MIN_S, MAX_S = 0.01, 1e6
# All channels as one, by their mean; and each channel with rows of its own.
MIX, EACH = "mix", "each"
MOST_CHANNELS = 1_024
# Segments that are stretches of speech, found by the tracks of the recipe `voices`, or by Silero's detector.
SPEECH, BY_SILERO = "speech", "speech:silero"


def fingerprint(value: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class AnySettings:
    """The settings that all recipes share; each recipe has its own frozen class.

    Attributes
    ----------
    recipe
        Name of the recipe in tables and bundles.
    sample_rate
        Rate in Hz to which every recording is resampled (soxr, "HQ"), after the mean over its channels; None if features are
        computed at the recording's own rate.
    """

    recipe: ClassVar[str]

    sample_rate: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in the form that JSON holds, with the name of the recipe."""
        return {"recipe": self.recipe, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Return the settings that `to_dict` gave; raise UsageError for unknown names."""
        return _construct(cls, {name: item for name, item in value.items() if name != "recipe"})

    @property
    def feature_id(self) -> str:
        """Fingerprint of how samples become features; tables and bundles match if it is the same."""
        return fingerprint(self.to_dict())

    @property
    def segments(self) -> Segments:
        """The segments that these features use by default: the notebook's."""
        return Segments()


@dataclass(frozen=True)
class FeatureSettings(AnySettings):
    """How samples become a feature vector; the defaults are the notebook's (librosa's).

    Attributes
    ----------
    sample_rate
        Rate in Hz to which every recording is resampled (soxr, "HQ"), after the mean over its channels.
    n_mfcc
        Number of mel-frequency cepstral coefficients, which is the length of the vector.
    n_fft
        Samples in a frame, which is the length of its Fourier transform.
    hop_length
        Samples from one frame to the next.
    n_mels
        Number of mel bands (Slaney's scale and normalisation), at least `n_mfcc`.

    Raises
    ------
    UsageError
        If a value is outside its range.
    """

    recipe: ClassVar[str] = "mfcc-mean"

    sample_rate: int = 22_050
    n_mfcc: int = 40
    n_fft: int = 2_048
    hop_length: int = 512
    n_mels: int = 128

    def __post_init__(self) -> None:
        for name, minimum in (("sample_rate", 1), ("n_mfcc", 1), ("n_fft", 2), ("hop_length", 1), ("n_mels", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise UsageError(f"{name} must be a whole number of at least {minimum}: {value!r}")
        if self.n_mfcc > self.n_mels:
            raise UsageError(f"n_mfcc must be at most n_mels, which is {self.n_mels}: {self.n_mfcc}")


@dataclass(frozen=True)
class VoicesSettings(AnySettings):
    """How samples become a sequence: log-mel bands, fundamental frequency and voicing by frame. All values are fixed.

    Attributes
    ----------
    sample_rate
        None: features are computed at the recording's own rate, after the mean over its channels.
    window_s
        Duration of a frame in seconds (Hann window).
    hop_s
        Seconds from one frame to the next.
    n_mels
        Number of mel bands (Slaney's scale).
    fmin_hz, fmax_hz
        Start of the lowest band, and end of the highest.
    f0_min_hz, f0_max_hz
        Limits of the search for the fundamental frequency.

    Raises
    ------
    UsageError
        If a value differs from the recipe's.
    """

    recipe: ClassVar[str] = "voices"

    sample_rate: None = None
    window_s: float = 0.025
    hop_s: float = 0.01
    n_mels: int = 64
    fmin_hz: int = 50
    fmax_hz: int = 7_600
    f0_min_hz: int = 65
    f0_max_hz: int = 500

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) != field.default:
                raise UsageError(f"{field.name} must be {field.default}, as in the recipe {self.recipe!r}: {value!r}")

    @property
    def segments(self) -> Segments:
        """The segments that these features use by default: the first six seconds.

        They hold most of a sentence, even if it has two seconds of silence before and after it.
        """
        return Segments(0.0, 6.0)


@dataclass(frozen=True)
class Segments:
    """The stretches of each recording that get a row; the default is the notebook's.

    Attributes
    ----------
    offset_s
        Start of the segment in seconds; a recording that ends before it is ``too_short``. 0 for windows.
    duration_s
        Longest duration of a segment in seconds; a recording that ends sooner gives a shorter one.
    hop_s
        Seconds from the start of one window to the next, as long as they start inside the recording; None for one
        segment a recording.
    channels
        ``mix`` for the mean of all channels, ``each`` for rows of each channel, or the numbers of channels, from 0.
    source
        ``speech`` for stretches of speech, each at most `duration_s` long, or ``speech:silero`` for those that Silero's detector finds;
        else the path or URL of a list of segments. None for stretches at fixed times.

    Raises
    ------
    UsageError
        If a value is outside its range.
    """

    offset_s: float = 0.5
    duration_s: float = 3.0
    hop_s: float | None = None
    channels: str | Sequence[int] = MIX
    source: str | None = None

    def __post_init__(self) -> None:
        if self.source is not None and (self.hop_s is not None or self.offset_s):
            raise UsageError("segments of speech or of a list have no offset and no hop")
        if self.channels not in (MIX, EACH):
            object.__setattr__(self, "channels", _check_channels(self.channels))
        fields = [("offset_s", "offset", 0.0), ("duration_s", "duration", MIN_S)]
        if self.hop_s is not None:
            fields = [fields[0], ("duration_s", "window", MIN_S), ("hop_s", "hop", MIN_S)]
        for name, word, least in fields:
            value = getattr(self, name)
            if not least <= value <= MAX_S:
                raise UsageError(f"{word} must be from {least:g} to {MAX_S:,.0f} seconds: {value!r}")
            object.__setattr__(self, name, float(value))
        if self.hop_s is not None and self.offset_s:
            raise UsageError(
                f"offset must be 0 for windows, which cover the whole recording: {self.offset_s}; Segments.windows(WINDOW, HOP) makes them"
            )

    @classmethod
    def windows(cls, window_s: float, hop_s: float | None = None) -> Segments:
        """Return windows of `window_s` seconds, one every `hop_s`; by default each starts at the end of the last."""
        return cls(0.0, window_s, window_s if hop_s is None else hop_s)

    def of_channels(self, channels: str | Sequence[int] | None) -> Segments:
        """Return these segments of some channels; None leaves them as they are."""
        return self if channels is None else dataclasses.replace(self, channels=channels)

    def replaced_by(self, asked: Segments | None, channels: str | Sequence[int] | None) -> Segments:
        """Return what a call asks for instead of these, and of which channels; stretches of speech are no longer than these."""
        chosen = self if asked is None else asked
        if chosen.source is not None:
            chosen = dataclasses.replace(chosen, duration_s=min(chosen.duration_s, self.duration_s))
        return chosen.of_channels(channels)

    @classmethod
    def choose(
        cls, segments: Segments | str | os.PathLike[str] | None, window_s: float | None, hop_s: float | None
    ) -> Segments | None:
        """Return what a call asks for, as `segments`, as ``speech`` or a list's place, or as windows; None if it asks for nothing.

        Raise UsageError if it asks for two of them.
        """
        if window_s is None and hop_s is None:
            if segments is None or isinstance(segments, Segments):
                return segments
            place = os.fspath(segments)
            # A table names the list, so the name must not depend on the current folder.
            is_name = place in (SPEECH, BY_SILERO) or "://" in place
            return cls(0.0, MAX_S, source=place if is_name else os.path.abspath(os.path.expanduser(place)))
        if segments is not None:
            raise UsageError("segments cannot be combined with window or hop, which are segments too")
        if window_s is None:
            raise UsageError("hop requires window")
        return cls.windows(window_s, hop_s)

    @property
    def is_listed(self) -> bool:
        """Whether a list names the segments."""
        return self.source is not None and not self.is_speech

    @property
    def is_speech(self) -> bool:
        """Whether the segments are stretches of speech."""
        return self.source in (SPEECH, BY_SILERO)

    @property
    def is_by_silero(self) -> bool:
        """Whether Silero's detector finds them, which is an extra."""
        return self.source == BY_SILERO

    @property
    def is_one_stretch(self) -> bool:
        """Whether each recording, or channel of it, has one segment, at a fixed time."""
        return self.hop_s is None and self.source is None

    def without_list(self) -> Segments:
        """Return the segments for other recordings than those of a list: their beginnings, instead of the list's segments."""
        return dataclasses.replace(self, source=None) if self.is_listed else self

    @property
    def is_one_row(self) -> bool:
        """Whether each recording gets exactly one row."""
        return self.is_one_stretch and (self.channels == MIX or (self.channels != EACH and len(self.channels) == 1))

    def starts(self) -> Iterator[float]:
        """Yield the starts of segments at fixed times, in seconds: one, or for windows an endless sequence."""
        if self.hop_s is None:
            yield self.offset_s
        else:
            # A product, because a sum would drift; rounded, because 3 * 0.7 s would be one sample less than 2.1 s.
            yield from (round(number * self.hop_s, 9) for number in itertools.count())

    def to_dict(self) -> dict[str, Any]:
        """Return the segments in the form that JSON holds."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, MIX)}
        return values if isinstance(self.channels, str) else {**values, "channels": list(self.channels)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Segments:
        """Return the segments that `to_dict` gave; raise UsageError for unknown names."""
        return _construct(cls, value)

    @property
    def segment_id(self) -> str:
        """Fingerprint of the segments."""
        return fingerprint(self.to_dict())

    def to_options(self) -> str:
        """Return the options of the command line for these segments."""
        channels = "" if self.channels == MIX else f" --channels {self._say_channels()}"
        if self.source is not None:
            return f"--segments {f'{SPEECH} --vad silero' if self.is_by_silero else self.source}{channels}"
        if self.hop_s is None:
            return f"--offset {self.offset_s:g} --duration {self.duration_s:g}{channels}"
        return f"--window {self.duration_s:g} --hop {self.hop_s:g}{channels}"

    def __str__(self) -> str:
        """Return the segments in words, for a sentence or a bundle's README."""
        channels = {MIX: "", EACH: " of each channel"}.get(self._say_channels(), f" of channel {self._say_channels()}")
        if self.source is not None:
            return f"{'the segments of a list' if self.is_listed else f'stretches of speech of at most {self.duration_s:g} s'}{channels}"
        if self.hop_s is None:
            return f"{self.offset_s:g} s to {self.offset_s + self.duration_s:g} s{channels}"
        return f"windows of {self.duration_s:g} s every {self.hop_s:g} s{channels}"

    def _say_channels(self) -> str:
        return self.channels if isinstance(self.channels, str) else ",".join(map(str, self.channels))


def _check_channels(channels: str | Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of channels, sorted; raise UsageError if they are none."""
    numbers = sorted(set(channels)) if not isinstance(channels, str) else []
    if not numbers or any(type(one) is not int or not 0 <= one < MOST_CHANNELS for one in numbers):
        raise UsageError(f"channels must be {MIX}, {EACH} or numbers of channels from 0, e.g. 0,1: {channels!r}")
    return tuple(numbers)


def _construct(cls: type[T], value: Mapping[str, Any]) -> T:
    try:
        return cls(**value)
    except TypeError as error:
        raise UsageError(
            f"{cls.__name__}: this version does not know all of the names {sorted(value)}; use the version of emotion-batch that "
            "wrote them"
        ) from error
