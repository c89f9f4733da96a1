"""Compute the features of the recipe ``voices``: log-mel bands, fundamental frequency and voicing, by frame.

They are computed at the recording's own rate, because resampling would cost more than all the rest. A frame lasts 25 ms and one begins
every 10 ms, whatever the rate. A band's level is the mean square of the samples in it, and so is the same at every rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import starmap
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from emotion_batch.features import pitch
from emotion_batch.features.audio import resample
from emotion_batch.features.decimation import Decimator, decimate, design, multiply
from emotion_batch.features.mfcc import Band, cut_bands
from emotion_batch.features.recipe import Frames, Recipe, iterate_rows
from emotion_batch.settings import VoicesSettings

# A network's inputs for a frame: the bands, energy, fundamental frequency and voicing.
N_INPUTS = VoicesSettings.n_mels + 3
# Levels are stored as whole numbers of this many to a neper of power (1 neper is 4.3 dB), in steps of 0.02 dB, which cannot be heard.
_STEPS = 256
# This power in a band is below that of the quietest samples of 16 bits.
_POWER_FLOOR = np.float32(1e-12)
LOWEST = np.float32(math.log(_POWER_FLOOR))
# From the first rate on, samples are decimated to a rate from the second on. Below the third, they are resampled to it.
_DECIMATED_HZ, _BASE_HZ, _LEAST_HZ = 32_000, 16_000, 8_000
_MOST_RATES = 32
# A frame counts as active down to so many nepers below the loudest, and so do its neighbours, which hold consonants.
_ACTIVE_RANGE, _N_NEIGHBOURS = 5.0, 8
# The tenth loudest frame counts as "the loudest", because a click is shorter. Unlike a quantile, it does not depend on the silence.
_N_LOUDER = 10
# Levels farther below the loudest frame count as this far, so that no network hears the noise of a codec or of 16 bits.
_RANGE = 14.0
# From this voicing on, and so far below the loudest frame in nepers, a frame counts as voiced.
_VOICED, _VOICED_RANGE = 0.4, 6.0
# The median of fewer voiced frames is not used.
_LEAST_VOICED = 5
# These scale each input to about unit variance. They are fixed, so that a row depends on its own recording alone.
_MEL_SCALE, _ENERGY_SCALE, _PITCH_SCALE, _MOST_PITCH = 3.0, 5.0, 0.5, 1.2
_LEAST_ENERGY = -2.0


class Sequence(NamedTuple):
    """A segment by frames, as a feature table holds it.

    `logmel` is the natural logarithm of the power in each mel band, in 1/256, shape (n_frames, n_mels). `f0_hz` is the fundamental
    frequency that fits best, voiced or not, and `voicing` how periodic the frame is at it, from 0 (noise) to 1.
    """

    logmel: npt.NDArray[np.int16]
    f0_hz: npt.NDArray[np.float32]
    voicing: npt.NDArray[np.float32]


class Heard(NamedTuple):
    """The frames of a segment that a network and the measures read, from the first to the last active one, in nepers.

    `bands` is the power in each band, shape (n_frames, n_mels); `power` the same, relative to the loudest cell, and not as a logarithm.
    `energy` is the power of each frame, shape (n_frames,), and `loudest` that of the tenth loudest frame. `is_active` is which frames
    are not silence.
    """

    bands: npt.NDArray[np.float32]
    power: npt.NDArray[np.float32]
    energy: npt.NDArray[np.float32]
    loudest: np.float32
    is_active: npt.NDArray[np.bool_]
    f0_hz: npt.NDArray[np.float32]
    voicing: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Constants:
    """Constants that depend on rate and settings. `hop` is the samples from one frame to the next, perhaps not a whole number."""

    decimator: Decimator | None
    hop: float
    window: npt.NDArray[np.float32]
    n_bins: int
    bands: tuple[Band, ...]
    pitch: pitch.PitchConstants


def compute_sequence(
    samples: npt.NDArray[np.float32], rate_hz: int, settings: VoicesSettings, known: slice | None = None
) -> Sequence:
    """Return log-mel bands, fundamental frequency and voicing of a stretch of one sample or more, a frame every 10 ms.

    Frame i begins at the sample nearest to i times 10 ms, so that time never drifts. The last frame is filled up with silence, so that
    every sample is in one. Frames in `known` are left out. Not all finite if the samples, or their power, are not.
    """
    if rate_hz < _LEAST_HZ:
        samples, rate_hz = resample(samples, rate_hz, _LEAST_HZ), _LEAST_HZ
    constants = _constants(rate_hz, settings)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if constants.decimator is not None:
            samples = decimate(samples, constants.decimator)
        numbers = np.arange(_count_frames(len(samples), constants))
        if known is not None:
            numbers = np.concatenate([numbers[: known.start], numbers[known.stop :]])
        starts = np.rint(numbers * constants.hop).astype(np.int64)
        padded = np.zeros(starts[-1] + len(constants.window), np.float32)
        n_there = min(len(samples), len(padded))
        padded[:n_there] = samples[:n_there]
        power = pitch.power_of(padded, starts, constants.window, constants.n_bins)
        logmel = np.zeros((len(starts), settings.n_mels), np.float32)
        for bins, filters, weights in constants.bands:
            multiply(power[:, bins], weights, out=logmel[:, filters])
        np.log(np.maximum(logmel, _POWER_FLOOR, out=logmel), out=logmel)
        f0_hz, voicing = pitch.track(samples, starts + len(constants.window) / 2, constants.pitch)
        # Whole numbers have no NaN, so the voicing says it. A finite level is at most 88 nepers, and fits.
        if not np.isfinite(logmel).all():
            voicing[:] = np.nan
        logmel *= np.float32(_STEPS)
        levels = np.rint(logmel, out=logmel).astype(np.int16)
    return Sequence(levels, f0_hz, voicing)


def hear(sequence: Sequence) -> Heard:
    """Return the frames of a stored segment that are heard."""
    return hear_bands(to_nepers(sequence), sequence.f0_hz, sequence.voicing)


def to_nepers(sequence: Sequence) -> npt.NDArray[np.float32]:
    """Return the bands of a stored segment in nepers, with the silence before and after it."""
    bands = sequence.logmel.astype(np.float32)
    bands *= np.float32(1 / _STEPS)
    return bands


def hear_bands(
    bands: npt.NDArray[np.float32], f0_hz: npt.NDArray[np.float32], voicing: npt.NDArray[np.float32]
) -> Heard:
    """Return the frames that are heard, from bands in nepers, fundamentals and voicing; silence at both ends is cut off."""
    highest = bands.max()
    power = np.exp(bands - highest)
    energy = np.log(power.sum(axis=1) + np.float32(1e-30)) + highest
    place = max(0, len(energy) - _N_LOUDER)
    loudest = np.partition(energy, place)[place]
    is_active = energy > loudest - np.float32(_ACTIVE_RANGE)
    at = np.flatnonzero(is_active)
    is_near = count_near(is_active, _N_NEIGHBOURS) > 0
    heard = slice(max(0, at[0] - _N_NEIGHBOURS), at[-1] + _N_NEIGHBOURS + 1)
    return Heard(bands[heard], power[heard], energy[heard], loudest, is_near[heard], f0_hz[heard], voicing[heard])


def count_near(flags: npt.NDArray[np.bool_], reach: int) -> npt.NDArray[np.int64]:
    """Return how many flags are set within `reach` frames of each, shape (n_frames,)."""
    sums = np.concatenate([[0], np.cumsum(flags)])
    number = np.arange(len(flags))
    return np.asarray(sums[np.minimum(number + reach + 1, len(flags))] - sums[np.maximum(number - reach, 0)])


def make_inputs(heard: Heard, pitch_range: float = 1.0, pitch_shift: float = 0.0) -> npt.NDArray[np.float32]:
    """Return a network's inputs for a segment, shape (n_frames, `N_INPUTS`).

    These are each band less its mean over the active frames, which removes the room and the microphone; the energy relative to
    the loudest frame; the logarithm of the fundamental less its median if there is a voice, else 0; the voicing. Training varies the
    range of the fundamental by a factor, and shifts it in nepers.
    """
    n_frames, n_mels = heard.bands.shape
    inputs = np.empty((n_frames, N_INPUTS), np.float32)
    bands = np.maximum(heard.bands, heard.loudest - np.float32(_RANGE), out=inputs[:, :n_mels])
    weights = heard.is_active.astype(np.float32)
    bands -= weights / weights.sum() @ bands
    bands *= np.float32(1 / _MEL_SCALE)
    energy = (heard.energy - heard.loudest) / np.float32(_ENERGY_SCALE)
    inputs[:, n_mels] = np.maximum(energy, np.float32(_LEAST_ENERGY)) + np.float32(0.5)
    is_voiced = (heard.voicing > _VOICED) & (heard.energy > heard.loudest - np.float32(_VOICED_RANGE))
    pitches = np.log(np.maximum(heard.f0_hz, np.float32(1)))
    voiced = np.sort(pitches[is_voiced] if is_voiced.sum() >= _LEAST_VOICED else pitches)
    pitches -= (voiced[(len(voiced) - 1) // 2] + voiced[len(voiced) // 2]) / 2
    pitches = np.minimum(np.maximum(pitches, -_MOST_PITCH), _MOST_PITCH) * np.float32(pitch_range)
    inputs[:, n_mels + 1] = (pitches + np.float32(pitch_shift)) * is_voiced / np.float32(_PITCH_SCALE)
    inputs[:, n_mels + 2] = heard.voicing
    return inputs


def find_centres(settings: VoicesSettings) -> npt.NDArray[np.float64]:
    """Return the centre of each mel band in Hz, shape (n_mels,)."""
    return _find_edges(settings)[1:-1]


def _find_edges(settings: VoicesSettings) -> npt.NDArray[np.float64]:
    """Return where bands begin, have their centre, and end, evenly spaced on Slaney's scale, shape (n_mels + 2,).

    The scale is linear below 1 kHz, 15 mel to it, then logarithmic, 27 mel to a factor of 6.4: M. Slaney, "Auditory Toolbox", 1998.
    """
    knee, step = 15.0, math.log(6.4) / 27

    def to_mel(hertz: float) -> float:
        return hertz * knee / 1_000 if hertz < 1_000 else knee + math.log(hertz / 1_000) / step

    mel = np.linspace(to_mel(settings.fmin_hz), to_mel(settings.fmax_hz), settings.n_mels + 2)
    return np.where(mel < knee, mel * 1_000 / knee, 1_000 * np.exp(step * (mel - knee)))


def _weigh_bins(n_window: int, rate_hz: float, settings: VoicesSettings) -> npt.NDArray[np.float32]:
    """Return how much of each bin's power belongs to each band, shape (n_mels, 1 + n_window // 2); 0 above half the rate.

    A band is a triangle from its lower neighbour's centre to its upper one's. A bin covers all frequencies that are nearest to
    it, so its weight is the mean of the triangle over them.
    """
    edges = _find_edges(settings)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    width = rate_hz / n_window
    limits = (np.arange(2 + n_window // 2) - 0.5) * width
    rise, fall = np.clip(limits, low, centre) - low, high - np.clip(limits, centre, high)
    area = rise**2 / (2 * (centre - low)) + (high - centre) / 2 - fall**2 / (2 * (high - centre))
    return np.asarray(np.where(high <= rate_hz / 2, np.diff(area, axis=1) / width, 0), np.float32)


def _fast_length(wanted: float) -> int:
    """Return the whole number nearest to `wanted` that is 8 times powers of 2, 3 and 5, because its Fourier transform is fast."""
    lengths: list[int] = [8 * 2**i * 3**j * 5**k for i in range(9) for j in range(5) for k in range(4)]
    return min(lengths, key=lambda length: abs(length - wanted))


@lru_cache(maxsize=_MOST_RATES)
def _constants(rate_hz: int, settings: VoicesSettings) -> _Constants:
    factor = rate_hz // _BASE_HZ if rate_hz >= _DECIMATED_HZ else 1
    base_hz = rate_hz / factor
    n_window = _fast_length(settings.window_s * base_hz)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n_window) + 0.5) / n_window)
    # The power of all bins together is then the mean square of the samples.
    window *= math.sqrt(2 / (n_window * np.sum(window**2)))
    bands = cut_bands(_weigh_bins(n_window, base_hz, settings))
    return _Constants(
        decimator=design(factor, taps_a_phase=12, cutoff=0.96, beta=5.0) if factor > 1 else None,
        hop=settings.hop_s * base_hz,
        window=window.astype(np.float32),
        n_bins=max(band.bins.stop for band in bands),
        bands=bands,
        pitch=pitch.make_constants(base_hz, settings.f0_min_hz, settings.f0_max_hz),
    )


def _count_frames(n_samples: int, constants: _Constants) -> int:
    # A millionth is subtracted, because a hop that is not a whole number is rounded.
    return 1 + max(0, math.ceil((n_samples - len(constants.window)) / constants.hop - 1e-6))


def _count(n_samples: int, rate_hz: int, settings: VoicesSettings) -> int:
    """Return how many frames a stretch has; 0 if its frames cannot be computed one by one."""
    if rate_hz < _LEAST_HZ:
        return 0
    constants = _constants(rate_hz, settings)
    factor = constants.decimator.factor if constants.decimator else 1
    return _count_frames(-(-n_samples // factor), constants)


def _shift(n_samples: int, rate_hz: int, settings: VoicesSettings) -> int | None:
    """Return by how many frames a stretch that begins so much later is shifted, if its frames lie exactly on those."""
    constants = _constants(rate_hz, settings)
    step = (constants.decimator.factor if constants.decimator else 1) * constants.pitch.decimator.factor
    n_frames = round(n_samples / rate_hz / settings.hop_s)
    # Twice the step, because a position between two samples is rounded to the even one.
    is_exact = n_samples % (2 * step) == 0 and n_frames * rate_hz == round(n_samples / settings.hop_s)
    return n_frames if is_exact else None


def _reach(rate_hz: int, settings: VoicesSettings) -> int:
    """Return how many of the first and of the last frames of a stretch depend on where it ends."""
    constants = _constants(rate_hz, settings)
    return 3 + math.ceil((constants.pitch.n_reach - len(constants.window) / 2) / constants.hop)


def read_sequences(rows: pa.Table) -> Iterator[Sequence]:
    """Return the sequences of rows that all have one."""
    return starmap(Sequence, iterate_rows(rows, RECIPE.fields(VoicesSettings())))


RECIPE = Recipe(
    option="voices",
    settings=VoicesSettings,
    fields=lambda settings: [
        pa.field("logmel", pa.list_(pa.list_(pa.int16(), settings.n_mels))),
        pa.field("f0_hz", pa.list_(pa.float32())),
        pa.field("voicing", pa.list_(pa.float32())),
    ],
    compute=compute_sequence,
    read=lambda rows, settings: ([hear(one)] for one in read_sequences(rows)) if rows.num_rows else [[]],
    prepare=lambda heard: [make_inputs(one) for one in heard],
    input_shape=lambda settings: (None, N_INPUTS),
    level=lambda heard: np.array([one.energy[one.is_active].mean() for one in heard], np.float32),
    network="voices-lstm",
    measures="tracks",
    epochs=24,
    batch_size=32,
    describe=lambda settings: "log-mel bands, fundamental frequency and voicing by frame, of",
    sees_every_sample=lambda settings: True,
    frames=Frames(_count, _shift, _reach),
)
