"""`sample` for editors and type checkers. Written by docs/make_stub.py; do not edit."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from ..models.base import Model
from ..registry.plugin import NoiseSource, Sampler, Spacing
from .loop import Callback, Flag
from .recipe import Recipe
from .result import Result
from .table import SolverTable, TableSet

class Arguments(TypedDict, total=False):
    """The arguments of `sample` that do not depend on the sampler."""

    steps: int | None
    nfe: int | None
    spacing: str | Spacing | None
    spacing_options: dict[str, Any] | None
    times: Sequence[float] | None
    sigmas: Sequence[float] | None
    coordinates: str | None
    seed: int
    num_samples: int | None
    batch_size: int | None
    first_index: int
    noise: str | NoiseSource | None
    noise_options: dict[str, Any] | None
    final: str | None
    start: Tensor | None
    start_time: float | None
    condition: Any
    guidance_scale: float
    callback: Callback | None
    cancel: Flag | None
    trajectory: bool
    log_probs: bool
    check_finite: bool
    gradients: bool
    dtype: torch.dtype | None
    progress: bool

@overload
def sample(
    model: Model | str,
    sampler: Literal["ab", "adams-bashforth"],
    *,
    order: int = 4,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["ab-2m"],
    *,
    order: int = 4,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["abm", "fast", "quality", "adams-bashforth-moulton"] = ...,
    *,
    order: int | None = None,
    mode: Literal["pec", "pece"] = "pec",
    longest: float = ...,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["annealed-langevin", "ncsn", "ald"],
    *,
    steps_per_level: int = 5,
    step_size: float = 0.2,
    denoise: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["bdia-ddim"],
    *,
    gamma: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["bosh3", "RK23", "Bosh3"],
    *,
    rtol: float = 0.0001,
    atol: float = 0.0001,
    max_nfe: int = 10000,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["churn", "edm-stochastic", "edm-stochastic-cifar10"],
    *,
    solver: str = "heun",
    s_churn: float = 5.0,
    s_tmin: float = 0.0,
    s_tmax: float | None = None,
    s_noise: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["consistency"],
    *,
    boundary: float | None = None,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["cps"],
    *,
    eta: float = 0.7,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dance-sde"],
    *,
    eta: float = 0.3,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["ddim", "ddim-trailing", "ddim-leading", "DDIM", "dpm-solver-1", "dpmpp-1"],
    *,
    eta: float = 0.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["ddpm", "ddpm-leading", "DDPM"],
    *,
    variance: Literal["posterior", "beta"] = "posterior",
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["deis"],
    *,
    order: int = 3,
    kind: Literal["tab", "rhoab", "logrho"] = "tab",
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dop853", "DOP853"],
    *,
    rtol: float = 0.0001,
    atol: float = 0.0001,
    max_nfe: int = 10000,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpm-adaptive"],
    *,
    order: Literal[2, 3] = 3,
    prediction: Literal["data", "noise"] = "noise",
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    max_nfe: int = 10000,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpm-fast", "dpm-solver-fast"],
    *,
    order: int = 3,
    prediction: Literal["data", "noise"] = "noise",
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpm-solver-2"],
    *,
    r1: float = 0.5,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpm-solver-2m", "dpmsolver"],
    *,
    order: int = 2,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpm-solver-3m"],
    *,
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpm-solver-v3", "dpm-solver-v3-guided", "dpm_solver_v3", "DPM-Solver-v3"],
    *,
    statistics: str = "",
    order: int = 3,
    corrector: bool = True,
    pseudo: bool = False,
    lower_order_final: bool = False,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpm2-ancestral"],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpmpp-2m", "dpmsolver++"],
    *,
    order: int = 2,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpmpp-2m-sde", "sde-dpmsolver++"],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpmpp-2s"],
    *,
    r1: float = 0.5,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpmpp-2s-ancestral"],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpmpp-3m"],
    *,
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpmpp-3m-sde"],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpmpp-sde"],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["er-sde", "er-sde-solver"],
    *,
    order: int = 2,
    noise_scale: Literal["ode", "sde", "er-sde-1", "er-sde-2", "er-sde-3", "er-sde-4", "er-sde-5"] = "er-sde-5",
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["etdrk4"],
    *,
    tableau: Literal["krogstad", "hochbruck-ostermann"] = "krogstad",
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["euler-ancestral"],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["euler-ancestral-cfgpp"],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["euler-maruyama", "em", "milstein"],
    *,
    eta: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["exp-ab"],
    *,
    order: int = 3,
    prediction: Literal["x0", "eps"] = "x0",
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["exp-euler-maruyama", "seeds-1", "exponential-euler-maruyama"],
    *,
    eta: float = 1.0,
    prediction: Literal["data", "noise"] = "data",
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["flow-sde"],
    *,
    noise_level: float = 0.7,
    noisy_end: bool = False,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["gotta-go-fast", "adaptive-sde", "jolicoeur-martineau"],
    *,
    rtol: float = 0.05,
    atol: float = 0.0078,
    safety: float = 0.9,
    power: float = 0.9,
    max_nfe: int = 10000,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["gradient-estimation"],
    *,
    gamma: float = 2.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["ipndm"],
    *,
    order: int = 4,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["ipndm-v"],
    *,
    order: int = 4,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["lcm"],
    *,
    timestep_scaling: float = 10.0,
    sigma_data: float = 0.5,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["lms"],
    *,
    order: int = 4,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["mixed"],
    *,
    sde: str = "flow-sde",
    ode: str = "ddim",
    noisy_steps: Sequence[int] | np.ndarray | Tensor | None = None,
    amounts: Sequence[float] | np.ndarray | Tensor | None = None,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["odeint"],
    *,
    method: Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver", "euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"] = "dopri5",
    rtol: float = 0.0001,
    atol: float = 0.0001,
    max_nfe: int = 10000,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["paradigms", "ParaDiGMS"],
    *,
    window: int = 16,
    tolerance: float = 0.001,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["predictor-corrector", "pc-ve", "pc", "PC"],
    *,
    predictor: str = "reverse-diffusion",
    corrector_steps: int = 1,
    snr: float = 0.16,
    step: Literal["schedule", "measured"] = "schedule",
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["repaint"],
    *,
    jump_length: int = 1,
    resamples: int = 4,
    eta: float = 0.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["res-2s", "refined-exponential-solver"],
    *,
    c2: float = 0.5,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["res-3s"],
    *,
    c2: float = 0.5,
    c3: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["restart", "restart-cifar10", "restart-imagenet64"],
    *,
    solver: str = "heun",
    intervals: Sequence[Sequence[float]] | np.ndarray | Tensor = ...,
    s_noise: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["reversible-midpoint"],
    *,
    coupling: float = 0.99,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["rk45", "ode-exact", "dopri5", "RK45", "pf-ode", "Dopri5"],
    *,
    rtol: float = 0.0001,
    atol: float = 0.0001,
    max_nfe: int = 10000,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["sa-solver", "stochastic-gddim", "gddim"],
    *,
    predictor_order: int = 2,
    corrector_order: int = 3,
    prediction: Literal["data", "noise"] = "data",
    tau: float = 1.0,
    tau_start: float = ...,
    tau_end: float = 0.0,
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["seeds-2"],
    *,
    eta: float = 1.0,
    prediction: Literal["data", "noise"] = "data",
    r: float = 0.5,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["seeds-3"],
    *,
    eta: float = 1.0,
    prediction: Literal["data", "noise"] = "data",
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["sra1", "SRA1"],
    *,
    eta: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["sra3", "SRA3"],
    *,
    eta: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["stochastic-heun"],
    *,
    eta: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["table"],
    *,
    weights: Sequence[Sequence[float]] | np.ndarray | Tensor = ...,
    network_angles: Sequence[float] | np.ndarray | Tensor = ...,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["tcd"],
    *,
    gamma: float = 0.3,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["tsit5", "Tsit5"],
    *,
    rtol: float = 0.0001,
    atol: float = 0.0001,
    max_nfe: int = 10000,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["underdamped-langevin", "baoab", "kinetic-langevin"],
    *,
    friction: float = 1.0,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["unic"],
    *,
    predictor: str = "dpmpp-2m",
    order: int = 2,
    variant: Literal["bh1", "bh2", "vary_coeff"] = "bh2",
    prediction: Literal["data", "noise"] = "data",
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["unip"],
    *,
    order: int = 2,
    variant: Literal["bh1", "bh2", "vary_coeff"] = "bh2",
    prediction: Literal["data", "noise"] = "data",
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["unipc", "unipc-3"],
    *,
    order: int = 2,
    variant: Literal["bh1", "bh2", "vary_coeff"] = "bh2",
    prediction: Literal["data", "noise"] = "data",
    lower_order_final: bool = True,
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: Literal["dpm-solver-3", "dpm2", "dpmpp-2m-cfgpp", "dpmpp-3s", "etdrk2", "etdrk3", "euler", "k-euler", "k-euler-plain", "euler-cfgpp", "flow-map-euler", "heun", "edm", "k-heun", "heunpp2", "mala", "metropolis-adjusted-langevin", "midpoint", "plms", "pndm", "ralston", "res-2m", "res-3m", "reverse-diffusion", "reversible-heun", "rk3", "rk4", "rk4-38", "score-ancestral", "ssprk3", "ula", "unadjusted-langevin"],
    **kwargs: Unpack[Arguments],
) -> Result: ...

@overload
def sample(
    model: Model | str,
    sampler: str | Sampler | Recipe | SolverTable | TableSet | Mapping[str, Any],
    *,
    steps: int | None = ...,
    nfe: int | None = ...,
    spacing: str | Spacing | None = ...,
    spacing_options: dict[str, Any] | None = ...,
    times: Sequence[float] | None = ...,
    sigmas: Sequence[float] | None = ...,
    coordinates: str | None = ...,
    seed: int = ...,
    num_samples: int | None = ...,
    batch_size: int | None = ...,
    first_index: int = ...,
    noise: str | NoiseSource | None = ...,
    noise_options: dict[str, Any] | None = ...,
    final: str | None = ...,
    start: Tensor | None = ...,
    start_time: float | None = ...,
    condition: Any = ...,
    guidance_scale: float = ...,
    callback: Callback | None = ...,
    cancel: Flag | None = ...,
    trajectory: bool = ...,
    log_probs: bool = ...,
    check_finite: bool = ...,
    gradients: bool = ...,
    dtype: torch.dtype | None = ...,
    progress: bool = ...,
    accept_safety: float = ...,
    amounts: Sequence[float] | np.ndarray | Tensor | None = ...,
    atol: float = ...,
    boundary: float | None = ...,
    c2: float = ...,
    c3: float = ...,
    corrector: bool = ...,
    corrector_order: int = ...,
    corrector_steps: int = ...,
    coupling: float = ...,
    dcoeff: float = ...,
    denoise: bool = ...,
    eta: float = ...,
    friction: float = ...,
    gamma: float = ...,
    h_init: float = ...,
    icoeff: float = ...,
    intervals: Sequence[Sequence[float]] | np.ndarray | Tensor = ...,
    jump_length: int = ...,
    kind: Literal["tab", "rhoab", "logrho"] = ...,
    longest: float = ...,
    lower_order_final: bool = ...,
    max_nfe: int = ...,
    method: Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver", "euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"] = ...,
    mode: Literal["pec", "pece"] = ...,
    network_angles: Sequence[float] | np.ndarray | Tensor = ...,
    noise_level: float = ...,
    noise_scale: Literal["ode", "sde", "er-sde-1", "er-sde-2", "er-sde-3", "er-sde-4", "er-sde-5"] = ...,
    noisy_end: bool = ...,
    noisy_steps: Sequence[int] | np.ndarray | Tensor | None = ...,
    ode: str = ...,
    order: int | None | Literal[2, 3] = ...,
    pcoeff: float = ...,
    power: float = ...,
    prediction: Literal["data", "noise"] | Literal["x0", "eps"] = ...,
    predictor: str = ...,
    predictor_order: int = ...,
    pseudo: bool = ...,
    r: float = ...,
    r1: float = ...,
    resamples: int = ...,
    rtol: float = ...,
    s_churn: float = ...,
    s_noise: float = ...,
    s_tmax: float | None = ...,
    s_tmin: float = ...,
    safety: float = ...,
    sde: str = ...,
    sigma_data: float = ...,
    snr: float = ...,
    solver: str | Literal["midpoint", "heun"] = ...,
    statistics: str = ...,
    step: Literal["schedule", "measured"] = ...,
    step_size: float = ...,
    steps_per_level: int = ...,
    tableau: Literal["krogstad", "hochbruck-ostermann"] = ...,
    tau: float = ...,
    tau_end: float = ...,
    tau_start: float = ...,
    timestep_scaling: float = ...,
    tolerance: float = ...,
    variance: Literal["posterior", "beta"] = ...,
    variant: Literal["bh1", "bh2", "vary_coeff"] = ...,
    weights: Sequence[Sequence[float]] | np.ndarray | Tensor = ...,
    window: int = ...,
    **options: Any,
) -> Result: ...
