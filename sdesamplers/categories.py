"""The categories of warnings, for `warnings.filterwarnings` and pytest's `filterwarnings`."""

from __future__ import annotations

from .public import public


@public
class SdesamplersWarning(UserWarning):
    """Base class of all warnings of the library.

    Example:
        >>> import warnings
        >>> warnings.filterwarnings("error", category=sds.SdesamplersWarning)
        >>> warnings.filterwarnings("ignore", category=sds.OutputWarning)
    """


@public
class AccuracyWarning(SdesamplersWarning):
    """Samples or numbers are likely to be inaccurate: too few steps, an unstable method, a questionable process."""


@public
class ReproducibilityWarning(SdesamplersWarning):
    """Samples depend on more than the seed and the sample's index: on the batch or its size."""


@public
class ModelWarning(SdesamplersWarning):
    """A part of a model is not used, or an assumption was made about how it was trained."""


@public
class OutputWarning(SdesamplersWarning):
    """A picture, a file or a score is missing from a result, which is complete otherwise, or an older file moved."""
