"""Loops as notebooks, servers and training scripts write them around a scheduler, against diffusers' schedulers, closed
forms and the same run written plainly."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdesamplers as sds

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TRAILING = {**SD, "clip_sample": False, "timestep_spacing": "trailing", "set_alpha_to_one": True}
CONFIG = diffusers.DDIMScheduler(**TRAILING).config
TABLE = diffusers.DDIMScheduler(**SD).alphas_cumprod.double()
KINDS: dict[str, dict[str, Any]] = {
    "table": {"_class_name": "DDIMScheduler", **CONFIG},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "reverse flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
    "edm": {"_class_name": "EDMEulerScheduler"},
    "edm v": {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0},
    "consistency": {"_class_name": "CMStochasticIterativeScheduler"},
    "ve": {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 50.0},
    "trigflow": {"_class_name": "SCMScheduler"},
    "stable audio": {"_class_name": "CosineDPMSolverMultistepScheduler"},
    "dance": {"_class_name": "IPNDMScheduler"},
}
SAMPLERS = ["euler", "ddim", "ddpm", "heun", "rk4", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "er-sde", "pndm", "dpm-fast"]
FORGETFUL = ["euler", "ddim", "ddpm"]


def normal(seed: int = 0, shape: tuple[int, ...] = (1, 4, 4, 4), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


MEAN, SPREAD = 2 * normal(9), 0.5


def exact(x: Tensor, t: Any) -> Tensor:
    """epsilon of data N(MEAN, SPREAD^2) at a whole timestep of the table."""
    alpha, sigma = levels(t)
    return sigma * (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)


def flowed(x: Tensor, t: Any) -> Tensor:
    """Where the probability-flow ODE leads from x at t: the quantile is kept."""
    alpha, sigma = levels(t)
    return MEAN + SPREAD * (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2) ** 0.5


def levels(t: Any) -> tuple[float, float]:
    a = float(TABLE[round(float(t))])
    return a**0.5, (1 - a) ** 0.5


def network(x: Tensor, t: Any) -> Tensor:
    return torch.tanh(0.7 * x) + 0.2 * torch.cos(x + float(t) / 300)


def ours(sampler: str, kind: str = "table", **words: Any) -> Any:
    spacing = {"spacing": "trailing"} if kind == "table" else {}
    return sds.Scheduler.from_config(KINDS[kind], sampler, **{**spacing, "seed": 0, **words})


def loop(scheduler: Any, x: Tensor, timesteps: Any = None, function: Callable[..., Tensor] = network) -> Tensor:
    for t in scheduler.timesteps if timesteps is None else timesteps:
        x = scheduler.step(function(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x


def run(scheduler: Any, x: Tensor, steps: int = 8, **words: Any) -> Tensor:
    scheduler.set_timesteps(steps)
    return loop(scheduler, x, **words)


# --- where a run begins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpmpp-2m", "unipc"])
def test_a_loop_that_skips_the_first_timesteps_begins_where_it_first_steps(sampler):
    """The image-to-image loop of a widely used notebook: go through all timesteps, and step from some number on."""
    scheduler, image = ours(sampler, round_timesteps=True), MEAN + SPREAD * normal(1)
    for start in (1, 7, 14):
        for wanted in (lambda s: s.timesteps, lambda s: s.timesteps.tolist(), lambda s: list(s.timesteps)):
            scheduler.set_timesteps(16)
            first = scheduler.timesteps[start * scheduler.order]
            x = begun = scheduler.add_noise(image, normal(2), torch.tensor([first]))
            for i, t in enumerate(wanted(scheduler)):
                if i >= start * scheduler.order:
                    x = scheduler.step(exact(x, t), t, x).prev_sample
            scheduler.set_timesteps(16)
            cut = loop(scheduler, begun, scheduler.timesteps[start * scheduler.order :], exact)
            assert torch.equal(x, cut)
            theirs = diffusers.DDIMScheduler(**TRAILING)
            theirs.set_timesteps(16)
            limit = loop(theirs, begun, theirs.timesteps[start:], exact) - flowed(begun, first)
            assert float((x - flowed(begun, first)).abs().max()) < 1.2 * float(limit.abs().max()) + 1e-3


LOOKS: dict[str, Callable[[Any], Any]] = {
    "iterating": lambda t: list(t),
    "slicing": lambda t: (t[3:], t[:2], t[::2], t[-1], t[3:][1:]),
    "iterating a slice": lambda t: list(t[4:]),
    "zipping": lambda t: list(zip(t[:-1], t[1:], strict=False)),  # noqa: RUF007
    "measuring": lambda t: (len(t), t.shape, t.max(), t.tolist()),
    "comparing": lambda t: ((t < 500).sum().item(), (t >= 500).sum(), t == t[2]),
    "moving": lambda t: (t.to("cpu"), t.cpu(), t.to(torch.float64), list(t.to("cpu"))),
    "first of an iterator": lambda t: next(iter(t[5:])),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_looking_at_timesteps_changes_nothing(sampler):
    """Before a run and at each of its steps."""
    scheduler, x = ours(sampler), normal()
    expected = run(scheduler, x)
    scheduler.set_timesteps(8)
    for look in LOOKS.values():
        look(scheduler.timesteps)
    assert torch.equal(loop(scheduler, x), expected)
    scheduler.set_timesteps(8)
    state = x
    for k, t in enumerate(scheduler.timesteps):
        list(LOOKS.values())[k % len(LOOKS)](scheduler.timesteps)
        scheduler.scale_model_input(state, scheduler.timesteps[0])
        state = scheduler.step(network(state, t), t, state).prev_sample
    assert torch.equal(state, expected)
    scheduler.set_timesteps(8)
    begin = 3 * scheduler.order
    cut = loop(scheduler, x, scheduler.timesteps[begin:])
    scheduler.set_timesteps(8)
    for look in LOOKS.values():
        look(scheduler.timesteps)
    assert torch.equal(loop(scheduler, x, scheduler.timesteps[begin:]), cut)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_slices_are_one_run(sampler):
    """Made before the run or between its halves, at any evaluation."""
    scheduler, x = ours(sampler), normal()
    expected = run(scheduler, x)
    for cut in range(1, len(scheduler.timesteps), 1 if len(scheduler.timesteps) < 10 else 4):
        scheduler.set_timesteps(8)
        head, tail = scheduler.timesteps[:cut], scheduler.timesteps[cut:]
        assert torch.equal(loop(scheduler, loop(scheduler, x, head), tail), expected)
        scheduler.set_timesteps(8)
        half = loop(scheduler, x, scheduler.timesteps[:cut])
        assert torch.equal(loop(scheduler, half, scheduler.timesteps[cut:]), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["elements", "numbers", "arrays", "one-element tensors"])
def test_timesteps_in_whatever_form_are_the_same_run(sampler, kind):
    scheduler, x = ours(sampler), normal()
    expected = run(scheduler, x)
    scheduler.set_timesteps(8)
    form = {
        "elements": list,
        "numbers": lambda t: t.tolist(),
        "arrays": lambda t: list(t.numpy()),
        "one-element tensors": lambda t: [each.expand(2).clone() for each in t],
    }[kind](scheduler.timesteps)
    state = x
    for t in form:
        value = t if np.ndim(t) == 0 else t[0]
        state = scheduler.step(network(state, value), t, state).prev_sample
    assert torch.equal(state, expected)


def test_whole_numbers_stand_for_the_fractional_timesteps_that_they_come_from():
    """`int(t)` and `t.long()` cut a timestep off; the network is the caller's to ask."""
    scheduler, x = ours("dpmpp-2m", spacing="linspace"), normal()
    scheduler.set_timesteps(8)
    assert any(t != int(t) for t in scheduler.timesteps.tolist())
    expected = loop(scheduler, x, function=lambda x, t: torch.tanh(x))
    for cut in (int, lambda t: round(float(t)), lambda t: t.long()):
        scheduler.set_timesteps(8)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(torch.tanh(state), cut(t), state).prev_sample
        assert torch.equal(state, expected)


@pytest.mark.parametrize("wrong", [500.5, 3, -1.0, 1200, torch.tensor(333.3)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_timestep_that_is_none_of_the_grids_is_refused(sampler, wrong):
    scheduler, x = ours(sampler), normal()
    scheduler.set_timesteps(8)
    with pytest.raises(sds.UsageError, match="no step of this run starts at timestep"):
        scheduler.step(x, wrong, x)
    state = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    with pytest.raises(sds.UsageError, match=r"continues at timestep .*, and step was passed"):
        scheduler.step(x, wrong, state)
    # A refusal has changed nothing: the run goes on.
    for t in scheduler.timesteps[1:]:
        state = scheduler.step(network(state, t), t, state).prev_sample
    assert torch.isfinite(state).all()


@pytest.mark.parametrize("wrong", ["500", True, {}, [1.0, 2.0], torch.zeros(0)])
def test_a_timestep_that_is_no_number_is_refused(wrong):
    scheduler, x = ours("euler"), normal()
    scheduler.set_timesteps(8)
    with pytest.raises(sds.UsageError, match="timestep must be"):
        scheduler.step(x, wrong, x)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("stride", [2, 3])
def test_left_out_timesteps_are_noticed(sampler, stride):
    scheduler, x = ours(sampler), normal()
    scheduler.set_timesteps(8)
    with pytest.raises(sds.UsageError, match=r"pass each of scheduler\.timesteps once and in order"):
        loop(scheduler, x, list(scheduler.timesteps)[::stride])
    scheduler.set_timesteps(8)
    with pytest.raises(sds.UsageError, match=r"pass each of scheduler\.timesteps once and in order"):
        loop(scheduler, x, scheduler.timesteps.tolist()[::stride])


@pytest.mark.parametrize("edited", [False, True])
def test_two_steps_at_a_timestep_are_ddims_two_steps(edited):
    """Once for x0 and once, with the state edited in between, for the next state; beside diffusers' DDIM."""
    ends = []
    for scheduler in (ours("ddim", round_timesteps=True), diffusers.DDIMScheduler(**TRAILING)):
        scheduler.set_timesteps(10)
        x = normal()
        for t in scheduler.timesteps:
            x0 = scheduler.step(network(x, t), t, x).pred_original_sample
            x = x + 0.05 * x0 if edited else x
            x = scheduler.step(network(x, t), t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_steps_at_a_timestep_are_right_or_refused(sampler):
    scheduler, x = ours(sampler), normal()
    expected = run(scheduler, x)
    scheduler.set_timesteps(8)

    def twice() -> Tensor:
        state = x
        for t in scheduler.timesteps:
            scheduler.step(network(state, t), t, state)
            state = scheduler.step(network(state, t), t, state).prev_sample
        return state

    if sampler in FORGETFUL:
        found = twice()
        if sampler == "ddpm":  # the second step has other noise, as diffusers' has
            assert torch.isfinite(found).all()
            assert not torch.equal(found, expected)
        else:
            assert torch.equal(found, expected)
    else:
        with pytest.raises(sds.UsageError, match="continues at timestep"):
            twice()


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_state_of_ones_own_goes_on_from_any_timestep_of_the_grid(sampler):
    """Noise it again and go back (time travel), or go ahead: as the run that begins there."""
    scheduler, x = ours(sampler), normal()
    scheduler.set_timesteps(8)
    steps = list(scheduler.timesteps)
    state = loop(scheduler, x, steps[:6])
    again = state + 0.3 * normal(4)
    found = loop(scheduler, again, steps[2:])
    assert scheduler.step_index == 8
    scheduler.set_timesteps(8)
    assert torch.equal(found, loop(scheduler, again, scheduler.timesteps[2:]))
    with pytest.raises(sds.UsageError, match="this run ended after 6 evaluations; call set_timesteps"):
        scheduler.step(x, steps[0], x)


def test_a_step_begun_again_has_new_noise():
    """A second draw from the same state is independent of the first."""
    scheduler, x = ours("ddpm", seed=3), torch.zeros(4000, 1, 1, 1)
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[1]
    first = scheduler.step(torch.zeros_like(x), t, x).prev_sample.flatten()
    second = scheduler.step(torch.zeros_like(x), t, x).prev_sample.flatten()
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    assert abs(correlation) < 4 / 4000**0.5
    assert float(second.std()) == pytest.approx(float(first.std()), rel=4 / 2000**0.5)


def test_equal_timesteps_are_told_apart_by_their_place():
    """Rounded timesteps repeat where a grid is dense; the second of two equal ones is not the first again."""
    scheduler, x = ours("ddim", spacing="karras", round_timesteps=True), normal()
    scheduler.set_timesteps(60)
    whole = scheduler.timesteps.tolist()
    assert len(set(whole)) < len(whole)
    expected = loop(scheduler, x)
    scheduler.set_timesteps(60)
    state = x
    for t in scheduler.timesteps:
        scheduler.step(network(state, t), t, state)
        state = scheduler.step(network(state, t), t, state).prev_sample
    assert torch.equal(state, expected)


def test_the_step_index_is_the_place_among_all_timesteps():
    scheduler, x = ours("heun"), normal()
    scheduler.set_timesteps(8)
    assert scheduler.step_index is None
    state = x
    for i, t in enumerate(scheduler.timesteps):
        if i >= 6:
            state = scheduler.step(network(state, t), t, state).prev_sample
            assert scheduler.step_index == i + 1


# --- no wait, no float64 ----------------------------------------------------------------------------------------------


class Unread(TorchDispatchMode):
    """A device whose values are not read and that has no float64, as far as tensors of the meta device stand for it,
    and whose values are not read on the CPU either."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(func):
            raise AssertionError("a value was read")
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.device.type == "meta" and each.dtype == torch.float64:
                raise TypeError("the MPS framework doesn't support float64")
        return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m-sde", "unipc"])
def test_no_float64_and_no_read_on_the_device(kind, sampler):
    scheduler = ours(sampler, kind)
    scheduler.set_timesteps(5, device="meta")
    x = torch.empty(2, 4, 4, 4, device="meta")
    whole = torch.zeros(2, dtype=torch.long, device="meta")
    with Unread():
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.tanh(given), t, x, generator=torch.Generator().manual_seed(0)).prev_sample
        for noise in (scheduler.add_noise, scheduler.get_velocity):
            assert noise(x, x, scheduler.timesteps[2]).shape == x.shape
            assert noise(x, x, torch.full((2,), float(scheduler.timesteps.host[2]))).dtype == x.dtype
            if kind == "table":
                assert noise(x, x, whole).dtype == x.dtype
    assert x.device.type == "meta"


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp-2m", "dpm-fast"])
def test_elements_of_timesteps_are_known_without_a_read(sampler):
    """Also on the CPU, where a read would work, and so that a wrong one is noticed without one."""
    scheduler, x = ours(sampler), normal()
    scheduler.set_timesteps(5)
    with Unread():
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        scheduler.set_timesteps(5)
        state = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
        with pytest.raises(sds.UsageError, match="continues at timestep"):
            scheduler.step(x, scheduler.timesteps[-1], state)
    t = scheduler.timesteps[0]
    t.fill_(3.0)  # written over: it is what it says now
    scheduler.set_timesteps(5)
    with pytest.raises(sds.UsageError, match="no step of this run starts at timestep 3"):
        scheduler.step(x, t, x)


# --- gradients --------------------------------------------------------------------------------------------------------


def plain_x0(z: Tensor, t: Any, w: Tensor) -> Tensor:
    alpha, sigma = levels(t)
    return (z - sigma * torch.tanh(w * z)) / alpha


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp-2m", "heun", "unipc"])
@pytest.mark.parametrize("coordinates", ["native", "ve"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_the_tensor_that_is_handed_in(sampler, coordinates, dtype):
    """Guidance every few steps: detached, marked, handed in with equal values; against x0 written out."""
    scheduler, w = ours(sampler, round_timesteps=True, coordinates=coordinates), torch.tensor(0.3, dtype=dtype)
    x = normal(dtype=dtype)
    scheduler.set_timesteps(6)
    for i, t in enumerate(scheduler.timesteps):
        if i % 2 == 0:
            x = scheduler.step(torch.tanh(w * x), t, x).prev_sample
            continue
        x = x.detach().requires_grad_()
        out = scheduler.step(torch.tanh(w * x), t, x)
        (found,) = torch.autograd.grad(out.pred_original_sample.square().sum(), x)
        z = x.detach().requires_grad_()
        (expected,) = torch.autograd.grad(plain_x0(z, t, w).square().sum(), z)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4 * float(expected.abs().max()))
        x = out.prev_sample.detach()


def test_gradients_of_a_state_that_goes_on_undetached():
    """prev_sample itself is a tensor that is handed in; so is what it came from."""
    for words in ({}, {"coordinates": "ve"}):
        scheduler, w = ours("ddim", round_timesteps=True, **words), torch.tensor(0.3, dtype=torch.float64)
        scheduler.set_timesteps(4)
        first = normal(dtype=torch.float64).requires_grad_()
        t, then = scheduler.timesteps[0], scheduler.timesteps[1]
        middle = scheduler.step(torch.tanh(w * first), t, first).prev_sample
        last = scheduler.step(torch.tanh(w * middle), then, middle).pred_original_sample
        found = torch.autograd.grad(last.square().sum(), [middle, first])
        z = first.detach().requires_grad_()
        alpha, sigma = levels(then)
        y = alpha * plain_x0(z, t, w) + sigma * torch.tanh(w * z)
        expected = torch.autograd.grad(plain_x0(y, then, w).square().sum(), [y, z])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_detached_latents_cut_the_graph(sampler):
    scheduler, x = ours(sampler), normal().requires_grad_()
    scheduler.set_timesteps(4)
    t, then = scheduler.timesteps[:2]
    middle = scheduler.step(torch.tanh(x), t, x).prev_sample.detach()
    out = scheduler.step(torch.tanh(middle), then, middle)
    assert not out.prev_sample.requires_grad
    assert not out.pred_original_sample.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_float32_state_with_gradients_on(dtype):
    """An echo that requires gradients is still the run's own unrounded state, to the bit."""
    scheduler, x, fixed = ours("dpmpp-2m"), normal().to(dtype), normal(5)
    ends = []
    for tracked in (False, True):
        scheduler.set_timesteps(12)
        state = x
        for t in scheduler.timesteps:
            state = state.detach().requires_grad_(tracked)
            out = scheduler.step(fixed.to(dtype), t, state)
            if tracked:
                (gradient,) = torch.autograd.grad(out.pred_original_sample.float().sum(), state)
                alpha = float(scheduler.alphas_cumprod[float(t)]) ** 0.5
                torch.testing.assert_close(gradient.float(), torch.full_like(fixed, 1 / alpha), rtol=2e-2, atol=0.0)
            state = out.prev_sample
        ends.append(state.detach())
    assert torch.equal(ends[0], ends[1])


def test_gradients_reach_a_networks_parameter_through_a_whole_run():
    """Against central differences."""
    for sampler in ("ddim", "heun", "dpmpp-2m", "unipc"):
        scheduler, x = ours(sampler), normal(dtype=torch.float64)

        def end(w: Tensor, scheduler: Any = scheduler, x: Tensor = x) -> Tensor:
            return run(scheduler, x, 4, function=lambda x, t: torch.tanh(w * x)).square().sum()

        w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(end(w), w)
        with torch.no_grad():
            expected = (end(w + 1e-4) - end(w - 1e-4)) / 2e-4
        assert float(found) == pytest.approx(float(expected), rel=1e-4)


# --- copies -----------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
}
GRIDS: dict[str, dict[str, Any]] = {
    "steps": {"num_inference_steps": 6},
    "timesteps": {"timesteps": [900, 500, 100]},
    "sigmas": {"sigmas": np.array([9.0, 2.0, 0.3])},
    "strength": {"num_inference_steps": 4, "strength": 0.6},
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("grid", GRIDS)
def test_copies_keep_the_grid(how, grid):
    for sampler in ("dpmpp-2m", "heun"):
        scheduler, x = ours(sampler, spacing=None), normal()
        scheduler.set_timesteps(**GRIDS[grid])
        scheduler.set_begin_index(scheduler.order)
        found = COPIES[how](scheduler)
        assert torch.equal(found.timesteps + 0, scheduler.timesteps + 0)
        assert (found.num_inference_steps, found.order) == (scheduler.num_inference_steps, scheduler.order)
        assert (found.begin_index, found.step_index) == (scheduler.order, None)
        mine = loop(found, x)  # each has a run of its own
        assert torch.equal(loop(scheduler, x), mine)
        fresh = COPIES[how](ours(sampler))
        assert fresh.num_inference_steps is None


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_other_kinds_of_grid(how):
    flow = sds.Scheduler("euler", trained={**KINDS["flow"], "use_dynamic_shifting": True})
    flow.set_timesteps(5, mu=0.8)
    trig = ours("consistency", "trigflow")
    trig.set_timesteps(2, max_timesteps=1.5708, intermediate_timesteps=1.3)
    for scheduler in (flow, trig):
        assert torch.equal(COPIES[how](scheduler).timesteps + 0, scheduler.timesteps + 0)


def test_timesteps_are_copied_as_plain_numbers():
    scheduler = ours("dpmpp-2m")
    scheduler.set_timesteps(4)
    for how in COPIES.values():
        assert torch.equal(how(scheduler.timesteps), scheduler.timesteps + 0)
        element = how(scheduler.timesteps[2])
        assert float(element) == float(scheduler.timesteps[2])


# --- training scripts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("copied", [False, True])
def test_the_training_schedule_of_flows(shift, copied):
    """SD3's, FLUX's and Qwen-Image's scripts look a batch's timesteps up in a copy, and their sigmas by them."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    found = sds.Scheduler.from_config({**theirs.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}, "euler")
    found = copy.deepcopy(found) if copied else found
    torch.testing.assert_close(found.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(found.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-7)
    picked = found.timesteps[torch.tensor([0, 500, 999])]
    places = [(found.timesteps == t).nonzero().item() for t in picked]
    torch.testing.assert_close(found.sigmas[places] * 1000, picked)


def test_the_training_schedule_of_other_kinds():
    for name in ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        theirs = getattr(diffusers, name)(**SD)
        found = sds.Scheduler.from_config({**theirs.config, "_class_name": name})
        assert found.timesteps.tolist() == theirs.timesteps.tolist() == list(range(999, -1, -1))
        with pytest.raises(AttributeError, match="on a DDPM table"):
            _ = found.sigmas
    for kind, name in (("edm", "EDMEulerScheduler"), ("consistency", "CMStochasticIterativeScheduler")):
        theirs, found = getattr(diffusers, name)(), ours("euler", kind)
        torch.testing.assert_close(found.timesteps, theirs.timesteps.float(), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(found.sigmas, theirs.sigmas.float(), rtol=1e-6, atol=1e-7)
        x = normal()
        torch.testing.assert_close(
            found.scale_model_input(x, found.timesteps[7]), theirs.scale_model_input(x, theirs.timesteps[7])
        )
    for kind in KINDS:  # all have one; a step before set_timesteps is refused
        found = ours("euler", kind)
        assert len(found.timesteps) > 30
        with pytest.raises(sds.UsageError, match="call set_timesteps before step"):
            found.step(normal(), found.timesteps[0], normal())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["one", "each", "element"])
def test_handing_the_target_to_step_gives_the_data_back(kind, shape):
    if kind == "table":
        config = {**KINDS[kind], "prediction_type": "v_prediction"}
        scheduler = sds.Scheduler.from_config(config, "euler", spacing="trailing")
    else:
        scheduler = ours("euler", kind, clip=False)
    scheduler.set_timesteps(6)
    x0, noise = (normal(seed, (2, 4, 4, 4), torch.float64) for seed in (1, 2))
    t = scheduler.timesteps[3]
    told = {"one": float(t), "each": torch.stack([t, t]), "element": t}[shape]
    target, x = scheduler.get_velocity(x0, noise, told), scheduler.add_noise(x0, noise, told)
    found = scheduler.step(target, t, x).pred_original_sample
    torch.testing.assert_close(found, x0, rtol=1e-4, atol=1e-4)


def test_targets_are_those_of_the_papers():
    x0, noise = normal(1, dtype=torch.float64), normal(2, dtype=torch.float64)
    sigma = 2.5
    found = ours("euler", "edm v").get_velocity(x0, noise, float(np.log(sigma) / 4))
    torch.testing.assert_close(found, (noise - sigma * x0) / (1 + sigma**2) ** 0.5)  # Karras et al. 2022, eq. 7
    edm, d = ours("euler", "edm").get_velocity(x0, noise, float(np.log(sigma) / 4)), 0.5
    skip, out = d**2 / (sigma**2 + d**2), sigma * d / (sigma**2 + d**2) ** 0.5
    torch.testing.assert_close(edm, (x0 - skip * (x0 + sigma * noise)) / out)
    torch.testing.assert_close(ours("euler", "flow").get_velocity(x0, noise, 400.0), noise - x0)
    torch.testing.assert_close(ours("euler", "reverse flow").get_velocity(x0, noise, 400.0), x0 - noise)
    trig = ours("euler", "trigflow").get_velocity(x0, noise, 0.7)
    torch.testing.assert_close(trig, np.cos(0.7) * 0.5 * noise - np.sin(0.7) * x0)
    torch.testing.assert_close(ours("euler", "ve").get_velocity(x0, noise, 4.0), -noise / 4)
    theirs = diffusers.DDPMScheduler(**SD)
    whole = torch.tensor([300])
    torch.testing.assert_close(ours("euler").get_velocity(x0, noise, whole), theirs.get_velocity(x0, noise, whole))


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "heun", "deis", "quality", "unipc", "euler", "lms", "ddim"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_buffers_that_a_loop_writes_over_are_not_the_runs(sampler: str, dtype: torch.dtype) -> None:
    """Static buffers, as CUDA graphs have them, for the network's input and output; and states zeroed once used."""
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    scheduler = sds.Scheduler(sampler, trained={**SD, "timestep_spacing": "trailing"})

    def run(static: bool) -> torch.Tensor:
        scheduler.set_timesteps(8)
        answer, given, y = torch.empty_like(start), torch.empty_like(start), start.clone()
        for t in scheduler.timesteps:
            if static:
                answer.copy_(torch.tanh(2 * given.copy_(y)))
                old, y = y, scheduler.step(answer, t, given).prev_sample
                old.zero_()
            else:
                y = scheduler.step(torch.tanh(2 * y), t, y).prev_sample
        return y

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m", "fast", "quality"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_edits_that_torch_does_not_count_are_respected(sampler: str, dtype: torch.dtype) -> None:
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    scheduler = sds.Scheduler(sampler, trained={**SD, "timestep_spacing": "trailing"})

    def halve(y: torch.Tensor) -> None:
        y.mul_(0.5)

    def halve_data(y: torch.Tensor) -> None:
        y.data[...] = 0.5 * y

    def halve_array(y: torch.Tensor) -> None:
        y.numpy()[...] *= 0.5

    def run(edit: Any) -> torch.Tensor:
        scheduler.set_timesteps(8)
        y = start.clone()
        for i, t in enumerate(scheduler.timesteps):
            y = scheduler.step((0.9 * y.float()).to(dtype), t, y).prev_sample
            if i == 4:
                edit(y)
        return y.float()

    expected = run(halve)
    assert float((run(lambda y: None) - expected).abs().max()) > 1e-3
    for edit in (halve_data, halve_array):
        torch.testing.assert_close(run(edit), expected, rtol=2e-3, atol=2e-3)


def test_copies_of_a_scheduler_whose_run_has_ended_keep_the_grid() -> None:
    scheduler = sds.Scheduler("dpmpp-2m", trained=SD)
    scheduler.set_timesteps(6)
    x = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    for again in (copy.copy(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert again.timesteps.tolist() == scheduler.timesteps.tolist()
        assert again.num_inference_steps == 6


def test_a_begin_index_is_a_whole_number_of_the_grid() -> None:
    scheduler = sds.Scheduler("ddim", trained=SD)
    scheduler.set_begin_index(3)  # before there is a grid, as some pipelines do
    assert scheduler.begin_index == 3
    scheduler.set_timesteps(10)
    for wrong in (-1, 2.5, "a", None):
        with pytest.raises(sds.UsageError, match="begin_index must be a whole number"):
            scheduler.set_begin_index(wrong)  # type: ignore[arg-type]
    with pytest.raises(sds.UsageError, match="begin_index is 100, but there are only 10 timesteps"):
        scheduler.set_begin_index(100)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("dopri5", 6)])
def test_the_order_of_odeint_is_that_of_its_method(method: str, order: int) -> None:
    pytest.importorskip("torchdiffeq")
    scheduler = sds.Scheduler(f"odeint:{method}", trained={**SD, "timestep_spacing": "trailing"}, adaptive=False)
    scheduler.set_timesteps(12)
    assert scheduler.order == order
    assert float(scheduler.timesteps[6 * order :][0]) == pytest.approx(float(scheduler.timesteps[6 * order]), abs=1e-3)
