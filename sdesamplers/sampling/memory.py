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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..path.noise import Noise
from ..path.path import Path
from ..path.points import Point
from ..path.prediction import Prediction, ScorePrediction
from ..processes.sde import GaussianProcess
from ..registry.plugin import Sampler
from .loop import Run
from .runs import start_run

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
    key = spec, repr(options), kinds, tuple(map(_numbers, path.points)), start.shape, start.dtype
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


MOST = 32
"""The number of results that are kept, because many runs have the same sampler and grid."""
_FOUND: OrderedDict[Any, Memory | None] = OrderedDict()
_LOCK = threading.Lock()


def _numbers(point: Point) -> tuple[float, ...]:
    """The numbers of a point of a grid, on which a sampler's operations depend."""
    return point.time, point.t, point.scale, *getattr(point, "native", ())  # a plain SDE has none


def _measured(spec: Sampler, path: Path, options: dict[str, Any], start: Tensor) -> Memory | None:
    def begin(x: Tensor, noise: Noise) -> Run:
        made = Path(path.process, path.points, noise=noise)
        return start_run(spec, x, made, options)

    make = Prediction if isinstance(path.process, GaussianProcess) else ScorePrediction
    try:  # samplers may treat states differently that a caller has edited
        plain, edited = (_needed(begin, make, start, edits) for edits in (False, True))
    except Exception:  # whatever an operation without values raises
        return None
    if len(plain) != len(edited):
        return None
    found = Memory.of([a | b for a, b in zip(plain, edited, strict=True)])
    return found if 2 * found.most <= len(plain) else None


class Untraceable(Exception):
    """A tensor whose sources are not known."""


class Sources(TorchDispatchMode):
    """A mode in which the sources of tensors are known: of an operation's output, all sources of its inputs.

    They are recorded for storages, so a view has the sources of its base, and writing to it adds to them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, int] = {}
        self._held: list[Tensor] = []  # so that no other storage can get the same address

    def new(self, like: Tensor, bits: int, dtype: torch.dtype | None = None) -> Tensor:
        """A new tensor without values, of the shape and by default the dtype of `like`."""
        made = torch.empty(like.shape, dtype=dtype or like.dtype, device="meta")
        self.replace(made, bits)
        return made

    def of(self, tensor: Tensor) -> int:
        """The sources of a tensor."""
        found = self._found.get(tensor.untyped_storage()._cdata)
        if found is None:
            if tensor.is_meta:  # it was made in another thread
                raise Untraceable
            return 0
        return found

    def add(self, tensor: Tensor, bits: int) -> None:
        """Add sources to a tensor's."""
        place = tensor.untyped_storage()._cdata
        if place not in self._found:
            self._held.append(tensor)
        self._found[place] = self._found.get(place, 0) | bits

    def replace(self, tensor: Tensor, bits: int) -> None:
        """Set the sources of a tensor that is overwritten; it must be the whole of its storage."""
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.numel() * tensor.element_size():
            raise Untraceable
        self.add(tensor, 0)
        self._found[storage._cdata] = bits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        bits, kwargs = 0, kwargs or {}
        for each in _tensors((*args, *kwargs.values())):
            bits |= self.of(each)
        if func in POINTWISE and (like := _larger(*args[:2])) is not None:
            result = args[0] if func._schema.is_mutable else torch.empty_like(like)
        else:
            result = func(*args, **kwargs)
        if func._schema.is_mutable:
            named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
            for argument in func._schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._add_to(named.get(argument.name), bits)
        self._add_to(result, bits)
        return result

    def _add_to(self, tensors: Any, bits: int) -> None:
        for each in _tensors((tensors,)):
            self.add(each, bits)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors of an operation's arguments or results, which may be in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


_ATEN = torch.ops.aten
POINTWISE = {_ATEN.add.Tensor, _ATEN.add_.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.mul_.Tensor}
"""The usual operations of samplers, whose shapes torch computes slowly for tensors without values."""


def _larger(a: Any, b: Any) -> Tensor | None:
    """The operand with the shape and dtype of a sum or a product; None if torch has to find them."""
    if not isinstance(a, Tensor) or not a.is_meta:
        a, b = b, a
    if not isinstance(a, Tensor) or not a.is_meta or not a.is_floating_point() or not a.is_contiguous():
        return None
    if isinstance(b, Tensor):
        same = b.dtype is a.dtype and b.shape == a.shape and b.is_contiguous()
        return a if same or (b.dim() == 0 and not b.is_complex() and a.dim() > 0) else None
    return a if isinstance(b, int | float) else None


def _needed(begin: Callable[[Tensor, Noise], Run], make: type[Prediction], like: Tensor, edits: bool) -> list[int]:
    """`Memory.needed` of a run in which no state is edited, or every one."""
    sources, drawn = Sources(), list[Tensor]()
    requests, before = list[int](), list[int]()  # the sources of each request and of the end; those known before each

    def draw(start: float, end: float, rows: Any = None) -> Tensor:
        drawn.append(sources.new(like, draw_bit(len(drawn)), torch.float32))
        return drawn[-1]

    with torch.inference_mode(False), torch.no_grad(), sources:
        run = begin(sources.new(like, START), draw)
        known = START
        try:
            request = next(run)
            while True:
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
            requests.append(sources.of(stop.value))
            before.append(known)
        finally:
            run.close()
    needed, following = [0] * len(before), 0
    for k in reversed(range(len(before))):
        needed[k] = following & before[k]
        following |= requests[k]
    return needed
