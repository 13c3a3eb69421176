"""Runge-Kutta tableaus against the order conditions, scipy and exact solutions; the clean end; Heun++."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from lanes import every_third, mostly_slow
from orders import MEAN, STD, gaussian_error, slope
from process_cases import TABLE
from scipy.integrate import DOP853, RK23, RK45, solve_ivp
from scipy.integrate._ivp.rk import rk_step
from sdesamplers_plugins import runge_kutta

import sdesamplers as sds

TABLEAUS = {t.name: t for t in (*runge_kutta.METHODS, *runge_kutta.PAIRS)}
PAIRS = [t.name for t in runge_kutta.PAIRS]


# --- the tableaus on paper --------------------------------------------------------------------------------------------


@functools.cache
def trees(n):
    """Rooted trees of n nodes, each a tuple of its root's subtrees."""

    def forests(m, largest):
        if m == 0:
            yield ()
        for k in range(m, 0, -1):
            for tree in trees(k):
                if (k, tree) <= largest:
                    yield from ((tree, *rest) for rest in forests(m - k, (k, tree)))

    return [()] if n == 1 else list(forests(n - 1, (n - 1, max(trees(n - 1)))))


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    return size(tree) * math.prod(map(density, tree))


def elementary(matrix, tree):
    """Butcher's elementary weight of each stage."""
    return math.prod((matrix @ elementary(matrix, sub) for sub in tree), start=np.ones(len(matrix)))


def butcher(tableau):
    """(A, b) with the solution appended as a stage, whose weights are b; weights of estimates padded to match."""
    count = len(tableau.weights)
    matrix = np.zeros((count + 1, count + 1))
    for i, row in enumerate((*tableau.stages, tableau.weights)):
        matrix[i + 1, : len(row)] = row
    return matrix


def residual(matrix, weights, order, target=lambda tree: 1 / density(tree)):
    """The largest violation of the order conditions of exactly this order (Hairer, Norsett & Wanner 1993, II.2)."""
    weights = np.pad(np.asarray(weights), (0, len(matrix) - len(weights)))
    return max(abs(weights @ elementary(matrix, tree) - target(tree)) for tree in trees(order))


def test_there_are_as_many_order_conditions_as_there_should_be():
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("name", TABLEAUS)
def test_all_order_conditions_hold_up_to_the_order_and_no_further(name):
    tableau = TABLEAUS[name]
    matrix = butcher(tableau)
    assert sds.samplers()[name].order == tableau.order
    for order in range(1, tableau.order + 1):
        assert residual(matrix, tableau.weights, order) < 5e-14
    assert residual(matrix, tableau.weights, tableau.order + 1) > 1e-5
    np.testing.assert_allclose(matrix[1:-1].sum(1), tableau.nodes, rtol=0, atol=2e-15)


# dop853's two estimates are those of a fifth- and a third-order solution; together they are of order 8
@pytest.mark.parametrize(
    ("name", "which", "order"),
    [
        ("bosh3", "error", 3),
        ("rk45", "error", 5),
        ("tsit5", "error", 5),
        ("dop853", "error", 6),
        ("dop853", "damper", 4),
    ],
)
def test_an_error_estimate_has_its_order(name, which, order):
    tableau = TABLEAUS[name]
    matrix, weights = butcher(tableau), getattr(tableau, which)
    for lower in range(1, order):
        assert residual(matrix, weights, lower, lambda tree: 0.0) < 5e-15
    assert residual(matrix, weights, order, lambda tree: 0.0) > 1e-4


def test_tables_that_scipy_has_are_scipys():
    for name, theirs in (("bosh3", RK23), ("rk45", RK45), ("dop853", DOP853)):
        tableau = TABLEAUS[name]
        count = len(tableau.weights)
        np.testing.assert_allclose(butcher(tableau)[:count, : theirs.A.shape[1]], theirs.A[:count], rtol=0, atol=1e-14)
        np.testing.assert_allclose(tableau.weights, theirs.B, rtol=0, atol=1e-15)
        np.testing.assert_allclose((0.0, *tableau.nodes), theirs.C[:count], rtol=0, atol=1e-15)
        error = theirs.E if name != "dop853" else theirs.E5[:-1]
        # the sign of an estimate does not matter
        np.testing.assert_allclose(np.abs(tableau.error), np.abs(error), rtol=0, atol=1e-15)
    np.testing.assert_allclose(TABLEAUS["dop853"].damper, DOP853.E3[:-1], rtol=0, atol=1e-15)


# --- what the samplers do with them -----------------------------------------------------------------------------------


def velocity(t, x):
    """The probability-flow ODE of N(m, s^2) in rectified flow: (x - a m)' and its pull on both sides, by hand."""
    mean, std = MEAN.numpy(), STD
    alpha, sigma = 1 - t, t
    return -mean + (t - alpha * std**2) / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)


@pytest.mark.parametrize("name", TABLEAUS)
def test_two_uneven_steps_are_those_of_scipys_stepper(name):
    tableau, times = TABLEAUS[name], (0.9, 0.55, 0.4)
    matrix = butcher(tableau)
    count = len(tableau.weights)
    x = np.array([0.3, 1.2])
    for t, s in itertools.pairwise(times):
        slopes = np.empty((count + 1, 2))
        nodes = np.array((0.0, *tableau.nodes))
        x, _ = rk_step(
            velocity, t, x, velocity(t, x), s - t, matrix[:count, :count], np.array(tableau.weights), nodes, slopes
        )
    model = sds.GaussianModel(MEAN, STD**2, sds.RectifiedFlow())
    start = torch.tensor([[0.3, 1.2]], dtype=torch.float64)
    found = sds.sample(model, name, times=times, start=start).samples[0].numpy()
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-13)


@pytest.fixture(scope="module")
def mixture():
    return sds.grid_mixture(sds.VP())


@pytest.fixture(scope="module")
def start():
    return torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(12))


@pytest.mark.slow
def test_dop853_is_as_accurate_as_scipys_for_no_more_evaluations(mixture, start):
    """scipy steps each sample by itself over the same ODE (test_rk45.py does so for rk45, with the slope by hand)."""
    process = mixture.process
    view = sds.view(process)

    def f(t, x):
        state = torch.from_numpy(x)[None]
        score = mixture.score(state, t)
        return process.velocity(state, t, score)[0].numpy()

    span, tolerance = (view.t_max, view.t_min), {"rtol": 1e-6, "atol": 1e-6}
    reference = np.array(
        [solve_ivp(f, span, x, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1] for x in start.numpy()]
    )
    theirs = [solve_ivp(f, span, x, method="DOP853", **tolerance) for x in start.numpy()]
    ours = sds.sample(mixture, "dop853", start=start, final="min", **tolerance)
    errors = np.abs(ours.samples.numpy() - reference).max(1)
    scipys = np.abs(np.array([run.y[:, -1] for run in theirs]) - reference).max(1)
    assert ours.nfe_per_sample.mean() <= 1.1 * np.mean([run.nfev for run in theirs])
    assert np.median(errors) <= 2 * np.median(scipys)
    assert errors.max() < 1e-4


@pytest.fixture(scope="module")
def exact(mixture, start):
    """The end at the smallest sigma."""
    return sds.sample(mixture, "dop853", rtol=1e-12, atol=1e-12, start=start, final="min").samples


@pytest.mark.parametrize("name", mostly_slow(PAIRS, keep=PAIRS[:1]))
def test_every_pair_controls_its_error_and_reports_its_steps(mixture, start, exact, name):
    errors, evaluations = [], []
    for tolerance in (1e-3, 1e-5):
        result = sds.sample(mixture, name, rtol=tolerance, atol=tolerance, start=start, final="min")
        errors.append(float((result.samples - exact).abs().median()))
        evaluations.append(result.nfe_per_sample.mean())
        cost = sds.samplers()[name].evaluations
        np.testing.assert_array_equal(result.nfe_per_sample, 1 + cost * (result.accepted + result.rejected))
    assert errors[1] < 0.1 * errors[0]
    assert errors[1] < 20 * 1e-5
    assert evaluations[1] > evaluations[0]


@pytest.mark.slow
def test_higher_order_pays_at_tight_tolerances(mixture, start):
    cost = {
        name: sds.sample(mixture, name, rtol=1e-10, atol=1e-10, start=start).nfe_per_sample.mean()
        for name in ("dop853", "rk45", "tsit5")
    }
    assert cost["dop853"] < 0.8 * min(cost["rk45"], cost["tsit5"])


@pytest.mark.parametrize("name", PAIRS)
def test_a_hard_sample_does_not_change_anothers_steps(mixture, start, name):
    hard = torch.tensor([[40.0, -60.0]], dtype=torch.float64)
    words = {"rtol": 1e-3, "atol": 1e-3}
    together = sds.sample(mixture, name, start=torch.cat([start[:1], hard, start[1:2]]), **words)
    alone = [sds.sample(mixture, name, start=start[k : k + 1], **words) for k in range(2)]
    for row, one in zip((0, 2), alone, strict=True):
        torch.testing.assert_close(together.samples[row : row + 1], one.samples, rtol=0, atol=1e-12)
        assert together.accepted[row] == one.accepted[0]
        assert together.rejected[row] == one.rejected[0]


@pytest.mark.parametrize("name", mostly_slow(["rk45", "dop853"], keep=["rk45"]))
def test_adaptive_runs_have_gradients(mixture, name):
    """A central difference of the final state; the steps chosen do not carry gradients and need not."""

    def run(x, gradients):
        return sds.sample(mixture, name, rtol=1e-8, atol=1e-8, start=x, gradients=gradients, final="min").samples.sum()

    x = torch.tensor([[0.4, -1.1]], dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(run(x, True), x)[0][0]
    direction = torch.tensor([0.8, -0.6], dtype=torch.float64)
    e = 1e-4 * direction
    quotient = (run(x.detach() + e, False) - run(x.detach() - e, False)) / 2e-4
    assert float(found @ direction) == pytest.approx(float(quotient), rel=1e-3, abs=1e-4)


# --- the clean end ----------------------------------------------------------------------------------------------------


def asked(model, name, **words):
    times = []
    sds.sample(model, name, callback=lambda event: times.append(event.point.t), **words)
    return np.concatenate([np.atleast_1d(t) for t in times])


@pytest.mark.parametrize(("name", "coordinates"), every_third(TABLEAUS, ("native", "flow", "angle")))
def test_the_model_is_never_asked_below_its_smallest_sigma(name, coordinates):
    for process in (sds.VP(), sds.RectifiedFlow(), sds.DiscreteVP(TABLE)):
        model = sds.grid_mixture(process, prediction="v")
        for steps in (1, 2, 5):
            times = asked(model, name, steps=steps, coordinates=coordinates)
            assert times.min() >= process.t_min * (1 - 1e-9)
            assert times.max() <= process.t_max


@pytest.mark.parametrize(
    ("name", "evaluations", "last"),
    [("midpoint", 4, 0.1), ("ralston", 4, 0.2 / 3), ("bosh3", 6, 0.05), ("rk3", 4, 0.2), ("ssprk3", 4, 0.2)],
)
def test_a_long_step_into_sigma_zero_is_full_where_no_stage_lands_there(name, evaluations, last):
    """From 0.2 to 0 in rectified flow: the nodes of midpoint, Ralston and Bogacki-Shampine all lie inside."""
    model = sds.grid_mixture(sds.RectifiedFlow(), prediction="v")
    times = asked(model, name, times=[0.9, 0.2, 0.0], num_samples=1)
    assert len(times) == evaluations
    assert times.min() == pytest.approx(last)


@pytest.mark.parametrize(("name", "order"), [("midpoint", 2), ("ralston", 2), ("bosh3", 3), ("rk4", 2), ("euler", 1)])
def test_convergence_all_the_way_to_sigma_zero(name, order):
    """m + s (x - alpha m) / width at t = 0; Euler's last step leaves an error of second order."""
    process, z = sds.RectifiedFlow(), torch.linspace(-1.5, 1.5, 6, dtype=torch.float64)[:, None].expand(6, 2)
    model, first = sds.GaussianModel(MEAN, STD**2, process, prediction="flow"), 0.9
    begin = (1 - first) * MEAN + math.hypot((1 - first) * STD, first) * z
    counts = (8, 16, 32, 64)
    errors = []
    for n in counts:
        found = sds.sample(model, name, times=np.linspace(first, 0.0, n + 1), start=begin).samples
        errors.append(float((found - (MEAN + STD * z)).abs().max()))
    # midpoint and Ralston happen to be better than their order here
    measured = slope(counts, errors)
    assert measured > order - 0.25
    assert errors[-1] < 0.02
    if name in ("rk4", "euler"):
        assert measured < order + 0.25


FROM_NOISE = {"seed": 3, "num_samples": 6}


@pytest.fixture(scope="module")
def end_of_noise():
    """A flow model and the exact ends of its paths from pure noise."""
    model = sds.grid_mixture(sds.RectifiedFlow(), prediction="flow")
    return model, sds.sample(model, "dop853", rtol=1e-10, atol=1e-10, **FROM_NOISE).samples


@pytest.mark.parametrize("name", mostly_slow(TABLEAUS, keep=["midpoint", "rk3", "rk4", "bosh3"]))
def test_a_start_in_pure_noise_is_an_ordinary_step(end_of_noise, name):
    model, exact = end_of_noise
    found = sds.sample(model, name, steps=150, **FROM_NOISE).samples
    assert float((found - exact).abs().median()) < 2e-3


@pytest.mark.parametrize("name", TABLEAUS)
def test_an_sde_without_marginals_runs(name):
    result = sds.sample(sds.FunnelModel(duration=0.5), name, steps=8, num_samples=3)
    assert torch.isfinite(result.samples).all()


# --- Heun++ -----------------------------------------------------------------------------------------------------------


def heunpp2_by_hand(x, slope, sigmas):
    """Three slopes with weights 1 - s1/3s0 - s2/3s0, s1/3s0, s2/3s0, then two, then one; in x = x0 + sigma eps."""
    top = sigmas[0]
    for k in range(len(sigmas) - 1):
        a, b = sigmas[k], sigmas[k + 1]
        left = len(sigmas) - 2 - k  # steps after this one
        k1 = slope(x, a)
        total = k1
        if left:
            xb = x + (b - a) * k1
            k2 = slope(xb, b)
            if left == 1:
                total = k1 * (1 - b / (2 * top)) + k2 * b / (2 * top)
            else:
                c = sigmas[k + 2]
                k3 = slope(xb + (c - b) * k2, c)
                total = k1 * (1 - (b + c) / (3 * top)) + k2 * b / (3 * top) + k3 * c / (3 * top)
        x = x + (b - a) * total
    return x


@pytest.mark.parametrize("sigmas", [[10.0, 0.0], [10.0, 2.0, 0.0], [10.0, 4.0, 1.0, 0.2, 0.0], [8.0, 3.0, 2.0, 0.5]])
def test_heunpp2_is_the_weighting_of_its_name(sigmas):
    model = sds.grid_mixture(sds.EDM())
    start = sigmas[0] * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def slope(x, sigma):
        return -sigma * model.score(x, sigma)

    result = sds.sample(model, "heunpp2", sigmas=sigmas, start=start)
    torch.testing.assert_close(result.samples, heunpp2_by_hand(start, slope, sigmas), rtol=0, atol=1e-12)
    assert result.nfe == {1: 1, 2: 3, 3: 6, 4: 9}[len(sigmas) - 1]


def test_heunpp2_in_flow_coordinates_weighs_by_the_flow_clock():
    """There sigma is the flow's own time, as ComfyUI runs flow models."""
    model = sds.grid_mixture(sds.RectifiedFlow(), prediction="flow")
    times = [1.0, 0.7, 0.4, 0.1, 0.0]
    start = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = sds.sample(model, "heunpp2", times=times, start=start, coordinates="flow").samples
    torch.testing.assert_close(found, heunpp2_by_hand(start, model.predict, times), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_heunpp2_is_of_first_order_in_spite_of_its_name(process):
    counts = (128, 256, 512)
    errors = [gaussian_error(process, "heunpp2", "even", n, "ve") for n in counts]
    assert slope(counts, errors) == pytest.approx(1, abs=0.2)
    assert sds.samplers()["heunpp2"].order == 1


def test_heunpp2_needs_marginals():
    with pytest.raises(sds.UsageError, match="needs alpha"):
        sds.sample(sds.FunnelModel(duration=0.5), "heunpp2", steps=8)
