"""The options of `load` as one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checks import BOOL_TYPES, flag, one_of_types
from ..errors import UsageError
from ..models.clipping import Clip, ClipLike

STRING_OPTIONS = ("revision", "subfolder", "variant", "mixed_precision", "prediction", "negative_prompt")
FLAG_OPTIONS = ("local_files_only", "allow_pickle", "round_timesteps", "zero_snr", "compile", "channels_last")
TEXT_OPTIONS = ("prompt", "negative_prompt", "embedded_guidance")
"""Options of text-conditioned pipelines."""
LOCATION_OPTIONS = ("variant", "token", "cache_dir", "local_files_only")
"""Options that specify where files are; they are not passed to plugins."""
TUNING = ("compile", "channels_last")
"""Options that `load` itself applies, to any model."""


@dataclass(frozen=True)
class LoadOptions:
    """The options of `load`, which documents the attributes.

    Raises:
        UsageError: an option of the wrong type, or a value that is invalid for all models.
    """

    revision: str | None = None
    subfolder: str | None = None
    variant: str | None = None
    dtype: torch.dtype | str | None = None
    device: torch.device | str | None = None
    size: int | Sequence[int] | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    condition: Any = None
    null_condition: int | None = None
    prompt: str | Sequence[str] | None = None
    negative_prompt: str | None = None
    embedded_guidance: float | None = None
    allow_pickle: bool = False
    mixed_precision: str | None = None
    round_timesteps: bool = False
    zero_snr: bool = False
    scheduler: Any = None
    prediction: str | None = None
    clip: ClipLike = None
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name in STRING_OPTIONS:
            one_of_types(name, getattr(self, name), (str, type(None)), "text")
        one_of_types("token", self.token, (str, bool, type(None)), "text, True or False")
        one_of_types("cache_dir", self.cache_dir, (str, Path, type(None)), "a folder")
        for name in FLAG_OPTIONS:
            flag(name, getattr(self, name))
        Clip.of(self.clip)

    @property
    def floats(self) -> torch.dtype | None:
        """`dtype` as a torch dtype.

        Raises:
            UsageError: not a floating-point dtype.
        """
        return as_dtype(self.dtype)

    def check_precision(self) -> None:
        """Raise UsageError unless `dtype` and `mixed_precision` are valid."""
        as_dtype(self.dtype)
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise UsageError(f"mixed_precision must be 'no', 'bf16' or 'fp16', not {self.mixed_precision!r}")

    def given(self) -> dict[str, Any]:
        """Return the options that were set, without those that `load` itself applies; 0, a label, counts as set."""
        off = {name for name, value in vars(self).items() if type(value).__name__ in BOOL_TYPES and not value}
        return {name: v for name, v in vars(self).items() if v is not None and name not in (*off, *TUNING)}

    def for_plugins(self) -> dict[str, Any]:
        """Return the options that are passed to plugins."""
        options = {name: value for name, value in vars(self).items() if name not in (*LOCATION_OPTIONS, *TUNING)}
        return {**options, "dtype": self.floats}


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating-point torch dtype, given as a dtype or by its name ("fp16", "bfloat16", ...)."""
    short = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    found = getattr(torch, short.get(str(dtype), str(dtype)), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"dtype must be float32, float64, float16 or bfloat16, not {dtype!r}")
    return found
