"""The batch size that fits in memory: linear extrapolation of the memory that two small batches take."""

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
"""Model evaluations of a trial run."""
STATES = 8
"""Allowance for the history of a sampler after the trial, in tensors of the size of the state."""
LARGEST = {"cpu": 64, "other": 512}
"""Largest automatic batch size by device type; on CPUs larger batches are no faster."""
SPARE = 1.3
"""Safety factor on the measured memory, for kernel workspaces and allocator fragmentation."""


def batch_size_for(run: PreparedRun, conditions: Conditions, limit: int | None, most: int) -> int:
    """Return the number of samples, or the largest power of two that should fit in memory.

    Args:
        run: the prepared run that generates each batch.
        conditions: the conditions of all samples.
        limit: bytes that a process may use on the model's device beyond the weights; by default half of the free
            memory.
        most: number of samples.

    Raises:
        UsageError: not even one sample fits.
    """
    limit = free_memory(run.model.device) // 2 if limit is None else limit
    small, large = 1, min(3, most)
    low = peak_of(run, conditions, small)
    high = low if large == small else peak_of(run, conditions, large)
    each = max(high - low, 1) / max(large - small, 1) + STATES * run.dtype.itemsize * math.prod(run.model.shape)
    room = limit / SPARE - low
    if room < 0:
        need = "more memory than there is" if math.isinf(low) else f"about {readable(low * SPARE)}"
        raise UsageError(f"one sample of {run.model.name} needs {need}, and the memory limit is {readable(limit)}")
    fits = small + int(room / each)
    cap = LARGEST.get(run.model.device.type, LARGEST["other"])
    return most if most <= min(fits, cap) else 2 ** (min(fits, cap).bit_length() - 1)


def peak_of(run: PreparedRun, conditions: Conditions, size: int) -> float:
    """Peak memory of the first evaluations of a batch, in bytes; infinite if memory runs out."""
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
    """Counts the bytes of live tensors that operations create inside the context, on any device and allocator.

    Args:
        given: also count the input tensors of operations, from their first use on.

    Attributes:
        live: bytes in use now.
        peak: maximum of `live`.
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
    """The storages of the tensors in a nested structure."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def free_memory(device: torch.device) -> int:
    """Free bytes for this process: of its GPU, or its share of the machine's available memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # only jobs need it

    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """Parse an amount of memory: "8GB", "512MiB" or a number of bytes.

    Raises:
        UsageError: not an amount of memory.
    """
    number = text.strip().rstrip("BbGgIiKkMmTt")
    unit = text.strip()[len(number) :].upper() or "B"
    try:
        amount = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        amount = 0
    if not 1 <= amount < 2**63:
        raise UsageError(f"memory must be given as 8GB, 512MiB or a number of bytes, not {text!r}")
    return int(amount)


def readable(amount: float) -> str:
    """A number of bytes as text: "1.5 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount:.0f} bytes"


def ran_out_of_memory(error: Exception) -> bool:
    """True if an error means out of memory, by its class or by the device messages that accelerate lists."""
    from accelerate.utils.memory import should_reduce_batch_size  # accelerate takes a second to import

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)


def clear_cache() -> None:
    """Release the memory that the device's allocator caches."""
    from accelerate.utils.memory import clear_device_cache  # accelerate takes a second to import

    clear_device_cache(garbage_collection=True)
