"""The address of a Dask scheduler, with its TLS files, and the error for a lost scheduler."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from emotion_batch.errors import IncompleteError, UsageError


class SchedulerLostError(IncompleteError):
    """The connection to the scheduler was lost."""

    def __str__(self) -> str:
        """Return the sentence."""
        return "lost the connection to the scheduler; run the same command again to resume"


@dataclass(frozen=True)
class Scheduler:
    """A running Dask scheduler.

    Attributes
    ----------
    address
        E.g. ``tcp://host:8786`` or ``tls://host:8786``.
    tls_ca, tls_cert, tls_key
        PEM files: the certificate of the authority that signed all certificates, and this client's certificate and key. Without
        them, Dask's own configuration counts (``distributed.comm.tls``).

    Raises
    ------
    UsageError
        If only some of the files are named, one cannot be read, or the address is not a TLS address.
    """

    address: str
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        files = {"--tls-ca": self.tls_ca, "--tls-cert": self.tls_cert, "--tls-key": self.tls_key}
        missing = [name for name, path in files.items() if path is None]
        if missing and len(missing) < len(files):
            raise UsageError(f"{', '.join(files)} require each other: {missing[0]} is missing")
        if not missing and not self.address.startswith("tls://"):
            raise UsageError(f"{', '.join(files)} require an address tls://HOST:PORT: {self.address}")
        for name, path in files.items():
            if path is not None and not os.access(path, os.R_OK):
                raise UsageError(f"{name} must be a PEM file that can be read: {path}")

    @classmethod
    def of(cls, scheduler: str | Scheduler | None) -> Scheduler | None:
        """Return a scheduler for what a caller named: an address, or a scheduler; None stays None."""
        return cls(scheduler) if isinstance(scheduler, str) else scheduler

    def find_risk(self) -> str | None:
        """Return a sentence if anyone who reaches the scheduler can run code there; None if not."""
        parts = urlsplit(self.address if "://" in self.address else f"tcp://{self.address}")
        if parts.scheme != "tcp" or _is_loopback(parts.hostname or ""):
            return None
        return (
            f"scheduler {self.address} is open: anyone who can reach it over the network can run any code on its workers, as their "
            "user and with their credentials; use TLS (--tls-ca, --tls-cert, --tls-key, an address tls://...), or make sure "
            "that no one else can reach it"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
