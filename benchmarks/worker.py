"""A Dask worker beside a bare process, on the same shards."""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil

from benchmarks.jobs import Job, make_jobs
from benchmarks.measuring import Figure, children, ratio
from emotion_batch.run import dask_cluster
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.worker.task import Receipt, Task


def measure(archive: str, n_rounds: int) -> list[Figure]:
    """Return what a recording costs in a worker, and what two workers reach, against bare processes."""
    with tempfile.TemporaryDirectory() as folder:
        job, shards = make_jobs(Path(folder), archive, None)["extract"]
        numbers = list(shards)
        halves = [numbers[::2], numbers[1::2]]
        in_worker, bare, two_workers, two_bare = [], [], [], []
        with (
            dask_cluster.connect(None, 1) as one,
            dask_cluster.connect(None, 2) as two,
            children(("shards", archive), ("shards", archive)) as processes,
        ):
            for number in range(-1, n_rounds):
                # The first round is to warm up.
                cpu, _ = run(one, job, shards, numbers[:12])
                bare_cpu, _ = processes[0].do(("extract", numbers[:12]))
                _, wall = run(two, job, shards, numbers)
                started = time.perf_counter()
                for process, half in zip(processes, halves, strict=True):
                    process.ask(("extract", half))
                for process in processes:
                    process.answer()
                if number >= 0:
                    in_worker.append(cpu * 1e3)
                    bare.append(bare_cpu * 1e3)
                    two_workers.append(1 / wall)
                    two_bare.append(1 / (time.perf_counter() - started))
    return [
        ratio("twelve shards in a Dask worker", "the same in a bare process", in_worker, bare, "<= 1.05", "ms CPU"),
        ratio("two workers' rate", "two bare processes", two_workers, two_bare, ">= 0.95", "archives/s"),
    ]


def run(
    connected: dask_cluster.Cluster, job: Job, shards: dict[int, ShardEntry], numbers: list[int]
) -> tuple[float, float]:
    """Do shards on a cluster; return the CPU seconds of its worker processes, all of them, and the wall seconds."""
    workers = [psutil.Process(pid) for pid in connected._client.run(os.getpid).values()]
    before = cpu_s(workers)
    started = time.perf_counter()
    # A function of its own each time, for Dask takes equal calls for one.
    for _, outcome in connected.run(
        partial(do_shard, job, time.time_ns()), [Task(one, shards[one]) for one in numbers]
    ):
        if isinstance(outcome, BaseException):
            raise outcome
    return cpu_s(workers) - before, time.perf_counter() - started


def do_shard(job: Job, run: int, task: Task) -> Receipt:
    """Do one shard, on a worker."""
    return job.do_shard(task, str(run))


def cpu_s(processes: list[psutil.Process]) -> float:
    """Return the CPU seconds that processes have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)
