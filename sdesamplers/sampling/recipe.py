"""`Recipe`: everything that determines a run except the model and the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from ..checks import name_of
from ..errors import UnknownNameError, UsageError
from ..html import facts_table, joined
from ..public import public
from ..registry.plugin import NoiseSource, Registered, Spacing
from ..registry.registry import default_registry
from ..registry.shelf import Shelf


@public
@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run except the model and the seed; checked and complete.

    `sample`, `compare` and the other functions that take a sampler's name accept a recipe in its place, and repeat it.

    Attributes:
        sampler, options: the sampler's name and its options, including defaults.
        steps: number of grid intervals; None for an adaptive run or an explicit grid.
        spacing, spacing_options: the time grid.
        times, sigmas: an explicit grid instead.
        coordinates, noise, noise_options, final: as in `sample`.
        start_time: native time of a partly noised input; None for a run that starts from the prior.
        own: the unregistered sampler, spacing and noise source, if any, by the keys "sampler", "spacing" and "noise".
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

    def _repr_html_(self) -> str:
        """For notebooks: a table of the fields that apply."""
        facts = {k: joined(v) if isinstance(v, dict) else v for k, v in self.as_dict().items()}
        return facts_table("Recipe", facts)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and metadata; fields that do not apply are omitted."""
        return {k: v for k, v in vars(self).items() if k != "own" and v not in (None, {}, ())}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe of a dictionary from `as_dict`, which may have been stored as JSON.

        Raises:
            UsageError: the dictionary has no sampler, or a field that recipes do not have.
        """
        known = [entry.name for entry in fields(cls) if entry.name != "own"]
        for key in data:
            if key not in known:
                raise UnknownNameError("field of a recipe", str(key), known, f" (known: {', '.join(known)})")
        if not isinstance(data.get("sampler"), str):
            raise UsageError(f"a recipe's sampler must be a name, not {data.get('sampler')!r}")
        empty: dict[str, Any] = {"options": {}, "spacing_options": {}, "noise_options": {}}
        open_: dict[str, Any] = {"coordinates": None, "noise": None, "final": None}
        return cls(**{**dict.fromkeys(known), **empty, **open_, **data})


def chosen_grid(spacing: str | Spacing) -> tuple[Spacing, dict[str, Any]]:
    """A spacing and the options that its name implies."""
    if isinstance(spacing, Spacing):
        return spacing, {}
    return default_registry().grid(name_of("spacing", spacing, "a Spacing"))


def chosen_noise(noise: str | NoiseSource) -> tuple[NoiseSource, dict[str, Any]]:
    """A noise source and the options that its name implies."""
    if isinstance(noise, NoiseSource):
        return noise, {}
    return default_registry().noise(name_of("noise", noise, "a NoiseSource"))


def registered_name(item: Registered) -> str | None:
    """The name of a registered object: `dist:name` if another object has its plain name; None if not registered."""
    registry = default_registry()
    shelves: dict[str, Shelf[Any]] = {
        "sampler": registry.samplers,
        "spacing": registry.spacings,
        "noise source": registry.noises,
    }
    return shelves[item.kind].name_of(item)


def spacing_of(recipe: Recipe) -> Spacing:
    """The spacing of a recipe."""
    return chosen_grid(cast("Spacing | str", recipe.own.get("spacing") or recipe.spacing))[0]


def noise_of(recipe: Recipe) -> NoiseSource:
    """The noise source of a recipe."""
    return chosen_noise(cast("NoiseSource | str", recipe.own.get("noise") or recipe.noise))[0]
