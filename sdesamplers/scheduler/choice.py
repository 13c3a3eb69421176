"""The sampler that a scheduler is made for: which one, with which options, on which kind of grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..processes.sde import GaussianProcess
from ..registry.names import Preset
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.arguments import make_recipe
from ..sampling.recipe import Recipe
from ..sampling.request import Request
from .layout import Layout

REFUSED = {
    "unguided": "needs the unguided prediction beside the guided one, and a pipeline passes on the guided one alone; "
    "sds.sample(sds.from_pipeline(pipe), ...) gives it both",
    "log_density": "needs the model's density, which a diffusion pipeline does not have",
    "stationary": "runs on a density, not on a diffusion model",
}
"""Needs of samplers that a pipeline cannot meet, and what then."""


class Choice:
    """A sampler with what its user says of it; what is None is for the model to decide.

    Args:
        sampler: its name, or itself.
        words: of grid and noise, by the names of `Request`.
        options: its own.

    Attributes:
        name: of the sampler, as a configuration has it.
        spec: the sampler itself, once it is settled.
        is_free: whether it chooses its own steps.
    """

    spec: Sampler
    is_free: bool

    def __init__(self, sampler: str | Sampler, words: dict[str, Any], options: dict[str, Any]) -> None:
        self.sampler, self.words, self.options = sampler, words, options
        self.name = sampler.name if isinstance(sampler, Sampler) else sampler

    @classmethod
    def read(cls, sampler: Any, words: dict[str, Any], options: dict[str, Any]) -> Choice:
        """A choice of a name, a `Sampler`, or a `Recipe`, which has words and options too.

        Raises:
            UsageError: it is none of these, or a recipe with a grid of its own.
        """
        if isinstance(sampler, Recipe):
            if sampler.times or sampler.sigmas or sampler.start_time is not None:
                raise UsageError("this Recipe has a grid of its own; give a pipeline its timesteps= or sigmas= instead")
            words = {word: getattr(sampler, word) if value is None else value for word, value in words.items()}
            sampler, options = sampler.sampler, {**sampler.options, **options}
        if not isinstance(sampler, str | Sampler):
            raise UsageError(f"sampler must be a name, a Sampler or a Recipe, not {sampler!r}")
        return cls(sampler, words, options)

    def settle(self, process: GaussianProcess, adaptive: bool | None) -> None:
        """Find the sampler, and whether it is to choose its own steps, for a model of this process.

        Raises:
            UsageError: words that do not fit, or a sampler that needs more than a pipeline gives its scheduler.
        """
        spec = make_recipe(Request(self.sampler, 1, **self.words), process=process)[1]
        preset = default_registry().resolve(self.sampler) if isinstance(self.sampler, str) else Preset(spec)
        steered = any(name in spec.control for name in (*preset.options, *self.options))
        is_free = steered if adaptive is None else bool(adaptive)
        if is_free and not spec.adaptive:
            raise UsageError(f"{spec.name} does not choose its own steps, so adaptive=True does not apply to it")
        self._recipe(process, None if is_free else 1)
        for need in spec.needs:
            if need in REFUSED:
                raise UsageError(f"{spec.name} {REFUSED[need]}")
        self.spec, self.is_free = spec, is_free

    def _recipe(self, process: GaussianProcess, steps: int | None) -> Recipe:
        return make_recipe(Request(self.sampler, steps, **self.words, options=self.options), process=process)[0]

    def layout(self, process: GaussianProcess, steps: int | None, words: Mapping[str, Any]) -> Layout:
        """Its run on a grid of so many steps, or of the words that say otherwise."""
        sampler, options = ("euler", {}) if self.is_free else (self.sampler, self.options)
        request = Request(sampler, steps, **{**self.words, **words}, options=options)
        # One that chooses its steps starts where `sample` does; a makers' grid may begin in the middle.
        grid = make_recipe(request, process=process, end_to_end=self.is_free)[0]
        return Layout(process, self.spec, self._recipe(process, None) if self.is_free else grid, grid)

    @property
    def names_a_grid(self) -> bool:
        """Whether it says which grid to run on: `spacing=`, or the grid's label behind the sampler's."""
        name = self.sampler if isinstance(self.sampler, str) else ""
        label = " " in name and any(name.endswith(f" {grid}") for grid in default_registry().grid_names())
        return self.words["spacing"] is not None or label

    @property
    def is_distilled(self) -> bool:
        """Whether the sampler runs on the timesteps that a model was distilled at, if nothing else is said."""
        return self.spec.spacing == "distilled"


def option_names(sampler: str | Sampler | Recipe | None) -> set[str]:
    """The names of a sampler's options."""
    chosen = sampler.sampler if isinstance(sampler, Recipe) else sampler or "quality"
    spec = default_registry().resolve(chosen).sampler if isinstance(chosen, str) else chosen
    return set(getattr(spec, "options", ()))
