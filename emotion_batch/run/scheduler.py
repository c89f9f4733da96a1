"""The means of a run: a Dask scheduler with its TLS files, and what workers must be able to read."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import Bundle
from emotion_batch.storage.entries import Entry
from emotion_batch.storage.folder import Folder


@dataclass(frozen=True)
class Scheduler:
    """A running Dask scheduler.

    Attributes
    ----------
    address
        As ``tcp://host:8786`` or ``tls://host:8786``.
    tls_ca, tls_cert, tls_key
        PEM files: the authority that signed everybody's certificates, and certificate and key of whoever connects. With
        none, Dask's own configuration says (``distributed.comm.tls``).

    Raises
    ------
    UsageError
        If only some of the files are named, one cannot be read, or the address is not one of TLS.
    """

    address: str
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        files = {"--tls-ca": self.tls_ca, "--tls-cert": self.tls_cert, "--tls-key": self.tls_key}
        missing = [name for name, path in files.items() if path is None]
        if missing and len(missing) < len(files):
            raise UsageError(f"{', '.join(files)}: expected all three or none, got none for {missing[0]}")
        if not missing and not self.address.startswith("tls://"):
            raise UsageError(f"{', '.join(files)}: expected an address tls://HOST:PORT with them, got {self.address}")
        for name, path in files.items():
            if path is not None and not os.access(path, os.R_OK):
                raise UsageError(f"{name}: expected a PEM file that can be read, got {path}")

    @classmethod
    def of(cls, scheduler: str | Scheduler | None) -> Scheduler | None:
        """Return what a caller named: an address, or all of it; None stays None."""
        return cls(scheduler) if isinstance(scheduler, str) else scheduler

    @property
    def has_tls_files(self) -> bool:
        """Whether certificates were named, rather than left to Dask's configuration."""
        return self.tls_ca is not None

    def find_risk(self) -> str | None:
        """Return a sentence if whoever reaches the scheduler may run what they like there; None if not."""
        parts = urlsplit(self.address if "://" in self.address else f"tcp://{self.address}")
        if parts.scheme != "tcp" or _is_loopback(parts.hostname or ""):
            return None
        return (
            f"scheduler {self.address} is open: whoever can reach it over the network can run any code on its workers, as their "
            "user and with their credentials; use TLS (--tls-ca, --tls-cert, --tls-key, an address tls://...) or see that "
            "nobody else reaches it"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Means:
    """With what a run works.

    Attributes
    ----------
    scheduler
        A running Dask scheduler; None for a local cluster.
    workers
        One-thread worker processes of a local cluster; None for one a core.
    force
        Go on though the first recordings come out alike.
    leave
        Hand the run to the scheduler and come back, rather than wait for its end.

    Raises
    ------
    UsageError
        If a run is to be left to a cluster that would end with the call.
    """

    scheduler: Scheduler | None = None
    workers: int | None = None
    force: bool = False
    leave: bool = False

    def __post_init__(self) -> None:
        if self.leave and self.scheduler is None:
            raise UsageError(
                "--scheduler: expected the address of a running Dask scheduler to leave the run to, got none; start one with "
                "`dask scheduler`, or run the command here without `submit`"
            )


@dataclass(frozen=True)
class Needs:
    """What the workers must be able to read."""

    archive: Folder | None = None
    recordings: tuple[Entry, ...] = ()
    features: tuple[Folder, str] | None = None
    bundle: Bundle | None = None
