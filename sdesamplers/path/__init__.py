"""What a sampler receives: the points of its grid, the model's predictions, and noise.

points.py      a time of a process, with everything that a sampler needs to know about it
span.py        the range of times that a spacing divides into steps
grid.py        the points of a path, from steps and a spacing or from times that the user gives
noise.py       noise as a function of (seed, sample): independent draws, Brownian motion
prediction.py  a network's output at a point, converted to x0, noise, score or velocity
transition.py  a step of a sampler as a Gaussian, with its outcome and density
path.py        the points, the noise and the ledger of a run
pairs.py       the second state of samplers that advance a pair of states
"""

from .path import Ledger, Path
from .points import Leap, Point, TimePoint

__all__ = ["Leap", "Ledger", "Path", "Point", "TimePoint"]
