"""The conformance kit: tests of a sampler's declarations and of the requirements on every sampler.

    from sdesamplers.testing import check_sampler
    check_sampler("my-sampler").require()

The same checks run with `sdesamplers check my-sampler`, and in pytest with `pytest --sdesamplers my-sampler`.
"""

from .kit import CHECKS, check_sampler
from .problems import gaussian_moments, measure_order, measure_weak_order
from .report import ConformanceError, Finding, Report

__all__ = [
    "CHECKS",
    "ConformanceError",
    "Finding",
    "Report",
    "check_sampler",
    "gaussian_moments",
    "measure_order",
    "measure_weak_order",
]
