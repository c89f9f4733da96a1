"""Do one shard of a run on a worker: check whether it is still to be done, then extract or label it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

import pyarrow as pa

from emotion_batch import usage
from emotion_batch.errors import CancelledError, UnfitWorkerError
from emotion_batch.storage.folder import Folder, explained, unseal
from emotion_batch.storage.fsspec_store import Mark
from emotion_batch.tables import lease, parts
from emotion_batch.tables.manifest import Manifest, has_generation
from emotion_batch.tables.parts import Counts, Footer, PartError
from emotion_batch.tables.schema import TableInfo
from emotion_batch.worker.job import Job
from emotion_batch.worker.preflight import find_other_version
from emotion_batch.worker.task import Receipt, Task


@dataclass(frozen=True)
class Work:
    """Does the shards of one run. It is pickled for the workers.

    `run_id` also makes the calls of two runs different for Dask. `versions` are those that a worker must have; None skips the check. They
    are compared for each shard, because workers join after the preflight, and a restarted one may find other files. `generation` is the
    manifest's when the shards were submitted.
    """

    job: Job
    run_id: str
    versions: tuple[tuple[str, str], ...] | None = None
    generation: int = 0

    @property
    def table(self) -> Folder:
        """The table whose shards these are."""
        return self.job.table

    def __call__(self, task: Task) -> Receipt:
        """Do one shard, unless it is done; raise UnfitWorkerError or CancelledError if this worker or the run may not."""
        self.refuse_if_unfit()
        # These run at the same time, because a table may be far.
        with ThreadPoolExecutor(2) as pool:
            take_done = usage.submit_metered(pool, partial(self._read_done, task))
            take_marks = usage.submit_metered(pool, partial(self._find_marks, task.shard))
            self.refuse_if_cancelled()
            found, marks = take_done(), take_marks()
        if found is not None:
            return Receipt(found)
        try:
            return self.job.do_shard(task, self.run_id, partial(self._publish, task, marks))
        except _LateError as error:
            return Receipt(error.counts)

    def refuse_if_unfit(self) -> None:
        """Raise UnfitWorkerError if this worker has other versions than the run was started with."""
        if self.versions is not None and (lack := _find_lack(self.versions)) is not None:
            raise UnfitWorkerError(lack)

    def refuse_if_cancelled(self) -> None:
        """Raise CancelledError if the run was cancelled."""
        with explained(f"table {self.table.url}"):
            data = self.table.read_if_there(lease.cancellation_name(self.run_id))
        if data is not None:
            # The file is there, so the run was cancelled, even if its content is damaged.
            where = ""
            with suppress(ValueError, KeyError):
                where = f" from {unseal(data)['host']}"
            rest = "what is finished stays, and the command that made the table goes on from there"
            raise CancelledError(f"run {self.run_id} was cancelled{where}; {rest}")

    def _read_done(self, task: Task) -> Counts | None:
        """Return the counts of a shard's part if this task must not replace it, else None.

        Another run may have done the shard, or newer entries of it. Then its rows are better.
        """
        expected = {task.entry.digest, *([] if task.earlier is None else [task.earlier.digest])}
        name = parts.part_name(task.shard)
        with explained(f"table {self.table.url}"):
            try:
                footers = [parts.read_footer(place, info, name) for place, info in self.job.outputs]
            except PartError:
                return None
            if any(footer.shard != task.shard for footer in footers):
                return None
            digests = {footer.digest for footer in footers}
            if digests <= expected:
                # The part is the one that the driver saw, or was made since.
                is_done = digests == {task.entry.digest}
                is_done = is_done and (task.earlier is None or task.earlier.digest != task.entry.digest)
            else:
                newest = Manifest(self.table).shards.get(task.shard)
                is_done = newest is not None and digests == {newest.digest}
        return footers[-1].counts if is_done else None

    def _find_marks(self, shard: int) -> dict[str, Mark | None]:
        """Return the marks of a shard's parts before the work begins, by the URL of their table."""
        with explained(f"table {self.table.url}"):
            return {place.url: place.find_mark(parts.part_name(shard)) for place, _ in self.job.outputs}

    def _publish(
        self,
        task: Task,
        marks: Mapping[str, Mark | None],
        table: Folder,
        info: TableInfo,
        shard: int,
        digest: str,
        rows: pa.Table,
    ) -> Counts:
        """Publish a part, unless the worker stood still and another was faster; return the counts of the part.

        If the manifest has other entries of the shard by now, these rows are useless. If a part was made of the same entries
        meanwhile, it may be from a later try. Raise `_LateError` if the shard's own part is left as it is.
        """

        def publish(name: str, data: bytes) -> None:
            mark = marks[table.url]
            while not table.publish_first(name, data, mark, lambda: self._find_newest(table, task) == digest):
                newest, before, mark = self._find_newest(table, task), mark, table.find_mark(name)
                if (newest, mark) == (digest, before):
                    # The store does not accept its own mark, e.g. behind a gateway with weak ETags.
                    table.publish(name, data)
                    return
                with suppress(PartError):
                    footer = parts.read_footer(table, info, name)
                    if (footer.shard, footer.digest) == (shard, newest):
                        raise _LateError(footer.counts)
                if newest != digest:
                    raise _LateError(Counts())

        try:
            return parts.publish_part(table, info, shard, digest, rows, publish)
        except _LateError as error:
            if table.url == self.table.url:
                raise
            return error.counts

    def _find_newest(self, table: Folder, task: Task) -> str | None:
        """Return the digest of a shard's newest entries; None if it was pruned."""
        if not has_generation(table, self.generation + 1):
            return task.entry.digest
        newer = Manifest(table, self.generation)
        if not newer.is_rebuilt and not any(shard == task.shard for shard, _ in newer.history):
            return task.entry.digest
        entry = newer.shards.get(task.shard)
        return None if entry is None else entry.digest


class _LateError(Exception):
    """Another task has published a shard's part; `counts` is that part's, or empty if the shard was removed."""

    def __init__(self, counts: Counts) -> None:
        super().__init__("a part was published by others meanwhile")
        self.counts = counts


@cache
def _find_lack(versions: tuple[tuple[str, str], ...]) -> str | None:
    """Return which version differs; cached, because the versions of a process do not change."""
    return find_other_version(dict(versions))


def make_tasks(manifest: Manifest, shards: Iterable[int], present: Mapping[int, Footer]) -> list[Task]:
    """Return the tasks for `shards`, given the footers of the parts that are there."""
    entries, history = manifest.shards, manifest.history
    return [
        Task(shard, entries[shard], history.get((shard, present[shard].digest)) if shard in present else None)
        for shard in shards
    ]
