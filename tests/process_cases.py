"""The processes that the tests run over, one of every kind."""

import numpy as np

import sdesamplers as sds

TABLE = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
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
