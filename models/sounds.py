"""Makes sounds that are not speech, by kind, each from a seed; `speech.py` fits and judges its detector with them.

Every kind draws all of its parameters from wide ranges, because a detector that learns a kind from one setting does not find other sounds of
that kind. `record` puts a sound, or speech, in the place of a recording: in a room, in noise, on the telephone, with silence around.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import scipy.signal
import soxr

Samples = npt.NDArray[np.float64]
Generator = np.random.Generator
# Makes a number of samples at a rate.
Maker = Callable[[int, int, Generator], Samples]

RATES_HZ = (8_000, 16_000, 16_000, 22_050, 44_100)
# The length of a recording, in seconds.
_DURATION_S = (1.0, 5.0)
# No synthetic sound has frequencies above this.
_MOST_HZ = 9_000.0
_TELEPHONE_HZ = 8_000


def make(kind: str, seed: int) -> tuple[npt.NDArray[np.float32], int]:
    """Return the recording of one sound, and its rate in Hz; the same seed gives the same samples."""
    rng = np.random.default_rng([seed, *kind.encode()])
    rate = int(rng.choice(RATES_HZ))
    n_samples = round(rate * rng.uniform(*_DURATION_S))
    samples = KINDS[kind](n_samples, rate, rng)
    return record(samples, rate, rng)


def record(samples: Samples, rate: int, rng: Generator) -> tuple[npt.NDArray[np.float32], int]:
    """Return a sound as in a random recording, and the rate of that recording in Hz."""
    if rng.random() < 0.35:
        samples = add_room(samples, rate, rng)
    if rng.random() < 0.5:
        samples = equalise(samples, rate, rng)
    if rng.random() < 0.6:
        samples = add_noise(samples, rate, rng, rng.uniform(8, 50))
    if rng.random() < 0.25:
        samples, rate = telephone(samples, rate, rng)
    if rng.random() < 0.3:
        samples = np.pad(samples, [round(rate * seconds) for seconds in rng.exponential(0.5, 2)])
    return level(samples, rng.uniform(-45, -8)), rate


def level(samples: Samples, level_db: float) -> npt.NDArray[np.float32]:
    """Return samples at a level in decibels against a full square wave; values beyond the range are clipped."""
    loudness = np.sqrt(np.mean(samples**2)) or 1.0
    return np.clip(samples / loudness * 10 ** (level_db / 20), -1, 1).astype(np.float32)


def add_room(samples: Samples, rate: int, rng: Generator) -> Samples:
    """Return a sound with the echo of a room, which decays by 60 dB in 0.1 to 1.2 s."""
    decay_s = np.exp(rng.uniform(np.log(0.1), np.log(1.2)))
    seconds = np.arange(round(rate * decay_s)) / rate
    echo = _colour(len(seconds), rate, rng, rng.uniform(0, 1)) * np.exp(-6.9 * seconds / decay_s)
    echo *= rng.uniform(0.3, 1.5) / np.sqrt(np.sum(echo**2))
    echo[0] += 1
    return scipy.signal.fftconvolve(samples, echo)[: len(samples)]


def add_noise(samples: Samples, rate: int, rng: Generator, snr_db: float) -> Samples:
    """Return a sound with noise of a random colour, at a signal-to-noise ratio in decibels."""
    noise = _colour(len(samples), rate, rng, rng.uniform(0, 2))
    return samples + noise * np.sqrt(np.mean(samples**2)) * 10 ** (-snr_db / 20)


def equalise(samples: Samples, rate: int, rng: Generator) -> Samples:
    """Return a sound as from a random microphone: a few decibels more or less, gradually over frequency."""
    gains_db = np.cumsum(rng.normal(0, 2.5, 7))
    at_hz = np.array([0, 125, 250, 500, 1_000, 2_000, 4_000])
    return _filter(samples, rate, lambda hertz: 10 ** (np.interp(hertz, at_hz, gains_db) / 20))


def telephone(samples: Samples, rate: int, rng: Generator) -> tuple[Samples, int]:
    """Return a sound as from a telephone, at 8 kHz: its band, and often the steps of 8 bits (mu-law, ITU-T G.711)."""
    sides = rng.uniform(200, 350), rng.uniform(3_200, 3_600)
    banded = scipy.signal.sosfilt(scipy.signal.butter(4, sides, "bandpass", fs=rate, output="sos"), samples)
    if rate != _TELEPHONE_HZ:
        banded = soxr.resample(banded, rate, _TELEPHONE_HZ)
    if rng.random() < 0.5:
        peak = np.abs(banded).max() or 1.0
        steps = np.sign(banded) * np.log1p(255 * np.abs(banded) / peak) / np.log(256)
        steps = np.rint(steps * 127) / 127
        banded = np.sign(steps) * np.expm1(np.abs(steps) * np.log(256)) / 255 * peak
    return banded, _TELEPHONE_HZ


def play(samples: Samples, factor: float) -> Samples:
    """Return samples played faster or slower by a factor, which moves all frequencies."""
    return soxr.resample(samples, 1_000.0 * factor, 1_000.0)


def cut_loud(samples: Samples, rate: int, rng: Generator, length_s: float) -> Samples:
    """Return a random piece of a given length that is among the louder ones."""
    n_piece = min(len(samples), round(rate * length_s))
    starts = rng.integers(0, len(samples) - n_piece + 1, 4)
    start = max(starts, key=lambda one: float(np.sum(samples[one : one + n_piece] ** 2)))
    return samples[start : start + n_piece]


def fade(samples: Samples, rate: int) -> Samples:
    """Return samples that begin and end softly."""
    return samples * _envelope(len(samples), rate, 0.02, 0.04)


def _log(rng: Generator, low: float, high: float) -> float:
    """Return a random number between two, whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _filter(samples: Samples, rate: int, gain: Callable[[Samples], Samples]) -> Samples:
    """Return samples after a filter; `gain` gives its gain at a frequency in Hz."""
    n_fft = scipy.fft.next_fast_len(len(samples), real=True)
    spectrum = scipy.fft.rfft(samples, n_fft) * gain(scipy.fft.rfftfreq(n_fft, 1 / rate))
    return scipy.fft.irfft(spectrum, n_fft)[: len(samples)]


def _colour(n_samples: int, rate: int, rng: Generator, slope: float) -> Samples:
    """Return noise of power 1 that falls by ``f ** -slope`` from 40 Hz on."""
    noise = _filter(rng.standard_normal(n_samples), rate, lambda hertz: np.maximum(hertz, 40.0) ** (-slope / 2))
    return noise / (np.sqrt(np.mean(noise**2)) or 1.0)


def _peaks(centres_hz: Samples, widths_hz: Samples, gains: Samples) -> Callable[[Samples], Samples]:
    """Return the gain of some resonances side by side."""

    def gain(hertz: Samples) -> Samples:
        found = np.full(len(hertz), 0.02)
        for centre, width, height in zip(centres_hz, widths_hz, gains, strict=True):
            found += height / np.sqrt(1 + ((hertz - centre) / (width / 2)) ** 2)
        return found

    return gain


def _body(rng: Generator, n_peaks: int, low_hz: float, high_hz: float) -> Callable[[Samples], Samples]:
    """Return the gain of a body, throat or box with some resonances between two frequencies."""
    centres = np.exp(rng.uniform(np.log(low_hz), np.log(high_hz), n_peaks))
    return _peaks(centres, centres * rng.uniform(0.05, 0.4, n_peaks), rng.uniform(0.2, 1, n_peaks))


def _curve(n_samples: int, rate: int, rng: Generator, hertz: float) -> Samples:
    """Return a random curve with a deviation of about 1, which varies no faster than a rate in Hz."""
    n_points = max(4, int(n_samples / rate * hertz * 2) + 3)
    return np.interp(np.linspace(0, n_points - 1, n_samples), np.arange(n_points), rng.standard_normal(n_points))


def _pulses(f0_hz: Samples, rate: int, rng: Generator, *, bright: float, rough: float = 0.0) -> Samples:
    """Return pulses at a fundamental that moves, with harmonics up to some `bright` Hz.

    With `rough`, from 0 to 1, the pulses come unevenly and every second is weaker.
    """
    f0_hz = f0_hz * (1 + 0.08 * rough * _curve(len(f0_hz), rate, rng, 60.0))
    phase = np.cumsum(f0_hz) / rate + rng.random()
    # The harmonics of this pulse fall as a Gaussian curve whose deviation is the root of `sharpness`.
    sharpness = np.maximum(1.0, min(bright, 0.3 * rate) / f0_hz) ** 2
    found = np.exp(sharpness * (np.cos(2 * np.pi * phase) - 1)) * np.sqrt(np.sqrt(sharpness))
    found = found * (1 - 0.6 * rough * (np.floor(phase + 0.5) % 2))
    return scipy.signal.lfilter([1, -1], [1, -0.995], found)


def _envelope(n_samples: int, rate: int, attack_s: float, release_s: float) -> Samples:
    """Return an envelope that rises to 1, stays and falls, with round shoulders."""
    at = np.arange(n_samples) / rate
    left = np.clip(at / max(attack_s, 1e-3), 0, 1)
    right = np.clip((n_samples / rate - at) / max(release_s, 1e-3), 0, 1)
    return np.sin(np.pi / 2 * left) ** 2 * np.sin(np.pi / 2 * right) ** 2


def _place(found: Samples, event: Samples, start: int) -> None:
    """Add an event to a recording, up to the end of the recording."""
    end = min(len(found), start + len(event))
    if start < end:
        found[start:end] += event[: end - start]


def _repeat(
    n_samples: int,
    rate: int,
    rng: Generator,
    event: Callable[[int], Samples],
    gap_s: tuple[float, float],
    uneven: float,
) -> Samples:
    """Return events at intervals that are drawn once from a range and then vary by a share; now and then a longer pause."""
    found, interval = np.zeros(n_samples), _log(rng, *gap_s)
    start, number = round(rate * rng.uniform(0, min(0.5, interval))), 0
    while start < n_samples or not number:
        _place(found, event(number) * rng.uniform(0.6, 1), min(start, n_samples - 1))
        number += 1
        start += max(1, round(rate * interval * np.exp(uneven * rng.standard_normal())))
        if rng.random() < uneven / 5:
            start += round(rate * interval * rng.uniform(1, 4))
    return found


def _noise(n_samples: int, rate: int, rng: Generator) -> Samples:
    noise = _colour(n_samples, rate, rng, rng.uniform(-0.5, 3))
    if rng.random() < 0.5:
        low = _log(rng, 60, 1_500)
        high = min(0.45 * rate, low * _log(rng, 1.5, 20))
        noise = scipy.signal.sosfilt(scipy.signal.butter(2, (low, high), "bandpass", fs=rate, output="sos"), noise)
    gusts = np.exp(rng.uniform(0, 1.2) * _curve(n_samples, rate, rng, _log(rng, 0.3, 10)))
    return noise * (gusts if rng.random() < 0.6 else 1)


def _waves(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return surf and wind: noise that swells for seconds, and becomes brighter as it does."""
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.08, 0.6) * np.arange(n_samples) / rate + rng.uniform(0, 6.3))
    swell = swell ** rng.uniform(1, 4) * np.exp(0.3 * _curve(n_samples, rate, rng, 3))
    dark, bright = (_colour(n_samples, rate, rng, slope) for slope in (rng.uniform(1, 2.5), rng.uniform(0, 1)))
    found = dark * (0.1 + swell) + rng.uniform(0.2, 1.5) * bright * swell**2
    if rng.random() < 0.3:
        # Wind whistles in a gap.
        centre = _log(rng, 200, 1_500)
        found += _filter(bright, rate, _peaks(np.array([centre]), np.array([centre / 12]), np.array([3.0]))) * swell
    return found


def _rain(n_samples: int, rate: int, rng: Generator) -> Samples:
    found = _colour(n_samples, rate, rng, rng.uniform(0, 1.2)) * rng.choice([rng.uniform(0, 0.2), 1.0])
    seconds = np.arange(round(0.08 * rate)) / rate
    for start in rng.integers(0, n_samples, int(_log(rng, 5, 400) * n_samples / rate) + 1):
        drop = rng.standard_normal(len(seconds)) * np.exp(-seconds * _log(rng, 100, 2_000))
        _place(found, drop * np.exp(rng.standard_normal()), int(start))
    return found if rng.random() < 0.5 else _filter(found, rate, _body(rng, 4, 200, 5_000))


def _drips(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return drops, brooks and pouring: bubbles, each a tone that rises as it fades."""
    found = _colour(n_samples, rate, rng, rng.uniform(0, 2)) * _log(rng, 0.003, 0.5)
    low_hz = _log(rng, 150, 1_000)
    high_hz, decay = low_hz * _log(rng, 1.2, 8), _log(rng, 10, 120)
    seconds = np.arange(round(0.25 * rate)) / rate
    for start in rng.integers(0, n_samples, int(_log(rng, 1, 120) * n_samples / rate) + 1):
        hertz = np.minimum(_log(rng, low_hz, high_hz) * (1 + rng.uniform(0, 4) * seconds), 0.45 * rate)
        drop = np.sin(2 * np.pi * np.cumsum(hertz) / rate) * np.exp(-seconds * decay * _log(rng, 0.5, 2))
        _place(found, drop * np.exp(rng.standard_normal()), int(start))
    return found if rng.random() < 0.5 else _filter(found, rate, _body(rng, 4, 200, 5_000))


def _tones(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return steady tones, sweeps, beeps, sirens and alarms."""
    seconds, way = np.arange(n_samples) / rate, rng.integers(5)
    hertz = np.full(n_samples, _log(rng, 80, 3_000))
    if way == 1:
        hertz = np.geomspace(_log(rng, 60, 500), _log(rng, 500, 3_400), n_samples)[:: rng.choice([-1, 1])]
    if way == 2:
        # A siren rises and falls.
        turn = np.sin(2 * np.pi * _log(rng, 0.2, 8) * seconds)
        hertz = hertz * 2 ** (rng.uniform(0.1, 0.7) * (turn if rng.random() < 0.6 else np.sign(turn)))
    found = np.sin(2 * np.pi * np.cumsum(hertz) / rate)
    if rng.random() < 0.5:
        found = _pulses(np.minimum(hertz, 1_500), rate, rng, bright=_log(rng, 300, 5_000))
    if way == 3:
        found += np.sin(2 * np.pi * _log(rng, 300, 3_000) * seconds)
    if way >= 3 or rng.random() < 0.3:
        period, share = _log(rng, 0.08, 1.2), rng.uniform(0.2, 0.8)
        found = found * ((seconds % period) < share * period)
    return found


def _gadgets(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return games, robots, telephones and modems: short tones, each of another pitch, that jump or glide in no scale."""
    low_hz = _log(rng, 80, 1_000)
    high_hz, length_s, span = low_hz * _log(rng, 1.2, 8), _log(rng, 0.03, 0.4), rng.choice([0, rng.uniform(0, 1)])
    bright, is_pure, decay = _log(rng, 300, 5_000), rng.random() < 0.5, rng.choice([0, _log(rng, 3, 60)])

    def blip(_: int) -> Samples:
        n_blip = max(2, round(rate * length_s * np.exp(0.4 * rng.standard_normal())))
        seconds = np.arange(n_blip) / rate
        hertz = _log(rng, low_hz, high_hz) * np.exp(np.linspace(0, rng.uniform(-span, span), n_blip))
        hertz = np.minimum(hertz, min(4_000, 0.4 * rate))
        pure = np.sin(2 * np.pi * np.cumsum(hertz) / rate)
        found = pure if is_pure else _pulses(hertz, rate, rng, bright=bright)
        return found * np.exp(-decay * seconds) * _envelope(n_blip, rate, 0.003, 0.01)

    return _repeat(n_samples, rate, rng, blip, (length_s, 3 * length_s), rng.uniform(0.01, 0.6))


def _music(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return notes of an instrument, alone or as chords, in a rhythm; at times with drums."""
    found, step_s = np.zeros(n_samples), _log(rng, 0.12, 0.7)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 17, 19])
    chord = ((0,), (0,), (0, 12), (0, 4, 7), (0, 3, 7), (0, 7))[rng.integers(6)]
    root_hz, decay, vibrato = _log(rng, 60, 500), rng.uniform(0, 6), rng.choice([0, rng.uniform(0.002, 0.02)])
    bright, body = _log(rng, 300, 4_000), _body(rng, 5, 150, 4_000)
    attack_s, length = _log(rng, 0.003, 0.1), rng.uniform(0.6, 2.5)
    start, place = 0, rng.integers(len(scale))
    while start < n_samples:
        n_note = round(rate * step_s * length)
        seconds = np.arange(n_note) / rate
        for above in chord:
            f0_hz = root_hz * 2 ** ((scale[place] + above) / 12)
            f0_hz = f0_hz * (1 + vibrato * np.sin(2 * np.pi * 5.5 * seconds + rng.uniform(0, 6.3)))
            note = _pulses(f0_hz, rate, rng, bright=bright) * np.exp(-decay * seconds)
            _place(found, note * _envelope(n_note, rate, attack_s, 0.05), start)
        place = (place + rng.integers(-3, 4)) % len(scale)
        start += round(rate * step_s * rng.choice([0.5, 1, 1, 1, 2]))
    found = _filter(found, rate, body)
    if rng.random() < 0.3:
        drums = _drums(n_samples, rate, rng)
        found += rng.uniform(0.1, 1) * drums * np.std(found) / (np.std(drums) or 1)
    return found


def _drums(n_samples: int, rate: int, rng: Generator) -> Samples:
    strokes, step = [], max(1, round(rate * _log(rng, 0.08, 0.4)))
    seconds = np.arange(round(0.5 * rate)) / rate
    for _ in range(3):
        skin_hz = _log(rng, 45, 400) * (1 + rng.uniform(0, 1) * np.exp(-30 * seconds))
        skin = np.sin(2 * np.pi * np.cumsum(skin_hz) / rate) * np.exp(-seconds * _log(rng, 6, 40))
        rattle = _colour(len(seconds), rate, rng, rng.uniform(-1, 1)) * np.exp(-seconds * _log(rng, 10, 120))
        strokes.append(rng.uniform(0, 1) * skin + rng.uniform(0, 0.7) * rattle)
    pattern, found = rng.integers(-1, 3, 8), np.zeros(n_samples)
    for number, start in enumerate(range(0, n_samples, step)):
        if pattern[number % 8] >= 0:
            _place(found, strokes[pattern[number % 8]] * rng.uniform(0.5, 1), start)
    return found


def _engine(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return engines and motors: harmonics of a speed that wanders or changes, with noise in their rhythm."""
    f0_hz = _log(rng, 18, 250) * np.exp(rng.uniform(0, 0.15) * _curve(n_samples, rate, rng, _log(rng, 0.3, 5)))
    if rng.random() < 0.5:
        f0_hz = f0_hz * np.geomspace(1, _log(rng, 0.4, 2.5), n_samples)
    pulses = _pulses(f0_hz, rate, rng, bright=_log(rng, 100, 3_000), rough=rng.uniform(0, 0.8))
    noise = _colour(n_samples, rate, rng, rng.uniform(0, 2))
    rhythm = 1 + rng.uniform(0, 1) * np.cos(2 * np.pi * np.cumsum(f0_hz) / rate)
    found = pulses / np.std(pulses) + rng.uniform(0.05, 2) * noise * rhythm
    return _filter(found, rate, _body(rng, 6, 60, 4_000))


def _saw(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return chainsaws, drills and mowers: a rough motor whose speed is pulled up, sags in the wood and idles."""
    n_points = max(3, round(n_samples / rate * _log(rng, 0.5, 4)) + 2)
    speed = np.interp(np.linspace(0, n_points - 1, n_samples), np.arange(n_points), rng.uniform(0, 1, n_points))
    idle = rng.uniform(0.05, 1)
    f0_hz = _log(rng, 50, 180) * (1 + rng.uniform(0.1, 1.5) * speed)
    pulses = _pulses(f0_hz, rate, rng, bright=_log(rng, 500, 5_000), rough=rng.uniform(0.1, 1))
    teeth = _colour(n_samples, rate, rng, rng.uniform(-0.5, 1)) * (1 + np.cos(2 * np.pi * np.cumsum(f0_hz) / rate))
    found = (pulses / np.std(pulses) + rng.uniform(0.1, 1.5) * teeth) * (idle + (1 - idle) * speed)
    return _filter(found, rate, _body(rng, 7, 100, 6_000))


def _helicopter(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return rotors: thumps 5 to 30 times a second, the noise that they chop, and at times a turbine's whine."""
    beat_hz = _log(rng, 5, 30) * np.exp(0.03 * _curve(n_samples, rate, rng, 0.5))
    phase = np.cumsum(beat_hz) / rate
    thump = np.exp(rng.uniform(1, 20) * (np.cos(2 * np.pi * phase) - 1))
    low, high = (_colour(n_samples, rate, rng, slope) for slope in (rng.uniform(1.5, 3), rng.uniform(0, 1.5)))
    found = low * (rng.uniform(0.1, 1) + thump) + rng.uniform(0, 1) * high * (rng.uniform(0, 1) + thump)
    found += rng.uniform(0, 3) * (thump - thump.mean())
    if rng.random() < 0.5:
        hertz = np.full(n_samples, _log(rng, 80, 2_000))
        found += rng.uniform(0, 0.5) * _pulses(hertz, rate, rng, bright=_log(rng, 300, 3_000))
    nearer = np.linspace(rng.uniform(0.2, 1), rng.uniform(0.2, 1), n_samples)
    return _filter(found * nearer, rate, _body(rng, 5, 50, 3_000))


def _call(
    n_samples: int,
    rate: int,
    rng: Generator,
    f0_hz: Samples,
    *,
    bodies: tuple[Callable[[Samples], Samples], Callable[[Samples], Samples]],
    bright: float,
    rough: float,
    breath: float,
    attack_s: float,
    release_s: float,
) -> Samples:
    """Return a voice of an animal or a child: pulses and breath through a throat that goes from one shape to another."""
    source = _pulses(f0_hz, rate, rng, bright=bright, rough=rough)
    source = source / (np.std(source) or 1.0) + breath * rng.standard_normal(n_samples)
    along = np.linspace(0, 1, n_samples) ** rng.uniform(0.5, 2)
    opened = along if rng.random() < 0.5 else np.sin(np.pi * along)
    found = _filter(source, rate, bodies[0]) * (1 - opened) + _filter(source, rate, bodies[1]) * opened
    return found * _envelope(n_samples, rate, attack_s, release_s)


def _throats(rng: Generator, low_hz: float, high_hz: float) -> tuple[Callable[[Samples], Samples], ...]:
    """Return two shapes of a throat whose length is drawn: resonances at odd multiples of the lowest, moved somewhat."""
    lowest = _log(rng, low_hz, high_hz)
    shapes = []
    for _ in range(2):
        centres = lowest * np.array([1, 3, 5, 7]) * np.exp(0.2 * rng.standard_normal(4))
        shapes.append(_peaks(centres, centres * rng.uniform(0.06, 0.3, 4), rng.uniform(0.1, 1, 4)))
    return tuple(shapes)


def _barks(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return barks, yaps and quacks: short, rough, with a pitch that rises and falls."""
    lowest_hz, throats = _log(rng, 120, 900), _throats(rng, 300, 1_200)
    length_s, rough, breath = _log(rng, 0.06, 0.35), rng.uniform(0, 1), _log(rng, 0.02, 1.5)
    bright, top = _log(rng, 500, 4_000), rng.uniform(0, 1.2)

    def bark(_: int) -> Samples:
        n_bark = round(rate * length_s * np.exp(0.15 * rng.standard_normal()))
        arch = np.sin(np.pi * np.linspace(0.1, 1, n_bark) ** rng.uniform(0.5, 1))
        f0_hz = lowest_hz * np.exp(0.08 * rng.standard_normal()) * (1 + top * arch)
        return _call(
            *(n_bark, rate, rng, f0_hz),
            bodies=throats, bright=bright, rough=rough, breath=breath, attack_s=0.1 * length_s, release_s=0.5 * length_s,
        )  # fmt: skip

    return _repeat(n_samples, rate, rng, bark, (max(0.15, 1.2 * length_s), 3.0), rng.uniform(0.02, 0.5))


def _chirps(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return birds, crickets and frogs: short glides of a whistle, or a buzz, in series."""
    centre_hz, length_s = _log(rng, 400, min(5_000, 0.35 * rate)), _log(rng, 0.02, 0.4)
    span, trill, is_buzz = rng.uniform(0, 0.6), rng.uniform(0, 60), rng.random() < 0.3
    trill_depth = rng.choice([0, rng.uniform(0.02, 0.3)])

    def chirp(_: int) -> Samples:
        n_chirp = round(rate * length_s * np.exp(0.3 * rng.standard_normal()))
        seconds = np.arange(n_chirp) / rate
        glide = np.interp(np.linspace(0, 2, n_chirp), [0, 1, 2], rng.uniform(-span, span, 3))
        hertz = np.minimum(centre_hz * np.exp(glide + trill_depth * np.sin(2 * np.pi * trill * seconds)), 0.45 * rate)
        found = np.sin(2 * np.pi * np.cumsum(hertz) / rate)
        if is_buzz:
            found = found * (1 + np.sign(np.sin(2 * np.pi * (20 + trill) * seconds)))
        return found * _envelope(n_chirp, rate, 0.3 * length_s, 0.4 * length_s)

    return _repeat(n_samples, rate, rng, chirp, (max(0.05, length_s), 1.5), rng.uniform(0.02, 0.6))


def _crows(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return cocks, howls, gulls and donkeys: a call of several syllables that glide, the last one long."""
    f0_hz, throats = _log(rng, 180, 1_000), _throats(rng, 350, 1_300)
    bright, breath, rough = _log(rng, 800, 5_000), _log(rng, 0.01, 0.6), rng.uniform(0, 0.7)
    n_parts, pause_s = int(rng.integers(1, 6)), _log(rng, 0.01, 0.25)

    def crow(_: int) -> Samples:
        parts = []
        for number in range(n_parts):
            is_last = number == n_parts - 1
            n_part = round(rate * (_log(rng, 0.4, 2.0) if is_last else _log(rng, 0.08, 0.5)))
            points = np.cumsum(rng.normal(0, 0.18, 4)) + rng.normal(0, 0.15)
            glide = np.interp(np.linspace(0, 3, n_part), np.arange(4), points)
            part = _call(
                *(n_part, rate, rng, np.clip(f0_hz * np.exp(glide), 80, 1_500)),
                bodies=throats, bright=bright, rough=rough, breath=breath,
                attack_s=_log(rng, 0.01, 0.1), release_s=_log(rng, 0.03, 0.4),
            )  # fmt: skip
            parts += [part * rng.uniform(0.5, 1), np.zeros(round(rate * pause_s))]
        return np.concatenate(parts)

    return _repeat(n_samples, rate, rng, crow, (2.0, 6.0), 0.3)


def _cries(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return babies, cats and lambs: long calls between breaths, whose pitch arches and trembles."""
    lowest_hz, throats = _log(rng, 220, 650), _throats(rng, 450, 1_300)
    length_s, pause_s = _log(rng, 0.3, 1.6), _log(rng, 0.08, 1.0)
    bright, breath, rough = _log(rng, 800, 5_000), _log(rng, 0.01, 0.5), rng.uniform(0, 0.8)
    top, tremble, tremble_hz = rng.uniform(0, 0.8), rng.uniform(0, 0.05), rng.uniform(4, 12)

    def cry(_: int) -> Samples:
        n_cry = round(rate * length_s * np.exp(0.25 * rng.standard_normal()))
        seconds = np.arange(n_cry) / rate
        arch = np.sin(np.pi * np.linspace(0, 1, n_cry) ** rng.uniform(0.4, 1.5))
        wander = tremble * np.sin(2 * np.pi * tremble_hz * seconds) + 0.03 * _curve(n_cry, rate, rng, 6)
        return _call(
            *(n_cry, rate, rng, lowest_hz * (1 + top * arch) * np.exp(wander)),
            bodies=throats, bright=bright, rough=rough * (rng.random() < 0.5), breath=breath,
            attack_s=_log(rng, 0.02, 0.2), release_s=_log(rng, 0.05, 0.4),
        )  # fmt: skip

    found = _repeat(n_samples, rate, rng, cry, (length_s + pause_s, length_s + pause_s + 0.01), rng.uniform(0.05, 0.3))
    if rng.random() < 0.4:
        # The breath between two cries is heard.
        breaths = _filter(_colour(n_samples, rate, rng, 0.5), rate, throats[0])
        found += (
            rng.uniform(0.02, 0.3) * breaths * np.std(found) / np.std(breaths) * (_curve(n_samples, rate, rng, 2) > 0)
        )
    return found


def _growls(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return growls, moos, snores and purrs: low, rough, slow."""
    lowest_hz, throats = _log(rng, 25, 180), _throats(rng, 150, 600)
    length_s, bright = _log(rng, 0.3, 2.5), _log(rng, 200, 2_500)
    rough, breath, span = rng.uniform(0.2, 1), _log(rng, 0.05, 2), rng.uniform(0, 0.5)

    def growl(_: int) -> Samples:
        n_growl = round(rate * length_s * np.exp(0.2 * rng.standard_normal()))
        glide = np.interp(np.linspace(0, 3, n_growl), np.arange(4), rng.uniform(-span, span, 4))
        return _call(
            *(n_growl, rate, rng, lowest_hz * np.exp(glide)),
            bodies=throats, bright=bright, rough=rough, breath=breath,
            attack_s=_log(rng, 0.05, 0.6), release_s=_log(rng, 0.05, 0.8),
        )  # fmt: skip

    return _repeat(n_samples, rate, rng, growl, (1.1 * length_s, 2.5 * length_s), rng.uniform(0.02, 0.3))


def _sneezes(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return sneezes, coughs, hiccups and sighs: perhaps breath drawn in, a short voice, and a burst of noise that fades."""
    throats, f0_hz = _throats(rng, 350, 800), _log(rng, 90, 450)
    voice, burst, intake = rng.uniform(0, 1.2), rng.uniform(0.4, 1.5), rng.choice([0, rng.uniform(0.05, 0.6)])
    length_s, fade = _log(rng, 0.1, 0.6), rng.uniform(4, 25)
    hiss = _body(rng, 4, 800, 7_000)
    order = rng.integers(3)

    def sneeze(_: int) -> Samples:
        n_voice, n_burst, n_intake = (round(rate * seconds) for seconds in (_log(rng, 0.06, 0.4), length_s, 0.5))
        glide = np.linspace(0, rng.uniform(-0.5, 0.4), n_voice)
        spoken = voice * _call(
            *(n_voice, rate, rng, f0_hz * np.exp(glide)),
            bodies=throats, bright=_log(rng, 500, 3_000), rough=rng.uniform(0, 0.6), breath=_log(rng, 0.1, 1.5),
            attack_s=0.02, release_s=0.08,
        )  # fmt: skip
        shape = hiss if rng.random() < 0.6 else throats[0]
        noise = _filter(_colour(n_burst, rate, rng, rng.uniform(0, 1)), rate, shape)
        noise *= (
            burst
            * np.exp(-fade * np.arange(n_burst) / rate)
            / (np.std(noise) or 1)
            * _envelope(n_burst, rate, 0.01, 0.05)
        )
        drawn = _filter(_colour(n_intake, rate, rng, 0.5), rate, throats[1])
        drawn *= intake / (np.std(drawn) or 1) * _envelope(n_intake, rate, 0.3, 0.1)
        return np.concatenate([drawn, *([spoken, noise], [noise, spoken], [noise])[order]])

    return _repeat(n_samples, rate, rng, sneeze, (0.4, 4.0), 0.4)


def _laughs(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return monkeys, hens and goats: short calls in quick series, each with breath, that fall in pitch as the series goes on."""
    f0_hz, throats, step_s = _log(rng, 150, 700), _throats(rng, 350, 1_000), _log(rng, 0.1, 0.3)
    breath, rough, bright = _log(rng, 0.05, 1.0), rng.uniform(0, 0.8), _log(rng, 500, 4_000)
    n_calls, fall = int(rng.integers(3, 12)), rng.uniform(-0.05, 0.1)

    def call(number: int) -> Samples:
        n_call = round(rate * step_s * rng.uniform(0.4, 0.9))
        glide = np.linspace(rng.uniform(-0.1, 0.2), rng.uniform(-0.3, 0.1), n_call) - fall * (number % n_calls)
        return _call(
            *(n_call, rate, rng, f0_hz * np.exp(glide)),
            bodies=throats, bright=bright, rough=rough, breath=breath, attack_s=0.02, release_s=0.06,
        )  # fmt: skip

    return _repeat(n_samples, rate, rng, call, (step_s, step_s + 1e-6), 0.06)


def _crackle(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return fire, paper and gravel: clicks of all sizes at random, over a murmur."""
    found = _colour(n_samples, rate, rng, rng.uniform(0.5, 2.5)) * _log(rng, 0.001, 0.3)
    found *= np.exp(0.4 * _curve(n_samples, rate, rng, 4))
    length, decay = round(0.05 * rate), _log(rng, 150, 3_000)
    for start in rng.integers(0, n_samples, int(_log(rng, 3, 150) * n_samples / rate) + 1):
        click = rng.standard_normal(length) * np.exp(-np.arange(length) / rate * decay * _log(rng, 0.5, 2))
        _place(found, click * rng.pareto(1.5), int(start))
    return found if rng.random() < 0.5 else _filter(found, rate, _body(rng, 5, 150, 6_000))


def _ticks(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return clocks, keys and metronomes: clicks that ring shortly, evenly or in pairs."""
    rings = [_struck(rng, rate, 0.15, (300, 6_000), (30, 400), int(rng.integers(1, 6))) for _ in range(2)]
    click = rng.uniform(0, 1)

    def tick(number: int) -> Samples:
        ring = rings[number % 2].copy()
        ring[: rate // 200] += click * rng.standard_normal(rate // 200)
        return ring

    return _repeat(n_samples, rate, rng, tick, (0.1, 1.1), float(rng.choice([0.005, 0.3])))


def _knocks(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return knocks, steps and hammers: dull strokes on a body."""
    body, decay = _body(rng, 5, 60, 1_500), _log(rng, 15, 150)

    def knock(_: int) -> Samples:
        n_knock = round(0.3 * rate)
        stroke = rng.standard_normal(n_knock) * np.exp(-np.arange(n_knock) / rate * decay)
        return _filter(stroke, rate, body)

    return _repeat(n_samples, rate, rng, knock, (0.12, 1.0), rng.uniform(0.02, 0.5))


def _struck(
    rng: Generator, rate: int, length_s: float, hertz: tuple[float, float], decays: tuple[float, float], n: int
) -> Samples:
    """Return a struck object that rings with partials that are not harmonics."""
    seconds, found = np.arange(round(rate * length_s)) / rate, np.zeros(round(rate * length_s))
    lowest = _log(rng, hertz[0], min(hertz[1], 0.3 * rate))
    for ratio in 1 + np.cumsum([0, *rng.uniform(0.2, 1.2, n - 1)]):
        if lowest * ratio < min(0.45 * rate, _MOST_HZ):
            wave = np.sin(2 * np.pi * lowest * ratio * seconds + rng.uniform(0, 6.3))
            found += rng.uniform(0.2, 1) / ratio**0.5 * wave * np.exp(-seconds * _log(rng, *decays) * ratio**0.5)
    return found


def _bells(n_samples: int, rate: int, rng: Generator) -> Samples:
    bells = [
        _struck(rng, rate, 2.0, (150, 2_500), (0.8, 15), int(rng.integers(3, 10))) for _ in range(rng.integers(1, 5))
    ]
    return _repeat(n_samples, rate, rng, lambda _: bells[rng.integers(len(bells))], (0.05, 2.5), rng.uniform(0.01, 0.4))


def _mallets(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return wood, pots, strings and bottles that are struck or plucked: a few partials that fade within a syllable or two."""
    notes = [
        _struck(rng, rate, 0.8, (60, 900), (4, 40), int(rng.integers(1, 8))) for _ in range(int(rng.integers(1, 6)))
    ]
    return _repeat(n_samples, rate, rng, lambda _: notes[rng.integers(len(notes))], (0.08, 1.0), rng.uniform(0.01, 0.4))


def _hum(n_samples: int, rate: int, rng: Generator) -> Samples:
    """Return mains and fans: the lowest harmonics of a steady speed with some hiss; at times almost silence."""
    if rng.random() < 0.15:
        return np.zeros(n_samples)
    seconds, f0_hz = np.arange(n_samples) / rate, float(rng.choice([50, 60, 100, 120, _log(rng, 40, 400)]))
    found = _colour(n_samples, rate, rng, rng.uniform(0, 2)) * _log(rng, 0.003, 1)
    for harmonic in range(1, 12):
        if harmonic * f0_hz < 0.45 * rate:
            found += rng.exponential() / harmonic * np.sin(2 * np.pi * harmonic * f0_hz * seconds + rng.uniform(0, 6.3))
    return found * (1 + rng.uniform(0, 0.5) * np.sin(2 * np.pi * _log(rng, 0.2, 10) * seconds))


KINDS: dict[str, Maker] = {
    "noise": _noise,
    "waves": _waves,
    "rain": _rain,
    "drips": _drips,
    "tones": _tones,
    "gadgets": _gadgets,
    "music": _music,
    "drums": _drums,
    "engines": _engine,
    "saws": _saw,
    "rotors": _helicopter,
    "barks": _barks,
    "chirps": _chirps,
    "crows": _crows,
    "cries": _cries,
    "growls": _growls,
    "sneezes": _sneezes,
    "chatter": _laughs,
    "crackle": _crackle,
    "ticks": _ticks,
    "knocks": _knocks,
    "bells": _bells,
    "mallets": _mallets,
    "hum": _hum,
}


def _stretch(samples: Samples, rate: int, factor: float) -> Samples:
    """Return samples longer by a factor, at the same pitch: grains that are joined where they agree best.

    Source: W. Verhelst and M. Roelands, "An overlap-add technique based on waveform similarity (WSOLA)", ICASSP 1993.
    """
    hop, search = round(0.02 * rate), round(0.01 * rate)
    window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop)) ** 2
    padded = np.pad(samples, (0, 4 * hop + 2 * search))
    found = np.zeros(round(len(samples) * factor) + 2 * hop)
    at = 0
    for start in range(0, len(found) - 2 * hop, hop):
        wanted = padded[at + hop : at + 3 * hop]
        low = min(round(start / factor), len(samples) - 1)
        likeness = np.correlate(padded[low : low + 2 * search + 2 * hop], wanted, "valid")
        at = min(low + int(np.argmax(likeness)), len(samples))
        found[start : start + 2 * hop] += window * padded[at : at + 2 * hop]
    return found


def _drawl(samples: Samples, rate: int, rng: Generator) -> Samples:
    """Return speech as calls and howls: several times as long, and higher or lower than any voice."""
    piece = cut_loud(samples, rate, rng, rng.uniform(0.5, 1.5))
    factor = _log(rng, 1.4, 2.5) if rng.random() < 0.7 else _log(rng, 0.4, 0.7)
    return play(_stretch(piece, rate, rng.uniform(3, 6) * max(1.0, factor)), factor)[: 5 * rate]


def _snip(samples: Samples, rate: int, rng: Generator) -> Samples:
    """Return one sound of speech as barks: the same short piece again and again."""
    length_s = rng.uniform(0.08, 0.3)
    piece = play(cut_loud(samples, rate, rng, length_s), _log(rng, 0.6, 2.0))
    piece = piece * _envelope(len(piece), rate, 0.01, 0.05)
    return _repeat(round(rate * rng.uniform(1, 4)), rate, rng, lambda _: piece, (0.2, 1.5), rng.uniform(0.02, 0.4))


def _loop(samples: Samples, rate: int, rng: Generator) -> Samples:
    """Return one sound of speech as a machine: a short piece without a pause, slower and faster by turns."""
    n_samples = round(rate * rng.uniform(1, 4))
    piece = play(cut_loud(samples, rate, rng, _log(rng, 0.03, 0.25)), _log(rng, 0.4, 1.6))
    n_step = max(1, round(len(piece) * rng.uniform(0.6, 0.95)))
    shaped, found = piece * _envelope(len(piece), rate, 0.008, 0.008), np.zeros(n_samples)
    for start in range(0, n_samples, n_step):
        _place(found, shaped, start)
    return found * np.exp(rng.uniform(0, 1) * _curve(n_samples, rate, rng, 2))


def _blurt(samples: Samples, rate: int, rng: Generator) -> Samples:
    """Return one sound of speech, once: an outcry, or a thud with what was in the room."""
    piece = play(cut_loud(samples, rate, rng, rng.uniform(0.06, 0.22)), _log(rng, 0.5, 2.0))
    piece = piece * _envelope(len(piece), rate, 0.01, 0.05)
    return np.pad(piece, [round(rate * seconds) for seconds in rng.uniform(0, 1, 2)])


def _distort(samples: Samples, rate: int, rng: Generator) -> Samples:
    """Return speech as growls or twitter: played far too slowly or too fast."""
    factor = _log(rng, 0.2, 0.38) if rng.random() < 0.5 else _log(rng, 2.6, 4.5)
    return play(cut_loud(samples, rate, rng, 4.0 * min(1.0, factor)), factor)


# Sounds made from speech that are not speech. Unlike synthetic sounds, they have the rooms and microphones of speech.
SPOILT: dict[str, Callable[[Samples, int, Generator], Samples]] = {
    "drawl": _drawl,
    "snippets": _snip,
    "loops": _loop,
    "blurts": _blurt,
    "distorted": _distort,
}
