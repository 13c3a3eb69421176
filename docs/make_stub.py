"""Write sdesamplers/sampling/typed.pyi, the types of `sample` for editors: an overload for each built-in sampler.

    python docs/make_stub.py

An overload has the sampler's names and its options. The last one is for all other names and objects; it has every
built-in option with the types that it has in any sampler, so that a value of another type matches no overload, and
accepts other options, which are those of plugins.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from sdesamplers.registry.catalogue import load_catalogue
from sdesamplers.registry.options import SEQUENCES, Option
from sdesamplers.registry.registry import Registry
from sdesamplers.sampling.calls import sample

FILE = Path(__file__).parents[1] / "sdesamplers" / "sampling" / "typed.pyi"
HEAD = '''"""`sample` for editors and type checkers. Written by docs/make_stub.py; do not edit."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from ..models.base import Model
from ..registry.plugin import NoiseSource, Sampler, Spacing
from .loop import Callback, Flag
from .recipe import Recipe
from .result import Result
from .table import SolverTable, TableSet

class Arguments(TypedDict, total=False):
    """The arguments of `sample` that do not depend on the sampler."""

'''


def parameters() -> dict[str, inspect.Parameter]:
    """The keyword arguments of `sample`, without the samplers' options."""
    found = inspect.signature(sample).parameters.values()
    return {p.name: p for p in found if p.kind is p.KEYWORD_ONLY}


def annotation(kinds: typing.Iterable[Any]) -> str:
    """The type of an option as source; arrays and tensors may stand for sequences, as the library accepts them."""
    parts: dict[str, None] = {}
    for kind in kinds:
        literal = typing.get_origin(kind) is Literal
        parts[f"Literal[{', '.join(map(quoted, typing.get_args(kind)))}]" if literal else type_name(kind)] = None
        if typing.get_origin(kind) in SEQUENCES:
            parts |= {"np.ndarray": None, "Tensor": None}
    return " | ".join(parts)


def type_name(kind: Any) -> str:
    """A type other than a literal."""
    return Option("", kind, None).type_name


def quoted(value: Any) -> str:
    """A constant as source, with double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def default(value: Any) -> str:
    """A default as source."""
    plain = value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and abs(value) < 1e300)
    return quoted(value) if plain else "..."


def names_of(registry: Registry) -> dict[str, list[str]]:
    """The names, recipes and aliases of each built-in sampler."""
    found: dict[str, list[str]] = {n: [n] for n, s in registry.samplers.items() if s.is_built_in}
    for name in [*registry.catalogue.recipes, *registry.catalogue.aliases]:
        if "{" not in name and (target := registry.resolve(name).sampler.name) in found:
            found[target].append(name)
    return found


def signature(names: str, options: typing.Sequence[str], rest: str = "**kwargs: Unpack[Arguments]") -> str:
    """One overload."""
    arguments = ["model: Model | str", names, *(["*", *options] if options else []), rest]
    return "@overload\ndef sample(\n" + "".join(f"    {line},\n" for line in arguments) + ") -> Result: ...\n"


def stub() -> str:
    """The text of the stub."""
    registry, own = Registry(catalogue=load_catalogue()), parameters()
    arguments = "".join(f"    {name}: {p.annotation}\n" for name, p in own.items())
    every: dict[str, list[Any]] = defaultdict(list)
    plain: list[str] = []  # names of samplers without options
    overloads = []
    for sampler, names in names_of(registry).items():
        options = registry.samplers[sampler].options
        assert not set(options) & set(own), f"an option of {sampler} has the name of an argument of sample"
        for option in options.values():
            every[option.name] += option.kinds
        rows = [f"{o.name}: {annotation(o.kinds)} = {default(o.default)}" for o in options.values()]
        if rows:
            start = " = ..." if "quality" in names else ""  # the default of `sample`
            overloads.append(signature(f"sampler: Literal[{', '.join(map(quoted, names))}]{start}", rows))
        else:
            plain += names
    overloads.append(signature(f"sampler: Literal[{', '.join(map(quoted, plain))}]", []))
    rows = [f"{name}: {p.annotation} = ..." for name, p in own.items()]
    rows += [f"{name}: {annotation(kinds)} = ..." for name, kinds in sorted(every.items())]
    anything = "sampler: str | Sampler | Recipe | SolverTable | TableSet | Mapping[str, Any]"
    overloads.append(signature(anything, rows, "**options: Any"))
    return "\n".join([f"{HEAD}{arguments}", *overloads])


if __name__ == "__main__":
    FILE.write_text(stub(), encoding="utf-8")
