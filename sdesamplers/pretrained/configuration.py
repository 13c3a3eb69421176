"""A diffusers scheduler's configuration: its class, its words with that class's defaults, its clipping, its grid."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import UsageError
from ..models.clipping import Clip
from .scheduler_keys import key_of

REFUSED = {
    "AmusedScheduler": "it unmasks tokens, and there is no score to follow",
    "VQDiffusionScheduler": "it diffuses over tokens, and there is no score to follow",
    "BlockRefinementScheduler": "it unmasks tokens, and there is no score to follow",
    "DiscreteDDIMScheduler": "it diffuses over tokens, and there is no score to follow",
    "EntropyBoundScheduler": "it unmasks tokens, and there is no score to follow",
    "FlowMapEulerDiscreteScheduler": "a flow map is told two times, where a step begins and where it ends; make a "
    "sdesamplers.FlowMapModel of its network and take flow-map-euler",
    "DDPMWuerstchenScheduler": "its timesteps are those of a schedule that its pipeline scales by itself",
    "HeliosScheduler": "it moves through several resolutions in one run",
    "HeliosDMDScheduler": "it moves through several resolutions in one run",
    "KarrasVeScheduler": "diffusers removed its pipeline",
    "ScoreSdeVpScheduler": "no pipeline of diffusers says which time its network is told",
}
"""Schedulers that have no convention here, and why."""

WITHOUT_TORCHSDE: dict[str, dict[str, Any]] = {
    "CosineDPMSolverMultistepScheduler": {
        "sigma_min": 0.3,
        "sigma_max": 500,
        "sigma_data": 1.0,
        "sigma_schedule": "exponential",
        "num_train_timesteps": 1000,
        "solver_order": 2,
        "prediction_type": "v_prediction",
        "rho": 7.0,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    },
    "DPMSolverSDEScheduler": {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "noise_sampler_seed": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    },
}
"""Defaults of the classes that diffusers hides where torchsde, which is for noise alone, is not installed."""

SIGMAS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}
"""Flags of a configuration, and the grid of sigmas that each stands for."""


def class_of(config: Mapping[str, Any]) -> str:
    """The name of the scheduler class that a configuration is of.

    A scheduler that was not loaded does not name its class in its configuration; it is then the class that takes just
    these words, or DDPM's.
    """
    if "_class_name" in config:
        return str(config["_class_name"])
    words = {key for key in config if not key.startswith("_")}
    return next((kind for kind, known in _classes() if words == known), "DDPMScheduler")


@cache
def _classes() -> list[tuple[str, set[str]]]:
    """diffusers' scheduler classes and their words; refused ones come last, since two classes may have the same."""
    import diffusers  # diffusers takes seconds to import

    names = sorted((n for n in dir(diffusers) if n.endswith("Scheduler")), key=lambda n: (n in REFUSED, n))
    found = [(name, getattr(diffusers, name)) for name in names]
    return [(n, {*_signature(n)} - {"kwargs"}) for n, cls in found if issubclass(cls, diffusers.SchedulerMixin)]


@cache
def _signature(kind: str) -> dict[str, Any]:
    """A class's parameters and their defaults (`inspect.Parameter.empty` if there is none)."""
    import diffusers  # diffusers takes seconds to import

    cls = getattr(diffusers, kind, None)
    return {p.name: p.default for p in inspect.signature(cls).parameters.values()} if isinstance(cls, type) else {}


def defaults_of(kind: str) -> dict[str, Any]:
    """The defaults of a scheduler class of diffusers, by word; none where diffusers has no such class."""
    if kind in WITHOUT_TORCHSDE:
        return dict(WITHOUT_TORCHSDE[kind])
    return {word: default for word, default in _signature(kind).items() if default is not inspect.Parameter.empty}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with every word that its class has, as diffusers completes it.

    Words that were filled in are listed under `_use_default_values`, where diffusers lists them, beside those that it
    has listed itself. Where the class is not named, and only guessed by its words, nothing is clipped that no word asks
    for: DDPM's own default would clip latents.
    """
    kind = class_of(config)
    filled = {word: value for word, value in defaults_of(kind).items() if word not in config}
    if "_class_name" not in config and "clip_sample" in filled:
        filled["clip_sample"] = False
    listed = [*filled, *(word for word in config.get("_use_default_values") or () if word in config)]
    return {**config, **filled, "_class_name": kind, "_use_default_values": sorted(listed)}


def effective_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The words of a configuration that its class reads, with that class's defaults.

    Words that another class has left behind are no part of it. Where the class is not named all words count.
    """
    words, known = completed(config), defaults_of(class_of(config))
    if "_class_name" not in config:
        return words
    return {word: value for word, value in words.items() if word in known or word.startswith("_")}


def clip_of(config: Mapping[str, Any]) -> Clip | None:
    """What a diffusers scheduler's configuration does to x0: as in its own class, thresholding goes before clipping.

    Raises:
        UsageError: a bound or a percentile that means nothing.
    """
    words = effective_config(config)
    kind = words["_class_name"]
    said = {word: value for word, value in words.items() if (row := key_of(kind, word)) and row.role == "clip"}
    if said.get("thresholding"):
        ratio, most = said.get("dynamic_thresholding_ratio"), said.get("sample_max_value")
        return Clip(percentile=0.995 if ratio is None else float(ratio), most=1.0 if most is None else float(most))
    if said.get("clip_sample"):
        bound = said.get("clip_sample_range")
        return Clip.of(1.0 if bound is None else float(bound))
    return Clip() if said.get("clip_denoised") else None


@dataclass(frozen=True)
class GridSettings:
    """What a scheduler's configuration says of its grid, with its class's defaults.

    Attributes:
        kind: the scheduler class.
        train_steps: timesteps of its table, or the factor from a flow's time to what the network is told.
        spacing: `timestep_spacing`: "linspace", "leading" or "trailing"; None for classes without it.
        offset: `steps_offset`.
        sigmas: "karras", "exponential", "beta" or "lu" where the configuration asks for such a grid, else None.
        rho: of the Karras grid.
        sigma_min, sigma_max: ends of a grid of sigmas where the configuration sets them.
        final: "zero" or "sigma_min": where the last step arrives.
        set_alpha_to_one: whether the last step of a class with this word arrives at alpha = 1, and not at the table's
            first entry; None for other classes.
        lambda_min: log(alpha/sigma) that a grid does not begin below (`lambda_min_clipped`).
        shift_terminal: where a flow's grid is stretched to end, before the clean end.
    """

    kind: str
    train_steps: int = 1000
    spacing: str | None = None
    offset: int = 0
    sigmas: str | None = None
    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    final: str = "zero"
    set_alpha_to_one: bool | None = None
    lambda_min: float | None = None
    shift_terminal: float | None = None


def grid_of(config: Mapping[str, Any]) -> GridSettings:
    """What a configuration says of its class's grid.

    Raises:
        UsageError: two kinds of sigmas at once, or a word whose value means nothing.
    """
    words = effective_config(config)
    kinds = [name for flag, name in SIGMAS.items() if words.get(flag)]
    kinds += [words["sigma_schedule"]] if words.get("sigma_schedule") else []
    if len(kinds) > 1:
        raise UsageError(f"a grid has one kind of sigmas, and the configuration asks for {' and '.join(kinds)}")
    spacing, final = words.get("timestep_spacing"), words.get("final_sigmas_type") or "zero"
    _check("timestep_spacing", spacing, (None, "linspace", "leading", "trailing"))
    _check("final_sigmas_type", final, ("zero", "sigma_min"))
    least = words.get("lambda_min_clipped")
    return GridSettings(
        kind=words["_class_name"],
        train_steps=int(words.get("num_train_timesteps") or 1000),
        spacing=spacing,
        offset=int(words.get("steps_offset") or 0),
        sigmas=kinds[0] if kinds else None,
        rho=float(words.get("rho") or 7.0),
        sigma_min=_float(words.get("sigma_min")),
        sigma_max=_float(words.get("sigma_max")),
        final=final,
        set_alpha_to_one=words.get("set_alpha_to_one"),
        lambda_min=None if least is None or float(least) == float("-inf") else float(least),
        shift_terminal=_float(words.get("shift_terminal")) or None,
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _check(word: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise UsageError(f"{word} must be {', '.join(repr(k) for k in known if k)}, not {value!r}")
