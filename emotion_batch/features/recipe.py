"""What a recipe is, and how its features lie in the columns of a table.

The features of a row are a tuple of arrays, one for each column. A column is a list of numbers by frame, a list of vectors by
frame, or one vector; all columns of a recipe that are by frame have the same number of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from emotion_batch.settings import AnySettings

Settings = TypeVar("Settings", bound=AnySettings)
Values = tuple[npt.NDArray[np.floating], ...]
# What networks read of some rows: vectors, shape (n_rows, n_inputs), or an array of shape (n_frames, n_inputs) a row.
Inputs = npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Recipe(Generic[Settings]):
    """All that depends on how samples become numbers, apart from the network and the measures that it names.

    Attributes
    ----------
    option
        What ``--recipe`` calls it.
    settings
        Class of its settings; the name in its ``recipe`` is in every table and bundle.
    fields
        Returns the columns that hold its features; null in rows without.
    compute
        Returns the features of a stretch, shape (n_samples,), at the settings' sample rate; not necessarily finite.
    prepare
        Returns what its network reads of rows that all have features.
    input_shape
        Returns the shape of what its network reads of a row; None for the number of frames.
    level
        Returns the level of rows that all have features, in a unit of its own, shape (n_rows,).
    network
        Name of its network in `training.networks`, and of its architecture in a bundle's card.
    measures
        Name of its measures in `inference.domain`.
    epochs, batch_size
        How long its network was tried with, and with how many rows at a time.
    describe
        Returns what its features are, for a person, up to "of each recording".
    sees_every_sample
        Returns whether a sample that is not finite always shows in the features. If not, the samples are looked at as well.
    """

    option: str
    settings: type[Settings]
    fields: Callable[[Settings], list[pa.Field]]
    compute: Callable[[npt.NDArray[np.float32], Settings], Values]
    prepare: Callable[[pa.Table, Settings], Inputs]
    input_shape: Callable[[Settings], tuple[int | None, ...]]
    level: Callable[[pa.Table, Settings], npt.NDArray[np.float32]]
    network: str
    measures: str
    epochs: int
    batch_size: int
    describe: Callable[[Settings], str]
    sees_every_sample: Callable[[Settings], bool] = lambda settings: False


def flatten(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the numbers in a column of lists, or of lists of lists, as one array; other columns as they are."""
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    return flat


def read_matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return a column of vectors, in rows that all have one, as a matrix of shape (n_rows, length)."""
    return np.asarray(flatten(column), np.float32).reshape(-1, column.type.list_size)
