"""Samplers, spacings and noise sources by name, from the library and from plugins.

options.py     the options of a registered function, and their checks
foreign.py     argument names of diffusers and their equivalents
plugin.py      `@sampler`, `@spacing`, `@noise_source` and the objects that they create
hooks.py       the hooks that a plugin implements
catalogue.py   registry.yaml: models, recipes and names
budgets.py     the solver tables of a model in a line
recipe_data.py the data of a recipe in a file, and the plugins that it requires
plain_yaml.py  a restricted YAML reader, with limits on size and nesting
schema.py      the JSON Schema of registry.yaml and of a recipe's file
validation.py  a file by such a schema, with errors that name file, line and key
editor_schemas.py  the schemas for editors, with the names that are registered
shelf.py       the registered items of one kind, by name
discovery.py   finding, importing, checking and registering plugins
peers.py       the names of other libraries
names.py       resolving names
description.py an item as plain data, and back
snapshot.py    the cache of what the installed plugins register
described.py   the registry for listings, from that cache
registry.py    `Registry`, which combines these, and the process-wide registry
listing.py     `samplers()`, `spacings()`, `noises()` and `sdes()`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .discovery import Plugin
    from .names import Preset
    from .registry import Registry, default_registry, register, use_registry

__all__ = ["Plugin", "Preset", "Registry", "default_registry", "register", "use_registry"]
_REGISTRY = ("Registry", "default_registry", "register", "use_registry")
__getattr__ = lazily(__name__, {"Plugin": "discovery", "Preset": "names", **dict.fromkeys(_REGISTRY, "registry")})
