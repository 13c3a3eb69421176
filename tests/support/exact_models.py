"""Models whose likelihood and whose flow map are known, for the tests of both."""

import math

import numpy as np
import torch
from process_cases import TABLE as DDPM_TABLE
from torch.distributions import MultivariateNormal

import sdesamplers as sds
from sdesamplers.models.base import Model

TABLE = sds.DiscreteVP(DDPM_TABLE)
# Noised so far that nothing is left of the data, down to 1e-5 nats a dimension; the table is as it comes.
PROCESSES = {
    "vp": sds.VP(0.1, 50),
    "sub-vp": sds.SubVP(0.1, 50),
    "ve": sds.VE(0.01, 1e5),
    "edm": sds.EDM(0.002, 1e5),
    "flow": sds.RectifiedFlow(),
    "cosine": sds.CosineVP(),
    "table": TABLE,
}


def gaussian(dimension, process, **words):
    """A Gaussian with a full covariance matrix, and three draws of it."""
    generator = torch.Generator().manual_seed(dimension)
    factor = torch.randn(dimension, dimension, dtype=torch.float64, generator=generator) / math.sqrt(dimension)
    covariance = 0.3 * factor @ factor.T + 0.1 * torch.eye(dimension, dtype=torch.float64)
    mean = 0.5 * torch.randn(dimension, dtype=torch.float64, generator=generator)
    model = sds.GaussianModel(mean, covariance, process, **words)
    return model, model.sample_data(3, generator)


def quick(model):
    """A `GaussianModel` asked for its score by two products, since an exact divergence in 64 dimensions asks often."""
    mean, (variances, axes) = model.means[0], torch.linalg.eigh(model.covariances[0])

    def score(x, t):
        alpha, sigma = (torch.from_numpy(np.asarray(f(t.numpy()))) for f in (model.process.alpha, model.process.sigma))
        return -((x - alpha * mean) @ axes / (alpha**2 * variances + sigma**2)) @ axes.T

    return sds.FunctionModel(score, model.process, "score", model.shape, dtype=torch.float64)


def density(model, x):
    """log density of the Gaussian's data noised to t_min and divided by alpha, which is what the ODE starts from."""
    process, covariance = model.process, model.covariances[0]
    ratio = float(process.ratio(process.t_min))
    return MultivariateNormal(model.means[0], covariance + ratio**2 * torch.eye(len(covariance))).log_prob(x).numpy()


def mixture_density(model, x):
    """The same of a mixture."""
    alpha = float(model.process.alpha(model.process.t_min))
    return model.log_prob(alpha * x, model.process.t_min) + x.shape[1] * math.log(alpha)


def pushed(model, x):
    """log density at x of the prior N(0, sigma_T^2 I) brought to t_min by the exact flow map of the Gaussian.

    The flow map is linear: along each axis of the covariance the deviation from the mean scales as its width.
    """
    process, mean = model.process, model.means[0]
    variances, axes = torch.linalg.eigh(model.covariances[0])
    (a0, s0), (a1, s1) = ((float(process.alpha(t)), float(process.sigma(t))) for t in (process.t_min, process.t_max))
    growth = ((a1**2 * variances + s1**2) / (a0**2 * variances + s0**2)).sqrt()
    end = a0 * (x - mean) @ axes * growth @ axes.T + a1 * mean
    jacobian = float(growth.log().sum()) + len(mean) * math.log(a0)
    return (sds.Prior(s1).log_prob(end) + jacobian).numpy(), end


class ByClass(Model):
    """N(label, 0.25 I) in two dimensions on a rectified flow; label -1 stands for none, N(0, 0.25 I)."""

    process, prediction, shape, dtype, name = sds.RectifiedFlow(), "flow", (2,), torch.float64, "by class"

    def condition_for(self, condition, count):
        return None if condition is None else torch.as_tensor(condition).expand(count)

    def unconditional(self, count):
        return torch.zeros(count, dtype=torch.int64)

    def predict(self, x, t, condition=None):
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
        mean = 0 if condition is None else condition.to(x).view(-1, 1)
        gain = 0.25 * (1 - t) / (0.25 * (1 - t) ** 2 + t**2)
        x0 = mean + gain * (x - (1 - t) * mean)
        return (x - (1 - t) * x0) / t - x0
