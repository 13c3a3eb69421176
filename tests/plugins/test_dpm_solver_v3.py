"""DPM-Solver-v3 and its statistics: closed forms, identities with DPM-Solver and DPM-Solver++, orders, files."""

import itertools
import math
import os

import numpy as np
import pytest
import torch
from lanes import mostly_slow

import sdesamplers as sds
from sdesamplers.coefficients import lagrange_integrals
from sdesamplers.ode.statistics import Statistics, compute_statistics, divided_differences
from sdesamplers.testing import measure_order
from sdesamplers.testing.problems import DEVIATIONS, MEANS, WEIGHTS, Transport, run

MEAN, VARIANCE = (0.7, -0.4), (0.36, 0.1)


def spec():
    return sds.samplers()["dpm-solver-v3"]


def lams(process, count, first=-3.0, last=3.0):
    """Times of an uneven grid of lambda."""
    edges = np.cumsum([0.0, *np.tile([1.0, 1.5], count)[:count]])
    return process.time_at_log_snr(2 * (first + (last - first) * edges / edges[-1]))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Statistics of the 1-D mixture in two processes, and of a Gaussian."""
    folder = tmp_path_factory.mktemp("statistics")

    class Files(dict):
        """Name -> file, computed when it is first used."""

        def __missing__(self, name):
            if name == "gaussian":
                made = compute_statistics(sds.GaussianModel(MEAN, VARIANCE, sds.VP()), samples=4, nodes=80)
            else:
                model = Transport({"vp": sds.VP(), "flow": sds.RectifiedFlow()}[name]).model
                made = compute_statistics(model, samples=1000, nodes=60, batch_size=1000)
            self[name] = str(made.save(folder / f"{name}.safetensors"))
            return self[name]

    return Files()


# --- the statistics ---------------------------------------------------------------------------------------------------


def test_the_statistics_of_a_gaussian_are_its_closed_forms(files):
    """sigma d(eps)/dx = sigma^2 / (alpha^2 v + sigma^2) = 1/(1 + v e^{2 lambda}) = l; f = -l m, so b = -l' m."""
    table = Statistics.load(files["gaussian"])
    mean, variance = np.array(MEAN), np.array(VARIANCE)
    l = 1 / (1 + variance * np.exp(2 * table.lam[:, None]))  # noqa: E741
    np.testing.assert_allclose(table.l, l, rtol=1e-9)
    assert np.abs(table.s).max() < 1e-6  # f does not vary, so that b says it all
    slope = -2 * l * (1 - l)
    np.testing.assert_allclose(table.b[2:-2], (-slope * mean)[2:-2], atol=1e-4)


def test_l_is_the_mean_diagonal_of_the_jacobian(files):
    """On the mixture: E[1 - Var(x0|y) alpha^2/sigma^2], by quadrature over p_lambda with finite differences."""
    process = sds.VP()
    problem, table = Transport(process), Statistics.load(files["vp"])
    for k in (20, 30, 40):
        t = float(problem.time(table.lam[k]))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
        density = problem.model.log_prob(x, t).exp()
        eps = -sigma * problem.model.score(x, t)
        slope = torch.gradient(eps.flatten(), spacing=(x.flatten(),))[0]
        expected = float((density * sigma * slope).sum() / density.sum())
        assert alpha > 0
        assert float(table.l[k, 0]) == pytest.approx(expected, abs=0.06)  # 1,000 trajectories


def test_s_and_b_are_the_regression_of_the_residuals_slope(files):
    """df/dlambda and f along exact trajectories, by quantile transport, regressed here with polyfit."""
    process = sds.VP()
    problem, table = Transport(process), Statistics.load(files["vp"])
    k, d = 32, 1e-3
    q = (np.arange(400) + 0.5) / 400
    f = []
    for lam in (table.lam[k] - d, table.lam[k], table.lam[k] + d):
        t = float(problem.time(lam))
        x = torch.from_numpy(problem.at_quantile(q, t))[:, None]
        eps = -float(process.sigma(t)) * problem.model.score(x, t)
        f.append((math.exp(-lam) * eps - table.linear(lam)[0] * x / float(process.alpha(t))).numpy().ravel())
    s, b = np.polyfit(f[1], (f[2] - f[0]) / (2 * d), 1)
    ridge = 1e-4 * (np.dot(WEIGHTS, np.square(MEANS) + np.square(DEVIATIONS)))  # of the data's mean square
    s *= np.var(f[1]) / (np.var(f[1]) + ridge)
    assert abs(s) > 0.5
    assert float(table.s[k, 0]) == pytest.approx(s, abs=0.15)
    assert float(table.b[k, 0]) == pytest.approx(b, abs=0.05)


def test_statistics_of_too_few_trajectories_are_warned_of():
    model = sds.load("fashion-mnist")
    with pytest.warns(UserWarning, match=r"2 samples at 8 nodes are too few.*s is up to \d"):
        compute_statistics(model, samples=2, nodes=8)


def test_the_statistics_do_not_depend_on_the_batch_size():
    model = sds.grid_mixture(sds.VP())
    whole, parts = (compute_statistics(model, samples=6, nodes=10, batch_size=size) for size in (6, 4))
    for name in ("l", "s", "b"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("prediction", ["sample", "v", "flow", "score"])
def test_the_statistics_do_not_depend_on_the_prediction_type(prediction):
    first, second = (
        compute_statistics(sds.grid_mixture(sds.VP(), prediction=p), samples=4, nodes=10)
        for p in ("epsilon", prediction)
    )
    for name in ("l", "s", "b"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-5, atol=1e-6)


def test_a_file_keeps_the_statistics_and_what_they_are_of(files, tmp_path):
    table = Statistics.load(files["vp"])
    assert table.about["model"] == "1-D mixture"
    assert table.about["samples"] == 1000
    again = Statistics.load(table.save(tmp_path / "again.safetensors"))
    assert again.about == table.about
    assert all(np.array_equal(getattr(again, n), getattr(table, n)) for n in ("lam", "l", "s", "b"))


def test_divided_differences_are_newtons():
    nodes = [0.3, 0.1, -0.4]
    values = np.array([x**2 for x in nodes])
    np.testing.assert_allclose(divided_differences(nodes) @ values, [0.09, 0.4, 1.0], rtol=1e-12)


# --- the solver -------------------------------------------------------------------------------------------------------


def by_hand(model, process, times, x, order, rate):
    """Exponential Adams-Bashforth in x0 (rate 1) or eps (rate -1), weights from `lagrange_integrals`."""
    known, nodes = [], []
    for now, then in itertools.pairwise(times):
        alpha, sigma, a, s = (float(f(t)) for t in (now, then) for f in (process.alpha, process.sigma))
        eps = -sigma * model.score(x, now)
        known.insert(0, (x - sigma * eps) / alpha if rate == 1 else eps)
        nodes.insert(0, math.log(alpha / sigma))
        del known[order:], nodes[order:]
        end = math.log(a / s)
        weights = lagrange_integrals(nodes, nodes[0], end, rate=rate)
        total = sum(w * k for w, k in zip(weights, known, strict=True))
        # x_s = (sigma_s/sigma_t) x + sigma_s int e^lam x0;  x_s = (alpha_s/alpha_t) x - alpha_s int e^-lam eps
        x = s / sigma * x + a * total if rate == 1 else a / alpha * x - s * total
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("process", [sds.VP(), sds.RectifiedFlow()])
def test_without_statistics_it_is_multistep_dpm_solver_plus_plus(process, order):
    model = sds.grid_mixture(process)
    times = lams(process, 9, last=2.0)  # not so near to the data that the last step is of lower order
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = run(model, spec(), x, times=times, options={"order": order, "corrector": False})
    torch.testing.assert_close(found, by_hand(model, process, times, x, order, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_with_the_constants_of_noise_prediction_it_is_multistep_dpm_solver(order, tmp_path):
    process = sds.VP()
    model, times = sds.grid_mixture(process), lams(process, 9, last=2.0)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wide = np.linspace(-4.0, 4.0, 9)
    ones = np.ones((9, 1))
    file = Statistics(wide, 0 * ones, -ones, 0 * ones).save(tmp_path / "noise.safetensors")
    options = {"order": order, "corrector": False, "statistics": str(file)}
    found = run(model, spec(), x, times=times, options=options)
    torch.testing.assert_close(found, by_hand(model, process, times, x, order, -1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
def test_order_one_without_statistics_is_ddim(coordinates):
    model = sds.grid_mixture(sds.VP())
    words = {"steps": 9, "num_samples": 4, "coordinates": coordinates, "spacing": "linspace"}
    for final in ("zero", "min"):
        found = sds.sample(model, "dpm-solver-v3", order=1, final=final, **words).samples
        expected = sds.sample(model, "ddim", final=final, **words).samples
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_gaussian_data_need_one_step_once_their_statistics_are_known(files):
    """f is then a function of lambda alone, which b integrates: what is left is the splines' error."""
    process = sds.VP()
    model = sds.GaussianModel(MEAN, VARIANCE, process)
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = process.time_at_log_snr(2 * np.array([-4.0, 4.0]))

    def state(t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * model.means + torch.sqrt(alpha**2 * torch.tensor(VARIANCE) + sigma**2) * z

    errors = {}
    for file in (files["gaussian"], ""):
        found = run(model, spec(), state(times[0]), times=times, options={"statistics": file})
        errors[file] = float((found - state(times[1])).abs().max())
    assert errors[files["gaussian"]] < 1e-4
    assert errors[""] > 0.3


@pytest.mark.parametrize(
    ("name", "order", "corrector"),
    mostly_slow(itertools.product(("vp", "flow"), (1, 2, 3), (False, True)), keep=[("vp", 3, False)]),
)
def test_it_converges_at_its_order_with_real_statistics(files, name, order, corrector):
    process = {"vp": sds.VP(), "flow": sds.RectifiedFlow()}[name]
    options = {"order": order, "corrector": corrector, "statistics": files[name]}
    assert measure_order(spec(), process, order=order, options=options) == pytest.approx(order, abs=0.2)


def test_lower_orders_at_the_end_are_steps_of_order_two_and_one_into_sigma_zero_alone():
    """The same states as a run of order 3 without its last two steps, then one of order 2 and x0."""
    process = sds.VP()
    model, times = sds.grid_mixture(process), lams(process, 8, last=2.0)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    off, on = ({"corrector": False, "lower_order_final": lower} for lower in (False, True))

    def ends(options, *end):
        return run(model, spec(), x, times=[*times, *end], options=options)

    assert torch.equal(ends(off), ends(on))
    assert not torch.allclose(ends(off, 0.0), ends(on, 0.0), atol=1e-5)
    # of order 2, only the step before the last differs from order 3's; before it there is nothing on three intervals
    short = [times[0], times[4], times[-1]]
    found = [run(model, spec(), x, times=[*short, 0.0], options=o) for o in (off, on, {**off, "order": 2})]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    four = [times[0], times[3], times[5], times[-1], 0.0]
    recorded = [run(model, spec(), x, times=four, options=o) for o in (on, {**off, "order": 2})]
    torch.testing.assert_close(*recorded, rtol=1e-12, atol=1e-12)


def test_the_statistics_are_read_anew_only_where_the_file_has_changed(files, tmp_path, monkeypatch):
    model, times = sds.grid_mixture(sds.VP()), lams(sds.VP(), 5)
    file, loaded, load = tmp_path / "statistics.safetensors", [], Statistics.load
    monkeypatch.setattr(Statistics, "load", lambda path: loaded.append(path) or load(path))
    Statistics.load(files["vp"]).save(file)
    words = {"times": times, "statistics": str(file), "num_samples": 2}
    first = [sds.sample(model, "dpm-solver-v3", **words).samples for _ in range(2)]
    assert torch.equal(*first)
    assert loaded[1:] == [str(file)]
    Statistics.constant().save(file)
    os.utime(file, ns=(1, 1))
    assert not torch.allclose(sds.sample(model, "dpm-solver-v3", **words).samples, first[0], atol=1e-4)
    assert loaded[1:] == [str(file)] * 2


@pytest.mark.slow
def test_pseudo_orders_are_two_at_order_three():
    options = {"order": 3, "pseudo": True}
    assert measure_order(spec(), sds.VP(), order=2, options=options) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("name", mostly_slow(["vp", "flow"], keep=["vp"]))
def test_statistics_make_few_steps_several_times_as_accurate(files, name):
    """Six steps over lambda -4 to 4 on the mixture, against quantile transport: the paper's claim, measured."""
    process = {"vp": sds.VP(), "flow": sds.RectifiedFlow()}[name]
    problem = Transport(process)
    times = process.time_at_log_snr(2 * np.linspace(-4, 4, 7))
    start, exact = problem.ends(times)
    errors = [
        float(
            (run(problem.model, spec(), start, times=times, options={"statistics": f}) - exact).square().mean().sqrt()
        )
        for f in (files[name], "")
    ]
    assert errors[0] < errors[1] / 4


def test_an_edit_between_steps_is_not_undone_by_the_corrector():
    """Four steps from the end of a fine grid, where the ODE carries it on nearly unchanged."""
    model = sds.GaussianModel([0.0], 1.0, sds.VP())  # in VP coordinates its ODE stands still
    words = {"steps": 120, "num_samples": 1, "coordinates": "native", "final": "min", "spacing": "logsnr"}
    plain = sds.sample(model, "dpm-solver-v3", **words).samples

    def edit(event):
        if event.evaluation == 115:
            event.x = event.x + 0.1

    moved = sds.sample(model, "dpm-solver-v3", callback=edit, **words).samples
    assert float((moved - plain).abs().max()) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("process", [sds.RectifiedFlow(), sds.CosineVP()])
def test_it_starts_at_pure_noise(process):
    model = sds.MixtureModel([1.0], [[0.7, -0.4]], [0.0], process, prediction="v")
    for steps in (1, 2, 3, 9):
        found = sds.sample(model, "dpm-solver-v3", steps=steps, num_samples=3).samples
        torch.testing.assert_close(found, model.means.expand(3, 2), rtol=0, atol=1e-7)


def test_what_does_not_fit_is_refused_before_the_model_is_asked(files, tmp_path):
    model = sds.FunctionModel(lambda x, t: 1 / 0, sds.VP(), "epsilon", (3,))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no statistics")
    cases = [
        ({"order": 4}, sds.UsageError, "order must be 1, 2 or 3"),
        ({"statistics": str(tmp_path / "none")}, sds.UsageError, "sdesamplers statistics MODEL --out FILE"),
        ({"statistics": str(broken)}, sds.ModelError, "not a file of model statistics"),
        ({"statistics": files["gaussian"]}, sds.UsageError, r"samples of shape \(2,\), not \(3,\)"),
        ({"statistics": files["vp"], "times": [1.0, 1e-5]}, sds.UsageError, "wider range"),
    ]
    for options, error, message in cases:
        words = {"times": [1.0, 0.5, 0.2], **options}
        with pytest.raises(error, match=message):
            sds.sample(model, "dpm-solver-v3", **words)


def test_statistics_of_the_embedded_network():
    """A network: autograd goes through it, l is 1 where all is noise and falls towards the data."""
    model = sds.load("fashion-mnist")
    table = compute_statistics(model, samples=2, nodes=8, batch_size=2)
    assert table.l.shape == (8, 1, 28, 28)
    means = table.l.mean((1, 2, 3))
    assert means[0] == pytest.approx(1, abs=0.02)
    assert means[-1] < means[4] < means[0]
    assert all(np.isfinite(getattr(table, name)).all() for name in ("l", "s", "b"))
