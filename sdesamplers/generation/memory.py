"""How many samples fit in memory at once: a measurement of two small batches, drawn out as a straight line."""

from __future__ import annotations

import math
import os
import weakref
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import Cancelled, UsageError
from ..sampling.prepared import PreparedRun
from .conditions import Conditions

EVALUATIONS = 2
"""Of a trial."""
STATES = 8
"""Tensors like the state that a sampler's history may hold later on."""
LARGEST = {"cpu": 64, "other": 512}
"""On CPUs larger batches are no faster."""
SPARE = 1.3
"""What is taken to be used beyond what was counted: scratch memory of kernels and an allocator's gaps."""


def batch_size_for(run: PreparedRun, conditions: Conditions, limit: int | None, most: int) -> int:
    """All samples, or the largest power of two of them that should fit.

    Args:
        run: what each batch does.
        conditions: the samples'.
        limit: bytes that a process may use on the model's device beside its weights; by default half of what is free.
        most: how many samples there are.

    Raises:
        UsageError: not one sample fits.
    """
    limit = free_memory(run.model.device) // 2 if limit is None else limit
    small, large = 1, min(3, most)
    low = peak_of(run, conditions, small)
    high = low if large == small else peak_of(run, conditions, large)
    each = max(high - low, 1) / max(large - small, 1) + STATES * run.dtype.itemsize * math.prod(run.model.shape)
    room = limit / SPARE - low
    if room < 0:
        raise UsageError(
            f"one sample of {run.model.name} needs about {readable(low * SPARE)}, and the memory limit is "
            f"{readable(limit)}"
        )
    fits = small + int(room / each)
    cap = LARGEST.get(run.model.device.type, LARGEST["other"])
    return most if most <= min(fits, cap) else 2 ** (min(fits, cap).bit_length() - 1)


def peak_of(run: PreparedRun, conditions: Conditions, size: int) -> float:
    """Bytes that the first evaluations of a batch take at their peak; infinite where there are not so many."""
    rows = range(size)
    counted = 0

    def stop(event: Any) -> None:
        nonlocal counted
        counted += 1
        if counted > EVALUATIONS:
            raise Cancelled("the trial is over")

    device = run.model.device
    meter = Meter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    try:
        with nullcontext() if device.type == "cuda" else meter:
            run.run(rows, conditions.of(rows), advance=stop)
    except Cancelled:
        pass
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return math.inf
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else meter.peak


class Meter(TorchDispatchMode):
    """Counts the bytes of tensors that operations make while it is on, as long as they live, whoever allocates them.

    Args:
        given: count also what operations are given, from when they first are.

    Attributes:
        live: bytes held now.
        peak: the most that were held at once.
    """

    def __init__(self, *, given: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.given, self.live, self.peak = given, 0, 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {storage._cdata: storage for storage in storages((args, kwargs))}
        for storage in [*(given.values() if self.given else ()), *storages(out)]:
            if self.given or storage._cdata not in given:
                self._see(storage)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """What the tensors of a nested structure lie in."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def free_memory(device: torch.device) -> int:
    """Bytes that this process may count on: of the device, or its share of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # only jobs need it

    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """ "8GB", "512MiB" or a number of bytes.

    Raises:
        UsageError: it is no amount of memory.
    """
    number = text.strip().rstrip("BbGgIiKkMmTt")
    unit = text.strip()[len(number) :].upper() or "B"
    try:
        amount = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        amount = 0
    if not 1 <= amount < 2**63:
        raise UsageError(f"memory is given as 8GB, 512MiB or a number of bytes, not {text!r}")
    return int(amount)


def readable(amount: float) -> str:
    """Bytes for people."""
    if math.isinf(amount):
        return "more than there is"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount:.0f} bytes"


def ran_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might help, by accelerate's list of devices' messages."""
    from accelerate.utils.memory import should_reduce_batch_size  # accelerate takes a second to import

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)


def clear_cache() -> None:
    """Give back what the device's allocator keeps."""
    from accelerate.utils.memory import clear_device_cache  # accelerate takes a second to import

    clear_device_cache(garbage_collection=True)
