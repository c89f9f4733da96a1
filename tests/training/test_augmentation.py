"""Tests of what a training does to segments: other voices, rooms and telephones, within bounds, and the same from the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emotion_batch.features import logmel_pitch
from emotion_batch.features.logmel_pitch import N_INPUTS, Sequence, compute_sequence
from emotion_batch.settings import VoicesSettings
from emotion_batch.training import augmentation

SETTINGS = VoicesSettings()
HERTZ = logmel_pitch.find_centres(SETTINGS)


@pytest.fixture(scope="module")
def segment() -> Sequence:
    """Two seconds of syllables of a harmonic tone that glides, with noise between."""
    rate = 16_000
    at_s = np.arange(2 * rate) / rate
    phase = 2 * np.pi * np.cumsum(150 + 40 * np.sin(2 * np.pi * at_s)) / rate
    voice = sum(np.sin(number * phase) / number for number in range(1, 30)) * (0.5 + 0.5 * np.sin(8 * np.pi * at_s))
    noise = np.random.default_rng(0).normal(0, 0.003, len(at_s))
    return compute_sequence((0.1 * voice + noise).astype(np.float32), rate, SETTINGS)


def test_a_segment_is_varied_by_the_generator_alone(segment: Sequence) -> None:
    """The same seed gives the same, another seed another; all is finite, and the pace stays within its range."""
    n_frames = len(segment.f0_hz)
    found = [augmentation.augment(segment, np.random.default_rng(seed)) for seed in range(200)]
    for seed in (0, 7):
        np.testing.assert_array_equal(augmentation.augment(segment, np.random.default_rng(seed)), found[seed])
    assert len({one.tobytes() for one in found}) == 200
    for one in found:
        assert one.dtype == np.float32 and one.shape[1] == N_INPUTS and np.isfinite(one).all()
        assert len(one) <= 1 + round(1.25 * n_frames) + 300


def test_a_telephone_takes_what_is_below_and_above_its_band() -> None:
    """Nothing is left above 4 kHz, the middle is as it was, and in most segments little is left far below 300 Hz."""
    bands = np.zeros((5, SETTINGS.n_mels), np.float32)
    heard = np.array([augmentation._telephone(bands, np.random.default_rng(seed))[0] for seed in range(300)])
    assert (heard[:, HERTZ > 4_000] == logmel_pitch.LOWEST).all()
    middle = heard[:, (HERTZ > 1_000) & (HERTZ < 3_000)]
    assert (middle <= 0).all() and (middle > -0.2).all()
    lowest = heard[:, HERTZ < 100]
    assert 0.2 < np.mean(lowest.max(axis=1) == 0) < 0.4
    assert np.mean(lowest.max(axis=1) < -2) > 0.4
    assert (heard >= logmel_pitch.LOWEST).all()


def test_an_echo_fades_evenly() -> None:
    """Of a click, by 60 dB in 0.15 to 0.9 s, and all of it together is no louder than half a neper above the click."""
    click = np.full((400, SETTINGS.n_mels), logmel_pitch.LOWEST)
    click[3] = 0
    for seed in range(50):
        heard = augmentation._add_echo(click, np.random.default_rng(seed))
        assert heard.dtype == np.float32 and np.abs(heard[:3] - logmel_pitch.LOWEST).max() < 1.5
        assert heard[3] == pytest.approx(0, abs=1e-4)
        # While it is far above the floor.
        fading = (heard[4, 0] - heard[12, 0]) / 8
        assert 0.15 < math.log(1e6) * SETTINGS.hop_s / fading < 0.95
        assert -3.1 < math.log(np.exp(heard[4:, 0]).sum()) < 0.6


def test_noise_takes_nothing_away(segment: Sequence) -> None:
    """It is some 20 to 65 dB below the loudest cell, what is above it stays, and where it is all, nothing is voiced."""
    heard = logmel_pitch.hear(segment)
    tracks = heard.bands, heard.f0_hz, heard.voicing
    silence = np.full_like(heard.bands, logmel_pitch.LOWEST)
    silence[0, 0] = heard.bands.max()
    for seed in range(50):
        bands, f0_hz, voicing = augmentation._add_noise(*tracks, np.random.default_rng(seed))
        assert (bands.dtype, f0_hz.dtype, voicing.dtype) == (np.float32,) * 3
        assert (bands >= heard.bands - 1e-4).all() and (voicing <= np.maximum(heard.voicing, 0.25)).all()
        noise, found_hz, voicing = augmentation._add_noise(silence, *tracks[1:], np.random.default_rng(seed))
        assert 1 < heard.bands.max() - np.median(noise) < 20
        assert voicing[1:].max() < 0.26 and (found_hz[1:] != heard.f0_hz[1:]).mean() > 0.5
        assert found_hz.min() >= SETTINGS.f0_min_hz and found_hz.max() <= SETTINGS.f0_max_hz


def test_noise_is_heard_before_and_after_what_is_said(segment: Sequence) -> None:
    """Some segments that are learnt from begin with noise alone, as a recording does that begins before the voice."""
    found = [augmentation.augment(segment, np.random.default_rng(seed)) for seed in range(200)]
    most = 1 + round(1.25 * len(segment.f0_hz))
    assert sum(len(one) > most for one in found) > 10
