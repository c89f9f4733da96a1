"""The address of a Dask scheduler, with its TLS files, and the error of one that was lost."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from emotion_batch.errors import IncompleteError, UsageError


class SchedulerLostError(IncompleteError):
    """The connection to the scheduler was lost."""

    def __init__(
        self,
        text: str = "scheduler: expected it to stay until the work is done, got no answer any more; run the same command again, "
        "it goes on from there",
    ) -> None:
        super().__init__(text)


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
