"""A solver table: its grid, and the linear multistep method whose weights it lists for each step.

The state is that of `angle` coordinates, y = cos(phi) x0 + sin(phi) eps with phi = arctan(sigma/alpha), which are
regular at alpha = 0 and at sigma = 0; v = -sin(phi) x0 + cos(phi) eps is its velocity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from sdesamplers import Path, Run, Sampler, Spacing, Span, hookimpl, sampler, spacing, weighted_sum

from .spacings import angle

TOLERANCE = 1e-3
"""Radians by which the start of a table may lie above that of the model's process."""


@sampler(
    "table",
    order=None,  # of the weights: tables are computed for few steps and have no order
    coordinates="angle",
    spacing="table",
    needs=["marginals"],
    reference="Oganesyan et al. 2025, eq. 13; Duan et al. 2023, section 3",
)
def table(
    x: Tensor, path: Path, *, weights: Sequence[Sequence[float]] = (), network_angles: Sequence[float] = ()
) -> Run:
    """A solver table: for each step the weights of the start, of the present state and of all velocities so far.

        y_{n+1} = a_n y_0 + b_n y_n + sum_{j <= n} w_nj v_j,   v_j = v(y_j; the network's time at psi_j)

    Pass a `SolverTable`, or the name of its file or folder, as the sampler; it sets both options and the grid. Without
    weights the step is DDIM's, b_n = cos(phi_{n+1} - phi_n) and w_nn = sin(phi_{n+1} - phi_n).

    Args:
        weights: one row for each step: a_n, b_n, w_n0, ..., w_nn.
        network_angles: psi_n, in radians, for the time that the network receives; by default phi_n.
    """
    if weights and path.points[0].ratio < path.points[-1].ratio:
        raise ValueError("the weights of a solver table lead from noise to data only")
    angles, norms = zip(*((math.atan(p.ratio), math.hypot(p.alpha, p.sigma)) for p in path.points), strict=True)
    rows = weights or [ddim_row(n, after - before) for n, (before, after) in enumerate(pairwise(angles))]
    noisiest, *_ = path.points
    clocks = [noisiest if psi == angles[0] else path.at_ratio(math.tan(psi)) for psi in network_angles]
    clocks = clocks or path.points[:-1]
    if [len(row) for row in rows] != [n + 3 for n in range(len(path.steps))] or len(clocks) != len(rows):
        middle = "; a run that starts in the middle, as image-to-image does, needs a sampler that is not a table"
        raise ValueError(
            f"a table for {len(path.steps)} steps has that many rows, of 3, 4, 5, ... weights, and as many "
            f"network_angles; this one has rows of {', '.join(str(len(row)) for row in rows)}, and {len(clocks)} angles"
            f"{middle if len(rows) > len(path.steps) else ''}"
        )
    start, velocities = x, list[Tensor]()
    for n, (row, clock) in enumerate(zip(rows, clocks, strict=True)):
        now = path.points[n]
        out = yield x, now if clock is now else now.evaluated_at(clock)
        velocities.append(out.compose(x0=-math.sin(angles[n]), eps=math.cos(angles[n])))
        first, present, *others = (norms[n + 1] * weight for weight in row)  # y = x / norm
        x = weighted_sum([first / norms[0], present / norms[n], *others], [start, out.x, *velocities])
    return x


def ddim_row(n: int, step: float) -> list[float]:
    """The weights of DDIM's step number n, which changes the angle by `step`."""
    return [0.0, math.cos(step), *[0.0] * n, math.sin(step)]


@spacing("table", reference="the grid of a solver table", reaches="start")
def table_grid(span: Span, count: int, *, angles: Sequence[float] = ()) -> np.ndarray:
    """The points of a solver table, by phi = arctan(sigma/alpha); without a table, `angle`.

    Args:
        angles: phi in radians, falling, one more than the number of steps. The first is that of the start, by up
            to 0.001 above the process's; the last is 0 for a table that ends at sigma = 0.
    """
    if not len(angles):
        return angle(span, count + span.ends_clean)[:count]  # like a table, which ends above the smallest sigma
    largest = span.ratios(finite=False)[0]
    steps, first = count - (not span.ends_clean), math.atan(largest)
    if len(angles) != steps + 1:
        raise ValueError(f"the table has {len(angles) - 1} steps, not {steps}; pass steps={len(angles) - 1}")
    if angles[0] > first + TOLERANCE:
        raise ValueError(
            f"the table starts at sigma/alpha = {math.tan(angles[0]):.4g}, above this model's largest, "
            f"{largest:.4g}: it was computed for another process"
        )
    if span.ends_clean != (angles[-1] == 0):
        raise ValueError("the table ends at sigma = 0" if angles[-1] == 0 else "the table does not end at sigma = 0")
    # The tangent of an angle near pi/2 has few digits: at the start of the process it is the ratio itself.
    ratios = [largest if phi >= first else math.tan(phi) for phi in angles[:count]]
    return span.at_ratios(np.array(ratios))


@hookimpl
def sdesamplers_samplers() -> list[Sampler]:
    """Register the sampler of this file."""
    return [table]


@hookimpl
def sdesamplers_spacings() -> list[Spacing]:
    """Register the spacing of this file."""
    return [table_grid]
