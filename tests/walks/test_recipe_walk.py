"""A third recipe, of an installed package, from recordings to labels: nothing in emotion_batch knows of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import ROOT, Finished, call_command, run_command

import emotion_batch
from emotion_batch.errors import UsageError
from emotion_batch.features import recipes
from emotion_batch.libraries import find_plugin

INSTALLED = ROOT / "tests" / "support" / "installed"
NAME = "mfcc-change"


def run_installed(*arguments: object) -> Finished:
    """Run a command where the package is installed: workers inherit what the command can import."""
    return run_command(*arguments, environment={"PYTHONPATH": str(INSTALLED)})


@pytest.fixture(scope="module")
def made(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the third recipe, a bundle of its network, and labels both ways, all on local clusters."""
    folder = tmp_path_factory.mktemp("third")
    for command in (
        ("extract", speech, folder / "features", "--recipe", NAME, "--workers", "1"),
        ("verify", folder / "features", "--deep"),
        ("train", folder / "features", folder / "bundle"),
        ("label", folder / "features", folder / "labels", "--model", folder / "bundle", "--workers", "1"),
        ("label", speech, folder / "straight", "--model", folder / "bundle", "--workers", "1"),
        ("verify", folder / "straight", "--deep"),
    ):
        done = run_installed(*command)
        assert done.code == 0, (command[0], done.err)
    return folder


def test_a_third_recipe_goes_all_the_way(made: Path) -> None:
    """Its column, its network, its measures and its labels are its own, and the same by way of features or straight."""
    features = pq.read_table(made / "features").to_pandas()
    ok = features[features["status"] == "ok"]
    assert len(ok) > 80
    assert {len(row) for row in ok["change"]} == {12}
    # The notebook's zeroth coefficient is the level, some hundreds below 0: a change of it is not.
    assert np.abs(np.stack(ok["change"])[:, 0].mean()) < 100
    card = json.loads((made / "bundle" / "card.json").read_text())
    assert card["feature_settings"]["recipe"] == NAME
    assert card["architecture"] == "change-dense"
    assert (card["training"]["epochs"], card["training"]["batch_size"]) == (2, 16)
    assert "change of 12 MFCC within" in (made / "bundle" / "README.md").read_text()
    labels, straight = (pq.read_table(made / name).to_pandas().sort_values("file") for name in ("labels", "straight"))
    assert (labels["status"] == "ok").sum() == len(ok)
    assert labels["emotion"].tolist() == straight["emotion"].tolist()
    # Its measures do not tell what is speech.
    assert labels["is_speech"].isna().all()
    if card["domain"]:
        assert len(card["domain"]["centres"][0]) == 12


def test_a_recipe_that_is_not_installed_is_named(made: Path, speech: Path, tmp_path: Path) -> None:
    """Without the package, its tables and bundles are refused in one sentence; so is its option, and its package elsewhere."""
    refused = call_command("label", made / "features", tmp_path / "labels", "--model", made / "bundle")
    assert refused.code == 2
    assert "recipe must be 'mfcc-mean' or 'voices': 'mfcc-change'" in refused.err
    assert "install the package that has this recipe" in refused.err
    assert len(refused.err.splitlines()) == 1
    unknown = call_command("extract", made, tmp_path / "features", "--recipe", NAME)
    assert unknown.code == 2
    assert "--recipe must be seed or voices, or a recipe of an installed package: mfcc-change" in unknown.err
    differing = run_installed("extract", speech, made / "features", "--recipe", "seed")
    assert differing.code == 2
    assert "was made with --recipe mfcc-change, and this call has --recipe seed" in differing.err


def test_no_recipe_comes_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that lies in the current directory registers nothing, also if Python would import from there."""
    shutil.copytree(INSTALLED, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(UsageError, match="recipe must be 'mfcc-mean' or 'voices': 'mfcc-change'"):
        recipes.read_settings({"recipe": NAME})
    assert not any(name.startswith("emotion_batch_change") for name in sys.modules)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        pytest.param("RECIPE = 3", "must be of type Recipe: int", id="another object"),
        pytest.param(
            "raise RuntimeError('key=secret')", "cannot be imported (RuntimeError)", id="an import that fails"
        ),
        pytest.param(
            "from emotion_batch.features.mfcc import RECIPE", "its package calls it 'mfcc-mean'", id="another name"
        ),
    ],
)
def test_a_package_that_registers_nonsense_is_named(
    code: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which entry point is wrong and in what, without what the package's own error holds."""
    name = f"bad-{abs(hash(sentence))}"
    (tmp_path / "bad-1.dist-info").mkdir()
    (tmp_path / "bad-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    module = name.replace("-", "_")
    (tmp_path / "bad-1.dist-info" / "entry_points.txt").write_text(
        f"[emotion_batch.recipes]\n{name} = {module}:RECIPE\n"
    )
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        recipes.find_option(name)
    assert sentence in str(caught.value)
    assert name in str(caught.value)
    assert "secret" not in str(caught.value)


def test_built_in_recipes_look_at_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a name that is not built in costs a look at what is installed."""

    def refuse(*_: object) -> object:
        raise AssertionError("a package was looked at")

    monkeypatch.setattr("emotion_batch.libraries._find_point", refuse)
    for settings in (emotion_batch.FeatureSettings(), emotion_batch.VoicesSettings()):
        assert recipes.read_settings(settings.to_dict()) == settings
        assert recipes.find_option(recipes.recipe_of(settings).option).settings is type(settings)
    with pytest.raises(AssertionError, match="looked at"):
        find_plugin("emotion_batch.recipes", "another", pa.Table)
