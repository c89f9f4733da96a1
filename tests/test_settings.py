"""Tests of settings and their fingerprints."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.features.recipes import read_settings
from emotion_batch.settings import FeatureSettings, Segments, VoicesSettings


def test_fingerprints_are_pinned() -> None:
    """The ids of the default settings never change: every table and bundle names them."""
    assert FeatureSettings().feature_id == "bcb537cdae08da92"
    assert Segments().segment_id == "283dc1dc0d6953a8"


def test_settings_survive_json() -> None:
    """What is written is read as the same settings, with the same id."""
    settings = FeatureSettings(sample_rate=16_000, n_mfcc=13, n_mels=40)
    segments = Segments(0, 2)
    assert read_settings(json.loads(json.dumps(settings.to_dict()))) == settings
    assert Segments.from_dict(json.loads(json.dumps(segments.to_dict()))) == segments
    assert Segments(0, 2).segment_id == Segments(0.0, 2.0).segment_id


@pytest.mark.parametrize("name", ["sample_rate", "n_mfcc", "n_fft", "hop_length", "n_mels"])
def test_every_setting_changes_the_fingerprint(name: str) -> None:
    """No two recipes share an id."""
    changed = FeatureSettings(**{name: getattr(FeatureSettings(), name) - 1})
    assert changed.feature_id != FeatureSettings().feature_id


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FeatureSettings(n_mfcc=0), "n_mfcc must be a whole number of at least 1: 0"),
        (lambda: FeatureSettings(n_mfcc=200), "n_mfcc must be at most n_mels, which is 128: 200"),
        (lambda: FeatureSettings(hop_length=2.5), "hop_length must be a whole number of at least 1: 2.5"),
        (lambda: Segments(offset_s=-1), "offset must be from 0 to 1,000,000 seconds: -1"),
        (lambda: Segments(duration_s=float("nan")), "duration must be from 0.01 to 1,000,000 seconds: nan"),
        (
            lambda: Segments(hop_s=2),
            "offset must be 0 for windows, which cover the whole recording: 0.5; Segments.windows(WINDOW, HOP) makes them",
        ),
        (
            lambda: read_settings({"recipe": "logmel-pitch"}),
            "the recipe voices has replaced sequence; extract the features again",
        ),
        (lambda: read_settings({"recipe": "other"}), "recipe must be 'mfcc-mean' or 'voices': 'other'"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(make, sentence: str) -> None:
    """The error names the setting, its rule and the value."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        make()


def test_windows_are_asked_for_by_their_seconds() -> None:
    """`window` and `hop` are short for segments."""
    assert Segments.choose(None, 4, 2) == Segments.windows(4, 2)
    assert Segments.choose(None, 4, None) == Segments.windows(4, 4)
    assert Segments.choose(Segments(0, 1), None, None) == Segments(0, 1)
    assert Segments.choose(None, None, None) is None


@pytest.mark.parametrize(
    "call",
    [
        partial(emotion_batch.extract, "/nowhere", "/nowhere/table"),
        partial(emotion_batch.label, "/nowhere", "/nowhere/table"),
        partial(emotion_batch.label_recording, "/nowhere"),
        partial(emotion_batch.plan, "/nowhere"),
    ],
)
def test_segments_are_asked_for_once(call: partial[object]) -> None:
    """Each function that takes segments refuses two ways to say them, before it looks at anything else."""
    with pytest.raises(UsageError, match="segments cannot be combined with window or hop"):
        call(segments=Segments(), window=4)
    with pytest.raises(UsageError, match="hop requires window"):
        call(hop=2)


def test_the_voices_recipe_is_one() -> None:
    """Its settings come back from JSON, have an id of their own, and cannot be others."""
    settings = VoicesSettings()
    assert read_settings(json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.feature_id not in ("", FeatureSettings().feature_id)
    with pytest.raises(UsageError, match="n_mels must be 64, as in the recipe 'voices': 40"):
        VoicesSettings(n_mels=40)
