"""`as_deepinv_solver`: a sampler as one of deepinv's solvers of SDEs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import shown
from ..errors import UsageError
from ..models.base import Model
from ..path.noise import check_seed
from ..processes.scalars import Scalar, is_per_sample
from ..public import public
from ..registry.names import Preset
from ..registry.options import check_options
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from ..sampling.calls import sample
from .deepinv_sdes import process_of

REFUSED = {
    "unguided": "needs the unguided prediction, which an SDE of deepinv does not have",
    "log_density": "needs a model with a density, and an SDE of deepinv has its score alone",
    "stationary": "runs on a density, not on a diffusion model",
}
RUN_ARGUMENTS = ("coordinates", "noise", "noise_options")
"""Arguments of `sample` that are accepted beside the sampler's own options."""


class ScoreModel(Model):
    """The score of one of deepinv's SDEs, with the arguments of a run.

    Args:
        sde: the SDE; `score(x, t, *args, **kwargs)` is its score, which may be that of a posterior.
        timesteps: the grid of the run.
        shape: the shape of one sample.
        args, kwargs: further arguments of its score.
    """

    pure = False

    def __init__(self, sde: Any, timesteps: list[float], shape: torch.Size, args: Any, kwargs: Any) -> None:
        positive = [t for t in timesteps if t > 0]
        process = process_of(sde, max(positive))
        process.t_min = min(process.t_min, *positive)
        self.process, self.prediction, self.shape = process, "score", tuple(shape)
        self.dtype, self.device, self.name = sde.dtype, torch.device(sde.device), type(sde).__name__
        self.sde, self.args, self.kwargs = sde, args, kwargs

    def predict(self, x: Tensor, t: Scalar, condition: Any = None) -> Tensor:
        if is_per_sample(t):
            raise UsageError("this sampler evaluates at several times at once, and deepinv's SDEs at one")
        score: Tensor = self.sde.score(
            x, torch.tensor(t, dtype=self.dtype, device=self.device), *self.args, **self.kwargs
        )
        return score


@public
def as_deepinv_solver(
    sampler: str | Sampler,
    timesteps: Any = None,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    num_steps: int | None = None,
    rng: torch.Generator | None = None,
    **options: Any,
) -> Any:
    """A sampler as one of deepinv's solvers, for its diffusion SDEs and its `PosteriorDiffusion`.

    The sampler determines the noise, so the weight `alpha` of the SDE is not used (as in deepinv's `DDIMSolver`). The
    run is the one of `sample` on the SDE's own clock and states.

    Args:
        sampler: the name of a sampler, recipe or alias with fixed steps, or a `Sampler`. Of a recipe the sampler, its
            options, coordinates and noise are used.
        timesteps: (steps + 1,) the falling grid of times, a tensor or an array; or `t_start`, `t_end` and `num_steps`,
            for that number of evenly spaced times.
        rng: as in deepinv: `sample(seed=)` seeds it. It gives the seed of the run's noise; without it the seed is drawn
            from torch's generator.
        **options: options of the sampler, and `coordinates`, `noise` and `noise_options` as in `sample`.

    Returns:
        A `deepinv.sampling.BaseSDESolver`. A trajectory has the states at the evaluations, followed by the sample.

    Raises:
        UnknownNameError: no such sampler or option; the message suggests similar names.
        UsageError: a sampler that chooses its own steps, or that needs more than a score.
        ModuleNotFoundError: deepinv is not installed.

    Example:
        >>> solver = sds.as_deepinv_solver("dpmpp-2m", torch.linspace(1, 0.001, 20))
        >>> deepinv.sampling.VariancePreservingDiffusion(denoiser, solver=solver).sample((4, 3, 64, 64))
    """
    if not isinstance(sampler, str | Sampler):
        raise UsageError(f"sampler must be a name or a Sampler, not {shown(sampler)}; its grid is the timesteps")
    spec = _checked(sampler, options)
    from deepinv.sampling import AncestralSolver, SDEOutput  # an optional package

    class SamplerSolver(AncestralSolver):
        """A solver that runs a registered sampler.

        deepinv's `PosteriorDiffusion` takes the result of an `AncestralSolver`, and of no other solver, to be exactly
        at the noise level of the last time, which is the case here.
        """

        @torch.no_grad()
        def sample(
            self,
            sde: Any,
            x_init: Tensor,
            seed: int | None = None,
            *args: Any,
            timesteps: Any = None,
            get_trajectory: bool = False,
            verbose: bool = False,
            **kwargs: Any,
        ) -> Any:
            """Run the sampler from x_init (N, ...) at the first time; see deepinv's `BaseSDESolver.sample`."""
            grid = as_grid(self.timesteps if timesteps is None else timesteps)
            run = sample(
                ScoreModel(sde, grid, x_init.shape[1:], args, kwargs), sampler, times=grid, start=x_init,
                dtype=torch.promote_types(x_init.dtype, torch.float32), seed=self._seed(seed),
                trajectory=get_trajectory, progress=verbose, **options,
            )  # fmt: skip
            end = run.samples.to(x_init)
            if run.trajectory is None:
                return SDEOutput(sample=end, trajectory=end, timesteps=torch.tensor(grid).to(x_init), nfe=run.nfe)
            times = torch.tensor([*run.trajectory.times[:-1], grid[-1]])
            states = run.trajectory.states.to(x_init)
            return SDEOutput(sample=end, trajectory=states, timesteps=times.to(x_init), nfe=run.nfe)

        def step(self, sde: Any, t0: Any, t1: Any, x0: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
            """A run of one step, without the history of earlier ones."""
            run = self.sample(sde, x0, None, *args, timesteps=torch.tensor([float(t0), float(t1)]), **kwargs)
            return run.sample, run.nfe

        def _seed(self, seed: int | None) -> int:
            """The seed of a run: the caller's, or drawn if noise may be."""
            if seed is not None:
                return check_seed(seed)
            if not (spec.stochastic or options):
                return 0
            device = "cpu" if self.rng is None else self.rng.device
            return int(torch.randint(2**63 - 1, (), generator=self.rng, device=device))

    if timesteps is not None:
        timesteps = torch.tensor(as_grid(timesteps), dtype=torch.float64)
    return SamplerSolver(timesteps, t_start, t_end, num_steps, rng=rng)


def _checked(sampler: str | Sampler, options: dict[str, Any]) -> Sampler:
    """The sampler, which must run on a grid with a score; its options are checked."""
    preset = default_registry().resolve(sampler) if isinstance(sampler, str) else Preset(sampler)
    spec = preset.sampler
    own = {name: value for name, value in options.items() if name not in RUN_ARGUMENTS}
    check_options(own, spec.options, f"sampler {spec.name!r}")
    for need in spec.needs:
        if need in REFUSED:
            raise UsageError(f"{spec.name} {REFUSED[need]}")
    if spec.evaluations is None or any(name in spec.control for name in (*preset.options, *own)):
        raise UsageError(f"{spec.name} chooses its own steps here, and deepinv's solvers have fixed ones")
    return spec


def as_grid(timesteps: Any) -> list[float]:
    """Timesteps as numbers.

    Raises:
        UsageError: not two or more numbers of which the first is positive.
    """
    try:
        grid = [float(t) for t in np.asarray(torch.as_tensor(timesteps).double().cpu())]
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"timesteps must be a tensor (steps + 1,), not {shown(timesteps)}") from None
    if len(grid) < 2 or not grid[0] > 0:
        raise UsageError(f"timesteps must be two or more falling times, not {shown(timesteps)}")
    return grid
