"""Processes of one's own: checked at first use, on either clock, with functions that return what they are given."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from own_processes import (
    MEAN,
    STD,
    Circle,
    Forwards,
    Rounded,
    Table,
    circle,
    epsilon_model,
    mean_and_std,
    velocity_from_noise_to_data,
)
from process_cases import BETAS, TABLE
from process_cases import TEXTBOOK as PROCESSES

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.processes.check import check_once


def refusal(process):
    with pytest.raises(sds.UsageError) as caught:
        sds.check_process(process)
    return str(caught.value)


def half_pi(function):
    return lambda self, t: function(math.pi / 2 * t)


@pytest.mark.parametrize(
    "process",
    [
        Circle(),
        Table(),
        Table(100),
        circle(t_min=0.0),  # sigma = 0 at t_min
        circle(t_min=0.0, t_max=1.0),  # cos(pi/2) is 6e-17
        circle(clean_time=0.0),
        circle(sigma=lambda self, t: 2 * np.sin(math.pi / 2 * t), d_sigma=lambda self, t: np.pi * np.cos(np.pi / 2 * t),
               time_at_ratio=lambda self, r: np.arctan(np.divide(r, 2)) * 2 / np.pi),  # not variance preserving
        circle(alpha=lambda self, t: torch.cos(torch.as_tensor(t) * math.pi / 2)),  # tensors
        circle(sigma=lambda self, t: np.sin(math.pi / 2 * t).astype(np.float32)),  # float32
        sds.reversed(Forwards()),
        sds.reversed(sds.RectifiedFlow(shift=3.0)),
        *PROCESSES.values(),
    ],
    ids=lambda process: type(process).__name__,
)  # fmt: skip
def test_right_processes_pass(process):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sds.check_process(process)


WRONG = {
    "the sign of a slope": (circle(d_alpha=lambda self, t: -Circle.d_alpha(self, t)), ["d_alpha", "sign is wrong"]),
    "a slope twice as large": (circle(d_sigma=lambda self, t: 2 * Circle.d_sigma(self, t)), ["d_sigma", "2 times"]),
    "a slope of 1.5 % too much": (circle(d_sigma=lambda self, t: 1.015 * Circle.d_sigma(self, t)), ["d_sigma("]),
    "no slope": (circle(d_alpha=lambda self, t: 0.0), ["d_alpha", "is 0, but the slope of alpha there is -"]),
    "a slope per timestep": (
        circle(d_alpha=lambda self, t: Circle.d_alpha(self, t) / 1000), ["d_alpha", "0.001 times"]),
    "another inverse": (circle(time_at_ratio=lambda self, r: np.arctan(r)), ["time_at_ratio(", "inverse"]),
    "the inverse of alpha/sigma": (
        circle(time_at_ratio=lambda self, r: np.arctan2(1, r) * 2 / np.pi), ["time_at_ratio(", "inverse"]),
    "an inverse 1 % off": (
        circle(time_at_ratio=lambda self, r: np.arctan(1.01 * r) * 2 / np.pi), ["time_at_ratio("]),
    "time from noise to data": (Forwards(), ["falls from inf at t = 0 to 0 at t = 1", "sds.reversed(process)"]),
    "t_max too late": (circle(t_max=1.5), ["alpha is -", "t_min and t_max must exclude it"]),
    "t_max forgotten": (type("Forgot", (Table,), {"t_max": property(lambda self: 1.0, lambda self, v: None)})(),
                        ["t_max = 1", "pure noise"]),
    "t_min and t_max swapped": (circle(t_min=0.9, t_max=0.1), ["t_min = 0.9 must lie below t_max = 0.1"]),
    "t_max a tensor": (circle(t_max=torch.tensor(1.0)), ["t_max must be a finite number"]),
    "t_max infinite": (circle(t_max=math.inf), ["t_max must be a finite number, not inf"]),
    "NaN at the start": (
        circle(sigma=lambda self, t: np.where(np.asarray(t) >= 0.998, np.nan, Circle.sigma(self, t))),
        ["sigma is nan at t_max = 0.998", "largest time"]),
    "NaN at the end": (
        circle(d_sigma=lambda self, t: np.where(np.asarray(t) <= 0.002, np.nan, Circle.d_sigma(self, t))),
        ["d_sigma is nan at t_min = 0.002", "smallest time"]),
    "math.cos": (circle(alpha=half_pi(math.cos)), ["alpha of an array", "np.cos"]),
    "torch.cos": (circle(alpha=half_pi(torch.cos)), ["alpha of", "np.cos"]),
    "a branch": (circle(alpha=lambda self, t: 1.0 if t < 0 else Circle.alpha(self, t)), ["alpha of an array", "`if`"]),
    "a rounded table": (Rounded(), ["sigma/alpha does not rise", "t = 0"]),
    "flat": (circle(sigma=lambda self, t: np.minimum(Circle.sigma(self, t), 0.5),
                    alpha=lambda self, t: np.maximum(Circle.alpha(self, t), math.sqrt(0.75))), ["does not rise"]),
    "a prior of another size": (circle(prior=property(lambda self: sds.Prior(50.0))), ["prior.std is 50"]),
    "a clean time that is not": (circle(clean_time=-0.5), ["sigma is -0.7071 at clean_time = -0.5"]),
    "at_ratio of another process": (
        circle(at_ratio=lambda self, r: (np.ones_like(r), r)), ["alpha of at_ratio(sigma/alpha)"]),
    "half of a library process": (
        type("Half", (sds.VP,), {"sigma": lambda self, t: 0.5 * sds.VP.sigma(self, t)})(), ["d_sigma"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_processes_are_refused_with_the_reason(name):
    process, words = WRONG[name]
    message = refusal(process)
    assert all(word in message for word in words), message


def test_the_message_has_the_time_and_the_right_value():
    message = refusal(circle(d_alpha=lambda self, t: -Circle.d_alpha(self, t)))
    t = float(message.split("d_alpha(")[1].split(")")[0])
    found, right = (float(message.split(f"{word} ")[1].split(",")[0].split(":")[0]) for word in (") is", "there is"))
    assert found == pytest.approx(math.pi / 2 * math.sin(math.pi / 2 * t), rel=1e-4)
    assert right == pytest.approx(-math.pi / 2 * math.sin(math.pi / 2 * t), rel=1e-4)


def test_ends_that_are_hardly_noise_or_data_warn():
    with pytest.warns(UserWarning, match=r"sigma/alpha is only 0\.51 at t_max = 0\.3"):
        sds.check_process(circle(t_max=0.3))
    with pytest.warns(UserWarning, match=r"sigma/alpha is 1 at t_min = 0\.5"):
        sds.check_process(circle(t_min=0.5))


FIRST_USES = {
    "sample": lambda model, x: sds.sample(model, "euler", steps=4),
    "likelihood": lambda model, x: sds.log_likelihood(model, x),
    "encode": lambda model, x: sds.encode(model, x, "euler", steps=4),
    "loss": lambda model, x: sds.losses.denoising_loss(lambda x, t: x, model.process, x),
}


@pytest.mark.parametrize("use", FIRST_USES)
def test_a_process_is_checked_when_it_is_first_used(use):
    process = circle(d_alpha=lambda self, t: -Circle.d_alpha(self, t))
    for _ in range(2):  # and not only once
        with pytest.raises(sds.UsageError, match="sign is wrong"):
            FIRST_USES[use](epsilon_model(process), torch.zeros(1, 2))
    FIRST_USES[use](epsilon_model(Circle()), torch.zeros(1, 2))


def test_a_check_is_made_once_and_again_for_another_range(monkeypatch):
    made = []
    monkeypatch.setattr("sdesamplers.processes.check.check_process", made.append)
    process = Circle()
    check_once(process)
    check_once(process)
    assert made == [process]
    process.t_max = 0.9
    check_once(process)
    assert made == [process, process]
    check_once(sds.VP())
    check_once(sds.reversed(sds.RectifiedFlow()))
    assert len(made) == 2


@pytest.mark.parametrize("process", [Circle(), circle(t_min=0.0), Table()], ids=["inside", "sigma = 0", "table"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "rk45", "quality"])
def test_samples_on_a_process_of_ones_own_are_right(process, sampler):
    words = {} if sampler in ("rk45", "quality") else {"steps": 100}
    samples = sds.sample(epsilon_model(process), sampler, num_samples=2000, **words).samples
    # Standard errors: STD / sqrt(4000) = 0.005 and STD / sqrt(8000) = 0.0034; four of them, and the method's error.
    mean, std = mean_and_std(samples)
    assert mean == pytest.approx(MEAN, abs=0.02 + 0.01)
    assert std == pytest.approx(STD, abs=0.014 + 0.015)


def test_an_alpha_that_is_0_but_for_rounding_is_0():
    """With alpha = 6e-17, epsilon says nothing of the data: an error and no samples; v does."""
    process = circle(t_min=0.0, t_max=1.0)
    with pytest.raises(sds.ConversionError):
        sds.sample(epsilon_model(process), "euler", steps=10)

    def v(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)
        return alpha * sigma * gain - sigma * (MEAN + alpha * STD**2 * gain)

    model = sds.FunctionModel(v, process, "v", (2,))
    mean, std = mean_and_std(sds.sample(model, "quality", num_samples=2000).samples)
    assert (mean, std) == (pytest.approx(MEAN, abs=0.02), pytest.approx(STD, abs=0.02))


EITHER_CLOCK = [sds.reversed(Forwards()), sds.reversed(sds.RectifiedFlow()), sds.reversed(sds.RectifiedFlow(3.0))]


@pytest.mark.parametrize("process", EITHER_CLOCK, ids=["own", "library's", "shifted"])
def test_a_network_whose_time_runs_from_noise_to_data_is_taken_as_it_is(process):
    told = []

    def network(x, u):
        told.append((float(u.min()), float(u.max())))
        return velocity_from_noise_to_data(x, u)

    model = sds.FunctionModel(network, process, "flow", (2,))
    plain = sds.FunctionModel(lambda x, t: -velocity_from_noise_to_data(x, 1 - t), sds.RectifiedFlow(), "flow", (2,))
    grid = [0.999, 0.9, 0.7, 0.4, 0.2, 0.05, 0.001]
    got = sds.sample(model, "heun", times=grid, num_samples=8, coordinates="native", dtype=torch.float64).samples
    want = sds.sample(plain, "heun", times=grid, num_samples=8, coordinates="native", dtype=torch.float64).samples
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    assert told[0] == (pytest.approx(0.001), pytest.approx(0.001))
    assert told[-1][0] == pytest.approx(0.999)
    exact = -math.log(STD * math.sqrt(2 * math.pi)) * 2  # log-density of the mean, in two dimensions
    assert sds.log_likelihood(model, torch.full((1, 2), MEAN)).nats[0] == pytest.approx(exact, abs=2e-3)


def test_the_loss_of_a_reversed_process_is_that_of_the_other_clock():
    x0 = MEAN + STD * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    u = torch.linspace(0.05, 0.95, 64)
    network = lambda x, u: torch.sin(3 * x) + u[:, None]  # noqa: E731
    state = u[:, None] * x0 + (1 - u[:, None]) * noise
    by_hand = (network(state, u) - (x0 - noise)).square().mean(1)  # Lipman et al. 2023, eq. 9 with sigma_min = 0
    for process in (sds.reversed(Forwards()), sds.reversed(sds.RectifiedFlow())):
        got = sds.losses.denoising_loss(network, process, x0, prediction="flow", weighting="flow", t=1 - u, noise=noise)
        torch.testing.assert_close(got, by_hand, rtol=1e-5, atol=1e-6)


def test_reversed_takes_gaussian_processes_once():
    for wrong in (5, "flow", sds.reversed(sds.RectifiedFlow())):
        with pytest.raises(sds.UsageError, match="reversed"):
            sds.reversed(wrong)


FUNCTIONS = ("alpha", "sigma", "d_alpha", "d_sigma", "ratio", "log_snr", "time_at_ratio", "time_at_log_snr")
ALL = {
    **PROCESSES,
    "shifted": sds.ShiftedFlow(3.0),
    "trig": sds.TrigFlow(0.5),
    "own": Circle(),
    "own table": Table(),
    "reversed": sds.reversed(Forwards()),
    "ve view": sds.view(sds.VP(), "ve"),
    "native view": sds.view(sds.VE(), "native"),
    "angle view": sds.view(sds.RectifiedFlow(), "angle"),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_return_what_they_are_given(name, function):
    process, call = ALL[name], getattr(ALL[name], function)
    low, high = float(process.t_min), float(process.t_max)
    times = np.linspace(low + 0.2 * (high - low), low + 0.8 * (high - low), 6)
    given = times if "time_at" not in function else (
        process.ratio(times) if function == "time_at_ratio" else process.log_snr(times)
    )  # fmt: skip
    values = call(given)
    assert type(values) is np.ndarray
    assert values.dtype == np.float64
    assert values.shape == (6,)
    for k, one in enumerate(given):
        assert isinstance(call(float(one)), float)
        assert call(float(one)) == pytest.approx(values[k], rel=1e-12, abs=1e-12)
    np.testing.assert_array_equal(call(given.reshape(2, 3)), values.reshape(2, 3))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        tensor = torch.tensor(given, dtype=dtype).view(6, 1, 1).requires_grad_()
        got = call(tensor)
        assert (got.dtype, got.shape, got.requires_grad) == (dtype, (6, 1, 1), False)
        np.testing.assert_allclose(got.double().flatten().numpy(), values, rtol=tolerance, atol=tolerance)


def test_tuples_of_values_and_whole_timesteps_too():
    table = sds.DiscreteVP(TABLE)
    steps = torch.tensor([0, 499, 999])
    kept = torch.cumprod(1 - torch.from_numpy(BETAS), 0)[steps]
    alpha = table.alpha(steps)
    assert alpha.dtype == torch.float32
    torch.testing.assert_close(alpha, kept.sqrt().float())
    assert table.alpha(steps.bfloat16()).dtype == torch.bfloat16
    for pair in (table.at_ratio(torch.ones(2)), table.schedule(torch.ones(2))):
        assert all(isinstance(value, torch.Tensor) and value.shape == (2,) for value in pair)
    assert all(isinstance(value, float) for value in table.schedule(3.0))
    assert isinstance(sds.VP().diffusion(torch.tensor(0.5)), torch.Tensor)
    assert sds.VP().beta(torch.tensor(0.5)) == pytest.approx(0.1 + 19.9 * 0.5)
    assert isinstance(sds.VE().alpha(1), float)


def test_drift_takes_tensors_of_times():
    x, t = torch.ones(3, 2), torch.tensor([0.1, 0.5, 0.9])
    expected = -0.5 * (0.1 + 19.9 * t)[:, None] * x  # -beta x / 2 (Song et al. 2021, eq. 32)
    torch.testing.assert_close(sds.VP().drift(x, t), expected)
    torch.testing.assert_close(sds.VP().velocity(x, t[:, None], torch.zeros_like(x)), expected)


PROCESS_FILE = """
import numpy as np
import sdesamplers as sds

class Straight(sds.GaussianProcess):
    sign = 1.0
    def alpha(self, t): return 1 - t
    def sigma(self, t): return t
    def d_alpha(self, t): return -1.0 * self.sign
    def d_sigma(self, t): return 1.0
    def time_at_ratio(self, r): return 1 - 1 / (1 + np.asarray(r))  # 1 at infinity

class Wrong(Straight):
    sign = -1.0

@sds.hookimpl
def sdesamplers_sdes():
    return {"straight": Straight, "wrong": Wrong}
"""


def test_check_on_the_command_line_takes_processes(tmp_path):
    file = tmp_path / "straight_process.py"
    file.write_text(PROCESS_FILE)
    runner = CliRunner()
    good = runner.invoke(cli, ["--plugin", str(file), "check", "straight", f"{file}:Straight", "--json"])
    assert good.exit_code == 0, good.output
    reports = json.loads(good.stdout)
    assert [report["passed"] for report in reports] == [True, True]
    assert "slopes" in {finding["check"] for finding in reports[0]["findings"]}
    bad = runner.invoke(cli, ["--plugin", str(file), "check", "wrong"])
    assert bad.exit_code == 1
    assert "sign is wrong" in " ".join(bad.output.split())
    sds.use_registry(None)


def test_a_flow_map_on_the_other_clock():
    """All data at MEAN: along each path dx/du = MEAN - x_0 is constant, so that one step arrives."""
    times = []

    def mean_velocity(x, u, r):
        times.append((float(u.flatten()[0]), float(r.flatten()[0])))
        return MEAN - (x - u * MEAN) / (1 - u)

    model = sds.FlowMapModel(mean_velocity, sds.reversed(sds.RectifiedFlow()), (2,))
    samples = sds.sample(model, "flow-map-euler", times=[1.0, 0.5, 0.0], num_samples=4).samples
    torch.testing.assert_close(samples, torch.full((4, 2), MEAN), rtol=0, atol=1e-5)
    assert times == [(0.0, 0.5), (0.5, 1.0)]
