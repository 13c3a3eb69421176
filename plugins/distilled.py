"""Few-step samplers for distilled models: consistency models, latent and trajectory consistency, and flow maps.

With a model that was not distilled, all but the last jump to its x0 estimate, which is a mean and not a sample.
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
        raise ValueError(f"this sampler needs alpha(t) and sigma(t), which {type(path.process).__name__} does not have")
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
    """Multistep consistency sampling: every step jumps to the data and adds fresh noise for the next level.

        x_s = alpha_s f(x_t, t) + sqrt(sigma_s^2 - (alpha_s boundary)^2) z

    where f, the model's x0 prediction, is its consistency function.

    Args:
        boundary: sigma/alpha at which f ends (epsilon in the paper); 0 if f ends at the data. By default the smallest
            sigma/alpha of the model.
    """
    model = native(path)
    end = float(model.ratio(model.t_min)) if boundary is None else boundary
    if end < 0:
        raise ValueError(f"boundary is a value of sigma/alpha and must be 0 or more, not {boundary}")
    lowest = min((float(then.ratio) for then in path.points[1:] if not then.is_clean), default=math.inf)
    if end > lowest * (1 + 1e-9):
        raise ValueError(
            f"the grid goes down to sigma/alpha = {lowest:.6g}, below boundary = {end:.6g}, where the consistency "
            "function ends; use a smaller boundary or a grid that ends earlier"
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
    limits="needs a latent consistency model, distilled with these boundary scalings on discrete timesteps",
    reference="Luo et al. 2023, eq. 9 and algorithm 3",
)
def lcm(x: Tensor, path: Path, *, timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> Run:
    """Multistep sampling of latent consistency models.

        x_s = alpha_s (c_skip x_t + c_out x0) + sigma_s z
        c_skip = d^2 / (u^2 + d^2),   c_out = u / sqrt(u^2 + d^2)

    where u = timestep_scaling t and d = sigma_data; t runs from 0 to 999, as in the 1000 timesteps that these models
    are distilled on, and x_t inside the parentheses is the state in native coordinates.

    Args:
        timestep_scaling: factor on the timestep in c_skip and c_out, as used in the distillation.
        sigma_data: the standard deviation of the data in c_skip and c_out, as used in the distillation.
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
    """Sampling of trajectory consistency distillation (TCD): jump below the next time, then add noise up to it.

        x_u = alpha_u x0 + sigma_u eps
        x_s = (alpha_s/alpha_u) x_u + sqrt(sigma_s^2 - (alpha_s/alpha_u)^2 sigma_u^2) z

    with u = (1 - gamma) s in native time.

    Args:
        gamma: how far below s each jump goes, from 0 (no noise: `ddim`) to 1 (to native time 0).
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
    """Jumps of a flow map from point to point, in one step or more; exact if the flow map is.

        x_s = x_t + (s - t) u(x_t, t, s)

    with u the mean velocity from t to s of a `FlowMapModel`. Other models do not receive s and return the velocity at
    t, so that this is `euler` in native coordinates.
    """
    for now, then in path.steps:
        out = yield x, now.towards(then)
        x = out.jump_to(then)
    return x


@hookimpl
def sdesamplers_samplers() -> Sequence[Sampler]:
    """The samplers of this file."""
    return [consistency, lcm, tcd, flow_map_euler]
