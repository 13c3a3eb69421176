"""The pieces of a job: which samples are in one, and what is known of a finished one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import write


@dataclass(frozen=True)
class Shard:
    """Consecutive samples that are written together.

    Attributes:
        number, of: which shard, and of how many.
        rows: positions of its samples in the job.
    """

    number: int
    of: int
    rows: range

    def batches(self, size: int) -> Iterator[range]:
        """Its rows, at most `size` at a time; cut the same way whoever makes them, for bits depend on the cut."""
        for first in range(self.rows.start, self.rows.stop, size):
            yield range(first, min(first + size, self.rows.stop))

    @property
    def label(self) -> str:
        """What is added to a file's name: nothing where there is one shard alone."""
        return "" if self.of == 1 else f"-{self.number:05d}-of-{self.of:05d}"


def cut(count: int, size: int) -> list[Shard]:
    """`count` samples as shards of `size`."""
    of = -(-count // size)
    return [Shard(k, of, range(k * size, min((k + 1) * size, count))) for k in range(of)]


@dataclass(eq=False)
class Batch:
    """Finished samples, on the CPU.

    Attributes:
        rows: their positions in the job.
        samples: (N, *shape), in the model's own space.
        nfe: (N,) evaluations of each.
        pixels: (N, H, W, C), uint8, where pictures are wanted.
        size: how many were made at once.
    """

    rows: range
    samples: Tensor
    nfe: np.ndarray
    pixels: np.ndarray | None
    size: int

    @classmethod
    def join(cls, parts: list[Batch]) -> Batch:
        """Consecutive batches as one."""
        pixels = [part.pixels for part in parts if part.pixels is not None]
        return cls(
            range(parts[0].rows.start, parts[-1].rows.stop),
            torch.cat([part.samples for part in parts]),
            np.concatenate([part.nfe for part in parts]),
            np.concatenate(pixels) if pixels else None,
            min(part.size for part in parts),
        )

    def save(self, file: Path, key: str) -> None:
        """Keep an unfinished shard's batch, with a checksum of what is in it and of `key`, the job's."""
        from safetensors.torch import save

        tensors = {"samples": self.samples.contiguous(), "nfe": torch.from_numpy(self.nfe)}
        if self.pixels is not None:
            tensors["pixels"] = torch.from_numpy(self.pixels)
        content = save(tensors, {"size": str(self.size)})
        write(file, hashlib.sha256(key.encode() + content).digest() + content)

    @classmethod
    def load(cls, file: Path, rows: range, key: str) -> Batch | None:
        """What `save` kept; None where it is not there, not whole, or another job's."""
        from safetensors.torch import load

        try:
            whole = file.read_bytes()
        except OSError:
            return None
        content = whole[32:]
        if hashlib.sha256(key.encode() + content).digest() != whole[:32]:
            return None
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        pixels = tensors.get("pixels")
        return cls(
            rows,
            tensors["samples"],
            tensors["nfe"].numpy(),
            None if pixels is None else pixels.numpy(),
            int(header["__metadata__"]["size"]),
        )


def sha256(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest(files: list[Path]) -> str:
    """SHA-256 of a file; of several, that of the listing that sha256sum prints of them."""
    sums = [sha256(file.read_bytes()) for file in files]
    if len(files) == 1:
        return sums[0]
    listing = "".join(f"{each}  {file.name}\n" for each, file in zip(sums, files, strict=True))
    return sha256(listing.encode())


def describe(files: list[Path]) -> dict[str, Any]:
    """What a record says of a format's files."""
    name = files[0].name if len(files) == 1 else f"{files[0].name} ... {files[-1].name}"
    return {"name": name, "files": len(files), "bytes": sum(f.stat().st_size for f in files), "sha256": digest(files)}
