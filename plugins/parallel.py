"""Parallel-in-time sampling: all steps of a window at once, iterated to the sequential sampler's result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, hookimpl, sampler
from sdesamplers.path.points import added_noise_fraction


def for_rows(point: Point, rows: np.ndarray) -> Point:
    """The same point, for some samples of the batch."""
    made = copy(point)
    made.rows = rows
    return made


@sampler(
    "paradigms",
    order=1,
    evaluations=None,
    needs=("marginals",),
    reference="Shih et al. 2023, algorithm 1, on the ODE; step: Song, Meng & Ermon 2021, eq. 12",
)
def paradigms(x: Tensor, path: Path, *, window: int = 16, tolerance: float = 1e-3) -> Run:
    """ParaDiGMS: Picard iteration of DDIM steps over a sliding window, the model asked for all of it in one batch.

        x_{i+1} <- F(x_i) + (new x_i - x_i)

    for i in the window, with F the DDIM step; this is the paper's x_t + sum (F(x_i) - x_i), in a form that gives back
    DDIM's own bits once x_i has come to rest. The window (of `window` steps) then moves to the first state that moved
    by an RMS over the sample of more than `tolerance` standard deviations of DDPM's noise in the step there; 0 gives
    `ddim` exactly, in at most as many sweeps as steps. Every sample has its own window, so none changes another's
    result. It makes more evaluations than `ddim`, in fewer calls, and holds the whole trajectory. A state is evaluated
    in several sweeps, and what a callback makes of it in the last one counts: an edit must be a function of state and
    point, made each time.
    """
    if window < 1 or tolerance < 0:
        raise ValueError(f"window must be 1 or more and tolerance 0 or more, not {window} and {tolerance}")
    points, last = path.points, len(path.points) - 1
    fresh = [then.sigma * math.sqrt(added_noise_fraction(now, then)) for now, then in path.steps]
    limits = tolerance * np.array(fresh)[:, None]
    states, begin = torch.stack([x] * (last + 1)), np.zeros(len(x), dtype=int)
    while len(live := np.flatnonzero(begin < last)):
        end = np.minimum(begin + window, last)
        spans = [(i, live[(begin[live] <= i) & (i < end[live])]) for i in range(begin[live].min(), end[live].max())]
        asked = [(i, rows, torch.from_numpy(rows).to(x.device)) for i, rows in spans if len(rows)]
        outs = yield [(states[i][pick], for_rows(points[i], rows)) for i, rows, pick in asked]
        change, moved = torch.zeros_like(x), x.new_zeros(last, len(x))
        for (i, _, pick), out in zip(asked, outs, strict=True):
            new = out.step_to(points[i + 1]) + change[pick]
            change[pick] = new - states[i + 1][pick]
            states[i + 1][pick] = new
            moved[i, pick] = change[pick].detach().square().flatten(1).mean(1).sqrt()
        moving = moved.double().cpu().numpy() > limits
        unclean = moving[-1] & (limits[-1] == 0) & (begin < last - 1)
        moving[end[live] - 1, live] = False  # the window moves to its end where all before that rests
        reach = np.where(moving.any(0), moving.argmax(0) + 1, end)
        reach = np.where(unclean, np.minimum(reach, last - 1), reach)  # no noise would cover what is left of an error
        for i in range(begin[live].min(), last + 1):  # states that the window newly covers start from its old end
            rows = live[(end[live] < i) & (i <= reach[live] + window)]
            pick, source = (torch.from_numpy(index).to(x.device) for index in (rows, end[rows]))
            states[i][pick] = states[source, pick]
        begin[live] = reach[live]
    return states[-1]


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [paradigms]
