"""`tune`: compute solver tables for a model."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np

from ..checks import number, whole
from ..errors import NonFiniteError, UsageError
from ..io.files import make_folder
from ..models.base import Model
from ..path.path import Path
from ..pretrained.loading import as_model
from ..public import public
from ..sampling.arguments import make_recipe, one_of
from ..sampling.request import Request
from ..sampling.table import SolverTable, read_table, signature
from .field import Field, Teacher, errors
from .gradient import refine
from .result import Tuning
from .search import Candidate, Judged, score, search
from .trace import table_of, traced

FIT, CHOOSE, REPORT = 2**40, 2**41, 2**42
"""First indices of the starts for the fit, for the choice and for the report: disjoint, and beyond those of any run."""
FIXED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("quality", {}),
    ("fast", {}),
    ("unipc", {"spacing": "power"}),
    ("unipc", {"spacing": "logsnr"}),
    ("dpmpp-2m", {"spacing": "power"}),
    ("dpmpp-2m", {"spacing": "karras"}),
    ("dpmpp-2m", {"spacing": "logsnr"}),
    ("deis", {"spacing": "power"}),
    ("ipndm", {"spacing": "logsnr"}),
    ("ipndm", {"spacing": "karras"}),
    ("ab", {"spacing": "angle"}),
    ("exp-ab", {"spacing": "logsnr"}),
)
"""Samplers and grids among which the best fixed setting is looked for; those that a process excludes are left out."""
METHODS = ("least-squares", "gradient")
BASES = ("ab", "unipc", "dpmpp-2m")
GRIDS = 3
"""Number of the best fixed settings whose grids the search starts from."""
FINALISTS = 3
"""Number of fixed settings that are compared with the tuned table on the choosing starts."""


Advance = Callable[[str], None]


@public
def tune(
    model: Model | str,
    nfe: int | Sequence[int] = 8,
    *,
    starts: int = 64,
    trials: int = 60,
    method: Literal["least-squares", "gradient"] = "least-squares",
    iterations: int = 60,
    seed: int = 0,
    condition: Any = None,
    guidance_scale: float = 1.0,
    teacher: str = "quality",
    teacher_nfe: int = 64,
    batch_size: int | None = None,
    minutes: float | None = None,
    out: str | FilePath | None = None,
    advance: Advance | None = None,
) -> Tuning:
    """Compute a solver table for a model: the grid, the weights and the network's times for a number of evaluations.

    For each trial grid the weights are fitted step by step by least squares to a teacher's states, on the solver's own
    states (Duan et al. 2023); a random search changes the grid and the times that the network receives. The best table
    is compared with the best of 12 fixed settings on other starts. If a fixed setting is better there, its table is
    returned, and `facts["returned"]` says so. See docs/tuning.md.

    Args:
        model: a `Model`, or any argument of `load`.
        nfe: evaluations per sample, 2 or more; a list computes one table for each.
        starts: number of initial states for the fit, and as many each for the choice and for the report.
        trials: number of grids that are tried for each table. A trial takes starts * nfe evaluations of the network.
        method: "least-squares", or "gradient", which then improves weights, grid and times together by `iterations`
            steps of Adam. The network must be differentiable, and an iteration takes about 6 times a trial; one
            evaluation is kept in memory at a time.
        iterations: see `method`.
        seed: of the starts and of the search. The same seed gives the same table on the same machine.
        condition: one condition for all starts, or a list, from which each start takes one in turn.
        guidance_scale: the guidance that the table is for.
        teacher, teacher_nfe: the sampler whose samples are approximated, and its evaluations. Its own error, against
            twice as many evaluations, is in `facts["teacher"]`.
        batch_size: starts that the network evaluates at once; all by default.
        minutes: stop the search after this time, with the best so far.
        out: a folder to write each table to as soon as it is done. Tables for the same model and arguments that are
            there already are kept and not computed again.
        advance: called with a text after each trial.

    Raises:
        UsageError: an invalid argument, or a process without alpha and sigma.
        NonFiniteError: the teacher's samples are not finite.

    Example:
        >>> tuning = sds.tune("fashion-mnist", nfe=[5, 8], out="tables")
        >>> sds.sample("fashion-mnist", "./tables", nfe=8, num_samples=16)
    """
    model = as_model(model)
    model.gaussian  # noqa: B018 - refuses a process without alpha and sigma
    budgets = budgets_of(nfe)
    counts = {"starts": starts, "trials": trials, "iterations": iterations, "teacher_nfe": teacher_nfe}
    one_of("method", method, METHODS)
    for name, value in counts.items():
        whole(name, value, 4 if name == "starts" else 1)
    if minutes is not None:
        number("minutes", minutes)
    work = Work(
        model, starts, seed, condition, number("guidance_scale", guidance_scale), batch_size, teacher, teacher_nfe
    )
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    tuning, folder = Tuning(), None if out is None else make_folder(FilePath(out))
    for budget in budgets:
        asked = {**work.asked(budget, trials), "method": method}
        if method == "gradient":
            asked["iterations"] = iterations
        kept = None if folder is None else finished(folder, asked)
        if kept is None:
            table, whole_search = work.tuned(asked, until, advance)
            tuning.interrupted |= not whole_search
            if folder is not None:
                table.save(folder)
        else:
            table = kept
        tuning.tables[budget] = table
        if tuning.interrupted:
            break
    return tuning


def budgets_of(nfe: Any) -> list[int]:
    """Numbers of evaluations as a list.

    Raises:
        UsageError: not whole numbers of 2 or more, or the same one twice.
    """
    budgets = [nfe] if isinstance(nfe, int | np.integer) or not isinstance(nfe, Iterable) else list(nfe)
    if not budgets:
        raise UsageError("nfe must name a number of evaluations, or several")
    found = [whole("nfe", budget, 2) for budget in budgets]
    if len(set(found)) < len(found):
        raise UsageError(f"nfe names a number of evaluations twice: {budgets}")
    return found


def finished(folder: FilePath, asked: dict[str, Any]) -> SolverTable | None:
    """The table in a folder that was computed for these arguments, if any."""
    for file in sorted(folder.glob("nfe-*.json")):
        table = read_table(file)
        if {key: _asked(table.facts, key) for key in asked} == asked and not table.facts.get("interrupted"):
            return table
    return None


def _asked(facts: Mapping[str, Any], key: str) -> Any:
    """A fact as it was asked for, without what was measured."""
    value = facts.get(key)
    return {name: entry for name, entry in value.items() if name != "errors"} if key == "teacher" and value else value


@dataclass
class Work:
    """The starts of a call of `tune`, the teacher's states there, and the fixed settings; computed when needed."""

    model: Model
    starts: int
    seed: int
    condition: Any
    guidance_scale: float
    batch_size: int | None
    teacher: str
    teacher_nfe: int
    _sets: dict[int, tuple[Field, Teacher]] = field(default_factory=dict)
    _teacher_error: dict[str, float] | None = None

    def asked(self, nfe: int, trials: int) -> dict[str, Any]:
        """What determines a table, as its facts record it."""
        model = self.model
        return {
            "model": model.name,
            "revision": model.revision,
            "signature": signature(model),
            "nfe": nfe,
            "seed": self.seed,
            "starts": self.starts,
            "trials": trials,
            "guidance_scale": self.guidance_scale,
            "condition": None if self.condition is None else str(self.condition),
            "teacher": {"sampler": self.teacher, "nfe": self.teacher_nfe},
        }

    def on(self, first: int) -> tuple[Field, Teacher]:
        """A set of starts and the teacher's states there."""
        if first not in self._sets:
            made = self.field(first)
            self._sets[first] = made, Teacher.of(made, Request(self.teacher, nfe=self.teacher_nfe))
        return self._sets[first]

    def field(self, first: int) -> Field:
        """The model on a set of starts with their conditions."""
        indices = range(first, first + self.starts)
        condition = self.condition
        if isinstance(condition, list | tuple):
            condition = [condition[i % len(condition)] for i in range(self.starts)]
        spread = self.model.condition_for(condition, self.starts)
        return Field(self.model, indices, self.seed, spread, self.guidance_scale, self.batch_size)

    def teacher_error(self) -> dict[str, float]:
        """Errors of the teacher on the starts for the report, against twice as many evaluations."""
        if self._teacher_error is None:
            made, teacher = self.on(REPORT)
            ends = made.run(Request(self.teacher, nfe=2 * self.teacher_nfe))[0]
            self._teacher_error = summary(errors(ends, teacher))
        return self._teacher_error

    def base(self, name: str, angles: list[float]) -> list[list[float]]:
        """The weights of a base method on a grid."""
        made = self.on(FIT)[0]
        recipe, spec = make_recipe(Request(name, steps=len(angles) - 1), process=self.model.process)
        path = Path(made.path.process, [made.point(phi) for phi in angles])
        return [list(row) for row in traced(path, recipe, spec).weights]

    def fixed(self, nfe: int) -> list[tuple[float, str, SolverTable]]:
        """(score on the fitting starts, name, table) of the fixed settings, best first."""
        made, teacher = self.on(FIT)
        found = []
        for name, arguments in FIXED:
            try:
                table = table_of(self.model.gaussian, name, nfe=nfe, **arguments)
                result = score(errors(made.run(Request(table))[0], teacher))
            except (UsageError, NonFiniteError):  # a grid that this process does not have, or a run that diverges
                continue
            found.append((result, " ".join([name, *(f"{k}={v}" for k, v in arguments.items())]), table))
        return sorted(found, key=lambda each: each[0])

    def tuned(self, asked: dict[str, Any], until: float, advance: Advance | None) -> tuple[SolverTable, bool]:
        """The table for a number of evaluations, and whether the search was completed."""
        made, _ = self.on(FIT)
        nfe, trials, iterations = asked["nfe"], asked["trials"], asked.get("iterations", 0)
        fixed, whole_search = self.fixed(nfe), True
        best: Judged | None = None
        if not fixed:
            raise UsageError(f"no fixed sampler runs on this model with {nfe} evaluations")
        firsts = first_candidates([table for _, _, table in fixed], made.angle)
        try:
            for count, best in enumerate(self.candidates(firsts, asked), 1):
                if advance is not None:
                    rms, median = summary(best.errors).values()
                    stage = f"trial {count} of {trials}"
                    if count > trials:
                        stage = f"iteration {count - trials} of {iterations}"
                    advance(f"{nfe} evaluations, {stage}: RMS error {rms:.4g}, median {median:.4g}")
                if time.monotonic() > until and count < trials + iterations:
                    whole_search = False
                    break
        except KeyboardInterrupt:
            if best is None:
                raise
            whole_search = False
        return self.chosen(best, fixed, asked, whole_search), whole_search

    def candidates(self, firsts: list[Candidate], asked: dict[str, Any]) -> Iterator[Judged]:
        """The best so far after each trial, and then after each iteration of the gradient method."""
        made, teacher = self.on(FIT)
        best = None
        for best in search(made, teacher, self.base, firsts, asked["trials"], (self.seed, asked["nfe"])):
            yield best
        if best is not None and asked["method"] == "gradient":
            yield from refine(made, teacher, self.base, best, asked["iterations"])

    def chosen(
        self, best: Judged | None, fixed: list[tuple[float, str, SolverTable]], asked: dict[str, Any], complete: bool
    ) -> SolverTable:
        """The better of the tuned table and the fixed settings on the starts for the choice, with its facts."""
        finalists = [(name, table) for _, name, table in fixed[:FINALISTS]]
        scores = {name: self.measured(CHOOSE, table) for name, table in finalists}
        winner = min(scores, key=lambda name: score(scores[name]))
        table, returned = dict(finalists)[winner], f"fixed: {winner}"
        if best is not None and score(self.measured(CHOOSE, best.table)) < score(scores[winner]):
            table, returned = best.table, "tuned"
        facts = {
            **asked,
            "returned": returned,
            "base": best.candidate.base if best is not None and returned == "tuned" else winner,
            "teacher": {**asked["teacher"], "errors": self.teacher_error()},
            "errors": {
                **summary(self.measured(REPORT, table)),
                "fixed": {**summary(self.measured(REPORT, dict(finalists)[winner])), "setting": winner},
            },
            "versions": {name: importlib.metadata.version(name) for name in ("sdesamplers", "torch", "diffusers")},
        }
        if not complete:
            facts["interrupted"] = True
        return SolverTable(table.angles, table.weights, table.network_angles, facts)

    def measured(self, first: int, table: SolverTable) -> np.ndarray:
        """The errors of a table on a set of starts; infinite if it diverges."""
        made, teacher = self.on(first)
        try:
            return errors(made.run(Request(table))[0], teacher)
        except NonFiniteError:
            return np.full(self.starts, np.inf)


def first_candidates(tables: Sequence[SolverTable], start: float) -> list[Candidate]:
    """The grids of the best fixed settings from the start of the process to sigma = 0, with each base method."""
    grids: list[tuple[float, ...]] = []
    for table in tables:
        if table.angles[-1] == 0 and abs(table.angles[0] - start) < 1e-6 and table.angles not in grids:
            grids.append(table.angles)
    if not grids:
        count = tables[0].nfe + 1
        grids = [tuple(np.linspace(start, 0, count).tolist())]
    return [Candidate.of(np.array(grid), base) for grid in grids[:GRIDS] for base in BASES]


def summary(found: np.ndarray) -> dict[str, float]:
    """RMS and median of errors, to four digits."""
    rms, median = np.sqrt(np.square(found).mean()), np.median(found)
    return {"rms": float(f"{rms:.4g}"), "median": float(f"{median:.4g}")}
