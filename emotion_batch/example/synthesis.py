"""An archive of synthesised recordings, named and laid out as the Toronto Emotional Speech Set (TESS) is.

Two voices say "say the word ..." in seven emotions, by source and filter (Fant 1960): glottal pulses, breath and frication
pass through formants that move from phoneme to phoneme. The sentence is TESS's; no sample of any corpus is in it. The file
`synthesis.toml` says what is spoken and how, and names the sources.
"""

from __future__ import annotations

import os
import tomllib
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import signal
from scipy.io import wavfile
from scipy.ndimage import gaussian_filter1d

SAMPLE_RATE_HZ = 24_414  # TESS's, so that the demo resamples as a real run does
_WINDOW = 512  # samples that are filtered at once; they overlap by half, so the formants move every 10 ms
_HERTZ = np.maximum(np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE_HZ), 1)[:, np.newaxis]
_DURATION_S = (1.4, 2.6)
_LEAD_S, _TAIL_S = 0.08, 0.12  # silence before and after the speech
_ROOM_NOISE = 10 ** (-72 / 20)  # RMS, so that silence is not digital zero, as in no real recording
# The points along the speech that `contour_st` gives values for; the word is about the last two fifths.
_KNOTS = (0.0, 0.2, 0.45, 0.7, 1.0)

_SPOKEN = tomllib.loads(resources.files(__package__).joinpath("synthesis.toml").read_text(encoding="utf-8"))
_PROSODY = {emotion: SimpleNamespace(**values) for emotion, values in _SPOKEN["prosody"].items()}
EMOTIONS: tuple[str, ...] = tuple(_PROSODY)
VOICES: tuple[str, ...] = tuple(_SPOKEN["voices"])
WORDS: tuple[str, ...] = tuple(_SPOKEN["words"])

_SCHWA = np.array([500.0, 1500.0, 2500.0])
_BANDWIDTHS_HZ = np.array([70.0, 90.0, 150.0])
# What a row of a phoneme says behind its formants, if it is a vowel.
_VOWEL = (0.2, 1.0, 0.0, 0.0, 0.0)
_CARRIER = "S EH Y DH AH W ER D"


def synthesize(voice: str, emotion: str, word: str, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return one recording of "say the word `word`", independent of other recordings.

    Voice, emotion and word are in `VOICES`, `EMOTIONS` and `WORDS`; with the seed, a whole number >= 0, they decide every
    random draw. The samples are within [-1, 1] at `SAMPLE_RATE_HZ`, 1.4 to 2.6 s of them. Raises ValueError for other
    arguments.
    """
    for thing, value, known in (("voice", voice, VOICES), ("emotion", emotion, EMOTIONS), ("word", word, WORDS)):
        if value not in known:
            raise ValueError(f"{thing} must be one of {', '.join(known)}: {value!r}")
    if seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0: {seed!r}")
    rng = np.random.default_rng([seed, *f"{voice}/{emotion}/{word}".encode()])
    f0_hz, tract_scale = _SPOKEN["voices"][voice]
    said = _PROSODY[emotion]
    rows = (_SPOKEN["phonemes"][name] for name in f"{_CARRIER} {_SPOKEN['words'][word]}".split())
    phonemes = np.array([(*row, *_VOWEL[len(row) - 3 :]) for row in rows])
    is_word = np.arange(len(phonemes)) >= len(_CARRIER.split())

    # People never say a sentence twice in the same way, so durations and what follows are random. A word before a pause is longer.
    durations_s = phonemes[:, 3] * said.stretch * np.where(is_word, 1.35, 1)
    durations_s *= np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.06, len(phonemes)))
    shortest_s, longest_s = (limit_s - _LEAD_S - _TAIL_S for limit_s in _DURATION_S)
    durations_s *= np.clip(durations_s.sum(), shortest_s + 0.02, longest_s - 0.02) / durations_s.sum()
    starts_s = _LEAD_S + np.cumsum(durations_s) - durations_s
    n_steps = int((_LEAD_S + durations_s.sum() + _TAIL_S) * SAMPLE_RATE_HZ) // (_WINDOW // 2)
    n_samples = n_steps * _WINDOW // 2

    # Formants, voicing and noise at each step; articulators move slowly, so all of them glide.
    step_s = np.arange(n_steps + 1) * _WINDOW / 2 / SAMPLE_RATE_HZ
    now = np.clip(np.searchsorted(starts_s, step_s, side="right") - 1, 0, None)
    along = (step_s - starts_s[now]) / durations_s[now]
    is_speech = (along >= 0) & (along < 1)
    formants_hz = _SCHWA + said.vowel_space * (gaussian_filter1d(phonemes[now, :3], 3.0, axis=0) - _SCHWA)
    accent = 10 ** (np.where(is_word, said.accent_db + rng.normal(0, 0.7), 0) / 20)
    voicing = gaussian_filter1d((phonemes[:, 4] * accent)[now] * is_speech, 1.0)
    noise = gaussian_filter1d(phonemes[now, 5] * (is_speech & (along >= phonemes[now, 7])), 0.5)

    contour_st = np.array(said.contour_st) * np.exp(rng.normal(0, 0.15)) + rng.normal(0, 0.4, len(_KNOTS))
    drift_st = 1.2 * gaussian_filter1d(rng.standard_normal(len(step_s)), 6.0)
    speech_s = np.interp(_KNOTS, (0, 1), (_LEAD_S, _LEAD_S + durations_s.sum()))
    pitch_st = said.pitch_st + rng.normal(0, 0.8) + gaussian_filter1d(np.interp(step_s, speech_s, contour_st), 5.0)
    sample_s = np.arange(n_samples) / SAMPLE_RATE_HZ
    pulses = _pulse(np.interp(sample_s, step_s, f0_hz * 2 ** ((pitch_st + drift_st) / 12)), said.jitter, rng)

    # The tract shapes pulses and breath, and each consonant's own band its noise. A uniform tube has a formant every 1,000 Hz;
    # without those above the third, the voice sounds muffled.
    tilt_hz = said.tilt_hz * np.exp(rng.normal(0, 0.1))
    higher_hz = np.arange(3_500.0, SAMPLE_RATE_HZ / 2, 1_000.0)[np.newaxis]
    formants_hz *= tract_scale * said.formants * np.exp(rng.normal(0, 0.01))
    tract = (
        _resonate(formants_hz, _BANDWIDTHS_HZ) * _resonate(higher_hz, 0.06 * higher_hz) / (1 + 1j * _HERTZ / tilt_hz)
    )
    centres_hz = np.clip(phonemes[:, 6] * tract_scale, 1, 9_000)
    bands = _scale(1 / np.hypot(1, 1.5 * (_HERTZ / centres_hz - centres_hz / _HERTZ)), axis=0)
    pulse_steps, breath = (
        _scale(signal.stft(one, nperseg=_WINDOW)[2]) for one in (pulses, rng.standard_normal(n_samples))
    )
    voiced = (pulse_steps + said.breath * breath) * tract * voicing
    # Frication follows the effort of the emotion: there is less of it if the voice is slack and dark.
    friction = 2 * (tilt_hz / 2_000) ** 0.35 * breath * bands[:, now] * noise
    speech = signal.istft(_scale(voiced) + friction, nperseg=_WINDOW)[1]
    speech = 10 ** ((said.level_db + rng.normal(0, 1.2)) / 20) * _scale(speech)
    speech += _ROOM_NOISE * rng.standard_normal(n_samples)
    # A soft knee in place of clipping: nearly linear for all but the loudest peaks.
    return np.asarray(0.98 * np.tanh(speech / 0.98), dtype=np.float32)


def _scale(values: npt.NDArray[Any], axis: int | None = None) -> npt.NDArray[Any]:
    """Return values, or those along an axis, with an RMS of 1."""
    return np.asarray(values / np.sqrt(np.mean(np.abs(values) ** 2, axis=axis)))


def _pulse(f0_hz: npt.NDArray[np.float64], jitter: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the derivative of the glottal flow (so with the lips' radiation) for F0 at each sample."""
    cycle = np.cumsum(f0_hz).astype(int) // SAMPLE_RATE_HZ
    irregular = rng.normal(0, jitter, cycle[-1] + 1)[cycle]
    phase = np.cumsum(f0_hz * (1 + irregular)) / SAMPLE_RATE_HZ % 1
    # The flow rises slowly, falls fast, and is 0 while the glottis is closed. This is the difference of the sampled flow, because
    # in the sampled derivative the jump at closure would alias.
    return np.diff((1 + 5 * irregular) * np.interp(phase, (0, 0.45, 0.5, 1), (0, 1, 0, 0)), prepend=0.0)


def _resonate(
    centres_hz: npt.NDArray[np.float64], bandwidths_hz: npt.NDArray[np.float64]
) -> npt.NDArray[np.complex128]:
    """Return the response of formants in a row, shape (n_steps, n_formants), by frequency and step."""
    hertz = _HERTZ[..., np.newaxis]
    poles = 1 - (hertz / centres_hz) ** 2 + 1j * hertz * bandwidths_hz / centres_hz**2
    return np.asarray(1 / poles.prod(axis=2))


def write_archive(folder: str | os.PathLike[str], *, n_words: int = 40, seed: int = 0) -> int:
    """Write `n_words` recordings for each voice and emotion, and a few broken ones; return the number of files.

    Recordings are 16-bit mono WAV files named ``<voice>_<emotion>/<voice>_<word>_<emotion>.wav``; those in ``broken/`` are an
    empty file, a text, a recording cut short, one of 0.3 s and one with NaN from 1 s on. Files of these names are overwritten
    and others left alone; the same arguments give the same bytes. Raises ValueError if `n_words` or `seed` is out of range,
    and writes nothing then.
    """
    if not 1 <= n_words <= len(WORDS):
        raise ValueError(f"n_words must be a whole number from 1 to {len(WORDS)}: {n_words!r}")
    angry, neutral, fear = (synthesize("V1", one, WORDS[0], seed=seed) for one in ("angry", "neutral", "fear"))
    for voice in VOICES:
        for emotion in EMOTIONS:
            subfolder = Path(folder, f"{voice}_{emotion}")
            subfolder.mkdir(parents=True, exist_ok=True)
            for word in WORDS[:n_words]:
                samples = synthesize(voice, emotion, word, seed=seed)
                wavfile.write(subfolder / f"{voice}_{word}_{emotion}.wav", SAMPLE_RATE_HZ, _pcm16(samples))
    broken = Path(folder, "broken")
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "V1_empty_sad.wav").write_bytes(b"")
    (broken / "V1_text_happy.wav").write_text("This is a note about a recording, not a recording.\n", newline="\n")
    wavfile.write(broken / "V1_short_neutral.wav", SAMPLE_RATE_HZ, _pcm16(neutral[: int(0.3 * SAMPLE_RATE_HZ)]))
    fear[SAMPLE_RATE_HZ:] = np.nan
    wavfile.write(broken / "V1_nan_fear.wav", SAMPLE_RATE_HZ, fear)  # float32 samples: a float WAV
    truncated = broken / "V1_truncated_angry.wav"
    wavfile.write(truncated, SAMPLE_RATE_HZ, np.pad(_pcm16(angry), (0, SAMPLE_RATE_HZ))[: 2 * SAMPLE_RATE_HZ])
    os.truncate(truncated, 44 + 2 * int(0.8 * SAMPLE_RATE_HZ))  # 44 bytes of header, 2 bytes a sample
    return len(VOICES) * len(EMOTIONS) * n_words + 5


def _pcm16(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    return np.round(samples * 32767).astype(np.int16)
