"""The sampler of a scheduler, with its options and its kind of grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..pretrained.conventions import Convention
from ..processes.sde import GaussianProcess
from ..registry.names import Preset
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.arguments import make_recipe, refers_to_table
from ..sampling.recipe import Recipe
from ..sampling.request import Request
from ..sampling.sampler_files import read_sampler
from ..sampling.table import TUNED, SolverTable, TableSet, choose, is_path, scale_of
from .layout import Layout

REFUSED = {
    "log_density": "needs the model's density, which a diffusion pipeline does not have",
    "stationary": "runs on a density, not on a diffusion model",
}
"""Sampler requirements that a pipeline cannot meet, and the end of the message that refuses them."""


class Choice:
    """A sampler with the arguments that its user has set; the model supplies those that are None.

    Args:
        sampler: a name or a `Sampler`; of a `TableChoice`, its tables.
        recipe_arguments: grid and noise, by the argument names of `Request`.
        options: the sampler's own options.

    Attributes:
        name: the sampler in a configuration: its name, or the dictionaries of several solver tables.
        spec: the `Sampler`; set by `settle`.
        is_free: True if the sampler chooses its own steps; set by `settle`.
        table: the solver table that the choice was read from, if any.
    """

    sampler: Any
    name: Any
    spec: Sampler
    is_free: bool
    table: SolverTable | None = None

    def __init__(self, sampler: str | Sampler, recipe_arguments: dict[str, Any], options: dict[str, Any]) -> None:
        self.sampler, self.recipe_arguments, self.options = sampler, recipe_arguments, options
        self.name = sampler.name if isinstance(sampler, Sampler) else sampler

    @classmethod
    def read(cls, sampler: Any, arguments: dict[str, Any], options: dict[str, Any]) -> Choice:
        """A choice from a name, a `Sampler`, a `Recipe`, whose own settings are the defaults, or solver tables.

        Solver tables are one or several `SolverTable` objects or their dictionaries. Recipes and tables may be given by
        the path of their file or folder, or their address on the Hub.

        Raises:
            ModelError: a Hub repository cannot be read.
            UsageError: `sampler` has another type, is a recipe with its own grid, or is tables that cannot be used
                together.
        """
        if isinstance(sampler, str) and sampler == TUNED:
            raise UsageError(
                f"{TUNED!r} refers to the solver tables that come with a loaded model, and a scheduler has no model; "
                "pass their folder, or hf://owner/name"
            )
        source = "this scheduler"
        if isinstance(sampler, str) and is_path(sampler):
            source, sampler = sampler, read_sampler(sampler)
        if isinstance(sampler, TableSet):
            source, sampler = sampler.owner, list(sampler.tables.values())
        if isinstance(sampler, list | tuple):
            tables = [each if isinstance(each, SolverTable) else SolverTable.from_dict(each) for each in sampler]
            if len(tables) != 1:
                return TableChoice(tables, arguments, options, source)
            sampler = tables[0]
        if isinstance(sampler, SolverTable):
            sampler.refuse_grid(arguments)
            preset = sampler.preset()
            grid = {"spacing": preset.spacing, "spacing_options": dict(preset.spacing_options), "final": preset.final}
            made = cls("table", {**arguments, **grid}, {**preset.options, **options})
            made.table = sampler
            return made
        if isinstance(sampler, Recipe):
            if sampler.times or sampler.sigmas or sampler.start_time is not None:
                raise UsageError("this Recipe has its own grid; pass timesteps= or sigmas= to the pipeline instead")
            arguments = {
                name: (getattr(sampler, name) or None) if value is None else value for name, value in arguments.items()
            }
            sampler, options = sampler.sampler, {**sampler.options, **options}
        if not isinstance(sampler, str | Sampler):
            raise UsageError(f"sampler must be a name, a Sampler, a Recipe or a SolverTable, not {sampler!r}")
        return cls(sampler, arguments, options)

    def check(self, convention: Convention) -> None:
        """Raise a UsageError if a solver table was computed for another process, prediction type or convention."""
        if self.table is not None:
            self.table.check_process(convention.process, convention.prediction, convention)

    def settle(self, process: GaussianProcess, adaptive: bool | None) -> None:
        """Find the sampler for a model of this process, and decide if it chooses its own steps.

        Raises:
            UsageError: invalid or conflicting arguments, or a sampler that needs more than a pipeline passes to its
                scheduler.
        """
        if isinstance(self.sampler, str):
            named = default_registry().resolve(self.sampler)
            if named.times or named.sigmas or named.start_time is not None:
                raise UsageError(
                    f"the recipe {self.sampler!r} has its own grid; pass timesteps= or sigmas= to the pipeline instead"
                )
        spec = make_recipe(Request(self.sampler, 1, **self.recipe_arguments), process=process)[1]
        preset = default_registry().resolve(self.sampler) if isinstance(self.sampler, str) else Preset(spec)
        steered = any(name in spec.control for name in (*preset.options, *self.options))
        is_free = steered if adaptive is None else bool(adaptive)
        if is_free and not spec.adaptive:
            raise UsageError(f"{spec.name} does not choose its own steps, so adaptive=True does not apply to it")
        recipe = self._recipe(process, None if is_free else 1)
        self.options = {name: recipe.options.get(name, value) for name, value in self.options.items()}  # as plain data
        for need in spec.needs:
            if need in REFUSED:
                raise UsageError(f"{spec.name} {REFUSED[need]}")
        self.spec, self.is_free = spec, is_free

    def for_steps(self, steps: int | None) -> Choice:
        """The choice for a run of this number of grid intervals; None if the number is unknown."""
        return self

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
    def is_table(self) -> bool:
        """True if the sampler is a solver table, which runs on its own grid only."""
        return self.sampler == "table" and bool(self.options.get("weights"))

    @property
    def is_distilled(self) -> bool:
        """True if the sampler's default grid is the timesteps at which the model was distilled."""
        return self.spec.spacing == "distilled"


class TableChoice(Choice):
    """Solver tables for several numbers of evaluations; the run's number of steps decides between them.

    Args:
        tables: one for each number of evaluations.
        recipe_arguments, options: as of `Choice`.
        source: the name of the tables in messages.

    Raises:
        UsageError: no tables, several for one number of evaluations, or for several guidance scales.
    """

    def __init__(
        self,
        tables: Sequence[SolverTable],
        recipe_arguments: dict[str, Any],
        options: dict[str, Any],
        source: str = "this scheduler",
    ) -> None:
        if not tables:
            raise UsageError("a list of solver tables must have at least one")
        scales = set(map(scale_of, tables))
        if len(scales) > 1:
            listed = ", ".join(f"{scale:g}" for scale in sorted(scales))
            raise UsageError(
                f"{source} has solver tables for guidance scales {listed}, "
                "and a pipeline does not pass its scale to its scheduler; name the files for one of them"
            )
        budgets = [table.nfe for table in tables]
        if twice := [nfe for nfe in budgets if budgets.count(nfe) > 1]:
            raise UsageError(f"{source} has several solver tables for {twice[0]} evaluations; pass one of them")
        self.tables, self.source = sorted(tables, key=lambda table: table.nfe), source
        self.choices = {table.nfe: Choice.read(table, recipe_arguments, options) for table in self.tables}
        super().__init__("table", recipe_arguments, options)
        self.sampler, self.name = tuple(self.tables), [table.as_dict() for table in self.tables]

    def check(self, convention: Convention) -> None:
        """The same for all tables."""
        for choice in self.choices.values():
            choice.check(convention)

    def settle(self, process: GaussianProcess, adaptive: bool | None) -> None:
        """Check all tables for a model of this process.

        Raises:
            UsageError: a table does not fit the process, or an argument does not fit solver tables.
        """
        for choice in self.choices.values():
            choice.settle(process, adaptive)
            self.spec, self.is_free = choice.spec, choice.is_free

    def for_steps(self, steps: int | None) -> Choice:
        """The choice of the table with this number of steps.

        Raises:
            UsageError: there is none, or the number is unknown.
        """
        if steps is None:
            listed = ", ".join(map(str, self.choices))
            raise UsageError(f"{self.source} has solver tables for {listed} evaluations; pass num_inference_steps")
        return self.choices[choose(self.tables, steps, self.source).nfe]


def option_names(sampler: Any) -> set[str]:
    """The names of a sampler's options; `sampler` is as in `Choice.read`, or None."""
    if isinstance(sampler, list | tuple) or refers_to_table(sampler) or (isinstance(sampler, str) and is_path(sampler)):
        return set()  # a path that is left here is one of tables
    chosen = sampler.sampler if isinstance(sampler, Recipe) else sampler or "quality"
    spec = default_registry().resolve(chosen).sampler if isinstance(chosen, str) else chosen
    return set(getattr(spec, "options", ()))
