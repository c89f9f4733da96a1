"""What several tests share: recordings good and odd, TESS, a cluster started from the shell, the command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

# Before any test loads TensorFlow, whose own libcurl it would get; no process of ours that reads has both.
import pycurl  # noqa: F401
import pytest
import servers
import soundfile

from emotion_batch.example import synthesis
from emotion_batch.run.scheduler import Scheduler

ROOT = Path(__file__).parent.parent
TESS_UNPACKER = ROOT.parent / "shared" / "data" / "unpack_tess"
# .ci/run sets it: there, what a test needs must be there.
MUST_HAVE_DATA = os.environ.get("EMOTION_BATCH_REQUIRE_DATA") == "1"


# Files that take minutes each, by a few tests: begun first, so that the other process is not waited for at the end.
LONGEST = ("test_walk", "test_training", "test_sequence_walk", "test_bucket_walk", "test_submission", "test_torture")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for `--dist loadfile`, which hands them out as they come."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, object]:
        """What ``--json`` printed."""
        return json.loads(self.out)


def run_command(
    *arguments: object,
    timeout_s: float = 300,
    program: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run ``emotion-batch`` (or another Python program) in a process of its own."""
    command = [sys.executable, *(program or ("-P", "-m", "emotion_batch")), *(os.fspath(one) for one in arguments)]
    # Below 64 columns argparse wraps its sentences.
    variables = {**os.environ, "COLUMNS": "200", **(environment or {})}
    done = subprocess.run(command, capture_output=True, timeout=timeout_s, env=variables, cwd=ROOT, check=False)
    # Replacing, for what is not UTF-8 in an output must fail a test and not the reading of it.
    return Finished(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


@contextlib.contextmanager
def running(
    *arguments: object, own_session: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``emotion-batch`` and go on beside it; what still runs at the end of the block is killed."""
    command = [sys.executable, "-P", "-m", "emotion_batch", *(os.fspath(one) for one in arguments)]
    pipe = subprocess.PIPE

    def listen_to_ctrl_c() -> None:
        # A shell starts what it puts into the background deaf to it, and that is inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        start_new_session=own_session,
        preexec_fn=listen_to_ctrl_c,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_parts(table: Path, n_parts: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a run has published so many parts."""
    deadline = time.monotonic() + 60
    while len(list(table.glob("*.parquet"))) < n_parts:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def flip_bit(path: Path, random: np.random.Generator, start: int = 0, stop: int | None = None) -> int:
    """Flip one bit of a file, in bytes from `start` to before `stop`; return where."""
    data = bytearray(path.read_bytes())
    at = int(random.integers(start, len(data) if stop is None else stop))
    data[at] ^= 1 << int(random.integers(8))
    path.write_bytes(data)
    return at


def find_footer(part: Path) -> int:
    """Return where the footer of a Parquet file begins."""
    data = part.read_bytes()
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def tone(duration_s: float, rate: int = 24_414, *, hertz: float = 220.0, seed: int = 0) -> np.ndarray:
    """Return a harmonic tone with a little noise, shape (n_samples,), float32."""
    seconds = np.arange(round(duration_s * rate)) / rate
    harmonics = sum(np.sin(2 * np.pi * hertz * k * seconds) / k for k in range(1, 8))
    noise = np.random.default_rng(seed).standard_normal(len(seconds))
    return (0.1 * harmonics + 0.01 * noise).astype(np.float32)


@pytest.fixture(scope="session")
def tess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TESS, unpacked; skips where it is absent."""
    if not TESS_UNPACKER.exists():
        if MUST_HAVE_DATA:
            pytest.fail(f"{TESS_UNPACKER.name}: expected TESS beside the checkout, got nothing")
        pytest.skip("the TESS recordings are not beside this checkout")
    folder = tmp_path_factory.mktemp("tess")
    subprocess.run([sys.executable, TESS_UNPACKER, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthesised archive: 84 recordings and five broken ones."""
    folder = tmp_path_factory.mktemp("speech")
    synthesis.write_archive(folder, n_words=6)
    return folder


@pytest.fixture(scope="session")
def features(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature table of `speech`."""
    table = tmp_path_factory.mktemp("tables") / "features"
    done = run_command("extract", speech, table)
    assert done.code == 0, done.err
    return table


@pytest.fixture(scope="session")
def bundle(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on `features`, just long enough to have weights of its own."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    h5 = folder.with_suffix(".h5")
    done = run_command("train", features, folder, "--epochs", "5", "--batch-size", "16", "--h5", h5)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def vectors(features: Path) -> np.ndarray:
    """The feature vectors of `features`, shape (n_rows, 40)."""
    rows = pq.read_table(features, columns=["mfcc", "status"], filters=[("status", "==", "ok")])
    return np.stack(rows["mfcc"].to_numpy()).astype(np.float32)


@pytest.fixture(scope="session")
def labels(features: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The label table of `features` by `bundle`."""
    table = tmp_path_factory.mktemp("tables") / "labels"
    done = run_command("label", features, table, "--model", bundle)
    assert done.code == 0, done.err
    return table


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Bucket]:
    """A bucket on a SeaweedFS."""
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Bucket]:
    """A bucket on a fake of Google's service."""
    with servers.fake_gcs(tmp_path_factory.mktemp("gcs")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Bucket]:
    """A container on Microsoft's emulator."""
    with servers.azurite(tmp_path_factory.mktemp("azurite")) as bucket:
        yield bucket


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
_KILLERS = """
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
        # As somebody's kill: whoever has not been here yet.
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


@pytest.fixture(scope="session")
def killers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from, in whose presence some recordings kill their decoder."""
    folder = tmp_path_factory.mktemp("killers")
    (folder / "sitecustomize.py").write_text(_KILLERS)
    return folder


def write_killers(folder: Path) -> None:
    """Write the recordings of `KILLERS`."""
    for name in KILLERS:
        (folder / name).write_bytes((Path(name).stem.upper().encode() + b"!!")[:6] * 1_000)


_STRANGERS = (
    *("dask", "json", "logging", "numpy", "queue", "random", "socket", "soundfile", "subprocess"),
    *("token", "types", "uuid"),
)


def write_strangers(folder: Path, marks: Path) -> None:
    """Write files with names of modules, which leave a mark in a folder and end the process that imports them."""
    marks.mkdir()
    for name in _STRANGERS:
        code = f"import os\nos.close(os.open({os.fspath(marks / name)!r}, os.O_CREAT))\nos._exit(7)\n"
        (folder / f"{name}.py").write_text(code)


@dataclass(frozen=True)
class ShellCluster:
    """A scheduler and workers, each a process started as from a shell."""

    address: str
    folder: Path
    scheduler: subprocess.Popen[bytes]
    add_worker: Callable[..., subprocess.Popen[bytes]]


@contextlib.contextmanager
def shell_cluster(
    folder: Path, n_workers: int = 2, *worker_options: str, tls: Scheduler | None = None, inside: tuple[str, ...] = ()
) -> Iterator[ShellCluster]:
    """Start ``dask scheduler`` and ``dask worker`` on loopback, with certificates if there are any; end them with the block.

    `inside` is the command that runs them elsewhere, such as in another network.
    """
    processes: list[subprocess.Popen[bytes]] = []

    protocol = "tcp" if tls is None else "tls"
    secured = () if tls is None else ("--tls-ca-file", tls.tls_ca, "--tls-cert", tls.tls_cert, "--tls-key", tls.tls_key)

    def start(
        name: str, kind: str, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        log = (folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [*inside, sys.executable, "-m", "dask", kind, *arguments, *secured],
            stdout=log,
            stderr=log,
            cwd=cwd or folder,
            env={**os.environ, **(environment or {})},
        )
        processes.append(process)
        return process

    folder.mkdir(parents=True, exist_ok=True)
    try:
        scheduler = start(
            "scheduler",
            "scheduler",
            *("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--protocol", protocol),
        )
        address = _wait_for(folder / "scheduler.log", rf"Scheduler at:\s+({protocol}://127\.0\.0\.1:\d+)")

        def add_worker(
            *options: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
        ) -> subprocess.Popen[bytes]:
            name = f"worker{len(processes)}"
            arguments = (address, "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", *options)
            process = start(name, "worker", *arguments, cwd=cwd, environment=environment)
            _wait_for(folder / f"{name}.log", r"(Registered to):")
            return process

        for _ in range(n_workers):
            add_worker(*(worker_options or ("--nthreads", "1")))
        yield ShellCluster(address, folder, scheduler, add_worker)
    finally:
        # The scheduler last, for workers that cannot take their leave of it wait for seconds.
        for group in (processes[1:], processes[:1]):
            for process in group:
                process.terminate()
            for process in group:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShellCluster]:
    """A cluster of two workers that a module's tests use: to start one takes longer than what most of them do."""
    with shell_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def _wait_for(log: Path, pattern: str, timeout_s: float = 60) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if log.exists() and (match := re.search(pattern, log.read_text(errors="replace"))):
            return match[1]
        time.sleep(0.1)
    raise AssertionError(
        f"{log.name}: expected {pattern!r} within {timeout_s} s, got {log.read_text(errors='replace')}"
    )
