"""The types of `sample`: the stub is current, and type checkers find what is wrong in a program."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import make_stub
import pytest

import sdesamplers as sds

ROOT = Path(sds.__file__).parents[1]
PROGRAM = """
from typing import Any
import numpy as np
import sdesamplers as sds

model = sds.load("fashion-mnist")
sds.sample(model, "ddim", steps=4, eta=0.3)
sds.sample(model, "ddim", steps=4, eta="x")  # wrong
sds.sample(model, "ddim", steps="4")  # wrong
sds.sample(model, "abm", nfe=8, mode="pec")
sds.sample(model, "abm", nfe=8, mode="pex")  # wrong
sds.sample(model, "heun", nfe=7, num_samples=2)
sds.sample(model)
sds.sample("fashion-mnist", order=3)
sds.sample(model, "a-sampler-of-a-plugin", strength=3)
sds.sample(model, "restart", intervals=np.ones((1, 4)), steps=9)
sds.sample(model, sds.samplers()["ddim"], eta=0.1, steps=4)
name: str = "ddim"
options: dict[str, Any] = {"eta": 0.1}
result = sds.sample(model, name, **options)
sds.sample(model, result.recipe, seed=4)
number: int = result.nfe
text: str = result.nfe  # wrong
sds.sampler("a-name", order=None, evaluations=1)
sds.sampler("a-name")  # wrong
sds.sampler("a-name", order="2")  # wrong
"""
SETTINGS = """
[mypy]
follow_imports = silent
[mypy-torch.*,numpy.*,diffusers.*,scipy.*]
follow_imports = skip
"""
"""Large packages are not followed, which halves the time; pyright follows them."""

WRONG = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")]


def test_the_stub_is_current() -> None:
    assert make_stub.FILE.read_text(encoding="utf-8") == make_stub.stub(), "run python docs/make_stub.py"


def test_the_stub_has_every_sampler_and_option() -> None:
    text = make_stub.FILE.read_text(encoding="utf-8")
    for name, sampler in sds.samplers().items():
        if sampler.is_built_in:
            assert f'"{name}"' in text
            assert all(re.search(rf"^    {option}: ", text, re.M) for option in sampler.options)
    overload = text[text.index('sampler: Literal["ddim"') :].partition("@overload")[0]
    assert "    eta: float = 0.0,\n" in overload


def test_the_typed_function_is_the_function() -> None:
    from sdesamplers.sampling.calls import sample

    assert sds.sample is sample
    assert "eta" not in inspect.signature(sds.sample).parameters


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program outside of the repository."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return file


@pytest.mark.slow
def test_mypy_finds_the_errors_of_a_program(program: Path) -> None:
    settings = program.with_name("mypy.ini")
    settings.write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", f"--config-file={settings}", "--hide-error-context"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    folder = program.parent
    done = subprocess.run(
        [*command, str(program)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    found = {int(line) for line in re.findall(r"^program\.py:(\d+): error:", done.stdout, re.M)}
    assert sorted(found) == WRONG, done.stdout[-3000:] + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("basedpyright") is None, reason="needs basedpyright, pyright with its own Node")
def test_pyright_finds_the_errors_of_a_program(program: Path) -> None:
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)], "include": [program.name]}
    (program.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, timeout=600)
    data = json.loads(done.stdout)
    found = {one["range"]["start"]["line"] + 1 for one in data["generalDiagnostics"] if one["severity"] == "error"}
    assert sorted(found) == WRONG, done.stdout
