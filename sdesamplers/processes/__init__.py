"""How noise comes in, and what networks predict of it: needs no model and no sampler.

scalars.py      times and schedule values: numbers, or arrays with one for each sample
sde.py          the `SDE` interface; Gaussian processes, and what follows from alpha and sigma
schedules.py    the processes of the field, each its pair (alpha, sigma)
table.py        a DDPM table as one of them
coordinates.py  the same process scaled and timed otherwise: `View`
predictions.py  what networks predict, and how one type is turned into another
reversal.py     processes whose time runs from noise to data
check.py        whether a process of one's own is what it says
forms.py        schedules answer in the form that they are asked in
own_grid.py     the grid that a model's makers sample on, as a process carries it
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
