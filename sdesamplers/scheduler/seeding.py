"""Seeds of our keyed noise, from a pipeline's `generator`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError

Generators = torch.Generator | Sequence[torch.Generator] | None


def seeds_of(generator: Generators, sample: Tensor) -> tuple[list[int], list[int]]:
    """A seed and an index for each sample of `sample` (N, ...).

    With a list of generators, one per sample, each sample depends only on its own generator. With a single generator
    all samples share its seed, and each has its own index, so sample i does not depend on the batch size. If a
    generator has drawn more than the starting noise (it was used before), a hash of its state replaces its seed, so a
    second run has different noise. Without a generator the seed is drawn from torch's global generator, as pipelines
    draw their latents.

    Every generator is advanced by one draw, so that a run from given latents (a refiner after a base model) has
    different noise from the run before it.
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
        raise UsageError("generator is an empty list; pass one torch.Generator, or one for each image")
    if len(generator) == 1:
        return [_seed(generator[0], sample)] * count, list(range(count))
    if count % len(generator):
        raise UsageError(f"{len(generator)} generators for {count} images; pass one, or one for each image")
    # A pipeline that steps the guided and unguided halves together (DiT's) has twice as many images.
    return [_seed(each, sample[:1]) for each in generator] * (count // len(generator)), [0] * count


def _seed(generator: torch.Generator, drawn: Tensor) -> int:
    """The generator's seed if it has drawn nothing since, or only noise like `drawn`; else a hash of its state.

    Generator states are on the host for every device, so this does not synchronize.
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
