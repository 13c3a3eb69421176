"""Processes as users write them, right and wrong, and the exact models of N(MEAN, STD^2) data on them."""

from __future__ import annotations

import math

import numpy as np
import torch

import sdesamplers as sds

MEAN, STD = 0.4, 0.3


class Circle(sds.GaussianProcess):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    t_min, t_max = 2e-3, 0.998
    rate = math.pi / 2

    def alpha(self, t):
        return np.cos(self.rate * t)

    def sigma(self, t):
        return np.sin(self.rate * t)

    def d_alpha(self, t):
        return -self.rate * np.sin(self.rate * t)

    def d_sigma(self, t):
        return self.rate * np.cos(self.rate * t)

    def time_at_ratio(self, ratio):
        return np.arctan(ratio) / self.rate


class Table(sds.GaussianProcess):
    """A DDPM table, interpolated linearly as people do: slopes by np.gradient, the inverse by np.interp."""

    def __init__(self, entries=1000):
        betas = np.linspace(1e-4, 0.02, entries) * 1000 / entries
        kept = np.cumprod(1 - betas)
        self.steps, self.t_min, self.t_max = np.arange(entries), 0.0, entries - 1.0
        self.columns = [np.sqrt(kept), np.sqrt(1 - kept)]
        self.slopes = [np.gradient(column) for column in self.columns]

    def look(self, t, column):
        return np.interp(t, self.steps, column)

    def alpha(self, t):
        return self.look(t, self.columns[0])

    def sigma(self, t):
        return self.look(t, self.columns[1])

    def d_alpha(self, t):
        return self.look(t, self.slopes[0])

    def d_sigma(self, t):
        return self.look(t, self.slopes[1])

    def time_at_ratio(self, ratio):
        alpha, sigma = self.columns
        return np.interp(np.log(ratio), np.log(sigma / alpha), self.steps)


class Rounded(Table):
    """The table's entry of the timestep below: steps, which have no slope."""

    def look(self, t, column):
        return column[np.asarray(t).astype(int)]


class Forwards(sds.GaussianProcess):
    """The straight path as flow matching codes write it: data at t = 1."""

    t_min, t_max = 0.0, 1.0

    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1 - t

    def d_alpha(self, t):
        return 1.0

    def d_sigma(self, t):
        return -1.0

    def time_at_ratio(self, ratio):
        return 1 / (1 + ratio)


def circle(**changed):
    """`Circle` with other attributes or methods."""
    return type("Mine", (Circle,), changed)()


def velocity_from_noise_to_data(x, u):
    """dx/du of x_u = u x_1 + (1 - u) x_0 with x_1 ~ N(MEAN, STD^2) and x_0 ~ N(0, 1): E[x_1 - x_0 | x_u]."""
    variance = (u * STD) ** 2 + (1 - u) ** 2
    return MEAN + (u * STD**2 - (1 - u)) * (x - u * MEAN) / variance


def epsilon_model(process):
    """Of a process's data N(MEAN, STD^2), by its own alpha and sigma: E[eps | x] (linear regression)."""

    def epsilon(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return sigma * (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)

    return sds.FunctionModel(epsilon, process, "epsilon", (2,))


def mean_and_std(samples: torch.Tensor) -> tuple[float, float]:
    return float(samples.mean()), float(samples.std())
