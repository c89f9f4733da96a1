"""One shard of a labelling: feature rows, or recordings, to label rows. Knows nothing of Dask."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import process, tables
from emotion_batch.bundle import Bundle
from emotion_batch.errors import Status
from emotion_batch.extraction import Extraction, Receipt, extract_rows
from emotion_batch.manifest import ShardEntry, read_entries
from emotion_batch.prediction import Predictor, load_predictor
from emotion_batch.storage import Folder
from emotion_batch.tables import TableInfo


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
        The feature table's folder or, when `is_archive`, what the recordings' names are relative to.
    is_archive
        Whether recordings are decoded, rather than features read.
    kept
        Extraction into a feature table that keeps the features on their way, when they are from an archive.
    """

    table: Folder
    info: TableInfo
    bundle: Bundle
    source: Folder
    is_archive: bool
    kept: Extraction | None = None

    def do_shard(self, shard: int, entry: ShardEntry) -> Receipt:
        """Label one shard and publish its part."""
        started = time.perf_counter()
        process.settle()
        rows = label_rows(self._features(shard, entry), load_predictor(self.bundle))
        rows = tables.keep_gone(self.table, shard, rows)
        counts = tables.publish_part(self.table, self.info, shard, entry.digest, rows)
        return Receipt.of(counts, rows, started)

    def _features(self, shard: int, entry: ShardEntry) -> pa.Table:
        if not self.is_archive:
            return tables.read_part(self.source, shard)
        rows = extract_rows(
            read_entries(self.table, entry), self.source, self.info.feature_settings, self.info.segments
        )
        if self.kept is not None:
            rows = tables.keep_gone(self.kept.table, shard, rows)
            tables.publish_part(self.kept.table, self.kept.info, shard, entry.digest, rows)
        return rows


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
