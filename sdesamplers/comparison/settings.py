"""What is compared: samplers with their own grids and options, as objects or as one line of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..checks import shown
from ..errors import UnknownNameError, UsageError, advice
from ..models.base import Model
from ..registry.names import Preset
from ..registry.options import parse_option
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.arguments import make_recipe, refers_to_table
from ..sampling.recipe import Recipe
from ..sampling.request import CONDUCT_FIELDS, GRID, REQUEST_FIELDS, Request
from ..sampling.sampler_files import recipe_or_name
from ..sampling.table import SolverTable, TableSet, is_path

GRID_ARGUMENTS = ("spacing", "spacing_options", "coordinates", "final", "noise", "noise_options")
GRID_KEYS = ("spacing", "coordinates", "noise", "final")
"""The keys of a setting's text that are arguments of `sample`."""
SHARED_KEYS = frozenset(REQUEST_FIELDS | CONDUCT_FIELDS) - {*GRID_ARGUMENTS, *GRID}
SHARED_KEYS |= {"seed", "num_samples", "batch_size", "condition", "start", "first_index", "progress"}
"""Arguments of `sample` that are the same for all settings of a comparison."""
BEGINS_KEYS = re.compile(r"(?:^|\s)(?=[A-Za-z_][\w.-]*=)")
PAIR = re.compile(r"""\s*([A-Za-z_][\w.-]*)=("[^"]*"|'[^']*'|\[[^\]]*\]|[^\s"'\[]\S*)(?=\s|$)""")
SEPARATOR = re.compile(r""",(?=(?:[^"']|"[^"]*"|'[^']*')*$)(?![^\[]*\])""")
"""A comma outside of quotes and brackets."""

Compared = str | Sampler | Recipe | SolverTable | TableSet | Mapping[str, Any]
"""A setting: the name of a sampler, recipe or alias, also with settings ("heun spacing=karras"), a `Sampler`, a solver
table, the result of `tune`, a `Recipe` or its dictionary, or the path or address on the Hub of a recipe or of tables.
The budgets replace a recipe's number of steps."""


@dataclass(frozen=True)
class Setting:
    """A row of a comparison.

    Attributes:
        label: its name in tables and files.
        sampler: the sampler, recipe or table that is run.
        arguments: its own keyword arguments of `sample`; they replace those of the whole comparison.
    """

    label: str
    sampler: str | Sampler | Recipe | SolverTable | TableSet
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def beside(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a run: the setting's own, and those of all settings.

        A setting with its own spacing or noise does not take over the options of the common one.
        """
        replaced = {f"{name}_options" for name in ("spacing", "noise") if name in self.arguments}
        return {**{key: value for key, value in common.items() if key not in replaced}, **self.arguments}


def as_settings(samplers: Compared | Sequence[Compared] | Mapping[str, Compared]) -> list[Setting]:
    """Settings with unique labels.

    Args:
        samplers: one setting, a list of them, or a dictionary of settings by label.

    Raises:
        UsageError: an object that is not a setting, an unknown name or key, or a recipe with its own grid, to which no
            budget can be applied.
    """
    if isinstance(samplers, Mapping) and not isinstance(samplers.get("sampler"), str):
        return [_setting(str(label), item) for label, item in samplers.items()]
    single = isinstance(samplers, str | Sampler | Recipe | SolverTable | TableSet | Mapping)
    each: Any = [samplers] if single else samplers
    if not isinstance(each, Iterable) or isinstance(each, Tensor):
        raise UsageError(f"samplers must be a name, a Sampler, a Recipe or a list of them, not {shown(each)}")
    found: dict[str, Any] = {}
    for item in each:
        label = label_of(item)
        if label in found and _is_same(item, found[label]):
            continue
        same = sum(known.partition(" #")[0] == label for known in found)
        found[f"{label} #{same + 1}" if same else label] = item
    return [_setting(label, item) for label, item in found.items()]


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def label_of(item: Any) -> str:
    """The name of a row: the text itself, or the name of the sampler."""
    if isinstance(item, str):
        return " ".join(item.split())
    if isinstance(item, Mapping):
        return str(item.get("sampler"))
    if isinstance(item, Sampler | Recipe):
        return item.name if isinstance(item, Sampler) else item.sampler
    return type(item).__name__.lower() if isinstance(item, TableSet) else "table"


def _setting(label: str, item: Any) -> Setting:
    """The setting of a compared item."""
    if isinstance(item, Mapping):
        item = Recipe.from_dict(item)
    if not isinstance(item, str | Sampler | Recipe | SolverTable | TableSet):
        raise UsageError(f"samplers must be names, Samplers, Recipes, SolverTables or Tunings, not {shown(item)}")
    sampler, arguments = parse_setting(item) if isinstance(item, str) else (item, {})
    if isinstance(sampler, Recipe) and (sampler.times is not None or sampler.sigmas is not None):
        raise UsageError("compare runs every sampler at budgets of evaluations, and this Recipe has its own grid")
    return Setting(label, sampler, arguments)


def split_settings(text: str) -> list[str]:
    """The settings of a comma-separated text; commas in brackets and quotes do not separate.

    Example:
        >>> split_settings("ddim eta=0.5, frequency-mixed weights=[1,2]")
        ['ddim eta=0.5', 'frequency-mixed weights=[1,2]']
    """
    return [part.strip() for part in SEPARATOR.split(text)]


def parse_setting(text: str) -> tuple[str | Recipe, dict[str, Any]]:
    """The sampler and the keyword arguments of `sample` in a text NAME KEY=VALUE ...

    NAME is a sampler, recipe or alias, "tuned", or the path or address on the Hub of a recipe, a solver table or a
    folder of tables. A KEY is spacing, coordinates, noise, final, `spacing.KEY` or `noise.KEY` for an option of the
    spacing or the noise source, or an option of the sampler. Values are written as on the command line: numbers are
    decimal, lists in brackets, texts with spaces in quotes.

    Raises:
        UsageError: an unknown name or key, a value of the wrong type, or a key that all settings share.

    Example:
        >>> parse_setting("ddim spacing=karras spacing.rho=5 eta=0.5")
        ('ddim', {'spacing': 'karras', 'eta': 0.5, 'spacing_options': {'rho': 5.0}})
    """
    text = text.strip()
    begin = BEGINS_KEYS.search(text)
    name = text if begin is None else text[: begin.start()].strip()
    if begin is not None and not name:
        raise UsageError(
            f"setting {text!r} has no sampler; a setting is NAME KEY=VALUE ..., as in 'heun spacing=karras'"
        )
    target: str | Recipe = recipe_or_name(name)
    return target, {} if begin is None else _arguments(_pairs(text, begin.start()), target, text)


def _pairs(text: str, place: int) -> list[tuple[str, str]]:
    """The keys and values of a setting's text from a place on."""
    found = []
    while text[place:].strip():
        match = PAIR.match(text, place)
        if match is None:
            raise UsageError(
                f"setting {text!r}: expected KEY=VALUE, not {text[place:].strip()!r}; quote texts with spaces"
            )
        value = match[2]
        found.append((match[1], value[1:-1] if value[0] in "\"'" else value))
        place = match.end()
    keys = [key for key, _ in found]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(f"setting {text!r} has {twice} twice")
    return found


def _arguments(pairs: Sequence[tuple[str, str]], target: str | Recipe, text: str) -> dict[str, Any]:
    """The keyword arguments of a setting's pairs, checked."""
    registry, preset = default_registry(), preset_of(target)
    if has_tables(target):
        raise UsageError(
            f"setting {text!r}: a solver table has its own grid and options, so {pairs[0][0]}= does not apply"
        )
    made: dict[str, Any] = {key: value for key, value in pairs if key in GRID_KEYS}
    for key, value in pairs:
        kind, dot, inner = key.partition(".")
        if key in GRID_KEYS:
            continue
        if dot and kind in ("spacing", "noise"):
            name = made.get(kind, getattr(preset, kind))
            if name is None and kind == "spacing":
                raise UsageError(
                    f"setting {text!r}: {key}= needs spacing=, since {preset.sampler.name} has no spacing here"
                )
            item: Any = (registry.grid if kind == "spacing" else registry.noise)(name or "independent")[0]
            option, parsed = parse_option(inner, value, item.options, f"{kind} {item.name!r}")
            made.setdefault(f"{kind}_options", {})[option] = parsed
        elif key.replace("-", "_") in preset.sampler.options:
            option, parsed = parse_option(key, value, preset.sampler.options, f"sampler {preset.sampler.name!r}")
            made[option] = parsed
        else:
            raise _unknown_key(key.replace("-", "_"), preset, made, text)
    for kind, found in (("spacing", registry.grid), ("noise", registry.noise)):
        if kind in made:
            found(made[kind])  # an unknown name is an error here, before any run
    return made


def _unknown_key(key: str, preset: Preset, made: Mapping[str, Any], text: str) -> UsageError:
    """The error for a key that a setting cannot have."""
    opening = f"setting {text!r}"
    if key in GRID:
        return UsageError(f"{opening}: compare runs every setting at budgets of evaluations (nfe=), so remove {key}=")
    if key in SHARED_KEYS:
        return UsageError(f"{opening}: {key} is the same for all settings; pass it to compare itself")
    options = [*preset.sampler.options]
    grid = made.get("spacing", preset.spacing)
    if grid is not None:
        inner = default_registry().grid(grid)[0].options
        if key in inner:
            return UsageError(f"{opening}: {key} is an option of the spacing; write spacing.{key}=")
        options += [f"spacing.{name}" for name in inner]
    known = [*GRID_KEYS, *options]
    try:
        parse_option(key, "", preset.sampler.options, f"sampler {preset.sampler.name!r}")
    except UnknownNameError as error:
        near = UnknownNameError("key", key, known).near
        hint = f"{opening}: {error}"
        return UsageError(hint if advice(near) in hint else f"{opening}: unknown key {key!r}{advice(near)}")
    raise AssertionError(key)


def has_tables(sampler: Any) -> bool:
    """True if a setting's sampler is a solver table or `tuned`, or the path or address of tables."""
    return refers_to_table(sampler) or (isinstance(sampler, str) and is_path(sampler))


def preset_of(sampler: str | Sampler | Recipe | SolverTable | TableSet) -> Preset:
    """The sampler, spacing and noise source to which a setting's options apply."""
    registry = default_registry()
    if isinstance(sampler, Recipe):
        own: Any = sampler.own.get("sampler")
        ran = sampler if own else sampler.completed_by(registry.resolve(sampler.sampler))
        return Preset(own or registry.resolve(sampler.sampler).sampler, spacing=ran.spacing, noise=ran.noise)
    if has_tables(sampler):
        return Preset(registry.samplers["table"])
    return Preset(sampler) if isinstance(sampler, Sampler) else registry.resolve(str(sampler))


def checked(setting: Setting, model: Model, options: Mapping[str, Any]) -> Sampler:
    """The `Sampler` of a setting, after a check that it accepts its own options and the call's.

    Raises:
        UsageError: it cannot run with them.
    """
    if has_tables(setting.sampler):  # it has its own grids, so that only some budgets exist
        return default_registry().samplers["table"]
    spec = make_recipe(Request(setting.sampler, 2), process=model.process)[1]
    arguments = setting.beside(options)
    known = {key: value for key, value in arguments.items() if key in spec.options}
    grid = {key: arguments[key] for key in GRID_ARGUMENTS if key in arguments}
    make_recipe(Request(setting.sampler, 2, **grid, options=known), process=model.process)
    return spec
