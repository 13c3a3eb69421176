"""The pieces of a job: which samples are in one, and what is known of a finished one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ..io.files import Draft, checksum, regular_file

HEADER = 2**24
"""The longest header of a safetensors file that is read, in bytes."""


@dataclass(frozen=True)
class Shard:
    """Consecutive samples that are written together.

    Attributes:
        number, of: which shard, and of how many.
        rows: positions of its samples in the job.
    """

    number: int
    total: int
    rows: range

    def batches(self, size: int) -> Iterator[range]:
        """Its rows, at most `size` at a time; cut the same way whoever makes them, for bits depend on the cut."""
        for first in range(self.rows.start, self.rows.stop, size):
            yield range(first, min(first + size, self.rows.stop))

    @property
    def label(self) -> str:
        """What is added to a file's name: nothing where there is one shard alone."""
        return "" if self.total == 1 else f"-{self.number:05d}-of-{self.total:05d}"


def split(count: int, size: int) -> list[Shard]:
    """`count` samples as shards of `size`."""
    total = -(-count // size)
    return [Shard(k, total, range(k * size, min((k + 1) * size, count))) for k in range(total)]


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

    def packed(self, key: str, facts: dict[str, Any]) -> bytes:
        """As bytes to keep, with the job's facts and a checksum of all that and of `key`, the job's."""
        tensors = {"samples": self.samples.contiguous(), "nfe": torch.from_numpy(self.nfe)}
        if self.pixels is not None:
            tensors["pixels"] = torch.from_numpy(self.pixels)
        content = save(tensors, {"sdesamplers": json.dumps({"size": self.size, "job": facts})})
        return hashlib.sha256(content).digest() + hashlib.sha256(key.encode() + content).digest() + content

    @classmethod
    def unpacked(cls, packed: bytes, rows: range, key: str) -> Batch | None:
        """What was packed; None where it is not whole, or another job's."""
        about, content = batch_metadata(packed), packed[64:]
        if about is None or hashlib.sha256(key.encode() + content).digest() != packed[32:64]:
            return None
        tensors = load(content)
        pixels = tensors.get("pixels")
        return cls(
            rows,
            tensors["samples"],
            tensors["nfe"].numpy(),
            None if pixels is None else pixels.numpy(),
            int(about["size"]),
        )


def read_batch(path: Path) -> bytes | None:
    """What `packed` made and a file keeps; None if the file is not as long as its own header says.

    Raises:
        OSError: it cannot be read.
    """
    with regular_file(path) as (file, size):
        head = file.read(72)
        length = int.from_bytes(head[64:], "little")
        if len(head) < 72 or length > HEADER:
            return None
        head += file.read(length)
        try:
            ends = [each["data_offsets"][1] for name, each in json.loads(head[72:]).items() if name != "__metadata__"]
            complete = size == len(head) + max(ends)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None
        return head + file.read() if complete else None


def batch_metadata(packed: bytes) -> dict[str, Any] | None:
    """The size of a packed batch and the facts of its job; None where it is not whole."""
    content = packed[64:]
    if hashlib.sha256(content).digest() != packed[:32]:
        return None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about: dict[str, Any] = json.loads(header["__metadata__"]["sdesamplers"])
    return about


def sha256(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest(names: Sequence[str], sums: Sequence[str]) -> str:
    """SHA-256 of a file; of several, that of the listing that sha256sum prints of them."""
    if len(sums) == 1:
        return sums[0]
    return sha256("".join(f"{each}  {name}\n" for each, name in zip(sums, names, strict=True)).encode())


def describe_drafts(drafts: Sequence[Draft]) -> dict[str, Any]:
    """What a record says of a format's files: what they were meant to be, not what a disk made of it."""
    names = [each.path.name for each in drafts]
    name = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    size = sum(each.bytes for each in drafts)
    return {"name": name, "files": len(names), "bytes": size, "sha256": digest(names, [d.sha256 for d in drafts])}


def describe_files(files: Sequence[Path], size: int) -> dict[str, Any] | None:
    """The same of files as they are now; None where one cannot be read, or they are not `size` bytes together."""
    try:
        sizes = [file.stat().st_size for file in files]
    except OSError:
        return None
    if sum(sizes) != size:
        return None
    drafts = []
    for file, its in zip(files, sizes, strict=True):
        if (found := checksum(file, its)) is None:
            return None
        drafts.append(Draft(file, file, its, found))
    return describe_drafts(drafts)
