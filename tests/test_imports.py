"""The import contract of pyproject.toml holds, and a circle or an import that runs back up fails it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLANTED = {
    "upward": ("sdesamplers/path/points.py", "from ..registry.plugin import Sampler\n"),
    "upward, late": ("sdesamplers/models/base.py", "def late():\n    from ..sampling.calls import sample\n"),
    "circle": ("sdesamplers/processes/scalars.py", "from .sde import SDE\n"),
    "circle, late": ("sdesamplers/registry/options.py", "def late():\n    from .registry import Registry\n"),
    "circle of folders": ("sdesamplers/ode/encoding.py", "from ..scheduler.scheduler import Scheduler\n"),
}


def contract(root: Path) -> subprocess.CompletedProcess[str]:
    """The contract, checked on the package in a folder."""
    command = [Path(sys.executable).with_name("lint-imports"), "--config", root / "pyproject.toml", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's sources, to spoil."""
    folder = tmp_path_factory.mktemp("contract")
    ignored = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(ROOT / "sdesamplers", folder / "sdesamplers", ignore=ignored)
    shutil.copytree(ROOT / "plugins", folder / "sdesamplers_plugins", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_imports_run_one_way(copy: Path) -> None:
    done = contract(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_import_fails_the_contract(copy: Path, kind: str) -> None:
    name, text = PLANTED[kind]
    file = copy / name
    whole = file.read_text(encoding="utf-8")
    file.write_text(f"{whole}\n\n{text}", encoding="utf-8")
    try:
        done = contract(copy)
    finally:
        file.write_text(whole, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_only_two_folders_know_diffusers() -> None:
    """`pretrained` and `scheduler`; what diagnoses an installation and draws training steps may name it too."""
    knowing = set()
    for file in (ROOT / "sdesamplers").rglob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        if any(line.strip().startswith(("import diffusers", "from diffusers")) for line in lines):
            knowing.add(file.relative_to(ROOT / "sdesamplers").parts[0])
    assert knowing <= {"pretrained", "scheduler", "cli"}


LISTED = [init for init in sorted((ROOT / "sdesamplers").rglob("__init__.py")) if ".py " in init.read_text()]


@pytest.mark.parametrize("init", LISTED, ids=lambda init: init.parent.name)
def test_a_folders_list_of_its_files_is_complete(init: Path) -> None:
    named = set(re.findall(r"\b(\w+\.py)\b", init.read_text()))
    assert named == {file.name for file in init.parent.glob("*.py") if file != init}
