"""A call's arguments, checked and completed by the defaults of sampler, process and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ..checks import name_of, number
from ..errors import UsageError
from ..processes.own_grid import OwnGrid
from ..processes.sde import SDE, GaussianProcess, starts_as_noise
from ..registry.names import Preset
from ..registry.options import check_options
from ..registry.plugin import NoiseSource, Registered, Sampler, Spacing
from ..registry.registry import default_registry
from .recipe import Recipe, chosen_grid, chosen_noise, registered_name
from .request import Request
from .runs import steps_for_budget


def make_recipe(
    request: Request, *, process: SDE, shape: Sequence[int] = (1,), end_to_end: bool = False
) -> tuple[Recipe, Sampler]:
    """Check a call's choice of a sampler and a grid, and fill in what it leaves open.

    Args:
        request: what the call asks for.
        process: the model's.
        shape: of one sample, for samplers whose evaluations depend on it.
        end_to_end: whether the default grid must reach from one end of the model's time to the other, as runs from
            data to noise must; makers' own grids often do not.

    Raises:
        UsageError: a name, number or combination that cannot be run.
    """
    if isinstance(request.sampler, Recipe | Mapping):
        ran = request.sampler if isinstance(request.sampler, Recipe) else Recipe.from_dict(request.sampler)
        spec = ran.own.get("sampler") or default_registry().resolve(ran.sampler).sampler
        request, end_to_end = request.completed(ran, cast("Sampler", spec)), False
    preset, counted_by = check_request(request)
    if counted_by is None and preset.steps is not None:
        request, counted_by = replace(request, steps=preset.steps), "steps"
    require_grid(preset, counted_by)
    check_agreement(request, preset.sampler, counted_by)
    makers = None if end_to_end or request.start_time is not None else own_grid(process)
    if makers is not None and request.sampler == makers.kind and request.spacing is None:
        # A class's name on a model whose configuration is of that class is that configuration.
        preset = replace(preset, spacing=None, spacing_options={}, final=None)
    recipe = complete(request, preset, process, makers, counted_by)
    if request.nfe is not None:
        recipe = replace(recipe, steps=steps_for_budget(process, recipe, preset.sampler, int(request.nfe), shape))
    return recipe, preset.sampler


def check_request(request: Request) -> tuple[Preset, str | None]:
    """What a request's sampler stands for, and which of steps, nfe, times and sigmas it gives.

    Raises:
        UsageError: an argument of the wrong type, an unknown name, or more than one grid.
    """
    sampler = request.sampler
    preset = default_registry().resolve(sampler) if isinstance(sampler, str) else Preset(cast("Sampler", sampler))
    if not isinstance(preset.sampler, Sampler):
        raise UsageError(f"sampler must be a name, a Sampler or a Recipe, not {sampler!r}")
    for word in ("spacing", "coordinates", "noise", "final"):
        text = getattr(request, word)
        if text is not None and not isinstance(text, Spacing | NoiseSource):
            name_of(word, text)
    check_options(request.options, preset.sampler.options, f"sampler {preset.sampler.name!r}")
    counted_by = request.counted_by
    for word in ("spacing_options", "noise_options"):
        given = getattr(request, word)
        if given is not None and not isinstance(given, Mapping):
            raise UsageError(f"{word} must be a dictionary, not {given!r}")
    return preset, counted_by


def check_agreement(request: Request, spec: Sampler, counted_by: str | None) -> None:
    """Raise where the parts of a request contradict each other."""
    if request.start_time is not None:
        if counted_by in ("times", "sigmas"):
            raise UsageError(f"start_time and {counted_by} contradict each other: the grid's first entry is the start")
        number("start_time", request.start_time)
    if request.spacing is not None and not request.is_spaced:
        free = f"{spec.name} chooses its own steps unless steps= or nfe= is given, so that it takes no spacing"
        raise UsageError(free if counted_by is None else f"spacing and {counted_by} contradict each other")
    sigmas, final = request.sigmas, request.final
    if sigmas is not None and final is not None and len(sigmas) and (sigmas[-1] == 0) != (final == "zero"):
        raise UsageError(f"final={final!r} contradicts sigmas, whose last is {sigmas[-1]}")


def complete(request: Request, preset: Preset, process: SDE, makers: OwnGrid | None, counted_by: str | None) -> Recipe:
    """A checked request with the defaults of preset, sampler, makers and process."""
    spec, spacing, noise = preset.sampler, request.spacing, request.noise
    grid, own = chosen_grid(spacing or preset.spacing or preferred_spacing(spec, process, makers))
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
    names = {word: registered_name(item) for word, item in items.items()}
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
        final=one_of("final", request.final or preset.final or usual_final(grid.name, makers), ("zero", "min")),
        start_time=request.start_time,
        noise_options=noise_options,
        own={word: item for word, item in items.items() if names[word] is None},
    )


def require_grid(preset: Preset, counted_by: str | None) -> None:
    """Raise where a sampler needs a grid and neither the call nor the preset gives one."""
    if counted_by is None and preset.steps is None and not preset.sampler.adaptive:
        name = preset.sampler.name
        raise UsageError(f"{name} needs steps=... (grid intervals) or nfe=... (a budget of model evaluations)")


def fill_options(preset: Preset, options: Mapping[str, Any], counted_by: str | None) -> dict[str, Any]:
    """The sampler's options: its defaults, under the preset's, under the call's. Step control goes with free steps."""
    spec = preset.sampler
    chosen = check_options(options, spec.options, f"sampler {spec.name!r}")
    control = spec.control if counted_by is not None else ()
    stray = [name for name in chosen if name in control]
    if stray:
        raise UsageError(
            f"{spec.name} takes either {counted_by} (a fixed grid) or {', '.join(stray)} (its own steps), not both"
        )
    defaults = {option.name: option.default for option in spec.options.values()}
    merged = {**defaults, **preset.options, **chosen}
    return {name: value for name, value in merged.items() if name not in control}


def own_grid(process: SDE) -> OwnGrid | None:
    """The grid of the model's makers, where it is known."""
    return process.own_grid if isinstance(process, GaussianProcess) else None


def preferred_spacing(spec: Sampler, process: SDE, makers: OwnGrid | None = None) -> str:
    """The sampler's own choice of grid where the process can have it, else the makers', else the process's."""
    if spec.spacing is not None and isinstance(process, GaussianProcess):
        if spec.spacing == "distilled" or not starts_as_noise(process):
            return spec.spacing
    return process.preferred_spacing if makers is None else "own"


def usual_final(spacing: str, makers: OwnGrid | None) -> str:
    """Where a run ends on a grid: where the makers end theirs, on theirs."""
    theirs = spacing == "own" or (spacing == "distilled" and makers is not None and makers.is_distilled)
    return makers.final if theirs and makers is not None else "zero"


def preferred_coordinates(spec: Sampler, process: SDE) -> str:
    """The sampler's own choice of coordinates where the process can have them."""
    if not isinstance(process, GaussianProcess):
        return "native"
    return "flow" if spec.coordinates == "ve" and starts_as_noise(process) else spec.coordinates


def one_of(word: str, value: str, known: Sequence[str]) -> str:
    """`value`, or an error that lists what is known."""
    if value not in known:
        raise UsageError(f"{word} must be {' or '.join(repr(k) for k in known)}, not {value!r}")
    return value


def numbers(values: Any, word: str) -> tuple[float, ...]:
    """A list of numbers as floats."""
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError):
        raise UsageError(f"{word} must be a list of numbers, not {values!r}") from None
