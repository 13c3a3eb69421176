"""The conformance kit: what a sampler declares and what every sampler promises, measured.

    from sdesamplers.testing import check_sampler
    check_sampler("my-sampler").require()

On the command line it is `sdesamplers check my-sampler`, in pytest `pytest --sdesamplers my-sampler`.
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
