"""The basic solvers against exact ends, and identities between them. Their orders: tests/testing/test_orders.py."""

import itertools
import math

import pytest
import torch
from lanes import every_third, mostly_slow
from orders import MEAN, STD, slope, uneven
from process_cases import TABLE

import sdesamplers as sds


@pytest.mark.parametrize("coordinates", mostly_slow(["native", "angle"], keep=["native"]))
@pytest.mark.parametrize("sampler", mostly_slow(["euler", "heun"], keep=["euler"]))
def test_orders_hold_on_a_mixture_too(sampler, coordinates):
    counts = (64, 128, 256)
    process = sds.VP(0.1, 7.0)
    model = sds.grid_mixture(process)
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    common = {"coordinates": coordinates, "start": x, "num_samples": 8}
    times = (1.0, 0.05)
    tight = sds.sample(model, "rk45", times=uneven(200, *times), **common).samples
    errors = [
        float((sds.sample(model, sampler, times=uneven(n, *times), **common).samples - tight).abs().mean())
        for n in counts
    ]
    assert slope(counts, errors) == pytest.approx(sds.samplers()[sampler].order, abs=0.15)


@pytest.mark.parametrize(
    ("sampler", "coordinates"),
    mostly_slow(
        itertools.product(("euler", "heun", "rk45", "ddim"), ("native", "ve", "flow", "angle")),
        keep=[("euler", "native"), ("euler", "angle"), ("heun", "ve"), ("ddim", "flow")],
    ),
)
def test_every_ode_solver_reaches_the_exact_end_at_sigma_zero(sampler, coordinates):
    """final='zero' from an exact start: m + s (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    model = sds.GaussianModel(MEAN, STD**2, sds.VP())
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a0 = math.exp(-0.5 * 10.05)
    x = a0 * MEAN + math.sqrt(a0**2 * STD**2 + 1 - a0**2) * z
    errors = [
        float(
            (
                sds.sample(model, sampler, steps=n, coordinates=coordinates, start=x, num_samples=6).samples
                - (MEAN + STD * z)
            )
            .abs()
            .max()
        )
        for n in (50, 400)
    ]
    # what remains at 400 steps is the single Euler step from t_min, sigma = 0.01, and the solver's own error
    assert errors[1] < 0.012
    assert errors[1] < 0.9 * errors[0] or errors[1] < 2e-3


# --- identities -------------------------------------------------------------------------------------------------------

IDENTITY_PROCESSES = {
    "vp": sds.VP(),
    "sub-vp": sds.SubVP(),
    "edm": sds.EDM(),
    "ve": sds.VE(),
    "table": sds.DiscreteVP(TABLE),
}


@pytest.mark.parametrize(
    ("name", "spacing", "final"), every_third(IDENTITY_PROCESSES, ("linspace", "karras"), ("zero", "min"))
)
def test_ddim_without_noise_is_euler_in_ve_coordinates(name, spacing, final):
    model = sds.grid_mixture(IDENTITY_PROCESSES[name])
    common = {"steps": 20, "num_samples": 6, "seed": 1, "spacing": spacing, "final": final}
    expected = sds.sample(model, "euler", coordinates="ve", **common).samples
    for coordinates in ("native", "ve", "flow", "angle"):
        found = sds.sample(model, "ddim", coordinates=coordinates, **common).samples
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(sds.sample(model, "ddim", eta=0.5, **common).samples, expected, atol=1e-3)


def on_paper(process, kind, eta, x, eps, x0, t, s):
    """Mean and standard deviation of one DDIM (eq. 12, 16) or DDPM (eq. 7) step in the model's own coordinates."""
    (at, st), (as_, ss) = ((float(process.alpha(u)), float(process.sigma(u))) for u in (t, s))
    if kind == "ddpm":
        ratio = at / as_
        fresh = st**2 - ratio**2 * ss**2  # variance of q(x_t | x_s)
        return ratio * ss**2 / st**2 * x + as_ * fresh / st**2 * x0, math.sqrt(fresh * ss**2 / st**2)
    std = eta * ss / st * math.sqrt(1 - (at * st * ss / (as_ * ss * st)) ** 2 * ss**2 / st**2) * st
    return as_ * x0 + math.sqrt(ss**2 - std**2) * eps, std


@pytest.mark.parametrize("name", IDENTITY_PROCESSES)
@pytest.mark.parametrize(("kind", "eta"), [("ddpm", 1.0), ("ddim", 0.0), ("ddim", 0.4), ("ddim", 1.0)])
def test_one_ancestral_step_has_the_mean_and_deviation_of_its_paper(name, kind, eta):
    process = IDENTITY_PROCESSES[name]
    t, s = (process.t_min + f * (process.t_max - process.t_min) for f in (0.6, 0.35))
    model = sds.grid_mixture(process)
    g = torch.Generator().manual_seed(5)
    x = float(process.sigma(t)) * torch.randn(9, 2, dtype=torch.float64, generator=g)
    eps = model.predict(x, t)
    x0 = (x - float(process.sigma(t)) * eps) / float(process.alpha(t))
    mean, std = on_paper(process, kind, eta, x, eps, x0, t, s)
    options = {} if kind == "ddpm" else {"eta": eta}
    run = {"times": [t, s], "start": x, "num_samples": 9}
    result = sds.sample(model, kind, **run, **options)
    # the keyed noise of a path's only step
    z = sds.NormalSource(0, range(9), (2,)).draw(1, 1).double()
    torch.testing.assert_close(result.samples, mean + std * z, rtol=1e-8, atol=1e-8 * float(process.sigma(t)))
    if std:
        log_prob = sds.sample(model, kind, log_probs=True, **run, **options).log_probs[:, 0]
        expected = (-0.5 * z**2 - math.log(std * math.sqrt(2 * math.pi))).sum(1)
        torch.testing.assert_close(log_prob, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "coordinates", "noise"),
    every_third(IDENTITY_PROCESSES, ("native", "ve", "flow", "angle"), ("independent", "brownian")),
)
def test_ddim_with_eta_one_is_ddpm(name, coordinates, noise):
    model = sds.grid_mixture(IDENTITY_PROCESSES[name])
    common = {"steps": 15, "num_samples": 6, "seed": 2, "coordinates": coordinates, "noise": noise}
    ddim = sds.sample(model, "ddim", eta=1.0, log_probs=True, **common)
    ddpm = sds.sample(model, "ddpm", log_probs=True, **common)
    torch.testing.assert_close(ddim.samples, ddpm.samples, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ddim.log_probs, ddpm.log_probs, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(sds.sample(model, "ddim", eta=0.9, **common).samples, ddpm.samples, atol=1e-4)


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
def test_euler_maruyama_with_eta_zero_is_euler_to_the_bit(coordinates):
    model = sds.grid_mixture(sds.VP())
    common = {"steps": 15, "num_samples": 6, "seed": 2, "coordinates": coordinates}
    assert torch.equal(
        sds.sample(model, "euler-maruyama", eta=0.0, **common).samples, sds.sample(model, "euler", **common).samples
    )


def test_ddpm_with_the_forward_variance_keeps_standard_normal_data_exactly_normal():
    """On N(0, 1) data in VP coordinates the step's gain c and variance satisfy c^2 + var = 1 at any step size."""
    process, count = sds.VP(), 20_000
    model = sds.GaussianModel([0.0], 1.0, process)
    start = torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    run = {"times": [1.0, 0.5, 0.2, 0.05], "start": start, "num_samples": count}
    forward = float(sds.sample(model, "ddpm", variance="beta", **run).samples.var())
    posterior = float(sds.sample(model, "ddpm", variance="posterior", **run).samples.var())
    assert abs(forward - 1) < 4 * math.sqrt(2 / count)
    assert posterior < 1 - 8 * math.sqrt(2 / count)


@pytest.mark.parametrize(("sampler", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0}), ("ddim", {"eta": 0.0})])
def test_transitions_are_exact_where_the_data_are_one_point(sampler, options):
    """x_s ~ N(alpha_s m, sigma_s^2) after any number of steps, because x0 is known (20 000 samples, 4 errors)."""
    process, count = sds.VP(), 20_000
    model = sds.GaussianModel(MEAN, 0.0, process)
    alpha, sigma = float(process.alpha(1.0)), float(process.sigma(1.0))
    z = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = sds.sample(
        model, sampler, times=[1.0, 0.5, 0.3], start=alpha * MEAN + sigma * z, num_samples=count, **options
    )
    residual = (result.samples - math.exp(-0.5 * (0.03 + 0.5 * 19.9 * 0.09)) * MEAN) / math.sqrt(
        1 - math.exp(-(0.03 + 0.5 * 19.9 * 0.09))
    )
    assert float(residual.mean(0).abs().max()) < 4 / math.sqrt(count)
    assert float((residual.var(0) - 1).abs().max()) < 4 * math.sqrt(2 / count)
    if options.get("eta") == 0.0:
        torch.testing.assert_close(residual, z, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim", "ddpm", "rk45", "euler-maruyama"])
def test_one_point_of_data_is_reached_exactly_at_sigma_zero(sampler):
    model = sds.GaussianModel(MEAN, 0.0, sds.VP())
    result = sds.sample(model, sampler, steps=8, coordinates="ve", num_samples=5)
    torch.testing.assert_close(result.samples, MEAN.expand(5, 2), rtol=0, atol=1e-12)
