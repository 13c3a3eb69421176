"""deepinv's SDEs with small denoisers; deepinv must be installed."""

from __future__ import annotations

from typing import Any

import deepinv.sampling as theirs
import torch
from torch import Tensor

MEAN, VARIANCE = 0.3, 0.25


class Gaussian(torch.nn.Module):
    """E[x0 | x0 + sigma eps] for data N(mean, variance)."""

    def __init__(self, mean: float = MEAN, variance: float = VARIANCE) -> None:
        super().__init__()
        self.mean, self.variance = mean, variance

    def forward(self, x: Tensor, sigma: Any, shift: Any = None) -> Tensor:
        noise = torch.as_tensor(sigma).reshape(-1, *(1,) * (x.dim() - 1)) ** 2
        x0 = self.mean + self.variance * (x - self.mean) / (self.variance + noise)
        return x0 if shift is None else x0 + torch.as_tensor(shift).reshape(-1, *(1,) * (x.dim() - 1)).to(x)


class Network(torch.nn.Module):
    """A denoiser that is no closed form."""

    def forward(self, x: Tensor, sigma: Any) -> Tensor:
        return torch.tanh(0.7 * x + 0.2) / (1 + torch.as_tensor(sigma).reshape(-1, *(1,) * (x.dim() - 1)))


def sde(kind: str, denoiser: Any = None, alpha: float = 0.0, minus_one_one: bool = False, **options: Any) -> Any:
    arguments = {"alpha": alpha, "minus_one_one": minus_one_one, "denoiser": denoiser or Network(), **options}
    if kind == "ve":
        return theirs.VarianceExplodingDiffusion(sigma_min=0.02, sigma_max=10.0, **arguments)
    if kind == "flow":
        return theirs.FlowMatching(**arguments)
    if kind == "edm":
        return theirs.EDMDiffusionSDE(sigma_t=lambda t: 5 * t**2, variance_preserving=True, **arguments)
    return theirs.VariancePreservingDiffusion(scaled_linear=kind == "vp scaled", **arguments)


KINDS = ["vp", "vp scaled", "ve", "flow", "edm"]
START = torch.tensor([[0.7, -1.2], [2.0, 0.1], [-0.4, 0.9]], dtype=torch.float64)


def start(process: Any) -> Tensor:
    return START * float(process.sigma(process.t_max))


def grid(end: Any, steps: int = 12, last: float = 1e-3) -> Tensor:
    return torch.linspace(float(end), last, steps + 1, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, digits: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=digits, atol=digits)
