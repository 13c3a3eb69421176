"""The sampler of a scheduler, with its options and its kind of grid."""

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
from ..sampling.table import SolverTable, is_path
from .layout import Layout

REFUSED = {
    "unguided": "needs the unguided prediction as well as the guided one, and a pipeline passes only the guided one; "
    "sds.sample(sds.from_pipeline(pipe), ...) provides both",
    "log_density": "needs the model's density, which a diffusion pipeline does not have",
    "stationary": "runs on a density, not on a diffusion model",
}
"""Sampler requirements that a pipeline cannot meet, and the end of the message that refuses them."""


class Choice:
    """A sampler with the arguments that its user has set; the model supplies those that are None.

    Args:
        sampler: a name or a `Sampler`.
        recipe_arguments: grid and noise, by the argument names of `Request`.
        options: the sampler's own options.

    Attributes:
        name: the sampler's name in a configuration.
        spec: the `Sampler`; set by `settle`.
        is_free: True if the sampler chooses its own steps; set by `settle`.
    """

    spec: Sampler
    is_free: bool

    def __init__(self, sampler: str | Sampler, recipe_arguments: dict[str, Any], options: dict[str, Any]) -> None:
        self.sampler, self.recipe_arguments, self.options = sampler, recipe_arguments, options
        self.name = sampler.name if isinstance(sampler, Sampler) else sampler

    @classmethod
    def read(cls, sampler: Any, arguments: dict[str, Any], options: dict[str, Any]) -> Choice:
        """A choice from a name, a `Sampler`, a solver table, or a `Recipe`, whose own settings are the defaults.

        Raises:
            UsageError: `sampler` has another type, or is a recipe with its own grid.
        """
        if isinstance(sampler, str) and is_path(sampler):
            sampler = SolverTable.load(sampler)
        if isinstance(sampler, SolverTable):
            sampler.refuse_grid(arguments)
            preset = sampler.preset()
            grid = {"spacing": preset.spacing, "spacing_options": dict(preset.spacing_options), "final": preset.final}
            return cls("table", {**arguments, **grid}, {**preset.options, **options})
        if isinstance(sampler, Recipe):
            if sampler.times or sampler.sigmas or sampler.start_time is not None:
                raise UsageError("this Recipe has its own grid; pass timesteps= or sigmas= to the pipeline instead")
            arguments = {name: getattr(sampler, name) if value is None else value for name, value in arguments.items()}
            sampler, options = sampler.sampler, {**sampler.options, **options}
        if not isinstance(sampler, str | Sampler):
            raise UsageError(f"sampler must be a name, a Sampler, a Recipe or a SolverTable, not {sampler!r}")
        return cls(sampler, arguments, options)

    def settle(self, process: GaussianProcess, adaptive: bool | None) -> None:
        """Find the sampler for a model of this process, and decide if it chooses its own steps.

        Raises:
            UsageError: invalid or conflicting arguments, or a sampler that needs more than a pipeline passes to its
                scheduler.
        """
        spec = make_recipe(Request(self.sampler, 1, **self.recipe_arguments), process=process)[1]
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
        request = Request(self.sampler, steps, **self.recipe_arguments, options=self.options)
        return make_recipe(request, process=process)[0]

    def layout(self, process: GaussianProcess, steps: int | None, arguments: Mapping[str, Any]) -> Layout:
        """The layout of a run on a grid of `steps` steps; `arguments` override the recipe's own."""
        sampler, options = ("euler", {}) if self.is_free else (self.sampler, self.options)
        request = Request(sampler, steps, **{**self.recipe_arguments, **arguments}, options=options)
        # A sampler that chooses its own steps starts where `sample` starts; the grid of the model's authors may begin
        # in the middle.
        grid = make_recipe(request, process=process, end_to_end=self.is_free)[0]
        return Layout(process, self.spec, self._recipe(process, None) if self.is_free else grid, grid)

    @property
    def names_a_grid(self) -> bool:
        """True if the caller has chosen the grid: by `spacing=`, or by a grid label after the sampler's name."""
        name = self.sampler if isinstance(self.sampler, str) else ""
        label = " " in name and any(name.endswith(f" {grid}") for grid in default_registry().grid_names())
        return self.recipe_arguments["spacing"] is not None or label

    @property
    def is_distilled(self) -> bool:
        """True if the sampler's default grid is the timesteps at which the model was distilled."""
        return self.spec.spacing == "distilled"


def option_names(sampler: str | Sampler | Recipe | SolverTable | None) -> set[str]:
    """The names of a sampler's options."""
    if isinstance(sampler, SolverTable) or (isinstance(sampler, str) and is_path(sampler)):
        return set()
    chosen = sampler.sampler if isinstance(sampler, Recipe) else sampler or "quality"
    spec = default_registry().resolve(chosen).sampler if isinstance(chosen, str) else chosen
    return set(getattr(spec, "options", ()))
