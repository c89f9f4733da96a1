"""Tests of domains: summaries without level, sounds that are not speech, thresholds of what was held out, safe reading."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import soxr
from support.commands import ROOT
from support.recordings import tone

from emotion_batch.errors import UsageError
from emotion_batch.example import synthesis
from emotion_batch.features import recipes
from emotion_batch.inference.domain import Domain, judge_speech, summarise_rows
from emotion_batch.settings import AnySettings, FeatureSettings, VoicesSettings
from emotion_batch.training.calibrate import fit_domain, flag_new_voices
from models import sounds

SETTINGS = [
    pytest.param(FeatureSettings(), id="mfcc"),
    pytest.param(VoicesSettings(), id="voices"),
]
LEVELS_DB = (-40, -20, -6)


def find_speech(rows: pa.Table, settings: AnySettings) -> np.ndarray | None:
    return judge_speech(summarise_rows(rows, settings), settings)


def rate_of(settings: AnySettings) -> int:
    """Return the rate at which sounds are made for a recipe."""
    return settings.sample_rate or 16_000


def cut(samples: np.ndarray, settings: AnySettings) -> np.ndarray:
    """Return the stretch that the recipe takes its features of."""
    segments, rate = settings.segments, rate_of(settings)
    start = round(segments.offset_s * rate)
    return samples[start : start + round(segments.duration_s * rate)].astype(np.float32)


def table(recordings: list[np.ndarray], settings: AnySettings) -> pa.Table:
    """Return a row of features a recording."""
    return table_of([(cut(one, settings), rate_of(settings)) for one in recordings], settings)


def table_of(segments: list[tuple[np.ndarray, int]], settings: AnySettings) -> pa.Table:
    """Return a row of features a segment, each at a rate of its own."""
    columns = recipes.Columns(settings)
    for samples, rate in segments:
        columns.add(recipes.compute(samples[: 4 * rate].astype(np.float32), rate, settings))
    return pa.table(columns.to_arrays(), schema=pa.schema(recipes.fields(settings)))


@cache
def spoken(settings: AnySettings) -> pa.Table:
    """Return rows of synthesised speech, whose emotions and voices take turns."""
    sounds = []
    for number, word in enumerate(list(synthesis.WORDS)[:12]):
        for emotion in synthesis.EMOTIONS:
            samples = synthesis.synthesize(synthesis.VOICES[number % 2], emotion, word, seed=number)
            sounds.append(soxr.resample(samples, synthesis.SAMPLE_RATE_HZ, rate_of(settings), quality="HQ"))
    return table(sounds, settings)


def colour(slope: float, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise whose power falls by ``f ** -slope``."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    return np.fft.irfft(spectrum * np.maximum(np.arange(len(spectrum)), 20.0) ** (-slope / 2), n_samples)


def melody(n_samples: int, rate: int, rng: np.random.Generator, *, chord: tuple[int, ...]) -> np.ndarray:
    """Return notes with eight harmonics that fade, each with those of the chord above it."""
    found, step = np.zeros(n_samples), round(rate * rng.uniform(0.2, 0.6))
    for start in range(0, n_samples, step):
        seconds = np.arange(min(2 * step, n_samples - start)) / rate
        root = 110 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 16, 19]) / 12)
        for above in chord:
            for k in range(1, 9):
                phase = 2 * np.pi * root * 2 ** (above / 12) * k * seconds
                found[start : start + len(seconds)] += np.sin(phase) / k * np.exp(-3 * seconds)
    return found


def bursts(n_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Return strokes of noise and of a skin, four to eight a second."""
    found, step = np.zeros(n_samples), round(rate / rng.uniform(4, 8))
    for start in range(0, n_samples, step):
        seconds = np.arange(min(step, n_samples - start)) / rate
        skin = np.sin(2 * np.pi * 70 * seconds) * np.exp(-20 * seconds)
        rattle = rng.standard_normal(len(seconds)) * np.exp(-60 * seconds)
        found[start : start + len(seconds)] = skin if rng.integers(2) else rattle
    return found


def sweep(n_samples: int, rate: int) -> np.ndarray:
    """Return a tone that rises from 100 Hz to 6 kHz."""
    return np.sin(2 * np.pi * np.cumsum(np.geomspace(100, 6_000, n_samples)) / rate)


# What each sound is made of: the number of samples, the rate, and a generator.
Maker = Callable[[int, int, np.random.Generator], np.ndarray]
UNSPOKEN: dict[str, Maker] = {
    "white": lambda n, rate, rng: colour(0, n, rng),
    "pink": lambda n, rate, rng: colour(1, n, rng),
    "brown": lambda n, rate, rng: colour(2, n, rng),
    "silence": lambda n, rate, rng: np.zeros(n),
    "sweep": lambda n, rate, rng: sweep(n, rate),
    "sine": lambda n, rate, rng: np.sin(2 * np.pi * rng.uniform(80, 1_000) * np.arange(n) / rate),
    "square": lambda n, rate, rng: np.sign(np.sin(2 * np.pi * rng.uniform(80, 400) * np.arange(n) / rate)),
    "hum": lambda n, rate, rng: tone(n / rate, rate, hertz=50)[:n],
    "arpeggio": lambda n, rate, rng: melody(n, rate, rng, chord=(0,)),
    "chords": lambda n, rate, rng: melody(n, rate, rng, chord=(0, 4, 7)),
    "drums": bursts,
}


@cache
def unspoken(settings: AnySettings) -> tuple[pa.Table, np.ndarray]:
    """Return rows of sounds that are not speech, at three levels and two durations, and what each is."""
    sounds, names = [], []
    for name, make in UNSPOKEN.items():
        for seed, duration_s in enumerate((2.0, 3.5)):
            samples = make(round(duration_s * rate_of(settings)), rate_of(settings), np.random.default_rng(seed))
            loudness = np.sqrt(np.mean(samples**2)) or 1.0
            for level_db in LEVELS_DB:
                sounds.append(np.clip(samples / loudness * 10 ** (level_db / 20), -1, 1))
                names.append(name)
    return table(sounds, settings), np.array(names)


def some_domain(n_dims: int = 3, *, seed: int = 0) -> Domain:
    rng = np.random.default_rng(seed)
    return fit_domain(rng.standard_normal((200, n_dims)), rng.standard_normal((50, n_dims)), flagged={"new": 0.5})


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_summary_has_no_level(settings: AnySettings) -> None:
    """A gain from -40 to 0 dB changes no dimension by a hundredth of what it varies by."""
    sounds = [tone(2.0, rate_of(settings), hertz=hertz) for hertz in (110, 200, 320)]
    scale = summarise_rows(spoken(settings), settings).std(axis=0)
    as_it_is = summarise_rows(table(sounds, settings), settings)
    for gain_db in (-40, -20, -6):
        quieter = summarise_rows(table([one * 10 ** (gain_db / 20) for one in sounds], settings), settings)
        assert (np.abs(quieter - as_it_is) / scale).max() < 0.01


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_row_depends_on_itself_alone(settings: AnySettings) -> None:
    """Summary, speech and distance of a row are to the bit what they are among others."""
    rows = spoken(settings)
    together = summarise_rows(rows, settings)
    fitted = fit_domain(together[::2], together[1::2])
    distances, is_speech = fitted.distances(together), find_speech(rows, settings)
    for number in (0, 5, 83):
        alone = rows.slice(number, 1)
        summary = summarise_rows(alone, settings)
        assert np.array_equal(summary[0], together[number])
        assert fitted.distances(summary)[0] == distances[number]
        if is_speech is not None:
            assert find_speech(alone, settings)[0] == is_speech[number]
            assert np.array_equal(judge_speech(together, settings), is_speech)


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_rows_have_no_summaries(settings: AnySettings) -> None:
    """A table without rows gives arrays without rows, and a row of one frame numbers."""
    summaries = summarise_rows(spoken(settings), settings)
    assert summarise_rows(spoken(settings).slice(0, 0), settings).shape == (0, summaries.shape[1])
    columns = recipes.Columns(settings)
    columns.add(recipes.compute(np.zeros(1, np.float32), rate_of(settings), settings))
    short = pa.table(columns.to_arrays(), schema=pa.schema(recipes.fields(settings)))
    assert np.isfinite(summarise_rows(short, settings)).all()


def test_what_nobody_speaks_is_told_from_speech() -> None:
    """Of sequences, 0.95 of noise, silence, tones and music are no speech or outside the domain; speech is speech."""
    settings = VoicesSettings()
    speech = summarise_rows(spoken(settings), settings)
    fitted = fit_domain(speech[::2], speech[1::2])
    rows, _ = unspoken(settings)
    is_speech = find_speech(rows, settings)
    assert np.mean(is_speech & fitted.contains(summarise_rows(rows, settings))) <= 0.05
    assert np.mean(find_speech(spoken(settings), settings)) >= 0.9


@pytest.mark.parametrize("name", ["white", "pink", "brown", "silence", "sine", "square", "hum", "chords"])
def test_what_is_steady_is_no_speech(name: str) -> None:
    """Noise, silence, tones and hum are no speech at any level, whatever the model learnt from."""
    rows, names = unspoken(VoicesSettings())
    assert not find_speech(rows.filter(names == name), VoicesSettings()).any()


@pytest.mark.parametrize("n_sounds", [20, pytest.param(40, marks=pytest.mark.torture)])
@pytest.mark.parametrize("kind", sounds.KINDS)
def test_sounds_of_a_kind_are_no_speech(kind: str, n_sounds: int) -> None:
    """At most 0.1 of sounds with seeds that the detector never saw are called speech, kind by kind."""
    settings = VoicesSettings()
    rows = table_of([sounds.make(kind, seed) for seed in range(1_000_000, 1_000_000 + n_sounds)], settings)
    assert find_speech(rows, settings).mean() <= 0.1


def test_sounds_come_from_their_seeds() -> None:
    """One seed gives the same samples again, another gives others, and all are finite and in range."""
    for kind in sounds.KINDS:
        samples, rate = sounds.make(kind, 3)
        assert np.array_equal(samples, sounds.make(kind, 3)[0])
        assert np.isfinite(samples).all() and np.abs(samples).max() <= 1 and rate in sounds.RATES_HZ
    assert not np.array_equal(sounds.make("barks", 3)[0], sounds.make("barks", 4)[0])


@pytest.mark.tess
@pytest.mark.parametrize("stride", [28, pytest.param(14, marks=pytest.mark.torture)])
def test_tess_is_speech_wherever_it_is_recorded(tess: Path, stride: int) -> None:
    """Of TESS, 0.98 are speech as they are, on the telephone, in a room, and in white noise down to 5 dB."""
    settings = VoicesSettings()
    found: dict[str, list[tuple[np.ndarray, int]]] = {}
    for number, path in enumerate(sorted(tess.rglob("*.wav"))[5::stride]):
        rng = np.random.default_rng(number)
        samples, rate = soundfile.read(path)
        noise = rng.standard_normal(len(samples)) * np.sqrt(np.mean(samples**2))
        found.setdefault("clean", []).append((samples, rate))
        found.setdefault("telephone", []).append(sounds.telephone(samples, rate, rng))
        found.setdefault("room", []).append((sounds.add_room(samples, rate, rng), rate))
        for snr_db in (20, 10, 5):
            found.setdefault(f"{snr_db} dB", []).append((samples + noise * 10 ** (-snr_db / 20), rate))
    kept = {name: find_speech(table_of(segments, settings), settings).mean() for name, segments in found.items()}
    assert {name: share for name, share in kept.items() if share < 0.98} == {}


def test_a_mean_does_not_tell_speech() -> None:
    """Of mean MFCC it is not said whether they are speech."""
    assert find_speech(spoken(FeatureSettings()), FeatureSettings()) is None


def test_the_threshold_is_of_what_was_held_out() -> None:
    """Held-out rows twice as far out as those learnt double the threshold, and one in a hundred is flagged."""
    rng = np.random.default_rng(0)
    learnt, held_out = rng.standard_normal((500, 4)), 2 * rng.standard_normal((1_000, 4))
    fitted = fit_domain(learnt, held_out)
    assert fitted.threshold > 1.3 * np.quantile(fitted.distances(learnt), 0.99)
    assert 0.98 <= fitted.contains(held_out).mean() <= 0.99 + 1e-3
    assert fitted.flagged["held_out"] == pytest.approx(1 - fitted.contains(held_out).mean())


def test_few_rows_make_a_domain() -> None:
    """Fewer rows than dimensions, odd ones and a dimension that never changes make one that can be used."""
    rng = np.random.default_rng(0)
    learnt, held_out = rng.standard_normal((12, 40)), rng.standard_normal((20, 40))
    learnt[:, 3] = held_out[:, 3] = 7.0
    learnt[0] = 1e6
    fitted = fit_domain(learnt, held_out)
    assert fitted.contains(held_out).all()
    assert not fitted.contains(np.full((1, 40), 30.0)).any()


@pytest.mark.parametrize(
    ("n_learnt", "n_held_out", "n_dims", "words"),
    [
        pytest.param(50, 19, 3, "domain: 19 rows were held out", id="held out"),
        pytest.param(1, 20, 3, "domain: it needs at least two rows", id="learnt"),
        pytest.param(50, 20, 0, "domain: the level is the only feature", id="features"),
    ],
)
def test_too_little_is_refused(n_learnt: int, n_held_out: int, n_dims: int, words: str) -> None:
    """Without enough rows, or anything beside the level, no domain is made."""
    with pytest.raises(UsageError, match=words):
        fit_domain(np.zeros((n_learnt, n_dims)), np.zeros((n_held_out, n_dims)))


def test_new_voices_are_counted() -> None:
    """A voice far from the others is flagged by what they make, one like them is not."""
    rng = np.random.default_rng(0)
    fold = np.repeat([0, 1, 2], 100)
    summaries = rng.standard_normal((300, 3)) + np.where(fold == 2, 30, 0)[:, np.newaxis]
    found = flag_new_voices(summaries, fold, np.arange(300) % 4 == 0)
    assert found["n_rows"] == 300 and found["folds"][2] == {"fold": 2, "n_rows": 100, "n_flagged": 100}
    with pytest.raises(UsageError, match="two folds"):
        flag_new_voices(summaries, np.zeros(300, int), np.arange(300) % 4 == 0)


def test_a_domain_travels_as_json() -> None:
    """What JSON gave back finds the same distances."""
    fitted = some_domain()
    back = Domain.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    rows = np.random.default_rng(1).standard_normal((9, 3))
    assert np.array_equal(back.distances(rows), fitted.distances(rows))
    assert back.to_dict() == fitted.to_dict()
    assert back.flagged["new"] == 0.5
    with pytest.raises(ValueError, match="n_rows, 3"):
        back.distances(rows[:, :2])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("centres", "here"),
        ("centres", []),
        ("centres", [1.0, 2.0, 3.0]),
        ("centres", [[1.0, 2.0]]),
        ("centres", [[1.0, 2.0], [3.0]]),
        ("centres", [[1.0, 2.0, float("nan")]]),
        ("centres", [["1", "2", "3"]]),
        ("centres", [[1e300, 1.0, 1.0]]),
        ("centres", [[10**400, 1.0, 1.0]]),
        ("centres", [[True, False, True]]),
        ("whitening", None),
        ("whitening", [[1.0, 0.0, 0.0]]),
        ("whitening", [[[1.0]]]),
        ("threshold", 0),
        ("threshold", -1.0),
        ("threshold", float("inf")),
        ("threshold", float("nan")),
        ("threshold", "1"),
        ("threshold", True),
        ("threshold", 10**400),
        ("n_learnt", 0),
        ("n_learnt", 1.5),
        ("n_held_out", True),
        ("flagged", [0.5]),
        ("flagged", {"new": 1.5}),
        ("flagged", {"new": float("nan")}),
        ("flagged", {"new": "all"}),
        ("code", "print()"),
    ],
)
def test_a_domain_that_makes_no_sense_is_refused(name: str, value: object) -> None:
    """A hostile card gives a sentence, and no other error."""
    with pytest.raises(ValueError, match=r"^domain: (it is not as a training writes it|.* must (be|have the shape) )"):
        Domain.from_dict({**some_domain().to_dict(), name: value})


@pytest.mark.parametrize("value", [None, [], {}, "domain"])
def test_what_is_no_domain_is_refused(value: object) -> None:
    """As is a card that holds something else, or only a part."""
    with pytest.raises(ValueError, match=r"^domain: it is not as a training writes it"):
        Domain.from_dict(value)


@pytest.mark.tess
@pytest.mark.parametrize("stride", [6, pytest.param(3, marks=pytest.mark.torture)])
@pytest.mark.parametrize("settings", SETTINGS)
def test_tess_is_in_its_domain_and_noise_is_not(tess: Path, settings: AnySettings, stride: int) -> None:
    """Of TESS's words held out 0.97 are in the domain and speech; of noise, tones and music 0.95 are not."""
    recordings = sorted(tess.rglob("*.wav"))[::stride]
    words = [path.stem.split("_")[1] for path in recordings]
    number = {word: position % 5 for position, word in enumerate(sorted(set(words)))}
    fold = np.array([number[word] for word in words])
    sounds = []
    for path in recordings:
        samples, rate = soundfile.read(path, dtype="float32")
        sounds.append(soxr.resample(samples, rate, rate_of(settings), quality="HQ"))
    rows = table(sounds, settings)
    summaries = summarise_rows(rows, settings)
    fitted = fit_domain(summaries[fold < 3], summaries[fold == 3])
    assert fitted.contains(summaries[fold == 4]).mean() >= 0.97
    others, _ = unspoken(settings)
    is_taken = fitted.contains(summarise_rows(others, settings))
    if isinstance(settings, VoicesSettings):
        assert find_speech(rows, settings).mean() >= 0.97
        is_taken &= find_speech(others, settings)
    assert is_taken.mean() <= 0.05
    speakers = np.array([path.stem.startswith("Y") for path in recordings]).astype(int)
    # New voices are flagged, as the card says.
    assert flag_new_voices(summaries, speakers, fold == 4)["share"] > 0.5


def test_the_module_needs_no_sklearn_to_apply() -> None:
    """A worker that finds distances does not pay for what fitted them."""
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from emotion_batch.inference.domain import Domain;"
        "Domain(np.zeros((1, 2), np.float32), np.eye(2, dtype=np.float32), 1.0, 2, 20, {}).contains(np.zeros((3, 2)));"
        "sys.exit('sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
