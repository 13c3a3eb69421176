"""Grids are run exactly as given, end where they should, and may have two points that are nearly one."""

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
        with pytest.raises(sds.UsageError, match=r"start_time=400\.5|cannot be had here"):
            sds.sample(model, "ddim", **words)
    else:
        assert sds.sample(model, "ddim", **words).trajectory.times[0] == pytest.approx(400.5, rel=1e-12)


def test_a_budget_beyond_a_tables_length_takes_the_whole_table():
    model = sds.grid_mixture(sds.DiscreteVP(np.cumprod(1 - np.linspace(1e-4, 0.02, 20))))
    assert sds.sample(model, "ddim", nfe=20, spacing="leading").nfe == 20
    assert sds.sample(model, "ddim", nfe=35, spacing="leading").nfe == 20


def test_a_grid_that_starts_amid_the_signal_from_noise_warns(mixture):
    with pytest.warns(UserWarning, match="give start="):
        sds.sample(mixture, "ddim", times=[0.3, 0.1, 0.0])


# --- two points that are nearly one, as two joined lists make them ----------------------------------------------------

GRID = (80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.0)
STD = 0.25
RUNNING = [name for name, spec in sds.samplers().items() if not set(spec.needs) & {"log_density", "stationary"}]
"""Samplers that run on a grid of a diffusion model."""
WIDER = {"bdia-ddim": 0.5, "annealed-langevin": 0.5}
"""Methods that another point makes another method of, as a share of the spread: BDIA takes each step back as far as it
went, whatever the last one's length, and annealed Langevin dynamics makes its steps at every level."""


def spread(sampler: str, sigmas: list[float], process: sds.GaussianProcess) -> float:
    """Standard deviation of 256 samples of data N(0.5, STD^2), over the data's."""
    model = sds.GaussianModel([0.5, 0.5], STD**2, process, prediction="sample", dtype=torch.float32)
    samples = sds.sample(model, sampler, sigmas=sigmas, num_samples=256).samples
    return float(samples.std(0).mean()) / STD


@pytest.mark.parametrize("sampler", RUNNING)
def test_a_point_given_twice_to_rounding_changes_nothing(sampler: str) -> None:
    """With it a run differs by a step that is next to nothing, in which a multistep method has less to go by.

    A stochastic one draws other noise: an estimate of a standard deviation from 512 numbers has a standard error of
    1 / 32 of it. Weights of size 1 / gap made 54 and 33 of what should be 1.
    """
    spec = sds.samplers()[sampler]
    process = sds.EDM()
    try:
        alone = spread(sampler, list(GRID), process)
    except sds.SdesamplersError as refusal:
        pytest.skip(str(refusal))
    margin = (WIDER.get(sampler, 0.1) + (5 * math.sqrt(2) / 32 if spec.stochastic else 0.0)) * alone
    for gap in (1e-3, 1e-5, 1e-7):
        for place in (1, 6, 10):
            doubled = [*GRID[: place + 1], GRID[place] * (1 - gap), *GRID[place + 1 :]]
            assert spread(sampler, doubled, process) == pytest.approx(alone, abs=margin), (gap, place)
