"""k-diffusion: its samplers on its own grids of sigma, from the largest sigma of the process down."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import itertools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import Problem, Setting

LIBRARY = "k-diffusion"
VERSION = importlib.metadata.version("k-diffusion")


def load_sampling() -> Any:
    """`k_diffusion.sampling`, loaded separately if the package lacks a training dependency (wandb, kornia, ...)."""
    if importlib.util.find_spec("torchsde") is None:  # only its Brownian trees need it, and they are not used
        sys.modules["torchsde"] = types.ModuleType("torchsde")
        try:
            return load_sampling_alone()
        finally:
            del sys.modules["torchsde"]
    return load_sampling_alone()


def load_sampling_alone() -> Any:
    """The same, if torchsde can be imported."""
    try:
        import k_diffusion.sampling as whole

        return whole
    except ImportError:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.origin is None:
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "k_diffusion"]:
            del sys.modules[name]
        package = types.ModuleType("k_diffusion")
        package.__path__ = [str(Path(spec.origin).parent)]
        utils = types.ModuleType("k_diffusion.utils")  # with the only function that the samplers use
        utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
        import k_diffusion.sampling as alone

        return alone


K = load_sampling()

Grid = Callable[[Problem, int], Tensor]


def ends(problem: Problem, sigma_min: float | None) -> tuple[float, float]:
    """The smallest and largest sigma of the grid."""
    process = problem.process
    return sigma_min or float(process.ratio(0.0)), float(process.ratio(process.t_max))


def timesteps(problem: Problem, count: int) -> Tensor:
    """Equal timesteps, the default grid of its wrapper for DDPM models."""
    times = torch.linspace(problem.process.t_max, 0, count, dtype=torch.float64)
    return K.append_zero(torch.as_tensor(problem.process.ratio(times.numpy())))


def named(name: str, sigma_min: float | None, **options: float) -> Grid:
    """One of its grids, by name."""

    def make(problem: Problem, count: int) -> Tensor:
        low, high = ends(problem, sigma_min)
        return getattr(K, f"get_sigmas_{name}")(count, low, high, **options)

    return make


def vp(problem: Problem, count: int) -> Tensor:
    """Its continuous VP grid, which has the same betas, clamped to the range of the process."""
    low, high = ends(problem, None)
    sigmas = K.get_sigmas_vp(count)
    return K.append_zero(sigmas[:-1].clamp(low, high))


def grids() -> dict[str, Grid]:
    """Its grids, each down to the smallest sigma of the process and to larger ones that are often used."""
    made: dict[str, Grid] = {"timesteps": timesteps, "vp": vp}
    for low in (None, 0.03, 0.1):
        end = "" if low is None else f" sigma_min={low}"
        made[f"karras{end}"] = named("karras", low)
        made[f"exponential{end}"] = named("exponential", low)
        for rho in (0.5, 0.8, 1.3):
            made[f"polyexponential rho={rho}{end}"] = named("polyexponential", low, rho=rho)
        for rho in (3.0, 5.0):
            made[f"karras rho={rho}{end}"] = named("karras", low, rho=rho)
    return made


SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("sample_euler", {}),
    "heun": ("sample_heun", {}),
    "dpm_2": ("sample_dpm_2", {}),
    **{f"lms order={k}": ("sample_lms", {"order": k}) for k in (2, 3, 4)},
    "dpmpp_2m": ("sample_dpmpp_2m", {}),
    "dpmpp_2s_ancestral eta=0": ("sample_dpmpp_2s_ancestral", {"eta": 0.0}),
    "dpmpp_sde eta=0": ("sample_dpmpp_sde", {"eta": 0.0}),
    "dpmpp_2m_sde eta=0": ("sample_dpmpp_2m_sde", {"eta": 0.0}),
    "dpmpp_2m_sde heun eta=0": ("sample_dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}),
    "dpmpp_3m_sde eta=0": ("sample_dpmpp_3m_sde", {"eta": 0.0}),
}


def begin(problem: Problem, sigma: float) -> Tensor:
    """The start as x / alpha."""
    return problem.start * (1 + sigma**2) ** 0.5


def on_grid(function: str, options: dict[str, Any], grid: Grid, problem: Problem, steps: int) -> Tensor:
    """Run a sampler that takes a list of sigmas."""
    sigmas = grid(problem, steps).to(problem.start.dtype)
    extra = {"noise_sampler": lambda *sigmas: 0.0} if "eta" in options else {}
    model = lambda x, sigma: problem.denoised(x, float(sigma.flatten()[0]))  # noqa: E731
    return getattr(K, function)(model, begin(problem, float(sigmas[0])), sigmas, disable=True, **options, **extra)


def fast(sigma_min: float | None, denoise: bool, problem: Problem, steps: int) -> Tensor:
    """Run DPM-Solver-fast, which stops at the smallest sigma, with or without a last evaluation to remove the noise."""
    low, high = ends(problem, sigma_min)
    model = lambda x, sigma: problem.denoised(x, float(sigma.flatten()[0]))  # noqa: E731
    count = steps - 1 if denoise else steps
    if count < 1:
        raise ValueError("no evaluations are left for the sampler")
    x = K.sample_dpm_fast(model, begin(problem, high), low, high, count, disable=True)
    return problem.denoised(x, low) if denoise else x


def settings() -> list[Setting]:
    """Settings for every sampler and grid."""
    made = []
    for name, (function, options) in SAMPLERS.items():
        for title, grid in grids().items():
            call = functools.partial(on_grid, function, options, grid)
            made.append(Setting(LIBRARY, f"{name} {title}", call, name))
    for low, denoise in itertools.product((None, 0.03, 0.1), (True, False)):
        title = ("" if low is None else f" sigma_min={low}") + (" and a denoising step" if denoise else "")
        made.append(Setting(LIBRARY, f"dpm_fast{title}", functools.partial(fast, low, denoise), "dpm_fast"))
    return made
