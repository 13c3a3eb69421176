"""Samplers as deepinv's solvers: deepinv's own runs on the same noise, orders, posteriors, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from torch import Tensor

import sdesamplers as sds

theirs = pytest.importorskip("deepinv.sampling", reason="deepinv, the extra of this name, is not installed")
from deepinv_cases import KINDS, MEAN, START, VARIANCE, Gaussian, Network, close, grid, sde  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


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
