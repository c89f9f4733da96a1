"""An archive of synthesised recordings, named and laid out as the Toronto Emotional Speech Set (TESS) is.

Two voices say "say the word ..." in seven emotions, by source and filter (Fant 1960): glottal pulses, breath and frication
pass through formants that move from phoneme to phoneme. The sentence is TESS's; no sample of any corpus is in it.

References
----------
- Cahn (1990). The generation of affect in synthesized speech. J. American Voice I/O Soc. 8.
- Fant (1960). Acoustic Theory of Speech Production. Mouton.
- Juslin & Laukka (2003). Communication of emotions in vocal expression and music performance: different
  channels, same code? Psychol. Bull. 129(5).
- Klatt (1980). Software for a cascade/parallel formant synthesizer. JASA 67(3).
- Murray & Arnott (1993). Toward the simulation of emotion in synthetic speech. JASA 93(2).
- Peterson & Barney (1952). Control methods used in a study of the vowels. JASA 24(2).
- Scherer (2003). Vocal communication of emotion: a review of research paradigms. Speech Communication 40.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

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


class _Prosody(NamedTuple):
    """How one emotion is spoken; every value is the mean of what a recording draws."""

    pitch_st: float  # F0 above the voice's own in semitones
    contour_st: tuple[float, ...]  # semitones from `pitch_st` at `_KNOTS`
    stretch: float  # durations relative to neutral's: above 1 is slow
    level_db: float  # RMS of the recording relative to full scale
    accent_db: float  # how much louder the word is than the carrier
    tilt_hz: float  # cutoff of the glottal low-pass: high is bright and pressed
    breath: float  # aspiration noise relative to voicing
    jitter: float  # standard deviation of a cycle's length, relative
    formants: float  # scale of all formants: spread lips raise them, a low larynx lowers them
    vowel_space: float  # distance of vowels from schwa: above 1 is precise, below 1 slack


# The points along the speech that `contour_st` gives values for; the word is about the last two fifths.
_KNOTS = (0.0, 0.2, 0.45, 0.7, 1.0)

# Directions are those of Scherer (2003) and Juslin & Laukka (2003); disgust, which neither has, is Murray &
# Arnott's (1993), surprise Cahn's (1990). The amounts are ours, set by measuring what came out.
_PROSODY = {
    "angry": _Prosody(4.0, (2.0, -2.0, 3.0, 5.0, -6.0), 0.84, -17.0, 4.0, 5200, 0.02, 0.012, 1.03, 1.15),
    "disgust": _Prosody(-3.0, (2.5, 0.5, 0.0, 1.0, -4.5), 1.20, -24.5, 1.0, 1900, 0.08, 0.020, 0.93, 0.95),
    "fear": _Prosody(7.0, (-0.5, 0.0, 0.5, 0.5, 1.0), 0.80, -27.5, 0.0, 1500, 0.16, 0.024, 1.00, 0.90),
    "happy": _Prosody(5.5, (-3.0, 5.0, -4.0, 6.0, -2.0), 0.90, -19.5, 2.5, 3400, 0.04, 0.006, 1.07, 1.10),
    "neutral": _Prosody(0.0, (1.0, 0.5, 0.0, 0.5, -2.0), 1.00, -24.0, 0.5, 2000, 0.04, 0.005, 1.00, 1.00),
    "ps": _Prosody(8.5, (-3.5, -2.5, -2.0, 2.0, 7.0), 1.02, -22.5, 3.0, 2400, 0.12, 0.006, 1.03, 1.05),
    "sad": _Prosody(-1.5, (1.0, 0.5, 0.0, -0.5, -1.5), 1.28, -32.0, -1.5, 850, 0.30, 0.010, 0.97, 0.78),
}
EMOTIONS: tuple[str, ...] = tuple(_PROSODY)

# Mean F0 in Hz when neutral, and the scale of Peterson & Barney's formants of men (women's: about 1.16).
_VOICES = {"V1": (112.0, 1.0), "V2": (196.0, 1.16)}
VOICES: tuple[str, ...] = tuple(_VOICES)

_SCHWA = np.array([500.0, 1500.0, 2500.0])
_BANDWIDTHS_HZ = np.array([70.0, 90.0, 150.0])
# F1 to F3 of vowels are Peterson & Barney's (1952, means of men), of consonants Klatt's (1980) but for NG and
# HH; durations, voicing and noise are ours. Columns: F1, F2 and F3 in Hz, duration in s, voicing, noise relative to a vowel, its
# centre in Hz, share of the duration before a burst. A row ends where the rest is as in vowels.
_VOWEL = (0.2, 1.0, 0.0, 0.0, 0.0)
_PHONEMES = {
    "IY": (270, 2290, 3010), "IH": (390, 1990, 2550), "EH": (530, 1840, 2480), "AE": (660, 1720, 2410),
    "AA": (730, 1090, 2440), "AO": (570, 840, 2410), "UH": (440, 1020, 2240), "UW": (300, 870, 2240),
    "AH": (640, 1190, 2390), "ER": (490, 1350, 1690),
    "W": (290, 610, 2150, 0.1, 0.6), "Y": (260, 2070, 3020, 0.09, 0.6), "R": (310, 1060, 1380, 0.1, 0.6),
    "L": (310, 1050, 2880, 0.1, 0.6), "M": (480, 1270, 2130, 0.11, 0.4), "N": (480, 1340, 2470, 0.11, 0.4),
    "NG": (480, 2000, 2900, 0.12, 0.4), "HH": (500, 1500, 2500, 0.09, 0.05, 0.15, 1600),
    "F": (340, 1100, 2080, 0.14, 0.0, 0.12, 7500), "V": (220, 1100, 2080, 0.1, 0.3, 0.06, 7500),
    "TH": (320, 1290, 2540, 0.14, 0.0, 0.1, 6500), "DH": (270, 1290, 2540, 0.07, 0.4, 0.05, 6500),
    "S": (320, 1390, 2530, 0.16, 0.0, 0.4, 6800), "Z": (240, 1390, 2530, 0.13, 0.3, 0.25, 6800),
    "SH": (300, 1840, 2750, 0.16, 0.0, 0.45, 3300), "CH": (350, 1800, 2820, 0.17, 0.0, 0.5, 3500, 0.45),
    "JH": (260, 1800, 2820, 0.14, 0.2, 0.35, 3300, 0.5), "P": (400, 1100, 2150, 0.13, 0.0, 0.3, 1100, 0.6),
    "B": (200, 1100, 2150, 0.1, 0.2, 0.25, 1000, 0.75), "T": (400, 1600, 2600, 0.13, 0.0, 0.5, 4300, 0.6),
    "D": (200, 1600, 2600, 0.1, 0.2, 0.35, 4000, 0.75), "K": (300, 1990, 2850, 0.14, 0.0, 0.45, 2100, 0.6),
    "G": (200, 1990, 2850, 0.1, 0.2, 0.35, 2000, 0.7),
}  # fmt: skip

_CARRIER = "S EH Y DH AH W ER D"
# Words and their phonemes in ARPABET, a diphthong as a vowel and a glide; the first forty alone hold every vowel.
_LEXICON = """
    back B AE K, bean B IY N, boat B AO W T, book B UH K, calm K AA M, chair CH EH R, cause K AO Z, dog D AO G,
    door D AO R, fall F AO L, fish F IH SH, food F UW D, gate G EH Y T, girl G ER L, good G UH D, half HH AE F,
    home HH AO W M, jar JH AA R, keep K IY P, king K IH NG, learn L ER N, long L AO NG, mouse M AA W S, mud M AH D,
    name N EH Y M, nice N AA Y S, page P EH Y JH, pole P AO W L, rain R EH Y N, road R AO W D, rush R AH SH,
    shout SH AA W T, soap S AO W P, sun S AH N, teeth T IY TH, thin TH IH N, time T AA Y M, voice V AO Y S,
    wash W AA SH, young Y AH NG, bird B ER D, cap K AE P, cheese CH IY Z, deep D IY P, dime D AA Y M, five F AA Y V,
    goose G UW S, hat HH AE T, hill HH IH L, judge JH AH JH, lake L EH Y K, leg L EH G, moon M UW N, neck N EH K,
    noise N AO Y Z, pool P UW L, rock R AA K, sheep SH IY P, sit S IH T, tape T EH Y P, town T AA W N,
    wire W AA Y R, wood W UH D, yes Y EH S
"""
_PRONUNCIATIONS = dict(entry.strip().split(maxsplit=1) for entry in _LEXICON.split(","))
WORDS: tuple[str, ...] = tuple(_PRONUNCIATIONS)


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
    f0_hz, tract_scale = _VOICES[voice]
    said = _PROSODY[emotion]
    rows = (_PHONEMES[name] for name in f"{_CARRIER} {_PRONUNCIATIONS[word]}".split())
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
