"""Vary stored sequences in voice, pace and room, so that a network does not learn the voices of a few speakers.

It works on what a feature table holds. The ranges are wide on purpose: two speakers of one corpus differ less than each of them
differs from the next caller.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emotion_batch.features import logmel_pitch
from emotion_batch.features.logmel_pitch import Sequence
from emotion_batch.settings import SequenceSettings

_SETTINGS = SequenceSettings()
# Length of the vocal tract: N. Jaitly and G. Hinton, "Vocal Tract Length Perturbation (VTLP) improves speech recognition",
# ICML workshop 2013; wider, for women's voices alone must stand for men's.
_VTLP = (0.85, 1.18)
_TEMPO = (0.8, 1.25)
_LEAST_FRAMES = 32
# Deviation in nepers at six points over the bands, of a microphone and a room.
_EQUALISER, _N_POINTS = 1.0, 6
# Noise in half of the segments, so many nepers of power below the loudest cell, with a slope over the bands.
_NOISE_SHARE, _NOISE = 0.5, (7.0, 15.0)
# Range of the fundamental, and its place against the median.
_PITCH_RANGE, _PITCH_SHIFT = (0.8, 1.25), 0.05
# Masks over bands and over frames: D. Park et al., "SpecAugment", Interspeech 2019.
_N_MASKS, _MOST_BANDS, _MOST_FRAMES = 2, 10, 20


def augment(one: Sequence, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return what a network sees of a segment as another voice, in another room, might have said it.

    These are frames as `logmel_pitch.prepare_sequence` gives them, fewer or more: shape (n_frames, `logmel_pitch.N_INPUTS`).
    """
    logmel, f0_hz, voicing = (value.astype(np.float32) for value in one)
    logmel, f0_hz, voicing = _change_tempo(logmel, f0_hz, voicing, generator)
    logmel = _warp(logmel, generator)
    points = generator.normal(0, _EQUALISER, _N_POINTS)
    n_mels = logmel.shape[1]
    logmel = logmel + np.interp(np.arange(n_mels), np.linspace(0, n_mels - 1, _N_POINTS), points).astype(np.float32)
    if generator.random() < _NOISE_SHARE:
        logmel = np.logaddexp(logmel, _noise(logmel, generator))
    energy = logmel_pitch.energy_of(logmel)
    pitch = logmel_pitch.centre_pitch(f0_hz, logmel_pitch.find_voiced(energy, voicing))
    energy, pitch = logmel_pitch.scale_tracks(energy, pitch)
    shift = generator.normal(0, _PITCH_SHIFT)
    pitch = np.where(pitch == 0, 0, pitch * generator.uniform(*_PITCH_RANGE) + shift).astype(np.float32)
    return logmel_pitch.join_tracks(_mask(logmel_pitch.normalise(logmel), generator), energy, pitch, voicing)


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
    centres = _centres(logmel.shape[1])
    wanted = np.minimum(centres * generator.uniform(*_VTLP), centres[-1])
    at = np.interp(wanted, centres, np.arange(len(centres)))
    left = np.minimum(at.astype(np.int64), len(centres) - 2)
    share = (at - left).astype(np.float32)
    return np.asarray(logmel[:, left] * (1 - share) + logmel[:, left + 1] * share, np.float32)


def _centres(n_mels: int) -> npt.NDArray[np.float64]:
    """Return the centre of each mel band in Hz, on Slaney's scale, as `librosa.mel_frequencies` has it."""
    # Linear below 1 kHz, 15 mel to it, then logarithmic, 27 mel to a factor of 6.4.
    hertz_a_mel, knee_mel, step = 200 / 3, 15.0, np.log(6.4) / 27

    def to_mel(hertz: float) -> float:
        return hertz / hertz_a_mel if hertz < 1_000 else knee_mel + np.log(hertz / 1_000) / step

    mel = np.linspace(to_mel(_SETTINGS.fmin_hz), to_mel(_SETTINGS.sample_rate / 2), n_mels + 2)[1:-1]
    return np.where(mel < knee_mel, mel * hertz_a_mel, 1_000 * np.exp(step * (mel - knee_mel)))


def _noise(logmel: npt.NDArray[np.float32], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    level = logmel.max() - generator.uniform(*_NOISE)
    slope = np.interp(np.arange(logmel.shape[1]), [0, logmel.shape[1] - 1], generator.normal(0, 1, 2))
    # A band's power in a frame of noise is about exponential; a band averages several bins.
    grain = 0.3 * np.log(generator.exponential(size=logmel.shape) + 1e-3)
    return np.asarray(level + slope + grain, np.float32)


def _mask(bands: npt.NDArray[np.float32], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    n_frames, n_mels = bands.shape
    for _ in range(_N_MASKS):
        width = generator.integers(0, _MOST_BANDS)
        start = generator.integers(0, n_mels - width)
        bands[:, start : start + width] = 0
        width = min(generator.integers(0, _MOST_FRAMES), n_frames - 1)
        start = generator.integers(0, n_frames - width)
        bands[start : start + width] = 0
    return bands
