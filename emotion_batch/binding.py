"""From a network to its bundle: the files, the card, and a README that says what the card says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emotion_batch import bundle as bundles
from emotion_batch import model, prediction
from emotion_batch.bundle import Card
from emotion_batch.errors import EmotionBatchError
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage import Folder, explained

# Both add in float32, each some 4e-6 from what float64 gives on the notebook's corpus: more than this is another network.
_EXPORT_TOLERANCE = 1e-4
FILES = (bundles.WEIGHTS, bundles.EXECUTABLE, "history.csv", "training.png", "confusion.png", "README.md", bundles.CARD)


def write_bundle(
    bundle: Folder,
    network: Any,
    *,
    labels: Sequence[str],
    feature_settings: FeatureSettings,
    segments: Segments,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    features: npt.NDArray[np.float32],
    extras: Mapping[str, bytes],
) -> Card:
    """Write a network's bundle, card last, and return the card.

    Parameters
    ----------
    bundle
        Folder to write to; files of another bundle that this one has not are deleted.
    network
        The notebook's, as `model.build_network` gives it.
    labels, feature_settings, segments, training, metrics
        As the card has them.
    features
        Vectors on which what workers execute must give Keras's probabilities, shape (n_rows, n_mfcc).
    extras
        Further files out of `FILES`, by name.

    Raises
    ------
    EmotionBatchError
        If ONNX Runtime does not give Keras's probabilities.
    """
    graph, difference = _export(network, features)
    files = {bundles.WEIGHTS: model.save_bytes(network, ".keras"), bundles.EXECUTABLE: graph, **extras}
    card = Card(
        labels=tuple(labels),
        feature_settings=feature_settings,
        segments=segments,
        architecture=bundles.SEED,
        model_id=model.identify(network, labels, feature_settings),
        # Of the probabilities that workers give from those that Keras gives, the largest on these rows.
        training={**training, "executable_difference": difference},
        metrics=metrics,
        versions=model.read_versions(),
        files={},
    )
    files["README.md"] = describe(card).encode()
    card = Card(**{**vars(card), "files": {name: bundles.sha256(data) for name, data in files.items()}})
    with explained(f"bundle {bundle.url}"):
        bundle.make()
        for name, data in files.items():
            bundle.publish(name, data)
        bundle.publish(bundles.CARD, card.to_json())
        for name in FILES:
            if name not in (*files, bundles.CARD):
                bundle.delete(name)
    return card


def describe(card: Card) -> str:
    """Return the bundle's README, all of it from the card."""
    features = (
        f"Features {card.feature_settings.feature_id}: {card.feature_settings.n_mfcc} MFCC at "
        f"{card.feature_settings.sample_rate:,} Hz, averaged over {card.segments} of each recording."
    )
    return "\n".join(
        [
            f"# Emotion model {card.model_id}",
            "",
            f"Labels: {', '.join(card.labels)}.",
            "",
            *(_describe_import if card.training.get("imported") else _describe_training)(card, features),
            "",
            "`emotion-batch label RECORDINGS TABLE --model THIS_FOLDER` labels with it; `model.keras` loads in Keras too.",
            "",
        ]
    )


def _describe_training(card: Card, features: str) -> list[str]:
    counts = card.training
    return [
        (
            f"Trained on {counts['n_learnt']:,} segments with labels from `{counts['labels']}`, "
            f"{counts['n_held_out']:,} more held out (seed {counts['seed']})."
        ),
        features,
        "",
        "| judged on | segments | speakers | accuracy | UAR |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {kind} | {values['n_rows']:,} | {values['n_speakers'] or 'unknown'} | {values['accuracy']:.3f} | {values['uar']:.3f} |"
            for kind, values in card.metrics.items()
        ),
        "",
        "`training` is what the model learnt from, and says little. `stratified` are other recordings of the same",
        "speakers, in the same room: expect far less of voices that it has not heard.",
    ]


def _describe_import(card: Card, features: str) -> list[str]:
    origin = card.training
    by = f"Keras {origin['keras_version']}" if origin["keras_version"] else "an unknown Keras"
    activations = (
        "as the file says" if origin["has_config"] else "taken to be the notebook's, for the file does not say"
    )
    return [
        f"Imported from `{origin['file']}` of {by} (SHA-256 {origin['sha256']}): its weights, in the notebook's network;",
        f"the order of its labels as stated at the import, activations {activations}.",
        features,
        "",
        "Nothing is known here of what it was trained on, and it was judged on nothing: it has no figures.",
    ]


def _export(network: Any, features: npt.NDArray[np.float32]) -> tuple[bytes, float]:
    """Return the graph that workers will execute, and by how much its probabilities differ from Keras's."""
    graph = model.export(network)
    expected = network.predict(features[..., np.newaxis], batch_size=1_024, verbose=0)
    difference = float(np.abs(prediction.execute(graph, features) - expected).max())
    if not difference <= _EXPORT_TOLERANCE:
        raise EmotionBatchError(
            f"network: expected ONNX Runtime to give Keras's probabilities to {_EXPORT_TOLERANCE:g}, got a difference of "
            f"{difference:g}; install the versions of constraints.txt"
        )
    return graph, difference
