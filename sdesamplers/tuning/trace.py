"""The solver table of a fixed sampler, read off its run on basis vectors.

A linear method's states are linear in the start and in the model's predictions. On a state with one component for the
start and one for each velocity, a run therefore returns the coefficients themselves.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from ..path.path import Path
from ..path.points import Point
from ..path.prediction import Prediction
from ..processes.sde import GaussianProcess
from ..registry.plugin import Sampler
from ..sampling.arguments import make_recipe
from ..sampling.recipe import Recipe
from ..sampling.request import split_arguments
from ..sampling.runs import make_path, start_run
from ..sampling.table import SolverTable


def table_of(process: GaussianProcess, sampler: Any, **arguments: Any) -> SolverTable:
    """The solver table of a sampler that is linear in the predictions, with one evaluation for each step.

    Args:
        process: the model's process.
        sampler: a sampler's name, a `Sampler` or a `Recipe`.
        **arguments: its grid and options, as in `sample`.

    Raises:
        UsageError: the sampler draws noise, chooses its own steps, or evaluates the model more than once in a step.
    """
    recipe, spec = make_recipe(split_arguments(sampler, arguments)[0], process=process)
    path = make_path(process, recipe)
    return traced(path, recipe, spec)


def traced(path: Path, recipe: Recipe, spec: Sampler) -> SolverTable:
    """The solver table of a recipe on its path."""
    if path.is_free:
        raise UsageError(f"{spec.name} has no solver table without a grid: pass steps=... or nfe=...")
    rows, angles = coefficients(path, recipe, spec)
    if len(angles) != len(path.points) or any(a <= b for a, b in pairwise(angles)):
        raise UsageError(f"{spec.name} has no solver table: it does not evaluate the model once in each step")
    weights = []
    for n, (before, after) in enumerate(pairwise(rows)):
        present = math.cos(angles[n + 1] - angles[n])
        change = after - present * before
        weights.append((float(change[0]), present, *change[1 : n + 2].tolist()))
    return SolverTable(tuple(angles), tuple(weights), facts={"base": recipe.as_dict()})


def coefficients(path: Path, recipe: Recipe, spec: Sampler) -> tuple[list[np.ndarray], list[float]]:
    """The states at which a run evaluates the model, and its end, as coefficients of (start, v_0, v_1, ...).

    Returns the coefficients, in `angle` coordinates and zero beyond the evaluations so far, and the states' angles.
    """
    size = 2 + 4 * len(path.points)
    basis, end = torch.eye(size, dtype=torch.float64)[:, None], path.points[-1]
    rows, angles = list[np.ndarray](), list[float]()
    run = start_run(spec, basis[0] * length(path.points[0]), path, recipe.options)
    try:
        x, point = next(run)
        while True:
            if len(rows) + 2 > size:
                raise UsageError(f"{spec.name} has no solver table: it evaluates the model more than 4 times a step")
            y, v, phi = x / length(point), basis[len(rows) + 1], math.atan(point.ratio)
            rows.append(y[0].numpy())
            angles.append(phi)
            x, point = run.send(Prediction(x, point, math.cos(phi) * y - math.sin(phi) * v, "sample"))
    except StopIteration as stop:
        rows.append((stop.value / length(end))[0].numpy())
        angles.append(math.atan(end.ratio))
        return rows, angles


def length(point: Point) -> float:
    """The factor from `angle` coordinates to the path's."""
    return math.hypot(point.alpha, point.sigma)
