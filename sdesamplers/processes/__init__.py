"""Forward noising processes and prediction types, independent of models and samplers.

scalars.py      times and schedule values: a number, or an array with one number for each sample
sde.py          the `SDE` interface; Gaussian processes, and everything derived from alpha and sigma
schedules.py    the common processes, each defined by (alpha, sigma)
table.py        a DDPM table of alphas_cumprod as a process in continuous time
coordinates.py  the same process in other coordinates: `View`
predictions.py  prediction types and conversions between them
reversal.py     processes of networks whose time runs from noise to data
fingerprint.py  what distinguishes processes, as numbers that can be stored and compared
check.py        consistency checks of user-defined processes
forms.py        schedule functions that return the type that they are given: float, array or tensor
own_grid.py     interface of the grid that a model's authors sample on
pickling.py     pickling processes and models that hold functions
"""

from .schedules import EDM, VE, VP, BetaProcess, ConstantVP, CosineVP, RectifiedFlow, ShiftedFlow, SubVP, TrigFlow
from .schedules import VariancePreserving as VariancePreserving
from .table import DiscreteVP

__all__ = [
    "EDM",
    "VE",
    "VP",
    "BetaProcess",
    "ConstantVP",
    "CosineVP",
    "DiscreteVP",
    "RectifiedFlow",
    "ShiftedFlow",
    "SubVP",
    "TrigFlow",
    "VariancePreserving",
]
