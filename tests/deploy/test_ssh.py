"""`deploy/ssh/label.sh` over a real SSH server, on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest
from support import servers
from support.commands import ROOT, call_command, wait_for_parts
from support.strangers import write_strangers

SCRIPT = ROOT / "deploy" / "ssh" / "label.sh"
_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin"


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An SSH configuration with two machines, both of them this one."""
    absent = [
        name for name in ("sshd", "ssh", "scp", "ssh-keygen", "setpriv") if shutil.which(name, path=_PATH) is None
    ]
    if absent:
        servers.missing(f"SSH ({', '.join(absent)}; of Debian's openssh-server, openssh-client, util-linux)")
    if os.geteuid() == 0:
        # Where the server confines what has not logged in yet; the package's own service makes it otherwise.
        Path("/run/sshd").mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        key = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
        subprocess.run(key, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in server.items()))
    client = {
        "HostName": "127.0.0.1",
        "Port": port,
        "IdentityFile": folder / "user",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": folder / "known_hosts",
        "StrictHostKeyChecking": "accept-new",
    }
    options = "".join(f"  {name} {value}\n" for name, value in client.items())
    (folder / "config").write_text(f"Host alpha beta\n{options}")
    # By its whole path, which it starts itself by again.
    program = shutil.which("sshd", path=_PATH)
    assert program is not None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while "Server listening" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield folder / "config"
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def label(configuration: Path, folder: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Start `label.sh`; what still runs at the end of the block is stopped."""
    # The machines take the package from this checkout, wherever it is installed from.
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    # What is set here for the kernels of OpenBLAS is set there, because other kernels round otherwise.
    kernels = "".join(f"{name}={value} " for name, value in os.environ.items() if re.match(r"OPENBLAS_\w+$", name))
    dask = f'#!/bin/sh\nFOLDER={folder} PYTHONPATH={ROOT} {kernels}exec {Path(sys.executable).parent / "dask"} "$@"\n'
    (programs / "dask").write_text(dask)
    (programs / "dask").chmod(0o755)
    variables = {
        "EMOTION_BATCH_BIN": os.fspath(programs),
        "EMOTION_BATCH_SSH_CONFIG": os.fspath(configuration),
        "PATH": _PATH,
        # Its first entry is empty: the current directory.
        "PYTHONPATH": f":{ROOT}",
        "TMPDIR": os.fspath(folder),
    }
    pipe = subprocess.PIPE
    command = [os.fspath(SCRIPT), *(os.fspath(one) if isinstance(one, Path) else str(one) for one in arguments)]
    process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=pipe, stderr=pipe, cwd=folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def read(folder: Path) -> pa.Table:
    return pyarrow.dataset.dataset(folder).to_table().sort_by("file").replace_schema_metadata(None)


def processes(folder: Path) -> dict[int, str]:
    """Return the command lines of what runs for `label` in this folder: here, and on the machines."""
    word = os.fsencode(folder)
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (path / "cmdline").read_bytes()
            if word in command or word in (path / "environ").read_bytes():
                found[int(path.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def assert_nothing_is_left(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(folder) == {}


def test_two_machines_give_the_table_of_one(configuration: Path, speech: Path, tmp_path: Path) -> None:
    """Killed in the middle, all ends on both machines; the same command goes on, to an equal table, and leaves nothing."""
    table = tmp_path / "table"
    words = ("alpha:1,beta:1", speech, table, "--model", "tess-seed")
    write_strangers(tmp_path, tmp_path / "marks")
    with label(configuration, tmp_path, *words) as process:
        wait_for_parts(table, 1, process)
        scripts = {
            Path(word) for line in processes(tmp_path).values() for word in line.split() if word.endswith("worker.sh")
        }
        assert len(scripts) == 2
        for script in scripts:
            assert script.parent.stat().st_mode & 0o777 == 0o700
            assert {path.stat().st_mode & 0o777 for path in script.parent.glob("*.pem")} == {0o600}
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert_nothing_is_left(tmp_path)
        assert not any(script.parent.exists() for script in scripts)
    with label(configuration, tmp_path, *words) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert b"84 ok, 5 failed" in out
    assert list((tmp_path / "marks").iterdir()) == []
    assert_nothing_is_left(tmp_path)
    done = call_command("label", speech, tmp_path / "local", "--model", "tess-seed", "--workers", "2")
    assert done.code == 0, done.err
    assert read(table).equals(read(tmp_path / "local"))


def test_a_machine_out_of_reach_is_named(configuration: Path, speech: Path, tmp_path: Path) -> None:
    """A machine that ssh does not reach ends the command with 2 and a sentence, and nothing stays behind on the others."""
    with label(configuration, tmp_path, "alpha:1,nowhere.invalid", speech, tmp_path / "table") as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "label.sh: nowhere.invalid: ssh cannot reach it without a password" in err.decode()
    assert_nothing_is_left(tmp_path)
