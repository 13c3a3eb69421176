"""Stable Diffusion 1, 2 and XL, and latent consistency models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import ModelError, UsageError
from .text import TextModel


class StableDiffusion(TextModel):
    """Stable Diffusion 1 and 2 (Rombach et al. 2022), and latent consistency models (Luo et al. 2023).

    A latent consistency model is told its guidance scale, `embedded_guidance`.
    """

    GUIDED_BY_EMBEDDING: ClassVar[str | None] = "guidance_scale"
    ADDED: ClassVar[str | None] = None

    @classmethod
    def refuse(cls, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
        super().refuse(configs, name)
        network = configs[cls.NETWORK]
        allowed = {
            "addition_embed_type": (cls.ADDED,),
            "class_embed_type": (None,),
            "num_class_embeds": (None,),
            "encoder_hid_dim_type": (None, "text_proj"),
        }
        for word, values in allowed.items():
            if network.get(word) not in values:
                raise ModelError(f"the UNet of {name!r} has {word} {network[word]!r}, which text alone does not fill")
        refuse_other_text(configs, network, name)

    def takes_embedded_guidance(self) -> bool:
        return self.network.config.get("time_cond_proj_dim") is not None

    def unconditional(self, count: int) -> Any:
        if self.embedded_guidance is not None:
            raise UsageError(
                f"model {self.name!r} has guidance distilled into it: give {{embedded_guidance}}, and leave "
                "{guidance_scale} at 1",
                arguments={
                    "embedded_guidance": "from_pipeline embedded_guidance=",
                    "guidance_scale": "guidance_scale",
                },
            )
        return super().unconditional(count)

    def sort(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        return {"embeds": self.cast(encoded[1 if negative else 0])}

    def beside(self, embeds: Tensor) -> dict[str, Tensor]:
        if self.embedded_guidance is None:
            return {}
        width = self.network.config.time_cond_proj_dim
        # The LCM paper's w is the usual scale less 1.
        scale = torch.tensor([self.embedded_guidance - 1])
        told: Tensor = self.pipe.get_guidance_scale_embedding(scale, embedding_dim=width)
        return {"guidance": told.to(embeds)}

    def added(self, told: Any) -> dict[str, Tensor] | None:
        """What the UNet's added embedding is told."""
        return None

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        told = condition.tensors
        output: Tensor = self.network(
            x,
            timestep,
            encoder_hidden_states=told["embeds"],
            timestep_cond=told.get("guidance"),
            added_cond_kwargs=self.added(told),
            return_dict=False,
        )[0]
        return output


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (Podell et al. 2023): pooled text, and the picture's size as it was and is, uncropped."""

    ADDED: ClassVar[str | None] = "text_time"

    def sort(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        embeds, pooled = (encoded[k + negative] for k in (0, 2))
        return {"embeds": self.cast(embeds), "pooled": self.cast(pooled)}

    def beside(self, embeds: Tensor) -> dict[str, Tensor]:
        numbers = torch.tensor([[*self.sizes, 0, 0, *self.sizes]], dtype=embeds.dtype, device=embeds.device)
        return {**super().beside(embeds), "time_ids": numbers}

    @classmethod
    def refuse(cls, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
        super().refuse(configs, name)
        network, pooled = configs[cls.NETWORK], configs.get("text_encoder_2", {}).get("projection_dim")
        told, each = (
            network.get(word) for word in ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
        )
        if told is not None and pooled is not None and each is not None and told != pooled + 6 * each:
            raise ModelError(f"the UNet of {name!r} is told other numbers than sizes (SDXL's refiner is): {told}")

    def added(self, told: Any) -> dict[str, Tensor] | None:
        return {"text_embeds": told["pooled"], "time_ids": told["time_ids"]}


def refuse_other_text(configs: Mapping[str, Mapping[str, Any]], network: Mapping[str, Any], name: str) -> None:
    """Raise ModelError where the UNet was trained with text encoders of another width."""
    widths = [configs[key].get("hidden_size") for key in ("text_encoder", "text_encoder_2") if key in configs]
    known = [width for width in widths if isinstance(width, int)]
    wanted, given = network.get("encoder_hid_dim") or network.get("cross_attention_dim"), sum(known)
    if known and known == widths and isinstance(wanted, int) and wanted != given:
        raise ModelError(f"the UNet of {name!r} takes text {wanted} wide, and its text encoders give {given}")
