"""Shards and batches of a job: their samples, kept batches as bytes, and checksums for records."""

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
"""Maximum size of a safetensors header that is read, in bytes."""


@dataclass(frozen=True)
class Shard:
    """Consecutive samples that are written together.

    Attributes:
        number: number of the shard, from 0.
        total: number of shards in the job.
        rows: positions of its samples in the job.
    """

    number: int
    total: int
    rows: range

    def batches(self, size: int) -> Iterator[range]:
        """Its rows in batches of at most `size`, the same in every process: rounding depends on the batch size."""
        for first in range(self.rows.start, self.rows.stop, size):
            yield range(first, min(first + size, self.rows.stop))

    @property
    def label(self) -> str:
        """The suffix of its file names: "-00002-of-00016"; empty if the job has a single shard."""
        return "" if self.total == 1 else f"-{self.number:05d}-of-{self.total:05d}"


def split(count: int, size: int) -> list[Shard]:
    """Split `count` samples into shards of `size`."""
    total = -(-count // size)
    return [Shard(k, total, range(k * size, min((k + 1) * size, count))) for k in range(total)]


@dataclass(eq=False)
class Batch:
    """Finished samples, on the CPU.

    Attributes:
        rows: their positions in the job.
        samples: (N, *shape), in the model's space.
        nfe: (N,) model evaluations of each sample.
        pixels: (N, H, W, C), uint8; None if no format needs pictures.
        size: the batch size at which they were generated, smaller than N if memory ran out.
    """

    rows: range
    samples: Tensor
    nfe: np.ndarray
    pixels: np.ndarray | None
    size: int

    @classmethod
    def join(cls, parts: list[Batch]) -> Batch:
        """Join consecutive batches."""
        pixels = [part.pixels for part in parts if part.pixels is not None]
        return cls(
            range(parts[0].rows.start, parts[-1].rows.stop),
            torch.cat([part.samples for part in parts]),
            np.concatenate([part.nfe for part in parts]),
            np.concatenate(pixels) if pixels else None,
            min(part.size for part in parts),
        )

    def packed(self, key: str, facts: dict[str, Any]) -> bytes:
        """The batch and the job's facts as bytes, after two checksums: plain, and salted with the job's `key`."""
        tensors = {"samples": self.samples.contiguous(), "nfe": torch.from_numpy(self.nfe)}
        if self.pixels is not None:
            tensors["pixels"] = torch.from_numpy(self.pixels)
        content = save(tensors, {"sdesamplers": json.dumps({"size": self.size, "job": facts})})
        return hashlib.sha256(content).digest() + hashlib.sha256(key.encode() + content).digest() + content

    @classmethod
    def unpacked(cls, packed: bytes, rows: range, key: str) -> Batch | None:
        """The batch in the bytes that `packed` returned; None if they are damaged, or another job's."""
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
    """Read a file of the bytes of `Batch.packed`; None if its length differs from the length in its header.

    Raises:
        OSError: the file cannot be read.
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
    """The batch size and the job's facts in a packed batch; None if it is damaged."""
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
    """The SHA-256 of a file; for several files, the SHA-256 of the listing that sha256sum prints for them."""
    if len(sums) == 1:
        return sums[0]
    return sha256("".join(f"{each}  {name}\n" for each, name in zip(sums, names, strict=True)).encode())


def describe_drafts(drafts: Sequence[Draft]) -> dict[str, Any]:
    """A record's entry for a format's files: names, size and checksum of the intended content, not of the disk's."""
    names = [each.path.name for each in drafts]
    name = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    size = sum(each.bytes for each in drafts)
    return {"name": name, "files": len(names), "bytes": size, "sha256": digest(names, [d.sha256 for d in drafts])}


def describe_files(files: Sequence[Path], size: int) -> dict[str, Any] | None:
    """The same entry for existing files; None if one cannot be read, or their sizes do not add up to `size` bytes."""
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
