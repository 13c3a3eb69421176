"""What is compared: samplers with their own grids and options, as objects or as one line of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..models.base import Model
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.arguments import make_recipe
from ..sampling.recipe import Recipe
from ..sampling.request import Request
from ..sampling.setting import GRID_ARGUMENTS, has_tables, parse_setting
from ..sampling.table import SolverTable, TableSet

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
