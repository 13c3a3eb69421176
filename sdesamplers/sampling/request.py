"""What a call asks for, as it was given: which sampler on which grid (`Request`), and how it is run (`Conduct`).

`sample`, `encode`, `log_likelihood` and the others spell their keywords out for those who call them; below their first
line they hand these on. `make_recipe` checks a request and fills in what it leaves open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ..checks import flag, function, number, shown, whole
from ..errors import UsageError
from ..registry.plugin import NoiseSource, Sampler, Spacing
from .loop import Callback, Flag
from .recipe import Recipe

SamplerLike = str | Sampler | Recipe | Mapping[str, Any]
"""What names a sampler: a name, a `Sampler`, a `Recipe`, or what its `as_dict` gives."""


@dataclass(frozen=True)
class Request:
    """A sampler and its grid; see `sample` for the attributes. None is what a call leaves open."""

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
        """Which of steps, nfe, times and sigmas is given.

        Raises:
            UsageError: more than one is, or a count is not a whole number.
        """
        given = [word for word in GRID if getattr(self, word) is not None]
        if len(given) > 1:
            raise UsageError(f"give one of steps, nfe, times and sigmas, not {' and '.join(given)}")
        for word in ("steps", "nfe"):
            if getattr(self, word) is not None:
                whole(word, getattr(self, word))
        return given[0] if given else None

    def given(self) -> dict[str, Any]:
        """The words that are not None, but the sampler and its options."""
        words = {word: value for word, value in vars(self).items() if word not in ("sampler", "options")}
        return {word: value for word, value in words.items() if value is not None}

    @property
    def is_spaced(self) -> bool:
        """Whether a spacing lays the grid out, for so many steps or evaluations."""
        return self.steps is not None or self.nfe is not None

    def completed(self, recipe: Recipe, spec: Sampler) -> Request:
        """This request of a recipe, with the recipe's words in place of those left open; `own` objects for their names.

        A grid of the call's takes the place of the recipe's, and options that steer steps of its own fall away.
        """
        words = dict(vars(self))
        if all(words[word] is None for word in GRID):
            words |= {word: getattr(recipe, word) for word in GRID if word != "nfe"}
        listed = words["times"] is not None or words["sigmas"] is not None
        spaced = words["steps"] is not None or words["nfe"] is not None
        for word, applies in (("spacing", spaced), ("noise", True)):
            if applies and words[word] is None:
                words[word] = recipe.own.get(word) or getattr(recipe, word)
                words[f"{word}_options"] = {**getattr(recipe, f"{word}_options"), **(words[f"{word}_options"] or {})}
        words["coordinates"] = words["coordinates"] or recipe.coordinates
        if not listed:  # whose ends say both
            words["final"] = words["final"] or recipe.final
            words["start_time"] = recipe.start_time if words["start_time"] is None else words["start_time"]
        control = getattr(spec, "control", ()) if listed or spaced else ()
        kept = {name: value for name, value in recipe.options.items() if name not in control}
        return Request(**{**words, "sampler": spec, "options": {**kept, **self.options}})


GRID = ("steps", "nfe", "times", "sigmas")


@dataclass(frozen=True)
class Conduct:
    """How a run is carried out, whatever is run; see `sample` for the attributes.

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
        object.__setattr__(self, "guidance_scale", number("guidance_scale", self.guidance_scale))  # NumPy's is a float
        function("callback", self.callback, "an Event")
        cancel, dtype = self.cancel, self.dtype
        if cancel is not None and (isinstance(cancel, type) or not callable(getattr(cancel, "is_set", None))):
            raise UsageError(f"cancel must be a threading.Event, or have its is_set(), not {shown(cancel)}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in (torch.float32, torch.float64)):
            raise UsageError(
                f"dtype is that of the state and must be torch.float32 or torch.float64, not {shown(dtype)}"
            )
        for word in ("trajectory", "log_probs", "check_finite", "gradients"):
            object.__setattr__(self, word, flag(word, getattr(self, word)))

    def with_progress(self, advance: Callback | None) -> Conduct:
        """The same, with `advance` called with an `Event` before each evaluation, beside `callback`."""
        callback = self.callback
        if advance is None or callback is None:
            return self if advance is None else replace(self, callback=advance)

        def both(event: Any) -> None:
            callback(event)
            advance(event)

        return replace(self, callback=both)


def sorted_words(sampler: SamplerLike, words: Mapping[str, Any]) -> tuple[Request, Conduct, int]:
    """The keywords of `sample` as a request, a conduct and a seed; what is none of them is an option of the sampler."""
    grid, how = ({entry.name for entry in fields(kind)} - {"sampler", "options"} for kind in (Request, Conduct))
    options = {word: value for word, value in words.items() if word not in grid | how | {"seed"}}
    request = Request(sampler, options=options, **{word: value for word, value in words.items() if word in grid})
    conduct = Conduct(**{word: value for word, value in words.items() if word in how})
    return request, conduct, words.get("seed", 0)


def batches(count: int, batch_size: int | None) -> Iterator[slice]:
    """The rows of each batch: all at once by default.

    Raises:
        UsageError: the batch size is not a whole number, 1 or more.
    """
    size = whole("batch_size", count if batch_size is None else batch_size)
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
