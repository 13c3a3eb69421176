"""Checks of a sampler's declared accuracy, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..metrics.distances import sliced_wasserstein
from ..models.analytic import GaussianModel, grid_mixture
from ..processes.schedules import VP
from ..sampling.calls import sample
from .case import Case
from .invariants import clipped
from .problems import PROCESSES, Transport, gaussian_moments, graded, measure_order, measure_weak_order
from .report import Outcome

SLACK = 0.2
"""Allowed difference between a measured order and the declared order."""


ABOVE = 0.5
"""Allowed excess of a weak order over the declared order: the error of the variance may change sign while it falls."""

HIGH = 5
"""From this order on, errors reach rounding soon after they begin to fall at their order (above this order, before).
Such methods are measured in `angle` coordinates, where errors begin to fall earliest; above this order, only a measured
order that is too low is a failure."""


def ode_order(case: Case) -> Outcome:
    """The order of the ODE solver on uneven grids of two processes, against quantile transport, in float64.

    The lower order counts, because one process may happen to be easy.
    """
    spec, options = case.spec, dict(case.options)
    if not case.as_declared:
        return None
    if spec.stochastic:
        if spec.noiseless is None:
            return None
        options.update(spec.noiseless)
    declared = spec.ode_order
    if declared is None or not case.gaussian:
        return None
    view = case.spec.coordinates if declared < HIGH else "angle"
    found = {
        name: measure_order(spec, process, order=declared, options=options, coordinates=_view(view, name))
        for name, process in PROCESSES.items()
    }
    measured, lowest = (
        ", ".join(f"{name} {order:.2f}" for name, order in found.items()),
        float(np.min([*found.values()])),
    )
    if declared > HIGH:
        return measured, f">= {declared - SLACK}", lowest >= declared - SLACK
    return measured, f"{declared} +- {SLACK}", abs(lowest - declared) <= SLACK


def _view(view: str, process: str) -> str:
    """Coordinates that exist for the process: `flow` in place of `ve` for flow models."""
    return "flow" if process == "flow" and view == "ve" else view


def weak_order(case: Case) -> Outcome:
    """The order of convergence of mean and variance on Gaussian data, from exact moments; the lowest one counts."""
    spec = case.spec
    if not spec.stochastic or spec.order is None or not case.gaussian or not case.as_declared:
        return None
    if (departure := _departure(case)) > 1e-9:
        return f"differs from an affine map by {departure:.1e}", "affine on Gaussian data, or order=None", False
    found = {
        name: measure_weak_order(
            spec, process, order=spec.order, options=case.options, coordinates=_view(spec.coordinates, name)
        )
        for name, process in PROCESSES.items()
    }
    measured = ", ".join(f"{name} {mean:.2f} and {variance:.2f}" for name, (mean, variance) in found.items())
    lowest = float(np.min([*found.values()]))
    low, high = spec.order - SLACK, spec.order + ABOVE
    return f"mean and variance: {measured}", f"{low} to {high}", low <= lowest <= high


def _departure(case: Case) -> float:
    problem = Transport(VP())
    times = problem.time(graded(problem.first, problem.last, 8, 1))
    return gaussian_moments(case.spec, problem.process, times, options=case.options).affinity


def strong_order(case: Case) -> Outcome:
    """The order along one Brownian path per sample, against the sampler's own run on a fine grid."""
    spec, counts, finest, samples = case.spec, (32, 64, 128, 256), 1024, 12
    if spec.strong_order is None or not case.as_declared:
        return None
    process = VP()
    model = GaussianModel([0.7, -0.4], 0.36, process)
    start = torch.randn(samples, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8))

    def run(steps: int) -> torch.Tensor:
        times = process.time_at_log_snr(2 * np.linspace(-2.0, 2.0, steps + 1))
        return case.sample(model, times=times, start=start, num_samples=samples, noise="brownian", seed=3).samples

    reference = run(finest)
    errors = [float((run(n) - reference).abs().mean()) for n in counts]
    found = -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])
    return f"{found:.2f}", f"{spec.strong_order} +- {SLACK}", abs(found - spec.strong_order) <= SLACK


COUNT = 1500
"""Number of samples of a statistical check."""


def distribution(case: Case) -> Outcome:
    """Mean, covariance and sliced Wasserstein distance on a mixture: 1,500 samples from the exact initial distribution.

    Means must lie within 5.5 standard errors, and the distance within 5 standard deviations of its mean between two
    exact sample sets of this size; covariance and distance have an allowance for the discretization error of a
    first-order method with 150 evaluations.
    """
    if case.spec.limits or not case.gaussian:
        return None
    process = VP()
    model = grid_mixture(process)
    generator = torch.Generator().manual_seed(12)
    start = model.sample_data(COUNT, generator, process.t_max)
    samples = case.sample(model, **case.effort(150), start=start, num_samples=COUNT, seed=9).samples.numpy()
    exact = [model.sample_data(COUNT, generator, 0.0).numpy() for _ in range(9)]
    floor = [sliced_wasserstein(exact[0], other) for other in exact[1:]]
    limit = float(np.mean(floor) + 5 * np.std(floor)) + 0.01
    distance = sliced_wasserstein(samples, exact[0])
    pool = np.concatenate(exact)
    error = np.abs(samples.mean(0) - pool.mean(0)) / (pool.std(0) * math.sqrt(1 / COUNT + 1 / len(pool)))
    spread = np.abs(np.cov(samples.T) - np.cov(pool.T)).max()
    allowed = 5 * math.sqrt(2 / COUNT) * float(np.cov(pool.T).max()) + 0.01
    measured = f"mean off by {error.max():.1f} SE, covariance by {spread:.3f}, distance {distance:.3f}"
    good = error.max() < 5.5 and spread < allowed and distance < limit
    return measured, f"5.5 SE, {allowed:.3f}, {limit:.3f}", bool(good)


def single_precision(case: Case) -> Outcome:
    """A run of 500 evaluations with a float32 state agrees with float64: coefficients and updates lose no digits."""
    model, limit = case.main_model, 2e-4
    if not case.gaussian:
        return None
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    arguments = {**case.effort(500), "start": start, "num_samples": 4, "seed": 1}
    try:
        single, double = (case.sample(model, dtype=d, **arguments).samples for d in (torch.float32, torch.float64))
    except ValueError as refusal:
        return clipped(f"refused: {refusal}"), f"<= {limit:.0e}", False
    worst = float((single - double).abs().max())
    return f"{worst:.1e}", f"<= {limit:.0e}", worst <= limit


def tolerance(case: Case) -> Outcome:
    """The error of an adaptive ODE solver falls at least by a factor of 10 if the tolerance falls by 1,000."""
    spec = case.spec
    if spec.stochastic or not spec.adaptive or not case.gaussian or not {"rtol", "atol"} <= set(spec.control):
        return None
    model, problem = Transport(VP()).model, Transport(VP())
    start, exact = problem.ends([VP().t_max, VP().t_min])
    errors = []
    for size in (1e-2, 1e-5):
        tolerances = {"rtol": size, "atol": size}
        arguments = {**case.options, **tolerances, "start": start, "num_samples": len(start), "final": "min"}
        found = sample(model, spec, **arguments)
        errors.append(float((found.samples - exact).square().mean().sqrt()))
    measured = f"{errors[0]:.1e} at 1e-2, {errors[1]:.1e} at 1e-5"
    return measured, "falls by a factor of 10, and <= 1e-3 at 1e-5", errors[1] <= min(errors[0] / 10, 1e-3)
