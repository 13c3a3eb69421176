"""`Stepper`: runs advanced by hand equal `sample`'s; copies, branches, other samples and stored runs."""

import copy
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from torch import Tensor

import sdesamplers as sds
from sdesamplers.path.noise import branch_seed
from sdesamplers.testing import check_sampler

PROCESS = sds.VP()


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x * (1 + t.view(-1, 1)))


def new(sampler: str = "dpmpp-2m-sde", process: sds.SDE = PROCESS, **arguments: Any) -> sds.Stepper:
    usual: dict[str, Any] = {"prediction": "epsilon", "shape": (5,), "steps": 10, "num_samples": 4, "seed": 3}
    usual |= arguments
    return sds.Stepper(process, sampler, **usual)


def advanced(stepper: sds.Stepper, count: int = 1000) -> sds.Stepper:
    """A stepper after some evaluations, or at the end."""
    for _ in range(count):
        if stepper.is_done:
            break
        stepper.send(network(stepper.x, stepper.t))
    return stepper


def pickled(stepper: sds.Stepper) -> sds.Stepper:
    found: sds.Stepper = pickle.loads(pickle.dumps(stepper))
    return found


def chain() -> sds.Stepper:
    times = [1.25 * k for k in range(8, -1, -1)]
    langevin = sds.LangevinSDE(torch.neg)
    return new("mala", langevin, prediction="score", shape=(3,), times=times, steps=None, start=torch.ones(4, 3))


def restored(stepper: sds.Stepper) -> sds.Stepper:
    made = chain()
    made.load_state_dict(stepper.state_dict())
    return made


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, restored])
def test_a_reused_buffer_of_log_densities_changes_no_copy(copied: Callable[[sds.Stepper], sds.Stepper]) -> None:
    """MALA depends on all densities so far, which a copy of its run replays."""
    found = []
    for reuse in (False, True):
        stepper, buffer = chain(), torch.empty(4)
        while not stepper.is_done:
            density = -stepper.x.square().sum(1) / 2
            density = buffer.copy_(density) if reuse else density
            stepper.send(-stepper.x, log_density=density)
            if reuse and not stepper.is_done:
                buffer.fill_(1e9)
                stepper = copied(stepper)
        found.append(stepper.x)
    assert torch.equal(*found)


# --- the same run as `sample` -----------------------------------------------------------------------------------------

NAMES = sorted(sds.samplers())


@pytest.mark.parametrize("name", mostly_slow(NAMES, keep=("dpmpp-3m-sde", "euler-cfgpp", "paradigms")))
def test_copies_continue_bit_for_bit(name: str) -> None:
    """Copied, pickled and stored before every evaluation, by hand and in a pipeline's loop."""
    check_sampler(name, checks=["resumed"]).require()


@pytest.mark.parametrize("coordinates", ["native", "ve", "flow", "angle"])
@pytest.mark.parametrize("sampler", ["euler", "unipc", "ddpm"])
def test_the_samples_are_those_of_sample(coordinates: str, sampler: str) -> None:
    model = sds.FunctionModel(network, PROCESS, "epsilon", (5,))
    arguments: dict[str, Any] = {"steps": 6, "seed": 4, "first_index": 2, "num_samples": 3, "coordinates": coordinates}
    expected = sds.sample(model, sampler, **arguments)
    stepper = advanced(new(sampler, **arguments))
    assert torch.equal(stepper.result.samples, expected.samples)
    assert torch.equal(stepper.x, expected.samples)
    result = stepper.result
    assert (result.nfe, result.recipe, result.indices) == (expected.nfe, expected.recipe, [2, 3, 4])
    others = new(sampler, **{**arguments, "num_samples": None, "first_index": 0}, indices=[4, 2])
    assert torch.equal(advanced(others).x, expected.samples[[2, 0]])


def test_the_flow_of_a_gaussian_is_followed() -> None:
    """For N(1, 0.5^2) eps is linear in x, and x_0 = 1 + 0.5 x_1; the error is the first step's, h^2 / 2."""
    process, start = sds.RectifiedFlow(), torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64)
    stepper = sds.Stepper(process, "ab", prediction="flow", start=start, steps=200, dtype=torch.float64)
    while not stepper.is_done:
        x, t = stepper.x, stepper.t.view(-1, 1)
        variance = (1 - t) ** 2 * 0.25 + t**2
        eps = t / variance * (x - (1 - t))
        x0 = 1 + (1 - t) * 0.25 / variance * (x - (1 - t))
        stepper.send(eps - x0)
    torch.testing.assert_close(stepper.x, 1 + 0.5 * start, rtol=0, atol=0.5 / 200**2)


def test_the_network_time_is_that_of_the_convention() -> None:
    """A flow model that receives 1000 t, and one whose time runs from noise to data."""
    forward = sds.Stepper(sds.RectifiedFlow(), "euler", prediction="flow", shape=(2,), steps=4, clock=1000)
    backward = sds.Stepper(
        sds.reversed(sds.RectifiedFlow()), "euler", prediction="flow", shape=(2,), steps=4, clock=lambda t: 1000 * t
    )
    received: list[list[float]] = [[], []]
    while not forward.is_done:
        received[0].append(float(forward.t))
        received[1].append(float(backward.t))
        forward.send(forward.x)
        backward.send(-backward.x)  # dx/dt of the reversed time
    np.testing.assert_allclose(received, [[1000, 750, 500, 250], [0, 250, 500, 750]], rtol=1e-6)
    torch.testing.assert_close(forward.x, backward.x, rtol=1e-6, atol=0)


def test_flow_maps_receive_the_end_of_the_step() -> None:
    stepper = sds.Stepper(sds.RectifiedFlow(), "flow-map-euler", prediction="flow", shape=(2,), steps=2, clock=10)
    assert stepper.end is not None
    assert (stepper.t.tolist(), stepper.end.tolist()) == ([10.0], [5.0])
    assert new("euler").end is None


def test_inputs_of_several_points_and_of_single_samples() -> None:
    """`paradigms` evaluates a window of the grid at once; adaptive methods evaluate the samples that still run."""
    window = new("paradigms", window=3, num_samples=2)
    assert (len(window.requests), window.x.shape, window.t.shape) == (3, (6, 5), (6,))
    assert window.rows.tolist() == [0, 1] * 3
    with pytest.raises(sds.UsageError, match=r"3 points at once; read stepper\.requests"):
        window.point  # noqa: B018
    free, model = new("rk45", steps=None, rtol=1e-4), sds.FunctionModel(network, PROCESS, "epsilon", (5,))
    seen = set()
    while not free.is_done:
        seen.add(len(free.rows))
        free.send(network(free.x, free.t))
    expected = sds.sample(model, "rk45", rtol=1e-4, num_samples=4, seed=3)
    assert len(seen) > 1
    assert torch.equal(free.x, expected.samples)
    assert free.result.nfe_per_sample.tolist() == expected.nfe_per_sample.tolist()
    assert expected.accepted is not None
    assert free.result.accepted is not None
    assert free.result.accepted.tolist() == expected.accepted.tolist()


@pytest.mark.parametrize("sampler", ["ddpm", "churn"])  # churn draws before its first evaluation
def test_log_probabilities_and_their_replay(sampler: str) -> None:
    model = sds.FunctionModel(network, PROCESS, "epsilon", (5,))
    expected = sds.sample(model, sampler, steps=6, num_samples=4, seed=3, log_probs=True)
    stepper = new(sampler, steps=6, log_probs=True)
    while not stepper.is_done:
        stepper = pickled(copy.deepcopy(stepper))
        advanced(stepper, 1)
    result = stepper.result
    assert expected.log_probs is not None
    assert result.log_probs is not None
    assert torch.equal(result.log_probs, expected.log_probs)
    torch.testing.assert_close(sds.replay_log_probs(model, result), expected.log_probs, rtol=1e-9, atol=1e-9)


# --- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinates", ["native", "ve"])
def test_edits_are_those_of_a_callback(coordinates: str) -> None:
    def edit(event: sds.Event) -> None:
        if event.evaluation == 3:
            event.x = torch.where(mask, event.x, event.x + 0.5 * event.point.scale)

    mask = torch.arange(5) < 3
    model = sds.FunctionModel(network, PROCESS, "epsilon", (5,))
    arguments: dict[str, Any] = {"steps": 10, "num_samples": 4, "seed": 3, "coordinates": coordinates}
    expected = sds.sample(model, "dpmpp-2m", callback=edit, **arguments).samples
    for in_place in (False, True):
        stepper = advanced(new("dpmpp-2m", coordinates=coordinates), 3)
        if in_place:
            stepper.x[:, 3:] += 0.5
        else:
            stepper.x = torch.where(mask, stepper.x, stepper.x + 0.5)
        for found in (copy.deepcopy(stepper), pickled(stepper), stepper.take([0, 1, 2, 3]), stepper):
            torch.testing.assert_close(advanced(found).x, expected, rtol=1e-5, atol=1e-5)
    one = advanced(new("ddim", coordinates=coordinates), 3)
    one.x = one.x.clone()  # nothing is edited: the sampler's own values, without a rounding to native coordinates
    assert torch.equal(advanced(one).x, advanced(new("ddim", coordinates=coordinates)).x)


# --- other noise, other samples ---------------------------------------------------------------------------------------


def step_noise(before: Tensor, output: Tensor, after: Tensor, at: float, to: float) -> Tensor:
    """The normal that DDPM's step has added, from its published mean and variance (Ho et al. 2020, eq. 6-7)."""
    (a, s), (b, r) = ((float(PROCESS.alpha(t)), float(PROCESS.sigma(t))) for t in (at, to))
    x0 = (before - s * output) / a
    fresh = 1 - (r * a / (s * b)) ** 2
    mean = (a * r**2) / (b * s**2) * before + b * fresh * x0
    return (after - mean) / (r * fresh**0.5)


def test_a_branch_draws_the_noise_of_its_own_seed() -> None:
    """Draw 4 of the stream of steps, keyed by (the branch's seed, the sample's index)."""
    stepper = advanced(new("ddpm", dtype=torch.float64), 3)
    before, at = stepper.x.clone(), float(stepper.times[0])
    output = network(before, stepper.t)
    for branch, seeds in ((stepper, [3] * 4), (stepper.branch(7), [branch_seed(3, j, 7) for j in range(4)])):
        branch.send(output)
        found = step_noise(before, output, branch.x, at, float(branch.times[0]))
        normals = sds.NormalSource(seeds, range(4), (5,)).draw(sds.NormalSource.PATH, 4)
        torch.testing.assert_close(found, normals.double(), rtol=1e-6, atol=1e-6)
    assert len({branch_seed(3, j, key) for j in range(20) for key in range(20)}) == 400


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("sampler", ["dpmpp-2m-sde", "sa-solver", "seeds-2", "euler-maruyama"])
def test_branches(sampler: str, noise: str) -> None:
    stepper = advanced(new(sampler, noise=noise), 4)
    one, again, other, plain = stepper.branch(1), stepper.branch(1), stepper.branch(2), copy.deepcopy(stepper)
    nested = advanced(advanced(stepper.branch(1), 2).branch(2), 1)
    stored = pickled(nested)
    ends = [advanced(each).x for each in (one, again, other, plain, stepper, nested, stored)]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[3], ends[4])
    assert torch.equal(ends[5], ends[6])
    assert torch.equal(ends[4], advanced(new(sampler, noise=noise)).x)
    for first, second in ((0, 2), (0, 4), (2, 4), (5, 0), (5, 2)):
        assert (ends[first] - ends[second]).abs().amin(1).min() > 0


@pytest.mark.parametrize("noise", ["brownian", "pyramid", "coloured", "offset"])
def test_all_noise_sources_branch(noise: str) -> None:
    start = advanced(new("ddpm", noise=noise, shape=(1, 4, 4)), 0)

    def end(stepper: sds.Stepper) -> Tensor:
        while not stepper.is_done:
            stepper.send(torch.tanh(stepper.x))
        return stepper.x

    half = copy.deepcopy(start)
    for _ in range(4):
        half.send(torch.tanh(half.x))
    branch, copied, stored = half.branch(5), copy.deepcopy(half), pickled(half.branch(5))
    expected = end(start)
    assert torch.equal(end(copied), expected)
    assert not torch.equal(end(branch), expected)
    assert torch.equal(branch.x, end(stored))


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("sampler", ["dpmpp-3m-sde", "unipc", "reversible-heun"])
def test_samples_are_taken_out_of_a_run(sampler: str, noise: str) -> None:
    whole = advanced(new(sampler, noise=noise)).x
    stepper = advanced(new(sampler, noise=noise), 4)
    part = stepper.take([2, 0])
    assert part.indices == [2, 0]
    assert torch.equal(advanced(part).x, whole[[2, 0]])
    assert torch.equal(advanced(stepper).x, whole)


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-3m-sde"])
def test_resampled_particles_have_their_own_noise(sampler: str, noise: str) -> None:
    whole = advanced(new(sampler, noise=noise)).x
    stepper = advanced(new(sampler, noise=noise), 4).resample([0, 0, 2, 2])
    again = pickled(advanced(copy.deepcopy(stepper), 2))
    end = advanced(stepper).x
    assert torch.equal(end[[0, 2]], whole[[0, 2]])
    assert (end[[1, 3]] - end[[0, 2]]).abs().min() > 0
    assert torch.equal(advanced(again).x, end)
    twice = advanced(advanced(new(sampler, noise=noise), 2).resample([1, 1, 1, 3]), 3).resample([0, 1, 3, 3])
    assert torch.equal(advanced(copy.deepcopy(twice)).x, advanced(pickled(twice)).x)


# --- what is kept -----------------------------------------------------------------------------------------------------

KEPT = {"euler": 0, "ddim": 0, "ddpm": 0, "heun": 1, "dpmpp-2m": 1, "dpmpp-3m": 2, "lms": 3, "sa-solver": 2, "rk4": 3}


@pytest.mark.parametrize(("sampler", "most"), KEPT.items())
def test_only_the_predictions_that_matter_are_kept(sampler: str, most: int) -> None:
    """A k-step method needs its last k - 1 predictions, a method of k stages those of the step, beside the next one."""
    stepper, kept = new(sampler, steps=30), 0
    while not stepper.is_done:
        advanced(stepper, 1)
        kept = max(kept, stepper.kept)
    assert kept == most


def test_methods_that_read_values_keep_everything() -> None:
    free = advanced(new("rk45", steps=None), 20)
    assert free.kept == 20


def test_draws_that_do_not_matter_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, draw = [0], sds.NormalSource.draw

    def counted(self: sds.NormalSource, *args: Any, **kwargs: Any) -> Tensor:
        drawn[0] += 1
        return draw(self, *args, **kwargs)

    stepper = advanced(new("dpmpp-2m-sde", steps=20), 12)
    monkeypatch.setattr(sds.NormalSource, "draw", counted)
    advanced(copy.deepcopy(stepper), 1)
    assert drawn[0] <= 2  # that of the step, and that on which the last prediction's state depends


@sds.sampler("careful", order=None, reference="none")
def careful(x: Tensor, path: sds.Path) -> sds.Run:
    """Extrapolates, and starts again with the older of its two last slopes if a state was edited."""
    last = older = torch.zeros_like(x)
    for now, then in path.steps:
        out = yield x, now
        slope = out.velocity if out.x is x else older
        x = out.x + (then.time - now.time) * (1.5 * slope - 0.5 * last)
        older, last = last, out.velocity
    return x


@sds.sampler("reader", order=None, reference="none")
def reader(x: Tensor, path: sds.Path) -> sds.Run:
    """Reads a value, and takes shorter steps from then on."""
    factor = 1.0
    for now, then in path.steps:
        out = yield x, now
        if float(out.velocity.mean()) > 0:
            factor *= 0.9
        x = out.x + factor * (then.time - now.time) * out.velocity
    return x


@sds.sampler("buffered", order=None, reference="none")
def buffered(x: Tensor, path: sds.Path) -> sds.Run:
    """Keeps all of its states in one tensor, of which it requests views."""
    states = torch.stack([x] * 3)
    for k, (now, then) in enumerate(path.steps):
        out = yield states[k % 3], now
        states[(k + 1) % 3] = out.x + (then.time - now.time) * out.velocity + 0.01 * states[(k + 2) % 3]
    return states[len(path.steps) % 3]


@pytest.mark.parametrize("spec", [careful, reader, buffered])
def test_samplers_of_other_kinds(spec: Any) -> None:
    if spec is not careful:  # a pipeline's loop passes states back in new tensors, so that they look edited
        check_sampler(spec, checks=["resumed"]).require()
    for edits in ([], [4], [3, 4], [4, 5, 6]):
        plain, copied = (sds.Stepper(PROCESS, spec, prediction="v", shape=(3,), steps=12) for _ in range(2))
        while not plain.is_done:
            for stepper in (plain, copied):
                if stepper.evaluations in edits:
                    stepper.x = stepper.x + 0.3
            copied = copy.deepcopy(copied)
            for stepper in (plain, copied):
                stepper.send(torch.tanh(stepper.x))
        assert torch.equal(plain.x, copied.x)


def test_a_noise_source_that_cannot_skip_draws() -> None:
    class Plain:
        def __init__(self, source: sds.NormalSource) -> None:
            self.source, self.count = source, 0

        def __call__(self, start: float, end: float, rows: Any = None) -> Tensor:
            self.count += 1
            return self.source.draw(sds.NormalSource.AUXILIARY, self.count)

    @sds.noise_source("plain")
    def plain(source: sds.NormalSource, shortest: float) -> Plain:
        """Independent noise of another stream."""
        return Plain(source)

    stepper = advanced(new("ddpm", noise=plain), 5)
    expected = advanced(copy.deepcopy(stepper)).x
    assert torch.equal(advanced(stepper).x, expected)


# --- stored runs ------------------------------------------------------------------------------------------------------


def test_a_stored_run_is_plain_data() -> None:
    stepper = advanced(new("dpmpp-3m-sde"), 5)
    file = io.BytesIO()
    torch.save(stepper.state_dict(), file)
    file.seek(0)
    again = new("dpmpp-3m-sde", seed=0, num_samples=1)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert (again.seed, again.indices, again.evaluations) == (3, [0, 1, 2, 3], 5)
    assert torch.equal(advanced(again).x, advanced(stepper).x)
    ended = new("dpmpp-3m-sde")
    ended.load_state_dict(stepper.state_dict())
    assert torch.equal(ended.result.samples, stepper.result.samples)


def test_a_stored_run_of_something_else_is_refused() -> None:
    state = advanced(new("dpmpp-2m"), 2).state_dict()
    for other, message in (
        (new("heun"), "a run with sampler='dpmpp-2m', and this stepper has 'heun'"),
        (new("dpmpp-2m", steps=9), "a run with steps=10, and this stepper has 9"),
        (new("dpmpp-2m", solver="heun"), "a run with options="),
        (new("dpmpp-2m", prediction="v"), "a run with prediction epsilon, and this stepper has v"),
        (new("dpmpp-2m", shape=(6,)), re.escape("a run with shape [5], and this stepper has [6]")),
        (new("dpmpp-2m", dtype=torch.float64), "a run with dtype torch.float32"),
        (new("dpmpp-2m", sds.VP(beta_max=10.0)), "a run on VP with another schedule than this stepper's VP"),
        (new("dpmpp-2m", sds.EDM()), "a run on VP with another schedule than this stepper's EDM"),
        (new("dpmpp-2m", clip=1.0), "a run with clip None, and this stepper has"),
        (new("dpmpp-2m", clock=1000), "a run with clock=1, and this stepper has 1000"),
    ):
        with pytest.raises(sds.UsageError, match=message):
            other.load_state_dict(state)
    for wrong in ({}, 3, {"recipe": {}, "run": {}, "format": 99}):
        with pytest.raises(sds.UsageError, match=r"no state of a Stepper|format 99"):
            new().load_state_dict(wrong)  # type: ignore[arg-type]


# --- autograd ---------------------------------------------------------------------------------------------------------


def test_gradients_flow_through_the_outputs() -> None:
    """Two Euler steps in rectified flow with outputs w and w: x_0 = x_1 - w."""
    start = torch.zeros(1, 1)
    stepper = sds.Stepper(sds.RectifiedFlow(), "euler", prediction="flow", start=start, steps=2, gradients=True)
    w = torch.tensor([[2.0]], requires_grad=True)
    stepper.send(w).send(w)
    (found,) = torch.autograd.grad(stepper.x.sum(), w)
    assert (stepper.x.item(), found.item()) == (-2.0, -1.0)
    plain = sds.Stepper(sds.RectifiedFlow(), "euler", prediction="flow", start=start, steps=2).send(w).send(w)
    assert not plain.x.requires_grad


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_callers_autograd_mode_does_not_matter(mode: Callable[[], Any]) -> None:
    expected = advanced(new("dpmpp-3m-sde")).x
    with mode():
        stepper = advanced(new("dpmpp-3m-sde"), 5)
        stepper = advanced(copy.deepcopy(stepper), 2)
    assert torch.equal(advanced(pickled(stepper)).x, expected)


@pytest.mark.parametrize("coordinates", ["native", "ve"])
def test_assigned_states_bring_their_own_graph(coordinates: str) -> None:
    """A state that is assigned detached has no gradient; one that is a leaf has that of the run from there on."""
    arguments: dict[str, Any] = {"gradients": True, "coordinates": coordinates, "dtype": torch.float64}
    stepper, w = new("euler", **arguments), torch.ones(4, 5, dtype=torch.float64, requires_grad=True)
    before = stepper.send(w * network(stepper.x, stepper.t)).x.clone()
    stepper.x = stepper.x.detach()
    assert not advanced(stepper).x.requires_grad
    unedited = new("euler", **arguments)
    unedited.send(network(unedited.x, unedited.t))
    assert torch.equal(advanced(stepper).x, advanced(unedited).x)

    def ended(state: Tensor) -> Tensor:
        again = new("euler", **arguments)
        again.send(network(again.x, again.t))
        again.x = state
        return advanced(again).x[1].sum()

    leaf = before.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(ended(leaf), leaf)
    change = torch.zeros_like(before)
    change[1, 2] = 1e-4
    numeric = (ended(before.detach() + change) - ended(before.detach() - change)) / 2e-4
    assert float(slope[1, 2]) == pytest.approx(float(numeric), rel=1e-6)


def test_assigned_states_are_copied() -> None:
    state = torch.full((4, 5), 0.25)
    assigned, stepped = new("euler"), new("euler")
    assigned.x = state
    stepped.step(stepped.x, prev_sample=state)
    for stepper in (assigned, stepped):
        stepper.x.add_(1.0)
        stepper.x = stepper.x.double()
        assert stepper.x.dtype is torch.float32
    assert torch.equal(state, torch.full((4, 5), 0.25))
    stored = assigned.state_dict()
    assigned.x.zero_()
    assert stored["edited"].all()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_refused() -> None:
    for arguments, message in (
        ({"shape": None}, "pass start, or the shape"),
        ({"indices": [1], "num_samples": 2}, "pass indices, or num_samples"),
        ({"indices": [], "num_samples": None}, "indices is empty"),
        ({"start": torch.zeros(3, 5)}, "start must have shape"),
        ({"start_time": 0.5}, "start_time is the time of start"),
        ({"prediction": "epsilonn"}, "epsilon"),
        ({"clock": "fast"}, "clock must be a factor"),
        ({"steps": None}, "needs steps"),
        ({"stepps": 3}, "steps"),
        ({"log_probs": True, "noise": "pyramid", "shape": (1, 4, 4)}, "log_probs need independent"),
    ):
        with pytest.raises(sds.UsageError, match=message):
            new(**arguments)  # type: ignore[arg-type]
    with pytest.raises(sds.UsageError, match="process must be a process"):
        new(process="vp")  # type: ignore[arg-type]


def test_outputs_that_do_not_fit_are_refused() -> None:
    stepper = new()
    for wrong, message in (
        (torch.zeros(4, 6), r"shape \(4, 5\), not torch.float32 of shape \(4, 6\)"),
        (torch.zeros(4, 5, dtype=torch.int64), "floating-point"),
        (None, "not None"),
    ):
        with pytest.raises(sds.UsageError, match=message):
            stepper.send(wrong)  # type: ignore[arg-type]
        with pytest.raises(sds.UsageError, match=message):
            stepper.x = wrong  # type: ignore[assignment]
    with pytest.raises(sds.NonFiniteError, match="output is not finite at evaluation 1"):
        stepper.send(torch.full((4, 5), torch.nan))
    with pytest.raises(sds.UsageError, match=r"needs the unguided output too: send\(output, unguided="):
        new("euler-cfgpp").send(torch.zeros(4, 5))
    with pytest.raises(sds.UsageError, match="is not over: it waits for evaluation 1"):
        stepper.result  # noqa: B018
    assert torch.equal(advanced(stepper).x, advanced(new()).x)  # a refused output leaves the run as it was
    for act in (
        lambda: stepper.send(torch.zeros(4, 5)),
        lambda: stepper.t,
        lambda: stepper.branch(1),
        lambda: stepper.take([0]),
    ):
        with pytest.raises(sds.UsageError, match="has ended"):
            act()


def test_a_copy_has_no_graph() -> None:
    stepper, w = new(gradients=True, log_probs=True), torch.ones(4, 5, requires_grad=True)
    for _ in range(3):
        stepper.send(w * network(stepper.x, stepper.t))
    ended = copy.deepcopy(advanced(copy.deepcopy(stepper)))
    for copied in (copy.deepcopy(stepper), pickled(stepper), stepper.take([1]), ended):
        record = copied._run.record
        assert record.log_probs
        assert not any(x.requires_grad for x in [*record.log_probs, *record.draws])
    assert torch.equal(ended.result.log_probs, advanced(stepper).result.log_probs.detach())


def test_samples_and_keys_that_do_not_exist_are_refused() -> None:
    with pytest.raises(sds.UsageError, match="rows is empty"):
        new().take([])
    stepper = new()
    for act, message in (
        (lambda: stepper.branch(-1), "key"),
        (lambda: stepper.branch(2**64), "key|seed"),
        (lambda: stepper.take([4]), "from 0 to 3"),
        (lambda: stepper.take([-1]), "each of rows"),
        (lambda: stepper.resample([0, 1]), "one ancestor for each of the 4"),
        (lambda: new("rk45", steps=None).take([0]), "gives each sample its own steps"),
        (lambda: new("paradigms").resample([0] * 4), "gives each sample its own steps"),
    ):
        with pytest.raises(sds.UsageError, match=message):
            act()


@sds.sampler("longer-on-a-device", order=None, reference="none")
def longer_on_a_device(x: Tensor, path: sds.Path) -> sds.Run:
    """Takes another step on devices that have values."""
    for now, then in path.steps[: 5 if x.is_meta else None]:
        out = yield x, now
        x = out.step_to(then)
    return x


def test_a_sampler_whose_steps_depend_on_the_device_runs_and_is_not_copied() -> None:
    stepper = advanced(new(longer_on_a_device), 8)  # type: ignore[arg-type]
    with pytest.raises(sds.PluginError, match="this run cannot be copied, because it has made more evaluations"):
        advanced(copy.deepcopy(stepper), 1)
    assert torch.equal(advanced(stepper).x, advanced(new("ddim")).x)


@pytest.mark.usefixtures("no_pickler_by_value")
def test_a_clock_without_a_name_cannot_be_pickled() -> None:
    stepper = advanced(new(clock=lambda t: 2 * t), 3)
    with pytest.raises(sds.UsageError, match="this Stepper cannot be pickled: clock is the function"):
        pickle.dumps(stepper)
    assert torch.equal(advanced(copy.deepcopy(stepper)).x, advanced(stepper).x)


@sds.sampler("failing", order=None, reference="none")
def failing(x: Tensor, path: sds.Path) -> sds.Run:
    """Fails at the second evaluation."""
    yield x, path.points[0]
    raise RuntimeError("no second evaluation")


def test_a_sampler_that_fails_ends_the_run() -> None:
    stepper = new(failing)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no second evaluation"):
        stepper.send(stepper.x)
    assert stepper.is_done
    with pytest.raises(sds.UsageError, match="has ended"):
        stepper.send(torch.zeros(4, 5))
    with pytest.raises(sds.UsageError, match="has no result"):
        stepper.result  # noqa: B018
