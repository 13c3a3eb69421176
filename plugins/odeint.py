"""The ODE methods of torchdiffeq as a sampler.

torchdiffeq calls a function to evaluate the slope; a sampler yields a request and receives a prediction. Each solve
therefore runs in its own thread, which blocks in every call until the sampler has the slope. Only one thread runs at a
time, and none while the model is evaluated.
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
    """Raised in the thread of a solve when its sampler is closed."""


class Solve:
    """One call of torchdiffeq's odeint, as a coroutine in a thread that runs only during `start` and `send`.

    Both return the next (time, state) at which the solve needs the slope, or the final state.

    Attributes:
        calls: number of slopes requested so far.
    """

    def __init__(
        self, odeint: Callable[..., Tensor], x: Tensor, times: Sequence[float], kwargs: dict[str, Any]
    ) -> None:
        self.calls = 0
        self._odeint, self._kwargs, self._x = odeint, kwargs, x
        self._times = torch.tensor(times, dtype=torch.float64, device=x.device)
        self._edits: Tensor | float = 0.0  # sum of the callbacks' changes, which the state inside odeint lacks
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._slopes: SimpleQueue[Tensor | None] = SimpleQueue()
        # These are per-thread settings of torch, to be set in the new thread.
        stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), stream
        self._thread = threading.Thread(target=self._run, name="odeint", daemon=True)

    def start(self) -> tuple[float, Tensor] | Tensor:
        """Run to the first request."""
        self._thread.start()
        return self._next()

    def send(self, slope: Tensor, edit: Tensor | None) -> tuple[float, Tensor] | Tensor:
        """Continue with the slope at the last requested state, to which a callback had added `edit`."""
        if edit is not None:
            self._edits = self._edits + edit
        self._slopes.put(slope)
        return self._next()

    def close(self) -> None:
        """End the thread, even in the middle of the solve."""
        self._slopes.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _next(self) -> tuple[float, Tensor] | Tensor:
        request = self._requests.get()
        if isinstance(request, BaseException):
            raise request
        if isinstance(request, Tensor):
            return request + self._edits
        self.calls += 1
        return request[0], request[1] + self._edits

    def _run(self) -> None:
        inference, grad, stream = self._modes
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad), torch.cuda.stream(stream):
                self._requests.put(self._odeint(self._slope, self._x, self._times, **self._kwargs)[-1])
        except Stopped:
            pass
        except AssertionError as error:
            self._requests.put(SolverError(f"torchdiffeq failed: {error}"))
        except BaseException as error:
            self._requests.put(error)

    def _slope(self, time: Tensor, state: Tensor) -> Tensor:
        self._requests.put((float(time), state))
        slope = self._slopes.get()
        if slope is None:
            raise Stopped
        return slope


def run_solves(solves: list[Solve], groups: list[list[int]], path: Path, max_nfe: float) -> Run:
    """Run solves, each for a group of rows of the batch, to the end, with one batched model call for all of them."""
    begin, end = path.points[0].time, path.points[-1].time
    ends: dict[int, Tensor] = {}
    try:
        requests = {k: solve.start() for k, solve in enumerate(solves)}
        while True:
            ends |= {k: request for k, request in requests.items() if isinstance(request, Tensor)}
            calls = {k: request for k, request in requests.items() if not isinstance(request, Tensor)}
            if not calls:
                return torch.cat([ends[k] for k in range(len(solves))])
            if any(solves[k].calls > max_nfe for k in calls):
                raise SolverError(f"odeint needs more than max_nfe={max_nfe} evaluations at these tolerances")
            # torchdiffeq rounds times to the precision of the state, possibly to beyond the ends of the path.
            times = np.clip([time for time, _ in calls.values()], min(begin, end), max(begin, end))
            state = torch.cat([state for _, state in calls.values()])
            rows = [row for k in calls for row in groups[k]]
            out = yield state, path.at(float(times[0])) if len(solves) == 1 else path.at(times, np.array(rows))
            sizes = [len(groups[k]) for k in calls]
            edits = [None] * len(sizes) if out.x is state else (out.x - state).split(sizes)
            slopes = zip(calls, out.velocity.split(sizes), edits, strict=True)
            requests = {k: solves[k].send(slope, edit) for k, slope, edit in slopes}
    finally:
        for solve in solves:
            solve.close()


def odeint_arguments(
    times: list[float], method: str, rtol: float, atol: float, free: bool, device: torch.device
) -> tuple[list[float], dict[str, Any]]:
    """(times, keyword arguments) of torchdiffeq's odeint, for adaptive steps between two times or for a grid."""
    kwargs: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol}
    if method not in ADAPTIVE:
        return times, kwargs
    # step_t makes steps end at these times; otherwise torchdiffeq steps over them and interpolates. Its own estimate of
    # the first step evaluates beyond the end of a short path, and carries a gradient, which step sizes must not have.
    span, ends = abs(times[-1] - times[0]), torch.tensor(times[1:], dtype=torch.float64, device=device)
    kwargs["options"] = {"step_t": ends, "first_step": 0.01 * span}
    if not free:  # accept every error, and let step_t alone limit the steps
        kwargs |= {"atol": np.inf, "options": {"step_t": ends, "first_step": 2 * span, "ifactor": 1e9}}
    return [times[0], times[-1]], kwargs


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
    """Any ODE method of torchdiffeq on the probability-flow ODE.

        dx/dt = v(x, t)

    Without a grid, dopri5, dopri8, bosh3, fehlberg2, adaptive_heun and scipy_solver choose their own steps.
    torchdiffeq has one step size per call, which would let samples affect each other, so every sample is then solved
    separately, in its own thread, with one batched model call for all of them. This costs about 0.2 ms per sample and
    evaluation on the CPU (rk45 and dop853 do the same without threads).

    With a grid (`steps`, `times`, ...), all methods but scipy_solver take its steps, including the adaptive ones, and
    implicit_adams iterates with torchdiffeq's default tolerances. The Adams methods have weights for equal steps: on a
    grid that is uneven in path time implicit_adams is of first order and explicit_adams diverges (`ab` and `abm` have
    weights for the actual grid). The step into sigma = 0 is an Euler step.

    Args:
        method: torchdiffeq's name of the method.
        rtol: relative error tolerance of adaptive steps.
        atol: absolute error tolerance of adaptive steps.
        max_nfe: most evaluations per sample of an adaptive method; a run that needs more is an error.
    """
    if not (rtol > 0 and atol > 0 and max_nfe > 0):
        raise ValueError("rtol, atol and max_nfe must be positive")
    if path.is_free and method not in (*ADAPTIVE, "scipy_solver"):
        raise ValueError(f"method {method!r} has fixed steps and needs a grid: pass steps=... or nfe=...")
    if not path.is_free and method == "scipy_solver":
        raise ValueError("method 'scipy_solver' is always adaptive: pass rtol=... and atol=... instead of a grid")
    try:
        solver = import_module("torchdiffeq").odeint
    except ImportError:
        raise UsageError("this sampler needs torchdiffeq: pip install 'sdesamplers[odeint]'") from None
    last = path.points[-1]
    points = path.points[:-1] if last.is_clean else path.points
    if len(points) > 1:
        grid = [float(point.time) for point in points]
        times, kwargs = odeint_arguments(grid, method, rtol, atol, path.is_free, x.device)
        is_separate = path.is_free or method == "implicit_adams"
        groups = [[row] for row in range(len(x))] if is_separate else [list(range(len(x)))]
        solves = [Solve(solver, x[rows], times, kwargs) for rows in groups]
        x = yield from run_solves(solves, groups, path.part(points), max_nfe if path.is_free else np.inf)
    if last.is_clean:
        out = yield x, points[-1]
        x = torch.add(out.x, out.velocity, alpha=last.time - points[-1].time)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [odeint]
