"""At which step a sampler raised an error, and the likely cause with its cure: the end of the message about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..path.path import Path
from ..path.points import Point

CLEAN = (
    "sigma is 0 at the clean end of this step, so there ratio is 0 and lam infinite: if then.is_clean, use "
    "out.step_to(then)"
)
NOISE = (
    "alpha is 0 at the start of this step, so there ratio is infinite and lam is -infinite: if now.is_pure_noise, use "
    "out.step_to(then)"
)
UNBOUNDED = (
    "a coefficient is too large for a float: write differences of exponentials with math.expm1, and quotients of alpha "
    "and sigma as exponentials of differences of lam"
)
HISTORY = "in the first step there is no earlier prediction: begin with a step of first order"
LAST = "after the last point there is no other: loop over `for now, then in path.steps`"
IN_PLACE = "write x = x + ... and not x += ..., which changes a tensor that others hold"
SHAPES = (
    "states are (N, *shape): a factor for each sample has to be of shape (N, 1, ..., 1), and sums over a sample keep "
    "N, as in x.flatten(1).sum(1)"
)
DTYPE = "keep the state's dtype: numbers of points are Python floats, and x.new_tensor(...) makes a tensor like x"
CONDITION = "a tensor is no single condition: use torch.where, or compare numbers of the points, as in then.lam > 0"
NUMPY = "compute with torch: predictions and states are tensors, and numbers of points are Python floats"

SINGULAR = r"division by zero|math domain error|expected a (positive|nonnegative)|cannot convert float|infinity"
CAUSES = (
    (RuntimeError, r"Boolean value of Tensor", CONDITION),
    (RuntimeError, r"in-?place|inplace|inference tensor", IN_PLACE),
    (RuntimeError, r"size of tensor|shape|must match|dimension|broadcast|invalid for input of size", SHAPES),
    (RuntimeError, r"expected .* but (found|got)|same dtype|dtype", DTYPE),
    ((TypeError, ValueError, RuntimeError), r"numpy|ndarray|only one element|converted to Scalar|ambiguous", NUMPY),
)
"""(class of the exception, a pattern of its message, the cause and cure), apart from singular ends and histories."""


class Diagnosis(NamedTuple):
    """Where a sampler raised an error ("in step 4 of 4, from t = 0.1 to sigma = 0"), and the likely cause, or ""."""

    place: str
    cause: str

    def __str__(self) -> str:
        return f"{self.place}; {self.cause}" if self.cause else self.place


def diagnosed(error: Exception, path: Path, last: Any) -> Diagnosis:
    """The step and the likely cause of an error.

    Args:
        error: what the sampler raised.
        path: the path of the run.
        last: the sampler's last request, (state, point) or a list of them; None if it has made none.
    """
    points = _points_of(error)
    step = _step(path, points, last)
    if step is None:
        place = "before its first evaluation" if last is None else f"after its evaluation at {_time(_last(last))}"
        ends = [path.points[0], path.points[-1]]
        cause = _cause(error, points or ends, is_first=last is None, is_last=False)
    else:
        now, then = path.points[step], path.points[step + 1]
        count = len(path.points) - 1
        place = f"in step {step + 1} of {count}, from {_time(now)} to {_time(then)}"
        cause = _cause(error, [now, then, *points], is_first=step == 0, is_last=step == count - 1)
    return Diagnosis(place, cause)


def _points_of(error: Exception) -> list[Point[Any]]:
    """The points in local variables of the functions that the exception passed through, the sampler's first."""
    return [value for local in _frames(error) for value in local.values() if isinstance(value, Point)]


def _frames(error: Exception) -> Iterator[dict[str, Any]]:
    """The local variables of the functions that the exception passed through."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_locals
        trace = trace.tb_next


def _step(path: Path, points: list[Point[Any]], last: Any) -> int | None:
    """The index of the step in which a sampler is, by the points that it has at hand, else by its last evaluation."""
    if path.is_free:
        return None
    places = {id(point): k for k, point in enumerate(path.points)}
    known = [places[id(point)] for point in points if id(point) in places]
    for first, second in pairwise(known):
        if abs(first - second) == 1:
            return min(first, second)
    point = None if last is None else _last(last)
    if point is None or np.ndim(point.time):
        return None
    sign = -1.0 if path.points[0].time > path.points[-1].time else 1.0
    grid = sign * np.array([float(each.time) for each in path.points])
    found = int(np.searchsorted(grid, sign * float(point.time), side="right")) - 1
    return min(max(found, 0), len(grid) - 2)


def _last(request: Any) -> Any:
    """The point of a request, the last of several."""
    return (request[-1] if isinstance(request, list) else request)[1]


def _time(point: Point[Any]) -> str:
    """A point by its native time."""
    if point.is_clean:
        return "sigma = 0"
    return f"t = {point.t:.6g}" if not np.ndim(point.t) else f"t = {np.min(point.t):.6g} to {np.max(point.t):.6g}"


def _cause(error: Exception, points: list[Point[Any]], *, is_first: bool, is_last: bool) -> str:
    """The likely cause and its cure; empty if it is not known."""
    text = str(error)
    if isinstance(error, ArithmeticError) or (isinstance(error, ValueError) and re.search(SINGULAR, text, re.I)):
        if any(point.is_pure_noise for point in points) and not (is_last and not is_first):
            return NOISE
        if any(point.is_clean for point in points):
            return CLEAN
        return UNBOUNDED if isinstance(error, OverflowError) else ""
    if isinstance(error, IndexError):
        return "; or ".join([HISTORY] * is_first + [LAST] * is_last)
    if is_first and (isinstance(error, KeyError | UnboundLocalError) or "NoneType" in text):
        return HISTORY
    return next((cause for kind, known, cause in CAUSES if isinstance(error, kind) and re.search(known, text)), "")
