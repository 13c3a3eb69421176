"""A process of the user's own with a nonlinear drift, against a finite-volume solution of its Fokker-Planck equation.

dx = (x - x^3) dt + G dw in one dimension, from N(CENTRE, WIDTH^2) at t = 0 to t = 1. Its marginals have no closed form;
the score is that of the finite-volume solution itself.
"""

import functools

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from scipy.interpolate import CubicSpline, RectBivariateSpline
from scipy.linalg import solve_banded
from scipy.special import ndtr

import sdesamplers as sds

G, CENTRE, WIDTH = 0.8, 0.4, 0.5
EDGE, INSIDE = 3.2, 2.5
"""Where the cells end, and how far out the score is read off: beyond, densities are under 1e-8."""


def drift(x):
    return x - x**3


@functools.cache
def finite_volume(cells=1600, steps=400):
    """Cell edges, times and densities (steps + 1, cells): fluxes f p - G^2/2 p' at faces, Crank-Nicolson in time."""
    edges = np.linspace(-EDGE, EDGE, cells + 1)
    dx, dt, inner = 2 * EDGE / cells, 1 / steps, drift(edges[1:-1])
    # The flux from cell j to cell j + 1 is out_j p_j + back_j p_{j+1}; nothing leaves at the ends.
    out, back = inner / 2 + G**2 / (2 * dx), inner / 2 - G**2 / (2 * dx)
    middle = (np.append(0.0, back) - np.append(out, 0.0)) / dx
    above, below = -back / dx, out / dx
    bands = np.stack([np.append(0.0, above), middle, np.append(below, 0.0)])
    matrix = -0.5 * dt * bands
    matrix[1] += 1
    found = [np.diff(ndtr((edges - CENTRE) / WIDTH)) / dx]
    for _ in range(steps):
        p = found[-1]
        rate = middle * p
        rate[:-1] += above * p[1:]
        rate[1:] += below * p[:-1]
        found.append(solve_banded((1, 1), matrix, p + 0.5 * dt * rate))
    return edges, np.linspace(0, 1, steps + 1), np.array(found)


@functools.cache
def log_density():
    """log p(t, x) of the finite-volume solution, a spline that is twice differentiable in x."""
    edges, times, p = finite_volume()
    x = 0.5 * (edges[1:] + edges[:-1])
    keep = np.abs(x) < INSIDE
    return RectBivariateSpline(times, x[keep], np.log(p[:, keep]), kx=3, ky=5)


def distribution(t):
    """F_t, the cumulative distribution of the finite-volume solution at one of its times."""
    edges, times, p = finite_volume()
    mass = np.append(0.0, np.cumsum(p[int(np.abs(times - t).argmin())] * np.diff(edges)))
    return CubicSpline(edges, mass)


class FinalDensity(sds.Prior):
    """What the process ends in, in place of a normal distribution."""

    def log_prob(self, x):
        return torch.from_numpy(log_density().ev(np.ones(len(x)), x.flatten().numpy()))


class DoubleWell(sds.SDE):
    """The process: a particle in the double well x^4/4 - x^2/2."""

    def __init__(self, t_min=0.0):
        self.t_min = t_min

    def drift(self, x, t):
        return drift(x)

    def diffusion(self, t):
        return G + 0.0 * t

    @property
    def prior(self):
        return FinalDensity(1.0)


GRID = np.linspace(-INSIDE, INSIDE, 10_001)


@functools.cache
def tabulated(t):
    """d log p / dx and its derivative at time t on GRID, for many samples at one time."""
    return [log_density()(t, GRID, dy=k)[0] for k in (1, 2)]


class SplineScore(torch.autograd.Function):
    """d log p / dx with its own derivative in x."""

    @staticmethod
    def forward(ctx, x, t):
        places = np.clip(x.detach().numpy().ravel(), -INSIDE, INSIDE)
        if np.ndim(t):  # rk45: every sample at a time of its own
            score, slope = (log_density().ev(t, places, dy=k) for k in (1, 2))
        else:
            score, slope = (np.interp(places, GRID, each) for each in tabulated(float(t)))
        ctx.slope = torch.from_numpy(slope).view_as(x)
        return torch.from_numpy(score).view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.slope, None


class WellModel(sds.Model):
    """The exact score of the double well's marginals."""

    prediction, dtype, name = "score", torch.float64, "double well"

    def __init__(self, t_min=0.0, size=1):
        self.process, self.shape = DoubleWell(t_min), (size,)

    def predict(self, x, t, condition=None):
        return SplineScore.apply(x, t)


def draws(t, count, seed):
    """Draws of p_t by inversion of its distribution, (count, 1)."""
    grid = np.linspace(-INSIDE, INSIDE, 20_001)
    uniform = np.random.default_rng(seed).uniform(1e-6, 1 - 1e-6, count)
    return torch.from_numpy(np.interp(uniform, distribution(t)(grid), grid))[:, None]


def test_the_finite_volume_solution_is_sound():
    """Mass is kept, the error falls with the cells' square, and the particles of the SDE itself agree."""
    edges, _, p = finite_volume()
    np.testing.assert_allclose(p.sum(1) * (edges[1] - edges[0]), p[0].sum() * (edges[1] - edges[0]), rtol=1e-11)
    means = [finite_volume(n, 400)[2][-1].reshape(100, -1).mean(1) for n in (400, 800, 1600)]
    first, second = np.abs(means[0] - means[1]).max(), np.abs(means[1] - means[2]).max()
    assert first / second == pytest.approx(4, rel=0.1)
    assert second < 5e-5
    generator = np.random.default_rng(1)
    x = CENTRE + WIDTH * generator.standard_normal(40_000)
    for _ in range(500):
        x = x + drift(x) / 500 + G / np.sqrt(500) * generator.standard_normal(len(x))
    assert kolmogorov(x, 1.0) < 1.63 / np.sqrt(len(x)) + 2e-3


def kolmogorov(x, t):
    """The largest distance of a sample's distribution from F_t."""
    exact, count = distribution(t)(np.sort(x)), len(x)
    return max(np.abs(exact - np.arange(count) / count).max(), np.abs(exact - np.arange(1, count + 1) / count).max())


@pytest.mark.parametrize("end", [0.0, 0.25])
@pytest.mark.parametrize(("sampler", "count"), [("euler-maruyama", 4_000), ("heun", 20_000)])
def test_samples_have_the_marginals(sampler, count, end):
    """By the reverse SDE and by the ODE from draws of p_1: Kolmogorov's distance within its 1% bound, and a bias.

    A sample holds 100 particles, as noise is drawn faster for few long samples than for many short ones.
    """
    times, start = np.linspace(1, end, 81), draws(1.0, count, seed=2).view(-1, 100)
    found = sds.sample(WellModel(size=100), sampler, times=times, start=start, seed=3).samples.flatten().numpy()
    assert kolmogorov(found, end) < 1.63 / np.sqrt(count) + 2e-3
    assert kolmogorov(found, 1.0) > 0.05  # which the start would have passed


@pytest.mark.parametrize(
    ("sampler", "words"), [("heun", {"steps": 60}), ("rk4", {"steps": 40}), ("rk45", {"rtol": 1e-6})]
)
def test_the_ode_keeps_quantiles(sampler, words):
    x = torch.linspace(-0.9, 1.7, 9, dtype=torch.float64)[:, None]
    code = sds.encode(WellModel(), x, sampler, **words)
    before, after = distribution(0.0)(x.flatten()), distribution(1.0)(code.samples.flatten())
    np.testing.assert_allclose(after, before, atol=2e-4)
    back = sds.decode(WellModel(), code.samples, sampler, **words)
    torch.testing.assert_close(back.samples, x, rtol=0, atol=1e-3)


LIKELIHOODS = [("heun", {"steps": 80}), ("ab", {"steps": 160}), ("rk45", {"rtol": 1e-6})]


@pytest.mark.parametrize(("sampler", "words"), mostly_slow(LIKELIHOODS, keep=lambda sampler, words: sampler != "ab"))
def test_the_likelihood_is_the_equations_density(sampler, words):
    """At t = 0, where it is a Gaussian in closed form, and at t = 0.25, where the finite-volume solution has it."""
    x = torch.linspace(-0.9, 1.7, 9, dtype=torch.float64)[:, None]
    exact = torch.distributions.Normal(CENTRE, WIDTH).log_prob(x).flatten().numpy()
    found = sds.log_likelihood(WellModel(), x, sampler, divergence="exact", **words)
    np.testing.assert_allclose(found.nats, exact, atol=2e-3)
    later = sds.log_likelihood(WellModel(0.25), x, sampler, **words)  # one probe is exact in one dimension
    np.testing.assert_allclose(later.nats, log_density().ev(np.full(9, 0.25), x.flatten().numpy()), atol=2e-3)
    assert np.abs(later.nats - exact).max() > 0.1


def test_samplers_that_need_marginals_say_so():
    x = torch.zeros(1, 1, dtype=torch.float64)
    for call in (sds.encode, sds.log_likelihood):
        with pytest.raises(sds.UsageError, match="no closed-form marginals"):
            call(WellModel(), x, "dpmpp-2m", steps=5)
