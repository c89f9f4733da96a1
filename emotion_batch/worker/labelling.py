"""Label one shard: feature rows, or recordings, to the rows of a label table. It knows nothing of Dask."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa

from emotion_batch import usage
from emotion_batch.inference.bundle import Bundle
from emotion_batch.inference.predict import label_rows, load_predictor
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import attempts, parts
from emotion_batch.tables.attempts import Attempt
from emotion_batch.tables.schema import TableInfo
from emotion_batch.worker import process
from emotion_batch.worker.extraction import Extraction
from emotion_batch.worker.reuse import carry_over, merge
from emotion_batch.worker.task import Entries, Publish, Receipt, Task


@dataclass(frozen=True)
class FeatureTable:
    """A finished feature table, to be labelled: its folder, and what it is."""

    table: Folder
    info: TableInfo


@dataclass(frozen=True)
class Labelling:
    """What every task of a labelling knows.

    Attributes
    ----------
    table
        The label table's folder.
    info
        What the table is.
    bundle
        The model, in the table's own copy.
    source
        The feature table, or the extraction that makes features of recordings on their way: into a feature
        table of its own, or only for this one.
    """

    table: Folder
    info: TableInfo
    bundle: Bundle
    source: FeatureTable | Extraction

    def do_shard(self, task: Task, run_id: str, publish: Publish = parts.publish_part) -> Receipt:
        """Label one shard and publish its part."""
        started = time.perf_counter()
        with usage.metered() as spent:
            process.settle()
            if isinstance(self.source, FeatureTable):
                made = found = self._predict(self._read_features(self.source, task))
            else:
                with (
                    task.entries_ahead(self.table) as read,
                    attempts.noted(self.table, task.shard, run_id) as attempt,
                ):
                    made, found = self._label_recordings(self.source, task, read(), attempt, publish)
            counts = publish(self.table, self.info, task.shard, task.entry.digest, found)
            return Receipt.of(counts, made, started, spent)

    def _label_recordings(
        self, extraction: Extraction, task: Task, read: Entries, attempt: Attempt, publish: Publish
    ) -> tuple[pa.Table, pa.Table]:
        """Return the label rows of a shard that are made now, and all of them with those of its present part."""
        if extraction.table.url != self.table.url:
            # The features go into a table of their own, and it is its part that says what need not be decoded.
            made, features = extraction.extract_shard(task, read, attempt)
            publish(extraction.table, extraction.info, task.shard, task.entry.digest, features)
            return self._predict(made), self._predict(features)
        entries, known = read
        kept, left = carry_over(self.table, self.info, task.shard, entries, known, extraction.again)
        made = self._predict(extraction.extract(left, attempt))
        return made, merge(entries, kept, made)

    def _read_features(self, source: FeatureTable, task: Task) -> pa.Table:
        """Return the feature rows of a shard, if they were made from the same entries."""
        with usage.stage("read"):
            return parts.require_part(source.table, source.info, task.shard, newest=task.entry)

    def _predict(self, features: pa.Table) -> pa.Table:
        with usage.stage("predict"):
            return label_rows(features, load_predictor(self.bundle))
