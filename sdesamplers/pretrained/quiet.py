"""Loading through diffusers and transformers without their progress bars and warnings, which users cannot act on."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..categories import ModelWarning
from ..checks import warn


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Suppress progress bars, log messages and deprecation warnings during loading; exceptions propagate."""
    from diffusers.utils import logging as of_diffusers  # diffusers takes seconds to import

    with ExitStack() as stack:
        stack.enter_context(_silenced(of_diffusers))
        if importlib.util.find_spec("transformers") is not None:
            from transformers.utils import logging as of_transformers  # transformers takes seconds to import

            stack.enter_context(_silenced(of_transformers))
        stack.enter_context(warnings.catch_warnings())
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        yield


@contextmanager
def _silenced(library_logging: Any) -> Iterator[None]:
    """Set a library's log level to ERROR and hide its progress bars."""
    before, bar = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity(logging.ERROR)
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(before)
        if bar:
            library_logging.enable_progress_bar()


def in_dtype(dtype: Any) -> dict[str, Any]:
    """Return the dtype argument of `from_pretrained`: `dtype`, or `torch_dtype` for older versions of diffusers."""
    import diffusers  # diffusers takes seconds to import
    from diffusers.utils import deprecation_utils  # diffusers takes seconds to import

    new = int(diffusers.__version__.partition(".")[0]) >= 1 or hasattr(deprecation_utils, "_resolve_dtype")
    return {"dtype" if new else "torch_dtype": dtype}


EMA_KEYS = (*("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),)
"""Settings of the average that diffusers' EMAModel writes into a network's configuration."""


def warn_of_unknown_keys(cls: type, config: Mapping[str, Any], folder: Path) -> None:
    """Warn, in one message, of configuration keys that their class does not know and ignores."""
    known = inspect.signature(cls).parameters
    ignored = [key for key, value in config.items() if not (key.startswith("_") or key in known or value is None)]
    ignored = [key for key in ignored if key != "quantization_config" and key not in EMA_KEYS]
    if ignored:
        import diffusers  # diffusers takes seconds to import

        warn(
            f"{folder}: {cls.__name__} of diffusers {diffusers.__version__} does not know {', '.join(ignored)} in its "
            "configuration and ignores them; if samples look wrong, use the diffusers version that saved it",
            ModelWarning,
        )
