"""FLUX.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .text import TextModel


class Flux(TextModel):
    """FLUX.1 (Black Forest Labs 2024). States are latents (C, H, W); the network receives patches of 2x2.

    The distilled "dev" network takes a guidance scale as an input, `embedded_guidance`; `guidance_scale` is
    classifier-free guidance, away from the negative prompt.
    """

    NETWORK: ClassVar[str] = "transformer"
    PATCH: ClassVar[int] = 4
    GUIDED_BY_EMBEDDING: ClassVar[str | None] = "guidance_scale"

    def prepare(self) -> None:
        rows, columns = (torch.arange(side // 2, device=self.device) for side in self.shape[1:])
        positions = torch.zeros(len(rows), len(columns), 3, device=self.device)
        positions[..., 1] += rows[:, None]
        positions[..., 2] += columns
        self._positions = positions.flatten(0, 1).to(self.network_dtype)

    def multiple(self) -> int:
        return 2 * self.scale_factor()

    def latent_shape(self) -> tuple[int, ...]:
        factor = self.scale_factor()
        height, width = self.sizes
        return self.channels // 4, height // factor, width // factor

    def tokens(self) -> int:
        return self.shape[1] * self.shape[2] // 4

    def takes_embedded_guidance(self) -> bool:
        return bool(self.network.config.get("guidance_embeds"))

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        return {"embeds": self.cast(encoded[0]), "pooled": self.cast(encoded[1])}

    def extra_tensors(self, embeds: Tensor) -> dict[str, Tensor]:
        if self.embedded_guidance is None:
            return {}
        return {"guidance": torch.tensor([self.embedded_guidance], device=embeds.device)}

    def pack(self, latents: Tensor) -> Tensor:
        """Convert latents (N, C, H, W) to the pipeline's patches (N, H/2 W/2, 4 C)."""
        return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)

    def unpack(self, patches: Tensor) -> Tensor:
        """Convert the pipeline's patches (N, H/2 W/2, 4 C) to latents (N, C, H, W)."""
        grid = (self.shape[1] // 2, self.shape[2] // 2)
        return torch.nn.functional.pixel_shuffle(patches.transpose(1, 2).reshape(len(patches), -1, *grid), 2)

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        tensors = condition.tensors
        output: Tensor = self.network(
            hidden_states=self.pack(x),
            timestep=timestep / 1000,
            guidance=tensors.get("guidance"),
            pooled_projections=tensors["pooled"],
            encoder_hidden_states=tensors["embeds"],
            txt_ids=self._positions.new_zeros(tensors["embeds"].shape[1], 3),
            img_ids=self._positions,
            return_dict=False,
        )[0]
        return self.unpack(output)
