"""Connect to a Dask scheduler, and turn what Dask raises into one sentence."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dask
import dask.bag
from distributed import (
    Client,
    Security,
)
from distributed.client import FutureCancelledError
from distributed.comm.addressing import parse_address
from distributed.comm.registry import get_backend

from emotion_batch.errors import ClusterError, EmotionBatchError, IncompleteError, find_shortage
from emotion_batch.run.scheduler import Scheduler

_CONNECT_TIMEOUT_S = 10
LOST = (
    "scheduler: expected it to stay until the work is done, got no answer any more; run the same command again, it goes on from "
    "there"
)


@contextlib.contextmanager
def losing(client: Client) -> Iterator[None]:
    """Say in a sentence that the scheduler was lost, whatever Dask raises within the block because of that."""
    try:
        yield
    except EmotionBatchError:
        raise
    except Exception as error:
        is_lost = client.status != "running" or isinstance(error, OSError | FutureCancelledError)
        if is_lost and find_shortage(error) is None:
            raise IncompleteError(LOST) from error
        raise


def local_configuration() -> dict[str, Any]:
    """Return Dask's own settings for a cluster of this machine, with what the user has set of a worker's memory alone."""
    defaults: dict[str, Any] = dask.config.merge(*dask.config.defaults)
    memory = dask.config.get("distributed.worker.memory")
    return dict(dask.config.merge(defaults, {"distributed": {"worker": {"memory": memory}}}))


def close(client: Client) -> None:
    """Close a client, whatever became of its scheduler: shards that are not begun are forgotten."""
    with contextlib.suppress(OSError, TimeoutError, RuntimeError):
        client.close(timeout=5)


def open_client(scheduler: Scheduler) -> Client:
    """Return a client of a scheduler; raise ClusterError if there is none, or it cannot be spoken to."""
    security = Security()
    if scheduler.has_tls_files:
        security = Security(
            tls_ca_file=scheduler.tls_ca,
            tls_client_cert=scheduler.tls_cert,
            tls_client_key=scheduler.tls_key,
            require_encryption=True,
        )
    elif scheduler.address.startswith("tls:") and security.get_connection_args("client").get("ssl_context") is None:
        raise ClusterError(
            f"scheduler {scheduler.address}: expected certificates for TLS, got none; name them with --tls-ca, --tls-cert and "
            "--tls-key, or in Dask's configuration"
        )
    try:
        # First, for a client that was given an unknown scheme cannot even be closed.
        get_backend(parse_address(scheduler.address)[0])
        return _answered(
            partial(Client, scheduler.address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False, security=security)
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ClusterError(
            f"scheduler {scheduler.address}: expected a Dask scheduler there, got {shorten(_first_cause(error))}; "
            "start one with `dask scheduler`, or leave out --scheduler to use this machine"
        ) from error


def _answered(start: Callable[[], Client]) -> Client:
    """Return a client, or raise TimeoutError where a scheduler takes the connection and then stands still.

    In a thread that may be left behind, because Dask's own limit of time ends before that.
    """
    found: list[Client | BaseException] = []

    def look() -> None:
        try:
            found.append(start())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(2 * _CONNECT_TIMEOUT_S)
    if not found:
        raise TimeoutError(f"no answer within {2 * _CONNECT_TIMEOUT_S} s")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _first_cause(error: BaseException) -> BaseException:
    """Return what a failure to connect came of: Dask wraps it in a timeout."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return error


def shorten(error: BaseException) -> str:
    """Return an error's class and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
