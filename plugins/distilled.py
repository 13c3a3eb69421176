"""Few-step samplers of distilled models: consistency models, latent and trajectory consistency, and flow maps.

What all but the last do on a model that was not distilled is jump to its x0 estimate, a mean and not a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sdesamplers import GaussianProcess, Path, Run, Sampler, View, hookimpl, sampler
from sdesamplers.path.points import added_noise_fraction


def native(path: Path) -> GaussianProcess:
    """The process that the model was trained on."""
    if not isinstance(path.process, View):
        raise ValueError(f"this sampler needs alpha(t) and sigma(t), which {type(path.process).__name__} has not")
    return path.process.native


@sampler(
    "consistency",
    order=None,
    stochastic=True,
    needs=("marginals",),
    spacing="distilled",
    limits="needs a consistency model, whose x0 prediction is its consistency function",
    reference="Song, Dhariwal, Chen & Sutskever 2023, algorithm 1",
)
def consistency(x: Tensor, path: Path, *, boundary: float | None = None) -> Run:
    """Multistep consistency sampling: to the end in one evaluation, and back up with fresh noise.

        x_s = alpha_s f(x_t, t) + sqrt(sigma_s^2 - (alpha_s boundary)^2) z

    with f the model's x0 prediction. `boundary` is the sigma/alpha at which f ends (epsilon in the paper): by default
    the model's smallest, 0 for f that ends at the data.
    """
    model = native(path)
    end = float(model.ratio(model.t_min)) if boundary is None else boundary
    if end < 0:
        raise ValueError(f"boundary is a value of sigma/alpha, 0 or more, not {boundary}")
    lowest = min((float(then.ratio) for then in path.points[1:] if not then.is_clean), default=math.inf)
    if end > lowest * (1 + 1e-9):
        raise ValueError(
            f"the grid goes down to sigma/alpha = {lowest:.6g}, and f ends above that already, at {end:.6g}; "
            "give a smaller boundary or a grid that ends earlier"
        )
    for now, then in path.steps:
        out = yield x, now
        width = math.sqrt(max(then.sigma**2 - (then.alpha * end) ** 2, 0.0))
        x = path.draw(out.compose(then.alpha, 0.0), width, now, then)
    return x


@sampler(
    "lcm",
    order=None,
    stochastic=True,
    needs=("marginals",),
    spacing="distilled",
    limits="needs a latent consistency model, distilled with these boundary scalings on a table of timesteps",
    reference="Luo et al. 2023, eq. 9 and algorithm 3",
)
def lcm(x: Tensor, path: Path, *, timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> Run:
    """Multistep sampling of latent consistency models.

        x_s = alpha_s (c_skip x_t + c_out x0) + sigma_s z
        c_skip = d^2 / (u^2 + d^2),   c_out = u / sqrt(u^2 + d^2)

    where u = timestep_scaling t and d = sigma_data; t counts from 0 to 999, as on the table of 1000 timesteps that such
    models are distilled on, and x_t in the bracket is the state in the model's own coordinates.
    """
    if timestep_scaling <= 0 or sigma_data <= 0:
        raise ValueError(f"timestep_scaling and sigma_data must be positive, not {timestep_scaling} and {sigma_data}")
    unit = 999 / native(path).t_max
    for now, then in path.steps:
        u = timestep_scaling * unit * now.t
        skip, out_scale = sigma_data**2 / (u**2 + sigma_data**2), u / math.hypot(u, sigma_data)
        out = yield x, now
        skip *= then.alpha / now.scale
        mean = out.compose(skip * now.alpha + then.alpha * out_scale, skip * now.sigma)
        x = path.draw(mean, then.sigma, now, then)
    return x


@sampler(
    "tcd",
    order=None,
    stochastic=True,
    noiseless={"gamma": 0.0},
    ode_order=1,
    needs=("marginals",),
    spacing="distilled",
    limits="gamma above 0 needs a trajectory consistency model",
    reference="Zheng et al. 2024, algorithm 4 (strategic stochastic sampling)",
)
def tcd(x: Tensor, path: Path, *, gamma: float = 0.3) -> Run:
    """Trajectory consistency distillation's sampling: below the next time in one jump, then back up with noise.

        x_u = alpha_u x0 + sigma_u eps
        x_s = (alpha_s/alpha_u) x_u + sqrt(sigma_s^2 - (alpha_s/alpha_u)^2 sigma_u^2) z

    with u = (1 - gamma) s on the model's clock. gamma = 0 is `ddim`, gamma = 1 jumps to the model's time 0 each time.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie between 0 (no noise) and 1, not {gamma}")
    model = native(path)
    for now, then in path.steps:
        out = yield x, now
        below = then if then.is_clean or gamma == 0 else path.at_ratio(float(model.ratio((1 - gamma) * then.t)))
        lost = 0.0 if below is then else added_noise_fraction(then, below)
        mean = out.compose(then.alpha, then.sigma * math.sqrt(max(1 - lost, 0.0)))
        x = path.draw(mean, then.sigma * math.sqrt(max(lost, 0.0)), now, then)
    return x


@sampler(
    "flow-map-euler",
    order=1,
    needs=("marginals",),
    reference="Geng et al. 2025 (MeanFlow), eq. 3, and algorithm 2 in several steps",
)
def flow_map_euler(x: Tensor, path: Path) -> Run:
    """A flow map's jumps from point to point: as few as one, and exact where the flow map is.

        x_s = x_t + (s - t) u(x_t, t, s)

    with u the mean velocity from t to s of a `FlowMapModel`. Other models are not told s and give the velocity at t,
    which makes this `euler` in native coordinates.
    """
    for now, then in path.steps:
        out = yield x, now.towards(then)
        x = out.jump_to(then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [consistency, lcm, tcd, flow_map_euler]
