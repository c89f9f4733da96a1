"""Recordings of a bucket beside the same on a disk: processor time of each, and the rate behind a slow wire.

A real store runs on the same cores, of which it takes its share, and pushes what others have in their caches out of them. So
processor time is measured with the store on a core of its own, too, as stores are on machines of their own; and beside the
rate stands what it would be with store and proxy elsewhere, by the processor time that they took.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.measuring import ONE_THREAD, Figure, ratio
from emotion_batch.archive import list_recordings
from emotion_batch.rows import extract_rows
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage import Folder

sys.path.insert(0, os.fspath(Path(__file__).parent.parent / "tests"))
import servers

N_WORKERS = 2
LATENCY_S = 0.05


class Job(NamedTuple):
    """What a worker process is to read: some recordings of an archive."""

    url: str
    options: Mapping[str, Any]
    start: int
    n_recordings: int


def work(job: Job) -> tuple[float, float]:
    """Extract, and return the CPU and wall seconds that it took."""
    entries = list_recordings(job.url, options=job.options).entries.combine_chunks().to_batches()[0]
    archive = Folder.of(job.url, job.options)
    settings, segments = FeatureSettings(), Segments()
    extract_rows(entries.slice(job.start, 8), archive, settings, segments)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    extract_rows(entries.slice(job.start, job.n_recordings), archive, settings, segments)
    return time.process_time() - cpu_s, time.perf_counter() - wall_s


def get_alone(job: Job) -> tuple[float, float]:
    """Get the same objects by obstore's plain call from 16 threads, and return the CPU and wall seconds that it took."""
    import obstore

    entries = list_recordings(job.url, options=job.options).entries.slice(job.start, job.n_recordings)
    store, prefix = Folder.of(job.url, job.options).store()
    names = [f"{prefix}/{name}" for name in entries["file"].to_pylist()]
    bare = store._store  # type: ignore[attr-defined] # what the package itself calls
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda name: obstore.get(bare, name).bytes(), names):
            pass
    return time.process_time() - cpu_s, time.perf_counter() - wall_s


class Wire(asyncio.Protocol):
    """One end of a connection that passes on what it gets to the other, so much later.

    No more than that, for what the wire takes of the processor the store and the workers lack.
    """

    def __init__(self, delay_s: float, to: Wire | None = None) -> None:
        self._delay_s = delay_s
        self._early: list[bytes] = []
        self.to = to
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what came before."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        for data in self._early:
            transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.to is not None and not self._delay_s:
            self.to.write(data)
        elif self.to is not None:
            asyncio.get_running_loop().call_later(self._delay_s, self.to.write, data)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 asyncio's
        """Hang up there too."""
        if self.to is not None and self.to.transport is not None:
            self.to.transport.close()

    def write(self, data: bytes) -> None:
        """Send, as soon as there is a connection."""
        if self.transport is None:
            self._early.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)


def slow_down(endpoint: str, connection: Any) -> None:
    """Run a wire on which each request takes `LATENCY_S`, in a process of its own that is ended from outside."""
    host, _, port = endpoint.removeprefix("http://").partition(":")

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        tasks = set()

        def accept() -> Wire:
            near = Wire(LATENCY_S)
            far = near.to = Wire(0.0, near)
            task = loop.create_task(loop.create_connection(lambda: far, host, int(port)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return near

        server = await loop.create_server(accept, "127.0.0.1", 0, backlog=512)
        connection.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await server.serve_forever()

    asyncio.run(serve())


def keep_to(cores: set[int], pid: int = 0) -> None:
    """Keep a process to some cores: this one, or another with all its threads."""
    for thread in psutil.Process(pid or os.getpid()).threads():
        os.sched_setaffinity(thread.id, cores)


def measure(archive: str, n_rounds: int) -> list[Figure]:
    """Return what a recording costs from a bucket, and the rate of two processes behind 50 ms a request."""
    os.environ.update(ONE_THREAD)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder, servers.seaweedfs(Path(folder, "store")) as bucket:
        bucket.upload(Path(archive), "archive")
        slow = context.Process(target=slow_down, args=(bucket.endpoint, theirs), daemon=True)
        slow.start()
        endpoint = ours.recv()
        remote = {**bucket.options, "endpoint_url": endpoint}
        n_each = min(1_000, list_recordings(archive).entries.num_rows // N_WORKERS)
        places: dict[str, tuple[str, Mapping[str, Any]]] = {
            "disk": (archive, {}),
            "bucket": (f"{bucket.url}/archive", bucket.options),
            "far": (f"{bucket.url}/archive", remote),
        }
        cpu_ms: dict[str, list[float]] = {name: [] for name in places}
        rates: dict[str, list[float]] = {name: [] for name in places}
        others: list[float] = []
        alone: list[float] = []
        apart_ms: dict[str, list[float]] = {"disk": [], "bucket": []}
        first, *rest = sorted(os.sched_getaffinity(0))
        assert rest, "expected two cores or more"
        with context.Pool(N_WORKERS) as pool, context.Pool(1, keep_to, ({first},)) as one:
            for number in range(-1, n_rounds):
                keep_to(set(rest), bucket.process.pid)
                for name, kept in apart_ms.items():
                    cpu, _ = one.apply(work, (Job(*places[name], 0, n_each),))
                    if number >= 0:
                        kept.append(cpu / n_each * 1e3)
                keep_to({first, *rest}, bucket.process.pid)
                for name, (url, options) in places.items():
                    jobs = [Job(url, options, start * n_each, n_each) for start in range(N_WORKERS)]
                    before = cpu_s(bucket.process.pid, slow.pid)
                    answers = pool.map(work, jobs, chunksize=1)
                    if number < 0:
                        # The first round is to warm up.
                        continue
                    wall_s = max(wall_s for _, wall_s in answers)
                    cpu_ms[name].append(sum(cpu for cpu, _ in answers) / N_WORKERS / n_each * 1e3)
                    rates[name].append(N_WORKERS * n_each / wall_s)
                    if name == "far":
                        elsewhere_s = (cpu_s(bucket.process.pid, slow.pid) - before) / (os.cpu_count() or 1)
                        others.append(N_WORKERS * n_each / max(wall_s - elsewhere_s, 1e-9))
                if number >= 0:
                    jobs = [Job(*places["bucket"], start * n_each, n_each) for start in range(N_WORKERS)]
                    answers = pool.map(get_alone, jobs, chunksize=1)
                    alone.append(cpu_ms["disk"][-1] + sum(cpu for cpu, _ in answers) / N_WORKERS / n_each * 1e3)
        slow.terminate()
        slow.join()
    return [
        ratio(
            "a recording of a bucket, the store on another core",
            "the same from the disk",
            apart_ms["bucket"],
            apart_ms["disk"],
            "<= 1.25",
            "ms CPU",
        ),
        ratio(
            "a recording of a bucket, in two processes",
            "the same from the disk",
            cpu_ms["bucket"],
            cpu_ms["disk"],
            "<= 1.25",
            "ms CPU",
        ),
        ratio(
            "a recording of a bucket, in two processes",
            "the disk's and obstore's bare get together",
            cpu_ms["bucket"],
            alone,
            "",
            "ms CPU",
        ),
        ratio(
            "two processes at 50 ms a request", "from the disk", rates["far"], rates["disk"], ">= 0.9", "recordings/s"
        ),
        ratio(
            "the same, store and proxy on other cores", "from the disk", others, rates["disk"], ">= 0.9", "recordings/s"
        ),
    ]


def cpu_s(*pids: int | None) -> float:
    """Return the CPU seconds that processes have used."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)
