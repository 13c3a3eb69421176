"""Tables of fixed samplers: the closed form of DDIM, and the samples of the sampler itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from process_cases import BETAS

import sdesamplers as sds
from sdesamplers.tuning.trace import table_of

PROCESSES: dict[str, Any] = {
    "vp": sds.VP(),
    "table": sds.DiscreteVP(np.cumprod(1 - BETAS)),
    "edm": sds.EDM(),
    "flow": sds.RectifiedFlow(),
}
LINEAR = (
    *("ab", "ab-2m", "abm", "ddim", "deis", "dpm-solver-v3", "dpmpp-2m", "exp-ab", "ipndm", "quality", "fast", "unipc"),
)


def mixture(process: Any) -> sds.MixtureModel:
    return sds.MixtureModel([0.4, 0.6], [[1.0, -0.5], [-0.7, 0.8]], [0.1, 0.3], process, prediction="v")


def test_ddims_table_has_its_closed_form():
    table = table_of(sds.VP(), "ddim", steps=4, spacing="angle")
    for n, row in enumerate(table.weights):
        step = table.angles[n + 1] - table.angles[n]
        expected = [0.0, math.cos(step), *[0.0] * n, math.sin(step)]
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_adams_bashforth_of_order_two_has_its_textbook_weights():
    table = table_of(sds.VP(), "ab", steps=3, spacing="angle", order=2)
    h = table.angles[2] - table.angles[1]
    # y_2 = y_1 + h (3/2 v_1 - 1/2 v_0); the table's present weight is cos h, and y_1 = y_0 + h v_0 for this method.
    left = 1 - math.cos(h)
    np.testing.assert_allclose(table.weights[1], [left, math.cos(h), -0.5 * h + left * h, 1.5 * h], atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", LINEAR)
def test_a_traced_table_gives_the_samplers_samples(sampler, process):
    model = mixture(PROCESSES[process])
    arguments = {"num_samples": 3, "dtype": torch.float64, "seed": 4}
    expected = sds.sample(model, sampler, nfe=7, **arguments)
    found = sds.sample(model, table_of(model.process, sampler, nfe=7), **arguments)
    assert found.nfe == expected.nfe == 7
    torch.testing.assert_close(found.samples, expected.samples, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("sampler", "arguments", "reason"),
    [
        ("heun", {"steps": 4}, "does not evaluate the model once in each step"),
        ("ddpm", {"steps": 4}, "draws noise"),
        ("rk45", {}, "no solver table without a grid"),
    ],
)
def test_samplers_without_a_table_are_refused(sampler, arguments, reason):
    with pytest.raises(sds.UsageError, match=reason):
        table_of(sds.VP(), sampler, **arguments)
