"""What each recipe computes: features of samples, columns of a table, and inputs of a network.

The features of a row are a tuple of arrays, one for each column. How a network and a domain differ by recipe stands in
`training.networks` and `inference.domain`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from emotion_batch.features import logmel_pitch, mfcc
from emotion_batch.settings import AnySettings, FeatureSettings

Values = tuple[npt.NDArray[np.floating], ...]
# What networks read of some rows: vectors, shape (n_rows, n_mfcc), or an array of shape (n_frames, n_inputs) a row.
Inputs = npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]


def fields(settings: AnySettings) -> list[pa.Field]:
    """Return the columns that hold a recipe's features; null in rows without."""
    if isinstance(settings, FeatureSettings):
        return [pa.field("mfcc", pa.list_(pa.float32(), settings.n_mfcc))]
    return [
        pa.field("logmel", pa.list_(pa.list_(pa.float16(), settings.n_mels))),
        pa.field("f0_hz", pa.list_(pa.float16())),
        pa.field("voicing", pa.list_(pa.float16())),
    ]


def names(settings: AnySettings) -> list[str]:
    """Return the names of the columns that hold a recipe's features."""
    return [field.name for field in fields(settings)]


def compute(samples: npt.NDArray[np.float32], settings: AnySettings) -> Values:
    """Return the features of a stretch, shape (n_samples,), at the settings' sample rate; not necessarily finite."""
    if isinstance(settings, FeatureSettings):
        return (mfcc.mean_mfcc(samples, settings),)
    return logmel_pitch.compute_sequence(samples, settings)


def sees_every_sample(settings: AnySettings) -> bool:
    """Return whether a sample that is not finite always shows in the features."""
    return not isinstance(settings, FeatureSettings) or settings.hop_length <= settings.n_fft


class Columns:
    """Features on their way into columns: side by side, for as arrays of their own they would weigh double."""

    def __init__(self, settings: AnySettings) -> None:
        self._fields = fields(settings)
        self._values = [bytearray() for _ in self._fields]
        self._lengths: list[int] = []
        self._is_missing = bytearray()
        self._nothing = bytes(4 * settings.n_mfcc) if isinstance(settings, FeatureSettings) else b""

    def add(self, values: Values | None) -> None:
        """Add a row's features, or none."""
        self._is_missing.append(values is None)
        if values is None:
            self._lengths.append(0)
            # A list of fixed size has its place whether or not there is one.
            self._values[0] += self._nothing
            return
        self._lengths.append(len(values[0]))
        for column, value in zip(self._values, values, strict=True):
            column += value.tobytes()

    def to_arrays(self) -> list[pa.Array]:
        """Return the columns, one value a row."""
        mask = pa.array(np.frombuffer(self._is_missing, np.bool_))
        offsets = pa.array(np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]), pa.int32())
        return [
            _array(values, field.type, offsets, mask) for field, values in zip(self._fields, self._values, strict=True)
        ]


def _array(values: bytearray, kind: pa.DataType, offsets: pa.Array, mask: pa.Array) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_numbers(values, kind.value_type), type=kind, mask=mask)
    inner = kind.value_type
    items = (
        pa.FixedSizeListArray.from_arrays(_numbers(values, inner.value_type), type=inner)
        if pa.types.is_fixed_size_list(inner)
        else _numbers(values, inner)
    )
    return pa.ListArray.from_arrays(offsets, items, type=kind, mask=mask)


def _numbers(values: bytearray, kind: pa.DataType) -> pa.Array:
    return pa.array(np.frombuffer(values, kind.to_pandas_dtype()), kind)


def encode(values: Values | None) -> bytes:
    """Return a row's features as bytes, for another process."""
    return b"" if values is None else b"".join(value.tobytes() for value in values)


def decode(data: bytes, settings: AnySettings) -> Values | None:
    """Return the features that `encode` gave, without believing whoever sent them."""
    if not data:
        return None
    if isinstance(settings, FeatureSettings):
        return (np.frombuffer(data, np.float32),)
    n_frames, rest = divmod(len(data), 2 * (settings.n_mels + 2))
    if rest:
        raise ValueError(f"{len(data)} bytes, which are no frames")
    flat = np.frombuffer(data, np.float16)
    ends = [0, settings.n_mels * n_frames, (settings.n_mels + 1) * n_frames, (settings.n_mels + 2) * n_frames]
    logmel, f0_hz, voicing = (flat[start:end] for start, end in pairwise(ends))
    return logmel_pitch.Sequence(logmel.reshape(n_frames, settings.n_mels), f0_hz, voicing)


def read_vectors(rows: pa.Table, settings: FeatureSettings) -> npt.NDArray[np.float32]:
    """Return the vectors of rows that all have one, shape (n_rows, n_mfcc)."""
    flat = rows["mfcc"].combine_chunks().flatten()
    return np.asarray(flat, np.float32).reshape(-1, settings.n_mfcc)


def read_sequences(rows: pa.Table) -> Iterator[logmel_pitch.Sequence]:
    """Yield the sequences of rows that all have one."""
    for batch in rows.select(["logmel", "f0_hz", "voicing"]).to_batches():
        bounds = np.asarray(batch["f0_hz"].offsets)
        flat = [np.asarray(flatten(batch[name])) for name in batch.schema.names]
        n_mels = len(flat[0]) // max(1, len(flat[1]))
        logmel = flat[0].reshape(-1, n_mels) if n_mels else flat[0].reshape(0, 1)
        for start, end in pairwise((bounds - bounds[0]).tolist()):
            yield logmel_pitch.Sequence(logmel[start:end], flat[1][start:end], flat[2][start:end])


def level(rows: pa.Table, settings: AnySettings) -> npt.NDArray[np.float32]:
    """Return the level of rows that all have features, in a unit of the recipe's own, shape (n_rows,)."""
    if isinstance(settings, FeatureSettings):
        return read_vectors(rows, settings)[:, 0]
    return np.array(
        [logmel_pitch.energy_of(one.logmel.astype(np.float32)).mean() for one in read_sequences(rows)], np.float32
    )


def to_table(values: Iterable[Values], settings: AnySettings) -> pa.Table:
    """Return features as the columns of a table, a row each."""
    columns = Columns(settings)
    for one in values:
        columns.add(one)
    return pa.table(columns.to_arrays(), schema=pa.schema(fields(settings)))


def flatten(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the numbers in a column of lists, or of lists of lists, as one array; other columns as they are."""
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    return flat


def prepare(rows: pa.Table, settings: AnySettings) -> Inputs:
    """Return what a network reads of rows that all have features."""
    if isinstance(settings, FeatureSettings):
        return read_vectors(rows, settings)
    return [logmel_pitch.prepare_sequence(one) for one in read_sequences(rows)]
