"""Vary stored sequences in voice, pace and room, so that a network does not learn the voices of a few speakers.

It works on what a feature table holds. The ranges are wide on purpose: two speakers of one corpus differ less than each of them
differs from the next caller.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emotion_batch.features import logmel_pitch
from emotion_batch.features.logmel_pitch import Sequence
from emotion_batch.settings import VoicesSettings

_SETTINGS = VoicesSettings()
# Length of the vocal tract: N. Jaitly and G. Hinton, "Vocal Tract Length Perturbation (VTLP) improves speech recognition",
# ICML workshop 2013; wider, for women's voices alone must stand for men's.
_VTLP = (0.85, 1.18)
_TEMPO = (0.8, 1.25)
_LEAST_FRAMES = 32
# Deviation in nepers at six points over the bands, of a microphone and a room.
_EQUALISER, _N_POINTS = 1.0, 6
# Noise in half of the segments, so many nepers of power below the loudest cell, with a slope over the bands.
_NOISE_SHARE, _NOISE = 0.5, (7.0, 15.0)
# Half of the segments come by telephone: nothing above the first, in Hz, and in half of these little below the second, by nepers.
_TELEPHONE_SHARE, _TELEPHONE_HZ, _LOW_HZ, _LOW = 0.5, (3_300, 4_000), (50, 350), (3.0, 8.0)
# Range of the fundamental, and its place against the median.
_PITCH_RANGE, _PITCH_SHIFT = (0.8, 1.25), 0.05
# Masks over bands and over frames: D. Park et al., "SpecAugment", Interspeech 2019.
_N_MASKS, _MOST_BANDS, _MOST_FRAMES = 2, 10, 20


def augment(one: Sequence, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return what a network sees of a segment as another voice, in another room, might have said it.

    These are frames as `logmel_pitch.make_inputs` gives them, fewer or more: shape (n_frames, `logmel_pitch.N_INPUTS`).
    """
    heard = logmel_pitch.hear(one)
    logmel, f0_hz, voicing = _change_tempo(heard.bands, heard.f0_hz, heard.voicing, generator)
    logmel = _warp(logmel, generator)
    points = generator.normal(0, _EQUALISER, _N_POINTS)
    n_mels = logmel.shape[1]
    logmel = logmel + np.interp(np.arange(n_mels), np.linspace(0, n_mels - 1, _N_POINTS), points).astype(np.float32)
    if generator.random() < _NOISE_SHARE:
        logmel = np.logaddexp(logmel, _noise(logmel, generator))
    if generator.random() < _TELEPHONE_SHARE:
        logmel = _telephone(logmel, generator)
    other = logmel_pitch.hear_bands(np.asarray(logmel, np.float32), f0_hz, voicing)
    inputs = logmel_pitch.make_inputs(other, generator.uniform(*_PITCH_RANGE), generator.normal(0, _PITCH_SHIFT))
    _mask(inputs[:, :n_mels], generator)
    return inputs


def _change_tempo(
    logmel: npt.NDArray[np.float32],
    f0_hz: npt.NDArray[np.float32],
    voicing: npt.NDArray[np.float32],
    generator: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    n_frames = len(logmel)
    n_wanted = max(_LEAST_FRAMES, round(n_frames * generator.uniform(*_TEMPO)))
    at = np.linspace(0, n_frames - 1, n_wanted)
    left = np.clip(at.astype(np.int64), 0, max(0, n_frames - 2))
    right = np.minimum(left + 1, n_frames - 1)
    share = (at - left).astype(np.float32)[:, None]
    # The fundamental between two frames may be an octave off either.
    nearest = np.rint(at).astype(np.int64)
    return logmel[left] * (1 - share) + logmel[right] * share, f0_hz[nearest], voicing[nearest]


def _warp(logmel: npt.NDArray[np.float32], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return bands with their frequencies multiplied, as a longer or shorter vocal tract has them."""
    centres = logmel_pitch.find_centres(_SETTINGS)
    wanted = np.minimum(centres * generator.uniform(*_VTLP), centres[-1])
    at = np.interp(wanted, centres, np.arange(len(centres)))
    left = np.minimum(at.astype(np.int64), len(centres) - 2)
    share = (at - left).astype(np.float32)
    return np.asarray(logmel[:, left] * (1 - share) + logmel[:, left + 1] * share, np.float32)


def _noise(logmel: npt.NDArray[np.float32], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    level = logmel.max() - generator.uniform(*_NOISE)
    slope = np.interp(np.arange(logmel.shape[1]), [0, logmel.shape[1] - 1], generator.normal(0, 1, 2))
    # A band's power in a frame of noise is about exponential; a band averages several bins.
    grain = 0.3 * np.log(generator.exponential(size=logmel.shape) + 1e-3)
    return np.asarray(level + slope + grain, np.float32)


def _telephone(logmel: npt.NDArray[np.float32], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    hertz = logmel_pitch.find_centres(_SETTINGS)
    is_below = hertz < (generator.uniform(*_LOW_HZ) if generator.random() < 0.5 else 0)
    logmel = logmel - np.where(is_below, generator.uniform(*_LOW), 0).astype(np.float32)
    logmel[:, hertz > generator.uniform(*_TELEPHONE_HZ)] = logmel_pitch.LOWEST
    return logmel


def _mask(bands: npt.NDArray[np.float32], generator: np.random.Generator) -> None:
    n_frames, n_mels = bands.shape
    for _ in range(_N_MASKS):
        width = generator.integers(0, _MOST_BANDS)
        start = generator.integers(0, n_mels - width)
        bands[:, start : start + width] = 0
        width = min(generator.integers(0, _MOST_FRAMES), n_frames - 1)
        start = generator.integers(0, n_frames - width)
        bands[start : start + width] = 0
