"""Points: a time of a process, with everything that a sampler needs to know about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn

import numpy as np
from torch import Tensor

from ..errors import UsageError
from ..processes.coordinates import View, view
from ..processes.scalars import Scalar, any_zero, expand, scaled
from ..processes.sde import SDE, GaussianProcess, diffusion_squared
from ..public import public

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    N = TypeVar("N", bound=Scalar, default=float, covariant=True)
else:
    from typing import TypeVar

    N = TypeVar("N")  # TypeVar has no default= in Python 3.10, and only type checkers need it

LARGEST_RATIO = 1e6
"""The sigma/alpha beyond which a point's scale is the quotient of the sigmas, not that of the alphas."""
NO_MARGINALS = "this sampler needs alpha(t) and sigma(t),"


@public
class Point(Generic[N]):
    """A point on the path. Its numbers are floats, or float64 arrays with one entry for each evaluated sample.

    For type checkers a `Point` has floats, like all points of a grid, and a `Point[np.ndarray]` has arrays.

    Attributes:
        time: the time on the path's clock (decreasing during sampling).
        t: the model's native time, at which the network is evaluated.
        alpha, sigma, d_alpha, d_sigma: the schedule and its derivatives on the path's clock and coordinates.
        native: the same four in the model's own coordinates.
        scale: path state = scale * model state.
        rows: indices of the samples that are evaluated at this point, or None for all samples.
        is_clean: True at the noiseless end, sigma = 0, where the model is never evaluated.
        ratio: sigma / alpha, the same in all coordinates; infinite if alpha = 0.
        lam: lambda = log(alpha / sigma), half the log signal-to-noise ratio, the same in all coordinates.
        is_pure_noise: True if alpha = 0: at the start of flow models and of tables with zero terminal SNR.
        end: native time of the end of the step from here, for flow maps, which receive both times; see `towards`.
    """

    __slots__ = (
        *("alpha", "d_alpha", "d_sigma", "is_clean", "native", "process", "rows", "scale", "sigma", "t", "time"),
        *("is_pure_noise", "lam", "ratio"),
    )

    time: N
    t: N
    alpha: N
    sigma: N
    d_alpha: N
    d_sigma: N
    native: tuple[N, N, N, N]
    scale: N
    process: SDE
    rows: np.ndarray | None
    is_clean: bool
    ratio: N
    lam: N
    is_pure_noise: bool
    end: N | None = None

    def towards(self, then: Point[Any]) -> Point[N]:
        """Return this point with the end of its step set, as flow maps need it; other models ignore the end."""
        leap: Leap[N] = Leap()
        self._copy_to(leap)
        leap.end = then.t
        return leap

    def evaluated_at(self, other: Point[N]) -> Point[N]:
        """Return this point with the model's native time of `other`, for solvers that shift the network's time.

        The state stays here: alpha, sigma and all conversions of the prediction are those of this point.
        """
        shifted: Point[N] = Point()
        self._copy_to(shifted)
        shifted.t = other.t
        return shifted

    def _copy_to(self, made: Point[N]) -> None:
        for slot in Point.__slots__:
            setattr(made, slot, getattr(self, slot))

    @property
    def has_own_time(self) -> bool:
        """True if a native model time exists for this point; False at sigma = 0 for VP, VE and discrete schedules."""
        return not self.is_clean or not isinstance(self.process, View) or self.process.native.clean_time is not None

    @property
    def diffusion_squared(self) -> Scalar:
        """g^2 of the forward SDE on the path's clock and coordinates."""
        if not isinstance(self.process, GaussianProcess):
            return np.square(self.process.diffusion(self.time))
        if self.is_pure_noise:
            raise UsageError(
                "this path starts at alpha = 0, where the diffusion of the reverse SDE is infinite; take an ODE step "
                "there, use ddim or ddpm, or start later with times=..."
            )
        return diffusion_squared(self.alpha, self.sigma, self.d_alpha, self.d_sigma)

    @property
    def diffusion(self) -> Scalar:
        """g of the forward SDE on the path's clock and coordinates."""
        return np.sqrt(self.diffusion_squared)

    def __repr__(self) -> str:
        return f"Point(time={self.time!r}, t={self.t!r})"


def _refuse(point: Point[Any]) -> NoReturn:
    raise UsageError(
        f"{NO_MARGINALS} but {type(point.process).__name__} has no closed-form marginals; use a sampler that needs "
        "only the score or the velocity (euler-maruyama, euler, heun)"
    )


class Leap(Point[N]):
    """A point that also has the end of the step from it."""

    __slots__ = ("end",)


class TimePoint(Point[N]):
    """A point of an SDE without closed-form marginals: it has a time, and raises an error if a sampler needs more.

    A separate class, because a `__getattr__` on `Point` would slow down access to its attributes.
    """

    __slots__ = ()
    alpha = sigma = d_alpha = d_sigma = ratio = lam = property(_refuse)


def points_at(process: SDE, time: Scalar) -> Point[Any]:
    """Return the point of `process` (in the path's coordinates) at a time on its clock."""
    if not isinstance(process, View):
        return make_points(process, np.atleast_1d(time))[0] if not np.ndim(time) else _sde_point(process, time)
    ratio = process.ratio(time)
    fields = _fields(process, np.asarray(time, dtype=float), process.native.time_at_ratio(ratio), ratio)
    return _point(process, [_item(f) for f in fields])


def _item(value: Scalar) -> Scalar:
    return float(value) if np.ndim(value) == 0 else value


def _sde_point(process: SDE, time: Scalar) -> Point[Any]:
    point: TimePoint[Any] = TimePoint()
    point.process, point.time, point.t, point.rows, point.scale = process, time, time, None, 1.0
    point.is_clean = point.is_pure_noise = False
    return point


def _fields(process: View, time: Scalar, t: Scalar, ratio: Scalar) -> list[Scalar]:
    """The fields of points as arrays: time, t, four schedule values, the four native ones, and the scale."""
    native = process.native
    alpha, sigma, *slopes = process.schedule(time)
    native_alpha, native_sigma = native.at_ratio(ratio)
    native_slopes = native.schedule(t)[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        is_noise = np.greater(ratio, LARGEST_RATIO)  # alpha is 1 - t or cos(t), and has lost its digits
        scale = np.where(is_noise, sigma / native_sigma, alpha / native_alpha)
    return [time, t, alpha, sigma, *slopes, native_alpha, native_sigma, *native_slopes, scale]


def _point(process: View, fields: Sequence[Any]) -> Point[Any]:
    point: Point[Any] = Point()
    point.process, point.rows = process, None
    point.time, point.t, point.alpha, point.sigma, point.d_alpha, point.d_sigma = fields[:6]
    alpha, sigma, d_alpha, d_sigma, point.scale = fields[6:]
    point.native = alpha, sigma, d_alpha, d_sigma
    alpha, sigma = point.alpha, point.sigma
    if isinstance(alpha, float):
        point.is_clean, point.is_pure_noise = sigma == 0.0, alpha == 0.0
        point.ratio = ratio = sigma / alpha if alpha else math.inf
        point.lam = -math.log(ratio) if ratio > 0.0 else math.inf if ratio == 0.0 else math.nan
    else:
        point.is_clean, point.is_pure_noise = bool(np.all(sigma == 0.0)), any_zero(alpha)
        with np.errstate(divide="ignore", invalid="ignore"):
            point.ratio = np.divide(sigma, alpha)
            point.lam = -np.log(point.ratio)
    return point


def make_points(process: SDE, times: np.ndarray, ratios: np.ndarray | None = None) -> list[Point]:
    """Return points at native times, vectorised; `ratios` are their sigma/alpha, if the grid was given by ratios."""
    if not isinstance(process, View):
        return [_sde_point(process, float(t)) for t in times]
    times = np.minimum(times, process.latest)
    ratio = process.native.ratio(times) if ratios is None else ratios
    fields = _fields(process, process.clock(times, ratio), times, ratio)
    columns = [np.broadcast_to(f, times.shape).tolist() for f in fields]
    return [_point(process, values) for values in zip(*columns, strict=True)]


def clean_point(process: View) -> Point:
    """Return the noiseless end, sigma = 0 and alpha = 1, at the time at which the view's clock reaches it."""
    assert process.clean_time is not None
    t = min(process.native.t_min, max(process.clean_time, 0.0))
    nan = math.nan
    return _point(process, [float(process.clean_time), t, 1.0, 0.0, nan, nan, 1.0, 0.0, nan, nan, 1.0])


def path_process(process: SDE, coordinates: str) -> SDE:
    """Return the process of a path: the view in these coordinates, or the SDE itself if it has no marginals."""
    if isinstance(process, GaussianProcess):
        return view(process, coordinates)
    if coordinates != "native":
        raise UsageError(
            f"coordinates {coordinates!r} need alpha(t) and sigma(t), but {type(process).__name__} has no closed-form "
            "marginals; use coordinates='native'"
        )
    return process


def added_noise_fraction(now: Point, then: Point) -> float:
    """1 - (sigma_s alpha_t / (sigma_t alpha_s))^2: the fraction of the noise variance of x_t that was added after s.

    t is `now` and s is `then`. The fraction is 0 if s is the noisier of the two, on a path from data to noise.
    """
    return max(0.0, -math.expm1(2 * (now.lam - then.lam)))


def model_state(x: Tensor, point: Point[Any]) -> Tensor:
    """Return the state in the model's own coordinates."""
    scale = point.scale
    if isinstance(scale, float):
        return x if scale == 1.0 else scaled(x, 1 / scale)
    return x / expand(scale, x)
