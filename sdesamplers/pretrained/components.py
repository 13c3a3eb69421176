"""The classes of a pipeline's components: diffusers' and transformers' own, and of the sort that their names say."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError


def pipeline_class(name: Any, label: str) -> Any:
    """A pipeline class of diffusers.

    Raises:
        ModelError: the installed diffusers has no such class, or one that loads other repositories beside its own.
    """
    import diffusers  # diffusers takes seconds to import

    if not isinstance(name, str):
        raise ModelError(f"{label} is a pipeline with code of its own, and code that comes with a model is not run")
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ModelError(f"{label}: its pipeline class {name!r} is unknown to diffusers {diffusers.__version__}")
    if getattr(found, "_load_connected_pipes", False):
        raise ModelError(f"{label}: {name} joins pipelines of several repositories; load the decoder's own repository")
    return found


OWN = (("sdesamplers", "Scheduler"), ("sdesamplers.scheduler", "Scheduler"))
"""Components of ours, as pipelines with one of them name it; the second is how 0.1 wrote it."""


def component_class(key: str, library: str, name: str, label: str) -> Any:
    """The class of a component.

    Raises:
        ModelError: it is not diffusers' or transformers' own, is not installed, or is of another sort than its place
            needs. A processor where a tokenizer belongs would bring, and could run, parts that nobody looked at.
    """
    import diffusers  # diffusers takes seconds to import

    if (library, name) in OWN:
        return None
    home = {"diffusers": diffusers, "transformers": _transformers()}.get(library)
    if home is None and library == "transformers":
        raise ModelError(
            f"{label}: {key} is {library}.{name}, and transformers is not installed: pip install transformers"
        )
    if home is None:
        home = getattr(diffusers.pipelines, library, None) if library.isidentifier() else None
        if home is None or not str(getattr(home, "__name__", "")).startswith("diffusers.pipelines."):
            raise ModelError(f"{label}: {key} is {library}.{name}, and code that comes with a model is not run")
    found = getattr(home, _current(library, name), None)
    if not isinstance(found, type):
        raise ModelError(f"{label}: {key} is {library}.{name}, which the installed {library} lacks")
    if backends := getattr(found, "_backends", None):  # what diffusers has in place of a class that cannot be imported
        raise ModelError(f"{label}: {key} is {library}.{name}, which needs {', '.join(backends)} to be installed")
    wanted, what = _sort(key)
    if not issubclass(found, wanted):
        raise ModelError(f"{label}: {key} is {library}.{name}, which is not {what}")
    return found


def _transformers() -> Any:
    try:
        import transformers  # transformers takes seconds to import
    except ImportError:
        return None
    return transformers


def _current(library: str, name: str) -> str:
    """transformers' present name of a class that it has renamed."""
    if library != "transformers":
        return name
    try:
        # diffusers takes seconds to import
        from diffusers.pipelines.pipeline_loading_utils import _maybe_remap_transformers_class as remapped
    except ImportError:
        return name
    return str(remapped(name) or name)


def _sort(key: str) -> tuple[tuple[type, ...], str]:
    """What a component of this name must be, and in words."""
    import diffusers  # diffusers takes seconds to import

    if "scheduler" in key:
        return (diffusers.SchedulerMixin,), "a scheduler"
    transformers = _transformers()
    if "tokenizer" in key:
        return ((transformers.PreTrainedTokenizerBase,) if transformers else ()), "a tokenizer"
    networks = (diffusers.ModelMixin, *((transformers.PreTrainedModel,) if transformers else ()))
    return networks, "a network in safetensors"
