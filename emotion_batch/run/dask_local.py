"""Start a Dask cluster on this machine for one run: a process with its scheduler and nannies, and one-thread workers, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from distributed import Nanny, Scheduler
from distributed.utils import get_mp_context
from tornado import web

from emotion_batch.environment import safe_environment
from emotion_batch.errors import ClusterError
from emotion_batch.worker.process import die_with_parent

_START_TIMEOUT_S = 60
# This matches the last line of a traceback, except those in Dask's log that only follow from others.
_RAISED = re.compile(
    r"^(?!AssertionError|AttributeError|RuntimeError: \w+ failed to start)[\w.]*(?:Error|Exception)(?::.*)?$", re.M
)
# A process of the cluster reads none of Dask's settings files, because they are about other clusters: a key in them with a name
# of earlier releases would count even above the environment.
_PROGRAM = (
    "import dask.config; dask.config.paths.clear(); dask.config.refresh(); "
    "from emotion_batch.run import dask_local; dask_local.serve()"
)
# With other protocols, e.g. websockets, Dask listens on every address of the machine.
_PROTOCOL, _HOST = "tcp", "127.0.0.1"
# Workers are forked from a process that has imported these libraries, because each would take seconds for it. It has nothing of this
# package: a worker that is started again finds the code as it is then, and says which.
_IMPORTED = ("distributed", "numpy", "onnxruntime", "pandas", "pyarrow.dataset", "scipy.fft", "soundfile", "soxr")
# It listens on a socket in the folder for temporary files, whose path may have 107 bytes. Where they do not suffice, workers import.
_LONGEST_FOLDER = 70


@contextlib.contextmanager
def local_cluster(n_workers: int, idle_timeout_s: float, configuration: str) -> Iterator[str]:
    """Start a scheduler and workers; yield the scheduler's address, and end all of them after the block.

    Dask's LocalCluster is not used, because its workers import the caller's script again and so run it. The cluster has its own
    session, because Ctrl-C in a terminal goes to a whole session and would end the workers during the run. The scheduler ends
    after `idle_timeout_s` without work, so that a driver that was killed leaves no cluster behind. `configuration` is Dask's, as
    its ``dask.config.serialize`` gives it. It replaces the user's own, because encryption, ports or a preloaded script would
    keep this cluster from starting. Raise ClusterError if no scheduler comes up, or not on loopback, or if the block raises TimeoutError
    because no worker does.
    """
    with tempfile.TemporaryDirectory(prefix="emotion-batch-", ignore_cleanup_errors=True) as folder:
        log, address_file = Path(folder, "log"), Path(folder, "scheduler.json")
        settings = tomllib.loads(resources.files(__package__).joinpath("dask_local.toml").read_text(encoding="utf-8"))
        others = {name: value for name, value in safe_environment().items() if not name.startswith("DASK_")}
        # The single settings have priority over the whole configuration. Killed processes leave files in their scratch space, so
        # that is in a folder that is deleted with the cluster.
        environment = {**others, "DASK_INTERNAL_INHERIT_CONFIG": configuration, **settings, "TMPDIR": folder}
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            environment["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "spawn"
        # Dask does not start in a folder that was deleted.
        here = folder
        with contextlib.suppress(FileNotFoundError):
            here = os.getcwd()
        scheduler = {
            "port": 0,
            "dashboard_address": f"{_HOST}:0",
            "dashboard": False,
            "scheduler_file": os.fspath(address_file),
            "idle_timeout": f"{idle_timeout_s:.0f} seconds",
        }
        with log.open("ab") as stream:
            process = subprocess.Popen(  # noqa: S603 our own words
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(scheduler), str(n_workers)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                cwd=here,
                start_new_session=True,
            )
        try:
            address = _read_address(address_file, process, log)
            require_loopback([address])
            yield address
        except TimeoutError as error:
            raise ClusterError(
                f"local cluster: no worker has started ({_find_reason(log)}); repair that, then run the same command again"
            ) from error
        finally:
            # The whole session is killed, because the workers are other processes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def serve() -> None:
    """Serve as the scheduler and the nannies of a local cluster, until the scheduler ends or the driver dies."""
    die_with_parent()
    get_mp_context().set_forkserver_preload(list(_IMPORTED))
    asyncio.run(_serve(json.loads(sys.argv[1]), int(sys.argv[2])))


async def _serve(options: dict[str, Any], n_workers: int) -> None:
    where: dict[str, Any] = {"protocol": _PROTOCOL, "host": _HOST}
    async with Scheduler(**where, **options) as scheduler:
        scheduler.http_application.add_application(_LateDashboard(scheduler))
        # A worker that does not start is missed by the driver only if there is no other.
        nannies = (
            Nanny(scheduler.address, nthreads=1, dashboard_address=f"{_HOST}:0", death_timeout="60", **where)
            for _ in range(n_workers)
        )
        await asyncio.gather(*nannies, return_exceptions=True)
        await scheduler.finished()


class _LateDashboard(web.Application):
    """Adds the scheduler's pages when the first of them is asked for, because bokeh takes half a second to import."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def find_handler(self, request: Any, **options: Any) -> Any:
        from distributed.dashboard.scheduler import connect

        pages = self._scheduler.http_application
        pages.applications.remove(self)
        connect(pages, self._scheduler.http_server, self._scheduler)
        return pages.find_handler(request, **options)


def require_loopback(addresses: Iterable[str]) -> None:
    """Raise ClusterError if a process of a local cluster does not listen on loopback only."""
    for address in addresses:
        if not address.startswith(f"{_PROTOCOL}://{_HOST}:"):
            raise ClusterError(
                f"local cluster: its processes must listen on {_PROTOCOL}://{_HOST} only: {address}; no work has begun; find what changes "
                "Dask in this Python, e.g. a sitecustomize.py, or name your own cluster with --scheduler"
            )


def _read_address(path: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the scheduler's file and return the address in it."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        # The file may exist before it is written.
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(path.read_bytes())["address"])
        time.sleep(0.02)
    raise ClusterError(
        f"local cluster: no scheduler has started ({_find_reason(log)}); repair that, then run the same command again"
    )


def _find_reason(log: Path) -> str:
    """Return the line of a log that best explains why a process did not start."""
    said = log.read_text(errors="replace").strip()
    lines = _RAISED.findall(said) or [line for line in said.splitlines() if " - INFO - " not in line]
    return lines[-1] if lines else "its log has no reason"
