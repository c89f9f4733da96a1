"""Compute the features of the recipe ``sequence``: log-mel bands, fundamental frequency and voicing, by frame.

Window and mel filters are librosa's, kept in a file beside this module, as those of `features.mfcc` are.
``python -m emotion_batch.features.logmel_pitch`` writes it anew, and a test compares it with librosa.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.fft

from emotion_batch.features.mfcc import POWER_FLOOR, Band, cut_bands
from emotion_batch.features.recipe import Recipe, flatten
from emotion_batch.settings import SequenceSettings

FILTERS = "sequence_filters.npz"
# What a network sees of a frame: the bands, energy, fundamental frequency and voicing.
N_INPUTS = SequenceSettings.n_mels + 3
# The fundamental is looked for at a quarter of the rate, in frames of 64 ms: three periods of the lowest.
_DECIMATION, _PITCH_WINDOW, _N_TAPS = 4, 256, 64
# For how much shorter a period a peak must be higher, by the octave: Boersma 1993, "octave cost".
_OCTAVE_COST = np.float32(0.02)
# From this share of periodic power on, and so far below the loudest frame in nepers, a frame counts as voiced.
_VOICED, _VOICED_RANGE = 0.5, 6.0
# Fewer voiced frames have no median to speak of.
_LEAST_VOICED = 5
# What brings each input to about unit variance; fixed, so that a row depends on its own recording alone.
_MEL_SCALE, _ENERGY_SCALE, _PITCH_SCALE, _MOST_PITCH = 3.0, 5.0, 0.5, 1.2


class Sequence(NamedTuple):
    """A segment by frames, as a feature table holds it.

    `logmel` is the natural logarithm of the power in each mel band, shape (n_frames, n_mels). `f0_hz` is the fundamental
    frequency that fits best, voiced or not, and `voicing` the share of the power that is periodic at it, from 0 to 1.
    """

    logmel: npt.NDArray[np.float16]
    f0_hz: npt.NDArray[np.float16]
    voicing: npt.NDArray[np.float16]


@dataclass(frozen=True)
class _Constants:
    window: npt.NDArray[np.float32]
    bands: tuple[Band, ...]
    # Low-pass filters of the four phases of the rate.
    taps: npt.NDArray[np.float32]
    pitch_window: npt.NDArray[np.float32]
    # The window's own autocorrelation, by which that of what it is laid on is divided, from lag 0.
    fading: npt.NDArray[np.float32]
    # The shortest and the longest period, in samples of the slower rate.
    lags: slice
    cost: npt.NDArray[np.float32]


def compute_sequence(samples: npt.NDArray[np.float32], settings: SequenceSettings) -> Sequence:
    """Return log-mel bands, fundamental frequency and voicing of a stretch of one sample or more, a frame every `hop_length`.

    The fundamental is the highest peak of the autocorrelation, divided by the window's own and weighted against longer
    periods: P. Boersma, "Accurate short-term analysis of the fundamental frequency", IFA Proceedings 17, 1993. The last frame
    is filled up with silence, so that every sample is in one. Not all finite if the samples, or their power, are not.
    """
    constants = _constants(settings)
    n_frames = 1 + -(-max(0, len(samples) - settings.win_length) // settings.hop_length)
    padded = np.zeros((n_frames - 1) * settings.hop_length + settings.win_length, np.float32)
    padded[: len(samples)] = samples
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        logmel = _logmel(padded, n_frames, settings, constants)
        f0_hz, voicing = _pitch(padded, n_frames, settings, constants)
        return Sequence(logmel.astype(np.float16), f0_hz.astype(np.float16), voicing.astype(np.float16))


def prepare_sequence(sequence: Sequence) -> npt.NDArray[np.float32]:
    """Return what a network sees of a segment, shape (n_frames, `N_INPUTS`).

    Each band without its mean over the frames, which takes the room and the microphone out; the energy relative to the
    loudest frame; the logarithm of the fundamental without its median where there is a voice, else 0; the voicing.
    """
    return join_tracks(normalise(sequence.logmel.astype(np.float32)), *_tracks(sequence))


def normalise(logmel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return bands without their mean over the frames, at about unit variance, shape (n_frames, n_mels)."""
    return np.asarray((logmel - logmel.mean(axis=0)) / np.float32(_MEL_SCALE), np.float32)


def join_tracks(
    bands: npt.NDArray[np.float32],
    energy: npt.NDArray[np.float32],
    pitch: npt.NDArray[np.float32],
    voicing: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Return bands and tracks side by side, shape (n_frames, `N_INPUTS`)."""
    return np.concatenate([bands, energy[:, None], pitch[:, None], voicing[:, None]], axis=1)


def energy_of(logmel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the natural logarithm of each frame's power, shape (n_frames,)."""
    highest = logmel.max(axis=1)
    return np.asarray(highest + np.log(np.exp(logmel - highest[:, None]).sum(axis=1)), np.float32)


def find_voiced(energy: npt.NDArray[np.float32], voicing: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which frames hold a voice: periodic, and not far below the loudest."""
    return np.asarray((voicing > _VOICED) & (energy > energy.max() - _VOICED_RANGE), np.bool_)


def centre_pitch(f0_hz: npt.NDArray[np.float32], is_voiced: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return the fundamental in nepers from its median over the voiced frames, 0 elsewhere, shape (n_frames,)."""
    pitch = np.log(np.maximum(f0_hz, np.float32(1)))
    median = np.median(pitch[is_voiced]) if is_voiced.sum() >= _LEAST_VOICED else np.median(pitch)
    return np.where(is_voiced, np.clip(pitch - median, -_MOST_PITCH, _MOST_PITCH), 0).astype(np.float32)


def scale_tracks(
    energy: npt.NDArray[np.float32], pitch: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return energy relative to the loudest frame, and pitch, each at about unit variance."""
    relative = (energy - energy.max()) / np.float32(_ENERGY_SCALE) + np.float32(0.5)
    return relative, pitch / np.float32(_PITCH_SCALE)


def _tracks(
    sequence: Sequence,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    energy, voicing = energy_of(sequence.logmel.astype(np.float32)), sequence.voicing.astype(np.float32)
    pitch = centre_pitch(sequence.f0_hz.astype(np.float32), find_voiced(energy, voicing))
    return *scale_tracks(energy, pitch), voicing


def _logmel(
    padded: npt.NDArray[np.float32], n_frames: int, settings: SequenceSettings, constants: _Constants
) -> npt.NDArray[np.float32]:
    windowed = _frames(padded, n_frames, settings.win_length, settings.hop_length) * constants.window
    # Squared as pairs of floats, in place, as in `mfcc`.
    parts: npt.NDArray[np.float32] = scipy.fft.rfft(windowed, settings.n_fft, axis=1).view(np.float32)
    np.multiply(parts, parts, out=parts)
    power = np.add(parts[:, 0::2], parts[:, 1::2])
    logmel = np.empty((n_frames, settings.n_mels), np.float32)
    for bins, filters, weights in constants.bands:
        np.matmul(power[:, bins], weights, out=logmel[:, filters])
    np.maximum(logmel, POWER_FLOOR, out=logmel)
    return np.log(logmel, out=logmel)


def _pitch(
    padded: npt.NDArray[np.float32], n_frames: int, settings: SequenceSettings, constants: _Constants
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the fundamental that fits each frame best, in Hz, and the share of power that is periodic at it."""
    slow = _decimate(padded, constants.taps)
    hop = settings.hop_length // _DECIMATION
    # Centred on the frames of the bands.
    before = (_PITCH_WINDOW - settings.win_length // _DECIMATION) // 2
    laid = np.zeros((n_frames - 1) * hop + _PITCH_WINDOW, np.float32)
    n_there = min(len(slow), len(laid) - before)
    laid[before : before + n_there] = slow[:n_there]
    frames = _frames(laid, n_frames, _PITCH_WINDOW, hop)
    windowed = (frames - frames.mean(axis=1, keepdims=True)) * constants.pitch_window
    spectrum = scipy.fft.rfft(windowed, axis=1)
    # Round the end of the frame as well; under this window what comes from there is below a hundredth.
    longest = constants.lags.stop
    correlation = scipy.fft.irfft(spectrum.real**2 + spectrum.imag**2, axis=1)[:, : longest + 1]
    # A frame that is digitally silent is not periodic.
    correlation /= (correlation[:, :1] + np.float32(1e-9)) * constants.fading
    low, top, high = (correlation[:, constants.lags.start + step : constants.lags.stop + step] for step in (-1, 0, 1))
    # The top of the parabola through three lags: a short period lies between two samples of the slower rate.
    bend = np.minimum(low - 2 * top + high, np.float32(-1e-9))
    shift = np.clip((low - high) / (2 * bend), -0.5, 0.5)
    height = top - (low - high) * shift / 4
    strength = np.where((top >= low) & (top >= high), height - constants.cost, np.float32(-1))
    row, best = np.arange(n_frames), strength.argmax(axis=1)
    f0_hz = np.float32(settings.sample_rate / _DECIMATION) / (constants.lags.start + best + shift[row, best])
    # What is not a number stays none, so that it shows.
    found = height[row, best]
    voicing = np.where((strength[row, best] > -1) | np.isnan(found), np.clip(found, 0, 1), 0)
    return f0_hz.astype(np.float32), voicing.astype(np.float32)


def _decimate(samples: npt.NDArray[np.float32], taps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return every fourth sample of what is low-passed, by the four phases of the filter, shape (n_samples // 4,)."""
    half = _N_TAPS // 2
    n_slow = len(samples) // _DECIMATION
    padded = np.zeros((n_slow + _N_TAPS // _DECIMATION) * _DECIMATION, np.float32)
    padded[half : half + len(samples)] = samples[: len(padded) - half]
    phases = padded.reshape(-1, _DECIMATION)
    return np.asarray(
        sum(np.convolve(phases[:, number], taps[number], "valid") for number in range(_DECIMATION)), np.float32
    )[:n_slow]


def _frames(samples: npt.NDArray[np.float32], n_frames: int, length: int, hop: int) -> npt.NDArray[np.float32]:
    """Return overlapping frames, shape (n_frames, length), of the same memory."""
    stride = samples.itemsize
    return np.ndarray((n_frames, length), np.float32, samples, 0, (hop * stride, stride))


@lru_cache(maxsize=1)
def _constants(settings: SequenceSettings) -> _Constants:
    with np.load(io.BytesIO(resources.files(__package__).joinpath(FILTERS).read_bytes())) as kept:
        window, mel = kept["window"], kept["mel"]
    # Windowed sinc, a tenth below half of the slower rate.
    at = np.arange(_N_TAPS) - (_N_TAPS - 1) / 2
    taps = np.sinc(0.9 * at / _DECIMATION) * np.hamming(_N_TAPS)
    taps /= taps.sum()
    pitch_window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_PITCH_WINDOW) / _PITCH_WINDOW)
    fading = np.fft.irfft(np.abs(np.fft.rfft(pitch_window)) ** 2)
    rate = settings.sample_rate / _DECIMATION
    lags = slice(int(rate / settings.f0_max_hz), int(rate / settings.f0_min_hz) + 1)
    return _Constants(
        window=window,
        bands=cut_bands(mel),
        # A convolution turns its second argument round.
        taps=np.ascontiguousarray(taps.reshape(-1, _DECIMATION).T[:, ::-1], np.float32),
        pitch_window=pitch_window.astype(np.float32),
        fading=(fading / fading[0])[: lags.stop + 1].astype(np.float32),
        lags=lags,
        cost=(_OCTAVE_COST * np.log2(np.arange(lags.start, lags.stop) / lags.start)).astype(np.float32),
    )


def compute_filters(settings: SequenceSettings) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return librosa's window, shape (win_length,), and mel filters, shape (n_mels, 1 + n_fft // 2), by librosa."""
    import librosa.filters

    window = librosa.filters.get_window("hann", settings.win_length, fftbins=True).astype(np.float32)
    mel = librosa.filters.mel(
        sr=settings.sample_rate, n_fft=settings.n_fft, n_mels=settings.n_mels, fmin=settings.fmin_hz
    )
    return window, mel.astype(np.float32)


def read_sequences(rows: pa.Table) -> Iterator[Sequence]:
    """Yield the sequences of rows that all have one."""
    for batch in rows.select(["logmel", "f0_hz", "voicing"]).to_batches():
        bounds = np.asarray(batch["f0_hz"].offsets)
        flat = [np.asarray(flatten(batch[name])) for name in batch.schema.names]
        n_mels = len(flat[0]) // max(1, len(flat[1]))
        logmel = flat[0].reshape(-1, n_mels) if n_mels else flat[0].reshape(0, 1)
        for start, end in pairwise((bounds - bounds[0]).tolist()):
            yield Sequence(logmel[start:end], flat[1][start:end], flat[2][start:end])


def _level(rows: pa.Table) -> npt.NDArray[np.float32]:
    return np.array([energy_of(one.logmel.astype(np.float32)).mean() for one in read_sequences(rows)], np.float32)


RECIPE = Recipe(
    option="sequence",
    settings=SequenceSettings,
    fields=lambda settings: [
        pa.field("logmel", pa.list_(pa.list_(pa.float16(), settings.n_mels))),
        pa.field("f0_hz", pa.list_(pa.float16())),
        pa.field("voicing", pa.list_(pa.float16())),
    ],
    compute=compute_sequence,
    prepare=lambda rows, settings: [prepare_sequence(one) for one in read_sequences(rows)],
    input_shape=lambda settings: (None, N_INPUTS),
    level=lambda rows, settings: _level(rows),
    network="sequence-bilstm",
    measures="tracks",
    epochs=20,
    batch_size=32,
    describe=lambda settings: (
        f"log-mel bands, fundamental frequency and voicing by frame at {settings.sample_rate:,} Hz, of"
    ),
    sees_every_sample=lambda settings: True,
)


if __name__ == "__main__":
    window, mel = compute_filters(SequenceSettings())
    np.savez_compressed(Path(__file__).with_name(FILTERS), window=window, mel=mel)
