"""Networks and samplers that do what nobody looks at: hidden in containers, in odd precisions, that end the program."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.random import mtrand
from process_cases import BETAS
from torch import Tensor

import sdesamplers as sds
from sdesamplers.cli import cli
from sdesamplers.errors import PluginError, SolverError

FLOW = sds.RectifiedFlow()


def dropping() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))


class Holder:
    """An object of the user's, with a network somewhere in it."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return self.pipe.unet(x)  # type: ignore[attr-defined, no-any-return]


NETS: dict[str, Any] = {}


def by_a_global(x: Tensor, t: Tensor) -> Tensor:
    return NETS["unet"](x)  # type: ignore[no-any-return]


def enclosed(network: Any) -> Any:
    held = [{"n": network}]
    return lambda x, t: held[0]["n"](x)


HIDDEN = {
    "global dictionary": lambda network: (NETS.update(unet=network), by_a_global)[1],
    "list of dictionaries": enclosed,
    "object in an object": lambda network: Holder(pipe=Holder(unet=network)).velocity,
    "closure over an object": lambda network: (lambda held: lambda x, t: held.parts[0](x))(Holder(parts=(network,))),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_a_network_in_train_mode_is_found_wherever_it_is(where: str) -> None:
    network = dropping()
    model = sds.FunctionModel(HIDDEN[where](network), FLOW, "flow", (2,))
    together = sds.sample(model, "heun", steps=5, num_samples=4).samples[3]
    alone = sds.sample(model, "heun", steps=5, num_samples=1, first_index=3).samples[0]
    torch.testing.assert_close(together, alone)
    assert all(part.training for part in network.modules())


def test_randomness_that_no_mode_turns_off_is_warned_of_and_kept_from_the_program() -> None:
    def noisy(x: Tensor, t: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x) + random.random() + np.random.rand()  # type: ignore[no-any-return]

    model = sds.FunctionModel(noisy, FLOW, "flow", (2,))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    with pytest.warns(UserWarning, match="drew from torch's global generator .* depends on the batch"):
        first = sds.sample(model, "euler", steps=3).samples
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # type: ignore[index,call-overload]
    random.seed(99)
    with pytest.warns(UserWarning, match="global generator"):
        assert torch.equal(sds.sample(model, "euler", steps=3).samples, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = dropping()
        sds.sample(sds.FunctionModel(lambda x, t: network(x), FLOW, "flow", (2,)), "euler-maruyama", steps=3)


def drawing(x: Tensor, t: Tensor) -> Tensor:
    """A network that draws an odd number of NumPy's normals, which come in pairs."""
    return x + np.random.randn() * torch.ones_like(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_programs_own_numpy_normals_go_on_as_without_a_run(before: int) -> None:
    def normals(run: bool) -> list[float]:
        np.random.seed(4)
        first = [np.random.randn() for _ in range(before)]
        if run:
            sds.sample(sds.FunctionModel(drawing, FLOW, "flow", (2,)), "euler", steps=3)
        return first + [np.random.randn() for _ in range(3)]

    assert normals(run=True) == normals(run=False)


def test_another_bit_generator_of_numpy_stays_and_draws_on(recwarn: pytest.WarningsRecorder) -> None:
    expected = np.random.RandomState(np.random.PCG64(5)).standard_normal(4).tolist()
    model = sds.FunctionModel(drawing, FLOW, "flow", (2,))
    reference = sds.sample(model, "euler", steps=3).samples
    used, own = mtrand.get_bit_generator(), np.random.PCG64(5)
    mtrand.set_bit_generator(own)
    try:
        found = [np.random.randn()]
        assert torch.equal(sds.sample(model, "euler", steps=3).samples, reference)
        assert mtrand.get_bit_generator() is own
        found += [np.random.randn() for _ in range(3)]
    finally:
        mtrand.set_bit_generator(used)
    assert found == expected
    assert [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)] == []


def test_a_run_within_a_run_leaves_the_outer_ones_numpy_stream() -> None:
    def nested(x: Tensor, t: Tensor) -> Tensor:
        sds.sample(sds.FunctionModel(drawing, FLOW, "flow", (2,)), "euler", steps=1, seed=8)
        return drawing(x, t)

    plain, outer = (sds.FunctionModel(network, FLOW, "flow", (2,)) for network in (drawing, nested))
    assert torch.equal(sds.sample(outer, "euler", steps=3).samples, sds.sample(plain, "euler", steps=3).samples)


def test_a_default_device_is_set_back() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        torch.set_default_device("meta")
        return 0.5 * x

    sds.sample(sds.FunctionModel(network, FLOW, "flow", (2,)), "euler", steps=1)
    assert torch.get_default_device() == torch.device("cpu")


def walk(name: str, change: Any, first: Any = lambda x: x) -> sds.Sampler:
    """Euler's method, with its first and last states changed."""

    @sds.sampler(name, order=1, reference="none")
    def sampler(x: Any, path: Any) -> Any:
        """Euler's method."""
        x = first(x)
        for now, then in path.steps:
            out = yield x, now
            x = out.step_to(then)
        return change(x)

    return sampler


@pytest.mark.parametrize(
    ("name", "change", "first", "said"),
    [
        ("narrow-end", lambda x: x[:, :1], lambda x: x, r"returned torch.float32 of shape \(4, 1\).*must keep both"),
        ("whole", lambda x: x.long(), lambda x: x, r"returned torch.int64 of shape \(4, 2\)"),
        ("double", lambda x: x.double(), lambda x: x, "returned torch.float64"),
        (
            "narrow",
            lambda x: x,
            lambda x: x[:, :1],
            r"requested a prediction for states of shape \(1,\), and .* \(2,\)",
        ),
    ],
)
def test_a_sampler_of_another_shape_or_dtype_is_refused(name: str, change: Any, first: Any, said: str) -> None:
    model = sds.FunctionModel(lambda x, t: 0.5 * x, FLOW, "flow", (2,))
    with pytest.raises(PluginError, match=said):
        sds.sample(model, walk(name, change, first), steps=3, num_samples=4)


def test_a_network_that_ends_the_program_is_an_error() -> None:
    def ends(x: Tensor, t: Tensor) -> Tensor:
        raise SystemExit(0)

    with pytest.raises(SolverError, match=r"the sampler or the network called exit\(0\)"):
        sds.sample(sds.FunctionModel(ends, FLOW, "flow", (2,)), "euler", steps=3)


class Concatenating(torch.nn.Module):
    """The velocity of data N(1, 0.25), asked through a layer that wants its time in its own precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.layer.weight.data, self.layer.bias.data = torch.eye(2), torch.zeros(2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        both = self.layer(torch.cat([x, t[:, None]], 1)).float()
        x, t = both[:, :1], both[:, 1:]
        return -1 + (t - 0.25 * (1 - t)) * (x - (1 - t)) / (0.25 * (1 - t) ** 2 + t**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_wrap_tells_the_time_in_the_precision_that_a_network_takes(dtype: torch.dtype) -> None:
    if dtype is torch.float64:
        network: torch.nn.Module = Concatenating().double()
    else:
        network = Concatenating().to(dtype)
    model = sds.wrap(network, (1,), process=FLOW)
    assert f"t of shape (N,), {str(dtype)[6:]}" in model.found
    samples = sds.sample(model, "heun", steps=20, num_samples=1000).samples
    # Standard errors 0.016 and 0.011; half precision adds its rounding of t.
    assert float(samples.mean()) == pytest.approx(1.0, abs=0.06)
    assert float(samples.std()) == pytest.approx(0.5, abs=0.05)


class Rounding(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x + self.layer(torch.round(t)[:, None])  # type: ignore[no-any-return]


def test_a_network_that_rounds_but_takes_no_whole_numbers() -> None:
    model = sds.wrap(Rounding(), (2,), betas=torch.from_numpy(BETAS).float())
    assert "float32" in model.found
    assert torch.isfinite(sds.sample(model, "euler", steps=3).samples).all()


def test_the_trial_leaves_torch_alone_and_does_not_depend_on_it() -> None:
    def doubling(x: Tensor, t: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return 0.5 * x

    sds.wrap(doubling, (2,), process=FLOW)
    assert torch.get_default_dtype() is torch.float32
    found = set()
    for seed in range(8):
        torch.manual_seed(seed)
        try:
            found.add(sds.wrap(lambda x, t: torch.nn.functional.dropout(0.5 * x), (2,), process=FLOW).found)
        except sds.UsageError as error:
            found.add(str(error))
    assert len(found) == 1


def test_verdicts_of_check_are_words() -> None:
    said = CliRunner().invoke(cli, ["check", "euler", "--check", "finite", "--check", "free steps"]).output
    assert "[green]" not in said
    assert "[/]" not in said
    assert "pass" in said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sds.Clip("x", 1), "a clip's low must be a number"),  # type: ignore[arg-type]
        (lambda: sds.Clip(most="x"), "a clip's most must be a number"),  # type: ignore[arg-type]
        (lambda: sds.compare(sds.grid_mixture(sds.VP()), ["euler"], [2], batch_size="x"), "batch_size must be"),  # type: ignore[arg-type]
        (lambda: sds.Registry(3), "file must be a registry file"),  # type: ignore[arg-type]
        (lambda: sds.Registry(plugins=3), "plugins must be a list"),  # type: ignore[arg-type]
        (lambda: sds.Registry(catalogue=3), "catalogue must be a Catalogue"),  # type: ignore[arg-type]
        (lambda: sds.Span(3), "process must be a process"),  # type: ignore[arg-type]
        (lambda: sds.IndependentNoise(3), "source must be a NormalSource"),  # type: ignore[arg-type]
        (lambda: sds.wrap(lambda x, t: x, (2,), process=FLOW, clock=float("inf")), "clock must be a positive number"),
        (lambda: sds.wrap(lambda x, t: x, (2,), process=FLOW, timesteps=np.ones(3)), "timesteps must be text"),  # type: ignore[arg-type]
        (lambda: sds.wrap(lambda x, t: x, (2,), process=FLOW, dtype=np.ones(3)), "dtype must be a torch dtype"),  # type: ignore[arg-type]
        (lambda: sds.wrap(lambda x, t: x.to("meta"), (2,), process=FLOW), "could not be called"),
        (lambda: sds.wrap(lambda x, t: x.to_sparse(), (2,), process=FLOW), "could not be called"),
    ],
)
def test_wrong_types_are_said(call: Any, said: str) -> None:
    with pytest.raises(sds.UsageError, match=said):
        call()


def test_an_index_out_of_range_is_refused_before_a_job_begins(tmp_path: Any) -> None:
    model, words = sds.grid_mixture(sds.VP()), {"steps": 2, "num_samples": 4, "first_index": 2**63 - 2}
    for call in (
        lambda: sds.sample(model, "euler", **words),
        lambda: sds.generate(model, "euler", out=tmp_path / "out", **words),
        lambda: next(iter(sds.stream(model, "euler", **words))),
    ):
        with pytest.raises(sds.UsageError, match=r"first_index \+ num_samples must not exceed 2\^63"):
            call()
    assert not (tmp_path / "out").exists()


def test_few_steps_of_a_density_without_a_range_are_warned_of() -> None:
    model, x = sds.GaussianModel([1.0, 1.0], 0.25, FLOW, prediction="flow"), torch.full((1, 2), 2.5)
    with pytest.warns(UserWarning, match="heun with 3 steps hardly solves the ODE"):
        sds.log_likelihood(model, x, "heun", steps=3, divergence="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sds.log_likelihood(model, x, "heun", steps=40, divergence="exact")
