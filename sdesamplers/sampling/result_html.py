"""`Result` in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SdesamplersError
from ..html import facts_table, picture
from ..io.images import grid, to_images
from ..report.inline import inline, points

if TYPE_CHECKING:
    from .result import Result

SHOWN = 16
"""Number of samples in the picture."""
SIDE = 128
"""Largest height and width of each, in pixels."""


def result_html(result: Result) -> str:
    """The facts of a run, and a grid of its first samples if they are images, or a scatter plot of vectors."""
    recipe, samples = result.recipe, result.samples
    facts = {
        "model": result.model_name,
        "sampler": recipe.sampler,
        "samples": f"{tuple(samples.shape)}, {str(samples.dtype).removeprefix('torch.')}",
        "evaluations": f"{result.nfe} per sample",
        "steps": result.number_of_steps,
        "grid": recipe.spacing,
        "seed": result.seed,
    }
    return facts_table("Result", facts) + _grid(result)


def _grid(result: Result) -> str:
    """The first samples, or the scatter plot of vectors; empty for latents that have not been decoded yet."""
    if result.decoder is None and result.samples.ndim == 2:
        return inline(lambda: points(result.samples.detach()))
    if result.decoder is None:
        images, data_range = result.samples, result.data_range
    elif "decoded" in vars(result):
        images, data_range = result.decoded, result.decoded_range
    else:
        return ""
    try:
        made = to_images(images[:SHOWN].detach(), data_range)
    except SdesamplersError:
        return ""
    for image in made:
        image.thumbnail((SIDE, SIDE))
    return picture(grid(made, columns=min(len(made), 8), scale=max(1, 64 // max(made[0].size)))) if made else ""
