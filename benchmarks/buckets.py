"""Recordings of a bucket beside the same on a disk: processor time of each, and the rate behind a slow wire.

A real store runs on the same machine, takes its share of the cores, and pushes what others have in their caches out of them.
Stores are on machines of their own: so both are measured with the store, and what slows the wire down, on cores of their own,
too. There two processes have one core for themselves, from the disk as from the bucket.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.pool
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.measuring import ONE_THREAD, Figure, ratio
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.folder import Folder
from emotion_batch.worker.recordings import extract_rows

sys.path.insert(0, os.fspath(Path(__file__).parent.parent / "tests"))
from support import servers

N_WORKERS = 2
LATENCY_S = 0.05
# Recordings that are read at a time: a shard of a large archive.
N_TOGETHER = 1_024
# The type that S3 gives an object without a stated one. SeaweedFS compresses objects that are said to be audio, and unpacks them each time.
MIME_TYPE = "binary/octet-stream"


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
    stop = job.start + job.n_recordings
    # Out of step with another process, as shards of a run soon are.
    first = job.start + N_TOGETHER // (2 if job.start else 1)
    for start, end in pairwise((job.start, *range(first, stop, N_TOGETHER), stop)):
        extract_rows(entries.slice(start, end - start), archive, settings, segments)
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
        bucket.upload(Path(archive), "archive", ContentType=MIME_TYPE)
        slow = context.Process(target=slow_down, args=(bucket.endpoint, theirs), daemon=True)
        slow.start()
        remote = {**bucket.options, "endpoint_url": ours.recv()}
        n_each = list_recordings(archive).entries.num_rows // N_WORKERS
        places: dict[str, tuple[str, Mapping[str, Any]]] = {
            "disk": (archive, {}),
            "bucket": (f"{bucket.url}/archive", bucket.options),
            "far": (f"{bucket.url}/archive", remote),
        }
        first, *rest = sorted(os.sched_getaffinity(0))
        assert rest, "expected two cores or more"
        alone_ms: dict[str, list[float]] = {name: [] for name in places}
        cpu_ms: dict[str, list[float]] = {name: [] for name in places}
        on_one: dict[str, list[float]] = {name: [] for name in places}
        rates: dict[str, list[float]] = {name: [] for name in places}
        bare: list[float] = []
        with (
            context.Pool(1, keep_to, ({first},)) as one,
            context.Pool(N_WORKERS, keep_to, ({first},)) as together,
            context.Pool(N_WORKERS) as pool,
        ):
            for number in range(-1, n_rounds):
                # The first round is to warm up.
                is_kept = number >= 0
                keep_to(set(rest), bucket.process.pid)
                keep_to(set(rest), slow.pid or 0)
                for name in ("disk", "bucket"):
                    cpu, _ = extract(one, 1, places[name], n_each)
                    alone_ms[name] += [cpu] * is_kept
                for name in ("disk", "far"):
                    _, rate = extract(together, N_WORKERS, places[name], n_each)
                    on_one[name] += [rate] * is_kept
                keep_to({first, *rest}, bucket.process.pid)
                keep_to({first, *rest}, slow.pid or 0)
                for name in places:
                    cpu, rate = extract(pool, N_WORKERS, places[name], n_each)
                    cpu_ms[name] += [cpu] * is_kept
                    rates[name] += [rate] * is_kept
                cpu, _ = extract(pool, N_WORKERS, places["bucket"], n_each, get_alone)
                bare += [cpu] * is_kept
        slow.terminate()
        slow.join()
    return [
        ratio(
            "a recording of a bucket, the store on another core",
            "the same from the disk",
            alone_ms["bucket"],
            alone_ms["disk"],
            "<= 1.3",
            "ms CPU",
        ),
        ratio(
            "a recording of a bucket, in two processes",
            "the same from the disk",
            cpu_ms["bucket"],
            cpu_ms["disk"],
            "<= 1.3",
            "ms CPU",
        ),
        ratio(
            "a recording of a bucket, in two processes",
            "the disk's and obstore's bare get together",
            cpu_ms["bucket"],
            [sum(both) for both in zip(cpu_ms["disk"], bare, strict=True)],
            "",
            "ms CPU",
        ),
        ratio(
            "two processes at 50 ms a request, the store on another core",
            "from the disk",
            on_one["far"],
            on_one["disk"],
            ">= 0.9",
            "recordings/s",
        ),
        ratio(
            "two processes at 50 ms a request, the store on the same cores",
            "from the disk",
            rates["far"],
            rates["disk"],
            ">= 0.9",
            "recordings/s",
        ),
    ]


def extract(
    pool: multiprocessing.pool.Pool,
    n_workers: int,
    place: tuple[str, Mapping[str, Any]],
    n_each: int,
    what: Callable[[Job], tuple[float, float]] = work,
) -> tuple[float, float]:
    """Have each process of a pool read its own recordings; return milliseconds of CPU of one, and how many came a second."""
    jobs = [Job(*place, number * n_each, n_each) for number in range(n_workers)]
    answers = pool.map(what, jobs, chunksize=1)
    n_recordings = n_workers * n_each
    return sum(cpu for cpu, _ in answers) / n_recordings * 1e3, n_recordings / max(wall_s for _, wall_s in answers)
