"""Compute the features of the recipe ``seed``: librosa's mel-frequency cepstral coefficients, as a mean over frames.

Window and mel filters are librosa's. Those of the default settings are kept in a file beside this module, because importing librosa
costs a worker seconds. ``python -m emotion_batch.features.mfcc`` writes it anew, and a test compares it with librosa.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy

from emotion_batch.features.decimation import scratch
from emotion_batch.features.recipe import Recipe, read_matrix
from emotion_batch.settings import FeatureSettings

FILTERS = "mel_filters.npz"
# librosa.power_to_db's floor of the power and its range below the loudest cell.
POWER_FLOOR = np.float32(1e-10)
_RANGE_DB = 80.0
_DB_PER_NEPER = 10 / math.log(10)
# With this many frames at a time the spectra stay in a core's cache, and a long segment fits into memory.
_BLOCK_FRAMES = 128
# A mel filter is zero except for a few neighbouring bins, so this many filters share one product with their bins.
_BAND_FILTERS = 16


class Band(NamedTuple):
    """Some neighbouring mel filters: which bins they weigh, which columns they fill."""

    bins: slice
    filters: slice
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Constants:
    """Constants that depend on the settings alone."""

    window: npt.NDArray[np.float32]
    bands: tuple[Band, ...]
    # The first n_mfcc rows of the DCT, shape (n_mfcc, n_mels).
    dct: npt.NDArray[np.float64]


def mean_mfcc(samples: npt.NDArray[np.float32], settings: FeatureSettings) -> npt.NDArray[np.float32]:
    """Return the MFCC of a stretch, shape (n_samples,), at least one, averaged over its frames: shape (n_mfcc,).

    Equals ``np.mean(librosa.feature.mfcc(y=samples, sr=sample_rate, n_mfcc=n_mfcc, ...).T, axis=0)`` to within 1e-3. The DCT
    is linear, so it is taken once, of the mean. Not all finite if the samples, or their power, are not.
    """
    constants = _constants(settings)
    half = settings.n_fft // 2
    n_padded = len(samples) + 2 * half
    padded = scratch("padded", n_padded)
    padded[:half] = 0
    padded[half : half + len(samples)] = samples
    padded[half + len(samples) :] = 0
    n_frames = 1 + (n_padded - settings.n_fft) // settings.hop_length
    stride = padded.itemsize
    # as_strided is not used, because its checks cost as much as a matrix product here.
    frames = np.ndarray((n_frames, settings.n_fft), np.float32, padded, 0, (settings.hop_length * stride, stride))
    log_mel = np.empty((n_frames, settings.n_mels), np.float32)
    n_block = -(-n_frames // -(-n_frames // _BLOCK_FRAMES))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, n_frames, n_block):
            block = frames[start : start + n_block]
            power = _power(np.multiply(block, constants.window, out=scratch("windowed", *block.shape)))
            rows = log_mel[start : start + n_block]
            for bins, filters, weights in constants.bands:
                np.matmul(power[:, bins], weights, out=rows[:, filters])
        return np.asarray(constants.dct @ _mean_db(log_mel), np.float32)


def _power(windowed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the squared magnitude of each frame's spectrum, shape (n_frames, 1 + n_fft // 2)."""
    # Squared as pairs of floats, in place: twice as fast as by real and imaginary parts.
    parts: npt.NDArray[np.float32] = scipy.fft.rfft(windowed, axis=1).view(np.float32)
    np.multiply(parts, parts, out=parts)
    return np.add(parts[:, 0::2], parts[:, 1::2], out=scratch("power", len(windowed), parts.shape[1] // 2))


def _mean_db(mel: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the mean over frames of `mel` in dB, at most 80 below the loudest cell; `mel` is used up."""
    np.maximum(mel, POWER_FLOOR, out=mel)
    # NumPy's natural logarithm is vectorised, its common one is not.
    np.log(mel, out=mel)
    np.maximum(mel, mel.max() - np.float32(_RANGE_DB / _DB_PER_NEPER), out=mel)
    # A block is summed in float32, which is fast and exact enough, and the blocks in float64, because there may be many.
    sums = np.add.reduceat(mel, range(0, len(mel), _BLOCK_FRAMES), axis=0)
    return np.asarray(np.sum(sums, axis=0, dtype=np.float64)) * (_DB_PER_NEPER / len(mel))


@lru_cache(maxsize=8)
def _constants(settings: FeatureSettings) -> _Constants:
    window, mel = _filters(settings)
    dct = scipy.fft.dct(np.eye(settings.n_mels), type=2, norm="ortho", axis=0)[: settings.n_mfcc]
    return _Constants(window, cut_bands(mel), dct)


def cut_bands(mel: npt.NDArray[np.float32]) -> tuple[Band, ...]:
    """Return mel filters, shape (n_mels, n_bins), in bands of neighbours that weigh neighbouring bins."""
    bands = []
    for first in range(0, len(mel), _BAND_FILTERS):
        filters = slice(first, min(first + _BAND_FILTERS, len(mel)))
        # With many filters and few bins some filters are all zero, perhaps all of a band.
        used = np.flatnonzero(mel[filters].any(axis=0))
        bins = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        bands.append(Band(bins, filters, np.ascontiguousarray(mel[filters, bins].T)))
    return tuple(bands)


def _filters(settings: FeatureSettings) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return librosa's window, shape (n_fft,), and its mel filters, shape (n_mels, 1 + n_fft // 2)."""
    usual = FeatureSettings()
    if (settings.sample_rate, settings.n_fft, settings.n_mels) == (usual.sample_rate, usual.n_fft, usual.n_mels):
        with np.load(io.BytesIO(resources.files(__package__).joinpath(FILTERS).read_bytes())) as kept:
            return kept["window"], kept["mel"]
    return compute_filters(settings)


def compute_filters(settings: FeatureSettings) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return librosa's window, shape (n_fft,), and its mel filters, shape (n_mels, 1 + n_fft // 2), by librosa."""
    import librosa.filters

    window = librosa.filters.get_window("hann", settings.n_fft, fftbins=True).astype(np.float32)
    mel = librosa.filters.mel(sr=settings.sample_rate, n_fft=settings.n_fft, n_mels=settings.n_mels)
    return window, mel.astype(np.float32)


RECIPE = Recipe(
    option="seed",
    settings=FeatureSettings,
    fields=lambda settings: [pa.field("mfcc", pa.list_(pa.float32(), settings.n_mfcc))],
    compute=lambda samples, rate_hz, settings: (mean_mfcc(samples, settings),),
    read=lambda rows, settings: [read_matrix(rows["mfcc"])],
    prepare=lambda matrix: matrix,
    input_shape=lambda settings: (settings.n_mfcc,),
    # The first coefficient is the mean of the bands in dB.
    level=lambda matrix: matrix[:, 0],
    network="seed-lstm",
    measures="mfcc",
    # As in the notebook.
    epochs=100,
    batch_size=512,
    describe=lambda settings: f"{settings.n_mfcc} MFCC at {settings.sample_rate:,} Hz, averaged over",
    sees_every_sample=lambda settings: settings.hop_length <= settings.n_fft,
)


if __name__ == "__main__":
    window, mel = compute_filters(FeatureSettings())
    np.savez_compressed(Path(__file__).with_name(FILTERS), window=window, mel=mel)
