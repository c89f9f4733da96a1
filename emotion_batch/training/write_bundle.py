"""Write a bundle: its files, its card, and a README that says what the card says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emotion_batch.errors import EmotionBatchError, UsageError
from emotion_batch.features.recipes import Inputs
from emotion_batch.inference import predict
from emotion_batch.inference.bundle import CARD, EXECUTABLE, RELIABILITY, WEIGHTS, sha256
from emotion_batch.inference.card import Card, architecture_of
from emotion_batch.settings import AnySettings, FeatureSettings, Segments
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.training import networks

# Both add in float32, each some 4e-6 from what float64 gives on the notebook's corpus: more than this is another network.
_EXPORT_TOLERANCE = 1e-4
_PICTURES = ("training.png", "confusion.png", RELIABILITY)
FILES = (WEIGHTS, EXECUTABLE, "history.csv", *_PICTURES, "README.md", CARD)
# What each split's figures are figures of.
SPLITS = {
    "training": "these weights, on what they learnt from: says little",
    "stratified": "these weights, on other recordings of the same speakers, in the same room",
    "seed": "these weights, on the last fifth of the recordings by name, as the notebook's `validation_split`",
    "speaker_held_out": "the recipe's, not these weights': each speaker judged by networks that never heard them",
}
_USE = [
    "Research, and looking through archives with a person who checks. Not for decisions about people: what a voice shows is",
    "not what somebody feels, and figures on acted words say little of calls.",
]


def require_new_bundle(bundle: Folder, force: bool) -> None:
    """Raise UsageError if a bundle, or something else, is where one is to be written."""
    with explained(f"bundle {bundle.url}"):
        if bundle.exists(CARD) and not force:
            raise UsageError(
                f"bundle {bundle.url}: expected a new folder, got one with a bundle; name another, or use --force"
            )
        # What was stopped while it wrote may be written again.
        strangers = [name for name in bundle.names() if name not in FILES and not name.startswith(".")]
        if not bundle.exists(CARD) and strangers:
            raise UsageError(
                f"bundle {bundle.url}: expected a new or empty folder, got {strangers[0]!r} in it; name another"
            )


def write_bundle(
    bundle: Folder,
    network: Any,
    *,
    labels: Sequence[str],
    feature_settings: AnySettings,
    segments: Segments,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    inputs: Inputs,
    extras: Mapping[str, bytes],
    calibration: Mapping[str, Any] | None = None,
    confidence: Mapping[str, Any] | None = None,
    domain: Mapping[str, Any] | None = None,
) -> Card:
    """Write a network's bundle, card last, and return the card.

    Parameters
    ----------
    bundle
        Folder to write to; files of another bundle that this one has not are deleted.
    network
        As `networks.build` gives it for the settings.
    labels, feature_settings, segments, training, metrics, calibration, confidence, domain
        As the card has them.
    inputs
        What the network reads of some rows, on which what workers execute must give Keras's probabilities.
    extras
        Further files out of `FILES`, by name.

    Raises
    ------
    EmotionBatchError
        If ONNX Runtime does not give Keras's probabilities.
    """
    graph, difference = _export(network, feature_settings, inputs)
    files = {WEIGHTS: networks.save_bytes(network, ".keras"), EXECUTABLE: graph, **extras}
    card = Card(
        labels=tuple(labels),
        feature_settings=feature_settings,
        segments=segments,
        architecture=architecture_of(feature_settings),
        model_id=networks.fingerprint_network(network, labels, feature_settings),
        # Of the probabilities that workers give from those that Keras gives, the largest on these rows.
        training={**training, "executable_difference": difference},
        metrics=metrics,
        calibration=calibration or {},
        confidence=confidence or {},
        domain=domain or {},
        versions=networks.read_training_versions(),
        files={},
    )
    files["README.md"] = describe(card).encode()
    card = Card(**{**vars(card), "files": {name: sha256(data) for name, data in files.items()}})
    with explained(f"bundle {bundle.url}"):
        bundle.make()
        for name, data in files.items():
            bundle.publish(name, data)
        bundle.publish(CARD, card.to_json())
        for name in FILES:
            if name not in (*files, CARD):
                bundle.delete(name)
    return card


def describe(card: Card) -> str:
    """Return the bundle's README, all of it from the card."""
    settings = card.feature_settings
    kind = (
        f"{settings.n_mfcc} MFCC at {settings.sample_rate:,} Hz, averaged over"
        if isinstance(settings, FeatureSettings)
        else f"log-mel bands, fundamental frequency and voicing by frame at {settings.sample_rate:,} Hz, of"
    )
    features = f"Features {settings.feature_id}: {kind} {card.segments} of each recording."
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
    lines = [
        (
            f"Trained on {counts['n_learnt']:,} segments of {counts['n_speakers'] or 'unknown'} speakers with labels from "
            f"`{counts['labels']}`, {counts['n_held_out']:,} more held out (seed {counts['seed']})."
        ),
        features,
        f"Licence of the data: {counts['data_licence'] or 'not stated'}.",
        "",
        "| judged on | segments | speakers | accuracy | 95 % | UAR | 95 % | NLL | ECE |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_figures(kind, values) for kind, values in card.metrics.items()),
        "",
        *(f"- `{kind}`: {SPLITS[kind]}." for kind in card.metrics),
    ]
    unit = next((values["intervals"]["unit"] for values in card.metrics.values() if values.get("intervals")), None)
    if unit:
        lines.append(f"- Intervals are by bootstrap over {unit}; over recordings alone they would be far too narrow.")
    lines += ["", "## Limits", "", *_limits(card), "", "## Intended use", "", *_USE]
    matrix = card.metrics.get("speaker_held_out") or card.metrics.get("stratified")
    if matrix:
        lines += [
            "",
            "## Confusion",
            "",
            "| true | " + " | ".join(card.labels) + " |",
            "| --- " * (len(card.labels) + 1) + "|",
        ]
        lines += [
            f"| {label} | " + " | ".join(map(str, row)) + " |"
            for label, row in zip(card.labels, matrix["confusion"], strict=True)
        ]
    return lines


def _figures(kind: str, values: Mapping[str, Any]) -> str:
    intervals = values.get("intervals") or {}
    of_accuracy, of_uar = (
        f"{low_high[0]:.3f} to {low_high[1]:.3f}" if (low_high := intervals.get(name)) else ""
        for name in ("accuracy", "uar")
    )
    return (
        f"| {kind} | {values['n_rows']:,} | {values['n_speakers'] or 'unknown'} | {values['accuracy']:.3f} | {of_accuracy} | "
        f"{values['uar']:.3f} | {of_uar} | {values['nll']:.2f} | {values['ece']:.3f} |"
    )


def _limits(card: Card) -> list[str]:
    calibration, confidence, domain = card.calibration, card.confidence, card.domain
    lines = []
    if calibration:
        lines.append(
            f"- Confidence is divided by a temperature of {calibration['temperature']:.2f}, fitted on speakers held out; on "
            f"speakers that it was not fitted on, NLL {calibration['raw']['nll']:.2f} became "
            f"{calibration['calibrated']['nll']:.2f}, ECE {calibration['raw']['ece']:.3f} {calibration['calibrated']['ece']:.3f}."
        )
        lines += [
            f"  - judged on {name}: temperature {fold['temperature']:.2f}, NLL {fold['raw']['nll']:.2f} to "
            f"{fold['calibrated']['nll']:.2f}, ECE {fold['raw']['ece']:.3f} to {fold['calibrated']['ece']:.3f}"
            for name, fold in zip(calibration["names"], calibration["folds"], strict=True)
        ]
    else:
        lines.append("- Confidence is the network's own word: there were no two speakers to calibrate it by.")
    if confidence:
        got = "no row" if confidence["got"] is None else f"{confidence['got']:.3f} of them right"
        where = "none, so that no row is" if confidence["threshold"] is None else f"{confidence['threshold']:.3f}"
        lines.append(
            f"- `is_confident` promises {confidence['promised']:g} (threshold {where}); on speakers that it was not chosen on: "
            f"{got}, coverage {confidence['coverage']:.3f}, {confidence['n_speakers']} speakers."
        )
        if not confidence["is_guaranteed"]:
            lines.append("  With fewer than five speakers nothing is guaranteed of another one.")
    if domain:
        flagged = domain["flagged"].get("new_voices")
        others = "" if flagged is None else f"; of speakers never heard it flags {flagged:.0%}"
        lines.append(
            f"- `is_in_domain` is false beyond the 99th percentile of recordings held out{others}: a new voice, room or "
            "telephone is unlike those it was trained on."
        )
    return lines


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


def _export(network: Any, settings: AnySettings, inputs: Inputs) -> tuple[bytes, float]:
    """Return the graph that workers will execute, and by how much its probabilities differ from Keras's."""
    graph = networks.export_onnx(network, settings)
    difference = float(np.abs(predict.execute(graph, inputs) - networks.predict(network, inputs)).max())
    if not difference <= _EXPORT_TOLERANCE:
        raise EmotionBatchError(
            f"network: expected ONNX Runtime to give Keras's probabilities to {_EXPORT_TOLERANCE:g}, got a difference of "
            f"{difference:g}; install the versions of constraints.txt"
        )
    return graph, difference
