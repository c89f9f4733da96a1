"""Rows on their way into a network: on disk, in no file that anybody sees, so that ten million train in bounded memory."""

from __future__ import annotations

import os
import tempfile
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from emotion_batch.features import recipes
from emotion_batch.features.recipes import Values
from emotion_batch.settings import AnySettings, FeatureSettings


class Spool:
    """Features of rows, in the order in which they were added; gone with the block.

    Parameters
    ----------
    settings
        Whose features they are.
    """

    def __init__(self, settings: AnySettings) -> None:
        self._settings = settings
        # Without a name from the beginning: whatever ends the process, nothing is left of it.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed by the block
        self._n_bytes = 0
        self._starts: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._bounds: npt.NDArray[np.int64] | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, rows: pa.Table) -> None:
        """Add rows of a feature table that all have features."""
        if isinstance(self._settings, FeatureSettings):
            data = recipes.read_vectors(rows, self._settings)
            self._file.write(data.tobytes())
            ends = np.arange(1, len(data) + 1, dtype=np.int64) * (4 * self._settings.n_mfcc)
        else:
            encoded = [recipes.encode(one) for one in recipes.read_sequences(rows)]
            self._file.writelines(encoded)
            ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        if len(ends):
            self._starts.append(ends + self._n_bytes)
            self._n_bytes = int(self._starts[-1][-1])
        self._bounds = None

    def read(self, rows: npt.NDArray[np.int64]) -> list[Values]:
        """Return the features of rows by their numbers, in the order in which these are given."""
        if self._bounds is None:
            self._file.flush()
            self._bounds = np.concatenate(self._starts)
            self._starts = [self._bounds]
        found = []
        for start, end in zip(self._bounds[rows].tolist(), self._bounds[rows + 1].tolist(), strict=True):
            values = recipes.decode(os.pread(self._file.fileno(), end - start, start), self._settings)
            # Of a disk that has lost what was written to it there is nothing to go on with.
            assert values is not None  # noqa: S101
            found.append(values)
        return found
