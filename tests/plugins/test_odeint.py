"""The torchdiffeq bridge against samplers of this library that run the same tableaus."""

import sys
import threading

import numpy as np
import pytest
import scipy
import torch
from lanes import mostly_slow

import sdesamplers as sds

pytest.importorskip("torchdiffeq")

ONE_AT_A_TIME = pytest.mark.skipif(
    scipy.__version__.startswith("1.11."), reason="SciPy 1.11 solves one problem at a time"
)
SCIPY = pytest.param("scipy_solver", marks=ONE_AT_A_TIME)
ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", SCIPY]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"]
TWINS = {"dopri5": "rk45", "bosh3": "bosh3", "rk4": "rk4-38", "midpoint": "midpoint", "euler": "euler", "heun2": "heun"}


@pytest.fixture(scope="module")
def model():
    return sds.grid_mixture(sds.VP())


@pytest.fixture(scope="module")
def start():
    return torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(12))


@pytest.fixture(scope="module")
def exact(model, start):
    """The end at the smallest sigma."""
    return sds.sample(model, "dop853", rtol=1e-12, atol=1e-12, start=start, final="min").samples


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("coordinates", ["native", "ve"])
@pytest.mark.parametrize("method", TWINS)
def test_on_a_grid_it_takes_the_steps_of_our_own_sampler(model, start, method, coordinates):
    words = {"steps": 7, "start": start, "spacing": "linspace", "coordinates": coordinates, "final": "min"}
    theirs = sds.sample(model, "odeint", method=method, **words)
    ours = sds.sample(model, TWINS[method], **words)
    torch.testing.assert_close(theirs.samples, ours.samples, rtol=0, atol=1e-12)
    assert theirs.nfe == ours.nfe


@pytest.mark.parametrize("method", mostly_slow(ADAPTIVE, keep=["bosh3", SCIPY]))
def test_without_a_grid_it_solves_to_the_tolerance(model, start, exact, method):
    errors = [
        float(
            (
                sds.sample(model, "odeint", method=method, rtol=tol, atol=tol, start=start, final="min").samples - exact
            ).norm()
        )
        for tol in (1e-2, 1e-4)
    ]
    assert errors[1] < errors[0]
    assert errors[1] < 0.05


def test_the_issues_dopri8_is_as_accurate_as_dop853(model, start, exact):
    found = sds.sample(model, "odeint", method="dopri8", rtol=1e-9, atol=1e-9, start=start, final="min").samples
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", SCIPY])
def test_samples_do_not_change_each_other(model, start, method):
    hard = torch.tensor([[40.0, -60.0]], dtype=torch.float64)
    together = sds.sample(model, "odeint", method=method, start=torch.cat([start[:2], hard, start[2:]]))
    alone = [sds.sample(model, "odeint", method=method, start=start[k : k + 1]) for k in range(4)]
    assert together.nfe_per_sample[2] != together.nfe_per_sample[0]
    for row, one in zip((0, 1, 3, 4), alone, strict=True):
        # its step sizes follow the last bits of the model's output, which differ with the batch
        torch.testing.assert_close(together.samples[row : row + 1], one.samples, rtol=0, atol=1e-10)
        assert together.nfe_per_sample[row] == one.nfe


@pytest.mark.parametrize("method", mostly_slow(["dopri5", "rk4", "explicit_adams", "implicit_adams"], keep=["rk4"]))
def test_samples_do_not_change_each_other_on_a_grid(model, start, method):
    together = sds.sample(model, "odeint", method=method, steps=25, start=start).samples
    alone = [sds.sample(model, "odeint", method=method, steps=25, start=start[k : k + 1]).samples for k in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("final", ["zero", "min"])
@pytest.mark.parametrize("method", ADAPTIVE[:5])
def test_the_model_is_never_asked_outside_the_path(model, start, method, final):
    """Nor at the end of an overshooting last step, which torchdiffeq would interpolate back from."""
    seen = []
    words = {"start": start.float(), "final": final, "callback": lambda event: seen.append(event.point)}
    sds.sample(model, "odeint", method=method, rtol=1e-2, atol=1e-2, dtype=torch.float32, **words)
    times = np.concatenate([np.atleast_1d(point.t) for point in seen])
    assert times.max() <= model.process.t_max
    assert times.min() >= model.process.t_min * (1 - 1e-12)
    assert times.min() == pytest.approx(model.process.t_min, rel=1e-6)  # torchdiffeq steps one float32 short of it
    assert not any(point.is_clean for point in seen)


def test_starts_at_pure_noise_and_ends_at_the_data():
    flow = sds.grid_mixture(sds.RectifiedFlow(), prediction="flow")
    found = sds.sample(flow, "odeint", rtol=1e-7, atol=1e-7, num_samples=5, seed=1).samples
    expected = sds.sample(flow, "rk45", rtol=1e-8, atol=1e-8, num_samples=5, seed=1).samples
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_sde_without_marginals_is_solved_too():
    model = sds.FunnelModel(duration=0.5)
    words = {"num_samples": 3, "seed": 1}
    found = sds.sample(model, "odeint", rtol=1e-8, atol=1e-8, **words).samples
    expected = sds.sample(model, "rk45", rtol=1e-8, atol=1e-8, **words).samples
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_need_a_grid(model, method):
    with pytest.raises(sds.UsageError, match="needs a grid"):
        sds.sample(model, "odeint", method=method)


def test_scipys_solvers_take_none(model):
    with pytest.raises(sds.UsageError, match="is always adaptive"):
        sds.sample(model, "odeint", method="scipy_solver", steps=5)


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1e-3}, {"max_nfe": 0}])
def test_tolerances_that_are_not_positive_are_refused(model, options):
    with pytest.raises(sds.UsageError, match="odeint: rtol, atol and max_nfe must be positive"):
        sds.sample(model, "odeint", **options)


def test_an_unknown_method_is_refused(model):
    with pytest.raises(sds.UsageError, match="dopri8"):
        sds.sample(model, "odeint", method="dopri9")


def test_a_missing_torchdiffeq_is_a_usage_error(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(sds.UsageError, match=r"pip install 'sdesamplers\[odeint\]'"):
        sds.sample(model, "odeint")


def test_a_budget_too_small_for_the_tolerance_is_an_error(model, start):
    with pytest.raises(sds.SolverError, match="max_nfe=40"):
        sds.sample(model, "odeint", start=start, max_nfe=40)


@pytest.mark.parametrize(("method", "nfe"), [("dopri5", 43), ("dopri8", 41), ("rk4", 41), ("euler", 41)])
def test_nfe_budgets_are_kept(model, method, nfe):
    result = sds.sample(model, "odeint", method=method, nfe=nfe)
    assert nfe - 13 < result.nfe <= nfe


def test_an_error_of_the_model_ends_the_threads(start):
    calls = []

    def broken(x, t):
        calls.append(t)
        return x * float("nan") if len(calls) > 9 else 0.5 * x

    model = sds.FunctionModel(broken, sds.VP(), "epsilon", (2,), dtype=torch.float64)
    with pytest.raises(sds.NonFiniteError, match="evaluation 10"):
        sds.sample(model, "odeint", start=start)


def test_an_error_of_torchdiffeq_is_a_solver_error(start):
    model = sds.FunctionModel(lambda x, t: x * float("nan"), sds.VP(), "epsilon", (2,), dtype=torch.float64)
    with pytest.raises(sds.SolverError, match="torchdiffeq failed"):
        sds.sample(model, "odeint", start=start, check_finite=False)


def test_a_cancelled_run_ends_its_threads(model, start):
    def stop(event):
        if event.evaluation == 12:
            assert threading.active_count() > 4
            raise sds.Cancelled("enough")

    with pytest.raises(sds.Cancelled):
        sds.sample(model, "odeint", start=start, callback=stop)


def test_a_generator_closed_early_ends_its_threads(model, start):
    path = sds.Path(sds.view(model.process), [])
    path.points = [path.at(1.0), path.at(0.1)]
    path.is_free = True
    before = threading.active_count()
    run = sds.samplers()["odeint"](start, path)
    next(run)
    assert threading.active_count() == before + 4
    run.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "words",
    mostly_slow([{"steps": 6, "method": "rk4"}, {"rtol": 1e-8, "atol": 1e-8}], keep=[{"steps": 6, "method": "rk4"}]),
)
def test_gradients_flow_through_the_threads(model, words):
    found = []
    twin = {"steps": 6} if "steps" in words else {"rtol": 1e-10, "atol": 1e-10}
    for name, options in (("odeint", words), ("rk4-38" if "steps" in words else "rk45", twin)):
        x = torch.tensor([[0.4, -1.1], [1.5, 0.2]], dtype=torch.float64, requires_grad=True)
        result = sds.sample(model, name, start=x, gradients=True, final="min", **options)
        found.append(torch.autograd.grad(result.samples.square().sum(), x)[0])
    assert found[1].abs().max() > 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_the_threads_have_the_callers_modes(model, start, monkeypatch):
    import torchdiffeq

    modes, inner = [], torchdiffeq.odeint

    def spy(*args, **words):
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        return inner(*args, **words)

    monkeypatch.setattr(torchdiffeq, "odeint", spy)
    for gradients in (False, True):
        sds.sample(model, "odeint", start=start[:1], gradients=gradients)
    assert modes == [(False, False), (False, True)]


@pytest.mark.parametrize("words", [{"steps": 6}, {}])
def test_an_edit_of_the_first_state_is_another_start(model, start, words):
    def edit(event):
        if event.evaluation == 0:
            event.x = event.x + 0.25

    edited = sds.sample(model, "odeint", start=start, callback=edit, **words).samples
    other = sds.sample(model, "odeint", start=start + 0.25, **words).samples
    # its error control goes on reading the state without the edit, so free steps differ a little
    torch.testing.assert_close(edited, other, rtol=0, atol=1e-12 if words else 1e-3)


def test_an_edit_between_steps_is_carried_on(model, start):
    """At evaluation 12 of dopri5 on a grid, the last stage of step 2, the state is that of the third point."""

    def edit(event):
        if event.evaluation == 12:
            event.x = event.x + 0.25

    words = {"times": [1.0, 0.8, 0.6, 0.4, 0.2], "start": start}
    results = [sds.sample(model, name, callback=edit, **words).samples for name in ("odeint", "rk45")]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


def test_two_runs_at_once_do_not_meet(model, start):
    def run(x, out):
        out.append(sds.sample(model, "odeint", start=x).samples)

    results = [[], []]
    runs = [threading.Thread(target=run, args=(start + k, results[k])) for k in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    for k in range(2):
        assert torch.equal(results[k][0], sds.sample(model, "odeint", start=start + k).samples)


@pytest.mark.parametrize("method", mostly_slow(["explicit_adams", "implicit_adams"], keep=["explicit_adams"]))
@pytest.mark.parametrize("equal", [True, False])
def test_adams_methods_lose_their_order_on_unequal_steps(start, method, equal):
    """Why the docstring warns: their weights are those of equal steps. Ours (`ab`, `abm`) have the grid's own."""
    model, counts = sds.grid_mixture(sds.VP(0.1, 7.0)), (32, 64)
    words = {"start": start, "coordinates": "native"}
    exact = sds.sample(model, "dop853", times=np.linspace(1.0, 0.2, 101), **words).samples
    errors = []
    for n in counts:
        edges = np.concatenate([[0.0], np.cumsum(np.tile([1, 1] if equal else [1, 2], n // 2))])
        times = 1.0 - 0.8 * edges / edges[-1]
        errors.append(float((sds.sample(model, "odeint", method=method, times=times, **words).samples - exact).norm()))
    slope = np.log2(errors[0] / errors[1])
    assert slope > 3.5 if equal else slope < 1.3
