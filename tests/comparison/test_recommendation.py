"""Which setting is best, with what confidence, and what cannot be distinguished."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sdesamplers as sds
from sdesamplers.comparison.cell import Cell
from sdesamplers.comparison.recommendation import remark

RANDOM = np.random.default_rng(1)
ERRORS = RANDOM.gamma(4.0, 0.025, 16)
RECIPE = {"sampler": "heun", "steps": 4}


def cell(sampler: str, errors: Any = None, nfe: int = 8, budget: int | None = None, **words: Any) -> Cell:
    values = None if errors is None else [float(value) for value in errors]
    rms = None if values is None else float(np.sqrt(np.square(values).mean()))
    given = {"recipe": {**RECIPE, "sampler": sampler}, "model": "net", "error": rms, "errors": values, **words}
    return Cell(sampler, budget or nfe, nfe=nfe, **given)


def comparison(*cells: Cell, **words: Any) -> sds.Comparison:
    return sds.Comparison("net", 16, 0, list(cells), {}, **words)


def test_a_certain_winner() -> None:
    """A tenth less on every sample is certain, although both intervals overlap widely."""
    found = comparison(cell("ddim", ERRORS), cell("heun", 0.9 * ERRORS), cell("ddpm")).recommend(nfe=8)
    assert (found.sampler, found.nfe, found.metric) == ("heun", 8, "error")
    assert found.confidence == 1.0
    assert found.alternatives == ()
    assert found.left_out == ("ddpm",)
    assert found.value == pytest.approx(0.9 * np.sqrt(np.square(ERRORS).mean()))
    assert found.recipe.sampler == "heun"
    assert "confidence that it is the best: 100%" in str(found)


def test_of_equal_settings_the_cheapest_is_taken() -> None:
    found = comparison(cell("ddim", ERRORS, 8), cell("heun", ERRORS, 6), cell("unipc", ERRORS, 6)).recommend(nfe=8)
    assert (found.sampler, found.confidence) == ("heun", pytest.approx(1 / 3))
    assert found.alternatives == (("ddim", 8), ("unipc", 6))


def test_a_value_that_is_no_number_is_not_the_best() -> None:
    cells = [cell("ddim", frechet=float("nan")), cell("heun", frechet=2.0)]
    found = comparison(*cells).recommend(8, "frechet")
    assert (found.sampler, found.left_out) == ("heun", ("ddim",))


def test_a_close_race() -> None:
    """Two settings whose errors are independent and equally distributed: each is best in half of all sets."""
    random, shares = np.random.default_rng(3), []
    for _ in range(40):
        one, other = (random.gamma(4.0, 0.025, 64) for _ in range(2))
        found = comparison(cell("ddim", one), cell("heun", other)).recommend(nfe=8)
        shares.append(found.confidence)
    assert all(share is not None and share > 0.45 for share in shares)
    # The winner's confidence is uniform in [0.5, 1]: mean 0.75, standard error 0.144 / sqrt(40) = 0.023.
    assert np.mean(shares) == pytest.approx(0.75, abs=0.1)
    one, other = RANDOM.gamma(4.0, 0.025, 16), RANDOM.gamma(4.0, 0.025, 16)
    found = comparison(cell("ddim", one), cell("heun", other)).recommend(nfe=8)
    assert len(found.alternatives) == 1


def test_fewer_evaluations_take_part_and_more_do_not() -> None:
    cells = [cell("ddim", 2 * ERRORS, 4), cell("heun", 3 * ERRORS, 7, budget=8), cell("unipc", ERRORS, 10)]
    result = comparison(*cells)
    found = result.recommend(nfe=8)
    assert (found.sampler, found.nfe) == ("ddim", 4)
    assert result.recommend(nfe=10).sampler == "unipc"
    with pytest.raises(
        sds.UsageError, match=r"no setting was compared at 3 evaluations or fewer \(compared: 4, 7, 10\)"
    ):
        result.recommend(nfe=3)
    with pytest.raises(sds.UsageError, match="unknown metric 'eror'; did you mean 'error'"):
        result.recommend(nfe=8, metric="eror")


def test_other_metrics() -> None:
    repeats = [{"frechet": 3.0, "clip": 0.5}, {"frechet": 3.1, "clip": 0.6}]
    more = [{"frechet": 3.5, "clip": 0.7}, {"frechet": 3.6, "clip": 0.8}]
    cells = [cell("ddpm", frechet=3.05, metrics={"clip": 0.55}, repeats=repeats),
             cell("ddim", frechet=3.55, metrics={"clip": 0.75}, repeats=more)]  # fmt: skip
    result = comparison(*cells, repeats=2)
    found = result.recommend(nfe=8)
    assert (found.sampler, found.metric, found.confidence) == ("ddpm", "frechet", 1.0)  # the same difference in both
    assert result.recommend(nfe=8, metric="clip", largest=True).sampler == "ddim"
    single = comparison(cell("ddpm", frechet=3.0), cell("ddim", frechet=3.5)).recommend(nfe=8)
    assert (single.sampler, single.confidence) == ("ddpm", None)
    assert "unknown; it needs repeats=2 or more" in str(single)


def test_the_recipe_repeats_the_run() -> None:
    model = sds.grid_mixture(sds.VP())
    result = sds.compare(model, ["euler", "dpmpp-2m spacing=karras"], [4, 8], num_samples=8, reference_samples=8)
    best = result.recommend(nfe=8)
    again = sds.sample(model, best.recipe, num_samples=8)
    assert torch.equal(again.samples, result.samples[best.sampler, best.budget])
    errors = {(each.sampler, each.budget): each.error for each in result.cells}
    assert best.value == min(error for error in errors.values() if error is not None)


def test_what_cannot_be_told_apart_is_said_in_one_line() -> None:
    close = ERRORS * np.where(np.arange(16) % 2, 0.8, 1.2)
    cells = [cell("ddim", ERRORS), cell("heun", close), cell("euler", 5 * ERRORS)]
    assert remark(cells, 64, 1) == "error: 16 samples cannot tell apart ddim and heun at 8"
    assert [(a.sampler, b.sampler) for a, b in comparison(*cells).undecided("error")] == [("ddim", "heun")]
    several = [cell(name, RANDOM.permutation(ERRORS)) for name in "abcd"]
    assert remark(several, 64, 1) == "error: 16 samples cannot tell apart 6 of 6 pairs of settings"
    other_budgets = [cell("ddim", ERRORS, 4), cell("heun", close, 8)]
    assert remark(other_budgets, 64, 1) == ""
    spread = [cell("ddim", frechet=3.0, frechet_error=0.5), cell("heun", frechet=3.2, frechet_error=0.5)]
    assert remark(spread, 64, 1) == "frechet: 64 samples cannot tell apart ddim and heun at 8"
    assert remark([cell("ddim", frechet=3.0), cell("heun", frechet=3.2)], 64, 1) == ""


def test_compare_warns_once() -> None:
    model = sds.grid_mixture(sds.VP())
    with pytest.warns(UserWarning, match="error: 8 samples cannot tell apart euler and") as warned:
        sds.compare(model, ["euler", "dpmpp-2m spacing=karras"], [4, 8], num_samples=8, reference_samples=8)
    assert len([each for each in warned if "tell apart" in str(each.message)]) == 1
