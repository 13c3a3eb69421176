"""Ancestral samplers and DPM-2: identities, hand-worked steps, exact marginals."""

import math

import numpy as np
import pytest
import torch
from lanes import every_third, mostly_slow
from process_cases import TABLE

import sdesamplers as sds
from sdesamplers.path.noise import PATH
from sdesamplers.testing.problems import PROCESSES, Counter, gaussian_moments, run

ZERO_SNR = np.append(TABLE[:-1], 0.0)
CASES = {
    "vp": (sds.VP(), "epsilon"),
    "sub-vp": (sds.SubVP(), "epsilon"),
    "edm": (sds.EDM(), "sample"),
    "ve": (sds.VE(), "score"),
    "table": (sds.DiscreteVP(TABLE), "epsilon"),
    "zero-snr": (sds.DiscreteVP(ZERO_SNR), "v"),
    "flow": (sds.RectifiedFlow(), "flow"),
}
STOCHASTIC = ("euler-ancestral", "dpm2-ancestral", "dpmpp-2s-ancestral")


def draw(name, case, **words):
    process, prediction = CASES[case]
    run = {"steps": 12, "num_samples": 5, "seed": 3, **words}
    return sds.sample(sds.grid_mixture(process, prediction=prediction), name, **run)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "noise"), [(0.0, "independent"), (0.6, "independent"), (1.0, "brownian")])
@pytest.mark.parametrize("case", CASES)
def test_euler_ancestral_has_ddims_transitions(case, eta, noise):
    ours, ddim = (
        draw(name, case, eta=eta, noise=noise, log_probs=eta > 0, coordinates="native")
        for name in ("euler-ancestral", "ddim")
    )
    if eta == 0:
        assert torch.equal(ours.samples, ddim.samples)
    else:
        close(ours.samples, ddim.samples, 1e-9)
        close(ours.log_probs, ddim.log_probs, 1e-7)


@pytest.mark.parametrize("case", CASES)
def test_euler_ancestral_with_eta_one_is_ddpm(case):
    close(draw("euler-ancestral", case).samples, draw("ddpm", case).samples, 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_without_noise_each_is_its_ode_solver(case):
    ddim, dpm2 = draw("ddim", case).samples, draw("dpm2", case).samples
    assert torch.equal(draw("euler-ancestral", case, eta=0.0).samples, ddim)
    assert torch.equal(draw("dpm2-ancestral", case, eta=0.0).samples, dpm2)
    close(draw("dpmpp-2s-ancestral", case, eta=0.0).samples, draw("dpmpp-2s", case).samples)
    assert not torch.allclose(dpm2, ddim, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_dpm2_is_dpm_solver_2(case):
    close(draw("dpm2", case).samples, draw("dpm-solver-2", case).samples)


@pytest.mark.parametrize(("case", "name"), every_third(CASES, ("dpm2", *STOCHASTIC)))
def test_the_result_is_the_same_in_all_coordinates(case, name):
    native = draw(name, case, coordinates="native").samples
    for coordinates in ("flow", "angle", *(() if case in ("zero-snr", "flow") else ("ve",))):
        close(draw(name, case, coordinates=coordinates).samples, native, 1e-9)


# --- steps worked by hand, in sigma with alpha = 1 -------------------------------------------------------------------

POINT, SPREAD = 0.7, 0.6


def denoise(x, sigma):
    """E[x0 | x] for data N(POINT, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * POINT) / (SPREAD**2 + sigma**2)


def by_hand(name, x, z, sigma, target, eta):
    """One step from sigma to target: textbook formulas, k-diffusion's notation."""
    up = min(target, eta * math.sqrt(target**2 * (sigma**2 - target**2) / sigma**2))
    down = math.sqrt(target**2 - up**2)
    slope = (x - denoise(x, sigma)) / sigma
    if name == "euler-ancestral":
        return x + slope * (down - sigma) + up * z
    if name == "dpm2-ancestral":
        middle = math.exp((math.log(sigma) + math.log(down)) / 2)
        u = x + slope * (middle - sigma)
        return x + (u - denoise(u, middle)) / middle * (down - sigma) + up * z
    t, s = -math.log(sigma), -math.log(down)
    middle, h = math.exp(-(t + s) / 2), s - t
    u = middle / sigma * x - math.expm1(-h / 2) * denoise(x, sigma)
    return down / sigma * x - math.expm1(-h) * denoise(u, middle) + up * z


@pytest.mark.parametrize("eta", [0.4, 1.0, 1.2])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_one_step_by_hand(name, eta):
    model = sds.GaussianModel([POINT], SPREAD**2, sds.EDM())
    x = torch.tensor([[1.9], [-3.0]], dtype=torch.float64)
    result = sds.sample(model, name, sigmas=[3.0, 1.7], start=x, eta=eta)
    z = sds.NormalSource(0, range(2), (1,)).draw(PATH, 1).double()
    close(result.samples, by_hand(name, x, z, 3.0, 1.7, eta), 1e-12)


def test_dpm2_by_hand_in_a_flow_model():
    """Two steps 0.9 -> 0.6 -> 0.3 of rectified flow, as the VE step on x / (1 - t) with sigma = t / (1 - t)."""
    model = sds.GaussianModel([POINT], SPREAD**2, sds.RectifiedFlow(), prediction="flow")
    x = torch.tensor([[0.8], [-0.3]], dtype=torch.float64)
    y = x / 0.1
    for t, s in ((0.9, 0.6), (0.6, 0.3)):
        y = by_hand("dpm2-ancestral", y, 0.0, t / (1 - t), s / (1 - s), 0.0)
    for coordinates in ("native", "angle"):
        result = sds.sample(model, "dpm2", times=[0.9, 0.6, 0.3], start=x, coordinates=coordinates)
        close(result.samples, y * 0.7, 1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_s_noise_multiplies_the_noise_and_nothing_else(name):
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    still, plain, louder = (
        draw(name, "vp", steps=None, times=[0.6, 0.3], start=x, num_samples=4, s_noise=s).samples for s in (0, 1, 1.5)
    )
    close(louder - still, 1.5 * (plain - still), 1e-12)
    assert (plain - still).abs().max() > 0.1


# --- convergence and exact laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", mostly_slow([0.0, 0.5], keep=[0.5]))
@pytest.mark.parametrize("case", mostly_slow(PROCESSES, keep=["vp"]))
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_variance_converges_at_the_solvers_order_at_any_eta(name, case, eta):
    """The conformance kit measures the default, 1. Grids are even in lambda."""
    process, counts, errors = PROCESSES[case], (32, 64, 128), []
    for count in counts:
        times = process.time_at_log_snr(np.linspace(-3, 3, count + 1))
        found = gaussian_moments(sds.samplers()[name], process, times, options={"eta": eta})
        errors.append(abs(found.variance - found.exact_variance))
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order == pytest.approx(1 if name == "euler-ancestral" else 2, abs=0.2)


@pytest.mark.parametrize("eta", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("case", ["vp", "flow"])
def test_the_law_is_exact_where_the_data_are_one_point(case, name, eta):
    """x_s ~ N(alpha_s m, sigma_s^2) after any number of steps and for any eta, from the weight of every noise drawn."""
    process = CASES[case][0]
    model, times = sds.GaussianModel([POINT], 0.0, process), [0.9, 0.6, 0.5, 0.2]
    start = torch.zeros(5, 1, dtype=torch.float64)
    start[1] = 1.0
    out = run(model, sds.samplers()[name], start, times=times, noise=Counter(5), options={"eta": eta}).flatten()
    laws = [(float(process.alpha(t)), float(process.sigma(t))) for t in (0.9, 0.2)]
    gain, shares = out[1] - out[0], out[2:] - out[0]
    mean, variance = out[0] + gain * laws[0][0] * POINT, (gain * laws[0][1]) ** 2 + shares.square().sum()
    assert float(mean) == pytest.approx(laws[1][0] * POINT, abs=1e-12)
    assert float(variance) == pytest.approx(laws[1][1] ** 2, abs=1e-12)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpm2", *STOCHASTIC])
@pytest.mark.parametrize("case", CASES)
def test_short_runs_and_both_ends(case, name):
    """One step is the clean estimate; two steps, a smallest last sigma and starts at alpha = 0 are finite."""
    one = draw(name, case, steps=1)
    assert one.nfe == 1
    assert torch.equal(one.samples, draw("ddim", case, steps=1).samples)
    for words in ({"steps": 2}, {"steps": 3, "final": "min"}, {"steps": 3, "noise": "brownian"}):
        assert torch.isfinite(draw(name, case, **words).samples).all()


@pytest.mark.parametrize("case", ["vp", "flow"])
def test_evaluations_are_two_a_step_but_where_a_step_goes_to_sigma_zero(case):
    """From alpha = 0 all that an ancestral step with eta = 1 keeps is x0, so it goes down to sigma = 0."""
    for name in ("dpm2", "dpm2-ancestral", "dpmpp-2s-ancestral"):
        first = 1 if case == "flow" and name != "dpm2" else 2
        assert draw(name, case, steps=7).nfe == first + 5 * 2 + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpm2", *STOCHASTIC])
def test_five_hundred_steps_in_float32_follow_float64(name):
    model = sds.grid_mixture(sds.VP(), dtype=torch.float32)
    words = {"steps": 500, "num_samples": 4, "seed": 1}
    single, double = (
        sds.sample(model, name, dtype=d, **words).samples.double() for d in (torch.float32, torch.float64)
    )
    assert (single - double).abs().max() < 1e-3


@pytest.mark.parametrize("options", [{"eta": -0.1}, {"s_noise": -1.0}])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_amounts_of_noise_are_checked(name, options):
    with pytest.raises(sds.UsageError, match=f"{next(iter(options))} scales the noise"):
        draw(name, "vp", **options)
