"""Samplers, grids and noise sources by name, whoever made them.

options.py     the options of a registered function, checked
foreign.py     how diffusers' words are said here
plugin.py      `@sampler`, `@spacing`, `@noise_source`, and what they make of a function
hooks.py       what a plugin implements
catalogue.py   registry.yaml: models, recipes and names
plain_yaml.py  YAML without what a file of data has no use for, and bounded
shelf.py       the registered things of one kind
discovery.py   plugins: found, imported, checked, and put on the shelves
peers.py       other libraries' names
names.py       what a name stands for
registry.py    `Registry`, which joins these, and the one that the process has
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .discovery import Plugin
    from .names import Preset
    from .registry import Registry, default_registry, register, use_registry

__all__ = ["Plugin", "Preset", "Registry", "default_registry", "register", "use_registry"]
__getattr__ = lazily(
    __name__,
    {
        "discovery": ["Plugin"],
        "names": ["Preset"],
        "registry": ["Registry", "default_registry", "register", "use_registry"],
    },
)
