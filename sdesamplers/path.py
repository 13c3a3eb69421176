"""The path: the grid of points that a sampler walks, in the coordinates chosen, with the noise of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .coefficients import fresh_share
from .coordinates import View, view
from .errors import UsageError
from .noise import Noise
from .prediction import Schedule
from .public import public
from .sde import SDE, GaussianProcess, Scalar, any_zero, diffusion_squared, expand

NO_MARGINALS = "this sampler needs alpha(t) and sigma(t),"


@public
class Point:
    """One place on the path. Numbers are floats, or float64 arrays with one entry for each sample evaluated.

    Attributes:
        time: the path's clock (decreasing while sampling).
        t: the model's own time, what the network is asked at.
        alpha, sigma, d_alpha, d_sigma: the schedule and its derivatives on the path's clock and coordinates.
        native: the same four in the model's own coordinates.
        scale: path state = scale * model state.
        rows: indices of the samples that are evaluated here, or None for all of them.
        is_clean: whether this is the noiseless end, sigma = 0, where the model is never asked.
        ratio: sigma / alpha, the same in all coordinates; infinite where alpha = 0.
        lam: lambda = log(alpha / sigma), half the log signal-to-noise ratio, the same in all coordinates.
        is_pure_noise: whether alpha = 0 here: the start of flow models and of tables with zero terminal SNR.
        end: the model's time where the step from here ends, for flow maps, which are told both; see `towards`.
    """

    __slots__ = (
        *("alpha", "d_alpha", "d_sigma", "is_clean", "native", "process", "rows", "scale", "sigma", "t", "time"),
        *("is_pure_noise", "lam", "ratio"),
    )

    time: Scalar
    t: Scalar
    alpha: Scalar
    sigma: Scalar
    d_alpha: Scalar
    d_sigma: Scalar
    native: Schedule
    scale: Scalar
    process: SDE
    rows: np.ndarray | None
    is_clean: bool
    ratio: Scalar
    lam: Scalar
    is_pure_noise: bool
    end: Scalar | None = None

    def towards(self, then: Point) -> Point:
        """This point with the end of the step from it: what a flow map is asked at. Other models answer as ever."""
        leap = Leap()
        for slot in Point.__slots__:
            setattr(leap, slot, getattr(self, slot))
        leap.end = then.t
        return leap

    @property
    def has_own_time(self) -> bool:
        """Whether the model's own time leads here; not to the clean end of VP, VE and tables, which stop above it."""
        return not self.is_clean or not isinstance(self.process, View) or self.process.native.clean_time is not None

    @property
    def diffusion_squared(self) -> Scalar:
        """g^2 of the forward SDE on the path's clock and coordinates."""
        if not isinstance(self.process, GaussianProcess):
            return np.square(self.process.diffusion(self.time))
        if self.is_pure_noise:
            raise UsageError(
                "the reverse SDE has infinite diffusion where alpha = 0, where this path starts; take an ODE "
                "step there, use ddim or ddpm, or start later with times=..."
            )
        return diffusion_squared(self.alpha, self.sigma, self.d_alpha, self.d_sigma)  # type: ignore[no-any-return]

    @property
    def diffusion(self) -> Scalar:
        """g of the forward SDE on the path's clock and coordinates."""
        return np.sqrt(self.diffusion_squared)

    def __repr__(self) -> str:
        return f"Point(time={self.time!r}, t={self.t!r})"


def _refuse(point: Point) -> NoReturn:
    raise UsageError(
        f"{NO_MARGINALS} and {type(point.process).__name__} has no closed-form marginals; use one "
        "that reads score or velocity alone (euler-maruyama, euler, heun)"
    )


class Leap(Point):
    """A point with the end of the step from it."""

    __slots__ = ("end",)


class TimePoint(Point):
    """A point on an SDE without closed-form marginals: a time, and an error for a sampler that needs more.

    It is a class of its own because a `Point` with a `__getattr__` would be slower to read where nothing is missing.
    """

    __slots__ = ()
    alpha = sigma = d_alpha = d_sigma = ratio = lam = property(_refuse)


@dataclass
class Ledger:
    """A run's random transitions: where their noise comes from and what is kept of them.

    Attributes:
        noise: where `Path.draw` gets its noise from; None where a sampler is not to draw any.
        drew_noise: whether a transition has had noise so far.
        log_probs, draws: every transition's log-probability (N,) and outcome, recorded where log_probs is a list.
        replayed: outcomes of a stored run that `Path.draw` is to return instead of new ones.
        accepted, rejected: (N,) step counts, reported by an adaptive sampler.
    """

    noise: Noise | None = None
    drew_noise: bool = False
    log_probs: list[Tensor] | None = None
    draws: list[Tensor] = field(default_factory=list)
    replayed: list[Tensor] | None = None
    accepted: np.ndarray | None = None
    rejected: np.ndarray | None = None


@public
class Path:
    """What a sampler is given: the points to visit, and the only source of random numbers.

    Attributes:
        process: the process in the path's coordinates, whose time is `Point.time`.
        points: the grid, from noise to data; its last point may be clean (sigma = 0).
        is_free: no grid was asked for: `points` holds only the two ends and the (adaptive) sampler chooses its
            own steps between them.
        ledger: the run's noise and what is recorded of it, shared by all parts of a path.
        known: points that were asked for by their time or ratio, shared by runs that ask for the same ones again.
    """

    def __init__(
        self,
        process: SDE,
        points: Sequence[Point],
        *,
        is_free: bool = False,
        noise: Noise | None = None,
        ledger: Ledger | None = None,
        known: dict[tuple[str, float], Point] | None = None,
    ) -> None:
        self.process, self.points, self.is_free = process, list(points), is_free
        self.ledger, self.known = ledger or Ledger(noise), {} if known is None else known

    @property
    def steps(self) -> list[tuple[Point, Point]]:
        """Neighbouring points, (now, then)."""
        return list(zip(self.points[:-1], self.points[1:], strict=True))

    def part(self, points: Sequence[Point]) -> Path:
        """A path over other points of the same run, for a sampler that runs another one on a stretch of its own."""
        return Path(self.process, points, ledger=self.ledger, known=self.known)

    def at(self, time: Scalar, rows: np.ndarray | None = None) -> Point:
        """The point at any time on the path's clock; an array of times holds one for each of the samples `rows`."""
        if rows is None and not np.ndim(time):
            key = ("time", float(time))
            if key not in self.known:
                self.known[key] = points_at(self.process, time)
            return self.known[key]
        point = points_at(self.process, time)
        point.rows = rows
        return point

    def at_ratio(self, ratio: Scalar, rows: np.ndarray | None = None) -> Point:
        """The point where sigma/alpha is `ratio`; 0 is the clean end.

        Raises:
            UsageError: the process has no alpha and sigma.
        """
        if not isinstance(self.process, View):
            raise UsageError(f"{NO_MARGINALS} and {type(self.process).__name__} has none in closed form")
        if rows is None and not np.ndim(ratio):
            key = ("ratio", float(ratio))
            if key not in self.known:
                self.known[key] = self._made_at(ratio, None)
            return self.known[key]
        return self._made_at(ratio, rows)

    def _made_at(self, ratio: Scalar, rows: np.ndarray | None) -> Point:
        assert isinstance(self.process, View)
        if not np.ndim(ratio) and ratio == 0:
            return clean_point(self.process)
        ratio = np.asarray(ratio, dtype=np.float64)
        native = self.process.native
        t = native.time_at_ratio(ratio)
        fields = _fields(self.process, self.process.clock(t, ratio), t, ratio)
        point = _point(self.process, [_item(f) for f in fields])
        point.rows = rows
        return point

    def at_lambda(self, lam: Scalar, rows: np.ndarray | None = None) -> Point:
        """The point where lambda = log(alpha/sigma) is `lam`."""
        return self.at_ratio(np.exp(-np.asarray(lam, dtype=np.float64)), rows)

    def between(self, now: Point, then: Point, fraction: float) -> Point:
        """The point at lambda_now + fraction (lambda_then - lambda_now)."""
        return self.at_lambda(now.lam + fraction * (then.lam - now.lam), now.rows)

    def ancestral(self, now: Point, then: Point, eta: float) -> tuple[Point, float]:
        """Split a step into an ODE step to the point returned, below `then`, and noise that leads back up to `then`.

        With r = sigma/alpha: up^2 = eta^2 r_s^2 (1 - r_s^2/r_t^2), at most r_s^2; down^2 = r_s^2 - up^2. The sample
        is then (alpha_s/alpha_down) x_down + alpha_s up z, which has the right marginal in any process; in VE this is
        the ancestral step of Song et al. 2021, appendix F, as k-diffusion splits it. Returns (down, alpha_s up).
        """
        share = 1.0 if now.is_pure_noise else fresh_share(now, then)
        up = min(eta * math.sqrt(share), 1.0)
        if then.is_clean or up == 0:
            return then, 0.0
        return self.at_ratio(then.ratio * math.sqrt((1 - up) * (1 + up))), then.sigma * up

    def expand(self, value: Scalar, like: Tensor) -> Any:
        """Make a number or a per-sample array multiply the samples of `like` (N, ...)."""
        return expand(value, like)

    def draw(self, mean: Tensor, std: Scalar, now: Point, then: Point) -> Tensor:
        """A sample of N(mean, std^2 I), the transition from `now` to `then`.

        The noise belongs to the step, not to the sampler: independent, Brownian over the step, or replayed from
        a stored run; the transition's log-probability is recorded when the run asks for it. std = 0 gives `mean`.
        """
        if isinstance(std, float | int | np.floating) and std == 0:
            return mean
        ledger = self.ledger
        if now.rows is not None and ledger.log_probs is not None:
            raise UsageError(
                "log_probs are recorded for steps that all samples take together, not for steps of their own"
            )
        ledger.drew_noise = True
        if ledger.replayed is not None:
            drawn = ledger.replayed[len(ledger.draws)].to(mean)
        elif ledger.noise is None:
            raise UsageError(
                "the sampler draws noise, and this path, which follows the probability-flow ODE, has none; turn it "
                "off, for example with eta=0"
            )
        else:
            noise = ledger.noise(self.clock(now), self.clock(then), now.rows).to(mean, non_blocking=True)
            one = isinstance(std, float | int | np.floating)
            drawn = torch.add(mean, noise, alpha=float(std)) if one else noise.mul(expand(std, mean)).add_(mean)
        if ledger.log_probs is not None:
            ledger.draws.append(drawn)
            ledger.log_probs.append(normal_log_prob(drawn, mean, std))
        return drawn

    def clock(self, point: Point) -> float:
        """Brownian motion runs in lambda, which coordinates and grids leave alone; in time where there is none.

        Where alpha or sigma is 0 lambda is infinite; the motion is followed to +-32, sigma/alpha = e^-+32.
        """
        if point.rows is not None:
            return 0.0
        if not isinstance(self.process, GaussianProcess):
            return float(point.time)
        return min(max(float(point.lam), -32.0), 32.0)


def normal_log_prob(x: Tensor, mean: Tensor, std: Scalar) -> Tensor:
    """log N(x; mean, std^2 I) of each sample, in nats, shape (N,), accumulated in float64."""
    width = expand(std, mean)
    residual = ((x - mean) / width).double().flatten(1)
    log_std = torch.log(width.double()).flatten() if isinstance(width, Tensor) else math.log(width)
    return -0.5 * residual.square().sum(1) - residual.shape[1] * (log_std + 0.5 * math.log(2 * math.pi))


def points_at(process: SDE, time: Scalar) -> Point:
    """The point of `process` (in the path's coordinates) at a time of its clock."""
    if not isinstance(process, View):
        return make_points(process, np.atleast_1d(time))[0] if not np.ndim(time) else _sde_point(process, time)
    ratio = process.ratio(time)
    fields = _fields(process, np.asarray(time, dtype=float), process.native.time_at_ratio(ratio), ratio)
    return _point(process, [_item(f) for f in fields])


def _item(value: Scalar) -> Scalar:
    return float(value) if np.ndim(value) == 0 else value


def _sde_point(process: SDE, time: Scalar) -> Point:
    point = TimePoint()
    point.process, point.time, point.t, point.rows, point.scale = process, time, time, None, 1.0
    point.is_clean = point.is_pure_noise = False
    return point


def _fields(process: View, time: Scalar, t: Scalar, ratio: Scalar) -> list[Scalar]:
    """time, t, the four schedule values, the four native ones and the scale, vectorised."""
    native = process.native
    alpha, sigma, *slopes = process.schedule(time)
    native_alpha, native_sigma = native.at_ratio(ratio)
    native_slopes = native.schedule(t)[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(native_alpha != 0, alpha / native_alpha, sigma / native_sigma)
    return [time, t, alpha, sigma, *slopes, native_alpha, native_sigma, *native_slopes, scale]


def _point(process: View, fields: Sequence[Any]) -> Point:
    point = Point()
    point.process, point.rows = process, None
    point.time, point.t, point.alpha, point.sigma, point.d_alpha, point.d_sigma = fields[:6]
    point.native, point.scale = tuple(fields[6:10]), fields[10]  # type: ignore[assignment]
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
    """Points at native times (and sigma/alpha ratios, where these are what was given), computed in one sweep."""
    if not isinstance(process, View):
        return [_sde_point(process, float(t)) for t in times]
    times = np.minimum(times, process.latest)
    ratio = process.native.ratio(times) if ratios is None else ratios
    fields = _fields(process, process.clock(times, ratio), times, ratio)
    columns = [np.broadcast_to(f, times.shape).tolist() for f in fields]
    return [_point(process, values) for values in zip(*columns, strict=True)]


def clean_point(process: View) -> Point:
    """The noiseless end, sigma = 0 and alpha = 1, at the time where the view's clock reaches it."""
    assert process.clean_time is not None
    t = min(process.native.t_min, max(process.clean_time, 0.0))
    nan = math.nan
    return _point(process, [float(process.clean_time), t, 1.0, 0.0, nan, nan, 1.0, 0.0, nan, nan, 1.0])


def path_process(process: SDE, coordinates: str) -> SDE:
    """The process that a path runs on: the view named, or the SDE itself where it has no marginals."""
    if isinstance(process, GaussianProcess):
        return view(process, coordinates)
    if coordinates != "native":
        raise UsageError(
            f"coordinates {coordinates!r} need alpha(t) and sigma(t), and {type(process).__name__} has no closed-form "
            "marginals; use coordinates='native'"
        )
    return process
