"""Plugins that take built-in names, misspell hooks, fail or never end: what is said, and that the others go on."""

from __future__ import annotations

import textwrap
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.cli.doctor import _plugins
from sdesamplers.errors import PluginError, UnknownHookError
from sdesamplers.registry.registry import Registry
from sdesamplers.testing import check_sampler


class Entry:
    """What the registry needs of an entry point."""

    def __init__(self, name: str, dist: str, plugin: Any) -> None:
        self.name, self.value, self.plugin = name, f"{dist}.{name}", plugin
        self.dist = types.SimpleNamespace(name=dist)

    def load(self) -> Any:
        return self.plugin() if isinstance(self.plugin, types.FunctionType) else self.plugin


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that installs plugins beside the built-in ones, and makes the process's registry of all."""
    real = sds.registry.discovery.entry_points

    def build(*entries: Entry) -> Registry:
        monkeypatch.setattr(sds.registry.discovery, "entry_points", lambda group: [*real(group=group), *entries])
        registry = Registry()
        monkeypatch.setattr(sds.registry.registry, "_default", registry)
        return registry

    return build


@pytest.fixture
def mixture() -> sds.MixtureModel:
    return sds.grid_mixture(sds.VP())


def standing_still(name: str) -> sds.Sampler:
    @sds.sampler(name, order=1, reference="none")
    def still(x, path):  # type: ignore[no-untyped-def]
        """Asks once, and returns the start."""
        yield x, path.points[0]
        return x

    return still


def rising(name: str) -> sds.Spacing:
    @sds.spacing(name)
    def spacing(span, count):  # type: ignore[no-untyped-def]
        """Falls to pieces."""
        raise KeyError("no such grid")

    return spacing


def plugin_of(*samplers: sds.Sampler, spacings: tuple[sds.Spacing, ...] = ()) -> Any:
    @sds.hookimpl
    def sdesamplers_samplers() -> Any:
        return list(samplers)

    @sds.hookimpl
    def sdesamplers_spacings() -> Any:
        return list(spacings)

    return types.SimpleNamespace(sdesamplers_samplers=sdesamplers_samplers, sdesamplers_spacings=sdesamplers_spacings)


TAKEN = ["ddim", "quality", "sample_euler", "DPM++ 2M", "heun", "k-euler"]


@pytest.mark.parametrize("name", TAKEN)
def test_built_in_names_stay_built_in(installed: Any, name: str) -> None:
    before = Registry().resolve(name)
    theirs = standing_still(name)
    registry = installed(Entry("thief", "thiefdist", plugin_of(theirs)))
    assert registry.resolve(name) == before
    assert registry.resolve(f"thiefdist:{name}").sampler is theirs
    assert f"thiefdist:{name}" in registry.samplers
    assert f"thiefdist:{name}" in list(registry.samplers)
    notes = {what: state for what, state, good in _plugins() if good}
    assert f"its sampler {name!r} has a built-in name and is available as 'thiefdist:{name}'" in notes["plugin thief"]


def test_built_in_grids_stay_built_in(installed: Any, mixture: sds.MixtureModel) -> None:
    right = sds.sample(mixture, "heun", steps=4, spacing="karras").samples
    registry = installed(Entry("thief", "thiefdist", plugin_of(spacings=(rising("karras"), rising("polyexponential")))))
    assert torch.equal(sds.sample(mixture, "heun", steps=4, spacing="karras").samples, right)
    assert registry.spacing("thiefdist:polyexponential").name == "polyexponential"
    assert registry.spacing("polyexponential").plugin.startswith("sdesamplers:")


def test_a_run_of_a_renamed_sampler_says_so(installed: Any, mixture: sds.MixtureModel) -> None:
    installed(Entry("thief", "thiefdist", plugin_of(standing_still("ddim"))))
    result = sds.sample(mixture, "thiefdist:ddim", steps=3, seed=4)
    assert result.recipe.sampler == "thiefdist:ddim"
    assert result.nfe == 1


def test_what_the_user_names_has_to_be_picked(installed: Any) -> None:
    registry = installed()
    registry.adopt([standing_still("ddim")])
    with pytest.raises(sds.UsageError, match="use 'local:ddim' or 'sdesamplers:ddim'"):
        registry.resolve("ddim")


def misspelt() -> Any:
    @sds.hookimpl
    def sdesamplers_sampler() -> Any:
        return [standing_still("never-there")]

    return types.SimpleNamespace(sdesamplers_sampler=sdesamplers_sampler)


def undecorated() -> Any:
    def sdesamplers_samplers() -> Any:
        return [standing_still("never-there")]

    return types.SimpleNamespace(sdesamplers_samplers=sdesamplers_samplers)


def for_a_later_version() -> Any:
    @sds.hookimpl(optionalhook=True)
    def sdesamplers_widgets() -> Any:
        return []

    made = plugin_of(standing_still("there"))
    made.sdesamplers_widgets = sdesamplers_widgets
    return made


def test_a_misspelt_hook_is_told(installed: Any) -> None:
    registry = installed(
        Entry("typo", "typodist", misspelt()),
        Entry("bare", "baredist", undecorated()),
        Entry("later", "laterdist", for_a_later_version()),
    )
    told = {plugin.name: plugin.error for plugin in registry.plugins if plugin.error}
    assert set(told) == {"typo", "bare"}
    assert "unknown hook 'sdesamplers_sampler'; did you mean 'sdesamplers_samplers'" in told["typo"]
    assert "sdesamplers_samplers lacks @hookimpl" in told["bare"]
    assert "there" in registry.samplers
    assert issubclass(UnknownHookError, PluginError)
    for words in (["list", "ddim"], ["list", "--json"], ["list", "no-such-name"], ["list", "--family", "typo"]):
        assert "broken plugins: bare, typo; see sdesamplers doctor" in CliRunner().invoke(cli, words).output
    states = {what: (state, good) for what, state, good in _plugins()}
    assert states["plugin typo"][1] is False


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.py"
    file.write_text(textwrap.dedent(text))
    return file


def test_an_import_error_of_an_installed_plugin_has_its_line(installed: Any, tmp_path: Path) -> None:
    file = write(tmp_path, "faulty_import", "import math\n\nmath.nonsense\n")

    def load() -> Any:
        return exec(compile(file.read_text(), str(file), "exec"), {})

    registry = installed(Entry("faulty", "faultydist", load))
    (broken,) = [plugin for plugin in registry.plugins if plugin.error]
    assert "AttributeError" in (broken.error or "")
    assert "(faulty_import.py, line 3)" in (broken.error or "")


FAULTY = """\
from sdesamplers import hookimpl, sampler, spacing


@sampler("faulty-run", order=1, reference="none")
def faulty_run(x, path):
    '''Fails at its second step.'''
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then)
        if now is not path.points[0]:
            x = x + [][3]
    return x


@sampler("faulty-ever", order=1, reference="none")
def faulty_ever(x, path):
    '''Never ends.'''
    while True:
        x = (yield x, path.points[0]).x


@spacing("faulty-grid")
def faulty_grid(span, count):
    '''Fails.'''
    return {}["nothing"]


@hookimpl
def sdesamplers_samplers():
    return [faulty_run, faulty_ever]


@hookimpl
def sdesamplers_spacings():
    return [faulty_grid]


@hookimpl
def sdesamplers_load_model(source, options):
    if source == "faulty":
        return 1 / 0
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry(plugins=[write(tmp_path, "faulty_plugin", FAULTY)])
    monkeypatch.setattr(sds.registry.registry, "_default", registry)
    return registry


@pytest.mark.usefixtures("faulty")
def test_a_plugins_error_names_plugin_file_and_line(mixture: sds.MixtureModel) -> None:
    with pytest.raises(PluginError) as caught:
        sds.sample(mixture, "faulty-run", steps=3)
    assert str(caught.value) == (
        "sampler 'faulty-run' of plugin faulty_plugin: IndexError: list index out of range (faulty_plugin.py, line 11) "
        "in step 2 of 3, from t = 0.667 to t = 0.334"
    )
    assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(PluginError, match=r"spacing 'faulty-grid' of plugin faulty_plugin: KeyError.*line 25\)"):
        sds.sample(mixture, "euler", steps=3, spacing="faulty-grid")
    with pytest.raises(PluginError, match=r"failed to load 'faulty': ZeroDivisionError.*\(faulty_plugin.py, line 41\)"):
        sds.load("faulty")


@pytest.mark.usefixtures("faulty")
def test_a_job_does_not_promise_to_go_on_where_a_plugin_fails(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        sds.generate(mixture, "faulty-run", steps=3, num_samples=4, out=tmp_path / "out")
    assert "resume" not in str(caught.value)
    assert "line 11" in str(caught.value)


@pytest.mark.usefixtures("faulty")
def test_a_run_that_never_ends_is_stopped(mixture: sds.MixtureModel) -> None:
    with pytest.raises(PluginError, match=r"faulty_plugin.py, line 19\) requested more than 1300 evaluations"):
        sds.sample(mixture, "faulty-ever", steps=3)


@pytest.mark.slow
@pytest.mark.usefixtures("faulty")
def test_a_sampler_that_never_ends_is_stopped(mixture: sds.MixtureModel) -> None:
    began = time.monotonic()
    for noise in ("independent", "brownian"):
        with pytest.raises(PluginError, match=r"faulty_plugin.py, line 19\) requested more than 1300 evaluations"):
            sds.sample(mixture, "faulty-ever", steps=3, noise=noise)
    with pytest.raises(PluginError, match="never"):
        sds.sample(mixture, "faulty-ever", nfe=9)
    scheduler = sds.Scheduler.from_config({"_class_name": "DDPMScheduler"}, "faulty-ever")
    with pytest.raises(PluginError, match="never"):
        scheduler.set_timesteps(3)
    report = check_sampler("faulty-ever")
    assert not report.passed
    assert "never" in report.failed[-1].measured + report.failed[0].measured
    assert time.monotonic() - began < 60


def test_no_sampler_of_ours_comes_near_the_limit(mixture: sds.MixtureModel) -> None:
    from sdesamplers.sampling.arguments import make_recipe
    from sdesamplers.sampling.request import Request
    from sdesamplers.sampling.runs import evaluation_limit, evaluations, make_path

    for name, spec in sds.samplers().items():
        if "stationary" in spec.needs or spec.evaluations is None:
            continue
        recipe, spec = make_recipe(Request(name, 3), process=mixture.process, shape=mixture.shape)
        made = evaluations(mixture.process, recipe, spec, mixture.shape)
        assert made * 20 < evaluation_limit(spec, make_path(mixture.process, recipe), recipe.options), name
