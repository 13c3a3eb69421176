"""The ODE methods of torchdiffeq as a sampler.

torchdiffeq calls a function for the slope; a sampler yields and is sent a prediction. So a solve runs in a thread of its
own, which waits at every call until the sampler has the slope; nothing else runs in it while the model does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sdesamplers import Path, Run, Sampler, SolverError, UsageError, hookimpl, sampler

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


class Stopped(BaseException):
    """Raised in a solve's thread when its sampler is closed."""


class Solve:
    """One call of torchdiffeq's odeint, in a thread: `ask()` its next (time, state), or its result; `answer(slope)`.

    Attributes:
        moves: by how much callbacks have moved the state; the solve's own variable is the state less this.
        calls: slopes asked for so far.
    """

    def __init__(self, odeint: Callable[..., Tensor], x: Tensor, times: Sequence[float], words: dict[str, Any]) -> None:
        self.moves: Tensor | float = 0.0
        self.calls = 0
        self._odeint, self._words, self._x = odeint, words, x
        self._times = torch.tensor(times, dtype=torch.float64, device=x.device)
        self._asked: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[Tensor | None] = SimpleQueue()
        # All three belong to the thread that sets them.
        stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), stream
        self._thread = threading.Thread(target=self._run, name="odeint", daemon=True)

    def start(self) -> None:
        """Run to the first call."""
        self._thread.start()

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

    def ask(self) -> Any:
        """(time, state) where it wants the slope, or the state at the end. Errors of the solve are raised here."""
        asked = self._asked.get()
        if isinstance(asked, BaseException):
            raise asked
        self.calls += isinstance(asked, tuple)
        return (asked[0], asked[1] + self.moves) if isinstance(asked, tuple) else asked + self.moves

    def answer(self, slope: Tensor, move: Tensor | None) -> None:
        """The slope at the state last asked for, moved by `move`."""
        if move is not None:
            self.moves = self.moves + move
        self._answers.put(slope)

    def close(self) -> None:
        """End the thread, wherever the solve is."""
        self._answers.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


def solved(solves: dict[tuple[int, ...], Solve], x: Tensor, path: Path, max_nfe: float) -> Generator[Any, Any, Tensor]:
    """Run solves, each of some rows of the batch, to their ends, asking the model for all of them at once."""
    begin, end = path.points[0].time, path.points[-1].time
    ends: dict[tuple[int, ...], Tensor] = {}
    try:
        for solve in solves.values():
            solve.start()
        while len(ends) < len(solves):
            asked = {rows: solve.ask() for rows, solve in solves.items() if rows not in ends}
            ends.update((rows, what) for rows, what in asked.items() if isinstance(what, Tensor))
            live = {rows: what for rows, what in asked.items() if rows not in ends}
            if not live:
                break
            if any(solves[rows].calls > max_nfe for rows in live):
                raise SolverError(f"odeint needs more than max_nfe={max_nfe} evaluations at these tolerances")
            # A solver may guess beyond the end for its first step size, or round a time to the state's precision.
            times = np.clip([time for time, _ in live.values()], min(begin, end), max(begin, end))
            state = torch.cat([state for _, state in live.values()])
            together = len(solves) == 1
            out = yield state, path.at(float(times[0])) if together else path.at(times, np.concatenate([*live]))
            sizes = [len(rows) for rows in live]
            moves = (out.x - state).split(sizes) if out.x is not state else [None] * len(live)
            for rows, slope, move in zip(live, out.velocity.split(sizes), moves, strict=True):
                solves[rows].answer(slope, move)
    finally:
        for solve in solves.values():
            solve.close()
    return torch.cat([ends[rows] for rows in solves])


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
    method: Literal[
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
    ] = "dopri5",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_nfe: int = 10_000,
) -> Run:
    """Any ODE method of torchdiffeq on the probability-flow ODE, dx/dt = v(x, t).

    `method` is torchdiffeq's name for it. Without a grid, dopri5, dopri8, bosh3, fehlberg2, adaptive_heun and
    scipy_solver choose their steps by `rtol`, `atol` within `max_nfe` evaluations a sample. torchdiffeq has one step
    size a call, which would let samples change each other, so every sample is then a solve of its own, in a thread of
    its own, and the model is asked for all of them at once. With a grid, all but scipy_solver take its steps, adaptive
    ones too (and implicit_adams iterates by its default tolerances). The Adams methods have weights for equal steps:
    on a grid uneven in path time they are of first order. The step into sigma = 0 is Euler's.
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
        times = [float(point.time) for point in points]
        words: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol}
        if method in ADAPTIVE:  # step_t keeps it from stepping over these times and interpolating back
            words["options"] = {"step_t": torch.tensor(times[1:], dtype=torch.float64, device=x.device)}
            if not path.is_free:  # nothing is too large an error, and every step is longer than the grid's
                words["atol"] = np.inf
                words["options"] |= {"first_step": 2 * abs(times[-1] - times[0]), "ifactor": 1e9}
            times = [times[0], times[-1]]
        alone = path.is_free or method == "implicit_adams"
        groups = [(row,) for row in range(len(x))] if alone else [tuple(range(len(x)))]
        solves = {rows: Solve(solver, x[list(rows)], times, words) for rows in groups}
        x = yield from solved(solves, x, path.part(points), max_nfe if path.is_free else np.inf)
    if last.is_clean:
        out = yield x, points[-1]
        x = torch.add(out.x, out.velocity, alpha=last.time - points[-1].time)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [odeint]
