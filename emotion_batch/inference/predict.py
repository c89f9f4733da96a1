"""Run a bundle's network on features by ONNX Runtime, and make the rows of a label table. It imports no TensorFlow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.errors import EmotionBatchError, Status, UsageError
from emotion_batch.features.recipes import Inputs, join, read, recipe_of
from emotion_batch.inference import domain
from emotion_batch.inference.bundle import EXECUTABLE, Bundle, open_bundle, read_checked
from emotion_batch.inference.confidence import apply_temperature, entropy, margin
from emotion_batch.inference.domain import Domain
from emotion_batch.storage.folder import Folder
from emotion_batch.tables.schema import label_schema

# Rows at a time, of vectors and of frames: their states stay in a core's cache.
_ROWS, _SEGMENTS = 128, 16
# The frames of this many rows are in memory at a time, some 30 MB. Among so many, most lengths occur more than once.
_READ_ROWS = 256
# Frames that the network of the recipe `voices` joins into one step, by three convolutions of stride 2.
FRAMES_A_STEP = 8
# Attention needs at least this many steps.
_LEAST_STEPS = 2
_LOCK = threading.Lock()


class Predictor:
    """A bundle's network, loaded: a graph of ONNX's own operators, which can name no code.

    Raises UsageError if it is not the network that the card names, or does not fit the card.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.card = bundle.card
        try:
            self.domain = Domain.from_dict(bundle.card.domain) if bundle.card.domain else None
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"model {bundle.folder.url}: the domain in its card cannot be read ({error}); train it again"
            ) from error
        try:
            self._session = _load_session(read_checked(bundle, EXECUTABLE))
            sides = self._session.get_inputs()[0], self._session.get_outputs()[0]
            # An open length has a name, which depends on the writer of the graph.
            found = [[size if isinstance(size, int) else "n_frames" for size in side.shape[1:]] for side in sides]
        except EmotionBatchError:
            raise
        except Exception as error:
            # ONNX Runtime's exceptions share no base class.
            raise UsageError(
                f"model {bundle.folder.url}: the network in {EXECUTABLE} cannot be loaded ({type(error).__name__}); "
                "fetch the bundle again"
            ) from error
        settings, n_labels = self.card.feature_settings, len(self.card.labels)
        n_inputs = ["n_frames" if size is None else size for size in recipe_of(settings).input_shape(settings)]
        if found != [n_inputs, [n_labels]]:
            raise UsageError(
                f"model {bundle.folder.url}: its card needs a network from {n_inputs} features to {[n_labels]} labels, and its "
                f"network is from {found[0]} to {found[1]}; train it again"
            )

    def predict(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Return the probability of each label as the network gives it, in the card's order, shape (n_rows, n_labels).

        `inputs` is what `recipes.prepare` gives.
        """
        return _run(self._session, inputs)


def execute(graph: bytes, inputs: Inputs) -> npt.NDArray[np.float32]:
    """Return the outputs of an exported network for its inputs."""
    return _run(_load_session(graph), inputs)


def fit_frames(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return frames in whole steps of the network: up to seven at the end are left out, and silence is added if there are too few."""
    n_frames = len(frames)
    if n_frames < _LEAST_STEPS * FRAMES_A_STEP:
        return np.pad(frames, [(0, _LEAST_STEPS * FRAMES_A_STEP - n_frames), (0, 0)])
    return frames[: n_frames - n_frames % FRAMES_A_STEP]


def _load_session(graph: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # There is one thread, because the workers run in parallel. Errors are raised, so they are not logged.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: Inputs) -> npt.NDArray[np.float32]:
    name, n_labels = session.get_inputs()[0].name, session.get_outputs()[0].shape[1]
    probabilities = np.empty((len(inputs), n_labels), np.float32)
    if isinstance(inputs, list):
        for numbers in group_by_length(inputs, _SEGMENTS):
            # A single row is computed twice, because its last digits would differ, and a row must not depend on its neighbours.
            laid = np.stack([fit_frames(inputs[number]) for number in (numbers if len(numbers) > 1 else 2 * numbers)])
            (found,) = session.run(None, {name: laid})
            probabilities[numbers] = found[: len(numbers)]
        return probabilities
    for start in range(0, len(inputs), _ROWS):
        rows = slice(start, start + _ROWS)
        (probabilities[rows],) = session.run(None, {name: inputs[rows]})
    return probabilities


def group_by_length(inputs: list[npt.NDArray[np.float32]], most: int) -> Iterator[list[int]]:
    """Yield the numbers of at most `most` rows of equal length, because the network hears padding."""
    lengths: dict[int, list[int]] = {}
    for number, frames in enumerate(inputs):
        lengths.setdefault(max(_LEAST_STEPS, len(frames) // FRAMES_A_STEP), []).append(number)
    for numbers in lengths.values():
        for start in range(0, len(numbers), most):
            yield numbers[start : start + most]


def load_predictor(bundle: Bundle) -> Predictor:
    """Return the bundle's predictor, which a process loads once for all threads."""
    with _LOCK:
        return _load(bundle.folder, bundle.card.model_id, bundle.card.files[EXECUTABLE])


@lru_cache(maxsize=2)
def _load(folder: Folder, model_id: str, digest: str) -> Predictor:
    bundle = open_bundle(folder)
    if bundle.card.model_id != model_id:
        raise UsageError(f"model {folder.url}: it must be the model {model_id}: {bundle.card.model_id}")
    # The driver has checked the file with this digest, and nothing checks it again.
    if bundle.card.files.get(EXECUTABLE) != digest:
        raise UsageError(f"model {folder.url}: {EXECUTABLE} was replaced during the run; run the same command again")
    return Predictor(bundle)


class Labels(NamedTuple):
    """A model's labels for rows that all have features.

    `raw` is the network's output, and `probabilities` is calibrated; both have the shape (n_rows, n_labels). `best` is the
    number of the network's choice, and `confidence` its probability. `is_confident` is false
    everywhere if the bundle cannot tell. The last three are None if the bundle, or its features, cannot tell.
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
    """Return a model's labels for rows that all have features; each depends on its row alone."""
    card = predictor.card
    settings, threshold = card.feature_settings, card.confidence.get("threshold")
    raw = np.empty((usable.num_rows, len(card.labels)), np.float32)
    found = []
    for start in range(0, max(1, usable.num_rows), _READ_ROWS):
        inputs = []
        for some in read(usable.slice(start, _READ_ROWS), settings):
            inputs.append(recipe_of(settings).prepare(some))
            found.append(domain.summarise(some, settings))
        raw[start : start + _READ_ROWS] = predictor.predict(join(inputs))
    summaries = np.concatenate(found)
    # The label is the network's choice. Calibration only changes how sure it is.
    best = np.argmax(raw, axis=1)
    probabilities = apply_temperature(raw, card.temperature)
    confidence = probabilities[np.arange(len(best)), best]
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

    Rows that are not ``ok`` keep their status and reason and have no label.
    """
    labels = predictor.card.labels
    is_ok = pc.equal(features["status"], Status.OK).to_numpy()
    # Rows are filtered first, because only some versions of Arrow keep missing features in their flat arrays.
    found = predict_labels(features.filter(pa.array(is_ok)), predictor)
    made: dict[str, npt.NDArray[np.generic] | None] = {
        **found._asdict(),
        "emotion": np.array(labels, object)[found.best],
        "margin": margin(found.probabilities),
        "entropy": entropy(found.probabilities),
        **{f"p_{label}": found.probabilities[:, number] for number, label in enumerate(labels)},
    }
    schema = label_schema(labels, is_listed="speaker" in features.column_names)
    columns = [_spread(made[one.name], is_ok, one.type) if one.name in made else features[one.name] for one in schema]
    return pa.table(columns, schema=schema)


def _spread(values: npt.NDArray[np.generic] | None, is_ok: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Return the values of the usable rows as a column of all rows, null in the others."""
    if values is None:
        return pa.nulls(len(is_ok), kind)
    at = np.full(len(is_ok), -1, np.int64)
    at[is_ok] = np.arange(int(is_ok.sum()))
    return pa.array(values, kind).take(pa.array(at, mask=~is_ok))
