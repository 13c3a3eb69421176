"""`as_k_sampler`: textbook recursions in float64, k-diffusion's functions if installed, and ComfyUI's conventions."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
import runpy
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from other_libraries import k_diffusion
from torch import Tensor

import sdesamplers as sds

ROOT = Path(__file__).parents[2]
CENTRES = torch.tensor([[1.0, -1.0], [-1.0, 0.5], [0.2, 1.5]], dtype=torch.float64)
SIGMAS = torch.tensor([14.0, 7.5, 3.6, 1.5, 0.6, 0.2, 0.03, 0.0], dtype=torch.float64)


def denoiser(x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
    """E[x0 | x] for three Gaussians of variance 0.05, and x = x0 + sigma noise."""
    noise = sigma.to(x)[:, None] ** 2
    distance = (x[:, None] - CENTRES.to(x)).square().sum(-1)
    weight = torch.softmax(-distance / (2 * (noise + 0.05)), 1)[..., None]
    centre = (CENTRES.to(x) * noise[..., None] + 0.05 * x[:, None]) / (noise + 0.05)[..., None]
    return (weight * centre).sum(1)


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return (14 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).to(dtype)


class Draws:
    """A noise sampler whose draws are the same in every run; it keeps its arguments."""

    def __init__(self, shape: tuple[int, ...] = (5, 2)) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(1)
        self.calls: list[tuple[float, float]] = []

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        self.calls.append((float(sigma), float(sigma_next)))
        return torch.randn(self.shape, dtype=torch.float64, generator=self.generator)


def test_euler_is_its_recursion():
    x = start()
    found = sds.as_k_sampler("euler")(denoiser, x, SIGMAS, disable=True)
    for sigma, after in pairwise(SIGMAS):
        x = x + (after - sigma) * (x - denoiser(x, sigma.expand(5))) / sigma
    torch.testing.assert_close(found, x, rtol=1e-13, atol=1e-13)


def test_dpmpp_2m_is_its_recursion():
    """Lu et al. 2022, algorithm 2, in lambda = -log sigma."""
    x, old, past = start(), None, None
    found = sds.as_k_sampler("dpmpp-2m")(denoiser, x, SIGMAS, disable=True)
    for sigma, after in pairwise(SIGMAS):
        now = denoiser(x, sigma.expand(5))
        step = math.inf if after == 0 else math.log(sigma / after)
        ahead = now if old is None or after == 0 else now + step / (2 * past) * (now - old)
        x = after / sigma * x - math.expm1(-step) * ahead
        old, past = now, step
    torch.testing.assert_close(found, x, rtol=1e-13, atol=1e-13)


def test_noise_sampler_is_the_noise_of_the_steps():
    """Ancestral sampling, Song et al. 2021, appendix F, in the notation of k-diffusion."""
    x, given, expected = start(), Draws(), Draws()
    found = sds.as_k_sampler("euler-ancestral")(denoiser, x, SIGMAS, disable=True, noise_sampler=given)
    for sigma, after in pairwise(SIGMAS):
        up = (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5
        down = (after**2 - up**2) ** 0.5
        x = x + (down - sigma) * (x - denoiser(x, sigma.expand(5))) / sigma
        if after > 0:
            x = x + up * expected(sigma, after)
    torch.testing.assert_close(found, x, rtol=1e-13, atol=1e-13)
    assert given.calls == expected.calls  # exactly the caller's sigmas


def flow_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] for data N(0, 0.25) and x = (1 - sigma) x0 + sigma noise."""
    s = sigma[:, None]
    return 0.25 * (1 - s) * x / (0.25 * (1 - s) ** 2 + s**2)


def test_a_flow_runs_on_its_own_sigmas():
    grid = torch.tensor([1.0, 0.8, 0.45, 0.2, 0.0], dtype=torch.float64)
    x = start()
    found = sds.as_k_sampler("euler", model_kind="flow")(flow_denoiser, x, grid, disable=True)
    for sigma, after in pairwise(grid):
        x = x + (after - sigma) * (x - flow_denoiser(x, sigma.expand(5))) / sigma
    torch.testing.assert_close(found, x, rtol=1e-13, atol=1e-13)


def test_noise_of_a_flow_receives_the_flows_sigmas():
    grid = torch.tensor([1.0, 0.8, 0.45, 0.2, 0.0], dtype=torch.float64)
    given = Draws()
    sds.as_k_sampler("er-sde", model_kind="flow")(flow_denoiser, start(), grid, disable=True, noise_sampler=given)
    assert given.calls == [(1.0, 0.8), (0.8, 0.45), (0.45, 0.2)]


KNOWN: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sample_euler": ("euler", {}, {}),
    "sample_euler_ancestral": ("euler-ancestral", {"eta": 0.7}, {"eta": 0.7}),
    "sample_heun": ("heun", {}, {}),
    "sample_dpm_2": ("dpm2", {}, {}),
    "sample_dpm_2_ancestral": ("dpm2-ancestral", {}, {}),
    "sample_lms": ("lms", {}, {}),
    "sample_dpmpp_2s_ancestral": ("dpmpp-2s-ancestral", {}, {}),
    "sample_dpmpp_2m": ("dpmpp-2m", {}, {}),
    "sample_dpmpp_2m_sde": ("dpmpp-2m-sde", {}, {}),
    "sample_dpmpp_2m_sde with options": (  # its eta is the square of ours
        "dpmpp-2m-sde",
        {"eta": 0.7, "s_noise": 0.9, "solver": "heun"},
        {"eta": 0.49, "s_noise": 0.9, "solver_type": "heun"},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", KNOWN)
def test_samples_and_callbacks_are_k_diffusions(name, dtype):
    """Left out: dpmpp_sde and dpmpp_3m_sde, which are other methods here (docs/names.md)."""
    theirs = getattr(k_diffusion(), name.partition(" ")[0])
    ours, options, given = KNOWN[name]
    noisy = "noise_sampler" in inspect.signature(theirs).parameters
    pair = [Draws(), Draws()]
    x, grid = start(dtype), SIGMAS.to(dtype)
    noises = [{"noise_sampler": lambda a, b, each=each: each(a, b).to(dtype)} if noisy else {} for each in pair]
    seen: tuple[list[Any], list[Any]] = ([], [])
    expected = theirs(denoiser, x, grid, callback=seen[0].append, disable=True, **given, **noises[0])
    found = sds.as_k_sampler(ours, **options)(denoiser, x, grid, callback=seen[1].append, disable=True, **noises[1])
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    assert (found - expected).abs().max() < rounding * 14
    assert pair[0].calls == pair[1].calls  # the intervals, exactly
    assert [each["i"] for each in seen[0]] == [each["i"] for each in seen[1]] == list(range(7))
    for theirs_seen, ours_seen in zip(*seen, strict=True):
        for key in ("x", "denoised", "sigma", "sigma_hat"):
            assert (theirs_seen[key] - ours_seen[key]).abs().max() < rounding * 14, key


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_churn_is_k_diffusions(solver):
    """Its noise comes from torch's global generator, from which a noise_sampler may draw too."""
    churn = {"s_churn": 2.0, "s_noise": 1.01}  # in every step: k-diffusion draws in the others too
    theirs = getattr(k_diffusion(), f"sample_{solver}")
    ours = sds.as_k_sampler("churn", solver=solver, **churn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = theirs(denoiser, start(), SIGMAS, disable=True, **churn)
        torch.manual_seed(3)
        found = ours(denoiser, start(), SIGMAS, disable=True, noise_sampler=lambda *_: torch.randn_like(start()))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_a_name_of_k_diffusion_refers_to_its_sampler():
    name = "sample_dpmpp_2m"
    torch.testing.assert_close(
        sds.as_k_sampler(name)(denoiser, start(), SIGMAS, disable=True),
        sds.as_k_sampler("dpmpp-2m")(denoiser, start(), SIGMAS, disable=True),
    )
    assert sds.as_k_sampler(name).__name__ == name


def test_a_callback_is_called_once_a_step_with_the_callers_sigmas():
    churn = {"solver": "euler", "s_churn": 2.0, "seed": 1}
    for name, evaluations, options in (("euler", 7, {}), ("heun", 13, {}), ("rk4", 25, {}), ("churn", 7, churn)):
        calls, seen = [], []

        def model(x, sigma, log=calls):
            log.append(float(sigma[0]))
            return denoiser(x, sigma)

        sds.as_k_sampler(name, **options)(model, start(), SIGMAS, callback=seen.append, disable=True)
        assert [each["i"] for each in seen] == list(range(7))
        assert [float(each["sigma"]) for each in seen] == SIGMAS[:-1].tolist()
        assert len(calls) == evaluations
        for each in seen:
            torch.testing.assert_close(each["denoised"], denoiser(each["x"], each["sigma_hat"].expand(5)))


def test_an_exception_of_a_callback_ends_the_run():
    """As ComfyUI interrupts a run."""

    class Interrupt(Exception):
        pass

    def callback(event):
        if event["i"] == 3:
            raise Interrupt

    with pytest.raises(Interrupt):
        sds.as_k_sampler("euler")(denoiser, start(), SIGMAS, callback=callback, disable=True)


def test_the_seed_is_the_callers():
    ancestral = sds.as_k_sampler("euler-ancestral")
    runs = [ancestral(denoiser, start(), SIGMAS, {"seed": seed}, disable=True) for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(sds.as_k_sampler("euler-ancestral", seed=3)(denoiser, start(), SIGMAS, disable=True), runs[0])


def test_without_a_seed_torchs_generator_decides_as_in_k_diffusion():
    with torch.random.fork_rng(devices=[]):
        found = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            found.append(sds.as_k_sampler("er-sde")(denoiser, start(), SIGMAS, disable=True))
        again = sds.as_k_sampler("er-sde")(denoiser, start(), SIGMAS, disable=True)
        before = torch.get_rng_state()
        sds.as_k_sampler("euler")(denoiser, start(), SIGMAS, disable=True)
        assert torch.equal(before, torch.get_rng_state())  # a deterministic sampler draws nothing
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[2], again)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("threaded", [False, True])
def test_a_noise_sampler_may_draw_from_torchs_generator(threaded):
    """As k-diffusion's default does; the run's own seeding of the generator, for networks, does not change it.

    ComfyUI runs its samplers in a thread.
    """

    def call(noise_sampler: Any) -> Tensor:
        sampler = functools.partial(sds.as_k_sampler("euler-ancestral"), disable=True, noise_sampler=noise_sampler)
        if not threaded:
            return sampler(denoiser, start(), SIGMAS)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(sampler, denoiser, start(), SIGMAS).result()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        drawn = [torch.randn(5, 2, dtype=torch.float64) for _ in range(12)]
        after = torch.get_rng_state()
        torch.manual_seed(5)
        for steps in (drawn[:6], drawn[6:]):
            found = call(lambda sigma, sigma_next: torch.randn(5, 2, dtype=torch.float64))
            stored = iter(steps)
            assert torch.equal(found, call(lambda sigma, sigma_next, stored=stored: next(stored)))
        assert torch.equal(torch.get_rng_state(), after)


def test_tensors_with_a_row_per_sample_follow_the_samples():
    """`rk45` evaluates the samples that are not finished yet, and `paradigms` several times of each."""
    scale = torch.linspace(0.5, 1.0, 5, dtype=torch.float64)

    def model(x, sigma, *, scale, shared):
        assert len(scale) == len(x)
        assert len(shared) == 7
        return scale[:, None] * x / (1 + sigma[:, None] ** 2)

    for name in ("rk45", "paradigms"):
        arguments = {"scale": scale, "shared": torch.zeros(7)}
        whole = sds.as_k_sampler(name)(model, start(), SIGMAS, arguments, disable=True)
        for j in range(5):
            one = {"scale": scale[j : j + 1], "shared": torch.zeros(7)}
            alone = sds.as_k_sampler(name)(model, start()[j : j + 1], SIGMAS, one, disable=True)
            torch.testing.assert_close(whole[j : j + 1], alone, rtol=1e-9, atol=1e-9)


def test_dtype_and_grids_without_steps():
    x = start(torch.float16)
    assert sds.as_k_sampler("heun")(denoiser, x, SIGMAS.half(), disable=True).dtype == torch.float16
    assert sds.as_k_sampler("heun")(denoiser, x, SIGMAS[:1], disable=True) is x
    assert sds.as_k_sampler("heun")(denoiser, x, SIGMAS[:0], disable=True) is x


def test_a_grid_that_ends_above_zero_ends_there():
    """The ODE of data N(0, 1) keeps x / sqrt(1 + sigma^2)."""
    x, grid = start(), torch.linspace(14, 2, 200, dtype=torch.float64)
    found = sds.as_k_sampler("heun")(lambda x, sigma: x / (1 + sigma[:, None] ** 2), x, grid, disable=True)
    torch.testing.assert_close(found, x * (5 / 197) ** 0.5, rtol=1e-4, atol=0)


class ComfyModel:
    """What a ComfyUI sampler receives: `inner_model` chains, and guidance that calls the options' functions."""

    class CONST:
        pass

    class EPS:
        pass

    def __init__(self, scale: float, sampling: Any = None) -> None:
        self.scale, self.inner_model = scale, type("Guider", (), {})()
        self.inner_model.inner_model = type("BaseModel", (), {"model_sampling": sampling or self.EPS()})()

    def __call__(self, x, sigma, model_options, seed=None):
        cond, uncond = denoiser(x, sigma), 0.5 * x / (1 + sigma[:, None] ** 2)
        denoised = uncond + self.scale * (cond - uncond)
        for function in model_options.get("sampler_post_cfg_function", []):
            denoised = function({"denoised": denoised, "cond_denoised": cond, "uncond_denoised": uncond, "input": x})
        return denoised


def test_cfgpp_receives_the_unguided_prediction_through_comfyuis_hook():
    """Chung et al. 2024, algorithm 2: the noise that is added again is that of the unguided prediction."""
    options = {"sampler_post_cfg_function": [lambda arguments: arguments["denoised"] + 0.01], "kept": 1}
    before, model, x = copy.deepcopy({"kept": 1}), ComfyModel(0.6), start()
    found = sds.as_k_sampler("euler-cfgpp")(model, x, SIGMAS, {"model_options": options, "seed": 1}, disable=True)
    for sigma, after in pairwise(SIGMAS):
        denoised = model(x, sigma.expand(5), options)
        x = denoised + after * (x - 0.5 * x / (1 + sigma**2)) / sigma
    torch.testing.assert_close(found, x, rtol=1e-13, atol=1e-13)
    assert {key: value for key, value in options.items() if key == "kept"} == before
    assert len(options["sampler_post_cfg_function"]) == 1  # the caller's options are left alone


def test_cfgpp_without_the_hook_is_refused():
    with pytest.raises(sds.ModelError, match="needs the unguided prediction"):
        sds.as_k_sampler("euler-cfgpp")(denoiser, start(), SIGMAS, disable=True)


def test_comfyuis_flow_models_are_recognised():
    flow = ComfyModel(1.0, ComfyModel.CONST())
    with pytest.raises(sds.UsageError, match="times must lie between 0 and 1"):
        sds.as_k_sampler("euler")(flow, start(), SIGMAS, {"model_options": {}}, disable=True)
    grid = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    assert sds.as_k_sampler("euler")(flow, start(), grid, {"model_options": {}}, disable=True).shape == (5, 2)


def test_the_functions_can_be_pickled_and_shown():
    made = sds.as_k_sampler("er-sde", order=2)
    again = pickle.loads(pickle.dumps(made))
    assert repr(made) == repr(again) == "as_k_sampler('er-sde', order=2)"
    arguments = (denoiser, start(), SIGMAS, {"seed": 1})
    assert torch.equal(made(*arguments, disable=True), again(*arguments, disable=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eular",), "did you mean 'euler'"),
        (("euler", {"etta": 1}), "sampler 'euler' has no option 'etta'"),
        (("euler", {"model_kind": "vp"}), "model_kind must be 've' or 'flow'"),
        (("euler", {"seed": -1}), "seed must be a whole number"),
        (("mala",), "mala needs a model with a density"),
        ((sds.SolverTable((1.0, 0.0), ((0.0, 0.9, -0.4),)),), "its grid is the caller's sigmas"),
    ],
)
def test_a_mistake_is_found_before_a_run(arguments, message):
    name, options = (*arguments, {})[:2]
    with pytest.raises(sds.UsageError) as raised:
        sds.as_k_sampler(name, **options)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": torch.tensor([1.0, 2.0, 0.0])}, "a grid must fall strictly from noise to data"),
        ({"sigmas": "karras"}, "sigmas must be a tensor"),
        ({"extra_args": [1]}, "extra_args must be a dictionary"),
        ({"noise_sampler": 3}, "noise_sampler must be a function of sigma and sigma_next"),
        ({"x": [1.0]}, "x must be a tensor"),
        ({"noise_sampler": lambda sigma, sigma_next: torch.randn(2)}, "a tensor of x's shape (5, 2), not shape (2,)"),
        ({"noise_sampler": lambda sigma, sigma_next: None}, "a tensor of x's shape (5, 2), not None"),
        ({"eta": "much"}, "eta"),
    ],
)
def test_a_mistake_of_a_call_is_one_line(change, message):
    arguments: dict[str, Any] = {"x": start(), "sigmas": SIGMAS, "disable": True, **change}
    with pytest.raises(sds.UsageError) as raised:
        sds.as_k_sampler("euler-ancestral")(denoiser, **arguments)
    assert message in str(raised.value)


def test_the_example_node_runs_every_sampler_that_it_lists(monkeypatch):
    """ComfyUI's KSAMPLER passes its arguments in this form; `comfy` is replaced by that part of it."""

    class KSAMPLER:
        def __init__(self, sampler_function, extra_options=None):
            self.sampler_function, self.extra_options = sampler_function, extra_options or {}

        def sample(self, model, x, sigmas, extra_args, callback):
            given = {"extra_args": extra_args, "callback": callback, "disable": True}
            return self.sampler_function(model, x, sigmas, **given, **self.extra_options)

    package, samplers = types.ModuleType("comfy"), types.ModuleType("comfy.samplers")
    package.samplers, samplers.KSAMPLER = samplers, KSAMPLER
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    names = runpy.run_path(str(ROOT / "examples" / "comfyui_node.py"))
    node = names["NODE_CLASS_MAPPINGS"]["SdesamplersSampler"]
    listed, _ = node.INPUT_TYPES()["required"]["sampler"]
    assert {"er-sde", "euler-cfgpp", "unipc"} <= set(listed)
    grid, model = torch.tensor([14.0, 2.0, 0.4, 0.0]), ComfyModel(1.5)
    for name in listed:
        seen: list[Any] = []
        (made,) = getattr(node(), node.FUNCTION)(name, "{}")
        x = made.sample(model, start(torch.float32), grid, {"model_options": {}, "seed": 2}, seen.append)
        assert x.shape == (5, 2), name
        assert x.isfinite().all(), name
        assert [each["i"] for each in seen] == sorted(each["i"] for each in seen), name
    (made,) = node().get_sampler("er-sde", '{"order": 2}')
    assert repr(made.sampler_function) == "as_k_sampler('er-sde', order=2)"
