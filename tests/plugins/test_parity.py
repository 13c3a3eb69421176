"""The same sampler in diffusers, in the same run, on the embedded model: the numbers must agree.

`CASES` is a table of (sampler, class of diffusers, their configurations, limit), and one test runs it by the loop of a
diffusers pipeline. Classes that this loop does not fit are compared beside their samplers: IPNDM in test_multistep.py,
EDMEuler and Euler's churn in test_churn.py, ScoreSdeVe in test_predictor_corrector.py, FlowMapEulerDiscrete in
test_flow_maps.py; what pipelines as a whole make of both is compared in tests/scheduler/test_pipelines.py.
"""

import importlib
import itertools
import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import TABLE
from scheduler_configurations import DDPM

import sdesamplers as sds
from sdesamplers.path.noise import PATH, NormalSource

SHAPE = (1, 28, 28)
RANGE = 2.0
"""Of the data; limits are parts of it."""
LEADING = {**DDPM, "timestep_spacing": "leading"}


def sigmas(scheduler, steps):
    """The class's own sigmas, each once."""
    found = list(dict.fromkeys(scheduler.sigmas.double().tolist()))
    assert len(found) == steps + 1
    return {"sigmas": found}


def all_sigmas(scheduler, steps):
    """The class's own sigmas, however many it makes of so many steps."""
    return {"sigmas": list(dict.fromkeys(scheduler.sigmas.double().tolist()))}


def leading(scheduler, steps):
    return {"steps": steps, "spacing": "leading"}


def strides(scheduler, steps):
    """The "leading" timesteps; diffusers' last step goes from timestep 0 to alphas_cumprod[0], which is where it is."""
    stride = 1000 // steps
    return {"times": range((steps - 1) * stride, -1, -stride)}


def timesteps_to_zero(scheduler, steps):
    return {"times": [*scheduler.timesteps.tolist(), 0]}


def sigmas_of_timesteps(scheduler, steps):
    abar = scheduler.alphas_cumprod.double().numpy()[scheduler.timesteps.numpy()]
    return {"sigmas": [*np.sqrt(1 / abar - 1), 0.0]}


def in_sigma(first):
    """diffusers runs x / alpha, from z sigma."""
    return first, first / math.hypot(1.0, first)


@dataclass(frozen=True)
class Case:
    """A sampler with its options, and the class of diffusers that is the same method when it is made with `words`."""

    sampler: str
    scheduler: str
    words: dict[str, Any]
    steps: int
    limit: float
    """The largest difference, in parts of the data range."""
    options: dict[str, Any] = field(default_factory=dict)
    grid: Callable[[Any, int], dict[str, Any]] = sigmas
    """(scheduler, steps) -> the words of `sample` for the same grid."""
    scales: Callable[[float], tuple[float, float]] | None = None
    """The first sigma -> what the start is times z in diffusers and in ours; both are z where there is none."""
    noise: str = ""
    """How diffusers takes our noise: the function of its module, or the word of `step`."""
    asked: dict[str, Any] = field(default_factory=dict)
    """Words of every `step`."""
    laid: Callable[[int], dict[str, Any]] = lambda steps: {"num_inference_steps": steps}
    """steps -> the words of `set_timesteps`."""
    change: Callable[[Any, NormalSource], None] = lambda scheduler, source: None
    """What is done to the scheduler before it runs."""
    model: Callable[[Any], Any] = lambda network: network
    """The embedded model -> what ours samples."""
    clock: float = 1.0
    """The network's time over the scheduler's timestep."""
    last: int | None = None
    """The end of the timesteps that are run."""
    count: int = 1
    seed: int = 11

    def __str__(self):
        said = [self.sampler, self.scheduler, *map(str, self.options.values()), *map(str, self.asked.values())]
        return " ".join([*said, str(self.steps)])


@pytest.fixture(scope="module")
def network():
    return sds.load("fashion-mnist")


def scheduler_class(name, monkeypatch):
    if name != "DPMSolverSDE":
        return getattr(diffusers, f"{name}Scheduler")
    # It needs torchsde for its noise alone; ours takes its place.
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    monkeypatch.delitem(sys.modules, "diffusers.schedulers.scheduling_dpmsolver_sde")
    return module.DPMSolverSDEScheduler


def difference(case, network, monkeypatch):
    """The largest between the two samples."""
    source = NormalSource(case.seed, range(case.count), SHAPE)
    made = scheduler_class(case.scheduler, monkeypatch)
    scheduler = made(**case.words)
    scheduler.set_timesteps(**case.laid(case.steps))
    case.change(scheduler, source)
    if case.noise == "randn_tensor":
        draws = (source.draw(PATH, k) for k in itertools.count(1))
        monkeypatch.setattr(importlib.import_module(made.__module__), "randn_tensor", lambda *a, **k: next(draws))
    start = source.draw(0)
    theirs, ours = case.scales(float(scheduler.sigmas[0])) if case.scales else (1.0, 1.0)
    x = start * theirs
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps[: case.last]):
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            words = {"variance_noise": source.draw(PATH, k + 1)} if case.noise == "variance_noise" else {}
            output = network.unet(scaled, case.clock * t).sample
            x = scheduler.step(output, t, x, **case.asked, **words).prev_sample
    words = {**case.grid(scheduler, case.steps), "num_samples": case.count, "seed": case.seed, **case.options}
    found = sds.sample(case.model(network), case.sampler, start=start * ours, **words).samples
    return float((found - x).abs().max())


# --- the table --------------------------------------------------------------------------------------------------------


def one_step():
    """ddim, ddpm, euler and heun."""
    common = {"limit": 1e-4, "steps": 20}
    for eta in (0.0, 1.0):
        words, noise = {**LEADING, "clip_sample": False}, {"noise": "variance_noise", "asked": {"eta": eta}}
        yield Case("ddim", "DDIM", words, options={"eta": eta}, grid=leading, **noise, **common)
    for kind, variance in (("fixed_small", "posterior"), ("fixed_large", "beta")):
        words = {**LEADING, "clip_sample": False, "variance_type": kind}
        yield Case("ddpm", "DDPM", words, options={"variance": variance}, grid=leading, noise="randn_tensor", **common)
    for name, scheduler in (("euler", "EulerDiscrete"), ("heun", "HeunDiscrete")):
        yield Case(name, scheduler, LEADING, options={"coordinates": "ve"}, scales=in_sigma, **common)
    for steps in (10, 25):  # diffusers' DDIM for this method, here stepped in sequence
        words, options = {**LEADING, "clip_sample": False}, {"window": 3, "tolerance": 0.0}
        common = {"limit": 1e-4, "count": 2, "seed": 7, "grid": leading}
        yield Case("paradigms", "DDIMParallel", words, steps, options=options, **common)


def ancestral():
    """Asked at whole timesteps of the "leading" grid."""
    for steps in (10, 25):
        common = {"words": LEADING, "steps": steps, "limit": 1e-3, "scales": in_sigma}
        yield Case("euler-ancestral", "EulerAncestralDiscrete", noise="randn_tensor", **common)
        yield Case("dpm2", "KDPM2Discrete", **common)
        yield Case("dpm2-ancestral", "KDPM2AncestralDiscrete", noise="randn_tensor", **common)


def exact_deis_sigmas(scheduler, source):
    """Those from which it makes its coefficients, in float64."""
    times = [*scheduler.timesteps.tolist(), 0]
    scheduler.sigmas = torch.from_numpy(np.sqrt(1 / TABLE[times] - 1))


def multistep():
    for steps in (10, 25):
        common = {"steps": steps, "limit": 1e-4}
        yield Case("lms", "LMSDiscrete", LEADING, scales=in_sigma, **common)
        for name in ("plms", "pndm"):
            yield Case(name, "PNDM", {**LEADING, "skip_prk_steps": name == "plms"}, grid=strides, **common)
        for order in (2, 3):
            words = {**DDPM, "solver_order": order, "lower_order_final": False, "timestep_spacing": "linspace"}
            exact = {"change": exact_deis_sigmas} if order == 3 else {}
            options = {"kind": "logrho", "order": order, "lower_order_final": False}
            yield Case("deis", "DEISMultistep", words, options=options, grid=timesteps_to_zero, **exact, **common)


def dpm_solver():
    for steps, kind, order, solver in (
        (10, "dpmsolver++", 2, "midpoint"),
        (25, "dpmsolver++", 2, "midpoint"),
        (10, "dpmsolver++", 2, "heun"),
        (10, "dpmsolver++", 1, "midpoint"),
        (10, "dpmsolver", 2, "midpoint"),
        (25, "dpmsolver", 2, "heun"),
    ):
        end = {"lower_order_final": False, "final_sigmas_type": "zero" if kind == "dpmsolver++" else "sigma_min"}
        words = {**DDPM, "algorithm_type": kind, "solver_order": order, "solver_type": solver, **end}
        name = "dpmpp-2m" if kind == "dpmsolver++" else "dpm-solver-2m"
        options = {"order": order, "solver": solver, "lower_order_final": False}
        yield Case(name, "DPMSolverMultistep", words, steps, 1e-3, options, all_sigmas)
    for steps, kind in ((10, "dpmsolver++"), (25, "dpmsolver++"), (11, "dpmsolver")):
        end = {"lower_order_final": True, "final_sigmas_type": "zero" if kind == "dpmsolver++" else "sigma_min"}
        words = {**DDPM, "algorithm_type": kind, "solver_order": 2, **end}
        options = {"order": 2, "prediction": "data" if kind == "dpmsolver++" else "noise"}
        yield Case("dpm-fast", "DPMSolverSinglestep", words, steps, 1e-3, options, all_sigmas)


def unipc():
    for steps, order, variant, prediction in (
        (10, 2, "bh2", "data"),
        (25, 2, "bh2", "data"),
        (10, 3, "bh2", "data"),
        (25, 3, "bh2", "data"),
        (10, 1, "bh2", "data"),
        (10, 3, "bh1", "data"),
        (25, 2, "bh1", "data"),
        (10, 2, "bh2", "noise"),
        (10, 3, "bh1", "noise"),
    ):
        # Into sigma = 0 diffusers' bh1 and noise prediction give NaN.
        clean = prediction == "data" and variant == "bh2"
        end = {"final_sigmas_type": "zero" if clean else "sigma_min", "lower_order_final": clean}
        words = {**DDPM, "solver_order": order, "solver_type": variant, "predict_x0": prediction == "data", **end}
        options = {"order": order, "variant": variant, "prediction": prediction, "lower_order_final": clean}
        yield Case("unipc", "UniPCMultistep", words, steps, 1e-3, options, all_sigmas)


class Two(int):
    """An order that is 2 and says that it is not."""

    def __eq__(self, other):
        return False

    __hash__ = int.__hash__


def second_order_taken_back(scheduler, source):
    """diffusers adds a term of third order to SASolver's weights of order 2, which starting values pass through too.

    It is the line's weight h^2/2 in place of its integral; here order 2 is routed past it, by asking for the weights
    of the line as those of another order.
    """
    plain = scheduler.get_coefficients_fn
    scheduler.get_coefficients_fn = lambda order, *rest: plain(int(order), *rest)
    for name in ("stochastic_adams_bashforth_update", "stochastic_adams_moulton_update"):
        update = getattr(scheduler, name)
        setattr(scheduler, name, lambda update=update, **words: update(**{**words, "order": Two(words["order"])}))


def without_corrector(scheduler, source):
    scheduler.stochastic_adams_moulton_update = lambda **words: words["this_sample"]


def one_path_of_noise(scheduler, source):
    """Ours in place of torchsde's, correlated as one path makes it."""
    draws, last = itertools.count(1), []

    def noise(start, end):
        fresh = source.draw(PATH, next(draws))
        if not last:  # the first half of a step
            last.append(fresh)
            return fresh
        # sigma_s^2 (1 - e^{-2h}) = carried + fresh, over half steps of lambda of length l = h / 2
        decay = (float(end) / float(start)) ** 0.5  # e^-l
        carried, rest = decay**2 * math.sqrt(1 - decay**2), math.sqrt(1 - decay**2)
        total = math.sqrt(1 - decay**4)
        return (carried / decay * last.pop() + rest * fresh) / total

    scheduler.noise_sampler = noise


def sde_solvers():
    for steps in (10, 25):
        common = {"steps": steps, "limit": 1e-3, "count": 2, "grid": all_sigmas}
        for order, solver, name, options in (
            (1, "midpoint", "sa-solver", {"predictor_order": 1, "corrector_order": 0}),
            (2, "midpoint", "dpmpp-2m-sde", {"solver": "midpoint"}),
            (2, "heun", "dpmpp-2m-sde", {"solver": "heun"}),
        ):
            words = {**DDPM, "algorithm_type": "sde-dpmsolver++", "solver_order": order, "solver_type": solver}
            words = {**words, "lower_order_final": False}
            yield Case(name, "DPMSolverMultistep", words, options=options, noise="variance_noise", **common)
        for tau, corrector in itertools.product((0.4, 1.0), (1, 0)):
            words = {
                **DDPM,
                "predictor_order": 1,
                "corrector_order": 1,
                "tau_func": lambda t, tau=tau: torch.tensor(tau),
            }
            options = {"predictor_order": 1, "corrector_order": corrector, "tau": tau}
            change = {} if corrector else {"change": without_corrector}
            yield Case("sa-solver", "SASolver", words, options=options, noise="randn_tensor", **change, **common)
        for order in (2, 3):
            options = {"predictor_order": order, "corrector_order": order, "lower_order_final": False}
            words = {**DDPM, **options, "tau_func": lambda t: torch.tensor(1.0)}
            change = {"noise": "randn_tensor", "change": second_order_taken_back}
            yield Case("sa-solver", "SASolver", words, options=options, **change, **common)
        yield Case(
            "dpmpp-sde", "DPMSolverSDE", DDPM, scales=in_sigma, change=one_path_of_noise, **{**common, "count": 1}
        )


def consistency_function(network):
    """Made of the network as Song et al. 2023 (eq. 5) and diffusers make it."""

    def function(x, t):
        skip, out = 0.25 / ((t - 0.002) ** 2 + 0.25), (t - 0.002) * 0.5 / (t * t + 0.25) ** 0.5
        time = 250 * torch.log(t[0, 0, 0, 0])
        return skip * x + out * network.unet(x / (t * t + 0.25) ** 0.5, time).sample

    return sds.FunctionModel(function, sds.EDM(0.002, 80.0), "sample", SHAPE)


def as_flow(network):
    def function(x, t):
        return network.unet(x, 1000 * t[0, 0, 0, 0]).sample

    return sds.FunctionModel(function, sds.RectifiedFlow(), "flow", SHAPE)


def as_trigflow(network):
    """TrigFlow (Lu & Song 2024) is x = cos(t) x0 + sin(t) z with a v prediction; data are scaled to sigma_data = 1."""

    def function(x, t):
        return network.unet(x, 600 * t[0, 0, 0, 0]).sample

    return sds.FunctionModel(function, sds.view(sds.RectifiedFlow(), "angle"), "v", SHAPE)


def multiples_of_four(steps):
    """TCD rounds (1 - gamma) s down to a timestep: multiples of four are whole. It ends at timestep 0."""
    return {"timesteps": [4 * round(240 * (1 - k / steps)) for k in range(steps)]}


def angles(steps):
    grid = torch.tensor([*(1.5 * (1 - k / steps) for k in range(steps)), 0.0], dtype=torch.float64)
    words = {"max_timesteps": None, "intermediate_timesteps": None}
    return {"num_inference_steps": steps, "timesteps": grid, **words}


def distilled():
    """The embedded network is not distilled: only the formulas are compared."""
    for steps in (10, 25):
        common = {"steps": steps, "limit": 1e-3, "noise": "randn_tensor"}
        yield Case("lcm", "LCM", {**DDPM, "clip_sample": False}, grid=sigmas_of_timesteps, **common)
        for gamma in (0.0, 0.25, 1.0):
            words = {"options": {"gamma": gamma}, "asked": {"eta": gamma}, "laid": multiples_of_four}
            yield Case("tcd", "TCD", DDPM, grid=timesteps_to_zero, **words, **common)
        yield Case(
            "consistency",
            "CMStochasticIterative",
            {"clip_denoised": False},
            grid=lambda scheduler, steps: {"times": np.minimum(scheduler.sigmas.double().numpy(), 80.0)},
            scales=lambda first: (first, first),
            model=consistency_function,
            **common,
        )
        yield Case(
            "consistency",
            "FlowMatchLCM",
            {},
            options={"boundary": 0.0},
            grid=lambda scheduler, steps: {"times": scheduler.sigmas.double().tolist()},
            model=as_flow,
            **common,
        )
        yield Case(
            "consistency",
            "SCM",
            {"sigma_data": 1.0},
            options={"boundary": 0.0},
            laid=angles,
            grid=lambda scheduler, steps: {"times": angles(steps)["timesteps"].tolist()},
            model=as_trigflow,
            clock=600.0,
            last=-1,
            **common,
        )


FAMILIES = (one_step, ancestral, multistep, dpm_solver, unipc, sde_solvers, distilled)
CASES = [case for family in FAMILIES for case in family()]
FIRST = {(case.sampler, case.scheduler): case for case in reversed(CASES)}
"""One case of each pair of a sampler and a class, with the fewest steps where these differ: the default suite's."""
LONG = ("heun", "dpm2")
"""Samplers whose first case takes more than a second, for their evaluations or their class's making of itself."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy.*")
@pytest.mark.parametrize(
    "case",
    mostly_slow(CASES, keep=lambda case: case is FIRST[case.sampler, case.scheduler] and case.sampler not in LONG),
    ids=str,
)
def test_a_sampler_equals_diffusers(network, monkeypatch, case):
    found = difference(case, network, monkeypatch)
    assert found < case.limit * RANGE, found


# --- the limits -------------------------------------------------------------------------------------------------------


def test_the_parity_limit_can_fail(network):
    """Another grid moves the sample by far more than the limit, so agreement is not for want of sensitivity."""
    words = {"steps": 20, "start": NormalSource(11, range(1), SHAPE).draw(0), "seed": 11}
    leading, trailing = (sds.sample(network, "ddim", spacing=each, **words).samples for each in ("leading", "trailing"))
    assert (leading - trailing).abs().max() > 50 * 1e-4 * RANGE


@pytest.mark.slow
def test_deis_of_order_three_differs_by_diffusers_float32_coefficients(network, monkeypatch):
    case = next(case for case in CASES if (case.change, case.steps) == (exact_deis_sigmas, 25))
    found = difference(case, network, monkeypatch)
    assert difference(replace(case, change=Case.change), network, monkeypatch) > 10 * found
