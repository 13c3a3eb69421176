"""All checks of the conformance kit, and the functions that run them on one item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from ..errors import UnknownNameError, UsageError
from ..models.base import Model
from ..pretrained.loading import as_model
from ..processes.sde import SDE
from ..registry.names import Preset
from ..registry.options import check_options
from ..registry.plugin import NoiseSource, Sampler, Spacing
from ..registry.registry import default_registry
from . import convergence, densities, invariants, resumption
from .case import Case
from .explanations import Kind
from .lookup import Target, find, process_of
from .models import MODEL_CHECKS, ModelCase
from .noises import NOISE_CHECKS, NoiseCase
from .report import NO_ERROR, RUNS, Finding, Outcome, Report
from .sdes import SDE_CHECKS, SdeCase
from .spacings import SPACING_CHECKS, SpacingCase

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
"""The checks of a sampler by name; the docstring of each describes what it checks."""

KITS: Mapping[Kind, Mapping[str, Callable[[Any], Outcome]]] = {
    "sampler": CHECKS,
    "spacing": SPACING_CHECKS,
    "noise source": NOISE_CHECKS,
    "process": SDE_CHECKS,
    "model": MODEL_CHECKS,
}
"""The checks of each kind of item."""

Progress = Callable[[str], None]


class AnyCase(Protocol):
    """An item under test.

    Attributes:
        failure: the error that it raises whatever it is used for; None if at least one use succeeds.
    """

    @property
    def failure(self) -> str | None: ...

    def describe(self, error: Exception) -> str:
        """An error in one line, with the line of the item's file."""
        ...


def check_sampler(
    sampler: str | Sampler,
    *,
    checks: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
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
    names = _chosen("sampler", checks)
    case = Case(spec, {**preset.options, **check_options(options or {}, spec.options, f"sampler {spec.name!r}")})
    return _report("sampler", sampler if isinstance(sampler, str) else spec.name, case, names, progress)


def check_spacing(
    spacing: str | Spacing,
    *,
    checks: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Test if a spacing's grids are valid on one process of every type, and have the ends that it declares.

    Arguments, result and errors as in `check_sampler`; the checks are `KITS["spacing"]`.

        check_spacing("karras", options={"rho": 5.0}).require()
    """
    spec, own = default_registry().grid(spacing) if isinstance(spacing, str) else (spacing, {})
    names = _chosen("spacing", checks)
    case = SpacingCase(spec, {**own, **check_options(options or {}, spec.options, f"spacing {spec.name!r}")})
    return _report("spacing", spacing if isinstance(spacing, str) else spec.name, case, names, progress)


def check_noise_source(
    noise: str | NoiseSource,
    *,
    checks: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Test if the noise of a noise source is keyed by seed and sample, has the right moments, and is as declared.

    Arguments, result and errors as in `check_sampler`; the checks are `KITS["noise source"]`.

        check_noise_source("brownian").require()
    """
    spec, own = default_registry().noise(noise) if isinstance(noise, str) else (noise, {})
    names = _chosen("noise source", checks)
    case = NoiseCase(spec, {**own, **check_options(options or {}, spec.options, f"noise source {spec.name!r}")})
    return _report("noise source", noise if isinstance(noise, str) else spec.name, case, names, progress)


def check_sde(process: str | SDE, *, checks: Iterable[str] | None = None, progress: Progress | None = None) -> Report:
    """Test if the functions of a process agree with each other, with its SDE and with its prior, and if runs succeed.

    `sds.check_process`, which runs by itself at the first use of a process, makes the quick ones of these checks.
    Arguments, result and errors as in `check_sampler`; the checks are `KITS["process"]`.

        check_sde(sds.VP()).require()
    """
    made = process_of(process) if isinstance(process, str) else process
    name = process if isinstance(process, str) else type(process).__name__
    return _report("process", name, SdeCase(made), _chosen("process", checks), progress)


def check_model(
    model: str | Model,
    *,
    condition: Any = None,
    checks: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Test a model's predictions: shapes, batches, times, conditions, and its prediction type at both ends of time.

    Arguments, result and errors as in `check_sampler`; the checks are `KITS["model"]`.

        check_model("fashion-mnist").require()

    Args:
        model: a `Model`, or the name of one, as in `sds.load`.
        condition: the condition with which it is evaluated, one for all samples, as in `sds.sample`.
    """
    made = as_model(model)
    name = model if isinstance(model, str) else made.name
    return _report("model", name, ModelCase(made, condition), _chosen("model", checks), progress)


def check(
    name: str,
    kind: Kind | None = None,
    *,
    checks: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    condition: Any = None,
    progress: Progress | None = None,
) -> Report:
    """Test the item that a name refers to, of whatever kind it is; arguments and errors as of the functions above.

        check("karras").require()

    Args:
        name: the name of a registered sampler, spacing, noise source, process or model, or FILE.py:NAME.
        kind: its kind, for a name that items of several kinds have; by default in this order.

    Raises:
        UnknownNameError: no such item.
        UsageError: options or a condition for an item that takes none.
    """
    return check_target(find(name, kind), name, checks=checks, options=options, condition=condition, progress=progress)


def check_target(
    target: Target,
    name: str,
    *,
    checks: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    condition: Any = None,
    progress: Progress | None = None,
) -> Report:
    """Test an item that has been found; `name` is how the report names it."""
    kind, item = target
    if options and kind in ("process", "model"):
        raise UsageError(f"options are those of samplers, spacings and noise sources, and {name!r} is a {kind}")
    if condition is not None and kind != "model":
        raise UsageError(f"a condition is for models, and {name!r} is a {kind}")
    given: dict[str, Any] = {"checks": checks, "progress": progress}
    if kind == "model":
        given["condition"] = condition
    elif kind != "process":
        given["options"] = options
    functions: dict[Kind, Callable[..., Report]] = {
        "sampler": check_sampler,
        "spacing": check_spacing,
        "noise source": check_noise_source,
        "process": check_sde,
        "model": check_model,
    }
    return replace(functions[kind](item, **given), name=name)


def _chosen(kind: Kind, checks: Iterable[str] | None) -> list[str]:
    """The names of the checks to run, which all exist."""
    known = KITS[kind]
    names = list(known if checks is None else checks)
    for name in names:
        if name not in known:
            what = "check" if kind == "sampler" else f"check of a {kind}"
            raise UnknownNameError(what, name, known, f" (known: {', '.join(known)})")
    return names


def _report(kind: Kind, name: str, case: AnyCase, checks: list[str], progress: Progress | None) -> Report:
    """Run checks on one item."""
    findings: list[Finding] = []
    for check in checks:
        if progress is not None:
            progress(check)
        reported = any(finding.required == RUNS for finding in findings)
        findings.append(_find(KITS[kind][check], check, case, reported))
    return Report(name, tuple(findings), kind)


def _find(function: Callable[[Any], Outcome], name: str, case: AnyCase, reported: bool) -> Finding:
    """The finding of one check; `reported` is True if a finding already states that the item always raises."""
    if name != "declaration" and case.failure is not None:
        return Finding(name, "not run", "-", "skip") if reported else Finding(name, case.failure, RUNS, "fail")
    try:
        outcome = function(case)
    except Exception as error:  # any error of a faulty item is a finding
        return Finding(name, case.describe(error), NO_ERROR, "fail")
    if outcome is None:
        return Finding(name, "-", "does not apply", "skip")
    measured, required, passed = outcome
    return Finding(name, measured, required, "pass" if passed else "fail")
