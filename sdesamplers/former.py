"""Modules under the names that they had in early 0.1, for pickles, saved pipelines and plugins that name them.

A finder at the end of Python's search: it is asked only for modules of this package that there are no more.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NOW: dict[str, tuple[str, ...]] = {
    "catalogue": ("registry.catalogue",),
    "consistency": ("ode.consistency",),
    "coordinates": ("processes.coordinates",),
    "datasets": ("io.datasets",),
    "encoding": ("ode.encoding", "ode.integration"),
    "files": ("io.files",),
    "grid": ("path.grid", "path.span"),
    "images": ("io.images",),
    "likelihood": ("ode.likelihood",),
    "loop": ("sampling.loop", "sampling.runs", "path.points"),
    "models.configuration": ("pretrained.configuration",),
    "models.conventions": ("pretrained.conventions",),
    "models.diffusers": ("pretrained.unets", "pretrained.folders", "pretrained.conventions", "pretrained.placement"),
    "models.grids": ("pretrained.grids",),
    "models.hub": ("pretrained.hub",),
    "models.loading": ("pretrained.loading",),
    "models.pipelines": ("pretrained.pipelines",),
    "models.pipelines.base": ("pretrained.pipelines.base",),
    "models.pipelines.kinds": ("pretrained.pipelines.kinds",),
    "models.wrapping": ("pretrained.wrapping",),
    "noise": ("path.noise",),
    "options": ("registry.options",),
    "pairs": ("path.pairs",),
    "plugin": ("registry.plugin", "registry.hooks", "registry.registry"),
    "prediction": ("path.prediction", "processes.predictions"),
    "pretrained.asking": ("pretrained.call_styles",),
    "pretrained.saved_words": ("pretrained.saved_keys",),
    "pretrained.scheduler_words": ("pretrained.scheduler_keys",),
    "process_check": ("processes.check",),
    "recipe": ("sampling.recipe", "sampling.arguments", "sampling.runs"),
    "result": ("sampling.result", "sampling.parts"),
    "reversal": ("processes.reversal",),
    "sde": ("processes.sde", "processes.scalars"),
    "statistics": ("ode.statistics",),
    "terminal": ("io.terminal",),
    "timesteps": ("scheduler.timesteps",),
}
"""A module's former name, and the modules where its names are now."""
PACKAGE = __name__.rpartition(".")[0]


class Former(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module by its former name: a module that takes every name from where it is now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.removeprefix(f"{PACKAGE}.") not in NOW or not fullname.startswith(f"{PACKAGE}."):
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname.endswith("pipelines"))

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        homes = NOW[module.__name__.removeprefix(f"{PACKAGE}.")]

        def find(name: str) -> Any:
            for home in homes if not name.startswith("__") else ():  # Python's own tools ask for these at any moment
                found = importlib.import_module(f"{PACKAGE}.{home}")
                if hasattr(found, name):
                    return getattr(found, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}; see {' and '.join(homes)}")

        module.__dict__.update(__doc__=f"See {', '.join(homes)}.", __getattr__=find)


def install() -> None:
    """Let Python find modules by their former names, once."""
    if not any(isinstance(finder, Former) for finder in sys.meta_path):
        sys.meta_path.append(Former())
