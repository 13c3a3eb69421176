"""A diffusers scheduler's configuration: its class, its keys with that class's defaults, its clipping, its grid."""

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
    "AmusedScheduler": "it unmasks tokens, so there is no score",
    "VQDiffusionScheduler": "it diffuses over tokens, so there is no score",
    "BlockRefinementScheduler": "it unmasks tokens, so there is no score",
    "DiscreteDDIMScheduler": "it diffuses over tokens, so there is no score",
    "EntropyBoundScheduler": "it unmasks tokens, so there is no score",
    "FlowMapEulerDiscreteScheduler": "a flow map receives two times, the start and the end of a step; wrap its "
    "network in a sdesamplers.FlowMapModel and use the sampler flow-map-euler",
    "DDPMWuerstchenScheduler": "its timesteps belong to a schedule that its pipeline scales itself",
    "HeliosScheduler": "one run passes through several resolutions",
    "HeliosDMDScheduler": "one run passes through several resolutions",
    "KarrasVeScheduler": "diffusers removed its pipeline",
    "ScoreSdeVpScheduler": "no diffusers pipeline defines the network time for it",
}
"""Unsupported schedulers, and the reasons."""

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
"""Defaults of the classes that diffusers hides if torchsde, which they need only for noise, is not installed."""

SIGMAS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}
"""Flags of a configuration, and the sigma grid that each one selects."""


def class_of(config: Mapping[str, Any]) -> str:
    """Return the name of the scheduler class that a configuration belongs to.

    The configuration of a scheduler that was not loaded from a file does not name its class. It is then the class
    whose parameters are exactly these keys. An incomplete configuration is that of a flow or of EDM if all of its keys
    are of such classes and one is a sign of them, and otherwise DDPM's.
    """
    if "_class_name" in config:
        return str(config["_class_name"])
    keys = {key for key in config if not key.startswith("_")}
    # A table of betas written by hand has the two parameters of IPNDM, which needs another network.
    by_hand = keys == {"num_train_timesteps", "trained_betas"} and config["trained_betas"] is not None
    if len(keys) > FEW and not by_hand:
        exact = next((kind for kind, known in _classes() if keys == known), None)
        if exact is not None:
            return exact
    for kind, (family, signs) in SIGNS.items():
        known = set[str]().union(*(known for name, known in _classes() if name.startswith(family)))
        if keys <= known and any(config.get(key) for key in signs):
            return kind
    return "DDPMScheduler"


SIGNS = {
    "FlowMatchEulerDiscreteScheduler": (
        "FlowMatch",
        ("shift", "use_dynamic_shifting", "base_shift", "max_shift", "shift_terminal", "stochastic_sampling"),
    ),
    "EDMEulerScheduler": ("EDM", ("sigma_data", "sigma_max", "sigma_schedule", "rho")),
}
"""For the usual kinds of models except DDPM's: how the names of their classes begin, and keys that tell them from
others. Other keys, such as `use_karras_sigmas` and `final_sigmas_type`, are also those of classes for DDPM's models."""
FEW = 1
"""Number of keys up to which a class with exactly these parameters, such as `shift` alone, says nothing."""


@cache
def _classes() -> list[tuple[str, set[str]]]:
    """Return diffusers' scheduler classes and their parameters, unsupported ones last: two may have the same ones."""
    import diffusers  # diffusers takes seconds to import

    names = sorted((n for n in dir(diffusers) if n.endswith("Scheduler")), key=lambda n: (n in REFUSED, n))
    found = [(name, getattr(diffusers, name)) for name in names]
    return [(n, {*_signature(n)} - {"kwargs"}) for n, cls in found if issubclass(cls, diffusers.SchedulerMixin)]


@cache
def _signature(kind: str) -> dict[str, Any]:
    """Return a class's parameters and their defaults (`inspect.Parameter.empty` for required ones)."""
    import diffusers  # diffusers takes seconds to import

    cls = getattr(diffusers, kind, None)
    return {p.name: p.default for p in inspect.signature(cls).parameters.values()} if isinstance(cls, type) else {}


def defaults_of(kind: str) -> dict[str, Any]:
    """Return the defaults of a diffusers scheduler class, by key; an empty dictionary if there is no such class."""
    if kind in WITHOUT_TORCHSDE:
        return dict(WITHOUT_TORCHSDE[kind])
    return {key: default for key, default in _signature(kind).items() if default is not inspect.Parameter.empty}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the defaults of its class for all missing keys, as diffusers completes it.

    The keys filled in are listed under `_use_default_values`, as in diffusers, together with the keys already listed
    there. If the class is not named but inferred from the keys, `clip_sample` defaults to False: DDPM's own default,
    True, would clip latents.
    """
    kind = class_of(config)
    filled = {key: value for key, value in defaults_of(kind).items() if key not in config}
    if "_class_name" not in config and "clip_sample" in filled:
        filled["clip_sample"] = False
    listed = [*filled, *(key for key in config.get("_use_default_values") or () if key in config)]
    return {**config, **filled, "_class_name": kind, "_use_default_values": sorted(listed)}


def effective_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration that its class reads, with that class's defaults.

    Keys that another class left in the configuration are dropped. If the class is not named, all keys are kept.
    """
    full, known = completed(config), defaults_of(class_of(config))
    if "_class_name" not in config:
        return full
    return {key: value for key, value in full.items() if key in known or key.startswith("_")}


def clip_of(config: Mapping[str, Any]) -> Clip | None:
    """Return how a diffusers scheduler's configuration clips x0, or None if it does not clip.

    As in its class, `thresholding` takes precedence over `clip_sample`.

    Raises:
        UsageError: an invalid bound or percentile.
    """
    settings = effective_config(config)
    kind = settings["_class_name"]
    clipping = {key: value for key, value in settings.items() if (row := key_of(kind, key)) and row.role == "clip"}
    if clipping.get("thresholding"):
        ratio, most = clipping.get("dynamic_thresholding_ratio"), clipping.get("sample_max_value")
        return Clip(percentile=0.995 if ratio is None else float(ratio), most=1.0 if most is None else float(most))
    if clipping.get("clip_sample"):
        bound = clipping.get("clip_sample_range")
        return Clip.of(1.0 if bound is None else float(bound))
    return Clip() if clipping.get("clip_denoised") else None


@dataclass(frozen=True)
class GridSettings:
    """The grid settings of a scheduler's configuration, with its class's defaults.

    Attributes:
        kind: the scheduler class.
        train_steps: the number of timesteps of its noise schedule; for flows, the factor from the process's time to the
            network time.
        spacing: `timestep_spacing`: "linspace", "leading" or "trailing"; None for classes without this parameter.
        offset: `steps_offset`.
        sigmas: "karras", "exponential", "beta" or "lu" if the configuration selects one of these grids, else None.
        rho: of the Karras grid.
        sigma_min, sigma_max: ends of a sigma grid, if the configuration sets them.
        final: "zero" or "sigma_min": the noise level at which the last step ends.
        set_alpha_to_one: True if the last step ends at alpha = 1, False if it ends at the first entry of the noise
            schedule; None for classes without this parameter.
        lambda_min: lower bound of log(alpha/sigma) at the start of the grid (`lambda_min_clipped`).
        shift_terminal: time greater than 0 at which a flow's grid ends, after stretching.
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


MakersGrid = GridSettings  # its former name, which pickles contain


def grid_of(config: Mapping[str, Any]) -> GridSettings:
    """Return the grid settings of a configuration.

    Raises:
        UsageError: more than one kind of sigma grid, or an invalid value.
    """
    settings = effective_config(config)
    kinds = [name for flag, name in SIGMAS.items() if settings.get(flag)]
    kinds += [settings["sigma_schedule"]] if settings.get("sigma_schedule") else []
    if len(kinds) > 1:
        raise UsageError(f"a grid has one kind of sigmas, but the configuration selects {' and '.join(kinds)}")
    spacing, final = settings.get("timestep_spacing"), settings.get("final_sigmas_type") or "zero"
    _check("timestep_spacing", spacing, (None, "linspace", "leading", "trailing"))
    _check("final_sigmas_type", final, ("zero", "sigma_min"))
    least = settings.get("lambda_min_clipped")
    return GridSettings(
        kind=settings["_class_name"],
        train_steps=int(settings.get("num_train_timesteps") or 1000),
        spacing=spacing,
        offset=int(settings.get("steps_offset") or 0),
        sigmas=kinds[0] if kinds else None,
        rho=float(settings.get("rho") or 7.0),
        sigma_min=_float(settings.get("sigma_min")),
        sigma_max=_float(settings.get("sigma_max")),
        final=final,
        set_alpha_to_one=settings.get("set_alpha_to_one"),
        lambda_min=None if least is None or float(least) == float("-inf") else float(least),
        shift_terminal=_float(settings.get("shift_terminal")) or None,
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _check(key: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise UsageError(f"{key} must be one of {', '.join(repr(k) for k in known if k)}, not {value!r}")
