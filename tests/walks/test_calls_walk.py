"""Walks with calls: two voices on two channels, in the formats of telephones, by the command line, from a disk and from a bucket."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from support.commands import call_command, running, wait_for_parts
from support.encoding import encode
from support.servers import Bucket
from support.tables import local_rows, read

import emotion_batch

RATE = 8_000
N_CALLS = [pytest.param(24, id="some"), pytest.param(200, id="all", marks=pytest.mark.torture)]
FORMATS = (
    ("wav", "wav", "pcm_mulaw", 2),
    ("mp3", "mp3", "libmp3lame", 2),
    ("m4a", "mp4", "aac", 2),
    ("amr", "amr", "libopencore_amrnb", 1),
)


def voice(duration_s: float, hertz: float, seed: int) -> np.ndarray:
    """Return turns of a harmonic voice, with faint noise in between."""
    seconds = np.arange(round(duration_s * RATE)) / RATE
    voiced = sum(np.sin(2 * np.pi * hertz * k * seconds) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).standard_normal(len(seconds))
    return (0.1 * voiced * (np.sin(2 * np.pi * seconds / 5 + seed) > -0.6) + 1e-3 * noise).astype(np.float32)


def write_calls(folder: Path, n_calls: int) -> dict[str, tuple[float, list[float]]]:
    """Write calls; return the duration of each in seconds, and the pitch of its channels in Hz, 0 if one is silent."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    found = {}
    for number in range(n_calls):
        suffix, container, codec, n_channels = FORMATS[number % len(FORMATS)]
        # Some are long; the torture has calls of half an hour.
        duration_s = float(
            generator.uniform(300, 1_800) if n_calls > 100 and number % 20 == 0 else generator.uniform(4, 20)
        )
        hertz = generator.uniform(90, 240, 2).tolist()[:n_channels]
        voices = [voice(duration_s, one, number + channel) for channel, one in enumerate(hertz)]
        if n_channels == 2 and number % 8 == 1:
            voices[1], hertz[1] = 0 * voices[1], 0.0
        if n_channels == 2 and number % 8 == 4:
            # One channel is the other, inverted, so that a mix of them is silence.
            voices[1], hertz[1] = -voices[0], hertz[0]
        name = f"{number % 3}/call {number:03d}.{suffix}"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(encode(np.stack(voices, axis=1), RATE, container, codec))
        found[name] = duration_s, hertz
    return found


@pytest.mark.parametrize("n_calls", N_CALLS)
def test_calls_by_channel(n_calls: int, s3: Bucket, bundle: Path, tmp_path: Path) -> None:
    """Each channel has its own windows and its own voice; one worker, two, a kill and a bucket give equal rows."""
    archive = tmp_path / "calls"
    calls = write_calls(archive, n_calls)
    windows = ("--window", "3", "--channels", "each")
    made = call_command("extract", archive, tmp_path / "heard", "--recipe", "voices", *windows, "--workers", "2")
    assert made.code == 0, made.err
    rows = pa.concat_tables([local_rows(tmp_path / "heard")]).to_pylist()
    of_channel: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        of_channel.setdefault((row["file"], row["channel"]), []).append(row)
    assert set(of_channel) == {(name, channel) for name, (_, hertz) in calls.items() for channel in range(len(hertz))}
    for (name, channel), own in of_channel.items():
        duration_s, hertz = calls[name]
        assert {row["status"] for row in own} == {"ok"}
        # Encoders add up to a tenth of a second.
        assert math.ceil(duration_s / 3) <= len(own) <= math.ceil((duration_s + 0.15) / 3)
        assert [row["start_s"] for row in own] == [3.0 * number for number in range(len(own))]
        heard = [
            np.median(row["f0_hz"])
            for row in own
            if np.mean(row["voicing"]) > 0.6 and row["end_s"] - row["start_s"] > 2
        ]
        assert bool(heard) == bool(hertz[channel])
        if heard:
            assert abs(np.median(heard) / hertz[channel] - 1) < 0.03
    # What a mix hides is said, with the option that shows it.
    mixed = call_command("label", archive, tmp_path / "mixed", "--model", bundle, "--workers", "1")
    n_stereo = sum(len(hertz) == 2 for _, hertz in calls.values())
    assert f"{n_stereo} recordings with channels that differ were heard as a mix; --channels each labels" in mixed.out
    label = ("label", archive, tmp_path / "labels", "--model", bundle, "--window", "3", "--channels", "each")
    with running(*label, "--workers", "1") as process:
        wait_for_parts(tmp_path / "labels", 1, process)
        everybody = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
    for one in everybody:
        if one.is_running():
            one.kill()
    done = call_command("resume", tmp_path / "labels")
    assert done.code == 0, done.err
    assert call_command("verify", tmp_path / "labels", "--deep").code == 0
    found = local_rows(tmp_path / "labels")
    assert found.num_rows == len(rows)
    emotion_batch.label(archive, tmp_path / "one", model=bundle, window=3, channels="each", workers=1)
    assert local_rows(tmp_path / "one").equals(found)
    s3.upload(archive, f"channels{n_calls}/calls")
    at = f"{s3.url}/channels{n_calls}"
    emotion_batch.label(
        f"{at}/calls", f"{at}/labels", model=bundle, window=3, channels="each", workers=2, storage_options=s3.options
    )
    assert read(s3.read(f"channels{n_calls}/labels")).equals(found)
    # Other channels are another table.
    other = call_command(*label[:-1], "0")
    assert other.code == 2
    assert (
        "was made with --window 3 --hop 3 --channels each, and this call has --window 3 --hop 3 --channels 0"
        in other.err
    )


def test_a_call_is_printed_channel_by_channel(bundle: Path, tmp_path: Path) -> None:
    """One recording without a table prints its channels side by side, and in JSON by number."""
    samples = np.stack([voice(5.0, 120, 1), voice(5.0, 210, 2)], axis=1)
    (tmp_path / "call.wav").write_bytes(encode(samples, RATE, "wav", "pcm_mulaw"))
    done = call_command("label", tmp_path / "call.wav", "--model", bundle, "--window", "3", "--channels", "each")
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines() if "channel" in line]
    assert [(line[1], line[2]) for line in lines] == [("0", "0.000"), ("1", "0.000"), ("0", "3.000"), ("1", "3.000")]
    done = call_command("label", tmp_path / "call.wav", "--model", bundle, "--channels", "1", "--json")
    assert [one["channel"] for one in json.loads(done.out)] == [1]
    for wrong in ("both", "0,x", "-1", ""):
        done = call_command("label", tmp_path / "call.wav", f"--channels={wrong}")
        assert done.code == 2 and "--channels must be mix, each or numbers from 0" in done.err
    (tmp_path / "mono.wav").write_bytes(encode(samples[:, :1], RATE, "wav", "pcm_s16le"))
    done = call_command("label", tmp_path / "mono.wav", "--model", bundle, "--channels", "1")
    assert done.code == 1 and "unreadable: the recording has 1 channel, numbered from 0" in done.out
