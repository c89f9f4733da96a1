"""Tests of sequences: the same at every rate and level, frames for every sample, silence that does not count."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from support.recordings import tone

from emotion_batch.example import synthesis
from emotion_batch.features import recipes
from emotion_batch.features.audio import resample
from emotion_batch.features.logmel_pitch import (
    N_INPUTS,
    Sequence,
    compute_sequence,
    find_centres,
    hear,
    make_inputs,
    read_sequences,
)
from emotion_batch.settings import VoicesSettings

SETTINGS = VoicesSettings()
RATE = 16_000
# Of telephones, speech corpora, TESS, compact discs and films, and some odd ones.
RATES = [8_000, 11_025, 16_000, 22_050, 24_414, 31_999, 32_000, 44_056, 44_100, 48_000, 96_000, 192_000]


def compute(samples: np.ndarray, rate: int = RATE) -> Sequence:
    return compute_sequence(samples.astype(np.float32), rate, SETTINGS)


def words(rate: int = 48_000, n_words: int = 2) -> np.ndarray:
    """Return some synthesised speech."""
    said = [
        synthesis.synthesize(synthesis.VOICES[number % 2], synthesis.EMOTIONS[number], word, seed=number)
        for number, word in enumerate(list(synthesis.WORDS)[:n_words])
    ]
    return resample(np.concatenate(said).astype(np.float32), synthesis.SAMPLE_RATE_HZ, rate)


@pytest.mark.parametrize("rate", RATES)
def test_a_level_is_the_mean_square_in_a_band(rate: int) -> None:
    """A tone's power stands in the bands around it, whatever the rate; bands above half the rate have none."""
    for hertz in (300, 440, 1_000, 3_000):
        found = compute(0.1 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate), rate)
        level = found.logmel[10:-10].astype(float) / 256
        near = np.abs(np.log(find_centres(SETTINGS) / hertz)) < 0.6
        assert np.log(np.exp(level[:, near]).sum(axis=1)).mean() == pytest.approx(np.log(0.1**2 / 2), abs=0.1)
    above = find_centres(SETTINGS) > rate / 2
    assert (found.logmel[:, above] == round(256 * np.log(1e-12))).all()


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate != 48_000])
def test_features_are_the_same_at_every_rate(rate: int) -> None:
    """Speech gives nearly the same frames however often it was sampled: bands that are there, and fundamentals."""
    original = words()
    one, other = compute(original, 48_000), compute(resample(original, 48_000, rate), rate)
    n_frames = min(len(one.f0_hz), len(other.f0_hz))
    assert abs(len(one.f0_hz) - len(other.f0_hz)) <= 1
    there = find_centres(SETTINGS) < min(0.95 * rate / 2 if rate > 8_000 else 3_500, 7_000)
    bands = []
    for sequence in (one, other):
        heard = make_inputs(hear(Sequence(*(value[:n_frames] for value in sequence))))
        bands.append(heard[:, :-3][:, there])
    n_heard = min(map(len, bands))
    first, second = (value[:n_heard] for value in bands)
    cosine = (first * second).sum(axis=1) / np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    # Consonants whose power lies above 4 kHz are silence on the telephone.
    assert np.median(cosine) > (0.97 if rate == 8_000 else 0.99)
    is_voiced = (one.voicing[:n_frames] > 0.5) & (other.voicing[:n_frames] > 0.5)
    assert np.mean(np.abs(one.f0_hz[:n_frames] / other.f0_hz[:n_frames] - 1)[is_voiced] < 0.05) > 0.98


@pytest.mark.parametrize("rate", [100, 7_999])
def test_rates_below_those_of_telephones_are_taken_as_well(rate: int) -> None:
    """They are resampled, so that frames are as long as any."""
    found = compute(tone(2.0, rate, hertz=30), rate)
    assert abs(len(found.f0_hz) - 199) <= 1
    assert np.isfinite(found.voicing).all()


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_414, 48_000])
@pytest.mark.parametrize("length_s", [0, 0.0249, 0.025, 0.0251, 0.035, 0.0351, 4])
def test_every_sample_is_in_a_frame(length_s: float, rate: int) -> None:
    """Stretches of any length have a frame or more, and a sample that is not finite shows wherever it stands."""
    n_samples = max(1, round(length_s * rate))
    samples = np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32)
    found = compute(samples, rate)
    n_frames = 1 + max(0, -(-(n_samples - round(0.025 * rate)) // (rate // 100)))
    assert abs(len(found.f0_hz) - n_frames) <= 1
    assert [value.shape for value in found] == [
        (len(found.f0_hz), SETTINGS.n_mels),
        (len(found.f0_hz),),
        (len(found.f0_hz),),
    ]
    inputs = make_inputs(hear(found))
    assert inputs.shape[1] == N_INPUTS and 1 <= len(inputs) <= len(found.f0_hz)
    assert np.isfinite(inputs).all()
    for at in {0, n_samples // 2, n_samples - 1}:
        for value in (np.nan, np.inf, 3e38):
            spoiled = samples.copy()
            spoiled[at] = value
            assert not all(np.isfinite(one).all() for one in compute(spoiled, rate))


@pytest.mark.parametrize("rate", [*RATES, 5_000])
@pytest.mark.parametrize(
    ("window_s", "hop_s"), [(1.0, 0.25), (1.0, 0.5), (2.0, 1.0), (3.0, 2.0), (0.6, 0.07), (0.3, 0.31)]
)
def test_windows_that_overlap_are_those_of_a_stretch_alone(window_s: float, hop_s: float, rate: int) -> None:
    """Frames that are taken from the window before are to the bit those that the stretch alone has, the last one included."""
    samples = resample(words(n_words=6), 48_000, rate)
    windows = recipes.Windows(SETTINGS)
    starts = np.arange(0, len(samples) / rate, hop_s)
    for start in (int(round(start_s, 9) * rate) for start_s in starts):
        stretch = samples[start : start + int(window_s * rate)]
        if len(stretch):
            found, alone = windows.compute(stretch, rate, start), compute(stretch, rate)
            assert all(np.array_equal(mine, its) for mine, its in zip(found, alone, strict=True))


def test_a_sample_that_is_not_finite_costs_its_own_windows_alone() -> None:
    """Windows after one with NaN, which overlap with it and hold none, are those of the stretch alone."""
    samples = words(RATE, n_words=6)
    samples[RATE // 2] = np.nan
    windows = recipes.Windows(SETTINGS)
    for start in range(0, 3 * RATE, RATE):
        stretch = samples[start : start + 2 * RATE]
        found, alone = windows.compute(stretch, RATE, start), compute(stretch)
        assert np.isfinite(found[2]).all() == (start > 0)
        assert all(np.array_equal(mine, its, equal_nan=True) for mine, its in zip(found, alone, strict=True))


def test_frames_are_taken_from_the_window_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of windows of 4 s every 2 s fewer frames are computed than are in all of the recording and their edges."""
    n_computed = 0
    whole = recipes.recipe_of(SETTINGS).compute

    def count(*arguments: object) -> Sequence:
        nonlocal n_computed
        found = whole(*arguments)
        n_computed += len(found[0])
        return found

    for rate in (8_000, 16_000, 22_050, 24_414, 44_100, 48_000):
        n_computed = 0
        windows = recipes.Windows(SETTINGS)
        monkeypatch.setattr(
            windows, "_recipe", windows._recipe.__class__(**{**vars(windows._recipe), "compute": count})
        )
        for start in range(0, 18 * rate, 2 * rate):
            windows.compute(np.ones(4 * rate, np.float32), rate, start)
        assert n_computed < 1.2 * 2_000, rate


def test_silence_before_and_after_does_not_count() -> None:
    """With 2 s of silence on either side a network sees the same, but for the frames at the edges."""
    samples = words(RATE)
    noise = 1e-5 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    plain = make_inputs(hear(compute(samples)))
    for silence in (np.zeros(2 * RATE, np.float32), noise):
        laid = make_inputs(hear(compute(np.concatenate([silence, samples, silence]))))
        assert abs(len(laid) - len(plain)) <= 24
        shift = min(range(25), key=lambda shift: np.abs(laid[shift:][20:60, :64] - plain[20:60, :64]).sum())
        n_frames = min(len(plain), len(laid) - shift)
        assert np.abs(laid[shift : shift + n_frames] - plain[:n_frames])[12:-12].max() < 0.15


def test_silence_alone_is_heard_whole() -> None:
    """Of digital silence, and of one frame, a network sees finite numbers."""
    silent = compute(np.zeros(RATE))
    assert not silent.voicing.any()
    heard = hear(silent)
    assert heard.is_active.all() and len(heard.energy) == len(silent.f0_hz)
    assert np.isfinite(make_inputs(heard)).all()
    assert not make_inputs(heard)[:, : SETTINGS.n_mels].any()


def test_level_and_microphone_are_taken_out() -> None:
    """What a network sees is nearly the same 40 dB louder: relative energy, centred pitch, bands without their mean."""
    samples = tone(1.0, RATE, hertz=200)
    one, louder = (make_inputs(hear(compute(gain * samples))) for gain in (0.01, 1.0))
    assert np.abs(one - louder).max() < 0.01


def test_features_travel_as_columns_and_as_bytes() -> None:
    """Sequences of several lengths come back from a table's columns, and from bytes, as they were; missing ones are null."""
    made = [compute(tone(seconds, RATE)) for seconds in (0.3, 1.0, 0.02)]
    columns = recipes.Columns(SETTINGS)
    for one in (made[0], None, *made[1:]):
        columns.add(one)
    table = pa.table(columns.to_arrays(), schema=pa.schema(recipes.fields(SETTINGS)))
    assert table["logmel"].is_null().to_pylist() == [False, True, False, False]
    for rows in (table.filter(table["f0_hz"].is_valid()), pa.concat_tables([table.slice(0, 1), table.slice(2)])):
        for one, other in zip(read_sequences(rows), made, strict=True):
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    back = recipes.decode(recipes.encode(made[1]), SETTINGS)
    assert back is not None
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(back, made[1], strict=True))
    with pytest.raises(ValueError, match="are not frames of the recipe"):
        recipes.decode(b"12345", SETTINGS)
