"""The hooks that plugins implement to register samplers, spacings, noise sources, processes and model loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from .plugin import NoiseSource, Sampler, Spacing

if TYPE_CHECKING:
    from ..models.base import Model
    from ..processes.sde import SDE


GROUP = "sdesamplers"
"""The entry point group of installed plugins, and the prefix of hook names."""

hookspec = pluggy.HookspecMarker("sdesamplers")


hookimpl = pluggy.HookimplMarker("sdesamplers")


class HookSpecs(Protocol):
    """The hooks of the group `sdesamplers`."""

    @hookspec
    def sdesamplers_samplers(self) -> list[Sampler]:
        """Samplers to register."""

    @hookspec
    def sdesamplers_spacings(self) -> list[Spacing]:
        """Spacings to register."""

    @hookspec
    def sdesamplers_noises(self) -> list[NoiseSource]:
        """Noise sources to register."""

    @hookspec
    def sdesamplers_sdes(self) -> dict[str, Callable[..., SDE]]:
        """Processes to register: name -> class or factory."""

    @hookspec(firstresult=True)
    def sdesamplers_load_model(self, source: str, options: dict[str, Any]) -> Model | None:
        """Load a model from a source that the library does not support; return None to leave it to other plugins."""
