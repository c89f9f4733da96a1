"""An archive of synthesised recordings, named and laid out as the Toronto Emotional Speech Set (TESS) is.

Two voices say "say the word ..." in seven emotions, by source and filter (Fant 1960): Rosenberg's (1971)
glottal pulses with breath noise excite a cascade of formant resonators (Klatt 1980), and bursts and frication
are added beside it. The sentence is TESS's; no sample of any corpus is in it.

References
----------
- Cahn (1990). The generation of affect in synthesized speech. J. American Voice I/O Soc. 8.
- Fant (1960). Acoustic Theory of Speech Production. Mouton.
- Juslin & Laukka (2003). Communication of emotions in vocal expression and music performance: different
  channels, same code? Psychol. Bull. 129(5).
- Klatt (1980). Software for a cascade/parallel formant synthesizer. JASA 67(3).
- Murray & Arnott (1993). Toward the simulation of emotion in synthetic speech. JASA 93(2).
- Peterson & Barney (1952). Control methods used in a study of the vowels. JASA 24(2).
- Rosenberg (1971). Effect of glottal pulse shape on the quality of natural vowels. JASA 49(2B).
- Scherer (2003). Vocal communication of emotion: a review of research paradigms. Speech Communication 40.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft, signal
from scipy.io import wavfile
from scipy.ndimage import gaussian_filter1d

Samples = npt.NDArray[np.float64]

SAMPLE_RATE_HZ = 24_414  # TESS's, so that the demo resamples as a real run does
_FRAME = 240  # samples between two settings of the formants: about 10 ms
_DURATION_S = (1.4, 2.6)
_LEAD_S, _TAIL_S = 0.08, 0.12  # silence before and after the speech
_ROOM_NOISE = 10 ** (-72 / 20)  # RMS, so that silence is not digital zero, as in no real recording


class _Prosody(NamedTuple):
    """How one emotion is spoken; every value is the mean of what a recording draws."""

    pitch_st: float  # F0 above the voice's own in semitones
    contour_st: tuple[float, ...]  # semitones from `pitch_st` at `_KNOTS`
    tremor_st: float  # depth of a 7 Hz modulation of F0
    stretch: float  # durations relative to neutral's: above 1 is slow
    level_db: float  # RMS of the recording relative to full scale
    accent_db: float  # how much louder the word is than the carrier
    tilt_hz: float  # cutoff of the glottal low-pass: high is bright and pressed
    open_quotient: float  # part of the cycle with the glottis open: high is lax
    breath: float  # aspiration noise relative to voicing
    jitter: float  # standard deviation of a cycle's length, relative
    shimmer: float  # standard deviation of a cycle's amplitude, relative
    creak: float  # how much every second cycle is weakened and late
    formants: float  # scale of all formants: spread lips raise them, a low larynx lowers them
    vowel_space: float  # distance of vowels from schwa: above 1 is precise, below 1 slack
    onset_s: float  # smoothing of the voice's onsets


# The points along the speech that `contour_st` gives values for; the word is about the last two fifths.
_KNOTS = (0.0, 0.2, 0.45, 0.7, 1.0)

# Directions are those of Scherer (2003) and Juslin & Laukka (2003); disgust, which neither has, is Murray &
# Arnott's (1993), surprise Cahn's (1990). The amounts are ours, set by measuring what came out.
# Columns: pitch_st, contour_st, tremor_st, stretch, level_db, accent_db,
#     tilt_hz, open_quotient, breath, jitter, shimmer, creak, formants, vowel_space, onset_s.
# fmt: off
_PROSODY: dict[str, _Prosody] = {
    "angry": _Prosody(4.0, (2.0, -2.0, 3.0, 5.0, -6.0), 0.0, 0.84, -17.0, 4.0,
                      5200, 0.42, 0.02, 0.012, 0.06, 0.0, 1.03, 1.15, 0.006),
    "disgust": _Prosody(-3.0, (2.5, 0.5, 0.0, 1.0, -4.5), 0.0, 1.20, -24.5, 1.0,
                        1900, 0.50, 0.08, 0.020, 0.12, 0.4, 0.93, 0.95, 0.020),
    "fear": _Prosody(7.0, (-0.5, 0.0, 0.5, 0.5, 1.0), 0.7, 0.80, -27.5, 0.0,
                     1500, 0.66, 0.16, 0.024, 0.10, 0.0, 1.00, 0.90, 0.012),
    "happy": _Prosody(5.5, (-3.0, 5.0, -4.0, 6.0, -2.0), 0.0, 0.90, -19.5, 2.5,
                      3400, 0.52, 0.04, 0.006, 0.04, 0.0, 1.07, 1.10, 0.010),
    "neutral": _Prosody(0.0, (1.0, 0.5, 0.0, 0.5, -2.0), 0.0, 1.00, -24.0, 0.5,
                        2000, 0.58, 0.04, 0.005, 0.03, 0.0, 1.00, 1.00, 0.015),
    "ps": _Prosody(8.5, (-3.5, -2.5, -2.0, 2.0, 7.0), 0.0, 1.02, -22.5, 3.0,
                   2400, 0.66, 0.12, 0.006, 0.04, 0.0, 1.03, 1.05, 0.010),
    "sad": _Prosody(-1.5, (1.0, 0.5, 0.0, -0.5, -1.5), 0.2, 1.28, -32.0, -1.5,
                    850, 0.80, 0.30, 0.010, 0.06, 0.0, 0.97, 0.78, 0.035),
}
# fmt: on
EMOTIONS: tuple[str, ...] = tuple(_PROSODY)

# Mean F0 in Hz when neutral, and the scale of Peterson & Barney's formants of men (women's: about 1.16).
_VOICES = {"V1": (112.0, 1.0), "V2": (196.0, 1.16)}
VOICES: tuple[str, ...] = ("V1", "V2")

_SCHWA = (500.0, 1500.0, 2500.0)


class _Phoneme(NamedTuple):
    """How voice and vocal tract make one phoneme; formants in Hz for a man's tract."""

    onset: tuple[float, ...]  # F1 to F3 where it begins
    offset: tuple[float, ...]  # and where it ends
    duration_s: float
    voicing: float
    noise: float = 0.0  # frication relative to the voice's RMS in vowels
    noise_hz: float = 0.0
    closure: float = 0.0  # part of the duration before the burst, when nothing is heard but voicing


# F1 to F3 of vowels are Peterson & Barney's (1952, means of men), of consonants Klatt's (1980) but for NG and
# HH; durations, voicing and noise are ours.
_VOWELS: dict[str, tuple[float, ...]] = {
    "IY": (270, 2290, 3010), "IH": (390, 1990, 2550), "EH": (530, 1840, 2480), "AE": (660, 1720, 2410),
    "AA": (730, 1090, 2440), "AO": (570, 840, 2410), "UH": (440, 1020, 2240), "UW": (300, 870, 2240),
    "AH": (640, 1190, 2390), "ER": (490, 1350, 1690),
}  # fmt: skip
_DIPHTHONGS = {
    "EY": ("EH", "IY"), "AY": ("AA", "IH"), "OW": ("AO", "UH"), "AW": ("AA", "UH"), "OY": ("AO", "IH"),
}  # fmt: skip
_CONSONANTS: dict[str, tuple[float, ...]] = {
    # F1, F2, F3, duration_s, voicing, noise, noise_hz, closure
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
_PHONEMES = {
    **{name: _Phoneme(formants, formants, 0.20, 1.0) for name, formants in _VOWELS.items()},
    **{name: _Phoneme(_VOWELS[a], _VOWELS[b], 0.25, 1.0) for name, (a, b) in _DIPHTHONGS.items()},
    **{name: _Phoneme(row[:3], row[:3], *row[3:]) for name, row in _CONSONANTS.items()},
}

_CARRIER = "S EY DH AH W ER D"
# Words and their phonemes in ARPABET; the first forty alone hold every vowel.
_LEXICON = """
    back B AE K, bean B IY N, boat B OW T, book B UH K, calm K AA M, chair CH EH R, cause K AO Z, dog D AO G,
    door D AO R, fall F AO L, fish F IH SH, food F UW D, gate G EY T, girl G ER L, good G UH D, half HH AE F,
    home HH OW M, jar JH AA R, keep K IY P, king K IH NG, learn L ER N, long L AO NG, mouse M AW S,
    mud M AH D, name N EY M, nice N AY S, page P EY JH, pole P OW L, rain R EY N, road R OW D, rush R AH SH,
    shout SH AW T, soap S OW P, sun S AH N, teeth T IY TH, thin TH IH N, time T AY M, voice V OY S,
    wash W AA SH, young Y AH NG, bird B ER D, cap K AE P, cheese CH IY Z, deep D IY P, dime D AY M,
    five F AY V, goose G UW S, hat HH AE T, hill HH IH L, judge JH AH JH, lake L EY K, leg L EH G,
    moon M UW N, neck N EH K, noise N OY Z, pool P UW L, rock R AA K, sheep SH IY P, sit S IH T, tape T EY P,
    town T AW N, wire W AY R, wood W UH D, yes Y EH S
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
    prosody = _vary(_PROSODY[emotion], rng)
    phonemes = [_PHONEMES[name] for name in f"{_CARRIER} {_PRONUNCIATIONS[word]}".split()]
    bounds_s = _bounds(phonemes, prosody.stretch, rng)
    n_frames = int((bounds_s[-1] + _TAIL_S) * SAMPLE_RATE_HZ) // _FRAME
    n_samples = n_frames * _FRAME
    frame_s = (np.arange(n_frames) + 0.5) * _FRAME / SAMPLE_RATE_HZ

    voicing = np.zeros(n_frames)
    formants_hz = np.tile(np.array(_SCHWA), (n_frames, 1))
    noise = rng.standard_normal(n_samples, dtype=np.float32)
    frication = np.zeros(n_samples)
    for index, (phoneme, start_s, end_s) in enumerate(zip(phonemes, bounds_s, bounds_s[1:], strict=False)):
        inside = (frame_s >= start_s) & (frame_s < end_s)
        along = ((frame_s[inside] - start_s) / (end_s - start_s))[:, np.newaxis]
        formants_hz[inside] = (1 - along) * np.array(phoneme.onset) + along * np.array(phoneme.offset)
        is_word = index >= len(_CARRIER.split())
        voicing[inside] = phoneme.voicing * 10 ** (prosody.accent_db * is_word / 20)
        if phoneme.noise:
            _add_frication(frication, noise, phoneme, start_s, end_s, tract_scale)

    # Articulators move slowly, so formants glide; the voice's onset is the emotion's.
    formants_hz = np.array(_SCHWA) + prosody.vowel_space * (formants_hz - np.array(_SCHWA))
    formants_hz = gaussian_filter1d(formants_hz, 1.8, axis=0, mode="nearest")
    voicing = gaussian_filter1d(voicing, prosody.onset_s * SAMPLE_RATE_HZ / _FRAME, mode="constant")
    sample_s = np.arange(n_samples) / SAMPLE_RATE_HZ
    envelope = np.interp(sample_s, frame_s, voicing)
    f0 = f0_hz * 2 ** (_contour_st(prosody, frame_s, bounds_s, rng) / 12)
    source = _glottal_source(np.interp(sample_s, frame_s, f0), prosody, rng)
    voiced = _vocal_tract(source * envelope, formants_hz, tract_scale * prosody.formants, prosody.breath)
    voiced /= np.sqrt(np.mean(voiced[envelope > 0.5] ** 2))
    # Frication follows the effort of the emotion: there is less of it if the voice is slack and dark.
    speech = voiced + frication * (prosody.tilt_hz / 2000) ** 0.35
    speech *= 10 ** (prosody.level_db / 20) / np.sqrt(np.mean(speech**2))
    speech += _ROOM_NOISE * rng.standard_normal(n_samples, dtype=np.float32)
    # A soft knee in place of clipping: nearly linear for all but the loudest peaks.
    return np.asarray(0.98 * np.tanh(speech / 0.98), dtype=np.float32)


def _vary(prosody: _Prosody, rng: np.random.Generator) -> _Prosody:
    """Return `prosody` with random changes, because people never say a sentence twice in the same way."""

    def scaled(spread: float) -> float:
        return float(np.exp(spread * rng.standard_normal()))

    range_scale = scaled(0.15)
    return prosody._replace(
        pitch_st=prosody.pitch_st + 0.8 * rng.standard_normal(),
        contour_st=tuple(range_scale * value + 0.4 * rng.standard_normal() for value in prosody.contour_st),
        stretch=prosody.stretch * scaled(0.05),
        level_db=prosody.level_db + 1.2 * rng.standard_normal(),
        accent_db=prosody.accent_db + 0.7 * rng.standard_normal(),
        tilt_hz=prosody.tilt_hz * scaled(0.10),
        open_quotient=min(0.9, prosody.open_quotient * scaled(0.04)),
        breath=prosody.breath * scaled(0.15),
        jitter=prosody.jitter * scaled(0.2),
        creak=prosody.creak * scaled(0.2),
        formants=prosody.formants * scaled(0.01),
        vowel_space=prosody.vowel_space * scaled(0.03),
    )


def _bounds(phonemes: list[_Phoneme], stretch: float, rng: np.random.Generator) -> Samples:
    """Return where phonemes begin and the last one ends, shape (n_phonemes + 1,), in seconds."""
    durations_s = stretch * np.array([phoneme.duration_s for phoneme in phonemes])
    durations_s *= np.exp(0.06 * rng.standard_normal(len(phonemes)))
    durations_s[len(_CARRIER.split()) :] *= 1.35  # a word before a pause is lengthened
    shortest_s, longest_s = (limit - _LEAD_S - _TAIL_S for limit in _DURATION_S)
    # The last frame is whole or absent, so the sum stays a frame away from either limit.
    durations_s *= np.clip(durations_s.sum(), shortest_s + 0.02, longest_s - 0.02) / durations_s.sum()
    return _LEAD_S + np.concatenate(([0.0], np.cumsum(durations_s)))


def _contour_st(prosody: _Prosody, frame_s: Samples, bounds_s: Samples, rng: np.random.Generator) -> Samples:
    """Return F0 at each frame, shape (n_frames,), in semitones from the voice's own."""
    along = (frame_s - bounds_s[0]) / (bounds_s[-1] - bounds_s[0])
    contour = gaussian_filter1d(np.interp(along, _KNOTS, prosody.contour_st), 5.0, mode="nearest")
    drift = gaussian_filter1d(rng.standard_normal(len(frame_s)), 6.0, mode="nearest")
    tremor = prosody.tremor_st * np.sin(2 * np.pi * (7.0 * frame_s + rng.random()))
    return np.asarray(prosody.pitch_st + contour + 1.2 * drift + tremor)


def _glottal_source(f0_hz: Samples, prosody: _Prosody, rng: np.random.Generator) -> Samples:
    """Return the derivative of the glottal flow (so with the lips' radiation) and breath, (n_samples,)."""
    cycle = np.floor(np.cumsum(f0_hz) / SAMPLE_RATE_HZ).astype(int)
    irregular = 1 + prosody.jitter * rng.standard_normal(cycle[-1] + 1)
    irregular[1::2] *= 1 - 0.25 * prosody.creak
    phase = np.cumsum(f0_hz * irregular[cycle]) / SAMPLE_RATE_HZ
    cycle = np.floor(phase).astype(int)
    amplitude = 1 + prosody.shimmer * rng.standard_normal(cycle[-1] + 1)
    amplitude[1::2] *= 1 - prosody.creak
    # Rosenberg's pulse C: the flow rises for two thirds of the open phase and falls faster.
    position = (phase - cycle) / prosody.open_quotient
    is_rising = position < 0.67
    cosine = np.cos(np.pi * np.where(is_rising, position / 0.67, np.clip((position - 0.67) / 0.66, 0.0, 0.5)))
    flow = amplitude[cycle] * np.where(is_rising, 0.5 * (1 - cosine), cosine)
    # This is the difference of the sampled flow, because in the sampled derivative the jump at closure would alias.
    pulses = np.diff(flow, prepend=0.0)
    pole = np.exp(-2 * np.pi * prosody.tilt_hz / SAMPLE_RATE_HZ)
    pulses = signal.lfilter([1 - pole], [1, -pole], pulses)
    pulses /= np.sqrt(np.mean(pulses**2))
    # Breath is loudest while the glottis is open.
    return np.asarray(pulses + prosody.breath * rng.standard_normal(len(pulses), dtype=np.float32) * (0.4 + flow))


def _denominators(formants_hz: Samples, bandwidths_hz: Samples) -> Samples:
    """Return all-pole denominators of unit gain at 0 Hz, (..., n_formants) to (..., 2 n_formants + 1)."""
    radius = np.exp(-np.pi * bandwidths_hz / SAMPLE_RATE_HZ)
    a1 = -2 * radius * np.cos(2 * np.pi * formants_hz / SAMPLE_RATE_HZ)
    a2 = radius**2
    product = np.zeros((*formants_hz.shape[:-1], 2 * formants_hz.shape[-1] + 1))
    product[..., 0] = 1.0
    for index in range(formants_hz.shape[-1]):
        before = product.copy()
        product[..., 1:] += a1[..., index, np.newaxis] * before[..., :-1]
        product[..., 2:] += a2[..., index, np.newaxis] * before[..., :-2]
    return np.asarray(product / product.sum(axis=-1, keepdims=True))


def _vocal_tract(source: Samples, formants_hz: Samples, scale: float, breath: float) -> Samples:
    """Return `source` through formants that change each frame, shape (n_samples,)."""
    # An open glottis damps, the first formant most.
    bandwidths_hz = np.array([70.0, 90.0, 150.0]) * (1 + np.array([2.0, 1.0, 0.5]) * breath)
    moving = _denominators(scale * formants_hz, np.broadcast_to(bandwidths_hz, formants_hz.shape))
    # A uniform tube has a formant every 1,000 Hz; without those above the third, the voice sounds muffled.
    fixed_hz = scale * np.arange(3500.0, 0.95 * SAMPLE_RATE_HZ / 2 / scale, 1000.0)
    fixed = _denominators(fixed_hz, 0.06 * fixed_hz)
    # Overlap-add of windowed frames, each through a filter of its own: a recursive filter that changes as it
    # runs clicks at each change. Five frames hold the window and the 30 ms in which a response dies away.
    n_frames, n_overlap = len(formants_hz), 5
    padded = np.concatenate([np.zeros(_FRAME), source]).reshape(-1, _FRAME)
    windowed = np.hstack([padded[:-1], padded[1:]]) * signal.windows.hann(2 * _FRAME, sym=False)
    n_fft = n_overlap * _FRAME
    # Seven coefficients are cheaper to transform by a product than by a padded FFT.
    circle = np.exp(-2j * np.pi / n_fft * np.outer(np.arange(moving.shape[-1]), np.arange(n_fft // 2 + 1)))
    responses = (moving @ circle) * fft.rfft(fixed, n_fft)
    filtered = fft.irfft(fft.rfft(windowed, n_fft) / responses, n_fft).reshape(n_frames, n_overlap, _FRAME)
    output = np.zeros((n_frames + n_overlap, _FRAME))
    for index in range(n_overlap):
        output[index : index + n_frames] += filtered[:, index]
    return output[1 : n_frames + 1].ravel()  # the first frame is the padding


def _add_frication(
    frication: Samples,
    noise: npt.NDArray[np.float32],
    phoneme: _Phoneme,
    start_s: float,
    end_s: float,
    tract_scale: float,
) -> None:
    """Add to `frication` a phoneme's burst or friction noise, a band of `noise` under an envelope."""
    start_s += phoneme.closure * (end_s - start_s)
    span = slice(int(start_s * SAMPLE_RATE_HZ), int(end_s * SAMPLE_RATE_HZ))
    centre_hz = min(phoneme.noise_hz * tract_scale, 9000.0)
    band = signal.lfilter(*signal.iirpeak(centre_hz, 1.5, fs=SAMPLE_RATE_HZ), noise[span])
    along = np.linspace(0, 1, len(band))
    # A burst starts at once and decays; friction swells and fades.
    envelope = np.exp(-4 * along) if phoneme.closure else np.sin(np.pi * along) ** 0.5
    frication[span] += phoneme.noise * envelope * band / np.sqrt(np.mean(band**2))


def write_archive(folder: str | os.PathLike[str], *, n_words: int = 40, seed: int = 0) -> int:
    """Write `n_words` recordings for each voice and emotion, and a few broken ones; return the number of files.

    Recordings are 16-bit mono WAV files named ``<voice>_<emotion>/<voice>_<word>_<emotion>.wav``; those in ``broken/`` are an
    empty file, a text, a recording cut short, one of 0.3 s and one with NaN from 1 s on. Files of these names are overwritten
    and others left alone; the same arguments give the same bytes. Raises ValueError if `n_words` or `seed` is out of range,
    and writes nothing then.
    """
    if not 1 <= n_words <= len(WORDS):
        raise ValueError(f"n_words must be a whole number from 1 to {len(WORDS)}: {n_words!r}")
    if seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0: {seed!r}")
    n_files = 0
    for voice in VOICES:
        for emotion in EMOTIONS:
            subfolder = Path(folder, f"{voice}_{emotion}")
            subfolder.mkdir(parents=True, exist_ok=True)
            for word in WORDS[:n_words]:
                samples = synthesize(voice, emotion, word, seed=seed)
                wavfile.write(subfolder / f"{voice}_{word}_{emotion}.wav", SAMPLE_RATE_HZ, _pcm16(samples))
                n_files += 1
    return n_files + _write_broken(Path(folder, "broken"), seed)


def _pcm16(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    return np.round(samples * 32767).astype(np.int16)


def _write_broken(folder: Path, seed: int) -> int:
    """Write the broken recordings; return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    word = WORDS[0]
    (folder / "V1_empty_sad.wav").write_bytes(b"")
    (folder / "V1_text_happy.wav").write_text("This is a note about a recording, not a recording.\n", newline="\n")

    truncated = folder / "V1_truncated_angry.wav"
    angry = _pcm16(synthesize("V1", "angry", word, seed=seed))
    wavfile.write(truncated, SAMPLE_RATE_HZ, np.pad(angry, (0, SAMPLE_RATE_HZ))[: 2 * SAMPLE_RATE_HZ])
    os.truncate(truncated, 44 + 2 * int(0.8 * SAMPLE_RATE_HZ))  # 44 bytes of header, 2 bytes a sample

    neutral = synthesize("V1", "neutral", word, seed=seed)
    wavfile.write(folder / "V1_short_neutral.wav", SAMPLE_RATE_HZ, _pcm16(neutral[: int(0.3 * SAMPLE_RATE_HZ)]))

    fear = synthesize("V1", "fear", word, seed=seed)
    fear[SAMPLE_RATE_HZ:] = np.nan
    wavfile.write(folder / "V1_nan_fear.wav", SAMPLE_RATE_HZ, fear)  # float32 samples: a float WAV
    return 5
