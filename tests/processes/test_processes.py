"""Processes against textbook closed forms, numerical derivatives and the moment equations."""

import math

import numpy as np
import pytest
import torch
from process_cases import TABLE, TABLES, zero_snr_table
from process_cases import TEXTBOOK as PROCESSES
from scipy.integrate import solve_ivp

import sdesamplers as sds
from sdesamplers.path.path import Path
from sdesamplers.path.prediction import Prediction


def big_b(t, low=0.1, high=20.0, T=1.0):
    return low * t + 0.5 * (high - low) * t**2 / T


def beta(t, low=0.1, high=20.0, T=1.0):
    return low + (high - low) * t / T


# alpha, sigma, f (the drift is f x) and g^2, as the papers print them.
TEXTBOOK = {
    "vp": (
        lambda t: math.exp(-big_b(t) / 2),
        lambda t: math.sqrt(1 - math.exp(-big_b(t))),
        lambda t: -beta(t) / 2,
        beta,
    ),
    "vp, T = 2": (
        lambda t: math.exp(-big_b(t, 0.2, 7.0, 2.0) / 2),
        lambda t: math.sqrt(1 - math.exp(-big_b(t, 0.2, 7.0, 2.0))),
        lambda t: -beta(t, 0.2, 7.0, 2.0) / 2,
        lambda t: beta(t, 0.2, 7.0, 2.0),
    ),
    "constant vp": (
        lambda t: math.exp(-t / 2),
        lambda t: math.sqrt(1 - math.exp(-t)),
        lambda t: -0.5,
        lambda t: 1.0,
    ),
    "cosine": (
        lambda t: math.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008),
        lambda t: math.sqrt(
            1 - (math.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008)) ** 2
        ),
        lambda t: -math.pi / 2 / 1.008 * math.tan(math.pi / 2 * (t + 0.008) / 1.008),
        lambda t: math.pi / 1.008 * math.tan(math.pi / 2 * (t + 0.008) / 1.008),
    ),
    "sub-vp": (
        lambda t: math.exp(-big_b(t) / 2),
        lambda t: 1 - math.exp(-big_b(t)),
        lambda t: -beta(t) / 2,
        lambda t: beta(t) * (1 - math.exp(-2 * big_b(t))),
    ),
    "ve": (
        lambda t: 1.0,
        lambda t: 0.01 * (50.0 / 0.01) ** t,
        lambda t: 0.0,
        lambda t: (0.01 * (50.0 / 0.01) ** t) ** 2 * 2 * math.log(50.0 / 0.01),
    ),
    "edm": (lambda t: 1.0, lambda t: t, lambda t: 0.0, lambda t: 2 * t),
    "flow": (lambda t: 1 - t, lambda t: t, lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
}


def inner_times(process, count=9):
    """Times inside the process's range, off its ends and off a table's timesteps."""
    low, high = process.t_min, process.t_max
    return low + (high - low) * (np.arange(count) + 0.4142) / count


@pytest.mark.parametrize("name", TEXTBOOK)
def test_alpha_sigma_drift_and_diffusion_are_the_textbook_ones(name):
    process = PROCESSES[name]
    alpha, sigma, f, g2 = TEXTBOOK[name]
    for t in inner_times(process):
        assert float(process.alpha(t)) == pytest.approx(alpha(t), rel=1e-11)
        assert float(process.sigma(t)) == pytest.approx(sigma(t), rel=1e-9)
        x = torch.tensor([[1.7, -0.3]], dtype=torch.float64)
        torch.testing.assert_close(process.drift(x, t), f(t) * x, rtol=1e-11, atol=1e-13)
        assert float(process.diffusion(t)) ** 2 == pytest.approx(g2(t), rel=1e-11)


@pytest.mark.parametrize("name", PROCESSES)
def test_derivatives_agree_with_central_differences(name):
    process = PROCESSES[name]
    h = 2e-5 * process.t_max if name not in TABLES else 1e-3
    for t in inner_times(process):
        for value, slope in ((process.alpha, process.d_alpha), (process.sigma, process.d_sigma)):
            # five-point stencil, error h^4
            inner = 8 * (value(t + h) - value(t - h)) - (value(t + 2 * h) - value(t - 2 * h))
            assert float(slope(t)) == pytest.approx(float(inner / (12 * h)), rel=2e-7, abs=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_drift_and_diffusion_integrate_to_alpha_and_sigma(name):
    """d mean/dt = f mean and d var/dt = 2 f var + g^2, integrated numerically, give alpha and sigma^2."""
    process = PROCESSES[name]
    begin, end = inner_times(process, 20)[[1, 17]]
    one = torch.ones(1, 1, dtype=torch.float64)

    def moments(t, y):
        f = float(process.drift(one, float(t)))
        return [f * y[0], 2 * f * y[1] + float(process.diffusion(float(t))) ** 2]

    first = [float(process.alpha(begin)), float(process.sigma(begin)) ** 2]
    last = solve_ivp(moments, (begin, end), first, method="DOP853", rtol=1e-9, atol=1e-12).y[:, -1]
    assert last[0] == pytest.approx(float(process.alpha(end)), rel=1e-6)
    assert last[1] == pytest.approx(float(process.sigma(end)) ** 2, rel=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_log_snr_is_inverted_to_ten_digits(name):
    process = PROCESSES[name]
    # A table's clock runs to 999: there the tolerance is on t / t_max.
    times = np.append(inner_times(process, 23), process.t_min)
    back = process.time_at_log_snr(process.log_snr(times))
    np.testing.assert_allclose(back, times, rtol=0, atol=1e-10 * process.t_max)
    one = process.time_at_log_snr(float(process.log_snr(float(times[3]))))
    assert float(one) == pytest.approx(times[3], abs=1e-10 * process.t_max)


@pytest.mark.parametrize("name", PROCESSES)
def test_log_snr_is_the_logarithm_of_the_squared_ratio(name):
    process = PROCESSES[name]
    for t in inner_times(process):
        expected = math.log(float(process.alpha(t)) ** 2 / float(process.sigma(t)) ** 2)
        assert float(process.log_snr(t)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_arrays_of_times_agree_with_single_times(name):
    process = PROCESSES[name]
    times = inner_times(process)
    for f in (process.alpha, process.sigma, process.d_alpha, process.d_sigma, process.diffusion, process.log_snr):
        np.testing.assert_allclose(f(times), [float(f(float(t))) for t in times], rtol=1e-14)
    x = torch.randn(len(times), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [process.drift(x[i : i + 1], float(t)) for i, t in enumerate(times)]
    torch.testing.assert_close(process.drift(x, times), torch.cat(rows), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_at_ratio_and_its_slope_follow_the_process(name):
    process = PROCESSES[name]
    for t in inner_times(process):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        ratio = sigma / alpha
        assert [float(v) for v in process.at_ratio(ratio)] == pytest.approx([alpha, sigma], rel=1e-9)
        h = 1e-5 * ratio
        slope = (float(process.at_ratio(ratio + h)[0]) - float(process.at_ratio(ratio - h)[0])) / (2 * h)
        assert float(process.d_alpha_d_ratio(ratio)) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_perturb_is_alpha_x0_plus_sigma_noise_and_takes_per_sample_times(name):
    process = PROCESSES[name]
    g = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(4, 2, 3, dtype=torch.float64, generator=g) for _ in range(2))
    times = inner_times(process, 4)
    expected = torch.stack(
        [float(process.alpha(t)) * x0[i] + float(process.sigma(t)) * eps[i] for i, t in enumerate(times)]
    )
    torch.testing.assert_close(process.perturb(x0, times, eps), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(process.perturb(x0, torch.from_numpy(times), eps), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_prior_is_normal_with_the_last_sigma(name):
    process = PROCESSES[name]
    std = float(process.sigma(process.t_max))
    x = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
    expected = sum(-0.5 * (v / std) ** 2 - math.log(std * math.sqrt(2 * math.pi)) for v in x[0].tolist())
    assert float(process.prior.log_prob(x)) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(process.prior.sample(x), x * std)


@pytest.mark.parametrize("name", TEXTBOOK)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_reverse_drift_agrees_between_the_sde_the_prediction_and_the_textbook(name, eta):
    process = PROCESSES[name]
    _, sigma, f, g2 = TEXTBOOK[name]
    generator = torch.Generator().manual_seed(3)
    x, eps = (torch.randn(5, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    path = Path(sds.view(process), [])
    for t in inner_times(process, 5):
        score = -eps / sigma(t)
        expected = f(t) * x - (1 + eta**2) / 2 * g2(t) * score
        from_sde = process.reverse_drift(x, t, score, eta)
        from_prediction = Prediction(x, path.at(float(t)), eps, "epsilon").reverse_drift(eta)
        torch.testing.assert_close(from_sde, expected, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(from_prediction, expected, rtol=1e-8, atol=1e-9)
        if eta == 0:
            torch.testing.assert_close(process.velocity(x, t, score), expected, rtol=1e-8, atol=1e-9)
            velocity = Prediction(x, path.at(float(t)), eps, "epsilon").velocity
            torch.testing.assert_close(velocity, expected, rtol=1e-8, atol=1e-9)


# --- the worked numbers of a unit-rate Ornstein-Uhlenbeck process -----------------------------------------------------


def test_the_worked_step_of_constant_vp():
    """x = 1.2, t = 0.5, epsilon = 0.8: sigma 0.627, score -1.275, drift 0.038, x after a step of 0.05: 1.198."""
    process = sds.ConstantVP(1.0)
    sigma = math.sqrt(1 - math.exp(-0.5))
    score = -0.8 / sigma
    drift = -0.5 * 1.2 - 0.5 * score
    stepped = 1.2 - 0.05 * drift
    printed = {sigma: 0.627, score: -1.275, drift: 0.038, stepped: 1.198}
    for exact, text in printed.items():
        assert abs(exact - text) <= 0.0005
    x, eps = torch.tensor([[1.2]], dtype=torch.float64), torch.tensor([[0.8]], dtype=torch.float64)
    assert float(process.sigma(0.5)) == pytest.approx(sigma, rel=1e-14)
    assert float(sds.convert(eps, "epsilon", "score", x, process, 0.5)) == pytest.approx(score, rel=1e-13)
    velocity = process.velocity(x, 0.5, sds.convert(eps, "epsilon", "score", x, process, 0.5))
    assert float(velocity) == pytest.approx(drift, rel=1e-12)
    model = sds.FunctionModel(lambda x, t: torch.full_like(x, 0.8), process, "epsilon", (1,), dtype=torch.float64)
    result = sds.sample(model, "euler", times=[0.5, 0.45], start=x)
    assert float(result.samples) == pytest.approx(stepped, rel=1e-13)


@pytest.mark.parametrize(("t", "printed"), [(0.25, -1.28), (0.5, -0.96), (0.75, -0.83)])
def test_the_worked_scores_of_constant_vp(t, printed):
    """epsilon = 0.6; all three printed numbers are correct roundings of the closed form."""
    exact = -0.6 / math.sqrt(1 - math.exp(-t))
    assert round(exact, 2) == printed
    eps, x = torch.tensor([[0.6]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    assert float(sds.convert(eps, "epsilon", "score", x, sds.ConstantVP(1.0), t)) == pytest.approx(exact, rel=1e-13)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_met_at_every_timestep(name):
    table, process = TABLES[name], PROCESSES[name]
    t = np.arange(1000.0)
    np.testing.assert_allclose(np.square(process.alpha(t)), table, rtol=1e-12, atol=0)
    np.testing.assert_allclose(np.square(process.sigma(t)), 1 - table, rtol=1e-11, atol=0)
    body = t[:-1] if table[-1] == 0 else t
    inside = table[: len(body)]
    np.testing.assert_allclose(process.time_at_ratio(np.sqrt((1 - inside) / inside)), body, rtol=0, atol=1e-8)


@pytest.mark.parametrize("function", ["ratio", "alpha", "sigma", "schedule", "d_alpha", "d_sigma"])
@pytest.mark.parametrize("ends_in_noise", [False, True])
def test_a_table_gives_a_single_time_the_bits_that_it_gives_an_array(ends_in_noise, function):
    process = sds.DiscreteVP(TABLE)
    process = process.with_zero_terminal_snr() if ends_in_noise else process
    times = np.concatenate([np.random.default_rng(0).uniform(-2, 1001, 500), np.arange(0.0, 1000), [998.5]])
    together = np.stack(np.atleast_2d(getattr(process, function)(times)), -1)
    alone = np.stack([np.atleast_1d(getattr(process, function)(float(t))) for t in times])
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_falls_strictly_between_timesteps(name):
    t = np.linspace(0, 999, 16 * 999 + 1)
    assert np.all(np.diff(PROCESSES[name].alpha(t)) < 0)
    assert np.all(np.diff(PROCESSES[name].log_snr(t[:-1])) < 0)


@pytest.mark.parametrize("name", ["linear table", "scaled linear table", "cosine table"])
def test_a_table_is_continued_with_a_continuous_slope(name):
    process = PROCESSES[name]
    h = 1e-3
    for k in (1.0, 2.0, 17.0, 500.0, 900.0, 997.0):
        lam = process.log_snr
        right = (-3 * lam(k) + 4 * lam(k + h) - lam(k + 2 * h)) / (2 * h)
        left = (3 * lam(k) - 4 * lam(k - h) + lam(k - 2 * h)) / (2 * h)
        assert right == pytest.approx(left, rel=1e-5)


@pytest.mark.parametrize("name", ["linear table", "scaled linear table"])
def test_a_smooth_table_is_continued_with_a_continuous_second_derivative(name):
    process = PROCESSES[name]
    h = 1e-2
    for k in (1.0, 2.0, 17.0, 500.0, 998.0):
        lam = process.log_snr
        right = (2 * lam(k) - 5 * lam(k + h) + 4 * lam(k + 2 * h) - lam(k + 3 * h)) / h**2
        left = (2 * lam(k) - 5 * lam(k - h) + 4 * lam(k - 2 * h) - lam(k - 3 * h)) / h**2
        assert right == pytest.approx(left, rel=1e-4, abs=2e-8)


def test_a_zero_snr_table_ends_at_alpha_zero_exactly_and_is_regular_there():
    process = PROCESSES["zero-SNR table"]
    assert zero_snr_table()[-1] == 0.0
    assert float(process.alpha(999.0)) == 0.0
    assert float(process.sigma(999.0)) == 1.0
    assert float(process.log_snr(999.0)) == -math.inf
    assert float(process.time_at_ratio(math.inf)) == 999.0
    assert process.zero_terminal_snr
    h = 1e-5
    assert float(process.d_alpha(999.0)) == pytest.approx(-float(process.alpha(999.0 - h)) / h, rel=1e-4)
    assert float(process.d_sigma(999.0)) == 0.0
    # alpha/sigma is linear over the last interval, and continuous at its start
    root = zero_snr_table()[998]
    start = math.sqrt(root / (1 - root))
    for u in (0.0, 0.25, 0.9):
        t = 998 + u
        assert float(process.alpha(t) / process.sigma(t)) == pytest.approx(start * (1 - u), rel=1e-10)
        assert float(process.time_at_ratio(float(process.ratio(t)))) == pytest.approx(t, abs=1e-9)


def test_the_cosine_process_ends_at_alpha_zero_exactly():
    process = sds.CosineVP()
    assert float(process.alpha(1.0)) == 0.0
    assert float(process.sigma(1.0)) == pytest.approx(1.0, abs=1e-15)
    assert float(process.time_at_ratio(math.inf)) == 1.0
    assert float(process.d_alpha(1.0)) == pytest.approx(-math.pi / 2 / 1.008 / math.cos(math.pi / 2 * 0.008 / 1.008))


def test_rectified_flow_runs_between_data_and_pure_noise():
    process = sds.RectifiedFlow()
    assert (process.alpha(1.0), process.sigma(1.0), process.alpha(0.0), process.sigma(0.0)) == (0, 1, 1, 0)
    assert float(process.time_at_ratio(math.inf)) == 1.0
    assert float(process.time_at_ratio(0.0)) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: sds.VP(0.0, 20.0),
        lambda: sds.VP(5.0, 1.0),
        lambda: sds.VP(T=0.0),
        lambda: sds.VE(1.0, 0.5),
        lambda: sds.EDM(0.0, 80.0),
        lambda: sds.CosineVP(s=-1.0),
        lambda: sds.DiscreteVP([0.9, 0.95, 0.5]),
        lambda: sds.DiscreteVP([1.0, 0.9, 0.5]),
        lambda: sds.DiscreteVP([0.9]),
        lambda: sds.DiscreteVP([[0.9, 0.5, 0.1]]),
        lambda: sds.DiscreteVP([0.9, 0.5, -0.1]),
        lambda: sds.DiscreteVP([0.9, math.nan, 0.1]),
    ],
)
def test_parameters_without_a_process_are_refused(make):
    with pytest.raises(sds.UsageError):
        make()
