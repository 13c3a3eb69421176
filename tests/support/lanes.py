"""Which cases of a test run by default, and which only with `-m slow`."""

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], keep: Collection[Any] | Callable[..., bool]) -> list[Any]:
    """The values of a parametrised test; those in `keep` stay in the default suite, the others are marked slow.

    Where cases are expensive, `keep` has one case of each kind and CI runs the others (`pytest -m slow`). The cases
    keep their ids. A tuple is one case with several arguments. `keep` may be a function of these arguments that
    returns True for the cases to keep. Raises ValueError if `keep` has a value that is no case, such as an old name.

        @pytest.mark.parametrize("name", mostly_slow(sorted(sds.samplers()), keep=("euler", "ddpm")))
    """
    cases = [_case(value) for value in values]
    if callable(keep):
        kept = [bool(keep(*case.values)) for case in cases]
    else:
        wanted = [_case(value).values for value in keep]
        kept = [case.values in wanted for case in cases]
        if unknown := [each for each in wanted if all(each != case.values for case in cases)]:
            raise ValueError(f"to be kept, but not among the cases: {unknown}")
    if not any(kept):
        raise ValueError("no case is kept: mark the whole test slow")
    return [
        case if stays else case._replace(marks=(*case.marks, pytest.mark.slow))
        for case, stays in zip(cases, kept, strict=True)
    ]


def every_third(*values: Iterable[Any]) -> list[Any]:
    """All combinations of several arguments' values, of which about a third stay in the default suite.

    They are those whose places in the lists add up to a multiple of 3, so that no value is left out where one of the
    other lists has 3 or more. Where the values name the cases, the ids are those of one decorator for each argument,
    the first nearest to the function.

        @pytest.mark.parametrize(("name", "steps"), every_third(sorted(sds.samplers()), (1, 2, 3)))
    """
    places = itertools.product(*(enumerate(each) for each in values))
    cases = [(sum(place for place, _ in case) % 3, tuple(value for _, value in case)) for case in places]
    return mostly_slow([case for _, case in cases], keep=[case for rest, case in cases if rest == 0])


def _case(value: Any) -> Any:
    """A value as pytest.param makes it."""
    if hasattr(value, "marks") and hasattr(value, "values"):
        return value
    return pytest.param(*value) if isinstance(value, tuple) else pytest.param(value)
