"""rk45 against scipy's Dormand-Prince solver and against itself."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sdesamplers as sds

BETA_MIN, BETA_MAX = 0.1, 20.0
T_MAX, T_MIN = 1.0, 1e-3
COUNT = 12


@pytest.fixture(scope="module")
def mixture():
    return sds.grid_mixture(sds.VP(BETA_MIN, BETA_MAX))


@pytest.fixture(scope="module")
def start():
    return torch.randn(COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(12))


def velocity(model, t, x):
    """-beta/2 (x + s): the probability-flow ODE with the mixture's score written out."""
    integral = BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t * t
    alpha, variance = np.exp(-0.5 * integral), -np.expm1(-integral)
    total = alpha**2 * model.covariances.numpy() + variance * np.eye(2)
    away = alpha * model.means.numpy() - x
    pulls = np.linalg.solve(total, away[:, :, None])[:, :, 0]
    logs = np.log(model.weights.numpy()) - 0.5 * np.log(np.linalg.det(total)) - 0.5 * (away * pulls).sum(1)
    shares = np.exp(logs - logs.max())
    score = shares / shares.sum() @ pulls
    return -0.5 * (BETA_MIN + (BETA_MAX - BETA_MIN) * t) * (x + score)


@pytest.fixture(scope="module")
def scipy_runs(mixture, start):
    """One sample at a time: the end states and evaluations at 1e-5, and a reference at 1e-11."""
    at_tolerance, reference, evaluations = [], [], []
    for x in start.numpy():

        def f(t, y):
            return velocity(mixture, t, y)

        run = solve_ivp(f, (T_MAX, T_MIN), x, method="RK45", rtol=1e-5, atol=1e-5)
        at_tolerance.append(run.y[:, -1])
        evaluations.append(run.nfev)
        reference.append(solve_ivp(f, (T_MAX, T_MIN), x, method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1])
    return np.array(at_tolerance), np.array(reference), np.array(evaluations)


def solve(model, start, rtol=1e-5, atol=1e-5, **options):
    return sds.sample(model, "rk45", rtol=rtol, atol=atol, start=start, num_samples=len(start), final="min", **options)


def test_rk45_is_as_accurate_as_scipy_for_no_more_evaluations(mixture, start, scipy_runs):
    theirs, reference, evaluations = scipy_runs
    result = solve(mixture, start)
    ours = np.abs(result.samples.numpy() - reference).max(1)
    scipys = np.abs(theirs - reference).max(1)
    assert result.nfe_per_sample.mean() <= evaluations.mean()
    assert np.median(ours) <= 1.5 * np.median(scipys)
    assert ours.max() <= 3 * scipys.max()
    assert ours.max() < 1e-3


def test_rk45_converges_to_scipys_tight_reference(mixture, start, scipy_runs):
    reference = scipy_runs[1]
    tight = solve(mixture, start, 1e-10, 1e-10)
    np.testing.assert_allclose(tight.samples.numpy(), reference, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_the_error_falls_with_the_tolerance(mixture, start, scipy_runs):
    tolerances = [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    runs = [solve(mixture, start, tol, tol) for tol in tolerances]
    errors = np.array([np.abs(r.samples.numpy() - scipy_runs[1]).mean() for r in runs])
    evaluations = np.array([r.nfe_per_sample.mean() for r in runs])
    assert np.all(np.diff(errors) < 0)
    assert np.all(np.diff(evaluations) > 0)
    # the error of a step is held to the tolerance: about first order in it (scipy's slope here is 1.2 too)
    assert 0.8 < np.polyfit(np.log(tolerances), np.log(errors), 1)[0] < 1.4
    # and evaluations grow a little slower than tolerance^(-1/5), their limit
    assert -0.22 < np.polyfit(np.log(tolerances), np.log(evaluations), 1)[0] < -0.12


def test_rtol_and_atol_each_have_an_effect(mixture, start):
    loose = solve(mixture, start, 1e-3, 1e-3).nfe_per_sample.mean()
    assert solve(mixture, start, 1e-7, 1e-12).nfe_per_sample.mean() > 1.5 * loose
    assert solve(mixture, start, 1e-12, 1e-7).nfe_per_sample.mean() > 1.5 * loose


def test_a_hard_sample_does_not_change_anothers_result(mixture, start):
    hard = torch.tensor([[40.0, -60.0]], dtype=torch.float64)
    together = solve(mixture, torch.cat([start[:3], hard, start[3:5]]))
    alone = [solve(mixture, start[k : k + 1]) for k in range(5)]
    assert together.nfe_per_sample[3] != together.nfe_per_sample[0]
    for row, one in zip((0, 1, 2, 4, 5), alone, strict=True):
        torch.testing.assert_close(together.samples[row : row + 1], one.samples, rtol=0, atol=1e-12)
        assert together.nfe_per_sample[row] == one.nfe
        assert together.accepted[row] == one.accepted[0]
        assert together.rejected[row] == one.rejected[0]


def test_accepted_and_rejected_steps_are_reported_and_add_up(mixture, start):
    result = solve(mixture, start)
    assert result.accepted.shape == result.rejected.shape == (COUNT,)
    assert np.all(result.accepted > 5)
    assert np.all(result.rejected >= 0)
    assert result.rejected.sum() > 0
    # one evaluation to start and six a step
    np.testing.assert_array_equal(result.nfe_per_sample, 1 + 6 * (result.accepted + result.rejected))
    assert result.nfe == result.nfe_per_sample.max()


def test_reports_of_several_batches_are_joined(mixture, start):
    whole, parts = solve(mixture, start), solve(mixture, start, batch_size=5)
    torch.testing.assert_close(whole.samples, parts.samples, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(whole.accepted, parts.accepted)
    np.testing.assert_array_equal(whole.rejected, parts.rejected)
    np.testing.assert_array_equal(whole.nfe_per_sample, parts.nfe_per_sample)


@pytest.mark.parametrize("max_nfe", [7, 30, 60])
def test_a_budget_too_small_for_the_tolerance_is_an_error(mixture, start, max_nfe):
    with pytest.raises(sds.SolverError, match=f"max_nfe={max_nfe}"):
        solve(mixture, start, max_nfe=max_nfe)


def test_a_budget_that_just_suffices_is_enough(mixture, start):
    need = solve(mixture, start).nfe
    assert solve(mixture, start, max_nfe=need).nfe == need
    with pytest.raises(sds.SolverError):
        solve(mixture, start, max_nfe=need - 1)


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1e-3}, {"max_nfe": 0}])
def test_tolerances_that_are_not_positive_are_refused(mixture, start, options):
    with pytest.raises(sds.UsageError, match="rk45: rtol, atol and max_nfe must be positive"):
        sds.sample(mixture, "rk45", start=start, num_samples=COUNT, **options)


@pytest.mark.parametrize("options", [{"rtol": 1e-3}, {"atol": 1e-3}, {"max_nfe": 100}])
def test_a_grid_and_tolerances_together_are_refused(mixture, options):
    with pytest.raises(sds.UsageError, match="not both"):
        sds.sample(mixture, "rk45", steps=10, **options)


def test_the_step_into_sigma_zero_needs_no_evaluation(mixture, start):
    """The slope at t_min is the last stage's. With final='zero' the tail is one Euler step of ratio to 0, exact x0."""
    to_min = solve(mixture, start)
    to_zero = sds.sample(mixture, "rk45", rtol=1e-5, atol=1e-5, start=start, num_samples=COUNT)
    np.testing.assert_array_equal(to_min.nfe_per_sample, to_zero.nfe_per_sample)
    moved = (to_zero.samples - to_min.samples).norm(dim=1)
    assert moved.min() > 0
    sigma = float(mixture.process.sigma(T_MIN))
    assert moved.max() < 5 * sigma


@pytest.mark.parametrize("coordinates", ["native", "flow", "angle", "ve"])
def test_all_coordinates_reach_the_same_end(mixture, start, scipy_runs, coordinates):
    found = solve(mixture, start, 1e-8, 1e-8, coordinates=coordinates).samples.numpy()
    np.testing.assert_allclose(found, scipy_runs[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("steps", "final", "expected"), [(4, "min", 25), (4, "zero", 19), (1, "min", 7)])
def test_a_fixed_grid_takes_one_evaluation_and_six_a_step(mixture, steps, final, expected):
    result = sds.sample(mixture, "rk45", steps=steps, final=final)
    assert result.nfe == expected
    assert result.accepted is None


def test_the_trajectory_of_an_adaptive_run_has_times_of_its_own_for_every_sample(mixture, start):
    result = solve(mixture, start[:3], trajectory=True)
    times, states = result.trajectory.times, result.trajectory.states
    assert states.shape == (len(times), 3, 2)
    assert times.shape[1] == 3
    np.testing.assert_allclose(times[0], T_MAX, rtol=1e-12)
    np.testing.assert_allclose(times[-2], T_MIN, rtol=1e-9)
    torch.testing.assert_close(states[-1], result.samples)
    torch.testing.assert_close(states[0], start[:3])


def test_start_time_begins_an_adaptive_run_there(mixture, start):
    """From t = 0.4 rk45 follows the same flow: compare with scipy from there."""
    begin = 0.4
    result = solve(mixture, 0.5 * start[:3], 1e-9, 1e-9, start_time=begin)
    for x, found in zip(0.5 * start[:3].numpy(), result.samples.numpy(), strict=True):
        run = solve_ivp(
            lambda t, y: velocity(mixture, t, y), (begin, T_MIN), x, method="DOP853", rtol=1e-11, atol=1e-11
        )
        np.testing.assert_allclose(found, run.y[:, -1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("final", ["zero", "min"])
@pytest.mark.parametrize(
    ("start_time", "message"),
    [
        *((time, "start time must lie above") for time in (1.5, -1.0, 1e-4)),
        (float("nan"), "start_time must be a number, not nan"),
    ],
)
def test_a_start_time_outside_the_models_range_is_refused(mixture, start, start_time, message, final):
    with pytest.raises(sds.UsageError, match=message):
        sds.sample(mixture, "rk45", start=start, num_samples=COUNT, start_time=start_time, final=final)


def test_float32_states_and_a_stiff_model_are_fine(start):
    model = sds.grid_mixture(sds.VP(), dtype=torch.float32)
    exact = solve(sds.grid_mixture(sds.VP()), start, 1e-8, 1e-8).samples
    result = solve(model, start.float(), 1e-4, 1e-4)
    assert result.samples.dtype == torch.float32
    assert float((result.samples - exact).abs().median()) < 1e-3
