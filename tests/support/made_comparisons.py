"""Comparisons made by hand, for tests of figures and pages: no sampler runs."""

from typing import Any

import numpy as np
import torch

from sdesamplers.comparison.result import Cell, Comparison
from sdesamplers.metrics import Score
from sdesamplers.sampling.result import Trajectory

HOSTILE = "</script><img src=x onerror=\"alert(1)\"> $x_1$ & 'q' \u202e"
"""A name that would break out of text, attributes, scripts and matplotlib's mathematics, and turn text around."""


def cell(sampler: str, budget: int, error: float, **more: Any) -> Cell:
    """A cell of a run with `budget` steps of one evaluation, and four samples with the same error."""
    ratios = np.geomspace(100, 0.1, budget).tolist()
    return Cell(
        sampler, budget, nfe=budget, steps=budget, seconds=0.5 * budget, error=error, errors=[error] * 4,
        drew_noise=False, ratios=[*ratios, 0.0], times=[*np.linspace(1, 0, budget + 1).tolist()],
        recipe={"sampler": sampler, "steps": budget, "options": {}}, **more,
    )  # fmt: skip


def refused(sampler: str, budget: int, problem: str) -> Cell:
    """A cell that could not be run."""
    return Cell(sampler, budget, problem=problem)


def comparison(
    shape: tuple[int, ...] = (2,), samplers: tuple[str, ...] = ("heun", "ddim"), budgets: tuple[int, ...] = (4, 8),
    count: int = 6, *, name: str = "model", problem: str = "", reference: bool = True, scores: bool = True,
) -> Comparison:  # fmt: skip
    """A comparison whose cells all have values, and samples of the seed 0; `problem` refuses the last sampler."""
    generator = torch.Generator().manual_seed(0)
    cells, samples, trajectories = [], {}, {}
    for place, sampler in enumerate(samplers):
        for budget in budgets:
            if problem and place == len(samplers) - 1:
                cells.append(refused(sampler, budget, problem))
                continue
            score = {
                "frechet": 3.0 / budget,
                "frechet_error": 0.1,
                "frechet_freedom": 2,
                "sliced_wasserstein": 1.0 / budget,
            }
            cells.append(cell(sampler, budget, (place + 1) / budget, **(score if scores else {})))
            samples[sampler, budget] = torch.rand(count, *shape, generator=generator) * 2 - 1
            states = torch.randn(budget + 1, 3, *shape, generator=generator)
            trajectories[sampler, budget] = Trajectory(np.linspace(1, 0, budget + 1), states)
    if not reference:
        cells = [_without_error(each) for each in cells]
    return Comparison(
        name, count, 7, cells, samples, data_range=(-1.0, 1.0), floor=Score(count, 0.25, 0.125) if scores else None,
        metrics="features of the test" if scores else "", reference_count=4 if reference else 0,
        reference_nfe=90 if reference else 0, facts={"guidance_scale": 1.0, "environment": {"torch": "2"}},
        reference=torch.rand(4, *shape, generator=generator) * 2 - 1 if reference else None, trajectories=trajectories,
    )  # fmt: skip


def _without_error(each: Cell) -> Cell:
    return Cell(**{**vars(each), "error": None, "errors": None})
