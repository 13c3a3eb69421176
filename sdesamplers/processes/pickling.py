"""What can be pickled goes through whole; what cannot says in a sentence which part of it and why."""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ..errors import UsageError

T = TypeVar("T", bound="Pickled")

BY_VALUE = ("cloudpickle", "dill")
"""Picklers that take functions without a name: where one is loaded, it may be the one at work."""


class Pickled:
    """A base of models and processes, which hold functions of their users: pickle finds those by their names alone."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = [part for network in self.networks() for part in network.modules()]
        for part in parts:
            remove_recorder_hooks(part)
        if not any(module.rpartition(".")[2] in BY_VALUE for module in sys.modules):
            held = [(f"{word} is", value) for word, value in vars(self).items()]
            held += [(f"its {type(part).__name__} has a hook,", hook) for part in parts for hook in hooks_of(part)]
            for word, value in held:
                if (nameless := describe_unnamed(value)) is not None:
                    raise UsageError(
                        f"this {type(self).__name__} cannot be pickled: {word} {nameless}, which another process "
                        "cannot find by its name; define it at the top level of a module"
                    )
        return super().__reduce_ex__(protocol)

    def networks(self) -> Sequence[Any]:
        """The networks that it holds."""
        return ()

    # Copies stay in this process, where functions need no names.
    def __copy__(self: T) -> T:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made


def hooks_of(part: Any) -> Iterator[Any]:
    """The hooks of one module of torch."""
    for word in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        yield from getattr(part, word, {}).values()


def remove_recorder_hooks(part: Any) -> None:
    """Take out the hooks by which transformers records hidden states: they have no names, act inside of a call alone,
    and are put in again by the next that needs them."""
    for key, hook in list(part._forward_hooks.items()):
        if getattr(hook, "__module__", None) == RECORDER_MODULE:
            del part._forward_hooks[key]
    if getattr(part, "_output_capturing_hooks_installed", False):
        part._output_capturing_hooks_installed = False


RECORDER_MODULE = "transformers.utils.output_capturing"


def describe_unnamed(value: Any) -> str | None:
    """A function or object of a class that lies inside another function, in words; None for all else."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, types.FunctionType):
        return None if is_importable(value) else f"the function {value.__qualname__}"
    kind = type(value)
    return f"of the class {kind.__qualname__}" if "<locals>" in kind.__qualname__ else None


def is_importable(function: types.FunctionType) -> bool:
    """Whether a function is what its module has under its name."""
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function
