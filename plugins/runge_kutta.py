"""Runge-Kutta solvers of the probability-flow ODE, each a `Tableau`; adaptive where it has an error estimate.

A new fixed-step method is a tableau in `METHODS`. `fixed` walks a grid with any, `controlled` chooses the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Point, Run, Sampler, SolverError, hookimpl, sampler, weighted_sum
from sdesamplers.coefficients import ROUNDING, octave_parts

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: k_i = v(x + h sum_j a_ij k_j, t + c_i h), x <- x + h sum_i b_i k_i.

    Attributes:
        name, title, reference: the sampler's name, what it is, and where it comes from.
        order: order of convergence.
        nodes: c_2 ... c_s.
        stages: the rows a_2 ... a_s.
        weights: b_1 ... b_s.
        error: coefficients of the error estimate on k_1 ... k_s, and on the slope at the step's end where it reads
            that ("first same as last": it is the next step's k_1). Empty where there is none.
        damper: a second estimate, of lower order, that the first is weighed against (dop853).
        error_order: the order in h of the estimate, which sets the step-size controller's exponents.
    """

    name: str
    title: str
    reference: str
    order: int
    nodes: Row
    stages: tuple[Row, ...]
    weights: Row
    error: Row = ()
    damper: Row = ()
    error_order: int = 0

    @property
    def fsal(self) -> bool:
        """Whether the error estimate reads the slope at the end of the step."""
        return len(self.error) > len(self.weights)


MIDPOINT = Tableau(
    "midpoint",
    "Explicit midpoint rule",
    "Runge 1895; Hairer, Norsett & Wanner 1993, II.1",
    order=2,
    nodes=(1 / 2,),
    stages=((1 / 2,),),
    weights=(0.0, 1.0),
)
RALSTON = Tableau(
    "ralston",
    "Ralston's second-order method, with the smallest bound on the truncation error",
    "Ralston 1962, eq. 3.5",
    order=2,
    nodes=(2 / 3,),
    stages=((2 / 3,),),
    weights=(1 / 4, 3 / 4),
)
RK3 = Tableau(
    "rk3",
    "Kutta's third-order method",
    "Kutta 1901; Butcher 2016, section 233",
    order=3,
    nodes=(1 / 2, 1.0),
    stages=((1 / 2,), (-1.0, 2.0)),
    weights=(1 / 6, 2 / 3, 1 / 6),
)
SSPRK3 = Tableau(
    "ssprk3",
    "Third-order strong-stability-preserving method, a convex combination of Euler steps",
    "Shu & Osher 1988, eq. 2.18",
    order=3,
    nodes=(1.0, 1 / 2),
    stages=((1.0,), (1 / 4, 1 / 4)),
    weights=(1 / 6, 1 / 6, 2 / 3),
)
RK4 = Tableau(
    "rk4",
    "The classical fourth-order method",
    "Kutta 1901; Hairer, Norsett & Wanner 1993, table II.1.2",
    order=4,
    nodes=(1 / 2, 1 / 2, 1.0),
    stages=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
RK4_38 = Tableau(
    "rk4-38",
    "Kutta's 3/8 rule, of fourth order",
    "Kutta 1901; Hairer, Norsett & Wanner 1993, table II.1.2",
    order=4,
    nodes=(1 / 3, 2 / 3, 1.0),
    stages=((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    weights=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
)
BOSH3 = Tableau(
    "bosh3",
    "Bogacki-Shampine 3(2)",
    "Bogacki & Shampine 1989; PI control: Gustafsson 1991",
    order=3,
    nodes=(1 / 2, 3 / 4),
    stages=((1 / 2,), (0.0, 3 / 4)),
    weights=(2 / 9, 1 / 3, 4 / 9),
    error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    error_order=3,
)
RK45 = Tableau(
    "rk45",
    "Dormand-Prince 5(4)",
    "Dormand & Prince 1980, table 2; Hairer, Norsett & Wanner 1993, II.4; PI control: Gustafsson 1991",
    order=5,
    nodes=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    stages=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    weights=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    error_order=5,
)
TSIT5 = Tableau(
    "tsit5",
    "Tsitouras 5(4)",
    "Tsitouras 2011, table 1; PI control: Gustafsson 1991",
    order=5,
    nodes=(0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
    stages=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    ),
    weights=(0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    error=(
        -0.001780011052225777,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    error_order=5,
)
DOP853 = Tableau(
    "dop853",
    "Dormand-Prince 8(5,3)",
    "Prince & Dormand 1981; coefficients and error estimate: Hairer, Norsett & Wanner 1993, II.5 and II.10",
    order=8,
    nodes=(
        0.05260015195876773,
        0.0789002279381516,
        0.1183503419072274,
        0.2816496580927726,
        1 / 3,
        1 / 4,
        4 / 13,
        127 / 195,
        3 / 5,
        6 / 7,
        1.0,
    ),
    stages=(
        (0.05260015195876773,),
        (0.0197250569845379, 0.0591751709536137),
        (0.02958758547680685, 0.0, 0.08876275643042054),
        (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
        (1 / 27, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
        (19 / 512, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -9 / 512),
        (
            *(0.03709200011850479, 0.0, 0.0, 0.17038392571223998),
            *(0.10726203044637328, -0.015319437748624402, 0.008273789163814023),
        ),
        (
            *(0.6241109587160757, 0.0, 0.0, -3.3608926294469414),
            *(-0.868219346841726, 27.59209969944671, 20.154067550477894, -43.48988418106996),
        ),
        (
            *(0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843),
            *(21.230051448181193, 15.279233632882423, -33.28821096898486, -0.020331201708508627),
        ),
        (
            *(-0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295),
            *(-8.149787010746927, -18.52006565999696, 22.739487099350505, 2.4936055526796523, -3.0467644718982196),
        ),
        (
            *(2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625, -17.9589318631188),
            *(27.94888452941996, -2.8589982771350235, -8.87285693353063, 12.360567175794303, 0.6433927460157636),
        ),
    ),
    weights=(
        *(0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585),
        *(0.3111643669578199, -0.1521609496625161, 0.20136540080403034, 0.04471061572777259),
    ),
    error=(
        *(0.01312004499419488, 0.0, 0.0, 0.0, 0.0, -1.2251564463762044, -0.4957589496572502, 1.6643771824549864),
        *(-0.35032884874997366, 0.3341791187130175, 0.08192320648511571, -0.022355307863886294),
    ),
    damper=(
        *(-0.18980075407240762, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585),
        *(-0.4226823213237919, -0.1521609496625161, 0.20136540080403034, 0.02265179219836082),
    ),
    error_order=8,
)
METHODS = (MIDPOINT, RALSTON, RK3, SSPRK3, RK4, RK4_38)
PAIRS = (BOSH3, RK45, TSIT5, DOP853)


def moved(x: Tensor, h: Any, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_j weights_j slopes_j, for one h or (expanded) one for each sample."""
    used = [(weight, slope) for weight, slope in zip(weights, slopes, strict=True) if weight]
    total = weighted_sum(*zip(*used, strict=True))
    return torch.add(x, total, alpha=h) if isinstance(h, float) else x + h * total


def stages(
    tableau: Tableau, x: Tensor, slope: Tensor, h: Any, at: Callable[[float], Point[Any]]
) -> Generator[Any, Any, list[Tensor]]:
    """The slopes k_1 ... k_s of one step from x, where `slope` is k_1 and `at(c)` the point c of the step along."""
    slopes = [slope]
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        out = yield moved(x, h, row, slopes), at(node)
        slopes.append(out.velocity)
    return slopes


def fixed(x: Tensor, path: Path, tableau: Tableau, slope: Tensor | None = None) -> Run:
    """Walk the path's grid; `slope` is the one at its first point, where it is known.

    The step into sigma = 0 is Euler's where a stage would lie outside what the model was trained on: at sigma = 0
    or between it and the model's smallest sigma.
    """
    for now, then in path.steps:
        if slope is None:
            out = yield x, now
            x, slope = out.x, out.velocity
        h = then.time - now.time
        if then.is_clean and now.time + max(tableau.nodes) * h < path.process.t_min:
            return torch.add(x, slope, alpha=h)

        def at(node: float, now: Point = now, then: Point = then, h: float = h) -> Point:
            return then if node == 1 else path.at(now.time + node * h)

        slopes = yield from stages(tableau, x, slope, h, at)
        x, slope = moved(x, h, tableau.weights, slopes), None
        if tableau.fsal and not then.is_clean:
            out = yield x, then
            x, slope = out.x, out.velocity
    return x


@dataclass(frozen=True)
class Tolerance:
    """What an error, and with it a step, is measured by."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"rtol={self.rtol:g}, atol={self.atol:g}"

    def norm(self, error: Tensor, state: Tensor) -> np.ndarray:
        """The RMS over each sample of error / (atol + rtol state)."""
        ratio = (error / (self.atol + self.rtol * state)).detach().flatten(1)
        return ratio.square().mean(1).sqrt().double().cpu().numpy()

    def first_step(self, x: Tensor, slope: Tensor, span: float) -> np.ndarray:
        """0.01 |x| / |v|, the guess a) of Hairer, Norsett & Wanner 1993, II.4, with the sign of `span`.

        Their refinement by a difference quotient is left out: in float32 it amplifies rounding, and the controller
        grows a small step tenfold at once.
        """
        size, rate = self.norm(x, x.abs()), self.norm(slope, x.abs())
        tiny = (size < 1e-5) | (rate < 1e-5)
        first = np.where(tiny, 1e-6 * abs(span), 0.01 * size / np.maximum(rate, 1e-300))
        return octave_parts(np.copysign(np.minimum(first, abs(span)), span))

    def error(self, tableau: Tableau, h: Any, slopes: Sequence[Tensor], scale: Tensor) -> np.ndarray:
        """A step's error in tolerances, at least `ROUNDING`."""
        error = self.norm(h * weighted_sum(tableau.error, slopes[: len(tableau.error)]), scale)
        if tableau.damper:
            # Hairer, Norsett & Wanner 1993, II.10: |e5|^2 / sqrt(|e5|^2 + 0.01 |e3|^2), of order 8 in h
            lower = self.norm(h * weighted_sum(tableau.damper, slopes[: len(tableau.damper)]), scale)
            error = error * np.divide(error, np.hypot(error, 0.1 * lower), out=np.ones_like(error), where=error != 0)
        return np.maximum(error, ROUNDING)


def controlled(
    x: Tensor, path: Path, tableau: Tableau, tolerance: Tolerance, max_nfe: int
) -> Generator[Any, Any, tuple[Tensor, Tensor]]:
    """Integrate between the path's first two points with per-sample steps; the end state and its slope."""
    begin, end = path.points[0].time, path.points[1].time
    time, rows, cost, k = np.full(len(x), begin), np.arange(len(x)), len(tableau.weights), tableau.error_order
    out = yield x, path.at(time, rows)
    x, slope = out.x.clone(), out.velocity.clone()
    h = tolerance.first_step(x, slope, end - begin)
    last = np.ones(len(x))  # the previous error, for the controller's integral part
    path.ledger.accepted, path.ledger.rejected = np.zeros(len(x), int), np.zeros(len(x), int)
    while len(rows := np.flatnonzero(time != end)):
        if (1 + cost * (1 + (path.ledger.accepted + path.ledger.rejected)[rows])).max() > max_nfe:
            raise SolverError(f"{tableau.name} needs more than max_nfe={max_nfe} evaluations at {tolerance}")
        now, pick = time[rows], torch.from_numpy(rows).to(x.device)
        step = np.where(np.abs(h[rows]) >= np.abs(end - now) * (1 - 1e-12), end - now, h[rows])
        if np.any(np.abs(step) < 1e-14 * abs(begin - end)):
            raise SolverError(f"{tableau.name}'s step fell below rounding; the model is not smooth enough for this")
        old, width = x[pick], path.expand(step, x)

        def at(node: float, now: np.ndarray = now, step: np.ndarray = step, rows: np.ndarray = rows) -> Point[Any]:
            return path.at(now + node * step, rows)

        slopes = yield from stages(tableau, old, slope[pick], width, at)
        out = yield moved(old, width, tableau.weights, slopes), at(1.0)
        slopes.append(out.velocity)
        error = tolerance.error(tableau, width, slopes, torch.maximum(old.abs(), out.x.abs()))
        if not np.all(np.isfinite(error)):
            raise SolverError(f"{tableau.name}'s error estimate is not finite, so it cannot choose a step")
        good, smooth = error <= 1, (error <= 1) & (error > ROUNDING)
        grow = 0.9 * np.where(smooth, error ** (-0.7 / k) * last[rows] ** (0.4 / k), error ** (-1 / k))
        h[rows] = octave_parts(step * np.clip(grow, 0.2, np.where(good, 10.0, 1.0)))
        path.ledger.accepted[rows] += good
        path.ledger.rejected[rows] += ~good
        if len(won := np.flatnonzero(good)):
            keep = torch.from_numpy(won).to(x.device)
            x[pick[keep]], slope[pick[keep]] = out.x[keep], slopes[-1][keep]
            time[rows[won]] = np.where(step[won] == end - now[won], end, now[won] + step[won])
            last[rows[won]] = error[won]
    return x, slope


def fixed_step(tableau: Tableau) -> Sampler:
    """A tableau as a sampler."""

    def run(x: Tensor, path: Path) -> Run:
        return (yield from fixed(x, path, tableau))

    run.__doc__ = f"""{tableau.title}, on the probability-flow ODE.

    k_i = v(x + h sum_j a_ij k_j, t + c_i h);  x <- x + h sum_i b_i k_i. Where a stage of the step into sigma = 0
    would lie below the model's smallest sigma, that step is Euler's.
    """
    cost = len(tableau.weights)
    return Sampler(run, tableau.name, order=tableau.order, evaluations=cost, reference=tableau.reference)


def adaptive(tableau: Tableau) -> Sampler:
    """A tableau with an error estimate as a sampler that can choose its own steps."""
    cost = len(tableau.weights)

    def run(x: Tensor, path: Path, *, rtol: float = 1e-4, atol: float = 1e-4, max_nfe: int = 10_000) -> Run:
        if not (rtol > 0 and atol > 0 and max_nfe > 0):
            raise ValueError("rtol, atol and max_nfe must be positive")
        if not path.is_free:
            return (yield from fixed(x, path, tableau))
        x, slope = yield from controlled(x, path, tableau, Tolerance(rtol, atol), max_nfe)
        return (yield from fixed(x, path.part(path.points[1:]), tableau, slope))

    run.__doc__ = f"""{tableau.title}, on the probability-flow ODE, adaptive, or with the steps of a given grid.

    k_i = v(x + h sum_j a_ij k_j, t + c_i h);  x <- x + h sum_i b_i k_i. A step is accepted where the RMS over a sample
    of |error| / (atol + rtol max|x|) is at most 1; every sample has its own steps, so none changes another's result.
    `max_nfe` bounds a sample's evaluations. The step from the model's smallest sigma into sigma = 0 is Euler's. With a
    grid (`steps`, `times`, ...) it takes {cost} evaluations a step and no error control.
    """
    return Sampler(
        run,
        tableau.name,
        order=tableau.order,
        evaluations=cost,
        control=("rtol", "atol", "max_nfe"),
        reference=tableau.reference,
    )


@sampler(
    "heunpp2",
    order=1,
    evaluations=3,
    coordinates="ve",
    needs=("marginals",),
    reference="Heun++ 2 of ComfyUI (no paper); see Karras et al. 2022, algorithm 1, for its first two slopes",
)
def heunpp2(x: Tensor, path: Path) -> Run:
    """Heun++ with up to three slopes: this point's and those of the next two, reached by Euler steps.

    x <- x + h [(1 - w_1 - w_2) v_0 + w_1 v_1 + w_2 v_2], with w_j = sigma_j / (n sigma_start) for n slopes; the last
    point of the grid has no slope, so the last step is Euler's and the one before has two. The weights fall with
    sigma: near the start it reaches ahead like a larger Heun step, near the end it becomes Euler. Second order would
    need w_1 h + w_2 (h + h') = h/2, which they do not meet, so it is of first order.
    """
    largest = max(path.points[0].sigma, path.points[-1].sigma)  # sigma_start, from whichever end the path begins
    for k, (now, then) in enumerate(path.steps):
        out = yield x, now
        x, slopes, weights = out.x, [out.velocity], [1.0]
        ahead = path.points[k + 1 : min(k + 3, len(path.points) - 1)]
        state, before = x, now
        for point in ahead:
            state = torch.add(state, slopes[-1], alpha=point.time - before.time)
            out = yield state, point
            state, before = out.x, point
            slopes.append(out.velocity)
            weights.append(point.sigma / ((len(ahead) + 1) * largest))
        weights[0] -= sum(weights[1:])
        x = moved(x, then.time - now.time, weights, slopes)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [*map(fixed_step, METHODS), *map(adaptive, PAIRS), heunpp2]
