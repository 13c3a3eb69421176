"""DPM-Solver and DPM-Solver++: their equations on paper, orders, identities, singular ends, steps."""

import itertools
import math

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from process_cases import TABLE as DDPM_TABLE
from sdesamplers_plugins._dpm_stages import linear_weights
from sdesamplers_plugins.dpm_fast import groups, third_order_weights

import sdesamplers as sds
from sdesamplers.coefficients import midpoint_integrals
from sdesamplers.testing.problems import Transport, graded, run

ALL = [
    "dpm-solver-2",
    "dpm-solver-3",
    "dpmpp-2s",
    "dpmpp-3s",
    "dpm-fast",
    "dpm-adaptive",
    "dpm-solver-2m",
    "dpm-solver-3m",
    "dpmpp-2m",
    "dpmpp-3m",
]


# --- The papers' equations, written out -------------------------------------------------------------------------------


class Paper:
    """alpha, sigma, lambda and the two predictions of a model on its own process, and DDIM as the paper writes it."""

    def __init__(self, model):
        self.model, self.process = model, model.process

    def schedule(self, t):
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        return alpha, sigma, math.log(alpha / sigma)

    def eps(self, x, t):
        return self.model.predict(x, t)

    def x0(self, x, t):
        alpha, sigma, _ = self.schedule(t)
        return (x - sigma * self.eps(x, t)) / alpha

    def at(self, t, s, r):
        lam, end = self.schedule(t)[2], self.schedule(s)[2]
        return float(self.process.time_at_log_snr(2 * (lam + r * (end - lam))))

    def step(self, kind, x, t, s, first, slope=0.0):
        """x_s with `first` constant over the step and `slope` already multiplied by its phi function over phi_1."""
        (a, b, lam), (a_s, b_s, end) = self.schedule(t), self.schedule(s)
        h = end - lam
        if kind == "noise":
            return a_s / a * x - b_s * math.expm1(h) * (first + slope)
        return b_s / b * x - a_s * math.expm1(-h) * (first + slope)

    def share(self, kind, h):
        """((e^h - 1)/h - 1) / (e^h - 1) in noise prediction, ((e^-h - 1)/h + 1) / (1 - e^-h) in data prediction."""
        if kind == "noise":
            return (math.expm1(h) / h - 1) / math.expm1(h)
        return (math.expm1(-h) / h + 1) / -math.expm1(-h)


def solver_2(paper, kind, x, times, r):
    predict = getattr(paper, "eps" if kind == "noise" else "x0")
    for t, s in itertools.pairwise(times):
        first, mid = predict(x, t), paper.at(t, s, r)
        second = predict(paper.step(kind, x, t, mid, first), mid)
        x = paper.step(kind, x, t, s, first, (second - first) / (2 * r))
    return x


def solver_3(paper, kind, x, times):
    predict = getattr(paper, "eps" if kind == "noise" else "x0")
    for t, s in itertools.pairwise(times):
        h = paper.schedule(s)[2] - paper.schedule(t)[2]
        t1, t2 = paper.at(t, s, 1 / 3), paper.at(t, s, 2 / 3)
        first = predict(x, t)
        d1 = predict(paper.step(kind, x, t, t1, first), t1) - first
        d2 = predict(paper.step(kind, x, t, t2, first, 2 * d1 * paper.share(kind, 2 * h / 3)), t2) - first
        x = paper.step(kind, x, t, s, first, 1.5 * d2 * paper.share(kind, h))
    return x


def solver_2m(paper, kind, x, times):
    predict, last = getattr(paper, "eps" if kind == "noise" else "x0"), None
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        now, slope = predict(x, t), 0.0
        if last is not None:
            lams = [paper.schedule(u)[2] for u in times[k - 1 : k + 2]]
            slope = (now - last) * (lams[2] - lams[1]) / (lams[1] - lams[0]) / 2
        x, last = paper.step(kind, x, t, s, now, slope), now
    return x


CASES = {"vp": (sds.VP(), [0.9, 0.7, 0.3, 0.1]), "flow": (sds.RectifiedFlow(), [0.95, 0.7, 0.4, 0.1])}


@pytest.mark.parametrize(
    ("process", "coordinates"),
    [("vp", "native"), ("vp", "ve"), ("vp", "flow"), ("vp", "angle"), ("flow", "native"), ("flow", "angle")],
)
@pytest.mark.parametrize(
    ("name", "kind", "method", "options"),
    [
        ("dpm-solver-2", "noise", solver_2, {"r1": 0.3}),
        ("dpmpp-2s", "data", solver_2, {"r1": 0.5}),
        ("dpm-solver-3", "noise", solver_3, {}),
        ("dpmpp-3s", "data", solver_3, {}),
        ("dpm-solver-2m", "noise", solver_2m, {}),
        ("dpmpp-2m", "data", solver_2m, {}),
    ],
)
def test_samplers_follow_the_equations_of_their_papers(name, kind, method, options, process, coordinates):
    process, times = CASES[process]
    paper = Paper(sds.grid_mixture(process))
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = method(paper, kind, x, times, *options.values())
    found = sds.sample(paper.model, name, times=times, coordinates=coordinates, start=x, num_samples=5, **options)
    torch.testing.assert_close(found.samples, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rate", [1.0, -1.0, 0.0])
def test_weights_of_a_line_are_its_integral_and_the_midpoint_rule_agrees_to_second_order(rate):
    """int_0^h e^{rate (u - h)} (2 + 3u) du by quadrature; the midpoint rule leaves h^3."""
    defects = []
    for h in (0.4, 0.2):
        u, w = np.polynomial.legendre.leggauss(20)
        u, w = h * (u + 1) / 2, h * w / 2
        exact = float(np.sum(w * np.exp(rate * (u - h)) * (2 + 3 * u)))
        for r in (0.6, -1.7):
            a, b = linear_weights(h, rate, r)
            assert a * 2 + b * (2 + 3 * r * h) == pytest.approx(exact, rel=1e-12)
        a, b = midpoint_integrals(h, rate, -1.7)
        defects.append(abs(a * 2 + b * (2 - 3 * 1.7 * h) - exact))
    assert defects[0] < 1e-12 if rate == 0 else defects[0] / defects[1] == pytest.approx(8, rel=0.15)


def fitted_order(counts, errors):
    """Minus the slope of log error against log steps."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


# --- Order ------------------------------------------------------------------------------------------------------------


def even_third(steps):
    """Steps of ratio 1 : 2 : 1, so that a group of three has nodes at 1/4 and 3/4."""
    edges = np.concatenate([[0.0], np.cumsum(np.tile([1.0, 2.0, 1.0], steps // 3))])
    return -1.5 + 3.0 * edges / edges[-1]


def transport_error(name, lams, **options):
    problem = Transport(sds.VP())
    times = problem.time(lams)
    start, exact = problem.ends(times)
    return float((run(problem.model, sds.samplers()[name], start, times=times, options=options) - exact).abs().max())


def test_third_order_singlestep_on_uneven_nodes_is_of_order_three_and_the_published_stages_are_of_two():
    """diffusers and the authors' code keep the stages of r1 = 1/3 and r2 = 2/3 wherever the grid's points lie."""
    problem = Transport(sds.VP())
    paper = Paper(problem.model)

    def published(lams):
        times = [float(t) for t in problem.time(lams)]
        x, exact = problem.ends(times)
        for k in range(0, len(times) - 1, 3):
            t, t1, t2, s = times[k : k + 4]
            lam, *nodes, end = lams[k : k + 4]
            h, (r1, r2) = end - lam, ((u - lam) / (end - lam) for u in nodes)
            first = paper.x0(x, t)
            d1 = (paper.x0(paper.step("data", x, t, t1, first), t1) - first) / r1
            u2 = paper.step("data", x, t, t2, first, r2 * d1 * paper.share("data", r2 * h))
            d2 = (paper.x0(u2, t2) - first) / r2
            slope, curve = (r2 * d1 - r1 * d2) / (r2 - r1), 2 * (d2 - d1) / (r2 - r1)
            second = ((math.expm1(-h) + h) / h**2 - 0.5) / math.expm1(-h)
            x = paper.step("data", x, t, s, first, slope * paper.share("data", h) + curve * second)
        return float((x - exact).abs().max())

    counts = (24, 48, 96)
    ours = [transport_error("dpm-fast", even_third(n), prediction="data") for n in counts]
    theirs = [published(even_third(n)) for n in counts]
    assert fitted_order(counts, ours) == pytest.approx(3, abs=0.25)
    assert fitted_order(counts, theirs) == pytest.approx(2, abs=0.25)
    assert ours[-1] < theirs[-1] / 4


def test_the_published_curvature_weight_of_3m_is_half_the_integral_and_of_order_two():
    """k-diffusion, diffusers and the authors weight the second difference by phi_3, where its integral is 2 phi_3."""
    problem = Transport(sds.VP())
    paper = Paper(problem.model)

    def hand(lams, factor):
        times = [float(t) for t in problem.time(lams)]
        x, exact = problem.ends(times)
        history = []
        for k, (t, s) in enumerate(itertools.pairwise(times)):
            history = [paper.x0(x, t), *history[:2]]
            h, slope, curve = lams[k + 1] - lams[k], 0.0, 0.0
            if len(history) > 1:
                r0 = (lams[k] - lams[k - 1]) / h
                slope = (history[0] - history[1]) / r0
            if len(history) > 2:
                r1 = (lams[k - 1] - lams[k - 2]) / h
                other = (history[1] - history[2]) / r1
                curve = (slope - other) / (r0 + r1)
                slope = slope + r0 * curve
            phi_3 = (math.expm1(-h) + h) / h**2 - 0.5
            x = paper.step("data", x, t, s, history[0], slope * paper.share("data", h))
            x = x - factor * float(paper.process.alpha(s)) * phi_3 * curve
        return float((x - exact).abs().max())

    counts = (32, 64, 128)
    grids = [graded(-1.5, 1.5, n, 3) for n in counts]
    assert fitted_order(counts, [hand(g, 1) for g in grids]) == pytest.approx(2, abs=0.25)
    assert fitted_order(counts, [hand(g, 2) for g in grids]) == pytest.approx(3, abs=0.3)
    assert hand(grids[0], 2) == pytest.approx(transport_error("dpmpp-3m", grids[0]), rel=1e-6)


def test_third_order_weights_meet_the_classical_conditions_where_the_exponential_is_flat():
    """Kutta 1901: sum b c = 1/2, sum b c^2 = 1/3, sum b a c = 1/6; nodes at 2/3 cannot, and stay bounded."""
    for c1, c2 in ((1 / 3, 2 / 3), (0.25, 0.75), (0.143, 0.43), (0.5, 0.6)):
        stage, b = third_order_weights([0.0, c1, c2, 1.0], 0.0)
        assert sum(b) == pytest.approx(1)
        assert b[1] * c1 + b[2] * c2 == pytest.approx(1 / 2)
        assert b[1] * c1**2 + b[2] * c2**2 == pytest.approx(1 / 3)
        assert b[2] * stage[1] * c1 == pytest.approx(1 / 6)
        assert sum(stage) == pytest.approx(c2)
    for c1 in (2 / 3, 0.666, 0.667):
        stage, b = third_order_weights([0.0, c1, 0.8, 1.0], 1.0)
        assert max(map(abs, [*stage, *b])) < 8


def test_groups_share_a_lone_last_interval():
    path = sds.Path(sds.VP(), [sds.Point() for _ in range(8)])
    for point in path.points:
        point.is_clean = False
    assert [len(g) - 1 for g in groups(path, 3)] == [3, 2, 2]
    assert [len(g) - 1 for g in groups(path, 2)] == [2, 2, 2, 1]
    path.points[-1].is_clean = True
    assert [len(g) - 1 for g in groups(path, 3)] == [3, 3, 1]


@pytest.mark.parametrize(("name", "order"), [("dpmpp-3s", 3), ("dpm-solver-3", 3), ("dpmpp-2s", 2), ("dpm-fast", 3)])
def test_the_step_out_of_pure_noise_is_of_the_solvers_order(name, order):
    """From alpha = 0, where lambda is infinite, against a flow model's exact map: one step leaves h^(order + 1)."""
    model = sds.GaussianModel([0.7], 0.25, sds.RectifiedFlow(), prediction="flow")
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors, sizes = [], (0.1, 0.05, 0.025)
    for h in sizes:
        times = [1.0, 1 - 0.3 * h, 1 - 0.6 * h, 1 - h] if name == "dpm-fast" else [1.0, 1 - h]
        found = sds.sample(model, name, times=times, start=z, num_samples=9).samples
        errors.append(float((found - (h * 0.7 + math.hypot(h * 0.5, 1 - h) * z)).abs().max()))
    assert -fitted_order(sizes, errors) > order + 1 - 0.3  # the midpoint rule has no error in h^3 here


# --- Identities -------------------------------------------------------------------------------------------------------


def pair(model, *calls, **words):
    return [
        sds.sample(model, name, **{"num_samples": 4, "seed": 3, "steps": 12, **words, **more}).samples
        for name, more in calls
    ]


@pytest.mark.parametrize("coordinates", ["native", "flow"])
@pytest.mark.parametrize("process", [sds.VP(), sds.RectifiedFlow(), sds.EDM()])
@pytest.mark.parametrize(
    ("name", "options"), [("dpmpp-2m", {"order": 1}), ("dpm-solver-2m", {"order": 1}), ("dpm-fast", {"order": 1})]
)
def test_order_one_is_ddim(name, options, process, coordinates):
    model = sds.grid_mixture(process, prediction="v")
    grid = {"spacing": "linspace", "coordinates": coordinates}
    ours, ddim = pair(model, (name, options), ("ddim", {}), **grid)
    torch.testing.assert_close(ours, ddim, rtol=1e-10, atol=1e-10)


def test_dpm_fast_with_its_points_at_one_half_is_the_second_order_singlestep():
    model = sds.grid_mixture(sds.VP())
    fine = np.exp(-np.linspace(-2, 2, 13))
    for kind, name in (("noise", "dpm-solver-2"), ("data", "dpmpp-2s")):
        words = {"steps": None, "num_samples": 4}
        ours, theirs = pair(
            model,
            ("dpm-fast", {"order": 2, "prediction": kind, "sigmas": fine}),
            (name, {"sigmas": fine[::2]}),
            **words,
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_dpm_fast_in_groups_of_three_comes_to_dpm_solver_3():
    """At nodes 1/3 and 2/3 the weight of the first intermediate point goes with h, and with it the difference."""
    model, gaps = sds.grid_mixture(sds.VP()), []
    for n in (12, 24):
        fine = np.exp(-np.linspace(-1.5, 1.5, n + 1))
        words = {"steps": None, "start": torch.ones(1, 2, dtype=torch.float64), "num_samples": 1}
        ours, theirs = pair(model, ("dpm-fast", {"sigmas": fine}), ("dpm-solver-3", {"sigmas": fine[::3]}), **words)
        gaps.append(float((ours - theirs).abs().max()))
    assert gaps[1] < gaps[0] / 5


@pytest.mark.parametrize("kind", ["noise", "data"])
def test_dpm_adaptive_on_a_grid_is_the_singlestep_solver(kind):
    model = sds.grid_mixture(sds.VP())
    names = {2: {"noise": "dpm-solver-2", "data": "dpmpp-2s"}, 3: {"noise": "dpm-solver-3", "data": "dpmpp-3s"}}
    for order in (2, 3):
        ours, theirs = pair(model, ("dpm-adaptive", {"order": order, "prediction": kind}), (names[order][kind], {}))
        assert torch.equal(ours, theirs)


def test_the_line_of_2m_is_the_exponential_two_step_method():
    """heun is order 2 of the exact multistep weights, which the third-order sampler has in its second step."""
    model = sds.grid_mixture(sds.VP())
    grid = {"sigmas": [5.0, 3.0, 1.0], "steps": None}
    for two, three in (("dpmpp-2m", "dpmpp-3m"), ("dpm-solver-2m", "dpm-solver-3m")):
        ours, theirs = pair(model, (two, {"solver": "heun"}), (three, {}), **grid)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_lower_order_final_takes_the_step_before_the_last_at_second_order():
    """On three intervals into sigma = 0 nothing of third order is left; on a path that stops short nothing changes."""
    model = sds.grid_mixture(sds.VP())
    for two, three in (("dpmpp-2m", "dpmpp-3m"), ("dpm-solver-2m", "dpm-solver-3m")):
        clean = {"sigmas": [5.0, 3.0, 1.0, 0.4, 0.0], "steps": None}
        short, full = pair(model, (three, {}), (three, {"lower_order_final": False}), **clean)
        assert not torch.allclose(short, full, atol=1e-4)
        ends = {"sigmas": [5.0, 3.0, 1.0, 0.4], "steps": None}
        same, plain = pair(model, (three, {}), (three, {"lower_order_final": False}), **ends)
        assert torch.equal(same, plain)
        clean["sigmas"] = [5.0, 3.0, 1.0, 0.0]
        lines, exact = pair(model, (two, {"solver": "heun"}), (three, {}), **clean)
        torch.testing.assert_close(lines, exact, rtol=1e-12, atol=1e-12)


# --- Ends and edges ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_sigma_zero_and_alpha_zero_are_reached_without_nan(name):
    """Third-order DPM-Solver elsewhere gives NaN where the last sigma is 0; here every order ends in x0."""
    flow = sds.grid_mixture(sds.RectifiedFlow(), prediction="flow")
    table = sds.grid_mixture(sds.DiscreteVP(DDPM_TABLE))
    point = sds.GaussianModel([0.7, -0.4], 0.0, sds.VP())
    for model, steps, final in itertools.product((flow, table), (1, 2, 3, 4, 5), ("zero", "min")):
        assert sds.sample(model, name, steps=steps, final=final, num_samples=2).samples.isfinite().all()
    samples = sds.sample(point, name, steps=7, num_samples=2, coordinates="ve").samples
    torch.testing.assert_close(samples, torch.tensor([[0.7, -0.4]] * 2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_repeated_sigmas_are_refused_in_plain_words(name):
    with pytest.raises(sds.UsageError, match="must fall strictly"):
        sds.sample(sds.grid_mixture(sds.VP()), name, sigmas=[5.0, 1.0, 1.0, 0.1], num_samples=1)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dpm-fast", {"order": 4}, "1, 2 or 3"),
        ("dpmpp-2m", {"order": 3}, "1 .DDIM. or 2"),
        ("dpm-solver-2m", {"order": 0}, "1 .DDIM. or 2"),
        ("dpmpp-2s", {"r1": 0.0}, "position of the stage in the step"),
        ("dpm-solver-2", {"r1": 1.5}, "position of the stage in the step"),
    ],
)
def test_options_out_of_range_are_refused(name, options, words):
    with pytest.raises(sds.UsageError, match=words):
        sds.sample(sds.grid_mixture(sds.VP()), name, steps=4, num_samples=1, **options)


# --- Adaptive steps ---------------------------------------------------------------------------------------------------


def adaptive(model, count=6, **options):
    return sds.sample(model, "dpm-adaptive", num_samples=count, seed=2, **options)


@pytest.mark.parametrize("order", mostly_slow([2, 3], keep=[3]))
def test_tighter_tolerances_cost_more_and_come_closer(order):
    model = sds.grid_mixture(sds.VP())
    start = {"start": torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
    exact = sds.sample(model, "dpmpp-3s", steps=200, spacing="logsnr", num_samples=6, **start).samples
    loose = adaptive(model, order=order, **start)
    tight = adaptive(model, order=order, rtol=1e-4, atol=1e-4, **start)
    errors = [float((r.samples - exact).abs().max()) for r in (loose, tight)]
    assert tight.nfe_per_sample.min() > loose.nfe_per_sample.max()
    assert errors[1] < min(5e-3, errors[0])
    assert (loose.nfe_per_sample < 200).all()


def test_a_sample_has_its_own_steps():
    """Alone, in company and beside a far-off mate it is the same; accepted and rejected steps add up to its cost."""
    model = sds.grid_mixture(sds.VP())
    together = adaptive(model, rtol=1e-3, atol=1e-3)
    alone = adaptive(model, 1, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(together.samples[:1], alone.samples, rtol=0, atol=1e-10)
    assert len(set(together.nfe_per_sample.tolist())) > 1
    steps = together.accepted + together.rejected
    np.testing.assert_array_equal(together.nfe_per_sample, 3 * steps + 1)


def test_step_control_reads_its_coefficients():
    model = sds.grid_mixture(sds.VP())
    base = adaptive(model, rtol=1e-3, atol=1e-3).nfe
    for changed in ({"h_init": 0.5}, {"pcoeff": 0.4, "icoeff": 0.3}, {"dcoeff": 0.2}, {"accept_safety": 0.98}):
        assert adaptive(model, rtol=1e-3, atol=1e-3, **changed).nfe != base or "dcoeff" in changed
    with pytest.raises(sds.SolverError, match="max_nfe=20"):
        adaptive(model, max_nfe=20)
    for wrong in ({"rtol": 0.0}, {"h_init": -1.0}, {"accept_safety": 1.0}):
        with pytest.raises(sds.UsageError, match=r"positive|between 0 and 1"):
            adaptive(model, **wrong)
    with pytest.raises(sds.UsageError, match="not both"):
        sds.sample(model, "dpm-adaptive", steps=5, rtol=0.1, num_samples=1)


def test_adaptive_steps_start_from_pure_noise_too():
    model = sds.GaussianModel([0.7], 0.25, sds.RectifiedFlow(), prediction="flow")
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    found = sds.sample(model, "dpm-adaptive", rtol=1e-5, atol=1e-5, start=z, num_samples=5).samples
    torch.testing.assert_close(found, 0.7 + 0.5 * z, rtol=0, atol=2e-3)
