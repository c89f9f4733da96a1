"""What a recipe is, and how its features lie in the columns of a table.

The features of a row are a tuple of arrays, one for each column. A column is a list of numbers by frame, a list of vectors by
frame, or one vector; all columns of a recipe that are by frame have the same number of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from emotion_batch.settings import AnySettings

Settings = TypeVar("Settings", bound=AnySettings)
Values = tuple[npt.NDArray[Any], ...]
# Networks read this of some rows: vectors, shape (n_rows, n_inputs), or an array of shape (n_frames, n_inputs) a row.
Inputs = npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]


class Frames(NamedTuple):
    """How a stretch takes frames from the one before if they overlap; rates are in Hz.

    Attributes
    ----------
    count_frames
        Returns how many frames a stretch of so many samples has; 0 if they cannot be computed one by one.
    find_shift
        Returns by how many frames a stretch that begins so many samples later is shifted; None if its frames lie elsewhere.
    reach
        Returns how many of the first and of the last frames of a stretch depend on where it begins and ends.
    """

    count_frames: Callable[[int, int, Any], int]
    find_shift: Callable[[int, int, Any], int | None]
    reach: Callable[[int, Any], int]


@dataclass(frozen=True)
class Recipe(Generic[Settings]):
    """All that depends on how samples become numbers; the network and the measures are only named.

    Attributes
    ----------
    option
        Its name for ``--recipe``.
    settings
        Class of its settings; the name in its ``recipe`` is in every table and bundle.
    fields
        Returns the columns that hold its features; null in rows without.
    compute
        Returns the features of a stretch, shape (n_samples,), and its rate in Hz; not necessarily finite. If the recipe has
        `frames`, a slice may say which of them are known and left out.
    read
        Yields the features of rows, which all have some, as `prepare`, `level` and the measures read them. It yields some rows at a
        time, so that they stay in a core's cache. If there are no rows, it yields once, something without rows.
    prepare
        Returns what its network reads of some rows.
    input_shape
        Returns the shape of what its network reads of a row; None for the number of frames.
    level
        Returns the level of some rows, in a unit of its own, shape (n_rows,).
    network
        Name of its network in `training.networks`, and of its architecture in a bundle's card.
    measures
        Name of its measures in `inference.domain`.
    epochs, batch_size
        The number of epochs and the rows at a time that its network was tried with.
    describe
        Returns a description of its features for a person, which "of each recording" may follow.
    sees_every_sample
        Returns whether a sample that is not finite always shows in the features. If not, the samples are checked too.
    frames
        How overlapping stretches share frames; None if each is computed by itself.
    """

    option: str
    settings: type[Settings]
    fields: Callable[[Settings], list[pa.Field]]
    compute: Callable[..., Values]
    read: Callable[[pa.Table, Settings], Iterable[Any]]
    prepare: Callable[[Any], Inputs]
    input_shape: Callable[[Settings], tuple[int | None, ...]]
    level: Callable[[Any], npt.NDArray[np.float32]]
    network: str
    measures: str
    epochs: int
    batch_size: int
    describe: Callable[[Settings], str]
    sees_every_sample: Callable[[Settings], bool] = lambda settings: False
    frames: Frames | None = None


def flatten(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the numbers in a column of lists, or of lists of lists, as one array; other columns as they are."""
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    return flat


def read_matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return a column of vectors, in rows that all have one, as a matrix of shape (n_rows, length)."""
    return np.asarray(flatten(column), np.float32).reshape(-1, column.type.list_size)


def lay_out(kind: pa.DataType) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the type of the numbers in a column, and the shape of a row in it; -1 by frame."""
    shape = []
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size if pa.types.is_fixed_size_list(kind) else -1)
        kind = kind.value_type
    return np.dtype(kind.to_pandas_dtype()), tuple(shape)


def iterate_rows(rows: pa.Table, fields: list[pa.Field]) -> Iterator[Values]:
    """Yield the features of rows that all have some, in columns of these fields."""
    for batch in rows.select([field.name for field in fields]).to_batches():
        columns = []
        for column, field in zip(batch.columns, fields, strict=True):
            _, shape = lay_out(field.type)
            numbers = np.asarray(flatten(column)).reshape(-1, *(length for length in shape if length != -1))
            if -1 in shape:
                bounds = np.asarray(column.offsets)
                columns.append([numbers[start:end] for start, end in pairwise((bounds - bounds[0]).tolist())])
            else:
                columns.append(list(numbers))
        yield from zip(*columns, strict=True)
