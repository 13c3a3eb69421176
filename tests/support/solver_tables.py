"""Solver tables that no search made, for tests of where they can be used; and a small problem for tests of searches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import sdesamplers as sds

BRIEF: dict[str, Any] = {"starts": 8, "trials": 2, "teacher_nfe": 16}
"""Arguments of `tune` for tables that need not be good."""


def table_for(process: Any, middle: Sequence[float] = (1.1, 0.7, 0.4, 0.15), **facts: Any) -> sds.SolverTable:
    """A solver table, of five evaluations by default, whose network receives other times than the state's."""
    first = math.atan(float(process.ratio(process.t_max)))
    angles = [first, *middle, 0.0]
    steps = [after - before for before, after in itertools.pairwise(angles)]
    weights = [[0.01, math.cos(h), *[0.02] * n, math.sin(h)] for n, h in enumerate(steps)]
    return sds.SolverTable(angles, weights, [first, *(0.98 * angle for angle in angles[1:-1])], facts)


def mixture(process: Any = None) -> sds.MixtureModel:
    """Four components in 6 dimensions."""
    means = np.random.default_rng(0).normal(size=(4, 6))
    return sds.MixtureModel([0.2, 0.3, 0.1, 0.4], means, [0.05, 0.1, 0.2, 0.02], process or sds.VP(), name="mixture")


def labelled(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
    """x0 of one Gaussian for each label, and of the widest one without."""
    mean = torch.zeros_like(x) if label is None else torch.where(label[:, None] == 9, 0.0, label[:, None].to(x) - 1.0)
    alpha, sigma = torch.cos(t)[:, None], torch.sin(t)[:, None]
    return mean + 0.25 * alpha * (x - alpha * mean) / (0.25 * alpha**2 + sigma**2)


def first_element(samples: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The distance in one of the dimensions."""
    return (samples - others)[:, 0].abs()


def conditional(name: str = "labelled", function: Any = None) -> sds.FunctionModel:
    return sds.FunctionModel(
        function or labelled, sds.TrigFlow(), "sample", (3,), null_condition=9, conditional=True, name=name
    )
