"""The notebooks in examples/: stored with small outputs, run without an error, and shown on the site."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from notebook_pages import notebook_markdown

import sdesamplers as sds

ROOT = Path(sds.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LARGEST = 300_000


def load(file: Path) -> list[dict[str, Any]]:
    """The cells of a notebook."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    assert isinstance(cells, list)
    return cells


def test_there_are_three() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["choose_a_sampler", "own_network", "write_a_sampler"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_outputs_are_stored(file: Path) -> None:
    assert file.stat().st_size < LARGEST
    code = [cell for cell in load(file) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]  # from the top, all of them
    outputs = [output for cell in code for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)  # no warnings
    assert any("data:image/png" in str(output) for output in outputs) or "own" in file.stem


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_cell_is_on_its_page(file: Path) -> None:
    text = notebook_markdown(file.read_text(encoding="utf-8"))
    for cell in load(file):
        assert "".join(cell["source"]) in text
    assert text.count('<div class="output">') == sum(len(cell.get("outputs", ())) for cell in load(file))
    blocks = text.split("\n\n")
    assert all(block.endswith("</div>") for block in blocks if block.startswith('<div class="output">'))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs pip install '.[dev]'")
    nbclient = pytest.importorskip("nbclient", reason="needs pip install '.[dev]'")
    pytest.importorskip("ipykernel", reason="needs pip install '.[dev]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    stored = nbformat.read(file, as_version=4)
    run = nbformat.read(file, as_version=4)
    nbclient.NotebookClient(run, timeout=600, kernel_name="python3").execute()
    for before, now in zip(stored.cells, run.cells, strict=True):
        assert kinds_of(before) == kinds_of(now)


def kinds_of(cell: Any) -> list[list[str]]:
    """The types of a cell's outputs, without messages on standard error: tqdm warns if there are no widgets."""
    outputs = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
    return [sorted(output.get("data", {})) for output in outputs]
