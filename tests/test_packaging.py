"""What is shipped: the wheel's contents, and a wheel installed away from the checkout that lists and samples."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_registry_at_the_top_is_the_shipped_one():
    top, shipped = ROOT / "registry.yaml", ROOT / "sdesamplers" / "registry.yaml"
    assert top.is_symlink()
    assert top.resolve() == shipped.resolve()
    assert "fashion-mnist" in yaml.safe_load(top.read_text())["models"]


def test_every_plugin_file_is_declared_as_an_entry_point():
    text = (ROOT / "pyproject.toml").read_text()
    table = re.search(r"^\[project\.entry-points\.sdesamplers\]\n(.*?)\n\n", text, re.M | re.S).group(1)
    declared = dict(re.findall(r'^"?([\w-]+)"? = "([\w.]+)"$', table, re.M))
    with_hooks = {f.stem for f in (ROOT / "plugins").glob("*.py") if "@hookimpl" in f.read_text()}
    assert with_hooks
    assert set(declared.values()) == {f"sdesamplers_plugins.{name}" for name in with_hooks}
    installed = {e.value for e in entry_points(group="sdesamplers") if e.dist and e.dist.name == "sdesamplers"}
    assert installed == set(declared.values()), "pyproject.toml has changed: install again (pip install -e .)"


def test_every_package_folder_is_shipped():
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(
        re.findall(
            r'"([\w.]+)"', re.search(r"^packages = \[(.*?)\]", text[text.index("[tool.setup") :], re.M | re.S).group(1)
        )
    )
    found = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "sdesamplers").rglob("__init__.py")}
    assert listed == found | {"sdesamplers_plugins"}


def run(*command, folder):
    """A command outside the checkout, which must succeed; what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("build")
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "out", "tests")
    copy = shutil.copytree(ROOT, folder / "copy", symlinks=True, ignore=skip)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", copy]
    run(sys.executable, "-m", "pip", *words, folder=folder)
    (made,) = (folder / "dist").glob("sdesamplers-*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_code_plugins_catalogue_models_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {
        f.relative_to(ROOT).as_posix()
        for f in (ROOT / "sdesamplers").rglob("*")
        if f.is_file() and "__pycache__" not in f.parts
    }
    plugins = {f"sdesamplers_plugins/{f.name}" for f in (ROOT / "plugins").iterdir() if f.is_file()}
    assert "sdesamplers/registry.yaml" in here
    assert "sdesamplers_plugins/euler.py" in plugins
    assert here | plugins <= names
    assert {"sdesamplers/py.typed", "sdesamplers_plugins/py.typed"} <= names
    assert any(n.startswith("sdesamplers/assets/fashion-mnist/unet/") and n.endswith(".safetensors") for n in names)
    assert any(n.startswith("sdesamplers/assets/fashion-mnist-metrics/") for n in names)
    rest = {n for n in names if not n.startswith(("sdesamplers/", "sdesamplers_plugins/"))}
    assert all(".dist-info/" in n for n in rest), rest
    assert any(n.endswith("licenses/LICENSE") for n in rest)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh venv with the wheel. Its dependencies come by symbolic links from the running environment: all that is
    there but sdesamplers itself, whose editable install must not answer in the wheel's place.
    """
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    base = {"base": str(home / "venv"), "platbase": str(home / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", base))
    commands = Path(sysconfig.get_path("scripts", "venv", base))
    links = home / "dependencies"
    links.mkdir()
    for folder in [Path(p) for p in site.getsitepackages() if Path(p).is_dir()]:
        for item in folder.iterdir():
            ours = item.name.lower().startswith(("sdesamplers", "__editable__", "__pycache__"))
            if not ours and item.suffix != ".pth" and not (links / item.name).is_symlink():
                (links / item.name).symlink_to(item)
    (packages / "dependencies.pth").write_text(f"{links}\n")
    python = commands / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, folder=home)
    return python, commands / "sdesamplers", packages, home


@pytest.mark.slow
def test_the_installed_wheel_lists_and_samples_outside_the_checkout(installed):
    python, command, packages, home = installed
    where = run(
        python, "-c", "import sdesamplers as s, sdesamplers_plugins as p; print(s.__file__, p.__file__)", folder=home
    )
    for file in where.split():
        assert Path(file).is_relative_to(packages)
    listing = json.loads(run(command, "list", "--json", folder=home))
    assert {"euler", "heun", "rk45", "ddim", "ddpm", "euler-maruyama"} <= {s["name"] for s in listing["samplers"]}
    assert {"linspace", "karras"} <= {s["name"] for s in listing["spacings"]}
    assert "fashion-mnist" in json.loads(run(command, "models", "--json", folder=home))
    words = ["--sampler", "euler", "--steps", 2, "--num-samples", 4, "--out", "pictures", "--quiet"]
    said = run(command, "sample", "fashion-mnist", *words, folder=home)
    assert "2 NFE" in said
    picture = np.asarray(Image.open(home / "pictures" / "grid.png").convert("RGB"))
    # Two by two samples of 28 pixels, magnified three times, with gaps of 2; and the labels around them.
    sheet = 2 * 86 + 2
    assert sheet < picture.shape[0] < 2 * sheet
    assert sheet <= picture.shape[1] < 3 * sheet
    assert len(np.unique(picture)) > 2


@pytest.mark.slow
def test_the_doctor_finds_nothing_broken_in_the_installed_wheel(installed):
    _, command, _, home = installed
    assert json.loads(run(command, "doctor", "--json", folder=home))  # exit code 1 where something is broken
