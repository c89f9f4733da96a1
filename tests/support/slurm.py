"""A real Slurm to test against: munge, a controller and two nodes of 2 and 1 cores, in a network of their own.

In that network there is loopback and nothing else, for Slurm's daemons listen on every address that they find.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support import servers

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "label.sbatch"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "openssl", "ip", "unshare", "nsenter")
# Addresses for documentation, which glibc does not take for loopback: with only such, it resolves no name.
_ADDRESSES = ("192.0.2.1", "192.0.2.2")
_CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort=27001
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
# Control groups would be the whole machine's.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=5
NodeName=one NodeHostname=localhost NodeAddr={one} Port=27002 CPUs=2 RealMemory=2000
NodeName=two NodeHostname=localhost NodeAddr={two} Port=27003 CPUs=1 RealMemory=1000
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm.

    Attributes
    ----------
    folder
        Of its configuration and logs.
    daemons
        Its processes, munge's first.
    own
        Their ids, and those of what they have started for themselves.
    """

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(repr=False)
    own: set[int] = field(default_factory=set, repr=False)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon in the network."""
        with (self.folder / f"{Path(command[0]).name}-{len(self.daemons)}.log").open("wb") as log:
            process = subprocess.Popen(
                self._inside(command), env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.daemons.append(process)
        return process

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command in the network and return what it prints."""
        done = subprocess.run(
            self._inside(command),
            env=self._environment(),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{self.logs()}"
        return done.stdout

    def submit(self, folder: Path, *arguments: object, script: Path = SCRIPT) -> int:
        """Submit `label.sbatch` from a folder, options of sbatch first; its output goes to ``JOB.log`` there."""
        words = [os.fspath(one) if isinstance(one, Path) else str(one) for one in arguments]
        cut = words.index("--")
        printed = self.run(
            "sbatch", "--parsable", "--output=%j.log", *words[:cut], os.fspath(script), *words[cut + 1 :], cwd=folder
        )
        return int(printed)

    def state(self, job: int) -> dict[str, str]:
        """Return what Slurm says of a job, by Slurm's own names."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", str(job))))

    def wait_until(self, job: int, *states: str, timeout_s: float = 120) -> dict[str, str]:
        """Wait until a job is in one of these states and return what Slurm says of it."""
        deadline = time.monotonic() + timeout_s
        while (found := self.state(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{found}{self.logs()}"
            time.sleep(0.2)
        return found

    def processes(self) -> dict[int, str]:
        """Return the command lines of the processes in the network, without Slurm's own."""
        network = _network(self.daemons[0].pid)
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(path.name) not in self.own and _network(int(path.name)) == network:
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def logs(self) -> str:
        """Return what the daemons have said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def _inside(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.daemons[0].pid}/ns/net", "--", *command]

    def _environment(self) -> dict[str, str]:
        # As in a shell in which `emotion-batch` answers.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin"
        variables = {"SLURM_CONF": os.fspath(self.folder / "slurm.conf"), "PATH": path, "PYTHONPATH": os.fspath(ROOT)}
        return {**os.environ, **variables}


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Start a Slurm; end it with the block, and the jobs that still run."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    absent = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        servers.missing(f"Slurm ({', '.join(absent)}; of Debian's slurm-wlm, munge, openssl, iproute2, util-linux)")
    if os.geteuid() != 0:
        servers.missing("the right to make a network for Slurm, which is root's")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("munge", "state", "spool-one", "spool-two"):
        (folder / name).mkdir()
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1_024))
    key.chmod(0o600)
    one, two = _ADDRESSES
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(folder=folder, one=one, two=two))
    munge = f"munged --force --foreground --num-threads=2 --key-file={key} " + " ".join(
        f"--{name}-file={folder}/munge/{name}" for name in ("pid", "log", "seed")
    )
    network = " && ".join(["ip link set lo up", *(f"ip address add {address}/32 dev lo" for address in _ADDRESSES)])
    with (folder / "munged.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", f"{network} && exec {munge} --socket={folder}/munge/socket"],
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    found = Slurm(folder, [process])
    try:
        _wait_for(found, (folder / "munge" / "socket").exists)
        found.start("slurmctld", "-D", "-c")
        for node in ("one", "two"):
            found.start("slurmd", "-D", "-N", node)
        _wait_for(found, lambda: _is_up(found))
        found.own.update(found.processes())
        yield found
    finally:
        # What a job has left, and then the daemons, by their ids.
        with contextlib.suppress(OSError):
            _kill(found.processes())
        for daemon in reversed(found.daemons):
            daemon.terminate()
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _is_up(found: Slurm) -> bool:
    done = subprocess.run(
        found._inside(("sinfo", "--noheader", "--format=%T")),
        env=found._environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.split() == ["idle"]


def _network(process: int) -> int:
    return os.stat(f"/proc/{process}/ns/net").st_ino


def _kill(processes: dict[int, str]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _wait_for(found: Slurm, is_there: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_there():
        dead = [daemon.args for daemon in found.daemons if daemon.poll() is not None]
        assert not dead and time.monotonic() < deadline, f"{dead}{found.logs()}"
        time.sleep(0.05)
