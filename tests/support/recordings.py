"""Recordings of tests: good, odd, and such as kill their decoder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile


def tone(duration_s: float, rate: int = 24_414, *, hertz: float = 220.0, seed: int = 0) -> np.ndarray:
    """Return a harmonic tone with a little noise, shape (n_samples,), float32."""
    seconds = np.arange(round(duration_s * rate)) / rate
    harmonics = sum(np.sin(2 * np.pi * hertz * k * seconds) / k for k in range(1, 8))
    noise = np.random.default_rng(seed).standard_normal(len(seconds))
    return (0.1 * harmonics + 0.01 * noise).astype(np.float32)


def write_odd_archive(folder: Path) -> dict[str, str]:
    """Write recordings of every odd kind and return the status that each must get, by its name in the table."""
    rng = np.random.default_rng(1)
    plain = tone(2.0)
    expected: dict[str, str] = {}

    def put(name: str, status: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        expected[name] = status

    def wav(
        name: str, samples: np.ndarray, rate: int = 24_414, subtype: str = "PCM_16", status: str = "ok", **options: str
    ) -> None:
        path = folder / "written"
        soundfile.write(path, samples, rate, subtype=subtype, format=options.get("format", "WAV"))
        put(name, status, path.read_bytes())
        path.unlink()

    put("zero.wav", "empty", b"")
    put("text.wav", "not_audio", b"call me back\n" * 100)
    wav("whole.wav", plain)
    whole = (folder / "whole.wav").read_bytes()
    put("truncated.wav", "truncated", whole[: len(whole) // 2])
    put("header_only.wav", "truncated", whole[:44])
    put("half_header.wav", "truncated", whole[:30])
    wav("no_samples.wav", plain[:0], status="empty")
    wav("short.wav", tone(0.3), status="too_short")
    wav("just_offset.wav", tone(0.5, 8_000), 8_000, status="too_short")
    wav("one_sample_more.wav", tone(0.5 + 1 / 8_000, 8_000), 8_000)
    wav("silent.wav", np.zeros(48_828, np.float32))
    wav("stereo.wav", np.stack([plain, tone(2.0, hertz=300.0)], axis=1))
    wav("8k.wav", tone(2.0, 8_000), 8_000)
    wav("8bit.wav", plain, subtype="PCM_U8")
    wav("24bit.wav", plain, subtype="PCM_24")
    wav("float.wav", 3 * plain, subtype="FLOAT")
    nan = plain.copy()
    nan[30_000] = np.nan
    wav("nan.wav", nan, subtype="FLOAT", status="not_finite")
    infinite = plain.copy()
    infinite[30_000] = -np.inf
    wav("infinite.wav", infinite, subtype="FLOAT", status="not_finite")
    nan_before = plain.copy()
    nan_before[100] = np.nan
    wav("nan_before_the_segment.wav", nan_before, subtype="FLOAT")
    wav("aiff named.wav", plain, format="AIFF")
    wav("flac.flac", plain, format="FLAC")
    wav("mp3.MP3", tone(2.0, 22_050), 22_050, "MPEG_LAYER_III", format="MP3")
    wav("ogg.ogg", tone(2.0, 22_050), 22_050, "VORBIS", format="OGG")
    for name in (
        "two words.wav",
        "quo'te\".wav",
        "a#b.wav",
        "100%.wav",
        "%41.wav",
        "a[1].wav",
        "a1.wav",
        "ein*e.wav",
        "grüße 電話.WAV",
    ):
        wav(name, tone(1.5, hertz=float(rng.uniform(100, 400))))
    wav("one/same.wav", plain)
    wav("two/same.wav", tone(2.0, hertz=150.0))
    (folder / ".hidden.wav").write_bytes(whole)
    (folder / "notes.txt").write_text("not a recording")
    # A byte that is not UTF-8, and a recording that is called what it is escaped to.
    with open(os.fsencode(folder) + b"/caf\xe9.wav", "wb") as stream:
        stream.write(whole)
    expected["%63%61%66%E9%2E%77%61%76"] = "ok"
    wav("caf%E9.wav", plain[:40_000])
    with open(os.fsencode(folder) + b"/na\xefve.wav", "wb") as stream:
        stream.write(whole)
    expected["na%EFve.wav"] = "ok"
    return expected


# Recordings that kill whatever decodes them, by their first bytes: what a fault in a decoder of C does. It is put where
# every Python process of a run takes it in, workers and children alike.
KILLER_CODE = """
import os
import signal

import soundfile

_open, _read = soundfile.SoundFile.__init__, soundfile.SoundFile.read


def _opened(self, file, *arguments, **options):
    head = os.pread(file, 6, 0) if isinstance(file, int) else file.getvalue()[:6]
    if head == b"ABORT!":
        os.abort()
    while head == b"LOOP!!":
        pass
    taken = []
    while head == b"FILL!!":
        taken.append(bytearray(b"x") * 2**26)
    if head == b"ONCE!!":
        # As a kill from outside, which comes once.
        flag = os.environ["KILLED_ONCE"]
        if not os.path.exists(flag):
            os.close(os.open(flag, os.O_CREAT))
            os.kill(os.getpid(), signal.SIGKILL)
    _open(self, file, *arguments, **options)


def _reading(self, *arguments, **options):
    if self.channels == 3 and self.tell() >= 2 * self.samplerate:
        os.abort()
    return _read(self, *arguments, **options)


soundfile.SoundFile.__init__ = _opened
soundfile.SoundFile.read = _reading
"""


KILLERS = {"abort.wav": "crashed", "fill.wav": "memory", "loop.wav": "timeout"}


def write_killers(folder: Path) -> None:
    """Write the recordings of `KILLERS`."""
    for name in KILLERS:
        (folder / name).write_bytes((Path(name).stem.upper().encode() + b"!!")[:6] * 1_000)
