"""Memory that a thread computes in. It is kept between recordings, because new memory costs more than the sums in it."""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt

# Larger arrays, e.g. for a segment of minutes, are not kept.
_KEPT_VALUES = 2**20
_local = threading.local()


def scratch(name: str, *shape: int) -> npt.NDArray[np.float32]:
    """Return an array with any values. The next call with this name in this thread returns the same memory."""
    n_values = math.prod(shape)
    if n_values > _KEPT_VALUES:
        return np.empty(shape, np.float32)
    kept: dict[str, npt.NDArray[np.float32]] = _local.__dict__
    if name not in kept or len(kept[name]) < n_values:
        kept[name] = np.empty(n_values, np.float32)
    return kept[name][:n_values].reshape(shape)
