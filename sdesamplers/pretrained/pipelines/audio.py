"""Audio: Stable Audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import UsageError
from .text import TextModel


class StableAudio(TextModel):
    """Stable Audio (Evans et al. 2024): latents (C, L) of the full length; `decode` returns waveforms (N, channels, T).

    The unconditional input of guidance is an embedding of zeros, as in its pipeline, or a negative prompt.
    """

    NETWORK: ClassVar[str] = "transformer"
    AUTOENCODERS: ClassVar[tuple[str, ...]] = ("AutoencoderOobleck",)

    def sides(self, height: int | None, width: int | None) -> tuple[int, ...]:
        if height is not None or width is not None:
            raise UsageError(f"model {self.name!r} generates audio, which has no height and width")
        config = self.pipe.vae.config
        hop = torch.tensor(config.downsampling_ratios).prod().item()
        return (int(self.network.config.sample_size * hop),)

    def latent_shape(self) -> tuple[int, ...]:
        return self.channels, int(self.network.config.sample_size)

    def prepare(self) -> None:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed  # diffusers takes seconds to import

        # One position more than there are latents: the network prepends the duration.
        positions = self.shape[1] + 1
        width = self.pipe.rotary_embed_dim
        angles = get_1d_rotary_pos_embed(width, positions, use_real=True, repeat_interleave_real=False)
        self._rotary = tuple(part.to(self.device) for part in angles)

    def _run_encoder(self, prompt: str | None, negative: bool) -> Sequence[Any]:
        # Its encode_prompt returns both prompts in one batch; a negative prompt is encoded like any other.
        text = super()._run_encoder(prompt, negative=False)
        seconds = self.sizes[0] / self.pipe.vae.config.sampling_rate
        start, end = self.pipe.encode_duration(0.0, seconds, self.device, False, 1)
        whole = torch.cat([torch.as_tensor(text), start, end], 1)
        if negative and prompt is None:
            whole = torch.zeros_like(whole)
        return whole, torch.cat([start, end], 2)

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        return {"embeds": self.cast(encoded[0]), "duration": self.cast(encoded[1])}

    def ask(self, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        tensors = condition.tensors
        output: Tensor = self.network(
            x,
            timestep,
            encoder_hidden_states=tensors["embeds"],
            global_hidden_states=tensors["duration"],
            rotary_embedding=self._rotary,
            return_dict=False,
        )[0]
        return output
