"""What a worker does with one shard of a run: whatever the job, it looks first whether it is to be done at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

from emotion_batch import lease, meter, tables
from emotion_batch.errors import CancelledError, UnfitWorkerError
from emotion_batch.extraction import Extraction, Receipt, Task
from emotion_batch.labelling import Labelling
from emotion_batch.manifest import Manifest
from emotion_batch.preflight import find_other_version
from emotion_batch.storage import Folder, explained
from emotion_batch.tables import Counts, Footer, PartError, TableInfo


@dataclass(frozen=True)
class Work:
    """Does the shards of one run; travels to workers.

    Attributes
    ----------
    job
        What is done with a shard.
    run_id
        The run; it also keeps Dask from taking two runs' calls for one.
    places
        The tables that the job writes parts of, that one last whose shards these are.
    versions
        What a worker must have, because workers join after the preflight, and also one that a local cluster starts again may
        find other files; None compares nothing.
    """

    job: Extraction | Labelling
    run_id: str
    places: tuple[tuple[Folder, TableInfo], ...]
    versions: tuple[tuple[str, str], ...] | None = None

    @property
    def table(self) -> Folder:
        """The table whose shards these are."""
        return self.job.table

    def __call__(self, task: Task) -> Receipt:
        """Do one shard, unless somebody has.

        Raises
        ------
        UnfitWorkerError
            If this worker has other versions than the run was started with.
        CancelledError
            If the run was cancelled.
        """
        if self.versions is not None and (lack := _find_lack(self.versions)) is not None:
            raise UnfitWorkerError(lack)
        # Both at once, for a table may be far.
        with ThreadPoolExecutor(1) as pool:
            take_done = meter.submit(pool, partial(self._read_done, task))
            self.refuse_if_cancelled()
            found = take_done()
        return Receipt(found) if found is not None else self.job.do_shard(task, self.run_id)

    def refuse_if_cancelled(self) -> None:
        """Raise CancelledError if somebody has cancelled the run."""
        with explained(f"table {self.table.url}"):
            data = self.table.read_if_there(lease.cancellation_name(self.run_id))
        if data is not None:
            about = json.loads(data)
            raise CancelledError(
                f"run {self.run_id} was cancelled from {about.get('host')}; what is finished stays, and the command that made the "
                "table goes on from there"
            )

    def _read_done(self, task: Task) -> Counts | None:
        """Return what a shard's part holds, if it is none that this task should write over; None if it should.

        Another run may have done the shard, or have frozen newer entries of it and done those: its rows are the better ones.
        """
        expected = {task.entry.digest, *([] if task.earlier is None else [task.earlier.digest])}
        with explained(f"table {self.table.url}"):
            try:
                footers = [tables.read_footer(place, info, tables.part_name(task.shard)) for place, info in self.places]
            except PartError:
                return None
            if any(footer.shard != task.shard for footer in footers):
                return None
            digests = {footer.digest for footer in footers}
            if digests <= expected:
                # As the driver saw it, to be done again; or done since.
                is_done = digests == {task.entry.digest} and (
                    task.earlier is None or task.earlier.digest != task.entry.digest
                )
            else:
                newest = Manifest(self.table).shards.get(task.shard)
                is_done = newest is not None and digests == {newest.digest}
        return footers[-1].counts if is_done else None


@cache
def _find_lack(versions: tuple[tuple[str, str], ...]) -> str | None:
    """Return which version of this process is another; what is installed does not change under it."""
    return find_other_version(dict(versions))


def make_tasks(manifest: Manifest, shards: Iterable[int], present: Mapping[int, Footer]) -> list[Task]:
    """Return the tasks for `shards`, given the footers of the parts that are there."""
    entries, history = manifest.shards, manifest.history
    return [
        Task(shard, entries[shard], history.get((shard, present[shard].digest)) if shard in present else None)
        for shard in shards
    ]
