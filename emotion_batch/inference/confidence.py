"""Compute how sure a label is, from its probabilities: temperature, margin and entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from emotion_batch.errors import UsageError

Floats = npt.NDArray[np.floating[Any]]
# A softmax is never 0, but float32 underflows to 0. Such a probability counts as float32's smallest normal number.
SMALLEST = float(np.finfo(np.float32).tiny)


def apply_temperature(probabilities: Floats, temperature: float) -> npt.NDArray[np.float32]:
    """Return the probabilities that logits divided by a temperature give: ``p ** (1 / T)``, to sum 1 again.

    The order of the labels stays; two that differ in the last digit may become equal, so the label itself is taken from the
    probabilities as the network gave them. A probability of 0 counts as float32's smallest normal number.
    """
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature must be a number above 0: {temperature!r}")
    if temperature == 1:
        return np.array(probabilities, np.float32)
    return np.asarray(scipy.special.softmax(logarithm(probabilities) / temperature, axis=1), np.float32)


def margin(probabilities: Floats) -> npt.NDArray[np.float32]:
    """Return by how much the most probable of two labels or more leads the second, shape (n_rows,), from 0 to 1."""
    ordered = np.partition(probabilities, -2, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2], np.float32)


def entropy(probabilities: Floats) -> npt.NDArray[np.float32]:
    """Return the entropy in nats, shape (n_rows,): 0 if one label has it all, ``log(n_labels)`` if all are alike."""
    nats = -(probabilities * logarithm(probabilities)).sum(axis=1)
    # If one label has it all, rounding gives -0, or less.
    return np.asarray(np.maximum(nats, 0), np.float32)


def logarithm(probabilities: Floats) -> npt.NDArray[np.float64]:
    """Return the logarithms of probabilities; zero counts as the smallest number."""
    return np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))
