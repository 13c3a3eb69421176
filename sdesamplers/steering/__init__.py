"""Steering: particles that are reweighted and resampled on their way, towards samples of a tilted distribution.

resampling.py  multinomial, stratified, systematic and residual resampling
weights.py     potentials, weights, effective sample size, the normalising constant, ancestry
rewards.py     a reward function, checked
twist.py       proposals that follow the gradient of the reward
run.py         the loop over the evaluations
result.py      the result
calls.py       `steer`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..public import lazily

if TYPE_CHECKING:
    from .calls import steer
    from .result import Steered

__all__ = ["Steered", "steer"]
__getattr__ = lazily(__name__, {"Steered": "result", "steer": "calls"})
