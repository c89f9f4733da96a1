"""Tests of settings and their fingerprints."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
from support.commands import call_command

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


def test_segments_of_speech_and_of_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named by a word or a place, have an identity of their own, and are no longer than the model's."""
    monkeypatch.chdir(tmp_path)
    asked = {
        "speech": ("speech", "stretches of speech of at most 6 s of each channel"),
        "turns.csv": (f"{tmp_path}/turns.csv", "the segments of a list of each channel"),
        "./speech": (f"{tmp_path}/speech", "the segments of a list of each channel"),
        "s3://calls/turns.rttm": ("s3://calls/turns.rttm", "the segments of a list of each channel"),
    }
    seen = set()
    for place, (source, words) in asked.items():
        found = VoicesSettings().segments.replaced_by(Segments.choose(place, None, None), "each")
        assert (found.offset_s, found.duration_s, found.source, str(found)) == (0.0, 6.0, source, words)
        assert found.to_options() == f"--segments {source} --channels each"
        assert Segments.from_dict(found.to_dict()) == found
        assert not (found.is_one_row or found.is_one_stretch)
        assert found.is_listed == (source != "speech")
        assert found.without_list().is_one_stretch == found.is_listed
        seen.add(found.segment_id)
    assert len(seen) == 4
    shorter = Segments(0.0, 2.0, source="speech")
    assert VoicesSettings().segments.replaced_by(shorter, None) == shorter
    with pytest.raises(UsageError, match="segments of speech or of a list have no offset and no hop"):
        Segments(0.5, 3.0, source="speech")


@pytest.mark.parametrize("name", ["offset", "duration", "window", "hop"])
def test_segments_stand_alone(name: str) -> None:
    """Segments of speech or of a list cannot be combined with other stretches."""
    done = call_command("label", "/nowhere", "/nowhere/table", "--segments", "speech", f"--{name}", "1")
    assert done.code == 2
    assert f"--segments cannot be combined with --{name}, because it says which stretches are taken" in done.err


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
