"""Coordinates: the same process with rescaled states and another clock.

Multiplying x by a function of time does not change sigma/alpha. So a Gaussian process can be rewritten with any other
(alpha, sigma) that takes the same ratios, on any clock. The result, a `View`, is a `GaussianProcess` in its own time.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from ..checks import name_of, one_of_types
from ..errors import UnknownNameError, UsageError
from ..public import public
from .check import check_once, is_user_defined
from .scalars import Scalar
from .sde import GaussianProcess, starts_as_noise


@public
class View(GaussianProcess):
    """A process in other coordinates. `native` is the process that the model was trained on."""

    def __init__(self, native: GaussianProcess) -> None:
        self.native = native
        self.latest = native.t_max  # the native time of the view's noisiest point
        self.t_min = float(self.time_at_ratio(native.ratio(native.t_min)))
        self.t_max = float(self.clock(native.t_max, native.ratio(native.t_max)))

    @abstractmethod
    def clock(self, t: Scalar, ratio: Scalar) -> Scalar:
        """This view's time at native time t and sigma/alpha = `ratio`; both describe the same point. t may be NaN."""

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        return self.clock(np.nan, ratio)


class VEView(View):
    """alpha = 1, sigma = time: the coordinates of EDM and k-diffusion. Euler's method in them is DDIM.

    A table whose last entry has alpha = 0 starts at its `largest_ratio` in these coordinates.
    """

    clean_time = 0.0

    def __init__(self, native: GaussianProcess) -> None:
        if np.isinf(native.largest_ratio):
            raise UsageError(
                "coordinates 've' need alpha > 0 and this model starts at alpha = 0; use 'flow', 'angle' or 'native'"
            )
        super().__init__(native)
        if np.isinf(self.t_max):
            self.t_max, self.latest = native.largest_ratio, float(native.time_at_ratio(native.largest_ratio))

    def clock(self, t: Scalar, ratio: Scalar) -> Scalar:
        return ratio

    def alpha(self, t: Scalar) -> Scalar:
        return np.ones_like(t)

    def sigma(self, t: Scalar) -> Scalar:
        return t

    def d_alpha(self, t: Scalar) -> Scalar:
        return np.zeros_like(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        return np.ones_like(t)


class FlowView(View):
    """alpha = 1 - time, sigma = time: the coordinates of rectified flow."""

    clean_time = 0.0

    def clock(self, t: Scalar, ratio: Scalar) -> Scalar:
        with np.errstate(divide="ignore"):
            return 1 / (1 + np.divide(1.0, ratio))

    def alpha(self, t: Scalar) -> Scalar:
        return 1 - t

    def sigma(self, t: Scalar) -> Scalar:
        return t

    def d_alpha(self, t: Scalar) -> Scalar:
        return np.full_like(t, -1.0)

    def d_sigma(self, t: Scalar) -> Scalar:
        return np.ones_like(t)


class AngleView(View):
    """alpha = cos(time), sigma = sin(time): the ODE's velocity is the v prediction (Salimans & Ho 2022)."""

    clean_time = 0.0

    def clock(self, t: Scalar, ratio: Scalar) -> Scalar:
        return np.arctan(ratio)

    def alpha(self, t: Scalar) -> Scalar:
        return np.where(np.asarray(t) == 0.5 * np.pi, 0.0, np.cos(t))

    def sigma(self, t: Scalar) -> Scalar:
        return np.sin(t)

    def d_alpha(self, t: Scalar) -> Scalar:
        return -np.sin(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        return np.cos(t)


class NativeView(View):
    """The model's own coordinates and clock, extended to a regular end at sigma = 0.

    A VP process reaches sigma = 0 like sqrt(t), with infinite slope; a table and the VE process stop at a smallest
    sigma. For these the clock continues below `t_min` with sigma/alpha falling to 0 along its tangent: the same states
    in the same order, on a clock with finite slopes. Times of `t_min` and above are unchanged.
    """

    def __init__(self, native: GaussianProcess) -> None:
        self.regular = native.clean_time is not None
        join = native.t_min
        alpha, sigma = float(native.alpha(join)), float(native.sigma(join))
        self._join, self._ratio = join, sigma / alpha
        self._slope = float((native.d_sigma(join) * alpha - sigma * native.d_alpha(join)) / alpha**2)
        self.clean_time = native.clean_time if self.regular else join - self._ratio / self._slope
        super().__init__(native)

    def _in_tail(self, t: Scalar) -> Scalar:
        return np.zeros(np.shape(t), bool) if self.regular else np.asarray(t) < self._join

    def _tail_ratio(self, t: Scalar) -> Scalar:
        return np.maximum(self._ratio + self._slope * (np.asarray(t) - self._join), 0.0)

    def clock(self, t: Scalar, ratio: Scalar) -> Scalar:
        t = np.where(np.isnan(t), self.native.time_at_ratio(ratio), t)
        if self.regular:
            return t
        return np.where(np.asarray(ratio) < self._ratio, self._join + (ratio - self._ratio) / self._slope, t)

    def ratio(self, t: Scalar) -> Scalar:
        return np.where(self._in_tail(t), self._tail_ratio(t), self.native.ratio(self._inside(t)))

    def _inside(self, t: Scalar) -> Scalar:
        return t if self.regular else np.maximum(t, self._join)

    def schedule(self, t: Scalar) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        return super().schedule(t) if np.any(self._in_tail(t)) else self.native.schedule(t)

    def _either(self, t: Scalar, tail: Scalar, inside: Scalar) -> Scalar:
        return np.where(self._in_tail(t), tail, inside)

    def alpha(self, t: Scalar) -> Scalar:
        return self._either(t, self.native.at_ratio(self._tail_ratio(t))[0], self.native.alpha(self._inside(t)))

    def sigma(self, t: Scalar) -> Scalar:
        return self._either(t, self.native.at_ratio(self._tail_ratio(t))[1], self.native.sigma(self._inside(t)))

    def d_alpha(self, t: Scalar) -> Scalar:
        tail = self._slope * self.native.d_alpha_d_ratio(self._tail_ratio(t))
        return self._either(t, tail, self.native.d_alpha(self._inside(t)))

    def d_sigma(self, t: Scalar) -> Scalar:
        r = self._tail_ratio(t)  # sigma = r alpha
        tail = self._slope * (self.native.at_ratio(r)[0] + r * self.native.d_alpha_d_ratio(r))
        return self._either(t, tail, self.native.d_sigma(self._inside(t)))


class Trimmed(GaussianProcess):
    """A user-defined process with sigma = 0 at t_min or alpha = 0 at t_max, with ends like the library's own processes.

    If sigma is 0 at t_min, t_min moves up to sigma/alpha = `SMALLEST`, where a network can be evaluated, and the clean
    end keeps its time. If alpha at t_max is 0 up to rounding, as cos(pi/2) is, it becomes exactly 0.
    """

    SMALLEST = 1e-3  # as in `RectifiedFlow`

    def __init__(self, process: GaussianProcess) -> None:
        self.process, self.t_min, self.t_max = process, process.t_min, process.t_max
        self.preferred_spacing, self.clean_time = process.preferred_spacing, process.clean_time
        self._noise = starts_as_noise(process)
        if process.sigma(float(process.t_min)) == 0:
            self.t_min = float(process.time_at_ratio(self.SMALLEST))
            with np.errstate(divide="ignore"):
                slope = float(process.d_sigma(float(process.t_min)))
            self.clean_time = float(process.t_min) if np.isfinite(slope) else None

    @classmethod
    def of(cls, process: GaussianProcess) -> GaussianProcess:
        """Return the process with regular ends: `process` itself if its ends are regular already."""
        clean = process.sigma(float(process.t_min)) == 0
        rounded = starts_as_noise(process) and process.alpha(float(process.t_max)) != 0
        return cls(process) if is_user_defined(process) and (clean or rounded) else process

    @property
    def grid_process(self) -> GaussianProcess:
        own = self.process.grid_process
        return self if own is self.process else own

    def alpha(self, t: Scalar) -> Scalar:
        alpha = self.process.alpha(t)
        return np.where(np.asarray(t) == self.t_max, 0.0, alpha) if self._noise else alpha

    def sigma(self, t: Scalar) -> Scalar:
        return self.process.sigma(t)

    def d_alpha(self, t: Scalar) -> Scalar:
        return self.process.d_alpha(t)

    def d_sigma(self, t: Scalar) -> Scalar:
        return self.process.d_sigma(t)

    def time_at_ratio(self, ratio: Scalar) -> Scalar:
        return self.process.time_at_ratio(ratio)


VIEWS: dict[str, type[View]] = {"native": NativeView, "ve": VEView, "flow": FlowView, "angle": AngleView}


@public
def view(process: GaussianProcess, coordinates: str = "native") -> View:
    """Return `process` in the coordinates "native", "ve", "flow" or "angle".

    Raises:
        UnknownNameError: no such coordinates.
        UsageError: the view does not exist for this process ("ve" if alpha reaches 0), or the process is user-defined
            and `check_process` rejects it.
    """
    one_of_types("process", process, GaussianProcess, "a GaussianProcess such as VP()")
    if name_of("coordinates", coordinates) not in VIEWS:
        raise UnknownNameError("coordinates", coordinates, VIEWS, f" (known: {', '.join(VIEWS)})")
    check_once(process)
    # Stored on the process, so that a view is built once and is freed with the process.
    made: dict[Any, View] = vars(process).setdefault("_views", {})
    key = coordinates, process.t_min, process.t_max
    if key not in made:
        made[key] = VIEWS[coordinates](Trimmed.of(process))
    return made[key]
