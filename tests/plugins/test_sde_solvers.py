"""Exponential, Adams and Runge-Kutta solvers of the reverse SDE: identities, exact integrals, noise, edges."""

import itertools
import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import TABLE
from scipy.integrate import quad

import sdesamplers as sds
from sdesamplers.testing.problems import Transport, gaussian_moments, graded, run

PROCESSES = {"vp": sds.VP(), "edm": sds.EDM(), "flow": sds.RectifiedFlow(), "table": sds.DiscreteVP(TABLE)}
MIXTURES = {name: sds.grid_mixture(process, prediction="v") for name, process in PROCESSES.items()}
PURE = ("dpmpp-sde", "dpmpp-2m-sde", "dpmpp-3m-sde", "sa-solver", "er-sde", "exp-euler-maruyama", "seeds-2", "seeds-3")
ALL = (*PURE, "stochastic-heun", "sra1", "sra3", "gotta-go-fast")


def samples(model, name, **words):
    return sds.sample(model, name, **{"num_samples": 4, "seed": 2, "steps": 9, **words}).samples


# --- identities -------------------------------------------------------------------------------------------------------

SA = "sa-solver"


def adams(predictor, tau, corrector=0):
    return {"predictor_order": predictor, "corrector_order": corrector, "tau": tau}


SAME = [
    # without noise, the ODE solver
    ("dpmpp-2m-sde", {"eta": 0.0}, "dpmpp-2m", {}),
    ("dpmpp-2m-sde", {"eta": 0.0, "solver": "heun"}, "dpmpp-2m", {"solver": "heun"}),
    ("dpmpp-3m-sde", {"eta": 0.0}, "dpmpp-3m", {}),
    ("dpmpp-3m-sde", {"eta": 0.0, "lower_order_final": False}, "dpmpp-3m", {"lower_order_final": False}),
    ("dpmpp-sde", {"eta": 0.0}, "dpmpp-2s", {}),
    ("dpmpp-sde", {"eta": 0.0, "r": 0.3}, "dpmpp-2s", {"r1": 0.3}),
    (SA, adams(1, 0.0), "ddim", {}),
    (SA, adams(2, 0.0), "exp-ab", {"order": 2}),
    (SA, {**adams(3, 0.0), "lower_order_final": False}, "exp-ab", {"order": 3}),
    (SA, {**adams(1, 0.0), "prediction": "noise"}, "ddim", {}),
    (SA, {**adams(2, 0.0), "prediction": "noise"}, "exp-ab", {"order": 2, "prediction": "eps"}),
    ("exp-euler-maruyama", {"eta": 0.0, "prediction": "noise"}, "ddim", {}),
    ("exp-euler-maruyama", {"eta": 0.0, "prediction": "data"}, "ddim", {}),
    ("seeds-2", {"eta": 0.0, "prediction": "noise"}, "dpm-solver-2", {}),
    ("seeds-3", {"eta": 0.0, "prediction": "noise"}, "dpm-solver-3", {}),
    ("seeds-3", {"eta": 0.0, "prediction": "data"}, "dpmpp-3s", {}),
    ("er-sde", {"order": 1, "noise_scale": "ode"}, "ddim", {}),
    ("stochastic-heun", {"eta": 0.0}, "heun", {}),
    # with it, one method under two names
    (SA, adams(1, 1.0), "ddpm", {}),
    (SA, adams(1, 1.0), "ddim", {"eta": 1.0}),
    ("exp-euler-maruyama", {"prediction": "data"}, "ddpm", {}),
    ("er-sde", {"order": 1, "noise_scale": "sde"}, "ddpm", {}),
    ("dpmpp-2m-sde", {"eta": 0.7, "solver": "heun"}, SA, adams(2, 0.7)),
    ("dpmpp-3m-sde", {"eta": 1.2}, SA, adams(3, 1.2)),
    ("exp-euler-maruyama", {"prediction": "data", "eta": 0.6}, SA, adams(1, 0.6)),
    ("exp-euler-maruyama", {"prediction": "noise", "eta": 0.6}, SA, {**adams(1, 0.6), "prediction": "noise"}),
    ("dpmpp-sde", {"eta": 0.8, "r": 0.4}, "seeds-2", {"eta": 0.8, "r": 0.4}),
    (SA, {**adams(2, 0.9, 3), "tau_start": 0.0}, SA, adams(2, 0.0, 3)),
    ("gotta-go-fast", {}, "stochastic-heun", {}),
]


@pytest.mark.parametrize("process", mostly_slow(PROCESSES, keep=["vp", "flow"]))
@pytest.mark.parametrize(("name", "options", "twin", "twin_options"), SAME)
def test_two_names_of_one_method_give_one_sample(name, options, twin, twin_options, process):
    words = {"coordinates": "native", "spacing": "linspace"}
    found = samples(MIXTURES[process], name, **words, **options)
    expected = samples(MIXTURES[process], twin, **words, **twin_options)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", ["flow", "zero-snr"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (SA, adams(1, 1.0)),
        ("exp-euler-maruyama", {"prediction": "data"}),
        ("er-sde", {"order": 1, "noise_scale": "sde"}),
    ],
)
def test_out_of_pure_noise_the_first_order_step_is_still_ddpm(process, name, options):
    root = np.sqrt(TABLE)
    zero_snr = sds.DiscreteVP(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)
    model = sds.grid_mixture({"flow": sds.RectifiedFlow(), "zero-snr": zero_snr}[process], prediction="v")
    torch.testing.assert_close(samples(model, name, **options), samples(model, "ddpm"), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_sa_solver_in_noise_prediction_is_of_its_order():
    """A corrector of order 3 on a predictor of order 2, without noise; starting values on a graded grid."""
    model = MIXTURES["vp"]
    ends = np.log(model.process.ratio(np.array([0.9, 0.2])))
    start = 0.5 * torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(name, steps, **options):
        # The first step is a hundredth of the others, so that its lower order does not show.
        u = np.concatenate([[0.0], np.linspace(0.01 / steps, 1.0, steps)])
        times = model.process.time_at_ratio(np.exp(ends[0] + (ends[1] - ends[0]) * u))
        return sds.sample(model, name, start=start, times=times.tolist(), dtype=torch.float64, **options).samples

    truth = run("rk4", 400)
    options = {**adams(2, 0.0, 3), "prediction": "noise", "lower_order_final": False}
    errors = [float((run(SA, steps, **options) - truth).square().mean().sqrt()) for steps in (40, 80, 160)]
    assert 2.7 < math.log2(errors[1] / errors[2]) < 3.3


@pytest.mark.parametrize("tau", [0.3, 0.8, 1.3])
def test_tau_of_sa_solver_is_an_eta_of_ddim_on_even_steps_of_lambda(tau):
    """Zhang et al. 2022 (gDDIM), theorem 1: noise tau is DDIM with std^2 = sigma_s^2 (1 - e^{-2 tau^2 h})."""
    process, h = sds.VP(), 0.25
    times = process.time_at_log_snr(2 * np.arange(-2.0, 1.0, h))
    eta = math.sqrt(math.expm1(-2 * tau**2 * h) / math.expm1(-2 * h))
    words = {"times": times, "steps": None, "start": torch.ones(4, 2, dtype=torch.float64)}
    found = samples(MIXTURES["vp"], SA, **words, **adams(1, tau))
    torch.testing.assert_close(found, samples(MIXTURES["vp"], "ddim", eta=eta, **words), rtol=1e-9, atol=1e-9)


# --- integrals --------------------------------------------------------------------------------------------------------

TIMES = sds.VP().time_at_log_snr(2 * np.array([-1.2, -0.9, -0.3, -0.1, 0.4]))


def silent(start, end, rows=None):
    """Noise that is zero."""
    return torch.zeros(1, 1, dtype=torch.float64)


class Known(sds.Model):
    """x0 is a given function of lambda, whatever the state: a step is then the integral of that function alone."""

    prediction, dtype, shape, name = "sample", torch.float64, (1,), "known"

    def __init__(self, process, function):
        self.process, self.function = process, function

    def predict(self, x, t, condition=None):
        return torch.full_like(x, self.function(-math.log(self.process.ratio(t))))


def last_step(name, options, function, tau_squared, count=5):
    """The last step's result with zero noise, and the same by adaptive quadrature from the state before it."""
    process = sds.VP()
    times = TIMES[-count:]
    model, spec = Known(process, function), sds.samplers()[name]
    start = torch.full((1, 1), 0.8, dtype=torch.float64)
    ends = []
    for grid in (times[:-1], times):
        ends.append(float(run(model, spec, start, times=grid, options=options, noise=silent)))
    begin, end = (-math.log(process.ratio(t)) for t in times[-2:])
    decay = math.exp(-quad(tau_squared, begin, end, epsrel=1e-13)[0])

    def inside(u):
        gone = math.exp(-quad(lambda v: 1 + tau_squared(v), u, end, epsrel=1e-13)[0])
        return gone * (1 + tau_squared(u)) * function(u)

    alpha, sigma = float(process.alpha(times[-1])), float(process.sigma(times[-1]))
    exact = (
        sigma / float(process.sigma(times[-2])) * decay * ends[0] + alpha * quad(inside, begin, end, epsrel=1e-12)[0]
    )
    return ends[1], exact


def polynomial(degree):
    return lambda u: sum((0.6 - 0.35 * k) * u**k for k in range(degree + 1))


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("name", "options", "noise", "degree"),
    [
        ("dpmpp-2m-sde", {"solver": "heun"}, "eta", 1),
        ("dpmpp-3m-sde", {}, "eta", 2),
        (SA, {"predictor_order": 3, "corrector_order": 0}, "tau", 2),
        (SA, {"predictor_order": 4, "corrector_order": 0}, "tau", 3),
    ],
)
def test_a_polynomial_in_lambda_is_integrated_exactly(name, options, noise, degree, tau):
    found, exact = last_step(name, {**options, noise: tau}, polynomial(degree), lambda u: tau**2)
    assert found == pytest.approx(exact, rel=1e-11)
    found, exact = last_step(name, {**options, noise: tau}, polynomial(degree + 1), lambda u: tau**2)
    assert found != pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("tau", [0.0, 1.1])
def test_the_corrector_makes_every_step_but_the_last_exact_for_a_line(tau):
    """Predictor of order 1, corrector of order 2: the exact solution up to the last point but one, then held x0."""
    process, line = sds.VP(), polynomial(1)
    start = torch.full((1, 1), 0.8, dtype=torch.float64)
    options = {"predictor_order": 1, "corrector_order": 2, "tau": tau}
    found = run(Known(process, line), sds.samplers()[SA], start, times=TIMES, options=options, noise=silent)
    state, lams = 0.8, [-math.log(process.ratio(t)) for t in TIMES]
    for (begin, end), (t, s) in zip(itertools.pairwise(lams), itertools.pairwise(TIMES), strict=True):
        follow = line if s != TIMES[-1] else lambda u, begin=begin: line(begin)
        rate = 1 + tau**2
        inside = quad(lambda u: rate * math.exp(rate * (u - end)) * follow(u), begin, end, epsrel=1e-13)[0]  # noqa: B023
        carry = process.sigma(s) / process.sigma(t) * math.exp(-(tau**2) * (end - begin))
        state = float(carry * state + process.alpha(s) * inside)
    assert float(found) == pytest.approx(state, rel=1e-11)


PHI = {
    "ode": lambda r: r,
    "sde": lambda r: r**2,
    "er-sde-1": lambda r: r * (np.exp(-1 / r) + 10),
    "er-sde-2": lambda r: r**1.5,
    "er-sde-3": lambda r: r**2.5,
    "er-sde-4": lambda r: r**0.9 * np.log10(1 + 100 * r**1.5),
    "er-sde-5": lambda r: r * (np.exp(r**0.3) + 10),
}


@pytest.mark.parametrize("noise_scale", PHI)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_integrates_a_polynomial_in_sigma_over_alpha_exactly(order, noise_scale):
    """tau^2 = d log phi / d log r - 1, by a complex step."""

    def tau_squared(u):
        r = math.exp(-u)
        return (r * np.imag(np.log(PHI[noise_scale](r + 1e-30j))) / 1e-30) - 1

    options = {"order": order, "noise_scale": noise_scale}
    found, exact = last_step("er-sde", options, lambda u: polynomial(order - 1)(math.exp(-u)), tau_squared)
    assert found == pytest.approx(exact, rel=1e-9)


def test_er_sde_of_order_three_is_of_third_order_where_the_published_formula_is_of_second():
    """x0 = sin(lambda), the ODE's phi = r: its moments are elementary; the first differences tell the two apart."""
    first, last, counts, errors = -1.5, 1.5, (64, 128, 256), {"ours": [], "published": []}
    exact = math.exp(first - last) * 0.8
    exact += quad(lambda u: math.exp(u - last) * math.sin(u), first, last, epsrel=1e-13)[0]
    process, spec = sds.EDM(), sds.samplers()["er-sde"]
    for count in counts:
        r = np.exp(-graded(first, last, count, 3))
        f, y = np.sin(-np.log(r)), 0.8
        for i, (t, s) in enumerate(itertools.pairwise(r)):
            y = y * s / t + (1 - s / t) * f[i]
            slope = (f[i] - f[i - 1]) / (r[i] - r[i - 1]) if i else 0.0
            y += (s - t + s * math.log(t / s)) * slope
            if i > 1:
                bend = 2 * (slope - (f[i - 1] - f[i - 2]) / (r[i - 1] - r[i - 2])) / (r[i] - r[i - 2])
                y += ((s - t) ** 2 / 2 + s * (t - s - t * math.log(t / s))) * bend
        errors["published"].append(abs(y - exact))
        start = torch.full((1, 1), 0.8, dtype=torch.float64)
        options = {"order": 3, "noise_scale": "ode"}
        found = run(Known(process, math.sin), spec, start, times=r, options=options, noise=silent)
        errors["ours"].append(abs(float(found) - exact))
    orders = {name: -np.polyfit(np.log(counts), np.log(e), 1)[0] for name, e in errors.items()}
    assert orders == pytest.approx({"ours": 3, "published": 2}, abs=0.2)


def test_the_weights_of_a_two_step_method_are_those_worked_by_hand():
    """eta = 1, h = ln 2 twice, x0 = 0 then 1: (1 - e^-2h) = 3/4; midpoint adds half of it, heun 1 - (3/4)/(2 ln 2)."""
    process = sds.EDM()
    spec = sds.samplers()["dpmpp-2m-sde"]
    model = Known(process, lambda u: 1.0 if u > -math.log(5) else 0.0)
    start = torch.full((1, 1), 2.0, dtype=torch.float64)
    for solver, extra in (("midpoint", 3 / 8), ("heun", 1 - 3 / (8 * math.log(2)))):
        found = run(model, spec, start, times=[8.0, 4.0, 2.0], options={"solver": solver}, noise=silent)
        assert float(found) == pytest.approx(2.0 / 16 + 3 / 4 + extra, rel=1e-12)


# --- noise ------------------------------------------------------------------------------------------------------------


def unit_noises(name, options, times, process):
    """How far each unit normal moves the end where the data are one point."""
    model, spec = sds.GaussianModel([0.7], 0.0, process, prediction="sample"), sds.samplers()[name]
    ends = []
    for unit in (None, 0, 1, 2):
        calls = itertools.count()
        start = torch.full((1, 1), 0.3, dtype=torch.float64)
        noise = lambda a, b, rows=None, calls=calls, unit=unit: torch.full(  # noqa: E731
            (1, 1), float(next(calls) == unit), dtype=torch.float64
        )
        ends.append(float(run(model, spec, start, times=times, options=options, noise=noise)))
    return np.array(ends[1:]) - ends[0]


@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize(
    ("name", "options"),
    [("dpmpp-sde", {"r": 0.3}), ("dpmpp-sde", {}), ("dpmpp-sde", {"r": 1.0}), ("seeds-2", {}), ("seeds-3", {})],
)
def test_the_noises_of_a_step_add_up_to_that_of_the_exact_transition(name, options, eta, process):
    p = PROCESSES[process]
    h = 0.7
    times = p.time_at_log_snr(2 * np.array([0.1, 0.1 + h]))
    shares = unit_noises(name, {**options, "eta": eta}, times, p)
    assert (shares != 0).sum() == {"seeds-3": 3}.get(name, 1 if options.get("r") == 1 else 2)
    exact = float(p.sigma(times[1])) ** 2 * -math.expm1(-2 * eta**2 * h)
    assert (shares**2).sum() == pytest.approx(exact, rel=1e-10)


def uneven(count):
    """Steps of 1 : 1.5 in turn, over lambda from -1.5 to 1.5."""
    shares = np.tile([1.0, 1.5], count)[:count]
    edges = np.concatenate([[0.0], np.cumsum(shares)])
    return Transport(sds.VP()).time(-1.5 + 3 * edges / edges[-1])


def variance_order(spec, options, counts=(96, 192)):
    errors = []
    for count in counts:
        found = gaussian_moments(spec, sds.VP(), uneven(count), options=options)
        errors.append(abs(found.variance - found.exact_variance))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("name", "options"),
    mostly_slow(
        [
            ("dpmpp-2m-sde", {"solver": "heun", "eta": 0.7}),
            ("dpmpp-sde", {"eta": 0.7, "r": 0.3}),
            (SA, adams(3, 1.0)),
            ("seeds-2", {"prediction": "noise"}),
            ("seeds-3", {"prediction": "noise"}),
            ("er-sde", {"noise_scale": "er-sde-4"}),
            ("er-sde", {"noise_scale": "sde", "order": 3}),
            ("stochastic-heun", {"eta": 0.7}),
            ("sra3", {"eta": 0.7}),
        ],
        keep=lambda name, options: name in ("dpmpp-2m-sde", SA),
    ),
)
def test_weak_order_two_with_other_options(name, options):
    assert variance_order(sds.samplers()[name], options) == pytest.approx(2, abs=0.2)


@pytest.mark.slow
def test_the_variance_is_of_first_order_if_the_stage_and_the_step_have_noise_of_their_own():
    """dpmpp-sde as it is elsewhere with a noise source that is not one Brownian path; the rest is the same."""

    @sds.sampler("unrelated", order=1, evaluations=2, stochastic=True)
    def unrelated(x, path):
        """dpmpp-sde with r = 1/2, eta = 1 and two unrelated noises."""
        for now, then in path.steps:
            middle = path.between(now, then, 0.5)
            out = yield x, now
            x, data = out.x, out.x0
            for end in (middle, then):
                h = end.lam - now.lam
                mean = end.sigma / now.sigma * math.exp(-h) * x - math.expm1(-2 * h) * end.alpha * data
                state = path.draw(mean, end.sigma * math.sqrt(-math.expm1(-2 * h)), now, end)
                if end is middle:
                    data = (yield state, middle).x0
            x = state
        return x

    assert variance_order(unrelated, {}) == pytest.approx(1, abs=0.15)
    assert variance_order(sds.samplers()["dpmpp-sde"], {}) == pytest.approx(2, abs=0.15)


class Coupled:
    """The noise that `sra1` and `sra3` (two draws) or one draw a step want, from one finely resolved Wiener path."""

    def __init__(self, fine, steps, pairs):
        increments = fine.reshape(steps, -1, *fine.shape[1:])
        cell = 1 / increments.shape[1]
        walk = np.cumsum(increments, axis=1)
        total = walk[:, -1] * math.sqrt(cell)  # I1 / sqrt(h)
        mean = (walk - 0.5 * increments).mean(1) * math.sqrt(cell)  # I10 / h^(3/2), trapezoidal
        if pairs:
            difference = math.sqrt(3) * (2 * mean - total)
            total = np.stack([total + difference, total - difference], 1).reshape(-1, *fine.shape[1:]) / math.sqrt(2)
        self.values = iter(total)

    def __call__(self, start, end, rows=None):
        return torch.from_numpy(next(self.values))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "order"), [("sra1", 1.5), ("sra3", 1.5), ("stochastic-heun", 1.0)])
def test_strong_order_along_a_wiener_path_whose_time_integral_is_known(name, order):
    process = sds.VP(0.1, 7.0)
    model = Transport(process).model
    fine = np.random.default_rng(4).standard_normal((2048, 200, 1))
    start = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def at(method, steps):
        noise = Coupled(fine, steps, method.startswith("sra"))
        return run(model, sds.samplers()[method], start, times=np.linspace(0.9, 0.2, steps + 1), noise=noise)

    reference, counts = at("sra3", 512), (8, 16, 32, 64)
    errors = [float((at(name, n) - reference).square().mean().sqrt()) for n in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    ("name", "options"),
    mostly_slow(
        [
            ("dpmpp-3m-sde", {}),
            ("dpmpp-sde", {"eta": 0.6}),
            (SA, {"tau": 1.2, "tau_start": 20.0, "tau_end": 0.1}),
            ("er-sde", {"order": 3}),
            ("seeds-3", {"prediction": "noise"}),
            ("sra3", {}),
        ],
        keep=lambda name, options: name in ("dpmpp-3m-sde", "er-sde", SA),
    ),
)
def test_a_mixture_keeps_its_mean_and_second_moments(name, options):
    """1,500 samples of 50 steps: within 4.5 standard errors, and 0.015 for what 50 steps leave."""
    process, count = sds.VP(), 1500
    model = sds.grid_mixture(process)
    start = model.sample_data(count, torch.Generator().manual_seed(3), process.t_max)
    words = {"num_samples": count, "start": start, "steps": 50, "spacing": "logsnr", "seed": 4}
    found = sds.sample(model, name, **words, **options).samples.numpy()
    mean = (model.weights[:, None] * model.means).sum(0).numpy()
    second = (model.weights[:, None] * (model.means**2 + torch.diagonal(model.covariances, 0, 1, 2))).sum(0).numpy()
    for power, exact in ((1, mean), (2, second)):
        error = np.abs((found**power).mean(0) - exact)
        assert (error < 4.5 * (found**power).std(0) / math.sqrt(count) + 0.015).all(), (power, error)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_single_step_to_sigma_zero_gives_the_first_prediction_of_x0(name, process):
    """An SDE multistep sampler of another library crashes when its first step ends at sigma = 0."""
    model = MIXTURES[process]
    words = {"steps": 1, "coordinates": "flow"}  # Euler into sigma = 0 is exact there
    torch.testing.assert_close(
        samples(model, name, **words), samples(model, "ddim", **words), rtol=1e-12, atol=1e-12, check_dtype=False
    )


@pytest.mark.parametrize("name", ALL)
def test_two_steps_and_a_last_sigma_above_zero(name):
    for process, final in itertools.product(PROCESSES, ("zero", "min")):
        found = samples(MIXTURES[process], name, steps=2, final=final, coordinates="native")
        assert torch.isfinite(found).all()
        assert not torch.equal(found, samples(MIXTURES[process], name, steps=2, final=final, seed=3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpmpp-2m-sde", {"eta": -0.1}),
        ("dpmpp-sde", {"r": 0.0}),
        ("dpmpp-sde", {"s_noise": -1.0}),
        (SA, {"predictor_order": 5}),
        (SA, {"corrector_order": -1}),
        (SA, {"tau_start": 1.0, "tau_end": 2.0}),
        ("er-sde", {"order": 4}),
        ("seeds-2", {"r": 1.5}),
        ("seeds-3", {"eta": -1.0}),
        ("sra1", {"eta": -1.0}),
        ("stochastic-heun", {"eta": -1.0}),
        ("gotta-go-fast", {"rtol": 0.0}),
    ],
)
def test_options_out_of_range_are_refused_before_the_model_is_asked(name, options):
    asked = []
    with pytest.raises(sds.UsageError, match=next(iter(options))):
        samples(MIXTURES["vp"], name, callback=asked.append, **options)
    assert not asked


def test_tau_acts_in_its_interval_alone():
    """The states agree with the ODE's until sigma/alpha falls below tau_start."""
    words = {"num_samples": 2, "steps": 20, "seed": 1, "trajectory": True}
    ode, sde = (
        sds.sample(MIXTURES["edm"], SA, tau=tau, tau_start=5.0, tau_end=0.5, **words).trajectory for tau in (0.0, 1.0)
    )
    same = [torch.equal(a, b) for a, b in zip(ode.states, sde.states, strict=True)]
    ratios = [float(t) for t in ode.times]
    assert same == [ratio > 5.0 or before > 5.0 for before, ratio in zip([math.inf, *ratios], ratios, strict=False)]


def test_the_noise_factor_scales_the_noise_alone():
    point = sds.GaussianModel([0.7], 0.0, sds.VP())
    words = {"times": [1.0, 0.6, 0.3], "steps": None, "num_samples": 4, "start": torch.zeros(4, 1, dtype=torch.float64)}
    for name in ("dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-sde"):
        none, one, two = (samples(point, name, s_noise=s, **words) for s in (0.0, 1.0, 2.0))
        torch.testing.assert_close(two - none, 2 * (one - none), rtol=1e-10, atol=1e-10)


# --- gotta-go-fast ----------------------------------------------------------------------------------------------------


class Isotropic(sds.Model):
    """N(0.7, 0.36 I) in many dimensions."""

    prediction, dtype, name = "sample", torch.float64, "isotropic"

    def __init__(self, process, dimension=256):
        self.process, self.shape = process, (dimension,)

    def predict(self, x, t, condition=None):
        alpha, sigma = (
            torch.as_tensor(np.asarray(f(t))).reshape(-1, 1) for f in (self.process.alpha, self.process.sigma)
        )
        return 0.7 + alpha * 0.36 / ((0.6 * alpha) ** 2 + sigma**2) * (x - 0.7 * alpha)

    def start(self, count):
        z = torch.randn(2, count, *self.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        t = self.process.t_max
        return float(self.process.alpha(t)) * (0.7 + 0.6 * z[0]) + float(self.process.sigma(t)) * z[1]


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
def test_its_own_steps_keep_the_moments_of_data_of_many_dimensions(process):
    """40 samples of 256 numbers; the allowance is 4 standard errors and 2 % for discarded noise."""
    model, count = Isotropic(PROCESSES[process]), 40
    result = sds.sample(model, "gotta-go-fast", start=model.start(count), seed=1, num_samples=count)
    found, size = result.samples, count * 256
    assert abs(float(found.mean()) - 0.7) < 4 * 0.6 / math.sqrt(size) + 0.006
    assert abs(float(found.var()) / 0.36 - 1) < 4 * math.sqrt(2 / size) + 0.02
    assert result.rejected.mean() < 0.1 * result.accepted.mean()
    assert 50 < result.nfe_per_sample.mean() < 300
    extra = result.nfe_per_sample - 2 * (result.accepted + result.rejected)
    assert set(extra) == {2 if process == "flow" else 1}  # the steps out of alpha = 0 and into sigma = 0


def test_a_samples_own_steps_do_not_depend_on_its_batch():
    model = Isotropic(sds.VP(), 32)
    start = model.start(5)
    whole = sds.sample(model, "gotta-go-fast", start=start, seed=1, num_samples=5)
    alone = sds.sample(model, "gotta-go-fast", start=start[2:3], seed=1, num_samples=1, first_index=2)
    torch.testing.assert_close(whole.samples[2:3], alone.samples, rtol=1e-10, atol=1e-10)
    assert len(set(whole.nfe_per_sample)) > 1
    tight = sds.sample(model, "gotta-go-fast", start=start, seed=1, num_samples=5, rtol=0.01, atol=0.002)
    assert tight.nfe > 2 * whole.nfe
    with pytest.raises(sds.SolverError, match="max_nfe"):
        sds.sample(model, "gotta-go-fast", start=start, seed=1, num_samples=5, max_nfe=20)
    with pytest.raises(sds.UsageError, match="log_probs"):
        sds.sample(model, "gotta-go-fast", start=start, num_samples=5, log_probs=True)
