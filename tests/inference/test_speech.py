"""Tests of the detector of speech: it ships whole, and what is no detector is refused."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest

from emotion_batch.inference import speech
from emotion_batch.inference.speech import load_detector, read_detector


def shipped() -> dict[str, object]:
    """Return what the package has as JSON."""
    return json.loads(resources.files(speech.__package__).joinpath(speech.FILE).read_bytes())


def test_the_detector_is_read_once() -> None:
    """It is the one in the package, with a weight for each of 38 dimensions, and is not read again."""
    detector = load_detector()
    assert detector is load_detector()
    assert detector.hidden.shape[0] == 38
    assert detector.threshold == shipped()["threshold"]


def test_a_score_is_of_the_row_alone() -> None:
    """Scores are to the bit the same alone and among any number of others."""
    rows = np.random.default_rng(0).normal(0, 3, (257, 38)).astype(np.float32)
    together = load_detector().score(rows)
    for number in (0, 1, 100, 255, 256):
        assert load_detector().score(rows[number : number + 1])[0] == together[number]
        assert load_detector().score(rows[number:][:8])[0] == together[number]
    assert load_detector().is_speech(rows[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("centre", [0.0]),
        ("centre", None),
        ("scale", [0.0] * 38),
        ("scale", ["1"] * 38),
        ("hidden", []),
        ("hidden", [[1.0]] * 37),
        ("hidden", [[1.0, 2.0], [3.0]]),
        ("hidden_bias", [1.0]),
        ("output", [[1.0]]),
        ("threshold", "0"),
        ("threshold", None),
        ("code", "print()"),
    ],
)
def test_what_is_no_detector_is_refused(name: str, value: object) -> None:
    """A file that was changed gives a sentence, and no other error."""
    with pytest.raises(
        ValueError, match=r"^speech.json: (it is not as|its arrays do not fit|all numbers must be finite)"
    ):
        read_detector(json.dumps({**shipped(), name: value}).encode())


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"speech", b"\xff", b'{"threshold": NaN}'])
def test_a_file_that_is_something_else_is_refused(content: bytes) -> None:
    """So is one that is empty, cut or of another kind."""
    with pytest.raises(ValueError, match=r"^speech.json: it is not as models/speech.py writes it"):
        read_detector(content)
