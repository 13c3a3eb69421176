"""The conformance kit: tests of what an item declares and of the requirements on every item of its kind.

    from sdesamplers.testing import check_sampler
    check_sampler("my-sampler").require()

Items are samplers, spacings, noise sources, processes and models. The same checks run with `sdesamplers check
my-sampler`, and in pytest with `pytest --sdesamplers my-sampler`.

case.py            a sampler under test, and its models
invariants.py      the requirements on every sampler
convergence.py     orders and distributions, against closed forms
densities.py       densities of steps, or none, as declared
problems.py        the problems that have closed forms
resumption.py      copies of runs in progress
spacings.py, noises.py, sdes.py, models.py   the checks of the other kinds
declared.py        references, options, and values to try for them
randomness.py      the global random generators
report.py          findings and reports
kit.py             all checks by kind, and the functions that run them
lookup.py          what a name refers to
explanations.py    what a failure means
records.py         reports as JUnit XML and as badges
pytest_plugin.py   `pytest --sdesamplers NAME`
"""

from .explanations import EXPLANATIONS, Kind, explain
from .kit import CHECKS, KITS, check, check_model, check_noise_source, check_sampler, check_sde, check_spacing
from .lookup import items_of
from .problems import gaussian_moments, measure_order, measure_weak_order
from .report import ConformanceError, Finding, Report

__all__ = [
    "CHECKS",
    "EXPLANATIONS",
    "KITS",
    "ConformanceError",
    "Finding",
    "Kind",
    "Report",
    "check",
    "check_model",
    "check_noise_source",
    "check_sampler",
    "check_sde",
    "check_spacing",
    "explain",
    "gaussian_moments",
    "items_of",
    "measure_order",
    "measure_weak_order",
]
