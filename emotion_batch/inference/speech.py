"""Tell speech from all other sounds, by a small network that is the same for every model.

`models/speech.py` fits it to recordings of speech and to sounds that code makes, and writes `speech.json`. It reads the summaries of the
measures ``tracks`` of `domain`, and no level.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any, get_args

import msgspec
import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
FILE = "speech.json"
# A summary farther out, in standard deviations, counts as this far, so that unknown sounds weigh no more than the oddest known.
FARTHEST = 5.0


class Detector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
        return msgspec.json.decode(content, type=Detector, dec_hook=read_numbers)
    except ValueError as error:
        raise ValueError(f"{FILE}: it is not as models/speech.py writes it ({error})") from error


def read_numbers(kind: Any, value: Any) -> npt.NDArray[Any]:
    """Return an array of the type that msgspec asks for; raise ValueError if the value from JSON is not made of numbers."""
    numbers = np.array(value)
    if numbers.dtype.kind not in "fi":
        raise ValueError("it must be made of numbers")
    (dtype,) = get_args(get_args(kind)[1])
    with np.errstate(over="ignore"):
        return numbers.astype(dtype)


@lru_cache(maxsize=1)
def load_detector() -> Detector:
    """Return the detector that ships."""
    return read_detector(resources.files(__package__).joinpath(FILE).read_bytes())
