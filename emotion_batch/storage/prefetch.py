"""Fetch the next recordings while the processor computes, and of large ones only the stretch that is needed."""

from __future__ import annotations

import io
import math
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

from emotion_batch import usage
from emotion_batch.errors import StoreError
from emotion_batch.settings import Segments
from emotion_batch.storage.entries import Entry, is_local, locate_remote
from emotion_batch.storage.folder import Folder, is_url
from emotion_batch.storage.fsspec_store import STRANGE, Ahead, Blob, Store
from emotion_batch.storage.retry import persistently

# Requests of a worker that threads have under way, and the most that it holds of recordings that are not computed yet.
_N_CONNECTIONS = 32
_MOST_AHEAD, _MOST_AHEAD_BYTES = 64, 64 * 2**20
# Of what this thread fetches more is held the farther the store is, if waiting took such a share of the time: what waits
# pushes out of the caches what is computed on.
_MOST_WAITING = 0.1
# Others are asked for when half is gone, and sockets looked at so often: one by one each costs the processor a switch.
_STEP_S = 0.015
# What is no larger is fetched whole; of others this much at first, until it is known what recordings here need.
_WHOLE_BYTES, _FIRST_BYTES, _MOST_FIRST_BYTES = 2**18, 2**16, 2**20
# What a decoder asks for beyond that comes in blocks; one that reads a recording through gets the next one meanwhile.
_BLOCK_BYTES, _THROUGH_BYTES = 2**17, 2**21
_MOST_BLOCKS = 8
_PAGE = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype )?html\b", re.IGNORECASE | re.DOTALL)


def find_stretch(head: bytes, offset_s: float, duration_s: float) -> tuple[int, int] | None:
    """Return where a stretch of a RIFF/WAVE file lies, by its first bytes, so that it can be fetched by itself.

    Parameters
    ----------
    head
        The file's first bytes.
    offset_s, duration_s
        The stretch, in seconds.

    Returns
    -------
    First byte of it and first after it, as if the file had no end; None if the bytes do not tell.
    """
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:12] != b"WAVE":
        return None
    offset, byte_rate, frame_bytes = 12, 0, 0
    while len(chunk := head[offset : offset + 8]) == 8:
        size = int.from_bytes(chunk[4:], "little")
        offset += 8
        if chunk[:4] == b"fmt ":
            byte_rate = int.from_bytes(head[offset + 8 : offset + 12], "little")
            frame_bytes = int.from_bytes(head[offset + 12 : offset + 14], "little")
        elif chunk[:4] == b"data":
            if not (byte_rate and frame_bytes):
                return None
            start = int(offset_s * byte_rate) // frame_bytes * frame_bytes
            return offset + start, offset + start + (int(duration_s * byte_rate) // frame_bytes + 2) * frame_bytes
        offset += size + size % 2
    return None


class RemoteFile(io.RawIOBase):
    """An object as a file that is read where it is asked for.

    What its store raises is kept in `failure`, for it would not come through a decoder of C: to that, the file ends there.

    Parameters
    ----------
    store, path
        Where the object is.
    size
        Of it, in bytes.
    version
        Of it: another one is not read.
    block_bytes
        How much is fetched at a time.
    pool
        Fetches the next block while one is read; None for one that is read here and there.
    on_block
        Called before a block is waited for.

    Attributes
    ----------
    failure
        What its store raised, if it did.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        size: int,
        version: str | None,
        *,
        block_bytes: int = _BLOCK_BYTES,
        pool: ThreadPoolExecutor | None = None,
        on_block: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._path = path
        self.size = size
        self._version = version
        self._block_bytes = block_bytes
        self._pool = pool
        self._on_block = on_block
        self._position = 0
        self._spans: list[tuple[int, bytes]] = []
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next: tuple[int, Callable[[], bytes]] | None = None
        self.failure: Exception | None = None

    def keep(self, start: int, data: bytes) -> None:
        """Have bytes at hand that were fetched already."""
        self._spans.append((start, data))

    def fetch(self, start: int, stop: int) -> bytes:
        """Return bytes from the store."""
        data = persistently(lambda: self._store.get(self._path, start, stop, version=self._version)).data
        usage.current().read_bytes += len(data)
        return data

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes from `offset` on, fewer at the file's end, or where its store failed."""
        stop = min(offset + n_bytes, self.size)
        parts = []
        while offset < stop:
            try:
                part = self._at_hand(offset, stop)
            except Exception as error:
                self.failure = error
                break
            if not part:
                # Shorter than it was said to be.
                break
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _at_hand(self, offset: int, stop: int) -> bytes:
        """Return bytes from `offset` on, up to `stop` or the end of what is at hand."""
        for start, data in self._spans:
            if start <= offset < start + len(data):
                return data[offset - start : stop - start]
        number = offset // self._block_bytes
        data = self._block(number)
        start = number * self._block_bytes
        return data[offset - start : stop - start]

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        self._on_block()
        data = self._take_next(number)
        if data is None:
            start = number * self._block_bytes
            data = self.fetch(start, min(start + self._block_bytes, self.size))
        self._blocks[number] = data
        if len(self._blocks) > _MOST_BLOCKS or self._pool is not None:
            while len(self._blocks) > (2 if self._pool is not None else _MOST_BLOCKS):
                self._blocks.popitem(last=False)
        if self._pool is not None and (number + 1) * self._block_bytes < self.size:
            start = (number + 1) * self._block_bytes
            self._next = (
                number + 1,
                usage.submit_metered(self._pool, lambda: self.fetch(start, start + self._block_bytes)),
            )
        return data

    def _take_next(self, number: int) -> bytes | None:
        if self._next is None or self._next[0] != number:
            return None
        job, self._next = self._next[1], None
        with usage.stage("read"):
            return job()

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def seekable(self) -> bool:
        """Return that it is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, as all files do."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # soundfile gives a memoryview
        """Read into a buffer."""
        data = self.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class Fetched(NamedTuple):
    """A recording of a store: all its bytes, or a file of it; its size and version."""

    source: bytes | RemoteFile
    size: int
    version: str | None


class Reader:
    """Fetches recordings of one archive; `reading` makes it.

    Parameters
    ----------
    archive
        What names are relative to.
    segments
        Which stretches will be read.
    pool
        What fetches.
    transfers
        What fetches first bytes in the thread that reads, where the archive's store has that.
    """

    def __init__(
        self, archive: Folder, segments: Segments, pool: ThreadPoolExecutor, transfers: Ahead | None = None
    ) -> None:
        self._archive = archive
        self._segments = segments
        self._is_through = segments.hop_s is not None
        self._whole_bytes = _THROUGH_BYTES if self._is_through else _WHOLE_BYTES
        self._first_bytes = _THROUGH_BYTES if self._is_through else _FIRST_BYTES
        self._pool = pool
        self._transfers = transfers
        self._stepped = self._waited_s = 0.0
        self._base = None if archive.is_local else archive.store()

    def ahead(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Callable[[], Fetched] | None]]:
        """Yield entries in their order, those of a store with what gives them when they are there, or raises why not."""
        waiting: deque[tuple[Entry, Callable[[], Fetched] | None, int]] = deque()
        left = iter(entries)
        n_bytes = 0
        is_over = False
        n_most = _MOST_AHEAD if self._transfers is None else self._transfers.n_ahead
        # How long the first answer took says nothing of how many to have under way.
        filled = -math.inf
        while True:
            is_low = len(waiting) <= n_most // 2 and n_bytes <= _MOST_AHEAD_BYTES // 2
            if is_low and waiting and not is_over:
                n_most = self._widened(n_most, time.monotonic() - filled)
                filled = time.monotonic()
            # Half of them at a time, from the first on: the first answer of very many would be late.
            n_more = n_most // 2 if is_low else 0
            while n_more and not is_over and n_bytes < _MOST_AHEAD_BYTES:
                n_more -= 1
                entry = next(left, None)
                if entry is None:
                    is_over = True
                    break
                if is_local(self._archive, entry):
                    waiting.append((entry, None, 0))
                    continue
                # Of a large one the first bytes, and at most so many of its stretch.
                most = self._first_bytes + _THROUGH_BYTES
                size = most if entry.size is None else min(entry.size, most)
                n_bytes += size
                waiting.append((entry, self._begin(entry), size))
            if not waiting:
                return
            self._step()
            entry, take, size = waiting.popleft()
            n_bytes -= size
            yield entry, take

    def _locate(self, entry: Entry) -> tuple[Store, str]:
        """Return what `entries.locate_remote` does, without asking for the archive's own store each time."""
        if self._base is None or is_url(entry.file):
            return locate_remote(self._archive, entry)
        store, path = self._base
        return store, f"{path}/{entry.file}" if path else entry.file

    def _widened(self, most: int, elapsed_s: float) -> int:
        """Return how many to hold from now on, after a time of which some was waited."""
        if self._transfers is not None and self._waited_s > _MOST_WAITING * elapsed_s:
            self._transfers.widen()
            most = self._transfers.n_ahead
        self._waited_s = 0.0
        return most

    def _step(self) -> None:
        """Go on with what this thread fetches, if that was some time ago."""
        if self._transfers is not None and (now := time.monotonic()) >= self._stepped + _STEP_S:
            self._stepped = now
            self._transfers.step()

    def _begin(self, entry: Entry) -> Callable[[], Fetched]:
        """Have a recording fetched, and return what gives it when it is there."""
        transfers = self._transfers
        if transfers is None or is_url(entry.file):
            return usage.submit_metered(self._pool, partial(self.fetch, entry))
        store, path = self._locate(entry)
        take: Callable[[], Fetched] | None = None

        def on_end(found: Blob | StoreError) -> None:
            nonlocal take
            if isinstance(found, Blob) and _is_page(entry, found):
                found = StoreError(STRANGE, is_transient=True)
            if isinstance(found, StoreError):
                # What is asked for again, or is to be told from what else went wrong, others wait for.
                take = usage.submit_metered(
                    self._pool, partial(self.fetch, entry, found if found.is_transient else None)
                )
                return
            rest = self._rest(found)
            opened = partial(self._opened, store, path, found, rest)
            take = opened if rest is None else usage.submit_metered(self._pool, opened)

        def fetched() -> Fetched:
            began = time.monotonic()
            while take is None:
                transfers.step(is_waiting=True)
            found = take()
            self._waited_s += time.monotonic() - began
            return found

        if not transfers.begin(path, self._n_first(entry), on_end):
            return usage.submit_metered(self._pool, partial(self.fetch, entry))
        # On its way at once.
        self._stepped = 0.0
        return fetched

    def _n_first(self, entry: Entry) -> int:
        """Return how many bytes of a recording to ask for at first."""
        is_small = entry.size is not None and entry.size <= max(self._whole_bytes, self._first_bytes)
        return entry.size if is_small and entry.size else self._first_bytes

    def fetch(self, entry: Entry, failure: StoreError | None = None) -> Fetched:
        """Fetch of a recording what its segments need; windows are fetched on their way.

        Parameters
        ----------
        entry
            The recording.
        failure
            What became of a first try, if there was one: transient.
        """
        store, path = self._locate(entry)
        failures = [] if failure is None else [failure]

        def get() -> Blob:
            if failures:
                raise failures.pop()
            blob = store.get(path, 0, self._n_first(entry))
            if _is_page(entry, blob):
                raise StoreError(STRANGE, is_transient=True)
            return blob

        blob = persistently(get)
        return self._opened(store, path, blob, self._rest(blob))

    def _rest(self, blob: Blob) -> tuple[int, int] | None:
        """Return what a recording's segment covers beyond its first bytes, from where to where; None for nothing."""
        if len(blob.data) >= blob.size or self._is_through:
            return None
        span = find_stretch(blob.data, self._segments.offset_s, self._segments.duration_s)
        if span is None:
            return None
        start, stop = max(span[0], len(blob.data)), min(span[1], blob.size)
        return (start, stop) if start < stop else None

    def _opened(self, store: Store, path: str, blob: Blob, rest: tuple[int, int] | None) -> Fetched:
        """Return a recording of which the first bytes are there, and fetch the rest of what its segment needs."""
        usage.current().read_bytes += len(blob.data)
        if len(blob.data) >= blob.size:
            return Fetched(blob.data, blob.size, blob.version)
        head = blob.data
        start, stop = rest or (0, 0)
        if self._is_through or stop - start > _THROUGH_BYTES:
            file = RemoteFile(
                store, path, blob.size, blob.version, block_bytes=_THROUGH_BYTES, pool=self._pool, on_block=self._step
            )
        else:
            file = RemoteFile(store, path, blob.size, blob.version, on_block=self._step)
            if start < stop:
                file.keep(start, file.fetch(start, stop))
            # What one needs, the next most likely needs too: one request instead of two.
            if _FIRST_BYTES < stop <= _MOST_FIRST_BYTES:
                self._first_bytes = stop
        file.keep(0, head)
        return Fetched(file, blob.size, blob.version)


def _is_page(entry: Entry, blob: Blob) -> bool:
    """Return whether what came is a page of HTML and no recording that was listed, which may be such a page, too."""
    pairs = ((entry.size, blob.size), (entry.version, blob.version))
    is_other = any(None not in pair and pair[0] != pair[1] for pair in pairs)
    # No bytes of an object that says it has some: its size is the page's.
    return is_other and (_PAGE.match(blob.data) is not None if blob.data else blob.size > 0)


@contextmanager
def reading(archive: Folder, segments: Segments) -> Iterator[Reader]:
    """Fetch recordings within the block.

    Parameters
    ----------
    archive
        What their names are relative to.
    segments
        Which stretches of them will be read.
    """
    pool = ThreadPoolExecutor(_N_CONNECTIONS, thread_name_prefix="fetch")
    try:
        with nullcontext() if archive.is_local else archive.store()[0].ahead() as transfers:
            yield Reader(archive, segments, pool, transfers)
    finally:
        # A request that hangs must not hold up whoever gives up on it.
        pool.shutdown(wait=False, cancel_futures=True)
