"""The cache of descriptions: the same listings as from the plugins, and no use of it after any change."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import sdesamplers as sds
from sdesamplers.cli import registry_commands
from sdesamplers.cli.group import cli
from sdesamplers.registry import described, snapshot
from sdesamplers.registry.catalogue import load_catalogue
from sdesamplers.registry.described import DescribedRegistry, content_of, registry_to_describe
from sdesamplers.registry.description import describe, rebuild
from sdesamplers.registry.options import Option
from sdesamplers.registry.registry import Registry, default_registry

FAR = 10**19
"""A time (ns) after every change of a file."""


@pytest.fixture(scope="module")
def pair() -> tuple[Registry, Registry]:
    """The registry of the installed plugins, and one made of its description as JSON."""
    full = Registry(catalogue=load_catalogue())
    content = json.loads(json.dumps(content_of(full)))
    return full, DescribedRegistry(content, load_catalogue())


def shown(option: Option) -> tuple[str, str]:
    """An option's type and default as users see them; 1, 1.0 and True are equal but not the same."""
    return option.type_name, repr(option.default)


def test_every_attribute_is_the_same_but_the_function(pair: tuple[Registry, Registry]) -> None:
    full, light = pair
    for shelf in ("samplers", "spacings", "noises"):
        items, others = getattr(full, shelf), getattr(light, shelf)
        assert list(items) == list(others)
        assert len(items) > 3
        for name, item in items.items():
            assert {**vars(others[name]), "function": None} == {**vars(item), "function": None}
            assert [*map(shown, others[name].options.values())] == [*map(shown, item.options.values())]
    assert full.plugins == light.plugins
    assert list(full.sdes) == list(light.sdes)


def test_every_name_is_explained_alike(pair: tuple[Registry, Registry]) -> None:
    full = pair[0]
    names = {*full.sampler_names(), *full.grid_names(), *full.noises, *full.catalogue.models, "heunn", "DDIM karras"}
    assert len(names) > 200
    for name in names:
        found = []
        for registry in pair:
            try:
                facts, doc = registry_commands.explain(registry, name)
                rows = registry_commands.sampler_rows(registry.resolve(name)) if "runs" in facts else None
                found.append(repr((facts, doc, rows)))
            except sds.SdesamplersError as error:
                found.append(str(error))
        assert found[0] == found[1], name
    assert names


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["list", "--family", "euler"], ["info", "rk45"]])
def test_the_output_is_the_same(
    pair: tuple[Registry, Registry], monkeypatch: pytest.MonkeyPatch, command: list[str], capsys: Any
) -> None:
    outputs = []
    for registry in pair:
        monkeypatch.setattr(described, "registry_to_describe", lambda *arguments, made=registry: made)
        cli.main(args=command, standalone_mode=False)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 200


def test_names_are_ambiguous_as_they_are_without_the_cache() -> None:
    full = Registry(catalogue=load_catalogue())
    heun, rk4 = full.samplers["heun"], full.samplers["rk4"]
    for dist, item, process in (("one", heun, sds.VP), ("two", heun, sds.VE)):
        full.samplers.put("shared", item, dist)
        full.samplers.put("contested", heun if dist == "one" else rk4, dist)
        full.sdes.put("contested-process", process, dist)
    light = DescribedRegistry(json.loads(json.dumps(content_of(full))), load_catalogue())
    assert light.samplers["shared"].name == "heun"
    assert "one:contested" in full.samplers
    assert list(light.samplers) == list(full.samplers)
    assert "one:contested-process" in list(full.sdes)
    assert list(light.sdes) == list(full.sdes)


def test_an_item_of_the_cache_is_not_run_in_silence(pair: tuple[Registry, Registry]) -> None:
    with pytest.raises(sds.PluginError, match="cannot be run"):
        pair[1].samplers["heun"].function()


def test_types_and_values_that_json_lacks_come_back() -> None:
    @sds.spacing("one", reference="none")
    def one(
        span: Any,
        count: int,
        *,
        pair: tuple[float, ...] = (1.0, 2.0),
        rows: list[list[float]] | None = None,
        mode: Literal["a", 3] = 3,
        limit: float = float("inf"),
        whole: int = 1,
        real: float = 1.0,
        on: bool = True,
    ) -> list[float]:
        """A grid."""
        return []

    back = rebuild(json.loads(json.dumps(describe(one))))
    assert back.options == one.options
    assert [type(o.default) for o in back.options.values()] == [type(o.default) for o in one.options.values()]
    assert [o.type_name for o in back.options.values()] == [o.type_name for o in one.options.values()]
    one.extra = object()  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        describe(one)


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A module on the search path, in a folder with a distribution, and a snapshot that was made with it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(snapshot.SETTING, raising=False)
    monkeypatch.setattr(snapshot, "LOADED", FAR)
    (tmp_path / "early").mkdir()
    place = tmp_path / "place"
    info = place / "other-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text("[sdesamplers]\n")
    (place / "module_of_the_test.py").write_text("A = 1\n")
    (place / "package_of_the_test").mkdir()
    (place / "package_of_the_test" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.syspath_prepend(str(tmp_path / "early"))
    importlib.import_module("module_of_the_test")
    importlib.import_module("package_of_the_test")
    snapshot.write_snapshot({"x": [1]})
    assert snapshot.read_snapshot() == {"x": [1]}
    yield place
    sys.modules.pop("module_of_the_test", None)
    sys.modules.pop("package_of_the_test", None)


def rewrite(file: Path, text: str) -> None:
    """Write another text of the same length, with the same time of change."""
    before = file.stat()
    assert len(text) == before.st_size
    time.sleep(0.02)  # longer than a tick of the file system's clock
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    "an edited module": lambda place, patch: (place / "module_of_the_test.py").write_text("A = 22\n"),
    "an edit of the same length": lambda place, patch: rewrite(place / "module_of_the_test.py", "A = 2\n"),
    "a removed module": lambda place, patch: (place / "module_of_the_test.py").unlink(),
    "a new module of a package": lambda place, patch: (place / "package_of_the_test" / "new.py").touch(),
    "an installed distribution": lambda place, patch: (place / "new-1.dist-info").mkdir(),
    "an updated distribution": lambda place, patch: (place / "other-1.0.dist-info").rename(place / "other-2.dist-info"),
    "other entry points": lambda place, patch: (place / "other-1.0.dist-info" / "entry_points.txt").write_text("[s]"),
    "a module that hides it": lambda place, patch: (place.parent / "early" / "module_of_the_test.py").touch(),
    "a package that hides it": lambda place, patch: (place.parent / "early" / "module_of_the_test").mkdir(),
    "another search path": lambda place, patch: patch.syspath_prepend(str(place.parent)),
    "another interpreter": lambda place, patch: patch.setattr(sys, "version", "4.0"),
    "another release": lambda place, patch: patch.setattr(snapshot, "__version__", "0.2"),
    "the setting": lambda place, patch: patch.setenv(snapshot.SETTING, "1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_ends_the_use_of_a_snapshot(cached: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    CHANGES[change](cached, monkeypatch)
    assert snapshot.read_snapshot() is None


@pytest.mark.parametrize("text", ["", "{}", "00000000\n{}", "not JSON\n["])
def test_a_damaged_snapshot_is_not_used(cached: Path, text: str) -> None:
    (file,) = snapshot.cache_folder().iterdir()
    file.write_text(text)
    assert snapshot.read_snapshot() is None


def test_one_changed_byte_is_noticed(cached: Path) -> None:
    (file,) = snapshot.cache_folder().iterdir()
    file.write_text(file.read_text().replace('{"x": [1]}', '{"x": [2]}'))
    assert snapshot.read_snapshot() is None


def test_nothing_is_stored_if_a_file_is_too_new(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = snapshot.cache_folder().iterdir()
    file.unlink()
    monkeypatch.setattr(snapshot, "LOADED", time.time_ns())
    snapshot.write_snapshot({"x": [1]})
    assert not file.exists()


def test_old_snapshots_are_removed(cached: Path) -> None:
    for number in range(snapshot.MOST + 3):
        (snapshot.cache_folder() / f"registry-{number:08x}.json").touch()
    snapshot.write_snapshot({})
    assert len(list(snapshot.cache_folder().iterdir())) == snapshot.MOST


def test_a_cache_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv(snapshot.SETTING, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(snapshot, "LOADED", FAR)
    snapshot.write_snapshot({})
    assert snapshot.read_snapshot() is None


def test_no_snapshot_of_a_registry_in_doubt(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("plugins: [no_such_module_at_all]\n")
    registry = Registry(file)
    assert content_of(registry) is None
    broken = Registry(catalogue=load_catalogue())
    broken.plugins.append(sds.registry.discovery.Plugin("x", "y", "ImportError"))
    assert content_of(broken) is None


def test_a_program_that_uses_the_registry_gets_its_own() -> None:
    assert registry_to_describe() is default_registry()


COUNT = """
import sys, time
from sdesamplers.registry import snapshot
snapshot.LOADED = 10**19
from sdesamplers.cli import main
try:
    main(sys.argv[1:])
finally:
    print("imported torch" if "torch" in sys.modules else "no torch", file=sys.stderr)
"""
PLUGIN = '''"""A plugin."""
from sdesamplers import hookimpl, sampler

@sampler("another-one", order=1)
def another(x, path):
    """TEXT."""
    yield x, path.points[0]
    return x

@hookimpl
def sdesamplers_samplers():
    return [another]
'''


@pytest.mark.slow
def test_a_listing_follows_installed_and_edited_plugins(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop(snapshot.SETTING, None)

    def run(*words: str) -> tuple[str, str]:
        command = [sys.executable, "-c", COUNT, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.strip().splitlines()[-1]

    first, torch = run("list")
    assert torch == "imported torch"
    assert run("list") == (first, "no torch")
    assert run("models")[1] == run("info", "heun")[1] == "no torch"
    (place / "another.py").write_text(PLUGIN)
    (place / "another-1.dist-info").mkdir()
    (place / "another-1.dist-info" / "METADATA").write_text("Name: another\nVersion: 1\n")
    (place / "another-1.dist-info" / "entry_points.txt").write_text("[sdesamplers]\nanother = another\n")
    second, torch = run("list")
    assert torch == "imported torch"
    assert "TEXT." in second
    assert run("list") == (second, "no torch")
    (place / "another.py").write_text(PLUGIN.replace("TEXT", "EDIT"))
    third, torch = run("list")
    assert torch == "imported torch"
    assert third == second.replace("TEXT.", "EDIT.")
    assert run("list") == (third, "no torch")
    mine = tmp_path / "mine.yaml"
    mine.write_text("recipes: {of-mine: {sampler: another-one}}\n")
    listed, torch = run("--registry", str(mine), "list")
    assert torch == "no torch"
    assert "of-mine" in listed
    environment["SDESAMPLERS_REGISTRY"] = str(mine)
    assert run("list") == (listed, "no torch")
    mine.write_text("plugins: [another]\n")
    assert run("list")[1] == "imported torch"
