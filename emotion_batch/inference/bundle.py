"""Read, find and copy bundles: folders with a trained model and its card. It does not know what runs the model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emotion_batch.errors import UsageError
from emotion_batch.features.logmel_pitch import N_INPUTS
from emotion_batch.features.recipes import recipe_of
from emotion_batch.inference import safety
from emotion_batch.inference.card import PLAIN_NAME, Card
from emotion_batch.inference.safety import Shape
from emotion_batch.settings import AnySettings
from emotion_batch.storage.folder import Folder, explained, seal, unseal
from emotion_batch.tables.schema import TableInfo

CARD = "card.json"
# A table's own copy is here.
COPY = "_table/model"
# The network as Keras saves it, and the file that is made from it for the workers.
WEIGHTS = "model.keras"
EXECUTABLE = "model.onnx"
# The picture shows how reliable the confidence is.
RELIABILITY = "reliability.png"
# The shipped model that is meant for new voices.
DEFAULT_MODEL = "voices-1"
_MAX_CARD_BYTES = 10**7
_MAX_PICTURE_BYTES = 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
# Files with these suffixes may run code when they are read.
_PICKLES = (".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")


@dataclass(frozen=True)
class Bundle:
    """A trained model in its folder, not yet loaded. It can be pickled."""

    folder: Folder
    card: Card


def find_model(model: str | os.PathLike[str] | None, options: Mapping[str, Any] | None = None) -> Folder:
    """Return the folder of a model: a path or URL, or the name of a shipped one if no file has that name.

    None is the shipped model that is meant for new voices.
    """
    name = DEFAULT_MODEL if model is None else os.fspath(model)
    if model is None or (PLAIN_NAME.fullmatch(name) and not os.path.exists(name)):
        # In a wheel the models are inside the package, and in a checkout beside it.
        package = os.path.dirname(os.path.dirname(__file__))
        for above in (package, os.path.dirname(package)):
            folder = os.path.join(above, "models", name)
            if os.path.exists(os.path.join(folder, CARD)):
                return Folder.of(folder)
    return Folder.of(name, options)


def open_bundle(folder: Folder, *, is_copy: bool = False) -> Bundle:
    """Read a bundle's card, not its weights; raise UsageError if the folder holds no bundle that this release reads.

    The card of a table's copy must have its digest.
    """
    with explained(f"model {folder.url}"):
        # At most one byte more than the limit is read.
        data = folder.read_if_there(CARD, _MAX_CARD_BYTES + 1)
    if data is None:
        raise UsageError(
            f"model {folder.url}: it is not a bundle, because it has no {CARD}; make one with `emotion-batch train TABLE BUNDLE`"
        )
    try:
        if len(data) > _MAX_CARD_BYTES:
            raise ValueError(f"it has more than {_MAX_CARD_BYTES:,} bytes")
        if is_copy:
            unseal(data)
        return Bundle(folder, Card.from_json(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"model {folder.url}: this release cannot read its card ({error}); train it again") from error


def require_safe(folder: Folder, *, is_copy: bool = False) -> Bundle:
    """Read a bundle's card and check all its files before anything of it is used.

    Raises UsageError if there is no bundle that this release reads, a file is not the one that the card names or holds
    more than known layers and weights of the card's shapes, or there is a pickle.
    """
    bundle = open_bundle(folder, is_copy=is_copy)
    with explained(f"model {folder.url}"):
        pickles = [name for name in folder.names() if name.lower().endswith(_PICKLES)]
    if pickles:
        raise UsageError(
            f"model {folder.url}: it holds the pickle {pickles[0]!r}, and pickles run code; use only bundles whose maker you trust"
        )
    shapes = weight_shapes(bundle.card.feature_settings, len(bundle.card.labels))
    safety.inspect_keras(read_checked(bundle, WEIGHTS), f"model {folder.url}/{WEIGHTS}", shapes)
    safety.inspect_onnx(read_checked(bundle, EXECUTABLE), f"model {folder.url}/{EXECUTABLE}")
    return bundle


def copy_bundle(bundle: Bundle, to: Folder) -> Bundle:
    """Copy a safe bundle into another folder: its network, the picture of its calibration, and its card last.

    Files that are there already stay, and damaged ones are replaced.
    """
    files = {name: read_checked(bundle, name) for name in (WEIGHTS, EXECUTABLE)}
    if (picture := read_reliability(bundle)) is not None:
        files[RELIABILITY] = picture
    with explained(f"model copy {to.url}"):
        to.make()
        for name, data in {**files, CARD: seal(json.loads(bundle.card.to_json()), indent=2)}.items():
            if to.read_if_there(name) != data:
                to.publish(name, data)
    return Bundle(to, bundle.card)


def open_copy(table: Folder) -> Bundle:
    """Return a table's own copy of its model, checked as `require_safe` does; raise UsageError if it is damaged."""
    try:
        return require_safe(table.folder(COPY), is_copy=True)
    except UsageError as error:
        raise UsageError(
            f"table {table.url}: its copy of the model is damaged or missing ({error}); run the command that made the table again, "
            "which copies the model anew"
        ) from error


def find_copy_damage(table: Folder) -> str | None:
    """Return the damage in a label table's copy of its model, by the digests of its files; None if there is none."""
    folder = table.folder(COPY)
    try:
        files = open_bundle(folder, is_copy=True).card.files
    except UsageError:
        return f"{COPY}/{CARD}: the card of the model is damaged or missing"
    for name in (WEIGHTS, EXECUTABLE, RELIABILITY):
        data = folder.read_if_there(name)
        if (data is not None or name != RELIABILITY) and sha256(data or b"") != files.get(name):
            return f"{COPY}/{name}: it is missing, or is not the file that the model's card names"
    return None


def read_checked(bundle: Bundle, name: str) -> bytes:
    """Return a network's file of a bundle, `WEIGHTS` or `EXECUTABLE`; raise UsageError if the card names another one."""
    with explained(f"model {bundle.folder.url}/{name}"):
        data = bundle.folder.read_range(name, 0, safety.MAX_NETWORK_BYTES + 1)
    if sha256(data) != bundle.card.files.get(name):
        raise UsageError(
            f"model {bundle.folder.url}: {name} does not have the SHA-256 that its card names; fetch the bundle again"
        )
    return data


def read_reliability(bundle: Bundle) -> bytes | None:
    """Return the picture of a bundle's calibration, a PNG; None if it has none that its card names."""
    with explained(f"model {bundle.folder.url}/{RELIABILITY}"):
        data = bundle.folder.read_if_there(RELIABILITY, _MAX_PICTURE_BYTES + 1) or b""
    is_whole = data.startswith(_PNG) and sha256(data) == bundle.card.files.get(RELIABILITY)
    return data if is_whole else None


def weight_shapes(settings: AnySettings, n_labels: int) -> list[Shape] | None:
    """Return the shapes of a network's weights, in Keras's order; None if an installed package brings the network.

    The notebook's network has the length of its input in no shape.
    """
    network, ends = recipe_of(settings).network, [(n_labels,)]
    if network == "seed-lstm":
        return [(1, 492), (123, 492), (492,), (123, 64), (64,), (64, 32), (32,), (32, n_labels), *ends]
    if network == "voices-lstm":
        kernels = ((7, N_INPUTS, 96), (5, 96, 96), (3, 96, 128))
        convolutions = [shape for kernel in kernels for shape in (kernel, *[kernel[2:]] * 5)]
        attention = [(128, 64), (64,), (64, 1), (1,)]
        return [*convolutions, *[(128, 256), (64, 256), (256,)] * 2, *attention, (256, n_labels), *ends]
    return None


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def check_features(features: TableInfo, place: Folder, bundle: Bundle) -> None:
    """Raise UsageError unless a feature table's features are those of a bundle."""
    card = bundle.card
    if features.feature_settings.feature_id != card.feature_settings.feature_id:
        own, wanted = features.feature_settings.to_dict(), card.feature_settings.to_dict().items()
        differing = [f"{name} is {own.get(name)} instead of {one}" for name, one in wanted if own.get(name) != one]
        raise UsageError(
            f"feature table {place.url}: its features are not those of model {bundle.folder.url} ({', '.join(differing)}); "
            "extract again with the model's settings, or use a model for these features"
        )
