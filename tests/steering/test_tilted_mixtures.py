"""Steering against closed forms: a Gaussian mixture tilted by a linear reward, reached by exact transitions.

The sampler of these tests draws from the exact p(x_s | x_t) of a one-dimensional mixture, by its quantile function, so
its samples have the data's distribution after any number of steps, and what is measured is the particles' error alone.
On `RectifiedFlow` the start is independent of the data, so the run is exact from the first step to the last.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow

import sdesamplers as sds

WEIGHTS, MEANS, VARIANCES = np.array([0.5, 0.3, 0.2]), np.array([-1.0, 0.5, 1.5]), np.array([0.05, 0.1, 0.2])
MODEL = sds.MixtureModel(WEIGHTS, MEANS[:, None], VARIANCES, sds.RectifiedFlow(), prediction="flow")
SCALE = 1.2


@sds.sampler("exact-transitions", order=None, stochastic=True)
def exact_transitions(x, path):
    """Draws from p(x_s | x_t) of the mixture: the quantile of Phi(z), by bisection."""
    weights, means, variances = (torch.tensor(v, device=x.device) for v in (WEIGHTS, MEANS, VARIANCES))
    for now, then in path.steps:
        x = (yield x, now).x
        ratio = now.alpha / then.alpha
        fresh = now.sigma**2 - (ratio * then.sigma) ** 2
        before = then.alpha**2 * variances + then.sigma**2
        total = ratio**2 * before + fresh
        log = weights.log() - 0.5 * ((x - now.alpha * means) ** 2 / total + total.log())
        width = (before * fresh / total).sqrt()
        middle = (fresh * then.alpha * means + ratio * before * x) / total
        level = torch.special.ndtr(path.draw(torch.zeros_like(x), 1.0, now, then))
        shares, low, high = log.softmax(1), torch.full_like(x, -20.0), torch.full_like(x, 20.0)
        for _ in range(40):
            x = (low + high) / 2
            below = (shares * torch.special.ndtr((x - middle) / width)).sum(1, keepdim=True) < level
            low, high = torch.where(below, x, low), torch.where(below, high, x)
    return x


def tilted(scale=SCALE):
    """(Z, mean, second moment) of the mixture times exp(scale x): again a mixture, with moved means."""
    moved = MEANS + scale * VARIANCES
    shares = WEIGHTS * np.exp(scale * MEANS + scale**2 * VARIANCES / 2)
    return shares.sum(), (shares @ moved) / shares.sum(), (shares @ (moved**2 + VARIANCES)) / shares.sum()


def linear(x0):
    return x0[:, 0]


def steered(particles=16, groups=300, reward=linear, **kwargs):
    kwargs = {"steps": 6, "scale": SCALE, "seed": 1, **kwargs}
    return sds.steer(MODEL, reward, exact_transitions, particles=particles, num_samples=groups, **kwargs)


def estimates(result):
    """The groups' unbiased estimates of Z, Z E[x] and Z E[x^2]: (groups, 3)."""
    z, x = result.log_normalizer.exp(), result.particles[..., 0]
    return torch.stack([z * (result.weights * f).sum(1) for f in (torch.ones_like(x), x, x**2)], 1).numpy()


def assert_unbiased(result, scale=SCALE):
    """Mean over the groups within 4 standard errors of the closed form, for each of the three."""
    found = estimates(result)
    z, first, second = tilted(scale)
    error = found.std(0, ddof=1) / math.sqrt(len(found))
    assert error[0] < 0.06 * z  # a bias of a quarter would be seen
    assert np.all(np.abs(found.mean(0) - [z, z * first, z * second]) < 4 * error), (found.mean(0), error)


def test_the_sampler_of_these_tests_draws_the_data():
    x = sds.sample(MODEL, exact_transitions, steps=6, num_samples=6_000, seed=5).samples[:, 0].numpy()
    second = WEIGHTS @ (MEANS**2 + VARIANCES)
    assert abs(x.mean() - WEIGHTS @ MEANS) < 4 * x.std() / math.sqrt(len(x))
    assert abs((x**2).mean() - second) < 4 * (x**2).std() / math.sqrt(len(x))


@pytest.mark.parametrize(
    ("potential", "resample"),
    mostly_slow(
        list(itertools.product(("difference", "max", "sum"), ("systematic", "stratified", "multinomial", "residual"))),
        keep=[("difference", "systematic"), ("max", "multinomial"), ("sum", "residual")],
    ),
)
def test_normaliser_and_moments_are_unbiased_for_every_potential_and_scheme(potential, resample):
    """The weights of "max" and "sum" grow with each reweighting, so there are fewer here, of a smaller scale."""
    scale, at = (SCALE, 1) if potential == "difference" else (0.4, 2)
    assert_unbiased(steered(potential=potential, resample=resample, scale=scale, at=at, ess=1.0), scale)


@pytest.mark.parametrize("ess", [0.0, 0.9])
def test_they_are_unbiased_if_the_effective_size_decides_when_to_resample(ess):
    result = steered(ess=ess)
    moved = (result.ancestors != torch.arange(16)).any(2)
    assert bool(moved.any()) is (ess > 0)
    low = result.ess[:, :-1] < ess * 16
    assert not bool(moved[~low].any())
    assert_unbiased(result)


def test_they_are_unbiased_for_a_wrong_estimate_of_the_reward_on_the_way():
    """The weights at the end correct for rewards of estimates that mean nothing."""

    calls = []

    def misleading(x0):
        calls.append(x0)
        return x0[:, 0] if len(calls) == 6 else -0.3 * x0[:, 0].abs()  # five evaluations on the way, then the samples

    assert_unbiased(steered(reward=misleading, ess=1.0))
    assert len(calls) == 6


@pytest.mark.parametrize("twist", mostly_slow([0.4, -0.2], keep=[0.4]))
def test_twisted_proposals_keep_the_target(twist):
    assert_unbiased(steered(twist=twist))


@pytest.mark.parametrize("at", mostly_slow([[0, 2, 5], [], 4], keep=[[0, 2, 5]]))
def test_the_target_does_not_depend_on_when_particles_are_reweighted(at):
    result = steered(at=at, ess=1.0)
    assert result.steered_at == ([4] if at == 4 else at)
    assert result.ancestors.shape == (300, len(result.steered_at), 16)
    assert_unbiased(result)


def test_one_particle_estimates_z_by_its_reward():
    result = steered(particles=1, groups=50)
    torch.testing.assert_close(result.log_normalizer, SCALE * result.rewards[:, 0], rtol=1e-14, atol=1e-14)
    assert torch.equal(result.weights, torch.ones(50, 1).double())


@pytest.mark.slow
def test_the_variance_falls_as_one_over_particles():
    """Of the estimate of Z, for 4 and 32 particles: a ratio of 8, within four standard errors of a variance."""
    groups = 400
    small, large = (estimates(steered(particles=k, groups=groups))[:, 0].var(ddof=1) for k in (4, 32))
    # The relative standard error of a variance is about sqrt((kurtosis - 1) / n); kurtosis 6 is on the safe side.
    factor = math.exp(4 * math.sqrt(2 * 5 / groups))
    assert 8 / factor < small / large < 8 * factor


@pytest.mark.slow
def test_resampling_on_the_way_gives_more_even_weights_than_importance_sampling():
    with_, without = (steered(particles=32, groups=50, scale=3.0, ess=ess) for ess in (0.5, 0.0))
    assert with_.ess[:, -1].mean() > 1.5 * without.ess[:, -1].mean()


@pytest.mark.slow
def test_samples_are_drawn_from_the_tilted_distribution():
    """One sample of each group; its bias is of order 1/K, below a standard error for these numbers."""
    result = steered(particles=48, groups=300)
    x = result.samples[:, 0].numpy()
    _, first, second = tilted()
    assert abs(x.mean() - first) < 4 * x.std() / math.sqrt(len(x))
    assert abs((x**2).mean() - second) < 4 * (x**2).std() / math.sqrt(len(x))
    assert abs(x.mean() - WEIGHTS @ MEANS) > 6 * x.std() / math.sqrt(len(x))  # and not from the model's


@pytest.mark.slow
def test_a_negative_scale_tilts_the_other_way():
    result = steered(scale=-SCALE, particles=64, groups=100)
    z, first, _ = tilted(-SCALE)
    found = result.log_normalizer.exp().numpy()
    assert abs(found.mean() - z) < 4 * found.std() / math.sqrt(len(found))
    assert abs(float((result.weights * result.rewards).sum(1).mean()) - first) < 0.03
