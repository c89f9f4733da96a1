"""Filter samples and keep every n-th of them, as a product of matrices: a third of what a general resampler costs.

A row of the product has up to sixteen outputs. Each is the sum of the same terms in the same order wherever it stands in its row,
because the other weights of its column are 0. So the outputs for some samples do not depend on where a stretch of a recording begins.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

# Columns of a product, and rows that are multiplied together: see `multiply`. OpenBLAS adds up to so many terms one after the other, if
# they are a whole number of eights: it takes more in two parts, and a rest by itself.
_N_COLUMNS, _N_TOGETHER, _N_TERMS, _N_UNROLLED = 16, 8, 320, 8
# Each thread keeps memory to compute in, because new memory costs more than the sums in it; larger arrays are not kept.
_KEPT_VALUES = 2**20
_local = threading.local()


@dataclass(frozen=True)
class Decimator:
    """A filter and the factor by which it lowers the rate.

    `weights` has the shape (n_samples, 16): the samples that a row of `n_outputs` depends on. The first output is centred on the first
    sample, from which `n_before` taps reach back.
    """

    factor: int
    n_outputs: int
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
    n_outputs = max(1, min(_N_COLUMNS, (_N_TERMS - n_taps) // factor + 1))
    n_samples = (n_outputs - 1) * factor + n_taps
    weights = np.zeros((n_samples + -n_samples % _N_UNROLLED, _N_COLUMNS), np.float32)
    for number in range(n_outputs):
        weights[number * factor : number * factor + n_taps, number] = taps
    return Decimator(factor, n_outputs, weights, (n_taps - factor) // 2)


def decimate(samples: npt.NDArray[np.float32], by: Decimator) -> npt.NDArray[np.float32]:
    """Return every `factor`-th of the filtered samples, shape (ceil(n_samples / factor),); silence is around them."""
    n_outputs = -(-len(samples) // by.factor)
    n_rows, step, width = -(-n_outputs // by.n_outputs), by.n_outputs * by.factor, len(by.weights)
    laid = scratch("decimate", (n_rows - 1) * step + width)
    end = by.n_before + min(len(samples), len(laid) - by.n_before)
    laid[: by.n_before], laid[end:] = 0, 0
    laid[by.n_before : end] = samples[: end - by.n_before]
    # The rows are copied, because they overlap and BLAS does not accept that.
    rows = scratch("decimate rows", n_rows, width)
    rows[:] = np.ndarray((n_rows, width), np.float32, laid, 0, (step * laid.itemsize, laid.itemsize))
    product = multiply(rows, by.weights, np.empty((n_rows, _N_COLUMNS), np.float32))
    return product[:, : by.n_outputs].reshape(-1)[:n_outputs]


def multiply(
    rows: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the matrix product of rows and a whole number of sixteen columns in `out`, shape (n_rows, n_columns).

    A row of it is the same to the bit wherever it stands, also where that costs a third more.
    """
    n_together = len(rows) if _adds_alike() and len(rows) > 1 else _N_TOGETHER
    n_whole = len(rows) // n_together * n_together
    shape = (-1, n_together)
    np.matmul(rows[:n_whole].reshape(*shape, len(weights)), weights, out=out[:n_whole].reshape(*shape, out.shape[1]))
    if n_whole < len(rows):
        # A product of fewer rows differs in the last digits.
        last = np.zeros((n_together, len(weights)), np.float32)
        last[: len(rows) - n_whole] = rows[n_whole:]
        out[n_whole:] = (last @ weights)[: len(rows) - n_whole]
    return out


@cache
def _adds_alike() -> bool:
    """Return whether BLAS adds up all rows of a product in the same order.

    OpenBLAS does not on processors with AVX2 and without AVX-512: there rows 7 to 12 of each twelve differ, if there are so many.
    """
    row = np.sin(np.arange(64, dtype=np.float32))
    product = np.repeat(row[None], 48, axis=0) @ np.repeat(row[::-1, None], _N_COLUMNS, axis=1)
    return bool((product == product[0]).all())


def scratch(name: str, *shape: int) -> npt.NDArray[np.float32]:
    """Return an array with any values. The next call with this name in this thread returns the same memory."""
    n_values = math.prod(shape)
    if n_values > _KEPT_VALUES:
        return np.empty(shape, np.float32)
    kept: dict[str, npt.NDArray[np.float32]] = _local.__dict__
    if name not in kept or len(kept[name]) < n_values:
        kept[name] = np.empty(n_values, np.float32)
    return kept[name][:n_values].reshape(shape)
