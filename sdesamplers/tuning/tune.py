"""`tune`: compute solver tables for a model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..categories import AccuracyWarning, OutputWarning
from ..checks import choice, function, number, one_of_types, warn, whole
from ..errors import SdesamplersError, UsageError
from ..io.files import EMPTY
from ..io.paths import expanded
from ..models.base import Model
from ..path.noise import check_seed
from ..pretrained.loading import as_model
from ..public import public
from ..sampling.arguments import own_tables
from ..sampling.table import TUNED, SolverTable, TableSet, choose, tables_at
from .field import Distance, root_mean_square
from .moments import Features
from .result import Tuning
from .stopping import Beginning, trials_done
from .stored import Stored
from .tuner import Advance, Tuner

METHODS = ("least-squares", "joint", "gradient")
ITERATIONS = {"joint": 12, "gradient": 60}
"""The default number of iterations of a method."""
LARGEST_NFE = 500
"""Beyond it a table's file is too large to be read."""


@public
def tune(
    model: Model | str,
    nfe: int | Sequence[int] = 8,
    *,
    starts: int = 64,
    trials: int = 60,
    method: Literal["least-squares", "joint", "gradient"] = "least-squares",
    iterations: int | None = None,
    seed: int = 0,
    condition: Any = None,
    guidance_scale: float = 1.0,
    teacher: str = "quality",
    teacher_nfe: int = 128,
    distance: Distance | None = None,
    features: Features | None = None,
    warm_start: str | FilePath | SolverTable | TableSet | None = None,
    batch_size: int | None = None,
    minutes: float | None = None,
    out: str | FilePath | None = None,
    advance: Advance | None = None,
) -> Tuning:
    """Compute a solver table for a model: the grid, the weights and the network's times for a number of evaluations.

    For each trial grid the weights are fitted step by step by least squares to a teacher's states, on the solver's own
    states (Duan et al. 2023); Gauss-Newton steps and random changes search for the grid and the times that the network
    receives. The best table is compared with the best of 12 fixed settings on other starts. If a fixed setting is
    better there, its table is returned, and `facts["returned"]` says so. See docs/tuning.md.

    Args:
        model: a `Model`, or any argument of `load`.
        nfe: evaluations per sample, 2 or more; a list computes one table for each.
        starts: number of initial states for the fit, and as many each for the choice and for the report.
        trials: evaluations for the search of each table, in units of starts * nfe evaluations of the network, which is
            what one grid takes.
        method: "least-squares"; "joint", which then improves all numbers of a table at once by Gauss-Newton steps until
            one improves nothing; or "gradient", which does so by Adam. A step of "joint" takes 10 trials at 5
            evaluations, 30 at 10 and 95 at 20, or fewer if there are more starts than 2 for each of the table's numbers
            (28, 83 and 268 of them). "gradient" needs a network that torch can differentiate; a step takes about 6
            trials, and one evaluation is kept in memory at a time.
        iterations: the largest number of these steps, by default 12 of "joint" and 60 of "gradient".
        seed: of the starts and of the search. The same seed gives the same table on the same machine.
        condition: one condition for all starts, one for each of `starts` starts, or a list, from which each start takes
            an entry in turn; so does a range, or an array or tensor of labels.
        guidance_scale: the guidance that the table is for. For other settings of guidance, such as an interval, pass a
            `Guided` model.
        teacher, teacher_nfe: the sampler whose samples are approximated, a deterministic one with one evaluation at
            each point of its grid, as a name or with settings ("unipc spacing=logsnr"), and its evaluations. Its own
            error, against twice as many evaluations on up to 16 starts, is in `facts["teacher"]`.
        distance: the distances, a tensor (N,), of samples from the teacher's, both (N, *shape) on the model's device in
            its data space: what the search and the choice minimise. By default the root mean square of the difference;
            another one may compare features. `method="gradient"` needs its derivative.
        features: a function of samples as above that returns features (N, D), such as `scorer.features`: then their
            mean and covariance count too, by the Fréchet distance from those of the teacher's samples. It needs more
            starts, 256 or so, and is best with `method="joint"`.
        warm_start: tables from which the search begins, beside the grids of fixed settings: a table, the result of
            `tune`, a file, folder or address on the Hub, or "tuned" for the model's own. A number of evaluations of
            which it has no table begins without.
        batch_size: starts that the network evaluates at once; all by default.
        minutes: stop the search after this time, with the best so far; a call for the same `out` continues it.
        out: a folder to write each table to as soon as it is done. Tables for the same model and arguments that are
            there already are kept and not computed again. One that was stopped early is computed again, or with
            `minutes` its search is continued, after those of which less is done; it is replaced by a better one, or by
            that of the whole search. A table for other arguments is kept in the folder `former` inside it.
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
    choice("method", method, METHODS)
    iterations = ITERATIONS.get(method, 1) if iterations is None else iterations
    counts = {"starts": starts, "trials": trials, "iterations": iterations, "teacher_nfe": teacher_nfe}
    counts = {name: whole(name, value, 4 if name == "starts" else 1) for name, value in counts.items()}
    if minutes is not None and number("minutes", minutes) < 0:
        raise UsageError(f"minutes must be 0 or more, not {minutes}")
    function("distance", distance, "samples and the teacher's samples")
    function("features", features, "samples")
    function("advance", advance, "a text")
    tuner = Tuner(
        model,
        counts["starts"],
        check_seed(seed),
        as_list(condition),
        number("guidance_scale", guidance_scale),
        batch_size,
        " ".join(one_of_types("teacher", teacher, str, "the name of a sampler").split()),
        counts["teacher_nfe"],
        root_mean_square if distance is None else distance,
        features,
    )
    if counts["teacher_nfe"] <= max(budgets):
        warn(
            f"the teacher has {counts['teacher_nfe']} evaluations, and a table that is measured against it "
            f"{max(budgets)}; pass a larger teacher_nfe",
            AccuracyWarning,
        )
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    stored = Stored(None if out is None else output_path(out))
    if out is not None:
        for name in [name for name, code in tuner.common_facts.get("functions", {}).items() if code is None]:
            warn(
                f"{name} uses an object whose content cannot be determined, so that its tables are computed anew in "
                "every call; pass a function, or give the object's class a __repr__ that says what it computes",
                OutputWarning,
            )
    extra = {"method": method, **({"iterations": counts["iterations"]} if method in ITERATIONS else {})}
    requests = {budget: {**tuner.asked(budget, counts["trials"]), **extra} for budget in budgets}
    guidance = tuner.common_facts["guidance_scale"]
    warm = {} if warm_start is None else warm_tables(warm_start, model, budgets, guidance)
    for budget, first in warm.items():
        requests[budget]["warm_start"] = first.sha256
    tuning = compute(tuner, requests, stored, warm, until, advance)
    tuning.tables = {budget: tuning.tables[budget] for budget in budgets if budget in tuning.tables}
    return tuning


def compute(
    tuner: Tuner,
    requests: dict[int, dict[str, Any]],
    stored: Stored,
    warm: dict[int, SolverTable],
    until: float,
    advance: Advance | None,
) -> Tuning:
    """The tables that are stored and those that are missing, until the time is over."""
    found = {budget: stored.find(asked) for budget, asked in requests.items()}
    known = {budget: table for budget, table in found.items() if table is not None}
    tuning = Tuning({**known})
    # The shortest searches come first, so that calls with `minutes` complete the tables together.
    missing = [budget for budget in requests if budget not in known or trials_done(known[budget]) is not None]
    for budget in sorted(missing, key=lambda each: trials_done(known.get(each)) or 0):
        begun = Beginning(warm.get(budget), known.get(budget), continues=until < math.inf)
        tuner.notes.clear()
        try:
            table, goes_on = tuner.tuned(requests[budget], until, advance, begun)
        except KeyboardInterrupt:
            if not tuning.tables:
                raise
            break
        except SdesamplersError as error:
            if stored.folder is not None or not tuning.tables:  # in a folder the finished ones are kept
                raise
            warn(f"there is no table for {budget} evaluations: {error}", OutputWarning)
            continue
        stored.save(table, requests[budget])
        tuning.tables[budget] = table
        for note in tuner.notes:
            warn(note, AccuracyWarning)
        if not goes_on:
            break
    whole = [table for table in tuning.tables.values() if trials_done(table) is None]
    tuning.interrupted = len(whole) < len(requests)
    return tuning


def as_list(condition: Any) -> Any:
    """A range or a row of whole numbers, such as class labels, as a list; another condition as it is."""
    if isinstance(condition, range):
        return [*condition]
    if not isinstance(condition, Tensor | np.ndarray) or condition.ndim != 1 or len(condition) < 2:
        return condition
    entries = condition.tolist()
    return entries if all(isinstance(entry, int) for entry in entries) else condition


def output_path(out: str | FilePath) -> FilePath:
    """The output folder.

    Raises:
        UsageError: not a path, or an empty one.
    """
    if not str(one_of_types("out", out, (str, FilePath), "a path")):
        raise UsageError(EMPTY, arguments={"out": "out"})
    return expanded(out)


def budgets_of(nfe: Any) -> list[int]:
    """Numbers of evaluations as a list.

    Raises:
        UsageError: not whole numbers of 2 or more, or the same one twice.
    """
    if isinstance(nfe, Tensor | np.ndarray):
        nfe = nfe.tolist()
    budgets = [nfe] if not isinstance(nfe, Iterable) else list(nfe)
    if not budgets:
        raise UsageError("nfe must name a number of evaluations, or several")
    found = [whole("nfe", budget, 2) for budget in budgets]
    if max(found) > LARGEST_NFE:
        raise UsageError(f"nfe must be {LARGEST_NFE} or less, not {max(found)}: a table has nfe^2 / 2 weights")
    if len(set(found)) < len(found):
        raise UsageError(f"nfe names a number of evaluations twice: {budgets}")
    return found


def warm_tables(
    source: str | FilePath | SolverTable | TableSet, model: Model, budgets: Sequence[int], scale: float
) -> dict[int, SolverTable]:
    """The tables from which the searches begin, by number of evaluations.

    Raises:
        ModelError: a Hub repository cannot be read.
        UsageError: not a table or tables, none for one of the numbers, or several for the same number and none of them
            for the guidance scale.
    """
    kinds = (str, FilePath, SolverTable, TableSet)
    source = one_of_types("warm_start", source, kinds, "a solver table, several, or the path of such")
    if isinstance(source, SolverTable):
        tables = [source]
    elif isinstance(source, TableSet):
        tables = [*source.tables.values()]
    else:
        tables = own_tables(model.process) if source == TUNED else tables_at(source)
    if not tables:
        raise UsageError("warm_start has no solver tables")
    known = {table.nfe for table in tables}
    if known.isdisjoint(budgets):
        listed = [", ".join(map(str, sorted(numbers))) for numbers in (known, budgets)]
        raise UsageError(f"warm_start has solver tables for {listed[0]} evaluations, and none for {listed[1]}")
    return {budget: choose(tables, budget, "warm_start", scale) for budget in budgets if budget in known}
