"""Tests of the kernel against librosa."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import librosa
import numpy as np
import pytest
from support.recordings import tone

from emotion_batch.features.mfcc import _filters, compute_filters, mean_mfcc
from emotion_batch.settings import FeatureSettings

SETTINGS = FeatureSettings()
OTHER = FeatureSettings(sample_rate=16_000, n_mfcc=13, n_fft=512, hop_length=160, n_mels=40)


def test_the_kept_filters_are_librosas() -> None:
    """The file that spares a worker the import of librosa holds what librosa computes, to the bit."""
    kept, computed = _filters(SETTINGS), compute_filters(SETTINGS)
    for one, other in zip(kept, computed, strict=True):
        np.testing.assert_array_equal(one, other)


def expected(samples: np.ndarray, settings: FeatureSettings = SETTINGS) -> np.ndarray:
    mfcc = librosa.feature.mfcc(
        y=samples,
        sr=settings.sample_rate,
        n_mfcc=settings.n_mfcc,
        n_fft=settings.n_fft,
        hop_length=settings.hop_length,
        n_mels=settings.n_mels,
    )
    return np.mean(mfcc.T, axis=0)


@pytest.mark.filterwarnings("ignore:n_fft=.* is too large:UserWarning")
@pytest.mark.parametrize(
    "n_samples", [1, 2, 511, 512, 513, 1_023, 1_024, 2_047, 2_048, 2_049, 2_560, 65_536, 66_149, 66_150, 400_000]
)
def test_features_are_librosas_at_every_length(n_samples: int) -> None:
    """On either side of each frame boundary the features are librosa's."""
    samples = tone(20.0, 22_050)[:n_samples]
    found = mean_mfcc(samples, SETTINGS)
    assert found.shape == (40,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(samples), atol=1e-3)


@pytest.mark.parametrize("level", [0.0, 1e-6, 1e-3, 1.0, 30.0])
def test_features_are_librosas_at_every_level(level: float) -> None:
    """Silence, near-silence and overload give librosa's features, its floor and range included."""
    samples = level * tone(1.0, 22_050)
    np.testing.assert_allclose(mean_mfcc(samples, SETTINGS), expected(samples), atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        OTHER,
        FeatureSettings(n_mfcc=128),
        FeatureSettings(n_fft=1_023, hop_length=256),
    ],
    ids=["speech", "all coefficients", "odd frame"],
)
def test_features_are_librosas_with_other_settings(settings: FeatureSettings) -> None:
    """Each setting means what it means to librosa."""
    samples = tone(1.0, settings.sample_rate)
    np.testing.assert_allclose(mean_mfcc(samples, settings), expected(samples, settings), atol=1e-3)


def test_silence_between_sounds_and_clicks_are_librosas() -> None:
    """Cells at the floor and at the top of the range come out as librosa's."""
    samples = np.zeros(66_150, np.float32)
    samples[20_000:30_000] = tone(1.0, 22_050)[:10_000]
    samples[50_000] = 1.0
    np.testing.assert_allclose(mean_mfcc(samples, SETTINGS), expected(samples), atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32(1e25)], ids=["NaN", "inf", "-inf", "too large"])
def test_what_is_not_finite_shows_in_the_features(bad: float) -> None:
    """One sample that is not finite, or whose power is not, leaves no finite vector to be taken for features."""
    samples = tone(1.0, 22_050)
    samples[10_000] = bad
    assert not np.isfinite(mean_mfcc(samples, SETTINGS)).all()


def test_threads_compute_what_one_computes() -> None:
    """Threads of one process, on recordings and settings that alternate, give each what it gives alone."""
    cases = [
        (tone(1 + number / 10, 22_050, seed=number), settings) for number in range(8) for settings in (SETTINGS, OTHER)
    ]
    alone = [mean_mfcc(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for one, other in zip(alone, pool.map(lambda case: mean_mfcc(*case), cases), strict=True):
                np.testing.assert_array_equal(one, other)
