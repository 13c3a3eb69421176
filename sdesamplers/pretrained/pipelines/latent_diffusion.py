"""Latent diffusion before Stable Diffusion, and Kandinsky's decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ...errors import ModelError, UsageError
from .autoencoders import Autoencoder, Unscaled
from .base import Conditioning, PipelineModel
from .text import TextModel


def halvings(autoencoder: Any) -> int:
    """Return the number of pixels per latent along one side."""
    return int(2 ** (len(autoencoder.config.block_out_channels) - 1))


class LatentDiffusion(PipelineModel):
    """Unconditional latent diffusion (Rombach et al. 2022), over the latents of a vector-quantised autoencoder."""

    AUTOENCODER: ClassVar[str] = "vqvae"
    AUTOENCODERS: ClassVar[tuple[str, ...]] = ("VQModel", "AutoencoderKL")

    @classmethod
    def refuse(cls, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
        super().refuse(configs, name)
        for key in ("class_embed_type", "num_class_embeds"):
            if configs[cls.NETWORK].get(key) is not None:
                raise ModelError(f"the UNet of {name!r} takes class labels ({key}), which this kind does not support")

    def scale_factor(self) -> int:
        return halvings(self._coder().module)

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        output: Tensor = self.network(x, timestep, return_dict=False)[0]
        return output


class LatentDiffusionText(TextModel):
    """Latent diffusion with text (Rombach et al. 2022)."""

    AUTOENCODER: ClassVar[str] = "vqvae"
    AUTOENCODERS: ClassVar[tuple[str, ...]] = ("VQModel", "AutoencoderKL")
    MAX_TOKENS = 77

    def scale_factor(self) -> int:
        return 8  # fixed in the pipeline, whatever the autoencoder's factor

    def default_size(self) -> tuple[int, int]:
        side = self.network.config.sample_size * self.pipe.vae_scale_factor
        return side, side

    def _run_encoder(self, prompt: str | None, negative: bool) -> Sequence[Any]:
        kwargs = {"padding": "max_length", "max_length": self.MAX_TOKENS, "truncation": True, "return_tensors": "pt"}
        tokens = self.pipe.tokenizer([prompt or ""], **kwargs).input_ids
        encoded: Sequence[Any] = self.pipe.bert(tokens.to(self.device))
        return encoded

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        return {"embeds": self.cast(encoded[0])}

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        embeds = condition.tensors["embeds"]
        output: Tensor = self.network(x, timestep, encoder_hidden_states=embeds, return_dict=False)[0]
        return output


class Kandinsky(PipelineModel):
    """The decoder of Kandinsky 2.2 (Razzhigaev et al. 2023), conditioned on image embeddings (N, D) or (1, D).

    They are computed by its prior pipeline, as is the negative embedding for guidance:
    `Guided(model, 4.0, negative=...)`.
    """

    AUTOENCODER: ClassVar[str] = "movq"
    AUTOENCODERS: ClassVar[tuple[str, ...]] = ("VQModel",)

    @classmethod
    def refuse(cls, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
        super().refuse(configs, name)
        if configs[cls.NETWORK].get("addition_embed_type") != "image":
            raise ModelError(f"the UNet of {name!r} takes more than image embeddings (ControlNet hints, or text)")

    def make_autoencoder(self, module: Any) -> Autoencoder:
        return Unscaled(module)

    def scale_factor(self) -> int:
        return int(self.pipe.movq_scale_factor)

    def multiple(self) -> int:
        return self.scale_factor() ** 2

    def encode_condition(self, condition: Any, count: int) -> Any:
        width = self.network.config.encoder_hid_dim
        if not isinstance(condition, Tensor) or condition.dim() != 2 or condition.shape[1] != width:
            raise UsageError(f"model {self.name!r} is conditioned on image embeddings: pass condition= (N, {width})")
        if len(condition) not in (1, count):
            raise UsageError(f"condition must be one embedding or {count}, one per sample, not {len(condition)}")
        embeds = condition.to(self.device, self.network_dtype).expand(count, -1)
        return Conditioning({"embeds": embeds}, (None,) * count)

    def unconditional(self, count: int) -> Any:
        raise UsageError(
            f"model {self.name!r} needs the negative_image_embeds of its prior for guidance: pass them as "
            "Guided(model, scale, negative=...)"
        )

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        output: Tensor = self.network(
            x,
            timestep,
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": condition.tensors["embeds"]},
            return_dict=False,
        )[0]
        return output
