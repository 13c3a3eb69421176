"""Pickling of models and processes, with an error message that names the part that cannot be pickled."""

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
"""Picklers that accept functions without an importable name: if one is imported, it may be the pickler in use."""


class Pickled:
    """Base of models and processes. They hold user functions, which pickle stores only as importable names."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = [part for network in self.networks() for part in network.modules()]
        for part in parts:
            remove_recorder_hooks(part)
        if not any(module.rpartition(".")[2] in BY_VALUE for module in sys.modules):
            held = [(f"{name} is", value) for name, value in vars(self).items()]
            held += [(f"its {type(part).__name__} has a hook,", hook) for part in parts for hook in hooks_of(part)]
            for subject, value in held:
                if (unnamed := describe_unnamed(value)) is not None:
                    raise UsageError(
                        f"this {type(self).__name__} cannot be pickled: {subject} {unnamed}, which another process "
                        "cannot import by name; define it at the top level of a module"
                    )
        return super().__reduce_ex__(protocol)

    def networks(self) -> Sequence[Any]:
        """The networks that this object holds."""
        return ()

    # Copies stay in this process, so their functions need no importable name.
    def __copy__(self: T) -> T:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made


def hooks_of(part: Any) -> Iterator[Any]:
    """The forward and backward hooks of one torch module, without those of its submodules."""
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        yield from getattr(part, name, {}).values()


def remove_recorder_hooks(part: Any) -> None:
    """Remove the hooks with which transformers records hidden states. They cannot be pickled; they act only within a
    call, and transformers installs them again when a call needs them."""
    for key, hook in list(part._forward_hooks.items()):
        if getattr(hook, "__module__", None) == RECORDER_MODULE:
            del part._forward_hooks[key]
    if getattr(part, "_output_capturing_hooks_installed", False):
        part._output_capturing_hooks_installed = False


RECORDER_MODULE = "transformers.utils.output_capturing"


def describe_unnamed(value: Any) -> str | None:
    """Describe a function, or an object of a class, that cannot be imported by name; None for other values."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, types.FunctionType):
        return None if is_importable(value) else f"the function {value.__qualname__}"
    kind = type(value)
    return f"of the class {kind.__qualname__}" if "<locals>" in kind.__qualname__ else None


def is_importable(function: types.FunctionType) -> bool:
    """True if looking up the function's qualified name in its module returns this function."""
    found: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function
