"""The loop that drives a sampler: it owns the model call, counting, checks, recording and cancellation, for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import Cancelled, NonFiniteError
from .models.base import Model, Output
from .path import Point
from .prediction import Prediction, ScorePrediction
from .sde import GaussianProcess, Scalar, expand


@dataclass
class Event:
    """What a callback sees before each model evaluation.

    A callback may replace `x` (path coordinates); the model is then asked at the new state. Raising `Cancelled`
    ends the run.

    Attributes:
        evaluation: how many evaluations came before.
        point: where the model is about to be asked.
        x: the state (N, ...) in the path's coordinates.
        rows: the samples of the batch that are evaluated, None for all.
    """

    evaluation: int
    point: Point
    x: Tensor

    @property
    def rows(self) -> np.ndarray | None:
        return self.point.rows


Callback = Callable[[Event], None]


class Flag(Protocol):
    """Anything like `threading.Event`."""

    def is_set(self) -> bool: ...


@dataclass
class Evaluator:
    """One batch's connection to the model: makes `Prediction`s, counts them and checks them.

    `nfe` counts evaluations of each sample of the batch. Finiteness is read at once on the CPU, and at the end of
    the run elsewhere, so that no step waits for the device.
    """

    model: Model
    count: int
    label: str
    condition: Any = None
    guidance_scale: float = 1.0
    check_finite: bool = True
    callback: Callback | None = None
    cancel: Flag | None = None
    record: Callable[[Prediction], None] | None = None
    evaluations: int = 0
    nfe: np.ndarray = field(init=False)
    _pending: list[tuple[Tensor, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nfe = np.zeros(self.count, dtype=np.int64)
        gaussian = isinstance(self.model.process, GaussianProcess)
        self._prediction = Prediction if gaussian else ScorePrediction
        self._unconditional = None if self.guidance_scale == 1.0 else self.model.unconditional(self.count)

    def __call__(self, x: Tensor, point: Point) -> Prediction:
        """Ask the model at one point."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"{self.label} was cancelled after {self.evaluations} evaluations")
        if self.callback is not None:
            event = Event(self.evaluations, point, x)
            self.callback(event)
            x = event.x
        rows = point.rows
        scale = point.scale
        state = x if isinstance(scale, float) and scale == 1.0 else x / expand(scale, x)
        prediction = self._wrap(x, point, self._ask(state, point.t, rows))
        self.evaluations += 1
        if rows is None:
            self.nfe += 1
        else:
            self.nfe[rows] += 1
        if self.check_finite:
            self._check(prediction.raw, point)
        if self.record is not None:
            self.record(prediction)
        return prediction

    def several(self, requests: list[tuple[Tensor, Point]]) -> list[Prediction]:
        """Ask the model at several points in one batched call (parallel-in-time samplers)."""
        states = torch.cat([x / expand(p.scale, x) for x, p in requests])
        times = np.concatenate([np.broadcast_to(np.asarray(p.t, dtype=float), len(x)) for x, p in requests])
        everyone = np.arange(self.count)
        rows = np.concatenate([everyone if p.rows is None else p.rows for _, p in requests])
        raw = self._ask(states, times, rows)
        predictions, start = [], 0
        for x, point in requests:
            part = slice(start, start + len(x))
            predictions.append(
                self._wrap(x, point, Output(raw.value[part], *(None if r is None else r[part] for r in raw[1:])))
            )
            start += len(x)
        self.evaluations += len(requests)
        np.add.at(self.nfe, rows, 1)
        if self.check_finite:
            for prediction in predictions:
                self._check(prediction.raw, prediction.point)
        return predictions

    def _ask(self, state: Tensor, t: Scalar, rows: np.ndarray | None) -> Output:
        dtype = state.dtype
        if dtype != self.model.dtype:
            state = state.to(self.model.dtype)
        condition = self.condition if rows is None or self.condition is None else self.condition[rows]
        output = self.model.predict(state, t, condition)
        if not isinstance(output, Output):
            output = Output(output)
        if self.guidance_scale != 1.0:
            # Classifier-free guidance (Ho & Salimans 2022, eq. 6, with w + 1 = guidance_scale); it commutes with
            # the linear map between prediction types.
            everyone = self._unconditional
            unconditional = everyone if rows is None or everyone is None else everyone[rows]
            plain = self.model.predict(state, t, unconditional)
            plain = plain.value if isinstance(plain, Output) else plain
            output = Output(plain + self.guidance_scale * (output.value - plain), plain, output.log_density)
        if output.value.dtype != dtype:
            unguided = None if output.unguided is None else output.unguided.to(dtype)
            output = Output(output.value.to(dtype), unguided, output.log_density)
        return output

    def _wrap(self, x: Tensor, point: Point, output: Output) -> Prediction:
        prediction = self._prediction(x, point, output.value, self.model.prediction)
        if output.unguided is not None:
            prediction.unguided = self._prediction(x, point, output.unguided, self.model.prediction)
        prediction.log_density = output.log_density
        return prediction

    def _check(self, raw: Tensor, point: Point) -> None:
        total = raw.detach().sum()  # NaN and infinity survive a sum
        where = f"{self.label}: the model's output is not finite at evaluation {self.evaluations}, t = {_show(point.t)}"
        if total.device.type != "cpu":
            self._pending.append((total, where))
        elif not math.isfinite(total.item()):
            raise NonFiniteError(where + " (check_finite=False turns this check off)")

    def finish(self, x: Tensor) -> None:
        """Check what was left unread, and the sample itself."""
        if not self.check_finite:
            return
        for total, where in self._pending:
            if not bool(torch.isfinite(total)):
                raise NonFiniteError(where + " (check_finite=False turns this check off)")
        if not bool(torch.isfinite(x.detach().sum())):
            raise NonFiniteError(f"{self.label}: the sample is not finite after the last step, though the model was")


def _show(t: Scalar) -> str:
    return f"{t:.6g}" if not np.ndim(t) else f"{np.min(t):.6g} to {np.max(t):.6g}"


Run = Generator[Any, Any, Tensor]


def drive(run: Run, evaluate: Evaluator) -> Tensor:
    """Run a sampler's generator to its end and return the final state (path coordinates)."""
    try:
        request = next(run)
        while True:
            if isinstance(request, list):
                request = run.send(evaluate.several(request))
            else:
                request = run.send(evaluate(*request))
    except StopIteration as stop:
        sample: Tensor = stop.value
    evaluate.finish(sample)
    return sample


def count_evaluations(run: Run) -> int:
    """How many evaluations a run makes, found by answering it with zeros; nothing is sampled."""
    count = 0
    try:
        request = next(run)
        while True:
            requests = request if isinstance(request, list) else [request]
            answers = []
            for x, point in requests:
                gaussian = isinstance(point.process, GaussianProcess)
                make = Prediction if gaussian else ScorePrediction
                answers.append(make(x, point, torch.zeros_like(x), "v"))
            count += len(requests)
            request = run.send(answers if isinstance(request, list) else answers[0])
    except StopIteration:
        return count
