"""A network without any route, in which a resolver writes down each name that it is asked for; for tests.

It takes root, and util-linux and iproute2. As a program this is the resolver.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_SUCH_NAME = b"\x81\x83"


@dataclass(frozen=True)
class Network:
    """A network with loopback alone."""

    process: int
    log: Path

    @property
    def inside(self) -> tuple[str, ...]:
        """The command that runs the words after it in this network."""
        return ("nsenter", f"--target={self.process}", "--net", "--mount", "--uts", "--")

    def names(self) -> set[str]:
        """Return the names that processes in the network have looked up."""
        return set(self.log.read_text().split()) - {"ready"}


@contextlib.contextmanager
def deaf_network(folder: Path) -> Iterator[Network]:
    """Make a network and its resolver; end them with the block.

    The machine has a name there that no file of hosts knows, so that a process that asks for its address is heard too.

    Raises
    ------
    PermissionError
        If networks may not be made here.
    """
    configuration, log = folder / "resolv.conf", folder / "names"
    configuration.write_text("nameserver 127.0.0.1\n")
    log.touch()
    prepare = "hostname unheard-of && ip link set lo up && mount --bind $0 /etc/resolv.conf && exec $1 $2 $3"
    process = subprocess.Popen(
        ["unshare", "--net", "--mount", "--uts", "sh", "-c", prepare, configuration, sys.executable, __file__, log],
        env={**os.environ, "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"},
        stderr=subprocess.PIPE,
    )
    try:
        while "ready" not in log.read_text():
            if process.poll() is not None:
                raise PermissionError(process.stderr.read().decode() if process.stderr else "")
            time.sleep(0.02)
        yield Network(process.pid, log)
    finally:
        process.kill()
        process.communicate()


def main(log: str) -> None:
    """Answer each question with "no such name", and write the name down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, open(log, "a", buffering=1) as names:
        asked.bind(("127.0.0.1", 53))
        names.write("ready\n")
        while True:
            question, who = asked.recvfrom(4_096)
            # RFC 1035, 4.1: a header of 12 bytes, then labels with their lengths before them, up to an empty one.
            at, labels = 12, []
            while question[at]:
                labels.append(question[at + 1 : at + 1 + question[at]].decode())
                at += 1 + question[at]
            names.write(".".join(labels) + "\n")
            asked.sendto(question[:2] + _NO_SUCH_NAME + question[4:6] + bytes(6) + question[12 : at + 5], who)


if __name__ == "__main__":
    main(sys.argv[1])
