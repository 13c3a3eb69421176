"""What is registered: `sdesamplers.samplers()`, `spacings()`, `noises()` and `sdes()`."""

from __future__ import annotations

from typing import Any

from ..public import public
from .plugin import NoiseSource, Sampler, Spacing
from .registry import default_registry


@public
def samplers() -> dict[str, Sampler]:
    """Every registered sampler by name, with its order, options, plugin and reference."""
    return dict(default_registry().samplers)


@public
def spacings() -> dict[str, Spacing]:
    """Every registered spacing by name."""
    return dict(default_registry().spacings)


@public
def noises() -> dict[str, NoiseSource]:
    """Every registered noise source by name; `limits` describes how it changes the sampled distribution, if it does."""
    return dict(default_registry().noises)


@public
def sdes() -> dict[str, Any]:
    """Every process that a plugin has registered, by name: `SDE` classes or factories."""
    return dict(default_registry().sdes)
