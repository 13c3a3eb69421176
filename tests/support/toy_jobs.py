"""A job of many samples that costs next to nothing, so that its tests are of files and processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sdesamplers as sds

JOB: dict[str, Any] = {"steps": 2, "num_samples": 23, "batch_size": 3, "shard_size": 6, "seed": 5}


def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of N(0, 0.25 I) on a rectified flow, sample by sample the same at every batch size."""
    return (t - 0.25 * (1 - t)) * x / (0.25 * (1 - t) ** 2 + t**2)


def toy(function: Callable[..., torch.Tensor] = velocity, shape: tuple[int, ...] = (1, 4, 4), **words: Any) -> Any:
    """A model of that function."""
    words = {"data_range": (-1.0, 1.0), "name": "toy", **words}
    return sds.FunctionModel(function, sds.RectifiedFlow(), "flow", shape, **words)


def run(out: Path, model: Any = None, sampler: Any = "euler-maruyama", **words: Any) -> sds.Generated:
    """The toy's job, or one that differs from it by some words."""
    return sds.generate(model or toy(), sampler, out=out, **{**JOB, **words})


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
