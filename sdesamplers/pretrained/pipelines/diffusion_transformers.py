"""Diffusion transformers: Stable Diffusion 3, PixArt, Sana, AuraFlow, Lumina and DiT."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ...errors import UsageError
from ...processes.schedules import RectifiedFlow
from ..conventions import Convention, Flow
from ..unets import class_labels
from .base import Conditioning, PipelineModel
from .text import TextModel


class StableDiffusion3(TextModel):
    """Stable Diffusion 3 and 3.5 (Esser et al. 2024); without its T5 encoder, the network receives zeros for it."""

    NETWORK: ClassVar[str] = "transformer"
    OPTIONAL: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")

    def multiple(self) -> int:
        return self.scale_factor() * int(self.network.config.patch_size)

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        embeds, pooled = (encoded[k + negative] for k in (0, 2))
        return {"embeds": self.cast(embeds), "pooled": self.cast(pooled)}

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        tensors = condition.tensors
        output: Tensor = self.network(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=tensors["embeds"],
            pooled_projections=tensors["pooled"],
            return_dict=False,
        )[0]
        return output


class MaskedText(TextModel):
    """Transformers that take a prompt's embeddings and an attention mask."""

    NETWORK: ClassVar[str] = "transformer"

    def multiple(self) -> int:
        return self.scale_factor() * int(self.network.config.get("patch_size") or 1)

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        embeds, mask = encoded[2:4] if negative else encoded[:2]
        return {"embeds": self.cast(embeds), "attention_mask": mask}

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        tensors = condition.tensors
        output: Tensor = self.network(
            x,
            encoder_hidden_states=tensors["embeds"],
            encoder_attention_mask=tensors["attention_mask"],
            timestep=timestep,
            return_dict=False,
            **self.extra_arguments(tensors),
        )[0]
        return output

    def extra_arguments(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return further keyword arguments of the network."""
        return {}


class PixArt(MaskedText):
    """PixArt Alpha and Sigma (Chen et al. 2023, 2024); Alpha's large network also takes size and aspect ratio.

    The size is used as given, without the pipeline's binning to the nearest size in its list.
    """

    def extra_tensors(self, embeds: Tensor) -> dict[str, Tensor]:
        if not self.network.use_additional_conditions:
            return {}
        height, width = self.sizes
        return {
            "resolution": embeds.new_tensor([[height, width]]),
            "aspect_ratio": embeds.new_tensor([[height / width]]),
        }

    def extra_arguments(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"added_cond_kwargs": {name: tensors.get(name) for name in ("resolution", "aspect_ratio")}}


class Sana(MaskedText):
    """Sana (Xie et al. 2024)."""

    AUTOENCODERS: ClassVar[tuple[str, ...]] = ("AutoencoderDC",)

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        return super().ask(x, timestep * self.network.config.timestep_scale, condition)


class AuraFlow(TextModel):
    """AuraFlow: flow matching with network time t in [0, 1]."""

    NETWORK: ClassVar[str] = "transformer"

    def multiple(self) -> int:
        return self.scale_factor() * int(self.network.config.patch_size)

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        return {"embeds": self.cast(encoded[2 if negative else 0])}

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        output: Tensor = self.network(
            x,
            encoder_hidden_states=condition.tensors["embeds"],
            timestep=(timestep / 1000).to(x.dtype),
            return_dict=False,
        )[0]
        return output


class Lumina(MaskedText):
    """Lumina-Next (Zhuo et al. 2024): flow matching with network time 1 - t and prediction x0 - eps.

    Guidance applies to all channels; in its pipeline, only to the first three.
    """

    def make_convention(self, config: dict[str, Any]) -> Convention:
        process = super().make_convention(config).process
        return Flow(cast(RectifiedFlow, process), 1.0, reverse=True)

    def prepare(self) -> None:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina  # diffusers takes seconds to import

        side = self.pipe.default_image_size
        factor = math.sqrt(math.prod(self.sizes) / side**2)
        rotary = get_2d_rotary_pos_embed_lumina(self.network.head_dim, 384, 384, linear_factor=factor, ntk_factor=1.0)
        self._rotary, self._base = rotary.to(self.device), (side // 16) ** 2

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        tensors = condition.tensors
        output: Tensor = self.network(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=tensors["embeds"],
            encoder_mask=tensors["attention_mask"],
            image_rotary_emb=self._rotary,
            cross_attention_kwargs={"base_sequence_length": self._base},
            return_dict=False,
        )[0]
        return output


class Lumina2(Lumina):
    """Lumina-Image 2.0 (Qin et al. 2025). Guidance is not normalised; its pipeline normalises it by default."""

    def prepare(self) -> None:
        """Nothing to precompute: the network computes its rotary embeddings itself."""

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        tensors = condition.tensors
        output: Tensor = self.network(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=tensors["embeds"],
            encoder_attention_mask=tensors["attention_mask"],
            return_dict=False,
        )[0]
        return output


class DiT(PipelineModel):
    """DiT (Peebles & Xie 2023): class-conditional, with a learned variance that is ignored."""

    NETWORK: ClassVar[str] = "transformer"

    @property
    def num_classes(self) -> int:
        """The number of class labels; the next label is the unconditional one."""
        return int(self.network.config.num_embeds_ada_norm)

    def multiple(self) -> int:
        return self.scale_factor() * int(self.network.config.patch_size)

    def scale_factor(self) -> int:
        blocks = None if self._autoencoder is None else self._autoencoder.module.config.get("block_out_channels")
        return 2 ** (len(blocks) - 1) if blocks else 8

    def encode_condition(self, condition: Any, count: int) -> Any:
        if condition is None:
            raise UsageError(
                f"model {self.name!r} is class-conditional: pass {{condition}}, a label from 0 to "
                f"{self.num_classes - 1}",
                arguments={"condition": "condition="},
            )
        labels = class_labels(condition, self.num_classes)
        if len(labels) not in (1, count):
            raise UsageError(f"condition must be one label or {count}, one per sample, not {len(labels)}")
        return self._labelled([int(label) for label in labels] * (count if len(labels) == 1 else 1))

    def unconditional(self, count: int) -> Any:
        return self._labelled([self.num_classes] * count)

    def _labelled(self, labels: list[int]) -> Conditioning:
        shown = tuple(None if label == self.num_classes else label for label in labels)
        return Conditioning({"labels": torch.tensor(labels).to(self.device)}, shown)

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        labels = condition.tensors["labels"]
        output: Tensor = self.network(x, timestep=timestep, class_labels=labels, return_dict=False)[0]
        return output
