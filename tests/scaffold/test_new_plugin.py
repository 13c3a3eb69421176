"""`sdesamplers new-plugin`: names, files, linters, types; and a new plugin's own tests in a fresh venv."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.registry.registry import Registry
from sdesamplers.scaffold.naming import LONGEST, plugin_name
from sdesamplers.scaffold.packages import PARTS, contents, new_plugin
from sdesamplers.testing import items_of

ALL = tuple(PARTS)
LONG = "a" * LONGEST


def tool(name: str, *arguments: Any, folder: Path, **environment: str) -> None:
    """Run a tool of the running environment, which must succeed; skip the test if it is not installed."""
    command = Path(sys.executable).with_name(name)
    if not command.exists():
        pytest.skip(f"{name} is not installed")
    checkout = Path(sds.__file__).parents[1]  # type checkers do not see an editable installation
    paths = [folder, checkout, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths))), **environment}
    done = subprocess.run([command, *map(str, arguments)], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("two-stage", "sdesamplers_two_stage"),
        ("sdesamplers-two-stage", "sdesamplers_two_stage"),
        ("a1", "sdesamplers_a1"),
    ],
)
def test_names_follow_from_one(text: str, module: str) -> None:
    name = plugin_name(text)
    assert name.module == module
    assert name.distribution == module.replace("_", "-")
    assert name.function("spacing") == f"{module.removeprefix('sdesamplers_')}_spacing"


def test_names_of_items() -> None:
    name = plugin_name("two-stage")
    assert [name.item(part) for part in ALL] == [
        "two-stage",
        "two-stage-spacing",
        "two-stage-noise",
        "two-stage-process",
        "two-stage-model",
    ]
    assert name.class_name("process") == "TwoStageProcess"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("My Plugin", "did you mean 'my-plugin'"),
        ("two_stage", "did you mean 'two-stage'"),
        ("TwoStage", "did you mean 'two-stage'"),
        ("2-stage", "did you mean 'stage'"),
        ("../escape", "did you mean 'escape'"),
        ("", "not ''"),
        ("é", "lower-case letters"),
        (LONG + "a", "at most 30"),
        ("class", "choose another, such as 'my-class'"),
        ("match", "choose another"),
        ("sds", "choose another"),
        ("sdesamplers", "choose another"),
        ("plugins", "choose another, such as 'my-plugins'"),  # sdesamplers_plugins has the built-in samplers
        ("float", "choose another"),  # the type of an option of the template
    ],
)
def test_bad_names_are_refused_with_a_good_one(text: str, message: str) -> None:
    with pytest.raises(sds.UsageError, match=re.escape(message)):
        plugin_name(text)


def test_a_name_that_is_registered_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["new-plugin", "heun", "--out", str(tmp_path)])
    assert "'heun' is a registered sampler" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_the_command_creates_what_is_chosen(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["new-plugin", "mine", "--spacing", "--noise", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "sdesamplers-mine"
    assert "sdesamplers check mine-spacing mine-noise --explain" in done.output
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {"sdesamplers_mine/spacing.py", "tests/test_noise.py", ".github/workflows/tests.yml"} <= files
    assert not any("sampler.py" in file or "model" in file for file in files)
    assert list(tmp_path.iterdir()) == [folder]
    before = (folder / "README.md").read_text()
    done = CliRunner().invoke(cli, ["new-plugin", "mine", "--out", str(tmp_path)])
    assert "exists already" in str(done.exception)
    assert (folder / "README.md").read_text() == before


def test_nothing_is_left_if_a_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refused)
    with pytest.raises(sds.errors.SdesamplersError, match="No space left on device"):
        new_plugin(plugin_name("mine"), ["sampler"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_to_nowhere_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "sdesamplers-mine").symlink_to(tmp_path / "nowhere")
    with pytest.raises(sds.UsageError, match="exists already"):
        new_plugin(plugin_name("mine"), ["sampler"], tmp_path)


def test_nothing_is_left_to_fill() -> None:
    for path, text in contents(plugin_name("mine"), ALL).items():
        assert "$" not in text.replace("${{ matrix.python }}", ""), path
        assert text.endswith("\n") or not text, path
    workflow = yaml.safe_load(contents(plugin_name("mine"), ALL)[".github/workflows/tests.yml"])
    runs = [step.get("run", "") for step in workflow["jobs"]["tests"]["steps"]]
    assert any("sdesamplers check mine mine-spacing mine-noise mine-process mine-model" in run for run in runs)


@pytest.mark.parametrize("name", ["a", LONG])
def test_a_new_plugin_passes_the_linter_and_the_formatter(tmp_path: Path, name: str) -> None:
    folder = new_plugin(plugin_name(name), ALL, tmp_path)
    tool("ruff", "check", "--no-cache", ".", folder=folder)
    tool("ruff", "format", "--no-cache", "--check", ".", folder=folder)


@pytest.mark.slow
def test_a_new_plugin_passes_mypy(tmp_path: Path) -> None:
    folder = new_plugin(plugin_name("mine"), ALL, tmp_path)
    tool("mypy", "--cache-dir", os.devnull, folder=folder)


def test_a_new_plugin_registers_one_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_plugin(plugin_name("one-of-each"), ALL, tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    registry = Registry(plugins=[f"sdesamplers_one_of_each.{part}" for part in ALL])
    assert registry.samplers["one-of-each"].options["node"].default == 2 / 3
    assert "one-of-each-spacing" in registry.spacings
    assert registry.noises["one-of-each-noise"].limits
    assert isinstance(registry.sdes["one-of-each-process"](), sds.GaussianProcess)
    assert registry.load_model("one-of-each-model", {}).shape == (2,)
    assert registry.load_model("another", {}) is None


def test_items_that_are_added_later_are_tested_too(tmp_path: Path) -> None:
    """A second item in each hook's list, and a new module, appear among the tests; no test file is edited."""
    folder = new_plugin(plugin_name("growing"), ALL, tmp_path)
    module = folder / "sdesamplers_growing"
    for part, listed, more in (
        ("sampler", "[growing]", '[growing, sds.sampler("added-sampler", order=2)(growing.function)]'),
        ("spacing", "[growing_spacing]", '[growing_spacing, sds.spacing("added-spacing")(growing_spacing.function)]'),
        ("noise", "[growing_noise]", '[growing_noise, sds.noise_source("added-noise")(growing_noise.function)]'),
        ("process", "GrowingProcess}", 'GrowingProcess, "added-process": GrowingProcess}'),
        ("model", "growing_model,\n}", 'growing_model,\n    "added-model": growing_model,\n}'),
    ):
        file = module / f"{part}.py"
        text = file.read_text()
        assert text.count(listed) == 1
        file.write_text(text.replace(listed, more))
    later = "import sdesamplers as sds\n\n\n@sds.hookimpl\ndef sdesamplers_sdes():\n    return {'later': sds.VP}\n"
    (module / "later.py").write_text(later)
    plugins = [f"--sdesamplers-plugin=sdesamplers_growing.{name}" for name in (*ALL, "later")]
    found = pytest_in(folder, "--collect-only", "-q", *plugins).stdout
    for item in ("added-sampler: ODE order", "added-spacing: ends", "added-noise: moments", "added-process: slopes"):
        assert f"test_conformance[{item}]" in found
    assert "test_conformance[later: slopes]" in found
    assert "test_conformance[added-model-times]" in found


def test_the_items_of_a_plugin_are_named_as_they_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    own = sds.spacing("growing", reference="none")(sds.spacings()["karras"].function)
    taken = sds.spacing("karras", reference="none")(sds.spacings()["karras"].function)
    plugin = ModuleType("growing_plugin")
    vars(plugin)["sdesamplers_spacings"] = sds.hookimpl(lambda: [own, taken])
    made = Registry()
    monkeypatch.setattr(sds.registry.registry, "_default", made)
    with pytest.raises(sds.PluginError, match="'growing' of growing_plugin is not registered: name the module as an"):
        items_of(plugin)
    made.spacings.installed.add("growing-dist")
    made.register(plugin, "growing", "growing-dist")
    assert items_of(plugin) == [("spacing", "growing"), ("spacing", "growing-dist:karras")]


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a plugin that is not installed."""
    paths = [folder, Path(sds.__file__).parents[1], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, paths)))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_new_plugin_passes_its_own_tests_in_a_fresh_venv(tmp_path: Path) -> None:
    """The venv sees the running environment's packages; the plugin is installed in it, offline."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    paths = {"base": str(home), "platbase": str(home)}
    packages, commands = (Path(sysconfig.get_path(kind, "venv", paths)) for kind in ("purelib", "scripts"))
    root = Path(sds.__file__).parents[1]
    outside = [p for p in site.getsitepackages() if Path(p).is_dir()]
    lines = [
        f"import sys; sys.path.insert(0, {str(root)!r})",
        *(f"import site; site.addsitedir({p!r})" for p in outside),
    ]
    (packages / "outside.pth").write_text("\n".join(lines) + "\n")
    folder = new_plugin(plugin_name("fresh"), ALL, tmp_path)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env.pop("PYTHONPATH", None)

    def do(*command: Any) -> str:
        done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python = commands / "python"
    do(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", ".")
    assert (packages / "sdesamplers_fresh" / "sampler.py").is_file()
    shutil.rmtree(folder / "sdesamplers_fresh")  # so that the installed package is tested
    result = do(python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert re.search(r"\d+ passed", result)
    assert "failed" not in result
    names = ("fresh-spacing", "fresh-noise", "fresh-process", "fresh-model")
    reports = json.loads(do(python, "-m", "sdesamplers", "check", *names, "--json"))
    assert [report["passed"] for report in reports] == [True] * 4
