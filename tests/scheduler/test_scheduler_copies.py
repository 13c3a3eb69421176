"""Copies, pickles and states of a scheduler in the middle of a pipeline's loop; timesteps that are not one number."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from torch import Tensor

import sdesamplers as sds
from sdesamplers.scheduler import run as run_module

TABLE = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "clip_sample": False}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def stored(scheduler: sds.Scheduler) -> sds.Scheduler:
    file, made = io.BytesIO(), scheduler.clone()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    made.load_state_dict(torch.load(file, weights_only=True))
    return made


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
    "state": stored,
}


def loop(scheduler: Any, way: Any = lambda scheduler: scheduler, count: int = 2, dtype: Any = torch.float32) -> Tensor:
    """The samples of a loop whose scheduler is replaced after every step; the states are now and then new tensors."""
    x = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    noise = torch.Generator().manual_seed(1)
    scheduler.set_timesteps(6)
    k = 0
    while k < len(scheduler.timesteps):  # it grows with an adaptive run
        t = scheduler.timesteps[k]
        output = torch.tanh(scheduler.scale_model_input(x, t) * (1 + float(t) / 1000))
        x = scheduler.step(output, t, x, generator=noise).prev_sample
        x = x.clone() if k % 3 == 0 else x
        scheduler, k = way(scheduler), k + 1
    return x


SAMPLERS = ("euler", "heun", "dpmpp-2m", "dpmpp-3m-sde", "unipc", "ddpm", "restart", "sa-solver", "odeint")


CASES = [(sampler, way) for sampler in SAMPLERS for way in WAYS]
KEPT = [
    ("dpmpp-2m", "pickle"),
    ("dpmpp-3m-sde", "state"),
    ("heun", "deepcopy"),
    ("restart", "state"),
    ("unipc", "copy"),
]


@pytest.mark.parametrize(("sampler", "way"), mostly_slow(CASES, keep=KEPT))
def test_copied_runs_continue_bit_for_bit(sampler: str, way: str) -> None:
    for trained, dtype in ((TABLE, torch.float32), (FLOW, torch.float16)):
        expected = loop(sds.Scheduler(sampler, trained=trained), dtype=dtype)
        assert torch.equal(loop(sds.Scheduler(sampler, trained=trained), WAYS[way], dtype=dtype), expected)


@pytest.mark.parametrize("way", mostly_slow(WAYS, keep=("deepcopy",)))
def test_copies_of_adaptive_runs(way: str) -> None:
    def made() -> sds.Scheduler:
        return sds.Scheduler("rk45", trained=TABLE, rtol=0.2)

    assert torch.equal(loop(made(), WAYS[way], count=1), loop(made(), count=1))


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_and_its_original_are_independent(way: str) -> None:
    scheduler, x = sds.Scheduler("dpmpp-2m", trained=TABLE), torch.ones(1, 1, 2, 2)
    scheduler.set_timesteps(5)
    states = [x]
    for t in scheduler.timesteps[:3]:
        states.append(scheduler.step(torch.tanh(states[-1]), t, states[-1]).prev_sample)
    found = WAYS[way](scheduler)
    assert (found.step_index, scheduler.step_index) == (3, 3)
    t = scheduler.timesteps[3]
    other = found.step(torch.zeros_like(x), t, states[-1]).prev_sample
    mine = scheduler.step(torch.tanh(states[-1]), t, states[-1]).prev_sample
    assert not torch.equal(mine, other)
    assert torch.equal(WAYS[way](scheduler).step(mine, scheduler.timesteps[4], mine).prev_sample,
                       scheduler.step(mine, scheduler.timesteps[4], mine).prev_sample)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_before_the_next_step_counts_in_a_copy(way: str) -> None:
    ends = []
    for copied in (False, True):
        scheduler, x = sds.Scheduler("dpmpp-2m", trained=TABLE), torch.ones(1, 1, 2, 2)
        scheduler.set_timesteps(5)
        for k, t in enumerate(scheduler.timesteps):
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
            x = x + 0.25 if k == 1 else x
            scheduler = WAYS[way](scheduler) if copied else scheduler
        ends.append(x)
    assert torch.equal(*ends)


@pytest.mark.parametrize("way", WAYS)
def test_a_restarted_run_continues_its_noise_in_a_copy(way: str) -> None:
    """DDPM's step is repeated at the same timestep, as inpainting by resampling does, with new noise each time."""
    ends = []
    for copied in (False, True):
        scheduler, x = sds.Scheduler("ddpm", trained=TABLE, seed=4), torch.ones(1, 1, 2, 2)
        scheduler.set_timesteps(5)
        found: list[Tensor] = []
        while len(found) < 10:
            t = scheduler.timesteps[len(found) // 2]
            found.append(scheduler.step(torch.tanh(x), t, x.clone()).prev_sample)
            scheduler = WAYS[way](scheduler) if copied else scheduler
            x = found[-1] if len(found) % 2 == 0 else x
        assert not torch.equal(found[0], found[1])
        ends.append(torch.stack(found))
    assert torch.equal(*ends)


def ended(scheduler: sds.Scheduler) -> Tensor:
    """The sample of a run of 8 steps."""
    scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    return x


@pytest.mark.parametrize("sampler", ["unipc", "dpmpp-2m"])
def test_large_runs_of_samplers_that_depend_on_all_outputs_are_not_kept(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline that copies nothing does not hold all outputs of a video model."""
    whole = ended(sds.Scheduler(sampler))
    monkeypatch.setattr(run_module, "LARGEST_RECORD", 4 * 256)  # four outputs
    scheduler = sds.Scheduler(sampler)
    scheduler.set_timesteps(8)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps[:4]:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    fourth, x4 = copy.deepcopy(scheduler), x.clone()
    x = scheduler.step(0.1 * x, scheduler.timesteps[4], x).prev_sample
    restored = stored(fourth)
    y = restored.step(0.1 * x4, restored.timesteps[4], x4).prev_sample
    assert torch.equal(x, y)
    for way in (copy.deepcopy, pickle.dumps, sds.Scheduler.state_dict):
        if sampler == "dpmpp-2m":
            way(scheduler)
            continue
        with pytest.raises(sds.UsageError, match=r"^unipc: this run can no longer be copied or stored: "):
            way(scheduler)
        with pytest.raises(sds.UsageError, match="can no longer be copied"):  # a run that was stored has the same limit
            way(restored)
    for t in scheduler.timesteps[5:]:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    assert torch.equal(x, whole)
    assert torch.equal(ended(copy.deepcopy(scheduler)), whole)


def test_a_run_that_has_ended_stays_ended_in_a_copy() -> None:
    scheduler, x = sds.Scheduler("dpmpp-2m", trained=TABLE), torch.ones(1, 1, 2, 2)
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
    for way in WAYS.values():
        found = way(scheduler)
        assert found.step_index == 2
        with pytest.raises(sds.UsageError, match="this run ended after 2 evaluations"):
            found.step(x, t, x)


def test_a_state_of_something_else_is_refused() -> None:
    for wrong in ({}, None, [1], {"grid": None}):
        with pytest.raises(sds.UsageError, match="this is no state of a Scheduler"):
            sds.Scheduler("euler").load_state_dict(wrong)  # type: ignore[arg-type]


ROWS = {
    "rows": torch.tensor([750.0, 500.0]),
    "a column": torch.tensor([[750.0], [500.0]]),
    "tokens": torch.linspace(0, 900, 8).view(2, 4),
    "a list": [750, 500],
    "an array": np.array([750, 500]),
    "tensors": [torch.tensor([750.0, 500.0]), torch.tensor([500.0, 500.0])],
    "rows of different lengths": [[750, 500], [500]],
}


@pytest.mark.parametrize("timestep", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("trained", [TABLE, FLOW], ids=["table", "flow"])
def test_a_timestep_of_each_row_is_refused(timestep: Any, trained: dict[str, Any]) -> None:
    scheduler, x = sds.Scheduler("euler", trained=trained), torch.ones(2, 1, 2, 2)
    scheduler.set_timesteps(4)
    for _ in range(2):  # at the start of a run, and in it
        with pytest.raises(sds.UsageError, match=r"timestep must be (the same number for all samples|a number)"):
            scheduler.step(x, timestep, x)
        if scheduler.step_index is None:
            scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(sds.UsageError, match="timestep must be"):
        scheduler.step(x, scheduler.timesteps[1], x, prev_timestep=timestep)


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"sampler": "euler"}, "sampler"),
        ({"spacing": "trailing"}, "grid or noise"),
        ({"clip": True}, "clip"),
        ({"trained": {**FLOW, "num_train_timesteps": 500}}, "configuration of the model"),
    ],
)
def test_the_state_of_another_scheduler_is_refused(change: dict[str, Any], other: str) -> None:
    made, x = sds.Scheduler("dpmpp-2m", trained=FLOW), torch.ones(1, 4)
    made.set_timesteps(4)
    made.step(x, made.timesteps[0], x)
    with pytest.raises(sds.UsageError, match=f"a Scheduler with another {other};"):
        sds.Scheduler(**{"sampler": "dpmpp-2m", "trained": FLOW, **change}).load_state_dict(made.state_dict())
    state = made.state_dict()
    del state["made_for"]  # as stored by earlier versions
    sds.Scheduler("dpmpp-2m", trained=FLOW).load_state_dict(state)


@pytest.mark.parametrize(("device", "count"), [(None, 1), ("cpu", 1), ("cpu", 4)])
def test_a_state_of_a_machine_with_another_device(device: str | None, count: int) -> None:
    """As stored on a GPU and loaded with map_location="cpu"."""
    made, x = sds.Scheduler("ddpm", trained=FLOW, seed=0), torch.ones(1, 4)
    made.set_timesteps(4, device="cpu")
    for t in made.timesteps[:count]:
        x = made.step(x, t, x).prev_sample
    state = made.state_dict()
    state["grid"]["device"] = state["run"]["run"]["device"] = "xpu:3"
    loaded = sds.Scheduler("ddpm", trained=FLOW, seed=0)
    loaded.load_state_dict(state, device)
    assert loaded.timesteps.device.type == "cpu"
    if count == 1:
        t = made.timesteps[1]
        assert torch.equal(loaded.step(x, t, x).prev_sample, made.step(x, t, x).prev_sample)
