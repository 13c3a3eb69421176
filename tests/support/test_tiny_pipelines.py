"""The tiny pipelines run with their own schedulers, and their networks depend on all that they are given."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import diffusers
import pytest
import tiny_pipelines as tiny
import torch
from lanes import mostly_slow

SHAPES: dict[str, tuple[int, ...]] = {
    "flux": (1, 16, 16),
    "flux-schnell": (1, 16, 16),
    "flux-img2img": (1, 16, 16),
    "qwen-image": (1, 16, 16),
    "dit": (1, 16, 16, 3),
    "ldm": (1, 16, 16, 3),
    "ldm-text": (1, 16, 16, 3),
    "consistency-model": (1, 8, 8, 3),
    "stable-audio": (1, 4, 16),
    "audio-ldm": (1, 32),
    "mochi": (1, 12, 2, 8, 8),
    "wan": (1, 4, 2, 8, 8),
    "ltx": (1, 2 * 8 * 8, 4),
}
UNCONDITIONAL = {"ldm"}


def denoiser(pipe: Any) -> torch.nn.Module:
    """The network that the pipeline's loop asks."""
    return pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


def middle_question(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The denoiser of a new pipeline and the named arguments of the call in the middle of a run."""
    pipe, asked = tiny.BUILDERS[name](), []
    network = denoiser(pipe)

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked.append(inspect.signature(module.forward).bind(*args, **kwargs).arguments)

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        tiny.run(name, pipe)
    finally:
        hook.remove()
    return network, asked[len(asked) // 2]


def answer(network: torch.nn.Module, question: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        out = network(**{**question, "return_dict": False})
    return out[0]


def differs(first: torch.Tensor, second: torch.Tensor) -> float:
    """The root mean square of a difference as a part of the first tensor's."""
    return float(((first - second).square().mean() / first.square().mean()).sqrt())


@pytest.mark.filterwarnings("error", "ignore:In CPU autocast:UserWarning", "ignore::DeprecationWarning:diffusers.*")
@pytest.mark.parametrize("name", mostly_slow(tiny.BUILDERS, keep=tiny.ONE_OF_EACH))
def test_it_runs_quietly_with_its_own_scheduler(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    out = tiny.run(name)

    assert tuple(out.shape) == SHAPES.get(name, (1, 4, 8, 8))
    assert out.isfinite().all()
    assert out.std() > 0.05
    assert "".join(capfd.readouterr()) == ""
    assert torch.equal(out, tiny.run(name)), "the same seed gives the same result"


@pytest.mark.parametrize("name", mostly_slow(tiny.BUILDERS, keep=tiny.ONE_OF_EACH))
def test_its_condition_and_its_seed_count(name: str) -> None:
    out = tiny.run(name)

    assert differs(out, tiny.run(name, seed=1)) > 0.02
    if name not in UNCONDITIONAL:
        assert differs(out, tiny.run(name, **tiny.OTHER.get(name, {"prompt": tiny.OTHER_PROMPT}))) > 0.005


@pytest.mark.parametrize("name", mostly_slow(tiny.BUILDERS, keep=tiny.ONE_OF_EACH))
def test_its_network_depends_on_state_and_time(name: str) -> None:
    network, question = middle_question(name)
    state = "sample" if "sample" in question else "hidden_states"
    before = answer(network, question)

    assert differs(before, answer(network, {**question, state: question[state].flip(-1)})) > 0.01
    assert differs(before, answer(network, {**question, "timestep": question["timestep"] / 2})) > 0.005


SAVED = ("stable-diffusion", "sdxl", "sd3", "flux", "pixart-alpha", "lumina2")


@pytest.mark.parametrize("name", mostly_slow(SAVED, keep=["stable-diffusion", "sd3"]))
def test_a_saved_pipeline_loads_and_gives_the_same(name: str, tmp_path: Any) -> None:
    tiny.BUILDERS[name]().save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)

    # In float64: some CPUs round by how weights are aligned, which is otherwise where they are read in place.
    theirs, ours = (tiny.run(name, pipe.to(torch.float64)) for pipe in (loaded, tiny.own(name)))
    torch.testing.assert_close(theirs, ours)


def test_building_leaves_the_random_state_and_the_verbosity_alone() -> None:
    tiny.vae.cache_clear()  # type: ignore[attr-defined]
    state, levels = torch.get_rng_state(), [logging.getLogger(name).level for name in ("transformers", "diffusers")]
    tiny.stable_diffusion()

    assert torch.equal(torch.get_rng_state(), state)
    assert [logging.getLogger(name).level for name in ("transformers", "diffusers")] == levels


def test_pipelines_share_networks_and_nothing_else() -> None:
    first, second = tiny.stable_diffusion(), tiny.stable_diffusion_img2img()

    assert first.unet is second.unet
    assert first.scheduler is not second.scheduler


@pytest.mark.parametrize("name", ["stable-diffusion", "sd3", "stable-audio"])
def test_a_pipeline_of_ones_own_may_change_its_dtype(name: str) -> None:
    mine = tiny.own(name, torch.bfloat16)

    assert denoiser(mine).dtype == torch.bfloat16
    assert denoiser(tiny.BUILDERS[name]()).dtype == torch.float32
    # bfloat16 keeps 8 bits, and guidance multiplies what rounding leaves.
    assert differs(tiny.run(name), tiny.run(name, mine).float()) < 0.2


def test_every_builder_has_its_call() -> None:
    assert set(tiny.BUILDERS) == set(tiny.CALL)
    assert set(tiny.OTHER) <= set(tiny.CALL)
