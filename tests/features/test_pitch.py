"""Tests of the fundamental: known tones at any rate, and sounds without one."""

from __future__ import annotations

import numpy as np
import pytest
from support.recordings import tone

from emotion_batch.features import pitch


def track(samples: np.ndarray, rate_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """Return fundamental and voicing every 10 ms, away from the ends."""
    centres = np.arange(0.05 * rate_hz, len(samples) - 0.05 * rate_hz, rate_hz / 100)
    return pitch.track(samples, centres, pitch.make_constants(rate_hz, 65, 500))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_414, 31_999])
@pytest.mark.parametrize("hertz", [70, 80, 110, 155, 220, 300, 370, 450])
def test_a_fundamental_is_found(hertz: int, rate: int) -> None:
    """A harmonic tone is voiced, at its fundamental to within a semitone's tenth, at any rate."""
    f0_hz, voicing = track(tone(0.5, rate, hertz=hertz), rate)
    assert np.median(np.abs(f0_hz / hertz - 1)) < 0.006
    assert (voicing > 0.7).all()


def test_what_is_not_periodic_has_no_fundamental() -> None:
    """Noise is hardly ever voiced, and digital silence never."""
    noise = np.random.default_rng(0).standard_normal(64_000).astype(np.float32)
    assert np.mean(track(noise, 16_000)[1] > 0.5) < 0.1
    f0_hz, voicing = track(np.zeros(16_000, np.float32), 16_000)
    assert not voicing.any() and np.isfinite(f0_hz).all()


def test_a_fundamental_beyond_the_range_is_not_voiced_at_its_end() -> None:
    """A tone above the range is found an octave or more below, or not voiced; one below it is not voiced."""
    f0_hz, voicing = track(tone(0.5, 16_000, hertz=50), 16_000)
    assert ((voicing < 0.5) | (np.abs(f0_hz / 100 - 1) < 0.02)).all()
    assert (f0_hz >= 65).all() and (f0_hz <= 500).all()
