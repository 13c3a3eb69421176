"""A run leaves a foreign network as it found it, and nothing of the network's own modes decides samples."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
import transformers
from diffusers import DDPMPipeline, DDPMScheduler
from tiny_models import save_pipeline, tiny_unet

import sdesamplers as sds
from sdesamplers.models.running import evaluating, networks_in, networks_of

VARIANCE = 0.25


def log_density(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of data N(0.3, VARIANCE) noised by VP, up to a constant."""
    alpha, sigma = (torch.as_tensor(f(t.double().numpy())) for f in (sds.VP().alpha, sds.VP().sigma))
    return -0.5 * ((x - 0.3 * alpha).square() / (alpha**2 * VARIANCE + sigma**2)).sum()


def by_autograd(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The same density's score, differentiated inside of the model, as classifiers and energies are."""
    with torch.enable_grad():
        inside = x.detach().requires_grad_()
        return torch.autograd.grad(log_density(inside, t), inside)[0]


EXACT = sds.GaussianModel([0.3, 0.3], VARIANCE, sds.VP())
ENERGY = sds.FunctionModel(by_autograd, sds.VP(), "score", (2,), dtype=torch.float64)


class Net(torch.nn.Module):
    """A small network that notes in which modes it was evaluated."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(3, 16), torch.nn.Linear(16, 2)
        self.drop, self.norm = torch.nn.Dropout(dropout), torch.nn.BatchNorm1d(16)
        self.seen: set[bool] = set()
        self.double()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.seen |= {part.training for part in self.modules()}
        return self.last(self.drop(self.norm(torch.tanh(self.first(torch.cat([x, t], 1))))))

    def train(self, mode: bool = True) -> Net:  # what adapters that merge their weights do; calling it is no way back
        raise AssertionError("a run does not call train() or eval()")


def flags(network: torch.nn.Module) -> dict[str, Any]:
    return {name: part.training for name, part in network.named_modules()}


def model_of(network: Any, **words: Any) -> sds.FunctionModel:
    return sds.FunctionModel(network, sds.VP(), "epsilon", (2,), **{"dtype": torch.float64, **words})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_model_may_differentiate_itself_whatever_mode_the_caller_is_in(mode: Any) -> None:
    words: dict[str, Any] = {"steps": 8, "num_samples": 3, "seed": 4}
    for name in ("ddim", "ddpm"):
        exact = sds.sample(EXACT, name, dtype=torch.float64, **words).samples
        with mode():
            found = sds.sample(ENERGY, name, **words)
        torch.testing.assert_close(found.samples, exact, rtol=0, atol=1e-12)
        assert not found.samples.requires_grad


def test_a_model_may_differentiate_itself_in_every_kind_of_run(tmp_path: Path) -> None:
    words: dict[str, Any] = {"steps": 6, "seed": 2}
    exact = sds.sample(EXACT, "ddim", num_samples=4, dtype=torch.float64, **words).samples
    streamed = [batch.samples for batch in sds.stream(ENERGY, "ddim", num_samples=4, batch_size=2, **words)]
    torch.testing.assert_close(torch.cat(streamed), exact, rtol=0, atol=1e-12)
    compared = sds.compare(ENERGY, ["ddim"], nfe=[6], num_samples=4, seed=2, reference_samples=0)
    torch.testing.assert_close(compared.samples["ddim", 6], exact, rtol=0, atol=1e-12)
    sds.generate(ENERGY, "ddim", num_samples=4, out=tmp_path / "job", formats=["safetensors"], **words)
    latents = sds.encode(ENERGY, exact, "heun", steps=20).samples
    torch.testing.assert_close(latents, sds.encode(EXACT, exact, "heun", steps=20).samples, rtol=0, atol=1e-10)
    run = sds.sample(ENERGY, "ddpm", num_samples=4, log_probs=True, **words)
    torch.testing.assert_close(sds.replay_log_probs(ENERGY, run), run.log_probs, rtol=0, atol=1e-12)


def test_a_callback_may_differentiate() -> None:
    """Guidance by a callback: its gradient of -k x^2/2 is -k x, so it multiplies the state by 1 - 0.1 k."""

    def pull(event: Any) -> None:
        with torch.enable_grad():
            x = event.x.detach().requires_grad_()
            event.x = event.x + 0.1 * torch.autograd.grad(-x.square().sum(), x)[0]

    def scaled(event: Any) -> None:
        event.x = 0.8 * event.x

    runs = [sds.sample(EXACT, "ddim", steps=5, seed=1, callback=each).samples for each in (pull, scaled)]
    torch.testing.assert_close(*runs, rtol=0, atol=1e-6)


def test_log_probs_of_a_run_can_be_used_under_autograd() -> None:
    run = sds.sample(EXACT, "ddpm", steps=4, log_probs=True)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    (weight * run.log_probs).sum().backward()  # inference tensors cannot be saved for backward
    torch.testing.assert_close(weight.grad, run.log_probs.sum())


WRAPS = {"itself": lambda net: net, "closure": lambda net: lambda x, t: net(x, t), "method": lambda net: net.forward}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_sample_i_is_a_function_of_seed_and_i_where_a_network_was_left_in_training_mode(wrap: Any) -> None:
    left, quiet = Net(), Net()
    for part in quiet.modules():
        part.training = False
    before, statistics = flags(left), left.norm.running_mean.clone()
    words: dict[str, Any] = {"steps": 5, "num_samples": 6, "seed": 3}
    right = sds.sample(model_of(quiet), "ddim", **words).samples
    for size in (6, 4, 1):
        found = sds.sample(model_of(wrap(left)), "ddim", batch_size=size, **words).samples
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
    run = sds.sample(model_of(wrap(left)), "ddpm", log_probs=True, **words)
    assert (sds.replay_log_probs(model_of(wrap(left)), run) - run.log_probs).abs().max() < 1e-9
    assert left.seen == {False}
    assert flags(left) == before
    assert torch.equal(left.norm.running_mean, statistics)


def test_each_part_gets_its_own_flag_back_after_every_kind_of_run() -> None:
    network = Net()
    network.norm.training = False  # a frozen normalisation, which train() would switch on
    before, model = flags(network), model_of(network)
    x = torch.zeros(2, 2)
    runs = [
        lambda: sds.sample(model, "ddim", steps=2),
        lambda: sds.sample(model, "ddim", steps=2, gradients=True),
        lambda: list(sds.stream(model, "ddim", num_samples=2, batch_size=1, steps=2)),
        lambda: sds.compare(model, ["ddim"], nfe=[2], num_samples=2),
        lambda: sds.encode(model, x, "heun", steps=2),
        lambda: sds.decode(model, x, "heun", steps=2),
        lambda: sds.log_likelihood(model, x, "heun", steps=2),
        lambda: sds.consistency_error(model, steps=2),
        lambda: sds.replay_log_probs(model, sds.sample(model, "ddpm", steps=2, log_probs=True)),
        lambda: sds.sample(sds.PosteriorSampling(model, sds.Mask([True, False]), torch.zeros(1)), "ddim", steps=2),
    ]
    for run in runs:
        run()
        assert flags(network) == before
    assert network.seen == {False}


def test_flags_come_back_where_the_network_or_a_callback_raises() -> None:
    network = Net()
    before = flags(network)

    def stop(event: Any) -> None:
        raise sds.Cancelled("enough")

    with pytest.raises(sds.Cancelled):
        sds.sample(model_of(network), "ddim", steps=2, callback=stop)
    assert flags(network) == before
    with pytest.raises(RuntimeError):
        sds.sample(sds.FunctionModel(network, sds.VP(), "epsilon", (5,)), "ddim", steps=2)  # of another width
    assert flags(network) == before


def test_of_runs_that_overlap_the_last_sets_the_flags_back() -> None:
    network = Net()
    network.norm.training = False
    before, inside, done = flags(network), threading.Event(), threading.Event()

    def slow(event: Any) -> None:
        inside.set()
        assert done.wait(30)

    thread = threading.Thread(target=lambda: sds.sample(model_of(network), "ddim", steps=1, callback=slow))
    thread.start()
    assert inside.wait(30)
    sds.sample(model_of(network), "ddim", steps=2)  # begins later, ends earlier
    assert set(flags(network).values()) == {False}
    done.set()
    thread.join()
    assert flags(network) == before
    with evaluating([network]):
        with evaluating([network]):
            pass
        assert set(flags(network).values()) == {False}
    assert flags(network) == before


def test_networks_are_found_where_functions_and_models_hold_them() -> None:
    net, other = Net(), Net()

    class Holder:
        def __init__(self) -> None:
            self.nets = {"a": net, "b": [other]}
            self.net = net

        def __call__(self, x: Any, t: Any) -> Any:
            return self.net(x, t)

        def answer(self, x: Any, t: Any) -> Any:
            return self.net(x, t)

    def helper(x: Any, t: Any) -> Any:
        return net(x, t)

    import functools

    for function in (
        net,
        net.forward,
        Holder(),
        Holder().answer,
        functools.partial(net),
        functools.partial(lambda f, x, t: f(x, t), net),
        lambda x, t: helper(x, t),
        lambda x, t, f=net: f(x, t),
        lambda x, t: next(net(y, t) for y in [x]),
    ):
        assert net in list(networks_in(function)), function

    class Own(sds.Model):
        process, prediction, shape = sds.VP(), "epsilon", (2,)

        def __init__(self) -> None:
            self.ensemble = [net, other]

        def predict(self, x: Any, t: Any, condition: Any = None) -> Any:
            raise NotImplementedError

    assert {*networks_of(Own())} == {net, other}
    assert {*networks_of(sds.PosteriorSampling(Own(), sds.Mask([True, False]), torch.zeros(1)))} == {net, other}


@pytest.mark.parametrize("of", ["from_pipeline", "load"])
def test_training_goes_on_after_a_network_was_sampled_from(of: str, tmp_path: Path) -> None:
    unet = tiny_unet()
    unet.train()
    frozen = unet.conv_in.bias.requires_grad_(False)
    unet.conv_out.eval()
    if of == "from_pipeline":
        model, network = sds.from_pipeline(DDPMPipeline(unet, DDPMScheduler())), unet
    else:
        model = sds.load(save_pipeline(tmp_path / "it", unet=unet))
        network = model.network
    wanted = {name: p.requires_grad for name, p in network.named_parameters()}
    before = flags(network)
    sds.sample(model, "ddim", steps=2)
    assert flags(network) == before
    assert {name: p.requires_grad for name, p in network.named_parameters()} == wanted
    if of == "from_pipeline":
        assert before[""]
        assert not before["conv_out"]
        assert not frozen.requires_grad
    assert all(p.requires_grad for p in network.parameters() if p is not frozen)


def test_policy_gradients_of_a_pipelines_model_are_the_replays_slope() -> None:
    """The gradient of the replayed log-probabilities beside a finite difference over one weight, in float64."""
    unet = tiny_unet(dropout=0.2).double().train()
    model = sds.from_pipeline(DDPMPipeline(unet, DDPMScheduler()))
    run = sds.sample(model, "ddpm", steps=3, num_samples=2, log_probs=True, seed=1)
    again = sds.replay_log_probs(model, run)
    assert torch.equal(again.detach(), run.log_probs)
    weight = unet.conv_out.weight
    (slope,) = torch.autograd.grad(again.sum(), weight)
    at, h = np.unravel_index(int(slope.abs().argmax()), slope.shape), 1e-6
    values = []
    for step in (h, -h):
        with torch.no_grad():
            weight[at] += step
            values.append(float(sds.replay_log_probs(model, run).sum()))
            weight[at] -= step
    assert float(slope[at]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)
    sample = sds.sample(model, "ddim", steps=2, gradients=True).samples
    assert torch.autograd.grad(sample.sum(), weight)[0].abs().max() > 0


NEW_TOKENIZERS = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="the tiny tokenizers of tests are those of transformers 5"
)


@NEW_TOKENIZERS
def test_every_network_of_a_pipeline_is_left_as_it_was() -> None:
    pipe = tiny.own("stable-diffusion", torch.float32)
    parts = {name: each for name, each in pipe.components.items() if isinstance(each, torch.nn.Module)}
    for number, each in enumerate(parts.values()):
        each.requires_grad_(True).train()
        next(iter(each.children())).training = bool(number % 2)
    before = {name: flags(each) for name, each in parts.items()}
    model = sds.from_pipeline(pipe)
    found = sds.sample(model, "ddim", steps=2, condition="a cat", guidance_scale=2.0, seed=1)
    pictures = model.decode(found.samples)
    model.encode(pictures)
    assert {name: flags(each) for name, each in parts.items()} == before
    assert all(p.requires_grad for each in parts.values() for p in each.parameters())
    for each in parts.values():
        each.eval()
    quiet = sds.sample(sds.from_pipeline(pipe), "ddim", steps=2, condition="a cat", guidance_scale=2.0, seed=1)
    assert torch.equal(found.samples, quiet.samples)
    assert torch.equal(pictures, model.decode(quiet.samples))


@NEW_TOKENIZERS
def test_prompts_are_encoded_anew_after_the_text_encoder_was_trained() -> None:
    pipe = tiny.own("stable-diffusion", torch.float32)
    model = sds.from_pipeline(pipe)
    before = model.condition_for("a cat", 1).tensors["embeds"]
    assert model.condition_for("a cat", 1).tensors["embeds"].equal(before)
    with torch.no_grad():
        for weight in pipe.text_encoder.parameters():
            weight.mul_(1.1)
    after = model.condition_for("a cat", 1).tensors["embeds"]
    assert not after.equal(before)
    assert after.equal(sds.from_pipeline(pipe).condition_for("a cat", 1).tensors["embeds"])


def test_a_network_that_draws_or_seeds_or_sets_defaults_changes_nothing_outside() -> None:
    def rude(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, dtype=x.dtype)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(True)
        return 0.1 * x + 0.01 * noise

    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = sds.FunctionModel(rude, sds.VP(), "epsilon", (2,))
    with torch.no_grad():
        first = sds.sample(model, "ddpm", steps=3, seed=1)
        assert not torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)  # the caller's own draws do not reach a run
    assert torch.equal(sds.sample(model, "ddpm", steps=3, seed=1).samples, first.samples)
    assert not first.samples.requires_grad


def test_the_paths_noise_does_not_depend_on_what_a_network_draws() -> None:
    """Two networks of equal answers, one of which draws: the same samples; and batches of a drawing one differ."""
    plain = sds.FunctionModel(lambda x, t: 0.1 * x, sds.VP(), "epsilon", (2,))
    drawing = sds.FunctionModel(lambda x, t: (torch.randn(3), 0.1 * x)[1], sds.VP(), "epsilon", (2,))
    words: dict[str, Any] = {"steps": 4, "num_samples": 4, "seed": 9}
    assert torch.equal(*(sds.sample(m, "euler-maruyama", **words).samples for m in (plain, drawing)))
    seen: list[torch.Tensor] = []
    noisy = sds.FunctionModel(lambda x, t: (seen.append(torch.randn(3)), 0.1 * x)[1], sds.VP(), "epsilon", (2,))
    sds.sample(noisy, "ddim", steps=1, num_samples=2, batch_size=1)
    assert not torch.equal(*seen)
