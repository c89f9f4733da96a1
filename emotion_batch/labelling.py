"""One shard of a labelling: feature rows, or recordings, to label rows. Knows nothing of Dask."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import attempts, meter, process, tables
from emotion_batch.attempts import Attempt
from emotion_batch.bundle import Bundle
from emotion_batch.carryover import carry_over, merge
from emotion_batch.errors import IncompleteError, Status
from emotion_batch.extraction import Extraction, Receipt, Task
from emotion_batch.prediction import Predictor, load_predictor
from emotion_batch.storage import Folder, explained
from emotion_batch.tables import Footer, PartError, TableInfo


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

    def do_shard(self, task: Task, run_id: str) -> Receipt:
        """Label one shard and publish its part."""
        started = time.perf_counter()
        with meter.metered() as spent:
            process.settle()
            if isinstance(self.source, FeatureTable):
                made = found = self._predict(self._read_features(self.source, task))
            else:
                with attempts.noted(self.table, task.shard, run_id) as attempt:
                    made, found = self._label_recordings(self.source, task, attempt)
            counts = tables.publish_part(self.table, self.info, task.shard, task.entry.digest, found)
            return Receipt.of(counts, made, started, spent)

    def _label_recordings(self, extraction: Extraction, task: Task, attempt: Attempt) -> tuple[pa.Table, pa.Table]:
        """Return the label rows of a shard that are made now, and all of them with those of its present part."""
        if extraction.table.url != self.table.url:
            # The features go into a table of their own, and it is its part that says what need not be decoded.
            made, features = extraction.extract_shard(task, attempt)
            tables.publish_part(extraction.table, extraction.info, task.shard, task.entry.digest, features)
            return self._predict(made), self._predict(features)
        entries, known = task.read_entries(self.table)
        kept, left = carry_over(self.table, self.info, task.shard, entries, known, extraction.again)
        made = self._predict(extraction.extract(left, attempt))
        return made, merge(entries, kept, made)

    def _read_features(self, source: FeatureTable, task: Task) -> pa.Table:
        """Return the feature rows of a shard, if they were made from the same entries."""
        try:
            with explained(f"feature table {source.table.url}"), meter.stage("read"), tables.part_errors():
                features = tables.read_part(source.table, task.shard)
            Footer.of(features.schema.metadata, source.info).require(task.shard, task.entry)
        except PartError as error:
            raise IncompleteError(
                f"feature table {source.table.url}: {tables.part_name(task.shard)}: {error}; run the extraction again, and then this"
            ) from error
        return features

    def _predict(self, features: pa.Table) -> pa.Table:
        with meter.stage("predict"):
            return label_rows(features, load_predictor(self.bundle))


def label_rows(features: pa.Table, predictor: Predictor) -> pa.Table:
    """Return a label row for each feature row, in the same order.

    Parameters
    ----------
    features
        Rows of a feature table.
    predictor
        The loaded model.

    Returns
    -------
    Rows of the label table's schema; those that are not ``ok`` keep their status and reason and have no label.
    """
    labels = predictor.card.labels
    is_ok = pc.equal(features["status"], Status.OK).to_numpy()
    # A filter, for the values of missing vectors are there in the flat array of some versions and not of others.
    vectors = features["mfcc"].filter(pa.array(is_ok)).combine_chunks().flatten()
    n_mfcc = predictor.card.feature_settings.n_mfcc
    predicted = predictor.predict(np.asarray(vectors, np.float32).reshape(-1, n_mfcc))
    probabilities = np.zeros((len(is_ok), len(labels)), np.float32)
    probabilities[is_ok] = predicted
    best = np.argmax(probabilities, axis=1)
    columns = {name: features[name] for name in ("file", "start_s", "end_s", "status", "error")}
    columns["emotion"] = _masked(np.array(labels, object)[best], is_ok, pa.string())
    columns["confidence"] = _masked(probabilities[np.arange(len(best)), best], is_ok, pa.float32())
    for number, label in enumerate(labels):
        columns[f"p_{label}"] = _masked(probabilities[:, number], is_ok, pa.float32())
    return pa.table(columns, schema=tables.label_schema(labels))


def _masked(values: npt.NDArray[np.generic], is_valid: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind, mask=~is_valid)
