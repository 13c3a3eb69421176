"""`Scheduler` in unmodified diffusers pipelines of every kind, end to end, on tiny random networks."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers.pipelines import pipeline_utils
from diffusers.schedulers import scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete, scheduling_lcm
from hub_server import HubServer
from huggingface_hub import snapshot_download
from lanes import mostly_slow
from solver_tables import table_for
from tqdm.auto import tqdm

import sdesamplers as sds
from sdesamplers.errors import UsageError
from sdesamplers.path.noise import PATH, NormalSource
from sdesamplers.registry.registry import use_registry

PLUGIN = Path(__file__).parents[2] / "examples" / "third_party_plugin" / "sdesamplers_two_stage.py"

EVALUATIONS: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(["euler", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "er-sde", "euler-maruyama"], lambda steps: steps),
    **dict.fromkeys(["heun", "two-stage"], lambda steps: 2 * steps - 1),
    "rk4": lambda steps: 4 * steps - 3,
}
"""Evaluations in a number of steps, the last of them into sigma = 0."""

MAIN = (
    *("stable-diffusion", "stable-diffusion-v", "stable-diffusion-img2img", "stable-diffusion-inpaint"),
    *("stable-diffusion-inpaint-9", "stable-diffusion-controlnet"),
    *("sdxl", "sdxl-img2img", "sdxl-inpaint", "sdxl-inpaint-9", "sdxl-edm"),
    *("sd3", "sd3-img2img", "flux", "flux-schnell", "flux-img2img", "pixart-alpha", "pixart-sigma", "dit"),
)
FEW = ("heun", "dpmpp-2m-sde", "unipc")
TWO_PASS = ("lumina2", "qwen-image", "wan")
"""Pipelines that ask the network twice for a guided answer."""


@pytest.fixture(autouse=True, scope="module")
def registry() -> Iterator[None]:
    """The example plugin's sampler beside the built-in ones."""
    use_registry(None, plugins=[str(PLUGIN)])
    yield
    use_registry(None)


def with_sampler(name: str, sampler: str, pipe: Any = None, **words: Any) -> Any:
    """A tiny pipeline that runs one of our samplers, into sigma = 0 wherever the makers' own grid ends."""
    pipe = tiny.BUILDERS[name]() if pipe is None else pipe
    pipe.scheduler = sds.Scheduler.from_config(pipe.scheduler.config, sampler, **{"final": "zero", **words})
    return pipe


def network_of(pipe: Any) -> torch.nn.Module:
    return pipe.unet if getattr(pipe, "transformer", None) is None else pipe.transformer


@contextlib.contextmanager
def asked(pipe: Any) -> Iterator[list[tuple[int, ...]]]:
    """One entry for each call of the network."""
    calls: list[tuple[int, ...]] = []
    hook = network_of(pipe).register_forward_hook(lambda module, args, output: calls.append(()))
    try:
        yield calls
    finally:
        hook.remove()


def tensor_of(output: Any) -> torch.Tensor:
    return torch.as_tensor(next(iter(output.values())))


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a part of the range of what is expected."""
    spread = expected.double().max() - expected.double().min()
    return float((found.double() - expected.double()).abs().max() / spread)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Every kind of pipeline, every kind of sampler


def steps_asked(name: str, sampler: str, steps: int, strength: float) -> int:
    """The steps that an image-to-image pipeline makes of those it is told, by its own rounding.

    FLUX's pipeline gives a grid, and then takes the number of timesteps, one an evaluation, for that of the steps.
    """
    if name.startswith("flux"):
        count, order = EVALUATIONS[sampler](steps), EVALUATIONS[sampler](2) - 1
        return steps - math.ceil(int(count - count * strength) / order)
    if name.startswith("sd3"):
        return steps - int(steps - steps * strength)
    return int(steps * strength)


@pytest.mark.parametrize(
    ("name", "sampler"),
    mostly_slow(
        [(name, sampler) for name in tiny.BUILDERS for sampler in (EVALUATIONS if name in MAIN else FEW)],
        keep=lambda name, sampler: sampler == "heun" or name == "stable-diffusion",
    ),
)
def test_every_pipeline_runs_every_kind_of_sampler(name: str, sampler: str) -> None:
    pipe = with_sampler(name, sampler)
    with asked(pipe) as calls:
        out = tiny.run(name, pipe)

    told = tiny.CALL[name]
    steps = steps_asked(name, sampler, told["num_inference_steps"], told.get("strength", 1.0))
    assert len(calls) == EVALUATIONS[sampler](steps) * (2 if name in TWO_PASS else 1)
    assert pipe.scheduler.num_inference_steps == told["num_inference_steps"]
    assert len(pipe.scheduler.timesteps) == EVALUATIONS[sampler](told["num_inference_steps"])
    assert out.isfinite().all()
    assert out.std() > 0.05
    state = torch.zeros(1, 4, 8, 8)
    with pytest.raises(UsageError, match=r"this run ended after \d+ evaluations"):
        pipe.scheduler.step(state, 0.0, state)


class Zero(sds.Model):
    """A model without an opinion, on a scheduler's process."""

    def __init__(self, scheduler: Any) -> None:
        self.process, self.prediction, self.shape = scheduler.convention.process, "v", (1,)

    def predict(self, x: torch.Tensor, t: Any, condition: Any = None) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("name", ["stable-diffusion", "sd3", "sdxl-edm"])
@pytest.mark.parametrize("sampler", [*EVALUATIONS, "pndm", "dpmpp-3m-sde", "restart", "dpm-fast"])
def test_a_pipeline_asks_as_often_as_sample_does(name: str, sampler: str) -> None:
    scheduler = with_sampler(name, sampler).scheduler
    scheduler.set_timesteps(6)
    assert len(scheduler.timesteps) == sds.sample(Zero(scheduler), sampler, steps=6, final="zero").nfe


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "pixart-alpha"])
def test_images_do_not_depend_on_their_batch(name: str) -> None:
    """A list of generators gives each image its own start and its own noise."""
    pipe = with_sampler(name, "dpmpp-2m-sde")
    call = {**tiny.CALL[name], "prompt": [tiny.PROMPT, tiny.OTHER_PROMPT]}
    together = tensor_of(pipe(**call, generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)]))
    alone = tiny.run(name, pipe, prompt=tiny.OTHER_PROMPT, generator=torch.Generator().manual_seed(4))
    assert apart(together[1:], alone) < 1e-4
    assert apart(together[:1], alone) > 0.01


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_noise_where_a_pipeline_keeps_its_generator_to_itself(name: str) -> None:
    """Flow pipelines do not hand their generator to the scheduler: its own seed, or torch's global one, counts."""
    pipe = with_sampler(name, "dpmpp-2m-sde")
    assert apart(tiny.run(name, pipe), tiny.run(name, pipe)) > 1e-3

    def globally_seeded() -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return tiny.run(name, pipe)

    torch.testing.assert_close(globally_seeded(), globally_seeded(), rtol=0, atol=0)
    seeded = with_sampler(name, "dpmpp-2m-sde", seed=3)
    torch.testing.assert_close(tiny.run(name, seeded), tiny.run(name, seeded), rtol=0, atol=0)


# Starting in the middle

PAIRS = [
    *[(steps, strength) for steps in (1, 2, 3, 4, 7) for strength in (0.05, 0.3, 0.5, 0.75, 0.99, 1.0)],
    *[(5, 0.2), (5, 0.4), (5, 0.8), (6, 0.34), (9, 0.1), (10, 0.29), (10, 0.3), (11, 0.6), (30, 0.1), (50, 0.05)],
]
MIDDLE = ("euler", "heun", "dpmpp-2m", "dpmpp-2m-sde", "rk4")


def runs_from_the_middle(name: str, sampler: str, steps: int, strength: float) -> torch.Tensor:
    pipe, kept = with_sampler(name, sampler), steps_asked(name, sampler, steps, strength)
    with asked(pipe) as calls:
        out = tiny.run(name, pipe, num_inference_steps=steps, strength=strength)
    assert len(calls) == (EVALUATIONS[sampler](kept) if kept else 0)
    assert out.isfinite().all()
    return out


FEW_PAIRS = ((1, 0.99), (2, 0.5), (5, 0.4), (6, 0.34), (7, 0.99), (10, 0.29))
"""Of `PAIRS`: no step and all, and products of steps and strength just below a whole number and just above."""


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [
            *("stable-diffusion-img2img", "stable-diffusion-inpaint", "sdxl-img2img", "sdxl-inpaint-9"),
            *("sd3-img2img", "flux-img2img"),
        ],
        keep=["stable-diffusion-img2img", "sd3-img2img"],
    ),
)
def test_pipelines_start_in_the_middle(name: str) -> None:
    """Each pair once, the samplers in turn."""
    for k, (steps, strength) in enumerate(FEW_PAIRS):
        if steps_asked(name, MIDDLE[k % len(MIDDLE)], steps, strength) or "inpaint" not in name:
            runs_from_the_middle(name, MIDDLE[k % len(MIDDLE)], steps, strength)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", MIDDLE)
def test_image_to_image_at_every_strength(sampler: str) -> None:
    for steps, strength in PAIRS:
        runs_from_the_middle("stable-diffusion-img2img", sampler, steps, strength)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["stable-diffusion-inpaint", "sdxl-img2img", "sdxl-inpaint-9", "sd3-img2img", "flux-img2img"]
)
def test_other_pipelines_at_every_strength(name: str) -> None:
    """Each pair once, the samplers in turn."""
    for k, (steps, strength) in enumerate(PAIRS):
        if steps_asked(name, MIDDLE[k % len(MIDDLE)], steps, strength) or name == "sdxl-img2img":
            runs_from_the_middle(name, MIDDLE[k % len(MIDDLE)], steps, strength)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [*MIDDLE, "unipc", "er-sde", "euler-maruyama", "two-stage"])
@pytest.mark.parametrize("name", [name for name in tiny.BUILDERS if "strength" in tiny.CALL[name]])
def test_all_pipelines_and_samplers_at_every_strength(name: str, sampler: str) -> None:
    for steps, strength in PAIRS:
        if steps_asked(name, sampler, steps, strength) or "inpaint" not in name:
            runs_from_the_middle(name, sampler, steps, strength)


def test_no_steps_leave_the_picture_alone() -> None:
    vae = tiny.stable_diffusion_img2img().vae
    latents = vae.encode(2 * tiny.picture() - 1).latent_dist.sample(torch.Generator().manual_seed(0))
    for sampler in MIDDLE:
        out = runs_from_the_middle("stable-diffusion-img2img", sampler, 1, 0.5)
        torch.testing.assert_close(out, latents * vae.config.scaling_factor)


@pytest.mark.parametrize("name", ["stable-diffusion-inpaint", "sdxl-inpaint"])
def test_pipelines_that_refuse_no_steps_do_so_themselves(name: str) -> None:
    with pytest.raises(ValueError, match=r"number of pipelinesteps is 0 which is < 1"):
        tiny.run(name, with_sampler(name, "heun"), num_inference_steps=2, strength=0.3)


@pytest.mark.parametrize("sampler", MIDDLE)
def test_a_start_in_the_middle_is_the_rest_of_a_run(sampler: str) -> None:
    """Half the strength is the second half of the grid."""
    pipe = with_sampler("stable-diffusion-img2img", sampler)
    tiny.run("stable-diffusion-img2img", pipe, num_inference_steps=6, strength=0.5)
    whole = list(pipe.scheduler.timesteps)
    half = list(pipe.scheduler.timesteps[3 * pipe.scheduler.order :])
    assert half == whole[-len(half) :]
    assert len(half) == EVALUATIONS[sampler](3)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m", "dpmpp-2m-sde"])
@pytest.mark.parametrize("name", ["stable-diffusion-inpaint", "sdxl-inpaint"])
def test_inpainting_keeps_what_the_mask_does_not_repaint(name: str, sampler: str) -> None:
    """The pipeline overwrites the left half with the noised picture after each step: the end is the picture's."""
    pipe = with_sampler(name, sampler)
    out = tiny.run(name, pipe, num_inference_steps=4, strength=1.0)
    other = tiny.run(name, pipe, num_inference_steps=4, strength=1.0, prompt=tiny.OTHER_PROMPT)
    torch.testing.assert_close(out[..., :4], other[..., :4], rtol=0, atol=0)
    assert apart(out[..., 4:], other[..., 4:]) > 1e-3


# What the pipeline shows and lets others do


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The progress bars that pipelines make, tqdm's own, writing to nowhere."""
    made: list[Any] = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **words: Any) -> None:
            super().__init__(*args, **{**words, "disable": False, "file": io.StringIO()})
            made.append(self)

    monkeypatch.setattr(pipeline_utils, "tqdm", Bar)
    return made


@pytest.mark.parametrize(
    "sampler", mostly_slow(["euler", "heun", "rk4", "pndm", "dpmpp-2m", "two-stage"], keep=["heun", "pndm"])
)
@pytest.mark.parametrize(
    "name", ["stable-diffusion", "stable-diffusion-img2img", "sdxl", "sd3", "flux", "pixart-alpha", "dit", "kandinsky"]
)
def test_progress_bars_end_full_and_callbacks_count(name: str, sampler: str, bars: list[Any]) -> None:
    pipe, numbers, times = with_sampler(name, sampler), list[int](), list[float]()

    def note(pipe: Any, number: int, timestep: torch.Tensor, values: dict[str, Any]) -> dict[str, Any]:
        numbers.append(number)
        times.append(float(timestep))
        return values

    takes_callback = "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
    with asked(pipe) as calls:
        tiny.run(name, pipe, num_inference_steps=5, **({"callback_on_step_end": note} if takes_callback else {}))

    (bar,) = bars
    assert bar.n == bar.total > 0
    if takes_callback:
        assert numbers == list(range(len(calls)))
        assert times == sorted(times, reverse=True)
        assert times[-1] == float(pipe.scheduler.timesteps[-1])


@pytest.mark.parametrize(
    "sampler", mostly_slow(["euler", "heun", "rk4", "dpmpp-2m", "unipc", "dpmpp-2m-sde"], keep=["heun", "dpmpp-2m-sde"])
)
@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "sd3"])
def test_latents_that_a_callback_replaces_are_respected(name: str, sampler: str) -> None:
    """Whatever came before, a run whose states are all replaced knows nothing of where it started."""
    pipe, mine = with_sampler(name, sampler, seed=1), noise(1, 4, 8, 8)

    def replace(pipe: Any, number: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return values if number == len(pipe.scheduler.timesteps) - 1 else {"latents": mine.clone()}

    first, second = (
        tiny.run(name, pipe, seed=seed, num_inference_steps=5, callback_on_step_end=replace) for seed in (0, 1)
    )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    assert apart(tiny.run(name, pipe, num_inference_steps=5), first) > 0.01


def test_edited_latents_give_what_diffusers_gives() -> None:
    def halve(pipe: Any, number: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        values["latents"].mul_(0.5)  # in place: no other tensor comes back
        return values if number % 2 else {"latents": values["latents"] + 0.1}

    outs = []
    for ours in (False, True):
        pipe = tiny.stable_diffusion(set_alpha_to_one=True, timestep_spacing="trailing")
        steps = {"timesteps": [999, 799, 599, 399, 199]} if ours else {"num_inference_steps": 5}
        pipe = with_sampler("", "ddim", pipe) if ours else pipe
        pipe.scheduler.set_timesteps(**steps)
        start = noise(1, 4, 8, 8) / pipe.scheduler.init_noise_sigma
        outs.append(tiny.run("stable-diffusion", pipe, **steps, latents=start, callback_on_step_end=halve))
    assert apart(outs[1], outs[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unedited_echo_changes_nothing(dtype: torch.dtype) -> None:
    pipe = with_sampler("", "dpmpp-2m", tiny.own("stable-diffusion", dtype))

    def echo(pipe: Any, number: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"].clone()}

    plain = tiny.run("stable-diffusion", pipe, num_inference_steps=6)
    echoed = tiny.run("stable-diffusion", pipe, num_inference_steps=6, callback_on_step_end=echo)
    torch.testing.assert_close(plain, echoed, rtol=0, atol=0)


@pytest.mark.parametrize("sampler", mostly_slow(["euler", "heun", "dpmpp-2m-sde"], keep=["heun", "dpmpp-2m-sde"]))
@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "sd3", "flux"])
def test_an_interrupted_run_ends_and_the_next_is_whole(name: str, sampler: str) -> None:
    pipe = with_sampler(name, sampler, seed=1)
    whole = tiny.run(name, pipe)

    def interrupt(pipe: Any, number: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = number == 1
        return values

    with asked(pipe) as calls:
        out = tiny.run(name, pipe, callback_on_step_end=interrupt)
    assert len(calls) == 2
    assert out.isfinite().all()
    torch.testing.assert_close(tiny.run(name, pipe), whole, rtol=0, atol=0)


# The same method of diffusers, in the same pipeline, on the same grid

WHOLE = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
KARRAS = {**WHOLE, "use_karras_sigmas": True}
LAST = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": True}
IN_FLOW = {
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "flow_shift": 3.0,
    "final_sigmas_type": "zero",
}
STEPS = 20


def dampened(name: str, gain: float) -> Any:
    """A pipeline whose network is nearly constant, so that runs do not differ by what it makes of rounding."""
    pipe, most = tiny.own(name), noise(1, 4, 8, 8, seed=6)
    network_of(pipe).register_forward_hook(lambda module, args, output: (output[0] * gain + most,))
    return pipe


def told_exactly(scheduler: Any) -> None:
    """Keep diffusers' solvers from cutting a flow model's timesteps down to whole ones."""
    set_timesteps = scheduler.set_timesteps

    def exactly(*args: Any, **words: Any) -> None:
        set_timesteps(*args, **words)
        scheduler.timesteps = scheduler.sigmas[:-1] * 1000

    scheduler.set_timesteps = exactly


def grid_of(scheduler: Any, ours: Any, kind: str) -> dict[str, Any]:
    """What to tell our scheduler, for the grid that diffusers' one has laid out."""
    if kind == "timesteps":
        return {"timesteps": list(dict.fromkeys(scheduler.timesteps.tolist()))}
    if kind == "steps":
        return {"num_inference_steps": len(scheduler.timesteps)}
    sigmas = np.array(list(dict.fromkeys(scheduler.sigmas.tolist())))
    shift = getattr(ours.convention.process, "shift", 1.0)
    return {"sigmas": (sigmas / (shift - (shift - 1) * sigmas)).tolist()}


def same_run(
    name: str,
    theirs: Any,
    ours: Any,
    grid: str,
    *,
    pipe: Any = None,
    steps: int = STEPS,
    divided: bool = False,
    told: dict[str, Any] | None = None,
    **call: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ours, theirs): latents at the end of a pipeline that starts from the same state; theirs may be over alpha."""
    pipe = tiny.BUILDERS[name]() if pipe is None else pipe
    theirs.set_timesteps(steps)
    told = told or grid_of(theirs, ours, grid)
    ours.set_timesteps(**told)
    scaled = not isinstance(ours.convention.process, sds.RectifiedFlow)
    state = noise(1, 4, 8, 8) * (ours.init_noise_sigma if scaled else 1.0)
    outs = []
    for scheduler, words in ((ours, told), (theirs, {})):
        start = state * (float(np.hypot(1.0, theirs.sigmas[0])) if divided and scheduler is theirs else 1.0)
        pipe.scheduler = scheduler
        start = start / float(scheduler.init_noise_sigma) if scaled else start
        outs.append(tiny.run(name, pipe, **{"num_inference_steps": steps, "latents": start, **words, **call}))
    return outs[0], outs[1]


@pytest.mark.parametrize("name", mostly_slow(["stable-diffusion", "stable-diffusion-v"], keep=["stable-diffusion"]))
@pytest.mark.parametrize(
    ("kind", "words", "sampler", "options", "grid"),
    mostly_slow(
        [
            ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": True}, "ddim", {}, "timesteps"),
            ("DDIMScheduler", LAST, "ddim", {}, "timesteps"),
            ("EulerDiscreteScheduler", WHOLE, "euler", {"coordinates": "ve"}, "sigmas"),
            ("EulerDiscreteScheduler", KARRAS, "euler", {"coordinates": "ve"}, "sigmas"),
            ("HeunDiscreteScheduler", WHOLE, "heun", {"coordinates": "ve"}, "sigmas"),
            ("LMSDiscreteScheduler", WHOLE, "lms", {"coordinates": "ve"}, "sigmas"),
            ("DPMSolverMultistepScheduler", WHOLE, "dpmpp-2m", {}, "timesteps"),
            (
                "DPMSolverMultistepScheduler",
                {**WHOLE, "solver_type": "heun"},
                "dpmpp-2m",
                {"solver": "heun"},
                "timesteps",
            ),
            ("DPMSolverMultistepScheduler", KARRAS, "dpmpp-2m", {"round_timesteps": True}, "sigmas"),
            ("UniPCMultistepScheduler", WHOLE, "unipc", {"order": 2}, "timesteps"),
        ],
        keep=lambda kind, words, sampler, options, grid: (
            (sampler == "ddim" and words != LAST)
            or (sampler, words) == ("dpmpp-2m", KARRAS)
            or sampler in ("lms", "unipc")
        ),
    ),
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_parity_on_a_table(
    name: str, kind: str, words: dict[str, Any], sampler: str, options: dict[str, Any], grid: str
) -> None:
    config = {**tiny.BUILDERS[name]().scheduler.config, **words}
    theirs = getattr(diffusers, kind).from_config(config)
    ours = sds.Scheduler.from_config(theirs.config, sampler, **options)
    divided = kind.startswith(("Euler", "Heun", "LMS"))
    found, expected = same_run(name, theirs, ours, grid, divided=divided)
    assert apart(found, expected) < 1e-4


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-v"])
def test_parity_of_deis(name: str) -> None:
    """diffusers' ends at the table's smallest sigma; 27 steps of 37 timesteps are whole."""
    config = {**tiny.BUILDERS[name]().scheduler.config, "timestep_spacing": "linspace"}
    theirs = diffusers.DEISMultistepScheduler.from_config(config, solver_order=2)
    words = {"order": 2, "kind": "logrho", "spacing": "linspace", "final": "min"}
    found, expected = same_run(
        name, theirs, sds.Scheduler.from_config(theirs.config, "deis", **words), "steps", steps=27
    )
    assert apart(found, expected) < 1e-4


@pytest.mark.parametrize(
    ("skip", "sampler", "evaluations"),
    mostly_slow([(True, "plms", 21), (False, "pndm", 29)], keep=[(False, "pndm", 29)]),
)
def test_parity_of_pndm(skip: bool, sampler: str, evaluations: int) -> None:
    """Both with its Runge-Kutta steps and without, at 20 steps."""
    theirs = diffusers.PNDMScheduler(**tiny.SD_TABLE, skip_prk_steps=skip, **LAST)
    ours = sds.Scheduler.from_config(theirs.config, sampler)
    grid = {"timesteps": list(range(951, 0, -50))}
    found, expected = same_run("stable-diffusion", theirs, ours, "", told=grid)
    assert len(ours.timesteps) == len(theirs.timesteps) == evaluations
    assert apart(found, expected) < 1e-4


@pytest.mark.slow
def test_pndm_of_v_models_is_that_of_their_noise() -> None:
    """PNDM combines noises. diffusers combines v and reads the result as noise at the present state, which is another
    method, of first order: the same network, made to predict noise, gives ours there too."""
    table = {**tiny.SD_TABLE, "skip_prk_steps": True, **LAST}
    theirs, by_noise = (diffusers.PNDMScheduler(**table, prediction_type=p) for p in ("v_prediction", "epsilon"))
    ours = sds.Scheduler.from_config(theirs.config, "plms")
    levels = theirs.alphas_cumprod

    def as_noise(module: Any, args: Any, output: Any) -> Any:
        (x, t), (v,) = args, output
        return (levels[int(t)].sqrt() * v + (1 - levels[int(t)]).sqrt() * x,)

    converted = tiny.own("stable-diffusion-v")
    converted.unet.register_forward_hook(as_noise)
    seen: list[torch.Tensor] = []

    def keep(pipe: Any, number: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"])
        return values

    gaps = []
    for steps in (20, 50):
        grid = {"timesteps": list(range(1000 - 1000 // steps + 1, 0, -1000 // steps))}
        call: dict[str, Any] = {"steps": steps, "told": grid, "callback_on_step_end": keep}
        found, expected = same_run("stable-diffusion-v", theirs, ours, "", **call)
        gaps.append(apart(expected, found))
        same_run("stable-diffusion-v", by_noise, ours, "", pipe=converted, **call)
        # Before the last step, which is DDIM's here and a combination there.
        assert apart(seen[steps - 1], seen[-2]) < 1e-4
        seen.clear()
    assert gaps[0] > 0.02
    assert 2 < gaps[0] / gaps[1] < 3


@pytest.mark.parametrize(
    ("kind", "words", "sampler", "options"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, "euler", {}),
        ("FlowMatchHeunDiscreteScheduler", {}, "heun", {}),
        ("DPMSolverMultistepScheduler", IN_FLOW, "dpmpp-2m", {}),
        ("UniPCMultistepScheduler", IN_FLOW, "unipc", {"order": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_parity_in_flow_matching(kind: str, words: dict[str, Any], sampler: str, options: dict[str, Any]) -> None:
    theirs = getattr(diffusers, kind)(**(words or {"shift": 3.0}))
    if words:
        told_exactly(theirs)
    ours = sds.Scheduler.from_config(tiny.sd3().scheduler.config, sampler, **options)
    found, expected = same_run("sd3", theirs, ours, "sigmas")
    assert len(ours.timesteps) == len(theirs.timesteps)
    assert apart(found, expected) < 1e-4


def test_parity_with_dynamic_shifting() -> None:
    """FLUX's shift follows from the picture's size, which the pipeline hands on as mu."""
    even = np.linspace(1.0, 1 / STEPS, STEPS).tolist()
    theirs = tiny.run("flux", tiny.flux(), num_inference_steps=STEPS)
    own_grid = tiny.run("flux", with_sampler("flux", "euler"), sigmas=[*even, 0.0])
    assert apart(own_grid, theirs) < 1e-5
    # Told a number of steps and no grid, ours ends them at the smallest time that the network was trained at.
    assert apart(tiny.run("flux", with_sampler("flux", "euler"), num_inference_steps=STEPS), theirs) < 1e-2


@pytest.mark.parametrize(
    ("kind", "sampler", "prediction"),
    mostly_slow(
        [
            ("EDMEulerScheduler", "euler", "epsilon"),
            ("EDMDPMSolverMultistepScheduler", "dpmpp-2m", "epsilon"),
            ("EDMEulerScheduler", "euler", "v_prediction"),
            ("EDMDPMSolverMultistepScheduler", "dpmpp-2m", "v_prediction"),
        ],
        keep=lambda kind, sampler, prediction: (sampler == "euler") == (prediction == "epsilon"),
    ),
)
def test_parity_with_edm(kind: str, sampler: str, prediction: str) -> None:
    """At the last sigma of 0.002 the random network amplifies rounding a hundredfold, so it is turned down."""
    config = {**tiny.sdxl_edm(prediction).scheduler.config, "final_sigmas_type": "zero"}
    theirs = getattr(diffusers, kind).from_config(config)
    ours = sds.Scheduler.from_config(theirs.config, sampler, coordinates="ve")
    found, expected = same_run("sdxl-edm", theirs, ours, "sigmas", pipe=dampened("sdxl-edm", 0.1))
    assert apart(found, expected) < 1e-4


def parity_with_noise(monkeypatch: pytest.MonkeyPatch, samplers: tuple[str, ...]) -> None:
    """Stochastic methods, with our noise put into theirs."""
    cases: list[tuple[Any, Any, str, dict[str, Any], str, bool]] = [
        (scheduling_lcm, diffusers.LCMScheduler, "lcm", {}, "timesteps", False),
        (
            scheduling_dpmsolver_multistep,
            functools.partial(diffusers.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
            *("dpmpp-2m-sde", {}, "timesteps", False),
        ),
        (
            scheduling_euler_ancestral_discrete,
            diffusers.EulerAncestralDiscreteScheduler,
            *("euler-ancestral", {"coordinates": "ve"}, "sigmas", True),
        ),
    ]
    for module, make, sampler, options, grid, divided in cases:
        if sampler not in samplers:
            continue
        words = {} if sampler == "lcm" else {"timestep_spacing": "trailing"}
        theirs = make(**tiny.SD_TABLE, **words)
        ours = sds.Scheduler.from_config(theirs.config, sampler, **options)
        source = NormalSource(0, [0], (4, 8, 8))
        draws = iter([source.draw(PATH, k + 1) for k in range(STEPS)])
        monkeypatch.setattr(module, "randn_tensor", lambda *args, draws=draws, **words: next(draws))
        found, expected = same_run("stable-diffusion", theirs, ours, grid, divided=divided)
        assert apart(found, expected) < 1e-3, sampler


@pytest.mark.slow
def test_parity_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    parity_with_noise(monkeypatch, ("lcm", "dpmpp-2m-sde", "euler-ancestral"))


def test_parity_of_one_method_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    parity_with_noise(monkeypatch, ("dpmpp-2m-sde",))


def test_parity_with_a_consistency_model() -> None:
    """One step from the same noise: the consistency function itself."""
    pipes = tiny.consistency_model(), with_sampler("consistency-model", "consistency")
    call = {"num_inference_steps": 1, "latents": noise(1, 3, 8, 8)}
    theirs, ours = (tiny.run("consistency-model", pipe, **call) for pipe in pipes)
    assert apart(ours, theirs) < 1e-5


# Saved and loaded


def options_of(scheduler: Any) -> tuple[Any, ...]:
    config = scheduler.config
    return tuple(config[word] for word in ("sampler", "options", "spacing", "coordinates", "seed", "round_timesteps"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline with one of our schedulers, saved by diffusers."""
    folder = tmp_path_factory.mktemp("saved")
    chosen(tiny.own("stable-diffusion")).save_pretrained(folder)
    return folder


def chosen(pipe: Any) -> Any:
    words = {"spacing": "karras", "coordinates": "ve", "seed": 5}
    return with_sampler("", "dpmpp-2m-sde", pipe, **words, solver="heun")


@pytest.mark.parametrize("kind", ["DiffusionPipeline", "StableDiffusionPipeline"])
def test_a_saved_pipeline_brings_its_scheduler_back(saved: Path, kind: str) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    assert index["scheduler"][1] == "Scheduler"
    assert index["scheduler"][0].split(".")[0] == "sdesamplers"
    loaded = getattr(diffusers, kind).from_pretrained(saved)
    loaded.set_progress_bar_config(disable=True)
    before = chosen(tiny.stable_diffusion())
    assert type(loaded.scheduler) is sds.Scheduler
    assert options_of(loaded.scheduler) == options_of(before.scheduler)
    torch.testing.assert_close(tiny.run("stable-diffusion", loaded), tiny.run("stable-diffusion", before))


@pytest.mark.parametrize("name", ["sdxl-edm", "sd3", "flux", "dit"])
def test_other_kinds_come_back_too(name: str, tmp_path: Path) -> None:
    pipe = with_sampler(name, "two-stage", node=0.5)
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert options_of(loaded.scheduler) == options_of(pipe.scheduler)
    before = tiny.run(name, pipe)
    pipe.scheduler = loaded.scheduler  # with the same weights: some CPUs round by their alignment
    torch.testing.assert_close(tiny.run(name, pipe), before)


def test_a_scheduler_that_is_passed_in_counts(saved: Path) -> None:
    mine = sds.Scheduler.from_pretrained(saved, subfolder="scheduler", sampler="heun")
    assert mine.config["sampler"] == "heun"
    assert mine.config["beta_start"] == tiny.SD_TABLE["beta_start"]
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(saved, scheduler=mine)
    assert loaded.scheduler is mine
    ddim = diffusers.DDIMScheduler.from_pretrained(saved, subfolder="scheduler")
    assert type(diffusers.StableDiffusionPipeline.from_pretrained(saved, scheduler=ddim).scheduler) is type(ddim)


def test_the_way_back_to_a_diffusers_scheduler() -> None:
    pipe = tiny.stable_diffusion("v_prediction")
    before, kind = tiny.run("stable-diffusion-v", pipe), type(pipe.scheduler)
    pipe = with_sampler("", "heun", pipe, spacing="karras")
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    torch.testing.assert_close(tiny.run("stable-diffusion-v", pipe), before, rtol=0, atol=0)


def test_a_pipeline_of_other_pipelines_components() -> None:
    """Pipelines made of one another share components, and each of ours has a scheduler of its own by `clone`."""
    first = with_sampler("sdxl", "heun")
    second = diffusers.StableDiffusionXLImg2ImgPipeline(**{**first.components, "scheduler": first.scheduler.clone()})
    second.set_progress_bar_config(disable=True)
    expected = tiny.run("sdxl-img2img", with_sampler("sdxl-img2img", "heun"))
    torch.testing.assert_close(tiny.run("sdxl-img2img", second), expected)


def test_a_scheduler_is_loaded_from_the_hub(hub: HubServer, saved: Path, tmp_path: Path) -> None:
    hub.repo("me/ours").commit_folder(saved)
    found = sds.Scheduler.from_pretrained("me/ours", subfolder="scheduler", cache_dir=tmp_path)
    assert options_of(found) == options_of(chosen(tiny.own("stable-diffusion")).scheduler)


@pytest.mark.slow
def test_the_hub(hub: HubServer, saved: Path, tmp_path: Path) -> None:
    """From the Hub diffusers looks for a third-party class in the repository itself, and refuses where it is not; it
    does so before it looks at what is passed in. A repository that names a diffusers scheduler keeps our words, too."""
    hub.repo("me/ours").commit_folder(saved)
    load = functools.partial(diffusers.DiffusionPipeline.from_pretrained, cache_dir=tmp_path)
    mine = sds.Scheduler.from_pretrained("me/ours", subfolder="scheduler", cache_dir=tmp_path)
    for passed in ({}, {"scheduler": mine}):
        with pytest.raises(ValueError, match=r"sdesamplers\.py as defined in .* does not exist in me/ours"):
            load("me/ours", **passed)
    pipes = [load(snapshot_download("me/ours", cache_dir=tmp_path))]

    pipe = diffusers.DiffusionPipeline.from_pretrained(saved)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "theirs")
    hub.repo("me/theirs").commit_folder(tmp_path / "theirs")
    pipes.append(load("me/theirs", scheduler=mine.clone()))
    pipes.append(load("me/theirs"))
    assert type(pipes[-1].scheduler) is diffusers.DDIMScheduler
    pipes[-1].scheduler = sds.Scheduler.from_config(pipes[-1].scheduler.config)

    expected = tiny.run("stable-diffusion", chosen(tiny.stable_diffusion()))
    for loaded in pipes:
        loaded.set_progress_bar_config(disable=True)
        assert options_of(loaded.scheduler) == options_of(mine)
        torch.testing.assert_close(tiny.run("stable-diffusion", loaded), expected)


# Pushed = pulled

SHORT = {"max_sequence_length": tiny.TOKENS}
SMALL = {"height": 16, "width": 16}
AS_MODEL: dict[str, dict[str, Any]] = {
    "stable-diffusion": SMALL,
    "stable-diffusion-v": SMALL,
    "sdxl": SMALL,
    "sdxl-edm": SMALL,
    "sd3": {**SMALL, "encode_options": SHORT},
    "flux": {**SMALL, "encode_options": SHORT},
    "flux-schnell": {**SMALL, "encode_options": SHORT},
    "pixart-alpha": {**SMALL, "encode_options": SHORT},
    "dit": {},
}
"""Arguments of `from_pipeline` with which a model sees what `tiny.CALL` makes its pipeline see."""


class Packed(sds.Model):
    """FLUX's model on states in its pipeline's layout, so that random numbers land in the same places."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.process, self.prediction = inner, inner.process, inner.prediction
        self.dtype = inner.dtype
        self.shape = tuple(inner.pack(torch.zeros(1, *inner.shape)).shape[1:])

    def condition_for(self, condition: Any, count: int) -> Any:
        return self.inner.condition_for(condition, count)

    def predict(self, x: torch.Tensor, t: Any, condition: Any = None) -> Any:
        return self.inner.pack(self.inner.predict(self.inner.unpack(x), t, condition))


def pushed_and_pulled(
    name: str, sampler: str, pipe: Any = None, guidance: float | None = None, steps: int = 5, **words: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A pipeline's result under our scheduler, and that of `sample` on the pipeline as a model, from the same start."""
    pipe = with_sampler(name, sampler, pipe, seed=7, **words)
    model = sds.from_pipeline(pipe, **AS_MODEL[name])
    if name.startswith("flux"):
        model, guidance = Packed(model), 1.0
    start = noise(1, *model.shape, seed=0).to(pipe.dtype)
    call: dict[str, Any] = {**tiny.CALL[name], "num_inference_steps": steps}
    condition = call["class_labels"][0] if name == "dit" else call["prompt"]
    if guidance is None:
        guidance = inspect.signature(pipe.__call__).parameters["guidance_scale"].default
    elif not name.startswith("flux"):
        call["guidance_scale"] = guidance
    if name != "dit":  # which draws its start from the generator: the same numbers
        pipe.scheduler.set_timesteps(steps, mu=0.5)
        flow = isinstance(model.process, sds.RectifiedFlow)
        call["latents"] = start
        start = start if flow else start * pipe.scheduler.init_noise_sigma
    out = tiny.run(name, pipe, **call)
    words = {"final": "zero", "guidance_scale": guidance, **words}
    result = sds.sample(model, sampler, steps=steps, seed=7, start=start, condition=condition, **words)
    if name == "dit":
        return out, (model.decode(result.samples) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return out, result.samples


PUSHED = ("euler", "heun", "dpmpp-2m", "unipc", "dpmpp-2m-sde", "er-sde", "euler-maruyama", "rk4", "two-stage")
IN_TURN = dict(zip(AS_MODEL, itertools.cycle(["heun", "dpmpp-2m-sde", "unipc"]), strict=False))


@pytest.mark.parametrize(
    ("name", "sampler"),
    mostly_slow(itertools.product(AS_MODEL, PUSHED), keep=lambda name, sampler: IN_TURN[name] == sampler),
)
def test_pushed_is_pulled(name: str, sampler: str) -> None:
    # From sigma 80 down to 0.002, the random network makes more of rounding than it does of anything else.
    pipe = dampened(name, 0.01) if name == "sdxl-edm" else tiny.own(name, torch.float64) if name == "sdxl" else None
    pushed, pulled = pushed_and_pulled(name, sampler, pipe)
    assert apart(pushed, pulled) < 1e-4


@pytest.mark.parametrize(
    "words", [{"spacing": "angle"}, {"coordinates": "flow"}, {"noise": "brownian"}, {"final": "min"}], ids=str
)
@pytest.mark.parametrize("name", mostly_slow(["stable-diffusion", "sd3", "dit"], keep=["stable-diffusion", "sd3"]))
def test_pushed_is_pulled_with_words(name: str, words: dict[str, Any]) -> None:
    pushed, pulled = pushed_and_pulled(name, "dpmpp-2m-sde", **words)
    assert apart(pushed, pulled) < 1e-4


@pytest.mark.parametrize("name", mostly_slow(["stable-diffusion", "sdxl", "sd3", "flux"], keep=["stable-diffusion"]))
def test_a_solver_table_pushed_is_pulled(name: str, tmp_path: Path) -> None:
    model = sds.from_pipeline(tiny.own(name), **AS_MODEL[name])
    file = table_for(model.process).save(tmp_path)
    pushed, pulled = pushed_and_pulled(name, str(file), final=None)
    assert apart(pushed, pulled) < 1e-4


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("name", mostly_slow(["stable-diffusion", "sd3", "flux"], keep=["flux"]))
def test_a_folder_of_solver_tables_pushed_is_pulled_at_each_of_its_numbers(
    name: str, steps: int, tmp_path: Path
) -> None:
    process = sds.from_pipeline(tiny.own(name), **AS_MODEL[name]).process
    for middle in ((1.1, 0.7, 0.4, 0.15), (0.8, 0.3)):
        table_for(process, middle).save(tmp_path)
    pushed, pulled = pushed_and_pulled(name, str(tmp_path), steps=steps, final=None)
    assert apart(pushed, pulled) < 1e-4


# Half precision


@pytest.mark.parametrize("dtype", mostly_slow([torch.bfloat16, torch.float16], keep=[torch.bfloat16]))
@pytest.mark.parametrize(
    "sampler", mostly_slow(["euler", "heun", "dpmpp-2m", "dpmpp-2m-sde"], keep=["heun", "dpmpp-2m-sde"])
)
@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl", "sd3"])
def test_the_state_of_a_half_precision_pipeline_is_float32(name: str, sampler: str, dtype: torch.dtype) -> None:
    """`sample` keeps a float32 state for a half-precision network: so does the scheduler, and rounds once, at the end.

    Without guidance, since pipelines combine its two halves in half precision.
    """
    pushed, pulled = pushed_and_pulled(name, sampler, tiny.own(name, dtype), guidance=1.0, steps=10)
    assert pushed.dtype is dtype
    assert pulled.dtype is torch.float32
    torch.testing.assert_close(pushed.float(), pulled, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.slow
def test_rounding_does_not_add_up() -> None:
    """A hundred steps in bfloat16: diffusers' scheduler rounds its state a hundred times, ours does not."""
    grid, errors = list(range(991, 0, -10)), []
    start = noise(1, 4, 8, 8)
    for make in (diffusers.DDIMScheduler.from_config, functools.partial(sds.Scheduler.from_config, sampler="ddim")):
        outs = []
        for dtype in (torch.float32, torch.bfloat16):
            pipe = tiny.own("stable-diffusion-v", dtype)
            pipe.scheduler = make({**pipe.scheduler.config, **LAST})
            told: dict[str, Any] = {"timesteps": grid} if errors else {"num_inference_steps": 100}
            pipe.scheduler.set_timesteps(**told)
            latents = (start / pipe.scheduler.init_noise_sigma).to(dtype)
            outs.append(tiny.run("stable-diffusion-v", pipe, **told, latents=latents, guidance_scale=1.0).float())
        errors.append(float((outs[1] - outs[0]).square().mean().sqrt() / outs[0].std()))
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.01


# Samplers that choose their own steps

ADAPTIVE = ("stable-diffusion", "stable-diffusion-img2img", "sdxl", "sd3", "flux", "pixart-alpha")
FREE: list[tuple[str, dict[str, Any]]] = [("rk45", {"rtol": 0.3, "atol": 0.3}), ("dpm-adaptive", {"rtol": 0.3})]


def runs_adaptively(name: str, sampler: str, words: dict[str, Any]) -> None:
    pipe = with_sampler(name, sampler, **words)
    with asked(pipe) as calls:
        out = tiny.run(name, pipe)
    passes = 2 if name in TWO_PASS else 1
    assert out.isfinite().all()
    assert len(pipe.scheduler.timesteps) == pytest.approx(len(calls) / passes, abs=1)
    assert len(calls) > 5
    times = [float(t) for t in pipe.scheduler.timesteps]
    assert len(set(times)) > 5


@pytest.mark.parametrize(("sampler", "words"), FREE)
@pytest.mark.parametrize("name", mostly_slow(ADAPTIVE, keep=["stable-diffusion"]))
def test_adaptive_samplers(name: str, sampler: str, words: dict[str, Any]) -> None:
    """With guidance, where the kind has it, and one image."""
    runs_adaptively(name, sampler, words)


CANNOT_GROW = ("stable-diffusion-controlnet", "dit", "wan", "lumina2")
"""Pipelines that need the number of timesteps beforehand, or step two states in one: ControlNet lays out weights,
Wan reads `sigmas[i]`, Lumina 2 turns guidance off beyond the number that it was told."""


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "words"), FREE)
@pytest.mark.parametrize("name", [name for name in tiny.BUILDERS if name not in CANNOT_GROW])
def test_adaptive_samplers_in_all_pipelines(name: str, sampler: str, words: dict[str, Any]) -> None:
    runs_adaptively(name, sampler, words)


@pytest.mark.parametrize("name", mostly_slow(["stable-diffusion", "sd3", "flux"], keep=["sd3", "flux"]))
def test_an_adaptive_run_is_what_sample_makes(name: str) -> None:
    pipe = with_sampler(name, "rk45", rtol=0.3, atol=0.3)
    model = sds.from_pipeline(pipe, **AS_MODEL[name])
    model = Packed(model) if name == "flux" else model
    start = noise(1, *model.shape)
    out = tiny.run(name, pipe, latents=start, guidance_scale=3.5)
    evaluations = len(pipe.scheduler.timesteps)
    flow = isinstance(model.process, sds.RectifiedFlow)
    start = start if flow else start * pipe.scheduler.init_noise_sigma
    words: dict[str, Any] = {"rtol": 0.3, "atol": 0.3, "final": "zero"}
    words |= {} if name == "flux" else {"guidance_scale": 3.5}
    result = sds.sample(model, "rk45", start=start, condition=tiny.PROMPT, **words)
    assert abs(evaluations - result.nfe) <= 1
    assert apart(out, result.samples) < 1e-3


@pytest.mark.parametrize("name", ["stable-diffusion", "sd3", "flux"])
def test_adaptive_samplers_take_one_image(name: str) -> None:
    pipe = with_sampler(name, "rk45", rtol=0.3)
    with pytest.raises(UsageError, match="one image at a time"):
        tiny.run(name, pipe, prompt=[tiny.PROMPT, tiny.OTHER_PROMPT])


def test_pipelines_that_count_before_they_start_refuse_adaptive_samplers() -> None:
    """ControlNet's pipelines lay out a weight for each timestep beforehand; a fixed grid is what works there."""
    with pytest.raises(IndexError):
        tiny.run("stable-diffusion-controlnet", with_sampler("stable-diffusion-controlnet", "rk45", rtol=0.3))
    # DiT's pipeline steps the two halves of its guidance, which are two images to the scheduler.
    with pytest.raises(UsageError, match="one image at a time"):
        tiny.run("dit", with_sampler("dit", "rk45", rtol=0.3))
    for name in ("stable-diffusion-controlnet", "dit"):
        assert tiny.run(name, with_sampler(name, "rk45", adaptive=False)).isfinite().all()


# One run in two pipelines


@pytest.mark.parametrize("sampler", ["euler", "ddim", "two-stage"])
def test_a_base_hands_its_latents_to_a_refiner(sampler: str) -> None:
    """SDXL's `denoising_end` and `denoising_start`: for a one-step method two parts of a run are the run.

    The base stops before the first timestep that is too low, so a two-stage method must have both of a step's above it
    (501 and 417.7 are the fourth step's, 376 begins the fifth: the cut is at 400). Heun's second stage is at the
    step's end: the cut falls into a step wherever it is.
    """
    base, refiner = with_sampler("sdxl", sampler), with_sampler("sdxl-img2img", sampler)
    call = {"num_inference_steps": 8, "latents": noise(1, 4, 8, 8)}
    whole = tiny.run("sdxl", base, **call)
    with asked(base) as calls:
        half = tiny.run("sdxl", base, **call, denoising_end=0.6)
        extra = {"prompt": tiny.PROMPT, "image": half, "num_inference_steps": 8, "output_type": "latent"}
        size = {"original_size": (16, 16), "target_size": (16, 16), "guidance_scale": 5.0}
        out = tensor_of(refiner(**extra, **size, denoising_start=0.6))
    assert len(calls) == EVALUATIONS.get(sampler, EVALUATIONS["euler"])(8)
    assert apart(half, whole) > 0.05
    assert apart(out, whole) < 1e-5


# Threads


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["heun", "dpmpp-2m", "dpmpp-2m-sde"])
def test_eight_threads_share_a_model(sampler: str) -> None:
    """The prompt is encoded beforehand: tokenizers change while they are used and are not for several threads."""
    first = with_sampler("stable-diffusion", sampler, spacing="karras")
    prompt, negative = first.encode_prompt(tiny.PROMPT, "cpu", 1, True)
    given = {"prompt": None, "prompt_embeds": prompt, "negative_prompt_embeds": negative}

    def run(index: int) -> torch.Tensor:
        parts = {**first.components, "scheduler": first.scheduler.clone(), "requires_safety_checker": False}
        pipe = tiny.assemble("StableDiffusionPipeline", **parts)
        return tiny.run("stable-diffusion", pipe, seed=index, num_inference_steps=4 + index % 3, **given)

    alone = [run(index) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, range(8)))
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert apart(alone[1], alone[0]) > 0.01


# What pipelines of other kinds do with a scheduler


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m"])
def test_a_copy_for_a_second_modality_has_the_same_grid(sampler: str) -> None:
    """Pipelines of video with sound copy a scheduler after `set_timesteps` and step both by one loop's timesteps."""
    first = with_sampler("flux", sampler).scheduler
    first.set_timesteps(4, mu=0.7)
    second = copy.deepcopy(first)
    one, other = noise(1, 16, 16), noise(1, 16, 16, seed=6)
    x, y, alone = one, other, other
    for t in first.timesteps:
        x = first.step(0.1 * x, t, x, return_dict=False)[0]
        y = second.step(0.1 * y, t, y, return_dict=False)[0]
    first.set_timesteps(4, mu=0.7)
    for t in first.timesteps:
        alone = first.step(0.1 * alone, t, alone, return_dict=False)[0]
    torch.testing.assert_close(y, alone, rtol=0, atol=0)
    assert not torch.equal(x, y)


@pytest.mark.parametrize("name", ["sd3", "flux", "mochi", "wan", "sdxl-edm"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_sigmas_are_those_of_the_timesteps(name: str, sampler: str) -> None:
    """Some pipelines of flow models read `scheduler.sigmas[i]` beside timestep i."""
    pipe = with_sampler(name, sampler)
    pipe.scheduler.set_timesteps(4, mu=0.7)
    sigmas, told = pipe.scheduler.sigmas, pipe.scheduler.timesteps.as_subclass(torch.Tensor)
    assert len(sigmas) == len(told) + 1
    assert sigmas[-1] == 0
    shares = (4 * told).exp() if name == "sdxl-edm" else told / 1000
    torch.testing.assert_close(sigmas[:-1], 1 - shares if name == "mochi" else shares, rtol=1e-5, atol=1e-6)


def test_what_a_table_does_not_have_is_said() -> None:
    scheduler = with_sampler("stable-diffusion", "euler").scheduler
    scheduler.set_timesteps(4)
    with pytest.raises(AttributeError, match="divided by alpha"):
        scheduler.sigmas  # noqa: B018


BIGGER_PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "StableDiffusionPAGPipeline": tiny.stable_diffusion_parts,
    "StableDiffusionXLPAGPipeline": tiny.sdxl_parts,
    "StableDiffusionPanoramaPipeline": tiny.stable_diffusion_parts,
    "StableDiffusionSAGPipeline": tiny.stable_diffusion_parts,
    "StableDiffusionLatentUpscalePipeline": lambda: {**tiny.stable_diffusion_parts(), "unet": tiny.unet(in_channels=8)},
}


def of_kind(kind: str, sampler: str) -> Any:
    """A pipeline of another kind, of the components that it shares with those of `tiny`."""
    parts = BIGGER_PARTS[kind]()
    parts["scheduler"] = sds.Scheduler.from_config(parts["scheduler"].config, sampler)
    taken = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return tiny.assemble(kind, **{name: part for name, part in parts.items() if name in taken})


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m-sde"])
@pytest.mark.parametrize("kind", ["StableDiffusionPAGPipeline", "StableDiffusionXLPAGPipeline"])
def test_perturbed_attention_guidance(kind: str, sampler: str) -> None:
    pipe = of_kind(kind, sampler)
    with asked(pipe) as calls:
        out = tensor_of(pipe(**tiny.SIZED, generator=torch.Generator().manual_seed(0)))
    assert len(calls) == EVALUATIONS[sampler](3)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("StableDiffusionPanoramaPipeline", UsageError, "this run of heun continues at timestep"),
        ("StableDiffusionSAGPipeline", ValueError, "does not support using a scheduler of type"),
        ("StableDiffusionLatentUpscalePipeline", AttributeError, "divided by alpha"),
    ],
)
def test_pipelines_that_need_a_scheduler_of_their_own(kind: str, error: type[Exception], words: str) -> None:
    """They step one run for several views, know classes by name, or take states for x / alpha: each says so."""
    upscales = kind == "StableDiffusionLatentUpscalePipeline"
    call = {**tiny.TEXT, "image": noise(1, 4, 8, 8)} if upscales else {**tiny.SIZED, "width": 640}
    with pytest.raises(error, match=words):
        of_kind(kind, "heun")(**call)
