"""Grids are run exactly as given and end where they should; what no grid can begin with is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from process_cases import TABLE
from watching import evaluated

import sdesamplers as sds


@pytest.fixture(scope="module")
def mixture():
    return sds.grid_mixture(sds.VP())


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
def test_times_are_run_exactly_as_given(mixture, coordinates):
    times = [1.0, 0.83, 0.5, 0.31, 0.0123]
    result, events = evaluated(
        lambda keep: sds.sample(mixture, "euler", times=times, coordinates=coordinates, callback=keep)
    )
    assert [p.t for p, _ in events] == times[:-1]
    assert result.recipe.times == tuple(times)
    assert (result.recipe.steps, result.recipe.spacing) == (None, None)
    one_more, events = evaluated(
        lambda keep: sds.sample(mixture, "euler", times=[*times, 0.0], coordinates=coordinates, callback=keep)
    )
    assert [p.t for p, _ in events] == times
    assert one_more.nfe == 5


@pytest.mark.parametrize("process", [sds.VP(), sds.EDM(), sds.DiscreteVP(TABLE)], ids=["vp", "edm", "table"])
@pytest.mark.parametrize("coordinates", ["native", "ve", "angle"])
def test_sigmas_are_run_exactly_as_given(process, coordinates):
    sigmas = [14.0, 7.7, 3.1, 0.9, 0.05]
    model = sds.grid_mixture(process)
    for tail in ([], [0.0]):
        grid = [*sigmas, *tail]
        _, events = evaluated(
            lambda keep, grid=grid: sds.sample(model, "euler", sigmas=grid, coordinates=coordinates, callback=keep)
        )
        points = [p for p, _ in events]
        expected = grid[:-1]
        assert [float(p.ratio) for p in points] == pytest.approx(expected, rel=1e-9)
        for p, sigma in zip(points, expected, strict=True):
            ratio = float(process.sigma(p.t)) / float(process.alpha(p.t))
            assert ratio == pytest.approx(sigma, rel=1e-9)
            if coordinates == "ve":
                assert (p.time, p.sigma) == (sigma, sigma)


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
def test_final_zero_ends_at_the_data_and_final_min_at_t_min(coordinates):
    """One point of data m: at sigma = 0 it is m itself, at t_min alpha m + sigma times the noise of the start."""
    process = sds.VP()
    model = sds.GaussianModel([2.0], 0.0, process)
    alpha0, sigma0 = float(process.alpha(1.0)), float(process.sigma(1.0))
    z = torch.tensor([[0.7]], dtype=torch.float64)
    run = {"steps": 10, "coordinates": coordinates, "start": alpha0 * 2 + sigma0 * z}
    assert float(sds.sample(model, "ddim", final="zero", **run).samples) == pytest.approx(2.0, abs=1e-12)
    integral = 0.1 * 1e-3 + 0.5 * 19.9 * 1e-6
    expected = 2 * math.exp(-integral / 2) + 0.7 * math.sqrt(-math.expm1(-integral))
    assert float(sds.sample(model, "ddim", final="min", **run).samples) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("spacing", sorted(sds.spacings()))
def test_a_start_stands_at_its_time_on_every_spacing_or_is_refused(spacing):
    process = sds.DiscreteVP(TABLE)
    model = sds.grid_mixture(process)
    words = {"steps": 5, "spacing": spacing, "start": torch.zeros(2, 2), "start_time": 400.5, "trajectory": True}
    if spacing in ("leading", "trailing") or spacing.startswith("ays"):
        with pytest.raises(sds.UsageError, match=r"start_time=400\.5|exceeds the range of sigma"):
            sds.sample(model, "ddim", **words)
    else:
        assert sds.sample(model, "ddim", **words).trajectory.times[0] == pytest.approx(400.5, rel=1e-12)


def test_a_budget_beyond_a_tables_length_takes_the_whole_table():
    model = sds.grid_mixture(sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 20))))
    assert sds.sample(model, "ddim", nfe=20, spacing="leading").nfe == 20
    assert sds.sample(model, "ddim", nfe=35, spacing="leading").nfe == 20


def test_a_grid_that_starts_amid_the_signal_from_noise_warns(mixture):
    with pytest.warns(UserWarning, match="pass start="):
        sds.sample(mixture, "ddim", times=[0.3, 0.1, 0.0])


@sds.spacing("all-but-the-last")
def all_but_the_last(span, count):
    """An even grid without its last point, which does not declare that it ends early."""
    return np.linspace(span.start, span.end, count + 1)[:-1]


@sds.spacing("a-little-further")
def a_little_further(span, count):
    """An even grid whose times are rounded, so that it ends a little below the smallest time of training."""
    return np.floor(np.linspace(span.start, span.end, count) * 2e3) / 2e3 - 1e-4


def test_a_spacing_that_ends_early_undeclared_runs_with_a_warning_and_is_refused_where_samples_would_stay_noisy(
    mixture,
):
    with pytest.warns(sds.AccuracyWarning, match=r"ends at 0.25075, and the span at 0.001: set times\[-1\] = span.end"):
        found = sds.sample(mixture, "ddim", steps=4, spacing=all_but_the_last, num_samples=2)
    expected = sds.sample(mixture, "ddim", times=[1.0, 0.75025, 0.5005, 0.25075, 0.0], num_samples=2)
    torch.testing.assert_close(found.samples, expected.samples)
    with pytest.raises(sds.UsageError, match=r"ends at 0.2008, and the span at 0.001"):
        sds.sample(mixture, "ddim", steps=4, spacing=all_but_the_last, final="min", num_samples=2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("final", ["zero", "min"])
def test_a_spacing_may_end_below_the_smallest_time(mixture, final):
    assert (
        sds.sample(mixture, "ddim", steps=4, spacing=a_little_further, final=final, num_samples=2)
        .samples.isfinite()
        .all()
    )


def test_an_option_of_the_spacing_may_move_the_end_of_the_grid():
    """Karras et al. 2022, eq. 5, and equal steps of log sigma, down to sigma_min = 0.05 on a model trained to 0.002."""
    model, options = sds.grid_mixture(sds.EDM(0.002, 80)), {"sigma_min": 0.05}
    fractions = np.linspace(0, 1, 4)
    karras = (80 ** (1 / 7) + fractions * (0.05 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    geometric = 80 * (0.05 / 80) ** fractions
    for name, expected in {"karras": karras, "exponential": geometric, "logsnr": geometric}.items():
        settings = {"steps": 4, "spacing": name, "spacing_options": options}
        _, events = evaluated(lambda keep, run=settings: sds.sample(model, "euler", callback=keep, **run))
        np.testing.assert_allclose([p.t for p, _ in events], expected, rtol=1e-9)


@pytest.mark.parametrize("end", [5e-4, 2e-3])
def test_a_solver_table_may_end_its_steps_anywhere(end):
    """`tune` moves the last point before sigma = 0 above or below t_min; weights of zero-th order keep the start."""
    model = sds.GaussianModel([0.0, 0.0], 0.36, sds.RectifiedFlow(), prediction="v")
    table = sds.SolverTable((math.pi / 2, math.atan(end / (1 - end)), 0.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0)))
    _, events = evaluated(lambda keep: sds.sample(model, table, callback=keep))
    assert [p.t for p, _ in events] == pytest.approx([1.0, end], rel=1e-9)
