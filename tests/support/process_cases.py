"""The processes that the tests run over, one of every kind; and diffusers' tables, from the papers' formulas."""

import math

import numpy as np

import sdesamplers as sds

BETAS = np.linspace(1e-4, 0.02, 1000)
"""Of DDPM (Ho et al. 2020)."""
TABLE = np.cumprod(1 - BETAS)
ROOT = np.sqrt(TABLE)
ZERO_TABLE = ((ROOT - ROOT[-1]) * ROOT[0] / (ROOT[0] - ROOT[-1])) ** 2
PROCESSES = {
    "vp": sds.VP(),
    "constant vp": sds.ConstantVP(1.0),
    "cosine": sds.CosineVP(),
    "sub-vp": sds.SubVP(),
    "ve": sds.VE(),
    "edm": sds.EDM(),
    "flow": sds.RectifiedFlow(),
    "table": sds.DiscreteVP(TABLE),
    "zero-SNR table": sds.DiscreteVP(ZERO_TABLE),
}


def scaled_linear_table():
    """Of Stable Diffusion: the square roots of the betas are even."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def cosine_table():
    """Nichol & Dhariwal 2021: ratios of cos^2, each beta at most 0.999."""

    def bar(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.cumprod(1 - np.array([min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)]))


def zero_snr_table():
    """Lin et al. 2024, algorithm 1: shift and scale sqrt(alpha_bar) so that the last one is 0."""
    root = np.sqrt(scaled_linear_table())
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


TABLES = {
    "linear table": TABLE,
    "scaled linear table": scaled_linear_table(),
    "cosine table": cosine_table(),
    "zero-SNR table": zero_snr_table(),
}
TEXTBOOK = {
    "vp": sds.VP(0.1, 20.0),
    "vp, T = 2": sds.VP(0.2, 7.0, T=2.0),
    "constant vp": sds.ConstantVP(1.0),
    "cosine": sds.CosineVP(),
    "sub-vp": sds.SubVP(0.1, 20.0),
    "ve": sds.VE(0.01, 50.0),
    "edm": sds.EDM(),
    "flow": sds.RectifiedFlow(),
    **{name: sds.DiscreteVP(table) for name, table in TABLES.items()},
}
"""With the numbers of their papers, and every table."""
