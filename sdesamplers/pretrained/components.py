"""The classes of a pipeline's components, which must come from diffusers or transformers and match their names."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError


def pipeline_class(name: Any, label: str) -> Any:
    """Return the diffusers pipeline class of a given name.

    Raises:
        ModelError: the name refers to custom code, the installed diffusers has no such class, or the class loads
            other repositories besides its own.
    """
    import diffusers  # diffusers takes seconds to import

    if not isinstance(name, str):
        raise ModelError(f"{label} is a pipeline with custom code, and code that comes with a model is not run")
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ModelError(f"{label}: diffusers {diffusers.__version__} has no pipeline class {name!r}")
    if getattr(found, "_load_connected_pipes", False):
        raise ModelError(f"{label}: {name} combines several repositories; load the decoder's own repository")
    return found


OWN = (("sdesamplers", "Scheduler"), ("sdesamplers.scheduler", "Scheduler"))
"""Components of this library, as a model_index.json names them; the second spelling was written by early 0.1."""


def component_class(key: str, library: str, name: str, label: str) -> Any:
    """Return the class of a component, or None for a component of this library.

    Raises:
        ModelError: the class does not come from diffusers or transformers, is not installed, or is of the wrong sort
            for its key. A processor in place of a tokenizer, for example, would load parts that were never checked.
    """
    import diffusers  # diffusers takes seconds to import

    if (library, name) in OWN:
        return None
    home = {"diffusers": diffusers, "transformers": _transformers()}.get(library)
    if home is None and library == "transformers":
        raise ModelError(
            f"{label}: {key} is {library}.{name}, but transformers is not installed: pip install transformers"
        )
    if home is None:
        home = getattr(diffusers.pipelines, library, None) if library.isidentifier() else None
        if home is None or not str(getattr(home, "__name__", "")).startswith("diffusers.pipelines."):
            raise ModelError(f"{label}: {key} is {library}.{name}, and code that comes with a model is not run")
    found = getattr(home, _current(library, name), None)
    if not isinstance(found, type):
        raise ModelError(f"{label}: {key} is {library}.{name}, which the installed {library} lacks")
    if backends := getattr(found, "_backends", None):  # diffusers' placeholder for a class that it cannot import
        raise ModelError(f"{label}: {key} is {library}.{name}, which needs {', '.join(backends)} to be installed")
    required, description = _required_base(key)
    if not issubclass(found, required):
        raise ModelError(f"{label}: {key} is {library}.{name}, which is not {description}")
    return found


def _transformers() -> Any:
    try:
        import transformers  # transformers takes seconds to import
    except ImportError:
        return None
    return transformers


def _current(library: str, name: str) -> str:
    """Return the current name of a class that transformers may have renamed."""
    if library != "transformers":
        return name
    try:
        # diffusers takes seconds to import
        from diffusers.pipelines.pipeline_loading_utils import _maybe_remap_transformers_class as remapped
    except ImportError:
        return name
    return str(remapped(name) or name)


def _required_base(key: str) -> tuple[tuple[type, ...], str]:
    """Return the base classes allowed for a component of this name, and a description for messages."""
    import diffusers  # diffusers takes seconds to import

    if "scheduler" in key:
        return (diffusers.SchedulerMixin,), "a scheduler"
    transformers = _transformers()
    if "tokenizer" in key:
        return ((transformers.PreTrainedTokenizerBase,) if transformers else ()), "a tokenizer"
    networks = (diffusers.ModelMixin, *((transformers.PreTrainedModel,) if transformers else ()))
    return networks, "a network in safetensors"
