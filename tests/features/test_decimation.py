"""Tests of decimation: what passes, what does not, and outputs that depend on the samples around them alone."""

from __future__ import annotations

import numpy as np
import pytest

from emotion_batch.features.decimation import Decimator, decimate, design

FACTORS = [1, 2, 3, 6, 12]


def some(factor: int) -> Decimator:
    return design(factor, taps_a_phase=12, cutoff=0.96, beta=5.0)


@pytest.mark.parametrize("factor", FACTORS[1:])
@pytest.mark.parametrize(
    ("share", "gain_db"), [pytest.param(0.1, 0), pytest.param(0.7, 0), pytest.param(1.35, -45), pytest.param(1.9, -45)]
)
def test_what_is_heard_passes_and_what_would_fold_does_not(factor: int, share: float, gain_db: float) -> None:
    """A tone below 0.7 of half the new rate keeps its level to 0.2 dB, one that would fold into that loses 45 dB."""
    tone = np.sin(np.pi * share / factor * np.arange(factor * 4_000)).astype(np.float32)
    found = decimate(tone, some(factor))[100:-100]
    level_db = 20 * np.log10(np.sqrt(2 * np.mean(found**2)))
    assert level_db <= gain_db + 0.2
    assert gain_db or level_db >= -0.2


@pytest.mark.parametrize("factor", FACTORS)
def test_an_output_depends_on_the_samples_around_it_alone(factor: int) -> None:
    """Outputs are the same to the bit wherever a stretch begins and however long it is."""
    samples = np.random.default_rng(0).standard_normal(factor * 900).astype(np.float32)
    whole = decimate(samples, some(factor))
    for first in (1, 5, 16, 33):
        for n_outputs in (1, 30, 333, 800):
            part = decimate(samples[first * factor : (first + n_outputs) * factor], some(factor))
            assert len(part) == n_outputs
            assert np.array_equal(part[6:-6], whole[first : first + n_outputs][6:-6])


@pytest.mark.parametrize("n_samples", [1, 2, 5, 6, 7, 95, 96, 97])
def test_any_number_of_samples_will_do(n_samples: int) -> None:
    """Every `factor`-th sample has an output, also of less than a row, and what is not finite shows."""
    for factor in FACTORS:
        assert len(decimate(np.ones(n_samples, np.float32), some(factor))) == -(-n_samples // factor)
        spoiled = np.ones(n_samples, np.float32)
        spoiled[-1] = np.nan
        assert np.isnan(decimate(spoiled, some(factor))).any()
