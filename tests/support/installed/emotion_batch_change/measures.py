"""What is compared of the recipe's rows: the features as they are."""

from __future__ import annotations

from emotion_batch.inference.domain import Measures

MEASURES = Measures(lambda matrix: matrix)
