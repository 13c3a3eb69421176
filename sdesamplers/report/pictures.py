"""Samples as a table of pictures, with the reference in the first row."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from ..checks import whole
from ..errors import UsageError
from ..io.images import grid, to_images
from .planes import heading, reason, scatter
from .style import drawn_name, panels
from .view import View

REFERENCE_ROW = "ODE reference"
LABEL_WIDTH = 14
"""Characters of a line of a row's label; longer ones would take the space of the pictures."""


def samples(view: View, axes: Any = None, *, sampler: str | None = None, nfe: int | None = None, each: int = 4) -> Any:
    """Samples from the same starts: pictures below those of the ODE reference, or points for vectors.

    Args:
        view: the comparison.
        axes: matplotlib axes, one for each sampler and budget, after one for each budget for the reference of pictures,
            if there is one; a new figure by default.
        sampler, nfe: one sampler, one budget; all by default.
        each: pictures in each panel.

    Raises:
        UsageError: samples of this shape cannot be shown, or there is no such sampler or budget.
    """
    if view.has_vectors:
        return scatter(view, axes, sampler=sampler, nfe=nfe)
    if not view.has_images:
        raise UsageError(f"samples of shape {view.shape} cannot be shown")
    whole("each", each)
    names, budgets = view.chosen(sampler, nfe)
    reference = view.comparison.reference
    rows = names if reference is None else [None, *names]
    height, width = view.shape[1:]
    across = min(each, 4)
    tall = 2.3 * (height / width) * -(-each // across) / across + 0.35
    drawn = panels(axes, len(rows) * len(budgets), 2.3, tall, len(budgets))
    for place, axis in enumerate(drawn):
        name, budget = rows[place // len(budgets)], budgets[place % len(budgets)]
        cell = None if name is None else view.cell(name, budget)
        tensor = reference if name is None else view.comparison.samples.get((name, budget))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if tensor is not None:
            axis.imshow(np.asarray(grid(to_images(tensor[:each], view.comparison.data_range), across)))
        else:
            reason(axis, cell)
        axis.set_title("" if name is None else heading(cell, budget), size="small")
        if place % len(budgets) == 0:
            label = textwrap.fill(REFERENCE_ROW if name is None else drawn_name(name), LABEL_WIDTH)
            axis.set_ylabel(label, parse_math=False, rotation=0, ha="right", va="center")
    if axes is None:
        drawn[0].figure.suptitle(f"{view.size}: samples from the same starts", size="medium", parse_math=False)
    return drawn[0].figure
