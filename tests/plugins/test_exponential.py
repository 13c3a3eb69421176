"""Exponential integrators: orders by option and tableau, identities, weights by hand, another library's bug, edges."""

import math

import numpy as np
import pytest
import torch
from lanes import every_third, mostly_slow
from process_cases import TABLE
from sdesamplers_plugins.exponential import hochbruck_ostermann, krogstad, three_stages, two_stages

import sdesamplers as sds
from sdesamplers.coefficients import phi
from sdesamplers.testing.problems import Transport, graded, measure_order, run

NAMES = (
    "exp-ab",
    "res-2m",
    "res-3m",
    "res-2s",
    "res-3s",
    "etdrk2",
    "etdrk3",
    "etdrk4",
    "gradient-estimation",
)
ROOT = np.sqrt(TABLE)
ZERO_SNR = ((ROOT - ROOT[-1]) * ROOT[0] / (ROOT[0] - ROOT[-1])) ** 2  # Lin et al. 2024, algorithm 1
PROCESSES = {"vp": sds.VP(), "edm": sds.EDM(), "table": sds.DiscreteVP(TABLE), "flow": sds.RectifiedFlow()}


def sampled(process, name, **words):
    model = sds.grid_mixture(process, prediction="v")
    common = {"steps": 14, "num_samples": 5, "seed": 1, "spacing": "linspace", "coordinates": "native"}
    return sds.sample(model, name, **{**common, **words}).samples


def same(first, second, tolerance=1e-10):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


# --- orders ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mixing_up_two_sigmas_would_be_seen():
    """A published exponential Adams method takes one sigma for another in its older term: order 1 is left."""

    @sds.sampler("mixed-up", order=2)
    def mixed_up(x, path):
        """res-2m, with sigma_t alpha_s for alpha_s in the second term."""
        old = None
        for now, then in path.steps:
            out = yield x, now
            h = then.lam - now.lam
            x = out.step_to(then)
            if old is not None:
                slope = (out.x0 - old[1]) / (now.lam - old[0])
                x = x + (then.alpha * now.sigma if bug else then.alpha) * h**2 * phi(2, -h) * slope
            old = now.lam, out.x0
        return x

    found = {}
    for bug in (False, True):
        found[bug] = measure_order(mixed_up, sds.VP(), order=2)
    assert found[False] == pytest.approx(2, abs=0.2)
    assert found[True] < 1.2


def test_the_published_gamma_of_res_3s_costs_its_order():
    """A cube for a square (3 c3^3 - 2 c3) is right at c3 = 1 only; the order conditions need 3 c3^2 - 2 c3."""
    for c2, c3 in ((0.5, 1.0), (0.4, 0.8)):
        for power, good in ((2, True), (3, c3 == 1.0)):
            gamma = (3 * c3**power - 2 * c3) / (c2 * (2 - 3 * c2))
            balanced = math.isclose(2 * (gamma * c2 + c3), 3 * (gamma * c2**2 + c3**2), rel_tol=1e-12)
            assert balanced == good


# --- weights by hand --------------------------------------------------------------------------------------------------

# name -> (tableau at h, order)
TABLEAUX = {
    "res-2s": (lambda h: two_stages(h, 0.5), 2),
    "etdrk2": (lambda h: two_stages(h, 1.0), 2),
    "res-3s": (lambda h: three_stages(h, 0.5, 1.0, 4.0), 3),
    "etdrk3": (lambda h: three_stages(h, 1 / 3, 2 / 3, 0.0), 3),
    "krogstad": (krogstad, 4),
    "hochbruck-ostermann": (hochbruck_ostermann, 4),
}
CLASSICAL = {  # the methods that these become without a linear part, h -> 0
    "res-2s": ((0.5,), [[0.5], [0, 1]]),
    "etdrk2": ((1.0,), [[1], [1 / 2, 1 / 2]]),
    "res-3s": ((0.5, 1.0), [[1 / 2], [-1, 2], [1 / 6, 2 / 3, 1 / 6]]),  # Kutta
    "etdrk3": ((1 / 3, 2 / 3), [[1 / 3], [0, 2 / 3], [1 / 4, 0, 3 / 4]]),  # Heun
    "krogstad": ((0.5, 0.5, 1.0), [[1 / 2], [0, 1 / 2], [0, 0, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6]]),
}


@pytest.mark.parametrize("name", CLASSICAL)
def test_without_a_linear_part_the_tableaux_are_classical(name):
    nodes, rows = TABLEAUX[name][0](1e-9)
    assert nodes == pytest.approx(CLASSICAL[name][0])
    for row, expected in zip(rows, CLASSICAL[name][1], strict=True):
        assert row == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("h", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("name", TABLEAUX)
def test_tableaux_keep_the_stiff_order_conditions_at_every_step_size(name, h):
    """sum b_i c_i^{k-1} / (k-1)! = phi_k(-h) (Hochbruck & Ostermann 2005, table 2): quadrature."""
    tableau, order = TABLEAUX[name]
    nodes, rows = tableau(h)
    c, b = np.array([0.0, *nodes]), np.array(rows[-1])
    # the third condition is met by b(-h) for four and five stages, at h = 0 for three
    exact_to = {2: 2, 3: 2, 4: 3}[order]
    for k in range(1, exact_to + 1):
        moment = b @ c ** (k - 1) / math.factorial(k - 1)
        assert moment == pytest.approx(phi(k, -h), rel=1e-12)
    for c_i, row in zip(nodes, rows[:-1], strict=True):
        assert sum(row) == pytest.approx(c_i * phi(1, -c_i * h), rel=1e-12)


def test_the_five_stages_meet_the_conditions_of_stiff_order_four():
    """The two late stages, the only ones with a weight, integrate a line exactly: sum_j a_ij c_j = c_i^2 phi_2."""
    for h in (0.5, 3.0):
        nodes, rows = hochbruck_ostermann(h)
        c = [0.0, *nodes]
        for i in (2, 3):
            found = sum(a * c_j for a, c_j in zip(rows[i], c, strict=False))
            assert found == pytest.approx(nodes[i] ** 2 * phi(2, -nodes[i] * h), rel=1e-12)
        assert rows[-1][1:3] == [0.0, 0.0]


def test_krogstad_is_written_out_in_elementary_functions():
    """b_1 .. b_4 at h = 1 from phi_1 = 1 - 1/e, phi_2 = 1/e, phi_3 = 1/2 - 1/e."""
    e = math.exp(-1)
    one, two, three = 1 - e, e, 0.5 - e
    by_hand = [one - 3 * two + 4 * three, 2 * two - 4 * three, 2 * two - 4 * three, 4 * three - two]
    assert krogstad(1.0)[1][-1] == pytest.approx(by_hand, rel=1e-12)


def in_lambda(process, function, prediction):
    """A model whose x0 or noise is a function of lambda alone."""

    def predict(x, t, condition=None):
        return torch.full_like(x, function(-math.log(float(process.ratio(t)))))

    return sds.FunctionModel(predict, process, prediction=prediction, shape=(2,), dtype=torch.float64)


@pytest.mark.parametrize(("name", "prediction"), [("res-2m", "sample"), ("exp-ab", "epsilon")])
def test_two_steps_of_the_second_order_methods_are_as_worked_by_hand(name, prediction):
    """A line in lambda: the second step integrates it exactly, the first takes its value at the start."""
    process = sds.EDM(0.002, 80.0)
    model = in_lambda(process, lambda lam: 1 + 2 * lam, prediction)
    a, b, c = lams = (-1.0, -0.4, 0.3)
    options = {} if name == "res-2m" else {"order": 2, "prediction": "eps"}
    start = torch.full((1, 2), 0.7, dtype=torch.float64)
    found = sds.sample(
        model, name, sigmas=[math.exp(-lam) for lam in lams], start=start, num_samples=1, **options
    ).samples[0, 0]
    if prediction == "sample":  # x_s = e^{t - s} x + int e^{u - s} (1 + 2u) du, and [e^u (2u - 1)] is the integral
        x = math.exp(a - b) * 0.7 + (1 - math.exp(a - b)) * (1 + 2 * a)
        x = math.exp(b - c) * x + (2 * c - 1) - math.exp(b - c) * (2 * b - 1)
    else:  # x_s = x - int e^{-u} (1 + 2u) du, and [-e^{-u} (2u + 3)] is the integral
        x = 0.7 + (math.exp(-b) - math.exp(-a)) * (1 + 2 * a)
        x = x + math.exp(-c) * (2 * c + 3) - math.exp(-b) * (2 * b + 3)
    assert float(found) == pytest.approx(x, rel=1e-12)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", ["zero", "min"])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_order_one_is_ddim(process, final):
    ddim = sampled(process, "ddim", final=final)
    same(sampled(process, "exp-ab", order=1, final=final), ddim)
    same(sampled(process, "gradient-estimation", gamma=1.0, final=final), ddim)
    if not np.isinf(process.ratio(process.t_max)):  # from alpha = 0 the noise is not kept either
        same(sampled(process, "exp-ab", order=1, prediction="eps", final=final), ddim)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_multistep_res_is_exponential_adams(process):
    for name, order in (("res-2m", 2), ("res-3m", 3)):
        same(sampled(process, name), sampled(process, "exp-ab", order=order))
        assert not torch.allclose(sampled(process, name), sampled(process, "exp-ab", order=order + 1), atol=1e-4)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_exponential_adams_on_the_noise_is_deis_in_log_rho(order):
    process = sds.VP()
    same(
        sampled(process, "exp-ab", order=order, prediction="eps"), sampled(process, "deis", order=order, kind="logrho")
    )


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_etdrk2_is_res_2s_with_its_stage_at_the_end(process):
    same(sampled(process, "etdrk2"), sampled(process, "res-2s", c2=1.0))
    same(sampled(process, "etdrk3"), sampled(process, "res-3s", c2=1 / 3, c3=2 / 3))


def test_gradient_estimation_with_three_halves_is_lms_of_order_two_on_equal_steps():
    process = sds.VP()
    words = {"sigmas": np.linspace(8.0, 0.5, 11), "steps": None, "spacing": None}
    same(sampled(process, "gradient-estimation", gamma=1.5, **words), sampled(process, "lms", order=2, **words))
    same(sampled(process, "gradient-estimation", gamma=1.5, **words), sampled(process, "ipndm", order=2, **words))


def test_gradient_estimation_with_its_default_is_its_papers_formula():
    """x_{t-1} = x_t + (sigma_{t-1} - sigma_t) (2 eps_t - eps_{t+1}) (Permenter & Yuan 2024, algorithm 2)."""
    process = sds.EDM()
    model = sds.grid_mixture(process, prediction="epsilon")
    sigmas = [5.0, 3.0, 2.0, 0.7, 0.0]
    x = 5 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = sds.sample(model, "gradient-estimation", sigmas=sigmas, start=x, num_samples=4).samples
    old = None
    for k, sigma in enumerate(sigmas[:-1]):
        eps = model.predict(x, sigma)
        mean = eps if old is None or sigmas[k + 1] == 0 else 2 * eps - old
        x, old = x + (sigmas[k + 1] - sigma) * mean, eps
    same(found, x)


@pytest.mark.parametrize(("name", "coordinates"), every_third(NAMES, ["ve", "flow", "angle"]))
def test_results_do_not_depend_on_the_coordinates(name, coordinates):
    process = sds.VP()
    same(sampled(process, name, coordinates=coordinates), sampled(process, name), 1e-8)


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(NAMES, keep=["exp-ab", "etdrk4", "gradient-estimation"]))
@pytest.mark.parametrize("process", [sds.RectifiedFlow(), sds.DiscreteVP(ZERO_SNR)], ids=["flow", "zero-snr"])
def test_starts_at_pure_noise_end_in_the_right_place(name, process):
    """On data that are one Gaussian the exact end is mean + deviation times the starting noise."""
    model = sds.GaussianModel([0.7, -0.4], 0.25, process, prediction="v")
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = torch.tensor([0.7, -0.4], dtype=torch.float64) + 0.5 * z
    words = {"start": z, "num_samples": 6, "coordinates": "flow", "spacing": "linspace"}
    found = sds.sample(model, name, steps=80, **words).samples
    assert float((found - exact).abs().max()) < 0.06
    for steps in (1, 2):
        assert torch.isfinite(sds.sample(model, name, steps=steps, **words).samples).all()


@pytest.mark.parametrize("process", ["flow", "zero-snr"])
@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("res-2s", {"c2": 0.3}, 2),
        ("res-3s", {}, 3),
        ("etdrk2", {}, 2),
        ("etdrk3", {}, 3),
        ("etdrk4", {}, 4),
        ("etdrk4", {"tableau": "hochbruck-ostermann"}, 4),
    ],
)
def test_one_step_out_of_pure_noise_integrates_polynomials_of_its_order(name, options, order, process):
    # d(x / sigma) = x0 du with u = alpha / sigma: x0 = u^k gives x_s / sigma_s = x_t / sigma_t + u_s^(k+1) / (k+1).
    kind, end = {"flow": (sds.RectifiedFlow(), 0.4), "zero-snr": (sds.DiscreteVP(ZERO_SNR), 300.0)}[process]

    def power(k):
        return sds.FunctionModel(lambda x, t: ratio(t) ** k + 0 * x, kind, "sample", (1,), dtype=torch.float64)

    def ratio(t):
        return torch.as_tensor(kind.alpha(t.numpy()) / kind.sigma(t.numpy())).view(t.shape)

    u, sigma = float(kind.alpha(end) / kind.sigma(end)), float(kind.sigma(end))
    start = torch.tensor([[0.7]], dtype=torch.float64)
    words = {"times": [kind.t_max, end], "start": start, "coordinates": "native", "final": "min", **options}
    for k in range(order):
        path = sds.sample(power(k), name, **words)
        same(path.samples, sigma * (start + u ** (k + 1) / (k + 1)))
    off = sds.sample(power(order + 1), name, **words).samples - sigma * (start + u ** (order + 2) / (order + 2))
    assert float(off.abs()) > 1e-6


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("res-2s", {"c2": 0.3}, 2),
        ("res-3s", {}, 3),
        ("etdrk2", {}, 2),
        ("etdrk3", {}, 3),
        ("etdrk4", {}, 4),
        ("etdrk4", {"tableau": "hochbruck-ostermann"}, 4),
    ],
)
def test_one_step_out_of_pure_noise_is_a_classical_runge_kutta_step(name, options, order):
    # x0 = k x / sigma makes it y' = k y in u = alpha / sigma. With as many stages as its order a step is Taylor's sum.
    end, u = 0.4, 1.5
    start = torch.tensor([[0.7]], dtype=torch.float64)
    words = {"times": [1.0, end], "start": start, "coordinates": "native", **options}

    def grown(k):
        model = sds.FunctionModel(
            lambda x, t: k * x / t, sds.RectifiedFlow(), "sample", (1,), dtype=torch.float64, name="linear"
        )
        return float(sds.sample(model, name, **words).samples / (end * start))

    errors = [abs(grown(k) - math.exp(k * u)) for k in (0.2, 0.1)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.3)
    if "tableau" not in options:
        assert grown(0.8) == pytest.approx(sum((0.8 * u) ** j / math.factorial(j) for j in range(order + 1)), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_into_sigma_zero_is_ddims(name):
    same(sampled(sds.VP(), name, steps=1), sampled(sds.VP(), "ddim", steps=1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exp-ab", {"order": 0}, "order must be from 1 to 8, not 0"),
        ("exp-ab", {"order": 9}, "order must be from 1 to 8, not 9"),
        ("res-2s", {"c2": 0.0}, r"c2 must lie in \(0, 1\]"),
        ("res-3s", {"c2": 2 / 3}, "c2 must not be 2/3"),
        ("res-3s", {"c2": 0.5, "c3": 0.5}, "differ"),
    ],
)
def test_options_out_of_range_are_refused_in_plain_words(name, options, message):
    with pytest.raises(ValueError, match=message):
        sampled(sds.VP(), name, **options)


@pytest.mark.parametrize("name", mostly_slow(["exp-ab", "res-3s", "etdrk4"], keep=["exp-ab"]))
def test_five_hundred_steps_in_single_precision_lose_no_digits(name):
    model = sds.GaussianModel([0.7, -0.4], 0.25, sds.VP())
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    words = {"steps": 250 if name == "etdrk4" else 500, "start": x, "num_samples": 6, "spacing": "logsnr"}
    single, double = (sds.sample(model, name, dtype=d, **words).samples for d in (torch.float32, torch.float64))
    assert float((single - double).abs().max()) < 2e-5


def test_higher_orders_are_more_accurate_on_a_grid_of_unlike_steps():
    """Neighbouring steps of up to 1 : 2."""
    problem = Transport(sds.VP())
    times = problem.time(graded(-1.5, 1.5, 64, 6))
    start, exact = problem.ends(times)
    found = [run(problem.model, sds.samplers()["exp-ab"], start, times=times, options={"order": k}) for k in (2, 4, 6)]
    errors = [float((f - exact).abs().max()) for f in found]
    assert errors[0] > 10 * errors[1] > 50 * errors[2]
