"""The recipes, each registered once, and functions that use the recipe of some settings.

An installed package can add a recipe: its entry point of the group ``emotion_batch.recipes`` names the recipe and leads to its
`Recipe`. Only names that are not built in are looked up there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from emotion_batch.errors import UsageError
from emotion_batch.features import logmel_pitch, mfcc
from emotion_batch.features.recipe import Inputs as Inputs
from emotion_batch.features.recipe import Recipe, iterate_rows, lay_out
from emotion_batch.features.recipe import Values as Values
from emotion_batch.features.recipe import flatten as flatten
from emotion_batch.libraries import find_plugin
from emotion_batch.settings import AnySettings

_BUILT_IN: tuple[Recipe[Any], ...] = (mfcc.RECIPE, logmel_pitch.RECIPE)
# Tables and bundles had this name for the recipe `sequence`.
_REPLACED = "logmel-pitch"


def find(name: object) -> Recipe[Any]:
    """Return the recipe that tables and bundles call `name`; raise UsageError if none is installed."""
    if name == _REPLACED:
        raise UsageError(
            "feature settings: the recipe voices has replaced sequence; extract the features again with --recipe voices, and train "
            "the bundle again on them"
        )
    found = next((one for one in _BUILT_IN if one.settings.recipe == name), None) or _find_installed(name)
    if found is None:
        words = " or ".join(repr(one.settings.recipe) for one in _BUILT_IN)
        raise UsageError(
            f"feature settings: recipe must be {words}: {name!r}; use the version of emotion-batch that wrote them, or "
            "install the package that has this recipe"
        )
    return found


def find_option(name: str) -> Recipe[Any]:
    """Return the recipe that ``--recipe`` calls `name`."""
    found = next((one for one in _BUILT_IN if one.option == name), None) or _find_installed(name)
    if found is None:
        words = " or ".join(one.option for one in _BUILT_IN)
        raise UsageError(f"--recipe must be {words}, or a recipe of an installed package: {name}")
    return found


def _find_installed(name: object) -> Recipe[Any] | None:
    found = find_plugin("emotion_batch.recipes", name, Recipe)
    if found is not None and not found.settings.recipe == found.option == name:
        raise UsageError(
            f"recipe {name!r}: its package calls it {found.settings.recipe!r} in one place; repair the package"
        )
    return found


def read_settings(value: Mapping[str, Any]) -> AnySettings:
    """Return the settings that `to_dict` gave; raise UsageError for another recipe or other names."""
    settings: AnySettings = find(value.get("recipe")).settings.from_dict(value)
    return settings


def recipe_of(settings: AnySettings) -> Recipe[Any]:
    """Return the recipe of some settings."""
    return find(settings.recipe)


def fields(settings: AnySettings) -> list[pa.Field]:
    """Return the columns that hold a recipe's features; null in rows without."""
    return recipe_of(settings).fields(settings)


def names(settings: AnySettings) -> list[str]:
    """Return the names of the columns that hold a recipe's features."""
    return [field.name for field in fields(settings)]


def compute(samples: npt.NDArray[np.float32], rate_hz: int, settings: AnySettings) -> Values:
    """Return the features of a stretch, shape (n_samples,); not necessarily finite."""
    return recipe_of(settings).compute(samples, rate_hz, settings)


class Windows:
    """Computes the features of stretches of one recording, in the order of their starts; shared frames only once."""

    def __init__(self, settings: AnySettings) -> None:
        self._settings = settings
        self._recipe = recipe_of(settings)
        self._last: tuple[int, Values] | None = None

    def compute(self, samples: npt.NDArray[np.float32], rate_hz: int, start: int) -> Values:
        """Return the features of a stretch that begins at the sample `start`; they are those of the stretch alone."""
        frames, settings = self._recipe.frames, self._settings
        shift = None
        if frames is not None and self._last is not None and start > self._last[0]:
            shift = frames.find_shift(start - self._last[0], rate_hz, settings)
        if frames is None or shift is None or self._last is None:
            values = self._recipe.compute(samples, rate_hz, settings)
        else:
            last, reach = self._last[1], frames.reach(rate_hz, settings)
            end = min(len(last[0]) - shift, frames.count_frames(len(samples), rate_hz, settings)) - reach
            known = slice(reach, max(reach, end))
            made = self._recipe.compute(samples, rate_hz, settings, known)
            values = tuple(
                np.concatenate([new[: known.start], old[known.start + shift : known.stop + shift], new[known.start :]])
                for new, old in zip(made, last, strict=True)
            )
        # A sample that is not finite also spoils frames without it, so the next stretch must not reuse these.
        self._last = (start, values) if all(np.isfinite(value).all() for value in values) else None
        return values


def read(rows: pa.Table, settings: AnySettings) -> Iterable[Any]:
    """Yield the features of rows, which all have some, as the recipe's `prepare` and measures read them, some rows at a time."""
    return recipe_of(settings).read(rows, settings)


def prepare(rows: pa.Table, settings: AnySettings) -> Inputs:
    """Return what a network reads of rows that all have features."""
    return join([recipe_of(settings).prepare(some) for some in read(rows, settings)])


def join(inputs: Sequence[Inputs]) -> Inputs:
    """Join the inputs of a network for several groups of rows."""
    if isinstance(inputs[0], list):
        return [row for some in inputs for row in some]
    return inputs[0] if len(inputs) == 1 else np.concatenate(inputs)


def level(rows: pa.Table, settings: AnySettings) -> npt.NDArray[np.float32]:
    """Return the level of rows that all have features, in a unit of the recipe's own, shape (n_rows,)."""
    return np.concatenate([recipe_of(settings).level(some) for some in read(rows, settings)])


def encode(values: Values | None) -> bytes:
    """Return a row's features as bytes, for another process."""
    return b"" if values is None else b"".join(value.tobytes() for value in values)


def decode(data: bytes, settings: AnySettings) -> Values | None:
    """Return the features that `encode` gave, without trusting its sender."""
    if not data:
        return None
    layout, a_row, a_frame = _lay_out(settings)
    n_frames = (len(data) - a_row) // a_frame if a_frame else 0
    if n_frames < 0 or a_row + n_frames * a_frame != len(data):
        raise ValueError(f"these {len(data)} bytes are not frames of the recipe {settings.recipe!r}")
    values, at = [], 0
    for kind, shape in layout:
        count = math.prod(shape) if shape[0] >= 0 else -n_frames * math.prod(shape)
        values.append(np.frombuffer(data, kind, count, at).reshape(shape))
        at += values[-1].nbytes
    return tuple(values)


@lru_cache(maxsize=2)
def _lay_out(settings: AnySettings) -> tuple[list[tuple[np.dtype[Any], tuple[int, ...]]], int, int]:
    """Return type and shape (-1 by frame) of a row in each column, and the bytes of a row and of a frame."""
    layout = [lay_out(field.type) for field in fields(settings)]
    sizes = [kind.itemsize * math.prod(shape) for kind, shape in layout]
    return layout, sum(size for size in sizes if size >= 0), -sum(size for size in sizes if size < 0)


def iterate_values(rows: pa.Table, settings: AnySettings) -> Iterator[Values]:
    """Yield the features of rows that all have some."""
    return iterate_rows(rows, fields(settings))


class Columns:
    """Collects features for columns in one piece of memory, because separate arrays would need twice as much."""

    def __init__(self, settings: AnySettings) -> None:
        self._types = [field.type for field in fields(settings)]
        self._values = [bytearray() for _ in self._types]
        # A missing vector still takes its place in the column.
        self._nothing = [
            bytes(kind.list_size * kind.value_type.bit_width // 8) if pa.types.is_fixed_size_list(kind) else b""
            for kind in self._types
        ]
        self._lengths: list[int] = []
        self._is_missing = bytearray()

    def add(self, values: Values | None) -> None:
        """Add a row's features, or none."""
        self._is_missing.append(values is None)
        self._lengths.append(0 if values is None else len(values[0]))
        added = self._nothing if values is None else [value.tobytes() for value in values]
        for column, data in zip(self._values, added, strict=True):
            column += data

    def to_arrays(self) -> list[pa.Array]:
        """Return the columns, one value a row."""
        mask = pa.array(np.frombuffer(self._is_missing, np.bool_))
        offsets = pa.array(np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]), pa.int32())
        return [_array(values, kind, offsets, mask) for values, kind in zip(self._values, self._types, strict=True)]


def _array(values: bytearray, kind: pa.DataType, offsets: pa.Array = None, mask: pa.Array = None) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_array(values, kind.value_type), type=kind, mask=mask)
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(offsets, _array(values, kind.value_type), type=kind, mask=mask)
    return pa.array(np.frombuffer(values, kind.to_pandas_dtype()), kind)


def to_table(values: Iterable[Values], settings: AnySettings) -> pa.Table:
    """Return features as the columns of a table, a row each."""
    columns = Columns(settings)
    for one in values:
        columns.add(one)
    return pa.table(columns.to_arrays(), schema=pa.schema(fields(settings)))
