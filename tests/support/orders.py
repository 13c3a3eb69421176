"""Orders of convergence, measured against the exact flow map of Gaussian data."""

import math

import numpy as np
import torch
from process_cases import TABLE

import sdesamplers as sds

MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
STD = 0.5
# name -> (process, first and last time, (alpha, sigma) in closed form)
INTERVALS = {
    "vp": (
        sds.VP(0.1, 7.0),
        (1.0, 0.05),
        lambda t: (
            math.exp(-0.5 * (0.1 * t + 3.45 * t * t)),
            math.sqrt(1 - math.exp(-(0.1 * t + 3.45 * t * t))),
        ),
    ),
    "sub-vp": (
        sds.SubVP(0.1, 7.0),
        (1.0, 0.05),
        lambda t: (math.exp(-0.5 * (0.1 * t + 3.45 * t * t)), 1 - math.exp(-(0.1 * t + 3.45 * t * t))),
    ),
    "edm": (sds.EDM(0.002, 80.0), (3.0, 0.1), lambda t: (1.0, t)),
    "ve": (sds.VE(0.01, 50.0), (0.75, 0.3), lambda t: (1.0, 0.01 * 5000.0**t)),
    "flow": (sds.RectifiedFlow(), (1.0, 0.05), lambda t: (1 - t, t)),
    "table": (
        sds.DiscreteVP(TABLE),
        (800.0, 50.0),
        lambda t: (math.sqrt(TABLE[round(t)]), math.sqrt(1 - TABLE[round(t)])),
    ),
}


def uneven(count, start, end):
    """A smoothly graded grid whose largest step is about three times its smallest."""
    u = np.linspace(0, 1, count + 1)
    return start + (end - start) * (u + 0.5 * np.sin(2 * np.pi * u) / (2 * np.pi))


def jittered(count, start, end):
    """Eight random steps, each cut into equal parts: neighbouring steps differ by up to a factor of four."""
    widths = np.random.default_rng(1).uniform(0.5, 2.0, 8)
    knots = start + (end - start) * np.concatenate([[0], np.cumsum(widths)]) / widths.sum()
    knots[-1] = end
    return np.interp(np.linspace(0, 8, count + 1), np.arange(9), knots)


GRIDS = {"even": lambda n, a, b: np.linspace(a, b, n + 1), "uneven": uneven, "jittered": jittered}


def slope(counts, errors):
    """Order of convergence: minus the slope of log error against log steps."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def gaussian_error(name, sampler, grid, count, coordinates, **options):
    """Largest error of the end state against the flow map: (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2) is constant."""
    process, (start, end), schedule = INTERVALS[name]
    (a0, s0), (a1, s1) = schedule(start), schedule(end)
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = a0 * MEAN + math.hypot(a0 * STD, s0) * z
    exact = a1 * MEAN + math.hypot(a1 * STD, s1) * z
    model = sds.GaussianModel(MEAN, STD**2, process, prediction="flow")
    result = sds.sample(
        model, sampler, times=GRIDS[grid](count, start, end), coordinates=coordinates, start=x, num_samples=6, **options
    )
    return float((result.samples - exact).abs().max())
