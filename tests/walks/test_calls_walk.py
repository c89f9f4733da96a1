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


# Turns and pauses of a voice: their period in seconds, and the least sine at which it speaks.
TURNS, PAUSES = (5, -0.6), (8, 0)
FAINT, NOISE_20_DB = 1e-3, 0.0088


def voice(
    duration_s: float, hertz: float, seed: int, turns: tuple[float, float] = TURNS, noise_level: float = FAINT
) -> np.ndarray:
    """Return turns of a harmonic voice, with noise in between."""
    seconds = np.arange(round(duration_s * RATE)) / RATE
    voiced = sum(np.sin(2 * np.pi * hertz * k * seconds) / k for k in range(1, 12))
    noise = np.random.default_rng(seed).standard_normal(len(seconds))
    period_s, least = turns
    is_on = np.sin(2 * np.pi * seconds / period_s + seed) > least
    return (0.1 * voiced * is_on + noise_level * noise).astype(np.float32)


def hold_music(duration_s: float, seed: int) -> np.ndarray:
    """Return chords that ring on, one every half second."""
    generator = np.random.default_rng(seed)
    seconds = np.arange(round(2.5 * RATE)) / RATE
    found = np.zeros(round(duration_s * RATE) + len(seconds))
    for at in range(0, len(found) - len(seconds), RATE // 2):
        root = 220 * 2 ** (generator.integers(-5, 7) / 12)
        tones = (
            np.sin(2 * np.pi * root * 2 ** (step / 12) * k * seconds) / k for step in (0, 4, 7) for k in range(1, 5)
        )
        found[at : at + len(seconds)] += 0.03 * sum(tones) * np.exp(-1.5 * seconds)
    return found[: round(duration_s * RATE)].astype(np.float32)


def turns_of(duration_s: float, seed: int) -> list[tuple[float, float]]:
    """Return when a voice with `PAUSES` speaks, in seconds."""
    period_s, least = PAUSES
    is_on = np.sin(2 * np.pi * np.arange(0, duration_s, 0.01) / period_s + seed) > least
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_on, [False]])))
    return [(first / 100, min(last / 100, duration_s)) for first, last in edges.reshape(-1, 2).tolist()]


def write_calls(folder: Path, n_calls: int, *, is_noisy: bool = False) -> dict[str, tuple[float, list[float]]]:
    """Write calls; return the duration of each in seconds, and the pitch of its channels in Hz, 0 if one is silent.

    Noisy calls have noise at 20 dB and long pauses, and some have hold music on one channel, with a pitch of -1.
    """
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
        how = (PAUSES, NOISE_20_DB) if is_noisy else (TURNS, FAINT)
        voices = [voice(duration_s, one, number + channel, *how) for channel, one in enumerate(hertz)]
        if n_channels == 2 and number % 8 == 1:
            voices[1], hertz[1] = 0 * voices[1], 0.0
        if n_channels == 2 and number % 8 == 4:
            # One channel is the other, inverted, so that a mix of them is silence.
            voices[1], hertz[1] = -voices[0], hertz[0]
        if is_noisy and n_channels == 2 and number % 8 == 5:
            voices[1], hertz[1] = hold_music(duration_s, number), -1.0
        name = f"{number % 3}/call {number:03d}.{suffix}"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(encode(np.stack(voices, axis=1), RATE, container, codec))
        found[name] = duration_s, hertz
    return found


def wait_and_kill(table: Path, *command: object) -> None:
    """Start a run, and kill all of its processes when it has published a part.

    These voices are so much alike that a run of all of them stops after its first labels, unless it is forced to go on.
    """
    with running(*command, "--workers", "1") as process:
        wait_for_parts(table, 1, process)
        everybody = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
    for one in everybody:
        if one.is_running():
            one.kill()


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
        tracks = [(np.array(row["f0_hz"]), np.array(row["voicing"]) > 0.7) for row in own]
        heard = [np.median(f0_hz[is_voiced]) for f0_hz, is_voiced in tracks if is_voiced.sum() > 50]
        assert bool(heard) == bool(hertz[channel])
        if heard:
            assert abs(np.median(heard) / hertz[channel] - 1) < 0.03
    # What a mix hides is said, with the option that shows it.
    mixed = call_command("label", archive, tmp_path / "mixed", "--model", bundle, "--workers", "1", "--force")
    n_stereo = sum(len(hertz) == 2 for _, hertz in calls.values())
    assert f"{n_stereo} recordings with channels that differ were heard as a mix; --channels each labels" in mixed.out
    label = ("label", archive, tmp_path / "labels", "--model", bundle, "--window", "3", "--channels", "each")
    wait_and_kill(tmp_path / "labels", *label)
    done = call_command("resume", tmp_path / "labels", "--force")
    assert done.code == 0, done.err
    assert call_command("verify", tmp_path / "labels", "--deep").code == 0
    found = local_rows(tmp_path / "labels")
    assert found.num_rows == len(rows)
    s3.upload(archive, f"channels{n_calls}/calls")
    at = f"{s3.url}/channels{n_calls}"
    emotion_batch.label(
        f"{at}/calls",
        f"{at}/labels",
        model=bundle,
        window=3,
        channels="each",
        workers=2,
        force=True,
        storage_options=s3.options,
    )
    assert read(s3.read(f"channels{n_calls}/labels")).equals(found)
    # Other channels are another table.
    other = call_command(*label[:-1], "0")
    assert other.code == 2
    assert (
        "was made with --window 3 --hop 3 --channels each, and this call has --window 3 --hop 3 --channels 0"
        in other.err
    )


@pytest.mark.parametrize("n_calls", N_CALLS)
def test_calls_by_speech_and_by_turns(n_calls: int, s3: Bucket, tmp_path: Path) -> None:
    """Speech is found on each channel, and turns of RTTM are taken as listed; workers, a kill and a bucket change nothing."""
    archive = tmp_path / "calls"
    calls = write_calls(archive, n_calls, is_noisy=True)
    lines, expected = [], []
    for name, (duration_s, hertz) in sorted(calls.items()):
        # Channel by channel, as many programs write it: not in the order of time.
        for channel in range(len(hertz)):
            inverted = hertz[-1] == hertz[0]
            for start_s, end_s in turns_of(duration_s, int(name.split()[1][:3]) + (0 if inverted else channel)):
                uri = name.replace(" ", "%20") if channel else name.replace(" ", "%20").rsplit(".", 1)[0]
                lines.append(
                    f"SPEAKER {uri} {channel + 1} {start_s} {end_s - start_s:.6f} <NA> <NA> {name[0]}-{channel} <NA> <NA>\n"
                )
                expected.append((name, channel, start_s, round(end_s, 2), f"{name[0]}-{channel}"))
    (tmp_path / "turns.rttm").write_text("".join(lines))
    by_turns = tmp_path / "turns"
    label = ("label", archive, by_turns, "--model", "tess-seed", "--segments", tmp_path / "turns.rttm")
    wait_and_kill(by_turns, *label)
    assert call_command("resume", by_turns, "--force").code == 0
    assert call_command("verify", by_turns, "--deep").code == 0
    turns = local_rows(by_turns)
    found = turns.to_pylist()
    ends = [round(row["end_s"], 2) for row in found]
    assert [
        (row["file"], row["channel"], row["start_s"], end_s, row["speaker"])
        for row, end_s in zip(found, ends, strict=True)
    ] == expected
    assert {row["status"] for row in found} == {"ok"}

    by_speech = tmp_path / "speech"
    label = ("label", archive, by_speech, "--segments", "speech", "--channels", "each")
    wait_and_kill(by_speech, *label)
    assert call_command("resume", by_speech, "--force").code == 0
    assert call_command("verify", by_speech, "--deep").code == 0
    speech = local_rows(by_speech)
    shares = []
    rows = speech.to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert all(0.499 <= row["end_s"] - row["start_s"] <= 6.001 for row in rows)
    for name, (duration_s, hertz) in calls.items():
        for channel, pitch in enumerate(hertz):
            own = [row for row in rows if (row["file"], row["channel"]) == (name, channel)]
            if pitch <= 0:
                # A silent channel has no row. Hold music may have some, whose label says that they are no speech.
                assert not any(row["is_speech"] for row in own) and (pitch < 0 or not own)
                continue
            is_turn, is_found = np.zeros((2, round(duration_s * 100)), bool)
            inverted = hertz[-1] == hertz[0]
            for start_s, end_s in turns_of(duration_s, int(name.split()[1][:3]) + (0 if inverted else channel)):
                is_turn[round(start_s * 100) : round(end_s * 100)] = True
            for row in own:
                is_found[round(row["start_s"] * 100) : round(row["end_s"] * 100)] = True
            shares.append(((is_turn & is_found).sum(), is_turn.sum(), (is_found & ~is_turn).sum(), (~is_turn).sum()))
    covered, n_speech, wrong, n_rest = np.sum(shares, axis=0)
    assert covered / n_speech >= 0.95
    assert wrong / n_rest <= 0.1

    at = f"{s3.url}/turns{n_calls}"
    s3.upload(archive, f"turns{n_calls}/calls")
    more = {"workers": 2, "force": True, "storage_options": s3.options}
    emotion_batch.label(f"{at}/calls", f"{at}/speech", segments="speech", channels="each", **more)
    assert read(s3.read(f"turns{n_calls}/speech")).equals(speech)


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
