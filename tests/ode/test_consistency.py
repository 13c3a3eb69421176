"""Consistency errors: closed forms on a Gaussian, an exact consistency model, and the words of the call."""

import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import PROCESSES as ALL

import sdesamplers as sds

MEAN = torch.tensor([0.5, -0.3], dtype=torch.float64)
STD = 0.6
PROCESSES = {name: ALL[name] for name in ("vp", "ve", "sub-vp", "edm", "flow", "cosine")}


def parts(process, t):
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha, sigma, math.hypot(alpha * STD, sigma)


def gaussian(process, prediction="v", **words):
    return sds.GaussianModel(MEAN, STD**2, process, prediction=prediction, **words)


def start(process, count=64):
    """Draws of x_T, so that z below is standard normal."""
    z = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, _, whole = parts(process, process.t_max)
    return alpha * MEAN + whole * z, z


def flow_map(process):
    """The consistency function of the Gaussian: m + s (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""

    def function(x, t):
        alpha, _, whole = parts(process, float(t.flatten()[0]))
        return MEAN + STD * (x - alpha * MEAN) / whole

    return sds.FunctionModel(function, process, "sample", (2,), dtype=torch.float64, name="flow map")


@pytest.mark.parametrize("name", mostly_slow(PROCESSES, keep=["ve", "flow"]))
def test_a_diffusion_models_error_is_the_closed_form_on_a_gaussian(name):
    """f - x_0 = -s z (1 - alpha s / sqrt(alpha^2 s^2 + sigma^2)), since x_t = alpha m + sqrt(...) z all along."""
    process = PROCESSES[name]
    x, z = start(process)
    found = sds.consistency_error(gaussian(process), "rk4", steps=150, spacing="angle", coordinates="angle", start=x)
    assert found.times[0] == process.t_max
    assert np.all(np.diff(found.times) < 0)
    assert found.squared.shape == (64, 150)
    gap = np.array([STD * (1 - a * STD / w) for a, _, w in (parts(process, t) for t in found.times)])
    exact = gap**2 * z.square().mean(1).numpy()[:, None]
    # Sampling ends with the x0 estimate at the smallest sigma, 0.02 at most, which is off by 3e-4 of s z.
    np.testing.assert_allclose(found.squared, exact, atol=5e-4)
    np.testing.assert_allclose(found.error, gap * float(z.square().mean().sqrt()), atol=3e-4)
    assert found.error[0] > 0.5
    assert found.error[-1] < 0.01


@pytest.mark.parametrize("name", mostly_slow(PROCESSES, keep=["vp"]))
def test_an_exact_consistency_model_has_none_along_its_teacher(name):
    process = PROCESSES[name]
    x, _ = start(process)
    words = {"steps": 100, "spacing": "angle", "coordinates": "angle", "start": x, "along": gaussian(process)}
    exact = sds.consistency_error(flow_map(process), "rk4", **words)
    assert exact.error.max() < 1e-3
    assert sds.consistency_error(gaussian(process), "rk4", **words).error.max() > 0.5


def test_the_error_of_the_solver_falls_with_its_order():
    process = sds.EDM()
    x, _ = start(process)
    words = {"along": gaussian(process), "start": x, "spacing": "logsnr", "coordinates": "ve"}
    worst = [sds.consistency_error(flow_map(process), "heun", steps=n, **words).error[:-1].max() for n in (40, 80, 160)]
    assert worst[1] < worst[0] / 3
    assert worst[2] < worst[1] / 3


@pytest.mark.parametrize("coordinates", mostly_slow(["native", "ve", "flow", "angle"], keep=["native"]))
def test_coordinates_and_last_times_do_not_matter(coordinates):
    process = sds.VP()
    model = gaussian(process)
    times = np.linspace(1, 0.01, 80)
    words = {"times": times, "coordinates": coordinates, "num_samples": 8}
    whole = sds.consistency_error(model, "rk4", **words)
    assert len(whole.times) == 79  # the grid's end is no prediction
    end = sds.sample(model, "rk4", dtype=torch.float64, **words).samples / process.alpha(0.01)
    torch.testing.assert_close(whole.samples, end)
    off = sds.sample(model, "rk4", **words, trajectory=True).trajectory.states[0] - process.alpha(1) * MEAN
    alpha, _, whole_end = parts(process, 0.01)
    here, _, there = parts(process, 1.0)
    # Given an end at t = 0.01, the trajectory's data are x / alpha there.
    x0 = MEAN + here * STD**2 / there**2 * off
    exact = (x0 - (MEAN + whole_end / alpha * off / there)).square().mean(1)
    np.testing.assert_allclose(whole.squared[:, 0], exact, rtol=1e-3)


def test_the_standard_error_is_that_of_the_root_of_a_mean():
    """Over 8 trajectories, by hand: the mean of squares has s / sqrt(8), and its root that over twice the root."""
    found = sds.consistency_error(gaussian(sds.EDM()), steps=4, num_samples=8)
    spread = np.sqrt(((found.squared - found.squared.mean(0)) ** 2).sum(0) / 7 / 8)
    np.testing.assert_allclose(found.standard_error, spread / (2 * np.sqrt(found.squared.mean(0))), rtol=1e-9)
    assert np.isnan(sds.consistency_error(gaussian(sds.EDM()), steps=3).standard_error).all()


@pytest.mark.slow
def test_the_standard_error_is_that_of_repetitions():
    model = gaussian(sds.EDM())
    words = {"steps": 8, "num_samples": 200}
    runs = [sds.consistency_error(model, seed=seed, **words) for seed in range(120)]
    spread = np.std([run.error for run in runs], axis=0, ddof=1)
    stated = np.mean([run.standard_error for run in runs], axis=0)
    np.testing.assert_allclose(stated, spread, rtol=0.25)
    assert np.isnan(sds.consistency_error(model, steps=3).standard_error).all()


def test_a_constant_model_is_consistent():
    model = sds.FunctionModel(lambda x, t: torch.full_like(x, 0.25), sds.EDM(), "sample", (3,))
    found = sds.consistency_error(model, steps=5, num_samples=4)
    assert found.samples.dtype == torch.float32
    np.testing.assert_allclose(found.error, 0, atol=1e-6)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-6)
    assert "Consistency of 4 trajectories by 'heun'" in repr(found)


def test_batches_seeds_and_the_global_generator():
    model = sds.grid_mixture(sds.VP())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole = sds.consistency_error(model, steps=6, num_samples=5)
    torch.testing.assert_close(
        sds.consistency_error(model, steps=6, num_samples=5, batch_size=2).samples, whole.samples, rtol=0, atol=1e-12
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(sds.consistency_error(model, steps=6, num_samples=5, seed=1).samples, whole.samples)
    same = sds.sample(model, "heun", steps=6, num_samples=5)
    torch.testing.assert_close(whole.samples, same.samples)


def test_a_stochastic_sampler_follows_the_ode():
    model = gaussian(sds.VP())
    quiet = sds.consistency_error(model, "ddim", steps=10, num_samples=4)
    churned = sds.consistency_error(model, "ddim", steps=10, num_samples=4, eta=0.0)
    np.testing.assert_array_equal(quiet.squared, churned.squared)


def test_a_flow_model_starts_at_pure_noise():
    found = sds.consistency_error(gaussian(sds.RectifiedFlow()), steps=10, num_samples=16)
    assert found.times[0] == 1.0
    # There f is the mean, so the error is the data's own deviation.
    expected = (found.samples - MEAN).square().mean(1)
    np.testing.assert_allclose(found.squared[:, 0], expected, rtol=1e-6)


def test_conditions_and_guidance_reach_both_models():
    class Labelled(sds.FunctionModel):
        def condition_for(self, condition, count):
            return torch.as_tensor(condition).expand(count)

        def unconditional(self, count):
            return torch.zeros(count)

        def predict(self, x, t, condition=None):
            return condition.to(x)[:, None].expand_as(x)

    model = Labelled(None, sds.EDM(), "sample", (2,), name="labelled")
    words = {"steps": 3, "num_samples": 4, "condition": 2.0}
    torch.testing.assert_close(sds.consistency_error(model, **words).samples, torch.full((4, 2), 2.0))
    guided = sds.consistency_error(model, **words, along=model, guidance_scale=3.0)
    torch.testing.assert_close(guided.samples, torch.full((4, 2), 6.0))
    np.testing.assert_allclose(guided.error, 0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "needs steps"),
        ({"sampler": "rk45"}, "would choose its own steps"),
        ({"sampler": "euler-maruyama", "steps": 3}, "has no noiseless form"),
        ({"steps": 3, "num_samples": 0}, "num_samples must be a whole number"),
        ({"steps": 3, "batch_size": 0}, "batch_size must be a whole number"),
        ({"steps": 3, "start": torch.zeros(2, 3)}, r"start must have shape \(N, 2\)"),
        ({"steps": 3, "start": torch.zeros(2, 2), "num_samples": 3}, "start contains 2 states"),
        ({"steps": 3, "along": gaussian(sds.VP(0.2, 10.0), name="teacher")}, "have different processes"),
        ({"steps": 3, "along": sds.FunnelModel(2)}, "LangevinSDE"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with pytest.raises(sds.UsageError, match=message):
        sds.consistency_error(gaussian(sds.VP()), **words)


def test_epsilon_at_pure_noise_is_refused():
    with pytest.raises(sds.ConversionError, match="with another prediction type"):
        sds.consistency_error(gaussian(sds.RectifiedFlow(), "epsilon"), steps=3)
