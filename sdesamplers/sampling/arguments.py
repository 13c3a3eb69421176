"""A call's arguments, checked and completed by the defaults of sampler, process and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checks import name_of, number, whole
from ..errors import UsageError
from ..processes.own_grid import OwnGrid
from ..processes.sde import SDE, GaussianProcess, starts_as_noise
from ..registry.names import Preset
from ..registry.options import check_options
from ..registry.plugin import NoiseSource, Registered, Sampler, Spacing
from ..registry.registry import default_registry
from .recipe import Recipe, chosen_grid, chosen_noise, registered_name
from .runs import steps_for_budget


def make_recipe(
    sampler: str | Sampler | Recipe | Mapping[str, Any],
    *,
    process: SDE,
    steps: int | None = None,
    nfe: int | None = None,
    spacing: str | Spacing | None = None,
    spacing_options: dict[str, Any] | None = None,
    times: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    coordinates: str | None = None,
    noise: str | NoiseSource | None = None,
    noise_options: dict[str, Any] | None = None,
    final: str | None = None,
    start_time: float | None = None,
    options: dict[str, Any] | None = None,
    shape: Sequence[int] = (1,),
    end_to_end: bool = False,
) -> tuple[Recipe, Sampler]:
    """Check a call's words and fill in what it leaves open; see `sample` for them.

    Args:
        end_to_end: whether the default grid must reach from one end of the model's time to the other, as runs from
            data to noise must; makers' own grids often do not.

    Raises:
        UsageError: a name, number or combination that cannot be run.
    """
    if isinstance(sampler, Recipe | Mapping):
        whole = sampler if isinstance(sampler, Recipe) else Recipe.from_dict(sampler)
        words: dict[str, Any] = {
            "steps": steps,
            "nfe": nfe,
            "spacing": spacing,
            "spacing_options": spacing_options,
            "times": times,
        }
        words |= {"sigmas": sigmas, "coordinates": coordinates, "noise": noise, "noise_options": noise_options}
        words |= {"final": final, "start_time": start_time, "options": options}
        return make_recipe(**whole.completing(**words), process=process, shape=shape)
    preset = default_registry().resolve(sampler) if isinstance(sampler, str) else Preset(sampler)
    spec = preset.sampler
    if not isinstance(spec, Sampler):
        raise UsageError(f"sampler must be a name, a Sampler or a Recipe, not {sampler!r}")
    for word, text in (("spacing", spacing), ("coordinates", coordinates), ("noise", noise), ("final", final)):
        if text is not None and not isinstance(text, Spacing | NoiseSource):
            name_of(word, text)
    check_options(options or {}, spec.options, f"sampler {spec.name!r}")
    grid_word = check_grid_words(steps=steps, nfe=nfe, times=times, sigmas=sigmas)
    if grid_word is None and preset.steps is not None:
        steps, grid_word = preset.steps, "steps"
    require_grid(preset, grid_word)
    for word, given in (("spacing_options", spacing_options), ("noise_options", noise_options)):
        if given is not None and not isinstance(given, Mapping):
            raise UsageError(f"{word} must be a dictionary, not {given!r}")
    if start_time is not None:
        check_start_time(start_time, grid_word)
    spaced = grid_word in ("steps", "nfe")
    if spacing is not None and not spaced:
        free = f"{spec.name} chooses its own steps unless steps= or nfe= is given, so that it takes no spacing"
        raise UsageError(free if grid_word is None else f"spacing and {grid_word} contradict each other")
    if sigmas is not None and final is not None and len(sigmas) and (sigmas[-1] == 0) != (final == "zero"):
        raise UsageError(f"final={final!r} contradicts sigmas, whose last is {sigmas[-1]}")
    makers = None if end_to_end or start_time is not None else own_grid(process)
    if isinstance(sampler, str) and makers is not None and sampler == makers.kind and spacing is None:
        # A class's name on a model whose configuration is of that class is that configuration.
        preset = replace(preset, spacing=None, spacing_options={}, final=None)
    chosen = spacing or preset.spacing or preferred_spacing(spec, process, makers)
    grid, own = chosen_grid(chosen)
    kept = preset.spacing_options if spacing in (None, preset.spacing) else {}
    grid_options = check_options({**own, **kept, **(spacing_options or {})}, grid.options, f"spacing {grid.name!r}")
    source, own = chosen_noise(noise or preset.noise or "independent")
    kept = preset.noise_options if noise in (None, preset.noise) else {}
    source_options = check_options({**own, **kept, **(noise_options or {})}, source.options, f"noise {source.name!r}")
    named: dict[str, Registered] = {"sampler": spec, "noise": source, **({"spacing": grid} if spaced else {})}
    names = {word: registered_name(item) for word, item in named.items()}
    recipe = Recipe(
        sampler=names["sampler"] or spec.name,
        options=fill_options(preset, options or {}, grid_word),
        steps=None if steps is None else int(steps),
        spacing=(names["spacing"] or grid.name) if spaced else None,
        spacing_options=grid_options if spaced else {},
        times=None if times is None else numbers(times, "times"),
        sigmas=None if sigmas is None else numbers(sigmas, "sigmas"),
        coordinates=coordinates or preset.coordinates or preferred_coordinates(spec, process),
        noise=names["noise"] or source.name,
        final=one_of("final", final or preset.final or usual_final(grid.name, makers), ("zero", "min")),
        start_time=start_time,
        noise_options=source_options,
        own={word: item for word, item in named.items() if names[word] is None},
    )
    if nfe is not None:
        recipe = replace(recipe, steps=steps_for_budget(process, recipe, spec, int(nfe), shape))
    return recipe, spec


def require_grid(preset: Preset, grid_word: str | None) -> None:
    """Raise where a sampler needs a grid and neither the call nor the preset gives one."""
    if grid_word is None and preset.steps is None and not preset.sampler.adaptive:
        name = preset.sampler.name
        raise UsageError(f"{name} needs steps=... (grid intervals) or nfe=... (a budget of model evaluations)")


def check_grid_words(**words: Any) -> str | None:
    """Which of steps, nfe, times and sigmas was given; at most one may be, and counts must be whole."""
    given = [word for word, value in words.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"give one of steps, nfe, times and sigmas, not {' and '.join(given)}")
    for word in ("steps", "nfe"):
        if words[word] is not None:
            whole(word, words[word])
    return given[0] if given else None


def check_start_time(value: Any, grid_word: str | None) -> None:
    """Raise unless `value` is a number and the grid is not the user's own."""
    if grid_word in ("times", "sigmas"):
        raise UsageError(f"start_time and {grid_word} contradict each other: the grid's first entry is the start")
    number("start_time", value)


def fill_options(preset: Preset, options: dict[str, Any], grid_word: str | None) -> dict[str, Any]:
    """The sampler's options: its defaults, under the preset's, under the call's. Step control goes with free steps."""
    spec = preset.sampler
    chosen = check_options(options, spec.options, f"sampler {spec.name!r}")
    control = spec.control if grid_word is not None else ()
    stray = [name for name in chosen if name in control]
    if stray:
        raise UsageError(
            f"{spec.name} takes either {grid_word} (a fixed grid) or {', '.join(stray)} (its own steps), not both"
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
