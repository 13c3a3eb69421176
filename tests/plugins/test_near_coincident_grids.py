"""Grids of one's own with two points that are nearly one, as two joined lists make them."""

from __future__ import annotations

import math

import pytest
import torch
from lanes import mostly_slow

import sdesamplers as sds

GRID = (80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.0)
STD = 0.25
RUNNING = [name for name, spec in sds.samplers().items() if not set(spec.needs) & {"log_density", "stationary"}]
"""Samplers that run on a grid of a diffusion model."""
QUICK = ("ab", "deis", "dpmpp-3m", "ipndm", "lms", "unipc", "heun", "euler-ancestral")
"""Mostly multistep samplers, whose weights depend on the gaps between points."""
WIDER = {"bdia-ddim": 0.5, "annealed-langevin": 0.5}
"""Methods that another point makes another method of, as a share of the spread: BDIA takes each step back as far as it
went, whatever the last one's length, and annealed Langevin dynamics makes its steps at every level."""


def spread(sampler: str, sigmas: list[float], process: sds.GaussianProcess) -> float:
    """Standard deviation of 256 samples of data N(0.5, STD^2), over the data's."""
    model = sds.GaussianModel([0.5, 0.5], STD**2, process, prediction="sample", dtype=torch.float32)
    samples = sds.sample(model, sampler, sigmas=sigmas, num_samples=256).samples
    return float(samples.std(0).mean()) / STD


@pytest.mark.parametrize("sampler", mostly_slow(RUNNING, keep=QUICK))
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
