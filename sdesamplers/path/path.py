"""The path: the grid of points of a run, in the chosen coordinates, with the noise of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..processes.coordinates import View
from ..processes.scalars import Scalar, expand
from ..processes.sde import SDE, GaussianProcess
from ..public import public
from .noise import Noise, noise_of_step, skip_draw
from .points import NO_MARGINALS, Point, _fields, _item, _point, added_noise_fraction, clean_point, points_at
from .transition import Draw, is_zero, normal_log_prob


@dataclass
class Ledger:
    """The random transitions of a run: the source of their noise and what is recorded of them.

    Attributes:
        noise: the source of noise of `Path.draw`; None if the sampler must not draw noise.
        drew_noise: True if a transition has drawn noise so far.
        log_probs, draws: the log-probability (N,) and the outcome of every transition, recorded if log_probs is a list.
        times: the time on the path's clock at which each recorded transition begins.
        visited: the states of the evaluations, recorded with the log-probabilities.
        replayed: outcomes of a stored run that `Path.draw` returns instead of new draws.
        proposal: called with the standard normal noise of a transition, its std and the point at which it ends; returns
            the noise to use instead (importance sampling).
        count: the number of draws so far.
        given: outcomes that the caller has set, by the number of their draw, in the path's coordinates.
        next_outcome: the outcome of the next draw, set by the caller in the model's coordinates.
        watched: the draws while somebody observes a step; None otherwise.
        accepted, rejected: (N,) step counts, reported by an adaptive sampler.
    """

    noise: Noise | None = None
    drew_noise: bool = False
    log_probs: list[Tensor] | None = None
    draws: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    visited: list[Tensor] = field(default_factory=list)
    replayed: Sequence[Tensor] | None = None
    proposal: Callable[[Tensor, Scalar, Point[Any]], Tensor] | None = None
    count: int = 0
    given: dict[int, Tensor] = field(default_factory=dict)
    next_outcome: Tensor | None = None
    watched: list[Draw] | None = None
    accepted: np.ndarray | None = None
    rejected: np.ndarray | None = None


CLOSE = 0.1
"""The largest sigma/alpha at which the end of a path counts as data: tables end at 0.01 to 0.04, EDM at 0.002."""


@public
class Path:
    """What a sampler receives: the points to visit, and the only source of random numbers.

    Attributes:
        process: the process in the path's coordinates, whose time is `Point.time`.
        points: the grid, from noise to data; its last point may be clean (sigma = 0).
        is_free: True if no grid was set: `points` contains only the two ends, and the (adaptive) sampler chooses its
            own steps between them.
        ledger: the run's noise and what is recorded of it, shared by all parts of a path.
        known: cache of the points computed from a time or a ratio, shared by runs that need the same points.
        first_step: the number of the first step on the whole grid, of a run that starts in the middle of it.
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
        first_step: int = 0,
    ) -> None:
        self.process, self.points, self.is_free = process, list(points), is_free
        self.first_step = first_step
        self.ledger, self.known = ledger or Ledger(noise), {} if known is None else known

    @property
    def steps(self) -> list[tuple[Point, Point]]:
        """The pairs (now, then) of consecutive points."""
        return list(zip(self.points[:-1], self.points[1:], strict=True))

    @property
    def ends_at_data(self) -> bool:
        """True if the last step ends at sigma = 0 or close to it: sigma/alpha of `CLOSE` or less.

        Schedules that do not reach sigma = 0 stop close to it, and the last step is then long in
        lambda = log(alpha/sigma), just as a step into sigma = 0 is infinitely long.
        """
        return bool(self.points[-1].is_clean or 0 <= self.points[-1].ratio <= CLOSE)

    def again(self) -> Path:
        """Return the same grid with a new ledger, for another run."""
        return Path(self.process, self.points, is_free=self.is_free, first_step=self.first_step)

    def part(self, points: Sequence[Point]) -> Path:
        """Return a path over other points of the same run, for a sampler that runs another one on part of its path."""
        return Path(self.process, points, ledger=self.ledger, known=self.known)

    @overload
    def at(self, time: float, rows: None = None) -> Point: ...

    @overload
    def at(self, time: np.ndarray, rows: np.ndarray | None = None) -> Point[np.ndarray]: ...

    def at(self, time: Scalar, rows: np.ndarray | None = None) -> Point[Any]:
        """Return the point at any time on the path's clock; an array has one time for each of the samples `rows`."""
        if rows is None and not np.ndim(time):
            key = ("time", float(time))
            if key not in self.known:
                self.known[key] = points_at(self.process, time)
            return self.known[key]
        point = points_at(self.process, time)
        point.rows = rows
        return point

    @overload
    def at_ratio(self, ratio: float, rows: None = None) -> Point: ...

    @overload
    def at_ratio(self, ratio: np.ndarray, rows: np.ndarray | None = None) -> Point[np.ndarray]: ...

    def at_ratio(self, ratio: Scalar, rows: np.ndarray | None = None) -> Point[Any]:
        """Return the point at which sigma/alpha is `ratio`; 0 is the clean end.

        Raises:
            UsageError: the process has no alpha and sigma.
        """
        if not isinstance(self.process, View):
            raise UsageError(f"{NO_MARGINALS} but {type(self.process).__name__} has no closed-form marginals")
        if rows is None and not np.ndim(ratio):
            key = ("ratio", float(ratio))
            if key not in self.known:
                self.known[key] = self._made_at(ratio, None)
            return self.known[key]
        return self._made_at(ratio, rows)

    def _made_at(self, ratio: Scalar, rows: np.ndarray | None) -> Point[Any]:
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

    @overload
    def at_lambda(self, lam: float, rows: None = None) -> Point: ...

    @overload
    def at_lambda(self, lam: np.ndarray, rows: np.ndarray | None = None) -> Point[np.ndarray]: ...

    def at_lambda(self, lam: Scalar, rows: np.ndarray | None = None) -> Point[Any]:
        """Return the point at which lambda = log(alpha/sigma) is `lam`."""
        return self.at_ratio(np.exp(-np.asarray(lam, dtype=np.float64)), rows)

    def between(self, now: Point[Any], then: Point[Any], fraction: float) -> Point[Any]:
        """Return the point at lambda_now + fraction (lambda_then - lambda_now)."""
        return self.at_lambda(now.lam + fraction * (then.lam - now.lam), now.rows)

    def ancestral(self, now: Point, then: Point, eta: float) -> tuple[Point, float]:
        """Split a step into an ODE step to a point `down`, less noisy than `then`, and noise that leads back to `then`.

        With r = sigma/alpha: up^2 = eta^2 r_s^2 (1 - r_s^2/r_t^2), at most r_s^2; down^2 = r_s^2 - up^2. The sample
        is then (alpha_s/alpha_down) x_down + alpha_s up z, which has the correct marginal for any process; in VE this
        is the ancestral step of Song et al. 2021, appendix F, split as in k-diffusion. Returns (down, alpha_s up).
        """
        fraction = 1.0 if now.is_pure_noise else added_noise_fraction(now, then)
        up = min(eta * math.sqrt(fraction), 1.0)
        if then.is_clean or up == 0:
            return then, 0.0
        return self.at_ratio(then.ratio * math.sqrt((1 - up) * (1 + up))), then.sigma * up

    def expand(self, value: Scalar, like: Tensor) -> Any:
        """Make a number or a per-sample array broadcast over `like` (N, ...)."""
        return expand(value, like)

    def draw(self, mean: Tensor, std: Scalar, now: Point[Any], then: Point[Any]) -> Tensor:
        """Draw from N(mean, std^2 I), the transition from `now` to `then`.

        The run, not the sampler, determines the noise: independent, Brownian over the step, or replayed from a stored
        run. The transition's log-probability is recorded if the run records them. std = 0 gives `mean`.
        """
        if is_zero(std):
            return mean
        ledger = self.ledger
        if now.rows is not None and ledger.log_probs is not None:
            raise UsageError(
                "log_probs can be recorded only if all samples take the same steps, but here each takes its own"
            )
        ledger.drew_noise = True
        drawn = self._outcome(mean, std, now, then)
        ledger.count += 1
        if ledger.watched is not None:
            drawn = drawn.detach()  # a constant of the policy gradient, also in the state of the next step
            ledger.watched.append(Draw(mean, std, drawn, now, then))
        if ledger.log_probs is not None:
            ledger.draws.append(drawn)
            ledger.times.append(float(now.time))
            ledger.log_probs.append(normal_log_prob(drawn.detach(), mean, std))
        return drawn

    def _outcome(self, mean: Tensor, std: Scalar, now: Point[Any], then: Point[Any]) -> Tensor:
        """The outcome of a draw: replayed, set by the caller, or new."""
        ledger = self.ledger
        if ledger.replayed is not None:
            return ledger.replayed[ledger.count].to(mean)
        if ledger.noise is None:
            raise UsageError(
                "the sampler draws noise, but this path follows the probability-flow ODE and has no noise; "
                "turn it off, for example with eta=0"
            )
        step = self.clock(now), self.clock(then)
        if ledger.next_outcome is not None:
            given = ledger.next_outcome.to(mean)
            ledger.given[ledger.count] = given * expand(then.scale, given)
            ledger.next_outcome = None
        if ledger.count in ledger.given:
            skip_draw(ledger.noise, *step, now.rows)
            return ledger.given[ledger.count].to(mean, copy=True)  # its owner may overwrite it
        noise = noise_of_step(ledger.noise, *step, now.rows, mean).to(mean, non_blocking=True)
        if ledger.proposal is not None:
            noise = ledger.proposal(noise, std, then)
        if isinstance(std, float | int | np.floating):
            return torch.add(mean, noise, alpha=float(std))
        return noise.mul(expand(std, mean)).add_(mean)

    def clock(self, point: Point[Any]) -> float:
        """The time variable of Brownian noise: lambda, the same in all coordinates; time if the process has no lambda.

        If alpha or sigma is 0, lambda is infinite; it is limited to +-32, sigma/alpha = e^-+32.
        """
        if point.rows is not None:
            return 0.0
        if not isinstance(self.process, GaussianProcess):
            return float(point.time)
        return min(max(float(point.lam), -32.0), 32.0)
