"""The reverse SDE and the probability-flow ODE pass through the forward process's distributions (Song et al. 2021)."""

import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from scipy import stats

import sdesamplers as sds

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[1.0, 0.5], [-1.0, 0.2], [0.2, -1.2]])
STDS = np.array([0.2, 0.35, 0.15])
COUNT = 1500
DIRECTIONS = [np.array([math.cos(a), math.sin(a)]) for a in (0.0, 0.8, 1.6, 2.4)]
# name -> process, alpha and sigma in closed form, the intermediate times
CASES = {
    "vp": (
        sds.VP(0.1, 10.0),
        lambda t: (math.exp(-0.5 * (0.1 * t + 4.95 * t * t)), math.sqrt(-math.expm1(-(0.1 * t + 4.95 * t * t)))),
        (0.6, 0.3, 0.05),
    ),
    "ve": (sds.VE(0.02, 10.0), lambda t: (1.0, 0.02 * 500.0**t), (0.7, 0.45, 0.1)),
    "sub-vp": (
        sds.SubVP(0.1, 10.0),
        lambda t: (math.exp(-0.5 * (0.1 * t + 4.95 * t * t)), -math.expm1(-(0.1 * t + 4.95 * t * t))),
        (0.5, 0.1),
    ),
}


def exact_draws(schedule, t, seed):
    """x_t = alpha x0 + sigma eps, drawn with another generator and without the library."""
    rng = np.random.default_rng(seed)
    which = rng.choice(3, COUNT, p=WEIGHTS)
    x0 = MEANS[which] + STDS[which, None] * rng.standard_normal((COUNT, 2))
    alpha, sigma = schedule(t)
    return alpha * x0 + sigma * rng.standard_normal((COUNT, 2))


def exact_moments(schedule, t):
    alpha, sigma = schedule(t)
    mean = alpha * WEIGHTS @ MEANS
    second = sum(
        w * (alpha**2 * np.outer(m, m) + (alpha**2 * s**2 + sigma**2) * np.eye(2))
        for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True)
    )
    return mean, second - np.outer(mean, mean)


def exact_cdf(schedule, t, direction):
    """Distribution function of direction . x_t, a one-dimensional mixture."""
    alpha, sigma = schedule(t)
    centres, widths = alpha * MEANS @ direction, np.sqrt(alpha**2 * STDS**2 + sigma**2)
    return lambda y: (WEIGHTS * stats.norm.cdf((np.asarray(y)[:, None] - centres) / widths)).sum(1)


def check_distribution(x, schedule, t):
    """Mean and covariance within 4 standard errors, and Kolmogorov-Smirnov along four directions."""
    mean, covariance = exact_moments(schedule, t)
    centred = x - mean
    assert np.all(np.abs(centred.mean(0)) < 4 * np.sqrt(np.diag(covariance) / len(x)))
    products = centred[:, :, None] * centred[:, None, :]
    assert np.all(np.abs(products.mean(0) - covariance) < 4 * products.std(0) / math.sqrt(len(x)))
    for direction in DIRECTIONS:
        assert stats.kstest(x @ direction, exact_cdf(schedule, t, direction)).pvalue > 1e-4


class Joined(sds.Model):
    """Samples of 50 independent points each, as noise is drawn faster for few long samples than for many short ones."""

    shape, dtype = (100,), torch.float64

    def __init__(self, inner):
        self.inner, self.process, self.prediction, self.name = inner, inner.process, inner.prediction, inner.name

    def predict(self, x, t, condition=None):
        return self.inner.predict(x.reshape(-1, 2), t).view_as(x)


def run(case, sampler, times, start, coordinates="native", steps=200, **options):
    """From exact draws at t_max to times[-1], returning the states at all of `times`, met exactly on the way.

    Between them the grid blends equal steps of log(sigma/alpha) with equal steps of time.
    """
    process, schedule, _ = CASES[case]
    model = Joined(sds.MixtureModel(WEIGHTS, MEANS, STDS**2, process))
    u = np.linspace(0, 1, steps + 1)
    first, last = (math.log(schedule(s)[1] / schedule(s)[0]) for s in (process.t_max, times[-1]))
    grid = 0.5 * (process.t_max + (times[-1] - process.t_max) * u)
    grid += 0.5 * process.time_at_ratio(np.exp(first + (last - first) * u))
    grid[0], grid[-1] = process.t_max, times[-1]
    for t in times[:-1]:
        grid[np.argmin(np.abs(grid - t))] = t
    states = {}

    def keep(event):
        if event.point.t in times:
            states[event.point.t] = (event.x / event.point.scale).view(COUNT, 2).numpy()

    result = sds.sample(
        model,
        sampler,
        times=grid,
        final="min",
        coordinates=coordinates,
        start=torch.from_numpy(start).view(COUNT // 50, 100),
        num_samples=COUNT // 50,
        seed=17,
        callback=keep,
        **options,
    )
    states[times[-1]] = result.samples.view(COUNT, 2).numpy()
    assert set(states) == set(times)
    return states


@pytest.mark.parametrize("case", mostly_slow(CASES, keep=["vp", "sub-vp"]))
def test_reverse_sde_ode_and_forward_process_agree_at_intermediate_times(case):
    process, schedule, times = CASES[case]
    start = exact_draws(schedule, process.t_max, 1)
    stochastic = run(case, "euler-maruyama", times, start)
    for t in times:
        deterministic = run(case, "heun", (t,), start, steps=60)[t]
        forward = exact_draws(schedule, t, 2)
        for x in (forward, stochastic[t], deterministic):
            check_distribution(x, schedule, t)
        for direction in DIRECTIONS:
            assert stats.ks_2samp(stochastic[t] @ direction, deterministic @ direction).pvalue > 1e-4
            assert stats.ks_2samp(stochastic[t] @ direction, forward @ direction).pvalue > 1e-4
        # one distribution, two different random variables
        spread = math.sqrt(np.trace(exact_moments(schedule, t)[1]))
        assert np.abs(stochastic[t] - deterministic).mean() > 0.1 * spread


@pytest.mark.parametrize(
    ("eta", "coordinates"),
    mostly_slow(
        [(0.4, "native"), (1.4, "native"), (1.0, "flow"), (1.0, "angle")], keep=[(1.4, "native"), (1.0, "flow")]
    ),
)
def test_the_marginals_depend_neither_on_eta_nor_on_coordinates(eta, coordinates):
    schedule = CASES["vp"][1]
    states = run("vp", "euler-maruyama", (0.5, 0.1), exact_draws(schedule, 1.0, 3), coordinates, eta=eta)
    for t, x in states.items():
        check_distribution(x, schedule, t)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    mostly_slow([("ddim", 300), ("ddpm", 200), ("rk45", 40), ("euler", 400)], keep=[("ddim", 300), ("rk45", 40)]),
)
def test_the_other_samplers_have_the_same_marginals(sampler, steps):
    schedule = CASES["vp"][1]
    states = run("vp", sampler, (0.2,), exact_draws(schedule, 1.0, 5), steps=steps)
    check_distribution(states[0.2], schedule, 0.2)


def test_the_check_would_notice_a_wrong_distribution():
    """A shift of 0.15, a scale off by a tenth or a time off by 0.15 does not pass."""
    schedule = CASES["vp"][1]
    right = exact_draws(schedule, 0.3, 6)
    check_distribution(right, schedule, 0.3)
    for wrong in (exact_draws(schedule, 0.15, 6), 0.9 * right, right + np.array([0.15, 0.0])):
        with pytest.raises(AssertionError):
            check_distribution(wrong, schedule, 0.3)


def test_the_models_own_draws_follow_the_forward_process():
    process, schedule, times = CASES["vp"]
    model = sds.MixtureModel(WEIGHTS, MEANS, STDS**2, process)
    for t in (0.0, *times):
        draws = model.sample_data(COUNT, torch.Generator().manual_seed(7), t).numpy()
        check_distribution(draws, schedule, t)


def test_from_the_prior_to_the_data():
    """The whole run, from N(0, 1) to sigma = 0: the prior leaves the data's share out, so these have mean 0.

    A sample holds 50 pairs, as noise is drawn faster for few long samples than for many short ones.
    """
    process = sds.VP()
    model = sds.GaussianModel([0.0, 0.0] * 50, [0.25, 1.0] * 50, process)
    for sampler, steps in (("euler-maruyama", 200), ("heun", 60), ("ddpm", 150)):
        samples = sds.sample(model, sampler, steps=steps, num_samples=COUNT // 50, spacing="logsnr", seed=3).samples
        x = samples.view(COUNT, 2).numpy()
        assert np.all(np.abs(x.mean(0)) < 4 * np.array([0.5, 1.0]) / math.sqrt(COUNT))
        assert np.all(np.abs(x.var(0) / [0.25, 1.0] - 1) < 4 * math.sqrt(2 / COUNT))
        assert stats.kstest(x[:, 0] / 0.5, "norm").pvalue > 1e-4
        assert stats.kstest(x[:, 1], "norm").pvalue > 1e-4
