"""Module names of early 0.1, for pickles, saved pipelines and plugins that import them.

The finder comes last in `sys.meta_path`, so it is used only for modules that no longer exist in this package.
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

NEW_MODULES: dict[str, tuple[str, ...]] = {
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
    "models.hub": ("pretrained.hub", "pretrained.hub_files"),
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
"""A module's former name -> the modules that contain its names now."""
PACKAGE = __name__.rpartition(".")[0]


class Former(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder and loader of modules by their former names; the loaded module looks its names up in the new modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.removeprefix(f"{PACKAGE}.") not in NEW_MODULES or not fullname.startswith(f"{PACKAGE}."):
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname.endswith("pipelines"))

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        homes = NEW_MODULES[module.__name__.removeprefix(f"{PACKAGE}.")]

        def find(name: str) -> Any:
            for home in homes if not name.startswith("__") else ():  # Python's own tools look up dunder names
                found = importlib.import_module(f"{PACKAGE}.{home}")
                if hasattr(found, name):
                    return getattr(found, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}; see {' and '.join(homes)}")

        module.__dict__.update(__doc__=f"See {', '.join(homes)}.", __getattr__=find)


def install() -> None:
    """Add the finder to `sys.meta_path`, once."""
    if not any(isinstance(finder, Former) for finder in sys.meta_path):
        sys.meta_path.append(Former())
