"""`sdesamplers doctor`: a check of the installation."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ..errors import SdesamplersError

if TYPE_CHECKING:
    from ..registry.discovery import Plugin
    from ..registry.registry import Registry

PACKAGES = (
    "torch",
    "diffusers",
    "accelerate",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "scipy",
    "pluggy",
    "matplotlib",
)
Finding = tuple[str, str, bool]


def diagnose() -> list[Finding]:
    """(item, state, True if it is in order) for versions, devices, plugins, the cache and the embedded model."""
    return [*_versions(), *_devices(), *_registries(), *_plugins(), _cache(), _embedded()]


def _versions() -> list[Finding]:
    from ..version import __version__

    found: list[Finding] = [("sdesamplers", f"{__version__}, Python {platform.python_version()}", True)]
    for package in PACKAGES:
        try:
            found.append((package, version(package), True))
        except PackageNotFoundError:
            optional = package == "matplotlib"
            found.append((package, "not installed (optional)" if optional else "not installed", optional))
    return found


def _devices() -> list[Finding]:
    import torch
    from accelerate import PartialState

    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(k) for k in range(count))
    threads = f"{torch.get_num_threads()} CPU threads"
    return [("device", f"{PartialState().device} ({names + ', ' if names else ''}{threads})", True)]


def _registries() -> list[Finding]:
    """The registry files that extend the shipped one; those from the Hub with their commit."""
    from ..registry.catalogue import SHIPPED
    from ..registry.registry import default_registry

    catalogue = default_registry().catalogue
    files = dict.fromkeys([*catalogue.origins.values(), *catalogue.addresses])
    found = [("registry file", str(catalogue.addresses.get(file, file)), True) for file in files if file != SHIPPED]
    return found + [(f"recipe {name}", reason, False) for name, reason in catalogue.unread.items()]


def _plugins() -> list[Finding]:
    from ..registry.registry import default_registry

    registry = default_registry()
    return [
        (f"plugin {p.name}", p.error or f"from {p.dist}{_renamed(registry, p)}", p.error is None)
        for p in registry.plugins
    ]


def _renamed(registry: Registry, plugin: Plugin) -> str:
    """Notes on names of a plugin that clash with built-in names, and are registered under a prefix."""
    notes = [
        f"; its {shelf.kind} {name!r} has a built-in name and is available as {f'{plugin.dist}:{name}'!r}"
        for shelf in (registry.samplers, registry.spacings, registry.noises)
        for name in shelf.renamed_of(plugin.dist)
        if shelf[f"{plugin.dist}:{name}"].plugin in (plugin.name, f"{plugin.dist}:{plugin.name}")
    ]
    return "".join(notes)


def _cache() -> Finding:
    from huggingface_hub import constants

    mode = ", offline" if constants.HF_HUB_OFFLINE else ""
    return ("Hub cache", f"{constants.HF_HUB_CACHE}{mode}", True)


def _embedded() -> Finding:
    from ..pretrained.loading import load
    from ..sampling.calls import sample

    try:
        result = sample(load("fashion-mnist"), "ddim", steps=2, num_samples=1)
    except SdesamplersError as error:
        return ("embedded model", str(error), False)
    return ("embedded model", f"loads and samples ({result.nfe} evaluations, finite)", True)
