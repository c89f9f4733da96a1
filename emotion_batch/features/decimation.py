"""Filter samples and keep every n-th of them, as a product of matrices: a third of what a general resampler costs.

A row of the product has sixteen outputs. Each is the sum of the same terms in the same order wherever it stands in its row, because
the other weights of its column are 0. So the outputs for some samples do not depend on where a stretch of a recording begins.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Outputs a row. With a whole number of sixteens, a row of a product does not depend on how many rows there are.
_N_OUTPUTS = 16
# Each thread keeps memory to compute in, because new memory costs more than the sums in it; larger arrays are not kept.
_KEPT_VALUES = 2**20
_local = threading.local()


@dataclass(frozen=True)
class Decimator:
    """A filter and the factor by which it lowers the rate.

    `weights` has the shape (n_samples, 16): the samples that a row of outputs depends on. The first output is centred on the first
    sample, from which `n_before` taps reach back.
    """

    factor: int
    weights: npt.NDArray[np.float32]
    n_before: int


def design(factor: int, *, taps_a_phase: int, cutoff: float, beta: float) -> Decimator:
    """Return a low-pass filter: a sinc in Kaiser's window with `beta`, `taps_a_phase` taps for each sample of a step.

    `cutoff`, where the power is a quarter, is a share of half the rate that comes out.
    """
    n_taps = taps_a_phase * factor
    at = np.arange(n_taps) - (n_taps - 1) / 2
    taps = np.sinc(cutoff * at / factor) * np.kaiser(n_taps, beta)
    taps /= taps.sum()
    weights = np.zeros(((_N_OUTPUTS - 1) * factor + n_taps, _N_OUTPUTS), np.float32)
    for number in range(_N_OUTPUTS):
        weights[number * factor : number * factor + n_taps, number] = taps
    return Decimator(factor, weights, (n_taps - factor) // 2)


def decimate(samples: npt.NDArray[np.float32], by: Decimator) -> npt.NDArray[np.float32]:
    """Return every `factor`-th of the filtered samples, shape (ceil(n_samples / factor),); silence is around them."""
    n_outputs = -(-len(samples) // by.factor)
    # There are at least two rows, because a product of one row differs in the last digits.
    n_rows, step, width = max(2, -(-n_outputs // _N_OUTPUTS)), _N_OUTPUTS * by.factor, len(by.weights)
    laid = scratch("decimate", (n_rows - 1) * step + width)
    end = by.n_before + min(len(samples), len(laid) - by.n_before)
    laid[: by.n_before], laid[end:] = 0, 0
    laid[by.n_before : end] = samples[: end - by.n_before]
    # The rows are copied, because they overlap and BLAS does not accept that.
    rows = scratch("decimate rows", n_rows, width)
    rows[:] = np.ndarray((n_rows, width), np.float32, laid, 0, (step * laid.itemsize, laid.itemsize))
    return (rows @ by.weights).reshape(-1)[:n_outputs]


def scratch(name: str, *shape: int) -> npt.NDArray[np.float32]:
    """Return an array with any values. The next call with this name in this thread returns the same memory."""
    n_values = math.prod(shape)
    if n_values > _KEPT_VALUES:
        return np.empty(shape, np.float32)
    kept: dict[str, npt.NDArray[np.float32]] = _local.__dict__
    if name not in kept or len(kept[name]) < n_values:
        kept[name] = np.empty(n_values, np.float32)
    return kept[name][:n_values].reshape(shape)
