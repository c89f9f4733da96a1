"""Vary stored sequences in voice, pace and room, so that a network does not learn the voices of a few speakers.

It works on the features of a table. The ranges are wide on purpose, because the speakers of one corpus differ less from each other than
from the next caller.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from emotion_batch.features import logmel_pitch
from emotion_batch.features.logmel_pitch import Sequence
from emotion_batch.settings import VoicesSettings

# Bands in nepers, fundamentals in Hz and voicing, by frame.
Tracks = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]
_SETTINGS = VoicesSettings()
# Length of the vocal tract: N. Jaitly and G. Hinton, "Vocal Tract Length Perturbation (VTLP) improves speech recognition",
# ICML workshop 2013. The range here is wider, because a corpus of women must also prepare for the voices of men.
_VTLP = (0.85, 1.18)
_TEMPO = (0.8, 1.25)
_LEAST_FRAMES = 32
# The effect of a microphone and a room: a deviation in nepers at six points over the bands.
_EQUALISER, _N_POINTS = 1.0, 6
# A room in some segments: seconds until its echo has fallen by 60 dB, and how far its power lies below the voice, in nepers.
_ROOM_SHARE, _ECHO_S, _ECHO = 0.3, (0.15, 0.9), (-0.5, 3.0)
# Noise in half of the segments: its power below the loudest cell in nepers, with a slope over the bands.
_NOISE_SHARE, _NOISE = 0.5, (5.0, 15.0)
# Half of the segments begin and end with silence of at most this many frames, which also gets noise and echoes.
_PADDED_SHARE, _MOST_PADDING = 0.5, 150
# The voicing that noise alone gives, at any fundamental.
_NOISE_VOICING = (0.05, 0.25)
# The fundamental of a voice is always found in a frame if all power but this share is the voice's.
_LEAST_SHARE = 0.3
# Half of the segments come by telephone: nothing lies above the first range in Hz, and most have a high-pass filter of some order in
# the second range, because telephones begin at 300 Hz.
_TELEPHONE_SHARE, _TELEPHONE_HZ, _HIGH_PASS_SHARE, _LOW_HZ, _MOST_ORDER = 0.5, (3_300, 4_000), 0.7, (100, 400), 6
# Factor for the range of the fundamental, and deviation of its shift from the median.
_PITCH_RANGE, _PITCH_SHIFT = (0.8, 1.25), 0.05
# Masks over bands and over frames: D. Park et al., "SpecAugment", Interspeech 2019.
_N_MASKS, _MOST_BANDS, _MOST_FRAMES = 2, 10, 20


def augment(one: Sequence, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the inputs of a network for a segment, as if another voice, in another room, had said it.

    They are frames as from `logmel_pitch.make_inputs`, fewer or more of them: shape (n_frames, `logmel_pitch.N_INPUTS`).
    """
    is_noisy = generator.random() < _NOISE_SHARE
    # Noise is also heard in pauses, so silence is not removed first.
    heard = None if is_noisy else logmel_pitch.hear(one)
    tracks = (
        (logmel_pitch.to_nepers(one), one.f0_hz, one.voicing)
        if heard is None
        else (heard.bands, heard.f0_hz, heard.voicing)
    )
    logmel, f0_hz, voicing = _change_tempo(tracks, generator)
    if generator.random() < _PADDED_SHARE:
        padding = tuple(generator.integers(0, _MOST_PADDING, 2).tolist())
        logmel = np.pad(logmel, [padding, (0, 0)], constant_values=logmel_pitch.LOWEST)
        f0_hz, voicing = np.pad(f0_hz, padding, mode="edge"), np.pad(voicing, padding)
    logmel = _warp(logmel, generator)
    if generator.random() < _ROOM_SHARE:
        logmel = _add_echo(logmel, generator)
    points = generator.normal(0, _EQUALISER, _N_POINTS)
    n_mels = logmel.shape[1]
    logmel = logmel + np.interp(np.arange(n_mels), np.linspace(0, n_mels - 1, _N_POINTS), points).astype(np.float32)
    if is_noisy:
        logmel, f0_hz, voicing = _add_noise(logmel, f0_hz, voicing, generator)
    if generator.random() < _TELEPHONE_SHARE:
        logmel = _telephone(logmel, generator)
    other = logmel_pitch.hear_bands(np.asarray(logmel, np.float32), f0_hz, voicing)
    inputs = logmel_pitch.make_inputs(other, generator.uniform(*_PITCH_RANGE), generator.normal(0, _PITCH_SHIFT))
    _mask(inputs[:, :n_mels], generator)
    return inputs


def _change_tempo(tracks: Tracks, generator: np.random.Generator) -> Tracks:
    logmel, f0_hz, voicing = tracks
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
    """Return bands with their frequencies multiplied by a factor, as a longer or shorter vocal tract does."""
    centres = logmel_pitch.find_centres(_SETTINGS)
    wanted = np.minimum(centres * generator.uniform(*_VTLP), centres[-1])
    at = np.interp(wanted, centres, np.arange(len(centres)))
    left = np.minimum(at.astype(np.int64), len(centres) - 2)
    share = (at - left).astype(np.float32)
    return np.asarray(logmel[:, left] * (1 - share) + logmel[:, left + 1] * share, np.float32)


def _add_echo(logmel: npt.NDArray[np.float32], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return bands with an echo that fades evenly, as in J. Polack's model of a room."""
    import scipy.signal

    fading = math.exp(-math.log(1e6) * _SETTINGS.hop_s / generator.uniform(*_ECHO_S))
    share = math.exp(-generator.uniform(*_ECHO)) * (1 - fading) / fading
    loudest = logmel.max()
    power = np.exp(logmel - loudest)
    echo = scipy.signal.lfilter([0.0, fading], [1.0, -fading], power, axis=0)
    return np.asarray(np.log(power + share * echo + 1e-12) + loudest, np.float32)


def _add_noise(
    logmel: npt.NDArray[np.float32],
    f0_hz: npt.NDArray[np.float32],
    voicing: npt.NDArray[np.float32],
    generator: np.random.Generator,
) -> Tracks:
    """Return bands with noise; the less of a frame's power is the voice's, the more rarely its fundamental is found."""
    level = logmel.max() - generator.uniform(*_NOISE)
    slope = np.interp(np.arange(logmel.shape[1]), [0, logmel.shape[1] - 1], generator.normal(0, 1, 2))
    # A band's power in a frame of noise is about exponential; a band averages several bins.
    grain = 0.3 * np.log(generator.exponential(size=logmel.shape) + 1e-3)
    noisy = np.logaddexp(logmel, level + slope + grain).astype(np.float32)
    loudest = noisy.max()
    share = np.exp(logmel - loudest).sum(axis=1) / np.exp(noisy - loudest).sum(axis=1)
    settings, n_frames = _SETTINGS, len(share)
    found_hz = np.exp(generator.uniform(math.log(settings.f0_min_hz), math.log(settings.f0_max_hz), n_frames))
    is_voice = generator.random(n_frames) < share + _LEAST_SHARE
    of_noise = generator.uniform(*_NOISE_VOICING, n_frames)
    return (
        noisy,
        np.where(is_voice, f0_hz, found_hz).astype(np.float32),
        (voicing * share + of_noise * (1 - share)).astype(np.float32),
    )


def _telephone(logmel: npt.NDArray[np.float32], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    hertz = logmel_pitch.find_centres(_SETTINGS)
    low_hz = generator.uniform(*_LOW_HZ) if generator.random() < _HIGH_PASS_SHARE else 0.0
    # A Butterworth filter of a random order.
    lost = np.log1p((low_hz / hertz) ** (2 * generator.integers(1, _MOST_ORDER + 1)))
    logmel = np.maximum(logmel - lost.astype(np.float32), logmel_pitch.LOWEST)
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
