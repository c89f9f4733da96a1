"""Start a Dask cluster on this machine for one run: a scheduler and one-thread worker processes, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from emotion_batch.environment import safe_environment
from emotion_batch.errors import ClusterError

_START_TIMEOUT_S = 60
# How the last line of a traceback looks; some of those in Dask's log only follow from others.
_RAISED = re.compile(
    r"^(?!AssertionError|AttributeError|RuntimeError: \w+ failed to start)[\w.]*(?:Error|Exception)(?::.*)?$", re.M
)
# What Dask's processes do beside the work takes a tenth of the cores at its defaults: every 10 ms a look at the stack
# for the dashboard's profile, every 20 at the event loop, every 100 and 500 at the machine.
_SETTINGS = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "500ms",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "500ms",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "2s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__DISK": "False",
}

# A process of the cluster reads none of Dask's files of settings, which are about other clusters: where a file has a key
# by a name of earlier releases, it counts even above what the environment gives. It dies with the driver.
_PROGRAM = (
    "import dask.config; dask.config.paths.clear(); dask.config.refresh(); "
    "from emotion_batch.worker.process import die_with_parent; die_with_parent(); "
    "from distributed.cli.dask_spec import main; main()"
)
# By other protocols, as by websockets, Dask listens on every address of the machine.
_PROTOCOL, _HOST = "tcp", "127.0.0.1"


def _has_current_folder() -> bool:
    """Return whether the current folder is still there; `os.stat` finds one that was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def local_cluster(n_workers: int, idle_timeout_s: float, configuration: str) -> Iterator[str]:
    """Start a scheduler and workers; yield the scheduler's address, end all of them after.

    Not Dask's LocalCluster, because its workers import the caller's script again and so run it. The processes are in sessions of
    their own, because Ctrl-C in a terminal goes to a whole session and would take the workers from under the run. The scheduler ends
    after `idle_timeout_s` without work, so that a driver that was killed leaves no cluster behind. `configuration` is Dask's, as
    its ``dask.config.serialize`` gives it. It counts instead of the user's own: encryption, ports or a preloaded script would keep
    this cluster from starting. Raise ClusterError if no scheduler comes up, or not on loopback, or if the block raises TimeoutError
    because no worker does.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="emotion-batch-", ignore_cleanup_errors=True) as folder:
        log, address_file = Path(folder, "log"), Path(folder, "scheduler.json")
        others = {name: value for name, value in safe_environment().items() if not name.startswith("DASK_")}
        # The single settings count above the configuration as a whole. Processes that are killed leave files in their scratch
        # space, so that lies in a folder that goes with the cluster.
        environment = {**others, "DASK_INTERNAL_INHERIT_CONFIG": configuration, **_SETTINGS, "TMPDIR": folder}

        def start(kind: str, options: Mapping[str, Any], *arguments: str) -> None:
            spec = json.dumps({"cls": kind, "opts": {"protocol": _PROTOCOL, "host": _HOST, **options}})
            command = [sys.executable, "-P", "-c", _PROGRAM, *arguments, "--spec", spec]
            with log.open("ab") as stream:
                process = subprocess.Popen(  # noqa: S603 our own words
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=environment,
                    # Dask does not start in a folder that was deleted.
                    cwd=None if _has_current_folder() else folder,
                    start_new_session=True,
                )
            processes.append(process)

        try:
            scheduler = {
                "port": 0,
                "dashboard_address": f"{_HOST}:0",
                "scheduler_file": os.fspath(address_file),
                "idle_timeout": f"{idle_timeout_s:.0f} seconds",
            }
            start("distributed.Scheduler", scheduler)
            address = _read_address(address_file, processes[0], log)
            require_loopback([address])
            worker = {"nthreads": 1, "dashboard_address": f"{_HOST}:0", "death_timeout": "60"}
            for _ in range(n_workers):
                start("distributed.Nanny", worker, address)
            yield address
        except TimeoutError as error:
            raise ClusterError(
                f"local cluster: no worker has started ({_find_reason(log)}); mend that, then run the same command again"
            ) from error
        finally:
            for process in processes:
                # The session, for a nanny's worker is a process of its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def require_loopback(addresses: Iterable[str]) -> None:
    """Raise ClusterError if a process of a local cluster does not listen where it was told to."""
    for address in addresses:
        if not address.startswith(f"{_PROTOCOL}://{_HOST}:"):
            raise ClusterError(
                f"local cluster: expected its processes to listen on {_PROTOCOL}://{_HOST} alone, got {address}; no work was begun, so look for "
                "what changes Dask in this Python, such as a sitecustomize.py, or name a cluster of your own with --scheduler"
            )


def _read_address(path: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the scheduler's file and return the address in it."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        # It may be there and not yet written.
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(path.read_bytes())["address"])
        time.sleep(0.02)
    raise ClusterError(
        f"local cluster: no scheduler has started ({_find_reason(log)}); mend that, then run the same command again"
    )


def _find_reason(log: Path) -> str:
    """Return the line of a log that says best why a process did not start."""
    said = log.read_text(errors="replace").strip()
    lines = _RAISED.findall(said) or [line for line in said.splitlines() if " - INFO - " not in line]
    return lines[-1] if lines else "its log has no reason"
