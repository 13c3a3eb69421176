"""What a page shows, as plain data for its template: sentences, tables, pictures, code."""

from __future__ import annotations

import pprint
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..metrics.intervals import DRAWS, FEW, jackknife_groups
from ..registry.budgets import budgets_text
from .thumbnails import is_reduced, thumbnails
from .view import Quantity, View, number

if TYPE_CHECKING:
    from ..comparison.result import Cell

PICTURE_BYTES, FILM_BYTES = 2_200_000, 1_000_000
"""Characters of all samples' and of all states' pictures on a page; fewer are shown if they would take more."""


CALL = ("batch_size", "guidance_scale", "condition", "start", "first_index", "dtype", "check_finite")
"""Arguments of `sample` that are facts of a comparison and not part of a recipe."""
FINGERPRINT = re.compile("[0-9a-f]{16}")
"""What stands in the facts for tensors and long lists."""
POINTS = 5000
"""Points on a page, and as many of the reference; fewer samples are shown if there would be more."""


@dataclass
class Pictures:
    """The pictures of one cell.

    Attributes:
        index: the sampler's place.
        sampler, budget: as in the cell.
        title: its cost and error.
        images: (data URI, text for readers who do not see it, title) of each sample.
        problem: the reason if there are no samples.
    """

    index: int
    sampler: str
    budget: int
    title: str
    images: list[tuple[str, str, str]] = field(default_factory=list)
    problem: str = ""


def facts(view: View) -> list[tuple[str, str]]:
    """What was compared, as terms and descriptions."""
    found = view.comparison
    environment = found.facts.get("environment", {})
    rows = [
        ("Model", found.model_name + revision(found.facts.get("model", {}))),
        ("Samples", f"{found.num_samples} for each sampler and number of evaluations, {seeds(view)}"),
        ("Guidance scale", number(found.facts.get("guidance_scale", 1.0))),
    ]
    if tables := found.facts.get("model", {}).get("solver_tables"):
        rows.append(("Solver tables", f"of the model, for {budgets_text(tables)} evaluations"))
    if found.reference_count:
        rows.append(
            ("ODE reference", f"rk45 at tolerance 1e-5, {found.reference_nfe} evaluations per sample, the first "
             f"{found.reference_count} samples from the same starting noise")
        )  # fmt: skip
    else:
        rows.append(("ODE reference", "none, so that no errors are known"))
    rows.append(("Distances", found.metrics or "none: this model has no metrics"))
    if own_metrics(view):
        rows.append(("Own metrics", f"{', '.join(own_metrics(view))}: functions of the samples, passed to compare"))
    if found.floor is not None:
        rows.append(
            ("Floor", f"Fréchet distance {number(found.floor.frechet)} squared feature units between the reference set "
             f"and {found.floor.count} other real samples: what perfect samples would have on average")
        )  # fmt: skip
    rows.append(
        ("Made with", ", ".join(f"{name} {value}" for name, value in environment.items()) or "unknown versions")
    )
    return rows


def seeds(view: View) -> str:
    """The seed, or those of all repeats."""
    first, repeats = view.comparison.seed, view.comparison.repeats
    return f"seed {first}" if repeats == 1 else f"{repeats} repeats with the seeds {first} to {first + repeats - 1}"


def revision(model: dict[str, Any]) -> str:
    """A model's revision and the hash of its weights, shortened."""
    parts = []
    if model.get("revision"):
        parts.append(f"revision {str(model['revision'])[:12]}")
    if model.get("weights_sha256"):
        parts.append(f"weights {model['weights_sha256'][:12]}")
    return f" ({', '.join(parts)})" if parts else ""


def note(view: View, cell: Cell) -> str:
    """A cell in a line, for its marker."""
    parts = [f"{cell.sampler}, {cell.nfe} evaluations per sample, {number(cell.seconds)} s"]
    for quality in view.qualities.values():
        value = cell.value(quality.field)
        if value is not None:
            parts.append(f"{quality.short} {number(value)}{ends(view, cell, quality)}")
    return "; ".join(parts)


def ends(view: View, cell: Cell, quality: Quantity) -> str:
    """An interval as text; empty if there is none."""
    found = view.interval(cell, quality)
    return "" if found is None else f" [{number(found[0])}, {number(found[1])}]"


def table(view: View) -> list[dict[str, Any]]:
    """The rows of the table: for each cell its sampler, values with intervals, and remarks."""
    measured = qualities(view)
    best = {(budget, q.field): _least(view, budget, q) for budget in view.budgets for q in measured}
    rows = []
    for cell in view.comparison.cells:
        values = [
            {
                "value": value,
                "text": number(value),
                "interval": ends(view, cell, q).strip(),
                "best": value is not None and value == best[cell.budget, q.field],
            }
            for q in measured
            for value in [cell.value(q.field)]
        ]
        remarks = [cell.problem] if cell.problem else []
        if cell.scoring_problem:
            remarks.append(f"no score: {cell.scoring_problem}")
        if cell.drew_noise:
            remarks.append("stochastic, so without an ODE error")
        index = view.samplers.index(cell.sampler)
        rows.append({"index": index, "cell": cell, "values": values, "remarks": "; ".join(remarks)})
    return rows


def _least(view: View, budget: int, quality: Quantity) -> float | None:
    """The lowest value at a budget; None for a metric of the caller, of which the highest may be the best."""
    values = [cell.value(quality.field) for cell in view.comparison.cells if cell.budget == budget]
    return None if quality.own else min((value for value in values if value is not None), default=None)


def qualities(view: View) -> list[Quantity]:
    """The quantities that were measured."""
    return [q for q in view.qualities.values() if any(c.value(q.field) is not None for c in view.comparison.cells)]


def own_metrics(view: View) -> list[str]:
    """The names of the caller's metrics."""
    return [each.short for each in qualities(view) if each.own]


def sample_pictures(view: View) -> tuple[list[list[Pictures]], list[str]]:
    """Pictures of each sampler (rows) and budget, and those of the reference; fewer samples on large pages."""
    for each in (8, 6, 4, 2, 1):
        rows = [[_pictures(view, s, b, each) for b in view.budgets] for s in view.samplers]
        reference = view.comparison.reference
        exact = [] if reference is None else thumbnails(reference[:each], view.comparison.data_range)
        size = sum(len(uri) for row in rows for cell in row for uri, *_ in cell.images) + sum(map(len, exact))
        if size <= PICTURE_BYTES:
            break
    return rows, exact


def _pictures(view: View, sampler: str, budget: int, each: int) -> Pictures:
    cell, samples = view.cell(sampler, budget), view.comparison.samples.get((sampler, budget))
    made = Pictures(view.samplers.index(sampler), sampler, budget, title(cell, budget))
    if samples is None:
        made.problem = "not run" if cell is None or cell.problem is None else cell.problem
        return made
    errors = (cell.errors if cell is not None else None) or []
    for place, uri in enumerate(thumbnails(samples[:each], view.comparison.data_range)):
        text = f"sample {place} of {sampler}, {budget} evaluations"
        error = f"ODE error {number(errors[place])} (RMS, data units)" if place < len(errors) else ""
        made.images.append((uri, text, f"sample {place}: {error}" if error else f"sample {place}"))
    return made


def title(cell: Cell | None, budget: int) -> str:
    """A cell's cost and values, for the line below its pictures."""
    if cell is None or cell.nfe is None:
        return f"{budget} evaluations"
    parts = [f"{cell.nfe} NFE"]
    if cell.error is not None:
        parts.append(f"error {number(cell.error, 2)}")
    if cell.frechet is not None:
        parts.append(f"FD {number(cell.frechet)}")
    return ", ".join(parts)


def films(view: View) -> list[tuple[int, list[Pictures]]]:
    """For each budget, the states of the first sample of each sampler on its way, as pictures; fewer on large pages.

    Empty if the states are not pictures.
    """
    found: list[tuple[int, list[Pictures]]] = []
    for frames in (8, 5, 3):
        rows = [(b, [f for s in view.samplers if (f := _film(view, s, b, frames)) is not None]) for b in view.budgets]
        found = [(budget, each) for budget, each in rows if each]
        if sum(len(uri) for _, each in found for film in each for uri, *_ in film.images) <= FILM_BYTES:
            break
    return found


def _film(view: View, sampler: str, budget: int, frames: int) -> Pictures | None:
    kept = view.comparison.trajectories.get((sampler, budget))
    if kept is None or not _are_pictures(kept.states):
        return None
    states = kept.states[:, 0]
    last, data_range = len(states) - 1, view.comparison.data_range or (-1.0, 1.0)
    places = sorted({round(k * last / (frames - 1)) for k in range(frames)})
    made = Pictures(view.samplers.index(sampler), sampler, budget, "")
    for place, uri in zip(places, thumbnails(_in_range(states[places], data_range), data_range), strict=True):
        text = "the sample" if place == last else f"state {place + 1} of {last + 1}"
        made.images.append((uri, f"{text}, {sampler}, {budget} evaluations", text))
    return made


def _in_range(states: Tensor, data_range: tuple[float, float]) -> Tensor:
    """States scaled down about the middle of the data's range so that 95% of their numbers lie in it."""
    middle, half = sum(data_range) / 2, (data_range[1] - data_range[0]) / 2
    extent = torch.quantile((states - middle).abs().flatten(1), 0.95, dim=1) / half
    return middle + (states - middle) / extent.clamp_min(1.0).reshape(-1, *(1 for _ in states.shape[1:]))


def _are_pictures(states: Tensor) -> bool:
    return states.dim() == 5 and states.shape[2] in (1, 3)


def points_of(view: View) -> int:
    """The number of samples that each panel of points shows."""
    return max(POINTS // max(len(view.comparison.cells), 1), 20)


def size_note(view: View) -> str:
    """How pictures are shown that are larger than thumbnails."""
    if not view.has_images or not is_reduced(view.shape):
        return ""
    return f"Pictures of {view.shape[2]} x {view.shape[1]} pixels are reduced and compressed here."


def intervals(view: View) -> str:
    """How the intervals are computed."""
    found, parts = view.comparison, []
    several = found.repeats > 1
    runs = f", of all {found.repeats} repeats" if several else ""
    means = [q.short for q in qualities(view) if q.own and any(q.field in c.per_sample for c in found.cells)]
    errors = found.reference_count if any(cell.errors for cell in found.cells) else 0
    for what, count, which in (
        ("the ODE error", errors, " of the reference"),
        (", ".join(means), found.num_samples if means else 0, ""),
    ):
        if count * found.repeats > 1:
            how = "Student's t" if count * found.repeats < FEW else f"a bootstrap-t ({DRAWS} resamples, seed 0)"
            parts.append(f"of {what} by {how} over the {count} samples{which}{runs}")
    if several:
        parts.append(f"of other values by Student's t over the {found.repeats} repeats, whose means are shown")
    elif any(cell.frechet_error is not None for cell in found.cells):
        groups = jackknife_groups(found.num_samples)
        parts.append(
            "of the Fréchet distance by a jackknife that leaves out each of "
            f"{groups} groups of samples, with Student's t"
        )
    return "; ".join(parts) or "none could be computed for these numbers of samples"


def recipes(view: View) -> list[tuple[int, list[tuple[int, str]]]]:
    """For each sampler the budgets at which it has run, with Python code that draws their samples again."""
    found = []
    for index, sampler in enumerate(view.samplers):
        cells = [(c.budget, code(view, c)) for c in view.of(sampler) if c.recipe is not None]
        if cells:
            found.append((index, cells))
    return found


def code(view: View, cell: Cell) -> str:
    """Python code that draws the samples of a cell again, given the model."""
    found = view.comparison
    own = {name: found.facts[name] for name in CALL if found.facts.get(name) is not None}
    if own.get("guidance_scale") == 1.0:
        del own["guidance_scale"]
    lines = []
    for key, value in {"num_samples": found.num_samples, "seed": found.seed, **own}.items():
        text, remark = pprint.pformat(value, compact=True), ""
        if key == "dtype":
            text = f"torch.{value}"
        elif isinstance(value, str) and FINGERPRINT.fullmatch(value):
            text, remark = key, f"  # with the fingerprint {value}"
        lines.append(f"    {key}={text},{remark}\n")
    recipe = pprint.pformat(cell.recipe, sort_dicts=False, compact=True)
    return f"recipe = {recipe}\nresult = sds.sample(\n    model, recipe,\n{''.join(lines)})"
