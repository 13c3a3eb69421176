"""How a table is computed and chosen: three sets of starts, the teacher there, the fixed settings, and the facts."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..categories import AccuracyWarning
from ..checks import warn
from ..errors import NonFiniteError, UsageError
from ..generation.identity import fingerprint, plain
from ..models.base import Model
from ..models.conditions import is_structure, join_conditions, take_rows
from ..models.guidance import effective_scale, interval_of
from ..path.path import Path
from ..sampling.arguments import make_recipe
from ..sampling.request import Request, split_arguments
from ..sampling.setting import parse_setting
from ..sampling.table import SolverTable
from ..sampling.table_facts import clock, convention_of, conversions, signature
from .field import Distance, Field, Measured, Teacher, root_mean_square
from .functions import function_facts
from .gradient import refine, slope_of_loss
from .joint import adjust, steps_from
from .moments import Features
from .search import BASES, Candidate, Judged, Search, State
from .stopping import Beginning, Start, hurry, progress, state_in, stopped_facts
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
GRIDS = 3
"""Number of the best fixed settings whose grids the search starts from."""
FINALISTS = 3
"""Number of fixed settings that are compared with the tuned tables on the choosing starts."""
CHECKED = 16
"""Number of starts on which the teacher's own error is measured."""
NEGLIGIBLE = 1e-6
"""Of the teacher's median error, in units of the data."""
LONGEST_TEXT = 200
"""Characters of a condition in the facts of a table."""
TUNED_FINALISTS = 6
"""Number of the last improvements that are compared there, beside the first table and the search's last."""
Advance = Callable[[str], None]
"""Called with a text after each trial."""


@dataclass
class Tuner:
    """The starts of a call of `tune`, the teacher's states there, and the fixed settings; computed when needed.

    Attributes:
        notes: warnings about the accuracy of the last table, given when it is saved.
    """

    model: Model
    starts: int
    seed: int
    condition: Any
    guidance_scale: float
    batch_size: int | None
    teacher: str
    teacher_nfe: int
    distance: Distance = root_mean_square
    features: Features | None = None
    notes: list[str] = field(default_factory=list)
    _sets: dict[int, tuple[Field, Teacher]] = field(default_factory=dict)
    _teacher_error: dict[str, float | None] | None = None

    def asked(self, nfe: int, trials: int) -> dict[str, Any]:
        """What determines a table, as its facts record it."""
        return {**self.common_facts, "nfe": nfe, "trials": trials}

    @functools.cached_property
    def common_facts(self) -> dict[str, Any]:
        """What determines the tables of all numbers of evaluations."""
        model, distance = self.model, self.distance
        facts: dict[str, Any] = {
            "model": model.name,
            "revision": model.revision,
            "signature": signature(model),
            "process": clock(model.process),
            "prediction": model.prediction,
            "seed": self.seed,
            "starts": self.starts,
            "guidance_scale": effective_scale(model, self.guidance_scale),
            "condition": None,
            "probe": self.probe,
            "teacher": {"sampler": self.teacher, "nfe": self.teacher_nfe},
        }
        if self.condition is not None:
            facts["condition"] = " ".join(str(self.condition).split())[:LONGEST_TEXT]
            facts["condition_fingerprint"] = fingerprint(json.dumps(plain(self.condition)).encode())
        facts |= function_facts(
            {"distance": None if distance is root_mean_square else distance, "features": self.features}
        )
        if (converted := conversions(convention_of(model))) is not None:
            facts["convention"] = converted
        if (interval := interval_of(model)) is not None:
            facts["guidance_interval"] = interval
        return facts

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

    def on(self, first: int) -> tuple[Field, Teacher]:
        """A set of starts and the teacher's states there."""
        if first not in self._sets:
            made = self.field(first, self.starts)
            request = self.teaching(self.teacher_nfe)
            self._sets[first] = made, Teacher.of(made, request, self.distance, self.features, whole=first == FIT)
        return self._sets[first]

    def teaching(self, nfe: int) -> Request:
        """The teacher with a number of evaluations."""
        sampler, arguments = parse_setting(self.teacher)
        return split_arguments(sampler, {**arguments, "nfe": nfe})[0]

    def field(self, first: int, count: int) -> Field:
        """The model on a set of starts with their conditions."""
        indices, conditions = range(first, first + count), take_rows(self.conditions, slice(0, count))
        return Field(self.model, indices, self.seed, conditions, self.guidance_scale, self.batch_size)

    @functools.cached_property
    def conditions(self) -> Any:
        """The conditions of the starts of a set, as the model takes them; the same for each set."""
        condition, model = self.condition, self.model
        if not isinstance(condition, list | tuple) or is_structure(condition):
            return model.condition_for(condition, self.starts)
        if not condition:
            raise UsageError("condition must not be an empty list: the starts take its entries in turn")
        if len(condition) > self.starts:
            warn(
                f"condition has {len(condition)} entries, and the {self.starts} starts take the first {self.starts} of "
                f"them; pass starts={len(condition)} for all",
                AccuracyWarning,
            )
        turns = [i % len(condition) for i in range(self.starts)]
        if any(isinstance(entry, Tensor | np.ndarray | dict | tuple) for entry in condition):
            entries = [model.condition_for(entry, 1) for entry in condition]
            return join_conditions(*(entries[turn] for turn in turns))
        return model.condition_for([condition[turn] for turn in turns], self.starts)

    def teacher_error(self) -> dict[str, float | None]:
        """Errors of the teacher on the first starts for the report, against twice as many evaluations."""
        if self._teacher_error is None:
            few = self.field(REPORT, min(self.starts, CHECKED))
            ends = few.run(self.teaching(2 * self.teacher_nfe))[0]
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
        """(score on the fitting starts, name, table) of the fixed settings, best first.

        Raises:
            UsageError: none of them runs.
        """
        found, reason = [], "their samples are not finite"
        for name, arguments in FIXED:
            try:
                table = table_of(self.model.gaussian, name, nfe=nfe, **arguments)
                result = self.score_on(FIT, table)
            except UsageError as error:  # a grid that this process does not have
                reason = str(error)
                continue
            if math.isfinite(result):
                found.append((result, " ".join([name, *(f"{k}={v}" for k, v in arguments.items())]), table))
        if not found:
            raise UsageError(f"no fixed sampler runs on this model with {nfe} evaluations: {reason}")
        return sorted(found, key=lambda each: each[0])

    def can_begin(self, table: SolverTable) -> bool:
        """True if a table has the same start and end as the search's tables."""
        return table.angles[-1] == 0 and abs(table.angles[0] - self.on(FIT)[0].angle) <= 1e-6

    def warm(self, table: SolverTable) -> Judged:
        """A table from which the search begins, with its errors on the fitting starts.

        Raises:
            UsageError: it has not the same start and end as the search's tables.
        """
        if not self.can_begin(table):
            raise UsageError(
                f"warm_start: the table for {table.nfe} evaluations leads from phi = {table.angles[0]:.6g} to "
                f"{table.angles[-1]:.6g}, and tables for this model from {self.on(FIT)[0].angle:.6g} to 0"
            )
        base = str(table.facts.get("base")).split(" ")[0]  # of a fixed setting, its name comes first
        candidate = Candidate.of(table.angles, base if base in BASES else BASES[0], table.evaluated_angles)
        return self.measured(table, candidate)

    def measured(self, table: SolverTable, candidate: Candidate) -> Judged:
        """A table that was found with a candidate, with its errors on the fitting starts."""
        table = replace(table, facts={})  # for any model and guidance
        ends = self.ends(FIT, table)
        missed = Measured(np.full(self.starts, np.inf))
        return Judged(candidate, table, missed if ends is None else self.on(FIT)[1].measured(ends))

    def tuned(
        self, asked: dict[str, Any], until: float, advance: Advance | None, begun: Beginning
    ) -> tuple[SolverTable, bool]:
        """The table for a number of evaluations, and False if the call was stopped.

        Args:
            asked: what determines the table, as in its facts.
            until: when the search ends, on the clock of `time.monotonic`.
            advance: called with a text after each trial.
            begun: what the search begins from.
        """
        show = advance or (lambda text: None)
        nfe, end = asked["nfe"], asked["trials"] + asked.get("iterations", 0)
        self.on(FIT)
        self.teacher_error()  # refuses a teacher that cannot have twice as many evaluations, before the search
        fixed = self.fixed(nfe)
        start = self.start_of(begun, [table for _, _, table in fixed], asked)
        state, milestones, bests, whole = start.state, list[Judged](), list[Judged](), False

        def chosen() -> SolverTable:
            """A search that is complete in one call depends on its arguments only, not on earlier tables."""
            former = None if whole and not start.state.trials else start.former
            found = (start.state.best, former, *milestones, *bests)
            finalists = {id(each): each for each in found if each is not None}  # each once
            return self.chosen([*finalists.values()], fixed, asked, begun, None if whole else state)

        try:
            for done, best, state in self.candidates(start, asked):
                if not bests or best is not bests[-1]:
                    bests = [*bests[1 - TUNED_FINALISTS :], best]
                if done == asked["trials"] < end:
                    milestones.append(best)
                show(f"{nfe} evaluations, {progress(done, asked)}: {in_words(best.measured)}")
                if done < end and time.monotonic() > until:
                    self.notes += hurry(state, start.state, asked)
                    return chosen(), False
            whole = True
            return chosen(), True
        except KeyboardInterrupt:
            if not bests:
                raise
        try:
            show(f"{nfe} evaluations, stopped: choosing on other starts")
            return chosen(), False
        except KeyboardInterrupt:  # a second time: no time for the choice and the report
            return self.unmeasured([*milestones, *bests], asked, begun, state), False

    def start_of(self, begun: Beginning, fixed: Sequence[SolverTable], asked: dict[str, Any]) -> Start:
        """The candidates and the state from which a search begins; what an earlier call did is left out."""
        made, _ = self.on(FIT)
        warm = None if begun.warm is None else self.warm(begun.warm)
        firsts = [*([] if warm is None else [warm.candidate]), *first_candidates(fixed, made.angle)]
        if begun.former is None:
            return Start(firsts, State(best=warm), None)
        former = self.warm(begun.former) if self.can_begin(begun.former) else None
        state = state_in(begun.former, self.measured) if begun.continues else State()
        if state.best is None:
            return Start(firsts, State(best=warm), former)
        return Start(firsts[int(state.trials) :], state, former)

    def candidates(self, start: Start, asked: dict[str, Any]) -> Iterator[tuple[float, Judged, State]]:
        """The trials and iterations that are done, with those of earlier calls; the best so far; the state."""
        (made, teacher), trials, method = self.on(FIT), asked["trials"], asked["method"]
        state, best = start.state, start.state.best
        if method == "gradient":
            slope_of_loss(made.start, teacher)  # refuses a distance that is not differentiable
        before = int(state.trials)
        if before < trials:
            seed = (self.seed, asked["nfe"], *([before] if before else []))
            search = Search(made, teacher, self.base, seed, state)
            for trial, best in enumerate(search.run(start.firsts, trials), before + 1):
                yield trial, best, replace(search.state, trials=min(search.state.trials, trials))
            state = State(float(trials), best)
        done, end = before - trials if before > trials else 0, asked.get("iterations", 0)
        if best is None or done >= end:
            return
        if method == "gradient":
            for k, improved in enumerate(refine(made, teacher, self.base, best, end), 1):
                yield trials + k, improved, State(float(trials), improved)
        elif method == "joint":
            steps = steps_from(state.damping)
            for share, improved in adjust(made, teacher, best, end - done, steps):
                if share == int(share):
                    state = State(trials + done + share, improved, damping=steps.damping)
                yield trials + done + share, improved, state

    def unmeasured(self, finalists: list[Judged], asked: dict[str, Any], begun: Beginning, state: State) -> SolverTable:
        """The best on the fitting starts, without the choice and the report; an earlier table that has them remains."""
        former = begun.former
        if former is not None and "errors" in former.facts:
            found = {key: former.facts.get(key) for key in ("returned", "base", "errors")}
            return self.finished(former, asked, found, begun, state)
        best = min(finalists, key=lambda judged: judged.score)
        return self.finished(best.table, asked, {"returned": "tuned", "base": best.candidate.base}, begun, state)

    def chosen(
        self,
        bests: list[Judged],
        fixed: list[tuple[float, str, SolverTable]],
        asked: dict[str, Any],
        begun: Beginning,
        stopped: State | None,
    ) -> SolverTable:
        """The best of the tuned tables and of the fixed settings on the starts for the choice, with its facts.

        `stopped` is where the search was stopped; None if it was completed.
        """
        finalists = [(self.score_on(CHOOSE, table), name, table) for _, name, table in fixed[:FINALISTS]]
        lowest, setting, table = min(finalists, key=lambda each: each[0])
        errors = own = self.reported(table)
        returned, base = f"fixed: {setting}", setting
        for judged in bests:
            if (score := self.score_on(CHOOSE, judged.table)) < lowest:
                lowest, table, returned, base = score, judged.table, "tuned", judged.candidate.base
        if returned == "tuned":
            own = self.reported(table)
        self.judge_teacher(own, asked["nfe"])
        found = {"returned": returned, "base": base, "errors": {**own, "fixed": {**errors, "setting": setting}}}
        return self.finished(table, asked, found, begun, stopped)

    def finished(
        self,
        table: SolverTable,
        asked: dict[str, Any],
        found: dict[str, Any],
        begun: Beginning,
        stopped: State | None,
    ) -> SolverTable:
        """A table with its facts."""
        facts = {
            **asked,
            **found,
            "teacher": {**asked["teacher"], "errors": self.teacher_error()},
            "versions": {name: importlib.metadata.version(name) for name in ("sdesamplers", "torch", "diffusers")},
        }
        if stopped is not None:
            facts |= stopped_facts(stopped, begun.former)
        return SolverTable(table.angles, table.weights, table.network_angles, facts)

    def judge_teacher(self, own: dict[str, float | None], nfe: int) -> None:
        """Note if the teacher's own error is not small beside that of a table, which then is not known."""
        error, median = self.teacher_error()["median"], own["median"]
        if error is not None and median is not None and error > max(median / 2, NEGLIGIBLE):
            self.notes.append(
                f"the teacher, {self.teacher} with {self.teacher_nfe} evaluations, has itself a median error of "
                f"{in_digits(error)}, and the table for {nfe} is measured against it ({in_digits(median)}): its error "
                "may be larger; pass a larger teacher_nfe"
            )

    def reported(self, table: SolverTable) -> dict[str, float | None]:
        """RMS and median error of a table on the starts for the report, and by another distance or features."""
        ends, teacher = self.ends(REPORT, table), self.on(REPORT)[1]
        if ends is None:
            return {"rms": None, "median": None}
        found = summary(root_mean_square(ends, teacher.end).cpu().numpy())
        if self.distance is not root_mean_square:
            found["distance"] = digits(teacher.distances(ends).mean())
        if teacher.moments is not None:
            found["frechet"] = digits(teacher.moments.distance(ends))
        return found

    def score_on(self, first: int, table: SolverTable) -> float:
        """The score of a table on a set of starts; infinite if it diverges."""
        ends = self.ends(first, table)
        return math.inf if ends is None else self.on(first)[1].measured(ends).score

    def ends(self, first: int, table: SolverTable) -> Tensor | None:
        """The samples of a table from a set of starts; None if it diverges."""
        try:
            return self.on(first)[0].run(Request(table))[0]
        except NonFiniteError:
            return None


def first_candidates(tables: Sequence[SolverTable], start: float) -> list[Candidate]:
    """The grids of the best fixed settings from the start of the process to sigma = 0, with each base method."""
    grids: list[tuple[float, ...]] = []
    for table in tables:
        if table.angles[-1] == 0 and abs(table.angles[0] - start) < 1e-6 and table.angles not in grids:
            grids.append(table.angles)
    if not grids:
        count = tables[0].nfe + 1
        grids = [tuple(np.linspace(start, 0, count).tolist())]
    return [Candidate.of(grid, base) for grid in grids[:GRIDS] for base in BASES]


def in_words(measured: Measured) -> str:
    """The errors of a table on the fitting starts."""
    found, far = summary(measured.errors), measured.frechet
    words = f"RMS {in_digits(found['rms'])}, median {in_digits(found['median'])}"
    return words if far is None else f"{words}, Fréchet {in_digits(far)}"


def summary(found: np.ndarray) -> dict[str, float | None]:
    """RMS and median of errors, to four digits."""
    rms, median = np.sqrt(np.square(found).mean()), np.median(found)
    return {"rms": digits(rms), "median": digits(median)}


def digits(value: float) -> float | None:
    """Round to four significant digits; None for a value that is not finite, as files of JSON have no infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def in_digits(value: float | None) -> str:
    """Format an error of a table's facts, which is None if samples diverged."""
    return "diverged" if value is None else f"{value:.4g}"
