"""From a call's words to a checked `Recipe`, and from a recipe to a path."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..checks import name_of, number, whole
from ..errors import PluginError, SdesamplersError, UnknownNameError, UsageError
from ..path.grid import given_points, spaced_points
from ..path.noise import Noise
from ..path.path import Path
from ..path.points import path_process
from ..processes.own_grid import OwnGrid
from ..processes.sde import SDE, GaussianProcess, starts_as_noise
from ..public import public
from ..registry.names import Preset
from ..registry.options import check_options
from ..registry.plugin import NoiseSource, Registered, Sampler, Spacing
from ..registry.registry import default_registry
from .loop import Run, count_evaluations


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

    def completing(self, **call: Any) -> dict[str, Any]:
        """A call's words, with this recipe's where the call leaves them open; `own` objects in place of their names.

        A grid of the call's takes the place of the recipe's, and options that steer steps of its own fall away.
        """
        spec = self.own.get("sampler") or default_registry().resolve(self.sampler).sampler
        words = dict(call)
        if all(call[word] is None for word in GRID):
            words |= {word: getattr(self, word) for word in GRID if word != "nfe"}
        listed = words["times"] is not None or words["sigmas"] is not None
        spaced = words["steps"] is not None or words["nfe"] is not None
        for word, applies in (("spacing", spaced), ("noise", True)):
            if applies and call[word] is None:
                words[word] = self.own.get(word) or getattr(self, word)
                words[f"{word}_options"] = {**getattr(self, f"{word}_options"), **(call[f"{word}_options"] or {})}
        words["coordinates"] = call["coordinates"] or self.coordinates
        if not listed:  # whose ends say both
            words["final"] = call["final"] or self.final
            words["start_time"] = self.start_time if call["start_time"] is None else call["start_time"]
        control = getattr(spec, "control", ()) if listed or spaced else ()
        kept = {name: value for name, value in self.options.items() if name not in control}
        return {**words, "sampler": spec, "options": {**kept, **(call["options"] or {})}}


GRID = ("steps", "nfe", "times", "sigmas")


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
    recipe = Recipe(
        sampler=registered_name(spec) or spec.name,
        options=fill_options(preset, options or {}, grid_word),
        steps=None if steps is None else int(steps),
        spacing=(registered_name(grid) or grid.name) if spaced else None,
        spacing_options=grid_options if spaced else {},
        times=None if times is None else numbers(times, "times"),
        sigmas=None if sigmas is None else numbers(sigmas, "sigmas"),
        coordinates=coordinates or preset.coordinates or preferred_coordinates(spec, process),
        noise=registered_name(source) or source.name,
        final=one_of("final", final or preset.final or usual_final(grid.name, makers), ("zero", "min")),
        start_time=start_time,
        noise_options=source_options,
        own=unregistered(sampler=spec, noise=source, **({"spacing": grid} if spaced else {})),
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
    shelves: dict[str, Mapping[str, Registered]] = {
        "sampler": registry.samplers,
        "spacing": registry.spacings,
        "noise source": registry.noises,
    }
    return next((name for name, found in shelves[item.kind].items() if found is item), None)


def unregistered(**items: Registered) -> dict[str, Registered]:
    """Those that no name stands for."""
    return {word: item for word, item in items.items() if registered_name(item) is None}


def spacing_of(recipe: Recipe) -> Spacing:
    """The spacing that a recipe means."""
    return chosen_grid(recipe.own.get("spacing") or recipe.spacing)[0]  # type: ignore[arg-type]


def noise_of(recipe: Recipe) -> NoiseSource:
    """The noise source that a recipe means."""
    return chosen_noise(recipe.own.get("noise") or recipe.noise)[0]  # type: ignore[arg-type]


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


def make_path(process: SDE, recipe: Recipe, noise: Noise | None = None) -> Path:
    """The path of a recipe on a model's process."""
    viewed = path_process(process, recipe.coordinates)
    if recipe.times is not None or recipe.sigmas is not None:
        return Path(viewed, given_points(viewed, recipe.times, recipe.sigmas), noise=noise)
    if recipe.steps is None:
        linear = default_registry().spacing("linspace")
        intervals = 2 if recipe.final == "zero" and isinstance(process, GaussianProcess) else 1
        ends = spaced_points(viewed, linear, {}, intervals, recipe.start_time, recipe.final)
        return Path(viewed, ends, is_free=True, noise=noise)
    assert recipe.spacing is not None
    try:
        grid = spacing_of(recipe)
        options, begin = recipe.spacing_options, recipe.start_time
        points = spaced_points(viewed, grid, options, recipe.steps, begin, recipe.final)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"spacing {recipe.spacing!r}: {error}") from None
    return Path(viewed, points, noise=noise)


def start_run(spec: Sampler, x: Tensor, path: Path, options: dict[str, Any]) -> Run:
    """A sampler's generator; a ValueError that it raises before it asks the model, so about its options or the grid,
    becomes a UsageError, and what another's plugin raises names plugin, file and line. It ends after
    `evaluation_limit` evaluations."""

    generator: Any = spec(x, path, **options)  # made here, so that the run does not hold on to its first state
    limit = evaluation_limit(spec, path, options)

    def run() -> Run:
        asked = 0
        try:
            request = next(generator)
            while True:
                asked += len(request) if request.__class__ is list else 1
                if asked > limit:
                    raise endless(spec, path, limit, generator.gi_frame.f_lineno)
                request = generator.send((yield request))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except UsageError as error:
            raise UsageError(f"{spec.name}: {error}") if type(error) is UsageError else error from None
        except Exception as error:
            if isinstance(error, ValueError) and not asked and not isinstance(error, SdesamplersError):
                raise UsageError(f"{spec.name}: {error}") from error
            if not spec.is_anothers or isinstance(error, SdesamplersError | MemoryError) or "memory" in str(error):
                raise  # where memory ran out, batches are halved
            raise spec.blamed(error) from error
        finally:
            generator.close()

    return run()


FREE_LIMIT = 100_000
"""Evaluations of a run that chooses its own steps; more where the sampler's own `max_nfe` is larger."""


def evaluation_limit(spec: Sampler, path: Path, options: Mapping[str, Any]) -> int:
    """The number of evaluations after which a sampler is taken never to end: a hundred times what it declares.

    Samplers that do not declare their evaluations may make a thousand a step.
    """
    if path.is_free:
        return max(FREE_LIMIT, int(options.get("max_nfe", 0)) + 100)
    declared = 10 if spec.evaluations is None else max(spec.evaluations, 1)
    numbers = [value for value in options.values() if type(value) is int and value > 1]
    return 1000 + 100 * declared * (len(path.points) - 1) * max([1, *numbers])


def endless(spec: Sampler, path: Path, limit: int, line: int) -> PluginError:
    """What to say of a sampler that does not end."""
    place = f"{pathlib.Path(spec.function.__code__.co_filename).name}, line {line}"
    declared = "" if path.is_free else f" on a grid of {len(path.points) - 1} steps"
    of = f" of plugin {spec.plugin}" if spec.plugin else ""
    return PluginError(
        f"sampler {spec.name!r}{of} ({place}) wants more than {limit} evaluations{declared}, as one does that never "
        "ends; a sampler that needs as many declares evaluations="
    )


def evaluations(process: SDE, recipe: Recipe, spec: Sampler, shape: Sequence[int] = (1,)) -> int:
    """Model evaluations that a fixed-grid recipe makes for samples of `shape`, counted by a dry run on zeros."""
    zeros = torch.zeros(1, *shape)
    path = make_path(process, recipe, lambda start, end, rows=None: zeros)
    return count_evaluations(start_run(spec, zeros, path, recipe.options))


def draw_clocks(spec: Sampler, path: Path, options: dict[str, Any], shape: Sequence[int]) -> list[float]:
    """The ends, on `Path.clock`, of all intervals that a run draws noise for, found by a dry run on zeros."""
    zeros, clocks = torch.zeros(1, *shape), list[float]()

    def record(start: float, end: float, rows: Any = None) -> Tensor:
        clocks.extend((start, end))
        return zeros

    count_evaluations(start_run(spec, zeros, Path(path.process, path.points, noise=record), options))
    return clocks


def steps_for_budget(process: SDE, recipe: Recipe, spec: Sampler, nfe: int, shape: Sequence[int] = (1,)) -> int:
    """The largest number of steps whose evaluations fit in `nfe`.

    Raises:
        UsageError: not even one step fits, or the sampler's evaluations cannot be planned.
    """

    if spec.evaluations is None:
        raise UsageError(f"how many evaluations {spec.name} makes depends on the values it meets; give steps=...")

    def cost(steps: int) -> float:
        try:
            return evaluations(process, replace(recipe, steps=steps), spec, shape)
        except UsageError:
            if steps == 1:
                raise
            return math.inf  # more steps than this spacing has

    low = max(1, nfe // max(spec.evaluations, 1))
    while cost(low) > nfe:
        if low == 1:
            raise UsageError(f"{spec.name} needs {cost(1)} evaluations for its first step; nfe={nfe} is too few")
        low = max(1, low - max(1, low // 8))
    while low <= nfe and cost(low + 1) <= nfe:  # a sampler whose cost does not grow with its steps takes nfe of them
        low += 1
    return low
