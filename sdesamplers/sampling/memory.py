"""What a sampler still depends on in the middle of a run, found by dry runs that follow the sources of every tensor.

A generator cannot be copied, but it can be run again with the predictions that it has received. Most samplers forget:
a multistep method depends on its last predictions, a one-step method on nothing but the state. If the predictions that
matter are known, a replay may receive zeros for all others, and nobody has to keep them.

`memory_of` finds them without values: the sampler runs on torch's meta device, and every operation passes the sources
of its inputs on to its outputs. A sampler that reads the value of a tensor (`item`, `numpy`, a comparison in an `if`)
raises an error there, since meta tensors have no values. It may then depend on everything, and its run is kept whole.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..path.noise import Noise
from ..path.path import Path
from ..path.points import Point
from ..path.prediction import Prediction, ScorePrediction
from ..path.transition import Draw
from ..processes.sde import GaussianProcess
from ..registry.plugin import Sampler
from .loop import Run
from .runs import start_run
from .sources import Sources, Untraceable

START = 1
"""The initial state's bit in a set of sources, which is a whole number with one bit for each source."""


def prediction_bit(k: int) -> int:
    """The bit of prediction k: its model output and the state that was evaluated."""
    return 1 << (3 * k + 1)


def requested_bit(k: int) -> int:
    """The bit of the state that was requested at evaluation k, if another one was evaluated (an edit)."""
    return 1 << (3 * k + 2)


def draw_bit(d: int) -> int:
    """The bit of draw d of the noise."""
    return 1 << (3 * d + 3)


@dataclass(frozen=True)
class Memory:
    """What a run depends on while it waits for prediction k, for each k.

    Attributes:
        needed: needed[k] is the set of the sources, out of those before evaluation k, of all that follows; k runs from
            0 to the number of evaluations.
        dropped: dropped[k] lists the predictions that are of no use from evaluation k + 1 on, k itself included.
        compared: the union of all sets, for `needs_requested`.
    """

    needed: Sequence[int]
    dropped: Sequence[Sequence[int]]
    compared: int

    @classmethod
    def of(cls, needed: Sequence[int]) -> Memory:
        """The memory of a run with these sets of sources."""
        dropped, kept = [], set[int]()
        for k in range(len(needed) - 1):
            kept.add(k)
            bits = needed[k + 1]
            useless = [j for j in sorted(kept) if not bits & (prediction_bit(j) | requested_bit(j))]
            kept.difference_update(useless)
            dropped.append(useless)
        return cls(needed, dropped, functools.reduce(operator.or_, needed, 0))

    @property
    def most(self) -> int:
        """The largest number of predictions that a run keeps."""
        kept, most = 0, 0
        for useless in self.dropped:
            kept += 1 - len(useless)
            most = max(most, kept)
        return most

    def needs_start(self, k: int) -> bool:
        """True if what follows evaluation k depends on the initial state."""
        return bool(self.needed[k] & START)

    def needs_requested(self, k: int) -> bool:
        """True if anything depends on the state requested at evaluation k although another one was evaluated."""
        return bool(self.compared & requested_bit(k))


def memory_of(spec: Sampler, path: Path, options: dict[str, Any], start: Tensor) -> Memory | None:
    """What a sampler's run from `start` (N, ...) over `path` depends on; None if its run has to be kept whole.

    It has to be if the sampler reads values of tensors (adaptive steps), if it requests several points at once, or if
    the predictions on which it depends, with their states, take more memory than all predictions without.
    """
    if path.is_free:
        return None
    process: Any = path.process
    kinds = type(process), type(getattr(process, "native", None))
    points = path.first_step, *map(_numbers, path.points)
    key = spec, repr(options), kinds, points, start.shape, start.dtype
    with _LOCK:
        if key in _FOUND:
            _FOUND.move_to_end(key)
            return _FOUND[key]
    found = _measured(spec, path, options, start)
    with _LOCK:
        _FOUND[key] = found
        if len(_FOUND) > MOST:
            _FOUND.popitem(last=False)
    return found


MOST = 128
"""The number of results that are kept, because many runs have the same sampler and grid; a server has many kinds."""
_FOUND: OrderedDict[Any, Memory | None] = OrderedDict()
_LOCK = threading.Lock()


def _numbers(point: Point) -> tuple[float, ...]:
    """The numbers of a point of a grid, on which a sampler's operations depend."""
    return point.time, point.t, point.scale, *getattr(point, "native", ())  # a plain SDE has none


def _measured(spec: Sampler, path: Path, options: dict[str, Any], start: Tensor) -> Memory | None:
    traced = _traced(spec, path, options, start)
    if traced is None:
        return None
    found = Memory.of(traced.needed)
    return found if 2 * found.most <= len(traced.needed) else None


class Traced(NamedTuple):
    """The sources of a run's tensors.

    Attributes:
        needed: as in `Memory`.
        means: the sources of the mean of each draw.
    """

    needed: list[int]
    means: list[int]

    def __or__(self, other: Traced) -> Traced:
        """The sources of either of two runs."""
        return Traced(*([a | b for a, b in zip(*pair, strict=True)] for pair in zip(self, other, strict=True)))


def sources_of_means(spec: Sampler, path: Path, options: dict[str, Any], start: Tensor) -> Sequence[int] | None:
    """The sources of the mean of each draw of a run, with the arguments of `memory_of`; None if they are unknown."""
    traced = None if path.is_free else _traced(spec, path, options, start)
    return None if traced is None else traced.means


def _traced(spec: Sampler, path: Path, options: dict[str, Any], start: Tensor) -> Traced | None:
    def begin(x: Tensor, noise: Noise) -> tuple[Run, list[Draw]]:
        made = Path(path.process, path.points, noise=noise, first_step=path.first_step)
        watched: list[Draw] = []
        made.ledger.watched = watched
        return start_run(spec, x, made, options), watched

    make = Prediction if isinstance(path.process, GaussianProcess) else ScorePrediction
    try:  # samplers may treat states differently that a caller has edited
        return _needed(begin, make, start, False) | _needed(begin, make, start, True)
    except Exception:  # whatever an operation without values raises
        return None


def _needed(
    begin: Callable[[Tensor, Noise], tuple[Run, list[Draw]]], make: type[Prediction], like: Tensor, edits: bool
) -> Traced:
    """The sources of a run in which no state is edited, or every one."""
    sources, drawn = Sources(), list[Tensor]()
    means, requests, before = (
        list[int](),
        list[int](),
        list[int](),
    )  # the sources of each request and of the end; those known before each

    def draw(start: float, end: float, rows: Any = None) -> Tensor:
        drawn.append(sources.new(like, draw_bit(len(drawn)), torch.float32))
        return drawn[-1]

    def note() -> None:
        means.extend(sources.of(each.mean) for each in watched)
        watched.clear()

    with torch.inference_mode(False), torch.no_grad(), sources:
        run, watched = begin(sources.new(like, START), draw)
        known = START
        try:
            request = next(run)
            while True:
                note()
                if isinstance(request, list) or request[1].rows is not None:
                    raise Untraceable
                state, point = request
                k = len(requests)
                requests.append(sources.of(state))
                known |= sum(map(draw_bit, range(len(drawn))))
                before.append(known)
                known |= prediction_bit(k) | requested_bit(k)
                sources.replace(state, requested_bit(k) if edits else prediction_bit(k))
                evaluated = sources.new(state, prediction_bit(k)) if edits else state
                prediction = make(evaluated, point, sources.new(state, prediction_bit(k)), "v")
                prediction.unguided = make(evaluated, point, sources.new(state, prediction_bit(k)), "v")
                prediction.log_density = sources.new(state.flatten(1)[:, 0], prediction_bit(k))
                request = run.send(prediction)
        except StopIteration as stop:
            note()
            requests.append(sources.of(stop.value))
            before.append(known)
        finally:
            run.close()
    needed, following = [0] * len(before), 0
    for k in reversed(range(len(before))):
        needed[k] = following & before[k]
        following |= requests[k]
    return Traced(needed, means)
