"""Tests of prediction with a bundle that the command trained."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import open_bundle, sha256
from emotion_batch.inference.predict import Predictor, load_predictor
from emotion_batch.storage.folder import Folder


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return load_predictor(open_bundle(Folder.of(bundle)))


def test_probabilities_do_not_depend_on_the_batch(predictor: Predictor, vectors: np.ndarray) -> None:
    """Rows sum to 1, one by one they are as in a batch, and no row is lost where batches end."""
    many = np.tile(vectors, (13, 1))[:1_030]
    batched = predictor.predict(many)
    assert batched.shape == (1_030, 7)
    np.testing.assert_allclose(batched.sum(axis=1), 1, atol=1e-5)
    alone = np.concatenate([predictor.predict(row[np.newaxis]) for row in many[:20]])
    np.testing.assert_array_equal(batched[:20], alone)
    np.testing.assert_array_equal(batched[-2:], predictor.predict(many[-2:]))
    assert predictor.predict(vectors[:0]).shape == (0, 7)


def test_a_process_loads_a_model_once(bundle: Path) -> None:
    """Threads that ask at the same time get one predictor."""
    opened = open_bundle(Folder.of(bundle))
    found: list[Predictor] = []
    threads = [threading.Thread(target=lambda: found.append(load_predictor(opened))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1


def test_a_graph_that_was_replaced_is_not_executed(bundle: Path, tmp_path: Path) -> None:
    """A worker executes only the graph that the driver has looked at, even if the card beside it names another one."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    opened = open_bundle(Folder.of(folder))
    graph = (folder / "model.onnx").read_bytes() + b"\x32\x00"
    (folder / "model.onnx").write_bytes(graph)
    card = replace(opened.card, files={**opened.card.files, "model.onnx": sha256(graph)})
    (folder / "card.json").write_bytes(card.to_json())
    with pytest.raises(UsageError, match=r"model\.onnx was replaced during the run; run the same command again"):
        load_predictor(opened)


def test_a_label_worker_is_small_and_without_tensorflow(bundle: Path, tmp_path: Path) -> None:
    """A process that predicts imports no tensorflow, and with Dask and the kernel weighs less than 300 MB."""
    program = f"""
import sys
import distributed.nanny
import numpy as np
from emotion_batch.worker import job; from emotion_batch.features import mfcc
from emotion_batch.inference.bundle import open_bundle
from emotion_batch.inference.predict import load_predictor
from emotion_batch.settings import FeatureSettings
from emotion_batch.storage.folder import Folder
mfcc.mean_mfcc(np.ones(66_150, np.float32), FeatureSettings())
load_predictor(open_bundle(Folder.of({str(bundle)!r}))).predict(np.ones((1_024, 40), np.float32))
assert not {{"tensorflow", "keras", "librosa", "onnx", "h5py"}} & set(sys.modules)
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("Pss:")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout) < 300_000
