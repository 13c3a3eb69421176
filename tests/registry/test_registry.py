"""Plugins found by entry point, names resolved, and registry files read and refused."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from click.testing import CliRunner
from hub_server import HubServer
from huggingface_hub import constants
from jsonschema import Draft202012Validator
from lanes import mostly_slow
from process_cases import TABLE
from solver_tables import table_for
from tiny_models import save_pipeline, tiny_unet

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.cli.registry_commands import explain
from sdesamplers.errors import PluginError, SdesamplersError, UnknownNameError, UsageError
from sdesamplers.registry import catalogue
from sdesamplers.registry.registry import Registry, default_registry, register, use_registry

BUILT_IN = {"ddim", "ddpm", "euler", "euler-maruyama", "heun", "rk45"}


@pytest.fixture(autouse=True)
def no_files_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No registry but the shipped one, and the process-wide registry put back afterwards."""
    monkeypatch.delenv("SDESAMPLERS_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield
    monkeypatch.undo()
    use_registry(None)


def make_sampler(name: str, **declared: Any) -> Any:
    """A sampler that does nothing."""

    @sds.sampler(name, order=1, **declared)
    def idle(x: Any, path: Any, *, strength: float = 1.0) -> Any:
        """Do nothing."""
        yield x, path.points[0]
        return x

    return idle


def make_plugin(*samplers: Any, spacings: Sequence[Any] = ()) -> types.SimpleNamespace:
    """A plugin object that registers samplers and spacings."""

    @sds.hookimpl
    def sdesamplers_samplers() -> Any:
        return list(samplers)

    @sds.hookimpl
    def sdesamplers_spacings() -> Any:
        return list(spacings)

    return types.SimpleNamespace(sdesamplers_samplers=sdesamplers_samplers, sdesamplers_spacings=sdesamplers_spacings)


@dataclass
class Entry:
    """What the registry needs of an entry point."""

    name: str
    dist_name: str
    plugin: Any = None
    error: BaseException | None = None

    @property
    def value(self) -> str:
        return f"{self.dist_name}.{self.name}"

    @property
    def dist(self) -> Any:
        return types.SimpleNamespace(name=self.dist_name)

    def load(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.plugin


@pytest.fixture
def with_plugins(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that builds a registry of the built-in plugins and the entries given."""
    real = sds.registry.discovery.entry_points

    def build(*entries: Entry) -> Registry:
        monkeypatch.setattr(sds.registry.discovery, "entry_points", lambda group: [*real(group=group), *entries])
        return Registry()

    return build


def refuse(text: str | bytes, folder: Path) -> str:
    """The message with which a registry file is refused: one line that begins with file and line."""
    file = folder / "registry.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        Registry(file)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{file}:")
    return message.removeprefix(f"{file}:").strip()


# Plugins


def test_the_built_in_samplers_come_by_entry_point() -> None:
    registry = Registry()
    assert set(registry.samplers) >= BUILT_IN
    assert {"linspace", "karras", "angle", "trailing"} <= set(registry.spacings)
    assert [p.error for p in registry.plugins] == [None] * len(registry.plugins)
    assert {p.dist for p in registry.plugins} == {"sdesamplers"}
    assert registry.samplers["ddim"].plugin == "sdesamplers:ddim"


def test_public_listings() -> None:
    samplers, spacings = sds.samplers(), sds.spacings()
    assert set(samplers) >= BUILT_IN
    for name, spec in {**samplers, **spacings}.items():
        assert spec.name == name
        assert spec.summary
        assert spec.plugin
        assert all(option.type_name for option in spec.options.values())


@pytest.mark.parametrize("error", [ImportError("no module"), SystemExit(3), RuntimeError("boom\nbang"), SyntaxError()])
def test_a_broken_plugin_is_listed_and_the_others_work(with_plugins: Any, error: BaseException) -> None:
    registry = with_plugins(
        Entry("bad", "baddist", error=error), Entry("good", "gooddist", make_plugin(make_sampler("zz")))
    )
    broken = [p for p in registry.plugins if p.error]
    assert [(p.name, p.dist) for p in broken] == [("bad", "baddist")]
    assert type(error).__name__ in (broken[0].error or "")
    assert {"zz", *BUILT_IN} <= set(registry.samplers)
    with pytest.raises(UnknownNameError, match=r"1 plugin.*broken"):
        registry.resolve("not-there-at-all")


@pytest.mark.parametrize(
    "plugin",
    [
        make_plugin(make_sampler("fine"), make_sampler("twice"), make_sampler("twice")),
        make_plugin(make_sampler("fine"), lambda x, path: x),
        make_plugin(make_sampler("fine"), spacings=[make_sampler("not-a-spacing")]),
        types.SimpleNamespace(sdesamplers_noises=sds.hookimpl(lambda: [make_sampler("not-a-noise-source")])),
        types.SimpleNamespace(sdesamplers_samplers=sds.hookimpl(lambda: 3)),
        types.SimpleNamespace(sdesamplers_sdes=sds.hookimpl(lambda: [1])),
    ],
    ids=["twice", "not a sampler", "not a spacing", "not a noise source", "not a list", "not a mapping"],
)
def test_a_plugin_that_registers_nonsense_is_broken_as_a_whole(with_plugins: Any, plugin: Any) -> None:
    registry = with_plugins(Entry("odd", "odddist", plugin))
    assert [p.name for p in registry.plugins if p.error] == ["odd"]
    assert set(registry.samplers) == set(Registry().samplers)
    assert "fine" not in registry.samplers


def test_a_name_claimed_by_two_distributions(with_plugins: Any) -> None:
    first, second = make_sampler("clash"), make_sampler("clash")
    registry = with_plugins(Entry("a", "onedist", make_plugin(first)), Entry("b", "twodist", make_plugin(second)))
    with pytest.raises(UsageError, match="onedist and by twodist") as caught:
        registry.resolve("clash")
    assert "'onedist:clash' or 'twodist:clash'" in str(caught.value)
    assert registry.resolve("onedist:clash").sampler is first
    assert registry.resolve("twodist:clash").sampler is second
    assert {"onedist:clash", "twodist:clash"} <= set(registry.samplers)
    assert "clash" not in list(registry.samplers)
    assert registry.resolve("ddim").sampler.name == "ddim"
    with pytest.raises(UnknownNameError):
        registry.resolve("threedist:clash")


def test_a_built_in_may_be_named_with_its_distribution() -> None:
    assert Registry().resolve("sdesamplers:ddim").sampler.name == "ddim"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sds.sampler("x", order=1)(lambda x, path: x), "generator"),
        (lambda: sds.sampler("x", order=1)(eval("lambda x, path: (yield x)")), "docstring"),
        (lambda: sds.spacing("x")(lambda span, count: []), "docstring"),
    ],
)
def test_functions_that_are_no_plugins(make: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        make()


def test_options_must_be_keywords_with_defaults() -> None:
    def one(x: Any, path: Any, strength: float = 1.0) -> Any:
        """One."""
        yield x

    def two(x: Any, path: Any, *, strength: float) -> Any:
        """Two."""
        yield x

    for function in (one, two):
        with pytest.raises(PluginError, match=function.__name__):
            sds.sampler("x", order=1)(function)


def test_registering_samplers_of_ones_own() -> None:
    use_registry(None)
    mine = make_sampler("my-own")
    register(mine)
    assert sds.samplers()["my-own"] is mine
    assert default_registry().resolve("local:my-own").sampler is mine
    again = make_sampler("my-own")
    register(again)  # as a notebook cell that is run again does
    assert sds.samplers()["my-own"] is again
    assert use_registry(None).samplers["my-own"] is again
    with pytest.raises(PluginError, match="same name"):
        register(make_sampler("pair"), make_sampler("pair"))
    assert "pair" not in sds.samplers()
    with pytest.raises(PluginError, match="register takes"):
        register("euler")  # type: ignore[arg-type]


# Plugins that the user names

LAB = """
import sdesamplers as sds

@sds.sampler("lab", order=1, reference="none", needs=("marginals",))
def lab(x, path, *, strength: float = 1.0):
    \"\"\"Lab; strength.\"\"\"
    for now, then in path.steps:
        out = yield x, now
        x = out.step_to(then) * strength
    return x

@sds.hookimpl
def sdesamplers_samplers():
    return [lab]
"""


def test_a_loose_file_is_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "lab_file.py"
    (tmp_path / "beside_it.py").write_text("")
    file.write_text("import beside_it\n" + LAB)
    registry = use_registry(None, plugins=[str(file)])
    spec = registry.resolve("lab").sampler
    assert spec.plugin == "lab_file"
    assert str(tmp_path) not in sys.path
    register(spec)  # the same object, so the name stays one
    assert default_registry().resolve("lab").sampler is spec
    assert "lab" in sds.samplers()
    assert use_registry(None, plugins=[file]).resolve("lab").sampler is spec
    register(make_sampler("lab"))
    with pytest.raises(UsageError, match="lab_file"):
        default_registry().resolve("lab")
    del sds.registry.registry._local["Sampler", "lab"]
    sys.modules.pop("beside_it")


def test_a_loose_file_may_register_by_itself_and_have_a_modules_name(tmp_path: Path) -> None:
    file = tmp_path / "json.py"
    file.write_text(LAB.partition("@sds.hookimpl")[0] + "sds.register(lab)\n")
    assert "lab" in use_registry(None, plugins=[file]).samplers
    assert sys.modules["json"] is json
    del sds.registry.registry._local["Sampler", "lab"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n\n1 / 0\n", r"ZeroDivisionError: division by zero \(bad_lab.py, line 3\)"),
        ("def\n", "SyntaxError.*bad_lab.py, line 1"),
        ("x = 1\n", "registers nothing"),
    ],
)
def test_a_plugin_that_the_user_names_must_work(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad_lab.py"
    file.write_text(text)
    before = default_registry()
    with pytest.raises(PluginError, match=message):
        use_registry(None, plugins=[file])
    with pytest.raises(PluginError, match="ModuleNotFoundError"):
        use_registry(None, plugins=["no_such_lab"])
    assert default_registry() is before
    sys.modules.pop("bad_lab", None)


def test_a_registry_files_plugins_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "lab_beside.py").write_text(LAB)
    (tmp_path / "r.yaml").write_text("plugins: [lab_beside]\nrecipes: {strong: {sampler: lab, options: {strength: 2}}}")
    registry = Registry(tmp_path / "r.yaml")
    assert registry.resolve("strong").options == {"strength": 2.0}
    assert str(tmp_path) not in sys.path
    sys.modules.pop("lab_beside")


def test_what_is_shipped_means_our_samplers(with_plugins: Any) -> None:
    theirs = [make_sampler(name) for name in ("euler", "ddim", "odeint", "dpmpp-2m")]
    registry = with_plugins(Entry("a", "onedist", make_plugin(*theirs)))
    for name in ("k-euler", "DDIM", "odeint:rk4", "sample_euler", "DPM++ 2M Karras", "euler"):
        assert registry.resolve(name).sampler.plugin.startswith("sdesamplers:"), name
    assert registry.resolve("onedist:euler").sampler is theirs[0]


def test_peers_are_known_in_any_case() -> None:
    registry = Registry()
    assert registry.resolve("A1111:Euler a") == registry.resolve("a1111:Euler a")
    with pytest.raises(UnknownNameError, match="'a1111:Euler a'"):
        registry.resolve("A1111:Eular a")


def test_patterns_are_not_offered_as_names() -> None:
    names = Registry().sampler_names()
    assert "odeint:rk4" in names
    assert not [name for name in names if "{" in name]


@pytest.mark.parametrize(
    ("annotation", "default", "message"),
    [
        (dict, {}, "option 'k' is dict; options are int"),
        (Sequence[str], (), r"option 'k' is Sequence\[str\]"),
        (Any, 1, "options are int"),
        (int | bytes, 1, "options are int"),
        (int, 1.5, "default of .*'k' must be int, not 1.5"),
        pytest.param(
            *(float, None, "default of .*'k' must be float, not None"),
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11), reason="Python 3.10 reads `k: float = None` as optional"
            ),
        ),
        (Literal["a", "b"], "c", 'must be "a" | "b", not \'c\''),
        (Sequence[float], 1.0, "must be Sequence"),
    ],
)
def test_options_of_types_that_cannot_be_written_down(annotation: Any, default: Any, message: str) -> None:
    def odd(x: Any, path: Any, *, k: Any = default) -> Any:
        """Odd."""
        yield x

    odd.__annotations__["k"] = annotation
    with pytest.raises(PluginError, match=message):
        sds.sampler("odd", order=1)(odd)


def test_options_of_a_union_with_choices_and_of_numbers() -> None:
    def fine(
        x: Any, path: Any, *, k: Literal["auto"] | float | None = None, ends: tuple[float, ...] | None = None
    ) -> Any:
        """Fine."""
        yield x

    fine.__annotations__ |= {"k": Literal["auto"] | float | None, "ends": tuple[float, ...] | None}
    options = sds.sampler("fine", order=1)(fine).options
    assert options["k"].type_name == '"auto" | float | None'
    assert [options["k"].parse(text, "it") for text in ("auto", "2", "null")] == ["auto", 2.0, None]
    assert options["ends"].parse("[1, 2.5]", "it") == [1, 2.5]
    for value in ("[1, x]", "5", "12"):
        with pytest.raises(UsageError, match="ends"):
            options["ends"].parse(value, "it")


# Names


def test_aliases_and_recipes() -> None:
    registry = Registry()
    assert registry.resolve("DDIM").sampler.name == "ddim"
    preset = registry.resolve("edm")
    assert (preset.sampler.name, preset.spacing, preset.coordinates, preset.steps) == ("heun", "karras", "ve", 18)
    assert registry.resolve("sample_heun") == registry.resolve("k-heun")


@pytest.mark.parametrize(
    ("typed", "meant"), [("hein", "heun"), ("eulermaruyama", "euler-maruyama"), ("RK 45", "rk45"), ("edn", "edm")]
)
def test_the_nearest_name_is_offered(typed: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean") as caught:
        Registry().resolve(typed)
    assert repr(meant).lower() in str(caught.value).lower()


def test_an_unknown_spacing() -> None:
    with pytest.raises(UnknownNameError, match="'karras'"):
        Registry().spacing("karas")


def test_an_alias_that_leads_back_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("aliases:\n  a: b\n  b: c\n  c: a\n  me: me\n")
    registry = Registry(file)
    with pytest.raises(UsageError, match=r"the alias refers to itself \(a -> b -> c -> a\)") as caught:
        registry.resolve("a")
    assert str(caught.value).startswith(f"{file}:2: aliases.a")
    with pytest.raises(UsageError, match="me -> me"):
        registry.resolve("me")


def test_an_alias_that_leads_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("aliases:\n  quick: huen\n")
    with pytest.raises(UnknownNameError, match=r"aliases\.quick.*'huen'.*'heun'") as caught:
        Registry(file).resolve("quick")
    assert f"{file}:2" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{sampler: huen}", "did you mean 'heun'"),
        ("{sampler: ddim, spacing: karas}", "did you mean 'karras'"),
        ("{sampler: ddim, options: {etta: 1.0}}", "did you mean 'eta'"),
        ("{sampler: ddim, options: {eta: lots}}", "must be float"),
        ("{sampler: ddim, spacing: karras, spacing_options: {rhoo: 7}}", "did you mean 'rho'"),
    ],
)
def test_a_recipe_that_cannot_be_run_names_its_place(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"recipes:\n  good: {{sampler: ddim}}\n  bad: {body}\n")
    registry = Registry(file)
    assert registry.resolve("good").sampler.name == "ddim"
    with pytest.raises(UsageError, match=message) as caught:
        registry.resolve("bad")
    assert f"{file}:3: recipes.bad" in str(caught.value)


# Names of spacings and noise sources, and of other libraries

PEERS = """
spacing_aliases:
  dense: {spacing: karras, options: {rho: 9.0}}
  plain: linspace
  typo: karas
  option: {spacing: karras, options: {rhoo: 9.0}}
noise_aliases:
  pink: {noise: coloured, options: {exponent: 1.0}}
peers:
  first:
    samplers:
      Sharp: {sampler: ddim, options: {eta: 0.5}, spacing: dense, description: sharp}
      sharp_too: Sharp
      Both: heun
      Never: {reason: it is for text}
      Half: {reason: the first has none}
      Wrong: huen
    spacings:
      Narrow: {spacing: karras, options: {rho: 9.0}}
      Grid: trailing
      Nowhere: {reason: it is secret}
  second:
    samplers:
      Both: euler
      Half: euler
      heun: {sampler: heun, coordinates: flow}
    spacings:
      Grid: {spacing: leading, options: {offset: 1}}
      Wide Grid: linspace
recipes:
  "mild:{eta}": {sampler: ddim, options: {eta: 0.0}}
  "odd:{variance}": {sampler: ddpm}
  streaked: {sampler: ddpm, noise: pink, noise_options: {where: start}}
aliases:
  mine: Sharp
"""


@pytest.fixture
def peers(tmp_path: Path) -> Registry:
    """A registry with two peers that share names, on top of the shipped one."""
    file = tmp_path / "peers.yaml"
    file.write_text(PEERS)
    return Registry(file)


def test_a_grids_other_name_brings_its_options(peers: Registry) -> None:
    for name in ("dense", "Narrow", "first:Narrow"):
        grid, options = peers.grid(name)
        assert (grid.name, options) == ("karras", {"rho": 9.0})
        assert peers.spacing(name) is grid
    assert peers.grid("plain") == (peers.spacings["linspace"], {})
    assert peers.grid("karras") == (peers.spacings["karras"], {})
    assert peers.noise("pink") == (peers.noises["coloured"], {"exponent": 1.0})
    with pytest.raises(UnknownNameError, match=r"spacing_aliases\.typo.*'karas'.*'karras'"):
        peers.grid("typo")
    with pytest.raises(UnknownNameError, match=r"spacing_aliases\.option.*'rhoo'.*'rho'"):
        peers.grid("option")
    with pytest.raises(UsageError, match=r"'Nowhere' of first.*it is secret"):
        peers.grid("Nowhere")
    with pytest.raises(UnknownNameError, match="'Narrow'"):
        peers.grid("narow")


def test_the_call_overrides_the_options_of_a_grids_other_name(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(PEERS)
    use_registry(file)
    model = sds.grid_mixture(sds.VP())
    plain = sds.sample(model, "ddim", steps=3, spacing="dense").recipe
    assert (plain.spacing, plain.spacing_options) == ("karras", {"rho": 9.0})
    other = sds.sample(model, "ddim", steps=3, spacing="dense", spacing_options={"rho": 5.0}).recipe
    assert (other.spacing, other.spacing_options) == ("karras", {"rho": 5.0})
    assert sds.sample(model, "Sharp", steps=3).recipe.spacing_options == {"rho": 9.0}


def test_a_recipe_takes_other_names_of_noise(peers: Registry) -> None:
    streaked = peers.resolve("streaked")
    assert (streaked.noise, streaked.noise_options) == ("coloured", {"exponent": 1.0, "where": "start"})


def test_peers_names_resolve_after_our_own(peers: Registry) -> None:
    sharp = peers.resolve("Sharp")
    assert (sharp.sampler.name, sharp.options, sharp.spacing) == ("ddim", {"eta": 0.5}, "karras")
    assert (sharp.spacing_options, sharp.description) == ({"rho": 9.0}, "sharp")
    for name in ("sharp_too", "mine", "first:Sharp", "first:sharp_too"):
        assert peers.resolve(name) == sharp
    assert peers.resolve("heun").coordinates is None
    assert peers.resolve("second:heun").coordinates == "flow"


def test_the_first_peer_that_runs_a_name_answers(peers: Registry) -> None:
    assert peers.resolve("Both").sampler.name == "heun"
    assert peers.resolve("second:Both").sampler.name == "euler"
    assert peers.resolve("Half").sampler.name == "euler"
    assert peers.grid("Grid")[0].name == "trailing"
    assert peers.grid("second:Grid") == (peers.spacings["leading"], {"offset": 1})
    with pytest.raises(UnknownNameError):
        peers.resolve("third:Both")
    with pytest.raises(UnknownNameError):
        peers.resolve("second:Sharp")


def test_a_peers_name_that_stands_for_nothing_says_why(peers: Registry) -> None:
    for name in ("Never", "first:Never"):
        with pytest.raises(UsageError, match=r"'Never' of first.*it is for text"):
            peers.resolve(name)
    with pytest.raises(UsageError, match="the first has none"):
        peers.resolve("first:Half")
    with pytest.raises(UnknownNameError, match=r"peers\.first\.samplers\.Wrong.*'huen'.*'heun'"):
        peers.resolve("Wrong")


def test_a_sampler_on_a_grid_by_both_names(peers: Registry) -> None:
    found = peers.resolve("Sharp Wide Grid")
    assert (found.sampler.name, found.options, found.spacing) == ("ddim", {"eta": 0.5}, "linspace")
    assert (found.spacing_options, found.description) == ({}, "Sharp on the grid Wide Grid, in place of karras; sharp")
    assert peers.resolve("heun karras").spacing == "karras"
    assert peers.resolve("mine dense").spacing_options == {"rho": 9.0}
    with pytest.raises(UsageError, match="it is secret"):
        peers.resolve("Sharp Nowhere")
    for name in ("Shrp Grid", "Sharp Gridd", "Grid", "Sharp  Grid"):
        with pytest.raises(UnknownNameError):
            peers.resolve(name)


def test_a_recipe_with_an_option_in_its_name(peers: Registry) -> None:
    assert peers.resolve("odd:beta").options == {"variance": "beta"}
    assert peers.resolve("mild:0.25").options == {"eta": 0.25}
    with pytest.raises(UsageError, match=r"variance.*'alpha'"):
        peers.resolve("odd:alpha")
    for name in ("odd:", "odd"):
        with pytest.raises(UnknownNameError):
            peers.resolve(name)


def test_peers_of_several_files_are_laid_on_one_another(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("peers:\n  a1111: {samplers: {Euler: heun, Mine: ddim}}\n  lab: {spacings: {Lab: karras}}\n")
    registry = Registry(file)
    assert registry.resolve("a1111:Euler").sampler.name == "heun"
    assert registry.resolve("Mine").sampler.name == "ddim"
    assert registry.resolve("Euler a").sampler.name == "euler-ancestral"
    assert registry.grid("Lab")[0].name == "karras"


# The libraries' own lists of names

SAMPLERS = {
    "k-diffusion": "sample_euler,sample_euler_ancestral,sample_heun,sample_dpm_2,sample_dpm_2_ancestral,sample_lms,"
    "sample_dpm_fast,sample_dpm_adaptive,sample_dpmpp_2s_ancestral,sample_dpmpp_sde,sample_dpmpp_2m,"
    "sample_dpmpp_2m_sde,sample_dpmpp_3m_sde",
    "comfyui": "euler,euler_cfg_pp,euler_ancestral,euler_ancestral_cfg_pp,heun,heunpp2,exp_heun_2_x0,"
    "exp_heun_2_x0_sde,dpm_2,dpm_2_ancestral,lms,dpm_fast,dpm_adaptive,dpmpp_2s_ancestral,"
    "dpmpp_2s_ancestral_cfg_pp,dpmpp_sde,dpmpp_sde_gpu,dpmpp_2m,dpmpp_2m_cfg_pp,dpmpp_2m_sde,"
    "dpmpp_2m_sde_gpu,dpmpp_2m_sde_heun,dpmpp_2m_sde_heun_gpu,dpmpp_3m_sde,dpmpp_3m_sde_gpu,ddpm,lcm,"
    "ipndm,ipndm_v,deis,res_multistep,res_multistep_cfg_pp,res_multistep_ancestral,"
    "res_multistep_ancestral_cfg_pp,gradient_estimation,gradient_estimation_cfg_pp,er_sde,seeds_2,"
    "seeds_3,sa_solver,sa_solver_pece,ddim,uni_pc,uni_pc_bh2",
    "a1111": "DPM++ 2M,DPM++ SDE,DPM++ 2M SDE,DPM++ 2M SDE Heun,DPM++ 2S a,DPM++ 3M SDE,Euler a,Euler,LMS,Heun,"
    "DPM2,DPM2 a,DPM fast,DPM adaptive,Restart,DDIM,DDIM CFG++,PLMS,UniPC,LCM,DDPM,HeunPP2,IPNDM,IPNDM_V,"
    "DEIS,k_dpmpp_2m,k_dpmpp_2m_ka,k_dpmpp_sde,k_dpmpp_sde_ka,k_dpmpp_2m_sde,k_dpmpp_2m_sde_ka,k_dpmpp_2m_sde_exp,"
    "k_dpmpp_2m_sde_heun,k_dpmpp_2m_sde_heun_ka,k_dpmpp_2m_sde_heun_exp,k_dpmpp_2s_a,k_dpmpp_2s_a_ka,k_dpmpp_3m_sde,"
    "k_dpmpp_3m_sde_ka,k_dpmpp_3m_sde_exp,k_euler_a,k_euler_ancestral,k_euler,k_lms,k_lms_ka,k_heun,k_dpm_2,k_dpm_2_ka,"
    "k_dpm_2_a,k_dpm_2_a_ka,k_dpm_fast,k_dpm_ad,restart",
}
GRIDS = {
    "k-diffusion": "get_sigmas_karras,get_sigmas_exponential,get_sigmas_polyexponential,get_sigmas_vp",
    "diffusers": "linspace,leading,trailing,use_karras_sigmas,use_exponential_sigmas,use_beta_sigmas,use_lu_lambdas,"
    "use_flow_sigmas,use_dynamic_shifting,rescale_betas_zero_snr",
    "comfyui": "simple,sgm_uniform,karras,exponential,ddim_uniform,beta,normal,linear_quadratic,kl_optimal",
    "a1111": "Automatic,Uniform,Karras,Exponential,Polyexponential,SGM Uniform,KL Optimal,Align Your Steps,"
    "Align Your Steps GITS,Align Your Steps 11,Align Your Steps 32,align_your_steps_GITS,align_your_steps_11,"
    "align_your_steps_32,Simple,Normal,DDIM,Beta,Turbo",
}


def diffusers_names() -> list[str]:
    """Every scheduler class that diffusers exports."""
    from diffusers import SchedulerMixin, schedulers

    found = [getattr(schedulers, name, None) for name in dir(schedulers) if name.endswith("Scheduler")]
    return [item.__name__ for item in found if isinstance(item, type) and issubclass(item, SchedulerMixin)]


def stands_for_something(registry: Registry, kind: str, peer: str, name: str) -> bool:
    """Whether a peer's name resolves, alone and with the peer in front; else it must give its reason."""
    find = registry.resolve if kind == "samplers" else registry.grid
    entry = registry.catalogue.peers[peer][kind][name]
    if isinstance(entry, dict) and "reason" in entry:
        with pytest.raises(UsageError, match=re.escape(entry["reason"])):
            find(f"{peer}:{name}")
        return False
    assert find(f"{peer}:{name}")
    assert find(name)
    return True


def test_every_sampler_of_the_peers_resolves_or_says_why_not() -> None:
    registry = Registry()
    names = {"diffusers": diffusers_names(), **{peer: text.split(",") for peer, text in SAMPLERS.items()}}
    assert set(registry.catalogue.peers) == set(names)
    assert len(names["diffusers"]) > 35  # 37 in diffusers 0.34
    for peer, known in names.items():
        assert set(known) <= set(registry.catalogue.peers[peer]["samplers"])
        found = [
            name
            for name in registry.catalogue.peers[peer]["samplers"]
            if stands_for_something(registry, "samplers", peer, name)
        ]
        assert set(found) >= set(known) if peer in ("k-diffusion", "a1111") else len(found) > 0.6 * len(known)


def test_methods_that_peers_have_by_options_are_samplers_here() -> None:
    registry = Registry()
    for kinds in registry.catalogue.peers.values():
        assert set(kinds.get("methods", {})) <= set(registry.samplers)


def test_every_grid_of_the_peers_resolves_or_says_why_not() -> None:
    registry = Registry()
    for peer, text in GRIDS.items():
        known = registry.catalogue.peers[peer]["spacings"]
        assert set(text.split(",")) <= set(known)
        nothing = [name for name in known if not stands_for_something(registry, "spacings", peer, name)]
        assert set(nothing) <= {
            "rescale_betas_zero_snr",
            "GITSScheduler",
            "OptimalStepsScheduler",
            "Automatic",
            "automatic",
            "Karras Exponential",
            "karras_exponential",
            *(name for name in known if re.fullmatch("(?i)align.your.steps.(gits|11|32)", name)),
        }


def test_every_sampler_of_a1111_on_every_grid() -> None:
    """As its infotexts say both, and as its older labels did."""
    registry = Registry()
    plain = {label: registry.resolve(label) for label in SAMPLERS["a1111"].split(",")}
    reasons = registry.catalogue.peers["a1111"]["spacings"]
    for grid in GRIDS["a1111"].split(","):
        if "reason" in reasons[grid]:
            continue
        spacing, options = registry.grid(grid)
        for label, alone in plain.items():
            found = registry.resolve(f"{label} {grid}")
            assert (found.sampler, found.options, found.noise) == (alone.sampler, alone.options, alone.noise)
            assert (found.spacing, found.spacing_options) == (spacing.name, options)


def test_names_that_mean_two_things() -> None:
    """Names that alone run something else than with their peer in front: ours come first, then the file's order."""
    from make_pages import clashes

    assert {f"{peer}:{name}" for peer, name in clashes(Registry())} == {
        "comfyui:euler",
        "comfyui:heun",
        "comfyui:heunpp2",
        "comfyui:lcm",
        "comfyui:deis",
        "a1111:restart",
        "a1111:ddim",
        "a1111:DDIM",
        "a1111:DDPM",
        "a1111:plms",
        "a1111:unipc",
        "a1111:ddpm",
        "a1111:heunpp2",
        "a1111:ipndm",
        "a1111:ipndm_v",
        "a1111:deis",
    }


def test_info_explains_names_of_every_kind() -> None:
    registry = Registry()
    facts, text = explain(registry, "DPM++ 2M SDE Karras")
    assert (facts["asked for"], facts["sampler"], facts["spacing"]) == ("DPM++ 2M SDE Karras", "dpmpp-2m-sde", "karras")
    assert (facts["noise"], facts["description"]) == (
        "brownian",
        "DPM++ 2M SDE on the grid Karras, in place of exponential",
    )
    assert text == registry.samplers["dpmpp-2m-sde"].__doc__
    facts, text = explain(registry, "odeint:dopri8")
    assert (facts["sampler"], facts["recipe options"]) == ("odeint", {"method": "dopri8"})
    facts, text = explain(registry, "Karras")
    assert (facts["asked for"], facts["spacing"]) == ("Karras", "karras")
    assert text == registry.spacings["karras"].__doc__
    facts, _ = explain(registry, "use_beta_sigmas")
    assert (facts["spacing"], facts["spacing options"]) == ("beta", {"axis": "sigma"})
    facts, _ = explain(registry, "colored")
    assert facts["noise"] == "coloured"
    assert "not the model's distribution" in facts["samples"]
    assert "samples" not in explain(registry, "brownian")[0]
    assert explain(registry, "DDIM")[0]["sampler"] == "ddim"  # also a grid of A1111's; samplers come first
    with pytest.raises(UnknownNameError, match=r"'Karas'; did you mean 'karras'"):
        explain(registry, "Karas")
    with pytest.raises(UsageError, match="it changes the noise schedule"):
        explain(registry, "rescale_betas_zero_snr")


def test_the_command_line_takes_other_names_of_grids_and_noise(tmp_path: Path) -> None:
    words = ["--sampler", "ddpm", "--steps", "2", "-n", "1", "--spacing", "SGM Uniform", "--noise", "colored"]
    options = ["--noise-option", "exponent=2", "--out", str(tmp_path / "out"), "--json", "--quiet"]
    ran = CliRunner().invoke(cli, ["sample", "fashion-mnist", *words, *options], catch_exceptions=False)
    recipe = json.loads(ran.output)["recipe"]
    assert (recipe["spacing"], recipe["noise"]) == ("sgm-uniform", "coloured")
    assert recipe["noise_options"] == {"exponent": 2.0}
    with pytest.raises(UsageError, match="--noise-option requires --noise"):
        CliRunner().invoke(cli, ["sample", "fashion-mnist", *words[:6], *options], catch_exceptions=False)
    listed = json.loads(CliRunner().invoke(cli, ["list", "--json"]).output)
    assert {n["name"]: bool(n["limits"]) for n in listed["noises"]}["pyramid"]
    assert listed["peers"]["diffusers"]["spacings"]["use_karras_sigmas"] == "karras"


# The shipped file


def test_the_shipped_file_is_of_the_schema_and_everything_in_it_resolves() -> None:
    data = yaml.safe_load(catalogue.SHIPPED.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(catalogue.SCHEMA)
    Draft202012Validator(catalogue.SCHEMA).validate(data)
    registry = Registry()
    for name in [*data["recipes"], *data["aliases"]]:
        if "{" not in name:
            assert registry.resolve(name).sampler.name in registry.samplers
    for name in data["spacing_aliases"]:
        assert registry.grid(name)[0].name in registry.spacings
    for name in data["noise_aliases"]:
        assert registry.noise(name)[0].name in registry.noises
    for name, entry in data["models"].items():
        assert ("repo" in entry and "revision" in entry) or "path" in entry, name
        if "path" in entry:
            assert (catalogue.SHIPPED.parent / entry["path"]).is_dir()
    assert "plugins" not in data
    assert registry.catalogue.models["fashion-mnist"]


# Files of the user


def test_files_lie_on_top_of_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = tmp_path / "config" / "sdesamplers" / "registry.yaml"
    found.parent.mkdir(parents=True)
    found.write_text("aliases: {one: euler, two: euler, three: euler}\n")
    assert Registry().resolve("one").sampler.name == "euler"

    named = tmp_path / "named.yaml"
    named.write_text("aliases: {two: heun, three: heun}\nmodels: {mine: {path: folder}}\n")
    monkeypatch.setenv("SDESAMPLERS_REGISTRY", str(named))
    registry = Registry()
    with pytest.raises(UnknownNameError):
        registry.resolve("one")  # the named file stands in for the found one
    assert registry.catalogue.models["mine"] == {"path": "folder", "base": str(tmp_path)}

    given = tmp_path / "given.yaml"
    given.write_text("aliases: {three: ddim, DDIM: heun}\n")
    registry = Registry(given)
    assert [registry.resolve(n).sampler.name for n in ("two", "three", "DDIM", "DDPM")] == [
        "heun",
        "ddim",
        "heun",
        "ddpm",
    ]


def test_a_model_path_is_relative_to_its_file(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("models: {mine: {path: nowhere}}\n")
    use_registry(file)
    with pytest.raises(SdesamplersError, match=re.escape(str(tmp_path / "nowhere"))):
        sds.load("mine")


def test_the_tables_that_an_entry_names_come_before_the_models_own(tmp_path: Path) -> None:
    process = sds.load(save_pipeline(tmp_path / "tiny")).process
    own = [table_for(process), table_for(process, (0.8, 0.3))]
    ours = [table_for(process, (1.2, 0.2)), table_for(process, (1.0, 0.6, 0.2))]
    for folder, tables in (("tiny/sdesamplers", own), ("lists/ours", ours)):
        for table in tables:
            table.save(tmp_path / folder)
    file = tmp_path / "lists/r.yaml"
    file.write_text("models:\n  mine: {path: ../tiny, tables: ours}\n")
    use_registry(file)
    model = sds.load("mine")
    for nfe, table in {3: ours[0], 4: ours[1], 5: own[0]}.items():
        expected = sds.sample(model, table, num_samples=2).samples
        assert torch.equal(sds.sample(model, "tuned", nfe=nfe, num_samples=2).samples, expected)
    with pytest.raises(UsageError, match=r"^this model has no solver table for 6 evaluations, only for 3, 4, 5$"):
        sds.sample(model, "tuned", nfe=6)
    listed = json.loads(CliRunner().invoke(cli, ["--registry", str(file), "models", "--json"]).stdout)
    assert (listed["mine"]["tables"], listed["mine"]["tables_nfe"]) == ("ours", [3, 4, 5])
    assert listed["fashion-mnist"]["tables_nfe"] == [4, 5, 6, 8, 10, 12, 15, 20]
    assert listed["fashion-mnist"]["tables_by_guidance"] == [
        {"guidance_scale": 1.0, "nfe": [4, 5, 6, 8, 10, 12, 15, 20]}
    ]
    labels = json.loads(CliRunner().invoke(cli, ["info", "fashion-mnist-labels", "--json"]).stdout)
    assert labels["solver tables"] == "5, 6, 8, 10, 15, 20 (guidance 2, 4)"
    assert "3, 4, 5" in CliRunner().invoke(cli, ["--registry", str(file), "info", "mine"]).stdout


def test_a_models_entry_names_its_null_label(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "labelled", unet=tiny_unet(num_class_embeds=5))
    file = tmp_path / "registry.yaml"
    file.write_text(f"models:\n  mine: {{path: {folder.name}, null_condition: 4}}\n")
    use_registry(file)
    assert sds.load("mine").null_condition == 4
    assert sds.load("mine", null_condition=2).null_condition == 2
    file.write_text(f"models:\n  mine:\n    path: {folder.name}\n    null_condition: none\n")
    with pytest.raises(UsageError, match=r":4: models.mine.null_condition: must be a whole number"):
        Registry(file)


def test_tables_that_an_entry_names_and_that_are_not_there(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "tiny")
    (tmp_path / "empty").mkdir()
    file = tmp_path / "r.yaml"
    file.write_text("models:\n  one:\n    path: tiny\n    tables: tabels\n  two: {path: tiny, tables: empty}\n")
    use_registry(file)
    with pytest.raises(UsageError, match=rf"^{re.escape(str(file))}:4: models.one.tables: .*tabels: no such folder$"):
        sds.load("one")
    with pytest.raises(UsageError, match=r"empty has no solver tables \(files nfe-\*.json"):
        sds.sample("two", "tuned", nfe=5)
    listed = json.loads(CliRunner().invoke(cli, ["--registry", str(file), "models", "--json"]).stdout)
    assert "No such file" in listed["one"]["tables_problem"]
    assert "has no solver tables" in listed["two"]["tables_problem"]
    assert listed["one"]["tables_nfe"] == listed["two"]["tables_nfe"] == []


def test_tables_of_an_entry_on_the_hub(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    table = table_for(sds.load(save_pipeline(tmp_path / "tiny")).process, (0.8, 0.3))
    table.save(tmp_path / "repo")
    commit = hub.repo("me/tables").commit_folder(tmp_path / "repo")
    file = tmp_path / "r.yaml"
    file.write_text(f"models:\n  mine: {{path: tiny, tables: 'hf://me/tables@{commit}'}}\n")
    use_registry(file)
    model = sds.load("mine")
    command = ["--registry", str(file), "models", "--json"]
    before = json.loads(CliRunner().invoke(cli, command).stdout)["mine"]
    assert before["tables_nfe"] == []
    assert "not complete in the local cache" in before["tables_problem"]
    assert hub.requests == []  # neither `load` nor `models` connects to the Hub
    expected = sds.sample(model, table, num_samples=2).samples
    assert torch.equal(sds.sample(model, "tuned", nfe=3, num_samples=2).samples, expected)
    assert json.loads(CliRunner().invoke(cli, command).stdout)["mine"]["tables_nfe"] == [3]


def test_plugins_are_imported_from_a_named_file_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = tmp_path / "lab_plugin.py"
    module.write_text(
        "import sdesamplers as sds\n"
        "@sds.sampler('lab', order=1)\n"
        "def lab(x, path):\n    '''Lab.'''\n    yield x, path.points[0]\n    return x\n"
        "@sds.hookimpl\ndef sdesamplers_samplers():\n    return [lab]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = tmp_path / "config" / "sdesamplers" / "registry.yaml"
    found.parent.mkdir(parents=True)
    found.write_text("aliases: {}\nplugins: [lab_plugin]\n")
    with pytest.raises(UsageError, match="only a file named by") as caught:
        Registry()
    assert f"{found}:2: plugins" in str(caught.value)
    assert "lab_plugin" not in sys.modules
    found.unlink()

    named = tmp_path / "named.yaml"
    named.write_text("plugins: [lab_plugin, no_such_plugin]\naliases: {laboratory: lab}\n")
    registry = Registry(named)
    assert registry.resolve("laboratory").sampler.plugin == "lab_plugin"
    assert [p.name for p in registry.plugins if p.error] == ["no_such_plugin"]
    monkeypatch.setenv("SDESAMPLERS_REGISTRY", str(named))
    assert "lab" in Registry().samplers
    sys.modules.pop("lab_plugin", None)


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("recipes:\n  a:\n    sampler: ddim\n    stepz: 3\n", 4, "recipes.a.stepz", "unknown key"),
        ("modls: {}\n", 1, "modls", "unknown key"),
        ("recipes:\n  a:\n    steps: 3\n", 2, "recipes.a", "'sampler' is a required"),
        ("recipes:\n  a: {sampler: ddim}\n  b:\n    sampler: 3\n", 4, "recipes.b.sampler", "must be text"),
        ("recipes:\n  a:\n    sampler: ddim\n    steps: 0\n", 4, "recipes.a.steps", "1 or more"),
        ("recipes:\n  a:\n    sampler: ddim\n    steps: 2.5\n", 4, "recipes.a.steps", "a whole number"),
        ("recipes:\n  a:\n    sampler: ddim\n    coordinates: polar\n", 4, "recipes.a.coordinates", "'angle'"),
        ("models:\n  m:\n    repo: a/b\n", 2, "models.m", "repo and revision"),
        ("models:\n  m:\n    repo: ab\n    revision: main\n", 3, "models.m.repo", "does not match"),
        ("models:\n  m:\n    path: a\n    revison: b\n", 4, "models.m.revison", "unknown key"),
        ("models:\n  m:\n    path: a\n    tables: [a]\n", 4, "models.m.tables", "must be text"),
        ("models:\n  m:\n    path: a\n    tables: ''\n", 4, "models.m.tables", "must be a folder, or hf://"),
        ("models:\n  m:\n    path: a\n    tables: hf://a/b\n", 4, "models.m.tables", "with a pinned commit or tag"),
        ("models:\n  m:\n    path: a\n    tables: hf://a@x\n", 4, "models.m.tables", "hf://owner/name@revision"),
        ("aliases:\n  x: [ddim]\n", 2, "aliases.x", "must be text"),
        ("aliases:\n  1: ddim\n", 1, "aliases", "must be text"),
        ("aliases: ddim\n", 1, "aliases", "a mapping"),
        ("spacing_aliases:\n  x: [karras]\n", 2, "spacing_aliases.x", "must be text or a mapping"),
        ("spacing_aliases:\n  x:\n    options: {}\n", 2, "spacing_aliases.x", "'spacing' is a required"),
        ("spacing_aliases:\n  x:\n    spacing: a\n    option: {}\n", 4, "spacing_aliases.x.option", "unknown key"),
        ("noise_aliases:\n  x: {spacing: a}\n", 2, "noise_aliases.x", ""),
        ("peers:\n  p:\n    sampler: {}\n", 3, "peers.p.sampler", "unknown key"),
        ("peers:\n  p:\n    samplers:\n      x: {steps: 3}\n", 4, "peers.p.samplers.x", "'sampler' is a required"),
        ("peers:\n  p:\n    samplers:\n      x: {reason: ''}\n", 4, "peers.p.samplers.x.reason", ""),
        ("peers:\n  p:\n    spacings:\n      x: {reason: a, spacing: b}\n", 4, "peers.p.spacings.x.spacing", "unknown"),
        ("plugins:\n  - good\n  - os; bad\n", 3, "plugins.1", "does not match"),
        ("- a\n", 1, "top level", "a mapping"),
        ("false\n", 1, "top level", "a mapping"),
    ],
)
def test_errors_name_line_and_key(tmp_path: Path, text: str, line: int, key: str, message: str) -> None:
    said = refuse(text, tmp_path)
    assert said.startswith(f"{line}: {key}: ")
    assert message in said


@pytest.mark.parametrize("text", ["a: [\n", "a: 1\n b: 2\n", "\ta: 1\n", "a: *b\n", b"\xff\xfe\x00", "\x01"])
def test_what_is_not_yaml(tmp_path: Path, text: str | bytes) -> None:
    message = refuse(text, tmp_path)
    assert "not valid YAML" in message or "cannot be read" in message


def test_tags_that_would_run_code_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    message = refuse(f"aliases:\n  a: !!python/object/apply:os.mkdir ['{mark}']\n", tmp_path)
    assert message.startswith("2: not valid YAML")
    assert not mark.exists()


def test_files_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            Registry(place)
    monkeypatch.setenv("SDESAMPLERS_REGISTRY", str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="cannot be read"):
        Registry()


@pytest.mark.parametrize("text", ["", "# nothing\n", "models:\nrecipes:\naliases:\n", "{}\n"])
def test_empty_files_and_sections_are_fine(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    assert Registry(file).catalogue.recipes == Registry().catalogue.recipes


def test_a_bad_file_leaves_the_registry_in_use_alone(tmp_path: Path) -> None:
    before = use_registry(None)
    file = tmp_path / "r.yaml"
    file.write_text("nonsense: 1\n")
    with pytest.raises(UsageError):
        use_registry(file)
    assert default_registry() is before


def presets():
    """Every different thing that a recipe or another library's name runs, under one of its names."""
    registry = sds.default_registry()
    names = [name for name in registry.catalogue.recipes if "{" not in name]
    for peer, kinds in registry.catalogue.peers.items():
        entries = kinds.get("samplers", {}).items()
        names += [f"{peer}:{name}" for name, entry in entries if not (isinstance(entry, dict) and "reason" in entry)]
    seen = {}
    for name in names:
        preset = registry.resolve(name)
        facts = {key: value for key, value in vars(preset).items() if key not in ("description", "sampler")}
        seen.setdefault((preset.sampler.name, repr(facts)), name)
    return sorted(seen.values())


@pytest.mark.parametrize("name", mostly_slow(presets(), keep=presets()[::3]))
def test_every_recipe_and_peers_name_runs(name):
    """On the AYS tables' range of sigma, six steps or its own number; Langevin samplers on the funnel."""
    plain = name in ("ula", "mala", "underdamped-langevin")
    process = sds.EDM(0.0005, 1000.0) if "ays" in name else sds.DiscreteVP(TABLE)
    model = sds.FunnelModel(duration=0.5) if plain else sds.grid_mixture(process, prediction="v")
    preset = sds.default_registry().resolve(name)
    words = {} if preset.steps or preset.sampler.adaptive else {"steps": 6}
    assert torch.isfinite(sds.sample(model, name, num_samples=1, **words).samples).all()


@pytest.mark.parametrize(
    ("name", "description"),
    [
        (
            "Euler Karras",
            "Euler on the grid Karras, in place of linspace",
        ),  # once: "; Euler in sigma on equal timesteps"
        ("k-euler exponential", "k-euler on the grid exponential, in place of karras"),
        ("DPM2 Karras", "DPM2 on the grid Karras; A1111 omits the next-to-last sigma"),
        (
            "DPM2 exponential",
            "DPM2 on the grid exponential, in place of karras; A1111 omits the next-to-last sigma",
        ),
    ],
)
def test_a_sampler_on_another_grid_is_not_described_by_the_grid_that_it_left(name: str, description: str) -> None:
    assert Registry().resolve(name).description == description


def test_no_composite_is_described_by_two_grids() -> None:
    """Every recipe and every A1111 name on a grid that is not its own keeps no sentence of the recipe's."""
    registry = Registry()
    sentences = {name: recipe["description"] for name, recipe in registry.catalogue.recipes.items()}
    names = [name for name in sentences if "{" not in name] + list(registry.catalogue.peers["a1111"]["samplers"])
    tried = 0
    for name in names:
        try:
            found, alone = registry.resolve(f"{name} kl-optimal"), registry.resolve(name)
        except SdesamplersError:
            continue
        tried += 1
        assert (found.spacing, found.sampler.name) == ("kl-optimal", alone.sampler.name)
        assert not any(sentence in found.description for sentence in sentences.values())
    assert tried > 40
