"""The arguments of a call, as passed: the sampler and its grid (`Request`), and how it is run (`Conduct`).

`sample`, `encode`, `log_likelihood` and similar functions list their keyword arguments explicitly for their users, and
pass them on in these two classes. `make_recipe` checks a request and fills in the arguments that are not given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ..checks import flag, function, number, shown, whole
from ..errors import UsageError
from ..registry.names import Preset
from ..registry.plugin import NoiseSource, Sampler, Spacing
from .loop import Callback, Flag
from .recipe import Recipe
from .table import SolverTable, TableSet

SamplerLike = str | Sampler | Recipe | SolverTable | TableSet | Preset | Mapping[str, Any]
"""A sampler's name, a `Sampler`, a `Recipe` or the dictionary from its `as_dict`, a `SolverTable` or several, or a
`Preset`."""


@dataclass(frozen=True)
class Request:
    """A sampler and its grid; see `sample` for the attributes. None means not given."""

    sampler: SamplerLike
    steps: int | None = None
    nfe: int | None = None
    spacing: str | Spacing | None = None
    spacing_options: Mapping[str, Any] | None = None
    times: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    coordinates: str | None = None
    noise: str | NoiseSource | None = None
    noise_options: Mapping[str, Any] | None = None
    final: str | None = None
    start_time: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counted_by(self) -> str | None:
        """Which of steps, nfe, times and sigmas is given; None if the sampler is to choose its own steps.

        Raises:
            UsageError: more than one is given, or a count is not a whole number.
        """
        given = [name for name in GRID if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"pass one of steps, nfe, times and sigmas, not {' and '.join(given)}")
        for name in ("steps", "nfe"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))
        return given[0] if given else None

    def given(self) -> dict[str, Any]:
        """The arguments that are not None, except the sampler and its options."""
        arguments = {name: value for name, value in vars(self).items() if name not in ("sampler", "options")}
        return {name: value for name, value in arguments.items() if value is not None}

    @property
    def is_spaced(self) -> bool:
        """True if a spacing creates the grid, for a number of steps or evaluations."""
        return self.steps is not None or self.nfe is not None

    def completed(self, recipe: Recipe, spec: Sampler) -> Request:
        """This request with the arguments that are not given taken from `recipe`, including its `own` objects.

        If the call sets a grid, it replaces the recipe's grid, and options that control adaptive steps are dropped.
        """
        arguments = dict(vars(self))
        if all(arguments[name] is None for name in GRID):
            arguments |= {name: getattr(recipe, name) for name in GRID if name != "nfe"}
        listed = arguments["times"] is not None or arguments["sigmas"] is not None
        spaced = arguments["steps"] is not None or arguments["nfe"] is not None
        for name, applies in (("spacing", spaced), ("noise", True)):
            if applies and arguments[name] is None:
                options = f"{name}_options"
                arguments[name] = recipe.own.get(name) or getattr(recipe, name)
                arguments[options] = {**getattr(recipe, options), **(arguments[options] or {})}
        arguments["coordinates"] = arguments["coordinates"] or recipe.coordinates
        if not listed:  # an explicit grid determines both ends itself
            arguments["final"] = arguments["final"] or recipe.final
            start_time = arguments["start_time"]
            arguments["start_time"] = recipe.start_time if start_time is None else start_time
        control = getattr(spec, "control", ()) if listed or spaced else ()
        kept = {name: value for name, value in recipe.options.items() if name not in control}
        return Request(**{**arguments, "sampler": spec, "options": {**kept, **self.options}})


GRID = ("steps", "nfe", "times", "sigmas")


@dataclass(frozen=True)
class Conduct:
    """How a run is carried out, independent of the sampler; see `sample` for the attributes.

    Raises:
        UsageError: an argument of the wrong type.
    """

    guidance_scale: float = 1.0
    callback: Callback | None = None
    cancel: Flag | None = None
    trajectory: bool = False
    log_probs: bool = False
    check_finite: bool = True
    gradients: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_scale", number("guidance_scale", self.guidance_scale))  # from NumPy to float
        function("callback", self.callback, "an Event")
        cancel, dtype = self.cancel, self.dtype
        if cancel is not None and (isinstance(cancel, type) or not callable(getattr(cancel, "is_set", None))):
            raise UsageError(f"cancel must be a threading.Event or have a method is_set(), not {shown(cancel)}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in (torch.float32, torch.float64)):
            raise UsageError(
                f"dtype is the dtype of the state and must be torch.float32 or torch.float64, not {shown(dtype)}"
            )
        for name in ("trajectory", "log_probs", "check_finite", "gradients"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))

    def with_progress(self, advance: Callback | None) -> Conduct:
        """A copy that also calls `advance` with an `Event` before each evaluation, after `callback`."""
        callback = self.callback
        if advance is None or callback is None:
            return self if advance is None else replace(self, callback=advance)

        def both(event: Any) -> None:
            callback(event)
            advance(event)

        return replace(self, callback=both)


REQUEST_FIELDS, CONDUCT_FIELDS = (
    frozenset(entry.name for entry in fields(kind)) - {"sampler", "options"} for kind in (Request, Conduct)
)
"""The keyword arguments of `sample` that a `Request` and a `Conduct` hold."""


def split_arguments(sampler: SamplerLike, kwargs: Mapping[str, Any]) -> tuple[Request, Conduct, int]:
    """Keyword arguments of `sample` as (request, conduct, seed); all other arguments are options of the sampler."""
    others = REQUEST_FIELDS | CONDUCT_FIELDS | {"seed"}
    options = {name: value for name, value in kwargs.items() if name not in others}
    grid = {name: value for name, value in kwargs.items() if name in REQUEST_FIELDS}
    request = Request(sampler, options=options, **grid)
    conduct = Conduct(**{name: value for name, value in kwargs.items() if name in CONDUCT_FIELDS})
    return request, conduct, kwargs.get("seed", 0)


def batches(count: int, batch_size: int | None) -> Iterator[slice]:
    """The rows of each batch; a single batch by default.

    Raises:
        UsageError: the batch size is not a whole number of at least 1.
    """
    size = whole("batch_size", count if batch_size is None else batch_size)
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
