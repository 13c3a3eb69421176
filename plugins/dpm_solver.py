"""Singlestep DPM-Solver and DPM-Solver++ (Lu et al. 2022, 2022b): exponential integrators in lambda = log(alpha/sigma).

They solve x_s = carry x_t + gain int e^{rate (u - u_s)} f(u) du (`semilinear`) with a polynomial for the prediction f:
eps in DPM-Solver, x0 in DPM-Solver++. A step into sigma = 0, where lambda is infinite, is of first order (DDIM). A step
out of alpha = 0 uses u = alpha/sigma, which is finite there. The multistep solvers are in `dpm_multistep`, those with
grid points as stages in `dpm_fast`, and the adaptive ones in `dpm_adaptive`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdesamplers import Path, Run, Sampler, hookimpl, sampler

from ._dpm_stages import dpm_solver_2_step, dpm_solver_3_step


def singlestep(x: Tensor, path: Path, order: int, kind: str, r: float = 0.5) -> Run:
    """DPM-Solver-2 or -3 on the grid of the path."""
    if not 0 < r <= 1:
        raise ValueError(f"r1 is the position of the stage in the step and must lie in (0, 1], not {r}")
    for now, then in path.steps:
        out = yield x, now
        if then.is_clean:
            x = out.step_to(then)
        elif order == 2:
            x, _ = yield from dpm_solver_2_step(out, then, path, kind, r)
        else:
            x, _ = yield from dpm_solver_3_step(out, then, path, kind)
    return x


@sampler(
    "dpm-solver-2", order=2, evaluations=2, needs=["marginals"], reference="Lu et al. 2022 (DPM-Solver), algorithm 1"
)
def dpm_solver_2(x: Tensor, path: Path, *, r1: float = 0.5) -> Run:
    """DPM-Solver-2, singlestep in noise prediction.

    With h = lambda_s - lambda_t,

        u = DDIM step to lambda_t + r1 h
        x_s = (alpha_s/alpha_t) x_t - sigma_s (e^h - 1) [eps(x_t) + (eps(u) - eps(x_t)) / (2 r1)]

    Args:
        r1: position of the stage in the step, in (0, 1].
    """
    return (yield from singlestep(x, path, 2, "noise", r1))


@sampler(
    "dpm-solver-3", order=3, evaluations=3, needs=["marginals"], reference="Lu et al. 2022 (DPM-Solver), algorithm 2"
)
def dpm_solver_3(x: Tensor, path: Path) -> Run:
    """DPM-Solver-3, singlestep in noise prediction.

    With h = lambda_s - lambda_t,

        u1 = DDIM step to lambda_t + h/3
        u2 = step to lambda_t + 2h/3 with the line through eps(x_t) and eps(u1)
        x_s = (alpha_s/alpha_t) x_t - sigma_s int e^{lambda_s - l} [line through eps(x_t) and eps(u2)](l) dl
    """
    return (yield from singlestep(x, path, 3, "noise"))


@sampler(
    "dpmpp-2s", order=2, evaluations=2, needs=["marginals"], reference="Lu et al. 2022b (DPM-Solver++), algorithm 1"
)
def dpmpp_2s(x: Tensor, path: Path, *, r1: float = 0.5) -> Run:
    """DPM-Solver++(2S), singlestep in data prediction.

    With h = lambda_s - lambda_t,

        u = DDIM step to lambda_t + r1 h
        x_s = (sigma_s/sigma_t) x_t - alpha_s (e^{-h} - 1) [x0(x_t) + (x0(u) - x0(x_t)) / (2 r1)]

    Args:
        r1: position of the stage in the step, in (0, 1].
    """
    return (yield from singlestep(x, path, 2, "data", r1))


@sampler(
    "dpmpp-3s",
    order=3,
    evaluations=3,
    needs=["marginals"],
    reference="Lu et al. 2022b (DPM-Solver++); the stages of Lu et al. 2022, algorithm 2, in data prediction",
)
def dpmpp_3s(x: Tensor, path: Path) -> Run:
    """DPM-Solver++(3S), singlestep in data prediction.

    With h = lambda_s - lambda_t,

        u1 = DDIM step to lambda_t + h/3
        u2 = step to lambda_t + 2h/3 with the line through x0(x_t) and x0(u1)
        x_s = (sigma_s/sigma_t) x_t + alpha_s int e^{l - lambda_s} [line through x0(x_t) and x0(u2)](l) dl
    """
    return (yield from singlestep(x, path, 3, "data"))


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [dpm_solver_2, dpm_solver_3, dpmpp_2s, dpmpp_3s]
