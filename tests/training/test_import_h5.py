"""Tests of the import: a network that plain Keras code trained and saved, as the notebook does, becomes a bundle."""

from __future__ import annotations

import io
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.commands import Finished, call_command, run_command

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import open_bundle, require_safe
from emotion_batch.inference.predict import Predictor
from emotion_batch.progress import Watcher
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.folder import Folder
from emotion_batch.training import import_h5, networks

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
LABELS = ",".join(EMOTIONS)
# The notebook's, but for where X and y are from, how long it trains, and the options for other networks.
NOTEBOOK = """
import sys
import numpy as np
from keras.layers import Dense, Dropout, LSTM
from keras.models import Sequential
from keras.utils import set_random_seed, to_categorical

set_random_seed(0)
X, y = np.load(sys.argv[1] + "/X.npy"), to_categorical(np.load(sys.argv[1] + "/y.npy"))
X = np.expand_dims(X, -1)
model = Sequential([
    LSTM(123,return_sequences=False, input_shape=(40,1)),
    Dense(64,activation='relu'),
    Dropout(0.2),
    Dense(32,activation='relu'),
    Dropout(0.2),
    Dense(7,activation='softmax')
])
model.compile(loss='categorical_crossentropy', optimizer='adam',metrics=['accuracy'])
model.fit(X,y, validation_split=0.2,epochs=20, batch_size = 64,shuffle=True,verbose=0)
model.save(sys.argv[1] + "/emotion_audio_model.h5")
model.save_weights(sys.argv[1] + "/new.weights.h5")
np.save(sys.argv[1] + "/expected.npy", model.predict(X[:100]))
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which plain Keras code has trained a network, saved it, and written what it predicts."""
    folder = tmp_path_factory.mktemp("notebook")
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(700) % 7)
    # As the means of MFCC are: the first, of the level, from -300 to 0, the others from -50 to 150.
    centres = rng.uniform(-50, 150, (7, 40))
    centres[:, 0] = rng.uniform(-300, 0, 7)
    np.save(folder / "X.npy", (centres[y] + rng.normal(0, 10, (700, 40))).astype(np.float32))
    np.save(folder / "y.npy", y)
    done = run_command(folder, program=("-c", NOTEBOOK), environment={"KERAS_BACKEND": "tensorflow"})
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def imported(notebook: Path) -> Finished:
    """The command, which has made ``bundle`` beside the notebook's file."""
    h5 = notebook / "emotion_audio_model.h5"
    done = call_command("import", h5, notebook / "bundle", "--labels", LABELS)
    assert done.code == 0, done.err
    return done


@pytest.mark.usefixtures("imported")
def test_probabilities_are_keras_own(notebook: Path) -> None:
    """What workers compute is within 1e-6 of what the notebook's `predict` gave, confident or not, and so are labels."""
    predictor = Predictor(open_bundle(Folder.of(notebook / "bundle")))
    expected = np.load(notebook / "expected.npy")
    found = predictor.predict(np.load(notebook / "X.npy")[:100])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert len(set(expected.argmax(axis=1))) == 7
    assert expected.max(axis=1).mean() > 0.5


def test_the_bundle_says_that_it_was_imported(notebook: Path, imported: Finished) -> None:
    """The card has the notebook's settings and no figures, and neither README nor command shows any."""
    folder = notebook / "bundle"
    card = require_safe(Folder.of(folder)).card
    assert {path.name for path in folder.iterdir()} == {"card.json", "README.md", "model.keras", "model.onnx"}
    assert (card.labels, card.metrics) == (EMOTIONS, {})
    assert (card.feature_settings, card.segments) == (FeatureSettings(), Segments())
    assert card.training["imported"] is True
    assert card.training["file"] == "emotion_audio_model.h5"
    assert card.training["executable_difference"] < 1e-5
    readme = (folder / "README.md").read_text()
    assert "Imported from `emotion_audio_model.h5` of Keras 3" in readme
    assert "accuracy" not in readme + imported.out
    assert "it was judged on nothing here" in imported.out


@pytest.mark.usefixtures("imported")
def test_a_recording_is_labelled_by_it(notebook: Path, speech: Path) -> None:
    """The imported bundle labels as any other does, its labels in the order that was stated."""
    (one,) = emotion_batch.label_recording(next(speech.rglob("*_sad.wav")), model=notebook / "bundle")
    assert tuple(one.probabilities) == EMOTIONS
    assert one.emotion == max(one.probabilities, key=one.probabilities.__getitem__)


def test_a_bundle_is_replaced_only_on_demand(notebook: Path, bundle: Path, tmp_path: Path) -> None:
    """A model that is there is kept unless --force is given; what replaces it leaves none of its figures behind."""
    there = tmp_path / "there"
    shutil.copytree(bundle, there)
    h5 = notebook / "emotion_audio_model.h5"
    with pytest.raises(UsageError, match="there is a bundle already; name another folder, or use --force"):
        emotion_batch.import_h5(h5, there, labels=EMOTIONS)
    emotion_batch.import_h5(h5, there, labels=EMOTIONS, force=True)
    assert {path.name for path in there.iterdir()} == {"card.json", "README.md", "model.keras", "model.onnx"}


def old_weights(weights: list[np.ndarray], write: Callable[[h5py.File], object] = lambda file: None) -> bytes:
    """Return weights as Keras 2's `save_weights` put them into a file: names are bytes, with a `:0` at their ends."""
    sink = io.BytesIO()
    layers = {
        "lstm_3": ["lstm_3/lstm_cell_3/kernel:0", "lstm_3/lstm_cell_3/recurrent_kernel:0", "lstm_3/lstm_cell_3/bias:0"],
        "dropout_2": [],
        **{f"dense_{number}": [f"dense_{number}/kernel:0", f"dense_{number}/bias:0"] for number in (9, 10, 11)},
    }
    left = iter(weights)
    with h5py.File(sink, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.attrs["keras_version"] = b"2.4.0"
        for layer, names in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group[name] = next(left)
        write(file)
    return sink.getvalue()


def test_files_of_older_keras_are_read(notebook: Path) -> None:
    """Weights are found by the file's attributes, whatever the layers are called and whether or not there is a config."""
    saved = import_h5.read_network((notebook / "emotion_audio_model.h5").read_bytes(), "file")
    assert saved.has_config
    old = import_h5.read_network(old_weights(saved.weights), "file")
    assert (old.keras_version, old.has_config) == ("2.4.0", False)
    for one, other in zip(saved.weights, old.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_layers_are_those_of_the_network_that_is_built() -> None:
    """What is asked of a file's config holds of the network that its weights are put into."""
    network = networks.build_seed(40, 7)
    active = [layer for layer in network.layers if type(layer).__name__ != "Dropout"]
    for layer, (name, settings) in zip(active, import_h5.LAYERS, strict=True):
        config = layer.get_config()
        assert type(layer).__name__ == name
        assert {key: config[key] for key in settings if key in config} == {
            key: value for key, value in settings.items() if key in config
        }


def changed(notebook: Path, write: Callable[[h5py.File], object]) -> bytes:
    """Return the notebook's file after something was done to it."""
    sink = io.BytesIO((notebook / "emotion_audio_model.h5").read_bytes())
    with h5py.File(sink, "r+") as file:
        write(file)
    return sink.getvalue()


def set_config(change: Callable[[dict[str, Any]], object]) -> Callable[[h5py.File], None]:
    def write(file: h5py.File) -> None:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)

    return write


def set_layer(number: int, **settings: object) -> Callable[[h5py.File], None]:
    return set_config(lambda config: config["config"]["layers"][number]["config"].update(settings))


LAMBDA = {"class_name": "Lambda", "config": {"function": ["4wEAAAA=", None, None], "function_type": "lambda"}}


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        pytest.param(
            set_config(lambda config: config["config"]["layers"].insert(1, LAMBDA)),
            "it is a Sequential of Lambda, LSTM",
            id="code",
        ),
        pytest.param(
            set_config(lambda config: config["config"]["layers"].pop()), "it is a Sequential of LSTM, Dense", id="short"
        ),
        pytest.param(
            set_config(lambda config: config.update(class_name="Functional")), "it is a Functional", id="kind"
        ),
        pytest.param(
            set_config(lambda config: config.clear()), "its model_config is not as Keras writes it", id="no config"
        ),
        pytest.param(
            set_layer(1, recurrent_activation="hard_sigmoid"),
            "recurrent_activation of a LSTM layer is 'hard_sigmoid', and 'sigmoid' in the notebook's network",
            id="recurrent_activation",
        ),
        pytest.param(
            set_layer(1, go_backwards=True), "go_backwards of a LSTM layer is True, and False in", id="backwards"
        ),
        pytest.param(
            set_layer(2, activation="tanh"), "activation of a Dense layer is 'tanh', and 'relu' in", id="activation"
        ),
        pytest.param(
            set_layer(6, activation={"class_name": "function", "config": "system", "module": "os"}),
            "activation of a Dense layer is {'class_name': 'function'",
            id="function",
        ),
        pytest.param(
            set_layer(0, batch_shape=[None, 13, 1]),
            "and [None, 40, 1] in the notebook's network",
            id="input",
        ),
        pytest.param(set_layer(0, batch_shape=40), "its input is 40, and [None, 40, 1] in", id="no input"),
        pytest.param(
            lambda file: file.update({"far": h5py.ExternalLink("/etc/passwd", "/")}), "a link to elsewhere", id="link"
        ),
        pytest.param(lambda file: file.pop("model_weights"), "it has no weights by layer", id="no weights"),
        pytest.param(
            lambda file: file["model_weights/dense"].attrs.update({"weight_names": [b"nothing"]}),
            "it has no weights by layer",
            id="names",
        ),
        pytest.param(
            lambda file: file["model_weights"].attrs.update({"layer_names": [b"lstm"]}),
            "their shapes are [1, 492], [123, 492], [492]; only that network",
            id="shapes",
        ),
        pytest.param(
            lambda file: file["model_weights/dense/sequential/dense/bias"].write_direct(np.full(64, np.nan, "f4")),
            "some of its weights are not finite",
            id="not finite",
        ),
    ],
)
def test_another_network_is_refused(
    notebook: Path, tmp_path: Path, write: Callable[[h5py.File], object], sentence: str
) -> None:
    """A file whose network computes something else, holds code or reaches out is one sentence, and no bundle is made."""
    h5 = tmp_path / "other.h5"
    h5.write_bytes(changed(notebook, write))
    with pytest.raises(UsageError) as caught:
        emotion_batch.import_h5(h5, tmp_path / "bundle", labels=EMOTIONS)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"file {h5.name}: ")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (EMOTIONS, []),
        (("Angry", *EMOTIONS[1:]), []),
        ((*EMOTIONS[:5], "sad", "ps"), ["sorts its labels, angry, disgust, fear, happy, neutral, ps, sad, but"]),
        (("Sad", *EMOTIONS[1:]), ["'Sad' and 'sad' differ only in upper and lower case"]),
        (("sad", *EMOTIONS[1:6], "SAD"), ["sorts its labels, SAD, disgust", "'sad' and 'SAD' differ only"]),
        ((*EMOTIONS[:6], " su\u0308ss "), []),
    ],
)
def test_labels_that_the_notebook_would_not_have_given_are_told(
    notebook: Path, tmp_path: Path, labels: tuple[str, ...], said: list[str]
) -> None:
    """Another order than LabelEncoder's, and a label twice but for its case, are a note; the bundle is made."""
    notes: list[str] = []
    card = emotion_batch.import_h5(
        notebook / "emotion_audio_model.h5", tmp_path / "bundle", labels=labels, watcher=Watcher(on_note=notes.append)
    )
    assert len(notes) == len(said)
    assert all(words in note for words, note in zip(said, notes, strict=True))
    assert card.labels == tuple(unicodedata.normalize("NFC", label.strip()) for label in labels)


def test_the_command_tells_of_another_order(notebook: Path, tmp_path: Path) -> None:
    """It is a line on stderr; the exit code stays 0, and what is printed stays the card."""
    labels = ",".join([*EMOTIONS[1:], "angry"])
    done = call_command(
        "import", notebook / "emotion_audio_model.h5", tmp_path / "bundle", "--labels", labels, "--json"
    )
    assert done.code == 0, done.err
    assert done.result["labels"] == labels.split(",")
    assert done.err.startswith("labels: the notebook's LabelEncoder sorts its labels, angry, disgust")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        pytest.param(
            EMOTIONS[:6], "labels: the network in emotion_audio_model.h5 has 7 outputs, and 6 labels were named"
        ),
        pytest.param(
            (*EMOTIONS[:6], "angry"), "labels: name at least two words, each once; these are 'angry', 'disgust'"
        ),
        pytest.param((*EMOTIONS[:6], ""), "labels: name at least two words, each once"),
        pytest.param((*EMOTIONS[:6], " angry"), "labels: name at least two words, each once"),
        pytest.param((), "labels: name at least two words, each once; these are none"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    notebook: Path, tmp_path: Path, labels: tuple[str, ...], sentence: str
) -> None:
    """One label too few or twice would name every output after it wrongly."""
    with pytest.raises(UsageError) as caught:
        emotion_batch.import_h5(notebook / "emotion_audio_model.h5", tmp_path / "bundle", labels=labels)
    assert sentence in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_other_files_are_refused_by_the_command(notebook: Path, tmp_path: Path) -> None:
    """What is no HDF5, another of Keras's formats, or not there at all, is one sentence with exit code 2."""
    (tmp_path / "text.h5").write_text("no network")
    for file, sentence in (
        (
            tmp_path / "text.h5",
            "it cannot be read (OSError)",
        ),
        (notebook / "new.weights.h5", "it has no weights by layer, as Keras saves an .h5"),
        (tmp_path / "missing.h5", "missing.h5: it does not exist"),
    ):
        done = call_command("import", file, tmp_path / "bundle", "--labels", LABELS)
        assert (done.code, done.out) == (2, "")
        assert sentence in done.err
        assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "bundle").exists()
