"""Conversion between latents and images, as in the pipelines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Autoencoder:
    """A pipeline's autoencoder, and the affine map between its latents and those of the denoising network.

    The network's latents are z = scale (y - shift), where y are the autoencoder's latents; if its configuration has
    means m and standard deviations s of the channels, z = scale (y - m) / s.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the network's latents to images (N, 3, H, W)."""
        with self._precise() as dtype:
            return self.decode_own(self.from_network(latents.to(dtype)))

    def encode(self, images: Tensor) -> Tensor:
        """Encode images to the network's latents."""
        with self._precise() as dtype:
            return self.to_network(self.encode_own(images.to(dtype)))

    def decode_own(self, latents: Tensor) -> Tensor:
        """Return the decoder's output for the autoencoder's latents."""
        out: Tensor = self.module.decode(latents, return_dict=False)[0]
        return out

    def encode_own(self, images: Tensor) -> Tensor:
        """Return the encoder's latents; their mode, if it returns a distribution."""
        encoded = self.module.encode(images, return_dict=False)[0]
        out: Tensor = encoded.mode() if hasattr(encoded, "mode") and not isinstance(encoded, Tensor) else encoded
        return out

    def from_network(self, latents: Tensor) -> Tensor:
        """Convert the network's latents to the autoencoder's."""
        scale, shift, spread = self._map(latents)
        return latents * spread / scale + shift

    def to_network(self, latents: Tensor) -> Tensor:
        """Convert the autoencoder's latents to the network's."""
        scale, shift, spread = self._map(latents)
        return (latents - shift) * scale / spread

    def _map(self, like: Tensor) -> tuple[Any, Any, Any]:
        config = self.module.config
        scale = config.get("scaling_factor") or 1.0
        mean, spread = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and spread is not None:
            shape = (1, -1, *(1,) * (like.dim() - 2))
            return scale, like.new_tensor(mean).view(shape), like.new_tensor(spread).view(shape)
        return scale, config.get("shift_factor") or 0.0, 1.0

    @contextmanager
    def _precise(self) -> Iterator[torch.dtype]:
        """Yield the dtype to compute in; autoencoders that overflow in float16 are converted to float32 meanwhile."""
        dtype = self.module.dtype
        if dtype != torch.float16 or not self.module.config.get("force_upcast"):
            yield dtype
            return
        with self._lock:
            self.module.to(torch.float32)
            try:
                yield torch.float32
            finally:
                self.module.to(dtype)


class Unscaled(Autoencoder):
    """Kandinsky's MoVQ: latents are neither scaled nor quantised."""

    def decode_own(self, latents: Tensor) -> Tensor:
        out: Tensor = self.module.decode(latents, force_not_quantize=True, return_dict=False)[0]
        return out

    def _map(self, like: Tensor) -> tuple[Any, Any, Any]:
        return 1.0, 0.0, 1.0
