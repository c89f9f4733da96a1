"""Tell speech from all other sounds, by a small network that is the same for every model.

`models/speech.py` fits it to recordings of speech and to sounds that code makes, and writes `speech.json`. It reads the summaries of the
measures ``tracks`` of `domain`, and no level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import msgspec
import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
FILE = "speech.json"
# A summary farther out, in standard deviations, counts as this far, so that unknown sounds weigh no more than the oddest known.
FARTHEST = 5.0


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """A detector as JSON holds it."""

    centre: list[float]
    scale: list[float]
    hidden: list[list[float]]
    hidden_bias: list[float]
    output: list[float]
    threshold: float


@dataclass(frozen=True)
class Detector:
    """A network with one hidden layer; ValueError if its arrays do not fit each other, or a number is out of range.

    `centre` and `scale`, shape (n_dims,), make summaries alike in size. `hidden`, shape (n_dims, n_hidden), `hidden_bias` and
    `output`, shape (n_hidden,), are the weights. A row is speech if its score is `threshold` or more.
    """

    centre: Doubles
    scale: Doubles
    hidden: Doubles
    hidden_bias: Doubles
    output: Doubles
    threshold: float

    def __post_init__(self) -> None:
        n_dims, n_hidden = self.hidden.shape if self.hidden.ndim == 2 else (0, 0)
        shapes = [one.shape for one in (self.centre, self.scale, self.hidden_bias, self.output)]
        if not n_hidden or shapes != [(n_dims,), (n_dims,), (n_hidden,), (n_hidden,)]:
            raise ValueError(
                f"{FILE}: its arrays do not fit each other, their shapes are {self.hidden.shape} and {shapes}"
            )
        arrays = (self.centre, self.scale, self.hidden, self.hidden_bias, self.output, self.threshold)
        if not (all(np.isfinite(one).all() for one in arrays) and (self.scale > 0).all()):
            raise ValueError(f"{FILE}: all numbers must be finite, and scale must be above 0")

    def score(self, summaries: npt.NDArray[np.floating]) -> Doubles:
        """Return how much rows are like speech, shape (n_rows,); each score depends on its row alone."""
        inputs = np.clip((summaries.astype(np.float64) - self.centre) / self.scale, -FARTHEST, FARTHEST)
        # This is not a product of matrices, because its last digits would depend on the number of rows.
        hidden = np.tanh(np.einsum("rd,dh->rh", inputs, self.hidden) + self.hidden_bias)
        return np.asarray(np.einsum("rh,h->r", hidden, self.output), np.float64)

    def is_speech(self, summaries: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Return which rows are speech, shape (n_rows,)."""
        return np.asarray(self.score(summaries) >= self.threshold, np.bool_)


def read_detector(content: bytes) -> Detector:
    """Return the detector that JSON holds; raise ValueError if it holds something else."""
    try:
        kept = msgspec.json.decode(content, type=_Kept)
        centre, scale, hidden, hidden_bias, output = (
            np.array(one, np.float64) for one in (kept.centre, kept.scale, kept.hidden, kept.hidden_bias, kept.output)
        )
    except ValueError as error:
        raise ValueError(f"{FILE}: it is not as models/speech.py writes it ({error})") from error
    return Detector(centre, scale, hidden, hidden_bias, output, kept.threshold)


@lru_cache(maxsize=1)
def load_detector() -> Detector:
    """Return the detector that ships."""
    return read_detector(resources.files(__package__).joinpath(FILE).read_bytes())
