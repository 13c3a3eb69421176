"""`Recipe`: everything that determines a run but the model and the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from ..checks import name_of
from ..errors import UnknownNameError, UsageError
from ..public import public
from ..registry.plugin import NoiseSource, Registered, Spacing
from ..registry.registry import default_registry
from ..registry.shelf import Shelf


@public
@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run but the model and the seed; checked, with nothing left open.

    Attributes:
        sampler, options: the sampler's name and its options, defaults filled in.
        steps: grid intervals; None for an adaptive run or a given grid.
        spacing, spacing_options: the time grid.
        times, sigmas: the user's own grid instead.
        coordinates, noise, noise_options, final: as in `sample`.
        start_time: where a partly noised input stands on the model's clock; None for the prior.
        own: the sampler, spacing and noise source that are not registered, under these words.

    `sample`, `compare` and the others take a recipe in place of a sampler's name, and run it again.
    """

    sampler: str
    options: dict[str, Any]
    steps: int | None
    spacing: str | None
    spacing_options: dict[str, Any]
    times: tuple[float, ...] | None
    sigmas: tuple[float, ...] | None
    coordinates: str
    noise: str
    final: str
    start_time: float | None = None
    noise_options: dict[str, Any] = field(default_factory=dict)
    own: Mapping[str, Registered] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and metadata; fields that do not apply are left out."""
        return {k: v for k, v in vars(self).items() if k != "own" and v not in (None, {}, ())}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe of `as_dict`, also by way of JSON.

        Raises:
            UsageError: it has no sampler, or a field that recipes do not have.
        """
        known = [entry.name for entry in fields(cls) if entry.name != "own"]
        for key in data:
            if key not in known:
                raise UnknownNameError("field of a recipe", str(key), known, f" (known: {', '.join(known)})")
        if not isinstance(data.get("sampler"), str):
            raise UsageError(f"a recipe names its sampler, and this one has {data.get('sampler')!r}")
        empty: dict[str, Any] = {"options": {}, "spacing_options": {}, "noise_options": {}}
        open_: dict[str, Any] = {"coordinates": None, "noise": None, "final": None}
        return cls(**{**dict.fromkeys(known), **empty, **open_, **data})


def chosen_grid(spacing: str | Spacing) -> tuple[Spacing, dict[str, Any]]:
    """A spacing and the options that its name stands for."""
    if isinstance(spacing, Spacing):
        return spacing, {}
    return default_registry().grid(name_of("spacing", spacing, "a Spacing"))


def chosen_noise(noise: str | NoiseSource) -> tuple[NoiseSource, dict[str, Any]]:
    """A noise source and the options that its name stands for."""
    if isinstance(noise, NoiseSource):
        return noise, {}
    return default_registry().noise(name_of("noise", noise, "a NoiseSource"))


def registered_name(item: Registered) -> str | None:
    """The name that stands for a registered object: `dist:name` where its own is another's. None where none does."""
    registry = default_registry()
    shelves: dict[str, Shelf[Any]] = {
        "sampler": registry.samplers,
        "spacing": registry.spacings,
        "noise source": registry.noises,
    }
    return shelves[item.kind].name_of(item)


def spacing_of(recipe: Recipe) -> Spacing:
    """The spacing that a recipe means."""
    return chosen_grid(cast("Spacing | str", recipe.own.get("spacing") or recipe.spacing))[0]


def noise_of(recipe: Recipe) -> NoiseSource:
    """The noise source that a recipe means."""
    return chosen_noise(cast("NoiseSource | str", recipe.own.get("noise") or recipe.noise))[0]
