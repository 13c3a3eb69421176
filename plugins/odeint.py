"""The ODE methods of torchdiffeq as a sampler.

torchdiffeq calls a function for the slope; a sampler yields and is sent a prediction. So a solve runs in a thread of
its own, which waits at every call until the sampler has the slope. One thread runs at a time, and none while the model
does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Run, Sampler, SolverError, UsageError, hookimpl, sampler

Method = Literal[
    "dopri5",
    "dopri8",
    "bosh3",
    "fehlberg2",
    "adaptive_heun",
    "scipy_solver",
    "euler",
    "midpoint",
    "heun2",
    "heun3",
    "rk4",
    "explicit_adams",
    "implicit_adams",
]
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


class Stopped(BaseException):
    """Raised in a solve's thread when its sampler is closed."""


class Solve:
    """One call of torchdiffeq's odeint, as a coroutine in a thread: it runs only inside `start` and `send`.

    Both return the next (time, state) where it wants the slope, or the state at the end.

    Attributes:
        calls: slopes asked for so far.
    """

    def __init__(self, odeint: Callable[..., Tensor], x: Tensor, times: Sequence[float], words: dict[str, Any]) -> None:
        self.calls = 0
        self._odeint, self._words, self._x = odeint, words, x
        self._times = torch.tensor(times, dtype=torch.float64, device=x.device)
        self._moves: Tensor | float = 0.0  # what callbacks have added to the state that the solve knows of
        self._asked: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[Tensor | None] = SimpleQueue()
        # All three belong to the thread that sets them.
        stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), stream
        self._thread = threading.Thread(target=self._run, name="odeint", daemon=True)

    def start(self) -> tuple[float, Tensor] | Tensor:
        """Run to the first call."""
        self._thread.start()
        return self._next()

    def send(self, slope: Tensor, move: Tensor | None) -> tuple[float, Tensor] | Tensor:
        """Run on with the slope at the state last asked for, to which a callback had added `move`."""
        if move is not None:
            self._moves = self._moves + move
        self._answers.put(slope)
        return self._next()

    def close(self) -> None:
        """End the thread, wherever the solve is."""
        self._answers.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _next(self) -> tuple[float, Tensor] | Tensor:
        asked = self._asked.get()
        if isinstance(asked, BaseException):
            raise asked
        if isinstance(asked, Tensor):
            return asked + self._moves
        self.calls += 1
        return asked[0], asked[1] + self._moves

    def _run(self) -> None:
        inference, grad, stream = self._modes
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad), torch.cuda.stream(stream):
                self._asked.put(self._odeint(self._slope, self._x, self._times, **self._words)[-1])
        except Stopped:
            pass
        except AssertionError as error:
            self._asked.put(SolverError(f"torchdiffeq gave up: {error}"))
        except BaseException as error:
            self._asked.put(error)

    def _slope(self, time: Tensor, state: Tensor) -> Tensor:
        self._asked.put((float(time), state))
        slope = self._answers.get()
        if slope is None:
            raise Stopped
        return slope


def solved(solves: list[Solve], groups: list[list[int]], path: Path, max_nfe: float) -> Run:
    """Run solves, each of a group of rows of the batch, to their ends, asking the model for all of them at once."""
    begin, end = path.points[0].time, path.points[-1].time
    ends: dict[int, Tensor] = {}
    try:
        asked = {k: solve.start() for k, solve in enumerate(solves)}
        while True:
            ends |= {k: what for k, what in asked.items() if isinstance(what, Tensor)}
            calls = {k: what for k, what in asked.items() if not isinstance(what, Tensor)}
            if not calls:
                return torch.cat([ends[k] for k in range(len(solves))])
            if any(solves[k].calls > max_nfe for k in calls):
                raise SolverError(f"odeint needs more than max_nfe={max_nfe} evaluations at these tolerances")
            # torchdiffeq rounds times to the state's precision, which may lie beyond the ends of the path.
            times = np.clip([time for time, _ in calls.values()], min(begin, end), max(begin, end))
            state = torch.cat([state for _, state in calls.values()])
            rows = [row for k in calls for row in groups[k]]
            out = yield state, path.at(float(times[0])) if len(solves) == 1 else path.at(times, np.array(rows))
            sizes = [len(groups[k]) for k in calls]
            moves = [None] * len(sizes) if out.x is state else (out.x - state).split(sizes)
            answers = zip(calls, out.velocity.split(sizes), moves, strict=True)
            asked = {k: solves[k].send(slope, move) for k, slope, move in answers}
    finally:
        for solve in solves:
            solve.close()


def arguments(
    times: list[float], method: str, rtol: float, atol: float, free: bool, device: torch.device
) -> tuple[list[float], dict[str, Any]]:
    """The times and keywords of torchdiffeq's odeint for free steps between two times, or for a grid."""
    words: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol}
    if method not in ADAPTIVE:
        return times, words
    # step_t keeps it from stepping over these times and interpolating back. torchdiffeq's own guess of a first step
    # asks beyond the end of a short path and carries a gradient, which its step sizes must not.
    span, ahead = abs(times[-1] - times[0]), torch.tensor(times[1:], dtype=torch.float64, device=device)
    words["options"] = {"step_t": ahead, "first_step": 0.01 * span}
    if not free:  # no error is too large, and every step would be longer than the grid's
        words |= {"atol": np.inf, "options": {"step_t": ahead, "first_step": 2 * span, "ifactor": 1e9}}
    return [times[0], times[-1]], words


@sampler(
    "odeint",
    order=5,
    evaluations=6,
    control=("rtol", "atol", "max_nfe"),
    reference="Chen 2018, torchdiffeq; dopri5: Dormand & Prince 1980, table 2",
)
def odeint(
    x: Tensor,
    path: Path,
    *,
    method: Method = "dopri5",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_nfe: int = 10_000,
) -> Run:
    """Any ODE method of torchdiffeq on the probability-flow ODE, dx/dt = v(x, t).

        dx/dt = v(x, t)

    `method` is torchdiffeq's name for it. Without a grid, dopri5, dopri8, bosh3, fehlberg2, adaptive_heun and
    scipy_solver choose their steps by `rtol`, `atol` within `max_nfe` evaluations a sample. torchdiffeq has one step
    size a call, which would let samples change each other, so every sample is then a solve of its own, in a thread of
    its own, and the model is asked for all of them at once; that costs some 0.2 ms a sample and evaluation on the CPU
    (rk45 and dop853 do the same without threads). With a grid, all but scipy_solver take its steps, adaptive ones too
    (and implicit_adams iterates by its default tolerances). The Adams methods have weights for equal steps: on a grid
    uneven in path time implicit_adams is of first order and explicit_adams diverges (`ab` and `abm` have the grid's own
    weights). The step into sigma = 0 is Euler's.
    """
    if not (rtol > 0 and atol > 0 and max_nfe > 0):
        raise ValueError("rtol, atol and max_nfe must be positive")
    if path.is_free and method not in (*ADAPTIVE, "scipy_solver"):
        raise ValueError(f"method {method!r} has fixed steps and needs a grid: give steps=... or nfe=...")
    if not path.is_free and method == "scipy_solver":
        raise ValueError("method 'scipy_solver' takes its own steps: give no grid, but rtol=... and atol=...")
    try:
        solver = import_module("torchdiffeq").odeint
    except ImportError:
        raise UsageError("it needs torchdiffeq: pip install 'sdesamplers[odeint]'") from None
    last = path.points[-1]
    points = path.points[:-1] if last.is_clean else path.points
    if len(points) > 1:
        times, words = arguments([float(point.time) for point in points], method, rtol, atol, path.is_free, x.device)
        alone = path.is_free or method == "implicit_adams"
        groups = [[row] for row in range(len(x))] if alone else [list(range(len(x)))]
        solves = [Solve(solver, x[rows], times, words) for rows in groups]
        x = yield from solved(solves, groups, path.part(points), max_nfe if path.is_free else np.inf)
    if last.is_clean:
        out = yield x, points[-1]
        x = torch.add(out.x, out.velocity, alpha=last.time - points[-1].time)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [odeint]
