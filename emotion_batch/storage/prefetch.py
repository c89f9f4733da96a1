"""Fetch the next recordings while the processor computes. If one is large, fetch only the stretch that is needed."""

from __future__ import annotations

import io
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

from emotion_batch import usage
from emotion_batch.errors import StoreError
from emotion_batch.settings import Segments
from emotion_batch.storage.bucket import Store
from emotion_batch.storage.entries import Entry, is_local, locate_remote
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.fsspec_store import STRANGE, Blob
from emotion_batch.storage.retry import persistently

# Requests of a worker at the same time, and the most recordings and bytes that it holds before they are computed.
_N_CONNECTIONS = 64
_MOST_AHEAD, _MOST_AHEAD_BYTES = 128, 64 * 2**20
# A recording up to the first size is fetched whole. For a larger one, the other two limit the first request.
_WHOLE_BYTES, _FIRST_BYTES, _MOST_FIRST_BYTES = 2**18, 2**16, 2**20
# Further bytes come in blocks. While a decoder reads a recording through, the next block is fetched.
_BLOCK_BYTES, _THROUGH_BYTES = 2**17, 2**21
_MOST_BLOCKS = 8
_PAGE = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype )?html\b", re.IGNORECASE | re.DOTALL)


def find_stretch(head: bytes, offset_s: float, duration_s: float) -> tuple[int, int] | None:
    """Return where a stretch of a RIFF/WAVE file is, by its first bytes, so that it alone can be fetched.

    These are the stretch's first byte and the first byte after it, even beyond the file's end; None if `head` does not tell.
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


@dataclass(eq=False, repr=False)
class RemoteFile(io.RawIOBase):
    """An object as a file, of which only the parts that are read are fetched.

    An object of another `version` is not read. `block_bytes` are fetched at a time, and `pool` fetches the next block while
    one is read; None for a file that is not read in order. An error of the store is kept in `failure`, because a C decoder
    would hide it: for the decoder the file ends there. Called with an offset and a size, it returns these bytes.
    """

    store: Store
    path: str
    size: int
    version: str | None
    block_bytes: int = _BLOCK_BYTES
    pool: ThreadPoolExecutor | None = None
    failure: Exception | None = None
    _position: int = 0
    _spans: list[tuple[int, bytes]] = field(default_factory=list)
    _blocks: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    _next: tuple[int, Callable[[], bytes]] | None = None

    def keep(self, start: int, data: bytes) -> None:
        """Keep bytes that were fetched already."""
        self._spans.append((start, data))

    def fetch(self, start: int, stop: int) -> bytes:
        """Return bytes from the store."""
        data = persistently(lambda: self.store.get(self.path, start, stop, version=self.version)).data
        usage.current().read_bytes += len(data)
        return data

    def __call__(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes from `offset` on; fewer at the file's end, or if its store failed."""
        stop = min(offset + n_bytes, self.size)
        parts = []
        while offset < stop:
            try:
                part = self._at_hand(offset, stop)
            except Exception as error:
                self.failure = error
                break
            if not part:
                # The object is shorter than its listed size.
                break
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _at_hand(self, offset: int, stop: int) -> bytes:
        """Return bytes from `offset` on, up to `stop` or the end of the block that is kept."""
        for start, data in self._spans:
            if start <= offset < start + len(data):
                return data[offset - start : stop - start]
        number, first = divmod(offset, self.block_bytes)
        return self._block(number)[first : first + stop - offset]

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        start = number * self.block_bytes
        after = start + self.block_bytes
        awaited, self._next = self._next, None
        if awaited is not None and awaited[0] == number:
            with usage.stage("read"):
                data = awaited[1]()
        else:
            data = self.fetch(start, min(after, self.size))
        self._blocks[number] = data
        while len(self._blocks) > (_MOST_BLOCKS if self.pool is None else 2):
            self._blocks.popitem(last=False)
        if self.pool is not None and after < self.size:
            job = partial(self.fetch, after, after + self.block_bytes)
            self._next = number + 1, usage.submit_metered(self.pool, job)
        return data

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
        data = self(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class Fetched(NamedTuple):
    """A recording of a store: all its bytes, or a file of it; its size and version."""

    source: bytes | RemoteFile
    size: int
    version: str | None


class Reader:
    """Fetches the stretches that `segments` need of an archive's recordings; `reading` makes it."""

    def __init__(self, archive: Folder, segments: Segments, pool: ThreadPoolExecutor) -> None:
        self._archive = archive
        self._segments = segments
        self._is_through = not segments.is_one_stretch
        self._whole_bytes = _THROUGH_BYTES if self._is_through else _WHOLE_BYTES
        self._first_bytes = _THROUGH_BYTES if self._is_through else _FIRST_BYTES
        self._pool = pool

    def ahead(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Callable[[], Fetched] | None]]:
        """Yield entries in order, those of a store with a function that waits for them and returns or raises."""
        waiting: deque[tuple[Entry, Callable[[], Fetched] | None, int]] = deque()
        left = iter(entries)
        n_bytes = 0
        while True:
            # Half of them are requested at a time, because single requests would cost a switch of threads each.
            if len(waiting) <= _MOST_AHEAD // 2 and n_bytes <= _MOST_AHEAD_BYTES // 2:
                for entry in islice(left, _MOST_AHEAD // 2):
                    if is_local(self._archive, entry):
                        waiting.append((entry, None, 0))
                        continue
                    # At most so many bytes of a large recording are held: its first ones, and those of its stretch.
                    most = self._first_bytes + _THROUGH_BYTES
                    size = most if entry.size is None else min(entry.size, most)
                    waiting.append((entry, usage.submit_metered(self._pool, partial(self.fetch, entry)), size))
                    n_bytes += size
                    if n_bytes >= _MOST_AHEAD_BYTES:
                        break
            if not waiting:
                return
            entry, take, size = waiting.popleft()
            n_bytes -= size
            yield entry, take

    def fetch(self, entry: Entry) -> Fetched:
        """Fetch the parts of a recording that its segments need; windows are fetched while they are read."""
        store, path = locate_remote(self._archive, entry)
        is_small = entry.size is not None and entry.size <= max(self._whole_bytes, self._first_bytes)
        n_first = entry.size if is_small and entry.size else self._first_bytes

        def get() -> Blob:
            blob = store.get(path, 0, n_first)
            if _is_page(entry, blob):
                raise StoreError(STRANGE, is_transient=True)
            return blob

        head, size, version = blob = persistently(get)
        usage.current().read_bytes += len(head)
        if len(head) >= size:
            return Fetched(*blob)
        span = None if self._is_through else find_stretch(head, self._segments.offset_s, self._segments.duration_s)
        start, stop = (max(span[0], len(head)), min(span[1], size)) if span is not None else (0, 0)
        if self._is_through or stop - start > _THROUGH_BYTES:
            file = RemoteFile(store, path, size, version, block_bytes=_THROUGH_BYTES, pool=self._pool)
        else:
            file = RemoteFile(store, path, size, version)
            if start < stop:
                file.keep(start, file.fetch(start, stop))
                # The next recording most likely needs what this one needs: one request instead of two.
                if _FIRST_BYTES < stop <= _MOST_FIRST_BYTES:
                    self._first_bytes = stop
        file.keep(0, head)
        return Fetched(file, size, version)


def _is_page(entry: Entry, blob: Blob) -> bool:
    """Return whether the answer is an HTML page instead of the listed object, which may itself be an HTML page."""
    pairs = ((entry.size, blob.size), (entry.version, blob.version))
    is_other = any(None not in pair and pair[0] != pair[1] for pair in pairs)
    # If there are no bytes although there is a size, the size is that of the page.
    return is_other and (_PAGE.match(blob.data) is not None if blob.data else blob.size > 0)


@contextmanager
def reading(archive: Folder, segments: Segments) -> Iterator[Reader]:
    """Fetch the stretches that `segments` need of an archive's recordings, within the block."""
    pool = ThreadPoolExecutor(_N_CONNECTIONS, thread_name_prefix="fetch")
    try:
        yield Reader(archive, segments, pool)
    finally:
        # A caller must not wait for a request that hangs.
        pool.shutdown(wait=False, cancel_futures=True)
