"""A Dask cluster that is started as from a shell."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from emotion_batch.run.scheduler import Scheduler

# What Dask's processes do beside the work takes a tenth of the cores at its defaults, also while no test uses them.
_CALM = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "500ms",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "2s",
}


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

    They have no dashboards, which no test looks at and each process takes a second to start. `inside` is the command that
    runs them elsewhere, such as in another network.
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
            env={**_CALM, **os.environ, **(environment or {})},
        )
        processes.append(process)
        return process

    folder.mkdir(parents=True, exist_ok=True)
    try:
        scheduler = start(
            "scheduler",
            "scheduler",
            *("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--protocol", protocol),
        )
        address = _wait_for(folder / "scheduler.log", rf"Scheduler at:\s+({protocol}://127\.0\.0\.1:\d+)")

        def add_worker(
            *options: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
        ) -> subprocess.Popen[bytes]:
            name = f"worker{len(processes)}"
            arguments = (address, "--host", "127.0.0.1", "--no-dashboard", *options)
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


def _wait_for(log: Path, pattern: str, timeout_s: float = 60) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if log.exists() and (match := re.search(pattern, log.read_text(errors="replace"))):
            return match[1]
        time.sleep(0.1)
    raise AssertionError(
        f"{log.name}: expected {pattern!r} within {timeout_s} s, got {log.read_text(errors='replace')}"
    )
