"""What the drive loop costs, in numbers that a busy machine does not change: instructions, and tensors held."""

import pytest
import torch
from process_cases import TABLE

import sdesamplers as sds
from sdesamplers.models.base import Output
from sdesamplers.sampling.loop import Evaluator

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.mark.slow
def test_instructions_of_a_step_beside_diffusers():
    """A step's instructions, as a share of those of diffusers' scheduler in the same process, stay below the limits.

    The limits are the measured shares and a tenth of them. Absolute counts would say more about the processor, Python
    and torch than about the library; they are recorded in benchmarks/results/instructions.md.
    """
    import instructions

    missing = instructions.why_not()
    if missing:
        pytest.skip(missing)
    for row in instructions.compare(instructions.count()):
        assert row["ours"] > 1000, "what is counted is no step"
        assert row["ratio"] < instructions.LIMITS[row["sampler"]], row


@pytest.mark.slow
def test_a_stepper_costs_no_more_than_the_loop_of_sample():
    """The same network, a function: states and times are read and outputs sent, at most 5 % more instructions."""
    import instructions

    missing = instructions.why_not()
    if missing:
        pytest.skip(missing)
    for row in instructions.compare(instructions.count([instructions.BY_HAND])):
        assert row["ours"] > 1000, "what is counted is no step"
        assert row["ratio"] < instructions.BY_HAND_LIMIT, row


def test_differences_between_step_counts():
    """On counts made up as 1000 + 30 an evaluation, beside 500 + 120: a quarter, whatever the start-up."""
    import instructions

    counts = [
        {
            "peer": "diffusers",
            "sampler": sampler,
            "side": side,
            "steps": steps,
            "evaluations": 2 * steps,
            "instructions": start + each * 2 * steps,
        }
        for sampler in instructions.SAMPLERS
        for side, start, each in (("ours", 1000, 30), ("theirs", 500, 120))
        for steps in instructions.STEPS
    ]
    rows = instructions.compare(counts)
    assert [row["sampler"] for row in rows] == list(instructions.SAMPLERS)
    assert all((row["ours"], row["theirs"], row["ratio"]) == (30, 120, 0.25) for row in rows)


def test_live_tensors_are_counted_until_they_are_freed():
    from sdesamplers.generation.memory import Meter

    given = torch.ones(10)
    with Meter(given=True) as count:
        a = given + 1
        assert count.live == 80
        b = a.view(2, 5)  # no storage of its own
        del a
        assert count.live == 80
        del b
        assert count.live == 40
        c = (given * 2).add_(given)  # what is in the middle is c
        assert (count.live, count.peak) == (80, 80)
        del c
        (given + 1).sum()
        assert (count.live, count.peak) == (40, 84)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m"])
def test_no_more_states_are_held_than_by_diffusers(name):
    import memory

    row = memory.measure([name], with_k_diffusion=False)[0]
    assert row["ours"] >= 3, "the state, the model's answer and the next state are held at least"
    assert row["ours"] <= row["diffusers"] + memory.ROUNDING


class Still(sds.Model):
    """A model whose answer is its input."""

    prediction, shape = "epsilon", (3,)

    def __init__(self):
        self.process = sds.DiscreteVP(TABLE)

    def predict(self, x, t, condition=None):
        return Output(x)


@pytest.mark.parametrize("both", [False, True])
def test_a_prediction_s_tensors_go_with_it(both):
    """And not when the garbage collector comes by, which a prediction that is its own `unguided` would wait for."""
    import gc
    import weakref

    model = Still()
    path = sds.Path(sds.view(model.process), [])
    gc.collect()
    gc.disable()
    try:
        x = torch.ones(2, 3)
        prediction = Evaluator(model, 2, "still", both=both)(x, path.at(500.0))
        held = weakref.ref(x)
        assert (prediction.unguided is not None) == both
        del x, prediction
        assert held() is None
    finally:
        gc.enable()
