"""Tensors without values that know their sources: every operation passes those of its inputs on to its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Untraceable(Exception):
    """A tensor whose sources are not known."""


class Sources(TorchDispatchMode):
    """A mode in which the sources of tensors are known: of an operation's output, all sources of its inputs.

    They are recorded for storages, so a view has the sources of its base, and writing to it adds to them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, int] = {}
        self._held: list[Tensor] = []  # so that no other storage can get the same address

    def new(self, like: Tensor, bits: int, dtype: torch.dtype | None = None) -> Tensor:
        """A new tensor without values, of the shape and by default the dtype of `like`."""
        made = torch.empty(like.shape, dtype=dtype or like.dtype, device="meta")
        self.replace(made, bits)
        return made

    def of(self, tensor: Tensor) -> int:
        """The sources of a tensor."""
        found = self._found.get(tensor.untyped_storage()._cdata)
        if found is None:
            if tensor.is_meta:  # it was made in another thread
                raise Untraceable
            return 0
        return found

    def add(self, tensor: Tensor, bits: int) -> None:
        """Add sources to a tensor's."""
        place = tensor.untyped_storage()._cdata
        if place not in self._found:
            self._held.append(tensor)
        self._found[place] = self._found.get(place, 0) | bits

    def replace(self, tensor: Tensor, bits: int) -> None:
        """Set the sources of a tensor that is overwritten; it must be the whole of its storage."""
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.numel() * tensor.element_size():
            raise Untraceable
        self.add(tensor, 0)
        self._found[storage._cdata] = bits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        bits, kwargs = 0, kwargs or {}
        for each in _tensors((*args, *kwargs.values())):
            bits |= self.of(each)
        if func in POINTWISE and (like := _larger(*args[:2])) is not None:
            result = args[0] if func._schema.is_mutable else torch.empty_like(like)
        else:
            result = func(*args, **kwargs)
        if func._schema.is_mutable:
            named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
            for argument in func._schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._add_to(named.get(argument.name), bits)
        self._add_to(result, bits)
        return result

    def _add_to(self, tensors: Any, bits: int) -> None:
        for each in _tensors((tensors,)):
            self.add(each, bits)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors of an operation's arguments or results, which may be in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


_ATEN = torch.ops.aten
POINTWISE = {_ATEN.add.Tensor, _ATEN.add_.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.mul_.Tensor}
"""The usual operations of samplers, whose shapes torch computes slowly for tensors without values."""


def _larger(a: Any, b: Any) -> Tensor | None:
    """The operand with the shape and dtype of a sum or a product; None if torch has to find them."""
    if not isinstance(a, Tensor) or not a.is_meta:
        a, b = b, a
    if not isinstance(a, Tensor) or not a.is_meta or not a.is_floating_point() or not a.is_contiguous():
        return None
    if isinstance(b, Tensor):
        same = b.dtype is a.dtype and b.shape == a.shape and b.is_contiguous()
        return a if same or (b.dim() == 0 and not b.is_complex() and a.dim() > 0) else None
    return a if isinstance(b, int | float) else None
