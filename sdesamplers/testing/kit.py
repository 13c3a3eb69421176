"""All checks of the conformance kit, and `check_sampler`, which runs them on a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import UnknownNameError
from ..registry.names import Preset
from ..registry.options import check_options
from ..registry.plugin import Sampler
from ..registry.registry import default_registry
from . import convergence, densities, invariants, resumption
from .case import Case
from .invariants import Outcome
from .report import Finding, Report

CHECKS: dict[str, Callable[[Case], Outcome]] = {
    "declaration": invariants.declaration,
    "shape and dtype": invariants.shapes_and_dtypes,
    "finite": invariants.finite,
    "reproducible": invariants.reproducible,
    "prediction types": invariants.prediction_types,
    "states left alone": invariants.states_left_alone,
    "batch independence": invariants.batch_independence,
    "free steps": invariants.free_steps,
    "evaluations": invariants.evaluations,
    "options": invariants.options_matter,
    "edits": invariants.edits_count,
    "push = pull": invariants.pushed_is_pulled,
    "resumed": resumption.resumed,
    "point mass": invariants.point_mass,
    "log-probabilities": invariants.log_probabilities,
    "densities": densities.densities,
    "noise": invariants.noise_as_declared,
    "plain SDE": invariants.plain_sde,
    "ODE order": convergence.ode_order,
    "weak order": convergence.weak_order,
    "strong order": convergence.strong_order,
    "distribution": convergence.distribution,
    "float32": convergence.single_precision,
    "tolerance": convergence.tolerance,
}
"""The check functions by name; the docstring of each describes what it checks."""


def check_sampler(
    sampler: str | Sampler,
    *,
    checks: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Test if a sampler fulfils its own declarations and the requirements on every sampler.

    Orders and evaluations per step are declared for the default options, and are not required with other options.
    A sampler that raises in every run fails the first check that runs it, and the remaining checks are not run.

    Args:
        sampler: the name of a registered sampler or recipe, which is checked with its options, or a `Sampler`, as
            returned by `@sampler`.
        checks: names of checks, all of `CHECKS` by default.
        options: options of the sampler, in place of its defaults or the recipe's.
        progress: called with each check's name before it runs.

    Returns:
        The report; `report.require()` raises an error if a check failed.

    Raises:
        UnknownNameError: no such sampler, check or option.
        UsageError: an option of the wrong type.
    """
    preset = default_registry().resolve(sampler) if isinstance(sampler, str) else Preset(sampler)
    spec = preset.sampler
    names = list(CHECKS if checks is None else checks)
    for name in names:
        if name not in CHECKS:
            raise UnknownNameError("check", name, CHECKS, f" (known: {', '.join(CHECKS)})")
    case = Case(spec, {**preset.options, **check_options(options or {}, spec.options, f"sampler {spec.name!r}")})
    findings: list[Finding] = []
    for name in names:
        if progress is not None:
            progress(name)
        findings.append(_find(name, case, reported=any(finding.required == RUNS for finding in findings)))
    return Report(sampler if isinstance(sampler, str) else spec.name, tuple(findings))


ORDERS = ("ODE order", "weak order", "strong order")
"""Checks of values that are declared for the default options only; they do not apply with other options."""

RUNS = "a run that does not raise"
"""The requirement that is reported if a sampler raises in every run."""


def _find(name: str, case: Case, reported: bool) -> Finding:
    """The finding of one check; `reported` is True if a finding already states that the sampler raises in every run."""
    if name != "declaration" and case.failure is not None:
        return Finding(name, "not run", "-", "skip") if reported else Finding(name, case.failure, RUNS, "fail")
    try:
        outcome = CHECKS[name](case) if case.as_declared or name not in ORDERS else None
    except Exception as error:  # any error of a faulty sampler is a finding
        return Finding(name, case.describe(error), "no error", "fail")
    if outcome is None:
        return Finding(name, "-", "does not apply", "skip")
    measured, required, passed = outcome
    return Finding(name, measured, required, "pass" if passed else "fail")
