"""Steps as Gaussian transitions: mean, standard deviation, log-probability, given outcomes; replay of chosen steps."""

import copy
import io
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from lanes import mostly_slow
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import sdesamplers as sds

VP, FLOW = sds.VP(), sds.RectifiedFlow()
STOCHASTIC = sorted(name for name, spec in sds.samplers().items() if spec.stochastic and "stationary" not in spec.needs)
NO_DENSITY = {"annealed-langevin", "gotta-go-fast", "sra1", "sra3", "stochastic-heun"}
ODE_BY_DEFAULT = {"ddim": {"eta": 0.8}}
DENSE = sorted({*STOCHASTIC, *ODE_BY_DEFAULT} - NO_DENSITY)
KINDS = (
    "ddim",
    "dpm2-ancestral",
    "dpmpp-2m-sde",
    "dpmpp-sde",
    "euler-ancestral-cfgpp",
    "flow-sde",
    "mixed",
    "sa-solver",
)


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x + t.view(-1, *(1,) * (x.dim() - 1)))


def new(sampler: str, process: sds.SDE = VP, **arguments: Any) -> sds.Stepper:
    usual: dict[str, Any] = {"prediction": "epsilon", "shape": (5,), "steps": 6, "num_samples": 4, "seed": 3}
    return sds.Stepper(process, sampler, **{**usual, **ODE_BY_DEFAULT.get(sampler, {}), **arguments})


def stepped(stepper: sds.Stepper, count: int = 1000, outcomes: Any = None, dtype: Any = None) -> list[sds.Transition]:
    """The transitions of some evaluations, or of all; every network output is computed in `dtype`."""
    made: list[sds.Transition] = []
    plain = "unguided" in stepper.spec.needs
    while not stepper.is_done and len(made) < count:
        x, t = stepper.x, stepper.t
        output = network(x.to(dtype or x.dtype), t.to(dtype or t.dtype)).to(x.dtype)
        outcome = None if outcomes is None else outcomes[len(made)].to(x.dtype)
        made.append(stepper.step(output, prev_sample=outcome, unguided=0.5 * output if plain else None))
    return made


# --- which samplers have densities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(DENSE, keep=KINDS))
def test_a_step_is_the_gaussian_of_torch_distributions(name: str) -> None:
    for coordinates in ("native", "ve"):
        stepper = new(name, coordinates=coordinates, dtype=torch.float64)
        made, states = [], []
        while not stepper.is_done:
            made += stepped(stepper, 1)
            states.append(stepper.x)
        stochastic = [step for step in made if step.is_stochastic]
        assert stochastic
        for step, state in zip(made, states, strict=True):
            assert torch.equal(step.sample, state)  # in the model's coordinates, whatever the path's
            if step.is_stochastic:
                expected = Independent(Normal(step.mean, step.std), 1).log_prob(step.sample)
                torch.testing.assert_close(step.log_prob(), expected, rtol=1e-12, atol=1e-10)
                torch.testing.assert_close(step.log_prob("mean"), expected / 5, rtol=1e-12, atol=1e-10)
            else:
                assert torch.equal(step.mean, step.sample)
                assert not step.log_prob().any()
                assert step.std == 0.0


@pytest.mark.parametrize("name", sorted(NO_DENSITY | {"mala", "underdamped-langevin"}))
def test_samplers_without_a_density_give_the_reason(name: str) -> None:
    spec = sds.samplers()[name]
    process = sds.LangevinSDE(0.1) if "stationary" in spec.needs else VP
    stepper = new(name, process, prediction="score" if "stationary" in spec.needs else "epsilon")
    before = stepper.x
    with pytest.raises(sds.UsageError, match=re.escape(spec.no_density)):
        stepper.step(before)
    assert torch.equal(stepper.x, before)  # the run has not advanced
    assert stepper.evaluations == 0


def test_every_stochastic_sampler_has_densities_or_a_reason() -> None:
    declared = {name for name, spec in sds.samplers().items() if spec.no_density}
    assert declared == NO_DENSITY | {"mala", "underdamped-langevin"}
    assert set(STOCHASTIC) - declared <= set(DENSE)


def test_an_undeclared_sampler_whose_states_are_not_its_draws_is_refused() -> None:
    @sds.sampler("twice", order=None, stochastic=True)
    def twice(x: Tensor, path: sds.Path) -> sds.Run:
        """Two draws a step."""
        for now, then in path.steps:
            out = yield x, now
            x = path.draw(path.draw(out.x, 0.1, now, then), 0.1, now, then)
        return x

    with pytest.raises(sds.UsageError, match=r"2 draws.*no_density"):
        stepped(new(twice))


def test_coloured_noise_has_no_density_here() -> None:
    with pytest.raises(sds.UsageError, match="coloured"):
        stepped(new("ddpm", noise="pyramid", shape=(1, 8, 8)))


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(DENSE, keep=("flow-sde", "ddpm", "dpmpp-2m-sde", "er-sde", "cps")))
def test_float32_log_probs_are_those_of_float64(name: str) -> None:
    """With outputs of a bfloat16 network: the states, means and densities of the run are float32's."""
    shape = (3, 16, 16)
    single = new(name, FLOW, prediction="flow", shape=shape)
    start = single.x.clone()
    made = stepped(single, dtype=torch.bfloat16)
    outcomes = [step.sample for step in made]
    arguments: dict[str, Any] = {"start": start.double(), "dtype": torch.float64, "num_samples": None}
    double = new(name, FLOW, prediction="flow", shape=shape, **arguments)
    exact, plain = [], "unguided" in double.spec.needs
    for k, outcome in enumerate(outcomes):  # the same outputs, from the states of the float32 run
        x = start if k == 0 else outcomes[k - 1]
        output = network(x.bfloat16(), double.t.bfloat16()).double()
        unguided = 0.5 * output if plain else None
        exact.append(double.step(output, prev_sample=outcome.double(), unguided=unguided))
    assert any(step.is_stochastic for step in exact)
    for found, step in zip(made, exact, strict=True):
        assert found.mean.dtype is torch.float32
        # A sum of 768 terms of order 1, which may cancel.
        torch.testing.assert_close(found.log_prob(), step.log_prob(), rtol=1e-6, atol=768e-7)


def test_the_density_is_that_of_a_histogram() -> None:
    """Outcomes of one step from one state, in 32 bins; the density is integrated over each."""
    count = 20_000
    stepper = new("euler-maruyama", start=torch.full((count, 1), 0.4), shape=None, num_samples=None, eta=0.7)
    step = stepped(stepper, 1)[0]
    edges = torch.linspace(-4, 4, 33, dtype=torch.float64) * step.std + step.mean[0].double()
    found = torch.histogram(step.sample.double().flatten(), edges).hist / count
    halves = torch.linspace(0, 1, 51, dtype=torch.float64)
    inside = edges[:-1, None] + halves * (edges[1:] - edges[:-1])[:, None]  # the density's integral over each bin
    scored = sds.Transition(inside.reshape(-1, 1), step.mean[:1].double().expand(inside.numel(), 1), step.std, -0.1)
    expected = torch.trapezoid(scored.log_prob().exp().reshape(inside.shape), inside)
    error = (expected * (1 - expected) / count).sqrt()
    assert float(((found - expected) / error).abs().max()) < 4.5  # of 32 bins


def test_gradients_reach_the_outputs_and_take_the_outcome_as_constant() -> None:
    outputs = [torch.full((4, 5), 0.1 * k, dtype=torch.float64) for k in range(6)]
    outcomes = [step.sample for step in stepped(new("dpmpp-2m-sde", dtype=torch.float64))]

    def total(values: list[Tensor], gradients: bool = False) -> Tensor:
        stepper = new("dpmpp-2m-sde", dtype=torch.float64, gradients=gradients)
        return sum(stepper.step(v, prev_sample=x).log_prob().sum() for v, x in zip(values, outcomes, strict=True))

    leaves = [value.clone().requires_grad_() for value in outputs]
    total(leaves, gradients=True).backward()
    for k in range(5):  # the last step has no noise
        step = torch.zeros(4, 5, dtype=torch.float64)
        step[1, 2] = 1e-4
        above, below = ([v + sign * step if j == k else v for j, v in enumerate(outputs)] for sign in (1, -1))
        numeric = float(total(above) - total(below)) / 2e-4
        assert float(leaves[k].grad[1, 2]) == pytest.approx(numeric, rel=1e-6, abs=1e-6)
        assert numeric != 0
    free = new("ddpm", dtype=torch.float64, gradients=True)
    output = outputs[1].clone().requires_grad_()
    step = free.step(output)
    (gradient,) = torch.autograd.grad(step.log_prob().sum(), output, retain_graph=True)
    (slope,) = torch.autograd.grad(step.mean.sum(), output)
    torch.testing.assert_close(gradient, (step.sample - step.mean).detach() / step.std**2 * slope)


def test_kl_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(3, 4, 2, dtype=torch.float64) for _ in range(2))
    wide = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    for ours, theirs in ((0.3, 0.3), (0.3, 0.5), (wide, 0.7)):
        p, q = sds.Transition(a, a, ours, -0.1), sds.Transition(b, b, theirs, -0.1)
        expected = kl_divergence(*(Independent(Normal(mean, std), 2) for mean, std in ((a, ours), (b, theirs))))
        torch.testing.assert_close(p.kl(q), expected)
        torch.testing.assert_close(p.kl(q, "mean"), expected / 8)
    still = sds.Transition(a, a, 0.0, -0.1)
    assert not still.kl(sds.Transition(b, b, 0.0, -0.1)).any()
    with pytest.raises(sds.UsageError, match="same step"):
        still.kl(p)
    with pytest.raises(sds.UsageError, match="mean"):
        p.log_prob("average")


def test_the_divergence_of_two_models_rollouts_is_that_of_their_gaussians() -> None:
    """DDPM on N(m, v): x_s = A x_t + B + std z with A, B known, so that the rollouts of two models are two Gaussians.

    Their KL is the sum of E (dA x + dB)^2 / (2 std^2) over the first model's moments. It is compared with the mean over
    runs of the steps' own divergences, and of the log-ratio.
    """
    count, process = 4000, sds.VP()
    ours, theirs = sds.GaussianModel([0.5], 0.3, process), sds.GaussianModel([0.2], 0.4, process)
    result = sds.sample(ours, "ddpm", steps=8, num_samples=count, seed=2, log_probs=True, dtype=torch.float64)
    times = sds.sample(ours, "ddpm", steps=8, trajectory=True).trajectory.times[:-1]
    alpha, sigma = process.alpha(times), process.sigma(times)
    mean, variance, expected = 0.0, float(sigma[0] ** 2), 0.0
    for k in range(7):
        fresh = 1 - (sigma[k + 1] * alpha[k] / (sigma[k] * alpha[k + 1])) ** 2
        keep, std = alpha[k] * sigma[k + 1] ** 2 / (alpha[k + 1] * sigma[k] ** 2), sigma[k + 1] * math.sqrt(fresh)
        rules = []
        for m, v in ((0.5, 0.3), (0.2, 0.4)):  # E[x0 | x] = m + gain (x - alpha m)
            gain = alpha[k] * v / (alpha[k] ** 2 * v + sigma[k] ** 2)
            rules.append((keep + alpha[k + 1] * fresh * gain, alpha[k + 1] * fresh * m * (1 - gain * alpha[k])))
        da, db = rules[0][0] - rules[1][0], rules[0][1] - rules[1][1]
        expected += ((da * mean + db) ** 2 + da**2 * variance) / (2 * std**2)
        mean, variance = rules[0][0] * mean + rules[0][1], rules[0][0] ** 2 * variance + std**2
    ratio = result.log_probs - sds.replay_log_probs(theirs, result)
    found = ratio.sum(1)
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(count)
    arguments: dict[str, Any] = {"start": result.start, "dtype": torch.float64, "shape": None, "num_samples": None}
    steppers = [new("ddpm", process, steps=8, **arguments) for _ in range(2)]
    total = torch.zeros(count, dtype=torch.float64)
    for k in range(7):
        made = []
        for model, stepper in zip((ours, theirs), steppers, strict=True):
            made.append(stepper.step(model.predict(stepper.x, float(stepper.t[0])), prev_sample=result.draws[:, k]))
        total += made[0].kl(made[1])
    assert abs(float(total.mean()) - expected) < 4 * float(total.std()) / math.sqrt(count)
    assert float(total.std()) < float(found.std())


# --- given outcomes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(DENSE, keep=KINDS))
def test_scoring_the_states_of_a_run_gives_its_own_log_probs(name: str) -> None:
    """Under unchanged weights the importance ratio is exactly 1, and the run is the same bit for bit."""
    first = new(name, log_probs=True, coordinates="native")  # in others the states are rounded on the way
    made = stepped(first)
    seed = 3 if name == "churn" else 99  # it adds noise before its first evaluation too
    start = first.result.start
    again = new(name, log_probs=True, seed=seed, start=start, num_samples=None, coordinates="native")
    scored = stepped(again, outcomes=[step.sample for step in made])
    for a, b in zip(made, scored, strict=True):
        assert torch.equal(a.log_prob(), b.log_prob())
    assert torch.equal(again.x, first.x)
    ours, theirs = first.result, again.result
    assert torch.equal(ours.log_probs, theirs.log_probs)
    assert torch.equal(ours.visited, theirs.visited)


@pytest.mark.parametrize("name", ["dpmpp-2m-sde", "dpmpp-sde", "ddpm", "sa-solver", "predictor-corrector"])
def test_copies_continue_from_given_outcomes(name: str) -> None:
    stepper = new(name)
    for k in range(5):
        stepped(stepper, 1, outcomes=[0.1 * k + 0.3 * stepper.x])
    stored = io.BytesIO()
    torch.save(stepper.state_dict(), stored)
    stored.seek(0)
    loaded = new(name)
    loaded.load_state_dict(torch.load(stored))
    copies = [copy.deepcopy(stepper), pickle.loads(pickle.dumps(stepper)), loaded]
    taken = stepper.take([2, 0])
    stepped(stepper)
    for each in copies:
        stepped(each)
        assert torch.equal(each.x, stepper.x)
    stepped(taken)
    assert torch.equal(taken.x, stepper.x[[2, 0]])


def test_later_noise_does_not_depend_on_given_outcomes() -> None:
    for noise in ("independent", "brownian"):
        plain, given = new("ddpm", noise=noise), new("ddpm", noise=noise)
        first = stepped(plain, 1)[0]
        stepped(given, 1, outcomes=[first.sample])
        stepped(plain)
        stepped(given)
        assert torch.equal(plain.x, given.x)


def test_a_step_without_noise_continues_from_the_given_state() -> None:
    stepper, state = new("ddim", eta=0.0), torch.full((4, 5), 0.25)
    step = stepper.step(stepper.x, prev_sample=state)
    assert torch.equal(stepper.x, state)
    assert torch.equal(step.sample, state)
    assert not step.log_prob().any()
    assert not torch.equal(step.mean, state)
    for coordinates in ("native", "ve"):
        last = new("ddpm", steps=2, coordinates=coordinates)
        stepped(last, 1)
        last.step(last.x, prev_sample=state)
        assert torch.equal(last.x, state)
        assert torch.equal(last.result.samples, state)


def test_wrong_outcomes_are_refused_before_the_step() -> None:
    stepper = new("ddpm")
    for wrong in (torch.zeros(4, 4), torch.zeros(4, 5, dtype=torch.int64), [0.0]):
        with pytest.raises(sds.UsageError, match=r"prev_sample must be a floating-point tensor of shape \(4, 5\)"):
            stepper.step(stepper.x, prev_sample=wrong)
    assert stepper.evaluations == 0
    stepped(stepper)
    with pytest.raises(sds.UsageError, match="has ended"):
        stepper.step(torch.zeros(4, 5))


# --- replay of chosen steps -------------------------------------------------------------------------------------------


def counted(weight: float = 1.0) -> tuple[sds.FunctionModel, list[int]]:
    """A model, and the numbers of states of its evaluations so far."""
    sizes: list[int] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return weight * network(x, t)

    return sds.FunctionModel(predict, FLOW, "flow", (5,), dtype=torch.float64), sizes


PASSES = {"flow-sde": 2, "cps": 2, "ddpm": 2, "er-sde": 3, "dpmpp-2m-sde": 3, "dpmpp-3m-sde": 4, "sa-solver": 4}


@pytest.mark.parametrize(("name", "passes"), PASSES.items())
def test_chosen_steps_are_replayed_without_the_others(name: str, passes: int) -> None:
    """Two steps take two evaluations, and for multistep methods those before on which the first depends."""
    model, sizes = counted()
    result = sds.sample(model, name, steps=8, num_samples=6, seed=1, log_probs=True)
    assert result.transition_steps == [*range(7)]
    assert torch.equal(result.step_log_probs(), torch.cat([result.log_probs, torch.zeros(6, 1)], 1))
    other, sizes = counted(1.1)
    whole = sds.replay_log_probs(other, result)
    sizes.clear()
    found = sds.replay_log_probs(other, result, steps=[4, 5])
    assert sizes == [6] * passes
    assert torch.equal(found, whole[:, [4, 5]])
    assert torch.equal(sds.replay_log_probs(model, result, steps=[4, 5]), result.step_log_probs([4, 5]))
    assert sds.replay_log_probs(other, result, steps=[7, 2])[:, 0].tolist() == [0.0] * 6
    sizes.clear()
    part = sds.replay_log_probs(other, result, [5, 0, 3], steps=[5, 4, 4], batch_size=2)
    assert sizes == [2] * passes + [1] * passes
    torch.testing.assert_close(part, whole[[5, 0, 3]][:, [5, 4, 4]], rtol=1e-12, atol=1e-12)
    assert sds.replay_log_probs(other, result, slice(2), steps=[]).shape == (2, 0)


@pytest.mark.parametrize("name", ["dpmpp-sde", "churn", "predictor-corrector"])
def test_steps_of_several_evaluations_are_replayed_in_a_whole_run(name: str) -> None:
    model, _ = counted()
    result = sds.sample(model, name, steps=5, num_samples=3, log_probs=True)
    columns = [d for d, step in enumerate(result.transition_steps) if step == 2]
    found = sds.replay_log_probs(model, result, steps=[2])
    assert torch.equal(found[:, 0], result.log_probs[:, columns].sum(1))
    assert torch.equal(found, result.step_log_probs([2]))


def test_gradients_of_chosen_steps_are_finite_differences() -> None:
    weight = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def model(w: Any) -> sds.FunctionModel:
        return sds.FunctionModel(lambda x, t: w * network(x, t), FLOW, "flow", (5,), dtype=torch.float64)

    result = sds.sample(model(0.7), "dpmpp-2m-sde", steps=6, num_samples=3, log_probs=True)
    sds.replay_log_probs(model(weight), result, steps=[1, 3]).sum().backward()
    above, below = (float(sds.replay_log_probs(model(w), result, steps=[1, 3]).sum()) for w in (0.7001, 0.6999))
    assert float(weight.grad) == pytest.approx((above - below) / 2e-4, rel=1e-6)


def test_runs_by_hand_and_edited_runs_are_replayed_from_their_states() -> None:
    model, _ = counted()
    stepper = sds.Stepper(FLOW, "ddpm", prediction="flow", shape=(5,), steps=6, num_samples=3, log_probs=True)
    while not stepper.is_done:
        if stepper.evaluations == 3:
            stepper.x = stepper.x + 0.5
        stepper.step(network(stepper.x, stepper.t))
    result = stepper.result
    single = sds.FunctionModel(network, FLOW, "flow", (5,))
    assert torch.equal(sds.replay_log_probs(single, result, steps=[2, 3]), result.step_log_probs([2, 3]))

    def edit(event: sds.Event) -> None:
        if event.evaluation == 3:
            event.x = event.x + 0.5

    edited = sds.sample(model, "ddpm", steps=6, num_samples=3, callback=edit, log_probs=True)
    assert torch.equal(sds.replay_log_probs(model, edited, steps=[3]), edited.step_log_probs([3]))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde", "dpmpp-sde", "mixed", "churn"])
def test_edits_by_a_callback_are_part_of_a_replay(name: str, in_place: bool) -> None:
    """Also if only some batches were edited; the densities of the others have the gradient of an unedited run."""

    def edit(event: sds.Event) -> None:
        if event.evaluation == 3 and event.x[0, 2] > event.x[0, 0]:
            if in_place:
                event.x[:, 1:].add_(0.5)
            else:
                event.x = event.x + 0.5

    def model(w: Any) -> sds.FunctionModel:
        return sds.FunctionModel(lambda x, t: w * network(x, t), FLOW, "flow", (5,), dtype=torch.float64)

    arguments: dict[str, Any] = {"steps": 6, "num_samples": 6, "batch_size": 1, "log_probs": True}
    result = sds.sample(model(1.0), name, callback=edit, **arguments)
    plain = sds.sample(model(1.0), name, **arguments)
    assert result.log_probs is not None
    assert plain.log_probs is not None
    assert result.edited == [3]
    assert result.edited_rows is not None
    rows = result.edited_rows[:, 0]
    assert 0 < int(rows.sum()) < 6
    assert torch.equal(result.log_probs[~rows], plain.log_probs[~rows])
    assert not torch.equal(result.samples[rows], plain.samples[rows])
    stored = pickle.loads(pickle.dumps(result))
    torch.testing.assert_close(sds.replay_log_probs(model(1.0), stored), result.log_probs, rtol=1e-9, atol=1e-9)
    other = sds.replay_log_probs(model(1.1), stored, [5, 0, 2, 1], batch_size=3)
    unedited = sds.replay_log_probs(model(1.1), plain, [5, 0, 2, 1])
    kept = ~rows[[5, 0, 2, 1]]
    torch.testing.assert_close(other[kept], unedited[kept], rtol=1e-9, atol=1e-9)


def test_wrong_steps_and_rows_are_refused() -> None:
    model, _ = counted()
    result = sds.sample(model, "ddpm", steps=4, num_samples=3, log_probs=True)
    for arguments, reason in (
        ({"steps": [4]}, "the steps 0 to 3, not 4"),
        ({"steps": [-1]}, "steps"),
        ({"steps": "3"}, "sequence of whole numbers"),
        ({"rows": [3]}, "the samples 0 to 2, not 3"),
        ({"rows": "a"}, "a slice"),
        ({"rows": []}, "selects none"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(sds.UsageError, match=reason):
            sds.replay_log_probs(model, result, **arguments)
    with pytest.raises(sds.UsageError, match="log_probs=True"):
        sds.sample(model, "ddpm", steps=4).step_log_probs()
    result.transition_steps = None  # as in results that were stored by earlier versions
    with pytest.raises(sds.UsageError, match="without the steps"):
        sds.replay_log_probs(model, result, steps=[1])
    assert np.isfinite(sds.replay_log_probs(model, result).numpy()).all()


# --- rollouts with gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flow-sde", "dpmpp-2m-sde"])
def test_a_rollout_has_the_policy_gradient_of_its_scored_states(name: str) -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    found: list[Tensor] = []
    outcomes: list[Tensor] = []
    for _ in range(2):
        stepper, total = new(name, FLOW, prediction="flow", gradients=True, dtype=torch.float64), torch.zeros(())
        for outcome in [*outcomes] or [None] * 6:
            step = stepper.step(weight * network(stepper.x, stepper.t), prev_sample=outcome)
            outcomes.append(step.sample.detach())
            total = total + step.log_prob().sum()
        found += torch.autograd.grad(total, weight)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)
    assert found[0] != 0


# --- replay of runs by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "flow-sde", "dpmpp-2m-sde", "dpmpp-sde", "mixed"])
@pytest.mark.parametrize("coordinates", ["native", "angle"])
def test_whole_replays_have_the_edits_the_outcomes_and_the_clip_of_the_run(name: str, coordinates: str) -> None:
    arguments: dict[str, Any] = {"prediction": "flow", "log_probs": True, "clip": 0.3, "coordinates": coordinates}
    stepper = new(name, FLOW, steps=5, dtype=torch.float64, **arguments)
    while not stepper.is_done:
        k = stepper.evaluations
        if k == 2:
            stepper.x[:, 1:].add_(0.5)
        outcome = stepper.x + 0.1 if k == 3 else None
        stepper.step(network(stepper.x, stepper.t), prev_sample=outcome)
    stepper = pickle.loads(pickle.dumps(stepper))
    model, result = counted()[0], pickle.loads(pickle.dumps(stepper.result))
    assert result.edited
    found = sds.replay_log_probs(model, result)
    torch.testing.assert_close(found, result.log_probs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sds.replay_log_probs(model, result, [2, 1]), found[[2, 1]], rtol=1e-9, atol=1e-9)
    chosen = sds.replay_log_probs(model, result, steps=[1, 2, 3])
    torch.testing.assert_close(chosen, result.step_log_probs([1, 2, 3]), rtol=1e-9, atol=1e-9)


# --- samplers that evaluate some samples alone ------------------------------------------------------------------------


def test_samples_that_take_their_own_steps_have_no_common_states():
    """Parallel sampling (ParaDiGMS) evaluates the rest alone after some samples have converged."""
    model = sds.MixtureModel([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.0]], [0.1, 0.1], VP, prediction="epsilon")
    words: dict[str, Any] = {"steps": 6, "num_samples": 5, "seed": 2}
    result = sds.sample(model, "paradigms", log_probs=True, **words)
    assert len(set(result.nfe_per_sample)) > 1
    assert torch.equal(result.samples, sds.sample(model, "paradigms", **words).samples)
    assert result.log_probs is not None
    assert (result.log_probs.shape, result.visited) == ((5, 0), None)
    assert sds.replay_log_probs(model, result).shape == (5, 0)
    stepper = new("paradigms", shape=(2,), num_samples=5, seed=2, log_probs=True, dtype=torch.float64)
    while not stepper.is_done:
        output = model.predict(stepper.x, stepper.times)
        assert isinstance(output, Tensor)
        stepper.send(output)
    assert stepper.result.visited is None

    def change(event: Any) -> None:
        if event.evaluation == 0:
            event.x[0] = 0.3

    edited = sds.sample(model, "paradigms", log_probs=True, callback=change, **words)
    assert edited.visited is None
    with pytest.raises(sds.UsageError, match="sample without the edits"):
        sds.replay_log_probs(model, edited)
