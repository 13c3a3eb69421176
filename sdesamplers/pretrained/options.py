"""What `load` is asked for, as one object that the loading chain hands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checks import TRUTHS, flag, one_of_types
from ..errors import UsageError
from ..models.clipping import Clip, ClipLike

STRING_OPTIONS = ("revision", "subfolder", "variant", "mixed_precision", "prediction", "negative_prompt")
FLAG_OPTIONS = ("local_files_only", "allow_pickle", "round_timesteps", "zero_snr", "compile", "channels_last")
TEXT_OPTIONS = ("prompt", "negative_prompt", "embedded_guidance")
"""Options of pipelines that take text."""
LOCATION_OPTIONS = ("variant", "token", "cache_dir", "local_files_only")
"""Options that say where files are, which a plugin's model is not asked about."""
TUNING = ("compile", "channels_last")
"""Options that `load` applies itself, whatever the model."""


@dataclass(frozen=True)
class LoadOptions:
    """The options of `load`; see there for the attributes.

    Raises:
        UsageError: an option of the wrong type, or a value that no model has.
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
        for word in STRING_OPTIONS:
            one_of_types(word, getattr(self, word), (str, type(None)), "text")
        one_of_types("token", self.token, (str, bool, type(None)), "text, True or False")
        one_of_types("cache_dir", self.cache_dir, (str, Path, type(None)), "a folder")
        for word in FLAG_OPTIONS:
            flag(word, getattr(self, word))
        Clip.of(self.clip)

    @property
    def floats(self) -> torch.dtype | None:
        """`dtype` as a torch dtype.

        Raises:
            UsageError: it is none of floating-point numbers.
        """
        return as_dtype(self.dtype)

    def check_precision(self) -> None:
        """Raise UsageError unless `dtype` and `mixed_precision` are known."""
        as_dtype(self.dtype)
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise UsageError(f"mixed_precision must be 'no', 'bf16' or 'fp16', not {self.mixed_precision!r}")

    def given(self) -> dict[str, Any]:
        """The options that are neither None nor off, but those that `load` applies itself; 0, a label, is given."""
        off = {word for word, value in vars(self).items() if type(value).__name__ in TRUTHS and not value}
        return {word: v for word, v in vars(self).items() if v is not None and word not in (*off, *TUNING)}

    def for_plugins(self) -> dict[str, Any]:
        """What a plugin is asked for."""
        options = {word: value for word, value in vars(self).items() if word not in (*LOCATION_OPTIONS, *TUNING)}
        return {**options, "dtype": self.floats}


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating torch dtype from itself or its name ("fp16", "bfloat16", ...)."""
    short = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    found = getattr(torch, short.get(str(dtype), str(dtype)), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"dtype must be float32, float64, float16 or bfloat16, not {dtype!r}")
    return found
