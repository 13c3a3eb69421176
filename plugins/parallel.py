"""Parallel-in-time sampling: all steps of a window at once, iterated until they agree with sequential sampling."""

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
    """ParaDiGMS: parallel-in-time DDIM by Picard iteration over a sliding window.

        x_{i+1} <- F(x_i) + (new x_i - x_i)

    for all i in the window, with F the DDIM step and one batched model call per iteration. This equals the paper's
    x_t + sum (F(x_i) - x_i), but agrees with DDIM bit for bit once x_i has converged. After each iteration the window
    moves to the first state that has changed by more than the tolerance. Every sample has its own window, so samples do
    not affect each other. There are more evaluations than in `ddim`, but fewer model calls, and the whole trajectory is
    kept in memory. A state is evaluated in several iterations, of which the last one counts: a callback that edits
    states must do so in every iteration, as a function of state and point.

    Args:
        window: length of the window in steps.
        tolerance: RMS change of a state, over the sample, below which it counts as converged, in standard deviations of
            DDPM's noise in the step there. 0 gives `ddim` exactly, in at most as many iterations as steps.
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
        requests = [(i, rows, torch.from_numpy(rows).to(x.device)) for i, rows in spans if len(rows)]
        outs = yield [(states[i][pick], for_rows(points[i], rows)) for i, rows, pick in requests]
        change, moved = torch.zeros_like(x), x.new_zeros(last, len(x))
        for (i, _, pick), out in zip(requests, outs, strict=True):
            new = out.step_to(points[i + 1]) + change[pick]
            change[pick] = new - states[i + 1][pick]
            states[i + 1][pick] = new
            moved[i, pick] = change[pick].detach().square().flatten(1).mean(1).sqrt()
        moving = moved.double().cpu().numpy() > limits
        unclean = moving[-1] & (limits[-1] == 0) & (begin < last - 1)
        moving[end[live] - 1, live] = False  # the window moves to its end if all states before it have converged
        reach = np.where(moving.any(0), moving.argmax(0) + 1, end)
        reach = np.where(
            unclean, np.minimum(reach, last - 1), reach
        )  # the last step adds no noise that would hide the rest of the error
        for i in range(begin[live].min(), last + 1):  # states new to the window start from its previous end
            rows = live[(end[live] < i) & (i <= reach[live] + window)]
            pick, source = (torch.from_numpy(index).to(x.device) for index in (rows, end[rows]))
            states[i][pick] = states[source, pick]
        begin[live] = reach[live]
    return states[-1]


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [paradigms]
