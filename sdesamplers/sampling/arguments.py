"""The arguments of a call, checked and completed by the defaults of sampler, process and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ..checks import name_of, number
from ..errors import SdesamplersError, UsageError
from ..pretrained.hub_files import HubAccess
from ..processes.own_grid import OwnGrid
from ..processes.sde import SDE, GaussianProcess, starts_as_noise
from ..registry.names import Preset
from ..registry.options import check_options
from ..registry.plugin import NoiseSource, Registered, Sampler, Spacing
from ..registry.registry import default_registry
from .recipe import Recipe, chosen_grid, chosen_noise, registered_name
from .request import Request
from .runs import steps_for_budget
from .sampler_files import read_sampler
from .table import TUNED, SolverTable, TableSet, choose, is_path, scale_of, tables_at


def make_recipe(
    request: Request, *, process: SDE, shape: Sequence[int] = (1,), end_to_end: bool = False
) -> tuple[Recipe, Sampler]:
    """Check a call's sampler and grid, and fill in the arguments that are not given.

    Args:
        request: the arguments of the call.
        process: the model's process.
        shape: shape of one sample, for samplers whose number of evaluations depends on it.
        end_to_end: True if the default grid must cover the model's whole time range, as runs from data to noise
            require; the grids of a model's authors often do not.

    Raises:
        ModelError: the sampler is an address on the Hub that cannot be read.
        UsageError: an invalid name, number or combination.
    """
    request, source, description = opened(request), None, ""
    if isinstance(request.sampler, Recipe | Mapping):
        ran = request.sampler if isinstance(request.sampler, Recipe) else Recipe.from_dict(request.sampler)
        own = ran.own.get("sampler")
        preset = Preset(cast("Sampler", own)) if own else default_registry().resolve(ran.sampler)
        request, end_to_end = request.completed(ran.completed_by(preset), preset.sampler), False
        source, description = ran.source, ran.description
    table = table_for(request, process)
    if table is not None:
        source = table.facts.get("source")
        request = replace(request, sampler=table.preset(), steps=None, nfe=None)
    preset, counted_by = check_request(request)
    if counted_by is None:
        request = replace(request, **preset.grid)
        counted_by = request.counted_by
    if request.start_time is None and counted_by not in ("times", "sigmas"):
        request = replace(request, start_time=preset.start_time)
    require_grid(preset, counted_by)
    check_agreement(request, preset.sampler, counted_by)
    model_grid = None if end_to_end or request.start_time is not None else own_grid(process)
    if model_grid is not None and request.sampler == model_grid.kind and request.spacing is None:
        # The name of a diffusers class, on a model whose configuration is of that class, means that configuration.
        preset = replace(preset, spacing=None, spacing_options={}, final=None)
    recipe = complete(request, preset, process, model_grid, counted_by)
    if request.nfe is not None:
        recipe = replace(recipe, steps=steps_for_budget(process, recipe, preset.sampler, int(request.nfe), shape))
    return replace(recipe, source=source, description=description), preset.sampler


def opened(request: Request, guidance_scale: float = 1.0) -> Request:
    """A request with the recipe or the solver table in place of its path or address, or of a set of tables.

    Any other request is unchanged. If there are several tables for the number of evaluations, it is that for the
    guidance scale.

    Raises:
        ModelError: a Hub repository cannot be read.
        UsageError: no such file, neither a recipe nor a table, or no table for the number of evaluations.
    """
    sampler = request.sampler
    if isinstance(sampler, TableSet):
        table = choose(sampler.tables.values(), budget_of(request), sampler.owner, guidance_scale)
        return replace(request, sampler=table)
    if not isinstance(sampler, str) or not is_path(sampler):
        return request
    found = read_sampler(sampler)
    if isinstance(found, Recipe):
        return replace(request, sampler=found)
    return replace(request, sampler=choose(found, budget_of(request), sampler, guidance_scale))


def budget_of(request: Request) -> int | None:
    """The number of evaluations for which a solver table is chosen; None if the call has none."""
    counted_by = request.counted_by
    return None if counted_by not in ("steps", "nfe") else int(getattr(request, counted_by))


def table_for(request: Request, process: SDE, guidance_scale: float = 1.0) -> SolverTable | None:
    """The solver table that a request's sampler is or refers to, if any; see `sample`.

    If a folder has several tables for the number of evaluations, it is that for the guidance scale.

    Raises:
        UsageError: there is none for the number of evaluations, or the request changes the table's grid.
    """
    request = opened(request, guidance_scale)
    sampler = request.sampler
    if not refers_to_table(sampler):
        return None
    found = [sampler] if isinstance(sampler, SolverTable) else own_tables(process)
    owner = "this sampler" if isinstance(sampler, SolverTable) else "this model"
    table = choose(found, budget_of(request), owner, guidance_scale)
    table.refuse_grid(vars(request))
    return table


def refers_to_table(sampler: Any) -> bool:
    """True if a sampler is a solver table or several, or "tuned", the model's own."""
    return isinstance(sampler, SolverTable | TableSet) or (isinstance(sampler, str) and sampler == TUNED)


def own_tables(process: SDE) -> list[SolverTable]:
    """The solver tables that come with a model: those that the registry names for it, then those in its folder.

    Raises:
        ModelError: a Hub repository of tables cannot be read.
        UsageError: there are none, or a file is not a table.
    """
    if not isinstance(process, GaussianProcess) or not process.table_sources:
        raise UsageError(
            f"sampler {TUNED!r} is the model's own solver table, and this model has none; compute one with sds.tune or "
            "`sdesamplers tune`"
        )
    found: dict[tuple[int, float], SolverTable] = {}
    for source in process.table_sources:
        for table in tables_at(source, access=process.table_access):
            found.setdefault((table.nfe, scale_of(table)), table)
    return list(found.values())


def tables_at_hand(process: SDE) -> list[SolverTable]:
    """The solver tables that come with a model, as far as they can be read without the network; none if there are none.

    It is for descriptions of a model, which a damaged table must not prevent.
    """
    found: dict[tuple[int, float], SolverTable] = {}
    if not isinstance(process, GaussianProcess):
        return []
    access = replace(process.table_access or HubAccess(), local_files_only=True)
    for source in process.table_sources:
        try:
            tables = tables_at(source, access=access)
        except SdesamplersError:
            continue
        for table in tables:
            found.setdefault((table.nfe, scale_of(table)), table)
    return list(found.values())


def check_request(request: Request) -> tuple[Preset, str | None]:
    """The preset that a request's sampler refers to, and which of steps, nfe, times and sigmas is given, if any.

    Raises:
        UsageError: an argument of the wrong type, an unknown name, or more than one grid.
    """
    sampler: Any = request.sampler
    if isinstance(sampler, Preset):
        preset = sampler
    else:
        preset = default_registry().resolve(sampler) if isinstance(sampler, str) else Preset(sampler)
    if not isinstance(preset.sampler, Sampler):
        raise UsageError(f"sampler must be a name, a Sampler, a Recipe or a SolverTable, not {sampler!r}")
    for argument in ("spacing", "coordinates", "noise", "final"):
        text = getattr(request, argument)
        if text is not None and not isinstance(text, Spacing | NoiseSource):
            name_of(argument, text)
    check_options(request.options, preset.sampler.options, f"sampler {preset.sampler.name!r}")
    counted_by = request.counted_by
    for argument in ("spacing_options", "noise_options"):
        given = getattr(request, argument)
        if given is not None and not isinstance(given, Mapping):
            raise UsageError(f"{argument} must be a dictionary, not {given!r}")
    return preset, counted_by


def check_agreement(request: Request, spec: Sampler, counted_by: str | None) -> None:
    """Raise if arguments of a request contradict each other."""
    if request.start_time is not None:
        if counted_by in ("times", "sigmas"):
            raise UsageError(f"start_time and {counted_by} contradict each other: the grid's first entry is the start")
        number("start_time", request.start_time)
    if request.spacing is not None and not request.is_spaced:
        free = f"{spec.name} is adaptive: spacing= applies only together with steps= or nfe="
        listed = f"spacing and {counted_by} contradict each other: {counted_by} is the whole grid; pass one of them"
        raise UsageError(free if counted_by is None else listed)
    sigmas, final = request.sigmas, request.final
    if sigmas is not None and final is not None and len(sigmas) and (sigmas[-1] == 0) != (final == "zero"):
        raise UsageError(f"final={final!r} contradicts sigmas, whose last value is {sigmas[-1]}")


def complete(
    request: Request, preset: Preset, process: SDE, model_grid: OwnGrid | None, counted_by: str | None
) -> Recipe:
    """Complete a checked request with the defaults of the preset, the sampler, the model's own grid and the process."""
    spec, spacing, noise = preset.sampler, request.spacing, request.noise
    grid, own = chosen_grid(spacing or preset.spacing or preferred_spacing(spec, process, model_grid))
    kept = preset.spacing_options if spacing in (None, preset.spacing) else {}
    grid_options = check_options(
        {**own, **kept, **(request.spacing_options or {})}, grid.options, f"spacing {grid.name!r}"
    )
    source, own = chosen_noise(noise or preset.noise or "independent")
    kept = preset.noise_options if noise in (None, preset.noise) else {}
    noise_options = check_options(
        {**own, **kept, **(request.noise_options or {})}, source.options, f"noise {source.name!r}"
    )
    items: dict[str, Registered] = {"sampler": spec, "noise": source}
    if request.is_spaced:
        items["spacing"] = grid
    names = {field: registered_name(item) for field, item in items.items()}
    return Recipe(
        sampler=names["sampler"] or spec.name,
        options=fill_options(preset, request.options, counted_by),
        steps=None if request.steps is None else int(request.steps),
        spacing=(names["spacing"] or grid.name) if request.is_spaced else None,
        spacing_options=grid_options if request.is_spaced else {},
        times=None if request.times is None else numbers(request.times, "times"),
        sigmas=None if request.sigmas is None else numbers(request.sigmas, "sigmas"),
        coordinates=request.coordinates or preset.coordinates or preferred_coordinates(spec, process),
        noise=names["noise"] or source.name,
        final=one_of("final", request.final or preset.final or usual_final(grid.name, model_grid), ("zero", "min")),
        start_time=request.start_time,
        noise_options=noise_options,
        own={field: item for field, item in items.items() if names[field] is None},
    )


def require_grid(preset: Preset, counted_by: str | None) -> None:
    """Raise if a sampler needs a grid and neither the call nor the preset sets one."""
    if counted_by is None and not preset.grid and not preset.sampler.adaptive:
        name = preset.sampler.name
        raise UsageError(f"{name} needs steps=... (grid intervals) or nfe=... (a budget of model evaluations)")


def fill_options(preset: Preset, options: Mapping[str, Any], counted_by: str | None) -> dict[str, Any]:
    """The sampler's options: its defaults, overridden by the preset, then by the call.

    Options that control an adaptive sampler's steps are omitted on a fixed grid.

    Raises:
        UsageError: an invalid option, or an option of step control together with a fixed grid.
    """
    spec = preset.sampler
    chosen = check_options(options, spec.options, f"sampler {spec.name!r}")
    control = spec.control if counted_by is not None else ()
    conflicting = [name for name in chosen if name in control]
    if conflicting:
        raise UsageError(
            f"{spec.name} takes either {counted_by} (a fixed grid) or {', '.join(conflicting)} (adaptive steps), "
            "not both"
        )
    defaults = {option.name: option.default for option in spec.options.values()}
    merged = {**defaults, **preset.options, **chosen}
    return {name: value for name, value in merged.items() if name not in control}


def own_grid(process: SDE) -> OwnGrid | None:
    """The grid that the model's authors use; None if it is unknown."""
    return process.own_grid if isinstance(process, GaussianProcess) else None


def preferred_spacing(spec: Sampler, process: SDE, model_grid: OwnGrid | None = None) -> str:
    """The sampler's preferred spacing if it fits the process, else the model's own grid, else the process's spacing."""
    if spec.spacing is not None and isinstance(process, GaussianProcess):
        if spec.spacing == "distilled" or not starts_as_noise(process):
            return spec.spacing
    return process.preferred_spacing if model_grid is None else "own"


def usual_final(spacing: str, model_grid: OwnGrid | None) -> str:
    """The default `final` of a spacing: the end of the model's own grid if the run is on that grid, else "zero"."""
    is_own = spacing == "own" or (spacing == "distilled" and model_grid is not None and model_grid.is_distilled)
    return model_grid.final if is_own and model_grid is not None else "zero"


def preferred_coordinates(spec: Sampler, process: SDE) -> str:
    """The sampler's preferred coordinates if they exist for the process, else `flow` (for `ve`) or `native`."""
    if not isinstance(process, GaussianProcess):
        return "native"
    return "flow" if spec.coordinates == "ve" and starts_as_noise(process) else spec.coordinates


def one_of(argument: str, value: str, known: Sequence[str]) -> str:
    """Return `value`, or raise an error that lists the valid values."""
    if value not in known:
        raise UsageError(f"{argument} must be {' or '.join(repr(k) for k in known)}, not {value!r}")
    return value


def numbers(values: Any, argument: str) -> tuple[float, ...]:
    """A list of numbers as floats."""
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError):
        raise UsageError(f"{argument} must be a list of numbers, not {values!r}") from None
