"""Tests of loading: hostile bundles, whose cards name the right digests, are refused and run nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.commands import run_command

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.inference import safety
from emotion_batch.inference.bundle import require_safe, sha256, weight_shapes
from emotion_batch.settings import FeatureSettings, VoicesSettings
from emotion_batch.storage.folder import Folder
from emotion_batch.training import networks

MEMBERS = ("metadata.json", "config.json", "model.weights.h5")


class Hostile:
    """A copy of a bundle, to be changed by an author who computes the digests again.

    Attributes
    ----------
    canary
        The file that what is hostile would write.
    """

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.folder = folder / "bundle"
        self.canary = folder / "canary"
        shutil.copytree(bundle, self.folder)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        """Replace a file and what the card says of it."""
        (self.folder / name).write_bytes(data)
        card = json.loads(self.read("card.json"))
        self.write_card(files={**card["files"], name: sha256(data)})

    def write_card(self, **values: object) -> None:
        (self.folder / "card.json").write_text(json.dumps({**json.loads(self.read("card.json")), **values}))

    def put_members(self, **members: bytes) -> None:
        """Replace members of ``model.keras``, and add others."""
        with zipfile.ZipFile(io.BytesIO(self.read("model.keras"))) as archive:
            kept = {name: archive.read(name) for name in MEMBERS}
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in {**kept, **members}.items():
                archive.writestr(name, data)
        self.put("model.keras", sink.getvalue())

    def put_layer(self, layer: object) -> None:
        """Put a layer before the others of the network's config."""
        with zipfile.ZipFile(io.BytesIO(self.read("model.keras"))) as archive:
            config = json.loads(archive.read("config.json"))
        config["config"]["layers"].insert(1, layer)
        self.put_members(**{"config.json": json.dumps(config).encode()})

    def put_activation(self, activation: object) -> None:
        self.put_layer({"module": "keras.layers", "class_name": "Activation", "config": {"activation": activation}})

    def put_weights(self, write: Callable[[h5py.File], object]) -> None:
        """Add to the HDF5 file of the weights."""
        with zipfile.ZipFile(io.BytesIO(self.read("model.keras"))) as archive:
            sink = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(sink, "r+") as file:
            write(file)
        self.put_members(**{"model.weights.h5": sink.getvalue()})

    def put_graph(self, change: Callable[[onnx.ModelProto], object]) -> None:
        """Change what workers execute."""
        graph = onnx.load_from_string(self.read("model.onnx"))
        change(graph)
        self.put("model.onnx", graph.SerializeToString())


def lambda_layer(hostile: Hostile) -> None:
    """A network that Keras itself saved, whose code writes the canary: it does so while it is built."""
    _, keras = networks.load_keras()
    path = os.fspath(hostile.canary)
    layer = keras.layers.Lambda(lambda values: (open(path, "w").close(), values)[1])
    network = keras.Sequential([keras.Input((40, 1)), layer, keras.layers.LSTM(2), keras.layers.Dense(7)])
    assert hostile.canary.exists()
    hostile.canary.unlink()
    hostile.put("model.keras", networks.save_bytes(network, ".keras"))


class Touch:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def pickled(hostile: Hostile) -> bytes:
    data = pickle.dumps(Touch(hostile.canary))
    pickle.loads(data)  # noqa: S301
    assert hostile.canary.exists()
    hostile.canary.unlink()
    return data


def two_of_one_name(hostile: Hostile) -> None:
    sink = io.BytesIO(hostile.read("model.keras"))
    with warnings.catch_warnings(), zipfile.ZipFile(sink, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("config.json", "{}")
    hostile.put("model.keras", sink.getvalue())


def external_weights(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(graph: onnx.ModelProto) -> None:
        tensor = graph.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def branch(graph: onnx.ModelProto) -> None:
    """A node with two graphs of its own."""
    bodies = [
        helper.make_graph(
            [helper.make_node("Identity", ["state"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("then", "otherwise")
    ]
    node = helper.make_node("Identity", ["state"], ["branched"], then_branch=bodies[0], else_branch=bodies[1])
    graph.graph.node.append(node)


def virtual_array(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "weights", (4,), "f4")
    file.create_virtual_dataset("far", layout)


def other_network(n_features: int, n_labels: int) -> object:
    network = networks.build_seed(n_features, n_labels)
    network.set_weights([np.zeros(one.shape, np.float32) for one in network.get_weights()])
    return network


PYTHON = {"module": "os", "class_name": "system", "config": {"command": "touch canary"}, "registered_name": None}
HOSTILE = {
    "a layer that is code": (lambda_layer, "it holds the class 'Lambda' of 'keras.layers'"),
    "a pickle beside": (
        lambda one: (one.folder / "Scaler.PKL").write_bytes(pickled(one)),
        "it holds the pickle 'Scaler.PKL', and pickles run code",
    ),
    "a pickle as the network": (lambda one: one.put("model.keras", pickled(one)), "cannot be read (BadZipFile)"),
    "a pickle as the graph": (lambda one: one.put("model.onnx", pickled(one)), "model.onnx: it cannot be read ("),
    "a class of Python": (lambda one: one.put_layer(PYTHON), "it holds the class 'system' of 'os'"),
    "a switch of safe mode": (
        lambda one: one.put_layer(
            {"module": "keras.config", "class_name": "enable_unsafe_deserialization", "config": {}}
        ),
        "it holds the class 'enable_unsafe_deserialization' of 'keras.config'",
    ),
    "a download": (
        lambda one: one.put_layer(
            {
                "module": "keras.utils",
                "class_name": "get_file",
                "config": {"fname": "x", "origin": "http://127.0.0.1:9/"},
            }
        ),
        "it holds the class 'get_file' of 'keras.utils'",
    ),
    "a saved model elsewhere": (
        lambda one: one.put_layer(
            {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": os.fspath(one.folder)}}
        ),
        "it holds the class 'TFSMLayer' of 'keras.layers'",
    ),
    "a class that is registered": (
        lambda one: one.put_layer(
            {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": "strangers>Dense"}
        ),
        "it holds the class 'strangers>Dense'",
    ),
    "a class of no module": (lambda one: one.put_layer({"class_name": "__lambda__"}), "the class '__lambda__' of None"),
    "a class that is no name": (lambda one: one.put_layer({"class_name": ["Dense"]}), "the class ['Dense']"),
    "an activation that is a function": (
        lambda one: one.put_activation(
            {"module": "builtins", "class_name": "function", "config": "system", "registered_name": "function"}
        ),
        "it holds the class 'function' of 'builtins'",
    ),
    "an activation by another name": (lambda one: one.put_activation("os.system"), "the activation 'os.system'"),
    "a config that is deep": (
        lambda one: one.put_members(**{"config.json": b"[" * 100_000 + b"]" * 100_000}),
        "cannot be read (ValueError)",
    ),
    "a member outside": (lambda one: one.put_members(**{"../../canary": b"here"}), "it holds '../../canary' beside"),
    "a module in the archive": (
        lambda one: one.put_members(**{"assets/run.py": b""}),
        "it holds 'assets/run.py' beside",
    ),
    "two members of one name": (two_of_one_name, "it holds 4 members"),
    "a bomb of a config": (
        lambda one: one.put_members(**{"config.json": bytes(2**20 + 1)}),
        "it holds 'config.json' of 1,048,577 bytes",
    ),
    "a bomb of weights": (
        lambda one: one.put_members(**{"model.weights.h5": bytes(2**26 + 1)}),
        "it holds 'model.weights.h5' of 67,108,865 bytes",
    ),
    "a bomb of an array": (
        lambda one: one.put_weights(lambda file: file.create_dataset("far", (2**40,), "f4", chunks=(2**10,))),
        "it holds arrays of more than 67,108,864 bytes",
    ),
    "a network that is too large": (
        lambda one: one.put("model.onnx", bytes(2**26 + 1)),
        "it holds more than 67,108,864 bytes",
    ),
    "weights by a link to another file": (
        lambda one: one.put_weights(lambda file: file.update({"far": h5py.ExternalLink("/etc/passwd", "/")})),
        "it holds '/far', a link to elsewhere",
    ),
    "weights by a soft link": (
        lambda one: one.put_weights(lambda file: file.update({"far": h5py.SoftLink("/layers")})),
        "it holds '/far', a link to elsewhere",
    ),
    "weights in a circle": (
        lambda one: one.put_weights(lambda file: file["layers"].update({"back": file["/"]})),
        "it holds '/layers/back', which has another name too",
    ),
    "weights out of another file": (
        lambda one: one.put_weights(
            lambda file: file.create_dataset("far", (4,), "f4", external=[("/etc/passwd", 0, 16)])
        ),
        "it holds '/far', whose numbers are in another file",
    ),
    "weights that are virtual": (
        lambda one: one.put_weights(virtual_array),
        "it holds '/far', whose numbers are in another file",
    ),
    "weights that are objects": (
        lambda one: one.put_weights(lambda file: file.create_dataset("far", (1,), h5py.string_dtype())),
        "it holds '/far', which is no array of numbers",
    ),
    "weights of other shapes": (
        lambda one: one.put("model.keras", networks.save_bytes(other_network(40, 5), ".keras")),
        "it holds weights of other shapes than its card says: [1, 492], [5], [32],",
    ),
    "a graph of other shapes": (
        lambda one: one.put("model.onnx", networks.export_onnx(other_network(13, 7), FeatureSettings())),
        "needs a network from [40] features to [7] labels, and its network is from [13] to [7]",
    ),
    "an operator of another domain": (
        lambda one: one.put_graph(
            lambda graph: (
                graph.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1)),
                graph.graph.node.append(helper.make_node("PyOp", ["state"], ["far"], domain="ai.onnx.contrib")),
            )
        ),
        "'ai.onnx.contrib'",
    ),
    "an operator that is unknown": (
        lambda one: one.put_graph(lambda graph: graph.graph.node.append(helper.make_node("Loop", ["state"], ["far"]))),
        "it holds the operator 'Loop'",
    ),
    "a graph within a node": (lambda one: one.put_graph(branch), "it holds a graph within a node"),
    "a function of the graph's": (
        lambda one: one.put_graph(
            lambda graph: graph.functions.append(
                helper.make_function("", "Relu", ["x"], ["y"], [], [helper.make_opsetid("", 14)])
            )
        ),
        "it holds a function of its own",
    ),
    "a graph's weights in a file of the machine": (
        lambda one: one.put_graph(external_weights("/etc/passwd")),
        "it holds weights in another file",
    ),
    "a graph's weights in a file beside": (
        lambda one: one.put_graph(external_weights("../../secret")),
        "it holds weights in another file",
    ),
    "a graph of another format": (
        lambda one: one.put("model.onnx", b"\x18\x00\x00\x00ORTM" + bytes(64)),
        "it holds a graph in ONNX Runtime's own format",
    ),
    "a graph that is cut": (
        lambda one: one.put("model.onnx", one.read("model.onnx")[:-100]),
        "it cannot be read (DecodeError)",
    ),
    "another digest": (
        lambda one: (one.folder / "model.keras").write_bytes(one.read("model.keras") + b" "),
        "model.keras does not have the SHA-256 that its card names",
    ),
    "a card that names files outside": (
        lambda one: one.write_card(files={"../../canary": 64 * "0"}),
        "files must be plain names with their SHA-256: '../../canary'",
    ),
    "a card of another architecture": (
        lambda one: one.write_card(architecture="pickled"),
        "architecture must be 'seed-lstm': 'pickled'",
    ),
    "a card with infinity": (
        lambda one: (one.folder / "card.json").write_bytes(
            one.read("card.json").replace(b'"epochs": 5', b'"epochs": 1e999')
        ),
        "each number must be finite: 1e999",
    ),
    "a card that is too large": (
        lambda one: (one.folder / "card.json").write_bytes(one.read("card.json") + b" " * 10**7),
        "it has more than 10,000,000 bytes",
    ),
    "a card of nothing": (lambda one: (one.folder / "card.json").write_text("[]"), "this release cannot read its card"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_refused(speech: Path, bundle: Path, tmp_path: Path, kind: str) -> None:
    """A bundle that would run code, reach out or fill the memory is one sentence, and what it would write is absent."""
    change, sentence = HOSTILE[kind]
    hostile = Hostile(bundle, tmp_path)
    change(hostile)
    recording = next(speech.rglob("*_sad.wav"))
    with pytest.raises(UsageError) as caught:
        emotion_batch.label_recording(recording, model=hostile.folder)
    said = str(caught.value)
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert len(said) < 600
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


@pytest.mark.parametrize(
    "kind", ["a layer that is code", "a pickle beside", "a graph's weights in a file of the machine"]
)
def test_the_command_refuses_before_any_work(features: Path, bundle: Path, tmp_path: Path, kind: str) -> None:
    """`label` ends with exit code 2 and one sentence; there is neither a table nor what the bundle would write."""
    change, sentence = HOSTILE[kind]
    hostile = Hostile(bundle, tmp_path)
    change(hostile)
    done = run_command("label", features, tmp_path / "labels", "--model", hostile.folder)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_bundle_is_not_refused_for_its_neighbours(bundle: Path, tmp_path: Path) -> None:
    """A trained bundle is safe, and notes and hidden files beside its own do no harm."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    for name in ("notes.txt", ".gitattributes"):
        (folder / name).touch()
    assert require_safe(Folder.of(folder)).card.architecture == "seed-lstm"


def test_a_network_of_many_kinds_of_layers_is_inspected() -> None:
    """Layers of Keras's own pass, compiled or not, and shapes are asked for only where they are known."""
    _, keras = networks.load_keras()
    layers = keras.layers
    frames = keras.Input((20, 8))
    hidden = layers.Conv1D(4, 5, padding="same", kernel_regularizer=keras.regularizers.L2(1e-4))(frames)
    hidden = layers.MaxPooling1D(2)(layers.Activation("relu")(layers.BatchNormalization()(hidden)))
    hidden = layers.Bidirectional(layers.LSTM(2, return_sequences=True))(hidden)
    weights = layers.Softmax(axis=1)(layers.Reshape((10, 1))(layers.Dense(1)(hidden)))
    mean = layers.Reshape((4,))(layers.Dot(axes=1)([weights, hidden]))
    square = layers.Subtract()([layers.Multiply()([mean, mean]), layers.Add()([mean, mean])])
    outputs = layers.Dense(7, activation="softmax")(layers.Dropout(0.2)(layers.Concatenate()([mean, square])))
    network = keras.Model(frames, outputs)
    safety.inspect_keras(networks.save_bytes(network, ".keras"), "network")
    network.compile(
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        optimizer=keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-3, 10)),
    )
    data = networks.save_bytes(network, ".keras")
    safety.inspect_keras(data, "network")
    with pytest.raises(UsageError, match="network: it holds weights of other"):
        safety.inspect_keras(data, "network", weight_shapes(VoicesSettings(), 7))


def test_the_shapes_are_those_of_the_network() -> None:
    """What a bundle's weights are compared with is what the network has."""
    assert [one.shape for one in networks.build_seed(13, 3).get_weights()] == weight_shapes(FeatureSettings(), 3)


def test_fields_that_are_not_known_are_refused(bundle: Path) -> None:
    """What this ONNX does not know, or knows and no network needs, is refused wherever it is: a runtime may know it."""
    data = (bundle / "model.onnx").read_bytes()
    safety.inspect_onnx(data, "graph")
    # Field 1,000 of the model, a text.
    with pytest.raises(UsageError, match="it holds fields that this version of ONNX does not know"):
        safety.inspect_onnx(data + b"\xc2\x3e\x01x", "graph")
    for field, change in (
        ("training_info", lambda model: model.training_info.add()),
        ("sparse_initializer", lambda model: model.graph.sparse_initializer.add()),
        ("metadata_props", lambda model: model.graph.node[0].metadata_props.add(key="a", value="b")),
        ("ref_attr_name", lambda model: model.graph.node[0].attribute.add(name="a", ref_attr_name="b")),
        ("segment", lambda model: model.graph.initializer[0].segment.SetInParent()),
    ):
        graph = onnx.load_from_string(data)
        change(graph)
        with pytest.raises(UsageError, match=f"it holds (a training|{field} in a )"):
            safety.inspect_onnx(graph.SerializeToString(), "graph")


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x0f", b"\x0b", b"\x38\x01"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    """Bytes that protobuf cannot have written are one sentence, whatever they are."""
    with pytest.raises(UsageError, match=r"graph: it (holds .*, and only known operators|cannot be read \()"):
        safety.inspect_onnx(data, "graph")


@pytest.mark.parametrize(
    ("version", "is_safe"), [("3.13.2", False), ("2.15.0", False), ("3.14.0", True), ("4.0", True)]
)
def test_an_old_keras_is_refused(version: str, is_safe: bool) -> None:
    """A Keras that runs what a file names is refused before it is imported, with what to do."""
    if is_safe:
        networks._check_keras(version)
        return
    with pytest.raises(
        UsageError, match=rf"version {version} lacks the fixes of .*, which 3.14 has; `pip install --upgrade"
    ):
        networks._check_keras(version)
