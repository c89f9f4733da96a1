"""A recipe of an installed package: how far the mean MFCC of the second half of a stretch lie from those of the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from emotion_batch.features.mfcc import mean_mfcc
from emotion_batch.features.recipe import Recipe, read_matrix
from emotion_batch.settings import AnySettings, FeatureSettings


@dataclass(frozen=True)
class ChangeSettings(AnySettings):
    """The notebook's frames and bands, with so many coefficients."""

    recipe: ClassVar[str] = "mfcc-change"

    sample_rate: int = 22_050
    n_changes: int = 12


def compute_change(samples: npt.NDArray[np.float32], settings: ChangeSettings) -> npt.NDArray[np.float32]:
    """Return the change, shape (n_changes,)."""
    half = (len(samples) + 1) // 2
    mfcc = FeatureSettings(sample_rate=settings.sample_rate, n_mfcc=settings.n_changes)
    return mean_mfcc(samples[-half:], mfcc) - mean_mfcc(samples[:half], mfcc)


RECIPE = Recipe(
    option="mfcc-change",
    settings=ChangeSettings,
    fields=lambda settings: [pa.field("change", pa.list_(pa.float32(), settings.n_changes))],
    compute=lambda samples, rate_hz, settings: (compute_change(samples, settings),),
    read=lambda rows, settings: [read_matrix(rows["change"])],
    prepare=lambda matrix: matrix,
    input_shape=lambda settings: (settings.n_changes,),
    level=lambda matrix: matrix[:, 0],
    network="change-dense",
    measures="change",
    epochs=2,
    batch_size=16,
    describe=lambda settings: f"change of {settings.n_changes} MFCC within",
)
