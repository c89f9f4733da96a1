"""Import the notebook's ``.h5`` file as a bundle. It reads only the weights, as numbers, and never runs code of the file."""

from __future__ import annotations

import io
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emotion_batch.errors import UsageError
from emotion_batch.inference import safety
from emotion_batch.inference.bundle import sha256, weight_shapes
from emotion_batch.inference.card import Card
from emotion_batch.inference.safety import MAX_NETWORK_BYTES
from emotion_batch.libraries import require_training
from emotion_batch.progress import Watcher
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.folder import Folder, explained, split_file
from emotion_batch.storage.names import clean
from emotion_batch.training import networks, write_bundle
from emotion_batch.training.write_bundle import require_new_bundle

_PASSIVE = ("Dropout", "InputLayer")
_SEED = tomllib.loads(resources.files(__package__).joinpath("layers.toml").read_text(encoding="utf-8"))
# The class of each layer of the notebook's network, and its settings.
LAYERS: list[tuple[str, dict[str, Any]]] = [(one.pop("class_name"), one) for one in _SEED["layers"]]
# Number of random rows, as large as MFCC usually are, on which ONNX Runtime is compared with Keras.
_N_COMPARED = 512


def import_h5(
    h5: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    *,
    labels: Sequence[str],
    storage_options: Mapping[str, Any] | None = None,
    force: bool = False,
    watcher: Watcher | None = None,
) -> Card:
    """Make a bundle from a network that the notebook saved; the command is ``import``, a reserved word in Python.

    Parameters
    ----------
    h5
        The notebook's file, of any Keras 2 or 3; its weights are taken, and nothing in it is run.
    bundle
        Folder to write; a new one, unless `force`.
    labels
        Emotions in the order of the network's outputs: the notebook's LabelEncoder sorts them.
    storage_options
        What fsspec's filesystem takes.
    force
        Replace the bundle that is there.
    watcher
        Gets a note if the notebook's LabelEncoder would not have given these labels in this order.

    Raises
    ------
    UsageError
        If the file does not hold the notebook's network, the number of labels is wrong, or the bundle exists already.
    StorageError
        If a place cannot be read or written.
    """
    require_training()
    file, to = Folder.of(h5, storage_options), Folder.of(bundle, storage_options)
    require_new_bundle(to, force)
    folder, name = split_file(file)
    with explained(f"file {file.url}"):
        data = folder.read_range(name, 0, MAX_NETWORK_BYTES + 1)
    labels = [clean(label) for label in labels]
    if not all(labels) or len(set(labels)) != len(labels) or len(labels) < 2:
        words = ", ".join(map(repr, labels)) or "none"
        raise UsageError(f"labels: name at least two words, each once; these are {words}")
    saved = read_network(data, f"file {name}")
    settings = FeatureSettings()
    n_outputs = len(saved.weights[-1])
    if n_outputs != len(labels):
        raise UsageError(
            f"labels: the network in {name} has {n_outputs} outputs, and {len(labels)} labels were named; name one label for each "
            "output, in their order"
        )
    for note in _remark(labels):
        (watcher or Watcher()).on_note(note)
    network = networks.build_seed(settings.n_mfcc, n_outputs)
    network.set_weights(saved.weights)
    rng = np.random.default_rng(0)
    return write_bundle.write_bundle(
        to,
        network,
        labels=labels,
        feature_settings=settings,
        segments=Segments(),
        training={
            "imported": True,
            "file": name,
            "sha256": sha256(data),
            "keras_version": saved.keras_version,
            "has_config": saved.has_config,
        },
        metrics={},
        inputs=rng.normal(0, 30, (_N_COMPARED, settings.n_mfcc)).astype(np.float32),
        extras={},
    )


def _remark(labels: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each way in which labels differ from those of the notebook's LabelEncoder."""
    if list(labels) != sorted(labels):
        yield (
            f"labels: the notebook's LabelEncoder sorts its labels, {', '.join(sorted(labels))}, but these are in another "
            "order; check that each label is at the place of its output"
        )
    by_word: dict[str, str] = {}
    for label in labels:
        if (other := by_word.setdefault(label.casefold(), label)) != label:
            yield f"labels: {other!r} and {label!r} differ only in upper and lower case; check that they are two emotions"


class SavedNetwork(NamedTuple):
    """The weights of the notebook's network in an ``.h5``, in Keras's order, as `bundle.weight_shapes` has them.

    `keras_version` is "" if the file does not name the Keras that wrote it. `has_config` says whether the file describes its
    layers, which are then the notebook's.
    """

    weights: list[npt.NDArray[np.float32]]
    keras_version: str
    has_config: bool


def read_network(data: bytes, thing: str) -> SavedNetwork:
    """Read the notebook's network out of an ``.h5`` of Keras 2 or 3, by its attributes ``layer_names`` and ``weight_names``.

    `data` is the file, whole or of weights alone (``save_weights``), and `thing` what an error calls it. It raises
    UsageError if it is none, or its layers, their settings or the shapes of their weights are not the notebook's.
    """
    import h5py

    safety.inspect_h5(data, thing)
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            config = file.attrs.get("model_config")
            version = _text(file.attrs.get("keras_version", ""))
            root = file.get("model_weights", file)
            weights = [
                np.asarray(root[_text(layer)][_text(name)], np.float32)
                for layer in root.attrs["layer_names"]
                for name in root[_text(layer)].attrs["weight_names"]
            ]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise UsageError(
            f"{thing}: it has no weights by layer, as Keras saves an .h5; save the network with model.save('x.h5')"
        ) from error
    if config is not None:
        _check_config(_text(config), thing)
    shapes = [one.shape for one in weights]
    if not shapes or len(shapes[-1]) != 1 or shapes != weight_shapes(FeatureSettings(), *shapes[-1]):
        raise UsageError(
            f"{thing}: its weights are not those of the notebook's network (LSTM 123, Dense 64, Dense 32 and an output for each "
            f"label); their shapes are {', '.join(str(list(shape)) for shape in shapes) or 'none'}; only that network can be imported"
        )
    if not all(np.isfinite(one).all() for one in weights):
        raise UsageError(f"{thing}: some of its weights are not finite, so its training failed")
    return SavedNetwork(weights, version, config is not None)


def _check_config(text: str, thing: str) -> None:
    """Raise UsageError if layers differ from the notebook's, because other layers may have weights of the same shapes."""
    try:
        config = safety.parse_json(text)
        kind, layers = config["class_name"], config["config"]
        # Before Keras 2.2.3 the config was the list of layers.
        layers = layers["layers"] if isinstance(layers, dict) else layers
        found = [(layer["class_name"], dict(layer["config"])) for layer in layers]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{thing}: its model_config is not as Keras writes it; save the network again") from error
    active = [(name, settings) for name, settings in found if name not in _PASSIVE]
    names = [name for name, _ in active]
    if kind != "Sequential" or names != [name for name, _ in LAYERS]:
        raise UsageError(
            f"{thing}: it is a {kind} of {', '.join(map(str, names))}; only the notebook's Sequential of LSTM, Dense, Dense and Dense "
            "can be imported"
        )
    for (name, settings), (_, expected) in zip(active, LAYERS, strict=True):
        for key, value in expected.items():
            if settings.get(key, value) != value:
                raise UsageError(
                    f"{thing}: {key} of a {name} layer is {settings[key]!r}, and {value!r} in the notebook's network; its labels "
                    "would be wrong"
                )
    n_features = FeatureSettings().n_mfcc
    for _, settings in found[:2]:
        shape = settings.get("batch_shape") or settings.get("batch_input_shape")
        if shape is not None and not (isinstance(shape, list) and shape[1:] in ([n_features, 1], [None, 1])):
            raise UsageError(
                f"{thing}: its input is {shape}, and [None, {n_features}, 1] in the notebook's network; an .h5 file does not say which "
                "other features it would need"
            )


def _text(value: Any) -> str:
    """Return an attribute's text, which is bytes in files of Keras 2."""
    return value.decode() if isinstance(value, bytes) else str(value)
