"""A sampler with its grid and options as one line of text: NAME KEY=VALUE ..."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UnknownNameError, UsageError, advice
from ..registry.names import Preset
from ..registry.options import parse_option
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from .arguments import refers_to_table
from .recipe import Recipe
from .request import CONDUCT_FIELDS, GRID, REQUEST_FIELDS
from .sampler_files import recipe_or_name
from .table import SolverTable, TableSet, is_path

GRID_ARGUMENTS = ("spacing", "spacing_options", "coordinates", "final", "noise", "noise_options")
GRID_KEYS = ("spacing", "coordinates", "noise", "final")
"""The keys of a setting's text that are arguments of `sample`."""
OTHER_KEYS = frozenset(REQUEST_FIELDS | CONDUCT_FIELDS) - {*GRID_ARGUMENTS, *GRID}
OTHER_KEYS |= {"seed", "num_samples", "batch_size", "condition", "start", "first_index", "progress"}
"""Arguments of `sample` that are not part of a setting."""
BEGINS_KEYS = re.compile(r"(?:^|\s)(?=[A-Za-z_][\w.-]*=)")
PAIR = re.compile(r"""\s*([A-Za-z_][\w.-]*)=("[^"]*"|'[^']*'|\[[^\]]*\]|[^\s"'\[]\S*)(?=\s|$)""")
SEPARATOR = re.compile(r""",(?=(?:[^"']|"[^"]*"|'[^']*')*$)(?![^\[]*\])""")
"""A comma outside of quotes and brackets."""


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
        UsageError: an unknown name or key, a value of the wrong type, or a key that is not part of a setting.

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
        return UsageError(f"{opening}: the number of evaluations is an argument of its own, so remove {key}=")
    if key in OTHER_KEYS:
        return UsageError(f"{opening}: {key} is not part of a setting; pass it as an argument of its own")
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
