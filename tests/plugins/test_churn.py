"""Churn and Restart around ODE solvers: identities, exact laws, evaluations, refusals, and diffusers' churn."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_edm_euler, scheduling_euler_discrete
from lanes import every_third, mostly_slow
from process_cases import TABLE
from scheduler_configurations import DDPM
from sdesamplers_plugins import churn

import sdesamplers as sds
from sdesamplers.path.noise import PATH
from sdesamplers.sampling.loop import drive
from sdesamplers.testing.problems import PROCESSES, Counter, gaussian_moments, run

CASES = {
    "vp": (sds.VP(), "epsilon"),
    "edm": (sds.EDM(), "sample"),
    "ve": (sds.VE(), "score"),
    "table": (sds.DiscreteVP(TABLE), "epsilon"),
    "zero-snr": (sds.DiscreteVP(np.append(TABLE[:-1], 0.0)), "v"),
    "flow": (sds.RectifiedFlow(), "flow"),
}


def draw(name, case, **words):
    process, prediction = CASES[case]
    run = {"steps": 12, "num_samples": 5, "seed": 3, **words}
    return sds.sample(sds.grid_mixture(process, prediction=prediction), name, **run)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "solver"),
    mostly_slow(
        itertools.product(CASES, ("euler", "heun", "ddim", "dpm2", "rk45")),
        keep=lambda case, solver: case == "edm" or solver == "heun",
    ),
)
def test_without_noise_each_is_its_solver_to_the_bit(case, solver):
    coordinates = "angle" if case in ("zero-snr", "flow") else "ve"
    words = {"coordinates": coordinates, "spacing": "linspace"}
    expected = draw(solver, case, **words).samples
    for name, quiet in (("churn", {"s_churn": 0.0}), ("restart", {"intervals": []}), ("churn", {"s_tmin": 1e4})):
        result = draw(name, case, solver=solver, **quiet, **words)
        assert torch.equal(result.samples, expected)
        assert not result.drew_noise


@pytest.mark.parametrize("name", ["churn", "restart"])
@pytest.mark.parametrize("case", CASES)
def test_around_ddim_the_result_is_the_same_in_all_coordinates(case, name):
    native = draw(name, case, solver="ddim", coordinates="native")
    assert native.drew_noise
    for coordinates in ("flow", "angle", *(() if case in ("zero-snr", "flow") else ("ve",))):
        close(draw(name, case, solver="ddim", coordinates=coordinates).samples, native.samples, 1e-9)


# --- steps worked by hand ---------------------------------------------------------------------------------------------

POINT, SPREAD = 0.7, 0.6


def slope(x, sigma):
    """(x - D(x; sigma)) / sigma for data N(POINT, SPREAD^2)."""
    return (x - (SPREAD**2 * x + sigma**2 * POINT) / (SPREAD**2 + sigma**2)) / sigma


def heun_by_hand(x, sigma, target):
    first = slope(x, sigma)
    second = slope(x + (target - sigma) * first, target)
    return x + (target - sigma) * (first + second) / 2


def test_a_churned_heun_step_by_hand():
    """Karras et al. 2022, algorithm 2: gamma = min(0.6/2, sqrt(2) - 1) = 0.3 in both steps, then capped at 0.4142."""
    model = sds.GaussianModel([POINT], SPREAD**2, sds.EDM())
    x = start = torch.tensor([[1.9], [-3.0]], dtype=torch.float64)
    z = [sds.NormalSource(0, range(2), (1,)).draw(PATH, k).double() for k in (1, 2)]
    for s_churn, gamma in ((0.6, 0.3), (40.0, math.sqrt(2) - 1)):
        x = start
        for k, (sigma, target) in enumerate(((3.0, 1.7), (1.7, 0.8))):
            hat = sigma * (1 + gamma)
            x = heun_by_hand(x + 1.1 * math.sqrt(hat**2 - sigma**2) * z[k], hat, target)
        result = sds.sample(model, "churn", sigmas=[3.0, 1.7, 0.8], start=start, s_churn=s_churn, s_noise=1.1)
        close(result.samples, x, 1e-12)


def test_churn_in_a_flow_model_is_the_same_step_of_x_over_alpha():
    model = sds.GaussianModel([POINT], SPREAD**2, sds.RectifiedFlow(), prediction="flow")
    start = torch.tensor([[0.8], [-0.3]], dtype=torch.float64)
    z = sds.NormalSource(0, range(2), (1,)).draw(PATH, 1).double()
    sigma, target = 0.6 / 0.4, 0.3 / 0.7
    hat = 1.25 * sigma
    y = start / 0.4 + math.sqrt(hat**2 - sigma**2) * z
    y = y + (target - hat) * slope(y, hat)
    result = sds.sample(model, "churn", times=[0.6, 0.3], start=start, solver="ddim", s_churn=0.25)
    close(result.samples, 0.7 * y, 1e-12)


def test_a_restart_by_hand():
    """Down to 0.5, twice up to 2 and back over three points with rho = 7, then on."""
    model = sds.GaussianModel([POINT], SPREAD**2, sds.EDM())
    start = torch.tensor([[1.9], [-3.0]], dtype=torch.float64)
    source = sds.NormalSource(0, range(2), (1,))
    x = heun_by_hand(heun_by_hand(start, 4.0, 1.5), 1.5, 0.5)
    middle = ((2.0 ** (1 / 7) + 0.5 ** (1 / 7)) / 2) ** 7
    for k in (1, 2):
        x = x + 0.9 * math.sqrt(2.0**2 - 0.5**2) * source.draw(PATH, k).double()
        x = heun_by_hand(heun_by_hand(x, 2.0, middle), middle, 0.5)
    x = heun_by_hand(x, 0.5, 0.2)
    words = {"sigmas": [4.0, 1.5, 0.5, 0.2], "start": start, "intervals": [[3, 2, 0.6, 2.0]], "s_noise": 0.9}
    close(sds.sample(model, "restart", **words).samples, x, 1e-12)


# --- convergence and exact laws ---------------------------------------------------------------------------------------


def variance_order(name, case, options):
    """Slope of the log error of the exact variance over even grids of lambda; `options` is a function of the steps."""
    process, counts, errors = PROCESSES[case], (32, 64, 128), []
    for count in counts:
        times = process.time_at_log_snr(np.linspace(-3, 3, count + 1))
        coordinates = "ve" if case == "vp" else "flow"
        words = {"options": options(count), "coordinates": coordinates}
        found = gaussian_moments(sds.samplers()[name], process, times, **words)
        errors.append(abs(found.variance - found.exact_variance))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("solver", "order"), mostly_slow([("euler", 1), ("heun", 2), ("dpm2", 2)], keep=[("euler", 1), ("heun", 2)])
)
@pytest.mark.parametrize("case", mostly_slow(PROCESSES, keep=["flow"]))
def test_the_variance_converges_at_the_solvers_order(case, solver, order):
    """Noise is added exactly, so the only error is the solver's."""
    found = variance_order("churn", case, lambda count: {"solver": solver, "s_churn": 3.0})
    assert found == pytest.approx(order, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("case", PROCESSES)
def test_restart_converges_when_its_ways_down_are_refined_too(case):
    found = variance_order("restart", case, lambda count: {"intervals": [[count // 2 + 1, 2, 0.6, 2.5]]})
    assert found == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("churn", {"s_churn": 0.5}),
        ("churn", {"s_churn": 80.0}),
        ("restart", {"intervals": [[3, 4, 0.6, 2], [2, 1, 0.2, 0.9]]}),
    ],
)
@pytest.mark.parametrize("case", ["vp", "flow"])
def test_the_law_is_exact_where_the_data_are_one_point(case, name, options):
    """x_s ~ N(alpha_s m, sigma_s^2), from the weight of every noise drawn."""
    process = CASES[case][0]
    model, times = sds.GaussianModel([POINT], 0.0, process), [0.7, 0.5, 0.4, 0.2]
    start = torch.zeros(9, 1, dtype=torch.float64)
    start[1] = 1.0
    noise = Counter(9)
    words = {"times": times, "noise": noise, "options": {"solver": "ddim", **options}}
    out = run(model, sds.samplers()[name], start, **words).flatten()
    assert 3 <= noise.draws <= 7
    laws = [(float(process.alpha(t)), float(process.sigma(t))) for t in (0.7, 0.2)]
    gain, shares = out[1] - out[0], out[2:] - out[0]
    assert float(out[0] + gain * laws[0][0] * POINT) == pytest.approx(laws[1][0] * POINT, abs=1e-12)
    variance = (gain * laws[0][1]) ** 2 + shares.square().sum()
    assert float(variance) == pytest.approx(laws[1][1] ** 2, abs=1e-12)


# --- where noise is added ---------------------------------------------------------------------------------------------


def test_churn_stays_within_its_range_and_the_models():
    """Of sigma = 80, 70, 20, 5, 1: all but the first, which has no room above; 20 and 5 within [2, 30]."""
    seen = []
    words = {"steps": None, "sigmas": [80.0, 70.0, 20.0, 5.0, 1.0, 0.0], "log_probs": True, "s_churn": 9.0}
    free = draw("churn", "edm", callback=lambda event: seen.append(event.point.t), **words)
    assert free.log_probs.shape[1] == 4
    assert max(seen) == 80.0
    assert draw("churn", "edm", s_tmin=2.0, s_tmax=30.0, **words).log_probs.shape[1] == 2
    assert draw("churn", "edm", s_tmax=70.0, **words).log_probs.shape[1] == 4


@pytest.mark.parametrize(("solver", "count"), [("heun", 2 * 9 + 1), ("euler", 10)])
def test_evaluations_of_churn_are_the_solvers(solver, count):
    assert draw("churn", "vp", steps=10, solver=solver).nfe == count
    assert draw("churn", "vp", steps=None, nfe=count, solver=solver).recipe.steps == 10


@pytest.mark.parametrize(
    ("steps", "intervals", "count"),
    [
        (18, [[3, 2, 0.06, 0.30]], 43),
        (18, [[3, 20, 0.06, 0.30]], 115),
        (
            36,
            [[4, 1, 19.35, 40.79], [4, 1, 1.09, 1.92], [4, 5, 0.59, 1.09], [4, 5, 0.30, 0.59], [6, 6, 0.06, 0.30]],
            203,
        ),
    ],
)
def test_evaluations_of_restart_are_the_papers(steps, intervals, count):
    """Xu et al. 2023, tables 3 and 5, on EDM's grid."""
    assert draw("restart", "edm", steps=steps, intervals=intervals).nfe == count


def test_restart_begins_at_the_nearest_point_and_leaves_out_what_the_grid_does_not_reach():
    seen = []
    words = {"steps": None, "sigmas": [10.0, 5.0, 2.0, 1.0, 0.0], "solver": "euler"}
    draw("restart", "edm", intervals=[[2, 1, 3.0, 4.0]], callback=lambda event: seen.append(event.point.t), **words)
    assert seen == pytest.approx([10.0, 5.0, 4.0, 2.0, 1.0], rel=1e-12)
    low = draw("restart", "edm", intervals=[[3, 2, 0.06, 0.3]], **words)
    assert not low.drew_noise
    words |= {"coordinates": "ve"}
    del words["solver"]
    assert torch.equal(low.samples, draw("euler", "edm", **words).samples)
    high = draw(
        "restart", "edm", intervals=[[2, 1, 2.0, 500.0]], callback=lambda event: seen.append(event.point.t), **words
    )
    assert high.drew_noise
    assert max(seen) == 80.0


@pytest.mark.parametrize(
    ("case", "name", "noise"), every_third(CASES, ["churn", "restart"], ["independent", "brownian"])
)
def test_short_runs_both_ends_and_replays(case, name, noise):
    for words in ({"steps": 1}, {"steps": 2}, {"steps": 5, "final": "min"}):
        assert torch.isfinite(draw(name, case, noise=noise, **words).samples).all()
    process, prediction = CASES[case]
    model = sds.grid_mixture(process, prediction=prediction)
    result = sds.sample(model, name, steps=6, num_samples=3, log_probs=True, noise=noise)
    close(sds.replay_log_probs(model, result), result.log_probs, 1e-9)


@pytest.mark.parametrize("name", mostly_slow(["churn", "restart"], keep=["restart"]))
def test_five_hundred_steps_in_float32_follow_float64(name):
    model = sds.grid_mixture(sds.VP(), dtype=torch.float32)
    words = {"steps": 500, "num_samples": 3, "seed": 1, "solver": "ddim"}
    single, double = (
        sds.sample(model, name, dtype=d, **words).samples.double() for d in (torch.float32, torch.float64)
    )
    assert (single - double).abs().max() < 1e-3


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["churn", "restart"])
@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("ddpm", "solver='ddpm' adds noise itself; use a one-step ODE solver such as heun"),
        ("churn", "solver='churn' adds noise itself"),
        ("dpmpp-2m", "solver='dpmpp-2m' is a multistep method"),
        ("pndm", "solver='pndm' is a multistep method"),
        ("euler-cfgpp", "solver='euler-cfgpp' needs more than a prediction"),
        ("huen", "unknown solver 'huen'; did you mean 'heun'"),
    ],
)
def test_solvers_that_cannot_be_used_are_refused(name, solver, message):
    with pytest.raises(sds.UsageError, match=message):
        draw(name, "vp", solver=solver)


def test_a_solver_is_tried_on_the_toy_model_once_a_process(monkeypatch):
    model, tried = sds.grid_mixture(sds.VP()), []
    monkeypatch.setattr(churn, "drive", lambda *words: tried.append(1) or drive(*words))
    for solver, runs in (("heun", 6), ("heun", 6), ("ddim", 12), ("heun", 12)):
        sds.sample(model, "churn", steps=3, solver=solver, num_samples=1)
        assert len(tried) == runs


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("churn", {"s_churn": -1.0}, "s_churn and s_noise must be 0 or more"),
        ("churn", {"s_noise": -1.0}, "s_churn and s_noise must be 0 or more"),
        ("churn", {"s_tmin": 2.0, "s_tmax": 1.0}, "0 <= s_tmin <= s_tmax"),
        ("restart", {"s_noise": -1.0}, "s_noise scales the noise"),
        (
            "restart",
            {"intervals": [3, 2, 0.06, 0.3]},
            r"option 'intervals' must be Sequence\[Sequence\[float\]\], not \[3, 2, 0.06, 0.3\]",
        ),
        ("restart", {"intervals": [[3, 2, 0.06]]}, r"; \[3, 2, 0.06\] is not such an interval"),
        ("restart", {"intervals": [[3, 1.5, 0.06, 1]]}, "whole N >= 2 and K >= 1"),
        ("restart", {"intervals": [[1, 2, 0.06, 0.3]]}, "whole N >= 2"),
        ("restart", {"intervals": [[3, 2, 0.3, 0.3]]}, "0 < t_min < t_max"),
        ("restart", {"intervals": "often"}, "must be Sequence"),
    ],
)
def test_options_are_checked(name, options, message):
    with pytest.raises(sds.UsageError, match=message):
        draw(name, "vp", **options)


# --- diffusers --------------------------------------------------------------------------------------------------------

LIMIT = 1e-3 * 2


@pytest.fixture(scope="module")
def model():
    return sds.load("fashion-mnist")


@pytest.mark.parametrize("steps", mostly_slow([10, 25], keep=[10]))
def test_parity_with_diffusers_euler_asked_at_the_raised_state(model, monkeypatch, steps):
    """diffusers' own loop asks the network before it adds the noise, at (x, sigma), and so cannot be matched.

    Asked at (x_hat, sigma_hat), as algorithm 2 has it, its step is ours.
    """
    source, churn = sds.NormalSource(11, range(1), (1, 28, 28)), {"s_churn": 4.0, "s_tmin": 0.05, "s_noise": 1.003}
    draws = (source.draw(PATH, k) for k in itertools.count(1))
    ahead = (source.draw(PATH, k) for k in itertools.count(1))
    monkeypatch.setattr(scheduling_euler_discrete, "randn_tensor", lambda *a, **k: next(draws))
    scheduler = diffusers.EulerDiscreteScheduler(**DDPM, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().tolist()
    x = start = source.draw(0) * sigmas[0]
    gamma = min(churn["s_churn"] / steps, math.sqrt(2) - 1)
    with torch.no_grad():
        for sigma, t in zip(sigmas, scheduler.timesteps, strict=False):
            scheduler.scale_model_input(x, t)
            hat, state = sigma, x
            if sigma >= churn["s_tmin"]:
                hat = sigma * (1 + gamma)
                state = x + churn["s_noise"] * math.sqrt(hat**2 - sigma**2) * next(ahead)
            timestep = torch.tensor(float(model.process.time_at_ratio(hat)))
            output = model.unet(state / math.hypot(1.0, hat), timestep).sample
            x = scheduler.step(output, t, x, **churn).prev_sample
    words = {"sigmas": sigmas, "solver": "euler", "seed": 11, **churn}
    result = sds.sample(model, "churn", start=start / math.hypot(1.0, sigmas[0]), **words)
    difference = float((result.samples - x).abs().max())
    assert difference < LIMIT, difference


@pytest.mark.parametrize("steps", mostly_slow([10, 25], keep=[10]))
def test_parity_with_diffusers_edm_euler_without_churn(model, steps):
    """The embedded model behind EDM's preconditioning: F = (D - c_skip x) / c_out at c_noise = log(sigma)/4."""
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.02, sigma_max=80.0)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().tolist()
    x = start = sds.NormalSource(11, range(1), (1, 28, 28)).draw(0) * sigmas[0]
    with torch.no_grad():
        for sigma, t in zip(sigmas, scheduler.timesteps, strict=False):
            inside = scheduler.scale_model_input(x, t) * math.hypot(sigma, 0.5)
            timestep = torch.tensor(float(model.process.time_at_ratio(sigma)))
            clean = inside - sigma * model.unet(inside / math.hypot(1.0, sigma), timestep).sample
            skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.hypot(sigma, 0.5)
            x = scheduler.step((clean - skip * inside) / out, t, x).prev_sample
    words = {"sigmas": sigmas, "solver": "euler", "s_churn": 0.0}
    result = sds.sample(model, "churn", start=start / math.hypot(1.0, sigmas[0]), **words)
    difference = float((result.samples - x).abs().max())
    assert difference < LIMIT, difference


def diffusers_gains(scheduler_class, module, monkeypatch, sigmas, s_churn, point_mass):
    """What a diffusers scheduler makes of N(0, 0.6^2), or of the point 0, on these sigmas: the weight in the sample of
    the start and of each noise, whose squares are its variance."""
    scheduler, steps = scheduler_class(), len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    unit = torch.eye(steps + 1, dtype=torch.float64)
    count = itertools.count(1)
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: unit[:, next(count)][:, None])
    x = sigmas[0] * unit[:, :1]
    for sigma, t in zip(sigmas, scheduler.timesteps, strict=False):
        scheduler.scale_model_input(x, t)
        clean = 0.0 * x if point_mass else 0.36 * x / (0.36 + sigma**2)
        output = (x - clean) / sigma
        if scheduler_class is diffusers.EDMEulerScheduler:
            output = (clean - 0.25 / (sigma**2 + 0.25) * x) * math.hypot(sigma, 0.5) / (sigma * 0.5)
        x = scheduler.step(output, t, x, s_churn=s_churn).prev_sample.double()
    return x.flatten()


@pytest.mark.parametrize(
    ("scheduler_class", "module"),
    [
        (diffusers.EulerDiscreteScheduler, scheduling_euler_discrete),
        (diffusers.EDMEulerScheduler, scheduling_edm_euler),
    ],
)
def test_diffusers_leaves_its_last_churn_in_the_sample_and_we_do_not(monkeypatch, scheduler_class, module):
    """Data that are one point are reached exactly by algorithm 2. diffusers adds noise after the network was asked."""
    sigmas = [*np.geomspace(3.0, 0.1, 10), 0.0]
    left = diffusers_gains(scheduler_class, module, monkeypatch, sigmas, 4.0, True)
    assert left[-1].abs() > 0.03
    model = sds.GaussianModel([0.0], 0.0, sds.EDM())
    start = 3 * torch.randn(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = sds.sample(model, "churn", sigmas=sigmas, start=start, solver="euler", s_churn=4.0)
    assert result.drew_noise
    assert result.samples.abs().max() < 1e-14
