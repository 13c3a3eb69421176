"""How a table is computed and chosen: three sets of starts, the teacher there, the fixed settings, and the facts."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import NonFiniteError, UsageError
from ..models.base import Model
from ..models.conditions import is_structure, join_conditions, map_tensors, take_rows
from ..models.guidance import Guided, effective_scale
from ..path.path import Path
from ..sampling.arguments import make_recipe
from ..sampling.request import Request
from ..sampling.table import SolverTable, signature
from .field import Distance, Field, Teacher, root_mean_square
from .gradient import refine, slope_of_loss
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
BASES = ("ab", "unipc", "dpmpp-2m")
GRIDS = 3
"""Number of the best fixed settings whose grids the search starts from."""
FINALISTS = 3
"""Number of fixed settings that are compared with the tuned tables on the choosing starts."""
CHECKED = 16
"""Number of starts on which the teacher's own error is measured."""
LONGEST_TEXT = 200
"""Characters of a condition in the facts of a table."""
TUNED_FINALISTS = 6
"""Number of the search's last improvements that are compared there."""
Advance = Callable[[str], None]
"""Called with a text after each trial."""


@dataclass
class Tuner:
    """The starts of a call of `tune`, the teacher's states there, and the fixed settings; computed when needed."""

    model: Model
    starts: int
    seed: int
    condition: Any
    guidance_scale: float
    batch_size: int | None
    teacher: str
    teacher_nfe: int
    distance: Distance = root_mean_square
    _sets: dict[int, tuple[Field, Teacher]] = field(default_factory=dict)
    _teacher_error: dict[str, float | None] | None = None

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
            "guidance_scale": effective_scale(model, self.guidance_scale),
            **self.condition_facts(),
            "probe": self.probe,
            "teacher": {"sampler": self.teacher, "nfe": self.teacher_nfe},
            **self.other_facts(),
        }

    @functools.cached_property
    def probe(self) -> list[float | None]:
        """Mean squares of the velocities of four starts at three angles, and their mean products with the starts.

        They tell apart what names and signatures do not: processes, prediction types, guidance formulas, functions.
        """
        few = self.field(FIT, min(self.starts, 4))
        found = [few(few.start, few.angle * share) for share in (0.9, 0.6, 0.2)]
        others = few.start.double().flatten(1).roll(1, 0)  # a direction that no velocity has by itself
        sizes = [(own * each).mean(1) for own in (v.double().flatten(1) for v in found) for each in (own, others)]
        return [digits(float(size)) for row in sizes for size in row]

    def condition_facts(self) -> dict[str, Any]:
        """The condition as text, shortened, and a checksum of the tensors that it becomes."""
        if self.condition is None:
            return {"condition": None}
        text, total = " ".join(str(self.condition).split()), hashlib.sha256()
        map_tensors(self.spread(self.starts), lambda leaf: total.update(bytes_of(leaf)))
        return {"condition": text[:LONGEST_TEXT], "condition_sha256": total.hexdigest()}

    def other_facts(self) -> dict[str, Any]:
        """What is recorded if it differs from the defaults: the distance and a guidance interval."""
        facts: dict[str, Any] = {}
        if self.distance is not root_mean_square:
            facts["distance"] = getattr(self.distance, "__qualname__", type(self.distance).__qualname__)
        if isinstance(self.model, Guided) and self.model.interval is not None:
            facts["guidance_interval"] = [*map(str, self.model.interval)]  # JSON has no infinity
        return facts

    def on(self, first: int) -> tuple[Field, Teacher]:
        """A set of starts and the teacher's states there."""
        if first not in self._sets:
            made = self.field(first, self.starts)
            request = Request(self.teacher, nfe=self.teacher_nfe)
            self._sets[first] = made, Teacher.of(made, request, self.distance, whole=first == FIT)
        return self._sets[first]

    def field(self, first: int, count: int) -> Field:
        """The model on a set of starts with their conditions."""
        indices = range(first, first + count)
        return Field(self.model, indices, self.seed, self.spread(count), self.guidance_scale, self.batch_size)

    def spread(self, count: int) -> Any:
        """The conditions of the first `count` starts of a set, as the model takes them."""
        condition, model = self.condition, self.model
        if not isinstance(condition, list | tuple) or is_structure(condition):
            return take_rows(model.condition_for(condition, self.starts), slice(0, count))
        if not condition:
            raise UsageError("condition must not be an empty list: the starts take its entries in turn")
        turns = [condition[i % len(condition)] for i in range(count)]
        if any(isinstance(entry, Tensor | np.ndarray | dict | tuple) for entry in condition):
            return join_conditions(*(model.condition_for(entry, 1) for entry in turns))
        return model.condition_for(turns, count)

    def teacher_error(self) -> dict[str, float | None]:
        """Errors of the teacher on the first starts for the report, against twice as many evaluations."""
        if self._teacher_error is None:
            few = self.field(REPORT, min(self.starts, CHECKED))
            ends = few.run(Request(self.teacher, nfe=2 * self.teacher_nfe))[0]
            own = self.on(REPORT)[1].end[: len(ends)]
            self._teacher_error = summary(root_mean_square(ends, own).cpu().numpy())
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
                result = score(teacher.distances(made.run(Request(table))[0]))
            except (UsageError, NonFiniteError):  # a grid that this process does not have, or a run that diverges
                continue
            found.append((result, " ".join([name, *(f"{k}={v}" for k, v in arguments.items())]), table))
        return sorted(found, key=lambda each: each[0])

    def tuned(self, asked: dict[str, Any], until: float, advance: Advance | None) -> tuple[SolverTable, bool]:
        """The table for a number of evaluations, and whether the search was completed."""
        made, _ = self.on(FIT)
        nfe, trials, iterations = asked["nfe"], asked["trials"], asked.get("iterations", 0)
        fixed, whole_search = self.fixed(nfe), True
        bests: list[Judged] = []
        if not fixed:
            raise UsageError(f"no fixed sampler runs on this model with {nfe} evaluations")
        firsts = first_candidates([table for _, _, table in fixed], made.angle)
        try:
            for count, best in enumerate(self.candidates(firsts, asked), 1):
                if not bests or best is not bests[-1]:
                    bests = [*bests[1 - TUNED_FINALISTS :], best]
                if advance is not None:
                    rms, median = map(in_digits, summary(best.errors).values())
                    stage = f"trial {count} of {trials}"
                    if count > trials:
                        stage = f"iteration {count - trials} of {iterations}"
                    advance(f"{nfe} evaluations, {stage}: RMS error {rms}, median {median}")
                if time.monotonic() > until and count < trials + iterations:
                    whole_search = False
                    break
        except KeyboardInterrupt:
            if not bests:
                raise
            whole_search = False
        return self.chosen(bests, fixed, asked, whole_search), whole_search

    def candidates(self, firsts: list[Candidate], asked: dict[str, Any]) -> Iterator[Judged]:
        """The best so far after each trial, and then after each iteration of the gradient method."""
        made, teacher = self.on(FIT)
        if asked["method"] == "gradient":
            slope_of_loss(made.start, teacher)  # refuses a distance that is not differentiable
        best = None
        for best in search(made, teacher, self.base, firsts, asked["trials"], (self.seed, asked["nfe"])):
            yield best
        if best is not None and asked["method"] == "gradient":
            try:
                yield from refine(made, teacher, self.base, best, asked["iterations"])
            except NonFiniteError:  # an iteration that diverges; the best so far remains
                return

    def chosen(
        self, bests: list[Judged], fixed: list[tuple[float, str, SolverTable]], asked: dict[str, Any], complete: bool
    ) -> SolverTable:
        """The best of the tuned tables and of the fixed settings on the starts for the choice, with its facts."""
        finalists = [(name, table) for _, name, table in fixed[:FINALISTS]]
        scores = {name: self.measured(CHOOSE, table) for name, table in finalists}
        winner = min(scores, key=lambda name: score(scores[name]))
        table, returned, base = dict(finalists)[winner], f"fixed: {winner}", winner
        best = min(bests, key=lambda judged: score(self.measured(CHOOSE, judged.table)))
        if score(self.measured(CHOOSE, best.table)) < score(scores[winner]):
            table, returned, base = best.table, "tuned", best.candidate.base
        facts = {
            **asked,
            "returned": returned,
            "base": base,
            "teacher": {**asked["teacher"], "errors": self.teacher_error()},
            "errors": {
                **self.reported(table),
                "fixed": {**self.reported(dict(finalists)[winner]), "setting": winner},
            },
            "versions": {name: importlib.metadata.version(name) for name in ("sdesamplers", "torch", "diffusers")},
        }
        if not complete:
            facts["interrupted"] = True
        return SolverTable(table.angles, table.weights, table.network_angles, facts)

    def reported(self, table: SolverTable) -> dict[str, float | None]:
        """RMS and median error of a table on the starts for the report, and the mean of another distance."""
        made, teacher = self.on(REPORT)
        try:
            ends = made.run(Request(table))[0]
        except NonFiniteError:
            return {"rms": None, "median": None}
        found = summary(root_mean_square(ends, teacher.end).cpu().numpy())
        if self.distance is not root_mean_square:
            found["distance"] = digits(teacher.distances(ends).mean())
        return found

    def measured(self, first: int, table: SolverTable) -> np.ndarray:
        """The distances of a table's samples on a set of starts; infinite if it diverges."""
        made, teacher = self.on(first)
        try:
            return teacher.distances(made.run(Request(table))[0])
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


def summary(found: np.ndarray) -> dict[str, float | None]:
    """RMS and median of errors, to four digits."""
    rms, median = np.sqrt(np.square(found).mean()), np.median(found)
    return {"rms": digits(rms), "median": digits(median)}


def bytes_of(leaf: Any) -> bytes:
    """The numbers of a tensor or array; nothing of other objects."""
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().double().cpu().numpy() if leaf.is_floating_point() else leaf.cpu().numpy()
    return leaf.tobytes() if isinstance(leaf, np.ndarray) else b""


def digits(value: float) -> float | None:
    """Round to four significant digits; None for a value that is not finite, as files of JSON have no infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def in_digits(value: float | None) -> str:
    """Format an error of a table's facts."""
    return "diverged" if value is None else f"{value:.4g}"
