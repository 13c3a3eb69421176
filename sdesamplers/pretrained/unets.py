"""Pixel-space UNets of diffusers as models: a UNet2DModel and its scheduler's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ModelError, UsageError
from ..models.base import Model, Output
from ..models.calling import copied, in_modes
from ..models.clipping import Clip, ClipLike
from ..models.conditions import cloned
from ..processes.scalars import Scalar
from .conventions import Convention, timesteps_for, without_variance
from .quiet import in_dtype, quiet_loading, warn_of_unknown_keys
from .trust import read_json, refuse_pickles, refuse_pointer


class DiffusersModel(Model):
    """A UNet2DModel as a `Model`, evaluated at fractional timesteps.

    Args:
        unet: the network, on its device and in its dtype.
        convention: its process, network time and prediction type.
        shape: (channels, height, width) of one sample.
        name, revision: for records.
        num_classes: the number of class labels; 0 for an unconditional network.
        condition: default labels for calls without a condition.
        null_condition: the label that means "no label", for classifier-free guidance.
        round_timesteps: evaluate at integer timesteps, as most schedulers do, instead of at exact ones.
        autocast: a factory of the mixed-precision context.
        clip: bounds of x0; by default those of the convention, False for none.
    """

    pure = True

    def __init__(
        self,
        unet: Any,
        convention: Convention,
        *,
        shape: Sequence[int],
        name: str = "unet",
        revision: str | None = None,
        num_classes: int = 0,
        condition: Any = None,
        null_condition: int | None = None,
        round_timesteps: bool = False,
        autocast: Any = nullcontext,
        clip: ClipLike = None,
    ) -> None:
        self.unet, self.network, self.convention = unet, unet, convention
        self.process, self.prediction, self.data_range = (
            convention.process,
            convention.prediction,
            convention.data_range,
        )
        self.shape, self.name, self.revision = tuple(shape), name, revision
        self.dtype, self.device = unet.dtype, unet.device
        if convention.reads_state:
            self._widen()
        self.num_classes, self.null_condition = num_classes, null_condition
        self.round_timesteps, self.autocast = round_timesteps, autocast
        self.clip = Clip.of(clip, convention.clip)
        self._default = None
        if condition is not None:
            self.condition_for(condition, class_labels(condition, num_classes).size if num_classes else 1)
            self._default = condition
        if null_condition is not None:
            self.condition_for(null_condition, 1)

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        timestep = timesteps_for(self.convention, t, x, rounded=self.round_timesteps)
        context: AbstractContextManager[Any] = self.autocast()
        with context:
            given = self.convention.scale_input(x, t).to(self.network_dtype)
            given = given.clone() if given is x else given
            output = in_modes(self.unet, given, timestep, class_labels=cloned(condition), return_dict=False)[0]
        output = copied(without_variance(output, self.shape[0]))
        return self.convention.read(output.to(x.dtype) if self.convention.reads_state else output, x, t)

    def condition_for(self, condition: Any, count: int) -> Any:
        if condition is None:
            condition = self._default
        if not self.num_classes:
            return super().condition_for(condition, count)
        if condition is None:
            raise UsageError(
                f"model {self.name!r} is class-conditional: pass {{condition}}, a label from 0 to "
                f"{self.num_classes - 1}",
                arguments={"condition": "condition="},
            )
        labels = class_labels(condition, self.num_classes)
        if labels.shape not in ((1,), (count,)):
            raise UsageError(f"condition must be one label or {count}, one per sample, not {labels.size}")
        return torch.from_numpy(np.broadcast_to(labels, (count,)).astype(np.int64)).to(self.device)

    def unconditional(self, count: int) -> Any:
        if not self.num_classes:
            return super().unconditional(count)
        if self.null_condition is None:
            raise UsageError(
                f"guidance needs the label that means 'no label' to model {self.name!r}; load it with "
                "{null_condition}",
                arguments={"null_condition": "null_condition="},
            )
        return self.condition_for(self.null_condition, count)


def class_labels(condition: Any, classes: int) -> np.ndarray:
    """Return a user's labels as an integer vector.

    Raises:
        UsageError: not labels from 0 to `classes` - 1.
    """
    try:
        labels = np.atleast_1d(np.asarray(condition.cpu() if isinstance(condition, Tensor) else condition))
    except ValueError:  # lists of unequal lengths
        labels = np.empty(0)
    if not np.issubdtype(labels.dtype, np.integer) or np.any((labels < 0) | (labels >= classes)):
        raise UsageError(f"condition must be labels from 0 to {classes - 1}, not {condition!r}")
    return labels


def load_unet(folder: Path, variant: str | None, dtype: torch.dtype | None, allow_pickle: bool) -> Any:
    """Load a UNet with UNet2DModel.from_pretrained; every failure is a one-line ModelError."""
    from diffusers import UNet2DModel  # diffusers takes seconds to import

    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    index = folder / f"diffusion_pytorch_model.safetensors.index{f'.{variant}' if variant else ''}.json"
    safe = [*folder.glob(f"{stem}.safetensors"), *folder.glob(index.name)]
    pickled = list(folder.glob(f"{stem}.bin"))
    if not safe:
        refuse_pickles(folder, pickled, allowed=allow_pickle)
    if not safe and not pickled:
        others = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))) or "none"
        raise ModelError(f"{folder} has no weights {stem}.safetensors (safetensors files there: {others})")
    try:
        for file in folder.glob(f"{stem}*.safetensors"):
            refuse_pointer(file)
            with safe_open(file, "pt"):  # checks header and length; diffusers would hide the reason of a failure
                pass
        with quiet_loading():
            unet, report = UNet2DModel.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=bool(safe),
                local_files_only=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                **in_dtype(dtype or torch.float32),
            )
    except SafetensorError as error:
        raise ModelError(f"{folder}: the weights are truncated or corrupt ({error})") from None
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{folder}: the UNet cannot be loaded: {text[:300]}") from None
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"{folder}: {len(report['missing_keys'])} weights are missing from the file ({some}, ...)")
    warn_of_unknown_keys(UNet2DModel, read_json(folder / "config.json"), folder)
    return unet
