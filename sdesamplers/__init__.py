"""sdesamplers: diffusion samplers, each one a plugin, for every diffusers model.

import sdesamplers as sds

model = sds.load("fashion-mnist")
result = sds.sample(model, "heun", steps=18, num_samples=16, seed=0)
result.images
"""

from __future__ import annotations

from typing import Any

from . import former
from .public import lazily, read_stub
from .version import __version__ as __version__

former.install()

_HOMES = read_stub(__file__)
# diffusers looks for its base class in a component's library, to know how the component is loaded.
_find = lazily(__name__, {**_HOMES, "SchedulerMixin": "scheduler.scheduler"})
__all__ = sorted(_HOMES.keys() - {"reversed"})  # `import *` must not hide Python's `reversed`


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first used."""
    value = globals()[name] = _find(name)
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)
