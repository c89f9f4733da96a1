"""Follow the fundamental frequency of a voice, and how periodic the voice is at it.

It is the autocorrelation method of P. Boersma, "Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise
ratio of a sampled sound", IFA Proceedings 17, 1993: the highest peak of the autocorrelation, divided by the window's own, with a cost
for longer periods. Here the autocorrelation is one product of the spectrum with cosines, for periods that are evenly spaced on a
logarithmic scale, and the spectrum is that of amplitudes and not of power, as T. Tolonen and M. Karjalainen compress it in "A
computationally efficient multipitch analysis model", IEEE Transactions on Speech and Audio Processing 8, 2000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Its parts are imported when they are first used: a command that computes nothing would start a sixth of a second later.
import scipy

from emotion_batch.features.decimation import Decimator, decimate, design, multiply, scratch

# The rate in Hz near which the fundamental is looked for, and the samples of a frame there: 64 ms, four periods of the lowest.
_RATE_HZ, _WINDOW = 4_000, 256
_N_CANDIDATES = 96
_BLOCK_FRAMES = 256
# The power in Hz that counts: none below the first, all from the second to the third, none above the last.
_WEIGHTED_HZ = (40.0, 70.0, 1_200.0, 1_500.0)
# A peak at a period of one octave more must be higher by this: Boersma's "octave cost".
_OCTAVE_COST = 0.02
# The amplitudes of the window's own spectrum are raised to this power for its autocorrelation. With 1 a period that never changes
# would count as fully periodic at any length, but noise would count more the longer the period.
_OWN_EXPONENT = 1.5
# Amplitude of a frame, of all its bins together, in which no period can be found; samples are from -1 to 1.
_LEAST_AMPLITUDE = np.float32(3e-5)
_LEAST_BEND = np.float32(-1e-9)


@dataclass(frozen=True)
class PitchConstants:
    """What rate and range decide; `make_constants` makes them.

    `decimator` leads to the slower rate, `n_reach` is how many samples of the given rate a frame reaches to either side of its
    centre. `weights` is how much each of the lowest `n_bins` counts, shape (n_bins,), and `cosines` gives the autocorrelation at
    each candidate, shape (n_bins, n_candidates).
    """

    decimator: Decimator
    n_reach: int
    window: npt.NDArray[np.float32]
    n_bins: int
    weights: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]
    cost: npt.NDArray[np.float32]
    highest_hz: float
    step: float


def make_constants(rate_hz: float, lowest_hz: float, highest_hz: float) -> PitchConstants:
    """Return the constants for samples at `rate_hz`, and fundamentals from `lowest_hz` to `highest_hz`."""
    factor = max(1, round(rate_hz / _RATE_HZ))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(_WINDOW) + 0.5) / _WINDOW)
    slow_hz = rate_hz / factor
    hertz = np.arange(1 + _WINDOW // 2) * slow_hz / _WINDOW
    hertz = hertz[hertz < _WEIGHTED_HZ[-1]]
    weights = np.interp(hertz, _WEIGHTED_HZ, [0.0, 1.0, 1.0, 0.0])
    step = math.log(highest_hz / lowest_hz) / (_N_CANDIDATES - 1)
    periods_s = np.exp(step * np.arange(_N_CANDIDATES)) / highest_hz
    own = np.fft.irfft(np.abs(np.fft.rfft(window, 16 * _WINDOW)) ** _OWN_EXPONENT)[:_WINDOW]
    fading = np.interp(periods_s * slow_hz, np.arange(_WINDOW), own / own[0])
    return PitchConstants(
        decimator=design(factor, taps_a_phase=6, cutoff=0.9, beta=4.0),
        n_reach=factor * (_WINDOW // 2 + 4),
        window=window.astype(np.float32),
        n_bins=len(hertz),
        weights=weights.astype(np.float32),
        cosines=(weights[:, None] * np.cos(2 * np.pi * hertz[:, None] * periods_s) / fading).astype(np.float32),
        cost=(_OCTAVE_COST * np.log2(periods_s / periods_s[0])).astype(np.float32),
        highest_hz=highest_hz,
        step=step,
    )


def track(
    samples: npt.NDArray[np.float32], centres: npt.NDArray[np.float64], constants: PitchConstants
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the fundamental that fits best, in Hz, and how periodic the frame is at it, from 0 to 1, at each centre.

    Centres are numbers of samples in order; a frame that reaches beyond the samples has silence there. Not all are finite
    if the samples, or their power, are not.
    """
    slow = decimate(samples, constants.decimator)
    starts = np.rint(centres / constants.decimator.factor).astype(np.int64)
    # Half a window of silence is laid before the samples, so that a frame starts at its centre's number.
    laid = np.zeros(starts[-1] + _WINDOW, np.float32)
    n_there = min(len(slow), len(laid) - _WINDOW // 2)
    laid[_WINDOW // 2 : _WINDOW // 2 + n_there] = slow[:n_there]
    amplitude = power_of(laid, starts, constants.window, constants.n_bins)
    # With the power itself, one strong harmonic would be taken for the fundamental, e.g. of a low voice on the telephone.
    np.sqrt(amplitude, out=amplitude)
    correlation = multiply(amplitude, constants.cosines, out=scratch("correlation", len(amplitude), _N_CANDIDATES))
    # The sum is not a column of the product, because its width must be a whole number of sixteens: see `decimation`.
    amplitude *= constants.weights
    correlation /= (amplitude.sum(axis=1) + _LEAST_AMPLITUDE)[:, None]
    strength = np.subtract(correlation, constants.cost, out=scratch("strength", len(amplitude), _N_CANDIDATES))
    best = strength[:, 1:-1].argmax(axis=1) + 1
    row = np.arange(len(best))
    low, top, high = strength[row, best - 1], strength[row, best], strength[row, best + 1]
    # The top of the parabola through three candidates.
    shift = (low - high) / (2 * np.minimum(low - 2 * top + high, _LEAST_BEND))
    shift = np.minimum(np.maximum(shift, -0.5), 0.5)
    voicing = np.minimum(np.maximum(correlation[row, best] - (low - high) * shift / 4, 0), 1)
    # A highest value at the end of the range is not a peak. Comparisons with NaN are false, so NaN stays visible.
    voicing[(top < low) | (top < high)] = 0
    f0_hz = np.float32(constants.highest_hz) * np.exp(np.float32(-constants.step) * (best + shift))
    return f0_hz.astype(np.float32), voicing


def power_of(
    samples: npt.NDArray[np.float32], starts: npt.NDArray[np.int64], window: npt.NDArray[np.float32], n_bins: int
) -> npt.NDArray[np.float32]:
    """Return the power of the lowest bins of frames that start at `starts`, shape (n_frames, n_bins), until the next call."""
    stride, n_window = samples.itemsize, len(window)
    every = np.ndarray((len(samples) - n_window + 1, n_window), np.float32, samples, 0, (stride, stride))
    power = scratch("power", len(starts), n_bins)
    # This many frames at a time stay in a core's cache with their spectra.
    for first in range(0, len(starts), _BLOCK_FRAMES):
        some = slice(first, first + _BLOCK_FRAMES)
        frames = scratch("frames", len(starts[some]), n_window)
        np.multiply(every[starts[some]], window, out=frames)
        # Squared as pairs of floats, as in `mfcc`.
        parts: npt.NDArray[np.float32] = scipy.fft.rfft(frames, axis=1).view(np.float32)[:, : 2 * n_bins]
        np.square(parts, out=parts)
        np.add(parts[:, 0::2], parts[:, 1::2], out=power[some])
    return power
