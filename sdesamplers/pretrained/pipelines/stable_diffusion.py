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

    A latent consistency model takes a guidance scale as an input, `embedded_guidance`.
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
        for key, values in allowed.items():
            if network.get(key) not in values:
                raise ModelError(f"the UNet of {name!r} has {key} {network[key]!r}: it needs inputs other than text")
        refuse_other_text(configs, network, name)

    def takes_embedded_guidance(self) -> bool:
        return self.network.config.get("time_cond_proj_dim") is not None

    def unconditional(self, count: int) -> Any:
        if self.embedded_guidance is not None:
            raise UsageError(
                f"model {self.name!r} is distilled with guidance: pass {{embedded_guidance}}, and leave "
                "{guidance_scale} at 1",
                arguments={
                    "embedded_guidance": "from_pipeline embedded_guidance=",
                    "guidance_scale": "guidance_scale",
                },
            )
        return super().unconditional(count)

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        return {"embeds": self.cast(encoded[1 if negative else 0])}

    def extra_tensors(self, embeds: Tensor) -> dict[str, Tensor]:
        if self.embedded_guidance is None:
            return {}
        width = self.network.config.time_cond_proj_dim
        # w in the LCM paper is the usual guidance scale minus 1.
        scale = torch.tensor([self.embedded_guidance - 1])
        embedding: Tensor = self.pipe.get_guidance_scale_embedding(scale, embedding_dim=width)
        return {"guidance": embedding.to(embeds)}

    def added_conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the inputs of the UNet's added embedding (`added_cond_kwargs`), or None."""
        return None

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        tensors = condition.tensors
        output: Tensor = self.network(
            x,
            timestep,
            encoder_hidden_states=tensors["embeds"],
            timestep_cond=tensors.get("guidance"),
            added_cond_kwargs=self.added_conditions(tensors),
            return_dict=False,
        )[0]
        return output


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (Podell et al. 2023), conditioned on pooled text and the image size too; never cropped."""

    ADDED: ClassVar[str | None] = "text_time"

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        embeds, pooled = (encoded[k + negative] for k in (0, 2))
        return {"embeds": self.cast(embeds), "pooled": self.cast(pooled)}

    def extra_tensors(self, embeds: Tensor) -> dict[str, Tensor]:
        numbers = torch.tensor([[*self.sizes, 0, 0, *self.sizes]], dtype=embeds.dtype, device=embeds.device)
        return {**super().extra_tensors(embeds), "time_ids": numbers}

    @classmethod
    def refuse(cls, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
        super().refuse(configs, name)
        network, pooled = configs[cls.NETWORK], configs.get("text_encoder_2", {}).get("projection_dim")
        width, each = (network.get(key) for key in ("projection_class_embeddings_input_dim", "addition_time_embed_dim"))
        if width is not None and pooled is not None and each is not None and width != pooled + 6 * each:
            raise ModelError(
                f"the UNet of {name!r} takes added conditions other than the six sizes and crop offsets of SDXL: "
                f"projection_class_embeddings_input_dim is {width}, not {pooled + 6 * each} (is it SDXL's refiner?)"
            )

    def added_conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return {"text_embeds": tensors["pooled"], "time_ids": tensors["time_ids"]}


def refuse_other_text(configs: Mapping[str, Mapping[str, Any]], network: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if the UNet was trained with text encoders of another width."""
    widths = [configs[key].get("hidden_size") for key in ("text_encoder", "text_encoder_2") if key in configs]
    known = [width for width in widths if isinstance(width, int)]
    wanted, given = network.get("encoder_hid_dim") or network.get("cross_attention_dim"), sum(known)
    if known and known == widths and isinstance(wanted, int) and wanted != given:
        raise ModelError(f"the UNet of {name!r} takes text of width {wanted}, but its text encoders return {given}")
