"""From a pipeline's `generator` to the seeds of our keyed noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError

Generators = torch.Generator | Sequence[torch.Generator] | None


def seeds_of(generator: Generators, sample: Tensor) -> tuple[list[int], list[int]]:
    """A seed and an index for each sample of `sample` (N, ...).

    A list of generators is one for each sample, which then depends on its own alone. One generator for all gives its
    seed to all, and each its index, so that sample i is the same whatever the batch. A generator that has drawn more
    than the starting noise (it was used before) is told apart by its state, so that a second run has other noise.
    Without a generator the seed is drawn from torch's global one, as pipelines draw their latents.

    Every generator is moved on by a draw, so that a run that starts from given latents has other noise than the one
    before it (a refiner behind a base model).
    """
    count = len(sample)
    if generator is None:
        seed = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu"))
        return [seed] * count, list(range(count))
    if isinstance(generator, torch.Generator):
        return [_seed(generator, sample)] * count, list(range(count))
    if not isinstance(generator, list | tuple) or not all(isinstance(each, torch.Generator) for each in generator):
        raise UsageError(f"generator must be a torch.Generator, or a list with one for each image, not {generator!r}")
    if not generator:
        raise UsageError("generator is an empty list; give one torch.Generator, or one an image")
    if len(generator) == 1:
        return [_seed(generator[0], sample)] * count, list(range(count))
    if count % len(generator):
        raise UsageError(f"{len(generator)} generators for {count} images; give one, or one an image")
    # A pipeline that steps the guided and unguided halves together (DiT) has twice the images.
    return [_seed(each, sample[:1]) for each in generator] * (count // len(generator)), [0] * count


def _seed(generator: torch.Generator, drawn: Tensor) -> int:
    """The generator's seed where it has drawn noise like `drawn` since, and nothing else; else a hash of its state.

    Generator states lie on the host for every device, so nothing waits.
    """
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    unused = torch.equal(fresh.get_state(), generator.get_state())
    if not unused:
        torch.randn(drawn.shape, generator=fresh, device=generator.device, dtype=drawn.dtype)
        unused = torch.equal(fresh.get_state(), generator.get_state())
    state = generator.get_state().numpy().tobytes()
    torch.rand((), generator=generator, device=generator.device)
    if unused:
        return generator.initial_seed() % 2**64
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little")
