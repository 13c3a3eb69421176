"""What a sampler is given: the points of its grid, the model's predictions there, and noise.

points.py      a time of a process, with all that a sampler is told of it
span.py        what a grid is laid out over
grid.py        from steps and a spacing, or times of one's own, to the points of a path
noise.py       noise as a function of (seed, sample): independent draws, Brownian motion
prediction.py  a network's answer at a point, as x0, noise, v, score or flow
path.py        the points, the noise and the record of a run
pairs.py       the second state of samplers that walk two
"""

from .path import Ledger, Path
from .points import Leap, Point, TimePoint

__all__ = ["Leap", "Ledger", "Path", "Point", "TimePoint"]
