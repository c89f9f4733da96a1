"""Samples to MFCC: the mean over frames of librosa's mel-frequency cepstral coefficients."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft

from emotion_batch.settings import FeatureSettings

# librosa.power_to_db's floor of the power and its range below the loudest cell.
_POWER_FLOOR = 1e-10
_RANGE_DB = 80.0
# Spectra held at a time: of an hour's segment they would not fit into a worker.
_BLOCK_FRAMES = 1_024


def mean_mfcc(samples: npt.NDArray[np.float32], settings: FeatureSettings) -> npt.NDArray[np.float32]:
    """Return the MFCC of a stretch, averaged over its frames.

    Equals ``np.mean(librosa.feature.mfcc(y=samples, sr=sample_rate, n_mfcc=n_mfcc, ...).T, axis=0)`` to within 1e-3.
    The DCT is linear, so that it is taken once, of the mean.

    Parameters
    ----------
    samples
        Shape (n_samples,), at least one, at ``settings.sample_rate``.
    settings
        Of which frames and bands.

    Returns
    -------
    Coefficients, shape (n_mfcc,).
    """
    window, mel_basis = _constants(settings)
    half = settings.n_fft // 2
    padded = np.pad(samples, half)
    frames = np.lib.stride_tricks.sliding_window_view(padded, settings.n_fft)[:: settings.hop_length]
    mel_db = np.empty((len(frames), settings.n_mels), np.float32)
    for start in range(0, len(frames), _BLOCK_FRAMES):
        block = slice(start, start + _BLOCK_FRAMES)
        spectrum = scipy.fft.rfft(frames[block] * window, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        mel_db[block] = 10.0 * np.log10(np.maximum(_POWER_FLOOR, power @ mel_basis))
    np.maximum(mel_db, mel_db.max() - _RANGE_DB, out=mel_db)
    mean_db = np.mean(mel_db, axis=0, dtype=np.float64)
    return np.asarray(scipy.fft.dct(mean_db, type=2, norm="ortho")[: settings.n_mfcc], np.float32)


@lru_cache(maxsize=8)
def _constants(settings: FeatureSettings) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return librosa's window, shape (n_fft,), and its mel filters, shape (1 + n_fft // 2, n_mels)."""
    import librosa.filters

    window = librosa.filters.get_window("hann", settings.n_fft, fftbins=True).astype(np.float32)
    mel_basis = librosa.filters.mel(sr=settings.sample_rate, n_fft=settings.n_fft, n_mels=settings.n_mels)
    return window, np.ascontiguousarray(mel_basis.T, dtype=np.float32)
