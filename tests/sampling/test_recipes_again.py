"""What ran is run again from its record: a recipe in place of a sampler's name, also by way of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from process_cases import TABLE
from safetensors.torch import load_file

import sdesamplers as sds
from sdesamplers.cli import cli


@pytest.fixture(scope="module")
def mixture() -> sds.MixtureModel:
    return sds.grid_mixture(sds.DiscreteVP(TABLE))


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("quality", {}),
    "fast": ("fast", {}),
    "steps": ("dpmpp-2m", {"steps": 5, "spacing": "karras", "spacing_options": {"rho": 5.0}}),
    "budget": ("heun", {"nfe": 9}),
    "options": ("ddim", {"steps": 4, "eta": 0.3}),
    "label": ("DPM++ 2M SDE Karras", {"steps": 4}),
    "recipe": ("odeint:rk4", {"steps": 3}),
    "times": ("euler", {"times": [900.0, 500.0, 100.0, 0.0]}),
    "sigmas": ("dpmpp-2m", {"sigmas": [80.0, 5.0, 0.5, 0.0]}),
    "sigmas to the smallest": ("euler", {"sigmas": [80.0, 5.0, 0.5, 0.02]}),
    "own steps": ("rk45", {"rtol": 1e-3, "atol": 1e-3}),
    "noise": ("euler-maruyama", {"steps": 5, "noise": "brownian", "coordinates": "ve", "final": "min"}),
}


def json_of(recipe: sds.Recipe) -> Any:
    return json.loads(json.dumps(recipe.as_dict()))


@pytest.mark.parametrize("name", CALLS)
def test_a_recipe_gives_the_same_samples(mixture: sds.MixtureModel, name: str) -> None:
    sampler, words = CALLS[name]
    result = sds.sample(mixture, sampler, **words, num_samples=3, seed=7)
    for again in (
        result.recipe,
        result.recipe.as_dict(),
        json_of(result.recipe),
        sds.Recipe.from_dict(json_of(result.recipe)),
    ):
        repeated = sds.sample(mixture, again, num_samples=3, seed=7)
        assert torch.equal(repeated.samples, result.samples)
        assert repeated.recipe == result.recipe


def test_a_recipe_of_a_partly_noised_start(mixture: sds.MixtureModel) -> None:
    start = torch.full((2, 2), 0.5)
    result = sds.sample(mixture, "heun", steps=4, start=start, start_time=400.0)
    assert torch.equal(sds.sample(mixture, result.recipe, start=start).samples, result.samples)
    with pytest.raises(sds.UsageError, match="pass start as well"):
        sds.sample(mixture, result.recipe)


def test_the_calls_words_come_first(mixture: sds.MixtureModel) -> None:
    base = sds.sample(mixture, "ddim", steps=4, eta=0.3, spacing="karras").recipe
    changed = sds.sample(mixture, base, steps=6, eta=0.0).recipe
    assert (changed.steps, changed.options["eta"], changed.spacing) == (6, 0.0, "karras")
    assert sds.sample(mixture, base, times=[900.0, 10.0, 0.0]).recipe.spacing is None
    own = sds.sample(mixture, "rk45", rtol=1e-2).recipe
    assert sds.sample(mixture, own, steps=3).recipe.steps == 3


def test_objects_that_nobody_registered_are_run_again(mixture: sds.MixtureModel) -> None:
    @sds.sampler("half-euler", order=1)
    def half_euler(x, path, *, part: float = 0.5):  # type: ignore[no-untyped-def]
        """Half of Euler's step, part of it."""
        for now, then in path.steps:
            out = yield x, now
            x = out.x + part * (out.step_to(then) - out.x)
        return x

    @sds.spacing("cubes")
    def cubes(span, count):  # type: ignore[no-untyped-def]
        """Even in the cube root of time."""
        return span.end + (span.start - span.end) * np.linspace(1, 0, count) ** 3

    result = sds.sample(mixture, half_euler, steps=5, spacing=cubes, part=0.8, seed=3)
    assert result.recipe.spacing == "cubes"
    assert torch.equal(sds.sample(mixture, result.recipe, seed=3).samples, result.samples)
    karras = sds.spacings()["karras"]
    assert (
        sds.sample(mixture, "euler", steps=3, spacing=karras).recipe
        == sds.sample(mixture, "euler", steps=3, spacing="karras").recipe
    )
    noise = sds.noises()["brownian"]
    assert sds.sample(mixture, "ddpm", steps=3, noise=noise).recipe.noise == "brownian"


def test_other_functions_take_recipes(mixture: sds.MixtureModel, tmp_path: Any) -> None:
    recipe = sds.sample(mixture, "heun", steps=4, spacing="karras").recipe
    done = sds.generate(mixture, recipe, out=tmp_path, num_samples=2)
    assert done.manifest is not None
    assert done.manifest["recipe"] == json_of(recipe)
    first = next(iter(sds.stream(mixture, done.manifest["recipe"], num_samples=2)))
    assert torch.equal(first.samples, sds.sample(mixture, recipe, num_samples=2).samples)
    encoded = sds.encode(mixture, torch.zeros(1, 2), "heun", steps=4)
    assert torch.equal(sds.encode(mixture, torch.zeros(1, 2), encoded.recipe).samples, encoded.samples)
    likelihood = sds.log_likelihood(mixture, torch.zeros(1, 2), "heun", steps=4)
    assert sds.log_likelihood(mixture, torch.zeros(1, 2), likelihood.recipe).nats == likelihood.nats
    scheduler = sds.Scheduler(recipe, trained={"_class_name": "DDPMScheduler"})
    scheduler.set_timesteps(4)
    assert scheduler.spec.name == "heun"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sampler": "heun", "step": 4}, "unknown field of a recipe 'step'; did you mean 'steps'"),
        ({"steps": 4}, "sampler must be a name, not None"),
        ({"sampler": "heun", "steps": "four"}, "steps must be a whole number"),
        ({"sampler": "eulr", "steps": 4}, "did you mean 'euler'"),
    ],
)
def test_what_is_no_recipe_is_refused(mixture: sds.MixtureModel, data: Any, message: str) -> None:
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(mixture, data)


@pytest.mark.slow
def test_the_command_line_runs_its_own_json_again(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["sample", "fashion-mnist", "-n", "2", "--quiet", *arguments])

    words = ["--sampler", "ddim", "--steps", "3", "-o", "eta=0.4", "--spacing", "karras", "--format", "safetensors"]
    first = run(*words, "--out", str(tmp_path / "a"), "--json")
    assert first.exit_code == 0, first.output
    (tmp_path / "told.json").write_text(first.stdout)
    for number, file in enumerate((tmp_path / "told.json", tmp_path / "a" / "manifest.json")):
        out = tmp_path / f"b{number}"
        again = run("--recipe", str(file), "--format", "safetensors", "--out", str(out))
        assert again.exit_code == 0, again.output
        one, two = (load_file(next(folder.glob("samples*.safetensors"))) for folder in (tmp_path / "a", out))
        assert torch.equal(one["samples"], two["samples"])
    assert "omit --sampler" in str(run("--recipe", str(tmp_path / "told.json"), "--sampler", "heun").exception)


def test_a_job_does_not_forget_a_start(mixture: sds.MixtureModel, tmp_path: Path) -> None:
    recipe = sds.sample(mixture, "heun", steps=4, start=torch.zeros(1, 2), start_time=400.0).recipe
    with pytest.raises(sds.UsageError, match="pass start as well"):
        sds.generate(mixture, recipe, out=tmp_path, num_samples=2)


def test_a_recipe_of_a_sampler_and_a_number_of_steps(mixture: sds.MixtureModel) -> None:
    recipe = sds.Recipe("ddim", steps=3, options={"eta": 0.5})
    assert repr(recipe) == "Recipe(sampler='ddim', options={'eta': 0.5}, steps=3)"
    ran = sds.sample(mixture, recipe, seed=2)
    assert torch.equal(ran.samples, sds.sample(mixture, "ddim", steps=3, eta=0.5, seed=2).samples)
    assert sds.Recipe("euler", sigmas=[3.0, 1.0, 0.0]).sigmas == (3.0, 1.0, 0.0)
    with pytest.raises(sds.UsageError, match="options must be a dictionary"):
        sds.Recipe("ddim", options=["eta"])
    with pytest.raises(sds.UsageError, match="sampler must be a name"):
        sds.Recipe(3)


def test_a_file_with_a_sampler_of_this_program_says_what_readers_need(tmp_path) -> None:
    @sds.sampler("only-here", order=1, evaluations=1)
    def only_here(x, path):
        """Nothing."""
        for _ in path.steps:
            yield x
        return x

    sds.register(only_here)
    with pytest.warns(sds.SdesamplersWarning, match=r"only this program has registered the sampler 'only-here'"):
        sds.Recipe("only-here", steps=3).save(tmp_path / "mine.yaml")


@pytest.mark.parametrize("grid", [{"times": (1.0, 0.0)}, {"sigmas": (1.0, 0.0)}])
def test_a_recipe_has_one_grid(grid):
    with pytest.raises(sds.UsageError, match=r"has one grid, and this one has (times|sigmas) and spacing; keep one"):
        sds.Recipe("euler", spacing="karras", **grid)
