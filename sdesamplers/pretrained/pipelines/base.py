"""The common base of pipeline models: conditions per sample, the network's call, decoding and encoding."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...errors import ModelError, UsageError
from ...models.base import Model, Output
from ...models.calling import copied, in_modes
from ...models.clipping import Clip, ClipLike
from ...models.conditions import cloned
from ...models.running import evaluating
from ...processes.scalars import Scalar
from ...public import public
from ..conventions import Convention, convention_of, timesteps_for, with_shift, with_zero_snr, without_variance
from ..folders import LARGEST_SIDE
from ..trained import checked_convention, trained_config
from .autoencoders import Autoencoder


@dataclass(frozen=True)
class Conditioning:
    """The inputs of a network besides state and time, for N samples.

    Attributes:
        tensors: the network's inputs by name, each (N, ...).
        labels: the user's condition of each sample: a prompt or a class label; None for an unconditional sample, or
            if the condition is an embedding.
    """

    tensors: Mapping[str, Tensor]
    labels: tuple[Any, ...]

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "words" in state:  # the former name of `labels`, in pickles
            state = {"tensors": state["tensors"], "labels": state["words"]}
        vars(self).update(state)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | np.ndarray) -> Conditioning:
        """Return the conditions of some samples, given by a slice or an array of indices."""
        labels = self.labels[rows] if isinstance(rows, slice) else tuple(self.labels[k] for k in rows)
        return Conditioning({name: value[rows] for name, value in self.tensors.items()}, labels)

    def cloned(self) -> Conditioning:
        """Return a copy with cloned tensors."""
        return Conditioning({name: value.clone() for name, value in self.tensors.items()}, self.labels)

    def tolist(self) -> list[Any]:
        """Return the labels, for records."""
        return list(self.labels)

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate conditions along the batch; if there is an attention mask, shorter sequences are zero-padded.

        Raises:
            UsageError: conditions of different models, or sequences of different lengths without a mask.
        """
        names = list(parts[0].tensors)
        if any(list(part.tensors) != names for part in parts):
            raise UsageError("conditions of different models cannot be joined in one batch")
        masked = "attention_mask" in names
        joined = {name: _joined([part.tensors[name] for part in parts], masked) for name in names}
        return cls(joined, tuple(label for part in parts for label in part.labels))


def _joined(values: list[Tensor], masked: bool) -> Tensor:
    shapes = {value.shape[1:] for value in values}
    if len(shapes) == 1:
        return torch.cat(values)
    if not masked or len({shape[1:] for shape in shapes}) > 1:
        listing = " and ".join(str(tuple(shape)) for shape in sorted(shapes))
        raise UsageError(f"conditions of shapes {listing} cannot be joined in one batch")
    longest = max(shape[0] for shape in shapes)
    out = values[0].new_zeros(sum(map(len, values)), longest, *values[0].shape[2:])
    row = 0
    for value in values:
        out[row : row + len(value), : value.shape[1]] = value
        row += len(value)
    return out


@public
class PipelineModel(Model):
    """A loaded pipeline's denoising network in latent space, with conditions and a decoder; see `from_pipeline`.

    The pipeline's networks are not modified; evaluation mode is set for a run and undone after it. The pipeline's
    scheduler specifies how the network was trained, and is not used otherwise.

    Args:
        pipe: the pipeline, on its device and in its dtype.
        height, width: of the images, in pixels; by default the size that the network was trained at.
        condition: default condition for calls without one.
        negative_prompt: the prompt that guidance leads away from; by default the pipeline's own unconditional input.
        embedded_guidance: the guidance scale that a guidance-distilled network takes as an input; by default that of
            the pipeline.
        encode_options: further arguments of the pipeline's `encode_prompt`, such as clip_skip or max_sequence_length.
        name, revision: for records.
        round_timesteps: evaluate at integer timesteps, as most schedulers do, instead of at exact ones.
        zero_snr: rescale the noise schedule to zero terminal signal-to-noise ratio (Lin et al. 2024).
        scheduler, prediction: how the network was trained, in place of the pipeline's scheduler and prediction type.
        autocast: a factory of the mixed-precision context.
        clip: bounds of x0; by default those of the scheduler's configuration, False for none.

    Raises:
        ModelError: the pipeline lacks a component that its kind needs, or its network needs further inputs.
        UsageError: an invalid argument.
    """

    pure = True
    NETWORK: ClassVar[str] = "unet"
    AUTOENCODER: ClassVar[str] = "vae"
    AUTOENCODERS: ClassVar[tuple[str, ...]] = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")
    """The supported autoencoder classes of diffusers."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Text encoders, and their tokenizers, in whose place the pipeline passes zeros if it has none."""

    PATCH: ClassVar[int] = 1
    """Ratio of the network's input channels to latent channels: 4 for patches of 2x2."""

    GUIDED_BY_EMBEDDING: ClassVar[str | None] = None
    """The argument of the pipeline's call for the embedded guidance scale; None if the kind has none."""

    def __init__(
        self,
        pipe: Any,
        *,
        height: int | None = None,
        width: int | None = None,
        condition: Any = None,
        negative_prompt: str | None = None,
        embedded_guidance: float | None = None,
        encode_options: Mapping[str, Any] | None = None,
        name: str | None = None,
        revision: str | None = None,
        round_timesteps: bool = False,
        zero_snr: bool = False,
        scheduler: Any = None,
        prediction: str | None = None,
        autocast: Any = nullcontext,
        clip: ClipLike = None,
    ) -> None:
        self.pipe, self.network = pipe, part(pipe, self.NETWORK)
        self.dtype, self.device = self.network.dtype, device_of(pipe, self.network)
        self.name = name or getattr(pipe, "name_or_path", None) or type(pipe).__name__
        self.revision, self.round_timesteps, self.autocast = revision, round_timesteps, autocast
        autoencoder = part(pipe, self.AUTOENCODER)
        self._autoencoder = None if autoencoder is None else self.make_autoencoder(autoencoder)
        self.channels = int(self.network.config.in_channels)
        self.sizes = self.sides(height, width)
        self.shape = self.latent_shape()
        self.refuse(configs_of(pipe), self.name)
        self.prepare()
        config = trained_config(scheduler_config(pipe.scheduler), scheduler, prediction)
        checked_convention(config, prediction)
        self.convention = self.make_convention(config)
        if zero_snr:
            self.convention = with_zero_snr(self.convention)
        if self.convention.reads_state:
            self._widen()
        self.process, self.prediction = self.convention.process, self.convention.prediction
        self.clip = Clip.of(clip, self.convention.clip)
        self.negative_prompt, self.encode_options = negative_prompt, dict(encode_options or {})
        self.embedded_guidance = self._embedded(embedded_guidance)
        self._default: Any = None
        if condition is not None:
            self.condition_for(condition, count_of(condition))
            self._default = condition

    # Overridden by the kinds of pipelines

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        """Return the network's raw output for its input x (N, *shape), timesteps (N,) and a condition of N samples."""
        raise NotImplementedError

    @classmethod
    def refuse(cls, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Raise ModelError if a network needs inputs other than state, time and condition.

        Args:
            configs: the configurations of the pipeline's networks, by component.
            name: the model's name in messages.
        """
        network, autoencoder = configs[cls.NETWORK], configs.get(cls.AUTOENCODER, {})
        channels, out = network.get("in_channels"), network.get("out_channels")
        latent = autoencoder.get("latent_channels") or autoencoder.get("decoder_input_channels")
        if channels and latent and channels != latent * cls.PATCH:
            raise ModelError(
                f"the {cls.NETWORK} of {name!r} takes {channels} channels, of which {latent * cls.PATCH} are noised "
                "latents: it needs images besides them (inpainting, filling, editing, control, upscaling), which only "
                "a pipeline provides; use the pipeline, with pipe.scheduler = sdesamplers.Scheduler.from_config(...)"
            )
        if channels and out and out not in (channels, 2 * channels):
            raise ModelError(
                f"the {cls.NETWORK} of {name!r} takes {channels} channels and predicts {out}: it needs images besides "
                "the noised latents (super-resolution, editing), which only a pipeline provides"
            )
        decoded = autoencoder.get("out_channels", 3)
        if autoencoder and decoded not in (1, 3, 4):
            raise ModelError(f"the {cls.AUTOENCODER} of {name!r} decodes to {decoded} channels, which are not images")

    def prepare(self) -> None:
        """Precompute what every call of the network needs."""

    def make_autoencoder(self, module: Any) -> Autoencoder:
        """Return the wrapper of the autoencoder `module`."""
        return Autoencoder(module)

    def make_convention(self, config: dict[str, Any]) -> Convention:
        """Return the network's convention for a scheduler's configuration."""
        mu = mu_for(config, self.tokens()) if config.get("use_dynamic_shifting") else None
        return with_shift(convention_of(config), config, mu)

    def tokens(self) -> int:
        """Return the number of patches in the network's input, on which dynamic shifting depends."""
        patch = self.network.config.get("patch_size", 1) or 1
        return (self.shape[-2] // patch) * (self.shape[-1] // patch)

    def scale_factor(self) -> int:
        """Return the number of pixels per latent along one side."""
        return int(getattr(self.pipe, "vae_scale_factor", 8))

    def multiple(self) -> int:
        """Return the number of pixels of which height and width must be multiples."""
        return self.scale_factor()

    def default_size(self) -> tuple[int, int]:
        """Return the height and width in pixels that the network was trained at."""
        size = getattr(self.pipe, "default_sample_size", None) or self.network.config.get("sample_size")
        if size is None:
            raise UsageError(f"the configuration of {self.name!r} has no sample_size; pass height= and width=")
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.scale_factor(), width * self.scale_factor()

    def sides(self, height: int | None, width: int | None) -> tuple[int, ...]:
        """Return the size of decoded samples without channels: height and width in pixels."""
        usual = (0, 0) if height and width else self.default_size()
        chosen = (height or usual[0], width or usual[1])
        step = self.multiple()
        for name, side in zip(("height", "width"), chosen, strict=True):
            if isinstance(side, int) and side > LARGEST_SIDE:
                raise UsageError(f"{name} must be at most {LARGEST_SIDE} pixels, not {side!r:.40}")
            if isinstance(side, bool) or not isinstance(side, int) or side < step or side % step:
                near = max(step, round(side / step) * step) if isinstance(side, int) else step
                raise UsageError(f"{name} must be a multiple of {step} pixels, not {side!r} (nearest: {near})")
        return chosen

    def latent_shape(self) -> tuple[int, ...]:
        """Return the shape of one latent."""
        height, width = self.sizes
        return self.channels, height // self.scale_factor(), width // self.scale_factor()

    # The model

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        if condition is None:
            condition = self.condition_for(None, len(x))
        timestep = timesteps_for(self.convention, t, x, rounded=self.round_timesteps)
        context: AbstractContextManager[Any] = self.autocast()
        with context:
            given = self.convention.scale_input(x, t).to(self.network_dtype)
            output = in_modes(self.ask, given.clone() if given is x else given, timestep, cloned(condition))
        # Guidance and preconditioning add large multiples of the output; half precision has too few digits for them.
        output = copied(without_variance(output, self.shape[0]))
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return self.convention.read(output, x.to(output.dtype), t)

    def networks(self) -> list[torch.nn.Module]:
        """Return all networks of the pipeline: the denoising network, text encoders, autoencoder."""
        parts = getattr(self.pipe, "components", {}).values()
        return [each for each in (self.network, *parts) if isinstance(each, torch.nn.Module)]

    def condition_for(self, condition: Any, count: int) -> Any:
        if condition is None:
            condition = self._default
        if not isinstance(condition, Conditioning):
            return self.encode_condition(condition, count)
        if len(condition) not in (1, count):
            raise UsageError(f"condition is for {len(condition)} samples, but there are {count}")
        return condition if len(condition) == count else condition[np.zeros(count, dtype=np.int64)]

    def encode_condition(self, condition: Any, count: int) -> Any:
        """Convert a user's condition (prompts, labels, ...) for `count` samples; unconditional kinds take None."""
        return super().condition_for(condition, count)

    @property
    def decoded_range(self) -> tuple[float, float] | None:
        return (-1.0, 1.0)

    def decode(self, samples: Tensor, *, batch_size: int = 4, gradients: bool = False) -> Tensor:
        """Decode latents (N, *shape) to images (N, 3, H, W) in [-1, 1], unclipped, float32, on the latents' device.

        Args:
            samples: latents.
            batch_size: the number decoded at once.
            gradients: let gradients flow to the latents.

        Raises:
            ModelError: the pipeline has no decoder.
            UsageError: latents of another shape.
        """
        if samples.dim() != len(self.shape) + 1 or samples.shape[1] != self.shape[0]:
            raise UsageError(
                f"latents must have shape (N, {', '.join(map(str, self.shape))}), not {tuple(samples.shape)}"
            )
        return self._chunked(self._coder().decode, samples, batch_size, gradients)

    def encode(self, images: Tensor, *, batch_size: int = 4, gradients: bool = False) -> Tensor:
        """Encode images (N, 3, H, W) in [-1, 1] to latents (N, *shape), float32, on the images' device.

        These are the mode of the encoder's distribution, without its noise.

        Raises:
            ModelError: the pipeline has no encoder.
            UsageError: images of a size other than the model's.
        """
        if tuple(images.shape[2:]) != self.sizes:
            wanted = ", ".join(map(str, self.sizes))
            raise UsageError(f"images must have shape (N, channels, {wanted}), not {tuple(images.shape)}")
        return self._chunked(self._coder().encode, images, batch_size, gradients)

    def _coder(self) -> Autoencoder:
        if self._autoencoder is None:
            raise ModelError(f"the pipeline of {self.name!r} has no {self.AUTOENCODER}, so latents cannot be decoded")
        return self._autoencoder

    def _chunked(self, run: Any, given: Tensor, size: int, gradients: bool) -> Tensor:
        with evaluating(self.networks()), torch.set_grad_enabled(gradients):
            parts = [run(part.to(self.device)).float().to(given.device) for part in torch.split(given, max(1, size))]
        return torch.cat(parts)

    def _embedded(self, scale: float | None) -> float | None:
        argument = self.GUIDED_BY_EMBEDDING if self.takes_embedded_guidance() else None
        if argument is None:
            if scale is not None:
                raise UsageError(f"model {self.name!r} takes no guidance scale, so embedded_guidance does not apply")
            return None
        value = call_defaults(self.pipe).get(argument) if scale is None else scale
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"embedded_guidance must be a finite number, not {value!r}")
        return float(value)

    def takes_embedded_guidance(self) -> bool:
        """Return True if this network takes a guidance scale as an input."""
        return False


def part(pipe: Any, name: str) -> Any:
    """Return a pipeline's component, without the wrapper of torch.compile; None if there is no such component."""
    module = getattr(pipe, name, None)
    return getattr(module, "_orig_mod", module)


def configs_of(pipe: Any) -> dict[str, Mapping[str, Any]]:
    """Return the configurations of a loaded pipeline's components, by name."""
    found = {}
    for key in pipe.components:
        config = getattr(part(pipe, key), "config", None)
        if config is not None:
            found[key] = config.to_dict() if hasattr(config, "to_dict") else config
    return found


def device_of(pipe: Any, network: Any) -> torch.device:
    """Return the device that the network runs on; offloaded pipelines move it there for each call."""
    return torch.device(getattr(pipe, "_execution_device", network.device))


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """Return the scheduler configuration that the model came with, even if `scheduler` is now one of ours."""
    import diffusers  # diffusers takes seconds to import

    trained = getattr(scheduler, "trained", None)
    if trained:
        return dict(trained)
    kind = type(scheduler)  # or, for a custom class, the diffusers class that it derives from
    names = [each.__name__ for each in kind.__mro__ if getattr(diffusers, each.__name__, None) is each]
    names = [name for name in names if name.endswith("Scheduler")] or [kind.__name__]
    return {**scheduler.config, "_class_name": names[0]}


def call_defaults(pipe: Any) -> dict[str, Any]:
    """Return the default arguments of a pipeline's call."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def mu_for(config: Mapping[str, Any], tokens: int) -> float:
    """Return mu at a resolution, which is linear in the number of patches (Esser et al. 2024, section 5.3.2)."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(base + (most - base) * (tokens - low) / (high - low))


def count_of(condition: Any) -> int:
    """Return the number of samples that a user's condition is for: the length of a list or array, else 1."""
    if isinstance(condition, str) or getattr(condition, "ndim", 1) == 0:
        return 1
    return len(condition) if hasattr(condition, "__len__") else 1
