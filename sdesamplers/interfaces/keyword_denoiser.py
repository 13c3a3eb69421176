"""What denoisers of other libraries share as models: a condition is a dictionary that is passed as keywords."""

from __future__ import annotations

from typing import Any

from ..checks import shown
from ..errors import UsageError
from ..models.conditions import cloned
from ..models.function import FunctionModel


class KeywordDenoiser(FunctionModel):
    """A function whose condition is a dictionary, passed as keywords."""

    pure = True

    def condition_for(self, condition: Any, count: int) -> Any:
        if self.conditional and condition is not None and not isinstance(condition, dict):
            raise UsageError(f"the condition of {self.name!r} must be a dictionary of keywords, not {shown(condition)}")
        return super().condition_for(condition, count)


def keywords_of(given: tuple[Any, ...]) -> dict[str, Any]:
    """Copies of the keywords in the dictionaries of a condition."""
    return {key: cloned(value) for each in given for key, value in each.items()}
