"""The loop that drives every sampler; it calls the model, counts evaluations, checks, records and cancels."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import Cancelled, ModelError, NonFiniteError, PluginError, SolverError, UsageError
from ..models.base import Model, Output
from ..models.calling import isolated, isolated_to
from ..models.clipping import Clip, clipped
from ..models.conditions import take_rows
from ..path.points import Point, model_state
from ..path.prediction import Prediction, ScorePrediction
from ..processes.scalars import Scalar
from ..processes.sde import GaussianProcess
from ..public import public
from .forking import prepare_for_forks


@public
@dataclass
class Event:
    """The argument of a callback, before each model evaluation.

    A callback may replace `x` (path coordinates); the model is then evaluated at the new state. Raising `Cancelled`
    ends the run.

    Attributes:
        evaluation: number of earlier evaluations.
        point: the point of this evaluation.
        x: the state (N, ...) in the path's coordinates.
        rows: indices of the samples of the batch that are evaluated; None for all.
    """

    evaluation: int
    point: Point
    x: Tensor

    @property
    def rows(self) -> np.ndarray | None:
        return self.point.rows


Callback = Callable[[Event], None]


class Flag(Protocol):
    """`threading.Event`, or any object with its `is_set`."""

    def is_set(self) -> bool: ...


@public
@dataclass(slots=True)
class Evaluator:
    """Evaluates the model for one batch: returns `Prediction`s, counts them and checks them.

    `nfe` counts the evaluations of each sample of the batch; a guided evaluation, which calls the network twice, counts
    once. With `both`, predictions include the unguided prediction at any guidance scale; `clip` bounds their x0. On the
    CPU, finiteness is checked at once; on other devices at the end of the run, so that no step waits for the device.
    `edited` collects the evaluations at which the callback replaced or modified the state, if it is a list.
    """

    model: Model
    count: int
    label: str
    condition: Any = None
    guidance_scale: float = 1.0
    check_finite: bool = True
    both: bool = False  # True if the sampler needs the unguided prediction even at guidance_scale 1
    callback: Callback | None = None
    cancel: Flag | None = None
    record: Callable[[Prediction], None] | None = None
    clip: Clip | None = None
    shape: torch.Size | None = None  # of one state, if known
    edited: list[int] | None = None
    evaluations: int = 0
    _partial: int = 0  # number of evaluations of only a part of the batch
    _single: np.ndarray = field(init=False)  # (N,) how many of those included each sample
    _pending: list[tuple[Tensor, int, Scalar]] = field(default_factory=list)
    _prediction: type[Prediction] = field(init=False)
    _kind: str = field(init=False)
    _watched: bool = field(init=False)
    _unconditional: Any = field(init=False)
    _guided: bool = field(init=False)
    _predict: Callable[..., Tensor | Output] = field(init=False)
    _tensor_only: bool = field(init=False)

    def __post_init__(self) -> None:
        self._single = np.zeros(self.count, dtype=np.int64)
        gaussian = isinstance(self.model.process, GaussianProcess)
        self._prediction = Prediction if gaussian else ScorePrediction
        if not gaussian and self.model.prediction != "score":
            kind = type(self.model.process).__name__
            raise UsageError(
                f"{kind} has no alpha and sigma, so its model must predict the score, not {self.model.prediction}"
            )
        self._kind, self._watched = self.model.prediction, self.cancel is not None or self.callback is not None
        self._guided = self.guidance_scale != 1.0 or (self.both and self.condition is not None)
        self._unconditional = self.model.unconditional(self.count) if self.guidance_scale != 1.0 else None
        self._predict, self._tensor_only = isolated(self.model), False

    @property
    def nfe(self) -> np.ndarray:
        """Number of evaluations of each sample, (N,)."""
        return self._single + (self.evaluations - self._partial)

    def __call__(self, x: Tensor, point: Point) -> Prediction:
        """Evaluate the model at one point."""
        if self._watched:
            x = self._announce(x, point)
        rows = point.rows
        if point.is_clean or x.shape[0] != (self.count if rows is None else len(rows)):
            raise self._misplaced(x, point)
        state = model_state(x, point)
        if rows is None and self._tensor_only and point.end is None:  # the fast path of the usual case
            raw: Any = self._predict(state, point.t, self.condition)
            if raw.__class__ is Tensor and raw.shape == state.shape and raw.dtype is state.dtype:
                prediction = self._prediction(x, point, raw, self._kind)
            else:  # a model may return another type than at earlier evaluations
                prediction = self._wrap(x, point, self._finished(raw, state))
        else:
            prediction = self._wrap(x, point, self._evaluate(state, point.t, rows, point.end))
        self.evaluations += 1
        if rows is not None:
            self._partial += 1
            self._single[rows] += 1
        if self.check_finite:
            total = prediction.raw.sum()  # not finite if any element is NaN or infinite
            if not total.is_cpu or not math.isfinite(total.item()):
                self._suspect(total, prediction)
        if self.clip is not None and point.end is None:  # a flow map's output for a whole step does not determine x0
            prediction = clipped(prediction, self.clip)
        if self.record is not None:
            self.record(prediction)
        return prediction

    def _announce(self, x: Tensor, point: Point, ahead: int = 0) -> Tensor:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"{self.label} was cancelled after {self.evaluations} evaluations")
        if self.callback is None:
            return x
        # A state that is modified in place may be a recorded draw, or one that the sampler has kept.
        given = x if self.edited is None else x.clone()
        version, event = given._version, Event(self.evaluations + ahead, point, given)
        self.callback(event)
        new = event.x
        if not isinstance(new, Tensor) or new.shape != x.shape or new.dtype is not x.dtype:
            found = f"{new.dtype} of shape {tuple(new.shape)}" if isinstance(new, Tensor) else repr(new)
            raise UsageError(
                f"a callback replaced the state, {x.dtype} of shape {tuple(x.shape)}, by {found}; it must keep both"
            )
        if self.edited is not None:
            if event.x is given and given._version == version:
                return x
            self.edited.append(event.evaluation)
        return event.x

    def several(self, requests: list[tuple[Tensor, Point]]) -> list[Prediction]:
        """Evaluate the model at several points in one batched call (parallel-in-time samplers)."""
        if self._watched:
            requests = [(self._announce(x, point, k), point) for k, (x, point) in enumerate(requests)]
        for x, point in requests:
            if point.is_clean or len(x) != (self.count if point.rows is None else len(point.rows)):
                raise self._misplaced(x, point)
        states = torch.cat([model_state(x, point) for x, point in requests])
        times = np.concatenate([np.broadcast_to(np.asarray(p.t, dtype=float), len(x)) for x, p in requests])
        if any(point.end is not None for _, point in requests):
            raise UsageError(f"{self.label}: a flow map is evaluated at one point at a time, not at several at once")
        everyone = np.arange(self.count)
        rows = np.concatenate([everyone if p.rows is None else p.rows for _, p in requests])
        raw = self._evaluate(states, times, rows)
        predictions, start = [], 0
        for x, point in requests:
            part = slice(start, start + len(x))
            rest = (None if r is None else r[part] for r in raw[1:])
            predictions.append(self._wrap(x, point, Output(raw.value[part], *rest)))
            start += len(x)
        self.evaluations += len(requests)
        self._partial += len(requests)
        np.add.at(self._single, rows, 1)
        for prediction in predictions:
            if self.check_finite:
                self._suspect(prediction.raw.sum(), prediction)
        predictions = [clipped(prediction, self.clip) for prediction in predictions]
        for prediction in predictions:
            if self.record is not None:
                self.record(prediction)
        return predictions

    def _evaluate(self, state: Tensor, t: Scalar, rows: np.ndarray | None, end: Scalar | None = None) -> Output:
        predict = self._predict if end is None else isolated_to(self.model, end)
        condition = self.condition if rows is None else take_rows(self.condition, rows)
        if self.shape is not None and state.shape[1:] != self.shape:
            raise PluginError(
                f"{self.label}: the sampler requested a prediction for states of shape {tuple(state.shape[1:])}, and "
                f"the model's samples have shape {tuple(self.shape)}"
            )
        inside = state.to(self.model.dtype)
        returned = predict(inside, t, condition)
        # A model that has returned a tensor of the state's dtype once is expected to do so again.
        same = isinstance(returned, Tensor) and inside is state and returned.dtype is state.dtype
        self._tensor_only = same and not self._guided and not self.both
        output = returned if isinstance(returned, Output) else Output(returned)
        if self._guided and (self.guidance_scale != 1.0 or output.unguided is None):
            if self._unconditional is None:  # at guidance_scale 1 needed only if the model does not guide itself
                self._unconditional = self.model.unconditional(self.count)
            # Classifier-free guidance (Ho & Salimans 2022, eq. 6, with w + 1 = guidance_scale); it commutes with
            # the linear map between prediction types.
            everyone = self._unconditional
            unconditional = everyone if rows is None else take_rows(everyone, rows)
            plain = predict(inside, t, unconditional)
            plain = plain.value if isinstance(plain, Output) else plain
            output = Output(plain + self.guidance_scale * (output.value - plain), plain, output.log_density)
        return self._finished(output, state)

    def _finished(self, returned: Any, state: Tensor) -> Output:
        """A model's return value as an `Output`, checked, in the state's dtype."""
        output = returned if isinstance(returned, Output) else Output(returned)
        self._check_shape(output.value, state)
        unguided = None if output.unguided is None else output.unguided.to(state.dtype)
        return Output(output.value.to(state.dtype), unguided, output.log_density)

    def _check_shape(self, value: Tensor, state: Tensor) -> None:
        if value.shape != state.shape:
            raise ModelError(
                f"{self.label}: the model returned shape {tuple(value.shape)} for a state of shape {tuple(state.shape)}"
            )

    def _wrap(self, x: Tensor, point: Point, output: Output) -> Prediction:
        prediction = self._prediction(x, point, output.value, self._kind)
        if output.unguided is not None:
            prediction.unguided = self._prediction(x, point, output.unguided, self._kind)
        elif self.both:  # nothing was guided; a reference to itself would keep the tensors until garbage collection
            prediction.unguided = self._prediction(x, point, output.value, self._kind)
        prediction.log_density = output.log_density
        return prediction

    def _misplaced(self, x: Tensor, point: Point) -> PluginError:
        if point.is_clean:
            return PluginError(
                f"{self.label}: the sampler evaluated the model at sigma = 0, where its prediction is undefined; "
                "end the step without it if then.is_clean"
            )
        expected = self.count if point.rows is None else len(point.rows)
        return PluginError(f"{self.label}: the sampler evaluated {len(x)} samples at a point for {expected}")

    def _suspect(self, total: Tensor, prediction: Prediction) -> None:
        if not total.is_cpu:
            self._pending.append((total, self.evaluations, prediction.point.t))
        elif not math.isfinite(total.item()):
            raise self._not_finite(self.evaluations, prediction.point.t, prediction.x.abs().max().item())

    def _not_finite(self, evaluation: int, t: Scalar, largest: float = 0.0) -> NonFiniteError:
        place = f"{t:.6g}" if not np.ndim(t) else f"{np.min(t):.6g} to {np.max(t):.6g}"
        if not math.isfinite(largest):
            return NonFiniteError(
                f"{self.label}: the sampler's state is not finite at evaluation {evaluation}, t = {place}, although "
                "the model's earlier outputs were: a factor in the step before is infinite or NaN, as inf * 0 at an "
                "end of the path (lam and ratio are infinite for now.is_pure_noise or then.is_clean; out.step_to(then) "
                "is defined there)"
            )
        grown = "" if largest < DIVERGED else (
            f", where the state has grown to {largest:.2g}: the method is unstable here (take more steps, another "
            "spacing or coordinates, or a lower order)"
        )  # fmt: skip
        return NonFiniteError(
            f"{self.label}: the model's output is not finite at evaluation {evaluation}, t = {place}{grown} "
            "(check_finite=False turns this check off)"
        )

    def finish(self, x: Tensor) -> None:
        """Make the finiteness checks that were postponed, and check the sample itself."""
        if not self.check_finite:
            return
        for total, evaluation, t in self._pending:
            if not math.isfinite(total.item()):
                raise self._not_finite(evaluation, t)
        if not math.isfinite(x.sum().item()):
            raise NonFiniteError(
                f"{self.label}: the sample is not finite after the last step, although all model outputs were; at "
                "sigma = 0 lam is infinite, and if then.is_clean a sampler uses out.step_to(then)"
            )


DIVERGED = 1e6
"""Larger than any state of a working sampler: if the model returns NaN for a larger state, the sampler has diverged."""


Run = Generator[Any, Any, Tensor]


def well_formed(request: Any, label: str = "") -> tuple[Tensor, Point]:
    """Return a sampler's request, or raise a `PluginError` if it is not (state, point); `label` names the run."""
    if not (
        request.__class__ is tuple
        and len(request) == 2
        and isinstance(request[1], Point)
        and isinstance(request[0], Tensor)
    ):
        raise malformed(request, label)
    return request


def malformed(request: Any, label: str = "") -> PluginError:
    """The error for a request that is not (state, point), with the likely mistake."""
    parts = request if isinstance(request, tuple) else (request,)
    found = ", ".join(type(part).__name__ for part in parts)
    advice = ""
    if len(parts) == 2 and isinstance(parts[0], Point):
        advice = "; the state comes first"
    elif len(parts) == 2 and isinstance(parts[0], np.ndarray):
        advice = "; the state is a tensor: compute with torch, not with NumPy"
    elif len(parts) == 2 and isinstance(parts[1], float | int | np.number):
        advice = "; yield the point itself, not its time"
    elif isinstance(parts[0], Generator):
        advice = "; to run another sampler, write x = yield from other(x, path)"
    elif isinstance(request, Tensor):
        advice = "; the point is missing, as in `yield x, now`"
    opening = f"{label}: " if label else ""
    return PluginError(f"{opening}a sampler yields (state, point) or a list of such pairs, not ({found}){advice}")


@public
def drive(run: Run, evaluate: Evaluator) -> Tensor:
    """Run a sampler's generator to its end and return the final state (N, ...) in path coordinates.

    Raises:
        PluginError: the sampler requests or returns something invalid.
        SolverError: the sampler or the network called `exit`.
        NonFiniteError: the model's output or the sample is not finite.
        Cancelled: `evaluate.cancel` was set.
    """
    prepare_for_forks()
    try:
        request = next(run)
        while True:
            if isinstance(request, list):
                request = run.send(evaluate.several([well_formed(each, evaluate.label) for each in request]))
            else:
                request = run.send(evaluate(*well_formed(request, evaluate.label)))
    except StopIteration as stop:
        sample: Tensor = stop.value
    except SystemExit as end:  # it would end the program as if it had succeeded
        raise SolverError(f"{evaluate.label}: the sampler or the network called exit({end.code})") from None
    finally:
        run.close()  # so that a sampler releases resources, such as threads, at once
    if not isinstance(sample, Tensor):
        found = "None" if sample is None else type(sample).__name__
        missing = "; is `return x` missing?" if sample is None else "; it must return its last state, a tensor"
        missing += ", so compute with torch, not with NumPy" if isinstance(sample, np.ndarray) else ""
        raise PluginError(f"{evaluate.label}: the sampler returned {found}{missing}")
    if len(sample) != evaluate.count:
        raise PluginError(f"{evaluate.label}: the sampler returned {len(sample)} samples of {evaluate.count}")
    evaluate.finish(sample)
    return sample
