"""Write a bundle: its files, its card, and a README made from the card."""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import jinja2
import numpy as np

from emotion_batch.errors import EmotionBatchError, UsageError, counted
from emotion_batch.features.recipes import Inputs, recipe_of
from emotion_batch.inference import predict
from emotion_batch.inference.bundle import CARD, EXECUTABLE, RELIABILITY, WEIGHTS, sha256
from emotion_batch.inference.card import Card
from emotion_batch.settings import AnySettings, Segments
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.training import networks
from emotion_batch.training.labels import describe_voice

# ONNX Runtime and Keras add in float32, and each differs by some 4e-6 from float64 on the notebook's corpus. A larger difference is
# an error of the export.
_EXPORT_TOLERANCE = 1e-4
LICENSE = "LICENSE"  # of models that ship; a training does not know the terms of its weights
_PICTURES = ("training.png", "confusion.png", RELIABILITY)
FILES = (WEIGHTS, EXECUTABLE, "history.csv", *_PICTURES, LICENSE, "README.md", CARD)
SPLITS = tomllib.loads(resources.files(__package__).joinpath("splits.toml").read_text(encoding="utf-8"))


def require_new_bundle(bundle: Folder, force: bool) -> None:
    """Raise UsageError if the folder for a new bundle holds a bundle, or something else."""
    thing = f"bundle {bundle.url}"
    with explained(thing):
        if bundle.exists(CARD) and not force:
            raise UsageError(f"{thing}: there is a bundle already; name another folder, or use --force")
        # A run that was stopped while it wrote a bundle may write it again.
        strangers = [name for name in bundle.names() if name not in FILES and not name.startswith(".")]
        if not bundle.exists(CARD) and strangers:
            raise UsageError(f"{thing}: the folder holds other files, e.g. {strangers[0]!r}; name a new or empty one")


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

    `network` is one of `networks.build` for the settings. `inputs` are its inputs for some rows: the graph that workers execute must
    give Keras's probabilities on them, or else EmotionBatchError is raised. `extras` are further files out of `FILES`. Files of an
    older bundle that this one lacks are deleted.
    """
    graph, difference = _export(network, feature_settings, inputs)
    files = {WEIGHTS: networks.save_bytes(network, ".keras"), EXECUTABLE: graph, **extras}
    card = Card(
        labels=tuple(labels),
        feature_settings=feature_settings,
        segments=segments,
        architecture=recipe_of(feature_settings).network,
        model_id=networks.fingerprint_network(network, labels, feature_settings),
        # The largest difference, on these rows, between the probabilities of workers and of Keras.
        training={**training, "executable_difference": difference},
        metrics=metrics,
        calibration=calibration or {},
        confidence=confidence or {},
        domain=domain or {},
        versions=networks.read_training_versions(),
        files={},
    )
    files["README.md"] = describe(card).encode()
    card = replace(card, files={name: sha256(data) for name, data in files.items()})
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
    """Return the bundle's README, made from the card alone, with the head that model hubs read."""
    settings = card.feature_settings
    kind = recipe_of(settings).describe(settings)
    features = f"Features {settings.feature_id}: {kind} {card.segments} of each recording."
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 Markdown is no HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": format, "counted": counted}
    template = resources.files(__package__).joinpath("templates", "README.md.j2").read_text(encoding="utf-8")
    known = {"card": card, "about": card.training, "features": features, "splits": SPLITS, "voice": describe_voice}
    return environment.from_string(template).render(known)


def format_history(history: Mapping[str, Sequence[float]]) -> bytes:
    """Return loss and accuracy by epoch as CSV, out of Keras's ``history.history``."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["epoch", *history])
    writer.writerows([epoch, *values] for epoch, values in enumerate(zip(*history.values(), strict=True), start=1))
    return sink.getvalue().encode()


def _export(network: Any, settings: AnySettings, inputs: Inputs) -> tuple[bytes, float]:
    """Return the graph that workers will execute, and by how much its probabilities differ from Keras's."""
    graph = networks.export_onnx(network, settings)
    difference = float(np.abs(predict.execute(graph, inputs) - networks.predict(network, inputs)).max())
    if not difference <= _EXPORT_TOLERANCE:
        raise EmotionBatchError(
            f"network: ONNX Runtime and Keras differ by {difference:g}, and at most {_EXPORT_TOLERANCE:g} is allowed; install the "
            "versions of constraints.txt"
        )
    return graph, difference
