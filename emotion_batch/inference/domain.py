"""Decide whether a row is speech, and whether it is like the rows that the model learnt from.

Both look at a summary of the row that is independent of its level. `judge_speech` asks a detector that is the same for every
model. A `Domain` compares it with the rows that were learnt, and so flags new voices, rooms and languages as well as noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy

from emotion_batch.errors import UsageError
from emotion_batch.features.logmel_pitch import Heard
from emotion_batch.features.recipes import read, recipe_of
from emotion_batch.inference.speech import load_detector, read_numbers
from emotion_batch.libraries import find_plugin
from emotion_batch.settings import AnySettings

Floats = npt.NDArray[np.floating]
Booleans = npt.NDArray[np.bool_]
# A learnt row farther out than this, in standard deviations, counts as this far in the scatter.
CLIP = 4.0
# Ranges of mean MFCC, an octave or less each, whose sizes are part of a summary. Noise has a smooth spectrum, so it has
# almost nothing in all higher ranges together. Coefficient 1 is number 0.
_MFCC_RANGES = ((1, 4), (4, 8), (8, 13), (13, 20), (20, 28), (28, 39))
# Added to a size before its logarithm, in MFCC's decibels, so that smaller sizes count as nothing.
_LEAST_SIZE = 1e-3
# Everything below is in nepers of power (1 neper is 4.3 dB). A frame counts fully down to the first below the loudest
# frame, and not at all from the second on. In between it counts gradually, so that rounding moves no frame in or out.
_LOUD, _FAINT = 3.0, 5.0
# Cells farther below their frame count as this far, and so do frames below the loudest frame. Then speech 40 dB below
# that of TESS stays above the features' floor, except for the softest, whose share of loud frames grows.
_CELL_RANGE, _FRAME_RANGE = 8.0, 7.0
# Between these a frame becomes voiced; `logmel_pitch` has the middle.
_UNVOICED, _VOICED = 0.3, 0.5
# F0 in Hz if there is no voice, with the weight of one frame. It is between those of men and women.
_NO_PITCH_HZ = 160.0
# F0 counts as half held if its logarithm moves this far in 10 ms: a thirtieth of a semitone.
_HELD = 0.002
_N_CEPSTRA, _N_DEVIATIONS = 20, 8
_TRACKS = (
    *("loud_share", "voiced_share", "pitch", "pitch_deviation", "held_share"),
    *("depth", "depth_deviation", "change", "bands", "spectral_deviation"),
)


class Measures(NamedTuple):
    """How the rows of a recipe are compared, independent of their level.

    Attributes
    ----------
    summarise
        Returns a summary of each row that the recipe's `read` gives, shape (n_rows, n_dims); it depends on the row alone.
    judge_speech
        Returns which rows are speech by their summaries, shape (n_rows,); None if they do not tell.
    """

    summarise: Callable[[Any], npt.NDArray[np.float32]]
    judge_speech: Callable[[Floats], Booleans] | None = None


def summarise_rows(rows: pa.Table, settings: AnySettings) -> npt.NDArray[np.float32]:
    """Return the summary of each row that has features, shape (n_rows, n_dims)."""
    return np.concatenate([summarise(some, settings) for some in read(rows, settings)])


def summarise(some: Any, settings: AnySettings) -> npt.NDArray[np.float32]:
    """Return the summaries of some rows as the recipe reads them, shape (n_rows, n_dims)."""
    return _measures(settings).summarise(some)


def judge_speech(summaries: Floats, settings: AnySettings) -> Booleans | None:
    """Return which rows are speech by their summaries, shape (n_rows,); None if these do not tell."""
    judge = _measures(settings).judge_speech
    return None if judge is None else judge(summaries)


def _measures(settings: AnySettings) -> Measures:
    name = recipe_of(settings).measures
    found = _MEASURES.get(name) or find_plugin("emotion_batch.measures", name, Measures)
    if found is None:
        raise UsageError(f"measures {name!r} of the recipe {settings.recipe!r}: no installed package registers them")
    return found


def _summarise_mfcc(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return mean MFCC number 1 to 20 (0 is the level), and the size of those in each of six ranges."""
    shape = matrix[:, 1:]
    ranges = [shape[:, slice(*one)] for one in _MFCC_RANGES if one[0] < shape.shape[1]]
    # The first coefficients are enough. With all 39, the many usual ones outvoted the sizes.
    sizes = [np.log(_LEAST_SIZE + np.sqrt(np.mean(one * one, axis=1))) for one in ranges]
    return np.column_stack([shape[:, :_N_CEPSTRA], *sizes]).astype(np.float32)


def _summarise_tracks(heard: list[Heard]) -> npt.NDArray[np.float32]:
    """Return cepstra 1 to 20 over frames near the loudest, how much the first 8 vary, and the tracks.

    The tracks are the shares that are loud and voiced; mean and deviation of F0, and how far it is held; the depth of the
    energy; how fast the spectrum changes, how broad it is, and how it varies.
    """
    measured = [_measure(one) for one in heard]
    return np.array(measured, np.float32).reshape(-1, _N_CEPSTRA + _N_DEVIATIONS + len(_TRACKS))


# The keys are the recipes' names for them. A mean over frames does not show movement, so it cannot tell speech.
_MEASURES = {
    "mfcc": Measures(_summarise_mfcc),
    "tracks": Measures(_summarise_tracks, lambda summaries: load_detector().is_speech(summaries)),
}


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the rows lie that a model learnt from; ValueError if the arrays do not fit each other, or a number is out of range.

    Their summaries lie around the centres, shape (n_centres, n_dims). Multiplied by `whitening`, shape (n_dims, n_dims), their
    differences from the nearest centre are alike in all directions. `threshold` is the distance up to which a row is in the
    domain: the 99th percentile of held-out rows (recordings, or speakers and corpora in turn). `n_learnt` rows give centres
    and whitening, and `n_held_out` the threshold. `flagged` is the share of rows beyond it, by kind: ``held_out``,
    ``new_voices``.
    """

    centres: npt.NDArray[np.float32]
    whitening: npt.NDArray[np.float32]
    threshold: float
    n_learnt: int
    n_held_out: int
    flagged: Mapping[str, float]

    def __post_init__(self) -> None:
        n_dims = self.centres.shape[-1] if self.centres.ndim == 2 else 0
        if not self.centres.size or self.whitening.shape != (n_dims, n_dims):
            raise ValueError(
                f"domain: centres must have the shape (n_centres, n_dims) and the whitening matrix (n_dims, n_dims): "
                f"{self.centres.shape} and {self.whitening.shape}"
            )
        if not (np.isfinite(self.centres).all() and np.isfinite(self.whitening).all()):
            raise ValueError("domain: centres and whitening matrix must be finite")
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"domain: threshold must be above 0: {self.threshold!r}")
        if min(self.n_learnt, self.n_held_out) < 1:
            raise ValueError(f"domain: counts must be at least 1: {self.n_learnt} and {self.n_held_out}")
        for name, share in self.flagged.items():
            if not 0 <= share <= 1:
                raise ValueError(f"domain: the share of {name!r} must be from 0 to 1: {share!r}")

    def distances(self, summaries: Floats) -> npt.NDArray[np.float32]:
        """Return the Mahalanobis distance of rows to the nearest centre, divided by the root of n_dims, shape (n_rows,).

        It is about 1 for rows of the training. Raises ValueError if summaries have another number of dimensions.
        """
        n_dims = self.centres.shape[1]
        if summaries.ndim != 2 or summaries.shape[1] != n_dims:
            raise ValueError(
                f"domain: summaries must have the shape (n_rows, {n_dims}): {summaries.shape}; use the settings that it was "
                "fitted with"
            )
        # This is not a product of matrices, because its last digits would depend on the number of rows.
        whitening = self.whitening.astype(np.float64)
        rows, centres = (np.einsum("rd,de->re", one.astype(np.float64), whitening) for one in (summaries, self.centres))
        nearest = np.full(len(rows), np.inf)
        for centre in centres:
            np.minimum(nearest, np.mean(np.square(rows - centre), axis=1), out=nearest)
        return np.asarray(np.sqrt(nearest), np.float32)

    def contains(self, summaries: Floats) -> Booleans:
        """Return which rows are no farther than the threshold, shape (n_rows,)."""
        return np.asarray(self.distances(summaries) <= np.float32(self.threshold), np.bool_)

    def to_dict(self) -> dict[str, Any]:
        """Return the domain as JSON holds it."""
        value: dict[str, Any] = msgspec.to_builtins(self, enc_hook=np.ndarray.tolist)
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Domain:
        """Return the domain that `to_dict` gave, after checking it; raise ValueError if it is not one."""
        try:
            return msgspec.convert(value, cls, dec_hook=read_numbers)
        except ValueError as error:
            raise ValueError(f"domain: it is not as a training writes it ({error})") from error


def _measure(one: Heard) -> npt.NDArray[np.float32]:
    """Return cepstra, their deviations, and what `_TRACKS` names, of a segment, shape (n_dims,)."""
    depth = np.minimum(one.energy.max() - one.energy, np.float32(_FRAME_RANGE))
    loud = np.minimum(np.maximum((_FAINT - depth) / (_FAINT - _LOUD), 0), 1)
    weights = loud / loud.sum()
    share = weights / one.power.sum(axis=1) @ one.power
    # The loudness of a frame is subtracted from its cells, so that the rest has no level.
    bands = one.bands - one.energy[:, np.newaxis]
    np.maximum(bands, -_CELL_RANGE, out=bands)
    cepstra = bands @ _cosines(bands.shape[1])
    mean = weights @ cepstra
    # Deviations are taken from the mean, because a difference of squares would change with the level.
    deviations = np.sqrt(weights @ np.square(cepstra - mean))
    both = np.minimum(loud[1:], loud[:-1])
    change = both @ np.abs(cepstra[1:] - cepstra[:-1]).sum(axis=1) / (1 + both.sum())
    entropy = -float(share @ np.log(share + np.float32(1e-9)))
    # The sums are written out, because `mean` and `std` cost more.
    n_frames = np.float32(len(depth))
    depth_mean = depth.sum() / n_frames
    depth_deviation = np.sqrt(np.square(depth - depth_mean).sum() / n_frames)
    tracks = [depth_mean, depth_deviation, change, entropy, math.sqrt(float(deviations @ deviations))]
    return np.concatenate([mean, deviations[:_N_DEVIATIONS], [loud.sum() / n_frames, *_pitch(one, loud), *tracks]])


def _pitch(one: Heard, loud: npt.NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Return the voiced share of the loud frames, mean and deviation of the logarithm of F0, and how far it is held."""
    voiced = loud * np.minimum(np.maximum((one.voicing - _UNVOICED) / (_VOICED - _UNVOICED), 0), 1)
    pitch = np.log(np.maximum(one.f0_hz, np.float32(1))) - np.float32(math.log(_NO_PITCH_HZ))
    n_voiced = 1 + voiced.sum()
    mean = voiced @ pitch / n_voiced
    deviation = math.sqrt(max(0.0, float(voiced @ (pitch * pitch) / n_voiced - mean * mean)))
    both = np.minimum(voiced[1:], voiced[:-1])
    held = both @ (1 / (1 + np.abs(pitch[1:] - pitch[:-1]) / np.float32(_HELD))) / (1 + both.sum())
    return float(voiced.sum() / loud.sum()), float(mean), deviation, float(held)


@lru_cache(maxsize=1)
def _cosines(n_mels: int) -> npt.NDArray[np.float32]:
    """Return the cosines that make cepstra 1 to 20 of bands, shape (n_mels, 20)."""
    return np.ascontiguousarray(scipy.fft.dct(np.eye(n_mels), norm="ortho")[:, 1 : 1 + _N_CEPSTRA], np.float32)
