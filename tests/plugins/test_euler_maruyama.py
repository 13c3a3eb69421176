"""Euler-Maruyama: the moments of its formula on paper, weak and strong orders."""

import itertools
import math

import numpy as np
import pytest
import torch
from orders import INTERVALS, MEAN, STD, slope

import sdesamplers as sds

COPIES = 50


def moments_of_euler_maruyama(times, eta):
    """Mean and variance (per coordinate) of Euler-Maruyama on VP with linear beta, step by step on paper."""
    alpha, sigma = INTERVALS["vp"][2](times[0])
    mean, var = alpha * MEAN.numpy(), alpha**2 * STD**2 + sigma**2
    for now, then in itertools.pairwise(times):
        h, rate = then - now, 0.1 + 6.9 * now
        alpha, sigma = INTERVALS["vp"][2](now)
        v = alpha**2 * STD**2 + sigma**2
        # drift = -rate/2 x + (1 + eta^2)/2 rate (x - alpha m)/v
        pull = (1 + eta**2) / 2 * rate / v
        mean = mean + h * (-rate / 2 * mean + pull * (mean - alpha * MEAN.numpy()))
        var = (1 + h * (pull - rate / 2)) ** 2 * var + eta**2 * rate * abs(h)
    return mean, var


def test_the_moments_of_euler_maruyama_converge_at_weak_order_one():
    counts = (64, 128, 256, 512)
    alpha, sigma = INTERVALS["vp"][2](0.05)
    exact = alpha * MEAN.numpy(), alpha**2 * STD**2 + sigma**2
    found = [moments_of_euler_maruyama(np.linspace(1.0, 0.05, n + 1), 1.0) for n in counts]
    assert slope(counts, [abs(f[0] - exact[0]).max() for f in found]) == pytest.approx(1, abs=0.15)
    assert slope(counts, [abs(f[1] - exact[1]) for f in found]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("eta", [0.5, 1.0, 1.4])
def test_euler_maruyama_has_the_moments_that_its_formula_has_on_paper(eta, noise):
    """n pairs of numbers: mean within 4 standard errors (v/n)^1/2, variance within 4 of v (2/(2n))^1/2.

    A sample holds `COPIES` independent pairs, as noise is drawn faster for few long samples than for many short ones.
    """
    times, count = np.linspace(1.0, 0.05, 13), 10_000 if noise == "independent" else 3_000
    alpha, sigma = INTERVALS["vp"][2](1.0)
    z = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    x = (alpha * MEAN + math.hypot(alpha * STD, sigma) * z).view(-1, 2 * COPIES)
    model = sds.GaussianModel(MEAN.repeat(COPIES), STD**2, INTERVALS["vp"][0])
    words = {"num_samples": len(x), "eta": eta, "noise": noise, "seed": 11}
    pairs = sds.sample(model, "euler-maruyama", times=times, start=x, **words).samples.view(-1, 2).numpy()
    assert len(pairs) == count
    mean, var = moments_of_euler_maruyama(times, eta)
    error = (pairs.mean(0) - mean) / math.sqrt(var / count)
    assert np.abs(error).max() < 4
    centred = pairs - mean
    assert abs((centred**2).mean() / var - 1) < 4 * math.sqrt(2 / (2 * count))


def strong_errors(noise, counts, finest):
    process = sds.VP(0.1, 7.0)
    model = sds.GaussianModel(MEAN.repeat(10), STD**2, process)
    count = 10  # samples of ten pairs each
    alpha, sigma = INTERVALS["vp"][2](1.0)
    z = torch.randn(count, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    x = alpha * MEAN.repeat(10) + math.hypot(alpha * STD, sigma) * z
    lam = [math.log(a / s) for a, s in map(INTERVALS["vp"][2], (1.0, 0.05))]

    def run(n):
        # equal steps of lambda: exp(-2 lambda) = exp(B) - 1 solved for t
        b = np.log1p(np.exp(-2 * np.linspace(*lam, n + 1)))
        times = 2 * b / (0.1 + np.sqrt(0.01 + 4 * 3.45 * b))
        times[0], times[-1] = 1.0, 0.05
        return sds.sample(model, "euler-maruyama", times=times, start=x, num_samples=count, noise=noise, seed=3).samples

    reference = run(finest)
    return [float((run(n) - reference).abs().mean()) for n in counts]


def test_euler_maruyama_converges_strongly_at_order_one_along_a_brownian_path():
    """Additive noise, so Euler-Maruyama is Milstein; lambda spans 4.1 units and the finest steps are > 2^-7 wide."""
    counts = (8, 16, 32, 64)
    errors = strong_errors("brownian", counts, 480)
    assert slope(counts, errors) == pytest.approx(1, abs=0.15)


def test_independent_noise_does_not_converge_strongly():
    counts = (8, 16, 32, 64)
    assert slope(counts, strong_errors("independent", counts, 480)) < 0.3
