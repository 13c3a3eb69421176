"""The samplers of policy-gradient training: flow-sde, dance-sde, cps and mixed against the papers' formulas."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdesamplers as sds

FLOW = sds.RectifiedFlow()
GRID = [1.0, 0.8, 0.5, 0.2, 0.0]


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * (1 + t.view(-1, 1))


def steps_of(sampler: str, **options: Any) -> list[tuple[float, float, Tensor, Tensor, sds.Transition]]:
    """(t, s, state, output, transition) of each step on GRID, in float64."""
    stepper = sds.Stepper(
        FLOW, sampler, prediction="flow", shape=(6,), times=GRID, num_samples=3, dtype=torch.float64, **options
    )
    made = []
    for t, s in itertools.pairwise(GRID):
        x = stepper.x.clone()
        output = velocity(x, stepper.t)
        made.append((t, s, x, output, stepper.step(output)))
    assert stepper.is_done
    return made


def agree(found: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("noisy_end", [False, True])
def test_flow_sde_is_equation_9_of_flow_grpo(noisy_end: bool) -> None:
    a = 0.7
    for t, s, x, v, step in steps_of("flow-sde", noise_level=a, noisy_end=noisy_end):
        level = a * math.sqrt(t / (1 - (s if t == 1 else t)))  # the paper's code replaces t = 1 by the second time
        if s == 0 and not noisy_end:
            level = 0.0
        h = s - t
        mean = x * (1 + level**2 / (2 * t) * h) + v * (1 + level**2 * (1 - t) / (2 * t)) * h
        agree(step.mean, mean)
        agree(step.std, level * math.sqrt(-h))
        assert step.dt == pytest.approx(h, rel=1e-14)


def test_flow_sde_is_euler_maruyama_in_flow_coordinates() -> None:
    """With eta = a / sqrt(2), from any noise level below t = 1, and for any process in flow coordinates."""
    for process, prediction in ((FLOW, "flow"), (sds.VP(), "epsilon"), (sds.EDM(), "sample")):
        times = [0.9, 0.5, 0.2] if process is not FLOW else [0.95, 0.5, 0.1]
        arguments: dict[str, Any] = {"prediction": prediction, "times": times, "dtype": torch.float64, "seed": 4}
        arguments["start"] = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
        ours = sds.Stepper(process, "flow-sde", noise_level=0.8, **arguments)
        theirs = sds.Stepper(process, "euler-maruyama", eta=0.8 / math.sqrt(2), coordinates="flow", **arguments)
        while not ours.is_done:
            a, b = (each.step(velocity(each.x, each.t)) for each in (ours, theirs))
            torch.testing.assert_close(a.mean, b.mean, rtol=1e-13, atol=1e-13)
            assert a.std == pytest.approx(b.std, rel=1e-13)


def test_dance_sde_is_the_step_of_dance_grpo() -> None:
    eta = 0.3
    for t, s, x, v, step in steps_of("dance-sde", eta=eta):
        h, x0 = s - t, x - t * v
        score = -(x - (1 - t) * x0) / t**2
        noisy = s > 0  # the code returns x0 at the end
        agree(step.mean, x + h * v - (0.5 * eta**2 * score * h if noisy else 0.0))
        agree(step.std, eta * math.sqrt(-h) if noisy else 0.0)


def test_dance_sde_is_euler_maruyama_with_noise_eta_over_g() -> None:
    """One step of `mixed`, whose amount is the eta of Euler-Maruyama; g^2 = 2 t/(1 - t) in flow coordinates."""
    t, s, eta = 0.6, 0.35, 0.4
    start = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    made = []
    share = eta / math.sqrt(2 * t / (1 - t))
    for sampler, options in (("dance-sde", {"eta": eta}), ("mixed", {"sde": "euler-maruyama", "amounts": [share]})):
        stepper = sds.Stepper(
            FLOW, sampler, prediction="flow", times=[t, s], start=start, dtype=torch.float64, **options
        )
        made.append(stepper.step(velocity(start, stepper.t)))
    agree(made[0].mean, made[1].mean)
    agree(made[0].std, made[1].std)


def test_cps_preserves_the_coefficients() -> None:
    eta = 0.6
    for t, s, x, v, step in steps_of("cps", eta=eta):
        x0, eps, std = x - t * v, x + (1 - t) * v, s * math.sin(math.pi * eta / 2)
        agree(step.mean, (1 - s) * x0 + math.sqrt(s**2 - std**2) * eps)
        agree(step.std, std)


@pytest.mark.parametrize(("sampler", "option"), [("flow-sde", "noise_level"), ("dance-sde", "eta"), ("cps", "eta")])
def test_without_noise_they_are_ddim(sampler: str, option: str) -> None:
    model = sds.GaussianModel([0.3, -0.2], 0.5, sds.VP())
    arguments: dict[str, Any] = {"steps": 5, "num_samples": 3, "seed": 1, "dtype": torch.float64}
    found = sds.sample(model, sampler, **{option: 0.0}, **arguments)
    torch.testing.assert_close(found.samples, sds.sample(model, "ddim", **arguments).samples, rtol=1e-12, atol=1e-12)
    assert not found.drew_noise
    with pytest.raises(sds.UsageError, match=option):
        sds.sample(model, sampler, **{option: -0.5}, **arguments)


# --- noise at chosen steps --------------------------------------------------------------------------------------------

MODEL = sds.MixtureModel([0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], [0.1, 0.2], FLOW, prediction="flow")
ARGUMENTS: dict[str, Any] = {"steps": 8, "num_samples": 5, "seed": 3, "dtype": torch.float64}


def test_only_the_chosen_steps_draw_noise() -> None:
    for steps in ([2, 3], [0, 5], [], list(range(7))):
        result = sds.sample(MODEL, "mixed", noisy_steps=steps, log_probs=True, **ARGUMENTS)
        assert result.transition_steps == steps
        found = result.step_log_probs()
        assert [bool(found[:, k].any()) for k in range(8)] == [k in steps for k in range(8)]
    by_default = sds.sample(MODEL, "mixed", log_probs=True, **ARGUMENTS)
    assert by_default.transition_steps == [0, 1, 2, 3]


@pytest.mark.parametrize("sde", ["flow-sde", "ddpm", "dpmpp-2m-sde"])
def test_all_steps_noisy_or_none_is_the_sampler_itself(sde: str) -> None:
    noisy = sds.sample(MODEL, "mixed", sde=sde, ode="dpmpp-2m", noisy_steps=list(range(8)), **ARGUMENTS)
    assert torch.equal(noisy.samples, sds.sample(MODEL, sde, **ARGUMENTS).samples)
    quiet = sds.sample(MODEL, "mixed", sde=sde, ode="dpmpp-2m", noisy_steps=[], **ARGUMENTS)
    assert torch.equal(quiet.samples, sds.sample(MODEL, "dpmpp-2m", **ARGUMENTS).samples)


def test_a_window_is_one_run_of_each_sampler_after_the_other() -> None:
    path = sds.sample(MODEL, "ddim", trajectory=True, **ARGUMENTS)
    times = [*path.trajectory.times[:-1], 0.0]
    arguments = {**ARGUMENTS, "steps": None, "start_time": None, "num_samples": None}
    first = sds.sample(MODEL, "dpmpp-2m", times=times[:4], start=path.trajectory.states[0], **arguments)
    second = sds.sample(MODEL, "dpmpp-2m-sde", times=times[3:6], start=first.samples, **arguments)
    last = sds.sample(MODEL, "dpmpp-2m", times=times[5:], start=second.samples, **arguments)
    found = sds.sample(MODEL, "mixed", sde="dpmpp-2m-sde", ode="dpmpp-2m", noisy_steps=[3, 4], **ARGUMENTS)
    torch.testing.assert_close(found.samples, last.samples, rtol=1e-10, atol=1e-10)


def test_amounts_are_the_eta_of_each_step() -> None:
    amounts = [0.0, 0.5, 0.5, 1.0, 0.0, 0.0, 0.2, 0.0]
    result = sds.sample(MODEL, "mixed", sde="euler-maruyama", amounts=amounts, log_probs=True, **ARGUMENTS)
    assert result.transition_steps == [1, 2, 3, 6]
    stepper = sds.Stepper(
        FLOW,
        "mixed",
        sde="euler-maruyama",
        amounts=amounts,
        prediction="flow",
        shape=(2,),
        steps=8,
        dtype=torch.float64,
    )
    for amount in amounts:
        point = stepper.point
        step = stepper.step(velocity(stepper.x, stepper.t))
        expected = amount and amount * float(point.diffusion) * math.sqrt(-step.dt)
        assert step.std == pytest.approx(expected, rel=1e-12)


def test_the_marginals_do_not_depend_on_where_the_noise_is() -> None:
    model = sds.GaussianModel([0.7], 0.36, sds.VP())
    arguments: dict[str, Any] = {"steps": 60, "num_samples": 4000, "seed": 5}
    for window in ([], list(range(20)), list(range(20, 55))):
        samples = sds.sample(model, "mixed", sde="ddpm", noisy_steps=window, **arguments).samples.double()
        error = float(samples.std()) / math.sqrt(4000)
        assert abs(float(samples.mean()) - 0.7) < 4 * error + 0.01
        assert float(samples.var()) == pytest.approx(0.36, rel=4 * math.sqrt(2 / 4000) + 0.05)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sde": "ddim"}, "draws no noise"),
        ({"sde": "sra1"}, "nonlinear"),
        ({"sde": "mixed"}, "sde"),
        ({"sde": "flow-sdee"}, "flow-sde"),
        ({"ode": "ddpm"}, "draws noise"),
        ({"ode": "euler-cfgpp"}, "needs unguided"),
        ({"noisy_steps": [8]}, "from 0 to 7"),
        ({"noisy_steps": [-1]}, "from 0 to 7"),
        ({"noisy_steps": [0.5]}, "from 0 to 7"),
        ({"amounts": [0.1] * 7}, "8 numbers"),
        ({"amounts": [-0.1] * 8}, "0 or more"),
        ({"amounts": [0.1] * 8, "noisy_steps": [1]}, "not both"),
        ({"sde": "ddpm", "amounts": [0.1] * 8}, "noisy_steps"),
    ],
)
def test_what_mixed_refuses(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(sds.SdesamplersError, match=reason):
        sds.sample(MODEL, "mixed", **options, **ARGUMENTS)
