"""Samplers of distilled models: the papers' steps by hand, and identities."""

import math

import numpy as np
import pytest
import torch
from process_cases import PROCESSES as ALL
from process_cases import TABLE

import sdesamplers as sds
from sdesamplers.path.noise import PATH, NormalSource

PROCESSES = {name: ALL[name] for name in ("vp", "sub-vp", "edm", "ve", "table", "flow")}


def keyed(count, number, shape=(2,), seed=0):
    """The keyed noise of a path's draw `number`."""
    return NormalSource(seed, range(count), shape).draw(PATH, number).double()


def normal(count, scale=1.0):
    return scale * torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def test_consistency_is_algorithm_1():
    """x_k = f(x_{k-1}, t_k) + sqrt(t_{k+1}^2 - epsilon^2) z, and f alone at the end."""
    epsilon, levels = 0.002, (80.0, 2.0, 0.5)
    model = sds.grid_mixture(sds.EDM(epsilon, 80.0))
    x = start = normal(5, 80.0)
    for k, (now, then) in enumerate(zip(levels, (*levels[1:], 0.0), strict=True)):
        x = model.posterior_mean(x, now)
        if then:
            x = x + math.sqrt(then**2 - epsilon**2) * keyed(5, k + 1)
    words = {"start": start, "num_samples": 5}
    found = sds.sample(model, "consistency", times=[*levels, 0.0], **words)
    torch.testing.assert_close(found.samples, x, rtol=1e-9, atol=1e-9)
    assert found.nfe == 3
    # f ends at epsilon, so that a grid that ends there has nothing to add
    ended = sds.sample(model, "consistency", times=[*levels, epsilon], **words).samples
    torch.testing.assert_close(ended, x, rtol=1e-9, atol=1e-9)
    # a wider boundary takes more noise away
    wide = sds.sample(model, "consistency", times=[80.0, 2.0], boundary=1.2, **words).samples
    expected = model.posterior_mean(start, 80.0) + 1.6 * keyed(5, 1)
    torch.testing.assert_close(wide, expected, rtol=1e-9, atol=1e-9)


def test_lcm_is_algorithm_3_with_the_scalings_of_equation_9():
    """x_s = alpha_s (c_skip x + c_out x0) + sigma_s z at timestep t, u = 10 t, sigma_data = 0.5."""
    model = sds.grid_mixture(PROCESSES["table"])
    x = start = normal(5)
    steps = (999, 400, 3)
    for k, (t, s) in enumerate(zip(steps, (*steps[1:], None), strict=True)):
        u = 10 * t
        x0 = model.posterior_mean(x, float(t))
        x = 0.25 / (u * u + 0.25) * x + u / math.sqrt(u * u + 0.25) * x0
        if s is not None:
            x = math.sqrt(TABLE[s]) * x + math.sqrt(1 - TABLE[s]) * keyed(5, k + 1)
    sigmas = [*np.sqrt(1 / TABLE[list(steps)] - 1), 0.0]
    found = sds.sample(model, "lcm", sigmas=sigmas, start=start, num_samples=5)
    torch.testing.assert_close(found.samples, x, rtol=1e-7, atol=1e-7)
    assert found.nfe == 3


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0])
def test_tcd_is_algorithm_4(gamma):
    """alpha_u x0 + sigma_u eps at u = (1 - gamma) s, then sqrt(abar_s/abar_u) x_u + sqrt(1 - abar_s/abar_u) z."""
    model = sds.grid_mixture(PROCESSES["table"])
    start = normal(5)
    s, u = 600, round(600 * (1 - gamma))
    eps, x0 = model.predict(start, 900.0), model.posterior_mean(start, 900.0)
    x = math.sqrt(TABLE[u]) * x0 + math.sqrt(1 - TABLE[u]) * eps
    x = math.sqrt(TABLE[s] / TABLE[u]) * x + math.sqrt(1 - TABLE[s] / TABLE[u]) * keyed(5, 1)
    found = sds.sample(model, "tcd", times=[900.0, 600.0], start=start, num_samples=5, gamma=gamma).samples
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coordinates", ["native", "flow", "angle"])
@pytest.mark.parametrize("name", PROCESSES)
def test_tcd_without_noise_is_ddim(name, coordinates):
    model = sds.grid_mixture(PROCESSES[name], prediction="v")
    for final in ("zero", "min"):
        words = {"steps": 7, "num_samples": 4, "spacing": "linspace", "coordinates": coordinates, "final": final}
        found = sds.sample(model, "tcd", gamma=0.0, **words)
        assert torch.equal(found.samples, sds.sample(model, "ddim", **words).samples)
        assert not found.drew_noise


@pytest.mark.parametrize("coordinates", ["native", "flow", "angle"])
@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_tcd_and_lcm_become_consistency_sampling_at_their_limits(name, coordinates):
    """gamma = 1 jumps to time 0, which is clean in these processes; c_skip falls to 0 as timestep_scaling grows."""
    model = sds.grid_mixture(PROCESSES[name], prediction="v")
    words = {"steps": 5, "num_samples": 4, "coordinates": coordinates}
    expected = sds.sample(model, "consistency", boundary=0.0, **words).samples
    for sampler, options in (("tcd", {"gamma": 1.0}), ("lcm", {"timestep_scaling": 1e9})):
        found = sds.sample(model, sampler, **options, **words).samples
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", ["consistency", "lcm", "tcd"])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_samples_are_the_same_in_all_coordinates(name, sampler):
    model = sds.grid_mixture(PROCESSES[name], prediction="v")
    words = {"steps": 6, "num_samples": 3}
    native = sds.sample(model, sampler, coordinates="native", **words).samples
    for coordinates in ("ve", "flow", "angle"):
        if (name, coordinates) != ("flow", "ve"):
            found = sds.sample(model, sampler, coordinates=coordinates, **words).samples
            torch.testing.assert_close(found, native, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sampler", ["consistency", "tcd"])
@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_the_noise_level_is_right_where_the_data_are_one_point(name, sampler):
    """x_s ~ N(alpha_s m, sigma_s^2) at every level, in 20,000 numbers; consistency's sample carries epsilon's noise."""
    process, count = PROCESSES[name], 10_000
    model = sds.GaussianModel([0.7, -0.4], 0.0, process, prediction="v")
    t, s = 0.9 * process.t_max, 0.3 * process.t_max
    options = {"boundary": 0.0} if sampler == "consistency" else {"gamma": 0.4}
    start = model.sample_data(count, torch.Generator().manual_seed(1), t)
    found = sds.sample(model, sampler, times=[t, s], start=start, num_samples=count, **options).samples
    residual = (found - float(process.alpha(s)) * model.means) / float(process.sigma(s))
    assert float(residual.mean(0).abs().max()) < 4 / math.sqrt(count)
    assert float((residual.var(0) - 1).abs().max()) < 4 * math.sqrt(2 / count)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("consistency", {"boundary": -0.1}, "0 or more"),
        ("consistency", {"boundary": 50.0}, "use a smaller boundary"),
        ("lcm", {"timestep_scaling": 0.0}, "must be positive"),
        ("tcd", {"gamma": 1.5}, r"between 0 \(no noise\) and 1"),
    ],
)
def test_options_out_of_range_are_refused_before_the_model_is_asked(sampler, options, message):
    model = sds.FunctionModel(lambda x, t: 1 / 0, sds.VP(), "epsilon", (2,))
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(model, sampler, steps=3, **options)


@pytest.mark.parametrize("sampler", ["consistency", "lcm", "tcd"])
def test_they_need_marginals(sampler):
    with pytest.raises(sds.UsageError, match=r"alpha\(t\)"):
        sds.sample(sds.FunnelModel(), sampler, steps=3)
