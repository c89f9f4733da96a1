"""One shard of a labelling: feature rows, or recordings, to label rows. Knows nothing of Dask."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch import usage
from emotion_batch.errors import Status
from emotion_batch.features.recipes import prepare
from emotion_batch.inference import domain
from emotion_batch.inference.bundle import Bundle
from emotion_batch.inference.predict import Predictor, load_predictor
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import attempts, parts
from emotion_batch.tables.attempts import Attempt
from emotion_batch.tables.parts import TableInfo
from emotion_batch.training import calibrate
from emotion_batch.worker import process
from emotion_batch.worker.extraction import Entries, Extraction, Publish, Receipt, Task
from emotion_batch.worker.reuse import carry_over, merge


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


class Labels(NamedTuple):
    """What a model says of rows that all have features.

    Attributes
    ----------
    raw
        Probability of each label as the network gives it, shape (n_rows, n_labels).
    best
        Number of each row's label: the network's own choice, shape (n_rows,).
    probabilities
        What calibration makes of `raw`, shape (n_rows, n_labels).
    confidence
        The label's of these, shape (n_rows,).
    is_confident
        Whether the label is to be believed, shape (n_rows,); nowhere where the bundle cannot tell.
    is_in_domain, domain_distance, is_speech
        Whether the row is like what was learnt, how far from it, and whether it is speech, shape (n_rows,); None where
        the bundle, or its features, cannot tell.
    """

    raw: npt.NDArray[np.float32]
    best: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    is_confident: npt.NDArray[np.bool_]
    is_in_domain: npt.NDArray[np.bool_] | None
    domain_distance: npt.NDArray[np.float32] | None
    is_speech: npt.NDArray[np.bool_] | None


def predict_labels(usable: pa.Table, predictor: Predictor) -> Labels:
    """Return what a model says of rows, and how far it is to be believed.

    Parameters
    ----------
    usable
        Rows of a feature table that all have features; each one's answer depends on it alone.
    predictor
        The loaded model.
    """
    card = predictor.card
    settings, threshold = card.feature_settings, card.confidence.get("threshold")
    raw = predictor.predict(prepare(usable, settings))
    # The label is the network's own; how sure it is of it is what calibration says.
    best = np.argmax(raw, axis=1)
    probabilities = calibrate.apply_temperature(raw, card.temperature)
    confidence = probabilities[np.arange(len(best)), best]
    summaries = domain.summarise(usable, settings)
    is_speech = domain.judge_speech(summaries, settings)
    is_confident = np.zeros(len(best), bool)
    is_in_domain = distance = None
    if predictor.domain is not None:
        distance = predictor.domain.distances(summaries)
        is_in_domain = distance <= np.float32(predictor.domain.threshold)
        if threshold is not None:
            is_confident = (confidence >= threshold) & is_in_domain
            if is_speech is not None:
                is_confident &= is_speech
    return Labels(raw, best, probabilities, confidence, is_confident, is_in_domain, distance, is_speech)


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
    # A filter, for the values of missing features are there in the flat arrays of some versions and not of others.
    found = predict_labels(features.filter(pa.array(is_ok)), predictor)
    made: dict[str, npt.NDArray[np.generic] | None] = {
        "emotion": np.array(labels, object)[found.best],
        "confidence": found.confidence,
        "margin": calibrate.margin(found.probabilities),
        "entropy": calibrate.entropy(found.probabilities),
        "is_confident": found.is_confident,
        "is_in_domain": found.is_in_domain,
        "domain_distance": found.domain_distance,
        "is_speech": found.is_speech,
        **{f"p_{label}": found.probabilities[:, number] for number, label in enumerate(labels)},
    }
    schema = parts.label_schema(labels)
    columns = {name: features[name] for name in ("file", "start_s", "end_s", "status", "error")}
    for name, values in made.items():
        columns[name] = _spread(values, is_ok, schema.field(name).type)
    return pa.table(columns, schema=schema)


def _spread(values: npt.NDArray[np.generic] | None, is_ok: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Return the values of the usable rows as a column of all rows, null in the others."""
    if values is None:
        return pa.nulls(len(is_ok), kind)
    at = np.full(len(is_ok), -1, np.int64)
    at[is_ok] = np.arange(int(is_ok.sum()))
    return pa.array(values, kind).take(pa.array(at, mask=~is_ok))
