"""What all pipelines have in common: conditions by the sample, the network's call, and the way to pictures and back."""

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
    """What a network is told beside state and time, for N samples.

    Attributes:
        tensors: by name, each with the samples first (N, ...).
        words: what was asked for, one a sample (a prompt or a label; None where nothing was).
    """

    tensors: Mapping[str, Tensor]
    words: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: slice | np.ndarray) -> Conditioning:
        """The part that belongs to some samples, a slice or an array of their numbers."""
        words = self.words[rows] if isinstance(rows, slice) else tuple(self.words[k] for k in rows)
        return Conditioning({name: value[rows] for name, value in self.tensors.items()}, words)

    def cloned(self) -> Conditioning:
        """The same in tensors of its own."""
        return Conditioning({name: value.clone() for name, value in self.tensors.items()}, self.words)

    def tolist(self) -> list[Any]:
        """The words, for records."""
        return list(self.words)

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Several batches' conditions as one batch's; a shorter sequence is padded where a mask says that it is.

        Raises:
            UsageError: they are of different models, or of lengths that cannot be told apart.
        """
        names = list(parts[0].tensors)
        if any(list(part.tensors) != names for part in parts):
            raise UsageError("conditions of different models cannot be joined in one batch")
        masked = "attention_mask" in names
        joined = {name: _joined([part.tensors[name] for part in parts], masked) for name in names}
        return cls(joined, tuple(word for part in parts for word in part.words))


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
    """A loaded pipeline's network in latent space, with conditions and a decoder; made by `from_pipeline`.

    The pipeline's networks stay as they are: they are put into evaluation mode for a run, and set back after it. The
    pipeline's scheduler says how the network was trained and is not used otherwise.

    Args:
        pipe: the pipeline, on its device and in its dtype.
        height, width: of the pictures, in pixels; by default what the network was trained at.
        condition: used where a call gives none.
        negative_prompt: what guidance leads away from; the pipeline's own idea of nothing by default.
        embedded_guidance: the guidance scale that a network distilled with guidance is told; the pipeline's default.
        encode_options: more arguments of the pipeline's `encode_prompt`, such as clip_skip or max_sequence_length.
        name, revision: for records.
        round_timesteps: ask at whole timesteps, as most schedulers do, instead of at the exact ones.
        zero_snr: rescale its table to zero terminal signal-to-noise ratio (Lin et al. 2024).
        scheduler, prediction: how the network was trained, in place of what the pipeline's scheduler says.
        autocast: a factory of the mixed-precision context.
        clip: bounds of x0; by default what the scheduler's configuration says, False for none.

    Raises:
        ModelError: the pipeline lacks what its kind needs.
        UsageError: an argument that does not fit.
    """

    pure = True
    NETWORK: ClassVar[str] = "unet"
    AUTOENCODER: ClassVar[str] = "vae"
    AUTOENCODERS: ClassVar[tuple[str, ...]] = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")
    """diffusers' classes that can take the autoencoder's place."""

    PATCH: ClassVar[int] = 1
    """How many of the latents' channels and places the network's input joins in one: 4 for patches of 2x2."""

    GUIDED_BY_EMBEDDING: ClassVar[str | None] = None
    """The argument of the pipeline's call that holds the embedded guidance, None where the kind has none."""

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
        self.process, self.prediction = self.convention.process, self.convention.prediction
        self.clip = Clip.of(clip, self.convention.clip)
        self.negative_prompt, self.encode_options = negative_prompt, dict(encode_options or {})
        self.embedded_guidance = self._embedded(embedded_guidance)
        self._default: Any = None
        if condition is not None:
            self.condition_for(condition, count_of(condition))
            self._default = condition

    # What a kind says of itself

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        """The network's raw output for its input x (N, *shape), timesteps (N,) and a condition of N samples."""
        raise NotImplementedError

    @classmethod
    def refuse(cls, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Raise ModelError where a network wants more than state, time and condition.

        Args:
            configs: of the pipeline's networks, by component.
            name: the model's, for the message.
        """
        network, autoencoder = configs[cls.NETWORK], configs.get(cls.AUTOENCODER, {})
        channels, out = network.get("in_channels"), network.get("out_channels")
        latent = autoencoder.get("latent_channels") or autoencoder.get("decoder_input_channels")
        if channels and latent and channels != latent * cls.PATCH:
            raise ModelError(
                f"the {cls.NETWORK} of {name!r} takes {channels} channels, {latent * cls.PATCH} of them noised "
                "latents: it wants pictures beside them (inpainting, filling, editing, control, upscaling), which a "
                "pipeline must give; set pipe.scheduler = sdesamplers.Scheduler.from_config(...) there"
            )
        if channels and out and out not in (channels, 2 * channels):
            raise ModelError(
                f"the {cls.NETWORK} of {name!r} takes {channels} channels and predicts {out}: it wants pictures beside "
                "the noised latents (super-resolution, editing), which a pipeline must give"
            )
        decoded = autoencoder.get("out_channels", 3)
        if autoencoder and decoded not in (1, 3, 4):
            raise ModelError(f"the {cls.AUTOENCODER} of {name!r} decodes to {decoded} channels, which are no pictures")

    def prepare(self) -> None:
        """Make what every call of the network needs."""

    def make_autoencoder(self, module: Any) -> Autoencoder:
        """How pictures are made."""
        return Autoencoder(module)

    def make_convention(self, config: dict[str, Any]) -> Convention:
        """How the network is asked, from the scheduler's configuration."""
        mu = mu_for(config, self.tokens()) if config.get("use_dynamic_shifting") else None
        return with_shift(convention_of(config), config, mu)

    def tokens(self) -> int:
        """How many patches the network sees, which is what dynamic shifting goes by."""
        patch = self.network.config.get("patch_size", 1) or 1
        return (self.shape[-2] // patch) * (self.shape[-1] // patch)

    def scale_factor(self) -> int:
        """Pixels a latent, along one side."""
        return int(getattr(self.pipe, "vae_scale_factor", 8))

    def multiple(self) -> int:
        """What sides in pixels must be multiples of."""
        return self.scale_factor()

    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the network was trained at."""
        size = getattr(self.pipe, "default_sample_size", None) or self.network.config.get("sample_size")
        if size is None:
            raise UsageError(f"the configuration of {self.name!r} has no sample_size; give height= and width=")
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.scale_factor(), width * self.scale_factor()

    def sides(self, height: int | None, width: int | None) -> tuple[int, ...]:
        """The size of what is decoded, without channels: height and width in pixels."""
        usual = (0, 0) if height and width else self.default_size()
        chosen = (height or usual[0], width or usual[1])
        step = self.multiple()
        for word, side in zip(("height", "width"), chosen, strict=True):
            if isinstance(side, int) and side > LARGEST_SIDE:
                raise UsageError(f"{word} reaches to {LARGEST_SIDE} pixels, not {side!r:.40}")
            if isinstance(side, bool) or not isinstance(side, int) or side < step or side % step:
                near = max(step, round(side / step) * step) if isinstance(side, int) else step
                raise UsageError(f"{word} must be a multiple of {step} pixels, not {side!r} (nearest: {near})")
        return chosen

    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one state."""
        height, width = self.sizes
        return self.channels, height // self.scale_factor(), width // self.scale_factor()

    # The model

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor | Output:
        if condition is None:
            condition = self.condition_for(None, len(x))
        timestep = timesteps_for(self.convention, t, x, rounded=self.round_timesteps)
        context: AbstractContextManager[Any] = self.autocast()
        with context:
            given = self.convention.scale_input(x, t)
            output = in_modes(self.ask, given.clone() if given is x else given, timestep, cloned(condition))
        # Guidance and preconditioning add large multiples of it, which half precision has no digits for.
        output = copied(without_variance(output, self.shape[0]))
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return self.convention.read(output, x.to(output.dtype), t)

    def networks(self) -> list[torch.nn.Module]:
        """All of the pipeline's: the one that is asked, text encoders, autoencoder."""
        parts = getattr(self.pipe, "components", {}).values()
        return [each for each in (self.network, *parts) if isinstance(each, torch.nn.Module)]

    def condition_for(self, condition: Any, count: int) -> Any:
        if condition is None:
            condition = self._default
        if not isinstance(condition, Conditioning):
            return self.encode_condition(condition, count)
        if len(condition) not in (1, count):
            raise UsageError(f"condition is that of {len(condition)} samples, and there are {count}")
        return condition if len(condition) == count else condition[np.zeros(count, dtype=np.int64)]

    def encode_condition(self, condition: Any, count: int) -> Any:
        """A condition in the user's words, for `count` samples; unconditional kinds take None."""
        return super().condition_for(condition, count)

    @property
    def decoded_range(self) -> tuple[float, float] | None:
        return (-1.0, 1.0)

    def decode(self, samples: Tensor, *, batch_size: int = 4, gradients: bool = False) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1], unclipped, float32 on the samples' device, from latents (N, *shape).

        Args:
            samples: latents.
            batch_size: how many are decoded at once.
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
        """Latents (N, *shape), float32 on the pictures' device, of pictures (N, 3, H, W) in [-1, 1].

        They are the most likely ones; the autoencoder's noise is left out.

        Raises:
            ModelError: the pipeline has no encoder.
            UsageError: pictures of another size than the model's.
        """
        if tuple(images.shape[2:]) != self.sizes:
            wanted = ", ".join(map(str, self.sizes))
            raise UsageError(f"pictures must have shape (N, channels, {wanted}), not {tuple(images.shape)}")
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
        word = self.GUIDED_BY_EMBEDDING if self.takes_embedded_guidance() else None
        if word is None:
            if scale is not None:
                raise UsageError(f"model {self.name!r} is told no guidance scale, so embedded_guidance does not apply")
            return None
        value = call_defaults(self.pipe).get(word) if scale is None else scale
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UsageError(f"embedded_guidance must be a finite number, not {value!r}")
        return float(value)

    def takes_embedded_guidance(self) -> bool:
        """Whether this network is told a guidance scale."""
        return False


def part(pipe: Any, name: str) -> Any:
    """A pipeline's component, without what torch.compile puts around it; None where it has none."""
    module = getattr(pipe, name, None)
    return getattr(module, "_orig_mod", module)


def configs_of(pipe: Any) -> dict[str, Mapping[str, Any]]:
    """The configurations of a loaded pipeline's networks, by component."""
    found = {}
    for key in pipe.components:
        config = getattr(part(pipe, key), "config", None)
        if config is not None:
            found[key] = config.to_dict() if hasattr(config, "to_dict") else config
    return found


def device_of(pipe: Any, network: Any) -> torch.device:
    """Where the network runs; offloaded pipelines move it there when it is asked."""
    return torch.device(getattr(pipe, "_execution_device", network.device))


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """The configuration that the model came with, also where one of our own schedulers has taken its place."""
    import diffusers  # diffusers takes seconds to import

    trained = getattr(scheduler, "trained", None)
    if trained:
        return dict(trained)
    kind = type(scheduler)  # the class that the pipeline has, or the one of diffusers that somebody's is made from
    names = [each.__name__ for each in kind.__mro__ if getattr(diffusers, each.__name__, None) is each]
    names = [name for name in names if name.endswith("Scheduler")] or [kind.__name__]
    return {**scheduler.config, "_class_name": names[0]}


def call_defaults(pipe: Any) -> dict[str, Any]:
    """The default arguments of a pipeline's call."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {word: p.default for word, p in parameters.items() if p.default is not inspect.Parameter.empty}


def mu_for(config: Mapping[str, Any], tokens: int) -> float:
    """mu of a resolution: it goes linearly with the number of patches (Esser et al. 2024, section 5.3.2)."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(base + (most - base) * (tokens - low) / (high - low))


def count_of(condition: Any) -> int:
    """How many samples a condition in the user's words is for: one, or as many as a list or array holds."""
    if isinstance(condition, str) or getattr(condition, "ndim", 1) == 0:
        return 1
    return len(condition) if hasattr(condition, "__len__") else 1
