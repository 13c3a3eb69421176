"""The errors of `wrap` for a network that cannot be called: what the trial calls raised, and what to change."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from ..checks import shown
from ..errors import UnknownNameError, UsageError
from .call_styles import NOISY_NAMES, STATE_NAMES, TIME_NAMES, CallStyle, parameters_of

Tried = Sequence[tuple[CallStyle, str]]
"""Call styles, each with what went wrong."""

SHOWN = 3
"""The number of different causes that a message contains."""

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

SHAPE = re.compile(
    r"channels|\d+D \(|size mismatch|shapes cannot be multiplied|must match the size|[Ss]izes of tensors"
    r"|normalized_shape|is invalid for input of size|[Kk]ernel size can't|output size is too small"
)
"""In torch's errors for a tensor of the wrong shape."""

DTYPE = re.compile(r"should be the same|must have the same dtype|same dtype|expected scalar type|but found \w+ at")
"""In torch's errors for a tensor of the wrong dtype."""


def check_condition_keyword(network: object, keyword: str | None) -> None:
    """Raise UsageError if a network has no parameter of the name `conditional=` gives for its condition."""
    parameters = parameters_of(network)
    if keyword is None or parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    names = [p.name for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
    if keyword not in names:
        others = [name for name in names if name.lower() not in TIME_NAMES]
        others = others[1:] if others[:1] and others[0].lower() in STATE_NAMES else others
        opening = f"conditional={keyword!r} is not a parameter of {_signature(network, parameters)}"
        hint = "; it takes no condition: omit conditional=" if len(names) < 3 and len(others) < 2 else ""
        raise UnknownNameError("parameter", keyword, others, hint, opening=opening)
    if keyword.lower() in TIME_NAMES and sum(name.lower() in TIME_NAMES for name in names) == 1:
        title = _signature(network, parameters)
        raise UsageError(f"conditional={keyword!r} is the time in {title}; it must be the parameter of the condition")


def call_error(
    name: str, network: object, shape: tuple[int, ...], count: int, conditional: bool | str, tried: Tried
) -> UsageError:
    """Return the error for a network that no call style fits.

    Args:
        name: of the model.
        network: a module or a function.
        shape: of one sample.
        count: the number of samples in a trial call.
        conditional: as in `wrap`.
        tried: the call styles, with what went wrong.
    """
    parameters = parameters_of(network)
    signature = "" if parameters is None else _signature(network, parameters)
    if signature.startswith(f"{name}(") or (signature and name == "function"):
        title = signature
    else:
        title = f"{name}, with {signature}," if signature else name
    advice = _advice(network, parameters, shape, conditional, tried)
    return UsageError(f"{title} could not be called with a state of {(count, *shape)}: {causes(tried)}. {advice}")


def causes(tried: Tried) -> str:
    """List what went wrong, each cause once with the number of ways to call the network that it concerns.

    Messages that differ only in their numbers have the same cause.
    """
    groups: dict[str, list[tuple[CallStyle, str]]] = {}
    for style, problem in tried:
        groups.setdefault(re.sub(r"\d+(, \d+)*", "0", problem), []).append((style, problem))
    if len(groups) == 1:
        return f"all {len(tried)} ways tried, such as {tried[0][0]}, failed: {tried[0][1]}"
    listed = [f"{group[0][1]} ({len(group)}, such as {group[0][0]})" for group in list(groups.values())[:SHOWN]]
    rest = sum(map(len, list(groups.values())[SHOWN:]))
    return f"of {len(tried)} ways tried, {'; '.join(listed)}{f'; {rest} failed otherwise' if rest else ''}"


def _signature(network: object, parameters: Sequence[inspect.Parameter]) -> str:
    """A network's parameters and short defaults: "forward(x, t, labels=None)"."""
    name = "forward" if hasattr(network, "forward") else getattr(network, "__name__", type(network).__name__)
    texts, after = [], False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not after:
            texts.append("*")
        after = after or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        texts.append(f"{star}{p.name}{'' if p.default is p.empty else f'={shown(p.default, 20)}'}")
    return f"{'function' if name == '<lambda>' else name}({', '.join(texts)})"


def _advice(
    network: object,
    parameters: Sequence[inspect.Parameter] | None,
    shape: tuple[int, ...],
    conditional: bool | str,
    tried: Tried,
) -> str:
    """What to change, by the cause that the most common way to call a network met."""
    problems = [problem for _, problem in tried]
    first, everything = problems[0], "; ".join(problems)
    if parameters is not None and (found := _advice_on_parameters(parameters, conditional, "missing" in first)):
        return found
    if "index out of range" in everything:
        labels = "; or is the condition of the trial, example=, beyond the network's labels?" if conditional else ""
        return f"Does the network have as many timesteps as the noise schedule? clock= scales its time{labels}"
    if conditional and all("'indices'" in problem for problem in problems):
        return "Labels must be whole numbers: pass one as example=, or as null_condition="
    if "depends on the other samples" in first:
        return (
            "A network must treat each sample on its own, without statistics of the batch and without randomness, such "
            "as F.dropout(x) without training=self.training"
        )
    if first.startswith("the network returned"):
        return (
            "It must return a tensor of the state's shape: directly, first in a tuple or list, or as `sample` of an "
            "object or dictionary"
        )
    if SHAPE.search(first):
        return _advice_on_shape(first, shape, conditional)
    if DTYPE.search(first):
        return f"dtype= is the dtype of the state, by default that of the network's parameters. {_wrap_it(conditional)}"
    return _wrap_it(conditional)


def _advice_on_parameters(parameters: Sequence[inspect.Parameter], conditional: bool | str, misses: bool) -> str:
    """What to change if the parameters are too few, too many or in another order; else "".

    `misses` is True if a call failed for lack of an argument.
    """
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in VARIABLE]
    positional = [p.name for p in parameters if p.kind in POSITIONAL]
    has_args = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    named = [p.name for p in parameters if p.kind not in VARIABLE]
    if len(named) < 2 and not has_args:
        return "It takes no time; if it needs none, pass lambda x, t: network(x)"
    times = [name for name in named if name.lower() in TIME_NAMES]
    untimed = [name for name in required if name not in times[:1]]
    states = [name for name in untimed if name.lower() in STATE_NAMES]
    if isinstance(conditional, str) and untimed[:1] == [conditional] and conditional.lower() in STATE_NAMES:
        return f"Is {conditional!r} the state? conditional= is the parameter of the condition"
    others = untimed[1:] if times else required[2:]
    if len(states) == 1 and len(untimed) > 1 and states[0] != untimed[0] and times:
        others = [name for name in untimed if name != states[0]]
        if len(others) > 1 or others[0] not in {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}:
            return _advice_on_order(parameters, states[0], times[0], untimed)
        if not conditional or (conditional is True and states[0].lower() not in NOISY_NAMES):
            return f"If {states[0]!r} is the state and {others[0]!r} a condition, pass conditional={others[0]!r}"
    if conditional is True and not has_args and len(positional) < 3:
        keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in times]
        return (
            f"Pass the condition by keyword: conditional={keywords[0]!r}"
            if keywords
            else "It takes no condition: omit conditional="
        )
    if len(others) == 1 and not conditional:
        third = others[0] in positional[2:3]
        by_keyword = f"conditional={others[0]!r}"
        return (
            f"If {others[0]!r} is a condition, pass {'conditional=True, or by keyword ' if third else ''}{by_keyword}"
        )
    if len(others) > 1 and misses:
        entries = ", ".join(f"{each!r}: ..." for each in others)
        return (
            f"If {', '.join(others[:-1])} and {others[-1]} are conditions, pass conditional=True, and one dictionary "
            f"of them, {{{entries}}}: as example= to wrap and as condition= to sample"
        )
    return ""


def _advice_on_order(parameters: Sequence[inspect.Parameter], state: str, time: str, untimed: Sequence[str]) -> str:
    """The function that reorders the arguments of a network."""
    others = [name for name in untimed if name != state]
    roles = {state: "x", time: "t"}
    passed = [
        f"{p.name}={roles.get(p.name, p.name)}" if p.kind is p.KEYWORD_ONLY else roles.get(p.name, p.name)
        for p in parameters
        if p.name in (state, time, *untimed)
    ]
    function = f"lambda {', '.join(['x', 't', *others])}: network({', '.join(passed)})"
    wrapped = f"sds.wrap({function}, ..., conditional=True)"
    return f"If {state!r} is the state, wrap a function with the usual order: {wrapped}"


def _wrap_it(conditional: bool | str) -> str:
    """The advice for everything else."""
    if conditional:
        return "Wrap it in a function of your own, def network(x, t, y), that calls it correctly, with conditional=True"
    return "Wrap it in a function of your own, def network(x, t), that calls it correctly"


def _advice_on_shape(problem: str, shape: tuple[int, ...], conditional: bool | str) -> str:
    """The shape that the network seems to take, by torch's error, and what else may be wrong."""
    near = ""
    channels = re.search(r"to have (\d+) channels, but got (\d+) channels", problem)
    if channels and int(channels[2]) == shape[0]:
        near = f": perhaps {(int(channels[1]), *shape[1:])}"
    dims = re.search(r"or (\d)D \(batched\).*size: \[(.*?)\]", problem)
    if dims:
        more = dims[2].count(",") + 1 - int(dims[1])
        if more == 1:
            near = f": perhaps {shape[1:]}"
        elif more < 0:
            near = f": {int(dims[1]) - 1} numbers, such as {(3, 32, 32, 32)[: int(dims[1]) - 1]}"
    example = "; example= is the condition that was tried" if conditional else ""
    return (
        f"shape= must be the shape of one sample, without the batch{near}{example}. If {shape} is right: "
        f"{_wrap_it(conditional).replace('Wrap', 'wrap')}"
    )
