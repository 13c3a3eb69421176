"""Checks of the requirements on every sampler: shapes, seeds, batches, counts, options, edits.

Each check takes a `Case` and returns (measured, required, passed), or None if it does not apply.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SdesamplersError, SolverError, UsageError
from ..models.analytic import GaussianModel, MixtureModel, grid_mixture
from ..models.base import Model, Output
from ..models.density import FunnelModel
from ..models.function import FunctionModel
from ..path.noise import NormalSource
from ..path.points import model_state
from ..path.prediction import Prediction, ScorePrediction
from ..processes.predictions import PREDICTIONS
from ..processes.schedules import VP
from ..processes.sde import GaussianProcess
from ..registry.names import Preset
from ..sampling.arguments import fill_options
from ..sampling.calls import sample
from ..sampling.loop import Evaluator, drive
from ..sampling.prepared import make_noise
from ..sampling.replay import replay_log_probs
from ..sampling.runs import make_path, start_run
from .case import Case, CountingModel, StationaryModel, processes
from .declared import candidates, declaration_of
from .randomness import global_state
from .report import Outcome


def largest(difference: Tensor) -> float:
    """max |difference|; NaN if there is a NaN, 0 for empty tensors."""
    return float(difference.abs().max()) if difference.numel() else 0.0


def clipped(text: str, limit: int = 160) -> str:
    """Text on one line, cut off at a space if it is longer than `limit`."""
    return textwrap.shorten(text, limit, placeholder=" ...")


def declaration(case: Case) -> Outcome:
    """The sampler has a reference, and a docstring that names every option."""
    return declaration_of(case.spec)


def shapes_and_dtypes(case: Case) -> Outcome:
    """Shape and dtype of the state are kept, for vectors and images."""
    wrong = []
    for shape, dtype in itertools.product([(1,), (3,), (2, 4, 4)], [torch.float32, torch.float64]):
        process = case.main_model.process
        kind = "epsilon" if case.gaussian else "score"
        made: Model = FunctionModel(lambda x, t: 0.5 * x, process, kind, shape, dtype=dtype)
        if "log_density" in case.spec.needs:
            made = StationaryModel(shape, dtype)
        result = case.sample(made, steps=3, num_samples=2, dtype=dtype).samples
        if result.shape != (2, *shape) or result.dtype != dtype:
            wrong.append(f"{shape} {dtype} gives {tuple(result.shape)} {result.dtype}")
    return "; ".join(wrong) or "kept in 6 cases", "as given", not wrong


def finite(case: Case) -> Outcome:
    """Samples are finite, or a UsageError is raised, on every process, in all coordinates, for 1, 2, 3 and 9 steps."""
    if not case.gaussian:
        return None
    ran, refused, wrong = 0, 0, []
    for name, process in processes().items():
        model, before, refusal = grid_mixture(process, prediction="v"), ran, ""
        for coordinates, steps in itertools.product(("native", "ve", "flow", "angle"), (1, 2, 3, 9)):
            if coordinates == "ve" and np.isinf(process.ratio(process.t_max)):
                continue
            arguments = {"coordinates": coordinates, "steps": steps, "final": "min" if steps == 3 else "zero"}
            try:
                samples = case.sample(model, num_samples=2, **arguments).samples
            except UsageError as error:
                refused, refusal = refused + 1, f"{error}{case.place(error)}"
            except (SdesamplersError, ArithmeticError, ValueError, RuntimeError, LookupError) as error:
                wrong.append(f"{name}, {coordinates}, {steps} steps: {error}{case.place(error)}")
            else:
                ran += 1
                if not torch.isfinite(samples).all():
                    wrong.append(f"{name}, {coordinates}, {steps} steps: not finite")
        if ran == before:
            wrong.append(f"{name}: every run refused: {refusal}")
    measured = f"{ran} ran, {refused} refused" + "".join(f"; {w}" for w in wrong[:3])
    return measured, "finite, on every process; at least 9 in 10 run", not wrong and ran >= 9 * refused


def reproducible(case: Case) -> Outcome:
    """Equal seeds give identical samples, different seeds different samples; no global generator is used.

    The check runs in its own thread, in which a run does not seed torch's global generators for networks that draw
    random numbers.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_reproducible, case).result()


def _reproducible(case: Case) -> Outcome:
    torch.manual_seed(1)
    before = global_state()
    first = case.sample(case.main_model, seed=3).samples
    touched = global_state() != before
    torch.manual_seed(2)
    np.random.seed(2)
    again = case.sample(case.main_model, seed=3).samples
    other = case.sample(case.main_model, seed=4).samples
    faults = {
        "two runs with one seed differ": not torch.equal(first, again),
        "a global generator of torch, NumPy or Python was used": touched,
        "another seed gives the same sample": torch.equal(first, other),
    }
    wrong = [fault for fault, there in faults.items() if there]
    required = "identical for one seed, different for another, global generators untouched"
    if not wrong:
        return "all three", required, True
    advice = "random numbers come from path.draw alone, and no state survives a run"
    return "; ".join(wrong), f"{required}; {advice}", False


def prediction_types(case: Case) -> Outcome:
    """Models with equivalent predictions of epsilon, x0, v, score or flow give the same sample."""
    if not case.gaussian:
        return None
    process = VP()
    models = [grid_mixture(process, prediction=kind) for kind in PREDICTIONS]
    found = [case.sample(model, seed=2).samples for model in models]
    worst = float(np.max([largest(other - found[0]) for other in found[1:]]))
    return f"{worst:.1e}", "<= 1e-8 in float64", worst <= 1e-8


def states_left_alone(case: Case) -> Outcome:
    """States that were passed to the model, and the initial state, are not changed in place afterwards."""
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = [(start, start.clone())]
    case.sample(case.main_model, start=start, callback=lambda event: seen.append((event.x, event.x.clone())))
    changed = sum(not torch.equal(state, copy) for state, copy in seen)
    return f"{changed} of {len(seen)} changed", "0", changed == 0


def batch_independence(case: Case) -> Outcome:
    """A sample is the same alone, in a batch, and in a batch with a distant state."""
    model = case.main_model
    limit = 1e-9
    together = case.sample(model, num_samples=5, seed=1).samples
    alone = torch.cat([case.sample(model, num_samples=1, first_index=k, seed=1).samples for k in range(5)])
    start = case.sample(model, num_samples=5, seed=1, trajectory=True).trajectory
    assert start is not None
    first = start.states[0].clone()
    distant = first.clone()
    distant[1:] *= 7
    arguments = {"num_samples": 5, "seed": 1}
    plain, with_distant = (case.sample(model, start=s.double(), **arguments).samples[0] for s in (first, distant))
    worst = float(np.max([largest(together - alone), largest(plain - with_distant)]))
    return f"{worst:.1e}", f"<= {limit:.0e} in float64", worst <= limit


def evaluations(case: Case) -> Outcome:
    """The reported evaluations are correct, their number per step is as declared, and nfe= is not exceeded."""
    counting = CountingModel(case.main_model)
    wrong: list[str] = []
    counts: list[int] = []
    for steps in (20, 30):
        counting.count = 0
        result = case.sample(counting, steps=steps, num_samples=3, final="min")
        counts.append(result.nfe)
        if counting.count != result.nfe_per_sample.sum():
            wrong.append(f"{counting.count} made, {int(result.nfe_per_sample.sum())} reported")
    rate = float(counts[1] - counts[0]) / 10
    declared = case.spec.evaluations if case.as_declared else None
    if declared is not None:
        if rate != declared:
            wrong.append(f"{rate:g} per step")
        counting.count = 0
        budget = case.sample(counting, nfe=41, num_samples=1)
        if counting.count > 41 or budget.nfe != counting.count:
            wrong.append(f"nfe=41 made {counting.count}")
    required = "equal to the reported number" + ("" if declared is None else f", {declared} per step, within nfe=")
    return "; ".join(wrong) or f"{rate:g} per step", required, not wrong


GRIDS: tuple[dict[str, Any], ...] = ({"steps": 16}, {"steps": 8, "final": "min"})
"""Grids on which options are tried: to sigma = 0, and if an option has no effect there, few steps to the smallest
sigma."""


def options_matter(case: Case) -> Outcome:
    """Every option changes the sample, or ends the run, alone or together with a changed value of another option."""
    free = [name for name in case.spec.options if name not in case.options]
    if not free:
        return None
    names = {name: list(candidates(case.spec.options[name])) for name in free}
    effects = {name: _has_effect(case, name, names, GRIDS[0]) for name in free}
    effects = {name: effect or _has_effect(case, name, names, GRIDS[1]) for name, effect in effects.items()}
    idle = [name for name, effect in effects.items() if effect is False]
    measured = f"no effect: {', '.join(idle)}" if idle else f"{sum(map(bool, effects.values()))} of {len(free)} do"
    return measured, "every option that can be tried changes the sample", not idle


def _has_effect(case: Case, name: str, names: dict[str, list[Any]], grid: dict[str, Any]) -> bool | None:
    """True if another value of an option has an effect; None if all values that were tried are refused."""
    companions: list[dict[str, Any]] = [{}]
    companions += [{other: value} for other in names if other != name for value in names[other][:3]]
    tried = None
    for beside in companions:
        try:
            plain = _sample_with(case, name, beside, grid)
        except SdesamplersError:
            continue
        for value in names[name]:
            try:
                if not torch.equal(plain, _sample_with(case, name, {**beside, name: value}, grid)):
                    return True
                tried = False
            except SolverError:
                return True
            except SdesamplersError:
                continue
    return tried


def _sample_with(case: Case, name: str, options: dict[str, Any], grid: dict[str, Any]) -> Tensor:
    """The samples of a run with options; without a grid if one of the options controls adaptive steps."""
    control = case.spec.control
    arguments: dict[str, Any] = {} if name in control or set(options) & set(control) else dict(grid)
    arguments |= {**case.options_for(arguments), **options}
    return sample(case.main_model, case.spec, num_samples=2, seed=5, **arguments).samples


def edits_count(case: Case) -> Outcome:
    """An edit of the state at the beginning of a step arrives in the result in full, as the flow carries it."""
    if not case.gaussian:
        return None
    process = VP()
    model = GaussianModel([0.7], 0.36, process)
    steps, delta = 60, 0.05
    times = np.asarray(process.time_at_log_snr(2 * np.linspace(-1.5, 1.5, steps + 1)))
    mark = float(times[steps - 3])
    seen: list[float] = []
    arguments: dict[str, Any] = {"times": times, "num_samples": 1, "seed": 2, "coordinates": "native"}
    plain = case.sample(model, callback=lambda event: seen.append(float(np.max(event.point.t))), **arguments).samples
    at = max(k for k, t in enumerate(seen) if t >= mark * (1 - 1e-12))

    def edit(event: Any) -> None:
        if event.evaluation == at:
            event.x = event.x + delta * event.point.scale

    moved = case.sample(model, callback=edit, **arguments).samples
    gain = largest(moved - plain) / delta
    required = "0.6 to 1.4 (after a yield, continue from out.x)"
    return f"{gain:.2f} of the edit arrives", required, 0.6 < gain < 1.4


def pushed_is_pulled(case: Case) -> Outcome:
    """A run driven by hand, one request at a time, is bit for bit the same as a run of `sample`."""
    model = case.main_model
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result = case.sample(model, num_samples=3, seed=6, start=start)
    filled = fill_options(Preset(case.spec, case.options), {}, "steps")
    path = make_path(model.process, result.recipe)
    path.ledger.noise = make_noise(result.recipe, NormalSource(6, range(3), model.shape), math.inf)
    kind = Prediction if isinstance(model.process, GaussianProcess) else ScorePrediction

    def predict(x: Tensor, point: Any) -> Prediction:
        output = model.predict(model_state(x, point).double(), point.t)
        output = output if isinstance(output, Output) else Output(output)
        made, unguided = (kind(x, point, output.value, model.prediction) for _ in range(2))
        made.log_density, made.unguided = output.log_density, unguided
        return made

    with torch.no_grad():
        generator = start_run(case.spec, start * path.points[0].scale, path, filled)
        try:
            request = next(generator)
            while True:
                if isinstance(request, list):
                    request = generator.send([predict(*each) for each in request])
                else:
                    request = generator.send(predict(*request))
        except StopIteration as stop:
            pushed = model_state(stop.value, path.points[-1])
    worst = largest(pushed - result.samples)
    batched = case.spec.evaluations is None  # single evaluations and batched ones differ by rounding
    return f"{worst:.1e}", "0" if not batched else "<= 1e-12", worst <= (1e-12 if batched else 0)


def point_mass(case: Case) -> Outcome:
    """Data that consist of one point are reached at sigma = 0: the last step is made, and ends at the clean end."""
    if not case.gaussian or case.spec.limits:
        return None
    worst = 0.0
    for process in (VP(), processes()["flow"]):
        model = MixtureModel([1.0], [[0.7, -0.4]], [0.0], process, prediction="v")
        found = case.sample(model, steps=40, coordinates="flow").samples
        worst = float(np.max([worst, largest(found - model.means)]))
    return f"{worst:.1e}", "<= 1e-6", worst <= 1e-6


def log_probabilities(case: Case) -> Outcome:
    """Log-probabilities are recorded and finite; a replay gives the same probabilities and the same sample."""
    if not case.spec.stochastic:
        return None
    try:
        result = case.sample(case.main_model, log_probs=True)
    except UsageError as refusal:
        return (clipped(f"refused: {refusal}"), "recorded, or refused by an adaptive sampler", case.spec.adaptive)
    assert result.log_probs is not None
    assert result.draws is not None
    assert result.start is not None
    if not result.log_probs.shape[1]:
        return "draws nothing through path.draw", "some transitions, finite", False
    try:
        again = replay_log_probs(case.main_model, result)
    except IndexError:  # there is no stored outcome left
        return "its replay draws more often than the run", "the same number of draws in every run", False
    worst = largest(again - result.log_probs) if again.shape == result.log_probs.shape else float("inf")
    path = make_path(case.main_model.process, result.recipe)
    path.ledger.log_probs, path.ledger.replayed = [], list(result.draws.unbind(1))
    evaluator = Evaluator(case.main_model, len(result.start), case.spec.name, both="unguided" in case.spec.needs)
    with torch.no_grad():
        end = drive(start_run(case.spec, result.start, path, result.recipe.options), evaluator)
        ended = largest(model_state(end, path.points[-1]) - result.samples)
    count = result.log_probs.shape[1]
    good = count > 0 and bool(torch.isfinite(result.log_probs).all()) and worst <= 1e-6 and ended <= 1e-9
    return f"{count} transitions; replay off by {worst:.1e}, {ended:.1e}", "some, finite; 1e-6, 1e-9", good


def free_steps(case: Case) -> Outcome:
    """With its own steps, an adaptive sampler passes the checks of seeds, batches, states and counts too."""
    if not case.spec.adaptive or not case.gaussian:
        return None
    free, counting = replace(case, free=True), CountingModel(case.main_model)
    found = {
        "reproducible": reproducible(free),
        "batch independence": batch_independence(free),
        "states left alone": states_left_alone(free),
    }
    wrong = [f"{name}: {outcome[0]}" for name, outcome in found.items() if outcome is not None and not outcome[2]]
    result = free.sample(counting, num_samples=3)
    if counting.count != result.nfe_per_sample.sum():
        wrong.append(f"{counting.count} made, {int(result.nfe_per_sample.sum())} reported")
    measured = "; ".join(wrong) or f"as on a grid; {', '.join(str(int(n)) for n in result.nfe_per_sample)} evaluations"
    return measured, f"{', '.join(found)}, counts", not wrong


def noise_as_declared(case: Case) -> Outcome:
    """The sampler draws noise if and only if it declares so, and none with its noiseless options."""
    drew = case.sample(case.main_model).drew_noise
    fault = "draws noise" if drew else "draws nothing through path.draw"
    wrong = [] if drew == case.spec.stochastic else [fault]
    if case.spec.noiseless is not None:
        quiet = Case(case.spec, {**case.options, **case.spec.noiseless})
        if quiet.sample(case.main_model).drew_noise:
            wrong.append("draws noise with its noiseless options")
    return "; ".join(wrong) or "as declared", f"stochastic: {case.spec.stochastic}", not wrong


def plain_sde(case: Case) -> Outcome:
    """On an SDE without closed-form marginals the sampler runs, or raises a UsageError as declared."""
    declared = "marginals" in case.spec.needs
    required = "refuses (it needs marginals)" if declared else 'runs, or declares that it cannot: needs=("marginals",)'
    model = StationaryModel() if "log_density" in case.spec.needs else FunnelModel(duration=0.5)
    try:
        samples = case.sample(model, steps=10).samples
    except UsageError as refusal:
        return clipped(f"refused: {refusal}"), required, declared
    return "runs", required, not declared and bool(torch.isfinite(samples).all())
