"""`check_process`: consistency checks of a user-defined process, before it is used for sampling or training.

A derivative with the wrong sign, or a clock that runs backwards, gives wrong samples without an error. So the five
functions of a user-defined `GaussianProcess` are compared with each other when the process is first used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from ..categories import AccuracyWarning
from ..checks import warn
from ..errors import UsageError
from ..public import public
from .reversal import Reversed
from .sde import SDE, GaussianProcess

FUNCTIONS = ("alpha", "sigma", "d_alpha", "d_sigma")
SLOPE_TOLERANCE = 0.01
"""Relative to the change of alpha and sigma over a sixteenth of the time range. Interpolated tables pass."""
INVERSE_TOLERANCE = (1e-3, 0.05)
"""Of log(sigma/alpha) at time_at_ratio: limits of the median and the maximum error. Interpolated tables pass."""


class CheckFailure(Exception):
    """A check failed; the message says why."""


@dataclass
class Probe:
    """A process with the values of its functions at times from t_min to t_max.

    The times are evenly spaced, with additional ones close to t_min, where sigma may be steep.
    """

    process: GaussianProcess

    @cached_property
    def times(self) -> np.ndarray:
        low, high = float(self.process.t_min), float(self.process.t_max)
        near = low + (high - low) * np.geomspace(1e-4, 3e-3, 6)
        return np.unique(np.concatenate([np.linspace(low, high, 257), near]))

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        return {name: self.at(name, self.times) for name in FUNCTIONS}

    @cached_property
    def ratio(self) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.values["sigma"] / self.values["alpha"]

    def at(self, name: str, t: Any) -> Any:
        """Call one of the process's functions; its exceptions become a `CheckFailure` that says how to write it."""
        kind = "an array of times" if np.ndim(t) else f"t = {t:.4g}"
        try:
            with np.errstate(all="ignore"):
                return getattr(self.process, name)(t)
        except Exception as error:  # the user's function may raise anything
            text = " ".join(str(error).split())[:160]
            raise CheckFailure(
                f"{name} of {kind} raises {type(error).__name__} ({text}); it must take a float and a float64 NumPy "
                "array, so write it with NumPy's functions (np.cos, np.where; not math.cos, torch.cos or `if`)"
            ) from None

    @property
    def low(self) -> float:
        return float(self.times[0])

    @property
    def high(self) -> float:
        return float(self.times[-1])


def check_range(probe: Probe) -> None:
    """t_min and t_max are finite numbers with t_min < t_max."""
    for name in ("t_min", "t_max"):
        value = getattr(probe.process, name)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise CheckFailure(f"{name} must be a finite number, not {value!r}")
    low, high = float(probe.process.t_min), float(probe.process.t_max)
    if not low < high:
        raise CheckFailure(
            f"t_min = {low:g} must lie below t_max = {high:g}: t_min is the time closest to the data, t_max the time "
            "of the noise; if your time runs from noise to data, keep t_min below t_max and pass sds.reversed(process)"
        )


def check_arrays(probe: Probe) -> None:
    """All functions accept a float and an array, and return the same values for both."""
    places = [len(probe.times) // 4, len(probe.times) // 2, 3 * len(probe.times) // 4]
    for name in FUNCTIONS:
        for k in places:
            one, many = float(probe.at(name, float(probe.times[k]))), float(probe.values[name][k])
            if not (math.isnan(one) and math.isnan(many)) and not math.isclose(one, many, rel_tol=1e-5, abs_tol=1e-9):
                raise CheckFailure(
                    f"{name}({probe.times[k]:.4g}) is {one:.6g} for a float and {many:.6g} as part of an array"
                )


def check_values(probe: Probe) -> None:
    """alpha and sigma are finite, not negative, and 0 only at t_max and t_min respectively; slopes are finite."""
    for name, end, other in (("alpha", -1, "t_max"), ("sigma", 0, "t_min")):
        value = probe.values[name]
        _refuse_first(probe, name, ~np.isfinite(value))
        _refuse_first(probe, name, value < 0, "; alpha and sigma must not be negative: t_min and t_max must exclude it")
        if _is_reversed(probe):
            continue  # the next check reports it
        inside = np.ones(len(value), bool)
        inside[end] = False
        _refuse_first(probe, name, inside & (value == 0), f"; it may be 0 only at {other}")
    for name in ("d_alpha", "d_sigma"):
        bad = ~np.isfinite(probe.values[name])
        if probe.values["sigma"][0] == 0 and np.isinf(probe.values[name][0]):
            bad[0] = False  # sigma may start at 0 like a square root
        _refuse_first(probe, name, bad)


def _refuse_first(probe: Probe, name: str, bad: np.ndarray, more: str = "") -> None:
    """Raise CheckFailure for the first bad value, if there is one."""
    if not bad.any():
        return
    k = int(np.flatnonzero(bad)[0])
    t, value = probe.times[k], probe.values[name][k]
    place = {0: "t_min = ", len(bad) - 1: "t_max = "}.get(k, "t = ")
    good = probe.times[~bad]
    if not more and len(good) and k in (0, len(bad) - 1):
        end = "t_min" if k == 0 else "t_max"
        more = f"; set {end} to the {'smallest' if k == 0 else 'largest'} time at which the functions are finite"
    raise CheckFailure(f"{name} is {value:.4g} at {place}{t:.6g}{more}")


def _is_reversed(probe: Probe) -> bool:
    return bool(probe.ratio[-1] < probe.ratio[0])


def check_rise(probe: Probe) -> None:
    """sigma/alpha increases from t_min to t_max: time runs from data to noise."""
    ratio, times = probe.ratio, probe.times
    if _is_reversed(probe):
        raise CheckFailure(
            f"sigma/alpha falls from {ratio[0]:.4g} at t = {times[0]:g} to {ratio[-1]:.4g} at t = {times[-1]:g}: this "
            "time runs from noise to data, but a process's time must run from data to noise; pass "
            "sds.reversed(process), and the network receives your time"
        )
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~(np.diff(ratio) > 0))
    if len(bad):
        k = int(bad[0])
        trend = "falls" if ratio[k + 1] < ratio[k] else "does not rise"
        raise CheckFailure(
            f"sigma/alpha {trend} from t = {times[k]:.6g} ({ratio[k]:.6g}) to t = {times[k + 1]:.6g} "
            f"({ratio[k + 1]:.6g}); it must rise strictly from t_min to t_max"
        )
    inside = probe.low + (probe.high - probe.low) * np.linspace(0.1, 0.9, 9)
    here, there = (
        probe.at("sigma", t) / probe.at("alpha", t) for t in (inside, inside + 1e-5 * (probe.high - probe.low))
    )
    if np.sum(here == there) > len(inside) // 2:
        raise CheckFailure(
            f"sigma/alpha is piecewise constant, for example around t = {inside[4]:.6g}: interpolate a table between "
            "its entries (sds.DiscreteVP(alphas_cumprod) does it) instead of rounding to them"
        )


def check_ends(probe: Probe) -> None:
    """x is noise at t_max and data at t_min; the prior has the standard deviation of the noise."""
    first, last = float(probe.ratio[-1]), float(probe.ratio[0])
    noisy = (
        f"sigma/alpha is only {first:.3g} at t_max = {probe.high:g}, where sampling starts from pure noise, so x still "
        "contains the data; t_max must be the time of the noise (999 for a table of 1000 timesteps)"
    )
    if first < 0.1:
        raise CheckFailure(noisy)
    if first < 1:
        warn(f"{_title(probe.process)}: {noisy}", AccuracyWarning)
    if last > 0.5:
        warn(
            f"{_title(probe.process)}: sigma/alpha is {last:.3g} at t_min = {probe.low:g} already, and the network is "
            "never evaluated below t_min; set t_min to the smallest time that the network was trained at",
            AccuracyWarning,
        )
    alpha, sigma = float(probe.values["alpha"][-1]), float(probe.values["sigma"][-1])
    std = float(probe.process.prior.std)
    if not 0.9 * sigma <= std <= 1.5 * math.hypot(alpha, sigma):
        raise CheckFailure(f"prior.std is {std:.4g}, but sigma at t_max = {probe.high:g} is {sigma:.4g}")
    clean = probe.process.clean_time
    if clean is not None and not abs(float(probe.at("sigma", float(clean)))) <= 1e-6 * sigma:
        found = float(probe.at("sigma", float(clean)))
        raise CheckFailure(
            f"sigma is {found:.4g} at clean_time = {clean:g}; clean_time must be the time at which sigma is 0, or None"
        )


def check_slopes(probe: Probe) -> None:
    """d_alpha and d_sigma are the derivatives of alpha and sigma: they integrate to the changes of alpha and sigma."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    edges = np.linspace(probe.low, probe.high, 17)
    half, middle = 0.5 * np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
    for name in ("alpha", "sigma"):
        values = probe.at(name, edges)
        slopes = probe.at(f"d_{name}", (middle[:, None] + half[:, None] * nodes).reshape(-1)).reshape(16, 32)
        integrals, sizes = (half * (s @ weights) for s in (slopes, np.abs(slopes)))
        changes = np.diff(values)
        allowed = SLOPE_TOLERANCE * np.maximum(sizes, np.abs(changes)) + 1e-5 * np.maximum(values[1:], values[:-1])
        allowed[[0, -1]] *= 3  # slopes that are infinite at an end are integrated less accurately
        excess = np.abs(integrals - changes) / allowed
        if not np.all(excess <= 1):
            raise CheckFailure(_wrong_slope(probe, name, float(middle[int(np.nanargmax(excess))])))


def _wrong_slope(probe: Probe, name: str, t: float) -> str:
    h = 1e-4 * (probe.high - probe.low)
    right = float(probe.at(name, t + h) - probe.at(name, t - h)) / (2 * h)
    found = float(probe.at(f"d_{name}", t))
    factor = found / right if right else math.nan
    hint = ""
    if abs(factor + 1) < 0.02:
        hint = ": the sign is wrong"
    elif math.isfinite(factor) and factor > 0 and not 0.98 < factor < 1.02:
        hint = f": it is {factor:.4g} times the correct value"
    return f"d_{name}({t:.6g}) is {found:.6g}, but the slope of {name} there is {right:.6g}{hint}"


def check_inverse(probe: Probe) -> None:
    """time_at_ratio is the inverse of sigma/alpha."""
    places = slice(None, None, 4)
    times, ratio = probe.times[places], probe.ratio[places]
    back = probe.at("time_at_ratio", ratio)
    single = float(probe.at("time_at_ratio", float(ratio[len(ratio) // 2])))
    back = np.append(back, single)
    times, ratio = np.append(times, times[len(times) // 2]), np.append(ratio, ratio[len(ratio) // 2])
    inside = np.clip(np.nan_to_num(back, nan=np.inf), probe.low, probe.high)
    with np.errstate(all="ignore"):
        found = np.abs(np.log(probe.at("sigma", inside) / probe.at("alpha", inside)) - np.log(ratio))
    found = np.nan_to_num(found, nan=0.0)
    span = probe.high - probe.low
    outside = np.abs(back - inside) > 1e-3 * span
    found[np.abs(back - times) <= 1e-6 * span] = 0.0
    found[outside | np.isnan(back)] = np.inf
    median, largest = INVERSE_TOLERANCE
    if np.max(found) > largest or np.median(found) > median:
        k = int(np.argmax(found))
        raise CheckFailure(
            f"time_at_ratio({ratio[k]:.6g}) is {back[k]:.6g}, but sigma/alpha is {ratio[k]:.6g} at t = {times[k]:.6g}; "
            "time_at_ratio must be the inverse of sigma/alpha"
        )


def check_derived(probe: Probe) -> None:
    """Methods that a class overrides in addition to the five functions agree with them."""
    times, alpha, sigma = probe.times[1:-1:8], probe.values["alpha"][1:-1:8], probe.values["sigma"][1:-1:8]
    ratio = probe.ratio[1:-1:8]
    slopes = [probe.values[name][1:-1:8] for name in ("d_alpha", "d_sigma")]
    _same(times, "ratio", probe.at("ratio", times), ratio)
    for name, found, right in zip(FUNCTIONS, probe.at("schedule", times), (alpha, sigma, *slopes), strict=True):
        _same(times, f"schedule's {name}", found, right)
    for name, found, right in zip(FUNCTIONS, probe.at("at_ratio", ratio), (alpha, sigma), strict=False):
        _same(times, f"{name} of at_ratio(sigma/alpha)", found, right, 0.05)
    rise = (slopes[1] * alpha - sigma * slopes[0]) / np.square(alpha)
    _same(times, "d_alpha_d_ratio(sigma/alpha)", probe.at("d_alpha_d_ratio", ratio), slopes[0] / rise, 0.1)


def _same(times: np.ndarray, what: str, found: Any, right: np.ndarray, tolerance: float = 1e-4) -> None:
    with np.errstate(all="ignore"):
        bad = np.abs(found - right) > tolerance * np.maximum(np.abs(found), np.abs(right)) + 1e-9
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        raise CheckFailure(
            f"{what} is {found[k]:.6g} at t = {times[k]:.6g}, but the other functions give {right[k]:.6g}"
        )


CHECKS: dict[str, tuple[str, Callable[[Probe], None]]] = {
    "range": ("t_min < t_max, finite numbers", check_range),
    "arrays": ("functions accept floats and arrays", check_arrays),
    "values": ("finite, not negative", check_values),
    "direction": ("sigma/alpha rises from t_min to t_max", check_rise),
    "ends": ("noise at t_max, data at t_min", check_ends),
    "slopes": ("d_alpha, d_sigma integrate to alpha, sigma", check_slopes),
    "inverse": ("time_at_ratio inverts sigma/alpha", check_inverse),
    "derived": ("other methods agree with these", check_derived),
}
"""The checks of a Gaussian process, in order: name -> (requirement, function)."""


def process_findings(process: SDE) -> Iterator[tuple[str, str, str | None]]:
    """Yield (check, requirement, error message or None) for each check, up to the first that fails."""
    probe = Probe(_gaussian(process))
    for name, (required, check) in CHECKS.items():
        try:
            check(probe)
        except CheckFailure as found:
            yield name, required, str(found)
            return
        yield name, required, None


@public
def check_process(process: SDE) -> None:
    """Check that the functions of a Gaussian process are consistent with each other.

    Every user-defined process is checked automatically when it is first used; this function checks it immediately.
    Neither alpha^2 + sigma^2 = 1 nor sigma = 0 at t_min is required.

        sds.check_process(MyProcess())

    Raises:
        UsageError: not a Gaussian process; its time runs from noise to data (use `sds.reversed`); slopes,
            `time_at_ratio` or another method are inconsistent with alpha and sigma; a value is not finite. The message
            gives the error, the time and the correct value.

    Warns:
        UserWarning: x is still close to the data at t_max, or far from it at t_min.
    """
    for _, _, problem in process_findings(process):
        if problem is not None:
            raise UsageError(f"{_title(process)}: {problem}")


def _title(process: SDE) -> str:
    return f"process {process!r}" if isinstance(process, Reversed) else f"process {type(process).__name__}"


def _gaussian(process: Any) -> GaussianProcess:
    if not isinstance(process, GaussianProcess):
        raise UsageError(f"check_process takes a GaussianProcess, not {process!r}")
    return process


def is_user_defined(process: SDE) -> bool:
    """True if the process's class is not defined in this library."""
    own = process.process if isinstance(process, Reversed) else process
    return type(own).__module__.split(".")[0] != "sdesamplers"


def check_once(process: SDE) -> None:
    """Run `check_process` on a user-defined Gaussian process at its first use, and again if its time range changes."""
    if not isinstance(process, GaussianProcess) or not is_user_defined(process):
        return
    ends = (process.t_min, process.t_max)
    if vars(process).get("_checked") != ends:
        check_process(process)
        vars(process)["_checked"] = ends
