"""The environment in which a run evaluates a model: evaluation mode, autograd mode, torch's global state.

Networks belong to the user, and a run makes no lasting change to them: training flags are restored, and
`requires_grad` is not changed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from torch.nn import Module

from ..categories import ReproducibilityWarning
from ..checks import warn
from ..processes.check import is_user_defined
from ..processes.sde import SDE

DEPTH = 3
"""The depth of functions, containers and objects to which networks are searched for."""
ENTRIES = 1000
"""The number of entries of a container that are searched."""


@contextmanager
def running(*models: Any, key: tuple[int, ...] = (), gradients: bool = False) -> Iterator[None]:
    """Context in which models are evaluated: evaluation mode, and autograd on or off whatever the caller's mode.

    Off means `no_grad`, not inference mode, so that a model or a callback can differentiate inside
    `torch.enable_grad()`.

    Args:
        *models: the models that are evaluated.
        key: identifies the run (its seed and first sample), see `global_state`.
        gradients: True to turn autograd on.
    """
    found = [network for model in models for network in networks_of(model)]
    with evaluating(found), torch.inference_mode(False), torch.set_grad_enabled(gradients), global_state(key):
        yield


@contextmanager
def evaluating(networks: Iterable[Module]) -> Iterator[None]:
    """Context in which networks and all their submodules are in evaluation mode; it restores training flags.

    If runs overlap, in threads or nested, the last one to end restores the flags. Flags are set directly and not with
    `train()` and `eval()`, which networks override with effects that a second call does not undo (merged adapters).
    """
    parts = list({id(part): part for network in networks for part in network.modules()}.values())
    with _LOCK:
        for part in parts:  # read all flags before setting any: a compiled network shares its flag with the original
            _IN_USE.setdefault(id(part), [0, part.training])[0] += 1
        for part in parts:
            if part.training:
                part.training = False
    try:
        yield
    finally:
        with _LOCK:
            for part in parts:
                entry = _IN_USE[id(part)]
                entry[0] -= 1
                if not entry[0]:
                    del _IN_USE[id(part)]
                    if part.training is not entry[1]:
                        part.training = bool(entry[1])


_LOCK = threading.Lock()
_IN_USE: dict[int, list[Any]] = {}
"""id of a submodule in evaluation mode -> [number of runs that use it, its original training flag]."""


@contextmanager
def global_state(key: tuple[int, ...]) -> Iterator[None]:
    """Context that seeds the global random generators, and restores them, the default dtype and device afterwards.

    The library itself draws nothing from torch's global generators. They are seeded with `key` for networks that do, so
    that the same run gives the same samples. Threads share the generators, so only a run in the main thread seeds and
    restores them.
    """
    dtype, device = torch.get_default_dtype(), torch.empty(0).device  # a quarter of get_default_device's time
    alone = threading.current_thread() is threading.main_thread()
    found = [(generator, generator.get_state()) for generator in generators()] if alone else []
    others = (random.getstate(), detach_numpy()) if alone else None
    seed = seed_of(key)
    for generator, _ in found:
        generator.manual_seed(seed)
    if others is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
    begun = torch.default_generator.get_state() if alone else None
    try:
        yield
    finally:
        if torch.get_default_dtype() is not dtype:
            torch.set_default_dtype(dtype)
        if torch.empty(0).device != device:
            torch.set_default_device(device)
        drew = begun is not None and not torch.equal(begun, torch.default_generator.get_state())
        for generator, state in found:
            generator.set_state(state)
        if others is not None:
            random.setstate(others[0])
            others[1]()
    if drew and key:
        warn(
            "the network or the sampler drew from torch's global generator (as dropout in training mode does), so a "
            "sample depends on the batch that it is generated in; put networks that are not found through the model's "
            "attributes into evaluation mode",
            ReproducibilityWarning,
        )


def detach_numpy() -> Callable[[], None]:
    """Give NumPy's global functions another generator; returns the function that restores the user's.

    The user's generator is set aside instead of overwritten, since writing a state takes as long as reading it, some 45
    us. The state is needed only for the second of a pair of normals, which NumPy keeps and drops with its generator.
    """
    used, state = get_bit_generator(), np.random.get_state(legacy=False)
    set_bit_generator(np.random.MT19937(0) if used is _SPARE else _SPARE)

    def restore() -> None:
        set_bit_generator(used)
        if state["has_gauss"]:
            np.random.set_state(state)

    return restore


_SPARE = np.random.MT19937(0)
"""NumPy's global generator during a run; a run within a run makes another."""


def generators() -> list[torch.Generator]:
    """torch's global generators: the CPU's, and those of CUDA devices if CUDA is initialized."""
    found = [torch.default_generator]
    in_use = torch.cuda.is_initialized()
    if in_use and not torch.cuda.is_current_stream_capturing():
        found += torch.cuda.default_generators
    return found


def seed_of(key: tuple[int, ...]) -> int:
    """A seed derived from the key; two keys have the same seed with probability 2^-63."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def networks_of(model: Any) -> list[Module]:
    """The networks that a model evaluates."""
    found = getattr(model, "networks", None)
    return list(held_by(model)) if found is None else list(found())


LEAVES = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Tensor, np.ndarray, np.float64})
"""Types of values that contain no network; skipped early, since lists of schedules have a thousand entries."""


HOLD_NONE = (type, types.ModuleType, types.FunctionType, str, bytes, torch.Tensor)


def held_by(thing: Any, depth: int = DEPTH) -> Iterator[Module]:
    """The networks in an object's attributes, including those in containers, models and other objects."""
    for value in list(getattr(thing, "__dict__", {}).values()):
        if value is not thing and type(value) not in LEAVES:
            yield from networks_at(value, depth)


def networks_at(value: Any, depth: int) -> Iterator[Module]:
    """The networks that a value is or contains: a module, a container, a model, or any other object."""
    if isinstance(value, Module):
        yield value
    elif not depth or is_library_process(value) or isinstance(value, HOLD_NONE):
        return
    elif isinstance(value, Mapping | list | tuple | set):
        entries = value.values() if isinstance(value, Mapping) else value
        for entry in itertools.islice(entries, ENTRIES):
            if type(entry) not in LEAVES:
                yield from networks_at(entry, depth - 1)
    elif hasattr(value, "predict") and hasattr(value, "process"):
        yield from networks_of(value)
    else:
        yield from held_by(value, depth - 1)


def is_library_process(value: Any) -> bool:
    """True for a process of this package, which contains only numbers; a user's process may contain networks."""
    return isinstance(value, SDE) and not is_user_defined(value)


def networks_in(function: Any, depth: int = DEPTH) -> Iterator[Module]:
    """The networks that a function is or refers to: bound, in its closure or defaults, or as global names."""
    if isinstance(function, Module):
        yield function
    elif isinstance(function, functools.partial):
        for each in (function.func, *function.args, *function.keywords.values()):
            yield from networks_in(each, depth)
    elif isinstance(function, types.MethodType):
        yield from networks_in(function.__func__, depth)
        yield from networks_in(function.__self__)
    elif isinstance(function, types.FunctionType):
        if depth:
            for each in names_used(function):
                yield from networks_in(each, depth - 1)
    else:
        yield from networks_at(function, depth)


def names_used(function: types.FunctionType) -> Iterator[Any]:
    """The objects that a Python function refers to: its closure, its defaults, and the globals named in its code."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]  # inner functions
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)
