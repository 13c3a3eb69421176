"""deepinv's SDEs and solvers in and out: closed forms on Gaussian data, and deepinv's own runs on the same noise.

deepinv is the extra `deepinv`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from torch import Tensor

import sdesamplers as sds

pytest.importorskip("deepinv", reason="deepinv is not installed")
theirs = pytest.importorskip("deepinv.sampling", reason="deepinv is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")
MEAN, VARIANCE = 0.3, 0.25


class Gaussian(torch.nn.Module):
    """E[x0 | x0 + sigma eps] for data N(mean, variance)."""

    def __init__(self, mean: float = MEAN, variance: float = VARIANCE) -> None:
        super().__init__()
        self.mean, self.variance = mean, variance

    def forward(self, x: Tensor, sigma: Any, shift: Any = None) -> Tensor:
        noise = torch.as_tensor(sigma).reshape(-1, *(1,) * (x.dim() - 1)) ** 2
        x0 = self.mean + self.variance * (x - self.mean) / (self.variance + noise)
        return x0 if shift is None else x0 + torch.as_tensor(shift).reshape(-1, *(1,) * (x.dim() - 1)).to(x)


class Network(torch.nn.Module):
    """A denoiser that is no closed form."""

    def forward(self, x: Tensor, sigma: Any) -> Tensor:
        return torch.tanh(0.7 * x + 0.2) / (1 + torch.as_tensor(sigma).reshape(-1, *(1,) * (x.dim() - 1)))


def sde(kind: str, denoiser: Any = None, alpha: float = 0.0, minus_one_one: bool = False, **options: Any) -> Any:
    arguments = {"alpha": alpha, "minus_one_one": minus_one_one, "denoiser": denoiser or Network(), **options}
    if kind == "ve":
        return theirs.VarianceExplodingDiffusion(sigma_min=0.02, sigma_max=10.0, **arguments)
    if kind == "flow":
        return theirs.FlowMatching(**arguments)
    if kind == "edm":
        return theirs.EDMDiffusionSDE(sigma_t=lambda t: 5 * t**2, variance_preserving=True, **arguments)
    return theirs.VariancePreservingDiffusion(scaled_linear=kind == "vp scaled", **arguments)


KINDS = ["vp", "vp scaled", "ve", "flow", "edm"]
START = torch.tensor([[0.7, -1.2], [2.0, 0.1], [-0.4, 0.9]], dtype=torch.float64)


def start(process: Any) -> Tensor:
    return START * float(process.sigma(process.t_max))


def grid(end: Any, steps: int = 12, last: float = 1e-3) -> Tensor:
    return torch.linspace(float(end), last, steps + 1, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, digits: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=digits, atol=digits)


# Their SDEs as models.


@pytest.mark.parametrize("kind", KINDS)
def test_an_sde_is_a_process_that_passes_the_check(kind):
    given = sde(kind)
    process = sds.from_deepinv(given, (2,)).process
    sds.check_process(process)
    for t in (0.01, 0.3, 0.9):
        scale, ratio = float(given.scale_t(t)), float(given.sigma_t(t))
        assert (process.alpha(t), process.sigma(t)) == pytest.approx((scale, scale * ratio), rel=1e-12)
        assert float(process.time_at_ratio(ratio)) == pytest.approx(t, rel=1e-9)
        forward = float(given.forward_diffusion(t))
        assert float(process.diffusion(t)) == pytest.approx(forward, rel=1e-9)
        close(process.drift(START, t), given.forward_drift(START, t), 1e-9)


@pytest.mark.parametrize("minus_one_one", mostly_slow([False, True], keep=[True]))
@pytest.mark.parametrize("kind", mostly_slow(KINDS, keep=["ve"]))
def test_gaussian_data_are_integrated_to_the_closed_form(kind, minus_one_one):
    """The ODE is linear: x0 - m = (x - alpha m) (v / (alpha^2 v + sigma^2))^(1/2), for the whole way to sigma = 0.

    A `minus_one_one` SDE has its states in [-1, 1] and its denoiser in [0, 1], where the data are N(m', v').
    """
    mean, variance = ((MEAN + 1) / 2, VARIANCE / 4) if minus_one_one else (MEAN, VARIANCE)
    model = sds.from_deepinv(sde(kind, Gaussian(mean, variance), minus_one_one=minus_one_one), (2,))
    assert model.data_range == ((-1.0, 1.0) if minus_one_one else None)
    x, process = start(model.process), model.process
    found = sds.sample(model, "rk45", start=x, rtol=1e-5, atol=1e-5, dtype=torch.float64).samples
    alpha, sigma = float(process.alpha(process.t_max)), float(process.sigma(process.t_max))
    expected = MEAN + (x - alpha * MEAN) * (VARIANCE / (alpha**2 * VARIANCE + sigma**2)) ** 0.5
    close(found, expected, 2e-3)  # the last step, from the smallest noise level, is of first order


@pytest.mark.parametrize("kind", mostly_slow(KINDS, keep=["vp", "flow"]))
def test_ddim_on_their_sde_is_their_ddim(kind):
    given = sde(kind, minus_one_one=True)
    model, times = sds.from_deepinv(given, (2,)), grid(given.T)
    x = start(model.process)
    given.solver = theirs.DDIMSolver(timesteps=times)
    found = sds.sample(model, "ddim", times=times.tolist(), start=x, dtype=torch.float64).samples
    close((found + 1) / 2, given.sample(x), 1e-6)  # deepinv returns pictures in [0, 1]; denoisers compute in float32


def test_a_condition_is_a_dictionary_of_the_denoisers_keywords():
    given = sde("vp", Gaussian())
    model = sds.from_deepinv(given, (2,), conditional=True, null_condition={"shift": 0.0})
    shift, times = torch.tensor([0.1, -0.2, 0.3]), grid(1.0)
    given.solver = theirs.DDIMSolver(timesteps=times)
    arguments = {"times": times.tolist(), "start": START, "dtype": torch.float64}
    found = sds.sample(model, "ddim", condition={"shift": shift}, **arguments).samples
    close(found, given.sample(START, shift=shift), 1e-6)
    assert (
        sds.sample(model, "ddim", condition={"shift": shift}, guidance_scale=2.0, **arguments).samples.isfinite().all()
    )
    with pytest.raises(sds.UsageError, match="must be a dictionary of keywords"):
        sds.sample(model, "ddim", steps=3, condition=3)


def test_their_denoisers_are_denoisers_of_from_denoiser():
    """On data in [0, 1], without an SDE of theirs."""
    model = sds.from_denoiser(Gaussian(), (2,), sigma_min=0.01, sigma_max=10.0, dtype=torch.float64)
    found = sds.sample(model, "rk45", start=10 * START, rtol=1e-9, atol=1e-9).samples
    close(found, MEAN + (10 * START - MEAN) * (VARIANCE / (VARIANCE + 100)) ** 0.5, 1e-3)


# Our samplers as their solvers.

SAME = [("ddim", {}, theirs.DDIMSolver), ("euler", {}, theirs.EulerSolver)]
SAME += [("heun", {"coordinates": "native"}, theirs.HeunSolver)]


@pytest.mark.parametrize("last", [1e-3, 0.0])
@pytest.mark.parametrize(("name", "options", "solver"), SAME)
@pytest.mark.parametrize("kind", mostly_slow(KINDS, keep=["vp"]))
def test_the_same_method_is_the_same_run(kind, name, options, solver, last):
    given = sde(kind)
    times, x = grid(given.T, last=last), START * float(given.scale_t(given.T) * given.sigma_t(given.T))
    if last == 0 and name != "ddim":
        times = times[:-1]  # deepinv's Heun evaluates at sigma = 0; our steps into it are along another clock
    given.solver = sds.as_deepinv_solver(name, times, **options)
    found, states = given.sample(x, get_trajectory=True)
    given.solver = solver(timesteps=times)
    expected, expected_states = given.sample(x, get_trajectory=True)
    close(found, expected, 1e-9)
    if name != "heun":
        close(states, expected_states, 1e-9)
    assert found.dtype == given.dtype


def noise_of(run: Any) -> tuple[Tensor, list[Tensor]]:
    """The result of a run of ours, and the standard normal numbers that it drew."""
    drawn: list[Tensor] = []

    def source(source: Any, shortest: float) -> Any:
        """Independent numbers, which are kept."""

        def noise(start: float, end: float, rows: Any = None) -> Tensor:
            drawn.append(torch.randn(3, 2, generator=generator, dtype=torch.float64))
            return drawn[-1]

        return noise

    generator = torch.Generator().manual_seed(5)
    return run(source), drawn


def replaying(solver: Any, drawn: list[Tensor]) -> Any:
    numbers = iter(drawn)
    solver.randn_like = lambda x: next(numbers)
    return solver


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("kind", mostly_slow(KINDS, keep=["flow"]))
def test_stochastic_steps_on_the_same_noise_are_theirs(kind, eta):
    given, end = sde(kind), 1.0
    times = grid(given.T if kind == "flow" else end)
    x = START * float(given.scale_t(times[0]) * given.sigma_t(times[0]))

    def run(source: Any) -> Tensor:
        noise = sds.noise_source("kept")(source)
        given.solver = sds.as_deepinv_solver("ddim", times, eta=eta, noise=noise)
        return given.sample(x)

    found, drawn = noise_of(run)
    given.solver = replaying(theirs.DDIMSolver(timesteps=times, eta=eta), drawn)
    close(found, given.sample(x), 1e-9)
    assert len(drawn) == len(times) - 1


@pytest.mark.parametrize("alpha", [0.25, 1.0])
@pytest.mark.parametrize("kind", mostly_slow(["vp", "ve", "flow"], keep=["ve"]))
def test_euler_maruyama_on_the_same_noise_is_theirs(kind, alpha):
    """Their weight alpha of the noise is the square of eta."""
    given = sde(kind, alpha=alpha)
    times = grid(given.T, 10)
    x = START * float(given.scale_t(times[0]) * given.sigma_t(times[0]))

    def run(source: Any) -> Tensor:
        noise = sds.noise_source("kept")(source)
        given.solver = sds.as_deepinv_solver("euler-maruyama", times, eta=alpha**0.5, noise=noise)
        return given.sample(x)

    found, drawn = noise_of(run)
    given.solver = replaying(theirs.EulerSolver(timesteps=times), drawn)
    close(found, given.sample(x), 1e-9)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp-2m", 2)])
def test_the_order_on_their_sde_is_the_samplers(name, order):
    """On Gaussian data, whose exact map is known; the grid is even in log(sigma / alpha)."""
    given, ends = sde("vp", Gaussian()), (1.0, 1e-3)
    scales, ratios = ([float(f(t)) for t in ends] for f in (given.scale_t, given.sigma_t))
    before, after = (scale * (VARIANCE + ratio**2) ** 0.5 for scale, ratio in zip(scales, ratios, strict=True))
    exact = scales[1] * MEAN + (START - scales[0] * MEAN) * after / before
    process, errors = sds.from_deepinv(given, (2,)).process, []
    for steps in (40, 80):
        times = process.time_at_ratio(np.geomspace(*ratios, steps + 1))
        given.solver = sds.as_deepinv_solver(name, times)
        errors.append(float((given.sample(START) - exact).abs().max()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_a_seed_determines_the_samples():
    given = sde("vp")
    given.solver = sds.as_deepinv_solver("er-sde", grid(1.0, 5), rng=torch.Generator())
    first, again, other = (given.sample((3, 2), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    without = sds.as_deepinv_solver("er-sde", grid(1.0, 5))
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(without.sample(given, START).sample)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(without.sample(given, START, 4).sample, without.sample(given, START, 4).sample)


def test_the_output_is_theirs():
    given = sde("vp")
    solver = sds.as_deepinv_solver("heun", t_start=1.0, t_end=0.1, num_steps=4)
    assert isinstance(solver, theirs.BaseSDESolver)
    out = solver.sample(given, START, get_trajectory=True)
    assert isinstance(out, theirs.sde_solver.SDEOutput)
    assert out.nfe == 6
    assert len(out.trajectory) == len(out.timesteps) == 7
    assert torch.equal(out.trajectory[-1], out.sample)
    state, evaluations = sds.as_deepinv_solver("ddim", grid(1.0)).step(given, 0.8, 0.6, START)
    expected = theirs.DDIMSolver(timesteps=grid(1.0)).step(given, torch.tensor(0.8), torch.tensor(0.6), START)
    close(state, expected[0], 1e-6)
    assert evaluations == expected[1] == 1


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m"])
def test_posterior_sampling_runs_on_it(name):
    """Measurements y = x0 + 0.5 noise of Gaussian data: with the exact likelihood score the posterior is Gaussian."""
    import deepinv

    noise = 0.5

    class Exact(theirs.NoisyDataFidelity):
        """-grad log p(y | x_t) for data N(MEAN, VARIANCE), x = x_t / scale."""

        def grad(self, x: Tensor, y: Tensor, physics: Any, sigma: Any, **kwargs: Any) -> Tensor:
            x0 = MEAN + VARIANCE * (x - MEAN) / (VARIANCE + sigma**2)
            spread = VARIANCE * sigma**2 / (VARIANCE + sigma**2) + noise**2
            return -(y - x0) / spread * VARIANCE / (VARIANCE + sigma**2)

    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(noise))
    times = grid(1.0, 100)
    given = sde("vp", Gaussian())
    y = torch.full((4000, 1, 1, 1), 1.1)
    solver = sds.as_deepinv_solver(name, times, rng=torch.Generator())
    posterior = theirs.PosteriorDiffusion(Exact(), Gaussian(), given, solver, minus_one_one=False)
    found = posterior(y, physics, seed=0)
    variance = 1 / (1 / VARIANCE + 1 / noise**2)
    mean = variance * (MEAN / VARIANCE + 1.1 / noise**2)
    error = variance**0.5 / 4000**0.5
    assert abs(float(found.mean()) - mean) < 5 * error
    assert abs(float(found.var()) / variance - 1) < 5 * (2 / 4000) ** 0.5 + 0.02
    if name == "ddim":
        posterior.solver = theirs.DDIMSolver(timesteps=times, rng=torch.Generator())
        close(found, posterior(y, physics, seed=0), 1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eulr", {}, "did you mean 'euler'"),
        ("euler", {"etaa": 1}, "no option 'etaa'"),
        ("euler-cfgpp", {}, "needs the unguided prediction, which an SDE of deepinv does not have"),
        ("mala", {}, "needs a model with a density"),
        ("rk45", {"rtol": 1e-3}, "chooses its own steps here"),
        ("paradigms", {}, "chooses its own steps here"),
        (3, {}, "must be a name or a Sampler"),
    ],
)
def test_what_does_not_run_there_is_refused(name, options, message):
    with pytest.raises(sds.UsageError, match=message):
        sds.as_deepinv_solver(name, grid(1.0), **options)


@pytest.mark.parametrize("timesteps", [[1.0], "abc", torch.ones(2, 2), [0.0, -1.0]])
def test_a_grid_is_two_or_more_times(timesteps):
    with pytest.raises(sds.UsageError, match=r"^timesteps must be"):
        sds.as_deepinv_solver("euler", timesteps)
    with pytest.raises(sds.UsageError, match="must fall strictly"):
        sds.as_deepinv_solver("euler", [0.1, 1.0]).sample(sde("vp"), START)


@pytest.mark.parametrize("function", [np.asarray, torch.detach])
def test_a_schedule_without_derivatives_is_refused(function):
    """A posterior has no slopes, and NumPy's functions no gradients."""
    given = theirs.EDMDiffusionSDE(
        sigma_t=lambda t: torch.as_tensor(function(t) * 5), sigma_prime_t=lambda t: 5 * torch.ones_like(t),
        variance_exploding=True, alpha=0.0, denoiser=Network(), minus_one_one=False,
    )  # fmt: skip
    solver = sds.as_deepinv_solver("ddim", grid(1.0))
    assert solver.sample(given, START).sample.isfinite().all()
    posterior = theirs.PosteriorDiffusion(None, Network(), given, solver, minus_one_one=False)
    with pytest.raises(sds.UsageError, match="has no derivative"):
        posterior(START, None)


def test_sdes_without_marginals_are_refused():
    plain = theirs.DiffusionSDE(lambda x, t: -x, lambda t: 1.0, denoiser=Network())
    for call in (
        lambda: sds.from_deepinv(plain, (2,)),
        lambda: sds.as_deepinv_solver("euler", grid(1.0)).sample(plain, START),
    ):
        with pytest.raises(sds.UsageError, match="has no scale_t and sigma_t"):
            call()
    with pytest.raises(sds.UsageError, match=r"is 0 at its end t = 1, .* T=0\.99"):
        sds.from_deepinv(sde("flow", T=1.0), (2,))
    with pytest.raises(sds.UsageError, match="has no denoiser"):
        sds.from_deepinv(theirs.FlowMatching(), (2,))
    with pytest.raises(sds.UsageError, match="one of deepinv's diffusion SDEs"):
        sds.from_deepinv(torch.nn.Linear(2, 2), (2,))


# Our models as their SDEs.

MODELS = {
    "vp": (sds.VP(), "epsilon"),
    "edm": (sds.EDM(), "sample"),
    "flow": (sds.RectifiedFlow(), "flow"),
    "trig": (sds.TrigFlow(), "v"),
    "table": (sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))), "v"),
}


def model(name: str, **options: Any) -> sds.Model:
    process, prediction = MODELS[name]
    return sds.FunctionModel(
        lambda x, t: torch.tanh(0.4 * x) + 0.01 * torch.cos(t), process, prediction, (2,), **options
    )


@pytest.mark.parametrize("name", MODELS)
def test_their_solvers_run_on_a_model(name):
    ours = model(name)
    given = sds.as_deepinv(ours, alpha=0.0)
    assert isinstance(given, theirs.EDMDiffusionSDE)
    last = ours.process.t_min + 0.01 * (ours.process.t_max - ours.process.t_min)
    times = grid(0.9 * given.T, 9, last)
    for solver, method, options in (
        (theirs.DDIMSolver, "ddim", {}),
        (theirs.EulerSolver, "euler", {"coordinates": "native"}),
    ):
        given.solver = solver(timesteps=times)
        arguments = {"times": times.tolist(), "start": START, "dtype": torch.float64}
        close(given.sample(START), sds.sample(ours, method, **arguments, **options).samples, 2e-4)  # float32 networks


@pytest.mark.parametrize("name", MODELS)
def test_its_drift_and_diffusion_are_those_of_the_process(name):
    ours = model(name)
    process, given = ours.process, sds.as_deepinv(ours, alpha=0.25)
    t = 0.3 * process.t_max
    assert float(given.forward_diffusion(t)) == pytest.approx(float(process.diffusion(t)), rel=1e-9)
    close(given.forward_drift(START, t), process.drift(START, t), 1e-9)
    assert float(given.diffusion(t)) == pytest.approx(0.5 * float(process.diffusion(t)), rel=1e-9)
    assert np.isfinite(float(given.sigma_t(given.T)))


@pytest.mark.parametrize("ours", [False, True])
def test_measurements_of_a_models_pictures(ours):
    """Diffusion posterior sampling (Chung et al. 2023) takes gradients through the denoiser of the model.

    The two solvers make the same run, and its samples are nearer to the measurements than those of the model alone.
    """
    import deepinv

    exact = sds.FunctionModel(
        lambda x, t: torch.tanh(0.6 * x) + 0.1 * torch.cos(t), sds.VP(), "epsilon", (1, 4, 4), data_range=(-1, 1)
    )
    physics = deepinv.physics.Inpainting((1, 4, 4), mask=0.5)
    y = physics(torch.full((2, 1, 4, 4), 0.8))
    times, given = grid(1.0, 30, 0.01), sds.as_deepinv(exact, alpha=0.0)
    fidelity, denoiser = theirs.DPSDataFidelity(denoiser=given.denoiser.model), given.denoiser.model
    given.solver = sds.as_deepinv_solver("ddim", times, rng=torch.Generator()) if ours else None
    solver = given.solver or theirs.DDIMSolver(timesteps=times, rng=torch.Generator())
    posterior = theirs.PosteriorDiffusion(fidelity, denoiser, given, solver)
    found = posterior(y, physics, seed=0).detach()
    alone = theirs.PosteriorDiffusion(None, denoiser, given, solver)(y, physics, seed=0).detach()
    error, before = (float((physics.A(x) - y).abs().mean()) for x in (found, alone))
    assert error < 0.7 * before
    if ours:
        posterior.solver = theirs.DDIMSolver(timesteps=times, rng=torch.Generator())
        close(found, posterior(y, physics, seed=0).detach(), 1e-5)


def test_their_reverse_sde_on_an_exact_model_has_the_right_moments():
    """The closed form of Gaussian data as a model, by their Euler-Maruyama."""
    exact = sds.FunctionModel(
        lambda x, t: Gaussian()(x, t.reshape(-1)), sds.EDM(0.02, 10.0), "sample", (1, 1, 1), dtype=torch.float64
    )
    times = torch.from_numpy(np.geomspace(10.0, 0.02, 150))
    solver = theirs.EulerSolver(timesteps=times, rng=torch.Generator())
    found = sds.as_deepinv(exact, solver=solver).sample((4000, 1, 1, 1), seed=0)
    error = VARIANCE**0.5 / 4000**0.5
    assert abs(float(found.mean()) - MEAN) < 5 * error
    assert abs(float(found.var()) / VARIANCE - 1) < 5 * (2 / 4000) ** 0.5 + 0.03


def test_data_in_minus_one_one_are_in_their_range():
    """Denoisers and samples of deepinv are in [0, 1]; at sigma there, the noise in [-1, 1] is twice as large."""
    exact = sds.FunctionModel(
        lambda x, t: Gaussian()(x, t.reshape(-1)), sds.EDM(), "sample", (2,), dtype=torch.float64, data_range=(-1, 1)
    )
    given = sds.as_deepinv(exact, alpha=0.0)
    denoiser = given.denoiser.model  # inside of their wrapper
    x, sigma = (START + 1) / 2, 0.3
    close(denoiser(x, sigma), (Gaussian()(START, 2 * sigma) + 1) / 2, 1e-6)
    close(denoiser(x, torch.tensor([0.1, 0.2, 0.3])), (Gaussian()(START, torch.tensor([0.2, 0.4, 0.6])) + 1) / 2, 1e-6)
    times = grid(80.0, 8, 0.002)
    given.solver = theirs.DDIMSolver(timesteps=times)
    arguments = {"times": times.tolist(), "start": 80 * START, "dtype": torch.float64}
    samples = sds.sample(exact, "ddim", **arguments).samples  # x0 is in the range, so that clipping changes nothing
    close(given.sample(80 * START), (samples + 1) / 2, 1e-5)
    again = sds.from_deepinv(given, (2,))
    assert again.data_range == (-1.0, 1.0)
    close(again.predict(START.float(), 0.7), Gaussian()(START, 0.7), 1e-5)


def test_guidance_and_conditions_reach_the_model():
    process = sds.VP()
    conditional = sds.FunctionModel(
        lambda x, t, c: torch.tanh(x + c[:, None]), process, "sample", (2,), conditional=True, null_condition=0.0
    )
    given = sds.as_deepinv(conditional, alpha=0.0, solver=theirs.DDIMSolver(timesteps=grid(1.0, 6)))
    arguments = {"times": grid(1.0, 6).tolist(), "start": START, "condition": 0.5, "dtype": torch.float64}
    close(given.sample(START, condition=0.5), sds.sample(conditional, "ddim", **arguments).samples, 1e-5)
    guided = sds.as_deepinv(sds.Guided(conditional, 2.0), alpha=0.0, solver=given.solver)
    expected = sds.sample(conditional, "ddim", guidance_scale=2.0, **arguments).samples
    close(guided.sample(START, condition=0.5), expected, 1e-5)


def test_what_is_no_model_and_noise_beyond_the_model_are_refused():
    with pytest.raises(sds.UsageError, match="model must be a Model"):
        sds.as_deepinv(torch.nn.Linear(2, 2))
    with pytest.raises(sds.UsageError, match="alpha must be 0, for the ODE, or positive"):
        sds.as_deepinv(model("vp"), alpha=-1.0)
    with pytest.raises(sds.UsageError, match="was trained up to 80"):
        sds.as_deepinv(model("edm")).denoiser(START, torch.tensor(90.0))
