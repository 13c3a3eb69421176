"""The process of a schedule that another library defines, by functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..processes.scalars import Scalar
from ..processes.sde import GaussianProcess

HALVINGS = 60
"""Bisections of the time axis; more do not change a float64."""

Pair = Callable[[Tensor], tuple[Tensor, Tensor]]


class ScheduleProcess(GaussianProcess):
    """The process of a schedule whose times run from 0 (data) to `t_max` (noise).

    Args:
        schedule: maps times, a float64 tensor of any shape, to (alpha, sigma).
        slopes: maps them to (alpha', sigma'); by default the derivatives of `schedule` by autograd.
        t_min, t_max: the range of times at which the score is evaluated. At t = 0 the slope of sigma is 0 or infinite
            for some schedules.
    """

    def __init__(self, schedule: Pair, slopes: Pair | None = None, *, t_min: float = 1e-3, t_max: float = 1.0) -> None:
        self.given_schedule, self.given_slopes = schedule, slopes
        self.t_min, self.t_max = t_min, t_max

    def _at(self, t: Scalar, which: int) -> Scalar:
        return as_form(self.given_schedule(as_times(t))[which], t)

    def _slope(self, t: Scalar, which: int) -> Scalar:
        if self.given_slopes is not None:
            return as_form(self.given_slopes(as_times(t))[which], t)
        with torch.enable_grad():
            times = as_times(t).clone().requires_grad_()
            values = self.given_schedule(times)[which]
            if not values.requires_grad:  # a constant
                return as_form(torch.zeros_like(times), t)
            (slope,) = torch.autograd.grad(values.sum(), times)
        return as_form(slope, t)

    def alpha(self, t: Scalar) -> Scalar:
        return self._at(t, 0)

    def sigma(self, t: Scalar) -> Scalar:
        return self._at(t, 1)

    def d_alpha(self, t: Scalar) -> Scalar:
        return self._slope(t, 0)

    def d_sigma(self, t: Scalar) -> Scalar:
        return self._slope(t, 1)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        wanted = np.asarray(ratio, dtype=np.float64)
        low, high = np.zeros_like(wanted), np.full_like(wanted, self.t_max)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            alpha, sigma = (as_form(values, middle) for values in self.given_schedule(as_times(middle)))
            above = sigma > wanted * alpha
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        time: np.ndarray = (low + high) / 2
        return time if isinstance(ratio, np.ndarray) else float(time)


def as_times(t: Scalar) -> Tensor:
    """Times as a float64 tensor."""
    return torch.as_tensor(np.asarray(t, dtype=np.float64))


def as_form(values: Tensor, like: Scalar) -> Scalar:
    """A tensor of times as an array, or as a float if `like` is a number."""
    found: np.ndarray = values.detach().double().cpu().numpy()
    return found if isinstance(like, np.ndarray) else float(found)
