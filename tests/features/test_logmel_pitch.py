"""Tests of sequences: bands as librosa's, fundamentals that are known, and frames for every sample."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from support.recordings import tone

from emotion_batch.features import logmel_pitch, recipes
from emotion_batch.features.logmel_pitch import N_INPUTS, compute_sequence, prepare_sequence
from emotion_batch.settings import SequenceSettings

SETTINGS = SequenceSettings()
RATE = SETTINGS.sample_rate


def test_filters_are_librosas() -> None:
    """What is kept in the file is what librosa computes, to the bit."""
    window, mel = logmel_pitch.compute_filters(SETTINGS)
    with np.load(logmel_pitch.Path(logmel_pitch.__file__).with_name(logmel_pitch.FILTERS)) as kept:
        assert np.array_equal(kept["window"], window)
        assert np.array_equal(kept["mel"], mel)


def test_bands_are_librosas() -> None:
    """Log-mel bands are those of librosa's spectrogram with the same frames, to float16."""
    samples = tone(1.0, RATE)
    mel = librosa.feature.melspectrogram(
        y=samples,
        sr=RATE,
        n_fft=512,
        win_length=400,
        hop_length=160,
        n_mels=64,
        fmin=50,
        center=False,
    )
    found = compute_sequence(samples, SETTINGS).logmel
    # librosa lays the window in the middle of its longer frame.
    shifted = compute_sequence(samples[56:], SETTINGS).logmel[: mel.shape[1]]
    assert found.dtype == np.float16
    assert np.abs(shifted - np.log(np.maximum(mel.T, 1e-10))).max() < 0.02


@pytest.mark.parametrize("hertz", [80, 110, 155, 220, 300, 370, 450])
@pytest.mark.parametrize("level_db", [-60, 0])
def test_a_fundamental_is_found(hertz: int, level_db: int) -> None:
    """A harmonic tone is voiced, at its fundamental to within a semitone's tenth, however loud."""
    samples = tone(0.5, RATE, hertz=hertz) * np.float32(10 ** (level_db / 20))
    found = compute_sequence(samples, SETTINGS)
    inner = slice(5, 40)
    assert np.median(np.abs(found.f0_hz[inner].astype(float) / hertz - 1)) < 0.006
    assert (found.voicing[inner] > 0.7).all()


def test_noise_and_silence_have_no_voice() -> None:
    """What is not periodic has little voicing, digital silence none, and neither is not finite."""
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert np.mean(compute_sequence(noise, SETTINGS).voicing > 0.5) < 0.1
    silent = compute_sequence(np.zeros(RATE, np.float32), SETTINGS)
    assert not silent.voicing.any()
    assert all(np.isfinite(value).all() for value in (*silent, prepare_sequence(silent)))


@pytest.mark.parametrize("n_samples", [1, 399, 400, 401, 559, 560, 561, 64_000])
def test_every_sample_is_in_a_frame(n_samples: int) -> None:
    """Stretches of any length have a frame or more, and a sample that is not finite shows wherever it stands."""
    samples = np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32)
    found = compute_sequence(samples, SETTINGS)
    n_frames = 1 + max(0, -(-(n_samples - 400) // 160))
    assert [value.shape for value in found] == [(n_frames, 64), (n_frames,), (n_frames,)]
    assert prepare_sequence(found).shape == (n_frames, N_INPUTS)
    assert np.isfinite(prepare_sequence(found)).all()
    for at in {0, n_samples // 2, n_samples - 1}:
        spoiled = samples.copy()
        spoiled[at] = np.nan
        assert not np.isfinite(compute_sequence(spoiled, SETTINGS).logmel).all()


def test_level_and_microphone_are_taken_out() -> None:
    """What a network sees is nearly the same 20 dB louder: relative energy, centred pitch, bands without their mean."""
    samples = tone(1.0, RATE, hertz=200)
    one, louder = (
        prepare_sequence(compute_sequence(gain * samples, SETTINGS)) for gain in (np.float32(0.1), np.float32(1))
    )
    assert np.abs(one - louder).max() < 0.03


def test_features_travel_as_columns_and_as_bytes() -> None:
    """Sequences of several lengths come back from a table's columns, and from bytes, as they were; missing ones are null."""
    import pyarrow as pa

    made = [compute_sequence(tone(seconds, RATE), SETTINGS) for seconds in (0.3, 1.0, 0.02)]
    columns = recipes.Columns(SETTINGS)
    for one in (made[0], None, *made[1:]):
        columns.add(one)
    table = pa.table(columns.to_arrays(), schema=pa.schema(recipes.fields(SETTINGS)))
    assert table["logmel"].is_null().to_pylist() == [False, True, False, False]
    for rows in (table.filter(table["f0_hz"].is_valid()), pa.concat_tables([table.slice(0, 1), table.slice(2)])):
        for one, other in zip(recipes.read_sequences(rows), made, strict=True):
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    back = recipes.decode(recipes.encode(made[1]), SETTINGS)
    assert back is not None
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(back, made[1], strict=True))
    with pytest.raises(ValueError, match="no frames"):
        recipes.decode(b"12345", SETTINGS)
