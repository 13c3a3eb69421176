"""Loading through diffusers and transformers without their bars and remarks, which no user of ours can act upon."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..checks import warn


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the progress bars, remarks and deprecation warnings of loading; errors come through."""
    from diffusers.utils import logging as theirs  # diffusers takes seconds to import

    with ExitStack() as stack:
        stack.enter_context(_without_remarks(theirs))
        if importlib.util.find_spec("transformers") is not None:
            from transformers.utils import logging as of_transformers  # transformers takes seconds to import

            stack.enter_context(_without_remarks(of_transformers))
        stack.enter_context(warnings.catch_warnings())
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        yield


@contextmanager
def _without_remarks(theirs: Any) -> Iterator[None]:
    before, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(before)
        if bar:
            theirs.enable_progress_bar()


def in_dtype(dtype: Any) -> dict[str, Any]:
    """The keyword by which `from_pretrained` takes a dtype: `dtype`, or `torch_dtype` where diffusers is older."""
    import diffusers  # diffusers takes seconds to import
    from diffusers.utils import deprecation_utils  # diffusers takes seconds to import

    new = int(diffusers.__version__.partition(".")[0]) >= 1 or hasattr(deprecation_utils, "_resolve_dtype")
    return {"dtype" if new else "torch_dtype": dtype}


EMA_KEYS = (
    *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
)
"""What diffusers' EMAModel writes into its network's configuration of the average, which is no part of the network."""


def warn_of_unknown_keys(cls: type, config: Mapping[str, Any], folder: Path) -> None:
    """Warn once, in a sentence, where a configuration sets what its class does not know and leaves out."""
    known = inspect.signature(cls).parameters
    words = [word for word, value in config.items() if not (word.startswith("_") or word in known or value is None)]
    words = [word for word in words if word != "quantization_config" and word not in EMA_KEYS]
    if words:
        import diffusers  # diffusers takes seconds to import

        warn(
            f"{folder}: {cls.__name__} of diffusers {diffusers.__version__} does not know {', '.join(words)} of its "
            "configuration and leaves them out; if samples look wrong, use the diffusers version that it was saved by"
        )
