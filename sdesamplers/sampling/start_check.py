"""A check that initial states have the noise level of the time at which they begin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..categories import AccuracyWarning
from ..checks import warn
from ..processes.sde import SDE, GaussianProcess

CHANCE = 1e-4
"""Probability below which a state has too little noise to be one of the process."""


HALF = 0.5
"""Share of the noise's standard deviation above which no state is too small, however many numbers it has: noise is also
scaled down a little on purpose, as by a temperature."""


def warn_if_unscaled(x: Tensor, process: SDE, t: float, what: str, advice: str = "", *, share: float = HALF) -> None:
    """Warn if states are too small for the noise that the process has at time t.

    A state alpha x0 + sigma eps with n numbers has a mean square of at least sigma^2 u with a probability of 1 -
    (u e^(1 - u))^(n/2) or more, whatever x0 is (Chernoff's bound for chi-square), so that u = CHANCE^(2/n) / e is
    exceeded but for a chance below CHANCE. States of unit variance for a process whose noise has another standard
    deviation, and images without noise, do not exceed it. States of zeros are no noise that was scaled by mistake, and
    raise no warning.

    Args:
        x: the states (N, ...), in the model's coordinates.
        what: the name of the states in the message.
        advice: how they are made; by default how noise is drawn, and how an image is noised.
        share: in place of `HALF`, for states that are not noise drawn independently of the data.
    """
    if not isinstance(process, GaussianProcess) or not x.numel() or torch.compiler.is_compiling():
        return
    sigma = float(process.sigma(t))
    limit = min(share, math.sqrt(CHANCE ** (2 / x.numel()) / math.e)) * sigma
    size = float(x.detach().float().square().mean().sqrt())
    if not 0 < size < limit:
        return
    draw = f"pass {sigma:.3g} * torch.randn(...) for noise" if sigma > 1.05 else "pass noise"
    cure = advice or f"{draw}, or noised(model, x, {t:.3g}) for an image with noise"
    warn(
        f"the root mean square of {what} is {size:.3g}, but the noise of {process!r} at t = {t:.3g} has a standard "
        f"deviation of {sigma:.3g}; {cure}",
        AccuracyWarning,
    )
