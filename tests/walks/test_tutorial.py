"""The notebook `docs/tutorial.ipynb`: it runs, and the output that it holds is the output of this code."""

from __future__ import annotations

import importlib.util
import json
import os
import re

import nbclient
import nbformat
import pytest
from support.commands import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """Run the notebook in an empty folder, with a home of its own, in half a minute; with WRITE_TUTORIAL=1, keep its output."""
    folder = tmp_path_factory.mktemp("tutorial")
    home = folder / "home"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = {
        **os.environ,
        "HOME": os.fspath(home),
        "IPYTHONDIR": os.fspath(home / "ipython"),
        "JUPYTER_RUNTIME_DIR": os.fspath(home / "runtime"),
        "MPLCONFIGDIR": os.fspath(home / "matplotlib"),
        "PYTHONPATH": os.fspath(ROOT),
    }
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": os.fspath(folder)}}
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        # Times, and the version of Python, are those of this run.
        cell.metadata.pop("execution", None)
    notebook.metadata.language_info = {"name": "python"}
    if os.environ.get("WRITE_TUTORIAL"):
        nbformat.write(notebook, NOTEBOOK)
    assert (folder / "tutorial" / "review.html").stat().st_size > 100_000
    return notebook


def texts(cell: nbformat.NotebookNode) -> list[str]:
    """Return what a cell printed, and which other kinds of output it has."""
    return [one.get("text", "") or ",".join(sorted(one.data)) for one in cell.get("outputs", [])]


def test_the_output_in_the_notebook_is_that_of_this_code(executed: nbformat.NotebookNode) -> None:
    """Each cell prints what the notebook holds, and the picture is there; run with WRITE_TUTORIAL=1 to write it anew."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert [texts(cell) for cell in stored.cells] == [texts(cell) for cell in executed.cells]
    assert [cell.source for cell in stored.cells] == [cell.source for cell in executed.cells]
    pictures = [one for cell in stored.cells for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]
    assert len(pictures) == 1


def test_the_notebook_names_no_machine() -> None:
    """No output has an absolute path, an error or a warning, and every code cell was executed, in order."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [one for cell in code for one in cell.outputs]
    assert {one.output_type for one in outputs} <= {"stream", "display_data"}
    assert {one.name for one in outputs if one.output_type == "stream"} == {"stdout"}
    assert not re.search(r"(^|[\s'\"])/(home|root|tmp|work|usr)\b", "\n".join(one.get("text", "") for one in outputs))
    assert stored.metadata.language_info == {"name": "python"}


def test_the_site_shows_the_notebook_with_its_output() -> None:
    """The hook gives a page with each text, code and output of the notebook, in order, and the picture as a file."""
    specification = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    notebook = json.loads(NOTEBOOK.read_text())
    page, pictures = hook.to_markdown(notebook, "tutorial")
    assert list(pictures) == ["tutorial-1.png"]
    assert pictures["tutorial-1.png"].startswith(b"\x89PNG")
    place = 0
    for cell in notebook["cells"]:
        for text in (
            "".join(cell["source"]),
            *("".join(one.get("text", "")).rstrip() for one in cell.get("outputs", [])),
        ):
            place = page.index(text, place)
    assert "(tutorial-1.png)" in page and "[Download the notebook](tutorial.ipynb)" in page
    assert page.count("```") % 2 == 0
