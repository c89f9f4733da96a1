"""Repeat requests that failed for a passing reason (a connection reset, an answer 503), with growing pauses, and count them.

Every policy of this package that tries something again has its constants here, side by side with its reason.
"""

from __future__ import annotations

import contextlib
import errno
import random
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import resources
from typing import TypeVar

from emotion_batch import usage
from emotion_batch.errors import StorageError, StoreError

T = TypeVar("T")
# What the clients of storage call their options and errors.
CLIENTS = tomllib.loads(resources.files(__package__).joinpath("clients.toml").read_text(encoding="utf-8"))
# A request to a store is made again after these pauses. Longer faults are left to the retries of shards. No further try
# begins after a minute, because a recording's deadline must not pass while a store is asked.
REQUEST_WAITS_S, REQUEST_PATIENCE_S = (0.5, 1.0, 2.0, 4.0, 8.0), 60.0
# A store's client makes no retries of its own: `persistently` makes them, and counts them.
CLIENT_RETRIES = 0
# A recording whose child process died is decoded again once, because something else may have killed the child.
RECORDING_RETRIES = 1
# A shard is handed out again after these pauses if its worker or a store failed: some three minutes in all, on top of the
# retries of requests.
SHARD_WAITS_S = (1.0, 5.0, 15.0, 30.0, 60.0, 60.0)
# If a shard takes this many times as long as usual, and at least this many seconds, an idle worker begins it too, because
# it does no harm to write a shard twice.
STRAGGLER_FACTOR, STRAGGLER_S = 3.0, 10.0
# A worker that cannot do a shard keeps it for this many seconds, because otherwise it would get it again at once.
UNFIT_PAUSE_S = 5.0
# While no shard ends, a run restarts each worker at most this many times, because a worker that is too small stays too small.
WORKER_STARTS = 3
# While no shard ends, at most this many workers for each thread may be ended because of their memory. A recording that ends
# a worker is decoded in a child afterwards.
WORKER_ENDS = 4
# A run looks at most this many times for shards that are left if another run worked on the same table.
PASSES = 3
# The recordings that show whether an archive can still be read, and how many of a shard are tried to find one of them,
# because any single recording may be gone or refused for a reason of its own.
WITNESSES, WITNESS_TRIES = 3, 20
_TRANSIENT_ERRNOS = {getattr(errno, name) for name in CLIENTS["errors"]["errnos"]}
# Request timeout, too many requests, failures of the server, and a network that needs a login.
TRANSIENT_CODES = {408, 429, 500, 502, 503, 504, 511}
# The names of these errors of requests and urllib3 are Python's too, but the classes are not the same.
_TRANSIENT_MODULES = {"requests.exceptions": {"ConnectionError", "Timeout"}}
_local = threading.local()


def persistently(function: Callable[[], T]) -> T:
    """Call `function`, and again with backoff while what it raises is transient; five times at most, a minute at most."""
    until = time.monotonic() + REQUEST_PATIENCE_S
    for delay_s in () if getattr(_local, "is_hasty", False) else REQUEST_WAITS_S:
        try:
            return function()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + delay_s > until:
                raise
        usage.current().n_retries += 1
        # A random wait keeps workers from asking at the same time: https://en.wikipedia.org/wiki/Exponential_backoff
        time.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 no secret
    return function()


@contextlib.contextmanager
def hastily() -> Iterator[None]:
    """Ask this thread's storage once only within the block, because a person waits for the process to end."""
    _local.is_hasty = True
    try:
        yield
    finally:
        _local.is_hasty = False


def is_transient(error: BaseException) -> bool:
    """Return whether a network, a store or a machine failed, and the request itself was not wrong."""
    if isinstance(error, StorageError | StoreError):
        return error.is_transient
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return find_status_code(error) in TRANSIENT_CODES or any(
        kind.__name__ in CLIENTS["errors"]["transient"] or kind.__name__ in _TRANSIENT_MODULES.get(kind.__module__, ())
        for kind in type(error).__mro__
    )


def find_status_code(error: BaseException) -> int | None:
    """Return the HTTP status that an error of a client carries, or the one that it was made of."""
    # The names are those of aiohttp and gcsfs, azure, requests and google-auth. botocore has a mapping.
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    for holder, name in ((error, "status"), (error, "status_code"), (response, "status_code"), (error, "code")):
        if isinstance(code := getattr(holder, name, None), int):
            return code
    if isinstance(code := metadata.get("HTTPStatusCode"), int):
        return code
    return find_status_code(error.__cause__) if error.__cause__ is not None else None
